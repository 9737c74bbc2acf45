//! Selector passes on a GPU against the interpreter, bit for bit: every operation, every strategy of the gallery that has a pass, random
//! and dyadic inputs, bf16 and fp16.
//!
//! Inputs are fresh in each run; the seed is printed, and `OMNI_SEED` repeats it. Skipped, and saying so, where there is no GPU;
//! `OMNI_REQUIRE_GPU=1` makes that a failure. Passes need a build with LLVM.

#![cfg(feature = "llvm")]

mod gallery_plans;
mod gpu;
mod passes;
mod programs;

use std::sync::Arc;

use flashomni::cuda::{Buffer, Graph};
use flashomni::kernels::selector::{LayerTensors, SelectorPass, Setup};
use flashomni::kernels::{DeviceSymbols, Element, TensorView};
use flashomni::plan::{Body, HeadSymbols, Program};
use flashomni::symbols::{Blocks, Symbols};
use gpu::{Gpu, Random, on_gpu};
use passes::Layer;

/// A pass with what it reads and writes.
struct Prepared {
    pass: SelectorPass,
    /// Views hold their memory.
    tensors: [TensorView; 3],
    heads: usize,
}

impl Prepared {
    fn new(gpu: &Gpu, layer: &Layer, setup: &Setup<'_>) -> Self {
        let [heads, tokens, dim] =
            [layer.model.heads, layer.model.tokens(), layer.model.head_dim].map(|size| size as usize);
        // Rows begin at multiples of 16 bytes; what is behind a row's channels is NaN.
        let width = dim.next_multiple_of(8);
        let shape = [1, heads, tokens, width];
        let tensors = layer.tensors.each_ref().map(|tensor| {
            let mut padded = vec![0xFFFF_u16; heads * tokens * width];
            padded
                .chunks_exact_mut(width)
                .zip(tensor.chunks_exact(dim))
                .for_each(|(row, own)| row[..dim].copy_from_slice(own));
            let memory = Arc::new(Buffer::of(&gpu.stream, &padded).unwrap());
            TensorView::of(&memory, shape, layer.element).unwrap()
        });
        let heads = setup.heads.len();
        let dense = Symbols::dense(heads, layer.blocks.q_blocks(), layer.blocks.kv_blocks());
        let symbols = DeviceSymbols::upload(&gpu.stream, &dense, &layer.blocks, 1).unwrap();
        let slots: Vec<u32> = (0..heads as u32).rev().collect();
        let pass = gpu.kernels.selector_pass(&gpu.stream, setup, &symbols, &slots).unwrap();
        Prepared { pass, tensors, heads }
    }

    fn layer(&self) -> LayerTensors<'_> {
        let [q, k, v] = self.tensors.each_ref().map(Some);
        LayerTensors { q, k, v }
    }

    fn run(&self, gpu: &Gpu, place: (u32, u32)) -> flashomni::Result<()> {
        self.pass.run(&gpu.stream, &self.layer(), place)
    }

    /// Compares what is in the symbols with what ought to be; heads are in slots from the last to the first.
    fn check(&self, gpu: &Gpu, name: &str, layer: &Layer, mut wanted: Vec<HeadSymbols>) {
        assert!(self.pass.is_finite(&gpu.stream).unwrap(), "{name}");
        wanted.reverse();
        let wanted = Symbols {
            cache: stacked(&wanted, |head| &head.cache, layer.blocks.q_blocks()),
            skip: stacked(&wanted, |head| &head.skip, layer.blocks.kv_blocks()),
            partial: None,
        };
        let found = self.pass.symbols().download(&gpu.stream).unwrap();
        let (wanted, _) = flashomni::symbols::cut::cut(&wanted, &layer.blocks, 128);
        assert_eq!(found.cache.rows(), self.heads);
        let differ = |a: &flashomni::symbols::BitMatrix, b: &flashomni::symbols::BitMatrix| {
            let pairs = a.words().iter().zip(b.words());
            pairs.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
        };
        let (cached, skipped) = (differ(&found.cache, &wanted.cache), differ(&found.skip, &wanted.skip));
        assert!((cached, skipped) == (0, 0), "{name}: {cached} q-blocks and {skipped} blocks differ");
    }
}

fn stacked<'a>(
    heads: &'a [HeadSymbols],
    part: impl Fn(&'a HeadSymbols) -> &'a flashomni::symbols::BitMatrix,
    columns: usize,
) -> flashomni::symbols::BitMatrix {
    flashomni::symbols::BitMatrix::stacked(heads.iter().map(part), columns)
}

/// Numbers of the layers: normal, or multiples of 1/8 in [-2, 2].
fn number(random: &mut Random, dyadic: bool) -> f32 {
    if dyadic { (random.below(33) as f32 - 16.0) / 8.0 } else { random.normal(1)[0] }
}

fn agree(gpu: &Gpu, name: &str, layer: &Layer, program: &Program, heads: &[u32]) {
    let place = (3, 1);
    let places = [(0, 0), place];
    let setup = layer.setup(program, heads, &places);
    let prepared = Prepared::new(gpu, layer, &setup);
    prepared.run(gpu, place).unwrap();
    prepared.check(gpu, name, layer, layer.expected(program, heads, place));
}

/// Every program at a size.
fn check(text: usize, image: usize, dim: u32, block: usize, element: Element, is_ordered: bool) {
    on_gpu(|gpu, random| {
        let tokens = text + image;
        let blocks = Blocks::regular(tokens, tokens, block, block);
        for dyadic in [true, false] {
            for (name, program) in passes::all(dim as usize) {
                let mut of_masks = programs::Random(random.below(1 << 30) as u64 * 2 + 1);
                let masks = passes::masks(blocks.q_blocks(), blocks.kv_blocks(), &mut of_masks);
                let mut order: Vec<u32> = (0..tokens as u32).collect();
                (0..tokens).for_each(|token| order.swap(token, random.below(tokens)));
                let order = is_ordered.then_some(order);
                let model = passes::model(text, image, 4, dim);
                let layer = Layer::new(model, blocks.clone(), order, masks, element, || number(random, dyadic));
                agree(gpu, &format!("{name}, {tokens} tokens"), &layer, &program, &[2, 0, 3]);
            }
        }
    });
}

#[test]
fn every_operation_in_bf16() {
    check(21, 235, 64, 8, Element::Bf16, false);
}

#[test]
fn every_operation_in_fp16_in_another_order() {
    check(30, 327, 40, 16, Element::F16, true);
}

#[test]
fn every_operation_on_odd_channels() {
    check(10, 57, 19, 9, Element::F16, true);
}

#[test]
fn every_operation_on_large_blocks() {
    check(130, 770, 128, 160, Element::Bf16, false);
}

#[test]
fn lines_of_every_length() {
    on_gpu(|gpu, random| {
        for blocks in [1, 31, 33, 65, 97, 161, 258, 289, 516, 545, 1023, 1025, 1100] {
            let (tokens, dim) = (blocks * 8, 16);
            let layout = Blocks::regular(tokens, tokens, 8, 8);
            let text = if blocks == 1 { 1 } else { 8 * (1 + blocks / 9) };
            let model = passes::model(text, tokens - text, 3, dim);
            let layer = Layer::new(model, layout, None, Vec::new(), Element::Bf16, || number(random, false));
            agree(gpu, &format!("{blocks} blocks"), &layer, &passes::flashomni(dim as usize), &[0, 1, 2]);
        }
    });
}

#[test]
fn the_strategy_of_the_paper_at_the_size_of_an_image() {
    on_gpu(|gpu, random| {
        for (block, element) in [(64, Element::Bf16), (128, Element::F16)] {
            let layout = Blocks::regular(4_608, 4_608, block, block);
            let model = passes::model(512, 4_096, 24, 128);
            let layer = Layer::new(model, layout, None, Vec::new(), element, || number(random, false));
            let heads: Vec<u32> = (0..24).collect();
            agree(gpu, &format!("blocks of {block}"), &layer, &passes::flashomni(128), &heads);
        }
    });
}

#[test]
fn a_graph_repeats_a_pass() {
    on_gpu(|gpu, random| {
        let layout = Blocks::regular(500, 500, 16, 16);
        let model = passes::model(100, 400, 4, 64);
        let layer = Layer::new(model, layout, None, Vec::new(), Element::Bf16, || number(random, false));
        let (program, heads, place) = (passes::flashomni(64), [0, 1, 2, 3], (5, 2));
        let setup = layer.setup(&program, &heads, std::slice::from_ref(&place));
        let prepared = Prepared::new(gpu, &layer, &setup);
        // SAFETY: what is launched lives until the end of the block.
        let mut graph = unsafe { Graph::capture(&gpu.stream, || prepared.run(gpu, place)) }.unwrap();
        for _ in 0..3 {
            graph.launch(&gpu.stream).unwrap();
            prepared.check(gpu, "a graph", &layer, layer.expected(&program, &heads, place));
        }
        assert!(prepared.run(gpu, (1, 1)).is_err(), "it was not prepared for this step");
    });
}

#[test]
fn every_strategy_of_the_gallery() {
    on_gpu(|gpu, random| {
        for (name, plan) in gallery_plans::dynamic() {
            for (index, class) in plan.classes.iter().enumerate() {
                let Body::Dynamic { program, .. } = &class.body else { continue };
                let (place, heads) = gallery_plans::place_of(&plan, index);
                let places = [place];
                let Ok(setup) = Setup::of_class(&plan, class, &heads, &places) else { continue };
                for (dyadic, element) in [(true, Element::F16), (false, Element::Bf16)] {
                    let arranged = &plan.arrangements[class.arrangement as usize];
                    let masks = setup.masks.iter().map(|&mask| mask.clone()).collect();
                    let (model, blocks, order) = (plan.model.clone(), arranged.blocks.clone(), arranged.order.clone());
                    let layer = Layer::new(model, blocks, order, masks, element, || number(random, dyadic));
                    let lowered = flashomni::kernels::selector::lower(
                        &setup,
                        &flashomni::kernels::selector::Target { cache: 0, skip: 0, slots: &heads },
                        0,
                    );
                    if lowered.is_err() {
                        println!("{name}: on the CPU");
                        continue;
                    }
                    let prepared = Prepared::new(gpu, &layer, &setup);
                    prepared.run(gpu, place).unwrap();
                    let program = &plan.programs[*program as usize];
                    prepared.check(gpu, &name, &layer, layer.expected(program, &heads, place));
                    println!("{name}, class {index}: {} launches", prepared.pass.launches().len());
                }
            }
        }
    });
}
