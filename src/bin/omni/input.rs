//! Strategies and plans that the user names.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flashomni::check::InputTensor;
use flashomni::diagnostics::{Diagnostic, Diagnostics, Severity};
use flashomni::ir::{Kind, Model};
use flashomni::plan::Plan;
use flashomni::source::Sources;
use flashomni::tensor_file::TensorFile;
use flashomni::{Compiler, Error};

use crate::args::Choice;
use crate::console::Console;
use crate::exit::Failure;
use crate::table;

/// What is read of one input at most: more than the compiler takes, and a bound for endless ones.
const MOST: u64 = 1 << 28;

/// Whether a path stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The name of an input in messages.
pub fn name(path: &Path, stdin_filename: Option<&Path>) -> String {
    match stdin_filename {
        Some(name) if is_stdin(path) => name.display().to_string(),
        None if is_stdin(path) => "<stdin>".to_owned(),
        _ => path.display().to_string(),
    }
}

/// The bytes of a file or of standard input.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let result = if is_stdin(path) {
        io::stdin().lock().take(MOST + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
    };
    let failure = |error: &io::Error| match error.kind() {
        io::ErrorKind::IsADirectory => {
            Failure::reading(path, error).help(format!("name its files: {}/*.omni", path.display()))
        }
        _ => Failure::reading(path, error),
    };
    result.map_err(|error| failure(&error))?;
    if bytes.len() as u64 > MOST {
        return Err(Failure::new(format!("`{}` is larger than {} MiB", path.display(), MOST >> 20)));
    }
    Ok(bytes)
}

/// A compilation of bytes that were read from `path`.
pub fn compiler(
    path: &Path,
    stdin_filename: Option<&Path>,
    bytes: Vec<u8>,
    choice: &Choice,
) -> Result<Compiler, Failure> {
    let place = if is_stdin(path) { stdin_filename } else { Some(path) };
    let directory = place.and_then(Path::parent).map_or_else(|| PathBuf::from("."), Path::to_owned);
    let mut compiler = Compiler::from_source(name(path, stdin_filename), bytes).directory(directory);
    if let Some(strategy) = &choice.strategy {
        compiler = compiler.strategy(strategy);
    }
    if let Some(model) = &choice.model {
        compiler = compiler.model(model);
    }
    for (name, value) in &choice.param {
        compiler = compiler.param(name, value);
    }
    for (name, value) in &choice.shape {
        compiler = compiler.shape(name, value);
    }
    match &choice.inputs {
        Some(path) => with_inputs(compiler, &TensorFile::open(path)?),
        None => Ok(compiler),
    }
}

/// Every tensor but q, k and v may be an input of the strategy.
fn with_inputs(mut compiler: Compiler, file: &TensorFile) -> Result<Compiler, Failure> {
    for name in file.names().into_iter().filter(|name| !matches!(name.as_str(), "q" | "k" | "v")) {
        let dtype = file.dtype(&name)?;
        let reals = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let (kind, values) = match dtype.as_str() {
            "F32" | "F16" | "BF16" => (Kind::Real, reals(file.get(&name)?.as_ref().to_f32())),
            "U8" => (Kind::Int, file.values::<u8>(&name)?.into_iter().map(f64::from).collect()),
            "I8" => (Kind::Int, file.values::<i8>(&name)?.into_iter().map(f64::from).collect()),
            "U32" => (Kind::Int, file.values::<u32>(&name)?.into_iter().map(f64::from).collect()),
            "I32" => (Kind::Int, file.values::<i32>(&name)?.into_iter().map(f64::from).collect()),
            "I64" => (Kind::Int, file.values::<i64>(&name)?.into_iter().map(|value| value as f64).collect()),
            other => {
                let path = file.path().display();
                return Err(Failure::new(format!("tensor `{name}` of `{path}` is {other}, which no input can be"))
                    .help("store it as F32, F16, BF16, U8, I8, U32, I32 or I64"));
            }
        };
        let shape = file.shape(&name)?.iter().map(|&size| u32::try_from(size).unwrap_or(u32::MAX)).collect();
        compiler = compiler.input(name, InputTensor { shape, kind, values });
    }
    Ok(compiler)
}

/// A strategy to compile, or a plan.
pub enum Subject {
    /// A strategy.
    Strategy(Box<Compiler>),
    /// A plan, of a file.
    Plan(Box<Plan>),
}

impl Subject {
    /// Reads a strategy or a plan; which one it is, the content tells.
    pub fn read(path: &Path, choice: &Choice) -> Result<Self, Failure> {
        let bytes = read(path)?;
        let named = path.extension().is_some_and(|extension| extension == "safetensors");
        if !named && !is_safetensors(&bytes) {
            return Ok(Subject::Strategy(Box::new(compiler(path, None, bytes, choice)?)));
        }
        let plan = Plan::from_bytes(&bytes, path)?;
        let options = [
            ("--strategy", choice.strategy.is_some()),
            ("--model", choice.model.is_some()),
            ("--param", !choice.param.is_empty()),
            ("--shape", !choice.shape.is_empty()),
            ("--inputs", choice.inputs.is_some()),
        ];
        match options.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                Err(Failure::new(format!("`{}` is compiled already: {option} comes too late", path.display()))
                    .help("give the strategy file in place of the plan"))
            }
            None => Ok(Subject::Plan(Box::new(plan))),
        }
    }

    /// The plan; a strategy is compiled.
    pub fn plan(self, console: &Console) -> Result<Plan, Failure> {
        match self {
            Subject::Plan(plan) => Ok(*plan),
            Subject::Strategy(compiler) => compile(&compiler, console),
        }
    }
}

/// Compiles, with warnings on standard error.
pub fn compile(compiler: &Compiler, console: &Console) -> Result<Plan, Failure> {
    let start = std::time::Instant::now();
    let compiled = compiler.compile()?;
    let (plan, time) = (compiled.plan, table::duration(start.elapsed()));
    if !compiled.warnings.list.is_empty() {
        console.findings(&compiled.warnings);
    }
    console.detail(format_args!("compiled `{}` for `{}` in {time}", plan.strategy, plan.model.name));
    Ok(plan)
}

/// Eight bytes of a length that fits into four, and the start of JSON: no text begins so.
fn is_safetensors(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

/// One finding about a file whose text need not be known.
pub fn finding(name: String, text: &str, list: Vec<Diagnostic>) -> Diagnostics {
    let mut sources = Sources::default();
    sources.add(name, text);
    Diagnostics::new(std::sync::Arc::new(sources), list)
}

/// Errors and warnings.
pub fn counts(diagnostics: &Diagnostics) -> (usize, usize) {
    let errors = diagnostics.list.iter().filter(|finding| finding.severity() == Severity::Error).count();
    (errors, diagnostics.list.len() - errors)
}

/// `7 layers, 4 heads of 64, 20 steps, 1,088 tokens`.
pub fn describe(model: &Model) -> String {
    let parts = [
        table::plural(model.layers as usize, "layer"),
        format!("{} of {}", table::plural(model.heads as usize, "head"), model.head_dim),
        table::plural(model.steps as usize, "step"),
        format!("{} ({})", table::plural(model.tokens() as usize, "token"), layout(model)),
        model.dtype.name().to_owned(),
    ];
    parts.join(", ")
}

/// `text 64 + image 32 x 32`.
pub fn layout(model: &Model) -> String {
    let segment = |segment: &flashomni::ir::Segment| {
        let sizes: Vec<String> = segment.axes.iter().map(|(_, size)| size.to_string()).collect();
        let sizes = if sizes.is_empty() { segment.tokens.to_string() } else { sizes.join("x") };
        let valid = if segment.valid == segment.tokens { String::new() } else { format!(" ({} valid)", segment.valid) };
        format!("{} {sizes}{valid}", segment.name)
    };
    model.segments.iter().map(segment).collect::<Vec<_>>().join(" + ")
}

/// `flashomni(tau_q = 0.5, interval = 5)`.
pub fn strategy(plan: &Plan) -> String {
    let params: Vec<String> = plan.params.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    if params.is_empty() { plan.strategy.clone() } else { format!("{}({})", plan.strategy, params.join(", ")) }
}

/// What is run, on a line each.
pub fn heading(plan: &Plan, series: &str) -> String {
    let params: Vec<String> = plan.params.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let params = if params.is_empty() { String::new() } else { format!("            {}\n", params.join(", ")) };
    format!(
        "  strategy  {}\n{params}  model     {}: {}\n  tensors   {series}\n",
        plan.strategy,
        plan.model.name,
        describe(&plan.model)
    )
}

/// A place the state of a session does not allow.
pub fn is_state(error: &Error) -> bool {
    matches!(error, Error::State(_))
}
