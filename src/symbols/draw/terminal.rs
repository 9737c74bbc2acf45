//! Masks as text, for a terminal, a log or a test.
//!
//! In colour a character carries two cells, one above the other, as a half block; without colour it carries one
//! cell as a shade or sign. Masks larger than the width are reduced to densities, small ones are enlarged.

use std::fmt::Write;

use super::palette::{Rgb, TERMINAL, legend};
use super::raster::{PARTS, Raster, Shade};
use super::{Picture, Span, borders, percent, place, spans};
use crate::error::Result;
use crate::symbols::statistics::Density;

/// Whether escape sequences for colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Characters only.
    Plain,
    /// 24 bit colours.
    Colour,
}

/// Widths below this are taken as this.
const MIN_WIDTH: usize = 32;
/// Small masks are enlarged up to this many columns.
const ENLARGE_TO: usize = 64;
/// Several heads stand side by side when each gets this much.
const PANEL_FROM: usize = 34;
const MAX_LABEL: usize = 12;
const GAP: &str = "   ";

/// Draws a picture in at most `width` columns (32 at least; a longer title stays whole); every line ends with a newline.
///
/// # Errors
/// [`crate::Error::Shape`](crate::error::Error::Shape) when the parts of the picture do not fit each other.
pub fn terminal(picture: &Picture<'_>, width: usize, style: Style) -> Result<String> {
    let statistics = picture.statistics()?;
    let width = width.max(MIN_WIDTH);
    let mut out = String::new();
    if !picture.title.is_empty() {
        out += &emphasised(&picture.title.replace(char::is_control, " "), style);
        out.push('\n');
    }
    let summary: Vec<_> = picture.summary(&statistics).into_iter().map(|part| (part.chars().count(), part)).collect();
    out += &wrap(&summary, ", ", width);
    out.push('\n');
    let frame = Frame::new(picture, width, style);
    for (index, heads) in picture.heads.chunks(frame.per_row).enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let mut lines: Vec<String> = Vec::new();
        for (column, &head_idx) in heads.iter().enumerate() {
            let share = percent(statistics.per_head[head_idx].live_share);
            let caption = format!("head {}, {share}", picture.number(head_idx));
            let panel = frame.panel(picture, head_idx, &caption, column == 0);
            lines.resize(panel.len().max(lines.len()), String::new());
            for (line, part) in lines.iter_mut().zip(panel) {
                if column > 0 {
                    line.push_str(GAP);
                }
                line.push_str(&part);
            }
        }
        for line in lines {
            out += line.trim_end();
            out.push('\n');
        }
    }
    out.push('\n');
    out += &wrap(&legend_parts(&statistics.total, &frame, style), GAP, width);
    Ok(out)
}

/// How the panels of a picture are cut: the same for each head.
struct Frame<'a> {
    style: Style,
    per_row: usize,
    /// Cells; in colour two rows of cells make one line.
    rows: usize,
    columns: usize,
    /// Blocks per cell where the mask is reduced, in both directions.
    reduced: Option<(f64, f64)>,
    label_width: usize,
    q_spans: Vec<Span<'a>>,
    kv_spans: Vec<Span<'a>>,
    /// Cells before which a line between segments stands.
    row_borders: Vec<usize>,
    column_borders: Vec<usize>,
}

impl<'a> Frame<'a> {
    fn new(picture: &Picture<'a>, width: usize, style: Style) -> Self {
        let (q_blocks, kv_blocks) = (picture.blocks.q_blocks(), picture.blocks.kv_blocks());
        let q_spans = spans(picture.segments, &picture.blocks.q);
        let kv_spans = spans(picture.segments, &picture.blocks.kv);
        let name_width = |span: &Span<'_>| span.name.chars().count().min(MAX_LABEL);
        let label_width = q_spans.iter().map(name_width).max().map_or(0, |longest| longest + 1);
        let kv_borders = borders(&kv_spans, kv_blocks);
        let room = width.saturating_sub(label_width);
        let per_row = (room / PANEL_FROM).clamp(1, picture.heads.len().min(4));
        let frame_columns = 2 + kv_borders.len().min(room / 4);
        let panel = (room.saturating_sub((per_row - 1) * GAP.len()) / per_row).saturating_sub(frame_columns).max(8);
        let (rows, columns) = cells(q_blocks, kv_blocks, panel, style);
        let scale = |border: f64, blocks: usize, cells: usize| (border / blocks as f64 * cells as f64).round() as usize;
        let cut = |borders: Vec<f64>, blocks: usize, cells: usize, most: usize| {
            let mut cut: Vec<usize> = borders.iter().map(|&border| scale(border, blocks, cells)).collect();
            cut.retain(|&cell| cell > 0 && cell < cells);
            cut.dedup();
            // Where segments are many and thin, lines would hide the mask.
            if cut.len() > most { Vec::new() } else { cut }
        };
        let reduced = (rows < q_blocks || columns < kv_blocks)
            .then_some((q_blocks as f64 / rows as f64, kv_blocks as f64 / columns as f64));
        Frame {
            style,
            per_row,
            rows,
            columns,
            reduced,
            label_width,
            row_borders: cut(borders(&q_spans, q_blocks), q_blocks, rows, rows / 3),
            column_borders: cut(kv_borders, kv_blocks, columns, (columns / 3).min(frame_columns - 2)),
            q_spans,
            kv_spans,
        }
    }

    /// The lines of one head, all of the same width on the screen.
    fn panel(&self, picture: &Picture<'_>, head_idx: usize, caption: &str, labels: bool) -> Vec<String> {
        let indent = if labels { self.label_width } else { 0 };
        let width = self.columns + self.column_borders.len() + 2;
        let raster = Raster::of(picture, head_idx, self.rows, self.columns);
        let margin = " ".repeat(indent);
        let mut lines = vec![format!("{margin}{}", emphasised(&fit(caption, width), self.style))];
        if !self.kv_spans.is_empty() {
            lines.push(format!("{margin}{}", self.column_labels(picture.blocks.kv_blocks(), width)));
        }
        lines.push(format!("{margin}{}", self.rule('┌', '┬', '┐')));
        let mut names = if labels { self.row_labels(picture.blocks.q_blocks()) } else { Vec::new() };
        names.resize(self.bands().map(|band| self.lines_of(&band)).sum(), String::new());
        let mut names = names.into_iter();
        for band in self.bands() {
            if band.start > 0 {
                lines.push(format!("{margin}{}", self.rule('├', '┼', '┤')));
            }
            let step = self.rows_per_line();
            for row in band.clone().step_by(step) {
                let name = names.next().unwrap_or_default();
                let label = if labels && indent > 0 { format!("{name:>0$} ", indent - 1) } else { margin.clone() };
                let below = (row + 1 < band.end && step == 2).then_some(row + 1);
                lines.push(format!("{label}│{}│", self.cells(&raster, row, below)));
            }
        }
        lines.push(format!("{margin}{}", self.rule('└', '┴', '┘')));
        lines
    }

    fn rows_per_line(&self) -> usize {
        match self.style {
            Style::Plain => 1,
            Style::Colour => 2,
        }
    }

    fn lines_of(&self, band: &std::ops::Range<usize>) -> usize {
        band.len().div_ceil(self.rows_per_line())
    }

    /// Rows of cells between two lines.
    fn bands(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let ends = self.row_borders.iter().copied().chain([self.rows]);
        std::iter::once(0).chain(self.row_borders.iter().copied()).zip(ends).map(|(start, end)| start..end)
    }

    fn rule(&self, left: char, cross: char, right: char) -> String {
        let mut line = String::from(left);
        for column in 0..self.columns {
            if self.column_borders.contains(&column) {
                line.push(cross);
            }
            line.push('─');
        }
        line.push(right);
        line
    }

    fn column_labels(&self, kv_blocks: usize, width: usize) -> String {
        // On the screen a position moves right by the frame and by every line before it.
        let scale = |blocks: f64| {
            let cell = (blocks / kv_blocks as f64 * self.columns as f64).round() as usize;
            (cell + 1 + self.column_borders.iter().filter(|&&border| border <= cell && cell > 0).count()) as f64
        };
        let lengths: Vec<_> = self
            .kv_spans
            .iter()
            .map(|span| (scale(span.start), scale(span.end), span.name.chars().count() as f64))
            .collect();
        let mut line = String::new();
        let mut at = 0;
        for (span, start) in self.kv_spans.iter().zip(place(&lengths, width as f64, 1.0)) {
            let Some(start) = start.map(|start| start.floor().max(0.0) as usize) else { continue };
            let start = start.max(at);
            line.extend(std::iter::repeat_n(' ', start - at));
            line.push_str(span.name);
            at = start + span.name.chars().count();
        }
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(at)));
        line
    }

    /// The name at each line of cells.
    fn row_labels(&self, q_blocks: usize) -> Vec<String> {
        let step = self.rows_per_line();
        let lines: usize = self.bands().map(|band| self.lines_of(&band)).sum();
        // Bands end on a whole line, so a row's line depends on the bands before it.
        let line_of = |blocks: f64| {
            let row = (blocks / q_blocks as f64 * self.rows as f64).round() as usize;
            let before: usize = self.bands().filter(|b| b.end <= row).map(|b| self.lines_of(&b)).sum();
            let within = self.bands().find(|b| b.contains(&row)).map_or(0, |b| (row - b.start) / step);
            (before + within) as f64
        };
        let spans: Vec<_> = self.q_spans.iter().map(|span| (line_of(span.start), line_of(span.end), 1.0)).collect();
        let mut names = vec![String::new(); lines];
        for (span, line) in self.q_spans.iter().zip(place(&spans, lines as f64, 0.0)) {
            if let Some(name) = line.and_then(|line| names.get_mut(line.floor() as usize)) {
                *name = fit(span.name, self.label_width.saturating_sub(1)).trim_end().to_string();
            }
        }
        names
    }

    fn cells(&self, raster: &Raster, row: usize, below: Option<usize>) -> String {
        let mut line = String::new();
        let mut colours: Option<(Rgb, Option<Rgb>)> = None;
        for column in 0..self.columns {
            if self.column_borders.contains(&column) {
                if colours.take().is_some() {
                    line.push_str(RESET);
                }
                line.push('│');
            }
            // The raster has at most one cell per block; an enlarged mask repeats them.
            let cell = |row: usize| raster.get(row * raster.rows / self.rows, column * raster.columns / self.columns);
            if self.style == Style::Plain {
                line.push(sign(cell(row)));
                continue;
            }
            let wanted = (TERMINAL.of(cell(row)), below.map(|row| TERMINAL.of(cell(row))));
            if colours != Some(wanted) {
                line.push_str(&escape(wanted));
                colours = Some(wanted);
            }
            line.push('▀');
        }
        if colours.is_some() {
            line.push_str(RESET);
        }
        line
    }
}

/// Rows and columns of cells in a panel of `width` characters. A character is twice as high as wide.
fn cells(q_blocks: usize, kv_blocks: usize, width: usize, style: Style) -> (usize, usize) {
    let square = match style {
        Style::Plain => 2,
        Style::Colour => 1,
    };
    let times = (width.min(ENLARGE_TO) / kv_blocks).clamp(1, 4);
    let times = if times == 3 { 2 } else { times };
    if kv_blocks <= width && times >= square {
        return (q_blocks * times / square, kv_blocks * times);
    }
    let columns = kv_blocks.min(width);
    let rows = (q_blocks * columns).div_ceil(kv_blocks * square);
    // A very high mask is pressed together: nobody scrolls through thousands of lines.
    (rows.clamp(1, 4 * ENLARGE_TO), columns)
}

const RESET: &str = "\x1b[0m";

fn escape((above, below): (Rgb, Option<Rgb>)) -> String {
    let [red, green, blue] = above;
    let mut text = format!("\x1b[0;38;2;{red};{green};{blue}");
    if let Some([red, green, blue]) = below {
        // Writing to a string cannot fail.
        let _ = write!(text, ";48;2;{red};{green};{blue}");
    }
    text + "m"
}

fn emphasised(text: &str, style: Style) -> String {
    match style {
        Style::Plain => text.to_string(),
        Style::Colour => format!("\x1b[1m{text}{RESET}"),
    }
}

/// A cell without colour: the state that most of it has; shades for the density of live blocks.
fn sign(shade: Shade) -> char {
    let skipped = PARTS.saturating_sub(shade.live + shade.partial + shade.cached);
    if shade.cached > 0 && shade.cached >= shade.live + shade.partial && shade.cached >= skipped {
        '·'
    } else if shade.partial > 0 && shade.partial >= shade.live {
        '▚'
    } else {
        match shade.live + shade.partial {
            0 => ' ',
            1..=2 => '░',
            3..=5 => '▒',
            6..=7 => '▓',
            _ => '█',
        }
    }
}

/// The legend: each part with its width on the screen.
fn legend_parts(total: &Density, frame: &Frame<'_>, style: Style) -> Vec<(usize, String)> {
    let mut parts: Vec<(usize, String)> = legend(total.partial_blocks > 0, total.cached_q_blocks > 0)
        .into_iter()
        .map(|key| match style {
            Style::Plain if key.shade == Shade::default() => (6 + key.name.len(), format!("blank {}", key.name)),
            Style::Plain => (2 + key.name.len(), format!("{} {}", sign(key.shade), key.name)),
            Style::Colour => {
                let colour = TERMINAL.of(key.shade);
                (3 + key.name.len(), format!("{}▀▀{RESET} {}", escape((colour, Some(colour))), key.name))
            }
        })
        .collect();
    if let Some((rows, columns)) = frame.reduced {
        if style == Style::Plain {
            parts.push((11, "░▒▓ in part".to_string()));
        }
        let text = format!("1 cell = {rows:.1} x {columns:.1} blocks");
        parts.push((text.len(), text));
    }
    parts
}

/// Lines of whole parts, none wider than `width` unless a single part is. A part comes with its width.
fn wrap(parts: &[(usize, String)], separator: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for (length, text) in parts {
        if used > 0 && used + separator.len() + length > width {
            out.truncate(out.trim_end().len());
            out.push('\n');
            used = 0;
        }
        if used > 0 {
            out += separator;
            used += separator.len();
        }
        out += text;
        used += length;
    }
    out + "\n"
}

/// A text of exactly `width` characters: cut with an ellipsis, or filled up.
fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:<width$}");
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::draw::Segment;
    use crate::symbols::{BitMatrix, Blocks, Partial, Symbols};

    fn segments(text: u32, tokens: u32) -> [Segment; 2] {
        let segment = |name: &str, start_token, end_token| Segment { name: name.into(), start_token, end_token };
        [segment("text", 0, text), segment("image", text, tokens)]
    }

    /// A band around the diagonal, text everywhere, one cached row, one partial block.
    fn band(blocks: usize, heads: usize) -> Symbols {
        let mut symbols = Symbols::dense(heads, blocks, blocks);
        for row in 0..heads * blocks {
            let q = row % blocks;
            (2..blocks).for_each(|k| symbols.skip.set(row, k, q < 2 || q.abs_diff(k) <= blocks / 8));
        }
        symbols.cache.set(0, blocks - 2, false);
        let mut bits = BitMatrix::zeros(heads * blocks, blocks);
        bits.set(4, 4, true);
        let row_start = (0..=heads * blocks).map(|row| u32::from(row > 4)).collect();
        symbols.partial = Some(Partial { bits, row_start, tile_of: vec![0], tiles: vec![BitMatrix::ones(128, 128)] });
        symbols
    }

    #[test]
    fn small_masks_are_enlarged() {
        let (symbols, blocks) = (band(8, 1), Blocks::regular(1024, 1024, 128, 128));
        let segments = segments(256, 1024);
        let picture = Picture {
            numbers: &[],
            symbols: &symbols,
            blocks: &blocks,
            segments: &segments,
            heads: &[0],
            title: "band",
        };
        insta::assert_snapshot!(terminal(&picture, 30, Style::Plain).unwrap());
    }

    #[test]
    fn large_masks_are_reduced_and_heads_stand_side_by_side() {
        let (symbols, blocks) = (band(257, 2), Blocks::regular(257 * 128, 257 * 128, 128, 128));
        let segments = segments(20 * 128, 257 * 128);
        let picture = Picture {
            numbers: &[],
            symbols: &symbols,
            blocks: &blocks,
            segments: &segments,
            heads: &[0, 1],
            title: "",
        };
        let text = terminal(&picture, 80, Style::Plain).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 80));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn colour_changes_only_where_cells_do() {
        let (symbols, blocks) = (band(8, 1), Blocks::regular(1024, 1024, 128, 128));
        let picture =
            Picture { numbers: &[], symbols: &symbols, blocks: &blocks, segments: &[], heads: &[0], title: "band" };
        let text = terminal(&picture, 60, Style::Colour).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().any(|line| line.contains("▀▀▀▀▀▀▀▀")));
        assert!(lines.iter().all(|line| line.matches("\x1b[0;").count() <= 8), "{text}");
        assert!(
            lines.iter().all(|line| !line.contains('\x1b') || line.ends_with("\x1b[0m│") || line.contains("\x1b[0m"))
        );
    }

    #[test]
    fn any_size_and_width_can_be_drawn() {
        for (q, kv) in [(1, 1), (1, 929), (929, 1), (3, 70), (929, 929)] {
            let (symbols, blocks) = (Symbols::dense(3, q, kv), Blocks::regular(q * 64, kv * 64, 64, 64));
            let segments: Vec<Segment> = (0..40)
                .map(|n| Segment { name: format!("view {n} 字"), start_token: n * 40, end_token: n * 40 + 40 })
                .collect();
            for width in [0, 31, 80, 200, 5000] {
                for style in [Style::Plain, Style::Colour] {
                    let heads = &[2, 0, 1];
                    let picture = Picture {
                        numbers: &[],
                        symbols: &symbols,
                        blocks: &blocks,
                        segments: &segments,
                        heads,
                        title: "x",
                    };
                    let text = terminal(&picture, width, style).unwrap();
                    let widest = text.lines().map(|line| line.chars().count()).max();
                    assert!(style == Style::Colour || widest <= Some(width.max(32)));
                }
            }
        }
    }
}
