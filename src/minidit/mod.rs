//! A small diffusion transformer, hosted: the example of embedding the runtime in a whole model.
//!
//! The model is that of `data/minidit`: 8 million parameters, rectified flow in pixel space, 16 prompts, two blocks with a
//! stream each for text and image and five with one for both, as in FLUX. It is no part of the engine, which knows nothing of
//! it; it uses the library as any host would.
//!
//! | file | what it holds |
//! |---|---|
//! | `layer.rs` | a block, dense and under a session: read this one first |
//! | `denoiser.rs` | embeddings, all layers, both branches of guidance |
//! | `sampler.rs` | noise to image |
//! | `sparsity.rs`, `distances.rs` | a strategy compiled for this model, and what step caches ask to be measured |
//! | `weights.rs`, `math.rs` | parameters, norms and activations |
//!
//! # Examples
//! ```no_run
//! use flashomni::Compiler;
//! use flashomni::minidit::{MiniDit, Request, Sparsity, noise, sample};
//!
//! let model = MiniDit::load("data/minidit".as_ref())?;
//! let compiler = Compiler::from_file("examples/strategies/flashomni.omni".as_ref())?.strategy("flashomni");
//! let sparsity = Sparsity::new(compiler, &model, 64, 20)?;
//! let class = model.class("china")?;
//! let request = Request { size: 64, steps: 20, class, guidance: 2.0, noise: noise(64, 0) };
//! let image = sample(&model, &request, Some(&sparsity), &mut ())?;
//! assert_eq!(image.len(), 3 * 64 * 64);
//! # Ok::<(), flashomni::Error>(())
//! ```

mod denoiser;
mod distances;
mod layer;
mod math;
mod sampler;
mod sparsity;
mod weights;

use std::path::Path;

pub use denoiser::{Attended, Branch, Denoiser, LayerReport, Watch, Work};
pub use sampler::{MAX_STEPS, Request, noise, sample};
pub use sparsity::Sparsity;
pub use weights::Config;

use crate::diagnostics::did_you_mean;
use crate::error::{Error, Result};

/// Pixels of a side at most: 65,536 patches of 2 x 2.
pub const MAX_SIZE: usize = 512;

/// The transformer.
#[derive(Debug)]
pub struct MiniDit {
    config: Config,
    weights: weights::Weights,
}

impl MiniDit {
    /// Reads `config.json` and `weights.safetensors` of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] when one of them cannot be read; [`Error::Format`] when the configuration makes no transformer, or a
    /// tensor is missing, superfluous, or of another shape or type than it implies.
    pub fn load(folder: &Path) -> Result<Self> {
        let (config, weights) = weights::read(folder)?;
        Ok(MiniDit { config, weights })
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The index of a prompt.
    ///
    /// # Errors
    /// [`Error::Value`] when the model has not learned it.
    pub fn class(&self, name: &str) -> Result<usize> {
        let classes = &self.config.classes;
        classes.iter().position(|class| class == name).ok_or_else(|| {
            let near = did_you_mean(name, classes.iter().map(String::as_str));
            let hint = near
                .map_or_else(|| format!("it knows {}", classes.join(", ")), |near| format!("did you mean `{near}`?"));
            Error::Value(format!("the model has no prompt `{name}`; {hint}"))
        })
    }

    /// Patches of a side of an image of `size` pixels.
    ///
    /// # Errors
    /// [`Error::Shape`] when the size is no multiple of a patch, or beyond [`MAX_SIZE`].
    pub fn side(&self, size: usize) -> Result<usize> {
        let patch = self.config.patch;
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(patch) {
            return Err(Error::Shape(format!(
                "an image of {size} x {size} pixels cannot be made: sizes are multiples of {patch}, up to {MAX_SIZE}"
            )));
        }
        Ok(size / patch)
    }
}
