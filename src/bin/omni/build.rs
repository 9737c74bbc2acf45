//! `omni build`: the plan file, or a stage on the way to it as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use flashomni::diagnostics::near_or_all;
use flashomni::files::write_atomic;
use flashomni::ir::StepKind;
use flashomni::plan::{Body, Class, Plan, Predicate, Program};
use flashomni::symbols::BitMatrix;
use flashomni::{Compiler, codegen, passes};

use crate::args::Build;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::input;
use crate::table::{self, Table};

/// A stage that can be written as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    Ast,
    /// The IR after this pass; `check` stands for the IR before all of them.
    Ir(String),
    Plan,
    Symbols,
    Llvm,
    Ptx,
}

const STAGES: [&str; 7] = ["ast", "ir", "ir-after=PASS", "plan", "symbols", "llvm", "ptx"];

impl Stage {
    /// Reads `ast`, `ir-after=fold_constants`, ...
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "ast" => Ok(Stage::Ast),
            "ir" => Ok(Stage::Ir("check".to_owned())),
            "plan" => Ok(Stage::Plan),
            "symbols" => Ok(Stage::Symbols),
            "llvm" => Ok(Stage::Llvm),
            "ptx" => Ok(Stage::Ptx),
            _ => match text.split_once('=') {
                Some(("ir-after", pass)) if passes::NAMES.contains(&pass) => Ok(Stage::Ir(pass.to_owned())),
                Some(("ir-after", pass)) => {
                    Err(format!("there is no pass `{pass}`{}", near_or_all(pass, passes::NAMES)))
                }
                _ => Err(format!("there is no such stage{}", near_or_all(text, &STAGES))),
            },
        }
    }
}

pub fn build(args: &Build, console: &Console) -> Result<Exit, Failure> {
    if args.target.is_some() && args.emit != Some(Stage::Ptx) {
        return Err(
            Failure::new("--target chooses the GPU of --emit ptx").help("add --emit ptx, or leave --target out")
        );
    }
    let bytes = input::read(&args.file)?;
    let compiler = input::compiler(&args.file, None, bytes, &args.choice)?;
    let Some(stage) = &args.emit else { return plan_file(args, &compiler, console) };
    let text = match stage {
        Stage::Ast => format!("{:#?}\n", compiler.syntax()?),
        Stage::Ir(pass) => ir(&compiler, pass, console)?,
        Stage::Plan => describe(&input::compile(&compiler, console)?),
        Stage::Symbols => symbols(&input::compile(&compiler, console)?),
        Stage::Llvm => llvm(&input::compile(&compiler, console)?, args.program)?,
        Stage::Ptx => ptx(&input::compile(&compiler, console)?, args.target.as_deref(), args.program)?,
    };
    match &args.output {
        Some(path) => {
            write_atomic(path, |out| out.write_all(text.as_bytes()))?;
            console.note(format_args!("wrote {}", path.display()));
        }
        None => console.print(&text)?,
    }
    Ok(Exit::Fine)
}

fn plan_file(args: &Build, compiler: &Compiler, console: &Console) -> Result<Exit, Failure> {
    let start = Instant::now();
    let plan = input::compile(compiler, console)?;
    let path = match &args.output {
        Some(path) => path.clone(),
        None if input::is_stdin(&args.file) => {
            return Err(
                Failure::new("a strategy from standard input has no name for its plan").help("add -o PLAN.safetensors")
            );
        }
        None => default_name(&args.file),
    };
    let bytes = plan.to_bytes();
    write_atomic(&path, |out| out.write_all(&bytes))?;
    let (size, time) = (table::bytes(bytes.len() as u64), table::duration(start.elapsed()));
    console.print(&format!("wrote {}: {size}, in {time}\n{}", path.display(), summary(&plan)))?;
    Ok(Exit::Fine)
}

fn default_name(file: &Path) -> PathBuf {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    PathBuf::from(format!("{stem}.plan.safetensors"))
}

/// What a plan is about, in a few lines.
fn summary(plan: &Plan) -> String {
    let dynamic = plan.classes.iter().filter(|class| matches!(class.body, Body::Dynamic { .. })).count();
    let fixed = plan.classes.len() - dynamic;
    let classes = match (fixed, dynamic) {
        (fixed, 0) => format!("{fixed}, symbols known"),
        (0, dynamic) => format!("{dynamic}, symbols found from q and k"),
        (fixed, dynamic) => format!("{fixed} with known symbols, {dynamic} with symbols found from q and k"),
    };
    let mut out = String::new();
    for (name, value) in [
        ("strategy", input::strategy(plan)),
        ("model", format!("{}: {}", plan.model.name, input::describe(&plan.model))),
        ("schedule", kinds_of(plan)),
        ("classes", classes),
        ("bitmaps", plan.masks.len().to_string()),
        (
            "programs",
            format!("{}, and {}", plan.programs.len(), table::plural(plan.predicates.len(), "token predicate")),
        ),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {name:<10}{value}");
    }
    for quirk in &plan.quirks {
        let _ = writeln!(out, "  {:<10}{quirk}", "quirk");
    }
    out
}

/// `dense 8, update 3, dispatch 9 of 20 steps: DDDDDDDDU...`: of the first layer when all are the same, else of all.
fn kinds_of(plan: &Plan) -> String {
    let mut counts: BTreeMap<StepKind, usize> = BTreeMap::new();
    for &kind in &plan.schedule.kinds {
        *counts.entry(kind).or_default() += 1;
    }
    let (steps, layers) = (plan.model.steps as usize, plan.model.layers as usize);
    let same = plan.schedule.kinds.chunks(layers).all(|step| step.iter().all(|kind| *kind == step[0]));
    let (divisor, of) = if same {
        (layers, table::plural(steps, "step"))
    } else {
        (1, format!("{} x {}", table::plural(steps, "step"), table::plural(layers, "layer")))
    };
    let parts: Vec<String> = counts.iter().map(|(kind, n)| format!("{} {}", n / divisor, kind.name())).collect();
    let letters = if same { format!(": {}", plan.schedule.letters(0)) } else { String::new() };
    format!("{} of {of}{letters}", parts.join(", "))
}

fn ir(compiler: &Compiler, pass: &str, console: &Console) -> Result<String, Failure> {
    let mut text = String::new();
    let compiled = compiler.compile_with(&mut |name, strategy| {
        if name == pass {
            text = strategy.to_string();
        }
    })?;
    if !compiled.warnings.list.is_empty() {
        console.findings(&compiled.warnings);
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The plan as text: what the file holds, bitmaps by their shape and share.
fn describe(plan: &Plan) -> String {
    let mut out = summary(plan);
    out += "\nschedule: D dense, U update, R refresh, . dispatch, 0 to 4 reuse as a forecast of this order\n";
    for (layers, letters) in grouped(plan) {
        let _ = writeln!(out, "  layers {}: {letters}", table::ranges(&layers));
    }
    out += "\narrangements\n";
    for (index, arrangement) in plan.arrangements.iter().enumerate() {
        let order = match (&arrangement.order, &arrangement.clustering) {
            (_, Some(clustering)) => format!(
                "`{}` in {} clusters of queries and {} of keys",
                clustering.segment, clustering.q, clustering.kv
            ),
            (Some(_), None) => "tokens reordered".to_owned(),
            (None, None) => "tokens in the model's order".to_owned(),
        };
        let (q, kv) = (arrangement.blocks.q_blocks(), arrangement.blocks.kv_blocks());
        let _ = writeln!(out, "  {index}: {q} x {kv} blocks, {order}");
    }
    out += "\nclasses\n";
    for (index, class) in plan.classes.iter().enumerate() {
        let _ = writeln!(out, "  {index}: {}", describe_class(class));
    }
    out += "\nbitmaps\n";
    for (index, mask) in plan.masks.iter().enumerate() {
        let cells = (mask.rows() * mask.columns()).max(1);
        let share = table::percent(mask.count() as f64 / cells as f64);
        let _ = writeln!(out, "  {index}: {} x {}, {share} set", mask.rows(), mask.columns());
    }
    for (index, program) in plan.programs.iter().enumerate() {
        let _ = write!(out, "\nprogram {index}\n{}", indented(&program.to_string()));
    }
    for (index, predicate) in plan.predicates.iter().enumerate() {
        let _ = write!(out, "\npredicate {index}\n{}", indented(&predicate.to_string()));
    }
    out
}

fn describe_class(class: &Class) -> String {
    let mut parts = vec![format!("arrangement {}", class.arrangement)];
    match &class.body {
        Body::Static { skip, partial, cache } => {
            parts.push(format!("S_s bitmap {skip}"));
            parts.extend(partial.map(|partial| format!("S_p bitmap {partial}")));
            parts.push(format!("S_c bitmap {cache}"));
        }
        Body::Dynamic { program, masks } => {
            parts.push(format!("program {program}"));
            if !masks.is_empty() {
                let masks: Vec<String> = masks.iter().map(u32::to_string).collect();
                parts.push(format!("its bitmaps {}", masks.join(" ")));
            }
        }
    }
    parts.extend(class.predicate.map(|predicate| format!("predicate {predicate}")));
    parts.push(format!("forecast order {}", class.forecast_order));
    parts.join(", ")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Layers with one schedule, and that schedule, a letter for each step.
fn grouped(plan: &Plan) -> Vec<(Vec<u32>, String)> {
    let mut groups: Vec<(Vec<u32>, String)> = Vec::new();
    for layer in 0..plan.model.layers {
        let letters = plan.schedule.letters(layer);
        match groups.iter_mut().find(|(_, other)| *other == letters) {
            Some((layers, _)) => layers.push(layer),
            None => groups.push((vec![layer], letters)),
        }
    }
    groups
}

/// The symbols known now: a line for each class.
fn symbols(plan: &Plan) -> String {
    let mut uses = vec![0_usize; plan.classes.len()];
    for &class in &plan.class_of {
        uses[class as usize] += 1;
    }
    let mut table =
        Table::new(&[">class", ">places", "blocks", ">blocks computed", ">blocks partial", ">q-blocks cached"]);
    for (index, class) in plan.classes.iter().enumerate() {
        let blocks = &plan.arrangements[class.arrangement as usize].blocks;
        let shape = format!("{}x{}", blocks.q_blocks(), blocks.kv_blocks());
        let mut row = vec![index.to_string(), table::count(uses[index] as u64), shape];
        match &class.body {
            Body::Static { skip, partial, cache } => {
                let mask = |id: u32| &plan.masks[id as usize];
                let cells = (blocks.q_blocks() * blocks.kv_blocks()).max(1) as f64;
                let share = |bits: &BitMatrix| live(bits, mask(*cache)) as f64 / cells;
                let cached = 1.0 - mask(*cache).count() as f64 / blocks.q_blocks().max(1) as f64;
                row.push(table::percent(share(mask(*skip))));
                row.push(partial.map_or_else(|| "-".to_owned(), |id| table::percent(share(mask(id)))));
                row.push(table::percent(cached));
            }
            Body::Dynamic { program, .. } => row.push(format!("program {program}")),
        }
        table.row(row);
    }
    table.render()
}

/// Set bits in the rows that are not cached.
fn live(bits: &BitMatrix, cache: &BitMatrix) -> usize {
    cache.ones_of_row(0).map(|row| bits.count_row(row)).sum()
}

/// Each program with the token predicates of its classes; predicates of no program stand beside an empty one.
fn units(plan: &Plan) -> Vec<(String, Program, Vec<&Predicate>)> {
    let mut predicates_of: Vec<Vec<u32>> = vec![Vec::new(); plan.programs.len() + 1];
    for class in &plan.classes {
        let program = match class.body {
            Body::Static { .. } => plan.programs.len(),
            Body::Dynamic { program, .. } => program as usize,
        };
        if let Some(predicate) = class.predicate
            && !predicates_of[program].contains(&predicate)
        {
            predicates_of[program].push(predicate);
        }
    }
    let empty = Program { graph: Default::default(), terms: Vec::new() };
    let programs = plan.programs.iter().cloned().chain([empty]);
    let mut units = Vec::new();
    for (index, (program, predicates)) in programs.zip(predicates_of).enumerate() {
        let is_program = index < plan.programs.len();
        if is_program || !predicates.is_empty() {
            let name = if is_program { format!("program {index}") } else { "token predicates".to_owned() };
            units.push((name, program, predicates.iter().map(|&id| &plan.predicates[id as usize]).collect()));
        }
    }
    units
}

/// The unit that is written: each is a module of its own.
fn one<T>(units: &[T], wanted: Option<usize>) -> Result<&T, Failure> {
    let count = units.len();
    match (wanted, units) {
        (None, [one]) => Ok(one),
        (None, _) => Err(Failure::new(format!("the plan has {count} programs, each a module of its own"))
            .help(format!("choose one with --program 0 to --program {}", count - 1))),
        (Some(index), _) => units.get(index).ok_or_else(|| {
            Failure::new(format!("there is no program {index}: the plan has {}", table::plural(count, "program")))
        }),
    }
}

fn nothing(plan: &Plan) -> Failure {
    Failure::new(format!("`{}` has no code: its symbols are all known when the plan is built", plan.strategy))
        .help("--emit symbols shows them")
}

fn llvm(plan: &Plan, wanted: Option<usize>) -> Result<String, Failure> {
    let units = units(plan);
    if units.is_empty() {
        return Err(nothing(plan));
    }
    let (name, program, predicates) = one(&units, wanted)?;
    Ok(format!("; {name} of {}\n{}", plan.strategy, codegen::emit_llvm(program, predicates)?))
}

#[cfg(feature = "llvm")]
fn ptx(plan: &Plan, target: Option<&str>, wanted: Option<usize>) -> Result<String, Failure> {
    use codegen::nvptx::{Architecture, emit_ptx};
    let known: Vec<&str> = Architecture::ALL.iter().map(|architecture| architecture.name()).collect();
    let Some(target) = target else {
        return Err(Failure::new("--emit ptx needs --target").help(format!("one of {}", known.join(", "))));
    };
    let Some(architecture) = Architecture::from_name(target) else {
        return Err(Failure::new(format!("there is no target `{target}`{}", near_or_all(target, &known))));
    };
    let units = units(plan);
    if units.is_empty() {
        return Err(nothing(plan));
    }
    let (name, program, predicates) = one(&units, wanted)?;
    Ok(format!("// {name} of {}\n{}\n", plan.strategy, emit_ptx(program, predicates, architecture)?.trim()))
}

#[cfg(not(feature = "llvm"))]
fn ptx(_: &Plan, _: Option<&str>, _: Option<usize>) -> Result<String, Failure> {
    Err(Failure::new("this omni was built without LLVM and writes no PTX")
        .help("build it with feature `llvm`, see the README"))
}
