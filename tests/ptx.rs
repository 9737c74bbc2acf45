//! PTX of selector programs and token predicates: its text, and what the assembler says to it.

#![cfg(feature = "llvm")]

mod programs;

use std::path::PathBuf;
use std::process::Command;

use flashomni::codegen::emit_llvm;
use flashomni::codegen::nvptx::{Architecture, emit_ptx};
use flashomni::ir::{
    Binary, Comparison, Coordinate, Extent, Graph, Kind, Op, Reduction, Selector, SetId, Side, Type, Unary,
};
use flashomni::plan::{Predicate, Program, Role};
use flashomni::source::Span;
use programs::{Build, COLUMNS, MATRIX, ROWS};

/// Maps of reals and of truth values with every access, an exponential, a root and a division.
fn program() -> Program {
    let mut b = Build::default();
    let score = b.score(128);
    let exp = b.unary(Unary::Exp, score);
    let rows = b.reduce(Reduction::Sum, exp, Side::Key);
    let share = b.binary(Binary::Divide, exp, rows);
    let abs = b.unary(Unary::Abs, share);
    let root = b.unary(Unary::Sqrt, abs);
    let scale = b.real(0.37);
    let scaled = b.binary(Binary::Multiply, root, scale);
    let total = b.reduce(Reduction::Sum, rows, Side::Query);
    let scaled = b.binary(Binary::Divide, scaled, total);
    let sum = b.binary(Binary::Add, scaled, score);
    let amount = b.real(0.1);
    let skipped = b.select(Selector::BottomMass, sum, amount, Side::Key);
    let (mask, q, kv) = (b.mask(0, MATRIX), b.mask(1, ROWS), b.mask(2, COLUMNS));
    let on = b.truth(true);
    let outer = b.binary(Binary::And, q, kv);
    let either = b.binary(Binary::Or, mask, outer);
    let switched = b.choose(on, either, skipped);
    b.term(Role::Skip, switched);
    b.program()
}

/// `abs(t(q) - t(k)) <= 2 and (x(q) + x(k)) mod 3 == 0`, `product` makes it need 64 bits.
fn predicate(product: bool) -> Predicate {
    let mut graph = Graph::default();
    graph.axes = vec!["t".to_owned(), "x".to_owned()];
    let token = Extent::Token { q: true, kv: true };
    let mut push = |op: Op, kind| graph.push(op, Type::new(kind, token), Span::default());
    let mut int = |op| push(op, Kind::Int);
    let [tq, tk] = [Side::Query, Side::Key].map(|side| int(Op::Coordinate(Coordinate::Axis(0), side)));
    let [xq, xk] = [Side::Query, Side::Key].map(|side| int(Op::Coordinate(Coordinate::Axis(1), side)));
    let op = if product { Binary::Multiply } else { Binary::Subtract };
    let difference = int(Op::Binary(op, tq, tk));
    let distance = int(Op::Unary(Unary::Abs, difference));
    let sum = int(Op::Binary(Binary::Add, xq, xk));
    let (two, three, zero) = (int(Op::Int(2)), int(Op::Int(3)), int(Op::Int(0)));
    let rest = int(Op::Binary(Binary::Modulo, sum, three));
    let near = push(Op::Compare(Comparison::LessEqual, distance, two), Kind::Bool);
    let third = push(Op::Compare(Comparison::Equal, rest, zero), Kind::Bool);
    let both = push(Op::Binary(Binary::And, near, third), Kind::Bool);
    let text = push(Op::InSet(SetId::ALL, Side::Key), Kind::Bool);
    let value = push(Op::Binary(Binary::And, both, text), Kind::Bool);
    Predicate { graph, value }
}

fn ptx(architecture: Architecture) -> String {
    emit_ptx(&program(), &[&predicate(false), &predicate(true)], architecture).unwrap()
}

#[test]
fn arithmetic_is_rounded_operation_by_operation() {
    for architecture in Architecture::ALL {
        let text = ptx(architecture);
        let name = architecture.name();
        assert!(text.contains(&format!(".target {name}\n")), "{text}");
        for kernel in ["map0", "map1", "map2", "tile0", "tile1"] {
            assert!(text.contains(&format!(".visible .entry {kernel}(")), "{name}: {kernel}\n{text}");
        }
        for wanted in ["mul.rn.f32", "add.rn.f32", "div.rn.f32", "sqrt.rn.f32"] {
            assert!(text.contains(wanted), "{name}: no {wanted}\n{text}");
        }
        // Plain `mul.f32` and `add.f32` may be contracted by the assembler, `.ftz` flushes, `.approx` is not exact.
        for refused in ["fma", "mad.f32", "mul.f32", "add.f32", "sub.f32", ".ftz", ".approx", ".full", ".local", "call"]
        {
            assert!(!text.contains(refused), "{name}: {refused}\n{text}");
        }
    }
}

/// Launched early, a map may read nothing before it has waited, not even what its arguments promise not to change.
#[test]
fn maps_wait_before_they_read() {
    for architecture in Architecture::ALL {
        let text = ptx(architecture);
        let maps = text.split(".visible .entry ").filter(|kernel| kernel.starts_with("map"));
        for map in maps {
            let reads = map.find("ld.global").expect("a map has leaves");
            let waits = map.find("griddepcontrol.wait;");
            assert_eq!(waits.is_some(), architecture.waits(), "{map}");
            assert!(waits.is_none_or(|waits| waits < reads), "{map}");
        }
    }
}

#[test]
fn names_of_architectures() {
    for architecture in Architecture::ALL {
        assert_eq!(Architecture::from_name(architecture.name()), Some(architecture));
    }
    assert_eq!(Architecture::from_name("sm_10"), None);
}

#[test]
fn llvm_text_has_every_function() {
    let text = emit_llvm(&program(), &[&predicate(false)]).unwrap();
    for function in ["define internal float @exponential(", "define void @map0(", "define void @tile0("] {
        assert!(text.contains(function), "{text}");
    }
    assert!(!text.contains("fast") && !text.contains("contract"), "{text}");
}

fn ptxas() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("OMNI_PTXAS") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|path| path.is_file())
}

#[test]
fn assembler_accepts_the_text() {
    let Some(ptxas) = ptxas() else {
        assert!(std::env::var_os("OMNI_REQUIRE_PTXAS").is_none(), "OMNI_REQUIRE_PTXAS is set and there is no ptxas");
        eprintln!("SKIPPED: no ptxas (set OMNI_PTXAS or PATH); the PTX was not assembled");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for architecture in Architecture::ALL {
        let source = folder.path().join("selector.ptx");
        std::fs::write(&source, ptx(architecture)).unwrap();
        let output = Command::new(&ptxas)
            .args(["-v", "-arch", architecture.name(), "-o"])
            .arg(folder.path().join("selector.cubin"))
            .arg(&source)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {log}", architecture.name());
        assert!(!log.contains(" bytes spill stores") || log.contains("0 bytes spill stores"), "{log}");
    }
}
