// runtime_kernels/attention/plan.cu for the emulator.
#include "cuda.h"

#include "attention/plan.cu"
