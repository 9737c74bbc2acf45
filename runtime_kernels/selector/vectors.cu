// Vectors of tokens and blocks: tokens as they are, operations on channels, dot products.
//
//   each           out[h, i] = x[h, places[i]], or a group of `stride` tokens one behind the other
//   dot            out[h, i, j] = sum over c, in order, of a[h, i, c] * b[h, j, c]
//   vectors        out[h, i, c] = op(a, b), each of a vector, a number of the element, or a number of the head
//   over_channels  out[i] = the channels of vector i, in order, as one number
//   scale          value = value / first / second, in place
//
//   in    x [heads, tokens, dim] of 16-bit numbers; otherwise floats as params.cuh says
//
// A dot product is a chain of products and sums that may not be contracted, so tensor cores and fused operations are out: what is
// left is two operations for each channel. dot is a product of matrices as those are written for such cores: a tile of TILE x TILE results to a
// thread block of 256, EACH x EACH of them to a thread, and channels by 16 through shared memory, transposed.
//
// Who does what: dot, a tile along x, the head along y; all others, any threads along x over what there is of a head (along y), or
// over everything. Shared memory: dot 2 * 16 * (TILE + 4) floats, 8.5 KiB for tiles of 64.
#include "selector/arithmetic.cuh"

extern "C" __global__ void selector_each(const __grid_constant__ EachParams params) {
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

constexpr u32 DEPTH = 16; // channels of a step

// A tile's rows, transposed: a[c][i]. Rows and channels that are not there are zeros, which are added behind the last channel and
// change no sum.
template <u32 TILE>
__device__ __forceinline__ void load_tile(float (&tile)[DEPTH][TILE + 4], const float* rows, u32 first, u32 count, u32 channel, u32 dim) {
    for (u32 i = threadIdx.x; i < TILE * DEPTH; i += blockDim.x) {
        const u32 row = i / DEPTH, c = i % DEPTH;
        const bool inside = first + row < count && channel + c < dim;
        tile[c][row] = inside ? rows[u64(first + row) * dim + channel + c] : 0.0f;
    }
}

template <u32 TILE, u32 EACH>
__device__ __forceinline__ void dot(const DotParams& params) {
    static_assert(TILE / EACH * (TILE / EACH) == 256, "a thread block of 256 covers the tile");
    __shared__ __align__(16) float a[DEPTH][TILE + 4];
    __shared__ __align__(16) float b[DEPTH][TILE + 4];
    const u32 across = (params.columns + TILE - 1) / TILE, head = blockIdx.y;
    const u32 first_row = blockIdx.x / across * TILE, first_column = blockIdx.x % across * TILE;
    const u32 row = threadIdx.x / (TILE / EACH) * EACH, column = threadIdx.x % (TILE / EACH) * EACH;
    const float* rows = params.a + u64(head) * params.rows * params.dim;
    const float* columns = params.b + u64(head) * params.columns * params.dim;
    float sums[EACH][EACH] = {};
    // A whole step is multiplied only where its channels are there: zeros behind them would turn an infinite channel into NaN.
    for (u32 channel = 0; channel < params.dim; channel += DEPTH) {
        __syncthreads();
        load_tile<TILE>(a, rows, first_row, params.rows, channel, params.dim);
        load_tile<TILE>(b, columns, first_column, params.columns, channel, params.dim);
        __syncthreads();
        const u32 depth = params.dim - channel < DEPTH ? params.dim - channel : DEPTH;
#pragma unroll 4
        for (u32 c = 0; c < depth; ++c) {
            float x[EACH], y[EACH];
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) x[i] = a[c][row + i], y[i] = b[c][column + i];
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
                for (u32 j = 0; j < EACH; ++j) sums[i][j] += x[i] * y[j];
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        if (first_row + row + i >= params.rows) continue;
        float* out = params.out + (u64(head) * params.rows + first_row + row + i) * params.columns;
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) {
            if (first_column + column + j < params.columns) out[first_column + column + j] = sums[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) selector_dot(const __grid_constant__ DotParams params) { dot<64, 4>(params); }

// The same in smaller tiles, for matrices that would fill few multiprocessors.
extern "C" __global__ void __launch_bounds__(256) selector_dot_small(const __grid_constant__ DotParams params) { dot<32, 2>(params); }

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
    const u64 count = u64(params.elements) * params.dim;
    const u32 head = blockIdx.y;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += u64(gridDim.x) * blockDim.x) {
        const float a = operand(params.a, params.a_is, params, head, i), b = operand(params.b, params.b_is, params, head, i);
        params.out[head * count + i] = apply(VectorOp(params.op), a, b);
    }
}

extern "C" __global__ void selector_over_channels(const __grid_constant__ LinesParams params) {
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
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < params.count; i += u64(gridDim.x) * blockDim.x) {
        params.value[i] = params.value[i] / params.first / params.second;
    }
}
