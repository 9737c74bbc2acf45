//! Which blocks a token predicate covers.
//!
//! A block pair holds up to 65,536 token pairs and a video model a million block pairs, so the predicate is not
//! tried pair by pair. Where it can tell few tokens apart, pairs of their [`classes`] decide. Otherwise it is evaluated over
//! *ranges* of tokens in interval arithmetic: every leaf gives its smallest and largest value in the range, and truth values
//! are false, true or unknown. One evaluation decides most block pairs; where it does not, the block is cut into runs of
//! `RUN` tokens, and what is still unknown into tokens, where intervals are points and the answer is exact. A whole row of
//! kv-ranges, or all pairs of runs or tokens of a block, are evaluated at once, operation by operation, in loops over
//! arrays; what is the same for all of them (two frames, say, and all that follows from their distance) is computed once.
//!
//! Values are double precision: integers are exact up to 2^53. A [`Budget`] bounds the work, because a predicate can be
//! written that no range decides.

mod classes;
mod evaluator;
mod formula;
mod interval;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use self::evaluator::{Evaluator, Part};
pub use self::formula::Formula;
use self::formula::{Leaf, sizes};
use self::interval::{Interval, extremes};
use super::tokens::TokenTable;
use crate::ir::{Coordinate, Extent, Graph, Lower, Side, ValueId};
use crate::symbols::BitMatrix;

/// Tokens of a run of the middle level.
const RUN: u32 = 16;

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
    /// Takes some of it; `false` when too little is left. The sum decides, so that the order of threads does not.
    fn take(&self, operations: usize) -> bool {
        let left = |left: u64| Some(left.saturating_sub(operations as u64));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok_and(|left| left > operations as u64)
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
    budget: &Budget,
) -> Result<BitMatrix, String> {
    let (nodes, leaves) = sizes(graph, predicate);
    let blocks = table.blocks();
    if nodes.saturating_mul(blocks.kv_blocks()).saturating_mul(16) > MAX_BYTES
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
    let formula = Formula::new(table, graph, predicate);
    let ranges = |offsets: &[u32]| -> Vec<Range<u32>> { offsets.windows(2).map(|pair| pair[0]..pair[1]).collect() };
    let any_token = || -> Vec<Range<u32>> { std::iter::once(0..1).collect() };
    let (q, kv) = match graph.ty(predicate).extent {
        _ if matches!(how, Lower::Density { .. }) => (ranges(&blocks.q), ranges(&blocks.kv)),
        Extent::Token { q: true, kv: false } => (ranges(&blocks.q), any_token()),
        Extent::Token { q: false, kv: true } => (any_token(), ranges(&blocks.kv)),
        Extent::Token { q: true, kv: true } => (ranges(&blocks.q), ranges(&blocks.kv)),
        _ => (any_token(), any_token()),
    };
    let (q, kv) = if how == Lower::Centre { (centres(&q), centres(&kv)) } else { (q, kv) };
    let groups = |ranges: &[Range<u32>], side: Side| match how {
        Lower::Density { per: Some(axis), .. } => {
            let coordinates = table.coordinate(Coordinate::Axis(axis), side);
            ranges.iter().map(|range| Groups::new(&coordinates[range.start as usize..range.end as usize])).collect()
        }
        Lower::Density { per: None, .. } => ranges.iter().map(|range| Groups::new(&vec![0.0; range.len()])).collect(),
        _ => Vec::new(),
    };
    let nominal_rows = q.iter().map(ExactSizeIterator::len).max().unwrap_or(1);
    let groups = [groups(&q, Side::Query), groups(&kv, Side::Key)];
    let (rows, columns) = (q.len(), kv.len());
    let words = classes::cover(&formula, how, &q, &kv, budget).unwrap_or_else(|| {
        let (q, kv) = (Cuts::new(&formula, Side::Query, q), Cuts::new(&formula, Side::Key, kv));
        let decide = Decision { formula: &formula, how, q: &q, kv: &kv, groups, nominal_rows, budget };
        let rows: Vec<usize> = (0..rows).collect();
        rows.par_chunks(8).map(|rows| decide.rows(rows)).collect::<Vec<_>>().concat()
    });
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

/// The token mask of one block pair: row = query token, column = key token.
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

fn runs(range: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
    range.clone().step_by(RUN as usize).map(|start| start..(start + RUN).min(range.end))
}

/// The ranges of one side, their runs, and the intervals of the side's leaves over both.
struct Cuts {
    ranges: Vec<Range<u32>>,
    runs: Vec<Range<u32>>,
    /// The first run of each range, and the number of all.
    first_run: Vec<usize>,
    /// By leaf, then range or run; empty for leaves of the other side.
    of_ranges: Vec<Vec<Interval>>,
    of_runs: Vec<Vec<Interval>>,
}

impl Cuts {
    fn new(formula: &Formula, side: Side, ranges: Vec<Range<u32>>) -> Self {
        let mut cut = Vec::new();
        let mut first_run = vec![0];
        for range in &ranges {
            cut.extend(runs(range));
            first_run.push(cut.len());
        }
        let of_leaves = |ranges: &[Range<u32>]| -> Vec<Vec<Interval>> {
            let of_leaf = |leaf: &Leaf| match leaf.side == side {
                true => {
                    let values = |range: &Range<u32>| &leaf.values[range.start as usize..range.end as usize];
                    ranges.iter().map(|range| extremes(values(range))).collect()
                }
                false => Vec::new(),
            };
            formula.leaves.iter().map(of_leaf).collect()
        };
        let (of_ranges, of_runs) = (of_leaves(&ranges), of_leaves(&cut));
        Cuts { ranges, runs: cut, first_run, of_ranges, of_runs }
    }

    fn runs_of(&self, range: usize) -> Range<usize> {
        self.first_run[range]..self.first_run[range + 1]
    }
}

/// Which tokens of a block have the same coordinate along the axis of `per`.
struct Groups {
    /// Of each token, counted from 0 in the order of the coordinates.
    of: Vec<u16>,
    count: usize,
}

impl Groups {
    fn new(coordinates: &[f64]) -> Self {
        let mut distinct = coordinates.to_vec();
        distinct.sort_unstable_by(f64::total_cmp);
        distinct.dedup();
        let of = |at: &f64| distinct.binary_search_by(|known| known.total_cmp(at)).unwrap_or(0) as u16;
        Groups { of: coordinates.iter().map(of).collect(), count: distinct.len() }
    }
}

struct Decision<'a> {
    formula: &'a Formula,
    how: Lower,
    q: &'a Cuts,
    kv: &'a Cuts,
    /// Of the blocks of each side, for [`Lower::Density`].
    groups: [Vec<Groups>; 2],
    nominal_rows: usize,
    budget: &'a Budget,
}

/// A block pair by the numbers of its blocks in the lists of ranges.
#[derive(Clone, Copy)]
struct Pair {
    q: usize,
    kv: usize,
}

impl Decision<'_> {
    /// The words of some rows.
    fn rows(&self, rows: &[usize]) -> Vec<u64> {
        let mut evaluator = Evaluator::new(self.formula);
        let mut fine = Evaluator::new(self.formula);
        let width = self.kv.ranges.len();
        evaluator.set_keys(&Part::Spans(&self.kv.of_ranges, 0..width));
        let row_words = width.div_ceil(64);
        let mut words: Vec<u64> = Vec::with_capacity(rows.len() * row_words);
        let mut earlier: Option<usize> = None;
        for &q in rows {
            if earlier.is_some_and(|earlier| self.are_alike(earlier, q)) {
                words.extend_from_within(words.len() - row_words..);
                continue;
            }
            let start = words.len();
            words.resize(start + row_words, 0);
            if !self.budget.take(width * self.formula.nodes.len()) {
                continue;
            }
            let (low, high) = evaluator.row(&Part::Spans(&self.q.of_ranges, q..q + 1));
            for (kv, (&low, &high)) in low.iter().zip(high).enumerate() {
                let holds = self.holds(&mut fine, Pair { q, kv }, (low, high));
                words[start + kv / 64] |= u64::from(holds) << (kv % 64);
            }
            earlier = Some(q);
        }
        words
    }

    /// Queries that look alike point for point see the same keys.
    fn are_alike(&self, earlier: usize, q: usize) -> bool {
        let alike = |leaf: &Vec<Interval>| leaf[q].0 == leaf[q].1 && leaf[q] == leaf[earlier];
        !matches!(self.how, Lower::Density { .. }) && self.q.of_ranges.iter().filter(|leaf| !leaf.is_empty()).all(alike)
    }

    /// Whether a block pair is covered, when the predicate is somewhere in `truth` for its token pairs.
    fn holds(&self, fine: &mut Evaluator<'_>, pair: Pair, truth: Interval) -> bool {
        match self.how {
            _ if truth.1 < 1.0 => false,
            Lower::Density { column, block, per: None } if truth.0 >= 1.0 => {
                self.q.ranges[pair.q].len() as f32 / self.nominal_rows as f32 > column.0 as f32 && 1.0 > block.0
            }
            Lower::Density { column, block, .. } => self.dense(fine, pair, column.0 as f32, block.0 as f32),
            _ if truth.0 >= 1.0 => true,
            how => self.decide_within(fine, pair, how == Lower::All),
        }
    }

    /// The vote of [`Lower::Density`], in single precision as its original counts.
    fn dense(&self, evaluator: &mut Evaluator<'_>, pair: Pair, column: f32, block: f32) -> bool {
        let (q, kv) = (&self.groups[0][pair.q], &self.groups[1][pair.kv]);
        let (q_range, kv_range) = (&self.q.ranges[pair.q], &self.kv.ranges[pair.kv]);
        let width = kv.of.len();
        // How many rows of each group of queries satisfy the predicate, by key.
        let mut counts = vec![0_u32; q.count * width];
        let within =
            |run: &Range<u32>, side: &Range<u32>| (run.start - side.start) as usize..(run.end - side.start) as usize;
        for (q_run, kv_run) in self.open_runs(evaluator, pair, |q_run, kv_run| {
            let columns = within(kv_run, kv_range);
            for &group in &q.of[within(q_run, q_range)] {
                let row = usize::from(group) * width;
                counts[row + columns.start..row + columns.end].iter_mut().for_each(|count| *count += 1);
            }
        }) {
            let columns = within(kv_run, kv_range);
            let Some(truth) = self.tokens_of(evaluator, q_run, kv_run) else { return false };
            for (&group, truth) in q.of[within(q_run, q_range)].iter().zip(truth.chunks_exact(columns.len())) {
                let row = usize::from(group) * width;
                let counts = &mut counts[row + columns.start..row + columns.end];
                counts.iter_mut().zip(truth).for_each(|(count, &value)| *count += u32::from(value >= 1.0));
            }
        }
        // Shares grow with counts, so that the smallest count that is enough decides.
        let rows = self.nominal_rows as f32;
        let enough = (0..=self.nominal_rows as u32).find(|&count| count as f32 / rows > column).unwrap_or(u32::MAX);
        let mut votes = vec![(0_u32, 0_u32); kv.count];
        counts.chunks_exact(width).any(|counts| {
            votes.fill((0, 0));
            for (&count, &group) in counts.iter().zip(&kv.of) {
                let (filled, dense) = &mut votes[usize::from(group)];
                *filled += u32::from(count > 0);
                *dense += u32::from(count >= enough);
            }
            votes.iter().any(|&(filled, dense)| filled > 0 && dense as f32 / filled as f32 > block)
        })
    }

    /// Whether some token pair (or every one, with `all`) of a block pair satisfies the predicate.
    fn decide_within(&self, evaluator: &mut Evaluator<'_>, pair: Pair, all: bool) -> bool {
        let (q_runs, kv_runs) = (self.q.runs_of(pair.q), self.kv.runs_of(pair.kv));
        if !self.budget.take(q_runs.len() * kv_runs.len() * self.formula.nodes.len()) {
            return all;
        }
        let mut open = Vec::new();
        let (low, high) = self.grid_of_runs(evaluator, &q_runs, &kv_runs);
        for (index, (&low, &high)) in low.iter().zip(high).enumerate() {
            match (low >= 1.0, high < 1.0) {
                (true, _) if !all => return true,
                (_, true) if all => return false,
                (false, false) => open.push((
                    &self.q.runs[q_runs.start + index / kv_runs.len()],
                    &self.kv.runs[kv_runs.start + index % kv_runs.len()],
                )),
                _ => {}
            }
        }
        for (q_run, kv_run) in open {
            let Some(truth) = self.tokens_of(evaluator, q_run, kv_run) else { return all };
            if truth.iter().any(|&value| (value >= 1.0) != all) {
                return !all;
            }
        }
        all
    }

    /// The pairs of runs of a block pair that are undecided; `sure` sees those that satisfy the predicate throughout.
    fn open_runs(
        &self,
        evaluator: &mut Evaluator<'_>,
        pair: Pair,
        mut sure: impl FnMut(&Range<u32>, &Range<u32>),
    ) -> Vec<(&Range<u32>, &Range<u32>)> {
        let (q_runs, kv_runs) = (self.q.runs_of(pair.q), self.kv.runs_of(pair.kv));
        if !self.budget.take(q_runs.len() * kv_runs.len() * self.formula.nodes.len()) {
            return Vec::new();
        }
        let mut open = Vec::new();
        let (low, high) = self.grid_of_runs(evaluator, &q_runs, &kv_runs);
        for (index, (&low, &high)) in low.iter().zip(high).enumerate() {
            let q_run = &self.q.runs[q_runs.start + index / kv_runs.len()];
            let kv_run = &self.kv.runs[kv_runs.start + index % kv_runs.len()];
            match (low >= 1.0, high < 1.0) {
                (true, _) => sure(q_run, kv_run),
                (_, true) => {}
                _ => open.push((q_run, kv_run)),
            }
        }
        open
    }

    fn grid_of_runs<'e>(
        &self,
        evaluator: &'e mut Evaluator<'_>,
        q: &Range<usize>,
        kv: &Range<usize>,
    ) -> (&'e [f64], &'e [f64]) {
        evaluator.grid(&Part::Spans(&self.q.of_runs, q.clone()), &Part::Spans(&self.kv.of_runs, kv.clone()))
    }

    /// The predicate of all token pairs of two runs, row-major.
    fn tokens_of<'e>(&self, evaluator: &'e mut Evaluator<'_>, q: &Range<u32>, kv: &Range<u32>) -> Option<&'e [f64]> {
        let operations = q.len() * kv.len() * self.formula.nodes.len();
        self.budget.take(operations).then(|| evaluator.grid(&Part::Tokens(q.clone()), &Part::Tokens(kv.clone())).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Binary, Comparison, Kind, Model, Op, Segment, Type, Unary};
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
        let arrangement = Arrangement { order: None, tiling: None, blocks };
        let table = TokenTable::new(&graph, &model, &arrangement);
        let bits = cover(&table, &graph, predicate, Lower::Any, &Budget::default());
        assert_eq!(bits.map(|bits| bits.count()), Ok(0));
        let small = Budget(AtomicU64::new(1 << 20));
        let error = cover(&table, &graph, predicate, Lower::Any, &small).expect_err("1024^2 pairs of 8 operations");
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
        let arrangement = Arrangement { order: None, tiling: None, blocks: Blocks::regular(256, 256, 256, 64) };
        let table = TokenTable::new(&graph, &model, &arrangement);
        for (how, expected) in [(Lower::Any, 0b1110), (Lower::All, 0b1100)] {
            let bits = cover(&table, &graph, holds, how, &Budget::default()).expect("small");
            assert_eq!(bits.words(), [expected], "{how:?}");
        }
        // Positions of queries and keys are too different for classes: ranges decide.
        let bits = cover(&table, &graph, joint, Lower::Any, &Budget::default()).expect("small");
        assert_eq!(bits.words(), [0b1110]);
    }
}
