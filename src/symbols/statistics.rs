//! How much work symbols leave: shares of attention, of cached query blocks and of the sparse GEMMs.
//!
//! Blocks are weighted by their true size in tokens, so that a short last block or a small border tile counts
//! for what it costs. A partial block is counted twice over: as a whole block in [`Density::live_share`], which
//! is what a kernel spends, and by its token mask in [`Density::pair_share`], which is what the rule keeps.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::symbols::{BitMatrix, Blocks, Symbols};

/// Work of one head, or of all heads together. Shares are in `0.0..=1.0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Density {
    /// Blocks of the attention matrix.
    pub blocks: u64,
    /// Blocks that are computed: live in `S_s` and in a query block that is not cached.
    pub live_blocks: u64,
    /// Computed blocks that have a token mask.
    pub partial_blocks: u64,
    /// Query blocks.
    pub q_blocks: u64,
    /// Query blocks taken from the cache.
    pub cached_q_blocks: u64,
    /// Query blocks that are computed but have no live key block: their output is zero.
    pub empty_rows: u64,
    /// Token pairs of the attention matrix.
    pub pairs: u64,
    /// Token pairs in computed blocks, partial blocks counted whole.
    pub live_pairs: u64,
    /// Token pairs that are attended, partial blocks counted by their masks.
    pub attended_pairs: u64,
    /// Query tokens.
    pub q_tokens: u64,
    /// Query tokens taken from the cache.
    pub cached_q_tokens: u64,
    /// `live_pairs / pairs`: the attention work that is left.
    pub live_share: f64,
    /// `attended_pairs / pairs`: the token pairs that are kept.
    pub pair_share: f64,
    /// `cached_q_blocks / q_blocks`.
    pub cached_share: f64,
    /// Live output tiles of GEMM-Q and live reduction slices of GEMM-O, weighted by tokens.
    pub gemm_share: f64,
}

/// Statistics of the symbols of one layer at one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Query tokens.
    pub q_tokens: u64,
    /// Key tokens.
    pub kv_tokens: u64,
    /// Blocks of queries.
    pub q_blocks: usize,
    /// Blocks of keys.
    pub kv_blocks: usize,
    /// All heads together.
    pub total: Density,
    /// Each head.
    pub per_head: Vec<Density>,
}

impl Statistics {
    /// Counts.
    ///
    /// # Errors
    /// [`Error::Shape`] when `blocks` or the partial blocks do not fit the symbols.
    pub fn of(symbols: &Symbols, blocks: &Blocks) -> Result<Self> {
        check_fit(symbols, blocks)?;
        let columns = ColumnSizes::new(&blocks.kv);
        let tile_pairs: Vec<u64> =
            symbols.partial.iter().flat_map(|partial| &partial.tiles).map(|tile| tile.count() as u64).collect();
        let per_head: Vec<Density> =
            (0..symbols.heads()).map(|head_idx| head(symbols, blocks, head_idx, &columns, &tile_pairs)).collect();
        let mut total = Density::default();
        for head in &per_head {
            total.add(head);
        }
        total.divide();
        Ok(Statistics {
            q_tokens: u64::from(blocks.q[blocks.q_blocks()]),
            kv_tokens: u64::from(blocks.kv[blocks.kv_blocks()]),
            q_blocks: blocks.q_blocks(),
            kv_blocks: blocks.kv_blocks(),
            total,
            per_head,
        })
    }
}

/// Whether `blocks` describes `symbols`, and whether the parts of `symbols` describe each other.
pub(crate) fn check_fit(symbols: &Symbols, blocks: &Blocks) -> Result<()> {
    if blocks.q.is_empty() || blocks.kv.is_empty() {
        return Err(Error::Shape("the offsets of the blocks are empty; they begin with 0".into()));
    }
    let rows = symbols.heads() * symbols.q_blocks();
    let found = (blocks.q_blocks(), blocks.kv_blocks(), symbols.skip.rows());
    let wanted = (symbols.q_blocks(), symbols.kv_blocks(), rows);
    if found != wanted {
        return Err(Error::Shape(format!(
            "symbols of {} heads, {} q-blocks ({} rows) and {} kv-blocks were given {} x {} blocks",
            symbols.heads(),
            symbols.q_blocks(),
            symbols.skip.rows(),
            symbols.kv_blocks(),
            found.0,
            found.1
        )));
    }
    if blocks.q.windows(2).chain(blocks.kv.windows(2)).any(|pair| pair[0] >= pair[1]) {
        return Err(Error::Shape("the offsets of the blocks do not ascend".into()));
    }
    let Some(partial) = &symbols.partial else { return Ok(()) };
    let fits = (partial.bits.rows(), partial.bits.columns()) == (rows, symbols.kv_blocks())
        && partial.row_start.len() == rows + 1
        && partial.row_start[rows] as usize == partial.tile_of.len()
        && (0..rows).all(|row| {
            let len = partial.row_start[row + 1].checked_sub(partial.row_start[row]);
            len.map(|len| len as usize) == Some(partial.bits.count_row(row))
        })
        && partial.tile_of.iter().all(|&tile| (tile as usize) < partial.tiles.len());
    if fits { Ok(()) } else { Err(Error::Shape("the partial blocks do not fit the skip symbol".into())) }
}

fn head(symbols: &Symbols, blocks: &Blocks, head_idx: usize, columns: &ColumnSizes, tile_pairs: &[u64]) -> Density {
    let (q_blocks, kv_blocks) = (blocks.q_blocks(), blocks.kv_blocks());
    let kv_tokens = u64::from(blocks.kv[kv_blocks]);
    let q_tokens = u64::from(blocks.q[q_blocks]);
    let mut density = Density {
        blocks: (q_blocks * kv_blocks) as u64,
        q_blocks: q_blocks as u64,
        pairs: q_tokens * kv_tokens,
        q_tokens,
        ..Density::default()
    };
    for q_block_idx in 0..q_blocks {
        let row = head_idx * q_blocks + q_block_idx;
        let tokens = u64::from(blocks.q[q_block_idx + 1] - blocks.q[q_block_idx]);
        if !symbols.cache.get(head_idx, q_block_idx) {
            density.cached_q_blocks += 1;
            density.cached_q_tokens += tokens;
            continue;
        }
        let live = symbols.skip.count_row(row) as u64;
        density.live_blocks += live;
        density.empty_rows += u64::from(live == 0);
        let pairs = tokens * columns.live(&symbols.skip, row, live);
        density.live_pairs += pairs;
        density.attended_pairs += pairs;
        let Some(partial) = &symbols.partial else { continue };
        let numbers = partial.row_start[row] as usize..partial.row_start[row + 1] as usize;
        for (kv_block_idx, &tile) in partial.bits.ones_of_row(row).zip(&partial.tile_of[numbers]) {
            let whole = tokens * columns.size(kv_block_idx);
            let kept = tile_pairs[tile as usize].min(whole);
            density.partial_blocks += 1;
            density.attended_pairs = density.attended_pairs.saturating_sub(whole - kept);
        }
    }
    density.divide();
    density
}

impl Density {
    fn add(&mut self, other: &Density) {
        self.blocks += other.blocks;
        self.live_blocks += other.live_blocks;
        self.partial_blocks += other.partial_blocks;
        self.q_blocks += other.q_blocks;
        self.cached_q_blocks += other.cached_q_blocks;
        self.empty_rows += other.empty_rows;
        self.pairs += other.pairs;
        self.live_pairs += other.live_pairs;
        self.attended_pairs += other.attended_pairs;
        self.q_tokens += other.q_tokens;
        self.cached_q_tokens += other.cached_q_tokens;
    }

    /// The shares from the counts; a share of nothing is 0.
    fn divide(&mut self) {
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        self.live_share = share(self.live_pairs, self.pairs);
        self.pair_share = share(self.attended_pairs, self.pairs);
        self.cached_share = share(self.cached_q_blocks, self.q_blocks);
        self.gemm_share = share(self.q_tokens - self.cached_q_tokens, self.q_tokens);
    }
}

/// Tokens of each key block, with a short cut for the usual case that all but the last are of one size.
struct ColumnSizes<'a> {
    offsets: &'a [u32],
    regular: Option<u64>,
}

impl<'a> ColumnSizes<'a> {
    fn new(offsets: &'a [u32]) -> Self {
        let size = offsets.get(1).copied().unwrap_or(0);
        let count = offsets.len() - 1;
        let regular = offsets[..count].windows(2).all(|pair| pair[1] - pair[0] == size);
        ColumnSizes { offsets, regular: regular.then_some(u64::from(size)) }
    }

    fn size(&self, column: usize) -> u64 {
        u64::from(self.offsets[column + 1] - self.offsets[column])
    }

    /// Tokens of the `live` set bits of a row.
    fn live(&self, skip: &BitMatrix, row: usize, live: u64) -> u64 {
        let Some(size) = self.regular else {
            return skip.ones_of_row(row).map(|column| self.size(column)).sum();
        };
        if live == 0 {
            return 0;
        }
        let last = self.offsets.len() - 2;
        let missing = if skip.get(row, last) { size - self.size(last).min(size) } else { 0 };
        let longer = if skip.get(row, last) { self.size(last).saturating_sub(size) } else { 0 };
        live * size - missing + longer
    }
}

/// A table for people: one line for all heads, then one per head unless they are all the same.
impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = self.per_head.len();
        writeln!(
            f,
            "{heads} heads, {} x {} tokens, {} x {} blocks",
            self.q_tokens, self.kv_tokens, self.q_blocks, self.kv_blocks
        )?;
        let partial = self.total.partial_blocks > 0;
        write!(f, "{:>6}  {:>9}", "head", "attention")?;
        if partial {
            write!(f, "  {:>9}  {:>8}", "by token", "partial")?;
        }
        writeln!(f, "  {:>7}  {:>7}  {:>10}", "cached", "GEMMs", "empty rows")?;
        line(f, "all", &self.total, partial)?;
        if self.per_head.iter().any(|head| *head != self.per_head[0]) {
            for (head_idx, head) in self.per_head.iter().enumerate() {
                line(f, &head_idx.to_string(), head, partial)?;
            }
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, density: &Density, partial: bool) -> fmt::Result {
    write!(f, "{name:>6}  {:>8.1}%", 100.0 * density.live_share)?;
    if partial {
        write!(f, "  {:>8.1}%  {:>8}", 100.0 * density.pair_share, density.partial_blocks)?;
    }
    let (cached, gemm) = (100.0 * density.cached_share, 100.0 * density.gemm_share);
    writeln!(f, "  {cached:>6.1}%  {gemm:>6.1}%  {:>10}", density.empty_rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Partial;

    #[test]
    fn blocks_are_weighted_by_tokens() {
        // 300 tokens in blocks of 128: 128, 128, 44.
        let blocks = Blocks::regular(300, 300, 128, 128);
        let mut symbols = Symbols::dense(2, 3, 3);
        symbols.skip.set(2, 0, false);
        symbols.cache.set(1, 1, false);
        symbols.skip.row_mut(5).fill(0);
        let statistics = Statistics::of(&symbols, &blocks).unwrap();
        let [first, second] = statistics.per_head[..] else { panic!("two heads") };
        assert_eq!(first.live_pairs, 300 * 300 - 44 * 128);
        assert_eq!((first.cached_q_blocks, first.empty_rows, first.live_blocks), (0, 0, 8));
        assert_eq!(second.live_pairs, 128 * 300);
        assert_eq!((second.cached_q_blocks, second.empty_rows, second.live_blocks), (1, 1, 3));
        assert!((second.gemm_share - 172.0 / 300.0).abs() < 1e-12);
        assert_eq!(statistics.total.live_pairs, first.live_pairs + second.live_pairs);
        insta::assert_snapshot!(statistics, @r"
        2 heads, 300 x 300 tokens, 3 x 3 blocks
          head  attention   cached    GEMMs  empty rows
           all      68.2%    16.7%    78.7%           1
             0      93.7%     0.0%   100.0%           0
             1      42.7%    33.3%    57.3%           1
        ");
    }

    #[test]
    fn irregular_blocks_take_the_slow_way() {
        let blocks = Blocks { q: vec![0, 10, 40], kv: vec![0, 30, 40, 60] };
        let mut symbols = Symbols::dense(1, 2, 3);
        symbols.skip.set(0, 1, false);
        let statistics = Statistics::of(&symbols, &blocks).unwrap();
        assert_eq!(statistics.total.live_pairs, 10 * 50 + 30 * 60);
        // The last block is the longer one: regular up to it, and still right.
        let blocks = Blocks { q: vec![0, 10, 40], kv: vec![0, 10, 20, 60] };
        let statistics = Statistics::of(&symbols, &blocks).unwrap();
        assert_eq!(statistics.total.live_pairs, 10 * 50 + 30 * 60);
    }

    #[test]
    fn partial_blocks_count_whole_and_by_token() {
        let blocks = Blocks::regular(128, 128, 64, 64);
        let mut symbols = Symbols::dense(1, 2, 2);
        let mut bits = BitMatrix::zeros(2, 2);
        bits.set(0, 0, true);
        bits.set(1, 1, true);
        let mut tile = BitMatrix::zeros(64, 64);
        (0..64).for_each(|token| tile.set(token, token, true));
        symbols.partial = Some(Partial { bits, row_start: vec![0, 1, 2], tile_of: vec![0, 0], tiles: vec![tile] });
        let total = Statistics::of(&symbols, &blocks).unwrap().total;
        assert_eq!((total.partial_blocks, total.live_pairs), (2, 128 * 128));
        assert_eq!(total.attended_pairs, 2 * 64 * 64 + 2 * 64);
    }

    #[test]
    fn other_blocks_are_refused() {
        let symbols = Symbols::dense(2, 3, 3);
        let error = Statistics::of(&symbols, &Blocks::regular(512, 384, 128, 128)).unwrap_err();
        assert!(error.to_string().contains("were given 4 x 3 blocks"), "{error}");
        assert!(Statistics::of(&symbols, &Blocks { q: vec![], kv: vec![] }).is_err());
    }
}
