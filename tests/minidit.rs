//! The hosted transformer: against what its PyTorch original computed, under strategies that leave nothing out, and with
//! everything that strategies may reuse.

use std::fs;
use std::path::Path;
use std::time::Duration;

use flashomni::ir::{StepKind, Unit};
use flashomni::minidit::{Branch, Denoiser, LayerReport, MiniDit, Request, Sparsity, Watch, Work, noise, sample};
use flashomni::tensor::{Dtype, Tensor};
use flashomni::tensor_file::{self, Entry, FileValues, TensorFile};
use flashomni::{Compiler, Error};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/minidit"))
}

fn model() -> MiniDit {
    MiniDit::load(folder()).unwrap()
}

/// Results of the original in single precision.
fn reference(name: &str) -> Vec<f32> {
    TensorFile::open(folder().join("reference.safetensors")).unwrap().values(name).unwrap()
}

fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
    (error / wanted.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

/// Decibels between images of -1 to 1.
fn psnr(found: &[f32], wanted: &[f32]) -> f64 {
    let error = |(a, b): (&f32, &f32)| f64::from(a.clamp(-1.0, 1.0) - b.clamp(-1.0, 1.0)).powi(2);
    let mean = found.iter().zip(wanted).map(error).sum::<f64>() / found.len() as f64;
    10.0 * (4.0 / mean).log10()
}

/// An image of the recorded noise, as the original made it but for the number of steps.
fn request(model: &MiniDit, steps: u32) -> Request {
    Request { size: 64, steps, class: model.class("chelsea").unwrap(), guidance: 2.0, noise: reference("noise_64") }
}

/// A smaller one.
fn small_request(steps: u32) -> Request {
    Request { size: 32, steps, class: 0, guidance: 2.0, noise: noise(32, 1) }
}

fn sparsity(model: &MiniDit, source: &str, size: usize, steps: u32) -> Sparsity {
    Sparsity::new(Compiler::from_source("test", source), model, size, steps).unwrap()
}

#[test]
fn velocity_and_sample_are_those_of_the_original() {
    let model = model();
    let request = request(&model, 20);
    let mut denoiser = Denoiser::new(&model, 64, None).unwrap();
    let [prompt, _] = denoiser.velocities(0, 0.7, &request.noise, request.class, &mut ()).unwrap();
    let error = relative_error(&prompt, &reference("velocity_64_t0.7"));
    assert!(error < 1e-5, "{error:e}");
    let quality = psnr(&sample(&model, &request, None, &mut ()).unwrap(), &reference("sample_64"));
    assert!(quality > 80.0, "{quality} dB");
}

#[test]
fn strategies_that_leave_nothing_out_change_no_bit() {
    let model = model();
    let request = small_request(3);
    let wanted = sample(&model, &request, None, &mut ()).unwrap();
    let sources = [
        "strategy full { schedule { dense every 1 } }",
        "strategy updates { block 64 schedule { update every 1 } skip all -> all where bottom_mass(dot(mean(q), mean(k)), 0.5) }",
        "strategy all { block 64 keep all -> all }",
    ];
    for source in sources {
        let sparsity = sparsity(&model, source, 32, 3);
        assert!(sample(&model, &request, Some(&sparsity), &mut ()).unwrap() == wanted, "{source}");
    }
}

/// What layers did.
#[derive(Default)]
struct Log(Vec<(Branch, u32, u32, StepKind, Work)>);

impl Watch for Log {
    fn layer(&mut self, branch: Branch, step: u32, layer: u32, report: &LayerReport) {
        self.0.push((branch, step, layer, report.kind, report.work));
    }

    fn step(&mut self, _: u32, _: &[f32], image: &[f32], time: Duration) -> flashomni::Result<()> {
        assert!(image.iter().all(|x| x.is_finite()) && time > Duration::ZERO);
        Ok(())
    }
}

/// Velocities of the same noise at the same time, at two steps of a strategy: what the second reuses, it finds unchanged.
fn twice(model: &MiniDit, source: &str) -> (f64, Log) {
    let sparsity = sparsity(model, source, 32, 2);
    let mut denoiser = Denoiser::new(model, 32, Some(&sparsity)).unwrap();
    let image = noise(32, 7);
    let first = denoiser.velocities(0, 0.8, &image, 3, &mut ()).unwrap();
    let mut log = Log::default();
    let second = denoiser.velocities(1, 0.8, &image, 3, &mut log).unwrap();
    let worst = first.iter().zip(&second).map(|(a, b)| relative_error(b, a)).fold(0.0, f64::max);
    (worst, log)
}

#[test]
fn what_is_reused_of_an_unchanged_image_is_unchanged() {
    let model = model();
    let none_of_attention = Work { feed_forward: 1.0, ..Work::NONE };
    let cases = [
        ("strategy s { schedule { reuse on last } }", StepKind::Reuse(Unit::Attention), none_of_attention),
        ("strategy s { schedule { reuse modules on last } }", StepKind::Reuse(Unit::Modules), Work::NONE),
        ("strategy s { schedule { reuse layer as taylor(2) on last } }", StepKind::Reuse(Unit::Layer), Work::NONE),
        (
            "strategy s { layout text ++ image(h, w) block 32 schedule { update on 0 } cache all as taylor(1) }",
            StepKind::Dispatch,
            Work { feed_forward: 1.0, gemm_kv: 1.0, ..Work::NONE },
        ),
    ];
    for (source, kind, work) in cases {
        let (error, log) = twice(&model, source);
        assert!(error < 2e-6, "{source}: {error:e}");
        assert_eq!(log.0.len(), 14, "{source}");
        assert!(log.0.iter().all(|done| (done.3, done.4) == (kind, work)), "{source}: {:?}", log.0[0]);
    }
}

#[test]
fn a_cached_half_saves_its_projections() {
    let model = model();
    let source = "strategy s { layout text ++ image(h, w) block 32 schedule { update on 0 }
                  cache image where block(q) mod 2 == 0 }";
    let (error, log) = twice(&model, source);
    assert!(error < 2e-6, "{error:e}");
    // 2 blocks of text and 8 of the image, of which 4 are cached.
    let wanted = Work { attention: 0.6, gemm_q: 0.6, gemm_o: 0.6, ..Work::FULL };
    let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
    for (.., kind, work) in &log.0 {
        assert_eq!(*kind, StepKind::Dispatch);
        assert!(near(work.attention, wanted.attention) && near(work.gemm_q, 0.6) && near(work.gemm_o, 0.6), "{work:?}");
        assert_eq!((work.gemm_kv, work.feed_forward), (1.0, 1.0));
    }
}

#[test]
fn the_branch_without_a_prompt_may_take_the_output_of_the_other() {
    let model = model();
    let (error, log) = twice(&model, "strategy s { schedule { layers 2.. { reuse as shared on last } } }");
    // The branches differ, so that sharing shows.
    assert!(error > 1e-4, "{error:e}");
    for (branch, _, layer, kind, work) in log.0 {
        let shares = branch == Branch::Null && layer >= 2;
        assert_eq!(work.attention, if shares { 0.0 } else { 1.0 });
        assert_eq!(kind == StepKind::Shared, shares);
    }
}

#[test]
fn step_caches_go_by_measured_distances() {
    let model = model();
    let sizes = small_request(6);
    let kinds = |source: &str| {
        let sparsity = sparsity(&model, source, 32, 6);
        let mut log = Log::default();
        sample(&model, &sizes, Some(&sparsity), &mut log).unwrap();
        log.0
    };
    let reused = |log: &[(Branch, u32, u32, StepKind, Work)], layer: u32| -> Vec<u32> {
        let of_layer = log.iter().filter(|done| (done.0, done.2) == (Branch::Prompt, layer) && done.3.is_reuse());
        of_layer.map(|done| done.1).collect()
    };
    // Inputs move at every step, and by less than their whole size: with a threshold of 0 no step is skipped, with a very
    // large one all but the first and the last.
    let by_input = |threshold: &str| {
        kinds(&format!(
            "strategy s {{ let distances = input(\"distances\", steps, kind = real)
             schedule {{ reuse layer while 0 < step < steps - 1 and accumulated(distances(step)) < {threshold} }} }}"
        ))
    };
    assert!(reused(&by_input("0.000001"), 0).is_empty());
    assert_eq!(reused(&by_input("1000.0"), 0), [1, 2, 3, 4]);
    let some = reused(&by_input("0.7"), 0);
    assert!(!some.is_empty() && some.len() < 4, "{some:?}");
    // The first layer is always computed, and the others are skipped by what it adds.
    let by_residual = |threshold: &str| {
        kinds(&format!(
            "strategy s {{ let distances = input(\"distances\", steps, steps, kind = real)
             let distance = distances(step, last_computed) else inf
             schedule {{ layers 1.. {{ reuse layer while distance < {threshold} }} }} }}"
        ))
    };
    let all = by_residual("1000.0");
    assert_eq!((reused(&all, 0), reused(&all, 1), reused(&all, 6)), (vec![], vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5]));
    assert!(reused(&by_residual("0.000001"), 1).is_empty());
}

#[test]
fn wrong_calls_say_what_is_right() {
    let model = model();
    let message = |error: Error| error.to_string();
    assert_eq!(message(model.class("chine").unwrap_err()), "the model has no prompt `chine`; did you mean `china`?");
    assert!(message(model.class("zebra").unwrap_err()).contains("it knows china, flower,"));
    for size in [0, 63, 514] {
        let text = message(Denoiser::new(&model, size, None).unwrap_err());
        assert!(text.contains("multiples of 2, up to 512"), "{text}");
    }
    let compile = |source: &str| Sparsity::new(Compiler::from_source("test", source), &model, 64, 20).map(|_| ());
    let text = message(compile("strategy s { layout text ++ video(t, h, w) keep all -> video }").unwrap_err());
    assert!(text.contains("video"), "{text}");
    let text = message(compile("strategy s { let m = measured(\"loss\") keep all -> all where m > 0.5 }").unwrap_err());
    assert!(text.contains("`loss`") && text.contains("does not measure"), "{text}");
    let other = sparsity(&model, "strategy s { }", 32, 20);
    let text = message(Denoiser::new(&model, 64, Some(&other)).unwrap_err());
    assert!(text.contains("compiled for [7, 4, 64, 320]"), "{text}");
    let text =
        message(sample(&model, &Request { steps: 10, ..request(&model, 20) }, Some(&other), &mut ()).unwrap_err());
    assert!(text.contains("compiled for 20 steps, the generation has 10"), "{text}");
    let short = Request { noise: vec![0.0; 5], ..request(&model, 2) };
    assert!(message(sample(&model, &short, None, &mut ()).unwrap_err()).contains("5 numbers, wanted 3 x 64 x 64"));
    let mut denoiser = Denoiser::new(&model, 32, None).unwrap();
    let text = message(denoiser.velocities(0, 0.5, &noise(32, 0), 16, &mut ()).unwrap_err());
    assert!(text.contains("no class 16, the model has 16"), "{text}");
}

/// What is said of a folder whose weights were changed.
fn refusal(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> String {
    let file = TensorFile::open(folder().join("weights.safetensors")).unwrap();
    let mut tensors: Vec<_> = file.names().into_iter().map(|name| (name.clone(), file.get(&name).unwrap())).collect();
    change(&mut tensors);
    let directory = tempfile::tempdir().unwrap();
    fs::copy(folder().join("config.json"), directory.path().join("config.json")).unwrap();
    let entries: Vec<Entry<'_>> = tensors.iter().map(|(name, tensor)| Entry::of(name, tensor.as_ref())).collect();
    tensor_file::write(directory.path().join("weights.safetensors"), &entries, &Default::default()).unwrap();
    MiniDit::load(directory.path()).unwrap_err().to_string()
}

#[test]
fn wrong_weights_are_refused_with_the_tensor() {
    let text = refusal(|tensors| tensors.retain(|(name, _)| name != "mod.bias" && name != "patch.weight"));
    assert!(text.ends_with("it lacks tensor `patch.weight` and 1 more"), "{text}");
    let text = refusal(|tensors| tensors.push(("extra".to_owned(), Tensor::zeros(&[1], Dtype::F32))));
    assert!(text.ends_with("it has tensor `extra`, which this transformer has not"), "{text}");
    let text = refusal(|tensors| tensors[0].1 = Tensor::zeros(&[7], Dtype::Bf16));
    assert!(text.ends_with("has the shape [7], wanted [256]"), "{text}");
    // Other floats will do.
    let text = refusal(|tensors| {
        tensors.iter_mut().for_each(|(_, tensor)| *tensor = tensor.cast(Dtype::F32));
        tensors.pop();
    });
    assert!(text.contains("it lacks tensor `time2.weight`"), "{text}");
}

#[test]
fn broken_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let load = || MiniDit::load(directory.path()).unwrap_err().to_string();
    assert!(load().starts_with("cannot read `"), "{}", load());
    let config = fs::read_to_string(folder().join("config.json")).unwrap();
    let path = directory.path().join("config.json");
    for (from, to, wanted) in [
        ("\"heads\": 4", "\"heads\": 5", "5 heads of 64 do not make up `hidden` 256"),
        ("\"patch\": 2", "\"patch\": 0", "`patch` is 0, wanted 1 to 65536"),
        ("\"null_class\": 16", "\"null_class\": 3", "`null_class` is 3, wanted 16"),
        ("\"heads\": 4,", "", "missing field `heads`"),
    ] {
        fs::write(&path, config.replacen(from, to, 1)).unwrap();
        assert!(load().contains(wanted), "{}", load());
    }
    fs::write(&path, &config).unwrap();
    assert!(load().contains("weights.safetensors"), "{}", load());
    let weights = fs::read(folder().join("weights.safetensors")).unwrap();
    let path = directory.path().join("weights.safetensors");
    for length in [0, 4, 1000, weights.len() - 1] {
        fs::write(&path, &weights[..length]).unwrap();
        let text = load();
        assert!(text.contains("weights.safetensors` cannot be used: "), "{text}");
    }
    // A tensor of whole numbers.
    let entry = Entry { name: "prompt".into(), shape: vec![17, 64, 256], values: FileValues::U8(&[0; 17 * 64 * 256]) };
    tensor_file::write(&path, &[entry], &Default::default()).unwrap();
    assert!(load().ends_with("tensor `prompt` is U8, wanted F32, F16 or BF16"), "{}", load());
}
