//! Selector passes on a GPU: the paper's strategy at the sizes of images and short videos, 24 heads of 128 channels in bf16.
//!
//!     cargo bench --bench gpu_selectors              blocks of 64 and 128
//!     cargo bench --bench gpu_selectors -- 128       blocks of 128 alone
//!
//! "pass" is the time of one pass, recorded as a graph and repeated, as an update step runs it; below it the time of each kernel when it
//! is repeated alone, with what it reads in the cache if that is small. Target: 1% of dense attention at 33,024 tokens, about 200 us, and 3%
//! at 4,608, about 12 us besides launches.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::sync::Arc;

use flashomni::cuda::{Buffer, Device, Event, Graph, Stream};
use flashomni::kernels::selector::{LayerTensors, Setup};
use flashomni::kernels::{DeviceSymbols, Element, Kernels, TensorView};
use flashomni::plan::{Body, Plan};
use flashomni::symbols::Symbols;
use flashomni::{Compiler, Result};

const TEXT: u32 = 512;
const HEADS: usize = 24;
const DIM: usize = 128;
/// Times that something is repeated.
const REPEATS: u32 = 50;

/// The strategy for an image of so many tokens.
fn plan(image: [u32; 2], block: &str) -> Result<Plan> {
    let source = include_str!("../examples/strategies/flashomni.omni");
    let sizes = [
        ("heads", HEADS.to_string()),
        ("head_dim", DIM.to_string()),
        ("layers", "2".to_owned()),
        ("steps", "50".to_owned()),
        ("text", TEXT.to_string()),
        ("image.h", image[0].to_string()),
        ("image.w", image[1].to_string()),
    ];
    let compiler = Compiler::from_source("flashomni.omni", source).strategy("flashomni").model("minidit_128");
    let sized = sizes.into_iter().fold(compiler, |compiler, (name, value)| compiler.shape(name, value));
    Ok(sized.param("block_size", block).compile()?.plan)
}

/// Bits of random bf16 numbers between -2 and 2.
fn numbers(count: usize, seed: u64) -> Vec<u16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f32 / (1 << 24) as f32;
        half::bf16::from_f32(unit * 4.0 - 2.0).to_bits()
    };
    (0..count).map(|_| next()).collect()
}

/// Microseconds of what `work` puts into the stream, the median of five rounds.
fn microseconds(stream: &Stream, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    work()?;
    for _ in 0..5 {
        let (start, end) = (Event::new(stream.device())?, Event::new(stream.device())?);
        start.record(stream)?;
        for _ in 0..REPEATS {
            work()?;
        }
        end.record(stream)?;
        times.push(start.milliseconds_to(&end)? * 1e3 / f64::from(REPEATS));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[2])
}

fn measure(kernels: &Kernels, stream: &Stream, image: [u32; 2], block: &str) -> Result<()> {
    let plan = plan(image, block)?;
    let is_dynamic = |place: &usize| matches!(plan.classes[plan.class_of[*place] as usize].body, Body::Dynamic { .. });
    // In the middle of the steps, where shares are neither the smallest nor the largest.
    let dynamic: Vec<usize> = (0..plan.class_of.len()).filter(is_dynamic).collect();
    let place = dynamic[dynamic.len() / 2];
    let (step, layer) = (place / HEADS / 2, place / HEADS % 2);
    let at = (step as u32, layer as u32);
    let class = plan.class(at.0, at.1, 0);
    let heads: Vec<u32> = (0..HEADS as u32).collect();
    let setup = Setup::of_class(&plan, class, &heads, std::slice::from_ref(&at))?;
    let tokens = plan.model.tokens() as usize;
    let tensor = |seed| -> Result<TensorView> {
        let memory = Arc::new(Buffer::of(stream, &numbers(HEADS * tokens * DIM, seed))?);
        TensorView::of(&memory, [1, HEADS, tokens, DIM], Element::Bf16)
    };
    let (q, k) = (tensor(1)?, tensor(2)?);
    let tensors = LayerTensors { q: Some(&q), k: Some(&k), v: None };
    let dense = Symbols::dense(HEADS, setup.blocks.q_blocks(), setup.blocks.kv_blocks());
    let symbols = DeviceSymbols::upload(stream, &dense, setup.blocks, 1)?;
    let pass = kernels.selector_pass(stream, &setup, &symbols, &heads)?;
    pass.run(stream, &tensors, at)?;
    stream.synchronize()?;
    let launched = microseconds(stream, || pass.run(stream, &tensors, at))?;
    // SAFETY: the pass, tensors and symbols live until the end of this function.
    let mut graph = unsafe { Graph::capture(stream, || pass.run(stream, &tensors, at)) }?;
    let repeated = microseconds(stream, || graph.launch(stream))?;
    let read = (2 * HEADS * tokens * DIM * 2) as f64;
    println!("\n{tokens} tokens, blocks of {block}: pass {repeated:.1} us as a graph, {launched:.1} us launched");
    println!(
        "  {} launches, {:.0} MB of arrays; q and k once: {:.0} MB, {:.1} us at 4.2 TB/s",
        pass.launches().len(),
        pass.bytes() as f64 / 1e6,
        read / 1e6,
        read / 4.2e6
    );
    for (index, name) in pass.launches().into_iter().enumerate() {
        let time = microseconds(stream, || pass.launch(stream, &tensors, at, index))?;
        println!("  {time:8.1} us  {name}");
    }
    Ok(())
}

fn main() -> Result<()> {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!("nothing is measured: {error}");
            return Ok(());
        }
    };
    let (kernels, stream) = (Kernels::new(&device)?, Stream::new(&device)?);
    println!("{device}");
    let only: Vec<String> = std::env::args().skip(1).filter(|word| word.parse::<u32>().is_ok()).collect();
    for image in [[64, 64], [128, 128], [128, 254]] {
        for block in ["64", "128"] {
            if only.is_empty() || only.iter().any(|only| only == block) {
                measure(&kernels, &stream, image, block)?;
            }
        }
    }
    Ok(())
}
