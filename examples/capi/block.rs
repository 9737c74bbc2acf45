//! `omni_session`: a generation of whole attention blocks, one stream of tokens, the same block in every layer.
//!
//! ```c
//! typedef struct {
//!     omni_strategy strategy;                  // strategy.rs
//!     uint64_t inputs, outputs;                // channels
//!     const uint16_t *q, *k, *v, *out;         // host memory: [heads * head_dim, inputs], out [outputs, heads * head_dim]
//!     const float *norm, *rotary;              // host memory: [head_dim] of q and k, [tokens, head_dim / 2, 2] interleaved; or null
//!     uint32_t is_bf16, reserved;              // 1 bf16, 0 f16
//! } omni_block;
//!
//! void *omni_session(void *kernels, const omni_block *, void *stream);   // null on failure
//! int omni_block_step(void *session, uint32_t step, uint32_t layer, uint64_t x, uint64_t out);
//! //  GPU memory [tokens, inputs] and [tokens, outputs]; the letter of the kind of step as in `omni build`, or -1 on failure
//! int omni_shares(void *session, uint32_t layer, double shares[2]);      // of q-blocks computed, of pairs of blocks live
//! uint64_t omni_session_bytes(void *session);                            // announced GPU memory
//! int omni_reset(void *session);
//! void omni_end(void *session);
//! ```

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use flashomni::cpu::RotaryPairs;
use flashomni::cuda::{Buffer, Stream};
use flashomni::kernels::Element;
use flashomni::runtime::{
    AttentionBlock, DeviceBlock, DeviceInput, DeviceMatrix, DeviceOptions, DeviceSession, Linear, Memory, Norm,
    RotaryTable, TokenStream,
};
use flashomni::tensor::Tensor;
use flashomni::{Error, Result};
use half::{bf16, f16};

use crate::strategy::Strategy;
use crate::{Opened, attempt, made, release};

/// A block, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct BlockProblem {
    strategy: Strategy,
    inputs: u64,
    outputs: u64,
    q: *const u16,
    k: *const u16,
    v: *const u16,
    out: *const u16,
    norm: *const f32,
    rotary: *const f32,
    is_bf16: u32,
    reserved: u32,
}

/// What `omni_session` gives.
pub struct Running {
    session: DeviceSession,
    element: Element,
    tokens: usize,
    channels: [usize; 2],
}

/// Begins a generation.
///
/// # Safety
/// `opened` is from [`omni_open`](crate::omni_open), the problem's memory has the sizes that it says, and `stream` is a stream of the GPU's
/// primary context that outlives the session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_session(
    opened: *const Opened,
    problem: *const BlockProblem,
    stream: *mut c_void,
) -> *mut Running {
    // SAFETY: as the caller promises, of both and of what they point to.
    unsafe { made("omni_session", opened, problem, |opened, problem| begin(opened, problem, stream)) }
}

/// Puts a step of a layer into the stream.
///
/// # Safety
/// `running` is from [`omni_session`], and both addresses are GPU memory of the block's sizes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_block_step(running: *mut Running, step: u32, layer: u32, x: u64, out: u64) -> c_int {
    // SAFETY: as the caller promises.
    let running = unsafe { running.as_mut() };
    let letter = attempt(|| {
        let running = running.ok_or_else(|| Error::Value("omni_block_step was given a null pointer".to_owned()))?;
        let device = running.session.stream().device();
        let matrix = |address: u64, channels: usize| {
            let shape = [running.tokens, channels];
            // SAFETY: as the caller promises.
            let memory = unsafe { Buffer::foreign(device, address, running.tokens * channels * 2) };
            DeviceMatrix::of(Arc::new(memory), shape, running.element)
        };
        let (x, out) = (matrix(x, running.channels[0])?, matrix(out, running.channels[1])?);
        let input = DeviceInput { x: &x, further: None };
        running.session.block(step, layer, &[input], &[], &[&out])?;
        let letters = running.session.plan().schedule.letters(layer);
        Ok(c_int::from(letters.as_bytes()[step as usize]))
    });
    letter.unwrap_or(-1)
}

/// The shares of q-blocks that are computed and of pairs of blocks that are live, where symbols are in force.
///
/// # Safety
/// `running` is from [`omni_session`], `shares` has room for two numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_shares(running: *const Running, layer: u32, shares: *mut f64) -> c_int {
    // SAFETY: as the caller promises.
    let running = unsafe { running.as_ref() };
    let done = attempt(|| {
        let running = running.ok_or_else(|| Error::Value("omni_shares was given a null pointer".to_owned()))?;
        let found = match running.session.symbols_on_gpu(layer)? {
            Some(symbols) => {
                let (heads, q_blocks) = (symbols.heads(), symbols.q_blocks());
                let mut live = 0;
                for head in 0..heads {
                    for block in symbols.cache.ones_of_row(head) {
                        live += symbols.skip.count_row(head * q_blocks + block);
                    }
                }
                let rows = heads * q_blocks;
                [symbols.cache.count() as f64 / rows as f64, live as f64 / (rows * symbols.skip.columns()) as f64]
            }
            None => match running.session.symbols(layer) {
                Some(symbols) => [computed_share(symbols), symbols.live_share()?],
                None => [1.0, 1.0],
            },
        };
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(shares, 2) }.copy_from_slice(&found);
        Ok(())
    });
    c_int::from(done.is_none())
}

/// The GPU memory that the session has announced.
///
/// # Safety
/// `running` is from [`omni_session`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_session_bytes(running: *const Running) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { running.as_ref() }.map_or(0, |running| running.session.memory().bytes(Memory::Gpu))
}

/// Begins the next generation.
///
/// # Safety
/// `running` is from [`omni_session`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_reset(running: *mut Running) -> c_int {
    // SAFETY: as the caller promises.
    let running = unsafe { running.as_mut() };
    let done = attempt(|| {
        running.ok_or_else(|| Error::Value("omni_reset was given a null pointer".to_owned()))?.session.reset();
        Ok(())
    });
    c_int::from(done.is_none())
}

/// Ends a session.
///
/// # Safety
/// `running` is from [`omni_session`] and not used again, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_end(running: *mut Running) {
    // SAFETY: as the caller promises.
    unsafe { release(running) }
}

fn computed_share(symbols: &flashomni::runtime::LayerSymbols) -> f64 {
    let of = |count: fn(&flashomni::symbols::Symbols) -> usize| -> usize {
        symbols.groups.iter().map(|group| count(&group.symbols)).sum()
    };
    of(|it| it.cache.count()) as f64 / of(|it| it.heads() * it.q_blocks()).max(1) as f64
}

unsafe fn begin(opened: &Opened, problem: &BlockProblem, stream: *mut c_void) -> Result<Running> {
    // SAFETY: as the caller of `omni_session` promises.
    let plan = unsafe { problem.strategy.plan()? };
    let [heads, head_dim, tokens] =
        [plan.model.heads, plan.model.head_dim, plan.model.tokens()].map(|size| size as usize);
    let element = if problem.is_bf16 != 0 { Element::Bf16 } else { Element::F16 };
    let (width, channels) = (heads * head_dim, [problem.inputs, problem.outputs].map(|size| size as usize));
    let linear = |pointer: *const u16, shape: [usize; 2]| {
        // SAFETY: as above.
        let bits = unsafe { std::slice::from_raw_parts(pointer, shape[0] * shape[1]) };
        let weight = match element {
            Element::Bf16 => Tensor::from_bf16(&shape, bits.iter().map(|bits| bf16::from_bits(*bits)).collect()),
            Element::F16 => Tensor::from_f16(&shape, bits.iter().map(|bits| f16::from_bits(*bits)).collect()),
        };
        Ok::<_, Error>(Linear { weight: weight?, bias: None })
    };
    let floats = |pointer: *const f32, shape: &[usize]| {
        // SAFETY: as above.
        let values =
            (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer, shape.iter().product()) });
        values.map(|values| Tensor::from_f32(shape, values.to_vec())).transpose()
    };
    let norm = floats(problem.norm, &[head_dim])?.map(|weight| Norm { weight, eps: 1e-6 });
    let angles = floats(problem.rotary, &[tokens, head_dim / 2, 2])?;
    let rotary = angles.map(|angles| Arc::new(RotaryTable { angles, pairs: RotaryPairs::Interleaved }));
    let own = TokenStream {
        tokens: 0..tokens,
        q: linear(problem.q, [width, channels[0]])?,
        k: linear(problem.k, [width, channels[0]])?,
        v: linear(problem.v, [width, channels[0]])?,
        out: linear(problem.out, [channels[1], width])?,
        q_norm: norm.clone(),
        k_norm: norm,
    };
    let block = AttentionBlock::new(heads, head_dim, vec![own], rotary)?;
    let uploaded = DeviceBlock::upload(&opened.stream, &[block], element)?;
    let blocks = vec![Arc::clone(&uploaded[0]); plan.model.layers as usize];
    // SAFETY: as above.
    let stream = Arc::new(unsafe { Stream::foreign(opened.kernels.device(), stream) });
    let options = DeviceOptions { stream: Some(stream), ..DeviceOptions::default() };
    let session = DeviceSession::new(plan, &opened.kernels, blocks, options)?;
    Ok(Running { session, element, tokens, channels })
}
