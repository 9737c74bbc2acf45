//! flashomni: a language, compiler and runtime for sparse attention in diffusion transformers.

pub mod cpu;
pub mod diagnostics;
pub mod error;
pub mod source;
pub mod symbols;
pub mod syntax;
pub mod tensor;
