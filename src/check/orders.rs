//! Orders of tokens, clusters and blocks.

use super::functions::CLUSTERS;
use super::rules::ANYWHERE;
use super::{Checker, code_list};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{self, Action, Op, ValueId};
use crate::source::Span;
use crate::syntax::ast::{self, ExprKind};

impl Checker<'_> {
    // ---- order, block ----

    pub(super) fn order(&mut self, segment: Option<&ast::Ident>, order: &ast::Expr, span: Span) {
        if let Some(name) = segment
            && !self.strategy.layout.iter().any(|known| known.name == name.node)
        {
            return self.unknown_segment(name);
        }
        let axes: Vec<String> = match segment {
            Some(name) => self
                .strategy
                .layout
                .iter()
                .find(|known| known.name == name.node)
                .map(|known| known.axes.clone())
                .unwrap_or_default(),
            None => self.grid_axes(),
        };
        if axes.is_empty() {
            self.report(
                Diagnostic::new(Code::E0208, span, "only tokens with coordinates can be ordered")
                    .help("name the axes in the layout, as in `layout video(t, h, w)`"),
            );
            return;
        }
        let order = match &order.kind {
            ExprKind::Call(name, args) if name.node == "tiles" => self.tiles(args, &axes, order.span),
            ExprKind::Call(name, args) if name.node == "axes" => self.axes_order(args, &axes, order.span),
            ExprKind::Name(name) if name == "gilbert" => Some(ir::Order::Gilbert),
            ExprKind::Call(name, _) if name.node == "input" => self.given_order(order),
            ExprKind::Call(name, args) if name.node == "clusters" => self.clusters(args, order.span),
            _ => {
                self.report(Diagnostic::new(Code::E0203, order.span, "expected an order of tokens").help(
                    "write `tiles(6, 8, 8)`, `axes(h, w, t)`, `gilbert`, `clusters(300, 1000)` or \
                             `input(\"order\", size(video))`",
                ));
                None
            }
        };
        if let Some(earlier) = self.strategy.orders.iter().find(|rule| rule.guard == self.guard) {
            let first = earlier.span;
            self.report(
                Diagnostic::new(Code::E0108, span, "the tokens of a head have one `order`")
                    .also(first, "first here")
                    .help("remove one, or guard them: `heads 0..4 { order ... }`"),
            );
            return;
        }
        if let Some(order) = order {
            let is_clustered = |order: &ir::Order| matches!(order, ir::Order::Clusters { .. });
            let mut others = self.strategy.orders.iter();
            let alone = self.guard.is_none() && others.len() == 0;
            if is_clustered(&order) && !alone || others.any(|rule| is_clustered(&rule.order)) {
                self.report(
                    Diagnostic::new(Code::E0208, span, "where tokens are clustered, all heads are")
                        .help("write `order clusters(...)` without a guard, and no other `order`"),
                );
                return;
            }
            let segment = segment.map(|name| name.node.clone());
            self.strategy.orders.push(ir::OrderRule { guard: self.guard, segment, order, span });
        }
    }

    fn tiles(&mut self, args: &[ast::Arg], axes: &[String], span: Span) -> Option<ir::Order> {
        if args.len() != axes.len() {
            let message = format!("a tile has one size for each of {}, found {}", code_list(axes), args.len());
            self.report(Diagnostic::new(Code::E0204, span, message));
            return None;
        }
        let sizes: Option<Vec<ValueId>> =
            args.iter().map(|arg| self.constant_size(&arg.value, "the size of a tile")).collect();
        Some(ir::Order::Tiles(sizes?))
    }

    /// `clusters(q, k, iterations = 50, again = 2, by = distance)`.
    fn clusters(&mut self, args: &[ast::Arg], span: Span) -> Option<ir::Order> {
        let args = self.arguments(&CLUSTERS, args, span)?;
        let mut size = |expr: &ast::Expr, what| self.constant_size(expr, what);
        let [q, kv] = [0, 1].map(|index| size(args.positional[index], "a number of clusters"));
        let [iterations, again] = [("iterations", 50), ("again", 2)].map(|(name, default)| match args.named(name) {
            Some(expr) => self.constant_size(expr, "a number of rounds"),
            None => Some(self.int(default, span)),
        });
        let by = [ir::Likeness::Distance, ir::Likeness::Profile][self.word(&args, "by", &["distance", "profile"])?];
        Some(ir::Order::Clusters { q: q?, kv: kv?, iterations: iterations?, again: again?, by })
    }

    /// Reports what clusters do not have: a place, the clusters of another head, features that are kept from step to step.
    pub(super) fn rules_over_clusters(&mut self) {
        let is_clustered = |rule: &ir::OrderRule| matches!(rule.order, ir::Order::Clusters { .. });
        let Some(order) = self.strategy.orders.iter().find(|rule| is_clustered(rule)).map(|rule| rule.span) else {
            return;
        };
        let also = |diagnostic: Diagnostic| diagnostic.also(order, "the tokens are clustered here");
        if let Some(rule) = self.strategy.rules.iter().find(|rule| rule.action == Action::Cache) {
            let message = "clusters are new at every update, so that no feature of theirs can be cached";
            let diagnostic = Diagnostic::new(Code::E0208, rule.span, message);
            return self.report(also(diagnostic).help("`reuse` in the schedule takes the output of a whole layer"));
        }
        let predicates = self.strategy.rules.iter().map(|rule| rule.predicate).collect();
        if let Some((span, lack)) = self.first_of(predicates, Op::lack_over_clusters) {
            let diagnostic = Diagnostic::new(Code::E0208, span, lack);
            self.report(also(diagnostic).help("choose clusters by their scores and segments"));
        }
    }

    fn axes_order(&mut self, args: &[ast::Arg], axes: &[String], span: Span) -> Option<ir::Order> {
        let names: Vec<Option<&String>> = args
            .iter()
            .map(|arg| match &arg.value.kind {
                ExprKind::Name(name) if axes.contains(name) => Some(name),
                _ => None,
            })
            .collect();
        let mut sorted: Vec<&String> = names.iter().flatten().copied().collect();
        sorted.sort();
        sorted.dedup();
        if sorted.len() != axes.len() || names.len() != axes.len() {
            let message = format!("an order names each of {} once, outermost first", code_list(axes));
            self.report(Diagnostic::new(Code::E0204, span, message));
            return None;
        }
        let order = names.into_iter().flatten().filter_map(|name| self.axis(name)).collect();
        Some(ir::Order::Axes(order))
    }

    /// An integer that is the same everywhere.
    fn constant_size(&mut self, expr: &ast::Expr, what: &str) -> Option<ValueId> {
        let id = self.integer(expr, what)?;
        if self.depends_on(id, ANYWHERE).is_some() {
            let message = format!("{what} is the same at every step, layer and head");
            self.report(Diagnostic::new(Code::E0209, expr.span, message));
            return None;
        }
        Some(id)
    }

    fn block_size(&mut self, expr: &ast::Expr) -> Option<ValueId> {
        let id = self.constant_size(expr, "the size of a block")?;
        let (least, most) = (ir::BLOCK_TOKENS.start(), ir::BLOCK_TOKENS.end());
        match self.constant(id).map(ir::scalar::Scalar::int) {
            Some(size) if !ir::BLOCK_TOKENS.contains(&size) => {
                let message = format!("a block has {least} to {most} tokens, found {size}");
                self.report(Diagnostic::new(Code::E0304, expr.span, message));
                None
            }
            _ => Some(id),
        }
    }

    /// `block tile`.
    fn blocks_of_tiles(&mut self, span: Span) -> Option<ir::Blocking> {
        let tiled = |rule: &ir::OrderRule| matches!(rule.order, ir::Order::Tiles(_)) && rule.guard.is_none();
        if matches!(self.strategy.orders.as_slice(), [rule] if tiled(rule)) {
            return Some(ir::Blocking::Tiles);
        }
        self.report(
            Diagnostic::new(Code::E0208, span, "tiles are blocks where all heads have one tile order")
                .help("write `order tiles(4, 4, 4)` before this line, without a guard"),
        );
        None
    }

    pub(super) fn block(&mut self, q: &ast::Expr, kv: Option<&ast::Expr>, span: Span) {
        if self.guard != self.outer_guard {
            self.report(
                Diagnostic::new(Code::E0108, span, "`block` holds for the whole strategy")
                    .help("move `block` out of the guard"),
            );
            return;
        }
        let blocking = match (&q.kind, kv) {
            (ExprKind::Name(name), None) if name == "tile" => self.blocks_of_tiles(span),
            _ => {
                let q = self.block_size(q);
                let kv = match kv {
                    Some(expr) => self.block_size(expr),
                    None => q,
                };
                q.zip(kv).map(|(q, kv)| ir::Blocking::Sizes(q, kv))
            }
        };
        let Some(blocking) = blocking else { return };
        match self.strategy.block {
            Some(earlier) if earlier != blocking => {
                let first = self.strategy.block_span;
                self.report(
                    Diagnostic::new(Code::E0108, span, "a strategy has one `block`")
                        .also(first, "first here")
                        .help("remove one; strategies that are used together share it"),
                );
            }
            _ => {
                self.strategy.block = Some(blocking);
                self.strategy.block_span = span;
            }
        }
    }
}
