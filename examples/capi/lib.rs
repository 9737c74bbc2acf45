//! The kernels as a C library, to be called from Python by ctypes, or from anything else, on tensors that are on the GPU already:
//! attention under sparse symbols, the projections around it, the choice of symbols, and whole generations of attention blocks (block.rs).
//!
//! ```text
//! cargo build --release --no-default-features --example capi     # target/release/examples/libcapi.so
//! cargo build --release --features llvm-static --example capi    # with selector programs on the GPU
//! ```
//!
//! ```c
//! void *omni_open(void);                                 // for the GPU of the current context; null on failure
//! void omni_close(void *kernels);
//! void *omni_attention(void *kernels, const omni_problem *);       // attention.rs; compiles what is missing and prepares;
//! void *omni_projection(void *kernels, const omni_gemm_problem *); // gemm.rs; null on failure
//! void *omni_selection(void *kernels, const omni_selection_problem *);   // selection.rs
//! void omni_free(void *call);
//! int omni_plan(void *call, void *stream);               // work list, if it has one: first, and whenever the bits have changed
//! int omni_run(void *call, void *stream);                // both only launch: 0, or 1 on failure
//! const char *omni_error(void);                          // what failed last in this thread
//! ```
//!
//! The stream is a `CUstream` of the primary context, such as `torch.cuda.current_stream().cuda_stream`. Symbols are
//! `S_c`: u64 `[symbol_batches * heads][ceil(q_blocks / 64)]`, q-blocks of 128 tokens, and
//! `S_s`: u64 `[symbol_batches * heads * q_blocks][ceil(kv_blocks / 64)]`. Bits of a row are least significant first, 1 computes, and those behind its
//! end are zero.

mod attention;
mod block;
mod gemm;
mod selection;
mod strategy;

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use flashomni::cuda::{Buffer, Device, Stream};
use flashomni::kernels::symbols::Sizes;
use flashomni::kernels::{AttentionCall, DeviceSymbols, GemmCall, Kernels, Path, params};
use flashomni::symbols::Blocks;
use flashomni::{Error, Result};

use selection::Selection;

/// What `omni_open` gives.
pub struct Opened {
    kernels: Arc<Kernels>,
    stream: Stream,
}

/// What can be launched.
enum Call {
    Attention(Box<AttentionCall>),
    Gemm(Box<GemmCall>),
    Selection(Box<Selection>),
}

/// What `omni_attention`, `omni_projection` and `omni_selection` give.
pub struct Prepared {
    call: Call,
    device: Arc<Device>,
    /// Offsets of blocks, where the symbols are the caller's.
    _offsets: Option<[Buffer; 2]>,
}

thread_local! {
    static FAILURE: RefCell<CString> = RefCell::default();
}

/// Opens the GPU of the current context.
#[unsafe(no_mangle)]
pub extern "C" fn omni_open() -> *mut Opened {
    boxed(|| {
        let device = Device::open(Device::current_ordinal()?)?;
        Ok(Opened { kernels: Arc::new(Kernels::new(&device)?), stream: Stream::new(&device)? })
    })
}

/// Closes it. What was prepared on it stays usable.
///
/// # Safety
/// `opened` is from [`omni_open`] and not used again, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_close(opened: *mut Opened) {
    // SAFETY: as the caller promises.
    unsafe { release(opened) }
}

/// Frees what was prepared.
///
/// # Safety
/// `prepared` is from one of the functions that prepare and not used again, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_free(prepared: *mut Prepared) {
    // SAFETY: as the caller promises.
    unsafe { release(prepared) }
}

/// Launches the making of the work list.
///
/// # Safety
/// `prepared` is from one of the functions that prepare, `stream` a stream of the GPU's primary context or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_plan(prepared: *const Prepared, stream: *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    unsafe {
        launch(prepared, stream, |call, stream| match call {
            Call::Attention(call) => call.plan(stream),
            Call::Gemm(call) => call.plan(stream),
            Call::Selection(_) => Ok(()),
        })
    }
}

/// Launches what was prepared.
///
/// # Safety
/// As [`omni_plan`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_run(prepared: *const Prepared, stream: *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    unsafe {
        launch(prepared, stream, |call, stream| match call {
            Call::Attention(call) => call.run(stream),
            Call::Gemm(call) => call.run(stream),
            Call::Selection(call) => call.run(stream),
        })
    }
}

/// What failed last in this thread; valid until the next failure.
#[unsafe(no_mangle)]
pub extern "C" fn omni_error() -> *const c_char {
    FAILURE.with_borrow(|text| text.as_ptr())
}

fn path(number: u32) -> Result<Path> {
    match number {
        0 => Ok(Path::Best),
        1 => Ok(Path::Portable),
        2 => Ok(Path::Naive),
        other => Err(Error::Value(format!("there is no path {other}: 0, 1 and 2 are"))),
    }
}

/// Symbols in the caller's memory on the GPU, in regular blocks, and the offsets that have to live as long as they.
///
/// # Safety
/// The addresses are those of symbols of these sizes, and outlive what is made of them.
unsafe fn symbols_on_gpu(
    stream: &Stream,
    [cache, skip]: [u64; 2],
    [batches, heads, q_tokens, kv_tokens, q_block, kv_block]: [u32; 6],
) -> Result<(Arc<DeviceSymbols>, Option<[Buffer; 2]>)> {
    let blocks = Blocks::regular(q_tokens as usize, kv_tokens as usize, q_block as usize, kv_block as usize);
    let offsets = [Buffer::of(stream, &blocks.q)?, Buffer::of(stream, &blocks.kv)?];
    let [q_start, kv_start] = [&offsets[0], &offsets[1]].map(Buffer::address);
    let addresses = params::Symbols { cache, skip, q_start, kv_start, ..params::Symbols::default() };
    let (q_blocks, kv_blocks) = (blocks.q_blocks() as u32, blocks.kv_blocks() as u32);
    // Of blocks of 64 queries kernels ask where each begins.
    let is_regular = q_block == 128;
    let sizes = Sizes {
        batches,
        heads,
        q_blocks,
        kv_blocks,
        q_tokens,
        kv_tokens,
        q_block,
        kv_block,
        is_regular,
        is_regular_q: is_regular,
    };
    // SAFETY: the offsets live as long as what is prepared, and the caller vouches for the bits.
    Ok((unsafe { DeviceSymbols::from_raw(addresses, sizes)? }, Some(offsets)))
}

unsafe fn launch(
    prepared: *const Prepared,
    stream: *mut c_void,
    put: impl FnOnce(&Call, &Stream) -> Result<()>,
) -> c_int {
    // SAFETY: the callers' caller promises that it is null or from one of the functions that prepare.
    let prepared = unsafe { prepared.as_ref() };
    let done = attempt(|| {
        let prepared = prepared.ok_or_else(|| Error::Value("a launch was given a null pointer".to_owned()))?;
        // SAFETY: the stream is the caller's, of the primary context, and outlives this call.
        let stream = unsafe { Stream::foreign(&prepared.device, stream) };
        put(&prepared.call, &stream)
    });
    c_int::from(done.is_none())
}

fn boxed<T>(make: impl FnOnce() -> Result<T>) -> *mut T {
    attempt(make).map_or(std::ptr::null_mut(), |made| Box::into_raw(Box::new(made)))
}

/// Makes something of what the caller points to.
///
/// # Safety
/// Both are null or point to what they should.
unsafe fn made<P, T>(
    name: &str,
    opened: *const Opened,
    problem: *const P,
    make: impl FnOnce(&Opened, &P) -> Result<T>,
) -> *mut T {
    // SAFETY: as the caller promises.
    let pair = unsafe { (opened.as_ref(), problem.as_ref()) };
    boxed(|| match pair {
        (Some(opened), Some(problem)) => make(opened, problem),
        _ => Err(Error::Value(format!("{name} was given a null pointer"))),
    })
}

unsafe fn release<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: it comes from `boxed`, and the caller does not use it again.
        drop(unsafe { Box::from_raw(pointer) });
    }
}

/// What `work` gives; its error is kept for [`omni_error`]. No panic leaves the library.
fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Option<T> {
    let message = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a bug in flashomni: it panicked".to_owned(),
    };
    FAILURE.set(CString::new(message.replace('\0', " ")).unwrap_or_default());
    None
}
