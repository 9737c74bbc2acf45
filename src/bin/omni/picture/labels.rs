//! Where the labels of a scatter plot stand.
//!
//! A label stands beside its marker if it can, else further away with a line that leads to it. Each place has a cost:
//! its distance, lines under the text, other markers nearer than its own. Places on a marker, on another label or
//! outside of the area are never taken. Labels take the cheapest place left, those in a crowd first, and are moved
//! a few times afterwards, when all the others have a place.

use std::f64::consts::TAU;

/// Clear space between labels, and between labels and markers.
const CLEARANCE: f64 = 2.0;
/// From a marker's edge to the labels that need no leader.
const BESIDE: f64 = 4.0;
/// From a marker's edge to the labels tried.
const DISTANCES: [f64; 13] = [BESIDE, 9.0, 15.0, 22.0, 30.0, 40.0, 52.0, 66.0, 82.0, 100.0, 125.0, 160.0, 200.0];
const DIRECTIONS: usize = 24;
/// Markers nearer than this make a crowd.
const CROWD: f64 = 70.0;
const SWEEPS: usize = 4;

const LEADER_COST: f64 = 8.0;
/// An upright leader lies on the whisker of its marker, where it is not seen.
const HIDDEN_LEADER_COST: f64 = 20.0;
const CROSSED_LEADERS_COST: f64 = 60.0;
/// A marker of another label is as near as its own.
const UNCLEAR_COST: f64 = 14.0;

/// Units from the upper left corner of the page.
pub type Place = (f64, f64);

/// A rectangle of the page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// Smallest x.
    pub left: f64,
    /// Smallest y.
    pub top: f64,
    /// Largest x.
    pub right: f64,
    /// Largest y.
    pub bottom: f64,
}

impl Rect {
    fn around((x, y): Place, width: f64, height: f64) -> Self {
        Rect { left: x - width / 2.0, top: y - height / 2.0, right: x + width / 2.0, bottom: y + height / 2.0 }
    }

    fn grown(self, by: f64) -> Self {
        Rect { left: self.left - by, top: self.top - by, right: self.right + by, bottom: self.bottom + by }
    }

    fn contains(self, other: Rect) -> bool {
        self.left <= other.left && self.top <= other.top && self.right >= other.right && self.bottom >= other.bottom
    }

    fn overlaps(self, other: Rect) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    fn nearest(self, (x, y): Place) -> Place {
        (x.max(self.left).min(self.right), y.max(self.top).min(self.bottom))
    }

    fn distance(self, place: Place) -> f64 {
        let (x, y) = self.nearest(place);
        (place.0 - x).hypot(place.1 - y)
    }

    /// Whether a line has a part inside, by Liang and Barsky.
    fn is_crossed_by(self, (from, to): (Place, Place)) -> bool {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let edges = [
            (-dx, from.0 - self.left),
            (dx, self.right - from.0),
            (-dy, from.1 - self.top),
            (dy, self.bottom - from.1),
        ];
        let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
        for (direction, room) in edges {
            match room / direction {
                _ if direction == 0.0 && room < 0.0 => return false,
                _ if direction == 0.0 => {}
                at if direction < 0.0 => enter = enter.max(at),
                at => leave = leave.min(at),
            }
        }
        enter < leave
    }
}

/// A marker with the size of its label.
#[derive(Clone, Copy, Debug)]
pub struct Marker {
    /// Centre.
    pub at: Place,
    /// Half of the marker's size.
    pub radius: f64,
    /// Width of the label.
    pub width: f64,
    /// Height of the label.
    pub height: f64,
}

/// A line that labels had better not cover.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Both ends.
    pub ends: (Place, Place),
    /// Cost of covering it, in units of distance.
    pub cost: f64,
}

/// Where a label stands.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// What the text takes.
    pub area: Rect,
    /// From the marker's edge to the text, where the label is not beside its marker.
    pub leader: Option<(Place, Place)>,
}

/// Finds a place for the label of each marker; `None` where there is none.
#[must_use]
pub fn place(markers: &[Marker], lines: &[Line], bounds: Rect) -> Vec<Option<Label>> {
    let mut labels: Vec<Option<Label>> = vec![None; markers.len()];
    let crowd = |marker: &Marker| markers.iter().filter(|other| gap(marker.at, other.at) < CROWD).count();
    let mut order: Vec<usize> = (0..markers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(crowd(&markers[index])));
    for _ in 0..=SWEEPS {
        for &index in &order {
            labels[index] = None;
            labels[index] = cheapest(index, markers, lines, bounds, &labels);
        }
    }
    labels
}

fn cheapest(index: usize, markers: &[Marker], lines: &[Line], bounds: Rect, labels: &[Option<Label>]) -> Option<Label> {
    let mut best: Option<(f64, Label)> = None;
    for (label, cost) in candidates(&markers[index]) {
        // The places further away are many, and most of them cost more before anything is looked at.
        if best.is_some_and(|(least, _)| least <= cost) || !bounds.contains(label.area) {
            continue;
        }
        if let Some(more) = cost_among(&label, index, markers, lines, labels)
            && best.is_none_or(|(least, _)| cost + more < least)
        {
            best = Some((cost + more, label));
        }
    }
    best.map(|(_, label)| label)
}

/// The places of a label with what they cost by themselves.
fn candidates(marker: &Marker) -> impl Iterator<Item = (Label, f64)> + '_ {
    let all = DISTANCES.iter().flat_map(|&distance| (0..DIRECTIONS).map(move |direction| (distance, direction)));
    all.map(|(distance, direction)| {
        let (sin, cos) = (TAU * direction as f64 / DIRECTIONS as f64).sin_cos();
        // Around the axes the label slides along its marker; from about 45 degrees on its corner is nearest.
        let slide = |part: f64| (1.4 * part).clamp(-1.0, 1.0) / 2.0;
        let reach = marker.radius + distance;
        let x = marker.at.0 + cos * reach + slide(cos) * marker.width;
        let y = marker.at.1 + sin * reach + slide(sin) * marker.height;
        let area = Rect::around((x, y), marker.width, marker.height);
        // To the right is read best, then left, then above and below.
        let preference = 1.5 * (1.0 - cos) + 2.5 * sin.abs() + if sin > 0.01 { 0.5 } else { 0.0 };
        let end = area.nearest(marker.at);
        let length = gap(marker.at, end);
        if length <= marker.radius + 2.0 * BESIDE {
            return (Label { area, leader: None }, distance + preference);
        }
        let along = |to: f64| {
            let share = to / length;
            (marker.at.0 + share * (end.0 - marker.at.0), marker.at.1 + share * (end.1 - marker.at.1))
        };
        let leader = Some((along(marker.radius + 1.0), along(length - 1.0)));
        let hidden = if (end.0 - marker.at.0).abs() < marker.radius { HIDDEN_LEADER_COST } else { 0.0 };
        (Label { area, leader }, distance + preference + LEADER_COST + hidden)
    })
}

/// What a place costs among everything else; `None` when it is taken.
fn cost_among(
    label: &Label,
    index: usize,
    markers: &[Marker],
    lines: &[Line],
    labels: &[Option<Label>],
) -> Option<f64> {
    let own = label.area.distance(markers[index].at);
    let mut cost = 0.0;
    for (other, marker) in markers.iter().enumerate() {
        let side = 2.0 * marker.radius;
        let spot = Rect::around(marker.at, side, side).grown(CLEARANCE);
        // Markers at the same place share their spot: a leader from it starts inside.
        let apart = gap(marker.at, markers[index].at) > side;
        let covered = label.area.distance(marker.at) < marker.radius + CLEARANCE;
        if covered || (apart && label.leader.is_some_and(|leader| spot.is_crossed_by(leader))) {
            return None;
        }
        if other != index && label.area.distance(marker.at) < own + 3.0 {
            cost += if label.leader.is_some() { UNCLEAR_COST / 3.0 } else { UNCLEAR_COST };
        }
    }
    for other in labels.iter().flatten() {
        let spot = other.area.grown(CLEARANCE);
        let crossed = |area: Rect, leader: Option<(Place, Place)>| leader.is_some_and(|line| area.is_crossed_by(line));
        if label.area.overlaps(spot) || crossed(spot, label.leader) || crossed(label.area, other.leader) {
            return None;
        }
        if label.leader.zip(other.leader).is_some_and(|(a, b)| cross(a, b)) {
            cost += CROSSED_LEADERS_COST;
        }
    }
    let covered = lines.iter().filter(|line| label.area.is_crossed_by(line.ends));
    Some(cost + covered.map(|line| line.cost).sum::<f64>())
}

fn gap(a: Place, b: Place) -> f64 {
    (a.0 - b.0).hypot(a.1 - b.1)
}

/// Whether two lines cross between their ends.
fn cross(a: (Place, Place), b: (Place, Place)) -> bool {
    let side =
        |(from, to): (Place, Place), at: Place| (to.0 - from.0) * (at.1 - from.1) - (to.1 - from.1) * (at.0 - from.0);
    side(a, b.0) * side(a, b.1) < 0.0 && side(b, a.0) * side(b, a.1) < 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Rect = Rect { left: 0.0, top: 0.0, right: 400.0, bottom: 300.0 };

    fn marker(x: f64, y: f64) -> Marker {
        Marker { at: (x, y), radius: 4.0, width: 60.0, height: 14.0 }
    }

    #[test]
    fn a_lone_label_stands_right_of_its_marker_or_left_at_the_border() {
        let label = place(&[marker(100.0, 100.0)], &[], PAGE)[0].unwrap();
        assert_eq!((label.area.left, label.area.top, label.leader), (108.0, 93.0, None));
        let label = place(&[marker(390.0, 100.0)], &[], PAGE)[0].unwrap();
        assert!((label.area.right - 382.0).abs() < 1e-9, "{label:?}");
    }

    #[test]
    fn lines_are_avoided_where_that_is_cheap() {
        let line = Line { ends: ((130.0, 0.0), (130.0, 300.0)), cost: 20.0 };
        let label = place(&[marker(100.0, 100.0)], &[line], PAGE)[0].unwrap();
        assert!(label.area.right < 130.0, "{label:?}");
    }

    #[test]
    fn equal_markers_get_leaders_and_labels_without_room_are_left_out() {
        let markers = vec![marker(200.0, 150.0); 6];
        let labels = place(&markers, &[], PAGE);
        assert!(labels.iter().all(Option::is_some));
        assert!(labels.iter().flatten().any(|label| label.leader.is_some()));
        let narrow = Rect { right: 50.0, ..PAGE };
        assert!(place(&[marker(20.0, 100.0)], &[], narrow)[0].is_none());
    }

    #[test]
    fn lines_and_rectangles() {
        let area = Rect::around((0.0, 0.0), 10.0, 10.0);
        assert!(area.is_crossed_by(((-9.0, -9.0), (9.0, 8.0))));
        assert!(area.is_crossed_by(((0.0, -20.0), (0.0, 20.0))));
        assert!(!area.is_crossed_by(((6.0, -20.0), (6.0, 20.0))));
        assert!(!area.is_crossed_by(((-20.0, 0.0), (-6.0, 0.0))));
        assert!(cross(((0.0, 0.0), (2.0, 2.0)), ((0.0, 2.0), (2.0, 0.0))));
        assert!(!cross(((0.0, 0.0), (2.0, 2.0)), ((3.0, 0.0), (2.5, 9.0))));
    }
}
