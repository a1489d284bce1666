//! Of the kernels of inference engines, of both tiers.

use super::{Class, Explanation, RESCALING, of, of_since};

/// The explanations.
pub(super) const EXPLAINED: &[Explanation] = &[
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
];

/// Kernels of inference engines.
const SERVING: &str = "serving_*|decode_*|mla_*";

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
