// The online softmax over the tiles of a row, for the two rows that a thread shares with the three others of its quad.
//
// Weights are exp2(scale * (score - reference)). The reference is the largest score so far, except that it stays while the
// largest exceeds it by less than LAZY powers of two: weights stay below 2^LAZY, which 16 bits hold as well as numbers
// below one, and the accumulators need no rescaling in almost every tile (the idea is FlashAttention-4's).
//
// An accumulator of m64nN is s[4 * j + 2 * r + c]: row g + 8 * r and column 8 * j + 2 * t + c of the warp's 16 rows, with
// g = lane / 4 and t = lane % 4.
#pragma once
#include "attention/config.cuh"
#include "common/math.cuh"

constexpr float LAZY = 8.0f;

struct Softmax {
    float scale; // factor of the scores times log2(e), above zero
    float lazy;  // LAZY in units of scores
    float reference[2];
    float sum[2]; // of this thread's columns

    __device__ __forceinline__ Softmax(float scale) : scale(scale), lazy(LAZY / scale), reference{-INFINITE, -INFINITE}, sum{0, 0} {}

    // Turns the scores of a tile into weights. True where what was accumulated must be multiplied by `factor` first, the same for
    // all threads of the warp.
    __device__ __forceinline__ bool weigh(float (&s)[64], float (&factor)[2]) {
        float largest[2] = {reference[0], reference[1]};
#pragma unroll
        for (u32 j = 0; j < 16; ++j) {
#pragma unroll
            for (u32 r = 0; r < 2; ++r) largest[r] = fmaxf(largest[r], fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        }
        largest[0] = quad_max(largest[0]);
        largest[1] = quad_max(largest[1]);
        // Where a row has seen nothing yet both are minus infinity: their difference is NaN, and nothing to rescale.
        bool rescales = largest[0] - reference[0] > lazy || largest[1] - reference[1] > lazy;
        rescales = __any_sync(0xFFFFFFFF, rescales);
        if (rescales) {
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                factor[r] = largest[r] == reference[r] ? 1.0f : ex2_approx((reference[r] - largest[r]) * scale);
                reference[r] = largest[r];
                sum[r] *= factor[r];
            }
        }
        float offset[2];
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            offset[r] = reference[r] * scale;
            // A row that attends to nothing yet: its scores are minus infinity too, and their weights zero.
            if (MASKS && reference[r] == -INFINITE) offset[r] = 0.0f;
        }
#pragma unroll
        for (u32 j = 0; j < 16; ++j) {
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
#pragma unroll
                for (u32 c = 0; c < 2; ++c) {
                    float& x = s[4 * j + 2 * r + c];
                    x = ex2_approx(fmaf(x, scale, -offset[r]));
                    sum[r] += x;
                }
            }
        }
        return rescales;
    }
};
