//! Statistics of the tokens of blocks, tokens themselves, and dot products of them.
//!
//! Loops run over channels or kv-blocks, whose sums are independent; tokens and channels are added in their order, so
//! that each sum has the bits of the reference.

use crate::error::Result;
use crate::ir::{Reduction, Side, Source, Statistic};
use crate::reference::SelectorInput;

/// `[blocks, head_dim]` means.
pub(super) fn pool(input: &SelectorInput<'_>, statistic: Statistic, source: Source) -> Result<Vec<f32>> {
    if matches!(statistic, Statistic::Min | Statistic::Max) {
        return extremes(input, statistic, source);
    }
    let (values, offsets) = input.source(source);
    let dim = input.head_dim;
    let blocks = offsets.len() - 1;
    let mut means = vec![0.0_f32; blocks * dim];
    for (block, sums) in means.chunks_exact_mut(dim).enumerate() {
        let tokens = &values[offsets[block] as usize * dim..offsets[block + 1] as usize * dim];
        add_tokens(sums, tokens);
    }
    let centre = (statistic == Statistic::CentredMean).then(|| {
        let mut centre = vec![0.0_f32; dim];
        add_tokens(&mut centre, &means);
        let tokens = offsets[blocks] as f32;
        centre.iter_mut().for_each(|sum| *sum /= tokens);
        centre
    });
    for (block, sums) in means.chunks_exact_mut(dim).enumerate() {
        let tokens = (offsets[block + 1] - offsets[block]) as f32;
        sums.iter_mut().for_each(|sum| *sum /= tokens);
    }
    finite(input, source, &means, dim)?;
    if let Some(centre) = centre {
        for block in means.chunks_exact_mut(dim) {
            for (value, centre) in block.iter_mut().zip(&centre) {
                *value -= centre;
            }
        }
        finite(input, source, &means, dim)?;
    }
    Ok(means)
}

/// `[blocks, head_dim]` smallest or largest of the tokens, channel by channel.
fn extremes(input: &SelectorInput<'_>, statistic: Statistic, source: Source) -> Result<Vec<f32>> {
    let (values, offsets) = input.source(source);
    let dim = input.head_dim;
    let mut extremes = Vec::with_capacity((offsets.len() - 1) * dim);
    for (block, range) in offsets.windows(2).enumerate() {
        let tokens = &values[range[0] as usize * dim..range[1] as usize * dim];
        // An extreme hides what the sum shows.
        let mut sums = vec![0.0_f32; dim];
        add_tokens(&mut sums, tokens);
        if !sums.iter().all(|sum| sum.is_finite()) {
            return Err(input.not_finite(source, block));
        }
        let start = match statistic {
            Statistic::Min => f32::INFINITY,
            _ => f32::NEG_INFINITY,
        };
        let mut best = vec![start; dim];
        for token in tokens.chunks_exact(dim) {
            for (best, &value) in best.iter_mut().zip(token) {
                let better = if statistic == Statistic::Min { value < *best } else { value > *best };
                *best = if better { value } else { *best };
            }
        }
        // Zero comes out positive.
        extremes.extend(best.iter().map(|value| value + 0.0));
    }
    Ok(extremes)
}

/// `[tokens, head_dim]`: the tokens themselves.
pub(super) fn each(input: &SelectorInput<'_>, source: Source, tokens: &[u32]) -> Result<Vec<f32>> {
    let (values, dim) = (input.source(source).0, input.head_dim);
    let mut vectors = Vec::with_capacity(tokens.len() * dim);
    for &token in tokens {
        let vector = &values[token as usize * dim..][..dim];
        if !vector.iter().fold(true, |fine, value| fine & value.is_finite()) {
            return Err(input.not_finite(source, input.block_of(source.side(), token as usize)));
        }
        vectors.extend_from_slice(vector);
    }
    Ok(vectors)
}

/// Adds rows of `sums.len()` values to `sums`, in order. A chunk of channels stays in registers over all rows.
fn add_tokens(sums: &mut [f32], rows: &[f32]) {
    const WIDTH: usize = 32;
    let dim = sums.len();
    let mut first = 0;
    while first + WIDTH <= dim {
        let mut chunk = [0.0_f32; WIDTH];
        chunk.copy_from_slice(&sums[first..first + WIDTH]);
        for row in rows.chunks_exact(dim) {
            for (sum, value) in chunk.iter_mut().zip(&row[first..first + WIDTH]) {
                *sum += value;
            }
        }
        sums[first..first + WIDTH].copy_from_slice(&chunk);
        first += WIDTH;
    }
    for row in rows.chunks_exact(dim) {
        for (sum, value) in sums[first..].iter_mut().zip(&row[first..]) {
            *sum += value;
        }
    }
}

fn finite(input: &SelectorInput<'_>, source: Source, values: &[f32], width: usize) -> Result<()> {
    // Without an early exit the loop is vector code; the search runs only where something was found.
    if values.iter().fold(true, |fine, value| fine & value.is_finite()) {
        return Ok(());
    }
    let position = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    Err(input.not_finite(source, position / width))
}

/// Mean cosine of each block.
pub(super) fn self_similarity(input: &SelectorInput<'_>, side: Side) -> Result<Vec<f32>> {
    let source = side.source();
    let (values, offsets) = input.source(source);
    let dim = input.head_dim;
    let mut result = Vec::with_capacity(offsets.len() - 1);
    let mut sums = vec![0.0_f32; dim];
    for range in offsets.windows(2) {
        sums.fill(0.0);
        let tokens = &values[range[0] as usize * dim..range[1] as usize * dim];
        for group in tokens.chunks(GROUP * dim) {
            for (token, norm) in group.chunks_exact(dim).zip(norms(group, dim)) {
                if norm != 0.0 {
                    sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += x / norm);
                }
            }
        }
        let count = (range[1] - range[0]) as f32;
        result.push(sums.iter().fold(0.0_f32, |norm, sum| norm + (sum / count) * (sum / count)));
    }
    finite(input, source, &result, 1)?;
    Ok(result)
}

/// Tokens whose norms are computed at once: their sums over channels are independent chains.
const GROUP: usize = 8;

fn norms(tokens: &[f32], dim: usize) -> [f32; GROUP] {
    let mut sums = [0.0_f32; GROUP];
    if tokens.len() == GROUP * dim {
        for channel in 0..dim {
            for (token, sum) in sums.iter_mut().enumerate() {
                let x = tokens[token * dim + channel];
                *sum += x * x;
            }
        }
    } else {
        for (token, sum) in tokens.chunks_exact(dim).zip(&mut sums) {
            *sum = token.iter().fold(0.0, |sum, x| sum + x * x);
        }
    }
    sums.map(f32::sqrt)
}

/// `[q_blocks, kv_blocks]` sums of attention between groups of `stride` tokens, see [`crate::ir::Op::AntiDiagonal`].
pub(super) fn anti_diagonal(input: &SelectorInput<'_>, stride: usize) -> Result<Vec<f32>> {
    let dim = input.head_dim;
    let width = stride * dim;
    // Groups as rows: keys in their order, queries in the reverse one; what the last group lacks is zero.
    let padded = |values: &[f32]| {
        let mut rows = values.to_vec();
        rows.resize(values.len().next_multiple_of(width), 0.0);
        rows
    };
    let mut q = padded(&input.tensors.q);
    for group in q.chunks_exact_mut(width) {
        for phase in 0..stride / 2 {
            let (head, tail) = group.split_at_mut((stride - 1 - phase) * dim);
            head[phase * dim..][..dim].swap_with_slice(&mut tail[..dim]);
        }
    }
    let k = padded(&input.tensors.k);
    let mut scores = dot(&q, &k, width);
    let (root, stride_real) = ((dim as f32).sqrt(), stride as f32);
    scores.iter_mut().for_each(|score| *score = *score / root / stride_real);
    let groups = k.len() / width;
    let shares = super::lanes::softmax_rows(&scores, groups);
    if !shares.iter().fold(true, |fine, share| fine & share.is_finite()) {
        let group = shares.iter().position(|share| !share.is_finite()).unwrap_or(0) / groups.max(1);
        return Err(input.not_finite(Source::Query, input.block_of(Side::Query, group * stride)));
    }
    // The groups that begin in each kv-block are next to each other.
    let starts = |side: Side, count: usize| -> Vec<usize> {
        let offsets = input.offsets(side);
        offsets.iter().map(|&offset| (offset as usize).div_ceil(stride).min(count)).collect()
    };
    let (q_starts, k_starts) = (starts(Side::Query, q.len() / width), starts(Side::Key, groups));
    let mut sums = Vec::with_capacity((q_starts.len() - 1) * (k_starts.len() - 1));
    for rows in q_starts.windows(2) {
        for columns in k_starts.windows(2) {
            let lines = (rows[0]..rows[1]).map(|row| &shares[row * groups..][columns[0]..columns[1]]);
            sums.push(lines.fold(0.0_f32, |sum, line| sum + super::lanes::sum(line)));
        }
    }
    Ok(sums)
}

/// The channels of each vector as one number.
pub(super) fn over_channels(how: Reduction, vectors: &[f32], dim: usize) -> Vec<f32> {
    let sum = |vector: &[f32]| vector.iter().fold(0.0_f32, |sum, x| sum + x);
    let of = |vector: &[f32]| match how {
        Reduction::Sum => sum(vector),
        Reduction::Mean => sum(vector) / dim as f32,
        Reduction::Max => super::lanes::largest(vector),
        Reduction::Min => crate::reference::math::smallest(vector.iter().copied()),
    };
    vectors.chunks_exact(dim).map(of).collect()
}

/// Columns of [`dot`] that are summed at a time, and rows. Their sums fit into the registers of every x86-64.
const COLUMNS: usize = 16;
const ROWS: usize = 2;

/// `[q_blocks, kv_blocks]` dot products of rows of `q` and of `k`, `dim` channels each.
pub(super) fn dot(q: &[f32], k: &[f32], dim: usize) -> Vec<f32> {
    let columns = k.len() / dim;
    let mut result = vec![0.0_f32; q.len() / dim * columns];
    // Groups of kv-blocks with their channels side by side; the last group is padded with zeros.
    let mut group = vec![[0.0_f32; COLUMNS]; dim];
    for first in (0..columns).step_by(COLUMNS) {
        let width = COLUMNS.min(columns - first);
        for (channel, group) in group.iter_mut().enumerate() {
            let value = |column| if column < width { k[(first + column) * dim + channel] } else { 0.0 };
            *group = std::array::from_fn(value);
        }
        for (q, result) in q.chunks(ROWS * dim).zip(result.chunks_mut(ROWS * columns)) {
            if q.len() == ROWS * dim {
                let sums = products::<ROWS>(q, &group);
                sums.iter().zip(result.chunks_exact_mut(columns)).for_each(|(sums, line)| {
                    line[first..first + width].copy_from_slice(&sums[..width]);
                });
            } else {
                let [sums] = products::<1>(q, &group);
                result[first..first + width].copy_from_slice(&sums[..width]);
            }
        }
    }
    result
}

/// Products of some rows with a group; each sum takes its channels in order, whatever stands beside it.
fn products<const COUNT: usize>(q: &[f32], group: &[[f32; COLUMNS]]) -> [[f32; COLUMNS]; COUNT] {
    let rows: [&[f32]; COUNT] = std::array::from_fn(|row| &q[row * group.len()..][..group.len()]);
    let mut sums = [[0.0_f32; COLUMNS]; COUNT];
    for (channel, values) in group.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let x = row[channel];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += x * value);
        }
    }
    sums
}
