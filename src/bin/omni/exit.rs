//! Exit codes, and what ends a verb early.
//!
//! 0: fine. 1: findings in a strategy, or a file that `fmt --check` would change. 2: omni could not work: a wrong call,
//! a missing or broken file, tensors that do not fit. A reader that closes the pipe ends the command quietly.

use std::io;
use std::path::Path;

use flashomni::Error;
use flashomni::diagnostics::Diagnostics;

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Everything was done and nothing was found.
    Fine = 0,
    /// There are findings.
    Findings = 1,
    /// The work could not be done.
    Failed = 2,
}

/// Why a verb stopped.
#[derive(Debug)]
pub enum Failure {
    /// The strategy is wrong.
    Findings(Diagnostics),
    /// One sentence, and what to do about it.
    Stopped {
        /// What was found and what is allowed; lower case, no full stop.
        message: String,
        /// What to do.
        help: Option<String>,
    },
    /// The reader of our output has gone.
    PipeClosed,
}

impl Failure {
    /// Stops with one sentence.
    pub fn new(message: impl Into<String>) -> Self {
        Failure::Stopped { message: message.into(), help: None }
    }

    /// Adds what to do, unless something is said already.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        if let Failure::Stopped { help: help @ None, .. } = &mut self {
            *help = Some(text.into());
        }
        self
    }

    /// A file could not be read.
    pub fn reading(path: &Path, error: &io::Error) -> Self {
        let failure = Failure::new(format!("cannot read `{}`: {}", path.display(), io_words(error)));
        match error.kind() {
            io::ErrorKind::NotFound => failure.help("paths are relative to the current directory"),
            _ => failure,
        }
    }

    /// Our output could not be written.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::PipeClosed,
            _ => Failure::new(format!("cannot write to standard output: {}", io_words(error))),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Compile(diagnostics) => Failure::Findings(diagnostics),
            Error::Io { action: "read", path, source } => Failure::reading(&path, &source),
            Error::Io { action, path, source } => {
                Failure::new(format!("cannot {action} `{}`: {}", path.display(), io_words(&source)))
            }
            other => Failure::new(other.to_string()),
        }
    }
}

/// What the system says, in words and without the number of the error.
fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "a part of the path is not a directory".to_owned(),
        io::ErrorKind::StorageFull => "no space left".to_owned(),
        _ => {
            let text = error.to_string();
            text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_lowercase())
        }
    }
}
