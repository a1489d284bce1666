//! A kernel's launch on some queries and some keys, and the memory that launches share.

use flashtile_abi::Band;

use super::shards::{Chunk, Sight};
use crate::{
    DType, OutDType, Plan, Pointers, Problem, TensorLayout,
    device::{Device, DeviceInfo, Stream},
    error::{Error, Result},
    problem::Window,
    serving::{MergePlan, MergePointers, MergeProblem},
};

/// What all pieces of a workspace are aligned to, and the workspace itself.
pub(super) const ALIGNMENT: usize = 256;

/// A kernel's launch on a chunk of queries and a chunk of keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    pub plan: Plan,
    /// Bytes from the tensors' first elements to the chunks': q, k, v.
    offsets: [i64; 3],
}

/// Where a piece's results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// A part of the result: f32, with log-sum-exp, contiguous.
    Part,
    /// Some rows of the whole's tensors.
    Whole,
}

impl Piece {
    /// `problem` is the rank's, but for its keys and values: these are contiguous tensors of `key_rows` rows.
    pub fn new(
        problem: &Problem,
        device: &DeviceInfo,
        (q, k, key_rows): (&Chunk, &Chunk, usize),
        sight: Sight,
        destination: Destination,
    ) -> Result<Self> {
        let [batch, _, heads_kv, dim_qk] = problem.k.shape;
        let keys = TensorLayout::contiguous([batch, key_rows, heads_kv, dim_qk]);
        let values = TensorLayout::contiguous([batch, key_rows, heads_kv, problem.v.shape[3]]);
        let element = problem.dtype.bytes();
        let (q_layout, of_q) = rows(&problem.q, q, element);
        let (k_layout, of_k) = rows(&keys, k, element);
        let (v_layout, of_v) = rows(&values, k, element);
        let (mut out, _) = rows(&problem.out, q, 1);
        let mut piece = *problem;
        if destination == Destination::Part {
            out = TensorLayout::contiguous(out.shape);
            piece = piece.out_dtype(OutDType::F32).lse(true);
        }
        let band = match sight {
            Sight::Part(band) => Some(band),
            // Without a mask, there are no keys or no queries.
            Sight::Nothing => problem.is_masked().then_some(Band::full(0)),
            Sight::All => None,
        };
        if band.is_none() {
            (piece.causal, piece.window) = (None, Window::default());
        }
        piece.scale = Some(problem.softmax_scale());
        let mut plan = Problem {
            q: q_layout,
            k: k_layout,
            v: v_layout,
            out,
            ..piece
        }
        .plan(device)?;
        if let Some(band) = band {
            plan = plan.with_band(band);
        }
        if destination == Destination::Whole {
            plan = plan.with_lse_rows(problem.q.shape[1]);
        }
        Ok(Self {
            plan,
            offsets: [of_q, of_k, of_v],
        })
    }

    /// Addresses of a launch over tensors that start at these, with results at those.
    pub fn pointers(&self, [q, k, v]: [u64; 3], out: u64, lse: Option<u64>) -> Pointers {
        let [of_q, of_k, of_v] = self.offsets;
        Pointers {
            q: q.wrapping_add_signed(of_q),
            k: k.wrapping_add_signed(of_k),
            v: v.wrapping_add_signed(of_v),
            out,
            lse,
            ..Pointers::default()
        }
    }
}

/// Some rows of a tensor, and the bytes from its first element to theirs.
pub(super) fn rows(layout: &TensorLayout, chunk: &Chunk, element: u32) -> (TensorLayout, i64) {
    let [batch, _, heads, dim] = layout.shape;
    let rows = TensorLayout {
        shape: [batch, chunk.tokens, heads, dim],
        strides: layout.strides,
    };
    // Rows without elements may begin past the end, where nobody looks.
    let first = (chunk.first as i64).wrapping_mul(layout.strides[1]);
    (rows, first.wrapping_mul(i64::from(element)))
}

/// Parts of the result for a chunk of queries, in a workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Parts {
    merge: MergePlan,
    /// Bytes from the workspace's start to the first part's outputs and log-sum-exps.
    pub out: usize,
    pub lse: usize,
    /// Bytes from one part to the next.
    pub out_stride: usize,
    pub lse_stride: usize,
    pub count: usize,
    /// Bytes from the whole's first element to the chunk's: out, lse.
    of_out: i64,
    of_lse: u64,
}

impl Parts {
    /// Room for so many parts, and how they are merged.
    pub fn new(
        problem: &Problem,
        device: &DeviceInfo,
        q: &Chunk,
        count: usize,
        space: &mut Space,
    ) -> Result<Self> {
        let (out, of_out) = rows(&problem.out, q, problem.out_element().bytes());
        let part = TensorLayout::contiguous(out.shape);
        let [batch, rows, heads, dim] = part.shape;
        let product = |factors: &[usize]| {
            let mut factors = factors.iter();
            factors.try_fold(4usize, |bytes, &n| bytes.checked_mul(n))
        };
        // Kernels write whole rows of 16 bytes at a time where all parts are aligned to that.
        let out_stride =
            product(&[batch, rows, heads, dim]).and_then(|n| n.checked_next_multiple_of(16));
        let lse_stride = product(&[batch, heads, rows]);
        let whole = |stride: Option<usize>| stride.and_then(|bytes| bytes.checked_mul(count));
        let (out_at, lse_at) = (
            space.take(whole(out_stride))?,
            space.take(whole(lse_stride))?,
        );
        let (out_stride, lse_stride) = (out_stride.unwrap_or(0), lse_stride.unwrap_or(0));
        let merge = MergeProblem {
            dtype: DType::F32,
            out_dtype: problem.out_element(),
            count,
            part,
            part_stride: (out_stride / 4) as i64,
            out,
            lse: problem.lse,
            sink: false,
        };
        Ok(Self {
            merge: merge.plan(device)?.with_lse_rows(problem.q.shape[1]),
            out: out_at,
            lse: lse_at,
            out_stride,
            lse_stride,
            count,
            of_out,
            of_lse: 4 * q.first as u64,
        })
    }

    /// The merging kernel.
    pub fn kernel(&self) -> &'static crate::Entry {
        &self.merge.variant().entry
    }

    /// Addresses of a part's results.
    pub fn part(&self, workspace: u64, at: usize) -> (u64, u64) {
        let address = |first: usize, stride: usize| workspace + (first + at * stride) as u64;
        (
            address(self.out, self.out_stride),
            address(self.lse, self.lse_stride),
        )
    }

    /// The merging kernel's addresses.
    fn pointers(&self, pointers: &Pointers) -> MergePointers {
        let (parts, parts_lse) = self.part(pointers.workspace, 0);
        MergePointers {
            parts,
            parts_lse,
            out: pointers.out.wrapping_add_signed(self.of_out),
            lse: pointers.lse.map(|lse| lse.wrapping_add(self.of_lse)),
            sink: 0,
        }
    }

    /// Refuses addresses that the merging kernel cannot have.
    pub fn check(&self, pointers: &Pointers) -> Result<()> {
        self.merge.params(&self.pointers(pointers)).map(drop)
    }

    /// Enqueues the merging kernel.
    ///
    /// # Safety
    /// As [`MergePlan::launch`]: the workspace holds the parts, and out and lse are the whole's.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &Pointers,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses and the stream.
        unsafe { self.merge.launch(device, stream, &self.pointers(pointers)) }
    }
}

/// A workspace that is being shared out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub bytes: usize,
}

impl Space {
    /// So many bytes, aligned; `None` are more than can be counted.
    pub fn take(&mut self, bytes: Option<usize>) -> Result<usize> {
        let at = self.bytes;
        let end = bytes
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT))
            .and_then(|bytes| at.checked_add(bytes))
            .filter(|&end| i64::try_from(end).is_ok());
        self.bytes = end.ok_or_else(|| {
            Error::bad(
                "workspace",
                "bytes that can be counted in 63 bits",
                "more of them",
            )
        })?;
        Ok(at)
    }
}
