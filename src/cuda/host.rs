//! Memory of the host that the GPU reads and writes by itself: copies from and to it run beside launches.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::buffer::Buffer;
use super::device::Device;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A pinned piece of the host's memory.
///
/// Allocating and freeing wait for the GPU, as those of a [`Buffer`] do. Copies are put into a stream and not waited for; only the GPU sees
/// what it holds.
#[derive(Debug)]
pub struct HostBuffer {
    device: Arc<Device>,
    /// An address that only the driver follows.
    address: usize,
    bytes: usize,
}

impl HostBuffer {
    /// Memory that holds anything.
    ///
    /// # Errors
    /// [`Error::Cuda`] when there is not enough.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind()?;
        let mut address = std::ptr::null_mut::<c_void>();
        // SAFETY: a context is current; the driver writes one address. It refuses a size of zero.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut address, bytes.max(1), 0) };
        device.check("cuMemHostAlloc", result, || format!("{bytes} bytes"))?;
        Ok(HostBuffer { device: Arc::clone(device), address: address as usize, bytes })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies all of it to the beginning of a buffer, once the stream gets there.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller, [`Error::Cuda`] when the driver refuses.
    pub fn load(&self, stream: &Stream, to: &Buffer) -> Result<()> {
        self.check_size(to)?;
        self.device.bind()?;
        // SAFETY: both ranges are those of buffers, which wait for the GPU before they are freed.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.address(), self.pointer().cast_const(), self.bytes, stream.raw()) };
        self.device.check("cuMemcpyHtoDAsync", result, || format!("{} bytes", self.bytes))
    }

    /// Takes its bytes from the beginning of a buffer, once the stream gets there.
    ///
    /// # Errors
    /// As [`HostBuffer::load`].
    pub fn store(&self, stream: &Stream, from: &Buffer) -> Result<()> {
        self.check_size(from)?;
        self.device.bind()?;
        // SAFETY: as above; nothing on the host refers to what is written.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(self.pointer(), from.address(), self.bytes, stream.raw()) };
        self.device.check("cuMemcpyDtoHAsync", result, || format!("{} bytes", self.bytes))
    }

    fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }

    fn check_size(&self, other: &Buffer) -> Result<()> {
        if other.bytes() >= self.bytes {
            return Ok(());
        }
        Err(Error::Shape(format!("{} bytes were to be copied to or from a buffer of {}", self.bytes, other.bytes())))
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // Unlike the free of a GPU's memory, this one need not wait for copies that are under way. Where they cannot be waited for the memory
        // stays: the GPU may write to it yet.
        // SAFETY: its context is current.
        let waited = self.device.bind().is_ok() && unsafe { sys::cuCtxSynchronize() } == sys::CUresult::CUDA_SUCCESS;
        if waited {
            // SAFETY: it was allocated here and is freed once.
            unsafe { sys::cuMemFreeHost(self.pointer()) };
        }
    }
}

/// Bytes of the host's memory that may be taken without others having to give some up; `None` where the system does not say.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// The line `MemAvailable:  1024 kB` of Linux.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        assert_eq!(available("MemTotal:   2048 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!(available("MemTotal:   2048 kB\n"), None);
        assert_eq!(available("MemAvailable:    many\n"), None);
    }
}
