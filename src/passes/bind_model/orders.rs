//! Orders of tokens against the model: tiles that fit its axes, given orders that are permutations, clusters that it has tokens for.

use super::{Binder, within};
use crate::diagnostics::{Code, Diagnostic};
use crate::geometry::order::MAX_ROUNDS;
use crate::ir::scalar::{At, NoTokens, evaluate};
use crate::ir::{Blocking, Kind, Op, Order, Segment, Strategy, Table, Type};
use crate::source::Span;

impl Binder<'_> {
    /// The numbers of clusters; as sizes of blocks they follow from the model's sizes and constants.
    pub(super) fn clusters(&mut self, strategy: &mut Strategy) {
        let [rule] = strategy.orders.as_mut_slice() else { return };
        let Order::Clusters { q, kv, iterations, again, by: _ } = rule.order else { return };
        let Some(segment) = rule.segment.as_ref().map_or(self.model.grid(), |name| self.model.segment(name)) else {
            return;
        };
        if segment.valid < segment.tokens {
            let message = format!("`{}` is padded, and clusters would mix padding with its tokens", segment.name);
            self.findings
                .push(Diagnostic::new(Code::E0304, rule.span, message).also(segment.span, "the model's segment"));
        }
        let most = i64::from(segment.tokens);
        let numbers = [
            (q, "clusters of queries", most),
            (kv, "clusters of keys", most),
            (iterations, "rounds", i64::from(MAX_ROUNDS)),
            (again, "rounds", i64::from(MAX_ROUNDS)),
        ];
        for (index, (id, what, most)) in numbers.into_iter().enumerate() {
            let span = within(rule.span, strategy.graph.value(id).span);
            match self.block_size(&strategy.graph, id) {
                // Blocks are made before the sizes of the model become numbers everywhere.
                Some(number) if (1..=most).contains(&number) => {
                    let constant = strategy.graph.push(Op::Int(number), Type::scalar(Kind::Int), span);
                    *rule.order.values_mut()[index] = constant;
                }
                found => {
                    let found = found.map_or("one that depends on the blocks".to_owned(), |number| number.to_string());
                    let message = format!("there are 1 to {most} {what} here, found {found}");
                    let mut diagnostic = Diagnostic::new(Code::E0304, span, message);
                    if index < 2 {
                        diagnostic = diagnostic.also(segment.span, "the segment that is clustered");
                    }
                    self.findings.push(diagnostic);
                }
            }
        }
    }

    /// An order that an input gives: a permutation of the tokens of its segment.
    fn given_order(&mut self, table: &Table, segment: &Segment, span: Span) {
        let mut seen = vec![false; segment.tokens as usize];
        let mut once = |&old: &f64| seen.get_mut(old as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if !table.is_missing() && (table.values.len() != segment.tokens as usize || !table.values.iter().all(&mut once))
        {
            let message = format!("the input `{}` is no order of {} tokens", table.name, segment.tokens);
            self.report(
                Diagnostic::new(Code::E0305, span, message)
                    .also(segment.span, format!("{} tokens", segment.tokens))
                    .help("give the old index of each new place, every one once"),
            );
        }
    }

    pub(super) fn orders(&mut self, strategy: &Strategy, block: (usize, usize)) {
        let graph = &strategy.graph;
        for rule in &strategy.orders {
            let segment = match &rule.segment {
                Some(name) => self.model.segment(name),
                None => self.model.grid(),
            };
            match (segment, &rule.order) {
                (Some(segment), Order::Given(table)) => {
                    self.given_order(&graph.tables[usize::from(*table)], segment, rule.span);
                }
                (Some(segment), Order::Gilbert) if segment.axes.len() != 3 => {
                    let message =
                        format!("`gilbert` goes through three axes, `{}` has {}", segment.name, segment.axes.len());
                    self.report(
                        Diagnostic::new(Code::E0304, rule.span, message).also(segment.span, "the axes of the model"),
                    );
                }
                _ => {}
            }
            let (Some(segment), Order::Tiles(tiles)) = (segment, &rule.order) else { continue };
            if tiles.len() != segment.axes.len() {
                let message = format!("a tile of {} sizes for {} axes", tiles.len(), segment.axes.len());
                self.report(
                    Diagnostic::new(Code::E0304, rule.span, message).also(segment.span, "the axes of the model"),
                );
                continue;
            }
            let tiles_are_blocks = strategy.block == Some(Blocking::Tiles);
            let (mut tokens, mut divides) = (1_i64, true);
            for (&tile, (axis, size)) in tiles.iter().zip(&segment.axes) {
                let span = within(rule.span, graph.value(tile).span);
                let tile = evaluate(graph, tile, At::default(), &NoTokens).int();
                tokens = tile.clamp(1, 1 << 20).saturating_mul(tokens);
                divides &= tile >= 1 && i64::from(*size) % tile == 0;
                if tile < 1 {
                    let message = format!("a tile has at least 1 token along `{axis}`, found {tile}");
                    self.report(Diagnostic::new(Code::E0304, span, message));
                } else if i64::from(*size) % tile != 0 && !tiles_are_blocks {
                    let message = format!("a tile of {tile} does not divide axis `{axis}` of {size}");
                    self.report(
                        Diagnostic::new(Code::W0503, span, message)
                            .also(segment.span, format!("`{axis}` has {size}"))
                            .note("tiles at the border are smaller, so tiles and blocks no longer line up"),
                    );
                }
            }
            if divides && !tiles_are_blocks {
                self.tiles_in_blocks(strategy, rule.span, segment, tokens, block);
            }
        }
    }

    /// Warns where blocks hold parts of several tiles.
    fn tiles_in_blocks(
        &mut self,
        strategy: &Strategy,
        order: Span,
        segment: &Segment,
        tokens: i64,
        block: (usize, usize),
    ) {
        let note = "blocks hold parts of several tiles, so conditions on `tile` touch more blocks than tiles";
        let (place, words) = match strategy.block {
            Some(_) => (strategy.block_span, "the blocks"),
            None => (self.model.span, "blocks have 128 tokens without `block`"),
        };
        for size in [block.0, block.1].map(|size| size as i64) {
            let message = if tokens % size != 0 && size % tokens != 0 {
                format!("a tile has {tokens} tokens, which is no multiple of a block of {size}")
            } else if i64::from(segment.start) % size != 0 {
                let (name, start) = (&segment.name, segment.start);
                format!("the tiles of `{name}` begin at token {start}, inside a block of {size}")
            } else {
                continue;
            };
            let mut diagnostic = Diagnostic::new(Code::W0503, order, message).also(place, words).note(note);
            if segment.start > 0 {
                diagnostic = diagnostic.also(segment.span, "the segment");
            }
            return self.report(diagnostic);
        }
    }
}
