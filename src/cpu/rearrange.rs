//! Rows in another order: what stands around kernels whose heads see the tokens reordered.
//!
//! An order is `order[new] = old`; without one rows stay where they are.

use rayon::prelude::*;

use super::forecast::weighted_sum;
use super::pack::{Store, convert};
use super::{MAX_ORDER, Tiles};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorMut, TensorRef, Values, ValuesMut};

/// One head of `[heads, tokens, head_dim]` in single precision, reordered.
pub(crate) fn head_to_f32(tensor: TensorRef<'_>, head: usize, order: Option<&[u32]>) -> Vec<f32> {
    let (tokens, dim) = (tensor.shape()[1], tensor.shape()[2]);
    let mut values = vec![0.0; tokens * dim];
    let start = head * tokens * dim;
    match order {
        None => convert(tensor.values(), start, &mut values),
        Some(order) => values
            .chunks_exact_mut(dim.max(1))
            .zip(order)
            .for_each(|(row, &old)| convert(tensor.values(), start + old as usize * dim, row)),
    }
    values
}

/// Some heads of `[heads, tokens, head_dim]`, reordered: row `new` of the target is row `order[new]` of the source.
///
/// # Shapes
/// `target` is `[heads.len(), tokens, head_dim]`, of the source's type.
pub(crate) fn gather_heads(
    source: TensorRef<'_>,
    heads: &[u32],
    order: Option<&[u32]>,
    mut target: TensorMut<'_>,
) -> Result<()> {
    let size = [source.shape()[1], source.shape()[2]];
    match (source.values(), target.values()) {
        (Values::F32(source), ValuesMut::F32(target)) => gather(source, size, heads, order, target),
        (Values::F16(source), ValuesMut::F16(target)) => gather(source, size, heads, order, target),
        (Values::Bf16(source), ValuesMut::Bf16(target)) => gather(source, size, heads, order, target),
        _ => return Err(Error::Shape("rows can only be reordered within one type".to_owned())),
    }
    Ok(())
}

/// As [`gather_heads`], to a tensor of its own.
pub(crate) fn gathered_heads(source: TensorRef<'_>, heads: &[u32], order: Option<&[u32]>) -> Result<Tensor> {
    let mut target = Tensor::zeros(&[heads.len(), source.shape()[1], source.shape()[2]], source.dtype());
    gather_heads(source, heads, order, target.as_mut())?;
    Ok(target)
}

fn gather<T: Store>(source: &[T], [tokens, dim]: [usize; 2], heads: &[u32], order: Option<&[u32]>, target: &mut [T]) {
    let head_len = (tokens * dim).max(1);
    target.par_chunks_mut(head_len).zip(heads).for_each(|(target, &head)| {
        let source = &source[head as usize * tokens * dim..][..tokens * dim];
        match order {
            None => target.copy_from_slice(source),
            Some(order) => target
                .chunks_exact_mut(dim.max(1))
                .zip(order)
                .for_each(|(row, &old)| row.copy_from_slice(&source[old as usize * dim..][..dim])),
        }
    });
}

/// The reverse of [`gather_heads`] for live tiles, of the tokens that `tiles` is about. Rows of cached tiles get the forecast of `terms`, tensors
/// `[heads, tokens, head_dim]` in the target's order; without terms they stay untouched.
///
/// # Shapes
/// `source` is `[heads.len(), tokens, head_dim]`, of the target's type; `tiles` has a row for each of `heads`.
pub(crate) fn scatter_heads(
    source: TensorRef<'_>,
    heads: &[u32],
    order: Option<&[u32]>,
    tiles: &Tiles<'_>,
    terms: &[(TensorRef<'_>, f32)],
    mut target: TensorMut<'_>,
) -> Result<()> {
    debug_assert!(terms.len() <= MAX_ORDER + 1);
    let size = [source.shape()[1], source.shape()[2]];
    let scatter = Scatter { size, heads, order, tiles, terms };
    match (source.values(), target.values()) {
        (Values::F32(source), ValuesMut::F32(target)) => scatter.run(source, target),
        (Values::F16(source), ValuesMut::F16(target)) => scatter.run(source, target),
        (Values::Bf16(source), ValuesMut::Bf16(target)) => scatter.run(source, target),
        _ => return Err(Error::Shape("rows can only be reordered within one type".to_owned())),
    }
    Ok(())
}

struct Scatter<'a> {
    size: [usize; 2],
    heads: &'a [u32],
    order: Option<&'a [u32]>,
    tiles: &'a Tiles<'a>,
    terms: &'a [(TensorRef<'a>, f32)],
}

impl Scatter<'_> {
    fn run<T: Store>(&self, source: &[T], target: &mut [T]) {
        let [tokens, dim] = self.size;
        let head_len = (tokens * dim).max(1);
        target.par_chunks_mut(head_len).enumerate().for_each(|(head, target)| {
            let Ok(position) = self.heads.binary_search(&(head as u32)) else { return };
            let source = &source[position * tokens * dim..][..tokens * dim];
            self.head(head, position, source, target);
        });
    }

    fn head<T: Store>(&self, head: usize, position: usize, source: &[T], target: &mut [T]) {
        let [tokens, dim] = self.size;
        for (block, range) in self.tiles.q_blocks.windows(2).enumerate() {
            let live = self.tiles.cache.get(position, block);
            if !live && self.terms.is_empty() {
                continue;
            }
            let within = &self.tiles.tokens;
            for new in within.start.max(range[0] as usize)..within.end.min(range[1] as usize) {
                let old = self.order.map_or(new, |order| order[new] as usize);
                let row = &mut target[old * dim..][..dim];
                if live {
                    row.copy_from_slice(&source[new * dim..][..dim]);
                } else {
                    weighted_sum(self.terms, (head * tokens + old) * dim, row);
                }
            }
        }
    }
}
