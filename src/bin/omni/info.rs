//! `omni info`: what this build and this machine offer.

use std::path::{Path, PathBuf};

use flashomni::cuda::Device;
use flashomni::cuda::cache::Cache;
use flashomni::cuda::nvrtc::Nvrtc;
use flashomni::kernels::choose;
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
    /// Whether attention can run on one of them.
    usable: bool,
    /// That, or what is missing.
    status: String,
    /// Newest CUDA that the driver knows.
    driver: Option<String>,
    /// Version of the run-time compiler.
    nvrtc: Option<String>,
    /// Where compiled kernels are kept.
    cache: Option<PathBuf>,
    devices: Vec<OneGpu>,
}

#[derive(Serialize)]
struct OneGpu {
    device: String,
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    memory_bytes: usize,
    /// The source of the attention that it runs, and why it is this one; or why it runs none.
    kernel: Option<&'static str>,
    why: String,
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
    let mut lines = vec![("plan files", format!("version {}", report.plan_version)), ("CPU", cpu), ("LLVM", llvm)];
    lines.extend(gpu_lines(&report.gpu));
    for (name, value) in lines {
        out += &format!("  {name:<12}{value}\n");
    }
    out += &format!("\n{BOLD}environment variables{BOLD:#}\n\n");
    let width = report.environment.iter().map(|variable| variable.name.len()).max().unwrap_or(0) + 2;
    for variable in &report.environment {
        let value = variable.value.as_ref().map_or_else(|| "not set".to_owned(), |value| format!("= {value}"));
        out += &format!("  {:<width$}{value}\n", variable.name);
        out += &format!("  {:<width$}{DIM}{}: {}{DIM:#}\n", "", variable.values, variable.effect);
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

/// The GPUs, and what running on them needs.
fn gpu() -> Gpu {
    let devices = Device::count().and_then(|count| (0..count).map(one_gpu).collect::<flashomni::Result<Vec<_>>>());
    let driver = Device::describe(0).ok().map(|properties| properties.driver.to_string());
    let nvrtc = Nvrtc::load();
    let status = match (&devices, &nvrtc) {
        (Err(error), _) => Err(error.to_string()),
        (Ok(devices), _) if devices.iter().all(|one| one.kernel.is_none()) => {
            Err(devices.first().map_or_else(String::new, |one| one.why.clone()))
        }
        (_, Err(error)) => Err(error.to_string()),
        (Ok(_), Ok(_)) => Ok("attention runs on it: omni run FILE --device cuda".to_owned()),
    };
    Gpu {
        usable: status.is_ok(),
        status: status.unwrap_or_else(|missing| missing),
        driver,
        nvrtc: nvrtc.ok().map(|nvrtc| nvrtc.version().to_string()),
        cache: Cache::of_user().folder().map(Path::to_path_buf),
        devices: devices.unwrap_or_default(),
    }
}

fn one_gpu(ordinal: usize) -> flashomni::Result<OneGpu> {
    let properties = Device::describe(ordinal)?;
    let chosen = choose::attention_of(&properties, choose::Path::Best);
    let (kernel, why) = match chosen {
        Ok((kernel, why)) => (Some(kernel.file()), why.to_owned()),
        Err(error) => (None, error.to_string()),
    };
    Ok(OneGpu {
        device: format!("cuda:{ordinal}"),
        name: properties.name,
        compute_capability: properties.compute.to_string(),
        multiprocessors: properties.multiprocessors,
        memory_bytes: properties.memory_bytes,
        kernel,
        why,
    })
}

/// Lines about the GPUs: name and value.
fn gpu_lines(gpu: &Gpu) -> Vec<(&str, String)> {
    let mut lines = vec![("GPU", gpu.status.clone())];
    for one in &gpu.devices {
        let gib = one.memory_bytes as f64 / f64::from(1 << 30);
        lines.push((&one.device, format!("{}, {gib:.0} GiB, compute capability {}", one.name, one.compute_capability)));
        if let Some(kernel) = one.kernel {
            lines.push(("", format!("{kernel}: {}", one.why)));
        }
    }
    let found = |version: &Option<String>| version.clone().unwrap_or_else(|| "not found".to_owned());
    lines.push(("driver", gpu.driver.as_ref().map_or_else(|| "not found".to_owned(), |it| format!("for CUDA {it}"))));
    lines.push(("NVRTC", found(&gpu.nvrtc)));
    if let Some(folder) = &gpu.cache {
        lines.push(("cache", folder.display().to_string()));
    }
    lines
}
