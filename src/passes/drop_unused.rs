//! Values that nothing refers to disappear.

use crate::ir::{Strategy, ValueId};

/// Keeps the values that rules, guards, orders, blocks and schedule reach, in their order.
pub fn drop_unused(strategy: &mut Strategy) {
    let mut roots: Vec<ValueId> = Vec::new();
    strategy.for_each_root(|id| roots.push(*id));
    let used = strategy.graph.needed(&roots, |_| false);
    let old = strategy.graph.clone();
    let mut new = old.emptied();
    let mut map = vec![ValueId(0); old.len()];
    for (id, value) in old.values().take(used.len()).filter(|(id, _)| used[id.0 as usize]) {
        let op = value.op.map_operands(|operand| map[operand.0 as usize]);
        map[id.0 as usize] = new.push(op, value.ty, value.span);
    }
    strategy.graph = new;
    strategy.for_each_root(|id| *id = map[id.0 as usize]);
}
