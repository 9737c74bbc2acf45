//! Block values: what is known, what moves, and what lines become.

use super::super::params::{
    DiagonalsParams, GatherParams, LinesParams, MoveParams, OnDiagonalsParams, Run, TransposeParams,
};
use super::super::recipe::{Entry, blocks_for, striding_blocks};
use super::{Block, Lowering, broken, size, unavailable};
use crate::error::{Error, Result};
use crate::ir::{Binary, Extent, Grain, Op, Over, Reduction, Side, ValueId};

/// Side of the tiles that are transposed.
const TILE: usize = 32;
/// Numbers that are read and written at strides, for which a transposed copy would take longer.
const FEW_NUMBERS: u64 = 1 << 16;

impl Lowering<'_> {
    /// A value that is neither vectors nor a fused chain.
    pub(super) fn routine(&mut self, id: ValueId, op: &Op) -> Result<Block> {
        match op {
            Op::Start(value) => self.start(id, *value),
            Op::BlockTokens(side) => {
                let offsets = self.input.offsets(*side);
                let sizes: Vec<f32> = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as f32).collect();
                self.known(id, &sizes)
            }
            Op::Distances(set) => {
                let distances = self.input.elements_of(self.graph(), *set, Side::Key);
                let distances: Vec<f32> = distances.into_iter().map(|distance| distance as f32).collect();
                self.known(id, &distances)
            }
            Op::Mask(slot) => self.mask(id, *slot),
            Op::SelfSimilarity(side) => self.self_similarity(id, *side),
            Op::OverChannels { how, value } => self.over_channels(id, *how, *value),
            Op::AntiDiagonal { stride } => self.anti_diagonal(id, *stride),
            Op::Transpose(value) => Ok(self.view(*value)?.transposed()),
            Op::Slice { value, .. } => self.moved(id, *value, false),
            Op::Embed(value) => self.moved(id, *value, true),
            Op::Shift { value, by, over } => self.shifted(id, *value, *by, *over),
            Op::AtHead { value, head } => self.at_head(id, *value, *head),
            Op::OverHeads { how, value } => self.over_heads(id, *how, *value),
            Op::Gather { how, value, .. } => self.gathered(id, *how, *value),
            Op::Diagonals(value, _) => self.diagonals(id, *value),
            Op::OnDiagonals(value) => self.on_diagonals(id, *value),
            Op::Reduce { how, value, over } => self.reduced(id, *how, *value, *over),
            Op::Softmax { value, over } => self.over_lines(Entry::Softmax, id, *value, *over),
            Op::Select { .. } => self.selected(id, op),
            Op::Measured { name, .. } => Err(unavailable(format!("what the host measures (`{name}`)"))),
            _ => Err(unavailable(format!("{op:?}"))),
        }
    }

    /// A value that is known, the same for all heads.
    fn known<T: bytemuck::NoUninit>(&mut self, id: ValueId, values: &[T]) -> Result<Block> {
        let [q, kv] = self.sizes(id);
        let mut block = Block::dense(0, q, kv, size_of::<T>() == 1);
        if block.size() != values.len() as u64 {
            return Err(broken(id));
        }
        block.address = self.repeated(values);
        Ok(block)
    }

    fn start(&mut self, id: ValueId, value: ValueId) -> Result<Block> {
        let Extent::Vectors(side, set) = self.graph().ty(value).extent else { return Err(broken(id)) };
        let offsets = self.input.offsets(side);
        let of_blocks = self.graph().grain(set) == Grain::Blocks;
        let elements = self.input.elements_of(self.graph(), set, side).into_iter();
        let first: Vec<f32> = elements.map(|e| (if of_blocks { offsets[e as usize] } else { e }) as f32).collect();
        self.known(id, &first)
    }

    fn mask(&mut self, id: ValueId, slot: u16) -> Result<Block> {
        let Some(mask) = self.setup.masks.get(usize::from(slot)) else {
            let given = self.setup.masks.len();
            return Err(Error::Shape(format!("the selector program asks for mask {slot}, {given} were given")));
        };
        let rows = if self.axes(id).contains(&None) { 1 } else { mask.rows() };
        let bits: Vec<u8> =
            (0..rows).flat_map(|row| (0..mask.columns()).map(move |column| u8::from(mask.get(row, column)))).collect();
        self.known(id, &bits)
    }

    /// Writes some matrices to an array of its own with rows and columns exchanged. Their columns lie together.
    pub(super) fn transpose(&mut self, from: Block, out: u64, matrices: u32) -> Result<()> {
        let tiles = from.rows().div_ceil(TILE) as u64 * from.columns().div_ceil(TILE) as u64;
        let [matrix_stride, row_stride, _] = from.strides;
        let (rows, columns) = (size(from.rows())?, size(from.columns())?);
        let (address, row_stride, bytes) = (from.address, size(row_stride as usize)?, from.bytes());
        let params = TransposeParams { from: address, out, matrix_stride, row_stride, rows, columns, bytes };
        self.recipe.launch(Entry::Transpose, tiles, matrices, &params);
        Ok(())
    }

    /// The elements as an array of its own.
    pub(super) fn dense(&mut self, view: Block) -> Result<Block> {
        if view.is_dense() {
            return Ok(view);
        }
        let out = self.room_for(view)?;
        self.copy(view, &out)?;
        Ok(out)
    }

    /// Writes the elements of a view to an array of its own.
    fn copy(&mut self, view: Block, out: &Block) -> Result<()> {
        if view.rows() > 1 && view.columns() > 1 && view.strides[1] == 1 {
            let heads = self.head_count();
            return self.transpose(view.transposed(), out.address, heads);
        }
        let params = Self::move_params(&view, out)?;
        self.launch_move(&params, Vec::new());
        Ok(())
    }

    /// A move from one value to another with their sizes.
    fn move_params(from: &Block, out: &Block) -> Result<MoveParams> {
        let [head_stride, row_stride, column_stride] = from.strides;
        Ok(MoveParams {
            from: from.address,
            out: out.address,
            head_stride,
            row_stride: size(row_stride as usize)?,
            column_stride: size(column_stride as usize)?,
            in_rows: size(from.rows())?,
            in_columns: size(from.columns())?,
            rows: size(out.rows())?,
            columns: size(out.columns())?,
            bytes: from.bytes(),
            ..MoveParams::default()
        })
    }

    fn launch_move(&mut self, params: &MoveParams, uniforms: Vec<(usize, u64)>) {
        let elements = u64::from(params.rows) * u64::from(params.columns);
        let heads = self.head_count();
        let launched = striding_blocks(elements, Entry::Move.threads());
        self.recipe.launch(Entry::Move, launched, heads, params).uniforms = uniforms;
    }

    /// Where the elements of `id`'s sets are in the value, along both axes.
    fn places(&self, value: ValueId, id: ValueId) -> [Vec<Option<usize>>; 2] {
        let axes = [value, id].map(|id| self.axes(id));
        [(Side::Query, 0), (Side::Key, 1)]
            .map(|(side, axis)| self.input.places(self.graph(), side, axes[0][axis], axes[1][axis]))
    }

    /// The same as tables of rows and columns, 0 where all elements are in place.
    pub(super) fn tables(&mut self, value: ValueId, id: ValueId) -> [u64; 2] {
        self.places(value, id).map(|places| self.table(&places))
    }

    fn table(&mut self, places: &[Option<usize>]) -> u64 {
        if run_of(places) == Some(0) {
            return 0;
        }
        let places: Vec<i32> = places.iter().map(|place| place.map_or(-1, |place| place as i32)).collect();
        self.recipe.constant(&places)
    }

    /// The elements of `id`'s sets; those that the value lacks are false where that may be. Runs of rows and columns are a part of the
    /// value's array.
    fn moved(&mut self, id: ValueId, value: ValueId, may_lack: bool) -> Result<Block> {
        let from = self.view(value)?;
        let places = self.places(value, id);
        if !may_lack && places.iter().flatten().any(Option::is_none) {
            return Err(Error::State("a slice of the selector program asks for blocks its operand lacks".into()));
        }
        if let [Some(row), Some(column)] = places.each_ref().map(|places| run_of(places)) {
            let [q, kv] = self.sizes(id);
            let first = row as u64 * from.strides[1] + column as u64 * from.strides[2];
            return Ok(Block { address: from.address + first * u64::from(from.bytes()), q, kv, ..from });
        }
        let out = self.block_room(id)?;
        let mut params = Self::move_params(&from, &out)?;
        [params.row_of, params.column_of] = places.map(|places| self.table(&places));
        self.launch_move(&params, Vec::new());
        Ok(out)
    }

    fn shifted(&mut self, id: ValueId, value: ValueId, by: ValueId, over: Side) -> Result<Block> {
        let from = self.view(value)?;
        let out = self.block_room(id)?;
        let mut params = Self::move_params(&from, &out)?;
        params.shifts_columns = u32::from(over == Side::Key);
        let shift = self.recipe.uniforms.shift(by);
        self.launch_move(&params, vec![(std::mem::offset_of!(MoveParams, shift), shift)]);
        Ok(out)
    }

    fn at_head(&mut self, id: ValueId, value: ValueId, head: ValueId) -> Result<Block> {
        let from = self.view(value)?;
        let out = self.block_room(id)?;
        let params = Self::move_params(&from, &out)?;
        let head = self.recipe.uniforms.head(head);
        self.launch_move(&params, vec![(std::mem::offset_of!(MoveParams, in_heads), head)]);
        Ok(out)
    }

    /// The elements of all heads, those of one place together: `[size][heads]`.
    pub(super) fn heads_together(&mut self, view: Block) -> Result<u64> {
        let block = self.dense(view)?;
        let (heads, elements) = (self.heads.len(), size(block.size() as usize)? as usize);
        let together = self.floats(block.size());
        self.transpose(Block::dense(block.address, Some(heads), Some(elements), false), together, 1)?;
        Ok(together)
    }

    fn over_heads(&mut self, id: ValueId, how: Reduction, value: ValueId) -> Result<Block> {
        let from = self.view(value)?;
        let (elements, heads) = (from.size() as usize, self.heads.len());
        let together = self.heads_together(from)?;
        let one = Block::dense(self.recipe.room(from.size() * 4), from.q, from.kv, false);
        // As if all were of one head.
        let all = Block::dense(together, Some(elements), Some(heads), false);
        self.lines_of_heads(Entry::Reduce, &all, &one, how as u32, 1)?;
        let out = self.block_room(id)?;
        let mut params = Self::move_params(&one, &out)?;
        params.in_heads = self.recipe.constant(&vec![0_u32; heads]);
        self.launch_move(&params, Vec::new());
        Ok(out)
    }

    fn gathered(&mut self, id: ValueId, how: Reduction, value: ValueId) -> Result<Block> {
        let from = self.block(value)?;
        let out = self.block_room(id)?;
        let axes = [value, id].map(|id| self.axes(id));
        let mut runs = |side: Side, axis: usize| {
            let runs = self.input.runs(self.graph(), side, axes[0][axis], axes[1][axis]).into_iter();
            let runs: Vec<Run> = runs.map(|run| Run { start: run.start as u32, end: run.end as u32 }).collect();
            self.recipe.constant(&runs)
        };
        let params = GatherParams {
            from: from.address,
            out: out.address,
            row_runs: runs(Side::Query, 0),
            column_runs: runs(Side::Key, 1),
            in_rows: size(from.rows())?,
            in_columns: size(from.columns())?,
            rows: size(out.rows())?,
            columns: size(out.columns())?,
            how: how as u32,
            is_bool: u32::from(from.is_bool),
        };
        let heads = self.head_count();
        let launched = blocks_for(out.size() * 32, Entry::Gather.threads());
        self.recipe.launch(Entry::Gather, launched, heads, &params);
        Ok(out)
    }

    fn diagonals(&mut self, id: ValueId, value: ValueId) -> Result<Block> {
        let from = self.block(value)?;
        let Some(set) = self.axes(value)[0] else { return Err(broken(id)) };
        let queries = self.input.elements_of(self.graph(), set, Side::Query);
        let queries = self.recipe.constant(&queries);
        let out = self.block_room(id)?;
        let params = DiagonalsParams {
            value: from.address,
            out: out.address,
            queries,
            rows: size(from.rows())?,
            keys: size(from.columns())?,
            distances: size(out.columns())?,
            reserved: 0,
        };
        let heads = self.head_count();
        let launched = blocks_for(out.size(), Entry::Diagonals.threads());
        self.recipe.launch(Entry::Diagonals, launched, heads, &params);
        Ok(out)
    }

    fn on_diagonals(&mut self, id: ValueId, value: ValueId) -> Result<Block> {
        let chosen = self.block(value)?;
        let out = self.block_room(id)?;
        let params = OnDiagonalsParams {
            chosen: chosen.address,
            out: out.address,
            q_start: self.offsets_of(Side::Query),
            kv_start: self.offsets_of(Side::Key),
            q_blocks: size(out.rows())?,
            kv_blocks: size(out.columns())?,
            distances: size(chosen.columns())?,
            reserved: 0,
        };
        let heads = self.head_count();
        let launched = blocks_for(out.size(), Entry::OnDiagonals.threads());
        self.recipe.launch(Entry::OnDiagonals, launched, heads, &params);
        Ok(out)
    }

    /// A kernel that takes rows as lines; reductions give a number of each to an array of its own.
    pub(super) fn lines(&mut self, entry: Entry, rows: &Block, out: &Block, how: u32) -> Result<()> {
        self.lines_of_heads(entry, rows, out, how, self.heads.len())
    }

    fn lines_of_heads(&mut self, entry: Entry, rows: &Block, out: &Block, how: u32, heads: usize) -> Result<()> {
        let stride = |stride: u64| size(stride as usize);
        let lines = size(rows.rows() * heads)?;
        let params = LinesParams {
            value: rows.address,
            out: out.address,
            head_stride: rows.strides[0],
            line_stride: stride(rows.strides[1])?,
            step: stride(rows.strides[2])?,
            out_head_stride: out.strides[0],
            out_line_stride: stride(out.strides[1])?,
            out_step: stride(out.strides[2])?,
            lines,
            lines_of_head: size(rows.rows())?,
            length: size(rows.columns())?,
            how,
        };
        self.recipe.launch(entry, blocks_for(u64::from(lines) * 32, entry.threads()), 1, &params);
        Ok(())
    }

    /// A value whose lines are rows.
    pub(super) fn lines_of(&mut self, view: Block, over: Over) -> Result<Block> {
        Ok(match over {
            Over::Key => view,
            Over::Query => view.transposed(),
            Over::Both | Over::Layer | Over::Heads => {
                let block = self.dense(view)?;
                Block::dense(block.address, Some(1), Some(block.size() as usize), block.is_bool)
            }
        })
    }

    /// Whether lines are worth a copy in which the numbers of each lie together.
    fn are_far_apart(&self, lines: &Block) -> bool {
        let numbers = lines.size() * u64::from(self.head_count());
        lines.columns() > 1 && lines.strides[2] != 1 && numbers > FEW_NUMBERS
    }

    /// Lines as rows whose numbers are read fast.
    fn read_lines_of(&mut self, view: Block, over: Over) -> Result<Block> {
        let lines = self.lines_of(view, over)?;
        if self.are_far_apart(&lines) { self.dense(lines) } else { Ok(lines) }
    }

    fn reduced(&mut self, id: ValueId, how: Reduction, value: ValueId, over: Over) -> Result<Block> {
        let lines = self.read_lines_of(self.view(value)?, over)?;
        let out = self.block_room(id)?;
        self.lines(Entry::Reduce, &lines, &out, how as u32)?;
        Ok(out)
    }

    /// Softmax or shares: a number for each.
    pub(super) fn over_lines(&mut self, entry: Entry, id: ValueId, value: ValueId, over: Over) -> Result<Block> {
        let lines = self.read_lines_of(self.view(value)?, over)?;
        let out = self.block_room(id)?;
        let out_lines = self.lines_of(out, over)?;
        if self.are_far_apart(&out_lines) {
            let shares = self.room_for(lines)?;
            self.lines(entry, &lines, &shares, 0)?;
            self.copy(shares.transposed(), &out)?;
        } else {
            self.lines(entry, &lines, &out_lines, 0)?;
        }
        Ok(out)
    }

    /// A value over the sum of its line, where nothing else uses this sum: the value, and along what.
    pub(super) fn share(&self, id: ValueId) -> Option<(ValueId, Over)> {
        self.maps.iter().find(|map| map.root == id && map.body.len() == 1)?;
        let Op::Binary(Binary::Divide, a, b) = *self.graph().op(id) else { return None };
        match *self.graph().op(b) {
            Op::Reduce { how: Reduction::Sum, value, over: over @ (Over::Key | Over::Query | Over::Both) }
                if value == a && self.users(b).eq([id]) =>
            {
                Some((a, over))
            }
            _ => None,
        }
    }

    /// Sums that only shares need have no launch of their own.
    pub(super) fn dissolve_sums(&mut self) {
        let shares = self.live.iter().filter(|&&id| self.share(id).is_some());
        let sums = shares.filter_map(|&id| self.graph().op(id).operands().get(1).copied()).collect::<Vec<_>>();
        self.dissolved.extend(sums);
    }
}

/// The first place, where all follow one another.
fn run_of(places: &[Option<usize>]) -> Option<usize> {
    let first = places.first().copied().flatten()?;
    places.iter().enumerate().all(|(index, place)| *place == Some(first + index)).then_some(first)
}
