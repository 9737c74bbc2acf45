//! `omni new`: a strategy to begin with.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::ValueEnum;
use flashomni::files::create_atomic;
use flashomni::{Compiler, Error};

use crate::args::New;
use crate::console::Console;
use crate::exit::{Exit, Failure};

/// What to begin with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Template {
    /// A fixed window around each token, attention sinks
    Window,
    /// The blocks with the highest scores, found from q and k
    TopK,
    /// Features reused and forecast from step to step
    Cache,
    /// Different rules for heads and layers
    Heads,
}

impl Template {
    /// The text; `NAME` stands for the name of the strategy.
    fn text(self) -> &'static str {
        match self {
            Template::Window => include_str!("templates/window.omni"),
            Template::TopK => include_str!("templates/top_k.omni"),
            Template::Cache => include_str!("templates/cache.omni"),
            Template::Heads => include_str!("templates/heads.omni"),
        }
    }
}

pub fn new(args: &New, console: &Console) -> Result<Exit, Failure> {
    let mut path: PathBuf = args.name.clone();
    if path.extension().is_none_or(|extension| extension != "omni") {
        let mut name = path.into_os_string();
        name.push(".omni");
        path = name.into();
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = identifier(&stem).ok_or_else(|| {
        Failure::new(format!("`{stem}` gives no name for a strategy"))
            .help("use letters, digits and `_`, as in my_strategy")
    })?;
    let text = args.template.text().replace("NAME", &name);
    if Compiler::from_source("<template>", text.as_str()).check().has_errors() {
        return Err(Failure::new(format!("`{name}` is a word of the language")).help("choose another name"));
    }
    create_atomic(&path, |out| out.write_all(text.as_bytes())).map_err(|error| match &error {
        Error::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists => {
            Failure::new(format!("`{}` exists already", path.display())).help("choose another name, or delete it")
        }
        _ => error.into(),
    })?;
    let path = path.display();
    console.print(&format!("wrote {path}: strategy `{name}`\n"))?;
    console.note(format_args!("next: omni check {path}, then omni show {path}{}", args.template.show_with()));
    Ok(Exit::Fine)
}

impl Template {
    /// What `omni show` needs besides the file.
    fn show_with(self) -> &'static str {
        match self {
            Template::Window | Template::Heads => "",
            Template::TopK | Template::Cache => " --synthetic",
        }
    }
}

/// The name of a file as an identifier of the language.
fn identifier(stem: &str) -> Option<String> {
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    let first = name.chars().next()?;
    let named = name.chars().any(|c| c.is_ascii_alphanumeric());
    let name = if first.is_ascii_digit() { format!("s_{name}") } else { name };
    named.then_some(name)
}
