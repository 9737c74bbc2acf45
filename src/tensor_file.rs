//! Tensors on disk, in the safetensors format.
//!
//! [`TensorFile`] reads the header when it is opened and the values of a tensor when they are asked for, by
//! plain reads: a file that is cut short while it is open gives an error, where a memory map would end the
//! process. [`write()`] lays the file out by itself, tensors by alignment and name and metadata by key, so that
//! the same content always gives the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};

use crate::diagnostics::did_you_mean;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::tensor::{Tensor, TensorRef, Values};

// The format is little endian and values are copied as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "tensor files are read and written in the machine's byte order");

/// The longest header the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Names longer than this get no suggestion, which costs the product of the lengths.
const MAX_SUGGEST_BYTES: usize = 200;

/// An open safetensors file.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// Where the values begin.
    data_start: u64,
}

/// Types of elements a file may hold and this library may read besides [`Tensor`]'s.
pub trait FileElement: bytemuck::Pod {
    /// The name in the header.
    const DTYPE: FileDtype;
}

macro_rules! file_elements {
    ($($element:ty => $dtype:ident),*) => {
        $(impl FileElement for $element {
            const DTYPE: FileDtype = FileDtype::$dtype;
        })*
    };
}
file_elements!(f32 => F32, f16 => F16, bf16 => BF16, u8 => U8, i8 => I8, u32 => U32, i32 => I32, i64 => I64);

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Format`] when it is not safetensors, is truncated or altered.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let read_error = |source| Error::Io { action: "read", path: path.clone(), source };
        let mut file = File::open(&path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(io::ErrorKind::IsADirectory.into()));
        }
        let size = metadata.len();
        let (header, data_start) = read_header(&mut file, size)
            .map_err(read_error)?
            .map_err(|reason| Error::Format { path: path.clone(), reason })?;
        Ok(TensorFile { path, file: Mutex::new(file), header, data_start })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }

    /// Whether it has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Sizes of a tensor, outermost first.
    ///
    /// # Errors
    /// [`Error::Format`] when there is no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// Element type of a tensor, as the format names it (`F32`, `BF16`, `U8`, ...).
    ///
    /// # Errors
    /// [`Error::Format`] when there is no such tensor.
    pub fn dtype(&self, name: &str) -> Result<String> {
        Ok(self.info(name)?.dtype.to_string())
    }

    /// An entry of the file's metadata.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// A tensor of floats.
    ///
    /// # Errors
    /// [`Error::Format`] when there is no such tensor, it is not F32, F16 or BF16, or the file has been cut;
    /// [`Error::Io`] when reading fails.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        match info.dtype {
            FileDtype::F32 => Tensor::from_f32(&info.shape, self.read(name, info)?),
            FileDtype::F16 => Tensor::from_f16(&info.shape, self.read(name, info)?),
            FileDtype::BF16 => Tensor::from_bf16(&info.shape, self.read(name, info)?),
            other => Err(self.wrong_dtype(name, other, "F32, F16 or BF16")),
        }
    }

    /// The values of a tensor of one exact type, row-major; its sizes are [`TensorFile::shape`].
    ///
    /// # Errors
    /// As [`TensorFile::get`], with the type asked for.
    pub fn values<T: FileElement>(&self, name: &str) -> Result<Vec<T>> {
        let info = self.info(name)?;
        if info.dtype != T::DTYPE {
            return Err(self.wrong_dtype(name, info.dtype, &T::DTYPE.to_string()));
        }
        self.read(name, info)
    }

    /// As [`TensorFile::values`], for a tensor that must have the sizes `shape`.
    ///
    /// # Errors
    /// As [`TensorFile::values`], and [`Error::Format`] when the sizes differ.
    pub fn values_of_shape<T: FileElement>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        let found = self.shape(name)?;
        if found != shape {
            return Err(self.format_error(format!("tensor `{name}` has shape {found:?}, wanted {shape:?}")));
        }
        self.values(name)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        let names = self.names();
        let candidates = names.iter().map(String::as_str).filter(|name| name.len() <= MAX_SUGGEST_BYTES);
        let suggestion = if name.len() <= MAX_SUGGEST_BYTES { did_you_mean(name, candidates) } else { None };
        let hint = match suggestion {
            Some(near) => format!("; did you mean `{near}`?"),
            None if names.is_empty() => "; it has no tensors".to_string(),
            None => format!("; it has {}", list(&names)),
        };
        self.format_error(format!("it has no tensor `{name}`{hint}"))
    }

    fn wrong_dtype(&self, name: &str, found: FileDtype, wanted: &str) -> Error {
        self.format_error(format!("tensor `{name}` is {found}, wanted {wanted}"))
    }

    fn format_error(&self, reason: String) -> Error {
        Error::Format { path: self.path.clone(), reason }
    }

    /// The values of a tensor; the header has been checked, so their number is that of its shape.
    fn read<T: FileElement>(&self, name: &str, info: &TensorInfo) -> Result<Vec<T>> {
        let (start, end) = info.data_offsets;
        let mut values = vec![T::zeroed(); (end - start) / size_of::<T>()];
        // A panic elsewhere while the lock was held leaves only a file position behind, and that is set here.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut values)));
        match result {
            Ok(()) => Ok(values),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.format_error(format!("it ends inside tensor `{name}`; it was cut after it was opened")))
            }
            Err(source) => Err(Error::Io { action: "read", path: self.path.clone(), source }),
        }
    }
}

/// The first few names, for a message.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let rest = names.len().saturating_sub(SHOWN);
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

/// The header and where the values begin. The outer error is the system's, the inner one says what is wrong.
fn read_header(file: &mut File, size: u64) -> io::Result<std::result::Result<(Metadata, u64), String>> {
    if size < 8 {
        return Ok(Err(format!("it is not a safetensors file: {size} bytes are too few for a header")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Ok(Err(format!(
            "it is not a safetensors file: its header would be {length} bytes long, more than the {MAX_HEADER_BYTES} \
             allowed"
        )));
    }
    if length > size - 8 {
        return Ok(Err(format!("it is truncated: the header needs {length} bytes, {} are there", size - 8)));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    Ok(parse_header(&header, size - 8 - length).map(|header| (header, 8 + length)))
}

fn parse_header(header: &[u8], data_bytes: u64) -> std::result::Result<Metadata, String> {
    let header: Metadata = serde_json::from_slice(header).map_err(|error| format!("its header is damaged: {error}"))?;
    let wanted = header.data_len() as u64;
    match data_bytes.cmp(&wanted) {
        std::cmp::Ordering::Less => {
            Err(format!("it is truncated: its tensors need {wanted} bytes, {data_bytes} are there"))
        }
        std::cmp::Ordering::Greater => {
            Err(format!("its tensors end after {wanted} bytes, but {} more follow", data_bytes - wanted))
        }
        std::cmp::Ordering::Equal => Ok(header),
    }
}

/// Values to write.
#[derive(Clone, Copy, Debug)]
pub enum FileValues<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Bytes, for instance packed symbols.
    U8(&'a [u8]),
    /// Signed bytes.
    I8(&'a [i8]),
    /// Unsigned integers of 32 bits.
    U32(&'a [u32]),
    /// Signed integers of 32 bits.
    I32(&'a [i32]),
    /// Signed integers of 64 bits.
    I64(&'a [i64]),
}

impl<'a> FileValues<'a> {
    fn parts(self) -> (FileDtype, &'a [u8]) {
        match self {
            FileValues::F32(values) => (FileDtype::F32, bytemuck::cast_slice(values)),
            FileValues::F16(values) => (FileDtype::F16, bytemuck::cast_slice(values)),
            FileValues::Bf16(values) => (FileDtype::BF16, bytemuck::cast_slice(values)),
            FileValues::U8(values) => (FileDtype::U8, values),
            FileValues::I8(values) => (FileDtype::I8, bytemuck::cast_slice(values)),
            FileValues::U32(values) => (FileDtype::U32, bytemuck::cast_slice(values)),
            FileValues::I32(values) => (FileDtype::I32, bytemuck::cast_slice(values)),
            FileValues::I64(values) => (FileDtype::I64, bytemuck::cast_slice(values)),
        }
    }
}

impl<'a> From<Values<'a>> for FileValues<'a> {
    fn from(values: Values<'a>) -> Self {
        match values {
            Values::F32(values) => FileValues::F32(values),
            Values::F16(values) => FileValues::F16(values),
            Values::Bf16(values) => FileValues::Bf16(values),
        }
    }
}

/// One tensor to write.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its name, unique in the file.
    pub name: String,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: FileValues<'a>,
}

impl<'a> Entry<'a> {
    /// A tensor of floats under a name.
    pub fn of(name: impl Into<String>, tensor: TensorRef<'a>) -> Self {
        Entry { name: name.into(), shape: tensor.shape().to_vec(), values: tensor.values().into() }
    }
}

/// Writes tensors and metadata; the file appears complete or not at all.
///
/// # Errors
/// [`Error::Shape`] when the values of an entry do not fill its shape or two entries have one name,
/// [`Error::Io`] when the file cannot be written.
pub fn write(path: impl AsRef<Path>, entries: &[Entry<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let (header, order) = layout(entries, metadata)?;
    write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        order.iter().try_for_each(|entry| out.write_all(entry.values.parts().1))
    })
}

/// The same bytes as [`write()`], in memory.
///
/// # Errors
/// [`Error::Shape`] as for [`write()`].
pub fn to_bytes(entries: &[Entry<'_>], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let (header, order) = layout(entries, metadata)?;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    order.iter().for_each(|entry| bytes.extend_from_slice(entry.values.parts().1));
    Ok(bytes)
}

/// The header, padded with blanks to 8 bytes, and the tensors in the order of their values.
fn layout<'e, 'a>(
    entries: &'e [Entry<'a>],
    metadata: &BTreeMap<String, String>,
) -> Result<(String, Vec<&'e Entry<'a>>)> {
    let mut order: Vec<&Entry<'_>> = entries.iter().collect();
    // Wide elements first: then every tensor is aligned for its type.
    let width = |entry: &Entry<'_>| entry.values.parts().0.bitsize();
    order.sort_by(|a, b| width(b).cmp(&width(a)).then_with(|| a.name.cmp(&b.name)));
    let mut header = String::from("{");
    if !metadata.is_empty() {
        header += &format!("\"__metadata__\":{},", json(metadata));
    }
    let (mut start, mut names) = (0, std::collections::BTreeSet::from(["__metadata__"]));
    for entry in &order {
        let (dtype, bytes) = entry.values.parts();
        let wanted = entry.shape.iter().try_fold(dtype.bitsize() / 8, |product, &size| product.checked_mul(size));
        if wanted != Some(bytes.len()) {
            let (name, shape, found) = (&entry.name, &entry.shape, bytes.len() * 8 / dtype.bitsize());
            return Err(Error::Shape(format!("tensor `{name}` of shape {shape:?} was given {found} values")));
        }
        if !names.insert(&entry.name) {
            return Err(Error::Shape(format!("two tensors have the name `{}`", entry.name)));
        }
        let end = start + bytes.len();
        let (name, shape) = (json(&entry.name), json(&entry.shape));
        header += &format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}},");
        start = end;
    }
    if header.ends_with(',') {
        header.pop();
    }
    header.push('}');
    let padding = header.len().next_multiple_of(8) - header.len();
    header.extend(std::iter::repeat_n(' ', padding));
    Ok((header, order))
}

/// Strings and numbers as JSON, which cannot fail.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sample() -> Vec<u8> {
        let metadata = BTreeMap::from([("author".to_string(), "line\n\"two\"".to_string()), ("a".into(), "b".into())]);
        let entries = [
            Entry { name: "mask".into(), shape: vec![3], values: FileValues::U8(&[1, 0, 1]) },
            Entry { name: "q.step4".into(), shape: vec![2, 2], values: FileValues::F32(&[1.0, 2.0, 3.0, 4.0]) },
            Entry { name: "k".into(), shape: vec![2], values: FileValues::F16(&[f16::ONE, f16::NEG_ONE]) },
        ];
        to_bytes(&entries, &metadata).unwrap()
    }

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<TensorFile>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.safetensors");
        fs::write(&path, bytes).unwrap();
        let file = TensorFile::open(path);
        (directory, file)
    }

    fn refusal(bytes: &[u8]) -> String {
        let (_directory, file) = open(bytes);
        file.unwrap_err().to_string().split_once("cannot be used: ").unwrap().1.to_string()
    }

    #[test]
    fn round_trip() {
        let (_directory, file) = open(&sample());
        let file = file.unwrap();
        assert_eq!(file.names(), ["k", "mask", "q.step4"]);
        assert_eq!(file.get("q.step4").unwrap(), Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap());
        assert_eq!(file.get("k").unwrap().as_ref().to_f32(), [1.0, -1.0]);
        assert_eq!(file.values::<u8>("mask").unwrap(), [1, 0, 1]);
        assert_eq!(file.metadata("author"), Some("line\n\"two\""));
        assert_eq!((file.shape("k").unwrap(), file.dtype("k").unwrap().as_str()), (&[2][..], "F16"));
        assert!(file.contains("mask") && !file.contains("v"));
    }

    #[test]
    fn the_format_is_the_published_one() {
        let bytes = sample();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("mask").unwrap().data(), [1, 0, 1]);
        assert_eq!(file.len(), 3);
        assert!(safetensors::SafeTensors::deserialize(&to_bytes(&[], &BTreeMap::new()).unwrap()).is_ok());
    }

    #[test]
    fn written_files_are_whole_and_equal() {
        let directory = tempfile::tempdir().unwrap();
        let tensor = Tensor::zeros(&[2, 3], crate::tensor::Dtype::Bf16);
        let entries = [Entry::of("t", tensor.as_ref())];
        for name in ["a", "b"] {
            write(directory.path().join(name), &entries, &BTreeMap::new()).unwrap();
        }
        let [a, b] = ["a", "b"].map(|name| fs::read(directory.path().join(name)).unwrap());
        assert_eq!(a, b);
        let error = write(directory.path().join("none/a"), &entries, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, Error::Io { action: "write", .. }));
    }

    #[test]
    fn wrong_entries_are_refused() {
        let short = Entry { name: "a".into(), shape: vec![4], values: FileValues::I32(&[1, 2]) };
        let text = to_bytes(&[short], &BTreeMap::new()).unwrap_err().to_string();
        assert_eq!(text, "tensor `a` of shape [4] was given 2 values");
        let one = Entry { name: "a".into(), shape: vec![1], values: FileValues::I8(&[1]) };
        let text = to_bytes(&[one.clone(), one], &BTreeMap::new()).unwrap_err().to_string();
        assert_eq!(text, "two tensors have the name `a`");
    }

    #[test]
    fn missing_files_and_directories_are_named() {
        let text = TensorFile::open("no/such.safetensors").unwrap_err().to_string();
        assert_eq!(text, "cannot read `no/such.safetensors`: No such file or directory (os error 2)");
        let directory = tempfile::tempdir().unwrap();
        let text = TensorFile::open(directory.path()).unwrap_err().to_string();
        assert!(text.ends_with("is a directory"), "{text}");
    }

    #[test]
    fn truncated_files_are_refused_at_every_length() {
        let bytes = sample();
        for length in 0..bytes.len() {
            let text = refusal(&bytes[..length]);
            let known = text.starts_with("it is truncated") || text.starts_with("it is not a safetensors file");
            assert!(known, "{length}: {text}");
        }
        let longer = [bytes.as_slice(), &[0, 0]].concat();
        assert_eq!(refusal(&longer), "its tensors end after 23 bytes, but 2 more follow");
    }

    #[test]
    fn huge_headers_are_refused_without_reading_them() {
        let mut bytes = sample();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(refusal(&bytes).contains("18446744073709551615 bytes long"));
        bytes[..8].copy_from_slice(&99_999_999_u64.to_le_bytes());
        assert!(refusal(&bytes).starts_with("it is truncated: the header needs 99999999 bytes"));
    }

    #[test]
    fn altered_headers_are_refused() {
        let bytes = sample();
        let alter = |from: &str, to: &str| {
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains(from) && from.len() == to.len());
            let at = text.find(from).unwrap();
            let mut altered = bytes.clone();
            altered[at..at + to.len()].copy_from_slice(to.as_bytes());
            refusal(&altered)
        };
        assert!(alter("[2,2]", "[2,3]").starts_with("its header is damaged"));
        assert!(alter("\"F16\"", "\"F99\"").starts_with("its header is damaged"));
        assert!(alter("[0,16]", "[1,16]").starts_with("its header is damaged"));
        assert!(alter("{", "[").starts_with("its header is damaged"));
        assert!(alter("\"shape\"", "\"sh\\ope\"".get(..7).unwrap()).starts_with("its header is damaged"));
    }

    #[test]
    fn every_flipped_header_byte_is_handled() {
        let bytes = sample();
        for at in 0..bytes.len() - 23 {
            for bit in 0..8 {
                let mut altered = bytes.clone();
                altered[at] ^= 1 << bit;
                let (_directory, file) = open(&altered);
                // Some changes (a letter of a name) give another good file; what is read must then be readable.
                if let Ok(file) = file {
                    file.names().iter().for_each(|name| drop(file.get(name)));
                }
            }
        }
    }

    #[test]
    fn wrong_names_and_types_say_what_is_there() {
        let (_directory, file) = open(&sample());
        let file = file.unwrap();
        let reason = |error: Error| error.to_string().split_once("cannot be used: ").unwrap().1.to_string();
        assert_eq!(reason(file.get("q.step5").unwrap_err()), "it has no tensor `q.step5`; did you mean `q.step4`?");
        assert_eq!(
            reason(file.get("weights").unwrap_err()),
            "it has no tensor `weights`; it has `k`, `mask`, `q.step4`"
        );
        assert_eq!(reason(file.get("mask").unwrap_err()), "tensor `mask` is U8, wanted F32, F16 or BF16");
        assert_eq!(reason(file.values::<u8>("k").unwrap_err()), "tensor `k` is F16, wanted U8");
        assert_eq!(
            reason(file.values_of_shape::<u8>("mask", &[4]).unwrap_err()),
            "tensor `mask` has shape [3], wanted [4]"
        );
    }

    #[test]
    fn a_file_cut_while_open_is_an_error() {
        let (_directory, file) = open(&sample());
        let file = file.unwrap();
        File::options().write(true).open(file.path()).unwrap().set_len(200).unwrap();
        assert!(file.get("k").unwrap_err().to_string().contains("it ends inside tensor `k`"));
    }
}
