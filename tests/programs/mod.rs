//! Selector programs built by hand, and inputs for them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use flashomni::ir::scalar::At;
use flashomni::ir::{
    Binary, Comparison, Extent, Graph, Kind, Model, Op, Over, Part, Real, Reduction, Rounding, Segment, Selector,
    SetId, Side, Statistic, Type, Unary, ValueId, Which,
};
use flashomni::plan::{Program, Role};
use flashomni::selector::{HeadTensors, LayerInput, SelectorInput};
use flashomni::source::Span;
use flashomni::symbols::{BitMatrix, Blocks};
use flashomni::tensor::Dtype;

/// Builds a program; types follow from the operands.
#[derive(Default)]
pub struct Build {
    pub graph: Graph,
    pub terms: Vec<(Role, ValueId)>,
}

pub const MATRIX: Extent = Extent::Blocks { q: Some(SetId::ALL), kv: Some(SetId::ALL) };
pub const ROWS: Extent = Extent::Blocks { q: Some(SetId::ALL), kv: None };
pub const COLUMNS: Extent = Extent::Blocks { q: None, kv: Some(SetId::ALL) };

impl Build {
    pub fn push(&mut self, op: Op, kind: Kind, extent: Extent) -> ValueId {
        self.graph.push(op, Type::new(kind, extent), Span::default())
    }

    pub fn term(&mut self, role: Role, id: ValueId) {
        self.terms.push((role, id));
    }

    pub fn program(self) -> Program {
        Program { graph: self.graph, terms: self.terms }
    }

    pub fn real(&mut self, value: f64) -> ValueId {
        self.push(Op::Real(Real(value)), Kind::Real, Extent::Scalar)
    }

    pub fn int(&mut self, value: i64) -> ValueId {
        self.push(Op::Int(value), Kind::Int, Extent::Scalar)
    }

    pub fn truth(&mut self, value: bool) -> ValueId {
        self.push(Op::Bool(value), Kind::Bool, Extent::Scalar)
    }

    pub fn set(&mut self, segment: &str) -> SetId {
        self.graph.set(vec![Part { segment: segment.to_owned(), which: Which::Whole }])
    }

    /// The extent of the operands' broadcast.
    fn join(&self, ids: &[ValueId]) -> Extent {
        let (mut q, mut kv) = (None, None);
        for &id in ids {
            if let Extent::Blocks { q: a, kv: b } = self.graph.ty(id).extent {
                (q, kv) = (a.or(q), b.or(kv));
            }
        }
        if q.is_none() && kv.is_none() { Extent::Scalar } else { Extent::Blocks { q, kv } }
    }

    pub fn unary(&mut self, op: Unary, a: ValueId) -> ValueId {
        let kind = if op == Unary::Not { Kind::Bool } else { Kind::Real };
        let extent = self.join(&[a]);
        self.push(Op::Unary(op, a), kind, extent)
    }

    pub fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> ValueId {
        let (kind, extent) = (self.graph.ty(a).kind, self.join(&[a, b]));
        self.push(Op::Binary(op, a, b), kind, extent)
    }

    pub fn compare(&mut self, op: Comparison, a: ValueId, b: ValueId) -> ValueId {
        let extent = self.join(&[a, b]);
        self.push(Op::Compare(op, a, b), Kind::Bool, extent)
    }

    pub fn choose(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> ValueId {
        let (kind, extent) = (self.graph.ty(a).kind, self.join(&[condition, a, b]));
        self.push(Op::Choose(condition, a, b), kind, extent)
    }

    pub fn pool(&mut self, statistic: Statistic, side: Side) -> ValueId {
        self.typed(Op::Pool(statistic, side.source()))
    }

    /// A value of the type that its operation has.
    pub fn typed(&mut self, op: Op) -> ValueId {
        let ty = flashomni::ir::typing::type_of(&self.graph, &op).unwrap();
        self.graph.push(op, ty, Span::default())
    }

    /// `dot(mean(q), mean(k)) / sqrt(dim)`.
    pub fn score(&mut self, dim: usize) -> ValueId {
        let (q, k) = (self.pool(Statistic::Mean, Side::Query), self.pool(Statistic::Mean, Side::Key));
        let dot = self.push(Op::Dot(q, k), Kind::Real, MATRIX);
        let root = self.real((dim as f64).sqrt());
        self.binary(Binary::Divide, dot, root)
    }

    pub fn similarity(&mut self, side: Side) -> ValueId {
        self.push(Op::SelfSimilarity(side), Kind::Real, if side == Side::Query { ROWS } else { COLUMNS })
    }

    pub fn slice(&mut self, value: ValueId, q: Option<SetId>, kv: Option<SetId>) -> ValueId {
        let ty = self.graph.ty(value);
        self.push(Op::Slice { value, q, kv }, ty.kind, Extent::Blocks { q, kv })
    }

    pub fn transpose(&mut self, value: ValueId) -> ValueId {
        let ty = self.graph.ty(value);
        let Extent::Blocks { q, kv } = ty.extent else { panic!("a block value") };
        self.push(Op::Transpose(value), ty.kind, Extent::Blocks { q: kv, kv: q })
    }

    pub fn reduce(&mut self, how: Reduction, value: ValueId, over: impl Into<Over>) -> ValueId {
        let Extent::Blocks { q, kv } = self.graph.ty(value).extent else { panic!("a block value") };
        let over = over.into();
        let extent = match over {
            Over::Query => Extent::Blocks { q: None, kv },
            Over::Key => Extent::Blocks { q, kv: None },
            Over::Both | Over::Layer | Over::Heads => Extent::Blocks { q: None, kv: None },
        };
        self.push(Op::Reduce { how, value, over }, Kind::Real, extent)
    }

    pub fn softmax(&mut self, value: ValueId, over: impl Into<Over>) -> ValueId {
        let extent = self.graph.ty(value).extent;
        self.push(Op::Softmax { value, over: over.into() }, Kind::Real, extent)
    }

    pub fn select(&mut self, rule: Selector, value: ValueId, amount: ValueId, over: impl Into<Over>) -> ValueId {
        self.select_at_least(rule, value, amount, None, over)
    }

    pub fn select_at_least(
        &mut self,
        rule: Selector,
        value: ValueId,
        amount: ValueId,
        at_least: Option<ValueId>,
        over: impl Into<Over>,
    ) -> ValueId {
        let extent = self.graph.ty(value).extent;
        self.push(Op::Select { rule, value, amount, at_least, cost: None, over: over.into() }, Kind::Bool, extent)
    }

    pub fn embed(&mut self, value: ValueId) -> ValueId {
        let Extent::Blocks { q, kv } = self.graph.ty(value).extent else { panic!("a block value") };
        let extent = Extent::Blocks { q: q.map(|_| SetId::ALL), kv: kv.map(|_| SetId::ALL) };
        self.push(Op::Embed(value), Kind::Bool, extent)
    }

    pub fn mask(&mut self, slot: u16, extent: Extent) -> ValueId {
        self.push(Op::Mask(slot), Kind::Bool, extent)
    }
}

pub const TOP_P: Selector = Selector::TopP { crossing: false, ascending: false, strict: false };
pub const TOP_K: Selector = Selector::TopK { rounding: Rounding::Floor, ties: false };

/// A model of segments and their sizes.
pub fn model(segments: &[(&str, usize)]) -> Model {
    let mut start = 0;
    let segments = segments
        .iter()
        .map(|&(name, tokens)| {
            let tokens = tokens as u32;
            start += tokens;
            Segment {
                name: name.to_owned(),
                axes: Vec::new(),
                start: start - tokens,
                tokens,
                valid: tokens,
                span: Span::default(),
            }
        })
        .collect();
    Model {
        name: "test".to_owned(),
        layers: 1,
        heads: 1,
        head_dim: 16,
        steps: 1,
        dtype: Dtype::F32,
        segments,
        span: Span::default(),
    }
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Sum of three uniform numbers, about normal, times `scale`.
    pub fn real(&mut self, scale: f32) -> f32 {
        let uniform = |random: &mut Self| (random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        (uniform(self) + uniform(self) + uniform(self)) * 2.0 * scale
    }

    /// A multiple of 1/8 in [-2, 2].
    pub fn dyadic(&mut self) -> f32 {
        (self.below(33) as f32 - 16.0) / 8.0
    }
}

/// Owns what an input borrows.
pub struct Case {
    pub model: Model,
    pub blocks: Blocks,
    pub masks: Vec<BitMatrix>,
    pub tensors: HeadTensors,
    pub dim: usize,
}

impl Case {
    /// Four heads; the one that [`Case::input`] is for is the third, the others hold its values turned and scaled.
    pub fn layer(&self) -> LayerInput {
        let turned = |values: &[f32], by: usize, scale: f32| -> Vec<f32> {
            let mut values = values.to_vec();
            let by = by % values.len().max(1);
            values.rotate_left(by);
            values.iter_mut().for_each(|value| *value *= scale);
            values
        };
        let head = |head: usize| {
            let scale = 0.5 + head as f32 * 0.25;
            let vectors = |values: &[f32]| turned(values, (head + 1) * self.dim, scale);
            let HeadTensors { q, k, v, measured } = &self.tensors;
            let numbers = |(name, values): &(String, Vec<f32>)| (name.clone(), turned(values, head + 1, scale));
            match head {
                2 => self.tensors.clone(),
                _ => HeadTensors {
                    q: vectors(q),
                    k: vectors(k),
                    v: vectors(v),
                    measured: measured.iter().map(numbers).collect(),
                },
            }
        };
        LayerInput::new((0..4).map(head).collect())
    }

    pub fn input<'a>(&'a self, masks: &'a [&'a BitMatrix]) -> SelectorInput<'a> {
        SelectorInput {
            model: &self.model,
            blocks: &self.blocks,
            masks,
            at: At { step: 3, layer: 1, head: 2, ..At::default() },
            tensors: &self.tensors,
            layer: None,
            head_dim: self.dim,
        }
    }
}
