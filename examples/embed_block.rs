//! Embedding, the whole way: a session does the projections around attention too, and cached blocks save those as well.
//!
//! A toy attention block with a stream for text and one for the picture, as in FLUX: each has weights of its own, and both
//! attend to each other. `cargo run --release --example embed_block`

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use flashomni::cpu::RotaryPairs;
use flashomni::runtime::{AttentionBlock, CpuBlock, Linear, Norm, RotaryTable, Session, StreamInput, TokenStream};
use flashomni::tensor::{Dtype, Tensor};

const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const WIDTH: usize = HEADS * HEAD_DIM;
const TEXT: usize = 128;
const IMAGE: usize = 48 * 48;
const TOKENS: usize = TEXT + IMAGE;

const STRATEGY: &str = "
    model toy { layers 1 heads 8 head_dim 64 steps 12 tokens text(128) ++ image(h = 48, w = 48) }

    /// Half of the picture's blocks take a forecast, the others keep the keys of 90% of the mass.
    strategy half(cached = 0.5, mass = 0.9) {
        layout text ++ image(h, w)
        block 64
        schedule { update every 4 }
        let map = softmax(dot(mean(q), mean(k)) / sqrt(head_dim))
        cache image where bottom_mass(softmax(sum(map[image -> text], over = k), over = q), cached, over = q) as taylor(1)
        keep text <-> all
        keep image -> image where top_p(map, mass)
    }";

/// Weights of one stream.
fn stream(tokens: Range<usize>, seed: u64) -> TokenStream {
    let linear = |index: u64| Linear { weight: noise(&[WIDTH, WIDTH], seed + index, 0.05), bias: None };
    let norm = || Some(Norm { weight: noise(&[HEAD_DIM], seed, 1.0), eps: 1e-6 });
    let [q, k, v, out] = [0, 1, 2, 3].map(linear);
    TokenStream { tokens, q, k, v, out, q_norm: norm(), k_norm: norm() }
}

/// The angles of all tokens, by their place in the sequence.
fn rotary() -> flashomni::Result<RotaryTable> {
    let angle = |token: usize, pair: usize| token as f32 / 100_f32.powf(2.0 * pair as f32 / HEAD_DIM as f32);
    let angles = (0..TOKENS).flat_map(|token| (0..HEAD_DIM / 2).map(move |pair| angle(token, pair)));
    let angles = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
    Ok(RotaryTable { angles: Tensor::from_f32(&[TOKENS, HEAD_DIM / 2, 2], angles)?, pairs: RotaryPairs::Interleaved })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut session = Session::new(flashomni::compile(STRATEGY)?)?;
    let streams = vec![stream(0..TEXT, 10), stream(TEXT..TOKENS, 20)];
    // Packed once, for all steps.
    let block = CpuBlock::new(&AttentionBlock::new(HEADS, HEAD_DIM, streams, Some(Arc::new(rotary()?)))?)?;
    let [mut text, mut image] = [TEXT, IMAGE].map(|tokens| Tensor::zeros(&[tokens, WIDTH], Dtype::F32));
    for step in 0..12 {
        let inputs = [TEXT, IMAGE].map(|tokens| noise(&[tokens, WIDTH], 1, 1.0 + 0.01 * step as f32));
        let start = Instant::now();
        let inputs = inputs.each_ref().map(|x| StreamInput::of(x.as_ref()));
        // A host adds the outputs to its tokens, and goes on with its feed-forward network.
        let report = session.begin(step, 0)?.block(&block, &inputs, &[], &mut [text.as_mut(), image.as_mut()])?;
        let kind = format!("{:?}", report.kind).to_lowercase();
        println!("step {step:2}  {kind:8}  {:6.1} ms", start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Numbers that look random, the same at every run.
fn noise(shape: &[usize], seed: u64, scale: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values = (0..shape.iter().product()).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    });
    Tensor::from_f32(shape, values.collect()).unwrap_or_else(|_| Tensor::zeros(shape, Dtype::F32))
}
