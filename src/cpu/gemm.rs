//! Projections around sparse attention: GEMM-Q, GEMM-O and the dense `linear`.
//!
//! All three are one loop. A task owns some rows of one q-block: it gathers the left factor of these rows in units
//! of up to [`DEPTH`] columns that are next to each other in the weight, and for each slab of [`SLAB`] output
//! columns adds up all units before it rounds and stores. GEMM-Q leaves out the outputs of cached heads, GEMM-O the
//! units of heads that are not its part; neither looks at what it leaves out.

use std::cmp::Reverse;
use std::ops::Range;

use super::check;
use super::forecast::add_terms;
use super::microkernel::{Kernels, Onto, PANEL, Rows, RowsMut};
use super::pack::{Store, convert};
use super::scratch::{Scratch, share};
use super::weight::{AnyWeight, PackedWeight};
use crate::error::Result;
use crate::symbols::BitMatrix;
use crate::tensor::{TensorMut, TensorRef, Values, ValuesMut};

/// Columns of the left factor that are multiplied at a time: a panel of this depth takes 16 KiB.
const DEPTH: usize = 256;

/// Output columns that are added up at a time: with 128 rows they take 128 KiB, as a unit of the left factor does.
const SLAB: usize = 256;

/// Rows of a task where no symbols say otherwise.
const ROWS: usize = 128;

/// Tasks there should be for each thread.
const TASKS: usize = 4;

/// Which heads GEMM-O adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those whose bit of `S_c` is 1.
    Live,
    /// Those whose bit of `S_c` is 0.
    Cached,
    /// All of them.
    All,
}

/// What the rows of GEMM-O begin with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start<'a> {
    /// `[out]`, added to every row.
    pub bias: Option<TensorRef<'a>>,
    /// `[tokens, out]` each, added with their weights: the forecast of the cached part.
    pub terms: &'a [(TensorRef<'a>, f32)],
}

/// Which (head, q-block) tiles are live, and the tokens that a call is about.
#[derive(Clone, Debug)]
pub struct Tiles<'a> {
    /// `S_c`: `[heads]` rows, `[q_blocks]` columns.
    pub cache: &'a BitMatrix,
    /// Offsets of the q-blocks, as [`Blocks::q`](crate::symbols::Blocks::q).
    pub q_blocks: &'a [u32],
    /// The tokens the call reads or writes rows of. A transformer with a stream for text and one for the picture
    /// projects each with its own weight, within one attention.
    pub tokens: Range<usize>,
}

impl<'a> Tiles<'a> {
    /// The tiles of all tokens.
    #[must_use]
    pub fn all(cache: &'a BitMatrix, q_blocks: &'a [u32]) -> Self {
        Tiles { cache, q_blocks, tokens: 0..q_blocks.last().map_or(0, |&end| end as usize) }
    }

    pub(super) fn check(&self, heads: usize, tokens: usize) -> Result<()> {
        check::offsets("q_blocks", self.q_blocks, tokens)?;
        check::part("tokens", self.tokens.start, self.tokens.len(), tokens)?;
        check::bits("cache", self.cache, heads, self.q_blocks.len() - 1)
    }
}

/// Dense projection: `out = x weight^T + bias`.
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `x` | `[tokens, in]` | any |
/// | `weight` | `[out, in]` | any |
/// | `bias` | `[out]` | any |
/// | `out` | `[tokens, out]` | any |
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when they do not fit; nothing has been written then.
pub fn linear<'a>(
    x: TensorRef<'_>,
    weight: impl Into<AnyWeight<'a>>,
    bias: Option<TensorRef<'_>>,
    mut out: TensorMut<'_>,
) -> Result<()> {
    let weight = weight.into();
    let [features, inputs] = weight.shape();
    let [tokens, _] = check::two("x", x.shape())?;
    check::shape("x", x.shape(), &[tokens, inputs])?;
    check::shape("out", out.shape(), &[tokens, features])?;
    let bias = bias_values(bias, features)?;
    if out.shape().contains(&0) {
        return Ok(());
    }
    let weight = weight.packed(features, |_| true)?;
    let plan = Plan { left: Left::Tokens(x.values(), inputs), first: 0, bias: &bias, terms: &[], weight: &weight };
    let pieces = pieces(&whole_blocks(tokens), &(0..tokens));
    match out.values() {
        ValuesMut::F32(out) => plan.rows(pieces, out, |_| plan.all_columns()),
        ValuesMut::F16(out) => plan.rows(pieces, out, |_| plan.all_columns()),
        ValuesMut::Bf16(out) => plan.rows(pieces, out, |_| plan.all_columns()),
    }
    Ok(())
}

/// Dense projection of some tokens straight into heads: keys and values, and queries where all are live.
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `x` | `[tokens.len(), in]` | any |
/// | `weight` | `[heads * head_dim, in]`, packed by `head_dim` if packed | any |
/// | `bias` | `[heads * head_dim]` | any |
/// | `out` | `[heads, all tokens, head_dim]`; rows of other tokens stay untouched | any |
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when they do not fit; nothing has been written then.
pub fn linear_to_heads<'a>(
    x: TensorRef<'_>,
    weight: impl Into<AnyWeight<'a>>,
    bias: Option<TensorRef<'_>>,
    tokens: Range<usize>,
    out: TensorMut<'_>,
) -> Result<()> {
    let [heads, all, _] = check::three("out", out.shape())?;
    let q_blocks = whole_blocks(all);
    let cache = BitMatrix::ones(heads, q_blocks.len() - 1);
    gemm_q(x, weight, bias, &Tiles { cache: &cache, q_blocks: &q_blocks, tokens }, out)
}

/// Dense projection of some tokens from heads: the output of attention where all of it is live.
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `o` | `[heads, all tokens, head_dim]` | any |
/// | `weight` | `[out, heads * head_dim]` | any |
/// | `bias` | `[out]` | any |
/// | `out` | `[tokens.len(), out]` | any |
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when they do not fit; nothing has been written then.
pub fn linear_from_heads<'a>(
    o: TensorRef<'_>,
    weight: impl Into<AnyWeight<'a>>,
    bias: Option<TensorRef<'_>>,
    tokens: Range<usize>,
    out: TensorMut<'_>,
) -> Result<()> {
    let [heads, all, _] = check::three("o", o.shape())?;
    let q_blocks = whole_blocks(all);
    let cache = BitMatrix::ones(heads, q_blocks.len() - 1);
    let tiles = Tiles { cache: &cache, q_blocks: &q_blocks, tokens };
    gemm_o(o, weight, Part::All, Start { bias, terms: &[] }, &tiles, out)
}

/// Blocks of a projection that skips nothing.
pub(crate) fn whole_blocks(tokens: usize) -> Vec<u32> {
    (0..tokens).step_by(ROWS).chain([tokens]).map(|at| at as u32).collect()
}

/// GEMM-Q: projects the queries of live (q-block, head) tiles; the tiles of cached ones stay untouched.
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `x` | `[tiles.tokens, in]` | any |
/// | `weight` | `[heads * head_dim, in]`, packed by `head_dim` if packed | any |
/// | `bias` | `[heads * head_dim]` | any |
/// | `out` | `[heads, tokens, head_dim]`; rows of other tokens stay untouched | any |
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when they do not fit; nothing has been written then.
///
/// # Source
/// FlashOmni, arXiv 2509.25401, section 3.
pub fn gemm_q<'a>(
    x: TensorRef<'_>,
    weight: impl Into<AnyWeight<'a>>,
    bias: Option<TensorRef<'_>>,
    tiles: &Tiles<'_>,
    mut out: TensorMut<'_>,
) -> Result<()> {
    let weight = weight.into();
    let [features, inputs] = weight.shape();
    let [heads, tokens, head_dim] = check::three("out", out.shape())?;
    tiles.check(heads, tokens)?;
    check::shape("weight", &[features, inputs], &[heads * head_dim, inputs])?;
    check::shape("x", x.shape(), &[tiles.tokens.len(), inputs])?;
    let bias = bias_values(bias, features)?;
    if out.shape().contains(&0) {
        return Ok(());
    }
    let weight = weight.packed(head_dim, |head| tiles.cache.count_row(head) > 0)?;
    let left = Left::Tokens(x.values(), inputs);
    let plan = Plan { left, first: tiles.tokens.start, bias: &bias, terms: &[], weight: &weight };
    match out.values() {
        ValuesMut::F32(out) => plan.heads(tiles, [tokens, head_dim], out),
        ValuesMut::F16(out) => plan.heads(tiles, [tokens, head_dim], out),
        ValuesMut::Bf16(out) => plan.heads(tiles, [tokens, head_dim], out),
    }
    Ok(())
}

/// GEMM-O: `out = start + sum over the heads of a part of o[head] weight[.., head]^T`.
///
/// Every row is written; one without a head of the part is its start. Heads are cut from the weight by `head_dim`;
/// further columns of a wider matrix are left out by [`Weight::columns`](super::Weight::columns).
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `o` | `[heads, tokens, head_dim]` | any |
/// | `weight` | `[out, heads * head_dim]` | any |
/// | `out`, terms of the start | `[tiles.tokens, out]` | any |
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when they do not fit; nothing has been written then.
///
/// # Source
/// FlashOmni, arXiv 2509.25401, section 3.
pub fn gemm_o<'a>(
    o: TensorRef<'_>,
    weight: impl Into<AnyWeight<'a>>,
    part: Part,
    start: Start<'_>,
    tiles: &Tiles<'_>,
    mut out: TensorMut<'_>,
) -> Result<()> {
    let weight = weight.into();
    let bias = check_gemm_o(o, &weight, start, tiles, &out)?;
    if out.shape().contains(&0) {
        return Ok(());
    }
    let weight = weight.packed(weight.shape()[0], |_| true)?;
    let plan = Plan::of_heads(o, tiles, &bias, start, &weight);
    let live = |head, block| tiles.cache.get(head, block);
    let units = |block| plan.units(|head| part == Part::All || live(head, block) == (part == Part::Live));
    let pieces = pieces(tiles.q_blocks, &tiles.tokens);
    match out.values() {
        ValuesMut::F32(out) => plan.rows(pieces, out, units),
        ValuesMut::F16(out) => plan.rows(pieces, out, units),
        ValuesMut::Bf16(out) => plan.rows(pieces, out, units),
    }
    Ok(())
}

/// GEMM-O of an update step: the whole projection, and the part of the cached heads, in one pass.
///
/// `out` is what [`gemm_o`] gives for [`Part::All`], `cached` what it gives for [`Part::Cached`] without a start:
/// the bias of the dispatch steps that follow.
///
/// # Shapes
/// As [`gemm_o`]; `cached` is `[tiles.tokens, out]`, f32.
///
/// # Errors
/// As [`gemm_o`].
pub fn gemm_o_split<'a>(
    o: TensorRef<'_>,
    weight: impl Into<AnyWeight<'a>>,
    start: Start<'_>,
    tiles: &Tiles<'_>,
    mut out: TensorMut<'_>,
    cached: &mut [f32],
) -> Result<()> {
    let weight = weight.into();
    let bias = check_gemm_o(o, &weight, start, tiles, &out)?;
    let wanted = out.shape().iter().product::<usize>();
    check::ensure(cached.len() == wanted, || format!("`cached` has {} values, wanted {wanted}", cached.len()))?;
    if out.shape().contains(&0) {
        return Ok(());
    }
    let weight = weight.packed(weight.shape()[0], |_| true)?;
    let plan = Plan::of_heads(o, tiles, &bias, start, &weight);
    let units = |block| plan.split_units(|head| tiles.cache.get(head, block));
    let pieces = pieces(tiles.q_blocks, &tiles.tokens);
    match out.values() {
        ValuesMut::F32(out) => plan.split_rows(pieces, out, cached, units),
        ValuesMut::F16(out) => plan.split_rows(pieces, out, cached, units),
        ValuesMut::Bf16(out) => plan.split_rows(pieces, out, cached, units),
    }
    Ok(())
}

fn check_gemm_o(
    o: TensorRef<'_>,
    weight: &AnyWeight<'_>,
    start: Start<'_>,
    tiles: &Tiles<'_>,
    out: &TensorMut<'_>,
) -> Result<Vec<f32>> {
    let [heads, tokens, head_dim] = check::three("o", o.shape())?;
    let [features, inputs] = weight.shape();
    tiles.check(heads, tokens)?;
    check::shape("weight", &[features, inputs], &[features, heads * head_dim])?;
    check::shape("out", out.shape(), &[tiles.tokens.len(), features])?;
    check::terms("start", start.terms, &[tiles.tokens.len(), features])?;
    bias_values(start.bias, features)
}

/// A bias in single precision; empty for none.
fn bias_values(bias: Option<TensorRef<'_>>, features: usize) -> Result<Vec<f32>> {
    let Some(bias) = bias else { return Ok(Vec::new()) };
    check::shape("bias", bias.shape(), &[features])?;
    Ok(bias.to_f32())
}

/// Rows of one q-block.
#[derive(Clone, Debug)]
struct Piece {
    block: usize,
    tokens: Range<usize>,
}

/// Cuts the q-blocks of some tokens into pieces, smaller ones where threads would go short of them.
fn pieces(offsets: &[u32], tokens: &Range<usize>) -> Vec<Piece> {
    let wanted = TASKS * rayon::current_num_threads();
    let cut = |rows: usize| -> Vec<Piece> {
        let pieces_of = |block: usize| {
            let start = tokens.start.max(offsets[block] as usize);
            let end = tokens.end.min(offsets[block + 1] as usize);
            (start..end.max(start))
                .step_by(rows)
                .map(move |first| Piece { block, tokens: first..end.min(first + rows) })
        };
        (0..offsets.len().saturating_sub(1)).flat_map(pieces_of).collect()
    };
    let mut rows = check::BLOCK;
    let mut found = cut(rows);
    while found.len() < wanted && rows > 48 {
        rows /= 2;
        found = cut(rows);
    }
    found
}

/// The left factor.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// `[tokens, columns]`.
    Tokens(Values<'a>, usize),
    /// `[heads, tokens, head_dim]`; column `head * head_dim + i` of the product's inner axis.
    Heads { values: Values<'a>, tokens: usize, heads: usize, head_dim: usize },
}

impl<'a> Left<'a> {
    fn of_heads(o: TensorRef<'a>) -> Self {
        let shape = o.shape();
        Left::Heads { values: o.values(), heads: shape[0], tokens: shape[1], head_dim: shape[2] }
    }

    /// Columns of one row; those of heads may span several heads. The first row of `x` is that of the token `first`.
    fn copy(self, token: usize, first: usize, columns: Range<usize>, target: &mut [f32]) {
        match self {
            Left::Tokens(values, stride) => convert(values, (token - first) * stride + columns.start, target),
            Left::Heads { values, tokens, head_dim, .. } => {
                let mut rest = target;
                let mut at = columns.start;
                while at < columns.end {
                    let (head, within) = (at / head_dim, at % head_dim);
                    let (now, after) = rest.split_at_mut((head_dim - within).min(columns.end - at));
                    convert(values, (head * tokens + token) * head_dim + within, now);
                    at += now.len();
                    rest = after;
                }
            }
        }
    }
}

/// Columns of the left factor next to each other, at most [`DEPTH`].
#[derive(Clone, Debug)]
struct Unit {
    columns: Range<usize>,
    /// Whether it belongs to the second sum.
    cached: bool,
}

/// Cuts ascending ranges of columns into units, after joining neighbours of one sum.
fn units(ranges: impl Iterator<Item = (Range<usize>, bool)>) -> Vec<Unit> {
    let mut joined: Vec<Unit> = Vec::new();
    for (columns, cached) in ranges {
        match joined.last_mut() {
            Some(last) if last.columns.end == columns.start && last.cached == cached => last.columns.end = columns.end,
            _ => joined.push(Unit { columns, cached }),
        }
    }
    let cut = |unit: Unit| {
        let end = unit.columns.end;
        let starts = unit.columns.step_by(DEPTH);
        starts.map(move |start| Unit { columns: start..end.min(start + DEPTH), cached: unit.cached })
    };
    joined.into_iter().flat_map(cut).collect()
}

/// One piece: what to add up, and where it goes.
struct Task<'o, T> {
    piece: Piece,
    units: Vec<Unit>,
    /// Chunks of the weight and their outputs, `[rows, chunk]` each.
    outputs: Vec<(usize, &'o mut [T])>,
    /// The second sum.
    cached: Option<&'o mut [f32]>,
}

/// A product whose shapes have been checked.
struct Plan<'a> {
    left: Left<'a>,
    /// The token of the first row of `x` or `out`.
    first: usize,
    /// Empty, or one value for each output column.
    bias: &'a [f32],
    terms: &'a [(TensorRef<'a>, f32)],
    weight: &'a PackedWeight,
}

impl<'a> Plan<'a> {
    fn of_heads(
        o: TensorRef<'a>,
        tiles: &Tiles<'_>,
        bias: &'a [f32],
        start: Start<'a>,
        weight: &'a PackedWeight,
    ) -> Self {
        Plan { left: Left::of_heads(o), first: tiles.tokens.start, bias, terms: start.terms, weight }
    }

    fn all_columns(&self) -> Vec<Unit> {
        match self.left {
            Left::Tokens(_, columns) => units([(0..columns, false)].into_iter()),
            Left::Heads { .. } => self.units(|_| true),
        }
    }

    fn units(&self, wanted: impl Fn(usize) -> bool) -> Vec<Unit> {
        let Left::Heads { heads, head_dim, .. } = self.left else { return Vec::new() };
        let ranges = (0..heads).filter(|&head| wanted(head));
        units(ranges.map(|head| (head * head_dim..(head + 1) * head_dim, false)))
    }

    fn split_units(&self, live: impl Fn(usize) -> bool) -> Vec<Unit> {
        let Left::Heads { heads, head_dim, .. } = self.left else { return Vec::new() };
        units((0..heads).map(|head| (head * head_dim..(head + 1) * head_dim, !live(head))))
    }

    /// `out`: `[tokens, chunk]`, the only chunk.
    fn rows<T: Store>(&self, pieces: Vec<Piece>, out: &mut [T], units: impl Fn(usize) -> Vec<Unit>) {
        let mut rest = out;
        let mut tasks = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (now, after) = std::mem::take(&mut rest).split_at_mut(piece.tokens.len() * self.weight.chunk());
            rest = after;
            tasks.push(Task { units: units(piece.block), piece, outputs: vec![(0, now)], cached: None });
        }
        self.run(tasks);
    }

    /// As `rows`, with the second sum.
    fn split_rows<T: Store>(
        &self,
        pieces: Vec<Piece>,
        out: &mut [T],
        cached: &mut [f32],
        units: impl Fn(usize) -> Vec<Unit>,
    ) {
        let (mut rest, mut cached_rest) = (out, cached);
        let mut tasks = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let len = piece.tokens.len() * self.weight.chunk();
            let (now, after) = std::mem::take(&mut rest).split_at_mut(len);
            let (cached_now, cached_after) = std::mem::take(&mut cached_rest).split_at_mut(len);
            (rest, cached_rest) = (after, cached_after);
            tasks.push(Task { units: units(piece.block), piece, outputs: vec![(0, now)], cached: Some(cached_now) });
        }
        self.run(tasks);
    }

    /// `out`: `[chunks, tokens, chunk]`; of each piece only the chunks whose bit is 1.
    fn heads<T: Store>(&self, tiles: &Tiles<'_>, [tokens, head_dim]: [usize; 2], out: &mut [T]) {
        let units = self.all_columns();
        let task = |piece| Task { piece, units: units.clone(), outputs: Vec::new(), cached: None };
        let mut tasks: Vec<Task<'_, T>> = pieces(tiles.q_blocks, &tiles.tokens).into_iter().map(task).collect();
        for (head, out) in out.chunks_mut((tokens * head_dim).max(1)).enumerate() {
            let mut rest = &mut out[self.first * head_dim..];
            for task in &mut tasks {
                let (now, after) = rest.split_at_mut(task.piece.tokens.len() * head_dim);
                rest = after;
                if tiles.cache.get(head, task.piece.block) {
                    task.outputs.push((head, now));
                }
            }
        }
        tasks.retain(|task| !task.outputs.is_empty());
        self.run(tasks);
    }

    fn run<T: Store>(&self, mut tasks: Vec<Task<'_, T>>) {
        let kernels = Kernels::best();
        let cost = |task: &Task<'_, T>| {
            let depth: usize = task.units.iter().map(|unit| unit.columns.len()).sum();
            task.piece.tokens.len() * task.outputs.len() * depth
        };
        tasks.sort_by_key(|task| Reverse(cost(task)));
        let rows = tasks.iter().map(|task| task.piece.tokens.len()).max().unwrap_or(0);
        let left = rows * self.weight.columns();
        // The left factor, two sums, and room for a row of a term.
        let worker = || Scratch::take(left.next_multiple_of(PANEL) + 2 * rows * SLAB + SLAB);
        share(tasks, worker, |scratch, task| {
            let (left_values, rest) = scratch.values_mut().split_at_mut(left.next_multiple_of(PANEL));
            let (sums, rest) = rest.split_at_mut(rows * SLAB);
            let (cached_sums, term) = rest.split_at_mut(rows * SLAB);
            self.gather(&task.piece, &task.units, left_values);
            let mut buffers = Buffers { kernels, left: left_values, sums, cached_sums, term };
            self.work(task, &mut buffers);
        });
    }

    /// Copies the left factor of a piece, unit after unit, `[rows, depth]` each.
    fn gather(&self, piece: &Piece, units: &[Unit], target: &mut [f32]) {
        let mut rest = target;
        for unit in units {
            let depth = unit.columns.len();
            let (now, after) = rest.split_at_mut(piece.tokens.len() * depth);
            rest = after;
            for (token, row) in piece.tokens.clone().zip(now.chunks_exact_mut(depth)) {
                self.left.copy(token, self.first, unit.columns.clone(), row);
            }
        }
    }

    fn work<T: Store>(&self, task: Task<'_, T>, buffers: &mut Buffers<'_>) {
        let Task { piece, units, outputs, mut cached } = task;
        let chunk = self.weight.chunk();
        for (index, out) in outputs {
            let panels: Vec<&[f32]> = self.weight.panels(index).collect();
            for (slab, panels) in panels.chunks(SLAB / PANEL).enumerate() {
                let columns = slab * SLAB..chunk.min((slab + 1) * SLAB);
                self.begin(&piece, index * chunk, &columns, buffers);
                if cached.is_some() {
                    buffers.cached_sums[..piece.tokens.len() * SLAB].fill(0.0);
                }
                add_up(&piece, &units, panels, buffers);
                if let Some(cached) = &mut cached {
                    // The first sum is to be the whole: the start, the live heads and the cached ones.
                    let sums = buffers.sums.iter_mut().zip(&*buffers.cached_sums);
                    sums.take(piece.tokens.len() * SLAB).for_each(|(sum, part)| *sum += part);
                    store(buffers.cached_sums, &columns, chunk, cached);
                }
                store(buffers.sums, &columns, chunk, out);
            }
        }
    }

    /// Sets the sums of a slab to what the rows begin with.
    fn begin(&self, piece: &Piece, first_feature: usize, columns: &Range<usize>, buffers: &mut Buffers<'_>) {
        for (token, row) in piece.tokens.clone().zip(buffers.sums.chunks_exact_mut(SLAB)) {
            row.fill(0.0);
            let row = &mut row[..columns.len()];
            if !self.bias.is_empty() {
                row.copy_from_slice(&self.bias[first_feature + columns.start..first_feature + columns.end]);
            }
            let term = &mut buffers.term[..columns.len()];
            add_terms(self.terms, (token - self.first) * self.weight.chunk() + columns.start, row, term);
        }
    }
}

/// What a thread adds up with.
struct Buffers<'w> {
    kernels: Kernels,
    left: &'w [f32],
    /// `[rows, SLAB]`.
    sums: &'w mut [f32],
    cached_sums: &'w mut [f32],
    term: &'w mut [f32],
}

fn add_up(piece: &Piece, units: &[Unit], panels: &[&[f32]], buffers: &mut Buffers<'_>) {
    let rows = piece.tokens.len();
    let mut left = buffers.left;
    for unit in units {
        let depth = unit.columns.len();
        let sums = if unit.cached { &mut *buffers.cached_sums } else { &mut *buffers.sums };
        for (index, panel) in panels.iter().enumerate() {
            let panel = &panel[unit.columns.start * PANEL..unit.columns.end * PANEL];
            let target = RowsMut { values: &mut sums[index * PANEL..], stride: SLAB };
            buffers.kernels.multiply(rows, Rows { values: left, stride: depth }, panel, depth, target, Onto::Values);
        }
        left = &left[rows * depth..];
    }
}

/// Rounds a slab into its columns of the output.
fn store<T: Store>(sums: &[f32], columns: &Range<usize>, chunk: usize, out: &mut [T]) {
    for (sums, out) in sums.chunks_exact(SLAB).zip(out.chunks_exact_mut(chunk)) {
        T::store(&sums[..columns.len()], &mut out[columns.clone()]);
    }
}
