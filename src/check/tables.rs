//! Tables: numbers by step, layer and head from JSON or CSV files.
//!
//! JSON: nested arrays `[step][layer][head]` of numbers, truth values or short arrays, or an object whose keys
//! are the indices joined by `_` (`"0_12_3": [5, 6, 10]`). CSV: a header line, then one line an entry: the
//! indices, then the numbers. Missing entries need an `else`.

use std::collections::BTreeMap;

use super::inputs::MAX_WIDTH;
use super::{Checker, Term};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Kind, Op, Table, ValueId};
use crate::source::Span;
use crate::syntax::ast::{self, ExprKind};

/// Numbers of a table at most.
const MAX_NUMBERS: usize = 1 << 24;

impl Checker<'_> {
    pub(super) fn table(&mut self, positional: &[&ast::Expr], otherwise: Option<&ast::Expr>, span: Span) -> Term {
        let ExprKind::Text(path) = &positional[0].kind else {
            let diagnostic = Diagnostic::new(Code::E0204, positional[0].span, "a table is named by a text");
            return self.hole(diagnostic.help("write `table(\"file.json\", step, layer, head)`"));
        };
        let keys: Option<Vec<ValueId>> = positional[1..].iter().map(|key| self.key(key)).collect();
        let otherwise = otherwise.map(|expr| (self.expression(expr), expr.span));
        let table = self.table_id(path, positional.len() - 1, positional[0].span);
        let (Some(keys), Some(table)) = (keys, table) else { return Term::Hole };
        self.table_items(table, &keys, otherwise, span)
    }

    pub(super) fn table_items(
        &mut self,
        table: u16,
        keys: &[ValueId],
        otherwise: Option<(Term, Span)>,
        span: Span,
    ) -> Term {
        let data = &self.strategy.graph.tables[usize::from(table)];
        let (width, kind, holes) = (data.width, data.kind, data.values.iter().any(|value| value.is_nan()));
        let name = data.name.clone();
        let defaults: Vec<Option<ValueId>> = match otherwise {
            None if holes => {
                let diagnostic = Diagnostic::new(Code::E0305, span, format!("`{name}` lacks some entries"));
                return self.hole(diagnostic.help("say what stands for them: `table(...) else VALUE`"));
            }
            None => vec![None; usize::from(width)],
            Some((Term::Hole, _)) => return Term::Hole,
            Some((Term::Tuple(items), at)) if items.len() == usize::from(width) && width > 1 => {
                let mut ids = Vec::new();
                for item in items {
                    let Ok(id) = self.single(item, at) else { return Term::Hole };
                    ids.push(Some(id));
                }
                ids
            }
            Some((term, at)) if width == 1 => match self.single(term, at) {
                Ok(id) => vec![Some(id)],
                Err(hole) => return hole,
            },
            Some((_, at)) => {
                let message = format!("an entry of `{name}` has {width} numbers, so has what stands for a missing one");
                return self.hole(Diagnostic::new(Code::E0305, at, message));
            }
        };
        let mut items = Vec::new();
        for (item, default) in defaults.into_iter().enumerate() {
            let default = match default {
                Some(id) if self.ty(id).kind == Kind::Int && kind == Kind::Real => match self.as_real(id, span) {
                    Ok(id) => Some(id),
                    Err(hole) => return hole,
                },
                Some(id) if self.ty(id).kind != kind => {
                    let diagnostic = Diagnostic::new(
                        Code::E0305,
                        span,
                        format!("`{name}` and what `else` gives are of different kinds"),
                    );
                    return self.hole(diagnostic);
                }
                other => other,
            };
            let op = Op::Table { table, item: item as u8, keys: keys.to_vec(), otherwise: default };
            items.push(self.push_term(op, span));
        }
        if items.len() == 1 { items.remove(0) } else { Term::Tuple(items) }
    }

    fn table_id(&mut self, path: &str, dims: usize, span: Span) -> Option<u16> {
        let key = format!("{dims}:{}:{path}", span.file);
        if let Some(known) = self.table_ids.get(&key) {
            return *known;
        }
        let result = self.files.read(span.file, path).and_then(|bytes| parse(path, &bytes, dims));
        let id = match result {
            Ok(table) => {
                self.strategy.graph.tables.push(table);
                u16::try_from(self.strategy.graph.tables.len() - 1).ok()
            }
            Err(reason) => {
                self.report(Diagnostic::new(Code::E0305, span, format!("table `{path}`: {reason}")));
                None
            }
        };
        self.table_ids.insert(key, id);
        id
    }
}

/// Reads a table of `dims` dimensions.
fn parse(path: &str, bytes: &[u8], dims: usize) -> Result<Table, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8 (byte {})", error.valid_up_to()))?;
    let entries = if path.to_ascii_lowercase().ends_with(".csv") { csv(text, dims)? } else { json(text, dims)? };
    assemble(path, entries, dims)
}

struct Entries {
    /// In order, so that the same entry is found wrong each time.
    map: BTreeMap<Vec<u32>, Vec<f64>>,
    kind: Kind,
    /// Whether some entry is a truth value, and whether some is a number.
    seen: [bool; 2],
}

impl Entries {
    fn new() -> Self {
        Entries { map: BTreeMap::new(), kind: Kind::Int, seen: [false; 2] }
    }

    fn insert(&mut self, keys: Vec<u32>, numbers: Vec<f64>, place: &str) -> Result<(), String> {
        if numbers.is_empty() || numbers.len() > MAX_WIDTH {
            return Err(format!("the entry at {place} has {} numbers, at most {MAX_WIDTH}", numbers.len()));
        }
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(format!("the entry at {place} is not finite"));
        }
        if numbers.iter().any(|number| number.fract() != 0.0) && self.kind == Kind::Int {
            self.kind = Kind::Real;
        }
        if self.map.len() >= MAX_NUMBERS {
            return Err(format!("has more than {MAX_NUMBERS} entries"));
        }
        match self.map.insert(keys, numbers) {
            None => Ok(()),
            Some(_) => Err(format!("the entry at {place} is given twice")),
        }
    }
}

fn assemble(path: &str, entries: Entries, dims: usize) -> Result<Table, String> {
    let Some(width) = entries.map.values().map(Vec::len).next() else { return Err("is empty".to_owned()) };
    if let Some((keys, numbers)) = entries.map.iter().find(|(_, numbers)| numbers.len() != width) {
        return Err(format!("the entry at {keys:?} has {} numbers, the first has {width}", numbers.len()));
    }
    if entries.seen == [true; 2] {
        return Err("mixes truth values and numbers".to_owned());
    }
    let mut sizes = vec![0_u32; dims];
    for keys in entries.map.keys() {
        for (size, key) in sizes.iter_mut().zip(keys) {
            *size = (*size).max(key.saturating_add(1));
        }
    }
    let total = sizes.iter().try_fold(width, |product, &size| product.checked_mul(size as usize));
    let total = total.filter(|&total| total <= MAX_NUMBERS).ok_or("its indices are too large")?;
    let mut values = vec![f64::NAN; total];
    for (keys, numbers) in &entries.map {
        let index = keys.iter().zip(&sizes).fold(0, |index, (&key, &size)| index * size as usize + key as usize);
        values[index * width..(index + 1) * width].copy_from_slice(numbers);
    }
    Ok(Table { name: path.to_owned(), dims: sizes, width: width as u8, kind: entries.kind, values: values.into() })
}

fn json(text: &str, dims: usize) -> Result<Entries, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let mut entries = Entries::new();
    match &value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let keys: Option<Vec<u32>> = key.split('_').map(|part| part.parse().ok()).collect();
                let keys = keys
                    .filter(|keys| keys.len() == dims)
                    .ok_or_else(|| format!("the key {key:?} is not {dims} indices joined by `_`"))?;
                let numbers = numbers(value, &mut entries).ok_or_else(|| format!("the entry {key:?} is no number"))?;
                entries.insert(keys, numbers, &format!("{key:?}"))?;
            }
        }
        array => nested(array, dims, &mut Vec::new(), &mut entries)?,
    }
    Ok(entries)
}

fn nested(value: &serde_json::Value, dims: usize, keys: &mut Vec<u32>, entries: &mut Entries) -> Result<(), String> {
    if keys.len() == dims {
        if value.is_null() {
            return Ok(());
        }
        let numbers = numbers(value, entries).ok_or_else(|| format!("the entry at {keys:?} is no number"))?;
        return entries.insert(keys.clone(), numbers, &format!("{keys:?}"));
    }
    let items =
        value.as_array().ok_or_else(|| format!("has {} dimensions where {dims} indices are given", keys.len()))?;
    for (index, item) in items.iter().enumerate() {
        keys.push(u32::try_from(index).map_err(|_| "is too long".to_owned())?);
        nested(item, dims, keys, entries)?;
        keys.pop();
    }
    Ok(())
}

fn numbers(value: &serde_json::Value, entries: &mut Entries) -> Option<Vec<f64>> {
    entries.seen[usize::from(!value.is_boolean())] = true;
    match value {
        serde_json::Value::Number(number) => Some(vec![number.as_f64()?]),
        serde_json::Value::Bool(value) => {
            entries.kind = Kind::Bool;
            Some(vec![f64::from(u8::from(*value))])
        }
        serde_json::Value::Array(items) => items.iter().map(serde_json::Value::as_f64).collect(),
        _ => None,
    }
}

fn csv(text: &str, dims: usize) -> Result<Entries, String> {
    let mut entries = Entries::new();
    for (number, line) in text.lines().enumerate().skip(1) {
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let place = format!("line {}", number + 1);
        if fields.len() <= dims {
            return Err(format!("{place} has {} fields, {dims} indices and a number are wanted", fields.len()));
        }
        let keys: Option<Vec<u32>> = fields[..dims].iter().map(|field| field.parse().ok()).collect();
        let numbers: Option<Vec<f64>> = fields[dims..].iter().map(|field| field.parse().ok()).collect();
        let (Some(keys), Some(numbers)) = (keys, numbers) else {
            return Err(format!("{place} does not hold {dims} indices and numbers"));
        };
        entries.insert(keys, numbers, &place)?;
    }
    Ok(entries)
}
