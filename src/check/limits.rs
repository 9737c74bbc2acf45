//! Limits of what a strategy may ask of the checker, so that no text makes it run away.
//!
//! A short text can describe a long computation: strategies that use each other twice, lists of lists, a guard beside
//! thousands of others. Every statement and expression that is looked at costs one unit of [`MAX_WORK`]; what
//! costs more says so. Behind a limit nothing more is looked at, and the message names the limit.

use super::{Checker, Term};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::ir::{Binary, Op, ValueId};
use crate::source::Span;

/// Statements and expressions looked at in one strategy and what it uses.
const MAX_WORK: usize = 1 << 23;
/// Values on one path through the computation; the passes recurse over it.
pub(super) const MAX_CHAIN: u16 = 1000;
/// Strategies that use each other, one below the other.
pub(super) const MAX_USE_DEPTH: usize = 64;
/// Segments of a layout or model.
pub(super) const MAX_SEGMENTS: usize = 64;
/// Different sets of segments.
pub(super) const MAX_SETS: usize = 1024;
/// Components of a tuple, and elements of a list.
const MAX_COMPONENTS: usize = 16;
const MAX_ELEMENTS: usize = 10_000;
/// Errors behind which a strategy is not looked at further, and warnings that are kept.
const MAX_FINDINGS: usize = 1000;
/// Operands that one chain of `or` joins; longer lists become a tree.
const CHUNK: usize = 64;

/// What was spent, and whether it was too much.
#[derive(Default)]
pub(super) struct Limits {
    work: usize,
    errors: usize,
    warnings: usize,
    /// Nothing more is looked at.
    pub(super) reached: bool,
    /// Longest path below each value.
    depths: Vec<u16>,
}

impl Checker<'_> {
    /// Counts work; `false` when there was too much of it.
    pub(super) fn spend(&mut self, work: usize, span: Span) -> bool {
        self.limits.work = self.limits.work.saturating_add(work);
        if self.limits.work > MAX_WORK && !self.limits.reached {
            let message = format!("checking this strategy takes more than {MAX_WORK} steps");
            self.too_large(span, message, "write fewer statements, or use other strategies fewer times");
        }
        !self.limits.reached
    }

    /// Reports a limit; nothing behind it is looked at.
    pub(super) fn too_large(&mut self, span: Span, message: String, help: &str) {
        self.report(Diagnostic::new(Code::E0309, span, message).help(help));
        self.limits.reached = true;
    }

    /// Keeps a finding while there are not too many.
    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        let count = match diagnostic.severity() {
            Severity::Error => &mut self.limits.errors,
            Severity::Warning => &mut self.limits.warnings,
        };
        *count += 1;
        if *count <= MAX_FINDINGS {
            self.diagnostics.push(diagnostic);
        }
        self.limits.reached |= self.limits.errors >= MAX_FINDINGS;
    }

    /// Notes how deep a new value lies; `false` where that is too deep.
    pub(super) fn deepen(&mut self, id: ValueId, span: Span) -> bool {
        let index = id.0 as usize;
        if self.limits.depths.get(index).is_some_and(|depth| *depth > 0) {
            return true;
        }
        let below = |operand: &ValueId| self.limits.depths.get(operand.0 as usize).copied().unwrap_or(0);
        let depth = self.strategy.graph.op(id).operands().iter().map(below).max().unwrap_or(0) + 1;
        if index >= self.limits.depths.len() {
            self.limits.depths.resize(index + 1, 0);
        }
        self.limits.depths[index] = depth.min(MAX_CHAIN);
        if depth > MAX_CHAIN && !self.limits.reached {
            let message = format!("this is computed from values more than {MAX_CHAIN} steps deep");
            self.too_large(span, message, "shorten the chain of `let`");
        }
        depth <= MAX_CHAIN
    }

    /// The terms of a tuple or list, as long as there are not too many.
    pub(super) fn terms<T>(
        &mut self,
        items: &[T],
        is_list: bool,
        span: Span,
        of: impl Fn(&mut Self, &T) -> Term,
    ) -> Term {
        let (most, word) = if is_list { (MAX_ELEMENTS, "list") } else { (MAX_COMPONENTS, "tuple") };
        let mut terms = Vec::new();
        let mut size = 0;
        for item in items {
            let term = of(self, item);
            size += size_of(&term);
            if size > most {
                let message = format!("a {word} of more than {most} values");
                return self.hole(Diagnostic::new(Code::E0309, span, message));
            }
            terms.push(term);
        }
        if is_list { Term::List(terms) } else { Term::Tuple(terms) }
    }

    /// `a or b or ...`, in a tree of chains where there are many.
    pub(super) fn any_of(&mut self, items: &[ValueId], span: Span) -> Option<ValueId> {
        if items.len() > CHUNK {
            let parts: Option<Vec<ValueId>> = items.chunks(CHUNK).map(|chunk| self.any_of(chunk, span)).collect();
            return self.any_of(&parts?, span);
        }
        let (&first, rest) = items.split_first()?;
        rest.iter().try_fold(first, |any, &one| self.push(Op::Binary(Binary::Or, any, one), span).ok())
    }
}

/// Values that a term holds.
pub(super) fn size_of(term: &Term) -> usize {
    match term {
        Term::Tuple(items) | Term::List(items) => items.iter().map(size_of).sum::<usize>() + 1,
        _ => 1,
    }
}
