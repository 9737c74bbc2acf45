//! Layers for selector passes: random tensors of 16 bits, and the symbols that the interpreter makes of them; and programs that hold
//! every operation that has a kernel.

#![allow(dead_code, reason = "each test file uses a part of it")]

use flashomni::ir::scalar::At;
use flashomni::ir::{
    Binary, Comparison, Grain, Kind, Model, Op, Over, Place, Reduction, Rounding, Selector, SetId, Side, Source,
    Statistic, Type, Unary, ValueId,
};
use flashomni::kernels::Element;
use flashomni::kernels::selector::Setup;
use flashomni::plan::{HeadSymbols, Program, Role};
use flashomni::reference::selector::interpret;
use flashomni::selector::{HeadTensors, LayerInput, SelectorInput};
use flashomni::symbols::{BitMatrix, Blocks};
use rayon::prelude::*;

use crate::programs::{self, Build, COLUMNS, MATRIX, ROWS, TOP_K, TOP_P};

/// A layer at a step.
pub struct Layer {
    pub model: Model,
    pub blocks: Blocks,
    pub order: Option<Vec<u32>>,
    pub masks: Vec<BitMatrix>,
    pub element: Element,
    /// q, k and v `[heads][tokens][head_dim]`, in the model's order.
    pub tensors: [Vec<u16>; 3],
}

/// A number in 16 bits, rounded.
pub fn narrow(value: f32, element: Element) -> u16 {
    match element {
        Element::Bf16 => half::bf16::from_f32(value).to_bits(),
        Element::F16 => half::f16::from_f32(value).to_bits(),
    }
}

fn widen(bits: u16, element: Element) -> f32 {
    match element {
        Element::Bf16 => half::bf16::from_bits(bits).to_f32(),
        Element::F16 => half::f16::from_bits(bits).to_f32(),
    }
}

impl Layer {
    /// Tensors of `number`s, of which there are always more.
    pub fn new(
        model: Model,
        blocks: Blocks,
        order: Option<Vec<u32>>,
        masks: Vec<BitMatrix>,
        element: Element,
        mut number: impl FnMut() -> f32,
    ) -> Self {
        let count = (model.heads * model.tokens() * model.head_dim) as usize;
        let tensors = [(); 3].map(|()| (0..count).map(|_| narrow(number(), element)).collect());
        Layer { model, blocks, order, masks, element, tensors }
    }

    fn head(&self, head: usize) -> HeadTensors {
        let (tokens, dim) = (self.model.tokens() as usize, self.model.head_dim as usize);
        let [q, k, v] = [0, 1, 2].map(|tensor| {
            let own = &self.tensors[tensor][head * tokens * dim..][..tokens * dim];
            let place = |token: usize| self.order.as_ref().map_or(token, |order| order[token] as usize);
            (0..tokens * dim).map(|i| widen(own[place(i / dim) * dim + i % dim], self.element)).collect()
        });
        HeadTensors { q, k, v, measured: Vec::new() }
    }

    /// What a pass for some heads is made of.
    pub fn setup<'a>(&'a self, program: &'a Program, heads: &'a [u32], places: &'a [(u32, u32)]) -> Setup<'a> {
        let Layer { model, blocks, order, .. } = self;
        let masks = self.masks.iter().collect();
        Setup { program, model, blocks, order: order.as_deref(), masks, heads, places }
    }

    /// The symbols of heads.
    pub fn expected(&self, program: &Program, heads: &[u32], (step, layer): (u32, u32)) -> Vec<HeadSymbols> {
        let masks: Vec<&BitMatrix> = self.masks.iter().collect();
        let all = LayerInput::new((0..self.model.heads as usize).map(|head| self.head(head)).collect());
        let of_head = |&head: &u32| {
            let tensors = self.head(head as usize);
            let input = SelectorInput {
                model: &self.model,
                blocks: &self.blocks,
                masks: &masks,
                at: At { step, layer, head, ..At::default() },
                tensors: &tensors,
                layer: Some(&all),
                head_dim: self.model.head_dim as usize,
            };
            let bits = interpret(program, &input).unwrap();
            HeadSymbols::of_terms(program.terms.iter().map(|(role, _)| *role).zip(bits), &self.blocks)
        };
        heads.par_iter().map(of_head).collect()
    }
}

/// A model of text and image with some heads.
pub fn model(text: usize, image: usize, heads: u32, head_dim: u32) -> Model {
    Model { heads, head_dim, steps: 8, layers: 4, ..programs::model(&[("text", text), ("image", image)]) }
}

/// Masks as the programs ask for them: a matrix, q-blocks, kv-blocks, and a matrix with empty rows.
pub fn masks(q_blocks: usize, kv_blocks: usize, random: &mut programs::Random) -> Vec<BitMatrix> {
    let sizes = [(q_blocks, kv_blocks), (1, q_blocks), (1, kv_blocks), (q_blocks, kv_blocks)];
    let mut all = Vec::new();
    for (index, (rows, columns)) in sizes.into_iter().enumerate() {
        let mut mask = BitMatrix::zeros(rows, columns);
        for row in 0..rows {
            let empty = index == 3 && row % 3 == 0;
            (0..columns).for_each(|column| mask.set(row, column, !empty && random.below(3) > 0));
        }
        all.push(mask);
    }
    all
}

/// A real number of the head: `from + by * head`.
fn of_head(b: &mut Build, from: f64, by: f64) -> ValueId {
    let head = b.typed(Op::Place(Place::Head));
    let head =
        b.graph.push(Op::Unary(Unary::ToReal, head), Type::scalar(Kind::Real), flashomni::source::Span::default());
    let (from, by) = (b.real(from), b.real(by));
    let scaled = b.binary(Binary::Multiply, head, by);
    b.binary(Binary::Add, from, scaled)
}

fn half(b: &mut Build, value: ValueId, over: impl Into<Over>) -> ValueId {
    let amount = b.real(0.5);
    b.select(TOP_K, value, amount, over)
}

fn rules() -> Vec<Selector> {
    let mut rules = vec![Selector::BottomMass, Selector::Statistical, TOP_P];
    for rounding in [Rounding::Floor, Rounding::Ceil, Rounding::Nearest] {
        rules.extend([Selector::TopK { rounding, ties: rounding == Rounding::Ceil }, Selector::BottomK { rounding }]);
    }
    for (crossing, ascending, strict) in
        [(true, false, false), (true, false, true), (false, false, true), (true, true, false), (true, true, true)]
    {
        rules.push(Selector::TopP { crossing, ascending, strict });
    }
    rules
}

/// The paper's strategy, as `examples/strategies/flashomni.omni` has it.
pub fn flashomni(dim: usize) -> Program {
    let mut b = Build::default();
    let (text, image) = (b.set("text"), b.set("image"));
    let score = b.score(dim);
    let map = b.softmax(score, Side::Key);
    let given = b.slice(map, Some(text), Some(image));
    let given = b.transpose(given);
    let contribution = b.reduce(Reduction::Sum, given, Side::Key);
    let taken = b.slice(map, Some(image), Some(text));
    let taken = b.softmax(taken, Side::Query);
    let guidance = b.reduce(Reduction::Sum, taken, Side::Key);
    let tau_q = of_head(&mut b, 0.3, 0.1);
    let cached = |b: &mut Build, value: ValueId| {
        let sum = b.reduce(Reduction::Sum, value, Side::Query);
        let share = b.binary(Binary::Divide, value, sum);
        b.select(Selector::BottomMass, share, tau_q, Side::Query)
    };
    let (first, second) = (cached(&mut b, contribution), cached(&mut b, guidance));
    let both = b.binary(Binary::And, first, second);
    let both = b.embed(both);
    b.term(Role::Cache, both);
    let tau_kv = b.real(0.15);
    let skipped = b.select(Selector::BottomMass, map, tau_kv, Side::Key);
    b.term(Role::Skip, skipped);
    b.program()
}

/// Products of all tokens with all tokens, many more than those of blocks.
pub fn products() -> Program {
    let mut b = Build::default();
    let all = b.graph.set_of(vec![], Grain::Tokens);
    let [q, k] = [Source::Query, Source::Key].map(|source| b.typed(Op::Each(source, all)));
    let pairs = b.typed(Op::Dot(q, k));
    let whole = Some(SetId::ALL);
    let blocks = b.typed(Op::Gather { how: Reduction::Mean, value: pairs, q: whole, kv: whole });
    let selected = half(&mut b, blocks, Side::Key);
    b.term(Role::Whole, selected);
    b.program()
}

type Program1 = fn(&mut Build, usize);

/// Programs by name, for masks of [`masks`] and a head of so many channels.
pub fn all(dim: usize) -> Vec<(&'static str, Program)> {
    let builders: [(&str, Program1); 13] = [
        ("statistics of blocks", statistics),
        ("channels of vectors", channels),
        ("softmax and reductions", lines),
        ("chains of every access", chains),
        ("selections of rows and columns", selections),
        ("selections of maps and layers", maps_and_layers),
        ("amounts of lines, costs", amounts),
        ("moves", moves),
        ("other heads", other_heads),
        ("tokens and their blocks", tokens),
        ("anti-diagonals", anti_diagonals),
        ("scalars and caches", scalars),
        ("factors of terms", factors),
    ];
    let mut all: Vec<(&str, Program)> = vec![("flashomni", flashomni(dim))];
    for (name, build) in builders {
        let mut b = Build::default();
        build(&mut b, dim);
        join(&mut b);
        all.push((name, b.program()));
    }
    all
}

/// All terms that decide blocks as one that differs where an odd number of them does, so that each bit of each shows. Roles have a
/// program of their own, [`scalars`].
fn join(b: &mut Build) {
    const AT_ONCE: usize = 12;
    if b.terms.iter().any(|(role, _)| *role == Role::Cache) {
        return;
    }
    let mut open: Vec<ValueId> = b.terms.drain(..).map(|(_, id)| id).collect();
    // A term over all blocks, so that the others are spread over them.
    open.push(b.mask(0, MATRIX));
    while open.len() > 1 {
        let joined = |few: &[ValueId], b: &mut Build| {
            let all = few[1..].iter().fold(few[0], |all, &id| b.binary(Binary::Xor, all, id));
            // What is moved ends a chain, which has room for so many arrays.
            b.embed(all)
        };
        open = open.chunks(AT_ONCE).map(|few| joined(few, b)).collect();
    }
    b.term(Role::Whole, open[0]);
}

fn statistics(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let selected = half(b, score, Side::Key);
    b.term(Role::Whole, selected);
    for statistic in [Statistic::CentredMean, Statistic::Min, Statistic::Max] {
        let (q, k) = (b.pool(statistic, Side::Query), b.pool(statistic, Side::Key));
        let score = b.push(Op::Dot(q, k), Kind::Real, MATRIX);
        let selected = half(b, score, Side::Query);
        b.term(Role::Whole, selected);
    }
    for (side, bound) in [(Side::Query, 0.2), (Side::Key, 0.25)] {
        let similarity = b.similarity(side);
        let bound = b.real(bound);
        let above = b.compare(Comparison::Less, bound, similarity);
        b.term(Role::Skip, above);
    }
}

fn channels(b: &mut Build, _: usize) {
    let all = b.graph.set_of(vec![], Grain::Tokens);
    let (each, mean) = (b.typed(Op::Each(Source::Value, all)), b.typed(Op::Pool(Statistic::Mean, Source::Value)));
    let spread = b.typed(Op::Spread(mean, all));
    let far = b.typed(Op::Binary(Binary::Subtract, each, spread));
    let square = b.typed(Op::Binary(Binary::Multiply, far, far));
    let square = b.typed(Op::OverChannels { how: Reduction::Sum, value: square });
    let errors = b.typed(Op::Gather { how: Reduction::Sum, value: square, q: None, kv: Some(SetId::ALL) });
    for how in [Reduction::Mean, Reduction::Max, Reduction::Min] {
        let number = b.typed(Op::OverChannels { how, value: mean });
        let centred = b.typed(Op::Binary(Binary::Subtract, number, mean));
        let scale = of_head(b, 0.5, 0.25);
        let scaled = b.typed(Op::Binary(Binary::Divide, centred, scale));
        let size = b.typed(Op::Unary(Unary::Abs, scaled));
        let less = b.typed(Op::Unary(Unary::Negate, size));
        let clipped = b.typed(Op::Binary(Binary::Max, less, mean));
        let clipped = b.typed(Op::Binary(Binary::Min, clipped, scaled));
        let clipped = b.typed(Op::Binary(Binary::Add, clipped, scale));
        let largest = b.typed(Op::OverChannels { how: Reduction::Max, value: clipped });
        let less = b.compare(Comparison::Less, errors, largest);
        b.term(if how == Reduction::Max { Role::Whole } else { Role::Skip }, less);
    }
}

fn lines(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let masked = {
        let (mask, low) = (b.mask(3, MATRIX), b.real(f64::NEG_INFINITY));
        b.choose(mask, score, low)
    };
    for over in [Over::Key, Over::Query, Over::Both] {
        for value in [score, masked] {
            let shares = b.softmax(value, over);
            let amount = b.real(0.02);
            let above = b.compare(Comparison::Less, amount, shares);
            b.term(Role::Skip, above);
        }
        for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
            let reduced = b.reduce(how, score, over);
            let above = b.compare(Comparison::Less, reduced, score);
            let selected = half(b, score, Side::Key);
            let both = b.binary(Binary::And, above, selected);
            b.term(Role::Whole, both);
        }
    }
}

fn chains(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let exp = b.unary(Unary::Exp, score);
    let rows = b.reduce(Reduction::Sum, exp, Side::Key);
    let columns = b.reduce(Reduction::Sum, exp, Side::Query);
    let total = b.reduce(Reduction::Sum, rows, Side::Query);
    let share = b.binary(Binary::Divide, exp, rows);
    let share = b.binary(Binary::Divide, share, columns);
    let share = b.binary(Binary::Multiply, share, total);
    let root = b.unary(Unary::Sqrt, share);
    let scale = of_head(b, 0.37, 0.2);
    let scaled = b.binary(Binary::Multiply, root, scale);
    let selected = half(b, scaled, Side::Key);
    let (mask, q, kv) = (b.mask(0, MATRIX), b.mask(1, ROWS), b.mask(2, COLUMNS));
    let outer = b.binary(Binary::And, q, kv);
    let either = b.binary(Binary::Or, mask, outer);
    let both = b.binary(Binary::And, either, selected);
    b.term(Role::Whole, both);
    let sizes = b.push(Op::BlockTokens(Side::Key), Kind::Real, COLUMNS);
    let most = b.reduce(Reduction::Max, sizes, Side::Key);
    let whole = b.compare(Comparison::Equal, sizes, most);
    let not = b.unary(Unary::Not, whole);
    b.term(Role::Skip, not);
}

fn selections(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let shares = b.softmax(score, Side::Key);
    let masked = {
        let (mask, low) = (b.mask(3, MATRIX), b.real(f64::NEG_INFINITY));
        b.choose(mask, score, low)
    };
    for (index, rule) in rules().into_iter().enumerate() {
        let amount = of_head(b, 0.05, 0.12);
        let at_least = b.int(index as i64 % 3);
        for value in [score, shares, masked] {
            for over in [Side::Key, Side::Query] {
                let selected = b.select_at_least(rule, value, amount, Some(at_least), over);
                b.term(Role::Whole, selected);
            }
        }
    }
}

fn maps_and_layers(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let shares = b.softmax(score, Over::Both);
    for (index, rule) in rules().into_iter().enumerate() {
        for over in [Over::Both, Over::Layer, Over::Heads] {
            let amount = b.real(0.15 + 0.05 * index as f64);
            let at_least = b.int(1);
            let value = if over == Over::Layer { score } else { shares };
            let selected = b.select_at_least(rule, value, amount, Some(at_least), over);
            b.term(Role::Whole, selected);
        }
    }
}

fn amounts(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let shares = b.softmax(score, Side::Key);
    let rows = b.reduce(Reduction::Max, shares, Side::Key);
    let columns = b.reduce(Reduction::Max, shares, Side::Query);
    let one = b.reduce(Reduction::Max, columns, Side::Key);
    let (three, scale) = (b.real(3.0), b.real(9.0));
    let cost = b.unary(Unary::Abs, score);
    for rule in [Selector::BottomMass, TOP_P, Selector::TopP { crossing: true, ascending: true, strict: false }] {
        for (amount, over) in [(rows, Over::Key), (columns, Over::Query), (one, Over::Key), (one, Over::Both)] {
            let selected = b.select(rule, shares, amount, over);
            b.term(Role::Skip, selected);
        }
        let extent = b.graph.ty(shares).extent;
        let op = |over| Op::Select { rule, value: shares, amount: three, at_least: None, cost: Some(cost), over };
        let selected = b.push(op(Over::Key), Kind::Bool, extent);
        b.term(Role::Whole, selected);
        let selected = b.push(op(Over::Query), Kind::Bool, extent);
        b.term(Role::Whole, selected);
    }
    for rule in [TOP_K, Selector::BottomK { rounding: Rounding::Floor }] {
        let counts = b.binary(Binary::Multiply, rows, scale);
        let selected = b.select(rule, score, counts, Side::Key);
        b.term(Role::Whole, selected);
    }
}

fn moves(b: &mut Build, dim: usize) {
    let (text, image) = (b.set("text"), b.set("image"));
    let score = b.score(dim);
    let part = b.slice(score, Some(image), Some(text));
    let selected = half(b, part, Side::Query);
    let selected = b.embed(selected);
    b.term(Role::Whole, selected);
    let turned = b.transpose(score);
    let selected = half(b, turned, Side::Key);
    b.term(Role::Whole, selected);
    let rows = b.reduce(Reduction::Sum, part, Side::Query);
    let rows = b.transpose(rows);
    let selected = half(b, rows, Side::Query);
    let selected = b.embed(selected);
    b.term(Role::Skip, selected);
    for (over, by) in [(Side::Query, 2), (Side::Key, -1)] {
        let (step, by) = (b.typed(Op::Place(Place::Step)), b.int(by));
        let by = b.binary(Binary::Subtract, by, step);
        let moved = b.push(Op::Shift { value: score, by, over }, Kind::Real, MATRIX);
        let less = b.compare(Comparison::Less, moved, score);
        b.term(Role::Skip, less);
    }
}

fn other_heads(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let (head, one) = (b.typed(Op::Place(Place::Head)), b.int(1));
    let next = b.binary(Binary::Add, head, one);
    let other = b.push(Op::AtHead { value: score, head: next }, Kind::Real, MATRIX);
    let selected = half(b, other, Side::Key);
    b.term(Role::Whole, selected);
    for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
        let all = b.push(Op::OverHeads { how, value: score }, Kind::Real, MATRIX);
        let above = b.compare(Comparison::Less, all, score);
        let selected = half(b, all, Side::Query);
        let both = b.binary(Binary::And, above, selected);
        b.term(Role::Skip, both);
    }
}

fn tokens(b: &mut Build, dim: usize) {
    let (all, last) = (b.graph.set_of(vec![], Grain::Tokens), b.graph.set_of(vec![], Grain::Last(9)));
    let (q, k) = (b.typed(Op::Each(Source::Query, all)), b.typed(Op::Each(Source::Key, all)));
    let (rows, means) = (b.typed(Op::Each(Source::Query, last)), b.pool(Statistic::Mean, Side::Key));
    let (amount, whole) = (b.real(0.3), Some(SetId::ALL));
    let gate = b.typed(Op::Dot(q, means));
    let chosen = b.select(TOP_K, gate, amount, Side::Key);
    for how in [Reduction::Max, Reduction::Min] {
        let blocks = b.typed(Op::Gather { how, value: chosen, q: whole, kv: None });
        b.term(if how == Reduction::Max { Role::Whole } else { Role::Skip }, blocks);
    }
    let pairs = b.typed(Op::Dot(q, k));
    for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
        let blocks = b.typed(Op::Gather { how, value: pairs, q: whole, kv: whole });
        let selected = half(b, blocks, Side::Key);
        b.term(Role::Skip, selected);
    }
    let score = b.score(dim);
    let spread = b.typed(Op::Slice { value: score, q: Some(all), kv: None });
    let sum = b.binary(Binary::Add, gate, spread);
    let (at, start) = (b.typed(Op::Start(q)), b.typed(Op::Start(means)));
    let before = b.compare(Comparison::LessEqual, start, at);
    let masked = b.choose(before, sum, amount);
    let chosen = b.select(TOP_K, masked, amount, Side::Key);
    let blocks = b.typed(Op::Gather { how: Reduction::Max, value: chosen, q: whole, kv: None });
    b.term(Role::Whole, blocks);
    let lines = b.typed(Op::Dot(rows, k));
    let shares = b.softmax(lines, Side::Key);
    let columns = b.reduce(Reduction::Sum, shares, Side::Query);
    let columns = b.select(TOP_K, columns, amount, Side::Key);
    let columns = b.typed(Op::Gather { how: Reduction::Max, value: columns, q: None, kv: whole });
    b.term(Role::Whole, columns);
    let distances = b.graph.set_of(vec![], Grain::Distances);
    let diagonals = b.typed(Op::Diagonals(shares, distances));
    let far = b.typed(Op::Distances(distances));
    let far = b.compare(Comparison::Less, amount, far);
    let diagonals = b.choose(far, diagonals, amount);
    let few = b.real(0.05);
    let diagonals = b.select(TOP_K, diagonals, few, Side::Key);
    let diagonals = b.typed(Op::OnDiagonals(diagonals));
    b.term(Role::Whole, diagonals);
}

fn anti_diagonals(b: &mut Build, _: usize) {
    let stride = b.int(4);
    let score = b.typed(Op::AntiDiagonal { stride });
    let rows = b.reduce(Reduction::Sum, score, Side::Key);
    let share = b.binary(Binary::Divide, score, rows);
    let amount = b.real(0.6);
    let selected =
        b.select(Selector::TopP { crossing: true, ascending: false, strict: true }, share, amount, Side::Key);
    b.term(Role::Whole, selected);
}

fn scalars(b: &mut Build, dim: usize) {
    let score = b.score(dim);
    let rows = b.reduce(Reduction::Max, score, Side::Key);
    let first = half(b, rows, Side::Query);
    b.term(Role::Cache, first);
    let columns = b.reduce(Reduction::Max, score, Side::Query);
    let columns = half(b, columns, Side::Key);
    b.term(Role::Whole, columns);
    let (head, one) = (b.typed(Op::Place(Place::Head)), b.int(1));
    let is_first = b.typed(Op::Compare(Comparison::Equal, head, one));
    b.term(Role::Cache, is_first);
    let zero = b.int(0);
    let is_none = b.typed(Op::Compare(Comparison::Equal, head, zero));
    b.term(Role::Skip, is_none);
}

/// Terms that fall apart into masks, scalars and choices of a part of the blocks, and one that something else needs whole.
fn factors(b: &mut Build, dim: usize) {
    let (text, image) = (b.set("text"), b.set("image"));
    let score = b.score(dim);
    let part = b.slice(score, Some(text), Some(image));
    let chosen = half(b, part, Side::Key);
    let most = b.reduce(Reduction::Max, part, Side::Key);
    let rows = half(b, most, Side::Query);
    let both = b.binary(Binary::And, chosen, rows);
    let both = b.embed(both);
    let mask = b.mask(0, MATRIX);
    let inside = b.binary(Binary::And, mask, both);
    let (head, one) = (b.typed(Op::Place(Place::Head)), b.int(1));
    let is_other = b.typed(Op::Compare(Comparison::Less, head, one));
    let inside = b.binary(Binary::And, inside, is_other);
    b.term(Role::Whole, inside);
    let rows = b.embed(rows);
    b.term(Role::Cache, rows);
    let (other, columns) = (b.mask(3, MATRIX), b.mask(2, COLUMNS));
    let shared = b.binary(Binary::And, other, columns);
    b.term(Role::Whole, shared);
    let skipped = b.binary(Binary::And, shared, mask);
    b.term(Role::Skip, skipped);
}
