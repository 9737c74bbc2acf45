//! Vectors of tokens and of blocks, and what numbers they give.

use super::super::params::{
    CentreParams, DotParams, EachParams, GroupSumsParams, LinesParams, MAX_SIDES, MoveParams, PoolParams, PooledSide,
    ScaleParams, SimilarityParams, Tokens, VectorsParams,
};
use super::super::recipe::{Entry, blocks_for, striding_blocks};
use super::{Block, Lowering, Pooled, Value, broken, size, unavailable};
use crate::error::Result;
use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Binary, Extent, Op, Reduction, SetId, Side, Source, Statistic, Unary, ValueId};

/// Most channels of the kernel that finds cosines.
const MOST_CHANNELS: u32 = 256;
/// Most tokens of a block of the same.
const MOST_TOKENS: u32 = 256;
/// Channels of a thread of the pooling kernel.
const POOLED_CHANNELS: u32 = 4;
/// Tiles of 32 x 32 products below which smaller ones are used: less than three for each multiprocessor of a large device.
const FEW_TILES: u64 = 400;

/// An operand as `Operand` in `params.cuh` numbers it.
const VECTORS: u32 = 0;
const NUMBERS: u32 = 1;
const UNIFORM: u32 = 2;

/// A value that is another one divided by or multiplied with a scalar.
#[derive(Clone, Copy)]
struct Scaled {
    root: ValueId,
    by: ValueId,
    multiplies: bool,
}

impl Lowering<'_> {
    /// The address of vectors.
    pub(super) fn vectors_of(&mut self, id: ValueId, op: &Op, count: usize) -> Result<u64> {
        match op {
            Op::Pool(statistic, source) => self.pool(*statistic, *source),
            Op::Each(source, set) => {
                let places = self.input.elements_of(self.graph(), *set, source.side());
                let places = self.recipe.constant(&places);
                self.each(*source, places, count, 1, false)
            }
            Op::Spread(value, set) => self.spread(id, *value, *set),
            Op::Unary(op, a) => {
                let code = match op {
                    Unary::Negate => 0,
                    Unary::Abs => 1,
                    _ => return Err(broken(id)),
                };
                self.on_channels(code, *a, *a, count)
            }
            Op::Binary(op, a, b) => {
                let code = match op {
                    Binary::Add => 2,
                    Binary::Subtract => 3,
                    Binary::Multiply => 4,
                    Binary::Divide => 5,
                    Binary::Min => 6,
                    Binary::Max => 7,
                    _ => return Err(broken(id)),
                };
                self.on_channels(code, *a, *b, count)
            }
            _ => Err(unavailable(format!("{op:?}"))),
        }
    }

    /// The tensor of a source but for where it lies, which each run says.
    fn tokens(&self) -> Tokens {
        Tokens { heads: self.head_list, order: self.order, dim: self.dim(), ..Tokens::default() }
    }

    /// All statistics that the program asks for are found at once, when the first is.
    fn pool(&mut self, statistic: Statistic, source: Source) -> Result<u64> {
        let all = match self.pooled {
            Some(pooled) => pooled,
            None => self.pool_all(),
        };
        self.pooled = Some(all);
        let pooled = Source::ALL.iter().zip(all).find(|(one, _)| **one == source).map(|(_, pooled)| pooled);
        let pooled = pooled.unwrap_or_default();
        match statistic {
            Statistic::Mean => Ok(pooled.mean),
            Statistic::Min => Ok(pooled.least),
            Statistic::Max => Ok(pooled.most),
            Statistic::CentredMean => {
                let blocks = size(self.input.offsets(source.side()).len() - 1)?;
                let (dim, heads) = (self.dim(), self.head_count());
                let out = self.floats(u64::from(blocks) * u64::from(dim));
                let params = CentreParams {
                    mean: pooled.mean,
                    sum: pooled.sum,
                    out,
                    blocks,
                    dim,
                    tokens: self.setup.model.tokens(),
                    reserved: 0,
                };
                let launched = blocks_for(dim.into(), Entry::Centre.threads());
                self.recipe.launch(Entry::Centre, launched, heads, &params);
                Ok(out)
            }
        }
    }

    fn pool_all(&mut self) -> [Pooled; MAX_SIDES] {
        let heads = self.head_count();
        let mut params = PoolParams { status: self.recipe.status, heads, ..PoolParams::default() };
        let mut sources = Vec::new();
        let all = Source::ALL.map(|source| {
            let (side, pooled) = self.pooled_side(source)?;
            let place = std::mem::offset_of!(PoolParams, sides) + sources.len() * size_of::<PooledSide>();
            params.sides[sources.len()] = side;
            sources.push((place, source));
            Some(pooled)
        });
        let most = params.sides.iter().map(|side| side.blocks).max().unwrap_or(0);
        let items = u64::from(most) * u64::from(self.dim().div_ceil(POOLED_CHANNELS));
        let launched = blocks_for(items, Entry::Pool.threads());
        let all_heads = heads * sources.len() as u32;
        self.recipe.launch(Entry::Pool, launched, all_heads, &params).sources = sources;
        all.map(Option::unwrap_or_default)
    }

    /// A source's part of the launch that pools, `None` where the program pools nothing of it.
    fn pooled_side(&mut self, source: Source) -> Option<(PooledSide, Pooled)> {
        let wants = |wanted: &[Statistic]| {
            self.live.iter().any(
                |&id| matches!(self.graph().op(id), Op::Pool(found, own) if *own == source && wanted.contains(found)),
            )
        };
        let wanted = [
            wants(&[Statistic::Mean, Statistic::CentredMean]),
            wants(&[Statistic::CentredMean]),
            wants(&[Statistic::Min]),
            wants(&[Statistic::Max]),
        ];
        if !wanted.contains(&true) {
            return None;
        }
        let blocks = self.input.offsets(source.side()).len() as u32 - 1;
        let each = u64::from(blocks) * u64::from(self.dim());
        let [mean, sum, least, most] = wanted.map(|wanted| if wanted { self.floats(each) } else { 0 });
        let (tokens, offsets) = (self.tokens(), self.offsets_of(source.side()));
        let side = PooledSide { tokens, offsets, mean, sum, least, most, blocks, reserved: 0 };
        Some((side, Pooled { mean, sum, least, most }))
    }

    /// Tokens at given places, or where `places` is 0 groups of `stride` tokens.
    fn each(&mut self, source: Source, places: u64, count: usize, stride: u32, is_reversed: bool) -> Result<u64> {
        let (heads, count) = (self.head_count(), size(count)?);
        let numbers = u64::from(count) * u64::from(stride) * u64::from(self.dim());
        let out = self.floats(numbers);
        let params = EachParams {
            tokens: self.tokens(),
            places,
            out,
            status: self.recipe.status,
            count,
            stride,
            is_reversed: u32::from(is_reversed),
            available: self.setup.model.tokens(),
        };
        let launched = striding_blocks(numbers, Entry::Each.threads());
        self.recipe.launch(Entry::Each, launched, heads, &params).sources = vec![(0, source)];
        Ok(out)
    }

    fn spread(&mut self, id: ValueId, value: ValueId, set: SetId) -> Result<u64> {
        let Extent::Vectors(side, from) = self.graph().ty(value).extent else { return Err(broken(id)) };
        let places = self.input.places(self.graph(), side, Some(from), Some(set)).into_iter();
        let places: Option<Vec<i32>> = places.map(|place| place.map(|place| place as i32)).collect();
        let places = places.ok_or_else(|| broken(id))?;
        let ((address, count), dim) = (self.vectors(value)?, self.dim());
        let numbers = places.len() as u64 * u64::from(dim);
        let out = self.floats(numbers);
        let params = MoveParams {
            from: address,
            out,
            row_of: self.recipe.constant(&places),
            head_stride: count as u64 * u64::from(dim),
            row_stride: dim,
            column_stride: 1,
            in_rows: size(count)?,
            in_columns: dim,
            rows: size(places.len())?,
            columns: dim,
            bytes: 4,
            ..MoveParams::default()
        };
        let heads = self.head_count();
        self.recipe.launch(Entry::Move, striding_blocks(numbers, Entry::Move.threads()), heads, &params);
        Ok(out)
    }

    fn on_channels(&mut self, op: u32, a: ValueId, b: ValueId, count: usize) -> Result<u64> {
        let mut uniforms = Vec::new();
        let mut operand = |lowering: &mut Self, id: ValueId, place: usize| -> Result<(u64, u32)> {
            Ok(match lowering.graph().ty(id).extent {
                Extent::Scalar => {
                    uniforms.push((place, lowering.recipe.uniforms.reals(&[id])));
                    (0, UNIFORM)
                }
                Extent::Blocks { .. } => (lowering.block(id)?.address, NUMBERS),
                _ => (lowering.vectors(id)?.0, VECTORS),
            })
        };
        let (a, a_is) = operand(self, a, std::mem::offset_of!(VectorsParams, a))?;
        let (b, b_is) = operand(self, b, std::mem::offset_of!(VectorsParams, b))?;
        let (heads, dim) = (self.head_count(), self.dim());
        let numbers = count as u64 * u64::from(dim);
        let out = self.floats(numbers);
        let params = VectorsParams { a, b, out, a_is, b_is, op, elements: size(count)?, dim, reserved: 0 };
        let launched = striding_blocks(numbers, Entry::Vectors.threads());
        self.recipe.launch(Entry::Vectors, launched, heads, &params).uniforms = uniforms;
        Ok(out)
    }

    /// Dot products. Where they are only divided by or multiplied with a number of the head, these are what is computed, in the same launch.
    pub(super) fn dot(&mut self, id: ValueId, a: ValueId, b: ValueId) -> Result<Option<Block>> {
        let ((a, rows), (b, columns)) = (self.vectors(a)?, self.vectors(b)?);
        let scaled = self.only_scaled(id);
        let out = self.block_room(scaled.map_or(id, |scaled| scaled.root))?;
        let step = self.products(a, b, out.address, [rows, columns], self.dim())?;
        let Some(Scaled { root, by, multiplies }) = scaled else { return Ok(Some(out)) };
        let place = self.recipe.uniforms.reals(&[by]);
        let step = &mut self.recipe.steps[step];
        step.uniforms.push((std::mem::offset_of!(DotParams, by), place));
        let multiplies = u32::from(multiplies).to_le_bytes();
        step.params[std::mem::offset_of!(DotParams, multiplies)..][..4].copy_from_slice(&multiplies);
        self.values[root.0 as usize] = Some(Value::Block(out));
        Ok(None)
    }

    /// Whether nothing but one chain uses a value, and this only divides or multiplies it by a number of the head.
    fn only_scaled(&self, id: ValueId) -> Option<Scaled> {
        let mut users = self.users(id);
        let (root, None) = (users.next()?, users.next()) else { return None };
        let map = self.maps.iter().find(|map| map.root == root && map.body.len() == 1)?;
        let (&[by], &[false]) = (&map.uniforms[..], &map.uniform_is_bool[..]) else { return None };
        match *self.graph().op(root) {
            Op::Binary(Binary::Divide, a, b) if (a, b) == (id, by) => Some(Scaled { root, by, multiplies: false }),
            Op::Binary(Binary::Multiply, a, b) if (a, b) == (id, by) || (b, a) == (id, by) => {
                Some(Scaled { root, by, multiplies: true })
            }
            _ => None,
        }
    }

    /// The index of the launch.
    fn products(&mut self, a: u64, b: u64, out: u64, [rows, columns]: [usize; 2], dim: u32) -> Result<usize> {
        // The kernel counts the numbers of a head's vectors in 32 bits.
        size(rows.max(columns).saturating_mul(dim as usize))?;
        let (rows, columns, heads) = (size(rows)?, size(columns)?, self.head_count());
        let tiles = |tile: u32| u64::from(rows.div_ceil(tile)) * u64::from(columns.div_ceil(tile));
        let (entry, launched) = match tiles(32) {
            large if large * u64::from(heads) >= FEW_TILES => (Entry::Dot, large),
            _ => (Entry::DotSmall, tiles(16)),
        };
        let params = DotParams { a, b, out, rows, columns, dim, ..DotParams::default() };
        self.recipe.launch(entry, launched, heads, &params);
        Ok(self.recipe.steps.len() - 1)
    }

    pub(super) fn over_channels(&mut self, id: ValueId, how: Reduction, value: ValueId) -> Result<Block> {
        let (address, count) = self.vectors(value)?;
        let out = self.block_room(id)?;
        let lines = size(count * self.heads.len())?;
        let (length, how) = (self.dim(), how as u32);
        let params = LinesParams { value: address, out: out.address, lines, length, how, ..LinesParams::default() };
        let launched = blocks_for(lines.into(), Entry::OverChannels.threads());
        self.recipe.launch(Entry::OverChannels, launched, 1, &params);
        Ok(out)
    }

    pub(super) fn self_similarity(&mut self, id: ValueId, side: Side) -> Result<Block> {
        let offsets = self.input.offsets(side);
        if self.dim() > MOST_CHANNELS || offsets.windows(2).any(|pair| pair[1] - pair[0] > MOST_TOKENS) {
            return Err(unavailable(format!("the cosines of blocks of more than {MOST_TOKENS} tokens or channels")));
        }
        let out = self.block_room(id)?;
        let (blocks, heads) = (size(offsets.len() - 1)?, self.head_count());
        let params = SimilarityParams {
            tokens: self.tokens(),
            offsets: self.offsets_of(side),
            out: out.address,
            status: self.recipe.status,
            blocks,
            reserved: 0,
        };
        self.recipe.launch(Entry::Similarity, blocks.into(), heads, &params).sources = vec![(0, side.source())];
        Ok(out)
    }

    /// Groups of tokens as long vectors, their products as those of any vectors, and sums over blocks.
    pub(super) fn anti_diagonal(&mut self, id: ValueId, stride: ValueId) -> Result<Block> {
        let stride = self.stride(stride)?;
        let (dim, heads) = (self.dim(), self.head_count());
        let groups = (self.setup.model.tokens() as usize).div_ceil(stride as usize);
        let q = self.each(Source::Query, 0, groups, stride, true)?;
        let k = self.each(Source::Key, 0, groups, stride, false)?;
        let scores = self.floats(groups as u64 * groups as u64);
        self.products(q, k, scores, [groups; 2], stride.saturating_mul(dim))?;
        let count = groups as u64 * groups as u64 * u64::from(heads);
        let params = ScaleParams { value: scores, count, first: (dim as f32).sqrt(), second: stride as f32 };
        self.recipe.launch(Entry::Scale, striding_blocks(count, Entry::Scale.threads()), 1, &params);
        let shares = self.floats(groups as u64 * groups as u64);
        let [scores, shares] = [scores, shares].map(|address| Block::dense(address, Some(groups), Some(groups), false));
        self.lines(Entry::Softmax, &scores, &shares, 0)?;
        let [q_start, kv_start] = [Side::Query, Side::Key].map(|side| {
            let first = |&offset: &u32| (offset as usize).div_ceil(stride as usize).min(groups) as u32;
            let starts: Vec<u32> = self.input.offsets(side).iter().map(first).collect();
            self.recipe.constant(&starts)
        });
        let out = self.block_room(id)?;
        let groups = size(groups)?;
        let params = GroupSumsParams {
            value: shares.address,
            out: out.address,
            q_start,
            kv_start,
            q_blocks: size(out.rows())?,
            kv_blocks: size(out.columns())?,
            q_groups: groups,
            kv_groups: groups,
        };
        let launched = blocks_for(out.size() * 32, Entry::GroupSums.threads());
        self.recipe.launch(Entry::GroupSums, launched, heads, &params);
        Ok(out)
    }

    /// The tokens of a group, the same at all places.
    fn stride(&self, id: ValueId) -> Result<u32> {
        let at = |&(step, layer): &(u32, u32), &head: &u32| At { step, layer, head, ..At::default() };
        let places = self.setup.places.iter().flat_map(|place| self.heads.iter().map(move |head| at(place, head)));
        let mut strides = places.map(|at| evaluate(self.graph(), id, at, &NoTokens).int().max(1));
        let first = strides.next().unwrap_or(1);
        if strides.any(|stride| stride != first) {
            return Err(unavailable("a stride that differs between steps, layers or heads"));
        }
        let most = u64::from(self.setup.model.tokens()) * u64::from(self.dim());
        let stride = u64::try_from(first).unwrap_or(1).min(most.max(1));
        u32::try_from(stride).map_err(|_| unavailable(format!("a stride of {stride}")))
    }
}
