//! Which strategies of the gallery have their selector programs on a GPU: lowered, without one. A table that is meant to grow.

mod gallery_plans;

use std::collections::BTreeMap;
use std::path::Path;

use flashomni::Error;
use flashomni::kernels::selector::{Code, Recipe, Setup, Step, Target, lower};
use flashomni::plan::{Body, Plan};

/// What stands in the way of those that stay on the CPU, a word or two of the message.
const TABLE: &[(&str, &str)] = &[
    ("adacluster", "clusters"),
    ("adacluster_hunyuan", "clusters"),
    ("blockffn", "measures"),
    ("draft", ""),
    ("draft_text", ""),
    ("edge_moe", "measures"),
    ("flashomni", ""),
    ("flashomni_degraded", ""),
    ("flashomni_published", ""),
    ("jenga", ""),
    ("minference_blocks", ""),
    ("minference_vertical_slash", ""),
    ("mixed", ""),
    ("moba", ""),
    ("nabla", ""),
    ("nsa", ""),
    ("sla", ""),
    ("sparge_cdf", ""),
    ("sparge_topk", ""),
    ("sparge_topk_sink", ""),
    ("spark", ""),
    ("svg2", "clusters"),
    ("svg2_hunyuan", "clusters"),
    ("svg_ear", "clusters"),
    ("svoo", "clusters"),
    ("vmoba", ""),
    ("vmoba_head", ""),
    ("vsa", ""),
    ("xattention", ""),
    ("xattention_published", ""),
];

/// The launches of a pass over the class of a plan.
fn launches(plan: &Plan, index: usize) -> flashomni::Result<Recipe> {
    let (place, heads) = gallery_plans::place_of(plan, index);
    let slots: Vec<u32> = (0..heads.len() as u32).collect();
    let setup = Setup::of_class(plan, &plan.classes[index], &heads, std::slice::from_ref(&place))?;
    lower(&setup, &Target { cache: 256, skip: 512, slots: &slots }, 1024)
}

/// What is said of a strategy: nothing where all of its programs are lowered.
fn outcome(plan: &Plan) -> String {
    for (index, class) in plan.classes.iter().enumerate() {
        if !matches!(class.body, Body::Dynamic { .. }) {
            continue;
        }
        match launches(plan, index) {
            Ok(recipe) => assert!(recipe.steps.len() > 1),
            Err(Error::Unavailable(text)) => return text,
            Err(error) => panic!("{error}"),
        }
    }
    String::new()
}

/// Each launch takes its time, however little it does: what of the paper's strategy needs one, and nothing else.
#[test]
fn launches_of_the_paper() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/strategies/flashomni.omni");
    let plan = gallery_plans::compiled(&path, "flashomni");
    let index = plan.classes.iter().position(|class| matches!(class.body, Body::Dynamic { .. })).unwrap();
    let recipe = launches(&plan, index).unwrap();
    let name = |step: &Step| match step.code {
        Code::Kernel(entry) => entry.place().1.trim_start_matches("selector_").to_owned(),
        Code::Map(index) => format!("map{index}"),
    };
    let names: Vec<String> = recipe.steps.iter().map(name).collect();
    let wanted = "pool dot_small softmax reduce share select_3 softmax reduce share select_3 select_5 pack";
    assert_eq!(names.join(" "), wanted);
}

#[test]
fn strategies_of_the_gallery() {
    let found: BTreeMap<String, String> =
        gallery_plans::dynamic().into_iter().map(|(name, plan)| (name, outcome(&plan))).collect();
    for (name, text) in &found {
        println!("| {name} | {} |", if text.is_empty() { "on the GPU" } else { text });
    }
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, TABLE.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, wanted) in TABLE {
        let text = &found[*name];
        assert_eq!(text.is_empty(), wanted.is_empty(), "{name}: {text}");
        assert!(text.contains(wanted), "{name}: {text}");
    }
}
