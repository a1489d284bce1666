//! flashtile's errors as candle's, with the names that arguments have here.

use candle_core::Error;

/// An argument that is wrong.
pub(crate) fn bad(
    argument: &str,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> Error {
    Error::msg(format!("{argument}: expected {expected}, found {found}"))
}

/// An error of flashtile's.
pub(crate) fn from_flashtile(error: flashtile::Error) -> Error {
    match error {
        flashtile::Error::BadInput {
            argument,
            expected,
            found,
        } => bad(name(argument), expected, found),
        error => Error::wrap(error),
    }
}

/// What callers of this crate know an argument by.
fn name(argument: &str) -> &str {
    match argument {
        "q_starts" => "seqlens_q",
        "k_starts" => "seqlens_k",
        "k_used" => "seqused_k",
        "table" => "block_table",
        "alibi" => "alibi_slopes",
        "ranges" => "mm_prefix_ranges",
        "scale" => "softmax_scale",
        "slots" => "slot_mapping",
        "starts" | "first" => "seqlens",
        "used" => "seqused",
        other => other,
    }
}
