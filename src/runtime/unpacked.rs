//! Symbols as plain bytes, for files and comparisons.

use super::LayerSymbols;
use crate::error::{Error, Result};
use crate::symbols::Symbols;

/// The symbols of a layer, one byte a bit, and what its token masks say of every pair of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of heads, q-blocks and kv-blocks.
    pub shape: [usize; 3],
    /// `S_c`: `[heads, q_blocks]`.
    pub cache: Vec<u8>,
    /// `S_s`: `[heads, q_blocks, kv_blocks]`.
    pub skip: Vec<u8>,
    /// `S_p`: `[heads, q_blocks, kv_blocks]`.
    pub partial: Vec<u8>,
}

impl LayerSymbols {
    /// The symbols of all heads, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] when heads have different numbers of blocks.
    pub fn unpack(&self) -> Result<Unpacked> {
        let heads: usize = self.groups.iter().map(|group| group.heads.len()).sum();
        let size = |symbols: &Symbols| [symbols.q_blocks(), symbols.kv_blocks()];
        let Some([q_blocks, kv_blocks]) = self.groups.first().map(|group| size(&group.symbols)) else {
            return Err(Error::Shape("a layer without heads has no symbols".to_owned()));
        };
        if self.groups.iter().any(|group| size(&group.symbols) != [q_blocks, kv_blocks]) {
            return Err(Error::Shape("the heads of this layer have different numbers of blocks".to_owned()));
        }
        let area = q_blocks * kv_blocks;
        let mut unpacked = Unpacked {
            shape: [heads, q_blocks, kv_blocks],
            cache: vec![0; heads * q_blocks],
            skip: vec![0; heads * area],
            partial: vec![0; heads * area],
        };
        for group in &self.groups {
            for (position, &head) in group.heads.iter().enumerate() {
                for row in 0..q_blocks {
                    let at = head as usize * q_blocks + row;
                    unpacked.cache[at] = u8::from(group.symbols.cache.get(position, row));
                    let bits = position * q_blocks + row;
                    for column in group.symbols.skip.ones_of_row(bits) {
                        unpacked.skip[at * kv_blocks + column] = 1;
                    }
                    for column in group.symbols.partial.iter().flat_map(|partial| partial.bits.ones_of_row(bits)) {
                        unpacked.partial[at * kv_blocks + column] = 1;
                    }
                }
            }
        }
        Ok(unpacked)
    }

    /// Which keys each query token attends to, blocks and token masks together: `[heads, tokens, ceil(tokens / 8)]`, least
    /// significant bit first, tokens in the model's order.
    ///
    /// All groups are over the same tokens.
    #[must_use]
    pub fn token_bits(&self) -> Vec<u8> {
        let tokens =
            self.groups.first().and_then(|group| group.placement.blocks.q.last()).map_or(0, |&end| end as usize);
        let row_bytes = tokens.div_ceil(8);
        let heads: usize = self.groups.iter().map(|group| group.heads.len()).sum();
        let mut bits = vec![0; heads * tokens * row_bytes];
        for group in &self.groups {
            let (placement, symbols) = (&group.placement, &group.symbols);
            let blocks = &placement.blocks;
            for (position, &head) in group.heads.iter().enumerate() {
                for q_block in 0..symbols.q_blocks() {
                    let row = position * symbols.q_blocks() + q_block;
                    for kv_block in symbols.skip.ones_of_row(row) {
                        let tile = symbols.partial.as_ref().and_then(|partial| partial.tile(row, kv_block));
                        for query in blocks.q[q_block]..blocks.q[q_block + 1] {
                            let row = head as usize * tokens + placement.query(query) as usize;
                            let line = &mut bits[row * row_bytes..][..row_bytes];
                            for key in blocks.kv[kv_block]..blocks.kv[kv_block + 1] {
                                let within = (query - blocks.q[q_block], key - blocks.kv[kv_block]);
                                if tile.is_none_or(|tile| tile.get(within.0 as usize, within.1 as usize)) {
                                    let key = placement.key(key) as usize;
                                    line[key / 8] |= 1 << (key % 8);
                                }
                            }
                        }
                    }
                }
            }
        }
        bits
    }
}
