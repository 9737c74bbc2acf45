//! Covers by intervals over ranges of tokens.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use super::Budget;
use super::alike::Alike;
use super::evaluator::{Evaluator, Part};
use super::formula::{Formula, Leaf};
use super::interval::{Interval, extremes};
use crate::geometry::tokens::TokenTable;
use crate::ir::{Coordinate, Lower, Side};

/// Tokens of a run of the middle level.
const RUN: u32 = 16;
/// Block pairs that are looked at together, and answers that are remembered, at most.
const BAND: usize = 1 << 20;

/// The words of the covered blocks, row by row.
pub(super) fn cover(
    formula: &Formula,
    how: Lower,
    q: Vec<Range<u32>>,
    kv: Vec<Range<u32>>,
    table: &TokenTable<'_>,
    budget: &Budget,
) -> Vec<u64> {
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
    let (q, kv) = (Cuts::new(formula, Side::Query, q), Cuts::new(formula, Side::Key, kv));
    let decide = Decision { formula, how, q: &q, kv: &kv, groups, nominal_rows, budget };
    let alike = decide.alike();
    let mut known = Answers::default();
    let row_words = kv.ranges.len().div_ceil(64);
    let mut words: Vec<u64> = Vec::with_capacity(q.ranges.len() * row_words);
    let rows: Vec<usize> = (0..q.ranges.len()).collect();
    for band in rows.chunks((BAND / kv.ranges.len()).max(1)) {
        let chunks: Vec<(Vec<u64>, Vec<Pair>)> = band.par_chunks(8).map(|rows| decide.rows(rows)).collect();
        let (decided, open): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
        words.extend(decided.into_iter().flatten());
        for pair in decide.look_closely(&open.concat(), &alike, &mut known) {
            words[pair.q * row_words + pair.kv / 64] |= 1 << (pair.kv % 64);
        }
    }
    words
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

/// Whether block pairs are covered, by what they look like.
#[derive(Default)]
struct Answers {
    questions: HashMap<Vec<i64>, usize>,
    holds: Vec<bool>,
}

impl Decision<'_> {
    /// The words of some rows as far as whole blocks decide, and the pairs they do not decide.
    fn rows(&self, rows: &[usize]) -> (Vec<u64>, Vec<Pair>) {
        let mut evaluator = Evaluator::new(self.formula);
        let width = self.kv.ranges.len();
        evaluator.set_keys(&Part::Spans(&self.kv.of_ranges, 0..width));
        let mut words: Vec<u64> = Vec::with_capacity(rows.len() * width.div_ceil(64));
        let mut open = Vec::new();
        for &q in rows {
            let start = words.len();
            words.resize(start + width.div_ceil(64), 0);
            if !self.budget.take(width * self.formula.nodes.len()) {
                continue;
            }
            let (low, high) = evaluator.row(&Part::Spans(&self.q.of_ranges, q..q + 1));
            for (kv, (&low, &high)) in low.iter().zip(high).enumerate() {
                let pair = Pair { q, kv };
                match self.decided(pair, (low, high)) {
                    Some(holds) => words[start + kv / 64] |= u64::from(holds) << (kv % 64),
                    None => open.push(pair),
                }
            }
        }
        (words, open)
    }

    fn alike(&self) -> Alike {
        let also = |side: Side, block: usize| {
            let groups = self.groups[usize::from(side == Side::Key)].get(block);
            groups.map(|groups| groups.of.clone()).unwrap_or_default()
        };
        Alike::new(self.formula, [&self.q.ranges, &self.kv.ranges], also)
    }

    /// The pairs that are covered, of those that whole blocks do not decide; `known` answers for pairs that look alike.
    fn look_closely(&self, open: &[Pair], alike: &Alike, known: &mut Answers) -> Vec<Pair> {
        if known.holds.len() > BAND {
            *known = Answers::default();
        }
        let mut new: Vec<Pair> = Vec::new();
        let mut question_of: Vec<usize> = Vec::with_capacity(open.len());
        for &pair in open {
            let next = known.holds.len() + new.len();
            let question = *known.questions.entry(alike.key(pair.q, pair.kv)).or_insert(next);
            if question == next {
                new.push(pair);
            }
            question_of.push(question);
        }
        let fine = || Evaluator::new(self.formula);
        known.holds.par_extend(new.par_iter().map_init(fine, |fine, &pair| self.holds(fine, pair)));
        open.iter().zip(question_of).filter(|(_, question)| known.holds[*question]).map(|(pair, _)| *pair).collect()
    }

    /// Whether a block pair is covered, where that follows from the predicate being in `truth` for its token pairs.
    fn decided(&self, pair: Pair, truth: Interval) -> Option<bool> {
        match self.how {
            _ if truth.1 < 1.0 => Some(false),
            Lower::Density { column, block, per: None } if truth.0 >= 1.0 => {
                let rows = self.q.ranges[pair.q].len() as f32;
                Some(rows / self.nominal_rows as f32 > column.0 as f32 && 1.0 > block.0 as f32)
            }
            Lower::Density { .. } => None,
            _ => (truth.0 >= 1.0).then_some(true),
        }
    }

    /// Whether a block pair is covered, by its runs and tokens.
    fn holds(&self, fine: &mut Evaluator<'_>, pair: Pair) -> bool {
        match self.how {
            Lower::Density { column, block, .. } => self.dense(fine, pair, column.0 as f32, block.0 as f32),
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
        let Some(runs) = self.runs_of(evaluator, pair) else { return false };
        let mut open = Vec::new();
        for (q_run, kv_run, truth) in runs {
            match truth {
                Some(true) => {
                    let columns = within(kv_run, kv_range);
                    for &group in &q.of[within(q_run, q_range)] {
                        let row = usize::from(group) * width;
                        counts[row + columns.start..row + columns.end].iter_mut().for_each(|count| *count += 1);
                    }
                }
                Some(false) => {}
                None => open.push((q_run, kv_run)),
            }
        }
        for (q_run, kv_run) in open {
            let columns = within(kv_run, kv_range);
            let Some((truth, _)) = self.tokens_of(evaluator, q_run, kv_run) else { return false };
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
        let Some(runs) = self.runs_of(evaluator, pair) else { return all };
        let mut open = Vec::new();
        for (q_run, kv_run, truth) in runs {
            match truth {
                Some(holds) if holds != all => return holds,
                Some(_) => {}
                None => open.push((q_run, kv_run)),
            }
        }
        for (q_run, kv_run) in open {
            let Some((surely, perhaps)) = self.tokens_of(evaluator, q_run, kv_run) else { return all };
            let truth = if all { surely } else { perhaps };
            if truth.iter().any(|&value| (value >= 1.0) != all) {
                return !all;
            }
        }
        all
    }

    /// The pairs of runs of a block pair, and whether their token pairs satisfy the predicate, where all agree; `None` when the
    /// budget is spent.
    fn runs_of<'s>(
        &'s self,
        evaluator: &mut Evaluator<'_>,
        pair: Pair,
    ) -> Option<impl Iterator<Item = (&'s Range<u32>, &'s Range<u32>, Option<bool>)>> {
        let (q, kv) = (self.q.runs_of(pair.q), self.kv.runs_of(pair.kv));
        if !self.budget.take(q.len() * kv.len() * self.formula.nodes.len()) {
            return None;
        }
        let (low, high) =
            evaluator.grid(&Part::Spans(&self.q.of_runs, q.clone()), &Part::Spans(&self.kv.of_runs, kv.clone()));
        let runs = self.q.runs[q]
            .iter()
            .flat_map(move |q_run| self.kv.runs[kv.clone()].iter().map(move |kv_run| (q_run, kv_run)));
        let truth = low.iter().zip(high).map(|(&low, &high)| match (low >= 1.0, high < 1.0) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        });
        Some(runs.zip(truth).map(|((q_run, kv_run), truth)| (q_run, kv_run, truth)))
    }

    /// Whether all token pairs of two runs satisfy the predicate surely, and perhaps, row-major. They differ where integers
    /// are too large for double precision.
    fn tokens_of<'e>(
        &self,
        evaluator: &'e mut Evaluator<'_>,
        q: &Range<u32>,
        kv: &Range<u32>,
    ) -> Option<(&'e [f64], &'e [f64])> {
        let operations = q.len() * kv.len() * self.formula.nodes.len();
        self.budget.take(operations).then(|| evaluator.grid(&Part::Tokens(q.clone()), &Part::Tokens(kv.clone())))
    }
}
