//! Evaluates a formula over many ranges of tokens at once, operation by operation.

use std::ops::Range;

use super::formula::Formula;
use super::interval::{
    Interval, Register, binary, choose, compare, extremes, integer_power, look_up, map2, outward, unary,
};
use crate::ir::{Binary, Op, Side};

/// Ranges, runs or tokens of one side that are evaluated together.
pub(super) enum Part<'a> {
    Tokens(Range<u32>),
    /// Of intervals by leaf.
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

pub(super) struct Evaluator<'a> {
    formula: &'a Formula,
    registers: Vec<Register>,
    /// Which registers changed with the last row.
    changed: Vec<bool>,
    /// Whether no row was evaluated since the keys were chosen.
    fresh: bool,
    width: usize,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(formula: &'a Formula) -> Self {
        let nodes = formula.nodes.len();
        let registers = vec![Register::default(); nodes];
        Evaluator { formula, registers, changed: vec![true; nodes], fresh: true, width: 0 }
    }

    /// Gives a leaf its intervals over a part, each `each` times, and all of that `times` times.
    fn set_leaf(&mut self, index: usize, leaf: usize, part: &Part<'_>, each: usize, times: usize) {
        let register = &mut self.registers[index];
        match part {
            Part::Tokens(tokens) => {
                let values = &self.formula.leaves[leaf].values[tokens.start as usize..tokens.end as usize];
                register.set_all(values.iter().map(|&value| (value, value)), each, times);
            }
            Part::Spans(of, spans) => register.set_all(of[leaf][spans.clone()].iter().copied(), each, times),
        }
    }

    /// Chooses the kv-ranges of the rows to come, and evaluates what depends on nothing else.
    pub(super) fn set_keys(&mut self, keys: &Part<'_>) {
        self.width = keys.len();
        self.fresh = true;
        self.set_side(Side::Key, keys);
    }

    /// Evaluates what depends on one side alone over a part of it.
    pub(super) fn set_side(&mut self, side: Side, part: &Part<'_>) {
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            match (node.q, node.kv, node.leaf) {
                (false, false, _) => self.registers[index].set_one(node.constant),
                (q, kv, _) if (q, kv) != (side == Side::Query, side == Side::Key) => {}
                (.., Some(leaf)) => self.set_leaf(index, leaf, part, 1, 1),
                (.., None) => self.compute(index),
            }
        }
    }

    /// The values of a node that were evaluated over tokens: of each, or one for all of them. `None` where some are
    /// known by their bounds only.
    pub(super) fn points(&self, node: usize) -> Option<&[f64]> {
        self.registers[node].points()
    }

    /// The predicate over one q-range and all kv-ranges: its smallest and largest truth. What does not change from one
    /// row to the next is not computed again.
    pub(super) fn row(&mut self, query: &Part<'_>) -> (&[f64], &[f64]) {
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            self.changed[index] = match node.leaf {
                _ if !node.q => self.fresh,
                Some(leaf) => {
                    let interval = match query {
                        Part::Tokens(tokens) => {
                            extremes(&self.formula.leaves[leaf].values[tokens.start as usize..][..1])
                        }
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
    pub(super) fn grid(&mut self, q: &Part<'_>, kv: &Part<'_>) -> (&[f64], &[f64]) {
        self.width = q.len() * kv.len();
        for index in 0..self.formula.nodes.len() {
            let node = &self.formula.nodes[index];
            match node.leaf {
                Some(leaf) if self.formula.leaves[leaf].side == Side::Query => {
                    self.set_leaf(index, leaf, q, kv.len(), 1)
                }
                Some(leaf) => self.set_leaf(index, leaf, kv, 1, q.len()),
                None if !node.q && !node.kv => self.registers[index].set_one(node.constant),
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
        if node.integer {
            outward(&mut out);
        }
        self.registers[index] = out;
    }
}
