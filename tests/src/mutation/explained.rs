//! The survivors that are known, each with its reason.

use super::{
    campaign::{Campaign, Outcome},
    mutants::{Class, Mutation},
};

/// Mutants that nothing can notice, and why. Texts are patterns, in which `*` stands for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Names of the kernels: patterns, separated by `|`.
    pub kernels: &'static str,
    /// The class.
    pub class: Class,
    /// The instruction.
    pub before: &'static str,
    /// What stands in its place.
    pub after: &'static str,
    /// Where it stands: a [`Mutation::place`].
    pub place: &'static str,
    /// After what: a [`Mutation::since`].
    pub since: &'static str,
    /// Which of the kernel's mutants of the class, if not any: its [`Mutation::ordinal`].
    pub ordinal: Option<usize>,
    /// Why no result and no rule of the machine depends on it.
    pub reason: &'static str,
}

/// Every explanation. All mutants that one describes survive: one that dies makes it wrong.
pub const EXPLAINED: &[Explanation] = &[
    of(
        "fused_*_sm80",
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, %*;",
        "*",
        RESCALING,
    ),
    of(
        "fused_*_sm80",
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "*",
        RESCALING,
    ),
    of(
        SERVING,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, %*;",
        "*",
        RESCALING,
    ),
    of(
        SERVING,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "*",
        RESCALING,
    ),
    // Rows that exist, of tiles before the last: in the loop, and of the second tile, whose places are looked up before it.
    of_since(
        "wait",
        SERVING,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *[] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy wait",
        SERVING,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *[] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "commit",
        SERVING,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *[] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy queries",
        SERVING,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *mov.b32 *; [] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy vote",
        SERVING,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *mov.b32 *; [] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "commit",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *and.b64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy queries",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *and.b64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy vote",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *and.b64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "vote",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*[] *guards cp.async.cg.shared.global ld.global.nc.u* ld.global.nc.u* st.shared.u32",
        HAS_TILES,
    ),
    of_since(
        "start",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.eq.b64 *, 0; *[] add.s32 *min.s32 *, -1; *guards ld.global.nc.u32",
        NO_ROWS,
    ),
    of_since(
        "*",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*[] mov.u32 *; setp.eq.b32 *, 0; @* bra *guards ld.global.nc.u32",
        NO_RANGES,
    ),
    of_since(
        "*",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*mov.u32 *; setp.eq.b32 *, 0; [] *guards ld.global.nc.u32",
        NO_RANGES,
    ),
    of_since(
        "start",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*mov.u32 *; setp.ge.u32 *[] ld.param.b64 *guards cp.async.cg.shared.global ld.global.nc.u16 st.shared.u32",
        MANY_PIECES,
    ),
    of_since(
        "commit wait",
        SERVING,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *[] bra.uni *; cvt.u64.u32 *mul.lo.s64 *shr.u64 *guards ld.global.nc.u32",
        SLOPE,
    ),
    of_since(
        "commit wait",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *cvt.u32.u64 *guards ld.global.nc.u32",
        SLOPE,
    ),
    of_since(
        "commit wait",
        SERVING,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *mov.b32 *[] cvt.u64.u32 *mul.lo.s64 *cvt.u32.u64 *shr.u64 *guards ld.global.nc.u32",
        NO_SIGHT,
    ),
    of_since(
        "*",
        SERVING,
        Class::GuardPart,
        "and.pred *",
        "mov.pred *",
        "keeps the second: *setp.ne.b64 *and.pred *[] setp.eq.f32 *0fFF800000; *",
        SAME_NUMBER,
    ),
    of_since(
        "*",
        SERVING,
        Class::GuardPart,
        "or.pred *",
        "mov.pred *",
        "keeps the second: *[] bra.uni *; setp.eq.f32 *0fFF800000; *",
        SAME_NUMBER,
    ),
    of_since(
        "wait",
        MLA,
        Class::Barrier,
        "bar.sync 0;",
        "",
        "*cp.async.commit_group; cp.async.wait_group 1; []*",
        MET_AGAIN,
    ),
    of_since(
        "*",
        MLA,
        Class::WarpBarrier,
        "bar.warp.sync -1;",
        "",
        "*[] mad.lo.s32 *",
        MET_BEFORE,
    ),
    of_since(
        "*",
        MLA,
        Class::Guard,
        "@* bra *",
        "",
        "*bar.warp.sync -1; setp.lt.s32 *[] min.s32 *",
        HAS_ROW,
    ),
    empty_group("fused_*_d64*_sm80|t*_pass_*_d64*_sm80"),
    empty_group("fused_*_d96*_sm80|t*_pass_*_d96*_sm80"),
    empty_group("fused_*_d128*_sm80|t*_pass_*_d128*_sm80"),
    empty_group("fused_*_d192*_sm80|t*_pass_*_d192*_sm80"),
    empty_group("fused_*_d256*_sm80|t*_pass_*_d256*_sm80"),
    empty_group("*_f32_d32*"),
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, %*;",
        "*[] wgmma.wait_group.*",
        RESCALING,
    ),
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "*[] wgmma.wait_group.*",
        RESCALING,
    ),
    of(
        HOPPER,
        Class::Registers,
        "setmaxnreg.inc.*",
        "",
        "consumer: *",
        REGISTERS,
    ),
    Explanation {
        ordinal: Some(4),
        ..of(HALF, Class::Fence, "wgmma.fence.*", "", "*", ORDERED)
    },
    Explanation {
        ordinal: Some(6),
        ..of(HALF, Class::Fence, "wgmma.fence.*", "", "*", ORDERED)
    },
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "*ld.shared.u32 *[]*",
        NONE_SPOILT,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "*[] cp.async.bulk.wait_group 0; *",
        NONE_SPOILT,
    ),
    of(
        HOPPER,
        Class::Vote,
        "elect.sync *",
        "mov.pred *, -1;",
        "*vote.sync.any.pred *[]*",
        ANY_LANE,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "*or.pred *[]*guards red.relaxed.cluster.shared::cluster.or.b32",
        ANY_LANE,
    ),
    of(
        HOPPER,
        Class::GuardPart,
        "or.pred *",
        "mov.pred *",
        "*or.pred *[]*guards red.relaxed.cluster.shared::cluster.or.b32",
        ANY_LANE,
    ),
    of(
        HOPPER,
        Class::GuardInverted,
        "@* bra *",
        "@*",
        "*elect.sync *or.pred *[]*guards red.relaxed.cluster.shared::cluster.or.b32",
        ANY_LANE,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.*[]*guards cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group",
        OUTSIDE,
    ),
    of(
        HOPPER,
        Class::GuardPart,
        "or.pred *",
        "mov.pred *",
        "*setp.*[]*guards cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group",
        OUTSIDE,
    ),
    of(
        HOPPER,
        Class::Barrier,
        "bar.sync *",
        "",
        "consumer: cp.async.bulk.wait_group.read 0; setp.*[]*",
        LAST_TURN,
    ),
    of(
        HOPPER,
        Class::Wait,
        "cp.async.bulk.wait_group 0;",
        "",
        "producer: *",
        STORES_NOTHING,
    ),
    of(
        HOPPER,
        Class::WaitCount,
        "cp.async.bulk.wait_group 0;",
        "*",
        "producer: *",
        STORES_NOTHING,
    ),
    of(
        HALF,
        Class::MbarrierWait,
        "mbarrier.try_wait.*",
        "mov.pred p, -1;",
        FIRST_KEYS,
        IN_TURN,
    ),
    Explanation {
        ordinal: Some(4),
        ..of(
            E4M3_OVERLAPPED,
            Class::Fence,
            "wgmma.fence.*",
            "",
            "*",
            ORDERED,
        )
    },
    Explanation {
        ordinal: Some(6),
        ..of(
            E4M3_OVERLAPPED,
            Class::Fence,
            "wgmma.fence.*",
            "",
            "*",
            ORDERED,
        )
    },
    of_part(Class::Fence, "wgmma.fence.*", "", 4, PART_ORDERED),
    of_part(Class::Fence, "wgmma.fence.*", "", 7, PART_ORDERED),
    of_part(Class::Commit, "wgmma.commit_group.*", "", 3, PART_WAITED),
    of_part(Class::Commit, "wgmma.commit_group.*", "", 6, PART_WAITED),
    of_part(Class::Wait, "wgmma.wait_group.*", "", 3, PART_WAITED),
    of_part(Class::Wait, "wgmma.wait_group.*", "", 6, PART_WAITED),
    of_part(Class::WaitCount, "wgmma.wait_group.*", "*", 4, PART_WAITED),
    of_part(Class::WaitCount, "wgmma.wait_group.*", "*", 7, PART_WAITED),
    of(
        "fused_e4m3_d64_sm90a",
        Class::MbarrierWait,
        "mbarrier.try_wait.*",
        "mov.pred p, -1;",
        FIRST_KEYS,
        IN_TURN,
    ),
    scale_guard(4, NO_ROW),
    scale_guard(6, NO_ROW),
    scale_guard(8, WHOLE_HEAD),
    scale_guard(12, WHOLE_HEAD),
    of(
        E4M3,
        Class::Guard,
        "@* bra *",
        "",
        "producer: *[]*guards ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 stmatrix.*",
        SQUARES,
    ),
    of(
        E4M3_OVERLAPPED,
        Class::MbarrierWait,
        "mbarrier.try_wait.*",
        "mov.pred p, -1;",
        "producer: cp.async.bulk.tensor.*xor.b32 *[] selp.u32 * bra *; add.s32 *",
        AFTER_KEYS,
    ),
    of(
        OVER_QUERIES,
        Class::Barrier,
        "bar.sync *",
        "",
        "consumer: *cp.async.bulk.wait_group.read 0; [] *",
        MET,
    ),
    waited(Class::Wait, "", "consumer: bar.sync *[] bar.sync *"),
    waited(Class::WaitCount, "*", "consumer: bar.sync *[] bar.sync *"),
    waited(Class::Wait, "", "consumer: *[] *; setmaxnreg.dec.*"),
    waited(Class::WaitCount, "*", "consumer: *[] *; setmaxnreg.dec.*"),
    waited(Class::Wait, "", BEFORE_LAST_TURN),
    waited(Class::WaitCount, "*", BEFORE_LAST_TURN),
    of(
        OVER_QUERIES,
        Class::ExpectBytes,
        "mbarrier.arrive.expect_tx.*",
        "mbarrier.arrive.shared::cta.b64 *",
        "producer: *mov.b32 *, 0; []*",
        NO_BYTES,
    ),
    alone("fused_*_d64*_sm90a", Class::Coordinate),
    alone("fused_*_d64*_sm90a", Class::Multicast),
    alone("fused_*_d64*_sm90a", Class::Offset),
    alone("fused_*_d96*_sm90a", Class::Coordinate),
    alone("fused_*_d96*_sm90a", Class::Multicast),
    alone("fused_*_d96*_sm90a", Class::Offset),
];

/// The copies to both blocks of a pair, in kernels whose blocks never form one.
const fn alone(kernels: &'static str, class: Class) -> Explanation {
    of(
        kernels,
        class,
        "cp.async.bulk.tensor.*.multicast::cluster.*",
        "*",
        "producer: *",
        ALONE,
    )
}

/// A wait for stores, in kernels whose output passes through the queries' room.
const fn waited(class: Class, after: &'static str, place: &'static str) -> Explanation {
    of(
        OVER_QUERIES,
        class,
        "cp.async.bulk.wait_group.read 0;",
        after,
        place,
        WAITED,
    )
}

/// Kernels whose output passes through the queries' room.
const OVER_QUERIES: &str = "fused_*f16_d256_sm90a|fused_*f16_d192x128_sm90a|fused_*f16_d512_sm90a";

/// The wait at a consumer's end, where warpgroups take turns with the tensor cores.
const BEFORE_LAST_TURN: &str = "consumer: *[] setp.*; @* bra *; bra.uni *; bar.sync *";

/// One of two conditions of a guard of scales.
const fn scale_guard(ordinal: usize, reason: &'static str) -> Explanation {
    Explanation {
        ordinal: Some(ordinal),
        ..of(
            E4M3,
            Class::GuardPart,
            "or.pred *",
            "mov.pred *",
            "consumer: *[]*guards ld.global.nc.u32",
            reason,
        )
    }
}

/// One part of the columns of the output, in the kernel that multiplies with the values in two parts.
const fn of_part(
    class: Class,
    before: &'static str,
    after: &'static str,
    ordinal: usize,
    reason: &'static str,
) -> Explanation {
    Explanation {
        ordinal: Some(ordinal),
        ..of(
            "fused_e4m3_d256_sm90a",
            class,
            before,
            after,
            "consumer: *",
            reason,
        )
    }
}

/// The kernel with 8-bit elements whose mutants have all been judged.
const E4M3: &str = "fused_e4m3_d128_sm90a";

/// Those with 8-bit elements whose products with keys and with values overlap.
const E4M3_OVERLAPPED: &str = "fused_e4m3_d64_sm90a|fused_e4m3_d128_sm90a";

/// The 16-bit kernels of the sm_90a tier.
const HALF: &str = "fused_*f16_*_sm90a";

/// The kernels of the sm_90a tier.
const HOPPER: &str = "fused_*_sm90a";

/// Kernels of inference engines.
const SERVING: &str = "serving_*|decode_*|mla_*";

/// Those of latent caches.
const MLA: &str = "mla_*_m16_*";

/// The mutants of a class with such texts, wherever they stand in such places.
const fn of(
    kernels: &'static str,
    class: Class,
    before: &'static str,
    after: &'static str,
    place: &'static str,
    reason: &'static str,
) -> Explanation {
    Explanation {
        kernels,
        class,
        before,
        after,
        place,
        since: "*",
        ordinal: None,
        reason,
    }
}

/// So, of those that come after this.
const fn of_since(
    since: &'static str,
    kernels: &'static str,
    class: Class,
    before: &'static str,
    after: &'static str,
    place: &'static str,
    reason: &'static str,
) -> Explanation {
    Explanation {
        since,
        ..of(kernels, class, before, after, place, reason)
    }
}

/// The group that `Stream::start` closes where a block has no tile to copy, in kernels whose queries stay in shared memory.
const fn empty_group(kernels: &'static str) -> Explanation {
    Explanation {
        ordinal: Some(2),
        ..of(
            kernels,
            Class::Commit,
            "cp.async.commit_group;",
            "",
            "*",
            EMPTY_GROUP,
        )
    }
}

const EMPTY_GROUP: &str = "A group without copies, after which a block without tiles waits for nothing. Kernels whose queries go to \
     registers need it, and the same code serves all: without it here, ptxas spills registers of fused_f16_d128.";

const RESCALING: &str = "The vote skips a multiplication by 1 where no row of the warp has a new maximum. Lanes that multiply \
     without need, or skip it by themselves, compute the same.";

const ROWS_EXIST: &str = "Of the tiles that are copied in the loop all rows exist: only the last tile of a sequence, which is copied before it, can have others.";

const HAS_TILES: &str = "A block that is computed again has tiles: what spoils it came from one.";

const NO_ROWS: &str =
    "Which tiles a block visits that has no rows: it returns before it looks at them.";

const NO_RANGES: &str = "Without ranges their count is 0, and with some it is not: the loop over them does what the test does.";

const MANY_PIECES: &str =
    "A tile of queries has more pieces than the block has threads, so each thread has one.";

const SLOPE: &str = "A row that does not exist would be that of a head that does, so there is a slope; nobody looks at its scores.";

const NO_SIGHT: &str = "What a row that does not exist sees goes nowhere.";

const SAME_NUMBER: &str = "One thread of those that have a row writes its log-sum-exp. The others would write the same number, at the same time.";

const MET_AGAIN: &str = "All threads meet again before they read keys, and queries are read after that. (Where warps wait for themselves, they do not.)";

const MET_BEFORE: &str = "The block has met just before, when warps told each other their sums.";

const HAS_ROW: &str = "Warps share rows, and a block has one at least.";

const REGISTERS: &str = "An emulated thread has all the registers that it names. That one of a GPU has them only if it asks is seen on a GPU.";

/// The producer's wait before it copies the first keys of a piece of work, after which it divides for the head of these.
const FIRST_KEYS: &str = "producer: *xor.b32 *[] selp.u32 * bra *; shl.b32 *";

const IN_TURN: &str = "The room for the first keys of a piece is free once that for its queries is, which the producer has waited for: warps are \
     done with a piece's queries after its keys. The other block of a pair is no further behind: its half of the keys before arrived after its \
     own wait.";

const ORDERED: &str = "The fence before the products with keys has ordered the registers of those with values too: nothing writes them in \
     between.";

const NO_ROW: &str = "Rows that do not exist need no scale, and what is computed with one goes nowhere. It is there: scales are those of a head or \
     of blocks of 128 rows or more, and a tile of 128 has other rows of the block.";

const WHOLE_HEAD: &str = "Tensors without scales have a shift like those with one a head: the host gives both the same. Either condition says that blocks \
     of rows have none.";

const SQUARES: &str =
    "A tile has more squares than there are warps to transpose it, so each has one.";

const AFTER_KEYS: &str = "The room for a tile of values is free once that for the keys after it is, which the producer has waited for: who is done with \
     the keys that were there has waited for the transposed values before them, and those are there once the tile that they come from has been read.";

const PART_ORDERED: &str = "The fence before the first part of the columns has ordered the registers of the second too: nothing writes them in \
     between.";

const PART_WAITED: &str = "The wait for the second part of the columns covers the first, whose sums the compiler takes in after both. The one between \
     is to leave registers to ptxas.";

const MET: &str = "The warpgroup has met just before, and the thread that stores had nothing to wait for since: its last rows were read before it \
     gave back the queries' room.";

const WAITED: &str = "The thread has waited before it gave back the queries' room, as it does after each of its stores.";

const NO_BYTES: &str = "Expects none: the queries' room, without queries.";

const ALONE: &str = "Never executed: the host pairs blocks only where head_dim_qk is 128 or more. The code is there since all kernels share it.";

const NONE_SPOILT: &str = "Whether any piece of work must be done again. If none must, the second time around finds none: it takes longer, \
     by a few instructions for each piece.";

const ANY_LANE: &str = "One lane says that the warp's piece is spoilt, by setting a bit: any other lane that says so too sets the same. \
     That a cluster has a block, and the loop over its blocks an iteration, is always so.";

const OUTSIDE: &str = "The copy engine writes nothing of a box that lies outside of its tensor. The tests spare it the copy.";

const LAST_TURN: &str = "Takes the last turn with the tensor cores, since nobody is left to do so: without it the block ends with a barrier \
     at which half of the threads have arrived. Nothing comes after it.";

const STORES_NOTHING: &str = "The roles share the code that finds their work, and in it a wait for the thread's own stores. A producer has none.";

impl Explanation {
    /// Whether it is about this mutation of this kernel.
    pub fn describes(&self, kernel: &str, mutation: &Mutation) -> bool {
        self.class == mutation.class
            && self.kernels.split('|').any(|name| matches(name, kernel))
            && self
                .ordinal
                .is_none_or(|ordinal| ordinal == mutation.ordinal)
            && matches(self.before, &mutation.before)
            && matches(self.after, &mutation.after)
            && matches(self.place, &mutation.place)
            && matches(self.since, &mutation.since)
    }
}

/// The explanation of a survivor, if there is one.
pub fn explanation(kernel: &str, mutation: &Mutation) -> Option<&'static Explanation> {
    EXPLAINED
        .iter()
        .find(|explanation| explanation.describes(kernel, mutation))
}

/// The explanations that are wrong: they describe mutants that something noticed. If `all` mutants of all kernels were
/// made, also those that describe none.
pub fn wrong(campaign: &Campaign, outcomes: &[Outcome], all: bool) -> Vec<&'static Explanation> {
    let is_wrong = |explanation: &&Explanation| {
        let (mut described, mut killed) = (0, 0);
        for (mutant, outcome) in campaign.mutants.iter().zip(outcomes) {
            if explanation.describes(campaign.name(mutant.kernel), &mutant.mutation) {
                described += 1;
                killed += usize::from(matches!(outcome, Outcome::Killed(_)));
            }
        }
        killed > 0 || (all && described == 0)
    };
    EXPLAINED.iter().filter(is_wrong).collect()
}

/// Whether a text is what a pattern describes.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(
            matches("a*", "abc")
                && matches("*c", "abc")
                && matches("a*c", "abc")
                && matches("a*b*c", "abc")
        );
        assert!(matches("*", "") && matches("abc", "abc"));
        assert!(!matches("a*", "bc") && !matches("abc", "ab") && !matches("a*b", "abc"));
    }
}
