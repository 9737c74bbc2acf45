//! NVIDIA GPUs: a thin, safe layer over the driver and NVRTC, and the only user of cudarc.
//!
//! Both libraries are loaded when first asked for; a machine without them builds and runs, and gets one sentence
//! ([`Error::Unavailable`](crate::error::Error::Unavailable)) where it asks for a GPU. Nothing here knows what a kernel computes: that is
//! [`kernels`](crate::kernels).
//!
//! | module | what it wraps |
//! |---|---|
//! | [`device`] | the driver, a GPU and its primary context |
//! | [`stream`], [`event`], [`graph`] | order, time and recordings of launches |
//! | [`buffer`], [`host`] | memory of the GPU, and that of the host which it copies from and to beside launches |
//! | [`nvrtc`], [`cache`] | the compiler, and what it has compiled, on the disk |
//! | [`module`], [`launch`] | compiled kernels, and running them |
//! | [`nvtx`] | names of what is launched, for profilers |
//! | [`tensor_map`] | descriptors of the tensor memory accelerator |

pub mod buffer;
pub mod cache;
pub mod device;
pub mod event;
pub mod graph;
pub mod host;
pub mod launch;
pub mod module;
pub mod nvrtc;
pub mod nvtx;
pub mod stream;
pub mod tensor_map;

pub use buffer::Buffer;
pub use device::Device;
pub use event::Event;
pub use graph::Graph;
pub use host::HostBuffer;
pub use launch::{Argument, Launch};
pub use module::{Function, Module};
pub use nvtx::Range;
pub use stream::Stream;
pub use tensor_map::TensorMap;
