//! What must hold for a plan: after this nothing that runs it can reach outside of it.
//!
//! # Rules
//! 1. The model is one; its schedule has a kind for each step and layer, orders of forecasts are at most
//!    [`MAX_FORECAST_ORDER`] and 0 where nothing is reused.
//! 2. Orders of tokens are permutations, tiles fit their segment. Offsets of blocks begin at 0, ascend and end at the number of tokens; no block is
//!    larger than [`MAX_BLOCK_TOKENS`], except for clusters, of which there are as many as their segment has blocks.
//! 3. Programs and predicates are valid, see [`validate`].
//! 4. Classes name arrangements, programs, predicates and bitmaps that exist, and the bitmaps have the shape of the
//!    arrangement's blocks. Where blocks may be partial there is a predicate. A program that transposes is used only
//!    where q-blocks and kv-blocks are the same. One over clusters needs nothing that they lack.
//! 5. Each step, layer and head has a class that exists.

use super::{Arrangement, Blocks, Body, Class, Clustering, MaskId, Plan, Program, Role, Tiling};
use crate::ir::{Extent, Model, Op, SetId, validate};

/// Highest order of a forecast.
pub const MAX_FORECAST_ORDER: u8 = 4;

/// Most tokens of a block.
pub const MAX_BLOCK_TOKENS: u32 = 256;

const MATRIX: Extent = Extent::Blocks { q: Some(SetId::ALL), kv: Some(SetId::ALL) };
const ROWS: Extent = Extent::Blocks { q: Some(SetId::ALL), kv: None };

impl Plan {
    /// Whether every index of the plan is in range and everything fits together; the rules stand at the top of the file.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn check(&self) -> Result<(), String> {
        validate::validate_model(&self.model).map_err(|problems| problems.join("; "))?;
        self.check_schedule()?;
        for (index, arrangement) in self.arrangements.iter().enumerate() {
            check_arrangement(arrangement, &self.model).map_err(|problem| format!("arrangement {index}: {problem}"))?;
        }
        for (index, program) in self.programs.iter().enumerate() {
            validate::validate_program(program)
                .map_err(|problems| format!("program {index}: {}", problems.join("; ")))?;
        }
        for (index, predicate) in self.predicates.iter().enumerate() {
            validate::validate_predicate(predicate)
                .map_err(|problems| format!("predicate {index}: {}", problems.join("; ")))?;
        }
        let needs: Vec<Needs> = self.programs.iter().map(Needs::of).collect();
        for (index, class) in self.classes.iter().enumerate() {
            self.check_class(class, &needs).map_err(|problem| format!("class {index}: {problem}"))?;
        }
        self.check_places()
    }

    fn check_schedule(&self) -> Result<(), String> {
        let (model, schedule) = (&self.model, &self.schedule);
        let wanted = model.steps as usize * model.layers as usize;
        if schedule.layers != model.layers || schedule.kinds.len() != wanted || schedule.reuse_orders.len() != wanted {
            return Err(format!("the schedule is not one of {} steps and {} layers", model.steps, model.layers));
        }
        for (kind, &order) in schedule.kinds.iter().zip(&schedule.reuse_orders) {
            if order > MAX_FORECAST_ORDER || (!kind.is_reuse() && order != 0) {
                return Err(format!("the schedule forecasts with order {order} at a {kind:?} step"));
            }
        }
        Ok(())
    }

    fn check_places(&self) -> Result<(), String> {
        let model = &self.model;
        let wanted = u64::from(model.steps) * u64::from(model.layers) * u64::from(model.heads);
        // Places are counted in 32 bits.
        if self.class_of.len() as u64 != wanted || wanted > u64::from(u32::MAX) {
            return Err(format!("{} heads of steps and layers have a class, {wanted} are there", self.class_of.len()));
        }
        match self.class_of.iter().find(|&&class| class as usize >= self.classes.len()) {
            Some(class) => Err(format!("a head is of class {class}, of {} classes", self.classes.len())),
            None => Ok(()),
        }
    }

    fn check_class(&self, class: &Class, needs: &[Needs]) -> Result<(), String> {
        let Some(arrangement) = self.arrangements.get(class.arrangement as usize) else {
            return Err(format!("there is no arrangement {}", class.arrangement));
        };
        let blocks = &arrangement.blocks;
        if class.predicate.is_some_and(|predicate| predicate as usize >= self.predicates.len()) {
            return Err("its predicate does not exist".to_string());
        }
        if class.forecast_order > MAX_FORECAST_ORDER {
            return Err(format!(
                "it forecasts with order {}, {MAX_FORECAST_ORDER} is the highest",
                class.forecast_order
            ));
        }
        let partial = match &class.body {
            Body::Static { skip, partial, cache } => {
                self.check_mask(*skip, blocks, MATRIX)?;
                partial.map_or(Ok(()), |partial| self.check_mask(partial, blocks, MATRIX))?;
                self.check_mask(*cache, blocks, ROWS)?;
                partial.is_some()
            }
            Body::Dynamic { program, masks } => {
                let Some(needs) = needs.get(*program as usize) else {
                    return Err(format!("there is no program {program}"));
                };
                if let Some(mask) = masks.iter().find(|&&mask| mask as usize >= self.masks.len()) {
                    return Err(format!("there is no bitmap {mask}"));
                }
                for &(slot, extent) in &needs.slots {
                    let Some(&mask) = masks.get(usize::from(slot)) else {
                        return Err(format!("its program asks for bitmap {slot} of {}", masks.len()));
                    };
                    self.check_mask(mask, blocks, extent)?;
                }
                if let (Some(_), Some(lack)) = (&arrangement.clustering, needs.lack_over_clusters) {
                    return Err(format!("its program is one over clusters: {lack}"));
                }
                if needs.transposes && blocks.q != blocks.kv {
                    return Err("its program transposes, but q-blocks and kv-blocks differ".to_string());
                }
                needs.partial
            }
        };
        if partial && class.predicate.is_none() {
            return Err("it has partial blocks but no predicate".to_string());
        }
        Ok(())
    }

    fn check_mask(&self, mask: MaskId, blocks: &Blocks, extent: Extent) -> Result<(), String> {
        let Some(bits) = self.masks.get(mask as usize) else {
            return Err(format!("there is no bitmap {mask}"));
        };
        let wanted = match extent {
            Extent::Blocks { q: Some(_), kv: None } => (1, blocks.q_blocks()),
            Extent::Blocks { q: None, kv: Some(_) } => (1, blocks.kv_blocks()),
            _ => (blocks.q_blocks(), blocks.kv_blocks()),
        };
        let found = (bits.rows(), bits.columns());
        if found == wanted {
            return Ok(());
        }
        Err(format!("bitmap {mask} is {}x{}, the blocks ask for {}x{}", found.0, found.1, wanted.0, wanted.1))
    }
}

/// What a program asks of the classes that use it.
struct Needs {
    /// Slots of its bitmaps, and what they vary over.
    slots: Vec<(u16, Extent)>,
    transposes: bool,
    /// What it needs that clusters lack.
    lack_over_clusters: Option<&'static str>,
    partial: bool,
}

impl Needs {
    fn of(program: &Program) -> Self {
        let mut slots = Vec::new();
        for (_, value) in program.graph.values() {
            if let Op::Mask(slot) = value.op {
                slots.push((slot, value.ty.extent));
            }
        }
        Needs {
            slots,
            transposes: program.graph.values().any(|(_, value)| matches!(value.op, Op::Transpose(_))),
            lack_over_clusters: program.graph.values().find_map(|(_, value)| value.op.lack_over_clusters()),
            partial: program.terms.iter().any(|(role, _)| *role == Role::Partial),
        }
    }
}

/// Where the clustered tokens begin and end. They have as many blocks as there are clusters.
fn check_clustering(clustering: &Clustering, arrangement: &Arrangement, model: &Model) -> Result<(u32, u32), String> {
    let Clustering { segment, q, kv, iterations, again, by: _ } = clustering;
    let Some(found) = model.segment(segment) else { return Err(format!("there is no segment `{segment}` to cluster")) };
    let tokens = 1..=found.tokens;
    if !tokens.contains(q) || !tokens.contains(kv) || *iterations == 0 || *again == 0 || arrangement.order.is_some() {
        return Err(format!("{q} and {kv} clusters do not fit the {} tokens of `{segment}`", found.tokens));
    }
    let (start, end) = (found.start, found.start + found.tokens);
    for (offsets, clusters) in [(&arrangement.blocks.q, q), (&arrangement.blocks.kv, kv)] {
        let inside = offsets.iter().filter(|&&offset| start <= offset && offset < end).count();
        if inside != *clusters as usize || !offsets.contains(&start) {
            return Err(format!("`{segment}` has {inside} blocks for {clusters} clusters"));
        }
    }
    Ok((start, end))
}

fn check_arrangement(arrangement: &Arrangement, model: &Model) -> Result<(), String> {
    let tokens = model.tokens();
    if let Some(Tiling { segment, sizes }) = &arrangement.tiling {
        let axes = model.segments.iter().find(|known| known.name == *segment).map_or(0, |known| known.axes.len());
        if axes == 0 || sizes.len() != axes || sizes.contains(&0) {
            return Err(format!("the tiles of {sizes:?} tokens do not fit the axes of `{segment}`"));
        }
    }
    if let Some(order) = &arrangement.order {
        let mut seen = vec![false; order.len()];
        let once = |&old: &u32| seen.get_mut(old as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if order.len() != tokens as usize || !order.iter().all(once) {
            return Err(format!("the order is not a permutation of the {tokens} tokens"));
        }
    }
    let clustered = match &arrangement.clustering {
        Some(clustering) => Some(check_clustering(clustering, arrangement, model)?),
        None => None,
    };
    for (side, offsets) in [("q-blocks", &arrangement.blocks.q), ("kv-blocks", &arrangement.blocks.kv)] {
        if offsets.len() < 2 || offsets.first() != Some(&0) || offsets.last() != Some(&tokens) {
            return Err(format!("the {side} do not cover the {tokens} tokens"));
        }
        // Clusters have any size.
        let is_cluster = |pair: &[u32]| clustered.is_some_and(|(start, end)| start <= pair[0] && pair[1] <= end);
        let fits = |pair: &[u32]| pair[0] < pair[1] && (pair[1] - pair[0] <= MAX_BLOCK_TOKENS || is_cluster(pair));
        if let Some(pair) = offsets.windows(2).find(|pair| !fits(pair)) {
            return Err(format!(
                "one of the {side} goes from {} to {}, but holds 1 to {MAX_BLOCK_TOKENS} tokens",
                pair[0], pair[1]
            ));
        }
    }
    Ok(())
}
