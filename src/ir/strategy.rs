//! A strategy over its values: rules, orders of tokens, blocks and the schedule.

use serde::{Deserialize, Serialize};

use super::{Graph, Lower, Model, Place, ValueId};
use crate::source::Span;

/// A segment a strategy asks for.
#[derive(Clone, PartialEq, Debug)]
pub struct LayoutSegment {
    /// Its name.
    pub name: String,
    /// Names of the axes it must have, in any order.
    pub axes: Vec<String>,
    /// Where it was written.
    pub span: Span,
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Blocks to compute. Where no `keep` rule holds, all are.
    Keep,
    /// Blocks not to compute, taken from what is kept.
    Skip,
    /// q-blocks that take the cached feature.
    Cache,
}

/// A rule.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Where it holds: a truth scalar; everywhere without one.
    pub guard: Option<ValueId>,
    /// Which pairs, or for [`Action::Cache`] which queries: its segments and its `where`.
    pub predicate: ValueId,
    /// How its token part becomes blocks.
    pub lower: Lower,
    /// Order of the forecast of [`Action::Cache`], an integer scalar; 0 is plain reuse.
    pub order: Option<ValueId>,
    /// Where it was written.
    pub span: Span,
}

/// A permutation of the tokens of a segment.
#[derive(Clone, PartialEq, Debug)]
pub struct OrderRule {
    /// Where it holds; the last that holds counts.
    pub guard: Option<ValueId>,
    /// The segment; without one, the first that has axes.
    pub segment: Option<String>,
    /// The permutation.
    pub order: Order,
    /// Where it was written.
    pub span: Span,
}

/// Ways to order the tokens of a grid.
#[derive(Clone, PartialEq, Debug)]
pub enum Order {
    /// Row-major over the axes in this order (indices into [`Graph::axes`]).
    Axes(Vec<u8>),
    /// Tile after tile, tiles and the tokens inside them row-major; border tiles are smaller where a size does not
    /// divide. One integer scalar for each axis.
    Tiles(Vec<ValueId>),
    /// Along a generalised Hilbert curve through a grid of three axes, whose neighbours are neighbours in the grid.
    /// # Source
    /// J. Cerveny, gilbert; used by Jenga, arXiv 2505.16864.
    Gilbert,
    /// `order[new] = old` within the segment, from an input: index into [`Graph::tables`].
    Given(u16),
    /// Clusters of queries and of keys, found at run time for each head and sorted one after the other, which are the
    /// blocks of the segment. Numbers are integer scalars.
    Clusters {
        /// Clusters of queries.
        q: ValueId,
        /// Clusters of keys.
        kv: ValueId,
        /// Rounds where nothing is known of the clusters.
        iterations: ValueId,
        /// Rounds where they begin with those of the last time.
        again: ValueId,
        /// What the tokens of a cluster share.
        by: Likeness,
    },
}

/// What the tokens of a cluster share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Likeness {
    /// They are near each other: k-means of each side.
    /// # Source
    /// Sparse VideoGen 2, arXiv 2505.18875, section 4.1.
    Distance,
    /// They have like scores with the clusters of the other side: co-clustering.
    /// # Source
    /// SVOO, `svoo/co_clustering.py::co_cluster_tokens`.
    Profile,
}

impl Order {
    /// The values it refers to.
    pub fn values_mut(&mut self) -> Vec<&mut ValueId> {
        match self {
            Order::Axes(_) | Order::Gilbert | Order::Given(_) => Vec::new(),
            Order::Tiles(sizes) => sizes.iter_mut().collect(),
            Order::Clusters { q, kv, iterations, again, by: _ } => vec![q, kv, iterations, again],
        }
    }
}

/// How tokens become blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocking {
    /// So many query tokens and key tokens a block, integer scalars.
    Sizes(ValueId, ValueId),
    /// A tile is a block, smaller ones at the border too; other segments are cut into runs of a whole tile's size.
    Tiles,
}

/// What a step reuses of the last step that computed its layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Unit {
    /// The output of attention; the feed-forward network is computed.
    /// # Source
    /// Pyramid Attention Broadcast, arXiv 2408.12588.
    Attention,
    /// The outputs of attention and of the feed-forward network, each before its gate.
    /// # Source
    /// FORA, arXiv 2407.01425; TaylorSeer, arXiv 2503.06923.
    Modules,
    /// What the layer adds to its tokens: those behind it less those before it. Over neighbouring layers these add up to what
    /// a range of layers adds, over all layers to what the whole model does.
    /// # Source
    /// TeaCache, arXiv 2411.19108; chengzeyi/ParaAttention `first_block_cache/utils.py`.
    Layer,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Unit; 3] = [Unit::Attention, Unit::Modules, Unit::Layer];

    /// Its word in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Unit::Attention => "attention",
            Unit::Modules => "modules",
            Unit::Layer => "layer",
        }
    }
}

/// What a layer does at a step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StepKind {
    /// Attention in full, symbols and caches untouched.
    Dense,
    /// Attention in full; symbols and caches are refreshed.
    Update,
    /// Symbols are refreshed from this step's q and k and obeyed.
    Refresh,
    /// Symbols are obeyed.
    Dispatch,
    /// What the unit names is not computed but forecast from the steps that did.
    Reuse(Unit),
    /// Symbols are obeyed, and what they left out at the last update is added: its output in full less the one under them.
    /// # Source
    /// DiTFastAttn, arXiv 2406.08552, section 3.2.
    Residual,
    /// The output is that of the other branch of classifier-free guidance at the same step, which the host hands over.
    /// # Source
    /// DiTFastAttn, arXiv 2406.08552, section 3.4.
    Shared,
}

impl StepKind {
    /// Every kind. Plan files hold indices of it, so that new kinds come last.
    pub const ALL: [StepKind; 9] = [
        StepKind::Dense,
        StepKind::Update,
        StepKind::Refresh,
        StepKind::Dispatch,
        StepKind::Reuse(Unit::Attention),
        StepKind::Residual,
        StepKind::Shared,
        StepKind::Reuse(Unit::Modules),
        StepKind::Reuse(Unit::Layer),
    ];

    /// `dense`, `update`, ..., as in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StepKind::Dense => "dense",
            StepKind::Update => "update",
            StepKind::Refresh => "refresh",
            StepKind::Dispatch => "dispatch",
            StepKind::Reuse(Unit::Attention) => "reuse",
            StepKind::Reuse(Unit::Modules) => "reuse modules",
            StepKind::Reuse(Unit::Layer) => "reuse layer",
            StepKind::Residual => "residual",
            StepKind::Shared => "shared",
        }
    }

    /// Whether attention is computed under symbols.
    #[must_use]
    pub fn obeys_symbols(self) -> bool {
        matches!(self, StepKind::Refresh | StepKind::Dispatch | StepKind::Residual)
    }

    /// Whether an earlier step's output is reused, of whatever unit.
    #[must_use]
    pub fn is_reuse(self) -> bool {
        matches!(self, StepKind::Reuse(_))
    }
}

/// A line of a schedule. The first that holds decides; where none does, see [`Strategy::schedule`].
#[derive(Clone, PartialEq, Debug)]
pub struct ScheduleRule {
    /// What happens.
    pub kind: StepKind,
    /// Layers it holds in: a truth scalar.
    pub guard: Option<ValueId>,
    /// All must hold.
    pub clauses: Vec<Clause>,
    /// Order of the forecast of [`StepKind::Reuse`]; 0 without one.
    pub order: Option<ValueId>,
    /// Where it was written.
    pub span: Span,
}

/// When a line of a schedule holds.
#[derive(Clone, PartialEq, Debug)]
pub enum Clause {
    /// A truth scalar.
    While(ValueId),
    /// Steps `from`, `from + interval`, ...; without `from`, counted from the first step at which no line above and
    /// no other clause of this line says otherwise.
    Every {
        /// At least 1.
        interval: ValueId,
        /// First step.
        from: Option<ValueId>,
        /// All steps but those.
        except: bool,
    },
    /// The steps of a list.
    On {
        /// Integer scalars.
        steps: Vec<ValueId>,
        /// All steps but those.
        except: bool,
    },
}

/// A bound of a guard, to be compared with the model.
#[derive(Clone, PartialEq, Debug)]
pub struct Bound {
    /// What is counted.
    pub place: Place,
    /// The bound, an integer scalar.
    pub value: ValueId,
    /// Whether it is one past the last.
    pub exclusive: bool,
    /// Where it was written.
    pub span: Span,
}

/// The shape of an input that was given, and the shape that the strategy asks for.
#[derive(Clone, PartialEq, Debug)]
pub struct InputShape {
    /// The name of the input.
    pub name: String,
    /// Its sizes, outermost first.
    pub given: Vec<u32>,
    /// The sizes asked for, integer scalars.
    pub declared: Vec<ValueId>,
    /// Where they were written.
    pub span: Span,
}

/// A number in the text of a parameter that only the model tells.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenParam {
    /// Index of the parameter.
    pub param: u32,
    /// The byte of its text before which the number stands.
    pub at: u32,
    /// The number.
    pub value: ValueId,
}

/// A strategy.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Strategy {
    /// Its name.
    pub name: String,
    /// Parameters and their values as text, for provenance.
    pub params: Vec<(String, String)>,
    /// The values.
    pub graph: Graph,
    /// Segments it asks for.
    pub layout: Vec<LayoutSegment>,
    /// The model, once bound.
    pub model: Option<Model>,
    /// Orders of tokens.
    pub orders: Vec<OrderRule>,
    /// How tokens become blocks; 128 a block without it.
    pub block: Option<Blocking>,
    /// Where they were written.
    pub block_span: Span,
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// The lines of the schedule. Where none holds: [`StepKind::Dispatch`] when the strategy needs no q and k or
    /// some line updates or refreshes, else [`StepKind::Refresh`].
    pub schedule: Vec<ScheduleRule>,
    /// Bounds of guards.
    pub bounds: Vec<Bound>,
    /// What the texts of parameters lack, in the order of their places; nothing once the model is known.
    pub open_params: Vec<OpenParam>,
    /// Shapes of inputs, to be compared with what the model makes of them.
    pub inputs: Vec<InputShape>,
    /// Deviations of published code that the rules reproduce.
    pub quirks: Vec<String>,
}
