//! SVG pages with text, and their pixels.
//!
//! One font comes with the program, so that a page has the same pixels on every machine and the width of a text is
//! known before it is placed. An SVG names the family and leaves a viewer without it to its own sans-serif, which is
//! hardly ever wider.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use resvg::{tiny_skia, usvg};

/// Value of `font-family` for the root of a page.
pub const FONT_FAMILY: &str = "DejaVu Sans, sans-serif";
/// Above and below the baseline, as shares of the font size.
pub const ASCENT: f64 = 0.928;
/// See [`ASCENT`].
pub const DESCENT: f64 = 0.236;
/// Titles and names.
pub const INK: &str = "#1b2533";
/// Captions and labels.
pub const MUTED: &str = "#556272";

/// Pixels of a PNG for one unit of the page.
const PNG_SCALE: f32 = 2.0;
/// Made by `assets/subset.sh`; its licence lies beside it.
static FONT: &[u8] = include_bytes!("../../../../assets/DejaVuSans-subset.ttf");

/// What keeps a picture from being drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrawError {
    /// What was to be drawn does not fit together.
    #[error("{0}")]
    Input(String),
    /// The page is not SVG.
    #[error("the page is not SVG that can be drawn: {0}")]
    Svg(#[from] usvg::Error),
    /// The pixels cannot be had or encoded.
    #[error("the picture cannot be a PNG: {0}")]
    Png(String),
}

static OPTIONS: LazyLock<usvg::Options<'static>> = LazyLock::new(|| {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    usvg::Options { fontdb: Arc::new(fonts), font_family: "DejaVu Sans".to_owned(), ..usvg::Options::default() }
});

/// Widths of characters at font size 1. The layout engine measures them, so this never differs from what it draws,
/// but for kerning, which makes texts narrower.
static WIDTHS: LazyLock<HashMap<char, f64>> = LazyLock::new(|| {
    let printed = ('!'..='~').chain('\u{a1}'..='\u{ff}').chain("μ–—‘’“”…←↑→↓↔↕↖↗↘↙−∞≈≤≥".chars());
    let mut page = open_page(1.0, 1.0);
    // Blanks at the ends of a text are dropped, so a blank is measured between two letters.
    let mut add = |key: char, text: &str| {
        let _ = write!(page, r#"<text id="{}" font-size="100">{}</text>"#, u32::from(key), escape(text));
    };
    printed.clone().for_each(|key| add(key, key.encode_utf8(&mut [0; 4])));
    add(' ', "x x");
    page += "</svg>";
    let Ok(tree) = usvg::Tree::from_str(&page, &OPTIONS) else { return HashMap::new() };
    let width =
        |key: char| Some(f64::from(tree.node_by_id(&u32::from(key).to_string())?.bounding_box().width()) / 100.0);
    let mut widths: HashMap<char, f64> = printed.filter_map(|key| Some((key, width(key)?))).collect();
    let blank = width(' ').zip(width('x')).map_or(0.32, |(both, x)| both - 2.0 * x);
    widths.extend([(' ', blank), ('\u{a0}', blank)]);
    widths
});

/// Units that a text takes at a font size; characters that the font lacks are drawn as boxes.
#[must_use]
pub fn text_width(text: &str, size: f64) -> f64 {
    const BOX: f64 = 0.6;
    size * text.chars().map(|key| WIDTHS.get(&key).copied().unwrap_or(BOX)).sum::<f64>()
}

/// The text, or as much of its beginning as fits into `width` with an ellipsis.
#[must_use]
pub fn shorten(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width { text.to_owned() } else { cut(text, size, width) }
}

/// As much of a text's beginning as fits into `width` with an ellipsis.
fn cut(text: &str, size: f64, width: f64) -> String {
    let mut kept: Vec<char> = text.chars().collect();
    loop {
        let short = kept.iter().collect::<String>().trim_end().to_owned() + "…";
        if kept.pop().is_none() || text_width(&short, size) <= width {
            return short;
        }
    }
}

/// Lines of a text that fit into `width`, broken at blanks; what `max_lines` cannot hold ends in an ellipsis.
#[must_use]
pub fn wrap(text: &str, size: f64, width: f64, max_lines: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match longer.filter(|line| text_width(line, size) <= width) {
            Some(line) => lines.splice(lines.len() - 1.., [line]).for_each(drop),
            None => lines.push(word.to_owned()),
        }
    }
    let too_many = lines.len() > max_lines;
    lines.truncate(max_lines);
    let last = lines.len().saturating_sub(1);
    let fit = |(index, line): (usize, &String)| {
        if too_many && index == last { cut(line, size, width) } else { shorten(line, size, width) }
    };
    lines.iter().enumerate().map(fit).collect()
}

/// Text of a page with what XML reserves replaced, and with blanks for control characters, which XML forbids.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&apos;",
            _ if character.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&character) => out.push(' '),
            _ => out.push(character),
        }
    }
    out
}

/// The beginning of a page: the root with its size in units, and a white ground. The end is `</svg>`.
#[must_use]
pub fn open_page(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FONT_FAMILY}\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    )
}

/// Pixels of a page, `[height, width, 3]`, with the page's size in pixels.
///
/// # Errors
/// [`DrawError::Svg`] when the text is not SVG, [`DrawError::Png`] when the page has no or too many pixels.
pub fn pixels(svg: &str, scale: f32) -> Result<(u32, u32, Vec<u8>), DrawError> {
    let tree = usvg::Tree::from_str(svg, &OPTIONS)?;
    let size = tree.size().to_int_size().scale_by(scale);
    let size = size.ok_or_else(|| DrawError::Png("it has no pixels".to_owned()))?;
    let (width, height) = (size.width(), size.height());
    let map = tiny_skia::Pixmap::new(width, height);
    let mut map = map.ok_or_else(|| DrawError::Png(format!("{width} x {height} pixels do not fit into memory")))?;
    map.fill(tiny_skia::Color::WHITE);
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut map.as_mut());
    // The ground is opaque, so colours are not multiplied by anything.
    let rgb = map.pixels().iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect();
    Ok((width, height, rgb))
}

/// A page as a PNG file, two pixels for each unit.
///
/// # Errors
/// As [`pixels`].
pub fn render_png(svg: &str) -> Result<Vec<u8>, DrawError> {
    let (width, height, rgb) = pixels(svg, PNG_SCALE)?;
    encode_png(width, height, &rgb)
}

/// A PNG file of pixels `[height, width, 3]`, as small as the format allows.
///
/// # Errors
/// [`DrawError::Png`] when the size does not fit the pixels.
pub fn encode_png(width: u32, height: u32, rgb: &[u8]) -> Result<Vec<u8>, DrawError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let failed = |error: png::EncodingError| DrawError::Png(error.to_string());
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// Boxes of the texts of a page whose `id` begins with `prefix`: left, top, right, bottom.
#[cfg(test)]
pub(crate) fn text_boxes(svg: &str, prefix: &str) -> Vec<[f64; 4]> {
    fn walk(group: &usvg::Group, prefix: &str, found: &mut Vec<[f64; 4]>) {
        for node in group.children() {
            match node {
                usvg::Node::Group(inner) => walk(inner, prefix, found),
                usvg::Node::Text(text) if text.id().starts_with(prefix) => {
                    let area = text.abs_bounding_box();
                    found.push([area.left(), area.top(), area.right(), area.bottom()].map(f64::from));
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(usvg::Tree::from_str(svg, &OPTIONS).unwrap().root(), prefix, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_layout() {
        for text in ["omni eval", "31.2 dB, 1.8×", "top-k 0.25 (µ ≥ −1) – “wide”", "  WAVE & <x>  "] {
            let page =
                open_page(100.0, 100.0) + &format!("<text id=\"t\" font-size=\"12\">{}</text></svg>", escape(text));
            let [left, _, right, _] = text_boxes(&page, "t")[0];
            let (found, wanted) = (text_width(text.trim(), 12.0), right - left);
            assert!(found >= wanted - 0.01 && found < wanted * 1.03, "{text}: {found} is not {wanted}");
        }
    }

    #[test]
    fn long_texts_are_wrapped_and_cut() {
        assert_eq!(wrap("a red fox", 10.0, 1000.0, 2), ["a red fox"]);
        let lines = wrap("a red fox that jumps over some snow", 10.0, 60.0, 2);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with('…') && !lines[0].ends_with('…'), "{lines:?}");
        assert!(lines.iter().all(|line| text_width(line, 10.0) <= 60.0));
        assert_eq!(shorten("abc", 10.0, 0.0), "…");
        assert!(wrap("", 10.0, 60.0, 2).is_empty() && wrap("a", 10.0, 60.0, 0).is_empty());
    }

    #[test]
    fn reserved_characters_reach_the_page() {
        let page = open_page(100.0, 20.0) + &format!("<text id=\"t\">{}</text></svg>", escape("<&'\">\u{1}\u{ffff}"));
        assert_eq!(text_boxes(&page, "t").len(), 1);
        assert!(matches!(render_png("<svg"), Err(DrawError::Svg(_))));
    }

    #[test]
    fn pages_have_two_pixels_for_each_unit() {
        let page = open_page(30.0, 20.0) + "<rect width=\"10\" height=\"10\" fill=\"#1f5fa8\"/></svg>";
        let bytes = render_png(&page).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!((info.width, info.height), (60, 40));
        assert_eq!(rgb[..3], [0x1f, 0x5f, 0xa8]);
        assert_eq!(rgb[rgb.len() - 3..], [255; 3]);
    }
}
