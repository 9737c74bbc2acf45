//! Attention of a session on a GPU.
//!
//! Tensors of the host are copied there and back, in the type of q where that has 16 bits; q, k and v of 32 bits are rounded to
//! f16, or to bf16 where the model's type is that. Heads of a size without a kernel are padded with zeros. What does not change from
//! step to step stays on the GPU: symbols and work lists as long as they are in force, features until the next update.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use half::{bf16, f16};
use rayon::prelude::*;

use super::backend::Forecast;
use super::selection::LayerSymbols;
use crate::cpu::{Tiles, gathered_heads, scatter_heads};
use crate::cuda::{Buffer, Event, Stream};
use crate::error::Result;
use crate::ir::Model;
use crate::kernels::choose::{BLOCK, padded_head_dim};
use crate::kernels::{
    AttentionCall, CachedRows, DeviceSymbols, Element, FloatView, Kernels, Operands, Options, TensorView, Workspace,
};
use crate::symbols::{BitMatrix, Blocks, Symbols};
use crate::tensor::{Dtype, Tensor, TensorMut, TensorRef, Values};

/// What a session keeps on a GPU.
#[derive(Debug)]
pub(super) struct Gpu {
    kernels: Arc<Kernels>,
    stream: Stream,
    /// Heads, tokens, and the size of a head on the host and on the GPU.
    heads: usize,
    tokens: usize,
    head_dim: usize,
    padded: usize,
    /// The type of tensors that have 32 bits on the host.
    element: Element,
    /// q, k, v and the output, for all heads.
    tensors: [Arc<Buffer>; 4],
    /// One of them on its way.
    staging: Vec<u16>,
    dense: HashMap<Element, AttentionCall>,
    workspace: Option<Arc<Workspace>>,
    prepared: Vec<Prepared>,
    features: HashMap<u32, Features>,
    /// Around what is timed.
    events: [Event; 2],
    milliseconds: f64,
}

/// The call of a group of heads, as long as its symbols are in force somewhere.
#[derive(Debug)]
struct Prepared {
    symbols: Weak<LayerSymbols>,
    group: usize,
    element: Element,
    /// The layer and the number of its features that are forecast in the same launch.
    forecast: Option<(u32, usize)>,
    call: AttentionCall,
}

/// The features of a layer.
#[derive(Debug)]
struct Features {
    /// Of which update they are, and how many were copied.
    update: usize,
    count: usize,
    terms: Vec<Arc<Buffer>>,
}

impl Gpu {
    pub(super) fn new(kernels: Arc<Kernels>, model: &Model) -> Result<Self> {
        let [heads, tokens, head_dim] = [model.heads, model.tokens(), model.head_dim].map(|size| size as usize);
        let padded = padded_head_dim(head_dim)? as usize;
        let device = kernels.device();
        let tensor = || Buffer::new(device, heads * tokens * padded * 2).map(Arc::new);
        Ok(Gpu {
            tensors: [tensor()?, tensor()?, tensor()?, tensor()?],
            stream: Stream::new(device)?,
            events: [Event::new(device)?, Event::new(device)?],
            heads,
            tokens,
            head_dim,
            padded,
            element: if model.dtype == Dtype::Bf16 { Element::Bf16 } else { Element::F16 },
            staging: Vec::new(),
            dense: HashMap::new(),
            workspace: None,
            prepared: Vec::new(),
            features: HashMap::new(),
            milliseconds: 0.0,
            kernels,
        })
    }

    pub(super) fn reset(&mut self) {
        // Updates of the next generation may come at the same steps.
        self.features.values_mut().for_each(|features| features.count = 0);
    }

    pub(super) fn take_time(&mut self) -> Duration {
        Duration::from_secs_f64(std::mem::take(&mut self.milliseconds).max(0.0) / 1e3)
    }

    pub(super) fn dense(&mut self, [q, k, v]: [TensorRef<'_>; 3], out: TensorMut<'_>) -> Result<()> {
        let element = self.element_of(q.dtype());
        let heads: Vec<u32> = (0..self.heads as u32).collect();
        for (index, tensor) in [q, k, v].into_iter().enumerate() {
            self.send(index, tensor, &heads, None, element)?;
        }
        let call = match self.dense.remove(&element) {
            Some(call) => call,
            None => {
                let block = BLOCK as usize;
                let blocks = Blocks::regular(self.tokens, self.tokens, block, block);
                let symbols = Symbols::dense(self.heads, blocks.q_blocks(), blocks.kv_blocks());
                self.prepare(&symbols, &blocks, element, CachedRows::Untouched)?
            }
        };
        self.run(&call)?;
        self.dense.insert(element, call);
        let all = BitMatrix::ones(self.heads, 1);
        self.receive(&heads, element, None, &Tiles::all(&all, &[0, self.tokens as u32]), &[], out)
    }

    pub(super) fn attend(
        &mut self,
        symbols: &Arc<LayerSymbols>,
        index: usize,
        [q, k, v]: [TensorRef<'_>; 3],
        forecast: Option<Forecast<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        let group = &symbols.groups[index];
        let element = self.element_of(q.dtype());
        let (q_order, kv_order) = (group.placement.q_order.as_deref(), group.placement.kv_order.as_deref());
        self.send(0, q, &group.heads, q_order, element)?;
        self.send(1, k, &group.heads, kv_order, element)?;
        self.send(2, v, &group.heads, kv_order, element)?;
        // Features stand as the model's tensors do. Where the group's do not, the host adds the forecast on the way back.
        let is_whole = q_order.is_none() && group.heads.len() == self.heads;
        let fused =
            forecast.filter(|_| is_whole && group.symbols.cache.count() < self.heads * group.symbols.q_blocks());
        let mut prepared = self.prepared(symbols, index, element, fused)?;
        if let Some(forecast) = fused {
            let weights: Vec<f32> = forecast.terms.iter().map(|(_, weight)| *weight).collect();
            prepared.call.set_weights(&weights)?;
        }
        let done = self.run(&prepared.call);
        self.prepared.push(prepared);
        done?;
        let blocks = &group.placement.blocks;
        if fused.is_some() {
            let all = BitMatrix::ones(self.heads, blocks.q_blocks());
            return self.receive(&group.heads, element, None, &Tiles::all(&all, &blocks.q), &[], out);
        }
        let tiles = Tiles::all(&group.symbols.cache, &blocks.q);
        self.receive(&group.heads, element, q_order, &tiles, forecast.map_or(&[], |forecast| forecast.terms), out)
    }

    fn element_of(&self, dtype: Dtype) -> Element {
        match dtype {
            Dtype::F32 => self.element,
            Dtype::F16 => Element::F16,
            Dtype::Bf16 => Element::Bf16,
        }
    }

    /// The call of a group, taken out of those that are prepared.
    fn prepared(
        &mut self,
        symbols: &Arc<LayerSymbols>,
        group: usize,
        element: Element,
        fused: Option<Forecast<'_>>,
    ) -> Result<Prepared> {
        self.prepared.retain(|prepared| prepared.symbols.strong_count() > 0);
        let forecast = fused.map(|forecast| (forecast.layer, forecast.terms.len()));
        let cached = match fused {
            Some(forecast) => CachedRows::Forecast(self.features(forecast)?),
            None => CachedRows::Untouched,
        };
        let is_same = |prepared: &Prepared| {
            std::ptr::eq(prepared.symbols.as_ptr(), Arc::as_ptr(symbols))
                && (prepared.group, prepared.element, prepared.forecast) == (group, element, forecast)
        };
        if let Some(index) = self.prepared.iter().position(is_same) {
            return Ok(self.prepared.swap_remove(index));
        }
        let one = &symbols.groups[group];
        let call = self.prepare(&one.symbols, &one.placement.blocks, element, cached)?;
        Ok(Prepared { symbols: Arc::downgrade(symbols), group, element, forecast, call })
    }

    fn prepare(
        &mut self,
        symbols: &Symbols,
        blocks: &Blocks,
        element: Element,
        cached: CachedRows,
    ) -> Result<AttentionCall> {
        let shape = [1, symbols.heads(), self.tokens, self.padded];
        let view = |index: usize| TensorView::of(&self.tensors[index], shape, element);
        let operands = Operands { q: view(0)?, k: view(1)?, v: view(2)?, out: view(3)?, lse: None };
        // That of the true size: zeros that pad a head change no score.
        let scale = Some((1.0 / (self.head_dim as f64).sqrt()) as f32);
        let options = Options { scale, cached, ..Options::default() };
        let symbols = DeviceSymbols::upload(&self.stream, symbols, blocks, 1)?;
        let work = self.kernels.work(&self.stream, &symbols, [1, self.padded], &options, self.workspace.as_ref())?;
        // All launches are on one stream, one after the other.
        self.workspace.get_or_insert_with(|| Arc::clone(work.workspace()));
        let call = self.kernels.attention(&work, operands, options)?;
        call.plan(&self.stream)?;
        Ok(call)
    }

    fn run(&mut self, call: &AttentionCall) -> Result<()> {
        let [start, end] = &self.events;
        start.record(&self.stream)?;
        call.run(&self.stream)?;
        end.record(&self.stream)?;
        self.milliseconds += start.milliseconds_to(end)?;
        Ok(())
    }

    /// The features of a layer, copied to the GPU unless they are there.
    fn features(&mut self, forecast: Forecast<'_>) -> Result<Vec<(FloatView, f32)>> {
        let Forecast { terms, layer, update } = forecast;
        let features = self.features.entry(layer).or_insert_with(|| Features { update, count: 0, terms: Vec::new() });
        if features.update != update {
            (features.update, features.count) = (update, 0);
        }
        for (order, (term, _)) in terms.iter().enumerate().skip(features.count) {
            let values = term.to_f32();
            let rows = values.chunks_exact(self.head_dim);
            let mut padded = vec![0.0_f32; self.heads * self.tokens * self.padded];
            padded
                .chunks_exact_mut(self.padded)
                .zip(rows)
                .for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
            if features.terms.len() == order {
                let buffer = Buffer::new(self.kernels.device(), padded.len() * 4)?;
                features.terms.push(Arc::new(buffer));
            }
            features.terms[order].upload(&self.stream, 0, &padded)?;
            features.count = order + 1;
        }
        Ok(features.terms.iter().zip(terms).map(|(term, (_, weight))| (FloatView::of(term), *weight)).collect())
    }

    /// Copies heads of a tensor to the GPU, in an order and a type.
    fn send(
        &mut self,
        index: usize,
        tensor: TensorRef<'_>,
        heads: &[u32],
        order: Option<&[u32]>,
        element: Element,
    ) -> Result<()> {
        let is_whole = order.is_none() && heads.len() == self.heads;
        let gathered = (!is_whole).then(|| gathered_heads(tensor, heads, order)).transpose()?;
        let values = gathered.as_ref().map_or(tensor, Tensor::as_ref).values();
        self.staging.resize(heads.len() * self.tokens * self.padded, 0);
        let sizes = [self.head_dim, self.padded];
        match values {
            Values::F32(values) => pad(values, sizes, &mut self.staging, |value| bits(*value, element)),
            Values::F16(values) if element == Element::F16 => {
                pad(values, sizes, &mut self.staging, |value| value.to_bits());
            }
            Values::Bf16(values) if element == Element::Bf16 => {
                pad(values, sizes, &mut self.staging, |value| value.to_bits());
            }
            Values::F16(values) => pad(values, sizes, &mut self.staging, |value| bits(value.to_f32(), element)),
            Values::Bf16(values) => pad(values, sizes, &mut self.staging, |value| bits(value.to_f32(), element)),
        }
        self.tensors[index].upload(&self.stream, 0, &self.staging)
    }

    /// Copies the output back: rows of live q-blocks as they are, those of cached ones from the terms of a forecast.
    fn receive(
        &mut self,
        heads: &[u32],
        element: Element,
        order: Option<&[u32]>,
        tiles: &Tiles<'_>,
        terms: &[(TensorRef<'_>, f32)],
        out: TensorMut<'_>,
    ) -> Result<()> {
        self.staging.resize(heads.len() * self.tokens * self.padded, 0);
        self.tensors[3].download(&self.stream, 0, &mut self.staging)?;
        let shape = [heads.len(), self.tokens, self.head_dim];
        let sizes = [self.head_dim, self.padded];
        let part = match (out.dtype(), element) {
            (Dtype::F16, Element::F16) => Tensor::from_f16(&shape, unpad(&self.staging, sizes, f16::from_bits)),
            (Dtype::Bf16, Element::Bf16) => Tensor::from_bf16(&shape, unpad(&self.staging, sizes, bf16::from_bits)),
            (dtype, _) => {
                let values = unpad(&self.staging, sizes, |bits| number(bits, element));
                Tensor::from_f32(&shape, values).map(|part| if dtype == Dtype::F32 { part } else { part.cast(dtype) })
            }
        }?;
        scatter_heads(part.as_ref(), heads, order, tiles, terms, out)
    }
}

fn bits(value: f32, element: Element) -> u16 {
    match element {
        Element::F16 => f16::from_f32(value).to_bits(),
        Element::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

fn number(bits: u16, element: Element) -> f32 {
    match element {
        Element::F16 => f16::from_bits(bits).to_f32(),
        Element::Bf16 => bf16::from_bits(bits).to_f32(),
    }
}

/// Rows of `dim` to rows of `padded`, with zeros behind them.
fn pad<T: Sync>(values: &[T], [dim, padded]: [usize; 2], target: &mut [u16], convert: impl Fn(&T) -> u16 + Sync) {
    let rows = target.par_chunks_exact_mut(padded).zip(values.par_chunks_exact(dim)).with_min_len(64);
    rows.for_each(|(target, row)| {
        target.iter_mut().zip(row).for_each(|(target, value)| *target = convert(value));
        target[dim..].fill(0);
    });
}

/// The reverse of [`pad`].
fn unpad<T: Send>(values: &[u16], [dim, padded]: [usize; 2], convert: impl Fn(u16) -> T + Sync) -> Vec<T> {
    let rows = values.par_chunks_exact(padded).with_min_len(64);
    rows.flat_map_iter(|row| row[..dim].iter().map(|bits| convert(*bits))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_padded_and_come_back() {
        let values: Vec<f32> = (0..6).map(|value| value as f32).collect();
        for element in [Element::F16, Element::Bf16] {
            let mut staging = vec![7; 2 * 4];
            pad(&values, [3, 4], &mut staging, |value| bits(*value, element));
            assert_eq!([staging[3], staging[7]], [0, 0]);
            assert_eq!(unpad(&staging, [3, 4], |bits| number(bits, element)), values);
        }
    }
}
