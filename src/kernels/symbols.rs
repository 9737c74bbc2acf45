//! Sparse symbols in the GPU's memory.

use std::sync::Arc;

use super::choose::BLOCK;
use super::params;
use crate::cpu::check;
use crate::cuda::{Buffer, Stream};
use crate::error::{Error, Result};
use crate::symbols::cut::{cut, is_larger};
use crate::symbols::{BitMatrix, Blocks, Partial, Symbols};

/// Where each array begins: what the GPU reads in one piece.
const ALIGNMENT: usize = 256;

/// Symbols and blocks on a device.
#[derive(Debug)]
pub struct DeviceSymbols {
    pub(super) sizes: Sizes,
    pub(super) addresses: params::Symbols,
    /// The arrays, unless they are someone else's.
    memory: Option<Buffer>,
}

/// What a launch has to know of symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Batch entries that have symbols of their own; 1 where all obey the same.
    pub batches: u32,
    /// Heads of a batch entry.
    pub heads: u32,
    /// Blocks of queries, of at most 128 tokens.
    pub q_blocks: u32,
    /// Blocks of keys.
    pub kv_blocks: u32,
    /// Queries.
    pub q_tokens: u32,
    /// Keys.
    pub kv_tokens: u32,
    /// Most tokens of a block of queries: 128, or 64 where there are several.
    pub q_block: u32,
    /// Most tokens of a block of keys: 128 or 64.
    pub kv_block: u32,
    /// Whether every block is whole and begins at a multiple of its size.
    pub is_regular: bool,
    /// Whether that holds for the blocks of queries.
    pub is_regular_q: bool,
}

impl DeviceSymbols {
    /// Copies symbols to the device. Blocks of more than 128 tokens are cut into parts that have the symbols of the whole.
    ///
    /// # Shapes
    /// `symbols` has `batches * heads` heads, those of a batch entry together; with `batches` 1 every entry obeys them.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit the blocks or each other, and without tokens; [`Error::Cuda`] when there is not
    /// enough memory.
    pub fn upload(stream: &Stream, symbols: &Symbols, blocks: &Blocks, batches: usize) -> Result<Arc<Self>> {
        let Packed { bytes, starts, sizes } = Packed::new(symbols, blocks, batches)?;
        let memory = Buffer::of(stream, &bytes)?;
        let [cache, skip, partial, partial_start, tile_of, tiles, q_start, kv_start] =
            starts.map(|start| start.map_or(0, |start| memory.address() + start as u64));
        let addresses = params::Symbols { cache, skip, partial, partial_start, tile_of, tiles, q_start, kv_start };
        Ok(Arc::new(DeviceSymbols { sizes, addresses, memory: Some(memory) }))
    }

    /// Symbols that are on the device already, such as those of a kernel that has just made them.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes are impossible.
    ///
    /// # Safety
    /// The addresses are those of arrays as `params.cuh` describes them, of these sizes, and outlive what is made of it.
    pub unsafe fn from_raw(addresses: params::Symbols, sizes: Sizes) -> Result<Arc<Self>> {
        let Sizes { batches, heads, q_blocks, kv_blocks, q_tokens, kv_tokens, q_block, kv_block, .. } = sizes;
        let counts = [batches, heads, q_blocks, kv_blocks, q_tokens, kv_tokens];
        let is_cut = q_tokens <= q_blocks.saturating_mul(q_block) && kv_tokens <= kv_blocks.saturating_mul(kv_block);
        let has_masks = addresses.partial != 0;
        if counts.contains(&0)
            || [q_block, kv_block].iter().any(|size| ![64, BLOCK].contains(size))
            || !is_cut
            || (sizes.is_regular && (has_masks || !sizes.is_regular_q))
            || (sizes.is_regular_q && q_block != BLOCK)
        {
            return Err(Error::Shape(format!("symbols on a GPU cannot have the sizes {sizes:?}")));
        }
        Ok(Arc::new(DeviceSymbols { sizes, addresses, memory: None }))
    }

    /// Takes the bits of other symbols over the same blocks, once the stream gets there.
    ///
    /// # Errors
    /// [`Error::State`] when the arrays of either are someone else's; [`Error::Shape`] when the sizes differ; [`Error::Cuda`] when the driver
    /// refuses.
    pub fn copy(&self, stream: &Stream, other: &Self) -> Result<()> {
        match (&self.memory, &other.memory) {
            (Some(to), Some(from)) if self.sizes == other.sizes => to.copy(stream, from),
            (Some(_), Some(_)) => {
                Err(Error::Shape(format!("symbols of the sizes {:?} were to become {:?}", self.sizes, other.sizes)))
            }
            _ => Err(Error::State("only symbols in memory of their own are copied".to_owned())),
        }
    }

    /// Copies the bits back, those of whole blocks: over blocks of at most 128 tokens, as they are on the device. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::State`] when the arrays are someone else's, or there are token masks; [`Error::Cuda`] with what went wrong before.
    pub fn download(&self, stream: &Stream) -> Result<Symbols> {
        let Some(memory) = self.memory.as_ref().filter(|_| self.addresses.partial == 0) else {
            return Err(Error::State(
                "only symbols of whole blocks, in memory of their own, are copied back".to_owned(),
            ));
        };
        let Sizes { batches, heads, q_blocks, kv_blocks, .. } = self.sizes;
        let heads = (batches * heads) as usize;
        let bits = |address: u64, rows: usize, columns: u32| -> Result<BitMatrix> {
            let mut words = vec![0_u64; rows * columns.div_ceil(64) as usize];
            memory.download(stream, (address - memory.address()) as usize, &mut words)?;
            BitMatrix::from_words(rows, columns as usize, words)
                .ok_or_else(|| Error::State("bits are set behind the last block of symbols on a GPU".to_owned()))
        };
        let cache = bits(self.addresses.cache, heads, q_blocks)?;
        let skip = bits(self.addresses.skip, heads * q_blocks as usize, kv_blocks)?;
        Ok(Symbols { cache, skip, partial: None })
    }

    /// What a launch has to know.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }
}

/// All arrays behind each other, as they will lie in memory.
#[derive(Debug)]
struct Packed {
    bytes: Vec<u8>,
    /// Of each address of [`params::Symbols`], in its order.
    starts: [Option<usize>; 8],
    sizes: Sizes,
}

impl Packed {
    fn new(symbols: &Symbols, blocks: &Blocks, batches: usize) -> Result<Self> {
        let heads = symbols.heads();
        check::ensure(batches > 0 && heads > 0 && heads.is_multiple_of(batches), || {
            format!("symbols of {heads} heads cannot be those of {batches} batch entries")
        })?;
        let ends = [&blocks.q, &blocks.kv].map(|offsets| offsets.last().map_or(0, |&end| end));
        check::ensure(!ends.contains(&0), || {
            "attention on a GPU needs queries and keys, one has no tokens".to_owned()
        })?;
        check::offsets("blocks.q", &blocks.q, ends[0] as usize)?;
        check::offsets("blocks.kv", &blocks.kv, ends[1] as usize)?;
        check::symbols(symbols, blocks, heads)?;
        let (symbols, blocks) = cut(symbols, blocks, BLOCK);
        let kv_block = if is_larger(&blocks.kv, 64) { BLOCK } else { 64 };
        let is_regular_q = has_regular(&blocks.q, BLOCK);
        let q_block = if is_regular_q || is_larger(&blocks.q, 64) { BLOCK } else { 64 };
        let is_regular = symbols.partial.is_none() && is_regular_q && has_regular(&blocks.kv, kv_block);
        let sizes = Sizes {
            batches: batches as u32,
            heads: (heads / batches) as u32,
            q_blocks: blocks.q_blocks() as u32,
            kv_blocks: blocks.kv_blocks() as u32,
            q_tokens: ends[0],
            kv_tokens: ends[1],
            q_block,
            kv_block,
            is_regular,
            is_regular_q,
        };
        let mut bytes = Vec::new();
        let mut add = |array: &[u8]| {
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            bytes.extend_from_slice(array);
            bytes.len() - array.len()
        };
        let (cache, skip) = (add(words(&symbols.cache)), add(words(&symbols.skip)));
        let partial = symbols.partial.as_ref().map(|Partial { bits, row_start, tile_of, tiles }| {
            let tiles: Vec<u64> = tiles.iter().flat_map(|tile| packed_tile(tile, kv_block)).collect();
            [
                add(words(bits)),
                add(bytemuck::cast_slice(row_start)),
                add(bytemuck::cast_slice(tile_of)),
                add(bytemuck::cast_slice(&tiles)),
            ]
        });
        let [bits, row_start, tile_of, tiles] = partial.map_or([None; 4], |starts| starts.map(Some));
        let (q, kv) = (add(bytemuck::cast_slice(&blocks.q)), add(bytemuck::cast_slice(&blocks.kv)));
        let starts = [Some(cache), Some(skip), bits, row_start, tile_of, tiles, Some(q), Some(kv)];
        Ok(Packed { bytes, starts, sizes })
    }
}

fn words(bits: &BitMatrix) -> &[u8] {
    bytemuck::cast_slice(bits.words())
}

/// Whether every block begins at a multiple of `size` and is whole, but for the last.
fn has_regular(offsets: &[u32], size: u32) -> bool {
    let last = offsets.len() - 1;
    offsets[..last].iter().enumerate().all(|(block, &first)| first == block as u32 * size)
        && offsets[last] - offsets[last - 1] <= size
}

/// A token mask as kernels read it: 128 rows of `kv_block` bits.
fn packed_tile(tile: &BitMatrix, kv_block: u32) -> Vec<u64> {
    let stride = kv_block as usize / 64;
    let mut packed = vec![0; BLOCK as usize * stride];
    for (row, target) in packed.chunks_exact_mut(stride).enumerate().take(tile.rows()) {
        target[..tile.words_per_row()].copy_from_slice(tile.row(row));
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(blocks: &Blocks) -> Packed {
        Packed::new(&Symbols::dense(2, blocks.q_blocks(), blocks.kv_blocks()), blocks, 1).unwrap()
    }

    #[test]
    fn sizes_say_which_variant_fits() {
        let sizes = |blocks: Blocks| {
            let sizes = packed(&blocks).sizes;
            (sizes.q_blocks, sizes.kv_blocks, [sizes.q_block, sizes.kv_block], sizes.is_regular)
        };
        assert_eq!(sizes(Blocks::regular(300, 300, 128, 128)), (3, 3, [128, 128], true));
        assert_eq!(sizes(Blocks::regular(300, 300, 128, 64)), (3, 5, [128, 64], true));
        assert_eq!(sizes(Blocks::regular(600, 600, 256, 256)), (5, 5, [128, 128], true), "cut into whole blocks");
        assert_eq!(sizes(Blocks::regular(300, 300, 64, 64)), (5, 5, [64, 64], false));
        assert_eq!(sizes(Blocks::regular(300, 300, 128, 96)), (3, 4, [128, 128], false));
        assert_eq!(sizes(Blocks::regular(100, 40, 128, 128)), (1, 1, [128, 64], true), "one short block");
        assert_eq!(sizes(Blocks { q: vec![0, 100, 228], kv: vec![0, 128] }), (2, 1, [128, 128], false));
    }

    #[test]
    fn arrays_lie_where_the_addresses_say() {
        let blocks = Blocks::regular(200, 100, 128, 64);
        let mut symbols = Symbols::dense(2, 2, 2);
        symbols.cache.set(1, 0, false);
        let mut bits = BitMatrix::zeros(4, 2);
        bits.set(2, 1, true);
        let mut tile = BitMatrix::zeros(128, 36);
        tile.set(127, 35, true);
        symbols.partial = Some(Partial { bits, row_start: vec![0, 0, 0, 1, 1], tile_of: vec![0], tiles: vec![tile] });
        let Packed { bytes, starts, sizes } = Packed::new(&symbols, &blocks, 1).unwrap();
        assert!(!sizes.is_regular && starts.iter().flatten().all(|start| start % ALIGNMENT == 0));
        let word = |array: usize, index: usize| {
            let at = starts[array].unwrap() + index * 8;
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
        };
        assert_eq!([word(0, 0), word(0, 1)], [0b11, 0b10]);
        assert_eq!([word(1, 3), word(2, 2)], [0b11, 0b10]);
        assert_eq!([word(5, 126), word(5, 127)], [0, 1 << 35]);
        let offset = |array: usize, index: usize| bytes[starts[array].unwrap() + index * 4];
        assert_eq!([offset(6, 1), offset(6, 2), offset(7, 1), offset(7, 2)], [128, 200, 64, 100]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let blocks = Blocks::regular(200, 100, 128, 64);
        let symbols = Symbols::dense(3, 2, 2);
        let text = Packed::new(&symbols, &blocks, 2).unwrap_err().to_string();
        assert_eq!(text, "symbols of 3 heads cannot be those of 2 batch entries");
        assert!(Packed::new(&symbols, &Blocks { q: vec![0], kv: vec![0, 1] }, 1).is_err());
        assert!(Packed::new(&symbols, &Blocks::regular(400, 100, 128, 64), 1).is_err());
    }
}
