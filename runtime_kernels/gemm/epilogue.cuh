// What happens to a row of a head behind GEMM-Q: bias, RMSNorm and rotary embedding, on accumulators of mma: a thread holds of 8 columns two
// neighbours, in two rows that are 8 apart.
//
//     y = x + bias
//     y = y / sqrt(mean(y^2) + epsilon) * norm                                              over the channels of the head
//     y[a], y[b] = y[a] cos - y[b] sin, y[b] cos + y[a] sin                                 for each pair of channels a, b
#pragma once
#include "common/math.cuh"
#include "gemm/config.cuh"
#include "gemm/gemm_params.cuh"

// A pair of numbers at an even place.
__device__ __forceinline__ float2 load_pair(const float* from) {
    return __ldg(reinterpret_cast<const float2*>(from));
}

__device__ __forceinline__ void turn(float& a, float& b, float cosine, float sine) {
    float x = a, y = b;
    a = fmaf(x, cosine, -y * sine);
    b = fmaf(y, cosine, x * sine);
}

// Bias and RMSNorm. x[4 j + 2 r + c] is column 8 j + 2 quad + c of row r; the four threads with the same rows are called together.
__device__ __forceinline__ void normalise(float* x, const GemmQParams& params, u32 head, u32 quad) {
    if (params.bias != nullptr) {
        const float* bias = params.bias + head * HEAD_DIM + 2 * quad;
#pragma unroll
        for (u32 j = 0; j < HEAD_DIM / 8; ++j) {
            float2 pair = load_pair(bias + 8 * j);
#pragma unroll
            for (u32 r = 0; r < 2; ++r) x[4 * j + 2 * r] += pair.x, x[4 * j + 2 * r + 1] += pair.y;
        }
    }
    if (params.norm == nullptr) return;
    float squares[2] = {0.0f, 0.0f};
#pragma unroll
    for (u32 i = 0; i < HEAD_DIM / 2; ++i) squares[i / 2 % 2] = fmaf(x[i], x[i], squares[i / 2 % 2]);
    float factor[2];
#pragma unroll
    for (u32 r = 0; r < 2; ++r) factor[r] = rsqrt_approx(quad_sum(squares[r]) * (1.0f / HEAD_DIM) + params.epsilon);
#pragma unroll
    for (u32 j = 0; j < HEAD_DIM / 8; ++j) {
        float2 weight = load_pair(params.norm + 8 * j + 2 * quad);
#pragma unroll
        for (u32 r = 0; r < 2; ++r) x[4 * j + 2 * r] *= factor[r] * weight.x, x[4 * j + 2 * r + 1] *= factor[r] * weight.y;
    }
}

// The rotary embedding of HEADS heads behind each other. turns(pair, r) are cosine and sine of a pair of channels for row r.
template <u32 HEADS, class F>
__device__ __forceinline__ void rotate(float* x, bool halves, u32 quad, F turns) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        if (halves) {
#pragma unroll
            for (u32 j = 0; j < HEAD_DIM / 8; ++j) {
                // Channels 8 i + 2 quad + c of the first half, and those of the second.
                u32 i = j / 2, c = j % 2;
                float2 one = turns(8 * i + 2 * quad + c, r);
#pragma unroll
                for (u32 head = 0; head < HEADS; ++head) {
                    float* a = x + head * (HEAD_DIM / 2) + 4 * i + 2 * r + c;
                    turn(a[0], a[HEAD_DIM / 4], one.x, one.y);
                }
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < HEAD_DIM / 8; ++j) {
                float2 one = turns(4 * j + quad, r);
#pragma unroll
                for (u32 head = 0; head < HEADS; ++head) {
                    float* a = x + head * (HEAD_DIM / 2) + 4 * j + 2 * r;
                    turn(a[0], a[1], one.x, one.y);
                }
            }
        }
    }
}
