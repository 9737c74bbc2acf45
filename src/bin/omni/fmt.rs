//! `omni fmt`: the one canonical form.

use std::path::Path;

use flashomni::files::write_atomic;
use flashomni::syntax;
use similar::TextDiff;

use crate::args::Fmt;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::{input, table};

/// What was done with a file.
enum Outcome {
    Same,
    Changed,
}

pub fn fmt(args: &Fmt, console: &Console) -> Result<Exit, Failure> {
    let (mut worst, mut changed, mut same) = (Exit::Fine, 0, 0);
    for path in &args.files {
        match one(args, path, console) {
            Ok(Outcome::Same) => same += 1,
            Ok(Outcome::Changed) => changed += 1,
            Err(Failure::PipeClosed) => return Err(Failure::PipeClosed),
            Err(failure) => {
                console.failure(&failure);
                worst = worst.max(if matches!(failure, Failure::Findings(_)) { Exit::Findings } else { Exit::Failed });
            }
        }
    }
    let looking = args.check || args.diff;
    let stdin_only = args.files.iter().all(|path| input::is_stdin(path));
    if !stdin_only || looking {
        let verb = if looking { "would change" } else { "changed" };
        let broken = args.files.len() - changed - same;
        let broken = if broken > 0 { format!(", {broken} left alone") } else { String::new() };
        console.note(format_args!("{} {verb}, {same} fine already{broken}", table::plural(changed, "file")));
    }
    Ok(if looking && changed > 0 { worst.max(Exit::Findings) } else { worst })
}

fn one(args: &Fmt, path: &Path, console: &Console) -> Result<Outcome, Failure> {
    let name = input::name(path, args.stdin_filename.as_deref());
    let bytes = input::read(path)?;
    let text = syntax::decode(0, &name, &bytes)
        .map_err(|problem| Failure::Findings(input::finding(name.clone(), "", vec![*problem])))?;
    let new =
        syntax::format(&text).map_err(|problems| Failure::Findings(input::finding(name.clone(), &text, problems)))?;
    let outcome = if new.as_bytes() == bytes { Outcome::Same } else { Outcome::Changed };
    match outcome {
        Outcome::Changed if args.check => console.print(&format!("{name}\n"))?,
        Outcome::Changed if args.diff => console.print(&diff(&name, &text, &new))?,
        _ if args.check || args.diff => {}
        _ if input::is_stdin(path) => console.print(&new)?,
        Outcome::Changed => write_atomic(path, |out| out.write_all(new.as_bytes()))?,
        Outcome::Same => {}
    }
    Ok(outcome)
}

fn diff(name: &str, old: &str, new: &str) -> String {
    TextDiff::from_lines(old, new).unified_diff().header(name, &format!("{name} (formatted)")).to_string()
}
