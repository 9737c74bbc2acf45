//! The weights of attention blocks in a GPU's memory, and the tensors of a stream there.

use std::sync::{Arc, Weak};

use half::{bf16, f16};

use super::block::{AttentionBlock, Linear, Norm, RotaryTable, StreamShape, TokenStream};
use crate::cpu::RotaryPairs;
use crate::cpu::check::{ensure, shape};
use crate::cuda::{Buffer, Stream};
use crate::error::Result;
use crate::kernels::choose::check_head_dim;
use crate::kernels::{Element, FloatView, MatrixView};
use crate::tensor::{Tensor, TensorRef, Values};

/// An attention block in a GPU's memory: uploaded once, and run at every step of any number of sessions.
#[derive(Debug)]
pub struct DeviceBlock {
    pub(super) streams: Vec<DeviceStream>,
    pub(super) shapes: Vec<StreamShape>,
    pub(super) rotary: Option<(FloatView, RotaryPairs)>,
    /// Heads, channels of a head, tokens.
    pub(super) size: [usize; 3],
    pub(super) element: Element,
}

/// What a stream brings to a step.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInput<'a> {
    /// `[tokens.len(), in]`.
    pub x: &'a DeviceMatrix,
    /// Further inputs of the output projection, `[tokens.len(), further]`; where the block has such, and only there.
    pub further: Option<&'a DeviceMatrix>,
}

#[derive(Debug)]
pub(super) struct DeviceStream {
    pub(super) q: DeviceLinear,
    pub(super) k: DeviceLinear,
    pub(super) v: DeviceLinear,
    pub(super) out: DeviceLinear,
    /// The columns of the heads in the weight of `out`.
    pub(super) out_heads: MatrixView,
    pub(super) q_norm: Option<(FloatView, f32)>,
    pub(super) k_norm: Option<(FloatView, f32)>,
}

#[derive(Debug)]
pub(super) struct DeviceLinear {
    pub(super) weight: MatrixView,
    pub(super) bias: Option<FloatView>,
}

impl DeviceBlock {
    /// Uploads the blocks of some layers, weights rounded to a type of 16 bits. A rotary table that blocks share is there once.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when heads have not 64 or 128 channels, which projections on a GPU need;
    /// [`Error::Cuda`](crate::error::Error::Cuda) when there is not enough memory.
    pub fn upload(stream: &Stream, blocks: &[AttentionBlock], element: Element) -> Result<Vec<Arc<Self>>> {
        let mut tables: Vec<(Weak<RotaryTable>, FloatView)> = Vec::new();
        let mut uploaded = Vec::with_capacity(blocks.len());
        for block in blocks {
            let [heads, head_dim] = block.head_shape();
            check_head_dim(head_dim)?;
            let rotary = block.rotary().map(|table| {
                let known = tables.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(table)));
                let view = match known {
                    Some((_, view)) => view.clone(),
                    None => {
                        let view = floats(stream, table.angles.as_ref())?;
                        tables.push((Arc::downgrade(table), view.clone()));
                        view
                    }
                };
                Result::Ok((view, table.pairs))
            });
            let streams = block.streams().iter().zip(block.shapes());
            let streams = streams.map(|(own, shape)| DeviceStream::new(stream, own, shape, heads * head_dim, element));
            uploaded.push(Arc::new(DeviceBlock {
                streams: streams.collect::<Result<_>>()?,
                shapes: block.shapes().to_vec(),
                rotary: rotary.transpose()?,
                size: [heads, head_dim, block.tokens()],
                element,
            }));
        }
        Ok(uploaded)
    }

    /// Bytes that the weights of a block take, without its rotary table.
    #[must_use]
    pub fn weight_bytes(block: &AttentionBlock) -> u64 {
        let [heads, head_dim] = block.head_shape();
        let width = heads * head_dim;
        let of = |shape: &StreamShape| 3 * width * shape.inputs + shape.outputs * (width + shape.further);
        2 * block.shapes().iter().map(of).sum::<usize>() as u64
    }

    /// The error where matrices are not those of its streams.
    pub(super) fn check(&self, inputs: &[DeviceInput<'_>], outputs: &[&DeviceMatrix]) -> Result<()> {
        let count = self.shapes.len();
        ensure(inputs.len() == count && outputs.len() == count, || {
            let (inputs, outputs) = (inputs.len(), outputs.len());
            format!("{inputs} inputs and {outputs} outputs were given for {count} streams of the block")
        })?;
        for ((stream, input), out) in self.shapes.iter().zip(inputs).zip(outputs) {
            let tokens = stream.tokens.len();
            shape("x", &input.x.shape(), &[tokens, stream.inputs])?;
            shape("out", &out.shape(), &[tokens, stream.outputs])?;
            match input.further {
                Some(further) => shape("further", &further.shape(), &[tokens, stream.further])?,
                None => ensure(stream.further == 0, || {
                    let further = stream.further;
                    format!("tokens {:?} came without further inputs, the block has {further} of them", stream.tokens)
                })?,
            }
        }
        Ok(())
    }

    /// Sizes of its streams.
    #[must_use]
    pub fn shapes(&self) -> &[StreamShape] {
        &self.shapes
    }

    /// The type of its weights, and of the tensors it works on.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }
}

impl DeviceStream {
    fn new(stream: &Stream, own: &TokenStream, shape: &StreamShape, width: usize, element: Element) -> Result<Self> {
        let norm = |norm: &Option<Norm>| {
            norm.as_ref().map(|norm| Ok((floats(stream, norm.weight.as_ref())?, norm.eps))).transpose()
        };
        let columns = width + shape.further;
        let memory = numbers(stream, own.out.weight.as_ref(), element)?;
        let matrix = |columns_of| {
            let size = [1, shape.outputs, columns_of];
            MatrixView::strided(&memory, 0, size, [shape.outputs * columns, columns], element)
        };
        Ok(DeviceStream {
            q: DeviceLinear::new(stream, &own.q, element)?,
            k: DeviceLinear::new(stream, &own.k, element)?,
            v: DeviceLinear::new(stream, &own.v, element)?,
            out: DeviceLinear { weight: matrix(columns)?, bias: bias(stream, &own.out)? },
            out_heads: matrix(width)?,
            q_norm: norm(&own.q_norm)?,
            k_norm: norm(&own.k_norm)?,
        })
    }
}

impl DeviceLinear {
    fn new(stream: &Stream, linear: &Linear, element: Element) -> Result<Self> {
        let shape = linear.weight.shape();
        let memory = numbers(stream, linear.weight.as_ref(), element)?;
        let weight = MatrixView::of(&memory, [1, shape[0], shape[1]], element)?;
        Ok(DeviceLinear { weight, bias: bias(stream, linear)? })
    }
}

fn bias(stream: &Stream, linear: &Linear) -> Result<Option<FloatView>> {
    linear.bias.as_ref().map(Tensor::as_ref).map(|bias| floats(stream, bias)).transpose()
}

fn floats(stream: &Stream, tensor: TensorRef<'_>) -> Result<FloatView> {
    Ok(FloatView::of(&Arc::new(Buffer::of(stream, &tensor.to_f32())?)))
}

/// The numbers of a tensor in a type of 16 bits.
pub(super) fn rounded(tensor: TensorRef<'_>, element: Element) -> Vec<u16> {
    match (tensor.values(), element) {
        (Values::F16(values), Element::F16) => values.iter().map(|value| value.to_bits()).collect(),
        (Values::Bf16(values), Element::Bf16) => values.iter().map(|value| value.to_bits()).collect(),
        (_, Element::F16) => tensor.to_f32().into_iter().map(|value| f16::from_f32(value).to_bits()).collect(),
        (_, Element::Bf16) => tensor.to_f32().into_iter().map(|value| bf16::from_f32(value).to_bits()).collect(),
    }
}

fn numbers(stream: &Stream, tensor: TensorRef<'_>, element: Element) -> Result<Arc<Buffer>> {
    Buffer::of(stream, &rounded(tensor, element)).map(Arc::new)
}

/// A matrix `[rows, columns]` of 16-bit numbers in a GPU's memory: the tokens of a stream, or its output.
#[derive(Clone, Debug)]
pub struct DeviceMatrix {
    pub(super) memory: Arc<Buffer>,
    shape: [usize; 2],
    element: Element,
}

impl DeviceMatrix {
    /// A matrix that holds anything.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda) when there is not enough memory.
    pub fn new(stream: &Stream, shape: [usize; 2], element: Element) -> Result<Self> {
        let memory = Arc::new(Buffer::new(stream.device(), shape[0] * shape[1] * 2)?);
        Ok(DeviceMatrix { memory, shape, element })
    }

    /// A matrix in a buffer, row-major from its beginning on.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when the buffer is smaller.
    pub fn of(memory: Arc<Buffer>, shape: [usize; 2], element: Element) -> Result<Self> {
        MatrixView::of(&memory, [1, shape[0], shape[1]], element)?;
        Ok(DeviceMatrix { memory, shape, element })
    }

    /// Copies a tensor of its shape to it, and waits for that.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when the shape is another; [`Error::Cuda`](crate::error::Error::Cuda) when the driver
    /// refuses.
    pub fn upload(&self, stream: &Stream, tensor: TensorRef<'_>) -> Result<()> {
        shape("the tensor", tensor.shape(), &self.shape)?;
        self.memory.upload(stream, 0, &rounded(tensor, self.element))
    }

    /// Its numbers, once the stream gets there.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda) with what went wrong in anything before.
    pub fn download(&self, stream: &Stream) -> Result<Tensor> {
        let mut bits = vec![0_u16; self.shape[0] * self.shape[1]];
        self.memory.download(stream, 0, &mut bits)?;
        tensor_of(&self.shape, &bits, self.element)
    }

    /// Its rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub(super) fn view(&self) -> Result<MatrixView> {
        MatrixView::of(&self.memory, [1, self.shape[0], self.shape[1]], self.element)
    }
}

/// A tensor of bits of a type.
pub(super) fn tensor_of(shape: &[usize], bits: &[u16], element: Element) -> Result<Tensor> {
    match element {
        Element::F16 => Tensor::from_f16(shape, bits.iter().map(|bits| f16::from_bits(*bits)).collect()),
        Element::Bf16 => Tensor::from_bf16(shape, bits.iter().map(|bits| bf16::from_bits(*bits)).collect()),
    }
}
