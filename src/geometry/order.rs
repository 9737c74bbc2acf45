//! Token orders: which token stands where.

use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Graph, Model, Order, OrderRule, Segment, ValueId};
use crate::plan::Tiling;

/// The order of a model's tokens under an order rule: `order[new] = old`. `None` where nothing moves.
#[must_use]
pub fn token_order(graph: &Graph, model: &Model, rule: &OrderRule) -> Option<Vec<u32>> {
    let segment = segment_of(model, rule)?;
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

/// The tiles of an order rule, where it has some.
#[must_use]
pub fn tiling(graph: &Graph, model: &Model, rule: &OrderRule) -> Option<Tiling> {
    let Order::Tiles(tiles) = &rule.order else { return None };
    let segment = segment_of(model, rule)?;
    Some(Tiling { segment: segment.name.clone(), sizes: tile_sizes(graph, tiles) })
}

fn segment_of<'a>(model: &'a Model, rule: &OrderRule) -> Option<&'a Segment> {
    match &rule.segment {
        Some(name) => model.segment(name),
        None => model.grid(),
    }
}

/// The sizes of a tile, each at least 1.
fn tile_sizes(graph: &Graph, tiles: &[ValueId]) -> Vec<u32> {
    let size = |&id: &ValueId| evaluate(graph, id, At::default(), &NoTokens).int().clamp(1, 1 << 20) as u32;
    tiles.iter().map(size).collect()
}

pub(super) fn position_of_axis(graph: &Graph, segment: &Segment, axis: u8) -> Option<usize> {
    let name = graph.axes.get(usize::from(axis))?;
    segment.axes.iter().position(|(known, _)| known == name)
}

/// How far apart neighbours along each axis are, row-major.
pub(super) fn strides(sizes: &[u32]) -> Vec<u32> {
    let mut strides = vec![1; sizes.len()];
    for axis in (1..sizes.len()).rev() {
        strides[axis - 1] = strides[axis] * sizes[axis];
    }
    strides
}
