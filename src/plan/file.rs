//! The plan file: safetensors with a version and a checksum.
//!
//! | tensor | type, shape | what |
//! |---|---|---|
//! | `masks.ROWSxCOLUMNS` | u8 `[count, rows, row_bytes]` | the bitmaps of one shape, rows padded to 64 bits |
//! | `class_of` | u8, u16 or u32 `[steps, layers, heads]` | class of each head |
//! | `schedule` | u8 `[steps, layers]` | indices into [`StepKind::ALL`]: 0 dense, 1 update, 2 refresh, 3 dispatch, 4 reuse ... |
//! | `reuse_orders` | u8 `[steps, layers]` | orders of forecasts of reused layers |
//! | `arrangement.N.order` | u32 `[tokens]` | `order[new] = old`, absent for the model's order |
//! | `arrangement.N.q`, `.kv` | u32 `[blocks + 1]` | offsets of the blocks |
//!
//! Everything else is text in the metadata, JSON but for programs and predicates, which are lists of IR text. The
//! checksum is the BLAKE3 hash of the file with 64 zeros in its place; it stands first in the header. The same plan gives
//! the same bytes. What [`Plan::load`] returns has passed [`Plan::check`].

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::record::{ArrangementRecord, ClassRecord, ModelRecord};
use super::{Arrangement, Blocks, Plan, Schedule};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::ir::StepKind;
use crate::ir::read::{MAX_TABLE_NUMBERS, Readable, read};
use crate::symbols::BitMatrix;

/// The version this crate writes and reads.
pub const VERSION: u32 = 1;

const FORMAT: &str = "flashomni-plan";
/// What a file begins with, behind the eight bytes of the header's length.
const PREFIX: &str = "{\"__metadata__\":{\"checksum\":\"";
/// Digits of the checksum.
const DIGITS: usize = 64;

/// The metadata in the order of the file.
#[derive(Serialize)]
struct Metadata {
    checksum: String,
    format: String,
    version: String,
    producer: String,
    strategy: String,
    params: String,
    quirks: String,
    model: String,
    arrangements: String,
    masks: String,
    classes: String,
    programs: String,
    predicates: String,
}

/// A tensor's line in the header.
#[derive(Serialize)]
struct Entry {
    dtype: &'static str,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: Metadata,
    #[serde(flatten)]
    tensors: &'a BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Writer {
    tensors: BTreeMap<String, Entry>,
    data: Vec<u8>,
}

impl Writer {
    fn tensor(&mut self, name: &str, dtype: &'static str, shape: &[usize], bytes: impl IntoIterator<Item = u8>) {
        let start = self.data.len();
        self.data.extend(bytes);
        // Tensors begin at multiples of eight bytes only if each is padded, which safetensors does not allow; readers
        // copy.
        let entry = Entry { dtype, shape: shape.to_vec(), data_offsets: [start, self.data.len()] };
        self.tensors.insert(name.to_string(), entry);
    }

    fn words(&mut self, name: &str, values: &[u32]) {
        self.tensor(name, "U32", &[values.len()], values.iter().flat_map(|value| value.to_le_bytes()));
    }
}

impl Plan {
    /// Writes the plan to a file, which appears complete or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path, |file| file.write_all(&self.to_bytes()))
    }

    /// The plan as the bytes of a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.write_tensors(&mut writer);
        let header = Header { metadata: self.metadata(), tensors: &writer.tensors };
        let mut header = json(&header);
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.append(&mut writer.data);
        let checksum = blake3::hash(&bytes).to_hex();
        bytes[8 + PREFIX.len()..8 + PREFIX.len() + DIGITS].copy_from_slice(checksum.as_bytes());
        bytes
    }

    fn metadata(&self) -> Metadata {
        let shapes: Vec<(usize, usize)> = self.masks.iter().map(|mask| (mask.rows(), mask.columns())).collect();
        let classes: Vec<ClassRecord> = self.classes.iter().map(ClassRecord::from).collect();
        Metadata {
            checksum: "0".repeat(DIGITS),
            format: FORMAT.to_string(),
            version: VERSION.to_string(),
            producer: concat!("flashomni ", env!("CARGO_PKG_VERSION")).to_string(),
            strategy: self.strategy.clone(),
            params: json(&self.params),
            quirks: json(&self.quirks),
            model: json(&ModelRecord::from(&self.model)),
            arrangements: json(&self.arrangements.iter().map(ArrangementRecord::from).collect::<Vec<_>>()),
            masks: json(&shapes),
            classes: json(&classes),
            programs: json(&self.programs.iter().map(ToString::to_string).collect::<Vec<_>>()),
            predicates: json(&self.predicates.iter().map(ToString::to_string).collect::<Vec<_>>()),
        }
    }

    fn write_tensors(&self, writer: &mut Writer) {
        for (index, arrangement) in self.arrangements.iter().enumerate() {
            if let Some(order) = &arrangement.order {
                writer.words(&format!("arrangement.{index}.order"), order);
            }
            writer.words(&format!("arrangement.{index}.q"), &arrangement.blocks.q);
            writer.words(&format!("arrangement.{index}.kv"), &arrangement.blocks.kv);
        }
        let (steps, layers) = (self.model.steps as usize, self.model.layers as usize);
        let shape = [steps, layers, self.model.heads as usize];
        let classes = &self.class_of;
        match self.classes.len() {
            0..=0x100 => writer.tensor("class_of", "U8", &shape, classes.iter().map(|&class| class as u8)),
            0x101..=0x1_0000 => {
                writer.tensor("class_of", "U16", &shape, classes.iter().flat_map(|&class| (class as u16).to_le_bytes()))
            }
            _ => writer.tensor("class_of", "U32", &shape, classes.iter().flat_map(|class| class.to_le_bytes())),
        }
        let kinds = self
            .schedule
            .kinds
            .iter()
            .map(|kind| StepKind::ALL.iter().position(|other| other == kind).unwrap_or(0) as u8);
        writer.tensor("schedule", "U8", &[steps, layers], kinds);
        writer.tensor("reuse_orders", "U8", &[steps, layers], self.schedule.reuse_orders.iter().copied());
        let mut groups: BTreeMap<(usize, usize), Vec<&BitMatrix>> = BTreeMap::new();
        for mask in &self.masks {
            groups.entry((mask.rows(), mask.columns())).or_default().push(mask);
        }
        for ((rows, columns), masks) in groups {
            let shape = [masks.len(), rows, columns.div_ceil(64) * 8];
            let words = masks.iter().flat_map(|mask| mask.words());
            writer.tensor(&masks_name(rows, columns), "U8", &shape, words.flat_map(|word| word.to_le_bytes()));
        }
    }

    /// Reads a plan from a file and checks it.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Format`] when it is no plan, truncated, altered, of another
    /// version or does not fit together.
    pub fn load(path: impl AsRef<Path>) -> Result<Plan> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_path_buf(), source })?;
        Plan::from_bytes(&bytes, path)
    }

    /// A plan from the bytes of a file; `name` stands for the file in messages.
    ///
    /// # Errors
    /// [`Error::Format`], as [`Plan::load`].
    pub fn from_bytes(bytes: &[u8], name: impl AsRef<Path>) -> Result<Plan> {
        let format = |reason: String| Error::Format { path: name.as_ref().to_path_buf(), reason };
        let plan = read_plan(bytes).map_err(format)?;
        plan.check().map_err(|problem| format(format!("the plan does not fit together: {problem}")))?;
        Ok(plan)
    }
}

fn read_plan(bytes: &[u8]) -> Result<Plan, String> {
    let not_safetensors = |error| format!("it is truncated or not a safetensors file ({error})");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
    let none = Default::default();
    let file = Reader { tensors, metadata: header.metadata().as_ref().unwrap_or(&none) };
    if file.text("format").ok() != Some(FORMAT) {
        return Err("it is a safetensors file, but not a plan of flashomni".to_string());
    }
    let version = file.text("version")?;
    if version != VERSION.to_string() {
        let version: String = version.chars().take(20).collect();
        return Err(format!(
            "it is a plan of version {version}, this flashomni reads version {VERSION}; compile it again"
        ));
    }
    verify(bytes)?;
    file.plan()
}

/// Compares the checksum.
fn verify(bytes: &[u8]) -> Result<(), String> {
    let altered = || "it was altered or damaged after it was written (the checksum does not fit)".to_string();
    let start = 8 + PREFIX.len();
    let (Some(prefix), Some(found)) = (bytes.get(8..start), bytes.get(start..start + DIGITS)) else {
        return Err(altered());
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..start]).update(&[b'0'; DIGITS]).update(&bytes[start + DIGITS..]);
    let fits = hasher.finalize().to_hex().as_bytes() == found;
    if prefix == PREFIX.as_bytes() && fits { Ok(()) } else { Err(altered()) }
}

struct Reader<'a> {
    tensors: SafeTensors<'a>,
    metadata: &'a std::collections::HashMap<String, String>,
}

impl Reader<'_> {
    fn text(&self, key: &str) -> Result<&str, String> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| format!("its metadata lacks `{key}`"))
    }

    fn json<'a, T: Deserialize<'a>>(&'a self, key: &str) -> Result<T, String> {
        serde_json::from_str(self.text(key)?).map_err(|error| format!("its metadata `{key}` is malformed: {error}"))
    }

    /// The bytes of a tensor of an expected type and shape.
    fn tensor(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], String> {
        let tensor = self.tensors.tensor(name).map_err(|_| format!("the tensor `{name}` is missing"))?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            return Err(format!(
                "the tensor `{name}` is {:?} {:?}, expected {dtype:?} {shape:?}",
                tensor.dtype(),
                tensor.shape()
            ));
        }
        Ok(tensor.data())
    }

    /// A tensor of one dimension of whatever length.
    fn words(&self, name: &str) -> Result<Vec<u32>, String> {
        let length = self.tensors.tensor(name).ok().and_then(|tensor| tensor.shape().first().copied());
        self.tensor(name, Dtype::U32, &[length.unwrap_or(0)]).map(words)
    }

    /// IR texts; tables of all of them share one allowance.
    fn texts<T: Readable>(&self, key: &str, budget: &mut usize) -> Result<Vec<T>, String> {
        let texts: Vec<String> = self.json(key)?;
        let read_one = |(index, text): (usize, &String)| {
            read(text, budget).map_err(|error| format!("entry {index} of its `{key}` cannot be read: {error}"))
        };
        texts.iter().enumerate().map(read_one).collect()
    }

    fn plan(&self) -> Result<Plan, String> {
        let model = crate::ir::Model::try_from(self.json::<ModelRecord>("model")?)?;
        let (steps, layers, heads) = (model.steps as usize, model.layers as usize, model.heads as usize);
        let kinds = self.tensor("schedule", Dtype::U8, &[steps, layers])?;
        let kinds = kinds.iter().map(|&kind| StepKind::ALL.get(usize::from(kind)).copied()).collect::<Option<Vec<_>>>();
        let mut budget = MAX_TABLE_NUMBERS;
        Ok(Plan {
            strategy: self.text("strategy")?.to_string(),
            params: self.json("params")?,
            quirks: self.json("quirks")?,
            arrangements: self.arrangements()?,
            schedule: Schedule {
                layers: model.layers,
                kinds: kinds.ok_or("the schedule holds a kind of step that does not exist")?,
                reuse_orders: self.tensor("reuse_orders", Dtype::U8, &[steps, layers])?.to_vec(),
            },
            masks: self.masks()?,
            programs: self.texts("programs", &mut budget)?,
            predicates: self.texts("predicates", &mut budget)?,
            classes: self.json::<Vec<ClassRecord>>("classes")?.into_iter().map(Into::into).collect(),
            class_of: self.class_of(&[steps, layers, heads])?,
            model,
        })
    }

    fn arrangements(&self) -> Result<Vec<Arrangement>, String> {
        let records: Vec<ArrangementRecord> = self.json("arrangements")?;
        let read_one = |(index, record): (usize, ArrangementRecord)| -> Result<Arrangement, String> {
            let ArrangementRecord { tiling, clustering } = record;
            let order = format!("arrangement.{index}.order");
            let order = self.tensors.tensor(&order).is_ok().then(|| self.words(&order)).transpose()?;
            let offsets = |side: &str| self.words(&format!("arrangement.{index}.{side}"));
            let blocks = Blocks { q: offsets("q")?, kv: offsets("kv")? };
            Ok(Arrangement { order, tiling, clustering, blocks })
        };
        records.into_iter().enumerate().map(read_one).collect()
    }

    fn class_of(&self, shape: &[usize]) -> Result<Vec<u32>, String> {
        let dtype = self.tensors.tensor("class_of").map_or(Dtype::U8, |tensor| tensor.dtype());
        let dtype = if matches!(dtype, Dtype::U16 | Dtype::U32) { dtype } else { Dtype::U8 };
        let bytes = self.tensor("class_of", dtype, shape)?;
        Ok(match dtype {
            Dtype::U16 => bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect(),
            Dtype::U32 => words(bytes),
            _ => bytes.iter().map(|&class| class.into()).collect(),
        })
    }

    fn masks(&self) -> Result<Vec<BitMatrix>, String> {
        let shapes: Vec<(usize, usize)> = self.json("masks")?;
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let position = shapes.iter().map(|&shape| {
            let count = counts.entry(shape).or_default();
            *count += 1;
            *count - 1
        });
        let positions: Vec<usize> = position.collect();
        let mut groups: BTreeMap<(usize, usize), &[u8]> = BTreeMap::new();
        for (&(rows, columns), &count) in &counts {
            let name = masks_name(rows, columns);
            if rows == 0 || columns == 0 {
                return Err(format!("the bitmaps `{name}` are empty"));
            }
            let shape = [count, rows, columns.div_ceil(64).saturating_mul(8)];
            groups.insert((rows, columns), self.tensor(&name, Dtype::U8, &shape)?);
        }
        let read_one = |(&(rows, columns), position): (&(usize, usize), usize)| {
            let bytes = groups.get(&(rows, columns)).copied().unwrap_or_default();
            let size = bytes.len() / counts.get(&(rows, columns)).copied().unwrap_or(1).max(1);
            let words: Vec<u64> = bytes[position * size..(position + 1) * size]
                .chunks_exact(8)
                .map(|word| word.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))
                .collect();
            BitMatrix::from_words(rows, columns, words).ok_or_else(|| masks_name(rows, columns))
        };
        let masks: Result<Vec<BitMatrix>, String> = shapes.iter().zip(positions).map(read_one).collect();
        masks.map_err(|name| format!("the tensor `{name}` has the wrong size"))
    }
}

fn masks_name(rows: usize, columns: usize) -> String {
    format!("masks.{rows}x{columns}")
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

/// Text and numbers as JSON, which cannot fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
