//! Text to syntax tree, with every syntax error of the text.
//!
//! The grammar (`grammar/omni.pest`) accepts every text: what is wrong becomes junk in the parse. `convert`
//! and `expr` turn the parse into the tree; for each piece of junk `report` parses that piece alone, to learn
//! where it stops fitting and what could have stood there. Only this folder knows pest's `Rule`.

mod convert;
mod expr;
mod report;

use pest::Parser as _;

use super::lexer::{Kind, Scan, scan};
use super::{BYTE_ORDER_MARK, MAX_BYTES, MAX_DEPTH, ast};
use crate::diagnostics::{Code, Diagnostic};
use crate::source::Span;

#[derive(pest_derive::Parser)]
#[grammar = "../grammar/omni.pest"]
struct Grammar;

type Pair<'i> = pest::iterators::Pair<'i, Rule>;

/// Turns the bytes of a file into text; a byte order mark is dropped.
///
/// # Errors
/// `E0105` for more than 16 MiB and for bytes that are not UTF-8. The finding points to the start of file
/// `file`, whose text need not be known.
pub fn decode(file: u16, name: &str, bytes: &[u8]) -> Result<String, Box<Diagnostic>> {
    let start = Span { file, start: 0, end: 0 };
    if bytes.len() > MAX_BYTES {
        return Err(Box::new(too_large(start, bytes.len())));
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let at = error.valid_up_to();
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            let byte = bytes.get(at).copied().unwrap_or(0);
            let message = format!("`{name}` is not UTF-8: byte 0x{byte:02x} at offset {at}, line {line}");
            Err(Box::new(Diagnostic::new(Code::E0105, start, message).help("save the file as UTF-8")))
        }
    }
}

/// Reads a text. The tree holds what could be read; it means nothing while the list has an error.
///
/// Never fails and never panics; the time is linear in the length of the text.
#[must_use]
pub fn parse(file: u16, text: &str) -> (ast::File, Vec<Diagnostic>) {
    let start = Span { file, start: 0, end: 0 };
    if text.len() > MAX_BYTES {
        return (ast::File::default(), vec![too_large(start, text.len())]);
    }
    let scan = scan(text);
    if let Some(at) = scan.too_deep {
        return (ast::File::default(), vec![too_deep(file, at)]);
    }
    let mut found = unclosed_tokens(file, text, &scan);
    let reader = convert::Reader::new(file, text, &scan);
    let tree = match Grammar::parse(Rule::file, text) {
        Ok(mut pairs) => pairs.next().map(|pair| reader.file(pair)).unwrap_or_default(),
        // The rule `file` accepts every text; what remains is a stack that pest finds too small.
        Err(error) => {
            found.push(Diagnostic::new(Code::E0103, start, error.variant.message().into_owned()));
            ast::File::default()
        }
    };
    found.extend(reader.finish());
    found.sort_by_key(|diagnostic| (diagnostic.span(), diagnostic.code));
    (tree, found)
}

/// Reads a parameter and its value, `name = value`. There is none while the list has an error.
#[must_use]
pub fn parse_param(file: u16, text: &str) -> (Option<(ast::Ident, ast::Expr)>, Vec<Diagnostic>) {
    let start = Span { file, start: 0, end: 0 };
    if text.len() > MAX_BYTES {
        return (None, vec![too_large(start, text.len())]);
    }
    let scan = scan(text);
    if let Some(at) = scan.too_deep {
        return (None, vec![too_deep(file, at)]);
    }
    let mut found = unclosed_tokens(file, text, &scan);
    let reader = convert::Reader::new(file, text, &scan);
    let param = match Grammar::parse(Rule::only_param, text) {
        Ok(mut pairs) => pairs.next().and_then(|pair| reader.only_param(pair)),
        Err(_) => {
            reader.junk(0, text.len(), Rule::only_param, None);
            None
        }
    };
    found.extend(reader.finish());
    (param.filter(|_| found.is_empty()), found)
}

fn too_large(span: Span, bytes: usize) -> Diagnostic {
    let limit = MAX_BYTES >> 20;
    Diagnostic::new(Code::E0105, span, format!("the text has {bytes} bytes, at most {limit} MiB are read"))
        .help("split it into files and `import` them, or put long tables into a JSON file")
}

fn too_deep(file: u16, at: usize) -> Diagnostic {
    let span = span(file, at, at + 1);
    Diagnostic::new(Code::E0103, span, format!("more than {MAX_DEPTH} brackets and blocks inside each other"))
        .label("this one is too many")
        .help("give the inner parts names with `let`")
}

fn unclosed_tokens(file: u16, text: &str, scan: &Scan) -> Vec<Diagnostic> {
    let unclosed = |token: &super::lexer::Token| {
        if token.kind == Kind::BlockComment {
            return Diagnostic::new(Code::E0102, span(file, token.start, token.start + 2), "comment without its `*/`")
                .label("everything after this is comment");
        }
        let end = token.start + token.of(text).trim_end().len();
        let finding =
            Diagnostic::new(Code::E0102, span(file, token.start, token.start + 1), "text without its closing `\"`");
        let help = "a text ends on its line: close it";
        // With brackets in it, the line most likely goes on after the text; where is not known.
        if token.of(text).contains([',', '(', ')', '[', ']', '{', '}', '\\']) {
            return finding.label("opened here").help(help);
        }
        finding.label("opened here").fix(help, span(file, end, end), "\"")
    };
    scan.unclosed.iter().take(super::MAX_ERRORS).map(unclosed).collect()
}

/// A span from offsets; texts are shorter than 4 GiB, so nothing is cut.
fn span(file: u16, start: usize, end: usize) -> Span {
    let narrow = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
    Span { file, start: narrow(start), end: narrow(end) }
}
