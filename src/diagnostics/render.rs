//! Drawing diagnostics: text with source excerpts, one line each, JSON.

use super::Diagnostics;

/// Text with source excerpts.
#[must_use]
pub fn text(diagnostics: &Diagnostics, _color: bool) -> String {
    diagnostics.list.iter().map(|d| format!("{}: {}\n", d.code, d.message)).collect()
}
