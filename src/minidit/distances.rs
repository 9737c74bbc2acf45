//! What step caches ask a host to measure: how far features have moved.
//!
//! A strategy that reads `input("distances", steps)` gets, for each step, the mean change of the modulated input of the first
//! layer since the step before, over its mean size there (TeaCache, arXiv 2411.19108). One that reads
//! `input("distances", steps, steps)` gets, in the row of a step and the column of the last computed one, the same of what
//! the first layer adds to its tokens (FBCache). Image tokens count, text does not.

use crate::check::InputTensor;
use crate::ir::Kind;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// The modulated input of the first layer, against the step before.
    Input,
    /// What the first layer adds, against the last step that computed the layers after it.
    FirstResidual,
}

/// What a branch has measured so far.
#[derive(Clone, Debug)]
pub(super) struct Distances {
    pub(super) measure: Measure,
    steps: u32,
    /// `[steps]` or `[steps, steps]`, zero where nothing is known yet.
    values: Vec<f64>,
    /// What later steps are compared with, and its step.
    reference: Option<(u32, Vec<f32>)>,
}

impl Distances {
    pub(super) fn new(measure: Measure, steps: u32) -> Self {
        let numbers = match measure {
            Measure::Input => steps,
            Measure::FirstResidual => steps * steps,
        };
        Distances { measure, steps, values: vec![0.0; numbers as usize], reference: None }
    }

    /// Notes the feature of a step.
    pub(super) fn note(&mut self, step: u32, feature: &[f32]) {
        if let Some((since, reference)) = &self.reference {
            let at = match self.measure {
                Measure::Input => step,
                Measure::FirstResidual => step * self.steps + since,
            };
            self.values[at as usize] = relative_change(feature, reference);
        }
        if self.measure == Measure::Input {
            self.reference = Some((step, feature.to_vec()));
        }
    }

    /// Later steps are compared with the feature of this one, which computed what follows it.
    pub(super) fn computed(&mut self, step: u32, feature: &[f32]) {
        self.reference = Some((step, feature.to_vec()));
    }

    /// The input of the strategy.
    pub(super) fn input(&self) -> InputTensor {
        let shape = match self.measure {
            Measure::Input => vec![self.steps],
            Measure::FirstResidual => vec![self.steps; 2],
        };
        InputTensor { shape, kind: Kind::Real, values: self.values.clone() }
    }
}

/// The mean change over the mean size.
fn relative_change(found: &[f32], before: &[f32]) -> f64 {
    let change: f64 = found.iter().zip(before).map(|(a, b)| f64::from((a - b).abs())).sum();
    let size: f64 = before.iter().map(|b| f64::from(b.abs())).sum();
    if change == 0.0 { 0.0 } else { change / size }
}
