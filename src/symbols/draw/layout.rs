//! Where things lie on a page: panels in a grid, each with a caption above and labels at its axes.

use super::palette::Key;
use super::{Picture, Span, borders, place, spans};

/// How wide text is, which depends on who draws it.
pub(super) trait Metrics {
    /// Pixels of a text in the small size.
    fn width(&self, text: &str) -> f64;
}

/// Longer side of a panel when there are many.
const SMALLEST_PANEL: usize = 240;
/// Height of one line of small text, with its distance to the next.
pub(super) const LINE: usize = 20;
const MARGIN: usize = 24;
const GAP: usize = 28;
const HEADER: usize = 74;
const LABEL_GAP: f64 = 8.0;
/// Lines between segments reach this far out of the panel, to the label's side.
pub(super) const TICK: usize = 5;
/// The room left of a panel stops growing at this width of labels.
const MAX_LABEL: f64 = 110.0;

/// Sizes in pixels, everything counted from the upper left corner.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Cells of a panel.
    pub(super) rows: usize,
    /// Cells of a panel.
    pub(super) columns: usize,
    /// Blocks in a cell's row, 1 unless the mask is larger than the space.
    pub(super) blocks_per_cell: usize,
    /// Side of a cell.
    pub(super) cell: usize,
    per_row: usize,
    left: usize,
    /// Size of the page.
    pub(super) width: usize,
    /// Size of the page.
    pub(super) height: usize,
    kv_labels: bool,
}

/// Distance of two swatches of the legend, less the text between them.
pub(super) const KEY: f64 = 39.0;
/// Side of a swatch.
pub(super) const SWATCH: usize = 12;

/// What the page must be wide for besides the panels: the legend and the lines above.
pub(super) fn least_width(
    picture: &Picture<'_>,
    keys: &[Key],
    summary: &str,
    title_width: f64,
    metrics: &impl Metrics,
) -> f64 {
    let keys: f64 = keys.iter().map(|key| KEY + metrics.width(key.name)).sum();
    let grouped = picture.blocks.q_blocks().max(picture.blocks.kv_blocks()) > SMALLEST_PANEL;
    let legend = keys + metrics.width(&remark(if grouped { 100 } else { 1 }));
    // A title without end is cut by the page, not the page stretched by it.
    legend.max(metrics.width(summary)).max(title_width.min(1200.0))
}

/// The last words of the legend.
pub(super) fn remark(blocks_per_cell: usize) -> String {
    let axes = "rows: query blocks, columns: key blocks";
    match blocks_per_cell {
        1 => axes.to_string(),
        blocks => format!("{axes}, 1 cell = {blocks} x {blocks} blocks"),
    }
}

/// A label of an axis: its text and where it starts (columns) or is centred (rows), from the panel's corner.
pub(super) struct Label {
    pub(super) text: String,
    pub(super) at: f64,
}

impl Layout {
    /// `coarser` multiplies the blocks of a cell; 1 for as much detail as the panel has pixels.
    pub(super) fn new(picture: &Picture<'_>, metrics: &impl Metrics, least_width: f64, coarser: usize) -> Self {
        let panels = picture.heads.len();
        let target = match panels {
            1 => 600,
            2 => 440,
            3 => 360,
            4..=8 => 300,
            _ => SMALLEST_PANEL,
        };
        let (q_blocks, kv_blocks) = (picture.blocks.q_blocks(), picture.blocks.kv_blocks());
        let largest = q_blocks.max(kv_blocks);
        // Below one pixel a block, a cell is a group of blocks and shows their density.
        let blocks_per_cell = largest.div_ceil(target).saturating_mul(coarser);
        let cells = largest.div_ceil(blocks_per_cell);
        let cell = (target / cells).clamp(1, 40);
        let (rows, columns) = (q_blocks.div_ceil(blocks_per_cell), kv_blocks.div_ceil(blocks_per_cell));
        let per_row = match panels {
            0..=4 => panels.max(1),
            5..=6 => 3,
            7..=16 => 4,
            _ => 6,
        };
        let label = spans(picture.segments, &picture.blocks.q)
            .iter()
            .map(|span| metrics.width(span.name).min(MAX_LABEL))
            .fold(0.0, f64::max);
        let left = MARGIN + if label > 0.0 { (label + LABEL_GAP).ceil() as usize } else { 0 };
        let kv_labels = !picture.segments.is_empty();
        let mut layout = Layout { rows, columns, blocks_per_cell, cell, per_row, left, width: 0, height: 0, kv_labels };
        let wide = left + per_row * (columns * cell) + (per_row - 1) * GAP + MARGIN;
        layout.width = wide.max(left + least_width.ceil() as usize + MARGIN);
        layout.height = layout.legend_top() + LINE + MARGIN;
        layout.height += panels.saturating_sub(1) / per_row * layout.panel_step();
        layout
    }

    /// Distance of panels of one column: caption, cells, labels, gap.
    fn panel_step(&self) -> usize {
        LINE + self.rows * self.cell + if self.kv_labels { LINE } else { 0 } + GAP
    }

    fn legend_top(&self) -> usize {
        HEADER + self.panel_step() - 8
    }

    /// Upper left corner of the cells of a panel.
    pub(super) fn panel(&self, index: usize) -> (usize, usize) {
        let (row, column) = (index / self.per_row, index % self.per_row);
        let x = self.left + column * (self.columns * self.cell + GAP);
        (x, HEADER + row * self.panel_step() + LINE)
    }

    /// Whether a panel is the first of its row and has the labels of the query axis.
    pub(super) fn has_row_labels(&self, index: usize) -> bool {
        index.is_multiple_of(self.per_row)
    }

    /// Left edge of titles and legend.
    pub(super) fn text_left(&self) -> usize {
        self.left
    }

    /// Baseline of the title, of the summary and of the legend.
    pub(super) fn baselines(&self) -> [usize; 3] {
        [MARGIN + 12, MARGIN + 34, self.height - MARGIN]
    }

    /// Pixels from blocks along the key axis.
    fn x_of(&self, picture: &Picture<'_>, blocks: f64) -> f64 {
        blocks / picture.blocks.kv_blocks() as f64 * (self.columns * self.cell) as f64
    }

    fn y_of(&self, picture: &Picture<'_>, blocks: f64) -> f64 {
        blocks / picture.blocks.q_blocks() as f64 * (self.rows * self.cell) as f64
    }

    /// Borders between segments, from the panel's corner: columns, then rows.
    pub(super) fn borders(&self, picture: &Picture<'_>) -> (Vec<f64>, Vec<f64>) {
        let kv = borders(&spans(picture.segments, &picture.blocks.kv), picture.blocks.kv_blocks());
        let q = borders(&spans(picture.segments, &picture.blocks.q), picture.blocks.q_blocks());
        let columns = kv.into_iter().map(|border| self.x_of(picture, border)).collect();
        (columns, q.into_iter().map(|border| self.y_of(picture, border)).collect())
    }

    /// Labels below a panel; `at` is where the text starts.
    pub(super) fn column_labels(&self, picture: &Picture<'_>, metrics: &impl Metrics) -> Vec<Label> {
        let spans = spans(picture.segments, &picture.blocks.kv);
        let scale = |span: &Span<'_>| (self.x_of(picture, span.start), self.x_of(picture, span.end));
        let lengths: Vec<_> =
            spans.iter().map(|span| (scale(span).0, scale(span).1, metrics.width(span.name))).collect();
        labels(&spans, place(&lengths, (self.columns * self.cell) as f64, LABEL_GAP))
    }

    /// Labels left of a panel; `at` is the middle of the line.
    pub(super) fn row_labels(&self, picture: &Picture<'_>, metrics: &impl Metrics) -> Vec<Label> {
        let spans = spans(picture.segments, &picture.blocks.q);
        let line = LINE as f64 - 6.0;
        let scale = |span: &Span<'_>| (self.y_of(picture, span.start), self.y_of(picture, span.end));
        let lengths: Vec<_> = spans.iter().map(|span| (scale(span).0, scale(span).1, line)).collect();
        let placed = place(&lengths, (self.rows * self.cell) as f64, 0.0);
        let mut labels = labels(&spans, placed.into_iter().map(|at| at.map(|at| at + line / 2.0)).collect());
        labels.iter_mut().for_each(|label| shorten(&mut label.text, metrics));
        labels
    }
}

/// Cuts a label that is wider than the room left of a panel.
fn shorten(text: &mut String, metrics: &impl Metrics) {
    while metrics.width(text) > MAX_LABEL {
        let kept = text.trim_end_matches("..").chars().count().saturating_sub(1);
        *text = text.chars().take(kept).collect::<String>() + "..";
    }
}

fn labels(spans: &[Span<'_>], places: Vec<Option<f64>>) -> Vec<Label> {
    spans.iter().zip(places).filter_map(|(span, at)| Some(Label { text: span.name.to_string(), at: at? })).collect()
}
