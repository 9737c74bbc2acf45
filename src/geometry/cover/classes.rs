//! Covers by classes of tokens that a predicate cannot tell apart.
//!
//! Most predicates look at a token through a few numbers, its frame or its tile, and many tokens share them. Such tokens
//! are one class: the predicate is tried once per pair of classes, and a block pair is a question to the sets of the
//! classes in its blocks.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use super::Budget;
use super::evaluator::{Evaluator, Part};
use super::formula::Formula;
use super::interval::Interval;
use crate::ir::{Lower, Side};
use crate::symbols::BitMatrix;

/// Classes of the tokens in this many ranges, at most; with more, ranges decide.
pub(super) fn limit(ranges: usize) -> usize {
    2 * ranges + 64
}

/// Classes of the tokens in some ranges of one side.
struct Classes {
    /// The value of each class by leaf; empty for leaves of the other side.
    of_leaves: Vec<Vec<Interval>>,
    /// `[ranges][classes]`
    of_ranges: BitMatrix,
    /// The words of each row of it that are not zero, and what lies between: few, because neighbours are alike.
    words: Vec<Range<usize>>,
}

impl Classes {
    /// `None` where there are more than a few for each range.
    fn new(formula: &Formula, side: Side, ranges: &[Range<u32>]) -> Option<Self> {
        let limit = limit(ranges.len());
        let leaves: Vec<&[f64]> =
            formula.leaves.iter().filter(|leaf| leaf.side == side).map(|leaf| leaf.values.as_slice()).collect();
        let mut representatives: Vec<u32> = Vec::new();
        let mut known: HashMap<Vec<u64>, usize> = HashMap::new();
        let mut members: Vec<(usize, usize)> = Vec::new();
        for (index, range) in ranges.iter().enumerate() {
            let mut earlier: Option<u32> = None;
            for token in range.clone() {
                let bits = |token: u32| leaves.iter().map(move |values| values[token as usize].to_bits());
                if earlier.is_some_and(|earlier| bits(earlier).eq(bits(token))) {
                    continue;
                }
                earlier = Some(token);
                let next = representatives.len();
                let class = *known.entry(bits(token).collect()).or_insert(next);
                if class == next {
                    if next == limit {
                        return None;
                    }
                    representatives.push(token);
                }
                members.push((index, class));
            }
        }
        let mut of_ranges = BitMatrix::zeros(ranges.len(), representatives.len());
        members.into_iter().for_each(|(range, class)| of_ranges.set(range, class, true));
        let of_leaf = |values: &[f64]| -> Vec<Interval> {
            representatives.iter().map(|&token| values[token as usize]).map(|value| (value, value)).collect()
        };
        let of_leaves = formula.leaves.iter().map(|leaf| match leaf.side == side {
            true => of_leaf(&leaf.values),
            false => Vec::new(),
        });
        let words = |range: usize| {
            let row = of_ranges.row(range);
            let is_set = |word: &u64| *word != 0;
            row.iter().position(is_set).unwrap_or(0)..row.iter().rposition(is_set).map_or(0, |last| last + 1)
        };
        let words = (0..ranges.len()).map(words).collect();
        Some(Classes { of_leaves: of_leaves.collect(), of_ranges, words })
    }

    fn len(&self) -> usize {
        self.of_ranges.columns()
    }
}

/// The words of the covered blocks, row by row; `None` where tokens are too different, or the budget is spent.
pub(super) fn cover(
    formula: &Formula,
    how: Lower,
    q: &[Range<u32>],
    kv: &[Range<u32>],
    budget: &Budget,
) -> Option<Vec<u64>> {
    let all = match how {
        Lower::Any | Lower::Centre => false,
        Lower::All => true,
        // Exact predicates are lowered by `any` and `all`; a vote counts tokens.
        Lower::Exact | Lower::Density { .. } => return None,
    };
    let (q, kv) = (Classes::new(formula, Side::Query, q)?, Classes::new(formula, Side::Key, kv)?);
    // Too much of it: ranges may do with less.
    if !budget.try_take(q.len() * kv.len() * formula.nodes.len()) {
        return None;
    }
    let truth = pairs(formula, &q, &kv, all);
    let rows: Vec<usize> = (0..q.of_ranges.rows()).collect();
    let words = rows.par_chunks(8).map(|rows| {
        let mut words: Vec<u64> = Vec::new();
        for &row in rows {
            words.extend(row_of(&truth, &q, row, &kv, all));
        }
        words
    });
    Some(words.collect::<Vec<_>>().concat())
}

/// Whether the predicate holds for each pair of classes: surely, for `all`, else perhaps.
fn pairs(formula: &Formula, q: &Classes, kv: &Classes, all: bool) -> BitMatrix {
    let classes: Vec<usize> = (0..q.len()).collect();
    let words = classes.par_chunks(16).map(|classes| {
        let mut evaluator = Evaluator::new(formula);
        evaluator.set_keys(&Part::Spans(&kv.of_leaves, 0..kv.len()));
        let mut words: Vec<u64> = Vec::new();
        for &class in classes {
            let (surely, perhaps) = evaluator.row(&Part::Spans(&q.of_leaves, class..class + 1));
            let truth = if all { surely } else { perhaps };
            words.extend(truth.chunks(64).map(|truth| {
                truth.iter().enumerate().fold(0, |word, (bit, &truth)| word | u64::from(truth >= 1.0) << bit)
            }));
        }
        words
    });
    let words: Vec<Vec<u64>> = words.collect();
    BitMatrix::from_words(q.len(), kv.len(), words.concat()).unwrap_or_else(|| BitMatrix::zeros(q.len(), kv.len()))
}

/// The words of the kv-blocks with a pair of classes that satisfies the predicate, or with no other pair, for `all`.
fn row_of(truth: &BitMatrix, q: &Classes, row: usize, kv: &Classes, all: bool) -> Vec<u64> {
    // Which classes of keys every class, or some class, of the queries satisfies it with.
    let mut seen = vec![if all { u64::MAX } else { 0 }; truth.words_per_row()];
    for class in q.of_ranges.ones_of_row(row) {
        for (seen, &truth) in seen.iter_mut().zip(truth.row(class)) {
            *seen = if all { *seen & truth } else { *seen | truth };
        }
    }
    let holds = |block: usize| {
        let words = kv.words[block].clone();
        let mut classes = kv.of_ranges.row(block)[words.clone()].iter().zip(&seen[words]);
        match all {
            true => classes.all(|(&block, &seen)| block & !seen == 0),
            false => classes.any(|(&block, &seen)| block & seen != 0),
        }
    };
    let mut words = vec![0; kv.words.len().div_ceil(64)];
    for block in (0..kv.words.len()).filter(|&block| holds(block)) {
        words[block / 64] |= 1 << (block % 64);
    }
    words
}
