//! Selector programs, value by value and cell by cell.
//!
//! A block value is kept with the list of q-blocks and kv-blocks its cells stand for; a missing axis has one cell that
//! counts for all. Integers that meet block values are rounded to single precision like reals.

use crate::error::{Error, Result};
use crate::ir::scalar::Scalar;
use crate::ir::{
    Binary, Comparison, Extent, Grain, Kind, Op, Over, Reduction, Selector, SetId, Side, Source, Statistic, Unary,
    ValueId,
};
use crate::plan::{Program, Role};
use crate::symbols::BitMatrix;

use super::input::{SelectorInput, check_program, live_values, values_below};
use super::math;
use super::select::select;

/// Evaluates every term of a program: `[q_blocks][kv_blocks]` bits each, `[1][q_blocks]` for [`Role::Cache`].
///
/// # Errors
/// [`Error::Shape`] for tensors or masks that do not fit the blocks, [`Error::Value`] for q or k that are not
/// finite, [`Error::State`] for a program the compiler would not make.
pub fn interpret(program: &Program, input: &SelectorInput<'_>) -> Result<Vec<BitMatrix>> {
    check_program(program)?;
    input.check(program)?;
    let mut run = Run { program, input, values: vec![Value::Unused; program.graph.len()] };
    for id in live_values(program) {
        run.values[id.0 as usize] = run.value(id)?;
    }
    Ok(program.terms.iter().map(|&(role, id)| run.term(role, id)).collect())
}

/// A cell of a block value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// A number.
    Real(f32),
    /// A truth value.
    Bool(bool),
}

impl Cell {
    pub fn real(self) -> f32 {
        match self {
            Cell::Real(value) => value,
            Cell::Bool(value) => f32::from(u8::from(value)),
        }
    }

    fn truth(self) -> bool {
        self == Cell::Bool(true)
    }
}

impl From<Scalar> for Cell {
    /// A scalar where it meets a block value.
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Bool(value) => Cell::Bool(value),
            number => Cell::Real(number.real() as f32),
        }
    }
}

/// Cells over q-blocks and kv-blocks, row-major.
#[derive(Clone)]
struct Grid {
    q: Option<Vec<u32>>,
    kv: Option<Vec<u32>>,
    cells: Vec<Cell>,
}

impl Grid {
    fn rows(&self) -> usize {
        self.q.as_ref().map_or(1, Vec::len)
    }

    fn columns(&self) -> usize {
        self.kv.as_ref().map_or(1, Vec::len)
    }

    /// The cell of a row and a column, of the only one along a missing axis.
    fn get(&self, row: usize, column: usize) -> Cell {
        let row = if self.q.is_some() { row } else { 0 };
        let column = if self.kv.is_some() { column } else { 0 };
        self.cells[row * self.columns() + column]
    }

    /// The same axes with other cells.
    fn with(&self, cell: impl Fn(usize, usize) -> Cell) -> Grid {
        Grid::new(self.q.clone(), self.kv.clone(), cell)
    }

    fn new(q: Option<Vec<u32>>, kv: Option<Vec<u32>>, cell: impl Fn(usize, usize) -> Cell) -> Grid {
        let mut grid = Grid { q, kv, cells: Vec::new() };
        for row in 0..grid.rows() {
            for column in 0..grid.columns() {
                grid.cells.push(cell(row, column));
            }
        }
        grid
    }

    /// The lines along an axis: rows for [`Over::Key`], columns for [`Over::Query`], everything for [`Over::Both`].
    fn lines(&self, over: Over) -> Vec<Vec<f32>> {
        let at = |row, column| self.get(row, column).real();
        match over {
            Over::Key => (0..self.rows()).map(|r| (0..self.columns()).map(|c| at(r, c)).collect()).collect(),
            Over::Query => (0..self.columns()).map(|c| (0..self.rows()).map(|r| at(r, c)).collect()).collect(),
            Over::Both | Over::Layer | Over::Heads => vec![self.cells.iter().map(|cell| cell.real()).collect()],
        }
    }

    /// The reverse of [`Grid::lines`].
    fn with_lines<T: Copy>(&self, over: Over, lines: &[Vec<T>], cell: impl Fn(T) -> Cell) -> Grid {
        self.with(|row, column| {
            cell(match over {
                Over::Key => lines[row][column],
                Over::Query => lines[column][row],
                Over::Both | Over::Layer | Over::Heads => lines[0][row * self.columns() + column],
            })
        })
    }
}

#[derive(Clone)]
enum Value {
    Unused,
    /// One vector for each element.
    Vectors(Vec<Vec<f32>>),
    /// Scalars too, without axes.
    Grid(Grid),
}

struct Run<'a> {
    program: &'a Program,
    input: &'a SelectorInput<'a>,
    values: Vec<Value>,
}

impl Run<'_> {
    fn grid(&self, id: ValueId) -> Result<&Grid> {
        match &self.values[id.0 as usize] {
            Value::Grid(grid) => Ok(grid),
            _ => Err(Error::State(format!("value {} of the selector program is no block value", id.0))),
        }
    }

    fn vectors(&self, id: ValueId) -> Result<&[Vec<f32>]> {
        match &self.values[id.0 as usize] {
            Value::Vectors(vectors) => Ok(vectors),
            _ => Err(Error::State(format!("value {} of the selector program has no vectors", id.0))),
        }
    }

    /// The blocks of the axes of a value.
    fn axes(&self, id: ValueId) -> (Option<Vec<u32>>, Option<Vec<u32>>) {
        let list = |set: Option<SetId>, side| set.map(|set| self.input.elements_of(&self.program.graph, set, side));
        let [q, kv] = self.program.graph.ty(id).extent.sets();
        (list(q, Side::Query), list(kv, Side::Key))
    }

    fn value(&self, id: ValueId) -> Result<Value> {
        let graph = &self.program.graph;
        let (q, kv) = self.axes(id);
        if graph.ty(id).extent == Extent::Scalar {
            let cell = self.input.scalar(graph, id).into();
            return Ok(Value::Grid(Grid { q, kv, cells: vec![cell] }));
        }
        if let Extent::Vectors(side, set) = graph.ty(id).extent {
            return self.vectors_of(id, side, set).map(Value::Vectors);
        }
        let grid = match graph.op(id) {
            Op::Unary(op, a) => {
                let a = self.grid(*a)?;
                Grid::new(q, kv, |row, column| unary(*op, a.get(row, column)))
            }
            Op::Binary(op, a, b) => {
                let (a, b) = (self.grid(*a)?, self.grid(*b)?);
                Grid::new(q, kv, |row, column| binary(*op, a.get(row, column), b.get(row, column)))
            }
            Op::Compare(op, a, b) => {
                let (a, b) = (self.grid(*a)?, self.grid(*b)?);
                Grid::new(q, kv, |row, column| Cell::Bool(compare(*op, a.get(row, column), b.get(row, column))))
            }
            Op::Choose(condition, a, b) => {
                let (condition, a, b) = (self.grid(*condition)?, self.grid(*a)?, self.grid(*b)?);
                Grid::new(q, kv, |row, column| {
                    let chosen = if condition.get(row, column).truth() { a } else { b };
                    chosen.get(row, column)
                })
            }
            Op::Start(a) => {
                let Extent::Vectors(side, set) = graph.ty(*a).extent else {
                    return Err(self.meaningless(graph.op(id)));
                };
                let first = |element: u32| match graph.grain(set) {
                    Grain::Blocks => self.input.offsets(side)[element as usize],
                    Grain::Tokens | Grain::Last(_) | Grain::Rows(_) | Grain::Distances => element,
                };
                let elements = self.input.elements_of(graph, set, side);
                Grid { q, kv, cells: elements.into_iter().map(|e| Cell::Real(first(e) as f32)).collect() }
            }
            Op::SelfSimilarity(side) => {
                let cells = self.self_similarity(*side)?.into_iter().map(Cell::Real).collect();
                Grid { q, kv, cells }
            }
            Op::BlockTokens(side) => {
                let sizes = self.input.offsets(*side).windows(2).map(|pair| (pair[1] - pair[0]) as f32);
                Grid { q, kv, cells: sizes.map(Cell::Real).collect() }
            }
            Op::Dot(a, b) => {
                let (a, b) = (self.vectors(*a)?, self.vectors(*b)?);
                Grid::new(q, kv, |row, column| {
                    Cell::Real(math::running_sum(a[row].iter().zip(&b[column]).map(|(x, y)| x * y)))
                })
            }
            Op::OverChannels { how, value } => {
                let of = |vector: &Vec<f32>| match how {
                    Reduction::Sum => math::running_sum(vector.iter().copied()),
                    Reduction::Mean => math::running_sum(vector.iter().copied()) / vector.len() as f32,
                    Reduction::Max => math::largest(vector.iter().copied()),
                    Reduction::Min => math::smallest(vector.iter().copied()),
                };
                Grid { q, kv, cells: self.vectors(*value)?.iter().map(|vector| Cell::Real(of(vector))).collect() }
            }
            Op::Measured { name, .. } => {
                Grid { q, kv, cells: self.input.measured(name)?.iter().map(|&x| Cell::Real(x)).collect() }
            }
            Op::Transpose(a) => {
                let a = self.grid(*a)?;
                Grid::new(q, kv, |row, column| a.get(column, row))
            }
            Op::Slice { value, .. } => self.slice(*value, id, None)?,
            Op::Embed(value) => self.slice(*value, id, Some(Cell::Bool(false)))?,
            Op::Gather { how, value, .. } => self.gather(*how, *value, id)?,
            Op::Distances(set) => {
                let distances = self.input.elements_of(graph, *set, Side::Key).into_iter();
                Grid { q, kv, cells: distances.map(|distance| Cell::Real(distance as f32)).collect() }
            }
            Op::Diagonals(value, _) => {
                let grid = self.grid(*value)?;
                let rows = grid.q.clone().unwrap_or_default();
                Grid::new(q, kv, |_, distance| {
                    let cells = rows.iter().enumerate().filter_map(|(row, &query)| {
                        let key = (query as usize).checked_sub(distance).filter(|&key| key < grid.columns());
                        key.map(|key| grid.get(row, key).real())
                    });
                    Cell::Real(math::running_sum(cells))
                })
            }
            Op::OnDiagonals(value) => {
                let grid = self.grid(*value)?;
                let [queries, keys] = [Side::Query, Side::Key].map(|side| self.input.offsets(side));
                Grid::new(q, kv, |row, column| {
                    Cell::Bool((queries[row]..queries[row + 1]).any(|query| {
                        (keys[column]..keys[column + 1])
                            .filter_map(|key| query.checked_sub(key).filter(|&d| (d as usize) < grid.columns()))
                            .any(|distance| grid.get(0, distance as usize).truth())
                    }))
                })
            }
            Op::Reduce { how, value, over } => {
                let lines = self.grid(*value)?.lines(*over);
                let cells = lines.iter().map(|line| Cell::Real(reduce(*how, line))).collect();
                Grid { q, kv, cells }
            }
            Op::Softmax { value, over } => {
                let grid = self.grid(*value)?;
                let lines: Vec<Vec<f32>> = grid.lines(*over).iter().map(|line| softmax(line)).collect();
                grid.with_lines(*over, &lines, Cell::Real)
            }
            Op::Shift { value, by, over } => {
                let by = self.input.scalar(graph, *by).int();
                let grid = self.grid(*value)?;
                let from = |index: usize, size: usize| {
                    usize::try_from((index as i64).saturating_sub(by)).ok().filter(|&from| from < size)
                };
                Grid::new(q, kv, |row, column| {
                    let place = match over {
                        Side::Query => from(row, grid.rows()).map(|row| (row, column)),
                        Side::Key => from(column, grid.columns()).map(|column| (row, column)),
                    };
                    place.map_or(Cell::Real(0.0), |(row, column)| grid.get(row, column))
                })
            }
            Op::AntiDiagonal { stride } => self.anti_diagonal(self.input.stride(graph, *stride), q, kv)?,
            Op::AtHead { value, head } => {
                let head = self.input.scalar(graph, *head).int().clamp(0, i64::from(u32::MAX)) as u32;
                self.at_head(*value, head)?
            }
            Op::OverHeads { how, value } => {
                let heads =
                    (0..self.input.heads()).map(|head| self.at_head(*value, head)).collect::<Result<Vec<_>>>()?;
                Grid::new(q, kv, |row, column| {
                    let line: Vec<f32> = heads.iter().map(|grid| grid.get(row, column).real()).collect();
                    Cell::Real(reduce(*how, &line))
                })
            }
            Op::Select { rule, value, amount, at_least, over: Over::Heads, .. } => {
                let heads =
                    (0..self.input.heads()).map(|head| self.at_head(*value, head)).collect::<Result<Vec<_>>>()?;
                let amount = self.input.scalar(graph, *amount);
                let at_least = self.input.at_least(graph, *at_least);
                Grid::new(q, kv, |row, column| {
                    let line: Vec<f32> = heads.iter().map(|grid| grid.get(row, column).real()).collect();
                    Cell::Bool(select(*rule, &line, &line, amount, at_least)[self.input.at.head as usize])
                })
            }
            Op::Select { rule, value, amount, at_least, over: Over::Layer, .. } => {
                let amount = self.input.scalar(graph, *amount);
                let at_least = self.input.at_least(graph, *at_least);
                let mut line = Vec::new();
                for head in 0..self.input.heads() {
                    line.extend(self.at_head(*value, head)?.cells.iter().map(|cell| cell.real()));
                }
                let selected = select(*rule, &line, &line, amount, at_least);
                let size = selected.len() / self.input.heads() as usize;
                let own = &selected[self.input.at.head as usize * size..][..size];
                Grid { q, kv, cells: own.iter().map(|&cell| Cell::Bool(cell)).collect() }
            }
            Op::Select { rule, value, amount, at_least, cost, over } => {
                let grid = self.grid(*value)?;
                let amount = |line| match &self.values[amount.0 as usize] {
                    _ if graph.ty(*amount).extent == Extent::Scalar => self.input.scalar(graph, *amount),
                    Value::Grid(amounts) => line_amount(*rule, amounts.get(line, line).real()),
                    _ => Scalar::Int(0),
                };
                let at_least = self.input.at_least(graph, *at_least);
                let costs = cost.map_or(Ok(grid), |cost| self.grid(cost))?.lines(*over);
                let lines: Vec<Vec<bool>> = grid
                    .lines(*over)
                    .iter()
                    .zip(&costs)
                    .enumerate()
                    .map(|(n, (line, costs))| select(*rule, line, costs, amount(n), at_least))
                    .collect();
                grid.with_lines(*over, &lines, Cell::Bool)
            }
            Op::Mask(slot) => {
                let mask = self.input.masks[usize::from(*slot)];
                let matrix = q.is_some() && kv.is_some();
                Grid::new(q, kv, |row, column| {
                    Cell::Bool(if matrix { mask.get(row, column) } else { mask.get(0, row + column) })
                })
            }
            op => return Err(self.meaningless(op)),
        };
        Ok(Value::Grid(grid))
    }

    fn meaningless(&self, op: &Op) -> Error {
        Error::State(format!("{op:?} has no meaning in a selector program"))
    }

    /// The vectors of a value, one for each element of the set.
    fn vectors_of(&self, id: ValueId, side: Side, set: SetId) -> Result<Vec<Vec<f32>>> {
        let graph = &self.program.graph;
        let count = self.input.count_of(graph, set, side);
        let operand = |id: ValueId| match graph.ty(id).extent {
            Extent::Scalar => Ok(vec![vec![self.input.scalar(graph, id).real() as f32; self.input.head_dim]; count]),
            Extent::Blocks { .. } => {
                let numbers = self.grid(id)?.cells.iter();
                Ok(numbers.map(|number| vec![number.real(); self.input.head_dim]).collect())
            }
            _ => self.vectors(id).map(<[Vec<f32>]>::to_vec),
        };
        let each = |a: &[f32], b: &[f32], f: &dyn Fn(Cell, Cell) -> Cell| -> Vec<f32> {
            a.iter().zip(b).map(|(&a, &b)| f(Cell::Real(a), Cell::Real(b)).real()).collect()
        };
        match graph.op(id) {
            Op::Pool(statistic, source) => self.pool(*statistic, *source),
            Op::Spread(a, set) => {
                let Extent::Vectors(side, from) = graph.ty(*a).extent else {
                    return Err(self.meaningless(graph.op(id)));
                };
                let vectors = self.vectors(*a)?;
                let places = self.input.places(graph, side, Some(from), Some(*set)).into_iter();
                let spread: Option<Vec<Vec<f32>>> = places.map(|place| Some(vectors[place?].clone())).collect();
                spread.ok_or_else(|| self.meaningless(graph.op(id)))
            }
            Op::Each(source, set) => {
                let (values, dim) = (self.input.source(*source).0, self.input.head_dim);
                let tokens = self.input.elements_of(graph, *set, source.side());
                let vectors: Vec<Vec<f32>> =
                    tokens.iter().map(|&token| values[token as usize * dim..][..dim].to_vec()).collect();
                match vectors.iter().position(|vector| vector.iter().any(|value| !value.is_finite())) {
                    Some(token) => {
                        let block = self.input.block_of(source.side(), tokens[token] as usize);
                        Err(self.input.not_finite(*source, block))
                    }
                    None => Ok(vectors),
                }
            }
            Op::Unary(op, a) => Ok(operand(*a)?.iter().map(|v| each(v, v, &|x, _| unary(*op, x))).collect()),
            Op::Binary(op, a, b) => {
                let (a, b) = (operand(*a)?, operand(*b)?);
                Ok(a.iter().zip(&b).map(|(a, b)| each(a, b, &|x, y| binary(*op, x, y))).collect())
            }
            op => Err(self.meaningless(op)),
        }
    }

    /// Tokens reduced to the blocks of `id`.
    fn gather(&self, how: Reduction, value: ValueId, id: ValueId) -> Result<Grid> {
        let graph = &self.program.graph;
        let grid = self.grid(value)?;
        let (q, kv) = self.axes(id);
        let [from, to] = [value, id].map(|id| graph.ty(id).extent.sets());
        let rows = self.input.runs(graph, Side::Query, from[0], to[0]);
        let columns = self.input.runs(graph, Side::Key, from[1], to[1]);
        let of_bool = graph.ty(id).kind == Kind::Bool;
        Ok(Grid::new(q, kv, |row, column| {
            let line: Vec<f32> =
                rows[row].clone().flat_map(|r| columns[column].clone().map(move |c| grid.get(r, c).real())).collect();
            let reduced = reduce(how, &line);
            if of_bool { Cell::Bool(reduced == 1.0) } else { Cell::Real(reduced) }
        }))
    }

    fn anti_diagonal(&self, stride: usize, q: Option<Vec<u32>>, kv: Option<Vec<u32>>) -> Result<Grid> {
        let dim = self.input.head_dim;
        let token =
            |values: &[f32], token: usize, channel: usize| values.get(token * dim + channel).copied().unwrap_or(0.0);
        let groups = |values: &[f32]| (values.len() / dim).div_ceil(stride);
        let (q_values, k_values) = (&self.input.tensors.q, &self.input.tensors.k);
        let shares: Vec<Vec<f32>> = (0..groups(q_values))
            .map(|g| {
                let score = |h: usize| {
                    let terms = (0..stride).flat_map(|phase| {
                        let (query, key) = (g * stride + stride - 1 - phase, h * stride + phase);
                        (0..dim).map(move |channel| token(q_values, query, channel) * token(k_values, key, channel))
                    });
                    math::running_sum(terms) / (dim as f32).sqrt() / stride as f32
                };
                softmax(&(0..groups(k_values)).map(score).collect::<Vec<f32>>())
            })
            .collect();
        for (side, bad) in [(Side::Query, &shares)] {
            if let Some(group) = bad.iter().position(|line| line.iter().any(|share| !share.is_finite())) {
                return Err(self.input.not_finite(side.source(), self.input.block_of(side, group * stride)));
            }
        }
        let within = |side: Side, block: usize, group: usize| self.input.block_of(side, group * stride) == block;
        Ok(Grid::new(q, kv, |row, column| {
            let rows = shares.iter().enumerate().filter(|(g, _)| within(Side::Query, row, *g)).map(|(_, line)| {
                let keys = line.iter().enumerate().filter(|(h, _)| within(Side::Key, column, *h));
                math::lane_sum(keys.map(|(_, share)| *share))
            });
            Cell::Real(math::running_sum(rows))
        }))
    }

    /// A value of another head.
    fn at_head(&self, id: ValueId, head: u32) -> Result<Grid> {
        let input = self.input.at_head(head)?;
        let mut run = Run { program: self.program, input: &input, values: vec![Value::Unused; self.values.len()] };
        for below in values_below(&self.program.graph, [id]) {
            run.values[below.0 as usize] = run.value(below)?;
        }
        run.grid(id).cloned()
    }

    /// The cells of the elements of `id`, `otherwise` those that the value lacks.
    fn slice(&self, value: ValueId, id: ValueId, otherwise: Option<Cell>) -> Result<Grid> {
        let (graph, grid) = (&self.program.graph, self.grid(value)?);
        let (q, kv) = self.axes(id);
        let [from, to] = [value, id].map(|id| graph.ty(id).extent.sets());
        let rows = self.input.places(graph, Side::Query, from[0], to[0]);
        let columns = self.input.places(graph, Side::Key, from[1], to[1]);
        if otherwise.is_none() && rows.iter().chain(&columns).any(Option::is_none) {
            return Err(Error::State("a slice of the selector program asks for blocks its operand lacks".into()));
        }
        let missing = otherwise.unwrap_or(Cell::Bool(false));
        Ok(Grid::new(q, kv, |row, column| match (rows[row], columns[column]) {
            (Some(row), Some(column)) => grid.get(row, column),
            _ => missing,
        }))
    }

    fn pool(&self, statistic: Statistic, source: Source) -> Result<Vec<Vec<f32>>> {
        let (values, offsets) = self.input.source(source);
        let dim = self.input.head_dim;
        let sums: Vec<Vec<f32>> = offsets
            .windows(2)
            .map(|range| {
                let tokens = range[0] as usize..range[1] as usize;
                (0..dim).map(|c| math::running_sum(tokens.clone().map(|t| values[t * dim + c]))).collect()
            })
            .collect();
        if matches!(statistic, Statistic::Min | Statistic::Max) {
            let end = |line: Vec<f32>| match statistic {
                Statistic::Min => math::smallest(line),
                _ => math::largest(line),
            };
            let ends: Vec<Vec<f32>> = offsets
                .windows(2)
                .map(|range| {
                    let tokens = range[0] as usize..range[1] as usize;
                    (0..dim).map(|c| end(tokens.clone().map(|t| values[t * dim + c]).collect())).collect()
                })
                .collect();
            // NaN is ignored by the largest and the smallest, and not by the sum.
            self.finite(source, &sums)?;
            return Ok(ends);
        }
        let divided = |sum: f32, block: usize| sum / (offsets[block + 1] - offsets[block]) as f32;
        let mut means: Vec<Vec<f32>> =
            sums.iter().enumerate().map(|(b, block)| block.iter().map(|&sum| divided(sum, b)).collect()).collect();
        self.finite(source, &means)?;
        if statistic == Statistic::CentredMean {
            let tokens = offsets[offsets.len() - 1] as f32;
            for c in 0..dim {
                let centre = math::running_sum(sums.iter().map(|block| block[c])) / tokens;
                for block in &mut means {
                    block[c] -= centre;
                }
            }
            self.finite(source, &means)?;
        }
        Ok(means)
    }

    fn finite(&self, source: Source, blocks: &[Vec<f32>]) -> Result<()> {
        match blocks.iter().position(|block| block.iter().any(|value| !value.is_finite())) {
            Some(block) => Err(self.input.not_finite(source, block)),
            None => Ok(()),
        }
    }

    /// Channels are summed in order, for the norm of a token and for that of the mean; tokens are summed in order. A
    /// token of zeros has no direction and adds nothing.
    fn self_similarity(&self, side: Side) -> Result<Vec<f32>> {
        let (values, offsets) = self.input.source(side.source());
        let dim = self.input.head_dim;
        let mut similarities = Vec::new();
        for range in offsets.windows(2) {
            let mut sums = vec![0.0_f32; dim];
            for token in range[0] as usize..range[1] as usize {
                let token = &values[token * dim..(token + 1) * dim];
                let norm = math::running_sum(token.iter().map(|x| x * x)).sqrt();
                for (sum, x) in sums.iter_mut().zip(token) {
                    *sum += if norm == 0.0 { 0.0 } else { x / norm };
                }
            }
            let tokens = (range[1] - range[0]) as f32;
            similarities.push(math::running_sum(sums.iter().map(|sum| {
                let mean = sum / tokens;
                mean * mean
            })));
        }
        self.finite(side.source(), &similarities.iter().map(|&value| vec![value]).collect::<Vec<_>>())?;
        Ok(similarities)
    }

    fn term(&self, role: Role, id: ValueId) -> BitMatrix {
        let (rows, columns) = match role {
            Role::Cache => (1, self.input.blocks.q_blocks()),
            _ => (self.input.blocks.q_blocks(), self.input.blocks.kv_blocks()),
        };
        let mut bits = BitMatrix::zeros(rows, columns);
        if let Value::Grid(grid) = &self.values[id.0 as usize] {
            for row in 0..rows {
                for column in 0..columns {
                    let cell = if role == Role::Cache { grid.get(column, 0) } else { grid.get(row, column) };
                    bits.set(row, column, cell.truth());
                }
            }
        }
        bits
    }
}

/// A function of one operand on a cell.
#[must_use]
pub fn unary(op: Unary, a: Cell) -> Cell {
    match op {
        Unary::Not => Cell::Bool(!a.truth()),
        Unary::Negate => Cell::Real(-a.real()),
        Unary::Abs => Cell::Real(a.real().abs()),
        Unary::Sqrt => Cell::Real(a.real().sqrt()),
        Unary::Exp => Cell::Real(math::exp_f32(a.real())),
        // The others work on scalars only, and a program that has them is refused.
        Unary::ToReal | Unary::Log | Unary::Floor | Unary::Ceil | Unary::Round | Unary::BitLength => {
            Cell::Real(a.real())
        }
    }
}

/// A function of two operands on cells.
#[must_use]
pub fn binary(op: Binary, a: Cell, b: Cell) -> Cell {
    if let (Cell::Bool(a), Cell::Bool(b)) = (a, b) {
        return Cell::Bool(match op {
            Binary::And => a && b,
            Binary::Or => a || b,
            _ => a != b,
        });
    }
    let (a, b) = (a.real(), b.real());
    Cell::Real(match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Min => {
            if a < b {
                a
            } else {
                b
            }
        }
        Binary::Max => {
            if a > b {
                a
            } else {
                b
            }
        }
        // Scalars and truth values only; a program that has them on reals is refused.
        Binary::FloorDivide | Binary::Modulo | Binary::Power | Binary::Xor | Binary::And | Binary::Or => f32::NAN,
    })
}

/// A comparison of cells of one kind; false where a number is NaN, except for [`Comparison::NotEqual`].
#[must_use]
pub fn compare(op: Comparison, a: Cell, b: Cell) -> bool {
    let (a, b) = (a.real(), b.real());
    match op {
        Comparison::Equal => a == b,
        Comparison::NotEqual => a != b,
        Comparison::Less => a < b,
        Comparison::LessEqual => a <= b,
    }
}

/// The amount of a line of its own as the scalar that selectors take.
#[must_use]
pub fn line_amount(rule: Selector, amount: f32) -> Scalar {
    match rule {
        // A NaN becomes 0, what is too large saturates.
        Selector::TopK { .. } | Selector::BottomK { .. } => Scalar::Int(amount.floor() as i64),
        _ => Scalar::Real(f64::from(amount)),
    }
}

fn reduce(how: Reduction, line: &[f32]) -> f32 {
    match how {
        Reduction::Sum => math::lane_sum(line.iter().copied()),
        Reduction::Mean => math::lane_sum(line.iter().copied()) / line.len() as f32,
        Reduction::Max => math::largest(line.iter().copied()),
        Reduction::Min => math::smallest(line.iter().copied()),
    }
}

fn softmax(line: &[f32]) -> Vec<f32> {
    if line.iter().all(|&value| value == f32::NEG_INFINITY) {
        return vec![0.0; line.len()];
    }
    let max = math::largest(line.iter().copied());
    let exponentials: Vec<f32> = line.iter().map(|&value| math::exp_f32(value - max)).collect();
    let sum = math::lane_sum(exponentials.iter().copied());
    exponentials.iter().map(|value| value / sum).collect()
}
