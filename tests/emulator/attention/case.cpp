// How random cases are made. They are small, so that there can be many, and favour what kernels get wrong: odd lengths, rows of a single
// tile, rows that attend to nothing, more thread blocks than rows.
#include "case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace {

constexpr u32 MOST_THREAD_BLOCKS = 6;
constexpr u32 TOKEN_MASKS = 3;

} // namespace

Case::Case(u64 seed) : random(seed) {
    Shape& shape = params.shape;
    shape.batch = random.one_in(3) ? 2 : 1;
    shape.kv_heads = random.one_in(3) ? 2 : 1;
    shape.heads = shape.kv_heads * random.between(1, 2);
    choose_blocks();
    choose_symbols();
    choose_tensors();
    choose_forecast();
    choose_plan();
}

void Case::choose_blocks() {
    if (MASKS) {
        // Now and then so many q-blocks that a row of bits has more than one word.
        bool has_many = Q_PARTS > 1 && random.one_in(5);
        q_start = irregular_blocks(random, has_many ? random.between(60, 80) : random.between(1, 3 * Q_PARTS), has_many ? 4 : Q_BLOCK);
        u32 most = (random.one_in(4) ? 9 : 5) * (TILE / KV_BLOCK);
        // Now and then so many blocks that a row of bits has more than one word, and so small that they are cheap.
        bool has_words = !has_many && random.one_in(7);
        u32 count = has_words ? random.between(60, 140) : random.between(1, most);
        kv_start = irregular_blocks(random, count, has_words ? 8 : KV_BLOCK);
    } else {
        u32 q_tokens = random.between(1, 300), kv_tokens = random.between(1, random.one_in(4) ? 1500 : 800);
        if (random.one_in(4)) kv_tokens = (kv_tokens + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
        q_start = regular_blocks(q_tokens, BLOCK_Q);
        kv_start = regular_blocks(kv_tokens, KV_BLOCK);
    }
    Shape& shape = params.shape;
    shape.q_tokens = q_start.back();
    shape.kv_tokens = kv_start.back();
    shape.q_blocks = u32(q_start.size()) - 1;
    shape.kv_blocks = u32(kv_start.size()) - 1;
    shape.symbol_batches = random.one_in(2) ? 1 : shape.batch;
}

void Case::choose_symbols() {
    const Shape& shape = params.shape;
    u32 lines = shape.symbol_batches * shape.heads, rows = lines * shape.q_blocks;
    u32 cache_words = words_for(shape.q_blocks), words = words_for(shape.kv_blocks);
    u64* cache = memory.array<u64>(lines * cache_words, 0);
    u64* skip = memory.array<u64>(rows * words, 0);
    partial = memory.array<u64>(rows * words, 0);
    partial_start = memory.array<u32>(rows + 1, 0);

    double computed = random.one_in(3) ? 0.6 : 1;
    double attended = random.one_in(2) ? 1 : random.one_in(8) ? 0 : 0.25 * random.between(1, 3);
    double masked = MASKS ? 0.3 * random.below(3) : 0;
    for (u32 i = 0; i < lines * shape.q_blocks; ++i) {
        if (random.chance(computed)) cache[i / shape.q_blocks * cache_words + i % shape.q_blocks / 64] |= bit(i % shape.q_blocks);
    }
    for (u32 row = 0; row < rows; ++row) {
        double own = random.one_in(4) ? random.uniform() : attended;
        partial_start[row] = u32(tile_of.size());
        for (u32 block = 0; block < shape.kv_blocks; ++block) {
            if (random.chance(own)) skip[row * words + block / 64] |= bit(block);
            // Bits of S_p outside S_s mean nothing, but they count.
            if (!random.chance(masked)) continue;
            partial[row * words + block / 64] |= bit(block);
            tile_of.push_back(random.below(TOKEN_MASKS));
        }
    }
    partial_start[rows] = u32(tile_of.size());

    // The first mask is causal and has rows without any key.
    tiles = memory.array<u64>(TOKEN_MASKS * BLOCK_Q * MASK_WORDS_PER_ROW, 0);
    for (u32 i = 0; i < TOKEN_MASKS * BLOCK_Q * MASK_WORDS_PER_ROW; ++i) {
        u32 row = i / MASK_WORDS_PER_ROW;
        u64 causal = row % 5 == 0 ? 0 : bit(row) - 1;
        tiles[i] = row < BLOCK_Q ? causal : random.next();
    }
    params.symbols = {cache, skip, nullptr, nullptr, nullptr, nullptr, memory.copy(q_start), memory.copy(kv_start)};
    if (masked == 0) return;
    params.symbols.partial = partial;
    params.symbols.partial_start = partial_start;
    params.symbols.tile_of = memory.copy(tile_of);
    params.symbols.tiles = tiles;
}

// What is not filled is NaN.
Tensor4 Case::tensor(u32 heads, u32 tokens, bool is_filled, size_t& numbers) {
    Tensor4 it = make_tensor(memory, random, {params.shape.batch, heads, tokens, HEAD_DIM}, numbers);
    for (u32 i = 0; is_filled && i < params.shape.batch * heads * tokens; ++i) {
        fill_normal(random, line_of(it, i / tokens / heads, i / tokens % heads, i % tokens), HEAD_DIM);
    }
    return it;
}

void Case::choose_tensors() {
    const Shape& shape = params.shape;
    size_t ignored;
    params.q = tensor(shape.heads, shape.q_tokens, false, ignored);
    for (u32 row = 0; row < rows(); ++row) {
        // Nobody may have made the queries of what is not computed.
        if (!is_live(row) || !attends_to_any(row)) continue;
        u32 line = row / shape.q_blocks, block = row % shape.q_blocks;
        for (u32 token = q_start[block]; token < q_start[block + 1]; ++token) {
            fill_normal(random, line_of(params.q, line / shape.heads, line % shape.heads, token), HEAD_DIM);
        }
    }
    params.k = tensor(shape.kv_heads, shape.kv_tokens, true, ignored);
    params.v = tensor(shape.kv_heads, shape.kv_tokens, true, ignored);
    params.out = tensor(shape.heads, shape.q_tokens, false, out_numbers);
    lse_numbers = size_t(shape.batch) * shape.heads * shape.q_tokens;
    lse = memory.array<float>(lse_numbers, UNTOUCHED);
    params.lse = random.one_in(3) ? nullptr : lse;
    scale = random.one_in(5) ? 1.5f : 1 / std::sqrt(float(HEAD_DIM));
    params.scale_log2 = scale * 1.4426950408889634f;
}

void Case::choose_forecast() {
    if (random.one_in(2)) return;
    params.forecast.count = random.between(1, 3);
    for (u32 term = 0; term < params.forecast.count; ++term) {
        float* values = memory.array<float>(lse_numbers * HEAD_DIM, 0);
        for (size_t i = 0; i < lse_numbers * HEAD_DIM; ++i) values[i] = float(random.uniform()) * 4 - 2;
        params.forecast.terms[term] = values;
        params.forecast.weights[term] = 0.5f * term + 1;
    }
}

void Case::choose_plan() {
    Plan& plan = params.plan;
    plan.ctas = random.between(1, MOST_THREAD_BLOCKS);
    plan.fill_cached = random.below(2);
    plan.head = memory.array<Head>(1, 0);
    plan.cuts = memory.array<Cut>(plan.ctas + 1, UNTOUCHED);
    plan.order = memory.array<u32>(rows(), UNTOUCHED);
    plan.lengths = memory.array<u32>(rows(), UNTOUCHED);
    plan.arrived = memory.array<u32>(2 * plan.ctas, 0);
    plan.partial_out = memory.array<float>(2 * plan.ctas * BLOCK_Q * HEAD_DIM, UNTOUCHED);
    plan.partial_stats = memory.array<float>(2 * plan.ctas * BLOCK_Q * 2, UNTOUCHED);
    plan_blocks = random.between(1, 2);
}

void Case::clear_output() {
    const Plan& plan = params.plan;
    std::memset(params.out.data, UNTOUCHED, out_numbers * sizeof(u16));
    std::memset(lse, UNTOUCHED, lse_numbers * sizeof(float));
    std::memset(plan.partial_out, UNTOUCHED, sizeof(float) * 2 * plan.ctas * BLOCK_Q * HEAD_DIM);
    std::memset(plan.partial_stats, UNTOUCHED, sizeof(float) * 2 * plan.ctas * BLOCK_Q * 2);
}

u32 Case::symbol_row(u32 row) const {
    const Shape& shape = params.shape;
    return shape.symbol_batches == 1 ? row % (shape.heads * shape.q_blocks) : row;
}

bool Case::is_live(u32 row) const {
    u32 q_blocks = params.shape.q_blocks, own = symbol_row(row);
    return has(params.symbols.cache + own / q_blocks * words_for(q_blocks), own % q_blocks);
}

bool Case::attends(u32 row, u32 kv_block) const {
    return has(params.symbols.skip + symbol_row(row) * words_for(params.shape.kv_blocks), kv_block);
}

bool Case::attends_to_any(u32 row) const {
    for (u32 block = 0; block < params.shape.kv_blocks; ++block) {
        if (attends(row, block)) return true;
    }
    return false;
}

std::string Case::text() const {
    const Shape& shape = params.shape;
    char text[200];
    const char* format = "batch %u, %u heads, %u kv-heads, %u queries in %u blocks, %u keys in %u blocks, %u thread blocks";
    std::snprintf(text, sizeof text, format, shape.batch, shape.heads, shape.kv_heads, shape.q_tokens, shape.q_blocks, shape.kv_tokens,
                  shape.kv_blocks, params.plan.ctas);
    return text;
}
