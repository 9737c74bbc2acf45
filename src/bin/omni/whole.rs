//! `omni run --block`: whole attention blocks over a series of steps, beside the dense block and, on a GPU, beside the CPU.
//!
//! The blocks take the series' queries, keys and values side by side as the channels of their tokens, and projections copy them out: so
//! attention sees the same numbers on every device, and rules that look at them choose the same. Output projections are random. Every
//! segment of the model is a stream with weights of its own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use flashomni::ir::Model;
use flashomni::runtime::{AttentionBlock, CpuBlock, Linear, Memory, TokenStream};
use flashomni::tensor::{Dtype, Tensor};
use serde::Serialize;

use crate::args::Run;
use crate::console::Console;
use crate::device::Device;
use crate::exit::{Exit, Failure};
use crate::run::{gain, milliseconds, relative, threads};
use crate::runner::{self, Runner};
use crate::source::Measured;
use crate::table::{self, Table};
use crate::{input, source};

/// What one layer did at one step.
#[derive(Serialize)]
struct Line {
    step: u32,
    layer: u32,
    kind: &'static str,
    /// Of the output to that of the dense block on the same device.
    relative_error: f64,
    /// To the same strategy on the CPU, where the device is a GPU and the CPU takes no more than seconds.
    error_to_cpu: Option<f64>,
    /// Choosing symbols; it is not part of the time on a GPU.
    selection_ms: f64,
    block_ms: f64,
    dense_ms: f64,
}

#[derive(Serialize)]
struct Results<'a> {
    strategy: String,
    model: &'a str,
    source: &'a str,
    device: String,
    /// Bytes of a GPU's memory, at most.
    memory_bytes: Option<u64>,
    /// The same of the host's memory.
    host_memory_bytes: Option<u64>,
    steps: &'a [Line],
}

/// Runs.
pub fn run(args: &Run, console: &Console) -> Result<Exit, Failure> {
    threads(args.threads)?;
    let (plan, series) = source::open_to_run(&args.file, &args.choice, &args.source, &args.part, console)?;
    let options = args.device.options(args.room)?;
    let backend = args.device.open(console)?;
    let dtype = runner::dtype(args.source.dtype.unwrap_or(plan.model.dtype), &backend);
    let block = block(&plan.model, dtype)?;
    let plans = [Arc::new(plan.clone()), Arc::new(runner::dense(plan.clone()))];
    let mut runners = runner::pair(&plans, &backend, &block, &options)?;
    let is_compared = args.device != Device::Cpu && args.device.reference(&plan.model) == Device::Cpu;
    let on_cpu = || Runner::cpu(&plans[0], &block, &Arc::new(CpuBlock::new(&block)?));
    let mut on_cpu = is_compared.then(on_cpu).transpose()?;
    let memory = runners[0].memory().cloned();
    let mut lines = Vec::new();
    let mut progress = console.progress(series.places.len());
    for &(step, layer) in &series.places {
        let x = runner::tokens(&series.qkv(step, layer)?, &block, dtype)?;
        let measured = series.measured(&plan, step, layer)?;
        let run = |runner: &mut Runner| outcome(runner, [step, layer], &x, &measured);
        let [own, dense] = &mut runners;
        let (own, dense) = (run(own)?, run(dense)?);
        let wanted = on_cpu.as_mut().map(run).transpose()?;
        lines.push(Line {
            step,
            layer,
            kind: own.kind,
            relative_error: error(&own.outputs, &dense.outputs),
            error_to_cpu: wanted.map(|wanted| error(&own.outputs, &wanted.outputs)),
            selection_ms: milliseconds(own.selection),
            block_ms: milliseconds(own.time),
            dense_ms: milliseconds(dense.time),
        });
        progress.step(format!("step {step}, layer {layer}"));
    }
    drop(progress);
    if args.json {
        let results = Results {
            strategy: input::strategy(&plan),
            model: &plan.model.name,
            source: &series.name,
            device: args.device.to_string(),
            memory_bytes: memory.as_ref().map(|memory| memory.bytes(Memory::Gpu)),
            host_memory_bytes: memory.as_ref().map(|memory| memory.bytes(Memory::Host)),
            steps: &lines,
        };
        console.print(&table::json(&results))?;
        return Ok(Exit::Fine);
    }
    let memory = memory.map_or_else(String::new, |memory| format!("  memory    {memory}\n"));
    let device = args.device.heading(&backend);
    let heading = input::heading(&plan, &series.name);
    console.print(&format!("{heading}  blocks    whole, on {device}\n{memory}\n{}", text(&lines)))?;
    Ok(Exit::Fine)
}

/// What a block gave at a step.
struct Outcome {
    kind: &'static str,
    outputs: Vec<Tensor>,
    selection: Duration,
    time: Duration,
}

/// The block of a layer at a step.
fn outcome(runner: &mut Runner, place: [u32; 2], x: &Rc<[Tensor]>, measured: &Measured) -> Result<Outcome, Failure> {
    runner.set(x)?;
    let ran = runner.step(place, measured)?;
    // While the CPU chooses, the GPU waits.
    let waited = if matches!(runner, Runner::Cuda(_)) { ran.selection } else { Duration::ZERO };
    let time = ran.time()?.saturating_sub(waited);
    Ok(Outcome { kind: ran.kind.name(), outputs: runner.outputs()?, selection: ran.selection, time })
}

/// A block whose projections copy queries, keys and values, and whose output projections are random.
fn block(model: &Model, dtype: Dtype) -> Result<AttentionBlock, Failure> {
    let width = (model.heads * model.head_dim) as usize;
    let copy = |part: usize| -> Result<Linear, Failure> {
        let one = |at: usize| f32::from(at % (3 * width) == part * width + at / (3 * width));
        let weight = Tensor::from_f32(&[width, 3 * width], (0..3 * width * width).map(one).collect())?;
        Ok(Linear { weight: weight.cast(dtype), bias: None })
    };
    let mut noise = source::Noise::new(0x5EED);
    let mut streams = Vec::new();
    for segment in &model.segments {
        let scale = 1.7 / (width as f32).sqrt();
        let out = noise.tensor(&[width, width], scale)?.cast(dtype);
        let tokens = segment.start as usize..(segment.start + segment.tokens) as usize;
        streams.push(TokenStream {
            tokens,
            q: copy(0)?,
            k: copy(1)?,
            v: copy(2)?,
            out: Linear { weight: out, bias: None },
            q_norm: None,
            k_norm: None,
        });
    }
    Ok(AttentionBlock::new(model.heads as usize, model.head_dim as usize, streams, None)?)
}

/// The relative error of all outputs together.
fn error(found: &[Tensor], wanted: &[Tensor]) -> f64 {
    let mut squares = [0.0; 2];
    for (found, wanted) in found.iter().zip(wanted) {
        for (a, b) in found.as_ref().to_f32().into_iter().zip(wanted.as_ref().to_f32()) {
            let (a, b) = (f64::from(a), f64::from(b));
            squares = [squares[0] + (a - b) * (a - b), squares[1] + b * b];
        }
    }
    relative(squares)
}

fn text(lines: &[Line]) -> String {
    let time = |ms: f64| table::duration(Duration::from_secs_f64(ms / 1e3));
    let mut rows =
        Table::new(&[">step", ">layer", "kind", ">to dense", ">to the CPU", ">selection", ">block", ">dense", ">gain"]);
    for line in lines {
        rows.row([
            line.step.to_string(),
            line.layer.to_string(),
            line.kind.to_owned(),
            table::error(line.relative_error),
            line.error_to_cpu.map_or_else(|| "-".to_owned(), table::error),
            time(line.selection_ms),
            time(line.block_ms),
            time(line.dense_ms),
            gain([line.block_ms, line.dense_ms]),
        ]);
    }
    rows.render()
}
