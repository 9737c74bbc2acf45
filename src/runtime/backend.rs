//! Where attention is computed: on the CPU, or on a GPU.
//!
//! Both give the same answers to the same questions: attention in full, and that of a group of heads under its symbols, with the forecast of
//! cached rows or without. Symbols are chosen, and projections made, on the CPU either way.

use std::sync::Arc;
use std::time::Duration;

use super::gpu::Gpu;
use super::selection::{HeadGroup, LayerSymbols};
use super::{Placement, session};
use crate::cpu::{self, AttentionOptions, Cached, Terms, Tiles, gathered_heads, scatter_heads};
use crate::cuda::Device;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::plan::Plan;
use crate::tensor::{Tensor, TensorMut, TensorRef};

/// Where a session computes attention.
#[derive(Clone, Debug, Default)]
pub enum Backend {
    /// On the CPU.
    #[default]
    Cpu,
    /// On an NVIDIA GPU. Sessions that share the kernels compile them once.
    Cuda(Arc<Kernels>),
}

impl Backend {
    /// The GPU of a number.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::error::Error::Unavailable) when there is no driver, no such GPU, no kernel for it or no NVRTC.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Backend::Cuda(Arc::new(Kernels::new(&Device::open(ordinal)?)?)))
    }
}

/// A backend with what it keeps for one session.
#[derive(Debug)]
pub(super) enum Engine {
    Cpu,
    Cuda(Box<Gpu>),
}

/// The forecast of cached rows.
#[derive(Clone, Copy)]
pub(super) struct Forecast<'t> {
    /// Terms of the layer's features, `[heads, tokens, head_dim]`.
    pub(super) terms: &'t [(TensorRef<'t>, f32)],
    pub(super) layer: u32,
    /// The update that the features are of.
    pub(super) update: usize,
}

impl<'t> Forecast<'t> {
    /// That of the terms up to an order; `None` where there are none.
    pub(super) fn of(terms: Option<&'t Terms<'_>>, order: u8, layer: u32, update: Option<usize>) -> Option<Self> {
        let terms = session::up_to(terms, order);
        Some(Forecast { terms, layer, update: update.filter(|_| !terms.is_empty())? })
    }
}

impl Engine {
    pub(super) fn new(backend: Backend, plan: &Plan) -> Result<Self> {
        Ok(match backend {
            Backend::Cpu => Engine::Cpu,
            Backend::Cuda(kernels) => Engine::Cuda(Box::new(Gpu::new(kernels, &plan.model)?)),
        })
    }

    /// Forgets what belongs to one generation.
    pub(super) fn reset(&mut self) {
        if let Engine::Cuda(gpu) = self {
            gpu.reset();
        }
    }

    /// What the GPU has computed since this was asked last, `None` on the CPU.
    pub(super) fn take_time(&mut self) -> Option<Duration> {
        match self {
            Engine::Cpu => None,
            Engine::Cuda(gpu) => Some(gpu.take_time()),
        }
    }

    /// Attention in full.
    pub(super) fn dense(&mut self, [q, k, v]: [TensorRef<'_>; 3], out: TensorMut<'_>) -> Result<()> {
        match self {
            Engine::Cpu => cpu::dense_attention(q, k, v, out),
            Engine::Cuda(gpu) => gpu.dense([q, k, v], out),
        }
    }

    /// Attention of the heads of a group; rows of cached q-blocks get the forecast, if there is one.
    pub(super) fn attend(
        &mut self,
        plan: &Plan,
        symbols: &Arc<LayerSymbols>,
        group: usize,
        qkv: [TensorRef<'_>; 3],
        forecast: Option<Forecast<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        match self {
            Engine::Cpu => attend(plan, &symbols.groups[group], qkv, forecast.map_or(&[], |it| it.terms), out),
            Engine::Cuda(gpu) => gpu.attend(symbols, group, qkv, forecast, out),
        }
    }
}

/// On the CPU.
fn attend(
    plan: &Plan,
    group: &HeadGroup,
    [q, k, v]: [TensorRef<'_>; 3],
    terms: &[(TensorRef<'_>, f32)],
    out: TensorMut<'_>,
) -> Result<()> {
    let Placement { q_order, kv_order, blocks } = &*group.placement;
    let (q_order, kv_order) = (q_order.as_deref(), kv_order.as_deref());
    if q_order.is_none() && kv_order.is_none() && group.heads.len() == plan.model.heads as usize {
        let cached = if terms.is_empty() { Cached::Untouched } else { Cached::Forecast(terms) };
        let options = AttentionOptions { cached, ..AttentionOptions::default() };
        return cpu::attention(q, k, v, &group.symbols, blocks, options, out, None);
    }
    let gathered = |tensor, order| gathered_heads(tensor, &group.heads, order);
    let (q, k, v) = (gathered(q, q_order)?, gathered(k, kv_order)?, gathered(v, kv_order)?);
    let mut part = Tensor::zeros(q.shape(), q.dtype());
    let options = AttentionOptions::default();
    cpu::attention(q.as_ref(), k.as_ref(), v.as_ref(), &group.symbols, blocks, options, part.as_mut(), None)?;
    let tiles = Tiles::all(&group.symbols.cache, &blocks.q);
    scatter_heads(part.as_ref(), &group.heads, q_order, &tiles, terms, out)
}
