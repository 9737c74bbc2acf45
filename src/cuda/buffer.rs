//! Memory of a GPU.

use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use cudarc::driver::sys;

use super::device::Device;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A piece of a GPU's memory, aligned to 256 bytes.
///
/// Allocating and freeing wait for the GPU: buffers are made when shapes change, not at each step.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
    /// Whether it is ours to free.
    is_owned: bool,
}

impl Buffer {
    /// Memory that holds anything.
    ///
    /// # Errors
    /// [`Error::Cuda`] when there is not enough.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind()?;
        let mut address = 0;
        // SAFETY: a context is current; the driver writes one address. It refuses a size of zero.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(1)) };
        device.check("cuMemAlloc", result, || format!("{bytes} bytes"))?;
        Ok(Buffer { device: Arc::clone(device), address, bytes, is_owned: true })
    }

    /// Memory of someone else, such as a tensor of PyTorch.
    ///
    /// # Safety
    /// It is the device's, has so many bytes, and lives as long as what is made of it here.
    #[must_use]
    pub unsafe fn foreign(device: &Arc<Device>, address: u64, bytes: usize) -> Self {
        Buffer { device: Arc::clone(device), address, bytes, is_owned: false }
    }

    /// Memory that is all `byte`, once the stream gets there.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn filled(stream: &Stream, bytes: usize, byte: u8) -> Result<Self> {
        let buffer = Self::new(stream.device(), bytes)?;
        buffer.fill(stream, byte)?;
        Ok(buffer)
    }

    /// Memory with these values.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn of<T: NoUninit>(stream: &Stream, values: &[T]) -> Result<Self> {
        let buffer = Self::new(stream.device(), size_of_val(values))?;
        buffer.upload(stream, 0, values)?;
        Ok(buffer)
    }

    /// Its address on the GPU.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets all of its bytes.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn fill(&self, stream: &Stream, byte: u8) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the range is this buffer's.
        let result = unsafe { sys::cuMemsetD8Async(self.address, byte, self.bytes, stream.raw()) };
        self.device.check("cuMemsetD8Async", result, || format!("{} bytes", self.bytes))
    }

    /// Takes all bytes of another buffer of its size, once the stream gets there.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes differ, [`Error::Cuda`] when the driver refuses.
    pub fn copy(&self, stream: &Stream, other: &Buffer) -> Result<()> {
        if self.bytes != other.bytes {
            return Err(Error::Shape(format!("{} bytes were to be copied to a buffer of {}", other.bytes, self.bytes)));
        }
        self.device.bind()?;
        // SAFETY: both ranges are those of buffers.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(self.address, other.address, self.bytes, stream.raw()) };
        self.device.check("cuMemcpyDtoDAsync", result, || format!("{} bytes", self.bytes))
    }

    /// Copies values to the bytes from `offset` on, and waits for it.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit, [`Error::Cuda`] when the driver refuses.
    pub fn upload<T: NoUninit>(&self, stream: &Stream, offset: usize, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.check_range(offset, bytes.len())?;
        self.device.bind()?;
        let target = self.address + offset as u64;
        // SAFETY: both ranges were checked, and the values outlive the copy, which is waited for.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(target, bytes.as_ptr().cast(), bytes.len(), stream.raw()) };
        self.device.check("cuMemcpyHtoDAsync", result, || format!("{} bytes", bytes.len()))?;
        stream.synchronize()
    }

    /// Copies the bytes from `offset` on to `values`, once the stream gets there.
    ///
    /// # Errors
    /// As [`Buffer::upload`]; [`Error::Cuda`] also with what went wrong in anything before.
    pub fn download<T: NoUninit + AnyBitPattern>(
        &self,
        stream: &Stream,
        offset: usize,
        values: &mut [T],
    ) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        self.check_range(offset, bytes.len())?;
        self.device.bind()?;
        let source = self.address + offset as u64;
        // SAFETY: both ranges were checked, and the values outlive the copy, which is waited for.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), source, bytes.len(), stream.raw()) };
        self.device.check("cuMemcpyDtoHAsync", result, || format!("{} bytes", bytes.len()))?;
        stream.synchronize()
    }

    fn check_range(&self, offset: usize, bytes: usize) -> Result<()> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::Shape(format!("{bytes} bytes from {offset} on were asked for, the buffer has {}", self.bytes)))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.is_owned && self.device.bind().is_ok() {
            // SAFETY: it was allocated here and is freed once; the driver waits for what uses it.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}
