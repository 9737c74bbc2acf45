//! Input that is far too large or makes no sense: refused in a sentence, soon, without using up the machine.
//!
//! Malformed texts are in `tests/errors` and `tests/syntax`, broken files beside the code that reads them, and what the
//! command says in `tests/cli.rs`.

use std::time::{Duration, Instant};

use flashomni::Compiler;
use flashomni::check::InputTensor;
use flashomni::ir::Kind;
use flashomni::runtime::Session;
use flashomni::tensor::{Dtype, Tensor};

/// Far more than any of these needs; a runaway would take hours or all memory.
const SOON: Duration = Duration::from_secs(60);

/// The messages of a text that must be refused.
fn refused(text: impl Into<Vec<u8>>) -> String {
    let start = Instant::now();
    let error = Compiler::from_source("bad.omni", text).compile().expect_err("refused").to_string();
    assert!(start.elapsed() < SOON, "{:?} for\n{error}", start.elapsed());
    error
}

fn model(fields: &str) -> String {
    format!("model m {{ {fields} }}\nstrategy s {{ keep all -> all where pos(q) >= pos(k) }}")
}

#[test]
fn a_hundred_megabytes_of_source() {
    let found = refused(vec![b' '; 100 << 20]);
    assert!(found.contains("E0309") || found.contains("E0105"), "{found}");
    assert!(found.contains("16"), "the limit is named: {found}");
}

#[test]
fn sizes_beyond_the_limits() {
    for (fields, wanted) in [
        ("layers 0 heads 2 head_dim 16 steps 2 tokens a(64)", "E0307"),
        ("layers 2 heads 0 head_dim 16 steps 2 tokens a(64)", "E0307"),
        ("layers 2 heads 2 head_dim 16 steps 2 tokens a(0)", "E0307"),
        ("layers 2 heads 2 head_dim 16 steps 2 tokens a(64, valid = 65)", "E0307"),
        ("layers 2 heads 2 head_dim 16 steps 2 tokens a(h = 0, w = 4)", "E0307"),
        ("layers 99999999999999999999 heads 2 head_dim 16 steps 2 tokens a(64)", "E0104"),
        ("layers 2 heads 2 head_dim 16 steps 2 tokens a(h = 1048576, w = 1048576)", "E0309"),
        ("layers 4096 heads 1024 head_dim 16 steps 10000 tokens a(64)", "E03"),
    ] {
        let found = refused(model(fields));
        assert!(found.contains(wanted), "{fields}: {found}");
    }
}

#[test]
fn more_blocks_than_a_bitmap_may_have() {
    let text = "model m { layers 1 heads 1 head_dim 16 steps 1 tokens a(1048576) }
                strategy s { block 16 keep all -> all where pos(q) >= pos(k) }";
    let found = refused(text);
    assert!(found.contains("E0309") && found.contains("16384"), "{found}");
}

#[test]
fn arithmetic_without_a_result() {
    let wrap = |rule: &str| {
        format!("model m {{ layers 1 heads 1 head_dim 16 steps 3 tokens a(64) }}\nstrategy s {{ block 16 {rule} }}")
    };
    // Saturating and total: each of these has a meaning, none may panic.
    for rule in [
        "keep all -> all where pos(q) div 0 == pos(k) mod 0",
        "keep all -> all where pos(q) * 9223372036854775807 > pos(k) - 9223372036854775807 - 9223372036854775807",
        "keep all -> all where 2 ^ 100000 > pos(q)",
        "keep all -> all where sqrt(-1.0) < 1.0 or log(0.0) < pos(k)",
        "keep all -> all where pos(q) xor pos(k) < bit_length(pos(q))",
        "keep all -> all where top_k(dot(mean(q), mean(k)) / 0.0, 3)",
        "schedule { dense every 9223372036854775807 from 9223372036854775807 }",
    ] {
        let compiled = Compiler::from_source("odd.omni", wrap(rule)).compile();
        assert!(compiled.is_ok(), "{rule}: {}", compiled.unwrap_err());
    }
}

#[test]
fn lengths_that_are_no_multiple_of_a_block() {
    let text = "model m { layers 1 heads 3 head_dim 7 steps 2 tokens text(13) ++ image(h = 5, w = 9) }
                strategy s {
                    layout text ++ image(h, w)
                    block 16 x 48
                    keep text <-> all
                    keep image -> image where top_k(dot(mean(q), mean(k)), 1)
                }";
    let plan = flashomni::compile(text).unwrap();
    let mut session = Session::new(plan).unwrap();
    let tensor =
        |x: f32| Tensor::from_f32(&[3, 58, 7], (0..3 * 58 * 7).map(|i| (i as f32 * x).sin()).collect()).unwrap();
    let [q, k, v] = [0.3, 0.7, 1.1].map(tensor);
    let mut out = Tensor::from_f32(&[3, 58, 7], vec![f32::NAN; 3 * 58 * 7]).unwrap();
    session.attention(0, 0, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut()).unwrap();
    assert!(out.as_ref().to_f32().iter().all(|value| value.is_finite()), "every token has an output");
    let wrong = Tensor::zeros(&[3, 57, 7], Dtype::F32);
    let error = session.attention(1, 0, wrong.as_ref(), k.as_ref(), v.as_ref(), out.as_mut()).unwrap_err();
    assert!(error.to_string().contains("`q` has the shape [3, 57, 7]"), "{error}");
}

#[test]
fn infinities_are_named_where_blocks_are_chosen() {
    let text = "model m { layers 1 heads 1 head_dim 4 steps 1 tokens a(64) }
                strategy s { block 16 keep all -> all where top_k(dot(mean(q), mean(k)), 2) }";
    let mut session = Session::new(flashomni::compile(text).unwrap()).unwrap();
    let fine = Tensor::zeros(&[1, 64, 4], Dtype::F32);
    let mut values = vec![0.0; 256];
    values[4 * 40] = f32::INFINITY;
    let wrong = Tensor::from_f32(&[1, 64, 4], values).unwrap();
    let mut out = Tensor::zeros(&[1, 64, 4], Dtype::F32);
    let error = session.attention(0, 0, fine.as_ref(), wrong.as_ref(), fine.as_ref(), out.as_mut()).unwrap_err();
    assert!(error.to_string().starts_with("`k` is NaN, infinite or too large in block 2 of head 0"), "{error}");
}

/// A small model and a strategy of it, the last declaration.
fn small(declarations: &str, body: &str) -> String {
    format!(
        "model m {{ layers 2 heads 2 head_dim 16 steps 4 tokens a(64) }}\n{declarations}\nstrategy s {{ block 16\n{body}\n}}"
    )
}

#[test]
fn values_that_share_their_operands_are_not_written_out() {
    // As a tree each of these has 2^60 values.
    let doubled = |first: &str, op: &str| {
        let mut text = format!("let x0 = {first}\n");
        (1..60).for_each(|i| text += &format!("let x{i} = x{} {op} x{}\n", i - 1, i - 1));
        text
    };
    for body in [
        doubled("step", "+") + "when x59 > 3 { keep all -> all where pos(q) >= pos(k) }",
        doubled("layer", "+") + "schedule { dense while x59 > 3 }",
        doubled("pos(q) - pos(k)", "+") + "keep all -> all where x59 > 3",
        doubled("pos(q) - pos(k)", "+") + "keep all -> all where x59 > 3 lower exact",
        doubled("head", "-") + "keep all -> all where top_k(dot(mean(q), mean(k)), min(x59, 2) + 1)",
    ] {
        assert!(refused(small("", &body)).contains("E0309"), "{body}");
    }
    let mixed = doubled("pos(q) > pos(k) or top_k(dot(mean(q), mean(k)), 2)", "and") + "keep all -> all where x59";
    assert!(refused(small("", &mixed)).contains("E0309"));
}

#[test]
fn texts_that_describe_long_computations() {
    let mut tuples = "let t0 = (1, 2)\n".to_owned();
    (1..40).for_each(|i| tuples += &format!("let t{i} = (t{}, t{})\n", i - 1, i - 1));
    let mut lists = "let t0 = [1, 2]\n".to_owned();
    (1..40).for_each(|i| lists += &format!("let t{i} = [t{}, t{}]\n", i - 1, i - 1));
    let mut chain = "let x0 = step\n".to_owned();
    (1..100_000).for_each(|i| chain += &format!("let x{i} = x{} + 1\n", i - 1));
    let used_twice: String =
        (0..40).map(|i| format!("strategy a{i} {{ use a{} use a{} }}\n", i + 1, i + 1)).collect::<String>()
            + "strategy a40 { keep all -> all }";
    let used_deeply: String = (0..50_000).map(|i| format!("strategy a{i} {{ use a{} }}\n", i + 1)).collect::<String>()
        + "strategy a50000 { keep all -> all }";
    let layout = (0..100_000).map(|i| format!("a{i}")).collect::<Vec<_>>().join(" ++ ");
    let rests = "heads [0] { keep all -> all }\n".repeat(20_000) + &"heads rest { keep all -> all }\n".repeat(20_000);
    for (declarations, body, limit) in [
        ("", tuples.as_str(), "16"),
        ("", &lists, "10000"),
        ("", &chain, "1000"),
        (&used_twice, "use a0", "8388608"),
        (&used_deeply, "use a0", "64"),
        ("", &format!("layout {layout}"), "64"),
        ("", &rests, "8388608"),
    ] {
        let found = refused(small(declarations, body));
        assert!(found.contains("E0309") && found.contains(limit), "{limit}: {:.400}", found);
    }
}

#[test]
fn inputs_that_do_not_fill_their_shape() {
    let text = "model m { layers 2 heads 2 head_dim 16 steps 4 tokens a(64) }
        strategy s { let x = input(\"x\", steps, kind = real) schedule { reuse while step > 0 and x(step) < 1.0 } }";
    let with = |count: usize| {
        let values = vec![0.5; count];
        let input = InputTensor { shape: vec![4], kind: Kind::Real, values };
        Compiler::from_source("input.omni", text).input("x", input).compile()
    };
    assert!(with(4).is_ok());
    for count in [0, 3, 5] {
        let found = with(count).expect_err("refused").to_string();
        assert!(found.contains("E0305") && found.contains(&format!("[4] and {count} numbers")), "{found}");
    }
}

#[test]
fn many_mistakes_are_not_all_shown() {
    let unknown: String = (0..5_000).map(|i| format!("let x{i} = nothing{i}\n")).collect();
    let start = Instant::now();
    let found = Compiler::from_source("many.omni", small("", &unknown)).check();
    assert_eq!(found.list.len(), flashomni::diagnostics::MAX_FINDINGS);
    assert!(found.has_errors() && start.elapsed() < SOON);
}

#[test]
fn models_at_the_limits() {
    let compile = |fields: &str, body: &str| {
        let text = format!("model m {{ {fields} }}\nstrategy s {{ block 16\n{body}\n}}");
        let start = Instant::now();
        let compiled = Compiler::from_source("limits.omni", text).compile();
        assert!(start.elapsed() < SOON, "{:?}: {body}", start.elapsed());
        compiled.map(|compiled| compiled.plan).map_err(|error| error.to_string())
    };
    // Almost 2^24 places each, the most there are.
    for fields in [
        "layers 1 heads 1024 head_dim 16 steps 10000 tokens a(64)",
        "layers 1677 heads 1 head_dim 16 steps 10000 tokens a(64)",
        "layers 4096 heads 1024 head_dim 16 steps 4 tokens a(64)",
    ] {
        let schedule = "schedule { update on first dense while step < 2 update every 3 }";
        compile(fields, &format!("{schedule} cache all as taylor(1)")).unwrap();
    }
    let many =
        "when (step * 7 + layer * 5 + head * 3) mod 2 == 0 { keep all -> all where pos(q) >= pos(k) }\n".repeat(400);
    let found = compile("layers 4096 heads 1024 head_dim 16 steps 4 tokens a(64)", &many).expect_err("too much");
    assert!(found.contains("E0309") && found.contains("4294967296"), "{found}");
}
