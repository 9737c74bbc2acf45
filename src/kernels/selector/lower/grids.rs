//! Block values: what is known, what moves, and what lines become.

use super::super::params::{
    DiagonalsParams, GatherParams, LinesParams, MoveParams, OnDiagonalsParams, Run, TransposeParams,
};
use super::super::recipe::{Entry, blocks_for, striding_blocks};
use super::{Block, Lowering, broken, size, unavailable};
use crate::error::{Error, Result};
use crate::ir::{Extent, Grain, Op, Over, Reduction, Side, ValueId};

/// Side of the tiles that are transposed.
const TILE: usize = 32;

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
            Op::Transpose(value) => self.transposed(id, *value),
            Op::Slice { value, .. } => self.moved(id, *value, false),
            Op::Embed(value) => self.moved(id, *value, true),
            Op::Shift { value, by, over } => self.shifted(id, *value, *by, *over),
            Op::AtHead { value, head } => self.at_head(id, *value, *head),
            Op::OverHeads { how, value } => self.over_heads(id, *how, *value),
            Op::Gather { how, value, .. } => self.gathered(id, *how, *value),
            Op::Diagonals(value, _) => self.diagonals(id, *value),
            Op::OnDiagonals(value) => self.on_diagonals(id, *value),
            Op::Reduce { how, value, over } => self.reduced(id, *how, *value, *over),
            Op::Softmax { value, over } => self.softmax(id, *value, *over),
            Op::Select { .. } => self.selected(id, op),
            Op::Measured { name, .. } => Err(unavailable(format!("what the host measures (`{name}`)"))),
            _ => Err(unavailable(format!("{op:?}"))),
        }
    }

    /// A value that is known, the same for all heads.
    fn known<T: bytemuck::NoUninit>(&mut self, id: ValueId, values: &[T]) -> Result<Block> {
        let [q, kv] = self.sizes(id);
        let mut block = Block { address: 0, q, kv, is_bool: size_of::<T>() == 1 };
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

    /// Matrices of all heads with rows and columns exchanged, at another place.
    pub(super) fn transpose(
        &mut self,
        from: u64,
        out: u64,
        [rows, columns]: [usize; 2],
        bytes: u32,
        matrices: u32,
    ) -> Result<()> {
        let tiles = rows.div_ceil(TILE) as u64 * columns.div_ceil(TILE) as u64;
        let params = TransposeParams { from, out, rows: size(rows)?, columns: size(columns)?, bytes, reserved: 0 };
        self.recipe.launch(Entry::Transpose, tiles, matrices, &params);
        Ok(())
    }

    fn transposed(&mut self, id: ValueId, value: ValueId) -> Result<Block> {
        let block = self.block(value)?;
        if block.rows() == 1 || block.columns() == 1 {
            return Ok(Block { q: block.kv, kv: block.q, ..block });
        }
        let out = self.block_room(id)?;
        let heads = self.head_count();
        self.transpose(block.address, out.address, [block.rows(), block.columns()], block.bytes(), heads)?;
        Ok(out)
    }

    /// A move from one value to another with their sizes.
    fn move_params(from: &Block, out: &Block) -> Result<MoveParams> {
        Ok(MoveParams {
            from: from.address,
            out: out.address,
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

    /// The elements of `id`'s sets; those that the value lacks are false where that may be.
    fn moved(&mut self, id: ValueId, value: ValueId, may_lack: bool) -> Result<Block> {
        let from = self.block(value)?;
        let out = self.block_room(id)?;
        let mut params = Self::move_params(&from, &out)?;
        let axes = [value, id].map(|id| self.axes(id));
        let mut table = |side: Side, axis: usize, known: usize| -> Result<u64> {
            let places = self.input.places(self.graph(), side, axes[0][axis], axes[1][axis]);
            if !may_lack && places.contains(&None) {
                return Err(Error::State("a slice of the selector program asks for blocks its operand lacks".into()));
            }
            if places.len() == known && places.iter().enumerate().all(|(index, place)| *place == Some(index)) {
                return Ok(0);
            }
            let places: Vec<i32> = places.into_iter().map(|place| place.map_or(-1, |place| place as i32)).collect();
            Ok(self.recipe.constant(&places))
        };
        params.row_of = table(Side::Query, 0, from.rows())?;
        params.column_of = table(Side::Key, 1, from.columns())?;
        if (params.row_of, params.column_of) == (0, 0) {
            return Ok(Block { address: from.address, ..out });
        }
        self.launch_move(&params, Vec::new());
        Ok(out)
    }

    fn shifted(&mut self, id: ValueId, value: ValueId, by: ValueId, over: Side) -> Result<Block> {
        let from = self.block(value)?;
        let out = self.block_room(id)?;
        let mut params = Self::move_params(&from, &out)?;
        params.shifts_columns = u32::from(over == Side::Key);
        let shift = self.recipe.uniforms.shift(by);
        self.launch_move(&params, vec![(std::mem::offset_of!(MoveParams, shift), shift)]);
        Ok(out)
    }

    fn at_head(&mut self, id: ValueId, value: ValueId, head: ValueId) -> Result<Block> {
        let from = self.block(value)?;
        let out = self.block_room(id)?;
        let params = Self::move_params(&from, &out)?;
        let head = self.recipe.uniforms.head(head);
        self.launch_move(&params, vec![(std::mem::offset_of!(MoveParams, in_heads), head)]);
        Ok(out)
    }

    /// The elements of all heads, those of one place together: `[size][heads]`.
    pub(super) fn heads_together(&mut self, block: &Block) -> Result<u64> {
        let heads = self.heads.len();
        let together = self.floats(block.size());
        self.transpose(block.address, together, [heads, size(block.size() as usize)? as usize], 4, 1)?;
        Ok(together)
    }

    fn over_heads(&mut self, id: ValueId, how: Reduction, value: ValueId) -> Result<Block> {
        let from = self.block(value)?;
        let (elements, heads) = (from.size() as usize, self.heads.len());
        let together = self.heads_together(&from)?;
        let one = self.recipe.room(from.size() * 4);
        self.lines(Entry::Reduce, together, one, elements, heads, how as u32)?;
        let out = self.block_room(id)?;
        let mut params = Self::move_params(&Block { address: one, ..from }, &out)?;
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

    /// A kernel that takes rows as lines.
    pub(super) fn lines(
        &mut self,
        entry: Entry,
        value: u64,
        out: u64,
        lines: usize,
        length: usize,
        how: u32,
    ) -> Result<()> {
        let lines = size(lines)?;
        let params = LinesParams { value, out, lines, length: size(length)?, how, reserved: 0 };
        self.recipe.launch(entry, blocks_for(u64::from(lines) * 32, entry.threads()), 1, &params);
        Ok(())
    }

    /// A value whose lines are rows: their address, number in a head and length, and whether it was transposed for it.
    pub(super) fn rows_of(&mut self, block: &Block, over: Over) -> Result<(u64, usize, usize, bool)> {
        let (rows, columns) = (block.rows(), block.columns());
        Ok(match over {
            Over::Key => (block.address, rows, columns, false),
            Over::Query if columns == 1 => (block.address, 1, rows, false),
            Over::Query => {
                let turned = self.floats(block.size());
                let heads = self.head_count();
                self.transpose(block.address, turned, [rows, columns], 4, heads)?;
                (turned, columns, rows, true)
            }
            Over::Both | Over::Layer | Over::Heads => (block.address, 1, rows * columns, false),
        })
    }

    fn reduced(&mut self, id: ValueId, how: Reduction, value: ValueId, over: Over) -> Result<Block> {
        let from = self.block(value)?;
        let (address, lines, length, _) = self.rows_of(&from, over)?;
        let out = self.block_room(id)?;
        self.lines(Entry::Reduce, address, out.address, lines * self.heads.len(), length, how as u32)?;
        Ok(out)
    }

    fn softmax(&mut self, id: ValueId, value: ValueId, over: Over) -> Result<Block> {
        let from = self.block(value)?;
        let (address, lines, length, is_turned) = self.rows_of(&from, over)?;
        let out = self.block_room(id)?;
        let target = if is_turned { self.floats(from.size()) } else { out.address };
        self.lines(Entry::Softmax, address, target, lines * self.heads.len(), length, 0)?;
        if is_turned {
            let heads = self.head_count();
            self.transpose(target, out.address, [lines, length], 4, heads)?;
        }
        Ok(out)
    }
}
