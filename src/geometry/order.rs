//! Token orders: which token stands where.

use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Blocking, Graph, Model, Order, OrderRule, Segment, ValueId};
use crate::plan::{Clustering, Tiling};
use crate::symbols::Blocks;

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
        Order::Gilbert => return placed(model, segment, &gilbert(&sizes)),
        Order::Given(table) => {
            let table = &graph.tables[usize::from(*table)];
            let order: Vec<u32> = table.values.iter().map(|&old| old as u32).collect();
            return placed(model, segment, &order);
        }
        // Known at run time; until then tokens stay where they are.
        Order::Clusters { .. } => return None,
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
    let order: Vec<u32> = keys.into_iter().map(|(_, old)| old).collect();
    placed(model, segment, &order)
}

/// The order of all tokens where those of a segment are ordered among themselves.
fn placed(model: &Model, segment: &Segment, within: &[u32]) -> Option<Vec<u32>> {
    let start = segment.start;
    let mut order: Vec<u32> = (0..model.tokens()).collect();
    for (target, old) in order[start as usize..].iter_mut().zip(within) {
        *target = start + old;
    }
    (!order.iter().enumerate().all(|(new, &old)| new == old as usize)).then_some(order)
}

/// The blocks where each tile is one; other segments are cut into runs of a whole tile's size.
fn tile_blocks(graph: &Graph, model: &Model, orders: &[OrderRule]) -> Blocks {
    let tiling = orders.iter().find_map(|rule| tiling(graph, model, rule));
    let whole = tiling.as_ref().map_or(128, |tiling| tiling.sizes.iter().product::<u32>().clamp(1, 256));
    let mut offsets = vec![0];
    for segment in &model.segments {
        let tiles = tiling.as_ref().filter(|tiling| tiling.segment == segment.name);
        let sizes = match tiles {
            Some(tiling) => tile_tokens(segment, &tiling.sizes),
            None => (0..segment.tokens).step_by(whole as usize).map(|at| whole.min(segment.tokens - at)).collect(),
        };
        let mut end = segment.start;
        for size in sizes {
            end += size;
            offsets.push(end);
        }
    }
    Blocks { q: offsets.clone(), kv: offsets }
}

/// Tokens of each tile of a segment, tiles row-major.
fn tile_tokens(segment: &Segment, tiles: &[u32]) -> Vec<u32> {
    let mut tokens = vec![1];
    for ((_, size), &tile) in segment.axes.iter().zip(tiles) {
        let along: Vec<u32> = (0..*size).step_by(tile as usize).map(|at| tile.min(size - at)).collect();
        tokens = tokens.iter().flat_map(|&so_far| along.iter().map(move |&more| so_far * more)).collect();
    }
    tokens
}

/// Rounds of k-means at most.
pub const MAX_ROUNDS: u32 = 1000;

type Vector = [i64; 3];

/// The places of a grid of three axes, row-major indices, along a generalised Hilbert curve.
///
/// A box is spanned by three edges; the curve enters at its corner and leaves at the end of the first edge. Boxes are cut
/// along their edges until one place wide, halves of even length where there is a choice.
fn gilbert(sizes: &[u32]) -> Vec<u32> {
    // The last axis varies fastest, so it is the x axis of the curve.
    let [depth, height, width] = [0, 1, 2].map(|axis| i64::from(sizes.get(axis).copied().unwrap_or(1)));
    let (x, y, z) = ([width, 0, 0], [0, height, 0], [0, 0, depth]);
    let mut places = Vec::new();
    if width >= height && width >= depth {
        walk([0; 3], x, y, z, &mut places);
    } else if height >= width && height >= depth {
        walk([0; 3], y, x, z, &mut places);
    } else {
        walk([0; 3], z, x, y, &mut places);
    }
    places.iter().map(|[x, y, z]| ((z * height + y) * width + x) as u32).collect()
}

fn walk(at: Vector, a: Vector, b: Vector, c: Vector, places: &mut Vec<Vector>) {
    let add = |u: Vector, v: Vector| [u[0] + v[0], u[1] + v[1], u[2] + v[2]];
    let subtract = |u: Vector, v: Vector| [u[0] - v[0], u[1] - v[1], u[2] - v[2]];
    let negate = |u: Vector| u.map(|x| -x);
    let length = |u: Vector| u.iter().sum::<i64>().abs();
    let unit = |u: Vector| u.map(i64::signum);
    let (w, h, d) = (length(a), length(b), length(c));
    for (edge, steps, others) in [(a, w, [h, d]), (b, h, [w, d]), (c, d, [w, h])] {
        if others == [1, 1] {
            places.extend((0..steps).map(|i| add(at, unit(edge).map(|x| x * i))));
            return;
        }
    }
    let half = |edge: Vector, whole: i64| {
        let half = edge.map(|x| x.div_euclid(2));
        if length(half) % 2 != 0 && whole > 2 { add(half, unit(edge)) } else { half }
    };
    let (a2, b2, c2) = (half(a, w), half(b, h), half(c, d));
    let (da, db, dc) = (unit(a), unit(b), unit(c));
    if 2 * w > 3 * h && 2 * w > 3 * d {
        walk(at, a2, b, c, places);
        walk(add(at, a2), subtract(a, a2), b, c, places);
    } else if 3 * h > 4 * d {
        walk(at, b2, c, a2, places);
        walk(add(at, b2), a, subtract(b, b2), c, places);
        let corner = add(at, add(subtract(a, da), subtract(b2, db)));
        walk(corner, negate(b2), c, negate(subtract(a, a2)), places);
    } else if 3 * d > 4 * h {
        walk(at, c2, a2, b, places);
        walk(add(at, c2), a, b, subtract(c, c2), places);
        let corner = add(at, add(subtract(a, da), subtract(c2, dc)));
        walk(corner, negate(c2), negate(subtract(a, a2)), b, places);
    } else {
        walk(at, b2, c2, a2, places);
        walk(add(at, b2), c, a2, subtract(b, b2), places);
        let corner = add(at, add(subtract(b2, db), subtract(c, dc)));
        walk(corner, a, negate(b2), negate(subtract(c, c2)), places);
        let corner = add(at, add(subtract(a, da), add(b2, subtract(c, dc))));
        walk(corner, negate(c), negate(subtract(a, a2)), subtract(b, b2), places);
        let corner = add(at, add(subtract(a, da), subtract(b2, db)));
        walk(corner, negate(b2), c2, negate(subtract(a, a2)), places);
    }
}

/// The tiles of an order rule, where it has some.
#[must_use]
pub fn tiling(graph: &Graph, model: &Model, rule: &OrderRule) -> Option<Tiling> {
    let Order::Tiles(tiles) = &rule.order else { return None };
    let segment = segment_of(model, rule)?;
    Some(Tiling { segment: segment.name.clone(), sizes: tile_sizes(graph, tiles) })
}

/// The blocks of a strategy; its sizes where neither tiles nor clusters are blocks.
#[must_use]
pub fn blocks(
    graph: &Graph,
    model: &Model,
    orders: &[OrderRule],
    blocking: Option<Blocking>,
    sizes: [usize; 2],
) -> Blocks {
    if blocking == Some(Blocking::Tiles) {
        return tile_blocks(graph, model, orders);
    }
    if let Some(clustering) = orders.iter().find_map(|rule| clustering(graph, model, rule)) {
        return cluster_blocks(model, &clustering, sizes);
    }
    let tokens = model.tokens() as usize;
    Blocks::regular(tokens, tokens, sizes[0], sizes[1])
}

/// The clusters of an order rule, where it has some. Numbers are at least 1.
#[must_use]
pub fn clustering(graph: &Graph, model: &Model, rule: &OrderRule) -> Option<Clustering> {
    let Order::Clusters { q, kv, iterations, again, by } = rule.order else { return None };
    let segment = segment_of(model, rule)?;
    let number = |id, most: u32| evaluate(graph, id, At::default(), &NoTokens).int().clamp(1, i64::from(most)) as u32;
    Some(Clustering {
        segment: segment.name.clone(),
        q: number(q, segment.tokens),
        kv: number(kv, segment.tokens),
        iterations: number(iterations, MAX_ROUNDS),
        again: number(again, MAX_ROUNDS),
        by,
    })
}

/// Blocks where each cluster is one, of nearly the same size as long as nothing is known of them; other segments are cut into
/// blocks of their own.
fn cluster_blocks(model: &Model, clustering: &Clustering, [block_q, block_kv]: [usize; 2]) -> Blocks {
    let cut = |clusters: u32, block: usize| {
        let mut offsets = vec![0];
        for segment in &model.segments {
            let (tokens, block) = (u64::from(segment.tokens), block as u64);
            let cuts: Vec<u64> = match segment.name == clustering.segment {
                true => (1..=u64::from(clusters)).map(|cluster| tokens * cluster / u64::from(clusters)).collect(),
                false => (1..=tokens.div_ceil(block)).map(|index| tokens.min(index * block)).collect(),
            };
            offsets.extend(cuts.into_iter().map(|at| segment.start + at as u32));
        }
        offsets
    };
    Blocks { q: cut(clustering.q, block_q), kv: cut(clustering.kv, block_kv) }
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
