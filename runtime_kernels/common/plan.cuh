// The division of work among the thread blocks of a persistent kernel: which rows are computed, in which order, and who does what.
//
//   in    the length of each row, which `Rows` finds out; plan.ctas
//   out   plan: head, cuts [ctas + 1], order [rows], lengths [rows]
//
// A row is what one thread block computes into one tile of output: a q-block of one head, or of one range of columns. Its cost grows with its
// live tiles, which differ from row to row, and rows without any cost nothing, so neither the grid's order nor equal numbers of rows would
// keep all multiprocessors busy to the end. The plan gives every thread block the same cost:
//
//   1. Live rows are compacted in row order. Rows that read the same stay together, so that thread blocks that run at one time share it in the
//      second-level cache. Sorting by length would lose that.
//   2. They are dealt out like cards, a wave of `ctas` rows at a time, for as long as nobody gets more than the equal share.
//   3. The rest is one stream of costs. Each thread block takes from it what it still lacks, one after the other, so that a
//      boundary between two of them may fall inside a row. At most ctas - 1 rows are divided, the only ones that need a merge.
//
//   waves = 2, ctas = 3:    | a d |   | b e |   | c f |     whole rows, d is the row after c
//                           cuts: g g g h | h h i | i i i   the rest, here with the rows h and i divided
//
// Nobody exceeds the equal share by more than 2 tiles: a cut lies less than a tile from its position, and a divided row starts
// twice. That is worth no search for something better.
//
// Who does what: any number of thread blocks of 1024 threads count tiles, 8 lanes to a unit. The last one to finish does
// steps 1 to 3 alone, 4 rows to a thread. All sums are integers and no atomic decides an order: the same symbols always give
// the same plan, and so the same order of floating-point sums in the kernel that follows.
//
// `Rows` says what rows are:
//   rows()                 how many there are
//   units()                how many groups of lanes it takes to count them
//   count(unit, lane)      sets lengths[row] for the rows of a unit; called by the LANES lanes of a unit together, and by whole warps;
//                          a unit may be counted twice
//   tile_cost(length)      cost of a tile of a row of this length
//   ROW_COST               what a row costs beside its tiles
//
// Shared memory: 16.6 KiB, all static: prefix sums of 4096 costs, 32 sums of warps, three scalars.
#pragma once
#include "common/work.cuh"
#include "params.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 LANES = 8; // of a unit: 8 * 64 kv-blocks are 65,536 tokens with one load of each
constexpr u32 ROWS_PER_THREAD = 4;
constexpr u32 CHUNK = THREADS * ROWS_PER_THREAD;
constexpr u32 LOADS = 16; // loads in flight of a thread that walks its column

struct Scratch {
    u32 prefix[CHUNK]; // costs before each item of a chunk
    u64 warp_sums[WARPS];
    u32 waves;
    u32 is_last;
};

template <class Rows>
__device__ u32 row_cost(u32 length) { return Rows::tile_cost(length) * tiles_of(length) + Rows::ROW_COST; }

// Part 0, all thread blocks: lengths of all rows, at their own places.
template <class Rows>
__device__ void count(const Rows& rows) {
    const u32 lane = threadIdx.x % LANES;
    const u32 group = (blockIdx.x * THREADS + threadIdx.x) / LANES;
    const u32 groups = gridDim.x * (THREADS / LANES);
    // Whole warps stay in the loop together; groups beyond the last unit count it once more.
    const u32 first_of_warp = group - group % (32 / LANES);
    for (u64 first = first_of_warp; first < rows.units(); first += groups) {
        const u64 unit = first + (group - first_of_warp);
        rows.count(unit < rows.units() ? u32(unit) : rows.units() - 1, lane);
    }
}

__device__ u64 inclusive_scan_of_warp(u64 value) {
    for (u32 distance = 1; distance < 32; distance *= 2) {
        const u64 before = __shfl_up_sync(~0u, value, distance);
        if (threadIdx.x % 32 >= distance) value += before;
    }
    return value;
}

// Sum of the values of all threads before this one; `total` is the sum of all.
__device__ u64 exclusive_scan(Scratch& scratch, u64 value, u64& total) {
    const u64 inclusive = inclusive_scan_of_warp(value);
    if (threadIdx.x % 32 == 31) scratch.warp_sums[threadIdx.x / 32] = inclusive;
    __syncthreads();
    // Every warp scans the sums for itself, which saves handing them out.
    const u64 sums = inclusive_scan_of_warp(scratch.warp_sums[threadIdx.x % 32]);
    const u64 before = __shfl_up_sync(~0u, sums, 1);
    const u64 warps_before = __shfl_sync(~0u, before, threadIdx.x / 32);
    total = __shfl_sync(~0u, sums, 31);
    __syncthreads(); // the sums may be overwritten
    return (threadIdx.x < 32 ? 0 : warps_before) + inclusive - value;
}

struct Found {
    u32 live;
    u32 fill;
    u64 cost;
};

// Part 1: live rows to the front of `order` and `lengths`, rows to be filled to the end of `order`, last place first.
//
// In place: a live row never moves to a higher index, so a chunk's lengths land in chunks that have been read, or in its own,
// which the barriers within the scan separate from its reads.
template <class Rows>
__device__ Found compact(const Plan& plan, Scratch& scratch, u32 rows) {
    Found found = {0, 0, 0};
    for (u32 chunk = 0; chunk < rows; chunk += CHUNK) {
        const u32 first = chunk + threadIdx.x * ROWS_PER_THREAD;
        u32 lengths[ROWS_PER_THREAD];
        u64 counts = 0; // live rows in the low half, rows to be filled in the high one
        u64 cost = 0;
#pragma unroll
        for (u32 i = 0; i < ROWS_PER_THREAD; i++) {
            // Past the first-level cache: other multiprocessors have written them.
            lengths[i] = first + i < rows ? __ldcg(&plan.lengths[first + i]) : 0;
            if (lengths[i] == FILL) {
                counts += 1ull << 32;
            } else if (lengths[i] > 0) {
                counts += 1;
                cost += row_cost<Rows>(lengths[i]);
            }
        }
        u64 total_counts, total_cost;
        const u64 before = exclusive_scan(scratch, counts, total_counts);
        exclusive_scan(scratch, cost, total_cost);
        u32 live = found.live + u32(before);
        u32 fill = found.fill + u32(before >> 32);
#pragma unroll
        for (u32 i = 0; i < ROWS_PER_THREAD; i++) {
            if (lengths[i] == FILL) {
                plan.order[rows - 1 - fill++] = first + i;
            } else if (lengths[i] > 0) {
                plan.order[live] = first + i;
                plan.lengths[live++] = lengths[i];
            }
        }
        found.live += u32(total_counts);
        found.fill += u32(total_counts >> 32);
        found.cost += total_cost;
    }
    __syncthreads(); // everybody reads what others have compacted
    return found;
}

// How many rows c, c + ctas, c + 2 ctas, ... of at most `waves` thread block c can do for at most `share`, and what they cost.
template <class Rows>
__device__ u32 walk_column(const Plan& plan, u32 waves, u64 share, u64& cost) {
    cost = 0;
    for (u32 first = 0; first < waves; first += LOADS) {
        u32 lengths[LOADS];
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 wave = min(first + i, waves - 1);
            lengths[i] = plan.lengths[threadIdx.x + wave * plan.ctas];
        }
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            if (first + i == waves) return waves;
            const u64 with_row = cost + row_cost<Rows>(lengths[i]);
            if (with_row > share) return first + i;
            cost = with_row;
        }
    }
    return waves;
}

// Part 2: the most whole waves in which no thread block exceeds the share. `cost` is what they cost this thread's block.
template <class Rows>
__device__ u32 deal_waves(const Plan& plan, Scratch& scratch, const Found& found, u64 share, u64& cost) {
    cost = 0;
    if (threadIdx.x == 0) scratch.waves = found.live / plan.ctas;
    __syncthreads();
    if (threadIdx.x < plan.ctas) {
        const u32 own = walk_column<Rows>(plan, found.live / plan.ctas, share, cost);
        atomicMin(&scratch.waves, own);
    }
    __syncthreads();
    const u32 waves = scratch.waves;
    if (threadIdx.x < plan.ctas) walk_column<Rows>(plan, waves, share, cost);
    return waves;
}

// The cut at a cost of `offset` into the row at `item`, at the nearest tile. Grows with `offset`, so cuts never cross.
template <class Rows>
__device__ Cut cut_row(u32 item, u32 length, u32 offset) {
    const u32 cost = Rows::tile_cost(length);
    const u32 tile = offset > Rows::ROW_COST ? (offset - Rows::ROW_COST + cost / 2) / cost : 0;
    return tile < tiles_of(length) ? Cut{item, tile} : Cut{item + 1, 0};
}

// Index of the last of `count` ascending numbers that is not above `value`; the first one is 0.
__device__ u32 last_not_above(const u32* numbers, u32 count, u32 value) {
    u32 low = 0;
    u32 high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (numbers[middle] <= value) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Part 3: thread c < ctas finds where the share of thread block c begins in the stream of costs from item `first` on.
template <class Rows>
__device__ Cut find_cut(const Plan& plan, Scratch& scratch, u32 first, u32 live, u64 position) {
    Cut cut = {live, 0}; // beyond the last row
    u64 chunk_start = 0; // cost of the items before the chunk
    for (u32 chunk = first; chunk < live; chunk += CHUNK) {
        const u32 own = threadIdx.x * ROWS_PER_THREAD;
        u32 costs[ROWS_PER_THREAD];
        u64 cost = 0;
#pragma unroll
        for (u32 i = 0; i < ROWS_PER_THREAD; i++) {
            costs[i] = chunk + own + i < live ? row_cost<Rows>(plan.lengths[chunk + own + i]) : 0;
            cost += costs[i];
        }
        u64 total;
        u32 before = u32(exclusive_scan(scratch, cost, total));
#pragma unroll
        for (u32 i = 0; i < ROWS_PER_THREAD; i++) {
            scratch.prefix[own + i] = before;
            before += costs[i];
        }
        __syncthreads();
        if (position >= chunk_start && position - chunk_start < total) {
            const u32 offset = u32(position - chunk_start);
            const u32 index = last_not_above(scratch.prefix, min(CHUNK, live - chunk), offset);
            cut = cut_row<Rows>(chunk + index, plan.lengths[chunk + index], offset - scratch.prefix[index]);
        }
        __syncthreads(); // the prefix sums may be overwritten
        chunk_start += total;
    }
    return cut;
}

// Steps 1 to 3, by one thread block.
template <class Rows>
__device__ void arrange(const Plan& plan, Scratch& scratch, u32 rows) {
    const Found found = compact<Rows>(plan, scratch, rows);
    // Rounded up, so that the shares of all cover the work.
    const u64 share = (found.cost + plan.ctas - 1) / plan.ctas;
    u64 dealt;
    const u32 waves = deal_waves<Rows>(plan, scratch, found, share, dealt);
    const u64 lacks = threadIdx.x < plan.ctas ? share - dealt : 0;
    u64 all;
    const u64 position = exclusive_scan(scratch, lacks, all);
    const Cut cut = find_cut<Rows>(plan, scratch, waves * plan.ctas, found.live, position);
    if (threadIdx.x < plan.ctas) plan.cuts[threadIdx.x] = cut;
    if (threadIdx.x == 0) {
        plan.cuts[plan.ctas] = Cut{found.live, 0};
        plan.head->live = found.live;
        plan.head->waves = waves;
        plan.head->fill = found.fill;
    }
}

// All of it. Grid: any number of thread blocks of 1024 threads, best one for each multiprocessor. `plan.ctas` is at most 1024.
template <class Rows>
__device__ void make_plan(const Plan& plan, const Rows& rows) {
    __shared__ Scratch scratch;
    count(rows);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // the lengths of this thread block come before its arrival
        // Counts up to the number of thread blocks and then wraps around, so the next launch finds zero.
        scratch.is_last = atomicInc(&plan.head->done, gridDim.x - 1) == gridDim.x - 1;
        __threadfence(); // and those of the others before what follows
    }
    __syncthreads();
    if (scratch.is_last) arrange<Rows>(plan, scratch, rows.rows());
}
