//! Every variant of every GPU kernel compiles for the architectures it may meet, without spills and without ptxas's remarks on
//! serialised tensor-core instructions. Needs NVRTC and no GPU; skipped, and saying so, where there is none.

use std::io::Write;

use flashomni::cuda::device::Version;
use flashomni::cuda::nvrtc::Nvrtc;
use flashomni::env;
use flashomni::kernels::choose::variants;
use flashomni::kernels::selector::recipe::FILES;
use flashomni::kernels::{Element, Kernel, Variant, compile_log, compile_selector_log};

/// Whether NVRTC is there; fails where it has to be.
fn has_nvrtc() -> bool {
    match Nvrtc::load() {
        Ok(nvrtc) => {
            println!("NVRTC {}", nvrtc.version());
            true
        }
        Err(error) => {
            let is_required = std::env::var_os(env::REQUIRE_NVRTC.name).is_some_and(|value| value == "1");
            assert!(!is_required, "{error}");
            // Past the capture of passing tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no GPU kernel was compiled: {error}");
            false
        }
    }
}

/// What is wrong with the code that a variant becomes.
fn findings(variant: &Variant) -> Vec<String> {
    let log = match compile_log(variant) {
        Ok(log) => log,
        Err(error) => return vec![error.to_string()],
    };
    remarks(variant, &log).collect()
}

/// What ptxas says of spills, serialised instructions and the like.
fn remarks<'a>(what: &'a impl std::fmt::Display, log: &'a str) -> impl Iterator<Item = String> + 'a {
    assert!(log.contains("bytes spill stores"), "ptxas says nothing of spills:\n{log}");
    let is_wrong = |line: &&str| {
        let spills = line.contains("spill") && !line.contains(" 0 bytes spill stores, 0 bytes spill loads");
        // C7500 to C7599: wgmma is serialised, setmaxnreg is ignored and the like.
        spills || line.contains("C75") || line.contains("warning")
    };
    log.lines().filter(is_wrong).map(move |line| format!("{what}: {}", line.trim()))
}

fn check(kernel: Kernel, [major, minor]: [u32; 2]) {
    check_those(kernel, [major, minor], |_| true);
}

fn check_those(kernel: Kernel, [major, minor]: [u32; 2], are_checked: impl Fn(&Variant) -> bool) {
    if !has_nvrtc() {
        return;
    }
    let all: Vec<Variant> = variants(kernel, Version { major, minor }).filter(are_checked).collect();
    assert!(!all.is_empty());
    let wrong: Vec<String> = all.iter().flat_map(findings).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn attention_for_hopper() {
    check(Kernel::AttentionSm90, [9, 0]);
}

#[test]
fn attention_for_ampere() {
    check(Kernel::AttentionSm80, [8, 0]);
}

#[test]
fn attention_for_ada() {
    check(Kernel::AttentionSm80, [8, 9]);
}

#[test]
fn attention_for_blackwell() {
    check(Kernel::AttentionSm80, [10, 0]);
}

#[test]
fn attention_for_blackwell_without_a_data_centre() {
    check(Kernel::AttentionSm80, [12, 0]);
}

/// Hopper runs it only where it is asked for: one type of numbers will do.
#[test]
fn portable_attention_for_hopper() {
    check_those(Kernel::AttentionSm80, [9, 0], |variant| variant.element == Element::Bf16);
}

#[test]
fn projections_for_hopper() {
    check(Kernel::GemmQSm90, [9, 0]);
    check(Kernel::GemmOSm90, [9, 0]);
    check(Kernel::GemmPlanSm90, [9, 0]);
}

#[test]
fn portable_projections() {
    for compute in [[8, 0], [8, 9], [9, 0], [10, 0], [12, 0]] {
        check(Kernel::GemmQSm80, compute);
        check(Kernel::GemmOSm80, compute);
        check(Kernel::GemmPlanSm80, compute);
    }
}

#[test]
fn work_lists_and_the_naive_kernel() {
    for compute in [[8, 0], [8, 9], [9, 0], [10, 0], [12, 0]] {
        check(Kernel::Plan, compute);
        check_those(Kernel::Naive, compute, |variant| variant.kv_block == 64 && variant.masks);
    }
}

#[test]
fn features() {
    for compute in [[8, 0], [8, 9], [9, 0], [10, 0], [12, 0]] {
        check(Kernel::FeaturesUpdate, compute);
        check(Kernel::FeaturesSum, compute);
    }
}

#[test]
fn selectors() {
    if !has_nvrtc() {
        return;
    }
    let mut wrong = Vec::new();
    for [major, minor] in [[8, 0], [8, 9], [9, 0], [10, 0], [12, 0]] {
        for file in FILES {
            match compile_selector_log(file, Version { major, minor }) {
                Ok(log) => wrong.extend(remarks(&format!("{file} for {major}.{minor}"), &log)),
                Err(error) => wrong.push(error.to_string()),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
