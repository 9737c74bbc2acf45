//! Tables: numbers by step, layer and head from JSON, CSV or safetensors files.
//!
//! JSON: nested arrays `[step][layer][head]` of numbers, truth values or short arrays, or an object whose keys
//! are the indices joined by `_` (`"0_12_3": [5, 6, 10]`). CSV: a header line, then one line an entry: the
//! indices, then the numbers. Missing entries need an `else`; `null` stands for one, or for all below an index, and counts
//! for the sizes. safetensors: a tensor, the only one or the one that is named behind a colon; what its shape has beyond
//! the indices are the numbers of an entry, and its element type says what they are.

use std::fmt;

use safetensors::{Dtype, SafeTensors};
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

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
        let (width, kind, holes) = (data.width, data.kind, holes(data));
        let name = data.name.clone();
        let defaults: Vec<Option<ValueId>> = match otherwise {
            None => match holes {
                Some(holes) => {
                    let diagnostic = Diagnostic::new(Code::E0305, span, format!("`{name}` lacks {holes}"));
                    return self.hole(diagnostic.help("say what stands for them: `table(...) else VALUE`"));
                }
                None => vec![None; usize::from(width)],
            },
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

    /// The index of a new table; a strategy with too many is reported.
    pub(super) fn add_table(&mut self, table: Table, span: Span) -> Option<u16> {
        let tables = &mut self.strategy.graph.tables;
        let index = u16::try_from(tables.len()).ok().filter(|&index| index < u16::MAX);
        match index {
            Some(_) => tables.push(table),
            None => {
                self.report(Diagnostic::new(Code::E0309, span, format!("more than {} tables", u16::MAX)));
            }
        }
        index
    }

    fn table_id(&mut self, path: &str, dims: usize, span: Span) -> Option<u16> {
        let key = format!("{dims}:{}:{path}", span.file);
        if let Some(known) = self.table_ids.get(&key) {
            return *known;
        }
        let (file, tensor) = match path.split_once(".safetensors:") {
            Some((stem, tensor)) => (format!("{stem}.safetensors"), Some(tensor)),
            None => (path.to_owned(), None),
        };
        let result = self.files.read(span.file, &file).and_then(|bytes| match is(&file, ".safetensors") {
            true => tensor_table(path, &bytes, tensor, dims),
            false => parse(path, &bytes, dims),
        });
        let id = match result {
            Ok(table) => self.add_table(table, span),
            Err(reason) => {
                self.report(Diagnostic::new(Code::E0305, span, format!("table `{path}`: {reason}")));
                None
            }
        };
        self.table_ids.insert(key, id);
        id
    }
}

/// Names the entries that a table lacks.
fn holes(table: &Table) -> Option<String> {
    let entries = || table.values.chunks_exact(usize::from(table.width).max(1));
    let first = entries().position(|entry| entry[0].is_nan())?;
    let mut index = vec![0; table.dims.len()];
    let mut rest = first;
    for (index, &size) in index.iter_mut().zip(&table.dims).rev() {
        *index = rest % (size as usize).max(1);
        rest /= (size as usize).max(1);
    }
    Some(match entries().filter(|entry| entry[0].is_nan()).count() {
        1 => format!("the entry at {index:?}"),
        count => format!("{count} entries, the first at {index:?}"),
    })
}

/// Whether a path has an ending, in whatever case.
fn is(path: &str, ending: &str) -> bool {
    path.to_ascii_lowercase().ends_with(ending)
}

/// A tensor as a table of `dims` dimensions.
fn tensor_table(path: &str, bytes: &[u8], name: Option<&str>, dims: usize) -> Result<Table, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("is not safetensors: {error}"))?;
    let mut names: Vec<String> = file.names().into_iter().map(|name| name.to_owned()).collect();
    names.sort_unstable();
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only.as_str(),
        (None, names) => {
            let first = names.first().map_or("NAME", String::as_str);
            return Err(format!("holds {} tensors: name one, as in `{path}:{first}`", names.len()));
        }
    };
    let tensor = file.tensor(name).map_err(|_| format!("holds no tensor `{name}`, but {}", names.join(", ")))?;
    let shape: Option<Vec<u32>> = tensor.shape().iter().map(|&size| u32::try_from(size).ok()).collect();
    let shape = shape.ok_or("its sizes are too large")?;
    let width = match shape.get(dims..) {
        Some([]) => 1,
        Some([width]) if (1..=MAX_WIDTH as u32).contains(width) => *width as u8,
        _ => return Err(format!("tensor `{name}` has the shape {shape:?}, the table {dims} indices")),
    };
    let data = tensor.data();
    let (kind, values): (Kind, Vec<f64>) = match tensor.dtype() {
        Dtype::BOOL => (Kind::Bool, numbers(data, |[x]| f64::from(u8::from(x != 0)))),
        Dtype::U8 => (Kind::Int, numbers(data, |[x]| f64::from(x))),
        Dtype::I8 => (Kind::Int, numbers(data, |x| f64::from(i8::from_le_bytes(x)))),
        Dtype::I16 => (Kind::Int, numbers(data, |x| f64::from(i16::from_le_bytes(x)))),
        Dtype::U16 => (Kind::Int, numbers(data, |x| f64::from(u16::from_le_bytes(x)))),
        Dtype::I32 => (Kind::Int, numbers(data, |x| f64::from(i32::from_le_bytes(x)))),
        Dtype::U32 => (Kind::Int, numbers(data, |x| f64::from(u32::from_le_bytes(x)))),
        Dtype::I64 => (Kind::Int, numbers(data, |x| i64::from_le_bytes(x) as f64)),
        Dtype::F16 => (Kind::Real, numbers(data, |x| half::f16::from_le_bytes(x).to_f64())),
        Dtype::BF16 => (Kind::Real, numbers(data, |x| half::bf16::from_le_bytes(x).to_f64())),
        Dtype::F32 => (Kind::Real, numbers(data, |x| f64::from(f32::from_le_bytes(x)))),
        Dtype::F64 => (Kind::Real, numbers(data, f64::from_le_bytes)),
        other => return Err(format!("tensor `{name}` holds {other:?}, which a table does not")),
    };
    if values.is_empty() || values.len() > MAX_NUMBERS {
        return Err(format!("tensor `{name}` has {} numbers, a table 1 to {MAX_NUMBERS}", values.len()));
    }
    // NaN stands for a missing entry.
    if values.iter().any(|value| value.is_infinite()) {
        return Err(format!("tensor `{name}` is not finite"));
    }
    Ok(Table { name: path.to_owned(), dims: shape[..dims].to_vec(), width, kind, values: values.into() })
}

fn numbers<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
}

/// Reads a table of `dims` dimensions.
fn parse(path: &str, bytes: &[u8], dims: usize) -> Result<Table, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8 (byte {})", error.valid_up_to()))?;
    let mut entries = Entries::new(dims);
    if is(path, ".csv") {
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
    /// One more than the largest index of each dimension, of entries and of what is `null`.
    sizes: Vec<u32>,
    /// `dims` of each entry.
    keys: Vec<u32>,
    /// `width` of each entry.
    numbers: Vec<f64>,
    kind: Kind,
    /// Whether some entry is a truth value, and whether some is a number.
    seen: [bool; 2],
    /// Whether what the file says was refused here, in words that name the place.
    refused: bool,
}

impl Entries {
    fn new(dims: usize) -> Self {
        Entries {
            dims,
            width: None,
            sizes: vec![0; dims],
            keys: Vec::new(),
            numbers: Vec::new(),
            kind: Kind::Int,
            seen: [false; 2],
            refused: false,
        }
    }

    /// The table holds what is below `keys`, or lacks it.
    fn reach(&mut self, keys: &[u32]) {
        for (size, &key) in self.sizes.iter_mut().zip(keys) {
            *size = (*size).max(key.saturating_add(1));
        }
    }

    fn refuse<E: serde::de::Error>(&mut self, message: impl fmt::Display) -> E {
        self.refused = true;
        E::custom(message)
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
        self.reach(keys);
        self.keys.extend_from_slice(keys);
        self.numbers.extend_from_slice(numbers);
        Ok(())
    }

    fn table(self, path: &str) -> Result<Table, String> {
        let Entries { dims, width, sizes, keys, numbers, kind, seen, .. } = self;
        let width = width.ok_or("is empty")?;
        if seen == [true; 2] {
            return Err("mixes truth values and numbers".to_owned());
        }
        let keys_of = |entry: usize| &keys[entry * dims..(entry + 1) * dims];
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
    let mut source = serde_json::Deserializer::from_str(text);
    let read =
        Nested { entries: &mut *entries, keys: &mut Vec::new() }.deserialize(&mut source).and_then(|()| source.end());
    read.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            let text = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            text.strip_suffix(&place).filter(|_| entries.refused).map_or(text.clone(), str::to_owned)
        }
        _ => format!("is not JSON: {error}"),
    })
}

/// Reads what lies below some keys: arrays down to the entries, or, at the top, an object.
struct Nested<'a> {
    entries: &'a mut Entries,
    keys: &'a mut Vec<u32>,
}

impl Nested<'_> {
    fn is_entry(&self) -> bool {
        self.keys.len() == self.entries.dims
    }

    fn number<E: serde::de::Error>(self, number: f64, is_truth: bool) -> Result<(), E> {
        if !self.is_entry() {
            let (found, wanted) = (self.keys.len(), self.entries.dims);
            return Err(self.entries.refuse(format_args!("has {found} dimensions where {wanted} indices are given")));
        }
        self.entries.seen[usize::from(!is_truth)] = true;
        if is_truth {
            self.entries.kind = Kind::Bool;
        }
        let inserted = self.entries.insert(self.keys, &[number], || format!("{:?}", self.keys));
        inserted.map_err(|message| self.entries.refuse(message))
    }
}

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_entry() { "a number, a truth value or an array of numbers" } else { "an array" })
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.number(f64::from(u8::from(value)), true)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64, false)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64, false)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.number(value, false)
    }

    /// An entry that is missing, or all below some indices.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.entries.reach(self.keys);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if self.is_entry() {
            let mut numbers: Vec<f64> = Vec::with_capacity(4);
            while let Some(number) = items.next_element()? {
                if numbers.len() == MAX_WIDTH {
                    let message = format_args!("the entry at {:?} has more than {MAX_WIDTH} numbers", self.keys);
                    return Err(self.entries.refuse(message));
                }
                numbers.push(number);
            }
            self.entries.seen[1] = true;
            let inserted = self.entries.insert(self.keys, &numbers, || format!("{:?}", self.keys));
            return inserted.map_err(|message| self.entries.refuse(message));
        }
        self.keys.push(0);
        while items.next_element_seed(Nested { entries: self.entries, keys: self.keys })?.is_some() {
            let Some(next) = self.keys.last_mut() else { break };
            *next = next.checked_add(1).ok_or_else(|| A::Error::custom("is too long"))?;
        }
        self.keys.pop();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if !self.keys.is_empty() {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self));
        }
        let dims = self.entries.dims;
        while let Some(key) = map.next_key::<String>()? {
            let keys: Option<Vec<u32>> = key.split('_').map(|part| part.parse().ok()).collect();
            let Some(mut keys) = keys.filter(|keys| keys.len() == dims) else {
                let message = format_args!("the key {key:?} is not {dims} indices joined by `_`");
                return Err(self.entries.refuse(message));
            };
            map.next_value_seed(Nested { entries: self.entries, keys: &mut keys })?;
        }
        Ok(())
    }
}

fn csv(text: &str, entries: &mut Entries) -> Result<(), String> {
    let dims = entries.dims;
    let mut header = text.lines().next().unwrap_or_default().split(',');
    if header.all(|field| field.trim().parse::<f64>().is_ok()) {
        return Err("line 1 holds numbers where a CSV file names its columns".to_owned());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_count_for_the_sizes_and_holes_are_named() {
        let read = |text: &str| parse("t.json", text.as_bytes(), 2).expect("a table");
        for (text, dims, lacks) in [
            ("[[1, 2], [3, 4]]", [2, 2], None),
            ("[[1, null], [3, null]]", [2, 2], Some("2 entries, the first at [0, 1]")),
            ("[[1, 2], null, null]", [3, 2], Some("4 entries, the first at [1, 0]")),
            ("[[1, 2], [3]]", [2, 2], Some("the entry at [1, 1]")),
            ("[null, [1]]", [2, 1], Some("the entry at [0, 0]")),
        ] {
            let table = read(text);
            assert_eq!((table.dims.as_slice(), holes(&table).as_deref()), (&dims[..], lacks), "{text}");
        }
        assert_eq!(parse("t.json", b"[[null]]", 2).err().as_deref(), Some("is empty"));
    }

    #[test]
    fn what_is_refused_names_its_place_once() {
        let refused = |path: &str, text: &str| parse(path, text.as_bytes(), 2).expect_err("refused");
        assert_eq!(refused("t.json", "[1]"), "has 1 dimensions where 2 indices are given");
        assert_eq!(refused("t.json", "{\"1\": 2}"), "the key \"1\" is not 2 indices joined by `_`");
        assert!(refused("t.json", "[[\"x\"]]").ends_with(" at line 1 column 5"));
        let header = "line 1 holds numbers where a CSV file names its columns";
        assert_eq!(refused("t.csv", "0, 0, 5\n0, 1, 6\n"), header);
        let table = parse("t.csv", b"step,head,width\n0,0,5\n0,1,6\n", 2).expect("a table");
        assert_eq!((&table.dims[..], &table.values[..]), (&[1, 2][..], &[5.0, 6.0][..]));
    }
}
