//! Where attention runs, and where whole blocks keep what they need at later steps: the options `--device` and `--caches`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use flashomni::cpu;
use flashomni::ir::Model;
use flashomni::runtime::{Backend, DeviceOptions, Memory};
use flashomni::tensor::{Tensor, TensorRef};

use crate::args::Room;
use crate::console::Console;
use crate::exit::Failure;
use crate::table;

/// Most floating-point operations of dense attention that are done on the CPU to compare a GPU with: a few seconds.
const COMPARED: f64 = 2e11;

/// Where lies what whole blocks keep from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Caches {
    /// In the GPU's memory
    Gpu,
    /// In the host's: a step copies what it takes to the GPU, beside what it computes
    Host,
}

/// The CPU, or a GPU by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        number.map(Device::Cuda).ok_or_else(|| format!("there is no device `{text}`: cpu, cuda and cuda:N are"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// Opens it.
    pub fn open(self, console: &Console) -> Result<Backend, Failure> {
        let Device::Cuda(ordinal) = self else { return Ok(Backend::Cpu) };
        let missing =
            |error| Failure::from(error).help("`omni info` shows what is there; without --device it runs on the CPU");
        let backend = Backend::cuda(ordinal).map_err(missing)?;
        if let Backend::Cuda(kernels) = &backend {
            console.detail(format_args!("attention runs on {}", kernels.device()));
        }
        Ok(backend)
    }

    /// The options of whole blocks on a GPU.
    pub fn options(self, room: Room) -> Result<DeviceOptions, Failure> {
        if self == Device::Cpu && room.caches.is_some() {
            let message = "--caches is about whole blocks on a GPU, and these run on the CPU";
            return Err(Failure::new(message).help("add --device cuda, or leave --caches out"));
        }
        let caches = match room.caches {
            None | Some(Caches::Gpu) => Memory::Gpu,
            Some(Caches::Host) => Memory::Host,
        };
        let memory_limit = room.memory.map(|gigabytes| (gigabytes * 1e9) as u64);
        Ok(DeviceOptions { memory_limit, caches, ..DeviceOptions::default() })
    }

    /// What computes, in words.
    pub fn heading(self, backend: &Backend) -> String {
        match backend {
            Backend::Cpu => {
                format!("{}, {}", table::plural(rayon::current_num_threads(), "thread"), cpu::instruction_set())
            }
            Backend::Cuda(kernels) => format!("{} ({self})", kernels.device().properties().name),
        }
    }

    /// The device whose dense attention outputs are compared with: the CPU's, in single precision, where that takes no more than
    /// seconds, else the device's own.
    pub fn reference(self, model: &Model) -> Self {
        let tokens = f64::from(model.tokens());
        let operations = 4.0 * f64::from(model.heads) * tokens * tokens * f64::from(model.head_dim);
        if operations <= COMPARED { Device::Cpu } else { self }
    }
}

/// Dense attention on the CPU.
pub fn on_cpu([q, k, v]: [TensorRef<'_>; 3]) -> Result<Tensor, Failure> {
    let mut out = Tensor::zeros(q.shape(), q.dtype());
    cpu::dense_attention(q, k, v, out.as_mut())?;
    Ok(out)
}

/// The time that counts: the kernel's where a GPU computes, as a host that lives there copies nothing.
pub fn counted(kernel: Option<Duration>, whole: Duration) -> Duration {
    kernel.unwrap_or(whole)
}
