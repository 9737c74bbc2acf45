//! The GPU kernels run on the CPU, in the emulator of `tests/emulator`: random cases under random orders of threads and of
//! asynchronous copies and products, compared with a reference. Needs a C++ compiler and no GPU; skipped, and saying so, where there
//! is none; `OMNI_REQUIRE_EMULATOR=1` makes that a failure.

mod emulated;

use std::path::PathBuf;
use std::process::Command;

use emulated::{compile, compiler, device_objects, folder, succeed};

/// First seed of every variant's cases.
const SEED: &str = "1";

/// A kernel, and what its program is made of besides [`DEVICE`].
struct Kernel {
    /// Of the kernel's own source, below the emulator's folder.
    source: &'static str,
    /// The others that depend on the variant.
    sources: &'static [&'static str],
    is_for_hopper: bool,
}

const ATTENTION: &[&str] = &["cases", "attention/plan", "attention/case", "attention/check", "attention/main"];
const GEMM_Q: &[&str] = &["cases", "gemm/plan", "gemm/case", "gemm/main", "gemm/gemm_q"];
const GEMM_O: &[&str] = &["cases", "gemm/plan", "gemm/case", "gemm/main", "gemm/gemm_o"];

const ATTENTION_SM90: Kernel = Kernel { source: "attention/attention_sm90", sources: ATTENTION, is_for_hopper: true };
const ATTENTION_SM80: Kernel = Kernel { source: "attention/attention_sm80", sources: ATTENTION, is_for_hopper: false };
const GEMM_Q_SM90: Kernel = Kernel { source: "gemm/gemm_q_sm90", sources: GEMM_Q, is_for_hopper: true };
const GEMM_Q_SM80: Kernel = Kernel { source: "gemm/gemm_q_sm80", sources: GEMM_Q, is_for_hopper: false };
const GEMM_O_SM80: Kernel = Kernel { source: "gemm/gemm_o_sm80", sources: GEMM_O, is_for_hopper: false };
const GEMM_O_SM90: Kernel = Kernel { source: "gemm/gemm_o_sm90", sources: GEMM_O, is_for_hopper: true };

/// A variant of the kernels: the values of the macros that choose it, and the folder of its programs.
struct Variant {
    name: &'static str,
    macros: &'static [(&'static str, u32)],
}

impl Variant {
    fn macros(&self) -> Vec<String> {
        self.macros.iter().map(|(name, value)| format!("-DOMNI_{name}={value}")).collect()
    }

    fn folder(&self) -> PathBuf {
        folder().join(self.name)
    }
}

/// Compiles the program of a kernel, but for those of its objects that there are already, and runs random cases.
fn run(compiler: &str, variant: &Variant, objects: &mut Vec<(&'static str, PathBuf)>, kernel: &Kernel, cases: u32) {
    for source in kernel.sources {
        if objects.iter().all(|(known, _)| known != source) {
            objects.push((source, compile(compiler, source, &variant.macros(), &variant.folder())));
        }
    }
    let mut macros = variant.macros();
    macros.extend(if kernel.is_for_hopper {
        vec!["-D__CUDA_ARCH__=900".to_owned(), "-D__CUDA_ARCH_FEAT_SM90_ALL".to_owned()]
    } else {
        vec!["-D__CUDA_ARCH__=800".to_owned()]
    });
    let object = compile(compiler, kernel.source, &macros, &variant.folder());
    let program = object.with_extension("");
    let own = objects.iter().filter(|(source, _)| kernel.sources.contains(source)).map(|(_, object)| object);
    succeed(Command::new(compiler).args(device_objects(compiler)).args(own).arg(object).arg("-o").arg(&program));
    println!("{}: {}", kernel.source, succeed(Command::new(program).args([SEED, &cases.to_string()])));
}

/// Runs a number of cases on each kernel.
fn check(variant: &Variant, kernels: &[(&Kernel, u32)]) {
    let Some(compiler) = compiler() else { return };
    let mut objects = Vec::new();
    for (kernel, cases) in kernels {
        run(compiler, variant, &mut objects, kernel, *cases);
    }
}

#[test]
fn attention_to_regular_blocks_of_128_keys_in_bf16() {
    let macros = &[("HEAD_DIM", 128), ("BF16", 1), ("Q_BLOCK", 128), ("KV_BLOCK", 128), ("MASKS", 0), ("LONG", 512)];
    check(&Variant { name: "128_1_128_0", macros }, &[(&ATTENTION_SM90, 24), (&ATTENTION_SM80, 5)]);
}

#[test]
fn attention_to_any_blocks_of_64_keys_in_fp16() {
    let macros = &[("HEAD_DIM", 64), ("BF16", 0), ("Q_BLOCK", 128), ("KV_BLOCK", 64), ("MASKS", 1), ("LONG", 1)];
    check(&Variant { name: "64_0_64_1", macros }, &[(&ATTENTION_SM90, 14), (&ATTENTION_SM80, 3)]);
}

#[test]
fn attention_to_any_blocks_of_64_keys_in_bf16() {
    let macros = &[("HEAD_DIM", 128), ("BF16", 1), ("Q_BLOCK", 128), ("KV_BLOCK", 64), ("MASKS", 1), ("LONG", 3)];
    check(&Variant { name: "128_1_64_1", macros }, &[(&ATTENTION_SM90, 12)]);
}

#[test]
fn attention_of_pairs_of_64_queries_in_bf16() {
    let macros = &[("HEAD_DIM", 128), ("BF16", 1), ("Q_BLOCK", 64), ("KV_BLOCK", 64), ("MASKS", 1), ("LONG", 3)];
    check(&Variant { name: "128_1_64_64_1", macros }, &[(&ATTENTION_SM90, 24)]);
}

#[test]
fn attention_of_pairs_of_64_queries_in_fp16() {
    let macros = &[("HEAD_DIM", 64), ("BF16", 0), ("Q_BLOCK", 64), ("KV_BLOCK", 128), ("MASKS", 1), ("LONG", 512)];
    check(&Variant { name: "64_0_64_128_1", macros }, &[(&ATTENTION_SM90, 24)]);
}

#[test]
fn projections_for_hopper_in_bf16() {
    let macros = &[
        ("HEAD_DIM", 128),
        ("BF16", 1),
        ("Q_BLOCK", 128),
        ("TILE_COLUMNS", 256),
        ("SHARED_BYTES", 232_448),
        ("LONG", 512),
    ];
    check(&Variant { name: "128_1_256", macros }, &[(&GEMM_Q_SM90, 60), (&GEMM_O_SM90, 60)]);
}

#[test]
fn projections_for_hopper_in_fp16() {
    let macros = &[
        ("HEAD_DIM", 64),
        ("BF16", 0),
        ("Q_BLOCK", 128),
        ("TILE_COLUMNS", 256),
        ("SHARED_BYTES", 232_448),
        ("LONG", 4),
    ];
    check(&Variant { name: "64_0_256", macros }, &[(&GEMM_Q_SM90, 60), (&GEMM_O_SM90, 60)]);
}

#[test]
fn projections_of_pairs_of_64_tokens_in_bf16() {
    let macros = &[
        ("HEAD_DIM", 128),
        ("BF16", 1),
        ("Q_BLOCK", 64),
        ("TILE_COLUMNS", 256),
        ("SHARED_BYTES", 232_448),
        ("LONG", 4),
    ];
    check(&Variant { name: "128_1_256_64", macros }, &[(&GEMM_Q_SM90, 60), (&GEMM_O_SM90, 60)]);
}

#[test]
fn portable_projections_in_bf16() {
    let macros = &[
        ("HEAD_DIM", 128),
        ("BF16", 1),
        ("Q_BLOCK", 128),
        ("TILE_COLUMNS", 128),
        ("SHARED_BYTES", 66_560),
        ("LONG", 4),
    ];
    check(&Variant { name: "128_1_128", macros }, &[(&GEMM_Q_SM80, 16), (&GEMM_O_SM80, 16)]);
}

#[test]
fn portable_projections_in_fp16() {
    let macros = &[
        ("HEAD_DIM", 64),
        ("BF16", 0),
        ("Q_BLOCK", 128),
        ("TILE_COLUMNS", 128),
        ("SHARED_BYTES", 66_560),
        ("LONG", 512),
    ];
    check(&Variant { name: "64_0_128", macros }, &[(&GEMM_Q_SM80, 16), (&GEMM_O_SM80, 16)]);
}
