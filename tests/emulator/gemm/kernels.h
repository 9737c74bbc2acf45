// The kernels that are emulated, as the tests call them.
#pragma once
#include <string>

#include "common/ptx.cuh"
#include "gemm/gemm_params.cuh"

constexpr u32 PLAN_THREADS = 1024;

// gemm_plan: any number of thread blocks.
void run_plan(const GemmParams& params);

struct Case;

// A kernel that computes a projection from a plan, and how it must be launched: plan.ctas thread blocks.
struct GemmKernel {
    u32 threads;
    u32 shared_bytes;
    // With a GemmQCase or a GemmOCase, whichever is the kernel's.
    void (*run)(const Case& it);
    std::string (*name_of_barrier)(u32 offset);
};

// Of the one kernel that the program is linked with.
extern const GemmKernel GEMM;
