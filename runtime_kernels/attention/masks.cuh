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
    TileNote note[Q_PARTS];     // for each q-block
};

// Walks the tiles of a row of work: the kv-blocks that are live for some of its q-blocks, whose symbols are in the row `row`, and `behind` rows
// further. Where a pair of kv-blocks is incomplete, it is the first, so that in regular blocks only the first tile of a row has columns that
// do not count.
struct TileWalk {
    LiveBlocks<Q_PARTS> blocks;
    u32 row;
    bool is_odd;

    TileWalk() = default;

    __device__ __forceinline__ TileWalk(const AttentionParams& params, u32 row, u32 behind, u32 begin)
        : blocks(params.symbols.skip + u64(row) * words(params), behind * words(params), words(params)), row(row), is_odd(false) {
        if constexpr (KV_BLOCK == 64) {
            u32 live = blocks.count(words(params));
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
            u32 block = blocks.pop(), length = locate(params, block, tile.token[0]);
#pragma unroll
            for (u32 part = 0; part < Q_PARTS; ++part) {
                u32 mask = mask_of(params, block, part), own = blocks.is_of(part) ? length : 0;
                tile.note[part] = TileNote{{min(own, 64u), own - min(own, 64u)}, {mask, mask == NO_MASK ? NO_MASK : mask + 1}};
            }
        } else {
            take(params, tile, 0);
            if (is_odd) {
                // The other half is loaded all the same: what no one wrote might be NaN, which no weight makes zero.
                tile.token[1] = tile.token[0];
#pragma unroll
                for (u32 part = 0; part < Q_PARTS; ++part) tile.note[part].columns[1] = 0, tile.note[part].mask[1] = NO_MASK;
                is_odd = false;
            } else {
                take(params, tile, 1);
            }
        }
        return tile;
    }

    // The next block becomes half of a tile.
    __device__ __forceinline__ void take(const AttentionParams& params, Tile& tile, u32 half) {
        u32 block = blocks.pop(), length = locate(params, block, tile.token[half]);
#pragma unroll
        for (u32 part = 0; part < Q_PARTS; ++part) {
            tile.note[part].columns[half] = blocks.is_of(part) ? length : 0;
            tile.note[part].mask[half] = mask_of(params, block, part);
        }
    }

    // The first token of a block; returns its number of tokens.
    __device__ __forceinline__ static u32 locate(const AttentionParams& params, u32 block, u32& token) {
        if constexpr (!MASKS) {
            token = block * KV_BLOCK;
            return min(params.shape.kv_tokens - token, KV_BLOCK);
        }
        token = __ldg(params.symbols.kv_start + block);
        return __ldg(params.symbols.kv_start + block + 1) - token;
    }

    // The token mask of a block for a q-block.
    __device__ __forceinline__ u32 mask_of(const AttentionParams& params, u32 block, u32 part) const {
        const Symbols& symbols = params.symbols;
        if (!MASKS || symbols.partial == nullptr || !blocks.is_of(part)) return NO_MASK;
        u32 own = part == 0 ? row : row + blocks.distance / words(params);
        const u64* partial = symbols.partial + u64(own) * words(params);
        if (!has_bit(partial, block)) return NO_MASK;
        u32 number = partial_number(partial, __ldg(symbols.partial_start + own), block);
        return __ldg(symbols.tile_of + number) * (BLOCK_Q * MASK_WORDS);
    }
};

// Scores of columns and tokens that do not count become minus infinity. `row` is the first of the thread's two rows of the q-block, `quad`
// its place among the four threads of a row; scores as in softmax.cuh.
__device__ __forceinline__ void apply_note(float (&s)[64], const TileNote& note, const u64* masks, u32 row, u32 quad) {
    uint4 fields = *reinterpret_cast<const uint4*>(&note);
    u32 columns[2] = {fields.x, fields.y}, mask[2] = {fields.z, fields.w};
    // Halves of which no column counts are left out by softmax.cuh where they are common.
    bool is_whole = Q_PARTS == 1 ? columns[0] == 64 && columns[1] == 64 : columns[0] % 64 == 0 && columns[1] % 64 == 0;
    if (is_whole && (mask[0] & mask[1]) == NO_MASK) return;
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
