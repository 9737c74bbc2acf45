//! `omni info`: what this build and this machine offer.

use flashomni::{cpu, env};
use serde::Serialize;

use crate::args::Info;
use crate::console::{BOLD, Console, DIM};
use crate::exit::{Exit, Failure};
use crate::table;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    plan_version: u32,
    target: String,
    cpu: Cpu,
    llvm: Llvm,
    gpu: Gpu,
    environment: Vec<Variable>,
}

#[derive(Serialize)]
struct Cpu {
    instruction_set: &'static str,
    threads: usize,
}

#[derive(Serialize)]
struct Llvm {
    linked: bool,
    version: Option<&'static str>,
}

#[derive(Serialize)]
struct Gpu {
    driver: bool,
    used: bool,
    status: String,
}

#[derive(Serialize)]
struct Variable {
    name: &'static str,
    value: Option<String>,
    values: &'static str,
    effect: &'static str,
}

pub fn info(args: &Info, console: &Console) -> Result<Exit, Failure> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        plan_version: flashomni::plan::file::VERSION,
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        cpu: Cpu { instruction_set: cpu::instruction_set(), threads: rayon::current_num_threads() },
        llvm: Llvm { linked: cfg!(feature = "llvm"), version: cfg!(feature = "llvm").then_some("22") },
        gpu: gpu(),
        environment: env::ALL.iter().map(variable).collect(),
    };
    console.print(&if args.json { table::json(&report) } else { text(&report) })?;
    Ok(Exit::Fine)
}

fn text(report: &Report) -> String {
    let llvm = match report.llvm.version {
        Some(version) => format!("{version}: selector programs run as machine code, --emit ptx works"),
        None => "not in this build: selector programs are interpreted, no --emit ptx".to_owned(),
    };
    let cpu = format!("{} kernels, {}", report.cpu.instruction_set, table::plural(report.cpu.threads, "thread"));
    let mut out = format!("{BOLD}omni {}{BOLD:#} for {}\n\n", report.version, report.target);
    for (name, value) in [
        ("plan files", format!("version {}", report.plan_version)),
        ("CPU", cpu),
        ("LLVM", llvm),
        ("GPU", report.gpu.status.clone()),
    ] {
        out += &format!("  {name:<12}{value}\n");
    }
    out += &format!("\n{BOLD}environment variables{BOLD:#}\n\n");
    for variable in &report.environment {
        let value = variable.value.as_ref().map_or_else(|| "not set".to_owned(), |value| format!("= {value}"));
        out += &format!("  {:<20}{value}\n", variable.name);
        out += &format!("  {:<20}{DIM}{}: {}{DIM:#}\n", "", variable.values, variable.effect);
    }
    out
}

fn variable(variable: &env::Variable) -> Variable {
    Variable {
        name: variable.name,
        value: std::env::var_os(variable.name).map(|value| value.to_string_lossy().into_owned()),
        values: variable.values,
        effect: variable.effect,
    }
}

/// Whether NVIDIA's driver is there. This version computes on the CPU either way.
fn gpu() -> Gpu {
    // SAFETY: it only tries to load the library. Every other call of cudarc panics where that fails.
    let driver = unsafe { cudarc::driver::sys::is_culib_present() };
    let status = if driver {
        "NVIDIA driver found; this version computes on the CPU"
    } else {
        "no NVIDIA driver (libcuda) found; none is needed"
    };
    Gpu { driver, used: false, status: status.to_owned() }
}
