//! Which strategies of the gallery have their selector programs on a GPU: lowered, without one. A table that is meant to grow.

mod gallery_plans;

use std::collections::BTreeMap;

use flashomni::Error;
use flashomni::kernels::selector::{Setup, Target, lower};
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

/// What is said of a strategy: nothing where all of its programs are lowered.
fn outcome(plan: &Plan) -> String {
    for (index, class) in plan.classes.iter().enumerate() {
        if !matches!(class.body, Body::Dynamic { .. }) {
            continue;
        }
        let (place, heads) = gallery_plans::place_of(plan, index);
        let slots: Vec<u32> = (0..heads.len() as u32).collect();
        let lowered = Setup::of_class(plan, class, &heads, &[place])
            .and_then(|setup| lower(&setup, &Target { cache: 256, skip: 512, slots: &slots }, 1024));
        match lowered {
            Ok(recipe) => assert!(recipe.steps.len() > 1),
            Err(Error::Unavailable(text)) => return text,
            Err(error) => panic!("{error}"),
        }
    }
    String::new()
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
