//! Lines of a schedule become a kind for every (step, layer).
//!
//! For each layer the lines are taken in order, and each claims the steps at which it holds and that no
//! line above has claimed.

use super::bind_model::Dependence;
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Action, Clause, Extent, Model, Order, Place, ScheduleRule, StepKind, Strategy};
use crate::plan::Schedule;

/// The schedule of a bound strategy.
#[must_use]
pub fn build_schedule(strategy: &Strategy, model: &Model) -> Schedule {
    let places = (model.steps * model.layers) as usize;
    let mut schedule =
        Schedule { layers: model.layers, kinds: vec![default_kind(strategy); places], reuse_orders: vec![0; places] };
    // Without a line that speaks of layers all are as the first.
    let by_layer = strategy.schedule.iter().any(|rule| depends_on_layer(strategy, rule));
    for layer in 0..if by_layer { model.layers } else { 1 } {
        for (step, line) in (0..model.steps).zip(lines(strategy, model, layer)) {
            let Some(rule) = line else { continue };
            let at = At { step, layer, ..At::default() };
            let order = rule.order.map_or(0, |id| evaluate(&strategy.graph, id, at, &NoTokens).int());
            let place = (step * model.layers + layer) as usize;
            schedule.kinds[place] = rule.kind;
            schedule.reuse_orders[place] = order.clamp(0, 4) as u8;
        }
    }
    if !by_layer {
        let layers = model.layers as usize;
        schedule.kinds.chunks_mut(layers).for_each(|step| step.fill(step[0]));
        schedule.reuse_orders.chunks_mut(layers).for_each(|step| step.fill(step[0]));
    }
    schedule
}

/// The line that decides about each step of a layer; none where no line holds.
fn lines<'a>(strategy: &'a Strategy, model: &Model, layer: u32) -> Vec<Option<&'a ScheduleRule>> {
    let mut lines: Vec<Option<&ScheduleRule>> = vec![None; model.steps as usize];
    let mut free: Vec<u32> = (0..model.steps).collect();
    for rule in &strategy.schedule {
        let kind = |step: u32| lines[step as usize].map_or(StepKind::Dispatch, |line| line.kind);
        let claimed = steps_of(strategy, rule, layer, &free, kind);
        free.retain(|step| claimed.binary_search(step).is_err());
        for step in claimed {
            lines[step as usize] = Some(rule);
        }
    }
    lines
}

fn depends_on_layer(strategy: &Strategy, rule: &ScheduleRule) -> bool {
    let ids = rule.guard.iter().chain(&rule.order).chain(rule.clauses.iter().flat_map(|clause| match clause {
        Clause::While(id) => vec![id],
        Clause::Every { interval, from, .. } => from.iter().chain([interval]).collect(),
        Clause::On { steps, .. } => steps.iter().collect(),
    }));
    ids.into_iter().any(|&id| strategy.graph.depends_on(id, Place::Layer))
}

/// The kind of steps that no line speaks of.
fn default_kind(strategy: &Strategy) -> StepKind {
    let refreshes = strategy.schedule.iter().any(|rule| matches!(rule.kind, StepKind::Update | StepKind::Refresh));
    let is_dynamic = is_clustered(strategy) || strategy.rules.iter().any(|rule| is_dynamic(strategy, rule.predicate));
    if refreshes || !is_dynamic { StepKind::Dispatch } else { StepKind::Refresh }
}

/// Whether q and k decide where blocks begin.
fn is_clustered(strategy: &Strategy) -> bool {
    strategy.orders.iter().any(|rule| matches!(rule.order, Order::Clusters { .. }))
}

/// Whether a predicate needs q and k.
fn is_dynamic(strategy: &Strategy, id: crate::ir::ValueId) -> bool {
    let mut open = vec![id];
    let mut seen = std::collections::HashSet::new();
    while let Some(id) = open.pop() {
        let value = strategy.graph.value(id);
        if matches!(value.op, crate::ir::Op::Lower(..)) || !seen.insert(id) {
            continue;
        }
        if matches!(value.ty.extent, Extent::Vectors(..))
            || matches!(
                value.op,
                crate::ir::Op::SelfSimilarity(_)
                    | crate::ir::Op::AntiDiagonal { .. }
                    | crate::ir::Op::BlockTokens(_)
                    | crate::ir::Op::Measured { .. }
            )
        {
            return true;
        }
        open.extend(value.op.operands());
    }
    false
}

/// The free steps at which a line holds in a layer; `kind` is what the lines above have made of the others. A condition
/// on what earlier steps did takes free steps at which the line does not hold as computed.
fn steps_of(
    strategy: &Strategy,
    rule: &ScheduleRule,
    layer: u32,
    free: &[u32],
    kind: impl Fn(u32) -> StepKind,
) -> Vec<u32> {
    let graph = &strategy.graph;
    let at = |step| At { step, layer, ..At::default() };
    let value = |id, step| evaluate(graph, id, at(step), &NoTokens);
    if rule.guard.is_some_and(|guard| !value(guard, 0).truth()) {
        return Vec::new();
    }
    let holds = |clause: &Clause, at: At| match clause {
        Clause::While(id) => evaluate(graph, *id, at, &NoTokens).truth(),
        Clause::On { steps, except } => {
            steps.iter().any(|&id| evaluate(graph, id, at, &NoTokens).int() == i64::from(at.step)) != *except
        }
        Clause::Every { .. } => true,
    };
    let mut steps = Vec::new();
    let (mut last_computed, mut reused_steps) = (None, 0);
    for step in 0..free.last().map_or(0, |last| last + 1) {
        let is_free = free.binary_search(&step).is_ok();
        let claims =
            is_free && rule.clauses.iter().all(|clause| holds(clause, At { last_computed, reused_steps, ..at(step) }));
        let kind = match (claims, is_free) {
            (true, _) => rule.kind,
            (false, true) => StepKind::Dispatch,
            (false, false) => kind(step),
        };
        if claims {
            steps.push(step);
        }
        if kind.is_reuse() {
            reused_steps += 1;
        } else {
            last_computed = Some(step);
        }
    }
    // Intervals count from the first step that everything else allows.
    let origin = steps.first().copied().map_or(0, i64::from);
    for clause in &rule.clauses {
        let Clause::Every { interval, from, except } = clause else { continue };
        let interval = value(*interval, 0).int().max(1);
        let origin = from.map_or(origin, |id| value(id, 0).int());
        steps.retain(|&step| {
            let since = i64::from(step).saturating_sub(origin);
            (since >= 0 && since % interval == 0) != *except
        });
    }
    steps
}

/// Whether a rule is one of those that need something.
type Needs<'a> = &'a dyn Fn(&crate::ir::Rule) -> bool;

/// An error where symbols or features are obeyed before a step fills them.
///
/// # Errors
/// The first such step.
pub fn check_schedule(strategy: &Strategy, model: &Model, schedule: &Schedule) -> Result<(), Vec<Diagnostic>> {
    let dynamic = |rule: &crate::ir::Rule| is_clustered(strategy) || is_dynamic(strategy, rule.predicate);
    let cached = |rule: &crate::ir::Rule| rule.action == Action::Cache;
    let needs_symbols = held(strategy, model, dynamic);
    let needs_features = held(strategy, model, cached);
    for layer in 0..model.layers {
        let (mut symbols, mut features, mut computed) = (false, false, false);
        for step in 0..model.steps {
            let kind = schedule.kind(step, layer);
            let place = (step * model.layers + layer) as usize;
            // What needs it: a rule, or the line itself.
            let (message, needs): (_, Option<Needs<'_>>) = match kind {
                StepKind::Dispatch | StepKind::Residual if !symbols && needs_symbols[place] => {
                    ("obeys symbols that no step has computed yet", Some(&dynamic))
                }
                StepKind::Dispatch | StepKind::Refresh | StepKind::Residual if !features && needs_features[place] => {
                    ("takes cached features that no step has stored yet", Some(&cached))
                }
                StepKind::Residual if !features => ("adds what an update lost, and there was none yet", None),
                StepKind::Reuse(_) if !computed => ("reuses an output that no step has computed yet", None),
                _ => {
                    computed |= !kind.is_reuse();
                    symbols |= matches!(kind, StepKind::Update | StepKind::Refresh);
                    features |= kind == StepKind::Update;
                    continue;
                }
            };
            let line = lines(strategy, model, layer)[step as usize].map(|line| line.span);
            let is_held = |rule: &crate::ir::Rule| held(strategy, model, |other| std::ptr::eq(other, rule))[place];
            let rule = needs.and_then(|needs| strategy.rules.iter().find(|rule| needs(rule) && is_held(rule)));
            let rule = rule.map(|rule| rule.span);
            let mut diagnostic = Diagnostic::new(
                Code::E0310,
                line.or(rule).unwrap_or_default(),
                format!("step {step} of layer {layer} {message}"),
            );
            match (line, rule) {
                (Some(_), Some(rule)) => {
                    diagnostic = diagnostic.label("this line takes the step").also(rule, "for this")
                }
                (Some(_), None) => diagnostic = diagnostic.label("this line takes the step"),
                (None, _) => diagnostic = diagnostic.label("no line of the schedule takes the step, so it obeys this"),
            }
            return Err(vec![diagnostic.help(
                "begin with a step that fills them, such as `update on first` as the first line of the schedule",
            )]);
        }
    }
    Ok(())
}

/// Where some head of a layer has an active rule of a kind: `[steps][layers]`.
fn held(strategy: &Strategy, model: &Model, of_kind: impl Fn(&crate::ir::Rule) -> bool) -> Vec<bool> {
    let mut held = vec![false; (model.steps * model.layers) as usize];
    for rule in strategy.rules.iter().filter(|rule| of_kind(rule)) {
        let Some(guard) = rule.guard else {
            held.fill(true);
            break;
        };
        let dependence = Dependence::of(&strategy.graph, guard);
        for at in dependence.places(model) {
            if !evaluate(&strategy.graph, guard, at, &NoTokens).truth() {
                continue;
            }
            let steps = if dependence.step { at.step..at.step + 1 } else { 0..model.steps };
            for step in steps {
                let layers = if dependence.layer { at.layer..at.layer + 1 } else { 0..model.layers };
                for layer in layers {
                    held[(step * model.layers + layer) as usize] = true;
                }
            }
        }
    }
    held
}
