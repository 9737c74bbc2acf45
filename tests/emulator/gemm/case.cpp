// How random cases are made, and how their plan and output are looked at. They are small, so that there can be many, and favour what
// kernels get wrong: ranges of tokens that cut blocks, q-blocks with no head in the set, more thread blocks than rows.
#include "case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cuda.h"
#include "common/work.cuh"
#include "numbers.h"

using emulator::fail;

namespace {

constexpr u32 MOST_THREAD_BLOCKS = 12;

// Largest error that rounding to 16 bits explains, relative to a little more than |x|.
constexpr double LIMIT = OMNI_BF16 ? 0.005 : 0.001;

} // namespace

void Case::choose_blocks() {
    GemmShape& shape = gemm.shape;
    bool has_many_heads = random.one_in(6);
    shape.batch = random.one_in(3) ? 2 : 1;
    shape.heads = has_many_heads ? random.between(60, 70) : random.between(1, 6);
    if (Q_PARTS > 1 || random.one_in(2)) {
        q_start = irregular_blocks(random, random.between(1, 4 * Q_PARTS), has_many_heads ? 30 : Q_BLOCK, 2);
        gemm.symbols.q_start = memory.copy(q_start);
    } else {
        q_start = regular_blocks(random.between(1, has_many_heads ? 40 : 300), BLOCK_Q);
    }
    shape.q_tokens = q_start.back();
    shape.q_blocks = u32(q_start.size()) - 1;
    shape.tokens = shape.q_tokens;
    if (random.one_in(2)) {
        shape.first_token = random.below(shape.q_tokens);
        shape.tokens = random.between(1, shape.q_tokens - shape.first_token);
    }
    shape.symbol_batches = random.one_in(2) ? 1 : shape.batch;
}

void Case::choose_symbols() {
    GemmShape& shape = gemm.shape;
    shape.set = random.below(4);
    shape.kv_blocks = random.one_in(4) ? random.between(60, 140) : random.between(1, 5);
    if (shape.set == ALL_TILES && random.one_in(2)) return;
    u32 lines = shape.symbol_batches * shape.heads, words = words_for(shape.kv_blocks), cache_words = words_for(shape.q_blocks);
    u64* cache = memory.array<u64>(lines * cache_words, 0);
    u64* skip = memory.array<u64>(lines * shape.q_blocks * words, 0);
    double computed = shape.heads > 6 ? 0.1 * random.between(0, 2) : 0.25 * random.between(0, 4);
    if (shape.set == CACHED_TILES) computed = 1 - computed;
    for (u32 i = 0; i < lines * shape.q_blocks; ++i) {
        if (random.chance(computed)) cache[i / shape.q_blocks * cache_words + i % shape.q_blocks / 64] |= bit(i % shape.q_blocks);
        if (random.one_in(5)) continue; // attends to nothing
        u32 block = random.below(shape.kv_blocks);
        skip[i * words + block / 64] |= bit(block);
    }
    gemm.symbols.cache = cache;
    gemm.symbols.skip = skip;
}

void Case::choose_plan() {
    Plan& plan = gemm.plan;
    plan.ctas = random.between(1, random.one_in(3) ? 2 : MOST_THREAD_BLOCKS);
    plan.head = memory.array<Head>(1, 0);
    plan.cuts = memory.array<Cut>(plan.ctas + 1, UNTOUCHED);
    plan.order = memory.array<u32>(rows(), UNTOUCHED);
    plan.lengths = memory.array<u32>(rows(), UNTOUCHED);
    plan.arrived = memory.array<u32>(2 * plan.ctas, 0);
    plan.partial_out = memory.array<float>(2 * plan.ctas * BLOCK_Q * TILE_COLUMNS, UNTOUCHED);
    gemm.heads = memory.array<u64>(gemm.shape.symbol_batches * gemm.shape.q_blocks * words_for(gemm.shape.heads), UNTOUCHED);
    plan_blocks = random.between(1, 2);
}

Tensor4 Case::tensor_of_tokens(u32 heads, u32 columns, size_t& numbers) {
    // With room for rows that nobody may write.
    Tensor4 it = make_tensor(memory, random, {gemm.shape.batch, heads, gemm.shape.q_tokens + BLOCK_Q, columns}, numbers);
    it.data = line_of(it, 0, 0, gemm.shape.first_token);
    return it;
}

void Case::fill_tokens(const Tensor4& tensor, u32 heads, u32 columns) {
    for (u32 batch = 0; batch < gemm.shape.batch; ++batch) {
        for (u32 head = 0; head < heads; ++head) {
            for (u32 token = 0; token < gemm.shape.tokens; ++token) fill_normal(random, line_of(tensor, batch, head, token), columns);
        }
    }
}

const float* Case::floats(size_t count) {
    float* values = memory.array<float>(count, 0);
    for (size_t i = 0; i < count; ++i) values[i] = float(random.uniform()) * 4 - 2;
    return values;
}

void Case::clear_output() {
    std::memset(out, UNTOUCHED, out_numbers * sizeof(u16));
    std::memset(gemm.plan.partial_out, UNTOUCHED, sizeof(float) * 2 * gemm.plan.ctas * BLOCK_Q * TILE_COLUMNS);
}

bool Case::is_inside(u32 q_block) const {
    return q_start[q_block + 1] > gemm.shape.first_token && q_start[q_block] < last_token();
}

u32 Case::block_of(u32 token) const {
    u32 block = 0;
    while (q_start[block + 1] <= token) ++block;
    return block;
}

bool Case::is_in_set(u32 batch, u32 q_block, u32 head) const {
    const GemmShape& shape = gemm.shape;
    if (shape.set == ALL_TILES) return true;
    u32 line = (shape.symbol_batches == 1 ? 0 : batch) * shape.heads + head, words = words_for(shape.kv_blocks);
    bool computes = has(gemm.symbols.cache + line * words_for(shape.q_blocks), q_block);
    if (shape.set == CACHED_TILES) return !computes;
    if (shape.set == UNCACHED_TILES) return computes;
    const u64* skip = gemm.symbols.skip + (line * shape.q_blocks + q_block) * words;
    bool attends = false;
    for (u32 block = 0; block < shape.kv_blocks; ++block) attends |= has(skip, block);
    return computes && attends;
}

void Case::check_plan() const {
    const Plan& plan = gemm.plan;
    const GemmShape& shape = gemm.shape;
    u32 live = 0, tiles_of_batch = (shape.q_blocks + Q_PARTS - 1) / Q_PARTS;
    for (u32 row = 0; row < rows(); ++row) {
        u32 first = row / shape.slots % tiles_of_batch * Q_PARTS, batch = row / shape.slots / tiles_of_batch;
        u32 end = std::min(first + Q_PARTS, shape.q_blocks);
        std::vector<bool> heads(shape.heads);
        bool is_about_any = false;
        for (u32 q_block = first; q_block < end; ++q_block) {
            is_about_any |= is_inside(q_block);
            u32 line = (shape.symbol_batches == 1 ? 0 : batch) * shape.q_blocks + q_block;
            for (u32 head = 0; head < shape.heads; ++head) {
                bool is_there = is_inside(q_block) && is_in_set(batch, q_block, head);
                heads[head] = heads[head] || is_there;
                if (has(gemm.heads + line * words_for(shape.heads), head) != is_there) {
                    fail("plan: head %u of q-block %u should %sbe in the set", head, q_block, is_there ? "" : "not ");
                }
            }
        }
        u32 count = u32(std::count(heads.begin(), heads.end(), true));
        u32 tiles = is_about_any ? tiles_of_row(count, row % shape.slots) : 0;
        if (tiles == 0) continue;
        if (plan.order[live] != row || tiles_of(plan.lengths[live]) != tiles) {
            fail("plan: row %u of %u tiles is not the live row %u", row, tiles, live);
        }
        ++live;
    }
    if (plan.head->live != live) fail("plan: %u live rows, not %u", plan.head->live, live);
    if (plan.head->fill != 0) fail("plan: rows to be filled");
    if (plan.head->done != 0) fail("plan: the count of finished thread blocks is not zero again");
}

void Case::Expected::row(const u16* numbers, const std::vector<double>& values, const std::string& place) {
    for (size_t i = 0; i < values.size(); ++i) {
        is_written[numbers - it.out + i] = true;
        double x = emulator::widen(numbers[i], OMNI_BF16), error = std::fabs(x - values[i]) / (0.1 + std::fabs(values[i]));
        if (!(error < LIMIT)) fail("%s: column %zu is %g and should be %g", place.c_str(), i, x, values[i]);
    }
}

void Case::Expected::finish() const {
    for (size_t i = 0; i < it.out_numbers; ++i) {
        if (!is_written[i] && it.out[i] != 0xFFFF) fail("number %zu of the output was written and belongs to somebody else", i);
    }
}

void Case::check_output() const {
    Expected expected(*this);
    expect(expected);
    expected.finish();
    for (u32 i = 0; i < 2 * gemm.plan.ctas; ++i) {
        if (gemm.plan.arrived[i] != 0) fail("the count of pieces that arrived is not zero again");
    }
}

std::vector<float> widen(const u16* numbers, u32 count) {
    std::vector<float> values(count);
    for (u32 i = 0; i < count; ++i) values[i] = emulator::widen(numbers[i], OMNI_BF16);
    return values;
}

std::string Case::text() const {
    const GemmShape& shape = gemm.shape;
    const char* sets[] = {"all tiles", "live tiles", "cached tiles", "uncached tiles"};
    char text[250];
    const char* format = "batch %u, %u heads, tokens %u .. %u of %u in %u %s blocks, %u k-steps, %u columns, %u slots, %s, %u thread blocks";
    std::snprintf(text, sizeof text, format, shape.batch, shape.heads, shape.first_token, last_token(), shape.q_tokens, shape.q_blocks,
                  gemm.symbols.q_start ? "irregular" : "regular", shape.steps, shape.columns, shape.slots, sets[shape.set], gemm.plan.ctas);
    return text;
}
