//! Evaluation of scalars and token values, one at a time.
//!
//! The rules of integer and real arithmetic of the specification live here and nowhere else: constant folding, guards,
//! schedules, amounts of selectors and the exact test of a token predicate all call these functions.

use std::fmt;

use super::{Binary, Comparison, Coordinate, Graph, Kind, Op, Place, Real, SetId, Side, Unary, ValueId};

/// A number or truth value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A real.
    Real(f64),
}

impl Scalar {
    /// Truth; numbers are false.
    #[must_use]
    pub fn truth(self) -> bool {
        matches!(self, Scalar::Bool(true))
    }

    /// As an integer: reals are rounded down and saturate, truth is 0 or 1.
    #[must_use]
    pub fn int(self) -> i64 {
        match self {
            Scalar::Bool(value) => i64::from(value),
            Scalar::Int(value) => value,
            Scalar::Real(value) => value.floor() as i64,
        }
    }

    /// As a real.
    #[must_use]
    pub fn real(self) -> f64 {
        match self {
            Scalar::Bool(value) => f64::from(u8::from(value)),
            Scalar::Int(value) => value as f64,
            Scalar::Real(value) => value,
        }
    }

    /// A constant operation that holds it.
    #[must_use]
    pub fn op(self) -> Op {
        match self {
            Scalar::Bool(value) => Op::Bool(value),
            Scalar::Int(value) => Op::Int(value),
            Scalar::Real(value) => Op::Real(Real(value)),
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Scalar::Bool(_) => Kind::Bool,
            Scalar::Int(_) => Kind::Int,
            Scalar::Real(_) => Kind::Real,
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Bool(value) => value.fmt(f),
            Scalar::Int(value) => value.fmt(f),
            Scalar::Real(value) => value.fmt(f),
        }
    }
}

/// Where a scalar is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct At {
    /// Denoising step.
    pub step: u32,
    /// Layer.
    pub layer: u32,
    /// Head.
    pub head: u32,
    /// The last step before this one at which the layer was computed, where that is known: in schedules.
    pub last_computed: Option<u32>,
    /// How many steps before this one reused the layer's output: in schedules.
    pub reused_steps: u32,
}

/// Answers for tokens; see [`evaluate`].
pub trait Tokens {
    /// A coordinate of the token of a side.
    fn coordinate(&self, coordinate: Coordinate, side: Side) -> i64;
    /// Whether the token of a side is in a set.
    fn in_set(&self, set: SetId, side: Side) -> bool;
}

/// No tokens: coordinates are 0.
pub struct NoTokens;

impl Tokens for NoTokens {
    fn coordinate(&self, _: Coordinate, _: Side) -> i64 {
        0
    }
    fn in_set(&self, _: SetId, _: Side) -> bool {
        false
    }
}

/// Values that are looked at one below the other before they are taken in order.
const MAX_VISITS: u32 = 1000;

/// The value of a scalar or token value. Block operations have no value here and give `false`; the validator
/// keeps them away.
///
/// A value is found from its operands, and only those that decide. Where many values share operands this would take
/// exponential time, so that after `MAX_VISITS` of them all values below are computed once, in order.
#[must_use]
pub fn evaluate(graph: &Graph, id: ValueId, at: At, tokens: &impl Tokens) -> Scalar {
    let mut left = MAX_VISITS;
    visit(graph, id, at, tokens, &mut left).unwrap_or_else(|| {
        let mut scalars = Scalars::new(graph, &[id]);
        scalars.evaluate(at, tokens);
        scalars.get(id)
    })
}

fn visit(graph: &Graph, id: ValueId, at: At, tokens: &impl Tokens, left: &mut u32) -> Option<Scalar> {
    *left = left.checked_sub(1)?;
    apply(graph, id, at, tokens, |operand| visit(graph, operand, at, tokens, left))
}

/// Some values and what they need, to be computed at many places.
pub struct Scalars<'a> {
    graph: &'a Graph,
    /// What places and tokens decide; operands before their users.
    varying: Vec<ValueId>,
    /// By number of the value.
    values: Vec<Scalar>,
}

impl<'a> Scalars<'a> {
    /// For `roots`.
    #[must_use]
    pub fn new(graph: &'a Graph, roots: &[ValueId]) -> Self {
        let needed = graph.needed(roots, |_| false);
        let count = needed.len();
        let ids = (0..count).filter(|&index| needed[index]).map(|index| ValueId(index as u32));
        let mut scalars = Scalars { graph, varying: ids.collect(), values: vec![Scalar::Bool(false); count] };
        scalars.evaluate(At::default(), &NoTokens);
        let mut varies = vec![false; count];
        scalars.varying.retain(|&id| {
            let op = graph.op(id);
            let itself = matches!(op, Op::Place(_) | Op::Coordinate(..) | Op::InSet(..)) || graph.looks_back(id);
            varies[id.0 as usize] = itself || op.operands().iter().any(|operand| varies[operand.0 as usize]);
            varies[id.0 as usize]
        });
        scalars
    }

    /// Computes all of them at a place.
    pub fn evaluate(&mut self, at: At, tokens: &impl Tokens) {
        for &id in &self.varying {
            let value = apply(self.graph, id, at, tokens, |operand| Some(self.values[operand.0 as usize]));
            self.values[id.0 as usize] = value.unwrap_or(Scalar::Bool(false));
        }
    }

    /// One of them, at the place of the last evaluation.
    #[must_use]
    pub fn get(&self, id: ValueId) -> Scalar {
        self.values[id.0 as usize]
    }
}

/// The value of an operation over the values of its operands; `None` where one of them has none.
fn apply(
    graph: &Graph,
    id: ValueId,
    at: At,
    tokens: &impl Tokens,
    mut value: impl FnMut(ValueId) -> Option<Scalar>,
) -> Option<Scalar> {
    Some(match graph.op(id) {
        Op::Bool(value) => Scalar::Bool(*value),
        Op::Int(value) => Scalar::Int(*value),
        Op::Real(value) => Scalar::Real(value.0),
        Op::Place(Place::Step) => Scalar::Int(at.step.into()),
        Op::Place(Place::Layer) => Scalar::Int(at.layer.into()),
        Op::Place(Place::Head) => Scalar::Int(at.head.into()),
        Op::LastComputed => Scalar::Int(at.last_computed.map_or(-1, i64::from)),
        Op::ReusedSteps => Scalar::Int(at.reused_steps.into()),
        Op::Accumulated(a) => {
            let steps = at.last_computed.map_or(0, |last| last + 1)..=at.step;
            // What is accumulated does not look back, so that this does not go deeper.
            let real = |step| evaluate(graph, *a, At { step, ..at }, tokens).real();
            Scalar::Real(steps.fold(0.0, |sum, step| sum + real(step)))
        }
        Op::Table { table, item, keys, otherwise } => {
            let mut all_known = true;
            let keys = keys.iter().map(|&key| match value(key) {
                Some(key) => key.int(),
                None => {
                    all_known = false;
                    -1
                }
            });
            let entry = graph.tables[usize::from(*table)].get(keys, *item);
            match (entry, otherwise) {
                _ if !all_known => return None,
                (Some(entry), _) => entry,
                (None, Some(otherwise)) => value(*otherwise)?,
                (None, None) => Scalar::Int(0),
            }
        }
        Op::Coordinate(coordinate, side) => Scalar::Int(tokens.coordinate(*coordinate, *side)),
        Op::InSet(set, side) => Scalar::Bool(tokens.in_set(*set, *side)),
        Op::Unary(op, a) => unary(*op, value(*a)?),
        // The second operand is not needed where the first decides.
        Op::Binary(Binary::And, a, b) => Scalar::Bool(value(*a)?.truth() && value(*b)?.truth()),
        Op::Binary(Binary::Or, a, b) => Scalar::Bool(value(*a)?.truth() || value(*b)?.truth()),
        Op::Binary(op, a, b) => binary(*op, value(*a)?, value(*b)?),
        Op::Compare(op, a, b) => Scalar::Bool(compare(*op, value(*a)?, value(*b)?)),
        Op::Choose(condition, a, b) => {
            if value(*condition)?.truth() {
                value(*a)?
            } else {
                value(*b)?
            }
        }
        _ => Scalar::Bool(false),
    })
}

impl super::Table {
    /// An item of the entry at `keys`; `None` where a key is out of range or the entry is missing.
    #[must_use]
    pub fn get(&self, keys: impl IntoIterator<Item = i64>, item: u8) -> Option<Scalar> {
        let mut index = 0_usize;
        for (key, &size) in keys.into_iter().zip(&self.dims) {
            let key = usize::try_from(key).ok().filter(|&key| key < size as usize)?;
            index = index * size as usize + key;
        }
        let number = *self.values.get(index * usize::from(self.width) + usize::from(item))?;
        (!number.is_nan()).then_some(match self.kind {
            Kind::Bool => Scalar::Bool(number != 0.0),
            Kind::Int => Scalar::Int(number as i64),
            Kind::Real => Scalar::Real(number),
        })
    }
}

/// A function of one operand.
#[must_use]
pub fn unary(op: Unary, a: Scalar) -> Scalar {
    use Scalar::{Bool, Int};
    match (op, a) {
        (Unary::Not, a) => Bool(!a.truth()),
        (Unary::Negate, Int(a)) => Int(a.saturating_neg()),
        (Unary::Abs, Int(a)) => Int(a.saturating_abs()),
        (Unary::Floor | Unary::Ceil | Unary::Round, a @ Int(_)) => a,
        (Unary::BitLength, a) => Int(64 - i64::from(a.int().max(0).leading_zeros())),
        (Unary::Floor, a) => Int(a.real().floor() as i64),
        (Unary::Ceil, a) => Int(a.real().ceil() as i64),
        (Unary::Round, a) => Int(a.real().round_ties_even() as i64),
        (Unary::Negate, a) => Scalar::Real(-a.real()),
        (Unary::Abs, a) => Scalar::Real(a.real().abs()),
        (Unary::Sqrt, a) => Scalar::Real(a.real().sqrt()),
        (Unary::Exp, a) => Scalar::Real(a.real().exp()),
        (Unary::Log, a) => Scalar::Real(a.real().ln()),
        (Unary::ToReal, a) => Scalar::Real(a.real()),
    }
}

/// A function of two operands of one kind.
#[must_use]
pub fn binary(op: Binary, a: Scalar, b: Scalar) -> Scalar {
    match (a, b) {
        (Scalar::Bool(a), Scalar::Bool(b)) => Scalar::Bool(match op {
            Binary::And => a && b,
            Binary::Or => a || b,
            _ => a != b,
        }),
        (Scalar::Int(a), Scalar::Int(b)) => Scalar::Int(integer(op, a, b)),
        (a, b) => Scalar::Real(real(op, a.real(), b.real())),
    }
}

/// Integer arithmetic: saturating, total.
#[must_use]
pub fn integer(op: Binary, a: i64, b: i64) -> i64 {
    match op {
        Binary::Add => a.saturating_add(b),
        Binary::Subtract => a.saturating_sub(b),
        Binary::Multiply => a.saturating_mul(b),
        Binary::Divide | Binary::FloorDivide => floor_divide(a, b),
        Binary::Modulo => modulo(a, b),
        Binary::Power => power(a, b),
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::Xor => a ^ b,
        Binary::And => a & b,
        Binary::Or => a | b,
    }
}

fn floor_divide(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let quotient = a.saturating_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient }
}

/// From the remainder, because a quotient near the ends saturates.
fn modulo(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let rest = a.wrapping_rem(b);
    if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
}

fn power(a: i64, b: i64) -> i64 {
    if b < 0 {
        return 0;
    }
    // Behind exponents of 32 bits only -1, 0 and 1 do not saturate, and only whether the exponent is odd counts.
    let most = u32::MAX - u32::from(b % 2 == 0);
    a.saturating_pow(u32::try_from(b).unwrap_or(most))
}

fn real(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::FloorDivide => (a / b).floor(),
        Binary::Modulo => a - (a / b).floor() * b,
        Binary::Power => a.powf(b),
        Binary::Min => {
            if a < b {
                a
            } else {
                b
            }
        }
        Binary::Max => {
            if a > b {
                a
            } else {
                b
            }
        }
        Binary::Xor | Binary::And | Binary::Or => f64::NAN,
    }
}

/// A comparison of two operands of one kind.
#[must_use]
pub fn compare(op: Comparison, a: Scalar, b: Scalar) -> bool {
    match (a, b) {
        (Scalar::Bool(a), Scalar::Bool(b)) => match op {
            Comparison::Equal => a == b,
            Comparison::NotEqual => a != b,
            Comparison::Less => !a & b,
            Comparison::LessEqual => a <= b,
        },
        (Scalar::Int(a), Scalar::Int(b)) => match op {
            Comparison::Equal => a == b,
            Comparison::NotEqual => a != b,
            Comparison::Less => a < b,
            Comparison::LessEqual => a <= b,
        },
        (a, b) => {
            let (a, b) = (a.real(), b.real());
            match op {
                Comparison::Equal => a == b,
                Comparison::NotEqual => a != b,
                Comparison::Less => a < b,
                Comparison::LessEqual => a <= b,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR_ENDS: [i64; 11] = [i64::MIN, i64::MIN + 1, -7, -3, -1, 0, 1, 3, 7, i64::MAX - 1, i64::MAX];

    #[test]
    fn modulo_is_exact_up_to_the_ends() {
        for a in NEAR_ENDS {
            for b in NEAR_ENDS {
                // In 128 bits nothing saturates.
                let (wide_a, wide_b) = (i128::from(a), i128::from(b));
                let expected = if b == 0 { 0 } else { ((wide_a % wide_b) + wide_b) % wide_b };
                assert_eq!(i128::from(integer(Binary::Modulo, a, b)), expected, "{a} mod {b}");
            }
        }
    }

    #[test]
    fn exponents_beyond_32_bits_keep_base_and_sign() {
        let (even, odd) = (5_000_000_000, 5_000_000_001);
        for (a, of_even, of_odd) in
            [(1, 1, 1), (0, 0, 0), (-1, 1, -1), (2, i64::MAX, i64::MAX), (-2, i64::MAX, i64::MIN)]
        {
            assert_eq!(integer(Binary::Power, a, even), of_even, "{a} ^ {even}");
            assert_eq!(integer(Binary::Power, a, odd), of_odd, "{a} ^ {odd}");
        }
        assert_eq!(integer(Binary::Power, 1, i64::MAX), 1);
        assert_eq!(integer(Binary::Power, 1, -1), 0);
    }
}
