//! The IR as text.
//!
//! A graph is its sets, axes and tables, then one line for each value, dead ones too:
//!
//! ```text
//! set text
//! set tokens text
//! axis t
//! table "windows.json" int [60, 24] width 1 { 5*1200 nan 7*239 }
//! %0: int = layer
//! %7: real [text -> all] = softmax %6 over key
//! ```
//!
//! Sets and axes are referred to by name, values by number. Numbers are printed so that they read back to the same
//! bits; entries of a table that repeat are counted. `forms` holds the form of every type; `read` reads it.

use std::fmt;

use super::forms::Form;
use super::{Graph, Real, Set, SetId, Strategy, Table, Value, ValueId, Which};
use crate::plan::{Predicate, Program, Role};

/// Column behind which the numbers of a table go on in the next line.
const WRAP: usize = 110;

/// Text in the making: tokens with the spaces between them.
pub(super) struct Printer<'a> {
    text: String,
    graph: &'a Graph,
    line_start: usize,
    /// No space before the next token.
    tight: bool,
}

impl<'a> Printer<'a> {
    fn new(graph: &'a Graph) -> Self {
        Printer { text: String::new(), graph, line_start: 0, tight: true }
    }

    /// A token: a word, a number or a sign.
    pub(super) fn put(&mut self, token: &str) {
        let closes = matches!(token, "," | ")" | "]" | "}" | ":" | "." | "*");
        if !self.tight && !closes {
            self.text.push(' ');
        }
        self.text.push_str(token);
        self.tight = matches!(token, "(" | "[" | "{" | "." | "*");
    }

    /// A new line, unless this one is empty.
    pub(super) fn line(&mut self) {
        if self.text.len() > self.line_start {
            self.text.push('\n');
            self.line_start = self.text.len();
        }
        self.tight = true;
    }

    /// The name of an axis, or its number where the name does not tell which one it is.
    pub(super) fn axis(&mut self, axis: u8) {
        let graph = self.graph;
        match graph.axes.get(usize::from(axis)) {
            Some(name) if graph.axes.iter().position(|other| other == name) == Some(axis.into()) => name.write(self),
            _ => self.put(&axis.to_string()),
        }
    }

    /// Elements in brackets.
    pub(super) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.put("[");
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.put(",");
            }
            write(self, item);
        }
        self.put("]");
    }

    /// A number of a table.
    fn number(&mut self, number: f64) {
        let text = real(number);
        self.put(text.strip_suffix(".0").unwrap_or(&text));
    }

    pub(super) fn set(&mut self, set: SetId) {
        match self.graph.sets().get(usize::from(set.0)) {
            Some(set) => self.parts(set),
            // NOTE: only an invalid graph comes here; its text says so and cannot be read back.
            None => self.put(&format!("#{}", set.0)),
        }
    }

    fn parts(&mut self, set: &Set) {
        set.grain.write(self);
        if set.parts.is_empty() {
            self.put("all");
        }
        for (index, part) in set.parts.iter().enumerate() {
            if index > 0 {
                self.put("+");
            }
            part.segment.write(self);
            match part.which {
                Which::Whole => {}
                Which::Valid => [".", "valid"].into_iter().for_each(|token| self.put(token)),
                Which::Pad => [".", "pad"].into_iter().for_each(|token| self.put(token)),
            }
        }
    }

    pub(super) fn graph(&mut self, graph: &Graph) {
        for set in graph.sets().iter().skip(1) {
            self.line();
            self.put("set");
            self.parts(set);
        }
        for axis in &graph.axes {
            self.line();
            self.put("axis");
            axis.write(self);
        }
        for table in &graph.tables {
            self.line();
            self.put("table");
            self.table(table);
        }
        for rows in &graph.rows {
            self.line();
            self.put("rows");
            rows.name.write(self);
            rows.tokens.write(self);
        }
        for (id, value) in graph.values() {
            self.line();
            self.value(id, value);
        }
    }

    fn value(&mut self, id: ValueId, value: &Value) {
        id.write(self);
        self.put(":");
        value.ty.write(self);
        self.put("=");
        value.op.write(self);
    }

    fn table(&mut self, table: &Table) {
        table.name.write(self);
        table.kind.write(self);
        table.dims.write(self);
        self.put("width");
        table.width.write(self);
        self.put("{");
        let entries: Vec<&[f64]> = table.values.chunks(usize::from(table.width).max(1)).collect();
        for run in entries.chunk_by(|a, b| a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))) {
            if self.text.len() - self.line_start > WRAP {
                self.line();
                self.put(" ");
            }
            match run[0] {
                [number] => self.number(*number),
                numbers => {
                    self.put("(");
                    numbers.iter().for_each(|number| self.number(*number));
                    self.put(")");
                }
            }
            if run.len() > 1 {
                self.put("*");
                self.put(&run.len().to_string());
            }
        }
        self.put("}");
    }

    fn finish(mut self) -> String {
        self.line();
        self.text
    }
}

/// A real so that it reads back to the same bits and cannot be taken for an integer.
pub(super) fn real(number: f64) -> String {
    if number.is_nan() && number.to_bits() != f64::NAN.to_bits() {
        return format!("nan({})", number.to_bits());
    }
    if number.is_nan() { "nan".to_string() } else { format!("{number:?}") }
}

/// A text in quotes, with everything that is not printable escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Whether a name may stand without quotes.
pub(super) fn is_bare(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !matches!(name, "all" | "tokens" | "last" | "rows" | "distances")
}

/// One value as a line of text, without the end of the line.
#[must_use]
pub fn value(graph: &Graph, id: ValueId) -> String {
    let mut printer = Printer::new(graph);
    printer.value(id, graph.value(id));
    printer.text
}

fn print(f: &mut fmt::Formatter<'_>, graph: &Graph, form: &impl Form) -> fmt::Result {
    let mut printer = Printer::new(graph);
    form.write(&mut printer);
    f.write_str(&printer.finish())
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self, self)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, &self.graph, self)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, &self.graph, self)
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, &self.graph, self)
    }
}

/// Writes a pair of fields with a sign between them.
pub(super) fn pair(p: &mut Printer, a: &impl Form, sign: &str, b: &impl Form) {
    a.write(p);
    if !sign.is_empty() {
        p.put(sign);
    }
    b.write(p);
}

/// Text of the elementary types; see `read` for the other direction.
pub(super) fn id(p: &mut Printer, id: ValueId) {
    p.put(&format!("%{}", id.0));
}

/// Text of a real constant.
pub(super) fn constant(p: &mut Printer, value: Real) {
    p.put(&real(value.0));
}

/// Text of a term of a program.
pub(super) fn term(p: &mut Printer, term: &(Role, ValueId)) {
    pair(p, &term.0, "", &term.1);
}
