//! Optional tensors: where sequences are, what is added to scores, what hides keys.

use std::io::{Read, Seek};

use flashtile::{
    DType, TensorLayout,
    serving::{
        BiasType, CacheLayout, CacheScales, MaskType, PageTable, PairLayout, SequenceLengths,
        ServingInputs, ServingProblem,
    },
};
use safetensors::{Dtype, tensor::Metadata};

use super::{Source, Span};
use crate::failure::{Failure, Result};

/// What an optional tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// I32, or U32 of the same bits.
    Int,
    /// F32.
    Float,
    /// BOOL.
    Bool,
    /// F32, or the dtype of q.
    Bias,
}

/// One of them.
struct Known {
    name: &'static str,
    kind: Kind,
    dims: &'static str,
    ranks: &'static [usize],
}

const fn known(
    name: &'static str,
    kind: Kind,
    dims: &'static str,
    ranks: &'static [usize],
) -> Known {
    Known {
        name,
        kind,
        dims,
        ranks,
    }
}

/// All of them, in the order of [`Extra`]'s numbers.
const KNOWN: [Known; 9] = [
    known("cu_seqlens_q", Kind::Int, "[batch + 1]", &[1]),
    known("cu_seqlens_k", Kind::Int, "[batch + 1]", &[1]),
    known("seqlens_k", Kind::Int, "[batch]", &[1]),
    known("block_table", Kind::Int, "[batch, max_blocks]", &[2]),
    known("prefix_ranges", Kind::Int, "[batch, ranges, 2]", &[3]),
    known(
        "alibi",
        Kind::Float,
        "[heads_q] or [batch, heads_q]",
        &[1, 2],
    ),
    known("sink", Kind::Float, "[heads_q]", &[1]),
    known(
        "bias",
        Kind::Bias,
        "that broadcasts to [batch, heads_q, seqlen_q, seqlen_k]",
        &[4],
    ),
    known(
        "mask",
        Kind::Bool,
        "that broadcasts to [batch, heads_q, seqlen_q, seqlen_k]",
        &[4],
    ),
];

/// Numbers in [`KNOWN`].
#[derive(Clone, Copy, Debug)]
enum Extra {
    CuSeqlensQ,
    CuSeqlensK,
    SeqlensK,
    BlockTable,
    PrefixRanges,
    Alibi,
    Sink,
    Bias,
    Mask,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
struct Found {
    data: Span,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// The optional tensors that a file has.
#[derive(Clone, Debug, Default)]
pub(super) struct Extras {
    found: [Option<Found>; KNOWN.len()],
}

impl Extras {
    /// Those of a header.
    pub(super) fn find(metadata: &Metadata, data_begin: u64) -> Result<Self> {
        let mut extras = Self::default();
        for (known, found) in KNOWN.iter().zip(&mut extras.found) {
            let Some(info) = metadata.info(known.name) else {
                continue;
            };
            let (fits, expected) = match known.kind {
                Kind::Int => (matches!(info.dtype, Dtype::I32 | Dtype::U32), "I32 or U32"),
                Kind::Float => (info.dtype == Dtype::F32, "F32"),
                Kind::Bool => (info.dtype == Dtype::BOOL, "BOOL"),
                Kind::Bias => (
                    matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
                    "F32, or the dtype of q",
                ),
            };
            if !fits {
                return Err(Failure::bad(
                    known.name,
                    expected,
                    format!("{:?}", info.dtype),
                ));
            }
            if !known.ranks.contains(&info.shape.len()) {
                return Err(Failure::bad(
                    known.name,
                    format!("a tensor {}", known.dims),
                    format!("shape {:?}", info.shape),
                ));
            }
            *found = Some(Found {
                data: Span::new(known.name, info, data_begin),
                shape: info.shape.clone(),
                dtype: info.dtype,
            });
        }
        Ok(extras)
    }

    fn get(&self, extra: Extra) -> Option<&Found> {
        self.found[extra as usize].as_ref()
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        self.found.iter().any(Option::is_some)
    }

    /// The dimensions that q, k and v must have.
    pub(super) fn dims(&self) -> [&'static str; 3] {
        let has = |extra| self.get(extra).is_some();
        let q = match has(Extra::CuSeqlensQ) {
            true => "[total_q, heads_q, head_dim_qk]",
            false => "[batch, seqlen_q, heads_q, head_dim_qk]",
        };
        let [k, v] = match (has(Extra::BlockTable), has(Extra::CuSeqlensK)) {
            (true, _) => [
                "[blocks, page, heads_kv, head_dim_qk]",
                "[blocks, page, heads_kv, head_dim_v]",
            ],
            (false, true) => [
                "[total_k, heads_kv, head_dim_qk]",
                "[total_k, heads_kv, head_dim_v]",
            ],
            (false, false) => [
                "[batch, seqlen_k, heads_kv, head_dim_qk]",
                "[batch, seqlen_k, heads_kv, head_dim_v]",
            ],
        };
        [q, k, v]
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        let found = self.found.iter().flatten();
        found.map(|found| found.data.bytes as u64).sum()
    }
}

/// A file's tensors, for a serving problem.
#[derive(Debug)]
pub struct ServingContents {
    problem: ServingProblem,
    tensors: [Vec<u8>; 3],
    ints: [Vec<i32>; 5],
    floats: [Vec<f32>; 4],
    bias: Vec<u8>,
    mask: Vec<u8>,
}

impl ServingContents {
    /// Unmasked attention over these tensors, not yet checked.
    pub fn problem(&self) -> ServingProblem {
        self.problem
    }

    /// As the library takes them.
    pub fn inputs(&self) -> ServingInputs<'_> {
        let [q, k, v] = &self.tensors;
        let [q_starts, k_starts, k_used, table, ranges] = &self.ints;
        let [alibi, sink, k_scale, v_scale] = &self.floats;
        ServingInputs {
            q,
            k,
            v,
            q_starts,
            k_starts,
            k_used,
            table,
            ranges,
            alibi,
            sink,
            k_scale,
            v_scale,
            bias: &self.bias,
            mask: &self.mask,
            ..ServingInputs::default()
        }
    }
}

impl<R: Read + Seek> Source<R> {
    /// Whether the problem is one of inference engines: optional tensors, or keys and values of another dtype than q.
    pub fn is_serving(&self) -> bool {
        self.extras.any() || self.kv_dtype != self.dtype
    }

    /// Reads all tensors and makes a serving problem of them.
    ///
    /// # Errors
    /// Shapes that do not go together; the file got shorter, can't be read, or a tensor does not fit in memory.
    pub fn read_serving(mut self, latent: Option<usize>) -> Result<ServingContents> {
        let mut read = |found: Option<Span>| match found {
            Some(data) => data.read(&mut self.file),
            None => Ok(Vec::new()),
        };
        let extras = &self.extras;
        let span = |extra| extras.get(extra).map(|found| found.data);
        let mut tensors = [const { Vec::new() }; 3];
        for (content, tensor) in tensors.iter_mut().zip(self.tensors) {
            *content = read(Some(tensor.data))?;
        }
        let mut ints = [const { Vec::new() }; 5];
        let int_tensors = [
            Extra::CuSeqlensQ,
            Extra::CuSeqlensK,
            Extra::SeqlensK,
            Extra::BlockTable,
            Extra::PrefixRanges,
        ];
        for (content, extra) in ints.iter_mut().zip(int_tensors) {
            let bytes = read(span(extra))?;
            let (words, _) = bytes.as_chunks::<4>();
            *content = words.iter().map(|&word| i32::from_le_bytes(word)).collect();
        }
        let [_, k_scale, v_scale] = &self.scales;
        let scales = |scales: &Option<super::ScaleTensor>| scales.as_ref().map(|it| it.data);
        let mut floats = [const { Vec::new() }; 4];
        let float_tensors = [
            span(Extra::Alibi),
            span(Extra::Sink),
            scales(k_scale),
            scales(v_scale),
        ];
        for (content, found) in floats.iter_mut().zip(float_tensors) {
            let bytes = read(found)?;
            let (words, _) = bytes.as_chunks::<4>();
            *content = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        }
        let (bias, mask) = (read(span(Extra::Bias))?, read(span(Extra::Mask))?);
        let problem = self.serving_problem(&ints, latent)?;
        Ok(ServingContents {
            problem,
            tensors,
            ints,
            floats,
            bias,
            mask,
        })
    }

    fn serving_problem(
        &self,
        ints: &[Vec<i32>; 5],
        latent: Option<usize>,
    ) -> Result<ServingProblem> {
        let extras = &self.extras;
        let [q_starts, k_starts, k_used, ..] = ints;
        let [q, k, v] = self.tensors.map(|tensor| tensor.shape);
        let starts_of = |extra| extras.get(extra).map(|found| found.shape[0]);
        // cu_seqlens say how many sequences there are; else q's first dimension does.
        let batch = match starts_of(Extra::CuSeqlensQ) {
            Some(numbers) => at_least_one("cu_seqlens_q", numbers)? - 1,
            None => q[0],
        };
        if let Some(numbers) = starts_of(Extra::CuSeqlensK) {
            expect("cu_seqlens_k", &[batch.saturating_add(1)], &[numbers])?;
        }
        if let Some(found) = extras.get(Extra::SeqlensK) {
            expect("seqlens_k", &[batch], &found.shape)?;
        }
        let cache = |shape| CacheLayout::contiguous(shape);
        let q = TensorLayout::contiguous(q);
        let mut problem = match latent {
            Some(dim) => ServingProblem::latent(self.dtype, batch, q, cache(k), dim),
            None => ServingProblem::new(self.dtype, batch, q, cache(k), cache(v)),
        };
        problem.kv_dtype = self.kv_dtype;
        problem.kv_scales = self.kv_scales(batch, k[2])?;
        let longest = |starts: &[i32]| {
            let lengths = starts
                .windows(2)
                .map(|pair| i64::from(pair[1]) - i64::from(pair[0]));
            lengths.max().unwrap_or(0).max(0) as usize
        };
        if extras.get(Extra::CuSeqlensQ).is_some() {
            problem = problem.q_starts(longest(q_starts));
        }
        if let Some(table) = extras.get(Extra::BlockTable) {
            if table.shape[0] != batch {
                return Err(Failure::bad(
                    "block_table",
                    format!("shape [{batch}, max_blocks]"),
                    format!("shape {:?}", table.shape),
                ));
            }
            problem = problem.pages(PageTable::contiguous(table.shape[1]));
        }
        let used = k_used.iter().copied().max().unwrap_or(0).max(0) as usize;
        let has = |extra| extras.get(extra).is_some();
        problem.k_lengths = match (has(Extra::CuSeqlensK), has(Extra::SeqlensK)) {
            (false, false) => problem.k_lengths,
            (starts, true) => SequenceLengths {
                starts,
                used: true,
                longest: used,
            },
            (starts, false) => SequenceLengths {
                starts,
                used: false,
                longest: longest(k_starts),
            },
        };
        let heads_q = q.shape[2];
        if let Some(alibi) = extras.get(Extra::Alibi) {
            let by_sequence = alibi.shape.len() == 2;
            let wanted = match by_sequence {
                true => vec![batch, heads_q],
                false => vec![heads_q],
            };
            expect("alibi", &wanted, &alibi.shape)?;
            problem = problem.alibi(by_sequence);
        }
        if let Some(sink) = extras.get(Extra::Sink) {
            expect("sink", &[heads_q], &sink.shape)?;
            problem = problem.sink(true);
        }
        let pairs = |found: &Found| match *found.shape.as_slice() {
            [a, b, c, d] => [a, b, c, d],
            // The rank was checked.
            _ => [1; 4],
        };
        if let Some(bias) = extras.get(Extra::Bias) {
            let element = match (bias.dtype, self.dtype) {
                (Dtype::F32, _) => BiasType::F32,
                (Dtype::F16, DType::F16) | (Dtype::BF16, DType::Bf16) => BiasType::Same,
                (found, dtype) => {
                    return Err(Failure::bad(
                        "bias",
                        format!("F32 or {}, the dtype of q", dtype.as_str()),
                        format!("{found:?}"),
                    ));
                }
            };
            problem = problem.bias(PairLayout::bias(element, pairs(bias)));
        }
        if let Some(mask) = extras.get(Extra::Mask) {
            problem = problem.mask(PairLayout::mask(MaskType::Byte, pairs(mask)));
        }
        if let Some(ranges) = extras.get(Extra::PrefixRanges) {
            let count = ranges.shape[1];
            expect("prefix_ranges", &[batch, count, 2], &ranges.shape)?;
            problem = problem.ranges(count);
        }
        Ok(problem)
    }

    /// How many scales k and v have.
    fn kv_scales(&self, batch: usize, heads_kv: usize) -> Result<CacheScales> {
        let [q_scale, k_scale, v_scale] = &self.scales;
        if let Some(scale) = q_scale {
            return Err(Failure::bad(
                scale.data.name,
                "no scales of q beside the other optional tensors",
                "some",
            ));
        }
        let (Some(k), Some(v)) = (k_scale, v_scale) else {
            return match (k_scale, v_scale) {
                (None, None) => Ok(CacheScales::None),
                (Some(_), _) => Err(Failure::bad("v_scale", "as many scales as k has", "none")),
                (None, _) => Err(Failure::bad("k_scale", "as many scales as v has", "none")),
            };
        };
        expect("v_scale", &k.shape, &v.shape)?;
        match k.shape.as_slice() {
            [] | [1] => Ok(CacheScales::PerTensor),
            [heads] if *heads == heads_kv => Ok(CacheScales::PerHead),
            [sequences, heads] if [*sequences, *heads] == [batch, heads_kv] => {
                Ok(CacheScales::PerSequence)
            }
            other => Err(Failure::bad(
                "k_scale",
                format!("shape [1], [{heads_kv}] or [{batch}, {heads_kv}]"),
                format!("shape {other:?}"),
            )),
        }
    }
}

fn at_least_one(name: &str, numbers: usize) -> Result<usize> {
    match numbers {
        0 => Err(Failure::bad(name, "at least one number, 0", "none")),
        some => Ok(some),
    }
}

fn expect(name: &str, wanted: &[usize], found: &[usize]) -> Result<()> {
    match wanted == found {
        true => Ok(()),
        false => Err(Failure::bad(
            name,
            format!("shape {wanted:?}"),
            format!("shape {found:?}"),
        )),
    }
}
