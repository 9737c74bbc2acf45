//! The work list of a launch: room for what plan.cu finds.

use std::sync::Arc;

use super::choose::BLOCK;
use super::params::{self, CUT_BYTES, HEAD_BYTES};
use super::symbols::DeviceSymbols;
use crate::cuda::{Buffer, Stream};
use crate::error::{Error, Result};

/// Room for the work list of some symbols, and for the pieces of divided rows.
///
/// It is one launch's at a time: launches that may run at once need work lists of their own.
#[derive(Debug)]
pub struct WorkPlan {
    pub(super) params: params::Plan,
    pub(super) batch: u32,
    pub(super) head_dim: u32,
    pub(super) symbols: Arc<DeviceSymbols>,
    _memory: [Buffer; 7],
}

impl WorkPlan {
    /// Room for launches of `ctas` thread blocks in all; nothing is planned yet.
    ///
    /// # Errors
    /// [`Error::Shape`] when the symbols are those of another number of batch entries, or there are too many rows;
    /// [`Error::Cuda`] when there is not enough memory.
    pub(super) fn new(
        stream: &Stream,
        symbols: &Arc<DeviceSymbols>,
        batch: u32,
        head_dim: u32,
        ctas: u32,
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
        let (rows, pieces) = (rows as usize, 2 * ctas as usize);
        let device = stream.device();
        let memory = [
            // Kernels leave zeros behind where they need them.
            Buffer::filled(stream, HEAD_BYTES, 0)?,
            Buffer::new(device, (ctas as usize + 1) * CUT_BYTES)?,
            Buffer::new(device, rows * 4)?,
            Buffer::new(device, rows * 4)?,
            Buffer::filled(stream, pieces * 4, 0)?,
            Buffer::new(device, pieces * (BLOCK * head_dim) as usize * 4)?,
            Buffer::new(device, pieces * BLOCK as usize * 2 * 4)?,
        ];
        // A launch may come from another stream.
        stream.synchronize()?;
        let [head, cuts, order, lengths, arrived, partial_out, partial_stats] =
            std::array::from_fn(|index| memory[index].address());
        let fill_cached = u32::from(fill_cached);
        let params =
            params::Plan { head, cuts, order, lengths, arrived, partial_out, partial_stats, ctas, fill_cached };
        Ok(WorkPlan { params, batch, head_dim, symbols: Arc::clone(symbols), _memory: memory })
    }

    /// Whether rows of cached q-blocks are filled.
    #[must_use]
    pub fn fills_cached(&self) -> bool {
        self.params.fill_cached != 0
    }
}
