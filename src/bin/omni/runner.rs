//! A generation of whole attention blocks on a device: what `omni run --block` compares and `omni bench --block` times.
//!
//! A step on a GPU is put into the stream and not waited for; its time is asked for afterwards, so that a host may launch ahead.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashomni::cuda::{Event, Stream};
use flashomni::ir::StepKind;
use flashomni::kernels::Element;
use flashomni::kernels::choose::BLOCK;
use flashomni::plan::Plan;
use flashomni::runtime::{
    AttentionBlock, Backend, CpuBlock, DeviceBlock, DeviceInput, DeviceMatrix, DeviceOptions, DeviceSession,
    MemoryPlan, Session, StreamInput,
};
use flashomni::symbols::Symbols;
use flashomni::symbols::cut::cut;
use flashomni::symbols::statistics::Statistics;
use flashomni::tensor::{Dtype, Tensor, TensorMut};

use crate::exit::Failure;
use crate::run::live_share;
use crate::source::Measured;

/// A generation on a device.
pub enum Runner {
    Cpu(Box<Cpu>),
    Cuda(Box<Cuda>),
}

pub struct Cpu {
    session: Session,
    block: Arc<CpuBlock>,
    inputs: Rc<[Tensor]>,
    outputs: Vec<Tensor>,
}

pub struct Cuda {
    session: DeviceSession,
    inputs: Vec<DeviceMatrix>,
    outputs: Vec<DeviceMatrix>,
}

/// What a step did.
pub struct Ran {
    pub kind: StepKind,
    /// Choosing symbols on the CPU, which is part of the step's time.
    pub selection: Duration,
    time: Time,
}

enum Time {
    Known(Duration),
    Between([Event; 2]),
}

impl Ran {
    /// Its time: on a GPU that from the first launch to the end of the last, which is waited for.
    pub fn time(&self) -> Result<Duration, Failure> {
        Ok(match &self.time {
            Time::Known(time) => *time,
            Time::Between([start, end]) => Duration::from_secs_f64(start.milliseconds_to(end)?.max(0.0) / 1e3),
        })
    }
}

/// The same plan without its schedule: every step in full.
pub fn dense(mut plan: Plan) -> Plan {
    plan.schedule.kinds.fill(StepKind::Dense);
    plan.schedule.reuse_orders.fill(0);
    plan
}

/// The type that blocks compute with on a device: one of 16 bits on a GPU.
pub fn dtype(wanted: Dtype, backend: &Backend) -> Dtype {
    match (wanted, backend) {
        (dtype, Backend::Cpu) => dtype,
        (Dtype::Bf16, Backend::Cuda(_)) => Dtype::Bf16,
        (_, Backend::Cuda(_)) => Dtype::F16,
    }
}

/// The tokens of each stream: tensors `[heads, tokens, head_dim]` side by side, each with all its heads.
pub fn tokens(tensors: &[Tensor], block: &AttentionBlock, dtype: Dtype) -> Result<Rc<[Tensor]>, Failure> {
    let values: Vec<Vec<f32>> = tensors.iter().map(|tensor| tensor.as_ref().to_f32()).collect();
    let [heads, dim] = block.head_shape();
    let all = block.tokens();
    let stream = |range: std::ops::Range<usize>| {
        let shape = [range.len(), values.len() * heads * dim];
        let parts = range.flat_map(|token| values.iter().map(move |values| (token, values)));
        let heads =
            parts.flat_map(|(token, values)| (0..heads).map(move |head| &values[(head * all + token) * dim..][..dim]));
        Ok(Tensor::from_f32(&shape, heads.flatten().copied().collect())?.cast(dtype))
    };
    block.shapes().iter().map(|shape| stream(shape.tokens.clone())).collect()
}

/// Generations under two plans, all of whose layers have the weights of one block; on a GPU in one stream, so that they take turns.
pub fn pair(
    plans: &[Arc<Plan>; 2],
    backend: &Backend,
    block: &AttentionBlock,
    options: &DeviceOptions,
) -> Result<[Runner; 2], Failure> {
    let [own, other] = plans;
    match backend {
        Backend::Cpu => {
            let packed = Arc::new(CpuBlock::new(block)?);
            let runner = |plan| Runner::cpu(plan, block, &packed);
            Ok([runner(own)?, runner(other)?])
        }
        Backend::Cuda(kernels) => {
            let element = if block.streams()[0].v.weight.dtype() == Dtype::Bf16 { Element::Bf16 } else { Element::F16 };
            let stream = Arc::new(Stream::new(kernels.device())?);
            let uploaded = DeviceBlock::upload(&stream, std::slice::from_ref(block), element)?;
            let blocks = vec![Arc::clone(&uploaded[0]); own.model.layers as usize];
            let runner = |plan: &Arc<Plan>| -> Result<Runner, Failure> {
                let options = DeviceOptions { stream: Some(Arc::clone(&stream)), ..options.clone() };
                let session = DeviceSession::new(Arc::clone(plan), kernels, blocks.clone(), options)?;
                let matrix = |rows: usize, columns: usize| DeviceMatrix::new(&stream, [rows, columns], element);
                let inputs = block.shapes().iter().map(|stream| matrix(stream.tokens.len(), stream.inputs));
                let outputs = block.shapes().iter().map(|stream| matrix(stream.tokens.len(), stream.outputs));
                let (inputs, outputs) = (inputs.collect::<Result<_, _>>()?, outputs.collect::<Result<_, _>>()?);
                Ok(Runner::Cuda(Box::new(Cuda { session, inputs, outputs })))
            };
            Ok([runner(own)?, runner(other)?])
        }
    }
}

impl Runner {
    /// A generation on the CPU, with the weights of a block and the same packed.
    pub fn cpu(plan: &Arc<Plan>, block: &AttentionBlock, packed: &Arc<CpuBlock>) -> Result<Self, Failure> {
        let outputs = block.shapes().iter().map(|stream| [stream.tokens.len(), stream.outputs]);
        Ok(Runner::Cpu(Box::new(Cpu {
            session: Session::new(Arc::clone(plan))?,
            block: Arc::clone(packed),
            inputs: Rc::new([]),
            outputs: outputs.map(|shape| Tensor::zeros(&shape, Dtype::F32)).collect(),
        })))
    }

    /// The tokens of each stream from now on.
    pub fn set(&mut self, x: &Rc<[Tensor]>) -> Result<(), Failure> {
        match self {
            Runner::Cpu(own) => own.inputs = Rc::clone(x),
            Runner::Cuda(own) => {
                let stream = own.session.stream();
                own.inputs.iter().zip(x.iter()).try_for_each(|(matrix, x)| matrix.upload(stream, x.as_ref()))?;
            }
        }
        Ok(())
    }

    /// Forgets the generation.
    pub fn reset(&mut self) {
        match self {
            Runner::Cpu(own) => own.session.reset(),
            Runner::Cuda(own) => own.session.reset(),
        }
    }

    /// The block of a layer at a step.
    pub fn step(&mut self, [step, layer]: [u32; 2], measured: &Measured) -> Result<Ran, Failure> {
        match self {
            Runner::Cpu(own) => {
                let Cpu { session, block, inputs, outputs } = &mut **own;
                let inputs: Vec<StreamInput<'_>> = inputs.iter().map(|x| StreamInput::of(x.as_ref())).collect();
                let mut targets: Vec<TensorMut<'_>> = outputs.iter_mut().map(Tensor::as_mut).collect();
                let start = Instant::now();
                let report = session.begin(step, layer)?.block(block, &inputs, measured, &mut targets)?;
                Ok(Ran { kind: report.kind, selection: report.selection, time: Time::Known(start.elapsed()) })
            }
            Runner::Cuda(own) => {
                let Cuda { session, inputs, outputs } = &mut **own;
                let stream = Arc::clone(session.stream());
                let given: Vec<DeviceInput<'_>> = inputs.iter().map(|x| DeviceInput { x, further: None }).collect();
                let targets: Vec<&DeviceMatrix> = outputs.iter().collect();
                let [start, end] = [Event::new(stream.device())?, Event::new(stream.device())?];
                start.record(&stream)?;
                let report = session.block(step, layer, &given, measured, &targets)?;
                end.record(&stream)?;
                Ok(Ran { kind: report.kind, selection: report.selection, time: Time::Between([start, end]) })
            }
        }
    }

    /// The outputs of the last step, of each stream.
    pub fn outputs(&self) -> Result<Vec<Tensor>, Failure> {
        match self {
            Runner::Cpu(own) => Ok(own.outputs.clone()),
            Runner::Cuda(own) => {
                let stream = own.session.stream();
                Ok(own.outputs.iter().map(|out| out.download(stream)).collect::<Result<_, _>>()?)
            }
        }
    }

    /// The share of attention that the last step of a layer did; where its symbols lie on a GPU they are waited for.
    pub fn live_share(&self, kind: StepKind, [step, layer]: [u32; 2]) -> Result<f64, Failure> {
        let session = match self {
            Runner::Cpu(own) => return live_share(kind, own.session.symbols(layer)),
            Runner::Cuda(own) => &own.session,
        };
        let on_gpu = if kind.obeys_symbols() { session.symbols_on_gpu(layer)? } else { None };
        let Some(symbols) = on_gpu else { return live_share(kind, session.symbols(layer)) };
        let plan = session.plan();
        let blocks = &plan.arrangements[plan.class(step, layer, 0).arrangement as usize].blocks;
        let full = Symbols::dense(1, blocks.q_blocks(), blocks.kv_blocks());
        Ok(Statistics::of(&symbols, &cut(&full, blocks, BLOCK).1)?.total.live_share)
    }

    /// The memory that was announced for it, of a GPU.
    pub fn memory(&self) -> Option<&MemoryPlan> {
        match self {
            Runner::Cpu(_) => None,
            Runner::Cuda(own) => Some(own.session.memory()),
        }
    }
}
