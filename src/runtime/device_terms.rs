//! Features and outputs that a layer keeps for a GPU: their differences at the last updates, in 16 bits.

use std::sync::Arc;

use super::device_kept::KeptTensor;
use super::device_lists::Launcher;
use crate::cpu::Weights;
use crate::cuda::Buffer;
use crate::error::{Error, Result};
use crate::kernels::Element;

/// As [`Taylor`](crate::cpu::Taylor), in the places where a GPU has its tensors.
#[derive(Debug)]
pub(super) struct DeviceTerms {
    /// `F_0 ..`; those from `known` on are not yet meaningful.
    terms: Vec<KeptTensor>,
    /// Numbers of each.
    len: usize,
    known: usize,
    step: u32,
}

impl DeviceTerms {
    /// Room for so many orders as there are tensors, each of `len` numbers; nothing is known yet.
    pub(super) fn new(terms: Vec<KeptTensor>, len: usize) -> Self {
        DeviceTerms { terms, len, known: 0, step: 0 }
    }

    /// Orders that are known.
    pub(super) fn known(&self) -> usize {
        self.known
    }

    /// Those, from the first on.
    pub(super) fn terms(&self) -> &[KeptTensor] {
        &self.terms[..self.known]
    }

    /// Those that the next update takes differences to.
    pub(super) fn former(&self) -> &[KeptTensor] {
        &self.terms[..self.known.min(self.terms.len().saturating_sub(1))]
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        (self.known, self.step) = (0, 0);
    }

    /// Takes a new value at a step after the last one; one order more is known then. Needs the former terms in their places, and leaves the
    /// new ones there.
    pub(super) fn update(
        &mut self,
        launcher: &Launcher,
        step: u32,
        feature: &Arc<Buffer>,
        element: Element,
    ) -> Result<()> {
        let known = (self.known + 1).min(self.terms.len());
        let distance = (step - self.step) as f32;
        let terms: Vec<Arc<Buffer>> = self.terms[..known].iter().map(|term| Arc::clone(term.place())).collect();
        let call = launcher.kernels.features_update(feature, &terms, self.len, distance, element)?;
        call.run(&launcher.stream)?;
        (self.known, self.step) = (known, step);
        Ok(())
    }

    /// The weights of the known orders at a step.
    pub(super) fn weights(&self, step: u32) -> Result<Weights> {
        if self.known == 0 || step < self.step {
            return Err(Error::State(format!("step {step} takes a feature that no step before it left")));
        }
        Ok(Weights::new((step - self.step) as f32, self.known))
    }

    /// The step of the last update.
    pub(super) fn step(&self) -> u32 {
        self.step
    }
}
