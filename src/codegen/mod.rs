//! Code of selector programs: element-wise chains and token predicates, lowered once to LLVM IR.
//!
//! [`maps`] cuts a program into fused chains. `expr` writes each chain as an LLVM function of one element and
//! `predicate` each token predicate as a function of one pair of tokens, both as text; what loops around them is the
//! matter of a target: `cpu` compiles for this machine and runs the code in the process, `nvptx` writes PTX kernels.
//! Only those two need LLVM and feature `llvm`; they are the only users of inkwell.
//!
//! Floating-point operations carry no flags, so LLVM neither contracts nor reorders them, and the exponential is the
//! polynomial of `reference::math` written out: the bits are the interpreter's on every target.

#[cfg(feature = "llvm")]
pub mod cpu;
pub mod expr;
mod fused;
#[cfg(feature = "llvm")]
pub mod nvptx;
pub mod predicate;

use crate::error::Result;
use crate::plan::{Predicate, Program};
use crate::reference::input::check_program;

pub use fused::{Access, Map, Operand, Step, maps};

/// Elements of a leaf.
#[derive(Clone, Copy, Debug)]
pub enum Array<'a> {
    /// Single precision.
    Real(&'a [f32]),
    /// Bytes 0 and 1.
    Bool(&'a [u8]),
}

#[cfg(feature = "llvm")]
pub use cpu::Code;

/// Machine code of a program; builds without LLVM have none.
#[cfg(not(feature = "llvm"))]
#[derive(Debug)]
pub enum Code {}

#[cfg(not(feature = "llvm"))]
impl Code {
    pub(crate) fn map_real(&self, _: usize, _: &[Array<'_>], _: &[f32], _: usize, _: usize) -> Result<Vec<f32>> {
        match *self {}
    }

    pub(crate) fn map_bool(&self, _: usize, _: &[Array<'_>], _: &[f32], _: usize, _: usize) -> Result<Vec<u8>> {
        match *self {}
    }
}

/// Machine code of maps for this machine; `None` where the build has no LLVM.
///
/// # Errors
/// [`crate::Error::Unavailable`] when LLVM refuses the host or the code.
pub fn compile(maps: &[Map]) -> Result<Option<Code>> {
    #[cfg(feature = "llvm")]
    return Code::new(maps).map(Some);
    #[cfg(not(feature = "llvm"))]
    {
        let _ = maps;
        Ok(None)
    }
}

/// The LLVM IR of a program's maps and of token predicates for a CPU, before optimisation and without a target: what
/// every target starts from.
///
/// # Errors
/// [`crate::Error::State`] for a program the compiler would not make, [`crate::Error::Unavailable`] for a predicate that
/// has no lowering.
pub fn emit_llvm(program: &Program, predicates: &[&Predicate]) -> Result<String> {
    check_program(program)?;
    let mut text = expr::host_module(&maps(program));
    text.push_str(predicate::declarations());
    for (index, predicate) in predicates.iter().enumerate() {
        let lowered = predicate::lower(predicate, predicate::MOST_TOKENS)?;
        text.push_str(&predicate::value_function(&lowered, index));
        text.push_str(&predicate::host_loop(&lowered, index));
    }
    text.push_str("attributes #0 = { nounwind }\nattributes #1 = { alwaysinline nounwind }\n");
    Ok(text)
}
