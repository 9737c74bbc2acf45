// Selections in lines of at most 1024 numbers: top-k, bottom-k, top-p, bottom mass, statistical.
//
//   out[h, l, i] = 1 where element i of line l is selected, as Selector in src/ir says; NaN and minus infinity never are
//
//   in    value [heads][lines][length] floats; amounts of each head, or of each line
//   out   bytes [heads][lines][length]
//
// A warp sorts the line's numbers, as codes of 32 bits that are ordered like them; the indices stay where they are. What is selected
// is then a piece of the ranking from its beginning or to its end, and all it takes to say so is the code at the border and how many of
// those that equal it are inside: ties go to the lower index, and ballots count them in the order of indices. Running sums add
// the sorted numbers one by one in single precision, by all lanes alike, as each of them needs the result. Where numbers below zero make a
// sum fall again, what is selected is no such piece: then every element looks its own rank up.
//
// Who does what: a warp to a line, four warps to a thread block, the head along y; one kernel for each number of slots, which is
// that of registers. Shared memory: SLOTS * 512 bytes for the sorted lines and 16 bytes for each slot of bits.
#include "selector/rank.cuh"

constexpr u32 WARPS = 4;

// A line in the registers of a warp: key i * 32 + lane in slot i, NONE where there is no candidate.
template <u32 SLOTS>
struct Line {
    float values[SLOTS];
    u32 keys[SLOTS];
    const float* sorted; // [candidates] in the order of the ranking, shared memory
    u32 candidates;
    u32 lane;

    // Slots of those whose key is below `last`, and the first `ties` by index of those that equal it. With `flip` of all ones, above.
    __device__ __forceinline__ u32 up_to(u32 last, u32 count, u32 flip) const {
        u32 below = 0;
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) {
            below += __popc(__ballot_sync(ALL_LANES, keys[i] != NONE && (keys[i] ^ flip) < (last ^ flip)));
        }
        u32 selected = 0, seen = below;
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) {
            const u32 equal = __ballot_sync(ALL_LANES, keys[i] == last);
            const u32 rank = seen + __popc(equal & ((1u << lane) - 1));
            const bool is_before = keys[i] != NONE && (keys[i] ^ flip) < (last ^ flip);
            if (is_before || (keys[i] == last && rank < count)) selected |= 1u << i;
            seen += __popc(equal);
        }
        return selected;
    }

    // The key of a rank.
    __device__ __forceinline__ u32 key_at(u32 rank, u32 flip) const { return code_of(sorted[rank]) ^ flip; }

    // The first of the ranking; `flip` is what made its keys.
    __device__ __forceinline__ u32 first(u32 count, u32 flip) const {
        count = min(count, candidates);
        return count == 0 ? 0 : up_to(key_at(count - 1, flip), count, 0);
    }

    // The largest, of an ascending ranking; ties to the lower index.
    __device__ __forceinline__ u32 largest(u32 count) const {
        count = min(count, candidates);
        return count == 0 ? 0 : up_to(key_at(candidates - count, 0), count, ~0u);
    }

    __device__ __forceinline__ u32 all() const {
        u32 slots = 0;
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) slots |= u32(keys[i] != NONE) << i;
        return slots;
    }

    // The rank of the candidate of a slot.
    __device__ __forceinline__ u32 rank_of(const float* given, u32 index, float value) const {
        u32 rank = 0;
        for (u32 other = 0; other < index; ++other) rank += is_candidate(given[other]) && given[other] == value;
        for (u32 place = 0; place < candidates && sorted[place] < value; ++place) ++rank;
        return rank;
    }
};

// How many of the ranking's beginning have a running sum within `amount`; `before` looks at the sum without the element. Sums of
// numbers that are not below zero do not fall, so that four are tried at once.
__device__ __forceinline__ u32 count_within(const float* sorted, u32 count, float amount, bool is_strict, bool before, bool rises) {
    float sum = 0.0f;
    u32 kept = 0;
    if (rises) {
        for (; kept + 4 <= count; kept += 4) {
            const float4 four = *reinterpret_cast<const float4*>(sorted + kept);
            const float third = sum + four.x + four.y + four.z, all = third + four.w;
            if (!is_within(before ? third : all, amount, is_strict)) break;
            sum = all;
        }
    }
    for (; kept < count; ++kept) {
        const float with = sum + sorted[kept];
        if (!is_within(before ? sum : with, amount, is_strict)) break;
        sum = with;
    }
    return kept;
}

// Marks ranks whose running sum fits, one bit each: where sums may fall.
__device__ __forceinline__ void mark_ranks(u32* bits, const float* sorted, u32 count, const Amount& amount, bool ascending, bool is_strict, u32 lane) {
    float sum = 0.0f;
    for (u32 first = 0; first < count; first += 32) {
        u32 word = 0;
        for (u32 i = 0; i < 32 && first + i < count; ++i) {
            sum += sorted[first + i];
            const bool fits = ascending ? (is_strict ? sum > amount.rest : sum >= amount.rest) : sum <= amount.amount;
            word |= u32(fits) << i;
        }
        if (lane == 0) bits[first / 32] = word;
    }
    __syncwarp();
}

template <u32 SLOTS>
__device__ __forceinline__ u32 statistical(const Line<SLOTS>& line, const Amount& amount) {
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) sum += line.keys[i] != NONE ? line.values[i] : 0.0f;
    const float count = float(line.candidates), mean = sum_of_lanes(sum) / count;
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        const float difference = line.keys[i] != NONE ? line.values[i] - mean : 0.0f;
        squares += difference * difference;
    }
    const float deviation = __fsqrt_rn(sum_of_lanes(squares) / count);
    const float threshold = mean + deviation * amount.quantile;
    u32 selected = 0;
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) selected |= u32(line.keys[i] != NONE && line.values[i] > threshold) << i;
    return selected;
}

template <u32 SLOTS>
__device__ __forceinline__ void select(const SelectParams& params) {
    __shared__ __align__(16) float sorted_lines[WARPS][SLOTS * 32];
    __shared__ u32 rank_bits[WARPS][SLOTS];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    const u32 number = blockIdx.x * WARPS + warp;
    if (number >= params.lines) return;
    const Rule rule = Rule(params.rule);
    const Amount amount = amount_of(params, head, number);
    const u64 start = (u64(head) * params.lines + number) * params.length;
    const float* given = params.value + start;
    const u32 flip = is_descending(rule) ? ~0u : 0;

    Line<SLOTS> line;
    line.lane = lane;
    line.candidates = 0;
    bool rises = true;
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        const u32 index = i * 32 + lane;
        line.values[i] = index < params.length ? given[index] : -INFINITE;
        const bool is_one = is_candidate(line.values[i]);
        line.keys[i] = is_one ? code_of(line.values[i]) ^ flip : NONE;
        line.candidates += __popc(__ballot_sync(ALL_LANES, is_one));
        rises &= !(is_one && line.values[i] < 0.0f);
    }
    rises = __all_sync(ALL_LANES, rises);

    const bool is_ranked = rule != Rule::STATISTICAL || amount.at_least > 0;
    if (is_ranked) {
        u32 keys[SLOTS];
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) keys[i] = line.keys[i];
        sort<SLOTS>(keys, lane);
#pragma unroll
        for (u32 i = 0; i < SLOTS; ++i) sorted_lines[warp][i * 32 + lane] = of_code(keys[i] ^ flip);
        __syncwarp();
    }
    line.sorted = sorted_lines[warp];

    u32 selected = 0;
    switch (rule) {
        case Rule::TOP_K:
        case Rule::BOTTOM_K:
            selected = line.first(amount.count, flip);
            if (params.ties && amount.count > 0 && amount.count <= line.candidates) {
                const u32 last = line.key_at(amount.count - 1, flip);
#pragma unroll
                for (u32 i = 0; i < SLOTS; ++i) selected |= u32(line.keys[i] == last) << i;
            }
            break;
        case Rule::TOP_P:
        case Rule::TOP_P_CROSSING: {
            const bool before = rule == Rule::TOP_P_CROSSING;
            const u32 kept = count_within(line.sorted, line.candidates, amount.amount, params.is_strict, before, rises);
            selected = line.first(max(kept, amount.at_least), flip);
            break;
        }
        case Rule::TOP_P_ASCENDING:
        case Rule::BOTTOM_MASS: {
            const bool ascending = rule == Rule::TOP_P_ASCENDING;
            if (rises) {
                // Those before the first whose sum reaches the rest: their sums are within what is strictly less.
                const float bound = ascending ? amount.rest : amount.amount;
                const bool is_strict = ascending && !params.is_strict;
                const bool is_number = bound == bound;
                const u32 kept = is_number ? count_within(line.sorted, line.candidates, bound, is_strict, false, true) : 0;
                const u32 beginning = line.first(ascending ? kept : max(kept, amount.at_least), flip);
                selected = !ascending ? beginning : is_number ? line.all() & ~beginning : 0;
            } else {
                mark_ranks(rank_bits[warp], line.sorted, line.candidates, amount, ascending, params.is_strict, lane);
#pragma unroll 1
                for (u32 i = 0; i < SLOTS; ++i) {
                    const u32 index = i * 32 + lane;
                    if (index >= params.length || !is_candidate(given[index])) continue;
                    const u32 rank = line.rank_of(given, index, given[index]);
                    selected |= (rank_bits[warp][rank / 32] >> (rank % 32) & 1) << i;
                }
                if (!ascending) selected |= line.first(amount.at_least, flip);
            }
            if (ascending) selected |= line.largest(amount.at_least);
            break;
        }
        default:
            selected = statistical<SLOTS>(line, amount);
            if (amount.at_least > 0) selected |= line.largest(amount.at_least);
    }
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        const u32 index = i * 32 + lane;
        if (index < params.length) params.out[start + index] = selected >> i & 1;
    }
}

#define SELECTOR_SELECT(SLOTS) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) selector_select_##SLOTS(const __grid_constant__ SelectParams params) { \
        wait_for_turn(); \
        select<SLOTS>(params); \
    }

SELECTOR_SELECT(1)
SELECTOR_SELECT(2)
SELECTOR_SELECT(3)
SELECTOR_SELECT(5)
SELECTOR_SELECT(9)
SELECTOR_SELECT(17)
SELECTOR_SELECT(32)
