//! One image of the hosted transformer, and what making it took: what `sample` and `eval` share.

use std::path::Path;
use std::time::Duration;

use flashomni::Compiler;
use flashomni::minidit::{Attended, Branch, LayerReport, MiniDit, Request, Sparsity, Watch, Work, noise, sample};
use serde::{Deserialize, Serialize};

use crate::args::Host;
use crate::console::{Console, Progress};
use crate::exit::Failure;
use crate::picture::metrics::{psnr, ssim};
use crate::picture::svg::DrawError;
use crate::run::relative;
use crate::table::{self, Table};

/// The transformer, and what all images have in common.
pub struct Setup {
    pub model: MiniDit,
    pub size: usize,
    pub steps: u32,
    pub guidance: f32,
}

impl Setup {
    /// Loads the transformer.
    pub fn open(args: &Host) -> Result<Self, Failure> {
        crate::run::threads(args.threads)?;
        let model = MiniDit::load(&args.weights).map_err(|error| {
            let is_unread = matches!(error, flashomni::Error::Io { .. });
            match Failure::from(error) {
                Failure::Stopped { message, .. } if is_unread => Failure::new(message)
                    .help("the weights are in `data/minidit` of the repository; --weights names another folder"),
                other => other,
            }
        })?;
        model.side(args.size)?;
        Ok(Setup { model, size: args.size, steps: args.steps, guidance: args.guidance })
    }

    /// Compiles a strategy, with warnings on standard error.
    pub fn compile(&self, compiler: Compiler, console: &Console) -> Result<Sparsity, Failure> {
        let sparsity = Sparsity::new(compiler, &self.model, self.size, self.steps)?;
        if !sparsity.warnings().list.is_empty() {
            console.findings(sparsity.warnings());
        }
        Ok(sparsity)
    }

    /// `128 x 128, 20 steps, guidance 2`.
    pub fn describe(&self) -> String {
        let Setup { size, steps, guidance, .. } = self;
        format!("{size} x {size}, {}, guidance {guidance}", table::plural(*steps as usize, "step"))
    }

    /// Makes an image.
    pub fn generate(
        &self,
        class: usize,
        seed: u64,
        sparsity: Option<&Sparsity>,
        watch: &mut dyn Watch,
        progress: (&mut Progress, &str),
    ) -> Result<Generation, Failure> {
        let &Setup { size, steps, guidance, .. } = self;
        let mut trace = Trace { watch, progress, layers: Vec::new(), times: Vec::new(), velocities: Vec::new() };
        let request = Request { size, steps, class, guidance, noise: noise(size, seed) };
        let image = sample(&self.model, &request, sparsity, &mut trace)?;
        let Trace { layers, times, velocities, progress: (_, name), .. } = trace;
        // Such an image is no nearer to the dense one than any other, and has no quality.
        if image.iter().any(|value| !value.is_finite()) {
            return Err(Failure::new(format!("the image under `{name}` is not finite: numbers overflowed on the way")));
        }
        Ok(Generation { image, velocities, measures: self.measures(&layers, &times) })
    }

    fn measures(&self, layers: &[LayerReport], times: &[Duration]) -> Measures {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let total = |of: fn(&LayerReport) -> Duration| milliseconds(layers.iter().map(of).sum());
        let share =
            |of: fn(&Work) -> f64| layers.iter().map(|layer| of(&layer.work)).sum::<f64>() / layers.len() as f64;
        let [attention, gemm_q, gemm_kv, gemm_o, feed_forward] = [
            share(|w| w.attention),
            share(|w| w.gemm_q),
            share(|w| w.gemm_kv),
            share(|w| w.gemm_o),
            share(|w| w.feed_forward),
        ];
        let config = self.model.config();
        let side = (self.size / config.patch) as f64;
        // Multiplications of a token in a layer, in units of `hidden` squared.
        let pairs = 2.0 * (config.text_tokens as f64 + side * side) / config.hidden as f64;
        let wide = 2.0 * config.mlp_ratio as f64;
        let done = pairs * attention + gemm_q + 2.0 * gemm_kv + gemm_o + wide * feed_forward;
        Measures {
            attention_share: attention,
            gemm_q_share: gemm_q,
            gemm_kv_share: gemm_kv,
            gemm_o_share: gemm_o,
            feed_forward_share: feed_forward,
            work_share: done / (pairs + 4.0 + wide),
            attention_ms: total(|layer| layer.attention),
            selection_ms: total(|layer| layer.selection),
            total_ms: milliseconds(times.iter().sum()),
            step_ms: times.iter().copied().map(milliseconds).collect(),
        }
    }
}

/// An image, and what making it took.
pub struct Generation {
    /// `[3, size, size]`.
    pub image: Vec<f32>,
    /// The guided velocity of each step.
    pub velocities: Vec<Vec<f32>>,
    pub measures: Measures,
}

/// Work and time of an image, both branches, all layers and steps together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measures {
    /// Pairs of tokens in blocks that attention computed, of all.
    pub attention_share: f64,
    /// Projections of queries.
    pub gemm_q_share: f64,
    /// Projections of keys and values.
    pub gemm_kv_share: f64,
    /// Projections of attention's output.
    pub gemm_o_share: f64,
    /// Feed-forward networks.
    pub feed_forward_share: f64,
    /// Multiplications of all of these, of those that are computed without a strategy.
    pub work_share: f64,
    pub attention_ms: f64,
    pub selection_ms: f64,
    pub total_ms: f64,
    pub step_ms: Vec<f64>,
}

impl Measures {
    /// Of several images.
    pub fn mean(all: &[&Measures]) -> Self {
        let mean = |of: &dyn Fn(&Measures) -> f64| all.iter().map(|one| of(one)).sum::<f64>() / all.len() as f64;
        let steps = all.iter().map(|one| one.step_ms.len()).min().unwrap_or(0);
        Measures {
            attention_share: mean(&|one| one.attention_share),
            gemm_q_share: mean(&|one| one.gemm_q_share),
            gemm_kv_share: mean(&|one| one.gemm_kv_share),
            gemm_o_share: mean(&|one| one.gemm_o_share),
            feed_forward_share: mean(&|one| one.feed_forward_share),
            work_share: mean(&|one| one.work_share),
            attention_ms: mean(&|one| one.attention_ms),
            selection_ms: mean(&|one| one.selection_ms),
            total_ms: mean(&|one| one.total_ms),
            step_ms: (0..steps).map(|step| mean(&|one| one.step_ms[step])).collect(),
        }
    }
}

/// How far an image is from the one that everything was computed for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quality {
    /// Peak signal-to-noise ratio in dB; none where the images are equal.
    pub psnr: Option<f64>,
    /// Structural similarity; none for images smaller than its window.
    pub ssim: Option<f64>,
    /// Relative error of the guided velocity at each step.
    pub step_errors: Vec<f64>,
}

impl Quality {
    /// Compares.
    pub fn of(found: &Generation, wanted: &Generation, size: usize) -> Self {
        let psnr = psnr(&found.image, &wanted.image);
        let steps = found.velocities.iter().zip(&wanted.velocities);
        Quality {
            psnr: psnr.is_finite().then_some(psnr),
            ssim: ssim(&found.image, &wanted.image, 3, size, size),
            step_errors: steps.map(|(found, wanted)| relative_error(found, wanted)).collect(),
        }
    }

    /// Infinite where the images are equal.
    pub fn psnr(&self) -> f64 {
        self.psnr.unwrap_or(f64::INFINITY)
    }

    /// The mean over the steps.
    pub fn mean_error(&self) -> f64 {
        self.step_errors.iter().sum::<f64>() / self.step_errors.len().max(1) as f64
    }
}

fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
    relative([error, wanted.iter().map(|&b| square(b)).sum()])
}

/// Collects what a generation shows.
struct Trace<'a> {
    watch: &'a mut dyn Watch,
    progress: (&'a mut Progress, &'a str),
    layers: Vec<LayerReport>,
    times: Vec<Duration>,
    velocities: Vec<Vec<f32>>,
}

impl Watch for Trace<'_> {
    fn wants(&self, branch: Branch, step: u32, layer: u32) -> bool {
        self.watch.wants(branch, step, layer)
    }

    fn attended(&mut self, seen: &Attended<'_>) -> flashomni::Result<()> {
        self.watch.attended(seen)
    }

    fn layer(&mut self, _: Branch, _: u32, _: u32, report: &LayerReport) {
        self.layers.push(*report);
    }

    fn step(&mut self, step: u32, velocity: &[f32], _: &[f32], time: Duration) -> flashomni::Result<()> {
        self.times.push(time);
        self.velocities.push(velocity.to_vec());
        self.progress.0.step(format!("{}, step {step}", self.progress.1));
        Ok(())
    }
}

/// What a table says of a strategy: means over its images.
pub struct Line {
    name: String,
    measures: Measures,
    quality: Option<LineQuality>,
    /// Times of the reference over its own, of the whole and of attention with selection.
    gains: [f64; 2],
}

/// Qualities of some images.
struct LineQuality {
    psnr: f64,
    lowest: f64,
    ssim: Option<f64>,
    error: f64,
}

impl Line {
    /// The line of the reference.
    pub fn reference(dense: &[&Measures]) -> Self {
        Line { name: "dense".to_owned(), measures: Measures::mean(dense), quality: None, gains: [1.0; 2] }
    }
}

impl Line {
    /// The line of a strategy: what each of its images took, how far it is from the reference, and what that took.
    pub fn new(name: String, runs: &[Compared<'_>]) -> Self {
        let mean = |of: &dyn Fn(&Compared<'_>) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
        let attention = |measures: &Measures| measures.attention_ms + measures.selection_ms;
        let ssim: Option<Vec<f64>> = runs.iter().map(|run| run.quality.ssim).collect();
        let quality = LineQuality {
            psnr: mean(&|run| run.quality.psnr()),
            lowest: runs.iter().map(|run| run.quality.psnr()).fold(f64::INFINITY, f64::min),
            ssim: ssim.map(|ssim| ssim.iter().sum::<f64>() / runs.len() as f64),
            error: mean(&|run| run.quality.mean_error()),
        };
        let gains = [
            mean(&|run| run.dense.total_ms) / mean(&|run| run.own.total_ms),
            mean(&|run| attention(run.dense)) / mean(&|run| attention(run.own)),
        ];
        let own: Vec<&Measures> = runs.iter().map(|run| run.own).collect();
        Line { name, measures: Measures::mean(&own), quality: Some(quality), gains }
    }

    /// The time of the reference over its own.
    pub fn gain(&self) -> f64 {
        self.gains[0]
    }

    /// The mean quality of its images; none of the reference.
    pub fn psnr(&self) -> Option<f64> {
        self.quality.as_ref().map(|quality| quality.psnr)
    }

    /// `31.2 dB, 1.8x`; of the reference its time.
    pub fn caption(&self) -> String {
        match self.psnr() {
            Some(psnr) => format!("{}, {}", decibels(psnr), table::ratio(self.gain())),
            None => seconds(self.measures.total_ms),
        }
    }

    fn cells(&self) -> [String; 13] {
        let Line { name, measures, quality, gains } = self;
        let quality = |text: fn(&LineQuality) -> String| quality.as_ref().map(text).unwrap_or_default();
        let steps = measures.step_ms.len().max(1) as f64;
        [
            name.clone(),
            table::percent(measures.attention_share),
            table::percent(measures.gemm_q_share),
            table::percent(measures.gemm_o_share),
            table::percent(measures.work_share),
            format!("{:.3}", measures.total_ms / 1e3 / steps),
            seconds(measures.total_ms),
            table::ratio(gains[0]),
            table::ratio(gains[1]),
            quality(|quality| decibels(quality.psnr)),
            quality(|quality| decibels(quality.lowest)),
            quality(|quality| quality.ssim.map_or_else(String::new, |ssim| format!("{ssim:.4}"))),
            quality(|quality| table::error(quality.error)),
        ]
    }
}

/// An image and its reference.
#[derive(Clone, Copy)]
pub struct Compared<'a> {
    pub own: &'a Measures,
    pub dense: &'a Measures,
    pub quality: &'a Quality,
}

/// Headings of the table; `>` puts a column to the right.
const HEADINGS: [&str; 13] = [
    "strategy",
    ">attention",
    ">GEMM-Q",
    ">GEMM-O",
    ">all work",
    ">s/step",
    ">total",
    ">gain",
    ">of attention",
    ">PSNR",
    ">worst",
    ">SSIM",
    ">error",
];

/// The table, for a terminal.
pub fn render(lines: &[Line]) -> String {
    let mut rows = Table::new(&HEADINGS);
    lines.iter().for_each(|line| rows.row(line.cells()));
    rows.render()
}

/// The table, for a page.
pub fn markdown(lines: &[Line]) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = HEADINGS.map(|heading| if heading.starts_with('>') { "---:" } else { "---" }.to_owned());
    let headings = HEADINGS.map(|heading| heading.trim_start_matches('>').to_owned());
    let rows: String = lines.iter().map(|line| row(&line.cells())).collect();
    format!("{}{}{rows}", row(&headings), row(&rule))
}

/// `31.2 dB`, or `equal`.
pub fn decibels(psnr: f64) -> String {
    if psnr.is_finite() { format!("{psnr:.1} dB") } else { "equal".to_owned() }
}

fn seconds(milliseconds: f64) -> String {
    table::duration(Duration::from_secs_f64(milliseconds / 1e3))
}

/// Images are PNG.
pub fn check_png(path: &Path) -> Result<(), Failure> {
    let is_png = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    is_png.then_some(()).ok_or_else(|| {
        Failure::new(format!("`{}` does not end in .png", path.display()))
            .help("images are written as PNG, as in `-o china.png`")
    })
}

impl From<DrawError> for Failure {
    fn from(error: DrawError) -> Self {
        Failure::new(format!("cannot draw: {error}"))
    }
}
