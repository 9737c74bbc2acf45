//! The projections around attention: GEMM-Q before it, GEMM-O with the cached part as a bias behind it.
//!
//! Every projection is about a range of tokens, because streams of text and of picture have weights of their own. The
//! projection of cached heads is made once for the symbols in force, from each order of the cached features; at a
//! dispatch step its forecast is a weighted sum, because projecting and forecasting commute.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::reuse::Output;
use super::selection::{HeadGroup, LayerSymbols};
use super::session::{Step, copy, up_to};
use crate::cpu::{
    AnyWeight, HeadNorm, Part, Rotary, Start, Taylor, Tiles, Weights, gather_heads, gathered_heads, gemm_o,
    gemm_o_split, gemm_q, linear_from_heads, linear_to_heads, norm_and_turn, scatter_heads, whole_blocks,
};
use crate::error::{Error, Result};
use crate::ir::{StepKind, Unit};
use crate::plan::Plan;
use crate::symbols::BitMatrix;
use crate::tensor::{Dtype, Tensor, TensorMut, TensorRef};

/// What the output projection of some tokens remembers.
#[derive(Debug)]
pub(super) struct Projected {
    tokens: Range<usize>,
    biases: Option<Biases>,
}

/// The projections of the cached heads.
#[derive(Debug)]
struct Biases {
    /// The symbols they were made under, and the update the features are of.
    symbols: Arc<LayerSymbols>,
    update: usize,
    /// `[tokens, features]` for each group and order, in the model's order of tokens.
    of_group: Vec<Vec<Tensor>>,
}

impl Projected {
    pub(super) fn reset(&mut self) {
        self.biases = None;
    }
}

impl Step<'_> {
    /// GEMM-Q of some tokens: projects the queries of live (q-block, head) tiles; rows of cached ones, and of those that keep
    /// nothing, stay untouched. Where the step computes in full or has yet to choose, all tiles are live.
    ///
    /// # Shapes
    /// | tensor | shape | dtype |
    /// |---|---|---|
    /// | `x` | `[tokens.len(), in]` | any |
    /// | `weight` | `[heads * head_dim, in]`, packed by `head_dim` if packed | any |
    /// | `bias` | `[heads * head_dim]` | any |
    /// | `q` | `[heads, all tokens, head_dim]` | any |
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit; [`Error::State`] when the strategy reorders tokens and `tokens` cuts a
    /// segment.
    pub fn project_q<'a>(
        &self,
        x: TensorRef<'_>,
        weight: impl Into<AnyWeight<'a>>,
        bias: Option<TensorRef<'_>>,
        tokens: Range<usize>,
        mut q: TensorMut<'_>,
    ) -> Result<()> {
        let weight = weight.into();
        let plan = Arc::clone(self.session.course.plan());
        super::selection::check_heads(&plan, "q", q.as_ref())?;
        let Some(symbols) = &self.symbols else { return linear_to_heads(x, weight, bias, tokens, q) };
        for group in &symbols.groups {
            let rows = Rows::of(group, &plan, Tile::Live);
            let tiles = rows.tiles(&tokens);
            let Some(within) = order_within(rows.order, &tokens)? else {
                gemm_q(x, weight, bias, &tiles, q.reborrow())?;
                continue;
            };
            let x = reorder_rows(x, &within)?;
            let mut part = Tensor::zeros(q.as_ref().shape(), q.dtype());
            gemm_q(x.as_ref(), weight, bias, &tiles, part.as_mut())?;
            let all: Vec<u32> = (0..plan.model.heads).collect();
            scatter_heads(part.as_ref(), &all, rows.order, &tiles, &[], q.reborrow())?;
        }
        Ok(())
    }

    /// The norm and rotary embedding of the queries that [`Step::project_q`] has projected; others stay untouched.
    pub(super) fn turn_q(
        &self,
        norm: Option<HeadNorm<'_>>,
        rotary: Option<Rotary<'_>>,
        tokens: Range<usize>,
        mut q: TensorMut<'_>,
    ) -> Result<()> {
        let plan = self.session.course.plan();
        let Some(symbols) = &self.symbols else {
            let q_blocks = whole_blocks(plan.model.tokens() as usize);
            let cache = BitMatrix::ones(plan.model.heads as usize, q_blocks.len() - 1);
            return norm_and_turn(q, &Tiles { cache: &cache, q_blocks: &q_blocks, tokens }, None, norm, rotary);
        };
        for group in &symbols.groups {
            let rows = Rows::of(group, plan, Tile::Live);
            norm_and_turn(q.reborrow(), &rows.tiles(&tokens), rows.order, norm, rotary)?;
        }
        Ok(())
    }

    /// GEMM-O of some tokens: projects the output of live heads and adds what the cached ones give. At a step that reuses
    /// the layer's output, forecasts it; `o` is not looked at then.
    ///
    /// # Shapes
    /// | tensor | shape | dtype |
    /// |---|---|---|
    /// | `o` | `[heads, all tokens, head_dim]` | any |
    /// | `weight` | `[out, heads * head_dim]` | any |
    /// | `bias` | `[out]` | any |
    /// | `out` | `[tokens.len(), out]` | any |
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit; [`Error::State`] when the strategy reorders tokens and `tokens` cuts a
    /// segment, or a reused step was asked for other tokens than earlier ones.
    pub fn project_out<'a>(
        &mut self,
        o: TensorRef<'_>,
        weight: impl Into<AnyWeight<'a>>,
        bias: Option<TensorRef<'_>>,
        tokens: Range<usize>,
        mut out: TensorMut<'_>,
    ) -> Result<()> {
        let weight = weight.into();
        let step = self.step as usize;
        if self.kind.is_reuse() {
            return self.forecast(&Output::Tokens(Unit::Attention, tokens), out);
        }
        let index = self.projected(&tokens);
        match self.symbols.clone() {
            Some(symbols) => self.project_live(index, &symbols, o, weight, bias, out.reborrow())?,
            None => self.project_all(index, o, weight, bias, out.reborrow())?,
        }
        self.state().memory.keep(Output::Tokens(Unit::Attention, tokens), step, out.as_ref())
    }

    /// At a step of kind [`StepKind::Shared`]: the projected output of some tokens is that of the other branch at this step,
    /// `[tokens.len(), out]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the tensors have different shapes, [`Error::State`] at another step.
    pub fn share_out(&mut self, other: TensorRef<'_>, tokens: Range<usize>, out: TensorMut<'_>) -> Result<()> {
        self.is_shared()?;
        if other.shape() != out.as_ref().shape() || other.shape().first() != Some(&tokens.len()) {
            let (other, out) = (other.shape(), out.as_ref().shape());
            return Err(Error::Shape(format!("`other` has the shape {other:?}, `out` {out:?}, for tokens {tokens:?}")));
        }
        let step = self.step as usize;
        copy(other, out);
        self.state().memory.keep(Output::Tokens(Unit::Attention, tokens), step, other)
    }

    /// The memory of the projection of some tokens.
    fn projected(&mut self, tokens: &Range<usize>) -> usize {
        let state = self.state();
        state.projected.iter().position(|projected| projected.tokens == *tokens).unwrap_or_else(|| {
            state.projected.push(Projected { tokens: tokens.clone(), biases: None });
            state.projected.len() - 1
        })
    }

    /// The projection of all heads. At an update the part of those that will be cached comes out of the same pass.
    fn project_all(
        &mut self,
        index: usize,
        o: TensorRef<'_>,
        weight: AnyWeight<'_>,
        bias: Option<TensorRef<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        let is_update = self.kind == StepKind::Update;
        let chosen = self.session.course.current(self.layer);
        let chosen = chosen.filter(|symbols| is_update && symbols.has_cached()).cloned();
        let state = self.state();
        let tokens = state.projected[index].tokens.clone();
        let start = Start { bias, terms: &[] };
        if let Some(symbols) = chosen
            && let [group] = symbols.groups.as_slice()
            && group.placement.q_order.is_none()
            && let Some(update) = state.features.as_ref().and_then(Taylor::step)
        {
            let q_blocks = &group.placement.blocks.q;
            let tiles = Tiles { cache: &group.symbols.cache, q_blocks, tokens: tokens.clone() };
            let mut cached = vec![0.0; tokens.len() * weight.rows()];
            gemm_o_split(o, weight, start, &tiles, out, &mut cached)?;
            let of_group = vec![vec![Tensor::from_f32(&[tokens.len(), weight.rows()], cached)?]];
            state.projected[index].biases = Some(Biases { symbols, update, of_group });
            return Ok(());
        }
        linear_from_heads(o, weight, bias, tokens, out)
    }

    fn project_live(
        &mut self,
        index: usize,
        symbols: &Arc<LayerSymbols>,
        o: TensorRef<'_>,
        weight: AnyWeight<'_>,
        bias: Option<TensorRef<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        let plan = Arc::clone(self.session.course.plan());
        let step = self.step as usize;
        self.make_biases(index, symbols, weight)?;
        // A residual has something in every row.
        let tile = if self.kind == StepKind::Residual { Tile::Uncached } else { Tile::Live };
        let state = self.state();
        let projected = &state.projected[index];
        let tokens = projected.tokens.clone();
        let mut terms: Vec<(TensorRef<'_>, f32)> = Vec::new();
        if let (Some(biases), Some(features)) = (&projected.biases, &state.features) {
            let weights: Weights = features.weights(step)?;
            for group in &biases.of_group {
                terms.extend(group.iter().map(Tensor::as_ref).zip(weights.as_slice().iter().copied()));
            }
        }
        // Heads whose rows are cut alike in the model's order are added up by the last call; the others are terms of it.
        let live: Vec<Rows<'_>> = symbols.groups.iter().map(|group| Rows::of(group, &plan, tile)).collect();
        let base = live.iter().find(|rows| rows.order.is_none());
        let (same, others): (Vec<&Rows<'_>>, Vec<&Rows<'_>>) = live
            .iter()
            .partition(|rows| base.is_some_and(|base| rows.order.is_none() && rows.q_blocks == base.q_blocks));
        let parts: Vec<Tensor> =
            others.into_iter().map(|rows| project_part(&plan, rows, o, weight, &tokens)).collect::<Result<_>>()?;
        terms.extend(parts.iter().map(|part| (part.as_ref(), 1.0)));
        let offsets = base.map_or_else(|| whole_blocks(plan.model.tokens() as usize), |base| base.q_blocks.to_vec());
        let mut cache = BitMatrix::zeros(plan.model.heads as usize, offsets.len() - 1);
        same.into_iter().for_each(|rows| cache.union(&rows.cache));
        let start = Start { bias, terms: &terms };
        gemm_o(o, weight, Part::Live, start, &Tiles { cache: &cache, q_blocks: &offsets, tokens }, out)
    }

    /// Projects the cached features, unless that was done for these symbols and features.
    fn make_biases(&mut self, index: usize, symbols: &Arc<LayerSymbols>, weight: AnyWeight<'_>) -> Result<()> {
        let plan = Arc::clone(self.session.course.plan());
        let state = self.state();
        let projected = &mut state.projected[index];
        let features = state.features.as_ref().filter(|features| features.known() > 0 && symbols.has_cached());
        let Some((features, update)) = features.and_then(|features| Some((features, features.step()?))) else {
            projected.biases = None;
            return Ok(());
        };
        let fresh = |biases: &Biases| biases.update == update && Arc::ptr_eq(&biases.symbols, symbols);
        let mut biases = match projected.biases.take().filter(fresh) {
            Some(biases) => biases,
            None => Biases { symbols: Arc::clone(symbols), update, of_group: vec![Vec::new(); symbols.groups.len()] },
        };
        let terms = features.terms(update)?;
        for (group, made) in symbols.groups.iter().zip(&mut biases.of_group) {
            let orders = up_to(Some(&terms), group.forecast_order);
            // An update has made the first order on its way.
            for (feature, _) in orders.get(made.len()..).unwrap_or_default() {
                let rows = Rows::of(group, &plan, Tile::Cached);
                made.push(project_part(&plan, &rows, *feature, weight, &projected.tokens)?);
            }
        }
        projected.biases = Some(biases);
        Ok(())
    }
}

/// Which tiles of a group are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// What attention computes.
    Live,
    /// What takes a cached feature.
    Cached,
    /// All others.
    Uncached,
}

/// The live or the cached tiles of a group, as rows of all heads.
struct Rows<'a> {
    /// Where the rows stand; `None` for the model's order.
    order: Option<&'a [u32]>,
    q_blocks: Cow<'a, [u32]>,
    /// `[heads of the model][q_blocks]`; nothing for heads of other groups.
    cache: BitMatrix,
}

impl<'a> Rows<'a> {
    fn of(group: &'a HeadGroup, plan: &Plan, tile: Tile) -> Self {
        // A block that keeps nothing has the output zero: it is neither live nor cached.
        let own = match tile {
            Tile::Live => Cow::Owned(group.symbols.live_rows()),
            Tile::Cached | Tile::Uncached => Cow::Borrowed(&group.symbols.cache),
        };
        let is_live = own.count() == own.rows() * own.columns();
        // Where all rows are live it does not matter how they are cut, nor in which order they stand.
        let (order, q_blocks) = match (&group.placement.q_order, is_live) {
            (Some(_), true) => (None, Cow::Owned(whole_blocks(plan.model.tokens() as usize))),
            (order, _) => (order.as_deref(), Cow::Borrowed(group.placement.blocks.q.as_slice())),
        };
        let columns = q_blocks.len() - 1;
        let mut cache = BitMatrix::zeros(plan.model.heads as usize, columns);
        let ones = BitMatrix::ones(1, columns);
        for (position, &head) in group.heads.iter().enumerate() {
            let row = cache.row_mut(head as usize);
            row.copy_from_slice(if is_live { ones.row(0) } else { own.row(position) });
            if tile == Tile::Cached {
                row.iter_mut().zip(ones.row(0)).for_each(|(word, ones)| *word = !*word & ones);
            }
        }
        Rows { order, q_blocks, cache }
    }

    fn tiles(&self, tokens: &Range<usize>) -> Tiles<'_> {
        Tiles { cache: &self.cache, q_blocks: &self.q_blocks, tokens: tokens.clone() }
    }
}

/// The projection of some rows: `[tokens.len(), features]`, f32, in the model's order.
fn project_part(
    plan: &Plan,
    rows: &Rows<'_>,
    o: TensorRef<'_>,
    weight: AnyWeight<'_>,
    tokens: &Range<usize>,
) -> Result<Tensor> {
    let tiles = rows.tiles(tokens);
    let mut part = Tensor::zeros(&[tokens.len(), weight.rows()], Dtype::F32);
    let Some(order) = order_within(rows.order, tokens)? else {
        gemm_o(o, weight, Part::Live, Start::default(), &tiles, part.as_mut())?;
        return Ok(part);
    };
    let heads: Vec<u32> = (0..plan.model.heads).collect();
    let arranged = gathered_heads(o, &heads, rows.order)?;
    gemm_o(arranged.as_ref(), weight, Part::Live, Start::default(), &tiles, part.as_mut())?;
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(new, &old)| inverse[old as usize] = new as u32);
    reorder_rows(part.as_ref(), &inverse)
}

/// The order of some tokens among themselves; `None` where they stand in the model's.
fn order_within(order: Option<&[u32]>, tokens: &Range<usize>) -> Result<Option<Vec<u32>>> {
    let Some(order) = order else { return Ok(None) };
    let Some(order) = order.get(tokens.clone()) else {
        return Err(Error::Shape(format!("tokens {tokens:?} were asked for, there are {}", order.len())));
    };
    let within = |&old: &u32| tokens.contains(&(old as usize)).then(|| old - tokens.start as u32);
    let order: Option<Vec<u32>> = order.iter().map(within).collect();
    order.map(Some).ok_or_else(|| {
        Error::State(format!("the strategy moves tokens across the ends of {tokens:?}: project whole segments"))
    })
}

/// Rows of a matrix in another order.
fn reorder_rows(matrix: TensorRef<'_>, order: &[u32]) -> Result<Tensor> {
    let [rows, columns] = *matrix.shape() else {
        return Err(Error::Shape(format!("a matrix was expected, found the shape {:?}", matrix.shape())));
    };
    if rows != order.len() {
        return Err(Error::Shape(format!("{rows} rows were given for {} tokens", order.len())));
    }
    let shape = [1, rows, columns];
    let mut out = Tensor::zeros(&[rows, columns], matrix.dtype());
    gather_heads(TensorRef::new(&shape, matrix.values())?, &[0], Some(order), out.as_mut())?;
    Ok(out)
}
