//! Token masks of partial blocks: a predicate over the tokens of an arrangement, tile by tile.
//!
//! A mask is computed when a block first needs it and kept; masks that are the same are kept once, so that the two
//! edges of a band cost a few masks however long the sequence is.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::Result;
use crate::geometry::cover::{Formula, Known, tile};
use crate::geometry::tokens::TokenTable;
use crate::ir::Model;
use crate::plan::{Arrangement, Predicate};
use crate::symbols::{BitMatrix, Blocks};

/// The masks of one predicate under one arrangement.
#[derive(Debug)]
pub(super) struct TokenMasks {
    maker: Maker,
    /// Mask of each block that was asked for.
    of_block: HashMap<(u32, u32), u32>,
    of_content: HashMap<BitMatrix, u32>,
    masks: Vec<BitMatrix>,
}

/// What computes a mask.
#[derive(Debug)]
enum Maker {
    #[cfg(feature = "llvm")]
    MachineCode { code: Box<crate::codegen::cpu::CompiledPredicate>, q: Vec<Vec<i32>>, kv: Vec<Vec<i32>> },
    /// Predicates that have no lowering, and builds without LLVM.
    Intervals(Formula),
}

impl TokenMasks {
    pub(super) fn new(predicate: &Predicate, model: &Model, arrangement: &Arrangement) -> Self {
        TokenMasks {
            maker: Maker::new(predicate, model, arrangement),
            of_block: HashMap::new(),
            of_content: HashMap::new(),
            masks: Vec::new(),
        }
    }

    /// The number of the mask of a block.
    pub(super) fn number(&mut self, q_block: usize, kv_block: usize, blocks: &Blocks) -> Result<u32> {
        let key = (q_block as u32, kv_block as u32);
        if let Some(&known) = self.of_block.get(&key) {
            return Ok(known);
        }
        let q = blocks.q[q_block]..blocks.q[q_block + 1];
        let kv = blocks.kv[kv_block]..blocks.kv[kv_block + 1];
        let mask = self.maker.mask(q, kv)?;
        let next = self.masks.len() as u32;
        let number = *self.of_content.entry(mask).or_insert_with_key(|mask| {
            self.masks.push(mask.clone());
            next
        });
        self.of_block.insert(key, number);
        Ok(number)
    }

    /// A mask by its number.
    pub(super) fn mask(&self, number: u32) -> &BitMatrix {
        &self.masks[number as usize]
    }
}

impl Maker {
    fn new(predicate: &Predicate, model: &Model, arrangement: &Arrangement) -> Self {
        let table = TokenTable::new(&predicate.graph, model, arrangement);
        #[cfg(feature = "llvm")]
        if let Ok(code) = crate::codegen::cpu::CompiledPredicate::new(predicate, model) {
            use crate::codegen::predicate::TokenLeaf;
            use crate::ir::Side;
            let values = |leaves: &[TokenLeaf], side: Side| -> Vec<Vec<i32>> {
                let of_leaf = |leaf: &TokenLeaf| match leaf {
                    TokenLeaf::Coordinate(coordinate) => table.coordinate(*coordinate, side),
                    TokenLeaf::InSet(set) => table.in_set(*set),
                };
                let whole = |values: Vec<f64>| values.into_iter().map(|value| value as i32).collect();
                leaves.iter().map(|leaf| whole(of_leaf(leaf))).collect()
            };
            let (q, kv) = (values(code.q_leaves(), Side::Query), values(code.kv_leaves(), Side::Key));
            return Maker::MachineCode { code: Box::new(code), q, kv };
        }
        Maker::Intervals(Formula::new(&table, &predicate.graph, predicate.value, &mut Known::default()))
    }

    fn mask(&self, q: Range<u32>, kv: Range<u32>) -> Result<BitMatrix> {
        match self {
            #[cfg(feature = "llvm")]
            Maker::MachineCode { code, q: q_leaves, kv: kv_leaves } => {
                code.fill(&parts(q_leaves, &q), &parts(kv_leaves, &kv), q.len(), kv.len())
            }
            Maker::Intervals(formula) => Ok(tile(formula, q, kv)),
        }
    }
}

/// A range of each array.
#[cfg(feature = "llvm")]
fn parts<'a>(leaves: &'a [Vec<i32>], range: &Range<u32>) -> Vec<&'a [i32]> {
    leaves.iter().map(|leaf| &leaf[range.start as usize..range.end as usize]).collect()
}
