//! One logical line: spacing between tokens, and breaks where it is too long.
//!
//! A line that does not fit is broken before its clauses (`where`, `lower`, `as`, ...), then before `and` and
//! `or`, then inside its brackets, one element per line (lists are filled). A `//` comment inside forces the
//! same.

use super::{INDENT, Line, Piece, WIDTH};
use crate::syntax::lexer::Kind;

/// Words that start a clause of a statement.
const CLAUSES: [&str; 7] = ["where", "lower", "as", "while", "every", "on", "except"];
/// Reserved words that can end an operand.
const VALUES: [&str; 7] = ["heads", "layers", "steps", "tokens", "reuse", "true", "false"];
/// Reserved words that cannot.
const KEYWORDS: [&str; 35] = [
    "import", "model", "strategy", "layout", "order", "by", "let", "keep", "skip", "cache", "where", "as", "lower",
    "per", "when", "else", "schedule", "dense", "update", "refresh", "dispatch", "while", "every", "from", "on",
    "except", "use", "quirk", "and", "or", "not", "mod", "div", "xor", "of",
];

/// Writes a logical line and the line feed after it.
pub(super) fn write(out: &mut String, line: &Line) {
    let mut printer = Printer { out: String::new(), column: 0, fresh: true, after_comment: false };
    printer.start(line.depth * INDENT);
    printer.emit(&line.pieces, None, line.depth * INDENT);
    out.push_str(printer.out.trim_end());
    out.push('\n');
}

/// Whether a piece is a comment.
pub(super) fn is_comment(piece: &Piece) -> bool {
    matches!(piece.kind, Kind::LineComment | Kind::BlockComment)
}

/// Whether an operator may follow a piece: it ends an operand.
pub(super) fn ends_operand(piece: &Piece) -> bool {
    match piece.kind {
        Kind::Word if VALUES.contains(&piece.text.as_str()) => !piece.first,
        Kind::Word => !piece.first && !KEYWORDS.contains(&piece.text.as_str()),
        Kind::Number | Kind::Text => true,
        _ => matches!(piece.text.as_str(), ")" | "]"),
    }
}

/// Characters of the pieces on one line, without comments at the end.
pub(super) fn flat_width(pieces: &[Piece]) -> usize {
    let end = pieces.iter().rposition(|piece| !is_comment(piece)).map_or(0, |last| last + 1);
    let mut width = 0;
    let mut signs = Signs::default();
    for (index, piece) in pieces[..end].iter().enumerate() {
        let space = index > 0 && signs.space(&pieces[index - 1], piece);
        width += piece.text.chars().count() + usize::from(space);
        signs.note(index.checked_sub(1).and_then(|before| pieces.get(before)), piece);
    }
    width
}

/// Remembers whether the last sign was one in front of an operand.
#[derive(Default)]
struct Signs {
    unary: bool,
}

impl Signs {
    fn note(&mut self, before: Option<&Piece>, piece: &Piece) {
        if !is_comment(piece) {
            self.unary = piece.text == "-" && !before.is_some_and(ends_operand);
        }
    }

    /// Whether a space goes between two pieces.
    fn space(&self, a: &Piece, b: &Piece) -> bool {
        if is_comment(a) || is_comment(b) {
            return true;
        }
        match (a.text.as_str(), b.text.as_str()) {
            ("(" | "[" | ".", _) | (_, ")" | "]" | "," | ".") | ("{", "}") => false,
            ("-", _) if self.unary && a.kind == Kind::Sign => false,
            (_, "(" | "[") | (_, "..") => !ends_operand(a),
            ("..", next) => next == "{",
            _ => true,
        }
    }
}

struct Printer {
    out: String,
    column: usize,
    /// Nothing but blanks stands on the line.
    fresh: bool,
    /// A `//` comment was written: the line must end.
    after_comment: bool,
}

impl Printer {
    fn start(&mut self, indent: usize) {
        self.out.extend(std::iter::repeat_n(' ', indent));
        self.column = indent;
        self.fresh = true;
        self.after_comment = false;
    }

    fn line(&mut self, indent: usize) {
        if self.fresh {
            // Take back the blanks of the empty line.
            self.out.truncate(self.out.trim_end_matches(' ').len());
        } else {
            self.out.truncate(self.out.trim_end_matches(' ').len());
            self.out.push('\n');
        }
        self.start(indent);
    }

    fn put(&mut self, piece: &Piece, space: bool, indent: usize) {
        if (self.after_comment || piece.own_line) && !self.fresh {
            self.line(indent);
        }
        if space && !self.fresh {
            self.out.push(' ');
            self.column += 1;
        }
        self.out.push_str(&piece.text);
        self.column += piece.text.chars().count();
        self.fresh = false;
        self.after_comment = piece.kind == Kind::LineComment || (piece.own_line && is_comment(piece));
    }

    /// Whether pieces can be written on what is left of the line.
    fn fits(&self, pieces: &[Piece]) -> bool {
        let forced = |(index, piece): (usize, &Piece)| {
            (piece.kind == Kind::LineComment && index + 1 < pieces.len()) || (piece.own_line && pieces.len() > 1)
        };
        !pieces.iter().enumerate().any(forced) && self.column + flat_width(pieces) < WIDTH
    }

    fn flat(&mut self, pieces: &[Piece], before: Option<&Piece>, indent: usize) {
        let mut signs = Signs::default();
        let mut last = before;
        for piece in pieces {
            let space = last.is_some_and(|last| signs.space(last, piece));
            signs.note(last.filter(|last| !is_comment(last)), piece);
            self.put(piece, space, indent);
            last = Some(piece);
        }
    }

    /// Writes pieces; continued lines are indented deeper than `indent`.
    fn emit(&mut self, mut pieces: &[Piece], mut before: Option<&Piece>, indent: usize) {
        while let Some((comment, rest)) = pieces.split_first()
            && is_comment(comment)
            && comment.own_line
        {
            self.put(comment, true, indent);
            if !rest.is_empty() {
                self.line(indent);
            }
            (pieces, before) = (rest, None);
        }
        if self.fits(pieces) {
            return self.flat(pieces, before, indent + INDENT);
        }
        for words in [&CLAUSES[..], &["and", "or"]] {
            let cuts = cuts(pieces, words);
            if !cuts.is_empty() {
                return self.split(pieces, before, &cuts, indent);
            }
        }
        self.brackets(pieces, before, indent);
    }

    fn split(&mut self, pieces: &[Piece], before: Option<&Piece>, cuts: &[usize], indent: usize) {
        let mut from = 0;
        for cut in cuts.iter().copied().chain([pieces.len()]) {
            let part = &pieces[from..cut];
            if from == 0 {
                self.emit(part, before, indent);
            } else {
                self.line(indent + INDENT);
                self.emit(part, None, indent + INDENT);
            }
            from = cut;
        }
    }

    /// Writes pieces in order and breaks the brackets that do not fit.
    fn brackets(&mut self, pieces: &[Piece], before: Option<&Piece>, indent: usize) {
        let mut signs = Signs::default();
        let mut last = before;
        let mut at = 0;
        while let Some(piece) = pieces.get(at) {
            let space = last.is_some_and(|last| signs.space(last, piece));
            signs.note(last, piece);
            self.put(piece, space, indent + INDENT);
            last = Some(piece);
            at += 1;
            if piece.kind == Kind::Sign && matches!(piece.text.as_str(), "(" | "[") {
                let close = closing(pieces, at);
                let next_group = pieces[close..].iter().position(|piece| matches!(piece.text.as_str(), "(" | "["));
                let until = next_group.map_or(pieces.len(), |group| close + group);
                if self.fits(&pieces[at..until]) {
                    self.flat(&pieces[at..close], last, indent + INDENT);
                } else {
                    self.elements(&pieces[at..close], indent, piece.text == "[");
                }
                last = close.checked_sub(1).and_then(|index| pieces.get(index));
                at = close;
            }
        }
    }

    /// The inside of a bracket, on lines of its own.
    fn elements(&mut self, inside: &[Piece], indent: usize, list: bool) {
        let nested = inside.iter().any(|piece| is_comment(piece) || matches!(piece.text.as_str(), "(" | "["));
        let inner = indent + INDENT;
        let lead = inside.iter().take_while(|piece| is_comment(piece) && !piece.own_line).count();
        for comment in &inside[..lead] {
            self.put(comment, true, inner);
        }
        self.line(inner);
        for element in elements(&inside[lead..]) {
            let fill = list && !nested && !self.fresh && self.column + 1 + flat_width(element) < WIDTH;
            if fill {
                self.out.push(' ');
                self.column += 1;
            } else if !self.fresh {
                self.line(inner);
            }
            self.emit(element, None, inner);
        }
        self.line(indent);
    }
}

/// Where clauses or operators start outside of brackets and blocks.
fn cuts(pieces: &[Piece], words: &[&str]) -> Vec<usize> {
    let mut depth = 0_usize;
    let mut cuts = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        match piece.text.as_str() {
            _ if is_comment(piece) || piece.kind == Kind::Text => {}
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            word if index > 0 && depth == 0 && words.contains(&word) && pieces[index - 1].text != "except" => {
                cuts.push(index);
            }
            _ => {}
        }
    }
    cuts
}

/// The index of the bracket that closes the one before `from`.
fn closing(pieces: &[Piece], from: usize) -> usize {
    let mut depth = 0_usize;
    for (index, piece) in pieces.iter().enumerate().skip(from) {
        match piece.text.as_str() {
            _ if piece.kind != Kind::Sign => {}
            "(" | "[" => depth += 1,
            ")" | "]" if depth == 0 => return index,
            ")" | "]" => depth -= 1,
            _ => {}
        }
    }
    pieces.len()
}

/// The elements of a bracket, each with its comma and the comments behind it on its line.
fn elements(inside: &[Piece]) -> Vec<&[Piece]> {
    let mut elements = Vec::new();
    let (mut from, mut at) = (0, 0);
    while at < inside.len() {
        let piece = &inside[at];
        at += 1;
        match piece.text.as_str() {
            "(" | "[" if piece.kind == Kind::Sign => at = (closing(inside, at) + 1).min(inside.len()),
            "," if piece.kind == Kind::Sign => {
                at += inside[at..].iter().take_while(|piece| is_comment(piece) && !piece.own_line).count();
                elements.push(&inside[from..at]);
                from = at;
            }
            _ => {}
        }
    }
    // Comments on lines of their own after the last element stand alone.
    let tail = inside[from..].iter().rev().take_while(|piece| is_comment(piece) && piece.own_line).count();
    let last = inside.len() - tail;
    elements.extend((from < last).then(|| &inside[from..last]));
    elements.extend(inside[last..].chunks(1));
    elements
}
