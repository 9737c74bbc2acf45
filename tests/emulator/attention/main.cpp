// Runs random cases of attention_plan and attention on the emulated device:
//
//     attention FIRST_SEED COUNT
//
// Every case is launched under several schedules. The first output is compared with a reference, the others with the first, bit by bit:
// no order of threads may change the result.
#include <cstdio>
#include <vector>

#include "case.h"
#include "schedules.h"

namespace {

void plan(Case& it) {
    emulator::name_of_barrier = nullptr;
    launch({it.plan_blocks, PLAN_THREADS, 0, OMNI_BF16, true}, any_schedule(it.random), it.random, [&] { run_plan(it.params); });
}

void attend(Case& it) {
    emulator::name_of_barrier = ATTENTION.name_of_barrier;
    it.clear_output();
    emulator::Grid grid{it.params.plan.ctas, ATTENTION.threads, ATTENTION.shared_bytes, OMNI_BF16, false};
    launch(grid, any_schedule(it.random), it.random, [&] { ATTENTION.run(it.params); });
}

// Output and lse, to compare bits.
std::vector<u8> bits_of_output(const Case& it) {
    const u8* out = static_cast<const u8*>(it.params.out.data);
    const u8* lse = reinterpret_cast<const u8*>(it.lse);
    std::vector<u8> bits(out, out + it.out_numbers * sizeof(u16));
    bits.insert(bits.end(), lse, lse + it.lse_numbers * sizeof(float));
    return bits;
}

// What a set of cases has covered, so that it is seen when it covers little.
struct Coverage {
    u32 live = 0, filled = 0, cuts_inside = 0;

    void add(const Plan& plan) {
        live += plan.head->live;
        filled += plan.head->fill;
        for (u32 i = 0; i < plan.ctas; ++i) cuts_inside += plan.cuts[i].tile > 0;
    }
};

void run(u64 seed, Coverage& coverage) {
    Case it(seed);
    emulator::running_case = "seed " + std::to_string(seed) + ": " + it.text();
    plan(it);
    check_plan(it);
    coverage.add(it.params.plan);
    attend(it);
    check_output(it);
    std::vector<u8> first = bits_of_output(it);
    for (u32 i = 1; i < SCHEDULES; ++i) {
        attend(it);
        if (bits_of_output(it) == first) continue;
        check_output(it);
        emulator::fail("another order of threads gives other bits");
    }
}

} // namespace

int main(int arguments, char** values) {
    Coverage coverage;
    u64 cases = for_each_seed(arguments, values, [&](u64 seed) { run(seed, coverage); });
    std::printf("%llu cases passed: ", cases);
    std::printf("%u rows computed, %u filled, %u divided\n", coverage.live, coverage.filled, coverage.cuts_inside);
    return 0;
}
