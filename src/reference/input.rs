//! What a selector program is evaluated on, and the checks that every evaluator makes first.
//!
//! Evaluators trust what passed [`check_program`] and [`SelectorInput::check`]: operations that have a meaning on
//! their operands, tensors and masks of the sizes the blocks ask for.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::ir::scalar::{self, At, NoTokens, Scalar};
use crate::ir::{
    Binary, Extent, Grain, Graph, Kind, Model, Op, Over, Reduction, SetId, Side, Source, Type, Unary, ValueId,
};
use crate::plan::{Program, Role, blocks_of_set};
use crate::symbols::{BitMatrix, Blocks};

/// One head of one layer at one step.
#[derive(Clone, Copy, Debug)]
pub struct SelectorInput<'a> {
    /// The model that the program was compiled for.
    pub model: &'a Model,
    /// The blocks of the class's arrangement.
    pub blocks: &'a Blocks,
    /// The bitmaps of the program's mask slots.
    pub masks: &'a [&'a BitMatrix],
    /// Where scalars are evaluated.
    pub at: At,
    /// The head's tensors.
    pub tensors: &'a HeadTensors,
    /// All heads of the layer, for programs that look at other heads ([`crosses_heads`]); else it may be missing.
    pub layer: Option<&'a LayerInput>,
    /// Channels of the head.
    pub head_dim: usize,
}

/// Tensors of a head, row-major, in the order of an arrangement. What no program asks for may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadTensors {
    /// Queries `[tokens, head_dim]`.
    pub q: Vec<f32>,
    /// Keys `[tokens, head_dim]`.
    pub k: Vec<f32>,
    /// Values `[tokens, head_dim]`.
    pub v: Vec<f32>,
    /// What the host measured, by name: one number, or one for each token.
    pub measured: Vec<(String, Vec<f32>)>,
}

impl HeadTensors {
    /// The vectors of a source.
    #[must_use]
    pub fn source(&self, source: Source) -> &[f32] {
        match source {
            Source::Query => &self.q,
            Source::Key => &self.k,
            Source::Value => &self.v,
        }
    }
}

/// Tensors of all heads of a layer, in the order of one arrangement, and what heads have computed for each other.
#[derive(Debug, Default)]
pub struct LayerInput {
    heads: Vec<HeadTensors>,
    /// Values of other heads, and selections over all of them, by the value's id and the head.
    known: Mutex<Shared>,
}

type Shared = HashMap<(ValueId, Option<u32>), Arc<Vec<f32>>>;

impl LayerInput {
    /// The heads, in order.
    #[must_use]
    pub fn new(heads: Vec<HeadTensors>) -> Self {
        LayerInput { heads, known: Mutex::default() }
    }

    /// A value that is computed when it is first asked for. Several threads may compute it; they get the same bits.
    ///
    /// # Errors
    /// What `compute` gives.
    pub fn shared(
        &self,
        id: ValueId,
        head: Option<u32>,
        compute: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Arc<Vec<f32>>> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = known().get(&(id, head)) {
            return Ok(Arc::clone(values));
        }
        let values = Arc::new(compute()?);
        known().insert((id, head), Arc::clone(&values));
        Ok(values)
    }
}

/// Whether a program looks at other heads than the one it is evaluated for.
#[must_use]
pub fn crosses_heads(program: &Program) -> bool {
    program.graph.values().any(|(_, value)| value.op.crosses_heads())
}

impl<'a> SelectorInput<'a> {
    /// The same program's input at another head of the layer; the last one where there are not so many.
    ///
    /// # Errors
    /// [`Error::State`] without the other heads.
    pub fn at_head(&self, head: u32) -> Result<SelectorInput<'a>> {
        let Some(layer) = self.layer else {
            return Err(Error::State(
                "the selector program looks at other heads: it needs all of the layer".to_owned(),
            ));
        };
        let head = head.min(layer.heads.len().saturating_sub(1) as u32);
        Ok(SelectorInput { tensors: &layer.heads[head as usize], at: At { head, ..self.at }, ..*self })
    }

    /// Number of heads of the layer, 0 where the others are missing.
    #[must_use]
    pub fn heads(&self) -> u32 {
        self.layer.map_or(0, |layer| layer.heads.len() as u32)
    }

    /// The offsets of the blocks of a side.
    #[must_use]
    pub fn offsets(&self, side: Side) -> &'a [u32] {
        match side {
            Side::Query => &self.blocks.q,
            Side::Key => &self.blocks.kv,
        }
    }

    /// The vectors of a source and the offsets of its blocks.
    #[must_use]
    pub fn source(&self, source: Source) -> (&'a [f32], &'a [u32]) {
        (self.tensors.source(source), self.offsets(source.side()))
    }

    /// What the host measured under a name.
    ///
    /// # Errors
    /// [`Error::State`] when it did not.
    pub fn measured(&self, name: &str) -> Result<&'a [f32]> {
        let found = self.tensors.measured.iter().find(|(known, _)| known == name);
        found
            .map(|(_, values)| values.as_slice())
            .ok_or_else(|| Error::State(format!("the rules choose by `{name}`, which the host has not measured")))
    }

    /// The blocks of a side that hold a token of the set.
    #[must_use]
    pub fn blocks_of(&self, graph: &Graph, set: SetId, side: Side) -> Vec<u32> {
        if set == SetId::ALL {
            return (0..self.offsets(side).len() as u32 - 1).collect();
        }
        blocks_of_set(self.model, graph.parts(set), self.blocks, side)
    }

    /// The elements of a set, ascending: numbers of blocks or of tokens, by its grain.
    #[must_use]
    pub fn elements_of(&self, graph: &Graph, set: SetId, side: Side) -> Vec<u32> {
        let tokens = || -> Vec<u32> {
            let ranges = self.model.ranges(graph.parts(set));
            let end = self.offsets(side).last().copied().unwrap_or(0);
            ranges.into_iter().flat_map(|(start, stop)| start..stop.min(end)).collect()
        };
        match graph.grain(set) {
            Grain::Blocks => self.blocks_of(graph, set, side),
            Grain::Tokens => tokens(),
            Grain::Distances => (0..self.offsets(side).last().copied().unwrap_or(0)).collect(),
            Grain::Rows(index) => {
                let rows = graph.rows.get(usize::from(index)).map_or(&[][..], |rows| &rows.tokens);
                tokens().into_iter().filter(|token| rows.binary_search(token).is_ok()).collect()
            }
            Grain::Last(count) => {
                let mut tokens = tokens();
                tokens.split_off(tokens.len().saturating_sub(count as usize))
            }
        }
    }

    /// Number of elements of a set.
    #[must_use]
    pub fn count_of(&self, graph: &Graph, set: SetId, side: Side) -> usize {
        match set {
            SetId::ALL => self.offsets(side).len() - 1,
            _ => self.elements_of(graph, set, side).len(),
        }
    }

    /// Number of elements along each axis of a block value.
    #[must_use]
    pub fn sizes_of(&self, graph: &Graph, id: ValueId) -> [Option<usize>; 2] {
        let [q, kv] = graph.ty(id).extent.sets();
        [q.map(|set| self.count_of(graph, set, Side::Query)), kv.map(|set| self.count_of(graph, set, Side::Key))]
    }

    /// For each element of `to` the index of that of `from` which has its value: the same one, or the block that holds it. Values
    /// without the side have one element.
    #[must_use]
    pub fn places(&self, graph: &Graph, side: Side, from: Option<SetId>, to: Option<SetId>) -> Vec<Option<usize>> {
        let (Some(from), Some(to)) = (from, to) else { return vec![Some(0)] };
        let known = self.elements_of(graph, from, side);
        let whole = graph.grain(from) == Grain::Blocks && graph.grain(to).is_tokens();
        let element = |to: u32| if whole { self.block_of(side, to as usize) as u32 } else { to };
        self.elements_of(graph, to, side).into_iter().map(|to| known.binary_search(&element(to)).ok()).collect()
    }

    /// For each element of `to` the range of those of `from` that it gathers: itself, or the tokens of a block. Values without
    /// the side have one element.
    #[must_use]
    pub fn runs(&self, graph: &Graph, side: Side, from: Option<SetId>, to: Option<SetId>) -> Vec<Range<usize>> {
        let alone = |count| (0..count).map(|n| n..n + 1).collect();
        let (tokens, blocks) = match (from, to) {
            (Some(from), Some(to)) if from != to => (from, to),
            (Some(from), _) => return alone(self.count_of(graph, from, side)),
            (None, _) => return alone(1),
        };
        let tokens = self.elements_of(graph, tokens, side);
        let offsets = self.offsets(side);
        let below = |offset: u32| tokens.partition_point(|&token| token < offset);
        let blocks = self.elements_of(graph, blocks, side).into_iter();
        blocks.map(|block| below(offsets[block as usize])..below(offsets[block as usize + 1])).collect()
    }

    /// How many a selection takes in any case.
    #[must_use]
    pub fn at_least(&self, graph: &Graph, id: Option<ValueId>) -> usize {
        let count = id.map_or(0, |id| self.scalar(graph, id).int());
        usize::try_from(count.max(0)).unwrap_or(usize::MAX)
    }

    /// The stride of an [`Op::AntiDiagonal`], at least 1.
    #[must_use]
    pub fn stride(&self, graph: &Graph, id: ValueId) -> usize {
        usize::try_from(self.scalar(graph, id).int().max(1)).unwrap_or(usize::MAX).min(self.tensors.q.len().max(1))
    }

    /// The value of a scalar.
    #[must_use]
    pub fn scalar(&self, graph: &Graph, id: ValueId) -> Scalar {
        scalar::evaluate(graph, id, self.at, &NoTokens)
    }

    /// Compares the sizes of tensors and masks with the blocks.
    ///
    /// # Errors
    /// [`Error::Shape`] says what was given and what was expected.
    pub fn check(&self, program: &Program) -> Result<()> {
        for (side, name) in [(Side::Query, "q"), (Side::Key, "k")] {
            let offsets = self.offsets(side);
            if offsets.is_empty() || offsets[0] != 0 || offsets.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(Error::Shape(format!("the blocks of `{name}` are not ascending from 0")));
            }
        }
        let graph = &program.graph;
        let live = live_values(program);
        for source in Source::ALL {
            let (values, offsets) = self.source(source);
            let tokens = offsets.last().map_or(0, |&end| end as usize);
            let asked = live.iter().any(|&id| graph.op(id).reads(source));
            if asked && (self.head_dim == 0 || tokens.checked_mul(self.head_dim) != Some(values.len())) {
                return Err(Error::Shape(format!(
                    "`{}` of a head holds {} values, expected {tokens} tokens x {} channels",
                    source.name(),
                    values.len(),
                    self.head_dim
                )));
            }
        }
        for &id in &live {
            let Op::Measured { name, over } = graph.op(id) else { continue };
            let wanted = over.map_or(1, |(side, _)| self.offsets(side).last().map_or(0, |&end| end as usize));
            let found = self.measured(name)?.len();
            if found != wanted {
                return Err(Error::Shape(format!("`{name}` of a head holds {found} numbers, expected {wanted}")));
            }
            if let Some(at) = self.measured(name)?.iter().position(|value| value.is_nan()) {
                let At { step, layer, head, .. } = self.at;
                return Err(Error::Value(format!(
                    "`{name}` is NaN at {at} of head {head} (layer {layer}, step {step}); symbols cannot be computed from it"
                )));
            }
        }
        self.check_layer(program)?;
        for id in live {
            if let (Op::Mask(slot), Extent::Blocks { q, kv }) = (program.graph.op(id), program.graph.ty(id).extent) {
                self.check_mask(&program.graph, *slot, q, kv)?;
            }
        }
        Ok(())
    }

    fn check_layer(&self, program: &Program) -> Result<()> {
        if !crosses_heads(program) {
            return Ok(());
        }
        let Some(layer) = self.layer.filter(|layer| !layer.heads.is_empty()) else {
            return Err(Error::State(
                "the selector program looks at other heads: it needs all of the layer".to_owned(),
            ));
        };
        let sizes = |head: &HeadTensors| (head.q.len(), head.k.len(), head.v.len());
        match layer.heads.iter().position(|head| sizes(head) != sizes(self.tensors)) {
            None => Ok(()),
            Some(head) => {
                Err(Error::Shape(format!("head {head} of the layer has other sizes than head {}", self.at.head)))
            }
        }
    }

    fn check_mask(&self, graph: &Graph, slot: u16, q: Option<SetId>, kv: Option<SetId>) -> Result<()> {
        let q = q.map(|set| self.count_of(graph, set, Side::Query));
        let kv = kv.map(|set| self.count_of(graph, set, Side::Key));
        let wanted = match (q, kv) {
            (Some(q), Some(kv)) => (q, kv),
            (Some(one), None) | (None, Some(one)) => (1, one),
            (None, None) => (1, 1),
        };
        let Some(mask) = self.masks.get(usize::from(slot)) else {
            let given = self.masks.len();
            return Err(Error::Shape(format!("the selector program asks for mask {slot}, {given} were given")));
        };
        if (mask.rows(), mask.columns()) == wanted {
            return Ok(());
        }
        Err(Error::Shape(format!(
            "mask {slot} of the selector program has {} x {} bits, expected {} x {}",
            mask.rows(),
            mask.columns(),
            wanted.0,
            wanted.1
        )))
    }

    /// The block that holds a token.
    #[must_use]
    pub fn block_of(&self, side: Side, token: usize) -> usize {
        self.offsets(side).partition_point(|&offset| offset as usize <= token).saturating_sub(1)
    }

    /// The error of a pooled value that is NaN or infinite.
    #[must_use]
    pub fn not_finite(&self, source: Source, block: usize) -> Error {
        let name = source.name();
        let At { step, layer, head, .. } = self.at;
        Error::Value(format!(
            "`{name}` is NaN, infinite or too large in block {block} of head {head} (layer {layer}, step {step}); \
             symbols cannot be computed from it"
        ))
    }
}

/// The values that some term needs, operands before users.
#[must_use]
pub fn live_values(program: &Program) -> Vec<ValueId> {
    values_below(&program.graph, program.terms.iter().map(|&(_, id)| id))
}

/// Some values and what they need, operands before users.
#[must_use]
pub fn values_below(graph: &Graph, roots: impl IntoIterator<Item = ValueId>) -> Vec<ValueId> {
    let mut live = vec![false; graph.len()];
    for id in roots {
        live[id.0 as usize] = true;
    }
    for index in (0..live.len()).rev() {
        if live[index] {
            for operand in graph.op(ValueId(index as u32)).operands() {
                live[operand.0 as usize] = true;
            }
        }
    }
    (0..live.len()).filter(|&index| live[index]).map(|index| ValueId(index as u32)).collect()
}

/// Whether every value that a term needs is an operation of selector programs on operands that it is defined for.
///
/// # Errors
/// [`Error::State`] names the value; the compiler produces no such program.
pub fn check_program(program: &Program) -> Result<()> {
    let graph = &program.graph;
    for &(role, id) in &program.terms {
        let ty = graph.ty(id);
        let whole = |set: Option<SetId>| set.is_none_or(|set| set == SetId::ALL);
        let fits = match ty.extent {
            Extent::Scalar => true,
            Extent::Blocks { q, kv } => whole(q) && whole(kv) && (role != Role::Cache || kv.is_none()),
            _ => false,
        };
        if ty.kind != Kind::Bool || !fits {
            return Err(wrong(id, &format!("cannot be a term of role {role:?}: {ty:?}")));
        }
    }
    for id in live_values(program) {
        if graph.ty(id).extent != Extent::Scalar {
            check_value(graph, id)?;
        }
    }
    Ok(())
}

fn wrong(id: ValueId, what: &str) -> Error {
    Error::State(format!("value {} of the selector program {what}", id.0))
}

fn check_value(graph: &Graph, id: ValueId) -> Result<()> {
    let op = graph.op(id);
    let ty = |id: ValueId| graph.ty(id);
    let block = |id: ValueId| matches!(ty(id).extent, Extent::Blocks { .. });
    let fine = match op {
        Op::Unary(Unary::Negate | Unary::Abs, a) if is_vectors(ty(id)) => ty(*a) == ty(id),
        Op::Binary(binary, a, b) if is_vectors(ty(id)) => {
            let Extent::Vectors(side, set) = ty(id).extent else { return Err(wrong(id, "has no vectors")) };
            let fits = |a: Type| {
                let number = a.kind == Kind::Real && axes(a) == Some(only(side, set));
                a == ty(id) || a == Type::scalar(Kind::Real) || number
            };
            let known = matches!(
                binary,
                Binary::Add | Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Min | Binary::Max
            );
            known && fits(ty(*a)) && fits(ty(*b))
        }
        Op::Unary(unary, a) => {
            let of_bool = ty(*a).kind == Kind::Bool;
            block(*a)
                && match unary {
                    Unary::Not => of_bool,
                    Unary::ToReal => true,
                    Unary::Negate | Unary::Abs | Unary::Sqrt | Unary::Exp => !of_bool,
                    Unary::Log | Unary::Floor | Unary::Ceil | Unary::Round | Unary::BitLength => false,
                }
        }
        Op::Binary(binary, a, b) => {
            let of_bool = ty(*a).kind == Kind::Bool;
            broadcasts(graph, id)
                && of_bool == (ty(*b).kind == Kind::Bool)
                && match binary {
                    Binary::And | Binary::Or | Binary::Xor => of_bool,
                    Binary::Power | Binary::FloorDivide | Binary::Modulo => false,
                    _ => !of_bool,
                }
        }
        Op::Compare(_, a, b) => broadcasts(graph, id) && (ty(*a).kind == Kind::Bool) == (ty(*b).kind == Kind::Bool),
        Op::Choose(condition, a, b) => {
            broadcasts(graph, id)
                && ty(*condition).kind == Kind::Bool
                && (ty(*a).kind == Kind::Bool) == (ty(*b).kind == Kind::Bool)
        }
        Op::Pool(_, source) => ty(id).extent == Extent::Vectors(source.side(), SetId::ALL),
        Op::Each(source, set) => {
            ty(id).extent == Extent::Vectors(source.side(), *set) && graph.grain(*set) != Grain::Blocks
        }
        Op::Spread(a, set) => match ty(*a).extent {
            Extent::Vectors(side, from) => {
                ty(id).extent == Extent::Vectors(side, *set)
                    && graph.grain(from) == Grain::Blocks
                    && graph.grain(*set) != Grain::Blocks
            }
            _ => false,
        },
        Op::OverChannels { value, .. } => match ty(*value).extent {
            Extent::Vectors(side, set) => axes(ty(id)) == Some(only(side, set)),
            _ => false,
        },
        Op::Measured { over: None, .. } => axes(ty(id)) == Some([None, None]) && block(id),
        Op::Measured { over: Some((side, set)), .. } => {
            graph.is_all_tokens(*set) && axes(ty(id)) == Some(only(*side, *set))
        }
        Op::Start(a) => match ty(*a).extent {
            Extent::Vectors(side, set) => axes(ty(id)) == Some(only(side, set)),
            _ => false,
        },
        Op::SelfSimilarity(side) | Op::BlockTokens(side) => axes(ty(id)) == Some(only(*side, SetId::ALL)),
        Op::Dot(a, b) => match (ty(*a).extent, ty(*b).extent) {
            (Extent::Vectors(Side::Query, q), Extent::Vectors(Side::Key, kv)) => {
                axes(ty(id)) == Some([Some(q), Some(kv)])
            }
            _ => false,
        },
        Op::Diagonals(a, set) => match ty(*a).extent {
            Extent::Blocks { q: Some(q), kv: Some(kv) } => {
                ty(*a).kind != Kind::Bool
                    && graph.grain(q).is_tokens()
                    && graph.is_all_tokens(kv)
                    && graph.grain(*set) == Grain::Distances
                    && axes(ty(id)) == Some([None, Some(*set)])
            }
            _ => false,
        },
        Op::Distances(set) => graph.grain(*set) == Grain::Distances && axes(ty(id)) == Some([None, Some(*set)]),
        Op::OnDiagonals(a) => match ty(*a).extent {
            Extent::Blocks { q: None, kv: Some(kv) } => {
                ty(*a).kind == Kind::Bool
                    && graph.grain(kv) == Grain::Distances
                    && axes(ty(id)) == Some([Some(SetId::ALL), Some(SetId::ALL)])
            }
            _ => false,
        },
        Op::Gather { how, value, q, kv } => match (axes(ty(*value)), axes(ty(id))) {
            (Some(old), Some(new)) => {
                let fits = |axis: usize, to: Option<SetId>| match (old[axis], to) {
                    (old, None) => new[axis] == old,
                    (Some(old), Some(to)) => {
                        new[axis] == Some(to)
                            && (graph.grain(old), graph.grain(to)) == (Grain::Tokens, Grain::Blocks)
                            && graph.parts(old) == graph.parts(to)
                    }
                    (None, Some(_)) => false,
                };
                let some_or_all = matches!(how, Reduction::Max | Reduction::Min);
                block(*value) && fits(0, *q) && fits(1, *kv) && (ty(*value).kind != Kind::Bool || some_or_all)
            }
            _ => false,
        },
        Op::Transpose(value) => match (ty(*value).extent, ty(id).extent) {
            (Extent::Blocks { q, kv }, Extent::Blocks { q: new_q, kv: new_kv }) => (q, kv) == (new_kv, new_q),
            _ => false,
        },
        Op::Slice { value, .. } => same_axes(graph, *value, id),
        Op::Shift { value, by, over } => {
            ty(*by) == Type::scalar(Kind::Int)
                && ty(*value) == ty(id)
                && ty(id).kind != Kind::Bool
                && has_axis(graph, *value, (*over).into())
        }
        Op::AntiDiagonal { stride } => {
            ty(*stride) == Type::scalar(Kind::Int)
                && ty(id).extent == Extent::Blocks { q: Some(SetId::ALL), kv: Some(SetId::ALL) }
        }
        Op::AtHead { value, head } => {
            ty(*head) == Type::scalar(Kind::Int) && ty(*value) == ty(id) && block(id) && ty(id).kind != Kind::Bool
        }
        Op::OverHeads { value, .. } => ty(*value) == ty(id) && block(id) && ty(id).kind != Kind::Bool,
        Op::Embed(value) => same_axes(graph, *value, id) && ty(*value).kind == Kind::Bool,
        Op::Reduce { value, over, .. } => {
            ty(*value).kind != Kind::Bool && has_axis(graph, *value, *over) && reduces(graph, *value, id, *over)
        }
        Op::Softmax { value, over } => {
            ty(*value).kind != Kind::Bool
                && !matches!(over, Over::Layer | Over::Heads)
                && has_axis(graph, *value, *over)
                && ty(*value).extent == ty(id).extent
        }
        Op::Select { value, amount, at_least, cost, over, .. } => {
            let scalar = |id: ValueId| ty(id).extent == Extent::Scalar;
            ty(*value).kind != Kind::Bool
                && has_axis(graph, *value, *over)
                && ty(*value).extent == ty(id).extent
                && (scalar(*amount) || amount_of_lines(graph, *amount, *value, *over))
                && at_least.is_none_or(scalar)
                && cost.is_none_or(|cost| ty(cost) == ty(*value) && !matches!(over, Over::Layer | Over::Heads))
        }
        Op::Mask(_) => block(id) && ty(id).kind == Kind::Bool,
        _ => false,
    };
    let fine = fine && gives_truth(graph, op) == (ty(id).kind == Kind::Bool);
    if fine { Ok(()) } else { Err(wrong(id, &format!("has no meaning: {op:?} of type {:?}", ty(id)))) }
}

/// Whether an operation gives truth values.
fn gives_truth(graph: &Graph, op: &Op) -> bool {
    let of_bool = |id: &ValueId| graph.ty(*id).kind == Kind::Bool;
    match op {
        Op::Unary(Unary::Not, _)
        | Op::Compare(..)
        | Op::Select { .. }
        | Op::Mask(_)
        | Op::Embed(_)
        | Op::OnDiagonals(_) => true,
        Op::Binary(_, a, _)
        | Op::Choose(_, a, _)
        | Op::Transpose(a)
        | Op::Slice { value: a, .. }
        | Op::Gather { value: a, .. } => of_bool(a),
        _ => false,
    }
}

fn is_vectors(ty: Type) -> bool {
    matches!(ty.extent, Extent::Vectors(..))
}

/// The axes of a value with one.
fn only(side: Side, set: SetId) -> [Option<SetId>; 2] {
    match side {
        Side::Query => [Some(set), None],
        Side::Key => [None, Some(set)],
    }
}

/// The sets of a block value or a scalar.
fn axes(ty: Type) -> Option<[Option<SetId>; 2]> {
    match ty.extent {
        Extent::Scalar | Extent::Blocks { .. } => Some(ty.extent.sets()),
        _ => None,
    }
}

/// Whether every axis of an operand is the result's, and every axis of the result is some operand's.
fn broadcasts(graph: &Graph, id: ValueId) -> bool {
    let Some(result) = axes(graph.ty(id)) else { return false };
    let mut found = [None, None];
    for operand in graph.op(id).operands() {
        let Some(operand) = axes(graph.ty(operand)) else { return false };
        for axis in 0..2 {
            if operand[axis].is_some() {
                if operand[axis] != result[axis] {
                    return false;
                }
                found[axis] = operand[axis];
            }
        }
    }
    found == result
}

fn same_axes(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    match (axes(graph.ty(a)), axes(graph.ty(b))) {
        (Some(a), Some(b)) => a[0].is_some() == b[0].is_some() && a[1].is_some() == b[1].is_some(),
        _ => false,
    }
}

fn has_axis(graph: &Graph, value: ValueId, over: Over) -> bool {
    match (graph.ty(value).extent, over) {
        (Extent::Blocks { q, .. }, Over::Query) => q.is_some(),
        (Extent::Blocks { kv, .. }, Over::Key) => kv.is_some(),
        (Extent::Blocks { q, kv }, Over::Both | Over::Layer) => q.is_some() && kv.is_some(),
        (Extent::Blocks { .. }, Over::Heads) => true,
        _ => false,
    }
}

/// Whether a block value has one real number for each line of a selection.
fn amount_of_lines(graph: &Graph, amount: ValueId, value: ValueId, over: Over) -> bool {
    let (Some([q, kv]), Some([value_q, value_kv])) = (axes(graph.ty(amount)), axes(graph.ty(value))) else {
        return false;
    };
    graph.ty(amount).kind == Kind::Real
        && (q.is_none() || (q == value_q && over == Over::Key))
        && (kv.is_none() || (kv == value_kv && over == Over::Query))
}

/// Whether the type of a reduction is its operand's without the axis.
fn reduces(graph: &Graph, value: ValueId, id: ValueId, over: Over) -> bool {
    match (graph.ty(value).extent, graph.ty(id).extent, over) {
        (Extent::Blocks { q: Some(_), kv }, Extent::Blocks { q: None, kv: result }, Over::Query) => kv == result,
        (Extent::Blocks { q, kv: Some(_) }, Extent::Blocks { q: result, kv: None }, Over::Key) => q == result,
        (Extent::Blocks { .. }, Extent::Blocks { q: None, kv: None }, Over::Both) => true,
        _ => false,
    }
}
