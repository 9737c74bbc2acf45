// Selections in lines of any length, and those whose running sums add up something else than what is ranked.
//
//   out[h, l, i] = 1 where element i of line l is selected, as Selector in src/ir says; NaN and minus infinity never are
//
//   in    value, costs [heads][lines][length] floats; amounts of each head, or of each line; keys: room for [thread blocks][length]
//   out   bytes [heads][lines][length]
//
// Keys are 64 bits, the code of a number above its index, and so distinct. Counts need no ranking: the key of a rank is found by its bytes
// from the highest on, eight passes over the line with a histogram each, and what lies below it is selected. Sums need one: a bitonic network
// in global memory, without the comparisons beyond the last key. Then 1024 ranks at a time are summed by one thread and judged by all.
//
// Who does what: a thread block to a line at a time, any number of blocks. It is meant to be right for any length, and fast for top-k.
// Shared memory: 1024 running sums and a histogram, 5.1 KiB.
#include "selector/rank.cuh"

constexpr u32 CHUNK = 1024;
constexpr u64 NO_KEY = ~0ull;

struct Scratch {
    float sums[CHUNK];
    u32 histogram[256];
    u64 prefix;
    u32 rank;
    u32 candidates;
    u32 failed; // the first rank that does not fit
};

// The line of a thread block.
struct Work {
    const float* values;
    const float* costs;
    u8* out;
    u64* keys;
    u32 length;

    __device__ __forceinline__ u64 key(u32 index, u32 flip) const {
        const float value = values[index];
        return is_candidate(value) ? u64(code_of(value) ^ flip) << 32 | index : NO_KEY;
    }
};

__device__ void count_candidates(const Work& work, Scratch& scratch) {
    __syncthreads();
    if (threadIdx.x == 0) scratch.candidates = 0;
    __syncthreads();
    u32 count = 0;
    for (u32 i = threadIdx.x; i < work.length; i += blockDim.x) count += is_candidate(work.values[i]);
    atomicAdd(&scratch.candidates, count);
    __syncthreads();
}

// The key of a rank, which a candidate has.
__device__ u64 key_of_rank(const Work& work, Scratch& scratch, u32 rank, u32 flip) {
    if (threadIdx.x == 0) scratch.prefix = 0, scratch.rank = rank;
    for (i32 shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) scratch.histogram[i] = 0;
        __syncthreads();
        const u64 above = shift == 56 ? 0 : NO_KEY << (shift + 8), prefix = scratch.prefix;
        for (u32 i = threadIdx.x; i < work.length; i += blockDim.x) {
            const u64 key = work.key(i, flip);
            if (key != NO_KEY && (key & above) == prefix) atomicAdd(&scratch.histogram[key >> shift & 255], 1);
        }
        __syncthreads();
        if (threadIdx.x != 0) continue;
        u32 digit = 0;
        for (; scratch.histogram[digit] <= scratch.rank; ++digit) scratch.rank -= scratch.histogram[digit];
        scratch.prefix |= u64(digit) << shift;
    }
    __syncthreads();
    return scratch.prefix;
}

// Selects the first `count` of a ranking, and with `ties` those whose number equals that of the last.
__device__ void take_first(const Work& work, Scratch& scratch, u32 count, u32 flip, bool ties) {
    const bool is_all = count > scratch.candidates;
    count = min(count, scratch.candidates);
    if (count == 0) return;
    u64 last = key_of_rank(work, scratch, count - 1, flip);
    if (ties && !is_all) last |= 0xFFFFFFFF;
    for (u32 i = threadIdx.x; i < work.length; i += blockDim.x) {
        const u64 key = work.key(i, flip);
        if (key != NO_KEY && key <= last) work.out[i] = 1;
    }
}

// The network of rank.cuh for any number of keys.
__device__ void sort_keys(const Work& work, u32 flip) {
    const u32 length = work.length;
    for (u32 i = threadIdx.x; i < length; i += blockDim.x) work.keys[i] = work.key(i, flip);
    const auto step = [&](u32 half, bool is_mirrored) {
        __syncthreads();
        // Pair i of a step: the lower of both, and the other.
        for (u32 i = threadIdx.x; u64(i) < (u64(length) + 2 * half - 1) / (2 * half) * half; i += blockDim.x) {
            const u64 first = u64(i / half) * 2 * half;
            const u64 low = first + i % half, high = is_mirrored ? first + 2 * half - 1 - i % half : low + half;
            if (high >= length) continue;
            const u64 a = work.keys[low], b = work.keys[high];
            if (a > b) work.keys[low] = b, work.keys[high] = a;
        }
    };
    for (u32 half = 1; half < length; half *= 2) {
        step(half, true);
        for (u32 inner = half / 2; inner > 0; inner /= 2) step(inner, false);
    }
    __syncthreads();
}

// Running sums in the order of the ranking, and what they decide.
__device__ void take_by_sums(const Work& work, Scratch& scratch, const Amount& amount, Rule rule, bool is_strict) {
    sort_keys(work, is_descending(rule) ? ~0u : 0);
    if (threadIdx.x == 0) scratch.failed = scratch.candidates;
    float sum = 0.0f;
    for (u32 first = 0; first < scratch.candidates; first += CHUNK) {
        __syncthreads();
        const u32 count = min(CHUNK, scratch.candidates - first);
        if (is_descending(rule) && scratch.failed < first) break;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) scratch.sums[i] = work.costs[u32(work.keys[first + i])];
        __syncthreads();
        const float before = sum;
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < count; ++i) scratch.sums[i] = sum += scratch.sums[i];
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            const u32 rank = first + i, index = u32(work.keys[rank]);
            const float with = scratch.sums[i], without = i == 0 ? before : scratch.sums[i - 1];
            if (is_descending(rule)) {
                if (!is_within(rule == Rule::TOP_P_CROSSING ? without : with, amount.amount, is_strict)) atomicMin(&scratch.failed, rank);
            } else if (rule == Rule::BOTTOM_MASS) {
                if (with <= amount.amount || rank < amount.at_least) work.out[index] = 1;
            } else if (is_strict ? with > amount.rest : with >= amount.rest) {
                work.out[index] = 1;
            }
        }
        // All threads go on from the last sum.
        sum = scratch.sums[count - 1];
    }
    __syncthreads();
    if (is_descending(rule)) {
        const u32 kept = min(max(scratch.failed, amount.at_least), scratch.candidates);
        for (u32 i = threadIdx.x; i < kept; i += blockDim.x) work.out[u32(work.keys[i])] = 1;
    } else if (rule == Rule::TOP_P_ASCENDING) {
        take_first(work, scratch, amount.at_least, ~0u, false);
    }
}

// The sum of all lanes' parts, by the first warp.
template <class Part>
__device__ float sum_of_line(const Work& work, Scratch& scratch, Part part) {
    __syncthreads();
    if (threadIdx.x < 32) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < work.length; i += 32) sum += part(work.values[i]);
        sum = sum_of_lanes(sum);
        if (threadIdx.x == 0) scratch.sums[0] = sum;
    }
    __syncthreads();
    return scratch.sums[0];
}

__device__ void take_statistical(const Work& work, Scratch& scratch, const Amount& amount) {
    const float count = float(scratch.candidates);
    const float mean = sum_of_line(work, scratch, [](float x) { return is_candidate(x) ? x : 0.0f; }) / count;
    const float squares = sum_of_line(work, scratch, [mean](float x) {
        const float difference = is_candidate(x) ? x - mean : 0.0f;
        return difference * difference;
    });
    const float threshold = mean + __fsqrt_rn(squares / count) * amount.quantile;
    for (u32 i = threadIdx.x; i < work.length; i += blockDim.x) {
        if (is_candidate(work.values[i]) && work.values[i] > threshold) work.out[i] = 1;
    }
    take_first(work, scratch, amount.at_least, ~0u, false);
}

extern "C" __global__ void __launch_bounds__(CHUNK, 1) selector_select_long(const __grid_constant__ SelectParams params) {
    wait_for_turn();
    __shared__ Scratch scratch;
    const Rule rule = Rule(params.rule);
    const u32 lines = params.heads * params.lines;
    for (u32 number = blockIdx.x; number < lines; number += gridDim.x) {
        const u32 head = number / params.lines;
        const Amount amount = amount_of(params, head, number % params.lines);
        const u64 start = u64(number) * params.length;
        const float* costs = params.costs == nullptr ? params.value : params.costs;
        const u64 room = u64(blockIdx.x) * params.length;
        const Work work = {params.value + start, costs + start, params.out + start, params.keys + room, params.length};
        for (u32 i = threadIdx.x; i < work.length; i += blockDim.x) work.out[i] = 0;
        count_candidates(work, scratch);
        switch (rule) {
            case Rule::TOP_K: take_first(work, scratch, amount.count, ~0u, params.ties); break;
            case Rule::BOTTOM_K: take_first(work, scratch, amount.count, 0, false); break;
            case Rule::STATISTICAL: take_statistical(work, scratch, amount); break;
            default: take_by_sums(work, scratch, amount, rule, params.is_strict);
        }
        __syncthreads();
    }
}
