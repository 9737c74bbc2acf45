//! The IR from its text, see `print`.
//!
//! Malformed text gives the line and what was expected there. Memory stays within a small multiple of the text's length
//! and [`MAX_TABLE_NUMBERS`]: ids must come in order, operands before users, and counts are compared with what the
//! text announced before anything is stored. What is read is well-formed, not yet valid: see `validate`.

use std::collections::HashMap;
use std::fmt;

use super::forms::Form;
use super::print::{self, Printer};
use super::{Grain, Graph, Kind, Op, Part, Real, Rows, Set, SetId, Side, Strategy, Table, Type, ValueId, Which};
use crate::plan::{Predicate, Program, Role};
use crate::source::Span;

/// Most numbers that the tables of one text may hold together.
pub const MAX_TABLE_NUMBERS: usize = 1 << 22;

/// Most sets of a graph.
pub const MAX_SETS: usize = 4096;

/// Text that is no IR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ReadError {
    /// The line, from 1.
    pub line: u32,
    /// What was found and what was expected.
    pub message: String,
}

/// The strategy a text describes; all spans are empty.
///
/// # Errors
/// The first thing that is not as `print` writes it.
pub fn read_strategy(text: &str) -> Result<Strategy, ReadError> {
    read(text, &mut MAX_TABLE_NUMBERS.clone())
}

/// The selector program a text describes; all spans are empty.
///
/// # Errors
/// The first thing that is not as `print` writes it.
pub fn read_program(text: &str) -> Result<Program, ReadError> {
    read(text, &mut MAX_TABLE_NUMBERS.clone())
}

/// The token predicate a text describes; all spans are empty.
///
/// # Errors
/// The first thing that is not as `print` writes it.
pub fn read_predicate(text: &str) -> Result<Predicate, ReadError> {
    read(text, &mut MAX_TABLE_NUMBERS.clone())
}

/// Reads a whole text whose tables hold at most `budget` numbers, and takes those off the budget.
pub(crate) fn read<T: Readable>(text: &str, budget: &mut usize) -> Result<T, ReadError> {
    let mut reader = Reader::new(text, *budget);
    let value = T::from_reader(&mut reader)?;
    if *reader.peek() != Token::End {
        return Err(reader.unexpected("the end of the text"));
    }
    *budget = reader.budget;
    Ok(value)
}

/// What stands alone in a text: [`Strategy`], [`Program`], [`Predicate`].
pub(crate) trait Readable: Sized {
    /// Reads it.
    fn from_reader(reader: &mut Reader) -> Result<Self, ReadError>;
}

macro_rules! readable {
    ($($ty:ident)*) => {$(
        impl Readable for $ty {
            fn from_reader(reader: &mut Reader) -> Result<Self, ReadError> {
                Form::read(reader)
            }
        }
    )*};
}
readable! { Strategy Program Predicate }

#[derive(Clone, PartialEq, Debug)]
enum Token<'a> {
    /// Letters, digits and `_`, not beginning with a digit.
    Word(&'a str),
    /// Begins with a digit, or with `-` and a digit or `inf`.
    Number(&'a str),
    /// In quotes, escapes resolved.
    Text(String),
    /// `%7`
    Value(&'a str),
    /// `->` or one character.
    Sign(&'a str),
    /// Cannot be read; the reason.
    Bad(&'static str),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shorten = |text: &str| text.chars().take(40).collect::<String>();
        match self {
            Token::Word(text) | Token::Number(text) | Token::Sign(text) => write!(f, "`{}`", shorten(text)),
            Token::Value(text) => write!(f, "`%{}`", shorten(text)),
            Token::Text(text) => write!(f, "{}", print::quoted(&shorten(text))),
            Token::Bad(reason) => f.write_str(reason),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// A text that is being read.
pub(crate) struct Reader<'a> {
    text: &'a str,
    /// Behind the token that is looked at.
    position: usize,
    line: u32,
    token: Option<Token<'a>>,
    values: u32,
    sets: HashMap<Set, SetId>,
    axes: HashMap<String, u8>,
    budget: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, budget: usize) -> Self {
        Reader {
            text,
            position: 0,
            line: 1,
            token: None,
            values: 0,
            sets: HashMap::from([(Set { parts: Vec::new(), grain: Grain::Blocks }, SetId::ALL)]),
            axes: HashMap::new(),
            budget,
        }
    }

    fn peek(&mut self) -> &Token<'a> {
        if self.token.is_none() {
            let token = self.lex();
            self.token = Some(token);
        }
        self.token.as_ref().unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        self.peek();
        self.token.take().unwrap_or(Token::End)
    }

    fn lex(&mut self) -> Token<'a> {
        let text = self.text;
        let start = text.len() - text[self.position..].trim_start_matches([' ', '\t', '\r', '\n']).len();
        self.line += text[self.position..start].bytes().filter(|&byte| byte == b'\n').count() as u32;
        let rest = &text[start..];
        let mut chars = rest.chars();
        let Some(first) = chars.next() else {
            self.position = start;
            return Token::End;
        };
        let word = |text: &str| text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        let negative = first == '-' && (chars.as_str().starts_with("inf") || chars.as_str().starts_with(digit));
        let (token, len) = match first {
            '"' => return self.lex_text(start + 1),
            '%' => {
                let len = word(&rest[1..]) + 1;
                (Token::Value(&rest[1..len]), len)
            }
            _ if first.is_ascii_digit() || negative => {
                let len = number_len(rest);
                (Token::Number(&rest[..len]), len)
            }
            _ if first.is_ascii_alphabetic() || first == '_' => {
                let len = word(rest);
                (Token::Word(&rest[..len]), len)
            }
            _ if rest.starts_with("->") => (Token::Sign("->"), 2),
            _ => (Token::Sign(&rest[..first.len_utf8()]), first.len_utf8()),
        };
        self.position = start + len;
        token
    }

    /// A text in quotes; `start` is behind the opening one.
    fn lex_text(&mut self, start: usize) -> Token<'a> {
        let mut out = String::new();
        let mut chars = self.text[start..].char_indices();
        self.position = self.text.len();
        while let Some((index, c)) = chars.next() {
            match c {
                '"' => {
                    self.position = start + index + 1;
                    return Token::Text(out);
                }
                '\n' => break,
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('r') => out.push('\r'),
                    Some('t') => out.push('\t'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    Some('u') => {
                        let digits: String = chars.by_ref().map(|(_, c)| c).take(9).take_while(|&c| c != '}').collect();
                        let code = digits.strip_prefix('{').and_then(|hex| u32::from_str_radix(hex, 16).ok());
                        match code.and_then(char::from_u32) {
                            Some(c) => out.push(c),
                            None => return Token::Bad("a character code without meaning"),
                        }
                    }
                    _ => return Token::Bad("an unknown escape in a text"),
                },
                c => out.push(c),
            }
        }
        Token::Bad("a text without its closing quote")
    }

    /// The error that something else was expected.
    pub(super) fn unexpected(&mut self, expected: &str) -> ReadError {
        let found = self.peek().to_string();
        self.error(format!("expected {expected}, found {found}"))
    }

    fn error(&self, message: impl Into<String>) -> ReadError {
        ReadError { line: self.line, message: message.into() }
    }

    /// Whether the text goes on with a word or sign.
    pub(super) fn at(&mut self, wanted: &str) -> bool {
        matches!(self.peek(), Token::Word(text) | Token::Sign(text) if *text == wanted)
    }

    /// Takes a word or sign, if it is there.
    pub(super) fn take(&mut self, wanted: &str) -> bool {
        let found = self.at(wanted);
        if found {
            self.token = None;
        }
        found
    }

    /// Takes a word or sign.
    pub(super) fn expect(&mut self, wanted: &str) -> Result<(), ReadError> {
        if self.take(wanted) { Ok(()) } else { Err(self.unexpected(&format!("`{wanted}`"))) }
    }

    /// Elements in brackets.
    pub(super) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        self.expect("[")?;
        let mut items = Vec::new();
        while !self.take("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// An axis by name or number.
    pub(super) fn axis(&mut self) -> Result<u8, ReadError> {
        if matches!(self.peek(), Token::Number(_)) {
            return self.parse("the number of an axis");
        }
        let name = String::read(self)?;
        self.axes.get(&name).copied().ok_or_else(|| self.error(format!("there is no axis `{name}`")))
    }

    fn parse<T: std::str::FromStr>(&mut self, expected: &str) -> Result<T, ReadError> {
        let parsed = match self.peek() {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        let number = parsed.ok_or_else(|| self.unexpected(expected))?;
        self.token = None;
        Ok(number)
    }

    fn real(&mut self) -> Result<f64, ReadError> {
        if self.take("inf") {
            return Ok(f64::INFINITY);
        }
        if !self.take("nan") {
            return self.parse("a number");
        }
        if !self.take("(") {
            return Ok(f64::NAN);
        }
        let number = f64::from_bits(self.parse("the bits of a number")?);
        self.expect(")")?;
        if number.is_nan() { Ok(number) } else { Err(self.error("the bits after `nan` are those of a number")) }
    }

    fn parts(&mut self) -> Result<Set, ReadError> {
        let grain = Grain::read(self)?;
        let mut parts = Vec::new();
        if self.take("all") {
            return Ok(Set { parts, grain });
        }
        loop {
            let segment = String::read(self)?;
            let which = match self.take(".") {
                false => Which::Whole,
                true if self.take("valid") => Which::Valid,
                true if self.take("pad") => Which::Pad,
                true => return Err(self.unexpected("`valid` or `pad`")),
            };
            parts.push(Part { segment, which });
            if !self.take("+") {
                break;
            }
        }
        parts.sort();
        parts.dedup();
        Ok(Set { parts, grain })
    }

    fn set(&mut self) -> Result<SetId, ReadError> {
        let set = self.parts()?;
        self.sets.get(&set).copied().ok_or_else(|| self.error("a set that is not listed above"))
    }

    fn graph(&mut self) -> Result<Graph, ReadError> {
        let mut graph = Graph::default();
        while self.take("set") {
            // Reading the parts looks one token ahead, into the next line.
            let line = self.line;
            let set = self.parts()?;
            let next = SetId(graph.sets().len() as u16);
            if graph.sets().len() >= MAX_SETS {
                return Err(self.error(format!("there are more than {MAX_SETS} sets")));
            }
            if self.sets.contains_key(&set) {
                return Err(ReadError { line, message: "a set is listed twice".to_string() });
            }
            graph.set_of(set.parts.clone(), set.grain);
            self.sets.insert(set, next);
        }
        while self.take("axis") {
            let name = String::read(self)?;
            let Ok(number) = u8::try_from(graph.axes.len()) else {
                return Err(self.error("there are more than 256 axes"));
            };
            self.axes.entry(name.clone()).or_insert(number);
            graph.axes.push(name);
        }
        while self.take("table") {
            if graph.tables.len() >= usize::from(u16::MAX) {
                return Err(self.error("there are too many tables"));
            }
            let table = self.table()?;
            graph.tables.push(table);
        }
        while self.take("rows") {
            if graph.rows.len() >= usize::from(u16::MAX) {
                return Err(self.error("there are too many lists of rows"));
            }
            let (name, tokens) = (String::read(self)?, Form::read(self)?);
            graph.rows.push(Rows { name, tokens });
        }
        while let Token::Value(_) = self.peek() {
            self.value(&mut graph)?;
        }
        Ok(graph)
    }

    fn value(&mut self, graph: &mut Graph) -> Result<(), ReadError> {
        let wanted = self.values;
        if self.number_of_value() != Some(wanted) {
            return Err(self.unexpected(&format!("`%{wanted}`, values are numbered in order")));
        }
        self.token = None;
        self.expect(":")?;
        let ty = Type::read(self)?;
        self.expect("=")?;
        let line = self.line;
        let op = Op::read(self)?;
        let id = graph.push(op, ty, Span::default());
        if id.0 != wanted {
            return Err(ReadError { line, message: format!("the operation is that of `%{}` already", id.0) });
        }
        self.values = wanted.checked_add(1).ok_or_else(|| self.error("there are too many values"))?;
        Ok(())
    }

    fn number_of_value(&mut self) -> Option<u32> {
        match self.peek() {
            Token::Value(number) => number.parse().ok(),
            _ => None,
        }
    }

    fn operand(&mut self) -> Result<ValueId, ReadError> {
        let Some(number) = self.number_of_value() else {
            return Err(self.unexpected("a value such as `%3`"));
        };
        if number >= self.values {
            return Err(self.unexpected("a value that is defined above"));
        }
        self.token = None;
        Ok(ValueId(number))
    }

    fn table(&mut self) -> Result<Table, ReadError> {
        let (name, kind) = (String::read(self)?, Kind::read(self)?);
        let dims: Vec<u32> = Form::read(self)?;
        self.expect("width")?;
        let width = u8::read(self)?;
        let wanted = dims.iter().try_fold(usize::from(width), |size, &dim| size.checked_mul(dim as usize));
        let Some(wanted) = wanted.filter(|&wanted| wanted <= self.budget) else {
            return Err(self.error(format!("tables hold more than {MAX_TABLE_NUMBERS} numbers")));
        };
        self.expect("{")?;
        let mut values: Vec<f64> = Vec::new();
        while !self.take("}") {
            let entry = self.entry(width)?;
            let count: usize = if self.take("*") { self.parse("how often the entry stands")? } else { 1 };
            let room = (wanted - values.len()) / entry.len().max(1);
            if entry.is_empty() || count > room {
                return Err(self.error(format!("table `{name}` holds more than its {wanted} numbers")));
            }
            for _ in 0..count {
                values.extend_from_slice(&entry);
            }
        }
        if values.len() != wanted {
            let found = values.len();
            return Err(self.error(format!("table `{name}` holds {found} numbers, its dimensions ask for {wanted}")));
        }
        self.budget -= wanted;
        Ok(Table { name, dims, width, kind, values: values.into() })
    }

    fn entry(&mut self, width: u8) -> Result<Vec<f64>, ReadError> {
        if width == 1 {
            return Ok(vec![self.real()?]);
        }
        self.expect("(")?;
        let entry = (0..width).map(|_| self.real()).collect::<Result<Vec<f64>, _>>()?;
        self.expect(")")?;
        Ok(entry)
    }
}

fn digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// Bytes of a number at the start of a text; a sign may follow the letter of an exponent.
fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut len = 1;
    while let Some(&byte) = bytes.get(len) {
        let exponent = matches!(byte, b'+' | b'-') && matches!(bytes[len - 1], b'e' | b'E');
        if !(byte.is_ascii_alphanumeric() || byte == b'.' || exponent) {
            break;
        }
        len += 1;
    }
    len
}

/// Forms of the elementary types: how one is written, read, and whether the text goes on with one.
macro_rules! elementary {
    ($($ty:ty: |$value:ident, $p:ident| $write:expr, |$r:ident| $read:expr, $starts:expr;)*) => {$(
        impl Form for $ty {
            fn write(&self, $p: &mut Printer) {
                let $value = self;
                $write;
            }
            fn read($r: &mut Reader) -> Result<Self, ReadError> {
                $read
            }
            fn starts($r: &mut Reader) -> bool {
                // Types that never begin a variant look at nothing.
                let _ = &$r;
                $starts
            }
        }
    )*};
}

elementary! {
    bool: |value, p| p.put(if *value { "true" } else { "false" }),
        |r| if r.take("true") { Ok(true) } else { r.expect("false").map(|()| false) },
        r.at("true") || r.at("false");
    i64: |value, p| p.put(&value.to_string()), |r| r.parse("an integer"),
        matches!(r.peek(), Token::Number(text) if text.parse::<i64>().is_ok());
    u32: |value, p| p.put(&value.to_string()), |r| r.parse("a number below 4294967296"), false;
    u16: |value, p| p.put(&value.to_string()), |r| r.parse("a number below 65536"), false;
    u8: |value, p| p.put(&value.to_string()), |r| r.parse("a number below 256"), false;
    Real: |value, p| print::constant(p, *value), |r| r.real().map(Real),
        r.at("nan") || r.at("inf") || matches!(r.peek(), Token::Number(_));
    ValueId: |value, p| print::id(p, *value), |r| r.operand(), false;
    SetId: |set, p| p.set(*set), |r| r.set(), false;
    Option<SetId>: |set, p| match set { Some(set) => p.set(*set), None => p.put("_") },
        |r| if r.take("_") { Ok(None) } else { r.set().map(Some) }, false;
    String: |text, p| if print::is_bare(text) { p.put(text) } else { p.put(&print::quoted(text)) },
        |r| match r.peek() {
            Token::Word(word) if print::is_bare(word) => { let word = (*word).to_string(); r.token = None; Ok(word) }
            Token::Text(_) => match r.next() { Token::Text(text) => Ok(text), _ => Ok(String::new()) },
            _ => Err(r.unexpected("a name")),
        }, false;
    Vec<ValueId>: |items, p| p.list(items, |p, item| item.write(p)), |r| r.list(ValueId::read), false;
    Vec<u32>: |items, p| p.list(items, |p, item| item.write(p)), |r| r.list(u32::read), false;
    Vec<String>: |items, p| p.list(items, |p, item| item.write(p)), |r| r.list(String::read), false;
    Vec<(String, u32)>: |items, p| p.list(items, |p, item| print::pair(p, &item.0, "=", &item.1)),
        |r| r.list(|r| pair(r, "=")), false;
    (String, String): |item, p| print::pair(p, &item.0, "=", &item.1), |r| pair(r, "="), false;
    (ValueId, ValueId): |item, p| print::pair(p, &item.0, ",", &item.1), |r| pair(r, ","), false;
    (Side, SetId): |item, p| print::pair(p, &item.0, "", &item.1), |r| pair(r, ""), false;
    (Role, ValueId): |item, p| print::term(p, item), |r| pair(r, ""), false;
    Graph: |graph, p| p.graph(graph), |r| r.graph(), false;
}

fn pair<A: Form, B: Form>(r: &mut Reader, sign: &str) -> Result<(A, B), ReadError> {
    let a = A::read(r)?;
    if !sign.is_empty() {
        r.expect(sign)?;
    }
    Ok((a, B::read(r)?))
}
