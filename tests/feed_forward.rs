//! Feed-forward networks under symbols: experts for heads, on the same two projections as attention.

mod programs;

use flashomni::Compiler;
use flashomni::cpu::Weight;
use flashomni::plan::Plan;
use flashomni::runtime::{LayerSymbols, Selection, Session, Tensors};
use flashomni::tensor::{Dtype, Tensor, TensorRef};

use programs::Random;

const IN: usize = 24;
const OUT: usize = 20;

fn plan(file: &str, strategy: &str, params: &[(&str, &str)], shape: &[(&str, &str)]) -> Plan {
    let path = format!("{}/examples/strategies/{file}.omni", env!("CARGO_MANIFEST_DIR"));
    let compiler = Compiler::from_file(path.as_ref()).unwrap().strategy(strategy);
    let compiler = params.iter().fold(compiler, |compiler, (name, value)| compiler.param(*name, *value));
    let compiler = shape.iter().fold(compiler, |compiler, (name, value)| compiler.shape(*name, *value));
    compiler.compile().unwrap().plan
}

fn tensor(random: &mut Random, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|_| random.real(1.0)).collect();
    Tensor::from_f32(shape, values).unwrap()
}

/// `[heads][q_blocks]`: what the projections compute.
fn live(symbols: &LayerSymbols) -> Vec<Vec<bool>> {
    let [group] = symbols.groups.as_slice() else { panic!("one group of heads") };
    let rows = group.symbols.live_rows();
    (0..rows.rows()).map(|head| (0..rows.columns()).map(|block| rows.get(head, block)).collect()).collect()
}

/// The experts of each token: those with the largest gates.
fn routed(gates: &[f32], tokens: usize, experts: usize, k: usize) -> Vec<Vec<bool>> {
    (0..tokens)
        .map(|token| {
            let mut ranking: Vec<usize> = (0..experts).collect();
            ranking.sort_by(|a, b| gates[b * tokens + token].total_cmp(&gates[a * tokens + token]));
            (0..experts).map(|expert| ranking[..k].contains(&expert)).collect()
        })
        .collect()
}

/// The output of a mixture of experts equals that of the formula in double precision, though tiles of experts that no token of a
/// block is routed to hold NaN: nothing reads them.
#[test]
fn experts_nobody_is_routed_to_are_not_computed() {
    let (experts, tokens, dim, block) = (6, 72, 16, 8);
    let shape = [("heads", "6"), ("head_dim", "16"), ("text", "72"), ("layers", "1")];
    let plan = plan("blockffn", "edge_moe", &[("k_experts", "2"), ("block_size", "8")], &shape);
    let mut random = Random(7);
    let x = tensor(&mut random, &[tokens, IN]);
    let (up, down) = (tensor(&mut random, &[experts * dim, IN]), tensor(&mut random, &[OUT, experts * dim]));
    // Neighbours prefer the same experts, so that blocks leave some out.
    let gates: Vec<f32> = (0..experts * tokens)
        .map(|at| {
            let preferred = (at / tokens + at % tokens / 12) % 3 == 0;
            random.real(0.4) + if preferred { 1.0 } else { 0.0 }
        })
        .collect();
    let mut session = Session::new(plan).unwrap();
    let mut step = session.begin(0, 0).unwrap();
    let measured = [("gate".to_owned(), Tensor::from_f32(&[experts, tokens], gates.clone()).unwrap())];
    step.choose(Tensors { measured: &measured, ..Tensors::default() }).unwrap();
    let live = live(step.symbols().unwrap());
    let routed = routed(&gates, tokens, experts, 2);
    for (expert, blocks) in live.iter().enumerate() {
        for (index, &is_live) in blocks.iter().enumerate() {
            let some = (index * block..(index + 1) * block).any(|token| routed[token][expert]);
            assert_eq!(is_live, some, "expert {expert}, block {index}");
        }
    }
    let dead = live.iter().flatten().filter(|is_live| !**is_live).count();
    assert!(dead > 10, "{dead} tiles left out");

    let mut hidden = Tensor::from_f32(&[experts, tokens, dim], vec![f32::NAN; experts * tokens * dim]).unwrap();
    step.project_q(x.as_ref(), Weight::new(up.as_ref()).unwrap(), None, 0..tokens, hidden.as_mut()).unwrap();
    let mut activated = hidden.as_ref().to_f32();
    for (at, value) in activated.iter_mut().enumerate() {
        let (expert, token) = (at / (tokens * dim), at / dim % tokens);
        assert_eq!(value.is_nan(), !live[expert][token / block], "expert {expert}, token {token}");
        if live[expert][token / block] {
            *value = if routed[token][expert] { value.max(0.0) * gates[expert * tokens + token] } else { 0.0 };
        }
    }
    let activated = Tensor::from_f32(&[experts, tokens, dim], activated).unwrap();
    let mut out = Tensor::zeros(&[tokens, OUT], Dtype::F32);
    step.project_out(activated.as_ref(), Weight::new(down.as_ref()).unwrap(), None, 0..tokens, out.as_mut()).unwrap();

    let wide = |tensor: TensorRef<'_>| tensor.to_f32().into_iter().map(f64::from).collect::<Vec<f64>>();
    let (x, up, down) = (wide(x.as_ref()), wide(up.as_ref()), wide(down.as_ref()));
    for (token, found) in out.as_ref().to_f32().chunks(OUT).enumerate() {
        for (feature, &found) in found.iter().enumerate() {
            let mut wanted = 0.0;
            for expert in (0..experts).filter(|&expert| routed[token][expert]) {
                for channel in expert * dim..(expert + 1) * dim {
                    let sum: f64 = (0..IN).map(|i| x[token * IN + i] * up[channel * IN + i]).sum();
                    let gate = f64::from(gates[expert * tokens + token]);
                    wanted += sum.max(0.0) * gate * down[feature * experts * dim + channel];
                }
            }
            assert!(
                (f64::from(found) - wanted).abs() < 1e-3,
                "token {token}, feature {feature}: {found}, not {wanted}"
            );
        }
    }
}

#[test]
fn routers_above_zero_choose_experts() {
    let (experts, tokens, block) = (5, 64, 32);
    let shape = [("heads", "5"), ("head_dim", "8"), ("text", "64"), ("layers", "1")];
    let mut selection = Selection::new(plan("blockffn", "blockffn", &[], &shape)).unwrap();
    let mut random = Random(3);
    // A value in forty is above zero, so that a block of 32 has some or none.
    let router: Vec<f32> = (0..experts * tokens).map(|_| if random.below(40) == 0 { 0.5 } else { 0.0 }).collect();
    let measured = [("router".to_owned(), Tensor::from_f32(&[experts, tokens], router.clone()).unwrap())];
    let heads: Vec<u32> = (0..experts as u32).collect();
    let tensors = Tensors { measured: &measured, ..Tensors::default() };
    let live = live(&selection.symbols(0, 0, &heads, tensors).unwrap());
    let wanted: Vec<Vec<bool>> = router
        .chunks(tokens)
        .map(|expert| expert.chunks(block).map(|block| block.iter().any(|&x| x > 0.0)).collect())
        .collect();
    assert_eq!(live, wanted);
    let ones = wanted.iter().flatten().filter(|live| **live).count();
    assert!(0 < ones && ones < 10);
}

/// `_gaussian_topk` of all channels of a token, in double precision.
#[test]
fn a_group_is_live_where_some_token_needs_a_channel_of_it() {
    let (groups, tokens, dim, block) = (16, 256, 8, 128);
    let shape = [("heads", "16"), ("head_dim", "8"), ("text", "256"), ("layers", "1")];
    let mut selection =
        Selection::new(plan("spark", "spark", &[("std_multiplier", "2.55"), ("block_size", "128")], &shape)).unwrap();
    let x = tensor(&mut Random(11), &[groups, tokens, dim]);
    let heads: Vec<u32> = (0..groups as u32).collect();
    let tensors = Tensors { q: Some(x.as_ref()), ..Tensors::default() };
    let live = live(&selection.symbols(0, 0, &heads, tensors).unwrap());
    let values = x.as_ref().to_f32();
    let at = |group: usize, token: usize, channel: usize| f64::from(values[(group * tokens + token) * dim + channel]);
    let mut wanted = vec![vec![false; tokens / block]; groups];
    for token in 0..tokens {
        let all = || (0..groups).flat_map(|group| (0..dim).map(move |channel| (group, channel)));
        let n = (groups * dim) as f64;
        let mean = all().map(|(group, channel)| at(group, token, channel)).sum::<f64>() / n;
        let variance = all().map(|(group, channel)| (at(group, token, channel) - mean).powi(2)).sum::<f64>() / n;
        for (group, channel) in all() {
            wanted[group][token / block] |= at(group, token, channel) > mean + variance.sqrt() * 2.55;
        }
    }
    assert_eq!(live, wanted);
    let ones = wanted.iter().flatten().filter(|live| **live).count();
    assert!(0 < ones && ones < groups * tokens / block, "{ones}");
}

#[test]
fn what_was_not_measured_is_named() {
    let shape = [("heads", "5"), ("head_dim", "8"), ("text", "64"), ("layers", "1")];
    let mut selection = Selection::new(plan("blockffn", "blockffn", &[], &shape)).unwrap();
    let message = selection.symbols(0, 0, &[0], Tensors::default()).unwrap_err().to_string();
    assert!(message.contains("`router`"), "{message}");
    let wrong = [("router".to_owned(), Tensor::zeros(&[5, 63], Dtype::F32))];
    let tensors = Tensors { measured: &wrong, ..Tensors::default() };
    let message = selection.symbols(0, 0, &[0], tensors).unwrap_err().to_string();
    assert!(message.contains("[5, 63]") && message.contains("[5, 64] (heads, tokens)"), "{message}");
}
