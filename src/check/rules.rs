//! Rules and guards.

use std::collections::{HashMap, HashSet};

use super::expression::is_blocks;
use super::{Checker, Term, code_list};
use crate::diagnostics::{Code, Diagnostic, did_you_mean};
use crate::ir::{
    self, Action, Binary, Comparison, Coordinate, Extent, Kind, Lower, Op, Place, Real, SetId, Side, Unary, ValueId,
};
use crate::source::Span;
use crate::syntax::ast::{self, Dimension, ExprKind, Places};

/// Terms that a `where` over tokens and scores may have once it is written as a union of intersections.
const MAX_TERMS: usize = 64;

/// Everything that a scalar may change with.
pub(super) const ANYWHERE: &[Place] = &[Place::Step, Place::Layer, Place::Head];

const LOWERINGS: &[&str] = &["any", "all", "centre", "exact", "density"];

impl Checker<'_> {
    // ---- keep, skip, cache ----

    pub(super) fn rule(&mut self, action: Action, rule: &ast::Rule, span: Span) {
        let sets = (self.set(&rule.q), self.set(&rule.kv));
        let lower = self.lowering(action, rule.lower.as_ref());
        let predicate = match &rule.predicate {
            Some(expr) => self.predicate(expr, lower.unwrap_or(Lower::Any)),
            None => Some(self.boolean(true, span)),
        };
        let ((Some(q), Some(kv)), Some(predicate), Some(lower)) = (sets, predicate, lower) else { return };
        let place = rule.predicate.as_ref().map_or(span, |expr| expr.span);
        let mut directions = vec![(q, kv)];
        if rule.both && q != kv {
            directions.push((kv, q));
        }
        let mut domain = None;
        for (q, kv) in directions {
            if !self.domain_fits(predicate, Some(q), Some(kv), place) {
                return;
            }
            let here = self.domain(q, kv, span);
            domain = match domain {
                None => Some(here),
                Some(other) => self.push(Op::Binary(Binary::Or, other, here), span).ok(),
            };
        }
        let Some(domain) = domain else { return };
        if let (Lower::Exact | Lower::Density { .. }, true) = (lower, self.is_dynamic(predicate)) {
            let here = rule.lower.as_ref().map_or(span, |lower| lower.span);
            self.report(
                Diagnostic::new(Code::E0306, here, "only predicates of tokens can be lowered this way")
                    .also(place, "this depends on scores of blocks")
                    .help("split the rule in two: one for the tokens, one for the scores"),
            );
            return;
        }
        if terms(&self.strategy.graph, predicate) > MAX_TERMS {
            self.report(
                Diagnostic::new(Code::E0309, place, "this joins tokens and scores in too many ways")
                    .help("write several rules instead of one long `where`"),
            );
            return;
        }
        if let Some(predicate) = self.joined(domain, predicate, span) {
            let rule = ir::Rule { action, guard: self.guard, predicate, lower, order: None, span };
            self.strategy.rules.push(rule);
        }
    }

    pub(super) fn cache(
        &mut self,
        segments: &ast::Set,
        predicate: Option<&ast::Expr>,
        mode: Option<&ast::Expr>,
        span: Span,
    ) {
        let set = self.set(segments);
        let place = predicate.map_or(span, |expr| expr.span);
        // A block is cached only as a whole: no token outside the rule loses its computation.
        let lower = Lower::All;
        let predicate = match predicate {
            Some(expr) => self.predicate(expr, lower),
            None => Some(self.boolean(true, span)),
        };
        let order = self.mode(mode, span);
        let (Some(set), Some(predicate), Some(order)) = (set, predicate, order) else { return };
        match self.ty(predicate).extent {
            Extent::Blocks { q: Some(_), kv: Some(_) } => {
                self.report(
                    Diagnostic::new(Code::E0206, place, "`cache` chooses q-blocks, this chooses pairs of blocks")
                        .help("make one number of those of each q-block before choosing, as in `sum(x, over = k)`"),
                );
                return;
            }
            Extent::Blocks { kv: Some(_), .. } => {
                self.report(
                    Diagnostic::new(Code::E0206, place, "`cache` chooses q-blocks, this chooses kv-blocks")
                        .help("write `transpose(...)` around the score to speak of the queries"),
                );
                return;
            }
            Extent::Token { kv: true, .. } | Extent::Mixed => {
                self.report(
                    Diagnostic::new(
                        Code::E0206,
                        place,
                        "`cache` chooses queries and cannot speak of `k` or mix tokens with scores",
                    )
                    .help("use two rules, or a predicate of `q` alone"),
                );
                return;
            }
            _ => {}
        }
        if !self.domain_fits(predicate, Some(set), None, place) {
            return;
        }
        let domain = self.in_set(set, Side::Query, span);
        if let Some(predicate) = self.joined(domain, predicate, span) {
            let order = Some(order);
            let rule = ir::Rule { action: Action::Cache, guard: self.guard, predicate, lower, order, span };
            self.strategy.rules.push(rule);
        }
    }

    /// The order of the forecast that `as` names.
    pub(super) fn mode(&mut self, mode: Option<&ast::Expr>, span: Span) -> Option<ValueId> {
        let Some(expr) = mode else { return Some(self.int(0, span)) };
        if let Some(diagnostic) = self.unknown_mode(expr) {
            self.report(diagnostic);
            return None;
        }
        match self.expression(expr) {
            Term::Mode(order) => Some(order),
            Term::Hole => None,
            _ => {
                self.report(
                    Diagnostic::new(Code::E0205, expr.span, "expected a way of reuse")
                        .help("write `as reuse` or `as taylor(1)`"),
                );
                None
            }
        }
    }

    /// What is said of a name behind `as` that nothing has.
    fn unknown_mode(&mut self, expr: &ast::Expr) -> Option<Diagnostic> {
        let (name, span) = match &expr.kind {
            ExprKind::Call(name, _) => (name.node.as_str(), name.span),
            ExprKind::Name(name) => (name.as_str(), expr.span),
            _ => return None,
        };
        let is_known = super::functions::is_function(name)
            || self.lookup(name).is_some()
            || self.axis(name).is_some()
            || self.builtin_name(name, expr.span).is_some();
        if is_known {
            return None;
        }
        let diagnostic = Diagnostic::new(Code::E0203, span, format!("there is no way of reuse `{name}`"));
        Some(match &expr.kind {
            ExprKind::Call(_, args) if matches!(args.as_slice(), [ast::Arg { name: None, .. }]) => {
                diagnostic.fix("a forecast of some order is `taylor(order)`", span, "taylor")
            }
            _ => diagnostic.help("write `as reuse` or `as taylor(1)`"),
        })
    }

    /// The truth value of a `where`; one on the scores of tokens is lowered here.
    fn predicate(&mut self, expr: &ast::Expr, lower: Lower) -> Option<ValueId> {
        let term = self.expression(expr);
        let id = self.single(term, expr.span).ok()?;
        if self.ty(id).kind == Kind::Bool {
            let id = self.gathered_by(lower, id, expr.span).ok()?;
            // The parts of a selection stay visible to `domain_fits` below the embedding.
            return self.embedded(id, expr.span).ok();
        }
        let mut diagnostic = Diagnostic::new(Code::E0205, expr.span, "`where` takes a truth value, this is a number");
        if is_blocks(self.ty(id)) {
            diagnostic = diagnostic.help("choose some of the scores with `top_k`, `top_p`, `bottom_mass` or `above`");
        }
        self.report(diagnostic);
        None
    }

    fn joined(&mut self, domain: ValueId, predicate: ValueId, span: Span) -> Option<ValueId> {
        match self.strategy.graph.op(predicate) {
            Op::Bool(true) => Some(domain),
            _ => self.push(Op::Binary(Binary::And, domain, predicate), span).ok(),
        }
    }

    fn in_set(&mut self, set: SetId, side: Side, span: Span) -> ValueId {
        if set == SetId::ALL {
            return self.boolean(true, span);
        }
        let extent = Extent::Token { q: side == Side::Query, kv: side == Side::Key };
        self.strategy.graph.push(Op::InSet(set, side), ir::Type::new(Kind::Bool, extent), span)
    }

    fn domain(&mut self, q: SetId, kv: SetId, span: Span) -> ValueId {
        let (in_q, in_kv) = (self.in_set(q, Side::Query, span), self.in_set(kv, Side::Key, span));
        match (q, kv) {
            (SetId::ALL, _) => in_kv,
            (_, SetId::ALL) => in_q,
            _ => {
                let ty = ir::Type::new(Kind::Bool, Extent::Token { q: true, kv: true });
                self.strategy.graph.push(Op::Binary(Binary::And, in_q, in_kv), ty, span)
            }
        }
    }

    fn is_dynamic(&self, id: ValueId) -> bool {
        matches!(self.ty(id).extent, Extent::Blocks { .. } | Extent::Mixed)
    }

    /// Whether the coordinates and selections of a predicate exist on all of a rule's domain.
    fn domain_fits(&mut self, predicate: ValueId, q: Option<SetId>, kv: Option<SetId>, place: Span) -> bool {
        let mut reachable = vec![predicate];
        let mut seen = HashSet::new();
        while let Some(id) = reachable.pop() {
            if !seen.insert(id) {
                continue;
            }
            let op = self.strategy.graph.op(id).clone();
            let fits = match op {
                Op::Coordinate(Coordinate::Axis(axis), side) => {
                    let set = if side == Side::Query { q } else { kv };
                    self.has_axis(axis, set, id, place)
                }
                Op::Coordinate(Coordinate::Tile(_), side) => {
                    let set = if side == Side::Query { q } else { kv };
                    self.has_tiles(set, id, place)
                }
                Op::Embed(inner) => {
                    let Extent::Blocks { q: over_q, kv: over_kv } = self.ty(inner).extent else { continue };
                    self.covers(over_q, q, inner, place) && self.covers(over_kv, kv, inner, place)
                }
                _ => true,
            };
            if !fits {
                return false;
            }
            if !matches!(op, Op::Embed(_)) {
                reachable.extend(op.operands());
            }
        }
        true
    }

    fn has_axis(&mut self, axis: u8, set: Option<SetId>, id: ValueId, place: Span) -> bool {
        let Some(set) = set else { return true };
        let name = self.strategy.graph.axes[usize::from(axis)].clone();
        let named: Vec<String> = self.strategy.graph.parts(set).iter().map(|part| part.segment.clone()).collect();
        let layout = &self.strategy.layout;
        let lacking = layout
            .iter()
            .filter(|segment| named.is_empty() || named.contains(&segment.name))
            .find(|segment| !segment.axes.contains(&name))
            .map(|segment| segment.name.clone());
        let Some(lacking) = lacking else { return true };
        let with: Vec<&str> =
            layout.iter().filter(|segment| segment.axes.contains(&name)).map(|segment| segment.name.as_str()).collect();
        let with = with.join(" + ");
        self.report(
            Diagnostic::new(Code::E0208, place, format!("tokens of `{lacking}` have no coordinate `{name}`"))
                .also(self.span_of(id), "used here")
                .help(format!("restrict the rule to `{with}`, which has it")),
        );
        false
    }

    fn has_tiles(&mut self, set: Option<SetId>, id: ValueId, place: Span) -> bool {
        let (Some(set), Some(tiled)) = (set, self.tiled_segment()) else { return true };
        let named = self.strategy.graph.parts(set);
        let others = self.strategy.layout.iter().map(|segment| &segment.name).filter(|name| **name != tiled);
        let lacking = match named {
            [] => others.into_iter().next(),
            parts => parts.iter().map(|part| &part.segment).find(|name| **name != tiled),
        };
        let Some(lacking) = lacking.cloned() else { return true };
        self.report(
            Diagnostic::new(Code::E0208, place, format!("tokens of `{lacking}` have no tile"))
                .also(self.span_of(id), "used here")
                .help(format!("restrict the rule to `{tiled}`, whose tokens are ordered by tiles")),
        );
        false
    }

    fn covers(&mut self, over: Option<SetId>, domain: Option<SetId>, id: ValueId, place: Span) -> bool {
        let (Some(over), Some(domain)) = (over, domain) else { return true };
        let graph = &self.strategy.graph;
        let (over_parts, parts) = (graph.parts(over), graph.parts(domain));
        let fits = over == SetId::ALL
            || (!parts.is_empty()
                && parts.iter().all(|part| {
                    over_parts.contains(part)
                        || over_parts.iter().any(|o| o.segment == part.segment && o.which == ir::Which::Whole)
                }));
        if !fits {
            let (over, domain) = (self.set_words(over), self.set_words(domain));
            self.report(
                Diagnostic::new(
                    Code::E0206,
                    place,
                    format!("the rule is about `{domain}`, but this is chosen among `{over}`"),
                )
                .also(self.span_of(id), format!("over `{over}`"))
                .help("take the same part of the score as the rule names, as in `score[video -> video]`"),
            );
        }
        fits
    }

    fn lowering(&mut self, action: Action, lower: Option<&ast::Lower>) -> Option<Lower> {
        // Without a word nothing that a rule does not speak of changes: blocks are kept when they hold a kept pair,
        // and skipped when all of their pairs are.
        let Some(lower) = lower else {
            return Some(if action == Action::Keep { Lower::Any } else { Lower::All });
        };
        let plain = match lower.name.node.as_str() {
            "any" => Some(Lower::Any),
            "all" => Some(Lower::All),
            "centre" => Some(Lower::Centre),
            "exact" if action == Action::Skip => {
                self.report(
                    Diagnostic::new(Code::E0306, lower.span, "`skip` works on whole blocks")
                        .help("write the pairs that remain as `keep ... lower exact`"),
                );
                return None;
            }
            "exact" => Some(Lower::Exact),
            "density" => return self.density(lower),
            other => {
                let mut diagnostic =
                    Diagnostic::new(Code::E0306, lower.name.span, format!("there is no lowering `{other}`"))
                        .label(format!("lowerings: {}", code_list(LOWERINGS)));
                if let Some(near) = did_you_mean(other, LOWERINGS.iter().copied()) {
                    diagnostic = diagnostic.fix(format!("did you mean `{near}`?"), lower.name.span, near);
                }
                self.report(diagnostic);
                return None;
            }
        };
        if !lower.args.is_empty() || lower.per.is_some() {
            let message = format!("`lower {}` takes no arguments", lower.name.node);
            self.report(Diagnostic::new(Code::E0204, lower.span, message));
            return None;
        }
        plain
    }

    fn density(&mut self, lower: &ast::Lower) -> Option<Lower> {
        let mut shares = [None, None];
        for (index, arg) in lower.args.iter().enumerate() {
            let slot = match arg.name.as_ref().map(|name| name.node.as_str()) {
                None => index,
                Some("column") => 0,
                Some("share") => 1,
                Some(_) => 2,
            };
            let term = self.expression(&arg.value);
            let id = self.single(term, arg.value.span).ok()?;
            let value = self.constant(id).map(super::super::ir::scalar::Scalar::real);
            match (value, shares.get_mut(slot)) {
                (Some(value), Some(share)) if (0.0..=1.0).contains(&value) => *share = Some(Real(value)),
                (_, None) => {
                    let name = arg.name.clone().unwrap_or_else(|| lower.name.clone());
                    self.unknown_argument("density", &name, &["column", "share"]);
                    return None;
                }
                _ => {
                    let message = "a share of `density` is a constant from 0 to 1";
                    self.report(Diagnostic::new(Code::E0301, arg.value.span, message));
                    return None;
                }
            }
        }
        let [Some(column), Some(block)] = shares else {
            self.report(
                Diagnostic::new(Code::E0204, lower.span, "`density` takes two shares")
                    .help("write `lower density(1 / 3, 3 / 5)`: the share of a column, and of the columns"),
            );
            return None;
        };
        let per = match &lower.per {
            None => None,
            Some(name) => match self.axis(&name.node) {
                Some(axis) => Some(axis),
                None => {
                    let message = format!("the layout has no axis `{}`", name.node);
                    self.report(Diagnostic::new(Code::E0208, name.span, message));
                    return None;
                }
            },
        };
        Some(Lower::Density { column, block, per })
    }

    /// The value of an expression that depends on nothing.
    pub(super) fn constant(&self, id: ValueId) -> Option<ir::scalar::Scalar> {
        let graph = &self.strategy.graph;
        let (mut open, mut seen) = (vec![id], HashSet::new());
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            match graph.op(id) {
                Op::Bool(_)
                | Op::Int(_)
                | Op::Real(_)
                | Op::Unary(..)
                | Op::Binary(..)
                | Op::Compare(..)
                | Op::Choose(..) => {}
                _ => return None,
            }
            open.extend(graph.op(id).operands());
        }
        Some(ir::scalar::evaluate(graph, id, ir::scalar::At::default(), &ir::scalar::NoTokens))
    }

    // ---- guards ----

    pub(super) fn guarded(
        &mut self,
        guard: &ast::Guard,
        body: &[ast::Stmt],
        otherwise: Option<&[ast::Stmt]>,
        siblings: &[ast::Stmt],
        span: Span,
    ) {
        let condition = match guard {
            ast::Guard::Places(dimension, Places::Rest(rest)) => {
                self.spend(siblings.len(), span);
                let named: Vec<(Dimension, &Places)> = siblings
                    .iter()
                    .filter_map(|stmt| match &stmt.kind {
                        ast::StmtKind::Guard { guard: ast::Guard::Places(other, places), .. }
                            if other == dimension && !matches!(places, Places::Rest(_)) =>
                        {
                            Some((*other, places))
                        }
                        _ => None,
                    })
                    .collect();
                self.rest(&named, *dimension, *rest)
            }
            ast::Guard::Places(dimension, places) => self.places(*dimension, places, span),
            ast::Guard::When(expr) => {
                let term = self.expression(expr);
                self.scalar_condition(term, expr.span, "`when`")
            }
        };
        let Some(condition) = condition else {
            // What it guards is still checked.
            self.under(self.guard, body);
            return self.under(self.guard, otherwise.unwrap_or_default());
        };
        let inside = self.conjunction(self.guard, Some(condition), span);
        self.under(inside, body);
        if let Some(otherwise) = otherwise
            && let Ok(not) = self.push(Op::Unary(Unary::Not, condition), span)
        {
            let outside = self.conjunction(self.guard, Some(not), span);
            self.under(outside, otherwise);
        }
    }

    fn under(&mut self, guard: Option<ValueId>, body: &[ast::Stmt]) {
        let outer = std::mem::replace(&mut self.guard, guard);
        self.scopes.push(super::Scope::default());
        self.statements(body);
        self.leave_scope();
        self.guard = outer;
    }

    /// A truth value of the place alone.
    pub(super) fn scalar_condition(&mut self, term: Term, span: Span, word: &str) -> Option<ValueId> {
        let id = self.single(term, span).ok()?;
        let ty = self.ty(id);
        if ty == ir::Type::scalar(Kind::Bool) {
            return Some(id);
        }
        let diagnostic = if ty.extent == Extent::Scalar {
            Diagnostic::new(Code::E0205, span, format!("{word} takes a truth value, this is a number"))
        } else {
            Diagnostic::new(Code::E0209, span, format!("{word} cannot depend on tokens or scores"))
                .label(format!("this is over {}", self.extent_words(id)))
                .help("use `where` in a rule for what depends on tokens and scores")
        };
        self.report(diagnostic);
        None
    }

    fn rest(&mut self, named: &[(Dimension, &Places)], dimension: Dimension, span: Span) -> Option<ValueId> {
        let before = self.strategy.bounds.len();
        let mut named_places = Vec::new();
        for (_, places) in named {
            named_places.push(self.places(dimension, places, span)?);
        }
        // The guards beside it carry these bounds already.
        self.strategy.bounds.truncate(before);
        match self.any_of(&named_places, span) {
            Some(any) => self.push(Op::Unary(Unary::Not, any), span).ok(),
            None if self.limits.reached => None,
            None => {
                self.report(
                    Diagnostic::new(Code::W0504, span, "`rest` stands beside no other guard and names everything")
                        .help("remove the guard, or name the others beside it"),
                );
                Some(self.boolean(true, span))
            }
        }
    }

    pub(super) fn places(&mut self, dimension: Dimension, places: &Places, span: Span) -> Option<ValueId> {
        let place = match dimension {
            Dimension::Heads => Place::Head,
            Dimension::Layers => Place::Layer,
            Dimension::Steps => Place::Step,
        };
        let index = self.push(Op::Place(place), span).ok()?;
        match places {
            Places::Rest(span) => {
                self.report(Diagnostic::new(Code::E0108, *span, "`rest` stands alone"));
                None
            }
            Places::One(expr) => {
                let value = self.bound(place, expr, false)?;
                self.push(Op::Compare(Comparison::Equal, index, value), expr.span).ok()
            }
            Places::Range(from, to, span) => {
                self.range_is_not_empty(from.as_ref(), to.as_ref(), *span)?;
                let mut condition = None;
                if let Some(expr) = from {
                    let value = self.bound(place, expr, false)?;
                    condition = self.push(Op::Compare(Comparison::LessEqual, value, index), *span).ok();
                }
                if let Some(expr) = to {
                    let value = self.bound(place, expr, true)?;
                    let below = self.push(Op::Compare(Comparison::Less, index, value), *span).ok();
                    condition = self.conjunction(condition, below, *span);
                }
                Some(condition.unwrap_or_else(|| self.boolean(true, *span)))
            }
            Places::List(items, span) => {
                let mut any = vec![self.boolean(false, *span)];
                for item in items {
                    any.push(self.places(dimension, item, *span)?);
                }
                self.any_of(&any, *span)
            }
        }
    }

    /// Reports a range of two written numbers that holds no place.
    fn range_is_not_empty(&mut self, from: Option<&ast::Expr>, to: Option<&ast::Expr>, span: Span) -> Option<()> {
        let (Some(ast::Expr { kind: ExprKind::Int(from), .. }), Some(ast::Expr { kind: ExprKind::Int(to), .. })) =
            (from, to)
        else {
            return Some(());
        };
        if from < to {
            return Some(());
        }
        let help = if from == to {
            format!("a range is without its end: `[{from}]` is the place {from}")
        } else {
            format!("a range goes up and is without its end, as in `{to}..{from}`")
        };
        self.report(Diagnostic::new(Code::E0301, span, format!("the range `{from}..{to}` is empty")).help(help));
        None
    }

    fn bound(&mut self, place: Place, expr: &ast::Expr, exclusive: bool) -> Option<ValueId> {
        let value = self.integer(expr, "a bound")?;
        if self.depends_on(value, ANYWHERE).is_some() {
            let message = "the bound of a guard is the same everywhere";
            self.report(Diagnostic::new(Code::E0209, expr.span, message).help("use `when` for other conditions"));
            return None;
        }
        self.strategy.bounds.push(ir::Bound { place, value, exclusive, span: expr.span });
        Some(value)
    }

    /// An integer scalar.
    pub(super) fn integer(&mut self, expr: &ast::Expr, what: &str) -> Option<ValueId> {
        let term = self.expression(expr);
        let id = self.single(term, expr.span).ok()?;
        let ty = self.ty(id);
        if ty == ir::Type::scalar(Kind::Int) {
            return Some(id);
        }
        let mut diagnostic = Diagnostic::new(Code::E0205, expr.span, format!("{what} is an integer"));
        if ty.kind == Kind::Real {
            diagnostic = diagnostic.label("this is a real number").help("round it with `floor`, `ceil` or `round`");
        }
        self.report(diagnostic);
        None
    }
}

/// Number of terms a predicate has at most as a union of intersections.
fn terms(graph: &ir::Graph, id: ValueId) -> usize {
    fn of(graph: &ir::Graph, id: ValueId, known: &mut HashMap<ValueId, usize>) -> usize {
        if let Some(&terms) = known.get(&id) {
            return terms;
        }
        let terms = match *graph.op(id) {
            Op::Binary(Binary::And | Binary::Or | Binary::Xor, a, b) if graph.ty(id).extent == Extent::Mixed => {
                of(graph, a, known).saturating_add(1).saturating_mul(of(graph, b, known).saturating_add(1))
            }
            Op::Unary(Unary::Not, a) => of(graph, a, known),
            _ => 1,
        };
        known.insert(id, terms);
        terms
    }
    of(graph, id, &mut HashMap::new())
}
