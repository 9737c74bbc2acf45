//! The driver, a GPU, and the context that everything of ours on it shares.
//!
//! The context is the primary one, which PyTorch and the CUDA runtime use too: their pointers and streams are valid in it. Every
//! call makes it current first, so that a [`Device`] may be used from any thread.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;

use crate::error::{Error, Result};

/// Oldest driver whose interface has all that is called here (tensor maps).
const OLDEST_DRIVER: Version = Version { major: 12, minor: 0 };

/// First driver that records launches which may begin early in graphs.
const FIRST_WITH_EARLY_LAUNCHES: Version = Version { major: 12, minor: 3 };

/// A version of CUDA, as drivers and compilers give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// As in 13.
    pub major: u32,
    /// As in 0.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a GPU has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// As in `NVIDIA H200`.
    pub name: String,
    /// Compute capability.
    pub compute: Version,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory.
    pub memory_bytes: usize,
    /// Most shared memory of one thread block.
    pub shared_bytes: u32,
    /// Newest CUDA that the driver knows.
    pub driver: Version,
}

/// A GPU and its primary context.
pub struct Device {
    ordinal: usize,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    properties: Properties,
}

// SAFETY: the driver's handles may be used from any thread; a context is made current before each use.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Device {}

impl Device {
    /// The GPU of a number, counted as the driver does (`CUDA_VISIBLE_DEVICES` applies).
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver, when it is older than CUDA 12.0, and when there is no such GPU;
    /// [`Error::Cuda`] when the driver refuses it.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let count = Self::count()?;
        if ordinal >= count {
            let numbers = if count == 1 { "only number 0".to_owned() } else { format!("0 to {}", count - 1) };
            return Err(Error::Unavailable(format!("there is no GPU {ordinal}: the driver shows {numbers}")));
        }
        let handle = device_handle(ordinal)?;
        let properties = properties(handle)?;
        if properties.driver < OLDEST_DRIVER {
            let driver = properties.driver;
            return Err(Error::Unavailable(format!(
                "the NVIDIA driver knows CUDA {driver}, {OLDEST_DRIVER} is the oldest that works: update the driver"
            )));
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the handle is one of the driver's, and the context is written before it is read.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, handle) };
        driver_call("cuDevicePrimaryCtxRetain", result)?;
        Ok(Arc::new(Device { ordinal, handle, context, properties }))
    }

    /// Number of GPUs that the driver shows; at least one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver and without a GPU.
    pub fn count() -> Result<usize> {
        load_driver()?;
        let mut count: c_int = 0;
        // SAFETY: the driver is loaded and writes one number.
        driver_call("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
        match usize::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(Error::Unavailable("the NVIDIA driver is there, but it shows no GPU".to_owned())),
        }
    }

    /// The number of the GPU whose context is current in this thread, 0 where none is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver.
    pub fn current_ordinal() -> Result<usize> {
        load_driver()?;
        let mut handle = 0;
        // SAFETY: the driver is loaded and writes one handle.
        if unsafe { sys::cuCtxGetDevice(&raw mut handle) } != sys::CUresult::CUDA_SUCCESS {
            return Ok(0);
        }
        for ordinal in 0..Self::count()? {
            if device_handle(ordinal)? == handle {
                return Ok(ordinal);
            }
        }
        Ok(0)
    }

    /// What the GPU of a number has, without a context on it.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn describe(ordinal: usize) -> Result<Properties> {
        load_driver()?;
        properties(device_handle(ordinal)?)
    }

    /// Its number.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// What it has.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Whether a kernel may begin before the one in front of it has ended, in graphs too.
    #[must_use]
    pub fn launches_early(&self) -> bool {
        self.properties.compute.major >= 9 && self.properties.driver >= FIRST_WITH_EARLY_LAUNCHES
    }

    /// Bytes of its memory that are free.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn free_bytes(&self) -> Result<u64> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: a context is current; the driver writes two numbers.
        let result = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.check("cuMemGetInfo", result, || "its memory".to_owned())?;
        Ok(free as u64)
    }

    /// Makes its context current in this thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        let result = unsafe { sys::cuCtxSetCurrent(self.context) };
        self.check("cuCtxSetCurrent", result, || "its context".to_owned())
    }

    /// The result of a call, with what it was about.
    pub(super) fn check(&self, call: &'static str, result: sys::CUresult, what: impl FnOnce() -> String) -> Result<()> {
        if result == sys::CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        Err(Error::Cuda { call, what: what(), reason: reason(result), device: self.to_string() })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: it was retained once. What lives in the context holds the device, so nothing of ours is left in it.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Properties { name, compute, driver, .. } = &self.properties;
        write!(f, "{name} (cuda:{}, compute capability {compute}, driver for CUDA {driver})", self.ordinal)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("ordinal", &self.ordinal).field("properties", &self.properties).finish()
    }
}

/// Loads the driver once; every other call of cudarc panics where this fails.
fn load_driver() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || {
        // SAFETY: it only tries to load the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "there is no NVIDIA driver (libcuda was not found): install it, or compute on the CPU".to_owned()
            );
        }
        // SAFETY: the library is there.
        let result = unsafe { sys::cuInit(0) };
        if result == sys::CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        Err(format!("the NVIDIA driver does not start: {}", reason(result)))
    };
    LOADED.get_or_init(load).clone().map_err(Error::Unavailable)
}

fn device_handle(ordinal: usize) -> Result<sys::CUdevice> {
    let mut handle = 0;
    let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: the callers have loaded the driver; it writes one handle.
    driver_call("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut handle, number) })?;
    Ok(handle)
}

fn properties(handle: sys::CUdevice) -> Result<Properties> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |which: Attribute| -> Result<u32> {
        let mut value: c_int = 0;
        // SAFETY: the handle is the driver's; it writes one number.
        driver_call("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, handle) })?;
        Ok(value.try_into().unwrap_or(0))
    };
    let mut name = [0 as c_char; 128];
    // SAFETY: the driver writes at most as many bytes as it is told, a zero included.
    driver_call("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, handle)
    })?;
    // SAFETY: the last byte is zero whatever the driver has written.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut memory_bytes = 0;
    // SAFETY: the handle is the driver's; it writes one number.
    driver_call("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, handle) })?;
    Ok(Properties {
        name,
        compute: Version {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        },
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver: driver_version()?,
    })
}

fn driver_version() -> Result<Version> {
    let mut version: c_int = 0;
    // SAFETY: the callers have loaded the driver; it writes one number.
    driver_call("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
}

/// The result of a call that is about no device yet.
fn driver_call(call: &'static str, result: sys::CUresult) -> Result<()> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (what, device) = ("the driver".to_owned(), "this machine".to_owned());
    Err(Error::Cuda { call, what, reason: reason(result), device })
}

/// What CUDA says of a result, and its name.
fn reason(result: sys::CUresult) -> String {
    let text = |call: unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver is loaded where there is a result; it writes a pointer to a text that it owns for ever, or none.
        let known = unsafe { call(result, &raw mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: as above.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorString), text(sys::cuGetErrorName)) {
        (Some(words), Some(name)) => format!("{words} ({name})"),
        _ => format!("error {}", result as u32),
    }
}
