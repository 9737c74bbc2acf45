// Rows that are not computed and are written all the same: zeros where a live q-block attends to nothing, the forecast where it
// is cached. The plan lists them.
#pragma once
#include "attention/config.cuh"
#include "common/math.cuh"
#include "params.cuh"

constexpr u32 FILL_COLUMNS = 4; // of a token that a thread writes
constexpr u32 FILL_PIECES = 4; // of a row, each by one warp

// The rows of this thread block, a piece at a time by whichever warp has nothing else to do; `next` counts pieces in shared memory, from
// zero. Called by whole warps. A thread loads TOKENS tokens of a term together: memory is far away, and registers are what there is of them.
template <u32 TOKENS>
__device__ __forceinline__ void fill(const AttentionParams& params, u32* next) {
    constexpr u32 LANES_PER_TOKEN = HEAD_DIM / FILL_COLUMNS, STEP = 32 / LANES_PER_TOKEN;
    const Shape& shape = params.shape;
    const Forecast& forecast = params.forecast;
    const Tensor4& out = params.out;
    u32 lane = threadIdx.x % 32, column = lane % LANES_PER_TOKEN * FILL_COLUMNS, rows = __ldg(&params.plan.head->fill);
    for (;;) {
        u32 piece = 0;
        if (lane == 0) piece = atomicAdd(next, 1);
        piece = __shfl_sync(0xFFFFFFFF, piece, 0);
        u32 i = blockIdx.x + piece / FILL_PIECES * gridDim.x;
        if (i >= rows) return;
        u32 row = __ldg(params.plan.order + (shape.batch * shape.heads * shape.q_blocks - 1 - i));
        u32 q_block = row % shape.q_blocks, line = row / shape.q_blocks;
        u32 head = line % shape.heads, batch = line / shape.heads;
        u32 symbol_head = shape.symbol_batches == 1 ? head : line;
        const u64* cache = params.symbols.cache + u64(symbol_head) * ((shape.q_blocks + 63) / 64);
        bool is_cached = (__ldg(cache + q_block / 64) >> q_block % 64 & 1) == 0;
        if (is_cached && forecast.count == 0) continue;
        u32 first = __ldg(params.symbols.q_start + q_block);
        u32 end = min((piece % FILL_PIECES + 1) * (BLOCK_Q / FILL_PIECES), __ldg(params.symbols.q_start + q_block + 1) - first);
        u64 place = u64(line) * shape.q_tokens + first;
        u16* to = static_cast<u16*>(out.data) + batch * out.batch_stride + head * out.head_stride + first * out.token_stride + column;
#pragma unroll 1
        for (u32 token = piece % FILL_PIECES * (BLOCK_Q / FILL_PIECES) + lane / LANES_PER_TOKEN; token < end; token += STEP * TOKENS) {
            float4 x[TOKENS] = {};
#pragma unroll 1
            for (u32 term = 0; is_cached && term < forecast.count; ++term) {
                const float* from = forecast.terms[term] + place * HEAD_DIM + column;
                float weight = forecast.weights[term];
#pragma unroll
                for (u32 t = 0; t < TOKENS; ++t) {
                    u32 here = min(token + t * STEP, end - 1);
                    float4 part = __ldg(reinterpret_cast<const float4*>(from + here * HEAD_DIM));
                    x[t].x = fmaf(part.x, weight, x[t].x);
                    x[t].y = fmaf(part.y, weight, x[t].y);
                    x[t].z = fmaf(part.z, weight, x[t].z);
                    x[t].w = fmaf(part.w, weight, x[t].w);
                }
            }
#pragma unroll
            for (u32 t = 0; t < TOKENS; ++t) {
                u32 here = token + t * STEP;
                if (here >= end) break;
                *reinterpret_cast<uint2*>(to + here * out.token_stride) = make_uint2(pack(x[t].x, x[t].y), pack(x[t].z, x[t].w));
                if (!is_cached && params.lse != nullptr && column == 0) params.lse[place + here] = -INFINITE;
            }
        }
    }
}
