//! One generation: what each layer does at each step, and what it remembers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use super::backend::{Backend, Engine, Forecast};
use super::course::{Course, Known, adds_residual, cached_order};
use super::cpu_block::Work;
use super::projections::Projected;
use super::reuse::{self, Memory, Output};
use super::selection::{LayerSymbols, Tensors, check_heads};
use crate::cpu::{Taylor, Terms};
use crate::error::{Error, Result};
use crate::ir::{Model, StepKind, Unit};
use crate::plan::Plan;
use crate::tensor::{Tensor, TensorMut, TensorRef, ValuesMut};

/// A generation under a plan, on the CPU or, by [`Session::on`], with attention on a GPU.
///
/// Steps of a layer come in ascending order; layers may be interleaved in any way. [`Session::reset`] begins the next
/// generation. The two branches of classifier-free guidance have features of their own, hence a session each.
///
/// # Examples
/// ```
/// use flashomni::runtime::Session;
/// use flashomni::tensor::{Dtype, Tensor};
///
/// let plan = flashomni::compile(
///     "model tiny { layers 1 heads 2 head_dim 16 steps 4 tokens image(h = 16, w = 16) }
///      strategy near { layout image block 64 keep image -> image where abs(pos(q) - pos(k)) <= 64 }",
/// )?;
/// let mut session = Session::new(plan)?;
/// let [q, k, v] = [0.5, 0.25, 1.0].map(|x| Tensor::from_f32(&[2, 256, 16], vec![x; 2 * 256 * 16]).unwrap());
/// let mut out = Tensor::zeros(&[2, 256, 16], Dtype::F32);
/// for step in 0..4 {
///     session.attention(step, 0, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut())?;
/// }
/// let live = session.symbols(0).unwrap().live_share()?;
/// assert!(live < 0.7);
/// # Ok::<(), flashomni::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    pub(super) course: Course,
    pub(super) layers: Vec<Layer>,
    engine: Engine,
    /// What some step of the plans so far reuses.
    units: Vec<Unit>,
    /// Room for whole blocks, once one was run.
    pub(super) work: Option<Work>,
}

/// What a layer remembers.
#[derive(Debug)]
pub(super) struct Layer {
    /// The output of attention at updates, where some step takes cached features.
    pub(super) features: Option<Taylor>,
    /// Outputs at every step that computed them, where some step reuses them.
    pub(super) memory: Memory,
    /// What symbols left out of the output of the last update, where some step adds it.
    residual: Option<Taylor>,
    /// What projections of its output remember.
    pub(super) projected: Vec<Projected>,
}

/// What a step did, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What the layer did: the schedule's kind, or [`StepKind::Update`] where something was missing.
    pub kind: StepKind,
    /// Choosing symbols.
    pub selection: Duration,
    /// Attention, or its forecast.
    pub attention: Duration,
    /// What of it the GPU computed, without the copies of tensors; `None` on the CPU.
    pub kernel: Option<Duration>,
}

impl Session {
    /// Begins a generation.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when LLVM refuses the machine.
    pub fn new(plan: impl Into<Arc<Plan>>) -> Result<Self> {
        Self::on(plan, Backend::Cpu)
    }

    /// As [`Session::new`], with attention on a backend.
    ///
    /// On a GPU attention runs in the type of q where that has 16 bits; tensors of 32 bits are rounded to f16, or to bf16 where the
    /// model's type is that. Tensors are the host's all the same. Symbols are chosen, and projections made, on the CPU.
    ///
    /// # Errors
    /// As [`Session::new`]; [`Error::Shape`] when the model's heads are larger than the GPU's kernels take (128),
    /// [`Error::Cuda`] when its memory does not hold the model's tensors.
    pub fn on(plan: impl Into<Arc<Plan>>, backend: Backend) -> Result<Self> {
        let course = Course::new(plan)?;
        let engine = Engine::new(backend, course.plan())?;
        let layers = (0..course.plan().model.layers).map(|layer| Layer::new(course.plan(), layer));
        let units = reuse::units(course.plan()).collect();
        let layers = layers.collect::<Result<_>>()?;
        Ok(Session { course, layers, engine, units, work: None })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        self.course.plan()
    }

    /// Goes on under a plan of the same strategy with another schedule, as it follows from what the host has measured
    /// meanwhile: step caches such as TeaCache's decide by distances that are known when their step comes. The host compiles the
    /// strategy anew, a few milliseconds, with the distances so far and any for those to come; as a schedule looks back and
    /// never ahead, what it says of this step is final. A session that adopts plans keeps of every layer what steps of any layer
    /// have reused so far, and while none has, whatever a step could; a forecast of an order that no plan before asked for
    /// builds up from then on.
    ///
    /// # Errors
    /// [`Error::State`] when the plans differ in anything but their schedule; the session stays under its own then.
    ///
    /// # Examples
    /// ```
    /// use flashomni::check::InputTensor;
    /// use flashomni::ir::Kind;
    /// use flashomni::{Compiler, runtime::Session};
    ///
    /// let source = "model tiny { layers 1 heads 2 head_dim 16 steps 6 tokens image(h = 16, w = 16) }
    ///      strategy cached {
    ///          let distances = input(\"distances\", steps, kind = real)
    ///          schedule { reuse while step > 0 and accumulated(distances(step)) < 0.3 }
    ///      }";
    /// let mut distances = vec![0.0; 6];
    /// let plan = |distances: &[f64]| {
    ///     let tensor = InputTensor { shape: vec![6], kind: Kind::Real, values: distances.to_vec() };
    ///     Compiler::from_source("cached", source).input("distances", tensor).compile().map(|compiled| compiled.plan)
    /// };
    /// let mut session = Session::new(plan(&distances)?)?;
    /// let mut reused = Vec::new();
    /// for (step, measured) in [0.0, 0.1, 0.1, 0.15, 0.2, 0.05].into_iter().enumerate() {
    ///     distances[step] = measured;
    ///     session.adopt(plan(&distances)?)?;
    ///     reused.push(session.plan().schedule.kind(step as u32, 0).is_reuse());
    /// }
    /// assert_eq!(reused, [false, true, true, false, true, true]);
    /// # Ok::<(), flashomni::Error>(())
    /// ```
    pub fn adopt(&mut self, plan: impl Into<Arc<Plan>>) -> Result<()> {
        let plan = plan.into();
        let own = self.plan();
        if !own.is_same_but_for_schedule(&plan) {
            return Err(Error::State(format!(
                "the plan of `{}` for {} is another than the session's in more than its schedule",
                plan.strategy, plan.model.name
            )));
        }
        let shape = head_shape(&plan.model);
        let known = std::mem::take(&mut self.units);
        self.units = Unit::ALL
            .into_iter()
            .filter(|unit| known.contains(unit) || reuse::units(&plan).any(|new| new == *unit))
            .collect();
        // Whether a step reuses an output may be known only at the step: outputs are kept from now on.
        let kept = if self.units.is_empty() { Unit::ALL.as_slice() } else { &self.units };
        for (layer, state) in (0..plan.model.layers).zip(&mut self.layers) {
            state.memory.adopt(&plan, layer, kept);
            if adds_residual(&plan, layer) && state.residual.is_none() {
                state.residual = Some(Taylor::new(0, &shape)?);
            }
        }
        self.course.set_plan(plan);
        Ok(())
    }

    /// Forgets the generation; the next step may be any.
    pub fn reset(&mut self) {
        self.course.reset();
        self.layers.iter_mut().for_each(Layer::reset);
        self.engine.reset();
    }

    /// The symbols in force in a layer: what its last step obeyed or, after an update, what the next ones will. `None`
    /// before the first, and for a layer the plan has not.
    #[must_use]
    pub fn symbols(&self, layer: u32) -> Option<&LayerSymbols> {
        self.course.current(layer).map(Arc::as_ref)
    }

    /// Attention of a layer at a step: computes what the schedule and the symbols leave, forecasts the rest.
    ///
    /// # Shapes
    /// `q`, `k`, `v`, `out`: `[heads, tokens, head_dim]` in the model's order of tokens, row-major, f32, f16 or bf16;
    /// `out` and `q` of one type.
    ///
    /// # Errors
    /// [`Error::Shape`] when a tensor does not fit the model; [`Error::State`] when the plan has no such step or layer, or
    /// the step does not follow the layer's last one; [`Error::Value`] when symbols are to be chosen and q or k is
    /// not finite. `out` is untouched then.
    pub fn attention(
        &mut self,
        step: u32,
        layer: u32,
        q: TensorRef<'_>,
        k: TensorRef<'_>,
        v: TensorRef<'_>,
        out: TensorMut<'_>,
    ) -> Result<Report> {
        self.begin(step, layer)?.attention(q, k, v, out)
    }

    /// Attention in full on the session's backend, beside the generation: what a strategy is compared with.
    ///
    /// # Shapes
    /// As [`Session::attention`].
    ///
    /// # Errors
    /// [`Error::Shape`] when a tensor does not fit the model.
    pub fn dense_attention(
        &mut self,
        q: TensorRef<'_>,
        k: TensorRef<'_>,
        v: TensorRef<'_>,
        mut out: TensorMut<'_>,
    ) -> Result<Report> {
        check_tensors(self.plan(), [q, k, v], &out)?;
        let start = Instant::now();
        self.engine.dense([q, k, v], out.reborrow())?;
        let (attention, kernel) = (start.elapsed(), self.engine.take_time());
        Ok(Report { kind: StepKind::Dense, selection: Duration::ZERO, attention, kernel })
    }

    /// Begins a step of a layer.
    ///
    /// # Errors
    /// [`Error::State`] when the plan has no such step or layer, or the step does not follow the layer's last one.
    pub fn begin(&mut self, step: u32, layer: u32) -> Result<Step<'_>> {
        let known = |layer: u32| self.layers[layer as usize].known();
        let (kind, symbols) = self.course.begin(step, layer, known)?;
        let has_chosen = !matches!(kind, StepKind::Update | StepKind::Refresh | StepKind::Shared);
        Ok(Step { session: self, step, layer, kind, symbols, has_chosen, selection: Duration::ZERO })
    }
}

impl Layer {
    fn new(plan: &Plan, layer: u32) -> Result<Self> {
        let shape = head_shape(&plan.model);
        let taylor = |order: Option<usize>| order.map(|order| Taylor::new(order, &shape)).transpose();
        Ok(Layer {
            features: taylor(cached_order(plan, layer).map(usize::from))?,
            memory: Memory::new(plan, layer),
            residual: taylor(adds_residual(plan, layer).then_some(0))?,
            projected: Vec::new(),
        })
    }

    /// What earlier steps have left.
    fn known(&self) -> Known {
        let has = |taylor: &Option<Taylor>| taylor.as_ref().is_some_and(|taylor| taylor.known() > 0);
        Known {
            features: has(&self.features),
            residual: has(&self.residual),
            outputs: Unit::ALL.map(|unit| !self.memory.lacks(unit)),
        }
    }

    fn reset(&mut self) {
        self.features.iter_mut().for_each(Taylor::reset);
        self.memory.reset();
        self.residual.iter_mut().for_each(Taylor::reset);
        self.projected.iter_mut().for_each(Projected::reset);
    }
}

/// Tensors must be those of the model, and the output of q's type.
fn check_tensors(plan: &Plan, [q, k, v]: [TensorRef<'_>; 3], out: &TensorMut<'_>) -> Result<()> {
    for (name, tensor) in [("q", q), ("k", k), ("v", v), ("out", out.as_ref())] {
        check_heads(plan, name, tensor)?;
    }
    if out.dtype() == q.dtype() {
        return Ok(());
    }
    let (out, q) = (out.dtype().name(), q.dtype().name());
    Err(Error::Shape(format!("`out` holds {out}, but `q` holds {q}")))
}

/// `[heads, tokens, head_dim]`.
fn head_shape(model: &Model) -> [usize; 3] {
    [model.heads, model.tokens(), model.head_dim].map(|size| size as usize)
}

/// A layer at a step.
///
/// A host that keeps its projections calls [`Step::attention`]. One that lets cached blocks save projections too calls
/// [`Step::block`] with the weights of the whole block, or
/// [`Step::project_q`], [`Step::attention_live`] and [`Step::project_out`] in this order; at a step of kind
/// [`StepKind::Reuse`] only the last, and at one of kind [`StepKind::Shared`] [`Step::share_out`] in place of all. Where rules
/// choose by what the host measures, [`Step::choose`] comes first. A feed-forward network is the same with experts for heads,
/// and an activation of the live tiles in place of attention.
///
/// Steps may reuse more than attention. Then the host calls [`Step::remember`] at steps that compute and [`Step::recall`] at those
/// that reuse: of [`Unit::Modules`] for the feed-forward network, beside the calls for attention; of [`Unit::Layer`]
/// for what the layer adds, and at steps that reuse nothing else.
#[derive(Debug)]
pub struct Step<'s> {
    pub(super) session: &'s mut Session,
    pub(super) step: u32,
    pub(super) layer: u32,
    pub(super) kind: StepKind,
    /// What the step obeys; `None` where it computes in full, and at a refresh until q and k are there.
    pub(super) symbols: Option<Arc<LayerSymbols>>,
    /// Whether symbols were chosen, or need not be.
    has_chosen: bool,
    /// How long that took.
    selection: Duration,
}

/// What attention leaves in the rows of cached q-blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CachedRows {
    Forecast,
    Untouched,
}

impl Step<'_> {
    /// What the layer does at this step.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        self.kind
    }

    /// Chooses symbols, where the step is to; the next call of [`Step::attention`] does it otherwise, from q, k and v. A
    /// step that obeys at once what it chooses saves projections too from here on.
    ///
    /// # Errors
    /// [`Error::State`] when a tensor is missing that the rules ask for; [`Error::Shape`] when one does not fit the model;
    /// [`Error::Value`] when one is not finite.
    pub fn choose(&mut self, tensors: Tensors<'_>) -> Result<()> {
        if self.has_chosen {
            return Ok(());
        }
        // Where the host has no other branch the step computes in full, as an update.
        if self.kind == StepKind::Shared {
            self.kind = StepKind::Update;
        }
        let start = Instant::now();
        let chosen = self.session.course.choose(self.step, self.layer, tensors)?;
        self.selection = start.elapsed();
        self.has_chosen = true;
        if self.kind == StepKind::Refresh {
            self.symbols = Some(chosen);
        }
        Ok(())
    }

    /// At a step of kind [`StepKind::Shared`]: the output is that of the other branch at this step, `[heads, tokens, head_dim]`.
    /// A host without one calls [`Step::attention`], which computes in full.
    ///
    /// # Errors
    /// [`Error::Shape`] when a tensor does not fit the model; [`Error::State`] at another step.
    pub fn share(mut self, other: TensorRef<'_>, mut out: TensorMut<'_>) -> Result<()> {
        let plan = Arc::clone(self.session.course.plan());
        check_heads(&plan, "other", other)?;
        check_heads(&plan, "out", out.as_ref())?;
        self.is_shared()?;
        copy(other, out.reborrow());
        let step = self.step as usize;
        self.state().memory.keep(Output::Heads, step, other)
    }

    /// The error at a step that does not take the output of the other branch.
    pub(super) fn is_shared(&self) -> Result<()> {
        if self.kind == StepKind::Shared {
            return Ok(());
        }
        let (step, layer) = (self.step, self.layer);
        Err(Error::State(format!("step {step} of layer {layer} does not take the output of the other branch")))
    }

    /// What the step obeys: `None` where it computes in full, and at a refresh until it has chosen.
    #[must_use]
    pub fn symbols(&self) -> Option<&LayerSymbols> {
        self.symbols.as_deref()
    }

    /// See [`Session::attention`].
    ///
    /// # Errors
    /// As [`Session::attention`].
    pub fn attention(
        mut self,
        q: TensorRef<'_>,
        k: TensorRef<'_>,
        v: TensorRef<'_>,
        mut out: TensorMut<'_>,
    ) -> Result<Report> {
        let report = self.run(q, k, v, out.reborrow(), CachedRows::Forecast)?;
        if !report.kind.is_reuse() {
            let step = self.step as usize;
            self.state().memory.keep(Output::Heads, step, out.as_ref())?;
        }
        Ok(report)
    }

    /// As [`Step::attention`], but rows of cached q-blocks stay untouched: [`Step::project_out`] adds what they would
    /// have given.
    ///
    /// # Errors
    /// As [`Step::attention`]; [`Error::State`] at a step that reuses the layer's output, which needs no attention.
    pub fn attention_live(
        &mut self,
        q: TensorRef<'_>,
        k: TensorRef<'_>,
        v: TensorRef<'_>,
        out: TensorMut<'_>,
    ) -> Result<Report> {
        if let StepKind::Reuse(unit) = self.kind {
            let (step, layer) = (self.step, self.layer);
            let call = if unit == Unit::Layer { "recall" } else { "project_out" };
            return Err(Error::State(format!("step {step} of layer {layer} reuses an output: call `{call}` only")));
        }
        self.run(q, k, v, out, CachedRows::Untouched)
    }

    pub(super) fn state(&mut self) -> &mut Layer {
        &mut self.session.layers[self.layer as usize]
    }

    fn run(
        &mut self,
        q: TensorRef<'_>,
        k: TensorRef<'_>,
        v: TensorRef<'_>,
        mut out: TensorMut<'_>,
        cached: CachedRows,
    ) -> Result<Report> {
        let plan = Arc::clone(self.session.course.plan());
        check_tensors(&plan, [q, k, v], &out)?;
        self.choose(Tensors { v: Some(v), ..Tensors::of(q, k) })?;
        let attention = Duration::ZERO;
        let mut report = Report { kind: self.kind, selection: self.selection, attention, kernel: None };
        let start = Instant::now();
        let step = self.step as usize;
        match (self.kind, self.symbols.clone()) {
            (StepKind::Reuse(_), _) => self.forecast(&Output::Heads, out)?,
            (_, Some(symbols)) => {
                let Session { engine, layers, .. } = &mut *self.session;
                let features = layers[self.layer as usize].features.as_ref();
                let features = features.filter(|_| cached == CachedRows::Forecast);
                let terms = features.map(|features| features.terms(step)).transpose()?;
                let update = features.and_then(Taylor::step);
                for (index, group) in symbols.groups.iter().enumerate() {
                    let forecast = Forecast::of(terms.as_ref(), group.forecast_order, self.layer, update);
                    engine.attend(&plan, &symbols, index, [q, k, v], forecast, out.reborrow())?;
                }
                if self.kind == StepKind::Residual
                    && let Some(residual) = &self.state().residual
                {
                    for (term, _) in up_to(Some(&residual.terms(step)?), 0) {
                        add(out.reborrow(), *term);
                    }
                }
            }
            (kind, None) => {
                self.session.engine.dense([q, k, v], out.reborrow())?;
                if let Some(features) = self.state().features.as_mut().filter(|_| kind == StepKind::Update) {
                    features.update(step, out.as_ref())?;
                }
                let symbols = self.session.course.current(self.layer).filter(|_| kind == StepKind::Update).cloned();
                if let (Some(symbols), true) = (symbols, self.state().residual.is_some()) {
                    let lost = lost(&mut self.session.engine, &plan, &symbols, [q, k, v], out.as_ref())?;
                    self.state().residual.iter_mut().try_for_each(|residual| residual.update(step, lost.as_ref()))?;
                }
            }
        }
        report.attention = start.elapsed();
        report.kernel = self.session.engine.take_time();
        Ok(report)
    }
}

/// The terms of a forecast up to an order.
pub(super) fn up_to<'t>(terms: Option<&'t Terms<'_>>, order: u8) -> &'t [(TensorRef<'t>, f32)] {
    terms.map_or(&[], |terms| &terms[..terms.len().min(usize::from(order) + 1)])
}

/// The output in full less the one under symbols; nothing in rows that are cached.
fn lost(
    engine: &mut Engine,
    plan: &Plan,
    symbols: &Arc<LayerSymbols>,
    qkv: [TensorRef<'_>; 3],
    full: TensorRef<'_>,
) -> Result<Tensor> {
    let values = full.to_f32();
    let mut sparse = Tensor::from_f32(full.shape(), values.clone())?.cast(full.dtype());
    for index in 0..symbols.groups.len() {
        engine.attend(plan, symbols, index, qkv, None, sparse.as_mut())?;
    }
    let lost = values.iter().zip(sparse.as_ref().to_f32()).map(|(full, sparse)| full - sparse).collect();
    Tensor::from_f32(full.shape(), lost)
}

/// The numbers of a tensor in the type of another of its shape.
pub(super) fn copy(from: TensorRef<'_>, mut to: TensorMut<'_>) {
    let from = from.to_f32();
    match to.values() {
        ValuesMut::F32(values) => values.copy_from_slice(&from),
        ValuesMut::F16(values) => values.iter_mut().zip(from).for_each(|(x, y)| *x = f16::from_f32(y)),
        ValuesMut::Bf16(values) => values.iter_mut().zip(from).for_each(|(x, y)| *x = bf16::from_f32(y)),
    }
}

/// Adds single-precision numbers to a tensor of their shape.
fn add(mut out: TensorMut<'_>, term: TensorRef<'_>) {
    let term = term.to_f32();
    match out.values() {
        ValuesMut::F32(values) => values.iter_mut().zip(term).for_each(|(x, y)| *x += y),
        ValuesMut::F16(values) => values.iter_mut().zip(term).for_each(|(x, y)| *x = f16::from_f32(x.to_f32() + y)),
        ValuesMut::Bf16(values) => values.iter_mut().zip(term).for_each(|(x, y)| *x = bf16::from_f32(x.to_f32() + y)),
    }
}
