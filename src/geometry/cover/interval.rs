//! Intervals and what operations make of them: the smallest and largest value over a range of tokens. Truth values are
//! 0 and 1, and unknown in between.

use crate::ir::scalar::Scalar;
use crate::ir::{Binary, Comparison, Table, Unary};

/// Where integers stop, as reals.
const INTEGER_END: f64 = (1_u64 << 63) as f64;
/// Below it, in size, double precision holds every integer; the number itself may be one that was rounded.
const EXACT_END: f64 = (1_u64 << 53) as f64;

/// Smallest and largest.
pub(super) type Interval = (f64, f64);

/// An interval of each element of a row, or one for all of them.
#[derive(Clone, Default)]
pub(super) struct Register {
    pub(super) low: Vec<f64>,
    pub(super) high: Vec<f64>,
}

impl Register {
    pub(super) fn set_one(&mut self, (low, high): Interval) {
        self.low.clear();
        self.high.clear();
        self.low.push(low);
        self.high.push(high);
    }

    /// The values, where all are points.
    pub(super) fn points(&self) -> Option<&[f64]> {
        self.low.iter().zip(&self.high).all(|(&low, &high)| is_point((low, high))).then_some(&self.low)
    }

    fn extend(&mut self, intervals: impl Iterator<Item = Interval> + Clone) {
        self.low.extend(intervals.clone().map(|(low, _)| low));
        self.high.extend(intervals.map(|(_, high)| high));
    }

    pub(super) fn is_one(&self, interval: Interval) -> bool {
        self.low.len() == 1 && is_same((self.low[0], self.high[0]), interval)
    }

    /// The intervals, each `each` times, and all of that `times` times; one where all are the same.
    pub(super) fn set_all(&mut self, intervals: impl Iterator<Item = Interval> + Clone, each: usize, times: usize) {
        let first = intervals.clone().next().unwrap_or((0.0, 0.0));
        if intervals.clone().all(|interval| is_same(interval, first)) {
            return self.set_one(first);
        }
        self.low.clear();
        self.high.clear();
        for _ in 0..times {
            match each {
                1 => self.extend(intervals.clone()),
                _ => self.extend(intervals.clone().flat_map(|interval| std::iter::repeat_n(interval, each))),
            }
        }
    }
}

/// The interval of some values; [`UNKNOWN`] where some but not all are NaN, which `min` and `max` ignore.
pub(super) fn extremes(values: &[f64]) -> Interval {
    let (mut low, mut high, mut nans) = (EMPTY.0, EMPTY.1, 0);
    for &value in values {
        nans += usize::from(value.is_nan());
        // The sign of zero counts: a division tells.
        if value < low || (value == low && value.is_sign_negative()) {
            low = value;
        }
        if value > high || (value == high && value.is_sign_positive()) {
            high = value;
        }
    }
    match nans {
        0 => (low, high),
        nans if nans == values.len() => (f64::NAN, f64::NAN),
        _ => UNKNOWN,
    }
}

/// Bounds of integers that an operation gave: where they were rounded they move outward, so that what lies between still
/// holds the integer, and they stop where integers do. No integer of this size is a point.
pub(super) fn outward(integers: &mut Register) {
    let is_exact = |value: &f64| value.abs() < EXACT_END;
    if integers.low.iter().chain(&integers.high).all(is_exact) {
        return;
    }
    for low in integers.low.iter_mut().filter(|low| !is_exact(low)) {
        *low = low.next_down().clamp(-INTEGER_END, INTEGER_END);
    }
    for high in integers.high.iter_mut().filter(|high| !is_exact(high)) {
        *high = high.next_up().clamp(-INTEGER_END, INTEGER_END);
    }
}

/// The interval of one integer; see [`outward`].
pub(super) fn integer(value: i64) -> Interval {
    let mut register = Register::default();
    register.set_one((value as f64, value as f64));
    outward(&mut register);
    (register.low[0], register.high[0])
}

/// Whether bounds of integers were rounded.
fn is_rounded(a: Interval) -> bool {
    a.0.abs() >= EXACT_END || a.1.abs() >= EXACT_END
}

/// Entries of a table: exact where the keys are points.
pub(super) fn look_up(
    table: &Table,
    range: Interval,
    item: u8,
    keys: &[&Register],
    otherwise: Option<&Register>,
    out: &mut Register,
) {
    let at = |register: &Register, i: usize| {
        let i = if register.low.len() > 1 { i } else { 0 };
        (register.low[i], register.high[i])
    };
    let width = keys.iter().copied().chain(otherwise).map(|register| register.low.len()).max().unwrap_or(1);
    let entry = |i: usize| -> Interval {
        let otherwise = otherwise.map_or((0.0, 0.0), |register| at(register, i));
        let keys = || keys.iter().map(|register| at(register, i));
        if !keys().all(is_point) {
            return union(range, otherwise);
        }
        match table.get(keys().map(|key| key.0 as i64), item) {
            Some(Scalar::Bool(value)) => (f64::from(u8::from(value)), f64::from(u8::from(value))),
            Some(number) => (number.real(), number.real()),
            None => otherwise,
        }
    };
    (out.low, out.high) = (0..width).map(entry).unzip();
}

fn map1(a: &Register, out: &mut Register, f: impl Fn(Interval) -> Interval) {
    let width = a.low.len();
    out.low.resize(width, 0.0);
    out.high.resize(width, 0.0);
    let (low, high, out_low, out_high) = (&a.low[..], &a.high[..width], &mut out.low[..width], &mut out.high[..width]);
    for i in 0..width {
        (out_low[i], out_high[i]) = f((low[i], high[i]));
    }
}

pub(super) fn map2(a: &Register, b: &Register, out: &mut Register, f: impl Fn(Interval, Interval) -> Interval) {
    let width = a.low.len().max(b.low.len());
    out.low.resize(width, 0.0);
    out.high.resize(width, 0.0);
    let (out_low, out_high) = (&mut out.low[..width], &mut out.high[..width]);
    if a.low.len() == width && b.low.len() == width {
        let (al, ah, bl, bh) = (&a.low[..width], &a.high[..width], &b.low[..width], &b.high[..width]);
        for i in 0..width {
            (out_low[i], out_high[i]) = f((al[i], ah[i]), (bl[i], bh[i]));
        }
    } else if a.low.len() == width {
        let (al, ah, b) = (&a.low[..width], &a.high[..width], (b.low[0], b.high[0]));
        for i in 0..width {
            (out_low[i], out_high[i]) = f((al[i], ah[i]), b);
        }
    } else {
        let (bl, bh, a) = (&b.low[..width], &b.high[..width], (a.low[0], a.high[0]));
        for i in 0..width {
            (out_low[i], out_high[i]) = f(a, (bl[i], bh[i]));
        }
    }
    out.low.truncate(width);
    out.high.truncate(width);
}

pub(super) fn unary(op: Unary, a: &Register, out: &mut Register) {
    let monotone = |f: fn(f64) -> f64| {
        move |(low, high): Interval| if is_unknown((low, high)) { UNKNOWN } else { (f(low), f(high)) }
    };
    // Without a value below zero: a range that reaches there may hold NaN.
    let from_zero = |f: fn(f64) -> f64| {
        move |(low, high): Interval| if low >= 0.0 || is_point((low, high)) { (f(low), f(high)) } else { UNKNOWN }
    };
    match op {
        Unary::Negate => map1(a, out, |(low, high)| (-high, -low)),
        Unary::Not => map1(a, out, |(low, high)| (1.0 - high, 1.0 - low)),
        Unary::Abs => map1(a, out, |(low, high)| {
            if is_unknown((low, high)) {
                return UNKNOWN;
            }
            let least = if low <= 0.0 && high >= 0.0 { 0.0 } else { low.abs().min(high.abs()) };
            (least, high.abs().max(low.abs()))
        }),
        Unary::Sqrt => map1(a, out, from_zero(f64::sqrt)),
        Unary::Exp => map1(a, out, monotone(f64::exp)),
        Unary::Log => map1(a, out, from_zero(f64::ln)),
        Unary::Floor => map1(a, out, monotone(|x| whole(x.floor()))),
        Unary::Ceil => map1(a, out, monotone(|x| whole(x.ceil()))),
        Unary::Round => map1(a, out, monotone(|x| whole(x.round_ties_even()))),
        Unary::BitLength => map1(a, out, monotone(bit_length)),
        Unary::ToReal => map1(a, out, |interval| interval),
    }
}

/// What is left of a real as an integer: saturated, 0 for NaN.
fn whole(value: f64) -> f64 {
    value as i64 as f64
}

fn bit_length(value: f64) -> f64 {
    f64::from(64 - (value.max(0.0) as u64).leading_zeros())
}

pub(super) fn binary(op: Binary, a: &Register, b: &Register, out: &mut Register) {
    match op {
        Binary::Add => map2(a, b, out, |a, b| known(a, b, |a, b| sum(a.0 + b.0, a.1 + b.1))),
        Binary::Subtract => map2(a, b, out, |a, b| known(a, b, |a, b| sum(a.0 - b.1, a.1 - b.0))),
        Binary::Multiply => map2(a, b, out, |a, b| known(a, b, multiply)),
        Binary::Divide => map2(a, b, out, |a, b| known(a, b, |a, b| divide(a, b, |a, b| a / b))),
        Binary::FloorDivide => map2(a, b, out, |a, b| known(a, b, whole_divide)),
        Binary::Modulo => map2(a, b, out, |a, b| known(a, b, modulo)),
        Binary::Power => map2(a, b, out, |a, b| known(a, b, power)),
        Binary::Min => map2(a, b, out, |a, b| known(a, b, |a, b| (smaller(a.0, b.0), smaller(a.1, b.1)))),
        Binary::Max => map2(a, b, out, |a, b| known(a, b, |a, b| (larger(a.0, b.0), larger(a.1, b.1)))),
        Binary::And => map2(a, b, out, |a, b| (a.0.min(b.0), a.1.min(b.1))),
        Binary::Or => map2(a, b, out, |a, b| (a.0.max(b.0), a.1.max(b.1))),
        Binary::Xor => map2(a, b, out, |a, b| known(a, b, xor)),
    }
}

/// An operation on intervals that hold no NaN, or nothing else: what may hold NaN stays so.
fn known(a: Interval, b: Interval, f: impl Fn(Interval, Interval) -> Interval) -> Interval {
    if is_unknown(a) || is_unknown(b) { UNKNOWN } else { f(a, b) }
}

fn corners(a: Interval, b: Interval, f: impl Fn(f64, f64) -> f64) -> Interval {
    if is_point(a) && is_point(b) {
        let value = f(a.0, b.0);
        return (value, value);
    }
    let corners = [f(a.0, b.0), f(a.0, b.1), f(a.1, b.0), f(a.1, b.1)];
    if corners.iter().any(|corner| corner.is_nan()) {
        return if is_nan(a) || is_nan(b) { (f64::NAN, f64::NAN) } else { UNKNOWN };
    }
    corners.into_iter().fold(EMPTY, |(low, high), x| (low.min(x), high.max(x)))
}

/// The second where one is NaN, as the specification has it.
fn smaller(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

fn multiply(a: Interval, b: Interval) -> Interval {
    if is_point(a) && is_point(b) {
        return (a.0 * b.0, a.0 * b.0);
    }
    let holds_zero = |a: Interval| a.0 <= 0.0 && a.1 >= 0.0;
    let unbounded = |a: Interval| a.0.is_infinite() || a.1.is_infinite();
    // Zero times infinity is NaN.
    if (holds_zero(a) && unbounded(b)) || (unbounded(a) && holds_zero(b)) {
        return UNKNOWN;
    }
    corners(a, b, |a, b| a * b)
}

/// A power of integers: 0 where the exponent is negative.
pub(super) fn integer_power(a: Interval, b: Interval) -> Interval {
    match (is_point(a) && is_point(b), b.1 < 0.0) {
        (_, true) => (0.0, 0.0),
        (true, _) => corners(a, b, f64::powf),
        _ if a.0 >= 1.0 && b.0 >= 0.0 => corners(a, b, f64::powf),
        _ if a.0 >= 1.0 => (0.0, a.1.powf(b.1)),
        _ => UNKNOWN,
    }
}

fn floor_divide(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { (a / b).floor() }
}

const UNKNOWN: Interval = (f64::NEG_INFINITY, f64::INFINITY);
/// The identity of the union of intervals.
const EMPTY: Interval = (f64::INFINITY, f64::NEG_INFINITY);

/// Whether it is one value; NaN is one, and ranges that may hold it are [`UNKNOWN`].
fn is_point(a: Interval) -> bool {
    a.0.to_bits() == a.1.to_bits() || is_nan(a)
}

fn is_nan(a: Interval) -> bool {
    a.0.is_nan() && a.1.is_nan()
}

/// Whether they are equal to the bit.
fn is_same(a: Interval, b: Interval) -> bool {
    (a.0.to_bits(), a.1.to_bits()) == (b.0.to_bits(), b.1.to_bits())
}

/// Whether it may hold NaN beside other values.
fn is_unknown(a: Interval) -> bool {
    a == UNKNOWN
}

/// What is in one or the other.
fn union(a: Interval, b: Interval) -> Interval {
    match (is_nan(a), is_nan(b)) {
        (true, true) => a,
        (false, false) => (a.0.min(b.0), a.1.max(b.1)),
        _ => UNKNOWN,
    }
}

/// A sum of intervals, of which one bound may be infinity less infinity.
fn sum(low: f64, high: f64) -> Interval {
    if low.is_nan() == high.is_nan() { (low, high) } else { UNKNOWN }
}

fn divide(a: Interval, b: Interval, f: impl Fn(f64, f64) -> f64) -> Interval {
    if is_point(a) && is_point(b) {
        let exact = f(a.0, b.0);
        return (exact, exact);
    }
    if b.0 <= 0.0 && b.1 >= 0.0 { UNKNOWN } else { corners(a, b, f) }
}

fn whole_divide(a: Interval, b: Interval) -> Interval {
    let (low, high) = divide(a, b, floor_divide);
    // The quotient of large numbers may be rounded to the next integer.
    if is_rounded(a) || is_rounded(b) { (low - 1.0, high + 1.0) } else { (low, high) }
}

fn modulo(a: Interval, b: Interval) -> Interval {
    if !is_point(b) || b.0 <= 0.0 {
        if is_point(a) && is_point(b) {
            let exact = if b.0 == 0.0 { 0.0 } else { a.0 - floor_divide(a.0, b.0) * b.0 };
            return (exact, exact);
        }
        return UNKNOWN;
    }
    // Their difference from the multiple below is lost.
    if is_rounded(a) {
        return (0.0, b.0);
    }
    let (first, last) = (floor_divide(a.0, b.0), floor_divide(a.1, b.0));
    if first == last { (a.0 - first * b.0, a.1 - first * b.0) } else { (0.0, b.0) }
}

fn power(a: Interval, b: Interval) -> Interval {
    if (is_point(a) && is_point(b)) || a.0 >= 1.0 {
        return corners(a, b, f64::powf);
    }
    UNKNOWN
}

fn xor(a: Interval, b: Interval) -> Interval {
    if is_point(a) && is_point(b) {
        let exact = ((a.0 as i64) ^ (b.0 as i64)) as f64;
        return (exact, exact);
    }
    if a.0 < 0.0 || b.0 < 0.0 {
        return UNKNOWN;
    }
    (0.0, 2_f64.powf(bit_length(a.1).max(bit_length(b.1))) - 1.0)
}

pub(super) fn compare(op: Comparison, a: &Register, b: &Register, out: &mut Register) {
    let truth = |value: bool| f64::from(u8::from(value));
    match op {
        Comparison::Less => map2(a, b, out, |a, b| certain(a, b, |a, b| (truth(a.1 < b.0), truth(a.0 < b.1)))),
        Comparison::LessEqual => map2(a, b, out, |a, b| certain(a, b, |a, b| (truth(a.1 <= b.0), truth(a.0 <= b.1)))),
        Comparison::Equal => map2(a, b, out, |a, b| certain(a, b, |a, b| equal(a, b, truth))),
        Comparison::NotEqual => map2(a, b, out, |a, b| {
            let (low, high) = certain(a, b, |a, b| equal(a, b, truth));
            (1.0 - high, 1.0 - low)
        }),
    }
}

/// A comparison of intervals that hold no NaN, or nothing else; of others nothing is known.
fn certain(a: Interval, b: Interval, f: impl Fn(Interval, Interval) -> Interval) -> Interval {
    if is_unknown(a) || is_unknown(b) { (0.0, 1.0) } else { f(a, b) }
}

fn equal(a: Interval, b: Interval, truth: impl Fn(bool) -> f64) -> Interval {
    (truth(a.0 == a.1 && b.0 == b.1 && a.0 == b.0), truth(a.0 <= b.1 && b.0 <= a.1))
}

pub(super) fn choose(condition: &Register, a: &Register, b: &Register, out: &mut Register) {
    let width = condition.low.len().max(a.low.len()).max(b.low.len());
    let at = |register: &Register, i: usize| {
        let i = if register.low.len() == width { i } else { 0 };
        (register.low[i], register.high[i])
    };
    let (low, high) = (0..width)
        .map(|i| match at(condition, i) {
            (low, _) if low >= 1.0 => at(a, i),
            (_, high) if high < 1.0 => at(b, i),
            _ => union(at(a, i), at(b, i)),
        })
        .unzip();
    *out = Register { low, high };
}
