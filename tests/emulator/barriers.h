// What threads wait at: named barriers, mbarriers, counters in global memory.
#pragma once
#include "common/types.cuh"

namespace emulator {

void bar_sync(u32 id, u32 threads);
void bar_arrive(u32 id, u32 threads);

void mbarrier_init(u32 address, u32 arrivals);
// Arrives, and lets the phase wait for `bytes` more of copies.
void mbarrier_arrive(u32 address, u32 bytes);
// Waits until the phase of this parity is over.
void mbarrier_wait(u32 address, u32 parity);

u32 ld_acquire(const u32* counter);
void red_release_add(u32* counter, u32 value);

} // namespace emulator
