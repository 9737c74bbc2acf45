//! Terms: what the last launch joins to symbols.
//!
//! A term is often a mask and something chosen for a part of the blocks, `mask and embed(x and y)`. The last launch reads the factors of such a term
//! where they are, instead of an array of the term for which each of these operations would need a launch.

use super::super::params::{MAX_TERMS, PackParams, Term};
use super::super::recipe::{Entry, blocks_for};
use super::{Lowering, Target, broken, size, unavailable};
use crate::error::Result;
use crate::ir::{Binary, Extent, Op, ValueId};
use crate::kernels::choose::BLOCK;
use crate::plan::Role;
use crate::symbols::cut::{Parts, parts};

/// Something that has to be true for a term to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    /// An array, or a scalar.
    value: ValueId,
    /// What embeds it in the blocks of the term.
    embedded: Option<ValueId>,
}

/// The factors of each term.
pub(super) type Terms = Vec<(Role, Vec<Factor>)>;

impl Lowering<'_> {
    /// Takes the program's terms apart; what lies between them and their factors is dissolved.
    pub(super) fn terms(&mut self) -> Result<Terms> {
        let setup = self.setup;
        let own = &setup.program.terms;
        if own.iter().any(|(role, _)| *role == Role::Partial) {
            return Err(unavailable("blocks that are computed under a token predicate (a partial term)"));
        }
        let mut dissolved = Vec::new();
        let factors = |&(role, id): &(Role, ValueId)| (role, self.factors(id, None, None, &mut dissolved));
        let apart: Terms = own.iter().map(factors).collect();
        if apart.iter().map(|(_, factors)| factors.len()).sum::<usize>() <= MAX_TERMS {
            self.dissolved = dissolved;
            return Ok(apart);
        }
        if own.len() > MAX_TERMS {
            return Err(unavailable(format!("{} terms, {MAX_TERMS} are the most", own.len())));
        }
        Ok(own.iter().map(|&(role, value)| (role, vec![Factor { value, embedded: None }])).collect())
    }

    /// The factors of a value that is a term or an operand of `parent`; the value itself where it cannot be taken apart.
    fn factors(
        &self,
        id: ValueId,
        parent: Option<ValueId>,
        embedded: Option<ValueId>,
        dissolved: &mut Vec<ValueId>,
    ) -> Vec<Factor> {
        if let Some(operands) = self.operands_of_and(id, parent) {
            dissolved.push(id);
            return operands.into_iter().flat_map(|one| self.factors(one, Some(id), embedded, dissolved)).collect();
        }
        match *self.graph().op(id) {
            Op::Embed(value) if embedded.is_none() && self.is_used_by(id, parent) => {
                dissolved.push(id);
                self.factors(value, Some(id), Some(id), dissolved)
            }
            _ => vec![Factor { value: id, embedded }],
        }
    }

    /// The operands of an `and` that nothing else needs, where both are scalars, have arrays, or are such values themselves.
    fn operands_of_and(&self, id: ValueId, parent: Option<ValueId>) -> Option<[ValueId; 2]> {
        let Op::Binary(Binary::And, a, b) = *self.graph().op(id) else { return None };
        let is_array = self.graph().ty(id).extent != Extent::Scalar && self.is_used_by(id, parent);
        let is_known = |&id: &ValueId| {
            let is_computed = !self.graph().op(id).is_elementwise() || self.maps.iter().any(|map| map.root == id);
            is_computed || self.graph().ty(id).extent == Extent::Scalar
        };
        let all = [a, b].iter().all(|one| is_known(one) || self.operands_of_and(*one, Some(id)).is_some());
        (is_array && all).then_some([a, b])
    }

    /// Whether a value is a term that nothing uses, or no term and used by `parent` alone.
    fn is_used_by(&self, id: ValueId, parent: Option<ValueId>) -> bool {
        let is_term = self.setup.program.terms.iter().any(|&(_, term)| term == id);
        self.users(id).all(|user| Some(user) == parent) && is_term == parent.is_none()
    }

    /// Joins the terms to symbols.
    pub(super) fn pack(&mut self, terms: &Terms, target: &Target<'_>) -> Result<()> {
        let mut params = PackParams { cache: target.cache, skip: target.skip, ..PackParams::default() };
        let mut uniforms = Vec::new();
        let mut count = 0;
        for (role, factors) in terms {
            for (index, &factor) in factors.iter().enumerate() {
                let mut term = self.term(factor)?;
                (term.role, term.joins) = (*role as u32, u32::from(index + 1 < factors.len()));
                params.terms[count] = term;
                if self.graph().ty(factor.value).extent == Extent::Scalar {
                    let place = std::mem::offset_of!(PackParams, terms)
                        + count * size_of::<Term>()
                        + std::mem::offset_of!(Term, uniform);
                    uniforms.push((place, self.recipe.uniforms.reals(&[factor.value])));
                }
                count += 1;
            }
        }
        params.count = size(count)?;
        let slot_of = |head: &u32| {
            let wanted = self.setup.heads.iter().position(|wanted| wanted == head);
            wanted.map_or(u32::MAX, |index| target.slots[index])
        };
        let slots: Vec<u32> = self.heads.iter().map(slot_of).collect();
        params.slots = self.recipe.constant(&slots);
        let blocks = self.setup.blocks;
        let [q_of, kv_of] = [&blocks.q, &blocks.kv].map(|offsets| part_blocks(offsets));
        (params.q_parts, params.kv_parts) = (q_of.len() as u32, kv_of.len() as u32);
        params.q_of = if q_of.len() == blocks.q_blocks() { 0 } else { self.recipe.constant(&q_of) };
        params.kv_of = if kv_of.len() == blocks.kv_blocks() { 0 } else { self.recipe.constant(&kv_of) };
        let words = u64::from(params.q_parts) * u64::from(params.kv_parts.div_ceil(64));
        let words = words + u64::from(params.q_parts.div_ceil(64));
        let heads = self.head_count();
        let launched = blocks_for(words * 32, Entry::Pack.threads());
        self.recipe.launch(Entry::Pack, launched, heads, &params).uniforms = uniforms;
        Ok(())
    }

    /// A factor as the kernel reads it; nothing of a scalar.
    fn term(&mut self, Factor { value, embedded }: Factor) -> Result<Term> {
        if self.graph().ty(value).extent == Extent::Scalar {
            return Ok(Term::default());
        }
        let block = self.block(value)?;
        let shown = embedded.unwrap_or(value);
        let [q, kv] = self.sizes(shown);
        let (q_blocks, kv_blocks) = (self.setup.blocks.q_blocks(), self.setup.blocks.kv_blocks());
        let fits = [q.is_none_or(|q| q == q_blocks), kv.is_none_or(|kv| kv == kv_blocks)];
        if !block.is_bool || fits.contains(&false) {
            return Err(broken(shown));
        }
        let [row_of, column_of] = match embedded {
            Some(outer) => self.tables(value, outer),
            None => [0, 0],
        };
        Ok(Term {
            data: block.address,
            row_of,
            column_of,
            head_stride: size(block.size() as usize)?,
            row_stride: if block.q.is_some() { block.columns() as u32 } else { 0 },
            column_stride: u32::from(block.kv.is_some()),
            ..Term::default()
        })
    }
}

/// The block of each part of at most 128 tokens.
fn part_blocks(offsets: &[u32]) -> Vec<u32> {
    parts(offsets, BLOCK, Parts::Full).1.into_iter().map(|block| block as u32).collect()
}
