// runtime_kernels/gemm/plan.cu for the emulator.
#include "cuda.h"

#include "gemm/plan.cu"
#include "kernels.h"

void run_plan(const GemmParams& params) { gemm_plan(params); }
