// Sparse symbols as kernels read them: the same words as src/symbols, bits least significant first.
#pragma once
#include "common/types.cuh"

// Walks the live kv-blocks of a row of S_s from the last to the first, so that a shorter last block comes first. The next word is
// on its way while one is walked.
struct LiveBlocks {
    const u64* words;
    u32 index;
    u64 word;
    u64 ahead;

    LiveBlocks() = default;

    __device__ __forceinline__ LiveBlocks(const u64* row, u32 count) : words(row), index(count - 1) {
        word = __ldg(row + index);
        ahead = index > 0 ? __ldg(row + index - 1) : 0;
    }

    // Walks on to the next word that has live blocks.
    __device__ __forceinline__ void advance() {
        --index;
        word = ahead;
        ahead = index > 0 ? __ldg(words + index - 1) : 0;
    }

    // Leaves out the first `count` of those to come.
    __device__ __forceinline__ void skip(u32 count) {
#pragma unroll 1
        for (u32 here; (here = __popcll(word)) <= count && index > 0; count -= here) advance();
#pragma unroll 1
        for (; count > 0; --count) word &= ~(1ull << (63 - __clzll(word)));
    }

    // The next one. There must be one.
    __device__ __forceinline__ u32 pop() {
        while (word == 0) advance();
        u32 bit = 63 - __clzll(word);
        word ^= 1ull << bit;
        return index * 64 + bit;
    }
};

// The number of a partial block among those of all rows: what tile_of is indexed by.
__device__ __forceinline__ u32 partial_number(const u64* row, u32 first, u32 block) {
    u32 number = first;
#pragma unroll 1
    for (u32 i = 0; i < block / 64; ++i) number += __popcll(__ldg(row + i));
    return number + __popcll(__ldg(row + block / 64) & ((1ull << (block % 64)) - 1));
}
