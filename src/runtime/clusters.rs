//! Clusters of queries and of keys, found for each head by k-means or by co-clustering.
//!
//! # Numbers
//! All in single precision. By k-means a token goes to the centroid `c` with the largest `x . c - |c|^2 / 2`, which is the
//! nearest one. By co-clustering it goes to the one whose profile its own is most like: a profile is a vector's scores with the
//! centroids of the other side, likeness their cosine; keys go first in each round. Of equal ones a token takes the
//! first. A centroid is the mean of its tokens, summed in their order in double precision. A cluster that no token goes to
//! takes the token that fits its own the least, so that no cluster is empty. Where nothing is known the centroids
//! begin at tokens evenly spread over the segment; elsewhere at those of the last time.
//!
//! # Source
//! Sparse VideoGen 2, arXiv 2505.18875, section 4.1; SVOO, `svoo/co_clustering.py::co_cluster_tokens`. Their code begins with
//! tokens drawn at random, and leaves clusters empty.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::placement::Placement;
use crate::ir::{Likeness, Model};
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
    let [q, k] = [q, k].map(|values| &values[range.start * dim..range.end * dim]);
    let begin = |tokens: &[f32], clusters: u32, start: Option<&Vec<f32>>| {
        let start = start.filter(|start| start.len() == clusters as usize * dim);
        start.cloned().unwrap_or_else(|| spread(tokens, dim, clusters as usize))
    };
    let mut centroids = Centroids {
        q: begin(q, clustering.q, start.map(|start| &start.q)),
        kv: begin(k, clustering.kv, start.map(|start| &start.kv)),
    };
    let [q_labels, kv_labels] = match clustering.by {
        Likeness::Distance => [(q, &mut centroids.q), (k, &mut centroids.kv)]
            .map(|(tokens, centroids)| k_means(tokens, dim, centroids, rounds)),
        Likeness::Profile => co_cluster([q, k], dim, &mut centroids, rounds),
    };
    let tokens = model.tokens() as usize;
    let (q_order, q_blocks) = sorted(&q_labels, clustering.q, tokens, &range, &arrangement.blocks.q);
    let (kv_order, kv_blocks) = sorted(&kv_labels, clustering.kv, tokens, &range, &arrangement.blocks.kv);
    let blocks = Blocks { q: q_blocks, kv: kv_blocks };
    (Placement { q_order: Some(q_order), kv_order: Some(kv_order), blocks }, centroids)
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
        let (found, fits) = nearest(tokens, dim, centroids);
        let settled = found == labels;
        labels = found;
        if settled {
            // The centroids are the means of these tokens already.
            break;
        }
        fill_empty(centroids.len() / dim, &mut labels, fits);
        means(tokens, dim, &labels, centroids);
    }
    labels
}

/// Moves the centroids of both sides, keys first in each round, and gives the cluster of each query and of each key.
fn co_cluster([q, k]: [&[f32]; 2], dim: usize, centroids: &mut Centroids, rounds: u32) -> [Vec<u32>; 2] {
    let move_one = |tokens: &[f32], own: &mut Vec<f32>, other: &[f32]| {
        let (mut labels, fits) = alike(tokens, dim, own, other);
        fill_empty(own.len() / dim, &mut labels, fits);
        means(tokens, dim, &labels, own);
        labels
    };
    let mut labels = [Vec::new(), Vec::new()];
    for _ in 0..rounds.max(1) {
        let kv = move_one(k, &mut centroids.kv, &centroids.q);
        let q = move_one(q, &mut centroids.q, &centroids.kv);
        let found = [q, kv];
        let settled = found == labels;
        labels = found;
        if settled {
            break;
        }
    }
    labels
}

/// The nearest centroid of each token, and half of the negative squared distance.
fn nearest(tokens: &[f32], dim: usize, centroids: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let halves: Vec<f32> = centroids.chunks_exact(dim).map(|centroid| square(centroid) / 2.0).collect();
    let (labels, mut fits) = largest_score(tokens, dim, centroids, &halves);
    fits.iter_mut().zip(tokens.chunks_exact(dim)).for_each(|(fit, token)| *fit -= square(token) / 2.0);
    (labels, fits)
}

/// The centroid whose profile is most like that of each token, and how much more alike they are than a token of that length
/// can tell: their score over the token's length.
///
/// With `P` the profiles of the centroids, each of length 1, and `O` the other side's centroids, the score of a token is `P O x`
/// up to the length of its own profile, which is the same for all centroids. So `P O` is made once, and no profile of a token is.
fn alike(tokens: &[f32], dim: usize, centroids: &[f32], other: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let mut directions = vec![0.0_f32; centroids.len()];
    directions.par_chunks_exact_mut(dim).zip(centroids.par_chunks_exact(dim)).for_each(|(direction, centroid)| {
        let profile: Vec<f32> = other
            .chunks_exact(dim)
            .map(|other| other.iter().zip(centroid).fold(0.0, |sum, (x, y)| sum + x * y))
            .collect();
        let length = square(&profile).sqrt().max(f32::MIN_POSITIVE);
        for (share, other) in profile.iter().zip(other.chunks_exact(dim)) {
            direction.iter_mut().zip(other).for_each(|(sum, x)| *sum += share / length * x);
        }
    });
    let none = vec![0.0; centroids.len() / dim];
    let (labels, mut fits) = largest_score(tokens, dim, &directions, &none);
    let length = |token: &[f32]| square(token).sqrt().max(f32::MIN_POSITIVE);
    fits.iter_mut().zip(tokens.chunks_exact(dim)).for_each(|(fit, token)| *fit /= length(token));
    (labels, fits)
}

fn square(vector: &[f32]) -> f32 {
    vector.iter().fold(0.0, |sum, x| sum + x * x)
}

/// The vector `v` with the largest `x . v - less` of each token `x`, and that number.
fn largest_score(tokens: &[f32], dim: usize, vectors: &[f32], less: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let clusters = less.len();
    // Channel by channel, so that the loop over clusters is vector code.
    let mut by_channel = vec![0.0_f32; vectors.len()];
    for (cluster, vector) in vectors.chunks_exact(dim).enumerate() {
        for (channel, &value) in vector.iter().enumerate() {
            by_channel[channel * clusters + cluster] = value;
        }
    }
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
            for (cluster, (score, less)) in scores.iter().zip(less).enumerate() {
                if score - less > best.1 {
                    best = (cluster as u32, score - less);
                }
            }
            best
        };
        scores.chunks_exact(clusters).take(chunk.len() / dim).map(best).collect()
    };
    tokens.par_chunks(TOKENS * dim).flat_map_iter(of_chunk).unzip()
}

/// Gives each empty cluster the token that fits its own the least, of a cluster with others left.
fn fill_empty(clusters: usize, labels: &mut [u32], mut fits: Vec<f32>) {
    let mut sizes = vec![0_u32; clusters];
    labels.iter().for_each(|&label| sizes[label as usize] += 1);
    for empty in 0..clusters {
        if sizes[empty] > 0 {
            continue;
        }
        let candidates = (0..labels.len()).filter(|&token| sizes[labels[token] as usize] > 1);
        let least = candidates.reduce(|a, b| if fits[b] < fits[a] { b } else { a });
        // There are at least as many tokens as clusters.
        let Some(token) = least else { return };
        sizes[labels[token] as usize] -= 1;
        sizes[empty] = 1;
        labels[token] = empty as u32;
        // It is its own centroid now.
        fits[token] = f32::INFINITY;
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

    /// The published loop: profiles of all tokens, in double precision.
    #[test]
    fn co_clusters_are_those_of_the_published_loop() {
        let (dim, tokens) = (8, 96);
        let [q, k] = [5, 6].map(|seed| noise(tokens * dim, seed));
        let wide = |values: &[f32]| -> Vec<Vec<f64>> {
            values.chunks_exact(dim).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let profile = |x: &[f64], others: &[Vec<f64>]| -> Vec<f64> {
            let scores: Vec<f64> = others.iter().map(|other| dot(x, other)).collect();
            let length = dot(&scores, &scores).sqrt();
            scores.iter().map(|score| score / length).collect()
        };
        let half = |tokens: &[Vec<f64>], own: &mut Vec<Vec<f64>>, other: &[Vec<f64>]| -> Vec<usize> {
            let profiles: Vec<Vec<f64>> = own.iter().map(|centroid| profile(centroid, other)).collect();
            let labels: Vec<usize> = tokens
                .iter()
                .map(|token| {
                    let token = profile(token, other);
                    let distance = |cluster: &usize| 2.0 - 2.0 * dot(&token, &profiles[*cluster]);
                    (0..own.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
                })
                .collect();
            for (cluster, centroid) in own.iter_mut().enumerate() {
                let members: Vec<&Vec<f64>> = tokens
                    .iter()
                    .zip(&labels)
                    .filter(|(_, label)| **label == cluster)
                    .map(|(token, _)| token)
                    .collect();
                assert!(!members.is_empty(), "the case has no empty clusters");
                *centroid =
                    (0..dim).map(|c| members.iter().map(|row| row[c]).sum::<f64>() / members.len() as f64).collect();
            }
            labels
        };
        let mut centroids = Centroids { q: spread(&q, dim, 4), kv: spread(&k, dim, 6) };
        let (mut q_centroids, mut k_centroids) = (wide(&centroids.q), wide(&centroids.kv));
        let [q_labels, k_labels] = co_cluster([&q, &k], dim, &mut centroids, 3);
        let mut wanted = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            let kv = half(&wide(&k), &mut k_centroids, &q_centroids);
            wanted = [half(&wide(&q), &mut q_centroids, &k_centroids), kv];
        }
        for (found, wanted) in [q_labels, k_labels].iter().zip(&wanted) {
            assert!(found.iter().map(|&label| label as usize).eq(wanted.iter().copied()), "{found:?} {wanted:?}");
        }
    }

    #[test]
    fn no_cluster_is_empty() {
        let dim = 4;
        for tokens in [vec![1.0_f32; 9 * dim], [vec![0.0; 8 * dim], vec![5.0; dim]].concat()] {
            let mut centroids = spread(&tokens, dim, 9);
            let mut labels = k_means(&tokens, dim, &mut centroids, 3);
            let mut co = Centroids { q: spread(&tokens, dim, 9), kv: spread(&tokens, dim, 9) };
            for mut labels in co_cluster([&tokens, &tokens], dim, &mut co, 2) {
                labels.sort_unstable();
                assert_eq!(labels, (0..9).collect::<Vec<_>>(), "nine co-clusters of nine tokens");
            }
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
