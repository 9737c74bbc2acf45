//! What a transformer does besides products of matrices: norms, activations, rotary embedding, patches.
//!
//! Tokens are rows of single-precision numbers. Everything works row by row on all threads.

use rayon::prelude::*;

/// Rows that a thread takes at a time.
const ROWS: usize = 32;

/// `layer_norm(x) * (1 + scale) + shift`, row by row into `out`.
pub(super) fn modulated(x: &[f32], shift: &[f32], scale: &[f32], eps: f32, out: &mut [f32]) {
    let channels = shift.len();
    out.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let mean = sum(x, |x| x) / channels as f32;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / channels as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            for (((out, x), shift), scale) in out.iter_mut().zip(x).zip(shift).zip(scale) {
                *out = (x - mean) * inverse * (1.0 + scale) + shift;
            }
        }
    });
}

/// A sum in eight lanes, which compilers turn into vector code.
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane += term(x));
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| term(x)).sum::<f32>()
}

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `y = x - y`.
pub(super) fn subtract(x: &[f32], y: &mut [f32]) {
    x.iter().zip(y).for_each(|(x, y)| *y = x - *y);
}

/// `x += gate * y`, row by row.
pub(super) fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]) {
    let channels = gate.len();
    x.par_chunks_mut(ROWS * channels).zip(y.par_chunks(ROWS * channels)).for_each(|(x, y)| {
        for (x, y) in x.chunks_exact_mut(channels).zip(y.chunks_exact(channels)) {
            x.iter_mut().zip(gate).zip(y).for_each(|((x, gate), y)| *x += gate * y);
        }
    });
}

/// `x * sigmoid(x)`.
pub(super) fn silu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
}

/// The hyperbolic form of GELU; `(1 + tanh(u)) / 2` is `sigmoid(2 u)`.
pub(super) fn gelu(x: &mut [f32]) {
    let factor = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
    x.par_chunks_mut(4096).for_each(|x| {
        for x in x {
            let u = factor * (*x + 0.044_715 * *x * *x * *x);
            *x /= 1.0 + exp(-u);
        }
    });
}

/// The exponential to some units in the last place, in a form that compilers turn into vector code; the library's
/// function takes a tenth of a forward pass.
///
/// # Source
/// The polynomial is that of Cephes, `single/expf.c`, as in [`crate::reference::math`].
fn exp(x: f32) -> f32 {
    use crate::reference::math::{EXP_COEFFICIENTS, LN2_HIGH, LN2_LOW, LOG2_E};
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = EXP_COEFFICIENTS[1..].iter().fold(EXP_COEFFICIENTS[0], |p, coefficient| p * r + coefficient);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power
}

/// Cosines and sines of the rotary angles: `[tokens, head_dim / 2]`.
#[derive(Debug)]
pub(super) struct Rotation {
    turns: Vec<[f32; 2]>,
    pairs: usize,
}

impl Rotation {
    /// Text tokens do not turn; a patch turns half of its pairs by its row and half by its column.
    pub(super) fn new(text_tokens: usize, side: usize, head_dim: usize, base: f32) -> Self {
        let (pairs, half) = (head_dim / 2, head_dim / 4);
        let frequencies: Vec<f32> = (0..half).map(|i| base.powf(-(i as f32) / half as f32)).collect();
        let mut turns = vec![[1.0, 0.0]; text_tokens * pairs];
        for patch in 0..side * side {
            for at in [patch / side, patch % side] {
                turns.extend(frequencies.iter().map(|frequency| {
                    let (sin, cos) = (at as f32 * frequency).sin_cos();
                    [cos, sin]
                }));
            }
        }
        Rotation { turns, pairs }
    }

    /// Normalises the rows of `x` `[heads, tokens, head_dim]` by their mean square and `weight`, and turns them.
    pub(super) fn norm_and_turn(&self, x: &mut [f32], weight: &[f32], eps: f32, tokens: std::ops::Range<usize>) {
        let head_dim = 2 * self.pairs;
        let head = self.turns.len() * 2;
        let turns = &self.turns[tokens.start * self.pairs..tokens.end * self.pairs];
        for x in x.chunks_exact_mut(head) {
            let rows = &mut x[tokens.start * head_dim..tokens.end * head_dim];
            rows.par_chunks_mut(ROWS * head_dim).zip(turns.par_chunks(ROWS * self.pairs)).for_each(|(x, turns)| {
                for (x, turns) in x.chunks_exact_mut(head_dim).zip(turns.chunks_exact(self.pairs)) {
                    let mean = sum(x, |x| x * x) / head_dim as f32;
                    let inverse = 1.0 / (mean + eps).sqrt();
                    let (pairs, _) = x.as_chunks_mut::<2>();
                    let (weights, _) = weight.as_chunks::<2>();
                    for (([a, b], [cos, sin]), [weight_a, weight_b]) in pairs.iter_mut().zip(turns).zip(weights) {
                        let (x, y) = (*a * inverse * weight_a, *b * inverse * weight_b);
                        (*a, *b) = (x * cos - y * sin, x * sin + y * cos);
                    }
                }
            });
        }
    }
}

/// An image `[3, side * patch, side * patch]` as rows of its patches, each channel by row by column.
pub(super) fn patches(image: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(image.len());
    places(side, patch, |at| rows.push(image[at]));
    rows
}

/// The image of these patches.
pub(super) fn from_patches(rows: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let mut image = vec![0.0; rows.len()];
    let mut rows = rows.iter();
    places(side, patch, |at| rows.next().into_iter().for_each(|value| image[at] = *value));
    image
}

/// Where the numbers of all patches stand in the image, in order.
fn places(side: usize, patch: usize, mut at: impl FnMut(usize)) {
    let size = side * patch;
    for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
        for channel in 0..3 {
            for y in 0..patch {
                for x in 0..patch {
                    at((channel * size + row * patch + y) * size + column * patch + x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_agrees_with_double_precision() {
        let mut worst = 0.0_f64;
        for i in -8700..8800 {
            let x = i as f32 / 100.0 + 0.003;
            let wanted = f64::from(x.clamp(-87.0, 88.0)).exp();
            worst = worst.max((f64::from(exp(x)) - wanted).abs() / wanted);
        }
        assert!(worst < 3e-7, "{worst:e}");
        assert!(exp(-1000.0) < 1e-37 && exp(1000.0) > 1e38);
    }

    #[test]
    fn patches_come_back() {
        let image: Vec<f32> = (0..3 * 6 * 6).map(|i| i as f32).collect();
        let rows = patches(&image, 3, 2);
        assert_eq!(rows[..12], [0.0, 1.0, 6.0, 7.0, 36.0, 37.0, 42.0, 43.0, 72.0, 73.0, 78.0, 79.0]);
        assert_eq!(from_patches(&rows, 3, 2), image);
    }
}
