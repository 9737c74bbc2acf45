//! Input that is far too large or makes no sense: refused in a sentence, soon, without using up the machine.
//!
//! Malformed texts are in `tests/errors` and `tests/syntax`, broken files beside the code that reads them, and what the
//! command says in `tests/cli.rs`.

use std::time::{Duration, Instant};

use flashomni::Compiler;
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
