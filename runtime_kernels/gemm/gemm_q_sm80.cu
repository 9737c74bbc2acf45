// GEMM-Q for sm_80 and newer, with the instructions that all of them have: the projection of queries, keys or values by heads, for the
// (q-block, head) tiles of a set only.
//
//     out[b, h, t, :] = rotary(norm(x[b, t, :] w[h, :, :]^T + bias[h, :]))          for the tiles (block of t, h) of the set
//
// x: [batch, tokens, in], w: [heads, head_dim, in], out: [batch, heads, tokens, HEAD_DIM], bf16 or fp16, any strides; bias, RMSNorm over the
// channels of a head and rotary embedding are optional and in single precision, as sums are. Rows of other tiles stay untouched.
//
// What is skipped: a tile of output, 128 x 128, holds a q-block and the next one or two of its heads in the set, which need not be
// neighbours. pipeline_sm80.cuh has who does what and the memory plan; what is computed and by whom stands in the plan (gemm/plan.cu).
#include "gemm/epilogue.cuh"
#include "gemm/pipeline_sm80.cuh"

struct GemmQ {
    using Detail = TileHeads;
    using OwnTile = Tile<Detail>;
    static constexpr u32 WARP_COLUMNS = HEAD_DIM; // the norm and the rotary embedding need a whole row of a head

    const GemmParams& params;
    const GemmQParams& own;
    const GemmQOperands& operands;

    __device__ __forceinline__ Detail detail(u32 batch, u32 q_block, u32 slot) const {
        return find_heads(params, batch, q_block, slot);
    }

    __device__ __forceinline__ bool has_column(const OwnTile& tile, u32 column) const {
        return column / HEAD_DIM < tile.detail.count;
    }

    struct Loader {
        const GemmQOperands* operands;
        const u8* x;
        const u8* w[TILE_HEADS]; // of each head
        u32 rows, heads;
        u32 left; // inputs from this thread's chunk on; none or less: zeros

        __device__ __forceinline__ Loader(const GemmQ& kernel, const OwnTile& tile, u32 step)
            : operands(&kernel.operands), rows(tile.end[0] - tile.first[0]), heads(tile.detail.count) {
            u32 column = step * STEP + 8 * load_chunk();
            left = operands->inputs > column ? operands->inputs - column : 0;
            x = address_in(operands->x, tile.batch, 0, tile.first[0] - kernel.params.shape.first_token + load_row(), column);
#pragma unroll
            for (u32 i = 0; i < TILE_HEADS; ++i) w[i] = address_in(operands->w, 0, tile.detail.head(i), load_row(), column);
        }

        __device__ __forceinline__ void load(u32 a, u32 b) {
            bool is_inside = left > 0;
            load_rows<BLOCK_Q / ROWS_AT_ONCE>(a, x, operands->x.token_stride * 2 * ROWS_AT_ONCE, 0, is_inside ? rows : 0);
            x += ROW_BYTES;
#pragma unroll
            for (u32 i = 0; i < TILE_HEADS; ++i) {
                u32 end = is_inside && i < heads ? TILE_COLUMNS : 0;
                load_rows<HEAD_DIM / ROWS_AT_ONCE>(b, w[i], operands->w.token_stride * 2 * ROWS_AT_ONCE, i * HEAD_DIM, end);
                w[i] += ROW_BYTES;
            }
            left -= min(left, LOAD);
        }
    };

    template <u32 M_TILES, u32 N_TILES>
    __device__ __forceinline__ void finish(const OwnTile& tile, const Place& place, float (&d)[M_TILES][N_TILES][4]) const {
        if (!has_column(tile, place.column)) return;
        u32 head = tile.detail.head(place.column / HEAD_DIM), rows = tile.end[0] - tile.first[0];
        u8* out = address_in(own.out, tile.batch, head, tile.first[0] - params.shape.first_token, 0);
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            u32 row[2] = {place.row + 16 * m, place.row + 16 * m + 8};
            normalise(&d[m][0][0], own, head, place.quad);
            if (own.rotary != nullptr) {
                // Cosines and sines of every token; rows beyond the last one take its.
                auto turns = [&](u32 pair, u32 r) {
                    return load_pair(own.rotary + u64(tile.first[0] + min(row[r], rows - 1)) * HEAD_DIM + 2 * pair);
                };
#pragma unroll
                for (u32 part = 0; part < HEAD_DIM / 32; ++part) rotate<1>(&d[m][0][0], part, own.halves, place.quad, turns);
            }
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                store_row(out + row[r] * own.out.token_stride * 2, d[m], r, place.quad, row[r] < rows ? HEAD_DIM : 0);
            }
        }
    }
};

// Grid: plan.ctas thread blocks of THREADS threads, SHARED_BYTES of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) gemm_q(
    const __grid_constant__ GemmQParams params,
    const __grid_constant__ GemmQOperands operands) {
    extern __shared__ __align__(1024) u8 memory[];
    run(GemmQ{params.gemm, params, operands}, memory);
}
