//! Of the dense kernels of the sm_80 tier.

use super::{Class, Explanation, RESCALING, of};

/// The explanations.
pub(super) const EXPLAINED: &[Explanation] = &[
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
    empty_group("fused_*_d64*_sm80|t*_pass_*_d64*_sm80"),
    empty_group("fused_*_d96*_sm80|t*_pass_*_d96*_sm80"),
    empty_group("fused_*_d128*_sm80|t*_pass_*_d128*_sm80"),
    empty_group("fused_*_d192*_sm80|t*_pass_*_d192*_sm80"),
    empty_group("fused_*_d256*_sm80|t*_pass_*_d256*_sm80"),
    empty_group("*_f32_d32*"),
];

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
