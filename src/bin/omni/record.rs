//! Recordings of what attention sees: q, k, v, the attention it pays, and masks, as `omni run` and `omni show` read them.
//!
//! Of a layer L at a step N, each named `NAME.layerL.stepN`:
//!
//! | tensor | shape | dtype | |
//! |---|---|---|---|
//! | `q`, `k`, `v` | `[heads, tokens, head_dim]` | f32 | in the model's order of tokens |
//! | `scores` | `[heads, q_blocks, kv_blocks]` | f32 | share of its attention that a block of queries pays to a block of keys |
//! | `cache` | `[heads, q_blocks]` | u8 | `S_c` |
//! | `skip`, `partial` | `[heads, q_blocks, kv_blocks]` | u8 | `S_s`, `S_p` |
//! | `q_offsets`, `kv_offsets` | `[blocks + 1]` | u32 | where blocks begin, in the strategy's order |
//!
//! Masks are those that the step obeyed, or at an update those that it chose; there are none where everything is computed, and
//! neither masks nor scores where heads are cut into different blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flashomni::minidit::{Attended, Branch, Sparsity, Watch};
use flashomni::runtime::Placement;
use flashomni::symbols::{BitMatrix, Blocks, Symbols};
use flashomni::tensor::{Tensor, TensorRef};
use flashomni::tensor_file::{self, Entry, FileValues, TensorFile};
use rayon::prelude::*;

use crate::args::Sample;
use crate::exit::Failure;
use crate::generate::Setup;
use crate::input;

/// Tokens of a block of the attention map where no symbols say otherwise.
const BLOCK: usize = 64;

/// Bytes that a recording may take; it is kept in memory until the images are made.
const MOST_BYTES: usize = 4 << 30;

/// Keeps what attention sees at chosen steps of chosen layers, with the prompt.
pub struct Recorder {
    path: PathBuf,
    steps: Vec<u32>,
    layers: Vec<u32>,
    size: usize,
    floats: Vec<(String, Tensor)>,
    masks: Vec<(String, Vec<usize>, Vec<u8>)>,
    offsets: Vec<(String, Vec<u32>)>,
}

impl Recorder {
    /// A recorder of the steps and layers that the user picks.
    pub fn new(path: &Path, args: &Sample, setup: &Setup) -> Result<Self, Failure> {
        let config = setup.model.config();
        let all_steps: Vec<u32> = (0..setup.steps).collect();
        let all_layers: Vec<u32> = (0..config.layers() as u32).collect();
        let steps = args.record_steps.as_ref().map_or(Ok(all_steps.clone()), |pick| pick.of(&all_steps, "step"))?;
        let layers =
            args.record_layers.as_ref().map_or(Ok(all_layers.clone()), |pick| pick.of(&all_layers, "layer"))?;
        let side = setup.model.side(setup.size)?;
        let tokens = config.text_tokens + side * side;
        let bytes = steps.len() * layers.len() * 3 * tokens * config.hidden * 4;
        if bytes > MOST_BYTES {
            return Err(Failure::new(format!(
                "the recording would take {}, more than 4 GB",
                crate::table::bytes(bytes as u64)
            ))
            .help("choose some steps and layers with --record-steps and --record-layers"));
        }
        Ok(Recorder {
            path: path.to_owned(),
            steps,
            layers,
            size: setup.size,
            floats: Vec::new(),
            masks: Vec::new(),
            offsets: Vec::new(),
        })
    }

    /// Writes what was seen.
    pub fn write(self, what: &str, sparsity: Option<&Sparsity>) -> Result<(), Failure> {
        let mut entries: Vec<Entry<'_>> =
            self.floats.iter().map(|(name, tensor)| Entry::of(name, tensor.as_ref())).collect();
        entries.extend(self.masks.iter().map(|(name, shape, bytes)| Entry {
            name: name.clone(),
            shape: shape.clone(),
            values: FileValues::U8(bytes),
        }));
        entries.extend(self.offsets.iter().map(|(name, offsets)| Entry {
            name: name.clone(),
            shape: vec![offsets.len()],
            values: FileValues::U32(offsets),
        }));
        let mut metadata =
            BTreeMap::from([("source".to_owned(), what.to_owned()), ("size".to_owned(), self.size.to_string())]);
        if let Some(sparsity) = sparsity {
            metadata.insert("strategy".to_owned(), input::strategy(sparsity.plan()));
        }
        Ok(tensor_file::write(&self.path, &entries, &metadata)?)
    }
}

impl Watch for Recorder {
    fn wants(&self, branch: Branch, step: u32, layer: u32) -> bool {
        branch == Branch::Prompt && self.steps.contains(&step) && self.layers.contains(&layer)
    }

    fn attended(&mut self, seen: &Attended<'_>) -> flashomni::Result<()> {
        let name = |tensor: &str| format!("{tensor}.layer{}.step{}", seen.layer, seen.step);
        for (tensor, values) in [("q", seen.q), ("k", seen.k), ("v", seen.v)] {
            self.floats.push((name(tensor), Tensor::from_f32(values.shape(), values.to_f32())?));
        }
        let (heads, tokens) = (seen.q.shape()[0], seen.q.shape()[1]);
        let regular =
            Placement { q_order: None, kv_order: None, blocks: Blocks::regular(tokens, tokens, BLOCK, BLOCK) };
        let placement_of = |head: usize| {
            let mut groups = seen.symbols.iter().flat_map(|symbols| &symbols.groups);
            groups.find(|group| group.heads.contains(&(head as u32))).map_or(&regular, |group| &*group.placement)
        };
        // Heads that are cut into different blocks have no map in common, nor masks.
        let blocks = &placement_of(0).blocks;
        if (0..heads).any(|head| placement_of(head).blocks != *blocks) {
            return Ok(());
        }
        let shape = [heads, blocks.q_blocks(), blocks.kv_blocks()];
        self.offsets.push((name("q_offsets"), blocks.q.clone()));
        self.offsets.push((name("kv_offsets"), blocks.kv.clone()));
        let maps = (0..heads).flat_map(|head| attention_map(seen.q, seen.k, head, placement_of(head)));
        self.floats.push((name("scores"), Tensor::from_f32(&shape, maps.collect())?));
        if let Some(symbols) = seen.symbols {
            let unpacked = symbols.unpack()?;
            self.masks.push((name("cache"), shape[..2].to_vec(), unpacked.cache));
            self.masks.push((name("skip"), shape.to_vec(), unpacked.skip));
            self.masks.push((name("partial"), shape.to_vec(), unpacked.partial));
        }
        Ok(())
    }
}

/// Masks of a recording.
pub struct RecordedMasks {
    pub step: u32,
    pub layer: u32,
    pub symbols: Symbols,
    pub blocks: Blocks,
    /// What was recorded.
    pub source: String,
}

impl RecordedMasks {
    /// Whether a file is a recording with masks.
    pub fn are_in(path: &Path) -> bool {
        path.extension().is_some_and(|ending| ending == "safetensors")
            && TensorFile::open(path).is_ok_and(|file| !places(&file).is_empty())
    }

    /// Reads those of a step of a layer; of the first there is, where none is named.
    pub fn read(path: &Path, step: Option<u32>, layer: Option<u32>) -> Result<Self, Failure> {
        let file = TensorFile::open(path)?;
        let places = places(&file);
        let is_it =
            |place: &&(u32, u32)| step.is_none_or(|step| step == place.0) && layer.is_none_or(|layer| layer == place.1);
        let Some(&(step, layer)) = places.iter().find(is_it) else {
            let known: Vec<String> = places.iter().map(|(step, layer)| format!("{step} of layer {layer}")).collect();
            return Err(Failure::new(format!("`{}` holds no mask of that step and layer", path.display()))
                .help(format!("it holds those of step {}", known.join(", step "))));
        };
        let name = |tensor: &str| format!("{tensor}.layer{layer}.step{step}");
        let blocks = Blocks { q: file.values(&name("q_offsets"))?, kv: file.values(&name("kv_offsets"))? };
        let heads = file.shape(&name("cache"))?[0];
        let bits = |tensor: &str, shape: &[usize]| -> Result<BitMatrix, Failure> {
            let bytes: Vec<u8> = file.values_of_shape(&name(tensor), shape)?;
            let columns = shape[shape.len() - 1];
            let mut bits = BitMatrix::zeros(bytes.len() / columns.max(1), columns);
            for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                bits.set(index / columns, index % columns, true);
            }
            Ok(bits)
        };
        let (q_blocks, kv_blocks) = (blocks.q_blocks(), blocks.kv_blocks());
        let cache = bits("cache", &[heads, q_blocks])?;
        let skip = bits("skip", &[heads, q_blocks, kv_blocks])?;
        let source = file.metadata("strategy").or(file.metadata("source")).unwrap_or_default().to_owned();
        Ok(RecordedMasks { step, layer, symbols: Symbols { cache, skip, partial: None }, blocks, source })
    }
}

/// Steps and layers whose masks a file holds, ascending.
fn places(file: &TensorFile) -> Vec<(u32, u32)> {
    let place = |name: &String| {
        let (layer, step) = name.strip_prefix("skip.layer")?.split_once(".step")?;
        Some((step.parse().ok()?, layer.parse().ok()?))
    };
    let mut places: Vec<(u32, u32)> = file.names().iter().filter_map(place).collect();
    places.sort_unstable();
    places
}

/// The share of its attention that a block of queries of a head pays to each block of keys, mean over its queries:
/// `[q_blocks, kv_blocks]`.
fn attention_map(q: TensorRef<'_>, k: TensorRef<'_>, head: usize, placement: &Placement) -> Vec<f32> {
    let [_, tokens, dim] = [q.shape()[0], q.shape()[1], q.shape()[2]];
    let of_head = |tensor: TensorRef<'_>| tensor.to_f32()[head * tokens * dim..][..tokens * dim].to_vec();
    let (q, k) = (of_head(q), of_head(k));
    let scale = 1.0 / (dim as f32).sqrt();
    let blocks = &placement.blocks;
    let row = |query: u32| -> Vec<f32> {
        let query = &q[placement.query(query) as usize * dim..][..dim];
        let scores: Vec<f32> = (0..tokens as u32)
            .map(|key| {
                let key = &k[placement.key(key) as usize * dim..][..dim];
                scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>()
            })
            .collect();
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
        let sum: f32 = weights.iter().sum();
        blocks.kv.windows(2).map(|ends| weights[ends[0] as usize..ends[1] as usize].iter().sum::<f32>() / sum).collect()
    };
    let rows: Vec<Vec<f32>> = blocks
        .q
        .par_windows(2)
        .map(|ends| {
            let mut mean = vec![0.0; blocks.kv_blocks()];
            for query in ends[0]..ends[1] {
                mean.iter_mut().zip(row(query)).for_each(|(mean, share)| *mean += share);
            }
            mean.iter_mut().for_each(|mean| *mean /= (ends[1] - ends[0]).max(1) as f32);
            mean
        })
        .collect();
    rows.concat()
}
