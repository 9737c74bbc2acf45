//! Generations of whole blocks on a GPU beside the same on the CPU.

use std::ops::Range;
use std::sync::Arc;

use flashomni::cpu::RotaryPairs;
use flashomni::cuda::Stream;
use flashomni::ir::StepKind;
use flashomni::kernels::Element;
use flashomni::plan::Plan;
use flashomni::runtime::{
    AttentionBlock, CpuBlock, DeviceBlock, DeviceInput, DeviceMatrix, DeviceOptions, DeviceReport, DeviceSession,
    LayerSymbols, Linear, Memory, Norm, RotaryTable, Session, StreamInput, StreamShape, TokenStream,
};
use flashomni::symbols::Symbols;
use flashomni::tensor::{Dtype, Tensor, TensorMut};

use super::numbers::relative;
use super::{Gpu, Random};

/// Streams of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Text and picture with weights of their own.
    Two,
    /// One, with further inputs.
    One,
}

/// How queries and keys come out of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// By random weights, norms and rotary embedding.
    Random,
    /// As they are, so that the CPU and the GPU have the same bits and choose the same symbols.
    Copied,
}

/// A generation.
#[derive(Clone, Debug)]
pub struct Case {
    pub plan: Arc<Plan>,
    pub text: usize,
    pub streams: Streams,
    pub heads: Heads,
    pub element: Element,
}

/// Inputs of one layer at one step: of each stream tokens and further inputs.
pub type Inputs = Vec<(Tensor, Option<Tensor>)>;

fn dtype(element: Element) -> Dtype {
    match element {
        Element::Bf16 => Dtype::Bf16,
        Element::F16 => Dtype::F16,
    }
}

/// The largest relative error of a step's output: of attention's own limits, several roundings to 16 bits further.
fn limit(element: Element, kind: StepKind) -> f64 {
    let one = match element {
        Element::Bf16 => 6e-3,
        Element::F16 => 1e-3,
    };
    let is_forecast = kind.is_reuse() || kind.obeys_symbols();
    one * if is_forecast { 4.0 } else { 2.0 }
}

impl Case {
    fn size(&self) -> [usize; 3] {
        let model = &self.plan.model;
        [model.heads, model.head_dim, model.tokens()].map(|size| size as usize)
    }

    fn shapes(&self) -> Vec<StreamShape> {
        let [heads, head_dim, tokens] = self.size();
        let width = heads * head_dim;
        let shape = |tokens: Range<usize>, inputs, outputs, further| StreamShape { tokens, inputs, outputs, further };
        let inputs = |other: usize| if self.heads == Heads::Copied { width } else { other };
        match self.streams {
            Streams::Two => {
                vec![shape(0..self.text, inputs(136), 264, 0), shape(self.text..tokens, inputs(200), 328, 0)]
            }
            Streams::One => vec![shape(0..tokens, inputs(192), 320, 88)],
        }
    }

    fn tensor(&self, random: &mut Random, shape: &[usize], scale: f32) -> Tensor {
        let values = random.normal(shape.iter().product()).into_iter().map(|value| scale * value).collect();
        Tensor::from_f32(shape, values).unwrap().cast(dtype(self.element))
    }

    /// A random block, whose numbers have the case's type.
    pub fn block(&self, random: &mut Random) -> AttentionBlock {
        let [heads, head_dim, tokens] = self.size();
        let width = heads * head_dim;
        let mut streams = Vec::new();
        for StreamShape { tokens, inputs, outputs, further } in self.shapes() {
            let mut linear = |outputs: usize, inputs: usize| Linear {
                weight: self.tensor(random, &[outputs, inputs], (inputs as f32).sqrt().recip()),
                bias: Some(self.tensor(random, &[outputs], 0.3)),
            };
            let (mut q, mut k) = (linear(width, inputs), linear(width, inputs));
            let (v, out) = (linear(width, inputs), linear(outputs, width + further));
            let mut norm = || Some(Norm { weight: self.tensor(random, &[head_dim], 1.0), eps: 1e-6 });
            let (mut q_norm, mut k_norm) = (norm(), norm());
            if self.heads == Heads::Copied {
                // Keys are the channels of queries, turned by a third.
                let copy = |by: usize| {
                    let ones = (0..width * width).map(|at| f32::from((at / width + by) % width == at % width));
                    Linear { weight: Tensor::from_f32(&[width, width], ones.collect()).unwrap(), bias: None }
                };
                (q, k) = (copy(0), copy(width / 3));
                (q_norm, k_norm) = (None, None);
            }
            streams.push(TokenStream { tokens, q, k, v, out, q_norm, k_norm });
        }
        let rotary = (self.heads == Heads::Random).then(|| {
            let angles = random.normal(tokens * head_dim / 2).into_iter();
            let angles = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
            let pairs = if self.streams == Streams::Two { RotaryPairs::Interleaved } else { RotaryPairs::Halves };
            Arc::new(RotaryTable { angles: Tensor::from_f32(&[tokens, head_dim / 2, 2], angles).unwrap(), pairs })
        });
        AttentionBlock::new(heads, head_dim, streams, rotary).unwrap()
    }

    /// Inputs of every step, which drift from one to the next.
    pub fn inputs(&self, random: &mut Random) -> Vec<Inputs> {
        self.inputs_of(random, self.plan.model.steps)
    }

    /// Those of the first steps.
    pub fn inputs_of(&self, random: &mut Random, steps: u32) -> Vec<Inputs> {
        let pair = |shape: [usize; 2], random: &mut Random| [1.0, 0.05].map(|scale| self.tensor(random, &shape, scale));
        let series: Vec<_> = self
            .shapes()
            .into_iter()
            .map(|stream| {
                let rows = stream.tokens.len();
                let further = (stream.further > 0).then(|| pair([rows, stream.further], random));
                (pair([rows, stream.inputs], random), further)
            })
            .collect();
        let at = |[base, drift]: &[Tensor; 2], step: u32| {
            let (values, drift) = (base.as_ref().to_f32(), drift.as_ref().to_f32());
            let values = values.iter().zip(drift).map(|(a, b)| a + step as f32 * b).collect();
            Tensor::from_f32(base.shape(), values).unwrap().cast(dtype(self.element))
        };
        let inputs = (0..steps).map(|step| {
            let stream = series.iter().map(|(x, further)| (at(x, step), further.as_ref().map(|pair| at(pair, step))));
            stream.collect()
        });
        inputs.collect()
    }

    /// A generation on the GPU whose layers have the same block.
    pub fn session(&self, gpu: &Gpu, block: &AttentionBlock) -> DeviceSession {
        self.session_in(gpu, block, Memory::Gpu)
    }

    /// The same with what its layers keep on one side.
    pub fn session_in(&self, gpu: &Gpu, block: &AttentionBlock, caches: Memory) -> DeviceSession {
        let blocks = DeviceBlock::upload(&gpu.stream, std::slice::from_ref(block), self.element).unwrap();
        let blocks = vec![Arc::clone(&blocks[0]); self.plan.model.layers as usize];
        let options = DeviceOptions { caches, ..DeviceOptions::default() };
        DeviceSession::new(Arc::clone(&self.plan), &gpu.kernels, blocks, options).unwrap()
    }

    /// Room for the tensors of a step.
    pub fn matrices(&self, session: &DeviceSession) -> Matrices {
        let matrix =
            |rows: usize, columns: usize| DeviceMatrix::new(session.stream(), [rows, columns], self.element).unwrap();
        let shapes = self.shapes();
        let of = |stream: &StreamShape| {
            let rows = stream.tokens.len();
            let further = (stream.further > 0).then(|| matrix(rows, stream.further));
            (matrix(rows, stream.inputs), further, matrix(rows, stream.outputs))
        };
        Matrices(shapes.iter().map(of).collect())
    }

    /// Runs a generation on both and compares every step.
    pub fn check(&self, gpu: &Gpu, random: &mut Random) {
        let block = self.block(random);
        let inputs = self.inputs(random);
        let packed = CpuBlock::new(&block).unwrap();
        let mut wanted = Session::new(Arc::clone(&self.plan)).unwrap();
        let mut found = self.session(gpu, &block);
        let matrices = self.matrices(&found);
        for (step, inputs) in (0..).zip(&inputs) {
            for layer in 0..self.plan.model.layers {
                let what = format!("step {step}, layer {layer}, {self:?}");
                let (kind, out) = on_cpu(&mut wanted, &packed, [step, layer], inputs, &self.shapes());
                matrices.send(found.stream(), inputs);
                let report = matrices.run(&mut found, [step, layer]).unwrap();
                assert_eq!(report.kind, kind, "{what}");
                match found.symbols_on_gpu(layer).unwrap() {
                    Some(symbols) if !kind.is_reuse() => {
                        assert_symbols(wanted.symbols(layer).unwrap(), &symbols, &what)
                    }
                    Some(_) => {}
                    None => assert!(wanted.symbols(layer) == found.symbols(layer), "symbols of {what}"),
                }
                for (index, (wanted, found)) in out.iter().zip(matrices.outputs(found.stream())).enumerate() {
                    let error = relative(&found, &wanted.as_ref().to_f32());
                    assert!(error < limit(self.element, kind), "stream {index}, {kind:?}: {error:.2e}; {what}");
                }
            }
        }
    }
}

/// Blocks of at most 128 tokens are not cut: bits are the same.
fn assert_symbols(wanted: &LayerSymbols, found: &Symbols, what: &str) {
    for group in &wanted.groups {
        let q_blocks = group.symbols.q_blocks();
        for (position, &head) in group.heads.iter().enumerate() {
            let head = head as usize;
            assert_eq!(group.symbols.cache.row(position), found.cache.row(head), "S_c of head {head}: {what}");
            for block in 0..q_blocks {
                let [own, other] = [position, head].map(|head| head * q_blocks + block);
                assert_eq!(group.symbols.skip.row(own), found.skip.row(other), "S_s of head {head}, {block}: {what}");
            }
        }
    }
}

/// The block of a layer at a step on the CPU.
fn on_cpu(
    session: &mut Session,
    block: &CpuBlock,
    [step, layer]: [u32; 2],
    inputs: &Inputs,
    shapes: &[StreamShape],
) -> (StepKind, Vec<Tensor>) {
    let given: Vec<StreamInput<'_>> = inputs
        .iter()
        .map(|(x, further)| StreamInput { x: x.as_ref(), further: further.as_ref().map(Tensor::as_ref) })
        .collect();
    let zeros = |stream: &StreamShape| Tensor::zeros(&[stream.tokens.len(), stream.outputs], Dtype::F32);
    let mut out: Vec<Tensor> = shapes.iter().map(zeros).collect();
    let mut targets: Vec<TensorMut<'_>> = out.iter_mut().map(Tensor::as_mut).collect();
    let report = session.begin(step, layer).unwrap().block(block, &given, &[], &mut targets).unwrap();
    drop(targets);
    (report.kind, out)
}

/// Tokens, further inputs and output of each stream on the GPU.
pub struct Matrices(Vec<(DeviceMatrix, Option<DeviceMatrix>, DeviceMatrix)>);

impl Matrices {
    pub fn send(&self, stream: &Stream, inputs: &Inputs) {
        for ((x, further, _), (own, own_further)) in self.0.iter().zip(inputs) {
            x.upload(stream, own.as_ref()).unwrap();
            if let (Some(further), Some(own)) = (further, own_further) {
                further.upload(stream, own.as_ref()).unwrap();
            }
        }
    }

    pub fn run(&self, session: &mut DeviceSession, [step, layer]: [u32; 2]) -> flashomni::Result<DeviceReport> {
        let inputs: Vec<DeviceInput<'_>> =
            self.0.iter().map(|(x, further, _)| DeviceInput { x, further: further.as_ref() }).collect();
        let outputs: Vec<&DeviceMatrix> = self.0.iter().map(|(.., out)| out).collect();
        session.block(step, layer, &inputs, &[], &outputs)
    }

    pub fn outputs(&self, stream: &Stream) -> Vec<Vec<f32>> {
        self.0.iter().map(|(.., out)| out.download(stream).unwrap().as_ref().to_f32()).collect()
    }
}
