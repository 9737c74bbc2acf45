//! `omni check`: every problem of every file at once.

use std::path::Path;

use flashomni::diagnostics::{Diagnostics, render};
use flashomni::files::write_atomic;
use flashomni::syntax::BYTE_ORDER_MARK;

use crate::args::{Check, FindingFormat};
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::{input, table};

/// Rounds of `--fix`: an edit may uncover the next.
const MAX_ROUNDS: usize = 10;

pub fn check(args: &Check, console: &Console) -> Result<Exit, Failure> {
    if args.fix && args.files.iter().any(|path| input::is_stdin(path)) {
        return Err(Failure::new("--fix mends files in place, and standard input is none").help("name the file"));
    }
    let mut worst = Exit::Fine;
    let mut all = Vec::new();
    let mut fixed = 0;
    for path in &args.files {
        match one(args, path, console) {
            Ok((diagnostics, edits)) => {
                fixed += edits;
                all.push(diagnostics);
            }
            Err(failure) => {
                console.failure(&failure);
                worst = Exit::Failed;
            }
        }
    }
    console.print(&report(&all, args.output_format))?;
    let (errors, warnings) = all.iter().map(input::counts).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    if !all.is_empty() {
        console.note(summary(all.len(), errors, warnings, fixed));
    }
    Ok(if errors > 0 { worst.max(Exit::Findings) } else { worst })
}

/// The findings of a file, and the number of edits that were made in it.
fn one(args: &Check, path: &Path, console: &Console) -> Result<(Diagnostics, usize), Failure> {
    let name = input::name(path, args.stdin_filename.as_deref());
    let check = |bytes: Vec<u8>| -> Result<Diagnostics, Failure> {
        let start = std::time::Instant::now();
        let found = input::compiler(path, args.stdin_filename.as_deref(), bytes, &args.choice)?.check();
        console.detail(format_args!("checked `{name}` in {}", table::duration(start.elapsed())));
        Ok(found)
    };
    let bytes = input::read(path)?;
    // The compiler's text has no byte order mark; a file that has one keeps it.
    let mark: &[u8] = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK } else { &[] };
    let mut diagnostics = check(bytes)?;
    let mut edits = 0;
    for _ in 0..if args.fix { MAX_ROUNDS } else { 0 } {
        let files = diagnostics.sources.files();
        let Some((index, file)) = files.iter().enumerate().find(|(_, file)| file.name == name) else { break };
        let (text, applied) = render::apply_fixes(&diagnostics, index as u16, &file.text);
        if applied == 0 {
            break;
        }
        // A guess that leaves as many problems as before was wrong; the file stays as it is.
        let after = check(text.clone().into_bytes())?;
        if after.list.len() >= diagnostics.list.len() {
            break;
        }
        write_atomic(path, |out| {
            out.write_all(mark)?;
            out.write_all(text.as_bytes())
        })?;
        edits += applied;
        diagnostics = after;
    }
    Ok((diagnostics, edits))
}

fn report(all: &[Diagnostics], format: FindingFormat) -> String {
    let join = |one: &dyn Fn(&Diagnostics) -> String| all.iter().map(one).collect::<String>();
    match format {
        FindingFormat::Text => join(&|diagnostics| render::text(diagnostics, true)),
        FindingFormat::Concise => join(&render::concise),
        FindingFormat::Github => join(&render::github),
        FindingFormat::Json => {
            let findings: Vec<serde_json::Value> = all
                .iter()
                .filter_map(|one| serde_json::from_str::<Vec<serde_json::Value>>(&render::json(one)).ok())
                .flatten()
                .collect();
            table::json(&findings)
        }
    }
}

fn summary(files: usize, errors: usize, warnings: usize, fixed: usize) -> String {
    let files = table::plural(files, "file");
    let mut found = Vec::new();
    if errors > 0 {
        found.push(table::plural(errors, "error"));
    }
    if warnings > 0 {
        found.push(table::plural(warnings, "warning"));
    }
    let found = if found.is_empty() { "no problems".to_owned() } else { found.join(", ") };
    let fixed = if fixed > 0 { format!(", {fixed} mended") } else { String::new() };
    format!("checked {files}: {found}{fixed}")
}
