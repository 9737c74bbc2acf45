//! Clusters of queries and of keys, found by k-means for each head.
//!
//! # Numbers
//! Distances are Euclidean, in single precision: a token goes to the centroid `c` with the largest `x . c - |c|^2 / 2`, of
//! equal ones to the first. A centroid is the mean of its tokens, summed in their order in double precision. A cluster
//! that no token is nearest to takes the token that is farthest from its own centroid, so that no cluster is empty.
//! Where nothing is known the centroids begin at tokens evenly spread over the segment; elsewhere at those of the last time.
//!
//! # Source
//! Sparse VideoGen 2, arXiv 2505.18875, section 4.1. Its code begins with tokens drawn at random, and leaves clusters empty.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::placement::Placement;
use crate::ir::Model;
use crate::plan::{Arrangement, Clustering};
use crate::symbols::Blocks;

/// Tokens that are compared with all centroids at once, so that centroids are read once for all of them.
const TOKENS: usize = 16;

/// The centroids of a head, `[clusters, head_dim]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Centroids {
    pub(super) q: Vec<f32>,
    pub(super) kv: Vec<f32>,
}

/// Clusters q and k of a head, `[tokens, head_dim]` in the model's order. The segment's clusters stand where the segment
/// stands, other tokens stay where they are.
pub(super) fn cluster(
    model: &Model,
    arrangement: &Arrangement,
    clustering: &Clustering,
    [q, k]: [&[f32]; 2],
    start: Option<&Centroids>,
) -> (Placement, Centroids) {
    let segment = model.segment(&clustering.segment);
    let range = segment.map_or(0..0, |segment| segment.start as usize..(segment.start + segment.tokens) as usize);
    let dim = model.head_dim as usize;
    let rounds = if start.is_some() { clustering.again } else { clustering.iterations };
    let one = |values: &[f32], clusters: u32, start: Option<&Vec<f32>>| {
        let tokens = &values[range.start * dim..range.end * dim];
        let start = start.filter(|start| start.len() == clusters as usize * dim);
        let mut centroids = start.cloned().unwrap_or_else(|| spread(tokens, dim, clusters as usize));
        let labels = k_means(tokens, dim, &mut centroids, rounds);
        (labels, centroids)
    };
    let (q_labels, q_centroids) = one(q, clustering.q, start.map(|start| &start.q));
    let (kv_labels, kv_centroids) = one(k, clustering.kv, start.map(|start| &start.kv));
    let tokens = model.tokens() as usize;
    let (q_order, q_blocks) = sorted(&q_labels, clustering.q, tokens, &range, &arrangement.blocks.q);
    let (kv_order, kv_blocks) = sorted(&kv_labels, clustering.kv, tokens, &range, &arrangement.blocks.kv);
    let blocks = Blocks { q: q_blocks, kv: kv_blocks };
    (
        Placement { q_order: Some(q_order), kv_order: Some(kv_order), blocks },
        Centroids { q: q_centroids, kv: kv_centroids },
    )
}

/// Order and blocks where the tokens of a range stand by their labels; `nominal` has a block for each cluster.
fn sorted(
    labels: &[u32],
    clusters: u32,
    tokens: usize,
    range: &Range<usize>,
    nominal: &[u32],
) -> (Arc<[u32]>, Vec<u32>) {
    let mut ends = vec![0_u32; clusters as usize];
    labels.iter().for_each(|&label| ends[label as usize] += 1);
    let mut end = range.start as u32;
    for size in &mut ends {
        end += *size;
        *size = end;
    }
    let mut next: Vec<u32> = std::iter::once(range.start as u32).chain(ends.iter().copied()).collect();
    let mut order: Vec<u32> = (0..tokens as u32).collect();
    for (&label, old) in labels.iter().zip(range.start as u32..) {
        let new = &mut next[label as usize];
        order[*new as usize] = old;
        *new += 1;
    }
    let outside = |keep: fn(u32, &Range<usize>) -> bool| nominal.iter().copied().filter(move |&at| keep(at, range));
    let before = outside(|at, range| at as usize <= range.start);
    let after = outside(|at, range| at as usize > range.end);
    (order.into(), before.chain(ends).chain(after).collect())
}

/// Tokens evenly spread over all.
fn spread(tokens: &[f32], dim: usize, clusters: usize) -> Vec<f32> {
    let count = tokens.len() / dim;
    let at = |cluster: usize| (2 * cluster + 1) * count / (2 * clusters);
    (0..clusters).flat_map(|cluster| tokens[at(cluster) * dim..][..dim].iter().copied()).collect()
}

/// Moves the centroids, and gives the cluster of each token.
fn k_means(tokens: &[f32], dim: usize, centroids: &mut [f32], rounds: u32) -> Vec<u32> {
    let mut labels: Vec<u32> = Vec::new();
    for _ in 0..rounds.max(1) {
        let (found, mut scores) = nearest(tokens, dim, centroids);
        let settled = found == labels;
        labels = found;
        if settled {
            // The centroids are the means of these tokens already.
            break;
        }
        fill_empty(tokens, dim, centroids.len() / dim, &mut labels, &mut scores);
        means(tokens, dim, &labels, centroids);
    }
    labels
}

/// The nearest centroid of each token, and how near it is: `|x|^2 / 2` more than half of the negative squared distance.
fn nearest(tokens: &[f32], dim: usize, centroids: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let clusters = centroids.len() / dim;
    // Channel by channel, so that the loop over clusters is vector code.
    let mut by_channel = vec![0.0_f32; centroids.len()];
    for (cluster, centroid) in centroids.chunks_exact(dim).enumerate() {
        for (channel, &value) in centroid.iter().enumerate() {
            by_channel[channel * clusters + cluster] = value;
        }
    }
    let halves: Vec<f32> =
        centroids.chunks_exact(dim).map(|centroid| centroid.iter().fold(0.0, |sum, x| sum + x * x) / 2.0).collect();
    let of_chunk = |chunk: &[f32]| -> Vec<(u32, f32)> {
        let mut scores = vec![0.0_f32; TOKENS * clusters];
        for (channel, column) in by_channel.chunks_exact(clusters).enumerate() {
            for (token, scores) in chunk.chunks_exact(dim).zip(scores.chunks_exact_mut(clusters)) {
                let x = token[channel];
                scores.iter_mut().zip(column).for_each(|(score, c)| *score += x * c);
            }
        }
        let best = |scores: &[f32]| {
            let mut best = (0, f32::NEG_INFINITY);
            for (cluster, (score, half)) in scores.iter().zip(&halves).enumerate() {
                if score - half > best.1 {
                    best = (cluster as u32, score - half);
                }
            }
            best
        };
        scores.chunks_exact(clusters).take(chunk.len() / dim).map(best).collect()
    };
    tokens.par_chunks(TOKENS * dim).flat_map_iter(of_chunk).unzip()
}

/// Gives each empty cluster the token that is farthest from its centroid, of a cluster with others left.
fn fill_empty(tokens: &[f32], dim: usize, clusters: usize, labels: &mut [u32], scores: &mut [f32]) {
    let mut sizes = vec![0_u32; clusters];
    labels.iter().for_each(|&label| sizes[label as usize] += 1);
    for empty in 0..clusters {
        if sizes[empty] > 0 {
            continue;
        }
        let distance = |token: usize| {
            let square = tokens[token * dim..][..dim].iter().fold(0.0_f32, |sum, x| sum + x * x);
            square / 2.0 - scores[token]
        };
        let candidates = (0..labels.len()).filter(|&token| sizes[labels[token] as usize] > 1);
        let farthest = candidates.map(|token| (token, distance(token))).reduce(|a, b| if b.1 > a.1 { b } else { a });
        // There are at least as many tokens as clusters.
        let Some((token, _)) = farthest else { return };
        sizes[labels[token] as usize] -= 1;
        sizes[empty] = 1;
        labels[token] = empty as u32;
        // It is its own centroid now.
        scores[token] = f32::INFINITY;
    }
}

/// The means of the tokens of each cluster, none of which is empty.
fn means(tokens: &[f32], dim: usize, labels: &[u32], centroids: &mut [f32]) {
    let clusters = centroids.len() / dim;
    let (mut sums, mut sizes) = (vec![0.0_f64; centroids.len()], vec![0.0_f64; clusters]);
    for (token, &label) in tokens.chunks_exact(dim).zip(labels) {
        sizes[label as usize] += 1.0;
        let sums = &mut sums[label as usize * dim..][..dim];
        sums.iter_mut().zip(token).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    for ((centroid, sums), size) in centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(sizes) {
        centroid.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (sum / size) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::samples::Random;

    /// Numbers from -1 to 1.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed);
        (0..count).map(|_| (random.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn groups_far_apart_are_found() {
        let (dim, groups, each) = (8, 5, 37);
        let mut tokens = noise(groups * each * dim, 3);
        // Token `t` belongs to group `t % 5`, whose middle is 20 along an axis of its own.
        for (token, row) in tokens.chunks_exact_mut(dim).enumerate() {
            row[token % groups] += 20.0;
        }
        let mut centroids = spread(&tokens, dim, groups);
        let labels = k_means(&tokens, dim, &mut centroids, 50);
        for (token, label) in labels.iter().enumerate() {
            assert_eq!(*label, labels[token % groups], "token {token}");
        }
        for (cluster, centroid) in centroids.chunks_exact(dim).enumerate() {
            let members = labels.iter().enumerate().filter(|(_, label)| **label == cluster as u32);
            let mean = members.fold(vec![0.0; dim], |mut sum, (token, _)| {
                sum.iter_mut().zip(&tokens[token * dim..]).for_each(|(sum, x)| *sum += f64::from(*x) / each as f64);
                sum
            });
            assert!(centroid.iter().zip(mean).all(|(found, wanted)| (f64::from(*found) - wanted).abs() < 1e-5));
        }
    }

    #[test]
    fn every_token_goes_to_the_nearest_centroid() {
        let dim = 16;
        let (tokens, centroids) = (noise(300 * dim, 1), noise(23 * dim, 2));
        let (labels, _) = nearest(&tokens, dim, &centroids);
        for (token, label) in tokens.chunks_exact(dim).zip(labels) {
            let distances: Vec<f64> = centroids
                .chunks_exact(dim)
                .map(|centroid| token.iter().zip(centroid).map(|(x, c)| (f64::from(*x) - f64::from(*c)).powi(2)).sum())
                .collect();
            let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(distances[label as usize] <= least + 1e-5, "{} is not {least}", distances[label as usize]);
        }
    }

    #[test]
    fn no_cluster_is_empty() {
        let dim = 4;
        for tokens in [vec![1.0_f32; 9 * dim], [vec![0.0; 8 * dim], vec![5.0; dim]].concat()] {
            let mut centroids = spread(&tokens, dim, 9);
            let mut labels = k_means(&tokens, dim, &mut centroids, 3);
            labels.sort_unstable();
            assert_eq!(labels, (0..9).collect::<Vec<_>>(), "nine clusters of nine tokens");
            assert!(centroids.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn clusters_stand_where_their_segment_stands() {
        let labels = [1, 0, 2, 0, 1];
        let (order, blocks) = sorted(&labels, 3, 10, &(3..8), &[0, 3, 4, 6, 8, 10]);
        assert_eq!(order[..], [0, 1, 2, 4, 6, 3, 7, 5, 8, 9]);
        assert_eq!(blocks, [0, 3, 5, 7, 8, 10]);
        let (_, blocks) = sorted(&labels, 3, 5, &(0..5), &[0, 1, 3, 5]);
        assert_eq!(blocks, [0, 2, 4, 5]);
    }
}
