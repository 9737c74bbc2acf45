//! What sessions are compared with: attention and forecasts in double precision, row by row.

use std::sync::Arc;

use flashomni::plan::Plan;
use flashomni::runtime::{LayerSymbols, Placement};
use flashomni::tensor::TensorRef;

pub const HEADS: usize = 4;
pub const DIM: usize = 16;

pub fn plan(tokens: &str, steps: u32, strategy: &str) -> Plan {
    let source = format!(
        "model small {{ layers 2 heads {HEADS} head_dim {DIM} steps {steps} tokens {tokens} }}
         strategy s {{ {strategy} }}"
    );
    flashomni::compile(&source).unwrap_or_else(|error| panic!("{error}"))
}

/// Which keys a query token attends to; `None` for a token whose output is cached.
pub type Rows = Vec<Vec<Option<Vec<usize>>>>;

/// The symbols of a layer, token by token in the model's order.
pub fn rows_of(plan: &Plan, symbols: &LayerSymbols) -> Rows {
    let tokens = plan.model.tokens() as usize;
    let mut rows: Rows = vec![vec![None; tokens]; HEADS];
    for group in &symbols.groups {
        let Placement { q_order, kv_order, blocks } = &*group.placement;
        let old =
            |order: &Option<Arc<[u32]>>, new: u32| order.as_ref().map_or(new, |order| order[new as usize]) as usize;
        for (position, &head) in group.heads.iter().enumerate() {
            for q_block in (0..blocks.q_blocks()).filter(|&block| group.symbols.cache.get(position, block)) {
                let row = position * blocks.q_blocks() + q_block;
                for query in blocks.q[q_block]..blocks.q[q_block + 1] {
                    let mut keys = Vec::new();
                    for kv_block in group.symbols.skip.ones_of_row(row) {
                        let tile = group.symbols.partial.as_ref().and_then(|partial| partial.tile(row, kv_block));
                        for key in blocks.kv[kv_block]..blocks.kv[kv_block + 1] {
                            let within = ((query - blocks.q[q_block]) as usize, (key - blocks.kv[kv_block]) as usize);
                            if tile.is_none_or(|tile| tile.get(within.0, within.1)) {
                                keys.push(old(kv_order, key));
                            }
                        }
                    }
                    rows[head as usize][old(q_order, query)] = Some(keys);
                }
            }
        }
    }
    rows
}

pub fn all_rows(tokens: usize) -> Rows {
    vec![vec![Some((0..tokens).collect()); tokens]; HEADS]
}

/// Attention of the rows, in double precision; cached rows come from `cached`.
pub fn attend([q, k, v]: &[Vec<f64>; 3], rows: &Rows, cached: impl Fn(usize) -> f64) -> Vec<f64> {
    let tokens = rows[0].len();
    let mut out = vec![0.0; q.len()];
    for (head, rows) in rows.iter().enumerate() {
        for (query, keys) in rows.iter().enumerate() {
            let at = |token: usize| (head * tokens + token) * DIM;
            let Some(keys) = keys else {
                (0..DIM).for_each(|i| out[at(query) + i] = cached(at(query) + i));
                continue;
            };
            let dot = |key: usize| -> f64 {
                (0..DIM).map(|i| q[at(query) + i] * k[at(key) + i]).sum::<f64>() / (DIM as f64).sqrt()
            };
            let weights: Vec<f64> = keys.iter().map(|&key| dot(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (&key, weight) in keys.iter().zip(&weights) {
                (0..DIM).for_each(|i| out[at(query) + i] += weight / sum * v[at(key) + i]);
            }
        }
    }
    out
}

/// A feature at its updates, and its Taylor series by divided differences of neighbouring updates.
#[derive(Default)]
pub struct History(pub Vec<(u32, Vec<f64>)>);

impl History {
    pub fn forecast(&self, step: u32, order: usize) -> Vec<f64> {
        let mut levels = self.0.clone();
        let x = f64::from(step - levels.last().unwrap().0);
        let mut sum = vec![0.0; levels[0].1.len()];
        let mut factor = 1.0;
        for power in 0..=order {
            let (_, last) = levels.last().unwrap();
            sum.iter_mut().zip(last).for_each(|(sum, value)| *sum += factor * value);
            factor *= x / (power + 1) as f64;
            if levels.len() < 2 {
                break;
            }
            levels = levels
                .windows(2)
                .map(|pair| {
                    let gap = f64::from(pair[1].0 - pair[0].0);
                    (pair[1].0, pair[1].1.iter().zip(&pair[0].1).map(|(now, before)| (now - before) / gap).collect())
                })
                .collect();
        }
        sum
    }
}

pub fn close(found: TensorRef<'_>, wanted: &[f64], what: &str) {
    let found = found.to_f32();
    let error: f64 = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = wanted.iter().map(|b| b * b).sum();
    assert!(error.sqrt() <= 1e-5 * norm.sqrt(), "{what}: relative error {:e}", (error / norm).sqrt());
}
