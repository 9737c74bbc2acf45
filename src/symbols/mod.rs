//! Sparse symbols: the bitmaps that every strategy is normalised into.
//!
//! Bits are least significant first. A [`BitMatrix`] pads each row to a multiple of 64 bits with zeros, so
//! that a kernel reads rows as little-endian `u64` words and walks them with find-first-set.
//!
//! | symbol | rows | columns | 1 | 0 |
//! |---|---|---|---|---|
//! | `S_c` | head | q-block | compute | take the cached feature |
//! | `S_s` | head, q-block | kv-block | compute | skip |
//! | `S_p` | head, q-block | kv-block | computed under a token mask | whole block |
//!
//! # Source
//! FlashOmni, arXiv 2509.25401, section 3; the layout is ours, [`interchange`] converts to the published one.

pub mod cut;
pub mod draw;
pub mod interchange;
pub mod statistics;

use std::borrow::Cow;

/// A matrix of bits whose rows start at word boundaries.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BitMatrix {
    rows: usize,
    columns: usize,
    words: Vec<u64>,
}

impl BitMatrix {
    /// A matrix of zeros.
    #[must_use]
    pub fn zeros(rows: usize, columns: usize) -> Self {
        BitMatrix { rows, columns, words: vec![0; rows * columns.div_ceil(64)] }
    }

    /// A matrix of ones (padding stays zero).
    #[must_use]
    pub fn ones(rows: usize, columns: usize) -> Self {
        let mut matrix = BitMatrix { rows, columns, words: vec![u64::MAX; rows * columns.div_ceil(64)] };
        matrix.clear_padding();
        matrix
    }

    /// A matrix over words that are already laid out; bits in the padding are cleared.
    /// `None` when the number of words is not `rows * ceil(columns / 64)`.
    #[must_use]
    pub fn from_words(rows: usize, columns: usize, words: Vec<u64>) -> Option<Self> {
        if rows.checked_mul(columns.div_ceil(64)) != Some(words.len()) {
            return None;
        }
        let mut matrix = BitMatrix { rows, columns, words };
        matrix.clear_padding();
        Some(matrix)
    }

    /// Matrices of `columns` columns below each other.
    #[must_use]
    pub fn stacked<'a>(parts: impl IntoIterator<Item = &'a BitMatrix>, columns: usize) -> Self {
        let mut all = BitMatrix::zeros(0, columns);
        for part in parts {
            assert_eq!(columns, part.columns, "bit matrices of one width");
            all.rows += part.rows;
            all.words.extend_from_slice(&part.words);
        }
        all
    }

    fn clear_padding(&mut self) {
        let used = self.columns % 64;
        if used != 0 {
            let stride = self.words_per_row();
            for row in self.words.chunks_exact_mut(stride) {
                row[stride - 1] &= (1 << used) - 1;
            }
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, without padding.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Words of one row, padding included.
    #[must_use]
    pub fn words_per_row(&self) -> usize {
        self.columns.div_ceil(64)
    }

    /// All words, row after row.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words of one row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u64] {
        let stride = self.words_per_row();
        &self.words[row * stride..(row + 1) * stride]
    }

    /// The words of one row, to write. Bits beyond [`BitMatrix::columns`] must stay zero.
    #[must_use]
    pub fn row_mut(&mut self, row: usize) -> &mut [u64] {
        let stride = self.words_per_row();
        &mut self.words[row * stride..(row + 1) * stride]
    }

    /// One bit.
    #[must_use]
    pub fn get(&self, row: usize, column: usize) -> bool {
        debug_assert!(row < self.rows && column < self.columns);
        self.words[row * self.words_per_row() + column / 64] >> (column % 64) & 1 == 1
    }

    /// Sets one bit.
    pub fn set(&mut self, row: usize, column: usize, value: bool) {
        debug_assert!(row < self.rows && column < self.columns);
        let word = row * self.words_per_row() + column / 64;
        let bit = 1_u64 << (column % 64);
        if value {
            self.words[word] |= bit;
        } else {
            self.words[word] &= !bit;
        }
    }

    /// The columns of the ones of a row, ascending.
    pub fn ones_of_row(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.row(row).iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |rest| {
                let next = rest & (rest - 1);
                (next != 0).then_some(next)
            })
            .map(move |rest| index * 64 + rest.trailing_zeros() as usize)
        })
    }

    /// Number of ones.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Number of ones of a row.
    #[must_use]
    pub fn count_row(&self, row: usize) -> usize {
        self.row(row).iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The matrix whose bit at `(i, j)` is the one here at `(rows[i], columns[j])`.
    #[must_use]
    pub fn spread(&self, rows: &[usize], columns: &[usize]) -> BitMatrix {
        let mut all = BitMatrix::zeros(rows.len(), columns.len());
        for (row, &from) in rows.iter().enumerate() {
            for (column, _) in columns.iter().enumerate().filter(|(_, column)| self.get(from, **column)) {
                all.set(row, column, true);
            }
        }
        all
    }

    /// `self |= other`. Both have one shape.
    pub fn union(&mut self, other: &BitMatrix) {
        self.combine(other, |a, b| a | b);
    }

    /// `self &= other`. Both have one shape.
    pub fn intersect(&mut self, other: &BitMatrix) {
        self.combine(other, |a, b| a & b);
    }

    /// `self &= !other`. Both have one shape.
    pub fn subtract(&mut self, other: &BitMatrix) {
        self.combine(other, |a, b| a & !b);
    }

    fn combine(&mut self, other: &BitMatrix, op: impl Fn(u64, u64) -> u64) {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns), "bit matrices of one shape");
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a = op(*a, *b);
        }
    }
}

/// Where the blocks of a (reordered) sequence begin.
///
/// Block `b` of the queries covers the positions `q[b]..q[b + 1]`, block `b` of the keys `kv[b]..kv[b + 1]`;
/// the first offset is 0, the last the number of tokens. Blocks may differ in size (a last partial block,
/// border tiles); none is empty or larger than 256 tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Blocks {
    /// Offsets of the q-blocks, ascending, `q_blocks + 1` of them.
    pub q: Vec<u32>,
    /// Offsets of the kv-blocks, ascending, `kv_blocks + 1` of them.
    pub kv: Vec<u32>,
}

impl Blocks {
    /// Blocks of `block_q` and `block_kv` tokens over `q_tokens` and `kv_tokens`; the last may be smaller.
    #[must_use]
    pub fn regular(q_tokens: usize, kv_tokens: usize, block_q: usize, block_kv: usize) -> Self {
        let offsets = |tokens: usize, block: usize| -> Vec<u32> {
            (0..tokens.div_ceil(block)).map(|b| (b * block) as u32).chain([tokens as u32]).collect()
        };
        Blocks { q: offsets(q_tokens, block_q), kv: offsets(kv_tokens, block_kv) }
    }

    /// Number of q-blocks.
    #[must_use]
    pub fn q_blocks(&self) -> usize {
        self.q.len() - 1
    }

    /// Number of kv-blocks.
    #[must_use]
    pub fn kv_blocks(&self) -> usize {
        self.kv.len() - 1
    }
}

/// The symbols of one attention layer at one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbols {
    /// `S_c`: `[heads]` rows, `[q_blocks]` columns.
    pub cache: BitMatrix,
    /// `S_s`: `[heads * q_blocks]` rows, `[kv_blocks]` columns.
    pub skip: BitMatrix,
    /// `S_p` and its token masks; `None` where every block is whole.
    pub partial: Option<Partial>,
}

impl Symbols {
    /// Symbols that compute everything.
    #[must_use]
    pub fn dense(heads: usize, q_blocks: usize, kv_blocks: usize) -> Self {
        Symbols {
            cache: BitMatrix::ones(heads, q_blocks),
            skip: BitMatrix::ones(heads * q_blocks, kv_blocks),
            partial: None,
        }
    }

    /// The symbols of several groups of heads over the same blocks, below each other.
    ///
    /// `None` without groups.
    #[must_use]
    pub fn stacked(groups: &[&Symbols]) -> Option<Symbols> {
        let (q_blocks, kv_blocks) = (groups.first()?.q_blocks(), groups.first()?.kv_blocks());
        Some(Symbols {
            cache: BitMatrix::stacked(groups.iter().map(|group| &group.cache), q_blocks),
            skip: BitMatrix::stacked(groups.iter().map(|group| &group.skip), kv_blocks),
            partial: groups.iter().any(|group| group.partial.is_some()).then(|| Partial::stacked(groups, kv_blocks)),
        })
    }

    /// The q-blocks that attention computes: those that are not cached and keep some block of keys. The others need no
    /// projections either, their output is cached or zero. `[heads][q_blocks]`.
    #[must_use]
    pub fn live_rows(&self) -> BitMatrix {
        let mut live = self.cache.clone();
        for head in 0..self.heads() {
            for q_block in 0..self.q_blocks() {
                if self.skip.count_row(head * self.q_blocks() + q_block) == 0 {
                    live.set(head, q_block, false);
                }
            }
        }
        live
    }

    /// Number of heads.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.cache.rows()
    }

    /// Number of q-blocks.
    #[must_use]
    pub fn q_blocks(&self) -> usize {
        self.cache.columns()
    }

    /// Number of kv-blocks.
    #[must_use]
    pub fn kv_blocks(&self) -> usize {
        self.skip.columns()
    }
}

/// `S_p`: the blocks that are computed under a token mask, and the masks.
///
/// The set bits of `bits`, row by row, are numbered; number `n` uses tile `tile_of[n]`, and the numbers of
/// row `r` begin at `row_start[r]`. Tiles that are the same are stored once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// `[heads * q_blocks]` rows, `[kv_blocks]` columns; a subset of `S_s`.
    pub bits: BitMatrix,
    /// First number of each row, `rows + 1` of them.
    pub row_start: Vec<u32>,
    /// Tile of each set bit.
    pub tile_of: Vec<u32>,
    /// Token masks: row = query token within the block, column = key token within the block, 1 = attended.
    pub tiles: Vec<BitMatrix>,
}

impl Partial {
    /// Those of several groups; a group without any has empty rows.
    fn stacked(groups: &[&Symbols], kv_blocks: usize) -> Partial {
        let (mut row_start, mut tile_of, mut tiles) = (vec![0], Vec::new(), Vec::new());
        let mut bits = Vec::new();
        for group in groups {
            let (start, first_tile) = (tile_of.len() as u32, tiles.len() as u32);
            match &group.partial {
                Some(partial) => {
                    bits.push(Cow::Borrowed(&partial.bits));
                    row_start.extend(partial.row_start[1..].iter().map(|&number| start + number));
                    tile_of.extend(partial.tile_of.iter().map(|&tile| first_tile + tile));
                    tiles.extend(partial.tiles.iter().cloned());
                }
                None => {
                    bits.push(Cow::Owned(BitMatrix::zeros(group.skip.rows(), kv_blocks)));
                    row_start.extend(std::iter::repeat_n(start, group.skip.rows()));
                }
            }
        }
        Partial { bits: BitMatrix::stacked(bits.iter().map(Cow::as_ref), kv_blocks), row_start, tile_of, tiles }
    }

    /// The token mask of a block, `None` where the block is whole.
    #[must_use]
    pub fn tile(&self, row: usize, kv_block: usize) -> Option<&BitMatrix> {
        if !self.bits.get(row, kv_block) {
            return None;
        }
        let words = self.bits.row(row);
        let before: u32 = words[..kv_block / 64].iter().map(|word| word.count_ones()).sum();
        let within = (words[kv_block / 64] & ((1 << (kv_block % 64)) - 1)).count_ones();
        let number = self.row_start[row] + before + within;
        self.tiles.get(*self.tile_of.get(number as usize)? as usize)
    }
}
