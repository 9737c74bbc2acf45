//! Machine code for this machine, run inside the process.
//!
//! The text of `expr` and `predicate` is parsed, optimised by LLVM's `default<O3>` pipeline for the host's processor
//! (which turns the element loops into vector code) and compiled by MCJIT. The compiled functions are pure loops over
//! caller's memory; any number of threads may run them at once.

use std::ffi::c_void;

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::execution_engine::ExecutionEngine;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{InitializationConfig, Target, TargetMachine, TargetMachineOptions};

use crate::error::{Error, Result};
use crate::ir::Model;
use crate::plan::Predicate;
use crate::symbols::BitMatrix;

use super::predicate::{self, Lowered, TokenLeaf};
use super::{Access, Array, Map, expr};

/// `out, leaves, uniforms, rows, columns`; see `expr`.
type MapFunction = unsafe extern "C" fn(*mut c_void, *const *const c_void, *const f32, u64, u64);
/// `out, q, kv, rows, columns`; see `predicate`.
type TileFunction = unsafe extern "C" fn(*mut u64, *const *const i32, *const *const i32, u64, u64);

/// A compiled module. Its code lives as long as it does.
struct Jit {
    /// Before `_context`: fields are dropped in order, and the engine must go before the context it was made in.
    engine: ExecutionEngine<'static>,
    _context: Box<Context>,
}

// SAFETY: after `Jit::new` neither the engine nor the context is touched before both are dropped, together, by the one
// thread that owns the last reference; the compiled code is immutable. LLVM ties neither of them to a thread, it only forbids
// concurrent use of one context.
unsafe impl Send for Jit {}
// SAFETY: see `Send`; `&Jit` gives out nothing but addresses found in `Jit::new`.
unsafe impl Sync for Jit {}

impl std::fmt::Debug for Jit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Jit")
    }
}

impl Jit {
    fn new(text: &str) -> Result<Self> {
        let context = Box::new(Context::create());
        let engine = {
            let module = parse(&context, &with_host_attributes(text))?;
            optimise(&module, &host_machine()?)?;
            let engine = module.create_jit_execution_engine(OptimizationLevel::Aggressive).map_err(unavailable)?;
            // SAFETY: only the lifetime changes. The engine borrows the context, which is boxed, so that moving `Jit` does not
            // move it, and which `Jit` drops after the engine.
            unsafe { std::mem::transmute::<ExecutionEngine<'_>, ExecutionEngine<'static>>(engine) }
        };
        Ok(Jit { engine, _context: context })
    }

    fn address(&self, name: &str) -> Result<usize> {
        self.engine.get_function_address(name).map_err(unavailable)
    }
}

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("LLVM cannot compile a selector program: {error}"))
}

/// Parses and verifies a module.
pub(super) fn parse<'ctx>(context: &'ctx Context, text: &str) -> Result<Module<'ctx>> {
    let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "selector");
    let module = context.create_module_from_ir(buffer).map_err(unavailable)?;
    module.verify().map_err(unavailable)?;
    Ok(module)
}

/// Runs the `default<O3>` pipeline.
pub(super) fn optimise(module: &Module<'_>, machine: &TargetMachine) -> Result<()> {
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(true);
    options.set_loop_interleaving(true);
    options.set_loop_slp_vectorization(true);
    options.set_loop_unrolling(true);
    module.run_passes("default<O3>", machine, options).map_err(unavailable)
}

fn host_machine() -> Result<TargetMachine> {
    Target::initialize_native(&InitializationConfig::default()).map_err(unavailable)?;
    let triple = TargetMachine::get_default_triple();
    let options = TargetMachineOptions::new()
        .set_cpu(&TargetMachine::get_host_cpu_name().to_string())
        .set_features(&TargetMachine::get_host_cpu_features().to_string())
        .set_level(OptimizationLevel::Aggressive);
    Target::from_triple(&triple)
        .map_err(unavailable)?
        .create_target_machine_from_options(&triple, options)
        .ok_or_else(|| unavailable("no code generator for this machine"))
}

/// Defines the attribute groups: MCJIT takes processor and features from the functions.
fn with_host_attributes(text: &str) -> String {
    let host = format!(
        "\"target-cpu\"=\"{}\" \"target-features\"=\"{}\"",
        TargetMachine::get_host_cpu_name().to_string(),
        TargetMachine::get_host_cpu_features().to_string()
    );
    format!("{text}attributes #0 = {{ nounwind {host} }}\nattributes #1 = {{ alwaysinline nounwind {host} }}\n")
}

/// Machine code of the maps of a program.
#[derive(Debug)]
pub struct Code {
    /// Keeps `functions` alive; a program without maps has none.
    _jit: Option<Jit>,
    functions: Vec<MapFunction>,
    maps: Vec<Map>,
}

impl Code {
    /// Compiles maps for this machine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when LLVM refuses the host or the code.
    pub fn new(maps: &[Map]) -> Result<Self> {
        if maps.is_empty() {
            return Ok(Code { _jit: None, functions: Vec::new(), maps: Vec::new() });
        }
        let jit = Jit::new(&expr::host_module(maps))?;
        let function = |index| {
            let address = jit.address(&format!("map{index}"))?;
            // SAFETY: the module defines `map{index}` with the parameters of `MapFunction` in the C convention.
            Ok(unsafe { std::mem::transmute::<usize, MapFunction>(address) })
        };
        let functions = (0..maps.len()).map(function).collect::<Result<_>>()?;
        Ok(Code { _jit: Some(jit), functions, maps: maps.to_vec() })
    }

    /// Runs a map of reals. `uniforms` holds one number for each of the map's.
    ///
    /// # Errors
    /// [`Error::State`] when leaves or uniforms are not the map's; the evaluator passes no such ones.
    pub(crate) fn map_real(
        &self,
        index: usize,
        leaves: &[Array<'_>],
        uniforms: &[f32],
        rows: usize,
        columns: usize,
    ) -> Result<Vec<f32>> {
        let mut out = vec![0.0_f32; rows * columns];
        self.call(index, false, out.as_mut_ptr().cast(), leaves, uniforms, [rows, columns])?;
        Ok(out)
    }

    /// Runs a map of truth values, see [`Code::map_real`].
    ///
    /// # Errors
    /// As [`Code::map_real`].
    pub(crate) fn map_bool(
        &self,
        index: usize,
        leaves: &[Array<'_>],
        uniforms: &[f32],
        rows: usize,
        columns: usize,
    ) -> Result<Vec<u8>> {
        let mut out = vec![0_u8; rows * columns];
        self.call(index, true, out.as_mut_ptr().cast(), leaves, uniforms, [rows, columns])?;
        Ok(out)
    }

    /// `out` points to `rows * columns` elements: bytes where `is_bool`, else single precision.
    fn call(
        &self,
        index: usize,
        is_bool: bool,
        out: *mut c_void,
        leaves: &[Array<'_>],
        uniforms: &[f32],
        [rows, columns]: [usize; 2],
    ) -> Result<()> {
        let map = &self.maps[index];
        let mut fits =
            is_bool == map.is_bool && leaves.len() == map.leaves.len() && uniforms.len() == map.uniforms.len();
        let mut pointers: Vec<*const c_void> = Vec::with_capacity(leaves.len());
        for ((leaf, access), &leaf_is_bool) in leaves.iter().zip(&map.access).zip(&map.leaf_is_bool) {
            let wanted = match access {
                Access::Element => rows * columns,
                Access::Row => rows,
                Access::Column => columns,
                Access::One => 1,
            };
            match leaf {
                Array::Real(values) => {
                    fits &= !leaf_is_bool && values.len() == wanted;
                    pointers.push(values.as_ptr().cast());
                }
                Array::Bool(values) => {
                    fits &= leaf_is_bool && values.len() == wanted;
                    pointers.push(values.as_ptr().cast());
                }
            }
        }
        if !fits {
            return Err(Error::State(format!("map {index} of a selector program was given other arrays than its own")));
        }
        // SAFETY: the function reads `rows * columns`, `rows` or `columns` elements of each leaf by its access and the map's
        // uniforms, and writes `rows * columns` elements of `out`; numbers and types were compared above. No leaf
        // overlaps `out`, which was allocated for this call.
        unsafe {
            self.functions[index](out, pointers.as_ptr(), uniforms.as_ptr(), rows as u64, columns as u64);
        }
        Ok(())
    }
}

/// A token predicate as machine code.
#[derive(Debug)]
pub struct CompiledPredicate {
    _jit: Jit,
    function: TileFunction,
    lowered: Lowered,
}

impl CompiledPredicate {
    /// Compiles a predicate over the tokens of a model.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for predicates without code (see [`predicate::lower`]) and when LLVM refuses the host.
    pub fn new(predicate: &Predicate, model: &Model) -> Result<Self> {
        let lowered = predicate::lower(predicate, model.tokens())?;
        let text = [
            predicate::declarations().to_owned(),
            predicate::value_function(&lowered, 0),
            predicate::host_loop(&lowered, 0),
        ];
        let jit = Jit::new(&text.concat())?;
        let address = jit.address("tile0")?;
        // SAFETY: the module defines `tile0` with the parameters of `TileFunction` in the C convention.
        let function = unsafe { std::mem::transmute::<usize, TileFunction>(address) };
        Ok(CompiledPredicate { _jit: jit, function, lowered })
    }

    /// The arrays over query tokens that [`CompiledPredicate::fill`] takes.
    #[must_use]
    pub fn q_leaves(&self) -> &[TokenLeaf] {
        &self.lowered.q
    }

    /// The arrays over key tokens that [`CompiledPredicate::fill`] takes.
    #[must_use]
    pub fn kv_leaves(&self) -> &[TokenLeaf] {
        &self.lowered.kv
    }

    /// The tile of `rows` query tokens and `columns` key tokens: 1 where the pair satisfies the predicate.
    ///
    /// # Errors
    /// [`Error::Shape`] when arrays are missing or of another length than the tile's side.
    pub fn fill(&self, q: &[&[i32]], kv: &[&[i32]], rows: usize, columns: usize) -> Result<BitMatrix> {
        let fits = |arrays: &[&[i32]], leaves: &[TokenLeaf], length| {
            arrays.len() == leaves.len() && arrays.iter().all(|array| array.len() == length)
        };
        if !fits(q, &self.lowered.q, rows) || !fits(kv, &self.lowered.kv, columns) {
            return Err(Error::Shape(format!("token arrays do not fit a tile of {rows} x {columns}")));
        }
        let mut words = vec![0_u64; rows * columns.div_ceil(64)];
        if rows > 0 && columns > 0 {
            let q: Vec<*const i32> = q.iter().map(|array| array.as_ptr()).collect();
            let kv: Vec<*const i32> = kv.iter().map(|array| array.as_ptr()).collect();
            // SAFETY: the function reads `rows` elements of each query array and `columns` of each key array, in the order of
            // the leaves (checked above), and writes `rows * ceil(columns / 64)` words.
            unsafe {
                (self.function)(words.as_mut_ptr(), q.as_ptr(), kv.as_ptr(), rows as u64, columns as u64);
            }
        }
        BitMatrix::from_words(rows, columns, words)
            .ok_or_else(|| Error::Shape(format!("a tile of {rows} x {columns} tokens is too large")))
    }
}

/// The maps of a program as optimised LLVM IR for this machine.
///
/// # Errors
/// [`Error::Unavailable`] when LLVM refuses the host or the code.
pub fn optimised_llvm(maps: &[Map]) -> Result<String> {
    let context = Context::create();
    let module = parse(&context, &with_host_attributes(&expr::host_module(maps)))?;
    optimise(&module, &host_machine()?)?;
    Ok(module.print_to_string().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::scalar::{At, Tokens, evaluate};
    use crate::ir::{
        Binary, Comparison, Coordinate, Extent, Graph, Kind, Op, Segment, SetId, Side, Type, Unary, ValueId,
    };
    use crate::plan::{Program, Role};
    use crate::reference::math;
    use crate::source::Span;
    use crate::tensor::Dtype;

    #[test]
    fn exponential_equals_the_reference() {
        let mut graph = Graph::default();
        let matrix = Extent::Blocks { q: Some(SetId::ALL), kv: Some(SetId::ALL) };
        let mut push = |op, kind| graph.push(op, Type::new(kind, matrix), Span::default());
        // Any block value serves as the argument.
        let a = push(Op::Mask(0), Kind::Real);
        let exp = push(Op::Unary(Unary::Exp, a), Kind::Real);
        let term = push(Op::Compare(Comparison::Less, exp, exp), Kind::Bool);
        let mut maps = super::super::maps(&Program { graph, terms: vec![(Role::Whole, term)] });
        // The map of the comparison without its comparison is the exponential.
        maps[0].body.truncate(1);
        maps[0].is_bool = false;
        let code = Code::new(&maps).unwrap();
        let arguments: Vec<f32> = (0..=u32::MAX).step_by(4_001).map(f32::from_bits).collect();
        let found = code.map_real(0, &[Array::Real(&arguments)], &[], 1, arguments.len()).unwrap();
        assert!(code.map_real(0, &[Array::Real(&arguments)], &[], 2, arguments.len()).is_err());
        assert!(code.map_real(0, &[Array::Bool(&[0])], &[], 1, 1).is_err());
        for (&x, &y) in arguments.iter().zip(&found) {
            let expected = math::exp_f32(x);
            assert!(y.to_bits() == expected.to_bits() || y.is_nan() && expected.is_nan(), "{x}: {y} {expected}");
        }
    }

    #[test]
    fn maps_become_vector_code() {
        let mut graph = Graph::default();
        let matrix = Extent::Blocks { q: Some(SetId::ALL), kv: Some(SetId::ALL) };
        let mut push = |op, kind| graph.push(op, Type::new(kind, matrix), Span::default());
        let a = push(Op::Mask(0), Kind::Real);
        let exp = push(Op::Unary(Unary::Exp, a), Kind::Real);
        let term = push(Op::Compare(Comparison::Less, exp, a), Kind::Bool);
        let maps = super::super::maps(&Program { graph, terms: vec![(Role::Whole, term)] });
        let text = optimised_llvm(&maps).unwrap();
        assert!(text.contains("x float>") && !text.contains("llvm.fma") && !text.contains("fast"), "{text}");
    }

    const TEXT: u32 = 7;
    const WIDTH: i64 = 9;

    /// Tokens 0..7 are text, the others a grid of rows of nine.
    struct Pair(i64, i64);

    fn coordinate(coordinate: Coordinate, token: i64) -> i64 {
        let index = token - i64::from(TEXT);
        match coordinate {
            Coordinate::Position => token,
            Coordinate::Block => token / 16,
            Coordinate::Index => {
                if index < 0 {
                    token
                } else {
                    index
                }
            }
            Coordinate::Axis(0) => {
                if index < 0 {
                    0
                } else {
                    index / WIDTH
                }
            }
            _ => {
                if index < 0 {
                    0
                } else {
                    index % WIDTH
                }
            }
        }
    }

    impl Tokens for Pair {
        fn coordinate(&self, which: Coordinate, side: Side) -> i64 {
            coordinate(which, if side == Side::Query { self.0 } else { self.1 })
        }

        fn in_set(&self, _: SetId, side: Side) -> bool {
            (if side == Side::Query { self.0 } else { self.1 }) < i64::from(TEXT)
        }
    }

    fn grid() -> Model {
        let segment = |name: &str, start, tokens| Segment {
            name: name.to_owned(),
            axes: Vec::new(),
            start,
            tokens,
            valid: tokens,
            span: Span::default(),
        };
        Model {
            name: "grid".to_owned(),
            layers: 1,
            heads: 1,
            head_dim: 8,
            steps: 1,
            dtype: Dtype::F32,
            segments: vec![segment("text", 0, TEXT), segment("image", TEXT, 300)],
            span: Span::default(),
        }
    }

    /// Every integer operation over coordinates of both sides; `scale` beyond 32 bits asks for the wide type.
    fn predicate(scale: i64, divisor: i64) -> Predicate {
        let mut graph = Graph::default();
        let token = Extent::Token { q: true, kv: true };
        let mut push = |op: Op, kind| graph.push(op, Type::new(kind, token), Span::default());
        let mut int = |op: Op| push(op, Kind::Int);
        let pair = [Side::Query, Side::Key]
            .map(|side| [Coordinate::Axis(0), Coordinate::Axis(1)].map(|c| int(Op::Coordinate(c, side))));
        let position = int(Op::Coordinate(Coordinate::Position, Side::Key));
        let (scale, divisor) = (int(Op::Int(scale)), int(Op::Int(divisor)));
        let mut binary = |op, a, b| int(Op::Binary(op, a, b));
        let rows = binary(Binary::Subtract, pair[0][0], pair[1][0]);
        let columns = binary(Binary::Subtract, pair[0][1], pair[1][1]);
        let scaled = binary(Binary::Multiply, rows, scale);
        let by_column = binary(Binary::FloorDivide, scaled, columns);
        let folded = binary(Binary::Modulo, by_column, divisor);
        let positions = binary(Binary::Modulo, position, columns);
        let divided = binary(Binary::FloorDivide, columns, divisor);
        let mixed = binary(Binary::Xor, folded, positions);
        let lower = binary(Binary::Min, mixed, rows);
        let upper = binary(Binary::Max, divided, lower);
        let sum = binary(Binary::Add, upper, columns);
        let abs = int(Op::Unary(Unary::Abs, sum));
        let bits = int(Op::Unary(Unary::BitLength, abs));
        let negated = int(Op::Unary(Unary::Negate, rows));
        let masked = int(Op::Binary(Binary::Xor, negated, divisor));
        let mut truth = |op: Op| push(op, Kind::Bool);
        let near = truth(Op::Compare(Comparison::LessEqual, bits, divisor));
        let same = truth(Op::Compare(Comparison::Equal, masked, folded));
        let text = [Side::Query, Side::Key].map(|side| truth(Op::InSet(SetId(0), side)));
        let cross = truth(Op::Binary(Binary::Xor, text[0], text[1]));
        let ordered = truth(Op::Compare(Comparison::Less, text[0], near));
        let either = truth(Op::Binary(Binary::Or, same, ordered));
        let chosen = truth(Op::Choose(cross, near, either));
        let value: ValueId = truth(Op::Unary(Unary::Not, chosen));
        Predicate { graph, value }
    }

    #[test]
    fn tiles_equal_the_scalar_evaluation() {
        for (scale, divisor) in [(1, 3), (-2, 2), (5, -4), (3, 0), (1 << 40, 7)] {
            let predicate = predicate(scale, divisor);
            let compiled = CompiledPredicate::new(&predicate, &grid()).unwrap();
            let mut ones = 0;
            for (q_start, rows, kv_start, columns) in
                [(0, 1, 0, 1), (0, 16, 3, 63), (5, 33, 40, 64), (100, 7, 1, 65), (3, 20, 0, 256)]
            {
                let arrays = |leaves: &[TokenLeaf], start: i64, length: i64| -> Vec<Vec<i32>> {
                    leaves
                        .iter()
                        .map(|leaf| {
                            (start..start + length)
                                .map(|token| match leaf {
                                    TokenLeaf::Coordinate(which) => coordinate(*which, token) as i32,
                                    TokenLeaf::InSet(_) => i32::from(token < i64::from(TEXT)),
                                })
                                .collect()
                        })
                        .collect()
                };
                let q = arrays(compiled.q_leaves(), q_start, rows);
                let kv = arrays(compiled.kv_leaves(), kv_start, columns);
                let q: Vec<&[i32]> = q.iter().map(Vec::as_slice).collect();
                let kv: Vec<&[i32]> = kv.iter().map(Vec::as_slice).collect();
                let tile = compiled.fill(&q, &kv, rows as usize, columns as usize).unwrap();
                for row in 0..rows {
                    for column in 0..columns {
                        let pair = Pair(q_start + row, kv_start + column);
                        let expected = evaluate(&predicate.graph, predicate.value, At::default(), &pair).truth();
                        assert_eq!(
                            tile.get(row as usize, column as usize),
                            expected,
                            "{scale} {divisor}: {row}, {column}"
                        );
                        ones += usize::from(expected);
                    }
                }
                assert!(compiled.fill(&q, &kv, rows as usize + 1, columns as usize).is_err());
            }
            assert!(ones > 0);
        }
    }

    #[test]
    fn predicates_without_code_are_refused() {
        let mut graph = Graph::default();
        let token = Extent::Token { q: true, kv: false };
        let mut push = |op: Op, kind| graph.push(op, Type::new(kind, token), Span::default());
        let a = push(Op::Coordinate(Coordinate::Position, Side::Query), Kind::Int);
        let real = push(Op::Unary(Unary::ToReal, a), Kind::Real);
        let value = push(Op::Compare(Comparison::Less, real, real), Kind::Bool);
        let message = CompiledPredicate::new(&Predicate { graph, value }, &grid()).unwrap_err().to_string();
        assert_eq!(message, "there is no machine code for reals in a token predicate");
    }
}
