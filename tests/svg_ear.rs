//! SVG-EAR's choice of blocks, against the published function over all tokens in double precision.

mod programs;

use flashomni::Compiler;
use flashomni::runtime::{Selection, Tensors};
use flashomni::tensor::Tensor;

use programs::Random;

const HEADS: usize = 3;
const TOKENS: usize = 480;
const DIM: usize = 8;
const Q_CLUSTERS: usize = 10;
const K_CLUSTERS: usize = 24;

/// Tokens around a few centres, so that clusters mean something.
fn tokens(random: &mut Random, spread: f32) -> Vec<f32> {
    let centres: Vec<f32> = (0..HEADS * 30 * DIM).map(|_| random.real(1.0)).collect();
    let mut values = Vec::new();
    for head in 0..HEADS {
        for token in 0..TOKENS {
            let centre = &centres[(head * 30 + token * 7 % 30) * DIM..][..DIM];
            values.extend(centre.iter().map(|x| x + random.real(spread)));
        }
    }
    values
}

/// Blocks of a head, each a list of tokens.
fn blocks(order: &[u32], offsets: &[u32]) -> Vec<Vec<usize>> {
    offsets.windows(2).map(|b| order[b[0] as usize..b[1] as usize].iter().map(|&old| old as usize).collect()).collect()
}

struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    q_blocks: Vec<Vec<usize>>,
    k_blocks: Vec<Vec<usize>>,
}

fn mean(values: &[f32], block: &[usize]) -> Vec<f64> {
    let sum = |channel: usize| block.iter().map(|token| f64::from(values[token * DIM + channel])).sum::<f64>();
    (0..DIM).map(|channel| sum(channel) / block.len() as f64).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Indices of the largest first; the lower of equal ones.
fn descending(values: &[f64]) -> Vec<usize> {
    let mut ranking: Vec<usize> = (0..values.len()).collect();
    ranking.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    ranking
}

/// The rows of the mask.
fn published(head: &Head<'_>, top_p: f64, min_ratio: f64) -> Vec<Vec<bool>> {
    let row = |values: &[f32], token: usize| -> Vec<f64> {
        values[token * DIM..][..DIM].iter().map(|&x| f64::from(x)).collect()
    };
    let scale = (DIM as f64).sqrt();
    let k_means: Vec<Vec<f64>> = head.k_blocks.iter().map(|block| mean(head.k, block)).collect();
    let v_means: Vec<Vec<f64>> = head.k_blocks.iter().map(|block| mean(head.v, block)).collect();
    let keys: Vec<f64> = head.k_blocks.iter().map(|block| block.len() as f64).collect();
    let clusters = keys.len();
    let mut rows = Vec::new();
    for q_block in &head.q_blocks {
        let q = mean(head.q, q_block);
        let scores: Vec<f64> = k_means.iter().map(|k| dot(&q, k) / scale).collect();
        let area: Vec<f64> = keys.iter().map(|keys| q_block.len() as f64 * keys).collect();
        let efficiency: Vec<f64> = (0..clusters)
            .map(|cluster| {
                let own = scores[cluster].exp();
                let error: f64 = head.k_blocks[cluster]
                    .iter()
                    .map(|&token| {
                        let weight = (dot(&q, &row(head.k, token)) / scale).exp();
                        let v = row(head.v, token);
                        v.iter().zip(&v_means[cluster]).map(|(v, mean)| (weight * v - own * mean).powi(2)).sum::<f64>()
                    })
                    .sum();
                error.max(1e-8).ln() - area[cluster].ln()
            })
            .collect();
        let weights: Vec<f64> = scores.iter().zip(&keys).map(|(score, keys)| keys * score.exp()).collect();
        let total: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let by_share = descending(&shares);
        let (mut sum, mut budget) = (0.0, 0.0);
        let double = ((min_ratio * clusters as f64 * 2.0) as usize).max(1);
        for (rank, &cluster) in by_share.iter().enumerate() {
            if sum <= top_p || (min_ratio > 0.0 && rank < double) {
                budget += area[cluster];
            }
            sum += shares[cluster];
        }
        let preserved = if min_ratio > 0.0 { ((min_ratio * clusters as f64) as usize).max(1) } else { 0 };
        let mut kept = vec![false; clusters];
        by_share[..preserved].iter().for_each(|&cluster| kept[cluster] = true);
        let left = (budget - by_share[..preserved].iter().map(|&cluster| area[cluster]).sum::<f64>()).max(0.0);
        let masked: Vec<f64> =
            efficiency.iter().zip(&kept).map(|(efficiency, &kept)| if kept { -1e10 } else { *efficiency }).collect();
        let mut spent = 0.0;
        for cluster in descending(&masked) {
            kept[cluster] |= spent < left;
            spent += area[cluster];
        }
        rows.push(kept);
    }
    rows
}

#[test]
fn blocks_are_those_of_the_published_function() {
    let path = format!("{}/examples/strategies/svg_ear.omni", env!("CARGO_MANIFEST_DIR"));
    for (seed, p, min_ratio) in [(1, 0.9, 0.1), (2, 0.6, 0.0), (3, 0.4, 0.2)] {
        let compiler = Compiler::from_file(path.as_ref()).unwrap().model("wan21_1b_480p");
        let sizes = [("heads", "3"), ("head_dim", "8"), ("video.t", "1"), ("video.h", "1"), ("video.w", "480")];
        let compiler = sizes.iter().fold(compiler, |compiler, (name, value)| compiler.shape(*name, *value));
        let params = [("q_clusters", Q_CLUSTERS.to_string()), ("k_clusters", K_CLUSTERS.to_string())];
        let compiler = params.iter().fold(compiler, |compiler, (name, value)| compiler.param(*name, value));
        let compiler = compiler.param("p", p.to_string()).param("min_ratio", min_ratio.to_string());
        let mut selection = Selection::new(compiler.compile().unwrap().plan).unwrap();
        let mut random = Random(seed);
        let [q, k, v] = [0.2, 0.4, 0.5].map(|spread| tokens(&mut random, spread));
        let tensor = |values: &Vec<f32>| Tensor::from_f32(&[HEADS, TOKENS, DIM], values.clone()).unwrap();
        let (q_tensor, k_tensor, v_tensor) = (tensor(&q), tensor(&k), tensor(&v));
        let tensors = Tensors { v: Some(v_tensor.as_ref()), ..Tensors::of(q_tensor.as_ref(), k_tensor.as_ref()) };
        let symbols = selection.symbols(0, 0, &[0, 1, 2], tensors).unwrap();
        assert_eq!(symbols.groups.len(), HEADS, "each head has clusters of its own");
        let mut kept = 0;
        for group in &symbols.groups {
            let head = group.heads[0] as usize;
            let part = head * TOKENS * DIM..(head + 1) * TOKENS * DIM;
            let placement = &group.placement;
            let head = Head {
                q: &q[part.clone()],
                k: &k[part.clone()],
                v: &v[part],
                q_blocks: blocks(placement.q_order.as_ref().unwrap(), &placement.blocks.q),
                k_blocks: blocks(placement.kv_order.as_ref().unwrap(), &placement.blocks.kv),
            };
            assert_eq!((head.q_blocks.len(), head.k_blocks.len()), (Q_CLUSTERS, K_CLUSTERS));
            for (row, wanted) in published(&head, p, min_ratio).iter().enumerate() {
                let found: Vec<bool> = (0..K_CLUSTERS).map(|column| group.symbols.skip.get(row, column)).collect();
                assert_eq!(&found, wanted, "seed {seed}, head {}, row {row}", group.heads[0]);
                kept += wanted.iter().filter(|kept| **kept).count();
            }
        }
        assert!(kept > 0 && kept < HEADS * Q_CLUSTERS * K_CLUSTERS);
    }
}
