// The kernels that are emulated, as the tests call them.
#pragma once
#include <string>

#include "common/ptx.cuh"
#include "params.cuh"

constexpr u32 PLAN_THREADS = 1024;

// attention_plan: any number of thread blocks.
void run_plan(const AttentionParams& params);

// A kernel that computes attention from a plan, and how it must be launched: plan.ctas thread blocks.
struct AttentionKernel {
    u32 threads;
    u32 shared_bytes;
    void (*run)(const AttentionParams& params);
    std::string (*name_of_barrier)(u32 offset);
};

// attention_sm90.cpp or attention_sm80.cpp, whichever the program is linked with.
extern const AttentionKernel ATTENTION;
