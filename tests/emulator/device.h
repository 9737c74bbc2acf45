// The emulated device: thread blocks whose threads are fibers, the scheduler that runs them in random order, and the asynchronous
// engines (TMA, tensor cores) that finish what was issued at random times.
//
// A thread runs until it waits. What it waits for is a `Waiting` on its own stack: the scheduler asks it whether the wait is over,
// and the report of a deadlock asks it for its name.
#pragma once
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/types.cuh"
#include "random.h"

// Special registers of the thread that runs, under CUDA's names.
struct Dim3 {
    u32 x, y, z;
};
extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr u32 LANES = 32;
constexpr u32 NAMED_BARRIERS = 16;

// Dynamic shared memory starts here in a block's memory: address 0 stays invalid.
constexpr u32 SHARED_BASE = 1024;
constexpr u32 SHARED_LIMIT = 1 << 18;

// Bytes that nobody has written: NaN as bf16, fp16 and float, and impossible as an index.
constexpr u8 UNWRITTEN = 0xFF;

// What a thread waits for.
struct Waiting {
    virtual bool is_over() const = 0;
    virtual std::string text() const = 0;

protected:
    ~Waiting() = default;
};

struct Block;
struct Fiber;
struct Warp;

// 16 bytes on their way by cp.async; null brings zeros.
struct AsyncCopy {
    u32 destination;
    const void* source;
    u32 group;
};

struct Thread {
    u32 index = 0;
    Block* block = nullptr;
    Warp* warp = nullptr;
    Fiber* fiber = nullptr;
    const Waiting* waiting = nullptr;
    bool is_done = false;
    u64 asleep_until = 0;
    // The last value that ld.acquire read, to notice that it polls.
    const u32* polled = nullptr;
    u32 polled_value = 0;
    // Copies that it has not waited for, and its number of groups that were committed.
    std::vector<AsyncCopy> copies;
    u32 groups = 0;
    // Its number of groups of stores by TMA that were committed.
    u32 store_groups = 0;

    u32 lane() const { return index % LANES; }
};

struct NamedBarrier {
    u32 threads = 0;
    u32 arrived = 0;
    u32 generation = 0;
};

struct Mbarrier {
    u32 arrivals; // of each phase
    u32 pending;  // arrivals that are still missing in this phase
    long long missing_bytes; // of copies, in this phase
    u32 phase;
};

// What each lane hands to the others.
using Inbox = std::array<std::array<u32, 16>, LANES>;

struct Wgmma;
struct Accumulator;

struct Warp {
    Warp();
    ~Warp();
    Warp(Warp&&) noexcept;

    Block* block = nullptr;
    u32 index = 0;
    u64 asleep_until = 0;
    // Two, as fast lanes fill the next one while slow ones still read.
    Inbox inbox[2];
    const char* meets_in = nullptr; // the collective instruction that lanes are gathering in
    u32 arrived = 0;
    u32 generation = 0;
    // Products under way in order of issue, the accumulators that they own, and the number of groups that were committed.
    std::vector<std::unique_ptr<Wgmma>> products;
    std::vector<std::unique_ptr<Accumulator>> accumulators;
    u32 groups = 0;
    u32 issued = 0;
};

struct Block {
    u32 index = 0;
    u8* memory = nullptr;
    std::map<u32, Mbarrier> mbarriers;
    NamedBarrier named[NAMED_BARRIERS];
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    // What each warpgroup has issued, which its four warps must agree about.
    std::vector<std::vector<std::array<u64, 4>>> issued;
};

// How likely what happens at a step of the scheduler.
struct Schedule {
    double copy = 0.1;     // one copy completes
    double product = 0.2;  // some products complete
    bool splits_warps = false; // lanes of a warp run apart from each other
    double sleep = 0;      // a warp or thread stops for a long time
};

struct Grid {
    u32 blocks; // along x
    u32 threads;
    u32 shared_bytes;       // dynamic shared memory
    bool is_bf16;           // what tensor cores take 16-bit numbers for
    bool one_after_another; // blocks run one at a time, in random order; otherwise all at once
    u32 rows = 1;           // blocks along y
};

// Runs a kernel to its end, or reports why it never comes to one.
void launch(const Grid& grid, const Schedule& schedule, Random& random, const std::function<void()>& kernel);

// Prints what went wrong and where every warp stands, and ends the process.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The case that runs, for the report.
extern std::string running_case;

// Names a barrier by its offset in dynamic shared memory.
extern std::string (*name_of_barrier)(u32 offset);

// ---------------------------------------------------------------------------------------------- for what runs on the device

Thread& this_thread();
Random& device_random();
u32 shared_end();
bool numbers_are_bf16();
std::vector<Block*>& running_blocks();

// Returns when the wait is over. Other threads run meanwhile, even if it is over already.
void wait_for(const Waiting& waiting);

// Lets others run now and then, where the order of threads matters.
void yield_sometimes();

// An instruction that the lanes of a warp execute together: `words` of each lane go to all. Whoever comes last does `act`.
const Inbox& collective(const char* name, const u32* words, u32 count, void (*act)(Warp&, const Inbox&) = nullptr);

Mbarrier& mbarrier_at(Block& block, u32 address);
std::string name_of_mbarrier(u32 address);
// Ends the phase if nothing is missing.
void settle(Mbarrier& barrier);

// TMA.
bool has_copies();
bool complete_a_copy();
// Whether a copy under way goes to or comes from the bytes from `first` to `end`.
bool overlaps_copy(const Block& block, u32 first, u32 end);

// Tensor cores. `overlaps_product` names what of a product under way lies in the bytes from `first` to `end`.
bool complete_a_product();
const char* overlaps_product(const Block& block, u32 first, u32 end);

// Bits 4 to 6 of an address in shared memory, exchanged as SWIZZLE_128B does.
inline u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

} // namespace emulator
