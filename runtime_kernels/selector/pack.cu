// Terms joined to the symbols that attention obeys.
//
//   S_s[h, r, c] = (some whole term, or there is none) and no skip term;   S_c[h, r] = no cache term
//
//   in    terms: factors that all have to be true, bytes of blocks or a scalar of the head
//   out   bitmaps as src/symbols lays them out, at the heads' slots; parts of a block that was cut have its symbols
//
// Who does what: a warp to a word of 64 bits, by two ballots; words of S_s first, then those of S_c, the head along y. No shared
// memory.
#include "selector/arithmetic.cuh"

struct Joined {
    bool has_whole;
    bool whole;
    bool skipped;
    bool cached;
};

__device__ __forceinline__ bool is_true_at(const Term& term, u32 head, u32 row, u32 column) {
    if (term.data == nullptr) return term.uniform[head] != 0.0f;
    const i32 own_row = term.row_of == nullptr ? i32(row) : term.row_of[row];
    const i32 own_column = term.column_of == nullptr ? i32(column) : term.column_of[column];
    if (own_row < 0 || own_column < 0) return false;
    return term.data[u64(head) * term.head_stride + u64(own_row) * term.row_stride + u64(own_column) * term.column_stride] != 0;
}

// What the terms say of a block, or of a q-block alone.
__device__ __forceinline__ Joined join(const PackParams& params, u32 head, u32 row, u32 column, bool of_cache) {
    Joined joined = {false, false, false, false};
    for (u32 i = 0; i < params.count; ++i) {
        const Role role = Role(params.terms[i].role);
        const bool is_asked = (role == Role::CACHE) == of_cache;
        bool is_true = is_asked && is_true_at(params.terms[i], head, row, column);
        for (; params.terms[i].joins; ++i) is_true = is_true && is_true_at(params.terms[i + 1], head, row, column);
        if (!is_asked) continue;
        joined.has_whole |= role == Role::WHOLE;
        joined.whole |= role == Role::WHOLE && is_true;
        joined.skipped |= role == Role::SKIP && is_true;
        joined.cached |= role == Role::CACHE && is_true;
    }
    return joined;
}

extern "C" __global__ void __launch_bounds__(256) selector_pack(const __grid_constant__ PackParams params) {
    wait_for_turn();
    const u32 item = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    const u32 words = (params.kv_parts + 63) / 64, cache_words = (params.q_parts + 63) / 64;
    const u32 slot = params.slots[head];
    if (item >= params.q_parts * words + cache_words || slot == ~0u) return;
    const bool of_cache = item >= params.q_parts * words;
    const u32 word = of_cache ? item - params.q_parts * words : item % words;
    u64 bits = 0;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 place = word * 64 + half * 32 + lane;
        bool is_set = false;
        if (of_cache) {
            const u32 row = place < params.q_parts && params.q_of != nullptr ? params.q_of[place] : place;
            is_set = place < params.q_parts && !join(params, head, row, 0, true).cached;
        } else if (place < params.kv_parts) {
            const u32 part = item / words;
            const u32 row = params.q_of == nullptr ? part : params.q_of[part];
            const Joined joined = join(params, head, row, params.kv_of == nullptr ? place : params.kv_of[place], false);
            is_set = (joined.whole || !joined.has_whole) && !joined.skipped;
        }
        bits |= u64(__ballot_sync(ALL_LANES, is_set)) << (half * 32);
    }
    if (lane != 0) return;
    if (of_cache) {
        params.cache[u64(slot) * cache_words + word] = bits;
    } else {
        params.skip[(u64(slot) * params.q_parts + item / words) * words + word] = bits;
    }
}
