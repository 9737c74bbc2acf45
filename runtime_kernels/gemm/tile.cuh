// A tile of output on its way: where it lies, which of its k-steps a piece has, and which heads of its q-block are in the set.
#pragma once
#include "common/symbols.cuh"
#include "common/work.cuh"
#include "gemm/config.cuh"
#include "gemm/gemm_params.cuh"

// A piece of a tile. No tiles of its row: there is no more work.
template <class Detail>
struct alignas(16) Tile {
    Piece piece;
    u32 batch;
    u32 first[Q_PARTS], end[Q_PARTS]; // the tokens of each q-block that the projection is about: its rows, from 0 on or from 64 on
    Detail detail;
};

// Where the piece of a tile lies. `kernel.detail(batch, q_block, slot)` says what its tile has beside its rows; q_block is the first.
template <class Kernel, class OwnTile>
__device__ __forceinline__ void place_piece(const Kernel& kernel, OwnTile& tile) {
    const GemmShape& shape = kernel.params.shape;
    const u32* start = kernel.params.symbols.q_start;
    u32 row = tile.piece.row / shape.slots, tiles = (shape.q_blocks + Q_PARTS - 1) / Q_PARTS;
    u32 q_block = row % tiles * Q_PARTS, batch = row / tiles, last = shape.first_token + shape.tokens;
    tile.batch = batch;
#pragma unroll
    for (u32 part = 0; part < Q_PARTS; ++part) {
        // Where there is no second, its rows lie behind the last.
        u32 block = q_block + part;
        bool is_there = part == 0 || block < shape.q_blocks;
        u32 first = !is_there ? last : start ? __ldg(start + block) : block * BLOCK_Q;
        u32 end = !is_there ? last : start ? __ldg(start + block + 1) : first + BLOCK_Q;
        tile.first[part] = max(first, shape.first_token);
        tile.end[part] = min(end, last);
    }
    tile.detail = kernel.detail(batch, q_block, tile.piece.row % shape.slots);
}

// The k-steps of a piece: tile 0 of a row is its end.
__device__ __forceinline__ u32 first_step(const Piece& piece) {
    return max(piece.begin, 1u) - 1;
}
__device__ __forceinline__ u32 count_steps(const Piece& piece) {
    return piece.begin + piece.count - 1 - first_step(piece);
}

// ---------------------------------------------------------------------------------------------------------------------- heads

// The heads of the q-blocks of a tile that are in the set: bits of the first, and those of the second `behind` words further, which is 0 where
// there is no second.
struct HeadBits {
    const u64* words;
    u32 behind;

    // Those of either that are in one word.
    __device__ __forceinline__ u64 word(u32 index) const {
        return Q_PARTS == 1 ? __ldg(words + index) : __ldg(words + index) | __ldg(words + behind + index);
    }
    // Whether a head is in the set for one of the q-blocks.
    __device__ __forceinline__ bool has(u32 head, u32 part) const {
        return has_bit(words + part * behind, head);
    }
};

__device__ __forceinline__ HeadBits heads_of(const GemmParams& params, u32 batch, u32 q_block) {
    const GemmShape& shape = params.shape;
    u32 words = (shape.heads + 63) / 64;
    bool has_second = Q_PARTS > 1 && q_block + 1 < shape.q_blocks;
    return HeadBits{params.heads + (u64(shape.symbol_batches == 1 ? 0 : batch) * shape.q_blocks + q_block) * words, has_second ? words : 0};
}

// The heads of a tile of GEMM-Q.
struct TileHeads {
    HeadBits bits;
    u32 count;
    u64 heads; // 16 bits each

    __device__ __forceinline__ u32 head(u32 i) const {
        return u32(heads >> 16 * i) & 0xFFFF;
    }
};

// The heads number TILE_HEADS * slot and on of those in the set.
__device__ __forceinline__ TileHeads find_heads(const GemmParams& params, u32 batch, u32 q_block, u32 slot) {
    TileHeads found{heads_of(params, batch, q_block), 0, 0};
    u32 before = TILE_HEADS * slot;
#pragma unroll 1
    for (u32 word = 0; 64 * word < params.shape.heads && found.count < TILE_HEADS; ++word) {
        u64 here = found.bits.word(word);
        for (; here != 0 && before > 0; --before) here &= here - 1;
        for (; here != 0 && found.count < TILE_HEADS; here &= here - 1) {
            found.heads |= u64(64 * word + __ffsll(here) - 1) << 16 * found.count++;
        }
    }
    return found;
}

// A tile of GEMM-O.
struct TileColumns {
    u32 column;     // its first
    u32 head_steps; // k-steps of the heads in the set
    HeadBits heads; // those
};

__device__ __forceinline__ TileColumns find_columns(const GemmParams& params, u32 batch, u32 q_block, u32 slot) {
    HeadBits bits = heads_of(params, batch, q_block);
    u32 count = 0;
#pragma unroll 1
    for (u32 word = 0; 64 * word < params.shape.heads; ++word) count += __popcll(bits.word(word));
    return TileColumns{slot * TILE_COLUMNS, count * HEAD_STEPS, bits};
}

// Walks the heads of the set from the first to the last, in steps of which each head has HEAD_DIM / STEP_COLUMNS.
template <u32 STEP_COLUMNS>
struct HeadWalk {
    static constexpr u32 PARTS = HEAD_DIM / STEP_COLUMNS;

    u32 left; // steps to come
    HeadBits bits;
    u64 word; // what is left of it
    u32 base; // the head of its first bit
    u32 part; // of the head

    __device__ __forceinline__ HeadWalk(const HeadBits& heads, u32 steps, u32 first)
        : left(steps - first), bits(heads), word(0), base(0u - 64), part(first % PARTS) {
        if (left == 0) return;
        for (u32 before = first / PARTS; before > 0; --before) {
            peek();
            word &= word - 1;
        }
    }

    // The next step's head; there must be one.
    __device__ __forceinline__ u32 peek() {
        while (word == 0) {
            base += 64;
            word = bits.word(base / 64);
        }
        return base + __ffsll(word) - 1;
    }

    __device__ __forceinline__ void advance() {
        --left;
        if (++part < PARTS) return;
        word &= word - 1;
        part = 0;
    }
};
