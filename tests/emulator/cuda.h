// The words of CUDA C++ that the kernels use, for a C++ compiler: included before a kernel, whose text stays as it is.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstring>

#include "barriers.h"
#include "device.h"

// Compilers of the host may have words of the same name.
#undef __forceinline__
#undef __noinline__
#undef __device__
#undef __global__
#undef __shared__

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes)

// Static shared memory: one for all blocks, so such kernels run one block after another.
#define __shared__ EMULATOR_SHARED
#ifndef EMULATOR_SHARED
#define EMULATOR_SHARED static
#endif

// Dynamic shared memory differs from block to block. `extern __shared__ u8 memory[]` becomes a pointer to an array, which the
// scheduler sets whenever it goes to another block. A kernel's wrapper says what its array is called:
//     #define memory (*dynamic_shared_memory)
extern u8 (*dynamic_shared_memory)[];

struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
inline u32 max(u32 a, u32 b) { return a > b ? a : b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __popcll(u64 x) { return __builtin_popcountll(x); }
inline int __ffsll(u64 x) { return __builtin_ffsll(x); }
inline int __clzll(u64 x) { return x == 0 ? 64 : __builtin_clzll(x); }

// Caches are not emulated.
template <class T>
T __ldg(const T* pointer) {
    return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
    return *pointer;
}
template <class T>
void __stcg(T* pointer, T value) {
    *pointer = value;
}

// A thread is never interrupted, so that ordinary operations are atomic.
inline u32 atomicAdd(u32* pointer, u32 value) {
    u32 old = *pointer;
    *pointer += value;
    return old;
}
inline u32 atomicMin(u32* pointer, u32 value) {
    u32 old = *pointer;
    *pointer = min(old, value);
    return old;
}
inline u32 atomicInc(u32* pointer, u32 last) {
    u32 old = *pointer;
    *pointer = old >= last ? 0 : old + 1;
    return old;
}
inline void __threadfence() { emulator::yield_sometimes(); }

inline void __syncthreads() { emulator::bar_sync(0, blockDim.x); }
inline void __syncwarp() { emulator::collective("__syncwarp", nullptr, 0); }

namespace emulator {

template <class T>
T shuffle(T value, u32 source) {
    u32 words[(sizeof(T) + 3) / 4] = {};
    std::memcpy(words, &value, sizeof value);
    const Inbox& inbox = collective("a shuffle", words, (sizeof(T) + 3) / 4);
    std::memcpy(&value, inbox[source % LANES].data(), sizeof value);
    return value;
}

} // namespace emulator

template <class T>
T __shfl_sync(u32, T value, u32 source) {
    return emulator::shuffle(value, source);
}
template <class T>
T __shfl_xor_sync(u32, T value, u32 mask) {
    return emulator::shuffle(value, threadIdx.x % 32 ^ mask);
}
template <class T>
T __shfl_up_sync(u32, T value, u32 distance) {
    u32 lane = threadIdx.x % 32;
    return emulator::shuffle(value, lane >= distance ? lane - distance : lane);
}
inline bool __any_sync(u32, bool is_true) {
    u32 word = is_true;
    const emulator::Inbox& inbox = emulator::collective("a vote", &word, 1);
    for (const auto& lane : inbox) {
        if (lane[0] != 0) return true;
    }
    return false;
}
template <class T>
T __shfl_down_sync(u32, T value, u32 distance) {
    u32 lane = threadIdx.x % 32;
    return emulator::shuffle(value, lane + distance < 32 ? lane + distance : lane);
}
inline u32 __ballot_sync(u32, bool is_true) {
    u32 word = is_true, votes = 0;
    const emulator::Inbox& inbox = emulator::collective("a vote", &word, 1);
    for (u32 lane = 0; lane < 32; ++lane) votes |= u32(inbox[lane][0] != 0) << lane;
    return votes;
}
inline bool __all_sync(u32 lanes, bool is_true) { return __ballot_sync(lanes, is_true) == ~0u; }
