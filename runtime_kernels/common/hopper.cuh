// What the Hopper kernels have in common: rings of stages, descriptors of what wgmma reads from shared memory, uniform registers.
#pragma once
#include "common/ptx.cuh"

// What all threads of a warp have, as the compiler can see: what depends on it may stay in uniform registers, from where wgmma takes
// descriptors. From others they are moved between every two of them.
__device__ __forceinline__ u32 same_in_warp(u32 value) {
    return __shfl_sync(0xFFFFFFFF, value, 0);
}

// A place in a ring of stages, and the parity of its barriers' current phase.
template <u32 COUNT>
struct Ring {
    u32 turns = 0;

    __device__ __forceinline__ u32 stage() const {
        return turns % COUNT;
    }

    __device__ __forceinline__ u32 phase() const {
        return turns / COUNT % 2;
    }

    __device__ __forceinline__ void advance() {
        ++turns;
    }
};

// The matrix descriptor of a swizzled array in shared memory (PTX, "matrix descriptor"): `stride` bytes lie between groups of eight
// rows, `leading` between panels where the rows run along k.
__device__ __forceinline__ u64 descriptor(const void* pointer, u32 leading, u32 stride) {
    constexpr u64 SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | u64(stride >> 4) << 32 | u64(leading >> 4) << 16 | (shared_address(pointer) >> 4 & 0x3FFF);
}

// Says that this warp has read a stage.
__device__ __forceinline__ void release(u64* barrier, u32 lane) {
    if (lane == 0) mbarrier_arrive(shared_address(barrier));
}
