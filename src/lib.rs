//! Sparse attention for diffusion transformers, written down in a few lines.
//!
//! A *strategy* says which attention a transformer may leave out: which blocks of keys are skipped, which blocks of
//! queries reuse a cached feature, at which steps, in which layers and heads. It is written in a small declarative
//! language (`docs/language.md`), compiled into *sparse symbols*, the bitmaps of FlashOmni (arXiv 2509.25401), and
//! executed by one runtime that serves every strategy.
//!
//! ```
//! use flashomni::runtime::Session;
//! use flashomni::tensor::{Dtype, Tensor};
//!
//! let plan = flashomni::compile(
//!     "model tiny { layers 2 heads 4 head_dim 32 steps 10 tokens text(32) ++ image(h = 16, w = 16) }
//!
//!      /// The keys that matter: text sees all, each image block keeps the best third of its keys.
//!      strategy third {
//!          layout text ++ image(h, w)
//!          block 32
//!          schedule { dense while step < 2; refresh every 4 }
//!          keep text <-> all
//!          keep image -> image where top_k(dot(mean(q), mean(k)), 1 / 3)
//!      }",
//! )?;
//! let mut session = Session::new(plan)?;
//! let shape = [4, 288, 32]; // heads, tokens, head_dim
//! let noise = |seed: f32| (0..4 * 288 * 32).map(|i| (i as f32 * seed).sin()).collect();
//! let [q, k, v] = [0.37, 0.73, 1.31].map(|seed| Tensor::from_f32(&shape, noise(seed)).unwrap());
//! let mut out = Tensor::zeros(&shape, Dtype::F32);
//! for step in 0..10 {
//!     for layer in 0..2 {
//!         session.attention(step, layer, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut())?;
//!     }
//! }
//! let share = session.symbols(0).unwrap().live_share()?;
//! assert!(share < 0.6, "more than 40% of the attention is left out");
//! # Ok::<(), flashomni::Error>(())
//! ```
//!
//! # From text to numbers
//!
//! ```text
//!  .omni ── syntax ── ast ── check ── ir ── passes ──┬── masks ──────────────┐
//!                                     ▲              ├── selector programs ──┼── plan ── runtime ── cpu
//!                            model ───┘              └── schedule ───────────┘    │
//!                                                                               file
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`mod@compile`] | the front door: files and imports in, a plan or diagnostics out |
//! | [`syntax`], [`check`], [`diagnostics`] | text to tree, tree to IR, and every finding with its place and fix |
//! | [`ir`], [`passes`], [`geometry`] | what a strategy means, and how it is normalised |
//! | [`plan`] | a compiled strategy, and its file |
//! | [`symbols`] | the bitmaps, their interchange form, statistics and pictures |
//! | [`selector`], [`codegen`], [`reference`](mod@reference) | what needs q and k: routines, machine code, and the oracle of both |
//! | [`runtime`] | sessions: one generation, step by step |
//! | [`cpu`] | attention and projections that really skip |
//! | [`kernels`], [`cuda`] | attention, projections and selectors on NVIDIA GPUs: the kernels, and the driver and compiler below them |
//! | [`minidit`] | a small diffusion transformer as a host, with weights in the repository: how the runtime is embedded |
//! | [`tensor`], [`tensor_file`] | values with shapes, in memory and as safetensors |
//!
//! Two kinds of failure are never mixed: a wrong strategy gives [`Error::Compile`] with every diagnostic, everything
//! else is one sentence.
//!
//! # Features
//! `llvm` (default): selector programs and token predicates become machine code, and PTX can be emitted. Without it they
//! are interpreted, with the same result bit for bit.

pub mod check;
pub mod codegen;
pub mod compile;
pub mod cpu;
pub mod cuda;
pub mod diagnostics;
pub mod env;
pub mod error;
pub mod files;
pub mod geometry;
pub mod ir;
pub mod kernels;
pub mod minidit;
pub mod passes;
pub mod plan;
pub mod reference;
pub mod runtime;
pub mod selector;
pub mod source;
pub mod symbols;
pub mod syntax;
pub mod tensor;
pub mod tensor_file;

pub use compile::{Compiled, Compiler, compile};
pub use error::{Error, Result};

/// Tests the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
