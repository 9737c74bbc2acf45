//! An attention block as data: the weights of its projections, the norms of queries and keys, and the rotary table.
//!
//! ```text
//!  x of a stream ─┬─ q ─ norm ─ rotary ─┐
//!                 ├─ k ─ norm ─ rotary ─┼─ attention over the tokens of all streams ─ out ─ output of the stream
//!                 └─ v ─────────────────┘                      further inputs ───────┘
//! ```
//!
//! A *stream* is a run of tokens with weights of its own. Blocks of FLUX, HunyuanVideo and Stable Diffusion 3.5 have one for text and one for
//! the picture; others have a single one. The single-stream blocks of FLUX and HunyuanVideo keep the second half of their
//! feed-forward network in the same matrix as the output projection: its inputs are *further inputs* here. What stands around it,
//! modulation, gates and residuals, is the host's.

use std::ops::Range;
use std::sync::Arc;

use crate::cpu::check::{ensure, shape, two};
use crate::cpu::{HeadNorm, Rotary, RotaryPairs, check_norm, check_rotary};
use crate::error::Result;
use crate::plan::Plan;
use crate::tensor::{Tensor, TensorRef};

/// A linear projection, `x weight^T + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`, any dtype.
    pub weight: Tensor,
    /// `[out]`, any dtype.
    pub bias: Option<Tensor>,
}

/// The RMS norm of each head, `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// `[head_dim]`, any dtype.
    pub weight: Tensor,
    /// What is added to the mean of squares, 0 or more.
    pub eps: f32,
}

/// The rotary embedding of queries and keys, behind their norms.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    /// Cosine and sine of every token, `[tokens, head_dim / 2, 2]`, any dtype.
    pub angles: Tensor,
    /// Which channels they turn.
    pub pairs: RotaryPairs,
}

/// The weights of some tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenStream {
    /// Its tokens among those of the model.
    pub tokens: Range<usize>,
    /// Queries, `[heads * head_dim, in]`.
    pub q: Linear,
    /// Keys, as `q`.
    pub k: Linear,
    /// Values, as `q`.
    pub v: Linear,
    /// Outputs, `[out, heads * head_dim + further]`: columns of the heads first, then those of the further inputs.
    pub out: Linear,
    /// The norm of queries.
    pub q_norm: Option<Norm>,
    /// The norm of keys.
    pub k_norm: Option<Norm>,
}

/// An attention block whose parts fit each other.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionBlock {
    heads: usize,
    head_dim: usize,
    streams: Vec<TokenStream>,
    /// Of each stream.
    shapes: Vec<StreamShape>,
    rotary: Option<Arc<RotaryTable>>,
}

/// Sizes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamShape {
    /// Its tokens among those of the model.
    pub tokens: Range<usize>,
    /// Channels of its input.
    pub inputs: usize,
    /// Channels of its output.
    pub outputs: usize,
    /// Further inputs of its output projection.
    pub further: usize,
}

impl TokenStream {
    fn shape(&self, width: usize) -> Result<StreamShape> {
        let [_, inputs] = two("q.weight", self.q.weight.shape())?;
        let [outputs, columns] = two("out.weight", self.out.weight.shape())?;
        ensure(columns >= width, || format!("`out.weight` has {columns} columns, wanted {width} at least"))?;
        Ok(StreamShape { tokens: self.tokens.clone(), inputs, outputs, further: columns - width })
    }

    /// Its sizes, if its parts fit each other.
    fn checked(&self, heads: usize, head_dim: usize) -> Result<StreamShape> {
        let width = heads * head_dim;
        let sizes = self.shape(width)?;
        let StreamShape { inputs, outputs, .. } = sizes;
        for (name, linear) in [("q", &self.q), ("k", &self.k), ("v", &self.v)] {
            shape(&format!("{name}.weight"), linear.weight.shape(), &[width, inputs])?;
        }
        for (name, linear, size) in
            [("q", &self.q, width), ("k", &self.k, width), ("v", &self.v, width), ("out", &self.out, outputs)]
        {
            let Some(bias) = &linear.bias else { continue };
            shape(&format!("{name}.bias"), bias.shape(), &[size])?;
        }
        for norm in [&self.q_norm, &self.k_norm] {
            check_norm(norm.as_ref().map(Norm::view), head_dim)?;
        }
        Ok(sizes)
    }
}

impl Norm {
    pub(super) fn view(&self) -> HeadNorm<'_> {
        HeadNorm { weight: self.weight.as_ref(), eps: self.eps }
    }
}

impl RotaryTable {
    pub(super) fn view(&self) -> Rotary<'_> {
        Rotary { table: self.angles.as_ref(), pairs: self.pairs }
    }
}

impl AttentionBlock {
    /// A block of these streams, which have all tokens among them, in the order of the sequence.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when something does not fit; [`Error::Value`](crate::error::Error::Value) for a norm
    /// with a negative `eps`.
    pub fn new(
        heads: usize,
        head_dim: usize,
        streams: Vec<TokenStream>,
        rotary: Option<Arc<RotaryTable>>,
    ) -> Result<Self> {
        let (mut end, mut shapes) = (0, Vec::new());
        for stream in &streams {
            let tokens = &stream.tokens;
            ensure(tokens.start == end && tokens.end > tokens.start, || {
                format!("a stream has the tokens {tokens:?}, wanted some that begin at {end}")
            })?;
            end = tokens.end;
            shapes.push(stream.checked(heads, head_dim)?);
        }
        ensure(end > 0, || "a block without streams has no tokens".to_owned())?;
        check_rotary(rotary.as_deref().map(RotaryTable::view), [end, head_dim])?;
        Ok(AttentionBlock { heads, head_dim, streams, shapes, rotary })
    }

    /// Its streams.
    #[must_use]
    pub fn streams(&self) -> &[TokenStream] {
        &self.streams
    }

    /// Its rotary embedding, which layers share.
    #[must_use]
    pub fn rotary(&self) -> Option<&Arc<RotaryTable>> {
        self.rotary.as_ref()
    }

    /// Sizes of its streams.
    #[must_use]
    pub fn shapes(&self) -> &[StreamShape] {
        &self.shapes
    }

    /// Tokens of all streams.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.shapes.last().map_or(0, |shape| shape.tokens.end)
    }

    /// Heads, and channels of a head.
    #[must_use]
    pub fn head_shape(&self) -> [usize; 2] {
        [self.heads, self.head_dim]
    }
}

/// The error where a block with so many heads, channels of a head and tokens is none of the plan's model.
pub(super) fn check_model(plan: &Plan, found: [usize; 3]) -> Result<()> {
    let model = &plan.model;
    let wanted = [model.heads, model.head_dim, model.tokens()].map(|size| size as usize);
    ensure(found == wanted, || {
        format!("the block has {found:?} heads, channels of a head and tokens, those of {} are {wanted:?}", model.name)
    })
}

/// What a stream brings to a step.
#[derive(Clone, Copy, Debug)]
pub struct StreamInput<'a> {
    /// `[tokens.len(), in]`, any dtype.
    pub x: TensorRef<'a>,
    /// Further inputs of the output projection, `[tokens.len(), further]`, any dtype; where the block has such, and only there.
    pub further: Option<TensorRef<'a>>,
}

impl<'a> StreamInput<'a> {
    /// Tokens without further inputs.
    #[must_use]
    pub fn of(x: TensorRef<'a>) -> Self {
        StreamInput { x, further: None }
    }

    pub(super) fn check(&self, stream: &StreamShape) -> Result<()> {
        let tokens = stream.tokens.len();
        shape("x", self.x.shape(), &[tokens, stream.inputs])?;
        match self.further {
            Some(further) => shape("further", further.shape(), &[tokens, stream.further]),
            None => ensure(stream.further == 0, || {
                format!(
                    "tokens {:?} came without further inputs, the block has {} of them",
                    stream.tokens, stream.further
                )
            }),
        }
    }
}
