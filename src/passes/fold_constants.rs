//! Operations on constants become constants; truth values are simplified.

use crate::ir::scalar::{self, At, NoTokens};
use crate::ir::typing::type_of;
use crate::ir::{Binary, Extent, Graph, Kind, Lower, Op, SetId, Strategy, Type, Unary, ValueId};
use crate::source::Span;

/// Folds every value whose operands are constants, and `and`, `or`, `not`, `choose` with one constant operand.
pub fn fold_constants(strategy: &mut Strategy) {
    strategy.rewrite(|new, old, id, op| {
        let value = old.value(id);
        push_folded(new, op, value.ty, value.span)
    });
}

/// Adds an operation to a graph, folded. `ty` is its type over the operands it had; a token value that turned out to
/// be one truth value makes what is computed from it smaller too.
pub fn push_folded(graph: &mut Graph, op: Op, ty: Type, span: Span) -> ValueId {
    let ty = if op.is_elementwise() || matches!(op, Op::Lower(..)) { type_of(graph, &op).unwrap_or(ty) } else { ty };
    if let Some(id) = simplified(graph, &op, ty, span) {
        return id;
    }
    if ty.extent == Extent::Scalar && is_foldable(graph, &op) {
        let id = graph.push(op, ty, span);
        let constant = scalar::evaluate(graph, id, At::default(), &NoTokens);
        return graph.push(constant.op(), Type::scalar(constant.kind()), span);
    }
    graph.push(op, ty, span)
}

fn is_constant(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.op(id), Op::Bool(_) | Op::Int(_) | Op::Real(_))
}

fn is_foldable(graph: &Graph, op: &Op) -> bool {
    let pure = op.is_elementwise() || matches!(op, Op::Table { .. });
    pure && op.operands().iter().all(|&id| is_constant(graph, id))
}

/// The value an operation with a constant truth operand is, where it is one that exists.
fn simplified(graph: &mut Graph, op: &Op, ty: Type, span: Span) -> Option<ValueId> {
    let truth = |id: ValueId| match graph.op(id) {
        Op::Bool(value) => Some(*value),
        _ => None,
    };
    match *op {
        Op::Binary(Binary::And, a, b) => match (truth(a), truth(b)) {
            (Some(false), _) => Some(a),
            (_, Some(false)) => Some(b),
            (Some(true), _) => Some(b),
            (_, Some(true)) => Some(a),
            _ => (a == b).then_some(a),
        },
        Op::Binary(Binary::Or, a, b) => match (truth(a), truth(b)) {
            (Some(true), _) => Some(a),
            (_, Some(true)) => Some(b),
            (Some(false), _) => Some(b),
            (_, Some(false)) => Some(a),
            _ => (a == b).then_some(a),
        },
        Op::Unary(Unary::Not, a) => match *graph.op(a) {
            Op::Unary(Unary::Not, inner) => Some(inner),
            _ => None,
        },
        Op::Choose(condition, a, b) => {
            let chosen = match truth(condition) {
                Some(true) => a,
                Some(false) => b,
                None => return None,
            };
            (graph.ty(chosen) == ty).then_some(chosen)
        }
        // Blocks of fewer rows do not satisfy what the others do.
        Op::Lower(Lower::Density { .. }, a) => (truth(a) == Some(false)).then_some(a),
        Op::Lower(_, a) => truth(a).map(|_| a),
        Op::InSet(SetId::ALL, _) => Some(graph.push(Op::Bool(true), Type::scalar(Kind::Bool), span)),
        Op::Embed(a) => (graph.ty(a).extent == ty.extent).then_some(a),
        _ => None,
    }
}
