//! Step caches that decide by measured distances, against their published loops over random distances.
//!
//! The loops keep a running sum and counters, as the originals do; the language knows sums over the steps since the last
//! computed one.

mod programs;

use flashomni::Compiler;
use flashomni::check::InputTensor;
use flashomni::ir::{Kind, StepKind, Unit};
use flashomni::runtime::Session;
use flashomni::tensor::{Dtype, Tensor};

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
    (0..STEPS as u32).map(|step| schedule.kind(step, layer).is_reuse()).collect()
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

/// A host that measures while it runs: at each step a plan of the distances so far says what all distances would have said.
#[test]
fn a_session_follows_distances_as_they_become_known() {
    let mut random = Random(77);
    let distances: Vec<f64> = (0..STEPS).map(|_| 0.3 * unit(&mut random)).collect();
    let wanted = reuses("teacache", "teacache", &[], &[STEPS as u32], &distances, 0);
    let plan = |known: usize| {
        let path = format!("{}/examples/strategies/teacache.omni", env!("CARGO_MANIFEST_DIR"));
        let mut values = distances[..known].to_vec();
        values.resize(STEPS, 0.0);
        let sizes =
            [("steps", "40"), ("layers", "1"), ("heads", "2"), ("head_dim", "16"), ("image.h", "4"), ("image.w", "4")];
        let compiler = Compiler::from_file(path.as_ref()).unwrap().model("minidit_64");
        let compiler = sizes.iter().fold(compiler, |compiler, (name, size)| compiler.shape(*name, *size));
        let tensor = InputTensor { shape: vec![STEPS as u32], kind: Kind::Real, values };
        compiler.input("distances", tensor).compile().unwrap().plan
    };
    let mut session = Session::new(plan(0)).unwrap();
    let shape = [2, session.plan().model.tokens() as usize, 16];
    let mut last = Vec::new();
    for (step, &is_reused) in wanted.iter().enumerate() {
        session.adopt(plan(step + 1)).unwrap();
        let values = (0..shape.iter().product()).map(|_| random.real(1.0)).collect();
        let x = Tensor::from_f32(&shape, values).unwrap();
        let mut out = Tensor::zeros(&shape, Dtype::F32);
        let report = session.attention(step as u32, 0, x.as_ref(), x.as_ref(), x.as_ref(), out.as_mut()).unwrap();
        assert_eq!(report.kind.is_reuse(), is_reused, "step {step}");
        let out = out.as_ref().to_f32();
        assert_eq!(out == last, is_reused, "a reused output is the last one");
        last = out;
    }
    let other = flashomni::compile(
        "model tiny { layers 1 heads 2 head_dim 16 steps 4 tokens image(h = 4, w = 4) }
         strategy near { block 16 keep all -> all }",
    );
    assert!(session.adopt(other.unwrap()).unwrap_err().to_string().contains("more than its schedule"));
}

/// FlashOmni's layers that keep few q-blocks: the host counts what an update's symbols keep, and the schedule follows.
#[test]
fn layers_that_are_mostly_cached_are_forecast_as_a_whole() {
    const FIRST: usize = 4;
    const INTERVAL: usize = 5;
    const KEPT: f64 = 0.95;
    let plan = |degraded_at: &[f64]| {
        let path = format!("{}/examples/strategies/flashomni.omni", env!("CARGO_MANIFEST_DIR"));
        let sizes =
            [("steps", "40"), ("layers", "3"), ("heads", "2"), ("head_dim", "16"), ("image.h", "8"), ("image.w", "16")];
        let params = [("first_enhance", FIRST), ("interval", INTERVAL), ("block_size", 8)];
        let compiler = Compiler::from_file(path.as_ref()).unwrap().strategy("flashomni_degraded").model("minidit_64");
        let compiler = sizes.iter().fold(compiler, |compiler, (name, size)| compiler.shape(*name, *size));
        let compiler = params.iter().fold(compiler, |compiler, (name, value)| compiler.param(*name, value.to_string()));
        let tensor =
            InputTensor { shape: vec![degraded_at.len() as u32], kind: Kind::Int, values: degraded_at.to_vec() };
        compiler.input("degraded_at", tensor).compile().unwrap().plan
    };
    let mut random = Random(5);
    let mut degraded_at = vec![STEPS as f64; 3];
    let mut session = Session::new(plan(&degraded_at)).unwrap();
    let shape = [2, session.plan().model.tokens() as usize, 16];
    let mut is_degraded = [false; 3];
    // Steps and outputs of degraded layers where they were computed, from the update at which they degraded on.
    let mut computed: [Vec<(usize, Vec<f32>)>; 3] = Default::default();
    let (mut counts, mut lines) = ([0; 2], 0);
    for step in 0..STEPS {
        session.adopt(plan(&degraded_at)).unwrap();
        for layer in 0..3 {
            let mut draw = || {
                let values = (0..shape.iter().product()).map(|_| random.real(1.0)).collect();
                Tensor::from_f32(&shape, values).unwrap()
            };
            let (q, k, v) = (draw(), draw(), draw());
            let mut out = Tensor::zeros(&shape, Dtype::F32);
            let report =
                session.attention(step as u32, layer as u32, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut()).unwrap();
            // The loop of the published code: warm-up, full steps at intervals and at the end, whole layers once they degrade.
            let wanted = if step + 1 < FIRST || step + 1 == STEPS {
                StepKind::Dense
            } else if (step + 1 - FIRST).is_multiple_of(INTERVAL) {
                StepKind::Update
            } else if is_degraded[layer] {
                counts[0] += 1;
                StepKind::Reuse(Unit::Attention)
            } else {
                counts[1] += 1;
                StepKind::Dispatch
            };
            assert_eq!(report.kind, wanted, "step {step}, layer {layer}");
            let out = out.as_ref().to_f32();
            match (report.kind, computed[layer].as_slice()) {
                (StepKind::Reuse(_), [(_, last)]) => assert_eq!(out, *last, "step {step}, layer {layer}"),
                (StepKind::Reuse(_), [(before, first), (at, last)]) => {
                    lines += 1;
                    let far = (step - at) as f32 / (at - before) as f32;
                    let line = first.iter().zip(last).map(|(first, last)| last + (last - first) * far);
                    assert!(line.zip(&out).all(|(line, out)| (line - out).abs() < 1e-5), "step {step}, layer {layer}");
                }
                _ => {}
            }
            if report.kind == StepKind::Update && !is_degraded[layer] {
                let statistics = session.symbols(layer as u32).unwrap().statistics().unwrap();
                let [q_blocks, cached] = statistics.iter().fold([0, 0], |[q_blocks, cached], group| {
                    [q_blocks + group.total.q_blocks, cached + group.total.cached_q_blocks]
                });
                if 1.0 - cached as f64 / q_blocks as f64 <= KEPT {
                    is_degraded[layer] = true;
                    degraded_at[layer] = step as f64;
                }
            }
            if report.kind == StepKind::Update && is_degraded[layer] {
                computed[layer].push((step, out));
            }
        }
    }
    assert!(lines > 0, "no layer is forecast by a line");
    assert!(is_degraded != [false; 3] && counts[0] >= 8 && counts[1] > 40, "{degraded_at:?} {counts:?}");
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
