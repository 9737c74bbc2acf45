// What devices before Hopper have: cp.async, which takes effect when its thread waits for it and not before, ldmatrix and mma.sync.
#include <algorithm>
#include <cstring>

#include "device.h"
#include "numbers.h"
#include "tensor.h"

namespace emulator {

void cp_async(u32 destination, const void* source, u32 bytes) {
    bool is_aligned = destination % 16 == 0 && (bytes == 0 || reinterpret_cast<size_t>(source) % 16 == 0);
    if (!is_aligned) fail("cp.async between addresses that are not multiples of 16");
    if (destination < SHARED_BASE || destination + 16 > shared_end()) fail("cp.async to %u, outside of shared memory", destination);
    Thread& thread = this_thread();
    std::memset(thread.block->memory + destination, UNWRITTEN, 16);
    thread.copies.push_back({destination, bytes > 0 ? source : nullptr, thread.groups});
}

void cp_async_commit_group() { ++this_thread().groups; }

void cp_async_wait_group(u32 pending) {
    yield_sometimes();
    Thread& thread = this_thread();
    auto is_due = [&](const AsyncCopy& copy) {
        if (copy.group + pending >= thread.groups) return false;
        u8* to = thread.block->memory + copy.destination;
        if (copy.source != nullptr) {
            std::memcpy(to, copy.source, 16);
        } else {
            std::memset(to, 0, 16);
        }
        return true;
    };
    auto& all = thread.copies;
    all.erase(std::remove_if(all.begin(), all.end(), is_due), all.end());
}

namespace {

// What a lane hands over: where its result goes, and its operands.
struct LoadIssue {
    u32* d;
    u32 address;
    u32 is_transposed;
};

struct MultiplyIssue {
    float* d;
    u32 a[4];
    u32 b[2];
};

template <class T>
T issue_of(const Inbox& inbox, u32 lane) {
    T issue;
    std::memcpy(&issue, inbox[lane].data(), sizeof issue);
    return issue;
}

template <class T>
void issue(const char* name, const T& what, void (*act)(Warp&, const Inbox&)) {
    static_assert(sizeof(T) <= sizeof(Inbox::value_type), "fits what lanes exchange");
    u32 words[16] = {};
    std::memcpy(words, &what, sizeof what);
    collective(name, words, 16, act);
}

void load_matrices(Warp& warp, const Inbox& inbox) {
    for (u32 lane = 0; lane < LANES; ++lane) {
        LoadIssue own = issue_of<LoadIssue>(inbox, lane);
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            u16 pair[2];
            for (u32 i = 0; i < 2; ++i) {
                u32 row = lane / 4, column = lane % 4 * 2 + i;
                if (own.is_transposed) std::swap(row, column);
                u32 address = issue_of<LoadIssue>(inbox, 8 * matrix + row).address + 2 * column;
                std::memcpy(&pair[i], warp.block->memory + address, sizeof(u16));
            }
            own.d[matrix] = pair[0] | u32(pair[1]) << 16;
        }
    }
}

// The eight columns of a product.
using Columns = float __attribute__((vector_size(32)));

void multiply(Warp&, const Inbox& inbox) {
    float a[16][16];
    Columns b[16], d[16];
    MultiplyIssue issues[LANES];
    bool is_bf16 = numbers_are_bf16();
    for (u32 lane = 0; lane < LANES; ++lane) {
        const MultiplyIssue& own = issues[lane] = issue_of<MultiplyIssue>(inbox, lane);
        u32 group = lane / 4, place = lane % 4 * 2;
        auto half = [&](u32 pair, u32 i) { return widen(u16(pair >> 16 * (i % 2)), is_bf16); };
        for (u32 i = 0; i < 8; ++i) a[group + 8 * (i / 2 % 2)][place + 8 * (i / 4) + i % 2] = half(own.a[i / 2], i);
        for (u32 i = 0; i < 4; ++i) b[place + 8 * (i / 2) + i % 2][group] = half(own.b[i / 2], i);
        for (u32 i = 0; i < 4; ++i) d[group + 8 * (i / 2)][place + i % 2] = own.d[i];
    }
    for (u32 row = 0; row < 16; ++row) {
        for (u32 k = 0; k < 16; ++k) d[row] += a[row][k] * b[k];
    }
    for (u32 lane = 0; lane < LANES; ++lane) {
        for (u32 i = 0; i < 4; ++i) issues[lane].d[i] = d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
    }
}

} // namespace

void ldmatrix_x4(u32* d, u32 address, bool is_transposed) {
    if (address % 16 != 0) fail("ldmatrix of %u: not a multiple of 16", address);
    if (address < SHARED_BASE || address + 16 > shared_end()) fail("ldmatrix of %u, outside of shared memory", address);
    issue("ldmatrix", LoadIssue{d, address, is_transposed}, load_matrices);
}

void mma_m16n8k16(float* d, const u32* a, u32 b0, u32 b1) {
    issue("mma", MultiplyIssue{d, {a[0], a[1], a[2], a[3]}, {b0, b1}}, multiply);
}

} // namespace emulator
