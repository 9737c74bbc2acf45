//! The symbols of one head, from the terms of its rules.

use super::Role;
use crate::symbols::{BitMatrix, Blocks};

/// The symbols of one head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeadSymbols {
    /// `S_s`: `[q_blocks][kv_blocks]`.
    pub skip: BitMatrix,
    /// `S_p`: `[q_blocks][kv_blocks]`, a subset of `S_s`; `None` where no block is partial.
    pub partial: Option<BitMatrix>,
    /// `S_c`: `[1][q_blocks]`.
    pub cache: BitMatrix,
}

impl HeadSymbols {
    /// Joins terms: `S_s = (Whole | Partial) & !Skip`, `S_p = Partial & !Whole & !Skip`, `S_c = !Cache`, each the union
    /// of its terms; without any `Whole` and `Partial` term all blocks are whole.
    ///
    /// # Shapes
    /// Terms of [`Role::Cache`] are `[1][q_blocks]`, all others `[q_blocks][kv_blocks]`.
    #[must_use]
    pub fn of_terms(terms: impl IntoIterator<Item = (Role, BitMatrix)>, blocks: &Blocks) -> Self {
        let (rows, columns) = (blocks.q_blocks(), blocks.kv_blocks());
        let mut united: [Option<BitMatrix>; 4] = [const { None }; 4];
        for (role, bits) in terms {
            match &mut united[role as usize] {
                Some(all) => all.union(&bits),
                none => *none = Some(bits),
            }
        }
        let [whole, partial, skipped, cached] = united;
        let mut skip = match (whole, &partial) {
            (Some(whole), _) => whole,
            (None, Some(_)) => BitMatrix::zeros(rows, columns),
            (None, None) => BitMatrix::ones(rows, columns),
        };
        if let Some(skipped) = &skipped {
            skip.subtract(skipped);
        }
        let partial = partial.map(|mut partial| {
            skipped.iter().for_each(|skipped| partial.subtract(skipped));
            partial.subtract(&skip);
            skip.union(&partial);
            partial
        });
        let mut cache = BitMatrix::ones(1, rows);
        if let Some(cached) = &cached {
            cache.subtract(cached);
        }
        HeadSymbols { skip, partial: partial.filter(|partial| partial.count() > 0), cache }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bits: [u8; 4]) -> BitMatrix {
        let word = bits.iter().rev().fold(0_u64, |word, &bit| word << 1 | u64::from(bit));
        BitMatrix::from_words(1, 4, vec![word]).unwrap()
    }

    #[test]
    fn skip_is_subtracted_last_and_whole_wins_over_partial() {
        let blocks = Blocks::regular(16, 64, 16, 16);
        let cache = BitMatrix::ones(1, 1);
        let all = HeadSymbols::of_terms([], &blocks);
        assert_eq!(all, HeadSymbols { skip: row([1, 1, 1, 1]), partial: None, cache: cache.clone() });
        let terms = [
            (Role::Partial, row([1, 1, 1, 0])),
            (Role::Skip, row([0, 0, 1, 0])),
            (Role::Whole, row([1, 0, 0, 0])),
            (Role::Cache, cache),
        ];
        let found = HeadSymbols::of_terms(terms, &blocks);
        let wanted =
            HeadSymbols { skip: row([1, 1, 0, 0]), partial: Some(row([0, 1, 0, 0])), cache: BitMatrix::zeros(1, 1) };
        assert_eq!(found, wanted);
    }
}
