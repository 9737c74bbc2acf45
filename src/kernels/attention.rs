//! Attention on a GPU: checked once, launched as often as one likes.
//!
//! [`Kernels::attention`] checks shapes, compiles what is missing, encodes tensor maps and fills the parameters; the
//! [`AttentionCall`] it gives only launches. [`AttentionCall::plan`] makes the work list and runs again whenever the symbols' bits
//! have changed; [`AttentionCall::run`] computes.

use std::f64::consts::LOG2_E;
use std::sync::Arc;

use super::choose::{self, Geometry, Kernel, Path, Variant, check_head_dim};
use super::params::{self, MAX_ORDER};
use super::symbols::{DeviceSymbols, Sizes};
use super::view::{FloatView, TensorView};
use super::work::{WorkPlan, Workspace};
use super::{Element, Kernels};
use crate::cuda::{Argument, Function, Launch, Stream, TensorMap};
use crate::error::{Error, Result};

/// Rows of the output that one copy of attention_sm90.cu stores: those of a warp.
const STORED_ROWS: u32 = 16;

/// What attention reads and writes.
#[derive(Clone, Debug)]
pub struct Operands {
    /// `[batch, heads, q_tokens, head_dim]`.
    pub q: TensorView,
    /// `[batch, kv_heads, kv_tokens, head_dim]`, `heads` a multiple of `kv_heads`.
    pub k: TensorView,
    /// As `k`.
    pub v: TensorView,
    /// As `q`.
    pub out: TensorView,
    /// `[batch, heads, q_tokens]`: natural logarithm of the sum of exponentials, without a maximum subtracted.
    pub lse: Option<FloatView>,
}

/// What the rows of cached q-blocks get.
#[derive(Clone, Debug, Default)]
pub enum CachedRows {
    /// Nothing is written.
    #[default]
    Untouched,
    /// The weighted sum of these tensors `[batch, heads, q_tokens, head_dim]`, at most five.
    Forecast(Vec<(FloatView, f32)>),
}

/// Options of [`Kernels::attention`].
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Factor of the scores, above 0; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// What the rows of cached q-blocks get.
    pub cached: CachedRows,
    /// Which kernel runs.
    pub path: Path,
}

/// A launch of attention, ready to run.
#[derive(Debug)]
pub struct AttentionCall {
    attention: Arc<Function>,
    planner: Arc<Function>,
    variant: Variant,
    params: params::AttentionParams,
    /// Of q, k, v and out, where the kernel takes them.
    maps: Option<[TensorMap; 4]>,
    work: Arc<WorkPlan>,
    // Both keep memory that launches use.
    _operands: Operands,
    _cached: CachedRows,
}

impl CachedRows {
    fn params(&self, len: usize) -> Result<params::Forecast> {
        let mut forecast = params::Forecast::default();
        let CachedRows::Forecast(terms) = self else { return Ok(forecast) };
        if terms.is_empty() || terms.len() > MAX_ORDER + 1 {
            return Err(Error::Shape(format!("a forecast of {} terms, wanted 1 to {}", terms.len(), MAX_ORDER + 1)));
        }
        for (index, (term, weight)) in terms.iter().enumerate() {
            term.check("a term of the forecast", len)?;
            (forecast.terms[index], forecast.weights[index]) = (term.address, *weight);
        }
        forecast.count = terms.len() as u32;
        Ok(forecast)
    }
}

impl Kernels {
    /// Room for the work list of launches under some symbols, on tensors with `batch` entries and this head_dim. With a
    /// workspace, that of another work list, both share it: their launches must not overlap.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit; [`Error::State`] when the workspace is for smaller launches;
    /// [`Error::Cuda`] when there is not enough memory.
    pub fn work(
        &self,
        stream: &Stream,
        symbols: &Arc<DeviceSymbols>,
        [batch, head_dim]: [usize; 2],
        options: &Options,
        workspace: Option<&Arc<Workspace>>,
    ) -> Result<Arc<WorkPlan>> {
        let batch = u32::try_from(batch).map_err(|_| Error::Shape(format!("{batch} batch entries are too many")))?;
        let fills = matches!(options.cached, CachedRows::Forecast(_));
        let variant = self.variant(symbols, check_head_dim(head_dim)?, Element::Bf16, options.path)?;
        let (ctas, head_dim) = (self.ctas(variant), variant.head_dim);
        let workspace = Workspace::or_new(workspace, stream, ctas, head_dim)?;
        WorkPlan::new(stream, symbols, [batch, head_dim, ctas], &workspace, fills).map(Arc::new)
    }

    /// Thread blocks of a persistent launch.
    pub(super) fn ctas(&self, variant: Variant) -> u32 {
        self.device().properties().multiprocessors * variant.geometry().per_multiprocessor
    }

    fn variant(&self, symbols: &DeviceSymbols, head_dim: u32, element: Element, path: Path) -> Result<Variant> {
        let properties = self.device().properties();
        let (kernel, _) = choose::attention_of(properties, path)?;
        let Sizes { q_block, kv_block, is_regular, .. } = symbols.sizes();
        let q_block = kernel.q_block(q_block);
        Ok(Variant { kernel, compute: properties.compute, head_dim, element, q_block, kv_block, masks: !is_regular })
    }

    /// Prepares attention under sparse symbols, `out = softmax(scale * q k^T + mask) v`, as
    /// [`cpu::attention`](crate::cpu::attention()) computes it, with sums in single precision and weights in the tensors' type.
    ///
    /// # Errors
    /// [`Error::Shape`] when something does not fit; [`Error::Value`] for a scale that is not above 0; [`Error::Kernel`] and
    /// [`Error::Cuda`] when a kernel does not compile or load.
    pub fn attention(&self, work: &Arc<WorkPlan>, operands: Operands, options: Options) -> Result<AttentionCall> {
        let shape = checked_shape(work, &operands)?;
        let [batch, heads, q_tokens, head_dim] = operands.q.shape;
        let Options { scale, cached, path } = options;
        let variant = self.variant(&work.symbols, work.head_dim, operands.q.element, path)?;
        if matches!(cached, CachedRows::Forecast(_)) != work.fills_cached()
            || self.ctas(variant) != work.list.params.ctas
        {
            return Err(Error::State("the work list was made for launches with other options".to_owned()));
        }
        if let Some(lse) = &operands.lse {
            lse.check("lse", batch * heads * q_tokens)?;
        }
        let maps = match variant.kernel {
            Kernel::AttentionSm90 => {
                let Operands { q, k, v, out, .. } = &operands;
                let map = |view: &TensorView, rows| TensorMap::encode(self.device(), &view.layout(rows));
                let [k, v] = [map(k, variant.kv_block)?, map(v, variant.kv_block)?];
                Some([map(q, variant.q_block)?, k, v, map(out, STORED_ROWS)?])
            }
            _ => None,
        };
        let scale = scale.map_or_else(|| 1.0 / (head_dim as f64).sqrt(), f64::from);
        // The largest weight of a row is that of its largest score only where scores are not turned around.
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(Error::Value(format!(
                "scores cannot be multiplied by {scale} on a GPU: wanted a number above 0"
            )));
        }
        let params = params::AttentionParams {
            q: operands.q.params(),
            k: operands.k.params(),
            v: operands.v.params(),
            out: operands.out.params(),
            lse: operands.lse.as_ref().map_or(0, |lse| lse.address),
            scale_log2: (scale * LOG2_E) as f32,
            reserved: 0,
            shape,
            symbols: work.symbols.addresses,
            plan: work.list.params,
            forecast: cached.params(batch * heads * q_tokens * head_dim)?,
        };
        let (attention, planner) = (self.function(variant)?, self.function(variant.plan())?);
        Ok(AttentionCall {
            attention,
            planner,
            variant,
            params,
            maps,
            work: Arc::clone(work),
            _operands: operands,
            _cached: cached,
        })
    }
}

/// The shape of a launch, if its operands fit each other, the symbols and the work list.
fn checked_shape(work: &WorkPlan, operands: &Operands) -> Result<params::Shape> {
    let Operands { q, k, v, out, .. } = operands;
    for (name, view) in [("q", q), ("k", k), ("v", v), ("out", out)] {
        view.check(name, q.element)?;
    }
    let [batch, heads, q_tokens, head_dim] = q.shape;
    let [_, kv_heads, kv_tokens, _] = k.shape;
    check_head_dim(head_dim)?;
    let same = |name: &str, found: [usize; 4], wanted: [usize; 4]| {
        if found == wanted {
            Ok(())
        } else {
            Err(Error::Shape(format!("`{name}` has the shape {found:?}, wanted {wanted:?}")))
        }
    };
    same("k", k.shape, [batch, kv_heads, kv_tokens, head_dim])?;
    same("v", v.shape, k.shape)?;
    same("out", out.shape, q.shape)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(Error::Shape(format!("{heads} heads of queries are not a multiple of {kv_heads} heads of keys")));
    }
    let sizes = work.symbols.sizes();
    let wanted = [work.batch, sizes.heads, sizes.q_tokens, sizes.kv_tokens, work.head_dim].map(|size| size as usize);
    let found = [batch, heads, q_tokens, kv_tokens, head_dim];
    if found != wanted {
        return Err(Error::Shape(format!(
            "tensors have {found:?} batch entries, heads, queries, keys and head_dim, the symbols are for {wanted:?}"
        )));
    }
    Ok(params::Shape {
        batch: work.batch,
        heads: sizes.heads,
        kv_heads: kv_heads as u32,
        q_tokens: sizes.q_tokens,
        kv_tokens: sizes.kv_tokens,
        q_blocks: sizes.q_blocks,
        kv_blocks: sizes.kv_blocks,
        symbol_batches: sizes.batches,
    })
}

impl AttentionCall {
    /// The kernel.
    #[must_use]
    pub fn variant(&self) -> &Variant {
        &self.variant
    }

    /// Puts the making of the work list into a stream. It has to come before the first [`AttentionCall::run`] on that work list, and
    /// again after the bits of the symbols have changed.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn plan(&self, stream: &Stream) -> Result<()> {
        if self.variant.kernel == Kernel::Naive {
            return Ok(());
        }
        let blocks = stream.device().properties().multiprocessors;
        let Geometry { threads, shared_bytes, .. } = self.variant.plan().geometry();
        let launch = Launch { grid: [blocks, 1, 1], threads, shared_bytes };
        // SAFETY: the kernel takes the parameters by value; the work list and the symbols are held by `self`, or their makers
        // have promised that they live.
        unsafe { self.planner.launch(stream, launch, &[Argument::of(&self.params)]) }
    }

    /// Puts attention into a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the driver refuses.
    pub fn run(&self, stream: &Stream) -> Result<()> {
        let Geometry { threads, shared_bytes, .. } = self.variant.geometry();
        let launch = Launch { grid: [self.grid(), 1, 1], threads, shared_bytes };
        let params = Argument::of(&self.params);
        // SAFETY: as in `plan`; the kernel for which there are maps takes them, and all operands are held by `self` too.
        unsafe {
            match &self.maps {
                Some([q, k, v, out]) => {
                    let [q, k, v, out] = [q, k, v, out].map(Argument::of);
                    self.attention.launch(stream, launch, &[params, q, k, v, out])
                }
                None => self.attention.launch(stream, launch, &[params]),
            }
        }
    }

    /// Takes other weights of the forecast; the terms stay.
    ///
    /// # Errors
    /// [`Error::Shape`] when their number is another.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<()> {
        let count = self.params.forecast.count as usize;
        if weights.len() != count {
            return Err(Error::Shape(format!("{} weights were given for {count} terms", weights.len())));
        }
        self.params.forecast.weights[..count].copy_from_slice(weights);
        Ok(())
    }

    fn grid(&self) -> u32 {
        let params::Shape { batch, heads, q_blocks, .. } = self.params.shape;
        if self.variant.kernel == Kernel::Naive { batch * heads * q_blocks } else { self.work.list.params.ctas }
    }
}
