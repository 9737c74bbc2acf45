//! The contact sheet: images of several strategies (rows) for several prompts (columns), to be compared by eye.
//!
//! Texts are drawn as an SVG page first. The images are then copied over it as they are, each pixel `scale` times in
//! both directions: smoothing would hide what the sheet is to show.

use std::fmt::Write as _;

use super::svg::{DrawError, INK, MUTED, encode_png, escape, open_page, pixels, text_width, wrap};

/// Bounds of the font size, which follows the size of the images.
const SMALLEST_TEXT: f64 = 13.0;
const LARGEST_TEXT: f64 = 40.0;
/// Size of captions as a share of the font size.
const CAPTION: f64 = 0.85;
/// From one line to the next, in font sizes.
const LINE: f64 = 1.3;
/// Widest names, in font sizes, and their lines.
const LABEL_WIDTH: f64 = 16.0;
const LABEL_LINES: usize = 3;
/// Columns are no narrower than this many font sizes, for the sake of their headings.
const COLUMN_WIDTH: f64 = 7.0;
const HEADING_LINES: usize = 3;
/// Pixels along one side; more would be a sheet that viewers refuse.
const MAX_SIDE: usize = 30_000;

/// The images of one strategy.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The strategy.
    pub name: &'a str,
    /// What is to be said of it: `31.2 dB, 1.8×`; may be empty.
    pub caption: &'a str,
    /// One image for each column, each as [`Sheet::side`] says.
    pub images: Vec<&'a [f32]>,
}

/// What to draw. The first row is the reference, set off from the others by a wider gap.
///
/// # Shapes
/// each image: `[3, side, side]`, row-major, in `-1.0..=1.0`.
#[derive(Clone, Debug)]
pub struct Sheet<'a> {
    /// First line; may be empty.
    pub title: &'a str,
    /// Headings of the columns: the prompts.
    pub columns: Vec<&'a str>,
    /// From above.
    pub rows: Vec<Row<'a>>,
    /// Height and width of the images, in pixels.
    pub side: usize,
    /// Pixels of the sheet, along one side, for one of an image; at least 1.
    pub scale: usize,
}

impl Sheet<'_> {
    /// Draws the sheet; the result is a whole PNG file.
    ///
    /// # Errors
    /// [`DrawError::Input`] when an image has another size, a row another number of images, or there are none;
    /// [`DrawError::Png`] when the sheet is too large.
    pub fn png(&self) -> Result<Vec<u8>, DrawError> {
        self.check()?;
        let layout = Layout::new(self);
        let (width, height, mut rgb) = pixels(&layout.page(self), 1.0)?;
        for (row_idx, row) in self.rows.iter().enumerate() {
            for (column_idx, image) in row.images.iter().enumerate() {
                self.copy(image, layout.corner(row_idx, column_idx), width as usize, &mut rgb);
            }
        }
        encode_png(width, height, &rgb)
    }

    fn check(&self) -> Result<(), DrawError> {
        let wrong = |message: String| Err(DrawError::Input(message));
        let (side, scale) = (self.side, self.scale);
        if self.rows.is_empty() || self.columns.is_empty() || side == 0 || scale == 0 {
            return wrong("a sheet has at least one row, one column and one pixel in an image".to_owned());
        }
        // Rows and columns count as 16 pixels more, for what lies between them.
        let across = side.saturating_mul(scale).saturating_add(16).saturating_mul(self.columns.len());
        let down = side.saturating_mul(scale).saturating_add(16).saturating_mul(self.rows.len());
        if across.max(down) > MAX_SIDE {
            let (rows, columns) = (self.rows.len(), self.columns.len());
            return wrong(format!(
                "{rows} x {columns} images of {side} x {side} pixels, {scale} times enlarged, make a sheet of more than {MAX_SIDE} pixels"
            ));
        }
        for row in &self.rows {
            let (found, wanted) = (row.images.len(), self.columns.len());
            if found != wanted {
                return wrong(format!("the row `{}` has {found} images for {wanted} columns", row.name));
            }
            if let Some(image) = row.images.iter().find(|image| image.len() != 3 * side * side) {
                let found = image.len();
                return wrong(format!("an image of `{}` has {found} values, not 3 x {side} x {side}", row.name));
            }
        }
        Ok(())
    }

    /// Puts an image onto the sheet, `width` pixels wide, with its upper left corner at `(left, top)`.
    fn copy(&self, image: &[f32], (left, top): (usize, usize), width: usize, rgb: &mut [u8]) {
        let (side, scale) = (self.side, self.scale);
        let plane = side * side;
        for y in 0..side * scale {
            let start = 3 * ((top + y) * width + left);
            let line = rgb.get_mut(start..start + 3 * side * scale).unwrap_or_default();
            for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
                let from = y / scale * side + x / scale;
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = byte(image[channel * plane + from]);
                }
            }
        }
    }
}

/// One image as a PNG file.
///
/// # Shapes
/// `image`: `[3, side, side]`, in `-1.0..=1.0`.
///
/// # Errors
/// [`DrawError::Png`] when it has another size.
pub fn png(image: &[f32], side: usize) -> Result<Vec<u8>, DrawError> {
    let plane = side * side;
    let pixel = |at: usize| (0..3).filter_map(move |channel| image.get(channel * plane + at).map(|&value| byte(value)));
    let rgb: Vec<u8> = (0..plane).flat_map(pixel).collect();
    encode_png(side as u32, side as u32, &rgb)
}

/// -1 becomes 0 and 1 becomes 255, rounded; NaN is black.
fn byte(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

/// Places in pixels.
struct Layout {
    /// Font size.
    size: f64,
    margin: usize,
    gap: usize,
    /// Lines of each heading and each name.
    headings: Vec<Vec<String>>,
    names: Vec<Vec<String>>,
    captions: Vec<Vec<String>>,
    cell: usize,
    /// Corner of the first image, and the distances to the next.
    left: usize,
    top: usize,
    column_step: usize,
    row_step: usize,
}

impl Layout {
    fn new(sheet: &Sheet<'_>) -> Self {
        let cell = sheet.side * sheet.scale;
        let size = (cell as f64 / 15.0).clamp(SMALLEST_TEXT, LARGEST_TEXT).round();
        let [margin, gap] = [1.6, 0.5].map(|share| (share * size).round() as usize);
        let column = cell.max((COLUMN_WIDTH * size) as usize);
        let lines = |text: &str| wrap(text, size, LABEL_WIDTH * size, LABEL_LINES);
        let small = |text: &str| wrap(text, CAPTION * size, LABEL_WIDTH * size, LABEL_LINES);
        let headings: Vec<_> =
            sheet.columns.iter().map(|text| wrap(text, size, column as f64 - size / 2.0, HEADING_LINES)).collect();
        let names: Vec<_> = sheet.rows.iter().map(|row| lines(row.name)).collect();
        let captions: Vec<_> = sheet.rows.iter().map(|row| small(row.caption)).collect();
        let widest =
            |all: &[Vec<String>], size| all.iter().flatten().map(|line| text_width(line, size)).fold(0.0, f64::max);
        let label = widest(&names, size).max(widest(&captions, CAPTION * size)).ceil() as usize;
        let longest = |all: &[Vec<String>]| all.iter().map(Vec::len).max().unwrap_or(0) as f64;
        let label_height = (longest(&names) + CAPTION * longest(&captions)) * LINE * size;
        let heading_height = (longest(&headings) * LINE * size).ceil() as usize;
        let title_height = if sheet.title.is_empty() { 0 } else { (2.4 * size) as usize };
        Layout {
            size,
            margin,
            gap,
            cell,
            left: margin + if label > 0 { label + size as usize } else { 0 },
            top: margin + title_height + heading_height,
            column_step: column + gap,
            row_step: cell.max(label_height.ceil() as usize) + gap,
            headings,
            names,
            captions,
        }
    }

    /// Upper left corner of an image.
    fn corner(&self, row_idx: usize, column_idx: usize) -> (usize, usize) {
        let set_off = if row_idx > 0 { self.gap } else { 0 };
        (self.left + column_idx * self.column_step, self.top + row_idx * self.row_step + set_off)
    }

    /// The texts, on a page as large as the sheet.
    fn page(&self, sheet: &Sheet<'_>) -> String {
        let (size, margin) = (self.size, self.margin as f64);
        let (right, bottom) = self.corner(sheet.rows.len(), sheet.columns.len());
        let mut right = (right - self.gap + self.margin) as f64;
        let title = 1.3 * size;
        right = right.max((2.0 * margin + text_width(sheet.title, title)).min(MAX_SIDE as f64).ceil());
        let mut page = open_page(right, (bottom - self.gap + self.margin) as f64);
        text(&mut page, (margin, margin + 1.1 * size), title, INK, sheet.title);
        for (column_idx, lines) in self.headings.iter().enumerate() {
            let (x, top) = self.corner(0, column_idx);
            // Headings stand on their images, however many lines the others have.
            let first = top as f64 - 0.5 * size - (lines.len().saturating_sub(1)) as f64 * LINE * size;
            for (index, line) in lines.iter().enumerate() {
                text(&mut page, (x as f64, first + index as f64 * LINE * size), size, INK, line);
            }
        }
        for (row_idx, (names, captions)) in self.names.iter().zip(&self.captions).enumerate() {
            let (_, top) = self.corner(row_idx, 0);
            let all = names.iter().map(|line| (line, size, INK));
            let all = all.chain(captions.iter().map(|line| (line, CAPTION * size, MUTED)));
            let height: f64 = all.clone().map(|(_, size, _)| LINE * size).sum();
            let mut y = top as f64 + (self.cell as f64 - height).max(0.0) / 2.0;
            for (line, size, colour) in all {
                // A line's middle is a third of the font size above the baseline.
                text(&mut page, (margin, y + (LINE / 2.0 + 0.35) * size), size, colour, line);
                y += LINE * size;
            }
        }
        page += "</svg>\n";
        page
    }
}

fn text(page: &mut String, (x, y): (f64, f64), size: f64, colour: &str, content: &str) {
    let content = escape(content);
    // Writing to a string cannot fail.
    let _ =
        writeln!(page, "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size:.1}\" fill=\"{colour}\">{content}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> (usize, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        (info.width as usize, rgb)
    }

    /// An image whose pixels are all different, at 16 pixels a side.
    fn image(shift: usize) -> Vec<f32> {
        (0..3 * 16 * 16).map(|index| ((index * 7 + shift) % 256) as f32 / 127.5 - 1.0).collect()
    }

    fn sheet<'a>(images: &'a [Vec<f32>], columns: usize) -> Sheet<'a> {
        let row = |images: &'a [Vec<f32>]| Row {
            name: "FlashOmni <fast> & more",
            caption: "31.2 dB, 1.8×",
            images: images.iter().map(Vec::as_slice).collect(),
        };
        Sheet {
            title: "Samples",
            columns: vec!["a red fox in the snow, seen from far above"; columns],
            rows: images.chunks(columns).map(row).collect(),
            side: 16,
            scale: 3,
        }
    }

    #[test]
    fn pixels_of_images_are_copied_exactly() {
        let images: Vec<Vec<f32>> = (0..6).map(|index| image(31 * index)).collect();
        let sheet = sheet(&images, 2);
        let layout = Layout::new(&sheet);
        let (width, rgb) = decode(&sheet.png().unwrap());
        for (index, image) in images.iter().enumerate() {
            let (left, top) = layout.corner(index / 2, index % 2);
            for (y, x) in (0..48).flat_map(|y| (0..48).map(move |x| (y, x))) {
                let start = 3 * ((top + y) * width + left + x);
                let from = y / 3 * 16 + x / 3;
                let wanted = [0, 1, 2].map(|channel| ((channel * 256 + from) * 7 + 31 * index) as u8);
                assert_eq!(rgb[start..start + 3], wanted, "image {index}, {x} {y}, {}", image.len());
            }
            let beside = 3 * (top * width + left - 1);
            assert_eq!(rgb[beside..beside + 3], [255; 3]);
        }
    }

    #[test]
    fn texts_stand_apart_from_images() {
        let images = vec![image(0); 6];
        let sheet = sheet(&images, 2);
        let layout = Layout::new(&sheet);
        let mut page = layout.page(&sheet);
        page = page.replace("<text ", "<text id=\"t\" ");
        let boxes = crate::picture::svg::text_boxes(&page, "t");
        assert!(boxes.len() >= 1 + 2 * 3 + 3 * 2, "{boxes:?}");
        for [left, top, right, bottom] in boxes {
            assert!(left >= 0.0 && top >= 0.0);
            for (row_idx, column_idx) in (0..3).flat_map(|row| [(row, 0), (row, 1)]) {
                let (x, y) = layout.corner(row_idx, column_idx);
                let (x, y, cell) = (x as f64, y as f64, layout.cell as f64);
                assert!(right <= x || left >= x + cell || bottom <= y + 0.5 || top >= y + cell);
            }
        }
    }

    #[test]
    fn values_become_bytes() {
        assert_eq!([-3.0, -1.0, 0.0, 1.0, 2.0, f32::NAN].map(byte), [0, 0, 128, 255, 255, 0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let images = vec![image(0); 3];
        assert!(sheet(&images, 2).png().unwrap_err().to_string().contains("1 images for 2 columns"));
        assert!(Sheet { side: 15, ..sheet(&images, 3) }.png().unwrap_err().to_string().contains("768 values"));
        assert!(Sheet { scale: usize::MAX, ..sheet(&images, 3) }.png().is_err());
        assert!(Sheet { scale: 0, ..sheet(&images, 3) }.png().is_err());
        assert!(sheet(&images, 3).png().is_ok());
    }
}
