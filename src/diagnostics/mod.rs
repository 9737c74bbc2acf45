//! What the compiler has to say about a user's strategy.
//!
//! A [`Diagnostic`] carries a code, a sentence, the places it speaks of and, where there is one, the
//! edit that mends it. Checking collects as many as it finds; nothing here stops a compilation.
//! `codes` lists every code with its explanation, `render` draws them.

pub mod codes;
pub mod render;

use std::fmt;
use std::sync::Arc;

use crate::source::{Sources, Span};
pub use codes::Code;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The strategy works, but probably not as meant.
    Warning,
    /// The strategy has no meaning; nothing is built.
    Error,
}

/// A place a diagnostic speaks of.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What is said about it; may be empty.
    pub text: String,
    /// The place the finding is about; others give context. Exactly one label is primary.
    pub primary: bool,
}

/// An edit that mends the finding: replace the text under `span`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fix {
    /// What to replace.
    pub span: Span,
    /// The new text.
    pub replacement: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// Its code; severity and explanation follow from it.
    pub code: Code,
    /// One sentence: what was found and what is allowed. Lower case, no full stop.
    pub message: String,
    /// Places, the primary one first.
    pub labels: Vec<Label>,
    /// Facts that help to understand.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Option<String>,
    /// The edit that does it.
    pub fix: Option<Fix>,
}

impl Diagnostic {
    /// A finding at one place.
    #[must_use]
    pub fn new(code: Code, span: Span, message: impl Into<String>) -> Self {
        Diagnostic {
            code,
            message: message.into(),
            labels: vec![Label { span, text: String::new(), primary: true }],
            notes: Vec::new(),
            help: None,
            fix: None,
        }
    }

    /// Sets the text of the primary label.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.labels[0].text = text.into();
        self
    }

    /// Adds a second place.
    #[must_use]
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: false });
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Says what to do and gives the edit that does it.
    #[must_use]
    pub fn fix(mut self, help: impl Into<String>, span: Span, replacement: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self.fix = Some(Fix { span, replacement: replacement.into() });
        self
    }

    /// Error or warning, by the code.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.code.severity()
    }

    /// The place the finding is about.
    #[must_use]
    pub fn span(&self) -> Span {
        self.labels.first().map(|label| label.span).unwrap_or_default()
    }
}

/// Findings that are shown at most, errors before warnings.
pub const MAX_FINDINGS: usize = 1000;

/// Findings together with the texts they point into.
#[derive(Clone, Default)]
pub struct Diagnostics {
    /// The texts.
    pub sources: Arc<Sources>,
    /// The findings, in the order of their places.
    pub list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Joins findings with their texts and puts them in the order of their places.
    #[must_use]
    pub fn new(sources: Arc<Sources>, mut list: Vec<Diagnostic>) -> Self {
        let place = |diagnostic: &Diagnostic| (diagnostic.span(), diagnostic.code);
        list.sort_by_key(place);
        list.dedup();
        if list.len() > MAX_FINDINGS {
            list.sort_by_key(|diagnostic| diagnostic.severity() == Severity::Warning);
            list.truncate(MAX_FINDINGS);
            list.sort_by_key(place);
        }
        Diagnostics { sources, list }
    }

    /// Whether an error is among them.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|diagnostic| diagnostic.severity() == Severity::Error)
    }
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.list.fmt(f)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&render::text(self, false))
    }
}

/// What to say behind a name that nothing has: the one that was probably meant, or all that there are.
#[must_use]
pub fn near_or_all(name: &str, known: &[&str]) -> String {
    match did_you_mean(name, known.iter().copied()) {
        Some(near) => format!(", did you mean `{near}`?"),
        None if known.is_empty() => ": there is none".to_owned(),
        None => format!(": there are `{}`", known.join("`, `")),
    }
}

/// The candidate nearest to `name` by edit distance, when it is near enough to be a slip of the pen.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    // A single letter resembles every other.
    let limit = if length < 2 { 0 } else { (length / 3).max(1) };
    candidates
        .into_iter()
        // NOTE: the difference in length bounds the distance from below; without it a name of a megabyte costs seconds.
        .filter(|candidate| *candidate != name && candidate.chars().count().abs_diff(length) <= limit)
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
