// runtime_kernels/attention/plan.cu for the emulator.
#include "cuda.h"

#include "attention/plan.cu"
#include "kernels.h"

void run_plan(const AttentionParams& params) { attention_plan(params); }
