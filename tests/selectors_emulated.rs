//! Selector passes on the CPU: the launches of lowered programs, the kernels among them in the emulator of `tests/emulator`, give the
//! interpreter's symbols bit for bit. Chains, which are PTX on a GPU, are interpreted here. Needs a C++ compiler and no GPU; skipped, and
//! saying so, where there is none; `OMNI_REQUIRE_EMULATOR=1` makes that a failure.

mod emulated;
mod gallery_plans;
mod passes;
mod programs;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use emulated::{compile, compiler, device_objects, folder, succeed};
use flashomni::codegen::{Access, Map, Operand, maps};
use flashomni::ir::{Op, Source};
use flashomni::kernels::Element;
use flashomni::kernels::selector::params::Tokens;
use flashomni::kernels::selector::{Code, Recipe, Setup, Step, Target, lower};
use flashomni::plan::{Body, Program};
use flashomni::reference::selector::{Cell, binary, compare, unary};
use flashomni::symbols::{BitMatrix, Blocks, Symbols};
use passes::Layer;
use programs::Random;

/// Where the memory of a pass lies in the emulator.
const BASE: u64 = 0x1000_0000_0000;

/// The emulator's program, compiled once.
fn emulator(compiler: &str) -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = folder().join("selector");
        std::fs::create_dir_all(&folder).expect("the folder of temporary files can be written");
        let device = device_objects(compiler);
        let macros = ["-D__CUDA_ARCH__=800", "-DOMNI_BF16=1"].map(str::to_owned);
        let object = compile(compiler, "selector", &macros, &folder);
        let program = object.with_extension("");
        succeed(Command::new(compiler).args(device).arg(object).arg("-o").arg(&program));
        program
    })
}

/// The memory of a pass, and the launches that wait to be run on it.
struct Memory<'a> {
    emulator: &'a PathBuf,
    bytes: Vec<u8>,
    waiting: Vec<u8>,
    count: u32,
    seed: u64,
    name: String,
}

impl Memory<'_> {
    fn at(&self, address: u64) -> usize {
        (address - BASE) as usize
    }

    fn append(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(256), 0);
        let address = BASE + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        address
    }

    fn wait(&mut self, name: &str, step: &Step, params: &[u8]) {
        let mut padded = [0; 32];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.waiting.extend_from_slice(&padded);
        for number in [step.grid[0], step.grid[1], step.threads, params.len() as u32] {
            self.waiting.extend_from_slice(&number.to_le_bytes());
        }
        self.waiting.extend_from_slice(params);
        self.count += 1;
    }

    /// Runs what waits.
    fn flush(&mut self) {
        if self.count == 0 {
            return;
        }
        let mut job = Vec::new();
        job.extend_from_slice(&BASE.to_le_bytes());
        job.extend_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        job.extend_from_slice(&self.bytes);
        job.extend_from_slice(&self.count.to_le_bytes());
        job.append(&mut self.waiting);
        self.count = 0;
        let paths = ["job", "memory"].map(|end| folder().join("selector").join(format!("{}.{end}", self.name)));
        std::fs::write(&paths[0], job).unwrap();
        succeed(Command::new(self.emulator).args(&paths).arg(self.seed.to_string()));
        self.seed += 1;
        self.bytes = std::fs::read(&paths[1]).unwrap();
        for path in paths {
            std::fs::remove_file(path).unwrap();
        }
    }

    fn cell(&self, address: u64, index: usize, is_bool: bool) -> Cell {
        if is_bool {
            return Cell::Bool(self.bytes[self.at(address) + index] != 0);
        }
        Cell::Real(f32::from_le_bytes(self.bytes[self.at(address) + 4 * index..][..4].try_into().unwrap()))
    }

    /// What a chain's kernel does, as `codegen::nvptx` says.
    fn map(&mut self, map: &Map, params: &[u8], heads: usize) {
        self.flush();
        let words: Vec<u64> = params.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        let (rows, columns) = (words[words.len() - 2] as usize, words[words.len() - 1] as usize);
        let uniforms = words[words.len() - 3];
        for (head, i) in (0..heads).flat_map(|head| (0..rows * columns).map(move |i| (head, i))) {
            let leaf = |n: usize| {
                let (size, at) = match map.access[n] {
                    Access::Element => (rows * columns, i),
                    Access::Row => (rows, i / columns),
                    Access::Column => (columns, i % columns),
                    Access::One => (1, 0),
                };
                self.cell(words[1 + n], head * size + at, map.leaf_is_bool[n])
            };
            let uniform = |n: usize| {
                let cell = self.cell(uniforms, head * map.uniforms.len() + n, false);
                if map.uniform_is_bool[n] { Cell::Bool(cell != Cell::Real(0.0)) } else { cell }
            };
            let mut found: Vec<Cell> = Vec::new();
            for step in &map.body {
                let operand = |n: usize| match step.operands[n] {
                    Operand::Leaf(n) => leaf(n),
                    Operand::Uniform(n) => uniform(n),
                    Operand::Step(n) => found[n],
                };
                found.push(match &step.op {
                    Op::Unary(op, _) => unary(*op, operand(0)),
                    Op::Binary(op, ..) => binary(*op, operand(0), operand(1)),
                    Op::Compare(op, ..) => Cell::Bool(compare(*op, operand(0), operand(1))),
                    _ if operand(0) == Cell::Bool(true) => operand(1),
                    _ => operand(2),
                });
            }
            let place = head * rows * columns + i;
            let at = self.at(words[0]);
            match found[found.len() - 1] {
                Cell::Bool(value) => self.bytes[at + place] = u8::from(value),
                Cell::Real(value) => self.bytes[at + 4 * place..][..4].copy_from_slice(&value.to_le_bytes()),
            }
        }
    }
}

/// Cache and skip symbols of heads, as the kernels leave them, and whether something was not finite.
fn run(
    emulator: &PathBuf,
    name: &str,
    layer: &Layer,
    program: &Program,
    heads: &[u32],
    place: (u32, u32),
) -> (Symbols, bool) {
    let places = [(0, 0), place];
    let setup = layer.setup(program, heads, &places);
    // Slots in reverse order, and one more than there are heads.
    let slots: Vec<u32> = (0..heads.len() as u32).rev().collect();
    let [q_blocks, kv_blocks] = [layer.blocks.q_blocks(), layer.blocks.kv_blocks()];
    let (cache_bytes, words) = (q_blocks.div_ceil(64) * 8, kv_blocks.div_ceil(64));
    let skip_bytes = q_blocks * words * 8;
    let room = heads.len() + 1;
    let symbols_bytes = (room * cache_bytes).next_multiple_of(256) + (room * skip_bytes).next_multiple_of(256);
    let (cache, skip) = (BASE, BASE + (room * cache_bytes).next_multiple_of(256) as u64);
    let start = BASE + symbols_bytes as u64;
    let recipe = lower(&setup, &Target { cache, skip, slots: &slots }, start).unwrap();
    let mut memory = Memory {
        emulator,
        bytes: vec![0xFF; symbols_bytes + recipe.bytes as usize],
        waiting: Vec::new(),
        count: 0,
        seed: 1,
        name: name.to_owned(),
    };
    for (offset, constant) in &recipe.constants {
        memory.bytes[symbols_bytes + *offset as usize..][..constant.len()].copy_from_slice(constant);
    }
    let record = recipe.uniforms.records(&program.graph, &places).remove(1);
    let record = memory.append(&record);
    let tensors = layer.tensors.each_ref().map(|tensor| memory.append(bytemuck::cast_slice(tensor)));
    launch(&mut memory, &recipe, &maps(program), record, tensors, layer);
    memory.flush();
    let status = memory.bytes[memory.at(recipe.status)];
    let matrix = |address: u64, rows: usize, columns: usize| {
        let bytes = &memory.bytes[memory.at(address)..][..rows * columns.div_ceil(64) * 8];
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        BitMatrix::from_words(rows, columns, words).expect("padding is zero")
    };
    let spare = memory.at(cache) + heads.len() * cache_bytes;
    assert!(memory.bytes[spare..spare + cache_bytes].iter().all(|&byte| byte == 0xFF), "{name}: a slot of no head");
    let symbols = Symbols {
        cache: matrix(cache, heads.len(), q_blocks),
        skip: matrix(skip, heads.len() * q_blocks, kv_blocks),
        partial: None,
    };
    (symbols, status == 0)
}

fn launch(memory: &mut Memory<'_>, recipe: &Recipe, maps: &[Map], record: u64, tensors: [u64; 3], layer: &Layer) {
    let (tokens, dim) = (u64::from(layer.model.tokens()), u64::from(layer.model.head_dim));
    for step in &recipe.steps {
        let mut params = step.params.clone();
        for (at, offset) in &step.uniforms {
            params[*at..*at + 8].copy_from_slice(&(record + offset).to_le_bytes());
        }
        for &(at, source) in &step.sources {
            let head = &mut params[at..at + size_of::<Tokens>()];
            let known: Tokens = bytemuck::pod_read_unaligned(head);
            let data = tensors[Source::ALL.iter().position(|&one| one == source).unwrap()];
            let is_bf16 = u32::from(layer.element == Element::Bf16);
            let full = Tokens { data, head_stride: tokens * dim, token_stride: dim, is_bf16, ..known };
            head.copy_from_slice(bytemuck::bytes_of(&full));
        }
        match step.code {
            Code::Kernel(entry) => memory.wait(entry.place().1, step, &params),
            Code::Map(index) => memory.map(&maps[index], &params, step.grid[1] as usize),
        }
    }
}

/// Compares the pass with the interpreter on some of the heads.
fn agree(emulator: &PathBuf, name: &str, layer: &Layer, program: &Program) {
    agree_at(emulator, name, layer, program, &[2, 0, 3], (3, 1));
}

fn agree_at(emulator: &PathBuf, name: &str, layer: &Layer, program: &Program, heads: &[u32], place: (u32, u32)) {
    let file: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let (found, is_finite) = run(emulator, &file, layer, program, heads, place);
    assert!(is_finite, "{name}");
    let mut wanted = layer.expected(program, heads, place);
    wanted.reverse();
    let cache = BitMatrix::stacked(wanted.iter().map(|head| &head.cache), layer.blocks.q_blocks());
    let skip = BitMatrix::stacked(wanted.iter().map(|head| &head.skip), layer.blocks.kv_blocks());
    let ones = skip.count();
    println!(
        "{name}: {ones} of {} blocks, {} of {} rows",
        skip.rows() * skip.columns(),
        cache.count(),
        cache.rows() * cache.columns()
    );
    assert!(found.cache == cache, "{name}: other q-blocks are cached");
    assert!(found.skip == skip, "{name}: other blocks are skipped");
}

/// Every program at a size; blocks of up to `block` tokens, in an order of their own where `is_ordered`.
fn check(text: usize, image: usize, dim: u32, block: usize, element: Element, is_ordered: bool, dyadic: bool) {
    let Some(compiler) = compiler() else { return };
    let emulator = emulator(compiler);
    let mut random = Random(text as u64 * 7 + u64::from(dim));
    let tokens = text + image;
    let blocks = Blocks::regular(tokens, tokens, block, block);
    for (name, program) in passes::all(dim as usize) {
        let masks = passes::masks(blocks.q_blocks(), blocks.kv_blocks(), &mut random);
        let mut order: Vec<u32> = (0..tokens as u32).collect();
        (0..tokens).for_each(|token| order.swap(token, random.below(tokens)));
        let order = is_ordered.then_some(order);
        let model = passes::model(text, image, 4, dim);
        let number = || if dyadic { random.dyadic() } else { random.real(1.5) };
        let layer = Layer::new(model, blocks.clone(), order, masks, element, number);
        agree(emulator, &format!("{name} {tokens}"), &layer, &program);
    }
}

#[test]
fn every_operation_on_random_inputs() {
    check(21, 80, 16, 8, Element::Bf16, false, false);
}

#[test]
fn every_operation_on_dyadic_inputs_in_another_order() {
    check(10, 57, 19, 9, Element::F16, true, true);
}

/// Lines of more than one and of more than a thousand elements in a lane's registers.
#[test]
fn many_blocks() {
    check(30, 141, 8, 4, Element::F16, true, false);
}

/// Enough for the larger tiles, in channels by fours and in others.
#[test]
fn many_products() {
    let Some(compiler) = compiler() else { return };
    let mut random = Random(11);
    let blocks = Blocks::regular(370, 370, 16, 16);
    for dim in [36, 7] {
        let model = passes::model(40, 330, 4, dim);
        let layer = Layer::new(model, blocks.clone(), None, Vec::new(), Element::Bf16, || random.real(1.5));
        agree(emulator(compiler), &format!("products {dim}"), &layer, &passes::products());
    }
}

/// Strategies whose kernels look at blocks; those that look at each token take long here, and have their turn on a GPU.
#[test]
fn strategies_of_the_gallery() {
    const NAMES: [&str; 8] =
        ["draft_text", "flashomni", "flashomni_published", "jenga", "mixed", "sla", "sparge_topk", "vsa"];
    let Some(compiler) = compiler() else { return };
    let mut random = Random(77);
    for (name, plan) in gallery_plans::dynamic() {
        if !NAMES.contains(&&*name) {
            continue;
        }
        for (index, class) in plan.classes.iter().enumerate() {
            let Body::Dynamic { program, .. } = &class.body else { continue };
            let (place, heads) = gallery_plans::place_of(&plan, index);
            let setup = Setup::of_class(&plan, class, &heads, std::slice::from_ref(&place)).unwrap();
            let arranged = &plan.arrangements[class.arrangement as usize];
            let masks = setup.masks.iter().map(|&mask| mask.clone()).collect();
            let (model, blocks, order) = (plan.model.clone(), arranged.blocks.clone(), arranged.order.clone());
            let layer = Layer::new(model, blocks, order, masks, Element::Bf16, || random.real(1.5));
            let program = &plan.programs[*program as usize];
            agree_at(emulator(compiler), &format!("{name} {index}"), &layer, program, &heads, place);
        }
    }
}

#[test]
fn what_is_not_finite_is_noticed() {
    let Some(compiler) = compiler() else { return };
    let mut random = Random(5);
    let blocks = Blocks::regular(40, 40, 8, 8);
    let mut layer =
        Layer::new(passes::model(8, 32, 4, 16), blocks, None, Vec::new(), Element::Bf16, || random.real(1.0));
    layer.tensors[1][5 * 16 + 3] = passes::narrow(f32::INFINITY, Element::Bf16);
    let (_, is_finite) = run(emulator(compiler), "not_finite", &layer, &passes::flashomni(16), &[0], (0, 0));
    assert!(!is_finite);
}
