//! Tensors in the GPU's memory, as launches take them.

use std::ops::Range;
use std::sync::Arc;

use super::Element;
use super::params;
use crate::cuda::Buffer;
use crate::cuda::tensor_map::Layout;
use crate::error::{Error, Result};

/// A tensor `[batch, heads, tokens, head_dim]` in the GPU's memory, its rows of `head_dim` in one piece.
#[derive(Clone, Debug)]
pub struct TensorView {
    pub(super) address: u64,
    pub(super) shape: [usize; 4],
    /// From one batch entry, head and token to the next, in elements.
    pub(super) strides: [usize; 3],
    pub(super) element: Element,
    /// Keeps the memory, where it is ours.
    _memory: Option<Arc<Buffer>>,
}

/// Single-precision numbers in the GPU's memory.
#[derive(Clone, Debug)]
pub struct FloatView {
    pub(super) address: u64,
    pub(super) len: usize,
    _memory: Option<Arc<Buffer>>,
}

/// A matrix `[rows, columns]`, or one for each batch entry, in the GPU's memory, its rows in one piece.
#[derive(Clone, Debug)]
pub struct MatrixView(pub(super) TensorView);

impl TensorView {
    /// A tensor in row-major order at the beginning of a buffer.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller.
    pub fn of(memory: &Arc<Buffer>, shape: [usize; 4], element: Element) -> Result<Self> {
        let [_, heads, tokens, dim] = shape;
        let head = tokens.saturating_mul(dim);
        Self::strided(memory, shape, [heads.saturating_mul(head), head, dim], element)
    }

    /// As [`TensorView::of`], with other strides: from one batch entry, head and token to the next, in elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller.
    pub fn strided(memory: &Arc<Buffer>, shape: [usize; 4], strides: [usize; 3], element: Element) -> Result<Self> {
        let view = TensorView { address: memory.address(), shape, strides, element, _memory: Some(Arc::clone(memory)) };
        if view.bytes().is_some_and(|bytes| bytes <= memory.bytes()) {
            return Ok(view);
        }
        Err(Error::Shape(format!("a tensor {shape:?} does not fit a buffer of {} bytes", memory.bytes())))
    }

    /// A tensor in someone else's memory. Strides count elements: from one batch entry, head and token to the next.
    ///
    /// # Safety
    /// The memory is the device's and holds all that shape and strides reach, and outlives what is made of it.
    #[must_use]
    pub unsafe fn from_raw(address: u64, shape: [usize; 4], strides: [usize; 3], element: Element) -> Self {
        TensorView { address, shape, strides, element, _memory: None }
    }

    /// Its tokens of a range.
    pub(super) fn of_tokens(&self, tokens: &Range<usize>) -> Self {
        let [batch, heads, _, dim] = self.shape;
        let address = self.address + 2 * (tokens.start * self.strides[2]) as u64;
        TensorView { address, shape: [batch, heads, tokens.len(), dim], ..self.clone() }
    }

    /// Bytes from the first to behind the last number.
    fn bytes(&self) -> Option<usize> {
        let [batch, heads, tokens, dim] = self.shape;
        let mut last = dim;
        for (size, stride) in [batch, heads, tokens].into_iter().zip(self.strides) {
            last = last.checked_add(size.checked_sub(1)?.checked_mul(stride)?)?;
        }
        last.checked_mul(2)
    }

    pub(super) fn check(&self, name: &str, element: Element) -> Result<()> {
        let TensorView { address, shape, strides, .. } = self;
        let wrong = |what: String| Err(Error::Shape(format!("`{name}` {what}")));
        if self.element != element {
            return wrong(format!("holds {:?}, wanted {element:?} as in the first tensor", self.element));
        }
        if shape.contains(&0) || shape.iter().any(|&size| u32::try_from(size).is_err()) {
            return wrong(format!("has the shape {shape:?}: sizes are 1 to 4,294,967,295"));
        }
        if !address.is_multiple_of(16) || strides.iter().any(|stride| !stride.is_multiple_of(8)) {
            return wrong(format!("lies at {address:#x} with the strides {strides:?}: wanted multiples of 16 bytes"));
        }
        if self.bytes().is_none() {
            return wrong(format!("has the shape {shape:?} and the strides {strides:?}, which no memory holds"));
        }
        Ok(())
    }

    pub(super) fn params(&self) -> params::Tensor4 {
        let [batch_stride, head_stride, token_stride] = self.strides.map(|stride| stride as u64);
        params::Tensor4 { data: self.address, batch_stride, head_stride, token_stride }
    }

    /// A tensor of one batch entry that selectors read.
    pub(super) fn check_tokens(&self, name: &str, [heads, tokens, dim]: [usize; 3]) -> Result<()> {
        self.check(name, self.element)?;
        let [batch, found_heads, found_tokens, found_dim] = self.shape;
        // Heads may be padded with channels that nobody reads.
        if (batch, found_heads, found_tokens) == (1, heads, tokens) && found_dim >= dim {
            return Ok(());
        }
        let found = self.shape;
        Err(Error::Shape(format!("`{name}` has the shape {found:?}, wanted {:?}", [1, heads, tokens, dim])))
    }

    /// Its address, and elements from one head and from one token to the next.
    pub(super) fn place(&self) -> (u64, u64, u64) {
        let [_, head_stride, token_stride] = self.strides.map(|stride| stride as u64);
        (self.address, head_stride, token_stride)
    }

    /// The type of its numbers.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// The layout whose boxes are one panel of 64 columns and `rows` tokens.
    pub(super) fn layout(&self, rows: u32) -> Layout {
        let [batch, heads, tokens, dim] = self.shape.map(|size| size as u64);
        let [batch_stride, head_stride, token_stride] = self.strides.map(|stride| 2 * stride as u64);
        // Of an axis with one index any stride will do, but zero.
        let stride = |size: u64, stride: u64| if size == 1 { 2 * dim } else { stride };
        Layout {
            element: self.element,
            address: self.address,
            sizes: [dim, tokens, heads, batch],
            strides: [stride(tokens, token_stride), stride(heads, head_stride), stride(batch, batch_stride)],
            copied: [64, rows, 1, 1],
        }
    }
}

impl FloatView {
    /// All numbers of a buffer.
    #[must_use]
    pub fn of(memory: &Arc<Buffer>) -> Self {
        FloatView { address: memory.address(), len: memory.bytes() / 4, _memory: Some(Arc::clone(memory)) }
    }

    /// Numbers in someone else's memory.
    ///
    /// # Safety
    /// The memory is the device's, holds `len` numbers, and outlives what is made of it.
    #[must_use]
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        FloatView { address, len, _memory: None }
    }

    /// The same bytes as a matrix of twice as many numbers of 16 bits.
    pub(super) fn as_halves(&self, [rows, columns]: [usize; 2]) -> TensorView {
        let (shape, strides) = ([1, 1, rows, columns], [rows * columns, rows * columns, columns]);
        TensorView { address: self.address, shape, strides, element: Element::Bf16, _memory: self._memory.clone() }
    }

    pub(super) fn check(&self, name: &str, len: usize) -> Result<()> {
        if self.len >= len && self.address.is_multiple_of(16) {
            return Ok(());
        }
        let (found, address) = (self.len, self.address);
        Err(Error::Shape(format!(
            "`{name}` has {found} numbers at {address:#x}, wanted {len} at a multiple of 16 bytes"
        )))
    }
}

impl MatrixView {
    /// Matrices `[batch, rows, columns]` in row-major order at the beginning of a buffer.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller.
    pub fn of(memory: &Arc<Buffer>, [batch, rows, columns]: [usize; 3], element: Element) -> Result<Self> {
        TensorView::of(memory, [batch, 1, rows, columns], element).map(MatrixView)
    }

    /// As [`MatrixView::of`], from the number `first` of the buffer on, and with other strides: from one batch entry and row to the next,
    /// in elements.
    ///
    /// # Errors
    /// [`Error::Shape`] when the buffer is smaller.
    pub fn strided(
        memory: &Arc<Buffer>,
        first: usize,
        [batch, rows, columns]: [usize; 3],
        [batch_stride, row_stride]: [usize; 2],
        element: Element,
    ) -> Result<Self> {
        let strides = [batch_stride, batch_stride, row_stride];
        let mut view = TensorView { address: 0, shape: [batch, 1, rows, columns], strides, element, _memory: None };
        let end = view.bytes().and_then(|bytes| bytes.checked_add(first.checked_mul(2)?));
        if end.is_none_or(|end| end > memory.bytes()) {
            return Err(Error::Shape(format!(
                "a matrix {:?} from number {first} on does not fit a buffer of {} bytes",
                [batch, rows, columns],
                memory.bytes()
            )));
        }
        view.address = memory.address() + 2 * first as u64;
        view._memory = Some(Arc::clone(memory));
        Ok(MatrixView(view))
    }

    /// Matrices in someone else's memory. Strides count elements: from one batch entry and row to the next.
    ///
    /// # Safety
    /// As [`TensorView::from_raw`].
    #[must_use]
    pub unsafe fn from_raw(
        address: u64,
        [batch, rows, columns]: [usize; 3],
        [batch_stride, row_stride]: [usize; 2],
        element: Element,
    ) -> Self {
        let strides = [batch_stride, batch_stride, row_stride];
        // SAFETY: the caller's.
        MatrixView(unsafe { TensorView::from_raw(address, [batch, 1, rows, columns], strides, element) })
    }

    /// Batch entries, rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        let [batch, _, rows, columns] = self.0.shape;
        [batch, rows, columns]
    }
}
