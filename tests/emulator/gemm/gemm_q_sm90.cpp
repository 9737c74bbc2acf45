// runtime_kernels/gemm/gemm_q_sm90.cu for the emulator, and the names of its barriers.
#define EMULATOR_SHARED
#include "cuda.h"

#define memory (*dynamic_shared_memory)
#include "gemm/gemm_q_sm90.cu"
#undef memory

#include "gemm_q.h"
#include "maps.h"

using Shared = SharedMemory<GemmQ::Detail>;

static std::string name_of(u32 offset) {
    return name_in({BARRIERS(Shared, full), BARRIERS(Shared, empty), BARRIERS(Shared, tile_full), BARRIERS(Shared, tile_empty)}, offset);
}

// With tensor maps as src/kernels encodes them.
static void run(const Case& any) {
    const auto& it = static_cast<const GemmQCase&>(any);
    const GemmShape& shape = it.gemm.shape;
    // Copies do not mind what numbers are: two of 16 bits are one of 32.
    Tensor4 rotary{const_cast<float*>(it.params.rotary), 0, 0, 2 * HEAD_DIM};
    gemm_q(it.params, map_of(it.operands.x, {shape.batch, 1, shape.tokens, it.operands.inputs}, Q_BLOCK),
           map_of(it.operands.w, {1, 1, shape.heads * HEAD_DIM, it.operands.inputs}, HEAD_DIM),
           map_of(rotary, {1, 1, shape.q_tokens, 2 * HEAD_DIM}, Q_BLOCK),
           map_of(it.params.out, {shape.batch, shape.heads, shape.tokens, HEAD_DIM}, 64));
}

const GemmKernel GEMM = {THREADS, sizeof(Shared), run, name_of};
