//! Selector programs: the reference interpreter against compiled code, on one head of the paper's strategy.
//!
//! Mean pooling of q and k, their dot product, two softmaxes of sums with one selection of q-blocks, softmax and a
//! selection in every row. "maps interpreted" is the compiled program's shared routines without machine code. Prints a Markdown table; times are medians on one thread.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../tests/programs/mod.rs"]
mod programs;

use std::time::{Duration, Instant};

use flashomni::ir::{Binary, Reduction, Selector, Side};
use flashomni::plan::{Program, Role};
use flashomni::reference::selector::interpret;
use flashomni::selector::{Compiled, HeadTensors};
use flashomni::symbols::Blocks;
use programs::{Build, Case, Random, model};

const DIM: usize = 128;
const BLOCK: usize = 128;
const TEXT: usize = 512;
/// Dense attention on a CPU core of this class, an estimate.
const ATTENTION_FLOPS: f64 = 100e9;

fn program() -> Program {
    let mut b = Build::default();
    let (text, image) = (b.set("text"), b.set("image"));
    let score = b.score(DIM);
    let contribution = b.slice(score, Some(text), Some(image));
    let contribution = b.reduce(Reduction::Sum, contribution, Side::Query);
    let contribution = b.softmax(contribution, Side::Key);
    let contribution = b.transpose(contribution);
    let guidance = b.slice(score, Some(image), Some(text));
    let guidance = b.reduce(Reduction::Sum, guidance, Side::Key);
    let guidance = b.softmax(guidance, Side::Query);
    let both = b.binary(Binary::Add, contribution, guidance);
    let tau_q = b.real(0.4);
    let cached = b.select(Selector::BottomMass, both, tau_q, Side::Query);
    let cached = b.embed(cached);
    b.term(Role::Cache, cached);
    let weights = b.softmax(score, Side::Key);
    let tau_kv = b.real(0.15);
    let skipped = b.select(Selector::BottomMass, weights, tau_kv, Side::Key);
    b.term(Role::Skip, skipped);
    b.program()
}

fn median(mut run: impl FnMut(), repeats: usize) -> Duration {
    let mut times: Vec<Duration> = (0..repeats)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let program = program();
    let model_of = |tokens: usize| model(&[("text", TEXT), ("image", tokens - TEXT)]);
    let start = Instant::now();
    let compiled = Compiled::new(&program, &model_of(4608)).expect("the program compiles");
    let interpreted = Compiled::interpreted(&program).expect("the program is well formed");
    println!("compile: {:.1} ms, machine code: {}\n", start.elapsed().as_secs_f64() * 1e3, compiled.is_machine_code());
    println!("| tokens | blocks | interpreter, ms | maps interpreted, ms | compiled, ms | ratio | share of dense |");
    println!("|---|---|---|---|---|---|---|");
    for tokens in [4_608, 33_024] {
        let mut random = Random(7);
        let mut values = || (0..tokens * DIM).map(|_| random.real(1.0)).collect::<Vec<f32>>();
        let case = Case {
            model: model_of(tokens),
            blocks: Blocks::regular(tokens, tokens, BLOCK, BLOCK),
            masks: Vec::new(),
            tensors: HeadTensors { q: values(), k: values(), ..HeadTensors::default() },
            dim: DIM,
        };
        let input = case.input(&[]);
        assert_eq!(interpret(&program, &input).expect("finite"), compiled.evaluate(&input).expect("finite"));
        let slow = median(|| drop(interpret(&program, &input)), 5).as_secs_f64();
        let fast = median(|| drop(compiled.evaluate(&input)), 21).as_secs_f64();
        let maps = median(|| drop(interpreted.evaluate(&input)), 21).as_secs_f64();
        let attention = 4.0 * (tokens as f64).powi(2) * DIM as f64 / ATTENTION_FLOPS;
        println!(
            "| {tokens} | {} | {:.2} | {:.2} | {:.2} | {:.1} | {:.3}% |",
            case.blocks.kv_blocks(),
            slow * 1e3,
            maps * 1e3,
            fast * 1e3,
            slow / fast,
            100.0 * fast / attention
        );
    }
}
