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

/// The file that the command takes: q and k, stored as eighths, and the inputs as they are.
fn inputs(case: &Case, golden: &TensorFile, path: &Path) {
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
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
    let directory = tempfile::tempdir()?;
    let (given, out) = (directory.path().join("given.safetensors"), directory.path().join("out.safetensors"));
    inputs(&case, &golden, &given);
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni"));
    command.arg("symbols").arg(format!("examples/strategies/{}.omni", case.strategy));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(case.name.iter().flat_map(|name| ["--strategy", name]));
    for (name, size) in &case.shape {
        command.arg("--shape").arg(format!("{name}={size}"));
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
        let (shape, wanted) = numbers(&golden, stored);
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
