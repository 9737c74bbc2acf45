//! Tables: numbers by step, layer and head from JSON or CSV files.
//!
//! JSON: nested arrays `[step][layer][head]` of numbers, truth values or short arrays, or an object whose keys
//! are the indices joined by `_` (`"0_12_3": [5, 6, 10]`). CSV: a header line, then one line an entry: the
//! indices, then the numbers. Missing entries need an `else`.

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
    let mut entries = Entries::new(dims);
    if path.to_ascii_lowercase().ends_with(".csv") {
        csv(text, &mut entries)?;
    } else {
        json(text, &mut entries)?;
    }
    entries.table(path)
}

/// What a file says, in its order.
struct Entries {
    dims: usize,
    /// Numbers of one entry, once there is one.
    width: Option<usize>,
    /// `dims` of each entry.
    keys: Vec<u32>,
    /// `width` of each entry.
    numbers: Vec<f64>,
    kind: Kind,
    /// Whether some entry is a truth value, and whether some is a number.
    seen: [bool; 2],
}

impl Entries {
    fn new(dims: usize) -> Self {
        Entries { dims, width: None, keys: Vec::new(), numbers: Vec::new(), kind: Kind::Int, seen: [false; 2] }
    }

    /// `place` names the entry as its file does.
    fn insert(&mut self, keys: &[u32], numbers: &[f64], place: impl Fn() -> String) -> Result<(), String> {
        if numbers.is_empty() || numbers.len() > MAX_WIDTH {
            return Err(format!("the entry at {} has {} numbers, at most {MAX_WIDTH}", place(), numbers.len()));
        }
        let width = *self.width.get_or_insert(numbers.len());
        if numbers.len() != width {
            return Err(format!("the entry at {} has {} numbers, the first has {width}", place(), numbers.len()));
        }
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(format!("the entry at {} is not finite", place()));
        }
        if numbers.iter().any(|number| number.fract() != 0.0) && self.kind == Kind::Int {
            self.kind = Kind::Real;
        }
        if self.numbers.len() >= MAX_NUMBERS {
            return Err(format!("has more than {MAX_NUMBERS} numbers"));
        }
        self.keys.extend_from_slice(keys);
        self.numbers.extend_from_slice(numbers);
        Ok(())
    }

    fn table(self, path: &str) -> Result<Table, String> {
        let Entries { dims, width, keys, numbers, kind, seen } = self;
        let width = width.ok_or("is empty")?;
        if seen == [true; 2] {
            return Err("mixes truth values and numbers".to_owned());
        }
        let keys_of = |entry: usize| &keys[entry * dims..(entry + 1) * dims];
        let mut sizes = vec![0_u32; dims];
        for entry in 0..numbers.len() / width {
            for (size, &key) in sizes.iter_mut().zip(keys_of(entry)) {
                *size = (*size).max(key.saturating_add(1));
            }
        }
        let total = sizes.iter().try_fold(width, |product, &size| product.checked_mul(size as usize));
        let total = total.filter(|&total| total <= MAX_NUMBERS).ok_or("its indices are too large")?;
        let mut values = vec![f64::NAN; total];
        for (entry, numbers) in numbers.chunks_exact(width).enumerate() {
            let keys = keys_of(entry);
            let index = keys.iter().zip(&sizes).fold(0, |index, (&key, &size)| index * size as usize + key as usize);
            let place = &mut values[index * width..(index + 1) * width];
            if !place[0].is_nan() {
                return Err(format!("the entry at {keys:?} is given twice"));
            }
            place.copy_from_slice(numbers);
        }
        Ok(Table { name: path.to_owned(), dims: sizes, width: width as u8, kind, values: values.into() })
    }
}

fn json(text: &str, entries: &mut Entries) -> Result<(), String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let serde_json::Value::Object(map) = &value else { return nested(&value, &mut Vec::new(), entries) };
    let dims = entries.dims;
    for (key, value) in map {
        let keys: Option<Vec<u32>> = key.split('_').map(|part| part.parse().ok()).collect();
        let keys = keys
            .filter(|keys| keys.len() == dims)
            .ok_or_else(|| format!("the key {key:?} is not {dims} indices joined by `_`"))?;
        entry(value, &keys, entries, || format!("{key:?}"))?;
    }
    Ok(())
}

fn nested(value: &serde_json::Value, keys: &mut Vec<u32>, entries: &mut Entries) -> Result<(), String> {
    if keys.len() == entries.dims {
        return if value.is_null() { Ok(()) } else { entry(value, keys, entries, || format!("{keys:?}")) };
    }
    let items = value
        .as_array()
        .ok_or_else(|| format!("has {} dimensions where {} indices are given", keys.len(), entries.dims))?;
    for (index, item) in items.iter().enumerate() {
        keys.push(u32::try_from(index).map_err(|_| "is too long".to_owned())?);
        nested(item, keys, entries)?;
        keys.pop();
    }
    Ok(())
}

fn entry(
    value: &serde_json::Value,
    keys: &[u32],
    entries: &mut Entries,
    place: impl Fn() -> String,
) -> Result<(), String> {
    entries.seen[usize::from(!value.is_boolean())] = true;
    let no_number = || format!("the entry at {} is no number", place());
    match value {
        serde_json::Value::Bool(value) => {
            entries.kind = Kind::Bool;
            entries.insert(keys, &[f64::from(u8::from(*value))], place)
        }
        serde_json::Value::Number(number) => {
            let number = number.as_f64().ok_or_else(no_number)?;
            entries.insert(keys, &[number], place)
        }
        serde_json::Value::Array(items) => {
            let mut numbers = [0.0; MAX_WIDTH];
            for (number, item) in numbers.iter_mut().zip(items) {
                *number = item.as_f64().ok_or_else(no_number)?;
            }
            match numbers.get(..items.len()) {
                Some(numbers) => entries.insert(keys, numbers, place),
                None => Err(format!("the entry at {} has {} numbers, at most {MAX_WIDTH}", place(), items.len())),
            }
        }
        _ => Err(no_number()),
    }
}

fn csv(text: &str, entries: &mut Entries) -> Result<(), String> {
    let dims = entries.dims;
    for (number, line) in text.lines().enumerate().skip(1) {
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let place = || format!("line {}", number + 1);
        if fields.len() <= dims {
            return Err(format!("{} has {} fields, {dims} indices and a number are wanted", place(), fields.len()));
        }
        let keys: Option<Vec<u32>> = fields[..dims].iter().map(|field| field.parse().ok()).collect();
        let numbers: Option<Vec<f64>> = fields[dims..].iter().map(|field| field.parse().ok()).collect();
        let (Some(keys), Some(numbers)) = (keys, numbers) else {
            return Err(format!("{} does not hold {dims} indices and numbers", place()));
        };
        entries.insert(&keys, &numbers, place)?;
    }
    Ok(())
}
