//! Attention under sparse symbols as a C library, to be called from Python by ctypes, or from anything else, on tensors that
//! are on the GPU already.
//!
//! ```text
//! cargo build --release --no-default-features --example attention_capi     # target/release/examples/libattention_capi.so
//! ```
//!
//! ```c
//! typedef struct { uint64_t address; uint64_t shape[4]; uint64_t strides[3]; } omni_tensor;
//! //  [batch, heads, tokens, head_dim]; strides of batch, head and token in elements, rows of head_dim in one piece
//!
//! typedef struct {
//!     omni_tensor q, k, v, out;      // bf16 or f16, head_dim 64 or 128
//!     uint64_t lse;                  // f32 [batch, heads, q_tokens] on the GPU, or 0
//!     uint64_t cache;                // S_c: u64 [symbol_batches * heads][ceil(q_blocks / 64)], q-blocks of 128 tokens
//!     uint64_t skip;                 // S_s: u64 [symbol_batches * heads * q_blocks][ceil(kv_blocks / 64)]; 1 computes
//!     uint32_t symbols_on_gpu;       // 1: both are GPU memory and stay in use, 0: host memory, copied
//!     uint32_t symbol_batches;       // 1: all batch entries obey the same, or as many as there are
//!     uint32_t kv_block;             // tokens of a kv-block, 64 or 128
//!     uint32_t is_bf16;              // 1 bf16, 0 f16
//!     uint32_t path;                 // 0 the fastest kernel, 1 the portable one, 2 the naive one
//!     float scale;                   // factor of the scores; 0 is 1 / sqrt(head_dim)
//! } omni_problem;
//!
//! void *omni_open(void);                                     // for the GPU of the current context; null on failure
//! void omni_close(void *kernels);
//! void *omni_attention(void *kernels, const omni_problem *); // compiles what is missing and prepares; null on failure
//! void omni_free(void *attention);
//! int omni_plan(void *attention, void *stream);              // work list: first, and whenever the bits have changed
//! int omni_run(void *attention, void *stream);               // attention; both only launch: 0, or 1 on failure
//! const char *omni_error(void);                              // what failed last in this thread
//! ```
//!
//! The stream is a `CUstream` of the primary context, such as `torch.cuda.current_stream().cuda_stream`. Bits of a row are least
//! significant first, and those behind its end are zero.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use flashomni::cuda::{Buffer, Device, Stream};
use flashomni::kernels::attention::FloatView;
use flashomni::kernels::symbols::Sizes;
use flashomni::kernels::{AttentionCall, DeviceSymbols, Element, Kernels, Operands, Options, Path, TensorView, params};
use flashomni::symbols::{BitMatrix, Blocks, Symbols};
use flashomni::{Error, Result};

/// A tensor, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tensor {
    address: u64,
    shape: [u64; 4],
    strides: [u64; 3],
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
    kv_block: u32,
    is_bf16: u32,
    path: u32,
    scale: f32,
}

/// What `omni_open` gives.
pub struct Opened {
    kernels: Kernels,
    stream: Stream,
}

/// What `omni_attention` gives.
pub struct Prepared {
    call: AttentionCall,
    device: Arc<Device>,
    /// Offsets of blocks, where the symbols are the caller's.
    _offsets: Option<[Buffer; 2]>,
}

thread_local! {
    static FAILURE: RefCell<CString> = RefCell::default();
}

/// Opens the GPU of the current context.
#[unsafe(no_mangle)]
pub extern "C" fn omni_open() -> *mut Opened {
    boxed(|| {
        let device = Device::open(Device::current_ordinal()?)?;
        Ok(Opened { kernels: Kernels::new(&device)?, stream: Stream::new(&device)? })
    })
}

/// Closes it. What was prepared on it stays usable.
///
/// # Safety
/// `opened` is from [`omni_open`] and not used again, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_close(opened: *mut Opened) {
    // SAFETY: as the caller promises.
    unsafe { release(opened) }
}

/// Prepares attention.
///
/// # Safety
/// `opened` is from [`omni_open`]; the problem's memory has the sizes that it says, and lives as long as what is prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_attention(opened: *const Opened, problem: *const Problem) -> *mut Prepared {
    // SAFETY: both are null or point to what they should.
    let pair = unsafe { (opened.as_ref(), problem.as_ref()) };
    boxed(|| match pair {
        // SAFETY: as the caller promises.
        (Some(opened), Some(problem)) => unsafe { prepare(opened, problem) },
        _ => Err(Error::Value("omni_attention was given a null pointer".to_owned())),
    })
}

/// Frees what was prepared.
///
/// # Safety
/// `prepared` is from [`omni_attention`] and not used again, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_free(prepared: *mut Prepared) {
    // SAFETY: as the caller promises.
    unsafe { release(prepared) }
}

/// Launches the making of the work list.
///
/// # Safety
/// `prepared` is from [`omni_attention`], `stream` a stream of the GPU's primary context or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_plan(prepared: *const Prepared, stream: *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { launch(prepared, stream, AttentionCall::plan) }
}

/// Launches attention.
///
/// # Safety
/// As [`omni_plan`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_run(prepared: *const Prepared, stream: *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { launch(prepared, stream, AttentionCall::run) }
}

/// What failed last in this thread; valid until the next failure.
#[unsafe(no_mangle)]
pub extern "C" fn omni_error() -> *const c_char {
    FAILURE.with_borrow(|text| text.as_ptr())
}

unsafe fn prepare(opened: &Opened, problem: &Problem) -> Result<Prepared> {
    let Opened { kernels, stream } = opened;
    let element = if problem.is_bf16 != 0 { Element::Bf16 } else { Element::F16 };
    let view = |tensor: Tensor| {
        let (shape, strides) = (tensor.shape.map(|size| size as usize), tensor.strides.map(|size| size as usize));
        // SAFETY: the caller of `omni_attention` promises it.
        unsafe { TensorView::from_raw(tensor.address, shape, strides, element) }
    };
    let [batch, heads, q_tokens, head_dim] = problem.q.shape.map(|size| size as usize);
    // SAFETY: as above.
    let lse = (problem.lse != 0).then(|| unsafe { FloatView::from_raw(problem.lse, batch * heads * q_tokens) });
    let path = match problem.path {
        0 => Path::Best,
        1 => Path::Portable,
        2 => Path::Naive,
        other => return Err(Error::Value(format!("there is no path {other}: 0, 1 and 2 are"))),
    };
    let options = Options { scale: (problem.scale != 0.0).then_some(problem.scale), path, ..Options::default() };
    // SAFETY: as above.
    let (symbols, offsets) = unsafe { symbols(stream, problem)? };
    let work = kernels.work(stream, &symbols, [batch, head_dim], &options, None)?;
    let [q, k, v, out] = [problem.q, problem.k, problem.v, problem.out].map(view);
    let call = kernels.attention(&work, Operands { q, k, v, out, lse }, options)?;
    Ok(Prepared { call, device: Arc::clone(kernels.device()), _offsets: offsets })
}

/// The problem's symbols, and what has to live as long as they.
unsafe fn symbols(stream: &Stream, problem: &Problem) -> Result<(Arc<DeviceSymbols>, Option<[Buffer; 2]>)> {
    let Problem { kv_block, symbol_batches, .. } = *problem;
    if ![64, 128].contains(&kv_block) {
        return Err(Error::Shape(format!("kv-blocks of {kv_block} tokens, wanted 64 or 128")));
    }
    let [_, heads, q_tokens, _] = problem.q.shape.map(|size| size as usize);
    let kv_tokens = problem.k.shape[2] as usize;
    let blocks = Blocks::regular(q_tokens, kv_tokens, 128, kv_block as usize);
    let (q_blocks, kv_blocks) = (blocks.q_blocks(), blocks.kv_blocks());
    if problem.symbols_on_gpu != 0 {
        let offsets = [Buffer::of(stream, &blocks.q)?, Buffer::of(stream, &blocks.kv)?];
        let [q_start, kv_start] = [&offsets[0], &offsets[1]].map(Buffer::address);
        let (cache, skip) = (problem.cache, problem.skip);
        let addresses = params::Symbols { cache, skip, q_start, kv_start, ..params::Symbols::default() };
        let sizes = Sizes {
            batches: symbol_batches,
            heads: heads as u32,
            q_blocks: q_blocks as u32,
            kv_blocks: kv_blocks as u32,
            q_tokens: q_tokens as u32,
            kv_tokens: kv_tokens as u32,
            kv_block,
            is_regular: true,
        };
        // SAFETY: the offsets live as long as what is prepared, and the caller vouches for the bits.
        return Ok((unsafe { DeviceSymbols::from_raw(addresses, sizes)? }, Some(offsets)));
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

unsafe fn launch(
    prepared: *const Prepared,
    stream: *mut c_void,
    what: impl FnOnce(&AttentionCall, &Stream) -> Result<()>,
) -> c_int {
    // SAFETY: the callers' caller promises that it is null or from `omni_attention`.
    let prepared = unsafe { prepared.as_ref() };
    let done = attempt(|| {
        let prepared = prepared.ok_or_else(|| Error::Value("a launch was given a null pointer".to_owned()))?;
        // SAFETY: the stream is the caller's, of the primary context, and outlives this call.
        what(&prepared.call, &unsafe { Stream::foreign(&prepared.device, stream) })
    });
    c_int::from(done.is_none())
}

fn boxed<T>(make: impl FnOnce() -> Result<T>) -> *mut T {
    attempt(make).map_or(std::ptr::null_mut(), |made| Box::into_raw(Box::new(made)))
}

unsafe fn release<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: it comes from `boxed`, and the caller does not use it again.
        drop(unsafe { Box::from_raw(pointer) });
    }
}

/// What `work` gives; its error is kept for [`omni_error`]. No panic leaves the library.
fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Option<T> {
    let message = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a bug in flashomni: it panicked".to_owned(),
    };
    FAILURE.set(CString::new(message.replace('\0', " ")).unwrap_or_default());
    None
}
