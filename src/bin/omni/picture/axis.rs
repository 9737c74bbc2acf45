//! An axis of a plot: from values to units of the page, and its ticks.

/// The part of an axis beyond the values, at either end.
const PADDING: f64 = 0.06;
/// More ticks than any axis has room for.
const MAX_TICKS: usize = 40;

/// Values on a stretch of the page.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Ends of the axis as values.
    low: f64,
    high: f64,
    /// Where the ends are on the page.
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis with some room around the finite ones of `values`, from `from` to `to` on the page.
    #[must_use]
    pub fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let along = values.filter(|value| value.is_finite());
        let (low, high) = along.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        // Equal values stand in the middle of an axis about as long as they are large.
        let padding = if high > low { PADDING * (high - low) } else { 0.1 * low.abs().max(1.0) };
        Axis { low: low - padding, high: high + padding, from, to }
    }

    /// Where a value is on the page.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    /// Round values about `distance` units apart, with their texts.
    #[must_use]
    pub fn ticks(&self, distance: f64) -> Vec<(f64, String)> {
        let wanted = ((self.to - self.from).abs() / distance).max(2.0);
        let Axis { low, high, .. } = *self;
        let (step, decade) = round_step((high - low) / wanted);
        let (first, last) = ((low / step).ceil(), (high / step).floor());
        let count = if last >= first { ((last - first) as usize).saturating_add(1) } else { 0 };
        let value = |index: usize| (first + index as f64) * step;
        (0..count.min(MAX_TICKS)).map(|index| (value(index), number(value(index), decade))).collect()
    }
}

/// 1, 2 or 5 times a power of ten near `rough`, and that power. The bounds are the geometric means between them.
fn round_step(rough: f64) -> (f64, i32) {
    let decade = rough.log10().floor() as i32;
    let unit = 10_f64.powi(decade);
    match rough / unit {
        share if share < 2_f64.sqrt() => (unit, decade),
        share if share < 10_f64.sqrt() => (2.0 * unit, decade),
        share if share < 50_f64.sqrt() => (5.0 * unit, decade),
        _ => (10.0 * unit, decade + 1),
    }
}

/// A value in as many digits as steps of a power of ten need.
fn number(value: f64, decade: i32) -> String {
    let decimals = (-decade).clamp(0, 12) as usize;
    let text = format!("{value:.decimals$}");
    // A hyphen is too short for a sign, and zero has none.
    match text.strip_prefix('-') {
        Some(zero) if zero.chars().all(|digit| matches!(digit, '0' | '.')) => zero.to_owned(),
        Some(digits) => format!("−{digits}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[f64], length: f64) -> Vec<String> {
        let axis = Axis::new(values.iter().copied(), 0.0, length);
        axis.ticks(80.0).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(texts(&[22.0, 45.0], 400.0), ["25", "30", "35", "40", "45"]);
        assert_eq!(texts(&[1.0, 2.6], 400.0), ["1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(texts(&[-0.1, 0.1], 400.0), ["−0.10", "−0.05", "0.00", "0.05", "0.10"]);
    }

    #[test]
    fn odd_ranges_have_an_axis() {
        for values in [&[][..], &[0.0], &[7.0, 7.0], &[1e300, 1e300], &[1e-300, 2e-300], &[f64::NAN, 1.0]] {
            let axis = Axis::new(values.iter().copied(), 10.0, 100.0);
            assert!(axis.ticks(30.0).len() <= MAX_TICKS);
            for value in values.iter().filter(|value| value.is_finite()) {
                assert!((10.0..=100.0).contains(&axis.at(*value)), "{values:?}");
            }
        }
    }
}
