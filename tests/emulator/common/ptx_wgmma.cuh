// Stands in for runtime_kernels/common/ptx_wgmma.cuh, as ptx.cuh does for its own.
#pragma once
#include "common/ptx.cuh"

inline void wgmma_m64n64k16_ss(float (&d)[128], u64 a, u64 b, u32 accumulate) { emulator::wgmma(d, 64, {}, a, b, accumulate); }
inline void wgmma_m64n128k16_ss(float (&d)[128], u64 a, u64 b, u32 accumulate) { emulator::wgmma(d, 128, {}, a, b, accumulate); }
inline void wgmma_m64n192k16_ss(float (&d)[128], u64 a, u64 b, u32 accumulate) { emulator::wgmma(d, 192, {}, a, b, accumulate); }
inline void wgmma_m64n256k16_ss(float (&d)[128], u64 a, u64 b, u32 accumulate) { emulator::wgmma(d, 256, {}, a, b, accumulate); }
