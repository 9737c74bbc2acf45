//! Masks as a PNG with a palette: small files that every viewer, browser and document takes.

use super::layout::{KEY, Layout, Metrics, SWATCH, TICK, least_width, remark};
use super::palette::{INK, MUTED, PAGE, PAPER, Rgb, legend, mix};
use super::raster::{PARTS, Raster, Shade};
use super::{Picture, font, percent};
use crate::error::{Error, Result};

/// Height of capitals of titles and of everything else, in pixels.
const TITLE: f64 = 14.0;
const SMALL: f64 = 9.0;
/// Steps from no ink to full ink at the edges of letters.
const INK_STEPS: usize = 12;
/// Cells of this many pixels get a fine line of page colour between them.
const GAP_FROM: usize = 6;

struct Font;

impl Metrics for Font {
    fn width(&self, text: &str) -> f64 {
        font::width(text, SMALL)
    }
}

/// Draws a picture; the result is a whole PNG file.
///
/// A mask with more blocks than a panel has pixels is reduced by a whole number of blocks, and the colour of a
/// cell then mixes what its blocks are. The built-in font has the characters of ASCII; others become boxes.
///
/// # Errors
/// [`Error::Shape`] when the parts of the picture do not fit each other.
pub fn png(picture: &Picture<'_>) -> Result<Vec<u8>> {
    let statistics = picture.statistics()?;
    let summary = picture.summary(&statistics).join("  ·  ");
    let keys = legend(statistics.total.partial_blocks > 0, statistics.total.cached_q_blocks > 0);
    let least_width = least_width(picture, &keys, &summary, font::width(picture.title, TITLE), &Font);
    let layout = Layout::new(picture, &Font, least_width, 1);
    let mut canvas = Canvas::new(layout.width, layout.height);
    let left = layout.text_left() as f64;
    let [title, subtitle, bottom] = layout.baselines().map(|baseline| baseline as f64);
    canvas.text(picture.title, left, title, TITLE, Ink::Strong);
    canvas.text(&summary, left, subtitle, SMALL, Ink::Muted);
    for (index, &head_idx) in picture.heads.iter().enumerate() {
        let share = percent(statistics.per_head[head_idx].live_share);
        panel(&mut canvas, picture, &layout, index, &format!("head {}  ·  {share}", picture.number(head_idx)));
    }
    let mut x = left;
    for key in keys {
        canvas.swatch(x as usize, bottom as usize - SWATCH + 1, key.shade);
        canvas.text(key.name, x + SWATCH as f64 + 7.0, bottom, SMALL, Ink::Muted);
        x += KEY + Font.width(key.name);
    }
    canvas.text(&remark(layout.blocks_per_cell), x + 6.0, bottom, SMALL, Ink::Muted);
    canvas.encode()
}

fn panel(canvas: &mut Canvas, picture: &Picture<'_>, layout: &Layout, index: usize, caption: &str) {
    let (left, top) = layout.panel(index);
    canvas.text(caption, left as f64, top as f64 - 7.0, SMALL, Ink::Strong);
    let raster = Raster::of(picture, picture.heads[index], layout.rows, layout.columns);
    let side = layout.cell - usize::from(layout.cell >= GAP_FROM);
    for row in 0..raster.rows {
        for column in 0..raster.columns {
            let (x, y) = (left + column * layout.cell, top + row * layout.cell);
            canvas.fill(x, y, side, side, Canvas::shade(raster.get(row, column)));
        }
    }
    let (width, height) = (layout.columns * layout.cell, layout.rows * layout.cell);
    let (columns, rows) = layout.borders(picture);
    // The line takes the place of the gap before its cell where there is one.
    let back = usize::from(layout.cell >= GAP_FROM);
    for x in columns {
        canvas.fill(left + (x.round() as usize).saturating_sub(back), top, 1, height + TICK, INK_INDEX);
    }
    let tick = if layout.has_row_labels(index) { TICK } else { 0 };
    for y in rows {
        canvas.fill(left - tick, top + (y.round() as usize).saturating_sub(back), width + tick - back, 1, INK_INDEX);
    }
    for label in layout.column_labels(picture, &Font) {
        canvas.text(&label.text, left as f64 + label.at, (top + height + 16) as f64, SMALL, Ink::Muted);
    }
    if layout.has_row_labels(index) {
        for label in layout.row_labels(picture, &Font) {
            let x = left as f64 - 8.0 - Font.width(&label.text);
            canvas.text(&label.text, x.max(4.0), top as f64 + label.at + SMALL / 2.0, SMALL, Ink::Muted);
        }
    }
}

#[derive(Clone, Copy)]
enum Ink {
    Strong,
    Muted,
}

/// Palette index of the page and of full ink; letters' edges and cells follow.
const PAGE_INDEX: u8 = 0;
const INK_INDEX: u8 = INK_STEPS as u8;
const SHADES_FROM: usize = 1 + 2 * INK_STEPS;

/// Pixels as palette indices.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Canvas { width, height, pixels: vec![PAGE_INDEX; width * height] }
    }

    /// Page, two ramps of ink, then all shades in the order of [`Canvas::shade`].
    fn palette() -> Vec<Rgb> {
        let ramp = |ink| (1..=INK_STEPS).map(move |step| mix(PAGE, ink, step, INK_STEPS));
        let mut colours = vec![PAGE];
        colours.extend(ramp(INK).chain(ramp(MUTED)));
        colours.extend(shades().map(|shade| PAPER.of(shade)));
        colours
    }

    /// Palette index of a shade: its rank among all triples with a sum of at most [`PARTS`].
    fn shade(shade: Shade) -> u8 {
        let triangle = |n: usize| n * (n + 1) / 2;
        let tetrahedron = |n: usize| n * (n + 1) * (n + 2) / 6;
        let parts = usize::from(PARTS);
        let (live, partial) = (usize::from(shade.live), usize::from(shade.partial));
        let before_live = tetrahedron(parts + 1) - tetrahedron(parts + 1 - live);
        let before_partial = triangle(parts + 1 - live) - triangle(parts + 1 - live - partial);
        (SHADES_FROM + before_live + before_partial + usize::from(shade.cached)) as u8
    }

    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, index: u8) {
        for row in y..(y + height).min(self.height) {
            let end = (x + width).min(self.width);
            if x < end {
                self.pixels[row * self.width + x..row * self.width + end].fill(index);
            }
        }
    }

    fn swatch(&mut self, x: usize, y: usize, shade: Shade) {
        self.fill(x, y, SWATCH, SWATCH, Canvas::shade(shade));
    }

    fn text(&mut self, text: &str, x: f64, baseline: f64, size: f64, ink: Ink) {
        let (width, height) = (self.width as i64, self.height as i64);
        font::draw(text, x, baseline, size, |x, y, coverage| {
            let step = (coverage * INK_STEPS as f64).round() as usize;
            if step == 0 || x < 0 || y < 0 || x >= width || y >= height {
                return;
            }
            let base = match ink {
                Ink::Strong => 0,
                Ink::Muted => INK_STEPS,
            };
            let pixel = &mut self.pixels[(y * width + x) as usize];
            // Neighbouring letters may touch: the darker one wins.
            let present = usize::from(*pixel).saturating_sub(base);
            if present < step || present > INK_STEPS {
                *pixel = (base + step) as u8;
            }
        });
    }

    fn encode(self) -> Result<Vec<u8>> {
        let failed = |error: png::EncodingError| Error::Shape(format!("the picture cannot be a PNG: {error}"));
        let size = |pixels: usize| {
            u32::try_from(pixels).map_err(|_| Error::Shape(format!("{pixels} pixels are too many for a PNG")))
        };
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, size(self.width)?, size(self.height)?);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(Canvas::palette().concat());
        encoder.set_compression(png::Compression::High);
        // Indices of neighbours have no arithmetic relation that a filter could use.
        encoder.set_filter(png::Filter::NoFilter);
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&self.pixels).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(bytes)
    }
}

/// All triples of shares, ascending.
fn shades() -> impl Iterator<Item = Shade> {
    (0..=PARTS).flat_map(|live| {
        (0..=PARTS - live)
            .flat_map(move |partial| (0..=PARTS - live - partial).map(move |cached| Shade { live, partial, cached }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::{Blocks, Symbols};

    #[test]
    fn shades_are_ranked_in_order() {
        for (rank, shade) in shades().enumerate() {
            assert_eq!(usize::from(Canvas::shade(shade)), SHADES_FROM + rank);
        }
        assert!(Canvas::palette().len() <= 256);
    }

    #[test]
    fn long_names_are_cut_and_do_not_stretch_the_page() {
        let (symbols, blocks) = (Symbols::dense(1, 8, 8), Blocks::regular(512, 512, 64, 64));
        let name = "a segment with a name that goes on and on 字 ".repeat(50);
        let segments = [crate::symbols::draw::Segment { name: name.clone(), start_token: 0, end_token: 512 }];
        let picture = Picture {
            numbers: &[],
            symbols: &symbols,
            blocks: &blocks,
            segments: &segments,
            heads: &[0],
            title: &name,
        };
        let bytes = png(&picture).unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        assert!(reader.info().width < 1400, "{}", reader.info().width);
        assert!(crate::symbols::draw::svg::svg(&picture).unwrap().contains("..</text>"));
    }

    #[test]
    fn size_and_palette_are_those_of_the_mask() {
        let (symbols, blocks) = (Symbols::dense(24, 929, 929), Blocks::regular(118_800, 118_800, 128, 128));
        let heads: Vec<usize> = (0..24).collect();
        for heads in [&heads[..1], &heads[..]] {
            let picture =
                Picture { numbers: &[], symbols: &symbols, blocks: &blocks, segments: &[], heads, title: "dense" };
            let bytes = png(&picture).unwrap();
            assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
            let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert!(info.width < 2000 && info.height < 1500, "{} x {}", info.width, info.height);
            let live = Canvas::shade(Shade { live: PARTS, ..Shade::default() });
            assert!(pixels.iter().filter(|&&pixel| pixel == live).count() > 200_000);
        }
    }
}
