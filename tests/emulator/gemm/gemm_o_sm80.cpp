// runtime_kernels/gemm/gemm_o_sm80.cu for the emulator.
#define EMULATOR_SHARED
#include "cuda.h"

#define memory (*dynamic_shared_memory)
#include "gemm/gemm_o_sm80.cu"
#undef memory

#include "gemm_o.h"

static void run(const Case& any) {
    const auto& it = static_cast<const GemmOCase&>(any);
    gemm_o(it.params, it.operands);
}

const GemmKernel GEMM = {THREADS, SHARED_BYTES, run, nullptr};
