//! What a layer keeps from step to step, and what of it a step takes.

use super::block::StreamShape;
use super::course::Known;
use super::device_choice::OwnSymbols;
use super::device_kept::{KeptTensor, Room};
use super::device_terms::DeviceTerms;
use super::memory::{Cache, Kept};
use crate::error::Result;
use crate::ir::{StepKind, Unit};

/// What a layer keeps.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    /// Its symbols, where they are chosen on the GPU.
    pub(super) own: Option<OwnSymbols>,
    pub(super) features: Option<DeviceTerms>,
    /// The projections of cached blocks: of each stream, of each order.
    pub(super) biases: Vec<Vec<KeptTensor>>,
    /// What the biases are of.
    pub(super) made: Option<Made>,
    /// Of each stream, where steps reuse them.
    pub(super) outputs: Vec<DeviceTerms>,
    /// Of each stream.
    pub(super) residual: Vec<KeptTensor>,
    pub(super) knows_residual: bool,
}

/// The symbols and the update that biases were made for, and of how many orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) version: u64,
    pub(super) update: u32,
    pub(super) orders: usize,
}

impl DeviceLayer {
    pub(super) fn new(
        room: &Room,
        own: Option<OwnSymbols>,
        kept: Kept,
        streams: &[StreamShape],
        by_heads: usize,
    ) -> Result<Self> {
        let mut layer = DeviceLayer {
            own,
            features: None,
            biases: streams.iter().map(|_| Vec::new()).collect(),
            made: None,
            outputs: Vec::new(),
            residual: Vec::new(),
            knows_residual: false,
        };
        let (mut features, mut outputs) = (Vec::new(), Vec::new());
        outputs.resize_with(streams.len(), Vec::new);
        for (slot, len) in kept.tensors(streams, by_heads) {
            let tensor = room.tensor(slot, len)?;
            match slot.of {
                Cache::Features => features.push(tensor),
                Cache::Biases => layer.biases[slot.stream].push(tensor),
                Cache::Outputs => outputs[slot.stream].push(tensor),
                Cache::Residual => layer.residual.push(tensor),
            }
        }
        layer.features = (kept.features > 0).then(|| DeviceTerms::new(features, by_heads));
        if kept.outputs > 0 {
            let terms = outputs.into_iter().zip(streams);
            layer.outputs = terms.map(|(terms, own)| DeviceTerms::new(terms, own.tokens.len() * own.outputs)).collect();
        }
        Ok(layer)
    }

    /// What a step takes of it. Biases are `wanted` of a step under symbols that obeys forecasts; where they are of something else, they are
    /// made of the features. `reused` is the order of a reuse step.
    pub(super) fn taken(&self, kind: StepKind, wanted: Option<Made>, reused: usize) -> Vec<&KeptTensor> {
        if kind.is_reuse() {
            return self.outputs.iter().flat_map(|terms| terms.terms().iter().take(reused + 1)).collect();
        }
        let mut taken: Vec<&KeptTensor> = self.outputs.iter().flat_map(DeviceTerms::former).collect();
        if let Some(features) = self.features.as_ref() {
            match wanted {
                Some(wanted) if self.made == Some(wanted) => taken.extend(self.made_biases()),
                Some(wanted) => taken.extend(&features.terms()[..wanted.orders]),
                None if kind == StepKind::Update => taken.extend(features.former()),
                None => {}
            }
        }
        if kind == StepKind::Residual {
            taken.extend(&self.residual);
        }
        taken
    }

    /// The biases of all streams, of the orders that were made.
    pub(super) fn made_biases(&self) -> impl Iterator<Item = &KeptTensor> {
        let orders = self.made.map_or(0, |made| made.orders);
        self.biases.iter().flat_map(move |biases| &biases[..orders])
    }

    pub(super) fn known(&self) -> Known {
        let has_outputs = self.outputs.first().is_some_and(|terms| terms.known() > 0);
        Known {
            features: self.features.as_ref().is_some_and(|terms| terms.known() > 0),
            residual: self.knows_residual,
            outputs: [has_outputs; Unit::ALL.len()],
        }
    }

    pub(super) fn reset(&mut self) {
        self.features.iter_mut().for_each(DeviceTerms::reset);
        self.made = None;
        self.outputs.iter_mut().for_each(DeviceTerms::reset);
        self.knows_residual = false;
    }
}
