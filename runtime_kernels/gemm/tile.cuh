// A tile of output on its way: where it lies, which of its k-steps a piece has, and which heads of its q-block are in the set.
#pragma once
#include "common/work.cuh"
#include "gemm/config.cuh"
#include "gemm/gemm_params.cuh"

// A piece of a tile. No tiles of its row: there is no more work.
template <class Detail>
struct alignas(16) Tile {
    Piece piece;
    u32 batch;
    u32 first, end; // the tokens of the q-block that the projection is about: its rows, from 0 on
    Detail detail;
};

// Where a piece lies. `kernel.detail(batch, q_block, slot)` says what its tile has beside its rows.
template <class Kernel, class OwnTile>
__device__ __forceinline__ void place_piece(const Kernel& kernel, const Piece& piece, OwnTile& tile) {
    const GemmShape& shape = kernel.params.shape;
    const u32* start = kernel.params.symbols.q_start;
    u32 row = piece.row / shape.slots, q_block = row % shape.q_blocks, batch = row / shape.q_blocks;
    u32 first = start ? __ldg(start + q_block) : q_block * BLOCK_Q;
    u32 end = start ? __ldg(start + q_block + 1) : first + BLOCK_Q;
    tile.piece = piece;
    tile.batch = batch;
    tile.first = max(first, shape.first_token);
    tile.end = min(end, shape.first_token + shape.tokens);
    tile.detail = kernel.detail(batch, q_block, piece.row % shape.slots);
}

// The k-steps of a piece: tile 0 of a row is its end.
__device__ __forceinline__ u32 first_step(const Piece& piece) {
    return max(piece.begin, 1u) - 1;
}
__device__ __forceinline__ u32 count_steps(const Piece& piece) {
    return piece.begin + piece.count - 1 - first_step(piece);
}

// ---------------------------------------------------------------------------------------------------------------------- heads

// The bits of the heads of a q-block that are in the set.
__device__ __forceinline__ const u64* heads_of(const GemmParams& params, u32 batch, u32 q_block) {
    const GemmShape& shape = params.shape;
    return params.heads + (u64(shape.symbol_batches == 1 ? 0 : batch) * shape.q_blocks + q_block) * ((shape.heads + 63) / 64);
}

// The heads of a tile of GEMM-Q.
struct TileHeads {
    u32 count;
    u64 heads; // 16 bits each

    __device__ __forceinline__ u32 head(u32 i) const {
        return u32(heads >> 16 * i) & 0xFFFF;
    }
};

// The heads number TILE_HEADS * slot and on of those of a q-block in the set.
__device__ __forceinline__ TileHeads find_heads(const GemmParams& params, u32 batch, u32 q_block, u32 slot) {
    const u64* bits = heads_of(params, batch, q_block);
    TileHeads found{};
    u32 before = TILE_HEADS * slot;
#pragma unroll 1
    for (u32 first = 0; first < params.shape.heads && found.count < TILE_HEADS; first += 64) {
        u64 here = __ldg(bits++);
        for (; here != 0 && before > 0; --before) here &= here - 1;
        for (; here != 0 && found.count < TILE_HEADS; here &= here - 1) {
            found.heads |= u64(first + __ffsll(here) - 1) << 16 * found.count++;
        }
    }
    return found;
}

// A tile of GEMM-O.
struct TileColumns {
    u32 column;       // its first
    const u64* heads; // bits of those in the set
    u32 head_steps;   // k-steps of those
};

__device__ __forceinline__ TileColumns find_columns(const GemmParams& params, u32 batch, u32 q_block, u32 slot) {
    const u64* bits = heads_of(params, batch, q_block);
    u32 count = 0;
#pragma unroll 1
    for (u32 first = 0; first < params.shape.heads; first += 64) count += __popcll(__ldg(bits + first / 64));
    return TileColumns{slot * TILE_COLUMNS, bits, count * HEAD_STEPS};
}

// Walks the heads of the set from the first to the last, in steps of which each head has HEAD_DIM / STEP_COLUMNS.
template <u32 STEP_COLUMNS>
struct HeadWalk {
    static constexpr u32 PARTS = HEAD_DIM / STEP_COLUMNS;

    u32 left;         // steps to come
    const u64* words; // the next
    u64 word;
    u32 base; // the head of its first bit
    u32 part; // of the head

    __device__ __forceinline__ HeadWalk(const u64* heads, u32 steps, u32 first)
        : left(steps - first), words(heads), word(0), base(0u - 64), part(first % PARTS) {
        if (left == 0) return;
        for (u32 before = first / PARTS; before > 0; --before) {
            peek();
            word &= word - 1;
        }
    }

    // The next step's head; there must be one.
    __device__ __forceinline__ u32 peek() {
        while (word == 0) {
            word = __ldg(words++);
            base += 64;
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
