//! Masks as SVG: sharp at every size, with real text. Equal neighbouring cells become one rectangle, and all
//! rectangles of a colour one path, so that a picture of a structured mask takes a few kilobytes.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::layout::{KEY, Layout, Metrics, SWATCH, TICK, least_width, remark};
use super::palette::{INK, MUTED, PAGE, PAPER, hex, legend};
use super::raster::{Raster, Shade};
use super::{Picture, percent};
use crate::error::{Error, Result};
use crate::symbols::statistics::Statistics;

const TITLE: f64 = 18.0;
const SMALL: f64 = 12.5;
/// A longer document is drawn again with fewer cells, but not with fewer than [`MIN_CELLS`] a side.
const MAX_BYTES: usize = 600_000;
const MIN_CELLS: usize = 64;
const GAP_FROM: usize = 6;

/// Estimated widths: which font the reader's machine has is unknown.
struct Fonts;

impl Metrics for Fonts {
    fn width(&self, text: &str) -> f64 {
        text.chars().count() as f64 * SMALL * 0.54
    }
}

/// Draws a picture; the result is a whole SVG document.
///
/// # Errors
/// [`Error::Shape`] when the parts of the picture do not fit each other.
pub fn svg(picture: &Picture<'_>) -> Result<String> {
    let statistics = picture.statistics()?;
    let blocks = picture.blocks.q_blocks().max(picture.blocks.kv_blocks());
    let mut coarser = 1;
    loop {
        let mut out = String::new();
        document(&mut out, picture, &statistics, coarser)
            .map_err(|fmt::Error| Error::Shape("the picture cannot be written".into()))?;
        // Irregular masks do not merge; then density says the same in a file that a browser opens at once.
        if out.len() <= MAX_BYTES || blocks / coarser <= MIN_CELLS {
            return Ok(out);
        }
        coarser *= 2;
    }
}

fn document(out: &mut String, picture: &Picture<'_>, statistics: &Statistics, coarser: usize) -> fmt::Result {
    let summary = picture.summary(statistics).join("  ·  ");
    let keys = legend(statistics.total.partial_blocks > 0, statistics.total.cached_q_blocks > 0);
    let title_width = picture.title.chars().count() as f64 * TITLE * 0.56;
    let layout = Layout::new(picture, &Fonts, least_width(picture, &keys, &summary, title_width, &Fonts), coarser);
    let (width, height) = (layout.width, layout.height);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\" role=\"img\" font-family=\"Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', \
         sans-serif\" font-size=\"{SMALL}\" fill=\"{}\">",
        hex(MUTED)
    )?;
    writeln!(out, "<title>{}</title>", Escaped(picture.title))?;
    writeln!(out, "<rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{}\"/>", hex(PAGE))?;
    let left = layout.text_left();
    let [title, subtitle, bottom] = layout.baselines();
    let ink = hex(INK);
    writeln!(
        out,
        "<text x=\"{left}\" y=\"{title}\" font-size=\"{TITLE}\" font-weight=\"600\" fill=\"{ink}\">{}</text>",
        Escaped(picture.title)
    )?;
    writeln!(out, "<text x=\"{left}\" y=\"{subtitle}\" xml:space=\"preserve\">{summary}</text>")?;
    for (index, &head_idx) in picture.heads.iter().enumerate() {
        let share = percent(statistics.per_head[head_idx].live_share);
        panel(out, picture, &layout, index, &format!("head {}  ·  {share}", picture.number(head_idx)))?;
    }
    let mut x = left as f64;
    for key in keys {
        let y = bottom - SWATCH + 1;
        let fill = hex(PAPER.of(key.shade));
        writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"{y}\" width=\"{SWATCH}\" height=\"{SWATCH}\" rx=\"2\" fill=\"{fill}\"/><text \
             x=\"{:.0}\" y=\"{bottom}\">{}</text>",
            x + SWATCH as f64 + 7.0,
            key.name
        )?;
        x += KEY + Fonts.width(key.name);
    }
    writeln!(out, "<text x=\"{:.0}\" y=\"{bottom}\">{}</text>", x + 6.0, remark(layout.blocks_per_cell))?;
    out.write_str("</svg>\n")
}

fn panel(out: &mut String, picture: &Picture<'_>, layout: &Layout, index: usize, caption: &str) -> fmt::Result {
    let (left, top) = layout.panel(index);
    let ink = hex(INK);
    writeln!(out, "<g transform=\"translate({left} {top})\">")?;
    writeln!(out, "<text y=\"-7\" fill=\"{ink}\" font-weight=\"500\" xml:space=\"preserve\">{caption}</text>")?;
    cells(out, picture, layout, index)?;
    let (width, height) = (layout.columns * layout.cell, layout.rows * layout.cell);
    let (columns, rows) = layout.borders(picture);
    let tick = if layout.has_row_labels(index) { TICK } else { 0 };
    if !columns.is_empty() || !rows.is_empty() {
        out.write_str("<path d=\"")?;
        columns.iter().try_for_each(|x| write!(out, "M{:.1} 0v{}", x.round() - 0.5, height + TICK))?;
        rows.iter().try_for_each(|y| write!(out, "M-{tick} {:.1}h{}", y.round() - 0.5, width + tick))?;
        writeln!(out, "\" stroke=\"{ink}\" fill=\"none\" shape-rendering=\"crispEdges\"/>")?;
    }
    for label in layout.column_labels(picture, &Fonts) {
        writeln!(out, "<text x=\"{:.1}\" y=\"{}\">{}</text>", label.at, height + 17, Escaped(&label.text))?;
    }
    if layout.has_row_labels(index) {
        for label in layout.row_labels(picture, &Fonts) {
            let (y, text) = (label.at + 4.5, Escaped(&label.text));
            writeln!(out, "<text x=\"-8\" y=\"{y:.1}\" text-anchor=\"end\">{text}</text>")?;
        }
    }
    out.write_str("</g>\n")
}

/// The cells of a panel, one path per colour, in units of a cell.
fn cells(out: &mut String, picture: &Picture<'_>, layout: &Layout, index: usize) -> fmt::Result {
    let raster = Raster::of(picture, picture.heads[index], layout.rows, layout.columns);
    let (columns, rows, cell) = (raster.columns, raster.rows, layout.cell);
    let skipped = hex(PAPER.skipped);
    writeln!(out, "<g transform=\"scale({cell})\" shape-rendering=\"crispEdges\">")?;
    writeln!(out, "<rect width=\"{columns}\" height=\"{rows}\" fill=\"{skipped}\"/>")?;
    let mut paths: BTreeMap<Shade, String> = BTreeMap::new();
    for (shade, [row, column, rows, columns]) in raster.rectangles() {
        write!(paths.entry(shade).or_default(), "M{column} {row}h{columns}v{rows}h-{columns}z")?;
    }
    for (shade, path) in &paths {
        writeln!(out, "<path fill=\"{}\" d=\"{path}\"/>", hex(PAPER.of(*shade)))?;
    }
    if cell >= GAP_FROM {
        out.write_str("<path d=\"")?;
        (1..columns).try_for_each(|column| write!(out, "M{column} 0v{rows}"))?;
        (1..rows).try_for_each(|row| write!(out, "M0 {row}h{columns}"))?;
        // Half a pixel up and left the lines cover whole pixels, and no viewer has to round them.
        let (line, half) = (1.0 / cell as f64, 0.5 / cell as f64);
        let page = hex(PAGE);
        writeln!(
            out,
            "\" stroke=\"{page}\" stroke-width=\"{line:.4}\" transform=\"translate(-{half:.4} -{half:.4})\"/>"
        )?;
    }
    out.write_str("</g>\n")
}

/// Text in XML; characters that XML forbids are left out.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => Ok(()),
            character if character.is_control() => Ok(()),
            character => f.write_char(character),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::draw::Segment;
    use crate::symbols::{Blocks, Symbols};

    #[test]
    fn text_is_escaped_and_bands_are_merged() {
        let (mut symbols, blocks) = (Symbols::dense(1, 200, 200), Blocks::regular(200, 200, 1, 1));
        for row in 0..200 {
            (0..200).for_each(|column| symbols.skip.set(row, column, row / 50 == column / 50));
        }
        let segments = [Segment { name: "a<b".into(), start_token: 0, end_token: 100 }];
        let title = "keep \"a\" & b\u{1}";
        let picture =
            Picture { numbers: &[], symbols: &symbols, blocks: &blocks, segments: &segments, heads: &[0], title };
        let text = svg(&picture).unwrap();
        assert!(text.contains("<title>keep &quot;a&quot; &amp; b</title>") && text.contains("a&lt;b"));
        assert!(text.contains("M0 0h50v50h-50zM50 50h50v50h-50z"), "{text}");
        assert!(text.len() < 3000, "{} bytes", text.len());
    }
}
