//! Forecasts of cached features: finite differences over updates, extrapolated by a Taylor series.
//!
//! At an update with the feature `F` at step `s`, the previous update having been at `s0`:
//! `F_0 = F` and `F_{i+1} = (F_i - F_i of the previous update) / (s - s0)`. One order is gained with each update.
//! At a step `x` later the forecast is the sum of `F_i x^i / i!`: a weighted sum, so it commutes with the output
//! projection, which is why the same structure serves features and the biases made of them.
//!
//! # Source
//! TaylorSeer, arXiv 2503.06923; FlashOmni, arXiv 2509.25401, section 3.

use rayon::prelude::*;

use super::check;
use super::pack::{Store, convert};
use crate::error::{Error, Result};
use crate::tensor::{TensorMut, TensorRef, Values, ValuesMut};

/// Highest order of a forecast.
pub const MAX_ORDER: usize = 4;

/// Values that one task handles at a time: three of them fit the first cache.
const CHUNK: usize = 2048;

/// Differences of a feature at its last update.
#[derive(Clone, Debug)]
pub struct Taylor {
    shape: Vec<usize>,
    /// `F_0 ..= F_order`; those from `known` on are not yet meaningful.
    differences: Vec<Vec<f32>>,
    known: usize,
    step: usize,
}

impl Taylor {
    /// Room for forecasts of `order` of a feature of `shape`; nothing is known yet.
    ///
    /// # Errors
    /// [`Error::Shape`] when the order is above [`MAX_ORDER`].
    pub fn new(order: usize, shape: &[usize]) -> Result<Self> {
        check::ensure(order <= MAX_ORDER, || {
            format!("a forecast of order {order} was asked for, wanted 0 to {MAX_ORDER}")
        })?;
        let len = shape.iter().product();
        // Each made anew: a copy of zeros takes memory before it is used, and a session has one of these for every layer.
        let differences = (0..=order).map(|_| vec![0.0; len]).collect();
        Ok(Taylor { shape: shape.to_vec(), differences, known: 0, step: 0 })
    }

    /// Makes room for forecasts of at least `order`. What is known stays; orders that there was no room for are known from the
    /// updates to come.
    ///
    /// # Errors
    /// As [`Taylor::new`].
    pub fn reserve(&mut self, order: usize) -> Result<()> {
        if order > self.order() {
            let mut differences = Taylor::new(order, &self.shape)?.differences;
            std::mem::swap(&mut self.differences, &mut differences);
            differences.into_iter().enumerate().for_each(|(order, values)| self.differences[order] = values);
        }
        Ok(())
    }

    /// The order it can reach.
    #[must_use]
    pub fn order(&self) -> usize {
        self.differences.len() - 1
    }

    /// Orders that are known: 0 before the first update, at most `order + 1`.
    #[must_use]
    pub fn known(&self) -> usize {
        self.known
    }

    /// Step of the last update, `None` before the first.
    #[must_use]
    pub fn step(&self) -> Option<usize> {
        (self.known > 0).then_some(self.step)
    }

    /// Forgets everything, as at the start of a generation.
    pub fn reset(&mut self) {
        (self.known, self.step) = (0, 0);
    }

    /// `F_order`, `None` while it is not known.
    #[must_use]
    pub fn difference(&self, order: usize) -> Option<TensorRef<'_>> {
        let values = self.differences[..self.known].get(order)?;
        TensorRef::new(&self.shape, Values::F32(values)).ok()
    }

    /// Takes a new value of the feature at a step.
    ///
    /// # Shapes
    /// `feature`: the shape of the forecast, any dtype.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape is another, [`Error::State`] when the step is not after the last update.
    pub fn update(&mut self, step: usize, feature: TensorRef<'_>) -> Result<()> {
        check::shape("feature", feature.shape(), &self.shape)?;
        if self.known > 0 && step <= self.step {
            let message = format!("an update at step {step} does not follow the last one, at step {}", self.step);
            return Err(Error::State(message));
        }
        let known = (self.known + 1).min(self.differences.len());
        difference(feature.values(), &mut self.differences[..known], (step - self.step) as f32);
        (self.known, self.step) = (known, step);
        Ok(())
    }

    /// The weights of the known orders at a step.
    ///
    /// # Errors
    /// [`Error::State`] before the first update and at a step before the last one.
    pub fn weights(&self, step: usize) -> Result<Weights> {
        if self.known == 0 {
            return Err(Error::State(format!("a forecast for step {step} was asked for before any update")));
        }
        if step < self.step {
            let message = format!("a forecast for step {step} was asked for after the update at step {}", self.step);
            return Err(Error::State(message));
        }
        Ok(Weights::new((step - self.step) as f32, self.known))
    }

    /// The tensors and weights whose sum is the forecast for a step.
    ///
    /// # Errors
    /// As [`Taylor::weights`].
    pub fn terms(&self, step: usize) -> Result<Terms<'_>> {
        let weights = self.weights(step)?;
        // Entries beyond the known orders only fill the array; their weight is never read.
        let first = TensorRef::new(&self.shape, Values::F32(&self.differences[0]))?;
        let entries = std::array::from_fn(|order| (self.difference(order).unwrap_or(first), weights.values[order]));
        Ok(Terms { entries, count: self.known })
    }

    /// Writes the forecast for a step, of the known orders up to `order`.
    ///
    /// # Shapes
    /// `out`: the shape of the forecast, any dtype.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape is another; otherwise as [`Taylor::weights`].
    pub fn forecast(&self, step: usize, order: usize, mut out: TensorMut<'_>) -> Result<()> {
        check::shape("out", out.shape(), &self.shape)?;
        let terms = self.terms(step)?;
        let terms = &terms[..terms.len().min(order + 1)];
        match out.values() {
            ValuesMut::F32(out) => sum_in_parallel(terms, out),
            ValuesMut::F16(out) => sum_in_parallel(terms, out),
            ValuesMut::Bf16(out) => sum_in_parallel(terms, out),
        }
        Ok(())
    }
}

/// The factors `x^i / i!`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    values: [f32; MAX_ORDER + 1],
    count: usize,
}

impl Weights {
    /// The first `count` factors at a distance of `x` steps; at most [`MAX_ORDER`]` + 1`.
    #[must_use]
    pub fn new(x: f32, count: usize) -> Self {
        let mut values = [1.0; MAX_ORDER + 1];
        for order in 1..=MAX_ORDER {
            values[order] = values[order - 1] * x / order as f32;
        }
        Weights { values, count: count.min(MAX_ORDER + 1) }
    }

    /// The factors.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.values[..self.count]
    }
}

/// The tensors and weights of a forecast, in place: a dispatch step allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    entries: [(TensorRef<'a>, f32); MAX_ORDER + 1],
    count: usize,
}

impl<'a> std::ops::Deref for Terms<'a> {
    type Target = [(TensorRef<'a>, f32)];

    fn deref(&self) -> &Self::Target {
        &self.entries[..self.count]
    }
}

/// Replaces the differences `F_0 ..` of one update by those of the next, whose feature is `feature`.
///
/// `differences` has as many entries as will be known; the last one may hold anything. `interval` is the distance
/// of the two updates in steps.
fn difference(feature: Values<'_>, differences: &mut [Vec<f32>], interval: f32) {
    let orders = differences.len();
    let len = differences.first().map_or(0, Vec::len);
    // A task needs one range of every order, so all are cut alike.
    let mut chunks: Vec<[&mut [f32]; MAX_ORDER + 1]> = Vec::new();
    chunks.resize_with(len.div_ceil(CHUNK), Default::default);
    for (order, values) in differences.iter_mut().enumerate() {
        values.chunks_mut(CHUNK).zip(&mut chunks).for_each(|(values, chunk)| chunk[order] = values);
    }
    chunks.par_iter_mut().enumerate().with_min_len(8).for_each(|(index, chunk)| {
        let (mut now, mut before) = ([0.0; CHUNK], [0.0; CHUNK]);
        let len = chunk[0].len();
        let (now, before) = (&mut now[..len], &mut before[..len]);
        convert(feature, index * CHUNK, now);
        for target in &mut chunk[..orders] {
            before.copy_from_slice(target);
            target.copy_from_slice(now);
            now.iter_mut().zip(&*before).for_each(|(now, before)| *now = (*now - before) / interval);
        }
    });
}

fn sum_in_parallel<T: Store>(terms: &[(TensorRef<'_>, f32)], out: &mut [T]) {
    let tasks = out.par_chunks_mut(CHUNK).enumerate().with_min_len(8);
    tasks.for_each(|(index, out)| weighted_sum(terms, index * CHUNK, out));
}

/// The weighted sum of the terms from index `start` on, as many values as `out` has.
pub(super) fn weighted_sum<T: Store>(terms: &[(TensorRef<'_>, f32)], start: usize, out: &mut [T]) {
    let (mut sum, mut term) = ([0.0; CHUNK], [0.0; CHUNK]);
    for (index, out) in out.chunks_mut(CHUNK).enumerate() {
        let (sum, term) = (&mut sum[..out.len()], &mut term[..out.len()]);
        sum.fill(0.0);
        add_terms(terms, start + index * CHUNK, sum, term);
        T::store(sum, out);
    }
}

/// Adds the weighted sum of the terms to `sum`; `term` is room for one of them.
pub(super) fn add_terms(terms: &[(TensorRef<'_>, f32)], start: usize, sum: &mut [f32], term: &mut [f32]) {
    for (tensor, weight) in terms {
        let values: &[f32] = match tensor.values() {
            Values::F32(values) => &values[start..start + sum.len()],
            values => {
                convert(values, start, term);
                term
            }
        };
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(values: &[f32]) -> TensorRef<'_> {
        TensorRef::new(const { &[3] }, Values::F32(values)).unwrap()
    }

    fn at(step: usize, degree: i32) -> [f32; 3] {
        let x = step as f32;
        // Newton's basis of the interval 5: what differences of updates 5 steps apart reproduce.
        let polynomial = |scale: f32| (0..=degree).map(|power| scale * (x / 10.0).powi(power)).sum();
        [polynomial(1.0), polynomial(-2.5), polynomial(0.125)]
    }

    #[test]
    fn orders_build_up_one_for_each_update() {
        let mut taylor = Taylor::new(2, &[3]).unwrap();
        assert!(matches!(taylor.terms(0), Err(Error::State(_))));
        for (update, known) in [(3, 1), (7, 2), (12, 3), (17, 3)] {
            taylor.update(update, feature(&at(update, 1))).unwrap();
            assert_eq!((taylor.known(), taylor.step()), (known, Some(update)));
        }
        assert!(matches!(taylor.update(17, feature(&[0.0; 3])), Err(Error::State(_))));
        assert!(matches!(taylor.update(18, TensorRef::new(&[1], Values::F32(&[0.0])).unwrap()), Err(Error::Shape(_))));
        assert!(Taylor::new(5, &[3]).is_err());
        taylor.reset();
        assert_eq!(taylor.step(), None);
        taylor.update(2, feature(&[1.0; 3])).unwrap();
        assert_eq!((taylor.known(), taylor.step()), (1, Some(2)), "the next generation begins anywhere");
    }

    #[test]
    fn constants_and_lines_are_extrapolated_exactly() {
        for order in 0..=4 {
            for degree in 0..=order.min(1) {
                let mut taylor = Taylor::new(order, &[3]).unwrap();
                (0..6).for_each(|i| taylor.update(5 * i, feature(&at(5 * i, degree as i32))).unwrap());
                for step in 25..30 {
                    let mut out = [f32::NAN; 3];
                    taylor.forecast(step, order, TensorMut::new(&[3], ValuesMut::F32(&mut out)).unwrap()).unwrap();
                    for (found, wanted) in out.iter().zip(at(step, degree as i32)) {
                        assert!((found - wanted).abs() < 1e-4, "{order} {degree} {step}: {found} {wanted}");
                    }
                }
            }
        }
    }

    #[test]
    fn differences_are_the_backward_ones_of_the_closed_form() {
        // Of x^2 at 5 steps apart: F_1 = 2x - 5, F_2 = 2; of x^3: F_3 = 6.
        let mut taylor = Taylor::new(3, &[3]).unwrap();
        for x in [0.0_f32, 5.0, 10.0, 15.0, 20.0] {
            taylor.update(x as usize, feature(&[x * x, x * x * x, 1.0])).unwrap();
        }
        let values = |order| taylor.difference(order).unwrap().to_f32();
        assert_eq!(values(0), [400.0, 8000.0, 1.0]);
        assert_eq!(values(1), [35.0, 925.0, 0.0]);
        assert_eq!(values(2), [2.0, 90.0, 0.0]);
        assert_eq!(values(3), [0.0, 6.0, 0.0]);
        assert_eq!(Weights::new(2.0, 4).as_slice(), [1.0, 2.0, 2.0, 4.0 / 3.0]);
        let terms = taylor.terms(22).unwrap();
        assert_eq!((terms.len(), terms[2].1), (4, 2.0));
        let mut out = [0.0; 3];
        for (order, wanted) in [(0, 400.0), (1, 400.0 + 2.0 * 35.0), (4, 400.0 + 2.0 * 35.0 + 2.0 * 2.0)] {
            taylor.forecast(22, order, TensorMut::new(&[3], ValuesMut::F32(&mut out)).unwrap()).unwrap();
            assert_eq!(out[..1], [wanted], "order {order}");
        }
    }
}
