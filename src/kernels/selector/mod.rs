//! Selector programs on a GPU: symbols are made from q and k where these lie, and stay there.
//!
//! | module | what it has |
//! |---|---|
//! | [`mod@lower`] | a program as launches, without a device |
//! | [`recipe`] | those launches, and the memory that they share |
//! | [`uniforms`] | what depends on step, layer and head |
//! | [`params`] | the kernels' parameters, as in `selector/params.cuh` |
//! | [`pass`] | a prepared pass, which only launches |
//!
//! All heads of a layer go through each launch together. Chains of element-wise operations are PTX that LLVM makes of the program
//! (`codegen::nvptx`), everything else the kernels of `runtime_kernels/selector/`. Bits are those of the interpreter.

pub mod lower;
pub mod params;
pub mod pass;
pub mod recipe;
pub mod uniforms;

pub use lower::{Setup, Target, lower};
pub use pass::{LayerTensors, SelectorPass};
pub use recipe::{Code, Entry, Recipe, Step};
pub use uniforms::Uniforms;
