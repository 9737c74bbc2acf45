//! The checks that every entry point makes before it touches a value.

use crate::error::{Error, Result};
use crate::symbols::{BitMatrix, Blocks, Symbols};
use crate::tensor::TensorRef;

/// Largest block the symbols allow.
pub(crate) const BLOCK: usize = 256;

/// The sizes of a tensor with three axes.
pub(crate) fn three(name: &str, shape: &[usize]) -> Result<[usize; 3]> {
    shape.try_into().map_err(|_| shape_error(name, shape, "three axes"))
}

/// The sizes of a tensor with two axes.
pub(crate) fn two(name: &str, shape: &[usize]) -> Result<[usize; 2]> {
    shape.try_into().map_err(|_| shape_error(name, shape, "two axes"))
}

/// A tensor must have this shape.
pub(crate) fn shape(name: &str, found: &[usize], wanted: &[usize]) -> Result<()> {
    if found == wanted { Ok(()) } else { Err(shape_error(name, found, &format!("the shape {wanted:?}"))) }
}

fn shape_error(name: &str, found: &[usize], wanted: &str) -> Error {
    Error::Shape(format!("`{name}` has the shape {found:?}, wanted {wanted}"))
}

/// Any condition on sizes, with its sentence.
pub(crate) fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::Shape(message())) }
}

/// Offsets must ascend from 0 to the number of tokens in steps of at most 256.
pub(crate) fn offsets(name: &str, offsets: &[u32], tokens: usize) -> Result<()> {
    let ends = (offsets.first().copied(), offsets.last().map(|&last| last as usize));
    ensure(ends == (Some(0), Some(tokens)), || {
        format!("`{name}` must begin with 0 and end with the number of tokens, {tokens}; found {ends:?}")
    })?;
    let wrong = offsets.windows(2).position(|pair| pair[1] <= pair[0] || (pair[1] - pair[0]) as usize > BLOCK);
    ensure(wrong.is_none(), || {
        let block = wrong.unwrap_or_default();
        let (from, to) = (offsets[block], offsets[block + 1]);
        format!("block {block} of `{name}` covers the tokens {from}..{to}, wanted 1 to {BLOCK} of them")
    })
}

/// A bit matrix must have this many rows and columns, and no ones in its padding: kernels walk whole words.
pub(crate) fn bits(name: &str, matrix: &BitMatrix, rows: usize, columns: usize) -> Result<()> {
    ensure((matrix.rows(), matrix.columns()) == (rows, columns), || {
        let found = (matrix.rows(), matrix.columns());
        format!("`{name}` has {} rows and {} columns, wanted {rows} and {columns}", found.0, found.1)
    })?;
    let used = columns % 64;
    let padded = |row: &usize| used != 0 && matrix.row(*row).last().is_some_and(|word| word >> used != 0);
    match (0..rows).find(padded) {
        None => Ok(()),
        Some(row) => Err(Error::Shape(format!("row {row} of `{name}` has ones beyond its {columns} columns"))),
    }
}

/// Symbols must fit the heads and blocks, and their token masks the blocks they belong to.
pub(crate) fn symbols(symbols: &Symbols, blocks: &Blocks, heads: usize) -> Result<()> {
    let (q_blocks, kv_blocks) = (blocks.q_blocks(), blocks.kv_blocks());
    bits("cache", &symbols.cache, heads, q_blocks)?;
    bits("skip", &symbols.skip, heads * q_blocks, kv_blocks)?;
    let Some(partial) = &symbols.partial else { return Ok(()) };
    let rows = heads * q_blocks;
    bits("partial", &partial.bits, rows, kv_blocks)?;
    ensure(partial.row_start.len() == rows + 1, || {
        format!("`partial.row_start` has {} entries, wanted {}", partial.row_start.len(), rows + 1)
    })?;
    let mut number = 0;
    for row in 0..rows {
        ensure(partial.row_start[row] as usize == number, || {
            format!("`partial.row_start[{row}]` is {}, wanted {number}", partial.row_start[row])
        })?;
        let q_block = row % q_blocks;
        for kv_block in partial.bits.ones_of_row(row) {
            let tile = partial.tile_of.get(number).and_then(|&tile| partial.tiles.get(tile as usize));
            let wanted = (length(&blocks.q, q_block), length(&blocks.kv, kv_block));
            let found = tile.map(|tile| (tile.rows(), tile.columns()));
            ensure(found == Some(wanted), || {
                format!("the token mask of row {row}, kv-block {kv_block} has the sizes {found:?}, wanted {wanted:?}")
            })?;
            number += 1;
        }
    }
    Ok(())
}

/// Tokens of a block.
pub(crate) fn length(offsets: &[u32], block: usize) -> usize {
    (offsets[block + 1] - offsets[block]) as usize
}

/// The terms of a weighted sum must all have one shape.
pub(crate) fn terms(name: &str, terms: &[(TensorRef<'_>, f32)], wanted: &[usize]) -> Result<()> {
    terms.iter().try_for_each(|(term, _)| shape(name, term.shape(), wanted))
}

/// `first..first + count` must lie within `total`.
pub(crate) fn part(name: &str, first: usize, count: usize, total: usize) -> Result<()> {
    ensure(first.checked_add(count).is_some_and(|end| end <= total), || {
        format!("{count} {name} from {first} on were asked for, there are {total}")
    })
}
