//! A strategy meets a model: sizes become constants, and everything that does not fit is reported.
//!
//! Behind this pass nothing can fail: segments and axes exist, ranges end in time, tables have an entry for every
//! place, amounts are in their range. What depends on the place (a ramp over the steps, a table) is tried at
//! every place it depends on.

mod orders;
mod params;

use super::fold_constants::push_folded;
use crate::diagnostics::{Code, Diagnostic, Severity, did_you_mean};
use crate::geometry::order::{self, tiling};
use crate::ir::scalar::{At, NoTokens, Scalar, evaluate};
use crate::ir::{
    Action, BLOCK_TOKENS, Blocking, Clause, Extent, Graph, Kind, Model, Op, Part, Place, ScheduleRule, Selector, Size,
    StepKind, Strategy, ValueId,
};
use crate::plan::blocks_of_set;
use crate::source::Span;
use crate::symbols::Blocks;

/// Blocks of a side at most: a bitmap of one head then has 32 MiB.
const MAX_BLOCKS: usize = 1 << 14;
/// Operations evaluated at single places at most, some tens of seconds.
const MAX_EVALUATIONS: u64 = 1 << 32;
/// The highest order of a forecast.
pub const MAX_FORECAST_ORDER: i64 = 4;

/// Binds `strategy` to `model`. Gives the warnings.
///
/// # Errors
/// All findings, when one of them is an error.
pub fn bind_model(strategy: &mut Strategy, model: &Model) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let mut binder = Binder { model, findings: Vec::new() };
    binder.layout(strategy);
    binder.stop_at_errors()?;
    let block = binder.block(strategy);
    binder.stop_at_errors()?;
    binder.clusters(strategy);
    binder.stop_at_errors()?;
    let blocks = order::blocks(&strategy.graph, model, &strategy.orders, strategy.block, [block.0, block.1]);
    strategy.rewrite(|new, old, id, op| {
        let value = old.value(id);
        let op = match op {
            Op::Size(size) => Op::Int(size_of(size, old, model, &blocks)),
            other => other,
        };
        push_folded(new, op, value.ty, value.span)
    });
    strategy.model = Some(model.clone());
    params::name(strategy);
    binder.evaluations(strategy);
    binder.stop_at_errors()?;
    binder.bounds(strategy);
    binder.inputs(strategy);
    binder.orders(strategy, block);
    binder.schedule(strategy);
    binder.rules(strategy, &blocks);
    binder.values(strategy);
    binder.stop_at_errors()?;
    Ok(binder.findings)
}

fn size_of(size: Size, graph: &Graph, model: &Model, blocks: &Blocks) -> i64 {
    let tokens = |parts: &[Part]| -> i64 { model.ranges(parts).iter().map(|(a, b)| i64::from(b - a)).sum() };
    match size {
        Size::Layers => model.layers.into(),
        Size::Heads => model.heads.into(),
        Size::HeadDim => model.head_dim.into(),
        Size::Steps => model.steps.into(),
        Size::Tokens(set) => tokens(graph.parts(set)),
        Size::Axis(axis) => {
            let name = &graph.axes[usize::from(axis)];
            let sizes = model.segments.iter().flat_map(|segment| &segment.axes);
            sizes.filter(|(known, _)| known == name).map(|(_, size)| i64::from(*size)).next().unwrap_or(1)
        }
        Size::Blocks(set, side) => blocks_of_set(model, graph.parts(set), blocks, side).len() as i64,
    }
}

/// Which of step, layer and head a scalar depends on.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Dependence {
    /// Depends on the step.
    pub step: bool,
    /// Depends on the layer.
    pub layer: bool,
    /// Depends on the head.
    pub head: bool,
}

impl Dependence {
    /// The dependence of a value.
    #[must_use]
    pub fn of(graph: &Graph, id: ValueId) -> Self {
        let on = |place| graph.depends_on(id, place);
        Dependence { step: on(Place::Step), layer: on(Place::Layer), head: on(Place::Head) }
    }

    /// Whether either depends.
    #[must_use]
    pub fn or(self, other: Dependence) -> Self {
        Dependence { step: self.step || other.step, layer: self.layer || other.layer, head: self.head || other.head }
    }

    /// Number of places that may differ, for a model.
    #[must_use]
    pub fn count(self, model: &Model) -> u64 {
        let count = |depends: bool, count: u32| if depends { u64::from(count) } else { 1 };
        count(self.step, model.steps) * count(self.layer, model.layers) * count(self.head, model.heads)
    }

    /// Every place that may differ, for a model.
    pub fn places(self, model: &Model) -> impl Iterator<Item = At> + use<> {
        let count = |depends: bool, count: u32| if depends { count } else { 1 };
        let (layers, heads) = (count(self.layer, model.layers), count(self.head, model.heads));
        (0..count(self.step, model.steps)).flat_map(move |step| {
            (0..layers).flat_map(move |layer| (0..heads).map(move |head| At { step, layer, head, ..At::default() }))
        })
    }
}

struct Binder<'a> {
    model: &'a Model,
    findings: Vec<Diagnostic>,
}

impl Binder<'_> {
    fn stop_at_errors(&mut self) -> Result<(), Vec<Diagnostic>> {
        if self.findings.iter().any(|finding| finding.severity() == Severity::Error) {
            return Err(std::mem::take(&mut self.findings));
        }
        Ok(())
    }

    fn report(&mut self, diagnostic: Diagnostic) {
        self.findings.push(diagnostic);
    }

    fn layout(&mut self, strategy: &Strategy) {
        for wanted in &strategy.layout {
            let Some(segment) = self.model.segment(&wanted.name) else {
                let names: Vec<String> =
                    self.model.segments.iter().map(|segment| format!("`{}`", segment.name)).collect();
                let mut diagnostic = Diagnostic::new(
                    Code::E0302,
                    wanted.span,
                    format!("model `{}` has no segment `{}`", self.model.name, wanted.name),
                )
                .label("needed here")
                .also(self.model.span, format!("it has {}", names.join(", ")));
                let names = self.model.segments.iter().map(|segment| segment.name.as_str());
                if let Some(near) = did_you_mean(&wanted.name, names) {
                    // The rules use the name too: no single edit mends it.
                    diagnostic = diagnostic.help(format!("is it `{near}`, here and in the rules?"));
                } else if let (Some(grid), false) = (self.model.grid(), wanted.axes.is_empty()) {
                    diagnostic = diagnostic.help(format!(
                        "`vision` stands for the segment with coordinates of any model, here `{}`",
                        grid.name
                    ));
                }
                self.report(diagnostic);
                continue;
            };
            for axis in &wanted.axes {
                if !segment.axes.iter().any(|(known, _)| known == axis) {
                    let has: Vec<String> = segment.axes.iter().map(|(name, _)| format!("`{name}`")).collect();
                    let has = if has.is_empty() { "no axes".to_owned() } else { has.join(", ") };
                    let message =
                        format!("segment `{}` of model `{}` has no axis `{axis}`", segment.name, self.model.name);
                    self.report(
                        Diagnostic::new(Code::E0302, wanted.span, message)
                            .label("needed here")
                            .also(segment.span, format!("it has {has}")),
                    );
                }
            }
        }
    }

    /// Block sizes; they may depend on the sizes of the model, but not on blocks or places.
    fn block(&mut self, strategy: &Strategy) -> (usize, usize) {
        let (q, kv) = match strategy.block {
            Some(Blocking::Sizes(q, kv)) => (q, kv),
            Some(Blocking::Tiles) => return self.tile_block(strategy),
            None => return self.check_blocks(128, 128, self.model.span),
        };
        let mut size = |id: ValueId| {
            let span = within(strategy.block_span, strategy.graph.value(id).span);
            let graph = &strategy.graph;
            let value = self.block_size(graph, id);
            match value {
                Some(size) if BLOCK_TOKENS.contains(&size) => Some((size as usize, span)),
                found => {
                    let found =
                        found.map_or("one that depends on the number of blocks".to_owned(), |size| size.to_string());
                    let (least, most) = (BLOCK_TOKENS.start(), BLOCK_TOKENS.end());
                    self.findings.push(Diagnostic::new(
                        Code::E0304,
                        span,
                        format!("a block has {least} to {most} tokens, found {found}"),
                    ));
                    None
                }
            }
        };
        match (size(q), size(kv)) {
            (Some((q, span)), Some((kv, _))) => self.check_blocks(q, kv, span),
            _ => (128, 128),
        }
    }

    fn block_size(&self, graph: &Graph, id: ValueId) -> Option<i64> {
        let sizes_known = Blocks::regular(1, 1, 1, 1);
        let mut folded = graph.emptied();
        let mut map: Vec<ValueId> = Vec::new();
        for (_, value) in graph.values().take(id.0 as usize + 1) {
            let op = match value.op.map_operands(|operand| map[operand.0 as usize]) {
                Op::Size(size @ Size::Blocks(..)) => Op::Size(size),
                Op::Size(size) => Op::Int(size_of(size, graph, self.model, &sizes_known)),
                other => other,
            };
            map.push(push_folded(&mut folded, op, value.ty, value.span));
        }
        match folded.op(map[id.0 as usize]) {
            Op::Int(size) => Some(*size),
            _ => None,
        }
    }

    fn check_blocks(&mut self, q: usize, kv: usize, span: Span) -> (usize, usize) {
        let tokens = self.model.tokens() as usize;
        if tokens.div_ceil(q.min(kv)) > MAX_BLOCKS {
            let message = format!("{tokens} tokens in blocks of {} are more than {MAX_BLOCKS} blocks", q.min(kv));
            self.report(
                Diagnostic::new(Code::E0309, span, message)
                    .also(self.model.span, "the model's sequence")
                    .help("choose larger blocks"),
            );
        }
        (q, kv)
    }

    /// An upper bound of the operations that this and the later passes evaluate at single places.
    fn evaluations(&mut self, strategy: &Strategy) {
        let graph = &strategy.graph;
        // A value costs what is below it, as a tree; where that is large, each value once.
        let mut costs: Vec<u64> = Vec::with_capacity(graph.len());
        for (id, value) in graph.values() {
            let tree = value.op.operands().iter().map(|operand| costs[operand.0 as usize]).sum::<u64>() + 1;
            costs.push(tree.min(1000 + u64::from(id.0)));
        }
        let cost = |id: ValueId| costs[id.0 as usize];
        let places = |dependence: Dependence| dependence.count(self.model);
        let alone = |id: ValueId| places(Dependence::of(graph, id)).saturating_mul(cost(id));
        let mut all = 0_u64;
        let (mut together, mut each) = (Dependence::default(), 0_u64);
        for rule in &strategy.rules {
            let ids = rule.guard.iter().chain(&rule.order).chain([&rule.predicate]);
            for &id in ids {
                together = together.or(Dependence::of(graph, id));
                each = each.saturating_add(cost(id));
            }
            all = rule.guard.iter().chain(&rule.order).fold(all, |all, &id| all.saturating_add(alone(id)));
        }
        for &id in strategy.orders.iter().filter_map(|rule| rule.guard.as_ref()) {
            together = together.or(Dependence::of(graph, id));
            each = each.saturating_add(cost(id));
        }
        all = all.saturating_add(places(together).saturating_mul(each));
        for (_, value) in graph.values() {
            let scalars: Vec<ValueId> = match &value.op {
                Op::Select { amount, at_least, .. } => at_least.iter().chain([amount]).copied().collect(),
                Op::Table { keys, .. } => keys.clone(),
                _ => continue,
            };
            all = scalars.into_iter().fold(all, |all, id| all.saturating_add(alone(id)));
        }
        let lines: u64 = strategy.schedule.iter().map(|rule| 1 + line_cost(rule, cost)).sum();
        let (steps, layers) = (u64::from(self.model.steps), u64::from(self.model.layers));
        all = all.saturating_add(lines.saturating_mul(steps * layers));
        if all > MAX_EVALUATIONS {
            let span = strategy.rules.first().map_or(self.model.span, |rule| rule.span);
            let message = format!(
                "conditions of this strategy take {all} operations over all steps, layers and heads, at most {MAX_EVALUATIONS}"
            );
            self.report(
                Diagnostic::new(Code::E0309, span, message)
                    .also(self.model.span, format!("{steps} steps, {layers} layers, {} heads", self.model.heads))
                    .help("write fewer rules, put values by step, layer and head into a `table`, or choose a smaller model"),
            );
        }
    }

    fn bounds(&mut self, strategy: &Strategy) {
        for bound in &strategy.bounds {
            let (count, word) = match bound.place {
                Place::Step => (self.model.steps, "steps"),
                Place::Layer => (self.model.layers, "layers"),
                Place::Head => (self.model.heads, "heads"),
            };
            let value = evaluate(&strategy.graph, bound.value, At::default(), &NoTokens).int();
            let most = i64::from(count) - i64::from(!bound.exclusive);
            if !(0..=most).contains(&value) {
                let message = format!("{value} is past the end: model `{}` has {count} {word}", self.model.name);
                let mut diagnostic = Diagnostic::new(Code::E0303, bound.span, message)
                    .label(format!("at most {most} here"))
                    .also(self.model.span, format!("{count} {word}"))
                    .note(format!("{word} are counted from 0 to {}", count - 1));
                if bound.exclusive {
                    diagnostic = diagnostic.fix("leave the end out to reach the last", bound.span, "");
                }
                self.report(diagnostic);
            }
        }
    }

    /// Inputs have the shapes that the strategy asks for.
    fn inputs(&mut self, strategy: &Strategy) {
        for input in &strategy.inputs {
            let size = |id: &ValueId| evaluate(&strategy.graph, *id, At::default(), &NoTokens).int();
            let wanted: Vec<i64> = input.declared.iter().map(size).collect();
            if !input.given.iter().map(|&size| i64::from(size)).eq(wanted.iter().copied()) {
                let message = format!("input `{}` has the shape {:?}", input.name, input.given);
                self.report(
                    Diagnostic::new(Code::E0305, input.span, message)
                        .label(format!("{wanted:?} with model `{}`", self.model.name))
                        .also(self.model.span, "this model")
                        .help("make the input for this model, or change the sizes here"),
                );
            }
        }
    }

    /// The tokens of a whole tile, where tiles are blocks.
    fn tile_block(&mut self, strategy: &Strategy) -> (usize, usize) {
        let tiles = strategy.orders.iter().find_map(|rule| tiling(&strategy.graph, self.model, rule));
        let tokens = tiles.map_or(128, |tiling| tiling.sizes.iter().map(|&size| u64::from(size)).product::<u64>());
        if !BLOCK_TOKENS.contains(&(tokens as i64)) {
            let (least, most) = (BLOCK_TOKENS.start(), BLOCK_TOKENS.end());
            let message = format!("a tile that is a block has {least} to {most} tokens, found {tokens}");
            self.report(Diagnostic::new(Code::E0304, strategy.block_span, message));
            return (128, 128);
        }
        self.check_blocks(tokens as usize, tokens as usize, strategy.block_span)
    }

    fn schedule(&mut self, strategy: &Strategy) {
        let graph = &strategy.graph;
        for rule in &strategy.schedule {
            for clause in &rule.clauses {
                if let Clause::Every { interval, .. } = clause {
                    let value = evaluate(graph, *interval, At::default(), &NoTokens).int();
                    if value < 1 {
                        let message = format!("an interval is at least 1 step, found {value}");
                        let place = within(rule.span, graph.value(*interval).span);
                        self.report(Diagnostic::new(Code::E0301, place, message));
                    }
                }
                if let Clause::On { steps, except: false } = clause {
                    self.listed_steps(graph, steps, rule.span);
                }
            }
            if let Some(order) = rule.order {
                self.forecast_order(graph, order, rule.span);
            }
        }
        let obeys = |kind: StepKind| strategy.schedule.iter().any(|rule| rule.kind == kind);
        let cached = strategy.rules.iter().find(|rule| rule.action == Action::Cache);
        if let Some(rule) = cached
            && !obeys(StepKind::Update)
        {
            self.report(
                Diagnostic::new(Code::E0310, rule.span, "nothing ever fills this cache")
                    .help("say when features are stored: `schedule { update every 5 }`"),
            );
        }
    }

    fn listed_steps(&mut self, graph: &Graph, steps: &[ValueId], span: Span) {
        for &id in steps {
            let step = evaluate(graph, id, At::default(), &NoTokens).int();
            if !(0..i64::from(self.model.steps)).contains(&step) {
                let place = within(span, graph.value(id).span);
                let message =
                    format!("there is no step {step}: model `{}` has {} steps", self.model.name, self.model.steps);
                self.report(
                    Diagnostic::new(Code::E0303, place, message)
                        .also(self.model.span, format!("{} steps", self.model.steps)),
                );
            }
        }
    }

    fn forecast_order(&mut self, graph: &Graph, order: ValueId, span: Span) {
        for at in Dependence::of(graph, order).places(self.model) {
            let value = evaluate(graph, order, at, &NoTokens).int();
            if !(0..=MAX_FORECAST_ORDER).contains(&value) {
                let message = format!("a forecast has order 0 to {MAX_FORECAST_ORDER}, found {value}");
                let place = within(span, graph.value(order).span);
                return self.report(Diagnostic::new(Code::E0301, place, message));
            }
        }
    }

    fn rules(&mut self, strategy: &Strategy, blocks: &Blocks) {
        let graph = &strategy.graph;
        for rule in &strategy.rules {
            if let Some(order) = rule.order {
                self.forecast_order(graph, order, rule.span);
            }
            if matches!(graph.op(rule.predicate), Op::Bool(false)) || !self.somewhere(graph, rule.guard) {
                self.report(
                    Diagnostic::new(Code::W0504, rule.span, format!("this rule never holds for `{}`", self.model.name))
                        .help("remove it, or widen its condition"),
                );
            }
        }
        for (_, value) in graph.values() {
            if let Op::InSet(set, _) = value.op
                && self.model.ranges(graph.parts(set)).is_empty()
            {
                let name = graph.parts(set).first().map_or("all", |part| part.segment.as_str());
                self.findings.push(Diagnostic::new(
                    Code::W0504,
                    value.span,
                    format!("this names no token of model `{}`: `{name}` has none there", self.model.name),
                ));
            }
            if let (Op::Transpose(_), false) = (&value.op, blocks.q == blocks.kv) {
                let message = "`transpose` needs q-blocks and kv-blocks of one size";
                self.report(Diagnostic::new(Code::E0304, value.span, message));
            }
        }
    }

    /// Whether a guard holds at some place. One that asks for no place is a switch of the user.
    fn somewhere(&self, graph: &Graph, guard: Option<ValueId>) -> bool {
        guard.is_none_or(|id| {
            let dependence = Dependence::of(graph, id);
            dependence == Dependence::default()
                || dependence.places(self.model).any(|at| evaluate(graph, id, at, &NoTokens).truth())
        })
    }

    /// Ranges of amounts and table keys, at every place they depend on.
    fn values(&mut self, strategy: &Strategy) {
        let graph = &strategy.graph;
        for (id, value) in graph.values() {
            match &value.op {
                Op::Select { rule, amount, at_least, cost, .. } => {
                    // Costs are counted in units of their own.
                    if cost.is_none() {
                        self.amount(graph, *rule, *amount, value.span);
                    }
                    if let Some(at_least) = at_least {
                        self.everywhere(graph, *at_least, value.span, |value| {
                            (value.int() < 0).then(|| format!("`at_least` is not negative, found {}", value.int()))
                        });
                    }
                }
                Op::Table { table, keys, otherwise, .. } => {
                    self.table(graph, id, usize::from(*table), keys, otherwise.is_some());
                }
                _ => {}
            }
        }
    }

    fn amount(&mut self, graph: &Graph, rule: Selector, amount: ValueId, span: Span) {
        if graph.ty(amount).extent != Extent::Scalar {
            return;
        }
        let share = graph.ty(amount).kind == Kind::Real;
        let name = if matches!(rule, Selector::BottomK { .. }) { "bottom_k" } else { "top_k" };
        self.everywhere(graph, amount, span, |value| match (rule, value) {
            (Selector::TopK { .. } | Selector::BottomK { .. }, Scalar::Int(count)) if count < 0 => {
                Some(format!("`{name}` takes a count that is not negative, found {count}"))
            }
            (Selector::TopK { .. } | Selector::BottomK { .. }, Scalar::Real(found))
                if share && !(0.0..=1.0).contains(&found) =>
            {
                Some(format!("the share of `{name}` is from 0 to 1, found {found}"))
            }
            (Selector::TopP { .. }, value) if !(0.0..=1.0).contains(&value.real()) => {
                Some(format!("the mass of `top_p` is from 0 to 1, found {}", value.real()))
            }
            // Scores need not sum to one, so that there is no upper limit.
            (Selector::BottomMass, value) if value.real().is_nan() || value.real() < 0.0 => {
                Some(format!("the mass of `bottom_mass` is not negative, found {}", value.real()))
            }
            (Selector::Statistical, value) if !(value.real() > 0.0 && value.real() < 1.0) => {
                Some(format!("the sparsity of `statistical_top_k` lies between 0 and 1, found {}", value.real()))
            }
            _ => None,
        });
    }

    /// Reports the first place at which a scalar is out of its range.
    fn everywhere(&mut self, graph: &Graph, id: ValueId, span: Span, wrong: impl Fn(Scalar) -> Option<String>) {
        let dependence = Dependence::of(graph, id);
        for at in dependence.places(self.model) {
            if let Some(message) = wrong(evaluate(graph, id, at, &NoTokens)) {
                let mut diagnostic = Diagnostic::new(Code::E0301, within(span, graph.value(id).span), message);
                if dependence != Dependence::default() {
                    diagnostic = diagnostic.note(place_words(dependence, at));
                }
                return self.report(diagnostic);
            }
        }
    }

    fn table(&mut self, graph: &Graph, id: ValueId, table: usize, keys: &[ValueId], has_default: bool) {
        let span = graph.value(id).span;
        let table = &graph.tables[table];
        if table.is_missing() {
            return;
        }
        for (&key, &size) in keys.iter().zip(&table.dims) {
            let (count, word) = match graph.op(key) {
                Op::Place(Place::Step) => (self.model.steps, "steps"),
                Op::Place(Place::Layer) => (self.model.layers, "layers"),
                Op::Place(Place::Head) => (self.model.heads, "heads"),
                _ => continue,
            };
            if size != count && !(has_default && size < count) {
                let message =
                    format!("table `{}` has {size} {word}, model `{}` has {count}", table.name, self.model.name);
                self.report(
                    Diagnostic::new(Code::E0305, span, message)
                        .label(format!("dimensions {:?}", table.dims))
                        .also(self.model.span, format!("{count} {word}"))
                        .help("take a table made for this model, or give `else` for what it lacks"),
                );
                return;
            }
        }
        let is_place = |key: &ValueId| matches!(graph.op(*key), Op::Place(_));
        let is_complete = || keys.iter().all(is_place) && !table.values.iter().any(|value| value.is_nan());
        // Tokens may ask for more than there is where another condition keeps them out.
        if has_default || keys.iter().any(|&key| graph.ty(key).extent != Extent::Scalar) || is_complete() {
            return;
        }
        let dependence = keys.iter().fold(Dependence::default(), |all, &key| all.or(Dependence::of(graph, key)));
        for at in dependence.places(self.model) {
            let at_keys: Vec<i64> = keys.iter().map(|&key| evaluate(graph, key, at, &NoTokens).int()).collect();
            if table.get(at_keys.iter().copied(), 0).is_none() {
                let message = format!("table `{}` has no entry {at_keys:?}", table.name);
                self.report(
                    Diagnostic::new(Code::E0305, span, message)
                        .label(format!("dimensions {:?}", table.dims))
                        .note(place_words(dependence, at))
                        .help("give `else` for missing entries"),
                );
                return;
            }
        }
    }
}

/// The place of a value that stands in `statement`. Equal values are one, with the place of the first of them; where
/// that lies elsewhere, the statement is what a finding is about.
fn within(statement: Span, place: Span) -> Span {
    if statement.holds(place) { place } else { statement }
}

/// What a line of a schedule costs at one step of one layer.
fn line_cost(rule: &ScheduleRule, cost: impl Fn(ValueId) -> u64) -> u64 {
    let of_clause = |clause: &Clause| match clause {
        Clause::While(id) => cost(*id),
        Clause::On { steps, .. } => steps.iter().map(|&id| cost(id)).sum(),
        Clause::Every { interval, .. } => cost(*interval),
    };
    rule.clauses.iter().map(of_clause).sum::<u64>() + rule.guard.map_or(0, &cost) + rule.order.map_or(0, &cost)
}

/// "at step 3, layer 0".
fn place_words(dependence: Dependence, at: At) -> String {
    let words = [
        dependence.step.then(|| format!("step {}", at.step)),
        dependence.layer.then(|| format!("layer {}", at.layer)),
        dependence.head.then(|| format!("head {}", at.head)),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    format!("at {}", words.join(", "))
}
