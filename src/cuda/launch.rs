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
        let (parameters, none) = (addresses.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the function and the stream live, and the caller vouches for the arguments, which the driver only reads.
        let result = unsafe {
            sys::cuLaunchKernel(self.raw, x, y, z, threads, 1, 1, shared_bytes, stream.raw(), parameters, none)
        };
        self.device().check("cuLaunchKernel", result, || {
            format!(
                "kernel `{}` on {x} x {y} x {z} blocks of {threads} threads, {shared_bytes} shared bytes",
                self.name()
            )
        })
    }
}
