//! The parameters of the kernels: `runtime_kernels/params.cuh`, field by field.
//!
//! Addresses are numbers here, and 0 is null. What each of them points to is said there; a test compares names, order and sizes.

use super::mirrored::mirrored;
use crate::cpu;

/// Highest order of a forecast.
pub const MAX_ORDER: usize = 4;
const _: () = assert!(MAX_ORDER == cpu::MAX_ORDER);

mirrored! {
    /// A tensor `[batch, heads, tokens, head_dim]` of 16-bit numbers; strides count elements.
    Tensor4, 32 {
        /// Where it begins.
        data: u64,
        /// From one batch entry to the next.
        batch_stride: u64,
        /// From one head to the next.
        head_stride: u64,
        /// From one token to the next.
        token_stride: u64,
    }
    /// The shape of one launch.
    Shape, 32 {
        /// Batch entries.
        batch: u32,
        /// Heads of queries.
        heads: u32,
        /// Heads of keys and values.
        kv_heads: u32,
        /// Queries.
        q_tokens: u32,
        /// Keys.
        kv_tokens: u32,
        /// Blocks of queries.
        q_blocks: u32,
        /// Blocks of keys.
        kv_blocks: u32,
        /// 1, or `batch`.
        symbol_batches: u32,
    }
    /// Addresses of sparse symbols.
    Symbols, 64 {
        /// `S_c`.
        cache: u64,
        /// `S_s`.
        skip: u64,
        /// `S_p`, null where every block is whole.
        partial: u64,
        /// First number of the partial blocks of each row.
        partial_start: u64,
        /// Token mask of each partial block.
        tile_of: u64,
        /// Token masks.
        tiles: u64,
        /// First token of each q-block.
        q_start: u64,
        /// First token of each kv-block.
        kv_start: u64,
    }
    /// The work of a launch.
    Plan, 64 {
        /// What was found.
        head: u64,
        /// Where the share of each thread block begins.
        cuts: u64,
        /// Rows in the order in which they are done.
        order: u64,
        /// Tiles of each row.
        lengths: u64,
        /// Finished pieces of divided rows.
        arrived: u64,
        /// Outputs of pieces.
        partial_out: u64,
        /// Maxima and sums of pieces.
        partial_stats: u64,
        /// Thread blocks.
        ctas: u32,
        /// Whether rows of cached q-blocks are filled.
        fill_cached: u32,
    }
    /// The forecast of cached q-blocks.
    Forecast, 64 {
        /// Addresses of the terms.
        terms: [u64; MAX_ORDER + 1],
        /// Weights of the terms.
        weights: [f32; MAX_ORDER + 1],
        /// Number of terms.
        count: u32,
    }
    /// All of it.
    AttentionParams, 368 {
        /// Queries.
        q: Tensor4,
        /// Keys.
        k: Tensor4,
        /// Values.
        v: Tensor4,
        /// Output.
        out: Tensor4,
        /// Natural logarithm of the sum of exponentials, nullable.
        lse: u64,
        /// Factor of the scores, base 2.
        scale_log2: f32,
        /// Zero.
        reserved: u32,
        /// Sizes.
        shape: Shape,
        /// What is computed.
        symbols: Symbols,
        /// Who computes it.
        plan: Plan,
        /// What cached rows get.
        forecast: Forecast,
    }
}

/// Bytes of `Head` in params.cuh, which only kernels read.
pub const HEAD_BYTES: usize = 16;
/// Bytes of `Cut` in params.cuh, which only kernels read.
pub const CUT_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::mirrored::{check, structures};
    use crate::kernels::source;

    #[test]
    fn the_header_has_the_same_fields_in_the_same_order() {
        check(source::params_header(), MIRRORED);
        let structures = structures(source::params_header());
        let fields = |name: &str| structures.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(fields("Head"), ["live", "waves", "fill", "done"].map(str::to_owned), "{HEAD_BYTES} bytes");
        assert_eq!(fields("Cut"), ["item", "tile"].map(str::to_owned), "{CUT_BYTES} bytes");
        assert!(source::params_header().contains(&format!("constexpr u32 MAX_ORDER = {MAX_ORDER};")));
    }
}
