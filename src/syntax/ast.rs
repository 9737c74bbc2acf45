//! The syntax tree of an `.omni` file: what was written, with the place of each part.
//!
//! The tree keeps the author's form (named arguments, percent signs, nested guards) and knows nothing of
//! meaning; names are plain text. Comments are not part of it: the formatter weaves them in by position.

use crate::source::{Span, Spanned};

/// A name with its place.
pub type Ident = Spanned<String>;

/// One file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// Declarations in order.
    pub items: Vec<Item>,
}

/// A declaration.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `import "path.omni"`: the strategies and models of another file.
    Import(Spanned<String>),
    /// `model NAME { ... }`.
    Model(Model),
    /// `strategy NAME(PARAMS) { ... }`.
    Strategy(Strategy),
}

/// The shape of a transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Text of the `///` lines above.
    pub docs: Vec<String>,
    /// Its name.
    pub name: Ident,
    /// `layers 57`, `heads 24`, ... and `tokens ...`.
    pub fields: Vec<ModelField>,
    /// The whole declaration.
    pub span: Span,
}

/// One line of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelField {
    /// `layers 57`, `heads 24`, `head_dim 128`, `steps 50`: a count.
    Count(Ident, Expr),
    /// `dtype bf16`.
    Dtype(Ident),
    /// `tokens text(512) ++ image(h = 64, w = 64)`.
    Tokens(Vec<Segment>, Span),
}

/// A segment of a model: `video(t = 33, h = 45, w = 80)`, `text(256, valid = 200)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Its name.
    pub name: Ident,
    /// Axis sizes in row-major order; a lone size without a name is a run of tokens without coordinates.
    pub args: Vec<Arg>,
    /// The whole segment.
    pub span: Span,
}

/// A strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Strategy {
    /// Text of the `///` lines above.
    pub docs: Vec<String>,
    /// Its name.
    pub name: Ident,
    /// `tau = 0.5`: name and default.
    pub params: Vec<(Ident, Expr)>,
    /// The statements.
    pub body: Vec<Stmt>,
    /// The whole declaration.
    pub span: Span,
}

/// A statement of a strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Stmt {
    /// What it says.
    pub kind: StmtKind,
    /// The whole statement.
    pub span: Span,
}

/// The kinds of statements.
#[derive(Clone, Debug, PartialEq)]
pub enum StmtKind {
    /// `layout text ++ image(h, w)`: the segments the strategy needs and the names of their axes.
    Layout(Vec<(Ident, Vec<Ident>)>),
    /// `order video by tiles(6, 8, 8)`; without a segment, of the one with coordinates.
    Order {
        /// The segment.
        segment: Option<Ident>,
        /// The order, a call or a name.
        order: Expr,
    },
    /// `block 128 x 64`; one number stands for both.
    Block {
        /// Query tokens of a block.
        q: Expr,
        /// Key tokens of a block.
        kv: Option<Expr>,
    },
    /// `let NAME = EXPR`.
    Let(Ident, Expr),
    /// `keep A -> B where P lower L`.
    Keep(Rule),
    /// `skip A -> B where P lower L`.
    Skip(Rule),
    /// `cache A where P as MODE`.
    Cache {
        /// The segments whose q-blocks may be cached.
        segments: Set,
        /// Which of them; all without one.
        predicate: Option<Expr>,
        /// `reuse` or `taylor(ORDER)`; `reuse` without one.
        mode: Option<Expr>,
    },
    /// `heads 0..8 { ... }`, `layers [1, 3] { ... }`, `steps ..10 { ... }`, `when COND { ... } else { ... }`.
    Guard {
        /// Where the body holds.
        guard: Guard,
        /// The statements it guards.
        body: Vec<Stmt>,
        /// Those of `else`, after `when` only.
        otherwise: Option<Vec<Stmt>>,
    },
    /// `schedule { ... }`.
    Schedule(Vec<ScheduleStmt>),
    /// `use NAME(ARGS)`: the rules of another strategy.
    Use {
        /// Its name.
        name: Ident,
        /// Its parameters, by name.
        args: Vec<Arg>,
    },
    /// `quirk "words"`: a deviation of the published code that the statements above reproduce.
    Quirk(Spanned<String>),
}

/// The condition of a guard.
#[derive(Clone, Debug, PartialEq)]
pub enum Guard {
    /// `heads`, `layers` or `steps` with the places it names.
    Places(Dimension, Places),
    /// `when COND`.
    When(Expr),
}

/// What a guard counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// Attention heads.
    Heads,
    /// Transformer blocks.
    Layers,
    /// Denoising steps.
    Steps,
}

/// The places a guard names.
#[derive(Clone, Debug, PartialEq)]
pub enum Places {
    /// `rest`: those that no guard beside it names.
    Rest(Span),
    /// `A..B`, half open; either end may be left out.
    Range(Option<Expr>, Option<Expr>, Span),
    /// `[1, 3, 8..10]`.
    List(Vec<Places>, Span),
    /// One index, inside a list.
    One(Expr),
}

/// A `keep` or `skip` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Query segments.
    pub q: Set,
    /// Key segments.
    pub kv: Set,
    /// `<->`: the other direction too.
    pub both: bool,
    /// Which pairs; all without one.
    pub predicate: Option<Expr>,
    /// How a token predicate becomes blocks.
    pub lower: Option<Lower>,
}

/// A union of segments: `text + image`, `all`, `text.valid`.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The segments, each a name and a part (`valid`, `pad`).
    pub parts: Vec<(Ident, Option<Ident>)>,
    /// The whole set.
    pub span: Span,
}

/// `lower any`, `lower density(1/3, 3/5) per t`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lower {
    /// `any`, `all`, `centre`, `exact` or `density`.
    pub name: Ident,
    /// Arguments of `density`.
    pub args: Vec<Arg>,
    /// Axis of `per`.
    pub per: Option<Ident>,
    /// The whole clause.
    pub span: Span,
}

/// A line of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleStmt {
    /// `update every 5 from 7`.
    Kind {
        /// `dense`, `update`, `refresh`, `dispatch` or `reuse`.
        kind: Ident,
        /// `attention`, `modules` or `layer`, of `reuse` only.
        unit: Option<Ident>,
        /// `as taylor(1)`, of `reuse` only.
        mode: Option<Expr>,
        /// When; always without one. All must hold.
        clauses: Vec<Clause>,
        /// The whole line.
        span: Span,
    },
    /// `layers 10..20 { ... }`.
    Layers(Places, Vec<ScheduleStmt>, Span),
}

/// When a line of a schedule holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Clause {
    /// `while COND`.
    While(Expr),
    /// `every N from M` (or `except every N from M`, when `except`).
    Every {
        /// The interval.
        interval: Expr,
        /// The first step.
        from: Option<Expr>,
        /// The steps it names are left out instead.
        except: bool,
    },
    /// `on first`, `on last`, `on [3, 7]` (or `except on ...`).
    On {
        /// The steps; `first` and `last` are names.
        steps: Expr,
        /// The steps it names are left out instead.
        except: bool,
    },
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// `name =`.
    pub name: Option<Ident>,
    /// The value.
    pub value: Expr,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it says.
    pub kind: ExprKind,
    /// The whole expression, without parentheses around it.
    pub span: Span,
}

/// The kinds of expressions.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `12`.
    Int(i64),
    /// `0.5`, `1e-3`.
    Real(f64),
    /// `25%`, held as 25.
    Percent(f64),
    /// `true`, `false`.
    Bool(bool),
    /// `"file.json"`.
    Text(String),
    /// A name.
    Name(String),
    /// `f(x, name = y)`.
    Call(Ident, Vec<Arg>),
    /// `(1, 2, 3)`.
    Tuple(Vec<Expr>),
    /// `[1, 2, 3]`.
    List(Vec<Expr>),
    /// `-x`, `not x`.
    Unary(UnaryOp, Box<Expr>),
    /// `a + b`.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `a < b <= c`: operands and the comparisons between them.
    Compare(Vec<Expr>, Vec<CompareOp>),
    /// `x[text -> image]`, `x[image]`.
    Slice(Box<Expr>, Set, Option<Set>),
    /// `table(...) else default`.
    Else(Box<Expr>, Box<Expr>),
}

/// Operators with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// `-`
    Negate,
    /// `not`
    Not,
}

/// Operators with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// `or`
    Or,
    /// `and`
    And,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `of`: multiplication that reads well after a percentage.
    Of,
    /// `/`: division of reals.
    Divide,
    /// `div`: division rounded down.
    FloorDivide,
    /// `mod`
    Modulo,
    /// `xor`: of the bits of two integers.
    Xor,
    /// `^`: power.
    Power,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
}
