//! Pictures of masks: one square per block, query blocks downwards, key blocks to the right.
//!
//! A [`Picture`] says what to draw; [`terminal`], [`png`] and [`svg`] draw it. All three reduce the blocks of a
//! head to a raster of cells first (a cell is one block, or a group of blocks where the mask is larger than the
//! space), so they show the same thing:
//!
//! | state | colour | text |
//! |---|---|---|
//! | live | blue | `█` |
//! | partial: computed under a token mask | orange | `▚` |
//! | cached query block, whole row | grey | `·` |
//! | skipped | near the background | blank |
//!
//! Blue, orange and greys of different lightness stay apart under every common form of colour blindness.

pub mod png;
pub mod svg;
pub mod terminal;

mod font;
mod layout;
mod palette;
mod raster;

use crate::error::{Error, Result};
use crate::symbols::statistics::{Statistics, check_fit};
use crate::symbols::{Blocks, Symbols};

/// Heads of one picture; more of them are too small to tell anything.
pub const MAX_HEADS: usize = 64;

/// A named run of tokens, in the order in which blocks cut the sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `text`, `image`, ...
    pub name: String,
    /// First token.
    pub start_token: u32,
    /// One past the last token.
    pub end_token: u32,
}

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// The masks.
    pub symbols: &'a Symbols,
    /// Sizes of the blocks.
    pub blocks: &'a Blocks,
    /// Segments whose borders and names appear on both axes; may be empty.
    pub segments: &'a [Segment],
    /// Heads to draw, in this order.
    pub heads: &'a [usize],
    /// Numbers of the symbols' heads in their layer; empty where they are all of its heads.
    pub numbers: &'a [u32],
    /// First line of the picture.
    pub title: &'a str,
}

impl Picture<'_> {
    /// What a head is called.
    fn number(&self, head_idx: usize) -> usize {
        self.numbers.get(head_idx).map_or(head_idx, |&number| number as usize)
    }

    /// Checks the parts against each other and counts.
    fn statistics(&self) -> Result<Statistics> {
        check_fit(self.symbols, self.blocks)?;
        let heads = self.symbols.heads();
        if let Some(head_idx) = self.heads.iter().find(|&&head_idx| head_idx >= heads) {
            return Err(Error::Shape(format!("there is no head {head_idx}: the symbols have {heads} heads, from 0")));
        }
        if self.heads.is_empty() || self.heads.len() > MAX_HEADS {
            let found = self.heads.len();
            return Err(Error::Shape(format!("a picture shows 1 to {MAX_HEADS} heads, not {found}")));
        }
        if self.blocks.q_blocks() == 0 || self.blocks.kv_blocks() == 0 {
            return Err(Error::Shape("there are no blocks to draw".into()));
        }
        Statistics::of(self.symbols, self.blocks)
    }

    /// The second line of the picture: what is true of all heads together.
    fn summary(&self, statistics: &Statistics) -> Vec<String> {
        let (total, heads) = (&statistics.total, statistics.per_head.len());
        let heads = if heads == 1 { "1 head".to_string() } else { format!("{heads} heads") };
        let mut parts = vec![
            format!("{heads}, {} x {} blocks", statistics.q_blocks, statistics.kv_blocks),
            format!("{} of attention computed", percent(total.live_share)),
        ];
        if total.cached_q_blocks > 0 {
            parts.push(format!("{} of query blocks cached", percent(total.cached_share)));
        }
        parts
    }
}

/// A share for people. What is nearly all or nearly nothing is not rounded to it.
fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if value > 0.0 && value < 0.05 {
        "<0.1%".to_string()
    } else if (99.95..100.0).contains(&value) {
        ">99.9%".to_string()
    } else if value == 0.0 || value == 100.0 {
        format!("{value:.0}%")
    } else {
        format!("{value:.1}%")
    }
}

/// A segment on one axis.
#[derive(Clone, Debug, PartialEq)]
struct Span<'a> {
    name: &'a str,
    /// Where it begins and ends, in blocks; inside a block in proportion to its tokens.
    start: f64,
    end: f64,
}

/// The segments that lie on an axis with the given block offsets.
fn spans<'a>(segments: &'a [Segment], offsets: &[u32]) -> Vec<Span<'a>> {
    let tokens = offsets.last().copied().unwrap_or(0);
    segments
        .iter()
        .map(|segment| (segment, segment.start_token.min(tokens), segment.end_token.min(tokens)))
        .filter(|(_, start, end)| start < end)
        .map(|(segment, start, end)| Span {
            name: &segment.name,
            start: position(offsets, start),
            end: position(offsets, end),
        })
        .collect()
}

fn position(offsets: &[u32], token: u32) -> f64 {
    let block = offsets.partition_point(|&offset| offset <= token).saturating_sub(1);
    match offsets.get(block + 1) {
        Some(&next) => block as f64 + f64::from(token - offsets[block]) / f64::from(next - offsets[block]),
        None => block as f64,
    }
}

/// Borders between segments inside an axis, in blocks, ascending, each once.
fn borders(spans: &[Span<'_>], blocks: usize) -> Vec<f64> {
    let mut borders: Vec<f64> = spans.iter().flat_map(|span| [span.start, span.end]).collect();
    borders.retain(|&border| border > 0.0 && border < blocks as f64);
    borders.sort_by(f64::total_cmp);
    borders.dedup();
    borders
}

/// Places labels along an axis so that none overlaps the next; a label without room is left out.
///
/// Takes the spans in the unit of the output with the length of each label; gives the start of each label.
fn place(spans: &[(f64, f64, f64)], total: f64, gap: f64) -> Vec<Option<f64>> {
    let mut free = 0.0_f64;
    spans
        .iter()
        .map(|&(start, end, length)| {
            let centred = f64::midpoint(start, end) - length / 2.0;
            // A label wider than its segment starts with it and may run over into the next one's room.
            let wanted = if length > end - start { start } else { centred };
            let at = wanted.min(total - length).max(free);
            let fits = at + length <= total + 0.5 && at < end;
            if fits {
                free = at + length + gap;
            }
            fits.then_some(at)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(name: &str, start_token: u32, end_token: u32) -> Segment {
        Segment { name: name.into(), start_token, end_token }
    }

    #[test]
    fn borders_follow_tokens() {
        let segments = [segment("text", 0, 64), segment("image", 64, 400), segment("pad", 400, 500)];
        let offsets = [0, 128, 256, 400];
        let spans = spans(&segments, &offsets);
        assert_eq!(spans.iter().map(|s| (s.start, s.end)).collect::<Vec<_>>(), [(0.0, 0.5), (0.5, 3.0)]);
        assert_eq!(borders(&spans, 3), [0.5]);
    }

    #[test]
    fn labels_do_not_overlap() {
        assert_eq!(place(&[(0.0, 2.0, 4.0), (2.0, 40.0, 5.0)], 40.0, 1.0), [Some(0.0), Some(18.5)]);
        assert_eq!(place(&[(0.0, 2.0, 4.0), (2.0, 4.0, 4.0), (4.0, 40.0, 4.0)], 40.0, 1.0)[1], None);
        assert_eq!(place(&[(38.0, 40.0, 3.0)], 40.0, 1.0), [Some(37.0)]);
        assert_eq!(place(&[(0.0, 4.0, 9.0)], 4.0, 1.0), [None]);
    }

    #[test]
    fn percentages_do_not_lie() {
        let text: Vec<String> = [0.0, 0.000_1, 0.5, 0.999_9, 1.0].into_iter().map(percent).collect();
        assert_eq!(text, ["0%", "<0.1%", "50.0%", ">99.9%", "100%"]);
    }

    #[test]
    fn wrong_heads_are_refused() {
        let symbols = Symbols::dense(2, 3, 3);
        let blocks = Blocks::regular(384, 384, 128, 128);
        let picture =
            |heads| Picture { numbers: &[], symbols: &symbols, blocks: &blocks, segments: &[], heads, title: "" };
        let text = picture(&[2]).statistics().unwrap_err().to_string();
        assert_eq!(text, "there is no head 2: the symbols have 2 heads, from 0");
        assert!(picture(&[]).statistics().is_err());
        assert!(picture(&[0; 65]).statistics().is_err());
    }
}
