//! Model declarations.

use super::code_list;
use super::limits::MAX_SEGMENTS;
use crate::diagnostics::{Code, Diagnostic, did_you_mean};
use crate::ir::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_STEPS, Model, Segment};
use crate::source::Span;
use crate::syntax::ast::{self, BinaryOp, ExprKind, ModelField, UnaryOp};
use crate::tensor::Dtype;

/// Tokens of a sequence at most.
pub const MAX_TOKENS: u64 = 1 << 20;
/// (step, layer, head) places at most.
pub const MAX_PLACES: u64 = 1 << 24;

const COUNTS: [(&str, u32); 4] =
    [("layers", MAX_LAYERS), ("heads", MAX_HEADS), ("head_dim", MAX_HEAD_DIM), ("steps", MAX_STEPS)];

/// The shape a declaration describes.
pub fn check_model(model: &ast::Model) -> (Option<Model>, Vec<Diagnostic>) {
    let mut found = Vec::new();
    let mut counts: [Option<u32>; 4] = [None; 4];
    let mut dtype = None;
    let mut segments = None;
    for field in &model.fields {
        match field {
            ModelField::Count(name, value) => {
                let Some(index) = COUNTS.iter().position(|(known, _)| *known == name.node) else {
                    found.push(unknown_field(name));
                    continue;
                };
                let count = count(value, &format!("`{}`", name.node), COUNTS[index].1.into(), &mut found);
                if counts[index].is_some() {
                    found.push(Diagnostic::new(Code::E0202, name.span, format!("`{}` is given twice", name.node)));
                }
                counts[index] = count.or(Some(1));
            }
            ModelField::Dtype(name) => dtype = Some(check_dtype(name, &mut found)),
            ModelField::Tokens(list, span) => {
                if segments.is_some() {
                    found.push(Diagnostic::new(Code::E0202, *span, "`tokens` is given twice"));
                }
                segments = Some(check_segments(list, *span, &mut found));
            }
        }
    }
    let missing: Vec<&str> =
        COUNTS.iter().zip(&counts).filter(|(_, count)| count.is_none()).map(|((name, _), _)| *name).collect();
    if !missing.is_empty() {
        let message = format!("`{}` lacks {}", model.name.node, code_list(&missing));
        found.push(
            Diagnostic::new(Code::E0307, model.name.span, message)
                .help(format!("add a line such as `{}`", example(missing[0]))),
        );
    }
    if segments.is_none() {
        found.push(
            Diagnostic::new(Code::E0307, model.name.span, format!("`{}` lacks `tokens`", model.name.node))
                .help("add a line such as `tokens text(512) ++ image(h = 64, w = 64)`"),
        );
    }
    let [Some(layers), Some(heads), Some(head_dim), Some(steps)] = counts else { return (None, found) };
    let places = u64::from(layers) * u64::from(heads) * u64::from(steps);
    if places > MAX_PLACES {
        let message = format!("{places} combinations of step, layer and head are too many, at most {MAX_PLACES}");
        found.push(Diagnostic::new(Code::E0309, model.name.span, message));
    }
    if !found.is_empty() {
        return (None, found);
    }
    let shape = Model {
        name: model.name.node.clone(),
        layers,
        heads,
        head_dim,
        steps,
        dtype: dtype.unwrap_or(Dtype::Bf16),
        segments: segments.unwrap_or_default(),
        span: model.name.span,
    };
    (Some(shape), found)
}

fn example(field: &str) -> String {
    let usual = match field {
        "head_dim" => 128,
        "steps" => 50,
        _ => 24,
    };
    format!("{field} {usual}")
}

fn unknown_field(name: &ast::Ident) -> Diagnostic {
    let known = ["layers", "heads", "head_dim", "steps", "dtype", "tokens"];
    let diagnostic = Diagnostic::new(Code::E0201, name.span, format!("a model has no `{}`", name.node));
    match did_you_mean(&name.node, known) {
        Some(near) => diagnostic.fix(format!("did you mean `{near}`?"), name.span, near),
        None => diagnostic.help(format!("a model has {}", code_list(&known))),
    }
}

fn check_dtype(name: &ast::Ident, found: &mut Vec<Diagnostic>) -> Dtype {
    [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|dtype| dtype.name() == name.node).unwrap_or_else(|| {
        found.push(
            Diagnostic::new(Code::E0307, name.span, format!("there is no dtype `{}`", name.node))
                .help("q, k and v are `f32`, `f16` or `bf16`"),
        );
        Dtype::Bf16
    })
}

fn check_segments(list: &[ast::Segment], span: Span, found: &mut Vec<Diagnostic>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut start = 0_u64;
    if list.len() > MAX_SEGMENTS {
        let message = format!("{} segments, at most {MAX_SEGMENTS}", list.len());
        found.push(Diagnostic::new(Code::E0309, span, message));
        return segments;
    }
    for segment in list {
        let name = &segment.name;
        if let Some(earlier) = segments.iter().find(|earlier| earlier.name == name.node) {
            found.push(
                Diagnostic::new(Code::E0202, name.span, format!("segment `{}` is given twice", name.node))
                    .also(earlier.span, "first here"),
            );
        }
        if name.node == "all" || name.node == "vision" {
            let message = format!("a segment cannot be called `{}`: the language has that name", name.node);
            found.push(Diagnostic::new(Code::E0202, name.span, message));
        }
        let (axes, tokens, valid) = segment_sizes(segment, found);
        if start + tokens > MAX_TOKENS {
            let message = format!("a sequence of {} tokens is too long, at most {MAX_TOKENS}", start + tokens);
            found.push(Diagnostic::new(Code::E0309, span, message));
            return segments;
        }
        segments.push(Segment {
            name: name.node.clone(),
            axes,
            start: start as u32,
            tokens: tokens as u32,
            valid: valid as u32,
            span: segment.span,
        });
        start += tokens;
    }
    segments
}

fn segment_sizes(segment: &ast::Segment, found: &mut Vec<Diagnostic>) -> (Vec<(String, u32)>, u64, u64) {
    let mut axes: Vec<(String, u32)> = Vec::new();
    let mut plain = None;
    let mut valid = None;
    for arg in &segment.args {
        let what = arg.name.as_ref().map_or("a number of tokens".to_owned(), |name| format!("`{}`", name.node));
        let least_zero = arg.name.as_ref().is_some_and(|name| name.node == "valid");
        let size = if least_zero && matches!(arg.value.kind, ExprKind::Int(0)) {
            Some(0)
        } else {
            count(&arg.value, &what, MAX_TOKENS, found)
        };
        match &arg.name {
            None if plain.is_some() => {
                found.push(Diagnostic::new(Code::E0307, arg.value.span, "a segment has one number of tokens"));
            }
            None => plain = Some(u64::from(size.unwrap_or(1))),
            Some(name) if name.node == "valid" => valid = size.map(u64::from).map(|size| (size, arg.value.span)),
            Some(name) if axes.iter().any(|(axis, _)| *axis == name.node) => {
                found.push(Diagnostic::new(Code::E0202, name.span, format!("axis `{}` is given twice", name.node)));
            }
            Some(name) => axes.push((name.node.clone(), size.unwrap_or(1))),
        }
    }
    if plain.is_some() != axes.is_empty() || axes.len() > 4 {
        found.push(
            Diagnostic::new(Code::E0307, segment.span, "a segment has a number of tokens, or up to four named axes")
                .help("write `text(512)` or `video(t = 33, h = 45, w = 80)`"),
        );
    }
    let tokens =
        plain.unwrap_or_else(|| axes.iter().fold(1_u64, |product, (_, size)| product.saturating_mul(u64::from(*size))));
    if let Some((valid, span)) = valid
        && valid > tokens
    {
        let message = format!("`valid` is at most the {tokens} tokens of the segment, found {valid}");
        found.push(Diagnostic::new(Code::E0307, span, message));
    }
    (axes, tokens, valid.map_or(tokens, |(valid, _)| valid.min(tokens)))
}

/// A constant count from 1 to `most`.
fn count(expr: &ast::Expr, what: &str, most: u64, found: &mut Vec<Diagnostic>) -> Option<u32> {
    let Some(value) = constant(expr) else {
        found.push(Diagnostic::new(Code::E0307, expr.span, format!("{what} is a constant integer")));
        return None;
    };
    match u64::try_from(value) {
        Ok(value) if (1..=most).contains(&value) => u32::try_from(value).ok(),
        _ => {
            found.push(Diagnostic::new(Code::E0307, expr.span, format!("{what} is from 1 to {most}, found {value}")));
            None
        }
    }
}

/// Integer arithmetic of a model: constants, `+`, `-`, `*`, `//`.
fn constant(expr: &ast::Expr) -> Option<i64> {
    match &expr.kind {
        ExprKind::Int(value) => Some(*value),
        ExprKind::Unary(UnaryOp::Negate, a) => constant(a)?.checked_neg(),
        ExprKind::Binary(op, a, b) => {
            let (a, b) = (constant(a)?, constant(b)?);
            match op {
                BinaryOp::Add => a.checked_add(b),
                BinaryOp::Subtract => a.checked_sub(b),
                BinaryOp::Multiply => a.checked_mul(b),
                BinaryOp::FloorDivide => a.checked_div_euclid(b),
                _ => None,
            }
        }
        _ => None,
    }
}
