//! What the steps of a layer reuse: outputs of the steps that computed it, kept and forecast.
//!
//! The output of attention is kept as it comes by, in [`Step::attention`] or, projected, in [`Step::project_out`]. What a
//! session does not compute, the host hands over with [`Step::remember`] and gets back from [`Step::recall`]: the output of
//! the feed-forward network and what the whole layer adds. All of it lies in one [`Memory`]; only what some step reuses
//! is copied. A host that hands nothing over has the output of attention reused, whatever the unit.

use std::fmt;
use std::ops::Range;

use super::session::Step;
use crate::cpu::Taylor;
use crate::error::{Error, Result};
use crate::ir::{StepKind, Unit};
use crate::plan::Plan;
use crate::tensor::{TensorMut, TensorRef};

/// The highest order of the forecasts of each unit, by its place in [`Unit::ALL`], where some step reuses it.
pub(super) type Orders = [Option<usize>; Unit::ALL.len()];

/// An output that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Output {
    /// That of attention, by heads.
    Heads,
    /// That of a unit for some tokens; of attention behind its projection.
    Tokens(Unit, Range<usize>),
}

/// The outputs of a layer at the steps that computed them.
#[derive(Debug)]
pub(super) struct Memory {
    orders: Orders,
    /// Units that the host hands over.
    given: Vec<Unit>,
    kept: Vec<(Output, Taylor)>,
}

impl Output {
    fn unit(&self) -> Unit {
        match self {
            Output::Heads => Unit::Attention,
            Output::Tokens(unit, _) => *unit,
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Output::Heads => f.write_str("output of attention"),
            Output::Tokens(Unit::Attention, tokens) => write!(f, "projected output of tokens {tokens:?}"),
            Output::Tokens(Unit::Modules, tokens) => {
                write!(f, "output of the feed-forward network for tokens {tokens:?}")
            }
            Output::Tokens(Unit::Layer, tokens) => write!(f, "residual of tokens {tokens:?}"),
        }
    }
}

/// The units that steps of a plan reuse.
pub(super) fn units(plan: &Plan) -> impl Iterator<Item = Unit> {
    Unit::ALL.into_iter().filter(|unit| plan.schedule.kinds.contains(&StepKind::Reuse(*unit)))
}

/// What the steps of a layer reuse.
pub(super) fn orders(plan: &Plan, layer: u32) -> Orders {
    let mut orders = Orders::default();
    for step in 0..plan.model.steps {
        if let StepKind::Reuse(unit) = plan.schedule.kind(step, layer) {
            let order = &mut orders[unit as usize];
            *order = (*order).max(Some(plan.schedule.reuse_order(step, layer)));
        }
    }
    orders
}

impl Memory {
    /// Nothing is known yet.
    pub(super) fn new(plan: &Plan, layer: u32) -> Self {
        Memory { orders: orders(plan, layer), given: Vec::new(), kept: Vec::new() }
    }

    /// Keeps from now on what a further plan asks for, and of the `units` also what none has asked for in this layer yet.
    pub(super) fn adopt(&mut self, plan: &Plan, layer: u32, units: &[Unit]) {
        for (unit, asked) in Unit::ALL.into_iter().zip(orders(plan, layer)) {
            let order = self.orders[unit as usize].max(asked);
            self.orders[unit as usize] = units.contains(&unit).then_some(order.unwrap_or(0));
        }
        self.drop_unused();
    }

    /// The order up to which the output of a unit is kept, where it is.
    fn order(&self, unit: Unit) -> Option<usize> {
        match unit {
            Unit::Attention => {
                // It stands for whole layers until the host hands over what these add.
                let stands_for = |unit: &Unit| *unit != Unit::Layer || !self.given.contains(unit);
                Unit::ALL.into_iter().filter(stands_for).filter_map(|unit| self.orders[unit as usize]).max()
            }
            Unit::Modules | Unit::Layer => self.orders[unit as usize],
        }
    }

    /// Takes an output that a step has computed, if some step reuses it.
    pub(super) fn keep(&mut self, output: Output, step: usize, values: TensorRef<'_>) -> Result<()> {
        let Some(order) = self.order(output.unit()) else { return Ok(()) };
        let index = match self.kept.iter().position(|(known, _)| *known == output) {
            Some(index) => index,
            None => {
                self.kept.push((output, Taylor::new(order, values.shape())?));
                self.kept.len() - 1
            }
        };
        let taylor = &mut self.kept[index].1;
        // A schedule that the session has adopted may ask for more than those before.
        taylor.reserve(order)?;
        taylor.update(step, values)
    }

    /// Notes that the host hands over the output of a unit.
    fn give(&mut self, unit: Unit) {
        if !self.given.contains(&unit) {
            self.given.push(unit);
            self.drop_unused();
        }
    }

    fn drop_unused(&mut self) {
        let mut kept = std::mem::take(&mut self.kept);
        kept.retain(|(output, _)| self.order(output.unit()).is_some());
        self.kept = kept;
    }

    /// An output that some step has computed.
    fn find(&self, output: &Output) -> Option<&Taylor> {
        let known = |(known, taylor): &&(Output, Taylor)| known == output && taylor.known() > 0;
        self.kept.iter().find(known).map(|(_, taylor)| taylor)
    }

    /// Whether a step that reuses a unit has nothing to reuse.
    pub(super) fn lacks(&self, unit: Unit) -> bool {
        let knows = |unit| self.kept.iter().any(|(output, taylor)| output.unit() == unit && taylor.known() > 0);
        let is_given = self.given.contains(&unit);
        match unit {
            Unit::Layer if is_given => !knows(unit),
            Unit::Modules if is_given => !knows(unit) || !knows(Unit::Attention),
            Unit::Attention | Unit::Modules | Unit::Layer => !knows(Unit::Attention),
        }
    }

    /// Forgets the generation.
    pub(super) fn reset(&mut self) {
        self.kept.iter_mut().for_each(|(_, taylor)| taylor.reset());
    }
}

impl Step<'_> {
    /// Hands over what the host has computed at this step, for later ones to reuse: of [`Unit::Modules`] the output of the
    /// feed-forward network before its gate, of [`Unit::Layer`] what the layer adds to its tokens. It is copied if some
    /// step of the layer reuses the unit. At a step that itself reuses something, whatever the unit, nothing happens: only steps
    /// that computed the layer count. The output of attention needs no call.
    ///
    /// # Shapes
    /// `output`: `[tokens.len(), channels]`, row-major, f32, f16 or bf16. Every range of tokens has a memory of its own.
    ///
    /// # Errors
    /// [`Error::Shape`] when the rows are not the tokens, or other channels than before; [`Error::State`] for
    /// [`Unit::Attention`], and when these tokens were handed over at this step already.
    ///
    /// # Examples
    /// ```
    /// use flashomni::ir::{StepKind, Unit};
    /// use flashomni::runtime::Session;
    /// use flashomni::tensor::{Dtype, Tensor};
    ///
    /// let plan = flashomni::compile(
    ///     "model tiny { layers 1 heads 1 head_dim 16 steps 4 tokens text(2) }
    ///      strategy lines { schedule { reuse layer as taylor(1) while step >= 2 } }",
    /// )?;
    /// let mut session = Session::new(plan)?;
    /// let mut added = Tensor::zeros(&[2, 3], Dtype::F32);
    /// for step in 0..4 {
    ///     let mut at = session.begin(step, 0)?;
    ///     if at.kind() == StepKind::Reuse(Unit::Layer) {
    ///         at.recall(Unit::Layer, 0..2, added.as_mut())?;
    ///     } else {
    ///         // A host computes the layer here.
    ///         added = Tensor::from_f32(&[2, 3], vec![step as f32; 6])?;
    ///         at.remember(Unit::Layer, 0..2, added.as_ref())?;
    ///     }
    /// }
    /// assert_eq!(added.as_ref().to_f32(), [3.0; 6]);
    /// # Ok::<(), flashomni::Error>(())
    /// ```
    pub fn remember(&mut self, what: Unit, tokens: Range<usize>, output: TensorRef<'_>) -> Result<()> {
        self.is_handed_over(what)?;
        let all = self.session.plan().model.tokens() as usize;
        if tokens.start > tokens.end || tokens.end > all {
            return Err(Error::Shape(format!("tokens {tokens:?} were handed over, there are {all}")));
        }
        if output.shape().len() != 2 || output.shape()[0] != tokens.len() {
            let shape = output.shape();
            return Err(Error::Shape(format!("`output` has the shape {shape:?}, for tokens {tokens:?}")));
        }
        if self.kind.is_reuse() {
            return Ok(());
        }
        let step = self.step as usize;
        let memory = &mut self.state().memory;
        memory.give(what);
        memory.keep(Output::Tokens(what, tokens), step, output)
    }

    /// At a step of kind [`StepKind::Reuse`]: what [`Step::remember`] took for these tokens at the last steps that computed
    /// the layer, forecast by the order that the schedule asks for at this one.
    ///
    /// # Shapes
    /// `out`: `[tokens.len(), channels]`, row-major, f32, f16 or bf16.
    ///
    /// # Errors
    /// [`Error::State`] for [`Unit::Attention`], when the step does not reuse the unit and when nothing was remembered of these
    /// tokens; [`Error::Shape`] when `out` has another shape than what was.
    pub fn recall(&self, what: Unit, tokens: Range<usize>, out: TensorMut<'_>) -> Result<()> {
        self.is_handed_over(what)?;
        let output = Output::Tokens(what, tokens);
        if self.kind != StepKind::Reuse(what) {
            let (step, layer) = (self.step, self.layer);
            return Err(Error::State(format!("step {step} of layer {layer} does not reuse the {output}")));
        }
        self.forecast(&output, out)
    }

    /// The error where a session keeps the output itself.
    fn is_handed_over(&self, what: Unit) -> Result<()> {
        if what != Unit::Attention {
            return Ok(());
        }
        let message = "the output of attention is kept and forecast by `project_out`, or by `attention`";
        Err(Error::State(message.to_owned()))
    }

    /// The forecast of an output, by the order that the schedule asks for at this step.
    pub(super) fn forecast(&self, output: &Output, out: TensorMut<'_>) -> Result<()> {
        let (step, layer) = (self.step, self.layer);
        let Some(taylor) = self.session.layers[layer as usize].memory.find(output) else {
            return Err(Error::State(format!("layer {layer} has no {output} that step {step} could reuse")));
        };
        taylor.forecast(step as usize, self.session.plan().schedule.reuse_order(step, layer), out)
    }
}
