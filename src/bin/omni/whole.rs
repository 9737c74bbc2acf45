//! `omni run --block`: whole attention blocks over a series of steps, beside the dense block and, on a GPU, beside the CPU.
//!
//! The blocks take the series' queries, keys and values side by side as the channels of their tokens, and projections copy them out: so
//! attention sees the same numbers on every device, and rules that look at them choose the same. Output projections are random. Every
//! segment of the model is a stream with weights of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flashomni::cuda::Event;
use flashomni::ir::{Model, StepKind};
use flashomni::kernels::Element;
use flashomni::plan::Plan;
use flashomni::runtime::{
    AttentionBlock, Backend, CpuBlock, DeviceBlock, DeviceInput, DeviceMatrix, DeviceOptions, DeviceSession, Linear,
    Session, StreamInput, TokenStream,
};
use flashomni::tensor::{Dtype, Tensor, TensorMut};
use serde::Serialize;

use crate::args::Run;
use crate::console::Console;
use crate::device::Device;
use crate::exit::{Exit, Failure};
use crate::run::{gain, milliseconds, no_source, relative, threads};
use crate::source::{Measured, Series};
use crate::table::{self, Table};
use crate::{input, kinds, source};

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
    steps: &'a [Line],
}

/// What a block gave at a step.
struct Outcome {
    kind: StepKind,
    outputs: Vec<Tensor>,
    selection: Duration,
    time: Duration,
}

/// A generation on a device.
enum Runner {
    Cpu(Box<(Session, Arc<CpuBlock>)>),
    Cuda(Box<Cuda>),
}

struct Cuda {
    session: DeviceSession,
    inputs: Vec<DeviceMatrix>,
    outputs: Vec<DeviceMatrix>,
    events: [Event; 2],
}

/// Runs.
pub fn run(args: &Run, console: &Console) -> Result<Exit, Failure> {
    threads(args.threads)?;
    let (plan, series) = source::open(&args.file, &args.choice, &args.source, console)?;
    let mut series = series.ok_or_else(no_source)?;
    series.pick(&args.part)?;
    let backend = args.device.open(console)?;
    let dtype = match (args.source.dtype.unwrap_or(plan.model.dtype), &backend) {
        (dtype, Backend::Cpu) => dtype,
        (Dtype::Bf16, Backend::Cuda(_)) => Dtype::Bf16,
        (_, Backend::Cuda(_)) => Dtype::F16,
    };
    let block = block(&plan.model, dtype)?;
    let plans = [Arc::new(plan.clone()), Arc::new(dense(plan.clone()))];
    let mut runners = runners(&plans, &backend, &block, args.memory)?;
    let is_compared = args.device != Device::Cpu && args.device.reference(&plan.model) == Device::Cpu;
    let mut on_cpu = if is_compared { Some(Runner::cpu(&plans[0], Arc::new(CpuBlock::new(&block)?))?) } else { None };
    let memory = match &runners[0] {
        Runner::Cpu(_) => None,
        Runner::Cuda(cuda) => Some(cuda.session.memory().clone()),
    };
    let mut lines = Vec::new();
    let mut progress = console.progress(series.places.len());
    for &(step, layer) in &series.places {
        let x = tokens(&series, &block, dtype, [step, layer])?;
        let measured = series.measured(&plan, step, layer)?;
        let [own, dense] = &mut runners;
        let own = own.run([step, layer], &x, &measured)?;
        let dense = dense.run([step, layer], &x, &measured)?;
        let wanted = on_cpu.as_mut().map(|cpu| cpu.run([step, layer], &x, &measured)).transpose()?;
        lines.push(Line {
            step,
            layer,
            kind: kinds::name(own.kind),
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
            memory_bytes: memory.map(|memory| memory.bytes()),
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

/// The strategy's generation and the dense one.
fn runners(
    plans: &[Arc<Plan>; 2],
    backend: &Backend,
    block: &AttentionBlock,
    memory: Option<f64>,
) -> Result<[Runner; 2], Failure> {
    let [own, dense] = plans;
    match backend {
        Backend::Cpu => {
            let block = Arc::new(CpuBlock::new(block)?);
            Ok([Runner::cpu(own, Arc::clone(&block))?, Runner::cpu(dense, block)?])
        }
        Backend::Cuda(kernels) => {
            let element = if block.streams()[0].v.weight.dtype() == Dtype::Bf16 { Element::Bf16 } else { Element::F16 };
            let stream = flashomni::cuda::Stream::new(kernels.device())?;
            // All layers have the same weights.
            let uploaded = DeviceBlock::upload(&stream, std::slice::from_ref(block), element)?;
            let blocks = vec![Arc::clone(&uploaded[0]); own.model.layers as usize];
            let limit = memory.map(|gigabytes| (gigabytes * 1e9) as u64);
            let runner = |plan: &Arc<Plan>| -> Result<Runner, Failure> {
                let options = DeviceOptions { memory_limit: limit, ..DeviceOptions::default() };
                let session = DeviceSession::new(Arc::clone(plan), kernels, blocks.clone(), options)?;
                let matrix =
                    |rows: usize, columns: usize| DeviceMatrix::new(session.stream(), [rows, columns], element);
                let shapes =
                    || block.shapes().iter().map(|stream| (stream.tokens.len(), stream.inputs, stream.outputs));
                Ok(Runner::Cuda(Box::new(Cuda {
                    inputs: shapes().map(|(rows, inputs, _)| matrix(rows, inputs)).collect::<Result<_, _>>()?,
                    outputs: shapes().map(|(rows, _, outputs)| matrix(rows, outputs)).collect::<Result<_, _>>()?,
                    events: [Event::new(kernels.device())?, Event::new(kernels.device())?],
                    session,
                })))
            };
            Ok([runner(own)?, runner(dense)?])
        }
    }
}

impl Runner {
    fn cpu(plan: &Arc<Plan>, block: Arc<CpuBlock>) -> Result<Self, Failure> {
        Ok(Runner::Cpu(Box::new((Session::new(Arc::clone(plan))?, block))))
    }

    /// The block of a layer at a step.
    fn run(&mut self, [step, layer]: [u32; 2], x: &[Tensor], measured: &Measured) -> Result<Outcome, Failure> {
        match self {
            Runner::Cpu(own) => {
                let (session, block) = &mut **own;
                let inputs: Vec<StreamInput<'_>> = x.iter().map(|x| StreamInput::of(x.as_ref())).collect();
                let zeros = |x: &Tensor| Tensor::zeros(&[x.shape()[0], x.shape()[1] / 3], Dtype::F32);
                let mut outputs: Vec<Tensor> = x.iter().map(zeros).collect();
                let mut targets: Vec<TensorMut<'_>> = outputs.iter_mut().map(Tensor::as_mut).collect();
                let start = Instant::now();
                let report = session.begin(step, layer)?.block(block, &inputs, measured, &mut targets)?;
                let time = start.elapsed();
                Ok(Outcome { kind: report.kind, outputs, selection: report.selection, time })
            }
            Runner::Cuda(own) => {
                let Cuda { session, inputs, outputs, events: [start, end] } = &mut **own;
                let stream = Arc::clone(session.stream());
                inputs.iter().zip(x).try_for_each(|(matrix, x)| matrix.upload(&stream, x.as_ref()))?;
                let given: Vec<DeviceInput<'_>> = inputs.iter().map(|x| DeviceInput { x, further: None }).collect();
                let targets: Vec<&DeviceMatrix> = outputs.iter().collect();
                start.record(&stream)?;
                let report = session.block(step, layer, &given, measured, &targets)?;
                end.record(&stream)?;
                let time = Duration::from_secs_f64(start.milliseconds_to(end)?.max(0.0) / 1e3);
                let outputs = outputs.iter().map(|out| out.download(&stream)).collect::<Result<_, _>>()?;
                // While the CPU chooses, the GPU waits.
                let time = time.saturating_sub(report.selection);
                Ok(Outcome { kind: report.kind, outputs, selection: report.selection, time })
            }
        }
    }
}

/// The same plan without its schedule: every step in full.
fn dense(mut plan: Plan) -> Plan {
    plan.schedule.kinds.fill(StepKind::Dense);
    plan.schedule.reuse_orders.fill(0);
    plan
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
        let values = (0..width * width).map(|_| scale * noise.next()).collect();
        let out = Tensor::from_f32(&[width, width], values)?.cast(dtype);
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

/// The tokens of each stream: queries, keys and values of all heads side by side.
fn tokens(
    series: &Series,
    block: &AttentionBlock,
    dtype: Dtype,
    [step, layer]: [u32; 2],
) -> Result<Vec<Tensor>, Failure> {
    let qkv = series.qkv(step, layer)?;
    let values = qkv.each_ref().map(|tensor| tensor.as_ref().to_f32());
    let [heads, dim] = block.head_shape();
    let all = block.tokens();
    let stream = |range: std::ops::Range<usize>| {
        let rows = range.len();
        let parts = range.flat_map(|token| values.iter().map(move |values| (token, values)));
        let heads =
            parts.flat_map(|(token, values)| (0..heads).map(move |head| &values[(head * all + token) * dim..][..dim]));
        let x = Tensor::from_f32(&[rows, 3 * block.head_shape()[0] * dim], heads.flatten().copied().collect())?;
        Ok(x.cast(dtype))
    };
    block.shapes().iter().map(|shape| stream(shape.tokens.clone())).collect()
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
