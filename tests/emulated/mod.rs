//! Compiles the emulator of `tests/emulator`, for the tests that run kernels in it. Needs a C++ compiler on Linux.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use flashomni::env;

/// Sources that are the same for all variants.
const DEVICE: &[&str] = &["fiber", "device", "barriers", "tma", "wgmma", "mma"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where programs are left.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator")
}

/// What the user says, or the first that answers; none where the emulator's fibers do not work.
fn find_compiler() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let chosen = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    let names = chosen.map_or_else(|| ["c++", "g++", "clang++"].map(str::to_owned).to_vec(), |name| vec![name]);
    names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|it| it.status.success()))
}

/// The C++ compiler; fails where it has to be and is not.
pub fn compiler() -> Option<&'static str> {
    static COMPILER: OnceLock<Option<String>> = OnceLock::new();
    let found = COMPILER.get_or_init(find_compiler).as_deref();
    if found.is_none() {
        let is_required = std::env::var_os(env::REQUIRE_EMULATOR.name).is_some_and(|value| value == "1");
        assert!(!is_required, "there is no C++ compiler on Linux: install one, or say by CXX where it is");
        // Past the capture of passing tests.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no GPU kernel was emulated: there is no C++ compiler on Linux");
    }
    found
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a program prints, if it succeeds.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program can be started");
    let text = text(&output);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// Compiles one source.
pub fn compile(compiler: &str, source: &str, macros: &[String], folder: &Path) -> PathBuf {
    let object = folder.join(format!("{source}.o"));
    std::fs::create_dir_all(object.parent().expect("it is in a folder"))
        .expect("folders of temporary files can be made");
    let mut command = Command::new(compiler);
    command.current_dir(root().join("tests/emulator")).args(["-std=c++17", "-O1", "-w", "-c"]);
    // The kernels read arrays of bytes as wider types; an address that does not suit its type traps, as it does on a GPU.
    command.args(["-fno-strict-aliasing", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]);
    // The same sums on every machine; and fibers are jumps that glibc's checks take for mistakes.
    command.args(["-ffp-contract=off", "-U_FORTIFY_SOURCE"]);
    // The emulator's folder first: its common/ptx.cuh is the one that is found.
    command.args(["-I.", "-I../../runtime_kernels"]).args(macros).arg(format!("{source}.cpp")).arg("-o").arg(&object);
    succeed(&mut command);
    object
}

/// The objects that all variants share, compiled once.
pub fn device_objects(compiler: &str) -> &'static [PathBuf] {
    static OBJECTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    OBJECTS.get_or_init(|| DEVICE.iter().map(|source| compile(compiler, source, &[], &folder())).collect())
}
