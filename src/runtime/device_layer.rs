//! What a layer keeps on a GPU from step to step.

use std::sync::Arc;

use super::block::StreamShape;
use super::course::Known;
use super::device_choice::OwnSymbols;
use super::device_lists::Launcher;
use super::device_terms::DeviceTerms;
use super::memory::Kept;
use crate::cuda::Buffer;
use crate::error::Result;
use crate::ir::Unit;

/// What a layer keeps.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    /// Its symbols, where they are chosen on the GPU.
    pub(super) own: Option<OwnSymbols>,
    pub(super) features: Option<DeviceTerms>,
    /// The projections of cached blocks: of each stream, of each order.
    pub(super) biases: Vec<Vec<Arc<Buffer>>>,
    /// What the biases are of.
    pub(super) made: Option<Made>,
    /// Of each stream, where steps reuse them.
    pub(super) outputs: Vec<DeviceTerms>,
    /// Of each stream.
    pub(super) residual: Vec<Arc<Buffer>>,
    pub(super) knows_residual: bool,
}

/// The symbols and the update that biases were made for, and of how many orders.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) version: u64,
    pub(super) update: u32,
    pub(super) orders: usize,
}

impl DeviceLayer {
    pub(super) fn new(
        launcher: &Launcher,
        own: Option<OwnSymbols>,
        kept: Kept,
        streams: &[StreamShape],
        [heads, head_dim, tokens]: [usize; 3],
    ) -> Result<Self> {
        let len = |stream: &StreamShape| stream.tokens.len() * stream.outputs;
        let matrix = |stream: &StreamShape| Buffer::new(launcher.stream.device(), len(stream) * 2).map(Arc::new);
        let features =
            (kept.features > 0).then(|| DeviceTerms::new(launcher, kept.features, heads * tokens * head_dim));
        let biases = streams.iter().map(|stream| (0..kept.features).map(|_| matrix(stream)).collect());
        let outputs = streams.iter().filter(|_| kept.outputs > 0);
        let outputs = outputs.map(|stream| DeviceTerms::new(launcher, kept.outputs, len(stream)));
        Ok(DeviceLayer {
            own,
            features: features.transpose()?,
            biases: biases.collect::<Result<_>>()?,
            made: None,
            outputs: outputs.collect::<Result<_>>()?,
            residual: streams.iter().filter(|_| kept.residual).map(matrix).collect::<Result<_>>()?,
            knows_residual: false,
        })
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
