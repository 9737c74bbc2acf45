// Barriers of every kind, with the mistakes that hardware does not report: too many arrivals, a barrier used with two sizes, an
// mbarrier whose place in shared memory was overwritten.
#include "barriers.h"

#include <cstring>

#include "device.h"

namespace emulator {
namespace {

// Stands where an mbarrier is: its state is kept beside, so that whoever writes here is found out.
u64 mark_of(u32 address) { return 0xBA441E4BA4410000 + address; }

// "3 of 4", of what has come.
std::string count(u32 some, u32 all) { return std::to_string(some) + " of " + std::to_string(all); }

struct WarpWait final : Waiting {
    const Warp& warp;
    u32 generation;

    WarpWait(const Warp& warp, u32 generation) : warp(warp), generation(generation) {}
    bool is_over() const override { return warp.generation != generation; }
    std::string text() const override {
        return std::string("the other lanes at ") + warp.meets_in + ", " + count(warp.arrived, LANES) + " came";
    }
};

struct NamedWait final : Waiting {
    const NamedBarrier& barrier;
    u32 id, generation;

    NamedWait(const NamedBarrier& barrier, u32 id) : barrier(barrier), id(id), generation(barrier.generation) {}
    bool is_over() const override { return barrier.generation != generation; }
    std::string text() const override {
        return "named barrier " + std::to_string(id) + ", " + count(barrier.arrived, barrier.threads) + " threads came";
    }
};

struct MbarrierWait final : Waiting {
    const Mbarrier& barrier;
    u32 address, parity;

    MbarrierWait(const Mbarrier& barrier, u32 address, u32 parity) : barrier(barrier), address(address), parity(parity) {}
    bool is_over() const override { return barrier.phase % 2 != parity; }
    std::string text() const override {
        std::string arrivals = count(barrier.pending, barrier.arrivals), bytes = std::to_string(barrier.missing_bytes);
        return "mbarrier " + name_of_mbarrier(address) + " with parity " + std::to_string(parity) + ", phase " +
               std::to_string(barrier.phase) + " lacks " + arrivals + " arrivals and " + bytes + " bytes";
    }
};

struct CounterWait final : Waiting {
    const u32* counter;
    u32 value;

    CounterWait(const u32* counter, u32 value) : counter(counter), value(value) {}
    bool is_over() const override { return *counter != value; }
    std::string text() const override { return "a counter in global memory that stays " + std::to_string(value); }
};

// Whether it completes the barrier.
bool arrive(u32 id, u32 threads) {
    if (id >= NAMED_BARRIERS) fail("there is no named barrier %u", id);
    NamedBarrier& barrier = this_thread().block->named[id];
    if (barrier.arrived > 0 && barrier.threads != threads) {
        fail("named barrier %u with %u and with %u threads", id, barrier.threads, threads);
    }
    barrier.threads = threads;
    if (++barrier.arrived < threads) return false;
    barrier.arrived = 0;
    ++barrier.generation;
    return true;
}

} // namespace

const Inbox& collective(const char* name, const u32* words, u32 count, void (*act)(Warp&, const Inbox&)) {
    Thread& thread = this_thread();
    Warp& warp = *thread.warp;
    u32 generation = warp.generation;
    Inbox& inbox = warp.inbox[generation % 2];
    if (warp.arrived > 0 && std::strcmp(warp.meets_in, name) != 0) {
        fail("lanes of a warp are at %s and at %s", warp.meets_in, name);
    }
    warp.meets_in = name;
    for (u32 i = 0; i < count; ++i) inbox[thread.lane()][i] = words[i];
    if (++warp.arrived < LANES) {
        wait_for(WarpWait(warp, generation));
    } else {
        if (act != nullptr) act(warp, inbox);
        warp.arrived = 0;
        ++warp.generation;
    }
    return inbox;
}

void bar_sync(u32 id, u32 threads) {
    NamedWait wait(this_thread().block->named[id], id);
    if (!arrive(id, threads)) wait_for(wait);
}

void bar_arrive(u32 id, u32 threads) {
    arrive(id, threads);
    yield_sometimes();
}

std::string name_of_mbarrier(u32 address) {
    std::string name = name_of_barrier != nullptr ? name_of_barrier(address - SHARED_BASE) : "";
    return name.empty() ? "at " + std::to_string(address) : name;
}

Mbarrier& mbarrier_at(Block& block, u32 address) {
    auto found = block.mbarriers.find(address);
    if (found == block.mbarriers.end()) fail("there is no mbarrier at %u", address);
    u64 mark;
    std::memcpy(&mark, block.memory + address, sizeof mark);
    if (mark != mark_of(address)) fail("mbarrier %s was overwritten", name_of_mbarrier(address).c_str());
    return found->second;
}

void settle(Mbarrier& barrier) {
    if (barrier.pending > 0 || barrier.missing_bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
}

void mbarrier_init(u32 address, u32 arrivals) {
    if (address % 8 != 0) fail("mbarrier at %u is misaligned", address);
    Block& block = *this_thread().block;
    u64 mark = mark_of(address);
    std::memcpy(block.memory + address, &mark, sizeof mark);
    block.mbarriers[address] = Mbarrier{arrivals, arrivals, 0, 0};
}

void mbarrier_arrive(u32 address, u32 bytes) {
    Mbarrier& barrier = mbarrier_at(*this_thread().block, address);
    if (barrier.pending == 0) fail("too many arrivals at mbarrier %s", name_of_mbarrier(address).c_str());
    barrier.missing_bytes += bytes;
    --barrier.pending;
    settle(barrier);
    yield_sometimes();
}

void mbarrier_wait(u32 address, u32 parity) {
    yield_sometimes();
    MbarrierWait wait(mbarrier_at(*this_thread().block, address), address, parity);
    while (!wait.is_over()) wait_for(wait);
}

u32 ld_acquire(const u32* counter) {
    Thread& thread = this_thread();
    if (thread.polled == counter && *counter == thread.polled_value) wait_for(CounterWait(counter, *counter));
    thread.polled = counter;
    return thread.polled_value = *counter;
}

void red_release_add(u32* counter, u32 value) {
    *counter += value;
    yield_sometimes();
}

} // namespace emulator
