//! The work list of a launch: room for what plan.cu finds.

use std::sync::Arc;

use super::choose::BLOCK;
use super::params::{self, CUT_BYTES, HEAD_BYTES};
use super::symbols::DeviceSymbols;
use crate::cuda::{Buffer, Stream};
use crate::error::{Error, Result};

/// Room for the pieces of divided rows, tens of megabytes.
///
/// It is one launch's at a time: work lists share it where their launches never run at once, such as those of one stream.
#[derive(Debug)]
pub struct Workspace {
    arrived: Buffer,
    partial_out: Buffer,
    partial_stats: Buffer,
}

/// Room for the work list of a launch.
#[derive(Debug)]
pub(super) struct WorkList {
    pub(super) params: params::Plan,
    workspace: Arc<Workspace>,
    _memory: [Buffer; 4],
}

/// Room for the work list of attention under some symbols.
#[derive(Debug)]
pub struct WorkPlan {
    pub(super) list: WorkList,
    pub(super) batch: u32,
    pub(super) head_dim: u32,
    pub(super) symbols: Arc<DeviceSymbols>,
}

impl Workspace {
    /// Room for launches of so many thread blocks, whose rows have so many columns of output.
    pub(super) fn new(stream: &Stream, ctas: u32, columns: u32) -> Result<Self> {
        let (device, [arrived, partial_out, partial_stats]) = (stream.device(), Self::bytes(ctas, columns));
        Ok(Workspace {
            // Kernels leave zeros behind where they need them.
            arrived: Buffer::filled(stream, arrived, 0)?,
            partial_out: Buffer::new(device, partial_out)?,
            partial_stats: Buffer::new(device, partial_stats)?,
        })
    }

    /// Bytes of its parts.
    fn bytes(ctas: u32, columns: u32) -> [usize; 3] {
        let pieces = 2 * ctas as usize;
        [pieces * 4, pieces * (BLOCK * columns) as usize * 4, pieces * BLOCK as usize * 2 * 4]
    }

    /// The one that is given if launches of so many thread blocks and columns can use it, or a new one.
    pub(super) fn or_new(given: Option<&Arc<Self>>, stream: &Stream, ctas: u32, columns: u32) -> Result<Arc<Self>> {
        let Some(known) = given else { return Self::new(stream, ctas, columns).map(Arc::new) };
        let own = [&known.arrived, &known.partial_out, &known.partial_stats].map(Buffer::bytes);
        if own.iter().zip(Self::bytes(ctas, columns)).all(|(own, needed)| needed <= *own) {
            return Ok(Arc::clone(known));
        }
        Err(Error::State("the workspace is for smaller launches".to_owned()))
    }
}

impl WorkList {
    /// Room for launches of `ctas` thread blocks on so many rows; nothing is planned yet.
    pub(super) fn new(
        stream: &Stream,
        rows: u32,
        ctas: u32,
        workspace: &Arc<Workspace>,
        fill_cached: bool,
    ) -> Result<Self> {
        let (device, rows) = (stream.device(), rows as usize);
        let memory = [
            Buffer::filled(stream, HEAD_BYTES, 0)?,
            Buffer::new(device, (ctas as usize + 1) * CUT_BYTES)?,
            Buffer::new(device, rows * 4)?,
            Buffer::new(device, rows * 4)?,
        ];
        // A launch may come from another stream.
        stream.synchronize()?;
        let [head, cuts, order, lengths] = std::array::from_fn(|index| memory[index].address());
        let Workspace { arrived, partial_out, partial_stats, .. } = &**workspace;
        let [arrived, partial_out, partial_stats] = [arrived, partial_out, partial_stats].map(Buffer::address);
        let fill_cached = u32::from(fill_cached);
        let params =
            params::Plan { head, cuts, order, lengths, arrived, partial_out, partial_stats, ctas, fill_cached };
        Ok(WorkList { params, workspace: Arc::clone(workspace), _memory: memory })
    }

    pub(super) fn workspace(&self) -> &Arc<Workspace> {
        &self.workspace
    }
}

impl WorkPlan {
    /// Room for launches on tensors with `batch` entries; nothing is planned yet.
    ///
    /// # Errors
    /// [`Error::Shape`] when the symbols are those of another number of batch entries, or there are too many rows;
    /// [`Error::Cuda`] when there is not enough memory.
    pub(super) fn new(
        stream: &Stream,
        symbols: &Arc<DeviceSymbols>,
        [batch, head_dim, ctas]: [u32; 3],
        workspace: &Arc<Workspace>,
        fill_cached: bool,
    ) -> Result<Self> {
        let sizes = symbols.sizes();
        if sizes.batches != 1 && sizes.batches != batch {
            return Err(Error::Shape(format!("symbols of {} batch entries, tensors of {batch}", sizes.batches)));
        }
        let rows = [batch, sizes.heads, sizes.q_blocks].into_iter().try_fold(1_u32, u32::checked_mul);
        let Some(rows) = rows.filter(|&rows| rows < 1 << 31) else {
            let (heads, q_blocks) = (sizes.heads, sizes.q_blocks);
            return Err(Error::Shape(format!("{batch} x {heads} x {q_blocks} q-blocks are too many for one launch")));
        };
        let list = WorkList::new(stream, rows, ctas, workspace, fill_cached)?;
        Ok(WorkPlan { list, batch, head_dim, symbols: Arc::clone(symbols) })
    }

    /// Its room for pieces, to be shared by work lists whose launches never run at the same time as its own.
    #[must_use]
    pub fn workspace(&self) -> &Arc<Workspace> {
        self.list.workspace()
    }

    /// Whether rows of cached q-blocks are filled.
    #[must_use]
    pub fn fills_cached(&self) -> bool {
        self.list.params.fill_cached != 0
    }
}
