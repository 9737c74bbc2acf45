//! The schedule block.

use super::{Checker, Term};
use crate::diagnostics::{Code, Diagnostic, did_you_mean};
use crate::ir::{self, Kind, Op, Place, StepKind, Unit, ValueId};
use crate::source::Span;
use crate::syntax::ast;

const KINDS: &[(&str, StepKind)] = &[
    ("dense", StepKind::Dense),
    ("update", StepKind::Update),
    ("refresh", StepKind::Refresh),
    ("dispatch", StepKind::Dispatch),
    ("reuse", StepKind::Reuse(Unit::Attention)),
];

impl Checker<'_> {
    pub(super) fn schedule(&mut self, lines: &[ast::ScheduleStmt], span: Span) {
        // The schedule of a user, where it has one, stands for all that it uses.
        if self.stack.split_last().is_some_and(|(_, users)| users.iter().any(|(_, has_schedule)| *has_schedule)) {
            return;
        }
        if let Some(first) = self.schedule_span.replace(span) {
            self.report(
                Diagnostic::new(Code::E0108, span, "a strategy has one `schedule`")
                    .also(first, "first here")
                    .help("put all lines into one block; the first line that holds decides"),
            );
            return;
        }
        let guard = self.guard;
        if let Some(guard) = guard
            && self.depends_on(guard, &[Place::Step, Place::Head]).is_some()
        {
            let help = match self.stack.as_slice() {
                [.., (user, _), _] => {
                    format!("give `{user}` a `schedule` of its own, which stands for those of all that it uses")
                }
                _ => "move it out of the guard; `while` says at which steps a line holds".to_owned(),
            };
            self.report(
                Diagnostic::new(Code::E0209, span, "a schedule is made for layers, not for heads or steps").help(help),
            );
            return;
        }
        self.schedule_lines(lines, guard);
    }

    fn schedule_lines(&mut self, lines: &[ast::ScheduleStmt], guard: Option<ValueId>) {
        for line in lines {
            let (ast::ScheduleStmt::Kind { span, .. } | ast::ScheduleStmt::Layers(_, _, span)) = line;
            if !self.spend(1, *span) {
                return;
            }
            match line {
                ast::ScheduleStmt::Layers(places, body, span) => {
                    let condition = match places {
                        ast::Places::Rest(rest) => self.other_layers(lines, *rest),
                        _ => self.places(ast::Dimension::Layers, places, *span),
                    };
                    if let Some(condition) = condition {
                        let inside = self.conjunction(guard, Some(condition), *span);
                        self.schedule_lines(body, inside);
                    }
                }
                ast::ScheduleStmt::Kind { kind, unit, mode, clauses, span } => {
                    let Some((kind, order)) = self.line_kind(kind, unit.as_ref(), mode.as_ref(), *span) else {
                        continue;
                    };
                    let clauses: Option<Vec<ir::Clause>> = clauses.iter().map(|clause| self.clause(clause)).collect();
                    if let Some(clauses) = clauses {
                        let span = *span;
                        self.strategy.schedule.push(ir::ScheduleRule { kind, guard, clauses, order, span });
                    }
                }
            }
        }
    }

    fn other_layers(&mut self, lines: &[ast::ScheduleStmt], span: Span) -> Option<ValueId> {
        self.spend(lines.len(), span);
        let mut any = vec![self.boolean(false, span)];
        for line in lines {
            if let ast::ScheduleStmt::Layers(places, _, _) = line
                && !matches!(places, ast::Places::Rest(_))
            {
                any.push(self.places(ast::Dimension::Layers, places, span)?);
            }
        }
        let any = self.any_of(&any, span)?;
        self.push(Op::Unary(ir::Unary::Not, any), span).ok()
    }

    /// What happens in a line, and the order of its forecast.
    fn line_kind(
        &mut self,
        kind: &ast::Ident,
        unit: Option<&ast::Ident>,
        mode: Option<&ast::Expr>,
        span: Span,
    ) -> Option<(StepKind, Option<ValueId>)> {
        let Some(&(_, step_kind)) = KINDS.iter().find(|(name, _)| *name == kind.node) else {
            let near = did_you_mean(&kind.node, KINDS.iter().map(|(name, _)| *name));
            let diagnostic =
                Diagnostic::new(Code::E0201, kind.span, format!("there is no kind of step `{}`", kind.node));
            self.report(match near {
                Some(near) => diagnostic.fix(format!("did you mean `{near}`?"), kind.span, near),
                None => diagnostic.help("steps are `dense`, `update`, `refresh`, `dispatch` or `reuse`"),
            });
            return None;
        };
        let word = match mode {
            Some(ast::Expr { kind: ast::ExprKind::Name(name), .. }) => name.as_str(),
            _ => "",
        };
        let step_kind = match (step_kind, word) {
            (StepKind::Dispatch, "residual") => StepKind::Residual,
            (StepKind::Reuse(_), "shared") => StepKind::Shared,
            (kind, _) => kind,
        };
        let step_kind = match unit {
            Some(unit) => self.with_unit(step_kind, kind, unit)?,
            None => step_kind,
        };
        let order = match (mode, step_kind) {
            (Some(mode), StepKind::Reuse(_)) => self.mode(Some(mode), span),
            (Some(_), StepKind::Residual | StepKind::Shared) | (None, _) => None,
            (Some(mode), StepKind::Dispatch) => {
                let message = "a `dispatch` step obeys symbols, or also adds what they lost `as residual`";
                self.report(Diagnostic::new(Code::E0108, mode.span, message));
                return None;
            }
            (Some(mode), _) => {
                let message = format!("`{}` steps reuse nothing, so `as` has no meaning here", kind.node);
                self.report(Diagnostic::new(Code::E0108, mode.span, message));
                return None;
            }
        };
        Some((step_kind, order))
    }

    /// A kind of step with what it reuses.
    fn with_unit(&mut self, step_kind: StepKind, kind: &ast::Ident, unit: &ast::Ident) -> Option<StepKind> {
        let known = Unit::ALL.into_iter().find(|known| known.name() == unit.node);
        let diagnostic = match (step_kind, known) {
            (StepKind::Reuse(_), Some(known)) => return Some(StepKind::Reuse(known)),
            (StepKind::Shared, Some(Unit::Attention)) => return Some(StepKind::Shared),
            (StepKind::Shared, _) => {
                let message = format!("the other branch shares its output of attention, not that of `{}`", unit.node);
                Diagnostic::new(Code::E0108, unit.span, message).help("write `reuse as shared`")
            }
            (_, _) => {
                let message = format!("only `reuse` says what is reused, so `{}` has no meaning here", unit.node);
                Diagnostic::new(Code::E0108, unit.span, message).also(kind.span, "these steps compute")
            }
        };
        self.report(diagnostic);
        None
    }

    fn clause(&mut self, clause: &ast::Clause) -> Option<ir::Clause> {
        match clause {
            ast::Clause::While(expr) => {
                let term = self.expression(expr);
                let id = self.scalar_condition(term, expr.span, "`while`")?;
                self.same_for(id, expr.span, &[Place::Head]).map(ir::Clause::While)
            }
            ast::Clause::Every { interval, from, except } => {
                let id = self.integer(interval, "an interval")?;
                self.same_for(id, interval.span, &[Place::Head, Place::Step])?;
                if self.constant(id).is_some_and(|value| value.int() < 1) {
                    self.report(
                        Diagnostic::new(Code::E0301, interval.span, "an interval is at least 1 step")
                            .help("`every 1` is every step"),
                    );
                    return None;
                }
                let from = match from {
                    Some(expr) => {
                        let id = self.integer(expr, "a step")?;
                        Some(self.same_for(id, expr.span, &[Place::Head, Place::Step])?)
                    }
                    None => None,
                };
                Some(ir::Clause::Every { interval: id, from, except: *except })
            }
            ast::Clause::On { steps, except } => {
                let steps = self.step_list(steps)?;
                Some(ir::Clause::On { steps, except: *except })
            }
        }
    }

    /// The value, if it does not depend on places that a line of a schedule cannot tell apart.
    fn same_for(&mut self, id: ValueId, span: Span, places: &[Place]) -> Option<ValueId> {
        let diagnostic = match self.depends_on(id, places) {
            None => return Some(id),
            Some(Place::Head) => Diagnostic::new(Code::E0209, span, "all heads of a layer have one schedule")
                .help("rules that differ by head are guards: `heads ..3 { ... }`"),
            Some(_) => Diagnostic::new(Code::E0209, span, "this is the same at every step")
                .help("say with `while` at which steps a line holds"),
        };
        self.report(diagnostic);
        None
    }

    fn step_list(&mut self, expr: &ast::Expr) -> Option<Vec<ValueId>> {
        let terms = match self.expression(expr) {
            Term::List(items) => items,
            Term::Hole => return None,
            one => vec![one],
        };
        let mut steps = Vec::new();
        for term in terms {
            let id = self.single(term, expr.span).ok()?;
            if self.ty(id) != ir::Type::scalar(Kind::Int) {
                self.report(
                    Diagnostic::new(Code::E0205, expr.span, "`on` takes steps")
                        .help("write `on last`, `on first` or `on [3, 7]`"),
                );
                return None;
            }
            steps.push(self.same_for(id, expr.span, &[Place::Head, Place::Step])?);
        }
        Some(steps)
    }
}
