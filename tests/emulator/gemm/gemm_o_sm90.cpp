// runtime_kernels/gemm/gemm_o_sm90.cu for the emulator, and the names of its barriers.
#define EMULATOR_SHARED
#include "cuda.h"

#define memory (*dynamic_shared_memory)
#include "gemm/gemm_o_sm90.cu"
#undef memory

#include "gemm_o.h"
#include "maps.h"

using Shared = SharedMemory<GemmO::Detail>;

static std::string name_of(u32 offset) {
    return name_in({BARRIERS(Shared, full), BARRIERS(Shared, empty), BARRIERS(Shared, tile_full), BARRIERS(Shared, tile_empty)}, offset);
}

// With tensor maps as src/kernels encodes them.
static void run(const Case& any) {
    const auto& it = static_cast<const GemmOCase&>(any);
    const GemmShape& shape = it.gemm.shape;
    const Extent output = {shape.batch, 1, shape.tokens, shape.columns};
    TermMaps terms{};
    for (u32 term = 0; term < it.params.count; ++term) terms.of[term] = map_of(it.operands.terms[term], output, Q_BLOCK);
    gemm_o(it.params, map_of(it.operands.o, {shape.batch, shape.heads, shape.q_tokens, HEAD_DIM}, Q_BLOCK),
           map_of(it.operands.further, {shape.batch, 1, shape.tokens, it.operands.further_inputs}, Q_BLOCK),
           map_of(it.operands.w, {1, 1, shape.columns, it.inputs()}, TILE_COLUMNS), map_of(it.params.out, output, 64), terms);
}

const GemmKernel GEMM = {THREADS, sizeof(Shared), run, name_of};
