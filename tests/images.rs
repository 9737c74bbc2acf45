//! `omni sample` and `omni eval` as their users call them: images, recordings, results that survive, and bad input.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use flashomni::Compiler;
use flashomni::runtime::{Selection, Tensors};
use flashomni::tensor_file::TensorFile;
use serde_json::Value;

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/minidit");

const STRATEGIES: &str = "
/// Half of the keys.
strategy half(kept = 0.5) {
    layout text ++ image(h, w)
    block 16
    schedule { update every 2 }
    keep text <-> all
    keep image -> image where top_k(dot(mean(q), mean(k)), kept)
}
strategy skipped { schedule { reuse modules while step mod 2 == 1 } }
";

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni"));
    command.args(args).args(["--weights", WEIGHTS]).current_dir(folder).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A call that must do what it was asked.
fn omni(folder: &Path, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(folder, args).output().unwrap();
    assert!(status.success(), "{args:?}: {}", text(&stderr));
    text(&stdout)
}

/// A call that cannot be done, and what is said.
fn refused(folder: &Path, args: &[&str], code: i32, wanted: &str) {
    let Output { status, stdout, stderr } = command(folder, args).output().unwrap();
    assert_eq!(status.code(), Some(code), "{args:?}: {}", text(&stderr));
    assert!(text(&stderr).contains(wanted), "{args:?}: {}", text(&stderr));
    assert!(stdout.is_empty(), "{}", text(&stdout));
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine.omni"), STRATEGIES).unwrap();
    folder
}

fn png_size(path: &Path) -> (u32, u32) {
    let reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(path).unwrap())).read_info().unwrap();
    (reader.info().width, reader.info().height)
}

#[test]
fn sample_makes_both_images_and_records_what_attention_sees() {
    let folder = folder();
    let path = folder.path();
    let size = ["--size", "16", "--steps", "4"];
    let mut args = vec!["sample", "mine.omni", "--strategy", "half", "--prompt", "china", "-o", "china.png"];
    args.extend(size);
    args.extend(["--record", "seen.safetensors", "--record-steps", "..2", "--record-layers", "1,3"]);
    let out = omni(path, &args);
    assert!(out.contains("china, seed 0: 16 x 16, 4 steps, guidance 2"), "{out}");
    assert!(
        out.lines().any(|line| line.starts_with("dense ")) && out.lines().any(|line| line.starts_with("half ")),
        "{out}"
    );
    // Two images of 16 pixels, three times enlarged, and words around them.
    let (width, height) = png_size(&path.join("china.png"));
    assert!(width > 96 && height > 48, "{width} x {height}");

    let seen = TensorFile::open(path.join("seen.safetensors")).unwrap();
    let tensors = ["cache", "k", "kv_offsets", "partial", "q", "q_offsets", "scores", "skip", "v"];
    assert_eq!(seen.names().len(), tensors.len() * 4);
    for name in tensors {
        assert!(
            ["1.step0", "1.step1", "3.step0", "3.step1"].iter().all(|at| seen.contains(&format!("{name}.layer{at}")))
        );
    }
    // The masks are those that the strategy chooses from the recorded queries and keys, by whatever way one gets there.
    let plan = Compiler::from_source("mine", STRATEGIES)
        .strategy("half")
        .model("minidit_64")
        .shape("image.h", "8")
        .shape("image.w", "8")
        .shape("steps", "4")
        .compile()
        .unwrap()
        .plan;
    let (q, k) = (seen.get("q.layer3.step0").unwrap(), seen.get("k.layer3.step0").unwrap());
    assert_eq!(q.shape(), [4, 128, 64]);
    let mut selection = Selection::new(plan).unwrap();
    let symbols = selection.in_force(0, 3, &[0, 1, 2, 3], Tensors::of(q.as_ref(), k.as_ref())).unwrap();
    assert_eq!(seen.values::<u8>("skip.layer3.step0").unwrap(), symbols.unpack().unwrap().skip);
    // Every block of queries pays all of its attention.
    let scores: Vec<f32> = seen.values("scores.layer1.step1").unwrap();
    assert!(scores.chunks_exact(8).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-4));
    // Masks that the file does not hold are not drawn.
    refused_show(
        path,
        &["show", "seen.safetensors", "--step", "3"],
        "it holds those of step 0 of layer 1, step 0 of layer 3",
    );
    let shown = Command::new(env!("CARGO_BIN_EXE_omni"));
    let shown = { shown }.args(["show", "seen.safetensors", "--layer", "3"]).current_dir(path).output().unwrap();
    assert!(text(&shown.stdout).starts_with("half(kept = 0.5), step 0, layer 3, recorded"), "{}", text(&shown.stdout));
    let run = ["run", "mine.omni", "--strategy", "half", "--model", "minidit_64", "--qkv", "seen.safetensors"];
    let sizes = ["--shape", "image.h=8", "--shape", "image.w=8"];
    let ran = Command::new(env!("CARGO_BIN_EXE_omni")).args(run).args(sizes).current_dir(path).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(text(&ran.stdout).contains("dispatch"), "{}", text(&ran.stdout));
}

fn refused_show(folder: &Path, args: &[&str], wanted: &str) {
    let called = Command::new(env!("CARGO_BIN_EXE_omni")).args(args).current_dir(folder).output().unwrap();
    assert_eq!(called.status.code(), Some(2));
    assert!(text(&called.stderr).contains(wanted), "{}", text(&called.stderr));
}

/// The runs of a folder, by strategy and prompt.
fn runs(folder: &Path) -> Vec<(String, String, f64)> {
    let results: Value = serde_json::from_slice(&fs::read(folder.join("results.json")).unwrap()).unwrap();
    let run = |run: &Value| {
        let name = |key: &str| run[key].as_str().unwrap().to_owned();
        (name("strategy"), name("prompt"), run["total_ms"].as_f64().unwrap())
    };
    results["runs"].as_array().unwrap().iter().map(run).collect()
}

const EVAL: [&str; 9] = ["eval", "mine.omni", "--size", "16", "--steps", "2", "-o", "out", "--prompts"];

#[test]
fn eval_keeps_what_it_has_and_makes_what_is_missing() {
    let folder = folder();
    let (path, out) = (folder.path(), folder.path().join("out"));
    let eval = |more: &[&str]| omni(path, &[&EVAL[..], &["china,moon"], more].concat());
    let table = eval(&[]);
    for name in ["dense", "half", "skipped"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("{name} "))), "{table}");
    }
    for file in ["report.md", "frontier.svg", "frontier.png", "sheet.png", "images/half-moon-0.png"] {
        assert!(out.join(file).exists(), "{file}");
    }
    assert!(fs::read_to_string(out.join("report.md")).unwrap().contains("- `half(kept = 0.5)`"));
    let first = runs(&out);
    assert_eq!(first.len(), 6);
    // Nothing is made again.
    assert_eq!(eval(&[]), table);
    assert_eq!(runs(&out), first);
    // What changed is made again, and nothing else.
    fs::write(path.join("mine.omni"), STRATEGIES.replace("kept = 0.5", "kept = 0.25")).unwrap();
    eval(&[]);
    let second = runs(&out);
    for run in &first {
        assert_eq!(second.contains(run), run.0 != "half", "{run:?}");
    }
    assert_eq!(second.len(), 6);
    // Numbers whose image is gone are made again too.
    fs::remove_file(out.join("images/dense-moon-0.safetensors")).unwrap();
    eval(&[]);
    let third = runs(&out);
    let is_new = |run: &&(String, String, f64)| !second.contains(run);
    assert_eq!(
        third.iter().filter(is_new).map(|run| (run.0.as_str(), run.1.as_str())).collect::<Vec<_>>(),
        [("dense", "moon")]
    );
    let second = third;
    // Images of another size do not go with these.
    let other = [&EVAL[..], &["china"], &["--guidance", "3"]].concat();
    refused(path, &other, 2, "holds images made with other settings: guidance 2, not 3");
    assert_eq!(runs(&out), second);
    // The same numbers as JSON.
    let json: Value = serde_json::from_str(&eval(&["--json", "--strategy", "half"])).unwrap();
    assert_eq!(json["runs"].as_array().unwrap().len(), 6);
    assert_eq!(json["settings"]["steps"], 2);
}

/// Waits for something, a minute at most.
fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupted_eval_goes_on() {
    let folder = folder();
    let (path, out) = (folder.path(), folder.path().join("out"));
    let args = ["eval", "mine.omni", "--size", "32", "--steps", "12", "--prompts", "coins", "-o", "out"];
    let mut child = command(path, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&mut child, || out.join("results.json").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let before = runs(&out);
    assert!(!before.is_empty() && before.len() < 3, "{before:?}");
    omni(path, &args);
    let after = runs(&out);
    assert_eq!(after.len(), 3);
    assert_eq!(after[..before.len()], before);
}

#[test]
fn bad_input_is_one_clear_error() {
    let folder = folder();
    let path = folder.path();
    let sample = |more: &[&'static str]| [&["sample", "mine.omni", "-o", "x.png"], more].concat();
    refused(path, &sample(&["--prompt", "chine"]), 2, "no prompt `chine`; did you mean `china`?");
    refused(path, &sample(&["--prompt", "china", "--size", "63"]), 2, "sizes are multiples of 2, up to 512");
    refused(path, &sample(&["--prompt", "china", "--strategy", "none"]), 1, "none");
    refused(path, &sample(&["--prompt", "china", "--steps", "0"]), 2, "1..=1000");
    refused(path, &sample(&["--prompt", "china", "--guidance", "inf"]), 2, "a finite number");
    let far = ["--prompt", "moon", "--guidance", "3.4e38", "--size", "16", "--steps", "3"];
    refused(path, &sample(&far), 2, "the image under `dense` is not finite");
    refused(path, &["sample", "--prompt", "china", "-o", "x.jpg"], 2, "does not end in .png");
    refused(path, &["sample", "--prompt", "china", "-o", "x.png", "--strategy", "half"], 2, "<FILE>");
    refused(
        path,
        &["sample", "--prompt", "china", "-o", "nowhere/x.png", "--size", "4", "--steps", "1"],
        2,
        "nowhere/x.png",
    );
    let record = ["--prompt", "china", "--record", "r.safetensors", "--record-layers", "7"];
    refused(path, &sample(&record), 2, "there is no layer 7: there are layers 0..7");
    fs::write(path.join("video.omni"), "strategy v { layout text ++ video(t, h, w) keep all -> video }").unwrap();
    refused(path, &["sample", "video.omni", "--prompt", "china", "-o", "x.png"], 1, "has no segment `video`");
    fs::write(path.join("empty.omni"), "model m { layers 1 heads 1 head_dim 16 steps 1 tokens image(h = 4, w = 4) }")
        .unwrap();
    refused(path, &["eval", "empty.omni", "-o", "out"], 2, "no strategies to evaluate");
    refused(path, &["eval", "mine.omni", "mine.omni", "-o", "out"], 2, "there are two strategies `half`");
    refused(
        path,
        &["eval", "mine.omni", "--strategy", "halve", "-o", "out"],
        2,
        "none of the files has a strategy `halve`",
    );
    refused(path, &["eval", "mine.omni", "-o", "mine.omni"], 2, "mine.omni");
    fs::create_dir(path.join("old")).unwrap();
    fs::write(path.join("old/results.json"), "{}").unwrap();
    refused(path, &["eval", "mine.omni", "-o", "old"], 2, "is no result of this version");
    let output = Command::new(env!("CARGO_BIN_EXE_omni"))
        .args(["sample", "--prompt", "china", "-o", "x.png", "--weights", "elsewhere"])
        .current_dir(path)
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("--weights names another folder"), "{}", text(&output.stderr));
    assert!(!path.join("x.png").exists() && !path.join("out").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = folder();
    std::os::unix::fs::symlink("/dev/full", folder.path().join("x.png")).unwrap();
    let args = ["sample", "--prompt", "china", "-o", "x.png", "--size", "4", "--steps", "1"];
    refused(folder.path(), &args, 2, "no space left");
}
