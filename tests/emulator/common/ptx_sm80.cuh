// Stands in for runtime_kernels/common/ptx_sm80.cuh, as ptx.cuh does for its own.
#pragma once
#include "../numbers.h"
#include "../tensor.h"
#include "cuda.h"

inline u32 tid_x() { return threadIdx.x; }
inline float cvt_f32_f16(u16 x) { return emulator::from_f16(x); }

inline void cp_async_cg_16(u32 destination, const void* source, u32 bytes) { emulator::cp_async(destination, source, bytes); }
inline void cp_async_commit_group() { emulator::cp_async_commit_group(); }
template <u32 PENDING>
void cp_async_wait_group() {
    emulator::cp_async_wait_group(PENDING);
}

inline void ldmatrix_x4(u32 (&d)[4], u32 address) { emulator::ldmatrix_x4(d, address, false); }
inline void ldmatrix_x4_trans(u32 (&d)[4], u32 address) { emulator::ldmatrix_x4(d, address, true); }
inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emulator::mma_m16n8k16(d, a, b0, b1); }
