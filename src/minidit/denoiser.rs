//! A forward pass: both branches of classifier-free guidance through all layers.
//!
//! The branches go through a layer one after the other, so that the second can take what the first has just computed
//! where a strategy says so. Each has a session, because their features are not the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::distances::{Distances, Measure};
use super::layer::{Buffers, Layer, Part};
use super::math::{Rotation, from_patches, modulated, patches, silu, subtract};
use super::weights::{Block, Linear};
use super::{MiniDit, Sparsity};
use crate::cpu::linear;
use crate::error::{Error, Result};
use crate::ir::StepKind;
use crate::runtime::{LayerSymbols, Session};
use crate::tensor::{TensorMut, TensorRef};

/// The branches of classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// With the prompt.
    Prompt,
    /// Without.
    Null,
}

impl Branch {
    /// Both, in the order in which they are computed.
    pub const ALL: [Branch; 2] = [Branch::Prompt, Branch::Null];
}

/// Work that a layer did, as shares of what it does in full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Of attention: pairs of tokens in blocks that were computed.
    pub attention: f64,
    /// Of the projection of queries.
    pub gemm_q: f64,
    /// Of the projections of keys and values.
    pub gemm_kv: f64,
    /// Of the projection of attention's output.
    pub gemm_o: f64,
    /// Of the feed-forward network.
    pub feed_forward: f64,
}

impl Work {
    /// Everything.
    pub const FULL: Work = Work { attention: 1.0, gemm_q: 1.0, gemm_kv: 1.0, gemm_o: 1.0, feed_forward: 1.0 };
    /// Nothing: the layer was reused whole.
    pub const NONE: Work = Work { attention: 0.0, gemm_q: 0.0, gemm_kv: 0.0, gemm_o: 0.0, feed_forward: 0.0 };
}

/// What a layer of a branch did at a step, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct LayerReport {
    /// The kind of step.
    pub kind: StepKind,
    /// What was computed.
    pub work: Work,
    /// Choosing symbols.
    pub selection: Duration,
    /// Attention, or the forecast of its output.
    pub attention: Duration,
    /// Everything, projections and feed-forward included.
    pub whole: Duration,
}

impl LayerReport {
    pub(super) fn new(kind: StepKind, work: Work, selection: Duration, attention: Duration) -> Self {
        LayerReport { kind, work, selection, attention, whole: Duration::ZERO }
    }
}

/// What attention saw in a layer of a branch at a step.
#[derive(Debug)]
pub struct Attended<'a> {
    /// The branch.
    pub branch: Branch,
    /// The step.
    pub step: u32,
    /// The layer.
    pub layer: u32,
    /// Queries `[heads, tokens, head_dim]`, f32, text first, after norm and rotary embedding.
    pub q: TensorRef<'a>,
    /// Keys, likewise.
    pub k: TensorRef<'a>,
    /// Values, `[heads, tokens, head_dim]`.
    pub v: TensorRef<'a>,
    /// The symbols that the step obeyed, or those that an update chose; none where everything is computed.
    pub symbols: Option<&'a LayerSymbols>,
}

/// Somebody who looks on.
pub trait Watch {
    /// Whether [`Watch::attended`] is to be called. All queries are computed there, those that nobody needs too.
    fn wants(&self, _branch: Branch, _step: u32, _layer: u32) -> bool {
        false
    }

    /// Sees what attention sees, in layers that compute it.
    ///
    /// # Errors
    /// Those of the watcher; they end the generation.
    fn attended(&mut self, _seen: &Attended<'_>) -> Result<()> {
        Ok(())
    }

    /// Sees what a layer has done.
    fn layer(&mut self, _branch: Branch, _step: u32, _layer: u32, _report: &LayerReport) {}

    /// Sees the guided velocity of a step and the image after it, `[3, size, size]` each.
    ///
    /// # Errors
    /// Those of the watcher; they end the generation.
    fn step(&mut self, _step: u32, _velocity: &[f32], _image: &[f32], _time: Duration) -> Result<()> {
        Ok(())
    }
}

/// Nobody.
impl Watch for () {}

/// Predicts velocities, step by step, for the image of one generation.
#[derive(Debug)]
pub struct Denoiser<'m> {
    model: &'m MiniDit,
    /// Patches of a side.
    side: usize,
    rotation: Rotation,
    sparsity: Option<&'m Sparsity>,
    states: [State; 2],
    work: Buffers,
}

/// What a branch holds between layers and steps.
#[derive(Debug)]
struct State {
    branch: Branch,
    session: Option<Session>,
    distances: Option<Distances>,
    /// `[tokens, hidden]`, text first.
    hidden: Vec<f32>,
    /// The projected output of attention in the layer at hand, `[tokens, hidden]`.
    projected: Vec<f32>,
    /// Shift, scale and gate of attention and of the feed-forward, `[6, hidden]`, before a stream adds its own.
    modulation: Vec<f32>,
    /// Shift and scale of the last layer, `[2, hidden]`.
    final_modulation: Vec<f32>,
    /// The image tokens before the first layer, and what it has added to them, where that is measured.
    first: Vec<f32>,
}

impl<'m> Denoiser<'m> {
    /// Begins a generation of `size` x `size` pixels; without a strategy everything is computed.
    ///
    /// # Errors
    /// [`Error::Shape`] when the model cannot make images of that size, or the strategy was compiled for another;
    /// [`Error::Unavailable`] when LLVM refuses the machine.
    pub fn new(model: &'m MiniDit, size: usize, sparsity: Option<&'m Sparsity>) -> Result<Self> {
        let side = model.side(size)?;
        let config = &model.config;
        let tokens = config.text_tokens + side * side;
        if let Some(sparsity) = sparsity {
            sparsity.check(model, side)?;
        }
        let state = |branch| -> Result<State> {
            Ok(State {
                branch,
                session: sparsity.map(|sparsity| Session::new(Arc::clone(&sparsity.plan))).transpose()?,
                distances: sparsity.and_then(Sparsity::distances),
                hidden: vec![0.0; tokens * config.hidden],
                projected: vec![0.0; tokens * config.hidden],
                modulation: Vec::new(),
                final_modulation: Vec::new(),
                first: Vec::new(),
            })
        };
        Ok(Denoiser {
            model,
            side,
            rotation: Rotation::new(config.text_tokens, side, config.head_dim, config.rope_base),
            sparsity,
            states: [state(Branch::Prompt)?, state(Branch::Null)?],
            work: Buffers::new(config, tokens),
        })
    }

    /// The velocities of an image at time `t`, with the prompt and without: `noise - image`, `[3, size, size]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] when the image has another size or there is no such class; [`Error::State`] when steps do not ascend
    /// or the strategy has no such step; [`Error::Value`] when a number is not finite where symbols are chosen.
    pub fn velocities(
        &mut self,
        step: u32,
        t: f32,
        image: &[f32],
        class: usize,
        watch: &mut dyn Watch,
    ) -> Result<[Vec<f32>; 2]> {
        self.embed(t, image, class)?;
        for layer in 0..self.model.weights.blocks.len() {
            for index in 0..self.states.len() {
                self.layer(index, step, layer as u32, watch)?;
            }
        }
        Ok([self.velocity(0)?, self.velocity(1)?])
    }

    /// Tokens and modulation of both branches.
    fn embed(&mut self, t: f32, image: &[f32], class: usize) -> Result<()> {
        let MiniDit { config, weights } = self.model;
        let (hidden, text) = (config.hidden, config.text_tokens * config.hidden);
        let size = self.side * config.patch;
        if image.len() != 3 * size * size {
            let found = image.len();
            return Err(Error::Shape(format!("the image has {found} numbers, wanted 3 x {size} x {size}")));
        }
        if class >= config.classes.len() {
            let classes = config.classes.len();
            return Err(Error::Shape(format!("there is no class {class}, the model has {classes}")));
        }
        let embedded = apply(&weights.patch, &patches(image, self.side, config.patch))?;
        let half = hidden / 2;
        let angle = |i: usize| 1000.0 * t * (-(10_000.0_f32.ln()) * i as f32 / half as f32).exp();
        let waves: Vec<f32> = (0..half).map(|i| angle(i).cos()).chain((0..half).map(|i| angle(i).sin())).collect();
        let mut time = apply(&weights.time[0], &waves)?;
        silu(&mut time);
        let time = apply(&weights.time[1], &time)?;
        for state in &mut self.states {
            let class = if state.branch == Branch::Prompt { class } else { config.null_class };
            state.hidden[..text].copy_from_slice(&weights.prompt[class * text..][..text]);
            state.hidden[text..].copy_from_slice(&embedded);
            let pooled = &weights.pooled[class * hidden..][..hidden];
            let mut condition: Vec<f32> = time.iter().zip(pooled).map(|(time, pooled)| time + pooled).collect();
            silu(&mut condition);
            state.modulation = apply(&weights.modulation, &condition)?;
            state.final_modulation = apply(&weights.final_modulation, &condition)?;
        }
        Ok(())
    }

    /// A layer of a branch.
    fn layer(&mut self, index: usize, step: u32, layer: u32, watch: &mut dyn Watch) -> Result<()> {
        let start = Instant::now();
        self.measure(index, step, layer)?;
        let parts = self.parts(index, layer);
        let Denoiser { model, rotation, sparsity, states: [first, second], work, .. } = self;
        let (state, other) = match index {
            0 => (first, None),
            _ => (second, Some(first.projected.as_slice())),
        };
        let keeps_residual = sparsity.is_some_and(Sparsity::reuses_layers);
        let config = &model.config;
        let block = Layer { config, rotation, branch: state.branch, step, layer, parts, keeps_residual };
        let State { session, hidden, projected, .. } = state;
        let mut report = match session {
            Some(session) => block.sparse(session, hidden, projected, other, work, watch)?,
            None => block.dense(hidden, projected, work, watch)?,
        };
        report.whole = start.elapsed();
        watch.layer(state.branch, step, layer, &report);
        Ok(())
    }

    /// The streams of a layer, with the modulation of a branch.
    fn parts(&self, index: usize, layer: u32) -> Vec<Part<'m>> {
        let (text, all) = (self.model.config.text_tokens, self.model.config.text_tokens + self.side * self.side);
        let modulation = &self.states[index].modulation;
        match &self.model.weights.blocks[layer as usize] {
            Block::Dual(streams) => {
                vec![Part::new(0..text, &streams[0], modulation), Part::new(text..all, &streams[1], modulation)]
            }
            Block::Single(joint) => vec![Part::new(0..all, joint, modulation)],
        }
    }

    /// Measures what the strategy goes by, and goes on under the schedule that follows from it.
    fn measure(&mut self, index: usize, step: u32, layer: u32) -> Result<()> {
        let image = self.model.config.text_tokens * self.model.config.hidden..;
        let parts = self.parts(index, layer);
        let state = &mut self.states[index];
        let (Some(sparsity), Some(session), Some(distances)) =
            (self.sparsity, &mut state.session, &mut state.distances)
        else {
            return Ok(());
        };
        match (distances.measure, layer) {
            (Measure::Input, 0) => {
                let rows = &mut self.work.rows;
                parts.iter().for_each(|part| part.attention_input(&self.model.config, &state.hidden, rows));
                distances.note(step, &rows[image]);
            }
            (Measure::FirstResidual, 0) => {
                state.first.clear();
                state.first.extend_from_slice(&state.hidden[image]);
                return Ok(());
            }
            (Measure::FirstResidual, 1) => {
                subtract(&state.hidden[image], &mut state.first);
                distances.note(step, &state.first);
            }
            _ => return Ok(()),
        }
        session.adopt(sparsity.plan_for(distances)?)?;
        if distances.measure == Measure::FirstResidual && !session.plan().schedule.kind(step, layer).is_reuse() {
            distances.computed(step, &state.first);
        }
        Ok(())
    }

    /// The velocity that the tokens of a branch stand for.
    fn velocity(&mut self, index: usize) -> Result<Vec<f32>> {
        let MiniDit { config, weights } = self.model;
        let state = &self.states[index];
        let (shift, scale) = state.final_modulation.split_at(config.hidden);
        let image = config.text_tokens * config.hidden..;
        let rows = &mut self.work.rows[image.clone()];
        modulated(&state.hidden[image], shift, scale, config.ln_eps, rows);
        Ok(from_patches(&apply(&weights.last, rows)?, self.side, config.patch))
    }
}

/// A dense layer, on as many rows as there are.
fn apply(layer: &Linear, x: &[f32]) -> Result<Vec<f32>> {
    let [outputs, inputs] = layer.weight.shape();
    let rows = x.len() / inputs;
    let mut out = vec![0.0; rows * outputs];
    let shape = [rows, outputs];
    let x_shape = [rows, inputs];
    let x = TensorRef::from_f32(&x_shape, x)?;
    linear(x, &layer.weight, Some(layer.bias.as_ref()), TensorMut::from_f32(&shape, &mut out)?)?;
    Ok(out)
}
