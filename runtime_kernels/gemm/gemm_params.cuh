// Parameters of the projections around attention, passed by value: plain structs that src/kernels/params.rs mirrors field by field.
#pragma once
#include "params.cuh"

// Which (q-block, head) tiles a projection is about.
constexpr u32 ALL_TILES = 0;    // every one; there may be no symbols then
constexpr u32 LIVE_TILES = 1;   // those that attention computes: the bit of S_c is 1, and some bit of S_s
constexpr u32 CACHED_TILES = 2; // those that take a cached feature: the bit of S_c is 0
constexpr u32 UNCACHED_TILES = 3; // all others, whether they keep something or not

// The sizes of a launch. A projection is about `tokens` tokens from `first_token` on, those of one stream; q-blocks are those of all tokens, and
// of one that the range cuts the part inside counts.
struct GemmShape {
    u32 batch;
    u32 heads;
    u32 q_tokens; // all of them
    u32 q_blocks;
    u32 kv_blocks;
    u32 symbol_batches; // 1: every batch entry obeys the same symbols; otherwise equal to `batch`
    u32 first_token;
    u32 tokens;
    u32 steps;   // k-steps of 64: GEMM-Q of the reduction, GEMM-O of the inputs behind the heads
    u32 columns; // GEMM-O: features of the output; GEMM-Q: 0
    u32 slots;   // tiles of a q-block, or of a pair of them, at most
    u32 set;     // ALL_TILES and so on
};
static_assert(sizeof(GemmShape) == 48, "mirrored by GemmShape in src/kernels/params.rs");

// What both kernels share, and all that gemm/plan.cu looks at. Its rows are (batch, q-block or pair of them, slot), and the tiles of a row one
// for the end of its output, then one for each k-step.
struct GemmParams {
    GemmShape shape;
    Symbols symbols; // cache and skip are null with ALL_TILES; q_start is null where every q-block is regular; nothing else is read
    Plan plan;       // partial_out is [2 * ctas][128][TILE_COLUMNS], partial_stats null
    u64* heads;      // [symbol_batches][q_blocks][ceil(heads / 64)] the heads of each q-block that are in the set; none where no token is in the range
};
static_assert(sizeof(GemmParams) == 184, "mirrored by GemmParams in src/kernels/params.rs");

// out[b, h, t, :] = rotary(norm(x[b, t, :] w[h, :, :]^T + bias[h, :])) for the tiles of the set.
struct GemmQParams {
    GemmParams gemm;
    Tensor4 out;         // [batch, heads, tokens, head_dim], from first_token on
    const float* bias;   // [heads, head_dim]; nullable
    const float* norm;   // [head_dim] weights of RMSNorm; nullable
    const float* rotary; // [q_tokens, head_dim / 2, 2] cosine and sine; nullable
    float epsilon;       // of RMSNorm
    u32 halves;          // 1: channels i and i + head_dim / 2 turn together; 0: channels 2 i and 2 i + 1
};
static_assert(sizeof(GemmQParams) == 248, "mirrored by GemmQParams in src/kernels/params.rs");

// out[b, t, :] = sum over heads h of the set of o[b, h, t, :] w[:, h, :]^T + further[b, t, :] w[:, behind the heads]^T + bias
//              + sum over i of weights[i] terms[i][b, t, :]
struct GemmOParams {
    GemmParams gemm;
    Tensor4 out;       // [batch, 1, tokens, columns], from first_token on
    const float* bias; // [columns]; nullable
    float weights[MAX_ORDER + 1];
    u32 count; // terms
};
static_assert(sizeof(GemmOParams) == 248, "mirrored by GemmOParams in src/kernels/params.rs");

// What the portable kernels take for tensor maps: rows begin at multiples of 16 bytes and have a multiple of 8 numbers.
struct GemmQOperands {
    Tensor4 x;  // [batch, 1, tokens, inputs], from first_token on
    Tensor4 w;  // [1, heads, head_dim, inputs]
    u32 inputs; // of the reduction: `steps` k-steps, of which the last may be cut
    u32 reserved;
};
static_assert(sizeof(GemmQOperands) == 72, "mirrored by GemmQOperands in src/kernels/params.rs");

struct GemmOOperands {
    Tensor4 o;                    // [batch, heads, q_tokens, head_dim], of all tokens
    Tensor4 further;              // [batch, 1, tokens, further_inputs], from first_token on; not looked at where there are none
    Tensor4 w;                    // [1, 1, columns, heads * head_dim + further_inputs]
    Tensor4 terms[MAX_ORDER + 1]; // [batch, 1, tokens, columns], from first_token on
    u32 further_inputs;           // `steps` k-steps, of which the last may be cut
    u32 reserved;
};
static_assert(sizeof(GemmOOperands) == 264, "mirrored by GemmOOperands in src/kernels/params.rs");
