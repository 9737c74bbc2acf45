//! Where the tokens of some heads stand while attention runs, and the blocks over them.

use std::sync::Arc;

use crate::plan::check::MAX_BLOCK_TOKENS;
use crate::plan::{Arrangement, HeadSymbols};
use crate::symbols::{BitMatrix, Blocks};

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
        let is_large = |offsets: &[u32]| offsets.windows(2).any(|pair| pair[1] - pair[0] > MAX_BLOCK_TOKENS);
        if !is_large(&self.blocks.q) && !is_large(&self.blocks.kv) {
            return (self, symbols);
        }
        let (q, q_parts) = parts(&self.blocks.q);
        let (kv, kv_parts) = parts(&self.blocks.kv);
        let spread = |bits: &BitMatrix, rows: &[usize], columns: &[usize]| {
            let mut all = BitMatrix::zeros(rows.len(), columns.len());
            for (row, &whole) in rows.iter().enumerate() {
                for (column, _) in
                    columns.iter().enumerate().filter(|(_, whole_column)| bits.get(whole, **whole_column))
                {
                    all.set(row, column, true);
                }
            }
            all
        };
        let symbols = HeadSymbols {
            skip: spread(&symbols.skip, &q_parts, &kv_parts),
            partial: symbols.partial.map(|partial| spread(&partial, &q_parts, &kv_parts)),
            cache: spread(&symbols.cache, &[0], &q_parts),
        };
        (Placement { blocks: Blocks { q, kv }, ..self }, symbols)
    }
}

/// Offsets of the parts of blocks, and the block of each part.
fn parts(offsets: &[u32]) -> (Vec<u32>, Vec<usize>) {
    let (mut cuts, mut block_of) = (vec![0], Vec::new());
    for (block, pair) in offsets.windows(2).enumerate() {
        let tokens = u64::from(pair[1] - pair[0]);
        let count = tokens.div_ceil(u64::from(MAX_BLOCK_TOKENS));
        for part in 1..=count {
            cuts.push(pair[0] + (tokens * part / count) as u32);
            block_of.push(block);
        }
    }
    (cuts, block_of)
}

#[cfg(test)]
mod tests {
    use super::*;

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
