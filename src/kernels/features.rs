//! Cached features on a GPU: their differences at updates, and weighted sums of them.
//!
//! Both are one pass over memory, of tensors whose numbers lie together and are a multiple of 8. [`FeaturesCall::run`] only launches.

use std::sync::Arc;

use super::choose::{BLOCK, Geometry, Kernel, Variant};
use super::params::{self, MAX_ORDER};
use super::{Element, Kernels};
use crate::cuda::{Argument, Buffer, Function, Launch, Stream};
use crate::error::{Error, Result};

/// Numbers that a thread handles at a time.
const WIDTH: usize = 8;

/// A launch on features, ready to run.
#[derive(Debug)]
pub struct FeaturesCall {
    function: Arc<Function>,
    launch: Launch,
    params: Params,
    /// Memory that the launch uses.
    _memory: Vec<Arc<Buffer>>,
}

#[derive(Debug)]
enum Params {
    Update(params::FeaturesUpdate),
    Sum(params::FeaturesSum),
}

impl Kernels {
    /// Prepares the differences of a feature at an update, `distance` steps after the one before: `terms` hold `F_0 ..` of that one and
    /// get those of this one, [`Taylor::update`](crate::cpu::Taylor::update) on the CPU. There are as many as are known afterwards; the
    /// last may hold anything.
    ///
    /// # Shapes
    /// `feature` and each of `terms`: `len` numbers of the type `element`, a multiple of 8.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is smaller or there are no or too many terms; [`Error::Kernel`] and [`Error::Cuda`] when the kernel
    /// does not compile or load.
    pub fn features_update(
        &self,
        feature: &Arc<Buffer>,
        terms: &[Arc<Buffer>],
        len: usize,
        distance: f32,
        element: Element,
    ) -> Result<FeaturesCall> {
        let params = params::FeaturesUpdate {
            feature: address(feature, len)?,
            terms: addresses(terms.iter(), len)?,
            pieces: (len / WIDTH) as u64,
            distance,
            count: terms.len() as u32,
        };
        let memory = terms.iter().chain([feature]).cloned().collect();
        self.features_call(Kernel::FeaturesUpdate, Params::Update(params), len, element, memory)
    }

    /// Prepares `out = sum of weights * terms`; `out` may be one of the terms.
    ///
    /// # Shapes
    /// As [`Kernels::features_update`].
    ///
    /// # Errors
    /// As [`Kernels::features_update`].
    pub fn features_sum(
        &self,
        terms: &[(Arc<Buffer>, f32)],
        out: &Arc<Buffer>,
        len: usize,
        element: Element,
    ) -> Result<FeaturesCall> {
        let mut params = params::FeaturesSum {
            out: address(out, len)?,
            terms: addresses(terms.iter().map(|(term, _)| term), len)?,
            pieces: (len / WIDTH) as u64,
            count: terms.len() as u32,
            ..Default::default()
        };
        params.weights.iter_mut().zip(terms).for_each(|(slot, (_, weight))| *slot = *weight);
        let memory = terms.iter().map(|(term, _)| term).chain([out]).cloned().collect();
        self.features_call(Kernel::FeaturesSum, Params::Sum(params), len, element, memory)
    }

    fn features_call(
        &self,
        kernel: Kernel,
        params: Params,
        len: usize,
        element: Element,
        memory: Vec<Arc<Buffer>>,
    ) -> Result<FeaturesCall> {
        let compute = self.device().properties().compute;
        let variant =
            Variant { kernel, compute, head_dim: BLOCK, element, q_block: BLOCK, kv_block: BLOCK, masks: false };
        let Geometry { threads, shared_bytes, .. } = variant.geometry();
        let needed = (len / WIDTH).div_ceil(threads as usize);
        let grid = needed.min(self.ctas(variant) as usize) as u32;
        let launch = Launch { grid: [grid, 1, 1], threads, shared_bytes };
        Ok(FeaturesCall { function: self.function(variant)?, launch, params, _memory: memory })
    }
}

impl FeaturesCall {
    /// Puts it into a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn run(&self, stream: &Stream) -> Result<()> {
        let argument = match &self.params {
            Params::Update(params) => Argument::of(params),
            Params::Sum(params) => Argument::of(params),
        };
        // SAFETY: each kernel takes the parameters that were made for it, by value; `self` holds the memory they point to.
        unsafe { self.function.launch(stream, self.launch, &[argument]) }
    }
}

/// The address of so many numbers.
fn address(memory: &Buffer, len: usize) -> Result<u64> {
    if len.is_multiple_of(WIDTH) && len.saturating_mul(2) <= memory.bytes() {
        return Ok(memory.address());
    }
    let bytes = memory.bytes();
    Err(Error::Shape(format!(
        "{len} numbers of features were given a buffer of {bytes} bytes, wanted a multiple of 8 that fits"
    )))
}

fn addresses<'b>(terms: impl ExactSizeIterator<Item = &'b Arc<Buffer>>, len: usize) -> Result<[u64; MAX_ORDER + 1]> {
    let count = terms.len();
    if count == 0 || count > MAX_ORDER + 1 {
        return Err(Error::Shape(format!("{count} terms of features were given, wanted 1 to {}", MAX_ORDER + 1)));
    }
    let mut addresses = [0; MAX_ORDER + 1];
    for (slot, term) in addresses.iter_mut().zip(terms) {
        *slot = address(term, len)?;
    }
    Ok(addresses)
}
