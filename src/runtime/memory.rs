//! The memory of a generation on a GPU, known from the plan and the shapes of its blocks before anything is allocated.
//!
//! Work buffers are there once, for all layers; caches only in layers whose steps take something from them. All numbers of tensors have
//! 16 bits. What is announced is an upper limit: sizes are rounded up as the driver does, and symbols that are chosen while the
//! generation runs are counted as if no bit were known.

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
    /// Layers that have it; 0 where all share one.
    pub layers: u32,
    /// Bytes, at most, of all layers together.
    pub bytes: u64,
}

/// The memory of a generation: parts in the order of [`Use`], without those of no bytes.
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
}

impl MemoryPlan {
    /// The memory of a generation on a GPU with so many multiprocessors. `shapes` are those of the streams of each layer.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is another number of layers than the model has.
    pub fn new(plan: &Plan, shapes: &[&[StreamShape]], multiprocessors: u32) -> Result<Self> {
        let model = &plan.model;
        ensure(shapes.len() == model.layers as usize, || {
            format!("{} blocks were given for the {} layers of {}", shapes.len(), model.layers, model.name)
        })?;
        let by_heads = u64::from(model.heads) * u64::from(model.tokens()) * u64::from(model.head_dim) * NUMBER;
        let mut parts: Vec<Part> = Vec::new();
        let mut add = |of: Use, buffers: &[u64], layers: u32| {
            let bytes = buffers.iter().map(|bytes| rounded(*bytes)).sum::<u64>();
            match parts.iter_mut().find(|part| part.of == of) {
                Some(part) => (part.bytes, part.layers) = (part.bytes + bytes, part.layers + layers),
                None => parts.push(Part { of, layers, bytes }),
            }
        };
        let (mut has_residual, mut widest) = (false, 0);
        for (layer, streams) in (0..model.layers).zip(shapes) {
            let kept = Kept::of(plan, layer);
            let projected = |orders: usize| -> Vec<u64> {
                let one = |stream: &StreamShape| (stream.tokens.len() * stream.outputs) as u64 * NUMBER;
                streams.iter().flat_map(|stream| std::iter::repeat_n(one(stream), orders)).collect()
            };
            if kept.features > 0 {
                add(Use::Features, &vec![by_heads; kept.features], 1);
                add(Use::Biases, &projected(kept.features), 1);
            }
            if kept.outputs > 0 {
                add(Use::Outputs, &projected(kept.outputs), 1);
                let with_further = streams.iter().filter(|stream| stream.further > 0);
                widest = with_further.map(|stream| stream.tokens.len() * stream.outputs).fold(widest, usize::max);
            }
            if kept.residual {
                add(Use::Residuals, &projected(1), 1);
                has_residual = true;
            }
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

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// The parts from the largest to the smallest.
    fn described(&self) -> String {
        let mut parts = self.parts.clone();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let described = parts.iter().map(|Part { of, layers, bytes }| {
            let layers = if *layers > 0 { format!(" in {layers} layers") } else { String::new() };
            format!("{} {}{layers}", of.name(), gigabytes(*bytes))
        });
        described.collect::<Vec<_>>().join(", ")
    }

    /// The error where it is more than there is.
    ///
    /// # Errors
    /// [`Error::Memory`] with both sizes, and what takes most.
    pub fn check(&self, available: u64) -> Result<()> {
        if self.bytes() <= available {
            return Ok(());
        }
        Err(Error::Memory { needed: self.bytes(), available, parts: self.described() })
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
fn rounded(bytes: u64) -> u64 {
    let [small, large] = ROUNDED;
    bytes.next_multiple_of(if bytes < large { small } else { large })
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
            Use::Symbols => "symbols and work lists",
            Use::Selection => "selection",
        }
    }
}

/// One line: the sum, and the parts from the largest to the smallest.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", gigabytes(self.bytes()), self.described())
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
        let streams = shapes();
        MemoryPlan::new(&plan(rules), &vec![streams.as_slice(); 60], 132).unwrap()
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
        assert!(skipped.bytes() < 4_000_000_000, "{skipped}");

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
    fn what_does_not_fit_is_refused_with_the_amounts() {
        let memory = memory("schedule { dense every 4 reuse as taylor(1) }");
        memory.check(memory.bytes()).unwrap();
        let text = memory.check(20_000_000_000).unwrap_err().to_string();
        assert_eq!(
            text,
            format!(
                "the generation takes {} of GPU memory, but there are 20.00 GB: outputs to reuse 24.35 GB in 60 layers, \
                 q, k, v and outputs 0.81 GB, workspace 0.11 GB, symbols and work lists 0.00 GB",
                gigabytes(memory.bytes())
            )
        );
        let plan = plan("schedule { dense every 4 reuse }");
        let error = MemoryPlan::new(&plan, &[], 132).unwrap_err().to_string();
        assert_eq!(error, "0 blocks were given for the 60 layers of hunyuan");
    }
}
