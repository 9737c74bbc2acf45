//! Random valid IR for tests.
//!
//! Operations are drawn at random over the values that are there; those that type stay.

use super::*;
use crate::plan::{Predicate, Program, Role};
use crate::source::Span;
use crate::tensor::Dtype;

/// A small generator of numbers; the same seed gives the same IR.
pub(crate) struct Random(u64);

impl Random {
    /// A generator.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// One of some.
    pub(crate) fn of<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn real(&mut self) -> f64 {
        match self.below(4) {
            0 => f64::from_bits(self.bits()),
            1 => self.of(&[0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-310, 0.1]),
            _ => self.below(9) as f64,
        }
    }

    fn name(&mut self) -> String {
        self.of(&["text", "image", "video", "all", "_", "a b", "é\"\\\n\u{1}", "", "set", "valid", "1x"]).to_string()
    }
}

fn id(r: &mut Random, graph: &Graph) -> ValueId {
    // Late values more often, so that operations nest.
    let back = r.below(graph.len().min(12));
    ValueId((if r.flag() { graph.len().saturating_sub(1 + back) } else { r.below(graph.len()) }) as u32)
}

fn op(r: &mut Random, graph: &Graph) -> Op {
    let side = r.of(&[Side::Query, Side::Key]);
    let set = |r: &mut Random| SetId(r.below(graph.sets().len()) as u16);
    let axis = r.below(graph.axes.len()) as u8;
    let (a, b, c) = (id(r, graph), id(r, graph), id(r, graph));
    match r.below(25) {
        0 => Op::Bool(r.flag()),
        1 => Op::Int(r.of(&[i64::MIN, -3, 0, 1, 2, 77, i64::MAX])),
        2 => Op::Real(Real(r.real())),
        3 => Op::Size(match r.below(7) {
            0 => Size::Layers,
            1 => Size::Heads,
            2 => Size::HeadDim,
            3 => Size::Steps,
            4 => Size::Tokens(set(r)),
            5 => Size::Axis(axis),
            _ => Size::Blocks(set(r), side),
        }),
        4 if r.below(2) == 0 => r.of(&[Op::LastComputed, Op::ReusedSteps, Op::Accumulated(a)]),
        4 => Op::Place(r.of(&[Place::Step, Place::Layer, Place::Head])),
        5 => {
            let keys = vec![a, b].into_iter().take(1 + r.below(2)).collect();
            Op::Table { table: 0, item: r.below(2) as u8, keys, otherwise: r.flag().then_some(c) }
        }
        6 => {
            let tile = Coordinate::Tile(r.below(3) as u8);
            let all = [Coordinate::Position, Coordinate::Block, Coordinate::Index, Coordinate::Axis(axis), tile];
            Op::Coordinate(r.of(&all), side)
        }
        7 => Op::InSet(set(r), side),
        8 | 9 => {
            use Unary::*;
            Op::Unary(r.of(&[Negate, Not, Abs, Sqrt, Exp, Log, Floor, Ceil, Round, BitLength, ToReal]), a)
        }
        10..=12 => {
            use Binary::*;
            let all = [Add, Subtract, Multiply, Divide, FloorDivide, Modulo, Power, Min, Max, Xor, And, Or];
            Op::Binary(r.of(&all), a, b)
        }
        13 => {
            use Comparison::*;
            Op::Compare(r.of(&[Equal, NotEqual, Less, LessEqual]), a, b)
        }
        14 => Op::Choose(a, b, c),
        15 if r.flag() => Op::Each(r.of(&[Source::Query, Source::Key, Source::Value]), set(r)),
        15 => {
            let statistic = r.of(&[Statistic::Mean, Statistic::CentredMean, Statistic::Min, Statistic::Max]);
            Op::Pool(statistic, r.of(&[Source::Query, Source::Key, Source::Value]))
        }
        16 if r.below(3) == 0 => Op::BlockTokens(side),
        16 if r.flag() => {
            let over = r.flag().then(|| (side, set(r)));
            Op::Measured { name: r.name(), over }
        }
        16 => Op::SelfSimilarity(side),
        17 if r.below(4) == 0 => {
            let spread = Op::Spread(a, set(r));
            let how = r.of(&[Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min]);
            r.of(&[Op::OverChannels { how, value: a }, spread])
        }
        17 => Op::Dot(a, b),
        18 => Op::Transpose(a),
        19 => Op::Slice { value: a, q: r.flag().then(|| set(r)), kv: r.flag().then(|| set(r)) },
        20 => Op::Reduce {
            how: r.of(&[Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min]),
            value: a,
            over: r.of(&[side.into(), Over::Both]),
        },
        21 => Op::Softmax { value: a, over: r.of(&[side.into(), Over::Both]) },
        22 => {
            let rounding = r.of(&[Rounding::Floor, Rounding::Ceil, Rounding::Nearest]);
            let top_p = Selector::TopP { crossing: r.flag(), ascending: r.flag(), strict: r.flag() };
            let ties = r.flag();
            let rule = r.of(&[
                Selector::TopK { rounding, ties },
                Selector::BottomK { rounding },
                top_p,
                Selector::BottomMass,
                Selector::Statistical,
            ]);
            let over = r.of(&[side.into(), Over::Both, Over::Layer, Over::Heads]);
            let cost = (r.below(4) == 0).then_some(a);
            Op::Select { rule, value: a, amount: b, at_least: r.flag().then_some(c), cost, over }
        }
        23 => {
            let how = r.of(&[Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min]);
            let gather = Op::Gather { how, value: a, q: r.flag().then(|| set(r)), kv: r.flag().then(|| set(r)) };
            let distances = set(r);
            r.of(&[Op::Start(a), Op::Diagonals(a, distances), Op::Distances(distances), Op::OnDiagonals(a), gather])
        }
        _ if r.below(3) == 0 => Op::Embed(a),
        _ if r.below(4) == 0 => Op::Shift { value: a, by: b, over: side },
        _ if r.below(4) == 0 => Op::AntiDiagonal { stride: a },
        _ if r.below(3) == 0 => Op::AtHead { value: a, head: b },
        _ if r.below(3) == 0 => Op::OverHeads { how: r.of(&[Reduction::Sum, Reduction::Max]), value: a },
        _ => Op::Lower(lower(r, axis), a),
    }
}

fn lower(r: &mut Random, axis: u8) -> Lower {
    let density = Lower::Density { column: Real(0.25), block: Real(1.0), per: r.flag().then_some(axis) };
    r.of(&[Lower::Any, Lower::All, Lower::Centre, Lower::Exact, density])
}

/// A graph of values that `keep` lets in.
fn graph(r: &mut Random, keep: impl Fn(&Op, Type) -> bool) -> Graph {
    let mut graph = Graph::default();
    graph.axes.extend(["t".to_string(), r.name(), "h".to_string()]);
    for _ in 0..3 {
        let parts = (0..1 + r.below(2))
            .map(|_| Part { segment: r.name(), which: r.of(&[Which::Whole, Which::Valid, Which::Pad]) });
        let parts = parts.collect();
        graph.set_of(
            parts,
            r.of(&[Grain::Blocks, Grain::Blocks, Grain::Tokens, Grain::Last(5), Grain::Rows(0), Grain::Distances]),
        );
    }
    graph.rows.push(Rows { name: r.name(), tokens: vec![0, 2, 3, 7] });
    let (dims, width) = (vec![1 + r.below(4) as u32, 1 + r.below(4) as u32], 1 + r.below(2) as u8);
    let mut values: Vec<f64> = (0..dims.iter().product::<u32>() * u32::from(width)).map(|_| r.real()).collect();
    values.sort_by(f64::total_cmp);
    let kind = r.of(&[Kind::Int, Kind::Bool, Kind::Real]);
    graph.tables.push(Table { name: r.name(), dims, width, kind, values: values.into() });
    graph.push(Op::Bool(true), Type::scalar(Kind::Bool), Span::default());
    graph.push(Op::Int(1), Type::scalar(Kind::Int), Span::default());
    for _ in 0..400 {
        let op = op(r, &graph);
        if let Ok(ty) = typing::type_of(&graph, &op)
            && keep(&op, ty)
        {
            graph.push(op, ty, Span::default());
        }
    }
    graph
}

/// The values of some type.
fn values(graph: &Graph, fits: impl Fn(Type) -> bool) -> Vec<ValueId> {
    graph.values().filter(|(_, value)| fits(value.ty)).map(|(id, _)| id).collect()
}

/// A valid strategy, bound when `bound`.
pub(crate) fn strategy(r: &mut Random, model: Option<Model>) -> Strategy {
    let bound = model.is_some();
    let graph = graph(r, |op, _| !(bound && matches!(op, Op::Size(_))));
    let truths = values(&graph, |ty| ty == Type::scalar(Kind::Bool));
    let ints: Vec<ValueId> =
        graph.values().filter(|(_, value)| matches!(value.op, Op::Int(_))).map(|(id, _)| id).collect();
    let predicates = values(&graph, |ty| {
        let whole = |set: Option<SetId>| set.is_none_or(|set| set == SetId::ALL);
        ty.kind == Kind::Bool && !matches!(ty.extent, Extent::Blocks { q, kv } if !whole(q) || !whole(kv))
    });
    let span = Span::default();
    let rules = (0..r.below(4)).map(|_| Rule {
        action: r.of(&[Action::Keep, Action::Skip]),
        guard: r.flag().then(|| r.of(&truths)),
        predicate: r.of(&predicates),
        lower: lower(r, 2),
        order: None,
        span,
    });
    let rules = rules.collect();
    let clauses = vec![
        Clause::While(ValueId(0)),
        Clause::Every { interval: r.of(&ints), from: r.flag().then(|| r.of(&ints)), except: r.flag() },
        Clause::On { steps: vec![r.of(&ints), r.of(&ints)], except: r.flag() },
    ];
    Strategy {
        name: r.name(),
        params: vec![(r.name(), r.name()), ("tau".to_string(), "0.5".to_string())],
        layout: vec![LayoutSegment { name: r.name(), axes: vec![r.name(), r.name()], span }],
        model,
        orders: vec![
            OrderRule { guard: None, segment: None, order: Order::Axes(vec![2, 0]), span },
            OrderRule {
                guard: Some(r.of(&truths)),
                segment: Some(r.name()),
                order: match r.flag() {
                    true => Order::Tiles(vec![r.of(&ints)]),
                    false => {
                        let [q, kv, iterations, again] = [(); 4].map(|()| r.of(&ints));
                        let by = r.of(&[Likeness::Distance, Likeness::Profile]);
                        Order::Clusters { q, kv, iterations, again, by }
                    }
                },
                span,
            },
        ],
        block: r.flag().then(|| Blocking::Sizes(r.of(&ints), r.of(&ints))),
        block_span: span,
        rules,
        schedule: vec![
            ScheduleRule {
                kind: StepKind::Reuse(r.of(&Unit::ALL)),
                guard: Some(ValueId(0)),
                clauses,
                order: Some(r.of(&ints)),
                span,
            },
            ScheduleRule { kind: StepKind::Dense, guard: None, clauses: Vec::new(), order: None, span },
        ],
        bounds: vec![Bound { place: Place::Head, value: r.of(&ints), exclusive: r.flag(), span }],
        open_params: vec![OpenParam { param: 1, at: 3, value: r.of(&ints) }],
        inputs: vec![InputShape { name: "draws".to_owned(), given: vec![4, 7], declared: vec![r.of(&ints); 2], span }],
        quirks: vec![r.name()],
        graph,
    }
}

/// A valid program with some bitmaps: matrices, then vectors.
pub(crate) fn program(r: &mut Random, matrices: u16, vectors: u16) -> Program {
    let mut graph = graph(r, |op, ty| {
        !matches!(op, Op::Size(_) | Op::Lower(..) | Op::Transpose(_))
            && !matches!(ty.extent, Extent::Token { .. } | Extent::Mixed)
    });
    let all = Some(SetId::ALL);
    for slot in 0..matrices + vectors {
        let kv = if slot < matrices { all } else { None };
        graph.push(Op::Mask(slot), Type::new(Kind::Bool, Extent::Blocks { q: all, kv }), Span::default());
    }
    let truth = |kv: bool| {
        values(&graph, |ty| {
            let whole = |set: Option<SetId>| set.is_none_or(|set| set == SetId::ALL);
            let extent = match ty.extent {
                Extent::Scalar => true,
                Extent::Blocks { q, kv: keys } => whole(q) && whole(keys) && (kv || keys.is_none()),
                _ => false,
            };
            ty.kind == Kind::Bool && extent
        })
    };
    let (any, rows) = (truth(true), truth(false));
    let terms = (0..4).map(|_| match r.below(4) {
        0 => (Role::Cache, r.of(&rows)),
        1 => (Role::Skip, r.of(&any)),
        2 => (Role::Partial, r.of(&any)),
        _ => (Role::Whole, r.of(&any)),
    });
    let terms = terms.collect();
    Program { graph, terms }
}

/// A valid predicate.
pub(crate) fn predicate(r: &mut Random) -> Predicate {
    let graph = graph(r, |op, ty| {
        !matches!(op, Op::Size(_) | Op::Place(_) | Op::LastComputed | Op::ReusedSteps | Op::Accumulated(_))
            && matches!(ty.extent, Extent::Scalar | Extent::Token { .. })
    });
    let truths = values(&graph, |ty| ty.kind == Kind::Bool);
    Predicate { value: r.of(&truths), graph }
}

/// A small model.
pub(crate) fn model(r: &mut Random) -> Model {
    let (h, w) = (1 + r.below(9) as u32, 1 + r.below(9) as u32);
    let text = 1 + r.below(40) as u32;
    let span = Span::default();
    let axes = vec![("h".to_string(), h), ("w".to_string(), w)];
    Model {
        name: r.name(),
        layers: 1 + r.below(3) as u32,
        heads: 1 + r.below(3) as u32,
        head_dim: 64,
        steps: 1 + r.below(4) as u32,
        dtype: r.of(&[Dtype::F32, Dtype::F16, Dtype::Bf16]),
        segments: vec![
            Segment { name: "text".to_string(), axes: Vec::new(), start: 0, tokens: text, valid: text / 2, span },
            Segment { name: "image".to_string(), axes, start: text, tokens: h * w, valid: h * w, span },
        ],
        span,
    }
}
