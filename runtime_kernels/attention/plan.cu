// The work of an attention launch: which rows are computed, in which order, and who does what (common/plan.cuh has how).
//
//   in    params.symbols: S_c and S_s, params.shape, plan.ctas, plan.fill_cached
//   out   params.plan: head, cuts [ctas + 1], order [rows], lengths [rows]; `rows` is batch * heads * q_blocks
//
// A row is one q-block of one head, a tile 128 keys. Rows of one head stay together: thread blocks that run at one time walk the same keys
// and values. Where q-blocks have 64 tokens, two share a row's work: those to be computed of a head are paired in order; the first leads and has
// the tiles that either needs, the second has none.
#include "common/plan.cuh"
#include "common/symbols.cuh"

// A tile of 128 keys takes as many kv-blocks as it has room for.
constexpr u32 BLOCKS_PER_TILE = 128 / OMNI_KV_BLOCK;
constexpr bool PAIRS = OMNI_Q_BLOCK == 64;
static_assert(OMNI_Q_BLOCK == 128 || PAIRS, "a piece of work holds one or two q-blocks");
static_assert(OMNI_KV_BLOCK == 128 || OMNI_KV_BLOCK == 64, "a tile of 128 keys holds one or two kv-blocks");

struct AttentionRows {
    const AttentionParams& params;

    // Costs in quarters of a tile. A row costs more than its tiles: loading queries, the first product with nothing to overlap,
    // the store of the output.
    static constexpr u32 ROW_COST = 3;

    static __device__ u32 tile_cost(u32) {
        return 4;
    }

    __device__ u32 rows() const {
        return params.shape.batch * params.shape.heads * params.shape.q_blocks;
    }

    // Lanes share the bitmap of one row.
    __device__ u32 units() const {
        return rows();
    }

    __device__ void count(u32 row, u32 lane) const {
        const u32 length = length_of(row, lane);
        if (lane == 0) params.plan.lengths[row] = length;
    }

    // Tiles of a row, or FILL or 0 for one that is not computed.
    __device__ u32 length_of(u32 row, u32 lane) const {
        const Shape& shape = params.shape;
        const u32 rows_per_batch = shape.heads * shape.q_blocks;
        const u32 symbols_row = shape.symbol_batches == 1 ? row % rows_per_batch : row;
        const u32 head = symbols_row / shape.q_blocks;
        const u32 q_block = symbols_row % shape.q_blocks;
        const u32 cache_words = (shape.q_blocks + 63) / 64;
        const u32 words = (shape.kv_blocks + 63) / 64;
        const u64* cache = params.symbols.cache + u64(head) * cache_words;
        const bool live = has_bit(cache, q_block);
        const bool leads = !PAIRS || ones_before(cache, q_block) % 2 == 0;
        u32 blocks = 0;
        if (live) {
            u32 other = q_block;
            if (PAIRS) other = leads ? first_one_behind(cache, q_block, shape.q_blocks) : last_one_before(cache, q_block);
            if (other == shape.q_blocks) other = q_block; // the last is alone
            const u64* skip = params.symbols.skip + u64(head) * shape.q_blocks * words;
            const u64 *own = skip + u64(q_block) * words, *others = skip + u64(other) * words;
            for (u32 word = lane; word < words; word += LANES) blocks += __popcll(own[word] | (PAIRS ? others[word] : 0));
        }
        for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
            blocks += __shfl_xor_sync(~0u, blocks, distance);
        }
        if (blocks > 0) return leads ? (blocks + BLOCKS_PER_TILE - 1) / BLOCKS_PER_TILE : 0;
        // A live row without live blocks is zeros; a cached one belongs to the forecast, if there is one.
        return live || params.plan.fill_cached ? FILL : 0;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_plan(const __grid_constant__ AttentionParams params) {
    make_plan(params.plan, AttentionRows{params});
}
