//! Places become classes: static parts become bitmaps, dynamic parts selector programs.
//!
//! For every (step, layer, head) the guards say which rules hold, and scalars inside token predicates (a window from a
//! table) get their values. Places that agree in both are one class. A class's predicates are folded with those values
//! into one graph that all classes share; hash-consing there makes equal predicates one value, whose bitmap is
//! computed once. What is left, selections over scores, becomes the class's program.

mod empty_rows;

use std::collections::HashMap;

pub use empty_rows::{QUICK_PAIRS, quick_findings};

use super::bind_model::Dependence;
use super::fold_constants::push_folded;
use super::rewrite::{copy, with_table};
use crate::diagnostics::{Code, Diagnostic};
use crate::geometry::cover::{Budget, Known, cover};
use crate::geometry::order::{self, clustering, tiling, token_order};
use crate::geometry::tokens::TokenTable;
use crate::ir::scalar::{At, NoTokens, Scalars, evaluate};
use crate::ir::typing::type_of;
use crate::ir::{
    Action, Binary, Blocking, Extent, Graph, Kind, Lower, Model, Op, Rule, Strategy, Type, Unary, Value, ValueId,
};
use crate::plan::{Arrangement, Body, Class, HeadSymbols, MaskId, Plan, Predicate, Program, Role, Schedule};
use crate::symbols::{BitMatrix, Blocks};

/// Bytes of the different bitmaps of a plan at most.
const MAX_MASK_BYTES: usize = 1 << 29;
/// Classes of a plan at most.
const MAX_CLASSES: usize = 1 << 15;
/// Builds the plan.
///
/// # Errors
/// Rules that ask for forecasts of different orders in one head, which only shows when classes are known.
pub fn specialise(
    strategy: &Strategy,
    model: &Model,
    schedule: Schedule,
) -> Result<(Plan, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut builder = Builder::new(strategy, model);
    let class_of = builder.classes();
    let mut plan = Plan {
        strategy: strategy.name.clone(),
        params: strategy.params.clone(),
        quirks: strategy.quirks.clone(),
        model: model.clone(),
        arrangements: builder.arrangements.into_iter().map(|(_, arrangement)| arrangement).collect(),
        schedule,
        masks: builder.masks,
        programs: builder.programs,
        predicates: builder.predicates,
        classes: builder.classes,
        class_of,
    };
    if plan.arrangements.is_empty() {
        plan.arrangements.push(Arrangement { order: None, tiling: None, clustering: None, blocks: builder.blocks });
    }
    if !builder.errors.is_empty() {
        return Err(builder.errors);
    }
    Ok((plan, builder.empty_rows.into_iter().collect()))
}

/// What the place decides about a class.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Key {
    rules: Vec<bool>,
    order: Option<usize>,
    scalars: Vec<u64>,
    forecast: i64,
}

struct Builder<'a> {
    strategy: &'a Strategy,
    model: &'a Model,
    blocks: Blocks,
    /// Scalars inside token predicates that depend on the place, by rule.
    roots: Vec<Vec<ValueId>>,
    /// Arrangements in use, by order rule.
    arrangements: Vec<(Option<usize>, Arrangement)>,
    /// What is known of the tokens of each.
    known: Vec<Known>,
    masks: Vec<BitMatrix>,
    mask_ids: HashMap<BitMatrix, MaskId>,
    /// Predicates with all scalars folded.
    folded: Graph,
    budget: Budget,
    /// What predicates cover; a plan holds only what its classes use.
    covered: HashMap<(ValueId, Lower, usize), BitMatrix>,
    programs: Vec<Program>,
    predicates: Vec<Predicate>,
    predicate_ids: HashMap<ValueId, u32>,
    classes: Vec<Class>,
    class_ids: HashMap<Class, u32>,
    /// Bytes of all masks.
    mask_bytes: usize,
    /// Bytes of what predicates cover.
    covered_bytes: usize,
    /// Nothing more is built.
    too_large: bool,
    /// Places, and block pairs of classes, that may still be looked at.
    pairs_left: u64,
    /// The first class with rows that attend to nothing.
    empty_rows: Option<Diagnostic>,
    errors: Vec<Diagnostic>,
}

impl<'a> Builder<'a> {
    fn new(strategy: &'a Strategy, model: &'a Model) -> Self {
        let graph = &strategy.graph;
        let size = |id: ValueId| evaluate(graph, id, At::default(), &NoTokens).int().clamp(1, 256) as usize;
        let sizes = match strategy.block {
            Some(Blocking::Sizes(q, kv)) => [size(q), size(kv)],
            Some(Blocking::Tiles) | None => [128; 2],
        };
        let blocks = order::blocks(graph, model, &strategy.orders, strategy.block, sizes);
        Builder {
            strategy,
            model,
            blocks,
            roots: strategy.rules.iter().map(|rule| scalar_roots(graph, rule.predicate)).collect(),
            arrangements: Vec::new(),
            known: Vec::new(),
            masks: Vec::new(),
            mask_ids: HashMap::new(),
            folded: graph.emptied(),
            budget: Budget::default(),
            covered: HashMap::new(),
            programs: Vec::new(),
            predicates: Vec::new(),
            predicate_ids: HashMap::new(),
            classes: Vec::new(),
            class_ids: HashMap::new(),
            mask_bytes: 0,
            covered_bytes: 0,
            too_large: false,
            pairs_left: u64::MAX,
            empty_rows: None,
            errors: Vec::new(),
        }
    }

    /// The class of every place.
    fn classes(&mut self) -> Vec<u32> {
        let (model, graph) = (self.model, &self.strategy.graph);
        let mut dependence = Dependence::default();
        for (rule, roots) in self.strategy.rules.iter().zip(&self.roots) {
            let ids = rule.guard.iter().chain(rule.order.iter()).chain(roots);
            dependence = ids.fold(dependence, |all, &id| all.or(Dependence::of(graph, id)));
        }
        for rule in &self.strategy.orders {
            dependence = rule.guard.iter().fold(dependence, |all, &id| all.or(Dependence::of(graph, id)));
        }
        let mut scalars = self.scalars();
        let mut by_key: HashMap<Key, u32> = HashMap::new();
        let mut small: Vec<u32> = Vec::new();
        if !self.spend(dependence.count(model)) {
            return Vec::new();
        }
        for at in dependence.places(model) {
            scalars.evaluate(at, &NoTokens);
            let key = self.key(&scalars);
            let class = match by_key.get(&key) {
                Some(&class) => class,
                None => {
                    let pairs = (self.blocks.q_blocks() * self.blocks.kv_blocks()) as u64;
                    if self.is_full() || !self.spend(pairs) {
                        return Vec::new();
                    }
                    let class = self.class(&key, at);
                    let class = self.intern(class);
                    by_key.insert(key, class);
                    class
                }
            };
            small.push(class);
        }
        // The places in `small` stand for all that differ in nothing the classes depend on.
        let pick = |depends: bool, index: u32| if depends { index as usize } else { 0 };
        let layers = if dependence.layer { model.layers as usize } else { 1 };
        let heads = if dependence.head { model.heads as usize } else { 1 };
        let mut class_of = Vec::with_capacity((model.steps * model.layers * model.heads) as usize);
        for step in 0..model.steps {
            for layer in 0..model.layers {
                let row = (pick(dependence.step, step) * layers + pick(dependence.layer, layer)) * heads;
                class_of.extend((0..model.heads).map(|head| small[row + pick(dependence.head, head)]));
            }
        }
        class_of
    }

    /// Whether so much may be looked at; if so, less is left.
    fn spend(&mut self, pairs: u64) -> bool {
        let left = self.pairs_left.checked_sub(pairs);
        self.pairs_left = left.unwrap_or(0);
        left.is_some()
    }

    /// What keys are made of.
    fn scalars(&self) -> Scalars<'a> {
        let of_rules = self.strategy.rules.iter().flat_map(|rule| rule.guard.into_iter().chain(rule.order));
        let of_orders = self.strategy.orders.iter().filter_map(|rule| rule.guard);
        let ids: Vec<ValueId> = of_rules.chain(of_orders).chain(self.roots.iter().flatten().copied()).collect();
        Scalars::new(&self.strategy.graph, &ids)
    }

    fn key(&self, scalars: &Scalars<'_>) -> Key {
        let truth = |guard: Option<ValueId>| guard.is_none_or(|id| scalars.get(id).truth());
        let rules: Vec<bool> = self.strategy.rules.iter().map(|rule| truth(rule.guard)).collect();
        let active = || self.strategy.rules.iter().zip(&self.roots).zip(&rules).filter(|(_, active)| **active);
        let values = active().flat_map(|((_, roots), _)| roots).map(|&id| scalars.get(id).real().to_bits()).collect();
        let mut orders = active().filter_map(|((rule, _), _)| rule.order).map(|id| scalars.get(id).int());
        let forecast = orders.next().unwrap_or(0);
        // -1 says that the rules disagree; reported when the class is built.
        let forecast = if orders.all(|order| order == forecast) { forecast } else { -1 };
        let order = self.strategy.orders.iter().rposition(|rule| truth(rule.guard));
        Key { rules, order, scalars: values, forecast }
    }

    fn intern(&mut self, class: Class) -> u32 {
        let next = self.classes.len() as u32;
        *self.class_ids.entry(class.clone()).or_insert_with(|| {
            self.classes.push(class);
            next
        })
    }

    /// Reports, once, that there are too many different heads.
    fn is_full(&mut self) -> bool {
        // Most masks are what a predicate covers: each sum is bounded, so that none counts twice.
        let bytes = self.mask_bytes.max(self.covered_bytes);
        let full = bytes > MAX_MASK_BYTES || self.classes.len() >= MAX_CLASSES || self.too_large;
        if full && !self.too_large {
            self.too_large = true;
            let span = self.strategy.rules.first().map_or(self.model.span, |rule| rule.span);
            let message = format!(
                "heads differ in too many ways: {} kinds of heads with {} MiB of bitmaps, at most {MAX_CLASSES} and {} MiB",
                self.classes.len(),
                bytes >> 20,
                MAX_MASK_BYTES >> 20
            );
            self.errors.push(
                Diagnostic::new(Code::E0309, span, message)
                    .help("let more of them share a window, or take larger blocks"),
            );
        }
        full
    }

    fn mask(&mut self, mask: BitMatrix) -> MaskId {
        let next = self.masks.len() as MaskId;
        *self.mask_ids.entry(mask).or_insert_with_key(|mask| {
            self.mask_bytes += mask.words().len() * 8;
            self.masks.push(mask.clone());
            next
        })
    }

    fn arrangement(&mut self, order: Option<usize>) -> usize {
        if let Some(index) = self.arrangements.iter().position(|(known, _)| *known == order) {
            return index;
        }
        let rule = order.map(|index| &self.strategy.orders[index]);
        let graph = &self.strategy.graph;
        let arranged = Arrangement {
            order: rule.and_then(|rule| token_order(graph, self.model, rule)),
            tiling: rule.and_then(|rule| tiling(graph, self.model, rule)),
            clustering: rule.and_then(|rule| clustering(graph, self.model, rule)),
            blocks: self.blocks.clone(),
        };
        self.arrangements.push((order, arranged));
        self.known.push(Known::default());
        self.arrangements.len() - 1
    }

    fn class(&mut self, key: &Key, at: At) -> Class {
        let arrangement = self.arrangement(key.order);
        let rules: Vec<&Rule> =
            self.strategy.rules.iter().zip(&key.rules).filter(|(_, active)| **active).map(|(rule, _)| rule).collect();
        if key.forecast < 0 {
            self.different_forecasts(&rules, at);
        }
        let mut fold = HashMap::new();
        let mut exact: Option<ValueId> = None;
        let mut terms = Vec::new();
        for rule in &rules {
            let predicate = self.fold(&mut fold, rule.predicate, at);
            if rule.lower == Lower::Exact {
                exact = Some(match exact {
                    None => predicate,
                    Some(other) => self.push(Op::Binary(Binary::Or, other, predicate), rule.span),
                });
                continue;
            }
            let role = match rule.action {
                Action::Keep => Role::Whole,
                Action::Skip => Role::Skip,
                Action::Cache => Role::Cache,
            };
            terms.push((role, predicate));
        }
        let mut predicate = None;
        if let Some(exact) = exact {
            let span = self.folded.value(exact).span;
            terms.push((Role::Whole, self.push(Op::Lower(Lower::All, exact), span)));
            terms.push((Role::Partial, self.push(Op::Lower(Lower::Any, exact), span)));
            predicate = Some(self.predicate(exact));
        }
        let body = self.body(&terms, arrangement);
        if self.empty_rows.is_none() {
            self.empty_rows = self.rows_without_keys(&rules, &terms, &body, arrangement, at);
        }
        let never_partial = matches!(body, Body::Static { partial: None, .. });
        Class {
            arrangement: arrangement as u32,
            body,
            predicate: predicate.filter(|_| !never_partial),
            forecast_order: key.forecast.clamp(0, 4) as u8,
        }
    }

    fn different_forecasts(&mut self, rules: &[&Rule], at: At) {
        let caches: Vec<&&Rule> = rules.iter().filter(|rule| rule.action == Action::Cache).collect();
        // Once: heads and steps of the same rules have the same mistake.
        let is_known = |error: &Diagnostic| error.code == Code::E0310;
        if let [first, .., last] = caches.as_slice()
            && !self.errors.iter().any(is_known)
        {
            let message = "the cached blocks of one head have one forecast, these rules ask for different ones";
            self.errors.push(
                Diagnostic::new(Code::E0310, last.span, message)
                    .also(first.span, "another order here")
                    .note(format!("at step {}, layer {}, head {}", at.step, at.layer, at.head))
                    .help("write the same `as` in both, or guard them so that they never hold together"),
            );
        }
    }

    fn push(&mut self, op: Op, span: crate::source::Span) -> ValueId {
        let ty = type_of(&self.folded, &op).unwrap_or(Type::scalar(Kind::Bool));
        push_folded(&mut self.folded, op, ty, span)
    }

    /// Copies a value into the shared graph; scalars become constants unless a selection needs them.
    fn fold(&mut self, done: &mut HashMap<(ValueId, bool), ValueId>, id: ValueId, at: At) -> ValueId {
        self.fold_below(done, id, at, true)
    }

    fn fold_below(
        &mut self,
        done: &mut HashMap<(ValueId, bool), ValueId>,
        id: ValueId,
        at: At,
        in_static: bool,
    ) -> ValueId {
        if let Some(&done) = done.get(&(id, in_static)) {
            return done;
        }
        let value = self.strategy.graph.value(id).clone();
        let result = if value.ty.extent == Extent::Scalar && in_static {
            let constant = evaluate(&self.strategy.graph, id, at, &NoTokens);
            self.folded.push(constant.op(), value.ty, value.span)
        } else {
            let in_static = is_static_part(&value, in_static);
            let mut operands = HashMap::new();
            for operand in value.op.operands() {
                operands.insert(operand, self.fold_below(done, operand, at, in_static));
            }
            let op = value.op.map_operands(|operand| operands[&operand]);
            push_folded(&mut self.folded, op, value.ty, value.span)
        };
        done.insert((id, in_static), result);
        result
    }

    fn predicate(&mut self, id: ValueId) -> u32 {
        // Equal values are one value, so that each is one predicate.
        if let Some(&index) = self.predicate_ids.get(&id) {
            return index;
        }
        let mut graph = self.folded.emptied();
        graph.tables.clear();
        let value = copy(&self.folded, &mut graph, id);
        let index = self.predicates.len() as u32;
        self.predicates.push(Predicate { graph, value });
        self.predicate_ids.insert(id, index);
        index
    }

    /// Symbols, or the program that computes them.
    fn body(&mut self, terms: &[(Role, ValueId)], arrangement: usize) -> Body {
        let mut united: HashMap<Role, BitMatrix> = HashMap::new();
        let mut dynamic = Vec::new();
        for &(role, id) in terms {
            match self.bits(id, arrangement) {
                Some(bits) => {
                    let bits = self.spread(&bits, self.folded.ty(id).extent, role);
                    united.entry(role).and_modify(|all| all.union(&bits)).or_insert(bits);
                }
                None => dynamic.push((role, id)),
            }
        }
        if dynamic.is_empty() {
            return self.static_body(united);
        }
        self.dynamic_body(united, &dynamic, arrangement)
    }

    fn static_body(&mut self, united: HashMap<Role, BitMatrix>) -> Body {
        let HeadSymbols { skip, partial, cache } = HeadSymbols::of_terms(united, &self.blocks);
        let partial = partial.map(|partial| self.mask(partial));
        Body::Static { skip: self.mask(skip), partial, cache: self.mask(cache) }
    }

    fn dynamic_body(
        &mut self,
        united: HashMap<Role, BitMatrix>,
        dynamic: &[(Role, ValueId)],
        arrangement: usize,
    ) -> Body {
        // A program holds the tables it looks into, no others.
        let mut graph = self.folded.emptied();
        graph.tables.clear();
        let mut masks: Vec<MaskId> = Vec::new();
        let mut terms = Vec::new();
        let mut fixed: Vec<(Role, BitMatrix)> = united.into_iter().collect();
        fixed.sort_by_key(|(role, _)| *role);
        for (role, bits) in fixed {
            let extent = bits_extent(role);
            let mask = self.mask(bits);
            terms.push((role, push_mask(&mut graph, &mut masks, mask, extent)));
        }
        let mut done = HashMap::new();
        for &(role, id) in dynamic {
            let value = self.extract(&mut graph, &mut masks, &mut done, id, arrangement);
            terms.push((role, value));
        }
        let program = Program { graph, terms };
        let index = self.programs.iter().position(|known| *known == program).unwrap_or_else(|| {
            self.programs.push(program);
            self.programs.len() - 1
        });
        Body::Dynamic { program: index as u32, masks }
    }

    /// Copies a dynamic value into a program; its static parts become masks.
    fn extract(
        &mut self,
        graph: &mut Graph,
        masks: &mut Vec<MaskId>,
        done: &mut HashMap<ValueId, ValueId>,
        id: ValueId,
        arrangement: usize,
    ) -> ValueId {
        if let Some(&known) = done.get(&id) {
            return known;
        }
        let value = self.folded.value(id).clone();
        let is_truth = value.ty.kind == Kind::Bool && matches!(value.ty.extent, Extent::Blocks { .. });
        let bits = if is_truth { self.bits(id, arrangement) } else { None };
        let result = match bits {
            Some(bits) => {
                let mask = self.mask(bits);
                push_mask(graph, masks, mask, value.ty.extent)
            }
            None => {
                let mut operands = HashMap::new();
                for operand in value.op.operands() {
                    operands.insert(operand, self.extract(graph, masks, done, operand, arrangement));
                }
                let op = value.op.map_operands(|operand| operands[&operand]);
                let op = with_table(op, &self.folded, graph);
                graph.push(op, value.ty, value.span)
            }
        };
        done.insert(id, result);
        result
    }

    /// The bitmap of a truth value that needs neither q and k nor the place: a matrix, or one row over its blocks.
    fn bits(&mut self, id: ValueId, arrangement: usize) -> Option<BitMatrix> {
        let value = self.folded.value(id).clone();
        match value.op {
            Op::Lower(how, inner) => Some(self.cover(inner, how, arrangement)),
            Op::Bool(truth) => Some(if truth { BitMatrix::ones(1, 1) } else { BitMatrix::zeros(1, 1) }),
            Op::Unary(Unary::Not, a) => {
                let bits = self.bits(a, arrangement)?;
                let mut not = BitMatrix::ones(bits.rows(), bits.columns());
                not.subtract(&bits);
                Some(not)
            }
            Op::Binary(op @ (Binary::And | Binary::Or | Binary::Xor), a, b) => {
                let (a_ty, b_ty) = (self.folded.ty(a).extent, self.folded.ty(b).extent);
                let (a, b) = (self.bits(a, arrangement)?, self.bits(b, arrangement)?);
                let (rows, columns) = self.bits_shape(value.ty.extent);
                let (mut a, b) = (widen(&a, a_ty, rows, columns), widen(&b, b_ty, rows, columns));
                match op {
                    Binary::And => a.intersect(&b),
                    Binary::Or => a.union(&b),
                    _ => {
                        let mut both = a.clone();
                        both.intersect(&b);
                        a.union(&b);
                        a.subtract(&both);
                    }
                }
                Some(a)
            }
            _ => None,
        }
    }

    fn bits_shape(&self, extent: Extent) -> (usize, usize) {
        match extent {
            Extent::Blocks { q: Some(_), kv: Some(_) } => (self.blocks.q_blocks(), self.blocks.kv_blocks()),
            Extent::Blocks { q: Some(_), .. } => (1, self.blocks.q_blocks()),
            Extent::Blocks { kv: Some(_), .. } => (1, self.blocks.kv_blocks()),
            _ => (1, 1),
        }
    }

    /// Bits of a term in the shape of its role.
    fn spread(&self, bits: &BitMatrix, extent: Extent, role: Role) -> BitMatrix {
        let (rows, columns) = match role {
            Role::Cache => (1, self.blocks.q_blocks()),
            _ => (self.blocks.q_blocks(), self.blocks.kv_blocks()),
        };
        widen(bits, extent, rows, columns)
    }

    fn cover(&mut self, inner: ValueId, how: Lower, arrangement: usize) -> BitMatrix {
        let key = (inner, how, arrangement);
        if let Some(bits) = self.covered.get(&key) {
            return bits.clone();
        }
        // One class may have many large rules.
        if self.is_full() {
            return self.nothing(inner, how);
        }
        let (_, arranged) = &self.arrangements[arrangement];
        Known::bound(&mut self.known, arrangement, self.model.tokens() as usize);
        let table = TokenTable::new(&self.strategy.graph, self.model, arranged);
        let bits = cover(&table, &self.folded, inner, how, &mut self.known[arrangement], &self.budget)
            .unwrap_or_else(|reason| self.not_covered(inner, how, &reason));
        self.covered_bytes += bits.words().len() * 8;
        self.covered.insert(key, bits.clone());
        bits
    }

    /// Reports a predicate that takes too much, and stands in for its blocks.
    fn not_covered(&mut self, predicate: ValueId, how: Lower, reason: &str) -> BitMatrix {
        let span = self.folded.value(predicate).span;
        let help = "write it so that whole ranges of tokens decide it, or try one pair a block with `lower centre`";
        let message = format!("this predicate is too large: {reason}");
        self.errors.push(Diagnostic::new(Code::E0309, span, message).help(help));
        self.too_large = true;
        self.nothing(predicate, how)
    }

    /// What stands for the blocks of a predicate once there is an error.
    fn nothing(&self, predicate: ValueId, how: Lower) -> BitMatrix {
        let (rows, columns) = match self.folded.ty(predicate).extent {
            _ if matches!(how, Lower::Density { .. }) => (self.blocks.q_blocks(), self.blocks.kv_blocks()),
            Extent::Token { q: true, kv: true } => (self.blocks.q_blocks(), self.blocks.kv_blocks()),
            Extent::Token { q: true, .. } => (1, self.blocks.q_blocks()),
            _ => (1, self.blocks.kv_blocks()),
        };
        BitMatrix::zeros(rows, columns)
    }
}

/// Extent of the fixed part of a role.
fn bits_extent(role: Role) -> Extent {
    let all = Some(crate::ir::SetId::ALL);
    match role {
        Role::Cache => Extent::Blocks { q: all, kv: None },
        _ => Extent::Blocks { q: all, kv: all },
    }
}

fn push_mask(graph: &mut Graph, masks: &mut Vec<MaskId>, mask: MaskId, extent: Extent) -> ValueId {
    let slot = masks.iter().position(|known| *known == mask).unwrap_or_else(|| {
        masks.push(mask);
        masks.len() - 1
    });
    graph.push(Op::Mask(slot as u16), Type::new(Kind::Bool, extent), crate::source::Span::default())
}

/// A bitmap of one extent in the shape of a larger one.
fn widen(bits: &BitMatrix, extent: Extent, rows: usize, columns: usize) -> BitMatrix {
    if (bits.rows(), bits.columns()) == (rows, columns) && !matches!(extent, Extent::Scalar) {
        return bits.clone();
    }
    let mut wide = BitMatrix::zeros(rows, columns);
    for row in 0..rows {
        let source = match extent {
            Extent::Blocks { q: Some(_), kv: None } if rows > 1 => {
                if bits.get(0, row) {
                    wide.row_mut(row).copy_from_slice(BitMatrix::ones(1, columns).row(0));
                }
                continue;
            }
            Extent::Blocks { kv: Some(_), q: None } => bits.row(0),
            _ => {
                if bits.get(0, 0) {
                    wide.row_mut(row).copy_from_slice(BitMatrix::ones(1, columns).row(0));
                }
                continue;
            }
        };
        wide.row_mut(row).copy_from_slice(source);
    }
    wide
}

/// Whether the operands of a value are decided before run time like bitmaps; `so_far` says it of the value itself. So are
/// conditions on tokens, and what joins the conditions of a rule; an amount of a selection is not.
fn is_static_part(value: &Value, so_far: bool) -> bool {
    let joins = matches!(
        value.op,
        Op::Lower(..) | Op::Unary(Unary::Not, _) | Op::Binary(Binary::And | Binary::Or | Binary::Xor, ..)
    );
    (so_far && joins) || matches!(value.ty.extent, Extent::Token { .. })
}

/// The largest scalars in the static parts of a predicate that depend on the place.
fn scalar_roots(graph: &Graph, predicate: ValueId) -> Vec<ValueId> {
    let mut roots = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut open = vec![(predicate, true)];
    while let Some((id, in_static)) = open.pop() {
        if !seen.insert((id, in_static)) {
            continue;
        }
        let value = graph.value(id);
        if value.ty.extent == Extent::Scalar {
            if in_static && Dependence::of(graph, id) != Dependence::default() && !roots.contains(&id) {
                roots.push(id);
            }
            continue;
        }
        let in_static = is_static_part(value, in_static);
        open.extend(value.op.operands().into_iter().map(|operand| (operand, in_static)));
    }
    roots
}
