// Compiled for each type of numbers.
#include "cases.h"

#include <algorithm>
#include <cmath>

#include "numbers.h"

namespace {

std::vector<u16> normal_numbers(u32 count) {
    emulator::Random random(1);
    std::vector<u16> numbers(count);
    for (u16& x : numbers) {
        double radius = std::sqrt(-2 * std::log(1 - random.uniform()));
        x = emulator::narrow(float(radius * std::cos(6.283185307179586 * random.uniform())), OMNI_BF16);
    }
    return numbers;
}

} // namespace

std::vector<u32> regular_blocks(u32 tokens, u32 size) {
    std::vector<u32> starts{0};
    while (starts.back() < tokens) starts.push_back(std::min(tokens, starts.back() + size));
    return starts;
}

std::vector<u32> irregular_blocks(emulator::Random& random, u32 count, u32 size, u32 shorter) {
    std::vector<u32> starts{0};
    while (starts.size() <= count) starts.push_back(starts.back() + (random.one_in(shorter) ? random.between(1, size) : size));
    return starts;
}

Tensor4 make_tensor(Memory& memory, emulator::Random& random, const Extent& extent, size_t& numbers) {
    u64 line = extent.columns + 8 * random.below(3);
    bool has_tokens_first = random.one_in(2);
    Tensor4 it;
    it.token_stride = has_tokens_first ? line * extent.heads : line;
    it.head_stride = has_tokens_first ? line : line * extent.tokens;
    it.batch_stride = line * extent.heads * extent.tokens;
    numbers = it.batch_stride * extent.batch;
    it.data = memory.array<u16>(numbers, UNTOUCHED);
    return it;
}

void fill_normal(emulator::Random& random, u16* numbers, u32 count) {
    static const std::vector<u16> normal = normal_numbers(1 << 12);
    for (u32 i = 0; i < count; ++i) numbers[i] = normal[random.below(u32(normal.size()))];
}
