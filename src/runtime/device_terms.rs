//! Features and outputs that a layer keeps on a GPU: their differences at the last updates, in 16 bits.

use std::sync::Arc;

use super::device_lists::Launcher;
use crate::cpu::Weights;
use crate::cuda::Buffer;
use crate::error::{Error, Result};
use crate::kernels::Element;

/// As [`Taylor`](crate::cpu::Taylor), in a GPU's memory.
#[derive(Debug)]
pub(super) struct DeviceTerms {
    /// `F_0 ..`; those from `known` on are not yet meaningful.
    terms: Vec<Arc<Buffer>>,
    /// Numbers of each.
    len: usize,
    known: usize,
    step: u32,
}

impl DeviceTerms {
    /// Room for so many orders; nothing is known yet.
    pub(super) fn new(launcher: &Launcher, orders: usize, len: usize) -> Result<Self> {
        let terms = (0..orders).map(|_| Buffer::new(launcher.stream.device(), len * 2).map(Arc::new));
        Ok(DeviceTerms { terms: terms.collect::<Result<_>>()?, len, known: 0, step: 0 })
    }

    /// Orders that are known.
    pub(super) fn known(&self) -> usize {
        self.known
    }

    /// Those, from the first on.
    pub(super) fn terms(&self) -> &[Arc<Buffer>] {
        &self.terms[..self.known]
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        (self.known, self.step) = (0, 0);
    }

    /// Takes a new value at a step after the last one; one order more is known then.
    pub(super) fn update(
        &mut self,
        launcher: &Launcher,
        step: u32,
        feature: &Arc<Buffer>,
        element: Element,
    ) -> Result<()> {
        let known = (self.known + 1).min(self.terms.len());
        let distance = (step - self.step) as f32;
        let call = launcher.kernels.features_update(feature, &self.terms[..known], self.len, distance, element)?;
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
