//! `omni symbols`: the symbols of one layer at one step, from the tensors of a host, as a file.

use std::collections::BTreeMap;
use std::path::Path;

use flashomni::ir::StepKind;
use flashomni::plan::{Plan, Program};
use flashomni::runtime::{LayerSymbols, Selection, Tensors};
use flashomni::symbols::interchange::pack;
use flashomni::symbols::{BitMatrix, Symbols};
use flashomni::tensor::Tensor;
use flashomni::tensor_file::{self, Entry, FileValues, TensorFile};

use crate::args::{self, Choice};
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::input;

/// Token masks of a whole layer are written up to this size.
const MOST_PREDICATE_BYTES: usize = 64 << 20;

/// Writes the file.
pub fn symbols(args: &args::Symbols, console: &Console) -> Result<Exit, Failure> {
    let choice = Choice {
        strategy: args.strategy.clone(),
        model: args.model.clone(),
        param: args.param.clone(),
        shape: args.shape.clone(),
        inputs: args.inputs.clone(),
    };
    let bytes = input::read(&args.file)?;
    let plan = input::compile(&input::compiler(&args.file, None, bytes, &choice)?, console)?;
    let given = args.inputs.as_ref().map(TensorFile::open).transpose()?;
    let layer = args.layer.unwrap_or(0);
    let step = args.step.unwrap_or_else(|| first_sparse(&plan, layer));
    let tensor = |name: &str| match &given {
        Some(file) if file.contains(name) => heads(&plan, file, name, args.arranged).map(Some),
        _ => Ok(None),
    };
    let (q, k, v) = (tensor("q")?, tensor("k")?, tensor("v")?);
    let mut measured = Vec::new();
    for (name, _) in plan.programs.iter().flat_map(Program::measured) {
        if let Some(file) = given.as_ref().filter(|file| file.contains(name)) {
            measured.push((name.to_owned(), file.get(name)?));
        }
    }
    let mut selection = Selection::new(plan.clone())?;
    if let Some(file) = given.as_ref().filter(|file| file.contains("q_centroids") && file.contains("k_centroids")) {
        selection.start_clusters(file.get("q_centroids")?.as_ref(), file.get("k_centroids")?.as_ref())?;
    }
    let heads: Vec<u32> = (0..plan.model.heads).collect();
    let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.as_ref().map(Tensor::as_ref));
    let symbols = selection.symbols(step, layer, &heads, Tensors { q, k, v, measured: &measured })?;
    let live = symbols.live_share()?;
    write(&plan, &symbols, args.unpacked, &args.out, [step, layer])?;
    console.note(format_args!(
        "wrote {}: step {step}, layer {layer}, {:.1}% of attention computed",
        args.out.display(),
        100.0 * live
    ));
    Ok(Exit::Fine)
}

/// The first step at which the layer obeys symbols.
fn first_sparse(plan: &Plan, layer: u32) -> u32 {
    let sparse = |step: &u32| plan.schedule.kind(*step, layer).obeys_symbols();
    if layer < plan.model.layers { (0..plan.model.steps).find(sparse).unwrap_or(0) } else { 0 }
}

/// Queries or keys in the model's order. A file may hold the first segments only, where the others play no part.
fn heads(plan: &Plan, file: &TensorFile, name: &str, arranged: bool) -> Result<Tensor, Failure> {
    let tensor = file.get(name)?;
    let model = &plan.model;
    let wanted = [model.heads, model.tokens(), model.head_dim].map(|size| size as usize);
    let ends = model.segments.iter().map(|segment| (segment.start + segment.tokens) as usize);
    let [found_heads, tokens, head_dim] = *tensor.shape() else {
        return Err(misfit(file, name, tensor.shape(), wanted));
    };
    if [found_heads, head_dim] != [wanted[0], wanted[2]] || !ends.clone().any(|end| end == tokens) {
        return Err(misfit(file, name, tensor.shape(), wanted));
    }
    let order = match arranged {
        true => one_order(plan)?,
        false => None,
    };
    let values = tensor.as_ref().to_f32();
    let mut placed = vec![0.0; wanted.iter().product()];
    for head in 0..wanted[0] {
        for new in 0..tokens {
            let old = order.map_or(new, |order| order[new] as usize);
            let from = &values[(head * tokens + new) * head_dim..][..head_dim];
            placed[(head * wanted[1] + old) * head_dim..][..head_dim].copy_from_slice(from);
        }
    }
    Ok(Tensor::from_f32(&wanted, placed)?)
}

/// The order that all heads share.
fn one_order(plan: &Plan) -> Result<Option<&[u32]>, Failure> {
    let first = plan.arrangements.first().and_then(|arrangement| arrangement.order.as_deref());
    if plan.arrangements.iter().any(|arrangement| arrangement.order.as_deref() != first) {
        return Err(Failure::new("--arranged needs one order of tokens, the heads of this strategy have several")
            .help("give q and k in the model's order and leave --arranged out"));
    }
    Ok(first)
}

fn misfit(file: &TensorFile, name: &str, found: &[usize], wanted: [usize; 3]) -> Failure {
    let path = file.path().display();
    Failure::new(format!("tensor `{name}` of `{path}` has the shape {found:?}, the model {wanted:?}"))
        .help("the sizes are heads, tokens and head_dim; --shape changes those of the model")
}

fn write(plan: &Plan, symbols: &LayerSymbols, unpacked: bool, path: &Path, place: [u32; 2]) -> Result<(), Failure> {
    let bytes = symbols.unpack()?;
    let [heads, q_blocks, kv_blocks] = bytes.shape;
    let model = &plan.model;
    let tokens = model.tokens() as usize;
    let schedule: Vec<i32> = plan
        .schedule
        .kinds
        .iter()
        .map(|kind| i32::from(!matches!(kind, StepKind::Reuse(_) | StepKind::Shared)))
        .collect();
    let entry = |name: &str, shape: &[usize], values| Entry { name: name.to_owned(), shape: shape.to_vec(), values };
    let mut entries =
        vec![entry("schedule", &[model.steps as usize, model.layers as usize], FileValues::I32(&schedule))];
    let metadata = BTreeMap::from([
        ("strategy".to_owned(), input::strategy(plan)),
        ("model".to_owned(), model.name.clone()),
        ("step".to_owned(), place[0].to_string()),
        ("layer".to_owned(), place[1].to_string()),
    ]);
    if unpacked {
        let fits = heads * tokens * tokens.div_ceil(8) <= MOST_PREDICATE_BYTES;
        let predicate = if fits { symbols.token_bits() } else { Vec::new() };
        let map = [heads, q_blocks, kv_blocks];
        entries.push(entry("cache", &[heads, q_blocks], FileValues::U8(&bytes.cache)));
        entries.push(entry("skip", &map, FileValues::U8(&bytes.skip)));
        entries.push(entry("partial", &map, FileValues::U8(&bytes.partial)));
        if !predicate.is_empty() {
            entries.push(entry("predicate", &[heads, tokens, tokens.div_ceil(8)], FileValues::U8(&predicate)));
        }
        return Ok(tensor_file::write(path, &entries, &metadata)?);
    }
    let matrix = |bytes: &[u8], rows: usize, columns: usize| {
        let mut bits = BitMatrix::zeros(rows, columns);
        for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == 1) {
            bits.set(index / columns, index % columns, true);
        }
        bits
    };
    let joined = Symbols {
        cache: matrix(&bytes.cache, heads, q_blocks),
        skip: matrix(&bytes.skip, heads * q_blocks, kv_blocks),
        partial: None,
    };
    let packed = pack(&[&joined])?;
    for (name, part) in [("sparse_info", &packed.sparse_info), ("sparse_kv_info", &packed.sparse_kv_info)] {
        entries.push(entry(name, &[part.bytes.len()], FileValues::U8(&part.bytes)));
        entries.push(entry(&format!("{name}.indptr"), &[part.indptr.len()], FileValues::I32(&part.indptr)));
    }
    Ok(tensor_file::write(path, &entries, &metadata)?)
}
