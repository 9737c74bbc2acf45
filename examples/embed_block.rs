//! Embedding, the whole way: a session does the projections around attention too, and cached blocks save those as well.
//!
//! A toy attention block with a stream for text and one for the picture, as in FLUX: each has weights of its own, and both
//! attend to each other. `cargo run --release --example embed_block`

use std::ops::Range;
use std::time::Instant;

use flashomni::cpu::{PackedWeight, Weight, linear_to_heads};
use flashomni::runtime::Session;
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

/// Weights of one stream, packed once.
struct Stream {
    tokens: Range<usize>,
    q: PackedWeight,
    k: PackedWeight,
    v: PackedWeight,
    out: PackedWeight,
}

impl Stream {
    fn new(tokens: Range<usize>, seed: u64) -> flashomni::Result<Self> {
        let weight = |index: u64| noise(&[WIDTH, WIDTH], seed + index, 0.05);
        let (q, k, v, out) = (weight(0), weight(1), weight(2), weight(3));
        Ok(Stream {
            tokens,
            // These are projected head by head: cached queries can be left out, and all come out as attention wants them.
            q: Weight::new(q.as_ref())?.pack_heads(HEAD_DIM)?,
            k: Weight::new(k.as_ref())?.pack_heads(HEAD_DIM)?,
            v: Weight::new(v.as_ref())?.pack_heads(HEAD_DIM)?,
            out: Weight::new(out.as_ref())?.pack(),
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut session = Session::new(flashomni::compile(STRATEGY)?)?;
    let streams = [Stream::new(0..TEXT, 10)?, Stream::new(TEXT..TOKENS, 20)?];
    let by_heads = [HEADS, TOKENS, HEAD_DIM];
    let [mut q, mut k, mut v, mut o] = [(); 4].map(|()| Tensor::zeros(&by_heads, Dtype::F32));
    for step in 0..12 {
        let start = Instant::now();
        let mut at = session.begin(step, 0)?;
        let inputs = streams.each_ref().map(|stream| noise(&[stream.tokens.len(), WIDTH], 1, 1.0 + 0.01 * step as f32));
        if !at.kind().is_reuse() {
            for (stream, x) in streams.iter().zip(&inputs) {
                at.project_q(x.as_ref(), &stream.q, None, stream.tokens.clone(), q.as_mut())?;
                linear_to_heads(x.as_ref(), &stream.k, None, stream.tokens.clone(), k.as_mut())?;
                linear_to_heads(x.as_ref(), &stream.v, None, stream.tokens.clone(), v.as_mut())?;
            }
            // A host applies the norm and rotary embedding of q and k here.
            at.attention_live(q.as_ref(), k.as_ref(), v.as_ref(), o.as_mut())?;
        }
        for stream in &streams {
            let mut out = Tensor::zeros(&[stream.tokens.len(), WIDTH], Dtype::F32);
            at.project_out(o.as_ref(), &stream.out, None, stream.tokens.clone(), out.as_mut())?;
        }
        let kind = format!("{:?}", at.kind()).to_lowercase();
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
