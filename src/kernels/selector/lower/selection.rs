//! Selections: lines, rule and numbers for the kernels that select.

use super::super::params::SelectParams;
use super::super::recipe::{Entry, SHORT_SELECTIONS};
use super::{Block, Lowering, broken, size, unavailable};
use crate::error::Result;
use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Extent, Op, Over, Selector, ValueId};

/// Lines of a thread block of the kernels for short lines.
const LINES: u64 = 4;
/// Thread blocks of the kernel for long lines, each of which needs room for the keys of a line.
const MOST_BLOCKS: usize = 264;

/// The number of a rule in `params.cuh`, whether its comparison is strict, and whether ties are selected.
fn coded(rule: Selector) -> (u32, bool, bool) {
    match rule {
        Selector::TopK { ties, .. } => (0, false, ties),
        Selector::BottomK { .. } => (1, false, false),
        Selector::TopP { ascending: true, strict, .. } => (4, strict, false),
        Selector::TopP { crossing: false, strict, .. } => (2, strict, false),
        Selector::TopP { crossing: true, strict, .. } => (3, strict, false),
        Selector::BottomMass => (5, false, false),
        Selector::Statistical => (6, false, false),
    }
}

impl Lowering<'_> {
    pub(super) fn selected(&mut self, id: ValueId, op: &Op) -> Result<Block> {
        let Op::Select { rule, value, amount, at_least, cost, over } = *op else { return Err(broken(id)) };
        let from = self.view(value)?;
        let is_layer = matches!(over, Over::Layer | Over::Heads);
        // One line over the layer has the heads' elements one behind the other, as they are; over the heads they are put together.
        let (address, lines, length) = match over {
            Over::Layer => (self.dense(from)?.address, 1, from.size() as usize * self.heads.len()),
            Over::Heads => (self.heads_together(from)?, from.size() as usize, self.heads.len()),
            _ => {
                let lines = self.lines_of(from, over)?;
                (self.dense(lines)?.address, lines.rows(), lines.columns())
            }
        };
        let is_turned = over == Over::Heads || (over == Over::Query && lines > 1);
        let costs = match cost {
            Some(cost) => {
                let lines = self.lines_of(self.view(cost)?, over)?;
                self.dense(lines)?.address
            }
            None => 0,
        };
        if is_layer {
            self.check_same_for_heads(amount)?;
            at_least.map_or(Ok(()), |id| self.check_same_for_heads(id))?;
        }
        let (amounts, lines_of_amounts) = match self.graph().ty(amount).extent {
            Extent::Scalar => (0, 0),
            _ if is_layer || rule == Selector::Statistical => {
                return Err(unavailable("an amount of each line in this selection"));
            }
            _ => {
                let amounts = self.block(amount)?;
                (amounts.address, amounts.size() as usize)
            }
        };
        let scalar = (amounts == 0).then_some(amount);
        let numbers = self.recipe.uniforms.amount(rule, scalar, at_least, length);
        let heads = if is_layer { 1 } else { self.heads.len() };
        let out = self.block_room(id)?;
        let target = if is_turned { self.recipe.room(from.size() * self.heads.len() as u64) } else { out.address };
        let (code, is_strict, ties) = coded(rule);
        let mut params = SelectParams {
            value: address,
            costs,
            out: target,
            amounts,
            lines: size(lines)?,
            length: size(length)?,
            rule: code,
            is_strict: u32::from(is_strict),
            ties: u32::from(ties),
            lines_of_amounts: size(lines_of_amounts)?,
            heads: size(heads)?,
            ..SelectParams::default()
        };
        let short = SHORT_SELECTIONS.iter().find(|(most, _)| length <= *most && costs == 0);
        let step = match short {
            Some(&(_, entry)) => self.recipe.launch(entry, (lines as u64).div_ceil(LINES), heads as u32, &params),
            None => {
                size(lines * heads)?;
                let blocks = (lines * heads).min(MOST_BLOCKS);
                params.keys = self.recipe.room((blocks * length * 8) as u64);
                self.recipe.launch(Entry::SelectLong, blocks as u64, 1, &params)
            }
        };
        step.uniforms = vec![(std::mem::offset_of!(SelectParams, amount), numbers)];
        if is_turned {
            let matrices = if is_layer { 1 } else { self.head_count() };
            self.transpose(Block::dense(target, Some(lines), Some(length), true), out.address, matrices)?;
        }
        Ok(out)
    }

    /// Each head makes a selection of the layer by its own numbers; one launch has room for one.
    fn check_same_for_heads(&self, id: ValueId) -> Result<()> {
        let of_head = |&(step, layer): &(u32, u32), head: u32| {
            evaluate(self.graph(), id, At { step, layer, head, ..At::default() }, &NoTokens)
        };
        let differs = |place: &(u32, u32)| self.heads.iter().any(|&head| of_head(place, head) != of_head(place, 0));
        if self.setup.places.iter().any(differs) {
            return Err(unavailable("a selection over the layer whose amount differs between heads"));
        }
        Ok(())
    }
}
