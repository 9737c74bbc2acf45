//! Events: points in a stream, and the time between them.

use std::sync::Arc;

use cudarc::driver::sys;

use super::device::Device;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A point in a stream that takes the time.
#[derive(Debug)]
pub struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that was not recorded yet.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        // The default flags are those with a time.
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: a context is current; the driver writes one handle.
        let result = unsafe { sys::cuEventCreate(&raw mut raw, flags) };
        device.check("cuEventCreate", result, || "an event".to_owned())?;
        Ok(Event { device: Arc::clone(device), raw })
    }

    /// Puts it into a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live.
        let result = unsafe { sys::cuEventRecord(self.raw, stream.raw()) };
        self.device.check("cuEventRecord", result, || "an event".to_owned())
    }

    /// Milliseconds from `self` to `end`; waits until `end` is reached.
    ///
    /// # Errors
    /// [`Error::Cuda`] when one was not recorded, and with what went wrong before it.
    pub fn milliseconds_to(&self, end: &Event) -> Result<f64> {
        self.device.bind()?;
        // SAFETY: the event lives.
        let result = unsafe { sys::cuEventSynchronize(end.raw) };
        self.device.check("cuEventSynchronize", result, || "what was launched before".to_owned())?;
        let mut time = 0.0_f32;
        // SAFETY: both live; the driver writes one number.
        let result = unsafe { elapsed_time()?(&raw mut time, self.raw, end.raw) };
        self.device.check("cuEventElapsedTime", result, || "two events".to_owned())?;
        Ok(f64::from(time))
    }
}

type ElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

/// The function under the name that every driver has; the bindings of CUDA 13 know only a newer one.
fn elapsed_time() -> Result<ElapsedTime> {
    // SAFETY: the driver is loaded, as there is an event; the type is the one that CUDA declares.
    let function = unsafe { sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime") };
    function
        .map(|function| *function)
        .map_err(|error| Error::Unavailable(format!("the NVIDIA driver is incomplete: {error}")))
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: it was created here and is destroyed once.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
