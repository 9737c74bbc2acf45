//! A transformer block, dense and under a session: the part of a host that meets the runtime.
//!
//! [`Layer::dense`] is the block as anyone would write it. [`Layer::sparse`] is the same block with a session, call by call:
//! what it computes, what it takes from earlier steps and what it leaves behind for later ones.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::math::{Rotation, add, add_gated, gelu, modulated, subtract};
use super::weights::{Config, Linear, Stream};
use super::{Attended, Branch, LayerReport, Watch, Work};
use crate::cpu::{dense_attention, linear, linear_from_heads, linear_to_heads};
use crate::error::Result;
use crate::ir::{StepKind, Unit};
use crate::runtime::{LayerSymbols, Session, Step};
use crate::tensor::{TensorMut, TensorRef};

/// A block of a branch at a step.
pub(super) struct Layer<'a> {
    pub(super) config: &'a Config,
    pub(super) rotation: &'a Rotation,
    pub(super) branch: Branch,
    pub(super) step: u32,
    pub(super) layer: u32,
    /// Text and image, or both in one.
    pub(super) parts: Vec<Part<'a>>,
    /// Whether later steps may ask what the layer adds to its tokens.
    pub(super) keeps_residual: bool,
}

/// Tokens that go through the same parameters.
pub(super) struct Part<'a> {
    tokens: Range<usize>,
    weights: &'a Stream,
    /// Shift, scale and gate of attention, then of the feed-forward: `[6, hidden]`.
    modulation: Vec<f32>,
    /// `[tokens, hidden]`.
    shape: [usize; 2],
}

/// Room for one layer, shared by all.
#[derive(Debug)]
pub(super) struct Buffers {
    shape: [usize; 3],
    /// `[heads, tokens, head_dim]`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    o: Vec<f32>,
    /// Normalised tokens, or what a module gives for them: `[tokens, hidden]`.
    pub(super) rows: Vec<f32>,
    /// The tokens before the layer, where its residual is wanted.
    before: Vec<f32>,
    /// Inside of the feed-forward network: `[tokens, mlp_ratio * hidden]`.
    wide: Vec<f32>,
}

impl Buffers {
    pub(super) fn new(config: &Config, tokens: usize) -> Self {
        let rows = || vec![0.0; tokens * config.hidden];
        Buffers {
            shape: [config.heads, tokens, config.head_dim],
            q: rows(),
            k: rows(),
            v: rows(),
            o: rows(),
            rows: rows(),
            before: Vec::new(),
            wide: vec![0.0; tokens * config.mlp_ratio * config.hidden],
        }
    }
}

impl<'a> Part<'a> {
    pub(super) fn new(tokens: Range<usize>, weights: &'a Stream, modulation: &[f32]) -> Self {
        let modulation: Vec<f32> = modulation.iter().zip(&weights.table).map(|(shared, own)| shared + own).collect();
        let shape = [tokens.len(), modulation.len() / 6];
        Part { tokens, weights, modulation, shape }
    }

    /// Its rows of the tokens as attention takes them.
    pub(super) fn attention_input(&self, config: &Config, hidden: &[f32], rows: &mut [f32]) {
        self.normalise(Module::Attention, config, hidden, rows);
    }

    /// Normalised rows, shifted and scaled as a module takes them.
    fn normalise(&self, module: Module, config: &Config, hidden: &[f32], rows: &mut [f32]) {
        let (shift, scale) = (self.vector(module as usize), self.vector(module as usize + 1));
        modulated(&hidden[self.range()], shift, scale, config.ln_eps, &mut rows[self.range()]);
    }

    /// One of the six vectors.
    fn vector(&self, index: usize) -> &[f32] {
        &self.modulation[index * self.shape[1]..][..self.shape[1]]
    }

    /// Where its rows stand among those of all tokens.
    fn range(&self) -> Range<usize> {
        self.tokens.start * self.shape[1]..self.tokens.end * self.shape[1]
    }

    /// Its rows of all tokens'.
    fn rows<'r>(&'r self, all: &'r [f32]) -> Result<TensorRef<'r>> {
        TensorRef::from_f32(&self.shape, &all[self.range()])
    }

    fn rows_mut<'r>(&'r self, all: &'r mut [f32]) -> Result<TensorMut<'r>> {
        TensorMut::from_f32(&self.shape, &mut all[self.range()])
    }
}

/// The modules of a block: where their three vectors begin.
#[derive(Clone, Copy)]
enum Module {
    Attention = 0,
    FeedForward = 3,
}

impl Layer<'_> {
    /// The block without a session: `hidden` and `projected` are `[tokens, hidden]`.
    pub(super) fn dense(
        &self,
        hidden: &mut [f32],
        projected: &mut [f32],
        work: &mut Buffers,
        watch: &mut dyn Watch,
    ) -> Result<LayerReport> {
        self.attention_input(hidden, &mut work.rows);
        for part in &self.parts {
            let Stream { q, .. } = part.weights;
            let q_out = TensorMut::from_f32(&work.shape, &mut work.q)?;
            linear_to_heads(part.rows(&work.rows)?, &q.weight, Some(q.bias.as_ref()), part.tokens.clone(), q_out)?;
        }
        self.keys_and_values(work)?;
        self.turn_queries(&mut work.q);
        let start = Instant::now();
        let Buffers { shape, q, k, v, o, .. } = work;
        let [q, k, v] = [q, k, v].map(|tensor| TensorRef::from_f32(shape, tensor));
        let (q, k, v) = (q?, k?, v?);
        dense_attention(q, k, v, TensorMut::from_f32(shape, o)?)?;
        let attention = start.elapsed();
        self.show(watch, work, None)?;
        for part in &self.parts {
            let Stream { out, .. } = part.weights;
            let o = TensorRef::from_f32(&work.shape, &work.o)?;
            let rows = part.rows_mut(projected)?;
            linear_from_heads(o, &out.weight, Some(out.bias.as_ref()), part.tokens.clone(), rows)?;
        }
        self.add(Module::Attention, hidden, projected);
        for part in &self.parts {
            self.feed_forward(part, hidden, work)?;
        }
        self.add(Module::FeedForward, hidden, &work.rows);
        Ok(LayerReport::new(StepKind::Dense, Work::FULL, Duration::ZERO, attention))
    }

    /// The block under a session. `other` is the projected output of the other branch in this layer, where it went first.
    pub(super) fn sparse(
        &self,
        session: &mut Session,
        hidden: &mut [f32],
        projected: &mut [f32],
        other: Option<&[f32]>,
        work: &mut Buffers,
        watch: &mut dyn Watch,
    ) -> Result<LayerReport> {
        let mut at = session.begin(self.step, self.layer)?;
        let other = other.filter(|_| at.kind() == StepKind::Shared);
        let mut report = match at.kind() {
            StepKind::Reuse(Unit::Layer) => return self.reuse(&at, hidden, work),
            kind if kind.is_reuse() || other.is_some() => {
                LayerReport::new(kind, Work { feed_forward: 1.0, ..Work::NONE }, Duration::ZERO, Duration::ZERO)
            }
            _ => self.attend(&mut at, hidden, work, watch)?,
        };
        let attended = report.work.gemm_kv > 0.0;
        if self.keeps_residual {
            work.before.clear();
            work.before.extend_from_slice(hidden);
        }
        for part in &self.parts {
            let (rows, tokens, out) = (part.rows_mut(projected)?, part.tokens.clone(), &part.weights.out);
            match other {
                Some(other) => at.share_out(part.rows(other)?, tokens, rows)?,
                None => {
                    let o = TensorRef::from_f32(&work.shape, &work.o)?;
                    at.project_out(o, &out.weight, Some(out.bias.as_ref()), tokens, rows)?;
                }
            }
        }
        self.add(Module::Attention, hidden, projected);
        for part in &self.parts {
            if report.kind == StepKind::Reuse(Unit::Modules) {
                at.recall(Unit::Modules, part.tokens.clone(), part.rows_mut(&mut work.rows)?)?;
                report.work.feed_forward = 0.0;
            } else {
                self.feed_forward(part, hidden, work)?;
                at.remember(Unit::Modules, part.tokens.clone(), part.rows(&work.rows)?)?;
            }
        }
        self.add(Module::FeedForward, hidden, &work.rows);
        if self.keeps_residual {
            subtract(hidden, &mut work.before);
            let shape = [work.shape[1], self.config.hidden];
            at.remember(Unit::Layer, 0..work.shape[1], TensorRef::from_f32(&shape, &work.before)?)?;
        }
        if attended {
            let has_symbols = report.kind.obeys_symbols() || report.kind == StepKind::Update;
            self.show(watch, work, session.symbols(self.layer).filter(|_| has_symbols))?;
        }
        Ok(report)
    }

    /// Projections and attention of what the step leaves. Queries that take a cached output are not even projected.
    fn attend(
        &self,
        at: &mut Step<'_>,
        hidden: &[f32],
        work: &mut Buffers,
        watch: &mut dyn Watch,
    ) -> Result<LayerReport> {
        self.attention_input(hidden, &mut work.rows);
        let is_watched = watch.wants(self.branch, self.step, self.layer);
        for part in &self.parts {
            let Stream { q, .. } = part.weights;
            let (rows, bias, tokens) = (part.rows(&work.rows)?, Some(q.bias.as_ref()), part.tokens.clone());
            let q_out = TensorMut::from_f32(&work.shape, &mut work.q)?;
            if is_watched {
                linear_to_heads(rows, &q.weight, bias, tokens, q_out)?;
            } else {
                at.project_q(rows, &q.weight, bias, tokens, q_out)?;
            }
        }
        let gemm_q = at.symbols().map_or(Ok(1.0), live_queries)?;
        self.keys_and_values(work)?;
        self.turn_queries(&mut work.q);
        let Buffers { shape, q, k, v, o, .. } = work;
        let [q, k, v] = [q, k, v].map(|tensor| TensorRef::from_f32(shape, tensor));
        let report = at.attention_live(q?, k?, v?, TensorMut::from_f32(shape, o)?)?;
        let mut done = Work { gemm_q, ..Work::FULL };
        if let Some(symbols) = at.symbols() {
            (done.attention, done.gemm_o) = (symbols.live_share()?, live_queries(symbols)?);
        }
        Ok(LayerReport::new(report.kind, done, report.selection, report.attention))
    }

    /// The whole layer is that of an earlier step: only what it adds is needed.
    fn reuse(&self, at: &Step<'_>, hidden: &mut [f32], work: &mut Buffers) -> Result<LayerReport> {
        let shape = [work.shape[1], self.config.hidden];
        at.recall(Unit::Layer, 0..work.shape[1], TensorMut::from_f32(&shape, &mut work.rows)?)?;
        add(hidden, &work.rows);
        Ok(LayerReport::new(at.kind(), Work::NONE, Duration::ZERO, Duration::ZERO))
    }

    /// The tokens as attention takes them.
    fn attention_input(&self, hidden: &[f32], rows: &mut [f32]) {
        self.parts.iter().for_each(|part| part.attention_input(self.config, hidden, rows));
    }

    /// Keys and values of all tokens, keys after norm and rotary embedding.
    fn keys_and_values(&self, work: &mut Buffers) -> Result<()> {
        let Buffers { shape, k, v, rows, .. } = work;
        for part in &self.parts {
            let into = |linear: &Linear, out: &mut [f32]| {
                let (rows, bias) = (part.rows(rows)?, Some(linear.bias.as_ref()));
                linear_to_heads(rows, &linear.weight, bias, part.tokens.clone(), TensorMut::from_f32(shape, out)?)
            };
            into(&part.weights.k, k)?;
            into(&part.weights.v, v)?;
            self.rotation.norm_and_turn(k, &part.weights.k_norm, self.config.rms_eps, part.tokens.clone());
        }
        Ok(())
    }

    fn turn_queries(&self, q: &mut [f32]) {
        for part in &self.parts {
            self.rotation.norm_and_turn(q, &part.weights.q_norm, self.config.rms_eps, part.tokens.clone());
        }
    }

    /// The output of a part's feed-forward network, into the rows of the part.
    fn feed_forward(&self, part: &Part<'_>, hidden: &[f32], work: &mut Buffers) -> Result<()> {
        let Stream { up, down, .. } = part.weights;
        part.normalise(Module::FeedForward, self.config, hidden, &mut work.rows);
        let wide_shape = [part.tokens.len(), self.config.mlp_ratio * self.config.hidden];
        let wide = &mut work.wide[..wide_shape[0] * wide_shape[1]];
        let bias = Some(up.bias.as_ref());
        linear(part.rows(&work.rows)?, &up.weight, bias, TensorMut::from_f32(&wide_shape, wide)?)?;
        gelu(wide);
        let wide = TensorRef::from_f32(&wide_shape, wide)?;
        linear(wide, &down.weight, Some(down.bias.as_ref()), part.rows_mut(&mut work.rows)?)
    }

    /// Adds what a module gave, through its gate.
    fn add(&self, module: Module, hidden: &mut [f32], output: &[f32]) {
        for part in &self.parts {
            add_gated(&mut hidden[part.range()], part.vector(module as usize + 2), &output[part.range()]);
        }
    }

    /// Shows what attention saw to whom it may interest.
    fn show(&self, watch: &mut dyn Watch, work: &Buffers, symbols: Option<&LayerSymbols>) -> Result<()> {
        let &Layer { branch, step, layer, .. } = self;
        if !watch.wants(branch, step, layer) {
            return Ok(());
        }
        let tensor = |values| TensorRef::from_f32(&work.shape, values);
        let (q, k, v) = (tensor(&work.q)?, tensor(&work.k)?, tensor(&work.v)?);
        watch.attended(&Attended { branch, step, layer, q, k, v, symbols })
    }
}

/// The share of the (query, head) pairs whose projections are computed.
fn live_queries(symbols: &LayerSymbols) -> Result<f64> {
    let statistics = symbols.statistics()?;
    let tokens: u64 = statistics.iter().map(|group| group.total.q_tokens).sum();
    let live: f64 = statistics.iter().map(|group| group.total.gemm_share * group.total.q_tokens as f64).sum();
    Ok(live / tokens as f64)
}
