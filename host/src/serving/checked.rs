//! Launches in checked mode, and replays.

use flashtile_abi::{CheckParams, check::flags::PAGED};

use super::{plan::ServingPlan, pointers::ServingPointers};
use crate::{
    checked::Checks,
    device::{Device, Stream},
    error::{Error, Result},
};

impl ServingPlan {
    /// As [`ServingPlan::launch`], with a kernel before it that checks lengths, starts, pages and ranges on the device, by the rules of
    /// [`ServingProblem::check_metadata`](super::ServingProblem::check_metadata). First it looks at what launches before have found
    /// ([`MetadataReport::look`](crate::checked::MetadataReport::look)): if that is an error, nothing is launched. It can be captured in a CUDA graph
    /// as well, and then checks on every replay; a later checked launch, or `look`, tells.
    ///
    /// A plan that [is empty](ServingPlan::is_empty) launches nothing and checks nothing.
    ///
    /// # Errors
    /// As [`ServingPlan::launch`]; [`Error::BadInput`] for what the device's numbers were at an earlier launch, whose message says so.
    ///
    /// # Safety
    /// As [`ServingPlan::launch`]. The report must be of this device, and used in one stream at a time.
    pub unsafe fn launch_checked(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &ServingPointers,
        checks: &Checks<'_>,
    ) -> Result<()> {
        checks.report.look()?;
        if self.is_empty() {
            return Ok(());
        }
        let (params, merge) = self.params(pointers)?;
        let problem = self.problem();
        let check = CheckParams {
            q: params.q_lengths,
            k: params.k_lengths,
            pages: params.pages,
            ranges: params.ranges,
            batch: problem.batch as u32,
            capacity: params.k_lengths.tokens as u32,
            flags: if problem.pages.is_some() { PAGED } else { 0 },
            ..CheckParams::default()
        };
        let entries = problem.pages.map_or(0, |pages| pages.entries);
        let most = entries.max(problem.ranges.unwrap_or(0));
        // SAFETY: the caller vouches for addresses, stream and report.
        unsafe {
            checks.launch(device, stream, check, most)?;
            self.enqueue(device, stream, &params, merge.as_ref())
        }
    }

    /// Refuses what the plan, and with it a graph that was captured from it, has no room for: more sequences, or longer ones. With fewer or
    /// shorter ones it can be launched and replayed: sequences that are left over have no queries and no keys.
    ///
    /// # Errors
    /// [`Error::BadInput`] names `sequences`, `longest_q` or `longest_k`.
    pub fn check_replay(&self, sequences: usize, longest_q: usize, longest_k: usize) -> Result<()> {
        let problem = self.problem();
        for (argument, what, found, planned) in [
            ("sequences", "sequences", sequences, problem.batch),
            (
                "longest_q",
                "queries of a sequence",
                longest_q,
                problem.q_lengths.longest,
            ),
            (
                "longest_k",
                "keys of a sequence",
                longest_k,
                problem.k_lengths.longest,
            ),
        ] {
            if found > planned {
                return Err(Error::bad(
                    argument,
                    format!("at most {planned} {what}, for which the launch was planned"),
                    found.to_string(),
                ));
            }
        }
        Ok(())
    }
}
