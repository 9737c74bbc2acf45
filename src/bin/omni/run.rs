//! `omni run`: a strategy over a series of steps, beside dense attention.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flashomni::ir::StepKind;
use flashomni::plan::Plan;
use flashomni::runtime::{Backend, LayerSymbols, Report, Session, Tensors};
use flashomni::tensor::{Tensor, TensorRef};
use flashomni::tensor_file::{self, Entry};
use serde::Serialize;

use crate::args::Run;
use crate::console::Console;
use crate::device::{Device, on_cpu};
use crate::exit::{Exit, Failure};
use crate::source::Series;
use crate::table::{self, Table};
use crate::{input, source};

/// What one layer did at one step.
#[derive(Serialize)]
struct Line {
    step: u32,
    layer: u32,
    kind: &'static str,
    /// Share of the attention work that was done.
    live_share: f64,
    relative_error: f64,
    max_error: f64,
    cosine: f64,
    selection_ms: f64,
    /// Of the whole call, selection and bookkeeping included.
    whole_ms: f64,
    /// The same of dense attention.
    dense_ms: f64,
    /// Of it the kernels' time, on a GPU.
    kernel_ms: Option<f64>,
    dense_kernel_ms: Option<f64>,
}

impl Line {
    /// The times that are compared: the kernels' on a GPU, as a host that lives there copies nothing.
    fn counted_ms(&self) -> [f64; 2] {
        [self.kernel_ms.unwrap_or(self.whole_ms), self.dense_kernel_ms.unwrap_or(self.dense_ms)]
    }
}

/// All lines together.
#[derive(Serialize)]
struct Total {
    live_share: f64,
    relative_error: f64,
    whole_ms: f64,
    dense_ms: f64,
    kernel_ms: Option<f64>,
    dense_kernel_ms: Option<f64>,
    speedup: f64,
}

#[derive(Serialize)]
struct Results<'a> {
    strategy: String,
    model: &'a str,
    source: &'a str,
    device: String,
    /// Whose dense attention the errors are against.
    reference: String,
    instruction_set: &'static str,
    threads: usize,
    steps: &'a [Line],
    total: Total,
}

/// Runs.
pub fn run(args: &Run, console: &Console) -> Result<Exit, Failure> {
    threads(args.threads)?;
    let (plan, series) = source::open_to_run(&args.file, &args.choice, &args.source, &args.part, console)?;
    let backend = args.device.open(console)?;
    let reference = args.device.reference(&plan.model);
    let mut session = Session::on(plan.clone(), backend.clone())?;
    if series.is_large(&plan.model) {
        let (name, sizes) = (&plan.model.name, input::describe(&plan.model));
        console.note(format_args!(
            "{name} is large: {sizes}; this may take minutes. --scale 0.1 shrinks it, --steps 0..4 picks steps"
        ));
    }
    let mut progress = console.progress(series.places.len());
    let (mut lines, mut outputs, mut promoted) = (Vec::new(), Vec::new(), Vec::new());
    let mut squares = [0.0; 2];
    for &(step, layer) in &series.places {
        let qkv = series.qkv(step, layer)?;
        let measured = series.measured(&plan, step, layer)?;
        let (report, out, whole) = attend(&mut session, &qkv, &measured, step, layer)?;
        let (mut dense, dense_report, dense_time) = dense(&mut session, &qkv)?;
        if reference != args.device {
            dense = on_cpu(qkv.each_ref().map(Tensor::as_ref))?;
        }
        let error = Error::of(out.as_ref(), dense.as_ref());
        squares[0] += error.squares[0];
        squares[1] += error.squares[1];
        if report.kind != plan.schedule.kind(step, layer) {
            promoted.push(format!("step {step} of layer {layer}"));
        }
        lines.push(Line {
            step,
            layer,
            kind: report.kind.name(),
            live_share: live_share(report.kind, session.symbols(layer))?,
            relative_error: relative(error.squares),
            max_error: error.max,
            cosine: error.cosine,
            selection_ms: milliseconds(report.selection),
            whole_ms: milliseconds(whole),
            dense_ms: milliseconds(dense_time),
            kernel_ms: report.kernel.map(milliseconds),
            dense_kernel_ms: dense_report.kernel.map(milliseconds),
        });
        if args.output.is_some() {
            outputs.push((format!("out.layer{layer}.step{step}"), out));
        }
        progress.step(format!("step {step}, layer {layer}"));
    }
    drop(progress);
    if let Some(first) = promoted.first() {
        let more = if promoted.len() > 1 { format!(" and {} more", promoted.len() - 1) } else { String::new() };
        console
            .note(format_args!("{first}{more} ran as update: no step before chose symbols or left a feature to reuse"));
    }
    if let Some(path) = &args.output {
        let entries: Vec<Entry<'_>> = outputs.iter().map(|(name, out)| Entry::of(name, out.as_ref())).collect();
        let metadata = BTreeMap::from([
            ("strategy".to_owned(), input::strategy(&plan)),
            ("model".to_owned(), plan.model.name.clone()),
        ]);
        tensor_file::write(path, &entries, &metadata)?;
        console.note(format_args!("wrote {}", path.display()));
    }
    let total = total(&lines, squares);
    if args.json {
        let results = Results {
            strategy: input::strategy(&plan),
            model: &plan.model.name,
            source: &series.name,
            device: args.device.to_string(),
            reference: reference.to_string(),
            instruction_set: flashomni::cpu::instruction_set(),
            threads: rayon::current_num_threads(),
            steps: &lines,
            total,
        };
        console.print(&table::json(&results))?;
    } else {
        let heading = heading(&plan, &series, args.device, reference, &backend);
        console.print(&format!("{heading}\n{}", text(&lines, &total)))?;
    }
    Ok(Exit::Fine)
}

/// One call of a session: what it did, the output, and the time of the whole call.
pub fn attend(
    session: &mut Session,
    [q, k, v]: &[Tensor; 3],
    measured: &[(String, Tensor)],
    step: u32,
    layer: u32,
) -> Result<(Report, Tensor, Duration), Failure> {
    let mut out = Tensor::zeros(q.shape(), q.dtype());
    let [q, k, v] = [q, k, v].map(Tensor::as_ref);
    let start = Instant::now();
    let mut step = session.begin(step, layer)?;
    step.choose(Tensors { v: Some(v), measured, ..Tensors::of(q, k) })?;
    let report = step.attention(q, k, v, out.as_mut())?;
    Ok((report, out, start.elapsed()))
}

/// Dense attention on the session's device, and the time of the whole call.
pub fn dense(session: &mut Session, [q, k, v]: &[Tensor; 3]) -> Result<(Tensor, Report, Duration), Failure> {
    let mut out = Tensor::zeros(q.shape(), q.dtype());
    let start = Instant::now();
    let report = session.dense_attention(q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut())?;
    Ok((out, report, start.elapsed()))
}

/// The share of attention that a step did, which may have obeyed symbols.
pub fn live_share(kind: StepKind, symbols: Option<&LayerSymbols>) -> Result<f64, Failure> {
    Ok(match (kind, symbols) {
        (kind, Some(symbols)) if kind.obeys_symbols() => symbols.live_share()?,
        (StepKind::Reuse(_), _) => 0.0,
        _ => 1.0,
    })
}

/// Uses so many threads from now on.
pub fn threads(wanted: Option<u16>) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(usize::from(wanted))
        .build_global()
        .map_err(|error| Failure::new(format!("cannot start {wanted} threads: {error}")))
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How far an output is from the dense one.
struct Error {
    /// Of the difference, and of the dense output.
    squares: [f64; 2],
    max: f64,
    cosine: f64,
}

impl Error {
    fn of(found: TensorRef<'_>, wanted: TensorRef<'_>) -> Self {
        let (found, wanted) = (found.to_f32(), wanted.to_f32());
        let (mut difference, mut norm, mut own, mut product, mut max) = (0.0, 0.0, 0.0, 0.0, 0.0_f64);
        for (&a, &b) in found.iter().zip(&wanted) {
            let (a, b) = (f64::from(a), f64::from(b));
            difference += (a - b) * (a - b);
            norm += b * b;
            own += a * a;
            product += a * b;
            max = max.max((a - b).abs());
        }
        let cosine = if difference == 0.0 { 1.0 } else { product / (norm * own).sqrt() };
        Error { squares: [difference, norm], max, cosine }
    }
}

/// Relative error of squared sums: of the difference, and of what is right.
pub fn relative([difference, norm]: [f64; 2]) -> f64 {
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

fn total(lines: &[Line], squares: [f64; 2]) -> Total {
    let sum = |of: fn(&Line) -> f64| lines.iter().map(of).sum::<f64>();
    let [time, dense] = [0, 1].map(|index| lines.iter().map(|line| line.counted_ms()[index]).sum::<f64>());
    let on_gpu = lines.iter().any(|line| line.kernel_ms.is_some());
    Total {
        live_share: sum(|line| line.live_share) / lines.len() as f64,
        relative_error: relative(squares),
        whole_ms: sum(|line| line.whole_ms),
        dense_ms: sum(|line| line.dense_ms),
        kernel_ms: on_gpu.then_some(time),
        dense_kernel_ms: on_gpu.then_some(dense),
        speedup: dense / time,
    }
}

/// What ran, and on a GPU what the columns are about.
fn heading(plan: &Plan, series: &Series, device: Device, reference: Device, backend: &Backend) -> String {
    let about = match device {
        Device::Cpu => String::new(),
        Device::Cuda(_) => format!(
            "  device    {}; times are its kernels', errors are against dense attention on {reference}\n",
            device.heading(backend)
        ),
    };
    input::heading(plan, &series.name) + &about
}

fn text(lines: &[Line], total: &Total) -> String {
    let time = |ms: f64| table::duration(Duration::from_secs_f64(ms / 1e3));
    let mut rows = Table::new(&[
        ">step",
        ">layer",
        "kind",
        ">live",
        ">rel. error",
        ">max error",
        ">cosine",
        ">time",
        ">dense",
        ">gain",
    ]);
    for line in lines {
        rows.row([
            line.step.to_string(),
            line.layer.to_string(),
            line.kind.to_owned(),
            table::percent(line.live_share),
            table::error(line.relative_error),
            table::error(line.max_error),
            format!("{:.5}", line.cosine),
            time(line.counted_ms()[0]),
            time(line.counted_ms()[1]),
            gain(line.counted_ms()),
        ]);
    }
    rows.row([
        "all".to_owned(),
        String::new(),
        String::new(),
        table::percent(total.live_share),
        table::error(total.relative_error),
        String::new(),
        String::new(),
        time(total.kernel_ms.unwrap_or(total.whole_ms)),
        time(total.dense_kernel_ms.unwrap_or(total.dense_ms)),
        gain([1.0, total.speedup]),
    ]);
    rows.render()
}

/// How much faster; nothing where no kernel ran.
pub fn gain([time, dense]: [f64; 2]) -> String {
    let ratio = dense / time;
    if ratio.is_finite() { table::ratio(ratio) } else { "-".to_owned() }
}
