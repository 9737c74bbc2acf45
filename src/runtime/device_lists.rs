//! Work lists on a GPU: made once for the symbols they are about, and run as often as these are in force.

use std::sync::{Arc, Weak};

use super::merged::Merged;
use super::selection::LayerSymbols;
use crate::cuda::Stream;
use crate::error::Result;
use crate::kernels::{
    DeviceSymbols, GemmSizes, GemmWork, HeadsOperands, Kernels, Operands, Options, OutOperands, Path, TileSet,
    WorkPlan, Workspace,
};
use crate::symbols::{Blocks, Symbols};

/// What every launch of a session needs.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) kernels: Arc<Kernels>,
    pub(super) stream: Arc<Stream>,
    /// Launches are on one stream, one after the other: they share it.
    pub(super) workspace: Arc<Workspace>,
}

/// The work lists of projections of one set of tiles.
#[derive(Debug)]
pub(super) struct Lists {
    set: TileSet,
    works: Vec<(GemmSizes, Arc<GemmWork>)>,
}

/// The work list of attention under some symbols.
#[derive(Debug)]
pub(super) struct Attention {
    work: Arc<WorkPlan>,
    is_planned: bool,
}

/// All work lists of the symbols of a layer.
#[derive(Debug)]
pub(super) struct Prepared {
    symbols: Weak<LayerSymbols>,
    pub(super) attention: Attention,
    pub(super) live: Lists,
    /// For the projection of each order of cached features, and of how many orders.
    pub(super) cached: Vec<(Lists, usize)>,
    /// Whether blocks that are not cached keep nothing.
    pub(super) has_empty: bool,
}

impl Lists {
    pub(super) fn new(set: TileSet) -> Self {
        Lists { set, works: Vec::new() }
    }

    /// The work list of some sizes, and whether it is new: then it has to be planned.
    fn work(&mut self, launcher: &Launcher, sizes: &GemmSizes) -> Result<(Arc<GemmWork>, bool)> {
        if let Some((_, known)) = self.works.iter().find(|(known, _)| known == sizes) {
            return Ok((Arc::clone(known), false));
        }
        let Launcher { kernels, stream, workspace } = launcher;
        let work = kernels.gemm_work(stream, self.set.clone(), sizes.clone(), Path::Best, Some(workspace))?;
        self.works.push((sizes.clone(), Arc::clone(&work)));
        Ok((work, true))
    }

    /// Puts GEMM-Q into the stream.
    pub(super) fn gemm_q(&mut self, launcher: &Launcher, sizes: &GemmSizes, operands: HeadsOperands) -> Result<()> {
        let (work, is_new) = self.work(launcher, sizes)?;
        let call = launcher.kernels.gemm_q(&work, operands)?;
        if is_new {
            call.plan(&launcher.stream)?;
        }
        call.run(&launcher.stream)
    }

    /// Puts GEMM-O into the stream.
    pub(super) fn gemm_o(&mut self, launcher: &Launcher, sizes: &GemmSizes, operands: OutOperands) -> Result<()> {
        let (work, is_new) = self.work(launcher, sizes)?;
        let call = launcher.kernels.gemm_o(&work, operands)?;
        if is_new {
            call.plan(&launcher.stream)?;
        }
        call.run(&launcher.stream)
    }
}

impl Attention {
    pub(super) fn new(launcher: &Launcher, symbols: &Arc<DeviceSymbols>, head_dim: usize) -> Result<Self> {
        let Launcher { kernels, stream, workspace } = launcher;
        let work = kernels.work(stream, symbols, [1, head_dim], &Options::default(), Some(workspace))?;
        Ok(Attention { work, is_planned: false })
    }

    /// Puts attention into the stream; rows of cached blocks stay untouched.
    pub(super) fn run(&mut self, launcher: &Launcher, operands: Operands) -> Result<()> {
        let call = launcher.kernels.attention(&self.work, operands, Options::default())?;
        if !self.is_planned {
            call.plan(&launcher.stream)?;
            self.is_planned = true;
        }
        call.run(&launcher.stream)
    }
}

impl Prepared {
    /// Uploads the symbols of a layer. Work lists of projections are made when they are first asked for.
    pub(super) fn new(launcher: &Launcher, symbols: &Arc<LayerSymbols>, head_dim: usize) -> Result<Self> {
        let merged = Merged::of(symbols)?;
        let upload = |symbols: &Symbols, blocks: &Blocks| DeviceSymbols::upload(&launcher.stream, symbols, blocks, 1);
        let own = upload(&merged.symbols, &merged.blocks)?;
        let mut cached = Vec::new();
        for (of_order, count) in merged.of_orders() {
            // Those of the first order are the layer's own.
            let device = if cached.is_empty() { Arc::clone(&own) } else { upload(&of_order, &merged.blocks)? };
            cached.push((Lists::new(TileSet::Cached(device)), count));
        }
        Ok(Prepared {
            symbols: Arc::downgrade(symbols),
            attention: Attention::new(launcher, &own, head_dim)?,
            live: Lists::new(TileSet::Live(own)),
            cached,
            has_empty: merged.has_empty(),
        })
    }

    /// Whether it is of these symbols.
    pub(super) fn is_of(&self, symbols: &Arc<LayerSymbols>) -> bool {
        std::ptr::eq(self.symbols.as_ptr(), Arc::as_ptr(symbols))
    }

    /// Whether its symbols are in force somewhere.
    pub(super) fn is_in_force(&self) -> bool {
        self.symbols.strong_count() > 0
    }
}
