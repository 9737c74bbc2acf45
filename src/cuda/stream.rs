//! Streams: work that is done one after the other.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::device::Device;
use crate::error::Result;

/// A stream of a device.
#[derive(Debug)]
pub struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
    /// Whether it is ours to destroy.
    is_owned: bool,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver orders what is put into a stream from several threads.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that waits for no other, not even for the default one.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda) when the driver refuses.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; the driver writes one handle.
        let result = unsafe { sys::cuStreamCreate(&raw mut raw, flags) };
        device.check("cuStreamCreate", result, || "a stream".to_owned())?;
        Ok(Stream { device: Arc::clone(device), raw, is_owned: true })
    }

    /// A stream of someone else, such as PyTorch's current one; null is the default stream.
    ///
    /// # Safety
    /// It is a stream of the device's primary context, and lives as long as what is made of it here.
    #[must_use]
    pub unsafe fn foreign(device: &Arc<Device>, raw: *mut c_void) -> Self {
        Stream { device: Arc::clone(device), raw: raw.cast(), is_owned: false }
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Waits until all is done that was put into it.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda) with what went wrong in anything before.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives as long as `self`.
        let result = unsafe { sys::cuStreamSynchronize(self.raw) };
        self.device.check("cuStreamSynchronize", result, || "what was launched before".to_owned())
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.is_owned && self.device.bind().is_ok() {
            // SAFETY: it was created here and is destroyed once; the driver finishes what is in it.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}
