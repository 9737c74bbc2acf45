//! A generation on a GPU: whole attention blocks, from tokens in its memory to outputs in its memory.
//!
//! | step | queries | keys, values | attention | output projection |
//! |---|---|---|---|---|
//! | dense | all | all | in full | all |
//! | update | all | all | in full | cached blocks once for each order, into the biases; then the live ones on top |
//! | refresh | all | all | under the symbols just chosen | as dispatch, after cached blocks |
//! | dispatch | live blocks | all | under the symbols | live blocks, and the forecast of the biases as terms |
//! | reuse | | | | the forecast of earlier outputs |
//!
//! An update therefore costs one output projection and the higher orders of the cached blocks. A dispatch step only launches kernels:
//! it allocates nothing, waits for nothing and copies nothing to the host, so that it can be recorded in a
//! [`Graph`](crate::cuda::Graph). What is new for symbols, work lists above all, is made at the step that first obeys them.
//!
//! Rules that need q and k choose on the GPU too, where there are kernels for them (`device_choice`): an update only launches as well then.
//! For others q and k are copied to the host at updates and refreshes.
//!
//! What a layer keeps may lie in the host's memory (`device_kept`). A step then begins with the copies of what it takes of it, beside its
//! projections and attention, and a dispatch step still only puts work into streams.

mod step;

use std::sync::Arc;
use std::time::Duration;

use step::At;

use super::block::StreamShape;
use super::course::Course;
use super::device_block::{DeviceBlock, DeviceInput, DeviceMatrix};
use super::device_choice::DeviceChoice;
use super::device_kept::{Copies, Room};
use super::device_layer::DeviceLayer;
use super::device_lists::{Attention, Launcher, Lists, Prepared};
use super::memory::{Kept, Memory, MemoryPlan};
use super::merged::check_orders;
use super::selection::LayerSymbols;
use crate::cpu::check::ensure;
use crate::cuda::{Buffer, Range, Stream, host};
use crate::error::{Error, Result};
use crate::ir::StepKind;
use crate::kernels::choose::BLOCK;
use crate::kernels::params::MAX_ORDER;
use crate::kernels::{DeviceSymbols, Element, GemmSizes, Kernels, Path, Projection, TileSet};
use crate::plan::Plan;
use crate::symbols::{Blocks, Symbols};
use crate::tensor::Tensor;

/// A generation on a GPU under a plan.
///
/// Steps of a layer come in ascending order. Sessions on streams of their own run beside each other, and may share
/// blocks and kernels. All memory of tensors is allocated when it is made.
#[derive(Debug)]
pub struct DeviceSession {
    course: Course,
    launcher: Launcher,
    blocks: Vec<Arc<DeviceBlock>>,
    memory: MemoryPlan,
    element: Element,
    /// Heads, channels of a head, tokens.
    size: [usize; 3],
    q: Arc<Buffer>,
    k: Arc<Buffer>,
    v: Arc<Buffer>,
    o: Arc<Buffer>,
    /// The output under symbols at an update, where some layer has a residual.
    sparse: Option<Arc<Buffer>>,
    /// The projection of attention alone, where outputs with further inputs are reused.
    attended: Option<Arc<Buffer>>,
    dense: Attention,
    all: Lists,
    /// Of projections of no head: what further inputs and terms give.
    none: Lists,
    /// Those of symbols that were chosen on the CPU.
    prepared: Vec<Prepared>,
    choice: DeviceChoice,
    /// Counts symbols.
    versions: u64,
    copies: Copies,
    layers: Vec<DeviceLayer>,
}

/// How a generation runs on a GPU.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Where its work is put; without, a stream of its own.
    pub stream: Option<Arc<Stream>>,
    /// Bytes of the GPU's memory that it may take; without, what is free.
    pub memory_limit: Option<u64>,
    /// Where lies what layers keep from step to step: cached features and their projections, outputs to reuse, residuals. In the host's memory
    /// they take one place on the GPU in place of one for each layer. Each step copies what it takes, beside what it computes, and waits for
    /// what has not come in time; results are the same.
    pub caches: Memory,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// The schedule's kind, or [`StepKind::Update`] where something was missing.
    pub kind: StepKind,
    /// Choosing symbols on the CPU, with the copies of queries and keys, for which the GPU waits; zero where the GPU did, or nothing was
    /// chosen.
    pub selection: Duration,
}

impl DeviceSession {
    /// Begins a generation. `blocks` are those of the model's layers.
    ///
    /// # Errors
    /// [`Error::Memory`] when the limit, the GPU's memory or the host's does not suffice: nothing is allocated then; [`Error::Shape`] when the blocks are
    /// not those of the model, or of different types; [`Error::Unavailable`] when the strategy moves tokens, when there are no projections
    /// for the GPU, and when LLVM refuses the machine.
    pub fn new(
        plan: impl Into<Arc<Plan>>,
        kernels: &Arc<Kernels>,
        blocks: Vec<Arc<DeviceBlock>>,
        options: DeviceOptions,
    ) -> Result<Self> {
        let DeviceOptions { stream, memory_limit, caches } = options;
        let course = Course::new(plan)?;
        let plan = Arc::clone(course.plan());
        check_orders(&plan)?;
        let device = kernels.device();
        let shapes: Vec<&[StreamShape]> = blocks.iter().map(|block| block.shapes()).collect();
        let memory = MemoryPlan::new(&plan, &shapes, device.properties().multiprocessors, caches)?;
        let Some(first) = blocks.first() else {
            return Err(Error::Shape("a generation needs the block of each layer".to_owned()));
        };
        for block in &blocks {
            super::block::check_model(&plan, block.size)?;
            ensure(block.element == first.element, || "the blocks of a generation have one type".to_owned())?;
        }
        memory.check(Memory::Gpu, device.free_bytes()?.min(memory_limit.unwrap_or(u64::MAX)))?;
        memory.check(Memory::Host, host::available_bytes().unwrap_or(u64::MAX))?;
        let (size, element) = (first.size, first.element);
        let [heads, head_dim, tokens] = size;
        let stream = stream.map_or_else(|| Stream::new(device).map(Arc::new), Ok)?;
        let inputs = shapes.iter().flat_map(|streams| streams.iter()).map(|stream| stream.inputs).max().unwrap_or(1);
        let sizes = GemmSizes {
            batch: 1,
            heads,
            head_dim,
            all_tokens: tokens,
            tokens: 0..tokens,
            projection: Projection::Heads { inputs },
        };
        // The pieces of projections are the largest.
        let workspace = Arc::clone(kernels.gemm_work(&stream, TileSet::All, sizes, Path::Best, None)?.workspace());
        let launcher = Launcher { kernels: Arc::clone(kernels), stream, workspace };
        let blocks_of_tokens = Blocks::regular(tokens, tokens, BLOCK as usize, BLOCK as usize);
        let full = Symbols::dense(heads, blocks_of_tokens.q_blocks(), blocks_of_tokens.kv_blocks());
        let full = DeviceSymbols::upload(&launcher.stream, &full, &blocks_of_tokens, 1)?;
        let kept: Vec<Kept> = (0..plan.model.layers).map(|layer| Kept::of(&plan, layer)).collect();
        if kept.iter().any(|kept| kept.residual && kept.features > MAX_ORDER) {
            let what =
                "forecasts of order 4 beside a residual are one term more than an output projection on a GPU adds";
            return Err(Error::Unavailable(format!("{what}: lower the order, or run on the CPU")));
        }
        let by_heads = || Buffer::new(device, heads * tokens * head_dim * 2).map(Arc::new);
        let with_further = |(kept, streams): (&Kept, &&[StreamShape])| {
            let streams = streams.iter().filter(|stream| kept.outputs > 0 && stream.further > 0);
            streams.map(|stream| stream.tokens.len() * stream.outputs).max()
        };
        let widest = kept.iter().zip(&shapes).filter_map(with_further).max();
        let choice = DeviceChoice::new(&launcher, &plan)?;
        let numbers = heads * tokens * head_dim;
        let tensors: Vec<_> = kept.iter().zip(&shapes).map(|(kept, streams)| kept.tensors(streams, numbers)).collect();
        let room = Room::new(device, caches, &tensors)?;
        let layers = (0..).zip(kept.iter().zip(&shapes)).map(|(layer, (kept, streams))| {
            let own = choice.own_symbols(&launcher, &plan, layer, head_dim)?;
            DeviceLayer::new(&room, own, *kept, streams, numbers)
        });
        Ok(DeviceSession {
            q: by_heads()?,
            k: by_heads()?,
            v: by_heads()?,
            o: by_heads()?,
            sparse: kept.iter().any(|kept| kept.residual).then(by_heads).transpose()?,
            attended: widest.map(|len| Buffer::new(device, len * 2).map(Arc::new)).transpose()?,
            dense: Attention::new(&launcher, &full, head_dim)?,
            all: Lists::new(TileSet::All),
            none: Lists::new(TileSet::Cached(full)),
            prepared: Vec::new(),
            versions: 0,
            copies: Copies::new(device, caches)?,
            layers: layers.collect::<Result<_>>()?,
            choice,
            course,
            blocks,
            memory,
            element,
            size,
            launcher,
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        self.course.plan()
    }

    /// The memory it takes, at most.
    #[must_use]
    pub fn memory(&self) -> &MemoryPlan {
        &self.memory
    }

    /// Its stream, where outputs are ready once it gets there.
    #[must_use]
    pub fn stream(&self) -> &Arc<Stream> {
        &self.launcher.stream
    }

    /// The symbols in force in a layer, as [`Session::symbols`](super::Session::symbols); `None` too where they lie on the GPU.
    #[must_use]
    pub fn symbols(&self, layer: u32) -> Option<&LayerSymbols> {
        self.course.current(layer).map(Arc::as_ref)
    }

    /// A copy of the symbols of a layer that are chosen on the GPU: of all heads, over blocks of at most 128 tokens; anything before the first
    /// choice. Waits for the stream. `None` where they are chosen on the CPU, or not at all.
    ///
    /// # Errors
    /// [`Error::Cuda`] with what went wrong before.
    pub fn symbols_on_gpu(&self, layer: u32) -> Result<Option<Symbols>> {
        let own = self.layers.get(layer as usize).and_then(|layer| layer.own.as_ref());
        own.map(|own| own.symbols.download(&self.launcher.stream)).transpose()
    }

    /// Whether all queries and keys that symbols were chosen from on the GPU were finite so far. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] with what went wrong before.
    pub fn is_finite(&self) -> Result<bool> {
        self.choice.is_finite(&self.launcher)
    }

    /// Forgets the generation; the next step may be any.
    pub fn reset(&mut self) {
        self.course.reset();
        self.layers.iter_mut().for_each(DeviceLayer::reset);
    }

    /// The attention block of a layer at a step, put into the stream: as [`Step::block`](super::Step::block).
    ///
    /// # Shapes
    /// One of each for every stream of the block, of the blocks' type:
    ///
    /// | matrix | shape |
    /// |---|---|
    /// | `x` | `[tokens.len(), in]` |
    /// | `further` | `[tokens.len(), further]` |
    /// | `outputs` | `[tokens.len(), out]` |
    ///
    /// # Errors
    /// [`Error::Shape`] when something does not fit; [`Error::State`] when the plan has no such step or layer, the step does not follow
    /// the layer's last one, or something measured is missing; [`Error::Value`] when symbols are to be chosen on the CPU and queries or keys are
    /// not finite (on the GPU [`DeviceSession::is_finite`] tells); [`Error::Unavailable`] when heads have blocks of their own; [`Error::Cuda`] when the driver refuses.
    pub fn block(
        &mut self,
        step: u32,
        layer: u32,
        inputs: &[DeviceInput<'_>],
        measured: &[(String, Tensor)],
        outputs: &[&DeviceMatrix],
    ) -> Result<DeviceReport> {
        if let Some(block) = self.blocks.get(layer as usize) {
            block.check(inputs, outputs)?;
        }
        let Self { course, layers, .. } = self;
        let (kind, symbols) = course.begin(step, layer, |layer| layers[layer as usize].known())?;
        let block = Arc::clone(&self.blocks[layer as usize]);
        // There is no other branch here.
        let kind = if kind == StepKind::Shared { StepKind::Update } else { kind };
        let _range = Range::new(format_args!("layer {layer} step {step} {}", kind.name()));
        let at = At { session: self, block: &block, layer: layer as usize, step, inputs, outputs };
        let selection = at.run(kind, symbols, measured)?;
        Ok(DeviceReport { kind, selection })
    }
}
