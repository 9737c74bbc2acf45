//! Values and what they refer to: sets of tokens, axes, tables and rows.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Grain, Kind, Op, Part, Place, Rows, Set, SetId, Type, ValueId};
use crate::source::Span;

/// A value: an operation, its type and where it was written.
#[derive(Clone, Debug)]
pub struct Value {
    /// The operation.
    pub op: Op,
    /// Its type.
    pub ty: Type,
    /// Where it was written; no part of its identity.
    pub span: Span,
}

/// Numbers by step, layer and head (or other keys).
#[derive(Clone, Debug)]
pub struct Table {
    /// Where it came from, for messages and provenance.
    pub name: String,
    /// Sizes of its dimensions.
    pub dims: Vec<u32>,
    /// Numbers of one entry.
    pub width: u8,
    /// What they are.
    pub kind: Kind,
    /// All numbers, row-major; NaN where an entry is missing. Copies of the table share them.
    pub values: Arc<[f64]>,
}

// Numbers are compared by their bits: missing entries are NaN, and a table must equal itself.
impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.dims, self.width, self.kind) == (&other.name, &other.dims, other.width, other.kind)
            && (Arc::ptr_eq(&self.values, &other.values)
                || self.values.iter().map(|value| value.to_bits()).eq(other.values.iter().map(|value| value.to_bits())))
    }
}
impl Eq for Table {}

impl Table {
    /// Whether it stands for an input whose numbers nobody has given.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.values.is_empty()
    }
}

/// Bit of [`Graph::depends`]: the value depends on what earlier steps did.
const LOOKS_BACK: u8 = 1 << 7;

/// Values in topological order.
#[derive(Clone, Debug)]
pub struct Graph {
    values: Vec<Value>,
    /// On which places each value depends, a bit for each, and [`LOOKS_BACK`].
    depends: Vec<u8>,
    ids: HashMap<Op, ValueId>,
    sets: Vec<Set>,
    /// Names of token axes.
    pub axes: Vec<String>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Positions of tokens that were given.
    pub rows: Vec<Rows>,
}

impl Default for Graph {
    fn default() -> Self {
        Graph {
            values: Vec::new(),
            depends: Vec::new(),
            ids: HashMap::new(),
            sets: vec![Set { parts: Vec::new(), grain: Grain::Blocks }],
            axes: Vec::new(),
            tables: Vec::new(),
            rows: Vec::new(),
        }
    }
}

impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.sets == other.sets
            && self.axes == other.axes
            && self.tables == other.tables
            && self.rows == other.rows
            && self.values.len() == other.values.len()
            && self.values.iter().zip(&other.values).all(|(a, b)| a.op == b.op && a.ty == b.ty)
    }
}

impl Graph {
    /// The value of an operation: the one that is there, or a new one.
    pub fn push(&mut self, op: Op, ty: Type, span: Span) -> ValueId {
        if let Some(&id) = self.ids.get(&op) {
            return id;
        }
        let id = ValueId(u32::try_from(self.values.len()).unwrap_or(u32::MAX));
        let own = match op {
            Op::Place(place) => 1 << place as u8,
            Op::LastComputed | Op::ReusedSteps => LOOKS_BACK,
            // Over which steps the sum goes, only this step and the past tell.
            Op::Accumulated(_) => LOOKS_BACK | 1 << Place::Step as u8,
            _ => 0,
        };
        let below = op.operands().iter().fold(own, |all, operand| all | self.depends[operand.0 as usize]);
        self.depends.push(below);
        self.ids.insert(op.clone(), id);
        self.values.push(Value { op, ty, span });
        id
    }

    /// A value.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// Its operation.
    #[must_use]
    pub fn op(&self, id: ValueId) -> &Op {
        &self.value(id).op
    }

    /// Its type.
    #[must_use]
    pub fn ty(&self, id: ValueId) -> Type {
        self.value(id).ty
    }

    /// Whether a value, or one below it, depends on a place.
    #[must_use]
    pub fn depends_on(&self, id: ValueId, place: Place) -> bool {
        self.depends[id.0 as usize] & 1 << place as u8 != 0
    }

    /// Whether a value, or one below it, depends on what earlier steps did.
    #[must_use]
    pub fn looks_back(&self, id: ValueId) -> bool {
        self.depends[id.0 as usize] & LOOKS_BACK != 0
    }

    /// All values with their ids, operands before users.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(index, value)| (ValueId(index as u32), value))
    }

    /// Which values the roots need, themselves among them, by number up to the last root; what is below a value where `stop`
    /// says so, is not.
    #[must_use]
    pub fn needed(&self, roots: &[ValueId], stop: impl Fn(ValueId) -> bool) -> Vec<bool> {
        let mut needed = vec![false; roots.iter().map(|root| root.0 as usize + 1).max().unwrap_or(0)];
        roots.iter().for_each(|root| needed[root.0 as usize] = true);
        // Operands stand before their users.
        for index in (0..needed.len()).rev() {
            let id = ValueId(index as u32);
            if needed[index] && !stop(id) {
                self.op(id).operands().iter().for_each(|operand| needed[operand.0 as usize] = true);
            }
        }
        needed
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The id of the blocks of some parts; no parts stand for the whole sequence.
    pub fn set(&mut self, parts: Vec<Part>) -> SetId {
        self.set_of(parts, Grain::Blocks)
    }

    /// The id of some parts at a grain; no parts stand for the whole sequence.
    pub fn set_of(&mut self, mut parts: Vec<Part>, grain: Grain) -> SetId {
        parts.sort();
        parts.dedup();
        let set = Set { parts, grain };
        let index = self.sets.iter().position(|known| *known == set).unwrap_or_else(|| {
            self.sets.push(set);
            self.sets.len() - 1
        });
        SetId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    /// The parts of a set, empty for the whole sequence.
    #[must_use]
    pub fn parts(&self, set: SetId) -> &[Part] {
        &self.sets[usize::from(set.0)].parts
    }

    /// What the elements of a set are.
    #[must_use]
    pub fn grain(&self, set: SetId) -> Grain {
        self.sets[usize::from(set.0)].grain
    }

    /// Whether a set is all tokens of the sequence.
    #[must_use]
    pub fn is_all_tokens(&self, set: SetId) -> bool {
        self.grain(set) == Grain::Tokens && self.parts(set).is_empty()
    }

    /// All sets.
    #[must_use]
    pub fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// A graph without values over the same sets, axes and tables.
    #[must_use]
    pub fn emptied(&self) -> Graph {
        Graph {
            values: Vec::new(),
            depends: Vec::new(),
            ids: HashMap::new(),
            sets: self.sets.clone(),
            axes: self.axes.clone(),
            tables: self.tables.clone(),
            rows: self.rows.clone(),
        }
    }
}
