//! A selector program prepared for the heads of a layer: compiled, allocated and filled once, launched at every update.
//!
//! The pass reads tensors of the layer and writes the symbols of its heads into [`DeviceSymbols`]; attention's work list is made from these
//! afterwards ([`AttentionCall::plan`](crate::kernels::AttentionCall::plan)) in the same stream. Running neither allocates, nor copies, nor
//! waits, so that it can be recorded in a graph.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::lower::{Setup, Target, lower};
use super::params::Tokens;
use super::recipe::{Code, MOST_PARAMS, Recipe, Step};
use crate::cuda::{Argument, Buffer, Function, Launch, Stream};
use crate::error::{Error, Result};
use crate::ir::Source;
use crate::kernels::symbols::DeviceSymbols;
use crate::kernels::view::TensorView;
use crate::kernels::{Element, Kernels};
use crate::symbols::cut::{Parts, parts};

/// Words of the longest parameters.
const WORDS: usize = MOST_PARAMS / 8;

/// Where the uniforms of each step and layer begin.
type Records = HashMap<(u32, u32), u64>;

/// The tensors of a layer `[1, heads of the model, tokens, head_dim]`, in one type; what no rule asks for may be missing.
///
/// Tokens stand in the model's order where the pass was given the arrangement's, else in that of the arrangement.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerTensors<'a> {
    /// Queries.
    pub q: Option<&'a TensorView>,
    /// Keys.
    pub k: Option<&'a TensorView>,
    /// Values.
    pub v: Option<&'a TensorView>,
}

/// A kernel of the pass.
#[derive(Clone)]
struct Loaded {
    function: Arc<Function>,
    /// Whether its code waits for the launch in front of it, so that it may be launched early.
    waits: bool,
}

/// A prepared selector program.
pub struct SelectorPass {
    recipe: Recipe,
    /// Of each step.
    functions: Vec<Loaded>,
    /// All arrays of the recipe.
    memory: Buffer,
    records: Records,
    /// The records; many places share one.
    _uniforms: Buffer,
    /// Heads, tokens and channels of the tensors.
    shape: [usize; 3],
    symbols: Arc<DeviceSymbols>,
}

impl Kernels {
    /// Prepares a selector program. Its heads' symbols are written to the given slots of `symbols`, which must be over the same blocks;
    /// passes of several classes may share them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] names what has no kernel, or says that the interpreter was asked for: choose on the CPU then. [`Error::Shape`] when something does not fit;
    /// [`Error::Kernel`] and [`Error::Cuda`] when a kernel does not compile or load, or there is not enough memory.
    pub fn selector_pass(
        &self,
        stream: &Stream,
        setup: &Setup<'_>,
        symbols: &Arc<DeviceSymbols>,
        slots: &[u32],
    ) -> Result<SelectorPass> {
        if crate::env::interpret() {
            return Err(Error::Unavailable(
                "symbols are to be chosen by the interpreter, which is on the CPU".to_owned(),
            ));
        }
        check_symbols(setup, symbols, slots)?;
        let target = Target { cache: symbols.addresses.cache, skip: symbols.addresses.skip, slots };
        // Once to see how much memory it needs, and once for where that is.
        let bytes = lower(setup, &target, 0)?.bytes;
        let too_large = || Error::Shape(format!("a selector pass would need {bytes} bytes of memory"));
        let memory = Buffer::new(self.device(), usize::try_from(bytes).map_err(|_| too_large())?)?;
        let recipe = lower(setup, &target, memory.address())?;
        for (offset, constant) in &recipe.constants {
            memory.upload(stream, *offset as usize, constant)?;
        }
        let (uniforms, records) = upload_records(stream, &recipe, setup)?;
        let functions = self.selector_functions(&recipe, setup)?;
        let model = setup.model;
        Ok(SelectorPass {
            recipe,
            functions,
            memory,
            records,
            _uniforms: uniforms,
            shape: [model.heads, model.tokens(), model.head_dim].map(|size| size as usize),
            symbols: Arc::clone(symbols),
        })
    }

    fn selector_functions(&self, recipe: &Recipe, setup: &Setup<'_>) -> Result<Vec<Loaded>> {
        let has_maps = recipe.steps.iter().any(|step| matches!(step.code, Code::Map(_)));
        let maps = if has_maps { Some(load_maps(self, setup)?) } else { None };
        let mut known = HashMap::new();
        let function = |step: &Step| match (step.code, &maps) {
            (Code::Kernel(entry), _) => match known.get(&entry) {
                Some(function) => Ok(Loaded::clone(function)),
                None => {
                    let function = Loaded { function: Arc::new(self.selector_function(entry)?), waits: true };
                    known.insert(entry, function.clone());
                    Ok(function)
                }
            },
            (Code::Map(index), Some((module, waits))) => {
                Ok(Loaded { function: Arc::new(module.function(&format!("map{index}"))?), waits: *waits })
            }
            (Code::Map(_), None) => Err(Error::State("a chain of the selector program has no code".to_owned())),
        };
        recipe.steps.iter().map(function).collect()
    }
}

/// The program's chains as the driver compiles them, and whether their code waits for the launch in front.
#[cfg(feature = "llvm")]
fn load_maps(kernels: &Kernels, setup: &Setup<'_>) -> Result<(Arc<crate::cuda::Module>, bool)> {
    use crate::codegen::nvptx::{Architecture, emit_ptx};
    let compute = kernels.device().properties().compute;
    let architecture = Architecture::of_device(compute.major, compute.minor);
    let ptx = emit_ptx(setup.program, &[], architecture)?;
    let module = crate::cuda::Module::load_ptx(kernels.device(), "a selector program", &ptx)?;
    Ok((module, architecture.waits()))
}

#[cfg(not(feature = "llvm"))]
fn load_maps(_: &Kernels, _: &Setup<'_>) -> Result<(Arc<crate::cuda::Module>, bool)> {
    Err(Error::Unavailable("a selector pass on a GPU needs a build with LLVM: choose symbols on the CPU".to_owned()))
}

/// The records of all places, each different one once.
fn upload_records(stream: &Stream, recipe: &Recipe, setup: &Setup<'_>) -> Result<(Buffer, Records)> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut known: HashMap<Vec<u8>, u64> = HashMap::new();
    let mut places = HashMap::new();
    let records = recipe.uniforms.records(&setup.program.graph, setup.places);
    for (&place, record) in setup.places.iter().zip(records) {
        let next = bytes.len() as u64;
        let at = *known.entry(record).or_insert_with_key(|record| {
            bytes.extend_from_slice(record);
            next
        });
        places.insert(place, at);
    }
    let buffer = Buffer::of(stream, &bytes)?;
    places.values_mut().for_each(|at| *at += buffer.address());
    Ok((buffer, places))
}

fn check_symbols(setup: &Setup<'_>, symbols: &DeviceSymbols, slots: &[u32]) -> Result<()> {
    let sizes = symbols.sizes();
    let count = |offsets: &[u32]| parts(offsets, crate::kernels::choose::BLOCK, Parts::Full).1.len() as u32;
    let wanted = [count(&setup.blocks.q), count(&setup.blocks.kv)];
    let found = [sizes.q_blocks, sizes.kv_blocks];
    if found != wanted || symbols.addresses.partial != 0 {
        return Err(Error::Shape(format!(
            "symbols of {found:?} whole blocks were given for a selector pass over {wanted:?} (queries, keys)"
        )));
    }
    let heads = sizes.batches * sizes.heads;
    match slots.iter().find(|&&slot| slot >= heads) {
        Some(slot) => Err(Error::Shape(format!("there is no slot {slot}: the symbols have {heads} heads"))),
        None => Ok(()),
    }
}

impl SelectorPass {
    /// Puts all launches into a stream: the symbols are there when they have run.
    ///
    /// # Errors
    /// [`Error::Shape`] when a tensor is missing or does not fit, [`Error::State`] for a step and layer that it was not prepared for,
    /// [`Error::Cuda`] when the driver refuses.
    pub fn run(&self, stream: &Stream, tensors: &LayerTensors<'_>, place: (u32, u32)) -> Result<()> {
        (0..self.recipe.steps.len()).try_for_each(|index| self.launch(stream, tensors, place, index))
    }

    /// Puts one of its launches into a stream, to take its time.
    ///
    /// # Errors
    /// As [`SelectorPass::run`]; [`Error::State`] when there is no such launch.
    pub fn launch(&self, stream: &Stream, tensors: &LayerTensors<'_>, place: (u32, u32), index: usize) -> Result<()> {
        let Some(&record) = self.records.get(&place) else {
            let (step, layer) = place;
            return Err(Error::State(format!("a selector pass was not prepared for step {step}, layer {layer}")));
        };
        let Some(step) = self.recipe.steps.get(index) else {
            return Err(Error::State(format!("a selector pass has no launch {index}")));
        };
        let mut words = [0_u64; WORDS];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        bytes[..step.params.len()].copy_from_slice(&step.params);
        for (at, offset) in &step.uniforms {
            bytes[*at..*at + 8].copy_from_slice(&(record + offset).to_le_bytes());
        }
        for &(at, source) in &step.sources {
            let known = &mut bytes[at..at + size_of::<Tokens>()];
            let tokens = self.tokens(source, tensors, bytemuck::pod_read_unaligned(known))?;
            known.copy_from_slice(bytemuck::bytes_of(&tokens));
        }
        let launch = Launch { grid: [step.grid[0], step.grid[1], 1], threads: step.threads, shared_bytes: 0 };
        let Loaded { function, waits } = &self.functions[index];
        let words_apart: [Argument<'_>; 32];
        let structure: [Argument<'_>; 1];
        let arguments = match step.code {
            Code::Kernel(_) => {
                structure = [Argument::of_bytes(bytemuck::cast_slice(&words))];
                &structure[..]
            }
            // A chain takes addresses and two sizes, each in a word of its own.
            Code::Map(_) => {
                words_apart = std::array::from_fn(|n| Argument::of(&words[n]));
                &words_apart[..step.params.len() / 8]
            }
        };
        // SAFETY: the parameters are those of the kernel or chain, all addresses in them lie in memory that `self` holds or in tensors and
        // symbols whose sizes were checked, and early launches are of code that waits.
        unsafe {
            if *waits {
                function.launch_early(stream, launch, arguments)
            } else {
                function.launch(stream, launch, arguments)
            }
        }
    }

    /// A tensor as kernels take it.
    fn tokens(&self, source: Source, tensors: &LayerTensors<'_>, known: Tokens) -> Result<Tokens> {
        let view = match source {
            Source::Query => tensors.q,
            Source::Key => tensors.k,
            Source::Value => tensors.v,
        };
        let name = source.name();
        let Some(view) = view else {
            return Err(Error::Shape(format!("the selector program reads `{name}`, which was not given")));
        };
        let [heads, tokens, dim] = self.shape;
        view.check_tokens(name, [heads, tokens, dim])?;
        let (data, head_stride, token_stride) = view.place();
        let is_bf16 = u32::from(view.element() == Element::Bf16);
        Ok(Tokens { data, head_stride, token_stride, is_bf16, ..known })
    }

    /// Names of the launches, in order.
    #[must_use]
    pub fn launches(&self) -> Vec<&str> {
        self.functions.iter().map(|loaded| loaded.function.name()).collect()
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The symbols that it writes.
    #[must_use]
    pub fn symbols(&self) -> &Arc<DeviceSymbols> {
        &self.symbols
    }

    /// Whether all that the runs so far have read was finite, which the interpreter asks of its input. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] with what went wrong in anything before.
    pub fn is_finite(&self, stream: &Stream) -> Result<bool> {
        let mut status = [0_u32];
        self.memory.download(stream, (self.recipe.status - self.recipe.base) as usize, &mut status)?;
        Ok(status == [0])
    }
}

impl fmt::Debug for SelectorPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelectorPass").field("launches", &self.launches()).finish_non_exhaustive()
    }
}
