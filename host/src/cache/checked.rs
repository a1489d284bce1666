//! Launches in checked mode.

use flashtile_abi::{CheckParams, RowsParams, check::flags};

use super::{
    plan::{AppendPlan, GatherPlan, RotaryPointers, RowsPointers},
    problem::Place,
};
use crate::{
    checked::Checks,
    device::{Device, Stream},
    error::Result,
};

impl AppendPlan {
    /// As [`AppendPlan::launch`], with a kernel before it that checks slots, or starts, lengths and pages, on the device, by the rules of
    /// [`Place::rows`]; not the positions of rotary embedding. First it looks at what launches before have found
    /// ([`MetadataReport::look`](crate::checked::MetadataReport::look)): if that is an error, nothing is launched. It can be captured in a CUDA graph
    /// as well, and then checks on every replay.
    ///
    /// A plan of no tokens launches nothing and checks nothing.
    ///
    /// # Errors
    /// As [`AppendPlan::launch`]; [`Error::BadInput`](crate::Error::BadInput) for what the device's numbers were at an earlier launch, whose
    /// message says so.
    ///
    /// # Safety
    /// As [`AppendPlan::launch`]. The report must be of this device, and used in one stream at a time.
    pub unsafe fn launch_checked(
        &self,
        device: &dyn Device,
        stream: Stream,
        rows: &RowsPointers,
        rotary: &RotaryPointers,
        checks: &Checks<'_>,
    ) -> Result<()> {
        checks.report.look()?;
        if self.config().grid[0] == 0 {
            return Ok(());
        }
        let params = self.params(rows, rotary)?;
        // SAFETY: the caller vouches for addresses, stream and report.
        unsafe {
            check(&self.problem().place, &params, device, stream, checks)?;
            self.enqueue(device, stream, &params)
        }
    }
}

impl GatherPlan {
    /// As [`GatherPlan::launch`], in checked mode: see [`AppendPlan::launch_checked`].
    ///
    /// # Errors
    /// As [`AppendPlan::launch_checked`].
    ///
    /// # Safety
    /// As [`GatherPlan::launch`]. The report must be of this device, and used in one stream at a time.
    pub unsafe fn launch_checked(
        &self,
        device: &dyn Device,
        stream: Stream,
        rows: &RowsPointers,
        checks: &Checks<'_>,
    ) -> Result<()> {
        checks.report.look()?;
        if self.config().grid[0] == 0 {
            return Ok(());
        }
        let params = self.params(rows)?;
        // SAFETY: the caller vouches for addresses, stream and report.
        unsafe {
            check(&self.problem().place, &params, device, stream, checks)?;
            self.enqueue(device, stream, &params)
        }
    }
}

/// Enqueues the checking kernel for a launch of such parameters.
///
/// # Safety
/// As [`Checks::launch`].
unsafe fn check(
    place: &Place,
    params: &RowsParams,
    device: &dyn Device,
    stream: Stream,
    checks: &Checks<'_>,
) -> Result<()> {
    let mut lengths = params.lengths;
    // At most as many as tokens.
    lengths.longest = params.rows.divisor as i32;
    let (batch, most) = match place {
        Place::Slots => (1, lengths.tokens as usize),
        Place::Sequences(sequences) => {
            let entries = sequences.pages.map_or(0, |pages| pages.entries);
            (params.batch, entries)
        }
    };
    let check = CheckParams {
        k: lengths,
        pages: params.pages,
        slots: params.slots,
        first: params.first,
        batch,
        capacity: params.capacity,
        flags: flags::ROWS,
        ..CheckParams::default()
    };
    // SAFETY: the caller's promise.
    unsafe { checks.launch(device, stream, check, most) }
}
