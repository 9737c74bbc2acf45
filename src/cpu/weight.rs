//! Weights of projections: a view of a matrix in the layout of a PyTorch `Linear`, and its packed form.
//!
//! [`Weight`] is a view of some rows and columns of `[out, in]`, because blocks of single-stream transformers keep
//! the attention's projection and the feed-forward's in one matrix. [`PackedWeight`] holds it in single precision
//! in panels; a host that runs many steps packs once. Functions take either.

use super::check;
use super::microkernel::{Kernels, PANEL};
use super::pack::{Matrix, pack_rows};
use super::scratch::{Scratch, share};
use crate::error::Result;
use crate::tensor::TensorRef;

/// Some rows and columns of a weight `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    tensor: TensorRef<'a>,
    stride: usize,
    first_row: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
}

impl<'a> Weight<'a> {
    /// The whole of a weight.
    ///
    /// # Shapes
    /// `tensor`: `[out, in]`, any dtype.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when it has not two axes.
    pub fn new(tensor: TensorRef<'a>) -> Result<Self> {
        let [rows, columns] = check::two("weight", tensor.shape())?;
        Ok(Weight { tensor, stride: columns, first_row: 0, rows, first_column: 0, columns })
    }

    /// `count` of its rows from `first` on: a part of the output features.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when there are not so many.
    pub fn rows(self, first: usize, count: usize) -> Result<Self> {
        check::part("rows of the weight", first, count, self.rows)?;
        Ok(Weight { first_row: self.first_row + first, rows: count, ..self })
    }

    /// `count` of its columns from `first` on: a part of the input features.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when there are not so many.
    pub fn columns(self, first: usize, count: usize) -> Result<Self> {
        check::part("columns of the weight", first, count, self.columns)?;
        Ok(Weight { first_column: self.first_column + first, columns: count, ..self })
    }

    /// Packs it whole, for `linear` and GEMM-O.
    #[must_use]
    pub fn pack(self) -> PackedWeight {
        self.pack_some(self.rows.max(1), |_| true)
    }

    /// Packs it head by head, for GEMM-Q.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) when its rows are not whole heads.
    pub fn pack_heads(self, head_dim: usize) -> Result<PackedWeight> {
        check::ensure(head_dim > 0 && self.rows.is_multiple_of(head_dim), || {
            format!("the weight has {} rows, wanted a multiple of head_dim {head_dim}", self.rows)
        })?;
        Ok(self.pack_some(head_dim, |_| true))
    }

    fn pack_some(self, chunk: usize, needed: impl Fn(usize) -> bool) -> PackedWeight {
        let panels = chunk.div_ceil(PANEL);
        let chunks = self.rows / chunk;
        let panel = self.columns * PANEL;
        let mut values = Scratch::take(chunks * panels * panel);
        let tasks = values.values_mut().chunks_mut(panel.max(1)).enumerate();
        let tasks: Vec<_> = tasks.filter(|(index, _)| needed(index / panels)).collect();
        let kernels = Kernels::best();
        share(
            tasks,
            || (),
            |(), (index, target)| {
                let within = index % panels * PANEL;
                let row = self.first_row + index / panels * chunk + within;
                let start = row * self.stride + self.first_column;
                let rows = PANEL.min(chunk - within);
                let values = self.tensor.values();
                let matrix = Matrix { values, start, stride: self.stride, rows, columns: self.columns };
                pack_rows(kernels, matrix, target);
            },
        );
        PackedWeight { values, chunk, rows: self.rows, columns: self.columns }
    }
}

/// A weight in the layout of the inner loops, single precision.
pub struct PackedWeight {
    /// `[rows / chunk][ceil(chunk / 16)][columns][16]`.
    values: Scratch,
    chunk: usize,
    rows: usize,
    columns: usize,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight([{}, {}] by {})", self.rows, self.columns, self.chunk)
    }
}

impl PackedWeight {
    /// Output and input features.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Rows that are packed together.
    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }

    /// Columns.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Panels of a chunk, one after the other.
    pub(super) fn panels(&self, chunk: usize) -> impl Iterator<Item = &[f32]> {
        let (panels, panel) = (self.chunk.div_ceil(PANEL), self.columns * PANEL);
        (chunk * panels..(chunk + 1) * panels).map(move |index| &self.values.values()[index * panel..][..panel])
    }
}

/// A weight as it is, or packed before.
#[derive(Clone, Copy, Debug)]
pub enum AnyWeight<'a> {
    /// Packed at each call, as far as it is needed.
    Plain(Weight<'a>),
    /// Packed once.
    Packed(&'a PackedWeight),
}

impl<'a> From<Weight<'a>> for AnyWeight<'a> {
    fn from(weight: Weight<'a>) -> Self {
        AnyWeight::Plain(weight)
    }
}

impl<'a> From<&'a PackedWeight> for AnyWeight<'a> {
    fn from(weight: &'a PackedWeight) -> Self {
        AnyWeight::Packed(weight)
    }
}

/// A packed weight that lives at least as long as the call.
pub(super) enum Held<'a> {
    Own(PackedWeight),
    Host(&'a PackedWeight),
}

impl std::ops::Deref for Held<'_> {
    type Target = PackedWeight;

    fn deref(&self) -> &PackedWeight {
        match self {
            Held::Own(weight) => weight,
            Held::Host(weight) => weight,
        }
    }
}

impl<'a> AnyWeight<'a> {
    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape()[0]
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            AnyWeight::Plain(weight) => [weight.rows, weight.columns],
            AnyWeight::Packed(weight) => weight.shape(),
        }
    }

    /// The weight in chunks of rows; those not `needed` may hold anything.
    pub(super) fn packed(self, chunk: usize, needed: impl Fn(usize) -> bool) -> Result<Held<'a>> {
        let chunk = chunk.max(1);
        match self {
            AnyWeight::Plain(weight) => Ok(Held::Own(weight.pack_some(chunk, needed))),
            AnyWeight::Packed(weight) => {
                check::ensure(weight.chunk == chunk, || {
                    format!("the weight was packed by {} rows, wanted {chunk}", weight.chunk)
                })?;
                Ok(Held::Host(weight))
            }
        }
    }
}
