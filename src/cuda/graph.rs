//! Graphs: launches that were recorded once and are repeated with one call.

use std::sync::Arc;

use cudarc::driver::sys;

use super::device::Device;
use super::stream::Stream;
use crate::error::Result;

/// Launches that can be repeated.
#[derive(Debug)]
pub struct Graph {
    device: Arc<Device>,
    graph: sys::CUgraph,
    instance: sys::CUgraphExec,
}

// SAFETY: a graph may move between threads; `launch` takes it exclusively, as it must not run in two at once.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` puts into the stream, which does not run meanwhile. The default stream cannot be recorded.
    ///
    /// # Errors
    /// What `work` fails with; [`Error::Cuda`](crate::error::Error::Cuda) when something in it cannot be recorded.
    ///
    /// # Safety
    /// What the recorded launches use (buffers, functions) lives as long as the graph.
    pub unsafe fn capture(stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let device = stream.device();
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        let result = unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) };
        device.check("cuStreamBeginCapture", result, || "a graph".to_owned())?;
        let done = work();
        let mut graph = std::ptr::null_mut();
        // The recording ends even where the work failed, or the stream would stay unusable.
        // SAFETY: the stream lives; the driver writes one handle.
        let result = unsafe { sys::cuStreamEndCapture(stream.raw(), &raw mut graph) };
        let recorded = device.check("cuStreamEndCapture", result, || "a graph".to_owned());
        let mut graph = Graph { device: Arc::clone(device), graph, instance: std::ptr::null_mut() };
        done?;
        recorded?;
        // SAFETY: the graph was recorded above; the driver writes one handle.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut graph.instance, graph.graph, 0) };
        device.check("cuGraphInstantiate", result, || "a graph".to_owned())?;
        Ok(graph)
    }

    /// Puts all of it into a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda) when the driver refuses.
    pub fn launch(&mut self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the instance lives, and so does what it uses, as whoever recorded it has promised.
        let result = unsafe { sys::cuGraphLaunch(self.instance, stream.raw()) };
        self.device.check("cuGraphLaunch", result, || "a graph".to_owned())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_err() {
            return;
        }
        if !self.instance.is_null() {
            // SAFETY: it was made here and is destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.instance) };
        }
        if !self.graph.is_null() {
            // SAFETY: as above.
            unsafe { sys::cuGraphDestroy(self.graph) };
        }
    }
}
