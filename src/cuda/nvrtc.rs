//! CUDA's run-time compiler: source in, cubin out.
//!
//! It compiles for the real architecture, so that ptxas's remarks are in the log and the driver has nothing left to compile.
//! The library is often installed where the system does not look (a Python package, an unregistered toolkit). It is then loaded
//! by its path, from [`env::NVRTC`] or the toolkit's folder; afterwards cudarc finds it by its name, as it is loaded already.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::sys;

use super::device::Version;
use crate::env;
use crate::error::{Error, Result};

/// The compiler.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc {
    version: Version,
}

/// What to compile.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    /// Its name in messages and line information.
    pub name: &'a str,
    /// All of its source; it includes nothing.
    pub source: &'a str,
    /// As in `sm_90a`.
    pub architecture: &'a str,
    /// Further options.
    pub options: &'a [String],
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// An ELF file for the architecture.
    pub cubin: Vec<u8>,
    /// All that the compiler said: warnings, and with `--ptxas-options=-v` registers and spills.
    pub log: String,
}

impl Nvrtc {
    /// The library that this process uses.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not found.
    pub fn load() -> Result<Self> {
        static LOADED: OnceLock<bool> = OnceLock::new();
        if !LOADED.get_or_init(find) {
            return Err(Error::Unavailable(missing()));
        }
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // SAFETY: the library is there; it writes two numbers.
        let result = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        check("nvrtcVersion", result)?;
        let number = |number: c_int| u32::try_from(number).unwrap_or(0);
        Ok(Nvrtc { version: Version { major: number(major), minor: number(minor) } })
    }

    /// Its version, which is that of its toolkit.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The options that a program is compiled with.
    #[must_use]
    pub fn options(program: &Program<'_>) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={}", program.architecture),
            "--std=c++17".to_owned(),
            // Profilers and compute-sanitizer name lines; the code is the same.
            "-lineinfo".to_owned(),
        ];
        options.extend_from_slice(program.options);
        options
    }

    /// Compiles.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the whole log when it does not compile; the caller may add where the source is.
    pub fn compile(&self, program: &Program<'_>) -> Result<Compiled> {
        let options = Self::options(program);
        let what = || {
            let options = options.join(" ");
            format!("kernel `{}` (NVRTC {}, {options})", program.name, self.version)
        };
        let handle = Handle::new(program)?;
        let texts = options.iter().map(|option| text(option)).collect::<Result<Vec<_>>>()?;
        let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: the program and the options live; there are as many as it is told.
        let result = unsafe { sys::nvrtcCompileProgram(handle.0, pointers.len() as c_int, pointers.as_ptr()) };
        let log = handle.log();
        if result != sys::nvrtcResult::NVRTC_SUCCESS {
            let log = if log.trim().is_empty() { words(result) } else { log };
            return Err(Error::Kernel { what: what(), log, saved: None });
        }
        Ok(Compiled { cubin: handle.cubin()?, log })
    }
}

/// A program that the library holds.
struct Handle(sys::nvrtcProgram);

impl Handle {
    fn new(program: &Program<'_>) -> Result<Self> {
        let (source, name) = (text(program.source)?, text(program.name)?);
        let mut handle = Handle(std::ptr::null_mut());
        let none = std::ptr::null();
        // SAFETY: both texts end in zeros; there are no headers.
        let result =
            unsafe { sys::nvrtcCreateProgram(&raw mut handle.0, source.as_ptr(), name.as_ptr(), 0, none, none) };
        check("nvrtcCreateProgram", result)?;
        Ok(handle)
    }

    /// The log, empty where there is none.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: the program lives; the library writes one number.
        if unsafe { sys::nvrtcGetProgramLogSize(self.0, &raw mut size) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0_u8; size];
        // SAFETY: the log has the size that the library gave.
        if unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        // The library may end the text before the size that it gave.
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        String::from_utf8_lossy(&log[..end]).into_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program lives; the library writes one number.
        check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) })?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: the cubin has the size that the library gave.
        check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it was created here and is destroyed once.
            unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
        }
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Value("the source of a kernel has a zero in it".to_owned()))
}

fn check(call: &'static str, result: sys::nvrtcResult) -> Result<()> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    let (what, device) = ("a kernel".to_owned(), "this machine".to_owned());
    Err(Error::Cuda { call, what, reason: words(result), device })
}

fn words(result: sys::nvrtcResult) -> String {
    // SAFETY: the library gives a text that it owns for ever.
    let text = unsafe { sys::nvrtcGetErrorString(result) };
    if text.is_null() {
        return format!("error {}", result as u32);
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Whether the library can be loaded; every call of cudarc panics otherwise.
fn find() -> bool {
    // SAFETY: it only tries to load the library.
    let is_known = || unsafe { sys::is_culib_present() };
    match env::nvrtc() {
        Some(path) => load_from(&path) && is_known(),
        None => is_known() || (toolkits().iter().any(|folder| load_from(folder)) && is_known()),
    }
}

/// Folders in which a toolkit puts its libraries.
fn toolkits() -> Vec<PathBuf> {
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    roots.chain([PathBuf::from("/usr/local/cuda")]).map(|root| root.join("lib64")).collect()
}

/// Loads the library and what it needs from a folder, or from that of a file.
fn load_from(path: &Path) -> bool {
    let (folder, file) = if path.is_dir() { (path, None) } else { (path.parent().unwrap_or(path), Some(path)) };
    let mut inside: Vec<PathBuf> =
        folder.read_dir().map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
    inside.sort();
    let starts = |path: &Path, start: &str| {
        path.file_name().is_some_and(|name| name.to_str().is_some_and(|name| name.starts_with(start)))
    };
    // NVRTC asks for its built-in functions by name when it first compiles.
    inside.iter().filter(|path| starts(path, "libnvrtc-builtins.so")).for_each(|path| {
        keep_loaded(path);
    });
    match file {
        Some(file) => keep_loaded(file),
        None => inside.iter().rev().any(|path| starts(path, "libnvrtc.so") && keep_loaded(path)),
    }
}

/// Loads a library for as long as the process lives.
fn keep_loaded(path: &Path) -> bool {
    // SAFETY: CUDA's libraries run no code of their own when they are loaded that could disturb this process.
    match unsafe { libloading::Library::new(path) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

fn missing() -> String {
    match env::nvrtc() {
        Some(path) => format!("{}={} holds no NVRTC that can be loaded (libnvrtc.so)", env::NVRTC.name, path.display()),
        None => format!(
            "NVRTC, CUDA's run-time compiler, was not found (libnvrtc.so): install it (`pip install nvidia-cuda-nvrtc`, or the CUDA \
             toolkit), and put its folder into LD_LIBRARY_PATH or {}",
            env::NVRTC.name
        ),
    }
}
