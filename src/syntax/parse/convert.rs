//! From pest's pairs to the tree: files, statements and schedules.
//!
//! The grammar fixes which pairs a rule holds, so a missing one cannot occur; where the types demand an
//! answer all the same, an empty name or `0` stands in. Mistakes go to `report` as they are met.

use std::cell::{Cell, RefCell};
use std::iter::Peekable;

use super::super::MAX_ERRORS;
use super::super::lexer::{Kind, Scan, Token};
use super::{Pair, Rule};
use crate::diagnostics::Diagnostic;
use crate::source::{Span, Spanned};
use crate::syntax::ast::{
    Arg, Clause, Dimension, Expr, ExprKind, File, Guard, Ident, Item, Lower, Model, ModelField, Places, ScheduleStmt,
    Segment, Set, Stmt, StmtKind, Strategy,
};

/// Reads pairs of one text. Findings collect inside, so that reading borrows it only shared.
pub(super) struct Reader<'a> {
    pub(super) file: u16,
    pub(super) text: &'a str,
    /// Every token but the comments.
    pub(super) tokens: Vec<Token>,
    pub(super) scan: &'a Scan,
    /// Operators above the expression being read.
    pub(super) operators: Cell<usize>,
    found: RefCell<Vec<Diagnostic>>,
}

/// The pairs inside a pair, without the signs that carry no meaning.
pub(super) struct Parts<'i>(Peekable<std::vec::IntoIter<Pair<'i>>>);

impl<'i> Parts<'i> {
    /// The next pair if it is of this rule.
    pub(super) fn take(&mut self, rule: Rule) -> Option<Pair<'i>> {
        self.0.next_if(|pair| pair.as_rule() == rule)
    }

    /// The next pair.
    pub(super) fn next(&mut self) -> Option<Pair<'i>> {
        self.0.next()
    }
}

/// The pairs inside a pair that carry meaning.
pub(super) fn parts(pair: Pair<'_>) -> Parts<'_> {
    let meaningful = |part: &Pair<'_>| !is_sign(part.as_rule());
    Parts(pair.into_inner().filter(meaningful).collect::<Vec<_>>().into_iter().peekable())
}

fn is_sign(rule: Rule) -> bool {
    use Rule::{
        arrow, assign, comma, concat, dot, kw_as, kw_block, kw_by, kw_cache, kw_dtype, kw_else, kw_every, kw_from,
        kw_import, kw_keep, kw_layout, kw_let, kw_lower, kw_model, kw_on, kw_order, kw_per, kw_quirk, kw_schedule,
        kw_skip, kw_strategy, kw_tokens, kw_use, kw_when, kw_where, kw_while, lbracket, lparen, plus, rbracket, rparen,
        times,
    };
    matches!(
        rule,
        arrow
            | assign
            | comma
            | concat
            | dot
            | kw_as
            | kw_block
            | kw_by
            | kw_cache
            | kw_dtype
            | kw_else
            | kw_every
            | kw_from
            | kw_import
            | kw_keep
            | kw_layout
            | kw_let
            | kw_lower
            | kw_model
            | kw_on
            | kw_order
            | kw_per
            | kw_quirk
            | kw_schedule
            | kw_skip
            | kw_strategy
            | kw_tokens
            | kw_use
            | kw_when
            | kw_where
            | kw_while
            | lbracket
            | lparen
            | plus
            | rbracket
            | rparen
            | times
    )
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: u16, text: &'a str, scan: &'a Scan) -> Self {
        let tokens = scan.tokens.iter().copied().filter(|token| !token.is_comment()).collect();
        Reader { file, text, tokens, scan, operators: Cell::new(0), found: RefCell::default() }
    }

    /// The findings; when they were too many, the last one says so.
    pub(super) fn finish(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        if found.len() >= MAX_ERRORS
            && let Some(last) = found.last_mut()
        {
            last.notes.push(format!("{MAX_ERRORS} syntax errors were found, reading on would not help"));
        }
        found
    }

    /// Adds a finding, up to the limit.
    pub(super) fn push(&self, diagnostic: Diagnostic) {
        if !self.is_full() {
            self.found.borrow_mut().push(diagnostic);
        }
    }

    /// Whether further findings would be dropped.
    pub(super) fn is_full(&self) -> bool {
        self.found.borrow().len() >= MAX_ERRORS
    }

    /// A span of this file.
    pub(super) fn at(&self, start: usize, end: usize) -> Span {
        super::span(self.file, start, end)
    }

    /// The span of a pair, which itself may run over blanks and comments at its end.
    pub(super) fn span(&self, pair: &Pair<'_>) -> Span {
        let (start, end) = (pair.as_span().start(), pair.as_span().end());
        let after = self.tokens.partition_point(|token| token.end <= end);
        let last = after.checked_sub(1).and_then(|index| self.tokens.get(index)).map_or(end, |token| token.end);
        self.at(start, last.max(start))
    }

    /// A whole file.
    pub(super) fn file(&self, pair: Pair<'_>) -> File {
        let mut items = Vec::new();
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::import => {
                    items.extend(parts(part).take(Rule::string).map(|text| Item::Import(self.string(&text))));
                }
                Rule::model => items.push(Item::Model(self.model(part))),
                Rule::strategy => items.push(Item::Strategy(self.strategy(part))),
                Rule::bad_item => self.mistake(part, Rule::only_item, None),
                _ => {}
            }
        }
        File { items }
    }

    fn model(&self, pair: Pair<'_>) -> Model {
        let (span, docs) = (self.span(&pair), self.docs(pair.as_span().start()));
        let mut inner = parts(pair);
        let name = self.name(inner.take(Rule::name));
        let fields = inner.next().map(|block| self.fields(block)).unwrap_or_default();
        Model { docs, name, fields, span }
    }

    fn fields(&self, block: Pair<'_>) -> Vec<ModelField> {
        let mut fields = Vec::new();
        self.body(block, Rule::only_field, &mut |part| {
            let span = self.span(&part);
            match part.as_rule() {
                Rule::count => {
                    let mut inner = parts(part);
                    let name = self.name(inner.take(Rule::any_name));
                    fields.push(ModelField::Count(name, self.required(inner.take(Rule::expr))));
                }
                Rule::dtype => fields.push(ModelField::Dtype(self.name(parts(part).take(Rule::name)))),
                _ => {
                    let segments = parts(part).0.map(|segment| self.segment(segment)).collect();
                    fields.push(ModelField::Tokens(segments, span));
                }
            }
        });
        fields
    }

    fn segment(&self, pair: Pair<'_>) -> Segment {
        let span = self.span(&pair);
        let mut inner = parts(pair);
        let name = self.name(inner.take(Rule::name));
        Segment { name, args: self.args(inner.take(Rule::args)), span }
    }

    fn strategy(&self, pair: Pair<'_>) -> Strategy {
        let (span, docs) = (self.span(&pair), self.docs(pair.as_span().start()));
        let mut inner = parts(pair);
        let name = self.name(inner.take(Rule::name));
        let params = inner.take(Rule::params).map(|params| self.params(params)).unwrap_or_default();
        let body = inner.take(Rule::block).map(|block| self.statements(block)).unwrap_or_default();
        Strategy { docs, name, params, body, span }
    }

    fn params(&self, pair: Pair<'_>) -> Vec<(Ident, Expr)> {
        parts(pair).0.map(|param| self.param(param)).collect()
    }

    fn param(&self, pair: Pair<'_>) -> (Ident, Expr) {
        let mut inner = parts(pair);
        (self.name(inner.take(Rule::name)), self.required(inner.take(Rule::expr)))
    }

    /// A parameter that is a text of its own.
    pub(super) fn only_param(&self, pair: Pair<'_>) -> Option<(Ident, Expr)> {
        parts(pair).take(Rule::param).map(|param| self.param(param))
    }

    /// The `///` lines right above a declaration.
    fn docs(&self, start: usize) -> Vec<String> {
        let tokens = &self.scan.tokens;
        let above = tokens.partition_point(|token| token.start < start);
        let is_doc = |token: &&Token| {
            let body = token.of(self.text);
            token.kind == Kind::LineComment && body.starts_with("///") && !body.starts_with("////")
        };
        let mut docs: Vec<String> =
            tokens[..above].iter().rev().take_while(is_doc).map(|token| self.doc(*token)).collect();
        docs.reverse();
        docs
    }

    fn doc(&self, token: Token) -> String {
        let body = token.of(self.text).trim_start_matches("///");
        body.strip_prefix(' ').unwrap_or(body).trim_end().to_owned()
    }

    /// Reads a block: `each` gets what is well formed, mistakes are reported.
    fn body(&self, block: Pair<'_>, only: Rule, each: &mut dyn FnMut(Pair<'_>)) {
        let opening = block.as_span().start();
        let mut previous = None;
        // In a block of something unknown: whether lines of a schedule are being read.
        let mut in_lines = false;
        for part in block.into_inner() {
            match part.as_rule() {
                Rule::open | Rule::close => {}
                Rule::semi => previous = None,
                Rule::unclosed | Rule::unclosed_line => self.unclosed_block(opening, part.as_span().start()),
                Rule::bad_stmt | Rule::bad_line | Rule::bad_field => {
                    self.mistake(part, if in_lines { Rule::only_line } else { only }, previous.take());
                }
                _ => {
                    // A block at its end cannot go on, so what follows it is a mistake by itself.
                    in_lines = part.as_rule() == Rule::line;
                    let closed = part.as_str().trim_end().ends_with('}');
                    previous = (!closed).then_some(part.as_span().start());
                    each(part);
                }
            }
        }
    }

    /// Reports a piece of junk and what is wrong in the blocks after it.
    fn mistake(&self, pair: Pair<'_>, only: Rule, previous: Option<usize>) {
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::junk | Rule::field_junk | Rule::item_junk => {
                    let start = part.as_span().start();
                    self.junk(start, start + part.as_str().trim_end().len(), only, previous);
                }
                Rule::model_block => drop(self.fields(part)),
                Rule::mixed_block => drop(self.statements(part)),
                _ => {}
            }
        }
    }

    fn statements(&self, block: Pair<'_>) -> Vec<Stmt> {
        let mut statements = Vec::new();
        self.body(block, Rule::only_stmt, &mut |part| {
            let span = self.span(&part);
            if part.as_rule() == Rule::line {
                drop(self.line(part));
            } else if let Some(inner) = part.into_inner().next() {
                statements.extend(self.statement(inner).map(|kind| Stmt { kind, span }));
            }
        });
        statements
    }

    fn statement(&self, pair: Pair<'_>) -> Option<StmtKind> {
        let rule = pair.as_rule();
        let mut inner = parts(pair);
        Some(match rule {
            Rule::layout => StmtKind::Layout(inner.0.map(|item| self.layout_item(item)).collect()),
            Rule::order => {
                let segment = inner.take(Rule::name).map(|name| self.name(Some(name)));
                StmtKind::Order { segment, order: self.required(inner.take(Rule::expr)) }
            }
            Rule::block_size => self.block_size(inner),
            Rule::let_ => {
                let name = self.name(inner.take(Rule::name));
                StmtKind::Let(name, self.required(inner.take(Rule::expr)))
            }
            Rule::keep => StmtKind::Keep(self.rule(inner.next()?)),
            Rule::skip => StmtKind::Skip(self.rule(inner.next()?)),
            Rule::cache => StmtKind::Cache {
                segments: self.set(inner.take(Rule::set)?),
                predicate: self.inside(inner.take(Rule::where_)),
                mode: self.inside(inner.take(Rule::mode)),
            },
            Rule::guard => self.guard(inner)?,
            Rule::when => {
                let guard = Guard::When(self.required(inner.take(Rule::expr)));
                let body = self.statements(inner.take(Rule::block)?);
                let otherwise = inner.take(Rule::block).map(|block| self.statements(block));
                StmtKind::Guard { guard, body, otherwise }
            }
            Rule::schedule => StmtKind::Schedule(self.lines(inner.next()?)),
            Rule::use_ => {
                let name = self.name(inner.take(Rule::name));
                StmtKind::Use { name, args: self.args(inner.take(Rule::args)) }
            }
            _ => StmtKind::Quirk(self.string(&inner.take(Rule::string)?)),
        })
    }

    fn layout_item(&self, pair: Pair<'_>) -> (Ident, Vec<Ident>) {
        let mut inner = parts(pair);
        let name = self.name(inner.take(Rule::name));
        let axes = inner.take(Rule::axes).map(|axes| parts(axes).0.map(|axis| self.name(Some(axis))).collect());
        (name, axes.unwrap_or_default())
    }

    fn block_size(&self, mut inner: Parts<'_>) -> StmtKind {
        if let Some(glued) = inner.take(Rule::glued) {
            let mut sides = glued.into_inner().map(|side| self.number(&side));
            let q = sides.next().unwrap_or_else(|| self.required(None));
            return StmtKind::Block { q, kv: sides.next() };
        }
        let q = self.required(inner.take(Rule::expr));
        StmtKind::Block { q, kv: inner.take(Rule::expr).map(|expr| self.expr(expr)) }
    }

    fn rule(&self, pair: Pair<'_>) -> crate::syntax::ast::Rule {
        let nowhere = Set { parts: Vec::new(), span: self.span(&pair) };
        let mut inner = parts(pair);
        let q = inner.take(Rule::set).map_or_else(|| nowhere.clone(), |set| self.set(set));
        let both = inner.take(Rule::both).is_some();
        let kv = inner.take(Rule::set).map_or(nowhere, |set| self.set(set));
        let predicate = self.inside(inner.take(Rule::where_));
        let lower = inner.take(Rule::lower).map(|lower| self.lower(lower));
        crate::syntax::ast::Rule { q, kv, both, predicate, lower }
    }

    /// A union of segments.
    pub(super) fn set(&self, pair: Pair<'_>) -> Set {
        let span = self.span(&pair);
        let part = |pair: Pair<'_>| {
            let mut inner = parts(pair);
            (self.name(inner.take(Rule::name)), inner.take(Rule::name).map(|name| self.name(Some(name))))
        };
        Set { parts: parts(pair).0.map(part).collect(), span }
    }

    fn lower(&self, pair: Pair<'_>) -> Lower {
        let span = self.span(&pair);
        let mut inner = parts(pair);
        let name = self.name(inner.take(Rule::name));
        let args = self.args(inner.take(Rule::args));
        Lower { name, args, per: inner.take(Rule::name).map(|axis| self.name(Some(axis))), span }
    }

    fn guard(&self, mut inner: Parts<'_>) -> Option<StmtKind> {
        let dimension = match inner.next()?.as_rule() {
            Rule::kw_heads => Dimension::Heads,
            Rule::kw_layers => Dimension::Layers,
            _ => Dimension::Steps,
        };
        let guard = Guard::Places(dimension, self.places(inner.next()?));
        Some(StmtKind::Guard { guard, body: self.statements(inner.next()?), otherwise: None })
    }

    fn places(&self, pair: Pair<'_>) -> Places {
        let span = self.span(&pair);
        match parts(pair).next() {
            Some(list) if list.as_rule() == Rule::place_list => {
                Places::List(parts(list).0.map(|place| self.range(place)).collect(), span)
            }
            Some(range) if range.as_rule() == Rule::range => self.range(range),
            _ => Places::Rest(span),
        }
    }

    fn range(&self, pair: Pair<'_>) -> Places {
        let span = self.span(&pair);
        let mut inner = parts(pair);
        let start = inner.take(Rule::expr).map(|expr| self.expr(expr));
        match (start, inner.take(Rule::dots)) {
            (Some(one), None) => Places::One(one),
            (start, _) => Places::Range(start, inner.take(Rule::expr).map(|expr| self.expr(expr)), span),
        }
    }

    fn lines(&self, block: Pair<'_>) -> Vec<ScheduleStmt> {
        let mut lines = Vec::new();
        self.body(block, Rule::only_line, &mut |part| lines.extend(self.line(part)));
        lines
    }

    fn line(&self, pair: Pair<'_>) -> Option<ScheduleStmt> {
        let span = self.span(&pair);
        let line = pair.into_inner().next()?;
        let layers = line.as_rule() == Rule::line_layers;
        let mut inner = parts(line);
        if layers {
            inner.take(Rule::kw_layers);
            let places = self.places(inner.next()?);
            return Some(ScheduleStmt::Layers(places, self.lines(inner.next()?), span));
        }
        let kind = self.name(inner.next());
        let unit = inner.take(Rule::unit).map(|unit| self.name(Some(unit)));
        let mode = self.inside(inner.take(Rule::mode));
        let clauses = inner.0.filter_map(|clause| self.clause(clause)).collect();
        Some(ScheduleStmt::Kind { kind, unit, mode, clauses, span })
    }

    fn clause(&self, pair: Pair<'_>) -> Option<Clause> {
        let clause = pair.into_inner().next()?;
        let rule = clause.as_rule();
        let mut inner = parts(clause);
        let except = inner.take(Rule::kw_except).is_some();
        let first = self.required(inner.take(Rule::expr));
        Some(match rule {
            Rule::while_ => Clause::While(first),
            Rule::every => {
                let from = inner.take(Rule::expr).map(|expr| self.expr(expr));
                Clause::Every { interval: first, from, except }
            }
            _ => Clause::On { steps: first, except },
        })
    }

    /// Arguments of a call, a segment or a `use`.
    pub(super) fn args(&self, pair: Option<Pair<'_>>) -> Vec<Arg> {
        let arg = |pair: Pair<'_>| {
            let mut inner = parts(pair);
            let name = inner.take(Rule::any_name).map(|name| self.name(Some(name)));
            let value = match inner.take(Rule::bare) {
                Some(bare) => Expr { kind: ExprKind::Name(bare.as_str().to_owned()), span: self.span(&bare) },
                None => self.required(inner.take(Rule::expr)),
            };
            Arg { name, value }
        };
        pair.map(|pair| parts(pair).0.map(arg).collect()).unwrap_or_default()
    }

    /// A name.
    pub(super) fn name(&self, pair: Option<Pair<'_>>) -> Ident {
        pair.map_or_else(
            || Spanned { node: String::new(), span: Span { file: self.file, ..Span::default() } },
            |pair| Spanned { node: pair.as_str().trim_end().to_owned(), span: self.span(&pair) },
        )
    }

    /// The expression of `where P` or `as MODE`.
    fn inside(&self, pair: Option<Pair<'_>>) -> Option<Expr> {
        parts(pair?).take(Rule::expr).map(|expr| self.expr(expr))
    }
}
