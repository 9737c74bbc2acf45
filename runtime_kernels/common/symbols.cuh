// Sparse symbols as kernels read them: the same words as src/symbols, bits least significant first.
#pragma once
#include "common/types.cuh"

__device__ __forceinline__ bool has_bit(const u64* bits, u32 index) {
    return __ldg(bits + index / 64) >> index % 64 & 1;
}

// Bits that are set before one.
__device__ __forceinline__ u32 ones_before(const u64* bits, u32 index) {
    u32 count = __popcll(__ldg(bits + index / 64) & ((1ull << index % 64) - 1));
#pragma unroll 1
    for (u32 i = 0; i < index / 64; ++i) count += __popcll(__ldg(bits + i));
    return count;
}

// The last bit that is set before one. There must be one.
__device__ __forceinline__ u32 last_one_before(const u64* bits, u32 index) {
    u32 i = index / 64;
    u64 word = __ldg(bits + i) & ((1ull << index % 64) - 1);
    while (word == 0) word = __ldg(bits + --i);
    return i * 64 + 63 - __clzll(word);
}

// The first bit that is set behind one, or `count`, their number, where there is none.
__device__ __forceinline__ u32 first_one_behind(const u64* bits, u32 index, u32 count) {
    u32 i = index / 64;
    u64 word = __ldg(bits + i) & (~1ull << index % 64);
    while (word == 0 && ++i < (count + 63) / 64) word = __ldg(bits + i);
    return word == 0 ? count : i * 64 + __ffsll(word) - 1;
}

// Walks the kv-blocks that are live in a row of S_s, or in one of two, from the last to the first, so that a shorter last block comes first.
// The next word is on its way while one is walked.
template <u32 ROWS>
struct LiveBlocks {
    static_assert(ROWS == 1 || ROWS == 2, "one row or two");

    const u64* words;
    u32 distance; // from the first row to the second, in words
    u32 index;
    u32 owners; // bits of the rows in which the last block is live
    u64 word[ROWS];
    u64 ahead[ROWS];

    LiveBlocks() = default;

    __device__ __forceinline__ LiveBlocks(const u64* first, u32 distance, u32 count)
        : words(first), distance(distance), index(count - 1), owners(0) {
#pragma unroll
        for (u32 row = 0; row < ROWS; ++row) {
            word[row] = load(row, index);
            ahead[row] = index > 0 ? load(row, index - 1) : 0;
        }
    }

    __device__ __forceinline__ u64 load(u32 row, u32 at) const {
        return __ldg(words + row * distance + at);
    }

    // What is left of this word.
    __device__ __forceinline__ u64 here() const {
        return ROWS == 1 ? word[0] : word[0] | word[ROWS - 1];
    }

    // How many there are in all.
    __device__ __forceinline__ u32 count(u32 words_of_row) const {
        u32 count = 0;
#pragma unroll 1
        for (u32 i = 0; i < words_of_row; ++i) count += __popcll(ROWS == 1 ? load(0, i) : load(0, i) | load(1, i));
        return count;
    }

    // Walks on to the next word.
    __device__ __forceinline__ void advance() {
        --index;
#pragma unroll
        for (u32 row = 0; row < ROWS; ++row) {
            word[row] = ahead[row];
            ahead[row] = index > 0 ? load(row, index - 1) : 0;
        }
    }

    // Leaves out the first `count` of those to come.
    __device__ __forceinline__ void skip(u32 count) {
#pragma unroll 1
        for (u32 live; (live = __popcll(here())) <= count && index > 0; count -= live) advance();
#pragma unroll 1
        for (; count > 0; --count) take(63 - __clzll(here()));
    }

    // The next one. There must be one.
    __device__ __forceinline__ u32 pop() {
        while (here() == 0) advance();
        u32 bit = 63 - __clzll(here());
        take(bit);
        return index * 64 + bit;
    }

    // Whether the one that was popped last is live in a row.
    __device__ __forceinline__ bool is_of(u32 row) const {
        return ROWS == 1 || (owners >> row & 1);
    }

    __device__ __forceinline__ void take(u32 bit) {
        if constexpr (ROWS == 1) {
            word[0] ^= 1ull << bit;
        } else {
            owners = u32(word[0] >> bit & 1) | u32(word[1] >> bit & 1) << 1;
            word[0] &= ~(1ull << bit);
            word[1] &= ~(1ull << bit);
        }
    }
};

// The number of a partial block among those of all rows: what tile_of is indexed by.
__device__ __forceinline__ u32 partial_number(const u64* row, u32 first, u32 block) {
    return first + ones_before(row, block);
}
