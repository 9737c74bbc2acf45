//! `omni bench --block`: medians of whole attention blocks under a strategy and of dense ones, for each kind of step, and their sums.
//!
//! All layers have one block of random weights, every segment of the model a stream of its own, and get the same tokens at every step: one
//! set takes little memory. Tokens are smooth over the picture, and keys have the weights of queries, so that near tokens attend to each
//! other and rules that choose by them find something to leave out.
//!
//! A round puts all its steps into the stream, dense ones between those of the strategy, and reads their times at its end: a GPU that waited
//! for the host between two steps would count how fast launches are prepared.

use std::sync::Arc;
use std::time::Duration;

use flashomni::cpu::RotaryPairs;
use flashomni::ir::Model;
use flashomni::plan::Plan;
use flashomni::runtime::{AttentionBlock, Linear, Memory, Norm, RotaryTable, TokenStream};
use flashomni::tensor::{Dtype, Tensor};

use crate::args::{Bench, Part, Source};
use crate::bench::{Results, Samples, Times, Total, median};
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::pick::Pick;
use crate::run::{gain, threads};
use crate::runner::Runner;
use crate::source::{Noise, Series};
use crate::table;
use crate::{input, runner, source};

/// Measures.
pub fn bench(args: &Bench, console: &Console) -> Result<Exit, Failure> {
    threads(args.threads)?;
    let made_up = Source { synthetic: true, ..args.source.clone() };
    let layers = args.part.layers.clone().unwrap_or_else(Pick::all);
    let part = Part { layers: Some(layers), ..args.part.clone() };
    let (plan, series) = source::open_to_run(&args.file, &args.choice, &made_up, &part, console)?;
    let options = args.device.options(args.room)?;
    let backend = args.device.open(console)?;
    let dtype = runner::dtype(args.source.dtype.unwrap_or(plan.model.dtype), &backend);
    let seed = args.source.seed.unwrap_or(0);
    let block = block(&plan.model, dtype, seed)?;
    // Made-up queries are smooth over the picture, as tokens are.
    let (step, layer) = series.places[0];
    let [smooth, _, _] = series.qkv(step, layer)?;
    let tokens = runner::tokens(&[smooth], &block, dtype)?;
    let plans = [Arc::new(plan.clone()), Arc::new(runner::dense(plan.clone()))];
    let mut runners = runner::pair(&plans, &backend, &block, &options)?;
    runners.iter_mut().try_for_each(|runner| runner.set(&tokens))?;
    let (samples, sums) = rounds(args.rounds, &mut runners, &plan, &series, console)?;
    let [whole_ms, dense_ms] = sums.map(median);
    let memory = runners[0].memory();
    let about = format!("made-up tokens and weights, seed {seed}");
    let mut results = Results::new(args, &plan, &about, samples);
    results.total = Some(Total { whole_ms, dense_ms, speedup: dense_ms / whole_ms });
    results.memory_bytes = memory.map(|memory| memory.bytes(Memory::Gpu));
    results.host_memory_bytes = memory.map(|memory| memory.bytes(Memory::Host));
    if args.json {
        console.print(&table::json(&results))?;
        return Ok(Exit::Fine);
    }
    let rounds = table::plural(usize::from(args.rounds), "round");
    let medians = format!("  medians   of {rounds} of whole blocks, {}\n", args.device.heading(&backend));
    let time = |ms: f64| table::duration(Duration::from_secs_f64(ms / 1e3));
    let sum = format!(
        "  schedule  {} in place of {}, {}: {} of {}\n",
        time(whole_ms),
        time(dense_ms),
        gain([whole_ms, dense_ms]),
        table::plural(distinct(series.places.iter().map(|place| place.0)), "step"),
        table::plural(distinct(series.places.iter().map(|place| place.1)), "layer"),
    );
    let memory = memory.map_or_else(String::new, |memory| format!("  memory    {memory}\n"));
    let heading = input::heading(&plan, &about);
    console.print(&format!("{heading}{medians}\n{}\n{sum}{memory}", results.table()))?;
    Ok(Exit::Fine)
}

/// All rounds: samples of each step, and of each round the times of all steps together, under the strategy and dense.
fn rounds(
    count: u16,
    [own, dense]: &mut [Runner; 2],
    plan: &Plan,
    series: &Series,
    console: &Console,
) -> Result<(Samples, [Vec<Duration>; 2]), Failure> {
    let (mut samples, mut sums, mut shares) = (Samples::default(), [Vec::new(), Vec::new()], Vec::new());
    let mut progress = console.progress(series.places.len() * (usize::from(count) + 1));
    // The first round warms caches and clocks up and is not counted.
    for round in 0..=count {
        own.reset();
        dense.reset();
        let mut ran = Vec::with_capacity(series.places.len());
        for &(step, layer) in &series.places {
            let measured = series.measured(plan, step, layer)?;
            let both = [own.step([step, layer], &measured)?, dense.step([step, layer], &measured)?];
            if round == 0 {
                // Every round chooses the same symbols, and to look at them is to wait for the GPU.
                shares.push(own.live_share(both[0].kind, [step, layer])?);
            }
            ran.push(both);
            progress.step(format!("round {round}, step {step}"));
        }
        let mut sum = [Duration::ZERO; 2];
        for ([own, dense], live) in ran.iter().zip(&shares) {
            let times = Times { selection: own.selection, whole: own.time()?, dense: dense.time()? };
            sum = [sum[0] + times.whole, sum[1] + times.dense];
            if round > 0 {
                samples.add(own.kind, *live, times);
            }
        }
        if round > 0 {
            sums.iter_mut().zip(sum).for_each(|(sums, sum)| sums.push(sum));
        }
    }
    Ok((samples, sums))
}

/// How many different numbers there are.
fn distinct(numbers: impl Iterator<Item = u32>) -> usize {
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

/// A block of random weights as wide as all heads of the model; keys are made as queries are.
fn block(model: &Model, dtype: Dtype, seed: u64) -> Result<AttentionBlock, Failure> {
    let (heads, dim) = (model.heads as usize, model.head_dim as usize);
    let width = heads * dim;
    let scale = 1.7 / (width as f32).sqrt();
    let mut noise = Noise::new(seed ^ 0x5EED);
    let mut linear = || -> Result<Linear, Failure> {
        let weight = noise.tensor(&[width, width], scale)?.cast(dtype);
        Ok(Linear { weight, bias: Some(noise.tensor(&[width], 0.1)?) })
    };
    let norm =
        || -> Result<Norm, Failure> { Ok(Norm { weight: Tensor::from_f32(&[dim], vec![1.0; dim])?, eps: 1e-6 }) };
    let mut streams = Vec::new();
    for segment in &model.segments {
        let queries = linear()?;
        streams.push(TokenStream {
            tokens: segment.start as usize..(segment.start + segment.tokens) as usize,
            k: queries.clone(),
            q: queries,
            v: linear()?,
            out: linear()?,
            q_norm: Some(norm()?),
            k_norm: Some(norm()?),
        });
    }
    let rotary = dim.is_multiple_of(2).then(|| rotary([model.tokens() as usize, dim])).transpose()?;
    Ok(AttentionBlock::new(heads, dim, streams, rotary)?)
}

/// Angles by the place in the sequence.
fn rotary([tokens, dim]: [usize; 2]) -> Result<Arc<RotaryTable>, Failure> {
    let frequency = |pair: usize| 10_000_f32.powf(-2.0 * pair as f32 / dim as f32);
    let angle = |at: usize| (at / (dim / 2)) as f32 * frequency(at % (dim / 2));
    let values = (0..tokens * dim / 2).map(angle).flat_map(|angle| [angle.cos(), angle.sin()]).collect();
    let angles = Tensor::from_f32(&[tokens, dim / 2, 2], values)?;
    Ok(Arc::new(RotaryTable { angles, pairs: RotaryPairs::Interleaved }))
}
