// runtime_kernels/gemm/gemm_q_sm80.cu for the emulator.
#define EMULATOR_SHARED
#include "cuda.h"

#define memory (*dynamic_shared_memory)
#include "gemm/gemm_q_sm80.cu"
#undef memory

#include "gemm_q.h"

static void run(const Case& any) {
    const auto& it = static_cast<const GemmQCase&>(any);
    gemm_q(it.params, it.operands);
}

const GemmKernel GEMM = {THREADS, SHARED_BYTES, run, nullptr};
