// Parameters of the selector kernels, passed by value: plain structs that src/kernels/selector/params.rs mirrors field by field.
//
// A pass computes one value of a program after the other, for all heads in one launch: blockIdx.y is the head wherever heads differ.
// Values are arrays [heads][rows][columns] of floats, or of bytes 0 and 1; vectors are [heads][elements][dim] floats. What depends on
// the step, layer and head stands in the uniforms, a record for each place that was prepared; pointers to it are set for each run.
#pragma once
#include "common/types.cuh"

// q, k or v of a layer as it is given: 16-bit numbers whose rows of `dim` lie together, at multiples of 16 bytes.
struct Tokens {
    const u16* data;
    u64 head_stride;  // in numbers
    u64 token_stride; // in numbers
    const u32* heads; // [heads] which of the tensor's heads each is
    const u32* order; // [tokens] where each token of the arrangement stands in the tensor; null where they are in place
    u32 dim;
    u32 is_bf16; // 1: bf16; 0: fp16
};
static_assert(sizeof(Tokens) == 48, "mirrored by Tokens in src/kernels/selector/params.rs");

// Statistics of the tokens of blocks of a tensor, vectors [heads][blocks][dim] each; null where not wanted.
struct PooledSide {
    Tokens tokens;
    const u32* offsets; // [blocks + 1] first token of each block
    float* mean;
    float* sum;
    float* least;
    float* most;
    u32 blocks;
    u32 reserved;
};
static_assert(sizeof(PooledSide) == 96, "mirrored by PooledSide in src/kernels/selector/params.rs");

// Most tensors that are pooled in a launch.
constexpr u32 MAX_SIDES = 3;

// Statistics of the blocks of all tensors that a program pools.
struct PoolParams {
    PooledSide sides[MAX_SIDES];
    u32* status; // [1] becomes 1 where something is NaN or infinite
    u32 heads;   // of each side
    u32 reserved;
};
static_assert(sizeof(PoolParams) == 304, "mirrored by PoolParams in src/kernels/selector/params.rs");

// Means without the mean of the whole sequence.
struct CentreParams {
    const float* mean; // [heads][blocks][dim]
    const float* sum;  // [heads][blocks][dim]
    float* out;        // [heads][blocks][dim]
    u32 blocks;
    u32 dim;
    u32 tokens;
    u32 reserved;
};
static_assert(sizeof(CentreParams) == 40, "mirrored by CentreParams in src/kernels/selector/params.rs");

// Tokens as they are, or groups of `stride` tokens one behind the other.
struct EachParams {
    Tokens tokens;
    const u32* places; // [count] which tokens; null: groups
    float* out;        // [heads][count][dim], or [heads][count][stride * dim]
    u32* status;       // [1] becomes 1 where something is NaN or infinite
    u32 count;
    u32 stride;      // tokens of a group
    u32 is_reversed; // 1: the last token of a group comes first
    u32 available;   // tokens of the sequence: what the last group lacks is zero
};
static_assert(sizeof(EachParams) == 88, "mirrored by EachParams in src/kernels/selector/params.rs");

// Mean cosine between the tokens of each block.
struct SimilarityParams {
    Tokens tokens;
    const u32* offsets; // [blocks + 1]
    float* out;         // [heads][blocks]
    u32* status;        // [1] becomes 1 where something is NaN or infinite
    u32 blocks;
    u32 reserved;
};
static_assert(sizeof(SimilarityParams) == 80, "mirrored by SimilarityParams in src/kernels/selector/params.rs");

// Dot products of vectors of both sides.
struct DotParams {
    const float* a;  // [heads][rows][dim]
    const float* b;  // [heads][columns][dim]
    float* out;      // [heads][rows][columns]
    const float* by; // [heads] what they are divided by or multiplied with; null: neither
    u32 rows;
    u32 columns;
    u32 dim;
    u32 multiplies;
};
static_assert(sizeof(DotParams) == 48, "mirrored by DotParams in src/kernels/selector/params.rs");

// What an operand of an operation on vectors is.
enum class Operand : u32 {
    VECTORS = 0, // [heads][elements][dim]
    NUMBERS = 1, // [heads][elements]
    UNIFORM = 2, // [heads]
};

// An operation on vectors.
enum class VectorOp : u32 {
    NEGATE = 0,
    ABS = 1,
    ADD = 2,
    SUBTRACT = 3,
    MULTIPLY = 4,
    DIVIDE = 5,
    MIN = 6,
    MAX = 7,
};

// An operation on each channel of vectors.
struct VectorsParams {
    const float* a;
    const float* b; // as `a` where there is one operand
    float* out;     // [heads][elements][dim]
    u32 a_is;       // an Operand
    u32 b_is;       // an Operand
    u32 op;         // a VectorOp
    u32 elements;
    u32 dim;
    u32 reserved;
};
static_assert(sizeof(VectorsParams) == 48, "mirrored by VectorsParams in src/kernels/selector/params.rs");

// How numbers become one.
enum class Reduction : u32 {
    SUM = 0,
    MEAN = 1,
    MAX = 2,
    MIN = 3,
};

// Lines of numbers: softmax, shares and reductions of each, or channels of vectors. Number i of line l of head h stands at
// h * head_stride + l * line_stride + i * step, so that lines may be rows or columns of a part of a matrix.
struct LinesParams {
    const float* value;
    float* out; // as the value, with strides of its own; reductions: [lines]
    u64 head_stride;
    u64 out_head_stride;
    u32 line_stride;
    u32 step;
    u32 out_line_stride;
    u32 out_step;
    u32 lines; // of all heads
    u32 lines_of_head;
    u32 length;
    u32 how; // a Reduction
};
static_assert(sizeof(LinesParams) == 64, "mirrored by LinesParams in src/kernels/selector/params.rs");

// Numbers divided twice, in place.
struct ScaleParams {
    float* value; // [count]
    u64 count;
    float first;
    float second;
};
static_assert(sizeof(ScaleParams) == 24, "mirrored by ScaleParams in src/kernels/selector/params.rs");

// How much a selection takes, for a head.
struct Amount {
    float amount;   // what running sums are compared with
    float rest;     // 1 - amount
    float quantile; // of the standard normal distribution at the amount
    u32 count;      // of a top-k selection
    u32 at_least;
};
static_assert(sizeof(Amount) == 20, "mirrored by Amount in src/kernels/selector/params.rs");

// The rules of selections.
enum class Rule : u32 {
    TOP_K = 0,
    BOTTOM_K = 1,
    TOP_P = 2,           // descending, the element that crosses the mass is left out
    TOP_P_CROSSING = 3,  // descending, it is kept
    TOP_P_ASCENDING = 4, // sums start at the smallest
    BOTTOM_MASS = 5,
    STATISTICAL = 6,
};

// A selection in each line.
struct SelectParams {
    const float* value;  // [heads][lines][length]
    const float* costs;  // as `value`: what running sums add up; null: the values
    u8* out;             // [heads][lines][length]
    const Amount* amount; // [heads]
    const float* amounts; // [heads][lines_of_amounts] amounts of lines of their own; null: `amount` holds for all
    u64* keys;            // [thread blocks][length] room of select_long
    u32 lines;            // of a head
    u32 length;
    u32 rule; // a Rule
    u32 is_strict;
    u32 ties; // 1: those that equal the last of the top are selected too
    u32 lines_of_amounts; // 1, or `lines`
    u32 heads;
    u32 reserved;
};
static_assert(sizeof(SelectParams) == 80, "mirrored by SelectParams in src/kernels/selector/params.rs");

// Elements at other places: out[h][r][c] = from[in_heads[h]][row_of[r] - shift][column_of[c]], zero where there is none. Element (r, c) of
// head h stands at h * head_stride + r * row_stride + c * column_stride.
struct MoveParams {
    const u8* from;        // [..][in_rows][in_columns]
    u8* out;             // [heads][rows][columns]
    const u32* in_heads; // [heads]; null: the same
    const i32* row_of;   // [rows] negative: none; null: the same
    const i32* column_of; // [columns]
    const i32* shift;    // [heads]; null: 0
    u64 head_stride;
    u32 row_stride;
    u32 column_stride;
    u32 in_rows;
    u32 in_columns;
    u32 rows;
    u32 columns;
    u32 bytes;           // of an element: 1 or 4
    u32 shifts_columns;  // 1: `shift` moves columns; 0: rows
};
static_assert(sizeof(MoveParams) == 88, "mirrored by MoveParams in src/kernels/selector/params.rs");

// Rows become columns, in each of some matrices.
struct TransposeParams {
    const u8* from; // [matrices][rows][columns], with strides
    u8* out;      // [matrices][columns][rows]
    u64 matrix_stride;
    u32 row_stride;
    u32 rows;
    u32 columns;
    u32 bytes; // of an element: 1 or 4
};
static_assert(sizeof(TransposeParams) == 40, "mirrored by TransposeParams in src/kernels/selector/params.rs");

// A range of rows or columns.
struct Run {
    u32 start;
    u32 end;
};
static_assert(sizeof(Run) == 8, "mirrored by Run in src/kernels/selector/params.rs");

// Tokens gathered to blocks.
struct GatherParams {
    const u8* from;           // [heads][in_rows][in_columns] floats, or bytes
    u8* out;                // [heads][rows][columns] of the same kind
    const Run* row_runs;    // [rows]
    const Run* column_runs; // [columns]
    u32 in_rows;
    u32 in_columns;
    u32 rows;
    u32 columns;
    u32 how; // a Reduction
    u32 is_bool;
};
static_assert(sizeof(GatherParams) == 56, "mirrored by GatherParams in src/kernels/selector/params.rs");

// Sums along the diagonals of queries over all keys.
struct DiagonalsParams {
    const float* value;  // [heads][rows][keys]
    float* out;          // [heads][distances]
    const u32* queries;  // [rows] where each query stands
    u32 rows;
    u32 keys;
    u32 distances;
    u32 reserved;
};
static_assert(sizeof(DiagonalsParams) == 40, "mirrored by DiagonalsParams in src/kernels/selector/params.rs");

// Which blocks hold a pair at a chosen distance.
struct OnDiagonalsParams {
    const u8* chosen;    // [heads][distances]
    u8* out;             // [heads][q_blocks][kv_blocks]
    const u32* q_start;  // [q_blocks + 1]
    const u32* kv_start; // [kv_blocks + 1]
    u32 q_blocks;
    u32 kv_blocks;
    u32 distances;
    u32 reserved;
};
static_assert(sizeof(OnDiagonalsParams) == 48, "mirrored by OnDiagonalsParams in src/kernels/selector/params.rs");

// Shares of groups of tokens, summed over blocks.
struct GroupSumsParams {
    const float* value;  // [heads][q_groups][kv_groups]
    float* out;          // [heads][q_blocks][kv_blocks]
    const u32* q_start;  // [q_blocks + 1] first group that begins in each block
    const u32* kv_start; // [kv_blocks + 1]
    u32 q_blocks;
    u32 kv_blocks;
    u32 q_groups;
    u32 kv_groups;
};
static_assert(sizeof(GroupSumsParams) == 48, "mirrored by GroupSumsParams in src/kernels/selector/params.rs");

// What a term decides: `Role` in src/plan.
enum class Role : u32 {
    WHOLE = 0,
    SKIP = 2,
    CACHE = 3,
};

// A factor of a term of a program. The element of (row, column) is at row_of[row] * row_stride + column_of[column] * column_stride, and false where
// there is none; of q-blocks alone the column's stride is 0, and so on.
struct Term {
    const u8* data;  // [heads][..] bytes; null for a scalar
    const float* uniform; // [heads] the scalar, truth is not 0; null otherwise
    const i32* row_of;    // [q_blocks] negative: none; null: the same
    const i32* column_of; // [kv_blocks]
    u32 role;        // a Role
    u32 joins;       // 1: the next is a factor of the same term, which is true where all are
    u32 head_stride;
    u32 row_stride;
    u32 column_stride;
    u32 reserved;
};
static_assert(sizeof(Term) == 56, "mirrored by Term in src/kernels/selector/params.rs");

// Most factors of the terms of a program.
constexpr u32 MAX_TERMS = 32;

// Terms joined to symbols.
struct PackParams {
    u64* cache;      // S_c [slots][ceil(q_parts / 64)]
    u64* skip;       // S_s [slots][q_parts][ceil(kv_parts / 64)]
    const u32* slots; // [heads] where each head's symbols belong; ~0 for one that has none
    const u32* q_of; // [q_parts] the block of each part of one that was cut; null where none was
    const u32* kv_of; // [kv_parts]
    u32 q_parts;
    u32 kv_parts;
    u32 count;
    u32 reserved;
    Term terms[MAX_TERMS];
};
static_assert(sizeof(PackParams) == 1848, "mirrored by PackParams in src/kernels/selector/params.rs");
