// runtime_kernels/attention/attention_sm80.cu for the emulator.
#define EMULATOR_SHARED
#include "cuda.h"

#define shared (*dynamic_shared_memory)
#include "attention/attention_sm80.cu"
#undef shared

#include "kernels.h"

static void run(const AttentionParams& params) { attention(params); }

const AttentionKernel ATTENTION = {THREADS, Q_BYTES + STAGES * STAGE_BYTES + 512, run, nullptr};
