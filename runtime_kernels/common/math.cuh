// 16-bit numbers of the launch's type, and sums and maxima over the threads that share a row.
#pragma once
#include "common/ptx.cuh"

constexpr float LN_2 = 0.693147180559945309f;
constexpr float INFINITE = __builtin_bit_cast(float, 0x7F800000);

// Two numbers in the type of q, k, v and out; `low` comes first in memory.
__device__ __forceinline__ u32 pack(float low, float high) {
#if OMNI_BF16
    return cvt_rn_bf16x2(low, high);
#else
    return cvt_rn_f16x2(low, high);
#endif
}

// The reverse.
__device__ __forceinline__ float2 unpack(u32 pair) {
#if OMNI_BF16
    return make_float2(__builtin_bit_cast(float, pair << 16), __builtin_bit_cast(float, pair & 0xFFFF0000));
#else
    return make_float2(cvt_f32_f16(pair & 0xFFFF), cvt_f32_f16(pair >> 16));
#endif
}

// The largest of the four threads that hold a row of an accumulator between them.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
}
