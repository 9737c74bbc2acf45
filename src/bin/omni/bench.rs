//! `omni bench`: medians of a strategy's attention, its selection and dense attention, for each kind of step.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use flashomni::ir::StepKind;
use flashomni::plan::Plan;
use flashomni::runtime::Session;
use flashomni::tensor::Tensor;
use serde::Serialize;

use crate::args::Bench;
use crate::console::Console;
use crate::device::counted;
use crate::exit::{Exit, Failure};
use crate::run::{attend, dense, gain, live_share, milliseconds, threads};
use crate::table::{self, Table};
use crate::{input, source};

/// Tensors that are kept from round to round, bytes at most: to read them or make them up takes longer than attention on a GPU.
const KEPT: usize = 4 << 30;

/// Measurements of the steps of one kind.
#[derive(Default)]
struct OfKind {
    live: Vec<f64>,
    selection: Vec<Duration>,
    whole: Vec<Duration>,
    dense: Vec<Duration>,
}

/// Measurements of steps, by their kind.
#[derive(Default)]
pub struct Samples([OfKind; StepKind::ALL.len()]);

/// Times of one step.
pub struct Times {
    pub selection: Duration,
    pub whole: Duration,
    pub dense: Duration,
}

#[derive(Serialize)]
struct Line {
    kind: &'static str,
    /// Calls that were measured.
    calls: usize,
    live_share: f64,
    selection_ms: f64,
    /// The whole call; of attention on a GPU its kernels alone.
    whole_ms: f64,
    dense_ms: f64,
    speedup: f64,
    /// Selection as a share of what is dense.
    selection_share: f64,
}

/// All steps of a series together.
#[derive(Serialize)]
pub struct Total {
    pub whole_ms: f64,
    pub dense_ms: f64,
    pub speedup: f64,
}

/// What was measured.
#[derive(Serialize)]
pub struct Results<'a> {
    strategy: String,
    model: &'a str,
    source: &'a str,
    device: String,
    rounds: u16,
    instruction_set: &'static str,
    threads: usize,
    kinds: Vec<Line>,
    /// Of whole blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Total>,
    /// Bytes of a GPU's memory that were announced for whole blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The same of the host's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_memory_bytes: Option<u64>,
}

/// Measures.
pub fn bench(args: &Bench, console: &Console) -> Result<Exit, Failure> {
    threads(args.threads)?;
    let (plan, series) = source::open_to_run(&args.file, &args.choice, &args.source, &args.part, console)?;
    let backend = args.device.open(console)?;
    let mut session = Session::on(plan.clone(), backend.clone())?;
    let mut samples = Samples::default();
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
                let times = Times {
                    selection: report.selection,
                    whole: counted(report.kernel, whole),
                    dense: counted(dense_report.kernel, dense_time),
                };
                samples.add(report.kind, live_share(report.kind, session.symbols(layer))?, times);
            }
            progress.step(format!("round {round}, step {step}"));
        }
    }
    drop(progress);
    let results = Results::new(args, &plan, &series.name, samples);
    if args.json {
        console.print(&table::json(&results))?;
        return Ok(Exit::Fine);
    }
    let rounds = table::plural(usize::from(args.rounds), "round");
    let medians = format!("  medians   of {rounds}, {}\n", args.device.heading(&backend));
    console.print(&format!("{}{medians}\n{}", input::heading(&plan, &series.name), results.table()))?;
    Ok(Exit::Fine)
}

impl Samples {
    /// Adds a step, which did a share of attention.
    pub fn add(&mut self, kind: StepKind, live: f64, Times { selection, whole, dense }: Times) {
        let index = StepKind::ALL.iter().position(|known| *known == kind).unwrap_or(0);
        let of_kind = &mut self.0[index];
        of_kind.live.push(live);
        of_kind.selection.push(selection);
        of_kind.whole.push(whole);
        of_kind.dense.push(dense);
    }
}

impl<'a> Results<'a> {
    /// The medians of samples.
    pub fn new(args: &Bench, plan: &'a Plan, source: &'a str, samples: Samples) -> Self {
        let measured = StepKind::ALL.iter().zip(samples.0).filter(|(_, of_kind)| !of_kind.live.is_empty());
        Results {
            strategy: input::strategy(plan),
            model: &plan.model.name,
            source,
            device: args.device.to_string(),
            rounds: args.rounds,
            instruction_set: flashomni::cpu::instruction_set(),
            threads: rayon::current_num_threads(),
            kinds: measured.map(|(kind, of_kind)| line(*kind, of_kind)).collect(),
            total: None,
            memory_bytes: None,
            host_memory_bytes: None,
        }
    }

    /// A row for each kind of step.
    pub fn table(&self) -> String {
        let time = |ms: f64| table::duration(Duration::from_secs_f64(ms / 1e3));
        let mut rows = Table::new(&["kind", ">calls", ">live", ">selection", ">of dense", ">whole", ">dense", ">gain"]);
        for line in &self.kinds {
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
        rows.render()
    }
}

/// The median of some times, in milliseconds.
pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    milliseconds(times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

fn line(kind: StepKind, samples: OfKind) -> Line {
    let calls = samples.live.len();
    let live_share = samples.live.iter().sum::<f64>() / calls as f64;
    let (selection, whole, dense) = (median(samples.selection), median(samples.whole), median(samples.dense));
    Line {
        kind: kind.name(),
        calls,
        live_share,
        selection_ms: selection,
        whole_ms: whole,
        dense_ms: dense,
        speedup: dense / whole,
        selection_share: selection / dense,
    }
}
