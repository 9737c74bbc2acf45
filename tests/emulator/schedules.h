// What the programs of random cases share: the seeds that they are told, and random schedules for the launches of a case.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "device.h"

// Runs a case for each seed of the arguments FIRST_SEED COUNT, and says how many there were.
template <class F>
u64 for_each_seed(int arguments, char** values, F run) {
    if (arguments != 3) {
        std::fprintf(stderr, "usage: %s FIRST_SEED COUNT\n", values[0]);
        std::exit(2);
    }
    u64 first = std::strtoull(values[1], nullptr, 10), count = std::strtoull(values[2], nullptr, 10);
    for (u64 seed = first; seed < first + count; ++seed) run(seed);
    return count;
}

// Launches under different orders of threads whose results are compared.
constexpr u32 SCHEDULES = 2;

// A slow engine shows who does not wait for it, and a quick one who lets it begin too early; most of all one of them beside the other.
// Pairs are the chances of a copy and of a product.
inline emulator::Schedule any_schedule(emulator::Random& random) {
    const double quick = 1, slow = 0.004;
    const double chances[][2] = {{quick, slow}, {slow, quick}, {slow, quick}, {0.1, 0.1}};
    const double(&chosen)[2] = chances[random.below(4)];
    emulator::Schedule schedule;
    schedule.copy = chosen[0];
    schedule.product = chosen[1];
    schedule.splits_warps = random.one_in(2);
    schedule.sleep = random.one_in(2) ? 0.0005 : 0;
    return schedule;
}
