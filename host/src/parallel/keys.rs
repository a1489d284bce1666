//! Keys of long sequences, split over ranks that all have the queries.

use super::{
    agree,
    check::{
        check_dense, check_exchange, check_rank, check_tokens, check_workspace, stripes, whole_band,
    },
    exchange::{DeviceRange, Exchange},
    piece::{Destination, Parts, Piece, Space},
    shards::{Chunk, Shards, sight},
};
use crate::{
    CausalAlignment, Entry, Pointers, Problem,
    device::{Device, DeviceInfo, Stream},
    error::{Error, Result},
    problem::Window,
    serving::{PartPlan, ServingPointers, ServingProblem},
};

/// Attention over dense tensors whose queries all ranks have, while keys are split over them. Each rank computes with its own keys; all
/// gather each other's partial results, and merge them in the order of ranks: all have the same output, bit by bit.
///
/// [`Self::problem`] is that of one rank: `k` and `v` have the rank's tokens, in the order of [`Shards::positions`], and are contiguous.
/// Causal mask and window are those of the whole sequences of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyParallel {
    /// This rank's problem.
    pub problem: Problem,
    /// The ranks' keys.
    pub keys: Shards,
}

/// The same for a problem of inference engines: decoding over a cache that is split over ranks (decode context parallelism).
///
/// [`Self::problem`] is that of one rank: its keys, their lengths, pages, scales, bias and masks are the rank's own; queries, output and
/// sinks are the same on all ranks. A rank may have no keys of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingKeyParallel {
    /// This rank's problem.
    pub problem: ServingProblem,
    /// How many ranks there are.
    pub world: usize,
}

/// What a rank's launches will do, decided once.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyParallelPlan {
    rank: usize,
    parallel: KeyParallel,
    /// One for each chunk of this rank's keys.
    pieces: Vec<Piece>,
    parts: Parts,
    workspace: Space,
}

/// What a rank's launches will do, decided once. Good for every launch of the same problem, whatever the sequences' lengths are then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingKeyParallelPlan {
    rank: usize,
    world: usize,
    part: PartPlan,
    parts: PartsOfRanks,
    /// Bytes from the workspace's start to that of this rank's part.
    scratch: usize,
    workspace: Space,
}

/// Where all ranks' parts are in a workspace: outputs and log-sum-exps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PartsOfRanks {
    /// Bytes from the workspace's start.
    first: [usize; 2],
    /// Bytes of one rank's.
    each: [usize; 2],
}

impl PartsOfRanks {
    /// Gives every rank all parts.
    ///
    /// # Safety
    /// The workspace has room for all parts; this rank's own is there, in its place, when the stream comes to it.
    unsafe fn gather(&self, exchange: &dyn Exchange, workspace: u64, stream: Stream) -> Result<()> {
        exchange.group(&mut || {
            for (first, bytes) in self.first.into_iter().zip(self.each) {
                let receive = |rank: usize| DeviceRange {
                    address: workspace + (first + rank * bytes) as u64,
                    bytes,
                };
                // SAFETY: the caller vouches for the workspace; ranks' parts follow each other.
                unsafe { exchange.all_gather(receive(exchange.rank()), &receive, stream)? };
            }
            Ok(())
        })
    }
}

impl KeyParallel {
    /// A rank's problem, and who has which keys.
    pub fn new(problem: Problem, keys: Shards) -> Self {
        Self { problem, keys }
    }

    /// Checks the problem and decides how a rank computes it on such a device. Touches no device.
    ///
    /// # Errors
    /// As [`ContextParallel::plan`](super::ContextParallel::plan); striped keys under a mask, if there is more than one query.
    pub fn plan(&self, device: &DeviceInfo, rank: usize) -> Result<KeyParallelPlan> {
        let (problem, keys) = (&self.problem, &self.keys);
        check_dense(problem)?;
        check_rank(rank, keys.world())?;
        check_tokens("k", &problem.k, keys, rank)?;
        let queries = problem.q.shape[1];
        let all = Chunk {
            rank,
            start: 0,
            tokens: queries,
            first: 0,
        };
        let band = whole_band(problem, queries, keys.total());
        let sight = |k: &Chunk| sight(&band, (&all, 1), (k, keys.stride)).ok_or_else(stripes);
        // On all ranks alike.
        for k in keys.chunks() {
            sight(k)?;
        }
        let mut pieces = Vec::new();
        for k in keys.of(rank) {
            // Parts that see nothing too, for all ranks wait for them.
            let chunks = (&all, k, keys.tokens(rank));
            let sight = sight(k)?;
            pieces.push(Piece::new(
                problem,
                device,
                chunks,
                sight,
                Destination::Part,
            )?);
        }
        let mut workspace = Space::default();
        let count = keys.chunks().len();
        Ok(KeyParallelPlan {
            rank,
            parallel: self.clone(),
            pieces,
            parts: Parts::new(problem, device, &all, count, &mut workspace)?,
            workspace,
        })
    }
}

impl KeyParallelPlan {
    /// The problem.
    pub fn problem(&self) -> &KeyParallel {
        &self.parallel
    }

    /// The rank that it was made for.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of scratch memory that a launch needs, aligned to 256: exactly those of all ranks' partial results.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes
    }

    /// The kernels that a launch runs, some more than once: load them before a graph capture ([`Device::load`]).
    pub fn kernels(&self) -> Vec<&'static Entry> {
        let pieces = self.pieces.iter().map(|piece| &piece.plan.variant().entry);
        pieces.chain([self.parts.kernel()]).collect()
    }

    /// As [`ContextParallelPlan::agree`](super::ContextParallelPlan::agree).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn agree(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        stream: Stream,
    ) -> Result<()> {
        let KeyParallel { problem, keys } = &self.parallel;
        check_exchange(exchange, self.rank, keys.world())?;
        let shape = problem.shape();
        let sizes = [shape.batch, shape.seqlen_q, shape.heads_q, shape.heads_kv];
        let dims = [shape.head_dim_qk, shape.head_dim_v];
        let scores = (problem.softmax_scale().to_bits(), problem.softcap);
        let masks = (problem.causal, problem.window);
        let types = (problem.dtype, problem.out_element(), problem.lse);
        let text = format!("{sizes:?} {dims:?} {types:?} {scores:?} {masks:?} {keys:?}");
        // SAFETY: the caller vouches for the stream.
        unsafe { agree::agree(device, exchange, stream, &text) }
    }

    /// Where this rank's parts begin among all, and their bytes.
    fn of_ranks(&self) -> PartsOfRanks {
        let (parts, per_rank) = (&self.parts, self.parallel.keys.per_rank);
        PartsOfRanks {
            first: [parts.out, parts.lse],
            each: [parts.out_stride, parts.lse_stride].map(|bytes| bytes * per_rank),
        }
    }

    /// Addresses of the launch over a chunk of this rank's keys.
    fn of_piece(&self, which: usize, pointers: &Pointers) -> Pointers {
        let place = self.rank * self.parallel.keys.per_rank + which;
        let (out, lse) = self.parts.part(pointers.workspace, place);
        let tensors = [pointers.q, pointers.k, pointers.v];
        // Scales, of which there are none, are refused if there are.
        Pointers {
            q_scale: pointers.q_scale,
            k_scale: pointers.k_scale,
            v_scale: pointers.v_scale,
            ..self.pieces[which].pointers(tensors, out, Some(lse))
        }
    }

    /// Enqueues this rank's share on a stream. Does not allocate device memory and does not wait for the device. All ranks launch, as
    /// often and in the same order, each on its own device.
    ///
    /// # Errors
    /// As [`ContextParallelPlan::launch`](super::ContextParallelPlan::launch).
    ///
    /// # Safety
    /// As [`ContextParallelPlan::launch`](super::ContextParallelPlan::launch).
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        stream: Stream,
        pointers: &Pointers,
    ) -> Result<()> {
        check_exchange(exchange, self.rank, self.parallel.keys.world())?;
        check_workspace(pointers.workspace, self.workspace.bytes)?;
        self.parts.check(pointers)?;
        for (which, piece) in self.pieces.iter().enumerate() {
            piece.plan.params(&self.of_piece(which, pointers))?;
        }
        for (which, piece) in self.pieces.iter().enumerate() {
            // SAFETY: the tensors are the caller's; the part is in the workspace, in its own place.
            unsafe {
                piece
                    .plan
                    .launch(device, stream, &self.of_piece(which, pointers))?;
            }
        }
        // SAFETY: the workspace has room for the parts of all ranks, and this rank's are there.
        unsafe {
            self.of_ranks()
                .gather(exchange, pointers.workspace, stream)?
        };
        // SAFETY: all parts are there; out and lse are the caller's.
        unsafe { self.parts.launch(device, stream, pointers) }
    }
}

impl ServingKeyParallel {
    /// A rank's problem, and how many ranks there are.
    pub fn new(problem: ServingProblem, world: usize) -> Self {
        Self { problem, world }
    }

    /// Checks the problem and decides how a rank computes it on such a device. Touches no device.
    ///
    /// # Errors
    /// All that [`ServingProblem::plan`] refuses; whatever depends on where a rank's keys are in their sequences, of which kernels know
    /// nothing: windows, ALiBi, ranges, and a causal mask, unless there is only one query of each sequence, which sees all.
    pub fn plan(&self, device: &DeviceInfo, rank: usize) -> Result<ServingKeyParallelPlan> {
        check_rank(rank, self.world)?;
        let mut problem = self.problem;
        let one_sees_all = problem.q_lengths.longest <= 1
            && problem.causal == Some(CausalAlignment::BottomRight)
            && problem.window.left.is_none();
        if one_sees_all {
            (problem.causal, problem.window) = (None, Window::default());
        }
        for (argument, present) in [
            ("causal", problem.causal.is_some()),
            ("window", problem.window != Window::default()),
            ("alibi", problem.alibi.is_some()),
            ("ranges", problem.ranges.is_some()),
        ] {
            if present {
                return Err(Error::bad(
                    argument,
                    "none, but for a bottom-right causal mask with one query of each sequence: kernels for inference engines do not \
                     know where in its sequence a rank's keys are (KeyParallel's do)",
                    "one",
                ));
            }
        }
        let world = u32::try_from(self.world)
            .ok()
            .filter(|&world| i32::try_from(world).is_ok());
        let world = world
            .ok_or_else(|| Error::bad("world", "fewer than 2^31 ranks", self.world.to_string()))?;
        let part = PartPlan::new(&problem, world, device)?;
        let each = part.part_bytes();
        let mut workspace = Space::default();
        let first = [
            workspace.take(each[0].checked_mul(self.world))?,
            workspace.take(each[1].checked_mul(self.world))?,
        ];
        let scratch = workspace.take(Some(part.workspace_bytes()))?;
        Ok(ServingKeyParallelPlan {
            rank,
            world: self.world,
            part,
            parts: PartsOfRanks { first, each },
            scratch,
            workspace,
        })
    }
}

impl ServingKeyParallelPlan {
    /// This rank's problem. A causal mask that hides nothing is gone.
    pub fn problem(&self) -> &ServingProblem {
        self.part.problem()
    }

    /// The rank that it was made for.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of scratch memory that a launch needs, aligned to 256: exactly those of all ranks' partial results, and what this rank's
    /// takes.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes
    }

    /// The kernels that a launch runs, some more than once: load them before a graph capture ([`Device::load`]).
    pub fn kernels(&self) -> impl Iterator<Item = &'static Entry> {
        self.part.kernels()
    }

    /// As [`ContextParallelPlan::agree`](super::ContextParallelPlan::agree).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn agree(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        stream: Stream,
    ) -> Result<()> {
        check_exchange(exchange, self.rank, self.world)?;
        let problem = self.problem();
        let sizes = (problem.batch, problem.q.shape, problem.q_lengths);
        let values = (problem.k.shape[2], problem.v.shape[3]);
        let types = (problem.dtype, problem.out_element(), problem.lse);
        let scores = (
            problem.softmax_scale().to_bits(),
            problem.softcap,
            problem.sink,
        );
        let text = format!("{sizes:?} {values:?} {types:?} {scores:?} {:?}", self.world);
        // SAFETY: the caller vouches for the stream.
        unsafe { agree::agree(device, exchange, stream, &text) }
    }

    /// Enqueues this rank's share on a stream. Does not allocate device memory, wait for the device, or read what it holds. All ranks
    /// launch, as often and in the same order, each on its own device. The same queries and lengths of queries are on all.
    ///
    /// # Errors
    /// As [`ServingPlan::params`](crate::serving::ServingPlan::params), and for an exchange of other ranks than planned for, before
    /// anything is enqueued; whatever device and exchange say.
    ///
    /// # Safety
    /// As [`ServingPlan::launch`](crate::serving::ServingPlan::launch). The stream is one of the device, which is this rank's in the
    /// exchange.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        stream: Stream,
        pointers: &ServingPointers,
    ) -> Result<()> {
        check_exchange(exchange, self.rank, self.world)?;
        // Which is of queries, so on all ranks alike.
        if self.part.is_empty() {
            return Ok(());
        }
        check_workspace(pointers.workspace, self.workspace.bytes)?;
        self.part.check(pointers)?;
        let at = |offset: usize| pointers.workspace + offset as u64;
        let own = |which: usize| at(self.parts.first[which] + self.rank * self.parts.each[which]);
        let parts = self.parts.first.map(at);
        // SAFETY: the caller vouches for tensors and stream; part and scratch are in the workspace, in their own places.
        unsafe {
            let own = [own(0), own(1), at(self.scratch)];
            self.part.launch_part(device, stream, pointers, own)?;
        }
        // SAFETY: the workspace has room for the parts of all ranks, and this rank's is there.
        unsafe { self.parts.gather(exchange, pointers.workspace, stream)? };
        // SAFETY: all parts are there; out, lse and sink are the caller's.
        unsafe { self.part.launch_merge(device, stream, pointers, parts) }
    }
}
