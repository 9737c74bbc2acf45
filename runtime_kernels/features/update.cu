// The differences of a feature at an update, which takes the place of those at the one before:
//
//     F_0 = feature        F_{i+1} = (F_i - F_i of the update before) / distance        for the orders that are known
//
// feature and terms: contiguous, of one length, bf16 or fp16. The last of the `count` terms may hold anything before.
// Each number is read and written once: thread blocks go through all pieces of 16 bytes. No shared memory.
//
// Source: TaylorSeer, arXiv 2503.06923; the same as src/cpu/forecast.rs.
#include "features/features.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) features_update(const __grid_constant__ FeaturesUpdate params) {
    for (u64 piece = first_piece(); piece < params.pieces; piece += piece_step()) {
        Piece now = load(params.feature, piece);
#pragma unroll
        for (u32 order = 0; order <= MAX_ORDER; ++order) {
            if (order >= params.count) break;
            const bool is_last = order + 1 == params.count;
            Piece before;
            if (!is_last) before = load(params.terms[order], piece);
            store(params.terms[order], piece, now);
            if (is_last) break;
#pragma unroll
            for (u32 i = 0; i < WIDTH; ++i) now.x[i] = (now.x[i] - before.x[i]) / params.distance;
        }
    }
}
