//! What building a plan finds in a moment: rows that attend to nothing, and the rule that leaves them so.

use super::Builder;
use crate::diagnostics::{Code, Diagnostic};
use crate::geometry::cover::Budget;
use crate::ir::scalar::At;
use crate::ir::{Action, Model, Rule, Strategy, ValueId};
use crate::plan::{Body, Role};
use crate::symbols::BitMatrix;

/// Places, and block pairs of classes, that [`quick_findings`] looks at for all strategies of a file.
pub const QUICK_PAIRS: u64 = 1 << 15;
/// Operations that it spends on predicates, some milliseconds.
const QUICK_OPERATIONS: u64 = 1 << 22;

/// What building a plan would find: q-blocks that attend to nothing, and heads whose forecasts differ. It is looked for as far
/// as that takes no time: not where there are more places than `pairs_left`, nor in classes past so many block pairs; what
/// is looked at is taken off.
#[must_use]
pub fn quick_findings(strategy: &Strategy, model: &Model, pairs_left: &mut u64) -> Vec<Diagnostic> {
    let mut builder = Builder::new(strategy, model);
    builder.budget = Budget::of(QUICK_OPERATIONS);
    builder.pairs_left = *pairs_left;
    builder.classes();
    *pairs_left = builder.pairs_left;
    // Where a predicate took too much, its blocks are not known; a plan has more time for it.
    let empty_rows = builder.empty_rows.filter(|_| builder.errors.is_empty());
    let is_mistake = |error: &Diagnostic| error.code != Code::E0309;
    builder.errors.into_iter().filter(is_mistake).chain(empty_rows).collect()
}

impl Builder<'_> {
    /// A warning where computed q-blocks of a class attend to nothing, at the rule that leaves the first of them so: the
    /// `skip` that takes its last keys, or the last `keep` where none gives it any.
    pub(super) fn rows_without_keys(
        &mut self,
        rules: &[&Rule],
        terms: &[(Role, ValueId)],
        body: &Body,
        arrangement: usize,
        at: At,
    ) -> Option<Diagnostic> {
        let Body::Static { skip, cache, .. } = body else { return None };
        let (skip, cache) = (&self.masks[*skip as usize], &self.masks[*cache as usize]);
        let q_blocks = skip.rows();
        let mut empty = (0..q_blocks).filter(|&row| cache.get(0, row) && skip.count_row(row) == 0);
        let first = empty.next()?;
        let count = empty.count() + 1;
        let offset = self.arrangements[arrangement].1.blocks.q[first];
        let segment = self.model.segments.iter().rev().find(|segment| segment.start <= offset);
        let name = segment.map_or_else(|| "all".to_owned(), |segment| segment.name.clone());

        let mut skips = rules.iter().filter(|rule| rule.action == Action::Skip);
        let keep = rules.iter().rev().find(|rule| rule.action == Action::Keep);
        let mut kept: Option<BitMatrix> = None;
        let mut taken = None;
        // Terms of `keep` stand in any order between those of `skip`, which stand in the order of their rules.
        let (skip_terms, others): (Vec<_>, Vec<_>) = terms.iter().partition(|(role, _)| *role == Role::Skip);
        for &(_, id) in others.iter().filter(|(role, _)| matches!(role, Role::Whole | Role::Partial)) {
            let bits = self.row_of(id, first, arrangement)?;
            kept = Some(kept.map_or_else(|| bits.clone(), |mut kept| (kept.union(&bits), kept).1));
        }
        let mut kept = kept.unwrap_or_else(|| BitMatrix::ones(1, self.blocks.kv_blocks()));
        for (_, id) in skip_terms {
            let rule = skips.next()?;
            if kept.count() == 0 {
                break;
            }
            kept.subtract(&self.row_of(id, first, arrangement)?);
            taken = (kept.count() == 0).then_some(*rule);
        }
        let place = format!("q-block {first}, in `{name}`");
        let (rule, label, help) = match taken {
            Some(rule) => {
                let help = "let it leave them some keys, or `cache` these blocks".to_owned();
                (rule, format!("this takes the last keys of {place}"), help)
            }
            None => {
                let help = format!("say what they attend to, as in `keep {name} -> all`");
                (*keep?, format!("neither this nor another `keep` gives keys to {place}"), help)
            }
        };
        let message = format!("{count} of {q_blocks} q-blocks keep no key");
        let step = format!("at step {}, layer {}, head {}: their attention output is zero", at.step, at.layer, at.head);
        Some(Diagnostic::new(Code::W0502, rule.span, message).label(label).note(step).help(help))
    }

    /// The bits that a static term has in a row.
    fn row_of(&mut self, id: ValueId, row: usize, arrangement: usize) -> Option<BitMatrix> {
        let bits = self.bits(id, arrangement)?;
        let bits = self.spread(&bits, self.folded.ty(id).extent, Role::Whole);
        let mut one = BitMatrix::zeros(1, bits.columns());
        one.row_mut(0).copy_from_slice(bits.row(row));
        Some(one)
    }
}
