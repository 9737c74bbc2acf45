//! Maps as LLVM IR text: a function of one element each, and the loops of a CPU around it.
//!
//! Truth values are `i1` inside of a function and bytes in memory. The text is written by hand rather than through a
//! builder: it is the same for every target, readable in tests and documentation, and LLVM's parser and verifier check it.

use std::fmt::Write as _;

use crate::ir::{Binary, Comparison, Op, Unary};
use crate::reference::math;

use super::fused::{Access, Map, Operand, Step};

/// A single-precision constant: LLVM writes those as the bits of the equal double.
pub(super) fn float(value: f32) -> String {
    format!("0x{:016X}", f64::from(value).to_bits())
}

/// Appends a line to a text; writing to a `String` cannot fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{
        let _ = writeln!($text, $($format)*);
    }};
}
pub(super) use line;

/// Intrinsics and `@exponential`, the exponential of [`math::exp_f32`].
pub(super) fn prelude() -> String {
    const SHIFT: f32 = 12_582_912.0;
    let mut text = String::new();
    line!(text, "declare float @llvm.sqrt.f32(float)");
    line!(text, "declare float @llvm.fabs.f32(float)");
    line!(text, "");
    line!(text, "; The exponential of the reference: rounding to an integer by adding 1.5 * 2^23.");
    line!(text, "define internal float @exponential(float %x) #1 {{");
    line!(text, "  %scaled = fmul float %x, {}", float(math::LOG2_E));
    line!(text, "  %shifted = fadd float %scaled, {}", float(SHIFT));
    line!(text, "  %n = fsub float %shifted, {}", float(SHIFT));
    line!(text, "  %n.high = fmul float %n, {}", float(math::LN2_HIGH));
    line!(text, "  %high = fsub float %x, %n.high");
    line!(text, "  %n.low = fmul float %n, {}", float(math::LN2_LOW));
    line!(text, "  %r = fsub float %high, %n.low");
    let mut p = float(math::EXP_COEFFICIENTS[0]);
    for (step, &coefficient) in math::EXP_COEFFICIENTS[1..].iter().enumerate() {
        line!(text, "  %m{step} = fmul float {p}, %r");
        line!(text, "  %p{step} = fadd float %m{step}, {}", float(coefficient));
        p = format!("%p{step}");
    }
    line!(text, "  %rr = fmul float %r, %r");
    line!(text, "  %prr = fmul float {p}, %rr");
    line!(text, "  %tail = fadd float %prr, %r");
    line!(text, "  %y = fadd float %tail, {}", float(1.0));
    line!(text, "  %bits = bitcast float %shifted to i32");
    line!(text, "  %i = sub i32 %bits, {}", SHIFT.to_bits());
    line!(text, "  %i.a = ashr i32 %i, 1");
    line!(text, "  %i.b = sub i32 %i, %i.a");
    for half in ["a", "b"] {
        line!(text, "  %e.{half} = add i32 %i.{half}, 127");
        line!(text, "  %s.{half} = shl i32 %e.{half}, 23");
        line!(text, "  %power.{half} = bitcast i32 %s.{half} to float");
    }
    line!(text, "  %y.a = fmul float %y, %power.a");
    line!(text, "  %y.b = fmul float %y.a, %power.b");
    line!(text, "  %under = fcmp olt float %x, {}", float(math::EXP_LOWEST));
    line!(text, "  %flushed = select i1 %under, float {}, float %y.b", float(0.0));
    line!(text, "  %over = fcmp ogt float %x, {}", float(math::EXP_HIGHEST));
    line!(text, "  %bounded = select i1 %over, float {}, float %flushed", float(f32::INFINITY));
    line!(text, "  %nan = fcmp uno float %x, %x");
    line!(text, "  %result = select i1 %nan, float %x, float %bounded");
    line!(text, "  ret float %result");
    line!(text, "}}");
    text
}

fn type_of(is_bool: bool) -> &'static str {
    if is_bool { "i1" } else { "float" }
}

/// Arguments of a value function: leaves, then uniforms, with their types and `%` names.
fn arguments(map: &Map) -> String {
    let leaves = map.leaf_is_bool.iter().enumerate().map(|(n, &is_bool)| format!("{} %leaf{n}", type_of(is_bool)));
    let uniforms =
        map.uniform_is_bool.iter().enumerate().map(|(n, &is_bool)| format!("{} %uniform{n}", type_of(is_bool)));
    leaves.chain(uniforms).collect::<Vec<_>>().join(", ")
}

/// `@map{index}.value`: one element of the root from one element of each leaf and the uniforms.
pub(super) fn value_function(map: &Map, index: usize) -> String {
    let mut text = String::new();
    let result = type_of(map.is_bool);
    line!(text, "\ndefine internal {result} @map{index}.value({}) #1 {{", arguments(map));
    let mut names: Vec<String> = Vec::new();
    for (number, step) in map.body.iter().enumerate() {
        let name = write_step(&mut text, map, step, number, &names);
        names.push(name);
    }
    line!(text, "  ret {result} {}", names.last().map_or("poison", String::as_str));
    line!(text, "}}");
    text
}

/// Writes an operation and gives the name of its result.
fn write_step(text: &mut String, map: &Map, step: &Step, number: usize, names: &[String]) -> String {
    let operand = |n: usize| match step.operands[n] {
        Operand::Leaf(leaf) => (format!("%leaf{leaf}"), map.leaf_is_bool[leaf]),
        Operand::Uniform(uniform) => (format!("%uniform{uniform}"), map.uniform_is_bool[uniform]),
        Operand::Step(step) => (names[step].clone(), map.body[step].is_bool),
    };
    let result = format!("%v{number}");
    let (a, a_is_bool) = operand(0);
    match &step.op {
        Op::Unary(Unary::Not, _) => line!(text, "  {result} = xor i1 {a}, true"),
        Op::Unary(Unary::Negate, _) => line!(text, "  {result} = fneg float {a}"),
        Op::Unary(Unary::Abs, _) => line!(text, "  {result} = call float @llvm.fabs.f32(float {a})"),
        Op::Unary(Unary::Sqrt, _) => line!(text, "  {result} = call float @llvm.sqrt.f32(float {a})"),
        Op::Unary(Unary::Exp, _) => line!(text, "  {result} = call float @exponential(float {a})"),
        Op::Unary(Unary::ToReal, _) if a_is_bool => line!(text, "  {result} = uitofp i1 {a} to float"),
        Op::Binary(op, ..) => write_binary(text, *op, &result, &a, &operand(1).0),
        Op::Compare(op, ..) if a_is_bool => write_truth_comparison(text, *op, &result, &a, &operand(1).0),
        Op::Compare(op, ..) => {
            let code = match op {
                Comparison::Equal => "oeq",
                Comparison::NotEqual => "une",
                Comparison::Less => "olt",
                Comparison::LessEqual => "ole",
            };
            line!(text, "  {result} = fcmp {code} float {a}, {}", operand(1).0);
        }
        Op::Choose(..) => {
            let ty = type_of(step.is_bool);
            line!(text, "  {result} = select i1 {a}, {ty} {}, {ty} {}", operand(1).0, operand(2).0);
        }
        // A real as a real; `check_program` lets nothing else through.
        _ => return a,
    }
    result
}

fn write_binary(text: &mut String, op: Binary, result: &str, a: &str, b: &str) {
    let code = match op {
        Binary::Add => "fadd float",
        Binary::Subtract => "fsub float",
        Binary::Multiply => "fmul float",
        Binary::And => "and i1",
        Binary::Or => "or i1",
        Binary::Xor => "xor i1",
        Binary::Min | Binary::Max => {
            let code = if op == Binary::Min { "olt" } else { "ogt" };
            line!(text, "  {result}.first = fcmp {code} float {a}, {b}");
            line!(text, "  {result} = select i1 {result}.first, float {a}, float {b}");
            return;
        }
        // `check_program` lets no other operation through.
        Binary::Divide | Binary::FloorDivide | Binary::Modulo | Binary::Power => "fdiv float",
    };
    line!(text, "  {result} = {code} {a}, {b}");
}

fn write_truth_comparison(text: &mut String, op: Comparison, result: &str, a: &str, b: &str) {
    match op {
        Comparison::Equal => line!(text, "  {result} = icmp eq i1 {a}, {b}"),
        Comparison::NotEqual => line!(text, "  {result} = xor i1 {a}, {b}"),
        Comparison::Less => line!(text, "  {result} = icmp ult i1 {a}, {b}"),
        Comparison::LessEqual => line!(text, "  {result} = icmp ule i1 {a}, {b}"),
    }
}

/// The value functions of maps and the loops of a CPU around them. Functions carry attributes `#0`, those to be inlined
/// `#1`; the caller defines both.
pub(super) fn host_module(maps: &[Map]) -> String {
    let mut text = prelude();
    for (index, map) in maps.iter().enumerate() {
        text.push_str(&value_function(map, index));
        text.push_str(&host_loop(map, index));
    }
    text
}

/// Loads an element as a value function takes it.
pub(super) fn write_load(text: &mut String, name: &str, is_bool: bool, pointer: &str, index: &str, space: &str) {
    let memory = if is_bool { "i8" } else { "float" };
    line!(text, "  {name}.at = getelementptr inbounds {memory}, ptr{space} {pointer}, i64 {index}");
    if is_bool {
        line!(text, "  {name}.byte = load i8, ptr{space} {name}.at");
        line!(text, "  {name} = icmp ne i8 {name}.byte, 0");
    } else {
        line!(text, "  {name} = load float, ptr{space} {name}.at");
    }
}

/// Calls the value function and stores its result at `%index` of `%out`.
pub(super) fn write_element(text: &mut String, map: &Map, index: usize, space: &str) {
    let result = type_of(map.is_bool);
    line!(text, "  %value = call {result} @map{index}.value({})", arguments(map));
    let memory = if map.is_bool { "i8" } else { "float" };
    line!(text, "  %out.at = getelementptr inbounds {memory}, ptr{space} %out, i64 %index");
    if map.is_bool {
        line!(text, "  %byte = zext i1 %value to i8");
        line!(text, "  store i8 %byte, ptr{space} %out.at");
    } else {
        line!(text, "  store float %value, ptr{space} %out.at");
    }
}

/// `@map{index}(out, leaves, uniforms, rows, columns)`: `leaves` is an array of pointers, `uniforms` of floats.
///
/// The loops stand in an inner function whose pointers are `noalias`; inlining it tells the vectoriser that the
/// result overlaps no leaf, without a check at run time.
fn host_loop(map: &Map, index: usize) -> String {
    let mut text = String::new();
    let pointers: Vec<String> = (0..map.leaves.len()).map(|n| format!("ptr noalias readonly %array{n}")).collect();
    let uniforms: Vec<String> = map
        .uniform_is_bool
        .iter()
        .enumerate()
        .map(|(n, &is_bool)| format!("{} %uniform{n}", type_of(is_bool)))
        .collect();
    let parameters = |separator: &str| {
        pointers.iter().chain(&uniforms).map(|parameter| format!("{separator}{parameter}")).collect::<String>()
    };
    line!(
        text,
        "\ndefine internal void @map{index}.loop(ptr noalias %out, i64 %rows, i64 %columns{}) #1 {{",
        parameters(", ")
    );
    let leaves = |text: &mut String, access: Access, position: &str| {
        for leaf in (0..map.leaves.len()).filter(|&leaf| map.access[leaf] == access) {
            write_load(text, &format!("%leaf{leaf}"), map.leaf_is_bool[leaf], &format!("%array{leaf}"), position, "");
        }
    };
    line!(text, "start:");
    // A single value is there even where the result has no elements.
    leaves(&mut text, Access::One, "0");
    line!(text, "  %some.rows = icmp ne i64 %rows, 0");
    line!(text, "  %some.columns = icmp ne i64 %columns, 0");
    line!(text, "  %some = and i1 %some.rows, %some.columns");
    line!(text, "  br i1 %some, label %row, label %done");
    line!(text, "row:");
    line!(text, "  %r = phi i64 [ 0, %start ], [ %r.next, %row.end ]");
    line!(text, "  %base = mul nuw nsw i64 %r, %columns");
    leaves(&mut text, Access::Row, "%r");
    line!(text, "  br label %column");
    line!(text, "column:");
    line!(text, "  %c = phi i64 [ 0, %row ], [ %c.next, %column ]");
    line!(text, "  %index = add nuw nsw i64 %base, %c");
    leaves(&mut text, Access::Column, "%c");
    leaves(&mut text, Access::Element, "%index");
    write_element(&mut text, map, index, "");
    line!(text, "  %c.next = add nuw nsw i64 %c, 1");
    line!(text, "  %c.last = icmp eq i64 %c.next, %columns");
    line!(text, "  br i1 %c.last, label %row.end, label %column");
    line!(text, "row.end:");
    line!(text, "  %r.next = add nuw nsw i64 %r, 1");
    line!(text, "  %r.last = icmp eq i64 %r.next, %rows");
    line!(text, "  br i1 %r.last, label %done, label %row");
    line!(text, "done:");
    line!(text, "  ret void");
    line!(text, "}}");

    line!(text, "\ndefine void @map{index}(ptr %out, ptr %leaves, ptr %uniforms, i64 %rows, i64 %columns) #0 {{");
    for leaf in 0..map.leaves.len() {
        line!(text, "  %slot{leaf} = getelementptr inbounds ptr, ptr %leaves, i64 {leaf}");
        line!(text, "  %array{leaf} = load ptr, ptr %slot{leaf}");
    }
    for (uniform, &is_bool) in map.uniform_is_bool.iter().enumerate() {
        write_uniform(&mut text, uniform, is_bool, &uniform.to_string(), "");
    }
    let given: String = parameters(", ").replace(" noalias readonly", "");
    line!(text, "  call void @map{index}.loop(ptr %out, i64 %rows, i64 %columns{given})");
    line!(text, "  ret void");
    line!(text, "}}");
    text
}

/// Loads a uniform from the array of floats at `%uniforms`.
pub(super) fn write_uniform(text: &mut String, uniform: usize, is_bool: bool, index: &str, space: &str) {
    let name = format!("%uniform{uniform}");
    line!(text, "  {name}.at = getelementptr inbounds float, ptr{space} %uniforms, i64 {index}");
    if is_bool {
        line!(text, "  {name}.real = load float, ptr{space} {name}.at");
        line!(text, "  {name} = fcmp une float {name}.real, {}", float(0.0));
    } else {
        line!(text, "  {name} = load float, ptr{space} {name}.at");
    }
}
