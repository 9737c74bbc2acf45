//! Element-wise chains of a selector program, fused.
//!
//! A [`Map`] computes one block value, its root, from block values that exist as arrays, its leaves, and from scalars,
//! its uniforms. An element-wise block value is a root when it is a term, when an operation that is not element-wise uses
//! it, or when two values use it; every other one has a single user and is computed inside of that user's map. So each
//! operation is computed once, and no code is generated twice.

use crate::ir::{Extent, Kind, Op, ValueId};
use crate::plan::Program;
use crate::reference::input::live_values;

/// How the elements of a leaf follow those of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It has the root's axes.
    Element,
    /// A vector over q-blocks under a matrix.
    Row,
    /// A vector over kv-blocks under a matrix.
    Column,
    /// A single value, such as the sum of a vector, under a vector or a matrix.
    One,
}

/// An operand of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Index into [`Map::leaves`].
    Leaf(usize),
    /// Index into [`Map::uniforms`].
    Uniform(usize),
    /// Index into [`Map::body`].
    Step(usize),
}

/// An operation of a map.
#[derive(Clone, Debug)]
pub struct Step {
    /// An element-wise operation.
    pub op: Op,
    /// Its operands, in order.
    pub operands: Vec<Operand>,
    /// Whether it gives truth values.
    pub is_bool: bool,
}

/// A fused chain.
#[derive(Clone, Debug)]
pub struct Map {
    /// The value it computes.
    pub root: ValueId,
    /// Whether the root is truth values: bytes 0 and 1; else single precision.
    pub is_bool: bool,
    /// Block values it reads.
    pub leaves: Vec<ValueId>,
    /// How it reads each leaf.
    pub access: Vec<Access>,
    /// Whether each leaf is truth values.
    pub leaf_is_bool: Vec<bool>,
    /// Scalars it reads, as single precision; truth is 0 or 1.
    pub uniforms: Vec<ValueId>,
    /// Whether each uniform is a truth value.
    pub uniform_is_bool: Vec<bool>,
    /// Operations in order, the root's last.
    pub body: Vec<Step>,
}

/// The maps of a checked program, roots ascending.
#[must_use]
pub fn maps(program: &Program) -> Vec<Map> {
    let graph = &program.graph;
    let live = live_values(program);
    let fusible = |id: ValueId| graph.op(id).is_elementwise() && matches!(graph.ty(id).extent, Extent::Blocks { .. });
    let mut users = vec![0_u32; graph.len()];
    let mut is_root = vec![false; graph.len()];
    for &(_, id) in &program.terms {
        is_root[id.0 as usize] = true;
    }
    for &user in &live {
        let mut operands = graph.op(user).operands();
        operands.sort_unstable();
        operands.dedup();
        for operand in operands {
            users[operand.0 as usize] += 1;
            is_root[operand.0 as usize] |= !fusible(user);
        }
    }
    let is_root = |id: ValueId| is_root[id.0 as usize] || users[id.0 as usize] > 1;
    live.iter().filter(|&&id| fusible(id) && is_root(id)).map(|&id| fuse(program, id, &fusible, &is_root)).collect()
}

fn fuse(
    program: &Program,
    root: ValueId,
    fusible: &impl Fn(ValueId) -> bool,
    is_root: &impl Fn(ValueId) -> bool,
) -> Map {
    let mut map = Map {
        root,
        is_bool: program.graph.ty(root).kind == Kind::Bool,
        leaves: Vec::new(),
        access: Vec::new(),
        leaf_is_bool: Vec::new(),
        uniforms: Vec::new(),
        uniform_is_bool: Vec::new(),
        body: Vec::new(),
    };
    // The values inside, by descending id; reversed they are in order.
    let mut inside = vec![root];
    let mut next = 0;
    while next < inside.len() {
        for operand in program.graph.op(inside[next]).operands() {
            if fusible(operand) && !is_root(operand) && !inside.contains(&operand) {
                inside.push(operand);
            }
        }
        next += 1;
    }
    inside.sort_unstable();
    for &id in &inside {
        let op = program.graph.op(id).clone();
        let operands = op.operands().into_iter().map(|operand| map.operand(program, &inside, operand)).collect();
        map.body.push(Step { op, operands, is_bool: program.graph.ty(id).kind == Kind::Bool });
    }
    map
}

impl Map {
    fn operand(&mut self, program: &Program, inside: &[ValueId], id: ValueId) -> Operand {
        if let Ok(step) = inside.binary_search(&id) {
            return Operand::Step(step);
        }
        let ty = program.graph.ty(id);
        if ty.extent == Extent::Scalar {
            let index = self.uniforms.iter().position(|&uniform| uniform == id).unwrap_or_else(|| {
                self.uniforms.push(id);
                self.uniform_is_bool.push(ty.kind == Kind::Bool);
                self.uniforms.len() - 1
            });
            return Operand::Uniform(index);
        }
        let index = self.leaves.iter().position(|&leaf| leaf == id).unwrap_or_else(|| {
            self.leaves.push(id);
            self.leaf_is_bool.push(ty.kind == Kind::Bool);
            self.access.push(match (program.graph.ty(self.root).extent, ty.extent) {
                (Extent::Blocks { q: Some(_), kv: Some(_) }, Extent::Blocks { q: Some(_), kv: None }) => Access::Row,
                (Extent::Blocks { q: Some(_), kv: Some(_) }, Extent::Blocks { q: None, kv: Some(_) }) => Access::Column,
                (root, Extent::Blocks { q: None, kv: None }) if root != ty.extent => Access::One,
                _ => Access::Element,
            });
            self.leaves.len() - 1
        });
        Operand::Leaf(index)
    }
}
