// The online softmax over the tiles of a row, for the two rows that a thread shares with the three others of its quad.
//
// Weights are exp2(scale * (score - reference)). The reference is the largest score so far, except that it stays while the
// largest exceeds it by less than LAZY powers of two: weights stay below 2^LAZY, which 16 bits hold as well as numbers
// below one, and in almost every tile nothing needs rescaling (the idea is FlashAttention-4's).
//
// An accumulator of m64nN is s[4 * j + 2 * r + c]: row g + 8 * r and column 8 * j + 2 * t + c of the warp's 16 rows, with
// g = lane / 4 and t = lane % 4.
#pragma once
#include "attention/config.cuh"
#include "common/math.cuh"

constexpr float LAZY = 8.0f;

struct Softmax {
    float scale; // factor of the scores times log2(e), above zero
    float reference[2];
    float sum[2]; // of this thread's columns
    float left_out[2]; // minus infinity for a half of the tile's columns that only the other q-block of a pair attends to, else zero

    __device__ __forceinline__ Softmax(float scale) : scale(scale) {
        reset();
        left_out[0] = left_out[1] = 0.0f;
    }

    // For the next row.
    __device__ __forceinline__ void reset() {
        reference[0] = reference[1] = -INFINITE;
        sum[0] = sum[1] = 0.0f;
    }

    // Takes the scores of a tile into account. True where what was accumulated so far must be multiplied by `factor`, the same for
    // all threads of a warp.
    __device__ __forceinline__ bool raise(const float (&s)[64], float (&factor)[2]) {
        float largest[2];
        find_largest(s, largest);
        // Where a row has seen nothing yet both are minus infinity; their difference is NaN, which fmaxf passes over.
        float rise = fmaxf(largest[0] - reference[0], largest[1] - reference[1]) * scale;
        if (!__any_sync(0xFFFFFFFF, rise > LAZY)) return false;
        move_to(largest, factor);
        return true;
    }

    // The same, with the largest as reference whatever it is.
    __device__ __forceinline__ void follow(const float (&s)[64], float (&factor)[2]) {
        float largest[2];
        find_largest(s, largest);
        move_to(largest, factor);
    }

    // The largest of the reference and the scores.
    __device__ __forceinline__ void find_largest(const float (&s)[64], float (&largest)[2]) const {
        largest[0] = reference[0];
        largest[1] = reference[1];
#pragma unroll
        for (u32 half = 0; half < Q_PARTS; ++half) {
            constexpr u32 GROUPS = 16 / Q_PARTS;
            float found[2] = {-INFINITE, -INFINITE};
            float (&to)[2] = Q_PARTS == 1 ? largest : found;
#pragma unroll
            for (u32 j = GROUPS * half; j < GROUPS * (half + 1); ++j) {
#pragma unroll
                for (u32 r = 0; r < 2; ++r) to[r] = fmaxf(to[r], fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
            }
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                if (Q_PARTS > 1) largest[r] = fmaxf(largest[r], found[r] + left_out[half]);
            }
        }
        largest[0] = quad_max(largest[0]);
        largest[1] = quad_max(largest[1]);
    }

    __device__ __forceinline__ void move_to(const float (&largest)[2], float (&factor)[2]) {
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            factor[r] = ex2_approx((reference[r] - largest[r]) * scale);
            if (MASKS && largest[r] == -INFINITE) factor[r] = 1.0f;
            reference[r] = largest[r];
            sum[r] *= factor[r];
        }
    }

    // Turns the scores of columns 8 * FROM .. 8 * TO into weights.
    template <u32 FROM, u32 TO>
    __device__ __forceinline__ void weigh(float (&s)[64]) {
        float offset[2];
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            // A row that attends to nothing yet: its scores are minus infinity too, and their weights zero.
            offset[r] = MASKS && reference[r] == -INFINITE ? 0.0f : reference[r] * scale;
        }
#pragma unroll
        for (u32 j = FROM; j < TO; ++j) {
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
#pragma unroll
                for (u32 c = 0; c < 2; ++c) {
                    float& x = s[4 * j + 2 * r + c];
                    x = ex2_approx(fmaf(x, scale, Q_PARTS == 1 ? -offset[r] : left_out[j / 8] - offset[r]));
                    sum[r] += x;
                }
            }
        }
    }
};
