//! Tests of the plot.

use super::super::svg::{render_png, text_boxes};
use super::*;

/// Numbers in `0.0..1.0` that are the same everywhere.
fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1_u64 << 24) as f64
    }
}

fn point(label: &str, x: f64, y: f64) -> Point {
    Point { label: label.to_owned(), x, y, low: y, high: y }
}

fn plot(points: Vec<Point>) -> Plot {
    Plot {
        title: "Quality over speed".to_owned(),
        x_label: "speed-up".to_owned(),
        y_label: "PSNR".to_owned(),
        points,
        reference: Some((30.0, "30 dB".to_owned())),
        ..Plot::default()
    }
}

fn random_plot(seed: u64, count: usize) -> Plot {
    let mut next = random(seed);
    let points = (0..count).map(|index| {
        let (x, y) = (1.0 + 1.6 * next(), 22.0 + 23.0 * next());
        let label = format!("strategy {index} at {:.2}", next());
        Point { low: y - 3.0 * next(), high: y + 3.0 * next(), ..point(&label, x, y) }
    });
    plot(points.collect())
}

fn circles(svg: &str) -> Vec<Place> {
    let number = |text: &str, name: &str| text.split(name).nth(1)?.split('"').next()?.parse::<f64>().ok();
    let marks = svg.lines().filter(|line| line.starts_with("<g><title>"));
    marks.filter_map(|mark| number(mark, "cx=\"").zip(number(mark, "cy=\""))).collect()
}

/// Measures the texts as the SVG library lays them out, not as they were meant to lie.
#[test]
fn labels_lie_inside_and_apart() {
    for seed in 0..8 {
        let svg = random_plot(seed, 20).svg().unwrap();
        let boxes = text_boxes(&svg, "label-");
        assert_eq!((boxes.len(), circles(&svg).len()), (20, 20), "seed {seed}");
        for (index, &[left, top, right, bottom]) in boxes.iter().enumerate() {
            assert!(left >= LEFT - 0.1 && right <= WIDTH - MARGIN && top >= TOP - 0.1 && bottom <= BOTTOM + 0.1);
            for other in &boxes[index + 1..] {
                let apart = right <= other[0] || other[2] <= left || bottom <= other[1] || other[3] <= top;
                assert!(apart, "seed {seed}: {:?} and {other:?}", boxes[index]);
            }
            for (x, y) in circles(&svg) {
                let (dx, dy) = ((left - x).max(x - right).max(0.0), (top - y).max(y - bottom).max(0.0));
                assert!(dx.hypot(dy) > RADIUS, "seed {seed}: label {index} covers a point");
            }
        }
    }
}

#[test]
fn the_frontier_is_what_none_other_beats() {
    let plot = plot(vec![
        point("dense", 1.0, f64::INFINITY),
        point("slow and worse", 1.4, 30.0),
        point("good", 1.5, 35.0),
        point("same", 1.5, 35.0),
        point("as fast, worse", 1.5, 34.0),
        point("fast", 2.0, 30.0),
    ]);
    assert_eq!(plot.frontier(), [true, false, true, true, false, true]);
}

#[test]
fn infinite_values_stand_in_the_strip() {
    let svg = plot(vec![point("dense", 1.0, f64::INFINITY), point("a", 1.5, 35.0)]).svg().unwrap();
    let circles = circles(&svg);
    assert!(circles.iter().any(|place| (TOP..TOP + STRIP).contains(&place.1)));
    assert!(circles.iter().any(|place| (TOP + STRIP + STRIP_GAP..BOTTOM).contains(&place.1)));
    assert!(svg.contains("∞"));
    let only = plot(vec![point("dense", 1.0, f64::INFINITY)]).svg().unwrap();
    assert_eq!(text_boxes(&only, "label-").len(), 1);
}

#[test]
fn every_plot_is_svg() {
    let mut odd = random_plot(3, 60);
    odd.points[0].label = "<b> & \"c\" \u{7} ]]> 字".to_owned();
    odd.points[1].label = String::new();
    odd.points[2].label = "long ".repeat(80);
    odd.title = "a & b ".repeat(40);
    odd.reference = Some((f64::NAN, "none".to_owned()));
    for plot in [odd, plot(vec![point("one", 1.0, 30.0)]), plot(vec![point("one", 1.0, 30.0); 25])] {
        let png = render_png(&plot.svg().unwrap()).unwrap();
        assert_eq!(png[1..4], *b"PNG");
    }
}

#[test]
fn points_without_a_place_are_named() {
    let wrong = plot(vec![point("nothing", f64::INFINITY, 30.0)]);
    assert!(wrong.svg().unwrap_err().to_string().contains("`nothing`"));
    assert!(plot(vec![point("broken", 1.0, f64::NAN)]).svg().is_err());
    assert!(plot(Vec::new()).svg().is_err());
}
