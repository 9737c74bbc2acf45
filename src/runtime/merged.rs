//! The symbols of a layer as one launch of a GPU takes them: of all heads, in the model's order.

use super::selection::LayerSymbols;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::symbols::{BitMatrix, Blocks, Partial, Symbols};

/// The symbols of all heads over the same blocks.
#[derive(Debug, PartialEq)]
pub(super) struct Merged {
    pub(super) symbols: Symbols,
    pub(super) blocks: Blocks,
    /// Of the forecast, for each head.
    orders: Vec<u8>,
}

/// The error where the rules of a plan cannot be one launch: heads see the tokens in other orders than the model's.
pub(super) fn check_orders(plan: &Plan) -> Result<()> {
    let moves = |index: u32| {
        let arrangement = &plan.arrangements[index as usize];
        arrangement.order.is_some() || arrangement.clustering.is_some()
    };
    if plan.classes.iter().any(|class| moves(class.arrangement)) {
        let what = "whole blocks on a GPU keep tokens in the model's order, and this strategy moves them";
        return Err(Error::Unavailable(format!("{what}: use a session for attention alone, or one on the CPU")));
    }
    Ok(())
}

impl Merged {
    /// Those of a layer.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when heads have blocks or orders of tokens of their own.
    pub(super) fn of(layer: &LayerSymbols) -> Result<Self> {
        let placement = layer.groups.first().map(|group| &group.placement);
        let same = layer.groups.iter().all(|group| Some(&group.placement) == placement);
        let is_plain = placement.is_some_and(|it| it.q_order.is_none() && it.kv_order.is_none());
        let groups: Vec<&Symbols> = layer.groups.iter().map(|group| &group.symbols).collect();
        let (Some(placement), Some(symbols), true, true) = (placement, Symbols::stacked(&groups), same, is_plain)
        else {
            let what =
                "whole blocks on a GPU have the same blocks in all heads of a layer, and this strategy has others";
            return Err(Error::Unavailable(format!("{what}: use a session for attention alone, or one on the CPU")));
        };
        let heads =
            || layer.groups.iter().flat_map(|group| group.heads.iter().map(|&head| (head, group.forecast_order)));
        let mut places: Vec<(u32, usize, u8)> =
            heads().enumerate().map(|(place, (head, order))| (head, place, order)).collect();
        places.sort_unstable();
        let order: Vec<usize> = places.iter().map(|(_, place, _)| *place).collect();
        let symbols = if order.is_sorted() { symbols } else { permuted(&symbols, &order) };
        let orders = places.iter().map(|(.., order)| *order).collect();
        Ok(Merged { symbols, blocks: placement.blocks.clone(), orders })
    }

    /// Whether every q-block of every head is computed.
    pub(super) fn is_all_live(&self) -> bool {
        let live = self.symbols.live_rows();
        live.count() == live.rows() * live.columns()
    }

    /// For each order of the forecast the symbols whose cached blocks it is about: heads of lower orders have none. Neighbours that are the same
    /// are not repeated: the number says of how many orders. Empty where nothing is cached.
    pub(super) fn of_orders(&self) -> Vec<(Symbols, usize)> {
        let cache = &self.symbols.cache;
        let mut found: Vec<(Symbols, usize)> = Vec::new();
        let highest = self.orders.iter().max().copied().unwrap_or(0);
        for order in 0..=highest {
            let mut own = cache.clone();
            let ones = BitMatrix::ones(1, cache.columns());
            let below = self.orders.iter().enumerate().filter(|(_, known)| **known < order);
            below.for_each(|(head, _)| own.row_mut(head).copy_from_slice(ones.row(0)));
            if own.count() == own.rows() * own.columns() {
                break;
            }
            match found.last_mut() {
                Some((last, count)) if last.cache == own => *count += 1,
                _ => found.push((Symbols { cache: own, skip: self.symbols.skip.clone(), partial: None }, 1)),
            }
        }
        found
    }
}

/// Heads in another order: `order[new] = old`.
fn permuted(symbols: &Symbols, order: &[usize]) -> Symbols {
    let q_blocks = symbols.q_blocks();
    let rows: Vec<usize> = order.iter().flat_map(|&head| head * q_blocks..(head + 1) * q_blocks).collect();
    let take = |matrix: &BitMatrix, rows: &[usize]| {
        let mut taken = BitMatrix::zeros(rows.len(), matrix.columns());
        rows.iter().enumerate().for_each(|(new, &old)| taken.row_mut(new).copy_from_slice(matrix.row(old)));
        taken
    };
    let partial = symbols.partial.as_ref().map(|Partial { bits, row_start, tile_of, tiles }| {
        let (mut starts, mut numbers) = (vec![0], Vec::with_capacity(tile_of.len()));
        for &row in &rows {
            numbers.extend_from_slice(&tile_of[row_start[row] as usize..row_start[row + 1] as usize]);
            starts.push(numbers.len() as u32);
        }
        Partial { bits: take(bits, &rows), row_start: starts, tile_of: numbers, tiles: tiles.clone() }
    });
    Symbols { cache: take(&symbols.cache, order), skip: take(&symbols.skip, &rows), partial }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::cpu::check;
    use crate::runtime::{Selection, Tensors};

    const MODEL: &str = "model m { layers 1 heads 4 head_dim 64 steps 4 tokens text(20) ++ image(h = 16, w = 18) }";

    fn layer(rules: &str) -> LayerSymbols {
        let plan = compile(&format!("{MODEL} strategy s {{ layout text ++ image(h, w) block 64 {rules} }}")).unwrap();
        Selection::new(plan).unwrap().symbols(1, 0, &[0, 1, 2, 3], Tensors::default()).unwrap()
    }

    #[test]
    fn heads_stand_in_the_models_order_whatever_their_groups() {
        let layer = layer(
            "schedule { update every 3 }
             heads [0, 2] { cache image where block(q) < 2 as taylor(2) }
             heads rest { keep text <-> all keep image -> image where abs(h(q) - h(k)) <= 2 lower exact }",
        );
        assert_eq!(layer.groups.len(), 2);
        let merged = Merged::of(&layer).unwrap();
        check::symbols(&merged.symbols, &merged.blocks, 4).unwrap();
        assert_eq!(merged.orders, [2, 0, 2, 0]);
        let q_blocks = merged.blocks.q_blocks();
        for group in &layer.groups {
            for (position, &head) in group.heads.iter().enumerate() {
                let head = head as usize;
                assert_eq!(merged.symbols.cache.row(head), group.symbols.cache.row(position));
                for block in 0..q_blocks {
                    let [row, old] = [head, position].map(|head| head * q_blocks + block);
                    assert_eq!(merged.symbols.skip.row(row), group.symbols.skip.row(old));
                    for kv_block in 0..merged.blocks.kv_blocks() {
                        let tile = |symbols: &Symbols, row| {
                            symbols.partial.as_ref().and_then(|partial| partial.tile(row, kv_block).cloned())
                        };
                        assert_eq!(
                            tile(&merged.symbols, row),
                            tile(&group.symbols, old),
                            "head {head}, {block}, {kv_block}"
                        );
                    }
                }
            }
        }
        let orders = merged.of_orders();
        assert_eq!(orders.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn orders_that_few_heads_have_are_about_these() {
        let layer = layer(
            "schedule { update every 3 }
             heads [1, 2] { cache image where block(q) < 2 as taylor(1) }
             heads rest { cache image where block(q) < 3 }",
        );
        let orders = Merged::of(&layer).unwrap().of_orders();
        let counts: Vec<usize> = orders.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1]);
        let full = orders[1].0.cache.columns();
        let live: Vec<usize> = (0..4).map(|head| orders[1].0.cache.count_row(head)).collect();
        assert_eq!([live[0], live[3]], [full, full]);
        assert!(live[1] < full && live[2] < full && orders[0].0.cache.count_row(0) < full);
    }

    #[test]
    fn strategies_that_move_tokens_are_told_apart() {
        let plan = |rules: &str| {
            compile(&format!("{MODEL} strategy s {{ layout text ++ image(h, w) block 64 {rules} }}")).unwrap()
        };
        check_orders(&plan("keep text <-> all")).unwrap();
        let text = check_orders(&plan("order tiles(4, 6) keep text <-> all")).unwrap_err().to_string();
        assert!(text.contains("this strategy moves them"), "{text}");
    }
}
