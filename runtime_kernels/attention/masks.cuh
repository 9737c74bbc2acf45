// The tiles of a row: which kv-blocks fill them, and which of their columns and tokens count.
#pragma once
#include "attention/config.cuh"
#include "common/math.cuh"
#include "common/symbols.cuh"
#include "params.cuh"

constexpr u32 NO_MASK = 0xFFFFFFFF;
constexpr u32 MASK_WORDS = KV_BLOCK / 64; // of a query token in a token mask

// What consumers must know of a tile: for each half of 64 columns how many count, and the first word of its token mask.
struct alignas(16) TileNote {
    u32 columns[2];
    u32 mask[2];
};

// One or two kv-blocks that share a tile.
struct Tile {
    u32 token[TILE / KV_BLOCK]; // first token of each
    TileNote note;
};

// Walks the tiles of a row of S_s. Where a pair is incomplete, it is the first, so that in regular blocks only the first tile of a row
// has columns that do not count.
struct TileWalk {
    LiveBlocks blocks;
    u32 row;
    bool is_odd;

    TileWalk() = default;

    __device__ __forceinline__ TileWalk(const AttentionParams& params, u32 row, u32 begin)
        : blocks(params.symbols.skip + u64(row) * words(params), words(params)), row(row), is_odd(false) {
        if constexpr (KV_BLOCK == 64) {
            u32 live = 0;
#pragma unroll 1
            for (u32 i = 0; i < words(params); ++i) live += __popcll(__ldg(blocks.words + i));
            is_odd = begin == 0 && live % 2 == 1;
            blocks.skip(begin == 0 ? 0 : 2 * begin - live % 2);
        } else {
            blocks.skip(begin);
        }
    }

    __device__ __forceinline__ static u32 words(const AttentionParams& params) {
        return (params.shape.kv_blocks + 63) / 64;
    }

    __device__ __forceinline__ Tile next(const AttentionParams& params) {
        Tile tile;
        if constexpr (KV_BLOCK == 128) {
            u32 length = locate(params, blocks.pop(), tile.token[0], tile.note.mask[0]);
            tile.note.columns[0] = min(length, 64u);
            tile.note.columns[1] = length - tile.note.columns[0];
            tile.note.mask[1] = tile.note.mask[0] == NO_MASK ? NO_MASK : tile.note.mask[0] + 1;
        } else {
            tile.note.columns[0] = locate(params, blocks.pop(), tile.token[0], tile.note.mask[0]);
            if (is_odd) {
                // The other half is loaded all the same: what no one wrote might be NaN, which no weight makes zero.
                tile.token[1] = tile.token[0];
                tile.note.columns[1] = 0;
                tile.note.mask[1] = NO_MASK;
                is_odd = false;
            } else {
                tile.note.columns[1] = locate(params, blocks.pop(), tile.token[1], tile.note.mask[1]);
            }
        }
        return tile;
    }

    // The first token of a block and its mask; returns its number of tokens.
    __device__ __forceinline__ u32 locate(const AttentionParams& params, u32 block, u32& token, u32& mask) const {
        const Symbols& symbols = params.symbols;
        mask = NO_MASK;
        if constexpr (!MASKS) {
            token = block * KV_BLOCK;
            return min(params.shape.kv_tokens - token, KV_BLOCK);
        }
        token = __ldg(symbols.kv_start + block);
        if (symbols.partial != nullptr) {
            const u64* partial = symbols.partial + u64(row) * words(params);
            if (__ldg(partial + block / 64) >> block % 64 & 1) {
                u32 number = partial_number(partial, __ldg(symbols.partial_start + row), block);
                mask = __ldg(symbols.tile_of + number) * (BLOCK_Q * MASK_WORDS);
            }
        }
        return __ldg(symbols.kv_start + block + 1) - token;
    }
};

// Scores of columns and tokens that do not count become minus infinity. `row` is the first of the thread's two rows of the q-block, `quad`
// its place among the four threads of a row; scores as in softmax.cuh.
__device__ __forceinline__ void apply_note(float (&s)[64], const TileNote& note, const u64* masks, u32 row, u32 quad) {
    uint4 fields = *reinterpret_cast<const uint4*>(&note);
    u32 columns[2] = {fields.x, fields.y}, mask[2] = {fields.z, fields.w};
    if (columns[0] == 64 && columns[1] == 64 && (mask[0] & mask[1]) == NO_MASK) return;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        u64 counted = columns[half] == 64 ? ~0ull : (1ull << columns[half]) - 1;
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            u64 bits = counted;
            if (MASKS && mask[half] != NO_MASK) bits &= __ldg(masks + mask[half] + (row + 8 * r) * MASK_WORDS);
            bits >>= 2 * quad;
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
#pragma unroll
                for (u32 c = 0; c < 2; ++c) {
                    if (!(bits >> (8 * j + c) & 1)) s[32 * half + 4 * j + 2 * r + c] = -INFINITE;
                }
            }
        }
    }
}
