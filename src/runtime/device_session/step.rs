//! What a step launches for a layer, in the order of the table in [`super`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::DeviceSession;
use crate::cuda::{Buffer, Range};
use crate::error::{Error, Result};
use crate::ir::{Source, StepKind};
use crate::kernels::{GemmSizes, HeadsOperands, MatrixView, Operands, OutOperands, Projection, TensorView};
use crate::runtime::Tensors;
use crate::runtime::block::StreamShape;
use crate::runtime::device_block::{DeviceBlock, DeviceInput, DeviceMatrix, tensor_of};
use crate::runtime::device_layer::Made;
use crate::runtime::device_lists::{Launcher, Lists, Prepared};
use crate::runtime::selection::LayerSymbols;
use crate::tensor::Tensor;

/// A layer at a step.
pub(super) struct At<'a> {
    pub(super) session: &'a mut DeviceSession,
    pub(super) block: &'a DeviceBlock,
    pub(super) layer: usize,
    pub(super) step: u32,
    pub(super) inputs: &'a [DeviceInput<'a>],
    pub(super) outputs: &'a [&'a DeviceMatrix],
}

impl At<'_> {
    /// Everything that the step launches, in order; gives how long symbols were chosen on the CPU.
    pub(super) fn run(
        mut self,
        kind: StepKind,
        symbols: Option<Arc<LayerSymbols>>,
        measured: &[(String, Tensor)],
    ) -> Result<Duration> {
        let mut selection = Duration::ZERO;
        match (kind, symbols) {
            (StepKind::Reuse(_), _) => self.reuse(kind)?,
            (StepKind::Dense, _) => {
                self.load(kind, None)?;
                self.project_heads(None)?;
                self.attend_in_full()?;
                self.join()?;
                self.project(None, &[])?;
            }
            (StepKind::Dispatch | StepKind::Residual, symbols) => {
                self.with_prepared(symbols.as_ref(), |at, prepared| {
                    at.load(kind, Some(prepared))?;
                    at.project_heads(Some(prepared))?;
                    at.obey(kind, prepared)
                })?;
            }
            (kind, _) => {
                if kind == StepKind::Update {
                    self.load(kind, None)?;
                    self.project_heads(None)?;
                    self.attend_in_full()?;
                } else {
                    self.project_heads(None)?;
                }
                let symbols = if self.session.layers[self.layer].own.is_some() {
                    self.choose()?;
                    None
                } else {
                    let (symbols, time) = self.session.choose(self.step, self.layer as u32, measured)?;
                    selection = time;
                    Some(symbols)
                };
                self.with_prepared(symbols.as_ref(), |at, prepared| match kind {
                    StepKind::Update => at.update(prepared),
                    kind => {
                        // Whether biases have to be made is known only now.
                        at.load(kind, Some(prepared))?;
                        at.obey(kind, prepared)
                    }
                })?;
            }
        }
        self.join()?;
        Ok(selection)
    }

    /// Does something under the work lists of symbols: those given, or the layer's own on the GPU.
    fn with_prepared(
        &mut self,
        symbols: Option<&Arc<LayerSymbols>>,
        work: impl FnOnce(&mut Self, &mut Prepared) -> Result<()>,
    ) -> Result<()> {
        let Some(symbols) = symbols else {
            let own = self.session.layers[self.layer].own.take();
            let Some(mut own) = own else {
                return Err(Error::State(format!("layer {} has no symbols at step {}", self.layer, self.step)));
            };
            let done = work(self, &mut own.prepared);
            self.session.layers[self.layer].own = Some(own);
            return done;
        };
        let mut prepared = self.session.take_prepared(symbols)?;
        let done = work(self, &mut prepared);
        self.session.prepared.push(prepared);
        done
    }

    /// Chooses the layer's symbols on the GPU.
    fn choose(&mut self) -> Result<()> {
        let _range = Range::new("selection");
        let DeviceSession { q, k, v, .. } = &*self.session;
        let (q, k, v) = (self.heads(q)?, self.heads(k)?, self.heads(v)?);
        let (layer, place) = (self.layer, [self.step, self.layer as u32]);
        let DeviceSession { choice, launcher, layers, course, versions, .. } = &mut *self.session;
        if let Some(own) = &mut layers[layer].own {
            choice.choose(launcher, place, [&q, &k, &v], &own.symbols)?;
            *versions += 1;
            own.prepared.renew(*versions);
        }
        course.choose_elsewhere(layer as u32);
        Ok(())
    }

    fn sizes(&self, stream: &StreamShape, projection: Projection) -> GemmSizes {
        let [heads, head_dim, all_tokens] = self.session.size;
        GemmSizes { batch: 1, heads, head_dim, all_tokens, tokens: stream.tokens.clone(), projection }
    }

    /// A tensor `[1, heads, tokens, head_dim]`.
    fn heads(&self, memory: &Arc<Buffer>) -> Result<TensorView> {
        let [heads, head_dim, tokens] = self.session.size;
        TensorView::of(memory, [1, heads, tokens, head_dim], self.session.element)
    }

    /// A matrix `[1, tokens.len(), outputs]` of a stream.
    fn rows(&self, memory: &Arc<Buffer>, stream: &StreamShape) -> Result<MatrixView> {
        MatrixView::of(memory, [1, stream.tokens.len(), stream.outputs], self.session.element)
    }

    fn operands(&self, out: &Arc<Buffer>) -> Result<Operands> {
        let DeviceSession { q, k, v, .. } = &*self.session;
        Ok(Operands { q: self.heads(q)?, k: self.heads(k)?, v: self.heads(v)?, out: self.heads(out)?, lse: None })
    }

    /// Queries, keys and values, behind norms and rotary embedding; queries of live blocks alone where there are symbols.
    fn project_heads(&mut self, mut prepared: Option<&mut Prepared>) -> Result<()> {
        for (index, stream) in self.block.shapes.iter().enumerate() {
            let own = &self.block.streams[index];
            let sizes = self.sizes(stream, Projection::Heads { inputs: stream.inputs });
            let x = self.inputs[index].x.view()?;
            let rotary = &self.block.rotary;
            let DeviceSession { q, k, v, .. } = &*self.session;
            let parts = [(&own.q, &own.q_norm, rotary, q), (&own.k, &own.k_norm, rotary, k), (&own.v, &None, &None, v)];
            let calls = parts.map(|(linear, norm, rotary, out)| {
                Ok(HeadsOperands {
                    x: x.clone(),
                    weight: linear.weight.clone(),
                    out: self.heads(out)?,
                    bias: linear.bias.clone(),
                    norm: norm.clone(),
                    rotary: rotary.clone(),
                })
            });
            let [q, k, v]: [Result<HeadsOperands>; 3] = calls;
            let DeviceSession { all, launcher, .. } = &mut *self.session;
            let range = Range::new("queries");
            match prepared.as_deref_mut() {
                Some(prepared) => prepared.live.gemm_q(launcher, &sizes, q?)?,
                None => all.gemm_q(launcher, &sizes, q?)?,
            }
            drop(range);
            let _range = Range::new("keys, values");
            all.gemm_q(launcher, &sizes, k?)?;
            all.gemm_q(launcher, &sizes, v?)?;
        }
        Ok(())
    }

    /// Begins to bring what the step takes of what its layer keeps. Biases of a step under symbols depend on what these were prepared as.
    fn load(&mut self, kind: StepKind, prepared: Option<&Prepared>) -> Result<()> {
        let wanted = prepared.and_then(|prepared| self.wanted(prepared));
        let reused = self.session.plan().schedule.reuse_order(self.step, self.layer as u32);
        let DeviceSession { copies, launcher, layers, .. } = &mut *self.session;
        copies.load(&launcher.stream, layers[self.layer].taken(kind, wanted, reused))
    }

    /// Waits, in the stream, for what was brought.
    fn join(&mut self) -> Result<()> {
        let DeviceSession { copies, launcher, .. } = &mut *self.session;
        copies.join(&launcher.stream)
    }

    fn attend_in_full(&mut self) -> Result<()> {
        let _range = Range::new("attention");
        let operands = self.operands(&self.session.o)?;
        self.session.dense.run(&self.session.launcher, operands)
    }

    /// An update, once attention in full and the choice of symbols are done.
    fn update(&mut self, prepared: &mut Prepared) -> Result<()> {
        let (layer, step, element) = (self.layer, self.step, self.session.element);
        self.join()?;
        let DeviceSession { copies, layers, launcher, o, .. } = &mut *self.session;
        if let Some(features) = &mut layers[layer].features {
            let _range = Range::new("features");
            features.update(launcher, step, o, element)?;
            copies.store(&launcher.stream, features.terms())?;
        }
        if !self.session.layers[layer].residual.is_empty() {
            self.lose(prepared)?;
        }
        if self.make_biases(prepared)? == 0 {
            return self.project(None, &[]);
        }
        // Blocks that keep nothing are computed at an update too.
        self.project(Some(&mut prepared.uncached), &[1.0])
    }

    /// Attention under symbols, and its projection.
    fn obey(&mut self, kind: StepKind, prepared: &mut Prepared) -> Result<()> {
        let operands = self.operands(&self.session.o)?;
        let range = Range::new("attention");
        prepared.attention.run(&self.session.launcher, operands)?;
        drop(range);
        self.join()?;
        let orders = self.make_biases(prepared)?;
        let layer = &self.session.layers[self.layer];
        let weights = match &layer.features {
            Some(features) if orders > 0 => features.weights(self.step)?.as_slice()[..orders].to_vec(),
            _ => Vec::new(),
        };
        debug_assert!(kind != StepKind::Residual || layer.knows_residual);
        self.project_with(Some(&mut prepared.live), &weights, kind == StepKind::Residual)
    }

    /// What the biases under some symbols are of, once there are features.
    fn wanted(&self, prepared: &Prepared) -> Option<Made> {
        let features = self.session.layers[self.layer].features.as_ref().filter(|features| features.known() > 0)?;
        let orders = prepared.cached.iter().map(|(_, count)| count).sum::<usize>().min(features.known());
        Some(Made { version: prepared.version, update: features.step(), orders })
    }

    /// Projects cached blocks of each known order, unless that was done for these symbols and this update; gives the number of orders.
    fn make_biases(&mut self, prepared: &mut Prepared) -> Result<usize> {
        let Some(wanted) = self.wanted(prepared) else { return Ok(0) };
        let layer = &self.session.layers[self.layer];
        if layer.made == Some(wanted) {
            return Ok(wanted.orders);
        }
        let _range = Range::new("biases");
        let terms = layer.features.iter().flat_map(|features| &features.terms()[..wanted.orders]);
        let terms: Vec<Arc<Buffer>> = terms.map(|term| Arc::clone(term.place())).collect();
        let mut order = 0;
        for (lists, count) in &mut prepared.cached {
            for term in terms.iter().skip(order).take(*count) {
                for (index, stream) in self.block.shapes.iter().enumerate() {
                    let own = &self.block.streams[index];
                    let projection = Projection::Out { further: 0, outputs: stream.outputs };
                    let bias = &self.session.layers[self.layer].biases[index][order];
                    let operands = OutOperands {
                        o: self.heads(term)?,
                        further: None,
                        weight: own.out_heads.clone(),
                        bias: None,
                        terms: Vec::new(),
                        out: self.rows(bias.place(), stream)?,
                    };
                    lists.gemm_o(&self.session.launcher, &self.sizes(stream, projection), operands)?;
                }
                order += 1;
            }
        }
        let DeviceSession { copies, launcher, layers, .. } = &mut *self.session;
        layers[self.layer].made = Some(wanted);
        copies.store(&launcher.stream, layers[self.layer].made_biases())?;
        Ok(wanted.orders)
    }

    /// Projects what symbols leave out of the output in full.
    fn lose(&mut self, prepared: &mut Prepared) -> Result<()> {
        let Some(sparse) = self.session.sparse.clone() else { return Ok(()) };
        let _range = Range::new("residual");
        let (o, element) = (Arc::clone(&self.session.o), self.session.element);
        let len = self.session.size.iter().product();
        let launcher = &self.session.launcher;
        // Cached rows are left out whole: nothing of them is lost.
        launcher.kernels.features_sum(&[(Arc::clone(&o), 1.0)], &sparse, len, element)?.run(&launcher.stream)?;
        prepared.attention.run(launcher, self.operands(&sparse)?)?;
        let difference = [(o, 1.0), (Arc::clone(&sparse), -1.0)];
        launcher.kernels.features_sum(&difference, &sparse, len, element)?.run(&launcher.stream)?;
        for (index, stream) in self.block.shapes.iter().enumerate() {
            let operands = OutOperands {
                o: self.heads(&sparse)?,
                further: None,
                weight: self.block.streams[index].out_heads.clone(),
                bias: None,
                terms: Vec::new(),
                out: self.rows(self.session.layers[self.layer].residual[index].place(), stream)?,
            };
            let sizes = self.sizes(stream, Projection::Out { further: 0, outputs: stream.outputs });
            let DeviceSession { all, launcher, .. } = &mut *self.session;
            all.gemm_o(launcher, &sizes, operands)?;
        }
        let DeviceSession { copies, launcher, layers, .. } = &mut *self.session;
        layers[self.layer].knows_residual = true;
        copies.store(&launcher.stream, &layers[self.layer].residual)
    }

    fn project(&mut self, lists: Option<&mut Lists>, weights: &[f32]) -> Result<()> {
        self.project_with(lists, weights, false)
    }

    /// The output projection, of some blocks or of all, with the biases under these weights and the residual.
    fn project_with(&mut self, mut lists: Option<&mut Lists>, weights: &[f32], with_residual: bool) -> Result<()> {
        let _range = Range::new("output projection");
        for (index, stream) in self.block.shapes.iter().enumerate() {
            let own = &self.block.streams[index];
            let layer = &self.session.layers[self.layer];
            let keeps = !layer.outputs.is_empty();
            let mut terms = Vec::new();
            for (bias, weight) in layer.biases[index].iter().zip(weights) {
                terms.push((self.rows(bias.place(), stream)?, *weight));
            }
            if with_residual {
                terms.push((self.rows(layer.residual[index].place(), stream)?, 1.0));
            }
            // Where later steps reuse what attention gives, further inputs are added apart.
            let apart = self.session.attended.clone().filter(|_| keeps && stream.further > 0);
            let (out, further, weight) = match &apart {
                Some(attended) => (self.rows(attended, stream)?, None, &own.out_heads),
                None => (self.outputs[index].view()?, self.further(index)?, &own.out.weight),
            };
            let projection =
                Projection::Out { further: further.as_ref().map_or(0, |_| stream.further), outputs: stream.outputs };
            let sizes = self.sizes(stream, projection);
            let operands = OutOperands {
                o: self.heads(&self.session.o)?,
                further,
                weight: weight.clone(),
                bias: own.out.bias.clone(),
                terms,
                out,
            };
            let DeviceSession { all, launcher, .. } = &mut *self.session;
            match lists.as_deref_mut() {
                Some(lists) => lists.gemm_o(launcher, &sizes, operands)?,
                None => all.gemm_o(launcher, &sizes, operands)?,
            }
            if keeps {
                let kept = apart.as_ref().unwrap_or(&self.outputs[index].memory);
                let DeviceSession { copies, layers, launcher, element, .. } = &mut *self.session;
                let terms = &mut layers[self.layer].outputs[index];
                terms.update(launcher, self.step, kept, *element)?;
                copies.store(&launcher.stream, terms.terms())?;
            }
            if let Some(attended) = &apart {
                self.add_further(index, &[(Arc::clone(attended), 1.0)])?;
            }
        }
        Ok(())
    }

    fn further(&self, index: usize) -> Result<Option<MatrixView>> {
        self.inputs[index].further.filter(|_| self.block.shapes[index].further > 0).map(DeviceMatrix::view).transpose()
    }

    /// The output of a stream from terms and its further inputs.
    fn add_further(&mut self, index: usize, terms: &[(Arc<Buffer>, f32)]) -> Result<()> {
        let (stream, own) = (&self.block.shapes[index], &self.block.streams[index]);
        let terms = terms.iter().map(|(term, weight)| Ok((self.rows(term, stream)?, *weight)));
        let operands = OutOperands {
            o: self.heads(&self.session.o)?,
            further: self.further(index)?,
            weight: own.out.weight.clone(),
            bias: None,
            terms: terms.collect::<Result<_>>()?,
            out: self.outputs[index].view()?,
        };
        let sizes = self.sizes(stream, Projection::Out { further: stream.further, outputs: stream.outputs });
        let DeviceSession { none, launcher, .. } = &mut *self.session;
        none.gemm_o(launcher, &sizes, operands)
    }

    /// The forecast of earlier outputs.
    fn reuse(&mut self, kind: StepKind) -> Result<()> {
        let order = self.session.plan().schedule.reuse_order(self.step, self.layer as u32);
        self.load(kind, None)?;
        self.join()?;
        for (index, stream) in self.block.shapes.iter().enumerate() {
            let kept = &self.session.layers[self.layer].outputs[index];
            let weights = kept.weights(self.step)?;
            let terms =
                kept.terms().iter().map(|term| Arc::clone(term.place())).zip(weights.as_slice().iter().copied());
            let terms: Vec<(Arc<Buffer>, f32)> = terms.take(order + 1).collect();
            if stream.further > 0 {
                self.add_further(index, &terms)?;
                continue;
            }
            let (out, len) = (&self.outputs[index].memory, stream.tokens.len() * stream.outputs);
            let Launcher { kernels, stream, .. } = &self.session.launcher;
            kernels.features_sum(&terms, out, len, self.session.element)?.run(stream)?;
        }
        Ok(())
    }
}

impl DeviceSession {
    /// The work lists of symbols, taken out of those that are there.
    fn take_prepared(&mut self, symbols: &Arc<LayerSymbols>) -> Result<Prepared> {
        if let Some(index) = self.prepared.iter().position(|prepared| prepared.is_of(symbols)) {
            return Ok(self.prepared.swap_remove(index));
        }
        self.prepared.retain(Prepared::is_in_force);
        self.versions += 1;
        Prepared::new(&self.launcher, symbols, self.versions, self.size[1])
    }

    /// Chooses symbols on the CPU, and says how long it took.
    fn choose(
        &mut self,
        step: u32,
        layer: u32,
        measured: &[(String, Tensor)],
    ) -> Result<(Arc<LayerSymbols>, Duration)> {
        let _range = Range::new("selection");
        let plan = Arc::clone(self.course.plan());
        let needs_qk = (0..plan.model.heads).any(|head| plan.needs_qk(plan.class(step, layer, head)));
        if needs_qk {
            // What they are computed by is no part of the choice.
            self.launcher.stream.synchronize()?;
        }
        let start = Instant::now();
        let download = |memory: &Buffer, is_needed: bool| -> Result<Option<Tensor>> {
            if !is_needed {
                return Ok(None);
            }
            let [heads, head_dim, tokens] = self.size;
            let mut bits = vec![0_u16; heads * tokens * head_dim];
            memory.download(&self.launcher.stream, 0, &mut bits)?;
            tensor_of(&[heads, tokens, head_dim], &bits, self.element).map(Some)
        };
        let reads_v = needs_qk && plan.programs.iter().any(|program| program.reads(Source::Value));
        let (q, k, v) = (download(&self.q, needs_qk)?, download(&self.k, needs_qk)?, download(&self.v, reads_v)?);
        let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.as_ref().map(Tensor::as_ref));
        let symbols = self.course.choose(step, layer, Tensors { q, k, v, measured })?;
        Ok((symbols, start.elapsed()))
    }
}
