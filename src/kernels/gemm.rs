//! GEMM-Q and GEMM-O on a GPU: checked once, launched as often as one likes.
//!
//! GEMM-Q projects tokens to heads: queries, keys or values, with bias, RMSNorm and rotary embedding. GEMM-O projects heads back and adds
//! what cached ones would have given. Both compute the (q-block, head) tiles of a [`TileSet`] only. [`GemmCall::plan`] makes the work
//! list and runs again whenever the symbols' bits have changed; [`GemmCall::run`] computes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::choose::{self, BLOCK, Gemms, Geometry, Kernel, Path, Variant, check_head_dim};
use super::params::{self, MAX_ORDER, TILE_SETS};
use super::symbols::{DeviceSymbols, Sizes};
use super::view::{FloatView, MatrixView, TensorView};
use super::work::{WorkList, Workspace};
use super::{Element, Kernels};
pub use crate::cpu::RotaryPairs;
use crate::cuda::{Argument, Buffer, Function, Launch, Stream, TensorMap};
use crate::error::{Error, Result};

/// Columns of a tile of output on Hopper, which one copy of a weight has.
const TILE_COLUMNS: u32 = 256;
/// k of one step.
const STEP: usize = 64;

/// Rows of the output that one copy stores: those of a warpgroup.
const STORED_ROWS: u32 = 64;

/// Which (q-block, head) tiles a projection is about.
#[derive(Clone, Debug)]
pub enum TileSet {
    /// Every one.
    All,
    /// Those that attention computes: they are not cached, and some kv-block is live.
    Live(Arc<DeviceSymbols>),
    /// Those that take a cached feature.
    Cached(Arc<DeviceSymbols>),
    /// All others, whether they keep something or not.
    Uncached(Arc<DeviceSymbols>),
}

/// What is projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// GEMM-Q: from so many channels to heads.
    Heads {
        /// Channels.
        inputs: usize,
    },
    /// GEMM-O: from heads, and so many further channels, to channels.
    Out {
        /// Channels beside the heads.
        further: usize,
        /// Channels of the output, a multiple of 8.
        outputs: usize,
    },
}

/// The sizes of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GemmSizes {
    /// Batch entries.
    pub batch: usize,
    /// Heads, at most 65,536.
    pub heads: usize,
    /// 64 or 128.
    pub head_dim: usize,
    /// Tokens of all streams.
    pub all_tokens: usize,
    /// Those that are projected.
    pub tokens: Range<usize>,
    /// From what to what.
    pub projection: Projection,
}

/// Room for the work list of a projection.
#[derive(Debug)]
pub struct GemmWork {
    list: WorkList,
    sizes: GemmSizes,
    params: params::GemmParams,
    /// Of the kernel, whatever the type of the tensors.
    variant: Variant,
    _set: TileSet,
    _heads: Buffer,
}

/// What GEMM-Q reads and writes: `out[h, t] = rotary(norm(x[t] w[h]^T + bias[h]))`.
#[derive(Clone, Debug)]
pub struct HeadsOperands {
    /// `[batch, tokens.len(), inputs]`.
    pub x: MatrixView,
    /// `[1, heads * head_dim, inputs]`.
    pub weight: MatrixView,
    /// `[batch, heads, all tokens, head_dim]`; rows of other tokens and tiles stay untouched.
    pub out: TensorView,
    /// `[heads * head_dim]`.
    pub bias: Option<FloatView>,
    /// RMSNorm over the channels of a head: weights `[head_dim]`, and what is added to the mean of squares.
    pub norm: Option<(FloatView, f32)>,
    /// `[all tokens, head_dim / 2, 2]`: cosine and sine of each pair of channels.
    pub rotary: Option<(FloatView, RotaryPairs)>,
}

/// What GEMM-O reads and writes:
/// `out[t] = sum over h of o[h, t] w[:, h]^T + further[t] w[:, further]^T + bias + sum over i of weights[i] terms[i][t]`.
#[derive(Clone, Debug)]
pub struct OutOperands {
    /// `[batch, heads, all tokens, head_dim]`; tiles that are not in the set are not read.
    pub o: TensorView,
    /// `[batch, tokens.len(), further]`, where the projection has further inputs.
    pub further: Option<MatrixView>,
    /// `[1, outputs, heads * head_dim + further]`.
    pub weight: MatrixView,
    /// `[outputs]`.
    pub bias: Option<FloatView>,
    /// `[batch, tokens.len(), outputs]` and their weights, at most five.
    pub terms: Vec<(MatrixView, f32)>,
    /// `[batch, tokens.len(), outputs]`; every row is written.
    pub out: MatrixView,
}

/// A launch of GEMM-Q or GEMM-O, ready to run.
#[derive(Debug)]
pub struct GemmCall {
    function: Arc<Function>,
    planner: Arc<Function>,
    variant: Variant,
    params: Params,
    sources: Sources,
    work: Arc<GemmWork>,
    // Keeps memory that launches use.
    _operands: Box<dyn fmt::Debug + Send + Sync>,
}

/// What every kernel takes first.
#[derive(Debug)]
enum Params {
    Heads(params::GemmQParams),
    Out(params::GemmOParams),
}

/// How a kernel finds its tensors.
#[derive(Debug)]
enum Sources {
    /// By tensor maps: four, and those of the terms of GEMM-O.
    Maps(Box<[TensorMap; 4]>, Option<Box<[TensorMap; MAX_ORDER + 1]>>),
    /// By addresses.
    Heads(params::GemmQOperands),
    Out(params::GemmOOperands),
}

impl Projection {
    /// k-steps that do not depend on heads, and features of the output where they are no heads.
    fn steps_and_columns(self) -> [usize; 2] {
        match self {
            Projection::Heads { inputs } => [inputs.div_ceil(STEP), 0],
            Projection::Out { further, outputs } => [further.div_ceil(STEP), outputs],
        }
    }
}

impl TileSet {
    fn symbols(&self) -> Option<&Arc<DeviceSymbols>> {
        match self {
            TileSet::All => None,
            TileSet::Live(symbols) | TileSet::Cached(symbols) | TileSet::Uncached(symbols) => Some(symbols),
        }
    }

    fn number(&self) -> u32 {
        let [all, live, cached, uncached] = TILE_SETS;
        match self {
            TileSet::All => all,
            TileSet::Live(_) => live,
            TileSet::Cached(_) => cached,
            TileSet::Uncached(_) => uncached,
        }
    }
}

impl GemmSizes {
    /// Sizes that are not 0, fit 32 bits and each other.
    fn check(&self) -> Result<()> {
        let GemmSizes { batch, heads, head_dim, all_tokens, ref tokens, projection } = *self;
        check_head_dim(head_dim)?;
        let (features, is_some) = match projection {
            Projection::Heads { inputs } => ([inputs, 8], inputs > 0),
            Projection::Out { outputs, further } => ([outputs, further], outputs > 0),
        };
        let is_possible = batch > 0 && heads > 0 && heads <= 1 << 16 && tokens.start < tokens.end && is_some;
        let fits = [batch, all_tokens, heads * head_dim].iter().chain(&features).all(|&size| size < 1 << 31);
        if is_possible && fits && tokens.end <= all_tokens && features.iter().all(|size| size.is_multiple_of(8)) {
            return Ok(());
        }
        Err(Error::Shape(format!("a projection on a GPU cannot have the sizes {self:?}: channels are multiples of 8")))
    }
}

impl GemmWork {
    /// Its room for pieces, to be shared by work lists whose launches never run at the same time as its own.
    #[must_use]
    pub fn workspace(&self) -> &Arc<Workspace> {
        self.list.workspace()
    }
}

impl Kernels {
    /// Room for the work list of projections of these sizes. With a workspace, that of another work list, both share it: their
    /// launches must not overlap.
    ///
    /// # Errors
    /// [`Error::Shape`] when sizes or symbols do not fit; [`Error::Unavailable`] when there is no kernel for the device;
    /// [`Error::State`] when the workspace is for smaller launches; [`Error::Cuda`] when there is not enough memory.
    pub fn gemm_work(
        &self,
        stream: &Stream,
        set: TileSet,
        sizes: GemmSizes,
        path: Path,
        workspace: Option<&Arc<Workspace>>,
    ) -> Result<Arc<GemmWork>> {
        sizes.check()?;
        let GemmSizes { batch, heads, head_dim, all_tokens, ref tokens, projection } = sizes;
        let [steps, columns] = projection.steps_and_columns();
        let Gemms { q, o } = choose::gemms_of(self.device().properties(), path)?;
        let (kernel, all_columns) = match projection {
            Projection::Heads { .. } => (q, heads * head_dim),
            Projection::Out { .. } => (o, columns),
        };
        let tile_columns = kernel.tile_columns().unwrap_or(BLOCK);
        let slots = all_columns.div_ceil(tile_columns as usize);
        let mut shape = params::GemmShape {
            batch: batch as u32,
            heads: heads as u32,
            q_tokens: all_tokens as u32,
            q_blocks: all_tokens.div_ceil(BLOCK as usize) as u32,
            kv_blocks: 0,
            symbol_batches: 1,
            first_token: tokens.start as u32,
            tokens: tokens.len() as u32,
            steps: steps as u32,
            columns: columns as u32,
            slots: slots as u32,
            set: set.number(),
        };
        let compute = self.device().properties().compute;
        let (head_dim, element) = (head_dim as u32, Element::Bf16);
        let mut variant = Variant { kernel, compute, head_dim, element, q_block: BLOCK, kv_block: BLOCK, masks: false };
        let mut addresses = params::Symbols::default();
        if let Some(symbols) = set.symbols() {
            let Sizes { batches, heads: own, q_blocks, kv_blocks, q_tokens, q_block, is_regular_q, .. } =
                symbols.sizes();
            if (own as usize, q_tokens as usize) != (heads, all_tokens) || (batches != 1 && batches as usize != batch) {
                return Err(Error::Shape(format!(
                    "symbols of {batches} x {own} heads and {q_tokens} tokens, a projection of {sizes:?}"
                )));
            }
            (shape.q_blocks, shape.kv_blocks, shape.symbol_batches) = (q_blocks, kv_blocks, batches);
            variant.q_block = kernel.q_block(q_block);
            let params::Symbols { cache, skip, q_start, .. } = symbols.addresses;
            addresses = params::Symbols { cache, skip, q_start: if is_regular_q { 0 } else { q_start }, ..addresses };
        }
        let rows = [shape.batch, shape.q_blocks.div_ceil(BLOCK / variant.q_block), shape.slots]
            .into_iter()
            .try_fold(1_u32, u32::checked_mul);
        let Some(rows) = rows.filter(|&rows| rows < 1 << 31) else {
            return Err(Error::Shape(format!("a projection of {sizes:?} has too many tiles for one launch")));
        };
        let ctas = self.ctas(variant);
        let workspace = Workspace::or_new(workspace, stream, ctas, tile_columns)?;
        let list = WorkList::new(stream, rows, ctas, &workspace, false)?;
        let words = (shape.symbol_batches * shape.q_blocks) as usize * heads.div_ceil(64);
        let bits = Buffer::new(self.device(), words * 8)?;
        let params = params::GemmParams { shape, symbols: addresses, plan: list.params, heads: bits.address() };
        Ok(Arc::new(GemmWork { list, sizes, params, variant, _set: set, _heads: bits }))
    }

    /// Prepares GEMM-Q.
    ///
    /// # Errors
    /// [`Error::Shape`] when something does not fit; [`Error::Kernel`] and [`Error::Cuda`] when a kernel does not compile or load.
    pub fn gemm_q(&self, work: &Arc<GemmWork>, operands: HeadsOperands) -> Result<GemmCall> {
        let GemmSizes { batch, heads, head_dim, all_tokens, ref tokens, projection } = work.sizes;
        let Projection::Heads { inputs } = projection else {
            return Err(Error::State("the work list is that of GEMM-O".to_owned()));
        };
        let HeadsOperands { x, weight, out, bias, norm, rotary } = &operands;
        let element = x.0.element;
        check_matrix("x", x, [batch, tokens.len(), inputs], element)?;
        check_matrix("weight", weight, [1, heads * head_dim, inputs], element)?;
        check_tensor("out", out, [batch, heads, all_tokens, head_dim], element)?;
        let address = |name: &str, view: Option<&FloatView>, len: usize| {
            view.map_or(Ok(0), |view| view.check(name, len).map(|()| view.address))
        };
        let own = out.of_tokens(tokens);
        let params = params::GemmQParams {
            gemm: work.params,
            out: own.params(),
            bias: address("bias", bias.as_ref(), heads * head_dim)?,
            norm: address("norm", norm.as_ref().map(|(weights, _)| weights), head_dim)?,
            rotary: address("rotary", rotary.as_ref().map(|(table, _)| table), all_tokens * head_dim)?,
            epsilon: norm.as_ref().map_or(0.0, |(_, epsilon)| *epsilon),
            halves: u32::from(matches!(rotary, Some((_, RotaryPairs::Halves)))),
        };
        let sources = if work.variant.kernel == Kernel::GemmQSm90 {
            let rows = work.variant.q_block;
            let map_of_x = self.map(&x.0, rows)?;
            let map_of_rotary = match rotary {
                // Copies do not mind what numbers are: two of 16 bits are one of 32.
                Some((table, _)) => self.map(&table.as_halves([all_tokens, 2 * head_dim]), rows)?,
                None => map_of_x,
            };
            let map_of_weight = self.map(&weight.0, head_dim as u32)?;
            Sources::Maps(Box::new([map_of_x, map_of_weight, map_of_rotary, self.map(&own, STORED_ROWS)?]), None)
        } else {
            let w = weight.0.params();
            let w = params::Tensor4 { head_stride: w.token_stride * head_dim as u64, ..w };
            Sources::Heads(params::GemmQOperands { x: x.0.params(), w, inputs: inputs as u32, reserved: 0 })
        };
        self.gemm_call(work, element, Params::Heads(params), sources, Box::new(operands))
    }

    /// Prepares GEMM-O.
    ///
    /// # Errors
    /// As [`Kernels::gemm_q`].
    pub fn gemm_o(&self, work: &Arc<GemmWork>, operands: OutOperands) -> Result<GemmCall> {
        let GemmSizes { batch, heads, head_dim, all_tokens, ref tokens, projection } = work.sizes;
        let Projection::Out { further: further_inputs, outputs } = projection else {
            return Err(Error::State("the work list is that of GEMM-Q".to_owned()));
        };
        let OutOperands { o, further, weight, bias, terms, out } = &operands;
        let element = o.element;
        check_tensor("o", o, [batch, heads, all_tokens, head_dim], element)?;
        check_matrix("weight", weight, [1, outputs, heads * head_dim + further_inputs], element)?;
        check_matrix("out", out, [batch, tokens.len(), outputs], element)?;
        match further {
            Some(further) => check_matrix("further", further, [batch, tokens.len(), further_inputs], element)?,
            None if further_inputs == 0 => {}
            None => return Err(Error::Shape(format!("`further` is missing: {further_inputs} further inputs"))),
        }
        if terms.len() > MAX_ORDER + 1 {
            return Err(Error::Shape(format!("{} terms, wanted at most {}", terms.len(), MAX_ORDER + 1)));
        }
        if let Some(bias) = bias {
            bias.check("bias", outputs)?;
        }
        let mut params = params::GemmOParams {
            gemm: work.params,
            out: out.0.params(),
            bias: bias.as_ref().map_or(0, |bias| bias.address),
            count: terms.len() as u32,
            ..Default::default()
        };
        for (index, (term, weight)) in terms.iter().enumerate() {
            check_matrix("a term", term, out.shape(), element)?;
            params.weights[index] = *weight;
        }
        let sources = if work.variant.kernel == Kernel::GemmOSm90 {
            let rows = work.variant.q_block;
            let map_of_o = self.map(o, rows)?;
            let map_of_further = further.as_ref().map_or(Ok(map_of_o), |further| self.map(&further.0, rows))?;
            let map_of_weight = self.map(&weight.0, TILE_COLUMNS)?;
            let mut of_terms = [map_of_o; MAX_ORDER + 1];
            for (map, (term, _)) in of_terms.iter_mut().zip(terms) {
                *map = self.map(&term.0, rows)?;
            }
            Sources::Maps(
                Box::new([map_of_o, map_of_further, map_of_weight, self.map(&out.0, STORED_ROWS)?]),
                Some(Box::new(of_terms)),
            )
        } else {
            let mut sources = params::GemmOOperands {
                o: o.params(),
                further: further.as_ref().map_or_else(Default::default, |further| further.0.params()),
                w: weight.0.params(),
                further_inputs: further_inputs as u32,
                ..Default::default()
            };
            sources.terms.iter_mut().zip(terms).for_each(|(own, (term, _))| *own = term.0.params());
            Sources::Out(sources)
        };
        self.gemm_call(work, element, Params::Out(params), sources, Box::new(operands))
    }

    fn map(&self, view: &TensorView, rows: u32) -> Result<TensorMap> {
        TensorMap::encode(self.device(), &view.layout(rows))
    }

    fn gemm_call(
        &self,
        work: &Arc<GemmWork>,
        element: Element,
        params: Params,
        sources: Sources,
        operands: Box<dyn fmt::Debug + Send + Sync>,
    ) -> Result<GemmCall> {
        let variant = Variant { element, ..work.variant };
        let (function, planner) = (self.function(variant)?, self.function(variant.plan())?);
        Ok(GemmCall { function, planner, variant, params, sources, work: Arc::clone(work), _operands: operands })
    }
}

fn check_tensor(name: &str, view: &TensorView, wanted: [usize; 4], element: Element) -> Result<()> {
    view.check(name, element)?;
    if view.shape == wanted {
        return Ok(());
    }
    Err(Error::Shape(format!("`{name}` has the shape {:?}, wanted {wanted:?}", view.shape)))
}

fn check_matrix(name: &str, view: &MatrixView, wanted: [usize; 3], element: Element) -> Result<()> {
    view.0.check(name, element)?;
    if view.shape() == wanted {
        return Ok(());
    }
    Err(Error::Shape(format!("`{name}` has the shape {:?}, wanted {wanted:?}", view.shape())))
}

impl GemmCall {
    /// The kernel.
    #[must_use]
    pub fn variant(&self) -> &Variant {
        &self.variant
    }

    /// Puts the making of the work list into a stream. It has to come before the first [`GemmCall::run`] on that work list, and again
    /// after the bits of the symbols have changed.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn plan(&self, stream: &Stream) -> Result<()> {
        let blocks = stream.device().properties().multiprocessors;
        let Geometry { threads, shared_bytes, .. } = self.variant.plan().geometry();
        let launch = Launch { grid: [blocks, 1, 1], threads, shared_bytes };
        // SAFETY: the kernel takes the parameters by value; what they point to is held by the work list, or its makers have promised
        // that it lives.
        unsafe { self.planner.launch(stream, launch, &[Argument::of(&self.work.params)]) }
    }

    /// Puts the projection into a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn run(&self, stream: &Stream) -> Result<()> {
        let Geometry { threads, shared_bytes, .. } = self.variant.geometry();
        let launch = Launch { grid: [self.work.params.plan.ctas, 1, 1], threads, shared_bytes };
        let params = match &self.params {
            Params::Heads(params) => Argument::of(params),
            Params::Out(params) => Argument::of(params),
        };
        // SAFETY: as in `plan`; the operands are held by `self` too.
        unsafe {
            match &self.sources {
                Sources::Maps(maps, terms) => {
                    let [a, b, c, d] = maps.each_ref().map(Argument::of);
                    match terms {
                        Some(terms) => {
                            self.function.launch(stream, launch, &[params, a, b, c, d, Argument::of(&**terms)])
                        }
                        None => self.function.launch(stream, launch, &[params, a, b, c, d]),
                    }
                }
                Sources::Heads(sources) => self.function.launch(stream, launch, &[params, Argument::of(sources)]),
                Sources::Out(sources) => self.function.launch(stream, launch, &[params, Argument::of(sources)]),
            }
        }
    }

    /// Takes other weights of the terms; the terms stay.
    ///
    /// # Errors
    /// [`Error::Shape`] when their number is another.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<()> {
        let known: &mut [f32] = match &mut self.params {
            Params::Heads(_) => &mut [],
            Params::Out(params) => &mut params.weights[..params.count as usize],
        };
        if weights.len() != known.len() {
            return Err(Error::Shape(format!("{} weights were given for {} terms", weights.len(), known.len())));
        }
        known.copy_from_slice(weights);
        Ok(())
    }
}
