// The scheduler: which thread runs, when engines finish what was issued, and when nothing can go on.
#include "device.h"

#include <signal.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fiber.h"

Dim3 threadIdx, blockIdx, blockDim, gridDim;

// The dynamic shared memory of the block that runs; kernels declare it as `memory` (see cuda.h).
u8 (*dynamic_shared_memory)[];

namespace emulator {

std::string running_case;
std::string (*name_of_barrier)(u32 offset) = nullptr;

namespace {

// Steps of the scheduler that a sleeping warp misses, at most.
constexpr u32 LONGEST_SLEEP = 6000;
// Products that complete at one step, at most.
constexpr u32 MOST_PRODUCTS = 12;

struct Device {
    Grid grid{};
    Schedule schedule;
    Random* random = nullptr;
    const std::function<void()>* kernel = nullptr;
    std::vector<Block*> blocks;
    Thread* current = nullptr;
    u64 step = 0;
    u64 threads_left = 0;
};
Device device;

// Stacks and shared memories outlive a launch: there are thousands of launches.
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<u8*> memories;

void run_kernel() {
    (*device.kernel)();
    device.current->is_done = true;
    for (;;) device.current->fiber->leave();
}

u8* memory_of(u32 block) {
    while (memories.size() <= block) memories.push_back(static_cast<u8*>(std::aligned_alloc(SHARED_LIMIT, SHARED_LIMIT)));
    std::memset(memories[block], UNWRITTEN, SHARED_LIMIT);
    return memories[block];
}

Fiber* fiber_of(size_t thread) {
    while (fibers.size() <= thread) fibers.push_back(std::make_unique<Fiber>());
    fibers[thread]->prepare(run_kernel);
    return fibers[thread].get();
}

void begin(Block& block, u32 index, u32 place) {
    block.index = index;
    block.memory = memory_of(place);
    block.threads.resize(device.grid.threads);
    block.warps.resize(device.grid.threads / LANES);
    block.issued.resize((device.grid.threads + 127) / 128);
    for (u32 i = 0; i < block.warps.size(); ++i) {
        block.warps[i].block = &block;
        block.warps[i].index = i;
    }
    for (u32 i = 0; i < device.grid.threads; ++i) {
        Thread& thread = block.threads[i];
        thread.index = i;
        thread.block = &block;
        thread.warp = &block.warps[i / LANES];
        thread.fiber = fiber_of(size_t(place) * device.grid.threads + i);
    }
}

bool is_ready(const Thread& thread) {
    return !thread.is_done && (thread.waiting == nullptr || thread.waiting->is_over());
}

void run(Thread& thread) {
    device.current = &thread;
    threadIdx = {thread.index, 0, 0};
    blockIdx = {thread.block->index % gridDim.x, thread.block->index / gridDim.x, 0};
    dynamic_shared_memory = reinterpret_cast<u8(*)[]>(thread.block->memory + SHARED_BASE);
    thread.fiber->enter();
    device.current = nullptr;
    if (thread.is_done) --device.threads_left;
}

bool falls_asleep(u64& until) {
    if (device.schedule.sleep == 0 || !device.random->chance(device.schedule.sleep)) return false;
    until = device.step + device.random->below(LONGEST_SLEEP);
    return true;
}

// Runs the lanes of a warp that are ready, once each; whether there was one.
bool run_warp(Warp& warp) {
    if (warp.asleep_until > device.step) return false;
    Random& random = *device.random;
    u32 first = random.below(LANES), lanes = ~0u;
    if (device.schedule.splits_warps) lanes = u32(random.next()) | (random.one_in(2) ? u32(random.next()) : 0);
    bool has_run = false;
    for (u32 i = 0; i < LANES; ++i) {
        u32 lane = (first + i) % LANES;
        Thread& thread = warp.block->threads[warp.index * LANES + lane];
        if (!(lanes >> lane & 1) || thread.asleep_until > device.step || !is_ready(thread)) continue;
        if (falls_asleep(thread.asleep_until)) continue;
        run(thread);
        has_run = true;
    }
    falls_asleep(warp.asleep_until);
    return has_run;
}

// What the engines do at a step.
void run_engines() {
    Random& random = *device.random;
    if (random.chance(device.schedule.copy)) complete_a_copy();
    if (!random.chance(device.schedule.product)) return;
    for (u32 count = random.between(1, MOST_PRODUCTS); count > 0 && complete_a_product();) --count;
}

// Called when no thread has run for a while: something asynchronous must happen, or nothing ever will.
void unblock() {
    if (device.random->one_in(2) && complete_a_copy()) return;
    if (complete_a_product() || complete_a_copy()) return;
    for (Block* block : device.blocks) {
        for (const Thread& thread : block->threads) {
            if (is_ready(thread)) {
                device.step += 50; // all that are ready are asleep
                return;
            }
        }
    }
    fail("deadlock: no thread can go on");
}

void run_to_the_end() {
    u32 warps = device.grid.threads / LANES, all = warps * u32(device.blocks.size());
    u32 patience = 4 * all + 20;
    for (u32 idle = 0; device.threads_left > 0; ++device.step) {
        run_engines();
        u32 pick = device.random->below(all);
        idle = run_warp(device.blocks[pick / warps]->warps[pick % warps]) ? 0 : idle + 1;
        if (idle <= patience) continue;
        idle = 0;
        unblock();
    }
}

void check_that_all_is_done(const Block& block) {
    for (const Warp& warp : block.warps) {
        if (!warp.products.empty() || !warp.accumulators.empty()) fail("wgmma under way at the end of the kernel");
        if (warp.issued != block.issued[warp.index / 4].size()) fail("a warp left out a wgmma of its warpgroup");
    }
    for (const auto& [address, barrier] : block.mbarriers) {
        if (barrier.missing_bytes != 0) fail("bytes that an mbarrier expects never came");
    }
}

void run_blocks(const std::vector<u32>& indices) {
    std::vector<Block> blocks(indices.size());
    for (u32 i = 0; i < indices.size(); ++i) {
        begin(blocks[i], indices[i], i);
        device.blocks.push_back(&blocks[i]);
    }
    device.threads_left = u64(device.grid.threads) * blocks.size();
    run_to_the_end();
    if (has_copies()) fail("copies under way at the end of the kernel");
    for (const Block& block : blocks) check_that_all_is_done(block);
    device.blocks.clear();
}

// Prints what the warps of a block wait for, lanes that wait for the same together.
void report(const Block& block) {
    for (const Warp& warp : block.warps) {
        std::map<std::string, u32> lanes;
        for (u32 lane = 0; lane < LANES; ++lane) {
            const Thread& thread = block.threads[warp.index * LANES + lane];
            if (!thread.is_done) ++lanes[thread.waiting == nullptr ? "its turn" : thread.waiting->text()];
        }
        for (const auto& [text, count] : lanes) {
            std::printf("  block %u warp %u: %u lanes wait for %s\n", block.index, warp.index, count, text.c_str());
        }
    }
}

// -fsanitize=alignment traps where an address does not suit its type.
void on_signal(int signal) {
    fail("signal %d: an access to a misaligned address, or to one that is not mapped", signal);
}

void catch_signals() {
    for (int number : {SIGILL, SIGTRAP, SIGSEGV, SIGBUS}) signal(number, on_signal);
}

} // namespace

void launch(const Grid& grid, const Schedule& schedule, Random& random, const std::function<void()>& kernel) {
    catch_signals();
    device = Device();
    device.grid = grid;
    device.schedule = schedule;
    device.random = &random;
    device.kernel = &kernel;
    gridDim = {grid.blocks, grid.rows, 1};
    blockDim = {grid.threads, 1, 1};
    std::vector<u32> order;
    for (u32 i = 0; i < grid.blocks * grid.rows; ++i) order.insert(order.begin() + random.below(i + 1), i);
    if (!grid.one_after_another) return run_blocks(order);
    for (u32 block : order) run_blocks({block});
}

void fail(const char* format, ...) {
    std::printf("FAILED: ");
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::printf("\n  %s\n", running_case.c_str());
    if (device.current != nullptr) std::printf("  in block %u thread %u\n", blockIdx.x, threadIdx.x);
    for (const Block* block : device.blocks) report(*block);
    std::fflush(stdout);
    _exit(1);
}

Thread& this_thread() { return *device.current; }
Random& device_random() { return *device.random; }
u32 shared_end() { return SHARED_BASE + device.grid.shared_bytes; }
bool numbers_are_bf16() { return device.grid.is_bf16; }
std::vector<Block*>& running_blocks() { return device.blocks; }

void wait_for(const Waiting& waiting) {
    Thread& thread = this_thread();
    thread.waiting = &waiting;
    thread.fiber->leave();
    thread.waiting = nullptr;
}

void yield_sometimes() {
    if (device.random->one_in(4)) this_thread().fiber->leave();
}

} // namespace emulator
