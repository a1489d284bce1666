//! Problems of inference engines whose keys are split over ranks.

use flashtile::{
    CausalAlignment, DType, Device, DeviceBuffer, Outputs, Result, Stream,
    parallel::{Exchange, ServingKeyParallel},
    serving::{
        BiasType, CacheLayout, CacheScales, PageTable, ServingPointers, ServingProblem, Splits,
    },
};
use flashtile_verify::data::Random;
use proptest::{prelude::*, sample::select};

use super::case::{cut, judge};
use crate::serving::{Bias, Built, Cache, GAP, Queries, ServingCase};

/// A problem, and where its keys are.
#[derive(Clone, Debug, PartialEq)]
pub struct KeysCase {
    /// The whole problem: keys contiguous, `used` of each sequence.
    pub whole: ServingCase,
    /// Ranks.
    pub world: usize,
    /// Rows of a page on the ranks, if they have pages.
    pub page: Option<usize>,
    /// Seed of the pieces' lengths.
    pub cuts: u64,
}

/// A rank's keys.
struct Local {
    problem: ServingProblem,
    k: Vec<u8>,
    v: Vec<u8>,
    used: Vec<i32>,
    table: Vec<i32>,
    /// Keys before the rank's, of the first sequence.
    before: usize,
}

impl KeysCase {
    /// Keys that a rank has of each sequence: the first, and how many.
    fn pieces(&self, rank: usize) -> Vec<[usize; 2]> {
        let mut random = Random::new(self.cuts);
        let sequences = (0..self.whole.lengths.len()).map(|b| {
            let pieces = cut(self.whole.lengths_of(b)[1], self.world, &mut random);
            [pieces[..rank].iter().sum(), pieces[rank]]
        });
        sequences.collect()
    }

    fn local(&self, built: &Built, rank: usize) -> Local {
        let pieces = self.pieces(rank);
        let whole = &built.problem;
        let longest = pieces.iter().map(|piece| piece[1]).max().unwrap_or(0);
        let [_, _, heads, dim_qk] = whole.k.shape;
        let dim_v = whole.v.shape[3];
        let width = whole.kv_dtype.bytes() as usize;
        let batch = pieces.len();
        let mut random = Random::new(!self.cuts);
        let (blocks, page, entries) = match self.page {
            Some(page) => (batch * longest.div_ceil(page), page, longest.div_ceil(page)),
            None => (batch, longest, 1),
        };
        let order = random.permutation(blocks);
        let mut problem = *whole;
        problem.k = CacheLayout::contiguous([blocks, page, heads, dim_qk]);
        problem.v = CacheLayout::contiguous([blocks, page, heads, dim_v]);
        problem.k_lengths.longest = longest;
        let [mut k, mut v] =
            [dim_qk, dim_v].map(|dim| vec![GAP; blocks * page * heads * dim * width]);
        let mut table = Vec::new();
        for (b, [first, count]) in pieces.iter().enumerate() {
            for j in 0..*count {
                let block = match self.page {
                    Some(page) => order[b * entries + j / page],
                    None => b,
                };
                for (bytes, source, layout, from) in [
                    (&mut k, &built.tensors[1], &problem.k, &whole.k),
                    (&mut v, &built.tensors[2], &problem.v, &whole.v),
                ] {
                    let row = heads * layout.shape[3] * width;
                    let to = layout.index([block, j % page, 0, 0]) * width;
                    let from = from.index([b, first + j, 0, 0]) * width;
                    bytes[to..][..row].copy_from_slice(&source[from..][..row]);
                }
            }
            table.extend((0..entries).map(|at| match at * page < *count {
                true => order.get(b * entries + at).map_or(0, |&block| block as i32),
                false => -1,
            }));
        }
        match self.page {
            Some(_) => problem.pages = Some(PageTable::contiguous(entries)),
            None => table.clear(),
        }
        if let Some(bias) = &mut problem.bias
            && bias.shape[3] > 1
        {
            bias.shape[3] = longest;
        }
        Local {
            problem,
            k,
            v,
            used: pieces.iter().map(|piece| piece[1] as i32).collect(),
            table,
            before: pieces.first().map_or(0, |piece| piece[0]),
        }
    }

    /// Runs a rank.
    ///
    /// # Errors
    /// The library's.
    pub fn run(
        &self,
        built: &Built,
        device: &dyn Device,
        exchange: &dyn Exchange,
    ) -> Result<Outputs> {
        let rank = exchange.rank();
        let local = self.local(built, rank);
        let parallel = ServingKeyParallel::new(local.problem, self.world);
        let plan = parallel.plan(device.info(), rank)?;
        let bytes = |bytes: &[u8]| DeviceBuffer::from_bytes(device, bytes);
        let words = |words: &mut dyn Iterator<Item = [u8; 4]>| {
            let all: Vec<u8> = words.flatten().collect();
            DeviceBuffer::from_bytes(device, &all)
        };
        let ints = |numbers: &[i32]| words(&mut numbers.iter().map(|x| x.to_le_bytes()));
        let floats = |numbers: &[f32]| words(&mut numbers.iter().map(|x| x.to_le_bytes()));
        let problem = &built.problem;
        let q = bytes(&built.tensors[0])?;
        let (k, v) = (bytes(&local.k)?, bytes(&local.v)?);
        let bias = bytes(&built.tensors[3])?;
        let [q_starts, q_used] = [0, 1].map(|at| ints(&built.numbers[at]));
        let (q_starts, q_used, k_used) = (q_starts?, q_used?, ints(&local.used)?);
        let table = ints(&local.table)?;
        let [sink, k_scale, v_scale] = [1, 2, 3].map(|at| floats(&built.floats[at]));
        let (sink, k_scale, v_scale) = (sink?, k_scale?, v_scale?);
        let width = problem.out_element().bytes() as usize;
        let out = bytes(&vec![GAP; problem.out.span().unwrap_or(0) * width])?;
        let lse = bytes(&vec![
            GAP;
            4 * problem.lse_shape().iter().product::<usize>()
        ])?;
        let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
        let of_bias = match &problem.bias {
            Some(bias) if bias.shape[3] > 1 => 4 * local.before as u64,
            _ => 0,
        };
        let pointers = ServingPointers {
            q: q.address(),
            k: k.address(),
            v: v.address(),
            out: out.address(),
            lse: Some(lse.address()),
            q_starts: q_starts.address(),
            q_used: q_used.address(),
            k_used: k_used.address(),
            table: table.address(),
            sink: sink.address(),
            k_scale: k_scale.address(),
            v_scale: v_scale.address(),
            bias: bias.address() + of_bias,
            workspace: workspace.address(),
            ..ServingPointers::default()
        };
        // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent, and is only read again after the device is
        // idle; the emulator checks that.
        unsafe { plan.launch(device, exchange, Stream::DEFAULT, &pointers)? };
        device.synchronize()?;
        let lse = lse.to_vec()?;
        let (words, _) = lse.as_chunks::<4>();
        Ok(Outputs {
            out: out.to_vec()?,
            lse: Some(words.iter().map(|&word| f32::from_le_bytes(word)).collect()),
        })
    }
}

impl KeysCase {
    /// Judges results by the whole's bound, and what merging adds to it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, built: &Built, outputs: &Outputs) -> std::result::Result<(), String> {
        judge(&self.whole, built, outputs, self.world)
            .map_err(|reason| format!("{self:?}\n  {reason}"))
    }
}

/// Cases of up to so many ranks.
pub fn keys_case(most_ranks: usize) -> impl Strategy<Value = KeysCase> {
    let lengths = |queries: usize| prop::collection::vec([0..=queries, 0..=150usize], 1..=3);
    let shapes = (
        select(vec![DType::F16, DType::Bf16]),
        1..=2usize,
        select(vec![1, 4]),
        select(vec![[64, 64], [40, 64], [24, 18], [128, 128]]),
        // One query, a few, and many.
        prop_oneof![3 => lengths(1), 2 => lengths(3), 1 => lengths(30)],
        select(vec![
            Queries::Dense,
            Queries::DenseUsed,
            Queries::Packed,
            Queries::PackedUsed,
        ]),
    );
    let kv_scales = prop_oneof![3 => Just(None), 1 => Just(Some(CacheScales::PerHead))];
    let splits = select(vec![Splits::Auto, Splits::One, Splits::Keys(64)]);
    let scores = (
        kv_scales,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        splits,
    );
    let sharing = (
        1..=most_ranks,
        prop_oneof![1 => Just(None), 2 => (1..=20usize).prop_map(Some)],
        any::<u64>(),
    );
    (shapes, scores, sharing, any::<u64>()).prop_map(
        |(
            (dtype, heads_kv, q_per_kv, dims, lengths, queries),
            (kv_scales, sink, wide_out, biased, splits),
            (world, page, cuts),
            seed,
        )| {
            let case = ServingCase {
                kv_scales,
                wide_out,
                heads_kv,
                q_per_kv,
                dims,
                queries,
                cache: Cache::DenseUsed,
                sink,
                splits,
                seed,
                ..ServingCase::new(dtype, &lengths, dims[0])
            };
            let one_query = case.longest()[0] <= 1;
            KeysCase {
                whole: ServingCase {
                    causal: one_query.then_some(CausalAlignment::BottomRight),
                    // A rank's keys of the only sequence are some columns of its bias.
                    bias: (biased && lengths.len() == 1).then_some(Bias {
                        element: BiasType::F32,
                        whole: [false, true, true, true],
                    }),
                    ..case
                },
                world,
                page,
                cuts,
            }
        },
    )
}
