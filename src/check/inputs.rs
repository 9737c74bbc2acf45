//! Inputs: named numbers that a host gives when it compiles, such as drawn blocks, ratios or sizes of clusters.
//!
//! `let draws = input("random_blocks", heads, q_blocks - 2, 3)` says what is expected; `draws(head, block(q) - 1)` is an
//! entry, here three numbers. Checking needs no data; a plan does.

use super::functions::Args;
use super::{Checker, Term};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Extent, InputShape, Kind, Op, Table, ValueId};
use crate::source::Span;
use crate::syntax::ast::{self, ExprKind};

/// Numbers of one entry at most.
pub(super) const MAX_WIDTH: usize = 64;

/// Numbers that a host gives by name.
#[derive(Clone, Debug, PartialEq)]
pub struct InputTensor {
    /// Sizes, outermost first.
    pub shape: Vec<u32>,
    /// What the numbers are.
    pub kind: Kind,
    /// The numbers, row-major, as many as the product of the sizes.
    pub values: Vec<f64>,
}

/// What a strategy says of an input.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    name: String,
    /// The sizes; those that depend on the model are `None`.
    sizes: Vec<Option<u32>>,
    kind: Kind,
    span: Span,
}

impl Declared {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Checker<'_> {
    /// The numbers of an input of one dimension, none where nobody has given them; `None` for others.
    pub(super) fn input_row(&self, declared: &Declared) -> Option<Vec<u32>> {
        if declared.sizes.len() != 1 || declared.kind != Kind::Int {
            return None;
        }
        let Some(data) = self.files.input(&declared.name) else { return Some(Vec::new()) };
        let whole = |&value: &f64| {
            (value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value)).then_some(value as u32)
        };
        data.values.iter().map(whole).collect()
    }

    /// `input("name", size, ..., kind = int)`.
    pub(super) fn input(&mut self, args: &Args<'_>) -> Term {
        let ExprKind::Text(name) = &args.positional[0].kind else {
            let diagnostic = Diagnostic::new(Code::E0204, args.positional[0].span, "an input is named by a text");
            return self.hole(diagnostic.help("write `input(\"draws\", heads, q_blocks, 3)`"));
        };
        let Some(kind) = self.word(args, "kind", &["int", "real", "bool"]) else { return Term::Hole };
        let (mut sizes, mut declared) = (Vec::new(), Vec::new());
        for size in &args.positional[1..] {
            let Some(id) = self.integer(size, "the size of an input") else { return Term::Hole };
            declared.push(id);
            sizes.push(match self.strategy.graph.op(id) {
                Op::Int(size) => u32::try_from(*size).ok(),
                _ => None,
            });
        }
        if let Some(InputTensor { shape, values, .. }) = self.files.input(name) {
            let product = shape.iter().try_fold(1_usize, |all, &size| all.checked_mul(size as usize));
            if product != Some(values.len()) {
                let message = format!("input `{name}` has the shape {shape:?} and {} numbers", values.len());
                return self.hole(Diagnostic::new(Code::E0305, args.span, message));
            }
        }
        if let Some(data) = self.files.input(name).filter(|data| data.shape.len() == declared.len()) {
            let given = data.shape.clone();
            self.strategy.inputs.push(InputShape { name: name.clone(), given, declared, span: args.span });
        }
        let kind = [Kind::Int, Kind::Real, Kind::Bool][kind];
        Term::Input(Declared { name: name.clone(), sizes, kind, span: args.span })
    }

    /// An entry of an input: `draws(head, block(q))`.
    pub(super) fn input_entry(
        &mut self,
        declared: &Declared,
        args: &[ast::Arg],
        otherwise: Option<&ast::Expr>,
        span: Span,
    ) -> Term {
        let name = &declared.name;
        let mut keys: Vec<ValueId> = Vec::new();
        for arg in args {
            if let Some(argument) = &arg.name {
                let message = format!("an entry of `{name}` has indices without names");
                return self.hole(Diagnostic::new(Code::E0204, argument.span, message));
            }
            let Some(key) = self.key(&arg.value) else { return Term::Hole };
            keys.push(key);
        }
        let dims = declared.sizes.len();
        if keys.is_empty() || keys.len() > dims {
            let message = format!("`{name}` takes 1 to {dims} indices, found {}", keys.len());
            return self.hole(
                Diagnostic::new(Code::E0204, span, message).also(declared.span, format!("{dims} dimensions here")),
            );
        }
        let data = self.files.input(name);
        let rest = match data {
            Some(data) if data.shape.len() != dims => {
                let message = format!("input `{name}` has the shape {:?}", data.shape);
                let diagnostic = Diagnostic::new(Code::E0305, declared.span, message);
                return self.hole(diagnostic.label(format!("{dims} dimensions are wanted")));
            }
            Some(data) => Some(data.shape[keys.len()..].to_vec()),
            None => declared.sizes[keys.len()..].iter().copied().collect(),
        };
        let width = rest.map(|sizes| sizes.iter().fold(1_usize, |width, &size| width.saturating_mul(size as usize)));
        let Some(width) = width.filter(|width| (1..=MAX_WIDTH).contains(width)) else {
            let message = format!("an entry of `{name}` holds 1 to {MAX_WIDTH} numbers, their count a plain number");
            return self.hole(Diagnostic::new(Code::E0204, span, message).help("give an index for each further size"));
        };
        let otherwise = |checker: &mut Self| otherwise.map(|expr| (checker.expression(expr), expr.span));
        // Many expressions may read one input; its numbers are looked at once for all.
        let id = format!("input:{:?}:{}:{width}:{name}", declared.kind, keys.len());
        if let Some(Some(index)) = self.table_ids.get(&id).copied() {
            let otherwise = otherwise(self);
            return self.table_items(index, &keys, otherwise, span);
        }
        let mut table = Table {
            name: name.clone(),
            dims: vec![0; keys.len()],
            width: width as u8,
            kind: declared.kind,
            values: Vec::new().into(),
        };
        if let Some(data) = data {
            if declared.kind != Kind::Real && data.values.iter().any(|value| value.fract() != 0.0) {
                let message = format!("input `{name}` holds numbers that are no integers");
                let diagnostic = Diagnostic::new(Code::E0305, declared.span, message);
                return self.hole(diagnostic.help("declare it with `kind = real`"));
            }
            table.dims = data.shape[..keys.len()].to_vec();
            table.values = data.values.as_slice().into();
        }
        let known = self.strategy.graph.tables.iter().position(|known| *known == table);
        let index = match known {
            Some(known) => u16::try_from(known).ok(),
            None => self.add_table(table, span),
        };
        let Some(index) = index else { return Term::Hole };
        self.table_ids.insert(id, Some(index));
        let otherwise = otherwise(self);
        self.table_items(index, &keys, otherwise, span)
    }

    /// `order input("order", size(video))`.
    pub(super) fn given_order(&mut self, expr: &ast::Expr) -> Option<crate::ir::Order> {
        let Term::Input(declared) = self.expression(expr) else { return None };
        let data = self.files.input(&declared.name);
        let (dims, values) = match data {
            Some(data) => (data.shape.clone(), data.values.clone()),
            None => (vec![0], Vec::new()),
        };
        if declared.sizes.len() != 1 || dims.len() != 1 {
            let message = format!("an order has one dimension, input `{}` has {dims:?}", declared.name);
            self.report(Diagnostic::new(Code::E0305, expr.span, message));
            return None;
        }
        let table = Table { name: declared.name, dims, width: 1, kind: Kind::Int, values: values.into() };
        self.add_table(table, expr.span).map(crate::ir::Order::Given)
    }

    /// The index of a table: an integer, of a place or of tokens.
    pub(super) fn key(&mut self, expr: &ast::Expr) -> Option<ValueId> {
        let term = self.expression(expr);
        let id = self.single(term, expr.span).ok()?;
        let ty = self.ty(id);
        if ty.kind == Kind::Int && matches!(ty.extent, Extent::Scalar | Extent::Token { .. }) {
            return Some(id);
        }
        let mut diagnostic = Diagnostic::new(Code::E0205, expr.span, "the index of a table is an integer");
        if ty.kind == Kind::Real {
            diagnostic = diagnostic.label("this is a real number").help("round it with `floor`, `ceil` or `round`");
        }
        self.report(diagnostic);
        None
    }
}
