// The arithmetic of block values, operation by operation as src/reference/math.rs writes it down. Compiled without contraction
// (--fmad=false), so that each operation is rounded on its own and the bits are those of every other backend.
#pragma once
#include "common/ptx_sm80.cuh"
#include "selector/params.cuh"

constexpr float INFINITE = __builtin_bit_cast(float, 0x7F800000);
constexpr u32 ALL_LANES = 0xFFFFFFFF;

// What every kernel does first, with all of its threads. The launches of a pass may begin before the one in front has ended (`launch_early` in
// src/cuda/launch.rs): here they wait until it has, with all that it wrote, and let the next one come. As each has waited before it
// ends, whatever came earlier has ended too.
__device__ __forceinline__ void wait_for_turn() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A number of the tensor's type, which is exact in single precision.
__device__ __forceinline__ float widen(u16 number, bool is_bf16) {
    return is_bf16 ? __uint_as_float(u32(number) << 16) : cvt_f32_f16(number);
}

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7FFFFFFF) < 0x7F800000; }

__device__ __forceinline__ float power_of_two(i32 n) { return __uint_as_float(u32(n + 127) << 23); }

// The exponential: Cephes' polynomial of the reduced argument, the power of two as two exact factors.
__device__ __forceinline__ float exponential(float x) {
    constexpr float SHIFT = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = x * 1.44269504088896341f + SHIFT;
    const float n = shifted - SHIFT;
    const float high = x - n * (355.0f / 512.0f);
    const float r = high - n * -2.1219444e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.333452e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    const float y = (p * (r * r) + r) + 1.0f;
    const i32 whole = i32(__float_as_uint(shifted) - __float_as_uint(SHIFT));
    const i32 half = whole >> 1;
    const float scaled = y * power_of_two(half) * power_of_two(whole - half);
    if (x != x) return x;
    if (x < -87.33654f) return 0.0f;
    return x > 88.72283f ? INFINITE : scaled;
}

// Largest and smallest leave NaN aside; zeros are made positive by adding one at the end, so that the order does not matter.
__device__ __forceinline__ float larger(float best, float x) { return x > best ? x : best; }
__device__ __forceinline__ float smaller(float best, float x) { return x < best ? x : best; }

// The sum of 32 lanes in their one order: l and l + 16, then 8, 4, 2, 1. All lanes get it.
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) x += __shfl_down_sync(ALL_LANES, x, distance);
    return __shfl_sync(ALL_LANES, x, 0);
}

__device__ __forceinline__ float largest_of_lanes(float x) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x + 0.0f;
}

__device__ __forceinline__ float smallest_of_lanes(float x) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) x = smaller(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x + 0.0f;
}

// NaN and minus infinity cannot be selected.
__device__ __forceinline__ bool is_candidate(float x) { return x == x && x != -INFINITE; }

// Ordered as the numbers are, both zeros alike.
__device__ __forceinline__ u32 code_of(float x) {
    const u32 bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

__device__ __forceinline__ float of_code(u32 code) { return __uint_as_float(code >> 31 ? code & ~(1u << 31) : ~code); }
