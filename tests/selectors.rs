//! Selector programs: the reference interpreter, the fast routines with interpreted maps and, where the build has LLVM,
//! machine code give the same bits, for every operation.

mod programs;

use flashomni::ir::{
    Binary, Comparison, Extent, Kind, Op, Over, Place, Reduction, Rounding, Selector, SetId, Side, Source, Statistic,
    Table, Unary, ValueId,
};
use flashomni::plan::{Program, Role};
use flashomni::reference::selector::interpret;
use flashomni::selector::{Compiled, Evaluator, HeadTensors, SelectorInput, crosses_heads};
use flashomni::symbols::{BitMatrix, Blocks};
use programs::{Build, COLUMNS, Case, MATRIX, ROWS, Random, TOP_K, TOP_P, model};

const DIM: usize = 19;

/// Text first, then image; blocks of 3 and 4 tokens unless they are to be of one size.
fn case(q_blocks: usize, kv_blocks: usize, seed: u64, dyadic: bool) -> Case {
    let mut random = Random(seed * 2 + 1);
    let (block_q, block_kv) = (4, 3);
    // The last block of each side is partial, except that a side of one block has two tokens.
    let (q_tokens, kv_tokens) = (q_blocks * block_q - 2, kv_blocks * block_kv - 1);
    let tokens = q_tokens.max(kv_tokens);
    let text = (tokens / 4).max(1);
    let mut values = |tokens: usize| -> Vec<f32> {
        (0..tokens * DIM).map(|_| if dyadic { random.dyadic() } else { random.real(2.0) }).collect()
    };
    let (q, k, v) = (values(q_tokens), values(kv_tokens), values(kv_tokens));
    let measured = [("of queries", &q), ("of keys", &k), ("of the head", &v)].map(|(name, values)| {
        let values: Vec<f32> = values.iter().step_by(DIM).copied().collect();
        let count = if name == "of the head" { 1 } else { values.len() };
        (name.to_owned(), values[..count].to_vec())
    });
    let tensors = HeadTensors { q, k, v, measured: measured.to_vec() };
    let masks = [(q_blocks, kv_blocks), (1, q_blocks), (1, kv_blocks), (q_blocks, kv_blocks)]
        .iter()
        .enumerate()
        .map(|(index, &(rows, columns))| {
            let mut mask = BitMatrix::zeros(rows, columns);
            for row in 0..rows {
                // The last mask has empty rows, so that whole rows can be masked.
                let empty = index == 3 && row % 3 == 0;
                (0..columns).for_each(|column| mask.set(row, column, !empty && random.below(3) > 0));
            }
            mask
        })
        .collect();
    Case {
        model: model(&[("text", text), ("image", tokens - text)]),
        blocks: Blocks::regular(q_tokens, kv_tokens, block_q, block_kv),
        masks,
        tensors,
        dim: DIM,
    }
}

const SIZES: [(usize, usize); 8] = [(1, 1), (2, 31), (31, 32), (32, 33), (33, 1), (65, 65), (40, 130), (7, 64)];

/// All evaluators agree on a program for many sizes and seeds; `live` says that its masks are not all equal.
fn agree(build: impl Fn(&mut Build)) {
    let mut builder = Build::default();
    build(&mut builder);
    let program = builder.program();
    let evaluators = Evaluators::new(&program);
    let mut ones = 0_usize;
    let mut bits = 0_usize;
    for (size, &(q_blocks, kv_blocks)) in SIZES.iter().enumerate() {
        for seed in 0..4 {
            let case = case(q_blocks, kv_blocks, seed * 100 + size as u64 + 1, seed % 2 == 0);
            let found = evaluators.agree(&case);
            ones += found.iter().map(BitMatrix::count).sum::<usize>();
            bits += found.iter().map(|matrix| matrix.rows() * matrix.columns()).sum::<usize>();
        }
    }
    assert!(0 < ones && ones < bits, "a program of constants tests nothing: {ones} of {bits}");
}

/// A program with and without machine code.
struct Evaluators {
    program: Program,
    compiled: Compiled,
    interpreted: Compiled,
}

impl Evaluators {
    fn new(program: &Program) -> Self {
        let compiled = Compiled::new(program, &model(&[("text", 1)])).unwrap();
        assert_eq!(compiled.is_machine_code(), cfg!(feature = "llvm"));
        Evaluators { program: program.clone(), compiled, interpreted: Compiled::interpreted(program).unwrap() }
    }

    /// The bits that all evaluators agree on.
    fn agree(&self, case: &Case) -> Vec<BitMatrix> {
        let masks: Vec<&BitMatrix> = case.masks.iter().collect();
        let size = (case.blocks.q_blocks(), case.blocks.kv_blocks());
        // Values that heads share are computed anew for each evaluator.
        let layers = [case.layer(), case.layer(), case.layer()];
        let input = |layer| SelectorInput { layer: Some(layer), ..case.input(&masks) };
        let expected = interpret(&self.program, &input(&layers[0])).unwrap();
        assert_eq!(self.compiled.evaluate(&input(&layers[1])).unwrap(), expected, "machine code, {size:?}");
        assert_eq!(self.interpreted.evaluate(&input(&layers[2])).unwrap(), expected, "interpreted maps, {size:?}");
        if crosses_heads(&self.program) {
            // Another head finds what this one has computed.
            let other = input(&layers[1]).at_head(0).unwrap();
            let found = self.compiled.evaluate(&other).unwrap();
            assert_eq!(found, interpret(&self.program, &other).unwrap(), "another head, {size:?}");
        }
        expected
    }
}

/// Adds a term that tells values apart: the upper half of each row.
fn upper_half(build: &mut Build, value: ValueId, over: Side) {
    let half = build.real(0.5);
    let selected = build.select(TOP_K, value, half, over);
    build.term(Role::Whole, selected);
}

#[test]
fn pooling_dot_and_self_similarity() {
    agree(|b| {
        let score = b.score(DIM);
        upper_half(b, score, Side::Key);
        let q = b.pool(Statistic::CentredMean, Side::Query);
        let k = b.pool(Statistic::CentredMean, Side::Key);
        let centred = b.push(Op::Dot(q, k), Kind::Real, MATRIX);
        upper_half(b, centred, Side::Query);
        for side in [Side::Query, Side::Key] {
            let similarity = b.similarity(side);
            let bound = b.real(0.3);
            let above = b.compare(Comparison::Less, bound, similarity);
            b.term(Role::Skip, above);
        }
    });
}

#[test]
fn vectors() {
    agree(|b| {
        let (zero, two) = (b.real(0.0), b.real(2.0));
        let statistics = [Statistic::Min, Statistic::Max, Statistic::Mean];
        for (q, k) in statistics.iter().flat_map(|q| statistics.iter().map(move |k| (*q, *k))) {
            let (q, k) = (b.pool(q, Side::Query), b.pool(k, Side::Key));
            let clipped = b.typed(Op::Binary(Binary::Max, q, zero));
            let far = b.typed(Op::Binary(Binary::Divide, two, q));
            let both = b.typed(Op::Binary(Binary::Min, far, clipped));
            let size = b.typed(Op::Unary(Unary::Abs, both));
            let less = b.typed(Op::Unary(Unary::Negate, k));
            let square = b.typed(Op::Binary(Binary::Multiply, less, less));
            let shifted = b.typed(Op::Binary(Binary::Subtract, square, two));
            let score = b.typed(Op::Dot(size, shifted));
            upper_half(b, score, Side::Key);
        }
    });
}

#[test]
fn tokens_and_their_blocks() {
    use flashomni::ir::{Grain, Part, Rows, Which};
    agree(|b| {
        let text = vec![Part { segment: "text".to_owned(), which: Which::Whole }];
        let (all, of_text) = (b.graph.set_of(vec![], Grain::Tokens), b.graph.set_of(text.clone(), Grain::Tokens));
        let last = b.graph.set_of(vec![], Grain::Last(9));
        let text = b.graph.set(text);
        let (q, k) = (b.typed(Op::Each(Source::Query, all)), b.typed(Op::Each(Source::Key, all)));
        let (rows, means) = (b.typed(Op::Each(Source::Query, last)), b.pool(Statistic::Mean, Side::Key));
        let (half, whole) = (b.real(0.5), Some(SetId::ALL));

        // Each query chooses blocks of keys; some of a block, all of a block, and how many.
        let gate = b.typed(Op::Dot(q, means));
        let chosen = b.select(TOP_K, gate, half, Side::Key);
        for how in [Reduction::Max, Reduction::Min] {
            let blocks = b.typed(Op::Gather { how, value: chosen, q: whole, kv: None });
            b.term(Role::Whole, blocks);
        }
        // Tokens of both sides, numbers, and of a part.
        let pairs = b.typed(Op::Dot(q, k));
        for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
            let blocks = b.typed(Op::Gather { how, value: pairs, q: whole, kv: whole });
            upper_half(b, blocks, Side::Key);
            let part = b.typed(Op::Slice { value: pairs, q: Some(of_text), kv: None });
            let blocks = b.typed(Op::Gather { how, value: part, q: Some(text), kv: None });
            let positive = b.compare(Comparison::Less, half, blocks);
            let some = b.typed(Op::Gather { how: Reduction::Max, value: positive, q: None, kv: whole });
            let embedded = b.embed(some);
            b.term(Role::Skip, embedded);
        }
        // A block's value spread over its tokens; positions of tokens and of blocks.
        let score = b.score(DIM);
        let spread = b.typed(Op::Slice { value: score, q: Some(all), kv: None });
        let sum = b.binary(Binary::Add, gate, spread);
        let (at, start) = (b.typed(Op::Start(q)), b.typed(Op::Start(means)));
        let before = b.compare(Comparison::LessEqual, start, at);
        let masked = b.choose(before, sum, half);
        let chosen = b.select(TOP_K, masked, half, Side::Key);
        let blocks = b.typed(Op::Gather { how: Reduction::Max, value: chosen, q: whole, kv: None });
        b.term(Role::Partial, blocks);
        // The last queries over all keys: columns and diagonals.
        let lines = b.typed(Op::Dot(rows, k));
        let shares = b.softmax(lines, Side::Key);
        let columns = b.reduce(Reduction::Sum, shares, Side::Query);
        let amount = b.real(0.1);
        let columns = b.select(TOP_K, columns, amount, Side::Key);
        let columns = b.typed(Op::Gather { how: Reduction::Max, value: columns, q: None, kv: whole });
        b.term(Role::Whole, columns);
        let distances = b.graph.set_of(vec![], Grain::Distances);
        let diagonals = b.typed(Op::Diagonals(shares, distances));
        // Queries at given positions, of which a short sequence lacks some.
        b.graph.rows.push(Rows { name: String::new(), tokens: vec![0, 2, 5, 40] });
        let given = b.graph.set_of(vec![], Grain::Rows(0));
        let given = b.typed(Op::Each(Source::Query, given));
        let given = b.typed(Op::Dot(given, means));
        let given = b.reduce(Reduction::Max, given, Side::Query);
        let given = b.select(TOP_K, given, half, Side::Key);
        b.term(Role::Whole, given);
        let far = b.typed(Op::Distances(distances));
        let far = b.compare(Comparison::Less, half, far);
        let diagonals = b.choose(far, diagonals, half);
        let diagonals = b.select(TOP_K, diagonals, amount, Side::Key);
        let diagonals = b.typed(Op::OnDiagonals(diagonals));
        b.term(Role::Whole, diagonals);
    });
}

#[test]
fn values_and_what_the_host_measures() {
    use flashomni::ir::Grain;
    agree(|b| {
        let all = b.graph.set_of(vec![], Grain::Tokens);
        let (each, mean) = (b.typed(Op::Each(Source::Value, all)), b.typed(Op::Pool(Statistic::Mean, Source::Value)));
        let spread = b.typed(Op::Spread(mean, all));
        let far = b.typed(Op::Binary(Binary::Subtract, each, spread));
        let square = b.typed(Op::Binary(Binary::Multiply, far, far));
        let square = b.typed(Op::OverChannels { how: Reduction::Sum, value: square });
        for how in [Reduction::Mean, Reduction::Max, Reduction::Min] {
            let number = b.typed(Op::OverChannels { how, value: mean });
            let centred = b.typed(Op::Binary(Binary::Subtract, number, mean));
            let largest = b.typed(Op::OverChannels { how: Reduction::Max, value: centred });
            let less = b.compare(Comparison::Less, number, largest);
            b.term(Role::Partial, less);
        }
        let own = b.typed(Op::Binary(Binary::Multiply, mean, mean));
        let own = b.typed(Op::OverChannels { how: Reduction::Sum, value: own });
        let errors = b.typed(Op::Gather { how: Reduction::Sum, value: square, q: None, kv: Some(SetId::ALL) });
        let more = b.compare(Comparison::Less, own, errors);
        b.term(Role::Whole, more);
        let mut measured = |name: &str, over| b.typed(Op::Measured { name: name.to_owned(), over });
        let (queries, keys, one) = (
            measured("of queries", Some((Side::Query, all))),
            measured("of keys", Some((Side::Key, all))),
            measured("of the head", None),
        );
        let above = b.compare(Comparison::Less, one, keys);
        let above = b.typed(Op::Gather { how: Reduction::Min, value: above, q: None, kv: Some(SetId::ALL) });
        b.term(Role::Skip, above);
        // Which heads have the largest number, for each query and for all.
        let amount = b.int(2);
        for value in [queries, one] {
            let chosen = b.select(TOP_K, value, amount, Over::Heads);
            let chosen = match value == one {
                true => chosen,
                false => b.typed(Op::Gather { how: Reduction::Max, value: chosen, q: Some(SetId::ALL), kv: None }),
            };
            b.term(Role::Skip, chosen);
        }
    });
}

#[test]
fn running_sums_of_costs() {
    agree(|b| {
        let score = b.score(DIM);
        let cost = b.unary(Unary::Abs, score);
        for (mass, at_least) in [(0.4, 0), (1.5, 2)] {
            let (mass, at_least) = (b.real(mass), b.int(at_least));
            for over in [Over::Key, Over::Query, Over::Both] {
                for rule in [
                    TOP_P,
                    Selector::TopP { crossing: true, ascending: false, strict: true },
                    Selector::TopP { crossing: true, ascending: true, strict: false },
                    Selector::BottomMass,
                ] {
                    let (at_least, cost) = (Some(at_least), Some(cost));
                    let chosen = b.typed(Op::Select { rule, value: score, amount: mass, at_least, cost, over });
                    b.term(Role::Whole, chosen);
                }
            }
        }
    });
}

#[test]
fn elementwise_functions() {
    agree(|b| {
        let score = b.score(DIM);
        let exp = b.unary(Unary::Exp, score);
        let abs = b.unary(Unary::Abs, score);
        let sqrt = b.unary(Unary::Sqrt, abs);
        let negative_root = b.unary(Unary::Sqrt, score);
        let negated = b.unary(Unary::Negate, sqrt);
        let sum = b.binary(Binary::Add, exp, negated);
        let product = b.binary(Binary::Multiply, sum, score);
        let quotient = b.binary(Binary::Divide, product, negative_root);
        let smaller = b.binary(Binary::Min, quotient, exp);
        let larger = b.binary(Binary::Max, negative_root, smaller);
        upper_half(b, larger, Side::Key);
        let third = b.real(1.0 / 3.0);
        for op in [Comparison::Equal, Comparison::NotEqual, Comparison::Less, Comparison::LessEqual] {
            let compared = b.compare(op, larger, third);
            b.term(Role::Partial, compared);
            let compared = b.compare(op, quotient, score);
            b.term(Role::Skip, compared);
        }
    });
}

#[test]
fn truth_values_and_choices() {
    agree(|b| {
        let (mask, rows, columns) = (b.mask(0, MATRIX), b.mask(1, ROWS), b.mask(2, COLUMNS));
        let outer = b.binary(Binary::And, rows, columns);
        let either = b.binary(Binary::Or, mask, outer);
        let odd = b.binary(Binary::Xor, either, columns);
        let not = b.unary(Unary::Not, odd);
        b.term(Role::Whole, not);
        for op in [Comparison::Equal, Comparison::NotEqual, Comparison::Less, Comparison::LessEqual] {
            let compared = b.compare(op, not, rows);
            b.term(Role::Skip, compared);
        }
        let score = b.score(DIM);
        let weight = b.unary(Unary::ToReal, mask);
        let weighted = b.binary(Binary::Multiply, score, weight);
        let step = b.push(Op::Place(Place::Step), Kind::Int, Extent::Scalar);
        let step = b.unary(Unary::ToReal, step);
        let by_step = b.binary(Binary::Divide, weighted, step);
        let chosen = b.choose(rows, by_step, score);
        upper_half(b, chosen, Side::Key);
        let scalar = b.truth(true);
        let both = b.binary(Binary::And, scalar, rows);
        b.term(Role::Cache, both);
        b.term(Role::Partial, columns);
        b.term(Role::Partial, scalar);
        let never = b.truth(false);
        b.term(Role::Cache, never);
        let chosen = b.choose(never, mask, columns);
        b.term(Role::Partial, chosen);
    });
}

#[test]
fn reductions_and_broadcasts() {
    agree(|b| {
        let score = b.score(DIM);
        for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
            let rows = b.reduce(how, score, Side::Key);
            let columns = b.reduce(how, score, Side::Query);
            let above = b.compare(Comparison::LessEqual, rows, score);
            b.term(Role::Whole, above);
            let outer = b.binary(Binary::Multiply, rows, columns);
            upper_half(b, outer, Side::Key);
            let (half, chosen) = (b.real(0.5), rows);
            let cached = b.select(TOP_K, chosen, half, Side::Query);
            b.term(Role::Cache, cached);
            let half = b.real(0.3);
            let kept = b.select(TOP_P, columns, half, Side::Key);
            b.term(Role::Whole, kept);
        }
    });
}

#[test]
fn reductions_to_one_value() {
    agree(|b| {
        let score = b.score(DIM);
        for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
            let columns = b.reduce(how, score, Side::Query);
            let one = b.reduce(Reduction::Mean, columns, Side::Key);
            let large = b.compare(Comparison::Less, one, score);
            b.term(Role::Whole, large);
            let shares = b.binary(Binary::Divide, columns, one);
            upper_half(b, shares, Side::Key);
            let rows = b.reduce(how, score, Side::Key);
            let low = b.compare(Comparison::Less, rows, one);
            b.term(Role::Cache, low);
            let zero = b.real(0.0);
            let sign = b.compare(Comparison::Less, zero, one);
            b.term(Role::Skip, sign);
            b.term(Role::Cache, sign);
        }
    });
}

#[test]
fn slices_transposes_and_embeddings() {
    agree(|b| {
        let (text, image) = (b.set("text"), b.set("image"));
        let score = b.score(DIM);
        let corner = b.slice(score, Some(image), Some(text));
        let half = b.real(0.4);
        let selected = b.select(Selector::TopK { rounding: Rounding::Ceil, ties: false }, corner, half, Side::Query);
        let embedded = b.embed(selected);
        b.term(Role::Whole, embedded);
        let rows = b.reduce(Reduction::Sum, corner, Side::Key);
        let ranked = b.softmax(rows, Side::Query);
        let amount = b.real(0.3);
        let cached = b.select(Selector::BottomMass, ranked, amount, Side::Query);
        let cached = b.embed(cached);
        b.term(Role::Cache, cached);
    });
}

#[test]
fn transposed_values_of_square_blocks() {
    let mut b = Build::default();
    let score = b.score(DIM);
    let (text, image) = (b.set("text"), b.set("image"));
    let contribution = b.slice(score, Some(text), Some(image));
    let contribution = b.reduce(Reduction::Sum, contribution, Side::Query);
    let contribution = b.softmax(contribution, Side::Key);
    let contribution = b.transpose(contribution);
    let guidance = b.slice(score, Some(image), Some(text));
    let guidance = b.reduce(Reduction::Sum, guidance, Side::Key);
    let guidance = b.softmax(guidance, Side::Query);
    let both = b.binary(Binary::Add, contribution, guidance);
    let amount = b.real(0.9);
    let cached = b.select(Selector::BottomMass, both, amount, Side::Query);
    let cached = b.embed(cached);
    b.term(Role::Cache, cached);
    let transposed = b.transpose(score);
    let sum = b.binary(Binary::Subtract, transposed, score);
    upper_half(&mut b, sum, Side::Key);
    let mask = b.mask(0, MATRIX);
    let transposed = b.transpose(mask);
    b.term(Role::Skip, transposed);
    let evaluators = Evaluators::new(&b.program());
    for blocks in [2, 31, 32, 33, 65] {
        let mut case = case(blocks, blocks, blocks as u64, false);
        let tokens = blocks * 5 - 1;
        let mut random = Random(99 + blocks as u64);
        case.blocks = Blocks::regular(tokens, tokens, 5, 5);
        case.model = model(&[("text", tokens / 3), ("image", tokens - tokens / 3)]);
        case.tensors.q = (0..tokens * DIM).map(|_| random.real(1.0)).collect();
        case.tensors.k = (0..tokens * DIM).map(|_| random.real(1.0)).collect();
        evaluators.agree(&case);
    }
}

#[test]
fn softmax_of_masked_rows() {
    agree(|b| {
        let score = b.score(DIM);
        let mask = b.mask(3, MATRIX);
        let lowest = b.real(f64::NEG_INFINITY);
        let masked = b.choose(mask, score, lowest);
        // Some elements become NaN: 0 / 0.
        let columns = b.mask(2, COLUMNS);
        let zero = b.unary(Unary::ToReal, columns);
        let nan = b.binary(Binary::Divide, zero, zero);
        let one = b.real(1.0);
        let broken = b.binary(Binary::Multiply, score, nan);
        for value in [masked, broken] {
            for over in [Side::Key, Side::Query] {
                let weights = b.softmax(value, over);
                for (rule, amount) in [(TOP_P, 0.6), (Selector::BottomMass, 0.3), (TOP_K, 0.2)] {
                    let amount = b.real(amount);
                    let selected = b.select(rule, weights, amount, over);
                    b.term(Role::Whole, selected);
                    let selected = b.select(rule, value, amount, over);
                    b.term(Role::Whole, selected);
                }
                let none = b.compare(Comparison::Equal, weights, one);
                b.term(Role::Skip, none);
            }
            for how in [Reduction::Sum, Reduction::Max, Reduction::Min] {
                let reduced = b.reduce(how, value, Side::Key);
                let below = b.compare(Comparison::Less, reduced, one);
                b.term(Role::Cache, below);
            }
        }
    });
}

#[test]
fn every_selector() {
    let rules = [
        TOP_K,
        Selector::TopK { rounding: Rounding::Ceil, ties: false },
        Selector::TopK { rounding: Rounding::Nearest, ties: false },
        TOP_P,
        Selector::TopP { crossing: true, ascending: false, strict: false },
        Selector::TopP { crossing: true, ascending: false, strict: true },
        Selector::TopP { crossing: false, ascending: false, strict: true },
        Selector::TopP { crossing: false, ascending: true, strict: false },
        Selector::TopP { crossing: false, ascending: true, strict: true },
        Selector::BottomMass,
        Selector::Statistical,
    ];
    for rule in rules {
        agree(|b| {
            let score = b.score(DIM);
            let weights = b.softmax(score, Side::Key);
            // Few distinct values: ties.
            let zero = b.real(0.0);
            let positive = b.compare(Comparison::Less, zero, score);
            let tied = b.unary(Unary::ToReal, positive);
            for value in [score, weights, tied] {
                for over in [Side::Key, Side::Query] {
                    for amount in [0.0, 0.1, 0.5, 0.77, 1.0] {
                        let amount = b.real(amount);
                        let selected = b.select(rule, value, amount, over);
                        b.term(Role::Whole, selected);
                    }
                    let (amount, at_least) = (b.real(0.05), b.int(3));
                    let selected = b.select_at_least(rule, value, amount, Some(at_least), over);
                    b.term(Role::Whole, selected);
                }
            }
            let count = b.int(2);
            let selected = b.select(TOP_K, score, count, Side::Key);
            b.term(Role::Whole, selected);
        });
    }
}

#[test]
fn lines_may_have_amounts_of_their_own_or_be_the_whole_map() {
    agree(|b| {
        let score = b.score(DIM);
        let map = b.softmax(score, Over::Both);
        let (small, half) = (b.real(0.3), b.real(0.5));
        for (rule, value, amount) in [
            (Selector::TopK { rounding: Rounding::Ceil, ties: true }, score, small),
            (Selector::BottomK { rounding: Rounding::Floor }, score, small),
            (TOP_P, map, half),
            (Selector::BottomMass, map, half),
        ] {
            let whole = b.select(rule, value, amount, Over::Both);
            b.term(Role::Whole, whole);
        }
        let sum = b.reduce(Reduction::Sum, map, Over::Both);
        let large = b.compare(Comparison::Less, sum, map);
        b.term(Role::Skip, large);
        // As many of each row as its block has tokens, and of each column as the largest block.
        let tokens = b.push(Op::BlockTokens(Side::Query), Kind::Real, ROWS);
        let rows = b.select(TOP_K, score, tokens, Side::Key);
        b.term(Role::Whole, rows);
        let most = b.reduce(Reduction::Max, tokens, Side::Query);
        let columns = b.select(Selector::BottomK { rounding: Rounding::Floor }, score, most, Side::Query);
        b.term(Role::Whole, columns);
        let mass = b.reduce(Reduction::Max, map, Side::Key);
        let masses = b.select(Selector::BottomMass, map, mass, Side::Key);
        b.term(Role::Skip, masses);
    });
}

#[test]
fn heads_look_at_each_other() {
    agree(|b| {
        let score = b.score(DIM);
        let map = b.softmax(score, Side::Key);
        let head = b.int(0);
        let (first, last) = (b.push(Op::AtHead { value: map, head }, Kind::Real, MATRIX), b.int(99));
        let half = b.real(0.5);
        let shared = b.select(TOP_P, first, half, Side::Key);
        b.term(Role::Whole, shared);
        for how in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
            let all = b.push(Op::OverHeads { how, value: score }, Kind::Real, MATRIX);
            upper_half(b, all, Side::Key);
            let larger = b.compare(Comparison::Less, all, score);
            b.term(Role::Skip, larger);
        }
        // Of another head's sums over heads, by columns.
        let columns = b.reduce(Reduction::Sum, map, Side::Query);
        let all = b.push(Op::OverHeads { how: Reduction::Sum, value: columns }, Kind::Real, COLUMNS);
        let relative = b.binary(Binary::Divide, columns, all);
        let other = b.push(Op::AtHead { value: relative, head: last }, Kind::Real, COLUMNS);
        upper_half(b, other, Side::Key);
        let quarter = b.real(0.25);
        let layer = b.select(TOP_K, map, quarter, Over::Layer);
        b.term(Role::Whole, layer);
    });
}

#[test]
fn shifts_and_anti_diagonals() {
    agree(|b| {
        let score = b.score(DIM);
        for (by, over) in [(0, Side::Key), (1, Side::Query), (3, Side::Key), (-2, Side::Key), (1000, Side::Query)] {
            let by = b.int(by);
            let moved = b.push(Op::Shift { value: score, by, over }, Kind::Real, MATRIX);
            let larger = b.compare(Comparison::LessEqual, moved, score);
            b.term(Role::Skip, larger);
        }
        for stride in [1, 2, 3, 5] {
            let stride = b.int(stride);
            let sums = b.push(Op::AntiDiagonal { stride }, Kind::Real, MATRIX);
            upper_half(b, sums, Side::Key);
        }
    });
}

#[test]
fn amounts_follow_step_and_head() {
    agree(|b| {
        let weights = b.score(DIM);
        let weights = b.softmax(weights, Side::Key);
        b.graph.tables.push(Table {
            name: "share".to_owned(),
            dims: vec![4],
            width: 1,
            kind: Kind::Real,
            values: vec![0.1, 0.2, 0.7, f64::NAN].into(),
        });
        let head = b.push(Op::Place(Place::Head), Kind::Int, Extent::Scalar);
        let entry = Op::Table { table: 0, item: 0, keys: vec![head], otherwise: None };
        let share = b.push(entry, Kind::Real, Extent::Scalar);
        let kept = b.select(TOP_P, weights, share, Side::Key);
        b.term(Role::Whole, kept);
    });
}

/// Random trees of element-wise operations: whatever LLVM makes of them, the bits stay.
#[test]
fn random_expressions() {
    for seed in 0..12 {
        let mut random = Random(seed + 1000);
        let mut b = Build::default();
        let score = b.score(DIM);
        let rows = b.reduce(Reduction::Sum, score, Side::Key);
        let columns = b.reduce(Reduction::Max, score, Side::Query);
        let mut reals = vec![score, rows, columns];
        let mut truths = vec![b.mask(0, MATRIX), b.mask(1, ROWS), b.mask(2, COLUMNS)];
        for value in [0.37, -1.5, 1e-3] {
            reals.push(b.real(value));
        }
        for _ in 0..40 {
            let (x, y) = (reals[random.below(reals.len())], reals[random.below(reals.len())]);
            let (s, t) = (truths[random.below(truths.len())], truths[random.below(truths.len())]);
            match random.below(8) {
                0 => reals.push(b.binary(Binary::Add, x, y)),
                1 => reals.push(b.binary(Binary::Multiply, x, y)),
                2 => reals.push(b.binary([Binary::Subtract, Binary::Divide][random.below(2)], x, y)),
                3 => reals.push(b.binary([Binary::Min, Binary::Max][random.below(2)], x, y)),
                4 => reals.push(b.unary([Unary::Exp, Unary::Sqrt, Unary::Abs, Unary::Negate][random.below(4)], x)),
                5 => reals.push(b.choose(s, x, y)),
                6 => truths.push(b.compare([Comparison::Less, Comparison::NotEqual][random.below(2)], x, y)),
                _ => truths.push(b.binary([Binary::And, Binary::Xor, Binary::Or][random.below(3)], s, t)),
            }
        }
        for &truth in &truths {
            b.term(Role::Whole, truth);
        }
        for &real in &reals[6..] {
            if b.graph.ty(real).extent == MATRIX {
                upper_half(&mut b, real, Side::Key);
            }
        }
        let evaluators = Evaluators::new(&b.program());
        for (q_blocks, kv_blocks) in [(1, 1), (33, 31), (9, 65)] {
            evaluators.agree(&case(q_blocks, kv_blocks, seed + 1, seed % 2 == 0));
        }
    }
}

#[test]
fn values_that_are_not_finite_are_named_alike() {
    for (statistic, side, name) in [
        (Some(Statistic::Mean), Side::Query, "`q`"),
        (Some(Statistic::CentredMean), Side::Key, "`k`"),
        (None, Side::Key, "`k`"),
    ] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut b = Build::default();
            let zero = b.real(0.0);
            let value = match statistic {
                Some(statistic) => {
                    let q = b.pool(if side == Side::Query { statistic } else { Statistic::Mean }, Side::Query);
                    let k = b.pool(if side == Side::Key { statistic } else { Statistic::Mean }, Side::Key);
                    b.push(Op::Dot(q, k), Kind::Real, MATRIX)
                }
                None => b.similarity(side),
            };
            let above = b.compare(Comparison::Less, zero, value);
            b.term(Role::Whole, above);
            let program = b.program();
            let mut case = case(9, 9, 5, false);
            let values = if side == Side::Query { &mut case.tensors.q } else { &mut case.tensors.k };
            // Two tokens of block 4, so that two largest numbers overflow.
            let first = if side == Side::Query { 16 } else { 12 };
            values[first * DIM + 3] = bad;
            values[(first + 1) * DIM + 3] = bad;
            let input = case.input(&[]);
            let slow = interpret(&program, &input).map_err(|error| error.to_string());
            let fast = Compiled::new(&program, &case.model).unwrap().evaluate(&input);
            assert_eq!(slow, fast.map_err(|error| error.to_string()));
            // A cosine is finite although its numbers are the largest.
            if statistic.is_some() || bad != f32::MAX {
                let message = slow.unwrap_err();
                assert!(message.contains(name) && message.contains("block 4 of head 2"), "{message}");
            }
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let mut b = Build::default();
    let mask = b.mask(1, MATRIX);
    b.term(Role::Skip, mask);
    let score = b.score(DIM);
    let above = b.compare(Comparison::Less, score, score);
    b.term(Role::Skip, above);
    let program = b.program();
    let mut case = case(4, 5, 1, true);
    let compiled = Compiled::new(&program, &case.model).unwrap();
    let masks: Vec<&BitMatrix> = case.masks.iter().collect();
    let message = compiled.evaluate(&case.input(&masks)).unwrap_err().to_string();
    assert_eq!(message, "mask 1 of the selector program has 1 x 4 bits, expected 4 x 5");
    assert_eq!(interpret(&program, &case.input(&masks)).unwrap_err().to_string(), message);
    let message = compiled.evaluate(&case.input(&masks[..1])).unwrap_err().to_string();
    assert_eq!(message, "the selector program asks for mask 1, 1 were given");
    case.tensors.q.pop();
    let message = compiled.evaluate(&case.input(&[])).unwrap_err().to_string();
    assert!(message.starts_with("`q` of a head holds 265 values"), "{message}");
}

#[test]
fn programs_without_meaning_are_refused() {
    type Wrong = fn(&mut Build) -> ValueId;
    let wrong: [Wrong; 5] = [
        |b| b.score(DIM),
        |b| {
            let score = b.score(DIM);
            let power = b.binary(Binary::Power, score, score);
            b.compare(Comparison::Less, power, score)
        },
        |b| {
            let (q, k) = (b.pool(Statistic::Mean, Side::Query), b.pool(Statistic::Mean, Side::Key));
            let dot = b.push(Op::Dot(k, q), Kind::Real, MATRIX);
            b.compare(Comparison::Less, dot, dot)
        },
        |b| {
            let text = b.set("text");
            b.mask(0, Extent::Blocks { q: Some(text), kv: Some(SetId::ALL) })
        },
        |b| {
            let rows = b.mask(0, ROWS);
            b.push(Op::Unary(Unary::Not, rows), Kind::Bool, COLUMNS);
            let share = b.real(0.5);
            let real = b.unary(Unary::ToReal, rows);
            b.select(TOP_K, real, share, Side::Key)
        },
    ];
    for build in wrong {
        let mut b = Build::default();
        let id = build(&mut b);
        b.term(Role::Whole, id);
        let program = b.program();
        let case = case(2, 2, 1, true);
        assert!(Compiled::new(&program, &case.model).is_err());
        assert!(interpret(&program, &case.input(&[])).is_err());
    }
}

#[test]
fn evaluators_may_be_shared_by_threads() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let mut b = Build::default();
    let score = b.score(DIM);
    let zero = b.real(0.0);
    let above = b.compare(Comparison::Less, zero, score);
    b.term(Role::Whole, above);
    let program = b.program();
    let case = case(20, 30, 4, false);
    let evaluator = shared(Evaluator::new(&program, &case.model).unwrap());
    let expected = interpret(&program, &case.input(&[])).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(evaluator.evaluate(&case.input(&[])).unwrap(), expected));
        }
    });
}
