//! A problem whose keys several ranks hold: each makes one part of the result, and all merge the parts.

use super::{
    merge::{MergeKernel, check_wanted},
    plan::{self, ServingPlan},
    pointers::ServingPointers,
    problem::{ServingProblem, Splits},
};
use crate::{
    Entry, OutDType, TensorLayout,
    device::{Device, DeviceInfo, Stream},
    error::Result,
};

/// What one rank does beside exchanging parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PartPlan {
    /// The whole problem's, over this rank's keys alone: what addresses are checked by.
    whole: ServingPlan,
    /// This rank's part: f32, with log-sum-exp, without sink.
    part: ServingPlan,
    merge: MergeKernel,
}

impl PartPlan {
    /// One of so many parts.
    pub fn new(problem: &ServingProblem, parts: u32, device: &DeviceInfo) -> Result<Self> {
        let whole = problem.splits(Splits::One).plan(device)?;
        let view = whole.params_template().partial.out;
        let elements = |bytes: i64| bytes / 4;
        let layout = TensorLayout {
            shape: problem.out.shape,
            strides: [
                elements(view.batch_stride),
                elements(view.row_stride),
                elements(view.head_stride),
                1,
            ],
        };
        let part = problem
            .out(layout)
            .out_dtype(OutDType::F32)
            .sink(false)
            .lse(true)
            .plan(device)?;
        let merge = plan::merge(problem, whole.params_template(), parts, device)?;
        Ok(Self { whole, part, merge })
    }

    /// The problem.
    pub fn problem(&self) -> &ServingProblem {
        self.whole.problem()
    }

    /// Whether there is nothing to compute, on any rank.
    pub fn is_empty(&self) -> bool {
        self.part.is_empty()
    }

    /// Bytes from one part's outputs, and from one part's log-sum-exps, to the next one's.
    pub fn part_bytes(&self) -> [usize; 2] {
        let partial = &self.whole.params_template().partial;
        [partial.out_stride, partial.lse_stride].map(|bytes| bytes as usize)
    }

    /// Bytes of scratch memory of this rank's part, aligned to 256.
    pub fn workspace_bytes(&self) -> usize {
        self.part.workspace_bytes()
    }

    /// The kernels of a launch.
    pub fn kernels(&self) -> impl Iterator<Item = &'static Entry> {
        self.part
            .kernels()
            .chain(std::iter::once(&self.merge.variant.entry))
    }

    /// Refuses addresses from which tensors cannot start.
    pub fn check(&self, pointers: &ServingPointers) -> Result<()> {
        check_wanted("lse", self.problem().lse, pointers.lse.is_some())?;
        self.whole.params(pointers).map(drop)
    }

    /// Enqueues the kernels that make this rank's part.
    ///
    /// # Safety
    /// As [`ServingPlan::launch`]; `out` and `lse` are memory of [`PartPlan::part_bytes`], and `workspace` of
    /// [`PartPlan::workspace_bytes`].
    pub unsafe fn launch_part(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &ServingPointers,
        [out, lse, workspace]: [u64; 3],
    ) -> Result<()> {
        let pointers = ServingPointers {
            out,
            lse: Some(lse),
            sink: 0,
            workspace,
            ..*pointers
        };
        // SAFETY: the caller vouches for all of it.
        unsafe { self.part.launch(device, stream, &pointers) }
    }

    /// Enqueues the kernel that merges all parts, in their order in memory.
    ///
    /// # Safety
    /// As [`ServingPlan::launch`]; at `parts` and `lse` are as many parts as the plan was made for.
    pub unsafe fn launch_merge(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &ServingPointers,
        [parts, lse]: [u64; 2],
    ) -> Result<()> {
        let mut params = self.merge.params;
        params.parts.out.ptr = parts;
        params.parts.lse.ptr = lse;
        params.out.ptr = pointers.out;
        params.lse.ptr = pointers.lse.unwrap_or(0);
        params.sink.ptr = pointers.sink;
        params.lengths.starts = pointers.q_starts;
        params.lengths.used = pointers.q_used;
        let MergeKernel {
            variant, config, ..
        } = &self.merge;
        // SAFETY: the caller vouches for the addresses and the stream; the parameters are those of the variant's entry point, and the
        // plan's geometry keeps the kernel within the tensors.
        unsafe { device.launch(variant, config, params.as_bytes(), stream) }
    }
}
