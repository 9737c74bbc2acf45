//! A small stroke font for pictures made of pixels.
//!
//! A glyph is a list of polylines on a grid: a point is two hexadecimal digits, x and y; y runs down from the
//! height of capitals (0) over that of small letters (4) and the baseline (c) to the descenders (f). Strokes
//! are drawn with round ends and smoothed edges, so that one table serves every size.

/// Height of capitals on the grid.
const CAPITALS: f64 = 12.0;
/// Free grid columns behind a glyph, less its stroke.
const SPACING: f64 = 3.4;
/// Stroke as a share of the height of capitals.
const STROKE: f64 = 0.13;
const UNKNOWN: &str = "00707c0c00";

const GLYPHS: [(char, &str); 95] = [
    ('!', "0008 0c0c"),
    ('"', "0003 3033"),
    ('#', "301c 705c 0484 0888"),
    ('$', "82602002042666888a6c2c0a 404c"),
    ('%', "900c 0030330300 69999c6c69"),
    ('&', "8c1411305153080a2c5c88"),
    ('\'', "0003"),
    ('(', "30040a3e"),
    (')', "00343a0e"),
    ('*', "3137 0266 6206"),
    ('+', "444c 0888"),
    (',', "1b0e"),
    ('-', "0858"),
    ('.', "0c0c"),
    ('/', "600e"),
    ('0', "2050727a5c2c0a0220"),
    ('1', "12404c"),
    ('2', "02205072740c7c"),
    ('3', "02205072745636 56787a5c2c0a"),
    ('4', "5c500878"),
    ('5', "6010052454767a5c2c0a"),
    ('6', "615020020a2c5c7a77552507"),
    ('7', "00702c"),
    ('8', "205072745626040220 26080a2c5c7a7856"),
    ('9', "1b2c5c7a7250200205275775"),
    (':', "0505 0c0c"),
    (';', "1515 1b0e"),
    ('<', "74087c"),
    ('=', "0676 0a7a"),
    ('>', "04780c"),
    ('?', "02205072744648 4c4c"),
    ('@', "8a6c2c0a02206082886845545484"),
    ('A', "0c408c 1878"),
    ('B', "000c 005072745606 56888a6c0c"),
    ('C', "826020020a2c6c8a"),
    ('D', "005083895c0c00"),
    ('E', "70000c7c 0656"),
    ('F', "70000c 0656"),
    ('G', "826020020a2c6c8a8757"),
    ('H', "000c 808c 0686"),
    ('I', "000c"),
    ('J', "505a3c2c0a"),
    ('K', "000c 8007 348c"),
    ('L', "000c7c"),
    ('M', "0c0058a0ac"),
    ('N', "0c008c80"),
    ('O', "2060828a6c2c0a0220"),
    ('P', "0c005082855707"),
    ('Q', "2060828a6c2c0a0220 598d"),
    ('R', "0c005082855707 478c"),
    ('S', "82602002042666888a6c2c0a"),
    ('T', "0080 404c"),
    ('U', "000a2c6c8a80"),
    ('V', "004c80"),
    ('W', "003c629cc0"),
    ('X', "008c 800c"),
    ('Y', "004680 464c"),
    ('Z', "00800c8c"),
    ('[', "30000e3e"),
    ('\\', "006e"),
    (']', "00303e0e"),
    ('^', "033063"),
    ('_', "0d7d"),
    ('`', "0022"),
    ('a', "646c 664424060a2c4c6a"),
    ('b', "000c 062444666a4c2c0a"),
    ('c', "664424060a2c4c6a"),
    ('d', "606c 664424060a2c4c6a"),
    ('e', "0868664424060a2c4c6b"),
    ('f', "5040222c 0444"),
    ('g', "646d4f2f0e 664424060a2c4c6a"),
    ('h', "000c 062444666c"),
    ('i', "040c 0101"),
    ('j', "242d0f 2121"),
    ('k', "000c 6409 276c"),
    ('l', "000c"),
    ('m', "040c 062434565c 567484a6ac"),
    ('n', "040c 062444666c"),
    ('o', "2444666a4c2c0a0624"),
    ('p', "040f 062444666a4c2c0a"),
    ('q', "646f 664424060a2c4c6a"),
    ('r', "040c 062444"),
    ('s', "65442405071858696b4c2c0b"),
    ('t', "212a4c5c 0454"),
    ('u', "040a2c4c6a 646c"),
    ('v', "043c64"),
    ('w', "042c558ca4"),
    ('x', "046c 640c"),
    ('y', "043c 642f"),
    ('z', "04640c6c"),
    ('{', "40222507292c4e"),
    ('|', "000e"),
    ('}', "00222547292c0e"),
    ('~', "08265977"),
    ('·', "0808"),
];

type Point = (f64, f64);

/// The strokes of a character.
fn strokes(character: char) -> impl Iterator<Item = Vec<Point>> {
    let glyph = match character {
        ' ' => "",
        _ => GLYPHS.iter().find(|(known, _)| *known == character).map_or(UNKNOWN, |(_, glyph)| glyph),
    };
    glyph.split_ascii_whitespace().map(|line| {
        let digit = |byte: u8| f64::from((byte as char).to_digit(16).unwrap_or(0));
        line.as_bytes().chunks_exact(2).map(|pair| (digit(pair[0]), digit(pair[1]))).collect()
    })
}

/// Grid columns of a character without spacing.
fn columns(character: char) -> f64 {
    match character {
        ' ' => 2.0,
        '0'..='9' => 7.0,
        _ => strokes(character).flatten().map(|point| point.0).fold(0.0, f64::max),
    }
}

/// Pixels that a text takes when its capitals are `size` high.
pub(super) fn width(text: &str, size: f64) -> f64 {
    text.chars().map(|character| columns(character) + SPACING).sum::<f64>() * size / CAPITALS
}

/// Draws a text: `paint(x, y, coverage)` is called for each pixel that is covered, in `0.0..=1.0`.
/// `x` is the left end of the text, `y` its baseline.
pub(super) fn draw(text: &str, x: f64, y: f64, size: f64, mut paint: impl FnMut(i64, i64, f64)) {
    let unit = size / CAPITALS;
    let radius = (STROKE * size / 2.0).max(0.55);
    let mut left = x;
    for character in text.chars() {
        let lines: Vec<Vec<Point>> = strokes(character)
            .map(|line| line.iter().map(|point| (left + point.0 * unit, y - size + point.1 * unit)).collect())
            .collect();
        if !lines.is_empty() {
            let box_left = (left - radius - 1.0).floor() as i64;
            let box_right = (left + columns(character) * unit + radius + 1.0).ceil() as i64;
            for pixel_y in (y - size - radius - 1.0).floor() as i64..=(y + 0.3 * size + radius).ceil() as i64 {
                for pixel_x in box_left..=box_right {
                    let centre = (pixel_x as f64 + 0.5, pixel_y as f64 + 0.5);
                    let nearest = lines.iter().map(|line| distance(line, centre)).fold(f64::MAX, f64::min);
                    let coverage = (radius + 0.5 - nearest).clamp(0.0, 1.0);
                    if coverage > 0.0 {
                        paint(pixel_x, pixel_y, coverage);
                    }
                }
            }
        }
        left += (columns(character) + SPACING) * unit;
    }
}

/// Distance of a point from a polyline.
fn distance(line: &[Point], (x, y): Point) -> f64 {
    line.windows(2)
        .map(|pair| {
            let [(ax, ay), (bx, by)] = [pair[0], pair[1]];
            let (dx, dy) = (bx - ax, by - ay);
            let length = dx * dx + dy * dy;
            let along = if length == 0.0 { 0.0 } else { (((x - ax) * dx + (y - ay) * dy) / length).clamp(0.0, 1.0) };
            (x - ax - along * dx).hypot(y - ay - along * dy)
        })
        .fold(f64::MAX, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glyph_is_drawn() {
        for character in (' '..='~').chain(['·', '字']) {
            let mut pixels = 0;
            draw(&character.to_string(), 0.0, 20.0, 12.0, |_, _, _| pixels += 1);
            assert_eq!(pixels == 0, character == ' ', "{character}");
        }
        assert!(GLYPHS.iter().all(|(_, glyph)| glyph.split(' ').all(|line| line.len() % 2 == 0 && line.len() >= 4)));
    }
}
