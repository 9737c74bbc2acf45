//! What a pass does, without a device: launches with their parameters, and the memory that they share.
//!
//! Everything lies in one piece of memory whose address is known when a program is lowered, so that parameters are plain bytes. Only
//! two kinds of them change from run to run: the tensors, and where the uniforms of the place are.

use bytemuck::{NoUninit, bytes_of};

use crate::ir::Source;

use super::uniforms::Uniforms;

/// Where arrays begin: what the GPU reads in one piece.
const ALIGNMENT: u64 = 256;

/// Most bytes of the parameters of a launch.
pub const MOST_PARAMS: usize = 1848;

/// A kernel of `runtime_kernels/selector/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each has the name of its kernel")]
pub enum Entry {
    Pool,
    Centre,
    Similarity,
    Each,
    Dot,
    DotSmall,
    Vectors,
    OverChannels,
    Scale,
    Softmax,
    Share,
    Reduce,
    Select1,
    Select2,
    Select3,
    Select5,
    Select9,
    Select17,
    Select32,
    SelectLong,
    Move,
    Transpose,
    Gather,
    Diagonals,
    OnDiagonals,
    GroupSums,
    Pack,
}

/// Kernels of selections in registers: how many numbers of a line each takes.
pub(super) const SHORT_SELECTIONS: [(usize, Entry); 7] = [
    (32, Entry::Select1),
    (64, Entry::Select2),
    (96, Entry::Select3),
    (160, Entry::Select5),
    (288, Entry::Select9),
    (544, Entry::Select17),
    (1024, Entry::Select32),
];

impl Entry {
    /// Its file, and its name there.
    #[must_use]
    pub fn place(self) -> (&'static str, &'static str) {
        match self {
            Entry::Pool => ("selector/pool.cu", "selector_pool"),
            Entry::Centre => ("selector/pool.cu", "selector_centre"),
            Entry::Similarity => ("selector/pool.cu", "selector_similarity"),
            Entry::Each => ("selector/vectors.cu", "selector_each"),
            Entry::Dot => ("selector/vectors.cu", "selector_dot"),
            Entry::DotSmall => ("selector/vectors.cu", "selector_dot_small"),
            Entry::Vectors => ("selector/vectors.cu", "selector_vectors"),
            Entry::OverChannels => ("selector/vectors.cu", "selector_over_channels"),
            Entry::Scale => ("selector/vectors.cu", "selector_scale"),
            Entry::Softmax => ("selector/lines.cu", "selector_softmax"),
            Entry::Share => ("selector/lines.cu", "selector_share"),
            Entry::Reduce => ("selector/lines.cu", "selector_reduce"),
            Entry::Select1 => ("selector/select.cu", "selector_select_1"),
            Entry::Select2 => ("selector/select.cu", "selector_select_2"),
            Entry::Select3 => ("selector/select.cu", "selector_select_3"),
            Entry::Select5 => ("selector/select.cu", "selector_select_5"),
            Entry::Select9 => ("selector/select.cu", "selector_select_9"),
            Entry::Select17 => ("selector/select.cu", "selector_select_17"),
            Entry::Select32 => ("selector/select.cu", "selector_select_32"),
            Entry::SelectLong => ("selector/select_long.cu", "selector_select_long"),
            Entry::Move => ("selector/move.cu", "selector_move"),
            Entry::Transpose => ("selector/move.cu", "selector_transpose"),
            Entry::Gather => ("selector/move.cu", "selector_gather"),
            Entry::Diagonals => ("selector/move.cu", "selector_diagonals"),
            Entry::OnDiagonals => ("selector/move.cu", "selector_on_diagonals"),
            Entry::GroupSums => ("selector/move.cu", "selector_group_sums"),
            Entry::Pack => ("selector/pack.cu", "selector_pack"),
        }
    }

    /// Threads of a thread block.
    #[must_use]
    pub fn threads(self) -> u32 {
        match self {
            // Few, so that the work of short sequences is spread evenly.
            Entry::Pool | Entry::Dot | Entry::DotSmall => 64,
            Entry::Centre
            | Entry::Similarity
            | Entry::Select1
            | Entry::Select2
            | Entry::Select3
            | Entry::Select5
            | Entry::Select9
            | Entry::Select17
            | Entry::Select32 => 128,
            Entry::SelectLong => 1024,
            _ => 256,
        }
    }
}

/// The files that have kernels.
pub const FILES: [&str; 7] = [
    "selector/lines.cu",
    "selector/move.cu",
    "selector/pack.cu",
    "selector/pool.cu",
    "selector/select.cu",
    "selector/select_long.cu",
    "selector/vectors.cu",
];

/// What a launch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A kernel, whose one parameter is a structure of `params.cuh`.
    Kernel(Entry),
    /// A fused chain of the program by its number; its parameters are addresses and two sizes, in words of eight bytes.
    Map(usize),
}

/// A launch.
#[derive(Clone, Debug)]
pub struct Step {
    /// What runs.
    pub code: Code,
    /// Thread blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// The parameters, but for what changes from run to run.
    pub params: Vec<u8>,
    /// Where in `params` an address in the uniforms stands, and how far behind their beginning it is.
    pub uniforms: Vec<(usize, u64)>,
    /// Where in `params` the structure of a tensor stands, and which.
    pub sources: Vec<(usize, Source)>,
}

/// A pass.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Where its memory begins.
    pub base: u64,
    /// Size of its memory.
    pub bytes: u64,
    /// What is in it from the beginning: how far behind its beginning, and bytes.
    pub constants: Vec<(u64, Vec<u8>)>,
    /// The launches, in order.
    pub steps: Vec<Step>,
    /// What each run may look up by its place.
    pub uniforms: Uniforms,
    /// Address of the word that becomes 1 where something is NaN or infinite.
    pub status: u64,
}

impl Recipe {
    /// A pass that does nothing yet.
    pub(super) fn new(base: u64) -> Self {
        let mut recipe = Recipe {
            base,
            bytes: 0,
            constants: Vec::new(),
            steps: Vec::new(),
            uniforms: Uniforms::default(),
            status: 0,
        };
        recipe.status = recipe.constant(&[0_u32]);
        recipe
    }

    /// Room for some bytes.
    pub(super) fn room(&mut self, bytes: u64) -> u64 {
        let address = self.base + self.bytes;
        self.bytes = (self.bytes.saturating_add(bytes.max(1))).next_multiple_of(ALIGNMENT);
        address
    }

    /// An array that is known.
    pub(super) fn constant<T: NoUninit>(&mut self, values: &[T]) -> u64 {
        let bytes = bytemuck::cast_slice(values).to_vec();
        let address = self.room(bytes.len() as u64);
        self.constants.push((address - self.base, bytes));
        address
    }

    /// Adds a launch of a kernel; threads along x are at least `threads`.
    pub(super) fn launch<T: NoUninit>(&mut self, entry: Entry, blocks: u64, heads: u32, params: &T) -> &mut Step {
        let grid = [u32::try_from(blocks).unwrap_or(u32::MAX), heads];
        let params = bytes_of(params).to_vec();
        self.add(Step {
            code: Code::Kernel(entry),
            grid,
            threads: entry.threads(),
            params,
            uniforms: Vec::new(),
            sources: Vec::new(),
        })
    }

    /// Adds a launch.
    pub(super) fn add(&mut self, step: Step) -> &mut Step {
        self.steps.push(step);
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }
}

/// Thread blocks of `threads` for so many items, each of its own thread.
pub(super) fn blocks_for(items: u64, threads: u32) -> u64 {
    items.div_ceil(u64::from(threads))
}

/// The same for threads that go on to further items.
pub(super) fn striding_blocks(items: u64, threads: u32) -> u64 {
    blocks_for(items, threads).min(4096)
}

#[cfg(test)]
mod tests {
    use super::FILES;
    use crate::kernels::source;

    /// Launches begin early on the strength of it.
    #[test]
    fn every_kernel_waits_before_anything_else() {
        for file in FILES {
            let text = source::bundle(file).unwrap();
            let kernels: Vec<&str> = text.split("extern \"C\" __global__").skip(1).collect();
            assert!(!kernels.is_empty(), "{file}");
            for kernel in kernels {
                let body = kernel.split_once('{').unwrap().1.trim_start_matches([' ', '\\', '\n']);
                assert!(body.starts_with("wait_for_turn();"), "{file}: {}", &kernel[..100]);
            }
        }
    }
}
