//! The inner loops, and the only `unsafe` code of the CPU backend.
//!
//! Everything is built from four loops over single precision: `multiply` (a strip of rows times one panel of
//! 16 columns), `softmax` (one step of the online softmax over a strip), `mask` (a token mask over one row) and
//! `transpose` (rows into a panel). [`Kernels`] is a table of them for one instruction set, chosen once at run
//! time; its methods check every bound, so that callers stay safe code.
//!
//! A *panel* is `[depth, 16]`, row-major and aligned to a cache line: 16 columns of the right factor, two AVX2
//! registers wide. With six rows of the left factor it fills 12 of the 16 registers with accumulators.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

use std::f32::consts::LN_2;
use std::sync::LazyLock;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;

/// Width of the partial sums of a row of the softmax.
pub(crate) const LANES: usize = 8;

/// Exponents below this are zero: 2^-127 is the first power without a normal number.
const LOWEST: f32 = -127.0;

/// 1.5 * 2^23 + 127: adding it rounds to an integer and leaves that integer, biased as an exponent, in the low bits.
const ROUND: f32 = 12_582_912.0 + 127.0;

/// Polynomial of 2^x on [-1/2, 1/2], lowest power first; minimax in relative error, 2e-9.
const EXP2: [f32; 7] = [1.0, LN_2, 0.240_226_47, 0.055_503_288, 0.009_618_489, 0.001_339_993_1, 0.000_153_458_06];

/// What `multiply` adds to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Onto {
    /// The result replaces what is there.
    Nothing,
    /// The result is added to what is there.
    Values,
}

/// Rows of equal distance in a slice.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Values from the first row on.
    pub(crate) values: &'a [f32],
    /// Values from one row to the next.
    pub(crate) stride: usize,
}

/// Rows of equal distance in a slice, to write.
pub(crate) struct RowsMut<'a> {
    /// Values from the first row on.
    pub(crate) values: &'a mut [f32],
    /// Values from one row to the next.
    pub(crate) stride: usize,
}

type Multiply = unsafe fn(*const f32, usize, usize, *const f32, usize, *mut f32, usize, bool);
type Softmax = unsafe fn(*mut f32, usize, usize, usize, *mut f32, *mut f32, *mut f32, usize, usize);
type Mask = unsafe fn(*mut f32, usize, *const u64);
type Transpose = unsafe fn(*const f32, usize, usize, *mut f32);

/// The inner loops for one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Name of the instruction set.
    pub(crate) name: &'static str,
    multiply: Multiply,
    softmax: Softmax,
    mask: Mask,
    transpose: Transpose,
}

/// Values that `count` rows of `width` reach over.
fn reach(count: usize, stride: usize, width: usize) -> usize {
    if count == 0 { 0 } else { (count - 1) * stride + width }
}

impl Kernels {
    /// The loops every target has.
    pub(crate) const PORTABLE: Kernels = Kernels {
        name: "portable",
        multiply: portable::multiply,
        softmax: portable::softmax,
        mask: portable::mask,
        transpose: portable::transpose,
    };

    /// The fastest loops of this machine.
    pub(crate) fn best() -> Kernels {
        static BEST: LazyLock<Kernels> = LazyLock::new(|| {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return avx2::KERNELS;
            }
            Kernels::PORTABLE
        });
        *BEST
    }

    /// `c[row, ..16] = a[row, ..depth] · panel`, or `+=`, for `rows` rows.
    pub(crate) fn multiply(&self, rows: usize, a: Rows<'_>, panel: &[f32], depth: usize, c: RowsMut<'_>, onto: Onto) {
        assert!(a.values.len() >= reach(rows, a.stride, depth), "left factor is too short");
        assert!(panel.len() >= depth * PANEL, "panel is too short");
        assert!(c.values.len() >= reach(rows, c.stride, PANEL), "product is too short");
        let accumulate = onto == Onto::Values;
        let (a_values, c_values) = (a.values.as_ptr(), c.values.as_mut_ptr());
        // SAFETY: the three assertions bound every address the kernel forms, and `best` has checked the CPU.
        unsafe { (self.multiply)(a_values, a.stride, rows, panel.as_ptr(), depth, c_values, c.stride, accumulate) }
    }

    /// One step of the online softmax, in base 2.
    ///
    /// For each row: raises `max` to the greatest of `scores[row, ..columns]`, scales `sum` and `output`
    /// by what that changes (not the first time), replaces the scores by `2^(score - max)` and adds them to the row's eight partial sums.
    /// `columns` and `width` are multiples of eight.
    pub(crate) fn softmax(
        &self,
        scores: RowsMut<'_>,
        columns: usize,
        max: &mut [f32],
        sum: &mut [f32],
        output: RowsMut<'_>,
        width: usize,
    ) {
        let rows = max.len();
        assert!(columns.is_multiple_of(LANES) && width.is_multiple_of(LANES), "whole vectors only");
        assert!(scores.values.len() >= reach(rows, scores.stride, columns), "scores are too short");
        assert!(output.values.len() >= reach(rows, output.stride, width), "output is too short");
        assert!(sum.len() >= rows * LANES, "sums are too short");
        let (s, o) = (scores.values.as_mut_ptr(), output.values.as_mut_ptr());
        let (max, sum) = (max.as_mut_ptr(), sum.as_mut_ptr());
        // SAFETY: the assertions bound every address the kernel forms, and `best` has checked the CPU.
        unsafe { (self.softmax)(s, scores.stride, rows, columns, max, sum, o, output.stride, width) }
    }

    /// Replaces the scores whose bit in `words` is 0 by minus infinity.
    pub(crate) fn mask(&self, scores: &mut [f32], words: &[u64]) {
        assert!(words.len() * 64 >= scores.len(), "mask is too short");
        // SAFETY: one bit for each score, and `best` has checked the CPU.
        unsafe { (self.mask)(scores.as_mut_ptr(), scores.len(), words.as_ptr()) }
    }

    /// Writes 16 rows of `depth` values as a panel.
    pub(crate) fn transpose(&self, source: Rows<'_>, depth: usize, panel: &mut [f32]) {
        assert!(source.values.len() >= reach(PANEL, source.stride, depth), "rows are too short");
        assert!(panel.len() >= depth * PANEL, "panel is too short");
        // SAFETY: the assertions bound every address the kernel forms, and `best` has checked the CPU.
        unsafe { (self.transpose)(source.values.as_ptr(), source.stride, depth, panel.as_mut_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, mut state: u64) -> Vec<f32> {
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn both() -> [Kernels; 2] {
        [Kernels::PORTABLE, Kernels::best()]
    }

    #[test]
    fn products_are_those_of_double_precision() {
        for kernels in both() {
            for rows in 1..=19 {
                for depth in [1, 2, 7, 64] {
                    let (a, b) = (noise(rows * (depth + 3), 1), noise(depth * PANEL, 2));
                    let mut c = vec![1.0; rows * 20];
                    let left = Rows { values: &a, stride: depth + 3 };
                    kernels.multiply(rows, left, &b, depth, RowsMut { values: &mut c, stride: 20 }, Onto::Values);
                    for (row, column) in (0..rows).flat_map(|row| (0..20).map(move |column| (row, column))) {
                        let product = |k: usize| f64::from(a[row * (depth + 3) + k]) * f64::from(b[k * PANEL + column]);
                        let sum: f64 = if column < PANEL { (0..depth).map(product).sum() } else { 0.0 };
                        let found = f64::from(c[row * 20 + column]);
                        assert!((found - 1.0 - sum).abs() < 1e-5, "{} {rows} {depth}: {found}", kernels.name);
                    }
                }
            }
        }
    }

    #[test]
    fn powers_of_two_are_accurate_and_end_in_zero() {
        for kernels in both() {
            let mut worst = 0.0_f64;
            for start in 0..1000 {
                let mut scores: Vec<f32> = (0..8).map(|lane| -((start * 8 + lane) as f32) * 0.015).collect();
                let before = scores.clone();
                let (mut max, mut sum, mut output) = ([0.0], [0.0; 8], [0.0; 8]);
                let rows = RowsMut { values: &mut scores, stride: 8 };
                kernels.softmax(rows, 8, &mut max, &mut sum, RowsMut { values: &mut output, stride: 8 }, 8);
                for (x, found) in before.iter().zip(&scores) {
                    let wanted = f64::from(*x).exp2();
                    worst = worst.max((f64::from(*found) / wanted - 1.0).abs());
                }
            }
            assert!(worst < 1.5e-7, "{}: {worst}", kernels.name);
            let mut scores = [f32::NEG_INFINITY, -127.0, -500.0, f32::MIN, -126.0, 0.0, f32::NAN, -1.0];
            let (mut max, mut sum, mut output) = ([0.0], [0.0; 8], [0.0; 8]);
            let rows = RowsMut { values: &mut scores, stride: 8 };
            kernels.softmax(rows, 8, &mut max, &mut sum, RowsMut { values: &mut output, stride: 8 }, 8);
            assert_eq!(scores[..4], [0.0; 4], "{}", kernels.name);
            assert_eq!((scores[5], scores[7], scores[6].is_nan()), (1.0, 0.5, true), "{}", kernels.name);
        }
    }

    #[test]
    fn rows_without_a_finite_score_stay_empty() {
        for kernels in both() {
            let mut scores = [f32::NEG_INFINITY; 16];
            let (mut max, mut sum, mut output) = ([f32::NEG_INFINITY], [0.0; 8], [0.0; 8]);
            let rows = RowsMut { values: &mut scores, stride: 16 };
            kernels.softmax(rows, 16, &mut max, &mut sum, RowsMut { values: &mut output, stride: 8 }, 8);
            assert_eq!((max, sum, output, scores), ([f32::NEG_INFINITY], [0.0; 8], [0.0; 8], [0.0; 16]));
        }
    }

    #[test]
    fn masks_and_transposes_agree_with_their_meaning() {
        for kernels in both() {
            for len in [1, 7, 8, 9, 64, 70, 130] {
                let words: Vec<u64> =
                    noise(3, 5).iter().map(|x| u64::from(x.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
                let mut scores = noise(len, 3);
                let before = scores.clone();
                kernels.mask(&mut scores, &words);
                for (index, (found, was)) in scores.iter().zip(&before).enumerate() {
                    let kept = words[index / 64] >> (index % 64) & 1 == 1;
                    assert_eq!(*found, if kept { *was } else { f32::NEG_INFINITY }, "{} {len} {index}", kernels.name);
                }
            }
            for depth in [1, 5, 8, 17, 40] {
                let source = noise(PANEL * depth, 4);
                let mut panel = vec![0.0; depth * PANEL];
                kernels.transpose(Rows { values: &source, stride: depth }, depth, &mut panel);
                for (row, k) in (0..PANEL).flat_map(|row| (0..depth).map(move |k| (row, k))) {
                    assert_eq!(panel[k * PANEL + row], source[row * depth + k]);
                }
            }
        }
    }
}
