//! The inner loops for x86-64 with AVX2 and FMA.
//!
//! `multiply` keeps 6 x 16 sums in 12 registers; two loads of the panel and six broadcasts feed 12 fused
//! multiply-adds, so that the two FMA ports are the limit and not the loads. Zen 3 needs eight sums in flight
//! (latency 4, two per cycle): strips of one to three rows are slow, and `multiply` avoids them.

use std::arch::x86_64::*;

use super::{EXP2, Kernels, LANES, LOWEST, PANEL, ROUND};

/// Rows of a full tile.
const ROWS: usize = 6;

/// Chosen only after the CPU was found to have AVX2 and FMA.
pub(super) const KERNELS: Kernels = Kernels { name: "avx2", multiply, softmax, mask, transpose };

/// See [`super::Kernels::multiply`].
///
/// # Safety
/// The CPU has AVX2 and FMA; `a` reaches over `rows` rows of `depth`, `b` over `depth * 16`, `c` over `rows` rows
/// of 16.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::too_many_arguments, reason = "one signature for all instruction sets, with plain pointers")]
unsafe fn multiply(
    mut a: *const f32,
    a_stride: usize,
    mut rows: usize,
    b: *const f32,
    depth: usize,
    mut c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    while rows > 0 {
        // 7 and 8 rows are taken as 4 + 3 and 4 + 4: a rest of one or two rows cannot fill the FMA ports.
        let count = if rows == 7 || rows == 8 { 4 } else { rows.min(ROWS) };
        // SAFETY: `count` of the remaining rows, the caller's promise.
        unsafe {
            match count {
                6 => tile::<6>(a, a_stride, b, depth, c, c_stride, accumulate),
                5 => tile::<5>(a, a_stride, b, depth, c, c_stride, accumulate),
                4 => tile::<4>(a, a_stride, b, depth, c, c_stride, accumulate),
                3 => tile::<3>(a, a_stride, b, depth, c, c_stride, accumulate),
                2 => tile::<2>(a, a_stride, b, depth, c, c_stride, accumulate),
                _ => tile::<1>(a, a_stride, b, depth, c, c_stride, accumulate),
            }
        }
        rows -= count;
        a = a.wrapping_add(count * a_stride);
        c = c.wrapping_add(count * c_stride);
    }
}

/// One tile of `R` rows and 16 columns.
///
/// # Safety
/// As [`multiply`] with `rows = R`.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize>(
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    depth: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise covers rows below R, columns below 16 and k below `depth`.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        if accumulate {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = [_mm256_loadu_ps(c.add(row * c_stride)), _mm256_loadu_ps(c.add(row * c_stride + LANES))];
            }
        }
        for k in 0..depth {
            let right = [_mm256_loadu_ps(b.add(k * PANEL)), _mm256_loadu_ps(b.add(k * PANEL + LANES))];
            for (row, sum) in sums.iter_mut().enumerate() {
                let left = _mm256_broadcast_ss(&*a.add(row * a_stride + k));
                sum[0] = _mm256_fmadd_ps(left, right[0], sum[0]);
                sum[1] = _mm256_fmadd_ps(left, right[1], sum[1]);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            _mm256_storeu_ps(c.add(row * c_stride), sum[0]);
            _mm256_storeu_ps(c.add(row * c_stride + LANES), sum[1]);
        }
    }
}

/// 2^x for x <= 127; exactly 0 from -127 downwards, NaN for NaN.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn exp2(x: __m256) -> __m256 {
    // NOTE: the operand order keeps NaN; `max_ps` returns its second operand when either is NaN.
    let x = _mm256_max_ps(_mm256_set1_ps(LOWEST), x);
    let rounded = _mm256_add_ps(x, _mm256_set1_ps(ROUND));
    let part = _mm256_sub_ps(x, _mm256_sub_ps(rounded, _mm256_set1_ps(ROUND)));
    let mut power = _mm256_set1_ps(EXP2[6]);
    for &coefficient in EXP2[..6].iter().rev() {
        power = _mm256_fmadd_ps(power, part, _mm256_set1_ps(coefficient));
    }
    let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(rounded)));
    _mm256_mul_ps(power, scale)
}

/// The greatest of eight.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn greatest(x: __m256) -> f32 {
    let half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
}

/// See [`super::Kernels::softmax`].
///
/// # Safety
/// The CPU has AVX2 and FMA; `s` reaches over `rows` rows of `columns`, `max` over `rows`, `sum` over `rows * 8`,
/// `o` over `rows` rows of `width`; `columns` and `width` are multiples of eight.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::too_many_arguments, reason = "one signature for all instruction sets, with plain pointers")]
unsafe fn softmax(
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
        unsafe {
            let scores = s.add(row * s_stride);
            let mut best = [_mm256_set1_ps(f32::NEG_INFINITY); 2];
            let mut column = 0;
            while column + 2 * LANES <= columns {
                best[0] = _mm256_max_ps(best[0], _mm256_loadu_ps(scores.add(column)));
                best[1] = _mm256_max_ps(best[1], _mm256_loadu_ps(scores.add(column + LANES)));
                column += 2 * LANES;
            }
            if column < columns {
                best[0] = _mm256_max_ps(best[0], _mm256_loadu_ps(scores.add(column)));
            }
            let before = *max.add(row);
            let now = before.max(greatest(_mm256_max_ps(best[0], best[1])));
            let sums = sum.add(row * LANES);
            let mut total = _mm256_loadu_ps(sums);
            *max.add(row) = now;
            // Once a row has seen a few blocks its maximum seldom moves: most rows skip this. Before the first
            // block there is nothing to scale, and the output may hold anything.
            if now > before && before > f32::NEG_INFINITY {
                let factor = exp2(_mm256_set1_ps(before - now));
                total = _mm256_mul_ps(total, factor);
                for column in (0..width).step_by(LANES) {
                    let value = o.add(row * o_stride + column);
                    _mm256_storeu_ps(value, _mm256_mul_ps(_mm256_loadu_ps(value), factor));
                }
            }
            let base = _mm256_set1_ps(if now == f32::NEG_INFINITY { 0.0 } else { now });
            for column in (0..columns).step_by(LANES) {
                let power = exp2(_mm256_sub_ps(_mm256_loadu_ps(scores.add(column)), base));
                total = _mm256_add_ps(total, power);
                _mm256_storeu_ps(scores.add(column), power);
            }
            _mm256_storeu_ps(sums, total);
        }
    }
}

/// See [`super::Kernels::mask`].
///
/// # Safety
/// The CPU has AVX2; `scores` reaches over `len`, `words` over `ceil(len / 64)`.
#[target_feature(enable = "avx2,fma")]
unsafe fn mask(scores: *mut f32, len: usize, words: *const u64) {
    let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    let nothing = _mm256_set1_ps(f32::NEG_INFINITY);
    let whole = len / LANES * LANES;
    for column in (0..whole).step_by(LANES) {
        // SAFETY: `column + 8 <= len`, the caller's promise.
        unsafe {
            let byte = (*words.add(column / 64) >> (column % 64)) as u8;
            let found = _mm256_and_si256(_mm256_set1_epi32(i32::from(byte)), bits);
            let kept = _mm256_castsi256_ps(_mm256_cmpeq_epi32(found, bits));
            let value = _mm256_loadu_ps(scores.add(column));
            _mm256_storeu_ps(scores.add(column), _mm256_blendv_ps(nothing, value, kept));
        }
    }
    for column in whole..len {
        // SAFETY: `column < len`, the caller's promise.
        unsafe {
            if *words.add(column / 64) >> (column % 64) & 1 == 0 {
                *scores.add(column) = f32::NEG_INFINITY;
            }
        }
    }
}

/// See [`super::Kernels::transpose`].
///
/// # Safety
/// The CPU has AVX2; `source` reaches over 16 rows of `depth`, `panel` over `depth * 16`.
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose(source: *const f32, stride: usize, depth: usize, panel: *mut f32) {
    let whole = depth / LANES * LANES;
    for half in [0, LANES] {
        for k in (0..whole).step_by(LANES) {
            // SAFETY: rows below 16 and columns below `depth`, the caller's promise.
            unsafe {
                let rows: [__m256; 8] =
                    std::array::from_fn(|row| _mm256_loadu_ps(source.add((half + row) * stride + k)));
                let columns = transpose_eight(rows);
                for (column, values) in columns.into_iter().enumerate() {
                    _mm256_storeu_ps(panel.add((k + column) * PANEL + half), values);
                }
            }
        }
    }
    for k in whole..depth {
        for row in 0..PANEL {
            // SAFETY: as above.
            unsafe { *panel.add(k * PANEL + row) = *source.add(row * stride + k) };
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose_eight(r: [__m256; 8]) -> [__m256; 8] {
    let low = |i: usize| _mm256_unpacklo_ps(r[i], r[i + 1]);
    let high = |i: usize| _mm256_unpackhi_ps(r[i], r[i + 1]);
    let pairs = [low(0), high(0), low(2), high(2), low(4), high(4), low(6), high(6)];
    let first = |i: usize| _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
    let second = |i: usize| _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
    let top = [first(0), second(0), first(1), second(1)];
    let bottom = [first(4), second(4), first(5), second(5)];
    std::array::from_fn(|i| {
        if i < 4 {
            _mm256_permute2f128_ps::<0x20>(top[i], bottom[i])
        } else {
            _mm256_permute2f128_ps::<0x31>(top[i - 4], bottom[i - 4])
        }
    })
}
