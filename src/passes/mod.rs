//! The passes, in order. Each takes a valid IR and leaves a valid one.
//!
//! | pass | what it does |
//! |---|---|
//! | `bind_model` | sizes become constants; what does not fit the model is reported |
//! | `fold_constants` | operations on constants become constants |
//! | `drop_unused` | values that no rule reaches disappear, so that equal strategies have equal graphs |
//! | `lower_predicates` | predicates of tokens become predicates of blocks |
//! | `build_schedule` | lines become a kind for every (step, layer) |
//! | `specialise` | places become classes, static parts bitmaps, dynamic parts selector programs: the plan |

pub mod bind_model;
pub mod build_schedule;
pub mod drop_unused;
pub mod fold_constants;
pub mod lower_predicates;
mod rewrite;
pub mod specialise;

use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Grain, Model, Op, Strategy, Value};
use crate::plan::{Plan, Schedule};

/// The passes that leave an IR, by name, in order.
pub const NAMES: &[&str] = &["bind_model", "fold_constants", "drop_unused", "lower_predicates"];

/// The passes after `bind_model` that only rewrite, in order.
const REWRITES: [(&str, Rewrite); 3] = [
    ("fold_constants", fold_constants::fold_constants),
    ("drop_unused", drop_unused::drop_unused),
    ("lower_predicates", lower_predicates::lower_predicates),
];

type Rewrite = fn(&mut Strategy);

/// Binds a strategy to a model and runs all passes. `after` sees the IR after each pass.
///
/// # Errors
/// The findings of `bind_model`, `build_schedule` and `specialise`.
pub fn run(
    strategy: Strategy,
    model: &Model,
    after: &mut dyn FnMut(&'static str, &Strategy),
) -> Result<(Plan, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (strategy, schedule, mut findings) = prepare(strategy, model, after)?;
    missing_inputs(&strategy)?;
    let (plan, more) = specialise::specialise(&strategy, model, schedule)?;
    findings.extend(more);
    Ok((plan, findings))
}

/// The findings of all passes on a strategy that is not built: of `specialise` only what it finds by looking at so many pairs;
/// see [`specialise::quick_findings`].
///
/// # Errors
/// The findings of `bind_model` and `build_schedule`.
pub fn check(strategy: Strategy, model: &Model, pairs_left: &mut u64) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let (strategy, _, mut findings) = prepare(strategy, model, &mut |_, _| {})?;
    // Without the inputs nothing is known of the blocks.
    if missing_inputs(&strategy).is_ok() {
        findings.extend(specialise::quick_findings(&strategy, model, pairs_left));
    }
    Ok(findings)
}

/// The passes before `specialise`, which take no time.
///
/// # Errors
/// The findings of `bind_model` and `build_schedule`.
fn prepare(
    mut strategy: Strategy,
    model: &Model,
    after: &mut dyn FnMut(&'static str, &Strategy),
) -> Result<(Strategy, Schedule, Vec<Diagnostic>), Vec<Diagnostic>> {
    debug_validate(&strategy, "check");
    let findings = bind_model::bind_model(&mut strategy, model)?;
    debug_validate(&strategy, "bind_model");
    after("bind_model", &strategy);
    for (name, pass) in REWRITES {
        pass(&mut strategy);
        debug_validate(&strategy, name);
        after(name, &strategy);
    }
    let schedule = build_schedule::build_schedule(&strategy, model);
    build_schedule::check_schedule(&strategy, model, &schedule)?;
    Ok((strategy, schedule, findings))
}

const GIVE_INPUT: &str = "the command takes a file with `--inputs`, the library `Compiler::input`";

/// Inputs that the strategy reads and nobody has given.
fn missing_inputs(strategy: &Strategy) -> Result<(), Vec<Diagnostic>> {
    let mut missing: Vec<Diagnostic> = Vec::new();
    let mut named = Vec::new();
    for (_, value) in strategy.graph.values() {
        let Op::Table { table, .. } = value.op else { continue };
        let table = &strategy.graph.tables[usize::from(table)];
        if table.is_missing() && !named.contains(&&table.name) {
            named.push(&table.name);
            let message = format!("the input `{}` was not given", table.name);
            missing.push(Diagnostic::new(Code::E0305, value.span, message).help(GIVE_INPUT));
        }
    }
    for rule in &strategy.orders {
        let crate::ir::Order::Given(table) = rule.order else { continue };
        let table = &strategy.graph.tables[usize::from(table)];
        if table.is_missing() {
            let message = format!("the input `{}` was not given", table.name);
            missing.push(Diagnostic::new(Code::E0305, rule.span, message).help(GIVE_INPUT));
        }
    }
    let is_used = |rows: usize| {
        let each = |value: &Value| matches!(value.op, Op::Each(_, set) if strategy.graph.grain(set) == Grain::Rows(rows as u16));
        strategy.graph.values().map(|(_, value)| value).find(|value| each(value)).map(|value| value.span)
    };
    for (index, rows) in strategy.graph.rows.iter().enumerate().filter(|(_, rows)| rows.tokens.is_empty()) {
        if let Some(span) = is_used(index) {
            let message = match rows.name.as_str() {
                "" => "there are no rows to take".to_owned(),
                name => format!("the input `{name}` was not given"),
            };
            missing.push(Diagnostic::new(Code::E0305, span, message).help(GIVE_INPUT));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

fn debug_validate(strategy: &Strategy, pass: &str) {
    if cfg!(debug_assertions)
        && let Err(reasons) = crate::ir::validate::validate(strategy)
    {
        debug_assert!(false, "invalid IR after `{pass}`: {reasons:?}\n{strategy}");
    }
}
