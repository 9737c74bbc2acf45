//! Colours of the states, on paper (PNG, SVG) and in terminals.

use super::raster::{PARTS, Shade};

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Colours of the four states.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    pub(super) live: Rgb,
    pub(super) partial: Rgb,
    pub(super) cached: Rgb,
    pub(super) skipped: Rgb,
}

/// On a white page.
pub(super) const PAPER: Palette = Palette {
    live: [0x1f, 0x5f, 0xa8],
    partial: [0xe8, 0x8a, 0x1a],
    cached: [0xb4, 0xbc, 0xc6],
    skipped: [0xe9, 0xed, 0xf2],
};

/// In a terminal, where the page is dark more often than not.
pub(super) const TERMINAL: Palette = Palette {
    live: [0x4c, 0x9f, 0xee],
    partial: [0xf2, 0xa4, 0x3a],
    cached: [0x6b, 0x72, 0x7d],
    skipped: [0x1f, 0x24, 0x2b],
};

/// Page of PNG and SVG.
pub(super) const PAGE: Rgb = [0xff, 0xff, 0xff];
/// Titles and borders of segments.
pub(super) const INK: Rgb = [0x1b, 0x25, 0x33];
/// Captions and labels.
pub(super) const MUTED: Rgb = [0x55, 0x62, 0x72];

impl Palette {
    /// The colour of a cell: its states mixed by their shares.
    pub(super) fn of(&self, shade: Shade) -> Rgb {
        let rest = PARTS.saturating_sub(shade.live + shade.partial + shade.cached);
        let parts =
            [(self.live, shade.live), (self.partial, shade.partial), (self.cached, shade.cached), (self.skipped, rest)];
        [0, 1, 2].map(|channel| {
            let sum: u32 = parts.iter().map(|(colour, part)| u32::from(colour[channel]) * u32::from(*part)).sum();
            (sum / u32::from(PARTS)) as u8
        })
    }
}

/// `below` covered by `above` to `level` parts of `levels`.
pub(super) fn mix(below: Rgb, above: Rgb, level: usize, levels: usize) -> Rgb {
    [0, 1, 2].map(|channel| {
        let (a, b) = (usize::from(below[channel]), usize::from(above[channel]));
        ((a * (levels - level) + b * level) / levels) as u8
    })
}

/// `#rrggbb`.
pub(super) fn hex([red, green, blue]: Rgb) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// A state as the legend shows it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) shade: Shade,
}

/// The states that a picture needs a key for, of those there are.
pub(super) fn legend(partial: bool, cached: bool) -> Vec<Key> {
    let none = Shade::default();
    let mut keys = vec![Key { name: "computed", shade: Shade { live: PARTS, ..none } }];
    if partial {
        keys.push(Key { name: "token mask", shade: Shade { partial: PARTS, ..none } });
    }
    keys.push(Key { name: "skipped", shade: none });
    if cached {
        keys.push(Key { name: "cached", shade: Shade { cached: PARTS, ..none } });
    }
    keys
}
