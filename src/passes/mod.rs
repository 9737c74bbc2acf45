//! The passes, in order. Each takes a valid IR and leaves a valid one.
//!
//! | pass | what it does |
//! |---|---|
//! | `bind_model` | sizes become constants; what does not fit the model is reported, the last pass that can fail |
//! | `fold_constants` | operations on constants become constants |
//! | `drop_unused` | values that no rule reaches disappear, so that equal strategies have equal graphs |
//! | `lower_predicates` | predicates of tokens become predicates of blocks |
//! | `build_schedule` | lines become a kind for every (step, layer) |
//! | `specialise` | places become classes, static parts bitmaps, dynamic parts selector programs: the plan |

pub mod arrange;
pub mod bind_model;
pub mod build_schedule;
pub mod cover;
pub mod drop_unused;
pub mod fold_constants;
pub mod lower_predicates;
mod rewrite;
pub mod specialise;

use crate::diagnostics::Diagnostic;
use crate::ir::{Model, Strategy};
use crate::plan::Plan;

/// The passes that leave an IR, by name, in order.
pub const NAMES: &[&str] = &["bind_model", "fold_constants", "drop_unused", "lower_predicates"];

/// Binds a strategy to a model and runs all passes. `after` sees the IR after each pass.
///
/// # Errors
/// The findings of `bind_model`.
pub fn run(
    mut strategy: Strategy,
    model: &Model,
    after: &mut dyn FnMut(&'static str, &Strategy),
) -> Result<(Plan, Vec<Diagnostic>), Vec<Diagnostic>> {
    debug_validate(&strategy, "check");
    let mut findings = bind_model::bind_model(&mut strategy, model)?;
    let steps: [(&'static str, fn(&mut Strategy)); 3] = [
        ("fold_constants", fold_constants::fold_constants),
        ("drop_unused", drop_unused::drop_unused),
        ("lower_predicates", lower_predicates::lower_predicates),
    ];
    debug_validate(&strategy, "bind_model");
    after("bind_model", &strategy);
    for (name, pass) in steps {
        pass(&mut strategy);
        debug_validate(&strategy, name);
        after(name, &strategy);
    }
    let schedule = build_schedule::build_schedule(&strategy, model);
    let (plan, more) = specialise::specialise(&strategy, model, schedule)?;
    findings.extend(more);
    Ok((plan, findings))
}

fn debug_validate(strategy: &Strategy, pass: &str) {
    if cfg!(debug_assertions)
        && let Err(reasons) = crate::ir::validate::validate(strategy)
    {
        debug_assert!(false, "invalid IR after `{pass}`: {reasons:?}\n{strategy}");
    }
}
