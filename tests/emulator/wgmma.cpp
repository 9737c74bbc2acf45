// The tensor cores: wgmma takes effect at a random time after it was issued, in the order of issue for one accumulator and in any order
// otherwise. Operands are read then and not before, from registers too. Until the wait, the accumulator belongs to the tensor cores.
//
// A warp of the warpgroup computes its 16 of the 64 rows by itself.
#include <algorithm>
#include <cstring>

#include "device.h"
#include "numbers.h"
#include "tensor.h"

namespace emulator {

// 16 rows of a product in the order of a matrix, and the registers that they go back to.
struct Accumulator {
    u32 columns;
    float* registers[LANES];
    float values[16][256];
    u32 under_way;  // products
    u32 last_group; // that has one
};

struct Wgmma {
    Accumulator* accumulator;
    u32 columns;
    bool has_registers; // the left operand is in registers
    const u32* registers[LANES][4];
    u64 a, b; // descriptors
    u32 group;
};

Warp::Warp() = default;
Warp::~Warp() = default;
Warp::Warp(Warp&&) noexcept = default;

namespace {

// Of all warps.
u64 products_under_way = 0;

// What stands in registers that belong to the tensor cores: a NaN.
constexpr u32 TAKEN = 0xFFB00B1E;

// The fields of a matrix descriptor, in bytes.
struct Descriptor {
    u32 start, leading, stride;

    explicit Descriptor(u64 bits)
        : start(u32(bits & 0x3FFF) << 4), leading(u32(bits >> 16 & 0x3FFF) << 4), stride(u32(bits >> 32 & 0x3FFF) << 4) {
        if (bits >> 62 != 1) fail("a matrix descriptor without SWIZZLE_128B");
    }
};

struct Range {
    u32 first, end;

    bool overlaps(u32 other_first, u32 other_end) const { return first < other_end && other_first < end; }
};

// Rows of 128 bytes, eight of them `stride` bytes after the last eight.
Range range_of_a(const Wgmma& product) {
    Descriptor a(product.a);
    u32 first = a.start & ~127u;
    return {first, first + 64 / 8 * a.stride};
}

// The right operand has k along its rows where the left one is in shared memory, and n along its rows, in panels, otherwise.
Range range_of_b(const Wgmma& product) {
    Descriptor b(product.b);
    if (product.has_registers) return {b.start, b.start + (product.columns / 64 - 1) * b.leading + 16 / 8 * b.stride};
    u32 first = b.start & ~127u;
    return {first, first + product.columns / 8 * b.stride};
}

// The place of an element of the accumulator that a lane holds.
u32 row_of(u32 lane, u32 element) { return lane / 4 + 8 * (element / 2 % 2); }
u32 column_of(u32 lane, u32 element) { return 8 * (element / 4) + 2 * (lane % 4) + element % 2; }

Accumulator& take_registers(Warp& warp, float* const (&registers)[LANES], u32 columns) {
    auto accumulator = std::make_unique<Accumulator>();
    accumulator->columns = columns;
    accumulator->under_way = 0;
    for (u32 lane = 0; lane < LANES; ++lane) {
        float* own = accumulator->registers[lane] = registers[lane];
        for (u32 i = 0; i < columns / 2; ++i) {
            accumulator->values[row_of(lane, i)][column_of(lane, i)] = own[i];
            own[i] = float_of(TAKEN);
        }
    }
    warp.accumulators.push_back(std::move(accumulator));
    return *warp.accumulators.back();
}

// Gives back the registers of accumulators whose products are all done and committed.
void give_back(Warp& warp) {
    auto is_done = [&](const std::unique_ptr<Accumulator>& it) {
        if (it->under_way > 0 || it->last_group >= warp.groups) return false;
        for (u32 lane = 0; lane < LANES; ++lane) {
            for (u32 i = 0; i < it->columns / 2; ++i) {
                float& x = it->registers[lane][i];
                if (bits_of(x) != TAKEN) fail("lane %u wrote element %u of an accumulator while a wgmma is under way", lane, i);
                x = it->values[row_of(lane, i)][column_of(lane, i)];
            }
        }
        return true;
    };
    auto& all = warp.accumulators;
    all.erase(std::remove_if(all.begin(), all.end(), is_done), all.end());
}

// What one lane says of a product.
struct Issue {
    float* d;
    const u32* registers[4];
    u64 a, b;
    u32 columns, accumulate;
};
static_assert(sizeof(Issue) <= sizeof(Inbox::value_type), "fits what lanes exchange");

Issue issue_of(const Inbox& inbox, u32 lane) {
    Issue issue;
    std::memcpy(&issue, inbox[lane].data(), sizeof issue);
    return issue;
}

// The four warps of a warpgroup must issue the same.
void check_warpgroup(Warp& warp, const Issue& issue) {
    auto& sequence = warp.block->issued[warp.index / 4];
    std::array<u64, 4> what = {issue.a, issue.b, issue.columns, issue.accumulate};
    if (warp.issued == sequence.size()) sequence.push_back(what);
    if (sequence[warp.issued++] != what) fail("the warps of a warpgroup disagree about a wgmma");
}

void check_operand(const Block& block, const Range& range) {
    if (range.first < SHARED_BASE || range.end > shared_end()) {
        fail("an operand of a wgmma at %u .. %u, outside of shared memory", range.first, range.end);
    }
    if (overlaps_copy(block, range.first, range.end)) fail("a wgmma on bytes at %u that are still being copied", range.first);
}

Accumulator& accumulator_of(Warp& warp, float* const (&registers)[LANES], const Issue& first) {
    for (auto& known : warp.accumulators) {
        if (known->registers[0] != registers[0]) continue;
        if (!std::equal(registers, registers + LANES, known->registers)) fail("lanes of a warp accumulate in different places");
        if (known->columns != first.columns) fail("products of %u and of %u columns on one accumulator", known->columns, first.columns);
        if (!first.accumulate) fail("an accumulator is cleared while a wgmma on it is under way");
        return *known;
    }
    Accumulator& fresh = take_registers(warp, registers, first.columns);
    if (!first.accumulate) std::memset(fresh.values, 0, sizeof fresh.values);
    return fresh;
}

void issue_product(Warp& warp, const Inbox& inbox) {
    Issue first = issue_of(inbox, 0);
    check_warpgroup(warp, first);
    auto product = std::make_unique<Wgmma>();
    product->columns = first.columns;
    product->has_registers = first.registers[0] != nullptr;
    product->a = first.a;
    product->b = first.b;
    product->group = warp.groups;
    check_operand(*warp.block, range_of_b(*product));
    if (!product->has_registers) check_operand(*warp.block, range_of_a(*product));
    float* registers[LANES];
    for (u32 lane = 0; lane < LANES; ++lane) {
        Issue issue = issue_of(inbox, lane);
        bool agrees = issue.a == first.a && issue.b == first.b && issue.accumulate == first.accumulate;
        if (!agrees) fail("lanes of a warp disagree about a wgmma");
        registers[lane] = issue.d;
        std::copy(issue.registers, issue.registers + 4, product->registers[lane]);
    }
    product->accumulator = &accumulator_of(warp, registers, first);
    ++product->accumulator->under_way;
    product->accumulator->last_group = product->group;
    warp.products.push_back(std::move(product));
    ++products_under_way;
}

// Eight numbers that lie together.
void read_chunk(const u8* memory, u32 address, float (&to)[8]) {
    u16 chunk[8];
    std::memcpy(chunk, memory + swizzled(address), sizeof chunk);
    bool is_bf16 = numbers_are_bf16();
    for (u32 i = 0; i < 8; ++i) to[i] = widen(chunk[i], is_bf16);
}

void read_a(const Warp& warp, const Wgmma& product, float (&a)[16][16]) {
    if (product.has_registers) {
        for (u32 lane = 0; lane < LANES; ++lane) {
            for (u32 i = 0; i < 8; ++i) {
                u32 pair = *product.registers[lane][i / 2];
                a[row_of(lane, i)][column_of(lane, i)] = widen(u16(pair >> 16 * (i % 2)), numbers_are_bf16());
            }
        }
        return;
    }
    Descriptor at(product.a);
    for (u32 row = 0; row < 16; ++row) {
        u32 place = warp.index % 4 * 16 + row;
        for (u32 half = 0; half < 2; ++half) {
            float chunk[8];
            read_chunk(warp.block->memory, at.start + place / 8 * at.stride + place % 8 * 128 + half * 16, chunk);
            std::copy(chunk, chunk + 8, a[row] + 8 * half);
        }
    }
}

void read_b(const u8* memory, const Wgmma& product, float (&b)[16][256]) {
    Descriptor at(product.b);
    float chunk[8];
    if (product.has_registers) {
        for (u32 k = 0; k < 16; ++k) {
            for (u32 n = 0; n < product.columns; n += 8) {
                read_chunk(memory, at.start + n / 64 * at.leading + k / 8 * at.stride + k % 8 * 128 + n % 64 * 2, chunk);
                std::copy(chunk, chunk + 8, b[k] + n);
            }
        }
        return;
    }
    for (u32 n = 0; n < product.columns; ++n) {
        for (u32 half = 0; half < 2; ++half) {
            read_chunk(memory, at.start + n / 8 * at.stride + n % 8 * 128 + half * 16, chunk);
            for (u32 i = 0; i < 8; ++i) b[8 * half + i][n] = chunk[i];
        }
    }
}

// Sixteen columns. Most of the time of a test is spent on them, and compilers do not always find vectors by themselves.
using Vector = float __attribute__((vector_size(64)));
constexpr u32 AT_ONCE = sizeof(Vector) / sizeof(float);

void multiply(float (&values)[16][256], const float (&a)[16][16], const float (&b)[16][256], u32 columns) {
    for (u32 first = 0; first < columns; first += AT_ONCE) {
        for (u32 row = 0; row < 16; ++row) {
            Vector sums;
            std::memcpy(&sums, values[row] + first, sizeof sums);
            for (u32 k = 0; k < 16; ++k) {
                Vector part;
                std::memcpy(&part, b[k] + first, sizeof part);
                sums += a[row][k] * part;
            }
            std::memcpy(values[row] + first, &sums, sizeof sums);
        }
    }
}

void carry_out(const Warp& warp, const Wgmma& product) {
    static float a[16][16], b[16][256];
    read_a(warp, product, a);
    read_b(warp.block->memory, product, b);
    multiply(product.accumulator->values, a, b, product.columns);
    --product.accumulator->under_way;
}

// Carries out any product of a warp, but the first of its accumulator.
void complete_one_of(Warp& warp) {
    auto& all = warp.products;
    Accumulator* accumulator = all[device_random().below(u32(all.size()))]->accumulator;
    auto first = std::find_if(all.begin(), all.end(), [&](const auto& it) { return it->accumulator == accumulator; });
    carry_out(warp, **first);
    all.erase(first);
    --products_under_way;
    give_back(warp);
}

struct GroupWait final : Waiting {
    const Warp& warp;
    u32 groups; // that must be done

    GroupWait(const Warp& warp, u32 groups) : warp(warp), groups(groups) {}
    bool is_over() const override {
        auto is_due = [&](const auto& it) { return it->last_group < groups; };
        return std::none_of(warp.accumulators.begin(), warp.accumulators.end(), is_due) &&
               std::none_of(warp.products.begin(), warp.products.end(), [&](const auto& it) { return it->group < groups; });
    }
    std::string text() const override { return "wgmma (" + std::to_string(warp.products.size()) + " under way)"; }
};

} // namespace

void wgmma(float* d, u32 columns, const Registers& registers, u64 a, u64 b, u32 accumulate) {
    Issue issue{d, {registers[0], registers[1], registers[2], registers[3]}, a, b, columns, accumulate != 0};
    u32 words[16] = {};
    std::memcpy(words, &issue, sizeof issue);
    collective("wgmma", words, 16, issue_product);
}

void wgmma_fence() { collective("wgmma.fence", nullptr, 0); }

void wgmma_commit_group() {
    collective("wgmma.commit_group", nullptr, 0, [](Warp& warp, const Inbox&) {
        ++warp.groups;
        give_back(warp);
    });
}

void wgmma_wait_group(u32 pending) {
    collective("wgmma.wait_group", nullptr, 0);
    const Warp& warp = *this_thread().warp;
    wait_for(GroupWait(warp, warp.groups > pending ? warp.groups - pending : 0));
}

bool complete_a_product() {
    if (products_under_way == 0) return false;
    auto& blocks = running_blocks();
    u32 warps = u32(blocks[0]->warps.size()), all = warps * u32(blocks.size());
    u32 first = device_random().below(all);
    for (u32 i = 0; i < all; ++i) {
        u32 pick = (first + i) % all;
        Warp& warp = blocks[pick / warps]->warps[pick % warps];
        if (warp.products.empty()) continue;
        complete_one_of(warp);
        return true;
    }
    return false;
}

const char* overlaps_product(const Block& block, u32 first, u32 end) {
    for (const Warp& warp : block.warps) {
        for (const auto& product : warp.products) {
            if (range_of_b(*product).overlaps(first, end)) return "the right operand";
            if (!product->has_registers && range_of_a(*product).overlaps(first, end)) return "the left operand";
        }
    }
    return nullptr;
}

} // namespace emulator
