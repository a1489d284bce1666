//! Classes of cases: what a case tests.

use std::fmt;

use flashtile::{
    Algorithm, Arch, ArchChoice, CausalAlignment, DType, OutDType, Plan, ScaleLayout, Scales,
    ScoreModKind, Variant, Window,
};

use crate::{
    case::{Case, Placement},
    data::Distribution,
    memory::unseen_keys,
};

/// A length against a tile's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// 0.
    Zero,
    /// 1.
    One,
    /// One less than the tile.
    Less,
    /// The tile.
    Equal,
    /// One more than the tile.
    More,
}

impl Edge {
    /// Every edge.
    pub const ALL: [Self; 5] = [Self::Zero, Self::One, Self::Less, Self::Equal, Self::More];

    /// The length.
    pub fn of(self, block: u32) -> usize {
        let block = block as usize;
        match self {
            Self::Zero => 0,
            Self::One => 1,
            Self::Less => block - 1,
            Self::Equal => block,
            Self::More => block + 1,
        }
    }
}

/// Which sides of the window are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// There is no window.
    None,
    /// The left one.
    Left,
    /// The right one.
    Right,
    /// Both.
    Both,
}

impl Sides {
    const ALL: [Self; 4] = [Self::None, Self::Left, Self::Right, Self::Both];

    fn of(window: Window) -> Self {
        match (window.left, window.right) {
            (None, None) => Self::None,
            (Some(_), None) => Self::Left,
            (None, Some(_)) => Self::Right,
            (Some(_), Some(_)) => Self::Both,
        }
    }
}

/// How many queries there are, against the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Fewer.
    Fewer,
    /// As many.
    AsMany,
    /// More: under most masks, some see nothing.
    More,
}

impl Queries {
    const ALL: [Self; 3] = [Self::Fewer, Self::AsMany, Self::More];

    fn of(case: &Case) -> Self {
        match case.shape.seqlen_q.cmp(&case.shape.seqlen_k) {
            std::cmp::Ordering::Less => Self::Fewer,
            std::cmp::Ordering::Equal => Self::AsMany,
            std::cmp::Ordering::Greater => Self::More,
        }
    }
}

/// The head dimensions among those that a variant is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dims {
    /// Those it is made for.
    Widest,
    /// The smallest head_dim_qk.
    NarrowQueries,
    /// The smallest head_dim_v.
    NarrowValues,
    /// In the sm_80 tier neither is a multiple of 8, so that rows are copied element by element. In the sm_90a tier both are, and
    /// neither is one of 16, so that the tile has more columns than the tensor.
    Ragged,
    /// Neither is a multiple of 8, in rows that begin at multiples of 16 bytes.
    Padded,
}

/// How one tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// At an address that is no multiple of 16 bytes.
    Unaligned,
    /// With gaps between its rows, which begin at multiples of 16 bytes.
    Gaps,
    /// With gaps after which rows begin anywhere.
    OddGaps,
    /// Heads before positions.
    HeadsFirst,
    /// From the last position to the first.
    Backwards,
    /// One memory for all batches. Inputs only.
    Broadcast,
}

impl Lie {
    const ALL: [Self; 6] = [
        Self::Unaligned,
        Self::Gaps,
        Self::OddGaps,
        Self::HeadsFirst,
        Self::Backwards,
        Self::Broadcast,
    ];

    /// Whether the copy engine can address such a tensor.
    const fn is_addressable(self) -> bool {
        matches!(self, Self::Gaps | Self::HeadsFirst)
    }

    /// Whether the tensor lies so.
    fn holds(self, case: &Case, tensor: usize) -> bool {
        let [batch, seqlen, heads, dim] = case.shapes()[tensor];
        let placement = &case.placements[tensor];
        let aligned = 16 / case.element(tensor).bytes() as usize;
        let row = dim + placement.pad;
        match self {
            Self::Unaligned => !placement.offset.is_multiple_of(aligned),
            Self::Gaps => placement.pad > 0 && row.is_multiple_of(aligned),
            Self::OddGaps => placement.pad > 0 && !row.is_multiple_of(aligned),
            Self::HeadsFirst => placement.heads_first && heads > 1 && seqlen > 1,
            Self::Backwards => placement.backwards && seqlen > 1,
            Self::Broadcast => placement.broadcast && batch > 1,
        }
    }
}

/// How the blocks of a kernel of the sm_90a tier share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The rows of several heads in one tile.
    Packed {
        /// Under a causal mask, or without.
        causal: bool,
    },
    /// Two blocks share keys and values.
    Pairs,
    /// Blocks have several pieces of work each, not all of them as many.
    Rounds,
    /// Some of the pieces that blocks have several of see no key at all.
    Empty,
    /// The heads are worked on in several sections, of which the last has fewer.
    Sections,
}

impl Work {
    const ALL: [Self; 6] = [
        Self::Packed { causal: false },
        Self::Packed { causal: true },
        Self::Pairs,
        Self::Rounds,
        Self::Empty,
        Self::Sections,
    ];

    /// Whether the work is shared out so on the emulator.
    pub(super) fn holds(self, case: &Case, plan: &Plan) -> bool {
        let Some(schedule) = plan.schedule() else {
            return false;
        };
        let clusters = plan.config().grid[0] / schedule.cluster;
        match self {
            Self::Packed { causal } => schedule.pack > 0 && case.causal.is_some() == causal,
            Self::Pairs => schedule.cluster == 2,
            Self::Rounds => schedule.rounds > 2 && !schedule.pieces.is_multiple_of(clusters),
            Self::Empty => {
                let params = plan.template();
                let tile = &plan.variant().tile;
                let sees = |m_block: u32| {
                    let first = (m_block * tile.block_m) as i32;
                    let rows = (schedule.rows - first).min(tile.block_m as i32);
                    let query = |row: i32| row >> schedule.pack;
                    let queries = query(first + rows - 1) - query(first) + 1;
                    let (band, keys) = (params.band, tile.block_n as i32);
                    let range = band.block_range(query(first), queries, keys);
                    range.begin < range.end
                };
                let mut blocks = 0..params.m_blocks;
                schedule.rounds > 1 && blocks.clone().any(sees) && !blocks.all(sees)
            }
            Self::Sections => {
                let Some(rest) = schedule.groups.checked_rem(schedule.section) else {
                    return false;
                };
                schedule.section > 1 && schedule.section < schedule.groups && rest > 0
            }
        }
    }
}

/// The kinds of scales of a tensor.
const SCALES: [ScaleLayout; 5] = [
    ScaleLayout::One,
    ScaleLayout::PerTensor,
    ScaleLayout::PerHead,
    ScaleLayout::PerBlock { rows: 128 },
    ScaleLayout::PerBlock { rows: 256 },
];

/// What becomes of a score before the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Multiplied by a negative number.
    NegativeScale,
    /// Multiplied by 0.
    ZeroScale,
    /// Capped.
    Capped,
    /// Not capped.
    Uncapped,
}

/// What a case tests. Which classes a case is in is read off the case itself ([`Class::holds`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Lengths at the edges of both tiles.
    Edges {
        /// Queries against BLOCK_M.
        q: Edge,
        /// Keys against BLOCK_N.
        k: Edge,
    },
    /// A mask, its alignment, and where the diagonal lies.
    Mask {
        /// Causal, or not.
        causal: Option<CausalAlignment>,
        /// Window.
        sides: Sides,
        /// Lengths.
        queries: Queries,
    },
    /// So many query heads for each of keys and values.
    Ratio(usize),
    /// Several batches, several groups of several heads.
    Groups,
    /// Elements of a distribution.
    Data(Distribution),
    /// Infinities and NaN in whole tiles before the first key that a query sees.
    PoisonBefore,
    /// The same behind the last key that a query sees.
    PoisonBehind,
    /// Lengths that are prime numbers, beyond a tile.
    Primes,
    /// More than eight tiles of keys.
    ManyTiles,
    /// Head dimensions.
    Dims(Dims),
    /// How a tensor (0 to 3: q, k, v, out) lies in memory.
    Memory(usize, Lie),
    /// f32 output of inputs of fewer bits.
    OutF32,
    /// f16 output of 8-bit inputs.
    OutF16,
    /// Scales of a tensor (0 to 2: q, k, v) of several heads and batches, and the others' of another kind.
    Scales(usize, ScaleLayout),
    /// Scale and cap.
    Score(Score),
    /// How the blocks of the sm_90a tier share the work.
    Work(Work),
    /// A tensor lies as the copy engine cannot address it, so that the sm_80 tier has the work.
    Fallback(usize, Lie),
    /// The same for contiguous tensors, whose rows are no multiples of 16 bytes.
    FallbackRows,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Class {
    /// Every class.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for q in Edge::ALL {
            all.extend(Edge::ALL.map(|k| Self::Edges { q, k }));
        }
        let alignments = [
            None,
            Some(CausalAlignment::BottomRight),
            Some(CausalAlignment::TopLeft),
        ];
        for causal in alignments {
            for sides in Sides::ALL {
                all.extend(Queries::ALL.map(|queries| Self::Mask {
                    causal,
                    sides,
                    queries,
                }));
            }
        }
        all.extend((1..=16).map(Self::Ratio));
        all.extend(Distribution::ALL.map(Self::Data));
        for tensor in 0..4 {
            let lies = Lie::ALL.into_iter();
            let sensible = lies.filter(|&lie| tensor < 3 || lie != Lie::Broadcast);
            for lie in sensible {
                all.push(Self::Memory(tensor, lie));
                if !lie.is_addressable() {
                    all.push(Self::Fallback(tensor, lie));
                }
            }
        }
        let dims = [
            Dims::Widest,
            Dims::NarrowQueries,
            Dims::NarrowValues,
            Dims::Ragged,
            Dims::Padded,
        ];
        all.extend(dims.map(Self::Dims));
        let scores = [
            Score::NegativeScale,
            Score::ZeroScale,
            Score::Capped,
            Score::Uncapped,
        ];
        all.extend(scores.map(Self::Score));
        all.extend(Work::ALL.map(Self::Work));
        all.extend([
            Self::Groups,
            Self::PoisonBefore,
            Self::PoisonBehind,
            Self::Primes,
            Self::ManyTiles,
            Self::OutF32,
            Self::FallbackRows,
            Self::OutF16,
        ]);
        for tensor in 0..3 {
            all.extend(SCALES.map(|layout| Self::Scales(tensor, layout)));
        }
        all
    }

    /// Whether the variant has such cases.
    pub fn applies(self, variant: &Variant) -> bool {
        match self {
            Self::Score(Score::Capped) => variant.score_mod != ScoreModKind::None,
            // A cap of scores that are all 0 is none, so the library takes the other kernel.
            Self::Score(Score::Uncapped | Score::ZeroScale) => {
                variant.score_mod != ScoreModKind::Softcap
            }
            Self::OutF32 => variant.tile.dtype != DType::F32,
            Self::Memory(_, lie) => variant.arch == Arch::Sm80 || lie.is_addressable(),
            Self::Work(Work::Pairs) => {
                variant.arch == Arch::Sm90a && variant.tile.head_dim_qk >= 128
            }
            Self::Work(_) => variant.arch == Arch::Sm90a,
            // What the sm_90a tier would compute.
            Self::Fallback(..) | Self::FallbackRows => {
                variant.arch == Arch::Sm80
                    && variant.algorithm == Algorithm::Fused
                    && variant.tile.dtype != DType::F32
            }
            Self::OutF16 | Self::Scales(..) => variant.tile.dtype == DType::E4m3,
            _ => true,
        }
    }

    /// Whether the case, computed by this variant, is in the class.
    pub fn holds(self, case: &Case, variant: &Variant) -> bool {
        let (s, tile) = (&case.shape, &variant.tile);
        match self {
            Self::Edges { q, k } => {
                s.seqlen_q == q.of(tile.block_m) && s.seqlen_k == k.of(tile.block_n)
            }
            Self::Mask {
                causal,
                sides,
                queries,
            } => {
                case.causal == causal
                    && Sides::of(case.window) == sides
                    && Queries::of(case) == queries
                    && [s.seqlen_q, s.seqlen_k].iter().all(|&n| n > 0)
            }
            Self::Ratio(ratio) => s.heads_q == ratio * s.heads_kv,
            Self::Groups => s.batch > 1 && s.heads_kv > 1 && s.heads_q > s.heads_kv,
            Self::Data(data) => case.data == data,
            Self::PoisonBefore | Self::PoisonBehind => {
                let unseen = unseen_keys(&case.problem());
                let mut tiles = unseen.chunks(tile.block_n as usize);
                let outer = match self {
                    Self::PoisonBefore => tiles.next(),
                    _ => tiles.next_back(),
                };
                let seen = unseen.contains(&false);
                case.poison && seen && outer.is_some_and(|tile| !tile.contains(&false))
            }
            Self::Primes => {
                is_prime(s.seqlen_q)
                    && is_prime(s.seqlen_k)
                    && s.seqlen_q > tile.block_m as usize
                    && s.seqlen_k > tile.block_n as usize
            }
            Self::ManyTiles => s.seqlen_k > 8 * tile.block_n as usize,
            Self::Dims(dims) => {
                let padded = dims != Dims::Padded || case.addressable() == *case;
                padded && (s.head_dim_qk, s.head_dim_v) == super::cases::dims(variant, dims)
            }
            Self::Memory(tensor, lie) => lie.holds(case, tensor),
            Self::Fallback(tensor, lie) => lie.holds(case, tensor) && falls_back(case, variant),
            Self::FallbackRows => {
                let contiguous = case.placements == [Placement::default(); 4];
                contiguous && falls_back(case, variant)
            }
            Self::Work(work) => case.plan().is_ok_and(|plan| work.holds(case, &plan)),
            Self::OutF32 => case.out_dtype == OutDType::F32 && case.dtype != DType::F32,
            Self::OutF16 => case.out_dtype == OutDType::F16 && case.dtype == DType::E4m3,
            Self::Scales(tensor, layout) => {
                let Scales { q, k, v } = case.scales;
                let [_, seqlen, heads, _] = case.shapes()[tensor];
                let rows = match layout {
                    ScaleLayout::PerBlock { rows } => rows as usize,
                    _ => 0,
                };
                [q, k, v][tensor] == layout
                    && (q != k || k != v)
                    && s.batch > 1
                    && heads > 1
                    && seqlen > rows
            }
            Self::Score(Score::NegativeScale) => case.scale.is_some_and(|scale| scale < 0.0),
            Self::Score(Score::ZeroScale) => case.scale == Some(0.0),
            Self::Score(Score::Capped) => case.softcap.is_some(),
            Self::Score(Score::Uncapped) => case.softcap.is_none(),
        }
    }
}

/// Whether the sm_90a tier would compute the case, if it were not for its tensors.
fn falls_back(case: &Case, variant: &Variant) -> bool {
    let elsewhere = case.addressable().planned();
    case.arch == ArchChoice::Auto
        && variant.arch == Arch::Sm80
        && elsewhere.is_ok_and(|variant| variant.arch == Arch::Sm90a)
}

/// Whether a number is prime.
pub(super) fn is_prime(n: usize) -> bool {
    n > 1
        && (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}
