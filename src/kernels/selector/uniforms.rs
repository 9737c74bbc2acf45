//! What depends on step, layer and head: a record for each place, computed when a pass is prepared.

use crate::ir::scalar::{At, NoTokens, Scalar, Scalars};
use crate::ir::{Graph, Selector, ValueId};
use crate::reference::math::normal_quantile;
use crate::reference::select::top_k_count;

use super::params::Amount;

/// Alignment of what is in a record.
const ALIGNMENT: u64 = 16;

/// A part of a record: something for each head.
#[derive(Clone, Debug)]
enum Part {
    /// Numbers, those of a head together.
    Reals(Vec<ValueId>),
    /// The numbers of a selection among `length` candidates; of `amount` where it is one of all lines.
    Amount { rule: Selector, amount: Option<ValueId>, at_least: Option<ValueId>, length: usize },
    /// The number of a head, the last one where there are not so many.
    Head { id: ValueId, last: u32 },
    /// By how many elements something is moved.
    Shift(ValueId),
}

/// The layout of a record.
#[derive(Clone, Debug, Default)]
pub struct Uniforms {
    parts: Vec<(u64, Part)>,
    bytes: u64,
    heads: Vec<u32>,
}

impl Uniforms {
    pub(super) fn of_heads(heads: &[u32]) -> Self {
        Uniforms { heads: heads.to_vec(), ..Uniforms::default() }
    }

    /// Bytes of a record.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.max(ALIGNMENT)
    }

    fn add(&mut self, part: Part, bytes_of_head: usize) -> u64 {
        let at = self.bytes;
        self.bytes = (at + (bytes_of_head * self.heads.len()) as u64).next_multiple_of(ALIGNMENT);
        self.parts.push((at, part));
        at
    }

    pub(super) fn reals(&mut self, ids: &[ValueId]) -> u64 {
        self.add(Part::Reals(ids.to_vec()), 4 * ids.len())
    }

    pub(super) fn amount(
        &mut self,
        rule: Selector,
        amount: Option<ValueId>,
        at_least: Option<ValueId>,
        length: usize,
    ) -> u64 {
        self.add(Part::Amount { rule, amount, at_least, length }, size_of::<Amount>())
    }

    pub(super) fn head(&mut self, id: ValueId) -> u64 {
        let last = (self.heads.len() as u32).saturating_sub(1);
        self.add(Part::Head { id, last }, 4)
    }

    pub(super) fn shift(&mut self, id: ValueId) -> u64 {
        self.add(Part::Shift(id), 4)
    }

    /// The records of some steps and layers.
    #[must_use]
    pub fn records(&self, graph: &Graph, places: &[(u32, u32)]) -> Vec<Vec<u8>> {
        let ids = self.parts.iter().flat_map(|(_, part)| part.ids()).collect::<Vec<_>>();
        let mut scalars = Scalars::new(graph, &ids);
        let mut records = Vec::with_capacity(places.len());
        for &(step, layer) in places {
            let mut record = vec![0; self.bytes() as usize];
            for (index, &head) in self.heads.iter().enumerate() {
                scalars.evaluate(At { step, layer, head, ..At::default() }, &NoTokens);
                for (at, part) in &self.parts {
                    let bytes = part.of_head(&scalars);
                    record[*at as usize + index * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
                }
            }
            records.push(record);
        }
        records
    }
}

impl Part {
    fn ids(&self) -> Vec<ValueId> {
        match self {
            Part::Reals(ids) => ids.clone(),
            Part::Amount { amount, at_least, .. } => amount.iter().chain(at_least).copied().collect(),
            Part::Head { id, .. } | Part::Shift(id) => vec![*id],
        }
    }

    fn of_head(&self, scalars: &Scalars<'_>) -> Vec<u8> {
        match self {
            Part::Reals(ids) => {
                ids.iter().flat_map(|&id| (scalars.get(id).real() as f32).to_le_bytes()).collect::<Vec<u8>>()
            }
            Part::Amount { rule, amount, at_least, length } => {
                let at_least = at_least.map_or(0, |id| scalars.get(id).int().max(0));
                let amount = amount.map_or(Scalar::Int(0), |id| scalars.get(id));
                bytemuck::bytes_of(&amount_of(*rule, amount, at_least, *length)).to_vec()
            }
            Part::Head { id, last } => {
                (scalars.get(*id).int().clamp(0, i64::from(*last)) as u32).to_le_bytes().to_vec()
            }
            // What moves further than any line is long leaves nothing.
            Part::Shift(id) => (scalars.get(*id).int().clamp(-(1 << 30), 1 << 30) as i32).to_le_bytes().to_vec(),
        }
    }
}

/// The numbers of a selection, in the precision that each is computed in.
fn amount_of(rule: Selector, amount: Scalar, at_least: i64, length: usize) -> Amount {
    let at_least = u32::try_from(at_least).unwrap_or(u32::MAX);
    let count = match rule {
        Selector::TopK { rounding, .. } | Selector::BottomK { rounding } => {
            u32::try_from(top_k_count(rounding, amount, length)).unwrap_or(u32::MAX)
        }
        _ => 0,
    };
    let quantile = if rule == Selector::Statistical { normal_quantile(amount.real()) as f32 } else { 0.0 };
    Amount {
        amount: amount.real() as f32,
        rest: (1.0 - amount.real()) as f32,
        quantile,
        count: count.max(at_least),
        at_least,
    }
}
