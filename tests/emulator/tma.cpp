// Shared memory, and the copy engine: cp.async.bulk and cp.async.bulk.tensor take effect at a random time after it was issued. Until then the destination
// in shared memory holds NaN, and nobody may be using it.
#include <cstring>

#include "device.h"
#include "tensor.h"

namespace emulator {
namespace {

struct Copy {
    Block* block;
    u32 address; // in shared memory
    TensorBox box;
    std::array<u32, 4> corner;
    u32 barrier;           // of a load
    const Thread* storing; // null for a load
    u32 group;             // of a store
    const void* line;      // what a load without a box takes; null otherwise
    u32 line_bytes;

    u32 bytes() const { return line != nullptr ? line_bytes : box.rows * 128; }
    bool is_committed() const { return storing == nullptr || group < storing->store_groups; }
};

std::vector<Copy> under_way;

void check_place(const Copy& copy) {
    u32 first = copy.address, end = first + copy.bytes();
    if (first < SHARED_BASE || end > shared_end()) fail("copy at %u .. %u, outside of shared memory", first, end);
    if (overlaps_copy(*copy.block, first, end)) fail("copy at %u while another one is under way at the same place", first);
    const char* operand = overlaps_product(*copy.block, first, end);
    if (operand != nullptr) fail("copy at %u over %s of a wgmma under way", first, operand);
}

void check_box(const Copy& copy) {
    const TensorBox& box = copy.box;
    if (copy.address % 1024 != 0) fail("copy at %u: not a multiple of 1024, as a swizzle of 128 bytes needs", copy.address);
    bool is_aligned = reinterpret_cast<size_t>(box.data) % 16 == 0;
    for (u32 i = 1; i < 4; ++i) is_aligned &= box.extent[i] == 1 || box.stride[i] % 8 == 0;
    if (!is_aligned || box.extent[0] % 8 != 0) fail("a tensor map whose rows are not at multiples of 16 bytes, or end elsewhere");
    if (box.rows > 256) fail("a box of %u rows", box.rows);
    if (int(copy.corner[0]) < 0 || int(copy.corner[1]) < 0) fail("a copy that begins before the tensor");
    if (copy.corner[2] >= box.extent[2] || copy.corner[3] >= box.extent[3]) {
        fail("copy of head %u of batch entry %u, which are not there", copy.corner[2], copy.corner[3]);
    }
}

// From now on the destination is the copy engine's.
void begin_load(const Copy& copy) {
    mbarrier_at(*copy.block, copy.barrier);
    check_place(copy);
    std::memset(copy.block->memory + copy.address, UNWRITTEN, copy.bytes());
    under_way.push_back(copy);
    yield_sometimes();
}

// Calls act(chunk of 16 bytes in shared memory, its place in the tensor or null where that has ended).
template <typename Act>
void each_chunk(const Copy& copy, Act act) {
    const TensorBox& box = copy.box;
    for (u32 row = 0; row < box.rows; ++row) {
        u64 token = u64(copy.corner[1]) + row;
        const u16* head = box.data + copy.corner[3] * box.stride[3] + copy.corner[2] * box.stride[2];
        const u16* numbers = head + token * box.stride[1] + copy.corner[0];
        for (u32 chunk = 0; chunk < 8; ++chunk) {
            u8* in_block = copy.block->memory + swizzled(copy.address + row * 128 + chunk * 16);
            bool is_there = token < box.extent[1] && copy.corner[0] + 8 * chunk < box.extent[0];
            act(in_block, is_there ? numbers + 8 * chunk : nullptr);
        }
    }
}

void carry_out_load(const Copy& copy) {
    if (copy.line != nullptr) {
        std::memcpy(copy.block->memory + copy.address, copy.line, copy.line_bytes);
    } else {
        each_chunk(copy, [](u8* to, const u16* from) {
            if (from == nullptr) {
                std::memset(to, 0, 16);
            } else {
                std::memcpy(to, from, 16);
            }
        });
    }
    Mbarrier& barrier = mbarrier_at(*copy.block, copy.barrier);
    barrier.missing_bytes -= copy.bytes();
    if (barrier.missing_bytes < 0) fail("more bytes than mbarrier %s expects", name_of_mbarrier(copy.barrier).c_str());
    settle(barrier);
}

void carry_out_store(const Copy& copy) {
    if (copy.storing->is_done) fail("a store at %u that its thread did not wait for", copy.address);
    each_chunk(copy, [](const u8* from, const u16* to) {
        if (to != nullptr) std::memcpy(const_cast<u16*>(to), from, 16);
    });
}

struct StoreWait final : Waiting {
    const Thread& thread;
    u32 end;

    StoreWait(const Thread& thread, u32 end) : thread(thread), end(end) {}
    bool is_over() const override {
        for (const Copy& copy : under_way) {
            if (copy.storing == &thread && copy.group < end) return false;
        }
        return true;
    }
    std::string text() const override { return "its stores"; }
};

} // namespace

u32 shared_address(const void* pointer) {
    long long offset = static_cast<const u8*>(pointer) - this_thread().block->memory;
    if (offset < SHARED_BASE || offset >= shared_end()) fail("address outside of shared memory");
    return u32(offset);
}

void cp_async_bulk_tensor(u32 destination, const TensorBox& box, u32 barrier, std::array<u32, 4> corner) {
    Copy copy{this_thread().block, destination, box, corner, barrier, nullptr, 0, nullptr, 0};
    check_box(copy);
    begin_load(copy);
}

void cp_async_bulk(u32 destination, const void* source, u32 bytes, u32 barrier) {
    bool is_aligned = destination % 16 == 0 && reinterpret_cast<size_t>(source) % 16 == 0 && bytes % 16 == 0;
    if (!is_aligned) fail("cp.async.bulk of what is not at a multiple of 16, or not as long");
    begin_load({this_thread().block, destination, {}, {}, barrier, nullptr, 0, source, bytes});
}

void cp_async_bulk_tensor_store(const TensorBox& box, u32 source, std::array<u32, 4> corner) {
    Thread& thread = this_thread();
    Copy copy{thread.block, source, box, corner, 0, &thread, thread.store_groups, nullptr, 0};
    check_box(copy);
    check_place(copy);
    under_way.push_back(copy);
    yield_sometimes();
}

void cp_async_bulk_commit_group() { ++this_thread().store_groups; }

void cp_async_bulk_wait_group_read(u32 pending) {
    Thread& thread = this_thread();
    if (thread.store_groups > pending) wait_for(StoreWait(thread, thread.store_groups - pending));
}

bool has_copies() { return !under_way.empty(); }

bool overlaps_copy(const Block& block, u32 first, u32 end) {
    for (const Copy& copy : under_way) {
        if (copy.block == &block && copy.address < end && first < copy.address + copy.bytes()) return true;
    }
    return false;
}

bool complete_a_copy() {
    if (under_way.empty()) return false;
    u32 pick = device_random().below(u32(under_way.size()));
    Copy copy = under_way[pick];
    if (!copy.is_committed()) return false;
    under_way.erase(under_way.begin() + pick);
    if (copy.storing == nullptr) {
        carry_out_load(copy);
    } else {
        carry_out_store(copy);
    }
    return true;
}

void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
    if (address % 16 != 0) fail("stmatrix to %u: not a multiple of 16", address);
    const Block& block = *this_thread().block;
    if (overlaps_copy(block, address, address + 16)) fail("stmatrix to %u while a copy is under way there", address);
    const char* operand = overlaps_product(block, address, address + 16);
    if (operand != nullptr) fail("stmatrix to %u over %s of a wgmma under way", address, operand);
    u32 words[5] = {address, a, b, c, d};
    collective("stmatrix", words, 5, [](Warp& warp, const Inbox& inbox) {
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            for (u32 lane = 0; lane < LANES; ++lane) {
                u32 row = inbox[8 * matrix + lane / 4][0];
                std::memcpy(warp.block->memory + row + lane % 4 * 4, &inbox[lane][1 + matrix], 4);
            }
        }
    });
}

} // namespace emulator
