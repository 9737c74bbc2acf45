//! A predicate prepared for evaluation over ranges of tokens.
//!
//! What speaks of one side alone (the tile of a query, its clamped centre, ...) is computed once for every token and is a
//! leaf from then on: exact in every range, and computed neither per block nor per pair.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::evaluator::{Evaluator, Part};
use super::interval::{Interval, integer};
use crate::geometry::tokens::TokenTable;
use crate::ir::scalar::{self, Scalar};
use crate::ir::{Extent, Graph, Kind, Op, Side, Table, ValueId};

/// Values of all tokens that are kept for the leaves above the coordinates, at most; with more, none are.
const MAX_VALUES: usize = 1 << 24;

/// A predicate prepared for evaluation: its operations in order, and the leaves' values of every token.
#[derive(Clone, Debug)]
pub struct Formula {
    pub(super) nodes: Vec<Node>,
    pub(super) leaves: Vec<Leaf>,
}

/// A value that is known of every token of one side.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) side: Side,
    pub(super) values: Arc<Vec<f64>>,
}

/// One-sided values of a graph, of every token of one arrangement, which its predicates share.
#[derive(Default)]
pub struct Known(HashMap<ValueId, Leaf>);

impl Known {
    /// Forgets what the other arrangements know where all of them together know too much.
    pub fn bound(all: &mut [Known], current: usize, tokens: usize) {
        let count: usize = all.iter().map(|known| known.0.len()).sum();
        if count.saturating_mul(tokens) > MAX_VALUES {
            let others = all.iter_mut().enumerate().filter(|(index, _)| *index != current);
            others.for_each(|(_, known)| known.0.clear());
        }
    }

    /// What is missing of some values of one side, and the coordinates they are made of.
    fn missing(&self, table: &TokenTable<'_>, graph: &Graph, side: Side, ids: &[ValueId]) -> Vec<(ValueId, Leaf)> {
        let missing: Vec<ValueId> = ids.iter().copied().filter(|id| !self.0.contains_key(id)).collect();
        let (inner, nodes) = Formula::of(table, graph, &missing, self);
        let values = inner.of_tokens(side, table.tokens(), &nodes);
        let computed = missing.iter().zip(values);
        let computed = computed.filter_map(|(&id, values)| Some((id, Leaf { side, values: Arc::new(values?) })));
        let coordinates = inner.nodes.iter().filter_map(|node| Some((node.id, inner.leaves[node.leaf?].clone())));
        computed.chain(coordinates).collect()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    id: ValueId,
    pub(super) op: Op,
    pub(super) operands: Vec<usize>,
    /// Index into the leaves; the operation is not looked at.
    pub(super) leaf: Option<usize>,
    /// Of a table: its numbers, and the interval of all of them.
    pub(super) table: Option<(Table, Interval)>,
    /// Of what speaks of neither side.
    pub(super) constant: Interval,
    /// Whether its values are integers.
    pub(super) integer: bool,
    pub(super) q: bool,
    pub(super) kv: bool,
}

impl Formula {
    /// Prepares `predicate`; what is `known` of its graph is not computed again.
    #[must_use]
    pub fn new(table: &TokenTable<'_>, graph: &Graph, predicate: ValueId, known: &mut Known) -> Self {
        let of_sides = [Side::Query, Side::Key].map(|side| (side, one_sided(graph, predicate, side)));
        let count: usize = of_sides.iter().map(|(_, ids)| ids.len()).sum();
        if known.0.len().saturating_add(count).saturating_mul(table.tokens()) > MAX_VALUES {
            known.0.clear();
        }
        if count.saturating_mul(table.tokens()) <= MAX_VALUES {
            let missing = of_sides.into_par_iter().map(|(side, ids)| known.missing(table, graph, side, &ids));
            let missing: Vec<_> = missing.collect();
            known.0.extend(missing.into_iter().flatten());
        }
        Formula::of(table, graph, &[predicate], known).0
    }

    /// The operations that some values need, down to what is known, and the nodes of these values.
    fn of(table: &TokenTable<'_>, graph: &Graph, roots: &[ValueId], known: &Known) -> (Self, Vec<usize>) {
        let needed = graph.needed(roots, |id| known.0.contains_key(&id));
        let mut formula = Formula { nodes: Vec::new(), leaves: Vec::new() };
        let mut map = vec![usize::MAX; needed.len()];
        for (id, value) in graph.values().take(needed.len()).filter(|(id, _)| needed[id.0 as usize]) {
            let leaf = |side, values| Leaf { side, values: Arc::new(values) };
            let leaf = known.0.get(&id).cloned().or_else(|| match value.op {
                Op::Coordinate(coordinate, side) => Some(leaf(side, table.coordinate(coordinate, side))),
                Op::InSet(set, side) => Some(leaf(side, table.in_set(set))),
                _ => None,
            });
            let operands = match leaf {
                Some(_) => Vec::new(),
                None => value.op.operands().iter().map(|operand| map[operand.0 as usize]).collect(),
            };
            let leaf = leaf.map(|leaf| {
                formula.leaves.push(leaf);
                formula.leaves.len() - 1
            });
            let (q, kv) = speaks_of(value.ty.extent);
            let constant = if q || kv { (0.0, 0.0) } else { constant(graph, id) };
            let table = match &value.op {
                Op::Table { table, item, .. } if q || kv => {
                    let table = graph.tables[usize::from(*table)].clone();
                    let items = table.values.iter().skip(usize::from(*item)).step_by(usize::from(table.width).max(1));
                    // What an entry that is missing without a substitute gives.
                    let range = items.fold((0.0_f64, 0.0_f64), |range, &x| (range.0.min(x), range.1.max(x)));
                    // Any number but 0 is true.
                    let range = if table.kind == Kind::Bool { (0.0, 1.0) } else { range };
                    Some((table, range))
                }
                _ => None,
            };
            let integer = value.ty.kind == Kind::Int;
            map[id.0 as usize] = formula.nodes.len();
            formula.nodes.push(Node { id, op: value.op.clone(), operands, leaf, table, constant, integer, q, kv });
        }
        let nodes = roots.iter().map(|root| map[root.0 as usize]).collect();
        (formula, nodes)
    }

    /// The values of some nodes of one side, of every token; `None` where some are integers too large to be exact.
    fn of_tokens(&self, side: Side, tokens: usize, nodes: &[usize]) -> Vec<Option<Vec<f64>>> {
        let mut values = vec![Some(Vec::with_capacity(tokens)); nodes.len()];
        if nodes.is_empty() {
            return values;
        }
        let mut evaluator = Evaluator::new(self);
        let chunk = (MAX_VALUES / 16 / self.nodes.len()).clamp(16, 4096);
        for start in (0..tokens).step_by(chunk) {
            let end = (start + chunk).min(tokens);
            evaluator.set_side(side, &Part::Tokens(start as u32..end as u32));
            for (&node, all) in nodes.iter().zip(&mut values) {
                match (evaluator.points(node), all.as_mut()) {
                    (Some([one]), Some(values)) => values.resize(end, *one),
                    (Some(more), Some(values)) => values.extend_from_slice(more),
                    (None, _) | (_, None) => *all = None,
                }
            }
        }
        values
    }
}

/// The largest values in a predicate that speak of one side alone.
fn one_sided(graph: &Graph, predicate: ValueId, side: Side) -> Vec<ValueId> {
    let is_of_side = |id: ValueId| speaks_of(graph.ty(id).extent) == (side == Side::Query, side == Side::Key);
    let reached = graph.needed(&[predicate], is_of_side);
    (0..=predicate.0).map(ValueId).filter(|&id| reached[id.0 as usize] && is_of_side(id)).collect()
}

/// Whether values of an extent differ between queries, and between keys.
fn speaks_of(extent: Extent) -> (bool, bool) {
    match extent {
        Extent::Token { q, kv } => (q, kv),
        _ => (false, false),
    }
}

fn constant(graph: &Graph, id: ValueId) -> Interval {
    match scalar::evaluate(graph, id, scalar::At::default(), &scalar::NoTokens) {
        Scalar::Int(value) => integer(value),
        other => (other.real(), other.real()),
    }
}

/// Number of values that a predicate needs, and how many of them are known of each token.
pub(super) fn sizes(graph: &Graph, predicate: ValueId) -> (usize, usize) {
    let needed = graph.needed(&[predicate], |_| false);
    let values = || graph.values().zip(&needed).filter(|(_, needed)| **needed).map(|((_, value), _)| &value.op);
    (values().count(), values().filter(|op| matches!(op, Op::Coordinate(..) | Op::InSet(..))).count())
}
