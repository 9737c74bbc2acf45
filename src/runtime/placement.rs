//! Where the tokens of some heads stand while attention runs, and the blocks over them.

use std::sync::Arc;

use crate::plan::check::MAX_BLOCK_TOKENS;
use crate::plan::{Arrangement, HeadSymbols};
use crate::symbols::Blocks;
use crate::symbols::cut::{Parts, is_larger, parts};

/// Where the tokens of some heads stand: `order[new] = old`, `None` for the model's own order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Order of the queries.
    pub q_order: Option<Arc<[u32]>>,
    /// Order of the keys and values.
    pub kv_order: Option<Arc<[u32]>>,
    /// The blocks over both.
    pub blocks: Blocks,
}

impl Placement {
    /// The query token of the model that stands at a place.
    #[must_use]
    pub fn query(&self, place: u32) -> u32 {
        self.q_order.as_ref().map_or(place, |order| order[place as usize])
    }

    /// The key token of the model that stands at a place.
    #[must_use]
    pub fn key(&self, place: u32) -> u32 {
        self.kv_order.as_ref().map_or(place, |order| order[place as usize])
    }

    /// That of an arrangement whose blocks are known.
    pub(super) fn of(arrangement: &Arrangement) -> Self {
        let order: Option<Arc<[u32]>> = arrangement.order.as_deref().map(Arc::from);
        Placement { q_order: order.clone(), kv_order: order, blocks: arrangement.blocks.clone() }
    }

    /// Cuts blocks that are too large for a kernel into parts of nearly the same size, which have the symbols of the whole.
    pub(super) fn cut(self, symbols: HeadSymbols) -> (Self, HeadSymbols) {
        if !is_larger(&self.blocks.q, MAX_BLOCK_TOKENS) && !is_larger(&self.blocks.kv, MAX_BLOCK_TOKENS) {
            return (self, symbols);
        }
        let (q, q_block_of) = parts(&self.blocks.q, MAX_BLOCK_TOKENS, Parts::Even);
        let (kv, kv_block_of) = parts(&self.blocks.kv, MAX_BLOCK_TOKENS, Parts::Even);
        let symbols = HeadSymbols {
            skip: symbols.skip.spread(&q_block_of, &kv_block_of),
            partial: symbols.partial.map(|partial| partial.spread(&q_block_of, &kv_block_of)),
            cache: symbols.cache.spread(&[0], &q_block_of),
        };
        (Placement { blocks: Blocks { q, kv }, ..self }, symbols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::BitMatrix;

    #[test]
    fn parts_have_the_symbols_of_the_whole() {
        let blocks = Blocks { q: vec![0, 600, 610], kv: vec![0, 10, 267, 610] };
        let mut skip = BitMatrix::zeros(2, 3);
        for (row, column) in [(0, 1), (1, 0), (1, 2)] {
            skip.set(row, column, true);
        }
        let whole = HeadSymbols { skip, partial: None, cache: BitMatrix::ones(1, 2) };
        let (placement, cut) = Placement { q_order: None, kv_order: None, blocks }.cut(whole);
        assert_eq!(placement.blocks, Blocks { q: vec![0, 200, 400, 600, 610], kv: vec![0, 10, 138, 267, 438, 610] });
        let rows: Vec<Vec<usize>> = (0..4).map(|row| cut.skip.ones_of_row(row).collect()).collect();
        assert_eq!(rows, [vec![1, 2], vec![1, 2], vec![1, 2], vec![0, 3, 4]]);
        assert_eq!(cut.cache, BitMatrix::ones(1, 4));
    }
}
