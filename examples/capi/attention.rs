//! `omni_attention`: attention under sparse symbols.
//!
//! ```c
//! typedef struct { uint64_t address; uint64_t shape[4]; uint64_t strides[3]; } omni_tensor;
//! //  [batch, heads, tokens, head_dim]; strides of batch, head and token in elements, rows of head_dim in one piece
//!
//! typedef struct {
//!     omni_tensor q, k, v, out;      // bf16 or f16, head_dim 64 or 128
//!     uint64_t lse;                  // f32 [batch, heads, q_tokens] on the GPU, or 0
//!     uint64_t cache;                // S_c: u64 [symbol_batches * heads][ceil(q_blocks / 64)]
//!     uint64_t skip;                 // S_s: u64 [symbol_batches * heads * q_blocks][ceil(kv_blocks / 64)]; 1 computes
//!     uint32_t symbols_on_gpu;       // 1: both are GPU memory and stay in use, 0: host memory, copied
//!     uint32_t symbol_batches;       // 1: all batch entries obey the same, or as many as there are
//!     uint32_t q_block, kv_block;    // tokens of a block, 64 or 128
//!     uint32_t is_bf16;              // 1 bf16, 0 f16
//!     uint32_t path;                 // 0 the fastest kernel, 1 the portable one, 2 the naive one
//!     float scale;                   // factor of the scores; 0 is 1 / sqrt(head_dim)
//! } omni_problem;
//! ```

use std::sync::Arc;

use flashomni::cuda::{Buffer, Stream};
use flashomni::kernels::{DeviceSymbols, Element, FloatView, Operands, Options, TensorView};
use flashomni::symbols::{BitMatrix, Blocks, Symbols};
use flashomni::{Error, Result};

use crate::{Call, Opened, Prepared, made, path, symbols_on_gpu};

/// A tensor, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tensor {
    address: u64,
    shape: [u64; 4],
    strides: [u64; 3],
}

impl Tensor {
    /// # Safety
    /// The address is that of GPU memory of this shape, which outlives the view.
    pub unsafe fn view(self, element: Element) -> TensorView {
        let (shape, strides) = (self.shape.map(|size| size as usize), self.strides.map(|size| size as usize));
        // SAFETY: as the caller promises.
        unsafe { TensorView::from_raw(self.address, shape, strides, element) }
    }
}

/// A problem, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: u64,
    cache: u64,
    skip: u64,
    symbols_on_gpu: u32,
    symbol_batches: u32,
    q_block: u32,
    kv_block: u32,
    is_bf16: u32,
    path: u32,
    scale: f32,
}

/// Prepares attention.
///
/// # Safety
/// `opened` is from [`omni_open`]; the problem's memory has the sizes that it says, and lives as long as what is prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_attention(opened: *const Opened, problem: *const Problem) -> *mut Prepared {
    // SAFETY: as the caller promises, of both and of what they point to.
    unsafe { made("omni_attention", opened, problem, |opened, problem| prepare(opened, problem)) }
}

unsafe fn prepare(opened: &Opened, problem: &Problem) -> Result<Prepared> {
    let Opened { kernels, stream } = opened;
    let element = if problem.is_bf16 != 0 { Element::Bf16 } else { Element::F16 };
    let [batch, heads, q_tokens, head_dim] = problem.q.shape.map(|size| size as usize);
    // SAFETY: as above.
    let lse = (problem.lse != 0).then(|| unsafe { FloatView::from_raw(problem.lse, batch * heads * q_tokens) });
    let path = path(problem.path)?;
    let options = Options { scale: (problem.scale != 0.0).then_some(problem.scale), path, ..Options::default() };
    // SAFETY: as above.
    let (symbols, offsets) = unsafe { symbols(stream, problem)? };
    let work = kernels.work(stream, &symbols, [batch, head_dim], &options, None)?;
    // SAFETY: as above.
    let [q, k, v, out] = [problem.q, problem.k, problem.v, problem.out].map(|tensor| unsafe { tensor.view(element) });
    let call = kernels.attention(&work, Operands { q, k, v, out, lse }, options)?;
    Ok(Prepared { call: Call::Attention(Box::new(call)), device: Arc::clone(kernels.device()), _offsets: offsets })
}

/// The problem's symbols, and what has to live as long as they.
unsafe fn symbols(stream: &Stream, problem: &Problem) -> Result<(Arc<DeviceSymbols>, Option<[Buffer; 2]>)> {
    let Problem { q_block, kv_block, symbol_batches, .. } = *problem;
    if [q_block, kv_block].iter().any(|size| ![64, 128].contains(size)) {
        return Err(Error::Shape(format!("blocks of {q_block} x {kv_block} tokens, wanted 64 or 128")));
    }
    let [_, heads, q_tokens, _] = problem.q.shape.map(|size| size as usize);
    let kv_tokens = problem.k.shape[2] as usize;
    let blocks = Blocks::regular(q_tokens, kv_tokens, q_block as usize, kv_block as usize);
    let (q_blocks, kv_blocks) = (blocks.q_blocks(), blocks.kv_blocks());
    if problem.symbols_on_gpu != 0 {
        let sizes = [symbol_batches, heads as u32, q_tokens as u32, kv_tokens as u32, q_block, kv_block];
        // SAFETY: as the caller promises.
        return unsafe { symbols_on_gpu(stream, [problem.cache, problem.skip], sizes) };
    }
    let batches = symbol_batches as usize;
    let bits = |address: u64, rows: usize, columns: usize| {
        let words = rows * columns.div_ceil(64);
        let pointer = std::ptr::with_exposed_provenance::<u64>(address as usize);
        // SAFETY: the caller promises so many words in host memory.
        let words = unsafe { std::slice::from_raw_parts(pointer, words) };
        let matrix = BitMatrix::from_words(rows, columns, words.to_vec());
        matrix.ok_or_else(|| Error::Shape("symbols of an impossible size".to_owned()))
    };
    if problem.cache == 0 || problem.skip == 0 {
        return Err(Error::Value("the symbols are null pointers".to_owned()));
    }
    let cache = bits(problem.cache, batches * heads, q_blocks)?;
    let skip = bits(problem.skip, batches * heads * q_blocks, kv_blocks)?;
    let symbols = Symbols { cache, skip, partial: None };
    Ok((DeviceSymbols::upload(stream, &symbols, &blocks, batches)?, None))
}
