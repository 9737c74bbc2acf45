//! Plan files: round trips, corruption, size.

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::ir::samples::{self, Random};

fn mask(r: &mut Random, rows: usize, columns: usize) -> BitMatrix {
    let words = (0..rows * columns.div_ceil(64)).map(|_| r.bits()).collect();
    BitMatrix::from_words(rows, columns, words).expect("shape")
}

fn plan(seed: u64) -> Plan {
    let mut r = Random::new(seed);
    let model = samples::model(&mut r);
    let tokens = model.tokens();
    let arrangements: Vec<Arrangement> = (0..1 + r.below(2))
        .map(|_| {
            let mut order: Vec<u32> = (0..tokens).collect();
            (1..order.len()).for_each(|i| order.swap(i, r.below(i + 1)));
            let blocks = Blocks::regular(tokens as usize, tokens as usize, 1 + r.below(64), 1 + r.below(64));
            let grid = model.segments.iter().find(|segment| !segment.axes.is_empty() && r.below(2) == 0);
            let tiling = grid.map(|segment| Tiling {
                segment: segment.name.clone(),
                sizes: segment.axes.iter().map(|_| 1 + r.below(8) as u32).collect(),
            });
            Arrangement { order: (r.below(2) == 0).then_some(order), tiling, clustering: None, blocks }
        })
        .collect();
    let kinds: Vec<StepKind> = (0..model.steps * model.layers).map(|_| r.of(&StepKind::ALL)).collect();
    let reuse_orders = kinds.iter().map(|kind| u8::from(kind.is_reuse()) * r.below(5) as u8).collect();
    let (mut masks, mut classes) = (Vec::new(), Vec::new());
    for index in 0..1 + r.below(4) {
        let arrangement = r.below(arrangements.len());
        let blocks = &arrangements[arrangement].blocks;
        let first = masks.len() as u32;
        masks.push(mask(&mut r, blocks.q_blocks(), blocks.kv_blocks()));
        masks.push(mask(&mut r, 1, blocks.q_blocks()));
        let body = if index % 2 == 0 {
            Body::Static { skip: first, partial: (r.below(2) == 0).then_some(first), cache: first + 1 }
        } else {
            Body::Dynamic { program: r.below(2) as u32, masks: vec![first, first + 1] }
        };
        let forecast_order = r.below(5) as u8;
        classes.push(Class { arrangement: arrangement as u32, body, predicate: Some(0), forecast_order });
    }
    let places = model.steps * model.layers * model.heads;
    Plan {
        strategy: "sample".to_string(),
        params: vec![("tau".to_string(), "0.5\u{0}\"".to_string())],
        quirks: vec!["off by one".to_string()],
        arrangements,
        schedule: Schedule { layers: model.layers, kinds, reuse_orders },
        masks,
        programs: vec![samples::program(&mut r, 1, 1), samples::program(&mut r, 1, 1)],
        predicates: vec![samples::predicate(&mut r)],
        class_of: (0..places).map(|_| r.below(classes.len()) as u32).collect(),
        classes,
        model,
    }
}

fn reason(bytes: &[u8]) -> String {
    match Plan::from_bytes(bytes, "a.plan") {
        Err(Error::Format { reason, .. }) => reason,
        other => panic!("expected an error of the format, found {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_plan_reads_back_to_itself(seed: u64) {
        let plan = plan(seed);
        prop_assert_eq!(plan.check(), Ok(()));
        let bytes = plan.to_bytes();
        let read = Plan::from_bytes(&bytes, "a.plan").map_err(|error| error.to_string());
        prop_assert_eq!(read.as_ref().map(Plan::to_bytes), Ok(bytes));
        prop_assert_eq!(read, Ok(plan));
    }

    /// Past the checksum: whatever the metadata say, the plan is refused or in order.
    #[test]
    fn a_plan_that_does_not_fit_is_refused(seed: u64, what in 0_usize..12) {
        let mut plan = plan(seed);
        match what {
            0 => plan.class_of[0] = plan.classes.len() as u32,
            1 => plan.classes[0].arrangement = 9,
            2 => plan.classes[0].body = Body::Static { skip: 99, partial: None, cache: 1 },
            3 => plan.classes[0].body = Body::Static { skip: 0, partial: Some(0), cache: 0 },
            4 => plan.classes[0].body = Body::Dynamic { program: 0, masks: vec![] },
            5 => plan.classes[0].body = Body::Dynamic { program: 7, masks: vec![0, 1] },
            6 => plan.classes[0].predicate = Some(3),
            7 => plan.classes[0].forecast_order = 5,
            8 => plan.arrangements[0].order = Some(vec![0; plan.model.tokens() as usize]),
            9 => plan.arrangements[0].blocks.q[1] = plan.model.tokens() + 1,
            10 => plan.model.segments[0].tokens += 1,
            _ => plan.schedule.reuse_orders[0] = 9,
        }
        // A cache bitmap of the shape of the skip bitmap is no error where there is one q-block and one kv-block.
        if plan.check().is_err() {
            prop_assert!(!reason(&plan.to_bytes()).is_empty());
        } else {
            prop_assert_eq!(what, 3);
        }
    }

    #[test]
    fn altered_bytes_are_refused(seed in 0_u64..4, at: prop::sample::Index, flip in 1_u8..) {
        let mut bytes = plan(seed).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        reason(&bytes);
    }
}

#[test]
fn clusters_are_kept_and_checked() {
    let text = "model m { layers 1 heads 2 head_dim 16 steps 2 tokens text(20) ++ video(t = 2, h = 4, w = 4) }
        strategy s {
            layout text ++ video(t, h, w)
            block 16
            order clusters(3, size(video) div 8, iterations = 9, again = 4, by = profile)
            keep all -> all where top_k(dot(mean(q), mean(k)), kv_blocks div 2)
        }";
    let plan = crate::Compiler::from_source("s.omni", text).compile().unwrap().plan;
    let (segment, by) = ("video".to_string(), Likeness::Profile);
    let clustering = Clustering { segment, q: 3, kv: 4, iterations: 9, again: 4, by };
    assert_eq!(plan.arrangements[0].clustering, Some(clustering));
    assert_eq!(
        plan.arrangements[0].blocks,
        Blocks { q: vec![0, 16, 20, 30, 41, 52], kv: vec![0, 16, 20, 28, 36, 44, 52] }
    );
    let read = Plan::from_bytes(&plan.to_bytes(), "a.plan").unwrap();
    assert_eq!((&read.arrangements, read.to_bytes()), (&plan.arrangements, plan.to_bytes()));
    let broken: [fn(&mut Arrangement); 5] = [
        |arrangement| arrangement.order = Some((0..52).rev().collect()),
        |arrangement| arrangement.blocks.q = vec![0, 16, 20, 52],
        |arrangement| arrangement.clustering.as_mut().unwrap().kv = 5,
        |arrangement| arrangement.clustering.as_mut().unwrap().again = 0,
        |arrangement| arrangement.clustering.as_mut().unwrap().segment = "image".to_string(),
    ];
    for (index, breaks) in broken.into_iter().enumerate() {
        let mut plan = plan.clone();
        breaks(&mut plan.arrangements[0]);
        assert!(!reason(&plan.to_bytes()).is_empty(), "{index}");
    }
}

#[test]
fn every_truncation_and_every_flip_of_the_header_is_refused() {
    let mut plan = plan(3);
    plan.programs.clear();
    plan.classes.retain(|class| matches!(class.body, Body::Static { .. }));
    plan.class_of.fill(0);
    plan.predicates.truncate(1);
    let bytes = plan.to_bytes();
    assert_eq!(Plan::from_bytes(&bytes, "a.plan").expect("whole"), plan);
    for len in 0..bytes.len() {
        reason(&bytes[..len]);
    }
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        reason(&bytes);
    }
    assert!(reason(&[bytes.as_slice(), &[0]].concat()).contains("safetensors"));
}

#[test]
fn the_reason_is_named() {
    let bytes = plan(1).to_bytes();
    let find = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).expect("text");
    let mut version = bytes.clone();
    let at = find(b"\"version\":\"1\"") + 11;
    version[at] = b'7';
    assert_eq!(reason(&version), "it is a plan of version 7, this flashomni reads version 1; compile it again");
    let mut last = bytes.clone();
    *last.last_mut().expect("a byte") ^= 1;
    assert_eq!(reason(&last), "it was altered or damaged after it was written (the checksum does not fit)");
    assert!(reason(&bytes[..bytes.len() - 1]).starts_with("it is truncated or not a safetensors file"));
    let mut other = bytes.clone();
    other[find(b"flashomni-plan")] = b'g';
    assert_eq!(reason(&other), "it is a safetensors file, but not a plan of flashomni");
}

/// The largest model that ships: 118,800 tokens, a table of windows with six values.
#[test]
fn a_large_plan_is_small_and_fast() {
    let mut r = Random::new(1);
    let span = crate::source::Span::default();
    let axes = vec![("t".to_string(), 33), ("h".to_string(), 45), ("w".to_string(), 80)];
    let video = crate::ir::Segment { name: "video".to_string(), axes, start: 0, tokens: 118_800, valid: 118_800, span };
    let model = Model { layers: 60, heads: 24, steps: 50, segments: vec![video], ..samples::model(&mut r) };
    let blocks = Blocks::regular(118_800, 118_800, 128, 128);
    let mut masks: Vec<BitMatrix> = (0..6).map(|_| mask(&mut r, 929, 929)).collect();
    masks.push(BitMatrix::ones(1, 929));
    let classes: Vec<Class> = (0..6)
        .map(|skip| Class {
            arrangement: 0,
            body: Body::Static { skip, partial: None, cache: 6 },
            predicate: None,
            forecast_order: 0,
        })
        .collect();
    let plan = Plan {
        strategy: "sliding_tile".to_string(),
        params: Vec::new(),
        quirks: Vec::new(),
        arrangements: vec![Arrangement {
            order: Some((0..118_800).rev().collect()),
            tiling: None,
            clustering: None,
            blocks,
        }],
        schedule: Schedule { layers: 60, kinds: vec![StepKind::Dispatch; 3000], reuse_orders: vec![0; 3000] },
        masks,
        programs: Vec::new(),
        predicates: Vec::new(),
        class_of: (0..72_000).map(|_| r.below(6) as u32).collect(),
        classes,
        model,
    };
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.plan");
    plan.save(&path).expect("saved");
    let size = std::fs::metadata(&path).expect("file").len();
    assert!(size < 2_000_000, "{size} bytes");
    let start = std::time::Instant::now();
    let read = Plan::load(&path).expect("loaded");
    // Generous: a loaded test machine is slow, a quadratic reader is slower still.
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
    assert!(read == plan);
    println!("{size} bytes, loaded in {:?}", start.elapsed());
}
