//! Conversion to single precision and the layouts of the inner loops.
//!
//! A right factor is cut into panels of 16 columns (see [`microkernel`](super::microkernel)): `pack_rows` makes
//! columns of the rows of a matrix (keys, weights in the layout of a PyTorch `Linear`), `pack_columns` keeps them
//! (values). Missing columns of the last panel are zero.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::microkernel::{Kernels, PANEL, Rows};
use crate::tensor::{Element, Values};

/// Rows are transposed this many values at a time, so that 16 of them stay in the first cache.
const SLAB: usize = 256;

/// Most columns of `pack_columns`: the largest head.
const BLOCK: usize = 256;

/// `len` values from `start` on, as single precision.
pub(super) fn convert(values: Values<'_>, start: usize, target: &mut [f32]) {
    let range = start..start + target.len();
    match values {
        Values::F32(values) => target.copy_from_slice(&values[range]),
        Values::F16(values) => values[range].convert_to_f32_slice(target),
        Values::Bf16(values) => values[range].convert_to_f32_slice(target),
    }
}

/// As [`convert`], times a factor; one pass over single precision.
pub(super) fn convert_scaled(values: Values<'_>, start: usize, factor: f32, target: &mut [f32]) {
    if let Values::F32(values) = values {
        let values = &values[start..start + target.len()];
        target.iter_mut().zip(values).for_each(|(target, value)| *target = value * factor);
    } else {
        convert(values, start, target);
        target.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Element types whose slices are written from single precision.
pub(super) trait Store: Element {
    /// Rounds `source` into `target`, to nearest even.
    fn store(source: &[f32], target: &mut [Self]);

    /// As `store`, times a factor; scales `source` where a pass in place is needed.
    fn store_scaled(source: &mut [f32], factor: f32, target: &mut [Self]) {
        source.iter_mut().for_each(|value| *value *= factor);
        Self::store(source, target);
    }
}

impl Store for f32 {
    fn store(source: &[f32], target: &mut [f32]) {
        target.copy_from_slice(source);
    }

    fn store_scaled(source: &mut [f32], factor: f32, target: &mut [f32]) {
        target.iter_mut().zip(source).for_each(|(target, value)| *target = *value * factor);
    }
}

impl Store for f16 {
    fn store(source: &[f32], target: &mut [f16]) {
        target.convert_from_f32_slice(source);
    }
}

impl Store for bf16 {
    fn store(source: &[f32], target: &mut [bf16]) {
        target.convert_from_f32_slice(source);
    }
}

/// A matrix inside a buffer.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    /// The buffer.
    pub(super) values: Values<'a>,
    /// Index of the first value.
    pub(super) start: usize,
    /// Values from one row to the next.
    pub(super) stride: usize,
    /// Number of rows.
    pub(super) rows: usize,
    /// Number of columns.
    pub(super) columns: usize,
}

/// Values that `pack_rows` writes.
pub(super) fn packed_rows(rows: usize, columns: usize) -> usize {
    rows.next_multiple_of(PANEL) * columns
}

/// Writes the rows of a matrix as columns of panels: `[ceil(rows / 16)][columns][16]`.
pub(super) fn pack_rows(kernels: Kernels, matrix: Matrix<'_>, target: &mut [f32]) {
    let mut slab = [0.0; PANEL * SLAB];
    let panels = target.chunks_exact_mut((matrix.columns * PANEL).max(1));
    for (panel, target) in panels.enumerate().take(matrix.rows.div_ceil(PANEL)) {
        let first = panel * PANEL;
        let rows = PANEL.min(matrix.rows - first);
        for column in (0..matrix.columns).step_by(SLAB) {
            let depth = SLAB.min(matrix.columns - column);
            let start = matrix.start + first * matrix.stride + column;
            let target = &mut target[column * PANEL..(column + depth) * PANEL];
            if let (Values::F32(values), PANEL) = (matrix.values, rows) {
                kernels.transpose(Rows { values: &values[start..], stride: matrix.stride }, depth, target);
                continue;
            }
            for row in 0..rows {
                convert(matrix.values, start + row * matrix.stride, &mut slab[row * SLAB..row * SLAB + depth]);
            }
            slab[rows * SLAB..].fill(0.0);
            kernels.transpose(Rows { values: &slab, stride: SLAB }, depth, target);
        }
    }
}

/// Values that `pack_columns` writes.
pub(super) fn packed_columns(rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(PANEL)
}

/// Writes a matrix as panels of its columns: `[ceil(columns / 16)][rows][16]`.
pub(super) fn pack_columns(matrix: Matrix<'_>, target: &mut [f32]) {
    let mut line = [0.0; BLOCK];
    for row in 0..matrix.rows {
        let start = matrix.start + row * matrix.stride;
        let values = match matrix.values {
            Values::F32(values) => &values[start..start + matrix.columns],
            values => {
                convert(values, start, &mut line[..matrix.columns]);
                &line[..matrix.columns]
            }
        };
        let (whole, rest) = values.as_chunks::<PANEL>();
        let mut at = row * PANEL;
        for chunk in whole {
            target[at..at + PANEL].copy_from_slice(chunk);
            at += matrix.rows * PANEL;
        }
        if !rest.is_empty() {
            target[at..at + rest.len()].copy_from_slice(rest);
            target[at + rest.len()..at + PANEL].fill(0.0);
        }
    }
}
