//! The canonical form of a text (`omni fmt`).
//!
//! It works on tokens, not on the tree: every token but `;` is written again in its order, so the meaning
//! cannot change and no comment is lost. The tree only says where statements start. This file cuts the
//! tokens into logical lines (a statement up to its `{`, a `}`, a comment of its own); `wrap` writes one
//! logical line, over several lines where it is too long. Every choice depends only on what the output
//! keeps (tokens, blank lines, whether a comment or block had its own line), hence formatting twice is the
//! same as once.

mod wrap;

use std::collections::HashSet;

use super::ast::{File, Item, ModelField, ScheduleStmt, Stmt, StmtKind};
use super::lexer::{Kind, Token, scan};
use super::parse;
use crate::diagnostics::Diagnostic;

/// Spaces per block.
const INDENT: usize = 4;
/// Longest line, in characters, where it can be avoided.
const WIDTH: usize = 100;

/// A token as it is written.
#[derive(Clone, Debug)]
struct Piece {
    text: String,
    kind: Kind,
    /// First of a statement, declaration or field.
    first: bool,
    /// A comment on a line of its own.
    own_line: bool,
}

/// A logical line.
#[derive(Debug)]
struct Line {
    depth: usize,
    blank_before: bool,
    pieces: Vec<Piece>,
}

/// Writes a text in the canonical form.
///
/// # Errors
/// The syntax errors, when there are any; a text with errors is left alone.
pub fn format(text: &str) -> Result<String, Vec<Diagnostic>> {
    let (tree, found) = parse(0, text);
    if !found.is_empty() {
        return Err(found);
    }
    let mut writer = Writer { text, tokens: scan(text).tokens, starts: starts(&tree), ..Writer::default() };
    writer.run();
    let mut out = String::with_capacity(text.len());
    for line in &writer.lines {
        if line.blank_before && !out.is_empty() {
            out.push('\n');
        }
        wrap::write(&mut out, line);
    }
    Ok(out)
}

/// Where statements, lines of schedules and fields of models start.
fn starts(tree: &File) -> HashSet<usize> {
    let mut starts = HashSet::new();
    for item in &tree.items {
        match item {
            Item::Import(_) => {}
            Item::Model(model) => starts.extend(model.fields.iter().filter_map(|field| match field {
                ModelField::Count(name, _) => Some(name.span.start as usize),
                ModelField::Tokens(_, span) => Some(span.start as usize),
                ModelField::Dtype(_) => None,
            })),
            Item::Strategy(strategy) => statement_starts(&strategy.body, &mut starts),
        }
    }
    starts
}

fn statement_starts(body: &[Stmt], starts: &mut HashSet<usize>) {
    for stmt in body {
        starts.insert(stmt.span.start as usize);
        match &stmt.kind {
            StmtKind::Guard { body, otherwise, .. } => {
                statement_starts(body, starts);
                statement_starts(otherwise.as_deref().unwrap_or_default(), starts);
            }
            StmtKind::Schedule(lines) => line_starts(lines, starts),
            _ => {}
        }
    }
}

fn line_starts(lines: &[ScheduleStmt], starts: &mut HashSet<usize>) {
    for line in lines {
        match line {
            ScheduleStmt::Kind { span, .. } => drop(starts.insert(span.start as usize)),
            ScheduleStmt::Layers(_, inner, span) => {
                starts.insert(span.start as usize);
                line_starts(inner, starts);
            }
        }
    }
}

#[derive(Default)]
struct Writer<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    starts: HashSet<usize>,
    lines: Vec<Line>,
    /// The line being put together, its depth and whether a blank line goes before it.
    pieces: Vec<Piece>,
    line_depth: usize,
    blank_before: bool,
    depth: usize,
    /// Comments that go in front of the next statement on its line.
    prefix: Vec<Piece>,
    /// Up to this token the block is written on one line.
    inline_until: usize,
    /// The line before ended a declaration.
    after_item: bool,
}

impl Writer<'_> {
    fn run(&mut self) {
        let mut at = 0;
        while let Some(token) = self.tokens.get(at).copied() {
            match (token.is_comment(), token.of(self.text)) {
                (true, _) => {
                    let end = at + self.tokens[at..].iter().take_while(|token| token.is_comment()).count();
                    self.comments(at, end);
                    at = end;
                    continue;
                }
                (false, ";") => {}
                (false, "{") => self.open(at),
                (false, "}") => self.close(at),
                (false, _) => self.plain(at, token),
            }
            at += 1;
        }
        self.flush();
    }

    /// Whether a token begins a logical line.
    fn is_boundary(&self, at: usize) -> bool {
        let Some(token) = self.tokens.get(at) else { return true };
        let word = token.of(self.text);
        word == "}"
            || self.starts.contains(&token.start)
            || (token.kind == Kind::Word && word == "dtype")
            || (self.depth == 0 && token.kind == Kind::Word && matches!(word, "import" | "model" | "strategy"))
    }

    fn newlines_before(&self, at: usize) -> usize {
        let start = at.checked_sub(1).and_then(|before| self.tokens.get(before)).map(|token| token.end);
        let end = self.tokens.get(at).map_or(self.text.len(), |token| token.start);
        match start {
            Some(start) => self.text.get(start..end).unwrap_or("").matches('\n').count(),
            // The start of the file counts as the start of a line.
            None => 1,
        }
    }

    fn comments(&mut self, from: usize, to: usize) {
        // A `;` behind them is not written.
        let next = to + self.tokens[to..].iter().take_while(|token| token.of(self.text) == ";").count();
        let boundary = self.is_boundary(next);
        for at in from..to {
            let token = self.tokens[at];
            let (before, after) =
                (self.newlines_before(at) > 0, self.newlines_before(at + 1) > 0 || next == self.tokens.len());
            // Inside a statement a comment starts a line or does not; what follows one on its own line starts one too.
            let follows = self.pieces.last().is_some_and(|last| last.own_line && wrap::is_comment(last));
            let own_line = if boundary { before && after } else { before || follows };
            let piece = self.piece(token, false, own_line);
            let trailing = !before && self.prefix.is_empty();
            match (boundary, trailing && !self.pieces.is_empty()) {
                (false, _) | (true, true) => self.pieces.push(piece),
                (true, false) => {
                    if self.prefix.is_empty() {
                        self.flush();
                        self.begin(at);
                    }
                    self.prefix.push(piece);
                    let closes = self.tokens.get(next).is_none_or(|token| token.of(self.text) == "}");
                    if after || (closes && at + 1 == to) {
                        self.pieces.append(&mut self.prefix);
                        self.flush();
                    }
                }
            }
        }
    }

    fn open(&mut self, at: usize) {
        self.pieces.push(self.piece(self.tokens[at], false, false));
        self.depth += 1;
        if at >= self.inline_until
            && let Some(end) = self.inline_end(at)
        {
            self.inline_until = end;
        }
    }

    fn close(&mut self, at: usize) {
        self.depth = self.depth.saturating_sub(1);
        if at > self.inline_until || self.inline_until == 0 {
            self.flush();
            self.begin(at);
            self.blank_before = false;
        }
        self.pieces.push(self.piece(self.tokens[at], false, false));
        self.after_item = self.depth == 0;
    }

    fn plain(&mut self, at: usize, token: Token) {
        let first = self.is_boundary(at);
        if first && at > self.inline_until {
            if self.prefix.is_empty() {
                self.flush();
                self.begin(at);
            }
            self.pieces.append(&mut self.prefix);
        } else if first && self.inline_until == 0 && self.pieces.is_empty() {
            self.begin(at);
        }
        let block = self.pieces.iter().any(|piece| piece.first && piece.text == "block");
        for part in split_block_size(token, self.text, block && self.pieces.last().is_some_and(wrap::ends_operand)) {
            let mut piece = self.piece(token, first, false);
            (piece.text, piece.kind) = part;
            self.pieces.push(piece);
        }
    }

    /// The end of a block that stays on one line: written so, with at most one statement and no comment,
    /// and short enough.
    fn inline_end(&self, open: usize) -> Option<usize> {
        let first = open + 1 + self.tokens[open + 1..].iter().take_while(|token| token.of(self.text) == ";").count();
        if self.tokens.get(first).is_some_and(|token| token.of(self.text) == "}") {
            return Some(first);
        }
        let mut width = self.line_depth * INDENT + wrap::flat_width(&self.pieces);
        let mut statements = vec![0_usize];
        let mut previous = self.tokens[open];
        for (at, token) in self.tokens.iter().enumerate().skip(open + 1) {
            let gap = self.text.get(previous.end..token.start).unwrap_or("");
            let word = token.of(self.text);
            // Never less than what it will be: every token may need one space before it.
            width += if word == ";" { 0 } else { word.chars().count() + 1 };
            if token.is_comment() || gap.contains('\n') || width > WIDTH {
                return None;
            }
            match word {
                "{" => statements.push(0),
                "}" if statements.len() == 1 => return Some(at),
                "}" => drop(statements.pop()),
                _ if self.starts.contains(&token.start) || word == "dtype" => {
                    let count = statements.last_mut()?;
                    *count += 1;
                    if *count > 1 {
                        return None;
                    }
                }
                _ => {}
            }
            previous = *token;
        }
        None
    }

    fn piece(&self, token: Token, first: bool, own_line: bool) -> Piece {
        let text = token.of(self.text);
        let text = if token.is_comment() {
            text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
        } else {
            text.to_owned()
        };
        Piece { text, kind: token.kind, first, own_line }
    }

    fn begin(&mut self, at: usize) {
        self.line_depth = self.depth;
        let opened = self.lines.last().is_some_and(|line| {
            line.pieces.iter().rfind(|piece| !wrap::is_comment(piece)).is_some_and(|piece| piece.text == "{")
                && line.depth < self.depth
        });
        self.blank_before = (self.newlines_before(at) > 1 && !opened) || self.after_item;
        self.after_item = false;
    }

    fn flush(&mut self) {
        if !self.pieces.is_empty() {
            let pieces = std::mem::take(&mut self.pieces);
            self.lines.push(Line { depth: self.line_depth, blank_before: self.blank_before, pieces });
        }
    }
}

/// `128x64` and the `x64` of `128 x64` are single tokens for the lexer.
fn split_block_size(token: Token, text: &str, after_operand: bool) -> Vec<(String, Kind)> {
    let word = token.of(text);
    let digits = |side: &str| !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((q, kv)) = word.split_once('x')
        && digits(kv)
        && ((token.kind == Kind::Number && digits(q)) || (q.is_empty() && after_operand))
    {
        let sides = [(q, Kind::Number), ("x", Kind::Word), (kv, Kind::Number)];
        return sides
            .iter()
            .filter(|(side, _)| !side.is_empty())
            .map(|(side, kind)| ((*side).to_owned(), *kind))
            .collect();
    }
    vec![(word.to_owned(), token.kind)]
}
