//! Names of the kinds of steps, as in the language.

use flashomni::ir::StepKind;

/// `dense`, `update`, ...
pub fn name(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Dense => "dense",
        StepKind::Update => "update",
        StepKind::Refresh => "refresh",
        StepKind::Dispatch => "dispatch",
        StepKind::Reuse => "reuse",
        StepKind::Residual => "residual",
        StepKind::Shared => "shared",
    }
}
