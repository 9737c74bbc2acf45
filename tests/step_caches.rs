//! Step caches that decide by measured distances, against their published loops over random distances.
//!
//! The loops keep a running sum and counters, as the originals do; the language knows sums over the steps since the last
//! computed one.

mod programs;

use flashomni::Compiler;
use flashomni::check::InputTensor;
use flashomni::ir::{Kind, StepKind};

use programs::Random;

const STEPS: usize = 40;
const LAYERS: usize = 12;

/// A number from 0 to 1.
fn unit(random: &mut Random) -> f64 {
    random.next() as f64 / u64::MAX as f64
}

/// Whether a layer reuses, step by step.
fn reuses(
    file: &str,
    strategy: &str,
    params: &[(&str, String)],
    shape: &[u32],
    distances: &[f64],
    layer: u32,
) -> Vec<bool> {
    let path = format!("{}/examples/strategies/{file}.omni", env!("CARGO_MANIFEST_DIR"));
    let values = distances.to_vec();
    let mut compiler = Compiler::from_file(path.as_ref())
        .unwrap()
        .strategy(strategy)
        .model("minidit_64")
        .shape("steps", STEPS.to_string())
        .shape("layers", LAYERS.to_string())
        .input("distances", InputTensor { shape: shape.to_vec(), kind: Kind::Real, values });
    for (name, value) in params {
        compiler = compiler.param(*name, value);
    }
    let schedule = compiler.compile().unwrap().plan.schedule;
    (0..STEPS as u32).map(|step| schedule.kind(step, layer) == StepKind::Reuse).collect()
}

#[test]
fn teacache_accumulates_rescaled_distances() {
    let [a, b, c, d, e] = [498.651_651, -283.781_631, 55.855_438_2, -3.820_214_01, 0.264_230_861];
    let mut total = 0;
    for seed in 0..20 {
        let mut random = Random(seed + 1);
        let distances: Vec<f64> = (0..STEPS).map(|_| 0.3 * unit(&mut random)).collect();
        let threshold = 0.1 + unit(&mut random);
        let mut accumulated = 0.0;
        let wanted: Vec<bool> = (0..STEPS)
            .map(|step| {
                if step == 0 || step == STEPS - 1 {
                    accumulated = 0.0;
                    return false;
                }
                let x = distances[step];
                accumulated += (((a * x + b) * x + c) * x + d) * x + e;
                let reuse = accumulated < threshold;
                if !reuse {
                    accumulated = 0.0;
                }
                reuse
            })
            .collect();
        let params = [("threshold", threshold.to_string())];
        assert_eq!(reuses("teacache", "teacache", &params, &[STEPS as u32], &distances, 3), wanted, "seed {seed}");
        total += wanted.iter().filter(|reuse| **reuse).count();
    }
    assert!((100..700).contains(&total), "{total} of 800 steps are reused: the thresholds tell nothing");
}

#[test]
fn block_caches_compare_with_the_last_computed_step() {
    let mut counts = [0; 2];
    for seed in 100..120 {
        let mut random = Random(seed + 1);
        let distances: Vec<f64> = (0..STEPS * STEPS).map(|_| 0.2 * unit(&mut random)).collect();
        let shape = [STEPS as u32; 2];
        let threshold = 0.12;
        for (index, (name, warmup, max_cached, max_consecutive)) in
            [("fbcache", 0, usize::MAX, usize::MAX), ("dbcache", 5, 9, 2)].into_iter().enumerate()
        {
            let (mut residual_of, mut cached, mut consecutive) = (None::<usize>, 0, 0);
            let wanted: Vec<bool> = (0..STEPS)
                .map(|step| {
                    let near = residual_of.is_some_and(|last| distances[step * STEPS + last] < threshold);
                    let reuse = near && step >= warmup && cached < max_cached && consecutive < max_consecutive;
                    if reuse {
                        cached += 1;
                        consecutive += 1;
                    } else {
                        residual_of = Some(step);
                        consecutive = 0;
                    }
                    reuse
                })
                .collect();
            let mut params = vec![("threshold", threshold.to_string())];
            if name == "dbcache" {
                let numbers = [("warmup", warmup), ("max_cached", max_cached), ("max_consecutive", max_consecutive)];
                params.extend(numbers.map(|(name, number)| (name, number.to_string())));
            }
            assert_eq!(reuses("dbcache", name, &params, &shape, &distances, 9), wanted, "{name}, seed {seed}");
            assert!(
                !reuses("dbcache", name, &params, &shape, &distances, 0).contains(&true),
                "the first layer measures"
            );
            counts[index] += wanted.iter().filter(|reuse| **reuse).count();
        }
    }
    assert!(counts[0] > 300 && counts[1] > 150, "{counts:?}");
}
