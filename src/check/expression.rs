//! Expressions: operators, names, slices.

use super::{Checker, Term, code_list, functions};
use crate::diagnostics::{Code, Diagnostic, did_you_mean};
use crate::ir::scalar::Scalar;
use crate::ir::{
    Binary, Comparison, Extent, Grain, Kind, Op, OpenParam, Place, Real, Reduction, SetId, Type, Unary, ValueId,
};
use crate::source::Span;
use crate::syntax::ast::{self, BinaryOp, CompareOp, ExprKind, UnaryOp};

/// The largest constant power of a block value; it becomes a chain of multiplications.
const MAX_BLOCK_POWER: i64 = 16;

/// What to write for an element of a tuple.
const NO_INDICES: &str = "tuples and lists cannot be indexed: give each element a name with `let`";

impl Checker<'_> {
    pub(super) fn expression(&mut self, expr: &ast::Expr) -> Term {
        let span = expr.span;
        if !self.spend(1, span) {
            return Term::Hole;
        }
        match &expr.kind {
            ExprKind::Int(value) => Term::Value(self.int(*value, span)),
            ExprKind::Real(value) => self.real(*value, span),
            ExprKind::Percent(value) => self.real(value / 100.0, span),
            ExprKind::Bool(value) => Term::Value(self.boolean(*value, span)),
            ExprKind::Text(text) => Term::Text(text.clone()),
            ExprKind::Name(name) => self.name(name, span),
            ExprKind::Call(name, args) => self.call(name, args, None, span),
            ExprKind::Tuple(items) => self.terms(items, false, span, Self::expression),
            ExprKind::List(items) => self.terms(items, true, span, Self::expression),
            ExprKind::Unary(op, operand) => {
                let operand = self.operand(operand);
                let op = match op {
                    UnaryOp::Negate => Unary::Negate,
                    UnaryOp::Not => Unary::Not,
                };
                self.unary(op, operand, span)
            }
            ExprKind::Binary(op, a, b) => {
                let (a, b) = (self.operand(a), self.operand(b));
                self.binary(*op, a, b, span)
            }
            ExprKind::Compare(operands, ops) => self.comparison(operands, ops, span),
            ExprKind::Slice(value, q, kv) => self.slice(value, q, kv.as_ref(), span),
            ExprKind::Else(call, otherwise) => match &call.kind {
                ExprKind::Call(name, args)
                    if name.node == "table" || matches!(self.lookup(&name.node), Some(Term::Input(_))) =>
                {
                    self.call(name, args, Some(otherwise), span)
                }
                _ => self.hole(
                    Diagnostic::new(Code::E0204, span, "`else` gives the missing entries of a table or an input")
                        .help("write `choose(condition, a, b)` to choose between two values"),
                ),
            },
        }
    }

    pub(super) fn real(&mut self, value: f64, span: Span) -> Term {
        self.push_term(Op::Real(Real(value)), span)
    }

    fn name(&mut self, name: &str, span: Span) -> Term {
        if let Some(term) = self.lookup(name) {
            let size = super::limits::size_of(&term);
            return if self.spend(size, span) { term } else { Term::Hole };
        }
        if let Some(term) = self.builtin_name(name, span) {
            return term;
        }
        let message = if functions::is_function(name) || self.axis(name).is_some() {
            let diagnostic = Diagnostic::new(Code::E0201, span, format!("`{name}` is a function"));
            let signature = functions::signature(name).map_or_else(|| format!("{name}(q)"), str::to_owned);
            return self.hole(diagnostic.help(format!("call it, as in `{signature}`")));
        } else if self.strategy.layout.iter().any(|segment| segment.name == name) {
            let diagnostic = Diagnostic::new(Code::E0201, span, format!("`{name}` is a segment and has no value"));
            return self.hole(
                diagnostic.help(format!("`size({name})` is its number of tokens, `x[{name}]` a part of a score")),
            );
        } else {
            format!("there is no `{name}` here")
        };
        let names = self.names_in_scope();
        self.spend(names.len(), span);
        let diagnostic = Diagnostic::new(Code::E0201, span, message);
        let near = did_you_mean(name, names.iter().map(String::as_str));
        self.hole(match near {
            Some(near) => diagnostic.fix(format!("did you mean `{near}`?"), span, near),
            None => diagnostic.help("declare it with `let`, or as a parameter of the strategy"),
        })
    }

    /// The single value a term stands for; reports everything else.
    pub(super) fn single(&mut self, term: Term, span: Span) -> Result<ValueId, Term> {
        let found = match term {
            Term::Value(id) => return Ok(id),
            Term::Hole => return Err(Term::Hole),
            Term::Tuple(items) => format!("a tuple of {}", items.len()),
            Term::List(_) => "a list".to_owned(),
            Term::Text(_) => "a text".to_owned(),
            Term::Side(_) => {
                let diagnostic = Diagnostic::new(Code::E0205, span, "expected a value, found a side of the attention");
                return Err(self.hole(
                    diagnostic.help("take a coordinate, as in `pos(q)`, or a statistic of its blocks, as in `mean(q)`"),
                ));
            }
            Term::Mode(_) => "a way of reuse".to_owned(),
            Term::Input(_) => {
                let diagnostic = Diagnostic::new(Code::E0205, span, "expected one value, found an input");
                return Err(self.hole(diagnostic.help("take an entry of it, as in `draws(head, block(q))`")));
            }
        };
        Err(self.hole(Diagnostic::new(Code::E0205, span, format!("expected one value, found {found}"))))
    }

    /// An operand: a value or a tuple; reports everything else at its place.
    fn operand(&mut self, expr: &ast::Expr) -> Term {
        match self.expression(expr) {
            term @ (Term::Value(_) | Term::Tuple(_) | Term::Hole) => term,
            other => self.single(other, expr.span).map_or_else(|hole| hole, Term::Value),
        }
    }

    pub(super) fn span_of(&self, id: ValueId) -> Span {
        self.strategy.graph.value(id).span
    }

    pub(super) fn unary(&mut self, op: Unary, operand: Term, span: Span) -> Term {
        if let Term::Tuple(items) = operand {
            return Term::Tuple(items.into_iter().map(|item| self.unary(op, item, span)).collect());
        }
        let id = match self.single(operand, span) {
            Ok(id) => id,
            Err(hole) => return hole,
        };
        let found = self.ty(id).kind;
        let fits = match op {
            Unary::Not => found == Kind::Bool,
            Unary::BitLength => found == Kind::Int,
            _ => found != Kind::Bool,
        };
        if !fits {
            let wanted = if op == Unary::Not { Kind::Bool } else { Kind::Int };
            return self.wrong_kind(id, wanted, span);
        }
        let id = match op {
            Unary::Sqrt | Unary::Exp | Unary::Log => match self.as_real(id, span) {
                Ok(id) => id,
                Err(hole) => return hole,
            },
            _ => id,
        };
        self.push_term(Op::Unary(op, id), span)
    }

    fn wrong_kind(&mut self, id: ValueId, wanted: Kind, span: Span) -> Term {
        let found = kind_words(self.ty(id).kind);
        let mut diagnostic =
            Diagnostic::new(Code::E0205, span, format!("expected {}, found {found}", kind_words(wanted)));
        // Equal values are one, with the place of the first; only a place inside of this one is meant.
        let operand = self.span_of(id);
        if span.holds(operand) && operand != span {
            diagnostic = diagnostic.also(operand, format!("this is {found}"));
        }
        self.hole(diagnostic)
    }

    pub(super) fn as_real(&mut self, id: ValueId, span: Span) -> Result<ValueId, Term> {
        match self.ty(id).kind {
            Kind::Real => Ok(id),
            Kind::Int => self.push(Op::Unary(Unary::ToReal, id), span),
            Kind::Bool => Err(self.wrong_kind(id, Kind::Real, span)),
        }
    }

    pub(super) fn binary(&mut self, op: BinaryOp, a: Term, b: Term, span: Span) -> Term {
        let function = match op {
            BinaryOp::Or => Binary::Or,
            BinaryOp::And => Binary::And,
            BinaryOp::Add => Binary::Add,
            BinaryOp::Subtract => Binary::Subtract,
            BinaryOp::Multiply | BinaryOp::Of => Binary::Multiply,
            BinaryOp::Divide => Binary::Divide,
            BinaryOp::FloorDivide => Binary::FloorDivide,
            BinaryOp::Modulo => Binary::Modulo,
            BinaryOp::Xor => Binary::Xor,
            BinaryOp::Power => Binary::Power,
        };
        self.apply(function, a, b, span)
    }

    /// A function of two operands, component by component of tuples.
    pub(super) fn apply(&mut self, op: Binary, a: Term, b: Term, span: Span) -> Term {
        match (a, b) {
            (Term::Hole, _) | (_, Term::Hole) => Term::Hole,
            (Term::Tuple(a), Term::Tuple(b)) if a.len() != b.len() => self.hole(Diagnostic::new(
                Code::E0206,
                span,
                format!("a tuple of {} and a tuple of {} do not fit", a.len(), b.len()),
            )),
            (Term::Tuple(a), Term::Tuple(b)) => {
                Term::Tuple(a.into_iter().zip(b).map(|(a, b)| self.apply(op, a, b, span)).collect())
            }
            (Term::Tuple(a), b) => Term::Tuple(a.into_iter().map(|a| self.apply(op, a, b.clone(), span)).collect()),
            (a, Term::Tuple(b)) => Term::Tuple(b.into_iter().map(|b| self.apply(op, a.clone(), b, span)).collect()),
            (a, b) => {
                let (Ok(a), Ok(b)) = (self.single(a, span), self.single(b, span)) else { return Term::Hole };
                self.apply_values(op, a, b, span).map_or_else(|hole| hole, Term::Value)
            }
        }
    }

    fn apply_values(&mut self, op: Binary, a: ValueId, b: ValueId, span: Span) -> Result<ValueId, Term> {
        let (a_kind, b_kind) = (self.ty(a).kind, self.ty(b).kind);
        let wrong = |this: &mut Self, wanted: Kind| {
            let id = if a_kind == wanted { b } else { a };
            Err(this.wrong_kind(id, wanted, span))
        };
        match op {
            Binary::And | Binary::Or => {
                if (a_kind, b_kind) != (Kind::Bool, Kind::Bool) {
                    return wrong(self, Kind::Bool);
                }
                let (a, b) = self.embed_both(a, b, span)?;
                return self.push(Op::Binary(op, a, b), span);
            }
            Binary::Xor if a_kind == Kind::Bool && b_kind == Kind::Bool => {}
            Binary::Xor | Binary::FloorDivide | Binary::Modulo if (a_kind, b_kind) != (Kind::Int, Kind::Int) => {
                return wrong(self, Kind::Int);
            }
            Binary::Xor | Binary::FloorDivide | Binary::Modulo => {}
            _ if a_kind == Kind::Bool => return Err(self.wrong_kind(a, Kind::Real, span)),
            _ if b_kind == Kind::Bool => return Err(self.wrong_kind(b, Kind::Real, span)),
            Binary::Power if is_blocks(self.ty(a)) || is_blocks(self.ty(b)) => return self.block_power(a, b, span),
            _ if op == Binary::Divide || a_kind != b_kind => {
                let (a, b) = (self.as_real(a, span)?, self.as_real(b, span)?);
                return self.combine(op, a, b, span);
            }
            _ => {}
        }
        self.combine(op, a, b, span)
    }

    fn combine(&mut self, op: Binary, a: ValueId, b: ValueId, span: Span) -> Result<ValueId, Term> {
        let (a, b) = self.aligned(a, b, span)?;
        self.push(Op::Binary(op, a, b), span)
    }

    /// The operands of an operation element by element: where one is of tokens and the other of blocks, a token has what its
    /// block has. Truth values are embedded by the caller.
    pub(super) fn aligned(&mut self, a: ValueId, b: ValueId, span: Span) -> Result<(ValueId, ValueId), Term> {
        if let (Extent::Vectors(side, of_a), Extent::Vectors(other, of_b)) = (self.ty(a).extent, self.ty(b).extent)
            && side == other
        {
            let blocks = |set| self.strategy.graph.grain(set) == Grain::Blocks;
            return match (blocks(of_a), blocks(of_b)) {
                (true, false) => Ok((self.push(Op::Spread(a, of_b), span)?, b)),
                (false, true) => Ok((a, self.push(Op::Spread(b, of_a), span)?)),
                _ => self.check_extents(a, b, span).map(|()| (a, b)),
            };
        }
        let (Extent::Blocks { q: aq, kv: ak }, Extent::Blocks { q: bq, kv: bk }) =
            (self.ty(a).extent, self.ty(b).extent)
        else {
            self.check_extents(a, b, span)?;
            return Ok((a, b));
        };
        let graph = &self.strategy.graph;
        // The set that a value of blocks is spread over, to fit one of tokens.
        let finer = |from: Option<SetId>, to: Option<SetId>| {
            let (from, to) = (from?, to?);
            (graph.grain(from) == Grain::Blocks && graph.grain(to) != Grain::Blocks).then_some(to)
        };
        let (of_a, of_b) = ([finer(aq, bq), finer(ak, bk)], [finer(bq, aq), finer(bk, ak)]);
        let mut spread = |id, [q, kv]: [Option<SetId>; 2]| match (q, kv) {
            (None, None) => Ok(id),
            _ => self.push(Op::Slice { value: id, q, kv }, span),
        };
        let (a, b) = (spread(a, of_a)?, spread(b, of_b)?);
        self.check_extents(a, b, span)?;
        Ok((a, b))
    }

    fn check_extents(&mut self, a: ValueId, b: ValueId, span: Span) -> Result<(), Term> {
        let diagnostic = match (self.ty(a).extent, self.ty(b).extent) {
            (Extent::Token { .. }, Extent::Blocks { .. }) | (Extent::Blocks { .. }, Extent::Token { .. }) => {
                Diagnostic::new(Code::E0206, span, "a coordinate of tokens and a score of blocks do not mix")
                    .help("compare each on its own and join the results with `and` or `or`")
            }
            (Extent::Vectors(..), Extent::Scalar) | (Extent::Scalar, Extent::Vectors(..)) => return Ok(()),
            (a, b)
                if matches!((a, b), (Extent::Vectors(..), _) | (_, Extent::Vectors(..)))
                    && crate::ir::typing::join(&self.strategy.graph, a, b).is_ok() =>
            {
                return Ok(());
            }
            (Extent::Vectors(..), _) | (_, Extent::Vectors(..)) => {
                let label = |id| format!("this is {}", self.extent_words(id));
                Diagnostic::new(
                    Code::E0206,
                    span,
                    "vectors go with numbers and with vectors of the same blocks or tokens",
                )
                .also(self.span_of(a), label(a))
                .also(self.span_of(b), label(b))
                .help("`dot(mean(q), mean(k))` makes a number of two vectors")
            }
            (Extent::Blocks { q: aq, kv: ak }, Extent::Blocks { q: bq, kv: bk }) => {
                let clash = |a: Option<SetId>, b: Option<SetId>| matches!((a, b), (Some(a), Some(b)) if a != b);
                if !clash(aq, bq) && !clash(ak, bk) {
                    return Ok(());
                }
                Diagnostic::new(Code::E0206, span, "these values are over different blocks")
                    .also(self.span_of(a), format!("over {}", self.extent_words(a)))
                    .also(self.span_of(b), format!("over {}", self.extent_words(b)))
                    .help("take the same part of both, as in `x[text -> image]`")
            }
            _ => return Ok(()),
        };
        Err(self.hole(diagnostic))
    }

    /// Truth values over parts of the blocks are joined over all of them; those of tokens over the same tokens.
    fn embed_both(&mut self, a: ValueId, b: ValueId, span: Span) -> Result<(ValueId, ValueId), Term> {
        if self.ty(a) == self.ty(b) {
            return Ok((a, b));
        }
        let [a_tokens, b_tokens] = [a, b].map(|id| self.has_token_elements(id));
        if !a_tokens && !b_tokens {
            return Ok((self.embedded(a, span)?, self.embedded(b, span)?));
        }
        let geometry = |id| matches!(self.ty(id).extent, Extent::Token { .. } | Extent::Mixed);
        if geometry(a) || geometry(b) {
            let diagnostic = Diagnostic::new(
                Code::E0206,
                span,
                "a condition on places and one on the scores of single tokens do not mix",
            );
            let help = "compare positions of vectors, as in `pos(mean(k)) <= pos(each(q))`, or make the scores ones of \
                        blocks with `lowered(condition, by = any)`";
            return Err(self.hole(diagnostic.help(help)));
        }
        self.aligned(a, b, span)
    }

    /// Whether some axis of a value goes along tokens.
    pub(super) fn has_token_elements(&self, id: ValueId) -> bool {
        match self.ty(id).extent {
            Extent::Blocks { q, kv } => {
                [q, kv].into_iter().flatten().any(|set| self.strategy.graph.grain(set) != Grain::Blocks)
            }
            _ => false,
        }
    }

    /// Values of tokens as those of the blocks that hold them.
    pub(super) fn gathered(&mut self, how: Reduction, id: ValueId, span: Span) -> Result<ValueId, Term> {
        if !self.has_token_elements(id) {
            return Ok(id);
        }
        let Extent::Blocks { q, kv } = self.ty(id).extent else { return Ok(id) };
        let graph = &mut self.strategy.graph;
        let mut blocks = |set: Option<SetId>| {
            let set = set.filter(|&set| graph.grain(set) != Grain::Blocks)?;
            let parts = graph.parts(set).to_vec();
            Some(graph.set(parts))
        };
        let (q, kv) = (blocks(q), blocks(kv));
        self.push(Op::Gather { how, value: id, q, kv }, span)
    }

    /// Truth values over blocks as truth values over all blocks.
    pub(super) fn embedded(&mut self, id: ValueId, span: Span) -> Result<ValueId, Term> {
        match self.ty(id).extent {
            Extent::Blocks { q, kv } if [q, kv].iter().flatten().any(|&set| set != SetId::ALL) => {
                self.push(Op::Embed(id), span)
            }
            _ => Ok(id),
        }
    }

    fn block_power(&mut self, base: ValueId, exponent: ValueId, span: Span) -> Result<ValueId, Term> {
        let Op::Int(n @ 1..=MAX_BLOCK_POWER) = *self.strategy.graph.op(exponent) else {
            let diagnostic = Diagnostic::new(
                Code::E0301,
                span,
                format!("a power of a score has a constant exponent from 1 to {MAX_BLOCK_POWER}"),
            );
            return Err(self.hole(diagnostic.help("other powers can be written with `exp`")));
        };
        let base = self.as_real(base, span)?;
        (1..n).try_fold(base, |product, _| self.push(Op::Binary(Binary::Multiply, product, base), span))
    }

    fn comparison(&mut self, operands: &[ast::Expr], ops: &[CompareOp], span: Span) -> Term {
        let terms: Vec<Term> = operands.iter().map(|operand| self.operand(operand)).collect();
        let mut all: Option<Term> = None;
        for ((pair, spans), op) in terms.windows(2).zip(operands.windows(2)).zip(ops) {
            let here = spans[0].span.to(spans[1].span);
            let one = self.compare(*op, pair[0].clone(), pair[1].clone(), here);
            all = Some(match all {
                None => one,
                Some(all) => self.apply(Binary::And, all, one, span),
            });
        }
        all.unwrap_or(Term::Hole)
    }

    /// A comparison; of tuples when it holds for every component (`!=` for some).
    pub(super) fn compare(&mut self, op: CompareOp, a: Term, b: Term, span: Span) -> Term {
        let join = if op == CompareOp::NotEqual { Binary::Or } else { Binary::And };
        let pairs: Vec<(Term, Term)> = match (a, b) {
            (Term::Tuple(a), Term::Tuple(b)) if a.len() == b.len() => a.into_iter().zip(b).collect(),
            (Term::Tuple(a), Term::Tuple(b)) => {
                let message = format!("a tuple of {} and a tuple of {} do not compare", a.len(), b.len());
                return self.hole(Diagnostic::new(Code::E0206, span, message));
            }
            (Term::Tuple(a), b) => a.into_iter().map(|a| (a, b.clone())).collect(),
            (a, Term::Tuple(b)) => b.into_iter().map(|b| (a.clone(), b)).collect(),
            pair => vec![pair],
        };
        let mut all: Option<Term> = None;
        for (a, b) in pairs {
            let (Ok(a), Ok(b)) = (self.single(a, span), self.single(b, span)) else { return Term::Hole };
            let one = self.compare_values(op, a, b, span).map_or_else(|hole| hole, Term::Value);
            all = Some(match all {
                None => one,
                Some(all) => self.apply(join, all, one, span),
            });
        }
        all.unwrap_or(Term::Hole)
    }

    fn compare_values(&mut self, op: CompareOp, a: ValueId, b: ValueId, span: Span) -> Result<ValueId, Term> {
        let (a_kind, b_kind) = (self.ty(a).kind, self.ty(b).kind);
        if (a_kind == Kind::Bool) != (b_kind == Kind::Bool) {
            let id = if a_kind == Kind::Bool { a } else { b };
            return Err(self.wrong_kind(id, Kind::Real, span));
        }
        self.place_and_share([a, b], span);
        let (a, b) = if a_kind == b_kind { (a, b) } else { (self.as_real(a, span)?, self.as_real(b, span)?) };
        if matches!(self.ty(a).extent, Extent::Vectors(..)) || matches!(self.ty(b).extent, Extent::Vectors(..)) {
            let diagnostic = Diagnostic::new(Code::E0206, span, "vectors of `head_dim` channels do not compare");
            return Err(self.hole(diagnostic.help("make a number of two with `dot(mean(q), mean(k))`")));
        }
        let (a, b) = self.aligned(a, b, span)?;
        let (op, a, b) = match op {
            CompareOp::Equal => (Comparison::Equal, a, b),
            CompareOp::NotEqual => (Comparison::NotEqual, a, b),
            CompareOp::Less => (Comparison::Less, a, b),
            CompareOp::LessEqual => (Comparison::LessEqual, a, b),
            CompareOp::Greater => (Comparison::Less, b, a),
            CompareOp::GreaterEqual => (Comparison::LessEqual, b, a),
        };
        self.push(Op::Compare(op, a, b), span)
    }

    /// A warning where a step, layer or head is compared with a share: `step < 20%` holds at step 0 only.
    fn place_and_share(&mut self, [a, b]: [ValueId; 2], span: Span) {
        for (place, share) in [(a, b), (b, a)] {
            let all = match self.strategy.graph.op(place) {
                Op::Place(Place::Step) => "steps",
                Op::Place(Place::Layer) => "layers",
                Op::Place(Place::Head) => "heads",
                _ => continue,
            };
            let Some(Scalar::Real(share)) = self.constant(share) else { continue };
            if 0.0 < share && share < 1.0 {
                let name = &all[..all.len() - 1];
                let message = format!("`{name}` is a whole number from 0, and is compared with a share");
                self.report(
                    Diagnostic::new(Code::W0505, span, message)
                        .help(format!("write `{}% of {all}`", (share * 1e4).round() / 100.0)),
                );
            }
        }
    }

    fn slice(&mut self, value: &ast::Expr, first: &ast::Set, second: Option<&ast::Set>, span: Span) -> Term {
        let term = self.expression(value);
        if let Term::Tuple(_) | Term::List(_) = term {
            let diagnostic = Diagnostic::new(Code::E0206, span, "only values over blocks have parts");
            let label = format!("this is {}", self.form(&term));
            return self.hole(diagnostic.also(value.span, label).help(NO_INDICES));
        }
        let Ok(id) = self.single(term, value.span) else { return Term::Hole };
        let first_set = self.set(first);
        let second_set = second.map(|set| self.set(set));
        let (Some(first_set), Some(second_set)) = (first_set, second_set.map_or(Some(None), |set| set.map(Some)))
        else {
            return Term::Hole;
        };
        // A part has the grain of the whole.
        let extent = self.ty(id).extent;
        let graph = &mut self.strategy.graph;
        let mut of = |set: SetId, part: SetId| {
            let (grain, parts) = (graph.grain(set), graph.parts(part).to_vec());
            Some(graph.set_of(parts, grain))
        };
        let (q, kv) = match (extent, second_set) {
            (Extent::Blocks { q: Some(q), kv: Some(kv) }, Some(second)) => (of(q, first_set), of(kv, second)),
            (Extent::Blocks { q: Some(q), kv: None }, None) => (of(q, first_set), None),
            (Extent::Blocks { q: None, kv: Some(kv) }, None) => (None, of(kv, first_set)),
            (Extent::Blocks { q: Some(_), kv: Some(_) }, None) => {
                let diagnostic = Diagnostic::new(Code::E0206, span, "a part of a score names queries and keys");
                let name = self.set_words(first_set);
                return self.hole(diagnostic.help(format!("write `[{name} -> all]` or `[all -> {name}]`")));
            }
            (Extent::Blocks { .. }, Some(_)) => {
                let diagnostic = Diagnostic::new(Code::E0206, span, "a value with one axis has one part");
                return self.hole(diagnostic.help(format!("write `[{}]`", self.set_words(first_set))));
            }
            _ => {
                let diagnostic = Diagnostic::new(Code::E0206, span, "only values over blocks have parts");
                return self.hole(diagnostic.label(format!("this is {}", self.extent_words(id))));
            }
        };
        self.push_term(Op::Slice { value: id, q, kv }, span)
    }

    // ---- words ----

    pub(super) fn set_words(&self, set: SetId) -> String {
        crate::ir::typing::set_name(&self.strategy.graph, set)
    }

    pub(super) fn extent_words(&self, id: ValueId) -> String {
        match self.ty(id).extent {
            Extent::Scalar => "a single number".to_owned(),
            Extent::Token { .. } => "tokens".to_owned(),
            Extent::Blocks { q: Some(q), kv: Some(kv) } if self.has_token_elements(id) => {
                format!("`{} -> {}`", self.set_words(q), self.set_words(kv))
            }
            Extent::Blocks { q: Some(q), kv: Some(kv) } => {
                format!("the blocks `{} -> {}`", self.set_words(q), self.set_words(kv))
            }
            Extent::Blocks { q: Some(q), .. } if self.has_token_elements(id) => {
                format!("queries, `{}`", self.set_words(q))
            }
            Extent::Blocks { kv: Some(kv), .. } if self.has_token_elements(id) => {
                format!("keys, `{}`", self.set_words(kv))
            }
            Extent::Blocks { q: Some(q), .. } => format!("the q-blocks of `{}`", self.set_words(q)),
            Extent::Blocks { kv: Some(kv), .. } => format!("the kv-blocks of `{}`", self.set_words(kv)),
            Extent::Blocks { .. } => "the heads, known when symbols are chosen".to_owned(),
            Extent::Vectors(..) => "vectors of `head_dim` channels".to_owned(),
            Extent::Mixed => "tokens and blocks".to_owned(),
        }
    }

    /// The next parameter's value as text, for provenance. Numbers in it that only the model tells are left open.
    pub(super) fn describe(&mut self, term: &Term) -> String {
        let mut text = String::new();
        self.write_term(term, &mut text);
        text
    }

    fn write_term(&mut self, term: &Term, out: &mut String) {
        match term {
            Term::Value(id) => match self.strategy.graph.op(*id) {
                Op::Table { table, .. } => {
                    *out += &format!("table({:?})", self.strategy.graph.tables[usize::from(*table)].name);
                }
                _ => match self.constant(*id) {
                    Some(value) => *out += &value.to_string(),
                    None => {
                        let (param, at) = (self.strategy.params.len() as u32, out.len() as u32);
                        self.strategy.open_params.push(OpenParam { param, at, value: *id });
                    }
                },
            },
            Term::Tuple(items) => self.write_terms(items, ["(", ")"], out),
            Term::List(items) => self.write_terms(items, ["[", "]"], out),
            Term::Text(text) => *out += &format!("{text:?}"),
            Term::Side(_) => *out += "side",
            Term::Mode(order) => {
                *out += "taylor(";
                self.write_term(&Term::Value(*order), out);
                *out += ")";
            }
            Term::Input(_) => *out += "input",
            Term::Hole => *out += "?",
        }
    }

    fn write_terms(&mut self, items: &[Term], [before, after]: [&str; 2], out: &mut String) {
        *out += before;
        for (index, item) in items.iter().enumerate() {
            *out += if index > 0 { ", " } else { "" };
            self.write_term(item, out);
        }
        *out += after;
    }

    /// Reports an argument that was given before.
    pub(super) fn given_twice(&mut self, name: &ast::Ident, first: Span) {
        self.report(
            Diagnostic::new(Code::E0204, name.span, format!("`{}` is given twice", name.node))
                .also(first, "first here")
                .help("remove one"),
        );
    }

    /// Reports arguments that a function does not know.
    pub(super) fn unknown_argument(&mut self, function: &str, name: &ast::Ident, known: &[&str]) {
        let mut diagnostic =
            Diagnostic::new(Code::E0204, name.span, format!("`{function}` has no argument `{}`", name.node));
        if !known.is_empty() {
            diagnostic = diagnostic.label(format!("named arguments: {}", code_list(known)));
        }
        if let Some(near) = did_you_mean(&name.node, known.iter().copied()) {
            diagnostic = diagnostic.fix(format!("did you mean `{near}`?"), name.span, near);
        }
        self.report(diagnostic);
    }
}

pub(super) fn is_blocks(ty: Type) -> bool {
    matches!(ty.extent, Extent::Blocks { .. })
}

pub(super) fn kind_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "a truth value",
        Kind::Int => "an integer",
        Kind::Real => "a real number",
    }
}
