//! Token predicates as LLVM IR text: a function of one pair of tokens, and loops that fill the bit tile of one block.
//!
//! Integers of the language have 64 bits and saturate. An analysis of ranges, from the largest number of tokens on, shows
//! for every predicate of practice that 32 bits suffice and nothing saturates, so that the code uses plain instructions on
//! the narrower type; where 62 bits do not suffice there is no lowering, and the predicate is interpreted.

use std::fmt::Write as _;

use crate::error::{Error, Result};
use crate::ir::{Binary, Comparison, Coordinate, Kind, Op, SetId, Side, Unary, ValueId};
use crate::plan::Predicate;

use super::expr::line;

/// A number of tokens that no model exceeds, for code that is generated before the model is known.
pub const MOST_TOKENS: u32 = 1 << 24;

/// What a token array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLeaf {
    /// A coordinate.
    Coordinate(Coordinate),
    /// 1 for tokens of the set, else 0.
    InSet(SetId),
}

/// A predicate whose code can be written.
#[derive(Clone, Debug)]
pub struct Lowered {
    predicate: Predicate,
    /// Values it needs, operands first.
    live: Vec<ValueId>,
    /// Bits of its integers, 32 or 64.
    width: u32,
    /// Arrays over query tokens, `i32`.
    pub q: Vec<TokenLeaf>,
    /// Arrays over key tokens, `i32`.
    pub kv: Vec<TokenLeaf>,
}

type Range = (i128, i128);

/// Analyses a predicate over at most `tokens` tokens.
///
/// # Errors
/// [`Error::Unavailable`] for operations without code: reals, tables, powers, integers beyond 62 bits.
pub fn lower(predicate: &Predicate, tokens: u32) -> Result<Lowered> {
    let graph = &predicate.graph;
    let mut is_live = vec![false; graph.len()];
    is_live[predicate.value.0 as usize] = true;
    for index in (0..is_live.len()).rev().filter(|&index| index <= predicate.value.0 as usize) {
        if is_live[index] {
            for operand in graph.op(ValueId(index as u32)).operands() {
                is_live[operand.0 as usize] = true;
            }
        }
    }
    let live: Vec<ValueId> =
        (0..is_live.len()).filter(|&index| is_live[index]).map(|index| ValueId(index as u32)).collect();
    let mut lowered = Lowered { predicate: predicate.clone(), live, width: 32, q: Vec::new(), kv: Vec::new() };
    if graph.ty(predicate.value).kind != Kind::Bool {
        return Err(no_code("a predicate that is no truth value"));
    }
    let mut ranges: Vec<Range> = vec![(0, 0); graph.len()];
    for &id in &lowered.live {
        if let Op::Coordinate(coordinate, side) = graph.op(id) {
            add(
                if *side == Side::Query { &mut lowered.q } else { &mut lowered.kv },
                TokenLeaf::Coordinate(*coordinate),
            );
        }
        if let Op::InSet(set, side) = graph.op(id) {
            add(if *side == Side::Query { &mut lowered.q } else { &mut lowered.kv }, TokenLeaf::InSet(*set));
        }
        let range = range(predicate, id, &ranges, tokens)?;
        if range.0 < -(1 << 62) || range.1 > 1 << 62 {
            return Err(no_code("integers beyond 62 bits"));
        }
        if range.0 < i128::from(i32::MIN) + 1 || range.1 > i128::from(i32::MAX) {
            lowered.width = 64;
        }
        ranges[id.0 as usize] = range;
    }
    Ok(lowered)
}

fn add(leaves: &mut Vec<TokenLeaf>, leaf: TokenLeaf) {
    if !leaves.contains(&leaf) {
        leaves.push(leaf);
    }
}

fn no_code(what: &str) -> Error {
    Error::Unavailable(format!("there is no machine code for {what} in a token predicate"))
}

/// The smallest and the largest value; (0, 0) for truth values.
fn range(predicate: &Predicate, id: ValueId, ranges: &[Range], tokens: u32) -> Result<Range> {
    let graph = &predicate.graph;
    let of = |id: &ValueId| ranges[id.0 as usize];
    let kind = |id: &ValueId| graph.ty(*id).kind;
    if graph.op(id).operands().iter().any(|operand| kind(operand) == Kind::Real) {
        return Err(no_code("reals"));
    }
    Ok(match graph.op(id) {
        Op::Bool(_) | Op::InSet(..) | Op::Compare(..) => (0, 0),
        Op::Int(value) => (i128::from(*value), i128::from(*value)),
        Op::Coordinate(..) => (0, i128::from(tokens)),
        Op::Unary(Unary::Not, _) => (0, 0),
        Op::Unary(Unary::Negate, a) => (-of(a).1, -of(a).0),
        Op::Unary(Unary::Abs, a) => (0, largest(of(a))),
        Op::Unary(Unary::BitLength, _) => (0, 64),
        Op::Unary(Unary::Floor | Unary::Ceil | Unary::Round, a) => of(a),
        Op::Binary(_, a, _) if kind(a) == Kind::Bool => (0, 0),
        Op::Binary(op, a, b) => binary_range(*op, of(a), of(b))?,
        Op::Choose(_, a, b) => (of(a).0.min(of(b).0), of(a).1.max(of(b).1)),
        Op::Table { .. } => return Err(no_code("tables")),
        _ => return Err(no_code("reals")),
    })
}

fn largest((low, high): Range) -> i128 {
    low.abs().max(high.abs())
}

fn binary_range(op: Binary, a: Range, b: Range) -> Result<Range> {
    let positive = a.0 >= 0 && b.0 >= 0;
    Ok(match op {
        Binary::Add => (a.0 + b.0, a.1 + b.1),
        Binary::Subtract => (a.0 - b.1, a.1 - b.0),
        Binary::Multiply => {
            let corners = [a.0 * b.0, a.0 * b.1, a.1 * b.0, a.1 * b.1];
            corners.iter().fold((corners[0], corners[0]), |(low, high), &c| (low.min(c), high.max(c)))
        }
        Binary::Divide | Binary::FloorDivide if positive => (0, a.1),
        Binary::Divide | Binary::FloorDivide => (-largest(a), largest(a)),
        Binary::Modulo => (b.0.min(0), b.1.max(0)),
        Binary::Min => (a.0.min(b.0), a.1.min(b.1)),
        Binary::Max => (a.0.max(b.0), a.1.max(b.1)),
        Binary::Xor => {
            let bits = 128 - largest(a).max(largest(b)).leading_zeros();
            (if positive { 0 } else { -(1 << bits) }, (1 << bits) - 1)
        }
        Binary::Power => return Err(no_code("powers")),
        Binary::And | Binary::Or => return Err(no_code("`and` and `or` of integers")),
    })
}

/// `@tile{index}.value`: whether a pair satisfies the predicate, from the elements of its arrays.
pub(super) fn value_function(lowered: &Lowered, index: usize) -> String {
    let mut text = String::new();
    line!(text, "\ndefine internal i1 @tile{index}.value({}) #1 {{", arguments(lowered));
    for &id in &lowered.live {
        write_value(&mut text, lowered, id);
    }
    line!(text, "  ret i1 {}", name(lowered, lowered.predicate.value));
    line!(text, "}}");
    text
}

/// Declarations that value functions need, once for a module.
pub(super) fn declarations() -> &'static str {
    "declare i32 @llvm.ctlz.i32(i32, i1 immarg)\ndeclare i64 @llvm.ctlz.i64(i64, i1 immarg)\n"
}

fn arguments(lowered: &Lowered) -> String {
    let of =
        |side: &str, leaves: &[TokenLeaf]| (0..leaves.len()).map(|n| format!("i32 %{side}{n}")).collect::<Vec<_>>();
    [of("q", &lowered.q), of("kv", &lowered.kv)].concat().join(", ")
}

fn name(lowered: &Lowered, id: ValueId) -> String {
    match lowered.predicate.graph.op(id) {
        Op::Bool(value) => value.to_string(),
        Op::Int(value) => value.to_string(),
        Op::Unary(Unary::Floor | Unary::Ceil | Unary::Round, a) => name(lowered, *a),
        _ => format!("%v{}", id.0),
    }
}

fn leaf_name(lowered: &Lowered, leaf: TokenLeaf, side: Side) -> String {
    let (leaves, side) = if side == Side::Query { (&lowered.q, "q") } else { (&lowered.kv, "kv") };
    let position = leaves.iter().position(|&other| other == leaf).unwrap_or(0);
    format!("%{side}{position}")
}

fn write_value(text: &mut String, lowered: &Lowered, id: ValueId) {
    let graph = &lowered.predicate.graph;
    let result = name(lowered, id);
    let width = lowered.width;
    let int = format!("i{width}");
    let is_bool = |id: &ValueId| graph.ty(*id).kind == Kind::Bool;
    let of = |id: &ValueId| name(lowered, *id);
    match graph.op(id) {
        Op::Coordinate(coordinate, side) => {
            let leaf = leaf_name(lowered, TokenLeaf::Coordinate(*coordinate), *side);
            if width == 32 {
                line!(text, "  {result} = add i32 {leaf}, 0");
            } else {
                line!(text, "  {result} = sext i32 {leaf} to i64");
            }
        }
        Op::InSet(set, side) => {
            line!(text, "  {result} = icmp ne i32 {}, 0", leaf_name(lowered, TokenLeaf::InSet(*set), *side));
        }
        Op::Unary(Unary::Not, a) => line!(text, "  {result} = xor i1 {}, true", of(a)),
        Op::Unary(Unary::Negate, a) => line!(text, "  {result} = sub {int} 0, {}", of(a)),
        Op::Unary(Unary::Abs, a) => {
            line!(text, "  {result}.minus = sub {int} 0, {}", of(a));
            line!(text, "  {result}.below = icmp slt {int} {}, 0", of(a));
            line!(text, "  {result} = select i1 {result}.below, {int} {result}.minus, {int} {}", of(a));
        }
        Op::Unary(Unary::BitLength, a) => {
            line!(text, "  {result}.above = icmp sgt {int} {}, 0", of(a));
            line!(text, "  {result}.bits = select i1 {result}.above, {int} {}, {int} 0", of(a));
            line!(text, "  {result}.zeros = call {int} @llvm.ctlz.{int}({int} {result}.bits, i1 false)");
            line!(text, "  {result} = sub {int} {width}, {result}.zeros");
        }
        Op::Binary(op, a, b) if is_bool(a) => {
            let code = match op {
                Binary::And => "and",
                Binary::Or => "or",
                _ => "xor",
            };
            line!(text, "  {result} = {code} i1 {}, {}", of(a), of(b));
        }
        Op::Binary(op, a, b) => write_integer(text, *op, &result, &int, &of(a), &of(b)),
        Op::Compare(op, a, b) => {
            let (ty, less) = if is_bool(a) { ("i1", "u") } else { (int.as_str(), "s") };
            let code = match op {
                Comparison::Equal => "eq".to_owned(),
                Comparison::NotEqual => "ne".to_owned(),
                Comparison::Less => format!("{less}lt"),
                Comparison::LessEqual => format!("{less}le"),
            };
            line!(text, "  {result} = icmp {code} {ty} {}, {}", of(a), of(b));
        }
        Op::Choose(condition, a, b) => {
            let ty = if is_bool(a) { "i1" } else { int.as_str() };
            line!(text, "  {result} = select i1 {}, {ty} {}, {ty} {}", of(condition), of(a), of(b));
        }
        // Constants and integers that are rounded have no instruction.
        _ => {}
    }
}

fn write_integer(text: &mut String, op: Binary, result: &str, int: &str, a: &str, b: &str) {
    let code = match op {
        Binary::Add => "add",
        Binary::Subtract => "sub",
        Binary::Multiply => "mul",
        Binary::Xor | Binary::And | Binary::Or => "xor",
        Binary::Min | Binary::Max => {
            let code = if op == Binary::Min { "slt" } else { "sgt" };
            line!(text, "  {result}.first = icmp {code} {int} {a}, {b}");
            line!(text, "  {result} = select i1 {result}.first, {int} {a}, {int} {b}");
            return;
        }
        Binary::Divide | Binary::FloorDivide | Binary::Modulo | Binary::Power => {
            // Truncated division by 1 in place of 0, then one step down where the signs of remainder and divisor differ.
            line!(text, "  {result}.zero = icmp eq {int} {b}, 0");
            line!(text, "  {result}.by = select i1 {result}.zero, {int} 1, {int} {b}");
            line!(text, "  {result}.rest = srem {int} {a}, {result}.by");
            line!(text, "  {result}.some = icmp ne {int} {result}.rest, 0");
            line!(text, "  {result}.signs = xor {int} {result}.rest, {result}.by");
            line!(text, "  {result}.differ = icmp slt {int} {result}.signs, 0");
            line!(text, "  {result}.down = and i1 {result}.some, {result}.differ");
            if op == Binary::Modulo {
                line!(text, "  {result}.up = add {int} {result}.rest, {result}.by");
                line!(text, "  {result}.mod = select i1 {result}.down, {int} {result}.up, {int} {result}.rest");
            } else {
                line!(text, "  {result}.quotient = sdiv {int} {a}, {result}.by");
                line!(text, "  {result}.less = sub {int} {result}.quotient, 1");
                line!(text, "  {result}.mod = select i1 {result}.down, {int} {result}.less, {int} {result}.quotient");
            }
            line!(text, "  {result} = select i1 {result}.zero, {int} 0, {int} {result}.mod");
            return;
        }
    };
    line!(text, "  {result} = {code} {int} {a}, {b}");
}

/// Writes the word of up to 64 bits of a row: expects `%first` (its first column), `%columns` (more than `%first`) and
/// the row's elements `%q{n}`; leaves the word in `%word.next` at label `word.end`. Key elements are read at
/// `%kv.offset` plus the column.
pub(super) fn write_word(text: &mut String, lowered: &Lowered, index: usize, from: &str, space: &str) {
    line!(text, "  %left = sub i64 %columns, %first");
    line!(text, "  %short = icmp ult i64 %left, 64");
    line!(text, "  %count = select i1 %short, i64 %left, i64 64");
    line!(text, "  br label %bit");
    line!(text, "bit:");
    line!(text, "  %b = phi i64 [ 0, {from} ], [ %b.next, %bit ]");
    line!(text, "  %word = phi i64 [ 0, {from} ], [ %word.next, %bit ]");
    line!(text, "  %within = add nuw nsw i64 %first, %b");
    line!(text, "  %key = add nuw nsw i64 %kv.offset, %within");
    for leaf in 0..lowered.kv.len() {
        line!(text, "  %kv{leaf}.at = getelementptr inbounds i32, ptr{space} %kv.array{leaf}, i64 %key");
        line!(text, "  %kv{leaf} = load i32, ptr{space} %kv{leaf}.at");
    }
    line!(text, "  %holds = call i1 @tile{index}.value({})", arguments(lowered));
    line!(text, "  %one = zext i1 %holds to i64");
    line!(text, "  %placed = shl nuw i64 %one, %b");
    line!(text, "  %word.next = or i64 %word, %placed");
    line!(text, "  %b.next = add nuw nsw i64 %b, 1");
    line!(text, "  %b.last = icmp eq i64 %b.next, %count");
    line!(text, "  br i1 %b.last, label %word.end, label %bit");
    line!(text, "word.end:");
}

/// `@tile{index}(out, q, kv, rows, columns)`: `q` and `kv` are arrays of pointers to arrays of `i32`; `out` gets
/// `ceil(columns / 64)` words for each row. Rows and columns are at least 1.
pub(super) fn host_loop(lowered: &Lowered, index: usize) -> String {
    let mut text = String::new();
    line!(text, "\ndefine void @tile{index}(ptr noalias %out, ptr %q, ptr %kv, i64 %rows, i64 %columns) #0 {{");
    line!(text, "start:");
    line!(text, "  %kv.offset = add i64 0, 0");
    for (side, leaves) in [("q", &lowered.q), ("kv", &lowered.kv)] {
        for leaf in 0..leaves.len() {
            line!(text, "  %{side}.slot{leaf} = getelementptr inbounds ptr, ptr %{side}, i64 {leaf}");
            line!(text, "  %{side}.array{leaf} = load ptr, ptr %{side}.slot{leaf}");
        }
    }
    line!(text, "  %columns.up = add i64 %columns, 63");
    line!(text, "  %words = lshr i64 %columns.up, 6");
    line!(text, "  br label %row");
    line!(text, "row:");
    line!(text, "  %r = phi i64 [ 0, %start ], [ %r.next, %row.end ]");
    line!(text, "  %base = mul nuw nsw i64 %r, %words");
    for leaf in 0..lowered.q.len() {
        line!(text, "  %q{leaf}.at = getelementptr inbounds i32, ptr %q.array{leaf}, i64 %r");
        line!(text, "  %q{leaf} = load i32, ptr %q{leaf}.at");
    }
    line!(text, "  br label %word.start");
    line!(text, "word.start:");
    line!(text, "  %w = phi i64 [ 0, %row ], [ %w.next, %word.end ]");
    line!(text, "  %first = shl nuw nsw i64 %w, 6");
    write_word(&mut text, lowered, index, "%word.start", "");
    line!(text, "  %index = add nuw nsw i64 %base, %w");
    line!(text, "  %out.at = getelementptr inbounds i64, ptr %out, i64 %index");
    line!(text, "  store i64 %word.next, ptr %out.at, align 8");
    line!(text, "  %w.next = add nuw nsw i64 %w, 1");
    line!(text, "  %w.last = icmp eq i64 %w.next, %words");
    line!(text, "  br i1 %w.last, label %row.end, label %word.start");
    line!(text, "row.end:");
    line!(text, "  %r.next = add nuw nsw i64 %r, 1");
    line!(text, "  %r.last = icmp eq i64 %r.next, %rows");
    line!(text, "  br i1 %r.last, label %done, label %row");
    line!(text, "done:");
    line!(text, "  ret void");
    line!(text, "}}");
    text
}
