//! Attention on a GPU against float64 on sampled rows, and sessions on it against those on the CPU.
//!
//! Inputs are random and fresh in each run; the seed is printed, and `OMNI_SEED` repeats it. Outputs hold NaN before a launch, so that
//! what was not written shows. Skipped, and saying so, where there is no GPU; `OMNI_REQUIRE_GPU=1` makes that a failure. The soak
//! with thousands of shapes: `cargo test --release --test gpu_attention -- --ignored`.

mod gpu;

use std::sync::Arc;

use flashomni::cuda::Graph;
use flashomni::kernels::{Element, Path};
use flashomni::runtime::{Backend, Session};
use flashomni::tensor::{Dtype, Tensor};
use gpu::attention::{Case, Layout, Mask};
use gpu::numbers::relative;
use gpu::on_gpu;

const PATHS: [Path; 3] = [Path::Naive, Path::Best, Path::Portable];
const ELEMENTS: [Element; 2] = [Element::Bf16, Element::F16];
/// Tokens of a q-block and of a kv-block.
const BLOCKS: [[usize; 2]; 4] = [[128, 128], [128, 64], [64, 64], [64, 128]];

/// Some heads, more tokens than one tile, both odd.
fn odd() -> Case {
    Case { heads: 4, kv_heads: 2, q_tokens: 517, kv_tokens: 1_093, ..Case::default() }
}

#[test]
fn dense_in_every_variant() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for element in ELEMENTS {
                for head_dim in [64, 128] {
                    for [q_block, kv_block] in BLOCKS {
                        Case { path, element, head_dim, q_block, kv_block, lse: true, ..odd() }.check(gpu, random);
                    }
                }
            }
        }
    });
}

#[test]
fn every_density() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for density in [0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0] {
                for [q_block, kv_block] in BLOCKS {
                    let mask = Mask::Random(density);
                    Case { path, q_block, kv_block, mask, live_rows: 0.7, lse: true, ..odd() }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn few_live_blocks_in_a_row() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for blocks in [0, 1, 2, 3, 4, 5, 9] {
                for ([q_block, kv_block], head_dim) in BLOCKS.into_iter().zip([64, 128, 128, 64]) {
                    let mask = Mask::Count(blocks);
                    Case { path, q_block, kv_block, head_dim, mask, lse: true, ..odd() }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn masks_of_many_forms() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for mask in [Mask::Band(3), Mask::Skewed, Mask::Full] {
                for [q_block, kv_block] in BLOCKS {
                    let case = Case { path, q_block, kv_block, mask, live_rows: 0.5, lse: true, ..odd() };
                    case.check(gpu, random);
                    Case { q_tokens: 2_311, kv_tokens: 2_311, ..case }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn lengths_from_one_token_on() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for (q_tokens, kv_tokens) in [(1, 1), (1, 700), (700, 1), (127, 129), (128, 128), (129, 127), (64, 65)] {
                for [q_block, kv_block] in BLOCKS {
                    Case { path, q_block, kv_block, q_tokens, kv_tokens, lse: true, ..odd() }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn batches_and_strides() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for layout in [Layout::HeadsFirst, Layout::TokensFirst] {
                for symbol_batches in [1, 2] {
                    let mask = Mask::Random(0.4);
                    let case = Case { path, layout, symbol_batches, mask, batch: 2, live_rows: 0.6, ..odd() };
                    Case { lse: true, scale: Some(0.31), ..case }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn irregular_blocks_and_token_masks() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for [q_block, kv_block] in BLOCKS {
                for token_masks in [0.0, 0.5] {
                    for is_regular in [true, false] {
                        let mask = Mask::Random(0.5);
                        let case =
                            Case { path, q_block, kv_block, mask, token_masks, is_regular, live_rows: 0.8, ..odd() };
                        Case { lse: true, ..case }.check(gpu, random);
                        Case { head_dim: 64, element: Element::F16, ..case }.check(gpu, random);
                    }
                }
            }
        }
    });
}

#[test]
fn cached_rows_are_forecast() {
    on_gpu(|gpu, random| {
        for path in PATHS {
            for forecast in 1..=5 {
                let mask = Mask::Random(0.3);
                let case = Case { path, forecast, mask, live_rows: 0.4, lse: true, ..odd() };
                case.check(gpu, random);
                Case { q_block: 64, kv_block: 64, ..case }.check(gpu, random);
                Case { layout: Layout::TokensFirst, batch: 2, head_dim: 64, ..case }.check(gpu, random);
                Case { is_regular: false, token_masks: 0.3, ..case }.check(gpu, random);
            }
        }
    });
}

#[test]
fn long_sequences() {
    on_gpu(|gpu, random| {
        for mask in [Mask::Full, Mask::Random(0.25), Mask::Band(5), Mask::Skewed] {
            let paths = [
                (Path::Best, [128, 128]),
                (Path::Best, [128, 64]),
                (Path::Best, [64, 64]),
                (Path::Portable, [128, 128]),
            ];
            for (path, [q_block, kv_block]) in paths {
                let case = Case { path, q_block, kv_block, mask, heads: 3, kv_heads: 3, ..Case::default() };
                Case { q_tokens: 9_001, kv_tokens: 9_001, live_rows: 0.8, lse: true, ..case }.check(gpu, random);
            }
        }
    });
}

/// Keys and values of one head are more than the cache holds: thread blocks take their pieces in another order.
#[test]
fn rows_of_many_tiles() {
    on_gpu(|gpu, random| {
        for (mask, head_dim) in [(Mask::Full, 128), (Mask::Random(0.97), 64)] {
            let case = Case { mask, head_dim, heads: 1, kv_heads: 1, lse: true, ..Case::default() };
            Case { q_tokens: 19_300, kv_tokens: 70_001, live_rows: 0.95, ..case }.check(gpu, random);
        }
    });
}

#[test]
fn a_graph_repeats_a_launch() {
    on_gpu(|gpu, random| {
        for path in [Path::Best, Path::Portable] {
            let case = Case { path, mask: Mask::Random(0.5), live_rows: 0.5, ..odd() };
            let prepared = case.prepare(gpu, random);
            let wanted = prepared.launch(gpu);
            prepared.poison(gpu);
            // SAFETY: what is launched lives until the end of the block.
            let mut graph = unsafe {
                Graph::capture(&gpu.stream, || {
                    prepared.call.plan(&gpu.stream)?;
                    prepared.call.run(&gpu.stream)
                })
            }
            .unwrap();
            for _ in 0..3 {
                prepared.poison(gpu);
                graph.launch(&gpu.stream).unwrap();
                gpu.stream.synchronize().unwrap();
                assert_eq!(prepared.output(gpu), wanted, "{case:?}");
            }
        }
    });
}

const MODEL: &str =
    "model small { layers 1 heads 4 head_dim 40 steps 8 dtype f16 tokens text(37) ++ image(h = 16, w = 18) }\n";

/// Strategies that ask for all that a session does: caches, forecasts, orders, token masks, residuals, large blocks.
const STRATEGIES: [&str; 6] = [
    "schedule { update every 3 } cache image where block(q) < 3 as taylor(2)
     keep all -> all where top_k(dot(mean(q), mean(k)), 50%)",
    "keep image -> image where abs(h(q) - h(k)) <= 2 keep text <-> all",
    "order tiles(4, 6) keep image -> image where abs(h(q) - h(k)) <= 4 keep text <-> all",
    "schedule { update every 4 } heads [0, 2] { cache image where block(q) < 2 as taylor(1) }
     heads rest { keep all -> all where top_k(dot(mean(q), mean(k)), 30%) }",
    "schedule { dense every 2 reuse }",
    "keep all -> all where pos(k) <= pos(q)",
];

#[test]
fn sessions_agree_with_the_cpu() {
    let mut cases = Vec::new();
    for rules in STRATEGIES {
        for (block, dtype) in [(32, Dtype::F32), (64, Dtype::F16), (128, Dtype::Bf16), (256, Dtype::F16)] {
            let text = format!("{MODEL}strategy s {{ layout text ++ image(h, w) block {block} {rules} }}");
            let plan = flashomni::compile(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
            cases.push((text, Arc::new(plan), dtype));
        }
    }
    on_gpu(|gpu, random| {
        for (text, plan, dtype) in &cases {
            let backend = Backend::Cuda(Arc::clone(&gpu.kernels));
            let mut sessions = [Backend::Cpu, backend].map(|backend| Session::on(Arc::clone(plan), backend).unwrap());
            for step in 0..plan.model.steps {
                let shape = [4, 325, 40];
                let [q, k, v] =
                    [0; 3].map(|_| Tensor::from_f32(&shape, random.normal(4 * 325 * 40)).unwrap().cast(*dtype));
                let [wanted, found] = sessions.each_mut().map(|session| {
                    let mut out = Tensor::zeros(&shape, *dtype);
                    session.attention(step, 0, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut()).unwrap();
                    out.as_ref().to_f32()
                });
                // Inputs of 32 bits are rounded to f16, on top of what is rounded within.
                let limit = match dtype {
                    Dtype::Bf16 => 6e-3,
                    Dtype::F16 => 1e-3,
                    Dtype::F32 => 2e-3,
                };
                let error = relative(&found, &wanted);
                assert!(error < limit, "step {step}, {dtype:?}: {error:.2e}\n{text}");
            }
        }
    });
}

#[test]
#[ignore = "thousands of random shapes: minutes on a GPU"]
fn soak() {
    on_gpu(|gpu, random| {
        for number in 0..4_000 {
            let case = Case::random(random);
            if number % 200 == 0 {
                println!("shape {number}: {case:?}");
            }
            case.check(gpu, random);
        }
    });
}
