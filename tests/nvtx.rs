//! Ranges as a profiler gets them: one of our own, which a process of its own loads as it would load Nsight Systems'.
//!
//! Needs a C++ compiler, as the emulator does; skipped, and saying so, where there is none.

mod emulated;

use std::path::Path;
use std::process::Command;

use emulated::{compiler, folder, succeed};
use flashomni::cuda::Range;
use flashomni::env;

/// What the process with the profiler does; nothing is to be seen of it elsewhere.
#[test]
fn ranges_within_each_other() {
    let _step = Range::new(format_args!("layer {} step {}", 3, 12));
    drop(Range::new("queries"));
    let _attention = Range::new("attention");
}

#[test]
fn a_profiler_sees_ranges() {
    let Some(compiler) = compiler() else { return };
    let tool = folder().with_file_name("nvtx_tool.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvtx/tool.cpp");
    succeed(Command::new(compiler).args(["-std=c++17", "-shared", "-fPIC", "-o"]).arg(&tool).arg(source));
    let run = |library: &Path| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ranges_within_each_other", "--nocapture"]).env(env::NVTX.name, library);
        let said = command.output().unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stderr).unwrap()
    };
    assert_eq!(run(&tool), "begin layer 3 step 12\nbegin queries\nend\nbegin attention\nend\nend\n");
    for other in ["no such library", "Cargo.toml", "libc.so.6"] {
        assert_eq!(run(Path::new(other)), "", "{other} is no profiler");
    }
}
