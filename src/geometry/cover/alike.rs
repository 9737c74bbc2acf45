//! Block pairs that look alike.
//!
//! Many predicates see some coordinates only through their difference (`abs(patch(q) - patch(k)) <= width`). Two block
//! pairs whose tokens differ by the same amounts are the same question then, and one answer serves all of them: of a
//! million block pairs of a video a few thousand are left.

use std::collections::HashMap;
use std::ops::Range;

use super::formula::Formula;
use crate::ir::{Binary, Op, Side};

/// What tells block pairs apart.
pub(super) struct Alike {
    /// By side: which blocks hold the same values, but for what is added to all values of a relative leaf.
    patterns: [Vec<u32>; 2],
    /// By difference, then block: the first value of the leaf, of queries and of keys.
    bases: Vec<[Vec<i64>; 2]>,
}

impl Alike {
    /// `also` tells further what is known of the tokens of a block, by side and block.
    pub(super) fn new(formula: &Formula, ranges: [&[Range<u32>]; 2], also: impl Fn(Side, usize) -> Vec<u16>) -> Self {
        let mut differences = differences(formula);
        let is_relative = relative(formula, &differences);
        // What is not relative is in the patterns.
        differences.retain(|leaves| leaves.iter().all(|&leaf| is_relative[leaf]));
        let patterns = [Side::Query, Side::Key].map(|side| {
            let leaves = || formula.leaves.iter().zip(&is_relative).filter(move |(leaf, _)| leaf.side == side);
            let mut known: HashMap<Vec<u64>, u32> = HashMap::new();
            let of_block = |(block, range): (usize, &Range<u32>)| {
                let mut pattern: Vec<u64> = vec![range.len() as u64];
                pattern.extend(also(side, block).into_iter().map(u64::from));
                for (leaf, &is_relative) in leaves() {
                    let values = &leaf.values[range.start as usize..range.end as usize];
                    let base = if is_relative { values[0] } else { 0.0 };
                    pattern.extend(values.iter().map(|value| (value - base).to_bits()));
                }
                let next = known.len() as u32;
                *known.entry(pattern).or_insert(next)
            };
            ranges[usize::from(side == Side::Key)].iter().enumerate().map(of_block).collect()
        });
        let bases = differences.iter().map(|difference| {
            let of_side = |side: usize| {
                let values = &formula.leaves[difference[side]].values;
                ranges[side].iter().map(|range| values[range.start as usize] as i64).collect()
            };
            [of_side(0), of_side(1)]
        });
        Alike { patterns, bases: bases.collect() }
    }

    /// The same for pairs that look alike, and for no others.
    pub(super) fn key(&self, q: usize, kv: usize) -> Vec<i64> {
        let patterns = [i64::from(self.patterns[0][q]), i64::from(self.patterns[1][kv])];
        patterns.into_iter().chain(self.bases.iter().map(|[of_q, of_kv]| of_q[q] - of_kv[kv])).collect()
    }
}

/// Leaves of queries and keys that a difference or a comparison joins.
fn differences(formula: &Formula) -> Vec<[usize; 2]> {
    let mut differences = Vec::new();
    for node in formula.nodes.iter().filter(|node| joins(&node.op)) {
        let leaves: Vec<usize> = node.operands.iter().filter_map(|&operand| formula.nodes[operand].leaf).collect();
        let &[a, b] = leaves.as_slice() else { continue };
        let pair = match (formula.leaves[a].side, formula.leaves[b].side) {
            (Side::Query, Side::Key) => [a, b],
            (Side::Key, Side::Query) => [b, a],
            _ => continue,
        };
        if node.operands.iter().all(|&operand| formula.nodes[operand].integer) && !differences.contains(&pair) {
            differences.push(pair);
        }
    }
    differences
}

/// Whether adding one number to both operands changes nothing. Differences of integers are exact.
fn joins(op: &Op) -> bool {
    matches!(op, Op::Binary(Binary::Subtract, ..) | Op::Compare(..))
}

/// Which leaves nothing sees but differences.
fn relative(formula: &Formula, differences: &[[usize; 2]]) -> Vec<bool> {
    // Differences of larger numbers are rounded.
    let is_exact = |value: &f64| value.abs() <= (1_u64 << 53) as f64;
    let mut is_relative: Vec<bool> = formula.leaves.iter().map(|leaf| leaf.values.iter().all(is_exact)).collect();
    for (index, node) in formula.nodes.iter().enumerate() {
        // The predicate itself may be a leaf.
        let is_last = index + 1 == formula.nodes.len();
        let leaves: Vec<usize> = node.operands.iter().filter_map(|&operand| formula.nodes[operand].leaf).collect();
        let is_difference = joins(&node.op)
            && matches!(leaves.as_slice(), [a, b] if differences.contains(&[*a, *b]) || differences.contains(&[*b, *a]));
        if !is_difference {
            leaves.into_iter().for_each(|leaf| is_relative[leaf] = false);
        }
        if let (true, Some(leaf)) = (is_last, node.leaf) {
            is_relative[leaf] = false;
        }
    }
    // A leaf is as relative as what it is compared with.
    while let Some(&[a, b]) = differences.iter().find(|&&[a, b]| is_relative[a] != is_relative[b]) {
        (is_relative[a], is_relative[b]) = (false, false);
    }
    is_relative
}
