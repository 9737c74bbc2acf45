//! What can go wrong outside of a strategy's text.
//!
//! A wrong strategy gives [`Error::Compile`] with every diagnostic; everything else is one clear sentence
//! that says what was found, where, and what to do.

use std::path::PathBuf;

use crate::diagnostics::Diagnostics;

/// Result of the library's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The strategy is wrong; the diagnostics say where.
    #[error("{0}")]
    Compile(Diagnostics),
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not what it should be: not safetensors, truncated, altered, of another version.
    #[error("`{}` cannot be used: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors do not fit each other or the plan.
    #[error("{0}")]
    Shape(String),
    /// Values that have no meaning here: NaN or infinity in q or k.
    #[error("{0}")]
    Value(String),
    /// A call that does not fit the state of a session: a dispatch before an update, a step out of order.
    #[error("{0}")]
    State(String),
    /// The driver or the GPU refused a call.
    #[error("{call} failed for {what} on {device}: {reason}")]
    Cuda {
        /// The driver's function.
        call: &'static str,
        /// What it was called for: bytes, or a kernel and how it was launched.
        what: String,
        /// What CUDA says.
        reason: String,
        /// The GPU, its number, its compute capability and the driver.
        device: String,
    },
    /// A GPU, or its host, has less memory than a generation takes; nothing was allocated.
    #[error("the generation takes {:.2} GB of {memory}, but there are {:.2} GB: {parts}", *needed as f64 / 1e9, *available as f64 / 1e9)]
    Memory {
        /// Whose memory, in words.
        memory: &'static str,
        /// Bytes that it takes, at most.
        needed: u64,
        /// Bytes that are free, or that the host allows.
        available: u64,
        /// What takes them, the largest first.
        parts: String,
    },
    /// A GPU kernel did not compile.
    #[error("{what} does not compile{}:\n{log}", saved.as_ref().map_or_else(String::new, |path| format!(" (its source is in `{}`)", path.display())))]
    Kernel {
        /// The kernel, its architecture and options, and the compiler.
        what: String,
        /// All that the compiler says.
        log: String,
        /// Where the source is, if it could be written.
        saved: Option<PathBuf>,
    },
    /// Something this machine or this build lacks: LLVM, a GPU, a driver.
    #[error("{0}")]
    Unavailable(String),
}
