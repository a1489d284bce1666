//! Plans of attention and of merging.

use super::{Binder, DeviceSlice, ElementType, FLOATS, INTS, LaunchSlices, Queue};
use crate::{
    error::Result,
    extent::Extent,
    plan::{Plan, Pointers},
    serving::{BiasType, MaskType, MergePlan, MergePointers, ServingPlan, ServingPointers},
};

/// Slices for a [`Plan`], in the roles of its [`Pointers`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionSlices<I, O> {
    /// Queries.
    pub q: I,
    /// Keys.
    pub k: I,
    /// Values.
    pub v: I,
    /// Scales of q; of e4m3 problems only.
    pub q_scale: Option<I>,
    /// Scales of k.
    pub k_scale: Option<I>,
    /// Scales of v.
    pub v_scale: Option<I>,
    /// Output.
    pub out: O,
    /// Log-sum-exp, if the problem wants it.
    pub lse: Option<O>,
    /// At least [`Plan::workspace_bytes`], aligned to 256, of any type; none if that is 0.
    pub workspace: Option<O>,
}

impl<I, O> AttentionSlices<I, O> {
    /// Without what not all problems have. Each is whatever the door makes a slice of.
    pub fn new(q: impl Into<I>, k: impl Into<I>, v: impl Into<I>, out: impl Into<O>) -> Self {
        Self {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            q_scale: None,
            k_scale: None,
            v_scale: None,
            out: out.into(),
            lse: None,
            workspace: None,
        }
    }
}

impl LaunchSlices for Plan {
    type Slices<I, O> = AttentionSlices<I, O>;

    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        mut slices: AttentionSlices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>,
    {
        stream.check(device)?;
        let problem = self.problem();
        let element = ElementType::of(problem.dtype);
        let out = problem.out_element();
        let tensor = |layout| Some(Extent::tensor(layout, problem.dtype.bytes()));
        let scales = problem.scaled().map(|scaled| {
            let count = scaled.layout.count(scaled.tensor).unwrap_or(usize::MAX);
            (count > 0).then(|| Extent::numbers(count, 4))
        });
        let lse = problem.lse_shape().iter().product();
        let lse = problem.lse.then(|| Extent::numbers(lse, 4));
        let mut at = Binder::new(stream);
        let out_extent = Some(Extent::tensor(&problem.out, out.bytes()));
        let [q_scale, k_scale, v_scale] = scales;
        let lse_address = at.bind("lse", lse, FLOATS, slices.lse.as_mut())?;
        let pointers = Pointers {
            q: at.bind("q", tensor(&problem.q), element, Some(&mut slices.q))?,
            k: at.bind("k", tensor(&problem.k), element, Some(&mut slices.k))?,
            v: at.bind("v", tensor(&problem.v), element, Some(&mut slices.v))?,
            q_scale: at.bind("q_scale", q_scale, FLOATS, slices.q_scale.as_mut())?,
            k_scale: at.bind("k_scale", k_scale, FLOATS, slices.k_scale.as_mut())?,
            v_scale: at.bind("v_scale", v_scale, FLOATS, slices.v_scale.as_mut())?,
            out: at.bind(
                "out",
                out_extent,
                ElementType::of(out),
                Some(&mut slices.out),
            )?,
            lse: lse.map(|_| lse_address),
            workspace: at.workspace(self.workspace_bytes(), slices.workspace.as_mut())?,
        };
        stream.enqueue(device, &mut |device, stream| {
            // SAFETY: the slices hold the tensors, as `bind` checked; the rest is the caller's.
            unsafe { self.launch(device, stream, &pointers) }
        })
    }
}

/// Slices for a [`ServingPlan`], in the roles of its [`ServingPointers`].
#[derive(Clone, Copy, Debug)]
pub struct ServingSlices<I, O> {
    /// Queries.
    pub q: I,
    /// Keys.
    pub k: I,
    /// Values; none where they are elements of keys.
    pub v: Option<I>,
    /// Where sequences of queries start: i32 or u32.
    pub q_starts: Option<I>,
    /// How many queries of each sequence count: i32 or u32.
    pub q_used: Option<I>,
    /// Where sequences of keys start: i32 or u32.
    pub k_starts: Option<I>,
    /// How many keys of each sequence count: i32 or u32.
    pub k_used: Option<I>,
    /// The table of pages: i32 or u32.
    pub table: Option<I>,
    /// Scales of k: f32.
    pub k_scale: Option<I>,
    /// Scales of v: f32.
    pub v_scale: Option<I>,
    /// Slopes of ALiBi: f32.
    pub alibi: Option<I>,
    /// Sinks: f32.
    pub sink: Option<I>,
    /// What is added to the scores.
    pub bias: Option<I>,
    /// Which keys may be seen: u8, or words of bits, u32 or i32.
    pub mask: Option<I>,
    /// Ranges: i32.
    pub ranges: Option<I>,
    /// Output.
    pub out: O,
    /// Log-sum-exp, if the problem wants it: f32.
    pub lse: Option<O>,
    /// At least [`ServingPlan::workspace_bytes`], aligned to 256, of any type; none if that is 0.
    pub workspace: Option<O>,
}

impl<I, O> ServingSlices<I, O> {
    /// Without what not all problems have. Each is whatever the door makes a slice of.
    pub fn new(q: impl Into<I>, k: impl Into<I>, v: impl Into<I>, out: impl Into<O>) -> Self {
        Self {
            v: Some(v.into()),
            ..Self::latent(q, k, out)
        }
    }

    /// The same where values are elements of keys.
    pub fn latent(q: impl Into<I>, k: impl Into<I>, out: impl Into<O>) -> Self {
        Self {
            q: q.into(),
            k: k.into(),
            v: None,
            q_starts: None,
            q_used: None,
            k_starts: None,
            k_used: None,
            table: None,
            k_scale: None,
            v_scale: None,
            alibi: None,
            sink: None,
            bias: None,
            mask: None,
            ranges: None,
            out: out.into(),
            lse: None,
            workspace: None,
        }
    }
}

impl LaunchSlices for ServingPlan {
    type Slices<I, O> = ServingSlices<I, O>;

    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        mut slices: ServingSlices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>,
    {
        stream.check(device)?;
        let problem = self.problem();
        let has = problem.extents();
        let element = ElementType::of(problem.dtype);
        let cached = ElementType::of(problem.kv_dtype);
        let out = ElementType::of(problem.out_element());
        let bias = match problem.bias.map(|bias| bias.element) {
            Some(BiasType::F32) => FLOATS,
            _ => element,
        };
        let mask = match problem.mask.map(|mask| mask.element) {
            Some(MaskType::Bit) => INTS,
            _ => &[ElementType::U8],
        };
        let s = &mut slices;
        let mut at = Binder::new(stream);
        let lse = at.bind("lse", has.lse, FLOATS, s.lse.as_mut())?;
        let pointers = ServingPointers {
            q: at.bind("q", Some(has.q), element, Some(&mut s.q))?,
            k: at.bind("k", Some(has.k), cached, Some(&mut s.k))?,
            v: at.bind("v", has.v, cached, s.v.as_mut())?,
            q_starts: at.bind("q_starts", has.q_starts, INTS, s.q_starts.as_mut())?,
            q_used: at.bind("q_used", has.q_used, INTS, s.q_used.as_mut())?,
            k_starts: at.bind("k_starts", has.k_starts, INTS, s.k_starts.as_mut())?,
            k_used: at.bind("k_used", has.k_used, INTS, s.k_used.as_mut())?,
            table: at.bind("table", has.table, INTS, s.table.as_mut())?,
            k_scale: at.bind("k_scale", has.k_scale, FLOATS, s.k_scale.as_mut())?,
            v_scale: at.bind("v_scale", has.v_scale, FLOATS, s.v_scale.as_mut())?,
            alibi: at.bind("alibi", has.alibi, FLOATS, s.alibi.as_mut())?,
            sink: at.bind("sink", has.sink, FLOATS, s.sink.as_mut())?,
            bias: at.bind("bias", has.bias, bias, s.bias.as_mut())?,
            mask: at.bind("mask", has.mask, mask, s.mask.as_mut())?,
            ranges: at.bind("ranges", has.ranges, &[ElementType::I32], s.ranges.as_mut())?,
            out: at.bind("out", Some(has.out), out, Some(&mut s.out))?,
            lse: has.lse.map(|_| lse),
            workspace: at.workspace(self.workspace_bytes(), s.workspace.as_mut())?,
        };
        stream.enqueue(device, &mut |device, stream| {
            // SAFETY: the slices hold the tensors, as `bind` checked; the rest is the caller's.
            unsafe { self.launch(device, stream, &pointers) }
        })
    }
}

/// Slices for a [`MergePlan`], in the roles of its [`MergePointers`].
#[derive(Clone, Copy, Debug)]
pub struct MergeSlices<I, O> {
    /// The parts' outputs.
    pub parts: I,
    /// Their log-sum-exps: f32.
    pub parts_lse: I,
    /// Sinks: f32.
    pub sink: Option<I>,
    /// Output.
    pub out: O,
    /// Merged log-sum-exp, if the problem wants it: f32.
    pub lse: Option<O>,
}

impl LaunchSlices for MergePlan {
    type Slices<I, O> = MergeSlices<I, O>;

    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        mut slices: MergeSlices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>,
    {
        stream.check(device)?;
        let problem = self.problem();
        let has = problem.extents();
        let parts = ElementType::of(problem.dtype);
        let out = ElementType::of(problem.out_dtype);
        let s = &mut slices;
        let mut at = Binder::new(stream);
        let lse = at.bind("lse", has.lse, FLOATS, s.lse.as_mut())?;
        let pointers = MergePointers {
            parts: at.bind("parts", Some(has.parts), parts, Some(&mut s.parts))?,
            parts_lse: at.bind(
                "parts_lse",
                Some(has.parts_lse),
                FLOATS,
                Some(&mut s.parts_lse),
            )?,
            sink: at.bind("sink", has.sink, FLOATS, s.sink.as_mut())?,
            out: at.bind("out", Some(has.out), out, Some(&mut s.out))?,
            lse: has.lse.map(|_| lse),
        };
        stream.enqueue(device, &mut |device, stream| {
            // SAFETY: the slices hold the tensors, as `bind` checked; the rest is the caller's.
            unsafe { self.launch(device, stream, &pointers) }
        })
    }
}
