//! Sums, extrema and softmax over lines of block values, in the order of the reference.
//!
//! The 32 lanes of a sum are independent, so that the loops below become vector code without any reassociation.

use crate::ir::Reduction;
use crate::reference::math;

const LANES: usize = 32;

/// Adds lanes pairwise.
fn fold_lanes(lanes: &mut [f32; LANES]) -> f32 {
    let mut distance = LANES / 2;
    while distance > 0 {
        let (low, high) = lanes.split_at_mut(distance);
        for (a, b) in low.iter_mut().zip(high) {
            *a += *b;
        }
        distance /= 2;
    }
    lanes[0]
}

/// [`math::lane_sum`] of a slice.
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += value;
    }
    fold_lanes(&mut lanes)
}

/// [`math::largest`] of a slice; extrema do not depend on the order.
pub(super) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let mut chunks = values.chunks_exact(8);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    math::largest(lanes.into_iter().chain(chunks.remainder().iter().copied()))
}

/// Reduces every row of a row-major matrix.
pub(super) fn reduce_rows(how: Reduction, values: &[f32], columns: usize, rows: usize) -> Vec<f32> {
    (0..rows)
        .map(|row| {
            let line = &values[row * columns..(row + 1) * columns];
            match how {
                Reduction::Sum => sum(line),
                Reduction::Mean => sum(line) / columns as f32,
                Reduction::Max => largest(line),
                Reduction::Min => math::smallest(line.iter().copied()),
            }
        })
        .collect()
}

/// Reduces every column of a row-major matrix: whole rows are added to a lane's row of sums.
pub(super) fn reduce_columns(how: Reduction, values: &[f32], columns: usize, rows: usize) -> Vec<f32> {
    if matches!(how, Reduction::Max | Reduction::Min) {
        return reduce_rows(how, &transpose(values, rows, columns), rows, columns);
    }
    let mut lanes = vec![0.0_f32; LANES * columns];
    for row in 0..rows {
        let lane = row % LANES;
        let sums = &mut lanes[lane * columns..(lane + 1) * columns];
        for (sum, value) in sums.iter_mut().zip(&values[row * columns..(row + 1) * columns]) {
            *sum += value;
        }
    }
    let mut distance = LANES / 2;
    while distance > 0 {
        let (low, high) = lanes.split_at_mut(distance * columns);
        for (a, b) in low.iter_mut().zip(high) {
            *a += *b;
        }
        distance /= 2;
    }
    lanes.truncate(columns);
    if how == Reduction::Mean {
        for sum in &mut lanes {
            *sum /= rows as f32;
        }
    }
    lanes
}

/// Softmax of every row.
pub(super) fn softmax_rows(values: &[f32], columns: usize) -> Vec<f32> {
    let mut result = vec![0.0_f32; values.len()];
    if columns == 0 {
        return result;
    }
    for (line, out) in values.chunks_exact(columns).zip(result.chunks_exact_mut(columns)) {
        let max = largest(line);
        if max == f32::NEG_INFINITY && line.iter().all(|&value| value == f32::NEG_INFINITY) {
            continue;
        }
        for (out, &value) in out.iter_mut().zip(line) {
            *out = exp(value - max);
        }
        let sum = sum(out);
        for value in out {
            *value /= sum;
        }
    }
    result
}

/// [`math::exp_f32`] without branches: rounding to an integer by adding `1.5 * 2^23`, choices at the end.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    let shifted = x * math::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * math::LN2_HIGH) - n * math::LN2_LOW;
    let mut p = math::EXP_COEFFICIENTS[0];
    for coefficient in &math::EXP_COEFFICIENTS[1..] {
        p = p * r + coefficient;
    }
    let y = (p * (r * r) + r) + 1.0;
    // Arguments outside of the range give any number here, which the choices below replace.
    let n = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n.wrapping_add(127)) as u32) << 23);
    let y = y * power(half) * power(n.wrapping_sub(half));
    let y = if x < math::EXP_LOWEST { 0.0 } else { y };
    let y = if x > math::EXP_HIGHEST { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// Rows become columns.
pub(super) fn transpose<T: Copy + Default>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    const TILE: usize = 16;
    let mut result = vec![T::default(); values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    result[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_equals_the_reference() {
        for bits in (0..=u32::MAX).step_by(1009) {
            let x = f32::from_bits(bits);
            let (fast, slow) = (exp(x), math::exp_f32(x));
            assert!(fast.to_bits() == slow.to_bits() || fast.is_nan() && slow.is_nan(), "{x}: {fast} {slow}");
        }
    }

    #[test]
    fn sums_equal_the_reference() {
        for n in [0_usize, 1, 31, 32, 33, 64, 65, 1000] {
            let values: Vec<f32> = (0..n).map(|i| ((i * 7919 + 13) % 1000) as f32 / 7.0 - 60.0).collect();
            assert_eq!(sum(&values).to_bits(), math::lane_sum(values.iter().copied()).to_bits(), "{n}");
            assert_eq!(reduce_columns(Reduction::Sum, &values, 1, n)[0].to_bits(), sum(&values).to_bits());
        }
    }
}
