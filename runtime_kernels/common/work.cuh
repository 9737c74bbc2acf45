// The work of one thread block, as common/plan.cuh has divided it (see Plan in params.cuh): whole rows, then a share of the rest, whose
// first and last row may be divided between neighbouring thread blocks.
#pragma once
#include "params.cuh"

// The length of a row as plan.lengths has it: its tiles, and above them what one of them costs less than that of a full row. The highest bit
// marks a row that is not computed and whose output is written all the same.
constexpr u32 FILL = 1u << 31;
constexpr u32 DISCOUNT = 24; // lowest bit of what a tile costs less

__device__ __forceinline__ u32 tiles_of(u32 length) {
    return length & ((1u << DISCOUNT) - 1);
}

// Tiles begin .. begin + count of a row. A piece of a divided row leaves its partial result in `slot` of the workspace; the
// thread blocks first ..= last share the row, in `pieces` pieces.
struct Piece {
    u32 row;
    u32 begin;
    u32 count;
    u32 slot;
    u32 first;
    u32 last;
    u32 pieces;
};

constexpr u32 WHOLE = 0xFFFFFFFF; // Piece::slot of a row that is not divided

__device__ __forceinline__ bool is_before(Cut a, Cut b) {
    return a.item < b.item || (a.item == b.item && a.tile < b.tile);
}

__device__ __forceinline__ Cut load_cut(const Cut* cuts, u32 index) {
    uint2 cut = __ldg(reinterpret_cast<const uint2*>(cuts + index));
    return Cut{cut.x, cut.y};
}

// Where thread block `block` leaves its piece of the row at `item`.
__device__ __forceinline__ u32 slot_of(u32 block, u32 first) {
    return block == first ? 2 * block + 1 : 2 * block;
}

// Tiles of rows whose keys and values may be more than the second-level cache holds: from 32 MiB on with a head_dim of 128.
#ifndef OMNI_LONG
#define OMNI_LONG 512 // but for tests
#endif
constexpr u32 LONG = OMNI_LONG;

// The pieces of a thread block. If its share of the rest begins inside a row, that piece comes before everything else: who began the row
// does it last and finds the others done. But where rows are LONG it comes after the whole ones, so that all thread blocks begin those
// at one time and read the same keys while they are in the cache.
struct Work {
    const Plan& plan;
    u32 block;
    u32 ctas;
    u32 waves;
    u32 wave;
    Cut at;
    Cut end;
    bool begins_inside; // the first piece is one of a row that another thread block begins, and comes before the waves
    // What lies at the next item, loaded ahead: its first use is an item later.
    u32 row;
    u32 length;

    __device__ __forceinline__ Work(const Plan& plan, u32 block) : plan(plan), block(block), ctas(plan.ctas), wave(0) {
        waves = __ldg(&plan.head->waves);
        at = load_cut(plan.cuts, block);
        end = load_cut(plan.cuts, block + 1);
        begins_inside = at.tile > 0 && is_before(at, end) && tiles_of(__ldg(plan.lengths + at.item)) <= LONG;
        load();
    }

    // Whether a whole row of a wave is next.
    __device__ __forceinline__ bool in_waves() const {
        return wave < waves && !begins_inside;
    }

    __device__ __forceinline__ bool is_done() const {
        return wave >= waves && !is_before(at, end);
    }

    __device__ __forceinline__ void load() {
        if (is_done()) return;
        u32 item = in_waves() ? block + wave * ctas : at.item;
        row = __ldg(plan.order + item);
        length = tiles_of(__ldg(plan.lengths + item));
    }

    // The next piece; false when there is none.
    __device__ __forceinline__ bool next(Piece& piece) {
        if (is_done()) return false;
        piece.row = row;
        piece.slot = WHOLE;
        piece.begin = 0;
        piece.count = length;
        if (in_waves()) {
            ++wave;
        } else {
            u32 stop = at.item == end.item ? end.tile : length;
            piece.begin = at.tile;
            piece.count = stop - at.tile;
            if (piece.count < length) share(piece);
            at = at.item == end.item ? end : Cut{at.item + 1, 0};
            begins_inside = false;
        }
        load();
        return true;
    }

    // Who else works on the row at `at`.
    __device__ __forceinline__ void share(Piece& piece) const {
        Cut start = {at.item, 0};
        piece.first = block;
        while (is_before(start, load_cut(plan.cuts, piece.first))) --piece.first;
        piece.pieces = 0;
        piece.last = piece.first;
        for (u32 here = piece.first;; ++here) {
            Cut next = load_cut(plan.cuts, here + 1);
            if (is_before(start, next) && is_before(load_cut(plan.cuts, here), next)) {
                ++piece.pieces;
                piece.last = here;
            }
            if (next.item > at.item) break;
        }
        piece.slot = slot_of(block, piece.first);
    }
};
