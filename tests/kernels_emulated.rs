//! The GPU kernels run on the CPU, in the emulator of `tests/emulator`: random cases under random orders of threads and of
//! asynchronous copies and products, compared with a reference. Needs a C++ compiler and no GPU; skipped, and saying so, where there
//! is none; `OMNI_REQUIRE_EMULATOR=1` makes that a failure.

mod emulated;

use std::path::PathBuf;
use std::process::Command;

use emulated::{compile, compiler, device_objects, folder, succeed};

/// First seed of every variant's cases.
const SEED: &str = "1";

/// Sources that depend on the variant, besides that of the kernel.
const VARIANT: &[&str] = &["plan", "case", "check", "main"];

const HOPPER: &str = "attention_sm90";
const AMPERE: &str = "attention_sm80";

/// A variant of the kernels, by the macros that choose it.
struct Variant {
    head_dim: u32,
    is_bf16: bool,
    kv_block: u32,
    has_masks: bool,
    /// Tiles of a row that is long, see work.cuh.
    long: u32,
}

impl Variant {
    fn macros(&self) -> Vec<String> {
        vec![
            format!("-DOMNI_HEAD_DIM={}", self.head_dim),
            format!("-DOMNI_BF16={}", u32::from(self.is_bf16)),
            format!("-DOMNI_KV_BLOCK={}", self.kv_block),
            format!("-DOMNI_MASKS={}", u32::from(self.has_masks)),
            format!("-DOMNI_LONG={}", self.long),
        ]
    }

    fn folder(&self) -> PathBuf {
        let Variant { head_dim, is_bf16, kv_block, has_masks, long: _ } = self;
        let folder = folder().join(format!("{head_dim}_{}_{kv_block}_{}", u32::from(*is_bf16), u32::from(*has_masks)));
        std::fs::create_dir_all(&folder).expect("the folder of temporary files can be written");
        folder
    }
}

/// Compiles what the kernels of a variant share.
fn variant_objects(compiler: &str, variant: &Variant) -> Vec<PathBuf> {
    VARIANT.iter().map(|source| compile(compiler, source, &variant.macros(), &variant.folder())).collect()
}

/// Runs random cases on one kernel.
fn run(compiler: &str, variant: &Variant, objects: &[PathBuf], kernel: &str, cases: u32) {
    let mut macros = variant.macros();
    macros.extend(match kernel {
        HOPPER => vec!["-D__CUDA_ARCH__=900".to_owned(), "-D__CUDA_ARCH_FEAT_SM90_ALL".to_owned()],
        _ => vec!["-D__CUDA_ARCH__=800".to_owned()],
    });
    let object = compile(compiler, kernel, &macros, &variant.folder());
    let program = object.with_extension("");
    succeed(Command::new(compiler).args(device_objects(compiler)).args(objects).arg(object).arg("-o").arg(&program));
    println!("{kernel}: {}", succeed(Command::new(program).args([SEED, &cases.to_string()])));
}

/// Runs a number of cases on each kernel.
fn check(variant: &Variant, kernels: &[(&str, u32)]) {
    let Some(compiler) = compiler() else { return };
    let objects = variant_objects(compiler, variant);
    for (kernel, cases) in kernels {
        run(compiler, variant, &objects, kernel, *cases);
    }
}

#[test]
fn regular_blocks_of_128_keys_in_bf16() {
    let variant = Variant { head_dim: 128, is_bf16: true, kv_block: 128, has_masks: false, long: 512 };
    check(&variant, &[(HOPPER, 24), (AMPERE, 5)]);
}

#[test]
fn any_blocks_of_64_keys_in_fp16() {
    let variant = Variant { head_dim: 64, is_bf16: false, kv_block: 64, has_masks: true, long: 1 };
    check(&variant, &[(HOPPER, 14), (AMPERE, 3)]);
}

#[test]
fn any_blocks_of_64_keys_in_bf16() {
    let variant = Variant { head_dim: 128, is_bf16: true, kv_block: 64, has_masks: true, long: 3 };
    check(&variant, &[(HOPPER, 12)]);
}
