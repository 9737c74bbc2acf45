// A weighted sum of tensors: the forecast of an output that a step reuses, or the difference of two.
//
//     out = sum over i of weights[i] * terms[i]
//
// out and terms: contiguous, of one length, bf16 or fp16; out may be one of the terms. Each number is read and written once: thread blocks go
// through all pieces of 16 bytes. No shared memory.
#include "features/features.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) features_sum(const __grid_constant__ FeaturesSum params) {
    for (u64 piece = first_piece(); piece < params.pieces; piece += piece_step()) {
        Piece sum = {};
#pragma unroll
        for (u32 term = 0; term <= MAX_ORDER; ++term) {
            if (term >= params.count) break;
            const Piece next = load(params.terms[term], piece);
#pragma unroll
            for (u32 i = 0; i < WIDTH; ++i) sum.x[i] += params.weights[term] * next.x[i];
        }
        store(params.out, piece, sum);
    }
}
