//! Drawing diagnostics: text with source excerpts, one line each, JSON, GitHub annotations; and applying fixes.
//!
//! The only user of `annotate_snippets`. Spans are checked here before they are drawn: whatever a stage
//! hands over (a place past the end, inside a character, in an unknown file), drawing does not fail.

use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use serde::Serialize;

use super::{Diagnostic, Diagnostics, Fix, Label, Severity};
use crate::source::{SourceFile, Sources, Span};

/// Longest line that is drawn; of longer ones only the place is told.
const LONGEST_LINE: usize = 1_000;

/// Text with source excerpts, in the look of rustc, one finding after the other with a blank line between.
#[must_use]
pub fn text(diagnostics: &Diagnostics, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Unicode);
    let mut out = String::new();
    for diagnostic in &diagnostics.list {
        let mut groups = vec![main_group(diagnostic, &diagnostics.sources)];
        groups.extend(fix_group(diagnostic, &diagnostics.sources));
        out.push_str(renderer.render(&groups).trim_end());
        out.push_str("\n\n");
    }
    out
}

fn main_group<'a>(diagnostic: &'a Diagnostic, sources: &'a Sources) -> Group<'a> {
    let level = match diagnostic.severity() {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code.name());
    let mut group = Group::with_title(title);
    for file in files_of(diagnostic) {
        if let Some(source) = sources.file(file) {
            let labels = diagnostic.labels.iter().filter(|label| label.span.file == file);
            group = group.element(snippet(source, labels));
        }
    }
    for note in &diagnostic.notes {
        group = group.element(Level::NOTE.message(note.as_str()));
    }
    match &diagnostic.help {
        Some(help) if diagnostic.fix.is_none() => group.element(Level::HELP.message(help.as_str())),
        _ => group,
    }
}

/// The files a finding speaks of, that of its primary place first.
fn files_of(diagnostic: &Diagnostic) -> Vec<u16> {
    let mut files = Vec::new();
    for label in &diagnostic.labels {
        if !files.contains(&label.span.file) {
            files.push(label.span.file);
        }
    }
    files
}

fn snippet<'a>(source: &'a SourceFile, labels: impl Iterator<Item = &'a Label>) -> Snippet<'a, Annotation<'a>> {
    let labels: Vec<_> = labels.map(|label| (label, range(&source.text, label.span))).collect();
    let window = window(&source.text, labels.iter().map(|(_, range)| range.clone()));
    let mut snippet =
        Snippet::source(&source.text[window.range.clone()]).line_start(window.line).path(source.name.as_str());
    for (label, range) in labels {
        let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
        let mut annotation = kind.span(window.inside(&range));
        if !label.text.is_empty() {
            annotation = annotation.label(label.text.as_str());
        }
        snippet = snippet.annotation(annotation);
    }
    snippet
}

fn fix_group<'a>(diagnostic: &'a Diagnostic, sources: &'a Sources) -> Option<Group<'a>> {
    let fix = diagnostic.fix.as_ref()?;
    let source = sources.file(fix.span.file)?;
    let title = Level::HELP.secondary_title(diagnostic.help.as_deref().unwrap_or("write this"));
    let range = range(&source.text, fix.span);
    let window = window(&source.text, std::iter::once(range.clone()));
    let patch = Patch::new(window.inside(&range), fix.replacement.as_str());
    let snippet =
        Snippet::source(&source.text[window.range.clone()]).line_start(window.line).path(source.name.as_str());
    Some(Group::with_title(title).element(snippet.patch(patch)))
}

/// The lines of a text that are drawn. Cutting them out first keeps drawing fast for large texts.
struct Window {
    range: Range<usize>,
    line: usize,
}

impl Window {
    /// A range of the text as a range of the window.
    fn inside(&self, range: &Range<usize>) -> Range<usize> {
        let place = |offset: usize| offset.clamp(self.range.start, self.range.end) - self.range.start;
        place(range.start)..place(range.end)
    }
}

fn window(text: &str, ranges: impl Iterator<Item = Range<usize>>) -> Window {
    let (mut start, mut end) = (text.len(), 0);
    for range in ranges {
        start = start.min(range.start);
        end = end.max(range.end);
    }
    let (start, end) = (start.min(end), end);
    let first = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let last = text[end..].find('\n').map_or(text.len(), |newline| end + newline);
    let line = text[..first].matches('\n').count() + 1;
    let longest = text[first..last].split('\n').map(str::len).max().unwrap_or(0);
    if longest <= LONGEST_LINE {
        return Window { range: first..last, line };
    }
    // A line that long is no line of a person's text: show the surroundings of the place only.
    let from = floor(text, start.saturating_sub(40).max(first));
    let to = floor(text, (start + 120).min(last));
    Window { range: from..to.max(from), line }
}

/// The nearest boundary of a character at or before an offset.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

fn range(text: &str, span: Span) -> Range<usize> {
    let start = floor(text, span.start as usize);
    start..floor(text, span.end as usize).max(start)
}

/// One line for each finding: `file.omni:3:8: error[E0203]: message`.
#[must_use]
pub fn concise(diagnostics: &Diagnostics) -> String {
    let mut out = String::new();
    for diagnostic in &diagnostics.list {
        let place = Place::new(&diagnostics.sources, diagnostic.span());
        let (severity, code) = (name(diagnostic.severity()), diagnostic.code);
        let message = &diagnostic.message;
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "{}:{}:{}: {severity}[{code}]: {message}", place.file, place.start.line, place.start.column);
    }
    out
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// Workflow commands that GitHub shows at the lines of a pull request.
#[must_use]
pub fn github(diagnostics: &Diagnostics) -> String {
    let mut out = String::new();
    for diagnostic in &diagnostics.list {
        let place = Place::new(&diagnostics.sources, diagnostic.span());
        let mut message = diagnostic.message.clone();
        if let Some(help) = &diagnostic.help {
            message = format!("{message}\nhelp: {help}");
        }
        let severity = name(diagnostic.severity());
        let file = escape_property(&place.file);
        let (start, end) = (place.start, place.end);
        let title = format!("{} {}", diagnostic.code, diagnostic.code.title());
        // GitHub ignores columns when the lines differ.
        let _ = writeln!(
            out,
            "::{severity} file={file},line={},endLine={},col={},endColumn={},title={}::{}",
            start.line,
            end.line,
            start.column,
            end.column,
            escape_property(&title),
            escape_data(&message)
        );
    }
    out
}

fn escape_data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn escape_property(text: &str) -> String {
    escape_data(text).replace(':', "%3A").replace(',', "%2C")
}

/// The findings as JSON, an array of objects:
///
/// | field | value |
/// |---|---|
/// | `code`, `title`, `severity` | `"E0203"`, `"unknown function"`, `"error"` or `"warning"` |
/// | `message` | one sentence |
/// | `file`, `start`, `end` | the primary place: name of the file, `{ line, column, offset }` of both ends |
/// | `labels` | all places: `file`, `start`, `end`, `text`, `primary` |
/// | `notes`, `help` | texts; `help` may be `null` |
/// | `fix` | `null` or `file`, `start`, `end`, `replacement` |
///
/// Lines and columns count from 1, columns in characters; offsets count bytes from 0; `end` is exclusive.
#[must_use]
pub fn json(diagnostics: &Diagnostics) -> String {
    let findings: Vec<_> = diagnostics.list.iter().map(|one| Finding::new(&diagnostics.sources, one)).collect();
    // Strings and integers always have a JSON form.
    serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n"
}

#[derive(Serialize)]
struct Finding<'a> {
    code: &'static str,
    title: &'static str,
    severity: &'static str,
    message: &'a str,
    #[serde(flatten)]
    place: Place,
    labels: Vec<JsonLabel<'a>>,
    notes: &'a [String],
    help: Option<&'a str>,
    fix: Option<JsonFix<'a>>,
}

#[derive(Serialize)]
struct JsonLabel<'a> {
    #[serde(flatten)]
    place: Place,
    text: &'a str,
    primary: bool,
}

#[derive(Serialize)]
struct JsonFix<'a> {
    #[serde(flatten)]
    place: Place,
    replacement: &'a str,
}

impl<'a> Finding<'a> {
    fn new(sources: &Sources, diagnostic: &'a Diagnostic) -> Self {
        let label = |label: &'a Label| JsonLabel {
            place: Place::new(sources, label.span),
            text: &label.text,
            primary: label.primary,
        };
        let fix = |fix: &'a Fix| JsonFix { place: Place::new(sources, fix.span), replacement: &fix.replacement };
        Finding {
            code: diagnostic.code.name(),
            title: diagnostic.code.title(),
            severity: name(diagnostic.severity()),
            message: &diagnostic.message,
            place: Place::new(sources, diagnostic.span()),
            labels: diagnostic.labels.iter().map(label).collect(),
            notes: &diagnostic.notes,
            help: diagnostic.help.as_deref(),
            fix: diagnostic.fix.as_ref().map(fix),
        }
    }
}

#[derive(Serialize)]
struct Place {
    file: String,
    start: Position,
    end: Position,
}

#[derive(Clone, Copy, Serialize)]
struct Position {
    line: usize,
    column: usize,
    offset: u32,
}

impl Place {
    fn new(sources: &Sources, span: Span) -> Place {
        let position = |offset: u32| {
            let (line, column) = sources.line_column(Span { file: span.file, start: offset, end: offset });
            Position { line, column, offset }
        };
        let file = sources.file(span.file).map_or_else(|| "<unknown>".to_owned(), |file| file.name.clone());
        Place { file, start: position(span.start), end: position(span.end) }
    }
}

/// Applies every fix of the findings that lies in file `file` to its text `text`.
///
/// Fixes that overlap an earlier one are left for the next round; the number of applied ones comes with
/// the new text.
#[must_use]
pub fn apply_fixes(diagnostics: &Diagnostics, file: u16, text: &str) -> (String, usize) {
    let mut fixes: Vec<&Fix> = diagnostics.list.iter().filter_map(|diagnostic| diagnostic.fix.as_ref()).collect();
    fixes.retain(|fix| fix.span.file == file && text.get(fix.span.start as usize..fix.span.end as usize).is_some());
    fixes.sort_by_key(|fix| (fix.span, fix.replacement.as_str()));
    let (mut out, mut done, mut applied) = (String::with_capacity(text.len()), 0, 0);
    for fix in fixes {
        let (start, end) = (fix.span.start as usize, fix.span.end as usize);
        if start < done || (applied > 0 && start == done && start == end) {
            continue;
        }
        out.push_str(&text[done..start]);
        out.push_str(&fix.replacement);
        done = end;
        applied += 1;
    }
    out.push_str(&text[done..]);
    (out, applied)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::diagnostics::Code;

    fn findings(text: &str, list: Vec<Diagnostic>) -> Diagnostics {
        let mut sources = Sources::default();
        sources.add("a.omni", text);
        Diagnostics::new(Arc::new(sources), list)
    }

    fn at(start: u32, end: u32) -> Span {
        Span { file: 0, start, end }
    }

    #[test]
    fn odd_places_are_drawn() {
        let texts =
            ["", "\n", "é", "a\r\nb\r\n", "\tkeep\tä → b", "a", "\u{FEFF}x", &"x".repeat(5_000), &"é\n".repeat(50)];
        for text in texts {
            for (start, end) in [(0, 0), (0, 1), (1, 2), (1, 9_999), (9_999, 10_000), (3, 2), (0, 9_999)] {
                let finding = Diagnostic::new(Code::E0101, at(start, end), "m").also(at(end, start), "second");
                let finding =
                    finding.also(Span { file: 7, start: 1, end: 2 }, "no file").fix("h", at(start, end), "new");
                let findings = findings(text, vec![finding]);
                for out in [super::text(&findings, true), super::text(&findings, false)] {
                    assert!(out.contains('m'));
                }
                assert!(json(&findings).contains("E0101"));
                assert_eq!(concise(&findings).lines().count(), 1);
                assert_eq!(github(&findings).lines().count(), 1);
                let _ = apply_fixes(&findings, 0, text);
            }
        }
    }

    #[test]
    fn formats_tell_the_same() {
        let finding =
            Diagnostic::new(Code::E0101, at(4, 7), "found `kep`").fix("did you mean `keep`?", at(4, 7), "keep");
        let findings = findings("let\nkep a, b", vec![finding]);
        assert_eq!(concise(&findings), "a.omni:2:1: error[E0101]: found `kep`\n");
        assert_eq!(
            github(&findings),
            "::error file=a.omni,line=2,endLine=2,col=1,endColumn=4,title=E0101 unexpected text::found `kep`%0Ahelp: did you mean `keep`?\n"
        );
        let value: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
        assert_eq!(value[0]["start"]["line"], 2);
        assert_eq!(value[0]["fix"]["replacement"], "keep");
        assert_eq!(apply_fixes(&findings, 0, "let\nkep a, b"), ("let\nkeep a, b".to_owned(), 1));
    }

    #[test]
    fn overlapping_fixes_wait() {
        let fix =
            |start, end, text: &str| Diagnostic::new(Code::E0101, at(start, end), text).fix("h", at(start, end), text);
        let findings = findings("abcdef", vec![fix(0, 2, "X"), fix(1, 3, "Y"), fix(4, 5, "Z")]);
        assert_eq!(apply_fixes(&findings, 0, "abcdef"), ("XcdZf".to_owned(), 2));
    }
}
