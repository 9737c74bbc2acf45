// Stands in for runtime_kernels/common/ptx.cuh: the same functions, carried out by the emulator. This folder comes first in the search
// for includes.
#pragma once
#include "../tensor.h"
#include "../numbers.h"
#include "cuda.h"

// The emulator's own description of a tensor, in the place of the driver's.
struct alignas(64) TensorMap {
    emulator::TensorBox box;
    u8 padding[128 - sizeof(emulator::TensorBox)];
};
static_assert(sizeof(TensorMap) == 128, "as large as a CUtensorMap");

constexpr u64 EVICT_NORMAL = 0;
constexpr u64 EVICT_FIRST = 1;
constexpr u64 EVICT_LAST = 2;

inline u32 shared_address(const void* pointer) { return emulator::shared_address(pointer); }

inline float ex2_approx(float x) { return std::exp2(x); }
inline float lg2_approx(float x) { return std::log2(x); }
inline float rcp_approx(float x) { return 1 / x; }
inline float rsqrt_approx(float x) { return 1 / std::sqrt(x); }
inline float cvt_f32_f16(u32 bits) { return emulator::from_f16(u16(bits)); }
inline u32 cvt_rn_bf16x2(float low, float high) { return emulator::to_bf16(low) | u32(emulator::to_bf16(high)) << 16; }
inline u32 cvt_rn_f16x2(float low, float high) { return emulator::to_f16(low) | u32(emulator::to_f16(high)) << 16; }

inline void bar_sync(u32 id, u32 threads) { emulator::bar_sync(id, threads); }
inline void bar_arrive(u32 id, u32 threads) { emulator::bar_arrive(id, threads); }
inline void red_release_gpu_add(u32* counter, u32 value) { emulator::red_release_add(counter, value); }
inline u32 ld_acquire_gpu(const u32* counter) { return emulator::ld_acquire(counter); }

inline void mbarrier_init(u32 barrier, u32 arrivals) { emulator::mbarrier_init(barrier, arrivals); }
inline void mbarrier_arrive(u32 barrier) { emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect_tx(u32 barrier, u32 bytes) { emulator::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(u32 barrier, u32 parity) { emulator::mbarrier_wait(barrier, parity); }

// Memory is coherent here: a fence that is missing is not found, only what comes in between.
inline void fence_mbarrier_init() {}
inline void fence_proxy_async() { emulator::yield_sometimes(); }
inline void fence_proxy_async_global() { emulator::yield_sometimes(); }

template <u32 COUNT>
void setmaxnreg_inc() {}
template <u32 COUNT>
void setmaxnreg_dec() {}

inline void prefetch_tensormap(const TensorMap*) {}
inline void cp_async_bulk(u32 destination, const void* source, u32 bytes, u32 barrier) {
    emulator::cp_async_bulk(destination, source, bytes, barrier);
}
inline void cp_async_bulk_tensor_4d(u32 destination, const TensorMap* map, u32 barrier, u32 x0, u32 x1, u32 x2, u32 x3, u64) {
    emulator::cp_async_bulk_tensor(destination, map->box, barrier, {x0, x1, x2, x3});
}
inline void cp_async_bulk_tensor_store_4d(const TensorMap* map, u32 source, u32 x0, u32 x1, u32 x2, u32 x3) {
    emulator::cp_async_bulk_tensor_store(map->box, source, {x0, x1, x2, x3});
}
inline void cp_async_bulk_commit_group() { emulator::cp_async_bulk_commit_group(); }
template <u32 PENDING>
void cp_async_bulk_wait_group_read() {
    emulator::cp_async_bulk_wait_group_read(PENDING);
}
inline void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) { emulator::stmatrix_x4(address, a, b, c, d); }

inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit_group() { emulator::wgmma_commit_group(); }
template <u32 PENDING>
void wgmma_wait_group() {
    emulator::wgmma_wait_group(PENDING);
}
// Keeps the compiler of the host from the same.
template <u32 COUNT, u32 SIZE>
void keep_behind(float (&)[SIZE]) {
    asm volatile("" ::: "memory");
}
inline void keep_apart() {}

inline void wgmma_m64n128k16(float (&d)[64], u64 a, u64 b, u32 accumulate) { emulator::wgmma(d, 128, {}, a, b, accumulate); }
// By reference: registers are read when the product is computed, not when it is issued.
inline void wgmma_m64nNk16_rs(float (&d)[64], const u32& a0, const u32& a1, const u32& a2, const u32& a3, u64 b, u32 accumulate) {
    emulator::wgmma(d, 128, {&a0, &a1, &a2, &a3}, 0, b, accumulate);
}
inline void wgmma_m64nNk16_rs(float (&d)[32], const u32& a0, const u32& a1, const u32& a2, const u32& a3, u64 b, u32 accumulate) {
    emulator::wgmma(d, 64, {&a0, &a1, &a2, &a3}, 0, b, accumulate);
}
