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

// The rotary embedding of 16 pairs of channels, those from 16 part on. turns(chunk, r) has cosine and sine of pairs 2 chunk and 2 chunk + 1 among
// them, for row r.
template <class F>
__device__ __forceinline__ void rotate(float* x, u32 part, bool halves, u32 quad, F turns) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        if (halves) {
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                float4 two = turns(4 * j + quad, r);
                float* a = x + 4 * (2 * part + j) + 2 * r;
                float* b = a + HEAD_DIM / 4;
                turn(a[0], b[0], two.x, two.y);
                turn(a[1], b[1], two.z, two.w);
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                float4 two = turns(2 * j + quad / 2, r);
                float* a = x + 4 * (4 * part + j) + 2 * r;
                turn(a[0], a[1], quad % 2 ? two.z : two.x, quad % 2 ? two.w : two.y);
            }
        }
    }
}
