// Runs random cases of gemm_plan and of a projection on the emulated device:
//
//     gemm FIRST_SEED COUNT
//
// Every case is launched under several schedules. The first output is compared with a reference, the others with the first, bit by bit:
// no order of threads may change the result.
#include <cstdio>

#include "case.h"
#include "schedules.h"

namespace {

void plan(Case& it) {
    emulator::name_of_barrier = nullptr;
    launch({it.plan_blocks, PLAN_THREADS, 0, OMNI_BF16, true}, any_schedule(it.random), it.random, [&] { run_plan(it.gemm); });
}

void project(Case& it) {
    emulator::name_of_barrier = GEMM.name_of_barrier;
    it.clear_output();
    emulator::Grid grid{it.gemm.plan.ctas, GEMM.threads, GEMM.shared_bytes, OMNI_BF16, false};
    launch(grid, any_schedule(it.random), it.random, [&] { GEMM.run(it); });
}

// What a set of cases has covered, so that it is seen when it covers little.
struct Coverage {
    u32 live = 0, cuts_inside = 0;

    void add(const Plan& plan) {
        live += plan.head->live;
        for (u32 i = 0; i < plan.ctas; ++i) cuts_inside += plan.cuts[i].tile > 0;
    }
};

void run(u64 seed, Coverage& coverage) {
    std::unique_ptr<Case> it = make_case(seed);
    emulator::running_case = "seed " + std::to_string(seed) + ": " + it->text();
    plan(*it);
    it->check_plan();
    coverage.add(it->gemm.plan);
    project(*it);
    it->check_output();
    std::vector<u16> first(it->out, it->out + it->out_numbers);
    for (u32 i = 1; i < SCHEDULES; ++i) {
        project(*it);
        if (std::equal(first.begin(), first.end(), it->out)) continue;
        it->check_output();
        emulator::fail("another order of threads gives other bits");
    }
}

} // namespace

int main(int arguments, char** values) {
    Coverage coverage;
    u64 cases = for_each_seed(arguments, values, [&](u64 seed) { run(seed, coverage); });
    std::printf("%llu cases passed: %u tiles computed, %u divided\n", cases, coverage.live, coverage.cuts_inside);
    return 0;
}
