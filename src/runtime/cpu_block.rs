//! Whole attention blocks on the CPU: projections, norms, rotary embedding, attention and output projection of a step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use super::Tensors;
use super::block::{AttentionBlock, Linear, Norm, RotaryTable, StreamInput, StreamShape, TokenStream, check_model};
use super::session::{Report, Step};
use crate::cpu::check::{ensure, shape};
use crate::cpu::{PackedWeight, Rotary, Tiles, Weight, linear, linear_to_heads, norm_and_turn, whole_blocks};
use crate::error::Result;
use crate::symbols::BitMatrix;
use crate::tensor::{Dtype, Tensor, TensorMut, TensorRef, ValuesMut};

/// An attention block with its weights packed for the CPU: made once, and run at every step.
#[derive(Debug)]
pub struct CpuBlock {
    streams: Vec<CpuStream>,
    rotary: Option<Arc<RotaryTable>>,
    /// Heads, channels of a head, tokens.
    size: [usize; 3],
}

#[derive(Debug)]
struct CpuStream {
    shape: StreamShape,
    q: CpuLinear,
    k: CpuLinear,
    v: CpuLinear,
    out: CpuLinear,
    /// Columns of the output projection for further inputs.
    further: Option<PackedWeight>,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
}

#[derive(Debug)]
struct CpuLinear {
    weight: PackedWeight,
    bias: Option<Tensor>,
}

/// Queries, keys, values and outputs `[heads, tokens, head_dim]` of a step, in single precision; layers share them.
#[derive(Debug)]
pub(super) struct Work([Tensor; 4]);

impl CpuLinear {
    fn new(weight: PackedWeight, linear: &Linear) -> Self {
        CpuLinear { weight, bias: linear.bias.clone() }
    }

    fn bias(&self) -> Option<TensorRef<'_>> {
        self.bias.as_ref().map(Tensor::as_ref)
    }
}

impl CpuBlock {
    /// Packs the weights in single precision; the block is not needed afterwards.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) where packing refuses a weight.
    pub fn new(block: &AttentionBlock) -> Result<Self> {
        let [heads, head_dim] = block.head_shape();
        let width = heads * head_dim;
        let by_heads = |linear: &Linear| -> Result<CpuLinear> {
            Ok(CpuLinear::new(Weight::new(linear.weight.as_ref())?.pack_heads(head_dim)?, linear))
        };
        let stream = |(stream, shape): (&TokenStream, &StreamShape)| {
            let out = Weight::new(stream.out.weight.as_ref())?;
            let further = (shape.further > 0).then(|| out.columns(width, shape.further).map(Weight::pack));
            Ok(CpuStream {
                shape: shape.clone(),
                q: by_heads(&stream.q)?,
                k: by_heads(&stream.k)?,
                v: by_heads(&stream.v)?,
                out: CpuLinear::new(out.columns(0, width)?.pack(), &stream.out),
                further: further.transpose()?,
                q_norm: stream.q_norm.clone(),
                k_norm: stream.k_norm.clone(),
            })
        };
        let streams = block.streams().iter().zip(block.shapes()).map(stream).collect::<Result<Vec<_>>>()?;
        Ok(CpuBlock { streams, rotary: block.rotary().cloned(), size: [heads, head_dim, block.tokens()] })
    }

    fn check(&self, inputs: &[StreamInput<'_>], outputs: &[TensorMut<'_>]) -> Result<()> {
        let count = self.streams.len();
        ensure(inputs.len() == count && outputs.len() == count, || {
            let (inputs, outputs) = (inputs.len(), outputs.len());
            format!("{inputs} inputs and {outputs} outputs were given for {count} streams of the block")
        })?;
        for ((stream, input), out) in self.streams.iter().zip(inputs).zip(outputs) {
            input.check(&stream.shape)?;
            shape("out", out.as_ref().shape(), &[stream.shape.tokens.len(), stream.shape.outputs])?;
        }
        Ok(())
    }

    fn rotary(&self) -> Option<Rotary<'_>> {
        self.rotary.as_deref().map(RotaryTable::view)
    }
}

impl Step<'_> {
    /// The whole attention block at this step: what the schedule and the symbols leave of its projections and of attention is
    /// computed, the rest forecast. In place of [`Step::project_q`], [`Step::attention_live`] and [`Step::project_out`];
    /// queries, keys and values are in single precision in between.
    ///
    /// Of outputs with further inputs only what attention gives is cached and reused: what further inputs add is always this
    /// step's. At a step of kind [`StepKind::Shared`](crate::ir::StepKind::Shared) a host that has the other branch calls
    /// [`Step::share_out`] for each stream instead; here it computes in full.
    ///
    /// # Shapes
    /// One of each for every stream of the block:
    ///
    /// | tensor | shape | dtype |
    /// |---|---|---|
    /// | `x` | `[tokens.len(), in]` | any |
    /// | `further` | `[tokens.len(), further]` | any |
    /// | `outputs` | `[tokens.len(), out]` | any |
    ///
    /// `measured`: what rules choose by, as [`Tensors::measured`](super::Tensors::measured).
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when something does not fit; [`Error::Value`](crate::error::Error::Value) when symbols
    /// are to be chosen and queries or keys are not finite; [`Error::State`](crate::error::Error::State) when the strategy moves
    /// tokens from one stream to another, and when something measured is missing.
    pub fn block(
        &mut self,
        block: &CpuBlock,
        inputs: &[StreamInput<'_>],
        measured: &[(String, Tensor)],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<Report> {
        check_model(self.session.plan(), block.size)?;
        block.check(inputs, outputs)?;
        let mut work = self.session.work.take().unwrap_or_else(|| Work::new(block.size));
        let done = self.run_block(block, inputs, measured, outputs, &mut work);
        self.session.work = Some(work);
        done
    }

    fn run_block(
        &mut self,
        block: &CpuBlock,
        inputs: &[StreamInput<'_>],
        measured: &[(String, Tensor)],
        outputs: &mut [TensorMut<'_>],
        work: &mut Work,
    ) -> Result<Report> {
        let none = Duration::ZERO;
        let mut report = Report { kind: self.kind(), selection: none, attention: none, kernel: None };
        if !self.kind().is_reuse() {
            let Work([q, k, v, o]) = work;
            self.project(block, inputs, [q, k, v])?;
            self.choose(Tensors { v: Some(v.as_ref()), measured, ..Tensors::of(q.as_ref(), k.as_ref()) })?;
            report = self.attention_live(q.as_ref(), k.as_ref(), v.as_ref(), o.as_mut())?;
        }
        let o = work.0[3].as_ref();
        let start = Instant::now();
        for ((stream, input), out) in block.streams.iter().zip(inputs).zip(outputs) {
            let (tokens, CpuLinear { weight, .. }) = (stream.shape.tokens.clone(), &stream.out);
            let (Some(further), Some(input)) = (&stream.further, input.further) else {
                self.project_out(o, weight, stream.out.bias(), tokens, out.reborrow())?;
                continue;
            };
            let size = [tokens.len(), stream.shape.outputs];
            let [mut own, mut added] = [(); 2].map(|()| Tensor::zeros(&size, Dtype::F32));
            self.project_out(o, weight, stream.out.bias(), tokens, own.as_mut())?;
            linear(input, further, None, added.as_mut())?;
            sum(own.as_ref(), added.as_ref(), out.reborrow());
        }
        if self.kind().is_reuse() {
            report.attention = start.elapsed();
        }
        Ok(report)
    }

    /// Queries of live tiles, keys and values, normalised and turned.
    fn project(&self, block: &CpuBlock, inputs: &[StreamInput<'_>], [q, k, v]: [&mut Tensor; 3]) -> Result<()> {
        let [heads, _, tokens] = block.size;
        let q_blocks = whole_blocks(tokens);
        let all = BitMatrix::ones(heads, q_blocks.len() - 1);
        for (stream, input) in block.streams.iter().zip(inputs) {
            let range = || stream.shape.tokens.clone();
            self.project_q(input.x, &stream.q.weight, stream.q.bias(), range(), q.as_mut())?;
            self.turn_q(stream.q_norm.as_ref().map(Norm::view), block.rotary(), range(), q.as_mut())?;
            linear_to_heads(input.x, &stream.k.weight, stream.k.bias(), range(), k.as_mut())?;
            linear_to_heads(input.x, &stream.v.weight, stream.v.bias(), range(), v.as_mut())?;
            let tiles = Tiles { cache: &all, q_blocks: &q_blocks, tokens: range() };
            norm_and_turn(k.as_mut(), &tiles, None, stream.k_norm.as_ref().map(Norm::view), block.rotary())?;
        }
        Ok(())
    }
}

impl Work {
    fn new([heads, head_dim, tokens]: [usize; 3]) -> Self {
        Work([(); 4].map(|()| Tensor::zeros(&[heads, tokens, head_dim], Dtype::F32)))
    }
}

/// The sum of two single-precision tensors, rounded once.
fn sum(a: TensorRef<'_>, b: TensorRef<'_>, mut out: TensorMut<'_>) {
    let values = a.to_f32().into_iter().zip(b.to_f32()).map(|(a, b)| a + b);
    match out.values() {
        ValuesMut::F32(out) => out.iter_mut().zip(values).for_each(|(out, value)| *out = value),
        ValuesMut::F16(out) => out.iter_mut().zip(values).for_each(|(out, value)| *out = f16::from_f32(value)),
        ValuesMut::Bf16(out) => out.iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(value)),
    }
}
