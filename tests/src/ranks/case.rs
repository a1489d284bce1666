//! Problems over dense tensors whose tokens are split over ranks.

use flashtile::{
    CausalAlignment, DType, Device, DeviceBuffer, OutDType, Outputs, Pointers, Problem, Result,
    Stream, TensorLayout, Window, element,
    parallel::{Circulation, ContextParallel, Exchange, KeyParallel, Shards, Streams},
    serving::Splits,
};
use flashtile_verify::data::Random;
use proptest::{prelude::*, sample::select};

use crate::serving::{Built, Cache, GAP, Queries, ServingCase, bound, merging_error};

/// How tokens are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// One piece for each rank.
    Contiguous,
    /// Two.
    Zigzag,
    /// Token by token.
    Striped,
}

/// A problem, and who has what of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParallelCase {
    /// The whole problem.
    pub whole: ServingCase,
    /// Ranks.
    pub world: usize,
    /// How queries and keys are split: both striped, or neither.
    pub splits: [Split; 2],
    /// Seed of the pieces' lengths.
    pub cuts: u64,
    /// Queries and outputs are [batch, heads, tokens, head_dim] in memory.
    pub heads_first: bool,
}

/// `total` in pieces of any length.
pub fn cut(total: usize, pieces: usize, random: &mut Random) -> Vec<usize> {
    let mut cuts: Vec<usize> = (1..pieces).map(|_| random.below(total + 1)).collect();
    cuts.extend([0, total]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

impl ParallelCase {
    /// Shards of queries and of keys.
    pub fn shards(&self) -> [Shards; 2] {
        let mut random = Random::new(self.cuts);
        let totals = self.whole.lengths_of(0);
        [0, 1].map(|side| {
            let (total, world) = (totals[side], self.world);
            let shards = match self.splits[side] {
                Split::Contiguous => Shards::contiguous(&cut(total, world, &mut random)),
                Split::Zigzag => Shards::zigzag(&cut(total, 2 * world, &mut random)),
                Split::Striped => Shards::striped(world, total),
            };
            shards.expect("sound shards")
        })
    }

    /// A rank's problem, over so many queries and keys.
    pub fn problem(&self, [queries, keys]: [usize; 2]) -> Problem {
        let case = &self.whole;
        let (batch, [dim_qk, dim_v]) = (case.lengths.len(), case.dims);
        let plain = TensorLayout::contiguous;
        let side = match self.heads_first {
            true => TensorLayout::heads_first,
            false => TensorLayout::contiguous,
        };
        let mut problem = Problem::new(
            case.dtype,
            side([batch, queries, case.heads_q(), dim_qk]),
            plain([batch, keys, case.heads_kv, dim_qk]),
            plain([batch, keys, case.heads_kv, dim_v]),
            side([batch, queries, case.heads_q(), dim_v]),
        )
        .lse(true);
        problem.causal = case.causal;
        problem.window = case.window;
        problem.scale = case.scale;
        problem.softcap = case.softcap;
        if case.wide_out {
            problem.out_dtype = OutDType::F32;
        }
        problem
    }

    /// What a rank plans.
    pub fn context(&self, rank: usize, circulation: Circulation) -> ContextParallel {
        let [queries, keys] = self.shards();
        let problem = self.problem([queries.tokens(rank), keys.tokens(rank)]);
        ContextParallel::new(problem, queries, keys, circulation)
    }

    /// What a rank plans that has all queries.
    pub fn keys(&self, rank: usize) -> KeyParallel {
        let [_, keys] = self.shards();
        let problem = self.problem([self.whole.lengths_of(0)[0], keys.tokens(rank)]);
        KeyParallel::new(problem, keys)
    }

    /// Runs a rank of queries and keys that are split.
    ///
    /// # Errors
    /// The library's.
    pub fn run_context(
        &self,
        built: &Built,
        circulation: Circulation,
        device: &dyn Device,
        exchange: &dyn Exchange,
        streams: Streams,
    ) -> Result<Outputs> {
        self.run_shards(built, self.shards(), circulation, device, exchange, streams)
    }

    /// The same, of other shards.
    ///
    /// # Errors
    /// The library's.
    pub fn run_shards(
        &self,
        built: &Built,
        [queries, keys]: [Shards; 2],
        circulation: Circulation,
        device: &dyn Device,
        exchange: &dyn Exchange,
        streams: Streams,
    ) -> Result<Outputs> {
        let rank = exchange.rank();
        let problem = self.problem([queries.tokens(rank), keys.tokens(rank)]);
        let parallel = ContextParallel::new(problem, queries, keys, circulation);
        let plan = parallel.plan(device.info(), rank)?;
        let shards = [&parallel.queries, &parallel.keys];
        let bytes = plan.workspace_bytes();
        let tensors = Tensors::new(device, &parallel.problem, built, shards, rank, bytes)?;
        // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent, and is only read again after the device is
        // idle; the emulator checks that.
        unsafe { plan.launch(device, exchange, streams, &tensors.pointers())? };
        tensors.outputs(device)
    }

    /// Runs a rank that has all queries.
    ///
    /// # Errors
    /// The library's.
    pub fn run_keys(
        &self,
        built: &Built,
        device: &dyn Device,
        exchange: &dyn Exchange,
    ) -> Result<Outputs> {
        let rank = exchange.rank();
        let parallel = self.keys(rank);
        let plan = parallel.plan(device.info(), rank)?;
        let all = Shards::contiguous(&[parallel.problem.q.shape[1]])?;
        let shards = [&all, &parallel.keys];
        let bytes = plan.workspace_bytes();
        let tensors = Tensors::new(device, &parallel.problem, built, shards, rank, bytes)?;
        // SAFETY: as above.
        unsafe { plan.launch(device, exchange, Stream::DEFAULT, &tensors.pointers())? };
        tensors.outputs(device)
    }

    /// All ranks' results as one, in the whole's layouts.
    pub fn assemble(&self, built: &Built, results: &[Outputs]) -> Outputs {
        let [queries, _] = self.shards();
        let whole = &built.problem;
        let width = whole.out_element().bytes() as usize;
        let [batch, rows, heads, dim] = whole.out.shape;
        let mut out = vec![GAP; batch * rows * heads * dim * width];
        let mut lse = vec![f32::NAN; batch * heads * rows];
        for (rank, result) in results.iter().enumerate() {
            let tokens = queries.tokens(rank);
            let layout = self.problem([tokens, 0]).out;
            for (local, position) in queries.positions(rank).enumerate() {
                for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                    let from = layout.index([b, local, h, 0]) * width;
                    let to = whole.out.index([b, position, h, 0]) * width;
                    out[to..][..dim * width].copy_from_slice(&result.out[from..][..dim * width]);
                    let of_rank = result
                        .lse
                        .as_ref()
                        .map(|lse| lse[(b * heads + h) * tokens + local]);
                    lse[(b * heads + h) * rows + position] = of_rank.unwrap_or(f32::NAN);
                }
            }
        }
        Outputs {
            out,
            lse: Some(lse),
        }
    }

    /// Judges results by the whole's bound, and what merging adds to it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, built: &Built, outputs: &Outputs) -> std::result::Result<(), String> {
        judge(&self.whole, built, outputs, 2 * self.world)
            .map_err(|reason| format!("{self:?}\n  {:?}\n  {reason}", self.shards()))
    }
}

/// Judges results that are merged of so many parts at most.
///
/// # Errors
/// What is wrong.
pub fn judge(
    case: &ServingCase,
    built: &Built,
    outputs: &Outputs,
    parts: usize,
) -> std::result::Result<(), String> {
    let found = flashtile::serving::compare(&built.problem, &built.inputs(), outputs)
        .map_err(|error| error.to_string())?;
    if found.ok {
        return Ok(());
    }
    let bound = bound(case, built);
    let numbers = outputs.lse.iter().flatten().filter(|x| x.is_finite());
    let largest = numbers.fold(0f32, |max, x| max.max(x.abs()));
    let dtype = built.problem.kv_dtype;
    let values = built.tensors[2].chunks_exact(dtype.bytes() as usize);
    let values = values.map(|bytes| element::read(dtype, bytes, 0).abs());
    // Beyond sequences' keys there is what is no number.
    let values = values.filter(|x| x.is_finite()).fold(0.0, f32::max);
    let merged = merging_error(f64::from(largest), parts);
    let more = 2.0 * merged * f64::from(values);
    let lse = found.lse_max_abs_error.unwrap_or(0.0);
    if found.max_abs_error <= bound.max_abs + more
        && found.rms_error <= bound.rms + more
        && lse <= bound.lse_max_abs + merged
        // Not for a row without keys that is not 0.
        && (found.max_abs_error > found.bound.max_abs
            || found.rms_error > found.bound.rms
            || lse > found.bound.lse_max_abs)
    {
        return Ok(());
    }
    Err(format!(
        "out: error {:.3e} (bound {:.3e} + {more:.3e}), rms {:.3e} (bound {:.3e}); lse: error {lse:.3e} (bound {:.3e} + {merged:.3e})",
        found.max_abs_error, bound.max_abs, found.rms_error, bound.rms, bound.lse_max_abs,
    ))
}

/// A rank's buffers, each as long as its tensor.
struct Tensors<'d> {
    q: DeviceBuffer<'d>,
    k: DeviceBuffer<'d>,
    v: DeviceBuffer<'d>,
    out: DeviceBuffer<'d>,
    lse: DeviceBuffer<'d>,
    workspace: DeviceBuffer<'d>,
}

impl<'d> Tensors<'d> {
    /// A rank's tokens of the whole's tensors. Who alone has all of them has them on every rank.
    fn new(
        device: &'d dyn Device,
        problem: &Problem,
        built: &Built,
        [queries, keys]: [&Shards; 2],
        rank: usize,
        workspace: usize,
    ) -> Result<Self> {
        let width = problem.dtype.bytes() as usize;
        let input = |which: usize, layout: &TensorLayout, shards: &Shards| {
            let [batch, _, heads, dim] = layout.shape;
            let source = TensorLayout::contiguous([batch, shards.total(), heads, dim]);
            let rank = if shards.world() == 1 { 0 } else { rank };
            let mut bytes = vec![GAP; layout.span().unwrap_or(0) * width];
            for (local, position) in shards.positions(rank).enumerate() {
                for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                    let from = source.index([b, position, h, 0]) * width;
                    let to = layout.index([b, local, h, 0]) * width;
                    let row = &built.tensors[which][from..][..dim * width];
                    bytes[to..][..dim * width].copy_from_slice(row);
                }
            }
            DeviceBuffer::from_bytes(device, &bytes)
        };
        let gap = |bytes: usize| DeviceBuffer::from_bytes(device, &vec![GAP; bytes]);
        let out = problem.out.span().unwrap_or(0) * problem.out_element().bytes() as usize;
        Ok(Self {
            q: input(0, &problem.q, queries)?,
            k: input(1, &problem.k, keys)?,
            v: input(2, &problem.v, keys)?,
            out: gap(out)?,
            lse: gap(4 * problem.lse_shape().iter().product::<usize>())?,
            workspace: DeviceBuffer::uninitialized(device, workspace)?,
        })
    }

    fn pointers(&self) -> Pointers {
        Pointers {
            q: self.q.address(),
            k: self.k.address(),
            v: self.v.address(),
            out: self.out.address(),
            lse: Some(self.lse.address()),
            workspace: self.workspace.address(),
            ..Pointers::default()
        }
    }

    fn outputs(&self, device: &dyn Device) -> Result<Outputs> {
        device.synchronize()?;
        let lse = self.lse.to_vec()?;
        let (words, _) = lse.as_chunks::<4>();
        Ok(Outputs {
            out: self.out.to_vec()?,
            lse: Some(words.iter().map(|&word| f32::from_le_bytes(word)).collect()),
        })
    }
}

/// Cases of up to so many ranks.
pub fn parallel_case(most_ranks: usize) -> impl Strategy<Value = ParallelCase> {
    let dims = prop_oneof![
        4 => select(vec![[32, 32], [64, 64], [64, 32]]),
        1 => [1..=32usize, 1..=64usize],
    ];
    let shapes = (
        select(vec![DType::F16, DType::Bf16, DType::F32]),
        1..=2usize,
        1..=2usize,
        1..=3usize,
        dims,
        [0..=40usize, 0..=70usize],
    );
    let causal = select(vec![
        None,
        Some(CausalAlignment::BottomRight),
        Some(CausalAlignment::BottomRight),
        Some(CausalAlignment::TopLeft),
    ]);
    let reach = || prop_oneof![2 => Just(None), 1 => (0..=50u32).prop_map(Some)];
    let softcap = prop_oneof![4 => Just(None), 1 => Just(Some(2.0f32))];
    let scores = (causal, reach(), reach(), softcap, any::<bool>());
    let split = || select(vec![Split::Contiguous, Split::Zigzag]);
    let splits = prop_oneof![
        3 => [split(), split()],
        2 => Just([Split::Zigzag; 2]),
        2 => Just([Split::Striped; 2]),
    ];
    let sharing = (1..=most_ranks, splits, any::<u64>(), any::<bool>());
    (shapes, scores, sharing, any::<u64>()).prop_map(
        |(
            (dtype, batch, heads_kv, q_per_kv, dims, lengths),
            (causal, left, right, softcap, wide_out),
            (world, splits, cuts, heads_first),
            seed,
        )| ParallelCase {
            whole: ServingCase {
                dims,
                heads_kv,
                q_per_kv,
                queries: Queries::Dense,
                cache: Cache::Dense,
                causal,
                window: Window { left, right },
                softcap,
                wide_out,
                splits: Splits::One,
                seed,
                ..ServingCase::new(dtype, &vec![lengths; batch], dims[0])
            },
            world,
            splits,
            cuts,
            heads_first,
        },
    )
}
