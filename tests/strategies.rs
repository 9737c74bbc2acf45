//! Whole programs: what they compile to, and what is said about those that have no meaning.
//!
//! `tests/strategies/*.omni` are accepted. Their snapshot holds the formatted text, the IR after `check` and after the
//! last pass that leaves one, the schedule, and each class: its symbols drawn block by block, or its selector program.
//! `tests/errors/eNNNN_subject.omni` are rejected (`wNNNN_...`: warned about) with the code of their name; the snapshot holds
//! the text and the messages, and the text with all fixes applied where there are any. A new case is a new file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use flashomni::diagnostics::{Code, Diagnostics, Severity, render};
use flashomni::ir::StepKind;
use flashomni::plan::{Body, Class, Plan};
use flashomni::symbols::BitMatrix;
use flashomni::{Compiler, Error, syntax};

type Outcome = datatest_stable::Result<()>;

fn snapshot(path: &Path, text: String) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(path.canonicalize().unwrap().parent().unwrap().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(stem(path), text));
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

// ---- accepted programs ----

fn accepted(path: &Path, text: String) -> Outcome {
    let formatted = syntax::format(&text).map_err(|found| format!("{found:?}"))?;
    let mut stages = BTreeMap::new();
    let compiled = Compiler::from_file(path)?.compile_with(&mut |name, strategy| {
        stages.insert(name, strategy.to_string());
    })?;
    compiled.plan.check()?;
    let mut out = formatted;
    for stage in ["check", "lower_predicates"] {
        let _ = write!(out, "\n---------- IR after {stage}\n{}", stages[stage]);
    }
    let _ = write!(out, "\n---------- schedule\n{}", schedule(&compiled.plan));
    for (index, class) in compiled.plan.classes.iter().enumerate() {
        let _ = write!(out, "\n---------- class {index}: {}\n", places(&compiled.plan, index as u32));
        write_class(&mut out, &compiled.plan, class);
    }
    if !compiled.warnings.list.is_empty() {
        let _ = write!(out, "\n---------- warnings\n{}", render::text(&compiled.warnings, false));
    }
    snapshot(path, out);
    Ok(())
}

/// One letter for each step, one line for each run of layers that do the same.
fn schedule(plan: &Plan) -> String {
    let line = |layer: u32| -> String {
        let letter = |step: u32| match plan.schedule.kind(step, layer) {
            StepKind::Dense => "D".to_owned(),
            StepKind::Update => "U".to_owned(),
            StepKind::Refresh => "R".to_owned(),
            StepKind::Dispatch => ".".to_owned(),
            StepKind::Residual => "+".to_owned(),
            StepKind::Shared => "=".to_owned(),
            StepKind::Reuse(_) => plan.schedule.reuse_order(step, layer).to_string(),
        };
        (0..plan.model.steps).map(letter).collect()
    };
    let mut out = "D dense, U update, R refresh, . dispatch, 0..4 reuse by a forecast of that order\n".to_owned();
    let mut first = 0;
    for layer in 0..plan.model.layers {
        if layer + 1 == plan.model.layers || line(layer + 1) != line(first) {
            let _ = writeln!(out, "layers {first}..{}: {}", layer + 1, line(first));
            first = layer + 1;
        }
    }
    out
}

/// How many places a class stands for, and the first of them.
fn places(plan: &Plan, class: u32) -> String {
    let all = plan.class_of.len();
    let count = plan.class_of.iter().filter(|&&other| other == class).count();
    let first = plan.class_of.iter().position(|&other| other == class).unwrap_or(0) as u32;
    let (layers, heads) = (plan.model.layers, plan.model.heads);
    let (step, layer, head) = (first / heads / layers, first / heads % layers, first % heads);
    format!("{count} of {all} places, the first at step {step}, layer {layer}, head {head}")
}

fn write_class(out: &mut String, plan: &Plan, class: &Class) {
    if let Some(order) = &plan.arrangements[class.arrangement as usize].order {
        let hash = blake3::hash(&order.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
        let _ = writeln!(out, "tokens reordered: {:?} ... (hash {})", &order[..8], &hash.to_hex()[..12]);
    }
    if class.forecast_order > 0 {
        let _ = writeln!(out, "cached blocks are forecast with order {}", class.forecast_order);
    }
    let mask = |id: u32| &plan.masks[id as usize];
    match &class.body {
        Body::Static { skip, partial, cache } => draw(out, mask(*skip), partial.map(mask), mask(*cache)),
        Body::Dynamic { program, masks } => {
            let _ = write!(out, "{}", plan.programs[*program as usize]);
            for (slot, &id) in masks.iter().enumerate() {
                let _ = writeln!(out, "mask {slot}:");
                draw(out, mask(id), None, &BitMatrix::ones(1, mask(id).rows()));
            }
        }
    }
    if let Some(predicate) = class.predicate {
        let _ = write!(out, "partial blocks under:\n{}", plan.predicates[predicate as usize]);
    }
}

/// `#` computed, `+` computed under the predicate, `.` skipped, `c` for rows that are cached.
fn draw(out: &mut String, live: &BitMatrix, partial: Option<&BitMatrix>, cache: &BitMatrix) {
    let mut computed = 0;
    for row in 0..live.rows() {
        let cached = !cache.get(0, row);
        let cell = |column: usize| match (cached, live.get(row, column)) {
            (true, _) => 'c',
            (false, false) => '.',
            (false, true) if partial.is_some_and(|partial| partial.get(row, column)) => '+',
            (false, true) => '#',
        };
        let line: String = (0..live.columns()).map(cell).collect();
        computed += line.matches(['#', '+']).count();
        let _ = writeln!(out, "{line}");
    }
    let share = 100.0 * computed as f64 / (live.rows() * live.columns()) as f64;
    let _ = writeln!(out, "{computed} of {} blocks, {share:.1}%", live.rows() * live.columns());
}

// ---- rejected programs ----

fn rejected(path: &Path, bytes: Vec<u8>) -> Outcome {
    let name = stem(path);
    let code: Code = name.split('_').next().unwrap_or_default().parse()?;
    let found = findings(Compiler::from_file(path)?);
    let codes: Vec<Code> = found.list.iter().map(|one| one.code).collect();
    assert!(codes.contains(&code), "{code} is not among {codes:?}");
    for one in &found.list {
        assert!(one.message.starts_with(|c: char| !c.is_uppercase()), "upper case: {}", one.message);
        assert!(!one.message.ends_with('.'), "full stop: {}", one.message);
    }
    let source = String::from_utf8_lossy(&bytes).into_owned();
    let mut out = format!("{source}\n---------- messages\n{}", render::text(&found, false));
    if let Some(file) = found.sources.files().iter().position(|file| file.name == path.display().to_string()) {
        let (mended, count) = render::apply_fixes(&found, file as u16, &source);
        if count > 0 {
            let again = findings_of_text(path, &mended);
            let fixed: Vec<_> = found.list.iter().filter(|one| one.fix.is_some()).map(|one| &one.message).collect();
            let left = again.list.iter().filter(|one| fixed.contains(&&one.message)).count();
            assert_eq!(left, 0, "a fix did not mend its finding:\n{mended}");
            let _ = write!(out, "\n---------- with {count} fixes applied\n{mended}");
        }
    }
    snapshot(path, out);
    Ok(())
}

/// Everything that is said about a program: by the checks, or where they pass by the rest of the compiler.
fn findings(compiler: Compiler) -> Diagnostics {
    let checked = compiler.check();
    if checked.has_errors() {
        return checked;
    }
    let mut list = checked.list.clone();
    let sources = match compiler.compile() {
        Ok(compiled) => {
            for one in &compiled.warnings.list {
                assert!(list.contains(one), "`check` does not say: {one:?}");
            }
            list.extend(compiled.warnings.list);
            compiled.warnings.sources
        }
        Err(Error::Compile(found)) => {
            list.extend(found.list);
            found.sources
        }
        Err(_) => Arc::clone(&checked.sources),
    };
    Diagnostics::new(sources, list)
}

/// The same for a changed text that stands where the file stood.
fn findings_of_text(path: &Path, text: &str) -> Diagnostics {
    let directory = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
    let file = directory.path().join("mended.omni");
    std::fs::write(&file, text).unwrap();
    Compiler::from_file(&file).unwrap().check()
}

/// Every code has a program that provokes it; a program cannot provoke a bug.
fn every_code(_: &Path) -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/errors");
    let names: Vec<String> = std::fs::read_dir(folder)?.map(|entry| stem(&entry.unwrap().path())).collect();
    for code in Code::ALL.iter().filter(|code| **code != Code::E0401) {
        let prefix = format!("{}_", code.name().to_ascii_lowercase());
        assert!(names.iter().any(|name| name.starts_with(&prefix)), "no file tests/errors/{prefix}*.omni");
        assert!(matches!(code.severity(), Severity::Error | Severity::Warning));
    }
    Ok(())
}

datatest_stable::harness! {
    { test = accepted, root = "tests/strategies", pattern = r"^[^/]*\.omni$" },
    { test = rejected, root = "tests/errors", pattern = r"^[^/]*\.omni$" },
    { test = every_code, root = "tests/errors", pattern = r"^e0101_unexpected_text\.omni$" },
}
