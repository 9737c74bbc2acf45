//! Named ranges of time that profilers show beside what a GPU does, as Nsight Systems does (NVTX).
//!
//! A profiler that starts a process names its library in [`env::NVTX`]. That library is loaded here and told where to write its functions, as
//! NVIDIA's headers do; no other library is needed (cudarc's bindings want libnvToolsExt, which CUDA 13 no longer has, and panic without it).
//! Where no profiler runs, or its library does not work, a range is nothing: its name is not even formatted.
//!
//! # Source
//! The names, numbers and structures of version 3 of NVTX: github.com/NVIDIA/NVTX, c/include/nvtx3/nvtxDetail.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fmt::Display;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::env;

/// A range of the thread that begins it, until it is dropped. Ranges lie within each other.
#[derive(Debug)]
#[must_use = "a range ends where it is dropped"]
pub struct Range {
    listener: Option<&'static Listener>,
    /// A range ends in its thread.
    thread: PhantomData<*const ()>,
}

impl Range {
    /// Begins a range. The name is only made where somebody listens: give `format_args!`.
    pub fn new(name: impl Display) -> Self {
        let listener = listener();
        if let Some(Listener { push, .. }) = listener {
            // What stands behind a zero would not be shown either.
            let name = CString::new(name.to_string()).unwrap_or_default();
            // SAFETY: the function is the profiler's, of the type that NVTX declares; it copies the text.
            unsafe { push(name.as_ptr()) };
        }
        Range { listener, thread: PhantomData }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(Listener { pop, .. }) = self.listener {
            // SAFETY: as above; the range was begun in this thread.
            unsafe { pop() };
        }
    }
}

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// The functions of a profiler.
#[derive(Debug)]
struct Listener {
    push: Push,
    pop: Pop,
}

/// That of this process, looked for once.
fn listener() -> Option<&'static Listener> {
    static LISTENER: OnceLock<Option<Listener>> = OnceLock::new();
    LISTENER.get_or_init(attach).as_ref()
}

type GetExportTable = extern "C" fn(u32) -> *const c_void;
type Initialize = unsafe extern "C" fn(GetExportTable) -> c_int;

/// Loads the profiler's library and has it write its functions.
fn attach() -> Option<Listener> {
    let path = env::nvtx()?;
    // SAFETY: a profiler's library is made to be loaded like this, and its function has the type that NVTX declares.
    let is_attached = unsafe {
        let library = libloading::Library::new(path).ok()?;
        let is_attached = library.get::<Initialize>(b"InitializeInjectionNvtx2").ok()?(export_table) != 0;
        if is_attached {
            // Its functions are called as long as the process lives.
            std::mem::forget(library);
        }
        is_attached
    };
    let function = |number: usize| CORE[number].load(Ordering::Acquire);
    let (push, pop) = (function(RANGE_PUSH), function(RANGE_POP));
    if !is_attached || push.is_null() || pop.is_null() {
        return None;
    }
    // SAFETY: the profiler has written functions of these types to these numbers.
    unsafe {
        Some(Listener {
            push: std::mem::transmute::<*mut c_void, Push>(push),
            pop: std::mem::transmute::<*mut c_void, Pop>(pop),
        })
    }
}

/// Where a profiler writes one of its functions.
type Slot = AtomicPtr<c_void>;

/// Functions of the largest modules, the numbers of which begin with 1.
const FUNCTIONS: usize = 16;

/// The slots of a module by their numbers; the end is null.
type Table = [Option<&'static Slot>; FUNCTIONS + 1];

/// The number of the module with the functions that are called here, and theirs.
const CORE_MODULE: c_int = 1;
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;

/// How many functions each module has, one more than the highest number; there is no module 0.
const SIZES: [c_uint; 7] = [0, 16, 9, 15, 7, 16, 7];

static CORE: [Slot; FUNCTIONS] = [const { Slot::new(std::ptr::null_mut()) }; FUNCTIONS];
static CORE_TABLE: Table = table(&CORE);

/// Of all other modules, whose functions nobody calls here.
static OTHERS: [Slot; FUNCTIONS] = [const { Slot::new(std::ptr::null_mut()) }; FUNCTIONS];
static OTHERS_TABLE: Table = table(&OTHERS);

const fn table(slots: &'static [Slot; FUNCTIONS]) -> Table {
    let mut table: Table = [None; FUNCTIONS + 1];
    let mut number = 1;
    while number < FUNCTIONS {
        table[number] = Some(&slots[number]);
        number += 1;
    }
    table
}

/// `NvtxExportTableCallbacks`.
#[repr(C)]
struct Callbacks {
    bytes: usize,
    module_table: unsafe extern "C" fn(c_int, *mut *const Option<&'static Slot>, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct VersionInfo {
    bytes: usize,
    version: u32,
    reserved: u32,
    set_version: extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks { bytes: size_of::<Callbacks>(), module_table };
static VERSION_INFO: VersionInfo =
    VersionInfo { bytes: size_of::<VersionInfo>(), version: 3, reserved: 0, set_version };

/// What a profiler may ask for, by its number.
extern "C" fn export_table(number: u32) -> *const c_void {
    match number {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION_INFO).cast(),
        _ => std::ptr::null(),
    }
}

/// Gives the slots of a module, and 1 where there is such a module.
///
/// # Safety
/// Both pointers are null or may be written to.
unsafe extern "C" fn module_table(module: c_int, slots: *mut *const Option<&'static Slot>, size: *mut c_uint) -> c_int {
    let known = usize::try_from(module).ok().and_then(|module| SIZES.get(module)).filter(|size| **size > 0);
    let Some(count) = known else { return 0 };
    let table = if module == CORE_MODULE { &CORE_TABLE } else { &OTHERS_TABLE };
    // SAFETY: the caller vouches for both.
    unsafe {
        if !slots.is_null() {
            slots.write(table.as_ptr());
        }
        if !size.is_null() {
            size.write(*count);
        }
    }
    1
}

/// The version of the profiler makes no difference.
extern "C" fn set_version(_version: u32) {}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    /// A name that must not be made.
    struct Unasked;

    impl Display for Unasked {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("nobody listens")
        }
    }

    #[test]
    fn a_range_is_nothing_without_a_profiler() {
        if env::nvtx().is_some() {
            return;
        }
        let outer = Range::new(Unasked);
        drop(Range::new("inner"));
        assert!(outer.listener.is_none());
    }

    #[test]
    fn profilers_find_the_slots_of_each_module() {
        let (mut slots, mut size) = (std::ptr::null(), 0);
        for (module, known) in [(0, false), (1, true), (6, true), (7, false), (-1, false)] {
            // SAFETY: both are variables.
            assert_eq!(unsafe { module_table(module, &raw mut slots, &raw mut size) }, c_int::from(known), "{module}");
        }
        assert_eq!(size, 7);
        assert!(CORE_TABLE[0].is_none() && CORE_TABLE[FUNCTIONS].is_none());
        assert!(CORE_TABLE[RANGE_POP].is_some_and(|slot| std::ptr::eq(slot, &raw const CORE[RANGE_POP])));
    }
}
