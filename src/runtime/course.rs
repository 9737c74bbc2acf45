//! Where each layer is in its schedule: the kind of its steps, and the symbols in force.
//!
//! What a layer remembers beside that, features and outputs, lies with whoever computes, in the host's memory or on a GPU; a course only
//! asks whether it is there ([`Known`]).

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::selection::{Chosen, LayerSymbols, Selection, Tensors, check_place};
use crate::error::{Error, Result};
use crate::ir::{StepKind, Unit};
use crate::plan::{Body, Class, Plan, Role};
use crate::symbols::BitMatrix;

/// The course of a generation under a plan.
#[derive(Debug)]
pub(super) struct Course {
    selection: Selection,
    layers: Vec<Place>,
    /// Symbols that need no q and k, by the classes of the heads: layers that agree share them.
    shared: HashMap<Vec<u32>, Weak<LayerSymbols>>,
}

/// Where a layer is.
#[derive(Debug)]
struct Place {
    last_step: Option<u32>,
    /// What the last update or refresh chose for each head.
    chosen: Vec<Option<Chosen>>,
    /// Counts updates and refreshes.
    choices: u64,
    /// The symbols in force, and what they were made of.
    current: Option<Current>,
    /// Whether the last choice lies with whoever computes.
    is_chosen_elsewhere: bool,
}

#[derive(Debug)]
struct Current {
    classes: Vec<u32>,
    choices: u64,
    symbols: Arc<LayerSymbols>,
}

/// What earlier steps of a layer have left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// The output of attention at some update, for cached blocks.
    pub(super) features: bool,
    /// What symbols left out of it.
    pub(super) residual: bool,
    /// What a step would reuse, by the place of the unit in [`Unit::ALL`].
    pub(super) outputs: [bool; Unit::ALL.len()],
}

impl Course {
    pub(super) fn new(plan: impl Into<Arc<Plan>>) -> Result<Self> {
        let selection = Selection::new(plan)?;
        let model = &selection.plan().model;
        let layers = (0..model.layers).map(|_| Place::new(model.heads as usize)).collect();
        Ok(Course { layers, selection, shared: HashMap::new() })
    }

    pub(super) fn plan(&self) -> &Arc<Plan> {
        self.selection.plan()
    }

    /// Goes on under a plan with the same rules.
    pub(super) fn set_plan(&mut self, plan: Arc<Plan>) {
        self.selection.set_plan(plan);
    }

    /// Forgets the generation.
    pub(super) fn reset(&mut self) {
        let heads = self.plan().model.heads as usize;
        self.layers.iter_mut().for_each(|place| *place = Place { choices: place.choices, ..Place::new(heads) });
    }

    /// The symbols in force in a layer.
    pub(super) fn current(&self, layer: u32) -> Option<&Arc<LayerSymbols>> {
        self.layers.get(layer as usize)?.current.as_ref().map(|current| &current.symbols)
    }

    /// Begins a step of a layer: its kind, an update where something is missing, and what it obeys that was chosen before, unless that lies
    /// elsewhere.
    pub(super) fn begin(
        &mut self,
        step: u32,
        layer: u32,
        known: impl FnOnce(u32) -> Known,
    ) -> Result<(StepKind, Option<Arc<LayerSymbols>>)> {
        check_place(self.plan(), step, layer)?;
        let last = self.layers[layer as usize].last_step;
        if let Some(last) = last.filter(|&last| last >= step) {
            return Err(Error::State(format!(
                "step {step} of layer {layer} follows step {last}: steps ascend, and `reset` begins a new generation"
            )));
        }
        let scheduled = self.plan().schedule.kind(step, layer);
        let kind = if self.is_missing(scheduled, step, layer, known(layer)) { StepKind::Update } else { scheduled };
        let obeys_chosen = matches!(kind, StepKind::Dispatch | StepKind::Residual);
        let lies_here = !self.layers[layer as usize].is_chosen_elsewhere;
        let symbols = if obeys_chosen && lies_here { Some(self.in_force(step, layer)?) } else { None };
        self.layers[layer as usize].last_step = Some(step);
        Ok((kind, symbols))
    }

    /// Whether a step needs what no earlier one left.
    fn is_missing(&self, kind: StepKind, step: u32, layer: u32, known: Known) -> bool {
        let place = &self.layers[layer as usize];
        let plan = self.plan();
        let mut heads = (0..plan.model.heads).map(|head| (head as usize, plan.class(step, layer, head)));
        match kind {
            StepKind::Dense | StepKind::Update | StepKind::Shared => false,
            StepKind::Refresh => !known.features && heads.any(|(_, class)| caches(plan, class)),
            StepKind::Residual if !known.residual => true,
            StepKind::Dispatch | StepKind::Residual => heads.any(|(head, class)| {
                let unknown = plan.needs_qk(class) && place.chosen[head].is_none() && !place.is_chosen_elsewhere;
                unknown || (!known.features && caches(plan, class))
            }),
            StepKind::Reuse(unit) => !known.outputs[unit as usize],
        }
    }

    /// The symbols of a dispatch step: its own where they need no q and k, else those chosen last.
    fn in_force(&mut self, step: u32, layer: u32) -> Result<Arc<LayerSymbols>> {
        let plan = Arc::clone(self.selection.plan());
        let first = plan.place(step, layer, 0);
        let classes = &plan.class_of[first..first + plan.model.heads as usize];
        let place = &self.layers[layer as usize];
        if let Some(current) = &place.current
            && current.classes == classes
            && current.choices == place.choices
        {
            return Ok(Arc::clone(&current.symbols));
        }
        let all_known = classes.iter().all(|&class| !plan.needs_qk(&plan.classes[class as usize]));
        let known = if all_known { self.shared.get(classes).and_then(Weak::upgrade) } else { None };
        let symbols = match known {
            Some(symbols) => symbols,
            None => {
                let mut of_class: HashMap<u32, Chosen> = HashMap::new();
                let mut chosen = Vec::with_capacity(classes.len());
                for ((head, &class), last) in (0..).zip(classes).zip(&place.chosen) {
                    if let Some(known) = of_class.get(&class) {
                        chosen.push(Chosen { head, ..known.clone() });
                    } else if let Some(known) = self.selection.known(class, head) {
                        of_class.insert(class, known.clone());
                        chosen.push(known);
                    } else if let Some(last) = last {
                        chosen.push(last.clone());
                    } else {
                        return Err(Error::State(format!("layer {layer} has no symbols at step {step}")));
                    }
                }
                Arc::new(self.selection.assemble(&chosen)?)
            }
        };
        if all_known {
            self.shared.insert(classes.to_vec(), Arc::downgrade(&symbols));
        }
        let place = &mut self.layers[layer as usize];
        let current = Current { classes: classes.to_vec(), choices: place.choices, symbols: Arc::clone(&symbols) };
        place.current = Some(current);
        Ok(symbols)
    }

    /// Notes that symbols of a layer were chosen, and lie elsewhere from now on.
    pub(super) fn choose_elsewhere(&mut self, layer: u32) {
        let place = &mut self.layers[layer as usize];
        place.choices += 1;
        (place.current, place.is_chosen_elsewhere) = (None, true);
    }

    /// Chooses symbols. Those that need no q and k are the same ones each time, and layers share them.
    pub(super) fn choose(&mut self, step: u32, layer: u32, tensors: Tensors<'_>) -> Result<Arc<LayerSymbols>> {
        let plan = self.plan();
        if (0..plan.model.heads).all(|head| !plan.needs_qk(plan.class(step, layer, head))) {
            return self.in_force(step, layer);
        }
        let heads: Vec<u32> = (0..self.plan().model.heads).collect();
        let chosen = self.selection.choose([step; 2], layer, &heads, tensors, &self.layers[layer as usize].chosen)?;
        let symbols = Arc::new(self.selection.assemble(&chosen)?);
        let classes = chosen.iter().map(|chosen| chosen.class).collect();
        let place = &mut self.layers[layer as usize];
        place.choices += 1;
        place.current = Some(Current { classes, choices: place.choices, symbols: Arc::clone(&symbols) });
        place.chosen = chosen.into_iter().map(Some).collect();
        Ok(symbols)
    }
}

impl Place {
    fn new(heads: usize) -> Self {
        Place { last_step: None, chosen: vec![None; heads], choices: 0, current: None, is_chosen_elsewhere: false }
    }
}

/// The highest order of the forecasts of a layer's cached blocks; `None` where no step takes any.
pub(super) fn cached_order(plan: &Plan, layer: u32) -> Option<u8> {
    let heads = |step| (0..plan.model.heads).map(move |head| plan.class(step, layer, head));
    let classes = (0..plan.model.steps).flat_map(heads).filter(|class| caches(plan, class));
    classes.map(|class| class.forecast_order).max()
}

/// Whether steps of a layer add what an update lost.
pub(super) fn adds_residual(plan: &Plan, layer: u32) -> bool {
    (0..plan.model.steps).any(|step| plan.schedule.kind(step, layer) == StepKind::Residual)
}

/// Whether heads of a class may take cached features.
fn caches(plan: &Plan, class: &Class) -> bool {
    match &class.body {
        Body::Static { cache, .. } => {
            let cache: &BitMatrix = &plan.masks[*cache as usize];
            cache.count() < cache.columns()
        }
        Body::Dynamic { program, .. } => {
            plan.programs[*program as usize].terms.iter().any(|(role, _)| *role == Role::Cache)
        }
    }
}
