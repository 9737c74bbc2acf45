//! The typed intermediate representation: what a strategy means, without how it was written.
//!
//! A [`Strategy`] is a [`Graph`] of values and lists of rules that refer to them. The graph is in static
//! single assignment form and hash-consed: an operand always has a smaller id than its user, and equal
//! operations over equal operands are one value. This file is the specification of every operation.
//!
//! # Extents
//! A value is a scalar, varies over tokens, or varies over blocks ([`Extent`]). Scalars may depend on the
//! place (step, layer, head). Token values are geometry, known when the plan is built. Block values are single-precision tensors over blocks, known when q and k are.
//!
//! # Numeric contract
//! Integers are 64 bits and saturate (token values are exact up to 2^53); `//` and `mod` by zero give 0; `mod` has the sign of the divisor.
//! Scalar reals are double precision, evaluated once on the host and rounded to single precision where they
//! meet a block value. Block arithmetic is IEEE single precision, one operation at a time: no contraction,
//! no reassociation. Sums over blocks have one order, see [`Op::Reduce`]; the exponential is a fixed
//! polynomial, see `reference::math`. Ties go to the lower index. Comparisons with NaN are false.

mod forms;
mod graph;
mod model;
pub mod print;
pub mod read;
#[cfg(test)]
pub(crate) mod samples;
pub mod scalar;
mod strategy;
#[cfg(test)]
mod tests;
pub mod typing;
pub mod validate;

use std::fmt;

pub use graph::{Graph, Table, Value};
pub use model::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_STEPS, Model, Segment};
pub use strategy::{
    Action, Blocking, Bound, Clause, InputShape, LayoutSegment, Likeness, OpenParam, Order, OrderRule, Rule,
    ScheduleRule, StepKind, Strategy, Unit,
};

/// How many tokens a block may have.
pub const BLOCK_TOKENS: std::ops::RangeInclusive<i64> = 8..=256;

/// A value of a [`Graph`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ValueId(pub u32);

/// A set of segments of a [`Graph`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetId(pub u16);

impl SetId {
    /// The blocks of the whole sequence; every graph has it as its first set.
    pub const ALL: SetId = SetId(0);
}

/// What the elements of a [`Set`] are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Grain {
    /// The blocks that hold a token of it.
    Blocks,
    /// Its tokens.
    Tokens,
    /// The last of its tokens, so many, or all where it has fewer.
    Last(u32),
    /// Those of its tokens that stand in rows that were given: index into [`Graph::rows`].
    Rows(u16),
    /// The distances from a query back to a key: 0 up to one less than the tokens of the sequence.
    Distances,
}

impl Grain {
    /// Whether the elements are tokens.
    #[must_use]
    pub fn is_tokens(self) -> bool {
        matches!(self, Grain::Tokens | Grain::Last(_) | Grain::Rows(_))
    }
}

/// Positions of tokens that were given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rows {
    /// The input they come from, for messages; empty where they were written out.
    pub name: String,
    /// Ascending and distinct; none where nobody has given the input.
    pub tokens: Vec<u32>,
}

/// Tokens of some segments, and how they are looked at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Set {
    /// The segments, none for the whole sequence.
    pub parts: Vec<Part>,
    /// What its elements are.
    pub grain: Grain,
}

/// Queries or keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// Rows.
    Query,
    /// Columns.
    Key,
}

impl Side {
    /// Queries of queries, keys of keys.
    #[must_use]
    pub fn source(self) -> Source {
        match self {
            Side::Query => Source::Query,
            Side::Key => Source::Key,
        }
    }
}

/// Tensors of a layer that vectors come from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values; their elements are those of the keys.
    Value,
}

impl Source {
    /// Every source.
    pub const ALL: [Source; 3] = [Source::Query, Source::Key, Source::Value];

    /// Its tensor's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Source::Query => "q",
            Source::Key => "k",
            Source::Value => "v",
        }
    }

    /// Whose elements it has.
    #[must_use]
    pub fn side(self) -> Side {
        match self {
            Source::Query => Side::Query,
            Source::Key | Source::Value => Side::Key,
        }
    }
}

/// The axes along which a reduction, a softmax or a selection goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Over {
    /// Along the q-blocks: each kv-block on its own.
    Query,
    /// Along the kv-blocks: each q-block on its own.
    Key,
    /// Along both: all blocks of the head are one line, row after row.
    Both,
    /// Along both and all heads of the layer: one line, head after head. Only of selections.
    Layer,
    /// Along the heads of the layer: each element on its own. Only of selections.
    Heads,
}

impl From<Side> for Over {
    fn from(side: Side) -> Self {
        match side {
            Side::Query => Over::Query,
            Side::Key => Over::Key,
        }
    }
}

/// What a value's elements are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Truth values.
    Bool,
    /// Integers.
    Int,
    /// Reals.
    Real,
}

/// What a value varies over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extent {
    /// One value for each (step, layer, head) at most.
    Scalar,
    /// A value for each query token, key token or pair.
    Token {
        /// Varies over query tokens.
        q: bool,
        /// Varies over key tokens.
        kv: bool,
    },
    /// A value for each element of the queries' set, of the keys' set, or each pair. The elements of a set are blocks, unless
    /// its [`Grain`] says otherwise.
    Blocks {
        /// The queries.
        q: Option<SetId>,
        /// The keys.
        kv: Option<SetId>,
    },
    /// A vector of `head_dim` numbers for each element of a set of a side.
    Vectors(Side, SetId),
    /// Truth values that join token and block values; the predicate of a rule before lowering.
    Mixed,
}

impl Extent {
    /// The sets along the axes of a block value, the queries' first; none for all else.
    #[must_use]
    pub fn sets(self) -> [Option<SetId>; 2] {
        match self {
            Extent::Blocks { q, kv } => [q, kv],
            _ => [None, None],
        }
    }
}

/// The type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// What its elements are.
    pub kind: Kind,
    /// What it varies over.
    pub extent: Extent,
}

impl Type {
    /// A type.
    #[must_use]
    pub fn new(kind: Kind, extent: Extent) -> Self {
        Type { kind, extent }
    }

    /// A scalar type.
    #[must_use]
    pub fn scalar(kind: Kind) -> Self {
        Type { kind, extent: Extent::Scalar }
    }
}

/// A real constant, compared by its bits.
#[derive(Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A size that the model gives; replaced by a constant when the model is bound.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Size {
    /// Number of layers.
    Layers,
    /// Number of heads.
    Heads,
    /// Channels of a head.
    HeadDim,
    /// Number of denoising steps.
    Steps,
    /// Tokens of a set of segments.
    Tokens(SetId),
    /// Size of an axis of the segment with coordinates (index into [`Graph::axes`]).
    Axis(u8),
    /// Number of blocks of a side that hold a token of the set.
    Blocks(SetId, Side),
}

/// Where in the computation a scalar is evaluated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// Denoising step, from 0.
    Step,
    /// Layer, from 0.
    Layer,
    /// Head, from 0.
    Head,
}

/// A coordinate of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Coordinate {
    /// Position in the reordered sequence.
    Position,
    /// Block that holds it.
    Block,
    /// Index in its segment, in the model's order.
    Index,
    /// Coordinate along an axis (index into [`Graph::axes`]); 0 where the segment lacks the axis.
    Axis(u8),
    /// Coordinate of its tile along the n-th axis of the tiled segment; 0 elsewhere.
    Tile(u8),
}

/// Functions of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unary {
    /// `-x`
    Negate,
    /// `not x`
    Not,
    /// `|x|`
    Abs,
    /// Square root; of a block value correctly rounded.
    Sqrt,
    /// Exponential, by the fixed polynomial on block values.
    Exp,
    /// Natural logarithm; not of block values.
    Log,
    /// Rounded down, to an integer; not of block values.
    Floor,
    /// Rounded up, to an integer; not of block values.
    Ceil,
    /// Rounded to nearest, ties to even, to an integer; not of block values.
    Round,
    /// Number of bits of a non-negative integer: 0 for 0, else `floor(log2(x)) + 1`.
    BitLength,
    /// An integer or truth value as a real.
    ToReal,
}

/// Functions of two operands of one kind; the result has that kind (truth values: `And`, `Or`, `Xor`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Subtract,
    /// `a * b`
    Multiply,
    /// `a / b`, reals.
    Divide,
    /// `a // b`, integers, rounded down.
    FloorDivide,
    /// `a mod b`, integers.
    Modulo,
    /// `a ^ b`: not of block values, integers saturate; a negative exponent of integers gives 0.
    Power,
    /// The smaller; the second where one is NaN.
    Min,
    /// The larger; the second where one is NaN.
    Max,
    /// Bits of integers, or truth values.
    Xor,
    /// `a and b`
    And,
    /// `a or b`
    Or,
}

/// Comparisons of two operands of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
}

/// A statistic of the tokens of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Statistic {
    /// Mean: for each channel the sum over the block's tokens, in order, divided by their number.
    Mean,
    /// [`Statistic::Mean`] minus the mean over the whole sequence (the sum of the block sums in block order,
    /// divided by the number of tokens).
    CentredMean,
    /// For each channel the smallest of the block's tokens.
    Min,
    /// For each channel the largest of the block's tokens.
    Max,
}

/// How an axis is reduced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reduction {
    /// Sum, in the order of [`Op::Reduce`].
    Sum,
    /// Sum divided by the number of elements.
    Mean,
    /// Largest, NaN ignored.
    Max,
    /// Smallest, NaN ignored.
    Min,
}

/// How a token predicate becomes a block predicate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lower {
    /// The block holds a pair that satisfies it.
    Any,
    /// All pairs of the block satisfy it.
    All,
    /// The pair of the blocks' centre tokens (`start + size // 2`) satisfies it.
    Centre,
    /// As [`Lower::Any`], and the block is computed under the predicate where not all pairs satisfy it.
    Exact,
    /// More than the share `block` of the non-empty key columns of the block are satisfied by more than the
    /// share `column` of the block's rows. With an axis, pairs of different coordinates along it
    /// are voted on apart, and one positive vote is enough.
    /// # Source
    /// Radial Attention, `attn_mask.py::gen_log_mask_shrinked`.
    Density {
        /// Share of the rows that makes a column count.
        column: Real,
        /// Share of the columns that makes the block count.
        block: Real,
        /// Axis of `per` (index into [`Graph::axes`]).
        per: Option<u8>,
    },
}

/// Rounding of a share to a number of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rounding {
    /// Down.
    Floor,
    /// Up.
    Ceil,
    /// To nearest, ties to even.
    Nearest,
}

/// The rule of a selection among `n` candidates: the elements of a row (`over` = [`Over::Key`]), of a
/// column ([`Over::Query`]), of the whole map of a head ([`Over::Both`]), or of a vector.
///
/// The amount is a scalar, or a block value with one element for each line; of a count it is then the number itself, rounded
/// down.
///
/// Rankings are by value, then by lower index; NaN ranks below everything and is never selected, nor is
/// minus infinity. Running sums add in ranking order in single precision.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Selector {
    /// The `amount` largest: a count when it is an integer, else `rounding(amount * n)` (the product in
    /// double precision), at least `at_least`.
    TopK {
        /// How a share becomes a count.
        rounding: Rounding,
        /// Whether those that equal the last one are selected too, however many they are.
        ties: bool,
    },
    /// The `amount` smallest, counted as in [`Selector::TopK`].
    BottomK {
        /// How a share becomes a count.
        rounding: Rounding,
    },
    /// A set that holds the mass `amount`.
    ///
    /// Descending (`ascending` false): with running sums `c` in descending order, kept while the sum
    /// *before* the element is `<= amount` (`crossing` true: the element that crosses is kept), or while the sum
    /// *with* it is `<= amount` (`crossing` false). Ascending: with running sums from the smallest on,
    /// kept where `c >= 1 - amount`. `strict` turns `<=` into `<` and `>=` into `>`. The first `at_least` of
    /// the descending order are kept in any case.
    TopP {
        /// Whether the element that crosses the mass is kept.
        crossing: bool,
        /// Whether sums start at the smallest.
        ascending: bool,
        /// Whether equality is left out.
        strict: bool,
    },
    /// The smallest whose running sum, from the smallest on, is `<= amount`.
    /// # Source
    /// FlashOmni, section 3.3.
    BottomMass,
    /// Those above `mean + deviation * quantile(amount)`: mean and population standard deviation of the
    /// candidates, quantile of the standard normal distribution.
    /// # Source
    /// Spark Transformer, arXiv 2506.06644.
    Statistical,
}

/// An operation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A real.
    Real(Real),
    /// A size of the model.
    Size(Size),
    /// Step, layer or head.
    Place(Place),
    /// The last step before this one at which the layer was computed, -1 before the first. Only in schedules.
    LastComputed,
    /// How many steps before this one reused the layer's output. Only in schedules.
    ReusedSteps,
    /// The sum of a real number over the steps after [`Op::LastComputed`], this one included, ascending, in double precision.
    /// The number does not look back itself. Only in schedules.
    Accumulated(ValueId),
    /// The `item`-th number of the entry of a table at integer `keys`; `otherwise` where it has none.
    Table {
        /// Index into [`Graph::tables`].
        table: u16,
        /// Which number of the entry.
        item: u8,
        /// One index for each dimension of the table.
        keys: Vec<ValueId>,
        /// The value of missing entries; without it none is missing.
        otherwise: Option<ValueId>,
    },
    /// A coordinate of the query or key token.
    Coordinate(Coordinate, Side),
    /// Whether the token is in the set.
    InSet(SetId, Side),
    /// A function of one operand, element by element.
    Unary(Unary, ValueId),
    /// A function of two operands, element by element; scalars and vectors are broadcast, and a number of each element over the
    /// channels of its vector.
    Binary(Binary, ValueId, ValueId),
    /// A comparison, element by element.
    Compare(Comparison, ValueId, ValueId),
    /// The second operand where the first holds, else the third.
    Choose(ValueId, ValueId, ValueId),
    /// A statistic of the tokens of each block.
    Pool(Statistic, Source),
    /// The queries, keys or values of a set of tokens themselves.
    Each(Source, SetId),
    /// The vectors of blocks as those of their tokens: each token of the set has what its block has.
    Spread(ValueId, SetId),
    /// The channels of each vector reduced to a number; sums run in the order of the channels.
    OverChannels {
        /// How.
        how: Reduction,
        /// Vectors.
        value: ValueId,
    },
    /// What the host measured under a name: a number for the head, or one for each token of a side.
    Measured {
        /// The name.
        name: String,
        /// The side, and the set of all tokens.
        over: Option<(Side, SetId)>,
    },
    /// The position of each token in the (reordered) sequence, or of the first token of each block, as a real number: those
    /// that have a vector.
    Start(ValueId),
    /// Mean cosine between the tokens of a block (with themselves too): the squared norm of the mean of the
    /// normalised tokens.
    /// # Source
    /// SpargeAttn, arXiv 2502.18137, section 3.3.
    SelfSimilarity(Side),
    /// Number of tokens of each block of a side.
    BlockTokens(Side),
    /// Dot products of the vectors of queries and those of keys, channels summed in order.
    Dot(ValueId, ValueId),
    /// Rows become columns; the set of one side becomes that of the other. Blocks of both sides have one size.
    Transpose(ValueId),
    /// The elements of smaller sets. A token that is taken from blocks has the value of its block.
    Slice {
        /// A block value.
        value: ValueId,
        /// The queries to take.
        q: Option<SetId>,
        /// The keys to take.
        kv: Option<SetId>,
    },
    /// Tokens gathered to blocks: the elements of the tokens of each block reduced, as one line, row after row, as by
    /// [`Op::Reduce`]. Of truth values, `Max` holds where some does and `Min` where all do.
    Gather {
        /// How.
        how: Reduction,
        /// A block value with tokens along some axis.
        value: ValueId,
        /// The q-blocks of the same segments, where queries are gathered.
        q: Option<SetId>,
        /// The kv-blocks of the same segments, where keys are gathered.
        kv: Option<SetId>,
    },
    /// The sums of diagonals: for each distance `d` from 0 the sum, over the queries in order, of the element of the key
    /// that stands `d` tokens before the query; 0 where there is none. One number for each distance of the set.
    /// # Source
    /// MInference, arXiv 2407.02490, section 3.2.
    Diagonals(ValueId, SetId),
    /// The distances of a set themselves, as real numbers.
    Distances(SetId),
    /// Whether some pair of the block has a key that stands before the query, or on it, by a distance for which the operand
    /// holds. The operand has one truth value for each distance, as [`Op::Diagonals`] has.
    OnDiagonals(ValueId),
    /// One axis reduced, or both as one line, row after row. Sums run in 32 lanes: lane `l` adds the elements with index `l mod 32` in order,
    /// then lanes are added pairwise, `l` and `l + 16`, then `l + 8`, `4`, `2`, `1`. Empty lanes count as 0.
    Reduce {
        /// How.
        how: Reduction,
        /// A block value.
        value: ValueId,
        /// The axes that disappear.
        over: Over,
    },
    /// `exp(x - max) / sum` along an axis, or over the whole map; the sum in the order of [`Op::Reduce`]. A row that holds only minus
    /// infinity gives zeros.
    Softmax {
        /// A block value.
        value: ValueId,
        /// The axes whose elements sum to one.
        over: Over,
    },
    /// A selection: truth values of the extent of `value`.
    Select {
        /// The rule.
        rule: Selector,
        /// What is ranked.
        value: ValueId,
        /// How much.
        amount: ValueId,
        /// Selected in any case; a scalar integer.
        at_least: Option<ValueId>,
        /// What running sums add up in place of the elements, an element for each.
        cost: Option<ValueId>,
        /// The axes of the candidates.
        over: Over,
    },
    /// The elements moved along a side by a number of blocks, `out[i] = in[i - by]`; 0 where nothing comes from.
    Shift {
        /// A real block value.
        value: ValueId,
        /// How far; an integer scalar.
        by: ValueId,
        /// Along the q-blocks or the kv-blocks.
        over: Side,
    },
    /// Attention over groups of `stride` tokens, summed over blocks. With `Q[g]` the queries of a group in reverse order one
    /// behind the other and `K[g]` its keys in order, scores are `Q[g] . K[h] / sqrt(head_dim) / stride`, channels summed in
    /// order; softmax over all `h`; then for each block pair the sum over the key groups that begin in the block in the order
    /// of [`Op::Reduce`], and over the query groups in order. Tokens that the last group lacks are zeros.
    /// # Source
    /// XAttention, arXiv 2503.16428, section 2.1.
    AntiDiagonal {
        /// Tokens of a group; an integer scalar, at least 1.
        stride: ValueId,
    },
    /// The value that another head of the layer has; its rules are this head's.
    AtHead {
        /// A real block value.
        value: ValueId,
        /// The head, an integer scalar; the last one where there are not so many.
        head: ValueId,
    },
    /// Element by element over all heads of the layer, in the order of [`Op::Reduce`]; the rules are this head's.
    OverHeads {
        /// How.
        how: Reduction,
        /// A real block value.
        value: ValueId,
    },
    /// Truth values over all blocks: false outside the operand's sets.
    Embed(ValueId),
    /// A token predicate as block truth values over all blocks, known when the plan is built.
    Lower(Lower, ValueId),
    /// Truth values the plan holds: slot of the class's list of masks. Only in selector programs.
    Mask(u16),
}

/// A named run of tokens, or a part of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Part {
    /// The segment.
    pub segment: String,
    /// Which tokens of it.
    pub which: Which,
}

/// Which tokens of a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Which {
    /// All.
    Whole,
    /// Those that carry content.
    Valid,
    /// The padding behind them.
    Pad,
}

impl Op {
    /// The operands, in order.
    #[must_use]
    pub fn operands(&self) -> Vec<ValueId> {
        let mut operands = Vec::new();
        self.clone().for_each_operand(|operand| operands.push(*operand));
        operands
    }

    /// The same operation over other operands.
    #[must_use]
    pub fn map_operands(&self, mut map: impl FnMut(ValueId) -> ValueId) -> Op {
        let mut op = self.clone();
        op.for_each_operand(|operand| *operand = map(*operand));
        op
    }

    /// Visits the operands, in order.
    fn for_each_operand(&mut self, mut visit: impl FnMut(&mut ValueId)) {
        match self {
            Op::Bool(_)
            | Op::Int(_)
            | Op::Real(_)
            | Op::Size(_)
            | Op::Place(_)
            | Op::LastComputed
            | Op::ReusedSteps
            | Op::Coordinate(..)
            | Op::InSet(..)
            | Op::Pool(..)
            | Op::Each(..)
            | Op::Distances(_)
            | Op::Measured { .. }
            | Op::SelfSimilarity(_)
            | Op::BlockTokens(_)
            | Op::Mask(_) => {}
            Op::Table { keys, otherwise, .. } => {
                keys.iter_mut().chain(otherwise.as_mut()).for_each(visit);
            }
            Op::Unary(_, a)
            | Op::Accumulated(a)
            | Op::Start(a)
            | Op::Spread(a, _)
            | Op::Transpose(a)
            | Op::Diagonals(a, _)
            | Op::OnDiagonals(a)
            | Op::Embed(a)
            | Op::Lower(_, a) => visit(a),
            Op::Binary(_, a, b) | Op::Compare(_, a, b) | Op::Dot(a, b) => {
                visit(a);
                visit(b);
            }
            Op::Choose(a, b, c) => {
                visit(a);
                visit(b);
                visit(c);
            }
            Op::Slice { value, .. }
            | Op::Gather { value, .. }
            | Op::Reduce { value, .. }
            | Op::OverChannels { value, .. }
            | Op::Softmax { value, .. }
            | Op::OverHeads { value, .. } => visit(value),
            Op::AtHead { value, head } => {
                visit(value);
                visit(head);
            }
            Op::Shift { value, by, .. } => {
                visit(value);
                visit(by);
            }
            Op::AntiDiagonal { stride } => visit(stride),
            Op::Select { value, amount, at_least, cost, .. } => {
                visit(value);
                visit(amount);
                at_least.iter_mut().chain(cost).for_each(visit);
            }
        }
    }

    /// Whether the operation reads the vectors of a source.
    #[must_use]
    pub fn reads(&self, source: Source) -> bool {
        match self {
            Op::Pool(_, own) | Op::Each(own, _) => *own == source,
            Op::SelfSimilarity(side) => *side == source.side() && source != Source::Value,
            Op::AntiDiagonal { .. } => source != Source::Value,
            _ => false,
        }
    }

    /// Whether the operation looks at other heads than the one it is evaluated for.
    #[must_use]
    pub fn crosses_heads(&self) -> bool {
        matches!(self, Op::AtHead { .. } | Op::OverHeads { .. } | Op::Select { over: Over::Layer | Over::Heads, .. })
    }

    /// What the operation needs and clusters of tokens lack, in a sentence: they are those of one head and side, and stand
    /// nowhere.
    #[must_use]
    pub fn lack_over_clusters(&self) -> Option<&'static str> {
        match self {
            Op::Coordinate(..) | Op::Start(_) | Op::Diagonals(..) | Op::Distances(_) | Op::OnDiagonals(_) => {
                Some("a token of a cluster has no place of its own")
            }
            Op::AntiDiagonal { .. } | Op::Shift { .. } => Some("clusters have no neighbours"),
            Op::Transpose(_) => Some("queries and keys have clusters of their own"),
            op if op.crosses_heads() => Some("each head has clusters of its own"),
            _ => None,
        }
    }

    /// Whether the operation works element by element, so that a chain of them is one loop.
    #[must_use]
    pub fn is_elementwise(&self) -> bool {
        matches!(self, Op::Unary(..) | Op::Binary(..) | Op::Compare(..) | Op::Choose(..))
    }
}
