//! Which blocks a token predicate covers.
//!
//! A block pair holds up to 65,536 token pairs and a video model a million block pairs, so the predicate is not
//! tried pair by pair. It is evaluated over *ranges* of tokens in interval arithmetic: every leaf gives its
//! smallest and largest value in the range, and truth values are false, true or unknown. One evaluation decides most
//! block pairs; where it does not, the block is cut into runs of [`RUN`] tokens, and what is still unknown into
//! tokens, where intervals are points and the answer is exact. A whole row of kv-ranges is evaluated at once, operation
//! by operation, in loops over arrays.
//!
//! Values are double precision: integers are exact up to 2^53.

use std::ops::Range;

use rayon::prelude::*;

use super::tokens::TokenTable;
use crate::ir::scalar::{self, Scalar};
use crate::ir::{Binary, Comparison, Coordinate, Extent, Graph, Lower, Op, Side, Table, Unary, ValueId};
use crate::symbols::BitMatrix;

/// Tokens of a run of the middle level.
const RUN: u32 = 16;

/// The blocks that `predicate` covers: `[q_blocks][kv_blocks]`, or one row of the side it speaks of.
/// Scalars in it are constants.
#[must_use]
pub fn cover(table: &TokenTable<'_>, graph: &Graph, predicate: ValueId, how: Lower) -> BitMatrix {
    let formula = Formula::new(table, graph, predicate);
    let blocks = table.blocks();
    let ranges = |offsets: &[u32]| -> Vec<Range<u32>> { offsets.windows(2).map(|pair| pair[0]..pair[1]).collect() };
    let any_token = || -> Vec<Range<u32>> { std::iter::once(0..1).collect() };
    let (q, kv) = match graph.ty(predicate).extent {
        Extent::Token { q: true, kv: false } => (ranges(&blocks.q), any_token()),
        Extent::Token { q: false, kv: true } => (any_token(), ranges(&blocks.kv)),
        Extent::Token { q: true, kv: true } => (ranges(&blocks.q), ranges(&blocks.kv)),
        _ => (any_token(), any_token()),
    };
    let (q, kv) = if how == Lower::Centre { (centres(&q), centres(&kv)) } else { (q, kv) };
    let per = match how {
        Lower::Density { per: Some(axis), .. } => Some([
            table.coordinate(Coordinate::Axis(axis), Side::Query),
            table.coordinate(Coordinate::Axis(axis), Side::Key),
        ]),
        _ => None,
    };
    let nominal_rows = q.iter().map(ExactSizeIterator::len).max().unwrap_or(1);
    let decide = Decision { formula: &formula, how, per, nominal_rows };
    let rows: Vec<Vec<u64>> = q.par_chunks(8).flat_map_iter(|chunk| decide.rows(chunk, &kv)).collect();
    let matrix =
        BitMatrix::from_words(q.len(), kv.len(), rows.concat()).unwrap_or_else(|| BitMatrix::zeros(q.len(), kv.len()));
    if q.len() > 1 && kv.len() == 1 && !matches!(graph.ty(predicate).extent, Extent::Token { q: true, kv: true }) {
        return column_as_row(&matrix);
    }
    matrix
}

/// The token mask of one block pair: row = query token, column = key token.
#[must_use]
pub fn tile(formula: &Formula, q: Range<u32>, kv: Range<u32>) -> BitMatrix {
    let mut evaluator = Evaluator::new(formula);
    let mut mask = BitMatrix::zeros(q.len(), kv.len());
    evaluator.set_keys(&points(&kv));
    for (row, token) in q.enumerate() {
        let (low, _) = evaluator.row(&(token..token + 1));
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

fn points(range: &Range<u32>) -> Vec<Range<u32>> {
    range.clone().map(|token| token..token + 1).collect()
}

fn runs(range: &Range<u32>) -> Vec<Range<u32>> {
    range.clone().step_by(RUN as usize).map(|start| start..(start + RUN).min(range.end)).collect()
}

struct Decision<'a> {
    formula: &'a Formula,
    how: Lower,
    /// Coordinates of `per`, by side.
    per: Option<[Vec<f64>; 2]>,
    nominal_rows: usize,
}

impl Decision<'_> {
    fn rows(&self, q: &[Range<u32>], kv: &[Range<u32>]) -> Vec<Vec<u64>> {
        let mut evaluator = Evaluator::new(self.formula);
        let mut fine = Evaluator::new(self.formula);
        evaluator.set_keys(kv);
        let mut rows: Vec<Vec<u64>> = Vec::with_capacity(q.len());
        let mut earlier: Option<Vec<(f64, f64)>> = None;
        for range in q {
            // Queries that look alike point for point see the same keys.
            let leaves = self.formula.query_leaves(range);
            let alike = leaves.iter().all(|(low, high)| low == high) && earlier.as_ref() == Some(&leaves);
            if alike
                && !matches!(self.how, Lower::Density { .. })
                && let Some(last) = rows.last()
            {
                rows.push(last.clone());
                continue;
            }
            let mut words = vec![0_u64; kv.len().div_ceil(64)];
            let (low, high) = evaluator.row(range);
            for (index, (&low, &high)) in low.iter().zip(high).enumerate() {
                let holds = match self.how {
                    _ if high < 1.0 => false,
                    Lower::Density { column, block, per: None } if low >= 1.0 => {
                        range.len() as f32 / self.nominal_rows as f32 > column.0 as f32 && 1.0 > block.0
                    }
                    Lower::Density { column, block, .. } => {
                        self.dense(&mut fine, range, &kv[index], column.0 as f32, block.0 as f32)
                    }
                    _ if low >= 1.0 => true,
                    how => decide_within(&mut fine, range, &kv[index], how == Lower::All),
                };
                words[index / 64] |= u64::from(holds) << (index % 64);
            }
            rows.push(words);
            earlier = Some(leaves);
        }
        rows
    }
}

impl Decision<'_> {
    /// The vote of [`Lower::Density`], in single precision as its original counts.
    fn dense(&self, evaluator: &mut Evaluator<'_>, q: &Range<u32>, kv: &Range<u32>, column: f32, block: f32) -> bool {
        let groups = |side: usize, range: &Range<u32>| -> Vec<u64> {
            let of = |token: u32| self.per.as_ref().map_or(0, |per| per[side][token as usize].to_bits());
            range.clone().map(of).collect()
        };
        let (q_groups, kv_groups) = (groups(0, q), groups(1, kv));
        let mut distinct = q_groups.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let group_of = |token: u32| distinct.binary_search(&q_groups[(token - q.start) as usize]).unwrap_or(0);
        let mut counts = vec![vec![0_u32; kv.len()]; distinct.len()];
        let kv_runs = runs(kv);
        let mut open = Vec::new();
        for q_run in runs(q) {
            evaluator.set_keys(&kv_runs);
            let (low, high) = evaluator.row(&q_run);
            for (index, (&low, &high)) in low.iter().zip(high).enumerate() {
                match (low >= 1.0, high < 1.0) {
                    (true, _) => {
                        let columns =
                            (kv_runs[index].start - kv.start) as usize..(kv_runs[index].end - kv.start) as usize;
                        for token in q_run.clone() {
                            let group = group_of(token);
                            counts[group][columns.clone()].iter_mut().for_each(|count| *count += 1);
                        }
                    }
                    (_, true) => {}
                    _ => open.push((q_run.clone(), kv_runs[index].clone())),
                }
            }
        }
        for (q_run, kv_run) in open {
            evaluator.set_keys(&points(&kv_run));
            let first = (kv_run.start - kv.start) as usize;
            for token in q_run {
                let group = group_of(token);
                let (low, _) = evaluator.row(&(token..token + 1));
                for (count, &value) in counts[group][first..].iter_mut().zip(low) {
                    *count += u32::from(value >= 1.0);
                }
            }
        }
        let mut columns = kv_groups.clone();
        columns.sort_unstable();
        columns.dedup();
        let rows = self.nominal_rows as f32;
        counts.iter().any(|counts| {
            columns.iter().any(|group| {
                let shares =
                    counts.iter().zip(&kv_groups).filter(|(_, of)| *of == group).map(|(&count, _)| count as f32 / rows);
                let (mut filled, mut dense) = (0_u32, 0_u32);
                for share in shares {
                    filled += u32::from(share > 0.0);
                    dense += u32::from(share > column);
                }
                filled > 0 && dense as f32 / filled as f32 > block
            })
        })
    }
}

/// Whether some pair (or every pair, with `all`) of a block satisfies the predicate.
fn decide_within(evaluator: &mut Evaluator<'_>, q: &Range<u32>, kv: &Range<u32>, all: bool) -> bool {
    let (q_runs, kv_runs) = (runs(q), runs(kv));
    let mut open = Vec::new();
    evaluator.set_keys(&kv_runs);
    for q_run in &q_runs {
        let (low, high) = evaluator.row(q_run);
        for (index, (&low, &high)) in low.iter().zip(high).enumerate() {
            match (low >= 1.0, high < 1.0) {
                (true, _) if !all => return true,
                (_, true) if all => return false,
                (false, false) => open.push((q_run.clone(), kv_runs[index].clone())),
                _ => {}
            }
        }
    }
    for (q_run, kv_run) in open {
        evaluator.set_keys(&points(&kv_run));
        for token in q_run {
            let (low, _) = evaluator.row(&(token..token + 1));
            if low.iter().any(|&value| (value >= 1.0) != all) {
                return !all;
            }
        }
    }
    all
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
    q: bool,
    kv: bool,
}

impl Formula {
    /// Prepares `predicate`.
    #[must_use]
    pub fn new(table: &TokenTable<'_>, graph: &Graph, predicate: ValueId) -> Self {
        let mut needed = vec![false; predicate.0 as usize + 1];
        needed[predicate.0 as usize] = true;
        for index in (0..needed.len()).rev().filter(|&index| needed[index]).collect::<Vec<_>>() {
            mark(graph, ValueId(index as u32), &mut needed);
        }
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
            map[id.0 as usize] = formula.nodes.len();
            let operands = value.op.operands().iter().map(|operand| map[operand.0 as usize]).collect();
            formula.nodes.push(Node { op: value.op.clone(), operands, leaf, table, constant, q, kv });
        }
        formula
    }

    fn leaf_interval(&self, leaf: usize, range: &Range<u32>) -> (f64, f64) {
        let values = &self.leaves[leaf].1[range.start as usize..range.end as usize];
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
    }

    /// The intervals of all query leaves over a range.
    fn query_leaves(&self, range: &Range<u32>) -> Vec<(f64, f64)> {
        (0..self.leaves.len())
            .filter(|&leaf| self.leaves[leaf].0 == Side::Query)
            .map(|leaf| self.leaf_interval(leaf, range))
            .collect()
    }
}

fn mark(graph: &Graph, id: ValueId, needed: &mut [bool]) {
    for operand in graph.op(id).operands() {
        if !std::mem::replace(&mut needed[operand.0 as usize], true) {
            mark(graph, operand, needed);
        }
    }
}

/// An interval of each element of a row, or one for all of them.
#[derive(Clone, Default)]
struct Register {
    low: Vec<f64>,
    high: Vec<f64>,
}

struct Evaluator<'a> {
    formula: &'a Formula,
    registers: Vec<Register>,
    width: usize,
}

impl<'a> Evaluator<'a> {
    fn new(formula: &'a Formula) -> Self {
        Evaluator { formula, registers: vec![Register::default(); formula.nodes.len()], width: 0 }
    }

    /// Chooses the kv-ranges of the rows to come, and evaluates what depends on nothing else.
    fn set_keys(&mut self, ranges: &[Range<u32>]) {
        self.width = ranges.len();
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            if node.q {
                continue;
            }
            match node.leaf {
                Some(leaf) => {
                    let intervals = ranges.iter().map(|range| self.formula.leaf_interval(leaf, range));
                    let (low, high) = intervals.unzip();
                    self.registers[index] = Register { low, high };
                }
                None if !node.kv => {
                    self.registers[index] = Register { low: vec![node.constant], high: vec![node.constant] };
                }
                None => self.compute(index),
            }
        }
    }

    /// The predicate over one q-range and all kv-ranges: its smallest and largest truth.
    fn row(&mut self, range: &Range<u32>) -> (&[f64], &[f64]) {
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            match node.leaf {
                _ if !node.q => {}
                Some(leaf) => {
                    let (low, high) = self.formula.leaf_interval(leaf, range);
                    let register = &mut self.registers[index];
                    register.low.clear();
                    register.high.clear();
                    register.low.push(low);
                    register.high.push(high);
                }
                None => self.compute(index),
            }
        }
        let width = self.width;
        let Some(root) = self.registers.last_mut() else { return (&[], &[]) };
        if root.low.len() != width {
            let (low, high) = (root.low[0], root.high[0]);
            root.low.resize(width, low);
            root.high.resize(width, high);
            // The next row starts from one element again: `compute` and the leaves clear first.
        }
        (&root.low, &root.high)
    }

    fn compute(&mut self, index: usize) {
        let node = &self.formula.nodes[index];
        let mut out = std::mem::take(&mut self.registers[index]);
        let [a, b, c] = [0, 1, 2].map(|operand| node.operands.get(operand).map(|&id| &self.registers[id]));
        match (&node.op, a, b, c) {
            (Op::Unary(op, _), Some(a), ..) => unary(*op, a, &mut out),
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
    out.low.clear();
    out.high.clear();
    for (&low, &high) in a.low.iter().zip(&a.high) {
        let (low, high) = f((low, high));
        out.low.push(low);
        out.high.push(high);
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
    match op {
        Unary::Negate => map1(a, out, |(low, high)| (-high, -low)),
        Unary::Not => map1(a, out, |(low, high)| (1.0 - high, 1.0 - low)),
        Unary::Abs => map1(a, out, |(low, high)| {
            let least = if low > 0.0 {
                low
            } else if high < 0.0 {
                -high
            } else {
                0.0
            };
            (least, high.abs().max(low.abs()))
        }),
        Unary::Sqrt => map1(a, out, monotone(f64::sqrt)),
        Unary::Exp => map1(a, out, monotone(f64::exp)),
        Unary::Log => map1(a, out, monotone(f64::ln)),
        Unary::Floor => map1(a, out, monotone(f64::floor)),
        Unary::Ceil => map1(a, out, monotone(f64::ceil)),
        Unary::Round => map1(a, out, monotone(f64::round_ties_even)),
        Unary::BitLength => map1(a, out, monotone(bit_length)),
        Unary::ToReal => map1(a, out, |interval| interval),
    }
}

fn bit_length(value: f64) -> f64 {
    f64::from(64 - (value.max(0.0) as u64).leading_zeros())
}

fn binary(op: Binary, a: &Register, b: &Register, out: &mut Register) {
    match op {
        Binary::Add => map2(a, b, out, |a, b| (a.0 + b.0, a.1 + b.1)),
        Binary::Subtract => map2(a, b, out, |a, b| (a.0 - b.1, a.1 - b.0)),
        Binary::Multiply => {
            map2(a, b, out, |a, b| corners(a, b, |a, b| if a == 0.0 || b == 0.0 { 0.0 } else { a * b }))
        }
        Binary::Divide => map2(a, b, out, |a, b| divide(a, b, |a, b| a / b)),
        Binary::FloorDivide => map2(a, b, out, |a, b| divide(a, b, floor_divide)),
        Binary::Modulo => map2(a, b, out, modulo),
        Binary::Power => map2(a, b, out, power),
        Binary::Min => map2(a, b, out, |a, b| (a.0.min(b.0), a.1.min(b.1))),
        Binary::Max => map2(a, b, out, |a, b| (a.0.max(b.0), a.1.max(b.1))),
        Binary::And => map2(a, b, out, |a, b| (a.0.min(b.0), a.1.min(b.1))),
        Binary::Or => map2(a, b, out, |a, b| (a.0.max(b.0), a.1.max(b.1))),
        Binary::Xor => map2(a, b, out, xor),
    }
}

fn corners(a: Interval, b: Interval, f: impl Fn(f64, f64) -> f64) -> Interval {
    let corners = [f(a.0, b.0), f(a.0, b.1), f(a.1, b.0), f(a.1, b.1)];
    corners.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

fn floor_divide(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { (a / b).floor() }
}

const UNKNOWN: Interval = (f64::NEG_INFINITY, f64::INFINITY);

fn is_point(a: Interval) -> bool {
    a.0 == a.1
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
