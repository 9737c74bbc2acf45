//! What runs on a GPU: attention under sparse symbols, the projections around it, and the selector programs that make symbols, by the kernels of
//! `runtime_kernels/`.
//!
//! | module | what it has |
//! |---|---|
//! | [`source`] | the text of the kernels, which is part of the binary |
//! | [`params`] | their parameters, as in `params.cuh` |
//! | [`choose`] | which kernel runs on which GPU, and its constants |
//! | [`symbols`] | sparse symbols in the GPU's memory |
//! | [`view`] | tensors in the GPU's memory |
//! | [`work`] | the work list of a launch |
//! | [`attention`] | a prepared launch of attention |
//! | [`gemm`] | one of GEMM-Q or GEMM-O |
//! | [`features`] | differences and forecasts of cached features |
//! | [`selector`] | selector programs: symbols from q and k, where they lie |
//!
//! A [`Kernels`] compiles for one device what is asked for and keeps it, in memory and on the disk. Preparing allocates and may
//! compile; launching does neither, nor does it wait, so that it can be recorded in a graph.

pub mod attention;
pub mod choose;
pub mod features;
pub mod gemm;
mod mirrored;
pub mod params;
pub mod selector;
pub mod source;
pub mod symbols;
pub mod view;
pub mod work;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::cache::{Cache, Key};
use crate::cuda::device::Version;
use crate::cuda::nvrtc::{Nvrtc, Program};
use crate::cuda::{Device, Function, Module};
use crate::error::{Error, Result};

pub use crate::cuda::tensor_map::Element;
pub use attention::{AttentionCall, CachedRows, Operands, Options};
pub use choose::{Kernel, Path, Variant};
pub use gemm::{GemmCall, GemmSizes, GemmWork, HeadsOperands, OutOperands, Projection, RotaryPairs, TileSet};
pub use symbols::DeviceSymbols;
pub use view::{FloatView, MatrixView, TensorView};
pub use work::{WorkPlan, Workspace};

/// The kernels of one device.
pub struct Kernels {
    device: Arc<Device>,
    compiler: Nvrtc,
    cache: Cache,
    compiled: Mutex<HashMap<Variant, Arc<Function>>>,
    /// Of selectors, by file.
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
}

impl Kernels {
    /// The kernels of a device; none is compiled yet.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no attention for the device, no NVRTC, or one that is newer than the driver.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Self::with_cache(device, Cache::of_user())
    }

    /// As [`Kernels::new`], with another place for what is compiled.
    ///
    /// # Errors
    /// As [`Kernels::new`].
    pub fn with_cache(device: &Arc<Device>, cache: Cache) -> Result<Self> {
        choose::attention_of(device.properties(), Path::Best)?;
        let compiler = Nvrtc::load()?;
        let (own, driver) = (compiler.version(), device.properties().driver);
        if own.major > driver.major {
            return Err(Error::Unavailable(format!(
                "NVRTC {own} is newer than the driver, which knows CUDA {driver}: update the driver or install NVRTC {}",
                driver.major
            )));
        }
        Ok(Kernels {
            device: Arc::clone(device),
            compiler,
            cache,
            compiled: Mutex::default(),
            modules: Mutex::default(),
        })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// A kernel that is ready to run, compiled now unless it was before.
    ///
    /// # Errors
    /// [`Error::Kernel`] when it does not compile, [`Error::Cuda`] when the driver refuses it.
    pub fn function(&self, variant: Variant) -> Result<Arc<Function>> {
        // One thread compiles; others that need the same kernel wait for it.
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = compiled.get(&variant) {
            return Ok(Arc::clone(known));
        }
        let function = Arc::new(self.load_variant(variant)?);
        compiled.insert(variant, Arc::clone(&function));
        Ok(function)
    }

    /// A kernel of selector programs, compiled now unless it was before.
    ///
    /// # Errors
    /// As [`Kernels::function`].
    pub fn selector_function(&self, entry: selector::Entry) -> Result<Function> {
        let (file, name) = entry.place();
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = modules.get(file) {
            return known.function(name);
        }
        let architecture = choose::architecture_of(self.device.properties().compute);
        let module =
            self.load(file, &architecture, &selector_options(), |cubin| Module::load(&self.device, file, cubin))?;
        let function = module.function(name)?;
        modules.insert(file, module);
        Ok(function)
    }

    fn load_variant(&self, variant: Variant) -> Result<Function> {
        let name = variant.kernel.file();
        self.load(name, &variant.architecture(), &variant.options(), |cubin| {
            let function = Module::load(&self.device, name, cubin)?.function(variant.kernel.entry())?;
            function.allow_shared_bytes(variant.geometry().shared_bytes)?;
            Ok(function)
        })
    }

    /// What `finish` makes of the cubin of a file, which comes from the cache or is compiled.
    fn load<T>(
        &self,
        name: &str,
        architecture: &str,
        options: &[String],
        finish: impl Fn(&[u8]) -> Result<T>,
    ) -> Result<T> {
        let source = source::bundle(name)?;
        let program = Program { name, source: &source, architecture, options };
        let key = Key::of(&program, self.compiler.version(), self.device.properties().driver);
        // What the driver refuses although it is whole is compiled again, and its error is that of the fresh one.
        if let Some(finished) = self.cache.get(&key).and_then(|cubin| finish(&cubin).ok()) {
            return Ok(finished);
        }
        let compiled = self.compiler.compile(&program).map_err(|error| match error {
            Error::Kernel { what, log, .. } => {
                Error::Kernel { what, log, saved: self.cache.save_source(&key, &source) }
            }
            other => other,
        })?;
        let finished = finish(&compiled.cubin)?;
        self.cache.put(&key, &compiled.cubin);
        Ok(finished)
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("device", &self.device).field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// Selectors are compiled without contraction: each operation is rounded on its own.
fn selector_options() -> Vec<String> {
    vec!["--fmad=false".to_owned()]
}

/// The log of compiling a variant with ptxas's statistics, without a device: what tests look for spills in.
///
/// # Errors
/// [`Error::Unavailable`] without NVRTC, [`Error::Kernel`] when it does not compile.
pub fn compile_log(variant: &Variant) -> Result<String> {
    log_of(variant.kernel.file(), variant.options(), &variant.architecture())
}

/// The same of a file of selector kernels, for a compute capability.
///
/// # Errors
/// As [`compile_log`].
pub fn compile_selector_log(file: &str, compute: Version) -> Result<String> {
    log_of(file, selector_options(), &choose::architecture_of(compute))
}

fn log_of(name: &str, mut options: Vec<String>, architecture: &str) -> Result<String> {
    let source = source::bundle(name)?;
    options.push("--ptxas-options=-v".to_owned());
    let program = Program { name, source: &source, architecture, options: &options };
    Ok(Nvrtc::load()?.compile(&program)?.log)
}
