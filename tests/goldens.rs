//! The gallery against masks that the published implementations computed, through the public command.
//!
//! Each `tests/goldens/CASE.json` says how a file of the gallery is called and what is compared with the tensors of
//! `CASE.safetensors`. A new case is two new files.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use flashomni::tensor_file::{Entry, FileValues, TensorFile, write};

type Outcome = datatest_stable::Result<()>;

/// A case.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// File of tensors, where it is not named like the case.
    golden: Option<String>,
    /// File of the gallery, without its ending.
    strategy: String,
    /// Strategy of the file.
    name: Option<String>,
    #[serde(default)]
    shape: BTreeMap<String, u32>,
    #[serde(default)]
    params: BTreeMap<String, String>,
    /// Inputs of the strategy and the tensors that are given for them.
    #[serde(default)]
    inputs: BTreeMap<String, String>,
    /// Whether q and k come in the order of the blocks.
    #[serde(default)]
    arranged: bool,
    step: Option<u32>,
    /// Whether the golden gives centroids and sizes of clusters. Then each head is a case of its own, whose tokens are copies
    /// of the centroids, as many as a cluster is large, and clusters begin at the centroids.
    #[serde(default)]
    clusters: bool,
    /// What the command writes and the tensor it must equal; `whole` is what is computed and not partial.
    compare: BTreeMap<String, String>,
}

/// Values of a tensor of whatever type, and its sizes.
fn numbers(file: &TensorFile, name: &str) -> (Vec<usize>, Vec<f64>) {
    let values = match file.dtype(name).unwrap().as_str() {
        "U8" => file.values::<u8>(name).unwrap().into_iter().map(f64::from).collect(),
        "I8" => file.values::<i8>(name).unwrap().into_iter().map(f64::from).collect(),
        "I32" => file.values::<i32>(name).unwrap().into_iter().map(f64::from).collect(),
        _ => file.values::<f32>(name).unwrap().into_iter().map(f64::from).collect(),
    };
    (file.shape(name).unwrap().to_vec(), values)
}

type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// q and k of a head of clusters, and the centroids. Copies stand in turn, so that clusters are not together already. q gets
/// as many tokens as k has, all clusters some more: their sizes decide nothing.
fn clustered(golden: &TensorFile, head: usize) -> Vec<NamedTensor> {
    let of_head = |name: &str| {
        let (shape, values) = numbers(golden, name);
        let len = values.len() / shape[0];
        (shape, values[head * len..][..len].to_vec())
    };
    let [mut q_sizes, k_sizes] = ["q_sizes", "k_sizes"].map(|name| of_head(name).1);
    let tokens: f64 = k_sizes.iter().sum();
    let clusters = q_sizes.len();
    for index in 0..(tokens - q_sizes.iter().sum::<f64>()) as usize {
        q_sizes[index % clusters] += 1.0;
    }
    let mut tensors = Vec::new();
    for (name, mut sizes) in [("q", q_sizes), ("k", k_sizes)] {
        let (shape, values) = of_head(&format!("{name}_centroids_x8"));
        let centroids: Vec<f32> = values.into_iter().map(|x| x as f32 / 8.0).collect();
        let dim = shape[2];
        let mut copies = Vec::new();
        while sizes.iter().any(|size| *size > 0.0) {
            for (size, centroid) in sizes.iter_mut().zip(centroids.chunks(dim)).filter(|(size, _)| **size > 0.0) {
                *size -= 1.0;
                copies.extend_from_slice(centroid);
            }
        }
        tensors.push((name.to_owned(), vec![1, copies.len() / dim, dim], copies));
        tensors.push((format!("{name}_centroids"), vec![1, shape[1], dim], centroids));
    }
    tensors
}

/// The tensors that the command takes: q and k, stored as eighths, and the inputs as they are.
fn inputs(case: &Case, golden: &TensorFile) -> Vec<NamedTensor> {
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for (name, stored) in [("q", "q_x8"), ("k", "k_x8")] {
        if golden.contains(stored) {
            let (shape, values) = numbers(golden, stored);
            tensors.push((name.to_owned(), shape, values.into_iter().map(|x| x as f32 / 8.0).collect()));
        }
    }
    for (name, stored) in &case.inputs {
        let (shape, values) = numbers(golden, stored);
        tensors.push((name.clone(), shape, values.into_iter().map(|x| x as f32).collect()));
    }
    tensors
}

fn give(tensors: &[NamedTensor], path: &Path) {
    let entries: Vec<Entry<'_>> = tensors
        .iter()
        .map(|(name, shape, values)| Entry {
            name: name.clone(),
            shape: shape.clone(),
            values: FileValues::F32(values),
        })
        .collect();
    write(path, &entries, &BTreeMap::new()).unwrap();
}

fn golden(path: &Path) -> Outcome {
    let case: Case = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let stem = case.golden.as_deref().or(path.file_stem().and_then(|stem| stem.to_str())).unwrap_or_default();
    let golden = TensorFile::open(path.with_file_name(format!("{stem}.safetensors")))?;
    if !case.clusters {
        return call(&case, &golden, &inputs(&case, &golden), None);
    }
    let heads = golden.shape("mask")?[0];
    (0..heads).try_for_each(|head| call(&case, &golden, &clustered(&golden, head), Some(head)))
}

/// Calls the command for all heads, or for one as if there were no others.
fn call(case: &Case, golden: &TensorFile, tensors: &[NamedTensor], head: Option<usize>) -> Outcome {
    let directory = tempfile::tempdir()?;
    let (given, out) = (directory.path().join("given.safetensors"), directory.path().join("out.safetensors"));
    give(tensors, &given);
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni"));
    command.arg("symbols").arg(format!("examples/strategies/{}.omni", case.strategy));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(case.name.iter().flat_map(|name| ["--strategy", name]));
    for (name, size) in &case.shape {
        command.arg("--shape").arg(format!("{name}={size}"));
    }
    if head.is_some() {
        command.arg("--shape").arg(format!("w={}", tensors[0].1[1]));
    }
    for (name, value) in &case.params {
        command.arg("--param").arg(format!("{name}={value}"));
    }
    if let Some(step) = case.step {
        command.arg("--step").arg(step.to_string());
    }
    if case.arranged {
        command.arg("--arranged");
    }
    command.arg("--inputs").arg(&given).arg("--out").arg(&out).arg("--unpacked");
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let found = TensorFile::open(&out)?;
    assert!(!case.compare.is_empty(), "a case that compares nothing");
    for (written, stored) in &case.compare {
        let (mut shape, mut wanted) = numbers(golden, stored);
        if let Some(head) = head {
            let len = wanted.len() / shape[0];
            wanted = wanted[head * len..][..len].to_vec();
            shape[0] = 1;
        }
        let values = match written.as_str() {
            "whole" => {
                let (skip, partial) = (numbers(&found, "skip").1, numbers(&found, "partial").1);
                skip.iter().zip(partial).map(|(skip, partial)| skip - partial).collect()
            }
            name => numbers(&found, name).1,
        };
        compare(written, &shape, &wanted, &values)?;
    }
    Ok(())
}

/// Every value; a golden of fewer rows than the symbols has those of the first segments only, one of a single head is that
/// of all.
fn compare(name: &str, shape: &[usize], wanted: &[f64], found: &[f64]) -> Outcome {
    let heads = if shape.len() == 3 { shape[0] } else { 1 };
    let (per_head, have) = (wanted.len() / heads, found.len() / heads);
    if have < per_head || (name == "schedule" && have != per_head) {
        return Err(format!("`{name}` has {have} values a head, the golden {per_head}").into());
    }
    for head in 0..heads {
        for index in 0..per_head {
            let (wanted, found) = (wanted[head * per_head + index], found[head * have + index]);
            if wanted != found {
                return Err(
                    format!("`{name}` differs at head {head}, {index} of {shape:?}: {found}, not {wanted}").into()
                );
            }
        }
    }
    Ok(())
}

datatest_stable::harness! {
    { test = golden, root = "tests/goldens", pattern = r"^[^/]*\.json$" },
}
