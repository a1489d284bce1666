//! A decoding step over a cache in pages, for the tests of front doors.

use flashtile::{
    CausalAlignment, DType, EmulatorDevice, TensorLayout, element,
    serving::{CacheLayout, PageTable, ServingInputs, ServingProblem, Splits, attention},
};

const BATCH: usize = 2;
const HEADS_Q: usize = 4;
const HEADS_KV: usize = 2;
const PAGES: usize = 12;
const ROWS: usize = 16;
const DIM: usize = 32;
const ENTRIES: usize = 10;

/// The numbers of a step, elements as their bits.
pub struct Step {
    pub problem: ServingProblem,
    pub q: Vec<u16>,
    pub k: Vec<u16>,
    pub v: Vec<u16>,
    pub table: Vec<i32>,
}

impl Step {
    pub fn new() -> Self {
        let cache = CacheLayout::contiguous([PAGES, ROWS, HEADS_KV, DIM]);
        let q = TensorLayout::contiguous([BATCH, 1, HEADS_Q, DIM]);
        let numbers = |seed: usize, count: usize| {
            let values =
                (0..count).map(|i| ((i * 7919 + seed * 104_729) % 201) as f32 / 100.0 - 1.0);
            let bytes = element::encode(DType::F16, &values.collect::<Vec<_>>());
            let (pairs, _) = bytes.as_chunks::<2>();
            pairs
                .iter()
                .map(|&pair| u16::from_le_bytes(pair))
                .collect::<Vec<_>>()
        };
        let elements = PAGES * ROWS * HEADS_KV * DIM;
        Self {
            problem: ServingProblem::new(DType::F16, BATCH, q, cache, cache)
                .pages(PageTable::contiguous(ENTRIES))
                .k_used(ENTRIES * ROWS)
                .causal(CausalAlignment::BottomRight)
                .splits(Splits::Keys(64))
                .lse(true),
            q: numbers(1, BATCH * HEADS_Q * DIM),
            k: numbers(2, elements),
            v: numbers(3, elements),
            table: (0..BATCH * ENTRIES)
                .map(|i| (i * 5 % PAGES) as i32)
                .collect(),
        }
    }

    /// Elements of the log-sum-exp.
    pub fn lse_len(&self) -> usize {
        self.problem.lse_shape().iter().product()
    }

    /// Out, as bits, and log-sum-exp on the emulator, without any door.
    pub fn expected(&self, k_used: &[i32; BATCH]) -> (Vec<u16>, Vec<f32>) {
        let bytes = |bits: &[u16]| {
            bits.iter()
                .flat_map(|x| x.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let (q, k, v) = (bytes(&self.q), bytes(&self.k), bytes(&self.v));
        let inputs = ServingInputs {
            q: &q,
            k: &k,
            v: &v,
            k_used,
            table: &self.table,
            ..ServingInputs::default()
        };
        let outputs = attention(&EmulatorDevice::new(), &self.problem, &inputs).unwrap();
        let (pairs, _) = outputs.out.as_chunks::<2>();
        let out = pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
        (out, outputs.lse.unwrap())
    }
}
