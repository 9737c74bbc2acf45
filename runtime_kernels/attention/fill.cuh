// Rows that are not computed and are written all the same: zeros where a live q-block attends to nothing, the forecast where it
// is cached. The plan lists them.
#pragma once
#include "attention/config.cuh"
#include "common/math.cuh"
#include "common/symbols.cuh"
#include "params.cuh"

// Numbers that a thread writes at a time: few enough for the registers that Hopper's producer leaves.
constexpr u32 FILL_WIDTH = 4;

// Four columns of the forecast of a cached token; `index` is theirs in each term.
__device__ __forceinline__ float4 forecast_of(const Forecast& forecast, u64 index) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (u32 i = 0; i < forecast.count; ++i) {
        float4 term = __ldg(reinterpret_cast<const float4*>(forecast.terms[i] + index));
        float weight = forecast.weights[i];
        sum.x = fmaf(term.x, weight, sum.x);
        sum.y = fmaf(term.y, weight, sum.y);
        sum.z = fmaf(term.z, weight, sum.z);
        sum.w = fmaf(term.w, weight, sum.w);
    }
    return sum;
}

// The rows of this thread block, by `threads` of its threads, of which this is number `thread`.
__device__ __forceinline__ void fill(const AttentionParams& params, u32 thread, u32 threads) {
    const Shape& shape = params.shape;
    const Tensor4& out = params.out;
    for (u32 i = blockIdx.x; i < __ldg(&params.plan.head->fill); i += gridDim.x) {
        u32 row = __ldg(params.plan.order + (shape.batch * shape.heads * shape.q_blocks - 1 - i));
        u32 q_block = row % shape.q_blocks, line = row / shape.q_blocks;
        u32 head = line % shape.heads, batch = line / shape.heads;
        u32 symbol_head = shape.symbol_batches == 1 ? head : line;
        const u64* cache = params.symbols.cache + u64(symbol_head) * ((shape.q_blocks + 63) / 64);
        bool is_cached = !has_bit(cache, q_block);
        if (is_cached && params.forecast.count == 0) continue;
        u32 first = __ldg(params.symbols.q_start + q_block);
        u32 chunks = (__ldg(params.symbols.q_start + q_block + 1) - first) * (HEAD_DIM / FILL_WIDTH);
        u64 place = u64(line) * shape.q_tokens + first;
        u16* to = static_cast<u16*>(out.data) + batch * out.batch_stride + head * out.head_stride + first * out.token_stride;
#pragma unroll 1
        for (u32 at = thread; at < chunks; at += threads) {
            u32 token = at / (HEAD_DIM / FILL_WIDTH), column = at % (HEAD_DIM / FILL_WIDTH) * FILL_WIDTH;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (is_cached) x = forecast_of(params.forecast, (place + token) * HEAD_DIM + column);
            *reinterpret_cast<uint2*>(to + token * out.token_stride + column) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
            if (!is_cached && params.lse != nullptr && column == 0) params.lse[place + token] = -INFINITE;
        }
    }
}
