//! The parameters of the kernels: `runtime_kernels/params.cuh` and `gemm/gemm_params.cuh`, field by field.
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
    /// The differences of a feature at an update.
    FeaturesUpdate, 64 {
        /// Its new value.
        feature: u64,
        /// Addresses of the differences.
        terms: [u64; MAX_ORDER + 1],
        /// Lengths over 8.
        pieces: u64,
        /// Steps between the updates.
        distance: f32,
        /// Differences that are known afterwards.
        count: u32,
    }
    /// A weighted sum.
    FeaturesSum, 80 {
        /// The sum.
        out: u64,
        /// Addresses of the terms.
        terms: [u64; MAX_ORDER + 1],
        /// Lengths over 8.
        pieces: u64,
        /// Weights of the terms.
        weights: [f32; MAX_ORDER + 1],
        /// Number of terms.
        count: u32,
    }
    /// The sizes of a projection.
    GemmShape, 48 {
        /// Batch entries.
        batch: u32,
        /// Heads.
        heads: u32,
        /// All tokens.
        q_tokens: u32,
        /// Blocks of all tokens.
        q_blocks: u32,
        /// Blocks of keys.
        kv_blocks: u32,
        /// 1, or `batch`.
        symbol_batches: u32,
        /// First token of the projection.
        first_token: u32,
        /// Its tokens.
        tokens: u32,
        /// k-steps: GEMM-Q all, GEMM-O those behind the heads.
        steps: u32,
        /// GEMM-O: features of the output; GEMM-Q: 0.
        columns: u32,
        /// Tiles of a q-block, or of a pair of them, at most.
        slots: u32,
        /// Which tiles: one of `ALL_TILES` and so on.
        set: u32,
    }
    /// What both projections share.
    GemmParams, 184 {
        /// Sizes.
        shape: GemmShape,
        /// What is computed.
        symbols: Symbols,
        /// Who computes it.
        plan: Plan,
        /// The heads of each q-block.
        heads: u64,
    }
    /// GEMM-Q.
    GemmQParams, 248 {
        /// What both share.
        gemm: GemmParams,
        /// Output.
        out: Tensor4,
        /// Bias, nullable.
        bias: u64,
        /// Weights of RMSNorm, nullable.
        norm: u64,
        /// Cosines and sines, nullable.
        rotary: u64,
        /// Of RMSNorm.
        epsilon: f32,
        /// Which channels turn together.
        halves: u32,
    }
    /// GEMM-O.
    GemmOParams, 248 {
        /// What both share.
        gemm: GemmParams,
        /// Output.
        out: Tensor4,
        /// Bias, nullable.
        bias: u64,
        /// Weights of the terms.
        weights: [f32; MAX_ORDER + 1],
        /// Terms.
        count: u32,
    }
    /// What the portable GEMM-Q takes for tensor maps.
    GemmQOperands, 72 {
        /// Inputs.
        x: Tensor4,
        /// Weights.
        w: Tensor4,
        /// Of the reduction.
        inputs: u32,
        /// Zero.
        reserved: u32,
    }
    /// What the portable GEMM-O takes for tensor maps.
    GemmOOperands, 264 {
        /// Output of attention.
        o: Tensor4,
        /// Further inputs.
        further: Tensor4,
        /// Weights.
        w: Tensor4,
        /// Terms.
        terms: [Tensor4; MAX_ORDER + 1],
        /// Of the further inputs.
        further_inputs: u32,
        /// Zero.
        reserved: u32,
    }
}

/// `ALL_TILES`, `LIVE_TILES`, `CACHED_TILES` and `UNCACHED_TILES` of gemm_params.cuh.
pub const TILE_SETS: [u32; 4] = [0, 1, 2, 3];

/// Bytes of `Head` in params.cuh, which only kernels read.
pub const HEAD_BYTES: usize = 16;
/// Bytes of `Cut` in params.cuh, which only kernels read.
pub const CUT_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::mirrored::{check, structures};
    use crate::kernels::source;

    /// Both headers.
    fn header() -> String {
        source::bundle("gemm/gemm_params.cuh").unwrap()
    }

    #[test]
    fn the_header_has_the_same_fields_in_the_same_order() {
        check(&header(), MIRRORED);
        let structures = structures(&header());
        let fields = |name: &str| structures.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(fields("Head"), ["live", "waves", "fill", "done"].map(str::to_owned), "{HEAD_BYTES} bytes");
        assert_eq!(fields("Cut"), ["item", "tile"].map(str::to_owned), "{CUT_BYTES} bytes");
        assert!(header().contains(&format!("constexpr u32 MAX_ORDER = {MAX_ORDER};")));
        for (name, value) in ["ALL_TILES", "LIVE_TILES", "CACHED_TILES", "UNCACHED_TILES"].iter().zip(TILE_SETS) {
            assert!(header().contains(&format!("constexpr u32 {name} = {value};")), "{name}");
        }
    }
}
