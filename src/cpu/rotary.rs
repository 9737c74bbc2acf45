//! What comes between the projection of queries or keys and attention: the RMS norm of each head, and the rotary embedding.
//!
//! Both are one pass over the rows of live tiles. A row is `x / sqrt(mean(x^2) + eps) * weight`, and then each pair of its channels turns by
//! the angle of its token: `(a, b)` becomes `(a cos - b sin, a sin + b cos)`.

use std::borrow::Cow;

use rayon::prelude::*;

use super::check;
use super::gemm::Tiles;
use crate::error::{Error, Result};
use crate::tensor::{Element, TensorMut, TensorRef, Values, ValuesMut};

/// Which channels of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Neighbours: `2 i` and `2 i + 1`.
    Interleaved,
    /// Those of the two halves: `i` and `i + head_dim / 2`.
    Halves,
}

/// The norm of a head's rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNorm<'a> {
    /// `[head_dim]`, any dtype.
    pub(crate) weight: TensorRef<'a>,
    /// What is added to the mean of squares, 0 or more.
    pub(crate) eps: f32,
}

/// The angle of every token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotary<'a> {
    /// Cosine and sine `[tokens, head_dim / 2, 2]`, any dtype; f32 is not copied.
    pub(crate) table: TensorRef<'a>,
    /// Which channels they are for.
    pub(crate) pairs: RotaryPairs,
}

/// Normalises and turns the rows of live tiles in place; others stay untouched. The rows of a tile are those of the tokens
/// `order[place]`, or of the places themselves without an order.
///
/// # Shapes
/// | tensor | shape | dtype |
/// |---|---|---|
/// | `heads` | `[heads, tokens, head_dim]` in the model's order | any |
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) when they do not fit, or heads of an odd size are to turn;
/// [`Error::Value`](crate::error::Error::Value) for an `eps` below 0. Nothing has been written then.
pub(crate) fn norm_and_turn(
    mut heads: TensorMut<'_>,
    tiles: &Tiles<'_>,
    order: Option<&[u32]>,
    norm: Option<HeadNorm<'_>>,
    rotary: Option<Rotary<'_>>,
) -> Result<()> {
    let [count, tokens, dim] = check::three("heads", heads.shape())?;
    tiles.check(count, tokens)?;
    check_norm(norm, dim)?;
    check_rotary(rotary, [tokens, dim])?;
    let weight = norm.map(|norm| (norm.weight.to_f32(), norm.eps));
    let table = rotary.map(|rotary| (values(rotary.table), rotary.pairs));
    if heads.shape().contains(&0) || (weight.is_none() && table.is_none()) {
        return Ok(());
    }
    let pass = Pass { size: [tokens, dim], tiles, order, weight, table };
    match heads.values() {
        ValuesMut::F32(values) => pass.run(values),
        ValuesMut::F16(values) => pass.run(values),
        ValuesMut::Bf16(values) => pass.run(values),
    }
    Ok(())
}

/// A norm must fit heads of this size.
pub(crate) fn check_norm(norm: Option<HeadNorm<'_>>, dim: usize) -> Result<()> {
    let Some(HeadNorm { weight, eps }) = norm else { return Ok(()) };
    check::shape("norm", weight.shape(), &[dim])?;
    if eps >= 0.0 { Ok(()) } else { Err(Error::Value(format!("a norm adds {eps} to its squares, wanted 0 or more"))) }
}

/// A table must fit the tokens and heads of this size.
pub(crate) fn check_rotary(rotary: Option<Rotary<'_>>, [tokens, dim]: [usize; 2]) -> Result<()> {
    let Some(Rotary { table, .. }) = rotary else { return Ok(()) };
    check::ensure(dim.is_multiple_of(2), || format!("heads of {dim} cannot turn: their channels are no pairs"))?;
    check::shape("rotary", table.shape(), &[tokens, dim / 2, 2])
}

/// Single-precision values, copied only where they are not.
fn values(tensor: TensorRef<'_>) -> Cow<'_, [f32]> {
    match tensor.values() {
        Values::F32(values) => Cow::Borrowed(values),
        _ => Cow::Owned(tensor.to_f32()),
    }
}

struct Pass<'a> {
    size: [usize; 2],
    tiles: &'a Tiles<'a>,
    order: Option<&'a [u32]>,
    weight: Option<(Vec<f32>, f32)>,
    table: Option<(Cow<'a, [f32]>, RotaryPairs)>,
}

impl Pass<'_> {
    fn run<T: Element>(&self, values: &mut [T]) {
        let [tokens, dim] = self.size;
        values.par_chunks_mut(tokens * dim).enumerate().for_each(|(head, values)| {
            let mut row = vec![0.0; dim];
            for (block, range) in self.tiles.q_blocks.windows(2).enumerate() {
                if !self.tiles.cache.get(head, block) {
                    continue;
                }
                let within = &self.tiles.tokens;
                for place in within.start.max(range[0] as usize)..within.end.min(range[1] as usize) {
                    let token = self.order.map_or(place, |order| order[place] as usize);
                    let target = &mut values[token * dim..][..dim];
                    row.iter_mut().zip(&*target).for_each(|(x, value)| *x = value.to_f32());
                    self.row(token, &mut row);
                    target.iter_mut().zip(&row).for_each(|(value, x)| *value = T::from_f32(*x));
                }
            }
        });
    }

    fn row(&self, token: usize, row: &mut [f32]) {
        if let Some((weight, eps)) = &self.weight {
            let squares: f32 = row.iter().map(|x| x * x).sum();
            let factor = 1.0 / (squares / row.len() as f32 + eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(x, weight)| *x *= factor * weight);
        }
        let Some((table, pairs)) = &self.table else { return };
        let half = row.len() / 2;
        for (pair, angle) in table[token * 2 * half..][..2 * half].chunks_exact(2).enumerate() {
            let (first, second) = match pairs {
                RotaryPairs::Interleaved => (2 * pair, 2 * pair + 1),
                RotaryPairs::Halves => (pair, pair + half),
            };
            let (a, b, cos, sin) = (row[first], row[second], angle[0], angle[1]);
            (row[first], row[second]) = (a * cos - b * sin, a * sin + b * cos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::BitMatrix;
    use crate::tensor::{Dtype, Tensor};

    #[test]
    fn rows_of_live_tiles_are_normalised_and_turn() {
        // Two heads of three tokens; the second block of head 1 is not live, and the order turns the tokens around.
        let values: Vec<f32> = (0..24).map(|value| value as f32 - 7.0).collect();
        let mut cache = BitMatrix::ones(2, 2);
        cache.set(1, 1, false);
        let tiles = Tiles::all(&cache, &[0, 2, 3]);
        let weight = [1.0, 0.5, 2.0, -1.0];
        let norm = HeadNorm { weight: TensorRef::from_f32(&[4], &weight).unwrap(), eps: 0.25 };
        let angles: Vec<f32> = (0..6).flat_map(|angle| [(angle as f32).cos(), (angle as f32).sin()]).collect();
        let table = TensorRef::from_f32(&[3, 2, 2], &angles).unwrap();
        for (pairs, [first, second]) in
            [(RotaryPairs::Interleaved, [[0, 1], [2, 3]]), (RotaryPairs::Halves, [[0, 2], [1, 3]])]
        {
            let mut heads = Tensor::from_f32(&[2, 3, 4], values.clone()).unwrap();
            let rotary = Rotary { table, pairs };
            norm_and_turn(heads.as_mut(), &tiles, Some(&[2, 1, 0]), Some(norm), Some(rotary)).unwrap();
            let found = heads.as_ref().to_f32();
            for row in 0..6 {
                let source = &values[row * 4..][..4];
                let found = &found[row * 4..][..4];
                if row == 3 {
                    assert_eq!(found, source, "head 1's last place is its first token");
                    continue;
                }
                let squares: f64 = source.iter().map(|x| f64::from(x * x)).sum::<f64>() / 4.0 + 0.25;
                let scaled = |i: usize| f64::from(source[i]) / squares.sqrt() * f64::from(weight[i]);
                for (pair, [a, b]) in [first, second].into_iter().enumerate() {
                    let angle = (row % 3 * 2 + pair) as f64;
                    let wanted = [
                        scaled(a) * angle.cos() - scaled(b) * angle.sin(),
                        scaled(a) * angle.sin() + scaled(b) * angle.cos(),
                    ];
                    for (at, wanted) in [a, b].into_iter().zip(wanted) {
                        assert!((f64::from(found[at]) - wanted).abs() < 1e-5, "{pairs:?}, row {row}: {found:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut heads = Tensor::zeros(&[1, 2, 3], Dtype::Bf16);
        let cache = BitMatrix::ones(1, 1);
        let tiles = Tiles::all(&cache, &[0, 2]);
        let table = Tensor::zeros(&[2, 1, 2], Dtype::F32);
        let rotary = Rotary { table: table.as_ref(), pairs: RotaryPairs::Halves };
        let text = norm_and_turn(heads.as_mut(), &tiles, None, None, Some(rotary)).unwrap_err().to_string();
        assert_eq!(text, "heads of 3 cannot turn: their channels are no pairs");
        let weight = Tensor::zeros(&[3], Dtype::F32);
        let norm = HeadNorm { weight: weight.as_ref(), eps: -1.0 };
        assert!(matches!(norm_and_turn(heads.as_mut(), &tiles, None, Some(norm), None), Err(Error::Value(_))));
    }
}
