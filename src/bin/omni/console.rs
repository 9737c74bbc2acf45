//! The two streams: results on standard output, everything else on standard error.
//!
//! Text may carry escape sequences for colours; `anstream` takes them out where the stream is no terminal, where
//! `NO_COLOR` is set or the user said `--color never`.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::builder::styling::{AnsiColor, Style};
use flashomni::diagnostics::{Diagnostics, render};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::exit::Failure;

/// Headings.
pub const BOLD: Style = Style::new().bold();
/// What is less important.
pub const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

/// Columns assumed where standard output is no terminal.
const DEFAULT_WIDTH: usize = 100;

/// What the user wants to hear.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    /// Errors only.
    pub quiet: bool,
    /// Details too.
    pub verbose: bool,
}

impl Console {
    /// Writes a result.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
    }

    /// A line about what was done.
    pub fn note(&self, line: impl Display) {
        if !self.quiet {
            to_stderr(&format!("{line}\n"));
        }
    }

    /// A line for those who want to know more.
    pub fn detail(&self, line: impl Display) {
        if self.verbose && !self.quiet {
            to_stderr(&format!("{DIM}{line}{DIM:#}\n"));
        }
    }

    /// Findings of a compilation; warnings only when there is nothing else to see and the user is not quiet.
    pub fn findings(&self, diagnostics: &Diagnostics) {
        if diagnostics.has_errors() || !self.quiet {
            to_stderr(&render::text(diagnostics, true));
        }
    }

    /// Why a verb stopped.
    pub fn failure(&self, failure: &Failure) {
        match failure {
            Failure::Findings(diagnostics) => self.findings(diagnostics),
            Failure::Stopped { message, help } => {
                let mut text = format!("{RED}error:{RED:#} {message}\n");
                if let Some(help) = help {
                    text += &format!("{CYAN}help:{CYAN:#} {help}\n");
                }
                to_stderr(&text);
            }
            Failure::PipeClosed => {}
        }
    }

    /// A bar that appears on a terminal when the work takes longer than a second.
    pub fn progress(&self, steps: usize) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{msg:<22} {bar:30} {pos}/{len}, {eta} left") {
            bar.set_style(style);
        }
        Progress { bar, start: Instant::now(), wanted: !self.quiet && std::io::stderr().is_terminal(), shown: false }
    }
}

/// Whether standard output shows colours.
pub fn has_colour() -> bool {
    anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
}

/// Columns of the terminal that shows standard output.
pub fn width() -> usize {
    terminal_size::terminal_size().map_or(DEFAULT_WIDTH, |(width, _)| usize::from(width.0))
}

// Standard error that cannot be written leaves nobody to tell.
fn to_stderr(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// Progress of long work.
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    wanted: bool,
    shown: bool,
}

impl Progress {
    /// One more step is done.
    pub fn step(&mut self, message: impl Into<String>) {
        if self.wanted && !self.shown && self.start.elapsed() > Duration::from_secs(1) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.set_message(message.into());
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
