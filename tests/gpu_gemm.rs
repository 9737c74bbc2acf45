//! GEMM-Q and GEMM-O on a GPU against float64 on sampled rows.
//!
//! As in `gpu_attention.rs`: random fresh inputs, poisoned outputs, skipped without a GPU unless `OMNI_REQUIRE_GPU=1`. The soak with
//! thousands of shapes: `cargo test --release --test gpu_gemm -- --ignored`.

mod gpu;

use flashomni::kernels::{Element, GemmSizes, Path, Projection, RotaryPairs};
use gpu::gemm::{Case, Set};
use gpu::on_gpu;

const HEADS: Projection = Projection::Heads { inputs: 520 };
const OUT: Projection = Projection::Out { further: 0, outputs: 520 };
const PATHS: [Path; 2] = [Path::Best, Path::Portable];
const SETS: [Set; 4] = [Set::All, Set::Live, Set::Cached, Set::Uncached];

#[test]
fn every_variant() {
    on_gpu(|gpu, random| {
        for projection in [HEADS, OUT] {
            for element in [Element::Bf16, Element::F16] {
                for head_dim in [64, 128] {
                    for (set, path) in SETS.iter().flat_map(|&set| PATHS.map(|path| (set, path))) {
                        let case = Case::new(projection);
                        let sizes = GemmSizes { head_dim, ..case.sizes.clone() };
                        Case { path, element, set, sizes, ..case }.check(gpu, random);
                    }
                }
            }
        }
    });
}

#[test]
fn every_density() {
    on_gpu(|gpu, random| {
        for projection in [HEADS, OUT] {
            for path in PATHS {
                for rows in [0.0, 0.1, 0.5, 0.9, 1.0] {
                    for blocks in [0.0, 0.1, 1.0] {
                        let case = Case { path, live: [rows, blocks], ..Case::new(projection) };
                        case.check(gpu, random);
                        Case { q_block: 64, ..case }.check(gpu, random);
                    }
                }
            }
        }
    });
}

#[test]
fn ranges_of_tokens_and_irregular_blocks() {
    on_gpu(|gpu, random| {
        for projection in [HEADS, OUT] {
            for tokens in [0..1, 0..128, 37..300, 128..517, 129..130, 500..517] {
                for (is_regular, set) in [(true, Set::Live), (false, Set::Live), (false, Set::Cached)] {
                    for path in PATHS {
                        let case = Case::new(projection);
                        let sizes = GemmSizes { tokens: tokens.clone(), ..case.sizes.clone() };
                        let case = Case { path, sizes, is_regular, set, ..case };
                        case.check(gpu, random);
                        Case { q_block: 64, ..case }.check(gpu, random);
                    }
                }
            }
        }
    });
}

#[test]
fn epilogues() {
    on_gpu(|gpu, random| {
        for rotary in [None, Some(RotaryPairs::Interleaved), Some(RotaryPairs::Halves)] {
            for (bias, norm) in [(false, false), (false, true), (true, false), (true, true)] {
                for (head_dim, path) in [64, 128].iter().flat_map(|&dim| PATHS.map(|path| (dim, path))) {
                    let case = Case::new(HEADS);
                    let sizes = GemmSizes { head_dim, ..case.sizes.clone() };
                    Case { path, sizes, rotary, bias, norm, ..case }.check(gpu, random);
                }
            }
        }
        for terms in 0..=5 {
            for further in [0, 8, 200] {
                let projection = Projection::Out { further, outputs: 776 };
                for path in PATHS {
                    Case { path, terms, bias: terms % 2 == 0, ..Case::new(projection) }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn batches_and_many_heads() {
    on_gpu(|gpu, random| {
        for projection in [HEADS, OUT] {
            for (batch, symbol_batches, heads) in [(3, 1, 5), (3, 3, 5), (1, 1, 65), (2, 2, 130)] {
                let case = Case::new(projection);
                let sizes = GemmSizes { batch, heads, head_dim: 64, ..case.sizes.clone() };
                for path in PATHS {
                    Case { path, sizes: sizes.clone(), symbol_batches, ..case.clone() }.check(gpu, random);
                }
            }
        }
    });
}

/// Enough for every multiprocessor to have whole tiles and pieces.
#[test]
fn sizes_of_models() {
    on_gpu(|gpu, random| {
        for projection in [Projection::Heads { inputs: 3_072 }, Projection::Out { further: 0, outputs: 3_072 }] {
            for (set, rows) in [(Set::All, 1.0), (Set::Live, 0.5), (Set::Live, 0.1)] {
                let case = Case::new(projection);
                let sizes = GemmSizes { heads: 24, all_tokens: 4_608, tokens: 512..4_608, ..case.sizes.clone() };
                for path in PATHS {
                    Case { path, sizes: sizes.clone(), set, live: [rows, 0.5], ..case.clone() }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
#[ignore = "thousands of random shapes: minutes on a GPU"]
fn soak() {
    on_gpu(|gpu, random| {
        for number in 0..2_000 {
            let case = Case::random(random);
            if number % 100 == 0 {
                println!("shape {number}: {case:?}");
            }
            case.check(gpu, random);
        }
    });
}
