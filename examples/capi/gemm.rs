//! `omni_projection`: GEMM-Q and GEMM-O.
//!
//! ```c
//! typedef struct {                   // all tensors in row-major order
//!     uint64_t batch, heads, head_dim, all_tokens, first_token, tokens;
//!     uint64_t inputs;               // GEMM-Q: channels of x, GEMM-O: of `further`, may be 0
//!     uint64_t outputs;              // GEMM-O: channels of the output; 0: this is GEMM-Q
//!     uint64_t x;                    // GEMM-Q: [batch, tokens, inputs]; GEMM-O: o [batch, heads, all_tokens, head_dim]
//!     uint64_t further;              // GEMM-O: [batch, tokens, inputs]
//!     uint64_t weight;               // GEMM-Q: [heads * head_dim, inputs]; GEMM-O: [outputs, heads * head_dim + inputs]
//!     uint64_t out;                  // GEMM-Q: [batch, heads, all_tokens, head_dim]; GEMM-O: [batch, tokens, outputs]
//!     uint64_t bias;                 // f32 [heads * head_dim] or [outputs]; or 0
//!     uint64_t norm, rotary;         // GEMM-Q: f32 [head_dim], f32 [all_tokens, head_dim / 2, 2]; or 0
//!     uint64_t terms[5];             // GEMM-O: [batch, tokens, outputs]; the first 0 ends them
//!     uint64_t cache, skip;          // symbols on the GPU, with q-blocks of q_block tokens and kv-blocks of kv_block among kv_tokens
//!     uint64_t kv_tokens, q_block, kv_block;
//!     uint32_t symbol_batches, set;  // set: 0 all tiles, without symbols; 1 live ones, 2 cached ones
//!     float weights[5];              // of the terms
//!     float epsilon;                 // of RMSNorm
//!     uint32_t halves, is_bf16;      // halves: 1 channels i and i + head_dim / 2 turn together, 0 2 i and 2 i + 1
//!     uint32_t path, reserved;       // path: 0 the fastest kernel, 1 the portable one
//! } omni_gemm_problem;
//! ```

use flashomni::kernels::{
    Element, FloatView, GemmSizes, HeadsOperands, MatrixView, OutOperands, Projection, RotaryPairs, TensorView, TileSet,
};
use flashomni::{Error, Result};

use crate::{Call, Opened, Prepared, made, path, symbols_on_gpu};

/// A projection, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct GemmProblem {
    batch: u64,
    heads: u64,
    head_dim: u64,
    all_tokens: u64,
    first_token: u64,
    tokens: u64,
    inputs: u64,
    outputs: u64,
    x: u64,
    further: u64,
    weight: u64,
    out: u64,
    bias: u64,
    norm: u64,
    rotary: u64,
    terms: [u64; 5],
    cache: u64,
    skip: u64,
    kv_tokens: u64,
    q_block: u64,
    kv_block: u64,
    symbol_batches: u32,
    set: u32,
    weights: [f32; 5],
    epsilon: f32,
    halves: u32,
    is_bf16: u32,
    path: u32,
    reserved: u32,
}

/// Prepares a projection.
///
/// # Safety
/// `opened` is from [`omni_open`](crate::omni_open); the problem's memory has the sizes that it says, and lives as long as what is prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_projection(opened: *const Opened, problem: *const GemmProblem) -> *mut Prepared {
    // SAFETY: as the caller promises, of both and of what they point to.
    unsafe { made("omni_projection", opened, problem, |opened, problem| prepare(opened, problem)) }
}

unsafe fn prepare(opened: &Opened, problem: &GemmProblem) -> Result<Prepared> {
    let Opened { kernels, stream } = opened;
    let element = if problem.is_bf16 != 0 { Element::Bf16 } else { Element::F16 };
    let GemmProblem { batch, heads, head_dim, all_tokens, first_token, tokens, inputs, outputs, .. } = *problem;
    let [batch, heads, head_dim, all_tokens, first_token, tokens, inputs, outputs] =
        [batch, heads, head_dim, all_tokens, first_token, tokens, inputs, outputs].map(|size| size as usize);
    let matrix = |address: u64, shape: [usize; 3]| {
        // SAFETY: the caller of `omni_projection` promises it.
        unsafe { MatrixView::from_raw(address, shape, [shape[1] * shape[2], shape[2]], element) }
    };
    let by_heads = |address: u64| {
        let head = all_tokens * head_dim;
        // SAFETY: as above.
        unsafe {
            TensorView::from_raw(address, [batch, heads, all_tokens, head_dim], [heads * head, head, head_dim], element)
        }
    };
    // SAFETY: as above.
    let floats = |address: u64, len: usize| (address != 0).then(|| unsafe { FloatView::from_raw(address, len) });
    let symbols = || {
        let GemmProblem { cache, skip, kv_tokens, q_block, kv_block, symbol_batches, .. } = *problem;
        let [heads, all_tokens, kv_tokens, q_block, kv_block] =
            [heads as u32, all_tokens as u32, kv_tokens as u32, q_block as u32, kv_block as u32];
        let sizes = [symbol_batches, heads, all_tokens, kv_tokens, q_block, kv_block];
        // SAFETY: as above.
        unsafe { symbols_on_gpu(stream, [cache, skip], sizes) }
    };
    let (set, offsets) = match problem.set {
        0 => (TileSet::All, None),
        1 => symbols().map(|(symbols, offsets)| (TileSet::Live(symbols), offsets))?,
        2 => symbols().map(|(symbols, offsets)| (TileSet::Cached(symbols), offsets))?,
        other => return Err(Error::Value(format!("there is no set {other}: 0, 1 and 2 are"))),
    };
    let projection =
        if outputs == 0 { Projection::Heads { inputs } } else { Projection::Out { further: inputs, outputs } };
    let range = first_token..first_token + tokens;
    let sizes = GemmSizes { batch, heads, head_dim, all_tokens, tokens: range, projection };
    let work = kernels.gemm_work(stream, set, sizes, path(problem.path)?, None)?;
    let call = if outputs == 0 {
        let pairs = if problem.halves != 0 { RotaryPairs::Halves } else { RotaryPairs::Interleaved };
        let operands = HeadsOperands {
            x: matrix(problem.x, [batch, tokens, inputs]),
            weight: matrix(problem.weight, [1, heads * head_dim, inputs]),
            out: by_heads(problem.out),
            bias: floats(problem.bias, heads * head_dim),
            norm: floats(problem.norm, head_dim).map(|weights| (weights, problem.epsilon)),
            rotary: floats(problem.rotary, all_tokens * head_dim).map(|table| (table, pairs)),
        };
        kernels.gemm_q(&work, operands)?
    } else {
        let terms = problem.terms.iter().zip(problem.weights).take_while(|(address, _)| **address != 0);
        let operands = OutOperands {
            o: by_heads(problem.x),
            further: (inputs > 0).then(|| matrix(problem.further, [batch, tokens, inputs])),
            weight: matrix(problem.weight, [1, outputs, heads * head_dim + inputs]),
            bias: floats(problem.bias, outputs),
            terms: terms.map(|(address, weight)| (matrix(*address, [batch, tokens, outputs]), weight)).collect(),
            out: matrix(problem.out, [batch, tokens, outputs]),
        };
        kernels.gemm_o(&work, operands)?
    };
    Ok(Prepared { call: Call::Gemm(Box::new(call)), device: kernels.device().clone(), _offsets: offsets })
}
