//! Sessions against a simulation in double precision that follows the papers' formulas row by row.

mod simulation;

use flashomni::cpu::{Weight, linear};
use flashomni::error::Error;
use flashomni::ir::StepKind;
use flashomni::plan::Plan;
use flashomni::runtime::{Placement, Selection, Session, Tensors};
use flashomni::tensor::{Dtype, Tensor};
use simulation::{DIM, HEADS, History, Rows, all_rows, attend, close, plan, rows_of};

/// All heads.
const ALL: [u32; HEADS] = [0, 1, 2, 3];

struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values = (0..shape.iter().product()).map(|_| 2.0 * self.next()).collect();
        Tensor::from_f32(shape, values).unwrap()
    }
}

/// Tensors in double precision.
fn exact(tensors: &[Tensor; 3]) -> [Vec<f64>; 3] {
    tensors.each_ref().map(|tensor| tensor.as_ref().to_f32().into_iter().map(f64::from).collect())
}

/// q, k and v of a step; they drift from step to step, as features of a sampler do.
struct Series {
    base: [Tensor; 3],
    drift: [Tensor; 3],
}

impl Series {
    fn new(plan: &Plan, seed: u64) -> Self {
        let mut noise = Noise(seed);
        let shape = [HEADS, plan.model.tokens() as usize, DIM];
        let mut three = || [0; 3].map(|_| noise.tensor(&shape));
        Series { base: three(), drift: three() }
    }

    fn at(&self, step: u32) -> [Tensor; 3] {
        let mix = |index: usize| {
            let (base, drift) = (self.base[index].as_ref().to_f32(), self.drift[index].as_ref().to_f32());
            let values = base.iter().zip(drift).map(|(a, b)| a + 0.05 * step as f32 * b).collect();
            Tensor::from_f32(self.base[index].shape(), values).unwrap()
        };
        [mix(0), mix(1), mix(2)]
    }
}

/// Runs a generation and compares each step with the simulation; gives the kinds of the steps.
fn simulate(plan: Plan, order: usize) -> Vec<StepKind> {
    let series = Series::new(&plan, 7);
    let mut session = Session::new(plan.clone()).unwrap();
    let mut selection = Selection::new(plan.clone()).unwrap();
    let (mut features, mut outputs) = (History::default(), History::default());
    let is_clustered = plan.arrangements.iter().any(|arrangement| arrangement.clustering.is_some());
    let mut rows: Option<Rows> = None;
    let mut kinds = Vec::new();
    // What symbols left out of the output of the last update.
    let mut lost: Vec<f64> = Vec::new();
    for step in 0..plan.model.steps {
        let qkv = series.at(step);
        let [q, k, v] = [0, 1, 2].map(|index| qkv[index].as_ref());
        let mut out = Tensor::from_f32(qkv[0].shape(), vec![f32::NAN; q.to_f32().len()]).unwrap();
        let kind = session.attention(step, 0, q, k, v, out.as_mut()).unwrap().kind;
        assert_eq!(kind, plan.schedule.kind(step, 0));
        if is_clustered {
            // Clusters begin where those of the session's last choice ended.
            rows = session.symbols(0).map(|symbols| rows_of(&plan, symbols));
        } else if matches!(kind, StepKind::Update | StepKind::Refresh) {
            rows = Some(rows_of(&plan, &selection.symbols(step, 0, &ALL, Tensors::of(q, k)).unwrap()));
        } else if !plan.is_dynamic() {
            rows = Some(rows_of(&plan, &selection.symbols(step, 0, &ALL, Tensors::default()).unwrap()));
        }
        let wanted = match kind {
            StepKind::Shared => panic!("a simulation has one branch"),
            StepKind::Dense | StepKind::Update => {
                attend(&exact(&qkv), &all_rows(plan.model.tokens() as usize), |_| 0.0)
            }
            StepKind::Refresh | StepKind::Dispatch => {
                let cached = if features.0.is_empty() { Vec::new() } else { features.forecast(step, order) };
                attend(&exact(&qkv), rows.as_ref().unwrap(), |index| cached[index])
            }
            StepKind::Reuse(_) => outputs.forecast(step, order),
            StepKind::Residual => {
                let sparse = attend(&exact(&qkv), rows.as_ref().unwrap(), |_| f64::NAN);
                sparse.iter().zip(&lost).map(|(sparse, lost)| sparse + lost).collect()
            }
        };
        close(out.as_ref(), &wanted, &format!("step {step}, {kind:?}"));
        if kind == StepKind::Update {
            features.0.push((step, wanted.clone()));
            let sparse = rows.as_ref().map(|rows| attend(&exact(&qkv), rows, |index| wanted[index]));
            lost = wanted.iter().zip(sparse.iter().flatten()).map(|(full, sparse)| full - sparse).collect();
        }
        if !kind.is_reuse() {
            outputs.0.push((step, wanted));
        }
        kinds.push(kind);
    }
    kinds
}

const FLASHOMNI: &str = "layout text ++ image(h, w)
    block 16
    schedule { dense while step < 2; update every 4; dense on last }
    let map = softmax(dot(mean(q), mean(k)) / sqrt(head_dim))
    cache image where bottom_mass(softmax(sum(map[image -> text], over = k), over = q), 0.4, over = q) as taylor(2)
    skip all -> all where bottom_mass(map, 0.3)";

#[test]
fn updates_fill_what_dispatch_steps_take() {
    let kinds = simulate(plan("text(20) ++ image(h = 9, w = 9)", 16, FLASHOMNI), 2);
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(
        [StepKind::Dense, StepKind::Update, StepKind::Dispatch].map(count),
        [3, 4, 9],
        "a schedule that exercises all three"
    );
}

const RESIDUAL: &str = "layout text ++ image(h, w)
    block 16
    schedule { update every 3; dispatch as residual }
    keep text <-> all
    keep image -> image where abs(pos(q) - pos(k)) <= 20 lower exact
    skip image -> all where pos(q) mod 64 >= 48";

#[test]
fn what_symbols_lost_at_an_update_is_added_until_the_next() {
    let kinds = simulate(plan("text(32) ++ image(h = 8, w = 12)", 8, RESIDUAL), 0);
    assert_eq!(kinds.iter().filter(|kind| **kind == StepKind::Residual).count(), 5);
    let dynamic = "layout text ++ image(h, w)
        block 16
        order axes(w, h)
        schedule { update every 4; dispatch as residual }
        keep all -> all where top_k(dot(mean(q), mean(k)), 30%)";
    simulate(plan("text(32) ++ image(h = 8, w = 12)", 9, dynamic), 0);
}

#[test]
fn a_branch_takes_what_the_other_has_computed() {
    let strategy = "schedule { reuse as shared on [1, 4]; reuse on [2]; dense }";
    let plan = plan("image(h = 4, w = 8)", 6, strategy);
    assert_eq!(plan.schedule.letters(0), "D=0D=D");
    let [conditional, other] = [5, 6].map(|seed| Series::new(&plan, seed));
    let mut sessions = [(); 2].map(|()| Session::new(plan.clone()).unwrap());
    let mut last = Vec::new();
    for step in 0..6 {
        let [q, k, v] = conditional.at(step);
        let mut first = Tensor::zeros(q.shape(), Dtype::F32);
        // The first branch has none to take from: it computes in full where the second takes.
        let report = sessions[0].attention(step, 0, q.as_ref(), k.as_ref(), v.as_ref(), first.as_mut()).unwrap();
        let [q, k, v] = other.at(step);
        let mut second = Tensor::zeros(q.shape(), Dtype::F32);
        let at = sessions[1].begin(step, 0).unwrap();
        if at.kind() == StepKind::Shared {
            assert_eq!(report.kind, StepKind::Update);
            at.share(first.as_ref(), second.as_mut()).unwrap();
            assert_eq!(first.as_ref().to_f32(), second.as_ref().to_f32());
            last = second.as_ref().to_f32();
        } else {
            let is_reused = at.attention(q.as_ref(), k.as_ref(), v.as_ref(), second.as_mut()).unwrap().kind;
            assert_eq!(is_reused.is_reuse(), second.as_ref().to_f32() == last, "step {step}");
        }
    }
    let at = Session::new(plan).unwrap();
    let mut at = at;
    let x = Tensor::zeros(&[HEADS, 32, DIM], Dtype::F32);
    let mut out = x.clone();
    let message = at.begin(0, 0).unwrap().share(x.as_ref(), out.as_mut()).unwrap_err().to_string();
    assert!(message.contains("step 0 of layer 0 does not take"), "{message}");
}

#[test]
fn whole_layers_are_forecast_from_every_computed_step() {
    let strategy = "schedule { reuse as taylor(1) while step >= 3 except every 3 from 3 }";
    let kinds = simulate(plan("image(h = 8, w = 8)", 12, strategy), 1);
    assert_eq!(kinds.iter().filter(|kind| kind.is_reuse()).count(), 6);
}

#[test]
fn refresh_steps_obey_what_they_choose() {
    let strategy = "block 16
        schedule { refresh every 3 }
        keep all -> all where top_k(dot(mean(q), mean(k)), 50%)";
    let kinds = simulate(plan("image(h = 8, w = 8)", 7, strategy), 0);
    assert_eq!(kinds[..4], [StepKind::Refresh, StepKind::Dispatch, StepKind::Dispatch, StepKind::Refresh]);
}

#[test]
fn heads_may_see_the_tokens_in_orders_of_their_own() {
    let strategy = "layout video(t, h, w) ++ text
        block 16 x 32
        heads ..2 { order axes(h, w, t) }
        heads 3.. { order tiles(2, 2, 2); keep video -> video where tile(q) == tile(k) lower exact }
        heads ..3 { keep video -> video where abs(pos(q) - pos(k)) <= 20 lower exact }
        keep text <-> all";
    simulate(plan("video(t = 4, h = 4, w = 6) ++ text(7)", 2, strategy), 0);
}

const CLUSTERS: &str = "layout text ++ video(t, h, w)
    block 16
    order clusters(5, 9, iterations = 10, again = 1)
    schedule { update every 3 }
    let score = dot(mean(q), mean(k))[video -> video] / sqrt(head_dim)
    let weight = block_tokens(k)[video] * exp(score - max(score, over = k))
    keep video -> video where top_p(weight / sum(weight, over = k), 0.5)
    keep text <-> all";

#[test]
fn heads_have_clusters_of_their_own() {
    simulate(plan("text(20) ++ video(t = 3, h = 5, w = 6)", 7, CLUSTERS), 0);
    // Clusters larger than any block a kernel takes; without scores, blocks still begin where clusters do.
    let large = "layout video(t, h, w)
        order clusters(2, 3)
        keep video -> video where block_tokens(q) > block_tokens(k)
        keep video -> video where top_k(dot(mean(q), mean(k)), 1)";
    simulate(plan("video(t = 3, h = 16, w = 16)", 2, large), 0);
}

#[test]
fn clusters_of_a_step_are_what_attention_obeys() {
    let plan = plan("text(20) ++ video(t = 3, h = 5, w = 6)", 4, CLUSTERS);
    let series = Series::new(&plan, 5);
    let mut session = Session::new(plan.clone()).unwrap();
    for step in 0..2 {
        let [q, k, v] = series.at(step);
        let mut out = Tensor::zeros(q.shape(), Dtype::F32);
        session.attention(step, 0, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut()).unwrap();
    }
    let symbols = session.symbols(0).unwrap();
    assert_eq!(symbols.groups.len(), HEADS, "each head has an order of its own");
    for group in &symbols.groups {
        let Placement { q_order, kv_order, blocks } = &*group.placement;
        assert_eq!((blocks.q_blocks(), blocks.kv_blocks()), (2 + 5, 2 + 9));
        for (order, end) in [(q_order, blocks.q.last()), (kv_order, blocks.kv.last())] {
            let mut sorted = order.as_ref().unwrap().to_vec();
            assert_eq!(sorted[..20], (0..20).collect::<Vec<u32>>(), "text stays where it is");
            sorted.sort_unstable();
            assert_eq!((sorted, end), ((0..110).collect(), Some(&110)));
        }
        let live = symbols.live_share().unwrap();
        assert!((0.3..0.9).contains(&live), "{live}");
    }
}

#[test]
fn symbols_change_with_the_step_while_features_stay() {
    let strategy = "block 16
        schedule { update every 4 }
        cache all where block(q) mod 4 == step mod 4 as taylor(1)";
    simulate(plan("image(h = 8, w = 10)", 9, strategy), 1);
}

/// Weights of an attention block with a stream for text and one for the picture.
struct Weights {
    q: [Tensor; 2],
    out: [Tensor; 2],
    bias: Tensor,
}

/// GEMM-Q, attention and GEMM-O of a session against attention of a second session between dense projections.
fn compare_projections(plan: Plan) {
    let (text, tokens) = (plan.model.segments[0].tokens as usize, plan.model.tokens() as usize);
    let mut noise = Noise(99);
    let width = HEADS * DIM;
    let weights = Weights {
        q: [0, 1].map(|_| noise.tensor(&[width, 24])),
        out: [0, 1].map(|_| noise.tensor(&[24, width])),
        bias: noise.tensor(&[24]),
    };
    let streams = [0..text, text..tokens];
    let series = Series::new(&plan, 3);
    let x = noise.tensor(&[tokens, 24]);
    let (mut whole, mut sparse) = (Session::new(plan.clone()).unwrap(), Session::new(plan.clone()).unwrap());
    for step in 0..plan.model.steps {
        let [_, k, v] = series.at(step);
        let scale = 1.0 + 0.1 * step as f32;
        let x = Tensor::from_f32(x.shape(), x.as_ref().to_f32().iter().map(|x| x * scale).collect()).unwrap();
        let part = |range: &std::ops::Range<usize>| {
            Tensor::from_f32(&[range.len(), 24], x.as_ref().to_f32()[range.start * 24..range.end * 24].to_vec())
                .unwrap()
        };

        // Dense projections around `Session::attention`.
        let mut q = vec![0.0; HEADS * tokens * DIM];
        for (range, weight) in streams.iter().zip(&weights.q) {
            let mut rows = Tensor::zeros(&[range.len(), width], Dtype::F32);
            linear(part(range).as_ref(), Weight::new(weight.as_ref()).unwrap(), None, rows.as_mut()).unwrap();
            for (at, value) in rows.as_ref().to_f32().into_iter().enumerate() {
                let (token, feature) = (range.start + at / width, at % width);
                q[(feature / DIM * tokens + token) * DIM + feature % DIM] = value;
            }
        }
        let q = Tensor::from_f32(&[HEADS, tokens, DIM], q).unwrap();
        let mut o = Tensor::zeros(q.shape(), Dtype::F32);
        whole.attention(step, 0, q.as_ref(), k.as_ref(), v.as_ref(), o.as_mut()).unwrap();
        let o = o.as_ref().to_f32();
        let by_token: Vec<f32> =
            (0..tokens * width).map(|at| o[(at % width / DIM * tokens + at / width) * DIM + at % DIM]).collect();

        // The same through the step.
        let poison = || Tensor::from_f32(&[HEADS, tokens, DIM], vec![f32::NAN; HEADS * tokens * DIM]).unwrap();
        let (mut live_q, mut live_o) = (poison(), poison());
        let mut at = sparse.begin(step, 0).unwrap();
        if !at.kind().is_reuse() {
            for (range, weight) in streams.iter().zip(&weights.q) {
                let weight = Weight::new(weight.as_ref()).unwrap();
                at.project_q(part(range).as_ref(), weight, None, range.clone(), live_q.as_mut()).unwrap();
            }
            at.attention_live(live_q.as_ref(), k.as_ref(), v.as_ref(), live_o.as_mut()).unwrap();
        }
        for (range, weight) in streams.iter().zip(&weights.out) {
            let weight = Weight::new(weight.as_ref()).unwrap();
            let bias = Some(weights.bias.as_ref());
            let mut wanted = Tensor::zeros(&[range.len(), 24], Dtype::F32);
            let rows = &by_token[range.start * width..range.end * width];
            let rows = Tensor::from_f32(&[range.len(), width], rows.to_vec()).unwrap();
            linear(rows.as_ref(), weight, bias, wanted.as_mut()).unwrap();
            let mut found = Tensor::from_f32(wanted.shape(), vec![f32::NAN; range.len() * 24]).unwrap();
            at.project_out(live_o.as_ref(), weight, bias, range.clone(), found.as_mut()).unwrap();
            let wanted: Vec<f64> = wanted.as_ref().to_f32().into_iter().map(f64::from).collect();
            close(found.as_ref(), &wanted, &format!("step {step}, tokens {range:?}"));
        }
    }
}

#[test]
fn cached_heads_reach_the_output_as_a_bias() {
    compare_projections(plan("text(20) ++ image(h = 9, w = 9)", 16, FLASHOMNI));
}

#[test]
fn residuals_and_blocks_that_keep_nothing_reach_the_output() {
    compare_projections(plan("text(32) ++ image(h = 8, w = 12)", 8, RESIDUAL));
    let nothing = "block 16
        heads ..2 { skip all -> all where pos(q) mod 64 >= 32 }
        skip all -> all where pos(k) mod 32 >= 16 and pos(q) < 48";
    compare_projections(plan("text(32) ++ image(h = 8, w = 12)", 3, nothing));
}

#[test]
fn reused_outputs_are_forecast_behind_the_projection() {
    let strategy = "schedule { reuse as taylor(1) while step >= 2 except every 3 from 2 }";
    compare_projections(plan("text(5) ++ image(h = 6, w = 6)", 9, strategy));
}

#[test]
fn projections_follow_orders_and_changing_symbols() {
    let strategy = "layout text ++ video(t, h, w)
        block 16
        schedule { update every 4 }
        heads ..2 { order axes(h, w, t) }
        heads ..1 { cache video where block(q) mod 3 == step mod 3 as taylor(1) }
        heads 1.. { cache video where block(q) mod 2 == 1 as reuse }";
    compare_projections(plan("text(9) ++ video(t = 4, h = 4, w = 5)", 8, strategy));
}

fn random_step(session: &mut Session, series: &Series, step: u32) -> Result<StepKind, Error> {
    let [q, k, v] = series.at(step);
    let mut out = Tensor::zeros(q.shape(), Dtype::F32);
    session.attention(step, 1, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut()).map(|report| report.kind)
}

#[test]
fn projections_of_clusters_are_those_of_all_rows() {
    compare_projections(plan("text(20) ++ video(t = 3, h = 5, w = 6)", 7, CLUSTERS));
}

#[test]
fn a_host_that_joins_late_gets_an_update() {
    let plan = plan("text(20) ++ image(h = 9, w = 9)", 16, FLASHOMNI);
    let series = Series::new(&plan, 5);
    let mut session = Session::new(plan).unwrap();
    assert_eq!(random_step(&mut session, &series, 4).unwrap(), StepKind::Update, "the schedule says dispatch");
    assert_eq!(random_step(&mut session, &series, 5).unwrap(), StepKind::Dispatch);
    let error = random_step(&mut session, &series, 5).unwrap_err().to_string();
    assert_eq!(error, "step 5 of layer 1 follows step 5: steps ascend, and `reset` begins a new generation");
    session.reset();
    assert!(session.symbols(1).is_none());
    assert_eq!(random_step(&mut session, &series, 3).unwrap(), StepKind::Update);
}

#[test]
fn wrong_calls_are_one_sentence_and_write_nothing() {
    let plan = plan("text(20) ++ image(h = 9, w = 9)", 16, FLASHOMNI);
    let series = Series::new(&plan, 5);
    let mut session = Session::new(plan.clone()).unwrap();
    let [q, k, v] = series.at(0);
    let mut out = Tensor::from_f32(q.shape(), vec![7.0; q.as_ref().to_f32().len()]).unwrap();
    let mut call = |step, layer, q: &Tensor, out: &mut Tensor| {
        session
            .attention(step, layer, q.as_ref(), k.as_ref(), v.as_ref(), out.as_mut())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(call(16, 0, &q, &mut out), "there is no step 16: model `small` has 16 steps, counted from 0");
    assert_eq!(call(0, 2, &q, &mut out), "there is no layer 2: model `small` has 2 layers, counted from 0");
    let small = Tensor::zeros(&[HEADS, 8, DIM], Dtype::F32);
    assert_eq!(
        call(2, 0, &small, &mut out),
        "`q` has the shape [4, 8, 16], model `small` has [4, 101, 16] (heads, tokens, head_dim)"
    );
    let mut values = q.as_ref().to_f32();
    values[DIM * 50] = f32::NAN;
    let nan = Tensor::from_f32(q.shape(), values).unwrap();
    let text = call(6, 0, &nan, &mut out);
    assert!(text.contains("`q` is NaN, infinite or too large in block 3 of head 0 (layer 0, step 6)"), "{text}");
    let half = q.cast(Dtype::F16);
    assert_eq!(call(7, 0, &half, &mut out), "`out` holds f32, but `q` holds f16");
    assert!(out.as_ref().to_f32().iter().all(|value| *value == 7.0), "nothing was written");
    let needs = Selection::new(plan).unwrap().symbols(2, 0, &ALL, Tensors::default()).unwrap_err().to_string();
    assert!(needs.ends_with("q and k of step 2 are needed"), "{needs}");
}
