//! What must hold for an IR to have a meaning; later stages rely on it and check nothing again.
//!
//! # Every graph
//! 1. Operands come before their users, sets, axes and tables exist, tables have as many numbers as they say.
//! 2. Every value has the type that [`typing::type_of`] derives.
//! 3. No value is deeper than [`MAX_DEPTH`] operations, and scalars and token values, which are evaluated as trees,
//!    have at most [`MAX_TREE`] operations in them.
//!
//! # A strategy
//! 4. Guards are truth scalars; bounds, sizes of inputs, blocks and tiles, and orders of forecasts integer scalars.
//! 5. Nothing of a schedule depends on the head; nothing of block sizes on any place.
//! 6. The predicate of a rule is a truth value; of blocks only over the whole sequence. That of a `cache` rule does
//!    not vary over keys, and only such rules have a forecast. Only `reuse` lines of a schedule have one.
//! 7. An order by axes names axes of the graph, each once; one by tiles has a size for at least one axis.
//! 8. There is no [`Op::Mask`]; once a model is bound there is no [`Op::Size`], and the model is one (rule 12).
//!
//! # A selector program
//! 9. No value is of tokens or mixed, none is a [`Op::Size`], [`Op::Lower`].
//! 10. Terms are truth values, scalars or over blocks of the whole sequence; those of [`Role::Cache`] do not vary over
//!     keys.
//!
//! # A token predicate
//! 11. Its value is a truth value of tokens or a scalar; no value depends on the place, on blocks' values or is a
//!     [`Op::Size`].
//!
//! # A model
//! 12. Its numbers are in the ranges that [`Model`] states; segments follow one another without a gap, none is empty,
//!     names differ, `valid` is at most the number of tokens, sizes of axes multiply to it; at most [`MAX_TOKENS`].

use super::{
    Action, Blocking, Clause, Extent, Graph, Kind, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_STEPS, Model, Op, Order,
    Place, Rule, SetId, Strategy, Type,
};
use super::{ValueId, typing};
use crate::plan::{Predicate, Program, Role};

/// Most operations between a value and a constant.
pub const MAX_DEPTH: u32 = 1024;

/// Most operations of a scalar or token value, shared ones counted each time.
pub const MAX_TREE: u64 = 1 << 20;

/// Most tokens of a model.
pub const MAX_TOKENS: u32 = 1 << 24;

/// Problems after which the rest is not looked for.
const MAX_PROBLEMS: usize = 50;

/// Whether a strategy has a meaning; rules 1 to 8 and 12.
///
/// # Errors
/// Every problem found, each a sentence.
pub fn validate(strategy: &Strategy) -> Result<(), Vec<String>> {
    let graph = &strategy.graph;
    let mut problems = Problems::of_graph(graph);
    if problems.list.is_empty() {
        problems.strategy(strategy);
    }
    if let Some(model) = &strategy.model {
        problems.list.extend(validate_model(model).err().unwrap_or_default());
    }
    problems.finish()
}

/// The first value that breaks rule 3.
#[must_use]
pub fn too_large(graph: &Graph) -> Option<ValueId> {
    let mut sizes: Vec<(u32, u64)> = Vec::with_capacity(graph.len());
    for (id, value) in graph.values() {
        let operands = value.op.operands();
        let of = |operand: &ValueId| sizes[operand.0 as usize];
        let depth = operands.iter().map(|operand| of(operand).0 + 1).max().unwrap_or(0);
        let tree = operands.iter().map(|operand| of(operand).1).fold(1, u64::saturating_add);
        let is_tree = matches!(value.ty.extent, Extent::Scalar | Extent::Token { .. });
        if depth > MAX_DEPTH || (is_tree && tree > MAX_TREE) {
            return Some(id);
        }
        sizes.push((depth, if is_tree { tree } else { 0 }));
    }
    None
}

/// Whether a selector program has a meaning; rules 1 to 3, 9 and 10.
///
/// # Errors
/// Every problem found, each a sentence.
pub fn validate_program(program: &Program) -> Result<(), Vec<String>> {
    let graph = &program.graph;
    let mut problems = Problems::of_graph(graph);
    for (id, value) in graph.values() {
        let tokens = matches!(value.ty.extent, Extent::Token { .. } | Extent::Mixed);
        if tokens || matches!(value.op, Op::Size(_) | Op::Lower(..)) {
            problems.at(id, "a selector program knows neither tokens nor sizes of the model");
        }
    }
    for (role, id) in &program.terms {
        let Some(ty) = problems.type_of(graph, *id, "a term") else { continue };
        let over_all = |set: Option<SetId>| set.is_none_or(|set| set == SetId::ALL);
        let fits = match ty.extent {
            Extent::Scalar => true,
            Extent::Blocks { q, kv } => over_all(q) && over_all(kv) && (*role != Role::Cache || kv.is_none()),
            _ => false,
        };
        if ty.kind != Kind::Bool || !fits {
            problems.at(*id, &format!("a {role:?} term cannot be {}", typing::describe(graph, ty)));
        }
    }
    problems.finish()
}

/// Whether a token predicate has a meaning; rules 1 to 3 and 11.
///
/// # Errors
/// Every problem found, each a sentence.
pub fn validate_predicate(predicate: &Predicate) -> Result<(), Vec<String>> {
    let graph = &predicate.graph;
    let mut problems = Problems::of_graph(graph);
    for (id, value) in graph.values() {
        let known = matches!(value.ty.extent, Extent::Scalar | Extent::Token { .. });
        let place = matches!(value.op, Op::Size(_) | Op::Place(_)) || graph.looks_back(id);
        if !known || place {
            problems.at(id, "a token predicate knows only tokens and constants");
        }
    }
    if let Some(ty) = problems.type_of(graph, predicate.value, "the predicate")
        && ty.kind != Kind::Bool
    {
        problems.at(predicate.value, &format!("a predicate cannot be {}", typing::describe(graph, ty)));
    }
    problems.finish()
}

/// Whether a model is one; rule 12.
///
/// # Errors
/// Every problem found, each a sentence.
pub fn validate_model(model: &Model) -> Result<(), Vec<String>> {
    let mut problems = Problems::default();
    let counts = [
        ("layers", model.layers, MAX_LAYERS),
        ("heads", model.heads, MAX_HEADS),
        ("channels of a head", model.head_dim, MAX_HEAD_DIM),
        ("steps", model.steps, MAX_STEPS),
    ];
    for (what, number, most) in counts {
        if !(1..=most).contains(&number) {
            problems.add(format!("a model has 1 to {most} {what}, found {number}"));
        }
    }
    let mut end = 0_u32;
    for (index, segment) in model.segments.iter().enumerate() {
        let name = &segment.name;
        if model.segments[..index].iter().any(|other| other.name == *name) {
            problems.add(format!("there are two segments `{name}`"));
        }
        let size = segment.axes.iter().try_fold(1_u32, |size, (_, axis)| size.checked_mul(*axis));
        if !segment.axes.is_empty() && size != Some(segment.tokens) {
            problems.add(format!("the axes of segment `{name}` do not multiply to its {} tokens", segment.tokens));
        }
        if segment.tokens == 0 || segment.valid > segment.tokens {
            problems.add(format!("segment `{name}` has {} tokens, {} of them valid", segment.tokens, segment.valid));
        }
        if segment.start != end {
            problems.add(format!("segment `{name}` starts at {}, the one before it ends at {end}", segment.start));
        }
        match end.checked_add(segment.tokens).filter(|&end| end <= MAX_TOKENS) {
            Some(sum) => end = sum,
            None => {
                problems.add(format!("the model has more than {MAX_TOKENS} tokens"));
                break;
            }
        }
    }
    if model.segments.is_empty() {
        problems.add("a model has at least one segment".to_string());
    }
    problems.finish()
}

#[derive(Default)]
struct Problems {
    list: Vec<String>,
}

impl Problems {
    fn add(&mut self, problem: String) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        }
    }

    fn at(&mut self, id: ValueId, problem: &str) {
        self.add(format!("%{}: {problem}", id.0));
    }

    fn finish(self) -> Result<(), Vec<String>> {
        if self.list.is_empty() { Ok(()) } else { Err(self.list) }
    }

    /// Rules 1 to 3.
    fn of_graph(graph: &Graph) -> Self {
        let mut problems = Problems::default();
        for table in &graph.tables {
            let width = usize::from(table.width);
            let size = table.dims.iter().try_fold(width, |size, &dim| size.checked_mul(dim as usize));
            if size != Some(table.values.len()) {
                problems.add(format!("table `{}` does not hold as many numbers as it says", table.name));
            }
        }
        for (id, value) in graph.values() {
            if value.op.operands().iter().any(|operand| *operand >= id) {
                problems.at(id, "uses a value that comes after it");
                return problems;
            }
            if let Err(problem) = typing::check(graph, &value.op, value.ty) {
                problems.at(id, &problem);
            }
        }
        if let Some(id) = too_large(graph) {
            problems.at(id, &format!("is more than {MAX_DEPTH} operations deep, or has more than {MAX_TREE} in all"));
        }
        problems
    }

    /// The type of a value that something outside of the graph refers to.
    fn type_of(&mut self, graph: &Graph, id: ValueId, what: &str) -> Option<Type> {
        if (id.0 as usize) < graph.len() {
            return Some(graph.ty(id));
        }
        self.add(format!("{what} is %{}, which does not exist", id.0));
        None
    }

    fn scalar(&mut self, graph: &Graph, id: ValueId, kind: Kind, what: &str) {
        if let Some(ty) = self.type_of(graph, id, what)
            && ty != Type::scalar(kind)
        {
            let wanted = typing::describe(graph, Type::scalar(kind));
            self.at(id, &format!("{what} is {wanted}, found {}", typing::describe(graph, ty)));
        }
    }

    /// Rules 4 to 8.
    fn strategy(&mut self, strategy: &Strategy) {
        let graph = &strategy.graph;
        let facts: Vec<Facts> = facts(graph);
        for (id, value) in graph.values() {
            match value.op {
                Op::Mask(_) => self.at(id, "masks stand only in selector programs"),
                Op::Size(_) if strategy.model.is_some() => self.at(id, "a size is left though the model is known"),
                _ => {}
            }
        }
        for rule in &strategy.rules {
            self.rule(graph, rule, &facts);
        }
        for order in &strategy.orders {
            order.guard.iter().for_each(|id| self.scalar(graph, *id, Kind::Bool, "the guard of an order"));
            match &order.order {
                Order::Axes(axes) => {
                    let distinct = axes.iter().enumerate().all(|(index, axis)| !axes[..index].contains(axis));
                    if !distinct || axes.iter().any(|axis| usize::from(*axis) >= graph.axes.len()) {
                        self.add("an order names axes that do not exist, or one twice".to_string());
                    }
                }
                Order::Gilbert => {}
                Order::Given(table) if usize::from(*table) >= graph.tables.len() => {
                    self.add("an order is given by a table that does not exist".to_string());
                }
                Order::Given(_) => {}
                Order::Tiles(sizes) if sizes.is_empty() => self.add("tiles have no size".to_string()),
                Order::Tiles(sizes) => {
                    sizes.iter().for_each(|id| self.scalar(graph, *id, Kind::Int, "the size of a tile"));
                }
                Order::Clusters { q, kv, iterations, again, by: _ } => {
                    let all = [q, kv, iterations, again];
                    all.into_iter().for_each(|id| self.scalar(graph, *id, Kind::Int, "a number of clusters"));
                }
            }
        }
        if let Some(Blocking::Sizes(q, kv)) = strategy.block {
            for id in [q, kv] {
                self.scalar(graph, id, Kind::Int, "the size of a block");
                if facts.get(id.0 as usize).is_some_and(|facts| facts.places != [false; 3]) {
                    self.at(id, "the size of a block is the same at every step, layer and head");
                }
            }
        }
        strategy.bounds.iter().for_each(|bound| self.scalar(graph, bound.value, Kind::Int, "the bound of a guard"));
        for open in &strategy.open_params {
            self.type_of(graph, open.value, "a number of a parameter");
        }
        for id in strategy.inputs.iter().flat_map(|input| &input.declared) {
            self.scalar(graph, *id, Kind::Int, "the size of an input");
        }
        self.schedule(strategy, &facts);
    }

    fn rule(&mut self, graph: &Graph, rule: &Rule, facts: &[Facts]) {
        rule.guard.iter().for_each(|id| self.scalar(graph, *id, Kind::Bool, "the guard of a rule"));
        rule.order.iter().for_each(|id| self.scalar(graph, *id, Kind::Int, "the order of a forecast"));
        if rule.order.is_some() && rule.action != Action::Cache {
            self.add("a rule that does not cache has a forecast".to_string());
        }
        let id = rule.predicate;
        let Some(ty) = self.type_of(graph, id, "the predicate of a rule") else { return };
        let over_all = match ty.extent {
            Extent::Blocks { q, kv } => [q, kv].into_iter().flatten().all(|set| set == SetId::ALL),
            _ => true,
        };
        if ty.kind != Kind::Bool || !over_all {
            self.at(id, &format!("the predicate of a rule cannot be {}", typing::describe(graph, ty)));
        }
        if rule.action == Action::Cache && facts[id.0 as usize].keys {
            self.at(id, "what a rule caches varies over keys");
        }
        if let super::Lower::Density { column, block, per } = rule.lower {
            let share = |share: super::Real| (0.0..=1.0).contains(&share.0);
            let axis = per.is_none_or(|axis| usize::from(axis) < graph.axes.len());
            if !share(column) || !share(block) || !axis {
                self.at(id, "the rule is lowered by a share outside of 0 to 1, or along an axis that does not exist");
            }
        }
    }

    fn schedule(&mut self, strategy: &Strategy, facts: &[Facts]) {
        let graph = &strategy.graph;
        for line in &strategy.schedule {
            let mut used: Vec<(ValueId, Kind)> = line.guard.iter().map(|id| (*id, Kind::Bool)).collect();
            used.extend(line.order.iter().map(|id| (*id, Kind::Int)));
            if line.order.is_some() && !line.kind.is_reuse() {
                self.add("a line of the schedule that does not reuse has a forecast".to_string());
            }
            for clause in &line.clauses {
                match clause {
                    Clause::While(id) => used.push((*id, Kind::Bool)),
                    Clause::Every { interval, from, .. } => {
                        used.extend([*interval].iter().chain(from).map(|id| (*id, Kind::Int)));
                    }
                    Clause::On { steps, .. } => used.extend(steps.iter().map(|id| (*id, Kind::Int))),
                }
            }
            for (id, kind) in used {
                self.scalar(graph, id, kind, "a value of the schedule");
                if facts.get(id.0 as usize).is_some_and(|facts| facts.places[2]) {
                    self.at(id, "the schedule is the same for all heads of a layer");
                }
            }
        }
    }
}

/// What a value depends on.
#[derive(Clone, Copy, Default)]
struct Facts {
    /// Step, layer, head.
    places: [bool; 3],
    /// Key tokens or blocks.
    keys: bool,
}

fn facts(graph: &Graph) -> Vec<Facts> {
    let mut all: Vec<Facts> = Vec::with_capacity(graph.len());
    for (_, value) in graph.values() {
        let mut facts = Facts::default();
        for operand in value.op.operands() {
            let other = all[operand.0 as usize];
            facts.keys |= other.keys;
            facts.places.iter_mut().zip(other.places).for_each(|(a, b)| *a |= b);
        }
        if let Op::Place(place) = value.op {
            facts.places[match place {
                Place::Step => 0,
                Place::Layer => 1,
                Place::Head => 2,
            }] = true;
        }
        // Only where the extent does not tell do the operands count: a reduced axis is gone.
        facts.keys = match value.ty.extent {
            Extent::Scalar => false,
            Extent::Token { kv, .. } => kv,
            Extent::Blocks { kv, .. } => kv.is_some(),
            Extent::Vectors(side, _) => side == super::Side::Key,
            Extent::Mixed => facts.keys,
        };
        all.push(facts);
    }
    all
}
