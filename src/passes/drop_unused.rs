//! Values that nothing refers to disappear.

use crate::ir::{Strategy, ValueId};

/// Keeps the values that rules, guards, orders, blocks and schedule reach, in their order.
pub fn drop_unused(strategy: &mut Strategy) {
    let mut used = vec![false; strategy.graph.len()];
    let mut open: Vec<ValueId> = Vec::new();
    strategy.for_each_root(|id| open.push(*id));
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut used[id.0 as usize], true) {
            open.extend(strategy.graph.op(id).operands());
        }
    }
    let old = strategy.graph.clone();
    let mut new = old.emptied();
    let mut map = vec![ValueId(0); old.len()];
    for (id, value) in old.values().filter(|(id, _)| used[id.0 as usize]) {
        let op = value.op.map_operands(|operand| map[operand.0 as usize]);
        map[id.0 as usize] = new.push(op, value.ty, value.span);
    }
    strategy.graph = new;
    strategy.for_each_root(|id| *id = map[id.0 as usize]);
}
