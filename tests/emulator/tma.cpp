// Shared memory, and the copy engine: cp.async.bulk.tensor takes effect at a random time after it was issued. Until then its destination
// holds NaN, and nobody may be using it.
#include <cstring>

#include "device.h"
#include "tensor.h"

namespace emulator {
namespace {

struct Copy {
    Block* block;
    u32 destination;
    u32 barrier;
    TensorBox box;
    std::array<u32, 4> corner;

    u32 bytes() const { return box.rows * 128; }
};

std::vector<Copy> under_way;

void check(const Copy& copy) {
    u32 first = copy.destination, end = first + copy.bytes();
    mbarrier_at(*copy.block, copy.barrier);
    if (first % 1024 != 0) fail("copy to %u: not a multiple of 1024, as a swizzle of 128 bytes needs", first);
    if (first < SHARED_BASE || end > shared_end()) fail("copy to %u .. %u, outside of shared memory", first, end);
    if (copy.corner[2] >= copy.box.extent[2] || copy.corner[3] >= copy.box.extent[3]) {
        fail("copy of head %u of batch entry %u, which are not there", copy.corner[2], copy.corner[3]);
    }
    if (overlaps_copy(*copy.block, first, end)) fail("copy to %u while another one is under way to the same place", first);
    const char* operand = overlaps_product(*copy.block, first, end);
    if (operand != nullptr) fail("copy to %u over %s of a wgmma under way", first, operand);
}

void carry_out(const Copy& copy) {
    const TensorBox& box = copy.box;
    u8* memory = copy.block->memory;
    for (u32 row = 0; row < box.rows; ++row) {
        u64 token = u64(copy.corner[1]) + row;
        const u16* head = box.data + copy.corner[3] * box.stride[3] + copy.corner[2] * box.stride[2];
        const u16* from = head + token * box.stride[1] + copy.corner[0];
        for (u32 chunk = 0; chunk < 8; ++chunk) {
            u8* to = memory + swizzled(copy.destination + row * 128 + chunk * 16);
            if (token < box.extent[1] && copy.corner[0] + 8 * chunk < box.extent[0]) {
                std::memcpy(to, from + 8 * chunk, 16);
            } else {
                std::memset(to, 0, 16);
            }
        }
    }
    Mbarrier& barrier = mbarrier_at(*copy.block, copy.barrier);
    barrier.missing_bytes -= copy.bytes();
    if (barrier.missing_bytes < 0) fail("more bytes than mbarrier %s expects", name_of_mbarrier(copy.barrier).c_str());
    settle(barrier);
}

} // namespace

u32 shared_address(const void* pointer) {
    long long offset = static_cast<const u8*>(pointer) - this_thread().block->memory;
    if (offset < SHARED_BASE || offset >= shared_end()) fail("address outside of shared memory");
    return u32(offset);
}

void cp_async_bulk_tensor(u32 destination, const TensorBox& box, u32 barrier, std::array<u32, 4> corner) {
    Copy copy{this_thread().block, destination, barrier, box, corner};
    check(copy);
    std::memset(copy.block->memory + destination, UNWRITTEN, copy.bytes());
    under_way.push_back(copy);
    yield_sometimes();
}

bool has_copies() { return !under_way.empty(); }

bool overlaps_copy(const Block& block, u32 first, u32 end) {
    for (const Copy& copy : under_way) {
        if (copy.block == &block && copy.destination < end && first < copy.destination + copy.bytes()) return true;
    }
    return false;
}

bool complete_a_copy() {
    if (under_way.empty()) return false;
    u32 pick = device_random().below(u32(under_way.size()));
    Copy copy = under_way[pick];
    under_way.erase(under_way.begin() + pick);
    carry_out(copy);
    return true;
}

void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
    if (address % 16 != 0) fail("stmatrix to %u: not a multiple of 16", address);
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
