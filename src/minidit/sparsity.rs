//! A strategy compiled for this transformer, at an image size and a number of steps.

use std::sync::Arc;

use super::MiniDit;
use super::distances::{Distances, Measure};
use crate::compile::Compiler;
use crate::diagnostics::Diagnostics;
use crate::error::{Error, Result};
use crate::ir::{StepKind, Unit};
use crate::plan::{Plan, Program};

/// A strategy for a generation.
#[derive(Debug)]
pub struct Sparsity {
    compiler: Compiler,
    pub(super) plan: Arc<Plan>,
    warnings: Diagnostics,
    measure: Option<Measure>,
}

impl Sparsity {
    /// Compiles a strategy for images of `size` x `size` pixels in so many steps.
    ///
    /// The model is the host's: whichever the compiler was told, its sizes are replaced. A strategy that reads the input
    /// `distances` is compiled anew as they become known.
    ///
    /// # Errors
    /// [`Error::Compile`] with every diagnostic, [`Error::Shape`] when the model cannot make images of that size, and
    /// [`Error::State`] when the strategy goes by something that this host does not measure.
    pub fn new(compiler: Compiler, model: &MiniDit, size: usize, steps: u32) -> Result<Self> {
        let side = model.side(size)?.to_string();
        let config = &model.config;
        let sizes = [
            ("layers", config.layers().to_string()),
            ("heads", config.heads.to_string()),
            ("head_dim", config.head_dim.to_string()),
            ("steps", steps.to_string()),
            ("text", config.text_tokens.to_string()),
            ("image.h", side.clone()),
            ("image.w", side),
        ];
        let base = compiler.model(if size >= 128 { "minidit_128" } else { "minidit_64" });
        let compiler = sizes.into_iter().fold(base, |compiler, (name, size)| compiler.shape(name, size));
        // What the strategy reads, its compilation tells.
        let mut measure = None;
        let compiled = compiler.compile().or_else(|error| {
            for candidate in [Measure::Input, Measure::FirstResidual] {
                let input = Distances::new(candidate, steps).input();
                if let Ok(compiled) = compiler.clone().input("distances", input).compile() {
                    measure = Some(candidate);
                    return Ok(compiled);
                }
            }
            Err(error)
        })?;
        let (plan, warnings) = (compiled.plan, compiled.warnings);
        if let Some((name, _)) = plan.programs.iter().flat_map(Program::measured).next() {
            return Err(Error::State(format!(
                "strategy `{}` chooses by `{name}`, which this transformer does not measure",
                plan.strategy
            )));
        }
        Ok(Sparsity { compiler, plan: Arc::new(plan), warnings, measure })
    }

    /// The plan; of a strategy that goes by distances, for distances of zero.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the compiler warned of.
    #[must_use]
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }

    /// Whether some step reuses what a layer adds to its tokens.
    pub(super) fn reuses_layers(&self) -> bool {
        self.plan.schedule.kinds.contains(&StepKind::Reuse(Unit::Layer))
    }

    /// Room for what a branch measures.
    pub(super) fn distances(&self) -> Option<Distances> {
        self.measure.map(|measure| Distances::new(measure, self.plan.model.steps))
    }

    /// The plan as it follows from the distances so far.
    pub(super) fn plan_for(&self, distances: &Distances) -> Result<Plan> {
        let compiler = self.compiler.clone().input("distances", distances.input());
        compiler.compile().map(|compiled| compiled.plan)
    }

    /// Whether it was compiled for this model and image size.
    pub(super) fn check(&self, model: &MiniDit, side: usize) -> Result<()> {
        let (plan, config) = (&self.plan.model, &model.config);
        let tokens = config.text_tokens + side * side;
        let own = [plan.layers, plan.heads, plan.head_dim, plan.tokens()].map(|size| size as usize);
        let wanted = [config.layers(), config.heads, config.head_dim, tokens];
        if own == wanted {
            return Ok(());
        }
        let what = "layers, heads, head_dim and tokens";
        Err(Error::Shape(format!("the strategy was compiled for {own:?} {what}, the generation has {wanted:?}")))
    }
}
