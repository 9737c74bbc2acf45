//! Selections of published implementations, rebuilt from q and k with the operations of selector programs, bit for bit.
//!
//! Each file of `tests/goldens` holds inputs, the mask that the published code computed, and its provenance.

mod programs;

use std::path::Path;

use flashomni::ir::{Binary, Comparison, Kind, Op, Rounding, Selector, Side, Statistic, Unary, ValueId};
use flashomni::plan::Role;
use flashomni::reference::selector::interpret;
use flashomni::selector::{Compiled, HeadTensors};
use flashomni::symbols::{BitMatrix, Blocks};
use programs::{Build, COLUMNS, Case, MATRIX, ROWS, TOP_P, model};
use safetensors::SafeTensors;
use serde_json::Value;

struct Golden {
    bytes: Vec<u8>,
    parameters: Value,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{name}.safetensors"));
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let parameters = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["parameters"]).unwrap();
        Golden { bytes, parameters }
    }

    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    fn number(&self, name: &str) -> f64 {
        self.parameters[name].as_f64().unwrap()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let (_, bytes) = self.tensor(name);
        bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }

    /// The values of one head, in the order `order[new] = old`.
    fn head(&self, name: &str, head: usize, order: Option<&[usize]>) -> Vec<f32> {
        let (shape, bytes) = self.tensor(name);
        let (tokens, dim) = (shape[1], shape[2]);
        let head = &bytes[head * tokens * dim..(head + 1) * tokens * dim];
        (0..tokens)
            .flat_map(|new| {
                let old = order.map_or(new, |order| order[new]);
                head[old * dim..(old + 1) * dim].iter().map(|&byte| f32::from(byte as i8) / 8.0)
            })
            .collect()
    }

    /// The rows of one head of a byte tensor.
    fn bits(&self, name: &str, head: usize) -> BitMatrix {
        let (shape, bytes) = self.tensor(name);
        let (rows, columns) = if shape.len() == 3 { (shape[1], shape[2]) } else { (1, shape[1]) };
        matrix(rows, columns, &bytes[head * rows * columns..(head + 1) * rows * columns])
    }

    fn heads(&self) -> usize {
        self.tensor("mask").0[0]
    }
}

fn matrix(rows: usize, columns: usize, bytes: &[u8]) -> BitMatrix {
    let mut bits = BitMatrix::zeros(rows, columns);
    for (index, &byte) in bytes.iter().enumerate() {
        bits.set(index / columns, index % columns, byte != 0);
    }
    bits
}

/// Evaluates a program for every head; all evaluators must agree. `check` gets the union of terms and each term.
fn run(
    golden: &Golden,
    blocks: &Blocks,
    order: Option<&[usize]>,
    mask: Option<&BitMatrix>,
    build: impl Fn(&mut Build, usize),
    check: impl Fn(usize, &BitMatrix, &[BitMatrix]),
) {
    let dim = golden.tensor("q_x8").0[2];
    let mut b = Build::default();
    build(&mut b, dim);
    let program = b.program();
    let tokens = *blocks.q.last().unwrap() as usize;
    let compiled = Compiled::new(&program, &model(&[("video", tokens)])).unwrap();
    for head in 0..golden.heads() {
        let case = Case {
            model: model(&[("video", tokens)]),
            blocks: blocks.clone(),
            masks: mask.into_iter().cloned().collect(),
            tensors: HeadTensors {
                q: golden.head("q_x8", head, order),
                k: golden.head("k_x8", head, order),
                ..HeadTensors::default()
            },
            dim,
        };
        let masks: Vec<&BitMatrix> = case.masks.iter().collect();
        let found = interpret(&program, &case.input(&masks)).unwrap();
        assert_eq!(compiled.evaluate(&case.input(&masks)).unwrap(), found, "head {head}");
        let mut union = BitMatrix::zeros(blocks.q_blocks(), blocks.kv_blocks());
        for ((role, _), term) in program.terms.iter().zip(&found) {
            if *role == Role::Whole {
                union.union(term);
            }
        }
        check(head, &union, &found);
    }
}

#[test]
fn video_sparse_attention() {
    for name in ["vsa-a", "vsa-b"] {
        let golden = Golden::read(name);
        let order = golden.integers("order");
        let mut offsets = vec![0_u32];
        for size in golden.integers("block_sizes") {
            offsets.push(offsets[offsets.len() - 1] + size as u32);
        }
        let blocks = Blocks { q: offsets.clone(), kv: offsets };
        let share = 1.0 - golden.number("sparsity");
        let build = |b: &mut Build, dim| {
            let score = b.score(dim);
            let (share, one) = (b.real(share), b.int(1));
            let rule = Selector::TopK { rounding: Rounding::Ceil, ties: false };
            let kept = b.select_at_least(rule, score, share, Some(one), Side::Key);
            b.term(Role::Whole, kept);
        };
        run(&golden, &blocks, Some(&order), None, build, |head, union, _| {
            assert_eq!(*union, golden.bits("mask", head), "{name}, head {head}");
        });
    }
}

#[test]
fn nabla() {
    for name in ["nabla-a", "nabla-b"] {
        let golden = Golden::read(name);
        let tokens = golden.tensor("q_x8").0[1];
        let block = golden.number("block") as usize;
        let blocks = Blocks::regular(tokens, tokens, block, block);
        let (shape, bytes) = golden.tensor("window");
        let window = matrix(shape[0], shape[1], &bytes);
        let build = |b: &mut Build, dim| {
            let score = b.score(dim);
            let weights = b.softmax(score, Side::Key);
            let p = b.real(golden.number("p"));
            let rule = Selector::TopP { crossing: false, ascending: true, strict: false };
            let kept = b.select(rule, weights, p, Side::Key);
            b.term(Role::Whole, kept);
            let window = b.mask(0, MATRIX);
            b.term(Role::Whole, window);
        };
        run(&golden, &blocks, None, Some(&window), build, |head, union, _| {
            assert_eq!(*union, golden.bits("mask", head), "{name}, head {head}");
        });
    }
}

#[test]
fn sparse_linear_attention() {
    for name in ["sla-a", "sla-b"] {
        let golden = Golden::read(name);
        let tokens = golden.tensor("q_x8").0[1];
        let block = |side: &str| golden.number(side) as usize;
        let blocks = Blocks::regular(tokens, tokens, block("block_q"), block("block_k"));
        let build = |b: &mut Build, _| {
            let (q, k) = (b.pool(Statistic::Mean, Side::Query), b.pool(Statistic::CentredMean, Side::Key));
            let score = b.push(Op::Dot(q, k), Kind::Real, MATRIX);
            let share = b.real(golden.number("ratio"));
            let kept = b.select(Selector::TopK { rounding: Rounding::Floor, ties: false }, score, share, Side::Key);
            b.term(Role::Whole, kept);
        };
        run(&golden, &blocks, None, None, build, |head, union, _| {
            assert_eq!(*union, golden.bits("mask", head), "{name}, head {head}");
        });
    }
}

#[test]
fn flashomni_skipping() {
    for name in ["flashomni-flux-a", "flashomni-flux-b"] {
        let golden = Golden::read(name);
        let tokens = golden.tensor("q_x8").0[1];
        let block = golden.number("block") as usize;
        let blocks = Blocks::regular(tokens, tokens, block, block);
        let build = |b: &mut Build, dim| {
            let score = b.score(dim);
            let weights = b.softmax(score, Side::Key);
            let (tau, factor) = (b.real(golden.number("tau_kv")), b.real(golden.number("factor")));
            let amount = b.push(Op::Binary(Binary::Multiply, tau, factor), Kind::Real, flashomni::ir::Extent::Scalar);
            let skipped = b.select(Selector::BottomMass, weights, amount, Side::Key);
            let kept = b.unary(Unary::Not, skipped);
            b.term(Role::Whole, kept);
        };
        run(&golden, &blocks, None, None, build, |head, union, _| {
            assert_eq!(*union, golden.bits("mask", head), "{name}, head {head}");
        });
    }
}

/// Block map of SpargeAttn: blocks that are not similar to themselves are never skipped.
fn sparge(name: &str, select: impl Fn(&mut Build, &Golden, ValueId) -> ValueId) {
    let golden = Golden::read(name);
    let tokens = golden.tensor("q_x8").0[1];
    let block = |side: &str| golden.number(side) as usize;
    let blocks = Blocks::regular(tokens, tokens, block("block_q"), block("block_k"));
    let mut sink = BitMatrix::zeros(1, blocks.kv_blocks());
    sink.set(0, 0, golden.parameters["sink"].as_bool().unwrap());
    let build = |b: &mut Build, dim| {
        let bound = b.real(golden.number("similarity"));
        let (q, k) = (b.similarity(Side::Query), b.similarity(Side::Key));
        let q = b.compare(Comparison::Less, bound, q);
        let k = b.compare(Comparison::Less, bound, k);
        let score = b.score(dim);
        let lowest = b.real(f64::NEG_INFINITY);
        let masked = b.choose(k, score, lowest);
        let weights = b.softmax(masked, Side::Key);
        let kept = select(b, &golden, weights);
        b.term(Role::Whole, kept);
        for similar in [q, k] {
            let always = b.unary(Unary::Not, similar);
            b.term(Role::Whole, always);
        }
        let sink = b.mask(0, COLUMNS);
        b.term(Role::Whole, sink);
        assert_eq!(b.graph.ty(q).extent, ROWS);
        b.term(Role::Cache, q);
    };
    run(&golden, &blocks, None, Some(&sink), build, |head, union, terms| {
        assert_eq!(terms[4], golden.bits("q_similar", head), "{name}, head {head}");
        let similar = golden.bits("k_similar", head);
        assert!((0..similar.columns()).all(|column| terms[2].get(0, column) != similar.get(0, column)));
        assert_eq!(*union, golden.bits("mask", head), "{name}, head {head}");
    });
}

#[test]
fn sparge_top_k() {
    for name in ["sparge-topk-a", "sparge-topk-b"] {
        sparge(name, |b, golden, weights| {
            // The original rounds the share to single precision before the product.
            let share = b.real(f64::from(golden.number("topk") as f32));
            let one = b.int(1);
            b.select_at_least(
                Selector::TopK { rounding: Rounding::Floor, ties: false },
                weights,
                share,
                Some(one),
                Side::Key,
            )
        });
    }
}

#[test]
fn sparge_top_p() {
    for name in ["sparge-cdf-a", "sparge-cdf-b"] {
        sparge(name, |b, golden, weights| {
            let (mass, one) = (b.real(golden.number("cdf")), b.int(1));
            b.select_at_least(TOP_P, weights, mass, Some(one), Side::Key)
        });
    }
}
