//! The arithmetic of block values: exponential, sums, extrema, quantile.
//!
//! Every function is one fixed sequence of IEEE single-precision operations, each rounded on its own: no fused
//! multiply-add, no reassociation, no library call. Machine code on any target that does the same operations gives the
//! same bits, which is how symbols come out equal on every backend. `codegen::expr` writes [`exp_f32`] down once
//! more as LLVM IR; a test compares the two.

/// `log2(e)`.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// High part of `ln 2`: nine significant bits, so that its products with the exponents in use are exact.
pub const LN2_HIGH: f32 = 355.0 / 512.0;
/// Low part: `ln 2 - LN2_HIGH`, negative.
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of `r^7 .. r^2` in the exponential of the reduced argument `|r| <= ln(2) / 2`.
///
/// # Source
/// Cephes, `single/expf.c`.
pub const EXP_COEFFICIENTS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// Below it the exponential is 0: the first argument whose exponential is a normal number, `ln(2^-126)` rounded up.
pub const EXP_LOWEST: f32 = -87.336_54;
/// Above it the exponential is infinite: the last argument whose exponential is finite, `ln(f32::MAX)` rounded down.
pub const EXP_HIGHEST: f32 = 88.722_83;

/// The exponential.
///
/// With `n` = `x * log2(e)` rounded to nearest, ties to even, and `r = (x - n * LN2_HIGH) - n * LN2_LOW`, the result
/// is `(p(r) * (r * r) + r + 1) * 2^n`, `p` by Horner's rule; the power of two is applied as two exact factors,
/// because `2^128` is no single-precision number. Results below `2^-126` are 0, so that hosts which flush
/// subnormal numbers agree; NaN stays NaN. The error is below 2 units in the last place.
#[must_use]
pub fn exp_f32(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x < EXP_LOWEST {
        return 0.0;
    }
    if x > EXP_HIGHEST {
        return f32::INFINITY;
    }
    let n = (x * LOG2_E).round_ties_even();
    let high = x - n * LN2_HIGH;
    let r = high - n * LN2_LOW;
    let mut p = EXP_COEFFICIENTS[0];
    for coefficient in &EXP_COEFFICIENTS[1..] {
        p = p * r + coefficient;
    }
    let y = (p * (r * r) + r) + 1.0;
    let n = n as i32;
    y * power_of_two(n >> 1) * power_of_two(n - (n >> 1))
}

/// `2^n` for `-126 <= n <= 127`, by its exponent bits.
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// The sum in 32 lanes: lane `l` adds the elements with index `l mod 32` in order, then lanes are added pairwise,
/// `l` and `l + 16`, then 8, 4, 2, 1.
#[must_use]
pub fn lane_sum(values: impl IntoIterator<Item = f32>) -> f32 {
    let mut lanes = [0.0_f32; 32];
    for (index, value) in values.into_iter().enumerate() {
        lanes[index % 32] += value;
    }
    let mut distance = 16;
    while distance > 0 {
        for lane in 0..distance {
            lanes[lane] += lanes[lane + distance];
        }
        distance /= 2;
    }
    lanes[0]
}

/// The sum one by one.
#[must_use]
pub fn running_sum(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(0.0, |sum, value| sum + value)
}

/// The largest, NaN ignored; minus infinity where there is none. Zero comes out positive, so that the order in which
/// elements are compared does not matter.
#[must_use]
pub fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(f32::NEG_INFINITY, |best, value| if value > best { value } else { best }) + 0.0
}

/// The smallest, NaN ignored; infinity where there is none. Zero comes out positive.
#[must_use]
pub fn smallest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(f32::INFINITY, |best, value| if value < best { value } else { best }) + 0.0
}

/// The quantile of the standard normal distribution: minus infinity at 0 and below, infinity at 1 and above.
///
/// # Source
/// Wichura, algorithm AS 241 (PPND16), Applied Statistics 37 (1988); relative error about 1e-16.
#[must_use]
pub fn normal_quantile(p: f64) -> f64 {
    if p.is_nan() {
        return p;
    }
    if p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if p >= 1.0 {
        return f64::INFINITY;
    }
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        return q * ratio(&CENTRE, r);
    }
    let tail = if q < 0.0 { p } else { 1.0 - p };
    let r = (-tail.ln()).sqrt();
    let x = if r <= 5.0 { ratio(&MIDDLE, r - 1.6) } else { ratio(&TAIL, r - 5.0) };
    if q < 0.0 { -x } else { x }
}

/// Numerator and denominator of a rational function, highest power first.
type Rational = [[f64; 8]; 2];

fn ratio([numerator, denominator]: &Rational, x: f64) -> f64 {
    let horner = |coefficients: &[f64; 8]| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    horner(numerator) / horner(denominator)
}

#[expect(clippy::excessive_precision, reason = "digits as published")]
const CENTRE: Rational = [
    [
        2.509_080_928_730_122_672_7e3,
        3.343_057_558_358_812_810_5e4,
        6.726_577_092_700_870_085_3e4,
        4.592_195_393_154_987_145_7e4,
        1.373_169_376_550_946_112_5e4,
        1.971_590_950_306_551_442_7e3,
        1.331_416_678_917_843_774_5e2,
        3.387_132_872_796_366_608,
    ],
    [
        5.226_495_278_852_854_561e3,
        2.872_908_573_572_194_267_4e4,
        3.930_789_580_009_271_061e4,
        2.121_379_430_158_659_586_7e4,
        5.394_196_021_424_751_107_7e3,
        6.871_870_074_920_579_083e2,
        4.231_333_070_160_091_125_2e1,
        1.0,
    ],
];

#[expect(clippy::excessive_precision, reason = "digits as published")]
const MIDDLE: Rational = [
    [
        7.745_450_142_783_414_076_4e-4,
        2.272_384_498_926_918_458_33e-2,
        2.417_807_251_774_506_117_7e-1,
        1.270_458_252_452_368_382_58,
        3.647_848_324_763_204_605_04,
        5.769_497_221_460_691_405_5,
        4.630_337_846_156_545_295_9,
        1.423_437_110_749_683_577_34,
    ],
    [
        1.050_750_071_644_416_843_24e-9,
        5.475_938_084_995_344_946e-4,
        1.519_866_656_361_645_719_66e-2,
        1.481_039_764_274_800_745_9e-1,
        6.897_673_349_851_000_045_5e-1,
        1.676_384_830_183_803_849_4,
        2.053_191_626_637_758_821_87,
        1.0,
    ],
];

#[expect(clippy::excessive_precision, reason = "digits as published")]
const TAIL: Rational = [
    [
        2.010_334_399_292_288_132_65e-7,
        2.711_555_568_743_487_578_15e-5,
        1.242_660_947_388_078_438_6e-3,
        2.653_218_952_657_612_309_3e-2,
        2.965_605_718_285_048_912_3e-1,
        1.784_826_539_917_291_335_8,
        5.463_784_911_164_114_369_9,
        6.657_904_643_501_103_777_2,
    ],
    [
        2.044_263_103_389_939_785_64e-15,
        1.421_511_758_316_445_888_7e-7,
        1.846_318_317_510_054_681_8e-5,
        7.868_691_311_456_132_591e-4,
        1.487_536_129_085_061_485_25e-2,
        1.369_298_809_227_358_053_1e-1,
        5.998_322_065_558_879_376_9e-1,
        1.0,
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance to the exact value in units of the last place of the result.
    fn ulps(found: f32, exact: f64) -> f64 {
        let ulp = f64::from(f32::from_bits(found.to_bits() + 1)) - f64::from(found);
        (f64::from(found) - exact).abs() / ulp
    }

    #[test]
    fn exponential_is_within_two_ulps() {
        let mut worst = 0.0_f64;
        let mut x = EXP_LOWEST;
        while x <= EXP_HIGHEST {
            worst = worst.max(ulps(exp_f32(x), f64::from(x).exp()));
            x += 0.000_317;
        }
        for exponent in -30..7 {
            for step in 0..1000 {
                let x = 2.0_f32.powi(exponent) * (1.0 + step as f32 / 1000.0);
                for x in [x, -x] {
                    if x.abs() < 87.0 {
                        worst = worst.max(ulps(exp_f32(x), f64::from(x).exp()));
                    }
                }
            }
        }
        assert!(worst < 2.0, "{worst} ulps");
    }

    #[test]
    fn exponential_at_its_borders() {
        assert_eq!(exp_f32(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp_f32(-0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp_f32(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
        assert!(exp_f32(EXP_HIGHEST).is_finite());
        assert_eq!(exp_f32(f32::from_bits(EXP_HIGHEST.to_bits() + 1)), f32::INFINITY);
        assert!(exp_f32(EXP_LOWEST) >= f32::MIN_POSITIVE);
        assert_eq!(exp_f32(f32::from_bits(EXP_LOWEST.to_bits() + 1)).to_bits(), 0);
    }

    #[test]
    fn lanes_are_added_pairwise() {
        assert_eq!(lane_sum([]), 0.0);
        assert_eq!(lane_sum((0..33).map(|i| i as f32)), 528.0);
        // Element 32 joins lane 0 before any other lane: 1e8 absorbs 1, then is cancelled.
        let mut values = vec![0.0_f32; 33];
        (values[0], values[32], values[16]) = (1e8, 1.0, -1e8);
        assert_eq!(lane_sum(values), 0.0);
    }

    #[test]
    fn extrema_ignore_nan_and_signs_of_zero() {
        assert_eq!(largest([f32::NAN, -1.0, 3.0]), 3.0);
        assert_eq!(largest([-0.0]).to_bits(), 0);
        assert_eq!(smallest([0.0, -0.0]).to_bits(), 0);
        assert_eq!(largest([f32::NAN]), f32::NEG_INFINITY);
    }

    #[test]
    fn quantile_matches_known_values() {
        for (p, x) in [
            (0.5, 0.0),
            (0.975, 1.959_963_984_540_054),
            (0.025, -1.959_963_984_540_054),
            (0.999, 3.090_232_306_167_813_5),
            (1e-10, -6.361_340_902_404_056),
            (1e-20, -9.262_340_089_798_408),
        ] {
            assert!((normal_quantile(p) - x).abs() <= 1e-14 * x.abs().max(1.0), "{p}: {}", normal_quantile(p));
        }
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert_eq!(normal_quantile(1.0), f64::INFINITY);
    }
}
