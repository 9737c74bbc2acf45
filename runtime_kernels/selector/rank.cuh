// Keys that are ordered as a selection ranks, and a warp that sorts up to 1024 of them in registers.
#pragma once
#include "selector/arithmetic.cuh"

// Behind every candidate.
constexpr u32 NONE = 0xFFFFFFFF;

// Descending ranks are ascending ones of the complement.
__device__ __forceinline__ bool is_descending(Rule rule) {
    return rule == Rule::TOP_K || rule == Rule::TOP_P || rule == Rule::TOP_P_CROSSING;
}

// What a line is selected by: the head's numbers, or those of an amount of its own.
__device__ __forceinline__ Amount amount_of(const SelectParams& params, u32 head, u32 line) {
    Amount amount = params.amount[head];
    if (params.amounts == nullptr) return amount;
    const float own = params.amounts[u64(head) * params.lines_of_amounts + (params.lines_of_amounts == 1 ? 0 : line)];
    const float whole = floorf(own);
    const u32 count = !(whole >= 1.0f) ? 0 : whole >= float(params.length) ? params.length : u32(whole);
    amount.amount = own;
    amount.rest = float(1.0 - double(own));
    amount.count = count > amount.at_least ? count : amount.at_least;
    return amount;
}

__device__ __forceinline__ bool is_within(float sum, float amount, bool is_strict) {
    return is_strict ? sum < amount : sum <= amount;
}

// The smaller of this lane's key and that of the lane `mask` away, or the larger for the upper of both.
__device__ __forceinline__ u32 exchange(u32 key, u32 mask, bool is_upper) {
    const u32 other = __shfl_xor_sync(ALL_LANES, key, mask);
    return is_upper ? max(key, other) : min(key, other);
}

// Sorts ascending; key i * 32 + lane is in slot i. A bitonic network whose merges begin with a mirrored step, so that every
// comparison puts the smaller key first: those with slots beyond the last, which would hold NONE, change nothing and are left out.
template <u32 SLOTS>
__device__ __forceinline__ void sort(u32 (&keys)[SLOTS], u32 lane) {
#pragma unroll
    for (u32 size = 2; size <= 32; size *= 2) {
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) keys[i] = exchange(keys[i], size - 1, lane & size / 2);
#pragma unroll
        for (u32 distance = size / 4; distance > 0; distance /= 2) {
#pragma unroll
            for (u32 i = 0; i < SLOTS; ++i) keys[i] = exchange(keys[i], distance, lane & distance);
        }
    }
#pragma unroll
    for (u32 size = 2; size / 2 < SLOTS; size *= 2) {
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) {
            const u32 other = i ^ (size - 1);
            if (i > other || other >= SLOTS) continue;
            const u32 mirrored = __shfl_xor_sync(ALL_LANES, keys[other], 31);
            const u32 larger = max(keys[i], mirrored);
            keys[i] = min(keys[i], mirrored);
            keys[other] = __shfl_xor_sync(ALL_LANES, larger, 31);
        }
#pragma unroll
        for (u32 distance = size / 4; distance > 0; distance /= 2) {
#pragma unroll
            for (u32 i = 0; i < SLOTS; ++i) {
                if (i & distance || i + distance >= SLOTS) continue;
                const u32 larger = max(keys[i], keys[i + distance]);
                keys[i] = min(keys[i], keys[i + distance]);
                keys[i + distance] = larger;
            }
        }
#pragma unroll
        for (u32 distance = 16; distance > 0; distance /= 2) {
#pragma unroll
            for (u32 i = 0; i < SLOTS; ++i) keys[i] = exchange(keys[i], distance, lane & distance);
        }
    }
}
