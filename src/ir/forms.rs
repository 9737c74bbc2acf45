//! The text form of every type of the IR, each in one line.
//!
//! [`forms!`] turns a table into a printer and a reader. On the left stands a pattern that is an expression too, on the
//! right what is written: words in quotes, fields in parentheses. A new operation is a new line.
//!
//! | item | written | read |
//! |---|---|---|
//! | `"word"` | the word | must be there |
//! | `(field)` | the field | the field |
//! | `<field: Type>` | the field | as the first item of a variant: taken when the text begins like the type |
//! | `["word" field]` | word and field, where there is a value | an optional field |
//! | `^["word" field]` | the same on a line of its own | |
//! | `?"word" field` | the word, where the field is true | a truth value |
//! | `*"word" field` | a line for each element | any number of lines |
//! | `..field: Type` | the elements in a row | as long as the text begins like the type |
//! | `@axis field`, `@axes field`, `@["word" axis field]` | names of axes | |
//! | `@span field` | nothing | the empty span |

use super::print::Printer;
use super::read::{ReadError, Reader};
use super::{
    Action, Binary, Blocking, Bound, Clause, Comparison, Coordinate, Extent, Grain, InputShape, Kind, LayoutSegment,
    Likeness, Lower, Model, Op, OpenParam, Order, OrderRule, Over, Place, Real, Reduction, Rounding, Rule,
    ScheduleRule, Segment, Selector, Side, Size, Source, Statistic, StepKind, Strategy, Type, Unary, Unit,
};
use crate::plan::{Predicate, Program, Role};
use crate::source::Span;
use crate::tensor::Dtype;

/// Something with a text form.
pub(super) trait Form: Sized {
    /// Prints it.
    fn write(&self, p: &mut Printer);
    /// Reads what [`Form::write`] prints.
    fn read(r: &mut Reader) -> Result<Self, ReadError>;
    /// Whether the text goes on with one.
    fn starts(_: &mut Reader) -> bool {
        false
    }
}

macro_rules! write_items {
    ($p:ident;) => {};
    ($p:ident; $word:literal $($rest:tt)*) => { $p.put($word); write_items!($p; $($rest)*); };
    ($p:ident; ($field:ident) $($rest:tt)*) => { $field.write($p); write_items!($p; $($rest)*); };
    ($p:ident; <$field:ident: $ty:ty> $($rest:tt)*) => { $field.write($p); write_items!($p; $($rest)*); };
    ($p:ident; [$word:literal $field:ident] $($rest:tt)*) => {
        if let Some(inner) = $field { $p.put($word); inner.write($p); }
        write_items!($p; $($rest)*);
    };
    ($p:ident; ^[$word:literal $field:ident] $($rest:tt)*) => {
        if let Some(inner) = $field { $p.line(); $p.put($word); inner.write($p); }
        write_items!($p; $($rest)*);
    };
    ($p:ident; ? $word:literal $field:ident $($rest:tt)*) => {
        if *$field { $p.put($word); }
        write_items!($p; $($rest)*);
    };
    ($p:ident; * $word:literal $field:ident $($rest:tt)*) => {
        for item in $field { $p.line(); $p.put($word); item.write($p); }
        write_items!($p; $($rest)*);
    };
    ($p:ident; .. $field:ident: $ty:ident $($rest:tt)*) => {
        for item in $field { item.write($p); }
        write_items!($p; $($rest)*);
    };
    ($p:ident; @axis $field:ident $($rest:tt)*) => { $p.axis(*$field); write_items!($p; $($rest)*); };
    ($p:ident; @axes $field:ident $($rest:tt)*) => {
        $p.list($field, |p, axis| p.axis(*axis));
        write_items!($p; $($rest)*);
    };
    ($p:ident; @[$word:literal axis $field:ident] $($rest:tt)*) => {
        if let Some(axis) = $field { $p.put($word); $p.axis(*axis); }
        write_items!($p; $($rest)*);
    };
    ($p:ident; @span $field:ident $($rest:tt)*) => { let _ = $field; write_items!($p; $($rest)*); };
}

macro_rules! read_items {
    ($r:ident;) => {};
    ($r:ident; $word:literal $($rest:tt)*) => { $r.expect($word)?; read_items!($r; $($rest)*); };
    ($r:ident; ($field:ident) $($rest:tt)*) => { let $field = Form::read($r)?; read_items!($r; $($rest)*); };
    ($r:ident; <$field:ident: $ty:ty> $($rest:tt)*) => {
        let $field = <$ty>::read($r)?;
        read_items!($r; $($rest)*);
    };
    ($r:ident; [$word:literal $field:ident] $($rest:tt)*) => {
        let $field = if $r.take($word) { Some(Form::read($r)?) } else { None };
        read_items!($r; $($rest)*);
    };
    ($r:ident; ^[$word:literal $field:ident] $($rest:tt)*) => { read_items!($r; [$word $field] $($rest)*); };
    ($r:ident; ? $word:literal $field:ident $($rest:tt)*) => {
        let $field = $r.take($word);
        read_items!($r; $($rest)*);
    };
    ($r:ident; * $word:literal $field:ident $($rest:tt)*) => {
        let mut $field = Vec::new();
        while $r.take($word) { $field.push(Form::read($r)?); }
        read_items!($r; $($rest)*);
    };
    ($r:ident; .. $field:ident: $ty:ident $($rest:tt)*) => {
        let mut $field = Vec::new();
        while $ty::starts($r) { $field.push($ty::read($r)?); }
        read_items!($r; $($rest)*);
    };
    ($r:ident; @axis $field:ident $($rest:tt)*) => { let $field = $r.axis()?; read_items!($r; $($rest)*); };
    ($r:ident; @axes $field:ident $($rest:tt)*) => {
        let $field = $r.list(Reader::axis)?;
        read_items!($r; $($rest)*);
    };
    ($r:ident; @[$word:literal axis $field:ident] $($rest:tt)*) => {
        let $field = if $r.take($word) { Some($r.axis()?) } else { None };
        read_items!($r; $($rest)*);
    };
    ($r:ident; @span $field:ident $($rest:tt)*) => { let $field = Span::default(); read_items!($r; $($rest)*); };
}

macro_rules! starts {
    ($r:ident;) => {
        true
    };
    ($r:ident; $word:literal $($rest:tt)*) => {
        $r.at($word)
    };
    ($r:ident; <$field:ident: $ty:ty> $($rest:tt)*) => {
        <$ty>::starts($r)
    };
    ($r:ident; $($rest:tt)*) => {
        true
    };
}

macro_rules! forms {
    ($($ty:ident $what:literal { $([$($pattern:tt)*] = {$($item:tt)*})* })*) => {$(
        impl Form for $ty {
            fn write(&self, p: &mut Printer) {
                match self {
                    $($($pattern)* => { write_items!(p; $($item)*); })*
                }
            }

            #[allow(unreachable_code, reason = "a type of one variant that begins with a field is always taken")]
            fn read(r: &mut Reader) -> Result<Self, ReadError> {
                $(if starts!(r; $($item)*) {
                    read_items!(r; $($item)*);
                    return Ok($($pattern)*);
                })*
                Err(r.unexpected($what))
            }

            fn starts(r: &mut Reader) -> bool {
                // A form without items asks nothing of the text.
                let _ = &r;
                $(starts!(r; $($item)*))||*
            }
        }
    )*};
}

forms! {
    Op "an operation" {
        [Op::Bool(value)] = {<value: bool>}
        [Op::Int(value)] = {<value: i64>}
        [Op::Real(value)] = {<value: Real>}
        [Op::Size(size)] = {"size" (size)}
        [Op::Place(place)] = {<place: Place>}
        [Op::LastComputed] = {"last_computed"}
        [Op::ReusedSteps] = {"reused_steps"}
        [Op::Accumulated(a)] = {"accumulated" (a)}
        [Op::Table { table, item, keys, otherwise }] = {"lookup" (table) "item" (item) "at" (keys) ["else" otherwise]}
        [Op::Coordinate(coordinate, side)] = {<coordinate: Coordinate> "of" (side)}
        [Op::InSet(set, side)] = {"in" (set) "of" (side)}
        [Op::Unary(op, a)] = {<op: Unary> (a)}
        [Op::Binary(op, a, b)] = {<op: Binary> (a) "," (b)}
        [Op::Compare(op, a, b)] = {<op: Comparison> (a) "," (b)}
        [Op::Choose(condition, a, b)] = {"choose" (condition) "then" (a) "else" (b)}
        [Op::Pool(statistic, source)] = {"pool" (statistic) "of" (source)}
        [Op::Each(source, set)] = {"each" (source) (set)}
        [Op::Spread(value, set)] = {"spread" (value) "to" (set)}
        [Op::OverChannels { how, value }] = {"over_channels" (how) (value)}
        [Op::Measured { name, over }] = {"measured" (name) ["over" over]}
        [Op::Start(value)] = {"start" (value)}
        [Op::SelfSimilarity(side)] = {"self_similarity" "of" (side)}
        [Op::BlockTokens(side)] = {"block_tokens" "of" (side)}
        [Op::Dot(q, k)] = {"dot" (q) "," (k)}
        [Op::Transpose(value)] = {"transpose" (value)}
        [Op::Slice { value, q, kv }] = {"slice" (value) "to" "[" (q) "->" (kv) "]"}
        [Op::Gather { how, value, q, kv }] = {"gather" (how) (value) "to" "[" (q) "->" (kv) "]"}
        [Op::Diagonals(value, set)] = {"diagonals" (value) "at" (set)}
        [Op::Distances(set)] = {"distances" (set)}
        [Op::OnDiagonals(value)] = {"on_diagonals" (value)}
        [Op::Reduce { how, value, over }] = {"reduce" (how) (value) "over" (over)}
        [Op::Softmax { value, over }] = {"softmax" (value) "over" (over)}
        [Op::Select { rule, value, amount, at_least, cost, over }] =
            {"select" (rule) "of" (value) "amount" (amount) ["at_least" at_least] ["cost" cost] "over" (over)}
        [Op::Shift { value, by, over }] = {"shift" (value) "by" (by) "over" (over)}
        [Op::AntiDiagonal { stride }] = {"anti_diagonal" "stride" (stride)}
        [Op::AtHead { value, head }] = {"at_head" (value) "head" (head)}
        [Op::OverHeads { how, value }] = {"over_heads" (how) (value)}
        [Op::Embed(value)] = {"embed" (value)}
        [Op::Lower(how, value)] = {"lower" (how) (value)}
        [Op::Mask(slot)] = {"mask" (slot)}
    }
    Unary "a function" {
        [Unary::Negate] = {"negate"}
        [Unary::Not] = {"not"}
        [Unary::Abs] = {"abs"}
        [Unary::Sqrt] = {"sqrt"}
        [Unary::Exp] = {"exp"}
        [Unary::Log] = {"log"}
        [Unary::Floor] = {"floor"}
        [Unary::Ceil] = {"ceil"}
        [Unary::Round] = {"round"}
        [Unary::BitLength] = {"bit_length"}
        [Unary::ToReal] = {"to_real"}
    }
    Binary "a function of two operands" {
        [Binary::Add] = {"add"}
        [Binary::Subtract] = {"subtract"}
        [Binary::Multiply] = {"multiply"}
        [Binary::Divide] = {"divide"}
        [Binary::FloorDivide] = {"floor_divide"}
        [Binary::Modulo] = {"modulo"}
        [Binary::Power] = {"power"}
        [Binary::Min] = {"min"}
        [Binary::Max] = {"max"}
        [Binary::Xor] = {"xor"}
        [Binary::And] = {"and"}
        [Binary::Or] = {"or"}
    }
    Comparison "a comparison" {
        [Comparison::Equal] = {"equal"}
        [Comparison::NotEqual] = {"not_equal"}
        [Comparison::Less] = {"less"}
        [Comparison::LessEqual] = {"less_equal"}
    }
    Size "a size" {
        [Size::Layers] = {"layers"}
        [Size::Heads] = {"heads"}
        [Size::HeadDim] = {"head_dim"}
        [Size::Steps] = {"steps"}
        [Size::Tokens(set)] = {"tokens" (set)}
        [Size::Axis(axis)] = {"axis" @axis axis}
        [Size::Blocks(set, side)] = {"blocks" (set) "of" (side)}
    }
    Place "`step`, `layer` or `head`" {
        [Place::Step] = {"step"}
        [Place::Layer] = {"layer"}
        [Place::Head] = {"head"}
    }
    Coordinate "a coordinate" {
        [Coordinate::Position] = {"position"}
        [Coordinate::Block] = {"block"}
        [Coordinate::Index] = {"index"}
        [Coordinate::Axis(axis)] = {"axis" @axis axis}
        [Coordinate::Tile(number)] = {"tile" (number)}
    }
    Side "`query` or `key`" {
        [Side::Query] = {"query"}
        [Side::Key] = {"key"}
    }
    Over "`query`, `key` or `both`" {
        [Over::Query] = {"query"}
        [Over::Key] = {"key"}
        [Over::Both] = {"both"}
        [Over::Layer] = {"layer"}
        [Over::Heads] = {"heads"}
    }
    Statistic "a statistic" {
        [Statistic::Mean] = {"mean"}
        [Statistic::CentredMean] = {"centred_mean"}
        [Statistic::Min] = {"min"}
        [Statistic::Max] = {"max"}
    }
    Reduction "a reduction" {
        [Reduction::Sum] = {"sum"}
        [Reduction::Mean] = {"mean"}
        [Reduction::Max] = {"max"}
        [Reduction::Min] = {"min"}
    }
    Selector "a selector" {
        [Selector::TopK { rounding, ties }] = {"top_k" (rounding) ?"ties" ties}
        [Selector::BottomK { rounding }] = {"bottom_k" (rounding)}
        [Selector::TopP { crossing, ascending, strict }] =
            {"top_p" ?"crossing" crossing ?"ascending" ascending ?"strict" strict}
        [Selector::BottomMass] = {"bottom_mass"}
        [Selector::Statistical] = {"statistical"}
    }
    Rounding "a rounding" {
        [Rounding::Floor] = {"floor"}
        [Rounding::Ceil] = {"ceil"}
        [Rounding::Nearest] = {"nearest"}
    }
    Lower "a way to lower" {
        [Lower::Any] = {"any"}
        [Lower::All] = {"all"}
        [Lower::Centre] = {"centre"}
        [Lower::Exact] = {"exact"}
        [Lower::Density { column, block, per }] = {"density" "column" (column) "block" (block) @["per" axis per]}
    }
    Source "`query`, `key` or `value`" {
        [Source::Query] = {"query"}
        [Source::Key] = {"key"}
        [Source::Value] = {"value"}
    }
    Grain "a grain" {
        [Grain::Tokens] = {"tokens"}
        [Grain::Last(count)] = {"last" (count)}
        [Grain::Rows(index)] = {"rows" (index)}
        [Grain::Distances] = {"distances"}
        [Grain::Blocks] = {}
    }
    Kind "`bool`, `int` or `real`" {
        [Kind::Bool] = {"bool"}
        [Kind::Int] = {"int"}
        [Kind::Real] = {"real"}
    }
    Extent "an extent" {
        [Extent::Token { q: true, kv: true }] = {"token_pair"}
        [Extent::Token { q: true, kv: false }] = {"query_token"}
        [Extent::Token { q: false, kv: true }] = {"key_token"}
        [Extent::Token { q: false, kv: false }] = {"token"}
        [Extent::Blocks { q, kv }] = {"[" (q) "->" (kv) "]"}
        [Extent::Vectors(side, set)] = {"vectors" (side) (set)}
        [Extent::Mixed] = {"mixed"}
        [Extent::Scalar] = {}
    }
    Type "a type" {
        [Type { kind, extent }] = {<kind: Kind> (extent)}
    }
    Strategy "a strategy" {
        [Strategy { name, params, graph, layout, model, orders, block, block_span, rules, schedule, bounds, open_params, inputs, quirks }] = {
            "strategy" (name) *"param" params (graph) *"layout" layout ^["model" model] *"order" orders
            ^["blocks" block] *"rule" rules *"schedule" schedule *"bound" bounds *"open" open_params *"input" inputs
            *"quirk" quirks @span block_span
        }
    }
    LayoutSegment "a segment" {
        [LayoutSegment { name, axes, span }] = {(name) (axes) @span span}
    }
    Model "a model" {
        [Model { name, layers, heads, head_dim, steps, dtype, segments, span }] = {
            (name) "layers" (layers) "heads" (heads) "head_dim" (head_dim) "steps" (steps) "dtype" (dtype)
            *"segment" segments @span span
        }
    }
    Segment "a segment" {
        [Segment { name, axes, start, tokens, valid, span }] =
            {(name) (axes) "at" (start) "tokens" (tokens) "valid" (valid) @span span}
    }
    Dtype "`f32`, `f16` or `bf16`" {
        [Dtype::F32] = {"f32"}
        [Dtype::F16] = {"f16"}
        [Dtype::Bf16] = {"bf16"}
    }
    Rule "a rule" {
        [Rule { action, guard, predicate, lower, order, span }] =
            {<action: Action> (predicate) "by" (lower) ["forecast" order] ["when" guard] @span span}
    }
    Action "`keep`, `skip` or `cache`" {
        [Action::Keep] = {"keep"}
        [Action::Skip] = {"skip"}
        [Action::Cache] = {"cache"}
    }
    OrderRule "an order of tokens" {
        [OrderRule { guard, segment, order, span }] = {<order: Order> ["in" segment] ["when" guard] @span span}
    }
    Order "an order of tokens" {
        [Order::Axes(axes)] = {"axes" @axes axes}
        [Order::Tiles(sizes)] = {"tiles" (sizes)}
        [Order::Gilbert] = {"gilbert"}
        [Order::Given(table)] = {"given" (table)}
        [Order::Clusters { q, kv, iterations, again, by }] =
            {"clusters" (q) "," (kv) "rounds" (iterations) "," (again) "by" (by)}
    }
    Likeness "`distance` or `profile`" {
        [Likeness::Distance] = {"distance"}
        [Likeness::Profile] = {"profile"}
    }
    Blocking "a size of blocks" {
        [Blocking::Tiles] = {"tiles"}
        [Blocking::Sizes(q, kv)] = {(q) "," (kv)}
    }
    ScheduleRule "a line of a schedule" {
        [ScheduleRule { kind, guard, clauses, order, span }] =
            {<kind: StepKind> ["layers" guard] ..clauses: Clause ["forecast" order] @span span}
    }
    StepKind "what a layer does" {
        [StepKind::Dense] = {"dense"}
        [StepKind::Update] = {"update"}
        [StepKind::Refresh] = {"refresh"}
        [StepKind::Dispatch] = {"dispatch"}
        [StepKind::Reuse(unit)] = {"reuse" (unit)}
        [StepKind::Residual] = {"residual"}
        [StepKind::Shared] = {"shared"}
    }
    Unit "`modules` or `layer`" {
        [Unit::Modules] = {"modules"}
        [Unit::Layer] = {"layer"}
        [Unit::Attention] = {}
    }
    Clause "a clause" {
        [Clause::While(value)] = {"while" (value)}
        [Clause::Every { interval, from, except }] = {"every" (interval) ["from" from] ?"except" except}
        [Clause::On { steps, except }] = {"on" (steps) ?"except" except}
    }
    Bound "a bound" {
        [Bound { place, value, exclusive, span }] = {<place: Place> (value) ?"exclusive" exclusive @span span}
    }
    OpenParam "a number of a parameter" {
        [OpenParam { param, at, value }] = {(param) "at" (at) (value)}
    }
    InputShape "the shape of an input" {
        [InputShape { name, given, declared, span }] = {(name) (given) "declared" (declared) @span span}
    }
    Program "a program" {
        [Program { graph, terms }] = {"program" (graph) *"term" terms}
    }
    Predicate "a predicate" {
        [Predicate { graph, value }] = {"predicate" (graph) "holds" (value)}
    }
    Role "the role of a term" {
        [Role::Whole] = {"whole"}
        [Role::Partial] = {"partial"}
        [Role::Skip] = {"skip"}
        [Role::Cache] = {"cache"}
    }
}
