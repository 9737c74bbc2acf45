//! What steps reuse beside attention: outputs that a host hands over, against forecasts by hand.

use flashomni::error::{Error, Result};
use flashomni::ir::{StepKind, Unit};
use flashomni::plan::Plan;
use flashomni::runtime::{Session, Step};
use flashomni::tensor::{Dtype, Tensor};

/// The tokens of the two streams, and all of them.
const TOKENS: [usize; 3] = [0, 2, 6];
const CHANNELS: usize = 3;
const SHAPE: [usize; 3] = [2, TOKENS[2], 16];

fn plan(steps: u32, schedule: &str) -> Plan {
    let source = format!(
        "model tiny {{ layers 2 heads 2 head_dim 16 steps {steps} tokens text(2) ++ image(h = 2, w = 2) }}
         strategy s {{ schedule {{ {schedule} }} }}"
    );
    flashomni::compile(&source).unwrap_or_else(|error| panic!("{error}"))
}

/// An output of some tokens that is `value` everywhere.
fn output(tokens: usize, value: f32) -> Tensor {
    Tensor::from_f32(&[tokens, CHANNELS], vec![value; tokens * CHANNELS]).unwrap()
}

fn remember(at: &mut Step<'_>, what: Unit, value: f32) -> Result<()> {
    at.remember(what, 0..TOKENS[1], output(TOKENS[1], value).as_ref())?;
    at.remember(what, TOKENS[1]..TOKENS[2], output(TOKENS[2] - TOKENS[1], 2.0 * value).as_ref())
}

/// What comes back for the first stream; that of the second is twice as much.
fn recall(at: &Step<'_>, what: Unit) -> Result<f32> {
    let mut streams = [0, 1].map(|index| output(TOKENS[index + 1] - TOKENS[index], f32::NAN));
    at.recall(what, 0..TOKENS[1], streams[0].as_mut())?;
    at.recall(what, TOKENS[1]..TOKENS[2], streams[1].as_mut())?;
    let [first, second] = streams.map(|stream| stream.as_ref().to_f32());
    assert!(first.iter().all(|value| *value == first[0]) && second.iter().all(|value| *value == 2.0 * first[0]));
    Ok(first[0])
}

/// Attention of a step, whose output is `value` wherever it is computed.
fn attention(at: Step<'_>, value: f32) -> Result<(StepKind, f32)> {
    let x = Tensor::zeros(&SHAPE, Dtype::F32);
    let v = Tensor::from_f32(&SHAPE, vec![value; SHAPE.iter().product()])?;
    let mut out = Tensor::zeros(&SHAPE, Dtype::F32);
    let report = at.attention(x.as_ref(), x.as_ref(), v.as_ref(), out.as_mut())?;
    Ok((report.kind, out.as_ref().to_f32()[0]))
}

fn close(found: f32, wanted: f32) {
    assert!((found - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "found {found}, wanted {wanted}");
}

#[test]
fn each_unit_is_forecast_by_the_order_of_its_step() {
    for (unit, word) in [(Unit::Modules, "modules"), (Unit::Layer, "layer")] {
        let schedule = format!("dense on [0, 2, 4]; reuse {word} on [1, 6]; reuse {word} as taylor(2)");
        let mut session = Session::new(plan(8, &schedule)).unwrap();
        assert_eq!(session.plan().schedule.letters(0), "D0D2D202");
        // Squares of the step, computed at 0, 2 and 4: at 2 the differences are 4 and 2, at 4 they are 16, 6 and 2.
        let wanted =
            [None, Some(0.0), None, Some(4.0 + 2.0), None, Some(16.0 + 6.0 + 1.0), Some(16.0), Some(16.0 + 18.0 + 9.0)];
        for (step, wanted) in (0..).zip(wanted) {
            let mut at = session.begin(step, 0).unwrap();
            match wanted {
                Some(wanted) => {
                    assert_eq!(at.kind(), StepKind::Reuse(unit), "step {step}");
                    close(recall(&at, unit).unwrap(), wanted);
                    // Nothing is stored at such a step, so that the next forecasts stay those of computed steps.
                    remember(&mut at, unit, 77.0).unwrap();
                }
                None => {
                    remember(&mut at, unit, (step * step) as f32).unwrap();
                    attention(at, 0.0).unwrap();
                }
            }
        }
    }
}

#[test]
fn half_precision_goes_in_and_out() {
    let mut session = Session::new(plan(2, "reuse layer on last")).unwrap();
    let given = output(TOKENS[2], 1.5).cast(Dtype::Bf16);
    session.begin(0, 1).unwrap().remember(Unit::Layer, 0..TOKENS[2], given.as_ref()).unwrap();
    let mut out = output(TOKENS[2], 0.0).cast(Dtype::F16);
    session.begin(1, 1).unwrap().recall(Unit::Layer, 0..TOKENS[2], out.as_mut()).unwrap();
    assert_eq!(out.as_ref().to_f32(), [1.5; TOKENS[2] * CHANNELS]);
}

/// A host that knows attention alone has its output reused, whatever the unit.
#[test]
fn without_a_host_attention_stands_for_every_unit() {
    for word in ["", "attention", "modules", "layer"] {
        let mut session = Session::new(plan(6, &format!("reuse {word} as taylor(1) on [3, 5]"))).unwrap();
        let mut outputs = Vec::new();
        for step in 0..6 {
            let at = session.begin(step, 0).unwrap();
            let (kind, found) = attention(at, (step * step) as f32).unwrap();
            assert_eq!(kind.is_reuse(), [3, 5].contains(&step), "step {step} of reuse {word}");
            outputs.push(found);
        }
        outputs.into_iter().zip([0.0, 1.0, 4.0, 7.0, 16.0, 22.0]).for_each(|(found, wanted)| close(found, wanted));
    }
}

#[test]
fn a_step_without_what_it_reuses_is_an_update() {
    let mut session = Session::new(plan(8, "dense on [0, 4]; reuse layer")).unwrap();
    // The host joins late, then hands over what the layer adds.
    let mut at = session.begin(2, 0).unwrap();
    assert_eq!(at.kind(), StepKind::Update);
    remember(&mut at, Unit::Layer, 3.0).unwrap();
    let at = session.begin(3, 0).unwrap();
    assert_eq!(at.kind(), StepKind::Reuse(Unit::Layer));
    assert_eq!(recall(&at, Unit::Layer).unwrap(), 3.0);
    session.reset();
    assert_eq!(session.begin(1, 0).unwrap().kind(), StepKind::Update, "nothing outlives a generation");

    // An output of attention no longer stands for the layer of a host that hands layers over.
    let mut at = session.begin(4, 0).unwrap();
    remember(&mut at, Unit::Layer, 5.0).unwrap();
    attention(at, 1.0).unwrap();
    let at = session.begin(5, 0).unwrap();
    assert_eq!(recall(&at, Unit::Layer).unwrap(), 5.0);
    let error = attention(at, 1.0).unwrap_err().to_string();
    assert_eq!(error, "layer 0 has no output of attention that step 5 could reuse");

    // Of modules both outputs count, once the host hands the second one over.
    let mut session = Session::new(plan(8, "dense on [0, 4]; reuse modules")).unwrap();
    attention(session.begin(0, 0).unwrap(), 1.0).unwrap();
    let at = session.begin(1, 0).unwrap();
    assert_eq!(at.kind(), StepKind::Reuse(Unit::Modules), "attention alone");
    session.reset();
    let mut at = session.begin(0, 0).unwrap();
    remember(&mut at, Unit::Modules, 2.0).unwrap();
    assert_eq!(session.begin(1, 0).unwrap().kind(), StepKind::Update, "the feed-forward network alone");
    attention(session.begin(4, 0).unwrap(), 1.0).unwrap();
    let at = session.begin(5, 0).unwrap();
    assert_eq!(at.kind(), StepKind::Reuse(Unit::Modules));
    assert_eq!(recall(&at, Unit::Modules).unwrap(), 2.0);
    session.reset();
    attention(session.begin(0, 0).unwrap(), 1.0).unwrap();
    assert_eq!(session.begin(1, 0).unwrap().kind(), StepKind::Update, "the network is known to be handed over");
}

#[test]
fn wrong_calls_are_one_sentence() {
    let message = |result: Result<()>| match result.unwrap_err() {
        Error::State(message) => message,
        other => panic!("{other}"),
    };
    let mut session = Session::new(plan(4, "dense on 0; reuse layer on 1; reuse modules on 2")).unwrap();
    let (two, mut out) = (output(2, 1.0), output(2, 0.0));
    let mut at = session.begin(0, 0).unwrap();
    let own = "the output of attention is kept and forecast by `project_out`, or by `attention`";
    assert_eq!(message(at.remember(Unit::Attention, 0..2, two.as_ref())), own);
    assert_eq!(message(at.recall(Unit::Attention, 0..2, out.as_mut())), own);
    let early = message(at.recall(Unit::Layer, 0..2, out.as_mut()));
    assert_eq!(early, "step 0 of layer 0 does not reuse the residual of tokens 0..2");
    let shape = |result: Result<()>| assert!(matches!(result, Err(Error::Shape(_))), "{result:?}");
    shape(at.remember(Unit::Layer, 0..3, two.as_ref()));
    shape(at.remember(Unit::Layer, 5..7, two.as_ref()));
    let cube = Tensor::zeros(&[2, 3, 1], Dtype::F32);
    shape(at.remember(Unit::Layer, 0..2, cube.as_ref()));
    at.remember(Unit::Layer, 0..2, two.as_ref()).unwrap();
    assert!(message(at.remember(Unit::Layer, 0..2, two.as_ref())).contains("does not follow the last one"));
    let at = session.begin(1, 0).unwrap();
    let unknown = message(at.recall(Unit::Layer, 2..4, out.as_mut()));
    assert_eq!(unknown, "layer 0 has no residual of tokens 2..4 that step 1 could reuse");
    let other = message(at.recall(Unit::Modules, 0..2, out.as_mut()));
    assert_eq!(other, "step 1 of layer 0 does not reuse the output of the feed-forward network for tokens 0..2");
    let mut narrow = Tensor::zeros(&[2, 1], Dtype::F32);
    shape(at.recall(Unit::Layer, 0..2, narrow.as_mut()));
    at.recall(Unit::Layer, 0..2, out.as_mut()).unwrap();
    assert_eq!(out.as_ref().to_f32(), [1.0; 2 * CHANNELS]);
}

/// Orders build up from the steps at which a plan first asks for them, and of what nothing reuses nothing is kept.
#[test]
fn adopted_schedules_find_what_earlier_steps_computed() {
    let plans =
        ["dense", "dense while step < 2; reuse layer on 2; dense", "dense while step < 5; reuse layer as taylor(1)"];
    let [none, plain, line] = plans.map(|schedule| plan(8, schedule));
    let mut session = Session::new(none.clone()).unwrap();
    // While no plan reuses anything every unit could come: this is known before the first step.
    session.adopt(none).unwrap();
    let compute = |session: &mut Session, step: u32| {
        let mut at = session.begin(step, 0).unwrap();
        assert!(!at.kind().is_reuse(), "step {step}");
        remember(&mut at, Unit::Layer, step as f32).unwrap();
        remember(&mut at, Unit::Modules, step as f32).unwrap();
    };
    compute(&mut session, 0);
    compute(&mut session, 1);
    session.adopt(plain).unwrap();
    let at = session.begin(2, 0).unwrap();
    assert_eq!(at.kind(), StepKind::Reuse(Unit::Layer));
    assert_eq!(recall(&at, Unit::Layer).unwrap(), 1.0);
    // The next plan asks for a line: the first difference is that of the next two computed steps.
    compute(&mut session, 3);
    session.adopt(line).unwrap();
    compute(&mut session, 4);
    for step in 5..8 {
        let at = session.begin(step, 0).unwrap();
        close(recall(&at, Unit::Layer).unwrap(), step as f32);
    }
    // Modules were reused by no plan: a step that does is computed, and the one after it reuses.
    session.reset();
    session.adopt(plan(8, "dense while step < 2; reuse modules")).unwrap();
    compute(&mut session, 0);
    attention(session.begin(1, 0).unwrap(), 1.0).unwrap();
    let at = session.begin(2, 0).unwrap();
    assert_eq!(at.kind(), StepKind::Reuse(Unit::Modules));
    assert_eq!(recall(&at, Unit::Modules).unwrap(), 0.0);
}
