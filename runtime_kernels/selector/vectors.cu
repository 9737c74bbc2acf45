// Vectors of tokens and blocks: tokens as they are, operations on channels, dot products.
//
//   each           out[h, i] = x[h, places[i]], or a group of `stride` tokens one behind the other
//   dot            out[h, i, j] = sum over c, in order, of a[h, i, c] * b[h, j, c], divided by or times a number of the head
//   vectors        out[h, i, c] = op(a, b), each of a vector, a number of the element, or a number of the head
//   over_channels  out[i] = the channels of vector i, in order, as one number
//   scale          value = value / first / second, in place
//
//   in    x [heads, tokens, dim] of 16-bit numbers; otherwise floats as params.cuh says
//
// A dot product is a chain of products and sums that may not be contracted, so tensor cores and fused operations are out: what is
// left is two operations for each channel. dot is a product of matrices as those are written for such cores: a tile of TILE x TILE results to a
// thread block of 64, EACH x EACH of them to a thread, and channels by 32 through shared memory, transposed; the next 32 are on their way
// meanwhile. Tiles are small because matrices of blocks are: of 258 columns tiles of 64 would fill 81%, those of 32 fill 90%.
//
// In shared memory the rows of channel c stand in groups of four, group g at place g ^ c / 4: what is written for different channels at a time
// and what is read for different rows then goes to different banks. Results go through shared memory too, so that they are written in
// whole pieces of lines.
//
// Who does what: dot, a tile along x, the head along y; all others, any threads along x over what there is of a head (along y), or
// over everything. Shared memory: dot 2 * 32 * TILE floats, 8 KiB for tiles of 32.
#include "selector/arithmetic.cuh"

extern "C" __global__ void selector_each(const __grid_constant__ EachParams params) {
    wait_for_turn();
    const Tokens& tokens = params.tokens;
    const u32 width = params.stride * tokens.dim, head = blockIdx.y;
    bool fine = true;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < u64(params.count) * width; i += u64(gridDim.x) * blockDim.x) {
        const u32 element = u32(i / width), inside = u32(i % width);
        const u32 phase = inside / tokens.dim, channel = inside % tokens.dim;
        u32 token = element * params.stride + (params.is_reversed ? params.stride - 1 - phase : phase);
        if (params.places != nullptr) token = params.places[element];
        float x = 0.0f;
        if (token < params.available) {
            const u32 place = tokens.order == nullptr ? token : tokens.order[token];
            x = widen(tokens.data[tokens.heads[head] * tokens.head_stride + place * tokens.token_stride + channel], tokens.is_bf16);
            fine &= is_finite(x);
        }
        params.out[u64(head) * params.count * width + i] = x;
    }
    if (!fine) *params.status = 1;
}

constexpr u32 DEPTH = 32;       // channels of a step
constexpr u32 DOT_THREADS = 64; // of a thread block

// Where a row of a channel stands in a tile.
template <u32 TILE>
__device__ __forceinline__ u32 place_of(u32 c, u32 row) {
    return (row / 4 ^ c / 4 % (TILE / 4)) * 4 + row % 4;
}

// A thread's part of a step where the number of channels is a multiple of four: rows of a tile, four channels of each. In place of rows and
// channels that are not there stand others: nothing is made of them.
template <u32 TILE>
struct Part {
    static constexpr u32 COUNT = TILE * DEPTH / 4 / DOT_THREADS;
    float4 numbers[COUNT];

    static __device__ __forceinline__ u32 row(u32 i) { return (i * DOT_THREADS + threadIdx.x) / (DEPTH / 4); }
    static __device__ __forceinline__ u32 channel() { return threadIdx.x % (DEPTH / 4) * 4; }

    __device__ __forceinline__ void fetch(const float* rows, u32 first, u32 count, u32 from, u32 dim) {
        const u32 c = min(from + channel(), dim - 4);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            numbers[i] = *reinterpret_cast<const float4*>(rows + (min(first + row(i), count - 1) * dim + c));
        }
    }

    __device__ __forceinline__ void put(float (&tile)[DEPTH][TILE]) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 c = channel(), place = place_of<TILE>(c, row(i));
            tile[c][place] = numbers[i].x;
            tile[c + 1][place] = numbers[i].y;
            tile[c + 2][place] = numbers[i].z;
            tile[c + 3][place] = numbers[i].w;
        }
    }
};

// The same for any number of channels, without a detour through registers.
template <u32 TILE>
__device__ __forceinline__ void put_singly(float (&tile)[DEPTH][TILE], const float* rows, u32 first, u32 count, u32 from, u32 dim) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < TILE * DEPTH; i += DOT_THREADS) {
        const u32 row = i / DEPTH, c = i % DEPTH;
        tile[c][place_of<TILE>(c, row)] = rows[min(first + row, count - 1) * dim + min(from + c, dim - 1)];
    }
}

template <u32 TILE, u32 EACH>
__device__ __forceinline__ void dot(const DotParams& params) {
    static_assert(TILE / EACH * (TILE / EACH) == DOT_THREADS, "a thread block covers the tile");
    static_assert(TILE <= DEPTH, "results fit where rows were");
    __shared__ __align__(16) float a[DEPTH][TILE];
    __shared__ __align__(16) float b[DEPTH][TILE];
    const u32 across = (params.columns + TILE - 1) / TILE, head = blockIdx.y;
    const u32 first_row = blockIdx.x / across * TILE, first_column = blockIdx.x % across * TILE;
    const u32 row = threadIdx.x / (TILE / EACH) * EACH, column = threadIdx.x % (TILE / EACH) * EACH;
    const float* rows = params.a + u64(head) * params.rows * params.dim;
    const float* columns = params.b + u64(head) * params.columns * params.dim;
    const bool in_fours = params.dim % 4 == 0;
    float sums[EACH][EACH] = {};
    const auto multiply = [&](u32 c) {
        float x[EACH], y[EACH];
        const float *from_a = a[c] + place_of<TILE>(c, row), *from_b = b[c] + place_of<TILE>(c, column);
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) x[i] = from_a[i], y[i] = from_b[i];
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
            for (u32 j = 0; j < EACH; ++j) sums[i][j] += x[i] * y[j];
        }
    };
    Part<TILE> next_a, next_b;
    const auto fetch = [&](u32 channel) {
        if (!in_fours || channel >= params.dim) return;
        next_a.fetch(rows, first_row, params.rows, channel, params.dim);
        next_b.fetch(columns, first_column, params.columns, channel, params.dim);
    };
    fetch(0);
    for (u32 channel = 0; channel < params.dim; channel += DEPTH) {
        __syncthreads();
        if (in_fours) {
            next_a.put(a);
            next_b.put(b);
        } else {
            put_singly(a, rows, first_row, params.rows, channel, params.dim);
            put_singly(b, columns, first_column, params.columns, channel, params.dim);
        }
        __syncthreads();
        fetch(channel + DEPTH);
        // Only channels that are there are multiplied.
        const u32 depth = min(params.dim - channel, DEPTH);
        u32 c = 0;
        for (; c + 4 <= depth; c += 4) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) multiply(c + i);
        }
        for (; c < depth; ++c) multiply(c);
    }
    __syncthreads();
    float(&results)[TILE][TILE] = reinterpret_cast<float(&)[TILE][TILE]>(a);
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) results[row + i][column + j] = sums[i][j];
    }
    __syncthreads();
    const float by = params.by == nullptr ? 1.0f : params.by[head];
    float* out = params.out + u64(head) * params.rows * params.columns;
    for (u32 i = threadIdx.x; i < TILE * TILE; i += DOT_THREADS) {
        const u32 at = first_row + i / TILE, to = first_column + i % TILE;
        if (at >= params.rows || to >= params.columns) continue;
        float result = results[i / TILE][i % TILE];
        if (params.by != nullptr) result = params.multiplies ? result * by : result / by;
        out[u64(at) * params.columns + to] = result;
    }
}

extern "C" __global__ void __launch_bounds__(DOT_THREADS, 8) selector_dot(const __grid_constant__ DotParams params) {
    wait_for_turn();
    dot<32, 4>(params);
}

// The same in smaller tiles, for matrices that would fill few multiprocessors.
extern "C" __global__ void __launch_bounds__(DOT_THREADS) selector_dot_small(const __grid_constant__ DotParams params) {
    wait_for_turn();
    dot<16, 2>(params);
}

__device__ __forceinline__ float operand(const float* values, u32 kind, const VectorsParams& params, u32 head, u64 i) {
    switch (Operand(kind)) {
        case Operand::VECTORS: return values[u64(head) * params.elements * params.dim + i];
        case Operand::NUMBERS: return values[u64(head) * params.elements + i / params.dim];
        default: return values[head];
    }
}

__device__ __forceinline__ float apply(VectorOp op, float a, float b) {
    switch (op) {
        case VectorOp::NEGATE: return -a;
        case VectorOp::ABS: return fabsf(a);
        case VectorOp::ADD: return a + b;
        case VectorOp::SUBTRACT: return a - b;
        case VectorOp::MULTIPLY: return a * b;
        case VectorOp::DIVIDE: return a / b;
        case VectorOp::MIN: return a < b ? a : b;
        default: return a > b ? a : b;
    }
}

extern "C" __global__ void selector_vectors(const __grid_constant__ VectorsParams params) {
    wait_for_turn();
    const u64 count = u64(params.elements) * params.dim;
    const u32 head = blockIdx.y;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += u64(gridDim.x) * blockDim.x) {
        const float a = operand(params.a, params.a_is, params, head, i), b = operand(params.b, params.b_is, params, head, i);
        params.out[head * count + i] = apply(VectorOp(params.op), a, b);
    }
}

extern "C" __global__ void selector_over_channels(const __grid_constant__ LinesParams params) {
    wait_for_turn();
    const u32 line = blockIdx.x * blockDim.x + threadIdx.x;
    if (line >= params.lines) return;
    const float* channels = params.value + u64(line) * params.length;
    float sum = 0.0f, least = INFINITE, most = -INFINITE;
    for (u32 c = 0; c < params.length; ++c) {
        sum += channels[c];
        least = smaller(least, channels[c]), most = larger(most, channels[c]);
    }
    switch (Reduction(params.how)) {
        case Reduction::SUM: params.out[line] = sum; break;
        case Reduction::MEAN: params.out[line] = sum / float(params.length); break;
        case Reduction::MAX: params.out[line] = most + 0.0f; break;
        default: params.out[line] = least + 0.0f;
    }
}

extern "C" __global__ void selector_scale(const __grid_constant__ ScaleParams params) {
    wait_for_turn();
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < params.count; i += u64(gridDim.x) * blockDim.x) {
        params.value[i] = params.value[i] / params.first / params.second;
    }
}
