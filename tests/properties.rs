//! Random strategies against a slow oracle: every token pair of every block is asked, and the blocks are counted by hand.
//!
//! A strategy is made as a tree of this file; one walk writes it as text for the compiler, another evaluates it in plain
//! integers. Nothing of the compiler is used for the expected symbols. The same strategies go through the IR's text
//! form after every pass and through the plan file.

use std::fmt::Write as _;

use flashomni::Compiler;
use flashomni::ir::read::read_strategy;
use flashomni::plan::{Body, Plan};
use proptest::prelude::*;

const TEXT: usize = 11;
const AXES: [(&str, usize); 3] = [("t", 3), ("h", 4), ("w", 5)];
const BLOCK: usize = 8;
const HEADS: usize = 2;

/// What is known of a token in its place of the sequence.
#[derive(Clone, Copy)]
struct Token {
    position: i64,
    /// Of video tokens.
    axes: [i64; 3],
    is_video: bool,
    /// The head that looks at it.
    head: i64,
}

#[derive(Clone, Debug)]
enum Number {
    Literal(i64),
    Head,
    /// Of the query or the key.
    Position(bool),
    Axis(usize, bool),
    Call(&'static str, Box<Number>, Box<Number>),
    Infix(&'static str, Box<Number>, Box<Number>),
    Scaled(i64, Box<Number>),
    Abs(Box<Number>),
}

#[derive(Clone, Debug)]
enum Truth {
    Compare(&'static str, Number, Number),
    Join(&'static str, Box<Truth>, Box<Truth>),
    Not(Box<Truth>),
}

#[derive(Clone, Debug)]
enum Lowering {
    Default,
    Any,
    All,
    Centre,
    Exact,
    Density { column: u8, block: u8, per: Option<usize> },
}

#[derive(Clone, Debug)]
struct Rule {
    keep: bool,
    /// Whether the rule is about video tokens alone; else about all, and its predicate has no axes.
    video: bool,
    predicate: Truth,
    lowering: Lowering,
    /// The only head in which it holds.
    head: Option<usize>,
}

#[derive(Clone, Debug)]
enum Order {
    Model,
    /// A permutation of the axes, outermost first.
    Axes([usize; 3]),
    Tiles([usize; 3]),
}

#[derive(Clone, Debug)]
struct Sample {
    order: Order,
    rules: Vec<Rule>,
}

// ---- as text ----

fn side(of_q: bool) -> &'static str {
    if of_q { "q" } else { "k" }
}

impl Number {
    fn text(&self) -> String {
        match self {
            Number::Literal(value) => format!("({value})"),
            Number::Head => "head".to_owned(),
            Number::Position(q) => format!("pos({})", side(*q)),
            Number::Axis(axis, q) => format!("{}({})", AXES[*axis].0, side(*q)),
            Number::Call(name, a, b) => format!("{name}({}, {})", a.text(), b.text()),
            Number::Infix(sign, a, b) => format!("({} {sign} {})", a.text(), b.text()),
            Number::Scaled(by, a) => format!("(({by}) * {})", a.text()),
            Number::Abs(a) => format!("abs({})", a.text()),
        }
    }

    fn value(&self, q: &Token, k: &Token) -> i64 {
        let of = |q_side: bool| if q_side { q } else { k };
        match self {
            Number::Literal(value) => *value,
            Number::Head => q.head,
            Number::Position(q) => of(*q).position,
            Number::Axis(axis, q) => of(*q).axes[*axis],
            Number::Scaled(by, a) => by * a.value(q, k),
            Number::Abs(a) => a.value(q, k).abs(),
            Number::Call(name, a, b) | Number::Infix(name, a, b) => {
                let (a, b) = (a.value(q, k), b.value(q, k));
                // Rounded down; by zero it is 0.
                let quotient = if b == 0 { 0 } else { a.div_euclid(b) - i64::from(b < 0 && a.rem_euclid(b) != 0) };
                match *name {
                    "min" => a.min(b),
                    "max" => a.max(b),
                    "+" => a + b,
                    "-" => a - b,
                    "div" => quotient,
                    "mod" if b == 0 => 0,
                    "mod" => a - quotient * b,
                    name => panic!("{name}"),
                }
            }
        }
    }
}

impl Truth {
    fn text(&self) -> String {
        match self {
            Truth::Compare(sign, a, b) => format!("({} {sign} {})", a.text(), b.text()),
            Truth::Join(word, a, b) => format!("({} {word} {})", a.text(), b.text()),
            Truth::Not(a) => format!("(not {})", a.text()),
        }
    }

    fn holds(&self, q: &Token, k: &Token) -> bool {
        match self {
            Truth::Compare(sign, a, b) => {
                let (a, b) = (a.value(q, k), b.value(q, k));
                match *sign {
                    "==" => a == b,
                    "!=" => a != b,
                    "<" => a < b,
                    "<=" => a <= b,
                    ">" => a > b,
                    _ => a >= b,
                }
            }
            Truth::Join(word, a, b) => {
                let (a, b) = (a.holds(q, k), b.holds(q, k));
                match *word {
                    "and" => a && b,
                    "or" => a || b,
                    _ => a != b,
                }
            }
            Truth::Not(a) => !a.holds(q, k),
        }
    }
}

impl Sample {
    fn text(&self) -> String {
        let mut text = format!(
            "model m {{ layers 1 heads {HEADS} head_dim 16 steps 2 tokens text({TEXT}) ++ video(t = 3, h = 4, w = 5) }}\n\
             strategy s {{\n    layout text ++ video(t, h, w)\n    block {BLOCK}\n"
        );
        match &self.order {
            Order::Model => {}
            Order::Axes(axes) => {
                let names = axes.map(|axis| AXES[axis].0).join(", ");
                let _ = writeln!(text, "    order axes({names})");
            }
            Order::Tiles(tiles) => {
                let _ = writeln!(text, "    order tiles({}, {}, {})", tiles[0], tiles[1], tiles[2]);
            }
        }
        for rule in &self.rules {
            let action = if rule.keep { "keep" } else { "skip" };
            let domain = if rule.video { "video -> video" } else { "all -> all" };
            let lowering = match &rule.lowering {
                Lowering::Default => String::new(),
                Lowering::Any => " lower any".to_owned(),
                Lowering::All => " lower all".to_owned(),
                Lowering::Centre => " lower centre".to_owned(),
                Lowering::Exact => " lower exact".to_owned(),
                Lowering::Density { column, block, per } => {
                    let per = per.map_or_else(String::new, |axis| format!(" per {}", AXES[axis].0));
                    format!(" lower density({column} / 8, {block} / 8){per}")
                }
            };
            let statement = format!("{action} {domain} where {}{lowering}", rule.predicate.text());
            let _ = match rule.head {
                Some(head) => writeln!(text, "    heads [{head}] {{ {statement} }}"),
                None => writeln!(text, "    {statement}"),
            };
        }
        text + "}\n"
    }

    // ---- by hand ----

    /// The tokens in the order of the sequence, for a head.
    fn tokens(&self, head: usize) -> Vec<Token> {
        let mut video: Vec<[i64; 3]> = Vec::new();
        for t in 0..3 {
            for h in 0..4 {
                for w in 0..5 {
                    video.push([t, h, w]);
                }
            }
        }
        match &self.order {
            Order::Model => {}
            Order::Axes(axes) => video.sort_by_key(|at| axes.map(|axis| at[axis])),
            Order::Tiles(tiles) => video.sort_by_key(|at| {
                let tile = |axis: usize| at[axis] / tiles[axis] as i64;
                let within = |axis: usize| at[axis] % tiles[axis] as i64;
                [tile(0), tile(1), tile(2), within(0), within(1), within(2)]
            }),
        }
        let text = (0..TEXT).map(|_| ([0; 3], false));
        let all = text.chain(video.into_iter().map(|at| (at, true)));
        let token = |(at, (axes, is_video))| Token { position: at as i64, axes, is_video, head: head as i64 };
        all.enumerate().map(token).collect()
    }

    /// Blocks that are computed, and those of them that are computed in part, of a head.
    fn symbols(&self, head: usize) -> (Vec<Vec<bool>>, Vec<Vec<bool>>) {
        let tokens = self.tokens(head);
        let blocks: Vec<&[Token]> = tokens.chunks(BLOCK).collect();
        let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.head.is_none_or(|only| only == head)).collect();
        let keeps = rules.iter().any(|rule| rule.keep);
        let mut computed = vec![vec![false; blocks.len()]; blocks.len()];
        let mut partial = computed.clone();
        for (row, q) in blocks.iter().enumerate() {
            for (column, k) in blocks.iter().enumerate() {
                let covers = |keep: bool| rules.iter().filter(|rule| rule.keep == keep).any(|rule| rule.covers(q, k));
                // Exact rules of a head are one predicate.
                let exact = |q: &Token, k: &Token| {
                    rules.iter().any(|rule| matches!(rule.lowering, Lowering::Exact) && rule.asks(q, k))
                };
                let pairs = || q.iter().flat_map(|q| k.iter().map(move |k| (q, k)));
                let whole = !keeps || covers(true) || pairs().all(|(q, k)| exact(q, k));
                let some = pairs().any(|(q, k)| exact(q, k));
                let skipped = covers(false);
                computed[row][column] = (whole || some) && !skipped;
                partial[row][column] = some && !whole && !skipped;
            }
        }
        (computed, partial)
    }
}

impl Rule {
    /// Domain and predicate of a token pair.
    fn asks(&self, q: &Token, k: &Token) -> bool {
        (!self.video || (q.is_video && k.is_video)) && self.predicate.holds(q, k)
    }

    fn covers(&self, q: &[Token], k: &[Token]) -> bool {
        let mut pairs = q.iter().flat_map(|q| k.iter().map(move |k| (q, k)));
        match self.lowering {
            Lowering::Exact => false,
            Lowering::Default if self.keep => pairs.any(|(q, k)| self.asks(q, k)),
            Lowering::Any => pairs.any(|(q, k)| self.asks(q, k)),
            Lowering::Default | Lowering::All => pairs.all(|(q, k)| self.asks(q, k)),
            Lowering::Centre => self.asks(&q[q.len() / 2], &k[k.len() / 2]),
            Lowering::Density { column, block, per } => {
                let group = |token: &Token| per.map_or(0, |axis| token.axes[axis]);
                let groups = |side: &[Token]| side.iter().map(group).collect::<std::collections::BTreeSet<i64>>();
                groups(q).into_iter().any(|q_group| {
                    groups(k).into_iter().any(|k_group| {
                        let seen = |k: &Token| {
                            q.iter().filter(|q| group(q) == q_group && self.asks(q, k)).count() as f32 / BLOCK as f32
                        };
                        let shares: Vec<f32> =
                            k.iter().filter(|k| group(k) == k_group).map(seen).filter(|share| *share > 0.0).collect();
                        let dense = shares.iter().filter(|share| **share > f32::from(column) / 8.0).count();
                        !shares.is_empty() && dense as f32 / shares.len() as f32 > f32::from(block) / 8.0
                    })
                })
            }
        }
    }
}

// ---- samples ----

fn number(axes: bool) -> BoxedStrategy<Number> {
    let literal = prop_oneof![5 => (-9_i64..70).prop_map(Number::Literal), 1 => Just(Number::Head)];
    let position = any::<bool>().prop_map(Number::Position);
    let leaf = if axes {
        let axis = (0_usize..3, any::<bool>()).prop_map(|(axis, q)| Number::Axis(axis, q));
        prop_oneof![1 => literal, 1 => position, 3 => axis].boxed()
    } else {
        prop_oneof![1 => literal, 2 => position].boxed()
    };
    leaf.prop_recursive(3, 12, 2, |inner| {
        let two = (inner.clone(), inner.clone()).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        prop_oneof![
            1 => (prop::sample::select(vec!["min", "max"]), two.clone()).prop_map(|(name, (a, b))| Number::Call(name, a, b)),
            3 => (prop::sample::select(vec!["+", "-", "-", "div", "mod"]), two)
                .prop_map(|(sign, (a, b))| Number::Infix(sign, a, b)),
            1 => (-3_i64..4, inner.clone()).prop_map(|(by, a)| Number::Scaled(by, Box::new(a))),
            1 => inner.prop_map(|a| Number::Abs(Box::new(a))),
        ]
    })
    .boxed()
}

fn truth(axes: bool) -> BoxedStrategy<Truth> {
    let signs = prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]);
    let compare = (signs, number(axes), number(axes)).prop_map(|(sign, a, b)| Truth::Compare(sign, a, b));
    compare
        .prop_recursive(3, 6, 2, |inner| {
            let two = (inner.clone(), inner.clone()).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
            prop_oneof![
                4 => (prop::sample::select(vec!["and", "or", "xor"]), two)
                    .prop_map(|(word, (a, b))| Truth::Join(word, a, b)),
                1 => inner.prop_map(|a| Truth::Not(Box::new(a))),
            ]
        })
        .boxed()
}

fn rule() -> impl Strategy<Value = Rule> {
    let density = (0_u8..8, 0_u8..8, prop::option::of(0_usize..3)).prop_map(|(column, block, per)| Lowering::Density {
        column,
        block,
        per,
    });
    let lowering = prop_oneof![
        3 => Just(Lowering::Default),
        1 => Just(Lowering::Any),
        1 => Just(Lowering::All),
        1 => Just(Lowering::Centre),
        2 => Just(Lowering::Exact),
        2 => density,
    ];
    let head = prop::option::weighted(0.3, 0..HEADS);
    (any::<bool>(), prop::bool::weighted(0.7), lowering, prop::bool::weighted(0.7), head).prop_flat_map(
        |(video, axes, lowering, keep, head)| {
            // `skip` works on whole blocks. Text has no coordinates.
            let keep = keep || matches!(lowering, Lowering::Exact);
            let per_axis = matches!(lowering, Lowering::Density { per: Some(_), .. });
            let video = video || per_axis;
            truth(video && axes).prop_map(move |predicate| Rule {
                keep,
                video,
                predicate,
                lowering: lowering.clone(),
                head,
            })
        },
    )
}

fn sample() -> impl Strategy<Value = Sample> {
    let order = prop_oneof![
        2 => Just(Order::Model),
        1 => Just([0_usize, 1, 2]).prop_shuffle().prop_map(Order::Axes),
        1 => [1_usize..4, 1_usize..5, 1_usize..6].prop_map(Order::Tiles),
    ];
    (order, prop::collection::vec(rule(), 1..4)).prop_map(|(order, rules)| Sample { order, rules })
}

fn compiled(text: &str) -> Plan {
    let check_text = |pass: &'static str, strategy: &flashomni::ir::Strategy| {
        let printed = strategy.to_string();
        let read = read_strategy(&printed).unwrap_or_else(|error| panic!("after {pass}: {error}\n{printed}"));
        assert_eq!(read.to_string(), printed, "after {pass}");
        assert_eq!(read.graph, strategy.graph, "after {pass}");
    };
    let compiled =
        Compiler::from_source("sample.omni", text).compile_with(&mut |pass, strategy| check_text(pass, strategy));
    compiled.unwrap_or_else(|error| panic!("{error}\n{text}")).plan
}

fn drawn(bits: &[Vec<bool>]) -> String {
    bits.iter().map(|row| row.iter().map(|bit| if *bit { '#' } else { '.' }).collect::<String>() + "\n").collect()
}

proptest! {
    // A failure prints its strategy, which is kept as a file of `tests/strategies`.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn symbols_are_those_of_the_oracle(sample in sample()) {
        let text = sample.text();
        let plan = compiled(&text);
        for head in 0..HEADS {
            let class = plan.class(1, 0, head as u32);
            let Body::Static { skip, partial, cache } = &class.body else { panic!("geometry is static\n{text}") };
            let rows = plan.masks[*skip as usize].rows();
            let bits = |mask: Option<u32>| -> Vec<Vec<bool>> {
                let bit = |row, column| mask.is_some_and(|mask| plan.masks[mask as usize].get(row, column));
                (0..rows).map(|row| (0..rows).map(|column| bit(row, column)).collect()).collect()
            };
            let (wanted, wanted_partial) = sample.symbols(head);
            prop_assert_eq!(drawn(&bits(Some(*skip))), drawn(&wanted), "head {} of\n{}", head, text);
            prop_assert_eq!(drawn(&bits(*partial)), drawn(&wanted_partial), "partial of head {} of\n{}", head, text);
            prop_assert_eq!(plan.masks[*cache as usize].count(), rows, "nothing is cached");
        }
    }

    #[test]
    fn plans_survive_their_file(sample in sample()) {
        let plan = compiled(&sample.text());
        prop_assert_eq!(plan.check(), Ok(()));
        let bytes = plan.to_bytes();
        let read = Plan::from_bytes(&bytes, "sample.plan").map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(read.to_bytes(), bytes);
        prop_assert_eq!(read.masks, plan.masks);
        prop_assert_eq!(read.classes, plan.classes);
        prop_assert_eq!(read.class_of, plan.class_of);
    }
}
