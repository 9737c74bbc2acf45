//! `omni_selection`: the symbols that a selector program makes of q and k, for all heads of a layer.
//!
//! ```c
//! typedef struct {
//!     omni_strategy strategy;        // strategy.rs; blocks of queries have 128 tokens
//!     omni_tensor q, k;              // attention.rs; [1, heads, tokens, head_dim] of the model, in its order of tokens
//!     uint64_t cache, skip;          // GPU memory that gets S_c and S_s, with symbol_batches = 1
//!     uint32_t step, layer;          // a place at which the strategy chooses by q and k
//!     uint32_t is_bf16, reserved;    // 1 bf16, 0 f16
//! } omni_selection_problem;
//! ```

use flashomni::cuda::Stream;
use flashomni::kernels::selector::{LayerTensors, SelectorPass, Setup};
use flashomni::kernels::{Element, TensorView};
use flashomni::{Error, Result};

use crate::attention::Tensor;
use crate::strategy::Strategy;
use crate::{Call, Opened, Prepared, made, symbols_on_gpu};

/// A problem, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SelectionProblem {
    strategy: Strategy,
    q: Tensor,
    k: Tensor,
    cache: u64,
    skip: u64,
    step: u32,
    layer: u32,
    is_bf16: u32,
    reserved: u32,
}

/// A pass with what it reads, at one place.
pub struct Selection {
    pass: SelectorPass,
    q: TensorView,
    k: TensorView,
    place: (u32, u32),
}

impl Selection {
    /// Puts all launches of the pass into a stream.
    pub fn run(&self, stream: &Stream) -> Result<()> {
        self.pass.run(stream, &LayerTensors { q: Some(&self.q), k: Some(&self.k), v: None }, self.place)
    }
}

/// Prepares a selection.
///
/// # Safety
/// `opened` is from [`omni_open`](crate::omni_open); the problem's texts end with zero, and its memory has the sizes that the model says, and lives as
/// long as what is prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn omni_selection(opened: *const Opened, problem: *const SelectionProblem) -> *mut Prepared {
    // SAFETY: as the caller promises, of both and of what they point to.
    unsafe { made("omni_selection", opened, problem, |opened, problem| prepare(opened, problem)) }
}

unsafe fn prepare(opened: &Opened, problem: &SelectionProblem) -> Result<Prepared> {
    let Opened { kernels, stream } = opened;
    // SAFETY: as the caller of `omni_selection` promises.
    let plan = unsafe { problem.strategy.plan()? };
    let place = (problem.step, problem.layer);
    if problem.step >= plan.model.steps || problem.layer >= plan.model.layers {
        return Err(Error::Value(format!("the model has no step {} of a layer {}", place.0, place.1)));
    }
    let heads: Vec<u32> = (0..plan.model.heads).collect();
    let setup = Setup::of_class(&plan, plan.class(place.0, place.1, 0), &heads, std::slice::from_ref(&place))?;
    let tokens = plan.model.tokens();
    let [q_block, kv_block] = [&setup.blocks.q, &setup.blocks.kv]
        .map(|offsets| offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0));
    let sizes = [1, plan.model.heads, tokens, tokens, q_block, kv_block];
    // SAFETY: as above.
    let (symbols, offsets) = unsafe { symbols_on_gpu(stream, [problem.cache, problem.skip], sizes)? };
    let pass = kernels.selector_pass(stream, &setup, &symbols, &heads)?;
    let element = if problem.is_bf16 != 0 { Element::Bf16 } else { Element::F16 };
    // SAFETY: as above.
    let [q, k] = [problem.q, problem.k].map(|tensor| unsafe { tensor.view(element) });
    let call = Call::Selection(Box::new(Selection { pass, q, k, place }));
    Ok(Prepared { call, device: kernels.device().clone(), _offsets: offsets })
}
