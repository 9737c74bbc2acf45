//! Selector programs at speed: fast shared routines around compiled maps.
//!
//! [`Compiled`] evaluates a program with the routines of this module; chains of element-wise operations between them
//! are machine code where the crate is built with feature `llvm`, and interpreted otherwise. [`Evaluator`] chooses
//! between it and the reference interpreter. All of them give the same bits. One evaluation runs on the calling
//! thread; evaluate heads on several threads to use several cores.

mod evaluate;
mod lanes;
mod pool;
mod rank;

use crate::codegen::{self, Map};
use crate::error::Result;
use crate::ir::{Extent, Model, ValueId};
use crate::plan::Program;
use crate::reference::input::{check_program, live_values};
use crate::reference::selector::interpret;
use crate::symbols::BitMatrix;

pub use crate::reference::SelectorInput;
pub use crate::reference::input::{HeadTensors, LayerInput, crosses_heads};

/// A program ready to be evaluated many times, from any thread.
#[derive(Debug)]
pub struct Compiled {
    program: Program,
    /// Values to evaluate, operands before users.
    order: Vec<ValueId>,
    /// For each of `order` the values that nothing needs any more behind it.
    done: Vec<Vec<ValueId>>,
    /// Element-wise chains; `map_of` finds the one of a root.
    maps: Vec<Map>,
    map_of: Vec<Option<usize>>,
    code: Option<codegen::Code>,
}

impl Compiled {
    /// Compiles a program; its maps become machine code where the build has LLVM. The code fits every arrangement of the
    /// model's tokens.
    ///
    /// # Errors
    /// [`crate::Error::State`] for a program the compiler would not make, [`crate::Error::Unavailable`] when LLVM
    /// refuses the host.
    pub fn new(program: &Program, _model: &Model) -> Result<Self> {
        let mut compiled = Self::interpreted(program)?;
        compiled.code = codegen::compile(&compiled.maps)?;
        Ok(compiled)
    }

    /// As [`Compiled::new`], with maps that are interpreted: the same as a build without LLVM.
    ///
    /// # Errors
    /// [`crate::Error::State`] for a program the compiler would not make.
    pub fn interpreted(program: &Program) -> Result<Self> {
        check_program(program)?;
        let maps = codegen::maps(program);
        let mut map_of = vec![None; program.graph.len()];
        for (index, map) in maps.iter().enumerate() {
            map_of[map.root.0 as usize] = Some(index);
        }
        let order = live_values(program);
        let done = last_uses(program, &order, &maps, &map_of);
        Ok(Compiled { program: program.clone(), order, done, maps, map_of, code: None })
    }

    /// Whether element-wise chains run as machine code.
    #[must_use]
    pub fn is_machine_code(&self) -> bool {
        self.code.is_some()
    }

    /// Evaluates every term: `[q_blocks][kv_blocks]` bits each, `[1][q_blocks]` for
    /// [`Role::Cache`](crate::plan::Role::Cache).
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for tensors or masks that do not fit the blocks, [`crate::Error::Value`] for q or k that
    /// are not finite.
    pub fn evaluate(&self, input: &SelectorInput<'_>) -> Result<Vec<BitMatrix>> {
        input.check(&self.program)?;
        evaluate::evaluate(self, input)
    }
}

/// For each value in order those that it is the last to use, terms excepted: scores of single tokens are large.
fn last_uses(program: &Program, order: &[ValueId], maps: &[Map], map_of: &[Option<usize>]) -> Vec<Vec<ValueId>> {
    let graph = &program.graph;
    let mut last = vec![None; graph.len()];
    for (place, &id) in order.iter().enumerate() {
        let vectors = matches!(graph.ty(id).extent, Extent::Vectors(..));
        let used = match map_of[id.0 as usize] {
            Some(map) => maps[map].leaves.clone(),
            // What a map computes on its way is used by the map's root, which counts its leaves.
            None if graph.op(id).is_elementwise() && !vectors => Vec::new(),
            None => graph.op(id).operands(),
        };
        used.into_iter().for_each(|used| last[used.0 as usize] = Some(place));
    }
    program.terms.iter().for_each(|(_, id)| last[id.0 as usize] = None);
    let mut done = vec![Vec::new(); order.len()];
    for (index, place) in last.into_iter().enumerate() {
        if let Some(place) = place {
            done[place].push(ValueId(index as u32));
        }
    }
    done
}

/// What evaluates selector programs.
#[derive(Debug)]
pub enum Evaluator {
    /// The reference interpreter.
    Interpreter(Program),
    /// Fast routines and, where the build has LLVM, machine code.
    Compiled(Compiled),
}

impl Evaluator {
    /// The evaluator of a program: [`Evaluator::Interpreter`] where the environment sets `OMNI_INTERPRET=1`, else
    /// [`Evaluator::Compiled`].
    ///
    /// # Errors
    /// As [`Compiled::new`].
    pub fn new(program: &Program, model: &Model) -> Result<Self> {
        if crate::env::interpret() {
            check_program(program)?;
            return Ok(Evaluator::Interpreter(program.clone()));
        }
        Ok(Evaluator::Compiled(Compiled::new(program, model)?))
    }

    /// Evaluates every term, see [`Compiled::evaluate`].
    ///
    /// # Errors
    /// As [`Compiled::evaluate`].
    pub fn evaluate(&self, input: &SelectorInput<'_>) -> Result<Vec<BitMatrix>> {
        match self {
            Evaluator::Interpreter(program) => interpret(program, input),
            Evaluator::Compiled(compiled) => compiled.evaluate(input),
        }
    }
}
