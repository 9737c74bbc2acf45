// GEMM-O for sm_80 and newer, with the instructions that all of them have: the projection of the output of attention, for the
// (q-block, head) tiles of a set only.
//
//     out[b, t, :] = sum over heads h of the set of o[b, h, t, :] w[:, h, :]^T + further[b, t, :] w[:, behind the heads]^T + bias
//                  + sum over i of weights[i] terms[i][b, t, :]
//
// o: [batch, heads, tokens, HEAD_DIM], further: [batch, tokens, further_in], w: [out, heads * HEAD_DIM + further_in],
// terms and out: [batch, tokens, out], bf16 or fp16, any strides; the bias is in single precision, as sums are. Every row of out is written.
//
// What is skipped: heads that a q-block has not in the set are no k-steps of its tiles; every thread walks the others by the bits of one
// word for each q-block. What they would have given arrives as terms, the forecast of their projection, which the epilogue adds.
// pipeline_sm80.cuh has who does what and the memory plan; what is computed and by whom stands in the plan (gemm/plan.cu).
#include "gemm/pipeline_sm80.cuh"

struct GemmO {
    using Detail = TileColumns;
    using OwnTile = Tile<Detail>;
    static constexpr u32 WARP_COLUMNS = 64;

    const GemmParams& params;
    const GemmOParams& own;
    const GemmOOperands& operands;

    __device__ __forceinline__ Detail detail(u32 batch, u32 q_block, u32 slot) const {
        return find_columns(params, batch, q_block, slot);
    }

    __device__ __forceinline__ bool has_column(const OwnTile& tile, u32 column) const {
        return tile.detail.column + column < params.shape.columns;
    }

    // Walks the heads of the set from the first to the last, then the further inputs.
    struct Loader {
        const GemmO* kernel;
        const u8 *o, *further, *w; // this thread's chunk of its first row
        u32 rows, columns;
        HeadWalk<LOAD> heads;
        u32 column; // of the further inputs

        __device__ __forceinline__ Loader(const GemmO& kernel, const OwnTile& tile, u32 step)
            : kernel(&kernel), rows(tile.end[0] - tile.first[0]), columns(kernel.params.shape.columns - tile.detail.column),
              heads(tile.detail.heads, tile.detail.head_steps * LOADS_PER_STEP, min(step, tile.detail.head_steps) * LOADS_PER_STEP),
              column((step - min(step, tile.detail.head_steps)) * STEP) {
            u32 row = tile.first[0] + load_row(), chunk = 8 * load_chunk();
            o = address_in(kernel.operands.o, tile.batch, 0, row, chunk);
            further = address_in(kernel.operands.further, tile.batch, 0, row - kernel.params.shape.first_token, chunk);
            w = address_in(kernel.operands.w, 0, 0, tile.detail.column + load_row(), chunk);
        }

        __device__ __forceinline__ void load(u32 a, u32 b) {
            const GemmOOperands& operands = kernel->operands;
            const u8* from;
            u64 stride;
            u32 input;
            bool is_inside = true;
            if (heads.left > 0) {
                u32 head = heads.peek();
                from = o + 2 * (head * operands.o.head_stride + heads.part * LOAD);
                stride = operands.o.token_stride;
                input = head * HEAD_DIM + heads.part * LOAD;
                heads.advance();
            } else {
                from = further + 2 * column;
                stride = operands.further.token_stride;
                input = kernel->params.shape.heads * HEAD_DIM + column;
                is_inside = column + 8 * load_chunk() < operands.further_inputs;
                column += LOAD;
            }
            load_rows<BLOCK_Q / ROWS_AT_ONCE>(a, from, stride * 2 * ROWS_AT_ONCE, 0, is_inside ? rows : 0);
            u64 w_stride = operands.w.token_stride * 2 * ROWS_AT_ONCE;
            load_rows<TILE_COLUMNS / ROWS_AT_ONCE>(b, w + 2 * input, w_stride, 0, is_inside ? columns : 0);
        }
    };

    // Adds the terms of the forecast to 16 rows of a warp.
    template <u32 N_TILES>
    __device__ __forceinline__ void add_terms(float (&x)[N_TILES][4], const OwnTile& tile, u32 row, u32 column, u32 quad) const {
        u32 rows = tile.end[0] - tile.first[0], local = tile.first[0] - params.shape.first_token + row;
#pragma unroll 1
        for (u32 term = 0; term < own.count; ++term) {
            const Tensor4& tensor = operands.terms[term];
            u32 words[2][N_TILES / 4][4];
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                const u8* from = address_in(tensor, tile.batch, 0, local + 8 * r, column);
#pragma unroll
                for (u32 n = 0; n < N_TILES / 4; ++n) {
                    u32 chunk = 4 * n + quad;
                    bool is_there = row + 8 * r < rows && column + 8 * chunk < params.shape.columns;
                    uint4 four = is_there ? __ldg(reinterpret_cast<const uint4*>(from + 16 * chunk)) : make_uint4(0, 0, 0, 0);
                    words[r][n][0] = four.x, words[r][n][1] = four.y, words[r][n][2] = four.z, words[r][n][3] = four.w;
                }
            }
            float weight = own.weights[term];
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
#pragma unroll
                for (u32 n = 0; n < N_TILES; ++n) {
                    if (n % 4 == 0) transpose_quad(words[r][n / 4], quad);
                    float2 pair = unpack(words[r][n / 4][n % 4]);
                    x[n][2 * r] = fmaf(weight, pair.x, x[n][2 * r]);
                    x[n][2 * r + 1] = fmaf(weight, pair.y, x[n][2 * r + 1]);
                }
            }
        }
    }

    template <u32 M_TILES, u32 N_TILES>
    __device__ __forceinline__ void finish(const OwnTile& tile, const Place& place, float (&d)[M_TILES][N_TILES][4]) const {
        u32 rows = tile.end[0] - tile.first[0], column = tile.detail.column + place.column;
        if (column >= params.shape.columns) return;
        u8* out = address_in(own.out, tile.batch, 0, tile.first[0] - params.shape.first_token, column);
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            u32 row = place.row + 16 * m;
            add_terms(d[m], tile, row, column, place.quad);
#pragma unroll
            for (u32 n = 0; n < N_TILES; ++n) {
                if (own.bias == nullptr || column + 8 * n >= params.shape.columns) break;
                float2 pair = __ldg(reinterpret_cast<const float2*>(own.bias + column + 8 * n) + place.quad);
#pragma unroll
                for (u32 r = 0; r < 2; ++r) d[m][n][2 * r] += pair.x, d[m][n][2 * r + 1] += pair.y;
            }
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                u32 columns = row + 8 * r < rows ? params.shape.columns - column : 0;
                store_row(out + (row + 8 * r) * own.out.token_stride * 2, d[m], r, place.quad, columns);
            }
        }
    }
};

// Grid: plan.ctas thread blocks of THREADS threads, SHARED_BYTES of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) gemm_o(
    const __grid_constant__ GemmOParams params,
    const __grid_constant__ GemmOOperands operands) {
    extern __shared__ __align__(1024) u8 memory[];
    run(GemmO{params.gemm, params, operands}, memory);
}
