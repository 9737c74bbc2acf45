//! Which blocks a token predicate covers.
//!
//! A block pair holds up to 65,536 token pairs and a video model a million block pairs, so the predicate is not
//! tried pair by pair. It is evaluated over *ranges* of tokens in interval arithmetic: every leaf gives its
//! smallest and largest value in the range, and truth values are false, true or unknown. One evaluation decides most
//! block pairs; where it does not, the block is cut into runs of `RUN` tokens, and what is still unknown into
//! tokens, where intervals are points and the answer is exact. A whole row of kv-ranges, or all pairs of runs or tokens of a
//! block, are evaluated at once, operation by operation, in loops over arrays; what is the same for all of them (two
//! frames, say, and all that follows from their distance) is computed once.
//!
//! Values are double precision: integers are exact up to 2^53. A [`Budget`] bounds the work, because a predicate can be
//! written that no range decides.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::tokens::TokenTable;
use crate::ir::scalar::{self, Scalar};
use crate::ir::{Binary, Comparison, Coordinate, Extent, Graph, Kind, Lower, Op, Side, Table, Unary, ValueId};
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
    let needed = needed(graph, predicate);
    let (nodes, leaves) = sizes(graph, &needed);
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
    let (q, kv) = (Cuts::new(&formula, Side::Query, q), Cuts::new(&formula, Side::Key, kv));
    let decide = Decision { formula: &formula, how, q: &q, kv: &kv, groups, nominal_rows, budget };
    let rows: Vec<usize> = (0..q.ranges.len()).collect();
    let chunks: Vec<Vec<u64>> = rows.par_chunks(8).map(|rows| decide.rows(rows)).collect();
    let (q, kv) = (&q.ranges, &kv.ranges);
    if budget.is_spent() {
        return Err(format!("more than {MAX_OPERATIONS} operations on tokens are needed to find the blocks"));
    }
    let matrix = BitMatrix::from_words(q.len(), kv.len(), chunks.concat())
        .unwrap_or_else(|| BitMatrix::zeros(q.len(), kv.len()));
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
            let of_leaf = |(of_side, values): &(Side, Vec<f64>)| match *of_side == side {
                true => {
                    ranges.iter().map(|range| extremes(&values[range.start as usize..range.end as usize])).collect()
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

/// Smallest and largest.
fn extremes(values: &[f64]) -> Interval {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
}

/// Ranges, runs or tokens of one side that are evaluated together.
enum Part<'a> {
    Tokens(Range<u32>),
    Spans(&'a [Vec<Interval>], Range<usize>),
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Part::Tokens(tokens) => tokens.len(),
            Part::Spans(_, spans) => spans.len(),
        }
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

/// A predicate prepared for evaluation over ranges: its operations in order and the leaves' values of every token.
#[derive(Clone, Debug)]
pub struct Formula {
    nodes: Vec<Node>,
    leaves: Vec<(Side, Vec<f64>)>,
}

#[derive(Clone, Debug)]
struct Node {
    op: Op,
    operands: Vec<usize>,
    /// Index into the leaves.
    leaf: Option<usize>,
    /// Of a table: its numbers, and the interval of all of them.
    table: Option<(Table, Interval)>,
    constant: f64,
    /// Whether its values are integers.
    integer: bool,
    q: bool,
    kv: bool,
}

impl Formula {
    /// Prepares `predicate`.
    #[must_use]
    pub fn new(table: &TokenTable<'_>, graph: &Graph, predicate: ValueId) -> Self {
        let needed = needed(graph, predicate);
        let mut formula = Formula { nodes: Vec::new(), leaves: Vec::new() };
        let mut map = vec![usize::MAX; needed.len()];
        for (id, value) in graph.values().take(needed.len()).filter(|(id, _)| needed[id.0 as usize]) {
            let leaf = match value.op {
                Op::Coordinate(coordinate, side) => Some((side, table.coordinate(coordinate, side))),
                Op::InSet(set, side) => Some((side, table.in_set(set))),
                _ => None,
            };
            let leaf = leaf.map(|leaf| {
                formula.leaves.push(leaf);
                formula.leaves.len() - 1
            });
            let constant = match scalar::evaluate(graph, id, scalar::At::default(), &scalar::NoTokens) {
                Scalar::Bool(value) => f64::from(u8::from(value)),
                other => other.real(),
            };
            let (q, kv) = match value.ty.extent {
                Extent::Token { q, kv } => (q, kv),
                _ => (false, false),
            };
            let table = match (&value.op, value.ty.extent) {
                (Op::Table { table, item, .. }, Extent::Token { .. }) => {
                    let table = graph.tables[usize::from(*table)].clone();
                    let items = table.values.iter().skip(usize::from(*item)).step_by(usize::from(table.width).max(1));
                    // What an entry that is missing without a substitute gives.
                    let range = items.fold((0.0_f64, 0.0_f64), |range, &x| (range.0.min(x), range.1.max(x)));
                    Some((table, range))
                }
                _ => None,
            };
            let integer = value.ty.kind == Kind::Int;
            map[id.0 as usize] = formula.nodes.len();
            let operands = value.op.operands().iter().map(|operand| map[operand.0 as usize]).collect();
            formula.nodes.push(Node { op: value.op.clone(), operands, leaf, table, constant, integer, q, kv });
        }
        formula
    }
}

/// Which of the values up to `predicate` it needs.
fn needed(graph: &Graph, predicate: ValueId) -> Vec<bool> {
    let mut needed = vec![false; predicate.0 as usize + 1];
    needed[predicate.0 as usize] = true;
    // Operands stand before their users.
    for index in (0..needed.len()).rev() {
        if needed[index] {
            graph.op(ValueId(index as u32)).operands().iter().for_each(|operand| needed[operand.0 as usize] = true);
        }
    }
    needed
}

/// Number of values of a predicate, and how many of them are known of each token.
fn sizes(graph: &Graph, needed: &[bool]) -> (usize, usize) {
    let values = || graph.values().zip(needed).filter(|(_, needed)| **needed).map(|((_, value), _)| &value.op);
    (values().count(), values().filter(|op| matches!(op, Op::Coordinate(..) | Op::InSet(..))).count())
}

/// An interval of each element of a row, or one for all of them.
#[derive(Clone, Default)]
struct Register {
    low: Vec<f64>,
    high: Vec<f64>,
}

impl Register {
    fn set_one(&mut self, (low, high): Interval) {
        self.low.clear();
        self.high.clear();
        self.low.push(low);
        self.high.push(high);
    }

    fn is_one(&self, interval: Interval) -> bool {
        self.low.len() == 1 && (self.low[0], self.high[0]) == interval
    }

    /// The intervals, each `each` times, and all of that `times` times; one where all are the same.
    fn set_all(&mut self, intervals: impl Iterator<Item = Interval> + Clone, each: usize, times: usize) {
        let first = intervals.clone().next().unwrap_or((0.0, 0.0));
        if intervals.clone().all(|interval| interval == first) {
            return self.set_one(first);
        }
        self.low.clear();
        self.high.clear();
        for _ in 0..times {
            for (low, high) in intervals.clone() {
                self.low.resize(self.low.len() + each, low);
                self.high.resize(self.high.len() + each, high);
            }
        }
    }
}

struct Evaluator<'a> {
    formula: &'a Formula,
    registers: Vec<Register>,
    /// Which registers changed with the last row.
    changed: Vec<bool>,
    /// Whether no row was evaluated since the keys were chosen.
    fresh: bool,
    width: usize,
}

impl<'a> Evaluator<'a> {
    fn new(formula: &'a Formula) -> Self {
        let nodes = formula.nodes.len();
        let registers = vec![Register::default(); nodes];
        Evaluator { formula, registers, changed: vec![true; nodes], fresh: true, width: 0 }
    }

    /// Gives a leaf its intervals over a part, each `each` times, and all of that `times` times.
    fn set_leaf(&mut self, index: usize, leaf: usize, part: &Part<'_>, each: usize, times: usize) {
        let register = &mut self.registers[index];
        match part {
            Part::Tokens(tokens) => {
                let values = &self.formula.leaves[leaf].1[tokens.start as usize..tokens.end as usize];
                register.set_all(values.iter().map(|&value| (value, value)), each, times);
            }
            Part::Spans(of, spans) => register.set_all(of[leaf][spans.clone()].iter().copied(), each, times),
        }
    }

    /// Chooses the kv-ranges of the rows to come, and evaluates what depends on nothing else.
    fn set_keys(&mut self, keys: &Part<'_>) {
        self.width = keys.len();
        self.fresh = true;
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            if node.q {
                continue;
            }
            match node.leaf {
                Some(leaf) => self.set_leaf(index, leaf, keys, 1, 1),
                None if !node.kv => self.registers[index].set_one((node.constant, node.constant)),
                None => self.compute(index),
            }
        }
    }

    /// The predicate over one q-range and all kv-ranges: its smallest and largest truth. What does not change from one
    /// row to the next is not computed again.
    fn row(&mut self, query: &Part<'_>) -> (&[f64], &[f64]) {
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            self.changed[index] = match node.leaf {
                _ if !node.q => self.fresh,
                Some(leaf) => {
                    let interval = match query {
                        Part::Tokens(tokens) => extremes(&self.formula.leaves[leaf].1[tokens.start as usize..][..1]),
                        Part::Spans(of, spans) => of[leaf][spans.start],
                    };
                    let changed = self.fresh || !self.registers[index].is_one(interval);
                    if changed {
                        self.registers[index].set_one(interval);
                    }
                    changed
                }
                None => {
                    let changed = self.fresh || node.operands.iter().any(|&operand| self.changed[operand]);
                    if changed {
                        self.compute(index);
                    }
                    changed
                }
            };
        }
        self.fresh = false;
        self.root()
    }

    /// The predicate over all pairs of q-ranges and kv-ranges, row-major.
    fn grid(&mut self, q: &Part<'_>, kv: &Part<'_>) -> (&[f64], &[f64]) {
        self.width = q.len() * kv.len();
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            match node.leaf {
                Some(leaf) if self.formula.leaves[leaf].0 == Side::Query => self.set_leaf(index, leaf, q, kv.len(), 1),
                Some(leaf) => self.set_leaf(index, leaf, kv, 1, q.len()),
                None if !node.q && !node.kv => self.registers[index].set_one((node.constant, node.constant)),
                None => self.compute(index),
            }
        }
        self.root()
    }

    /// The register of the predicate, which no other is computed from, in full width.
    fn root(&mut self) -> (&[f64], &[f64]) {
        let Some(root) = self.registers.last_mut() else { return (&[], &[]) };
        if root.low.len() != self.width {
            let (low, high) = (root.low[0], root.high[0]);
            root.low.resize(self.width, low);
            root.high.resize(self.width, high);
        }
        (&root.low, &root.high)
    }

    fn compute(&mut self, index: usize) {
        let node = &self.formula.nodes[index];
        let mut out = std::mem::take(&mut self.registers[index]);
        let [a, b, c] = [0, 1, 2].map(|operand| node.operands.get(operand).map(|&id| &self.registers[id]));
        match (&node.op, a, b, c) {
            (Op::Unary(op, _), Some(a), ..) => unary(*op, a, &mut out),
            (Op::Binary(Binary::Power, ..), Some(a), Some(b), _) if node.integer => map2(a, b, &mut out, integer_power),
            (Op::Binary(op, ..), Some(a), Some(b), _) => binary(*op, a, b, &mut out),
            (Op::Compare(op, ..), Some(a), Some(b), _) => compare(*op, a, b, &mut out),
            (Op::Choose(..), Some(a), Some(b), Some(c)) => choose(a, b, c, &mut out),
            (Op::Table { item, keys, .. }, ..) => {
                if let Some((table, range)) = &node.table {
                    let operands: Vec<&Register> = node.operands.iter().map(|&id| &self.registers[id]).collect();
                    let (keys, otherwise) = operands.split_at(keys.len());
                    look_up(table, *range, *item, keys, otherwise.first().copied(), &mut out);
                }
            }
            _ => {}
        }
        self.registers[index] = out;
    }
}

type Interval = (f64, f64);

/// Entries of a table: exact where the keys are points.
fn look_up(
    table: &Table,
    range: Interval,
    item: u8,
    keys: &[&Register],
    otherwise: Option<&Register>,
    out: &mut Register,
) {
    let at = |register: &Register, i: usize| {
        let i = if register.low.len() > 1 { i } else { 0 };
        (register.low[i], register.high[i])
    };
    let width = keys.iter().copied().chain(otherwise).map(|register| register.low.len()).max().unwrap_or(1);
    let entry = |i: usize| -> Interval {
        let otherwise = otherwise.map_or((0.0, 0.0), |register| at(register, i));
        let keys: Vec<Interval> = keys.iter().map(|register| at(register, i)).collect();
        if !keys.iter().all(|&key| is_point(key)) {
            return (range.0.min(otherwise.0), range.1.max(otherwise.1));
        }
        let keys: Vec<i64> = keys.iter().map(|key| key.0 as i64).collect();
        match table.get(&keys, item) {
            Some(Scalar::Bool(value)) => (f64::from(u8::from(value)), f64::from(u8::from(value))),
            Some(number) => (number.real(), number.real()),
            None => otherwise,
        }
    };
    (out.low, out.high) = (0..width).map(entry).unzip();
}

fn map1(a: &Register, out: &mut Register, f: impl Fn(Interval) -> Interval) {
    let width = a.low.len();
    out.low.resize(width, 0.0);
    out.high.resize(width, 0.0);
    let (low, high, out_low, out_high) = (&a.low[..], &a.high[..width], &mut out.low[..width], &mut out.high[..width]);
    for i in 0..width {
        (out_low[i], out_high[i]) = f((low[i], high[i]));
    }
}

fn map2(a: &Register, b: &Register, out: &mut Register, f: impl Fn(Interval, Interval) -> Interval) {
    let width = a.low.len().max(b.low.len());
    out.low.resize(width, 0.0);
    out.high.resize(width, 0.0);
    let (out_low, out_high) = (&mut out.low[..width], &mut out.high[..width]);
    if a.low.len() == width && b.low.len() == width {
        let (al, ah, bl, bh) = (&a.low[..width], &a.high[..width], &b.low[..width], &b.high[..width]);
        for i in 0..width {
            (out_low[i], out_high[i]) = f((al[i], ah[i]), (bl[i], bh[i]));
        }
    } else if a.low.len() == width {
        let (al, ah, b) = (&a.low[..width], &a.high[..width], (b.low[0], b.high[0]));
        for i in 0..width {
            (out_low[i], out_high[i]) = f((al[i], ah[i]), b);
        }
    } else {
        let (bl, bh, a) = (&b.low[..width], &b.high[..width], (a.low[0], a.high[0]));
        for i in 0..width {
            (out_low[i], out_high[i]) = f(a, (bl[i], bh[i]));
        }
    }
    out.low.truncate(width);
    out.high.truncate(width);
}

fn unary(op: Unary, a: &Register, out: &mut Register) {
    let monotone = |f: fn(f64) -> f64| move |(low, high): Interval| (f(low), f(high));
    // Without a value below zero: a range that reaches there may hold NaN.
    let from_zero = |f: fn(f64) -> f64| {
        move |(low, high): Interval| if low >= 0.0 || is_point((low, high)) { (f(low), f(high)) } else { UNKNOWN }
    };
    match op {
        Unary::Negate => map1(a, out, |(low, high)| (-high, -low)),
        Unary::Not => map1(a, out, |(low, high)| (1.0 - high, 1.0 - low)),
        Unary::Abs => map1(a, out, |(low, high)| {
            let least = if low <= 0.0 && high >= 0.0 { 0.0 } else { low.abs().min(high.abs()) };
            (least, high.abs().max(low.abs()))
        }),
        Unary::Sqrt => map1(a, out, from_zero(f64::sqrt)),
        Unary::Exp => map1(a, out, monotone(f64::exp)),
        Unary::Log => map1(a, out, from_zero(f64::ln)),
        Unary::Floor => map1(a, out, monotone(|x| whole(x.floor()))),
        Unary::Ceil => map1(a, out, monotone(|x| whole(x.ceil()))),
        Unary::Round => map1(a, out, monotone(|x| whole(x.round_ties_even()))),
        Unary::BitLength => map1(a, out, monotone(bit_length)),
        Unary::ToReal => map1(a, out, |interval| interval),
    }
}

/// What is left of a real as an integer: saturated, 0 for NaN.
fn whole(value: f64) -> f64 {
    value as i64 as f64
}

fn bit_length(value: f64) -> f64 {
    f64::from(64 - (value.max(0.0) as u64).leading_zeros())
}

fn binary(op: Binary, a: &Register, b: &Register, out: &mut Register) {
    match op {
        Binary::Add => map2(a, b, out, |a, b| sum(a.0 + b.0, a.1 + b.1)),
        Binary::Subtract => map2(a, b, out, |a, b| sum(a.0 - b.1, a.1 - b.0)),
        Binary::Multiply => map2(a, b, out, multiply),
        Binary::Divide => map2(a, b, out, |a, b| divide(a, b, |a, b| a / b)),
        Binary::FloorDivide => map2(a, b, out, |a, b| divide(a, b, floor_divide)),
        Binary::Modulo => map2(a, b, out, modulo),
        Binary::Power => map2(a, b, out, power),
        Binary::Min => map2(a, b, out, |a, b| (smaller(a.0, b.0), smaller(a.1, b.1))),
        Binary::Max => map2(a, b, out, |a, b| (larger(a.0, b.0), larger(a.1, b.1))),
        Binary::And => map2(a, b, out, |a, b| (a.0.min(b.0), a.1.min(b.1))),
        Binary::Or => map2(a, b, out, |a, b| (a.0.max(b.0), a.1.max(b.1))),
        Binary::Xor => map2(a, b, out, xor),
    }
}

fn corners(a: Interval, b: Interval, f: impl Fn(f64, f64) -> f64) -> Interval {
    let corners = [f(a.0, b.0), f(a.0, b.1), f(a.1, b.0), f(a.1, b.1)];
    if corners.iter().any(|corner| corner.is_nan()) {
        return if is_nan(a) || is_nan(b) { (f64::NAN, f64::NAN) } else { UNKNOWN };
    }
    corners.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

/// The second where one is NaN, as the specification has it.
fn smaller(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

fn multiply(a: Interval, b: Interval) -> Interval {
    if is_point(a) && is_point(b) {
        return (a.0 * b.0, a.0 * b.0);
    }
    let holds_zero = |a: Interval| a.0 <= 0.0 && a.1 >= 0.0;
    let unbounded = |a: Interval| a.0.is_infinite() || a.1.is_infinite();
    // Zero times infinity is NaN.
    if (holds_zero(a) && unbounded(b)) || (unbounded(a) && holds_zero(b)) {
        return UNKNOWN;
    }
    corners(a, b, |a, b| a * b)
}

/// A power of integers: 0 where the exponent is negative.
fn integer_power(a: Interval, b: Interval) -> Interval {
    match (is_point(a) && is_point(b), b.1 < 0.0) {
        (_, true) => (0.0, 0.0),
        (true, _) => corners(a, b, f64::powf),
        _ if a.0 >= 1.0 && b.0 >= 0.0 => corners(a, b, f64::powf),
        _ if a.0 >= 1.0 => (0.0, a.1.powf(b.1)),
        _ => UNKNOWN,
    }
}

fn floor_divide(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { (a / b).floor() }
}

const UNKNOWN: Interval = (f64::NEG_INFINITY, f64::INFINITY);

/// Whether it is one value; NaN is one, and ranges that may hold it are [`UNKNOWN`].
fn is_point(a: Interval) -> bool {
    a.0 == a.1 || is_nan(a)
}

fn is_nan(a: Interval) -> bool {
    a.0.is_nan() && a.1.is_nan()
}

/// A sum of intervals, of which one bound may be infinity less infinity.
fn sum(low: f64, high: f64) -> Interval {
    if low.is_nan() == high.is_nan() { (low, high) } else { UNKNOWN }
}

fn divide(a: Interval, b: Interval, f: impl Fn(f64, f64) -> f64) -> Interval {
    if is_point(a) && is_point(b) {
        let exact = f(a.0, b.0);
        return (exact, exact);
    }
    if b.0 <= 0.0 && b.1 >= 0.0 { UNKNOWN } else { corners(a, b, f) }
}

fn modulo(a: Interval, b: Interval) -> Interval {
    if !is_point(b) || b.0 <= 0.0 {
        if is_point(a) && is_point(b) {
            let exact = if b.0 == 0.0 { 0.0 } else { a.0 - floor_divide(a.0, b.0) * b.0 };
            return (exact, exact);
        }
        return UNKNOWN;
    }
    let (first, last) = (floor_divide(a.0, b.0), floor_divide(a.1, b.0));
    if first == last { (a.0 - first * b.0, a.1 - first * b.0) } else { (0.0, b.0) }
}

fn power(a: Interval, b: Interval) -> Interval {
    if (is_point(a) && is_point(b)) || a.0 >= 1.0 {
        return corners(a, b, f64::powf);
    }
    UNKNOWN
}

fn xor(a: Interval, b: Interval) -> Interval {
    if is_point(a) && is_point(b) {
        let exact = ((a.0 as i64) ^ (b.0 as i64)) as f64;
        return (exact, exact);
    }
    if a.0 < 0.0 || b.0 < 0.0 {
        return UNKNOWN;
    }
    (0.0, 2_f64.powf(bit_length(a.1).max(bit_length(b.1))) - 1.0)
}

fn compare(op: Comparison, a: &Register, b: &Register, out: &mut Register) {
    let truth = |value: bool| f64::from(u8::from(value));
    match op {
        Comparison::Less => map2(a, b, out, |a, b| (truth(a.1 < b.0), truth(a.0 < b.1))),
        Comparison::LessEqual => map2(a, b, out, |a, b| (truth(a.1 <= b.0), truth(a.0 <= b.1))),
        Comparison::Equal => map2(a, b, out, |a, b| equal(a, b, truth)),
        Comparison::NotEqual => map2(a, b, out, |a, b| {
            let (low, high) = equal(a, b, truth);
            (1.0 - high, 1.0 - low)
        }),
    }
}

fn equal(a: Interval, b: Interval, truth: impl Fn(bool) -> f64) -> Interval {
    (truth(is_point(a) && is_point(b) && a.0 == b.0), truth(a.0 <= b.1 && b.0 <= a.1))
}

fn choose(condition: &Register, a: &Register, b: &Register, out: &mut Register) {
    let width = condition.low.len().max(a.low.len()).max(b.low.len());
    let at = |register: &Register, i: usize| {
        let i = if register.low.len() == width { i } else { 0 };
        (register.low[i], register.high[i])
    };
    let (low, high) = (0..width)
        .map(|i| match at(condition, i) {
            (low, _) if low >= 1.0 => at(a, i),
            (_, high) if high < 1.0 => at(b, i),
            _ => (at(a, i).0.min(at(b, i).0), at(a, i).1.max(at(b, i).1)),
        })
        .unzip();
    *out = Register { low, high };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Model, Segment, Type};
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
}
