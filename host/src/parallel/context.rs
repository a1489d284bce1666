//! Queries and keys of long sequences, both split over ranks.

use super::{
    check::{check_dense, check_rank, check_tokens, stripes, whole_band},
    piece::{Destination, Parts, Piece, Space},
    shards::{Chunk, Shards, Sight, sight},
};
use crate::{
    Problem,
    device::{DeviceInfo, Stream},
    error::{Error, Result},
};

/// How keys and values come to the queries of other ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Circulation {
    /// Around a ring (Ring Attention, arXiv:2310.01889): in each step a rank computes with the keys that it has, sends them to the next
    /// rank and receives others from the one before. The workspace has room for the keys of two ranks, and for f32 results of each step.
    #[default]
    Ring,
    /// All at once: each rank gathers all keys, and computes with them in one launch for each of its chunks of queries. The workspace
    /// has room for all keys.
    AllGather,
}

/// Attention over sequences whose queries and keys are split over ranks: context parallelism, as prefill and training have it.
///
/// [`Self::problem`] is that of one rank: its tensors have the rank's tokens, in the order of [`Shards::positions`]; keys and values are
/// contiguous. Causal mask and window are those of the whole sequences: distances are between positions in them.
///
/// ```
/// use flashtile::parallel::{Circulation, ContextParallel, Sharding, Shards};
/// use flashtile::{CausalAlignment, DType, DeviceInfo, Problem, Shape};
///
/// let shards = Shards::even(Sharding::Zigzag, 8, 131_072)?;
/// let rank = 3; // Exchange::rank()
/// let tokens = shards.tokens(rank);
/// let shape = Shape { batch: 1, seqlen_q: tokens, seqlen_k: tokens, heads_q: 32, heads_kv: 8, head_dim_qk: 128, head_dim_v: 128 };
/// let problem = Problem::contiguous(DType::Bf16, shape).causal(CausalAlignment::BottomRight);
/// let plan = ContextParallel::new(problem, shards.clone(), shards, Circulation::Ring).plan(&DeviceInfo::emulator(), rank)?;
/// assert_eq!(plan.steps(), 8);
/// # Ok::<(), flashtile::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ContextParallel {
    /// This rank's problem.
    pub problem: Problem,
    /// The ranks' queries.
    pub queries: Shards,
    /// The ranks' keys.
    pub keys: Shards,
    /// How keys come to queries.
    pub circulation: Circulation,
}

/// Where the work of a launch is enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Streams {
    /// Kernels. Inputs are ready where the launch comes on this stream, and results where it ends.
    pub compute: Stream,
    /// What moves between ranks. If it is another stream, keys move while kernels run.
    pub exchange: Stream,
}

impl Streams {
    /// One for both: nothing overlaps.
    pub fn one(stream: Stream) -> Self {
        Self {
            compute: stream,
            exchange: stream,
        }
    }
}

/// What a rank's launches will do, decided once: the kernels, the steps, the workspace.
#[derive(Clone, Debug, PartialEq)]
pub struct ContextParallelPlan {
    pub(super) rank: usize,
    pub(super) parallel: ContextParallel,
    pub(super) work: Work,
    pub(super) workspace: Space,
}

/// The kernels of a launch, and what is where in its workspace.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    Ring {
        steps: Vec<Step>,
        /// One for each chunk of queries.
        parts: Vec<Parts>,
        /// Bytes from the workspace's start to the rooms for other ranks' keys and values.
        rooms: [[usize; 2]; 2],
    },
    AllGather {
        pieces: Vec<Gathered>,
        /// Bytes from the workspace's start to the keys and values.
        room: [usize; 2],
    },
}

/// What is computed with one rank's keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// Whose keys.
    pub keys_of: usize,
    /// Pieces, each with its chunk of queries and its place among the parts.
    pub pieces: Vec<(Piece, usize, usize)>,
}

/// A launch over all keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gathered {
    pub piece: Piece,
    /// Bytes from the whole's first element to the chunk's: out, lse.
    pub of_out: i64,
    pub of_lse: u64,
}

impl ContextParallel {
    /// A rank's problem, and who has which tokens.
    pub fn new(problem: Problem, queries: Shards, keys: Shards, circulation: Circulation) -> Self {
        Self {
            problem,
            queries,
            keys,
            circulation,
        }
    }

    /// Checks the problem and decides how a rank computes it on such a device. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong: all that [`Problem::plan`] refuses; shards of different numbers of ranks,
    /// or other lengths than the tensors'; keys or values that are not contiguous; 8-bit elements; masks of tokens that are striped on
    /// one side alone, and striped keys that are gathered. Whatever depends on shards and masks is refused on all ranks alike.
    pub fn plan(&self, device: &DeviceInfo, rank: usize) -> Result<ContextParallelPlan> {
        let problem = &self.problem;
        check_dense(problem)?;
        let world = self.keys.world();
        check_rank(rank, world)?;
        if self.queries.world() != world {
            return Err(Error::bad(
                "queries",
                format!("shards of {world} ranks, as the keys'"),
                format!("{} ranks", self.queries.world()),
            ));
        }
        check_tokens("q", &problem.q, &self.queries, rank)?;
        check_tokens("k", &problem.k, &self.keys, rank)?;
        let mut space = Space::default();
        let work = match self.circulation {
            Circulation::Ring => self.ring(device, rank, &mut space)?,
            Circulation::AllGather => self.all_gather(device, rank, &mut space)?,
        };
        Ok(ContextParallelPlan {
            rank,
            parallel: self.clone(),
            work,
            workspace: space,
        })
    }

    /// What queries of one chunk see of keys of another.
    fn sight(&self, q: &Chunk, k: &Chunk) -> Result<Sight> {
        let band = whole_band(&self.problem, self.queries.total(), self.keys.total());
        let found = sight(&band, (q, self.queries.stride), (k, self.keys.stride));
        found.ok_or_else(stripes)
    }

    /// Whether a rank's queries see anything of another's keys.
    fn sees(&self, rank: usize, other: usize) -> Result<bool> {
        for q in self.queries.of(rank) {
            for k in self.keys.of(other) {
                if self.sight(q, k)? != Sight::Nothing {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn ring(&self, device: &DeviceInfo, rank: usize, space: &mut Space) -> Result<Work> {
        let problem = &self.problem;
        let world = self.keys.world();
        let keys_of = |rank: usize, step: usize| (rank + world - step) % world;
        // Keys travel as far as anybody needs them.
        let mut steps = 1;
        for step in 1..world {
            for rank in 0..world {
                if self.sees(rank, keys_of(rank, step))? {
                    steps = step + 1;
                }
            }
        }
        // Parts are in the order of the ranks whose keys they are of, not of the steps: so no bit of a result depends on which rank
        // has the queries.
        let mut parts = Vec::new();
        let mut places = Vec::new();
        for q in self.queries.of(rank) {
            let mut seen = Vec::new();
            for (at, k) in self.keys.chunks().iter().enumerate() {
                if self.sight(q, k)? != Sight::Nothing {
                    seen.push(at);
                }
            }
            parts.push(Parts::new(problem, device, q, seen.len(), space)?);
            places.push(seen);
        }
        let mut all = Vec::new();
        for step in 0..steps {
            let keys_of = keys_of(rank, step);
            let key_rows = self.keys.tokens(keys_of);
            let mut pieces = Vec::new();
            for (of_q, q) in self.queries.of(rank).iter().enumerate() {
                for (of_k, k) in self.keys.of(keys_of).iter().enumerate() {
                    let at = keys_of * self.keys.per_rank + of_k;
                    let Some(place) = places[of_q].iter().position(|&seen| seen == at) else {
                        continue;
                    };
                    let sight = self.sight(q, k)?;
                    let chunks = (q, k, key_rows);
                    let piece = Piece::new(problem, device, chunks, sight, Destination::Part)?;
                    pieces.push((piece, of_q, place));
                }
            }
            all.push(Step { keys_of, pieces });
        }
        // Of the keys that arrive in each room, the most: those of every other step.
        let mut rooms = [[0; 2]; 2];
        for (which, room) in rooms.iter_mut().enumerate() {
            let mut most = [Some(0), Some(0)];
            for step in all.iter().skip(1 + which).step_by(2) {
                let bytes = self.bytes_of(step.keys_of);
                for (most, bytes) in most.iter_mut().zip(bytes) {
                    *most = most.zip(bytes).map(|(most, bytes)| most.max(bytes));
                }
            }
            for (room, most) in room.iter_mut().zip(most) {
                *room = space.take(most)?;
            }
        }
        Ok(Work::Ring {
            steps: all,
            parts,
            rooms,
        })
    }

    fn all_gather(&self, device: &DeviceInfo, rank: usize, space: &mut Space) -> Result<Work> {
        let problem = &self.problem;
        let total = self.keys.total();
        if self.keys.stride > 1 {
            return Err(Error::bad(
                "keys",
                "chunks of tokens that follow each other, since gathered keys are in the order of the sequence",
                "striped tokens (which a ring takes)",
            ));
        }
        let room = self.bytes(total);
        let all = Chunk {
            rank,
            start: 0,
            tokens: total,
            first: 0,
        };
        // On all ranks alike.
        for q in self.queries.chunks() {
            self.sight(q, &all)?;
        }
        let mut pieces = Vec::new();
        for q in self.queries.of(rank) {
            // Of queries that see nothing too, whose outputs are 0.
            let sight = self.sight(q, &all)?;
            let chunks = (q, &all, total);
            let out = problem.out.strides[1].wrapping_mul(i64::from(problem.out_element().bytes()));
            pieces.push(Gathered {
                piece: Piece::new(problem, device, chunks, sight, Destination::Whole)?,
                of_out: out.wrapping_mul(q.first as i64),
                of_lse: 4 * q.first as u64,
            });
        }
        let [k, v] = room;
        Ok(Work::AllGather {
            pieces,
            room: [space.take(k)?, space.take(v)?],
        })
    }

    /// Bytes of a rank's keys and values.
    pub(super) fn bytes_of(&self, rank: usize) -> [Option<usize>; 2] {
        self.bytes(self.keys.tokens(rank))
    }

    /// Bytes of so many tokens' keys and values.
    pub(super) fn bytes(&self, tokens: usize) -> [Option<usize>; 2] {
        let [batch, _, heads, dim_qk] = self.problem.k.shape;
        let element = self.problem.dtype.bytes() as usize;
        [dim_qk, self.problem.v.shape[3]].map(|dim| {
            let factors = [batch, tokens, heads, dim];
            let mut factors = factors.iter();
            factors.try_fold(element, |bytes, &n| bytes.checked_mul(n))
        })
    }
}
