//! Of the dense kernels of the sm_90a tier.

use super::{Class, Explanation, ORDERED, REGISTERS, RESCALING, of};

/// The explanations.
pub(super) const EXPLAINED: &[Explanation] = &[
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
        "consumer: bra.uni *; mov.b32 *, 0; mov.u32 *; add.s32 *, 1; []*",
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
const BEFORE_LAST_TURN: &str = "consumer: *[] setp.*; @* bra *; bra.uni *; mov.b32 *";

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

/// The producer's wait before it copies the first keys of a piece of work, after which it divides for the head of these.
const FIRST_KEYS: &str = "producer: *xor.b32 *[] selp.u32 * bra *; shl.b32 *";

const IN_TURN: &str = "The room for the first keys of a piece is free once that for its queries is, which the producer has waited for: warps are \
     done with a piece's queries after its keys. The other block of a pair is no further behind: its half of the keys before arrived after its \
     own wait.";

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
