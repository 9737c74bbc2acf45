//! Times the CPU kernels: attention at several sparsities, beside its own dense time.
//!
//! `cargo bench --bench attention` prints a table; contestants take turns within one process, and medians and
//! minima are given. `-- --rounds N` sets how often. With `-- --serve` each line `heads tokens head_dim block
//! sparsity` on the standard input is answered by the milliseconds of one run: `peers/cpu_attention.py` takes turns
//! with it.

use std::io::{BufRead, Write};
use std::time::Instant;

use flashomni::cpu::{AttentionOptions, attention};
use flashomni::symbols::{Blocks, Symbols};
use flashomni::tensor::{Dtype, Tensor};

const SPARSITIES: [f64; 4] = [0.0, 0.5, 0.75, 0.9];

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
}

struct Case {
    shape: [usize; 3],
    blocks: Blocks,
    symbols: Symbols,
    inputs: [Tensor; 3],
    out: Tensor,
}

impl Case {
    fn new(shape: [usize; 3], block: usize, sparsity: f64, dtype: Dtype) -> Self {
        let mut noise = Noise(7);
        let blocks = Blocks::regular(shape[1], shape[1], block, block);
        let mut symbols = Symbols::dense(shape[0], blocks.q_blocks(), blocks.kv_blocks());
        // Exactly the share of blocks is skipped, at random places.
        for row in 0..symbols.skip.rows() {
            let mut order: Vec<_> = (0..blocks.kv_blocks()).map(|kv| (noise.next(), kv)).collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            let skipped = (blocks.kv_blocks() as f64 * sparsity).round() as usize;
            order[..skipped].iter().for_each(|&(_, kv)| symbols.skip.set(row, kv, false));
        }
        let inputs = std::array::from_fn(|_| noise.tensor(&shape).cast(dtype));
        Case { shape, blocks, symbols, inputs, out: Tensor::zeros(&shape, dtype) }
    }

    /// Milliseconds of one run.
    fn run(&mut self) -> f64 {
        let [q, k, v] = self.inputs.each_ref().map(Tensor::as_ref);
        let options = AttentionOptions::default();
        let start = Instant::now();
        attention(q, k, v, &self.symbols, &self.blocks, options, self.out.as_mut(), None).expect("shapes that fit");
        start.elapsed().as_secs_f64() * 1e3
    }

    /// Floating point operations on live blocks, in units of 10^9.
    fn work(&self) -> f64 {
        let [_, tokens, dim] = self.shape;
        let block = tokens as f64 / self.blocks.q_blocks() as f64;
        4.0 * self.symbols.skip.count() as f64 * block * block * dim as f64 / 1e9
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn table(rounds: usize, dtype: Dtype) {
    println!(
        "| heads x tokens x head_dim | block | s | ms | least | GFLOP/s live | share of dense | of (1 - s) / 0.9 |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (shape, block) in [([8, 4096, 64], 128), ([8, 4096, 64], 64), ([8, 2048, 128], 128)] {
        let mut cases = SPARSITIES.map(|sparsity| Case::new(shape, block, sparsity, dtype));
        let mut times = [(); 4].map(|()| Vec::new());
        cases.iter_mut().for_each(|case| _ = case.run());
        for _ in 0..rounds {
            for (case, times) in cases.iter_mut().zip(&mut times) {
                times.push(case.run());
            }
        }
        let medians = times.each_mut().map(|times| median(times));
        for (index, case) in cases.iter().enumerate() {
            // The share that is really live: rounding to whole blocks moves it a little.
            let live = case.work() / cases[0].work();
            let share = medians[index] / medians[0];
            println!(
                "| {} x {} x {} | {block} | {:.2} | {:.1} | {:.1} | {:.1} | {share:.3} | {:.2} |",
                shape[0],
                shape[1],
                shape[2],
                SPARSITIES[index],
                medians[index],
                times[index][0],
                case.work() / medians[index] * 1e3,
                share / (live / 0.9),
            );
        }
    }
}

fn serve() {
    let mut case: Option<(String, Case)> = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [heads, tokens, dim, block, sparsity] = words[..] else {
            eprintln!("wanted `heads tokens head_dim block sparsity`, found `{line}`");
            std::process::exit(2);
        };
        if case.as_ref().is_none_or(|(known, _)| *known != line) {
            let shape = [heads as usize, tokens as usize, dim as usize];
            let mut fresh = Case::new(shape, block as usize, sparsity, Dtype::F32);
            fresh.run();
            case = Some((line, fresh));
        }
        if let Some((_, case)) = &mut case {
            println!("{:.4}", case.run());
            std::io::stdout().flush().expect("a reader");
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--serve") {
        return serve();
    }
    let after = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let rounds = after("--rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let dtype = match after("--dtype").map(String::as_str) {
        Some("f16") => Dtype::F16,
        Some("bf16") => Dtype::Bf16,
        _ => Dtype::F32,
    };
    table(rounds, dtype);
}
