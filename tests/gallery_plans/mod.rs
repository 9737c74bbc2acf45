//! The strategies of `examples/strategies`, each compiled for a small model that has what it asks for.

use std::path::Path;

use flashomni::check::InputTensor;
use flashomni::ir::Kind;
use flashomni::plan::Plan;
use flashomni::{Compiler, Error};

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
