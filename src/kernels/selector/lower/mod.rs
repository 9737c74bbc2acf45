//! A selector program as launches: value by value in the order of the program, all heads in each launch.
//!
//! What fused chains compute on their way has no array. Slices and transposes are views of the array that they are taken of, until something
//! wants an array of its own. Lines are rows: an operation along columns takes the transposed view, which is copied where it is large. What has
//! no kernel is refused by its name.

mod grids;
mod selection;
mod terms;
mod vectors;

use crate::codegen::{Access, Map, maps};
use crate::error::{Error, Result};
use crate::ir::scalar::At;
use crate::ir::{Extent, Graph, Kind, Model, Op, SetId, Side, ValueId};
use crate::plan::{Body, Class, Plan, Program};
use crate::reference::SelectorInput;
use crate::reference::input::{HeadTensors, check_program, crosses_heads, live_values};
use crate::symbols::{BitMatrix, Blocks};

use super::params::MAX_SIDES;
use super::recipe::{Code, Entry, Recipe, Step, striding_blocks};
use super::uniforms::Uniforms;

/// What a pass is made for.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The program.
    pub program: &'a Program,
    /// The model that it was compiled for.
    pub model: &'a Model,
    /// The blocks of the arrangement; the same for all heads.
    pub blocks: &'a Blocks,
    /// Where each token of the arrangement stands in the tensors, `order[new] = old`; `None` where they are in place.
    pub order: Option<&'a [u32]>,
    /// The bitmaps of the program's mask slots.
    pub masks: Vec<&'a BitMatrix>,
    /// The heads of the model whose symbols are wanted.
    pub heads: &'a [u32],
    /// The steps and layers that it will run at.
    pub places: &'a [(u32, u32)],
}

impl<'a> Setup<'a> {
    /// A pass for heads of a class of a plan, at some steps and layers. Tensors are in the model's order of tokens.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where clusters give each head its own blocks; [`Error::State`] for a class without a program.
    pub fn of_class(plan: &'a Plan, class: &Class, heads: &'a [u32], places: &'a [(u32, u32)]) -> Result<Self> {
        let Body::Dynamic { program, masks } = &class.body else {
            return Err(Error::State("the symbols of this class are known: it has no selector program".to_owned()));
        };
        let arrangement = &plan.arrangements[class.arrangement as usize];
        if arrangement.clustering.is_some() {
            return Err(unavailable("clusters of tokens, which give each head its own blocks"));
        }
        Ok(Setup {
            program: &plan.programs[*program as usize],
            model: &plan.model,
            blocks: &arrangement.blocks,
            order: arrangement.order.as_deref(),
            masks: masks.iter().map(|&mask| &plan.masks[mask as usize]).collect(),
            heads,
            places,
        })
    }
}

/// Where symbols are written.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Address of `S_c` over blocks of at most 128 tokens, heads in slots.
    pub cache: u64,
    /// Address of `S_s`.
    pub skip: u64,
    /// The slot of each wanted head.
    pub slots: &'a [u32],
}

/// An array of a value.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// `[heads][count][dim]` floats.
    Vectors { address: u64, count: usize },
    /// `[heads][q][kv]`, an axis that is missing has one element.
    Block(Block),
}

/// An array `[heads][q][kv]`, or a part of one: rows and columns may be those of a larger matrix, or exchanged.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: u64,
    q: Option<usize>,
    kv: Option<usize>,
    is_bool: bool,
    /// Elements from a head, a row and a column to the next.
    strides: [u64; 3],
}

impl Block {
    /// An array of its own.
    fn dense(address: u64, q: Option<usize>, kv: Option<usize>, is_bool: bool) -> Self {
        let columns = kv.unwrap_or(1) as u64;
        Block { address, q, kv, is_bool, strides: [q.unwrap_or(1) as u64 * columns, columns, 1] }
    }

    /// Whether its elements lie as those of an array of its own.
    fn is_dense(&self) -> bool {
        let [head, row, column] = self.strides;
        let in_order = [(self.rows(), row, self.columns() as u64), (self.columns(), column, 1)];
        head == self.size() && in_order.iter().all(|&(count, stride, wanted)| count == 1 || stride == wanted)
    }

    /// The same elements with rows and columns exchanged.
    fn transposed(self) -> Self {
        let [head, row, column] = self.strides;
        Block { q: self.kv, kv: self.q, strides: [head, column, row], ..self }
    }

    fn rows(&self) -> usize {
        self.q.unwrap_or(1)
    }

    fn columns(&self) -> usize {
        self.kv.unwrap_or(1)
    }

    fn size(&self) -> u64 {
        self.rows() as u64 * self.columns() as u64
    }

    /// Of an element.
    fn bytes(&self) -> u32 {
        if self.is_bool { 1 } else { 4 }
    }
}

/// Addresses of the statistics of a source, 0 where nobody wants them.
#[derive(Clone, Copy, Debug, Default)]
struct Pooled {
    mean: u64,
    sum: u64,
    least: u64,
    most: u64,
}

struct Lowering<'a> {
    setup: &'a Setup<'a>,
    input: SelectorInput<'a>,
    /// The heads that are computed.
    heads: Vec<u32>,
    recipe: Recipe,
    /// The values that are computed.
    live: Vec<ValueId>,
    values: Vec<Option<Value>>,
    /// Values that another launch makes on its way.
    dissolved: Vec<ValueId>,
    maps: Vec<Map>,
    /// Of each of [`Source::ALL`], once the first is asked for.
    pooled: Option<[Pooled; MAX_SIDES]>,
    /// The tensors' heads, and the order of tokens.
    head_list: u64,
    order: u64,
    /// Offsets of the blocks of queries and of keys.
    offsets: [u64; 2],
}

/// Lowers a program for memory that begins at `base`. How much it needs does not depend on where it is.
///
/// # Errors
/// [`Error::Unavailable`] names what has no kernel; [`Error::State`] for a program the compiler would not make; [`Error::Shape`] for masks
/// or slots that do not fit.
pub fn lower(setup: &Setup<'_>, target: &Target<'_>, base: u64) -> Result<Recipe> {
    let program = setup.program;
    check_program(program)?;
    check_setup(setup, target)?;
    let none = HeadTensors::default();
    let input = SelectorInput {
        model: setup.model,
        blocks: setup.blocks,
        masks: &setup.masks,
        at: At::default(),
        tensors: &none,
        layer: None,
        head_dim: setup.model.head_dim as usize,
    };
    let heads: Vec<u32> = if crosses_heads(program) { (0..setup.model.heads).collect() } else { setup.heads.to_vec() };
    let mut recipe = Recipe::new(base);
    recipe.uniforms = Uniforms::of_heads(&heads);
    let head_list = recipe.constant(&heads);
    let order = setup.order.map_or(0, |order| recipe.constant(order));
    let offsets = [&setup.blocks.q, &setup.blocks.kv].map(|offsets| recipe.constant(offsets));
    let mut lowering = Lowering {
        setup,
        input,
        heads,
        recipe,
        live: live_values(program),
        values: vec![None; program.graph.len()],
        dissolved: Vec::new(),
        maps: maps(program),
        pooled: None,
        head_list,
        order,
        offsets,
    };
    let terms = lowering.terms()?;
    lowering.dissolve_sums();
    for id in lowering.live.clone() {
        lowering.values[id.0 as usize] = lowering.value(id)?;
    }
    lowering.pack(&terms, target)?;
    Ok(lowering.recipe)
}

fn check_setup(setup: &Setup<'_>, target: &Target<'_>) -> Result<()> {
    let (model, blocks) = (setup.model, setup.blocks);
    if setup.heads.len() != target.slots.len() {
        let (heads, slots) = (setup.heads.len(), target.slots.len());
        return Err(Error::Shape(format!("symbols of {heads} heads were given {slots} slots")));
    }
    if let Some(head) = setup.heads.iter().find(|&&head| head >= model.heads) {
        return Err(Error::Shape(format!("there is no head {head}: the model has {}", model.heads)));
    }
    let tokens = model.tokens();
    let ends = [&blocks.q, &blocks.kv].map(|offsets| offsets.last().copied().unwrap_or(0));
    if ends != [tokens; 2] || [&blocks.q, &blocks.kv].iter().any(|all| all.windows(2).any(|pair| pair[0] >= pair[1])) {
        return Err(Error::Shape(format!(
            "the blocks of a selector pass do not fill the {tokens} tokens of the model"
        )));
    }
    match setup.order {
        Some(order) if order.len() != tokens as usize || order.iter().any(|&token| token >= tokens) => {
            Err(Error::Shape(format!("an order of {} tokens was given for {tokens}", order.len())))
        }
        _ => Ok(()),
    }
}

/// What has no kernel.
fn unavailable(what: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("a selector pass on a GPU has no kernel for {what}: choose symbols on the CPU"))
}

fn broken(id: ValueId) -> Error {
    Error::State(format!("value {} of the selector program has an operand of another extent", id.0))
}

/// A size as kernels take it.
fn size(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Shape(format!("{value} elements are too many for a selector pass")))
}

impl Lowering<'_> {
    fn graph(&self) -> &Graph {
        &self.setup.program.graph
    }

    fn head_count(&self) -> u32 {
        self.heads.len() as u32
    }

    fn dim(&self) -> u32 {
        self.setup.model.head_dim
    }

    /// The array of a value, which may be a part of another.
    fn view(&self, id: ValueId) -> Result<Block> {
        match self.values[id.0 as usize] {
            Some(Value::Block(block)) => Ok(block),
            _ => Err(broken(id)),
        }
    }

    /// The array of a value, as one of its own.
    fn block(&mut self, id: ValueId) -> Result<Block> {
        let view = self.view(id)?;
        let block = self.dense(view)?;
        self.values[id.0 as usize] = Some(Value::Block(block));
        Ok(block)
    }

    fn vectors(&self, id: ValueId) -> Result<(u64, usize)> {
        match self.values[id.0 as usize] {
            Some(Value::Vectors { address, count }) => Ok((address, count)),
            _ => Err(broken(id)),
        }
    }

    /// The sets along the axes of a value.
    fn axes(&self, id: ValueId) -> [Option<SetId>; 2] {
        self.graph().ty(id).extent.sets()
    }

    fn sizes(&self, id: ValueId) -> [Option<usize>; 2] {
        self.input.sizes_of(self.graph(), id)
    }

    /// Room for a block value.
    fn block_room(&mut self, id: ValueId) -> Result<Block> {
        let [q, kv] = self.sizes(id);
        self.room_for(Block::dense(0, q, kv, self.graph().ty(id).kind == Kind::Bool))
    }

    /// Room for an array of the size of another.
    fn room_for(&mut self, block: Block) -> Result<Block> {
        size(block.rows())?;
        size(block.columns())?;
        let bytes = block.size() * u64::from(self.head_count()) * u64::from(block.bytes());
        Ok(Block::dense(self.recipe.room(bytes), block.q, block.kv, block.is_bool))
    }

    /// The values that use one.
    fn users(&self, id: ValueId) -> impl Iterator<Item = ValueId> {
        let graph = self.graph();
        self.live.iter().copied().filter(move |&user| graph.op(user).operands().contains(&id))
    }

    /// Room for floats of each head.
    fn floats(&mut self, of_head: u64) -> u64 {
        self.recipe.room(of_head.saturating_mul(4 * u64::from(self.head_count())))
    }

    /// A known array, the same for all heads.
    fn repeated<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        let all = values.repeat(self.heads.len());
        self.recipe.constant(&all)
    }

    /// The value's array, `None` for scalars and for what a fused chain computes on its way.
    fn value(&mut self, id: ValueId) -> Result<Option<Value>> {
        if let Some(known) = self.values[id.0 as usize] {
            return Ok(Some(known));
        }
        if self.graph().ty(id).extent == Extent::Scalar || self.dissolved.contains(&id) {
            return Ok(None);
        }
        let op = self.graph().op(id).clone();
        if let Extent::Vectors(side, set) = self.graph().ty(id).extent {
            let count = self.input.count_of(self.graph(), set, side);
            let address = self.vectors_of(id, &op, count)?;
            return Ok(Some(Value::Vectors { address, count }));
        }
        if let Some((value, over)) = self.share(id) {
            return self.over_lines(Entry::Share, id, value, over).map(|block| Some(Value::Block(block)));
        }
        if op.is_elementwise() {
            let Some(index) = self.maps.iter().position(|map| map.root == id) else { return Ok(None) };
            return self.map(index).map(|block| Some(Value::Block(block)));
        }
        if let Op::Dot(a, b) = op {
            return Ok(self.dot(id, a, b)?.map(Value::Block));
        }
        self.routine(id, &op).map(|block| Some(Value::Block(block)))
    }

    fn map(&mut self, index: usize) -> Result<Block> {
        let map = self.maps[index].clone();
        let out = self.block_room(map.root)?;
        let mut words = vec![out.address];
        for (&leaf, access) in map.leaves.iter().zip(&map.access) {
            let leaf = self.block(leaf)?;
            let fits = match access {
                Access::Element => leaf.size() == out.size(),
                Access::Row => leaf.size() == out.rows() as u64,
                Access::Column => leaf.size() == out.columns() as u64,
                Access::One => leaf.size() == 1,
            };
            if !fits {
                return Err(broken(map.root));
            }
            words.push(leaf.address);
        }
        // Behind them two sizes; a launch takes 32 arguments.
        if words.len() > 29 {
            return Err(unavailable(format!("a chain over {} values", map.leaves.len())));
        }
        let uniforms = self.recipe.uniforms.reals(&map.uniforms);
        let place = words.len() * 8;
        // A vector is one row, whichever its side.
        let (rows, columns) = match (out.q, out.kv) {
            (Some(rows), Some(columns)) => (rows, columns),
            (one, other) => (1, one.or(other).unwrap_or(1)),
        };
        words.extend([0, rows as u64, columns as u64]);
        let threads = 256;
        let step = Step {
            code: Code::Map(index),
            grid: [striding_blocks(out.size(), threads) as u32, self.head_count()],
            threads,
            params: bytemuck::cast_slice(&words).to_vec(),
            uniforms: vec![(place, uniforms)],
            sources: Vec::new(),
        };
        self.recipe.add(step);
        Ok(out)
    }

    fn offsets_of(&self, side: Side) -> u64 {
        self.offsets[usize::from(side == Side::Key)]
    }
}
