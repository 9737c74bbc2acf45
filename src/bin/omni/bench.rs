//! `omni bench`: medians of a strategy's attention, its selection and dense attention, for each kind of step.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use flashomni::ir::StepKind;
use flashomni::runtime::Session;
use flashomni::tensor::Tensor;
use serde::Serialize;

use crate::args::Bench;
use crate::console::Console;
use crate::device::counted;
use crate::exit::{Exit, Failure};
use crate::run::{attend, dense, gain, live_share, milliseconds, no_source, threads};
use crate::table::{self, Table};
use crate::{input, kinds, source};

/// Tensors that are kept from round to round, bytes at most: to read them or make them up takes longer than attention on a GPU.
const KEPT: usize = 4 << 30;

/// Measurements of the steps of one kind.
#[derive(Default)]
struct Samples {
    live: Vec<f64>,
    selection: Vec<Duration>,
    whole: Vec<Duration>,
    dense: Vec<Duration>,
}

#[derive(Serialize)]
struct Line {
    kind: &'static str,
    /// Calls that were measured.
    calls: usize,
    live_share: f64,
    selection_ms: f64,
    /// The whole call, and on a GPU its kernels alone.
    whole_ms: f64,
    dense_ms: f64,
    speedup: f64,
    /// Selection as a share of dense attention.
    selection_share: f64,
}

#[derive(Serialize)]
struct Results<'a> {
    strategy: String,
    model: &'a str,
    source: &'a str,
    device: String,
    rounds: u16,
    instruction_set: &'static str,
    threads: usize,
    kinds: &'a [Line],
}

/// Measures.
pub fn bench(args: &Bench, console: &Console) -> Result<Exit, Failure> {
    threads(args.threads)?;
    let (plan, series) = source::open(&args.file, &args.choice, &args.source, console)?;
    let mut series = series.ok_or_else(no_source)?;
    series.pick(&args.part)?;
    let backend = args.device.open(console)?;
    let mut session = Session::on(plan.clone(), backend.clone())?;
    let mut samples: [Samples; StepKind::ALL.len()] = Default::default();
    let mut kept: HashMap<(u32, u32), Rc<[Tensor; 3]>> = HashMap::new();
    let mut kept_bytes = 0;
    let mut progress = console.progress(series.places.len() * (usize::from(args.rounds) + 1));
    // The first round warms caches and clocks up and is not counted.
    for round in 0..=args.rounds {
        session.reset();
        for &(step, layer) in &series.places {
            let qkv = match kept.get(&(step, layer)) {
                Some(known) => Rc::clone(known),
                None => {
                    let new = Rc::new(series.qkv(step, layer)?);
                    let size = |tensor: &Tensor| tensor.dtype().bytes() * tensor.shape().iter().product::<usize>();
                    let bytes: usize = new.iter().map(size).sum();
                    if kept_bytes + bytes <= KEPT {
                        kept_bytes += bytes;
                        kept.insert((step, layer), Rc::clone(&new));
                    }
                    new
                }
            };
            let measured = series.measured(&plan, step, layer)?;
            let (report, _, whole) = attend(&mut session, &qkv, &measured, step, layer)?;
            let (_, dense_report, dense_time) = dense(&mut session, &qkv)?;
            if round > 0 {
                let live = live_share(&session, report.kind, layer)?;
                let index = StepKind::ALL.iter().position(|kind| *kind == report.kind).unwrap_or(0);
                samples[index].live.push(live);
                samples[index].selection.push(report.selection);
                samples[index].whole.push(counted(report.kernel, whole));
                samples[index].dense.push(counted(dense_report.kernel, dense_time));
            }
            progress.step(format!("round {round}, step {step}"));
        }
    }
    drop(progress);
    let measured = StepKind::ALL.iter().zip(samples).filter(|(_, samples)| !samples.live.is_empty());
    let lines: Vec<Line> = measured.map(|(kind, samples)| line(*kind, samples)).collect();
    if args.json {
        let results = Results {
            strategy: input::strategy(&plan),
            model: &plan.model.name,
            source: &series.name,
            device: args.device.to_string(),
            rounds: args.rounds,
            instruction_set: flashomni::cpu::instruction_set(),
            threads: rayon::current_num_threads(),
            kinds: &lines,
        };
        console.print(&table::json(&results))?;
        return Ok(Exit::Fine);
    }
    let time = |ms: f64| table::duration(Duration::from_secs_f64(ms / 1e3));
    let mut rows = Table::new(&["kind", ">calls", ">live", ">selection", ">of dense", ">whole", ">dense", ">gain"]);
    for line in &lines {
        rows.row([
            line.kind.to_owned(),
            line.calls.to_string(),
            table::percent(line.live_share),
            time(line.selection_ms),
            table::percent(line.selection_share),
            time(line.whole_ms),
            time(line.dense_ms),
            gain([line.whole_ms, line.dense_ms]),
        ]);
    }
    console.print(&format!(
        "{}  medians   of {}, {}\n\n{}",
        input::heading(&plan, &series.name),
        table::plural(usize::from(args.rounds), "round"),
        args.device.heading(&backend),
        rows.render()
    ))?;
    Ok(Exit::Fine)
}

fn line(kind: StepKind, samples: Samples) -> Line {
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        milliseconds(times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
    };
    let calls = samples.live.len();
    let live_share = samples.live.iter().sum::<f64>() / calls as f64;
    let (selection, whole, dense) = (median(samples.selection), median(samples.whole), median(samples.dense));
    Line {
        kind: kinds::name(kind),
        calls,
        live_share,
        selection_ms: selection,
        whole_ms: whole,
        dense_ms: dense,
        speedup: dense / whole,
        selection_share: selection / dense,
    }
}
