// Parameters of the kernels, passed by value: plain structs that src/kernels/params.rs mirrors field by field.
//
// Every pointer says what it points to, in row-major order, and whether it may be null. Sizes and offsets are asserted here
// and by a test on the other side.
#pragma once
#include "common/types.cuh"

// Highest order of a forecast, and so the number of its terms less one.
constexpr u32 MAX_ORDER = 4;

// A tensor [batch, heads, tokens, head_dim] of 16-bit numbers whose rows of head_dim lie together. Strides count elements; for
// TMA they are multiples of 8 and the address one of 16 bytes.
struct Tensor4 {
    void* data;
    u64 batch_stride;
    u64 head_stride;
    u64 token_stride;
};
static_assert(sizeof(Tensor4) == 32, "mirrored by Tensor4 in src/kernels/params.rs");

// The shape of one launch. q-blocks have at most 128 tokens, kv-blocks at most KV_BLOCK; `heads` is a multiple of `kv_heads`.
struct Shape {
    u32 batch;
    u32 heads;
    u32 kv_heads;
    u32 q_tokens;
    u32 kv_tokens;
    u32 q_blocks;
    u32 kv_blocks;
    u32 symbol_batches; // 1: every batch entry obeys the same symbols; otherwise equal to `batch`
};
static_assert(sizeof(Shape) == 32, "mirrored by Shape in src/kernels/params.rs");

// Sparse symbols as src/symbols lays them out: rows of 64-bit words, bits least significant first, padding zero.
// `rows` is symbol_batches * heads * q_blocks, `words` is ceil(kv_blocks / 64).
struct Symbols {
    const u64* cache;         // S_c [symbol_batches * heads][ceil(q_blocks / 64)]
    const u64* skip;          // S_s [rows][words]
    const u64* partial;       // S_p [rows][words]; null where every block is whole
    const u32* partial_start; // [rows + 1] number of the first partial block of each row; null with `partial`
    const u32* tile_of;       // [partial blocks] its token mask; null with `partial`
    const u64* tiles;         // [tiles][128][KV_BLOCK / 64] token masks, query token by key token; null with `partial`
    const u32* q_start;       // [q_blocks + 1] first token of each q-block
    const u32* kv_start;      // [kv_blocks + 1] first token of each kv-block
};
static_assert(sizeof(Symbols) == 64, "mirrored by Symbols in src/kernels/params.rs");

// Where a block of threads begins its share of the rows that are divided: block `tile` of the row at `item`.
struct Cut {
    u32 item;
    u32 tile;
};

// The work of a launch, made by plan.cu from the symbols. Row numbers count (batch, head, q-block).
//
// Thread block c of `ctas` does the rows order[c + wave * ctas] for each wave < head->waves as a whole, and its share of the rest:
// from cuts[c] up to cuts[c + 1]. Only the rest is divided, so that all finish together. A row's length counts the tiles of
// 128 keys that its kv-blocks fill.
struct Plan {
    struct Head* head;    // [1]
    struct Cut* cuts;     // [ctas + 1]
    u32* order;           // [all rows] rows with live blocks first; from the end backwards, rows to be filled
    u32* lengths;         // [all rows] tiles of each row in `order`, or of each row while the plan is being made
    u32* arrived;         // [ctas][2] pieces of a divided row that are done, by the thread block that began it; zero between launches
    float* partial_out;   // [2 * ctas][128][head_dim] outputs of the pieces, not normalised
    float* partial_stats; // [2 * ctas][128][2] maximum (base 2, scaled) and sum of each row of a piece
    u32 ctas;
    u32 fill_cached; // 1: rows of cached q-blocks are filled with the forecast; 0: they stay untouched
};
static_assert(sizeof(Plan) == 64, "mirrored by Plan in src/kernels/params.rs");

// What plan.cu has found.
struct Head {
    u32 live;  // rows that have live blocks and are not cached
    u32 waves; // rows that each thread block does as a whole
    u32 fill;  // rows that are not computed and whose output is written: zeros, or a forecast
    u32 done;  // thread blocks of plan.cu that have finished; zero between launches
};

// The forecast of cached q-blocks: sum of weights[i] * terms[i]. With no terms, they stay untouched.
struct Forecast {
    const float* terms[MAX_ORDER + 1]; // [batch, heads, q_tokens, head_dim]
    float weights[MAX_ORDER + 1];
    u32 count;
};
static_assert(sizeof(Forecast) == 64, "mirrored by Forecast in src/kernels/params.rs");

// out = softmax(scale * q k^T + mask) v under sparse symbols.
struct AttentionParams {
    Tensor4 q;   // [batch, heads, q_tokens, head_dim]
    Tensor4 k;   // [batch, kv_heads, kv_tokens, head_dim]
    Tensor4 v;   // [batch, kv_heads, kv_tokens, head_dim]
    Tensor4 out; // [batch, heads, q_tokens, head_dim]
    float* lse;  // [batch, heads, q_tokens] natural logarithm of the sum of exponentials; nullable
    float scale_log2; // factor of the scores times log2(e)
    u32 reserved;
    Shape shape;
    Symbols symbols;
    Plan plan;
    Forecast forecast;
};
static_assert(sizeof(AttentionParams) == 368, "mirrored by AttentionParams in src/kernels/params.rs");

// The differences of a feature at an update; tensors are contiguous, `pieces` times 8 numbers of 16 bits.
struct FeaturesUpdate {
    const void* feature;
    void* terms[MAX_ORDER + 1]; // F_0 .. of the update before; those of this one afterwards
    u64 pieces;
    float distance; // steps from the update before
    u32 count;      // terms that are known afterwards, 1 to MAX_ORDER + 1
};
static_assert(sizeof(FeaturesUpdate) == 64, "mirrored by FeaturesUpdate in src/kernels/params.rs");

// A weighted sum of tensors, contiguous, `pieces` times 8 numbers of 16 bits.
struct FeaturesSum {
    void* out;
    const void* terms[MAX_ORDER + 1];
    u64 pieces;
    float weights[MAX_ORDER + 1];
    u32 count; // terms
};
static_assert(sizeof(FeaturesSum) == 80, "mirrored by FeaturesSum in src/kernels/params.rs");
