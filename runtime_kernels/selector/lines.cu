// Softmax, shares and reductions of lines of numbers, each line by one warp.
//
//   softmax  out[l, i] = exp(x[l, i] - max) / (sum of the exponentials of line l); zeros where a line holds only minus infinity
//   share    out[l, i] = x[l, i] / (sum of line l)
//   reduce   out[l] = sum, mean, largest or smallest of line l; NaN is ignored by the last two
//
//   in    x, lines of floats as rows or columns of a part of a matrix
//   out   floats as above
//
// Sums run in 32 lanes by index and then pairwise, which is what a warp does by itself: lane l of the warp is lane l of the sum. Lines
// of at most 1024 numbers stay in registers between the passes; longer ones go through `out`, where each lane reads what it wrote.
//
// Who does what: a warp to a line, eight warps to a thread block. No shared memory.
#include "selector/arithmetic.cuh"

constexpr u32 KEPT = 32; // numbers of a lane that stay in registers

__device__ __forceinline__ u32 line_of_warp() { return (blockIdx.x * blockDim.x + threadIdx.x) / 32; }

// Numbers of a line.
struct Line {
    float* numbers;
    u64 step;

    __device__ __forceinline__ float& operator[](u32 index) const { return numbers[index * step]; }
};

// Reads it only.
__device__ __forceinline__ Line values_of(const LinesParams& params, u32 line) {
    const u32 head = line / params.lines_of_head, own = line % params.lines_of_head;
    return {const_cast<float*>(params.value) + head * params.head_stride + u64(own) * params.line_stride, params.step};
}

__device__ __forceinline__ Line out_of(const LinesParams& params, u32 line) {
    const u32 head = line / params.lines_of_head, own = line % params.lines_of_head;
    return {params.out + head * params.out_head_stride + u64(own) * params.out_line_stride, params.out_step};
}

// A line of at most SLOTS * 32 numbers.
template <u32 SLOTS>
__device__ __forceinline__ void softmax_short(Line values, Line out, u32 length, u32 lane) {
    float kept[SLOTS];
    float most = -INFINITE;
    bool is_empty = true;
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        if (i * 32 >= length) break;
        const u32 index = i * 32 + lane;
        kept[i] = index < length ? values[index] : -INFINITE;
        is_empty &= kept[i] == -INFINITE;
        most = larger(most, kept[i]);
    }
    is_empty = __all_sync(ALL_LANES, is_empty);
    most = largest_of_lanes(most);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        if (i * 32 >= length) break;
        kept[i] = exponential(kept[i] - most);
        if (i * 32 + lane < length) sum += kept[i];
    }
    sum = sum_of_lanes(sum);
#pragma unroll
    for (u32 i = 0; i < SLOTS; ++i) {
        const u32 index = i * 32 + lane;
        if (index < length) out[index] = is_empty ? 0.0f : kept[i] / sum;
    }
}

__device__ __forceinline__ void softmax_long(Line values, Line out, u32 length, u32 lane) {
    float most = -INFINITE;
    bool is_empty = true;
    for (u32 index = lane; index < length; index += 32) {
        is_empty &= values[index] == -INFINITE;
        most = larger(most, values[index]);
    }
    is_empty = __all_sync(ALL_LANES, is_empty);
    most = largest_of_lanes(most);
    float sum = 0.0f;
    for (u32 index = lane; index < length; index += 32) {
        const float exponent = exponential(values[index] - most);
        out[index] = exponent;
        sum += exponent;
    }
    sum = sum_of_lanes(sum);
    for (u32 index = lane; index < length; index += 32) out[index] = is_empty ? 0.0f : out[index] / sum;
}

extern "C" __global__ void __launch_bounds__(256) selector_softmax(const __grid_constant__ LinesParams params) {
    wait_for_turn();
    const u32 line = line_of_warp(), lane = threadIdx.x % 32;
    if (line >= params.lines) return;
    const Line values = values_of(params, line), out = out_of(params, line);
    if (params.length <= 9 * 32) {
        softmax_short<9>(values, out, params.length, lane);
    } else if (params.length <= KEPT * 32) {
        softmax_short<KEPT>(values, out, params.length, lane);
    } else {
        softmax_long(values, out, params.length, lane);
    }
}

extern "C" __global__ void __launch_bounds__(256) selector_share(const __grid_constant__ LinesParams params) {
    wait_for_turn();
    const u32 line = line_of_warp(), lane = threadIdx.x % 32;
    if (line >= params.lines) return;
    const Line values = values_of(params, line), out = out_of(params, line);
    float sum = 0.0f;
#pragma unroll 8
    for (u32 index = lane; index < params.length; index += 32) sum += values[index];
    sum = sum_of_lanes(sum);
#pragma unroll 8
    for (u32 index = lane; index < params.length; index += 32) out[index] = values[index] / sum;
}

extern "C" __global__ void __launch_bounds__(256) selector_reduce(const __grid_constant__ LinesParams params) {
    wait_for_turn();
    const u32 line = line_of_warp(), lane = threadIdx.x % 32;
    if (line >= params.lines) return;
    const Line values = values_of(params, line);
    float sum = 0.0f, least = INFINITE, most = -INFINITE;
#pragma unroll 8
    for (u32 index = lane; index < params.length; index += 32) {
        const float x = values[index];
        sum += x;
        least = smaller(least, x), most = larger(most, x);
    }
    float result;
    switch (Reduction(params.how)) {
        case Reduction::SUM: result = sum_of_lanes(sum); break;
        case Reduction::MEAN: result = sum_of_lanes(sum) / float(params.length); break;
        case Reduction::MAX: result = largest_of_lanes(most); break;
        default: result = smallest_of_lanes(least);
    }
    if (lane == 0) params.out[line] = result;
}
