//! Walks a program in order and calls the routine of each value.
//!
//! Block values are flat arrays; a missing axis has length one. Values inside a map have no array of their own.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ir::scalar::Scalar;
use crate::ir::{Extent, Grain, Graph, Op, Over, Reduction, Selector, SetId, Side, ValueId};
use crate::plan::Role;
use crate::reference::SelectorInput;
use crate::reference::input::values_below;
use crate::reference::selector::{Cell, binary, compare, line_amount, unary};
use crate::symbols::BitMatrix;

use super::{Compiled, lanes, pool, rank};
use crate::codegen::Map;

/// The elements of a block value.
#[derive(Clone, Debug)]
enum Cells {
    Real(Vec<f32>),
    /// 0 or 1.
    Bool(Vec<u8>),
}

impl Cells {
    fn len(&self) -> usize {
        match self {
            Cells::Real(values) => values.len(),
            Cells::Bool(values) => values.len(),
        }
    }

    fn get(&self, index: usize) -> Cell {
        match self {
            Cells::Real(values) => Cell::Real(values[index]),
            Cells::Bool(values) => Cell::Bool(values[index] != 0),
        }
    }
}

/// A block value, row-major.
#[derive(Clone, Debug)]
struct Block {
    /// Number of q-blocks, where it varies over them.
    q: Option<usize>,
    /// Number of kv-blocks, where it varies over them.
    kv: Option<usize>,
    cells: Cells,
}

impl Block {
    fn rows(&self) -> usize {
        self.q.unwrap_or(1)
    }

    fn columns(&self) -> usize {
        self.kv.unwrap_or(1)
    }

    fn get(&self, row: usize, column: usize) -> Cell {
        let row = if self.q.is_some() { row } else { 0 };
        let column = if self.kv.is_some() { column } else { 0 };
        self.cells.get(row * self.columns() + column)
    }
}

enum Value {
    Unused,
    /// `[elements, head_dim]`
    Vectors(Vec<f32>),
    Block(Block),
}

struct Run<'a> {
    compiled: &'a Compiled,
    input: &'a SelectorInput<'a>,
    values: Vec<Value>,
}

/// Evaluates every term of a checked program on checked input.
pub(super) fn evaluate(compiled: &Compiled, input: &SelectorInput<'_>) -> Result<Vec<BitMatrix>> {
    let mut values = Vec::new();
    values.resize_with(compiled.program.graph.len(), || Value::Unused);
    let mut run = Run { compiled, input, values };
    for (&id, done) in compiled.order.iter().zip(&compiled.done) {
        if let Some(value) = run.value(id)? {
            run.values[id.0 as usize] = value;
        }
        for done in done {
            run.values[done.0 as usize] = Value::Unused;
        }
    }
    compiled.program.terms.iter().map(|&(role, id)| run.term(role, id)).collect()
}

fn broken(id: ValueId) -> Error {
    Error::State(format!("value {} of the selector program has an operand of another extent", id.0))
}

impl Run<'_> {
    fn graph(&self) -> &Graph {
        &self.compiled.program.graph
    }

    fn block(&self, id: ValueId) -> Result<&Block> {
        match &self.values[id.0 as usize] {
            Value::Block(block) => Ok(block),
            _ => Err(broken(id)),
        }
    }

    fn real(&self, id: ValueId) -> Result<(&Block, &[f32])> {
        match self.block(id)? {
            block @ Block { cells: Cells::Real(values), .. } => Ok((block, values)),
            _ => Err(broken(id)),
        }
    }

    fn vectors(&self, id: ValueId) -> Result<&[f32]> {
        match &self.values[id.0 as usize] {
            Value::Vectors(values) => Ok(values),
            _ => Err(broken(id)),
        }
    }

    fn axes(&self, id: ValueId) -> [Option<SetId>; 2] {
        self.graph().ty(id).extent.sets()
    }

    fn sizes(&self, id: ValueId) -> [Option<usize>; 2] {
        self.input.sizes_of(self.graph(), id)
    }

    /// The value, `None` for scalars and for what some map computes on its way.
    fn value(&self, id: ValueId) -> Result<Option<Value>> {
        if self.graph().ty(id).extent == Extent::Scalar {
            return Ok(None);
        }
        let op = self.graph().op(id);
        if let Extent::Vectors(..) = self.graph().ty(id).extent {
            return self.vectors_of(id, op).map(|values| Some(Value::Vectors(values)));
        }
        if op.is_elementwise() {
            let Some(map) = self.compiled.map_of[id.0 as usize] else { return Ok(None) };
            return self.map(map).map(Some);
        }
        let [q, kv] = self.sizes(id);
        let cells = self.routine(id, op)?;
        if cells.len() != q.unwrap_or(1) * kv.unwrap_or(1) {
            return Err(broken(id));
        }
        Ok(Some(Value::Block(Block { q, kv, cells })))
    }

    fn vectors_of(&self, id: ValueId, op: &Op) -> Result<Vec<f32>> {
        /// A number for all channels of all elements, or one for each.
        enum Channels<'a> {
            One(f32),
            Each(Cow<'a, [f32]>),
        }
        let operand = |id: ValueId| match self.graph().ty(id).extent {
            Extent::Scalar => Ok(Channels::One(self.uniform(id).real() as f32)),
            Extent::Blocks { .. } => {
                let numbers = self.real(id)?.1.iter();
                let repeated = numbers.flat_map(|&number| std::iter::repeat_n(number, self.input.head_dim)).collect();
                Ok(Channels::Each(Cow::Owned(repeated)))
            }
            _ => self.vectors(id).map(|values| Channels::Each(Cow::Borrowed(values))),
        };
        let apply = |op, a: f32, b: f32| binary(op, Cell::Real(a), Cell::Real(b)).real();
        Ok(match op {
            Op::Pool(statistic, source) => pool::pool(self.input, *statistic, *source)?,
            Op::Each(source, set) => {
                pool::each(self.input, *source, &self.input.elements_of(self.graph(), *set, source.side()))?
            }
            Op::Spread(a, set) => {
                let Extent::Vectors(side, from) = self.graph().ty(*a).extent else { return Err(broken(id)) };
                let (vectors, dim) = (self.vectors(*a)?, self.input.head_dim);
                let mut spread = Vec::new();
                for place in self.input.places(self.graph(), side, Some(from), Some(*set)) {
                    spread.extend_from_slice(&vectors[place.ok_or_else(|| broken(id))? * dim..][..dim]);
                }
                spread
            }
            Op::Unary(op, a) => self.vectors(*a)?.iter().map(|&x| unary(*op, Cell::Real(x)).real()).collect(),
            Op::Binary(op, a, b) => match (operand(*a)?, operand(*b)?) {
                (Channels::Each(a), Channels::Each(b)) => a.iter().zip(&*b).map(|(&a, &b)| apply(*op, a, b)).collect(),
                (Channels::Each(a), Channels::One(b)) => a.iter().map(|&a| apply(*op, a, b)).collect(),
                (Channels::One(a), Channels::Each(b)) => b.iter().map(|&b| apply(*op, a, b)).collect(),
                (Channels::One(_), Channels::One(_)) => return Err(broken(id)),
            },
            _ => return Err(broken(id)),
        })
    }

    fn routine(&self, id: ValueId, op: &Op) -> Result<Cells> {
        Ok(match op {
            Op::Start(value) => {
                let Extent::Vectors(side, set) = self.graph().ty(*value).extent else { return Err(broken(id)) };
                let offsets = self.input.offsets(side);
                let of_blocks = self.graph().grain(set) == Grain::Blocks;
                let elements = self.input.elements_of(self.graph(), set, side).into_iter();
                Cells::Real(elements.map(|e| (if of_blocks { offsets[e as usize] } else { e }) as f32).collect())
            }
            Op::BlockTokens(side) => {
                let offsets = self.input.offsets(*side);
                Cells::Real(offsets.windows(2).map(|pair| (pair[1] - pair[0]) as f32).collect())
            }
            Op::SelfSimilarity(side) => Cells::Real(pool::self_similarity(self.input, *side)?),
            Op::Dot(a, b) => Cells::Real(pool::dot(self.vectors(*a)?, self.vectors(*b)?, self.input.head_dim)),
            Op::OverChannels { how, value } => {
                Cells::Real(pool::over_channels(*how, self.vectors(*value)?, self.input.head_dim))
            }
            Op::Measured { name, .. } => Cells::Real(self.input.measured(name)?.to_vec()),
            Op::Transpose(value) => {
                let block = self.block(*value)?;
                match &block.cells {
                    Cells::Real(values) => Cells::Real(lanes::transpose(values, block.rows(), block.columns())),
                    Cells::Bool(values) => Cells::Bool(lanes::transpose(values, block.rows(), block.columns())),
                }
            }
            Op::Slice { value, .. } => self.slice(id, *value)?,
            Op::Embed(value) => self.embed(id, *value)?,
            Op::Gather { how, value, .. } => self.gather(*how, id, *value)?,
            Op::Distances(set) => {
                let distances = self.input.elements_of(self.graph(), *set, Side::Key).into_iter();
                Cells::Real(distances.map(|distance| distance as f32).collect())
            }
            Op::Diagonals(value, _) => {
                let Some(set) = self.axes(*value)[0] else { return Err(broken(id)) };
                let queries = self.input.elements_of(self.graph(), set, Side::Query);
                let (block, values) = self.real(*value)?;
                let mut sums = vec![0.0_f32; block.columns()];
                for (row, &query) in values.chunks_exact(block.columns().max(1)).zip(&queries) {
                    let nearest = (query as usize).min(row.len() - 1);
                    let keys = row[..=nearest].iter().rev();
                    sums.iter_mut().skip(query as usize - nearest).zip(keys).for_each(|(sum, x)| *sum += x);
                }
                Cells::Real(sums)
            }
            Op::OnDiagonals(value) => {
                let Cells::Bool(chosen) = &self.block(*value)?.cells else { return Err(broken(id)) };
                Cells::Bool(on_diagonals(chosen, &self.input.blocks.q, &self.input.blocks.kv))
            }
            Op::Reduce { how, value, over } => {
                let (block, values) = self.real(*value)?;
                Cells::Real(match over {
                    Over::Key => lanes::reduce_rows(*how, values, block.columns(), block.rows()),
                    Over::Query => lanes::reduce_columns(*how, values, block.columns(), block.rows()),
                    Over::Both | Over::Layer | Over::Heads => lanes::reduce_rows(*how, values, values.len(), 1),
                })
            }
            Op::Softmax { value, over } => {
                let (block, values) = self.real(*value)?;
                let softmax = |values: &[f32], width| Ok(lanes::softmax_rows(values, width));
                Cells::Real(along(block, values, *over, softmax)?)
            }
            Op::Shift { value, by, over } => {
                let by = self.input.scalar(self.graph(), *by).int();
                let (block, values) = self.real(*value)?;
                Cells::Real(shift(values, [block.rows(), block.columns()], by, *over))
            }
            Op::AntiDiagonal { stride } => {
                Cells::Real(pool::anti_diagonal(self.input, self.input.stride(self.graph(), *stride))?)
            }
            Op::AtHead { value, head } => {
                let head = self.input.scalar(self.graph(), *head).int().clamp(0, i64::from(u32::MAX)) as u32;
                Cells::Real(self.at_head(*value, head)?.to_vec())
            }
            Op::OverHeads { how, value } => {
                let own = self.shared(id, None, || {
                    let heads = self.heads(*value)?;
                    let size = heads.first().map_or(0, |head| head.len());
                    let joined: Vec<f32> = heads.iter().flat_map(|head| head.iter().copied()).collect();
                    Ok(lanes::reduce_columns(*how, &joined, size, heads.len()))
                })?;
                Cells::Real(own.to_vec())
            }
            Op::Select { rule, value, amount, at_least, over: Over::Heads, .. } => {
                let scalar = |id| self.input.scalar(self.graph(), id);
                let at_least = self.input.at_least(self.graph(), *at_least);
                let heads = self.heads(*value)?;
                let size = heads.first().map_or(0, |head| head.len());
                let joined: Vec<f32> = heads.iter().flat_map(|head| head.iter().copied()).collect();
                let lines = lanes::transpose(&joined, heads.len(), size);
                let selected = select_lines(*rule, Amounts::One(scalar(*amount)), at_least, &lines, None, heads.len())?;
                Cells::Bool(selected.iter().skip(self.input.at.head as usize).step_by(heads.len()).copied().collect())
            }
            Op::Select { rule, value, amount, at_least, over: Over::Layer, .. } => {
                let scalar = |id| self.input.scalar(self.graph(), id);
                let at_least = self.input.at_least(self.graph(), *at_least);
                let joined: Vec<f32> = self.heads(*value)?.iter().flat_map(|head| head.iter().copied()).collect();
                let amounts = Amounts::One(scalar(*amount));
                let selected = select_lines(*rule, amounts, at_least, &joined, None, joined.len())?;
                let size = selected.len().checked_div(self.input.heads() as usize).unwrap_or(0);
                Cells::Bool(selected[self.input.at.head as usize * size..][..size].to_vec())
            }
            Op::Select { rule, value, amount, at_least, cost, over } => {
                let (block, values) = self.real(*value)?;
                let scalar = |id| self.input.scalar(self.graph(), id);
                let at_least = self.input.at_least(self.graph(), *at_least);
                let amounts = match self.graph().ty(*amount).extent {
                    Extent::Scalar => Amounts::One(scalar(*amount)),
                    _ => Amounts::Lines(self.real(*amount)?.1),
                };
                let costs = cost.map(|cost| Ok(along_lines(block, self.real(cost)?.1, *over))).transpose()?;
                let select =
                    |values: &[f32], width| select_lines(*rule, amounts, at_least, values, costs.as_deref(), width);
                Cells::Bool(along(block, values, *over, select)?)
            }
            Op::Mask(slot) => self.mask(id, *slot),
            _ => return Err(broken(id)),
        })
    }

    fn shared(
        &self,
        id: ValueId,
        head: Option<u32>,
        compute: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Arc<Vec<f32>>> {
        match self.input.layer {
            Some(layer) => layer.shared(id, head, compute),
            None => compute().map(Arc::new),
        }
    }

    /// A value of another head.
    fn at_head(&self, id: ValueId, head: u32) -> Result<Arc<Vec<f32>>> {
        let input = self.input.at_head(head)?;
        self.shared(id, Some(input.at.head), || {
            let mut values = Vec::new();
            values.resize_with(self.values.len(), || Value::Unused);
            let mut run = Run { compiled: self.compiled, input: &input, values };
            for below in values_below(self.graph(), [id]) {
                if let Some(value) = run.value(below)? {
                    run.values[below.0 as usize] = value;
                }
            }
            Ok(run.real(id)?.1.to_vec())
        })
    }

    /// A value of all heads.
    fn heads(&self, id: ValueId) -> Result<Vec<Arc<Vec<f32>>>> {
        (0..self.input.heads()).map(|head| self.at_head(id, head)).collect()
    }

    fn mask(&self, id: ValueId, slot: u16) -> Cells {
        let mask = self.input.masks[usize::from(slot)];
        let rows = if self.axes(id).contains(&None) { 1 } else { mask.rows() };
        let mut bytes = vec![0_u8; rows * mask.columns()];
        for (row, line) in bytes.chunks_exact_mut(mask.columns().max(1)).enumerate() {
            for (word, chunk) in mask.row(row).iter().zip(line.chunks_mut(64)) {
                for (bit, byte) in chunk.iter_mut().enumerate() {
                    *byte = (word >> bit & 1) as u8;
                }
            }
        }
        Cells::Bool(bytes)
    }

    /// Where the elements of the axes of `to` are in those of `from`.
    fn positions(&self, from: ValueId, to: ValueId) -> [Vec<Option<usize>>; 2] {
        let [from, to] = [from, to].map(|id| self.axes(id));
        let find = |side, axis: usize| self.input.places(self.graph(), side, from[axis], to[axis]);
        [find(Side::Query, 0), find(Side::Key, 1)]
    }

    /// Tokens of `value` reduced to the blocks of `id`.
    fn gather(&self, how: Reduction, id: ValueId, value: ValueId) -> Result<Cells> {
        let [from, to] = [value, id].map(|id| self.axes(id));
        let rows = self.input.runs(self.graph(), Side::Query, from[0], to[0]);
        let columns = self.input.runs(self.graph(), Side::Key, from[1], to[1]);
        let block = self.block(value)?;
        let width = block.columns();
        let mut line = Vec::new();
        Ok(match &block.cells {
            Cells::Real(values) => {
                let mut reduced = Vec::with_capacity(rows.len() * columns.len());
                for rows in &rows {
                    for columns in &columns {
                        line.clear();
                        rows.clone().for_each(|row| line.extend_from_slice(&values[row * width..][columns.clone()]));
                        reduced.extend(lanes::reduce_rows(how, &line, line.len(), 1));
                    }
                }
                Cells::Real(reduced)
            }
            Cells::Bool(values) => {
                let all = how == Reduction::Min;
                let mut found = vec![u8::from(all); rows.len() * columns.len()];
                for (rows, found) in rows.iter().zip(found.chunks_exact_mut(columns.len().max(1))) {
                    for row in rows.clone() {
                        let row = &values[row * width..][..width];
                        for (columns, found) in columns.iter().zip(found.iter_mut()) {
                            let bytes = row[columns.clone()].iter();
                            *found =
                                if all { bytes.fold(*found, |a, b| a & b) } else { bytes.fold(*found, |a, b| a | b) };
                        }
                    }
                }
                Cells::Bool(found)
            }
        })
    }

    fn slice(&self, id: ValueId, value: ValueId) -> Result<Cells> {
        let block = self.block(value)?;
        let [rows, columns] = self.positions(value, id);
        let missing = || Error::State("a slice of the selector program asks for blocks its operand lacks".to_owned());
        let all = |positions: &[Option<usize>]| positions.iter().copied().collect::<Option<Vec<usize>>>();
        let (rows, columns) = (all(&rows).ok_or_else(missing)?, all(&columns).ok_or_else(missing)?);
        Ok(match &block.cells {
            Cells::Real(values) => Cells::Real(gather(values, block.columns(), &rows, &columns)),
            Cells::Bool(values) => Cells::Bool(gather(values, block.columns(), &rows, &columns)),
        })
    }

    fn embed(&self, id: ValueId, value: ValueId) -> Result<Cells> {
        let block = self.block(value)?;
        let Cells::Bool(values) = &block.cells else { return Err(broken(id)) };
        let [rows, columns] = self.positions(value, id);
        let mut result = Vec::with_capacity(rows.len() * columns.len());
        for row in &rows {
            match row {
                Some(row) => result.extend(
                    columns.iter().map(|column| column.map_or(0, |column| values[row * block.columns() + column])),
                ),
                None => result.resize(result.len() + columns.len(), 0),
            }
        }
        Ok(Cells::Bool(result))
    }

    fn uniform(&self, id: ValueId) -> Scalar {
        self.input.scalar(self.graph(), id)
    }

    fn map(&self, index: usize) -> Result<Value> {
        let map = &self.compiled.maps[index];
        let [q, kv] = self.sizes(map.root);
        let leaves = map.leaves.iter().map(|&id| self.block(id)).collect::<Result<Vec<_>>>()?;
        // Machine code does not check its indices: leaves must have the sizes of the result's axes.
        for leaf in &leaves {
            let fits = |leaf: Option<usize>, root: Option<usize>| leaf.is_none() || leaf == root;
            if !fits(leaf.q, q) || !fits(leaf.kv, kv) || leaf.cells.len() != leaf.rows() * leaf.columns() {
                return Err(broken(map.root));
            }
        }
        let cells = match &self.compiled.code {
            Some(code) => self.call(code, index, [q, kv], &leaves)?,
            None => self.interpret(map, [q, kv], &leaves),
        };
        Ok(Value::Block(Block { q, kv, cells }))
    }

    fn call(
        &self,
        code: &crate::codegen::Code,
        index: usize,
        size: [Option<usize>; 2],
        leaves: &[&Block],
    ) -> Result<Cells> {
        use crate::codegen::Array;
        let map = &self.compiled.maps[index];
        let uniforms: Vec<f32> = map.uniforms.iter().map(|&id| self.uniform(id).real() as f32).collect();
        let arrays: Vec<Array<'_>> = leaves
            .iter()
            .map(|leaf| match &leaf.cells {
                Cells::Real(values) => Array::Real(values),
                Cells::Bool(values) => Array::Bool(values),
            })
            .collect();
        let [rows, columns] = size;
        // A vector is one row for the code, whichever its side.
        let (rows, columns) = match (rows, columns) {
            (Some(rows), Some(columns)) => (rows, columns),
            (one, other) => (1, one.or(other).unwrap_or(1)),
        };
        Ok(if map.is_bool {
            Cells::Bool(code.map_bool(index, &arrays, &uniforms, rows, columns)?)
        } else {
            Cells::Real(code.map_real(index, &arrays, &uniforms, rows, columns)?)
        })
    }

    /// One operation of the map after the other, cell by cell.
    fn interpret(&self, map: &Map, [q, kv]: [Option<usize>; 2], leaves: &[&Block]) -> Cells {
        let (rows, columns) = (q.unwrap_or(1), kv.unwrap_or(1));
        let uniforms: Vec<Cell> = map.uniforms.iter().map(|&id| self.uniform(id).into()).collect();
        let (mut real, mut truth) = (Vec::new(), Vec::new());
        let mut found: Vec<Cell> = Vec::with_capacity(map.body.len());
        for row in 0..rows {
            for column in 0..columns {
                found.clear();
                for step in &map.body {
                    let operand = |n: usize| match step.operands[n] {
                        crate::codegen::Operand::Leaf(leaf) => leaves[leaf].get(row, column),
                        crate::codegen::Operand::Uniform(uniform) => uniforms[uniform],
                        crate::codegen::Operand::Step(step) => found[step],
                    };
                    let cell = match &step.op {
                        Op::Unary(op, _) => unary(*op, operand(0)),
                        Op::Binary(op, ..) => binary(*op, operand(0), operand(1)),
                        Op::Compare(op, ..) => Cell::Bool(compare(*op, operand(0), operand(1))),
                        _ if operand(0) == Cell::Bool(true) => operand(1),
                        _ => operand(2),
                    };
                    found.push(cell);
                }
                match found.last() {
                    Some(Cell::Bool(value)) => truth.push(u8::from(*value)),
                    Some(Cell::Real(value)) => real.push(*value),
                    None => {}
                }
            }
        }
        if map.is_bool { Cells::Bool(truth) } else { Cells::Real(real) }
    }

    /// Packs a term, scalars and vectors repeated along the axes they lack.
    fn term(&self, role: Role, id: ValueId) -> Result<BitMatrix> {
        let (q_blocks, kv_blocks) = (self.input.blocks.q_blocks(), self.input.blocks.kv_blocks());
        let (rows, columns) = if role == Role::Cache { (1, q_blocks) } else { (q_blocks, kv_blocks) };
        if self.graph().ty(id).extent == Extent::Scalar {
            let all = self.uniform(id).truth();
            return Ok(if all { BitMatrix::ones(rows, columns) } else { BitMatrix::zeros(rows, columns) });
        }
        let block = self.block(id)?;
        let Cells::Bool(bytes) = &block.cells else { return Err(broken(id)) };
        let mut bits = BitMatrix::zeros(rows, columns);
        for row in 0..rows {
            match (block.q, block.kv) {
                (None, None) if bytes[0] != 0 => pack(&vec![1; columns], bits.row_mut(row)),
                (None, None) => {}
                _ if role == Role::Cache => pack(bytes, bits.row_mut(row)),
                (Some(_), Some(_)) => pack(&bytes[row * columns..(row + 1) * columns], bits.row_mut(row)),
                (None, _) => pack(bytes, bits.row_mut(row)),
                (Some(_), None) if bytes[row] != 0 => pack(&vec![1; columns], bits.row_mut(row)),
                (Some(_), None) => {}
            }
        }
        Ok(bits)
    }
}

/// The elements line after line along an axis.
fn along_lines(block: &Block, values: &[f32], over: Over) -> Vec<f32> {
    match over {
        Over::Query => lanes::transpose(values, block.rows(), block.columns()),
        Over::Key | Over::Both | Over::Layer | Over::Heads => values.to_vec(),
    }
}

/// Applies a function of row-major lines along an axis; columns are made rows and back.
fn along<T: Copy + Default>(
    block: &Block,
    values: &[f32],
    over: Over,
    lines: impl Fn(&[f32], usize) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let (rows, columns) = (block.rows(), block.columns());
    match over {
        Over::Key => lines(values, columns),
        Over::Both | Over::Layer | Over::Heads => lines(values, values.len()),
        Over::Query => Ok(lanes::transpose(&lines(&along_lines(block, values, over), rows)?, columns, rows)),
    }
}

/// The amounts of the lines of a selection.
#[derive(Clone, Copy)]
enum Amounts<'a> {
    One(Scalar),
    /// One for all, or one for each.
    Lines(&'a [f32]),
}

fn select_lines(
    rule: Selector,
    amounts: Amounts<'_>,
    at_least: usize,
    values: &[f32],
    costs: Option<&[f32]>,
    width: usize,
) -> Result<Vec<u8>> {
    let mut selected = vec![0_u8; values.len()];
    if u32::try_from(width).is_err() {
        return Err(Error::Shape(format!("{width} blocks are too many to rank")));
    }
    let mut buffer = Vec::with_capacity(width);
    if width > 0 {
        for (n, (line, selected)) in values.chunks_exact(width).zip(selected.chunks_exact_mut(width)).enumerate() {
            let amount = match amounts {
                Amounts::One(amount) => amount,
                Amounts::Lines(amounts) => {
                    line_amount(rule, amounts.get(n).or(amounts.first()).copied().unwrap_or_default())
                }
            };
            let costs = costs.map_or(line, |costs| &costs[n * width..][..width]);
            rank::select(rank::Rule { rule, amount, at_least }, line, costs, selected, &mut buffer);
        }
    }
    Ok(selected)
}

/// Whether a block holds a pair whose distance is chosen.
fn on_diagonals(chosen: &[u8], queries: &[u32], keys: &[u32]) -> Vec<u8> {
    // How many distances below each are chosen; a block's distances are a range.
    let mut below = vec![0_u32];
    below.extend(chosen.iter().scan(0, |sum, &byte| {
        *sum += u32::from(byte);
        Some(*sum)
    }));
    let mut found = Vec::with_capacity((queries.len() - 1) * (keys.len() - 1));
    for query in queries.windows(2) {
        for key in keys.windows(2) {
            let (least, most) =
                ((query[0] + 1).saturating_sub(key[1]) as usize, query[1].saturating_sub(key[0]) as usize);
            found.push(u8::from(below[most.min(chosen.len())] > below[least.min(chosen.len())]));
        }
    }
    found
}

/// Elements moved along a side, zeros behind them.
fn shift(values: &[f32], [rows, columns]: [usize; 2], by: i64, over: Side) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    let from =
        |index: usize, size: usize| usize::try_from((index as i64).saturating_sub(by)).ok().filter(|&from| from < size);
    for row in 0..rows {
        for column in 0..columns {
            let source = match over {
                Side::Query => from(row, rows).map(|row| row * columns + column),
                Side::Key => from(column, columns).map(|column| row * columns + column),
            };
            out[row * columns + column] = source.map_or(0.0, |source| values[source]);
        }
    }
    out
}

fn gather<T: Copy>(values: &[T], width: usize, rows: &[usize], columns: &[usize]) -> Vec<T> {
    rows.iter().flat_map(|row| columns.iter().map(move |column| values[row * width + column])).collect()
}

/// Bytes of 0 or 1 to bits, least significant first.
fn pack(bytes: &[u8], words: &mut [u64]) {
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(64)) {
        for (index, eight) in chunk.chunks(8).enumerate() {
            let mut padded = [0_u8; 8];
            padded[..eight.len()].copy_from_slice(eight);
            // Each byte's bit lands in its place of the top byte.
            let packed = u64::from_le_bytes(padded).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            *word |= packed << (8 * index);
        }
    }
}
