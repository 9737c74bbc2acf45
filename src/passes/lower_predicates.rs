//! Predicates of tokens become predicates of blocks.
//!
//! A rule's predicate joins token values (geometry) and block values (selections) by `and`, `or` and `not`. "Some pair
//! of the block satisfies it" distributes over `or`, and over `and` where one operand is the same for
//! all pairs of a block; so the predicate is brought into a form where every `and` has at most one token operand
//! (for "all pairs": every `or`), and the largest token values left are wrapped in [`Op::Lower`].
//! Exact rules keep their token predicate: classes unite them first.

use crate::ir::typing::type_of;
use crate::ir::{Binary, Extent, Graph, Lower, Op, Strategy, Unary, ValueId};

/// Lowers the predicate of every rule that is not exact.
pub fn lower_predicates(strategy: &mut Strategy) {
    let graph = &mut strategy.graph;
    for rule in &mut strategy.rules {
        if rule.lower != Lower::Exact {
            rule.predicate = lowered(graph, rule.predicate, rule.lower);
        }
    }
}

fn is_mixed(graph: &Graph, id: ValueId) -> bool {
    graph.ty(id).extent == Extent::Mixed
}

fn has_tokens(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.ty(id).extent, Extent::Mixed | Extent::Token { .. })
}

fn push(graph: &mut Graph, op: Op, like: ValueId) -> ValueId {
    let span = graph.value(like).span;
    match type_of(graph, &op) {
        Ok(ty) => super::fold_constants::push_folded(graph, op, ty, span),
        // Truth values of any extents may be joined; the validator holds the checker to it.
        Err(_) => like,
    }
}

fn lowered(graph: &mut Graph, id: ValueId, how: Lower) -> ValueId {
    let counts = matches!(how, Lower::Density { .. }) && graph.ty(id).extent == Extent::Scalar;
    if !has_tokens(graph, id) && !counts {
        return id;
    }
    if !is_mixed(graph, id) {
        return push(graph, Op::Lower(how, id), id);
    }
    // The operation that lowering distributes over, and the one it does only for one token operand.
    let (free, bound) = if how == Lower::All { (Binary::And, Binary::Or) } else { (Binary::Or, Binary::And) };
    let normal = negation_normal(graph, id, false);
    let (op, a, b) = match *graph.op(normal) {
        Op::Binary(op, a, b) if is_mixed(graph, normal) => (op, a, b),
        _ => return lowered(graph, normal, how),
    };
    if op == free || how == Lower::Centre || !has_tokens(graph, a) || !has_tokens(graph, b) {
        let (a, b) = (lowered(graph, a, how), lowered(graph, b, how));
        return push(graph, Op::Binary(op, a, b), id);
    }
    // Both have tokens, and one of them is mixed: distribute over its operands.
    let (mixed, other) = if is_mixed(graph, a) { (a, b) } else { (b, a) };
    let (inner, x, y) = match *graph.op(mixed) {
        Op::Binary(inner, x, y) => (inner, x, y),
        _ => return lowered(graph, other, how),
    };
    if inner == bound {
        // (x and y) and other: gather the tokens of all three on one side.
        let (block, token) = if has_tokens(graph, x) { (y, x) } else { (x, y) };
        if !has_tokens(graph, block) {
            let tokens = push(graph, Op::Binary(bound, token, other), id);
            let (tokens, block) = (lowered(graph, tokens, how), block);
            return push(graph, Op::Binary(bound, block, tokens), id);
        }
        let (deep, shallow) = if is_mixed(graph, x) { (x, y) } else { (y, x) };
        let rest = push(graph, Op::Binary(bound, shallow, other), id);
        let regrouped = push(graph, Op::Binary(bound, deep, rest), id);
        return lowered(graph, regrouped, how);
    }
    let first = push(graph, Op::Binary(bound, x, other), id);
    let second = push(graph, Op::Binary(bound, y, other), id);
    let (first, second) = (lowered(graph, first, how), lowered(graph, second, how));
    push(graph, Op::Binary(free, first, second), id)
}

/// `not` moved down to where tokens and blocks are no longer mixed; `xor` of mixed values written out.
fn negation_normal(graph: &mut Graph, id: ValueId, negate: bool) -> ValueId {
    if !is_mixed(graph, id) {
        return if negate { push(graph, Op::Unary(Unary::Not, id), id) } else { id };
    }
    match *graph.op(id) {
        Op::Unary(Unary::Not, a) => negation_normal(graph, a, !negate),
        Op::Binary(op @ (Binary::And | Binary::Or), a, b) => {
            let (a, b) = (negation_normal(graph, a, negate), negation_normal(graph, b, negate));
            let op = match (op, negate) {
                (Binary::And, true) => Binary::Or,
                (Binary::Or, true) => Binary::And,
                (op, _) => op,
            };
            push(graph, Op::Binary(op, a, b), id)
        }
        Op::Binary(_, a, b) => {
            let (yes_a, no_a) = (negation_normal(graph, a, false), negation_normal(graph, a, true));
            let (yes_b, no_b) = (negation_normal(graph, b, false), negation_normal(graph, b, true));
            let (with, without) = if negate { (yes_b, no_b) } else { (no_b, yes_b) };
            let first = push(graph, Op::Binary(Binary::And, yes_a, with), id);
            let second = push(graph, Op::Binary(Binary::And, no_a, without), id);
            push(graph, Op::Binary(Binary::Or, first, second), id)
        }
        _ => id,
    }
}
