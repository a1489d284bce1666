//! Of the kernels of inference engines, of both tiers.

use super::{Class, Explanation, ORDERED, REGISTERS, RESCALING, of, of_since};

/// The explanations.
pub(super) const EXPLAINED: &[Explanation] = &[
    of(
        SM80,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, %*;",
        "*",
        RESCALING,
    ),
    of(
        SM80,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "*",
        RESCALING,
    ),
    // Rows that exist, of tiles before the last: in the loop, and of the second tile, whose places are looked up before it.
    of_since(
        "wait",
        SM80,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *[] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy wait",
        SM80,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *[] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "commit",
        SM80,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *[] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy queries",
        SM80,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *mov.b32 *; [] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy vote",
        SM80,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *mov.b32 *, -1; *mov.b32 *; [] bra.uni *; cvt.u64.u32 *shr.u64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "commit",
        SM80,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *and.b64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy queries",
        SM80,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *and.b64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "copy vote",
        SM80,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *and.b64 *guards ld.global.nc.u32",
        ROWS_EXIST,
    ),
    of_since(
        "vote",
        SM80,
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
        SM80,
        Class::Guard,
        "@* bra *",
        "bra *",
        "*setp.lt.s32 *[] bra.uni *; cvt.u64.u32 *mul.lo.s64 *shr.u64 *guards ld.global.nc.u32",
        SLOPE,
    ),
    of_since(
        "commit wait",
        SM80,
        Class::Guard,
        "@* bra *",
        "",
        "*setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *cvt.u32.u64 *guards ld.global.nc.u32",
        SLOPE,
    ),
    of_since(
        "commit wait",
        SM80,
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
        "mla_*_sm80",
        Class::Barrier,
        "bar.sync 0;",
        "",
        "*cp.async.commit_group; cp.async.wait_group 1; []*",
        MET_AGAIN,
    ),
    of_since(
        "*",
        "mla_*_sm80",
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
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, %*;",
        "consumer: *",
        RESCALING,
    ),
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "consumer: *",
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
    nth(4, Class::Fence, "wgmma.fence.*", "", ORDERED),
    nth(6, Class::Fence, "wgmma.fence.*", "", ORDERED),
    of(
        HOPPER,
        Class::Fence,
        "fence.mbarrier_init.*",
        "",
        "*",
        NO_CLUSTER,
    ),
    nth(
        2,
        Class::MbarrierInit,
        "mbarrier.init.*",
        "*, -1; *",
        WITH_KEYS,
    ),
    of_since(
        "start",
        HOPPER,
        Class::MbarrierWait,
        "mbarrier.try_wait.*",
        "mov.pred p, -1;",
        "consumer: *",
        WITH_KEYS,
    ),
    nth(8, Class::Wait, "cp.async.wait_group 1;", "", WITH_KEYS),
    nth(
        8,
        Class::WaitCount,
        "cp.async.wait_group 1;",
        "*",
        WITH_KEYS,
    ),
    nth(9, Class::Fence, "fence.proxy.async.*", "", WITH_KEYS),
    nth(3, Class::MbarrierInit, "mbarrier.init.*", "*", NOBODY),
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, %*;",
        "producer: *",
        ALONE,
    ),
    of(
        HOPPER,
        Class::Vote,
        "vote.sync.any.pred *",
        "mov.pred *, -1;",
        "producer: *",
        SOONER,
    ),
    first_room("queries vote", Class::MbarrierWait, "mbarrier.try_wait.*"),
    first_room("queries vote", Class::Vote, "vote.sync.any.pred *"),
    first_room("queries vote", Class::Wait, "cp.async.wait_group 0;"),
    first_room("queries vote", Class::WaitCount, "cp.async.wait_group 0;"),
    first_room(
        "queries vote wait",
        Class::MbarrierWait,
        "mbarrier.try_wait.*",
    ),
    nth(8, Class::Fence, "fence.proxy.async.*", "", FIRST_ROOM),
    nth(
        7,
        Class::MbarrierArrive,
        "mbarrier.arrive.*",
        "",
        FIRST_ROOM,
    ),
    of_since(
        "vote",
        HOPPER,
        Class::Barrier,
        "bar.sync *",
        "",
        "consumer: bra.uni *; mov.b32 *, 0; mov.u32 *; add.s32 *, 1; []*",
        LAST_TURN,
    ),
    of_since(
        "vote",
        HOPPER,
        Class::WarpBarrier,
        "bar.warp.sync -1;",
        "",
        "consumer: *[] shl.b32 *",
        VOTED,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "bra *",
        "consumer: add.s32 *or.b32 *or.b32 *setp.lt.s32 *[] bra.uni *; cvt.u64.u32 *mul.lo.s64 *shr.u64 *guards ld.global.nc.u32",
        SLOPE,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "consumer: mul.rn.f32 *sub.rn.f32 *or.b32 *setp.ge.s32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *guards ld.global.nc.u32",
        SLOPE,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "consumer: *setp.ge.s32 *mov.b32 *[] cvt.u64.u32 *mul.lo.s64 *shr.u64 *cvt.u32.u64 *guards ld.global.nc.u32",
        NO_SIGHT,
    ),
    keys_exist("consumer: *mad.lo.s64 *[] ld.global.nc.u*guards ld.global.nc.u*"),
    keys_exist(
        "consumer: *setp.ge.s32 *add.s64 *mov.u64 *[] ld.global.nc.u*guards ld.global.nc.u*",
    ),
    keys_exist("consumer: *[] @* bra *; bra.uni *; ld.global.nc.u8 *guards ld.global.nc.u*"),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "producer: *vote.sync.any.pred *[] setp.eq.b32 *; @* bra *; cp.async.wait_group 0; *",
        SOONER,
    ),
    of(
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "producer: vote.sync.any.pred *[] cp.async.wait_group 0; *",
        UNANNOUNCED,
    ),
    of(
        HOPPER,
        Class::GuardPart,
        "or.pred *",
        "mov.pred *",
        "keeps the second: producer: not.pred *[] setp.lt.s32 *",
        VOTE_ALONE,
    ),
    of_since(
        "queries vote",
        HOPPER,
        Class::GuardInverted,
        "@* bra *",
        "*",
        "producer: *vote.sync.any.pred *[] *cp.async.wait_group 0; *guards mbarrier.arrive.shared::cta.b64",
        FIRST_ROOM,
    ),
    Explanation {
        kernels: D64,
        ..nth(27, Class::Offset, "mbarrier.arrive.*", "*", FIRST_ROOM)
    },
    Explanation {
        kernels: D64,
        ..nth(457, Class::Guard, "@* bra *", "", SECOND_TILE)
    },
    Explanation {
        kernels: D64,
        ..nth(473, Class::Guard, "@* bra *", "", SECOND_TILE)
    },
    Explanation {
        kernels: D64,
        ..nth(478, Class::Guard, "@* bra *", "bra *", SECOND_TILE)
    },
    first_room("queries vote", Class::Offset, "mbarrier.try_wait.*"),
    first_room("queries vote wait", Class::Offset, "mbarrier.try_wait.*"),
    of_since(
        "commit queries vote wait",
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "producer: *[] cp.async.wait_group 0; *guards mbarrier.arrive.shared::cta.b64",
        UNANNOUNCED,
    ),
    of_since(
        "vote",
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        "consumer: *setp.ge.s32 *mov.b32 *[] min.s32 *guards ld.global.nc.u32",
        NO_ROWS,
    ),
    of_since(
        "vote",
        HOPPER,
        Class::GuardInverted,
        "@* bra *",
        "*",
        "consumer: *[] mov.u32 *; setp.eq.b32 *, 0; @* bra *guards ld.global.nc.u32",
        AT_END,
    ),
    of_since(
        "vote",
        HOPPER,
        Class::GuardInverted,
        "@* bra *",
        "*",
        "consumer: *mov.u32 *; setp.eq.b32 *, 0; [] *guards ld.global.nc.u32",
        AT_END,
    ),
    of_since(
        "vote",
        HOPPER,
        Class::GuardInverted,
        "@* bra *",
        "*",
        "consumer: *add.s32 *, -1; setp.eq.b32 *, 0; [] mov.b32 *guards ld.global.nc.u32",
        AT_END,
    ),
];

/// A mutant of the sm_90a tier's kernels, by its number.
const fn nth(
    ordinal: usize,
    class: Class,
    before: &'static str,
    after: &'static str,
    reason: &'static str,
) -> Explanation {
    Explanation {
        ordinal: Some(ordinal),
        ..of(HOPPER, class, before, after, "*", reason)
    }
}

/// A test of whether a key of a tile exists, in the loop over the tiles after a walk's first.
const fn keys_exist(place: &'static str) -> Explanation {
    of_since(
        "scores",
        HOPPER,
        Class::Guard,
        "@* bra *",
        "",
        place,
        KEYS_EXIST,
    )
}

/// A producer's wait for room, before the first copies of a walk over the keys.
const fn first_room(since: &'static str, class: Class, before: &'static str) -> Explanation {
    of_since(since, HOPPER, class, before, "*", "producer: *", FIRST_ROOM)
}

/// Kernels of inference engines.
const SERVING: &str = "serving_*|decode_*|mla_*";

/// Those of the sm_80 tier.
const SM80: &str = "serving_*_sm80|decode_*|mla_*_sm80";

/// Those of the sm_90a tier.
const HOPPER: &str = "serving_*_sm90a";

/// Of these, those for head dimensions up to 64, whose mutants have all been judged.
const D64: &str = "serving_*f16_d64_sm90a";

/// Those of latent caches.
const MLA: &str = "mla_*_m16_*";

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

const NO_CLUSTER: &str = "Makes mbarriers known to other blocks of a cluster, and to bulk copies. Here are neither, and the block meets after it.";

const WITH_KEYS: &str = "Queries are read after the first keys have been waited for. Each thread announces these later than queries, and has then waited for \
     its copies of both and fenced them. Without keys nobody reads queries, and they have landed before the vote after which the output takes their room.";

const NOBODY: &str = "The queries' room is filled once: nobody arrives at the barrier that would say that it is free, or waits for it.";

const ALONE: &str = "The lanes of a warp wait for room together. Each would do so by itself, too.";

const SOONER: &str =
    "What is announced before it must be has been waited for all the same: it takes longer.";

const FIRST_ROOM: &str = "There is room for the first keys of a walk: before the first walk the ring is empty, and before the second all have met who had \
     read it. So nothing is announced here to make some, either.";

const LAST_TURN: &str = "Takes the last turn with the tensor cores, since nobody is left to do so: without it the block ends with a barrier \
     at which half of the threads have arrived. The products are done, and what comes after it is each warp's own.";

const VOTED: &str = "The block has met just before, at its vote. (In the sm_80 tier one that takes care does not vote.)";

const KEYS_EXIST: &str = "Of the tiles after a walk's first all keys exist: only a sequence's last tile can lack some, and it is the first that is visited.";

const UNANNOUNCED: &str = "There is a slot to announce, since each tile that is copied leaves one. Only before the first keys of a second walk is there none, and \
     these find room at once.";

const VOTE_ALONE: &str = "Consumers that take care vote that nothing is spoilt, so that the vote alone ends the producer's walks, too.";

const SECOND_TILE: &str =
    "Of the tiles after a walk's first all rows exist, so all have an entry of the table.";

const AT_END: &str = "At its end a block asks of its tiles only whether all of them were computed with care. Ranges have no part in that.";
