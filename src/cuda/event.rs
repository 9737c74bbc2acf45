//! Events: points in a stream, the time between them, and the order of streams by them.

use std::sync::Arc;

use cudarc::driver::sys;

use super::device::Device;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A point in a stream.
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
    /// An event that takes the time. It was not recorded yet.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event that only orders streams, which costs them less.
    ///
    /// # Errors
    /// As [`Event::new`].
    pub fn untimed(device: &Arc<Device>) -> Result<Self> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with(device: &Arc<Device>, flags: sys::CUevent_flags) -> Result<Self> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is current; the driver writes one handle.
        let result = unsafe { sys::cuEventCreate(&raw mut raw, flags as u32) };
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

    /// Lets all that is put into a stream from now on wait for the point where it was last recorded, if it was.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn hold(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live.
        let result = unsafe { sys::cuStreamWaitEvent(stream.raw(), self.raw, 0) };
        self.device.check("cuStreamWaitEvent", result, || "an event".to_owned())
    }

    /// Milliseconds from `self` to `end`; waits until `end` is reached.
    ///
    /// # Errors
    /// [`Error::Cuda`] when one was not recorded or takes no time, and with what went wrong before it.
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
