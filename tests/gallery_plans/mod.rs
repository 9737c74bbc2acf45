//! The strategies of `examples/strategies`, each compiled for a small model that has what it asks for.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use flashomni::check::InputTensor;
use flashomni::ir::Kind;
use flashomni::plan::{Body, Plan};
use flashomni::syntax::{self, ast};
use flashomni::{Compiler, Error};

/// Every strategy that has selector programs, by name.
pub fn dynamic() -> Vec<(String, Plan)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/strategies");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "omni"));
    paths.sort();
    let mut plans = Vec::new();
    for path in paths {
        let (tree, _) = syntax::parse(0, &std::fs::read_to_string(&path).unwrap());
        for item in &tree.items {
            let ast::Item::Strategy(strategy) = item else { continue };
            let name = strategy.name.node.clone();
            let plan = compiled(&path, &name);
            if plan.classes.iter().any(|class| matches!(class.body, Body::Dynamic { .. })) {
                plans.push((name, plan));
            }
        }
    }
    plans
}

/// A step and layer at which some head has a class, and those of its heads that have it there.
pub fn place_of(plan: &Plan, class: usize) -> ((u32, u32), Vec<u32>) {
    let heads = plan.model.heads;
    let first = plan.class_of.iter().position(|&own| own as usize == class).expect("every class is some head's");
    let (step, layer) = (first as u32 / heads / plan.model.layers, first as u32 / heads % plan.model.layers);
    let own = (0..heads).filter(|&head| plan.class_of[plan.place(step, layer, head)] as usize == class);
    ((step, layer), own.collect())
}

/// The plan of a strategy for the first of some small models that has what it asks for.
pub fn compiled(path: &Path, name: &str) -> Plan {
    let heads = if name == "mixed" { "16" } else { "4" };
    let mut own = Compiler::from_file(path).unwrap().strategy(name);
    if name.starts_with("sta") {
        // Of the few tiles of a small model the published windows see all.
        own = own.param("window", "(1, 1, 3)");
    }
    if own.own_models().is_empty()
        && ["svg2", "svg_ear", "svoo", "adacluster"].iter().any(|file| name.starts_with(file))
    {
        // A small model has few tokens for so many clusters.
        own = own.param("q_clusters", "24").param("k_clusters", "48");
        if name.starts_with("adacluster") {
            own = own.param("kept", "12");
        }
    }
    let mut small: Vec<Compiler> = Vec::new();
    if !own.own_models().is_empty() {
        small.push(own.clone());
    }
    for (model, sizes) in [
        ("wan21_1b_480p", &[("video.t", "12"), ("video.h", "16"), ("video.w", "32")][..]),
        ("hunyuan_video_480p", &[("video.t", "12"), ("video.h", "16"), ("video.w", "32"), ("text", "256")]),
        ("minidit_128", &[("image.h", "64"), ("image.w", "96"), ("text", "256")]),
    ] {
        let common = [("heads", heads), ("layers", "20"), ("head_dim", "32"), ("steps", "50")];
        let sized = sizes
            .iter()
            .chain(&common)
            .fold(own.clone().model(model), |compiler, (size, value)| compiler.shape(*size, *value));
        small.push(inputs(name).into_iter().fold(sized, |compiler, (input, tensor)| compiler.input(input, tensor)));
    }
    let mut last = None;
    for compiler in small {
        match compiler.compile() {
            Ok(compiled) => return compiled.plan,
            Err(error) => last = Some(error),
        }
    }
    let Some(Error::Compile(found)) = last else { panic!("{name}") };
    panic!("{name} fits none of the small models:\n{found}")
}

/// What the host gives: drawn blocks, distances between features, and the timesteps of the sampler.
fn inputs(strategy: &str) -> Vec<(&'static str, InputTensor)> {
    let tensor = |shape: &[u32], kind, value: fn(u32) -> f64| {
        let count: u32 = shape.iter().product();
        InputTensor { shape: shape.to_vec(), kind, values: (0..count).map(value).collect() }
    };
    let drawn = |i: u32| f64::from(i * 37 % 101 % 96);
    match strategy {
        "bigbird" => vec![("random_blocks", tensor(&[4, 94, 3], Kind::Int, drawn))],
        "bigbird_deepspeed" => vec![("random_blocks", tensor(&[4, 96, 2], Kind::Int, drawn))],
        "ditfastattn" => {
            vec![("method", tensor(&[50, 20], Kind::Int, |i| [0.0, 2.0, 2.0, 1.0, 3.0][i as usize / 20 % 5]))]
        }
        "flashomni_degraded" => {
            vec![("degraded_at", tensor(&[20], Kind::Int, |layer| f64::from([12, 50][layer as usize % 2])))]
        }
        "adacache" => vec![("distances", tensor(&[50, 1], Kind::Real, |i| f64::from(i * 7 % 13) / 100.0))],
        "svoo" => vec![("min_ratios", tensor(&[50, 20, 4], Kind::Real, |i| f64::from(i % 9) / 60.0))],
        "teacache" => vec![("distances", tensor(&[50], Kind::Real, |i| f64::from(i * 7 % 13) / 50.0))],
        "fbcache" | "dbcache" => {
            vec![("distances", tensor(&[50, 50], Kind::Real, |i| f64::from(i * 7 % 101) / 500.0))]
        }
        "pab" | "pab_mlp" => vec![("timesteps", tensor(&[50], Kind::Int, |i| f64::from(1000 - 20 * i)))],
        _ => Vec::new(),
    }
}
