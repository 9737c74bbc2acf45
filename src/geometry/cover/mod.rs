//! Which blocks a token predicate covers.
//!
//! A block pair holds up to 65,536 token pairs and a video model a million block pairs, so the predicate is not
//! tried pair by pair. Where it can tell few tokens apart, pairs of their classes decide. Otherwise it is evaluated over
//! *ranges* of tokens in interval arithmetic: every leaf gives its smallest and largest value in the range, and truth values
//! are false, true or unknown. One evaluation decides most block pairs; where it does not, the block is cut into runs of
//! 16 tokens, and what is still unknown into tokens, where intervals are points and the answer is exact. A whole row of
//! kv-ranges, or all pairs of runs or tokens of a block, are evaluated at once, operation by operation, in loops over
//! arrays; what is the same for all of them (two frames, say, and all that follows from their distance) is computed once.
//!
//! Values are double precision. Integers from 2^53 on are known by their bounds only: a block pair that these leave open is
//! covered by `any` and not by `all`, so that machine code, which is exact, decides its tokens. A [`Budget`] bounds the work, because a predicate can be
//! written that no range decides.

mod alike;
mod classes;
mod evaluator;
mod formula;
mod interval;
mod ranges;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use self::evaluator::{Evaluator, Part};
use self::formula::sizes;
pub use self::formula::{Formula, Known};
use super::tokens::TokenTable;
use crate::ir::{Extent, Graph, Lower, ValueId};
use crate::symbols::BitMatrix;

/// Operations on single pairs of ranges that the predicates of one plan may take, about a minute of two cores.
const MAX_OPERATIONS: u64 = 1 << 36;
/// Bytes of the registers of one thread, and of the coordinates of all tokens, at most.
const MAX_BYTES: usize = 1 << 28;

/// What is left of the work that the predicates of a plan may take.
pub struct Budget(AtomicU64);

impl Default for Budget {
    fn default() -> Self {
        Budget(AtomicU64::new(MAX_OPERATIONS))
    }
}

impl Budget {
    /// So many operations on single pairs of ranges.
    #[must_use]
    pub fn of(operations: u64) -> Self {
        Budget(AtomicU64::new(operations))
    }

    /// Takes some of it; `false` when too little is left. The sum decides, so that the order of threads does not.
    fn take(&self, operations: usize) -> bool {
        let left = |left: u64| Some(left.saturating_sub(operations as u64));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok_and(|left| left > operations as u64)
    }

    /// Takes some of it if there is enough, else nothing.
    fn try_take(&self, operations: usize) -> bool {
        let left = |left: u64| left.checked_sub(operations as u64).filter(|&left| left > 0);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }

    fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// The blocks that `predicate` covers: `[q_blocks][kv_blocks]`, or one row of the side it speaks of.
/// Scalars in it are constants.
///
/// # Errors
/// A sentence where it takes too much time or memory to find out.
pub fn cover(
    table: &TokenTable<'_>,
    graph: &Graph,
    predicate: ValueId,
    how: Lower,
    known: &mut Known,
    budget: &Budget,
) -> Result<BitMatrix, String> {
    let (nodes, leaves) = sizes(graph, predicate);
    let blocks = table.blocks();
    // Rows are of blocks or of classes, of which there may be more; grids are of runs and tokens.
    let width = classes::limit(blocks.kv_blocks()).max(256);
    if nodes.saturating_mul(width).saturating_mul(16) > MAX_BYTES
        || leaves.saturating_mul(table.tokens()).saturating_mul(8) > MAX_BYTES
    {
        return Err(format!(
            "{nodes} operations on {} tokens in {} blocks take more than {} MiB",
            table.tokens(),
            blocks.kv_blocks(),
            MAX_BYTES >> 20
        ));
    }
    budget.take(nodes * table.tokens());
    let formula = Formula::new(table, graph, predicate, known);
    let blocks_of = |offsets: &[u32]| -> Vec<Range<u32>> { offsets.windows(2).map(|pair| pair[0]..pair[1]).collect() };
    let any_token = || -> Vec<Range<u32>> { std::iter::once(0..1).collect() };
    let (q, kv) = match graph.ty(predicate).extent {
        _ if matches!(how, Lower::Density { .. }) => (blocks_of(&blocks.q), blocks_of(&blocks.kv)),
        Extent::Token { q: true, kv: false } => (blocks_of(&blocks.q), any_token()),
        Extent::Token { q: false, kv: true } => (any_token(), blocks_of(&blocks.kv)),
        Extent::Token { q: true, kv: true } => (blocks_of(&blocks.q), blocks_of(&blocks.kv)),
        _ => (any_token(), any_token()),
    };
    let (q, kv) = if how == Lower::Centre { (centres(&q), centres(&kv)) } else { (q, kv) };
    let (rows, columns) = (q.len(), kv.len());
    let words = classes::cover(&formula, how, &q, &kv, budget)
        .unwrap_or_else(|| ranges::cover(&formula, how, q, kv, table, budget));
    if budget.is_spent() {
        return Err(format!("more than {MAX_OPERATIONS} operations on tokens are needed to find the blocks"));
    }
    let matrix = BitMatrix::from_words(rows, columns, words).unwrap_or_else(|| BitMatrix::zeros(rows, columns));
    if matches!(graph.ty(predicate).extent, Extent::Token { q: true, kv: false })
        && !matches!(how, Lower::Density { .. })
    {
        return Ok(column_as_row(&matrix));
    }
    Ok(matrix)
}

/// The token mask of one block pair: row = query token, column = key token. What integers too large for double precision
/// leave open is not kept.
#[must_use]
pub fn tile(formula: &Formula, q: Range<u32>, kv: Range<u32>) -> BitMatrix {
    let mut evaluator = Evaluator::new(formula);
    let mut mask = BitMatrix::zeros(q.len(), kv.len());
    let keys = Part::Tokens(kv);
    evaluator.set_keys(&keys);
    for (row, token) in q.enumerate() {
        let (low, _) = evaluator.row(&Part::Tokens(token..token + 1));
        for (column, &value) in low.iter().enumerate().filter(|(_, value)| **value >= 1.0) {
            debug_assert!(value <= 1.0);
            mask.set(row, column, true);
        }
    }
    mask
}

fn column_as_row(matrix: &BitMatrix) -> BitMatrix {
    let mut row = BitMatrix::zeros(1, matrix.rows());
    for index in (0..matrix.rows()).filter(|&index| matrix.get(index, 0)) {
        row.set(0, index, true);
    }
    row
}

fn centres(ranges: &[Range<u32>]) -> Vec<Range<u32>> {
    ranges
        .iter()
        .map(|range| {
            let centre = range.start + (range.end - range.start) / 2;
            centre..centre + 1
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::scalar::{At, Tokens, evaluate};
    use crate::ir::{Binary, Comparison, Coordinate, Kind, Model, Op, Segment, Side, Type, Unary};
    use crate::plan::Arrangement;
    use crate::source::Span;
    use crate::symbols::Blocks;
    use crate::tensor::Dtype;

    /// `x0^2 mod 7 == 3`, which no square is, and no range tells.
    fn undecidable() -> (Graph, ValueId) {
        let mut graph = Graph::default();
        let both = Extent::Token { q: true, kv: true };
        let mut push = |op: Op, kind: Kind, extent: Extent| graph.push(op, Type::new(kind, extent), Span::default());
        let q =
            push(Op::Coordinate(Coordinate::Position, Side::Query), Kind::Int, Extent::Token { q: true, kv: false });
        let k = push(Op::Coordinate(Coordinate::Position, Side::Key), Kind::Int, Extent::Token { q: false, kv: true });
        let (seven, three) = (push(Op::Int(7), Kind::Int, Extent::Scalar), push(Op::Int(3), Kind::Int, Extent::Scalar));
        let sum = push(Op::Binary(Binary::Add, q, k), Kind::Int, both);
        let square = push(Op::Binary(Binary::Multiply, sum, sum), Kind::Int, both);
        let rest = push(Op::Binary(Binary::Modulo, square, seven), Kind::Int, both);
        let equal = push(Op::Compare(Comparison::Equal, rest, three), Kind::Bool, both);
        (graph, equal)
    }

    fn model(tokens: u32) -> Model {
        let span = Span::default();
        let segment = Segment { name: "a".to_owned(), axes: Vec::new(), start: 0, tokens, valid: tokens, span };
        Model {
            name: "m".to_owned(),
            layers: 1,
            heads: 1,
            head_dim: 16,
            steps: 1,
            dtype: Dtype::F32,
            segments: vec![segment],
            span,
        }
    }

    #[test]
    fn the_budget_ends_what_no_range_decides() {
        let (graph, predicate) = undecidable();
        let model = model(1024);
        let blocks = Blocks::regular(1024, 1024, 128, 128);
        let arrangement = Arrangement { order: None, tiling: None, clustering: None, blocks };
        let table = TokenTable::new(&graph, &model, &arrangement);
        let bits = cover(&table, &graph, predicate, Lower::Any, &mut Known::default(), &Budget::default());
        assert_eq!(bits.map(|bits| bits.count()), Ok(0));
        let small = Budget(AtomicU64::new(1 << 20));
        let error = cover(&table, &graph, predicate, Lower::Any, &mut Known::default(), &small)
            .expect_err("1024^2 pairs of 8 operations");
        assert!(error.contains("operations on tokens"), "{error}");
    }

    /// `sqrt(key - 100) >= 0`: NaN, and so false, for the first hundred keys. Blocks of both kinds, and one of only NaN.
    #[test]
    fn nan_among_the_tokens_of_a_block_hides_neither_answer() {
        let mut graph = Graph::default();
        let key = Extent::Token { q: false, kv: true };
        let mut push = |op: Op, kind: Kind, extent: Extent| graph.push(op, Type::new(kind, extent), Span::default());
        let position = push(Op::Coordinate(Coordinate::Position, Side::Key), Kind::Int, key);
        let hundred = push(Op::Int(100), Kind::Int, Extent::Scalar);
        let zero = push(Op::Real(crate::ir::Real(0.0)), Kind::Real, Extent::Scalar);
        let above = push(Op::Binary(Binary::Subtract, position, hundred), Kind::Int, key);
        let real = push(Op::Unary(Unary::ToReal, above), Kind::Real, key);
        let root = push(Op::Unary(Unary::Sqrt, real), Kind::Real, key);
        let holds = push(Op::Compare(Comparison::LessEqual, zero, root), Kind::Bool, key);
        let queries =
            push(Op::Coordinate(Coordinate::Position, Side::Query), Kind::Int, Extent::Token { q: true, kv: false });
        let both = Extent::Token { q: true, kv: true };
        let any_query = push(Op::Compare(Comparison::LessEqual, queries, position), Kind::Bool, both);
        let joint = push(Op::Binary(Binary::And, holds, any_query), Kind::Bool, both);

        let model = model(256);
        // Of 64 tokens, so that the second holds 36 NaN and 28 numbers.
        let arrangement =
            Arrangement { order: None, tiling: None, clustering: None, blocks: Blocks::regular(256, 256, 256, 64) };
        let table = TokenTable::new(&graph, &model, &arrangement);
        for (how, expected) in [(Lower::Any, 0b1110), (Lower::All, 0b1100)] {
            let bits = cover(&table, &graph, holds, how, &mut Known::default(), &Budget::default()).expect("small");
            assert_eq!(bits.words(), [expected], "{how:?}");
        }
        // Positions of queries and keys are too different for classes: ranges decide.
        let bits = cover(&table, &graph, joint, Lower::Any, &mut Known::default(), &Budget::default()).expect("small");
        assert_eq!(bits.words(), [0b1110]);
    }

    /// `q + c == k + c` for `c` of 2^53 and more, where double precision rounds neighbours to one number: what `any` covers
    /// holds every pair that integers decide, and `all` no other.
    #[test]
    fn large_integers_are_left_open_not_rounded() {
        let both = Extent::Token { q: true, kv: true };
        let (query, key) = (Extent::Token { q: true, kv: false }, Extent::Token { q: false, kv: true });
        for large in [1_i64 << 53, (1 << 53) + 1, (1 << 58) + 1, (1 << 62) - 1, i64::MAX - 300] {
            for op in [Comparison::Equal, Comparison::Less, Comparison::NotEqual] {
                let mut graph = Graph::default();
                let mut push =
                    |op: Op, kind: Kind, extent: Extent| graph.push(op, Type::new(kind, extent), Span::default());
                let q = push(Op::Coordinate(Coordinate::Position, Side::Query), Kind::Int, query);
                let k = push(Op::Coordinate(Coordinate::Position, Side::Key), Kind::Int, key);
                let large = push(Op::Int(large), Kind::Int, Extent::Scalar);
                let left = push(Op::Binary(Binary::Add, q, large), Kind::Int, query);
                let right = push(Op::Binary(Binary::Add, k, large), Kind::Int, key);
                let holds = push(Op::Compare(op, left, right), Kind::Bool, both);
                // The same rests, of numbers whose multiples are rounded.
                let three = push(Op::Int(3), Kind::Int, Extent::Scalar);
                let rests = [left, right].map(|of| {
                    let extent = if of == left { query } else { key };
                    push(Op::Binary(Binary::Modulo, of, three), Kind::Int, extent)
                });
                let rests = push(Op::Compare(op, rests[0], rests[1]), Kind::Bool, both);
                let model = model(256);
                // Blocks of one query and one key: `any` and `all` of a pair are the pair itself.
                let arrangement = Arrangement {
                    order: None,
                    tiling: None,
                    clustering: None,
                    blocks: Blocks::regular(256, 256, 1, 1),
                };
                let table = TokenTable::new(&graph, &model, &arrangement);
                for predicate in [holds, rests] {
                    let cover = |how: Lower| {
                        cover(&table, &graph, predicate, how, &mut Known::default(), &Budget::default()).expect("small")
                    };
                    let (any, all) = (cover(Lower::Any), cover(Lower::All));
                    for (q, k) in (0..256).flat_map(|q| (0..256).map(move |k| (q, k))) {
                        let exact = evaluate(&graph, predicate, At::default(), &Pair(q as i64, k as i64)).truth();
                        assert!(any.get(q, k) || !exact, "{predicate:?} {q} {k}: not covered, but holds");
                        assert!(!all.get(q, k) || exact, "{predicate:?} {q} {k}: covered whole, but does not hold");
                    }
                }
            }
        }
    }

    /// A query and a key by position.
    struct Pair(i64, i64);

    impl Tokens for Pair {
        fn coordinate(&self, _: Coordinate, side: Side) -> i64 {
            if side == Side::Query { self.0 } else { self.1 }
        }
        fn in_set(&self, _: crate::ir::SetId, _: Side) -> bool {
            false
        }
    }
}
