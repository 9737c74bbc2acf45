//! Compile times: `check` as a process, a large table, a long file, and every example at the shapes of video models.
//!
//! `cargo bench --bench compile` prints a Markdown table of medians with the load of the machine. Two words behind `--`
//! do something else: `check FILE` checks one file and exits, which is what the process times measure, and `hashes` prints
//! a hash of the plan of every example for every shipped model it fits, to compare two versions of the compiler.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flashomni::compile::shipped_models;
use flashomni::plan::Plan;
use flashomni::syntax::ast::Item;
use flashomni::{Compiler, Error};

/// Windows of the published sliding tile tables, in tiles.
const WINDOWS: [[u32; 3]; 6] = [[3, 3, 3], [3, 3, 5], [3, 5, 3], [5, 3, 3], [1, 6, 10], [5, 6, 10]];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["check", file] => check(Path::new(file)),
        ["hashes"] => hashes(),
        ["compile", file, strategy, model] => {
            let start = Instant::now();
            let plan = plan(Path::new(file), strategy, model).expect("fits");
            println!("{strategy} for {model}: {:?}, {} masks", start.elapsed(), plan.masks.len());
        }
        _ => table(),
    }
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/strategies");
    let entries = std::fs::read_dir(folder).expect("examples");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "omni"));
    files.sort();
    files
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn check(path: &Path) {
    let found = Compiler::from_file(path).expect("readable").check();
    std::process::exit(i32::from(found.has_errors()));
}

/// The plan of a strategy of a file, `None` where it does not fit the model.
fn plan(path: &Path, strategy: &str, model: &str) -> Option<Plan> {
    match Compiler::from_file(path).expect("readable").strategy(strategy).model(model).compile() {
        Ok(compiled) => Some(compiled.plan),
        Err(Error::Compile(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Names of the strategies of a file, in order.
fn strategies(path: &Path) -> Vec<String> {
    let tree = Compiler::from_file(path).expect("readable").syntax().expect("parses");
    let name = |item: &Item| match item {
        Item::Strategy(strategy) => Some(strategy.name.node.clone()),
        _ => None,
    };
    tree.items.iter().filter_map(name).collect()
}

fn hashes() {
    for path in examples() {
        for strategy in strategies(&path) {
            for (model, _) in shipped_models() {
                if let Some(plan) = plan(&path, &strategy, &model.name) {
                    println!("{strategy} {} {}", model.name, blake3::hash(&plan.to_bytes()).to_hex());
                }
            }
        }
    }
}

fn median(rounds: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[rounds / 2]
}

fn row(what: &str, time: Duration, target: &str) {
    println!("| {what} | {:.2} | {target} |", time.as_secs_f64() * 1e3);
}

fn table() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load average before: {}\n", load.trim());
    println!("| what | median, ms | target, ms |\n|---|---|---|");
    let this = std::env::current_exe().expect("path of the benchmark");
    for path in examples() {
        let time = median(11, || {
            let status = std::process::Command::new(&this).arg("check").arg(&path).status().expect("started");
            assert!(status.success(), "{}", path.display());
        });
        row(&format!("check {}, process", stem(&path)), time, "10");
    }
    large_table();
    long_file();
    for model in ["hunyuan_video_720p", "wan21_14b_720p"] {
        for path in examples() {
            for strategy in strategies(&path) {
                if plan(&path, &strategy, model).is_some() {
                    let time = median(3, || assert!(plan(&path, &strategy, model).is_some()));
                    row(&format!("compile {strategy} for {model}"), time, "");
                }
            }
        }
    }
}

/// 50 steps x 60 layers x 24 heads with six windows, as JSON nested by step, layer and head.
fn large_table() {
    let mut json = String::from("[");
    let mut state = 1_u32;
    for step in 0..50 {
        json.push_str(if step == 0 { "[" } else { ",[" });
        for layer in 0..60 {
            json.push_str(if layer == 0 { "[" } else { ",[" });
            for head in 0..24 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let window = WINDOWS[(state >> 16) as usize % WINDOWS.len()];
                let comma = if head == 0 { "" } else { "," };
                let _ = write!(json, "{comma}{window:?}");
            }
            json.push(']');
        }
        json.push(']');
    }
    json.push(']');
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("windows.json"), json).expect("table");
    std::fs::copy(examples_file("sta.omni"), folder.path().join("sta.omni")).expect("copied");
    let main = folder.path().join("main.omni");
    let text = "import \"sta.omni\"\nstrategy large {\n    layout video(t, h, w) ++ text\n    \
        use sta(window = table(\"windows.json\", step, layer, head))\n    keep text.valid <-> all\n}\n";
    std::fs::write(&main, text).expect("strategy");
    std::fs::create_dir(folder.path().join("tables")).expect("folder");
    std::fs::copy(examples_file("tables/sta_windows.json"), folder.path().join("tables/sta_windows.json"))
        .expect("copied");
    for model in ["hunyuan_video_720p", "hunyuan_video_tiled"] {
        let out = folder.path().join("large.plan");
        let time = median(5, || plan(&main, "large", model).expect("fits").save(&out).expect("saved"));
        let plan = plan(&main, "large", model).expect("fits");
        let (masks, bytes) = (plan.masks.len(), std::fs::metadata(&out).expect("plan").len());
        row(&format!("build 72,000 entries for {model}: {masks} masks, {bytes} bytes"), time, "150");
    }
}

fn examples_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/strategies").join(name)
}

/// 10,000 lines: guards over layers and heads with a rule each.
fn long_file() {
    let mut text = String::from("strategy long {\n    layout video(t, h, w) ++ text\n    keep text <-> all\n");
    let mut lines = 3;
    let mut number = 0;
    while lines + 4 < 10_000 {
        let (layer, head) = (number % 60, number / 60 % 24);
        let _ = writeln!(
            text,
            "    // window of layer {layer}, head {head}\n    let w{number} = {} + layer mod 3\n    layers [{layer}] {{ \
             heads [{head}] {{\n        keep video -> video where abs(frame(q) - frame(k)) <= w{number}\n    }} }}",
            number % 7
        );
        lines += 5;
        number += 1;
    }
    while lines < 9_999 {
        text.push_str("    // end\n");
        lines += 1;
    }
    text.push_str("}\n");
    assert_eq!(text.lines().count(), 10_000);
    let compiler = Compiler::from_source("long.omni", text).model("hunyuan_video_720p");
    assert!(!compiler.check().has_errors());
    row("check 10,000 lines for hunyuan_video_720p", median(5, || drop(compiler.check())), "300");
    row("compile 10,000 lines", median(1, || drop(compiler.compile().expect("compiles"))), "");
}
