//! Selection among the elements of a line, with the result of the reference's stable sorts.
//!
//! A candidate becomes one 64-bit key: its value in an order-preserving code above its index. Keys are distinct, so that
//! an unstable sort or a partial selection has only one outcome, and equal values come in the order of indices.

use crate::ir::Selector;
use crate::ir::scalar::Scalar;
use crate::reference::select::{is_candidate, statistical_threshold, top_k_count};

/// A rule with its numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) rule: Selector,
    pub(super) amount: Scalar,
    pub(super) at_least: usize,
}

/// Codes of single-precision numbers are ordered like the numbers, both zeros alike.
fn code(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn keys(values: &[f32], keys: &mut Vec<u64>, flip: u32) {
    keys.clear();
    keys.extend(
        values
            .iter()
            .enumerate()
            .filter(|(_, value)| is_candidate(**value))
            .map(|(index, &value)| u64::from(code(value) ^ flip) << 32 | index as u64),
    );
}

fn ascending(values: &[f32], buffer: &mut Vec<u64>) {
    keys(values, buffer, 0);
    buffer.sort_unstable();
}

fn index(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

/// Marks the selected of a line by ones in `selected`, which holds zeros; running sums add up `costs`. `buffer` is working
/// memory.
pub(super) fn select(rule: Rule, values: &[f32], costs: &[f32], selected: &mut [u8], buffer: &mut Vec<u64>) {
    let Rule { rule, amount, at_least } = rule;
    match rule {
        Selector::TopK { rounding, ties } => {
            let count = top_k_count(rounding, amount, values.len()).max(at_least);
            take_first(values, count, u32::MAX, selected, buffer);
            if ties && let Some(last) = buffer.iter().map(|&key| code(values[index(key)])).min() {
                for (selected, &value) in selected.iter_mut().zip(values) {
                    *selected |= u8::from(is_candidate(value) && code(value) == last);
                }
            }
        }
        Selector::BottomK { rounding } => {
            let count = top_k_count(rounding, amount, values.len()).max(at_least);
            take_first(values, count, 0, selected, buffer);
        }
        Selector::TopP { crossing, ascending: false, strict } => {
            let amount = amount.real() as f32;
            keys(values, buffer, u32::MAX);
            buffer.sort_unstable();
            let mut sum = 0.0_f32;
            let mut kept = 0;
            for &key in &*buffer {
                let before = sum;
                sum += costs[index(key)];
                let compared = if crossing { before } else { sum };
                if !(if strict { compared < amount } else { compared <= amount }) {
                    break;
                }
                kept += 1;
            }
            for &key in &buffer[..kept.max(at_least).min(buffer.len())] {
                selected[index(key)] = 1;
            }
        }
        Selector::TopP { ascending: true, strict, .. } => {
            let rest = (1.0 - amount.real()) as f32;
            ascending(values, buffer);
            let mut sum = 0.0_f32;
            for &key in &*buffer {
                sum += costs[index(key)];
                selected[index(key)] = u8::from(if strict { sum > rest } else { sum >= rest });
            }
            take_largest(values, at_least, selected, buffer);
        }
        Selector::BottomMass => {
            let amount = amount.real() as f32;
            ascending(values, buffer);
            let mut sum = 0.0_f32;
            for (rank, &key) in buffer.iter().enumerate() {
                sum += costs[index(key)];
                selected[index(key)] = u8::from(sum <= amount || rank < at_least);
            }
        }
        Selector::Statistical => {
            let candidates = values.iter().filter(|value| is_candidate(**value)).count();
            let threshold = statistical_threshold(values, candidates, amount.real());
            for (selected, &value) in selected.iter_mut().zip(values) {
                *selected = u8::from(is_candidate(value) && value > threshold);
            }
            take_largest(values, at_least, selected, buffer);
        }
    }
}

/// Marks the `count` largest candidates.
fn take_largest(values: &[f32], count: usize, selected: &mut [u8], buffer: &mut Vec<u64>) {
    take_first(values, count, u32::MAX, selected, buffer);
}

/// Marks the `count` candidates that come first, descending where `flip` is all ones, ascending where it is 0; their
/// keys are in `buffer` then.
fn take_first(values: &[f32], count: usize, flip: u32, selected: &mut [u8], buffer: &mut Vec<u64>) {
    buffer.clear();
    if count == 0 {
        return;
    }
    keys(values, buffer, flip);
    if count < buffer.len() {
        buffer.select_nth_unstable(count - 1);
        buffer.truncate(count);
    }
    for &key in &*buffer {
        selected[index(key)] = 1;
    }
}
