//! The memory of a generation on a GPU, known from the plan and the shapes of its blocks before anything is allocated.
//!
//! Work buffers are there once, for all layers; caches only in layers whose steps take something from them, on the GPU or in the host's memory.
//! Those in the host's share one place on the GPU for each tensor of a layer. All numbers of tensors have 16 bits. What is announced is an
//! upper limit: sizes are rounded up as the driver does, and symbols that are chosen while the generation runs are counted as if no bit were
//! known.

use std::collections::BTreeMap;
use std::fmt;

use super::block::StreamShape;
use super::course::{adds_residual, cached_order};
use super::device_choice::pass_bytes;
use super::reuse;
use crate::cpu::check::ensure;
use crate::error::{Error, Result};
use crate::ir::StepKind;
use crate::kernels::choose::BLOCK;
use crate::kernels::params::{CUT_BYTES, HEAD_BYTES};
use crate::plan::{Body, Plan};

/// Bytes of a number of a tensor.
const NUMBER: u64 = 2;

/// Columns of a tile of a projection, the widest piece of work.
const TILE_COLUMNS: u64 = 256;

/// What the driver rounds small and large allocations up to.
const ROUNDED: [u64; 2] = [512, 2 << 20];

/// The same of small ones in the host's memory: a page.
const PAGE: u64 = 4096;

/// Whose memory something lies in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// The GPU's.
    #[default]
    Gpu,
    /// The host's, pinned: the GPU copies from and to it by itself.
    Host,
}

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Queries, keys, values and outputs of the layer that runs.
    Work,
    /// Pieces of work that several thread blocks share.
    Workspace,
    /// The outputs of attention at updates, and their differences, for cached blocks.
    Features,
    /// The projections of cached blocks.
    Biases,
    /// Projected outputs that later steps reuse, and their differences.
    Outputs,
    /// What symbols left out of the output of the last update, projected.
    Residuals,
    /// Where a step of a layer has those of the four before that lie in the host's memory.
    Staging,
    /// Symbols in force, and the work lists made of them.
    Symbols,
    /// What rules compute on the GPU to choose symbols.
    Selection,
}

/// Memory of one use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is for.
    pub of: Use,
    /// Whose it is.
    pub memory: Memory,
    /// Layers that have it; 0 where all share one.
    pub layers: u32,
    /// Bytes, at most, of all layers together.
    pub bytes: u64,
}

/// The memory of a generation: parts in the order of [`Use`], without those of no bytes. Each use has its memory on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    parts: Vec<Part>,
}

/// What a layer keeps from step to step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// Orders of the features of cached blocks, and of the projections of them.
    pub(super) features: usize,
    /// Orders of the outputs that are reused.
    pub(super) outputs: usize,
    pub(super) residual: bool,
}

/// A tensor of those that a layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) of: Cache,
    /// The stream of tokens it is about; 0 where it is about all of them.
    pub(super) stream: usize,
    pub(super) order: usize,
}

/// What a tensor is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cache {
    Features,
    Biases,
    Outputs,
    Residual,
}

impl Cache {
    const ALL: [Cache; 4] = [Cache::Features, Cache::Biases, Cache::Outputs, Cache::Residual];

    fn used_as(self) -> Use {
        match self {
            Cache::Features => Use::Features,
            Cache::Biases => Use::Biases,
            Cache::Outputs => Use::Outputs,
            Cache::Residual => Use::Residuals,
        }
    }
}

impl Kept {
    pub(super) fn of(plan: &Plan, layer: u32) -> Self {
        // Features are for steps under symbols: a schedule without such keeps none, whatever its rules cache.
        let is_forecast = (0..plan.model.steps).any(|step| plan.schedule.kind(step, layer).obeys_symbols());
        let order = cached_order(plan, layer).filter(|_| is_forecast);
        Kept {
            features: order.map_or(0, |order| usize::from(order) + 1),
            // There is no host that hands over what else a layer adds: the output of attention stands for every unit.
            outputs: reuse::orders(plan, layer).into_iter().flatten().max().map_or(0, |order| order + 1),
            residual: adds_residual(plan, layer),
        }
    }

    /// Its tensors and how many numbers each has, with ascending orders. One that is about all heads and tokens has `by_heads`.
    pub(super) fn tensors(self, streams: &[StreamShape], by_heads: usize) -> Vec<(Slot, usize)> {
        let mut tensors = Vec::new();
        let mut add = |of: Cache, stream: usize, orders: usize, len: usize| {
            tensors.extend((0..orders).map(|order| (Slot { of, stream, order }, len)));
        };
        add(Cache::Features, 0, self.features, by_heads);
        for (index, stream) in streams.iter().enumerate() {
            let len = stream.tokens.len() * stream.outputs;
            add(Cache::Biases, index, self.features, len);
            add(Cache::Outputs, index, self.outputs, len);
            add(Cache::Residual, index, usize::from(self.residual), len);
        }
        tensors
    }
}

/// The places on the GPU of all that layers keep in the host's memory: for each tensor of a layer as many numbers as the largest has.
pub(super) fn staging<'a>(layers: impl IntoIterator<Item = &'a Vec<(Slot, usize)>>) -> BTreeMap<Slot, usize> {
    let mut places = BTreeMap::new();
    for (slot, len) in layers.into_iter().flatten() {
        let most = places.entry(*slot).or_insert(0);
        *most = (*most).max(*len);
    }
    places
}

impl MemoryPlan {
    /// The memory of a generation on a GPU with so many multiprocessors. `shapes` are those of the streams of each layer, `caches` is where lies
    /// what layers keep from step to step.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is another number of layers than the model has.
    pub fn new(plan: &Plan, shapes: &[&[StreamShape]], multiprocessors: u32, caches: Memory) -> Result<Self> {
        let model = &plan.model;
        ensure(shapes.len() == model.layers as usize, || {
            format!("{} blocks were given for the {} layers of {}", shapes.len(), model.layers, model.name)
        })?;
        let numbers = [model.heads, model.tokens(), model.head_dim].map(|size| size as usize).iter().product::<usize>();
        let by_heads = numbers as u64 * NUMBER;
        let mut parts: Vec<Part> = Vec::new();
        let mut add_to = |memory: Memory, of: Use, buffers: &[u64], layers: u32| {
            let bytes = buffers.iter().map(|bytes| rounded(memory, *bytes)).sum::<u64>();
            match parts.iter_mut().find(|part| part.of == of) {
                Some(part) => (part.bytes, part.layers) = (part.bytes + bytes, part.layers + layers),
                None => parts.push(Part { of, memory, layers, bytes }),
            }
        };
        let (mut has_residual, mut widest, mut kept_by_layers) = (false, 0, Vec::new());
        for (layer, streams) in (0..model.layers).zip(shapes) {
            let kept = Kept::of(plan, layer);
            let tensors = kept.tensors(streams, numbers);
            for cache in Cache::ALL {
                let own = tensors.iter().filter(|(slot, _)| slot.of == cache);
                let own: Vec<u64> = own.map(|(_, len)| *len as u64 * NUMBER).collect();
                add_to(caches, cache.used_as(), &own, u32::from(!own.is_empty()));
            }
            kept_by_layers.push(tensors);
            has_residual |= kept.residual;
            if kept.outputs > 0 {
                let with_further = streams.iter().filter(|stream| stream.further > 0);
                widest = with_further.map(|stream| stream.tokens.len() * stream.outputs).fold(widest, usize::max);
            }
        }
        let mut add = |of: Use, buffers: &[u64], layers: u32| add_to(Memory::Gpu, of, buffers, layers);
        if caches == Memory::Host {
            let places: Vec<u64> = staging(&kept_by_layers).values().map(|len| *len as u64 * NUMBER).collect();
            add(Use::Staging, &places, 0);
        }
        for (layer, streams) in (0..model.layers).zip(shapes) {
            let symbols = symbols_bytes(plan, layer);
            if symbols > 0 {
                add(Use::Symbols, &[symbols, work_bytes(plan, streams, multiprocessors)], 1);
            }
        }
        // Attention and projections of everything have work lists too, whatever the strategy.
        let lists = |streams: &&[StreamShape]| work_bytes(plan, streams, multiprocessors);
        add(Use::Symbols, &[shapes.iter().map(lists).max().unwrap_or(0)], 0);
        // Beside its arrays, what a pass looks up for each step and layer.
        let passes: Vec<u64> = pass_bytes(plan).into_iter().flat_map(|bytes| [bytes, PASS_RECORDS]).collect();
        add(Use::Selection, &passes, 0);
        // Symbols of attention in full.
        let [heads, blocks] = [model.heads, model.tokens().div_ceil(BLOCK)].map(u64::from);
        add(Use::Symbols, &[heads * (blocks + 1) * blocks.div_ceil(64) * 8 + 2 * (blocks + 1) * 4], 0);
        add(Use::Work, &vec![by_heads; if has_residual { 5 } else { 4 }], 0);
        add(Use::Work, &[widest as u64 * NUMBER], 0);
        let pieces = 2 * u64::from(multiprocessors) * MOST_THREAD_BLOCKS;
        let tile = u64::from(BLOCK) * TILE_COLUMNS;
        add(Use::Workspace, &[pieces * 4, pieces * tile * 4, pieces * u64::from(BLOCK) * 8], 0);
        parts.retain(|part| part.bytes > 0);
        parts.sort_by_key(|part| part.of);
        Ok(MemoryPlan { parts })
    }

    /// What there is.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All of one side.
    #[must_use]
    pub fn bytes(&self, memory: Memory) -> u64 {
        self.parts.iter().filter(|part| part.memory == memory).map(|part| part.bytes).sum()
    }

    /// The parts of one side from the largest to the smallest.
    fn described(&self, memory: Memory) -> String {
        let mut parts: Vec<&Part> = self.parts.iter().filter(|part| part.memory == memory).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let described = parts.iter().map(|Part { of, layers, bytes, .. }| {
            let layers = if *layers > 0 { format!(" in {layers} layers") } else { String::new() };
            format!("{} {}{layers}", of.name(), gigabytes(*bytes))
        });
        described.collect::<Vec<_>>().join(", ")
    }

    /// The error where it is more than there is on one side.
    ///
    /// # Errors
    /// [`Error::Memory`] with both sizes, and what takes most.
    pub fn check(&self, memory: Memory, available: u64) -> Result<()> {
        let needed = self.bytes(memory);
        if needed <= available {
            return Ok(());
        }
        Err(Error::Memory { memory: memory.name(), needed, available, parts: self.described(memory) })
    }
}

/// Thread blocks of a persistent kernel on a multiprocessor, at most.
const MOST_THREAD_BLOCKS: u64 = 3;

/// What a selector pass looks up, at most.
const PASS_RECORDS: u64 = 1 << 20;

/// Work lists of a stream: of queries, of keys and values, and of outputs with and without further inputs, live, uncached, cached and all.
const LISTS: u64 = 10;

/// Symbols of a layer, at most: those in force, and those that replace them.
fn symbols_bytes(plan: &Plan, layer: u32) -> u64 {
    let model = &plan.model;
    let mut kinds = (0..model.steps).map(|step| plan.schedule.kind(step, layer));
    if !kinds.any(|kind| kind.obeys_symbols() || kind == StepKind::Update) {
        return 0;
    }
    let classes = (0..model.steps).flat_map(|step| (0..model.heads).map(move |head| plan.class(step, layer, head)));
    let (mut q, mut kv, mut partial) = (0, 0, 0_u64);
    for class in classes {
        let blocks = &plan.arrangements[class.arrangement as usize].blocks;
        let [own_q, own_kv] = [&blocks.q, &blocks.kv].map(|offsets| cut_blocks(offsets));
        (q, kv) = (own_q.max(q), own_kv.max(kv));
        partial = partial.max(match class.body {
            Body::Static { partial: Some(mask), .. } => spread_count(plan, mask, blocks.q.len(), [own_q, own_kv]),
            Body::Dynamic { .. } if class.predicate.is_some() => own_q * own_kv,
            Body::Static { .. } | Body::Dynamic { .. } => 0,
        });
    }
    let heads = u64::from(model.heads);
    let rows = heads * q;
    let bits = rows * kv.div_ceil(64) * 8;
    let whole = heads * q.div_ceil(64) * 8 + bits + (q + kv + 2) * 4;
    // A mask is 128 x 128 bits, and no two of a layer are the same.
    let masked = bits + (rows + 1) * 4 + heads * partial * 4 + (heads * partial).min(q * kv) * 2048;
    2 * (whole + if partial > 0 { masked } else { 0 } + ROUNDED[0] * 8)
}

/// Partial blocks of a head after blocks are cut.
fn spread_count(plan: &Plan, mask: u32, offsets: usize, [q, kv]: [u64; 2]) -> u64 {
    let mask = &plan.masks[mask as usize];
    let parts = |cut: u64, blocks: usize| cut.div_ceil(blocks.max(1) as u64);
    mask.count() as u64 * parts(q, offsets - 1) * parts(kv, mask.columns())
}

/// Blocks after those above 128 tokens are cut.
fn cut_blocks(offsets: &[u32]) -> u64 {
    offsets.windows(2).map(|pair| u64::from((pair[1] - pair[0]).div_ceil(BLOCK))).sum()
}

/// Work lists of a layer with streams of these shapes.
fn work_bytes(plan: &Plan, streams: &[StreamShape], multiprocessors: u32) -> u64 {
    let model = &plan.model;
    let q_blocks = plan.arrangements.iter().map(|arrangement| cut_blocks(&arrangement.blocks.q)).max();
    let q_blocks = q_blocks.unwrap_or(0).max(u64::from(model.tokens().div_ceil(BLOCK)));
    let heads = u64::from(model.heads);
    let cuts = (u64::from(multiprocessors) * MOST_THREAD_BLOCKS + 1) * CUT_BYTES as u64;
    let list = |rows: u64, bits: u64| -> u64 {
        [HEAD_BYTES as u64, cuts, rows * 4, rows * 4, bits]
            .into_iter()
            .map(|bytes| bytes.next_multiple_of(ROUNDED[0]))
            .sum()
    };
    let of_stream = |stream: &StreamShape| {
        let slots = heads.max((stream.outputs as u64).div_ceil(TILE_COLUMNS));
        LISTS * list(q_blocks * slots, q_blocks * heads.div_ceil(64) * 8)
    };
    list(heads * q_blocks, 0) + streams.iter().map(of_stream).sum::<u64>()
}

/// What an allocation takes.
fn rounded(memory: Memory, bytes: u64) -> u64 {
    let [small, large] = ROUNDED;
    let small = if memory == Memory::Host { PAGE } else { small };
    bytes.next_multiple_of(if bytes < large { small } else { large })
}

impl Memory {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Memory::Gpu => "GPU memory",
            Memory::Host => "host memory",
        }
    }
}

impl Use {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Use::Work => "q, k, v and outputs",
            Use::Workspace => "workspace",
            Use::Features => "features of cached blocks",
            Use::Biases => "their projections",
            Use::Outputs => "outputs to reuse",
            Use::Residuals => "residuals",
            Use::Staging => "staging of what lies in host memory",
            Use::Symbols => "symbols and work lists",
            Use::Selection => "selection",
        }
    }
}

/// One line: the sum, and the parts from the largest to the smallest; the same of the host's memory where it has a share.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", gigabytes(self.bytes(Memory::Gpu)), self.described(Memory::Gpu))?;
        match self.bytes(Memory::Host) {
            0 => Ok(()),
            host => write!(f, "; {} of host memory: {}", gigabytes(host), self.described(Memory::Host)),
        }
    }
}

/// `48.71 GB`, in powers of 1000.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rules: &str) -> Plan {
        let model = "model hunyuan { layers 60 heads 24 head_dim 128 steps 50 dtype bf16
            tokens video(t = 13, h = 42, w = 60) ++ text(256) }";
        crate::compile::compile(&format!("{model} strategy s {{ layout video(t, h, w) ++ text {rules} }}"))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn shapes() -> Vec<StreamShape> {
        let of = |tokens| StreamShape { tokens, inputs: 3072, outputs: 3072, further: 0 };
        vec![of(0..32_760), of(32_760..33_016)]
    }

    fn memory(rules: &str) -> MemoryPlan {
        memory_in(Memory::Gpu, rules)
    }

    fn memory_in(caches: Memory, rules: &str) -> MemoryPlan {
        let streams = shapes();
        MemoryPlan::new(&plan(rules), &vec![streams.as_slice(); 60], 132, caches).unwrap()
    }

    fn bytes(memory: &MemoryPlan, of: Use) -> u64 {
        memory.parts().iter().find(|part| part.of == of).map_or(0, |part| part.bytes)
    }

    const BY_HEADS: u64 = 24 * 33_016 * 128 * 2;

    #[test]
    fn only_what_is_cached_is_kept() {
        let skipped = memory("keep text <-> all keep video -> video where abs(t(q) - t(k)) <= 1");
        assert_eq!([Use::Features, Use::Biases, Use::Outputs, Use::Residuals].map(|of| bytes(&skipped, of)), [0; 4]);
        assert!(bytes(&skipped, Use::Work) >= 4 * BY_HEADS && bytes(&skipped, Use::Work) < 4 * BY_HEADS + (10 << 20));
        assert!(skipped.bytes(Memory::Gpu) < 4_000_000_000, "{skipped}");

        let cached = memory(
            "block 128 x 128 schedule { update every 5 }
             layers 10..20 { cache video where block(q) < 100 as taylor(2) }",
        );
        let features = cached.parts().iter().find(|part| part.of == Use::Features).unwrap();
        assert_eq!(features.layers, 10);
        let wanted = 10 * 3 * BY_HEADS;
        assert!(features.bytes >= wanted && features.bytes < wanted + 30 * (2 << 20), "{cached}");
        assert!(bytes(&cached, Use::Biases) >= wanted);

        let in_full = memory(
            "block 128 x 128 schedule { dense while step < 50; update every 5 }
             layers 10..20 { cache video where block(q) < 100 as taylor(2) }",
        );
        assert_eq!([Use::Features, Use::Biases].map(|of| bytes(&in_full, of)), [0; 2], "no step takes anything");

        let reused = memory("schedule { dense every 4 reuse as taylor(1) }");
        assert!(bytes(&reused, Use::Outputs) >= 60 * 2 * BY_HEADS && bytes(&reused, Use::Features) == 0, "{reused}");
    }

    #[test]
    fn caches_in_host_memory_leave_one_place_for_each_tensor_on_the_gpu() {
        let rules = "block 128 x 128 schedule { update every 5 } layers 10..20 { cache video where block(q) < 100 as taylor(2) }";
        let [on_gpu, in_host] = [Memory::Gpu, Memory::Host].map(|caches| memory_in(caches, rules));
        let of = |memory: &MemoryPlan, of: Use| *memory.parts().iter().find(|part| part.of == of).unwrap();
        for cache in [Use::Features, Use::Biases] {
            let part = of(&in_host, cache);
            assert_eq!((part.memory, part.layers), (Memory::Host, 10));
            assert!(part.bytes >= 30 * BY_HEADS && part.bytes <= of(&on_gpu, cache).bytes + 60 * PAGE, "{in_host}");
        }
        let staging = of(&in_host, Use::Staging);
        assert_eq!((staging.memory, staging.layers), (Memory::Gpu, 0));
        assert!(staging.bytes >= 6 * BY_HEADS && staging.bytes < 6 * BY_HEADS + 9 * (2 << 20), "{in_host}");
        let caches = [Use::Features, Use::Biases].map(|cache| of(&on_gpu, cache).bytes).iter().sum::<u64>();
        assert_eq!(in_host.bytes(Memory::Gpu), on_gpu.bytes(Memory::Gpu) - caches + staging.bytes);
        assert_eq!(on_gpu.bytes(Memory::Host), 0);
        assert!(on_gpu.parts().iter().all(|part| part.of != Use::Staging), "{on_gpu}");

        let text = in_host.check(Memory::Host, 8_000_000_000).unwrap_err().to_string();
        let start = format!(
            "the generation takes {} of host memory, but there are 8.00 GB: ",
            gigabytes(in_host.bytes(Memory::Host))
        );
        assert!(text.starts_with(&start) && text.contains("features of cached blocks"), "{text}");
        let share = format!("; {} of host memory: features", gigabytes(in_host.bytes(Memory::Host)));
        assert!(in_host.to_string().contains(&share), "{in_host}");
        assert!(!on_gpu.to_string().contains("host memory"), "{on_gpu}");

        let skipped = memory_in(Memory::Host, "keep text <-> all keep video -> video where abs(t(q) - t(k)) <= 1");
        assert_eq!(
            skipped,
            memory("keep text <-> all keep video -> video where abs(t(q) - t(k)) <= 1"),
            "nothing is kept"
        );
        let all = memory_in(Memory::Host, "schedule { dense every 4 reuse as taylor(1) }");
        assert_eq!([Use::Outputs, Use::Staging].map(|own| of(&all, own).memory), [Memory::Host, Memory::Gpu]);
    }

    #[test]
    fn layers_of_other_shapes_share_the_largest_place() {
        let kept = Kept { features: 1, outputs: 0, residual: true };
        let stream = |tokens, outputs| StreamShape { tokens, inputs: 8, outputs, further: 0 };
        let layers =
            [kept.tensors(&[stream(0..10, 8), stream(10..16, 8)], 100), kept.tensors(&[stream(0..16, 4)], 100)];
        let slot = |of, stream| Slot { of, stream, order: 0 };
        let places: Vec<_> = staging(&layers).into_iter().collect();
        let wanted = [
            (slot(Cache::Features, 0), 100),
            (slot(Cache::Biases, 0), 80),
            (slot(Cache::Biases, 1), 48),
            (slot(Cache::Residual, 0), 80),
            (slot(Cache::Residual, 1), 48),
        ];
        assert_eq!(places, wanted);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_amounts() {
        let memory = memory("schedule { dense every 4 reuse as taylor(1) }");
        memory.check(Memory::Gpu, memory.bytes(Memory::Gpu)).unwrap();
        memory.check(Memory::Host, 0).unwrap();
        let text = memory.check(Memory::Gpu, 20_000_000_000).unwrap_err().to_string();
        assert_eq!(
            text,
            format!(
                "the generation takes {} of GPU memory, but there are 20.00 GB: outputs to reuse 24.35 GB in 60 layers, \
                 q, k, v and outputs 0.81 GB, workspace 0.11 GB, symbols and work lists 0.00 GB",
                gigabytes(memory.bytes(Memory::Gpu))
            )
        );
        let plan = plan("schedule { dense every 4 reuse }");
        let error = MemoryPlan::new(&plan, &[], 132, Memory::Gpu).unwrap_err().to_string();
        assert_eq!(error, "0 blocks were given for the 60 layers of hunyuan");
    }
}
