// Random numbers that are the same on every machine: a seed that failed once fails again.
#pragma once
#include "common/types.cuh"

namespace emulator {

// splitmix64.
struct Random {
    u64 state;

    explicit Random(u64 seed) : state(seed) {}

    u64 next() {
        u64 z = state += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }

    u32 below(u32 end) { return u32((next() >> 32) * end >> 32); }

    // From `first` to `last`, both included.
    u32 between(u32 first, u32 last) { return first + below(last - first + 1); }

    double uniform() { return double(next() >> 11) * 0x1p-53; }

    bool chance(double probability) { return uniform() < probability; }

    bool one_in(u32 count) { return below(count) == 0; }
};

} // namespace emulator
