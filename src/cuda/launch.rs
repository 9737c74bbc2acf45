//! Running kernels.

use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::sys;

use super::module::Function;
use super::stream::Stream;
use crate::error::{Error, Result};

/// Most arguments of a kernel.
const MAX_ARGUMENTS: usize = 32;

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Thread blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// An argument of a kernel: a value of the type that the kernel declares.
#[derive(Clone, Copy, Debug)]
pub struct Argument<'a> {
    address: *const c_void,
    life: PhantomData<&'a ()>,
}

impl<'a> Argument<'a> {
    /// The launch copies the value.
    #[must_use]
    pub fn of<T: Copy>(value: &'a T) -> Self {
        Argument { address: std::ptr::from_ref(value).cast(), life: PhantomData }
    }

    /// The same of a structure that is given by its bytes, of which the kernel takes as many as it declares.
    #[must_use]
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        Argument { address: bytes.as_ptr().cast(), life: PhantomData }
    }
}

impl Function {
    /// Puts a run of the kernel into a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses. What goes wrong on the GPU comes out of a later call.
    ///
    /// # Safety
    /// The arguments are those that the kernel declares, in number, order and layout, and what they point to lives until it
    /// has run.
    pub unsafe fn launch(&self, stream: &Stream, launch: Launch, arguments: &[Argument<'_>]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.put(stream, launch, arguments, &mut []) }
    }

    /// The same, but the kernel may begin while the one in front of it still runs, where it hides the time that a launch takes. Without
    /// [`Device::launches_early`](super::Device::launches_early) it is as [`Function::launch`].
    ///
    /// # Errors
    /// As [`Function::launch`].
    ///
    /// # Safety
    /// As [`Function::launch`]; and all threads of the kernel execute `griddepcontrol.wait` before they touch memory.
    pub unsafe fn launch_early(&self, stream: &Stream, launch: Launch, arguments: &[Argument<'_>]) -> Result<()> {
        if !self.device().launches_early() {
            // SAFETY: as the caller promises.
            return unsafe { self.put(stream, launch, arguments, &mut []) };
        }
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        // SAFETY: as the caller promises.
        unsafe { self.put(stream, launch, arguments, &mut [sys::CUlaunchAttribute { id, pad: [0; 4], value }]) }
    }

    unsafe fn put(
        &self,
        stream: &Stream,
        launch: Launch,
        arguments: &[Argument<'_>],
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> Result<()> {
        let Launch { grid: [x, y, z], threads, shared_bytes } = launch;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if arguments.len() > MAX_ARGUMENTS {
            let count = arguments.len();
            return Err(Error::Value(format!("kernel `{}` was given {count} arguments", self.name())));
        }
        self.device().bind()?;
        let mut addresses = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        addresses.iter_mut().zip(arguments).for_each(|(slot, argument)| *slot = argument.address.cast_mut());
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: stream.raw(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the function and the stream live, and the caller vouches for the arguments, which the driver only reads.
        let result =
            unsafe { sys::cuLaunchKernelEx(&raw const config, self.raw, addresses.as_mut_ptr(), std::ptr::null_mut()) };
        self.device().check("cuLaunchKernelEx", result, || {
            format!(
                "kernel `{}` on {x} x {y} x {z} blocks of {threads} threads, {shared_bytes} shared bytes",
                self.name()
            )
        })
    }
}
