//! A strategy and the model that it is for, as callers name them.
//!
//! ```c
//! typedef struct {
//!     const char *source, *strategy, *model;   // text of an .omni file, and names in it or of the shipped models
//!     const char *settings;                    // "layers=1;block_size:128": sizes of the model by `=`, parameters by `:`
//! } omni_strategy;
//! ```

use std::ffi::{CStr, c_char};

use flashomni::plan::Plan;
use flashomni::{Compiler, Error, Result};

/// A strategy, see above.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Strategy {
    source: *const c_char,
    strategy: *const c_char,
    model: *const c_char,
    settings: *const c_char,
}

impl Strategy {
    /// Compiles it.
    ///
    /// # Safety
    /// All four are texts that end with zero, or null.
    pub unsafe fn plan(&self) -> Result<Plan> {
        let text = |pointer: *const c_char| {
            if pointer.is_null() {
                return Err(Error::Value("a strategy was given a null text".to_owned()));
            }
            // SAFETY: as the caller promises.
            let text = unsafe { CStr::from_ptr(pointer) };
            text.to_str().map_err(|_| Error::Value("a strategy was given a text that is not UTF-8".to_owned()))
        };
        let mut compiler = Compiler::from_source("strategy.omni", text(self.source)?)
            .strategy(text(self.strategy)?)
            .model(text(self.model)?);
        for setting in text(self.settings)?.split(';').filter(|setting| !setting.is_empty()) {
            compiler = match (setting.split_once('='), setting.split_once(':')) {
                (Some((name, size)), _) => compiler.shape(name, size),
                (None, Some((name, value))) => compiler.param(name, value),
                (None, None) => return Err(Error::Value(format!("`{setting}` is neither a size nor a parameter"))),
            };
        }
        Ok(compiler.compile()?.plan)
    }
}
