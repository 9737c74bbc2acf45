//! The environment variables that change what flashomni does, in one list.
//!
//! A variable that is not in it changes nothing. `omni info` prints the list with the values that are set.

use std::path::PathBuf;

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Values that mean something.
    pub values: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// Runs selector programs by the reference interpreter.
pub const INTERPRET: Variable = Variable {
    name: "OMNI_INTERPRET",
    values: "1",
    effect: "run selector programs by the reference interpreter: slow, the same bits",
};

/// Number of threads; read by rayon.
pub const THREADS: Variable =
    Variable { name: "RAYON_NUM_THREADS", values: "a number", effect: "threads to use, unless --threads says so" };

/// Turns colours off; read by the command.
pub const NO_COLOR: Variable = Variable { name: "NO_COLOR", values: "anything", effect: "no colours" };

/// Where compiled GPU kernels are kept.
pub const CACHE_DIR: Variable = Variable {
    name: "OMNI_CACHE_DIR",
    values: "a folder",
    effect: "keep compiled GPU kernels there, in place of flashomni in the user's cache folder",
};

/// The library of CUDA's run-time compiler.
pub const NVRTC: Variable = Variable {
    name: "OMNI_NVRTC",
    values: "a file or folder",
    effect: "take CUDA's run-time compiler (libnvrtc) from there, where the system does not find it by itself",
};

/// The library of a profiler that shows named ranges; profilers set it.
pub const NVTX: Variable = Variable {
    name: "NVTX_INJECTION64_PATH",
    values: "a file",
    effect: "tell that library of a profiler what runs on a GPU; set by Nsight Systems",
};

/// Where the sources of GPU kernels are read.
pub const KERNEL_DIR: Variable = Variable {
    name: "OMNI_KERNEL_DIR",
    values: "a folder",
    effect: "read the sources of GPU kernels there, a copy of runtime_kernels/, in place of those in the binary",
};

/// Turns tests that need a GPU and find none into failures; read by the tests.
pub const REQUIRE_GPU: Variable =
    Variable { name: "OMNI_REQUIRE_GPU", values: "1", effect: "tests of the GPU fail where there is none" };

/// Turns tests that need NVRTC and find none into failures; read by the tests.
pub const REQUIRE_NVRTC: Variable =
    Variable { name: "OMNI_REQUIRE_NVRTC", values: "1", effect: "tests that compile GPU kernels fail without NVRTC" };

/// Turns tests that need a C++ compiler and find none into failures; read by the tests.
pub const REQUIRE_EMULATOR: Variable = Variable {
    name: "OMNI_REQUIRE_EMULATOR",
    values: "1",
    effect: "tests that emulate GPU kernels fail without a C++ compiler",
};

/// Repeats random inputs; read by the tests.
pub const SEED: Variable = Variable {
    name: "OMNI_SEED",
    values: "a number",
    effect: "the seed of tests with random inputs, as they print it",
};

/// Every variable.
pub const ALL: &[Variable] = &[
    INTERPRET,
    THREADS,
    NO_COLOR,
    CACHE_DIR,
    NVRTC,
    NVTX,
    KERNEL_DIR,
    REQUIRE_GPU,
    REQUIRE_NVRTC,
    REQUIRE_EMULATOR,
    SEED,
];

/// Whether [`INTERPRET`] is set to 1.
#[must_use]
pub fn interpret() -> bool {
    std::env::var_os(INTERPRET.name).is_some_and(|value| value == "1")
}

/// The folder of [`CACHE_DIR`].
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    path(CACHE_DIR)
}

/// The file or folder of [`NVRTC`].
#[must_use]
pub fn nvrtc() -> Option<PathBuf> {
    path(NVRTC)
}

/// The file of [`NVTX`].
#[must_use]
pub fn nvtx() -> Option<PathBuf> {
    path(NVTX)
}

/// The folder of [`KERNEL_DIR`].
#[must_use]
pub fn kernel_dir() -> Option<PathBuf> {
    path(KERNEL_DIR)
}

fn path(variable: Variable) -> Option<PathBuf> {
    std::env::var_os(variable.name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
