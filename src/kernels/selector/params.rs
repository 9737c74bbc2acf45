//! The parameters of the selector kernels: `runtime_kernels/selector/params.cuh`, field by field.
//!
//! Addresses are numbers here, and 0 is null. What each of them points to is said there; a test compares names, order and sizes.

use crate::kernels::mirrored::mirrored;

/// Most factors of the terms of a program.
pub const MAX_TERMS: usize = 32;
/// Most tensors that are pooled in a launch.
pub const MAX_SIDES: usize = 3;

mirrored! {
    /// q, k or v of a layer as it is given: 16-bit numbers whose rows of `dim` lie together, at multiples of 16 bytes.
    Tokens, 48 {
        /// Data.
        data: u64,
        /// In numbers.
        head_stride: u64,
        /// In numbers.
        token_stride: u64,
        /// `[heads]`: which of the tensor's heads each is.
        heads: u64,
        /// `[tokens]`: where each token of the arrangement stands in the tensor; null where they are in place.
        order: u64,
        /// Dim.
        dim: u32,
        /// 1: bf16; 0: fp16.
        is_bf16: u32,
    }
    /// Statistics of the tokens of blocks of a tensor, vectors `[heads][blocks][dim]` each; null where not wanted.
    PooledSide, 96 {
        /// Tokens.
        tokens: Tokens,
        /// `[blocks + 1]`: first token of each block.
        offsets: u64,
        /// Mean.
        mean: u64,
        /// Sum.
        sum: u64,
        /// Least.
        least: u64,
        /// Most.
        most: u64,
        /// Blocks.
        blocks: u32,
        /// Zero.
        reserved: u32,
    }
    /// Statistics of the blocks of all tensors that a program pools.
    PoolParams, 304 {
        /// Sides.
        sides: [PooledSide; MAX_SIDES],
        /// `[1]`: becomes 1 where something is NaN or infinite.
        status: u64,
        /// Of each side.
        heads: u32,
        /// Zero.
        reserved: u32,
    }
    /// Means without the mean of the whole sequence.
    CentreParams, 40 {
        /// `[heads][blocks][dim]`.
        mean: u64,
        /// `[heads][blocks][dim]`.
        sum: u64,
        /// `[heads][blocks][dim]`.
        out: u64,
        /// Blocks.
        blocks: u32,
        /// Dim.
        dim: u32,
        /// Tokens.
        tokens: u32,
        /// Zero.
        reserved: u32,
    }
    /// Tokens as they are, or groups of `stride` tokens one behind the other.
    EachParams, 88 {
        /// Tokens.
        tokens: Tokens,
        /// `[count]`: which tokens; null: groups.
        places: u64,
        /// `[heads][count][dim]`, or `[heads][count][stride * dim]`.
        out: u64,
        /// `[1]`: becomes 1 where something is NaN or infinite.
        status: u64,
        /// Count.
        count: u32,
        /// Tokens of a group.
        stride: u32,
        /// 1: the last token of a group comes first.
        is_reversed: u32,
        /// Tokens of the sequence: what the last group lacks is zero.
        available: u32,
    }
    /// Mean cosine between the tokens of each block.
    SimilarityParams, 80 {
        /// Tokens.
        tokens: Tokens,
        /// `[blocks + 1]`.
        offsets: u64,
        /// `[heads][blocks]`.
        out: u64,
        /// `[1]`: becomes 1 where something is NaN or infinite.
        status: u64,
        /// Blocks.
        blocks: u32,
        /// Zero.
        reserved: u32,
    }
    /// Dot products of vectors of both sides.
    DotParams, 48 {
        /// `[heads][rows][dim]`.
        a: u64,
        /// `[heads][columns][dim]`.
        b: u64,
        /// `[heads][rows][columns]`.
        out: u64,
        /// `[heads]`: what they are divided by or multiplied with; null: neither.
        by: u64,
        /// Rows.
        rows: u32,
        /// Columns.
        columns: u32,
        /// Dim.
        dim: u32,
        /// Multiplies.
        multiplies: u32,
    }
    /// An operation on each channel of vectors.
    VectorsParams, 48 {
        /// A.
        a: u64,
        /// As `a` where there is one operand.
        b: u64,
        /// `[heads][elements][dim]`.
        out: u64,
        /// An Operand.
        a_is: u32,
        /// An Operand.
        b_is: u32,
        /// A VectorOp.
        op: u32,
        /// Elements.
        elements: u32,
        /// Dim.
        dim: u32,
        /// Zero.
        reserved: u32,
    }
    /// Lines of numbers: softmax, shares and reductions of each, or channels of vectors. Number i of line l of head h stands at
    /// `h * head_stride + l * line_stride + i * step`, so that lines may be rows or columns of a part of a matrix.
    LinesParams, 64 {
        /// Value.
        value: u64,
        /// As the value, with strides of its own; reductions: `[lines]`.
        out: u64,
        /// Head stride.
        head_stride: u64,
        /// Out head stride.
        out_head_stride: u64,
        /// Line stride.
        line_stride: u32,
        /// Step.
        step: u32,
        /// Out line stride.
        out_line_stride: u32,
        /// Out step.
        out_step: u32,
        /// Of all heads.
        lines: u32,
        /// Lines of head.
        lines_of_head: u32,
        /// Length.
        length: u32,
        /// A Reduction.
        how: u32,
    }
    /// Numbers divided twice, in place.
    ScaleParams, 24 {
        /// `[count]`.
        value: u64,
        /// Count.
        count: u64,
        /// First.
        first: f32,
        /// Second.
        second: f32,
    }
    /// How much a selection takes, for a head.
    Amount, 20 {
        /// What running sums are compared with.
        amount: f32,
        /// 1 - amount.
        rest: f32,
        /// Of the standard normal distribution at the amount.
        quantile: f32,
        /// Of a top-k selection.
        count: u32,
        /// At least.
        at_least: u32,
    }
    /// A selection in each line.
    SelectParams, 80 {
        /// `[heads][lines][length]`.
        value: u64,
        /// As `value`: what running sums add up; null: the values.
        costs: u64,
        /// `[heads][lines][length]`.
        out: u64,
        /// `[heads]`.
        amount: u64,
        /// `[heads][lines_of_amounts]`: amounts of lines of their own; null: `amount` holds for all.
        amounts: u64,
        /// `[thread blocks][length]`: room of select_long.
        keys: u64,
        /// Of a head.
        lines: u32,
        /// Length.
        length: u32,
        /// A Rule.
        rule: u32,
        /// Is strict.
        is_strict: u32,
        /// 1: those that equal the last of the top are selected too.
        ties: u32,
        /// 1, or `lines`.
        lines_of_amounts: u32,
        /// Heads.
        heads: u32,
        /// Zero.
        reserved: u32,
    }
    /// Elements at other places: `out[h][r][c] = from[in_heads[h]][row_of[r] - shift][column_of[c]]`, zero where there is none. Element (r, c) of
    /// head h stands at `h * head_stride + r * row_stride + c * column_stride`.
    MoveParams, 88 {
        /// `[..][in_rows][in_columns]`.
        from: u64,
        /// `[heads][rows][columns]`.
        out: u64,
        /// `[heads]`; null: the same.
        in_heads: u64,
        /// `[rows]`: negative: none; null: the same.
        row_of: u64,
        /// `[columns]`.
        column_of: u64,
        /// `[heads]`; null: 0.
        shift: u64,
        /// Head stride.
        head_stride: u64,
        /// Row stride.
        row_stride: u32,
        /// Column stride.
        column_stride: u32,
        /// In rows.
        in_rows: u32,
        /// In columns.
        in_columns: u32,
        /// Rows.
        rows: u32,
        /// Columns.
        columns: u32,
        /// Of an element: 1 or 4.
        bytes: u32,
        /// 1: `shift` moves columns; 0: rows.
        shifts_columns: u32,
    }
    /// Rows become columns, in each of some matrices.
    TransposeParams, 40 {
        /// `[matrices][rows][columns]`, with strides.
        from: u64,
        /// `[matrices][columns][rows]`.
        out: u64,
        /// Matrix stride.
        matrix_stride: u64,
        /// Row stride.
        row_stride: u32,
        /// Rows.
        rows: u32,
        /// Columns.
        columns: u32,
        /// Of an element: 1 or 4.
        bytes: u32,
    }
    /// A range of rows or columns.
    Run, 8 {
        /// Start.
        start: u32,
        /// End.
        end: u32,
    }
    /// Tokens gathered to blocks.
    GatherParams, 56 {
        /// `[heads][in_rows][in_columns]`: floats, or bytes.
        from: u64,
        /// `[heads][rows][columns]`: of the same kind.
        out: u64,
        /// `[rows]`.
        row_runs: u64,
        /// `[columns]`.
        column_runs: u64,
        /// In rows.
        in_rows: u32,
        /// In columns.
        in_columns: u32,
        /// Rows.
        rows: u32,
        /// Columns.
        columns: u32,
        /// A Reduction.
        how: u32,
        /// Is bool.
        is_bool: u32,
    }
    /// Sums along the diagonals of queries over all keys.
    DiagonalsParams, 40 {
        /// `[heads][rows][keys]`.
        value: u64,
        /// `[heads][distances]`.
        out: u64,
        /// `[rows]`: where each query stands.
        queries: u64,
        /// Rows.
        rows: u32,
        /// Keys.
        keys: u32,
        /// Distances.
        distances: u32,
        /// Zero.
        reserved: u32,
    }
    /// Which blocks hold a pair at a chosen distance.
    OnDiagonalsParams, 48 {
        /// `[heads][distances]`.
        chosen: u64,
        /// `[heads][q_blocks][kv_blocks]`.
        out: u64,
        /// `[q_blocks + 1]`.
        q_start: u64,
        /// `[kv_blocks + 1]`.
        kv_start: u64,
        /// Q blocks.
        q_blocks: u32,
        /// Kv blocks.
        kv_blocks: u32,
        /// Distances.
        distances: u32,
        /// Zero.
        reserved: u32,
    }
    /// Shares of groups of tokens, summed over blocks.
    GroupSumsParams, 48 {
        /// `[heads][q_groups][kv_groups]`.
        value: u64,
        /// `[heads][q_blocks][kv_blocks]`.
        out: u64,
        /// `[q_blocks + 1]`: first group that begins in each block.
        q_start: u64,
        /// `[kv_blocks + 1]`.
        kv_start: u64,
        /// Q blocks.
        q_blocks: u32,
        /// Kv blocks.
        kv_blocks: u32,
        /// Q groups.
        q_groups: u32,
        /// Kv groups.
        kv_groups: u32,
    }
    /// A factor of a term of a program. The element of (row, column) is at `row_of[row] * row_stride + column_of[column] * column_stride`, and false where
    /// there is none; of q-blocks alone the column's stride is 0, and so on.
    Term, 56 {
        /// `[heads][..]`: bytes; null for a scalar.
        data: u64,
        /// `[heads]`: the scalar, truth is not 0; null otherwise.
        uniform: u64,
        /// `[q_blocks]`: negative: none; null: the same.
        row_of: u64,
        /// `[kv_blocks]`.
        column_of: u64,
        /// A Role.
        role: u32,
        /// 1: the next is a factor of the same term, which is true where all are.
        joins: u32,
        /// Head stride.
        head_stride: u32,
        /// Row stride.
        row_stride: u32,
        /// Column stride.
        column_stride: u32,
        /// Zero.
        reserved: u32,
    }
    /// Terms joined to symbols.
    PackParams, 1848 {
        /// S_c, `[slots][ceil(q_parts / 64)]`.
        cache: u64,
        /// S_s, `[slots][q_parts][ceil(kv_parts / 64)]`.
        skip: u64,
        /// `[heads]`: where each head's symbols belong; ~0 for one that has none.
        slots: u64,
        /// `[q_parts]`: the block of each part of one that was cut; null where none was.
        q_of: u64,
        /// `[kv_parts]`.
        kv_of: u64,
        /// Q parts.
        q_parts: u32,
        /// Kv parts.
        kv_parts: u32,
        /// Count.
        count: u32,
        /// Zero.
        reserved: u32,
        /// Terms.
        terms: [Term; MAX_TERMS],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::mirrored::check;
    use crate::kernels::source;

    #[test]
    fn the_header_has_the_same_fields_in_the_same_order() {
        let header = source::selector_params_header();
        check(header, MIRRORED);
        for constant in [format!("MAX_TERMS = {MAX_TERMS};"), format!("MAX_SIDES = {MAX_SIDES};")] {
            assert!(header.contains(&format!("constexpr u32 {constant}")), "{constant}");
        }
    }
}
