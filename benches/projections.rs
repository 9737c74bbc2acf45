//! Times GEMM-Q and GEMM-O at several shares of cached heads, beside their own dense time and `linear`.
//!
//! `cargo bench --bench projections` prints a table; contestants take turns within one process. Weights are packed
//! before, as a host that runs many steps does. `-- --rounds N` sets how often.

use std::time::Instant;

use flashomni::cpu::{PackedWeight, Part, Start, Tiles, Weight, gemm_o, gemm_q, linear};
use flashomni::symbols::{BitMatrix, Blocks};
use flashomni::tensor::{Dtype, Tensor};

const SPARSITIES: [f64; 4] = [0.0, 0.5, 0.8, 0.9];
const TOKENS: usize = 4096;
const HEADS: usize = 16;
const HEAD_DIM: usize = 64;
const FEATURES: usize = HEADS * HEAD_DIM;
const BLOCK: usize = 128;

/// Uniform numbers, the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values = (0..shape.iter().product()).map(|_| self.next() as f32 * 3.4 - 1.7).collect();
        Tensor::from_f32(shape, values).expect("the product of the shape")
    }

    fn cache(&mut self, sparsity: f64) -> BitMatrix {
        let mut bits = BitMatrix::ones(HEADS, TOKENS / BLOCK);
        let mut order: Vec<_> = (0..HEADS * TOKENS / BLOCK).map(|tile| (self.next(), tile)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let cached = (order.len() as f64 * sparsity).round() as usize;
        order[..cached].iter().for_each(|&(_, tile)| bits.set(tile % HEADS, tile / HEADS, false));
        bits
    }
}

struct Operands {
    x: Tensor,
    by_heads: Tensor,
    /// Packed by heads, and whole.
    packed: [PackedWeight; 2],
    offsets: Vec<u32>,
    out: [Tensor; 2],
}

/// Milliseconds of `linear`, GEMM-Q or GEMM-O.
fn run(kernel: usize, operands: &mut Operands, cache: &BitMatrix) -> f64 {
    let Operands { x, by_heads, packed: [heads, whole], offsets, out: [rows, tiles] } = operands;
    let start = Instant::now();
    match kernel {
        0 => linear(x.as_ref(), &*whole, None, rows.as_mut()),
        1 => gemm_q(x.as_ref(), &*heads, None, &Tiles::all(cache, offsets), tiles.as_mut()),
        _ => {
            gemm_o(by_heads.as_ref(), &*whole, Part::Live, Start::default(), &Tiles::all(cache, offsets), rows.as_mut())
        }
    }
    .expect("shapes that fit");
    start.elapsed().as_secs_f64() * 1e3
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let rounds = after("--rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let mut noise = Noise(7);
    let weight = noise.tensor(&[FEATURES, FEATURES]);
    let view = Weight::new(weight.as_ref()).expect("two axes");
    let mut operands = Operands {
        x: noise.tensor(&[TOKENS, FEATURES]),
        by_heads: noise.tensor(&[HEADS, TOKENS, HEAD_DIM]),
        packed: [view.pack_heads(HEAD_DIM).expect("whole heads"), view.pack()],
        offsets: Blocks::regular(TOKENS, TOKENS, BLOCK, BLOCK).q,
        out: [Tensor::zeros(&[TOKENS, FEATURES], Dtype::F32), Tensor::zeros(&[HEADS, TOKENS, HEAD_DIM], Dtype::F32)],
    };
    let caches = SPARSITIES.map(|sparsity| noise.cache(sparsity));
    let contestants: Vec<_> = (0..3).flat_map(|kernel| (0..4).map(move |s| (kernel, s))).collect();
    let contestants: Vec<_> = contestants.into_iter().filter(|&(kernel, s)| kernel > 0 || s == 0).collect();
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for (&(kernel, s), times) in contestants.iter().zip(&mut times) {
            let time = run(kernel, &mut operands, &caches[s]);
            if round > 0 {
                times.push(time);
            }
        }
    }
    println!("{TOKENS} tokens, {HEADS} heads of {HEAD_DIM}, {FEATURES} features, blocks of {BLOCK}\n");
    println!("| kernel | s | ms | least | GFLOP/s live | share of dense | of 1 - s |");
    println!("|---|---|---|---|---|---|---|");
    let mut dense = 1.0;
    for (&(kernel, s), times) in contestants.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        if s == 0 {
            dense = median;
        }
        let live = caches[s].count() as f64 / caches[0].count() as f64;
        let work = 2.0 * (TOKENS * FEATURES * FEATURES) as f64 * live / 1e6;
        let name = ["linear", "GEMM-Q", "GEMM-O"][kernel];
        let share = median / dense;
        println!(
            "| {name} | {:.2} | {median:.1} | {:.1} | {:.1} | {share:.3} | {:.2} |",
            SPARSITIES[s],
            times[0],
            work / median,
            share / live
        );
    }
}
