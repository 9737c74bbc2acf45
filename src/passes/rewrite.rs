//! Rebuilding a graph value by value.

use crate::ir::{Blocking, Clause, Graph, Op, Strategy, ValueId};

impl Strategy {
    /// Every value that something outside of the graph refers to.
    pub(super) fn for_each_root(&mut self, mut visit: impl FnMut(&mut ValueId)) {
        for rule in &mut self.rules {
            visit(&mut rule.predicate);
            rule.guard.iter_mut().chain(rule.order.iter_mut()).for_each(&mut visit);
        }
        for rule in &mut self.orders {
            rule.guard.iter_mut().for_each(&mut visit);
            rule.order.values_mut().into_iter().for_each(&mut visit);
        }
        if let Some(Blocking::Sizes(q, kv)) = &mut self.block {
            visit(q);
            visit(kv);
        }
        for rule in &mut self.schedule {
            rule.guard.iter_mut().chain(rule.order.iter_mut()).for_each(&mut visit);
            for clause in &mut rule.clauses {
                match clause {
                    Clause::While(id) => visit(id),
                    Clause::Every { interval, from, .. } => {
                        visit(interval);
                        from.iter_mut().for_each(&mut visit);
                    }
                    Clause::On { steps, .. } => steps.iter_mut().for_each(&mut visit),
                }
            }
        }
        for bound in &mut self.bounds {
            visit(&mut bound.value);
        }
        self.inputs.iter_mut().flat_map(|input| &mut input.declared).for_each(&mut visit);
        self.open_params.iter_mut().for_each(|open| visit(&mut open.value));
    }

    /// Rebuilds the graph: `make` adds the replacement of each operation (operands replaced already) to the new
    /// graph. Sets, axes and tables stay.
    pub(super) fn rewrite(&mut self, mut make: impl FnMut(&mut Graph, &Graph, ValueId, Op) -> ValueId) {
        let old = std::mem::take(&mut self.graph);
        let mut new = old.emptied();
        let mut map: Vec<ValueId> = Vec::with_capacity(old.len());
        for (id, value) in old.values() {
            let op = value.op.map_operands(|operand| map[operand.0 as usize]);
            let replacement = make(&mut new, &old, id, op);
            map.push(replacement);
        }
        self.graph = new;
        self.for_each_root(|id| *id = map[id.0 as usize]);
    }
}

/// Copies a value and what it needs into another graph.
pub(super) fn copy(from: &Graph, to: &mut Graph, id: ValueId) -> ValueId {
    let mut map = vec![None; id.0 as usize + 1];
    let mut open = vec![id];
    while let Some(&id) = open.last() {
        let value = from.value(id);
        let missing: Vec<ValueId> =
            value.op.operands().into_iter().filter(|operand| map[operand.0 as usize].is_none()).collect();
        if !missing.is_empty() {
            // The first operand is copied first.
            open.extend(missing.into_iter().rev());
            continue;
        }
        open.pop();
        let op = value.op.map_operands(|operand| map[operand.0 as usize].unwrap_or(operand));
        let op = with_table(op, from, to);
        map[id.0 as usize] = Some(to.push(op, value.ty, value.span));
    }
    map[id.0 as usize].unwrap_or(id)
}

/// An operation of one graph for another: the table it looks into comes along.
pub(super) fn with_table(mut op: Op, from: &Graph, to: &mut Graph) -> Op {
    if let Op::Table { table, .. } = &mut op {
        let data = &from.tables[usize::from(*table)];
        let known = to.tables.iter().position(|known| known == data).unwrap_or_else(|| {
            to.tables.push(data.clone());
            to.tables.len() - 1
        });
        *table = known as u16;
    }
    op
}
