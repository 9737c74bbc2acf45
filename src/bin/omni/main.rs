//! The command `omni`.
//!
//! One file per verb; `args` is the command line, `exit` the exit codes, `console` the two streams. Everything a verb
//! does is done by the library; what is here reads arguments and files and writes text.

mod args;
mod bench;
mod bench_blocks;
mod build;
mod check;
mod completions;
mod console;
mod device;
mod eval;
mod exit;
mod explain;
mod fmt;
mod generate;
mod info;
mod input;
mod models;
mod new;
mod pick;
mod picture;
mod record;
mod run;
mod runner;
mod sample;
mod show;
mod source;
mod symbols;
mod table;
mod whole;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Color, Verb};
use console::Console;
use exit::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results, everything else is a wrong call. A closed pipe changes neither.
            let _ = error.print();
            return code(if error.use_stderr() { Exit::Failed } else { Exit::Fine });
        }
    };
    match cli.global.color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    }
    .write_global();
    let console = Console { quiet: cli.global.quiet, verbose: cli.global.verbose };
    let result = match &cli.verb {
        Verb::Check(args) => check::check(args, &console),
        Verb::Fmt(args) => fmt::fmt(args, &console),
        Verb::Build(args) => build::build(args, &console),
        Verb::Show(args) => show::show(args, &console),
        Verb::Run(args) if args.block => whole::run(args, &console),
        Verb::Run(args) => run::run(args, &console),
        Verb::Bench(args) if args.block => bench_blocks::bench(args, &console),
        Verb::Bench(args) => bench::bench(args, &console),
        Verb::Sample(args) => sample::sample(args, &console),
        Verb::Eval(args) => eval::eval(args, &console),
        Verb::Symbols(args) => symbols::symbols(args, &console),
        Verb::Explain(args) => explain::explain(args, &console),
        Verb::Models(args) => models::models(args, &console),
        Verb::New(args) => new::new(args, &console),
        Verb::Info(args) => info::info(args, &console),
        Verb::Completions(args) => completions::completions(args, &console),
    };
    code(result.unwrap_or_else(|failure| {
        console.failure(&failure);
        match failure {
            Failure::Findings(_) => Exit::Findings,
            Failure::Stopped { .. } => Exit::Failed,
            Failure::PipeClosed => Exit::Fine,
        }
    }))
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
