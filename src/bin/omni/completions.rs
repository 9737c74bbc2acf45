//! `omni completions`: scripts for shells.

use clap::CommandFactory;

use crate::args::{Cli, Completions};
use crate::console::Console;
use crate::exit::{Exit, Failure};

pub fn completions(args: &Completions, console: &Console) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "omni", &mut script);
    console.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Fine)
}
