//! flashomni: a language, compiler and runtime for sparse attention in diffusion transformers.

pub mod check;
pub mod codegen;
pub mod compile;
pub mod cpu;
pub mod diagnostics;
pub mod env;
pub mod error;
pub mod files;
pub mod ir;
pub mod passes;
pub mod plan;
pub mod reference;
pub mod selector;
pub mod source;
pub mod symbols;
pub mod syntax;
pub mod tensor;
pub mod tensor_file;

pub use compile::{Compiled, Compiler, compile};
pub use error::{Error, Result};
