//! The published packed form of the symbols, `sparse_info` and `sparse_kv_info`, and the way there and back.
//!
//! The published kernels number the bits of a request as `q_block * heads + head` (`sparse_info`) and
//! `(q_block * heads + head) * kv_blocks + kv_block` (`sparse_kv_info`), put bit `b` at position `b % 8` of byte
//! `b / 8`, and begin every request of a batch at a byte boundary. Rows therefore start in the middle of
//! bytes; a bit writer and a bit reader shift them to and from our word-aligned rows, 64 bits at a time.
//!
//! The form has no token masks: symbols with partial blocks are refused, because reading such a block as a
//! whole one computes more than the strategy asked for. A caller that wants just that sets
//! [`Symbols::partial`] to `None` first.
//!
//! # Source
//! The packing helpers and kernels that accompany FlashOmni, arXiv 2509.25401.

use crate::error::{Error, Result};
use crate::symbols::{BitMatrix, Symbols};

/// Packed bits of a batch: one byte-aligned segment per request.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Packed {
    /// All segments, least significant bit first; the unused bits of a segment's last byte are zero.
    pub bytes: Vec<u8>,
    /// `[requests + 1]`: segment `r` is `bytes[indptr[r]..indptr[r + 1]]`.
    pub indptr: Vec<i32>,
}

/// The symbols of a batch in the published form.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Interchange {
    /// `S_c`: bits `[q_block][head]` of each request.
    pub sparse_info: Packed,
    /// `S_s`: bits `[q_block][head][kv_block]` of each request.
    pub sparse_kv_info: Packed,
}

/// What the packed form does not carry: the sizes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestShape {
    /// Query heads; the published form has no grouped heads.
    pub heads: usize,
    /// Blocks of queries.
    pub q_blocks: usize,
    /// Blocks of keys.
    pub kv_blocks: usize,
}

impl RequestShape {
    fn bits(self, name: &str) -> Option<usize> {
        let rows = self.heads.checked_mul(self.q_blocks)?;
        if name == CACHE { Some(rows) } else { rows.checked_mul(self.kv_blocks) }
    }
}

const CACHE: &str = "sparse_info";
const SKIP: &str = "sparse_kv_info";

/// Packs the symbols of a batch, one request each.
///
/// # Errors
/// [`Error::Value`] when a request has partial blocks or a buffer outgrows the `i32` offsets;
/// [`Error::Shape`] when the matrices of a request do not fit each other.
pub fn pack(requests: &[&Symbols]) -> Result<Interchange> {
    let mut sparse_info = PackedWriter::new(CACHE);
    let mut sparse_kv_info = PackedWriter::new(SKIP);
    for (index, symbols) in requests.iter().enumerate() {
        check_request(index, symbols)?;
        let (heads, q_blocks, kv_blocks) = (symbols.heads(), symbols.q_blocks(), symbols.kv_blocks());
        for q_block_idx in 0..q_blocks {
            for head_idx in 0..heads {
                sparse_info.bits.push(u64::from(symbols.cache.get(head_idx, q_block_idx)), 1);
                let row = symbols.skip.row(head_idx * q_blocks + q_block_idx);
                for (word_idx, &word) in row.iter().enumerate() {
                    sparse_kv_info.bits.push(word, (kv_blocks - word_idx * 64).min(64));
                }
            }
        }
        sparse_info.end_request()?;
        sparse_kv_info.end_request()?;
    }
    Ok(Interchange { sparse_info: sparse_info.finish(), sparse_kv_info: sparse_kv_info.finish() })
}

fn check_request(index: usize, symbols: &Symbols) -> Result<()> {
    let rows = symbols.heads() * symbols.q_blocks();
    if symbols.skip.rows() != rows {
        let found = symbols.skip.rows();
        return Err(Error::Shape(format!(
            "request {index}: the skip symbol has {found} rows, but {} heads of {} q-blocks need {rows}",
            symbols.heads(),
            symbols.q_blocks()
        )));
    }
    match symbols.partial.as_ref().map_or(0, |partial| partial.bits.count()) {
        0 => Ok(()),
        blocks => Err(Error::Value(format!(
            "request {index} computes {blocks} blocks under a token mask, which `{SKIP}` cannot carry; \
             lower the rule to whole blocks"
        ))),
    }
}

/// Unpacks a batch; `shapes` has one entry per request.
///
/// # Errors
/// [`Error::Shape`] when the number of requests, an `indptr` or the length of a segment is wrong;
/// [`Error::Value`] when the unused bits at the end of a segment are not zero.
pub fn unpack(packed: &Interchange, shapes: &[RequestShape]) -> Result<Vec<Symbols>> {
    check_packed(CACHE, &packed.sparse_info, shapes)?;
    check_packed(SKIP, &packed.sparse_kv_info, shapes)?;
    let requests = shapes.iter().enumerate().map(|(index, &shape)| {
        let cache = segment(&packed.sparse_info, index);
        let skip = segment(&packed.sparse_kv_info, index);
        unpack_request(shape, BitReader::new(cache), BitReader::new(skip))
    });
    Ok(requests.collect())
}

fn unpack_request(shape: RequestShape, mut cache_bits: BitReader<'_>, mut skip_bits: BitReader<'_>) -> Symbols {
    let RequestShape { heads, q_blocks, kv_blocks } = shape;
    let mut cache = BitMatrix::zeros(heads, q_blocks);
    let mut skip = BitMatrix::zeros(heads * q_blocks, kv_blocks);
    for q_block_idx in 0..q_blocks {
        for head_idx in 0..heads {
            cache.set(head_idx, q_block_idx, cache_bits.pull(1) == 1);
            let row = skip.row_mut(head_idx * q_blocks + q_block_idx);
            for (word_idx, word) in row.iter_mut().enumerate() {
                *word = skip_bits.pull((kv_blocks - word_idx * 64).min(64));
            }
        }
    }
    Symbols { cache, skip, partial: None }
}

/// The bytes of one request. [`check_packed`] has accepted `packed`, so the offsets are in range.
fn segment(packed: &Packed, index: usize) -> &[u8] {
    &packed.bytes[packed.indptr[index] as usize..packed.indptr[index + 1] as usize]
}

fn check_packed(name: &str, packed: &Packed, shapes: &[RequestShape]) -> Result<()> {
    if packed.indptr.len() != shapes.len() + 1 {
        let (found, requests) = (packed.indptr.len(), shapes.len());
        let wanted = requests + 1;
        return Err(Error::Shape(format!(
            "the indptr of `{name}` has {found} entries, but {requests} requests need {wanted}"
        )));
    }
    if packed.indptr[0] != 0 {
        return Err(Error::Shape(format!("the indptr of `{name}` begins with {}, not 0", packed.indptr[0])));
    }
    for (index, (pair, shape)) in packed.indptr.windows(2).zip(shapes).enumerate() {
        let found = i64::from(pair[1]) - i64::from(pair[0]);
        let bits = shape.bits(name).ok_or_else(|| {
            Error::Shape(format!("request {index}: {shape:?} has more bits than this machine can address"))
        })?;
        if usize::try_from(found).ok() != Some(bits.div_ceil(8)) {
            return Err(Error::Shape(format!(
                "request {index} of `{name}` takes {found} bytes by its indptr, but {} heads, {} q-blocks and {} \
                 kv-blocks need {}",
                shape.heads,
                shape.q_blocks,
                shape.kv_blocks,
                bits.div_ceil(8)
            )));
        }
    }
    let wanted = packed.indptr[shapes.len()];
    if usize::try_from(wanted).ok() != Some(packed.bytes.len()) {
        let found = packed.bytes.len();
        return Err(Error::Shape(format!("`{name}` has {found} bytes, but its indptr ends at {wanted}")));
    }
    check_tails(name, packed, shapes)
}

fn check_tails(name: &str, packed: &Packed, shapes: &[RequestShape]) -> Result<()> {
    for (index, shape) in shapes.iter().enumerate() {
        let used = shape.bits(name).unwrap_or(0) % 8;
        let last = segment(packed, index).last().copied().unwrap_or(0);
        if used != 0 && last >> used != 0 {
            return Err(Error::Value(format!(
                "request {index} of `{name}`: bits are set behind its last block (last byte {last:#04x}, {used} bits \
                 used); was it packed most significant bit first?"
            )));
        }
    }
    Ok(())
}

/// Segments with their offsets while they are written.
struct PackedWriter {
    name: &'static str,
    bits: BitWriter,
    indptr: Vec<i32>,
}

impl PackedWriter {
    fn new(name: &'static str) -> Self {
        PackedWriter { name, bits: BitWriter::default(), indptr: vec![0] }
    }

    fn end_request(&mut self) -> Result<()> {
        self.bits.align();
        let end = i32::try_from(self.bits.bytes.len()).map_err(|_| {
            Error::Value(format!("`{}` outgrows 2 GiB, the reach of its indptr; split the batch", self.name))
        })?;
        self.indptr.push(end);
        Ok(())
    }

    fn finish(self) -> Packed {
        Packed { bytes: self.bits.bytes, indptr: self.indptr }
    }
}

/// Appends bits, least significant first.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    /// Bits in `pending`, below 64.
    pending_bits: usize,
}

impl BitWriter {
    /// Appends the low `count` bits of `word`, `count` in `0..=64`; the bits above must be zero.
    fn push(&mut self, word: u64, count: usize) {
        self.pending |= word << self.pending_bits;
        let total = self.pending_bits + count;
        if total < 64 {
            self.pending_bits = total;
            return;
        }
        self.bytes.extend_from_slice(&self.pending.to_le_bytes());
        let written = 64 - self.pending_bits;
        // A shift by 64 is no shift: it happens when the word went out whole.
        self.pending = if written == 64 { 0 } else { word >> written };
        self.pending_bits = total - 64;
    }

    /// Fills up to the next byte with zeros.
    fn align(&mut self) {
        let rest = self.pending_bits.div_ceil(8);
        self.bytes.extend_from_slice(&self.pending.to_le_bytes()[..rest]);
        (self.pending, self.pending_bits) = (0, 0);
    }
}

/// Takes bits, least significant first; behind the end there are zeros.
struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        BitReader { bytes, position: 0 }
    }

    /// The next `count` bits, `count` in `0..=64`.
    fn pull(&mut self, count: usize) -> u64 {
        let (byte, shift) = (self.position / 8, self.position % 8);
        self.position += count;
        let rest = self.bytes.get(byte..).unwrap_or(&[]);
        let mut window = [0_u8; 16];
        // Nine bytes hold any 64 bits; the window is wider only to be an integer type.
        let len = rest.len().min(9);
        window[..len].copy_from_slice(&rest[..len]);
        let word = (u128::from_le_bytes(window) >> shift) as u64;
        if count == 64 { word } else { word & ((1 << count) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::symbols::Partial;

    fn symbols(shape: RequestShape, seed: u64) -> Symbols {
        // splitmix64: enough to make every bit differ between rows.
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        let mut random = |rows: usize, columns: usize| {
            let words = (0..rows * columns.div_ceil(64)).map(|_| next()).collect();
            BitMatrix::from_words(rows, columns, words).unwrap()
        };
        let RequestShape { heads, q_blocks, kv_blocks } = shape;
        Symbols { cache: random(heads, q_blocks), skip: random(heads * q_blocks, kv_blocks), partial: None }
    }

    /// The published order, one bit at a time.
    fn pack_slowly(symbols: &Symbols) -> (Vec<u8>, Vec<u8>) {
        let (heads, q_blocks, kv_blocks) = (symbols.heads(), symbols.q_blocks(), symbols.kv_blocks());
        let mut cache = vec![0_u8; (heads * q_blocks).div_ceil(8)];
        let mut skip = vec![0_u8; (heads * q_blocks * kv_blocks).div_ceil(8)];
        for q in 0..q_blocks {
            for h in 0..heads {
                let bit = q * heads + h;
                cache[bit / 8] |= u8::from(symbols.cache.get(h, q)) << (bit % 8);
                for k in 0..kv_blocks {
                    let bit = (q * heads + h) * kv_blocks + k;
                    skip[bit / 8] |= u8::from(symbols.skip.get(h * q_blocks + q, k)) << (bit % 8);
                }
            }
        }
        (cache, skip)
    }

    fn shape_strategy() -> impl Strategy<Value = RequestShape> {
        (0..5_usize, 0..9_usize, prop_oneof![0..10_usize, 60..70_usize, 126..131_usize])
            .prop_map(|(heads, q_blocks, kv_blocks)| RequestShape { heads, q_blocks, kv_blocks })
    }

    proptest! {
        #[test]
        fn round_trip(shapes in prop::collection::vec(shape_strategy(), 0..4), seed: u64) {
            let batch: Vec<Symbols> = shapes.iter().zip(0..).map(|(&s, i)| symbols(s, seed ^ i)).collect();
            let packed = pack(&batch.iter().collect::<Vec<_>>()).unwrap();
            let slow: Vec<_> = batch.iter().map(pack_slowly).collect();
            prop_assert_eq!(&packed.sparse_info.bytes, &slow.iter().flat_map(|s| s.0.clone()).collect::<Vec<_>>());
            prop_assert_eq!(&packed.sparse_kv_info.bytes, &slow.iter().flat_map(|s| s.1.clone()).collect::<Vec<_>>());
            prop_assert_eq!(unpack(&packed, &shapes).unwrap(), batch);
        }
    }

    const SHAPE: RequestShape = RequestShape { heads: 3, q_blocks: 5, kv_blocks: 7 };

    fn refusal(change: impl FnOnce(&mut Interchange)) -> String {
        let mut packed = pack(&[&symbols(SHAPE, 1), &symbols(SHAPE, 2)]).unwrap();
        change(&mut packed);
        unpack(&packed, &[SHAPE, SHAPE]).unwrap_err().to_string()
    }

    #[test]
    fn wrong_sizes_are_named() {
        let text = refusal(|p| p.sparse_info.indptr.truncate(2));
        assert_eq!(text, "the indptr of `sparse_info` has 2 entries, but 2 requests need 3");
        let text = refusal(|p| p.sparse_info.indptr[0] = 1);
        assert_eq!(text, "the indptr of `sparse_info` begins with 1, not 0");
        let text = refusal(|p| p.sparse_kv_info.indptr[1] = -4);
        assert!(text.starts_with("request 0 of `sparse_kv_info` takes -4 bytes by its indptr, but 3 heads"), "{text}");
        let text = refusal(|p| p.sparse_kv_info.bytes.push(0));
        assert_eq!(text, "`sparse_kv_info` has 29 bytes, but its indptr ends at 28");
    }

    #[test]
    fn bits_behind_the_last_block_are_refused() {
        let text = refusal(|p| p.sparse_info.bytes[3] |= 0x80);
        assert!(text.contains("request 1 of `sparse_info`: bits are set behind its last block"), "{text}");
    }

    #[test]
    fn huge_shapes_do_not_overflow() {
        let shape = RequestShape { heads: usize::MAX, q_blocks: 2, kv_blocks: 2 };
        let empty = Packed { bytes: vec![], indptr: vec![0, 0] };
        let packed = Interchange { sparse_info: empty.clone(), sparse_kv_info: empty };
        assert!(matches!(unpack(&packed, &[shape]), Err(Error::Shape(_))));
    }

    #[test]
    fn partial_blocks_are_refused() {
        let mut symbols = Symbols::dense(1, 1, 1);
        let tiles = vec![BitMatrix::ones(64, 64)];
        let bits = BitMatrix::ones(1, 1);
        symbols.partial = Some(Partial { bits, row_start: vec![0, 1], tile_of: vec![0], tiles });
        let text = pack(&[&symbols]).unwrap_err().to_string();
        assert!(text.contains("1 blocks under a token mask"), "{text}");
    }

    #[test]
    fn long_video_layer_round_trips() {
        let shape = RequestShape { heads: 24, q_blocks: 257, kv_blocks: 257 };
        let layer = symbols(shape, 7);
        let packed = pack(&[&layer]).unwrap();
        assert_eq!(packed.sparse_kv_info.bytes.len(), (24 * 257 * 257_usize).div_ceil(8));
        assert_eq!(unpack(&packed, &[shape]).unwrap(), [layer]);
    }
}
