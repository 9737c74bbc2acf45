//! Blocks that are too large for a kernel, cut into parts that have the symbols of the whole.

use std::borrow::Cow;

use super::{Blocks, Partial, Symbols};

/// How a block is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Into as few parts as possible, of nearly the same size.
    Even,
    /// Into full parts and a rest, so that regular blocks stay regular.
    Full,
}

/// Offsets of the parts of blocks, each of at most `most` tokens, and the block of each part.
#[must_use]
pub fn parts(offsets: &[u32], most: u32, how: Parts) -> (Vec<u32>, Vec<usize>) {
    let (mut cuts, mut block_of) = (vec![0], Vec::new());
    for (block, pair) in offsets.windows(2).enumerate() {
        let tokens = u64::from(pair[1] - pair[0]);
        let count = tokens.div_ceil(u64::from(most));
        for part in 1..=count {
            let end = match how {
                Parts::Even => tokens * part / count,
                Parts::Full => tokens.min(part * u64::from(most)),
            };
            cuts.push(pair[0] + end as u32);
            block_of.push(block);
        }
    }
    (cuts, block_of)
}

/// Whether some block has more than `most` tokens.
#[must_use]
pub fn is_larger(offsets: &[u32], most: u32) -> bool {
    offsets.windows(2).any(|pair| pair[1] - pair[0] > most)
}

/// Symbols over blocks of at most `most` tokens, the same as those given where all are.
///
/// The symbols must fit the blocks.
#[must_use]
pub fn cut<'a>(symbols: &'a Symbols, blocks: &'a Blocks, most: u32) -> (Cow<'a, Symbols>, Cow<'a, Blocks>) {
    if !is_larger(&blocks.q, most) && !is_larger(&blocks.kv, most) {
        return (Cow::Borrowed(symbols), Cow::Borrowed(blocks));
    }
    let (q, q_block_of) = parts(&blocks.q, most, Parts::Full);
    let (kv, kv_block_of) = parts(&blocks.kv, most, Parts::Full);
    let heads: Vec<usize> = (0..symbols.heads()).collect();
    let row_of: Vec<usize> =
        heads.iter().flat_map(|head| q_block_of.iter().map(move |block| head * symbols.q_blocks() + block)).collect();
    let cut = Blocks { q, kv };
    let partial = symbols.partial.as_ref().map(|partial| cut_masks(partial, blocks, &cut, &row_of, &kv_block_of));
    let symbols = Symbols {
        cache: symbols.cache.spread(&heads, &q_block_of),
        skip: symbols.skip.spread(&row_of, &kv_block_of),
        partial,
    };
    (Cow::Owned(symbols), Cow::Owned(cut))
}

/// Token masks of parts: pieces of those of the whole.
fn cut_masks(partial: &Partial, whole: &Blocks, cut: &Blocks, row_of: &[usize], kv_block_of: &[usize]) -> Partial {
    let bits = partial.bits.spread(row_of, kv_block_of);
    let (mut row_start, mut tile_of, mut tiles) = (vec![0], Vec::new(), Vec::new());
    let mut known = std::collections::HashMap::new();
    for (row, &whole_row) in row_of.iter().enumerate() {
        let q_part = row % cut.q_blocks();
        for kv_part in bits.ones_of_row(row) {
            let kv_block = kv_block_of[kv_part];
            let q_begin = cut.q[q_part] - whole.q[whole_row % whole.q_blocks()];
            let kv_begin = cut.kv[kv_part] - whole.kv[kv_block];
            let rows = (cut.q[q_part + 1] - cut.q[q_part]) as usize;
            let columns = (cut.kv[kv_part + 1] - cut.kv[kv_part]) as usize;
            let Some(tile) = partial.tile(whole_row, kv_block) else { continue };
            // Tiles are shared, and so are their pieces.
            let key = (std::ptr::from_ref(tile), q_begin, kv_begin, rows, columns);
            tile_of.push(*known.entry(key).or_insert_with(|| {
                let row_of: Vec<usize> = (q_begin as usize..).take(rows).collect();
                let column_of: Vec<usize> = (kv_begin as usize..).take(columns).collect();
                tiles.push(tile.spread(&row_of, &column_of));
                tiles.len() as u32 - 1
            }));
        }
        row_start.push(tile_of.len() as u32);
    }
    Partial { bits, row_start, tile_of, tiles }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::BitMatrix;

    #[test]
    fn parts_are_even_or_full() {
        assert_eq!(parts(&[0, 600, 610], 256, Parts::Even), (vec![0, 200, 400, 600, 610], vec![0, 0, 0, 1]));
        assert_eq!(parts(&[0, 256, 456], 128, Parts::Full), (vec![0, 128, 256, 384, 456], vec![0, 0, 1, 1]));
    }

    #[test]
    fn each_token_pair_keeps_its_symbol() {
        let blocks = Blocks { q: vec![0, 5, 7, 16], kv: vec![0, 3, 11] };
        let mut symbols = Symbols::dense(2, 3, 2);
        symbols.cache.set(0, 2, false);
        symbols.skip.set(4, 0, false);
        let mut bits = BitMatrix::zeros(6, 2);
        let mut tiles = Vec::new();
        for (row, column) in [(0, 1), (2, 0), (5, 1)] {
            bits.set(row, column, true);
            let sizes = [blocks.q[row % 3 + 1] - blocks.q[row % 3], blocks.kv[column + 1] - blocks.kv[column]];
            let mut tile = BitMatrix::zeros(sizes[0] as usize, sizes[1] as usize);
            (0..tile.rows()).for_each(|i| (0..tile.columns()).for_each(|j| tile.set(i, j, (i * 7 + j * row) % 3 == 0)));
            tiles.push(tile);
        }
        symbols.partial = Some(Partial { bits, row_start: vec![0, 1, 1, 2, 2, 2, 3], tile_of: vec![0, 1, 2], tiles });
        let (cut, parts) = cut(&symbols, &blocks, 4);
        assert_eq!(parts.q, [0, 4, 5, 7, 11, 15, 16]);
        assert_eq!(parts.kv, [0, 3, 7, 11]);
        for head in 0..2 {
            for q in 0..16 {
                for kv in 0..11 {
                    let wanted = pair(&symbols, &blocks, head, q, kv);
                    assert_eq!(pair(&cut, &parts, head, q, kv), wanted, "head {head}, tokens {q} and {kv}");
                }
            }
        }
    }

    /// Cache bit, skip bit, and bit of the token mask.
    fn pair(symbols: &Symbols, blocks: &Blocks, head: usize, q: u32, kv: u32) -> (bool, bool, bool) {
        let block = |offsets: &[u32], token: u32| offsets.partition_point(|&first| first <= token) - 1;
        let (q_block, kv_block) = (block(&blocks.q, q), block(&blocks.kv, kv));
        let row = head * blocks.q_blocks() + q_block;
        let tile = symbols.partial.as_ref().and_then(|partial| partial.tile(row, kv_block));
        let [i, j] = [q - blocks.q[q_block], kv - blocks.kv[kv_block]].map(|within| within as usize);
        (symbols.cache.get(head, q_block), symbols.skip.get(row, kv_block), tile.is_none_or(|tile| tile.get(i, j)))
    }
}
