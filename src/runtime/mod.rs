//! The runtime: a generation, step by step and layer by layer, under a plan.
//!
//! A [`Session`] owns what one generation remembers: where each layer is in its schedule, the symbols in force, cached
//! features and their forecasts. A host asks it layer by layer:
//!
//! * [`Session::attention`]: attention alone, for hosts that keep their projections;
//! * [`Session::begin`]: a [`Step`] with GEMM-Q, attention and GEMM-O, where what is cached saves projections too, call by call
//!   or, by [`Step::block`], as a whole from the weights of an [`AttentionBlock`].
//!
//! What a step does follows from the plan's schedule ([`StepKind`](crate::ir::StepKind)):
//!
//! | kind | attention | symbols | cached features |
//! |---|---|---|---|
//! | dense | in full | kept | kept |
//! | update | in full | chosen from this step's q and k | stored |
//! | refresh | by the symbols | chosen from this step's q and k | taken |
//! | dispatch | by the symbols | kept; those that need no q and k are the step's own | taken |
//! | reuse | none: its output is forecast as a whole, or that of a larger [`Unit`](crate::ir::Unit) | kept | kept |
//!
//! The output of attention is kept and forecast here. What a larger unit adds to it, the host hands over at the steps that
//! computed it, by [`Step::remember`], and takes from [`Step::recall`] where the step reuses it.
//!
//! A step that needs what no earlier step left, as when a host joins in the middle of a generation, is done as an update:
//! it costs time and never quality. [`Selection`] gives symbols without running anything.
//!
//! Attention of a session runs on the CPU, or by [`Session::on`] on a GPU ([`Backend`]); the rest is the CPU's. A [`DeviceSession`] runs whole
//! blocks on a GPU, from tokens in its memory to outputs in its memory; what it takes is known before ([`MemoryPlan`]). What its layers keep may
//! lie in the host's memory ([`DeviceOptions::caches`]).
//!
//! # Numbers
//! What is cached is the output of attention in single precision at the last updates, for all heads and q-blocks: when
//! the next update caches other blocks, their differences are still those of one feature. Projected biases are made from
//! these under the symbols in force.
//!
//! # Source
//! FlashOmni, arXiv 2509.25401, section 3; forecasts as in TaylorSeer, arXiv 2503.06923.

mod backend;
mod block;
mod clusters;
mod course;
mod cpu_block;
mod device_block;
mod device_choice;
mod device_kept;
mod device_layer;
mod device_lists;
mod device_session;
mod device_terms;
mod gpu;
mod memory;
mod merged;
mod placement;
mod projections;
mod reuse;
mod selection;
mod session;
mod token_masks;
mod unpacked;

pub use backend::Backend;
pub use block::{AttentionBlock, Linear, Norm, RotaryTable, StreamInput, StreamShape, TokenStream};
pub use cpu_block::CpuBlock;
pub use device_block::{DeviceBlock, DeviceInput, DeviceMatrix};
pub use device_session::{DeviceOptions, DeviceReport, DeviceSession};
pub use memory::{Memory, MemoryPlan, Part, Use};
pub use placement::Placement;
pub use selection::{HeadGroup, LayerSymbols, Selection, Tensors};
pub use session::{Report, Session, Step};
pub use unpacked::Unpacked;
