//! Names of the kinds of steps, as in the language.

use flashomni::ir::{StepKind, Unit};

/// `dense`, `update`, ...
pub fn name(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Dense => "dense",
        StepKind::Update => "update",
        StepKind::Refresh => "refresh",
        StepKind::Dispatch => "dispatch",
        StepKind::Reuse(Unit::Attention) => "reuse",
        StepKind::Reuse(Unit::Modules) => "reuse modules",
        StepKind::Reuse(Unit::Layer) => "reuse layer",
        StepKind::Residual => "residual",
        StepKind::Shared => "shared",
    }
}
