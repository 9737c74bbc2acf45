//! Selectors by full stable sorts, exactly as [`Selector`] documents them.
//!
//! What the documentation leaves open is decided here, for every backend: NaN and minus infinity are no candidates,
//! they add nothing to running sums, means and deviations, but count in the `n` of a share. Ascending and
//! descending rankings both put the lower of two equal values' indices first. `1 - amount`, shares and quantiles are
//! computed in double precision and rounded to single precision where they meet the sums.

use crate::ir::scalar::Scalar;
use crate::ir::{Rounding, Selector};

use super::math::{lane_sum, normal_quantile};

/// The selected of `values`; running sums add up `costs`, which are the values themselves where nothing else is said.
#[must_use]
pub fn select(rule: Selector, values: &[f32], costs: &[f32], amount: Scalar, at_least: usize) -> Vec<bool> {
    let candidates: Vec<usize> = (0..values.len()).filter(|&index| is_candidate(values[index])).collect();
    let mut selected = vec![false; values.len()];
    match rule {
        Selector::TopK { rounding, ties } => {
            let count = top_k_count(rounding, amount, values.len()).max(at_least);
            let ranking = descending(values, &candidates);
            let last = ranking.get(count.wrapping_sub(1)).map(|&index| values[index]);
            for (rank, &index) in ranking.iter().enumerate() {
                selected[index] = rank < count || (ties && Some(values[index]) == last);
            }
        }
        Selector::BottomK { rounding } => {
            let count = top_k_count(rounding, amount, values.len()).max(at_least);
            for &index in ascending(values, &candidates).iter().take(count) {
                selected[index] = true;
            }
        }
        Selector::TopP { crossing, ascending: false, strict } => {
            let amount = amount.real() as f32;
            let ranking = descending(values, &candidates);
            let mut sum = 0.0_f32;
            for &index in &ranking {
                let before = sum;
                sum += costs[index];
                let compared = if crossing { before } else { sum };
                if !(if strict { compared < amount } else { compared <= amount }) {
                    break;
                }
                selected[index] = true;
            }
            for &index in ranking.iter().take(at_least) {
                selected[index] = true;
            }
        }
        Selector::TopP { ascending: true, strict, .. } => {
            let rest = (1.0 - amount.real()) as f32;
            let mut sum = 0.0_f32;
            for index in ascending(values, &candidates) {
                sum += costs[index];
                selected[index] = if strict { sum > rest } else { sum >= rest };
            }
            for &index in descending(values, &candidates).iter().take(at_least) {
                selected[index] = true;
            }
        }
        Selector::BottomMass => {
            let amount = amount.real() as f32;
            let mut sum = 0.0_f32;
            for (rank, index) in ascending(values, &candidates).into_iter().enumerate() {
                sum += costs[index];
                selected[index] = sum <= amount || rank < at_least;
            }
        }
        Selector::Statistical => {
            let threshold = statistical_threshold(values, candidates.len(), amount.real());
            for &index in &candidates {
                selected[index] = values[index] > threshold;
            }
            for &index in descending(values, &candidates).iter().take(at_least) {
                selected[index] = true;
            }
        }
    }
    selected
}

/// Whether a value can be selected at all.
#[must_use]
pub fn is_candidate(value: f32) -> bool {
    !value.is_nan() && value != f32::NEG_INFINITY
}

/// The number that a top-k selection takes of `n`: a count, or a share rounded.
#[must_use]
pub fn top_k_count(rounding: Rounding, amount: Scalar, n: usize) -> usize {
    let count = match amount {
        Scalar::Int(count) => count,
        share => {
            let share = share.real() * n as f64;
            let rounded = match rounding {
                Rounding::Floor => share.floor(),
                Rounding::Ceil => share.ceil(),
                Rounding::Nearest => share.round_ties_even(),
            };
            // A NaN becomes 0, what is too large saturates.
            rounded as i64
        }
    };
    usize::try_from(count.max(0)).unwrap_or(usize::MAX).min(n)
}

/// The bound of a statistical selection: `mean + deviation * quantile(amount)` over the candidates, sums in 32 lanes
/// by index, each step in single precision.
#[must_use]
pub fn statistical_threshold(values: &[f32], candidates: usize, amount: f64) -> f32 {
    let n = candidates as f32;
    let mean = lane_sum(values.iter().map(|&value| if is_candidate(value) { value } else { 0.0 })) / n;
    let squares = values.iter().map(|&value| {
        let difference = if is_candidate(value) { value - mean } else { 0.0 };
        difference * difference
    });
    let deviation = (lane_sum(squares) / n).sqrt();
    mean + deviation * (normal_quantile(amount) as f32)
}

fn ascending(values: &[f32], candidates: &[usize]) -> Vec<usize> {
    let mut ranking = candidates.to_vec();
    ranking.sort_by(|&a, &b| values[a].partial_cmp(&values[b]).unwrap_or(std::cmp::Ordering::Equal));
    ranking
}

fn descending(values: &[f32], candidates: &[usize]) -> Vec<usize> {
    let mut ranking = candidates.to_vec();
    ranking.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap_or(std::cmp::Ordering::Equal));
    ranking
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(rule: Selector, values: &[f32], amount: Scalar, at_least: usize) -> Vec<usize> {
        let selected = select(rule, values, values, amount, at_least);
        (0..values.len()).filter(|&index| selected[index]).collect()
    }

    const TOP_P: Selector = Selector::TopP { crossing: false, ascending: false, strict: false };

    #[test]
    fn top_k_prefers_the_lower_index_and_skips_what_cannot_be_selected() {
        let rule = Selector::TopK { rounding: Rounding::Floor, ties: false };
        assert_eq!(indices(rule, &[1.0, 3.0, 3.0, 3.0], Scalar::Int(2), 0), [1, 2]);
        assert_eq!(indices(rule, &[f32::NAN, 0.0, f32::NEG_INFINITY], Scalar::Int(3), 0), [1]);
        assert_eq!(indices(rule, &[0.0, -0.0, 1.0], Scalar::Real(0.4), 2), [0, 2]);
        assert_eq!(indices(rule, &[1.0, 2.0], Scalar::Int(-4), 0), [0_usize; 0]);
        let with_ties = Selector::TopK { rounding: Rounding::Floor, ties: true };
        assert_eq!(indices(with_ties, &[1.0, 3.0, 2.0, 2.0], Scalar::Int(2), 0), [1, 2, 3]);
        assert_eq!(indices(with_ties, &[1.0, 3.0], Scalar::Int(0), 0), [0_usize; 0]);
        let smallest = Selector::BottomK { rounding: Rounding::Floor };
        assert_eq!(indices(smallest, &[2.0, 1.0, f32::NAN, 1.0, 0.5], Scalar::Int(2), 0), [1, 4]);
    }

    #[test]
    fn top_p_variants_differ_at_the_crossing() {
        let values = [0.5, 0.25, 0.125, 0.125];
        let with = |crossing, ascending, strict, amount| {
            indices(Selector::TopP { crossing, ascending, strict }, &values, Scalar::Real(amount), 0)
        };
        assert_eq!(with(false, false, false, 0.75), [0, 1]);
        assert_eq!(with(false, false, true, 0.75), [0]);
        assert_eq!(with(true, false, false, 0.75), [0, 1, 2]);
        assert_eq!(with(true, false, true, 0.75), [0, 1]);
        // Ascending sums are 0.125, 0.25, 0.5, 1.
        assert_eq!(with(false, true, false, 0.75), [0, 1, 3]);
        assert_eq!(with(false, true, true, 0.75), [0, 1]);
        assert_eq!(indices(TOP_P, &values, Scalar::Real(0.0), 1), [0]);
    }

    #[test]
    fn bottom_mass_takes_the_smallest() {
        let values = [0.5, 0.125, 0.25, 0.125];
        assert_eq!(indices(Selector::BottomMass, &values, Scalar::Real(0.25), 0), [1, 3]);
        assert_eq!(indices(Selector::BottomMass, &values, Scalar::Real(0.1), 1), [1]);
        assert_eq!(indices(Selector::BottomMass, &[f32::NAN, 0.1], Scalar::Real(1.0), 0), [1]);
    }

    #[test]
    fn statistical_selects_above_the_quantile() {
        let values = [1.0, 1.0, 1.0, 5.0];
        // Mean 2, deviation sqrt(3); quantile 0.5 is 0, so the bound is the mean.
        assert_eq!(indices(Selector::Statistical, &values, Scalar::Real(0.5), 0), [3]);
        assert_eq!(indices(Selector::Statistical, &values, Scalar::Real(0.9999), 1), [3]);
    }
}
