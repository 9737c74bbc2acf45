//! PTX kernels of selector programs and token predicates.
//!
//! # Kernels
//! `map{n}(out, leaf..., uniforms, rows, columns)` computes the n-th map for several heads at once: `blockIdx.y` is the
//! head, the threads of `blockIdx.x` stride over `rows * columns` elements (a vector is one row). Arrays hold one head
//! after the other: `out` and leaves with the root's axes `rows * columns` elements each, vectors under a matrix `rows`
//! or `columns`; `uniforms` holds the floats of each head. Truth values are bytes. `rows` and `columns` are `i32`.
//!
//! From Hopper on a map begins with `griddepcontrol.wait`, so that it may be launched before the kernel in front of it has ended.
//!
//! `tile{n}(out, pairs, q_offsets, kv_offsets, q_array..., kv_array..., tile_rows, tile_words)` fills token tiles:
//! `blockIdx.x` is the tile, `pairs` its (q-block, kv-block) as two `i32`, arrays are `i32` over all tokens, and a tile is
//! `tile_rows * tile_words` 64-bit words at its place in `out`; what lies beyond the blocks' ends is 0.
//!
//! Pointers are device memory and do not overlap.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::targets::{FileType, InitializationConfig, Target, TargetMachine, TargetMachineOptions, TargetTriple};

use crate::error::{Error, Result};
use crate::plan::{Predicate, Program};
use crate::reference::input::check_program;

use super::expr::{self, line};
use super::predicate::{self, Lowered};
use super::{Access, Map, cpu, maps};

use std::fmt::Write as _;

/// An NVIDIA architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Ampere.
    Sm80,
    /// Hopper.
    Sm90a,
    /// Blackwell.
    Sm100a,
}

impl Architecture {
    /// Every architecture, oldest first.
    pub const ALL: [Architecture; 3] = [Architecture::Sm80, Architecture::Sm90a, Architecture::Sm100a];

    /// `sm_80`, `sm_90a`, `sm_100a`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Sm80 => "sm_80",
            Architecture::Sm90a => "sm_90a",
            Architecture::Sm100a => "sm_100a",
        }
    }

    /// The architecture of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// The one whose PTX runs on a device of a compute capability: its own, or the oldest, which all newer ones run.
    #[must_use]
    pub fn of_device(major: u32, minor: u32) -> Self {
        match (major, minor) {
            (9, 0) => Architecture::Sm90a,
            (10, 0) => Architecture::Sm100a,
            _ => Architecture::Sm80,
        }
    }

    /// Whether maps wait for the kernel in front of them, where launches may begin before it has ended.
    #[must_use]
    pub fn waits(self) -> bool {
        self != Architecture::Sm80
    }

    /// The oldest PTX version that knows it, as a feature of LLVM.
    fn ptx_version(self) -> &'static str {
        match self {
            Architecture::Sm80 => "+ptx70",
            Architecture::Sm90a => "+ptx80",
            Architecture::Sm100a => "+ptx86",
        }
    }
}

/// The maps of a program and token predicates as PTX.
///
/// # Errors
/// [`Error::State`] for a program the compiler would not make, [`Error::Unavailable`] for a predicate without code or
/// when LLVM has no PTX.
pub fn emit_ptx(program: &Program, predicates: &[&Predicate], architecture: Architecture) -> Result<String> {
    check_program(program)?;
    let lowered = predicates
        .iter()
        .map(|predicate| predicate::lower(predicate, predicate::MOST_TOKENS))
        .collect::<Result<Vec<_>>>()?;
    let text = device_module(&maps(program), &lowered, architecture);
    let machine = machine(architecture)?;
    let context = Context::create();
    let module = cpu::parse(&context, &text)?;
    cpu::optimise(&module, &machine)?;
    let buffer = machine.write_to_memory_buffer(&module, FileType::Assembly).map_err(unavailable)?;
    let ptx = String::from_utf8_lossy(buffer.as_slice());
    Ok(ptx.trim_end_matches('\0').to_owned())
}

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("LLVM cannot write PTX: {error}"))
}

fn machine(architecture: Architecture) -> Result<TargetMachine> {
    Target::initialize_nvptx(&InitializationConfig::default());
    let triple = TargetTriple::create("nvptx64-nvidia-cuda");
    let options = TargetMachineOptions::new()
        .set_cpu(architecture.name())
        .set_features(architecture.ptx_version())
        .set_level(OptimizationLevel::Aggressive);
    Target::from_triple(&triple)
        .map_err(unavailable)?
        .create_target_machine_from_options(&triple, options)
        .ok_or_else(|| unavailable(format!("no code generator for {}", architecture.name())))
}

/// Device memory.
const SPACE: &str = " addrspace(1)";

fn device_module(maps: &[Map], predicates: &[Lowered], architecture: Architecture) -> String {
    let mut text = String::new();
    for register in ["tid.x", "ntid.x", "ctaid.x", "ctaid.y", "nctaid.x"] {
        line!(text, "declare i32 @llvm.nvvm.read.ptx.sreg.{register}()");
    }
    text.push_str(&expr::prelude());
    text.push_str(predicate::declarations());
    for (index, map) in maps.iter().enumerate() {
        text.push_str(&expr::value_function(map, index));
        text.push_str(&map_kernel(map, index, architecture));
    }
    for (index, lowered) in predicates.iter().enumerate() {
        text.push_str(&predicate::value_function(lowered, index));
        text.push_str(&tile_kernel(lowered, index));
    }
    text.push_str("attributes #0 = { nounwind }\nattributes #1 = { alwaysinline nounwind }\n");
    text
}

/// Reads a special register into `%{name}` as `i64`.
fn write_register(text: &mut String, name: &str, register: &str) {
    line!(text, "  %{name}.word = call i32 @llvm.nvvm.read.ptx.sreg.{register}()");
    line!(text, "  %{name} = zext i32 %{name}.word to i64");
}

fn map_kernel(map: &Map, index: usize, architecture: Architecture) -> String {
    let mut text = String::new();
    let leaves: String = (0..map.leaves.len()).map(|n| format!("ptr{SPACE} noalias readonly %all{n}, ")).collect();
    line!(
        text,
        "\ndefine ptx_kernel void @map{index}(ptr{SPACE} noalias %out.all, {leaves}ptr{SPACE} noalias readonly \
         %uniforms.all, i32 %rows.word, i32 %columns.word) #0 {{"
    );
    line!(text, "start:");
    if architecture.waits() {
        // As `wait_for_turn` in the kernels of runtime_kernels/selector/.
        for instruction in ["wait", "launch_dependents"] {
            line!(text, "  call void asm sideeffect \"griddepcontrol.{instruction};\", \"~{{memory}}\"()");
        }
    }
    line!(text, "  %rows = sext i32 %rows.word to i64");
    line!(text, "  %columns = sext i32 %columns.word to i64");
    line!(text, "  %size = mul nsw i64 %rows, %columns");
    for (name, register) in
        [("thread", "tid.x"), ("threads", "ntid.x"), ("group", "ctaid.x"), ("groups", "nctaid.x"), ("head", "ctaid.y")]
    {
        write_register(&mut text, name, register);
    }
    line!(text, "  %before = mul i64 %group, %threads");
    line!(text, "  %first = add i64 %before, %thread");
    line!(text, "  %stride = mul i64 %groups, %threads");
    write_head(&mut text, "%out", "%out.all", map.is_bool, "%size");
    for (leaf, access) in map.access.iter().enumerate() {
        let size = match access {
            Access::Element => "%size",
            Access::Row => "%rows",
            Access::Column => "%columns",
            Access::One => "1",
        };
        write_head(&mut text, &format!("%array{leaf}"), &format!("%all{leaf}"), map.leaf_is_bool[leaf], size);
    }
    write_head(&mut text, "%uniforms", "%uniforms.all", false, &map.uniforms.len().to_string());
    for (uniform, &is_bool) in map.uniform_is_bool.iter().enumerate() {
        expr::write_uniform(&mut text, uniform, is_bool, &uniform.to_string(), SPACE);
    }
    line!(text, "  %some = icmp slt i64 %first, %size");
    line!(text, "  br i1 %some, label %element, label %done");
    line!(text, "element:");
    line!(text, "  %index = phi i64 [ %first, %start ], [ %index.next, %element ]");
    line!(text, "  %r = udiv i64 %index, %columns");
    line!(text, "  %r.base = mul i64 %r, %columns");
    line!(text, "  %c = sub i64 %index, %r.base");
    for (leaf, access) in map.access.iter().enumerate() {
        let position = match access {
            Access::Element => "%index",
            Access::Row => "%r",
            Access::Column => "%c",
            Access::One => "0",
        };
        let (name, array) = (format!("%leaf{leaf}"), format!("%array{leaf}"));
        expr::write_load(&mut text, &name, map.leaf_is_bool[leaf], &array, position, SPACE);
    }
    expr::write_element(&mut text, map, index, SPACE);
    line!(text, "  %index.next = add i64 %index, %stride");
    line!(text, "  %more = icmp slt i64 %index.next, %size");
    line!(text, "  br i1 %more, label %element, label %done");
    line!(text, "done:");
    line!(text, "  ret void");
    line!(text, "}}");
    text
}

/// The part of an array that belongs to the head.
fn write_head(text: &mut String, name: &str, all: &str, is_bool: bool, size: &str) {
    let memory = if is_bool { "i8" } else { "float" };
    line!(text, "  {name}.offset = mul i64 %head, {size}");
    line!(text, "  {name} = getelementptr inbounds {memory}, ptr{SPACE} {all}, i64 {name}.offset");
}

fn tile_kernel(lowered: &Lowered, index: usize) -> String {
    let mut text = String::new();
    let arrays: String = [("q", lowered.q.len()), ("kv", lowered.kv.len())]
        .iter()
        .flat_map(|&(side, count)| (0..count).map(move |n| format!("ptr{SPACE} noalias readonly %{side}.array{n}, ")))
        .collect();
    line!(
        text,
        "\ndefine ptx_kernel void @tile{index}(ptr{SPACE} noalias %out, ptr{SPACE} noalias readonly %pairs, \
         ptr{SPACE} noalias readonly %q.offsets, ptr{SPACE} noalias readonly %kv.offsets, {arrays}i32 %tile.rows.word, \
         i32 %tile.words.word) #0 {{"
    );
    line!(text, "start:");
    line!(text, "  %tile.rows = sext i32 %tile.rows.word to i64");
    line!(text, "  %tile.words = sext i32 %tile.words.word to i64");
    for (name, register) in [("thread", "tid.x"), ("threads", "ntid.x"), ("tile", "ctaid.x")] {
        write_register(&mut text, name, register);
    }
    line!(text, "  %pair = shl i64 %tile, 1");
    for (side, extra) in [("q", 0), ("kv", 1)] {
        line!(text, "  %{side}.pair = add i64 %pair, {extra}");
        line!(text, "  %{side}.pair.at = getelementptr inbounds i32, ptr{SPACE} %pairs, i64 %{side}.pair");
        line!(text, "  %{side}.block.word = load i32, ptr{SPACE} %{side}.pair.at");
        line!(text, "  %{side}.block = zext i32 %{side}.block.word to i64");
        line!(text, "  %{side}.start.at = getelementptr inbounds i32, ptr{SPACE} %{side}.offsets, i64 %{side}.block");
        line!(text, "  %{side}.start.word = load i32, ptr{SPACE} %{side}.start.at");
        line!(text, "  %{side}.offset = zext i32 %{side}.start.word to i64");
        line!(text, "  %{side}.end.at = getelementptr inbounds i32, ptr{SPACE} %{side}.start.at, i64 1");
        line!(text, "  %{side}.end.word = load i32, ptr{SPACE} %{side}.end.at");
        line!(text, "  %{side}.end = zext i32 %{side}.end.word to i64");
    }
    line!(text, "  %rows = sub i64 %q.end, %q.offset");
    line!(text, "  %columns = sub i64 %kv.end, %kv.offset");
    line!(text, "  %size = mul i64 %tile.rows, %tile.words");
    line!(text, "  %base = mul i64 %tile, %size");
    line!(text, "  %some = icmp ult i64 %thread, %size");
    line!(text, "  br i1 %some, label %item, label %done");
    line!(text, "item:");
    line!(text, "  %i = phi i64 [ %thread, %start ], [ %i.next, %store ]");
    line!(text, "  %r = udiv i64 %i, %tile.words");
    line!(text, "  %r.base = mul i64 %r, %tile.words");
    line!(text, "  %w = sub i64 %i, %r.base");
    line!(text, "  %first = shl i64 %w, 6");
    line!(text, "  %has.row = icmp ult i64 %r, %rows");
    line!(text, "  %has.column = icmp ult i64 %first, %columns");
    line!(text, "  %inside = and i1 %has.row, %has.column");
    line!(text, "  br i1 %inside, label %word.start, label %store");
    line!(text, "word.start:");
    line!(text, "  %query = add i64 %q.offset, %r");
    for leaf in 0..lowered.q.len() {
        line!(text, "  %q{leaf}.at = getelementptr inbounds i32, ptr{SPACE} %q.array{leaf}, i64 %query");
        line!(text, "  %q{leaf} = load i32, ptr{SPACE} %q{leaf}.at");
    }
    predicate::write_word(&mut text, lowered, index, "%word.start", SPACE);
    line!(text, "  br label %store");
    line!(text, "store:");
    line!(text, "  %bits = phi i64 [ 0, %item ], [ %word.next, %word.end ]");
    line!(text, "  %place = add i64 %base, %i");
    line!(text, "  %out.at = getelementptr inbounds i64, ptr{SPACE} %out, i64 %place");
    line!(text, "  store i64 %bits, ptr{SPACE} %out.at, align 8");
    line!(text, "  %i.next = add i64 %i, %threads");
    line!(text, "  %more = icmp ult i64 %i.next, %size");
    line!(text, "  br i1 %more, label %item, label %done");
    line!(text, "done:");
    line!(text, "  ret void");
    line!(text, "}}");
    text
}
