//! Rules of the source tree that no compiler checks: arrows between modules, who may use LLVM and CUDA, headers, sizes.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The module of a file of the library; `None` for `lib.rs` and the command.
fn module(path: &Path) -> Option<String> {
    let below = path.strip_prefix(root().join("src")).ok()?;
    let first = below.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    (first != "lib" && first != "bin").then_some(first)
}

/// The text without its unit tests, which may use anything.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// What each module may use. An arrow that is not here is one that points upwards.
const ARROWS: &[(&str, &[&str])] = &[
    ("source", &[]),
    ("env", &[]),
    ("tensor", &["error"]),
    ("error", &["diagnostics"]),
    ("diagnostics", &["source"]),
    ("syntax", &["source", "diagnostics"]),
    ("ir", &["source", "tensor", "plan"]),
    ("symbols", &["error"]),
    ("plan", &["error", "files", "ir", "source", "symbols", "tensor"]),
    ("check", &["source", "diagnostics", "syntax", "ir", "tensor"]),
    ("geometry", &["ir", "plan", "symbols"]),
    ("passes", &["source", "diagnostics", "ir", "plan", "symbols", "geometry"]),
    ("files", &["error"]),
    ("tensor_file", &["diagnostics", "error", "files", "tensor"]),
    ("reference", &["error", "ir", "plan", "symbols"]),
    ("codegen", &["error", "ir", "plan", "reference", "symbols"]),
    ("selector", &["codegen", "env", "error", "ir", "plan", "reference", "symbols"]),
    ("cpu", &["error", "symbols", "tensor"]),
    ("cuda", &["env", "error", "files"]),
    ("kernels", &["codegen", "cpu", "cuda", "env", "error", "ir", "plan", "reference", "symbols"]),
    (
        "runtime",
        &["codegen", "cpu", "cuda", "error", "geometry", "ir", "kernels", "plan", "selector", "symbols", "tensor"],
    ),
    ("minidit", &["check", "compile", "cpu", "diagnostics", "error", "ir", "plan", "reference", "runtime", "tensor"]),
    ("compile", &["check", "diagnostics", "error", "ir", "passes", "plan", "source", "syntax"]),
];

#[test]
fn arrows_point_one_way() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let Some(module) = module(&path) else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == module) else {
            wrong.push(format!("{}: module `{module}` is not in the list", name(&path)));
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        let code = without_tests(&text);
        let code: String =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for part in code.split("crate::").skip(1) {
            let used: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_module = ARROWS.iter().any(|(known, _)| *known == used);
            if is_module && used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: `{module}` must not use `{used}`", name(&path)));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn llvm_cuda_and_files_have_their_places() {
    let rules: &[(&str, &[&str])] = &[
        ("inkwell::", &["src/codegen/"]),
        ("cudarc::", &["src/cuda/"]),
        ("libloading::", &["src/cuda/nvrtc.rs", "src/cuda/nvtx.rs"]),
        (
            "std::fs::",
            &[
                "src/files.rs",
                "src/tensor_file.rs",
                "src/compile.rs",
                "src/plan/file.rs",
                "src/minidit/weights.rs",
                "src/cuda/cache.rs",
                "src/cuda/host.rs",
                "src/kernels/source.rs",
                "src/bin/",
            ],
        ),
        ("pest::", &["src/syntax/parse/"]),
        ("annotate_snippets::", &["src/diagnostics/render.rs"]),
    ];
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let text = fs::read_to_string(&path).unwrap();
        let code = without_tests(&text);
        for (word, places) in rules {
            let here = name(&path);
            if code.contains(word) && !here.ends_with("tests.rs") && !places.iter().any(|place| here.starts_with(place))
            {
                wrong.push(format!("{here}: `{word}` belongs into {}", places.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Files that are longer than 700 lines, and why they are one room.
const LONG: &[(&str, &str)] = &[
    ("src/ir/mod.rs", "the specification of every operation, read from top to bottom"),
    ("src/ir/typing.rs", "one rule for each operation"),
    ("src/compile.rs", "the front door: files, imports, choice of the model"),
];

#[test]
fn files_say_what_they_are_for_and_stay_readable() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        for path in rust_files(folder) {
            let text = fs::read_to_string(&path).unwrap();
            if !text.starts_with("//! ") {
                wrong.push(format!("{}: does not say what it is for", name(&path)));
            }
            let lines = text.lines().count();
            let excused = LONG.iter().any(|(known, _)| *known == name(&path));
            if folder == "src" && lines > 700 && !excused {
                wrong.push(format!("{}: {lines} lines", name(&path)));
            }
            for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"] {
                if folder != "tests" && text.contains(word) {
                    wrong.push(format!("{}: {word}", name(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
