//! The CPU backend: attention and projections that really skip what the symbols leave out.
//!
//! | function | computes | skips |
//! |---|---|---|
//! | [`attention`] | softmax over live blocks, token masks included | kv-blocks by `S_s`, q-blocks by `S_c` |
//! | [`gemm_q`] | the projection of queries | (q-block, head) tiles by `S_c` |
//! | [`gemm_o`], [`gemm_o_split`] | the projection of outputs | heads of a q-block, by `S_c` |
//! | [`dense_attention`] | attention in full | nothing |
//! | [`linear`], [`linear_to_heads`], [`linear_from_heads`] | dense projections | nothing |
//! | [`Taylor`] | forecasts of cached features | |
//!
//! All of them take f32, f16 and bf16, add up in f32, share their work among the threads of the current rayon pool
//! and are deterministic: the result does not depend on the number of threads. Their common part is four inner
//! loops, hand-written for AVX2 and portable for every other target, chosen at run time ([`instruction_set`]).
//! `docs/performance.md` has the measurements behind the sizes of blocks, tiles and strips.

mod attention;
pub(crate) mod check;
mod forecast;
mod gemm;
mod microkernel;
mod pack;
mod rearrange;
mod rotary;
mod scratch;
mod weight;

pub use attention::{AttentionOptions, Cached, attention, dense_attention};
pub use forecast::{MAX_ORDER, Taylor, Terms, Weights};
pub(crate) use gemm::whole_blocks;
pub use gemm::{Part, Start, Tiles, gemm_o, gemm_o_split, gemm_q, linear, linear_from_heads, linear_to_heads};
pub(crate) use rearrange::{gather_heads, gathered_heads, head_to_f32, scatter_heads};
pub use rotary::RotaryPairs;
pub(crate) use rotary::{HeadNorm, Rotary, check_norm, check_rotary, norm_and_turn};
pub use weight::{AnyWeight, PackedWeight, Weight};

/// The instruction set whose inner loops this machine uses: `avx2` or `portable`.
#[must_use]
pub fn instruction_set() -> &'static str {
    microkernel::Kernels::best().name
}
