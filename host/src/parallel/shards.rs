//! Which rank has which tokens.

use flashtile_abi::Band;

use crate::error::{Error, Result};

/// How a sequence is shared out evenly among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharding {
    /// Rank `r` has the `r`-th of `world` pieces. Under a causal mask the last rank has most of the work.
    Contiguous,
    /// Of `2 * world` pieces, rank `r` has the `r`-th and the `r`-th from the end, which balances causal masks.
    Zigzag,
    /// Rank `r` has every `world`-th token from `r` on, which balances causal masks step by step (Striped Attention, arXiv:2311.09431).
    Striped,
}

/// The tokens of a sequence that each rank holds, the same for all sequences of a batch. A rank's tensors have its tokens in the order of
/// [`Shards::positions`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// From one token of a chunk to the next.
    pub(super) stride: usize,
    /// Chunks of each rank.
    pub(super) per_rank: usize,
    /// Rank by rank.
    chunks: Vec<Chunk>,
    total: usize,
}

/// Tokens that follow each other, in a rank's tensors and, a stride apart, in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub rank: usize,
    /// Position in the sequence.
    pub start: usize,
    pub tokens: usize,
    /// Row in the rank's tensors.
    pub first: usize,
}

/// Longest sequence.
const MOST: usize = Band::MAX_SEQLEN as usize;

/// Most ranks.
const MOST_RANKS: usize = 1 << 16;

impl Shards {
    /// Rank `r` has `tokens[r]` tokens, behind those of the ranks before. A rank may have none.
    ///
    /// # Errors
    /// [`Error::BadInput`] without ranks, and for more than 2^30 tokens.
    pub fn contiguous(tokens: &[usize]) -> Result<Self> {
        check_world(tokens.len())?;
        let starts = starts(tokens)?;
        let chunks = tokens.iter().zip(starts).enumerate();
        let chunks = chunks.map(|(rank, (&tokens, start))| Chunk {
            rank,
            start,
            tokens,
            first: 0,
        });
        Ok(Self::new(1, 1, chunks.collect()))
    }

    /// Two chunks for each rank, `tokens` being their lengths in the order of the sequence: rank `r` has chunk `r` and, behind it in its
    /// tensors, chunk `2 * world - 1 - r`. A chunk may be empty.
    ///
    /// # Errors
    /// [`Error::BadInput`] without ranks or for an odd number of chunks, and for more than 2^30 tokens.
    pub fn zigzag(tokens: &[usize]) -> Result<Self> {
        if !tokens.len().is_multiple_of(2) {
            return Err(Error::bad(
                "shards",
                "two chunks for each rank",
                format!("{} chunks", tokens.len()),
            ));
        }
        check_world(tokens.len() / 2)?;
        let starts = starts(tokens)?;
        let last = tokens.len() - 1;
        let chunks = (0..tokens.len() / 2).flat_map(|rank| {
            let chunk = |at: usize, first: usize| Chunk {
                rank,
                start: starts[at],
                tokens: tokens[at],
                first,
            };
            [chunk(rank, 0), chunk(last - rank, tokens[rank])]
        });
        Ok(Self::new(1, 2, chunks.collect()))
    }

    /// Every `world`-th of `total` tokens.
    ///
    /// # Errors
    /// [`Error::BadInput`] without ranks, and for more than 2^30 tokens.
    pub fn striped(world: usize, total: usize) -> Result<Self> {
        check_world(world)?;
        starts(&[total])?;
        let chunks = (0..world).map(|rank| Chunk {
            rank,
            start: rank,
            tokens: total.saturating_sub(rank).div_ceil(world),
            first: 0,
        });
        Ok(Self::new(world, 1, chunks.collect()))
    }

    /// `total` tokens in pieces as equal as can be, the longer ones first.
    ///
    /// # Errors
    /// As the others.
    pub fn even(sharding: Sharding, world: usize, total: usize) -> Result<Self> {
        check_world(world)?;
        let pieces = |count: usize| -> Vec<usize> {
            let longer = total % count;
            (0..count)
                .map(|at| total / count + usize::from(at < longer))
                .collect()
        };
        match sharding {
            Sharding::Contiguous => Self::contiguous(&pieces(world)),
            Sharding::Zigzag => Self::zigzag(&pieces(2 * world)),
            Sharding::Striped => Self::striped(world, total),
        }
    }

    fn new(stride: usize, per_rank: usize, chunks: Vec<Chunk>) -> Self {
        Self {
            stride,
            per_rank,
            total: chunks.iter().map(|chunk| chunk.tokens).sum(),
            chunks,
        }
    }

    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.chunks.len() / self.per_rank
    }

    /// Tokens of the sequence.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Tokens that a rank has; none if there is no such rank.
    pub fn tokens(&self, rank: usize) -> usize {
        self.of(rank).iter().map(|chunk| chunk.tokens).sum()
    }

    /// Positions in the sequence of a rank's tokens, in the order in which its tensors have them.
    pub fn positions(&self, rank: usize) -> impl Iterator<Item = usize> {
        let stride = self.stride;
        let chunks = self.of(rank).iter();
        chunks.flat_map(move |chunk| (0..chunk.tokens).map(move |i| chunk.start + i * stride))
    }

    /// A rank's chunks, in the order of its tensors.
    pub(super) fn of(&self, rank: usize) -> &[Chunk] {
        let mut all = self.chunks.chunks(self.per_rank);
        all.nth(rank).unwrap_or_default()
    }

    /// All chunks, rank by rank.
    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}

/// Refuses no ranks at all, and too many.
fn check_world(world: usize) -> Result<()> {
    match world {
        1..=MOST_RANKS => Ok(()),
        _ => Err(Error::bad(
            "shards",
            format!("1 to {MOST_RANKS} ranks"),
            format!("{world} ranks"),
        )),
    }
}

/// Where pieces of such lengths start.
fn starts(tokens: &[usize]) -> Result<Vec<usize>> {
    let mut at = 0usize;
    let mut starts = Vec::with_capacity(tokens.len());
    for &tokens in tokens {
        starts.push(at);
        at = at.saturating_add(tokens);
    }
    match at <= MOST {
        true => Ok(starts),
        false => Err(Error::bad(
            "shards",
            format!("at most {MOST} tokens"),
            format!("{at} tokens or more"),
        )),
    }
}

/// What the queries of a chunk see of the keys of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// No query sees any key.
    Nothing,
    /// Every query sees every key.
    All,
    /// Some see some: a band of the chunks' own rows.
    Part(Band),
}

/// What the queries of a chunk see of the keys of another, where `band` is the mask of the whole sequences. `None` where no band says it:
/// under a mask, if tokens of queries and of keys are not as far apart from each other.
pub(super) fn sight(band: &Band, q: (&Chunk, usize), k: (&Chunk, usize)) -> Option<Sight> {
    let ((q, q_stride), (k, k_stride)) = (q, k);
    if q.tokens == 0 || k.tokens == 0 {
        return Some(Sight::Nothing);
    }
    let lower = (band.lower > Band::UNBOUNDED_LOWER).then_some(i64::from(band.lower));
    let upper = (band.upper < Band::UNBOUNDED_UPPER).then_some(i64::from(band.upper));
    // Of a single token, the distance to the next does not matter.
    let stride = match (q.tokens, k.tokens) {
        _ if q_stride == k_stride || q.tokens == 1 => k_stride,
        _ if k.tokens == 1 => q_stride,
        _ if lower.is_none() && upper.is_none() => 1,
        _ => return None,
    } as i64;
    // Query i and key j of the chunks are k.start - q.start + stride (j - i) apart.
    let apart = k.start as i64 - q.start as i64;
    let first = 1 - q.tokens as i64;
    let last = k.tokens as i64 - 1;
    let lower = lower.map_or(first, |x| -(apart - x).div_euclid(stride));
    let upper = upper.map_or(last, |x| (x - apart).div_euclid(stride));
    if lower.max(first) > upper.min(last) {
        return Some(Sight::Nothing);
    }
    if lower <= first && upper >= last {
        return Some(Sight::All);
    }
    let limit = |bound: i64| {
        bound.clamp(
            i64::from(Band::UNBOUNDED_LOWER),
            i64::from(Band::UNBOUNDED_UPPER),
        ) as i32
    };
    Some(Sight::Part(Band {
        lower: limit(lower),
        upper: limit(upper),
        seqlen_k: k.tokens as i32,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token is somebody's, once, at the position that is said; and every rank's rows are as many as is said.
    #[test]
    fn every_token_is_held_once() {
        for total in [0, 1, 2, 5, 16, 23] {
            for world in 1..=5 {
                for sharding in [Sharding::Contiguous, Sharding::Zigzag, Sharding::Striped] {
                    let shards = Shards::even(sharding, world, total).unwrap();
                    assert_eq!((shards.world(), shards.total()), (world, total));
                    let mut held = vec![0; total];
                    for rank in 0..world {
                        let positions: Vec<_> = shards.positions(rank).collect();
                        assert_eq!(positions.len(), shards.tokens(rank));
                        positions.iter().for_each(|&at| held[at] += 1);
                        let [most, least] = [total.div_ceil(world), total / world];
                        let slack = usize::from(sharding == Sharding::Zigzag);
                        assert!(positions.len() <= most + slack);
                        assert!(positions.len() + slack >= least);
                    }
                    assert!(held.iter().all(|&n| n == 1), "{sharding:?} {held:?}");
                    assert_eq!(shards.tokens(world), 0);
                }
            }
        }
    }

    #[test]
    fn bad_shards_are_refused() {
        assert!(Shards::contiguous(&[]).is_err());
        assert!(Shards::zigzag(&[]).is_err());
        assert!(Shards::zigzag(&[1, 2, 3]).is_err());
        assert!(Shards::striped(0, 3).is_err());
        assert!(Shards::even(Sharding::Zigzag, 0, 3).is_err());
        assert!(Shards::even(Sharding::Zigzag, usize::MAX, 3).is_err());
        assert!(Shards::contiguous(&[usize::MAX, 2]).is_err());
        assert!(Shards::contiguous(&[MOST, 1]).is_err());
        assert!(Shards::contiguous(&[MOST]).is_ok());
        assert!(Shards::striped(2, MOST + 1).is_err());
    }

    /// Every pair of query and key, by its distance in the whole sequences.
    #[test]
    fn chunks_see_what_the_whole_sees() {
        let bounds = [-30, -9, -4, -1, 0, 1, 3, 8, 30];
        let lower = bounds.iter().chain([&Band::UNBOUNDED_LOWER]);
        let lower: Vec<_> = lower.copied().collect();
        let upper = bounds.iter().chain([&Band::UNBOUNDED_UPPER]);
        let upper: Vec<_> = upper.copied().collect();
        let all = |total| {
            [Sharding::Contiguous, Sharding::Zigzag, Sharding::Striped]
                .map(|sharding| Shards::even(sharding, 3, total).unwrap())
        };
        let mut seen = [0; 4];
        for (queries, keys) in [(0, 5), (1, 7), (5, 2), (11, 11), (7, 20), (20, 7)] {
            for (q_shards, k_shards) in all(queries)
                .iter()
                .flat_map(|q| all(keys).map(|k| (q.clone(), k)))
            {
                for (&lower, &upper) in lower.iter().flat_map(|l| upper.iter().map(move |u| (l, u)))
                {
                    let band = Band {
                        lower,
                        upper,
                        seqlen_k: keys as i32,
                    };
                    let (q_stride, k_stride) = (q_shards.stride, k_shards.stride);
                    for (q, k) in q_shards
                        .chunks()
                        .iter()
                        .flat_map(|q| k_shards.chunks().iter().map(move |k| (q, k)))
                    {
                        let sees = |i: usize, j: usize| {
                            let i = (q.start + i * q_stride) as i32;
                            let row = band.row(i);
                            let j = (k.start + j * k_stride) as i32;
                            row.begin <= j && j < row.end
                        };
                        let pairs = (0..q.tokens).flat_map(|i| (0..k.tokens).map(move |j| (i, j)));
                        let mut pairs = pairs.clone().map(|(i, j)| (i, j, sees(i, j)));
                        let found = sight(&band, (q, q_stride), (k, k_stride));
                        match found {
                            None => {
                                seen[0] += 1;
                                assert!(q_stride != k_stride && q.tokens > 1 && k.tokens > 1);
                            }
                            Some(Sight::Nothing) => {
                                seen[1] += 1;
                                assert!(pairs.all(|(.., sees)| !sees), "{band:?} {q:?} {k:?}");
                            }
                            Some(Sight::All) => {
                                seen[2] += 1;
                                assert!(pairs.all(|(.., sees)| sees), "{band:?} {q:?} {k:?}");
                            }
                            Some(Sight::Part(part)) => {
                                seen[3] += 1;
                                assert_eq!(part.seqlen_k, k.tokens as i32);
                                for (i, j, sees) in pairs {
                                    let row = part.row(i as i32);
                                    let inside = row.begin <= j as i32 && (j as i32) < row.end;
                                    assert_eq!(inside, sees, "{band:?} {q:?} {k:?} ({i}, {j})");
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
    }
}
