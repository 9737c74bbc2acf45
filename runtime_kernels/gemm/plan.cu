// The work of a projection: which tiles are computed, in which order, and who does what (common/plan.cuh has how).
//
//   in    params.symbols: S_c and S_s, params.shape, plan.ctas
//   out   params.heads: the heads of each q-block that are in the set, [symbol_batches][q_blocks][ceil(heads / 64)]
//         params.plan: head, cuts [ctas + 1], order [rows], lengths [rows]; `rows` is batch * ceil(q_blocks / Q_PARTS) * slots
//
// A row is one tile of output, 128 x TILE_COLUMNS. Those of GEMM-Q hold the next heads of the set, one to four, so that a q-block has as
// many rows as its heads fill; those of GEMM-O hold columns, and their reduction goes through the heads of the set. Where a tile has two
// q-blocks, its heads are those that either has in the set. Rows of one q-block stay together: thread blocks that run at one time read the
// same input, and the weights stay in the second-level cache.
#include "common/plan.cuh"
#include "common/symbols.cuh"
#include "gemm/config.cuh"
#include "gemm/gemm_params.cuh"

struct GemmRows {
    const GemmParams& params;

    // Costs in eighths of a k-step of a full tile. Its first tile is the end of a row; what the epilogue costs beside that:
    static constexpr u32 ROW_COST = 4;

    static __device__ u32 tile_cost(u32 length) {
        return 8 - (length >> DISCOUNT);
    }

    // What a k-step of a narrower tile costs less. Its input is loaded as a whole: half the columns are more than half the time.
    static __device__ u32 discount(u32 columns) {
        const u32 quarters = 4 * columns / TILE_COLUMNS;
        return quarters == 4 ? 0 : quarters == 3 ? 1 : quarters == 2 ? 3 : 4;
    }

    // q-blocks of a batch entry, or pairs of them.
    __device__ u32 tiles_of_batch() const {
        return (params.shape.q_blocks + Q_PARTS - 1) / Q_PARTS;
    }

    __device__ u32 rows() const {
        return params.shape.batch * tiles_of_batch() * params.shape.slots;
    }

    // Lanes share the heads of a q-block, or of a pair.
    __device__ u32 units() const {
        return params.shape.symbol_batches * tiles_of_batch();
    }

    __device__ void count(u32 unit, u32 lane) const {
        const GemmShape& shape = params.shape;
        const u32 words = (shape.heads + 63) / 64, tiles = tiles_of_batch();
        const u32 symbol_batch = unit / tiles, first_block = unit % tiles * Q_PARTS;
        u32 heads = 0;
        bool is_there = false;
        for (u32 word = 0; word < words; ++word) {
            u64 all = 0;
            for (u32 part = 0; part < Q_PARTS; ++part) {
                const u32 block = first_block + part;
                const bool inside = is_inside(block);
                is_there |= inside;
                u64 bits = 0;
                for (u32 head = 64 * word + lane; head < min(64 * word + 64, shape.heads); head += LANES) {
                    bits |= u64(inside && is_in_set(symbol_batch, block, head)) << (head % 64);
                }
                for (u32 distance = LANES / 2; distance > 0; distance /= 2) bits |= __shfl_xor_sync(~0u, bits, distance);
                if (lane == 0 && block < shape.q_blocks) params.heads[(u64(symbol_batch) * shape.q_blocks + block) * words + word] = bits;
                all |= bits;
            }
            heads += __popcll(all);
        }
        const u32 batches = shape.symbol_batches == 1 ? shape.batch : 1;
        for (u32 batch = 0; batch < batches; ++batch) {
            const u64 first = (u64(batch) * tiles + unit) * shape.slots;
            for (u32 slot = lane; slot < shape.slots; slot += LANES) {
                params.plan.lengths[first + slot] = is_there ? length_of(slot, heads) : 0;
            }
        }
    }

    // Whether there is a q-block that has tokens of the projection.
    __device__ bool is_inside(u32 q_block) const {
        const GemmShape& shape = params.shape;
        if (q_block >= shape.q_blocks) return false;
        const u32* start = params.symbols.q_start;
        const u32 first = start ? start[q_block] : q_block * BLOCK_Q;
        const u32 end = start ? start[q_block + 1] : first + BLOCK_Q;
        return end > shape.first_token && first < shape.first_token + shape.tokens && first < end;
    }

    __device__ bool is_in_set(u32 symbol_batch, u32 q_block, u32 head) const {
        const GemmShape& shape = params.shape;
        if (shape.set == ALL_TILES) return true;
        const u64 row = u64(symbol_batch) * shape.heads + head;
        const bool computes = has_bit(params.symbols.cache + row * ((shape.q_blocks + 63) / 64), q_block);
        if (shape.set == CACHED_TILES) return !computes;
        if (shape.set == UNCACHED_TILES || !computes) return computes;
        const u32 words = (shape.kv_blocks + 63) / 64;
        const u64* skip = params.symbols.skip + (row * shape.q_blocks + q_block) * words;
        for (u32 word = 0; word < words; ++word) {
            if (skip[word] != 0) return true;
        }
        return false;
    }

    __device__ u32 length_of(u32 slot, u32 heads) const {
        const GemmShape& shape = params.shape;
        if (shape.columns > 0) return 1 + heads * HEAD_STEPS + shape.steps;
        if (slot * TILE_HEADS >= heads) return 0;
        const u32 columns = min(heads - slot * TILE_HEADS, TILE_HEADS) * HEAD_DIM;
        return 1 + shape.steps | discount(columns) << DISCOUNT;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_plan(const __grid_constant__ GemmParams params) {
    make_plan(params.plan, GemmRows{params});
}
