// What a plan and an output must be: the semantics of runtime_kernels/README.md once more, in double precision and without any tiles.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "case.h"
#include "numbers.h"

using emulator::fail;

namespace {

// The rows that share a piece of work with one that is computed, itself among them, the first first.
std::vector<u32> shared_rows(const Case& it, u32 row) {
    if (Q_PARTS == 1) return {row};
    u32 first = row - row % it.params.shape.q_blocks, end = first + it.params.shape.q_blocks;
    std::vector<u32> computed;
    for (u32 other = first; other < end; ++other) {
        if (it.is_live(other)) computed.push_back(other);
    }
    size_t begin = (std::find(computed.begin(), computed.end(), row) - computed.begin()) / 2 * 2;
    return {computed.begin() + begin, computed.begin() + std::min(begin + 2, computed.size())};
}

// The kv-blocks that some of these rows attend to.
u32 live_blocks(const Case& it, const std::vector<u32>& rows) {
    u32 blocks = 0;
    for (u32 block = 0; block < it.params.shape.kv_blocks; ++block) {
        blocks += std::any_of(rows.begin(), rows.end(), [&](u32 row) { return it.attends(row, block); });
    }
    return blocks;
}

} // namespace

void check_plan(const Case& it) {
    const Plan& plan = it.params.plan;
    u32 live = 0, fill = 0;
    for (u32 row = 0; row < it.rows(); ++row) {
        std::vector<u32> shared = it.is_live(row) ? shared_rows(it, row) : std::vector<u32>{row};
        u32 tiles = (live_blocks(it, shared) + TILE / KV_BLOCK - 1) / (TILE / KV_BLOCK);
        if (it.is_live(row) && tiles > 0) {
            if (shared[0] != row) continue;
            if (plan.order[live] != row || plan.lengths[live] != tiles) {
                fail("plan: row %u of %u tiles is not the live row %u", row, tiles, live);
            }
            ++live;
        } else if (it.is_live(row) || plan.fill_cached) {
            ++fill;
            if (plan.order[it.rows() - fill] != row) fail("plan: row %u is not filled in its turn", row);
        }
    }
    if (plan.head->live != live || plan.head->fill != fill) {
        fail("plan: %u live and %u filled rows, not %u and %u", plan.head->live, plan.head->fill, live, fill);
    }
    if (plan.head->done != 0) fail("plan: the count of finished thread blocks is not zero again");
}

namespace {

// Largest error that rounding to 16 bits explains, relative to 1 + |x|.
constexpr double OUT_LIMIT = OMNI_BF16 ? 0.02 : 0.004;
constexpr double LSE_LIMIT = 1e-3;

float widen(u16 x) { return emulator::widen(x, OMNI_BF16); }

// One query token of one head.
struct Query {
    u32 batch, head, row, q_block, token;
};

struct Expected {
    double out[HEAD_DIM] = {};
    double lse = -INFINITY;
    bool writes_out = false;
    bool writes_lse = false;
};

// The keys that the symbols leave to a query.
std::vector<u32> keys_of(const Case& it, const Query& query) {
    std::vector<u32> keys;
    const Shape& shape = it.params.shape;
    u32 row = it.symbol_row(query.row), number = it.partial_start[row];
    const u64* partial = it.partial + row * ((shape.kv_blocks + 63) / 64);
    for (u32 block = 0; block < shape.kv_blocks; ++block) {
        const u64* mask = nullptr;
        if (partial[block / 64] >> block % 64 & 1) {
            u32 mask_row = it.tile_of[number++] * BLOCK_Q + query.token - it.q_start[query.q_block];
            mask = it.tiles + mask_row * MASK_WORDS_PER_ROW;
        }
        if (!it.attends(query.row, block)) continue;
        for (u32 key = it.kv_start[block]; key < it.kv_start[block + 1]; ++key) {
            u32 place = key - it.kv_start[block];
            if (mask == nullptr || (mask[place / 64] >> place % 64 & 1)) keys.push_back(key);
        }
    }
    return keys;
}

void attend(const Case& it, const Query& query, Expected& expected) {
    const AttentionParams& params = it.params;
    u32 kv_head = query.head / (params.shape.heads / params.shape.kv_heads);
    std::vector<u32> keys = keys_of(it, query);
    if (keys.empty()) return;
    float q[HEAD_DIM];
    for (u32 d = 0; d < HEAD_DIM; ++d) q[d] = widen(line_of(params.q, query.batch, query.head, query.token)[d]);
    std::vector<double> scores;
    for (u32 key : keys) {
        const u16* k = line_of(params.k, query.batch, kv_head, key);
        double score = 0;
        for (u32 d = 0; d < HEAD_DIM; ++d) score += double(q[d]) * widen(k[d]);
        scores.push_back(score * it.scale);
    }
    double largest = *std::max_element(scores.begin(), scores.end()), sum = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
        double weight = std::exp(scores[i] - largest);
        const u16* v = line_of(params.v, query.batch, kv_head, keys[i]);
        for (u32 d = 0; d < HEAD_DIM; ++d) expected.out[d] += weight * widen(v[d]);
        sum += weight;
    }
    for (double& x : expected.out) x /= sum;
    expected.lse = largest + std::log(sum);
}

void forecast(const Case& it, const Query& query, Expected& expected) {
    const Forecast& forecast = it.params.forecast;
    size_t place = (size_t(query.batch) * it.params.shape.heads + query.head) * it.params.shape.q_tokens + query.token;
    for (u32 term = 0; term < forecast.count; ++term) {
        for (u32 d = 0; d < HEAD_DIM; ++d) expected.out[d] += double(forecast.weights[term]) * forecast.terms[term][place * HEAD_DIM + d];
    }
}

Expected expect(const Case& it, const Query& query) {
    Expected expected;
    if (it.is_live(query.row)) {
        expected.writes_out = true;
        expected.writes_lse = it.params.lse != nullptr;
        attend(it, query, expected);
    } else if (it.params.plan.fill_cached && it.params.forecast.count > 0) {
        expected.writes_out = true;
        forecast(it, query, expected);
    }
    return expected;
}

bool is_untouched(float x) { return emulator::bits_of(x) == 0xFFFFFFFF; }

void compare(const Case& it, const Query& query) {
    Expected expected = expect(it, query);
    const u16* out = line_of(it.params.out, query.batch, query.head, query.token);
    char place[100];
    const char* format = "batch entry %u, head %u, q-block %u, token %u: ";
    std::snprintf(place, sizeof place, format, query.batch, query.head, query.q_block, query.token);
    for (u32 d = 0; d < HEAD_DIM; ++d) {
        if (!expected.writes_out) {
            if (out[d] != 0xFFFF) fail("%scached, but column %u was written", place, d);
            continue;
        }
        double error = std::fabs(widen(out[d]) - expected.out[d]) / (1 + std::fabs(expected.out[d]));
        if (!(error < OUT_LIMIT)) fail("%scolumn %u is %g and should be %g", place, d, widen(out[d]), expected.out[d]);
    }
    float lse = it.lse[(size_t(query.batch) * it.params.shape.heads + query.head) * it.params.shape.q_tokens + query.token];
    if (!expected.writes_lse) {
        if (!is_untouched(lse)) fail("%slse was written", place);
    } else if (lse != float(expected.lse) && !(std::fabs(lse - expected.lse) < LSE_LIMIT * (1 + std::fabs(expected.lse)))) {
        fail("%slse is %g and should be %g", place, lse, expected.lse);
    }
}

// Between rows of a head lies what belongs to somebody else.
void check_padding(const Case& it) {
    const Tensor4& out = it.params.out;
    u64 line = std::min(out.token_stride, out.head_stride);
    // One head or token alone has no stride that is a line.
    if (it.params.shape.heads == 1) line = out.token_stride;
    const u16* data = static_cast<const u16*>(out.data);
    for (size_t i = 0; i < it.out_numbers; ++i) {
        if (i % line >= HEAD_DIM && data[i] != 0xFFFF) fail("the padding behind a row of the output was written");
    }
}

} // namespace

void check_output(const Case& it) {
    const Shape& shape = it.params.shape;
    for (u32 row = 0; row < it.rows(); ++row) {
        u32 q_block = row % shape.q_blocks, head = row / shape.q_blocks % shape.heads, batch = row / shape.q_blocks / shape.heads;
        for (u32 token = it.q_start[q_block]; token < it.q_start[q_block + 1]; ++token) compare(it, {batch, head, row, q_block, token});
    }
    check_padding(it);
    for (u32 i = 0; i < 2 * it.params.plan.ctas; ++i) {
        if (it.params.plan.arrived[i] != 0) fail("the count of pieces that arrived is not zero again");
    }
}
