//! The inner loops in plain Rust, written so that compilers turn them into vector code.
//!
//! Products are not fused here: without hardware support `f32::mul_add` is a library call.

use std::slice;

use super::{EXP2, LANES, LOWEST, PANEL, ROUND};

/// Rows that share one pass over a panel.
const ROWS: usize = 4;

/// See [`super::Kernels::multiply`].
///
/// # Safety
/// `a` reaches over `rows` rows of `depth`, `b` over `depth * 16`, `c` over `rows` rows of 16.
#[expect(clippy::too_many_arguments, reason = "one signature for all instruction sets, with plain pointers")]
pub(super) unsafe fn multiply(
    a: *const f32,
    a_stride: usize,
    rows: usize,
    b: *const f32,
    depth: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    let panel = unsafe { slice::from_raw_parts(b, depth * PANEL) };
    for row in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - row);
        // A short strip computes its last row several times and writes it once.
        let left: [&[f32]; ROWS] = std::array::from_fn(|r| {
            // SAFETY: the row is one of `rows`, and has `depth` values.
            unsafe { slice::from_raw_parts(a.add((row + r.min(count - 1)) * a_stride), depth) }
        });
        let mut sums = [[0.0_f32; PANEL]; ROWS];
        for (k, right) in panel.chunks_exact(PANEL).enumerate() {
            for (sum, values) in sums.iter_mut().zip(&left) {
                for (x, y) in sum.iter_mut().zip(right) {
                    *x += values[k] * y;
                }
            }
        }
        for (r, sum) in sums.iter().enumerate().take(count) {
            // SAFETY: the row is one of `rows`, and has 16 values.
            let target = unsafe { slice::from_raw_parts_mut(c.add((row + r) * c_stride), PANEL) };
            for (x, y) in target.iter_mut().zip(sum) {
                *x = if accumulate { *x + y } else { *y };
            }
        }
    }
}

fn exp2(x: f32) -> f32 {
    // NOTE: written so that NaN stays NaN; `f32::max` would drop it.
    let x = if x < LOWEST { LOWEST } else { x };
    let rounded = x + ROUND;
    let part = x - (rounded - ROUND);
    let power = EXP2.iter().rev().fold(0.0, |sum, &coefficient| sum * part + coefficient);
    power * f32::from_bits(rounded.to_bits() << 23)
}

/// See [`super::Kernels::softmax`].
///
/// # Safety
/// `s` reaches over `rows` rows of `columns`, `max` over `rows`, `sum` over `rows * 8`, `o` over `rows` rows of
/// `width`; `columns` is a multiple of eight.
#[expect(clippy::too_many_arguments, reason = "one signature for all instruction sets, with plain pointers")]
pub(super) unsafe fn softmax(
    s: *mut f32,
    s_stride: usize,
    rows: usize,
    columns: usize,
    max: *mut f32,
    sum: *mut f32,
    o: *mut f32,
    o_stride: usize,
    width: usize,
) {
    for row in 0..rows {
        // SAFETY: the caller's promise, for one row.
        let (scores, max, sums, output) = unsafe {
            (
                slice::from_raw_parts_mut(s.add(row * s_stride), columns),
                &mut *max.add(row),
                slice::from_raw_parts_mut(sum.add(row * LANES), LANES),
                slice::from_raw_parts_mut(o.add(row * o_stride), width),
            )
        };
        let mut greatest = [f32::NEG_INFINITY; LANES];
        for chunk in scores.chunks_exact(LANES) {
            for (best, &score) in greatest.iter_mut().zip(chunk) {
                *best = if score > *best { score } else { *best };
            }
        }
        let greatest = greatest.iter().fold(*max, |best, &score| best.max(score));
        // Before the first block there is nothing to scale, and the output may hold anything.
        if greatest > *max && *max > f32::NEG_INFINITY {
            let factor = exp2(*max - greatest);
            sums.iter_mut().chain(output).for_each(|value| *value *= factor);
        }
        *max = greatest;
        let base = if greatest == f32::NEG_INFINITY { 0.0 } else { greatest };
        for chunk in scores.chunks_exact_mut(LANES) {
            for (score, sum) in chunk.iter_mut().zip(sums.iter_mut()) {
                *score = exp2(*score - base);
                *sum += *score;
            }
        }
    }
}

/// See [`super::Kernels::mask`].
///
/// # Safety
/// `scores` reaches over `len`, `words` over `ceil(len / 64)`.
pub(super) unsafe fn mask(scores: *mut f32, len: usize, words: *const u64) {
    // SAFETY: the caller's promise.
    let (scores, words) =
        unsafe { (slice::from_raw_parts_mut(scores, len), slice::from_raw_parts(words, len.div_ceil(64))) };
    for (chunk, word) in scores.chunks_mut(64).zip(words) {
        for (bit, score) in chunk.iter_mut().enumerate() {
            *score = if word >> bit & 1 == 1 { *score } else { f32::NEG_INFINITY };
        }
    }
}

/// See [`super::Kernels::transpose`].
///
/// # Safety
/// `source` reaches over 16 rows of `depth`, `panel` over `depth * 16`.
pub(super) unsafe fn transpose(source: *const f32, stride: usize, depth: usize, panel: *mut f32) {
    // SAFETY: the caller's promise.
    let panel = unsafe { slice::from_raw_parts_mut(panel, depth * PANEL) };
    for row in 0..PANEL {
        // SAFETY: one of the 16 rows.
        let values = unsafe { slice::from_raw_parts(source.add(row * stride), depth) };
        for (target, value) in panel[row..].iter_mut().step_by(PANEL).zip(values) {
            *target = *value;
        }
    }
}
