//! A head's blocks as cells of a grid of any smaller size.

use super::Picture;

/// Shares of a cell are counted in this many parts.
pub(super) const PARTS: u8 = 8;

/// What a cell's blocks are, in [`PARTS`]; the rest is skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Shade {
    pub(super) live: u8,
    pub(super) partial: u8,
    pub(super) cached: u8,
}

/// The cells of one head.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raster {
    pub(super) rows: usize,
    pub(super) columns: usize,
    cells: Vec<Shade>,
}

impl Raster {
    /// Reduces a head to at most `rows` x `columns` cells; `head_idx` is one of the symbols'.
    pub(super) fn of(picture: &Picture<'_>, head_idx: usize, rows: usize, columns: usize) -> Self {
        let (q_blocks, kv_blocks) = (picture.blocks.q_blocks(), picture.blocks.kv_blocks());
        let (rows, columns) = (rows.clamp(1, q_blocks), columns.clamp(1, kv_blocks));
        let mut cells = Vec::with_capacity(rows * columns);
        let mut counts = vec![Counts::default(); columns];
        for row in 0..rows {
            counts.fill(Counts::default());
            for q_block_idx in group(row, rows, q_blocks) {
                count_row(picture, head_idx, q_block_idx, &mut counts);
            }
            cells.extend(counts.iter().map(Counts::shade));
        }
        Raster { rows, columns, cells }
    }

    pub(super) fn get(&self, row: usize, column: usize) -> Shade {
        self.cells[row * self.columns + column]
    }

    /// Runs of equal cells that are not `background`, merged to rectangles: `(row, column, rows, columns)`.
    ///
    /// A run grows downwards while the next row has the very same run; bands and stripes become single
    /// rectangles, which keeps the vector picture small.
    pub(super) fn rectangles(&self) -> Vec<(Shade, [usize; 4])> {
        let mut done: Vec<(Shade, [usize; 4])> = Vec::new();
        let mut open: Vec<(Shade, [usize; 4])> = Vec::new();
        for row in 0..self.rows {
            let mut next = Vec::new();
            let mut candidates = open.iter().peekable();
            for (shade, start, length) in self.runs(row) {
                let mut top = row;
                while let Some((other, [from, column, _, columns])) = candidates.next_if(|c| c.1[1] <= start) {
                    if (*other, *column, *columns) == (shade, start, length) {
                        top = *from;
                    }
                }
                next.push((shade, [top, start, row + 1 - top, length]));
            }
            let grown = |rect: &[usize; 4]| next.iter().any(|(_, n)| n[0] == rect[0] && n[1] == rect[1]);
            done.extend(open.iter().filter(|(_, rect)| !grown(rect)));
            open = next;
        }
        done.extend(open);
        done
    }

    fn runs(&self, row: usize) -> Vec<(Shade, usize, usize)> {
        let mut runs: Vec<(Shade, usize, usize)> = Vec::new();
        for column in 0..self.columns {
            let shade = self.get(row, column);
            match runs.last_mut() {
                Some((last, start, length)) if *last == shade && *start + *length == column => *length += 1,
                _ if shade != Shade::default() => runs.push((shade, column, 1)),
                _ => {}
            }
        }
        runs
    }
}

/// The blocks of cell `cell` of `cells`.
fn group(cell: usize, cells: usize, blocks: usize) -> std::ops::Range<usize> {
    cell * blocks / cells..(cell + 1) * blocks / cells
}

#[derive(Clone, Copy, Default)]
struct Counts {
    blocks: usize,
    live: usize,
    partial: usize,
    cached: usize,
}

fn count_row(picture: &Picture<'_>, head_idx: usize, q_block_idx: usize, counts: &mut [Counts]) {
    let symbols = picture.symbols;
    let row = head_idx * symbols.q_blocks() + q_block_idx;
    let cached = !symbols.cache.get(head_idx, q_block_idx);
    let columns = counts.len();
    for (column, count) in counts.iter_mut().enumerate() {
        let range = group(column, columns, symbols.kv_blocks());
        count.blocks += range.len();
        if cached {
            count.cached += range.len();
            continue;
        }
        let partial = symbols.partial.as_ref().map_or(0, |partial| ones(partial.bits.row(row), &range));
        count.partial += partial;
        count.live += ones(symbols.skip.row(row), &range).saturating_sub(partial);
    }
}

/// Set bits of a row in a range of columns.
fn ones(words: &[u64], range: &std::ops::Range<usize>) -> usize {
    let (first, last) = (range.start / 64, range.end.div_ceil(64));
    let mut count = 0;
    for (word_idx, &word) in words.iter().enumerate().take(last).skip(first) {
        let low = range.start.saturating_sub(word_idx * 64).min(63);
        let high = (range.end - word_idx * 64).min(64);
        let above = if high == 64 { u64::MAX } else { (1 << high) - 1 };
        count += (word & above & (u64::MAX << low)).count_ones() as usize;
    }
    count
}

impl Counts {
    /// Rounded shares that never lose a state that is there: one live block in a large cell stays visible.
    fn shade(&self) -> Shade {
        let full = usize::from(PARTS);
        let mut parts = [self.live, self.partial, self.cached].map(|count| {
            let rounded = (count * full + self.blocks / 2) / self.blocks.max(1);
            if count == 0 { 0 } else { rounded.max(1) }
        });
        let covered = self.live + self.partial + self.cached;
        // A cell that still skips something keeps a part of the background.
        let room = if covered < self.blocks { full - 1 } else { full };
        while parts.iter().sum::<usize>() > room {
            let largest = (0..3).max_by_key(|&index| parts[index]).unwrap_or(0);
            parts[largest] -= 1;
        }
        if covered == self.blocks {
            let largest = (0..3).max_by_key(|&index| parts[index]).unwrap_or(0);
            parts[largest] += full - parts.iter().sum::<usize>();
        }
        let [live, partial, cached] = parts.map(|part| part as u8);
        Shade { live, partial, cached }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::{Blocks, Symbols};

    fn picture<'a>(symbols: &'a Symbols, blocks: &'a Blocks) -> Picture<'a> {
        Picture { numbers: &[], symbols, blocks, segments: &[], heads: &[0], title: "" }
    }

    #[test]
    fn one_cell_per_block() {
        let blocks = Blocks::regular(3, 70, 1, 1);
        let mut symbols = Symbols::dense(1, 3, 70);
        symbols.skip.set(0, 65, false);
        symbols.cache.set(0, 2, false);
        let raster = Raster::of(&picture(&symbols, &blocks), 0, 10, 100);
        assert_eq!((raster.rows, raster.columns), (3, 70));
        assert_eq!(raster.get(0, 65), Shade::default());
        assert_eq!(raster.get(0, 64), Shade { live: 8, ..Shade::default() });
        assert_eq!(raster.get(2, 0), Shade { cached: 8, ..Shade::default() });
        let live = Shade { live: 8, ..Shade::default() };
        let cached = Shade { cached: 8, ..Shade::default() };
        let mut rectangles = raster.rectangles();
        rectangles.sort_by_key(|(_, rect)| *rect);
        assert_eq!(
            rectangles,
            [(live, [0, 0, 1, 65]), (live, [0, 66, 1, 4]), (live, [1, 0, 1, 70]), (cached, [2, 0, 1, 70])]
        );
    }

    #[test]
    fn rectangles_cover_every_cell_once() {
        let blocks = Blocks::regular(40, 50, 1, 1);
        let mut symbols = Symbols::dense(1, 40, 50);
        for bit in 0..2000 {
            symbols.skip.set(bit / 50, bit % 50, (bit * bit / 7 + bit / 90) % 3 != 0);
        }
        let raster = Raster::of(&picture(&symbols, &blocks), 0, 40, 50);
        let mut seen = vec![Shade::default(); 2000];
        for (shade, [row, column, rows, columns]) in raster.rectangles() {
            for cell in (row..row + rows).flat_map(|r| (column..column + columns).map(move |c| r * 50 + c)) {
                assert_eq!(seen[cell], Shade::default());
                seen[cell] = shade;
            }
        }
        assert_eq!(seen, raster.cells);
    }

    #[test]
    fn rare_blocks_stay_visible() {
        let blocks = Blocks::regular(100, 100, 1, 1);
        let mut symbols = Symbols::dense(1, 100, 100);
        for row in 0..100 {
            symbols.skip.row_mut(row).fill(0);
        }
        symbols.skip.set(3, 7, true);
        let raster = Raster::of(&picture(&symbols, &blocks), 0, 2, 2);
        assert_eq!(raster.get(0, 0).live, 1);
        assert_eq!(raster.get(1, 1).live, 0);
        // And one skipped block keeps a cell from looking full.
        let mut symbols = Symbols::dense(1, 100, 100);
        symbols.skip.set(99, 99, false);
        let raster = Raster::of(&picture(&symbols, &blocks), 0, 2, 2);
        assert_eq!((raster.get(0, 0).live, raster.get(1, 1).live), (8, 7));
    }
}
