//! `omni explain`: the page of a code.

use flashomni::diagnostics::Code;

use crate::args::Explain;
use crate::console::{BOLD, Console};
use crate::exit::{Exit, Failure};
use crate::table::Table;

pub fn explain(args: &Explain, console: &Console) -> Result<Exit, Failure> {
    let Some(code) = &args.code else {
        let mut table = Table::new(&["code", "meaning"]);
        for code in Code::ALL {
            table.row([code.name().to_owned(), code.title().to_owned()]);
        }
        console.print(&table.render())?;
        console.note("`omni explain CODE` tells more about one of them");
        return Ok(Exit::Fine);
    };
    let code: Code =
        code.parse().map_err(|message: String| Failure::new(message).help("`omni explain` lists all codes"))?;
    console.print(&page(code.explanation()))?;
    Ok(Exit::Fine)
}

/// Markdown for a terminal: the heading in bold, code indented in place of its fences.
fn page(markdown: &str) -> String {
    let mut out = String::new();
    let mut code = false;
    for line in markdown.lines() {
        if line.starts_with("```") {
            code = !code;
        } else if code && !line.is_empty() {
            out += &format!("    {line}\n");
        } else if let Some(heading) = line.strip_prefix("# ") {
            out += &format!("{BOLD}{heading}{BOLD:#}\n");
        } else {
            out += &format!("{line}\n");
        }
    }
    out
}
