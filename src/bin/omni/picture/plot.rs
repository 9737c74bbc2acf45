//! The plot of quality over speed: one point for each strategy, and the line of those that none other beats.
//!
//! [`Plot::svg`] draws it as SVG, and [`super::svg::render_png`] makes pixels of that. Points whose quality is
//! infinite, equal to the reference that is, stand in a strip above the axis.

use std::fmt::Write as _;

use super::axis::Axis;
use super::labels::{Label, Line, Marker, Place, Rect, place};
use super::svg::{ASCENT, DESCENT, DrawError, INK, MUTED, escape, open_page, shorten, text_width};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 560.0;
/// Left and right ends of titles.
const MARGIN: f64 = 28.0;
/// The area of the points, less what the reference line's text takes at the right.
const LEFT: f64 = 76.0;
const TOP: f64 = 100.0;
const BOTTOM: f64 = HEIGHT - 62.0;
/// Height of the strip of infinite values, and its distance to the area below.
const STRIP: f64 = 34.0;
const STRIP_GAP: f64 = 10.0;

const TITLE: f64 = 18.0;
const TEXT: f64 = 12.0;
/// Labels of points end in an ellipsis above this width.
const MAX_LABEL: f64 = 230.0;
const RADIUS: f64 = 5.0;
/// Values above it, which no measurement gives, would overflow on the way to the page.
const HUGE: f64 = 1e100;

const BLUE: &str = "#1f5fa8";
const PALE: &str = "#a3b4c8";
const ORANGE: &str = "#e88a1a";
/// Orange as text, dark enough to be read on white.
const BROWN: &str = "#a85f08";
const GRID: &str = "#e6ebf1";
const AXIS: &str = "#8b97a5";

/// A strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its name.
    pub label: String,
    /// Speed, or whatever [`Plot::x_label`] says; finite.
    pub x: f64,
    /// Mean quality over the samples, in the unit of [`Plot::y_label`]; may be infinite.
    pub y: f64,
    /// Lowest quality of a sample; `y` where it is not known.
    pub low: f64,
    /// Highest quality of a sample; `y` where it is not known.
    pub high: f64,
}

/// What to draw.
#[derive(Clone, Debug, Default)]
pub struct Plot {
    /// First line.
    pub title: String,
    /// Second line: model, size, steps, device; may be empty.
    pub subtitle: String,
    /// Name and unit of the x axis.
    pub x_label: String,
    /// Name and unit of the y axis.
    pub y_label: String,
    /// The strategies; labels find their place among up to about 25 of them.
    pub points: Vec<Point>,
    /// A horizontal line with its text, such as 30 dB.
    pub reference: Option<(f64, String)>,
}

impl Plot {
    /// Whether each point is on the frontier: none other is at least as good in both and better in one.
    #[must_use]
    pub fn frontier(&self) -> Vec<bool> {
        let beats = |a: &Point, b: &Point| a.x >= b.x && a.y >= b.y && (a.x > b.x || a.y > b.y);
        self.points.iter().map(|point| !self.points.iter().any(|other| beats(other, point))).collect()
    }

    /// Draws the plot, 880 x 560 units.
    ///
    /// # Errors
    /// [`DrawError::Input`] when there are no points, or one has no place on the axes.
    pub fn svg(&self) -> Result<String, DrawError> {
        self.check()?;
        let drawing = Drawing::new(self);
        let mut page = open_page(WIDTH, HEIGHT);
        let _ = writeln!(page, "<title>{}</title>", escape(&self.title));
        drawing.header(&mut page);
        drawing.axes(&mut page);
        drawing.reference(&mut page);
        drawing.points(&mut page);
        drawing.labels(&mut page);
        page += "</svg>\n";
        Ok(page)
    }

    fn check(&self) -> Result<(), DrawError> {
        if self.points.is_empty() {
            return Err(DrawError::Input("there are no points to draw".to_owned()));
        }
        let on_x = |x: f64| x.abs() < HUGE;
        let on_y = |y: f64| y.abs() < HUGE || y == f64::INFINITY;
        match self.points.iter().find(|point| !on_x(point.x) || !on_y(point.y)) {
            Some(Point { label, x, y, .. }) => {
                Err(DrawError::Input(format!("`{label}` has no place on the axes: x is {x}, y is {y}")))
            }
            None => Ok(()),
        }
    }
}

/// A plot with the places of its parts.
struct Drawing<'a> {
    plot: &'a Plot,
    frontier: Vec<bool>,
    right: f64,
    /// Upper end of the y axis; the strip of infinite values lies above.
    top: f64,
    x: Axis,
    y: Axis,
    has_strip: bool,
}

impl<'a> Drawing<'a> {
    fn new(plot: &'a Plot) -> Self {
        let reference = plot.reference.as_ref().filter(|(y, _)| y.is_finite());
        let right =
            WIDTH - MARGIN - reference.map_or(0.0, |(_, text)| (text_width(text, TEXT) - 8.0).clamp(0.0, 160.0));
        let has_strip = plot.points.iter().any(|point| point.y.is_infinite() || point.high.is_infinite());
        let top = if has_strip { TOP + STRIP + STRIP_GAP } else { TOP };
        let x = Axis::new(plot.points.iter().map(|point| point.x), LEFT, right);
        let shown = plot.points.iter().flat_map(|point| [point.low, point.y, point.high]);
        let y = Axis::new(shown.chain(reference.map(|(y, _)| *y)), BOTTOM, top);
        Drawing { plot, frontier: plot.frontier(), right, top, x, y, has_strip }
    }

    fn y_of(&self, value: f64) -> f64 {
        if value == f64::INFINITY { TOP + STRIP / 2.0 } else { self.y.at(value) }
    }

    fn place_of(&self, point: &Point) -> Place {
        (self.x.at(point.x), self.y_of(point.y))
    }

    /// Both ends of the line from a point's lowest to its highest sample, where they differ.
    fn whisker(&self, point: &Point) -> Option<(Place, Place)> {
        let x = self.x.at(point.x);
        let low = if point.low.is_finite() { point.low } else { point.y };
        (point.high > low).then(|| ((x, self.y_of(low)), (x, self.y_of(point.high))))
    }

    /// Title, subtitle, and what the marks mean.
    fn header(&self, page: &mut String) {
        let width = WIDTH - 2.0 * MARGIN;
        let title_y = if self.plot.subtitle.is_empty() { 48.0 } else { 36.0 };
        text(page, (MARGIN, title_y), (TITLE, INK, "start"), &shorten(&self.plot.title, TITLE, width));
        text(page, (MARGIN, 57.0), (TEXT, MUTED, "start"), &shorten(&self.plot.subtitle, TEXT, width));
        let mut x = MARGIN;
        let y = 82.0;
        let mut key = |mark: &str, name: &str| {
            let _ = writeln!(page, "<g transform=\"translate({:.1} {:.1})\">{mark}</g>", x + RADIUS, y - 4.0);
            text(page, (x + 16.0, y), (TEXT, MUTED, "start"), name);
            x += 16.0 + text_width(name, TEXT) + 24.0;
        };
        key(&dot((0.0, 0.0), BLUE), "on the frontier");
        if self.frontier.contains(&false) {
            key(&dot((0.0, 0.0), PALE), "dominated");
        }
        if self.plot.points.iter().any(|point| self.whisker(point).is_some()) {
            key(&whisker_mark(((0.0, 6.0), (0.0, -6.0)), BLUE), "lowest to highest sample");
        }
        text(page, (self.right, y), (TEXT, MUTED, "end"), "better ↗");
    }

    fn axes(&self, page: &mut String) {
        let Drawing { plot, right, top, .. } = *self;
        if self.has_strip {
            let bottom = TOP + STRIP;
            let _ = writeln!(
                page,
                "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{STRIP}\" fill=\"#f4f6f9\"/>",
                right - LEFT
            );
            text(page, (LEFT - 10.0, bottom - STRIP / 2.0 + 5.0), (TEXT + 3.0, MUTED, "end"), "∞");
        }
        for (value, number) in self.x.ticks(90.0) {
            let x = self.x.at(value);
            line(page, ((x, top), (x, BOTTOM)), GRID, 1.0, "");
            if self.has_strip {
                line(page, ((x, TOP), (x, TOP + STRIP)), GRID, 1.0, "");
            }
            text(page, (x, BOTTOM + 20.0), (TEXT, MUTED, "middle"), &number);
        }
        for (value, number) in self.y.ticks(56.0) {
            let y = self.y.at(value);
            line(page, ((LEFT, y), (right, y)), GRID, 1.0, "");
            text(page, (LEFT - 10.0, y + 4.4), (TEXT, MUTED, "end"), &number);
        }
        line(page, ((LEFT, BOTTOM), (right, BOTTOM)), AXIS, 1.0, "");
        let middle = f64::midpoint(LEFT, right);
        text(
            page,
            (middle, HEIGHT - 18.0),
            (TEXT + 1.0, INK, "middle"),
            &shorten(&plot.x_label, TEXT + 1.0, right - LEFT),
        );
        let middle = f64::midpoint(TOP, BOTTOM);
        let _ = write!(page, "<g transform=\"translate({:.1} {middle:.1}) rotate(-90)\">", MARGIN + 10.0);
        text(page, (0.0, 0.0), (TEXT + 1.0, INK, "middle"), &shorten(&plot.y_label, TEXT + 1.0, BOTTOM - TOP));
        *page += "</g>\n";
    }

    fn reference(&self, page: &mut String) {
        let Some((value, name)) = self.plot.reference.as_ref().filter(|(value, _)| value.is_finite()) else { return };
        let y = self.y.at(*value);
        line(page, ((LEFT, y), (self.right, y)), ORANGE, 1.2, "5 4");
        let name = shorten(name, TEXT, WIDTH - self.right - 10.0);
        text(page, (self.right + 6.0, y + 4.4), (TEXT, BROWN, "start"), &name);
    }

    /// Places of the frontier's points, from left to right.
    fn frontier_line(&self) -> Vec<Place> {
        let on_it = self.plot.points.iter().zip(&self.frontier).filter(|(_, on_frontier)| **on_frontier);
        let mut places: Vec<Place> = on_it.map(|(point, _)| self.place_of(point)).collect();
        places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        places
    }

    /// Lines, whiskers and markers; those of the frontier over the others.
    fn points(&self, page: &mut String) {
        for ends in self.frontier_line().windows(2) {
            // A way to infinity has no slope: dashes say so.
            let dashes = if self.has_strip && ends.iter().any(|end| end.1 < TOP + STRIP) { "2 4" } else { "" };
            line(page, (ends[0], ends[1]), "#7ba3d0", 1.6, dashes);
        }
        let mut marks: Vec<(&Point, bool)> = self.plot.points.iter().zip(self.frontier.iter().copied()).collect();
        marks.sort_by_key(|(_, on_frontier)| *on_frontier);
        for (point, on_frontier) in &marks {
            if let Some(ends) = self.whisker(point) {
                *page += &whisker_mark(ends, if *on_frontier { BLUE } else { PALE });
            }
        }
        for (point, on_frontier) in marks {
            let title =
                format!("{}: {} {}, {} {}", point.label, self.plot.x_label, point.x, self.plot.y_label, point.y);
            let mark = dot(self.place_of(point), if on_frontier { BLUE } else { PALE });
            let _ = writeln!(page, "<g><title>{}</title>{mark}</g>", escape(&title));
        }
    }

    fn label_texts(&self) -> Vec<String> {
        self.plot.points.iter().map(|point| shorten(&point.label, TEXT, MAX_LABEL)).collect()
    }

    fn label_places(&self, texts: &[String]) -> Vec<Option<Label>> {
        let height = (ASCENT + DESCENT) * TEXT;
        let marker = |(point, text): (&Point, &String)| Marker {
            at: self.place_of(point),
            radius: RADIUS,
            width: text_width(text, TEXT),
            height,
        };
        let markers: Vec<Marker> = self.plot.points.iter().zip(texts).map(marker).collect();
        let whiskers = self.plot.points.iter().filter_map(|point| self.whisker(point));
        let mut lines: Vec<Line> = whiskers.map(|ends| Line { ends, cost: 9.0 }).collect();
        lines.extend(self.frontier_line().windows(2).map(|ends| Line { ends: (ends[0], ends[1]), cost: 45.0 }));
        if let Some((value, _)) = &self.plot.reference {
            let y = self.y.at(*value);
            lines.push(Line { ends: ((LEFT, y), (self.right, y)), cost: 16.0 });
        }
        place(&markers, &lines, Rect { left: LEFT, top: TOP, right: self.right, bottom: BOTTOM })
    }

    fn labels(&self, page: &mut String) {
        let texts = self.label_texts();
        let places = self.label_places(&texts);
        for ends in places.iter().flatten().filter_map(|label| label.leader) {
            line(page, ends, AXIS, 0.8, "");
        }
        for (index, (name, label)) in texts.iter().zip(&places).enumerate() {
            let Some(Label { area, .. }) = label else { continue };
            let colour = if self.frontier[index] { INK } else { MUTED };
            let (x, y) = (area.left, area.top + ASCENT * TEXT);
            // The white edge keeps letters apart from lines behind them.
            let _ = writeln!(
                page,
                "<text id=\"label-{index}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{TEXT}\" fill=\"{colour}\" \
                 stroke=\"#ffffff\" stroke-width=\"3\" stroke-linejoin=\"round\" paint-order=\"stroke\">{}</text>",
                escape(name)
            );
        }
        let missing = places.iter().filter(|label| label.is_none()).count();
        if missing > 0 {
            let note = format!("{missing} labels had no room");
            text(page, (WIDTH - MARGIN, HEIGHT - 18.0), (TEXT - 1.0, MUTED, "end"), &note);
        }
    }
}

/// Writes a text; the style is its size, colour and anchor. Writing to a string cannot fail.
fn text(page: &mut String, (x, y): Place, (size, colour, anchor): (f64, &str, &str), content: &str) {
    let content = escape(content);
    let _ = writeln!(
        page,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\">{content}</text>"
    );
}

fn line(page: &mut String, (from, to): (Place, Place), colour: &str, width: f64, dashes: &str) {
    let dashes = if dashes.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dashes}\"") };
    let _ = writeln!(
        page,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"{dashes}/>",
        from.0, from.1, to.0, to.1
    );
}

fn dot((x, y): Place, colour: &str) -> String {
    format!(
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{RADIUS}\" fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"1.2\"/>"
    )
}

/// A vertical line with a short bar at each end.
fn whisker_mark(((x, low), (_, high)): (Place, Place), colour: &str) -> String {
    const BAR: f64 = 3.0;
    let (left, right) = (x - BAR, x + BAR);
    format!(
        "<path d=\"M{x:.1} {low:.1}V{high:.1}M{left:.1} {low:.1}H{right:.1}M{left:.1} {high:.1}H{right:.1}\" \
         stroke=\"{colour}\" stroke-width=\"1\" stroke-opacity=\"0.65\" fill=\"none\"/>\n"
    )
}

#[cfg(test)]
mod tests;
