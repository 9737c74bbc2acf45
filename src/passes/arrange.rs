//! Token orders, blocks, and what is known of each token.

use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Coordinate, Graph, Model, Order, OrderRule, Part, SetId, Side, ValueId};
use crate::plan::Arrangement;
use crate::symbols::Blocks;

/// The order of a model's tokens under an order rule: `order[new] = old`. `None` where nothing moves.
#[must_use]
pub fn token_order(graph: &Graph, model: &Model, rule: &OrderRule) -> Option<Vec<u32>> {
    let segment = match &rule.segment {
        Some(name) => model.segment(name)?,
        None => model.grid()?,
    };
    let sizes: Vec<u32> = segment.axes.iter().map(|(_, size)| *size).collect();
    // Digits of a mixed-radix number: which axis, divided or the remainder of its tile, how many values it has.
    let digits: Vec<(usize, u32, u32, u32)> = match &rule.order {
        Order::Axes(axes) => axes
            .iter()
            .filter_map(|&axis| position_of_axis(graph, segment, axis))
            .map(|axis| (axis, 1, sizes[axis], sizes[axis]))
            .collect(),
        Order::Tiles(tiles) => {
            let tiles = tile_sizes(graph, tiles);
            let tile = tiles.iter().enumerate().map(|(axis, &tile)| (axis, tile, u32::MAX, sizes[axis].div_ceil(tile)));
            let within = tiles.iter().enumerate().map(|(axis, &tile)| (axis, 1, tile, tile));
            tile.chain(within).collect()
        }
    };
    let strides = strides(&sizes);
    let mut keys: Vec<(u64, u32)> = (0..segment.tokens)
        .map(|index| {
            let key = digits.iter().fold(0_u64, |key, &(axis, divisor, modulus, radix)| {
                let at = index / strides[axis] % sizes[axis];
                key * u64::from(radix) + u64::from(at / divisor % modulus)
            });
            (key, index)
        })
        .collect();
    keys.sort_unstable();
    let start = segment.start;
    let mut order: Vec<u32> = (0..model.tokens()).collect();
    for (new, (_, old)) in keys.into_iter().enumerate() {
        order[start as usize + new] = start + old;
    }
    (!order.iter().enumerate().all(|(new, &old)| new == old as usize)).then_some(order)
}

/// The sizes of a tile, each at least 1.
#[must_use]
pub fn tile_sizes(graph: &Graph, tiles: &[ValueId]) -> Vec<u32> {
    let size = |&id: &ValueId| evaluate(graph, id, At::default(), &NoTokens).int().clamp(1, 1 << 20) as u32;
    tiles.iter().map(size).collect()
}

fn position_of_axis(graph: &Graph, segment: &crate::ir::Segment, axis: u8) -> Option<usize> {
    let name = graph.axes.get(usize::from(axis))?;
    segment.axes.iter().position(|(known, _)| known == name)
}

/// How far apart neighbours along each axis are, row-major.
fn strides(sizes: &[u32]) -> Vec<u32> {
    let mut strides = vec![1; sizes.len()];
    for axis in (1..sizes.len()).rev() {
        strides[axis - 1] = strides[axis] * sizes[axis];
    }
    strides
}

/// What is known of the tokens of an arrangement, in its order.
pub struct TokenTable<'a> {
    graph: &'a Graph,
    model: &'a Model,
    arrangement: &'a Arrangement,
    tiling: Option<(&'a str, Vec<u32>)>,
}

impl<'a> TokenTable<'a> {
    /// A table over an arrangement that came from `rule`.
    #[must_use]
    pub fn new(graph: &'a Graph, model: &'a Model, arrangement: &'a Arrangement, rule: Option<&'a OrderRule>) -> Self {
        let tiling = rule.and_then(|rule| match &rule.order {
            Order::Tiles(tiles) => {
                let segment = match &rule.segment {
                    Some(name) => model.segment(name),
                    None => model.grid(),
                };
                Some((segment?.name.as_str(), tile_sizes(graph, tiles)))
            }
            Order::Axes(_) => None,
        });
        TokenTable { graph, model, arrangement, tiling }
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.model.tokens() as usize
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &'a Blocks {
        &self.arrangement.blocks
    }

    fn offsets(&self, side: Side) -> &'a [u32] {
        match side {
            Side::Query => &self.arrangement.blocks.q,
            Side::Key => &self.arrangement.blocks.kv,
        }
    }

    /// A coordinate of every token, in the arrangement's order.
    #[must_use]
    pub fn coordinate(&self, coordinate: Coordinate, side: Side) -> Vec<f64> {
        match coordinate {
            Coordinate::Position => (0..self.tokens()).map(|position| position as f64).collect(),
            Coordinate::Block => {
                let offsets = self.offsets(side);
                let sizes = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
                sizes.enumerate().flat_map(|(block, size)| std::iter::repeat_n(block as f64, size)).collect()
            }
            Coordinate::Index => self.by_segment(|_| Some((1, u32::MAX, 1))),
            Coordinate::Axis(axis) => self.by_segment(|segment| {
                let (stride, size) = self.along(segment, position_of_axis(self.graph, segment, axis)?)?;
                Some((stride, size, 1))
            }),
            Coordinate::Tile(axis) => self.by_segment(|segment| {
                let (name, tiles) = self.tiling.as_ref()?;
                let axis = usize::from(axis);
                let (stride, size) = self.along(segment, axis).filter(|_| *name == segment.name)?;
                Some((stride, size, *tiles.get(axis)?))
            }),
        }
    }

    /// Stride and size of an axis of a segment.
    fn along(&self, segment: &crate::ir::Segment, axis: usize) -> Option<(u32, u32)> {
        let sizes: Vec<u32> = segment.axes.iter().map(|(_, size)| *size).collect();
        Some((*strides(&sizes).get(axis)?, *sizes.get(axis)?))
    }

    /// 1 for every token of a set, 0 for the others.
    #[must_use]
    pub fn in_set(&self, set: SetId) -> Vec<f64> {
        let parts: &[Part] = self.graph.parts(set);
        let mut model_order = vec![0.0; self.tokens()];
        for (start, end) in self.model.ranges(parts) {
            model_order[start as usize..end as usize].fill(1.0);
        }
        self.arranged(&model_order)
    }

    /// `index / stride % size / divisor` of every token, by what `of` says of its segment; 0 where it says nothing.
    fn by_segment(&self, of: impl Fn(&crate::ir::Segment) -> Option<(u32, u32, u32)>) -> Vec<f64> {
        let mut model_order = vec![0.0; self.tokens()];
        for segment in &self.model.segments {
            let Some((stride, size, divisor)) = of(segment) else { continue };
            for index in 0..segment.tokens {
                model_order[(segment.start + index) as usize] = f64::from(index / stride % size / divisor);
            }
        }
        self.arranged(&model_order)
    }

    fn arranged(&self, model_order: &[f64]) -> Vec<f64> {
        match &self.arrangement.order {
            None => model_order.to_vec(),
            Some(order) => order.iter().map(|&old| model_order[old as usize]).collect(),
        }
    }
}
