//! A plan: a strategy bound to a model and normalised into symbols, schedule and selector programs.
//!
//! Everything that does not depend on q and k is folded. Each (step, layer, head) belongs to a [`Class`]; a
//! class either has its symbols ready ([`Body::Static`]) or names a selector [`Program`] that computes them when a
//! step refreshes them. Bitmaps and classes that are the same are stored once, so that a table of 72,000
//! windows with six different values costs six bitmaps.

pub mod check;
pub mod file;
mod head_symbols;
mod record;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use head_symbols::HeadSymbols;

use crate::ir::{Graph, Likeness, Model, Op, Part, Segment, Side, Source, StepKind, ValueId};
use crate::symbols::{BitMatrix, Blocks, draw};

/// Index into [`Plan::masks`].
pub type MaskId = u32;

/// A compiled strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name of the strategy.
    pub strategy: String,
    /// Parameters and their values as text.
    pub params: Vec<(String, String)>,
    /// Deviations of published code that it reproduces.
    pub quirks: Vec<String>,
    /// The model it was compiled for.
    pub model: Model,
    /// Orders of tokens with their blocks; classes refer to them.
    pub arrangements: Vec<Arrangement>,
    /// What each layer does at each step.
    pub schedule: Schedule,
    /// Bitmaps: of blocks `[q_blocks][kv_blocks]`, or of q-blocks `[1][q_blocks]`. No two are equal.
    pub masks: Vec<BitMatrix>,
    /// Selector programs.
    pub programs: Vec<Program>,
    /// Token predicates of partial blocks.
    pub predicates: Vec<Predicate>,
    /// Classes; no two are equal.
    pub classes: Vec<Class>,
    /// The class of each (step, layer, head), row-major.
    pub class_of: Vec<u32>,
}

/// An order of the tokens and the blocks over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrangement {
    /// `order[new] = old`; `None` for the model's own order.
    pub order: Option<Vec<u32>>,
    /// The tiles that the order goes through, where it does.
    pub tiling: Option<Tiling>,
    /// The clusters that become blocks of a segment at run time, where they do; `order` is `None` then, and `blocks` gives
    /// clusters their number, not their sizes.
    pub clustering: Option<Clustering>,
    /// The blocks.
    pub blocks: Blocks,
}

/// Clusters of the tokens of a segment, for each head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clustering {
    /// The segment that is clustered.
    pub segment: String,
    /// Clusters of queries, 1 to the segment's tokens.
    pub q: u32,
    /// Clusters of keys, 1 to the segment's tokens.
    pub kv: u32,
    /// Rounds where nothing is known of the clusters, at least 1.
    pub iterations: u32,
    /// Rounds where they begin with those of the last time, at least 1.
    pub again: u32,
    /// What the tokens of a cluster share.
    pub by: Likeness,
}

/// Tiles of a grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiling {
    /// The segment that is tiled.
    pub segment: String,
    /// Tokens of a tile along each axis of the segment, at least 1.
    pub sizes: Vec<u32>,
}

/// What each layer does at each step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Number of layers.
    pub layers: u32,
    /// `[steps][layers]`, row-major.
    pub kinds: Vec<StepKind>,
    /// Order of the forecast of each [`StepKind::Reuse`] of `kinds`, 0 elsewhere; at most 4.
    pub reuse_orders: Vec<u8>,
}

impl Schedule {
    /// What `layer` does at `step`.
    #[must_use]
    pub fn kind(&self, step: u32, layer: u32) -> StepKind {
        self.kinds[(step * self.layers + layer) as usize]
    }

    /// The order of the forecast where `layer` reuses at `step`; 0 elsewhere.
    #[must_use]
    pub fn reuse_order(&self, step: u32, layer: u32) -> usize {
        self.reuse_orders[(step * self.layers + layer) as usize].into()
    }

    /// The step whose q and k choose the symbols that `layer` obeys at `step`: itself where it chooses or computes in full,
    /// else the last update or refresh before it. The first step that obeys symbols nobody has chosen is run as an update.
    #[must_use]
    pub fn chosen_at(&self, step: u32, layer: u32) -> u32 {
        let chooses = |step: &u32| matches!(self.kind(*step, layer), StepKind::Update | StepKind::Refresh);
        let obeys = |kind| matches!(kind, StepKind::Dispatch | StepKind::Residual);
        if !obeys(self.kind(step, layer)) && !self.kind(step, layer).is_reuse() {
            return step;
        }
        let first = || (0..step).find(|&step| obeys(self.kind(step, layer)));
        (0..step).rev().find(chooses).or_else(first).unwrap_or(step)
    }

    /// What `layer` does at each step, a letter each: `D` dense, `U` update, `R` refresh, `.` dispatch, `+` dispatch with the
    /// residual, `=` the other branch's output, and reuse of whatever unit as the order of its forecast.
    #[must_use]
    pub fn letters(&self, layer: u32) -> String {
        let steps = self.kinds.chunks(self.layers as usize).zip(self.reuse_orders.chunks(self.layers as usize));
        let letter = |(kinds, orders): (&[StepKind], &[u8])| match kinds[layer as usize] {
            StepKind::Dense => 'D',
            StepKind::Update => 'U',
            StepKind::Refresh => 'R',
            StepKind::Dispatch => '.',
            StepKind::Residual => '+',
            StepKind::Shared => '=',
            StepKind::Reuse(_) => char::from(b'0' + orders[layer as usize]),
        };
        steps.map(letter).collect()
    }
}

/// What a term of a program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Blocks computed as a whole.
    Whole,
    /// Blocks computed under the class's token predicate unless they are whole.
    Partial,
    /// Blocks not computed.
    Skip,
    /// q-blocks that take the cached feature.
    Cache,
}

/// A selector program: the part of a class's rules that needs q and k.
///
/// [`HeadSymbols::of_terms`] joins the terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Values; bitmaps known already are [`crate::ir::Op::Mask`].
    pub graph: Graph,
    /// Truth values over all blocks: scalars, vectors or matrices; of q-blocks for [`Role::Cache`].
    pub terms: Vec<(Role, ValueId)>,
}

impl Program {
    /// What it asks the host to measure: names, and the side of those with a number for each token.
    #[must_use]
    pub fn measured(&self) -> Vec<(&str, Option<Side>)> {
        let asked = self.graph.values().filter_map(|(_, value)| match &value.op {
            Op::Measured { name, over } => Some((name.as_str(), over.map(|(side, _)| side))),
            _ => None,
        });
        asked.collect()
    }

    /// Whether it reads the vectors of a source.
    #[must_use]
    pub fn reads(&self, source: Source) -> bool {
        self.graph.values().any(|(_, value)| value.op.reads(source))
    }
}

/// A token predicate over the tokens of an arrangement, free of places.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    /// Its values.
    pub graph: Graph,
    /// The predicate.
    pub value: ValueId,
}

/// What a head does with its symbols at a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// Index into [`Plan::arrangements`].
    pub arrangement: u32,
    /// Its symbols.
    pub body: Body,
    /// Index into [`Plan::predicates`], where blocks may be partial.
    pub predicate: Option<u32>,
    /// Order of the forecast of cached q-blocks, at most 4.
    pub forecast_order: u8,
}

/// Where a class's symbols come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// They are known.
    Static {
        /// `S_s`.
        skip: MaskId,
        /// `S_p`, where there are partial blocks.
        partial: Option<MaskId>,
        /// `S_c`, `[1][q_blocks]`.
        cache: MaskId,
    },
    /// A program computes them.
    Dynamic {
        /// Index into [`Plan::programs`].
        program: u32,
        /// The bitmaps of the program's mask slots.
        masks: Vec<MaskId>,
    },
}

impl Plan {
    /// Whether another plan differs in its schedule at most.
    #[must_use]
    pub fn is_same_but_for_schedule(&self, other: &Plan) -> bool {
        // Without `..`, so that a new field is not forgotten.
        let Plan {
            strategy,
            params,
            quirks,
            model,
            arrangements,
            schedule: _,
            masks,
            programs,
            predicates,
            classes,
            class_of,
        } = self;
        *strategy == other.strategy
            && *params == other.params
            && *quirks == other.quirks
            && *model == other.model
            && *arrangements == other.arrangements
            && *masks == other.masks
            && *programs == other.programs
            && *predicates == other.predicates
            && *classes == other.classes
            && *class_of == other.class_of
    }

    /// The model's segments, to be drawn beside a mask.
    #[must_use]
    pub fn drawn_segments(&self) -> Vec<draw::Segment> {
        let of = |segment: &Segment| draw::Segment {
            name: segment.name.clone(),
            start_token: segment.start,
            end_token: segment.start + segment.tokens,
        };
        self.model.segments.iter().map(of).collect()
    }

    /// The class of a head at a step.
    #[must_use]
    pub fn class(&self, step: u32, layer: u32, head: u32) -> &Class {
        &self.classes[self.class_of[self.place(step, layer, head)] as usize]
    }

    /// Index of a head at a step in [`Plan::class_of`].
    #[must_use]
    pub fn place(&self, step: u32, layer: u32, head: u32) -> usize {
        ((step * self.model.layers + layer) * self.model.heads + head) as usize
    }

    /// Whether the symbols of a class depend on tensors of the step, q and k above all, or where its blocks begin.
    #[must_use]
    pub fn needs_qk(&self, class: &Class) -> bool {
        let arrangement = &self.arrangements[class.arrangement as usize];
        matches!(class.body, Body::Dynamic { .. }) || arrangement.clustering.is_some()
    }

    /// Whether some class needs q and k.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        self.classes.iter().any(|class| self.needs_qk(class))
    }
}

/// The blocks of a side that hold a token of a set, ascending.
#[must_use]
pub fn blocks_of_set(model: &Model, parts: &[Part], blocks: &Blocks, side: Side) -> Vec<u32> {
    let offsets = match side {
        Side::Query => &blocks.q,
        Side::Key => &blocks.kv,
    };
    let ranges = model.ranges(parts);
    (0..offsets.len() - 1)
        .filter(|&b| ranges.iter().any(|&(start, end)| offsets[b] < end && offsets[b + 1] > start))
        .map(|b| b as u32)
        .collect()
}
