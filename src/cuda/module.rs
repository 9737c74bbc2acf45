//! Compiled kernels on a device.

use std::ffi::{CString, c_int};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};

use super::device::Device;
use crate::error::{Error, Result};

/// A cubin or PTX that a device has loaded.
#[derive(Debug)]
pub struct Module {
    device: Arc<Device>,
    raw: sys::CUmodule,
}

// SAFETY: modules may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module.
#[derive(Debug)]
pub struct Function {
    module: Arc<Module>,
    pub(super) raw: sys::CUfunction,
    name: String,
}

// SAFETY: functions may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Loads a cubin, of a kernel that has this name in messages.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses it: altered, of another architecture, of a newer CUDA.
    pub fn load(device: &Arc<Device>, name: &str, cubin: &[u8]) -> Result<Arc<Self>> {
        // The driver reads as far as the ELF header says, whatever the length.
        if !cubin.starts_with(b"\x7fELF") {
            return Err(Error::Value(format!("the cubin of kernel `{name}` is not an ELF file")));
        }
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let none = std::ptr::null_mut();
        // SAFETY: a context is current, and the image comes whole from the compiler or the cache, which checks it.
        let result = unsafe { sys::cuModuleLoadDataEx(&raw mut raw, cubin.as_ptr().cast(), 0, none, none.cast()) };
        device.check("cuModuleLoadDataEx", result, || format!("kernel `{name}`, {} bytes", cubin.len()))?;
        Ok(Arc::new(Module { device: Arc::clone(device), raw }))
    }

    /// Loads PTX, which the driver compiles for the device, of kernels that have this name in messages.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses it.
    pub fn load_ptx(device: &Arc<Device>, name: &str, ptx: &str) -> Result<Arc<Self>> {
        let text = CString::new(ptx).map_err(|_| Error::Value(format!("the PTX of `{name}` has a zero in it")))?;
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let none = std::ptr::null_mut();
        // SAFETY: a context is current, and the text ends in a zero.
        let result = unsafe { sys::cuModuleLoadDataEx(&raw mut raw, text.as_ptr().cast(), 0, none, none.cast()) };
        device.check("cuModuleLoadDataEx", result, || format!("PTX of `{name}`, {} bytes", ptx.len()))?;
        Ok(Arc::new(Module { device: Arc::clone(device), raw }))
    }

    /// A kernel by its name.
    ///
    /// # Errors
    /// [`Error::Cuda`] when there is none.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Function> {
        self.device.bind()?;
        let text = CString::new(name).map_err(|_| Error::Value(format!("`{name}` is no name of a kernel")))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module lives and the name ends in a zero; the driver writes one handle.
        let result = unsafe { sys::cuModuleGetFunction(&raw mut raw, self.raw, text.as_ptr()) };
        self.device.check("cuModuleGetFunction", result, || format!("kernel `{name}`"))?;
        Ok(Function { module: Arc::clone(self), raw, name: name.to_owned() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: it was loaded here and is unloaded once; functions hold the module.
            unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

impl Function {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.module.device
    }

    /// Registers of a thread.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver does not say.
    pub fn registers(&self) -> Result<u32> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Bytes of local memory of a thread: above zero where registers were spilled.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver does not say.
    pub fn local_bytes(&self) -> Result<u32> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    }

    /// Allows launches with so much dynamic shared memory; without, 48 KiB is the most.
    ///
    /// # Errors
    /// [`Error::Cuda`] when a thread block of the device has less.
    pub fn allow_shared_bytes(&self, bytes: u32) -> Result<()> {
        self.device().bind()?;
        let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives.
        let result = unsafe { sys::cuFuncSetAttribute(self.raw, which, bytes.cast_signed()) };
        self.device().check("cuFuncSetAttribute", result, || {
            let most = self.device().properties().shared_bytes;
            format!("kernel `{}` with {bytes} bytes of shared memory (a thread block has {most})", self.name)
        })
    }

    fn attribute(&self, which: Attribute) -> Result<u32> {
        self.device().bind()?;
        let mut value: c_int = 0;
        // SAFETY: the function lives; the driver writes one number.
        let result = unsafe { sys::cuFuncGetAttribute(&raw mut value, which, self.raw) };
        self.device().check("cuFuncGetAttribute", result, || format!("kernel `{}`", self.name))?;
        Ok(value.try_into().unwrap_or(0))
    }
}
