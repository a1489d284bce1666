//! Plans of caches.

use flashtile_abi::cache::CachePair;

use super::{Binder, DeviceSlice, ElementType, FLOATS, INTS, LaunchSlices, Queue};
use crate::{
    cache::{AppendPlan, CopyPlan, GatherPlan, IndexType, RotaryPointers, RowsPointers, TableType},
    error::{Error, Result},
};

const SLOTS: &[ElementType] = &[ElementType::I64];

impl IndexType {
    fn elements(self) -> &'static [ElementType] {
        match self {
            Self::I32 => INTS,
            Self::I64 => SLOTS,
        }
    }
}

/// What appending and gathering have alike, of slices in which either rows or caches are read, and the others written.
macro_rules! rows {
    ($at:ident, $has:ident, $element:ident, $cached:ident, $slices:ident) => {
        RowsPointers {
            k: $at.bind("k", Some($has.k), $element, Some(&mut $slices.k))?,
            v: $at.bind("v", $has.v, $element, $slices.v.as_mut())?,
            k_cache: $at.bind(
                "k_cache",
                Some($has.k_cache),
                $cached,
                Some(&mut $slices.k_cache),
            )?,
            v_cache: $at.bind("v_cache", $has.v_cache, $cached, $slices.v_cache.as_mut())?,
            k_scale: $at.bind("k_scale", $has.k_scale, FLOATS, $slices.k_scale.as_mut())?,
            v_scale: $at.bind("v_scale", $has.v_scale, FLOATS, $slices.v_scale.as_mut())?,
            slots: $at.bind("slots", $has.slots, SLOTS, $slices.slots.as_mut())?,
            starts: $at.bind("starts", $has.starts, INTS, $slices.starts.as_mut())?,
            used: $at.bind("used", $has.used, INTS, $slices.used.as_mut())?,
            first: $at.bind("first", $has.first, INTS, $slices.first.as_mut())?,
            table: $at.bind("block_table", $has.table, INTS, $slices.table.as_mut())?,
        }
    };
}

/// Slices for an [`AppendPlan`], in the roles of its [`RowsPointers`] and [`RotaryPointers`].
#[derive(Clone, Copy, Debug)]
pub struct AppendSlices<I, O> {
    /// New keys.
    pub k: I,
    /// New values.
    pub v: Option<I>,
    /// Cache of keys.
    pub k_cache: O,
    /// Cache of values.
    pub v_cache: Option<O>,
    /// Scales of the keys' cache: f32.
    pub k_scale: Option<I>,
    /// Scales of the values' cache: f32.
    pub v_scale: Option<I>,
    /// Slots: i64.
    pub slots: Option<I>,
    /// Where sequences start: i32 or u32.
    pub starts: Option<I>,
    /// How many tokens of each sequence count: i32 or u32.
    pub used: Option<I>,
    /// What the cache holds of each sequence: i32 or u32.
    pub first: Option<I>,
    /// The table of pages: i32 or u32.
    pub table: Option<I>,
    /// Cosines.
    pub cos: Option<I>,
    /// Sines.
    pub sin: Option<I>,
    /// Positions, of the problem's type.
    pub positions: Option<I>,
    /// Queries. None if they are turned where they are: in `q_out`.
    pub q: Option<I>,
    /// Where turned queries go.
    pub q_out: Option<O>,
}

impl<I, O> AppendSlices<I, O> {
    /// Keys into their cache, without what not all problems have. Each is whatever the door makes a slice of.
    pub fn new(k: impl Into<I>, k_cache: impl Into<O>) -> Self {
        Self {
            k: k.into(),
            v: None,
            k_cache: k_cache.into(),
            v_cache: None,
            k_scale: None,
            v_scale: None,
            slots: None,
            starts: None,
            used: None,
            first: None,
            table: None,
            cos: None,
            sin: None,
            positions: None,
            q: None,
            q_out: None,
        }
    }
}

impl LaunchSlices for AppendPlan {
    type Slices<I, O> = AppendSlices<I, O>;

    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        mut slices: AppendSlices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>,
    {
        stream.check(device)?;
        let problem = self.problem();
        let [element, cached] = [problem.dtype, problem.kv_dtype].map(ElementType::of);
        let (has, turns) = (problem.extents(), problem.rotary_extents());
        let rotary = problem.rotary.as_ref();
        let angles = match rotary.map(|it| it.table.element) {
            Some(TableType::F32) => FLOATS,
            _ => element,
        };
        let index = rotary.and_then(|it| it.positions);
        let index = index.map_or(INTS, IndexType::elements);
        let s = &mut slices;
        let mut at = Binder::new(stream);
        let rows = rows!(at, has, element, cached, s);
        let q_out = at.bind("q_out", turns.q_out, element, s.q_out.as_mut())?;
        let q = match (&mut s.q, turns.q) {
            (None, Some(_)) => q_out,
            (q, extent) => at.bind("q", extent, element, q.as_mut())?,
        };
        let rotary = RotaryPointers {
            cos: at.bind("cos", turns.table, angles, s.cos.as_mut())?,
            sin: at.bind("sin", turns.table, angles, s.sin.as_mut())?,
            positions: at.bind("positions", turns.positions, index, s.positions.as_mut())?,
            q,
            q_out,
        };
        // Longer queries in place would reach past the output's slice: their layout is the output's, or `launch` refuses.
        stream.enqueue(device, &mut |device, stream| {
            // SAFETY: the slices hold the tensors, as `bind` checked; the rest is the caller's.
            unsafe { self.launch(device, stream, &rows, &rotary) }
        })
    }
}

/// Slices for a [`GatherPlan`], in the roles of its [`RowsPointers`].
#[derive(Clone, Copy, Debug)]
pub struct GatherSlices<I, O> {
    /// Where keys go.
    pub k: O,
    /// Where values go.
    pub v: Option<O>,
    /// Cache of keys.
    pub k_cache: I,
    /// Cache of values.
    pub v_cache: Option<I>,
    /// Scales of the keys' cache: f32.
    pub k_scale: Option<I>,
    /// Scales of the values' cache: f32.
    pub v_scale: Option<I>,
    /// Slots: i64.
    pub slots: Option<I>,
    /// Where sequences start: i32 or u32.
    pub starts: Option<I>,
    /// How many tokens of each sequence count: i32 or u32.
    pub used: Option<I>,
    /// The first row of each sequence: i32 or u32.
    pub first: Option<I>,
    /// The table of pages: i32 or u32.
    pub table: Option<I>,
}

impl<I, O> GatherSlices<I, O> {
    /// Keys from their cache, without what not all problems have. Each is whatever the door makes a slice of.
    pub fn new(k: impl Into<O>, k_cache: impl Into<I>) -> Self {
        Self {
            k: k.into(),
            v: None,
            k_cache: k_cache.into(),
            v_cache: None,
            k_scale: None,
            v_scale: None,
            slots: None,
            starts: None,
            used: None,
            first: None,
            table: None,
        }
    }
}

impl LaunchSlices for GatherPlan {
    type Slices<I, O> = GatherSlices<I, O>;

    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        mut slices: GatherSlices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>,
    {
        stream.check(device)?;
        let problem = self.problem();
        let [element, cached] = [problem.dtype, problem.kv_dtype].map(ElementType::of);
        let has = problem.extents();
        let s = &mut slices;
        let mut at = Binder::new(stream);
        let rows = rows!(at, has, element, cached, s);
        stream.enqueue(device, &mut |device, stream| {
            // SAFETY: the slices hold the tensors, as `bind` checked; the rest is the caller's.
            unsafe { self.launch(device, stream, &rows) }
        })
    }
}

/// A cache whose blocks are copied. Of any element type: it is copied as bytes.
#[derive(Clone, Copy, Debug)]
pub enum CopiedCache<I, O> {
    /// Within it.
    Within(O),
    /// From one to another.
    Between {
        /// What is read.
        src: I,
        /// What is written.
        dst: O,
    },
}

/// Slices for a [`CopyPlan`].
#[derive(Clone, Debug)]
pub struct CopySlices<I, O> {
    /// Numbers of blocks [pairs, 2], of the problem's type.
    pub pairs: I,
    /// The caches, of one layout: the model's layers, their keys and their values.
    pub caches: Vec<CopiedCache<I, O>>,
}

impl LaunchSlices for CopyPlan {
    type Slices<I, O> = CopySlices<I, O>;

    unsafe fn launch_slices<Q, I, O>(
        &self,
        device: &Q::Device,
        stream: &Q,
        mut slices: CopySlices<I, O>,
    ) -> Result<()>
    where
        Q: Queue,
        I: DeviceSlice<Q>,
        O: DeviceSlice<Q>,
    {
        stream.check(device)?;
        let problem = self.problem();
        let src_extent = Some(problem.src.extent(problem.block_bytes));
        let dst_extent = Some(problem.dst.extent(problem.block_bytes));
        let mut at = Binder::new(stream);
        let index = problem.index.elements();
        let pairs = at.bind(
            "pairs",
            Some(problem.pairs_extent()),
            index,
            Some(&mut slices.pairs),
        )?;
        let mut caches = Vec::with_capacity(slices.caches.len());
        for cache in &mut slices.caches {
            caches.push(match cache {
                CopiedCache::Within(_) if problem.src != problem.dst => {
                    return Err(Error::bad(
                        "caches",
                        "caches that are read and others that are written, since their layouts differ",
                        "one",
                    ));
                }
                CopiedCache::Within(cache) => {
                    let address = at.bind("caches", dst_extent, &[], Some(cache))?;
                    CachePair {
                        src: address,
                        dst: address,
                    }
                }
                CopiedCache::Between { src, dst } => CachePair {
                    src: at.bind("src", src_extent, &[], Some(src))?,
                    dst: at.bind("dst", dst_extent, &[], Some(dst))?,
                },
            });
        }
        stream.enqueue(device, &mut |device, stream| {
            // SAFETY: the slices hold the blocks, as `bind` checked; the rest is the caller's.
            unsafe { self.launch(device, stream, pairs, &caches) }
        })
    }
}
