//! The command as its users call it: exit codes, streams, files and what it says to bad input.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flashomni::tensor_file::{Entry, FileValues, TensorFile, write};

const SMALL: &str = "model tiny { layers 2 heads 2 head_dim 16 steps 4 tokens text(32) ++ image(h = 8, w = 12) }

/// A band.
strategy band(reach = 2) {
    layout text ++ image(h, w)
    block 16
    keep text <-> all
    keep image -> image where abs(h(q) - h(k)) <= reach
}
";

const CHOOSING: &str = "model tiny { layers 2 heads 2 head_dim 16 steps 4 tokens text(32) ++ image(h = 8, w = 12) }
strategy choosing {
    layout text ++ image(h, w)
    block 16
    schedule { update every 2 }
    keep text <-> all
    keep image -> image where top_k(dot(mean(q), mean(k)), 50%)
}
";

const CACHING: &str = "model tiny { layers 1 heads 2 head_dim 16 steps 4 tokens image(h = 8, w = 12) }
strategy whole {
    layout image(h, w)
    schedule { dense every 2  reuse }
}
strategy orders {
    layout image(h, w)
    block 16
    schedule { update every 2 }
    heads [0] { cache image where block(q) < 2 as taylor(1) }
    heads rest { cache image where block(q) < 2 }
    keep image -> image
}
strategy mixed {
    layout image(h, w)
    block 16
    schedule { update every 2 }
    heads [0] { keep image -> image where abs(h(q) - h(k)) <= 2 }
    heads rest { keep image -> image where top_k(dot(mean(q), mean(k)), 50%) }
}
strategy late {
    layout image(h, w)
    block 16
    schedule { dense while step < 2 }
    keep image -> image where abs(h(q) - h(k)) <= 2
}
";

/// What a call printed and how it ended.
struct Called {
    code: i32,
    out: String,
    err: String,
}

fn finish(output: Output) -> Called {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Called { code: output.status.code().expect("no signal"), out: text(output.stdout), err: text(output.stderr) }
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni"));
    command.args(args).current_dir(folder).env_remove("NO_COLOR").env_remove("OMNI_INTERPRET");
    command
}

fn omni(folder: &Path, args: &[&str]) -> Called {
    finish(command(folder, args).stdin(Stdio::null()).output().unwrap())
}

fn omni_with_input(folder: &Path, args: &[&str], input: &[u8]) -> Called {
    let mut child =
        command(folder, args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    finish(child.wait_with_output().unwrap())
}

/// A folder with the two strategies.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("band.omni"), SMALL).unwrap();
    fs::write(folder.path().join("choosing.omni"), CHOOSING).unwrap();
    folder
}

/// A recording of four steps of layer 1, with one value replaced in step 2.
fn recording(path: &Path, replaced: Option<f32>) {
    let shape = vec![2, 128, 16];
    let values = |tensor: usize, step: usize| -> Vec<f32> {
        (0..2 * 128 * 16).map(|i| ((i * (7 + tensor) + step) as f32 * 0.37).sin()).collect()
    };
    let mut tensors = Vec::new();
    for step in 0..4 {
        for (index, name) in ["q", "k", "v"].iter().enumerate() {
            tensors.push((format!("{name}.step{step}"), values(index, step)));
        }
    }
    if let Some(value) = replaced {
        let (_, values) = tensors.iter_mut().find(|(name, _)| name == "q.step2").unwrap();
        values[0] = value;
    }
    let entries: Vec<Entry<'_>> = tensors
        .iter()
        .map(|(name, values)| Entry { name: name.clone(), shape: shape.clone(), values: FileValues::F32(values) })
        .collect();
    write(path, &entries, &[("layer".to_owned(), "1".to_owned())].into()).unwrap();
}

/// One sentence on standard error, nothing on standard output, exit code 2.
fn refused(folder: &Path, args: &[&str], sentence: &str) {
    let called = omni(folder, args);
    assert_eq!((called.code, called.out.as_str()), (2, ""), "{args:?}: {}", called.err);
    assert!(called.err.starts_with("error: "), "{args:?}: {}", called.err);
    assert!(called.err.contains(sentence), "{args:?}: {}\nwanted: {sentence}", called.err);
    assert!(!called.err.contains('\u{1b}'), "colours on a pipe: {:?}", called.err);
}

#[test]
fn help_of_every_verb() {
    let folder = folder();
    for verb in [
        "check",
        "fmt",
        "build",
        "show",
        "run",
        "bench",
        "sample",
        "eval",
        "symbols",
        "explain",
        "models",
        "new",
        "info",
        "completions",
    ] {
        let called = omni(folder.path(), &[verb, "--help"]);
        assert_eq!((called.code, called.err.as_str()), (0, ""));
        insta::with_settings!({ snapshot_path => "cli", prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(format!("help_{verb}"), called.out);
        });
    }
    assert_eq!(omni(folder.path(), &["--version"]).out, concat!("omni ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(omni(folder.path(), &["chekc"]).code, 2);
}

#[test]
fn a_device_that_is_not_there_is_one_sentence() {
    let folder = folder();
    for verb in ["run", "bench"] {
        refused(folder.path(), &[verb, "band.omni", "--synthetic", "--device", "gpu"], "cpu, cuda and cuda:N are");
        if let Err(error) = flashomni::runtime::Backend::cuda(7) {
            let args = [verb, "band.omni", "--synthetic", "--device", "cuda:7"];
            refused(folder.path(), &args, &error.to_string());
        }
    }
    let info = omni(folder.path(), &["info", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info.out).unwrap();
    assert_eq!(info["gpu"]["usable"], flashomni::runtime::Backend::cuda(0).is_ok(), "{info}");
}

#[test]
fn check_says_everything_at_once() {
    let folder = folder();
    let good = omni(folder.path(), &["check", "band.omni", "choosing.omni"]);
    assert_eq!((good.code, good.out.as_str(), good.err.as_str()), (0, "", "checked 2 files: no problems\n"));
    fs::write(folder.path().join("bad.omni"), SMALL.replace("abs(h(q)", "abz(h(q)").replace("keep text", "kep text"))
        .unwrap();
    let bad = omni(folder.path(), &["check", "bad.omni", "--output-format", "concise"]);
    assert_eq!(bad.code, 1);
    let lines: Vec<&str> = bad.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", bad.out);
    assert!(lines[0].starts_with("bad.omni:7:5: error[E0101]"), "{}", bad.out);
    assert!(lines[1].starts_with("bad.omni:8:31: error[E0203]"), "{}", bad.out);
    let json = omni(folder.path(), &["check", "bad.omni", "--output-format", "json"]);
    let found: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 2);
    let fixed = omni(folder.path(), &["check", "--fix", "bad.omni"]);
    assert_eq!(fixed.code, 0, "{}{}", fixed.out, fixed.err);
    assert_eq!(fs::read_to_string(folder.path().join("bad.omni")).unwrap(), SMALL);
}

#[test]
fn a_fix_that_mends_nothing_is_not_made() {
    let folder = folder();
    let wrong = SMALL.replace("<= reach", "<= reach.0");
    fs::write(folder.path().join("wrong.omni"), &wrong).unwrap();
    // A byte order mark stays.
    let marked = [&b"\xEF\xBB\xBF"[..], SMALL.replace("keep text", "kep text").as_bytes()].concat();
    fs::write(folder.path().join("marked.omni"), marked).unwrap();
    assert_eq!(omni(folder.path(), &["check", "--fix", "marked.omni"]).code, 0);
    let mended = [&b"\xEF\xBB\xBF"[..], SMALL.as_bytes()].concat();
    assert_eq!(fs::read(folder.path().join("marked.omni")).unwrap(), mended);
    assert_eq!(omni(folder.path(), &["check", "--fix", "wrong.omni"]).code, 1);
    assert_eq!(fs::read_to_string(folder.path().join("wrong.omni")).unwrap(), wrong);
    assert_eq!(omni(folder.path(), &["check", "--fix", "band.omni", "--param", "reach=1"]).code, 2);
}

#[test]
fn standard_input_has_a_name() {
    let folder = folder();
    let wrong = SMALL.replace("abs(h(q)", "abz(h(q)");
    let args = ["check", "-", "--stdin-filename", "piped.omni", "--output-format", "concise"];
    let called = omni_with_input(folder.path(), &args, wrong.as_bytes());
    assert_eq!(called.code, 1);
    assert!(called.out.starts_with("piped.omni:8:31"), "{}", called.out);
    let called = omni_with_input(folder.path(), &["check", "-", "--output-format", "concise"], b"strategy \xff {}");
    assert!((called.code, called.out.contains("E0105")) == (1, true), "{}{}", called.out, called.err);
    let called = omni_with_input(folder.path(), &["fmt", "-"], b"strategy s{keep all->all}");
    assert_eq!((called.code, called.out.as_str()), (0, "strategy s { keep all -> all }\n"));
}

#[test]
fn fmt_changes_what_is_not_in_form_and_nothing_else() {
    let folder = folder();
    let path = folder.path().join("loose.omni");
    fs::write(&path, "strategy s{keep all->all}").unwrap();
    assert_eq!(omni(folder.path(), &["fmt", "--check", "loose.omni"]).code, 1);
    let diff = omni(folder.path(), &["fmt", "--diff", "loose.omni"]);
    assert!(diff.code == 1 && diff.out.contains("+strategy s { keep all -> all }"), "{}", diff.out);
    assert_eq!(fs::read_to_string(&path).unwrap(), "strategy s{keep all->all}");
    assert_eq!(omni(folder.path(), &["fmt", "loose.omni"]).code, 0);
    assert_eq!(omni(folder.path(), &["fmt", "--check", "loose.omni"]).code, 0);
    fs::write(&path, "strategy s{keep all->").unwrap();
    assert_eq!(omni(folder.path(), &["fmt", "loose.omni"]).code, 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "strategy s{keep all->", "a broken file stays as it is");
}

#[test]
fn build_writes_a_plan_and_every_stage() {
    let folder = folder();
    let called = omni(folder.path(), &["build", "choosing.omni", "-o", "plan.safetensors"]);
    assert_eq!(called.code, 0, "{}", called.err);
    assert!(TensorFile::open(folder.path().join("plan.safetensors")).unwrap().contains("class_of"));
    let mut stages = vec!["ast", "ir", "ir-after=bind_model", "ir-after=lower_predicates", "plan", "symbols"];
    if cfg!(feature = "llvm") {
        stages.push("llvm");
    }
    for stage in stages {
        let called = omni(folder.path(), &["build", "choosing.omni", "--emit", stage]);
        assert_eq!(called.code, 0, "{stage}: {}", called.err);
        assert!(called.out.lines().count() > 1, "{stage}: {}", called.out);
    }
    if cfg!(feature = "llvm") {
        let called = omni(folder.path(), &["build", "choosing.omni", "--emit", "ptx", "--target", "sm_90a"]);
        assert!(called.out.contains(".target sm_90a"), "{}{}", called.out, called.err);
    }
    let called = omni(folder.path(), &["build", "choosing.omni", "--emit", "ir-after=fold_constnats"]);
    assert!(called.code == 2 && called.err.contains("did you mean `fold_constants`?"), "{}", called.err);
    let show = omni(folder.path(), &["show", "plan.safetensors", "--synthetic"]);
    assert!(
        show.code == 0 && show.out.contains("choosing on tiny, step 1 (dispatch, chosen at step 0), layer 0"),
        "{}",
        show.out
    );
}

#[test]
fn show_draws_in_the_terminal_and_to_files() {
    let folder = folder();
    let called = omni(folder.path(), &["show", "band.omni", "--head", "1", "--width", "60"]);
    assert_eq!(called.code, 0, "{}", called.err);
    insta::with_settings!({ snapshot_path => "cli", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("show_band", called.out);
    });
    for (name, start) in [("mask.png", &b"\x89PNG"[..]), ("mask.svg", b"<svg")] {
        assert_eq!(omni(folder.path(), &["show", "band.omni", "-o", name]).code, 0);
        assert!(fs::read(folder.path().join(name)).unwrap().starts_with(start), "{name}");
    }
    refused(folder.path(), &["show", "band.omni", "-o", "mask.gif"], "`mask.gif` is neither .png nor .svg");
    // What a step obeys was chosen from the q and k of an earlier one: the picture is the same.
    recording(&folder.path().join("qkv.safetensors"), None);
    let at =
        |step: &str| omni(folder.path(), &["show", "choosing.omni", "--qkv", "qkv.safetensors", "--step", step]).out;
    let [chosen, obeyed, next] = ["0", "1", "2"].map(at);
    assert!(chosen.starts_with("choosing on tiny, step 0 (update: what the steps after it obey), layer 1"), "{chosen}");
    assert_eq!(chosen.split_once('\n').unwrap().1, obeyed.split_once('\n').unwrap().1);
    assert_ne!(obeyed.split_once('\n').unwrap().1, next.split_once('\n').unwrap().1, "step 2 chooses anew");
    fs::write(folder.path().join("caching.omni"), CACHING).unwrap();
    refused(folder.path(), &["show", "caching.omni", "--step", "1"], "there is no mask to draw: no layer obeys");
    refused(folder.path(), &["show", "caching.omni", "--strategy", "whole"], "a letter for each step of layer 0: D0D0");
    // Heads whose forecasts differ are one picture, and heads that need no q and k none.
    let both = omni(folder.path(), &["show", "caching.omni", "--strategy", "orders", "-o", "orders.svg"]);
    assert_eq!(both.code, 0, "{}", both.err);
    let one = omni(folder.path(), &["show", "caching.omni", "--strategy", "mixed", "--head", "0"]);
    assert!(one.code == 0 && one.out.contains("1 head, "), "{}", one.err);
    refused(
        folder.path(),
        &["show", "choosing.omni"],
        "q and k of step 0 are needed\nhelp: give recorded ones with --qkv",
    );
    refused(folder.path(), &["show", "band.omni", "--head", "2"], "there is no head 2");
    refused(folder.path(), &["show", "band.omni", "--step", "4"], "there is no step 4: `tiny` has 4 steps, from 0");
}

#[test]
fn run_compares_with_dense_attention() {
    let folder = folder();
    recording(&folder.path().join("rec.safetensors"), None);
    let args = ["run", "choosing.omni", "--qkv", "rec.safetensors", "--json", "-o", "out.safetensors"];
    let called = omni(folder.path(), &args);
    assert_eq!(called.code, 0, "{}", called.err);
    let results: serde_json::Value = serde_json::from_str(&called.out).unwrap();
    let steps = results["steps"].as_array().unwrap();
    let kinds: Vec<&str> = steps.iter().map(|step| step["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["update", "dispatch", "update", "dispatch"]);
    assert!(steps.iter().all(|step| step["layer"] == 1));
    assert_eq!(steps[0]["relative_error"], 0.0);
    let (live, error) = (steps[1]["live_share"].as_f64().unwrap(), steps[1]["relative_error"].as_f64().unwrap());
    assert!((0.5..0.9).contains(&live) && error > 0.0, "{live} {error}");
    let out = TensorFile::open(folder.path().join("out.safetensors")).unwrap();
    assert_eq!(out.shape("out.layer1.step3").unwrap(), [2, 128, 16]);
    let text = omni(folder.path(), &["run", "choosing.omni", "--qkv", "rec.safetensors", "--steps", "2.."]);
    assert_eq!(text.out.lines().filter(|line| line.contains("update") || line.contains("dispatch")).count(), 2);
    let bench = omni(folder.path(), &["bench", "band.omni", "--synthetic", "--steps", "0", "--rounds", "2", "--json"]);
    let results: serde_json::Value = serde_json::from_str(&bench.out).unwrap();
    assert_eq!(results["kinds"][0]["kind"], "dispatch");
    let bench = omni(folder.path(), &["bench", "choosing.omni", "--synthetic", "--steps", "..2", "--rounds", "1"]);
    let kinds: Vec<&str> = bench.out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(kinds.contains(&"update") && kinds.contains(&"dispatch"), "{}{}", bench.out, bench.err);
    let scaled = omni(folder.path(), &["run", "band.omni", "--synthetic", "--scale", "0.5", "--steps", "0", "--json"]);
    assert_eq!(scaled.code, 0, "{}", scaled.err);
}

#[test]
fn whole_blocks_are_compared_with_the_dense_block() {
    let folder = folder();
    let called = omni(folder.path(), &["run", "choosing.omni", "--block", "--synthetic", "--steps", "..3", "--json"]);
    assert_eq!(called.code, 0, "{}", called.err);
    let results: serde_json::Value = serde_json::from_str(&called.out).unwrap();
    let steps = results["steps"].as_array().unwrap();
    assert_eq!(
        steps.iter().map(|step| step["kind"].as_str().unwrap()).collect::<Vec<_>>()[..2],
        ["update", "dispatch"]
    );
    let errors = [0, 1].map(|step| steps[step]["relative_error"].as_f64().unwrap());
    assert!(errors[0] == 0.0 && errors[1] > 0.0 && errors[1] < 1.0, "{errors:?}");
    let text = omni(folder.path(), &["run", "choosing.omni", "--block", "--synthetic", "--steps", "1"]);
    assert!(text.out.contains("to dense") && text.out.contains("update"), "{}{}", text.out, text.err);
    refused(folder.path(), &["run", "choosing.omni", "--synthetic", "--memory", "8"], "--block");
    refused(
        folder.path(),
        &["run", "choosing.omni", "--synthetic", "--block", "--memory", "0"],
        "no number of GB above 0",
    );
    let whole = ["run", "choosing.omni", "--synthetic", "--block", "--caches"];
    refused(folder.path(), &[&whole[..], &["host"]].concat(), "--caches is about whole blocks on a GPU");
    refused(folder.path(), &[&whole[..], &["disk"]].concat(), "possible values: gpu, host");
    refused(folder.path(), &["run", "choosing.omni", "--synthetic", "--caches", "host"], "--block");
}

#[test]
fn whole_blocks_are_measured_by_the_kind_of_their_steps() {
    let folder = folder();
    let args = ["bench", "choosing.omni", "--block", "--rounds", "2"];
    let called = omni(folder.path(), &[&args[..], &["--json"]].concat());
    assert_eq!(called.code, 0, "{}", called.err);
    let results: serde_json::Value = serde_json::from_str(&called.out).unwrap();
    let kinds = results["kinds"].as_array().unwrap();
    // Two rounds of two layers.
    let calls: Vec<_> = kinds.iter().map(|kind| (kind["kind"].as_str().unwrap(), kind["calls"].as_u64())).collect();
    assert_eq!(calls, [("update", Some(8)), ("dispatch", Some(8))]);
    let shares = [0, 1].map(|kind| kinds[kind]["live_share"].as_f64().unwrap());
    assert!(shares[0] == 1.0 && (0.5..0.9).contains(&shares[1]), "{shares:?}");
    assert!(["whole_ms", "dense_ms", "speedup"].iter().all(|name| results["total"][name].as_f64().unwrap() > 0.0));
    assert!(results["memory_bytes"].is_null(), "no memory is announced on the CPU");
    let text = omni(folder.path(), &[&args[..], &["--steps", "1..3", "--layers", "1"]].concat());
    let lines: Vec<Vec<&str>> = text.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let headings = ["kind", "calls", "live", "selection", "of", "dense", "whole", "dense", "gain"];
    let table = lines.iter().position(|line| *line == headings).unwrap_or_else(|| panic!("{}{}", text.out, text.err));
    // What no step before has chosen is chosen at the first.
    assert_eq!(lines[table + 1][..3], ["update", "4", "100.0%"], "{}", text.out);
    assert!(lines[table + 2].is_empty() && lines[table + 3][0] == "schedule", "{}", text.out);
    assert!(text.out.ends_with(": 2 steps of 1 layer\n"), "{}", text.out);
    fs::write(folder.path().join("caching.omni"), CACHING).unwrap();
    let reuse = omni(folder.path(), &["bench", "caching.omni", "--strategy", "whole", "--block", "--rounds", "1"]);
    let row = |kind: &str| reuse.out.lines().any(|line| line.starts_with(kind));
    assert!(row("dense ") && row("reuse "), "{}{}", reuse.out, reuse.err);
    recording(&folder.path().join("rec.safetensors"), None);
    refused(folder.path(), &[&args[..], &["--qkv", "rec.safetensors"]].concat(), "cannot be used with '--qkv <FILE>'");
    refused(folder.path(), &["bench", "choosing.omni", "--synthetic", "--memory", "8"], "--block");
    refused(folder.path(), &[&args[..], &["--caches", "gpu"]].concat(), "--caches is about whole blocks on a GPU");
    refused(folder.path(), &[&args[..], &["--layers", "2"]].concat(), "there is no layer 2: there are layers 0..2");
}

#[test]
fn symbols_come_packed_or_as_bytes() {
    let folder = folder();
    let packed = omni(folder.path(), &["symbols", "band.omni", "--out", "packed.safetensors"]);
    assert_eq!(packed.code, 0, "{}", packed.err);
    let file = TensorFile::open(folder.path().join("packed.safetensors")).unwrap();
    // 8 q-blocks x 2 heads, and as many rows of 8 kv-blocks.
    assert_eq!(file.shape("sparse_info").unwrap(), [2]);
    assert_eq!(file.shape("sparse_kv_info").unwrap(), [16]);
    let args = ["symbols", "band.omni", "--out", "bytes.safetensors", "--unpacked", "--param", "reach=0"];
    assert_eq!(omni(folder.path(), &args).code, 0);
    let file = TensorFile::open(folder.path().join("bytes.safetensors")).unwrap();
    assert_eq!(file.shape("skip").unwrap(), [2, 8, 8]);
    assert_eq!(file.values::<i32>("schedule").unwrap(), [1; 8]);
    refused(folder.path(), &["symbols", "choosing.omni", "--out", "x.safetensors"], "q and k of step 1 are needed");
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    refused(folder.path(), &["check", "missing.omni"], "cannot read `missing.omni`: no such file or directory");
    refused(folder.path(), &["check", "."], "it is a directory");
    recording(&path("rec.safetensors"), None);
    let bytes = fs::read(path("rec.safetensors")).unwrap();
    fs::write(path("cut.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
    refused(folder.path(), &["run", "band.omni", "--qkv", "cut.safetensors"], "it is truncated");
    fs::write(path("text.safetensors"), "no tensors at all").unwrap();
    refused(folder.path(), &["run", "band.omni", "--qkv", "text.safetensors"], "it is not a safetensors file");
    assert_eq!(omni(folder.path(), &["build", "band.omni", "-o", "plan.safetensors"]).code, 0);
    let mut plan = fs::read(path("plan.safetensors")).unwrap();
    *plan.last_mut().unwrap() ^= 1;
    fs::write(path("altered.safetensors"), &plan).unwrap();
    refused(folder.path(), &["show", "altered.safetensors"], "it was altered or damaged after it was written");
    refused(folder.path(), &["show", "rec.safetensors"], "it is a safetensors file, but not a plan of flashomni");
    refused(folder.path(), &["run", "plan.safetensors", "--qkv", "plan.safetensors"], "holds no recorded queries");
    refused(folder.path(), &["show", "plan.safetensors", "--param", "reach=1"], "--param comes too late");
    refused(
        folder.path(),
        &["build", "band.omni", "-o", "none/plan.safetensors"],
        "cannot write `none/plan.safetensors`",
    );
    recording(&path("nan.safetensors"), Some(f32::NAN));
    for strategy in ["choosing.omni", "band.omni"] {
        let args = ["run", strategy, "--qkv", "nan.safetensors"];
        refused(folder.path(), &args, "q of layer 1 at step 2 in `nan.safetensors` is not finite at [0, 0, 0]");
    }
    let args = ["run", "band.omni", "--qkv", "rec.safetensors", "--layers", "0"];
    refused(folder.path(), &args, "layer 0");
}

/// A file of some tensors.
fn tensors_to(path: &Path, tensors: &[(&str, Vec<usize>, FileValues<'_>)]) {
    let entries: Vec<Entry<'_>> = tensors
        .iter()
        .map(|(name, shape, values)| Entry { name: (*name).to_owned(), shape: shape.clone(), values: *values })
        .collect();
    write(path, &entries, &[("layer".to_owned(), "0".to_owned())].into()).unwrap();
}

#[test]
fn recordings_of_other_shapes_and_types() {
    let folder = folder();
    let path = folder.path().join("odd.safetensors");
    let (reals, integers) = (vec![0.5_f32; 2 * 128 * 16], vec![1_i32; 2 * 128 * 16]);
    let full = vec![2, 128, 16];
    let args = ["run", "band.omni", "--qkv", "odd.safetensors"];
    let (f32s, i32s) = (FileValues::F32(&reals), FileValues::I32(&integers));
    tensors_to(
        &path,
        &[("q.step0", full.clone(), f32s), ("k.step0", full.clone(), f32s), ("v.step0", full.clone(), i32s)],
    );
    refused(folder.path(), &args, "`v.step0`");
    let short = FileValues::F32(&reals[..2 * 64 * 16]);
    tensors_to(
        &path,
        &[("q.step0", full.clone(), f32s), ("k.step0", vec![2, 64, 16], short), ("v.step0", full.clone(), f32s)],
    );
    refused(folder.path(), &args, "[2, 64, 16]");
    tensors_to(&path, &[("q.step0", full.clone(), f32s), ("k.step0", full, f32s)]);
    refused(folder.path(), &args, "`v.step0`");
}

#[test]
fn outputs_that_cannot_be_written() {
    let folder = folder();
    refused(folder.path(), &["show", "band.omni", "-o", "none/mask.png"], "cannot write `none/mask.png`");
    recording(&folder.path().join("rec.safetensors"), None);
    let called = omni(folder.path(), &["run", "band.omni", "--qkv", "rec.safetensors", "-o", "none/out.safetensors"]);
    assert!(called.code == 2 && called.err.contains("cannot write `none/out.safetensors`"), "{}", called.err);
    refused(
        folder.path(),
        &["symbols", "band.omni", "--out", "none/out.safetensors"],
        "cannot write `none/out.safetensors`",
    );
    assert!(!folder.path().join("none").exists());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = folder();
    let mut child = command(folder.path(), &["models", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "nothing is said, and nothing panics");
}

#[test]
fn inputs_come_from_a_file() {
    let folder = folder();
    let drawn = "model tiny { layers 1 heads 2 head_dim 16 steps 4 tokens image(h = 8, w = 12) }
strategy drawn {
    layout image(h, w)
    block 16
    let draws = input(\"draws\", heads, q_blocks, 1)
    keep all -> all where block(k) == draws(head, block(q))
}
";
    fs::write(folder.path().join("drawn.omni"), drawn).unwrap();
    let draws = |name: &str, rows: usize| {
        let values: Vec<i32> = (0..2 * rows as i32).map(|i| i % 5).collect();
        tensors_to(&folder.path().join(name), &[("draws", vec![2, rows, 1], FileValues::I32(&values))]);
    };
    draws("six.safetensors", 6);
    draws("seven.safetensors", 7);
    let missing = omni(folder.path(), &["build", "drawn.omni", "-o", "plan.safetensors"]);
    assert!(missing.code == 1 && missing.err.contains("the input `draws` was not given"), "{}", missing.err);
    let wrong = omni(folder.path(), &["show", "drawn.omni", "--inputs", "seven.safetensors"]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("input `draws` has the shape [2, 7, 1]"), "{}", wrong.err);
    assert!(wrong.err.contains("[2, 6, 1] with model `tiny`"), "{}", wrong.err);
    let built = omni(folder.path(), &["build", "drawn.omni", "--inputs", "six.safetensors", "-o", "plan.safetensors"]);
    assert_eq!(built.code, 0, "{}", built.err);
    let args = ["symbols", "drawn.omni", "--inputs", "six.safetensors", "--out", "bytes.safetensors", "--unpacked"];
    assert_eq!(omni(folder.path(), &args).code, 0);
    let skip = TensorFile::open(folder.path().join("bytes.safetensors")).unwrap().values::<u8>("skip").unwrap();
    let kept: Vec<usize> = skip.chunks(6).map(|row| row.iter().position(|&live| live == 1).unwrap()).collect();
    assert_eq!(kept, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
    refused(folder.path(), &["show", "plan.safetensors", "--inputs", "six.safetensors"], "--inputs comes too late");
}

#[test]
fn names_that_are_not_there() {
    let folder = folder();
    for (args, sentence) in [
        (["check", "band.omni", "--model", "flux1_dve"], "did you mean `flux1_dev`?"),
        (["check", "band.omni", "--strategy", "bnad"], "did you mean `band`?"),
        (["build", "band.omni", "--param", "raech=3"], "did you mean `reach`?"),
        (["build", "band.omni", "--shape", "haeds=3"], "did you mean `heads`?"),
    ] {
        let called = omni(folder.path(), &args);
        assert_eq!(called.code, 1, "{args:?}");
        assert!(format!("{}{}", called.out, called.err).contains(sentence), "{args:?}: {}{}", called.out, called.err);
    }
    refused(folder.path(), &["explain", "E0230"], "did you mean");
    refused(folder.path(), &["models", "flux1_dve"], "did you mean `flux1_dev`?");
    recording(&folder.path().join("rec.safetensors"), None);
    let args = ["run", "band.omni", "--qkv", "rec.safetensors", "--model", "minidit_64"];
    refused(folder.path(), &args, "has the shape [2, 128, 16], model `minidit_64` [4, 1088, 64]");
    refused(folder.path(), &["run", "band.omni"], "give recorded ones with --qkv FILE");
}

/// What is wrong with a value on the command line is shown in what was written there.
#[test]
fn choices_that_do_not_exist() {
    let folder = folder();
    let check = |args: &[&str]| {
        let called = omni(folder.path(), &[&["check", "band.omni"], args].concat());
        assert_eq!(called.code, 1, "{args:?}: {}", called.err);
        called.out
    };
    for (value, wanted) in [
        ("reach = foo", "1 │ reach = foo\n"),
        ("reach = 2 +", "1 │ reach = 2 +\n"),
        ("reach = (2", "`(` without its closing `)`"),
        ("reach = 2 }", "found `}`, expected the end of the value"),
        ("reach = \"text", "text without its closing"),
        ("raech = 2", "1 + reach = 2\n"),
    ] {
        let out = check(&["--param", value]);
        assert!(out.contains(wanted) && !out.contains("strategy _"), "{value}: {out}");
    }
    let out = check(&["--strategy", "bnad"]);
    assert!(out.contains("there is no strategy `bnad`, did you mean `band`?"), "{out}");
    let out = check(&["--strategy", "other"]);
    assert!(out.contains("there is no strategy `other`: there are `band`"), "{out}");
    let out = check(&["--model", "minidit128"]);
    assert!(out.contains("there is no model `minidit128`, did you mean `minidit_128`?"), "{out}");
    let out = check(&["--model", "dalle"]);
    assert!(out.contains("there is no model `dalle`: there are `cogvideox_2b`, "), "{out}");
}

#[test]
fn new_never_overwrites() {
    let folder = folder();
    for template in ["window", "top-k", "cache", "heads"] {
        let name = format!("my_{}", template.replace('-', "_"));
        let called = omni(folder.path(), &["new", &name, "--template", template]);
        assert_eq!(called.code, 0, "{}", called.err);
        let checked = omni(folder.path(), &["check", &format!("{name}.omni")]);
        assert_eq!((checked.code, checked.out.as_str()), (0, ""), "{template}: {}", checked.out);
    }
    fs::write(folder.path().join("mine.omni"), "precious").unwrap();
    assert_eq!(omni(folder.path(), &["new", "mine"]).code, 2);
    assert_eq!(fs::read_to_string(folder.path().join("mine.omni")).unwrap(), "precious");
}

#[test]
fn lists_and_reports() {
    let folder = folder();
    assert!(omni(folder.path(), &["models"]).out.contains("minidit_128"));
    let models: serde_json::Value = serde_json::from_str(&omni(folder.path(), &["models", "--json"]).out).unwrap();
    assert!(models.as_array().unwrap().len() > 10);
    assert!(omni(folder.path(), &["explain", "e0203"]).out.contains("E0203"));
    assert!(omni(folder.path(), &["explain"]).out.lines().count() > 20);
    let info: serde_json::Value = serde_json::from_str(&omni(folder.path(), &["info", "--json"]).out).unwrap();
    assert!(info.is_object());
    assert!(omni(folder.path(), &["completions", "bash"]).out.contains("complete"));
}
