//! Symbols that are chosen on the GPU, where queries and keys are: selector passes, for the layers whose rules these can carry out.
//!
//! A pass is made once for all layers whose heads have the same classes; it writes to one place, from where each layer takes its own copy.
//! Layers that are left choose on the CPU: clusters, measured numbers, partial blocks, and heads that differ in blocks or forecasts.

use std::collections::HashMap;
use std::sync::Arc;

use super::device_lists::{Launcher, Prepared};
use crate::error::{Error, Result};
use crate::ir::StepKind;
use crate::kernels::selector::{LayerTensors, SelectorPass, Setup, Target, lower};
use crate::kernels::{DeviceSymbols, TensorView};
use crate::plan::{Body, Class, Plan};
use crate::symbols::{Blocks, Symbols};

/// Layers whose heads have the same classes at every step that may choose or obey.
#[derive(Debug)]
struct Alike {
    /// Of each head.
    classes: Vec<u32>,
    layers: Vec<u32>,
    /// Steps of these layers.
    places: Vec<(u32, u32)>,
}

/// The passes of some layers.
#[derive(Debug)]
struct Chooser {
    passes: Vec<SelectorPass>,
    /// Where they write to.
    symbols: Arc<DeviceSymbols>,
}

/// Who chooses the symbols of each layer.
#[derive(Debug, Default)]
pub(super) struct DeviceChoice {
    choosers: Vec<Chooser>,
    of_layer: HashMap<u32, usize>,
}

/// What a layer has whose symbols are chosen on the GPU.
#[derive(Debug)]
pub(super) struct OwnSymbols {
    pub(super) symbols: Arc<DeviceSymbols>,
    pub(super) prepared: Prepared,
}

impl Alike {
    /// Those of a plan that passes may be able to choose for.
    fn of(plan: &Plan) -> Vec<Alike> {
        let mut found: Vec<Alike> = Vec::new();
        let heads = plan.model.heads as usize;
        for layer in 0..plan.model.layers {
            let steps: Vec<u32> =
                (0..plan.model.steps).filter(|&step| plan.schedule.kind(step, layer) != StepKind::Dense).collect();
            let classes = |step: u32| &plan.class_of[plan.place(step, layer, 0)..][..heads];
            let Some(first) = steps.first().map(|&step| classes(step)) else { continue };
            if !steps.iter().all(|&step| classes(step) == first) || !may_be_chosen(plan, first) {
                continue;
            }
            let places = steps.iter().map(|&step| (step, layer));
            match found.iter_mut().find(|known| known.classes == first) {
                Some(known) => {
                    known.layers.push(layer);
                    known.places.extend(places);
                }
                None => {
                    found.push(Alike { classes: first.to_vec(), layers: vec![layer], places: places.collect() });
                }
            }
        }
        found
    }

    /// Each class that has a program, and its heads.
    fn dynamic<'a>(&self, plan: &'a Plan) -> Vec<(&'a Class, Vec<u32>)> {
        let mut known: Vec<u32> = self.classes.clone();
        known.sort_unstable();
        known.dedup();
        let heads_of =
            |class: u32| (0..).zip(&self.classes).filter(move |(_, own)| **own == class).map(|(head, _)| head);
        let all = known.into_iter().map(|class| (&plan.classes[class as usize], heads_of(class).collect()));
        all.filter(|(class, _)| matches!(class.body, Body::Dynamic { .. })).collect()
    }

    fn blocks<'a>(&self, plan: &'a Plan) -> &'a Blocks {
        &plan.arrangements[plan.classes[self.classes[0] as usize].arrangement as usize].blocks
    }

    /// The symbols of heads whose classes have no program; those of others are to be chosen.
    fn base(&self, plan: &Plan) -> Symbols {
        let blocks = self.blocks(plan);
        let mut symbols = Symbols::dense(self.classes.len(), blocks.q_blocks(), blocks.kv_blocks());
        for (head, &class) in self.classes.iter().enumerate() {
            let Body::Static { skip, cache, .. } = plan.classes[class as usize].body else { continue };
            let [skip, cache] = [skip, cache].map(|mask| &plan.masks[mask as usize]);
            symbols.cache.row_mut(head).copy_from_slice(cache.row(0));
            for q_block in 0..skip.rows() {
                symbols.skip.row_mut(head * blocks.q_blocks() + q_block).copy_from_slice(skip.row(q_block));
            }
        }
        symbols
    }
}

/// Whether all heads stand in the model's order, over the same whole blocks, with the same forecasts, and some class has a program.
fn may_be_chosen(plan: &Plan, classes: &[u32]) -> bool {
    let class = |index: u32| &plan.classes[index as usize];
    let first = class(classes[0]);
    let arrangement = &plan.arrangements[first.arrangement as usize];
    let is_plain = arrangement.order.is_none() && arrangement.clustering.is_none();
    let alike = classes.iter().all(|&index| {
        let Class { arrangement, predicate, forecast_order, body } = class(index);
        let is_whole = predicate.is_none() && !matches!(body, Body::Static { partial: Some(_), .. });
        *arrangement == first.arrangement && *forecast_order == first.forecast_order && is_whole
    });
    is_plain && alike && classes.iter().any(|&index| matches!(class(index).body, Body::Dynamic { .. }))
}

/// Bytes that each pass of a plan takes, of those that can be lowered.
pub(super) fn pass_bytes(plan: &Plan) -> Vec<u64> {
    let of_class = |alike: &Alike, class: &Class, heads: &[u32]| -> Result<u64> {
        let setup = Setup::of_class(plan, class, heads, &alike.places)?;
        Ok(lower(&setup, &Target { cache: 0, skip: 0, slots: heads }, 0)?.bytes)
    };
    let of_alike = |alike: &Alike| -> Vec<u64> {
        let bytes = alike.dynamic(plan).iter().map(|(class, heads)| of_class(alike, class, heads)).collect();
        // What cannot be lowered is chosen on the CPU.
        Result::<Vec<u64>>::unwrap_or_default(bytes)
    };
    Alike::of(plan).iter().flat_map(of_alike).collect()
}

impl DeviceChoice {
    /// Prepares the passes of a plan; where one cannot be prepared its layers choose on the CPU.
    pub(super) fn new(launcher: &Launcher, plan: &Plan) -> Result<Self> {
        let mut choice = DeviceChoice::default();
        for alike in Alike::of(plan) {
            match Chooser::new(launcher, plan, &alike) {
                Ok(chooser) => {
                    let index = choice.choosers.len();
                    choice.of_layer.extend(alike.layers.iter().map(|&layer| (layer, index)));
                    choice.choosers.push(chooser);
                }
                Err(Error::Unavailable(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(choice)
    }

    /// Room for the symbols of a layer, if they are chosen here. `order` is that of its forecasts.
    pub(super) fn own_symbols(
        &self,
        launcher: &Launcher,
        plan: &Plan,
        layer: u32,
        head_dim: usize,
    ) -> Result<Option<OwnSymbols>> {
        if !self.of_layer.contains_key(&layer) {
            return Ok(None);
        }
        let alike = Alike::of(plan).into_iter().find(|alike| alike.layers.contains(&layer));
        let Some(alike) = alike else { return Ok(None) };
        let symbols = DeviceSymbols::upload(&launcher.stream, &alike.base(plan), alike.blocks(plan), 1)?;
        let orders = usize::from(plan.classes[alike.classes[0] as usize].forecast_order) + 1;
        let prepared = Prepared::of_device(launcher, &symbols, vec![(Arc::clone(&symbols), orders)], head_dim)?;
        Ok(Some(OwnSymbols { symbols, prepared }))
    }

    /// Whether all that was chosen from so far is finite. Waits for the stream.
    pub(super) fn is_finite(&self, launcher: &Launcher) -> Result<bool> {
        let mut passes = self.choosers.iter().flat_map(|chooser| &chooser.passes);
        passes.try_fold(true, |all, pass| Ok(all && pass.is_finite(&launcher.stream)?))
    }

    /// Puts the choice of a layer's symbols into the stream.
    pub(super) fn choose(
        &self,
        launcher: &Launcher,
        [step, layer]: [u32; 2],
        [q, k, v]: [&TensorView; 3],
        to: &DeviceSymbols,
    ) -> Result<()> {
        let Some(&index) = self.of_layer.get(&layer) else {
            return Err(Error::State(format!("the symbols of layer {layer} are not chosen on the GPU")));
        };
        let Chooser { passes, symbols } = &self.choosers[index];
        let tensors = LayerTensors { q: Some(q), k: Some(k), v: Some(v) };
        passes.iter().try_for_each(|pass| pass.run(&launcher.stream, &tensors, (step, layer)))?;
        to.copy(&launcher.stream, symbols)
    }
}

impl Chooser {
    fn new(launcher: &Launcher, plan: &Plan, alike: &Alike) -> Result<Self> {
        let symbols = DeviceSymbols::upload(&launcher.stream, &alike.base(plan), alike.blocks(plan), 1)?;
        let pass = |(class, heads): (&Class, Vec<u32>)| {
            let setup = Setup::of_class(plan, class, &heads, &alike.places)?;
            launcher.kernels.selector_pass(&launcher.stream, &setup, &symbols, &heads)
        };
        let passes = alike.dynamic(plan).into_iter().map(pass).collect::<Result<_>>()?;
        Ok(Chooser { passes, symbols })
    }
}
