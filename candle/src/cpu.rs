//! Tensors on candle's CPU device.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};
use flashtile::{
    Outputs, TensorLayout,
    serving::{PageTable, ServingInputs, ServingProblem, attention_cpu},
};
use half::{bf16, f16};

use crate::{
    attention::{Attention, Lengths},
    error::{bad, from_flashtile},
    operands::{Reading, bytes, floats, ints, scale_numbers},
    problem::Task,
};

/// Computes a task. The outputs are as the task's problem lays them out.
pub(crate) fn run(
    attention: &Attention,
    task: &Task,
    [q, k, v]: [(&CpuStorage, &Layout); 3],
) -> Result<Outputs> {
    let problem = &task.problem;
    let all_floats = |argument, tensor: &Option<Tensor>| match tensor {
        Some(tensor) => floats(argument, tensor),
        None => Ok(Vec::new()),
    };
    let metadata = Metadata::new(attention, problem)?;
    let [k_scale, v_scale] = scale_numbers(attention.scales.as_ref())?;
    let alibi = all_floats("alibi_slopes", &attention.alibi)?;
    let sink = all_floats("sink", &attention.sink)?;
    let bias = attention.bias.as_ref();
    let bias = bias.map(|bias| Reading::new("bias", bias));
    let mask = attention.mask.as_ref();
    let mask = mask.map(|mask| Reading::new("mask", mask));
    let inputs = ServingInputs {
        q: bytes("q", q.0, q.1)?,
        k: bytes("k", k.0, k.1)?,
        v: bytes("v", v.0, v.1)?,
        k_scale: &k_scale,
        v_scale: &v_scale,
        alibi: &alibi,
        sink: &sink,
        bias: bias.as_ref().map_or(Ok(&[][..]), Reading::bytes)?,
        mask: mask.as_ref().map_or(Ok(&[][..]), Reading::bytes)?,
        ..metadata.inputs()
    };
    attention_cpu(problem, &inputs).map_err(from_flashtile)
}

/// The numbers that say where sequences are, in the host's memory.
pub(crate) struct Metadata {
    q_starts: Vec<i32>,
    k_starts: Vec<i32>,
    k_used: Vec<i32>,
    table: Vec<i32>,
    ranges: Vec<i32>,
}

impl Metadata {
    /// Of tensors on the CPU.
    pub fn new(attention: &Attention, problem: &ServingProblem) -> Result<Self> {
        let all_ints = |argument, tensor: Option<&Tensor>| match tensor {
            Some(tensor) => ints(argument, tensor, tensor.elem_count()),
            None => Ok(Vec::new()),
        };
        let lengths = |argument, lengths: &Option<Lengths>| {
            all_ints(argument, lengths.as_ref().map(|l| &l.numbers))
        };
        Ok(Self {
            q_starts: lengths("seqlens_q", &attention.q_starts)?,
            k_starts: lengths("seqlens_k", &attention.k_starts)?,
            k_used: lengths("seqused_k", &attention.k_used)?,
            table: match (&attention.table, problem.pages) {
                (Some(table), Some(pages)) => {
                    ints("block_table", table, entries(&pages, problem.batch)?)?
                }
                _ => Vec::new(),
            },
            ranges: all_ints("mm_prefix_ranges", attention.ranges.as_ref())?,
        })
    }

    /// With nothing else.
    pub fn inputs(&self) -> ServingInputs<'_> {
        ServingInputs {
            q_starts: &self.q_starts,
            k_starts: &self.k_starts,
            k_used: &self.k_used,
            table: &self.table,
            ranges: &self.ranges,
            ..ServingInputs::default()
        }
    }
}

/// Numbers from a table's first to its last.
fn entries(pages: &PageTable, batch: usize) -> Result<usize> {
    pages.span(batch).ok_or_else(|| {
        bad(
            "block_table",
            "a tensor that fits in memory",
            "a larger one",
        )
    })
}

/// A contiguous output as a tensor's memory.
pub(crate) fn storage(dtype: DType, out: &[u8]) -> CpuStorage {
    let (pairs, _) = out.as_chunks::<2>();
    match dtype {
        DType::F16 => CpuStorage::F16(pairs.iter().map(|&b| f16::from_le_bytes(b)).collect()),
        DType::BF16 => CpuStorage::BF16(pairs.iter().map(|&b| bf16::from_le_bytes(b)).collect()),
        _ => {
            let (words, _) = out.as_chunks::<4>();
            CpuStorage::F32(words.iter().map(|&b| f32::from_le_bytes(b)).collect())
        }
    }
}

/// Writes rows without gaps to where a tensor's are, and nowhere else.
pub(crate) fn write_rows(
    to: &mut CpuStorage,
    first: usize,
    layout: &TensorLayout,
    rows: &CpuStorage,
) -> Result<()> {
    match (to, rows) {
        (CpuStorage::F16(to), CpuStorage::F16(rows)) => scatter(to, first, layout, rows),
        (CpuStorage::BF16(to), CpuStorage::BF16(rows)) => scatter(to, first, layout, rows),
        (CpuStorage::F32(to), CpuStorage::F32(rows)) => scatter(to, first, layout, rows),
        _ => return Err(bad("out", "a tensor of q's type", "another")),
    }
    Ok(())
}

fn scatter<T: Copy>(to: &mut [T], first: usize, layout: &TensorLayout, rows: &[T]) {
    let [_, seqlen, heads, dim] = layout.shape;
    for (index, row) in rows.chunks_exact(dim.max(1)).enumerate() {
        let at = [
            index / heads / seqlen,
            index / heads % seqlen,
            index % heads,
            0,
        ];
        to[first + layout.index(at)..][..dim].copy_from_slice(row);
    }
}
