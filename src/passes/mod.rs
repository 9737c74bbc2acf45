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
use crate::ir::{Grain, Model, Op, Order, Strategy};
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
    let graph = &strategy.graph;
    let mut missing: Vec<Diagnostic> = Vec::new();
    let mut report = |name: &str, span| {
        let message = match name {
            "" => "there are no rows to take".to_owned(),
            name => format!("the input `{name}` was not given"),
        };
        missing.push(Diagnostic::new(Code::E0305, span, message).help(GIVE_INPUT));
    };
    let mut named: Vec<&str> = Vec::new();
    for (_, value) in graph.values() {
        let (name, is_missing) = match value.op {
            Op::Table { table, .. } => {
                let table = &graph.tables[usize::from(table)];
                (&table.name, table.is_missing())
            }
            Op::Each(_, set) => {
                let Grain::Rows(index) = graph.grain(set) else { continue };
                let rows = &graph.rows[usize::from(index)];
                (&rows.name, rows.tokens.is_empty())
            }
            _ => continue,
        };
        if is_missing && !named.contains(&name.as_str()) {
            named.push(name);
            report(name, value.span);
        }
    }
    for rule in &strategy.orders {
        let Order::Given(table) = rule.order else { continue };
        let table = &graph.tables[usize::from(table)];
        if table.is_missing() {
            report(&table.name, rule.span);
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
