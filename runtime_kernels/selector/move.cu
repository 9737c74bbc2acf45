// Elements at other places, rows as columns, tokens gathered to blocks, diagonals.
//
//   move         out[h, r, c] = from[in_heads[h], row_of[r], column_of[c]]: slices, embeddings, shifts, other heads
//   transpose    out[m, c, r] = from[m, r, c]
//   gather       out[h, r, c] = the elements of row_runs[r] x column_runs[c], row after row, as one number
//   diagonals    out[h, d] = sum over rows, in order, of value[h, r, queries[r] - d]
//   on_diagonals out[h, r, c] = 1 where a pair of tokens of the block is a chosen distance apart
//   group_sums   out[h, r, c] = sum over groups i of row r, in order, of the sum over groups j of column c, in 32 lanes
//
//   in    arrays of floats or bytes as params.cuh says
//
// Who does what: transpose, a tile of 32 x 32 to a thread block of 32 x 8; gather and group_sums, a warp to an element; the
// others, any threads along x over the elements of a head, which is along y. Shared memory: 4.1 KiB in transpose.
#include "selector/arithmetic.cuh"

template <class T>
__device__ __forceinline__ void move(const MoveParams& params) {
    const u32 head = blockIdx.y;
    const u32 source = params.in_heads == nullptr ? head : params.in_heads[head];
    const i32 shift = params.shift == nullptr ? 0 : params.shift[head];
    const T* in = reinterpret_cast<const T*>(params.from) + source * params.head_stride;
    const u64 count = u64(params.rows) * params.columns;
    T* out = reinterpret_cast<T*>(params.out) + head * count;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += u64(gridDim.x) * blockDim.x) {
        i32 row = i32(i / params.columns), column = i32(i % params.columns);
        if (params.row_of != nullptr) row = params.row_of[row];
        if (params.column_of != nullptr) column = params.column_of[column];
        (params.shifts_columns ? column : row) -= shift;
        const bool is_there = row >= 0 && column >= 0 && u32(row) < params.in_rows && u32(column) < params.in_columns;
        out[i] = is_there ? in[u64(row) * params.row_stride + u64(column) * params.column_stride] : T(0);
    }
}

extern "C" __global__ void selector_move(const __grid_constant__ MoveParams params) {
    wait_for_turn();
    params.bytes == 1 ? move<u8>(params) : move<u32>(params);
}

constexpr u32 TILE = 32;
constexpr u32 LINES = 8; // of a tile at a time

template <class T>
__device__ __forceinline__ void transpose(const TransposeParams& params, u32 (&tile)[TILE][TILE + 1]) {
    const T* in = reinterpret_cast<const T*>(params.from) + blockIdx.y * params.matrix_stride;
    T* out = reinterpret_cast<T*>(params.out) + u64(blockIdx.y) * params.rows * params.columns;
    const u32 across = (params.columns + TILE - 1) / TILE;
    const u32 first_row = blockIdx.x / across * TILE, first_column = blockIdx.x % across * TILE;
    const u32 x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    for (u32 i = y; i < TILE; i += LINES) {
        const u32 row = first_row + i, column = first_column + x;
        if (row < params.rows && column < params.columns) tile[i][x] = in[u64(row) * params.row_stride + column];
    }
    __syncthreads();
    for (u32 i = y; i < TILE; i += LINES) {
        const u32 row = first_row + x, column = first_column + i;
        if (row < params.rows && column < params.columns) out[u64(column) * params.rows + row] = T(tile[x][i]);
    }
}

extern "C" __global__ void __launch_bounds__(TILE * LINES) selector_transpose(const __grid_constant__ TransposeParams params) {
    wait_for_turn();
    __shared__ u32 tile[TILE][TILE + 1];
    params.bytes == 1 ? transpose<u8>(params, tile) : transpose<u32>(params, tile);
}

extern "C" __global__ void selector_gather(const __grid_constant__ GatherParams params) {
    wait_for_turn();
    const u32 element = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    if (element >= params.rows * params.columns) return;
    const Run rows = params.row_runs[element / params.columns], columns = params.column_runs[element % params.columns];
    const u32 width = columns.end - columns.start, length = (rows.end - rows.start) * width;
    const u64 start = u64(head) * params.in_rows * params.in_columns;
    float sum = 0.0f, least = INFINITE, most = -INFINITE;
    for (u32 i = lane; i < length; i += 32) {
        const u64 place = start + u64(rows.start + i / width) * params.in_columns + columns.start + i % width;
        const float x = params.is_bool ? float(params.from[place]) : reinterpret_cast<const float*>(params.from)[place];
        sum += x;
        least = smaller(least, x), most = larger(most, x);
    }
    float result;
    switch (Reduction(params.how)) {
        case Reduction::SUM: result = sum_of_lanes(sum); break;
        case Reduction::MEAN: result = sum_of_lanes(sum) / float(length); break;
        case Reduction::MAX: result = largest_of_lanes(most); break;
        default: result = smallest_of_lanes(least);
    }
    if (lane != 0) return;
    const u64 place = u64(head) * params.rows * params.columns + element;
    if (params.is_bool) {
        params.out[place] = result == 1.0f;
    } else {
        reinterpret_cast<float*>(params.out)[place] = result;
    }
}

extern "C" __global__ void selector_diagonals(const __grid_constant__ DiagonalsParams params) {
    wait_for_turn();
    const u32 distance = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y;
    if (distance >= params.distances) return;
    float sum = 0.0f;
    for (u32 row = 0; row < params.rows; ++row) {
        const u32 query = params.queries[row];
        if (query < distance || query - distance >= params.keys) continue;
        sum += params.value[(u64(head) * params.rows + row) * params.keys + (query - distance)];
    }
    params.out[u64(head) * params.distances + distance] = sum;
}

extern "C" __global__ void selector_on_diagonals(const __grid_constant__ OnDiagonalsParams params) {
    wait_for_turn();
    const u32 element = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y;
    if (element >= params.q_blocks * params.kv_blocks) return;
    const u32 row = element / params.kv_blocks, column = element % params.kv_blocks;
    // The distances of a block are a range.
    const i32 nearest = i32(params.q_start[row]) - i32(params.kv_start[column + 1]) + 1;
    const i32 farthest = i32(params.q_start[row + 1]) - 1 - i32(params.kv_start[column]);
    bool found = false;
    for (i32 d = nearest > 0 ? nearest : 0; d <= farthest && d < i32(params.distances); ++d) {
        found |= params.chosen[u64(head) * params.distances + d] != 0;
    }
    params.out[u64(head) * params.q_blocks * params.kv_blocks + element] = found;
}

extern "C" __global__ void selector_group_sums(const __grid_constant__ GroupSumsParams params) {
    wait_for_turn();
    const u32 element = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    if (element >= params.q_blocks * params.kv_blocks) return;
    const u32 row = element / params.kv_blocks, column = element % params.kv_blocks;
    const u32 first = params.kv_start[column], end = params.kv_start[column + 1];
    float total = 0.0f;
    for (u32 group = params.q_start[row]; group < params.q_start[row + 1]; ++group) {
        const float* shares = params.value + (u64(head) * params.q_groups + group) * params.kv_groups;
        float sum = 0.0f;
        for (u32 i = first + lane; i < end; i += 32) sum += shares[i];
        total += sum_of_lanes(sum);
    }
    if (lane == 0) params.out[u64(head) * params.q_blocks * params.kv_blocks + element] = total;
}
