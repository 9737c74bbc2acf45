//! The typing rule of every operation.
//!
//! [`type_of`] derives the type of an operation from its operands and says in plain English what does not fit. The
//! checker calls it for each value it builds; the validator calls it again for each value of a finished graph. It looks
//! at nothing but the operation, the types of its operands and the sets, axes and tables of the graph, and it never
//! panics, whatever the operation names.
//!
//! # Rules
//! Extents join side by side: a scalar fits everything; token values vary over what either operand varies over; block
//! values have one set for each side or lack the side. Token values are integers or truth values, block values reals
//! or truth values, vectors are real and join with scalars, with vectors of the same elements and with numbers of these. "Blocks" below are the
//! elements of sets, whatever their grain, except where it is named.
//!
//! | operation | operands | result |
//! |---|---|---|
//! | `Bool`, `Int`, `Real`, `Size`, `Place`, `LastComputed`, `ReusedSteps` | | scalar |
//! | `Accumulated` | real scalar that does not look back | real scalar |
//! | `Table` | integer keys, scalars or token values, one for each dimension; `otherwise` of the table's kind | kind of the table, extents joined |
//! | `Coordinate`, `InSet` | | token integer, token truth value |
//! | `Negate`, `Abs` | numbers, vectors | same type |
//! | `Not` | truth values | same type |
//! | `Sqrt`, `Exp` | real scalar or blocks | same type |
//! | `Log` | real scalar | same type |
//! | `Floor`, `Ceil`, `Round` | scalar number | integer scalar |
//! | `BitLength` | integers | same type |
//! | `ToReal` | scalar integer; truth values of a scalar or blocks | real, same extent |
//! | `Add`, `Subtract`, `Multiply`, `Min`, `Max` | two of one number kind, vectors too | that kind, extents joined |
//! | `Divide` | two reals, vectors too | real, extents joined |
//! | `FloorDivide`, `Modulo` | two integers | integer, extents joined |
//! | `Power` | two scalars of one number kind | that kind |
//! | `Xor` | two integers, or two truth values | that kind, extents joined |
//! | `And`, `Or` | two truth values | truth value, extents joined |
//! | `Equal`, `NotEqual` | two of one kind | truth value, extents joined |
//! | `Less`, `LessEqual` | two of one number kind | truth value, extents joined |
//! | `Choose` | a truth value, two of one kind | that kind, extents joined |
//! | `Pool` | | vectors of the source's side, over the whole sequence |
//! | `Each` | | vectors of the source's side; the set is one of tokens |
//! | `Spread` | vectors of blocks that contain the tokens | vectors of the tokens |
//! | `OverChannels` | vectors | a real number for each |
//! | `Measured` | | a real number, or one for each token of a side |
//! | `Start` | vectors | a real number for each |
//! | `SelfSimilarity`, `BlockTokens` | | real blocks of the side, over the whole sequence |
//! | `Dot` | vectors of queries, vectors of keys | a real number for each pair |
//! | `Transpose` | blocks | sides exchanged |
//! | `Slice` | blocks that have the sides, over sets that contain the new ones | the new sets |
//! | `Gather` | blocks with all tokens of some segments along the sides named; truth values only by `Max` and `Min` | the blocks of these segments |
//! | `Diagonals` | real numbers of tokens of queries and all tokens of keys | a real number for each distance |
//! | `Distances` | | a real number for each distance |
//! | `OnDiagonals` | truth values of distances | truth values `[all -> all]` |
//! | `Reduce` | real blocks that have the side | without the side |
//! | `Softmax` | real blocks that have the side | same type |
//! | `Select` | real blocks that have the side; amount a real scalar, for `TopK` and `BottomK` also an integer, or real blocks without the side; `at_least` an integer scalar; `cost`, of running sums only, of the value's type; along heads blocks of any sides | truth values of that extent |
//! | `AtHead` | real blocks; an integer scalar | same type |
//! | `OverHeads` | real blocks | same type |
//! | `Embed` | truth values of blocks | the sides it has, over the whole sequence |
//! | `Lower` | a token truth value, for `Density` also a scalar one | blocks of the sides it varies over, for `Density` of both, over the whole sequence |
//! | `Mask` | | truth values `[all -> all]`, `[all -> _]` or `[_ -> all]`, see [`check`] |
//! | `Shift` | real blocks that have the side; an integer scalar | same type |
//! | `AntiDiagonal` | an integer scalar | real `[all -> all]` |
//!
//! `Not`, `And`, `Or` and `Xor` also join a token truth value with one of blocks, to [`Extent::Mixed`]. Such blocks must
//! be over the whole sequence ([`Op::Embed`]), else it would be unsaid what holds outside of their sets.

use super::{
    Binary, Comparison, Coordinate, Extent, Grain, Graph, Kind, Lower, Op, Over, Reduction, Selector, Set, SetId, Side,
    Size, Type, Unary, ValueId, Which,
};

/// The type of an operation over operands that are in the graph.
///
/// For [`Op::Mask`], whose shape only the plan knows, the type of a matrix; see [`check`].
///
/// # Errors
/// A sentence without a subject, lower case: what was found and what is allowed.
pub fn type_of(graph: &Graph, op: &Op) -> Result<Type, String> {
    for id in op.operands() {
        if id.0 as usize >= graph.len() {
            return Err(format!("there is no value %{}", id.0));
        }
    }
    let ty = derive(graph, op)?;
    representable(ty)
}

/// Whether an operation may have a type: the one of [`type_of`], or for [`Op::Mask`] also a vector of either side.
///
/// # Errors
/// A sentence that says both types, or why there is none.
pub fn check(graph: &Graph, op: &Op, ty: Type) -> Result<(), String> {
    let derived = type_of(graph, op)?;
    let vector = |q, kv| Type::new(Kind::Bool, blocks(q, kv));
    let vectors = [vector(Some(SetId::ALL), None), vector(None, Some(SetId::ALL))];
    if derived == ty || (matches!(op, Op::Mask(_)) && vectors.contains(&ty)) {
        return Ok(());
    }
    Err(format!("the type is {}, but must be {}", describe(graph, ty), describe(graph, derived)))
}

/// A type in words, for messages: `real number for each block [text -> image]`.
#[must_use]
pub fn describe(graph: &Graph, ty: Type) -> String {
    let kind = kind_name(ty.kind);
    match ty.extent {
        Extent::Scalar => format!("one {kind}"),
        Extent::Token { q: true, kv: true } => format!("one {kind} for each pair of tokens"),
        Extent::Token { q: true, kv: false } => format!("one {kind} for each query token"),
        Extent::Token { q: false, kv: true } => format!("one {kind} for each key token"),
        Extent::Token { q: false, kv: false } => format!("one {kind} for all tokens"),
        Extent::Blocks { q, kv } => {
            let side = |set: Option<SetId>| set.map_or_else(|| "_".to_string(), |set| set_name(graph, set));
            format!("one {kind} for each block [{} -> {}]", side(q), side(kv))
        }
        Extent::Vectors(side, set) => {
            format!("one vector for each of the {} of `{}`", side_name(side), set_name(graph, set))
        }
        Extent::Mixed => "a condition on tokens and blocks".to_string(),
    }
}

fn derive(graph: &Graph, op: &Op) -> Result<Type, String> {
    match op {
        Op::Bool(_) => Ok(Type::scalar(Kind::Bool)),
        Op::Int(_) => Ok(Type::scalar(Kind::Int)),
        Op::Real(_) => Ok(Type::scalar(Kind::Real)),
        Op::Place(_) | Op::LastComputed | Op::ReusedSteps => Ok(Type::scalar(Kind::Int)),
        Op::Size(size) => {
            match *size {
                Size::Layers | Size::Heads | Size::HeadDim | Size::Steps => {}
                Size::Tokens(set) | Size::Blocks(set, _) => in_range_set(graph, set)?,
                Size::Axis(axis) => in_range_axis(graph, axis)?,
            }
            Ok(Type::scalar(Kind::Int))
        }
        Op::Accumulated(a) => accumulated(graph, *a),
        Op::Table { table, item, keys, otherwise } => look_up(graph, *table, *item, keys, *otherwise),
        Op::Coordinate(coordinate, side) => {
            if let Coordinate::Axis(axis) = coordinate {
                in_range_axis(graph, *axis)?;
            }
            Ok(Type::new(Kind::Int, tokens_of(*side)))
        }
        Op::InSet(set, side) => {
            in_range_set(graph, *set)?;
            Ok(Type::new(Kind::Bool, tokens_of(*side)))
        }
        Op::Unary(op, a) => unary(*op, graph.ty(*a)),
        Op::Binary(op, a, b) => binary(graph, *op, graph.ty(*a), graph.ty(*b)),
        Op::Compare(op, a, b) => compare(graph, *op, graph.ty(*a), graph.ty(*b)),
        Op::Choose(condition, a, b) => choose(graph, graph.ty(*condition), graph.ty(*a), graph.ty(*b)),
        Op::Pool(_, source) => Ok(Type::new(Kind::Real, Extent::Vectors(source.side(), SetId::ALL))),
        Op::Each(source, set) => {
            in_range_set(graph, *set)?;
            match graph.grain(*set) {
                Grain::Blocks => Err("single queries and keys are those of a set of tokens".to_string()),
                Grain::Distances => Err("distances have no vectors".to_string()),
                Grain::Rows(index) if usize::from(index) >= graph.rows.len() => {
                    Err(format!("there are no rows {index}"))
                }
                Grain::Tokens | Grain::Last(_) | Grain::Rows(_) => {
                    Ok(Type::new(Kind::Real, Extent::Vectors(source.side(), *set)))
                }
            }
        }
        Op::Spread(a, set) => {
            in_range_set(graph, *set)?;
            match graph.ty(*a).extent {
                Extent::Vectors(side, from)
                    if graph.grain(from) == Grain::Blocks
                        && graph.grain(*set).is_tokens()
                        && contains(graph, from, *set) =>
                {
                    Ok(Type::new(Kind::Real, Extent::Vectors(side, *set)))
                }
                _ => Err(format!("vectors of blocks are spread over tokens, found {}", describe(graph, graph.ty(*a)))),
            }
        }
        Op::OverChannels { value, .. } => match graph.ty(*value).extent {
            Extent::Vectors(side, set) => Ok(Type::new(Kind::Real, along(side, set))),
            _ => Err(format!("only vectors have channels, found {}", describe(graph, graph.ty(*value)))),
        },
        Op::Measured { over: None, .. } => Ok(Type::new(Kind::Real, blocks(None, None))),
        Op::Measured { over: Some((side, set)), .. } => {
            in_range_set(graph, *set)?;
            if !graph.is_all_tokens(*set) {
                return Err("a host measures a number for each token of the sequence".to_string());
            }
            Ok(Type::new(Kind::Real, along(*side, *set)))
        }
        Op::Start(a) => match graph.ty(*a).extent {
            Extent::Vectors(side, set) => Ok(Type::new(Kind::Real, along(side, set))),
            _ => Err(format!("vectors begin at a position, found {}", describe(graph, graph.ty(*a)))),
        },
        Op::SelfSimilarity(side) | Op::BlockTokens(side) => Ok(Type::new(Kind::Real, along(*side, SetId::ALL))),
        Op::Dot(a, b) => match (graph.ty(*a).extent, graph.ty(*b).extent) {
            (Extent::Vectors(Side::Query, q), Extent::Vectors(Side::Key, kv)) => {
                Ok(Type::new(Kind::Real, blocks(Some(q), Some(kv))))
            }
            (Extent::Vectors(Side::Key, _), Extent::Vectors(Side::Query, _)) => {
                Err("the vectors of queries come first, those of keys second".to_string())
            }
            (Extent::Vectors(..), Extent::Vectors(..)) => {
                Err("a dot product is between vectors of queries and of keys, found one side twice".to_string())
            }
            (a_extent, _) => {
                let other = if matches!(a_extent, Extent::Vectors(..)) { *b } else { *a };
                Err(format!(
                    "a dot product is between vectors of queries and of keys, found {}",
                    describe(graph, graph.ty(other))
                ))
            }
        },
        Op::Transpose(a) => {
            let (kind, q, kv) = block_operand(graph, *a)?;
            Ok(Type::new(kind, blocks(kv, q)))
        }
        Op::Slice { value, q, kv } => {
            let (kind, old_q, old_kv) = block_operand(graph, *value)?;
            Ok(Type::new(kind, blocks(slice(graph, old_q, *q, Side::Query)?, slice(graph, old_kv, *kv, Side::Key)?)))
        }
        Op::Gather { how, value, q, kv } => {
            let (kind, old_q, old_kv) = block_operand(graph, *value)?;
            if kind == Kind::Bool && !matches!(how, Reduction::Max | Reduction::Min) {
                return Err("truth values of tokens hold for a block where some do or where all do".to_string());
            }
            let q = gather(graph, old_q, *q, Side::Query)?;
            Ok(Type::new(kind, blocks(q, gather(graph, old_kv, *kv, Side::Key)?)))
        }
        Op::Diagonals(a, set) => {
            in_range_distances(graph, *set)?;
            let (kind, q, kv) = block_operand(graph, *a)?;
            let rows = q.is_some_and(|set| graph.grain(set).is_tokens());
            if kind != Kind::Real || !rows || !kv.is_some_and(|set| graph.is_all_tokens(set)) {
                let found = describe(graph, graph.ty(*a));
                return Err(format!("diagonals are those of some queries and all keys, token by token, found {found}"));
            }
            Ok(Type::new(kind, blocks(None, Some(*set))))
        }
        Op::Distances(set) => {
            in_range_distances(graph, *set)?;
            Ok(Type::new(Kind::Real, blocks(None, Some(*set))))
        }
        Op::OnDiagonals(a) => match graph.ty(*a) {
            Type { kind: Kind::Bool, extent: Extent::Blocks { q: None, kv: Some(set) } }
                if graph.grain(set) == Grain::Distances =>
            {
                Ok(Type::new(Kind::Bool, blocks(Some(SetId::ALL), Some(SetId::ALL))))
            }
            ty => Err(format!("diagonals are chosen by their distances, found {}", describe(graph, ty))),
        },
        Op::Reduce { value, over, .. } => {
            let (q, kv) = real_axis(graph, *value, *over)?;
            Ok(Type::new(
                Kind::Real,
                match over {
                    Over::Query => blocks(None, kv),
                    Over::Key => blocks(q, None),
                    Over::Both => blocks(None, None),
                    Over::Layer | Over::Heads => return Err("only selections go over all heads".to_string()),
                },
            ))
        }
        Op::Softmax { over: Over::Layer | Over::Heads, .. } => Err("only selections go over all heads".to_string()),
        Op::Softmax { value, over } => {
            let (q, kv) = real_axis(graph, *value, *over)?;
            Ok(Type::new(Kind::Real, blocks(q, kv)))
        }
        Op::Select { rule, value, amount, at_least, cost, over } => {
            let (q, kv) = real_axis(graph, *value, *over)?;
            if let Some(cost) = cost {
                let sums = matches!(rule, Selector::TopP { .. } | Selector::BottomMass);
                if !sums || matches!(over, Over::Layer | Over::Heads) || graph.ty(*cost) != graph.ty(*value) {
                    let found = describe(graph, graph.ty(*cost));
                    return Err(format!(
                        "a cost is one of running sums within a head, of what is ranked; found {found}"
                    ));
                }
            }
            amount_fits(graph, *rule, *amount, [q, kv], *over)?;
            if let Some(at_least) = at_least
                && graph.ty(*at_least) != Type::scalar(Kind::Int)
            {
                let found = describe(graph, graph.ty(*at_least));
                return Err(format!("the least number of blocks is one integer, found {found}"));
            }
            Ok(Type::new(Kind::Bool, blocks(q, kv)))
        }
        Op::AtHead { value, head } => {
            if graph.ty(*head) != Type::scalar(Kind::Int) {
                return Err(format!("a head is one integer, found {}", describe(graph, graph.ty(*head))));
            }
            of_heads(graph, *value)
        }
        Op::OverHeads { value, .. } => of_heads(graph, *value),
        Op::Shift { value, by, over } => {
            if graph.ty(*by) != Type::scalar(Kind::Int) {
                return Err(format!("blocks are counted by one integer, found {}", describe(graph, graph.ty(*by))));
            }
            let (q, kv) = real_axis(graph, *value, (*over).into())?;
            Ok(Type::new(Kind::Real, blocks(q, kv)))
        }
        Op::AntiDiagonal { stride } => match graph.ty(*stride) {
            ty if ty == Type::scalar(Kind::Int) => {
                Ok(Type::new(Kind::Real, blocks(Some(SetId::ALL), Some(SetId::ALL))))
            }
            ty => Err(format!("a stride is one integer, found {}", describe(graph, ty))),
        },
        Op::Embed(a) => {
            let (kind, q, kv) = block_operand(graph, *a)?;
            if kind != Kind::Bool {
                return Err(format!("only truth values can be embedded, found {}", describe(graph, graph.ty(*a))));
            }
            if [q, kv].into_iter().flatten().any(|set| graph.grain(set) != Grain::Blocks) {
                return Err(format!("tokens are gathered to blocks first, found {}", describe(graph, graph.ty(*a))));
            }
            Ok(Type::new(Kind::Bool, blocks(q.map(|_| SetId::ALL), kv.map(|_| SetId::ALL))))
        }
        Op::Lower(how, a) => lower(graph, *how, graph.ty(*a)),
        Op::Mask(_) => Ok(Type::new(Kind::Bool, blocks(Some(SetId::ALL), Some(SetId::ALL)))),
    }
}

fn look_up(graph: &Graph, table: u16, item: u8, keys: &[ValueId], otherwise: Option<ValueId>) -> Result<Type, String> {
    let Some(data) = graph.tables.get(usize::from(table)) else {
        return Err(format!("there is no table {table}"));
    };
    if item >= data.width {
        return Err(format!("the entries of table `{}` hold {}, asked for number {item}", data.name, data.width));
    }
    if keys.len() != data.dims.len() {
        return Err(format!("table `{}` has {} dimensions, found {} indices", data.name, data.dims.len(), keys.len()));
    }
    let mut extent = Extent::Scalar;
    for &key in keys {
        let ty = graph.ty(key);
        if ty.kind != Kind::Int || !matches!(ty.extent, Extent::Scalar | Extent::Token { .. }) {
            return Err(format!("the index of a table is an integer, found {}", describe(graph, ty)));
        }
        extent = join(graph, extent, ty.extent)?;
    }
    if let Some(otherwise) = otherwise {
        let ty = graph.ty(otherwise);
        if ty.kind != data.kind || !matches!(ty.extent, Extent::Scalar | Extent::Token { .. }) {
            return Err(format!(
                "table `{}` holds {}s, what stands for missing entries is {}",
                data.name,
                kind_name(data.kind),
                describe(graph, ty)
            ));
        }
        extent = join(graph, extent, ty.extent)?;
    }
    Ok(Type::new(data.kind, extent))
}

fn unary(op: Unary, a: Type) -> Result<Type, String> {
    let exact = matches!(a.extent, Extent::Scalar | Extent::Token { .. });
    let number = a.kind != Kind::Bool;
    match op {
        Unary::Not if a.kind == Kind::Bool => Ok(a),
        Unary::Not => Err(format!("`not` takes a truth value, found a {}", kind_name(a.kind))),
        Unary::Negate | Unary::Abs if matches!(a.extent, Extent::Vectors(..)) => Ok(a),
        _ if matches!(a.extent, Extent::Vectors(..)) => Err(VECTORS.to_string()),
        _ if a.extent == Extent::Mixed => Err(MIXED.to_string()),
        Unary::Negate | Unary::Abs if number => Ok(a),
        Unary::Sqrt | Unary::Exp if a.kind == Kind::Real => Ok(a),
        Unary::Log if a.kind == Kind::Real && exact => Ok(a),
        Unary::Floor | Unary::Ceil | Unary::Round if number && exact => Ok(Type::new(Kind::Int, a.extent)),
        Unary::Log | Unary::Floor | Unary::Ceil | Unary::Round if number && !exact => {
            Err(format!("`{}` takes numbers and coordinates, not scores of blocks", unary_name(op)))
        }
        Unary::BitLength if a.kind == Kind::Int => Ok(a),
        Unary::BitLength => Err(format!("`bit_length` takes an integer, found a {}", kind_name(a.kind))),
        Unary::ToReal if a.kind != Kind::Real => Ok(Type::new(Kind::Real, a.extent)),
        Unary::ToReal => Err("the value is real already".to_string()),
        Unary::Sqrt | Unary::Exp | Unary::Log if a.kind == Kind::Int => {
            Err(format!("`{}` takes a real number, found an integer", unary_name(op)))
        }
        _ => Err(format!("`{}` takes a number, found a truth value", unary_name(op))),
    }
}

fn binary(graph: &Graph, op: Binary, a: Type, b: Type) -> Result<Type, String> {
    let kind = one_kind(a, b)?;
    let name = binary_name(op);
    let takes = match op {
        Binary::Divide => [Kind::Real].as_slice(),
        Binary::FloorDivide | Binary::Modulo => &[Kind::Int],
        Binary::Xor => &[Kind::Int, Kind::Bool],
        Binary::And | Binary::Or => &[Kind::Bool],
        Binary::Add | Binary::Subtract | Binary::Multiply | Binary::Power | Binary::Min | Binary::Max => {
            &[Kind::Int, Kind::Real]
        }
    };
    if !takes.contains(&kind) {
        let wanted: Vec<String> = takes.iter().map(|&kind| format!("{}s", kind_name(kind))).collect();
        return Err(format!("`{name}` takes {}, found {}s", wanted.join(" or "), kind_name(kind)));
    }
    let exact = |ty: Type| matches!(ty.extent, Extent::Scalar | Extent::Token { .. });
    if op == Binary::Power && !(exact(a) && exact(b)) {
        return Err("`^` takes numbers and coordinates, not scores of blocks; write a product".to_string());
    }
    let logical = kind == Kind::Bool && matches!(op, Binary::And | Binary::Or | Binary::Xor);
    let extent = if logical { join_truth(graph, a.extent, b.extent)? } else { join(graph, a.extent, b.extent)? };
    Ok(Type::new(kind, extent))
}

fn compare(graph: &Graph, op: Comparison, a: Type, b: Type) -> Result<Type, String> {
    let kind = one_kind(a, b)?;
    if kind == Kind::Bool && matches!(op, Comparison::Less | Comparison::LessEqual) {
        return Err("truth values are equal or not, they have no order".to_string());
    }
    match join(graph, a.extent, b.extent)? {
        Extent::Vectors(..) => Err(VECTORS.to_string()),
        extent => Ok(Type::new(Kind::Bool, extent)),
    }
}

fn accumulated(graph: &Graph, a: ValueId) -> Result<Type, String> {
    if graph.ty(a) != Type::scalar(Kind::Real) {
        return Err(format!("`accumulated` adds up a real number, found {}", describe(graph, graph.ty(a))));
    }
    if graph.looks_back(a) {
        return Err("what is accumulated cannot itself depend on what earlier steps did".to_string());
    }
    Ok(Type::scalar(Kind::Real))
}

fn choose(graph: &Graph, condition: Type, a: Type, b: Type) -> Result<Type, String> {
    if condition.kind != Kind::Bool {
        return Err(format!("a condition is a truth value, found {}", describe(graph, condition)));
    }
    let kind = one_kind(a, b)?;
    match join(graph, condition.extent, join(graph, a.extent, b.extent)?)? {
        Extent::Vectors(..) => Err(VECTORS.to_string()),
        extent => Ok(Type::new(kind, extent)),
    }
}

fn lower(graph: &Graph, how: Lower, a: Type) -> Result<Type, String> {
    if let Lower::Density { column, block, per } = how {
        for share in [column, block] {
            if !(0.0..=1.0).contains(&share.0) {
                return Err(format!("a share is between 0 and 1, found {}", share.0));
            }
        }
        if let Some(axis) = per {
            in_range_axis(graph, axis)?;
        }
    }
    match a {
        // Blocks of fewer rows have fewer votes, whatever the predicate varies over.
        Type { kind: Kind::Bool, extent: Extent::Token { .. } | Extent::Scalar }
            if matches!(how, Lower::Density { .. }) =>
        {
            Ok(Type::new(Kind::Bool, blocks(Some(SetId::ALL), Some(SetId::ALL))))
        }
        Type { kind: Kind::Bool, extent: Extent::Token { q, kv } } => {
            let all = |varies: bool| varies.then_some(SetId::ALL);
            Ok(Type::new(Kind::Bool, blocks(all(q), all(kv))))
        }
        _ => Err(format!("a condition on tokens can be lowered to blocks, found {}", describe(graph, a))),
    }
}

fn amount_fits(
    graph: &Graph,
    rule: Selector,
    amount: ValueId,
    [q, kv]: [Option<SetId>; 2],
    over: Over,
) -> Result<(), String> {
    let ty = graph.ty(amount);
    let counts = matches!(rule, Selector::TopK { .. } | Selector::BottomK { .. });
    // One amount for each line: an axis that is gone over is none of the amount's.
    if let (Kind::Real, Extent::Blocks { q: amount_q, kv: amount_kv }) = (ty.kind, ty.extent)
        && amount_q.is_none_or(|set| Some(set) == q && over == Over::Key)
        && amount_kv.is_none_or(|set| Some(set) == kv && over == Over::Query)
    {
        return Ok(());
    }
    if ty == Type::scalar(Kind::Real) || (counts && ty == Type::scalar(Kind::Int)) {
        return Ok(());
    }
    let wanted = if counts { "one real number or one integer" } else { "one real number" };
    Err(format!("the amount to select is {wanted}, found {}", describe(graph, ty)))
}

/// The extent of an operation over operands of two extents that are not both truth values to be joined.
///
/// # Errors
/// A sentence that says why they do not join.
pub fn join(graph: &Graph, a: Extent, b: Extent) -> Result<Extent, String> {
    match (a, b) {
        (Extent::Vectors(..), Extent::Vectors(..)) if a == b => Ok(a),
        (Extent::Vectors(..), Extent::Scalar) => Ok(a),
        (Extent::Scalar, Extent::Vectors(..)) => Ok(b),
        (Extent::Vectors(side, set), other) if other == along(side, set) => Ok(a),
        (other, Extent::Vectors(side, set)) if other == along(side, set) => Ok(b),
        (Extent::Vectors(..), _) | (_, Extent::Vectors(..)) => Err(VECTORS.to_string()),
        (Extent::Mixed, _) | (_, Extent::Mixed) => Err(MIXED.to_string()),
        (Extent::Scalar, other) | (other, Extent::Scalar) => Ok(other),
        (Extent::Token { q, kv }, Extent::Token { q: other_q, kv: other_kv }) => {
            Ok(Extent::Token { q: q || other_q, kv: kv || other_kv })
        }
        (Extent::Blocks { q, kv }, Extent::Blocks { q: other_q, kv: other_kv }) => {
            Ok(blocks(join_side(graph, q, other_q, Side::Query)?, join_side(graph, kv, other_kv, Side::Key)?))
        }
        (Extent::Token { .. }, Extent::Blocks { .. }) | (Extent::Blocks { .. }, Extent::Token { .. }) => {
            Err("a value of tokens and a value of blocks join only by `and`, `or`, `xor`".to_string())
        }
    }
}

fn join_truth(graph: &Graph, a: Extent, b: Extent) -> Result<Extent, String> {
    let whole = |extent| match extent {
        Extent::Blocks { q, kv } => {
            let outside = [q, kv].into_iter().flatten().find(|&set| set != SetId::ALL);
            outside.map_or(Ok(()), |set| {
                Err(format!(
                    "a condition on the blocks of `{}` must be embedded in the whole sequence before it joins tokens",
                    set_name(graph, set)
                ))
            })
        }
        _ => Ok(()),
    };
    match (a, b) {
        (Extent::Mixed, Extent::Vectors(..)) | (Extent::Vectors(..), Extent::Mixed) => Err(VECTORS.to_string()),
        (Extent::Mixed, other) | (other, Extent::Mixed) => whole(other).map(|()| Extent::Mixed),
        (Extent::Token { .. }, other @ Extent::Blocks { .. })
        | (other @ Extent::Blocks { .. }, Extent::Token { .. }) => whole(other).map(|()| Extent::Mixed),
        _ => join(graph, a, b),
    }
}

fn join_side(graph: &Graph, a: Option<SetId>, b: Option<SetId>, side: Side) -> Result<Option<SetId>, String> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => Err(format!(
            "the blocks of {} are those of `{}` on one hand and of `{}` on the other",
            side_name(side),
            set_name(graph, a),
            set_name(graph, b)
        )),
        _ => Ok(a.or(b)),
    }
}

fn block_operand(graph: &Graph, id: ValueId) -> Result<(Kind, Option<SetId>, Option<SetId>), String> {
    match graph.ty(id) {
        Type { kind, extent: Extent::Blocks { q, kv } } => Ok((kind, q, kv)),
        ty => Err(format!("expected values of blocks, found {}", describe(graph, ty))),
    }
}

/// The type of a value of other heads.
fn of_heads(graph: &Graph, id: ValueId) -> Result<Type, String> {
    let (kind, q, kv) = block_operand(graph, id)?;
    if kind != Kind::Real {
        return Err(format!("heads share real numbers of blocks, found {}", describe(graph, graph.ty(id))));
    }
    Ok(Type::new(kind, blocks(q, kv)))
}

fn real_axis(graph: &Graph, id: ValueId, over: Over) -> Result<(Option<SetId>, Option<SetId>), String> {
    let (kind, q, kv) = block_operand(graph, id)?;
    let found = || describe(graph, graph.ty(id));
    if kind != Kind::Real {
        return Err(format!("expected real numbers of blocks, found {}", found()));
    }
    let (missing, side) = match over {
        Over::Query => (q.is_none(), side_name(Side::Query)),
        Over::Key => (kv.is_none(), side_name(Side::Key)),
        Over::Both | Over::Layer => (q.is_none() || kv.is_none(), "queries and keys"),
        Over::Heads => (false, ""),
    };
    if missing {
        return Err(format!("expected a value for each block of {side}, found {}", found()));
    }
    Ok((q, kv))
}

fn slice(graph: &Graph, old: Option<SetId>, new: Option<SetId>, side: Side) -> Result<Option<SetId>, String> {
    let Some(new) = new else { return Ok(old) };
    in_range_set(graph, new)?;
    let Some(old) = old else {
        return Err(format!(
            "cannot take the blocks of `{}` from a value that has none of {}",
            set_name(graph, new),
            side_name(side)
        ));
    };
    if contains(graph, old, new) {
        return Ok(Some(new));
    }
    Err(format!("cannot take the blocks of `{}` from those of `{}`", set_name(graph, new), set_name(graph, old)))
}

fn contains(graph: &Graph, large: SetId, small: SetId) -> bool {
    let grains = match (graph.grain(large), graph.grain(small)) {
        (_, Grain::Distances)
        | (Grain::Distances | Grain::Last(_) | Grain::Rows(_), _)
        | (Grain::Tokens, Grain::Blocks) => large == small,
        (Grain::Blocks, _) | (Grain::Tokens, _) => true,
    };
    let (large, small) = (parts(graph, large), parts(graph, small));
    let inside = |part: &super::Part| {
        large
            .iter()
            .any(|other| other.segment == part.segment && (other.which == Which::Whole || other.which == part.which))
    };
    grains && (large.is_empty() || (!small.is_empty() && small.iter().all(inside)))
}

/// The side after its tokens were gathered to the blocks of `new`.
fn gather(graph: &Graph, old: Option<SetId>, new: Option<SetId>, side: Side) -> Result<Option<SetId>, String> {
    let Some(new) = new else { return Ok(old) };
    in_range_set(graph, new)?;
    match old {
        Some(old)
            if graph.grain(old) == Grain::Tokens
                && graph.grain(new) == Grain::Blocks
                && parts(graph, old) == parts(graph, new) =>
        {
            Ok(Some(new))
        }
        _ => Err(format!(
            "only all tokens of `{}` can be gathered to its blocks of {}",
            set_name(graph, new),
            side_name(side)
        )),
    }
}

fn representable(ty: Type) -> Result<Type, String> {
    match (ty.extent, ty.kind) {
        (Extent::Blocks { .. }, Kind::Int) => {
            Err("values of blocks are real numbers or truth values; make the integers real first".to_string())
        }
        _ => Ok(ty),
    }
}

fn one_kind(a: Type, b: Type) -> Result<Kind, String> {
    if a.kind == b.kind {
        return Ok(a.kind);
    }
    Err(format!("both operands must be of one kind, found a {} and a {}", kind_name(a.kind), kind_name(b.kind)))
}

fn in_range_set(graph: &Graph, set: SetId) -> Result<(), String> {
    if usize::from(set.0) < graph.sets().len() { Ok(()) } else { Err(format!("there is no set {}", set.0)) }
}

/// The distances of the whole sequence.
fn in_range_distances(graph: &Graph, set: SetId) -> Result<(), String> {
    in_range_set(graph, set)?;
    if graph.grain(set) == Grain::Distances && parts(graph, set).is_empty() {
        return Ok(());
    }
    Err("distances are those of the whole sequence".to_string())
}

fn in_range_axis(graph: &Graph, axis: u8) -> Result<(), String> {
    if usize::from(axis) < graph.axes.len() { Ok(()) } else { Err(format!("there is no axis {axis}")) }
}

fn parts(graph: &Graph, set: SetId) -> &[super::Part] {
    graph.sets().get(usize::from(set.0)).map_or(&[], |set| &set.parts)
}

/// The segments of a set in words: `text + image.valid`, `all`; of tokens, `tokens of text`, `last 64 of text`.
#[must_use]
pub fn set_name(graph: &Graph, set: SetId) -> String {
    let Some(Set { parts, grain }) = graph.sets().get(usize::from(set.0)) else { return format!("set {}", set.0) };
    let grain = match grain {
        Grain::Blocks => String::new(),
        Grain::Tokens => "tokens of ".to_string(),
        Grain::Last(count) => format!("last {count} of "),
        Grain::Rows(index) => {
            let name = graph.rows.get(usize::from(*index)).map_or("", |rows| rows.name.as_str());
            format!("rows {name} of ")
        }
        Grain::Distances => "distances in ".to_string(),
    };
    if parts.is_empty() {
        return grain + "all";
    }
    let names: Vec<String> = parts
        .iter()
        .map(|part| match part.which {
            Which::Whole => part.segment.clone(),
            Which::Valid => format!("{}.valid", part.segment),
            Which::Pad => format!("{}.pad", part.segment),
        })
        .collect();
    grain + &names.join(" + ")
}

/// A value for each element of one side.
fn along(side: Side, set: SetId) -> Extent {
    match side {
        Side::Query => blocks(Some(set), None),
        Side::Key => blocks(None, Some(set)),
    }
}

fn blocks(q: Option<SetId>, kv: Option<SetId>) -> Extent {
    Extent::Blocks { q, kv }
}

fn tokens_of(side: Side) -> Extent {
    Extent::Token { q: side == Side::Query, kv: side == Side::Key }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "truth value",
        Kind::Int => "integer",
        Kind::Real => "real number",
    }
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Query => "queries",
        Side::Key => "keys",
    }
}

fn unary_name(op: Unary) -> &'static str {
    match op {
        Unary::Negate => "-",
        Unary::Not => "not",
        Unary::Abs => "abs",
        Unary::Sqrt => "sqrt",
        Unary::Exp => "exp",
        Unary::Log => "log",
        Unary::Floor => "floor",
        Unary::Ceil => "ceil",
        Unary::Round => "round",
        Unary::BitLength => "bit_length",
        Unary::ToReal => "real",
    }
}

fn binary_name(op: Binary) -> &'static str {
    match op {
        Binary::Add => "+",
        Binary::Subtract => "-",
        Binary::Multiply => "*",
        Binary::Divide => "/",
        Binary::FloorDivide => "//",
        Binary::Modulo => "mod",
        Binary::Power => "^",
        Binary::Min => "min",
        Binary::Max => "max",
        Binary::Xor => "xor",
        Binary::And => "and",
        Binary::Or => "or",
    }
}

const VECTORS: &str = "vectors know `+`, `-`, `*`, `/`, `min`, `max` and `abs`, with numbers and with vectors of the same \
                       elements; anything else is said of their dot products";
const MIXED: &str = "a condition on tokens and blocks joins only by `and`, `or`, `xor`, `not`";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Rounding, Source, Statistic};
    use crate::source::Span;

    fn push(graph: &mut Graph, op: Op) -> ValueId {
        let ty = type_of(graph, &op).expect("typed");
        graph.push(op, ty, Span::default())
    }

    fn score(graph: &mut Graph) -> ValueId {
        let q = push(graph, Op::Pool(Statistic::Mean, Source::Query));
        let k = push(graph, Op::Pool(Statistic::Mean, Source::Key));
        push(graph, Op::Dot(q, k))
    }

    #[test]
    fn a_score_is_sliced_reduced_and_selected() {
        let mut graph = Graph::default();
        let text = graph.set(vec![super::super::Part { segment: "text".to_string(), which: Which::Whole }]);
        let score = score(&mut graph);
        let sliced = push(&mut graph, Op::Slice { value: score, q: Some(text), kv: None });
        assert_eq!(graph.ty(sliced), Type::new(Kind::Real, blocks(Some(text), Some(SetId::ALL))));
        let sum = push(&mut graph, Op::Reduce { how: Reduction::Sum, value: sliced, over: Over::Query });
        assert_eq!(graph.ty(sum).extent, blocks(None, Some(SetId::ALL)));
        let amount = push(&mut graph, Op::Int(3));
        let rule = Selector::TopK { rounding: Rounding::Floor, ties: false };
        let select = |rule| Op::Select { rule, value: sum, amount, at_least: None, cost: None, over: Over::Key };
        let kept = push(&mut graph, select(rule));
        let side = push(&mut graph, Op::Coordinate(Coordinate::Block, Side::Query));
        let zero = push(&mut graph, Op::Int(0));
        let first = push(&mut graph, Op::Compare(Comparison::Equal, side, zero));
        let both = push(&mut graph, Op::Binary(Binary::And, kept, first));
        assert_eq!(graph.ty(both).extent, Extent::Mixed);
        assert!(type_of(&graph, &Op::Reduce { how: Reduction::Sum, value: sum, over: Over::Query }).is_err());
        assert!(type_of(&graph, &Op::Slice { value: sliced, q: Some(SetId::ALL), kv: None }).is_err());
        assert!(type_of(&graph, &select(Selector::BottomMass)).is_err(), "a mass is real");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut graph = Graph::default();
        let score = score(&mut graph);
        let one = push(&mut graph, Op::Int(1));
        let block = push(&mut graph, Op::Coordinate(Coordinate::Block, Side::Key));
        let truth = push(&mut graph, Op::Bool(true));
        for op in [
            Op::Binary(Binary::Add, score, one),
            Op::Binary(Binary::Divide, one, one),
            Op::Binary(Binary::And, one, one),
            Op::Binary(Binary::Power, score, score),
            Op::Unary(Unary::ToReal, score),
            Op::Unary(Unary::Log, score),
            Op::Unary(Unary::Not, score),
            Op::Unary(Unary::Sqrt, one),
            Op::Unary(Unary::Abs, truth),
            Op::Compare(Comparison::Less, truth, truth),
            Op::Compare(Comparison::Equal, block, score),
            Op::Choose(one, one, one),
            Op::Transpose(one),
            Op::Embed(score),
            Op::Lower(Lower::Any, truth),
            Op::Dot(ValueId(1), ValueId(0)),
            Op::Unary(Unary::Sqrt, ValueId(0)),
            Op::Binary(Binary::Add, ValueId(0), ValueId(1)),
            Op::Compare(Comparison::Less, ValueId(0), ValueId(0)),
            Op::Each(Source::Query, SetId::ALL),
            Op::OverChannels { how: Reduction::Sum, value: score },
            Op::Spread(ValueId(0), SetId::ALL),
            Op::Measured { name: "x".to_string(), over: Some((Side::Query, SetId::ALL)) },
            Op::Start(score),
            Op::Gather { how: Reduction::Max, value: score, q: Some(SetId::ALL), kv: None },
            Op::Diagonals(score, SetId::ALL),
            Op::Distances(SetId::ALL),
            Op::Unary(Unary::Abs, ValueId(99)),
            Op::InSet(SetId(9), Side::Query),
            Op::Coordinate(Coordinate::Axis(0), Side::Query),
            Op::Table { table: 0, item: 0, keys: vec![], otherwise: None },
        ] {
            assert!(type_of(&graph, &op).is_err(), "{op:?}");
        }
    }
}
