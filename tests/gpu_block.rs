//! Whole attention blocks on a GPU: at every step as on the CPU, within the memory that was announced, and without leaks.
//!
//! As in `gpu_attention.rs`: random fresh inputs, skipped without a GPU unless `OMNI_REQUIRE_GPU=1`. A generation of the shape of
//! HunyuanVideo: `cargo test --release --test gpu_block -- --ignored`.

mod gpu;

use std::sync::Arc;

use flashomni::cuda::Graph;
use flashomni::error::Error;
use flashomni::ir::StepKind;
use flashomni::kernels::Element;
use flashomni::plan::Plan;
use flashomni::runtime::{DeviceBlock, DeviceOptions, DeviceSession, Memory};
use gpu::block::{Case, Heads, Inputs, Matrices, Streams};
use gpu::{Gpu, Random, on_gpu};

/// Strategies whose symbols follow from places alone.
const STATIC: [&str; 6] = [
    "schedule { update every 3 } cache image where block(q) < 3 as taylor(2)",
    "keep image -> image where abs(h(q) - h(k)) <= 2 keep text <-> all",
    "schedule { dense while step < 2; update every 3 }
     heads [0, 2] { cache image where block(q) < 2 as taylor(1) }
     heads rest { cache all where block(q) == 1 skip all -> all where block(k) == 2 }",
    "schedule { dense every 3 reuse as taylor(1) }",
    "schedule { update every 3; dispatch as residual } keep image -> image where abs(h(q) - h(k)) <= 3 lower exact keep text <-> all",
    "keep all -> all where pos(k) <= pos(q) lower exact",
];

/// Strategies that choose by queries and keys.
const DYNAMIC: [&str; 2] = [
    "schedule { update every 3 } let map = softmax(dot(mean(q), mean(k)) / sqrt(head_dim))
     cache image where bottom_mass(softmax(sum(map[image -> text], over = k), over = q), 0.5, over = q) as taylor(1)
     keep all -> all where top_k(map, 50%)",
    "schedule { refresh every 3 } keep text <-> all keep image -> image where top_k(dot(mean(q), mean(k)), 40%)",
];

/// Strategies that keep several things at once: forecasts beside residuals, under symbols that change, and beside outputs; and one that
/// refreshes symbols that stay the same.
const KEEPING: [&str; 3] = [
    "schedule { update every 4; dispatch as residual } cache image where block(q) mod 3 == step mod 3 as taylor(1)
     keep image -> image where abs(h(q) - h(k)) <= 3 keep text <-> all",
    "schedule { update every 4 reuse as taylor(1) while step mod 4 == 3 } cache image where block(q) < 3 as taylor(2)",
    "schedule { update every 6; refresh every 2 } cache image where block(q) < 3 as taylor(1)",
];

/// Where layers may keep things.
const SIDES: [Memory; 2] = [Memory::Gpu, Memory::Host];

/// The tokens of the text.
const TEXT: usize = 37;

fn plan(head_dim: u32, block: u32, rules: &str) -> Arc<Plan> {
    let text = format!(
        "model small {{ layers 2 heads 4 head_dim {head_dim} steps 8 tokens text({TEXT}) ++ image(h = 16, w = 18) }}
         strategy s {{ layout text ++ image(h, w) block {block} {rules} }}"
    );
    Arc::new(flashomni::compile(&text).unwrap_or_else(|error| panic!("{text}\n{error}")))
}

/// The case that most tests are about: it caches, forecasts and skips.
fn cached() -> Case {
    let plan = plan(128, 64, STATIC[2]);
    Case { plan, text: TEXT, streams: Streams::Two, heads: Heads::Random, element: Element::F16 }
}

fn check_all(strategies: &[&str], heads: Heads) {
    let mut plans = Vec::new();
    for rules in strategies {
        for (head_dim, block) in [(128, 128), (64, 64)] {
            plans.push(plan(head_dim, block, rules));
        }
    }
    on_gpu(|gpu, random| {
        for plan in &plans {
            for streams in [Streams::Two, Streams::One] {
                for element in [Element::F16, Element::Bf16] {
                    Case { plan: Arc::clone(plan), text: TEXT, streams, heads, element }.check(gpu, random);
                }
            }
        }
    });
}

#[test]
fn every_step_is_that_of_the_cpu() {
    check_all(&STATIC, Heads::Random);
}

#[test]
fn symbols_are_chosen_from_queries_and_keys_on_the_gpu() {
    check_all(&DYNAMIC, Heads::Copied);
}

/// Runs some steps; gives the outputs of the last.
fn run(case: &Case, session: &mut DeviceSession, inputs: &[Inputs]) -> Vec<Vec<f32>> {
    let matrices = case.matrices(session);
    for (step, inputs) in (0..).zip(inputs) {
        matrices.send(session.stream(), inputs);
        for layer in 0..case.plan.model.layers {
            matrices.run(session, [step, layer]).unwrap();
        }
    }
    matrices.outputs(session.stream())
}

#[test]
fn memory_is_as_announced_and_comes_back() {
    for caches in SIDES {
        on_gpu(|gpu, random| check_memory(gpu, random, caches));
    }
}

fn check_memory(gpu: &Gpu, random: &mut Random, caches: Memory) {
    let case = cached();
    let (block, inputs) = (case.block(random), case.inputs(random));
    let device = gpu.kernels.device();
    // Kernels are compiled and loaded.
    let wanted = run(&case, &mut case.session_in(gpu, &block, caches), &inputs);
    let blocks = DeviceBlock::upload(&gpu.stream, std::slice::from_ref(&block), case.element).unwrap();
    let blocks = vec![Arc::clone(&blocks[0]); 2];
    let with_weights = device.free_bytes().unwrap();
    let mut left = Vec::new();
    for round in 0..20 {
        let plan = Arc::clone(&case.plan);
        let options = DeviceOptions { caches, ..DeviceOptions::default() };
        let mut session = DeviceSession::new(plan, &gpu.kernels, blocks.clone(), options).unwrap();
        // In every other round half of the steps are left out, and nothing is waited for.
        let steps = if round % 2 == 0 { inputs.len() } else { inputs.len() / 2 };
        let found = run(&case, &mut session, &inputs[..steps]);
        let taken = with_weights.saturating_sub(device.free_bytes().unwrap());
        let announced = session.memory().bytes(Memory::Gpu);
        assert!(taken <= announced, "round {round}: {taken} bytes are taken, {}", session.memory());
        if steps == inputs.len() {
            assert_eq!(found, wanted, "round {round}");
        }
        drop(session);
        left.push(device.free_bytes().unwrap());
    }
    // The driver keeps pieces for itself, but no more of them from generation to generation.
    assert!(left[19] >= left[4], "generations leave something behind: {left:?}");
}

/// What stands between the steps that keep something and those that take it must not change a bit.
#[test]
fn caches_in_host_memory_give_the_same_bits() {
    let mut plans = Vec::new();
    for rules in STATIC.iter().chain(&DYNAMIC).chain(&KEEPING) {
        plans.push(plan(128, 64, rules));
    }
    on_gpu(|gpu, random| {
        let mut in_host = 0;
        for plan in &plans {
            for streams in [Streams::Two, Streams::One] {
                let (heads, element) = (Heads::Random, Element::Bf16);
                let case = Case { plan: Arc::clone(plan), text: TEXT, streams, heads, element };
                let (block, inputs) = (case.block(random), case.inputs(random));
                let mut sessions = SIDES.map(|caches| case.session_in(gpu, &block, caches));
                // Those of each layer: layers take turns in the places, and nothing is waited for between them.
                let matrices = (0..plan.model.layers).map(|_| case.matrices(&sessions[0])).collect::<Vec<_>>();
                in_host += sessions[1].memory().bytes(Memory::Host);
                // The second generation begins with what the first has left in the places.
                for generation in 0..2 {
                    for (step, inputs) in (0..).zip(&inputs) {
                        let [wanted, found] = sessions.each_mut().map(|session| {
                            matrices.iter().for_each(|own| own.send(session.stream(), inputs));
                            let run = |(layer, own): (u32, &Matrices)| own.run(session, [step, layer]).unwrap().kind;
                            let kinds: Vec<StepKind> = (0..).zip(&matrices).map(run).collect();
                            (kinds, matrices.iter().map(|own| own.outputs(session.stream())).collect::<Vec<_>>())
                        });
                        assert!(wanted == found, "generation {generation}, step {step}, {case:?}");
                    }
                    sessions.iter_mut().for_each(DeviceSession::reset);
                }
            }
        }
        assert!(in_host > 0, "nothing was kept");
    });
}

#[test]
fn a_session_is_dropped_while_it_runs() {
    on_gpu(|gpu, random| {
        let case = cached();
        let (block, inputs) = (case.block(random), case.inputs(random));
        let wanted = run(&case, &mut case.session(gpu, &block), &inputs);
        for (steps, caches) in (1..inputs.len() as u32).flat_map(|steps| SIDES.map(|caches| (steps, caches))) {
            let mut session = case.session_in(gpu, &block, caches);
            let matrices = case.matrices(&session);
            matrices.send(session.stream(), &inputs[0]);
            for step in 0..steps {
                matrices.run(&mut session, [step, 0]).unwrap();
            }
            drop(session);
        }
        let mut session = case.session(gpu, &block);
        assert_eq!(run(&case, &mut session, &inputs), wanted);
        session.reset();
        assert_eq!(run(&case, &mut session, &inputs), wanted, "the next generation begins anew");
    });
}

#[test]
fn sessions_run_beside_each_other() {
    on_gpu(|gpu, random| {
        let case = cached();
        let block = case.block(random);
        let inputs: Vec<_> = (0..3).map(|_| case.inputs(random)).collect();
        let alone: Vec<_> = inputs.iter().map(|inputs| run(&case, &mut case.session(gpu, &block), inputs)).collect();
        let together = std::thread::scope(|scope| {
            let (case, block) = (&case, &block);
            let running: Vec<_> = inputs
                .iter()
                .map(|inputs| scope.spawn(move || run(case, &mut case.session(gpu, block), inputs)))
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(together, alone);
    });
}

#[test]
fn a_dispatch_step_can_be_recorded() {
    for caches in SIDES {
        on_gpu(|gpu, random| check_recording(gpu, random, caches));
    }
}

fn check_recording(gpu: &Gpu, random: &mut Random, caches: Memory) {
    let case = cached();
    let (block, inputs) = (case.block(random), case.inputs(random));
    // The second dispatch step under the same symbols: the first has made their work lists.
    let is_dispatch = |step: u32| case.plan.schedule.kind(step, 0) == StepKind::Dispatch;
    let recorded = (1..case.plan.model.steps).find(|&step| is_dispatch(step - 1) && is_dispatch(step)).unwrap();
    let before = |session: &mut DeviceSession| {
        let matrices = case.matrices(session);
        for step in 0..recorded {
            matrices.send(session.stream(), &inputs[step as usize]);
            matrices.run(session, [step, 0]).unwrap();
        }
        matrices
    };
    let [mut wanted, mut found] = [(); 2].map(|()| case.session_in(gpu, &block, caches));
    let matrices = before(&mut wanted);
    matrices.send(wanted.stream(), &inputs[recorded as usize]);
    matrices.run(&mut wanted, [recorded, 0]).unwrap();
    let wanted = matrices.outputs(wanted.stream());
    let matrices = before(&mut found);
    let stream = Arc::clone(found.stream());
    // SAFETY: the session and the matrices live until the end of the block.
    let mut graph = unsafe { Graph::capture(&stream, || matrices.run(&mut found, [recorded, 0]).map(drop)) }.unwrap();
    for _ in 0..2 {
        matrices.send(&stream, &inputs[recorded as usize]);
        graph.launch(&stream).unwrap();
        assert_eq!(matrices.outputs(&stream), wanted);
    }
}

/// A generation of 60 layers and 50 steps; all layers have the same weights.
#[test]
#[ignore = "minutes on a GPU with 80 GB"]
fn a_generation_of_the_size_of_a_video() {
    let text = "model video { layers 60 heads 24 head_dim 128 steps 50 dtype bf16
            tokens video(t = 13, h = 42, w = 60) ++ text(264) }
         strategy s { layout video(t, h, w) ++ text block 128
            schedule { dense while step < 2; update every 6; dense on last }
            cache video where block(q) mod 3 != layer mod 3
            skip video -> video where abs(t(q) - t(k)) > 4 }";
    let plan = Arc::new(flashomni::compile(text).unwrap_or_else(|error| panic!("{error}")));
    assert_eq!(plan.model.tokens(), 33_024);
    let case = Case { plan, text: 256, streams: Streams::One, heads: Heads::Random, element: Element::Bf16 };
    on_gpu(|gpu, random| {
        let block = case.block(random);
        let blocks = DeviceBlock::upload(&gpu.stream, std::slice::from_ref(&block), case.element).unwrap();
        let blocks = vec![Arc::clone(&blocks[0]); 60];
        let inputs = case.inputs_of(random, 1);
        let device = gpu.kernels.device();
        let mut free: Vec<u64> = Vec::new();
        for round in 0..20 {
            let before = device.free_bytes().unwrap();
            let plan = Arc::clone(&case.plan);
            let mut session = DeviceSession::new(plan, &gpu.kernels, blocks.clone(), DeviceOptions::default()).unwrap();
            let matrices = case.matrices(&session);
            matrices.send(session.stream(), &inputs[0]);
            // One in full, the others as far as the second update.
            let steps = if round == 0 { 50 } else { 9 };
            for step in 0..steps {
                for layer in 0..60 {
                    matrices.run(&mut session, [step, layer]).unwrap();
                }
            }
            session.stream().synchronize().unwrap();
            assert!(matrices.outputs(session.stream()).iter().flatten().all(|value| value.is_finite()));
            let taken = before.saturating_sub(device.free_bytes().unwrap());
            if round == 0 {
                println!(
                    "{}; taken {:.2} GB, kernels and tensors of the host included",
                    session.memory(),
                    taken as f64 / 1e9
                );
            } else {
                // Beside the session there are the tensors of a layer.
                assert!(
                    taken <= session.memory().bytes(Memory::Gpu) + (1 << 30),
                    "{taken} bytes are taken, {}",
                    session.memory()
                );
            }
            drop((session, matrices));
            free.push(device.free_bytes().unwrap());
        }
        assert!(free[1..].iter().all(|bytes| *bytes >= free[1]), "{free:?}");
    });
}

#[test]
fn too_little_memory_is_an_error_before_anything_is_allocated() {
    on_gpu(|gpu, random| {
        let case = cached();
        let block = case.block(random);
        let blocks = DeviceBlock::upload(&gpu.stream, std::slice::from_ref(&block), case.element).unwrap();
        let free = gpu.kernels.device().free_bytes().unwrap();
        let blocks = vec![Arc::clone(&blocks[0]); 2];
        let options = DeviceOptions { memory_limit: Some(1 << 20), ..DeviceOptions::default() };
        let error = DeviceSession::new(Arc::clone(&case.plan), &gpu.kernels, blocks, options).unwrap_err();
        assert!(matches!(error, Error::Memory { available: 0x10_0000, .. }), "{error}");
        assert_eq!(gpu.kernels.device().free_bytes().unwrap(), free);
    });
}
