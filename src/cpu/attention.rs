//! Block-sparse attention: the online softmax over the live blocks of each row.
//!
//! The kv-blocks that any live row needs are packed into panels, once for each kv-head and shared by all of its
//! q-blocks. Heads are taken in groups whose packed keys and values fit the last cache; every (head, q-block) of a
//! group is an item of a queue, longest first, and the packing of the next group fills the queue's end, so that
//! threads neither wait for packing nor for each other. An item gathers its live kv-blocks into tiles of up to
//! [`TILE`] columns, and for each tile and each strip of [`STRIP`] rows computes scores, one softmax step and
//! products, so that scores never leave the first two caches. What is skipped is never looked at: time is
//! proportional to live blocks.
//!
//! Scores are kept in base 2: `scale * log2(e)` is folded into the packed queries, and the softmax needs no
//! multiplication of its own.

use std::cmp::Reverse;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

use super::check::{self, length};
use super::forecast::weighted_sum;
use super::microkernel::{Kernels, LANES, Onto, PANEL, Rows, RowsMut};
use super::pack::{self, Matrix, Store};
use super::scratch::{Scratch, share};
use crate::error::Result;
use crate::symbols::{BitMatrix, Blocks, Symbols};
use crate::tensor::{TensorMut, TensorRef, ValuesMut};

/// Packed values of a group of heads (4 MiB): two groups fit the last cache of most machines.
const GROUP: usize = 1 << 20;

/// Most packed values of a group (64 MiB), unless a single head needs more.
const MOST: usize = 16 << 20;

/// Items that a group should have for each thread, so that the last ones to finish do not matter.
const ITEMS: usize = 8;

/// Rows of a strip. With a tile of 256 columns the scores take 48 KiB, half of them in the first cache.
const STRIP: usize = 48;

/// Most columns of a tile: the largest block.
const TILE: usize = 256;

/// Tokens of a block where attention is computed in full.
const DENSE_BLOCK: usize = 128;

/// What the rows of cached q-blocks get.
#[derive(Clone, Copy, Debug, Default)]
pub enum Cached<'a> {
    /// Nothing is written: the output projection carries the cached feature as a bias.
    #[default]
    Untouched,
    /// The weighted sum of these tensors `[heads, q_tokens, head_dim]`, as [`Taylor::terms`](super::Taylor::terms)
    /// gives them.
    Forecast(&'a [(TensorRef<'a>, f32)]),
}

/// Options of [`attention`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'a> {
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// What the rows of cached q-blocks get.
    pub cached: Cached<'a>,
}

/// Attention in full: `out = softmax(q k^T / sqrt(head_dim)) v`.
///
/// # Shapes
/// As [`attention`].
///
/// # Errors
/// As [`attention`].
pub fn dense_attention(q: TensorRef<'_>, k: TensorRef<'_>, v: TensorRef<'_>, out: TensorMut<'_>) -> Result<()> {
    let [heads, q_tokens, _] = check::three("q", q.shape())?;
    let [_, kv_tokens, _] = check::three("k", k.shape())?;
    let blocks = Blocks::regular(q_tokens, kv_tokens, DENSE_BLOCK, DENSE_BLOCK);
    let symbols = Symbols::dense(heads, blocks.q_blocks(), blocks.kv_blocks());
    attention(q, k, v, &symbols, &blocks, AttentionOptions::default(), out, None)
}

/// Attention under sparse symbols: `out = softmax(scale * q k^T + mask) v`, row by row.
///
/// A q-block whose bit of `S_c` is 0 is left untouched (its `lse` too) or gets the forecast. A live row attends to
/// the kv-blocks whose bit of `S_s` is 1, and within those of `S_p` to the tokens of their mask. A token that
/// attends to nothing gets zeros, and minus infinity as its logsumexp. Bits of `S_p` outside of `S_s` mean nothing.
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `q`, `out` | `[heads, q_tokens, head_dim]` | one of f32, f16, bf16 |
/// | `k`, `v` | `[kv_heads, kv_tokens, head_dim]`, `heads` a multiple of `kv_heads` | any |
/// | `lse` | `[heads, q_tokens]`, natural logarithm, without a maximum subtracted | f32 |
///
/// `head_dim` is 1 to 256. Sums are in single precision. NaN and infinity spread as in IEEE arithmetic; a masked
/// token of a partial block has the weight zero, which a value of NaN or infinity still turns into NaN.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when a tensor, the blocks or the symbols do not fit; nothing has been written then.
///
/// # Source
/// FlashOmni, arXiv 2509.25401, section 3; online softmax as in FlashAttention-2, arXiv 2307.08691.
#[expect(clippy::too_many_arguments, reason = "the operands of attention")]
pub fn attention(
    q: TensorRef<'_>,
    k: TensorRef<'_>,
    v: TensorRef<'_>,
    symbols: &Symbols,
    blocks: &Blocks,
    options: AttentionOptions<'_>,
    mut out: TensorMut<'_>,
    lse: Option<&mut [f32]>,
) -> Result<()> {
    let problem = Problem::new([q, k, v], symbols, blocks, options, &out, lse.as_deref())?;
    match out.values() {
        ValuesMut::F32(out) => problem.run(out, lse),
        ValuesMut::F16(out) => problem.run(out, lse),
        ValuesMut::Bf16(out) => problem.run(out, lse),
    }
    Ok(())
}

/// A call whose shapes have been checked.
struct Problem<'a> {
    kernels: Kernels,
    q: TensorRef<'a>,
    k: TensorRef<'a>,
    v: TensorRef<'a>,
    symbols: &'a Symbols,
    blocks: &'a Blocks,
    cached: Cached<'a>,
    /// Factor of the queries, base 2.
    scale: f32,
    kv_heads: usize,
    /// Query heads of one kv-head.
    group: usize,
    q_tokens: usize,
    kv_tokens: usize,
    head_dim: usize,
    /// `head_dim` in whole panels.
    width: usize,
    /// Where the packed keys of each kv-block begin, in tokens; blocks are padded to whole panels.
    padded: Vec<usize>,
}

/// One q-block of one head, with the output it owns.
struct Item<'o, T> {
    head: usize,
    q_block: usize,
    out: &'o mut [T],
    lse: Option<&'o mut [f32]>,
}

/// Keys and values of a group of kv-heads, in panels.
struct Packed {
    heads: Range<usize>,
    keys: Scratch,
    values: Scratch,
}

/// One kv-block to pack.
struct Block<'p> {
    /// Index of its first value.
    start: usize,
    tokens: usize,
    keys: &'p mut [f32],
    values: &'p mut [f32],
}

/// What a thread does next.
enum Task<'o, 'p, T> {
    Attend(Item<'o, T>),
    Pack(Block<'p>),
}

/// Buffers of one thread.
struct Worker {
    buffer: Scratch,
    tile: Vec<Piece>,
}

/// A live kv-block within a tile.
#[derive(Clone, Copy)]
struct Piece {
    block: usize,
    /// First column within the tile.
    column: usize,
    /// Columns without padding.
    tokens: usize,
}

impl<'a> Problem<'a> {
    fn new(
        [q, k, v]: [TensorRef<'a>; 3],
        symbols: &'a Symbols,
        blocks: &'a Blocks,
        options: AttentionOptions<'a>,
        out: &TensorMut<'_>,
        lse: Option<&[f32]>,
    ) -> Result<Self> {
        let [heads, q_tokens, head_dim] = check::three("q", q.shape())?;
        let [kv_heads, kv_tokens, _] = check::three("k", k.shape())?;
        check::ensure((1..=256).contains(&head_dim), || format!("`q` has head_dim {head_dim}, wanted 1 to 256"))?;
        check::shape("k", k.shape(), &[kv_heads, kv_tokens, head_dim])?;
        check::shape("v", v.shape(), &[kv_heads, kv_tokens, head_dim])?;
        check::shape("out", out.shape(), q.shape())?;
        check::ensure(out.dtype() == q.dtype(), || {
            format!("`out` holds {}, wanted {} as `q`", out.dtype().name(), q.dtype().name())
        })?;
        check::ensure(heads == 0 || (kv_heads > 0 && heads.is_multiple_of(kv_heads)), || {
            format!("`q` has {heads} heads, wanted a multiple of the {kv_heads} of `k`")
        })?;
        check::offsets("blocks.q", &blocks.q, q_tokens)?;
        check::offsets("blocks.kv", &blocks.kv, kv_tokens)?;
        check::symbols(symbols, blocks, heads)?;
        if let Some(lse) = lse {
            check::ensure(lse.len() == heads * q_tokens, || {
                format!("`lse` has {} values, wanted {heads} x {q_tokens}", lse.len())
            })?;
        }
        if let Cached::Forecast(terms) = options.cached {
            check::terms("forecast", terms, q.shape())?;
        }
        let mut padded = vec![0];
        for block in 0..blocks.kv_blocks() {
            padded.push(padded[block] + length(&blocks.kv, block).next_multiple_of(PANEL));
        }
        let scale = options.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()) * LOG2_E;
        Ok(Problem {
            kernels: Kernels::best(),
            q,
            k,
            v,
            symbols,
            blocks,
            cached: options.cached,
            scale,
            kv_heads,
            group: heads.checked_div(kv_heads).unwrap_or(0),
            q_tokens,
            kv_tokens,
            head_dim,
            width: head_dim.next_multiple_of(PANEL),
            padded,
        })
    }

    fn key_values(&self) -> usize {
        self.padded.last().map_or(0, |tokens| tokens * self.head_dim)
    }

    fn value_values(&self) -> usize {
        self.kv_tokens * self.width
    }

    fn run<T: Store>(&self, out: &mut [T], lse: Option<&mut [f32]>) {
        let mut items = self.items(out, lse);
        let per_group = self.heads_per_group();
        let mut next = self.room(0, per_group);
        let first: Vec<_> = self.to_pack(&mut next).map(Task::<T>::Pack).collect();
        self.share(first, None);
        while !next.heads.is_empty() {
            let packed = next;
            next = self.room(packed.heads.end, per_group);
            let count = items.partition_point(|item| item.head < packed.heads.end * self.group);
            let mut now: Vec<_> = items.drain(..count).collect();
            now.sort_by_key(|item| Reverse(self.cost(item)));
            let tasks = now.into_iter().map(Task::Attend).chain(self.to_pack(&mut next).map(Task::Pack)).collect();
            self.share(tasks, Some(&packed));
        }
    }

    fn share<T: Store>(&self, tasks: Vec<Task<'_, '_, T>>, packed: Option<&Packed>) {
        share(
            tasks,
            || self.worker(),
            |worker, task| match (task, packed) {
                (Task::Pack(block), _) => self.pack(block),
                (Task::Attend(item), Some(packed)) => self.work(worker, item, packed),
                (Task::Attend(_), None) => {}
            },
        );
    }

    /// Few enough for the cache, unless threads would go short of items.
    fn heads_per_group(&self) -> usize {
        let per_head = (self.key_values() + self.value_values()).max(1);
        let items = (self.blocks.q_blocks() * self.group).max(1);
        let wanted = (ITEMS * rayon::current_num_threads()).div_ceil(items);
        wanted.clamp(GROUP / per_head, MOST / per_head.min(MOST)).max(1)
    }

    /// Every q-block there is something to write for, in the order of heads.
    fn items<'o, T: Store>(&self, out: &'o mut [T], lse: Option<&'o mut [f32]>) -> Vec<Item<'o, T>> {
        let mut items = Vec::new();
        let (mut out, mut lse) = (out, lse);
        for head in 0..self.symbols.heads() {
            for q_block in 0..self.blocks.q_blocks() {
                let tokens = length(&self.blocks.q, q_block);
                let (item_out, rest) = out.split_at_mut(tokens * self.head_dim);
                out = rest;
                let (item_lse, rest) = lse.map(|lse| lse.split_at_mut(tokens)).unzip();
                lse = rest;
                let live = self.symbols.cache.get(head, q_block);
                if live || matches!(self.cached, Cached::Forecast(_)) {
                    items.push(Item { head, q_block, out: item_out, lse: item_lse });
                }
            }
        }
        items
    }

    fn row(&self, head: usize, q_block: usize) -> usize {
        head * self.blocks.q_blocks() + q_block
    }

    /// What an item costs, in scores.
    fn cost<T>(&self, item: &Item<'_, T>) -> usize {
        let live = self.symbols.cache.get(item.head, item.q_block);
        let blocks = if live { self.symbols.skip.count_row(self.row(item.head, item.q_block)) } else { 0 };
        blocks * item.out.len()
    }

    /// The kv-blocks of a kv-head that a live row needs.
    fn needed(&self, kv_head: usize) -> BitMatrix {
        let mut needed = BitMatrix::zeros(1, self.blocks.kv_blocks());
        for head in kv_head * self.group..(kv_head + 1) * self.group {
            for q_block in self.symbols.cache.ones_of_row(head) {
                let row = self.symbols.skip.row(self.row(head, q_block));
                needed.row_mut(0).iter_mut().zip(row).for_each(|(all, word)| *all |= word);
            }
        }
        needed
    }

    /// Room for the packed keys and values of the next group of kv-heads.
    fn room(&self, first_head: usize, heads: usize) -> Packed {
        let heads = heads.min(self.kv_heads - first_head);
        Packed {
            heads: first_head..first_head + heads,
            keys: Scratch::take(heads * self.key_values()),
            values: Scratch::take(heads * self.value_values()),
        }
    }

    /// The kv-blocks of a group that any live row needs; the room of the others stays as it is.
    fn to_pack<'p>(&self, packed: &'p mut Packed) -> impl Iterator<Item = Block<'p>> {
        let mut pieces = Vec::new();
        let (mut key_rest, mut value_rest) = (packed.keys.values_mut(), packed.values.values_mut());
        for kv_head in packed.heads.clone() {
            let needed = self.needed(kv_head);
            for block in 0..self.blocks.kv_blocks() {
                let tokens = length(&self.blocks.kv, block);
                let (keys, rest) = key_rest.split_at_mut(pack::packed_rows(tokens, self.head_dim));
                key_rest = rest;
                let (values, rest) = value_rest.split_at_mut(pack::packed_columns(tokens, self.head_dim));
                value_rest = rest;
                if needed.get(0, block) {
                    let first_token = kv_head * self.kv_tokens + self.blocks.kv[block] as usize;
                    pieces.push(Block { start: first_token * self.head_dim, tokens, keys, values });
                }
            }
        }
        pieces.into_iter()
    }

    fn pack(&self, block: Block<'_>) {
        let matrix = |tensor: TensorRef<'a>| Matrix {
            values: tensor.values(),
            start: block.start,
            stride: self.head_dim,
            rows: block.tokens,
            columns: self.head_dim,
        };
        pack::pack_rows(self.kernels, matrix(self.k), block.keys);
        pack::pack_columns(matrix(self.v), block.values);
    }

    fn worker(&self) -> Worker {
        let rows = (0..self.blocks.q_blocks()).map(|block| length(&self.blocks.q, block)).max().unwrap_or(0);
        let lengths = [rows * self.head_dim, rows * self.width, rows, rows * LANES, STRIP * (TILE + PANEL)];
        let len = lengths.iter().map(|len| len.next_multiple_of(PANEL)).sum();
        Worker { buffer: Scratch::take(len), tile: Vec::with_capacity(self.blocks.kv_blocks()) }
    }

    fn work<T: Store>(&self, worker: &mut Worker, item: Item<'_, T>, packed: &Packed) {
        if self.symbols.cache.get(item.head, item.q_block) {
            return self.attend(worker, item, packed);
        }
        if let Cached::Forecast(terms) = self.cached {
            let start = self.start(item.head, item.q_block);
            weighted_sum(terms, start, item.out);
        }
    }

    /// Index of the first value of a q-block.
    fn start(&self, head: usize, q_block: usize) -> usize {
        (head * self.q_tokens + self.blocks.q[q_block] as usize) * self.head_dim
    }

    fn attend<T: Store>(&self, worker: &mut Worker, item: Item<'_, T>, packed: &Packed) {
        let rows = length(&self.blocks.q, item.q_block);
        let Worker { buffer, tile } = worker;
        let mut rest = buffer.values_mut();
        let mut cut = |len: usize| -> &mut [f32] {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(PANEL));
            rest = after;
            &mut part[..len]
        };
        let mut state = State {
            queries: cut(rows * self.head_dim),
            output: cut(rows * self.width),
            max: cut(rows),
            sum: cut(rows * LANES),
            scores: cut(STRIP * (TILE + PANEL)),
        };
        state.max.fill(f32::NEG_INFINITY);
        state.sum.fill(0.0);
        let start = self.start(item.head, item.q_block);
        pack::convert_scaled(self.q.values(), start, self.scale, state.queries);

        let mut live = self.symbols.skip.ones_of_row(self.row(item.head, item.q_block)).peekable();
        // The first products replace what the buffer holds.
        let mut onto = Onto::Nothing;
        while live.peek().is_some() {
            tile.clear();
            let mut columns = 0;
            while let Some(&block) = live.peek() {
                let tokens = length(&self.blocks.kv, block);
                if columns + tokens.next_multiple_of(PANEL) > TILE {
                    break;
                }
                tile.push(Piece { block, column: columns, tokens });
                columns += tokens.next_multiple_of(PANEL);
                live.next();
            }
            self.tile(&mut state, &item, packed, tile, columns, onto);
            onto = Onto::Values;
        }
        self.finish(state, item);
    }

    /// One tile: the scores of a few kv-blocks, a step of the softmax, their products with the values.
    fn tile<T>(
        &self,
        state: &mut State<'_>,
        item: &Item<'_, T>,
        packed: &Packed,
        tile: &[Piece],
        columns: usize,
        onto: Onto,
    ) {
        let kv_head = item.head / self.group - packed.heads.start;
        let keys = &packed.keys.values()[kv_head * self.key_values()..];
        let values = &packed.values.values()[kv_head * self.value_values()..];
        // One line more than the tile is wide, so that rows do not share cache sets.
        let stride = columns + PANEL;
        let rows = state.max.len();
        for first in (0..rows).step_by(STRIP) {
            let strip = first..rows.min(first + STRIP);
            for piece in tile {
                let keys = &keys[self.padded[piece.block] * self.head_dim..];
                self.scores(state, &strip, keys, piece, stride);
                self.mask(state, &strip, item, piece, stride);
            }
            let output = &mut state.output[first * self.width..];
            let scores = RowsMut { values: state.scores, stride };
            let (max, sum) = (&mut state.max[strip.clone()], &mut state.sum[first * LANES..]);
            self.kernels.softmax(scores, columns, max, sum, RowsMut { values: output, stride: self.width }, self.width);
            let mut onto = onto;
            for piece in tile {
                let values = &values[self.blocks.kv[piece.block] as usize * self.width..];
                let weights = Rows { values: &state.scores[piece.column..], stride };
                for (index, panel) in values.chunks(piece.tokens * PANEL).take(self.width / PANEL).enumerate() {
                    let target = RowsMut { values: &mut output[index * PANEL..], stride: self.width };
                    self.kernels.multiply(strip.len(), weights, panel, piece.tokens, target, onto);
                }
                onto = Onto::Values;
            }
        }
    }

    fn scores(&self, state: &mut State<'_>, strip: &Range<usize>, keys: &[f32], piece: &Piece, stride: usize) {
        let queries = Rows { values: &state.queries[strip.start * self.head_dim..], stride: self.head_dim };
        for (index, panel) in keys.chunks(self.head_dim * PANEL).take(piece.tokens.div_ceil(PANEL)).enumerate() {
            let target = RowsMut { values: &mut state.scores[piece.column + index * PANEL..], stride };
            self.kernels.multiply(strip.len(), queries, panel, self.head_dim, target, Onto::Nothing);
        }
    }

    /// Takes padding and masked tokens out of the scores of a block.
    fn mask<T>(&self, state: &mut State<'_>, strip: &Range<usize>, item: &Item<'_, T>, piece: &Piece, stride: usize) {
        let padding = piece.tokens..piece.tokens.next_multiple_of(PANEL);
        let partial = self.symbols.partial.as_ref();
        let token_mask = partial.and_then(|partial| partial.tile(self.row(item.head, item.q_block), piece.block));
        if padding.is_empty() && token_mask.is_none() {
            return;
        }
        for (index, row) in strip.clone().enumerate() {
            let scores = &mut state.scores[index * stride + piece.column..][..padding.end];
            scores[padding.clone()].fill(f32::NEG_INFINITY);
            if let Some(token_mask) = token_mask {
                self.kernels.mask(&mut scores[..piece.tokens], token_mask.row(row));
            }
        }
    }

    /// Divides by the sums and rounds into the output.
    fn finish<T: Store>(&self, state: State<'_>, item: Item<'_, T>) {
        let mut lse = item.lse;
        let rows = item.out.chunks_exact_mut(self.head_dim).zip(state.output.chunks_exact_mut(self.width));
        for (row, (target, products)) in rows.enumerate() {
            let total: f32 = state.sum[row * LANES..(row + 1) * LANES].iter().sum();
            // NOTE: a NaN total is not empty; it must reach the output.
            let empty = total == 0.0;
            let products = &mut products[..self.head_dim];
            if empty {
                // Without a live block the buffer was never written.
                products.fill(0.0);
            }
            T::store_scaled(products, if empty { 0.0 } else { 1.0 / total }, target);
            if let Some(lse) = &mut lse {
                lse[row] = if empty { f32::NEG_INFINITY } else { (state.max[row] + total.log2()) * LN_2 };
            }
        }
    }
}

/// What an item computes with.
struct State<'w> {
    /// `[rows, head_dim]`, scaled.
    queries: &'w mut [f32],
    /// `[rows, width]`, not yet divided by the sums.
    output: &'w mut [f32],
    /// `[rows]`, base 2.
    max: &'w mut [f32],
    /// `[rows, 8]`.
    sum: &'w mut [f32],
    /// `[strip, columns + 16]`.
    scores: &'w mut [f32],
}
