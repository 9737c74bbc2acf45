//! What is known of each token of an arrangement: its coordinates and the sets it is in.

use super::order::{position_of_axis, strides};
use crate::ir::{Coordinate, Graph, Model, Part, Segment, SetId, Side};
use crate::plan::Arrangement;
use crate::symbols::Blocks;

/// What is known of the tokens of an arrangement, in its order.
pub struct TokenTable<'a> {
    graph: &'a Graph,
    model: &'a Model,
    arrangement: &'a Arrangement,
}

impl<'a> TokenTable<'a> {
    /// A table over an arrangement; `graph` gives axes and sets their names.
    #[must_use]
    pub fn new(graph: &'a Graph, model: &'a Model, arrangement: &'a Arrangement) -> Self {
        TokenTable { graph, model, arrangement }
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
                let tiling = self.arrangement.tiling.as_ref().filter(|tiling| tiling.segment == segment.name)?;
                let axis = usize::from(axis);
                let (stride, size) = self.along(segment, axis)?;
                Some((stride, size, *tiling.sizes.get(axis)?))
            }),
        }
    }

    /// Stride and size of an axis of a segment.
    fn along(&self, segment: &Segment, axis: usize) -> Option<(u32, u32)> {
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
    fn by_segment(&self, of: impl Fn(&Segment) -> Option<(u32, u32, u32)>) -> Vec<f64> {
        let mut model_order = vec![0.0; self.tokens()];
        for segment in &self.model.segments {
            let Some((stride, size, divisor)) = of(segment) else { continue };
            let tokens = &mut model_order[segment.start as usize..][..segment.tokens as usize];
            for (index, run) in (0_u32..).zip(tokens.chunks_mut(stride.max(1) as usize)) {
                run.fill(f64::from(index % size / divisor));
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
