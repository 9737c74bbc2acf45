//! The functions and names of the language.
//!
//! [`FUNCTIONS`] is the list that the reference, the editor and "did you mean" share; [`Checker::call`] gives each its
//! meaning.

use super::{Checker, Term, code_list};
use crate::diagnostics::{Code, Diagnostic, did_you_mean};
use crate::ir::{
    Binary, Comparison, Coordinate, Extent, Kind, Op, Place, Real, Reduction, SetId, Side, Size, Statistic, Unary,
    ValueId,
};
use crate::source::Span;
use crate::syntax::ast::{self, CompareOp, ExprKind};

/// Names that have a value everywhere.
pub const NAMES: &[&str] = &[
    "step",
    "layer",
    "head",
    "steps",
    "layers",
    "heads",
    "head_dim",
    "tokens",
    "q_blocks",
    "kv_blocks",
    "frames",
    "frame_tokens",
    "tiles",
    "q",
    "k",
    "diagonal",
    "inf",
    "first",
    "last",
    "reuse",
    "last_computed",
    "reused_steps",
];

/// A function: its name, its signature and what it gives.
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Arguments with the defaults of the named ones.
    pub signature: &'static str,
    /// What it gives.
    pub summary: &'static str,
    positional: usize,
    named: &'static [&'static str],
}

const fn function(
    name: &'static str,
    positional: usize,
    named: &'static [&'static str],
    signature: &'static str,
    summary: &'static str,
) -> Function {
    Function { name, signature, summary, positional, named }
}

/// Every function. The axes of a layout are functions too: `h(q)`.
pub const FUNCTIONS: &[Function] = &[
    function(
        "pos",
        1,
        &[],
        "pos(q)",
        "position of the token in the (reordered) sequence; `pos(each(q))`, `pos(mean(k))`: of the (first) token of each vector",
    ),
    function("block", 1, &[], "block(q)", "index of the token's block"),
    function("index", 1, &[], "index(q)", "index of the token in its segment, in the model's order"),
    function("tile", 1, &[], "tile(q)", "coordinates of the token's tile, a tuple; needs `order tiles(...)`"),
    function("frame", 1, &[], "frame(q)", "coordinate along the first axis of the layout's grid"),
    function("patch", 1, &[], "patch(q)", "index of the token in its frame, row-major over the other axes"),
    function("mean", 1, &[], "mean(q)", "mean of the tokens of each block: one vector a block"),
    function(
        "each",
        1,
        &["last", "rows"],
        "each(q, last = 64)` or `each(q, rows = drawn)",
        "the tokens themselves: one vector a token, of all, the last so many or those at some positions",
    ),
    function("centred_mean", 1, &[], "centred_mean(k)", "`mean(k)` minus the mean of the whole sequence"),
    function("self_similarity", 1, &[], "self_similarity(q)", "mean cosine between the tokens of each block"),
    function("block_tokens", 1, &[], "block_tokens(k)", "number of tokens of each block"),
    function(
        "measured",
        2,
        &[],
        "measured(\"router\", q)",
        "what the host measures when symbols are chosen: a number for each token, or without a side for the head",
    ),
    function("dot", 2, &[], "dot(mean(q), mean(k))", "dot product of every vector of queries with every one of keys"),
    function("softmax", 1, &["over"], "softmax(x, over = k)", "exponentials that sum to one along an axis"),
    function("sum", 1, &["over"], "sum(x, over = k)", "sum along an axis"),
    function("average", 1, &["over"], "average(x, over = k)", "mean along an axis"),
    function("count", 1, &["over"], "count(condition, over = k)", "how many of a row satisfy a condition"),
    function(
        "antidiagonal",
        1,
        &[],
        "antidiagonal(stride)",
        "attention between groups of `stride` tokens, queries reversed, summed over blocks",
    ),
    function(
        "lowered",
        1,
        &["by"],
        "lowered(condition, by = any)",
        "a condition on tokens as one on blocks, to be joined with scores: `any`, `all` or `centre`",
    ),
    function("diagonals", 1, &[], "diagonals(x)", "sums of a score of queries and `each(k)`, one for each distance"),
    function("on_diagonals", 1, &[], "on_diagonals(chosen)", "blocks that hold a pair of a chosen distance"),
    function("shift", 2, &["over"], "shift(x, n, over = k)", "moved by n blocks along an axis, zeros behind"),
    function("of_head", 2, &[], "of_head(x, 0)", "the value that another head of the layer has"),
    function("transpose", 1, &[], "transpose(x)", "queries become keys and keys become queries"),
    function(
        "top_k",
        2,
        &["rounding", "ties", "at_least", "over"],
        "top_k(x, amount, rounding = floor, ties = low_index, at_least = 0, over = k)",
        "the `amount` largest of a row: a count, or a share such as `25%`",
    ),
    function(
        "bottom_k",
        2,
        &["rounding", "at_least", "over"],
        "bottom_k(x, amount, rounding = floor, at_least = 0, over = k)",
        "the `amount` smallest of a row: a count, or a share such as `25%`",
    ),
    function(
        "top_p",
        2,
        &["crossing", "direction", "strict", "at_least", "cost", "over"],
        "top_p(x, mass, crossing = keep, direction = descending, strict = false, at_least = 0, cost = x, over = k)",
        "the largest of a row that hold the mass together",
    ),
    function(
        "bottom_mass",
        2,
        &["cost", "over"],
        "bottom_mass(x, mass, cost = x, over = k)",
        "the smallest of a row that hold no more than the mass together",
    ),
    function("above", 2, &[], "above(x, threshold)", "those larger than the threshold"),
    function(
        "statistical_top_k",
        2,
        &["over"],
        "statistical_top_k(x, sparsity, over = k)",
        "those above mean + deviation x normal quantile of `sparsity`",
    ),
    function("abs", 1, &[], "abs(x)", "absolute value"),
    function("sqrt", 1, &[], "sqrt(x)", "square root"),
    function("exp", 1, &[], "exp(x)", "exponential"),
    function("log", 1, &[], "log(x)", "natural logarithm of a single number"),
    function("floor", 1, &[], "floor(x)", "rounded down, to an integer"),
    function("ceil", 1, &[], "ceil(x)", "rounded up, to an integer"),
    function("round", 1, &[], "round(x)", "rounded to nearest, ties to even, to an integer"),
    function("bit_length", 1, &[], "bit_length(n)", "number of bits of an integer: 0, 1, 2, 2, 3, ..."),
    function(
        "min",
        2,
        &["over"],
        "min(a, b)`, `min(x, over = k)` or `min(q)",
        "the smaller; the smallest along an axis, or of the tokens of each block",
    ),
    function(
        "max",
        2,
        &["over"],
        "max(a, b)`, `max(x, over = k)` or `max(q)",
        "the larger; the largest along an axis, or of the tokens of each block",
    ),
    function(
        "argmin",
        8,
        &[],
        "argmin(a, b, c)",
        "which of several numbers is the smallest, from 0; the first of equal ones",
    ),
    function("clamp", 3, &[], "clamp(x, low, high)", "`min(max(x, low), high)`"),
    function("choose", 3, &[], "choose(condition, a, b)", "`a` where the condition holds, else `b`"),
    function("extent", 1, &[], "extent(h)", "size of an axis"),
    function("size", 1, &[], "size(text)", "number of tokens of a segment"),
    function(
        "table",
        2,
        &[],
        "table(\"file.json\", step, layer, head) else x",
        "an entry of a JSON, CSV or safetensors file; `else` stands for missing ones",
    ),
    function(
        "input",
        1,
        &["kind"],
        "input(\"name\", heads, 3, kind = int)",
        "numbers that the host gives by name, with their sizes; `x(head)` is an entry",
    ),
    function("among", 2, &[], "among(x, (1, 3, 5))", "whether a number is one of several"),
    function(
        "codebook",
        3,
        &[],
        "codebook(x, (0.1, 0.2), (8, 4, 2))",
        "the value of the first threshold that is larger than x, else the last value",
    ),
    function(
        "accumulated",
        1,
        &[],
        "accumulated(x)",
        "in a schedule: the sum of x over the steps after the last computed one, this one included",
    ),
    function("taylor", 1, &[], "taylor(order)", "forecast from the last updates, for `as`"),
];

/// The order that is called like a function.
pub(super) const CLUSTERS: Function = function(
    "clusters",
    2,
    &["iterations", "again", "by"],
    "clusters(300, 1000, iterations = 50, again = 2, by = distance)",
    "clusters of queries and of keys",
);

pub(super) fn is_function(name: &str) -> bool {
    signature(name).is_some()
}

/// How a function is called.
pub(super) fn signature(name: &str) -> Option<&'static str> {
    FUNCTIONS.iter().find(|function| function.name == name).map(|function| function.signature)
}

/// The arguments of a call, counted and named.
pub(super) struct Args<'a> {
    pub(super) function: &'static str,
    pub(super) positional: Vec<&'a ast::Expr>,
    named: Vec<(&'a ast::Ident, &'a ast::Expr)>,
    pub(super) span: Span,
}

impl<'a> Args<'a> {
    pub(super) fn named(&self, name: &str) -> Option<&'a ast::Expr> {
        self.named.iter().find(|(ident, _)| ident.node == name).map(|(_, value)| *value)
    }
}

impl Checker<'_> {
    pub(super) fn builtin_name(&mut self, name: &str, span: Span) -> Option<Term> {
        let size = match name {
            "q" => return Some(Term::Side(Side::Query)),
            "k" => return Some(Term::Side(Side::Key)),
            "first" => return Some(Term::Value(self.int(0, span))),
            "last" => {
                let steps = self.push_term(Op::Size(Size::Steps), span);
                let one = Term::Value(self.int(1, span));
                return Some(self.apply(Binary::Subtract, steps, one, span));
            }
            "inf" => return Some(self.push_term(Op::Real(Real(f64::INFINITY)), span)),
            "reuse" => {
                let order = self.int(0, span);
                return Some(Term::Mode(order));
            }
            "step" => return Some(self.push_term(Op::Place(Place::Step), span)),
            "layer" => return Some(self.push_term(Op::Place(Place::Layer), span)),
            "head" => return Some(self.push_term(Op::Place(Place::Head), span)),
            "diagonal" => {
                let distances = self.distances();
                return Some(self.push_term(Op::Distances(distances), span));
            }
            "last_computed" => return Some(self.push_term(Op::LastComputed, span)),
            "reused_steps" => return Some(self.push_term(Op::ReusedSteps, span)),
            "tiles" => return Some(self.tile_counts(span)),
            "frames" | "frame_tokens" => return Some(self.frame_size(name, span)),
            "steps" => Size::Steps,
            "layers" => Size::Layers,
            "heads" => Size::Heads,
            "head_dim" => Size::HeadDim,
            "tokens" => Size::Tokens(SetId::ALL),
            "q_blocks" => Size::Blocks(SetId::ALL, Side::Query),
            "kv_blocks" => Size::Blocks(SetId::ALL, Side::Key),
            _ => return None,
        };
        Some(self.push_term(Op::Size(size), span))
    }

    fn frame_size(&mut self, name: &str, span: Span) -> Term {
        let axes = self.grid_axes();
        if axes.is_empty() {
            return self.no_grid(name, span);
        }
        let wanted = if name == "frames" { &axes[..1] } else { &axes[1..] };
        let mut product = Term::Value(self.int(1, span));
        for axis in wanted {
            let size = self.axis_size(axis, span);
            product = self.apply(Binary::Multiply, product, size, span);
        }
        product
    }

    fn axis_size(&mut self, axis: &str, span: Span) -> Term {
        match self.axis(axis) {
            Some(axis) => self.push_term(Op::Size(Size::Axis(axis)), span),
            None => Term::Hole,
        }
    }

    fn no_grid(&mut self, name: &str, span: Span) -> Term {
        let message = format!("`{name}` needs a segment with axes");
        self.hole(
            Diagnostic::new(Code::E0208, span, message)
                .help("name its axes in the layout, as in `layout video(t, h, w)`"),
        )
    }

    /// Number of tiles along each axis.
    fn tile_counts(&mut self, span: Span) -> Term {
        let Some((axes, sizes)) = self.tiling(span) else { return Term::Hole };
        let counts = axes.iter().zip(sizes).map(|(axis, size)| {
            // Rounded up: -(-extent // size).
            let extent = self.axis_size(axis, span);
            let negative = self.unary(Unary::Negate, extent, span);
            let divided = self.apply(Binary::FloorDivide, negative, Term::Value(size), span);
            self.unary(Unary::Negate, divided, span)
        });
        Term::Tuple(counts.collect())
    }

    /// The segment that is ordered by tiles.
    pub(super) fn tiled_segment(&self) -> Option<String> {
        let rule = self.strategy.orders.iter().find(|rule| matches!(rule.order, crate::ir::Order::Tiles(_)))?;
        let grid = || self.strategy.layout.iter().find(|segment| !segment.axes.is_empty());
        rule.segment.clone().or_else(|| grid().map(|segment| segment.name.clone()))
    }

    /// The axes and tile sizes of the (first) tile order.
    fn tiling(&mut self, span: Span) -> Option<(Vec<String>, Vec<ValueId>)> {
        let tiles = self.strategy.orders.iter().find_map(|rule| match &rule.order {
            crate::ir::Order::Tiles(sizes) => Some(sizes.clone()),
            _ => None,
        });
        let (Some(segment), Some(sizes)) = (self.tiled_segment(), tiles) else {
            let diagnostic = Diagnostic::new(Code::E0208, span, "there are no tiles without a tile order");
            self.hole(diagnostic.help("say how the tokens are tiled before this line, as in `order tiles(6, 8, 8)`"));
            return None;
        };
        let axes = self.strategy.layout.iter().find(|known| known.name == segment)?.axes.clone();
        Some((axes, sizes))
    }

    pub(super) fn call(
        &mut self,
        name: &ast::Ident,
        args: &[ast::Arg],
        otherwise: Option<&ast::Expr>,
        span: Span,
    ) -> Term {
        if let Some(axis) = self.axis(&name.node) {
            return self.coordinate_call(&name.node, Coordinate::Axis(axis), args, span);
        }
        if let Some(Term::Input(declared)) = self.lookup(&name.node) {
            return self.input_entry(&declared, args, otherwise, span);
        }
        let Some(function) = FUNCTIONS.iter().find(|function| function.name == name.node) else {
            return self.unknown_function(name);
        };
        match self.arguments(function, args, span) {
            Some(args) => self.known_call(&args, otherwise),
            None => Term::Hole,
        }
    }

    /// The arguments of a call, where they are as many as it takes, and named as it knows them.
    pub(super) fn arguments<'a>(
        &mut self,
        function: &'static Function,
        args: &'a [ast::Arg],
        span: Span,
    ) -> Option<Args<'a>> {
        let positional: Vec<&ast::Expr> = args.iter().filter(|arg| arg.name.is_none()).map(|arg| &arg.value).collect();
        let named: Vec<(&ast::Ident, &ast::Expr)> =
            args.iter().filter_map(|arg| Some((arg.name.as_ref()?, &arg.value))).collect();
        for (name, _) in &named {
            if !function.named.contains(&name.node.as_str()) {
                self.unknown_argument(function.name, name, function.named);
                return None;
            }
        }
        for (index, (name, _)) in named.iter().enumerate() {
            if let Some((first, _)) = named[..index].iter().find(|(first, _)| first.node == name.node) {
                self.given_twice(name, first.span);
                return None;
            }
        }
        let reduces = named.iter().any(|(name, _)| name.node == "over");
        let wanted = match function.name {
            "min" | "max" if reduces || is_side(&positional) => 1..=1,
            "min" | "max" => 2..=8,
            "argmin" => 2..=8,
            "table" => 2..=4,
            "measured" => 1..=2,
            "input" => 2..=5,
            _ => function.positional..=function.positional,
        };
        if !wanted.contains(&positional.len()) {
            let message = format!(
                "`{}` takes {}, found {}",
                function.name,
                count_words(*wanted.start(), *wanted.end()),
                positional.len()
            );
            let diagnostic = Diagnostic::new(Code::E0204, span, message);
            self.report(diagnostic.help(format!("write `{}`", function.signature)));
            return None;
        }
        Some(Args { function: function.name, positional, named, span })
    }

    fn unknown_function(&mut self, name: &ast::Ident) -> Term {
        let axes: Vec<String> = self.strategy.layout.iter().flat_map(|segment| segment.axes.clone()).collect();
        let known = FUNCTIONS.iter().map(|function| function.name).chain(axes.iter().map(String::as_str));
        let near = did_you_mean(&name.node, known).map(str::to_owned);
        let diagnostic = Diagnostic::new(Code::E0203, name.span, format!("there is no function `{}`", name.node));
        self.hole(match near {
            Some(near) => diagnostic.fix(format!("did you mean `{near}`?"), name.span, near),
            None if axes.is_empty() => {
                diagnostic.help("axes are functions once the layout names them, as in `layout video(t, h, w)`")
            }
            None => diagnostic.help(format!("coordinates of this layout: {}", code_list(&axes))),
        })
    }

    fn known_call(&mut self, args: &Args<'_>, otherwise: Option<&ast::Expr>) -> Term {
        let span = args.span;
        match args.function {
            "pos" => self.position(args),
            "block" => self.coordinate(Coordinate::Block, args),
            "index" => self.coordinate(Coordinate::Index, args),
            "tile" => self.tile(args),
            "frame" | "patch" => self.frame_coordinate(args),
            "mean" => self.pool(Statistic::Mean, args),
            "centred_mean" => self.pool(Statistic::CentredMean, args),
            "each" => self.each(args),
            "measured" => self.measured(args),
            "min" | "max" if is_side(&args.positional) => {
                self.pool(if args.function == "min" { Statistic::Min } else { Statistic::Max }, args)
            }
            "self_similarity" | "block_tokens" => match self.side(args.positional[0]) {
                Some(side) if args.function == "block_tokens" => self.push_term(Op::BlockTokens(side), span),
                Some(side) => self.push_term(Op::SelfSimilarity(side), span),
                None => Term::Hole,
            },
            "dot" => self.dot(args),
            "softmax" => {
                let Some((value, over)) = self.reducible(args) else { return Term::Hole };
                self.push_term(Op::Softmax { value, over }, span)
            }
            "sum" | "count" => self.reduction(Reduction::Sum, args),
            "average" => self.reduction(Reduction::Mean, args),
            "min" | "max" if args.positional.len() == 1 => {
                let how = if args.function == "min" { Reduction::Min } else { Reduction::Max };
                self.reduction(how, args)
            }
            "min" | "max" => {
                let op = if args.function == "min" { Binary::Min } else { Binary::Max };
                let mut terms = args.positional.iter().map(|arg| self.expression(arg)).collect::<Vec<_>>().into_iter();
                let first = terms.next().unwrap_or(Term::Hole);
                terms.fold(first, |a, b| self.apply(op, a, b, span))
            }
            "of_head" => self.of_head(args),
            "antidiagonal" => match self.integer(args.positional[0], "a stride") {
                Some(stride) => self.push_term(Op::AntiDiagonal { stride }, span),
                None => Term::Hole,
            },
            "lowered" => self.lowered(args),
            "diagonals" | "on_diagonals" => self.diagonals(args),
            "shift" => self.shift(args),
            "input" => self.input(args),
            "among" => self.among(args),
            "codebook" => self.codebook(args),
            "accumulated" => {
                let expr = args.positional[0];
                let term = self.expression(expr);
                match self.single(term, expr.span).and_then(|id| self.as_real(id, expr.span)) {
                    Ok(id) => self.push_term(Op::Accumulated(id), span),
                    Err(_) => Term::Hole,
                }
            }
            "transpose" => match self.blocks_argument(args) {
                Some(id) => self.push_term(Op::Transpose(id), span),
                None => Term::Hole,
            },
            "top_k" | "bottom_k" | "top_p" | "bottom_mass" | "statistical_top_k" => self.select(args),
            "above" => {
                let (x, t) = (self.expression(args.positional[0]), self.expression(args.positional[1]));
                let (Ok(x), Ok(t)) = (self.single(x, span), self.single(t, span)) else { return Term::Hole };
                let (Ok(x), Ok(t)) = (self.as_real(x, span), self.as_real(t, span)) else { return Term::Hole };
                self.push_term(Op::Compare(Comparison::Less, t, x), span)
            }
            "clamp" => {
                let terms: Vec<Term> = args.positional.iter().map(|arg| self.expression(arg)).collect();
                let raised = self.apply(Binary::Max, terms[0].clone(), terms[1].clone(), span);
                self.apply(Binary::Min, raised, terms[2].clone(), span)
            }
            "argmin" => self.argmin(args),
            "choose" => self.choose(args),
            "extent" => self.extent(args),
            "size" => match self.segment_argument(args.positional[0]) {
                Some(set) => self.push_term(Op::Size(Size::Tokens(set)), span),
                None => Term::Hole,
            },
            "table" => self.table(&args.positional, otherwise, span),
            "taylor" => match self.expression(args.positional[0]) {
                Term::Value(order) if self.ty(order) == crate::ir::Type::scalar(Kind::Int) => Term::Mode(order),
                Term::Hole => Term::Hole,
                _ => self.hole(Diagnostic::new(Code::E0205, span, "the order of a forecast is an integer from 0 to 4")),
            },
            other => match elementwise(other) {
                Some(op) => {
                    let term = self.expression(args.positional[0]);
                    self.unary(op, term, span)
                }
                None => Term::Hole,
            },
        }
    }

    // ---- geometry ----

    /// `q` or `k`.
    pub(super) fn side(&mut self, expr: &ast::Expr) -> Option<Side> {
        match self.expression(expr) {
            Term::Side(side) => Some(side),
            Term::Hole => None,
            _ => {
                self.report(
                    Diagnostic::new(Code::E0205, expr.span, "expected `q` or `k`")
                        .help("`q` stands for the query token or block, `k` for the key"),
                );
                None
            }
        }
    }

    fn coordinate_call(&mut self, name: &str, what: Coordinate, args: &[ast::Arg], span: Span) -> Term {
        let [ast::Arg { name: None, value }] = args else {
            let diagnostic = Diagnostic::new(Code::E0204, span, format!("`{name}` takes one argument"));
            return self.hole(diagnostic.help(format!("write `{name}(q)` or `{name}(k)`")));
        };
        match self.side(value) {
            Some(side) => self.push_term(Op::Coordinate(what, side), span),
            None => Term::Hole,
        }
    }

    fn coordinate(&mut self, what: Coordinate, args: &Args<'_>) -> Term {
        match self.side(args.positional[0]) {
            Some(side) => self.push_term(Op::Coordinate(what, side), args.span),
            None => Term::Hole,
        }
    }

    /// The position of a token, or of what vectors stand for.
    fn position(&mut self, args: &Args<'_>) -> Term {
        let expr = args.positional[0];
        match self.expression(expr) {
            Term::Value(id) if matches!(self.ty(id).extent, Extent::Vectors(..)) => {
                self.push_term(Op::Start(id), args.span)
            }
            _ => self.coordinate(Coordinate::Position, args),
        }
    }

    fn tile(&mut self, args: &Args<'_>) -> Term {
        let Some(side) = self.side(args.positional[0]) else { return Term::Hole };
        let Some((axes, _)) = self.tiling(args.span) else { return Term::Hole };
        let coordinates =
            (0..axes.len()).map(|axis| self.push_term(Op::Coordinate(Coordinate::Tile(axis as u8), side), args.span));
        Term::Tuple(coordinates.collect())
    }

    fn frame_coordinate(&mut self, args: &Args<'_>) -> Term {
        let Some(side) = self.side(args.positional[0]) else { return Term::Hole };
        let axes = self.grid_axes();
        let Some((first, rest)) = axes.split_first() else { return self.no_grid(args.function, args.span) };
        let span = args.span;
        if args.function == "frame" {
            let axis = self.axis(first).unwrap_or_default();
            return self.push_term(Op::Coordinate(Coordinate::Axis(axis), side), span);
        }
        let mut index = Term::Value(self.int(0, span));
        for name in rest {
            let axis = self.axis(name).unwrap_or_default();
            let (size, coordinate) =
                (self.axis_size(name, span), self.push_term(Op::Coordinate(Coordinate::Axis(axis), side), span));
            let scaled = self.apply(Binary::Multiply, index, size, span);
            index = self.apply(Binary::Add, scaled, coordinate, span);
        }
        index
    }

    fn extent(&mut self, args: &Args<'_>) -> Term {
        let expr = args.positional[0];
        let axes: Vec<String> = self.strategy.layout.iter().flat_map(|segment| segment.axes.clone()).collect();
        if let ExprKind::Name(name) = &expr.kind
            && axes.contains(name)
        {
            return self.axis_size(name, args.span);
        }
        let diagnostic = Diagnostic::new(Code::E0208, expr.span, "expected the name of an axis");
        self.hole(if axes.is_empty() {
            diagnostic.help("name axes in the layout, as in `layout video(t, h, w)`")
        } else {
            diagnostic.help(format!("axes of this layout: {}", code_list(&axes)))
        })
    }

    fn segment_argument(&mut self, expr: &ast::Expr) -> Option<SetId> {
        let ExprKind::Name(name) = &expr.kind else {
            self.report(Diagnostic::new(Code::E0207, expr.span, "expected the name of a segment"));
            return None;
        };
        let name = ast::Ident { node: name.clone(), span: expr.span };
        self.set(&ast::Set { parts: vec![(name, None)], span: expr.span })
    }

    /// Whether a value equals one of several.
    fn among(&mut self, args: &Args<'_>) -> Term {
        let value = self.expression(args.positional[0]);
        let items = match self.expression(args.positional[1]) {
            Term::Tuple(items) | Term::List(items) => items,
            Term::Hole => return Term::Hole,
            one => vec![one],
        };
        let mut any = Term::Value(self.boolean(false, args.span));
        for item in items {
            let equal = self.compare(CompareOp::Equal, value.clone(), item, args.span);
            any = self.apply(Binary::Or, any, equal, args.span);
        }
        any
    }

    /// The value of the first threshold that is larger.
    fn codebook(&mut self, args: &Args<'_>) -> Term {
        let span = args.span;
        let x = self.expression(args.positional[0]);
        let several = |this: &mut Self, index: usize| match this.expression(args.positional[index]) {
            Term::Tuple(items) | Term::List(items) => Some(items),
            Term::Hole => None,
            one => Some(vec![one]),
        };
        let (Some(thresholds), Some(mut values)) = (several(self, 1), several(self, 2)) else { return Term::Hole };
        let Some(last) = values.pop().filter(|_| values.len() == thresholds.len()) else {
            let message = format!("{} thresholds ask for {} values", thresholds.len(), thresholds.len() + 1);
            return self.hole(Diagnostic::new(Code::E0204, args.positional[2].span, message));
        };
        thresholds.into_iter().zip(values).rev().fold(last, |otherwise, (threshold, value)| {
            let condition = self.compare(CompareOp::Less, x.clone(), threshold, span);
            let (Ok(condition), Ok(value), Ok(otherwise)) =
                (self.single(condition, span), self.single(value, span), self.single(otherwise, span))
            else {
                return Term::Hole;
            };
            self.push_term(Op::Choose(condition, value, otherwise), span)
        })
    }
}

/// Whether the only argument is `q` or `k`.
fn is_side(positional: &[&ast::Expr]) -> bool {
    matches!(positional, [ast::Expr { kind: ExprKind::Name(name), .. }] if name == "q" || name == "k")
}

fn elementwise(name: &str) -> Option<Unary> {
    Some(match name {
        "abs" => Unary::Abs,
        "sqrt" => Unary::Sqrt,
        "exp" => Unary::Exp,
        "log" => Unary::Log,
        "floor" => Unary::Floor,
        "ceil" => Unary::Ceil,
        "round" => Unary::Round,
        "bit_length" => Unary::BitLength,
        _ => return None,
    })
}

fn count_words(least: usize, most: usize) -> String {
    let plural = if most == 1 { "" } else { "s" };
    if least == most { format!("{least} argument{plural}") } else { format!("{least} to {most} arguments") }
}
