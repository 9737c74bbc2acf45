//! Scores: vectors of blocks and tokens, maps, selections.

use super::expression::is_blocks;
use super::functions::Args;
use super::{Checker, Term, code_list};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{
    Comparison, Extent, Grain, Kind, Lower, Op, Over, Reduction, Rounding, Rows, Selector, SetId, Side, Source,
    Statistic, Type, Unary, ValueId,
};
use crate::source::Span;
use crate::syntax::ast::{self, CompareOp, ExprKind};

impl Checker<'_> {
    pub(super) fn pool(&mut self, statistic: Statistic, args: &Args<'_>) -> Term {
        if let Some(source) = self.source(args.positional[0]) {
            return self.push_term(Op::Pool(statistic, source), args.span);
        }
        match self.expression(args.positional[0]) {
            Term::Hole => Term::Hole,
            _ => {
                let message = format!("`{}` pools the tokens of `q`, `k` or `v`", args.function);
                let diagnostic = Diagnostic::new(Code::E0205, args.span, message);
                self.hole(diagnostic.help("the mean of a score along an axis is `average(x, over = k)`"))
            }
        }
    }

    /// What `q`, `k` or `v` stand for where vectors are meant.
    fn source(&mut self, expr: &ast::Expr) -> Option<Source> {
        match &expr.kind {
            ExprKind::Name(name) if name == "v" && self.lookup(name).is_none() => Some(Source::Value),
            ExprKind::Name(name) => match self.lookup(name).or_else(|| self.builtin_name(name, expr.span)) {
                Some(Term::Side(side)) => Some(side.source()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The tokens of a side, or the last of them.
    pub(super) fn each(&mut self, args: &Args<'_>) -> Term {
        let Some(source) = self.source(args.positional[0]) else {
            let diagnostic = Diagnostic::new(Code::E0205, args.positional[0].span, "expected `q`, `k` or `v`");
            return self.hole(diagnostic.help("`each(q)` is one vector for every query, `each(k)` one for every key"));
        };
        let grain = match (args.named("last"), args.named("rows")) {
            (None, None) => Grain::Tokens,
            (None, Some(expr)) => match self.rows(expr) {
                Some(rows) => rows,
                None => return Term::Hole,
            },
            (Some(_), Some(expr)) => {
                let message = "`last` says which tokens are meant, and so does `rows`";
                return self.hole(Diagnostic::new(Code::E0204, expr.span, message).help("remove one"));
            }
            (Some(expr), None) => {
                let Some(id) = self.integer(expr, "a number of tokens") else { return Term::Hole };
                match self.constant(id).and_then(|count| u32::try_from(count.int()).ok()) {
                    Some(count @ 1..) => Grain::Last(count),
                    _ => {
                        let message = "`last` is a constant number of tokens, at least 1";
                        return self.hole(Diagnostic::new(Code::E0301, expr.span, message));
                    }
                }
            }
        };
        let set = self.strategy.graph.set_of(Vec::new(), grain);
        self.push_term(Op::Each(source, set), args.span)
    }

    /// Positions of tokens: an input of integers with one dimension, or integers that are written out.
    fn rows(&mut self, expr: &ast::Expr) -> Option<Grain> {
        let (name, values) = match self.expression(expr) {
            Term::Hole => return None,
            Term::Input(declared) => match self.input_row(&declared) {
                Some(values) => (declared.name().to_owned(), values),
                None => {
                    let message = format!("rows are integers from 0, one dimension of `{}`", declared.name());
                    self.report(Diagnostic::new(Code::E0305, expr.span, message));
                    return None;
                }
            },
            Term::Tuple(items) | Term::List(items) => {
                let mut values = Vec::new();
                for item in items {
                    let id = self.single(item, expr.span).ok()?;
                    values.push(self.constant(id).and_then(|value| u32::try_from(value.int()).ok()));
                }
                let Some(values) = values.into_iter().collect() else {
                    let message = "a row is a constant integer from 0";
                    self.report(Diagnostic::new(Code::E0301, expr.span, message));
                    return None;
                };
                (String::new(), values)
            }
            _ => {
                let diagnostic = Diagnostic::new(Code::E0205, expr.span, "rows are positions of tokens");
                self.report(diagnostic.help("write `rows = (0, 77)`, or name an input of integers"));
                return None;
            }
        };
        let mut rows = Rows { name, tokens: values };
        rows.tokens.sort_unstable();
        rows.tokens.dedup();
        let known = &mut self.strategy.graph.rows;
        let index = known.iter().position(|known| *known == rows).unwrap_or(known.len());
        match u16::try_from(index) {
            Ok(index) if index < u16::MAX => {
                if usize::from(index) == known.len() {
                    known.push(rows);
                }
                Some(Grain::Rows(index))
            }
            _ => {
                self.report(Diagnostic::new(Code::E0309, expr.span, format!("more than {} lists of rows", u16::MAX)));
                None
            }
        }
    }

    /// What the host measures when symbols are chosen.
    pub(super) fn measured(&mut self, args: &Args<'_>) -> Term {
        let ExprKind::Text(name) = &args.positional[0].kind else {
            let diagnostic =
                Diagnostic::new(Code::E0204, args.positional[0].span, "what is measured is named by a text");
            return self.hole(diagnostic.help("write `measured(\"loss\")` or `measured(\"router\", q)`"));
        };
        let over = match args.positional.get(1) {
            None => None,
            Some(expr) => match self.side(expr) {
                Some(side) => Some((side, self.strategy.graph.set_of(Vec::new(), Grain::Tokens))),
                None => return Term::Hole,
            },
        };
        self.push_term(Op::Measured { name: name.clone(), over }, args.span)
    }

    pub(super) fn dot(&mut self, args: &Args<'_>) -> Term {
        let mut vectors = [None, None];
        for expr in &args.positional {
            let term = self.expression(expr);
            let Ok(id) = self.single(term, expr.span) else { return Term::Hole };
            let Extent::Vectors(side, _) = self.ty(id).extent else {
                let diagnostic = Diagnostic::new(Code::E0206, expr.span, "`dot` takes vectors of q and k");
                return self.hole(diagnostic.help("write `dot(mean(q), mean(k))`"));
            };
            vectors[usize::from(side == Side::Key)] = Some(id);
        }
        match vectors {
            [Some(q), Some(k)] => self.push_term(Op::Dot(q, k), args.span),
            _ => self.hole(
                Diagnostic::new(Code::E0206, args.span, "`dot` takes vectors of `q` and of `k`")
                    .help("write `dot(mean(q), mean(k))`"),
            ),
        }
    }

    pub(super) fn blocks_argument(&mut self, args: &Args<'_>) -> Option<ValueId> {
        let expr = args.positional[0];
        let term = self.expression(expr);
        let id = self.single(term, expr.span).ok()?;
        if is_blocks(self.ty(id)) {
            return Some(id);
        }
        let words = self.extent_words(id);
        self.report(
            Diagnostic::new(Code::E0206, expr.span, format!("`{}` takes a value over blocks", args.function))
                .label(format!("this is {words}"))
                .help("scores of blocks come from `dot(mean(q), mean(k))` or `self_similarity(q)`"),
        );
        None
    }

    /// The side behind `over`.
    fn axis_of_blocks(&mut self, expr: &ast::Expr) -> Option<Side> {
        match &expr.kind {
            ExprKind::Name(name) if !matches!(name.as_str(), "q" | "k") && self.lookup(name).is_none() => {
                let message = format!("`over` takes an axis of blocks, and `{name}` is none");
                self.report(Diagnostic::new(Code::E0205, expr.span, message).help(
                    "`over = k` goes along the keys of each query, `over = q` along the queries of each key; some \
                     functions know `all`, `layer`, `heads`, `block` or `channels` too",
                ));
                None
            }
            _ => self.side(expr),
        }
    }

    /// The first argument and the axis of `over`.
    pub(super) fn reducible(&mut self, args: &Args<'_>) -> Option<(ValueId, Over)> {
        let id = self.blocks_argument(args)?;
        let Extent::Blocks { q, kv } = self.ty(id).extent else { return None };
        let over = match (over_word(args), args.named("over")) {
            ("all", _) => Over::Both,
            ("layer", _) => Over::Layer,
            ("heads", _) => Over::Heads,
            (_, Some(expr)) => self.axis_of_blocks(expr)?.into(),
            (_, None) if kv.is_some() => Over::Key,
            (_, None) => Over::Query,
        };
        let present = match over {
            Over::Query => q.is_some(),
            Over::Key => kv.is_some(),
            Over::Both | Over::Layer => q.is_some() && kv.is_some(),
            Over::Heads => true,
        };
        if !present {
            let words = self.extent_words(id);
            self.report(
                Diagnostic::new(Code::E0206, args.span, "there is no such axis to go over")
                    .label(format!("the value is over {words}")),
            );
            return None;
        }
        let id = if args.function == "sum" || self.ty(id).kind != Kind::Int {
            id
        } else {
            self.as_real(id, args.span).ok()?
        };
        Some((id, over))
    }

    /// Sums along diagonals, and the blocks that chosen ones touch.
    pub(super) fn diagonals(&mut self, args: &Args<'_>) -> Term {
        let Some(value) = self.blocks_argument(args) else { return Term::Hole };
        let op = match args.function {
            "diagonals" => Op::Diagonals(value, self.distances()),
            _ => Op::OnDiagonals(value),
        };
        self.push_term(op, args.span)
    }

    /// The set of all distances between tokens.
    pub(super) fn distances(&mut self) -> SetId {
        self.strategy.graph.set_of(Vec::new(), Grain::Distances)
    }

    /// Elements moved along a side.
    pub(super) fn shift(&mut self, args: &Args<'_>) -> Term {
        let Some((value, over)) = self.reducible(args) else { return Term::Hole };
        let Ok(value) = self.as_real(value, args.span) else { return Term::Hole };
        let Some(by) = self.integer(args.positional[1], "a number of blocks") else { return Term::Hole };
        let over = match over {
            Over::Query => Side::Query,
            Over::Key => Side::Key,
            Over::Both | Over::Layer | Over::Heads => {
                let diagnostic = Diagnostic::new(Code::E0204, args.span, "`shift` goes along `q` or `k`");
                return self.hole(diagnostic);
            }
        };
        self.push_term(Op::Shift { value, by, over }, args.span)
    }

    /// A condition on tokens as one on blocks.
    pub(super) fn lowered(&mut self, args: &Args<'_>) -> Term {
        let Some(choice) = self.word(args, "by", &["any", "all", "centre"]) else { return Term::Hole };
        let how = [Lower::Any, Lower::All, Lower::Centre][choice];
        let term = self.expression(args.positional[0]);
        let Ok(condition) = self.single(term, args.positional[0].span) else { return Term::Hole };
        let ty = self.ty(condition);
        if ty.kind == Kind::Bool && self.has_token_elements(condition) {
            return self.gathered_by(how, condition, args.span).map_or_else(|hole| hole, Term::Value);
        }
        if ty.kind != Kind::Bool || !matches!(ty.extent, Extent::Token { .. }) {
            let diagnostic = Diagnostic::new(Code::E0206, args.positional[0].span, "expected a condition on tokens");
            let diagnostic = diagnostic.label(format!("this is {}", self.extent_words(condition)));
            return self.hole(match (ty.kind, ty.extent) {
                (Kind::Bool, Extent::Blocks { .. }) => {
                    diagnostic.help("it chooses blocks already: leave `lowered` away")
                }
                _ => diagnostic,
            });
        }
        self.push_term(Op::Lower(how, condition), args.span)
    }

    /// A condition on the scores of tokens as one on blocks.
    pub(super) fn gathered_by(&mut self, how: Lower, id: ValueId, span: Span) -> Result<ValueId, Term> {
        if !self.has_token_elements(id) {
            return Ok(id);
        }
        if let Extent::Blocks { kv: Some(set), .. } = self.ty(id).extent
            && self.strategy.graph.grain(set) == Grain::Distances
        {
            let diagnostic = Diagnostic::new(Code::E0206, span, "this chooses distances, not keys");
            return Err(self
                .hole(diagnostic.help("`on_diagonals(chosen)` are the blocks that hold a pair of a chosen distance")));
        }
        match how {
            Lower::Any => self.gathered(Reduction::Max, id, span),
            Lower::All => self.gathered(Reduction::Min, id, span),
            _ => {
                let message = "scores of single tokens become scores of blocks by `any` or `all`";
                Err(self.hole(Diagnostic::new(Code::E0306, span, message)))
            }
        }
    }

    /// A value of another head.
    pub(super) fn of_head(&mut self, args: &Args<'_>) -> Term {
        let Some(value) = self.blocks_argument(args) else { return Term::Hole };
        let Ok(value) = self.as_real(value, args.span) else { return Term::Hole };
        let term = self.expression(args.positional[1]);
        let Ok(head) = self.single(term, args.positional[1].span) else { return Term::Hole };
        if self.ty(head) != Type::scalar(Kind::Int) {
            let diagnostic = Diagnostic::new(Code::E0205, args.positional[1].span, "a head is one integer, from 0");
            return self.hole(diagnostic);
        }
        self.push_term(Op::AtHead { value, head }, args.span)
    }

    pub(super) fn reduction(&mut self, how: Reduction, args: &Args<'_>) -> Term {
        match over_word(args) {
            "block" => return self.over_block(how, args),
            "channels" => return self.over_channels(how, args),
            "heads" if args.function != "count" => {
                let Some(value) = self.blocks_argument(args) else { return Term::Hole };
                let Ok(value) = self.as_real(value, args.span) else { return Term::Hole };
                return self.push_term(Op::OverHeads { how, value }, args.span);
            }
            _ => {}
        }
        let Some((value, over)) = self.reducible(args) else { return Term::Hole };
        let value = match (args.function, self.ty(value).kind) {
            ("count", Kind::Bool) => self.push(Op::Unary(Unary::ToReal, value), args.span),
            ("count", _) => {
                let message = "`count` counts where a condition holds, this is a number";
                return self.hole(Diagnostic::new(Code::E0205, args.positional[0].span, message));
            }
            _ => self.as_real(value, args.span),
        };
        let Ok(value) = value else { return Term::Hole };
        self.push_term(Op::Reduce { how, value, over }, args.span)
    }

    /// Vectors reduced to a number each.
    fn over_channels(&mut self, how: Reduction, args: &Args<'_>) -> Term {
        let expr = args.positional[0];
        let term = self.expression(expr);
        let Ok(value) = self.single(term, expr.span) else { return Term::Hole };
        if args.function == "count" || !matches!(self.ty(value).extent, Extent::Vectors(..)) {
            let message = format!("`{}(..., over = channels)` takes vectors of numbers", args.function);
            let diagnostic = Diagnostic::new(Code::E0206, args.span, message);
            return self.hole(diagnostic.help("vectors are `mean(q)`, `each(k)` and what is computed from them"));
        }
        self.push_term(Op::OverChannels { how, value }, args.span)
    }

    /// Values of tokens reduced to one for each block.
    fn over_block(&mut self, how: Reduction, args: &Args<'_>) -> Term {
        let Some(value) = self.blocks_argument(args) else { return Term::Hole };
        if !self.has_token_elements(value) {
            let diagnostic = Diagnostic::new(Code::E0206, args.span, "`over = block` joins the tokens of each block");
            return self.hole(diagnostic.label(format!("the value is over {}", self.extent_words(value))));
        }
        let value = match (args.function, self.ty(value).kind) {
            ("count", Kind::Bool) => self.push(Op::Unary(Unary::ToReal, value), args.span),
            _ => self.as_real(value, args.span),
        };
        let Ok(value) = value else { return Term::Hole };
        self.gathered(how, value, args.span).map_or_else(|hole| hole, Term::Value)
    }

    pub(super) fn select(&mut self, args: &Args<'_>) -> Term {
        let Some((value, over)) = self.reducible(args) else { return Term::Hole };
        let Ok(value) = self.as_real(value, args.span) else { return Term::Hole };
        let amount_expr = args.positional[1];
        let amount = self.expression(amount_expr);
        let Ok(mut amount) = self.single(amount, amount_expr.span) else { return Term::Hole };
        if self.ty(amount).extent != Extent::Scalar && !is_blocks(self.ty(amount)) {
            let diagnostic = Diagnostic::new(Code::E0206, amount_expr.span, "the amount of a selection is one number");
            return self.hole(diagnostic.label(format!("this is {}", self.extent_words(amount))));
        }
        let words = |this: &mut Self, name: &str, choices: &[&str]| this.word(args, name, choices);
        let rule = match args.function {
            "top_k" => {
                let (Some(choice), Some(ties)) =
                    (words(self, "rounding", ROUNDINGS), words(self, "ties", &["low_index", "all"]))
                else {
                    return Term::Hole;
                };
                Selector::TopK { rounding: rounding(choice), ties: ties == 1 }
            }
            "bottom_k" => {
                let Some(choice) = words(self, "rounding", ROUNDINGS) else { return Term::Hole };
                Selector::BottomK { rounding: rounding(choice) }
            }
            "top_p" => {
                let (Some(crossing), Some(direction), Some(strict)) = (
                    words(self, "crossing", &["keep", "drop"]),
                    words(self, "direction", &["descending", "ascending"]),
                    words(self, "strict", &["false", "true"]),
                ) else {
                    return Term::Hole;
                };
                Selector::TopP { crossing: crossing == 0, ascending: direction == 1, strict: strict == 1 }
            }
            "bottom_mass" => Selector::BottomMass,
            _ => Selector::Statistical,
        };
        if !matches!(rule, Selector::TopK { .. } | Selector::BottomK { .. }) {
            match self.as_real(amount, amount_expr.span) {
                Ok(id) => amount = id,
                Err(hole) => return hole,
            }
        }
        let at_least = match args.named("at_least") {
            None => None,
            Some(expr) => {
                let term = self.expression(expr);
                let Ok(id) = self.single(term, expr.span) else { return Term::Hole };
                Some(id)
            }
        };
        let cost = match args.named("cost") {
            None => None,
            Some(expr) => {
                let term = self.expression(expr);
                let cost = self.single(term, expr.span).and_then(|id| self.as_real(id, expr.span));
                match cost.and_then(|cost| self.like(cost, value, expr.span)) {
                    Ok(cost) => Some(cost),
                    Err(hole) => return hole,
                }
            }
        };
        self.push_term(Op::Select { rule, value, amount, at_least, cost, over }, args.span)
    }

    /// A number with an element for each of those of another value: what it lacks is repeated.
    fn like(&mut self, id: ValueId, other: ValueId, span: Span) -> Result<ValueId, Term> {
        let (other, id) = self.aligned(other, id, span)?;
        if self.ty(id) == self.ty(other) {
            return Ok(id);
        }
        // Chosen in any case, for the sake of the extent.
        let always = self.push(Op::Compare(Comparison::Equal, other, other), span)?;
        self.push(Op::Choose(always, id, id), span)
    }

    /// Which of the choices a named argument names; the first without it.
    pub(super) fn word(&mut self, args: &Args<'_>, name: &str, choices: &[&str]) -> Option<usize> {
        let Some(expr) = args.named(name) else { return Some(0) };
        let found = match &expr.kind {
            ExprKind::Name(word) => word.clone(),
            ExprKind::Bool(value) => value.to_string(),
            _ => String::new(),
        };
        let index = choices.iter().position(|choice| *choice == found);
        if index.is_none() {
            let message = format!("`{name}` is {}", code_list(choices).replace(" and ", " or "));
            self.report(Diagnostic::new(Code::E0204, expr.span, message));
        }
        index
    }

    /// The index of the smallest of several numbers.
    pub(super) fn argmin(&mut self, args: &Args<'_>) -> Term {
        let span = args.span;
        let mut candidates = Vec::new();
        for expr in &args.positional {
            let term = self.expression(expr);
            match self.single(term, expr.span).and_then(|id| self.as_real(id, expr.span)) {
                Ok(id) => candidates.push(id),
                Err(hole) => return hole,
            }
        }
        let mut least = candidates[0];
        let mut index = self.real(0.0, span);
        for (number, candidate) in candidates.into_iter().enumerate().skip(1) {
            let smaller = self.compare(CompareOp::Less, Term::Value(candidate), Term::Value(least), span);
            let number = self.real(number as f64, span);
            let (Ok(smaller), Ok(number), Ok(before)) =
                (self.single(smaller, span), self.single(number, span), self.single(index, span))
            else {
                return Term::Hole;
            };
            let (Ok(next), Ok(chosen)) =
                (self.choice(smaller, candidate, least, span), self.choice(smaller, number, before, span))
            else {
                return Term::Hole;
            };
            (least, index) = (next, Term::Value(chosen));
        }
        index
    }

    pub(super) fn choose(&mut self, args: &Args<'_>) -> Term {
        let span = args.span;
        let mut ids = Vec::new();
        for expr in &args.positional {
            let term = self.expression(expr);
            let Ok(id) = self.single(term, expr.span) else { return Term::Hole };
            ids.push(id);
        }
        let (condition, mut a, mut b) = (ids[0], ids[1], ids[2]);
        if self.ty(condition).kind != Kind::Bool {
            let diagnostic = Diagnostic::new(Code::E0205, args.positional[0].span, "a condition is a truth value");
            return self.hole(diagnostic);
        }
        if self.ty(a).kind != self.ty(b).kind {
            let (Ok(real_a), Ok(real_b)) = (self.as_real(a, span), self.as_real(b, span)) else { return Term::Hole };
            (a, b) = (real_a, real_b);
        }
        self.choice(condition, a, b, span).map_or_else(|hole| hole, Term::Value)
    }

    fn choice(&mut self, condition: ValueId, a: ValueId, b: ValueId, span: Span) -> Result<ValueId, Term> {
        // Twice over, so that what is finer in one operand reaches the other two.
        let (a, b) = self.aligned(a, b, span)?;
        let (condition, a) = self.aligned(condition, a, span)?;
        let (condition, b) = self.aligned(condition, b, span)?;
        let (a, b) = self.aligned(a, b, span)?;
        self.push(Op::Choose(condition, a, b), span)
    }
}

/// Words of `rounding`, the default first.
const ROUNDINGS: &[&str] = &["floor", "ceil", "nearest"];

fn rounding(choice: usize) -> Rounding {
    [Rounding::Floor, Rounding::Ceil, Rounding::Nearest][choice]
}

/// The name behind `over`, empty where there is none.
fn over_word<'a>(args: &Args<'a>) -> &'a str {
    match args.named("over") {
        Some(ast::Expr { kind: ExprKind::Name(name), .. }) => name,
        _ => "",
    }
}
