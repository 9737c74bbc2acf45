//! The weights of the transformer: read from a memory map, held to the shapes its configuration implies, and packed once.
//!
//! Whatever is wrong with a file is found before anything is computed: tensors that are missing, superfluous, of another
//! shape or type, and files that end early.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use crate::cpu::{PackedWeight, Weight};
use crate::error::{Error, Result};
use crate::tensor::{Element, Tensor};

/// Sizes that no transformer of this kind exceeds; a configuration beyond them is a mistake.
const LARGEST: usize = 1 << 16;

/// The architecture, as `config.json` gives it.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Channels of a token.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head; `heads * head_dim` is `hidden`.
    pub head_dim: usize,
    /// Text tokens of a prompt.
    pub text_tokens: usize,
    /// Pixels of a patch, a side.
    pub patch: usize,
    /// Blocks with a stream for text and one for the image.
    pub dual_blocks: usize,
    /// Blocks with one stream.
    pub single_blocks: usize,
    /// Channels inside of the feed-forward network, in units of `hidden`.
    pub mlp_ratio: usize,
    /// Names of the prompts.
    pub classes: Vec<String>,
    /// The prompt that stands for none.
    pub null_class: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Added to the mean square of queries and keys.
    pub rms_eps: f32,
    /// Added to the variance of tokens.
    pub ln_eps: f32,
}

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })?;
        let wrong = |reason: String| Error::Format { path: path.into(), reason };
        let config: Config = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
            ("text_tokens", self.text_tokens),
            ("patch", self.patch),
            ("mlp_ratio", self.mlp_ratio),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            return Err(format!("`{name}` is {size}, wanted 1 to {LARGEST}"));
        }
        if self.heads * self.head_dim != self.hidden {
            let (heads, dim) = (self.heads, self.head_dim);
            return Err(format!("{heads} heads of {dim} do not make up `hidden` {}", self.hidden));
        }
        // Half of the pairs of channels turn by the row, half by the column.
        if !self.head_dim.is_multiple_of(4) {
            return Err(format!("`head_dim` is {}, wanted a multiple of 4", self.head_dim));
        }
        if !self.hidden.is_multiple_of(2) {
            return Err(format!("`hidden` is {}, wanted an even number", self.hidden));
        }
        if self.layers() == 0 || self.layers() > LARGEST {
            return Err(format!("there are {} blocks, wanted 1 to {LARGEST}", self.layers()));
        }
        if self.null_class != self.classes.len() {
            let (null, classes) = (self.null_class, self.classes.len());
            return Err(format!("`null_class` is {null}, wanted {classes}, which follows the last of the classes"));
        }
        Ok(())
    }

    /// Layers of attention: dual blocks first.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.dual_blocks + self.single_blocks
    }

    /// Numbers of a patch: channel, row, column.
    #[must_use]
    pub fn patch_values(&self) -> usize {
        3 * self.patch * self.patch
    }
}

/// A dense layer.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: PackedWeight,
    /// `[out]`.
    pub(super) bias: Tensor,
}

/// The parameters that text tokens, image tokens, or both go through in a block.
#[derive(Debug)]
pub(super) struct Stream {
    /// `[6, hidden]`, added to the modulation of the step: shift, scale and gate of attention, then of the feed-forward.
    pub(super) table: Vec<f32>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    /// `[head_dim]`.
    pub(super) q_norm: Vec<f32>,
    /// `[head_dim]`.
    pub(super) k_norm: Vec<f32>,
    pub(super) out: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A block: its streams, and attention over their tokens together.
#[derive(Debug)]
pub(super) enum Block {
    /// Text and image have parameters of their own, in this order.
    Dual(Box<[Stream; 2]>),
    /// One stream for both.
    Single(Box<Stream>),
}

/// Everything that was learned.
#[derive(Debug)]
pub(super) struct Weights {
    /// `[classes + 1, text_tokens, hidden]`.
    pub(super) prompt: Vec<f32>,
    /// `[classes + 1, hidden]`.
    pub(super) pooled: Vec<f32>,
    pub(super) patch: Linear,
    pub(super) time: [Linear; 2],
    /// To the six vectors that all blocks share.
    pub(super) modulation: Linear,
    pub(super) blocks: Vec<Block>,
    /// To shift and scale of the last layer.
    pub(super) final_modulation: Linear,
    pub(super) last: Linear,
}

/// Reads `config.json` and `weights.safetensors` of a folder.
pub(super) fn read(folder: &Path) -> Result<(Config, Weights)> {
    let config = Config::read(&folder.join("config.json"))?;
    let path = folder.join("weights.safetensors");
    let read_error = |source| Error::Io { action: "read", path: path.clone(), source };
    let file = File::open(&path).map_err(read_error)?;
    // SAFETY: nothing of this process writes the file, and the map ends with this function, when all that was read from it has
    // been copied into packed form.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read_error)?;
    let format_error = |reason: String| Error::Format { path: path.clone(), reason };
    let tensors = SafeTensors::deserialize(&map).map_err(|error| format_error(error.to_string()))?;
    let mut reader = Reader {
        path: path.clone(),
        tensors: tensors.tensors().into_iter().collect(),
        config: &config,
        missing: Vec::new(),
    };
    let weights = reader.weights()?;
    reader.finish()?;
    Ok((config, weights))
}

/// Takes tensors by name; what is left at the end is superfluous.
struct Reader<'m> {
    path: PathBuf,
    tensors: BTreeMap<String, TensorView<'m>>,
    config: &'m Config,
    missing: Vec<String>,
}

impl Reader<'_> {
    fn weights(&mut self) -> Result<Weights> {
        let &Config { hidden, text_tokens, ref classes, dual_blocks, single_blocks, .. } = self.config;
        let prompts = classes.len() + 1;
        let patch_values = self.config.patch_values();
        let mut blocks = Vec::new();
        for block in 0..dual_blocks {
            let [text, image] = ["text", "image"].map(|part| self.stream(&format!("dual.{block}.{part}")));
            blocks.push(Block::Dual(Box::new([text?, image?])));
        }
        for block in 0..single_blocks {
            blocks.push(Block::Single(Box::new(self.stream(&format!("single.{block}.joint"))?)));
        }
        Ok(Weights {
            prompt: self.values("prompt", &[prompts, text_tokens, hidden])?,
            pooled: self.values("pooled", &[prompts, hidden])?,
            patch: self.linear("patch", hidden, patch_values)?,
            time: [self.linear("time1", hidden, hidden)?, self.linear("time2", hidden, hidden)?],
            modulation: self.linear("mod", 6 * hidden, hidden)?,
            blocks,
            final_modulation: self.linear("final_mod", 2 * hidden, hidden)?,
            last: self.linear("final", patch_values, hidden)?,
        })
    }

    fn stream(&mut self, name: &str) -> Result<Stream> {
        let &Config { hidden, head_dim, mlp_ratio, .. } = self.config;
        let qkv = self.tensor(&format!("{name}.qkv.weight"), &[3 * hidden, hidden])?;
        let bias = self.values(&format!("{name}.qkv.bias"), &[3 * hidden])?;
        // Each of the three is projected head by head: cached queries can be left out, and all come out as attention wants them.
        let part = |index: usize| -> Result<Linear> {
            let rows = Weight::new(qkv.as_ref())?.rows(index * hidden, hidden)?;
            let bias = Tensor::from_f32(&[hidden], bias[index * hidden..][..hidden].to_vec())?;
            Ok(Linear { weight: rows.pack_heads(head_dim)?, bias })
        };
        Ok(Stream {
            table: self.values(&format!("{name}.table"), &[6, hidden])?,
            q: part(0)?,
            k: part(1)?,
            v: part(2)?,
            q_norm: self.values(&format!("{name}.q_norm"), &[head_dim])?,
            k_norm: self.values(&format!("{name}.k_norm"), &[head_dim])?,
            out: self.linear(&format!("{name}.out"), hidden, hidden)?,
            up: self.linear(&format!("{name}.up"), mlp_ratio * hidden, hidden)?,
            down: self.linear(&format!("{name}.down"), hidden, mlp_ratio * hidden)?,
        })
    }

    fn linear(&mut self, name: &str, out: usize, inputs: usize) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, inputs])?;
        let bias = self.tensor(&format!("{name}.bias"), &[out])?;
        Ok(Linear { weight: Weight::new(weight.as_ref())?.pack(), bias })
    }

    fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.tensor(name, shape)?.as_ref().to_f32())
    }

    /// A tensor of floats; zeros for one that is missing, which `finish` reports with all others.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(view) = self.tensors.remove(name) else {
            self.missing.push(name.to_owned());
            return Ok(Tensor::zeros(shape, crate::tensor::Dtype::F32));
        };
        if view.shape() != shape {
            return Err(self.wrong(format!("tensor `{name}` has the shape {:?}, wanted {shape:?}", view.shape())));
        }
        match view.dtype() {
            Dtype::F32 => {
                Tensor::from_f32(shape, little_endian(view.data(), |[a, b, c, d]| f32::from_le_bytes([a, b, c, d])))
            }
            Dtype::F16 => Tensor::from_f16(shape, little_endian(view.data(), f16::from_le_bytes)),
            Dtype::BF16 => Tensor::from_bf16(shape, little_endian(view.data(), bf16::from_le_bytes)),
            other => Err(self.wrong(format!("tensor `{name}` is {other}, wanted F32, F16 or BF16"))),
        }
    }

    fn finish(self) -> Result<()> {
        if let [first, rest @ ..] = self.missing.as_slice() {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            return Err(self.wrong(format!("it lacks tensor `{first}`{more}")));
        }
        if let Some(name) = self.tensors.keys().next() {
            let rest = self.tensors.len() - 1;
            let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
            return Err(self.wrong(format!("it has tensor `{name}`{more}, which this transformer has not")));
        }
        Ok(())
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Format { path: self.path.clone(), reason }
    }
}

/// Numbers as they lie in the file, at any alignment.
fn little_endian<const BYTES: usize, T: Element>(bytes: &[u8], read: impl Fn([u8; BYTES]) -> T) -> Vec<T> {
    let (numbers, _) = bytes.as_chunks::<BYTES>();
    numbers.iter().map(|&bytes| read(bytes)).collect()
}
