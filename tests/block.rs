//! Whole attention blocks of a session against their composition in double precision: projections, norms, rotary embedding,
//! attention under the symbols in force, forecasts and output projections, at every step.

#[path = "gpu/random.rs"]
#[expect(dead_code, reason = "other tests ask for more kinds of numbers")]
mod random;
mod simulation;

use std::ops::Range;
use std::sync::Arc;

use flashomni::cpu::RotaryPairs;
use flashomni::env;
use flashomni::error::Error;
use flashomni::ir::StepKind;
use flashomni::plan::Plan;
use flashomni::runtime::{
    AttentionBlock, CpuBlock, Linear, Norm, RotaryTable, Session, StreamInput, StreamShape, TokenStream,
};
use flashomni::tensor::{Dtype, Tensor, TensorMut};
use random::Random;
use simulation::{DIM, HEADS, History, all_rows, attend, close, plan, rows_of};

const WIDTH: usize = HEADS * DIM;

/// A block, as random as its inputs.
struct Case {
    streams: Vec<StreamShape>,
    pairs: Option<RotaryPairs>,
    norms: bool,
    biases: bool,
    dtype: Dtype,
}

fn tensor(random: &mut Random, shape: &[usize], scale: f32, dtype: Dtype) -> Tensor {
    let values = random.normal(shape.iter().product()).into_iter().map(|value| scale * value).collect();
    Tensor::from_f32(shape, values).unwrap().cast(dtype)
}

impl Case {
    fn block(&self, random: &mut Random) -> AttentionBlock {
        let dtype = self.dtype;
        let mut linear = |[outputs, inputs]: [usize; 2]| Linear {
            weight: tensor(random, &[outputs, inputs], (inputs as f32).sqrt().recip(), dtype),
            bias: self.biases.then(|| tensor(random, &[outputs], 0.5, dtype)),
        };
        let mut streams: Vec<TokenStream> = Vec::new();
        for StreamShape { tokens, inputs, outputs, further } in self.streams.clone() {
            streams.push(TokenStream {
                tokens,
                q: linear([WIDTH, inputs]),
                k: linear([WIDTH, inputs]),
                v: linear([WIDTH, inputs]),
                out: linear([outputs, WIDTH + further]),
                q_norm: None,
                k_norm: None,
            });
        }
        if self.norms {
            let mut norm = || Some(Norm { weight: tensor(random, &[DIM], 1.0, dtype), eps: 1e-6 });
            streams.iter_mut().for_each(|stream| (stream.q_norm, stream.k_norm) = (norm(), norm()));
        }
        let tokens = streams.last().unwrap().tokens.end;
        let rotary = self.pairs.map(|pairs| {
            let angles = random.normal(tokens * DIM / 2).into_iter().flat_map(|angle| [angle.cos(), angle.sin()]);
            let angles = Tensor::from_f32(&[tokens, DIM / 2, 2], angles.collect()).unwrap();
            Arc::new(RotaryTable { angles, pairs })
        });
        AttentionBlock::new(HEADS, DIM, streams, rotary).unwrap()
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.as_ref().to_f32().into_iter().map(f64::from).collect()
}

/// `x weight^T + bias` over some columns of the weight.
fn project(x: &[f64], linear: &Linear, columns: Range<usize>, with_bias: bool) -> Vec<f64> {
    let [outputs, inputs] = linear.weight.shape().try_into().unwrap();
    let (weight, bias) = (numbers(&linear.weight), linear.bias.as_ref().filter(|_| with_bias).map(numbers));
    let rows = x.chunks_exact(columns.len().max(1));
    let row = |x: &[f64]| -> Vec<f64> {
        let one = |out: usize| {
            let weight = &weight[out * inputs..][columns.clone()];
            x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>() + bias.as_ref().map_or(0.0, |bias| bias[out])
        };
        (0..outputs).map(one).collect()
    };
    rows.flat_map(row).collect()
}

/// A row of a head behind its norm and its rotary embedding.
fn finished(row: &mut [f64], token: usize, norm: Option<&Norm>, rotary: Option<&RotaryTable>) {
    if let Some(Norm { weight, eps }) = norm {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / DIM as f64 + f64::from(*eps);
        row.iter_mut().zip(numbers(weight)).for_each(|(x, weight)| *x *= weight / mean.sqrt());
    }
    let Some(RotaryTable { angles, pairs }) = rotary else { return };
    let angles = angles.as_ref().to_f32();
    for pair in 0..DIM / 2 {
        let (first, second) = match pairs {
            RotaryPairs::Interleaved => (2 * pair, 2 * pair + 1),
            RotaryPairs::Halves => (pair, pair + DIM / 2),
        };
        let [cos, sin] = [0, 1].map(|part| f64::from(angles[(token * DIM / 2 + pair) * 2 + part]));
        let (a, b) = (row[first], row[second]);
        (row[first], row[second]) = (a * cos - b * sin, a * sin + b * cos);
    }
}

/// q, k and v `[heads, tokens, head_dim]` of inputs.
fn heads(block: &AttentionBlock, inputs: &[Tensor], tokens: usize) -> [Vec<f64>; 3] {
    let mut all = [(); 3].map(|()| vec![0.0; HEADS * tokens * DIM]);
    for (stream, x) in block.streams().iter().zip(inputs) {
        let parts = [(&stream.q, &stream.q_norm), (&stream.k, &stream.k_norm), (&stream.v, &None)];
        for (index, (linear, norm)) in parts.into_iter().enumerate() {
            let rows = project(&numbers(x), linear, 0..x.shape()[1], true);
            for (row, token) in rows.chunks_exact(WIDTH).zip(stream.tokens.clone()) {
                for (head, part) in row.chunks_exact(DIM).enumerate() {
                    let target = &mut all[index][(head * tokens + token) * DIM..][..DIM];
                    target.copy_from_slice(part);
                    if index < 2 {
                        finished(target, token, norm.as_ref(), block.rotary().map(|rotary| &**rotary));
                    }
                }
            }
        }
    }
    all
}

/// Runs a generation of a layer and compares each step with the composition; gives the kinds of the steps.
fn compare(plan: &Plan, case: &Case, order: usize) -> Vec<StepKind> {
    let mut random = Random::fresh();
    println!("{}={}", env::SEED.name, random.seed());
    let block = case.block(&mut random);
    let packed = CpuBlock::new(&block).unwrap();
    let tokens = plan.model.tokens() as usize;
    let mut series = |channels: fn(&StreamShape) -> usize| -> Vec<[Tensor; 2]> {
        let mut pair = |stream: &StreamShape| {
            let shape = [stream.tokens.len(), channels(stream)];
            [1.0, 0.05].map(|scale| tensor(&mut random, &shape, scale, Dtype::F32))
        };
        case.streams.iter().map(&mut pair).collect()
    };
    let (x, further) = (series(|stream| stream.inputs), series(|stream| stream.further));
    let at = |series: &[[Tensor; 2]], step: u32| -> Vec<Tensor> {
        let mix = |[base, drift]: &[Tensor; 2]| {
            let (base, drift, shape) = (base.as_ref().to_f32(), drift.as_ref().to_f32(), base.shape());
            let values = base.iter().zip(drift).map(|(a, b)| a + step as f32 * b).collect();
            Tensor::from_f32(shape, values).unwrap().cast(case.dtype)
        };
        series.iter().map(mix).collect()
    };
    let mut session = Session::new(plan.clone()).unwrap();
    let mut features = History::default();
    let mut outputs: Vec<History> = block.streams().iter().map(|_| History::default()).collect();
    let (mut lost, mut kinds) = (Vec::new(), Vec::new());
    for step in 0..plan.model.steps {
        let (x, further) = (at(&x, step), at(&further, step));
        let inputs: Vec<StreamInput<'_>> = x
            .iter()
            .zip(&further)
            .map(|(x, further)| StreamInput {
                x: x.as_ref(),
                further: (further.shape()[1] > 0).then(|| further.as_ref()),
            })
            .collect();
        let poisoned = |StreamShape { tokens, outputs, .. }: &StreamShape| {
            Tensor::from_f32(&[tokens.len(), *outputs], vec![f32::NAN; tokens.len() * outputs]).unwrap()
        };
        let mut out: Vec<Tensor> = case.streams.iter().map(poisoned).collect();
        let mut targets: Vec<TensorMut<'_>> = out.iter_mut().map(Tensor::as_mut).collect();
        let kind = session.begin(step, 0).unwrap().block(&packed, &inputs, &[], &mut targets).unwrap().kind;
        assert_eq!(kind, plan.schedule.kind(step, 0), "step {step}");
        let qkv = heads(&block, &x, tokens);
        let rows = session.symbols(0).map(|symbols| rows_of(plan, symbols));
        let o = match kind {
            StepKind::Dense | StepKind::Update => attend(&qkv, &all_rows(tokens), |_| 0.0),
            StepKind::Refresh | StepKind::Dispatch => {
                let cached = if features.0.is_empty() { Vec::new() } else { features.forecast(step, order) };
                attend(&qkv, rows.as_ref().unwrap(), |index| cached[index])
            }
            StepKind::Residual => {
                let sparse = attend(&qkv, rows.as_ref().unwrap(), |_| f64::NAN);
                sparse.iter().zip(&lost).map(|(sparse, lost)| sparse + lost).collect()
            }
            StepKind::Reuse(_) => Vec::new(),
            StepKind::Shared => unreachable!("no strategy here has two branches"),
        };
        if kind == StepKind::Update {
            features.0.push((step, o.clone()));
            let sparse = rows.as_ref().map(|rows| attend(&qkv, rows, |index| o[index]));
            lost = o.iter().zip(sparse.iter().flatten()).map(|(full, sparse)| full - sparse).collect::<Vec<f64>>();
        }
        for (index, stream) in block.streams().iter().enumerate() {
            let attended = if kind.is_reuse() {
                outputs[index].forecast(step, order)
            } else {
                let by_token = stream.tokens.clone().flat_map(|token| {
                    (0..HEADS).flat_map(move |head| (0..DIM).map(move |i| (head * tokens + token) * DIM + i))
                });
                let rows: Vec<f64> = by_token.map(|at| o[at]).collect();
                let attended = project(&rows, &stream.out, 0..WIDTH, true);
                outputs[index].0.push((step, attended.clone()));
                attended
            };
            let columns = WIDTH..stream.out.weight.shape()[1];
            let added = if columns.is_empty() {
                vec![0.0; attended.len()]
            } else {
                project(&numbers(&further[index]), &stream.out, columns, false)
            };
            let wanted: Vec<f64> = attended.iter().zip(added).map(|(a, b)| a + b).collect();
            close(out[index].as_ref(), &wanted, &format!("step {step}, {kind:?}, stream {index}"));
        }
        kinds.push(kind);
    }
    kinds
}

fn shape(tokens: Range<usize>, [inputs, outputs, further]: [usize; 3]) -> StreamShape {
    StreamShape { tokens, inputs, outputs, further }
}

fn two_streams() -> Case {
    Case {
        streams: vec![shape(0..21, [24, 20, 0]), shape(21..120, [40, 56, 0])],
        pairs: Some(RotaryPairs::Interleaved),
        norms: true,
        biases: true,
        dtype: Dtype::F32,
    }
}

/// As in the second half of FLUX: one stream, whose output projection is that of the feed-forward network too.
fn one_stream() -> Case {
    Case { streams: vec![shape(0..120, [32, 48, 72])], pairs: Some(RotaryPairs::Halves), ..two_streams() }
}

const TOKENS: &str = "text(21) ++ image(h = 9, w = 11)";

fn count(kinds: &[StepKind], kind: StepKind) -> usize {
    kinds.iter().filter(|found| **found == kind).count()
}

#[test]
fn cached_blocks_and_forecasts() {
    let rules = "layout text ++ image(h, w)
        block 16
        schedule { dense while step < 2; update every 4; dense on last }
        let map = softmax(dot(mean(q), mean(k)) / sqrt(head_dim))
        cache image where bottom_mass(softmax(sum(map[image -> text], over = k), over = q), 0.5, over = q) as taylor(1)
        skip all -> all where bottom_mass(map, 0.3)";
    for case in [two_streams(), one_stream()] {
        let kinds = compare(&plan(TOKENS, 12, rules), &case, 1);
        assert_eq!([StepKind::Dense, StepKind::Update, StepKind::Dispatch].map(|kind| count(&kinds, kind)), [3, 3, 6]);
    }
}

#[test]
fn refreshed_symbols() {
    let rules = "layout text ++ image(h, w)
        block 16
        schedule { refresh every 3 }
        keep text <-> all
        keep image -> image where top_k(dot(mean(q), mean(k)), 30%)";
    for case in [two_streams(), Case { norms: false, biases: false, pairs: None, dtype: Dtype::Bf16, ..one_stream() }] {
        let kinds = compare(&plan(TOKENS, 7, rules), &case, 0);
        assert!(count(&kinds, StepKind::Refresh) >= 2 && count(&kinds, StepKind::Dispatch) >= 3, "{kinds:?}");
    }
}

#[test]
fn reused_layers_and_residuals() {
    let reuse = "schedule { dense every 3 reuse as taylor(2) }";
    let residual = "layout text ++ image(h, w)
        block 16
        schedule { update every 3; dispatch as residual }
        keep text <-> all
        keep image -> image where abs(pos(q) - pos(k)) <= 20 lower exact";
    for case in [two_streams(), one_stream()] {
        let kinds = compare(&plan(TOKENS, 10, reuse), &case, 2);
        assert!(kinds.iter().filter(|kind| kind.is_reuse()).count() >= 6, "{kinds:?}");
        let kinds = compare(&plan(TOKENS, 7, residual), &case, 0);
        assert!(count(&kinds, StepKind::Residual) >= 4, "{kinds:?}");
    }
}

#[test]
fn orders_of_tokens() {
    let rules = "layout text ++ image(h, w)
        block 16
        order tiles(3, 4)
        schedule { update every 3 }
        heads [0, 2] { cache image where block(q) < 4 as taylor(1) }
        heads rest { keep text <-> all keep image -> image where abs(h(q) - h(k)) <= 3 }";
    for case in [two_streams(), one_stream()] {
        compare(&plan(TOKENS, 7, rules), &case, 1);
    }
}

#[test]
fn wrong_blocks_and_inputs_are_one_sentence() {
    let mut random = Random::fresh();
    let block = one_stream().block(&mut random);
    let stream = &block.streams()[0];
    let refused = |streams: Vec<TokenStream>| AttentionBlock::new(HEADS, DIM, streams, None).unwrap_err().to_string();
    let gap = TokenStream { tokens: 3..120, ..stream.clone() };
    assert_eq!(refused(vec![gap]), "a stream has the tokens 3..120, wanted some that begin at 0");
    let narrow = Linear { weight: Tensor::zeros(&[8, 63], Dtype::F32), bias: None };
    let narrow = TokenStream { out: narrow, ..stream.clone() };
    assert_eq!(refused(vec![narrow]), "`out.weight` has 63 columns, wanted 64 at least");
    let other = Linear { weight: Tensor::zeros(&[64, 31], Dtype::F32), bias: None };
    let other = TokenStream { k: other, ..stream.clone() };
    assert_eq!(refused(vec![other]), "`k.weight` has the shape [64, 31], wanted the shape [64, 32]");
    assert_eq!(refused(Vec::new()), "a block without streams has no tokens");

    let mut session = Session::new(plan(TOKENS, 2, "schedule { dense while step < 2 }")).unwrap();
    let packed = CpuBlock::new(&block).unwrap();
    let (x, mut out) = (Tensor::zeros(&[120, 32], Dtype::F32), Tensor::zeros(&[120, 48], Dtype::F32));
    let mut step = session.begin(0, 0).unwrap();
    let error = step.block(&packed, &[StreamInput::of(x.as_ref())], &[], &mut [out.as_mut()]).unwrap_err();
    assert_eq!(error.to_string(), "tokens 0..120 came without further inputs, the block has 72 of them");
    let error = step.block(&packed, &[], &[], &mut [out.as_mut()]).unwrap_err();
    assert_eq!(error.to_string(), "0 inputs and 1 outputs were given for 1 streams of the block");
    let mut session = Session::new(plan("text(7)", 2, "schedule { dense while step < 2 }")).unwrap();
    let error = session.begin(0, 0).unwrap().block(&packed, &[], &[], &mut []).unwrap_err();
    assert!(matches!(&error, Error::Shape(text) if text.contains("[4, 16, 120]")), "{error}");
}
