//! Work lists on a GPU: made once for the symbols they are about, and run as often as these are in force.

use std::sync::{Arc, Weak};

use super::merged::Merged;
use super::selection::LayerSymbols;
use crate::cuda::Stream;
use crate::error::Result;
use crate::kernels::{
    DeviceSymbols, GemmCall, GemmSizes, GemmWork, HeadsOperands, Kernels, Operands, Options, OutOperands, Path,
    TileSet, WorkPlan, Workspace,
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
    works: Vec<List>,
}

/// One of them.
#[derive(Debug)]
struct List {
    sizes: GemmSizes,
    work: Arc<GemmWork>,
    is_planned: bool,
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
    /// Those on the host, where they are the host's.
    symbols: Weak<LayerSymbols>,
    /// Tells these symbols from all others of the session.
    pub(super) version: u64,
    pub(super) attention: Attention,
    pub(super) live: Lists,
    pub(super) uncached: Lists,
    /// For the projection of each order of cached features, and of how many orders.
    pub(super) cached: Vec<(Lists, usize)>,
}

impl Lists {
    pub(super) fn new(set: TileSet) -> Self {
        Lists { set, works: Vec::new() }
    }

    /// The work list of some sizes.
    fn list(&mut self, launcher: &Launcher, sizes: &GemmSizes) -> Result<&mut List> {
        let index = match self.works.iter().position(|known| known.sizes == *sizes) {
            Some(index) => index,
            None => {
                let Launcher { kernels, stream, workspace } = launcher;
                let work = kernels.gemm_work(stream, self.set.clone(), sizes.clone(), Path::Best, Some(workspace))?;
                self.works.push(List { sizes: sizes.clone(), work, is_planned: false });
                self.works.len() - 1
            }
        };
        Ok(&mut self.works[index])
    }

    /// Puts GEMM-Q into the stream.
    pub(super) fn gemm_q(&mut self, launcher: &Launcher, sizes: &GemmSizes, operands: HeadsOperands) -> Result<()> {
        let list = self.list(launcher, sizes)?;
        list.run(launcher, &launcher.kernels.gemm_q(&list.work, operands)?)
    }

    /// Puts GEMM-O into the stream.
    pub(super) fn gemm_o(&mut self, launcher: &Launcher, sizes: &GemmSizes, operands: OutOperands) -> Result<()> {
        let list = self.list(launcher, sizes)?;
        list.run(launcher, &launcher.kernels.gemm_o(&list.work, operands)?)
    }

    /// The bits of the symbols are others now.
    fn renew(&mut self) {
        self.works.iter_mut().for_each(|list| list.is_planned = false);
    }
}

impl List {
    fn run(&mut self, launcher: &Launcher, call: &GemmCall) -> Result<()> {
        if !self.is_planned {
            call.plan(&launcher.stream)?;
            self.is_planned = true;
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
    pub(super) fn new(launcher: &Launcher, symbols: &Arc<LayerSymbols>, version: u64, head_dim: usize) -> Result<Self> {
        let merged = Merged::of(symbols)?;
        let upload = |symbols: &Symbols, blocks: &Blocks| DeviceSymbols::upload(&launcher.stream, symbols, blocks, 1);
        let own = upload(&merged.symbols, &merged.blocks)?;
        let mut cached = Vec::new();
        for (of_order, count) in merged.of_orders() {
            // Those of the first order are the layer's own.
            let device = if cached.is_empty() { Arc::clone(&own) } else { upload(&of_order, &merged.blocks)? };
            cached.push((device, count));
        }
        let mut prepared = Self::of_device(launcher, &own, cached, head_dim)?;
        if merged.is_all_live() {
            // Tiles are full then, whatever the blocks.
            (prepared.live, prepared.uncached) = (Lists::new(TileSet::All), Lists::new(TileSet::All));
        }
        (prepared.symbols, prepared.version) = (Arc::downgrade(symbols), version);
        Ok(prepared)
    }

    /// The work lists of symbols that are on the GPU already, and for each order of the forecast of those whose cached blocks it is about.
    pub(super) fn of_device(
        launcher: &Launcher,
        own: &Arc<DeviceSymbols>,
        cached: Vec<(Arc<DeviceSymbols>, usize)>,
        head_dim: usize,
    ) -> Result<Self> {
        let cached = cached.into_iter().map(|(symbols, count)| (Lists::new(TileSet::Cached(symbols)), count));
        Ok(Prepared {
            symbols: Weak::new(),
            version: 0,
            attention: Attention::new(launcher, own, head_dim)?,
            live: Lists::new(TileSet::Live(Arc::clone(own))),
            uncached: Lists::new(TileSet::Uncached(Arc::clone(own))),
            cached: cached.collect(),
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

    /// The bits of the symbols are others now.
    pub(super) fn renew(&mut self, version: u64) {
        self.version = version;
        self.attention.is_planned = false;
        [&mut self.live, &mut self.uncached].into_iter().for_each(Lists::renew);
        self.cached.iter_mut().for_each(|(lists, _)| lists.renew());
    }
}
