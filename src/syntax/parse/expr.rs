//! From pest's pairs to the tree: expressions.
//!
//! The grammar gives operands and operators in a row; precedence comes from pest's Pratt parser. It recurses
//! with each operator, so their number on one path through an expression is bounded before it starts.

use std::sync::LazyLock;

use pest::pratt_parser::{Assoc, Op, PrattParser};

use super::super::MAX_OPERATORS;
use super::convert::{Reader, parts};
use super::{Pair, Rule};
use crate::diagnostics::{Code, Diagnostic};
use crate::source::{Span, Spanned};
use crate::syntax::ast::{BinaryOp, CompareOp, Expr, ExprKind, UnaryOp};

/// The operators, loosest first.
static PRECEDENCE: LazyLock<PrattParser<Rule>> = LazyLock::new(|| {
    let left = |rule| Op::infix(rule, Assoc::Left);
    let comparisons = left(Rule::equal) | left(Rule::not_equal) | left(Rule::less) | left(Rule::less_equal);
    PrattParser::new()
        .op(left(Rule::kw_or))
        .op(left(Rule::kw_and))
        .op(Op::prefix(Rule::kw_not))
        .op(comparisons | left(Rule::greater) | left(Rule::greater_equal))
        .op(left(Rule::kw_xor))
        .op(left(Rule::plus) | left(Rule::minus))
        .op(left(Rule::star) | left(Rule::slash) | left(Rule::kw_div) | left(Rule::kw_mod) | left(Rule::kw_of))
        .op(Op::prefix(Rule::negative))
        .op(Op::infix(Rule::caret, Assoc::Right))
        .op(Op::infix(Rule::kw_else, Assoc::Right))
        .op(Op::postfix(Rule::slice))
});

/// An expression while it is put together.
struct Operand {
    expr: Expr,
    /// Its place with the parentheses around it.
    outer: Span,
    /// Whether there are any: `(a < b) < c` is no chain.
    grouped: bool,
}

impl Operand {
    fn plain(expr: Expr) -> Self {
        Operand { outer: expr.span, expr, grouped: false }
    }
}

impl Reader<'_> {
    /// An expression the grammar promises.
    pub(super) fn required(&self, pair: Option<Pair<'_>>) -> Expr {
        let nothing = || Expr { kind: ExprKind::Int(0), span: Span { file: self.file, ..Span::default() } };
        pair.map_or_else(nothing, |pair| self.expr(pair))
    }

    /// An expression.
    pub(super) fn expr(&self, pair: Pair<'_>) -> Expr {
        self.operand(pair).expr
    }

    fn operand(&self, pair: Pair<'_>) -> Operand {
        let span = self.span(&pair);
        let mut signs = pair.clone().into_inner().flat_map(Pair::into_inner);
        if let (Some(only), None) = (signs.next(), signs.next()) {
            return self.primary(only);
        }
        let operands = pair.clone().into_inner().filter(|part| part.as_rule() == Rule::operand).count();
        let operators = pair.clone().into_inner().flat_map(Pair::into_inner).count().saturating_sub(operands);
        let above = self.operators.get();
        if above + operators > MAX_OPERATORS {
            self.push(too_many(span));
            return Operand::plain(Expr { kind: ExprKind::Int(0), span });
        }
        self.operators.set(above + operators);
        let operand = self.climb(pair);
        self.operators.set(above);
        operand
    }

    fn climb(&self, pair: Pair<'_>) -> Operand {
        let row: Vec<_> = pair.into_inner().flat_map(Pair::into_inner).flat_map(unwrap_sign).collect();
        PRECEDENCE
            .map_primary(|primary| self.primary(primary))
            .map_prefix(|sign, operand| self.unary(&sign, operand))
            .map_infix(|left, sign, right| self.binary(left, &sign, right))
            .map_postfix(|operand, slice| self.slice(operand, slice))
            .parse(row.into_iter())
    }

    fn unary(&self, sign: &Pair<'_>, operand: Operand) -> Operand {
        let op = if sign.as_rule() == Rule::kw_not { UnaryOp::Not } else { UnaryOp::Negate };
        let span = self.span(sign).to(operand.outer);
        Operand::plain(Expr { kind: ExprKind::Unary(op, Box::new(operand.expr)), span })
    }

    fn binary(&self, left: Operand, sign: &Pair<'_>, right: Operand) -> Operand {
        let span = left.outer.to(right.outer);
        if let Some(op) = comparison(sign.as_rule()) {
            return Operand::plain(Expr { kind: chain(left, op, right.expr), span });
        }
        let rule = sign.as_rule();
        let (left, right) = (Box::new(left.expr), Box::new(right.expr));
        let Some(op) = arithmetic(rule) else {
            self.check_else(&left, self.span(sign));
            return Operand::plain(Expr { kind: ExprKind::Else(left, right), span });
        };
        Operand::plain(Expr { kind: ExprKind::Binary(op, left, right), span })
    }

    fn check_else(&self, left: &Expr, sign: Span) {
        if !matches!(left.kind, ExprKind::Call(..)) {
            self.push(
                Diagnostic::new(Code::E0101, sign, "found `else` after something that is not a call")
                    .also(left.span, "this always has a value")
                    .help("`else` gives the value of `table(...)` where the table is missing"),
            );
        }
    }

    fn slice(&self, operand: Operand, pair: Pair<'_>) -> Operand {
        let span = operand.outer.to(self.span(&pair));
        let mut inner = parts(pair);
        let Some(first) = inner.take(Rule::set).map(|set| self.set(set)) else { return operand };
        let second = inner.take(Rule::set).map(|set| self.set(set));
        Operand::plain(Expr { kind: ExprKind::Slice(Box::new(operand.expr), first, second), span })
    }

    fn primary(&self, pair: Pair<'_>) -> Operand {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::number => return Operand::plain(self.number(&pair)),
            Rule::string => ExprKind::Text(self.string(&pair).node),
            Rule::truth => ExprKind::Bool(pair.as_str() == "true"),
            Rule::list => ExprKind::List(self.row(pair)),
            Rule::paren => return self.paren(pair, span),
            _ => self.reference(pair),
        };
        Operand::plain(Expr { kind, span })
    }

    fn reference(&self, pair: Pair<'_>) -> ExprKind {
        let mut inner = parts(pair);
        let name = self.name(inner.take(Rule::any_name));
        match inner.take(Rule::args) {
            Some(args) => ExprKind::Call(name, self.args(Some(args))),
            None => ExprKind::Name(name.node),
        }
    }

    fn paren(&self, pair: Pair<'_>, span: Span) -> Operand {
        let tuple = pair.clone().into_inner().any(|part| part.as_rule() == Rule::comma);
        let mut row = self.row(pair);
        match row.pop() {
            Some(only) if !tuple => Operand { expr: only, outer: span, grouped: true },
            last => {
                row.extend(last);
                Operand::plain(Expr { kind: ExprKind::Tuple(row), span })
            }
        }
    }

    fn row(&self, pair: Pair<'_>) -> Vec<Expr> {
        pair.into_inner().filter(|part| part.as_rule() == Rule::expr).map(|part| self.expr(part)).collect()
    }

    /// A text without its quotes and escapes. One that is not closed has been reported by the lexer.
    pub(super) fn string(&self, pair: &Pair<'_>) -> Spanned<String> {
        let span = self.span(pair);
        let body = pair.as_str().strip_prefix('"').unwrap_or_default();
        let mut node = String::with_capacity(body.len());
        let mut chars = body.char_indices();
        while let Some((_, char)) = chars.next() {
            match char {
                '"' => break,
                '\\' => match chars.next() {
                    Some((_, 'n')) => node.push('\n'),
                    Some((_, quoted @ ('"' | '\\'))) => node.push(quoted),
                    Some((at, other)) => self.bad_escape(pair.as_span().start() + at, other),
                    None => {}
                },
                _ => node.push(char),
            }
        }
        Spanned { node, span }
    }

    /// `at` is the offset of the backslash: one less than that of the character, one more for the quote.
    fn bad_escape(&self, at: usize, char: char) {
        let span = self.at(at, at + 1 + char.len_utf8());
        self.push(Diagnostic::new(Code::E0101, span, format!("found `\\{char}` in a text, which means nothing")).fix(
            "`\\\\`, `\\\"` and `\\n` are known; for a backslash write two",
            self.at(at, at + 1),
            "\\\\",
        ));
    }

    /// A number of any form.
    pub(super) fn number(&self, pair: &Pair<'_>) -> Expr {
        let span = self.span(pair);
        let kind = read_number(pair.as_str()).unwrap_or_else(|problem| {
            self.push(malformed(pair.as_str(), span, problem));
            ExprKind::Int(1)
        });
        Expr { kind, span }
    }
}

/// Operators and operands stand one level down, each in a pair of their own.
fn unwrap_sign(pair: Pair<'_>) -> Vec<Pair<'_>> {
    if pair.as_rule() == Rule::prefix { pair.into_inner().collect() } else { vec![pair] }
}

fn too_many(span: Span) -> Diagnostic {
    Diagnostic::new(Code::E0103, span, format!("more than {MAX_OPERATORS} operators in one expression"))
        .label("this is too long")
        .help("give parts of it names with `let`, or read the values from a `table`")
}

/// `a < b` or, after a comparison without parentheses, one more link of its chain.
fn chain(left: Operand, op: CompareOp, right: Expr) -> ExprKind {
    match left.expr.kind {
        ExprKind::Compare(mut operands, mut ops) if !left.grouped => {
            operands.push(right);
            ops.push(op);
            ExprKind::Compare(operands, ops)
        }
        _ => ExprKind::Compare(vec![left.expr, right], vec![op]),
    }
}

fn comparison(rule: Rule) -> Option<CompareOp> {
    Some(match rule {
        Rule::equal => CompareOp::Equal,
        Rule::not_equal => CompareOp::NotEqual,
        Rule::less => CompareOp::Less,
        Rule::less_equal => CompareOp::LessEqual,
        Rule::greater => CompareOp::Greater,
        Rule::greater_equal => CompareOp::GreaterEqual,
        _ => return None,
    })
}

fn arithmetic(rule: Rule) -> Option<BinaryOp> {
    Some(match rule {
        Rule::kw_or => BinaryOp::Or,
        Rule::kw_and => BinaryOp::And,
        Rule::plus => BinaryOp::Add,
        Rule::minus => BinaryOp::Subtract,
        Rule::star => BinaryOp::Multiply,
        Rule::kw_of => BinaryOp::Of,
        Rule::slash => BinaryOp::Divide,
        Rule::kw_div => BinaryOp::FloorDivide,
        Rule::kw_mod => BinaryOp::Modulo,
        Rule::kw_xor => BinaryOp::Xor,
        Rule::caret => BinaryOp::Power,
        _ => return None,
    })
}

/// What is wrong with a number.
#[derive(Clone, Copy)]
enum Problem {
    TooLarge,
    Underscore,
    Letters,
}

fn read_number(text: &str) -> Result<ExprKind, Problem> {
    let (body, percent) = text.strip_suffix('%').map_or((text, false), |body| (body, true));
    let tidy = body.split(['.', 'e', 'E']).all(|part| !part.starts_with('_') && !part.ends_with('_'));
    if !tidy || body.contains("__") {
        return Err(Problem::Underscore);
    }
    let digits: String = body.chars().filter(|char| *char != '_').collect();
    if !percent && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return digits.parse().map(ExprKind::Int).map_err(|_| Problem::TooLarge);
    }
    let value: f64 = digits.parse().map_err(|_| Problem::Letters)?;
    match (value.is_finite(), percent) {
        (false, _) => Err(Problem::TooLarge),
        (true, true) => Ok(ExprKind::Percent(value)),
        (true, false) => Ok(ExprKind::Real(value)),
    }
}

fn malformed(text: &str, span: Span, problem: Problem) -> Diagnostic {
    let shown = super::report::quote(text);
    match problem {
        Problem::TooLarge => Diagnostic::new(Code::E0104, span, format!("number {shown} is too large")).note(format!(
            "integers go up to {}, reals up to {:e}",
            i64::MAX,
            f64::MAX
        )),
        Problem::Underscore => {
            let groups: Vec<&str> = text.split('_').filter(|group| !group.is_empty()).collect();
            let mended = groups.join("_").replace("_.", ".").replace("_%", "%");
            Diagnostic::new(Code::E0104, span, format!("number {shown} has an `_` that is not between two digits")).fix(
                "an underscore separates digits",
                span,
                mended,
            )
        }
        Problem::Letters => Diagnostic::new(Code::E0104, span, format!("malformed number {shown}"))
            .help("numbers are written `12`, `1_000`, `0.5`, `1e-3` or `25%`; a name cannot start with a digit"),
    }
}
