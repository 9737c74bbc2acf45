//! The symbols of a layer at a step: looked up in the plan where they are known, computed from q and k elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::clusters::{Centroids, cluster};
use super::placement::Placement;
use super::token_masks::TokenMasks;
use crate::cpu::head_to_f32;
use crate::error::{Error, Result};
use crate::ir::scalar::At;
use crate::ir::{Side, Source};
use crate::plan::{Body, Class, HeadSymbols, Plan, Program};
use crate::selector::{Evaluator, HeadTensors, LayerInput, SelectorInput, crosses_heads};
use crate::symbols::statistics::Statistics;
use crate::symbols::{BitMatrix, Blocks, Partial, Symbols};
use crate::tensor::{Tensor, TensorRef};

/// What symbols are chosen from: tensors of a layer at a step, all heads of the model, in the model's order of tokens. What no
/// rule asks for may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tensors<'a> {
    /// Queries `[heads, tokens, head_dim]`.
    pub q: Option<TensorRef<'a>>,
    /// Keys `[heads, tokens, head_dim]`.
    pub k: Option<TensorRef<'a>>,
    /// Values `[heads, tokens, head_dim]`.
    pub v: Option<TensorRef<'a>>,
    /// What the host measured, by name: `[heads]`, or `[heads, tokens]` where it is one of tokens.
    pub measured: &'a [(String, Tensor)],
}

impl<'a> Tensors<'a> {
    /// Queries and keys alone.
    #[must_use]
    pub fn of(q: TensorRef<'a>, k: TensorRef<'a>) -> Self {
        Tensors { q: Some(q), k: Some(k), ..Tensors::default() }
    }

    fn sources(&self) -> [(Source, Option<TensorRef<'a>>); 3] {
        [(Source::Query, self.q), (Source::Key, self.k), (Source::Value, self.v)]
    }

    /// Those of a head that are asked for, in orders of tokens of queries and of keys.
    fn of_head(&self, head: usize, [q, kv]: [Option<&[u32]>; 2], asked: &Asked<'_>) -> HeadTensors {
        let one = |tensor: Option<TensorRef<'_>>, source, order| {
            tensor.filter(|_| asked.reads(source)).map(|tensor| head_to_f32(tensor, head, order)).unwrap_or_default()
        };
        let measured = self.measured.iter().filter_map(|(name, tensor)| {
            let (_, side) = asked.measured.iter().find(|(asked, _)| asked == name)?;
            let values = tensor.as_ref().to_f32();
            let own = values.chunks(values.len() / tensor.shape()[0].max(1)).nth(head)?;
            let order = match side {
                Some(Side::Query) => q,
                Some(Side::Key) => kv,
                None => None,
            };
            let placed = match order {
                Some(order) => order.iter().map(|&old| own[old as usize]).collect(),
                None => own.to_vec(),
            };
            Some((name.clone(), placed))
        });
        HeadTensors {
            q: one(self.q, Source::Query, q),
            k: one(self.k, Source::Key, kv),
            v: one(self.v, Source::Value, kv),
            measured: measured.collect(),
        }
    }
}

/// What the symbols of a class are made of.
struct Asked<'p> {
    program: Option<&'p Program>,
    clustered: bool,
    measured: Vec<(&'p str, Option<Side>)>,
}

impl<'p> Asked<'p> {
    fn of(program: Option<&'p Program>, clustered: bool) -> Self {
        Asked { program, clustered, measured: program.map(Program::measured).unwrap_or_default() }
    }

    fn reads(&self, source: Source) -> bool {
        self.clustered && source != Source::Value || self.program.is_some_and(|program| program.reads(source))
    }

    /// The names of the tensors that are missing.
    fn missing(&self, tensors: Tensors<'_>) -> Vec<&'static str> {
        let missing = tensors.sources().into_iter().filter(|&(source, tensor)| tensor.is_none() && self.reads(source));
        missing.map(|(source, _)| source.name()).collect()
    }
}

/// The symbols of all heads of a layer at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSymbols {
    /// Heads that share an order of tokens, blocks and the order of their forecast; each head that was asked for is in
    /// one group. Almost always there is one.
    pub groups: Vec<HeadGroup>,
}

/// Heads of a layer that one call of the attention kernel serves.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadGroup {
    /// The heads, ascending.
    pub heads: Vec<u32>,
    /// Where their tokens stand, and blocks.
    pub placement: Arc<Placement>,
    /// Order of the forecast of cached q-blocks.
    pub forecast_order: u8,
    /// Symbols of these heads, in the order of `heads`.
    pub symbols: Symbols,
}

impl LayerSymbols {
    /// Statistics of each group, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] when the symbols of a group do not fit its blocks.
    pub fn statistics(&self) -> Result<Vec<Statistics>> {
        self.groups.iter().map(|group| Statistics::of(&group.symbols, &group.placement.blocks)).collect()
    }

    /// Share of the attention work that is left, all heads together.
    ///
    /// # Errors
    /// As [`LayerSymbols::statistics`].
    pub fn live_share(&self) -> Result<f64> {
        let statistics = self.statistics()?;
        let sum = |count: fn(&Statistics) -> u64| statistics.iter().map(count).sum::<u64>() as f64;
        Ok(sum(|group| group.total.live_pairs) / sum(|group| group.total.pairs))
    }

    /// Whether some head takes a cached feature.
    #[must_use]
    pub fn has_cached(&self) -> bool {
        let full = |cache: &BitMatrix| cache.count() == cache.rows() * cache.columns();
        self.groups.iter().any(|group| !full(&group.symbols.cache))
    }
}

/// Computes the symbols of a plan.
#[derive(Debug)]
pub struct Selection {
    plan: Arc<Plan>,
    /// One for each program.
    evaluators: Vec<Evaluator>,
    /// By predicate and arrangement.
    masks: HashMap<(u32, u32), TokenMasks>,
    /// Of the plan's arrangements.
    placements: Vec<Arc<Placement>>,
    /// Where the clusters of each head begin when there are none of an earlier step.
    start: Vec<Option<Arc<Centroids>>>,
}

/// The symbols of a head as its class gives them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chosen {
    pub(super) head: u32,
    pub(super) class: u32,
    pub(super) placement: Arc<Placement>,
    pub(super) symbols: Arc<HeadSymbols>,
    /// Of its clusters, where its tokens are clustered.
    pub(super) centroids: Option<Arc<Centroids>>,
}

impl Selection {
    /// Compiles the selector programs of a plan.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when LLVM refuses the machine.
    pub fn new(plan: impl Into<Arc<Plan>>) -> Result<Self> {
        let plan = plan.into();
        let evaluators =
            plan.programs.iter().map(|program| Evaluator::new(program, &plan.model)).collect::<Result<_>>()?;
        let placements = plan.arrangements.iter().map(|arrangement| Arc::new(Placement::of(arrangement))).collect();
        let start = vec![None; plan.model.heads as usize];
        Ok(Selection { plan, evaluators, masks: HashMap::new(), placements, start })
    }

    /// Begins clusters at these centroids where there are none of an earlier step.
    ///
    /// # Shapes
    /// `[heads, clusters, head_dim]` of queries and of keys.
    ///
    /// # Errors
    /// [`Error::Shape`] when the plan has no such clusters.
    pub fn start_clusters(&mut self, q: TensorRef<'_>, k: TensorRef<'_>) -> Result<()> {
        let model = &self.plan.model;
        let Some(clustering) = self.plan.arrangements.iter().find_map(|arrangement| arrangement.clustering.as_ref())
        else {
            return Err(Error::Shape(format!("strategy `{}` clusters no tokens", self.plan.strategy)));
        };
        for (name, tensor, clusters) in [("q", q, clustering.q), ("k", k, clustering.kv)] {
            let wanted = [model.heads, clusters, model.head_dim].map(|size| size as usize);
            if tensor.shape() != wanted {
                return Err(Error::Shape(format!(
                    "the centroids of {name} have the shape {:?}, the plan's are {wanted:?} (heads, clusters, head_dim)",
                    tensor.shape()
                )));
            }
        }
        let of_head = |head| Centroids { q: head_to_f32(q, head, None), kv: head_to_f32(k, head, None) };
        self.start = (0..model.heads as usize).map(|head| Some(Arc::new(of_head(head)))).collect();
        Ok(())
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Goes on under a plan that differs in its schedule only.
    pub(super) fn set_plan(&mut self, plan: Arc<Plan>) {
        self.plan = plan;
    }

    /// The symbols that the rules of a step give some heads of a layer.
    ///
    /// Tensors are not looked at where the symbols of these heads are known.
    ///
    /// # Errors
    /// [`Error::State`] when tensors are needed and missing, or the plan has no such step, layer or head; [`Error::Shape`]
    /// when they do not fit the model; [`Error::Value`] when they are not finite.
    pub fn symbols(&mut self, step: u32, layer: u32, heads: &[u32], tensors: Tensors<'_>) -> Result<LayerSymbols> {
        self.chosen([step; 2], layer, heads, tensors)
    }

    /// The symbols in force at a step: its own where they need no q and k, else those of the step
    /// [`Schedule::chosen_at`](crate::plan::Schedule::chosen_at), of which q and k are; at an update those that it chooses for
    /// the steps after it.
    ///
    /// # Errors
    /// As [`Selection::symbols`].
    pub fn in_force(&mut self, step: u32, layer: u32, heads: &[u32], tensors: Tensors<'_>) -> Result<LayerSymbols> {
        check_place(&self.plan, step, layer)?;
        self.chosen([step, self.plan.schedule.chosen_at(step, layer)], layer, heads, tensors)
    }

    fn chosen(&mut self, steps: [u32; 2], layer: u32, heads: &[u32], tensors: Tensors<'_>) -> Result<LayerSymbols> {
        check_place(&self.plan, steps[0], layer)?;
        let count = self.plan.model.heads;
        if let Some(head) = heads.iter().find(|&&head| head >= count) {
            let name = &self.plan.model.name;
            return Err(Error::State(format!(
                "there is no head {head}: model `{name}` has {count} heads, counted from 0"
            )));
        }
        let chosen = self.choose(steps, layer, heads, tensors, &[])?;
        self.assemble(&chosen)
    }

    /// The symbols of heads at a step where they are known, and elsewhere those that the tensors of `chosen_at` choose. `last` is
    /// what was chosen before, by head.
    pub(super) fn choose(
        &self,
        [step, chosen_at]: [u32; 2],
        layer: u32,
        heads: &[u32],
        tensors: Tensors<'_>,
        last: &[Option<Chosen>],
    ) -> Result<Vec<Chosen>> {
        for (source, tensor) in tensors.sources() {
            tensor.map_or(Ok(()), |tensor| check_heads(&self.plan, source.name(), tensor))?;
        }
        self.check_measured(tensors)?;
        let layers = self.layers(chosen_at, layer, tensors);
        heads
            .into_par_iter()
            .map(|&head| {
                let own = self.plan.class_of[self.plan.place(step, layer, head)];
                if let Some(known) = self.known(own, head) {
                    return Ok(known);
                }
                let last = last.get(head as usize).and_then(|last| last.as_ref()?.centroids.as_ref());
                let start = last.or(self.start[head as usize].as_ref());
                self.choose_one(
                    At { step: chosen_at, layer, head, ..At::default() },
                    tensors,
                    &layers,
                    start.map(Arc::as_ref),
                )
            })
            .collect()
    }

    /// All heads as the classes see them whose programs look at other heads.
    fn layers(&self, step: u32, layer: u32, tensors: Tensors<'_>) -> HashMap<u32, LayerInput> {
        let mut layers = HashMap::new();
        let first = self.plan.place(step, layer, 0);
        let heads = self.plan.model.heads as usize;
        for &class in &self.plan.class_of[first..first + heads] {
            let Class { arrangement, body, .. } = &self.plan.classes[class as usize];
            let Body::Dynamic { program, .. } = body else { continue };
            let program = &self.plan.programs[*program as usize];
            if !layers.contains_key(&class) && crosses_heads(program) {
                let order = self.plan.arrangements[*arrangement as usize].order.as_deref();
                let asked = Asked::of(Some(program), false);
                let of_head = |head| tensors.of_head(head, [order; 2], &asked);
                layers.insert(class, LayerInput::new((0..heads).into_par_iter().map(of_head).collect()));
            }
        }
        layers
    }

    fn choose_one(
        &self,
        at: At,
        tensors: Tensors<'_>,
        layers: &HashMap<u32, LayerInput>,
        start: Option<&Centroids>,
    ) -> Result<Chosen> {
        let class = self.plan.class_of[self.plan.place(at.step, at.layer, at.head)];
        if let Some(known) = self.known(class, at.head) {
            return Ok(known);
        }
        let Class { arrangement, body, .. } = &self.plan.classes[class as usize];
        let arranged = &self.plan.arrangements[*arrangement as usize];
        let program = match body {
            Body::Dynamic { program, .. } => Some(&self.plan.programs[*program as usize]),
            Body::Static { .. } => None,
        };
        let asked = Asked::of(program, arranged.clustering.is_some());
        let missing = asked.missing(tensors);
        if !missing.is_empty() {
            let At { step, layer, head, .. } = at;
            let (names, are) = (missing.join(" and "), if missing.len() == 1 { "is" } else { "are" });
            return Err(Error::State(format!(
                "the rules of head {head} (layer {layer}) choose blocks by what is in them: {names} of step {step} {are} needed"
            )));
        }
        let head = at.head as usize;
        let own = tensors.of_head(head, [arranged.order.as_deref(); 2], &asked);
        let Some(clustering) = &arranged.clustering else {
            let symbols = Arc::new(self.compute(body, at, &own, &arranged.blocks, layers.get(&class))?);
            let placement = Arc::clone(&self.placements[*arrangement as usize]);
            return Ok(Chosen { head: at.head, class, placement, symbols, centroids: None });
        };
        let (placement, centroids) = cluster(&self.plan.model, arranged, clustering, [&own.q, &own.k], start);
        let own = tensors.of_head(head, [placement.q_order.as_deref(), placement.kv_order.as_deref()], &asked);
        let symbols = self.compute(body, at, &own, &placement.blocks, None)?;
        let (placement, symbols) = placement.cut(symbols);
        let (placement, symbols) = (Arc::new(placement), Arc::new(symbols));
        Ok(Chosen { head: at.head, class, placement, symbols, centroids: Some(Arc::new(centroids)) })
    }

    /// The shapes of what the host measured.
    fn check_measured(&self, tensors: Tensors<'_>) -> Result<()> {
        let [heads, tokens] = [self.plan.model.heads, self.plan.model.tokens()].map(|size| size as usize);
        for (name, side) in self.plan.programs.iter().flat_map(Program::measured) {
            let Some((_, tensor)) = tensors.measured.iter().find(|(known, _)| known == name) else { continue };
            let wanted = if side.is_some() { vec![heads, tokens] } else { vec![heads] };
            if tensor.shape() != wanted {
                return Err(Error::Shape(format!(
                    "`{name}` has the shape {:?}, the strategy asks for {wanted:?} (heads{})",
                    tensor.shape(),
                    if side.is_some() { ", tokens" } else { "" }
                )));
            }
        }
        Ok(())
    }

    /// The symbols of a head of a class that needs no q and k.
    pub(super) fn known(&self, class: u32, head: u32) -> Option<Chosen> {
        let one = &self.plan.classes[class as usize];
        if self.plan.needs_qk(one) {
            return None;
        }
        let symbols = Arc::new(self.fixed(&one.body)?);
        let placement = Arc::clone(&self.placements[one.arrangement as usize]);
        Some(Chosen { head, class, placement, symbols, centroids: None })
    }

    /// Symbols that are in the plan.
    fn fixed(&self, body: &Body) -> Option<HeadSymbols> {
        let mask = |id: u32| self.plan.masks[id as usize].clone();
        match *body {
            Body::Static { skip, partial, cache } => {
                Some(HeadSymbols { skip: mask(skip), partial: partial.map(mask), cache: mask(cache) })
            }
            Body::Dynamic { .. } => None,
        }
    }

    fn compute(
        &self,
        body: &Body,
        at: At,
        tensors: &HeadTensors,
        blocks: &Blocks,
        layer: Option<&LayerInput>,
    ) -> Result<HeadSymbols> {
        let Body::Dynamic { program, masks } = body else {
            let fixed = self.fixed(body);
            return fixed.ok_or_else(|| Error::State("a class without a program has no symbols to compute".to_owned()));
        };
        let model = &self.plan.model;
        let slots: Vec<&BitMatrix> = masks.iter().map(|&mask| &self.plan.masks[mask as usize]).collect();
        let head_dim = model.head_dim as usize;
        let input = SelectorInput { model, blocks, masks: &slots, at, tensors, layer, head_dim };
        let bits = self.evaluators[*program as usize].evaluate(&input)?;
        let roles = self.plan.programs[*program as usize].terms.iter().map(|(role, _)| *role);
        Ok(HeadSymbols::of_terms(roles.zip(bits), blocks))
    }

    /// Joins the symbols of heads into groups.
    pub(super) fn assemble(&mut self, chosen: &[Chosen]) -> Result<LayerSymbols> {
        let plan = Arc::clone(&self.plan);
        let mut groups: Vec<(&Arc<Placement>, u8, Vec<&Chosen>)> = Vec::new();
        for one in chosen {
            let order = plan.classes[one.class as usize].forecast_order;
            let same = |(placement, forecast_order, _): &&mut (&Arc<Placement>, u8, Vec<&Chosen>)| {
                Arc::ptr_eq(placement, &one.placement) && *forecast_order == order
            };
            match groups.iter_mut().find(same) {
                Some((.., of_heads)) => of_heads.push(one),
                None => groups.push((&one.placement, order, vec![one])),
            }
        }
        let groups = groups.into_iter().map(|(placement, forecast_order, of_heads)| {
            let blocks = &placement.blocks;
            let symbols = Symbols {
                cache: BitMatrix::stacked(of_heads.iter().map(|chosen| &chosen.symbols.cache), blocks.q_blocks()),
                skip: BitMatrix::stacked(of_heads.iter().map(|chosen| &chosen.symbols.skip), blocks.kv_blocks()),
                partial: self.partial(&of_heads, blocks)?,
            };
            let heads = of_heads.iter().map(|chosen| chosen.head).collect();
            Ok(HeadGroup { heads, placement: Arc::clone(placement), forecast_order, symbols })
        });
        Ok(LayerSymbols { groups: groups.collect::<Result<_>>()? })
    }

    /// The partial blocks of some heads of one placement, with their token masks.
    fn partial(&mut self, heads: &[&Chosen], blocks: &Blocks) -> Result<Option<Partial>> {
        if heads.iter().all(|chosen| chosen.symbols.partial.is_none()) {
            return Ok(None);
        }
        let plan = Arc::clone(&self.plan);
        let none = BitMatrix::zeros(blocks.q_blocks(), blocks.kv_blocks());
        let bits = BitMatrix::stacked(
            heads.iter().map(|chosen| chosen.symbols.partial.as_ref().unwrap_or(&none)),
            blocks.kv_blocks(),
        );
        let (mut row_start, mut tile_of, mut tiles) = (vec![0], Vec::new(), Vec::new());
        let mut local: HashMap<(u32, u32), u32> = HashMap::new();
        // Blocks of clusters are those of one head at one step: their masks are not kept.
        let mut of_clusters: HashMap<(u32, u32), TokenMasks> = HashMap::new();
        for chosen in heads {
            let partial = chosen.symbols.partial.as_ref().unwrap_or(&none);
            let Class { predicate, arrangement, .. } = plan.classes[chosen.class as usize];
            let kept = if chosen.centroids.is_some() { &mut of_clusters } else { &mut self.masks };
            for q_block in 0..partial.rows() {
                for kv_block in partial.ones_of_row(q_block) {
                    let Some(predicate) = predicate else {
                        return Err(Error::State("a partial block has no predicate".to_owned()));
                    };
                    let masks = kept.entry((predicate, arrangement)).or_insert_with(|| {
                        let arranged = &plan.arrangements[arrangement as usize];
                        TokenMasks::new(&plan.predicates[predicate as usize], &plan.model, arranged)
                    });
                    let number = masks.number(q_block, kv_block, blocks)?;
                    let next = tiles.len() as u32;
                    tile_of.push(*local.entry((predicate, number)).or_insert_with(|| {
                        tiles.push(masks.mask(number).clone());
                        next
                    }));
                }
                row_start.push(tile_of.len() as u32);
            }
        }
        Ok(Some(Partial { bits, row_start, tile_of, tiles }))
    }
}

/// The plan must have this step and layer.
pub(super) fn check_place(plan: &Plan, step: u32, layer: u32) -> Result<()> {
    let (steps, layers) = (plan.model.steps, plan.model.layers);
    for (what, index, count) in [("step", step, steps), ("layer", layer, layers)] {
        if index >= count {
            return Err(Error::State(format!(
                "there is no {what} {index}: model `{}` has {count} {what}s, counted from 0",
                plan.model.name
            )));
        }
    }
    Ok(())
}

/// A tensor must be `[heads, tokens, head_dim]` of the model.
pub(super) fn check_heads(plan: &Plan, name: &str, tensor: TensorRef<'_>) -> Result<()> {
    let model = &plan.model;
    let wanted = [model.heads, model.tokens(), model.head_dim].map(|size| size as usize);
    if tensor.shape() == wanted {
        return Ok(());
    }
    Err(Error::Shape(format!(
        "`{name}` has the shape {:?}, model `{}` has {wanted:?} (heads, tokens, head_dim)",
        tensor.shape(),
        model.name
    )))
}
