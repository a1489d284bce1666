//! A case of every class for every kernel of inference engines: every path of a kernel, as small as it can be.

use flashtile::{
    Arch, ArchChoice, CausalAlignment, DType, Operation, ServingVariant, Sharing, Window,
    serving::{BiasType, CacheScales, MaskType, Splits},
};

use super::case::{Bias, Cache, CacheOrder, MaskCase, Queries, ServingCase};

/// What a case tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One sequence, in which everything exists but the last key of the last tile.
    Whole,
    /// So, in rows that begin anywhere.
    WholeApart,
    /// Sequences of several lengths, without keys or queries some, several heads, head dimensions that end within a piece of 16 bytes.
    Sequences,
    /// So, in rows that begin anywhere.
    SequencesApart,
    /// The fewest elements for which the kernel is chosen.
    Narrow,
    /// Pages of so many rows, of which some count; causal.
    Pages(usize),
    /// So, of which whole pieces of 16 bytes exist.
    WholePages(usize),
    /// Keys of every head together, in pages of three rows.
    HeadsFirst,
    /// vLLM's caches.
    Chunked,
    /// Causal, bottom-right; negated scores.
    BottomRight,
    /// Causal, top-left, with a window.
    TopLeft,
    /// A window on both sides, over tiles with and without masks.
    Window,
    /// Ranges that see each other whole.
    Ranges,
    /// Everything that can be done to scores, for each pair.
    Everything,
    /// So, of fewer dimensions and other types; f32 outputs.
    Broadcast,
    /// Sinks.
    Sinks,
    /// Keys split over blocks.
    Splits,
    /// So, with sinks, and f32 outputs.
    SplitSinks,
    /// f32 outputs.
    OutF32,
    /// Scores so large that blocks are computed a second time.
    Large,
    /// So, of some sequences.
    LargeSequences,
    /// Scales of so many kinds. 8-bit keys and values only.
    Scales(CacheScales),
    /// Numbers on the device that are anything: keys that are split; keys that follow each other; ranges.
    Hostile(usize),
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 31] = [
        Self::Whole,
        Self::WholeApart,
        Self::Sequences,
        Self::SequencesApart,
        Self::Narrow,
        Self::Pages(1),
        Self::Pages(3),
        Self::Pages(16),
        Self::WholePages(1),
        Self::WholePages(3),
        Self::WholePages(16),
        Self::HeadsFirst,
        Self::Chunked,
        Self::BottomRight,
        Self::TopLeft,
        Self::Window,
        Self::Ranges,
        Self::Everything,
        Self::Broadcast,
        Self::Sinks,
        Self::Splits,
        Self::SplitSinks,
        Self::OutF32,
        Self::Large,
        Self::LargeSequences,
        Self::Scales(CacheScales::None),
        Self::Scales(CacheScales::PerTensor),
        Self::Scales(CacheScales::PerSequence),
        Self::Hostile(0),
        Self::Hostile(1),
        Self::Hostile(2),
    ];

    /// Whether a kernel can be tested so.
    pub fn applies(self, variant: &ServingVariant) -> bool {
        match self {
            Self::Scales(_) => variant.tile.kv_dtype == DType::E4m3,
            _ => true,
        }
    }
}

/// Every kernel.
pub fn variants() -> impl Iterator<Item = &'static ServingVariant> {
    flashtile::kernels().filter_map(|kernel| match kernel.operation {
        Operation::Serving(variant) => Some(variant),
        _ => None,
    })
}

/// Every kernel through every class; or, for a quick sweep, through one class that all have, and every other class with every tenth of the
/// kernels. Names of kernels with cases of theirs.
pub fn select(quick: bool) -> impl Iterator<Item = (&'static str, ServingCase)> {
    let all = variants().enumerate();
    all.flat_map(move |(at, variant)| {
        let classes = Class::ALL.into_iter().enumerate();
        let some = classes.filter(move |(turn, class)| {
            !quick || *class == Class::SequencesApart || (at + turn) % 10 == 0
        });
        some.filter_map(move |(_, class)| Some((variant.entry.name, case(variant, class)?)))
    })
}

/// A case of every class that applies.
pub fn of_variant(variant: &'static ServingVariant) -> impl Iterator<Item = ServingCase> {
    let classes = Class::ALL.into_iter();
    classes.filter_map(|class| case(variant, class))
}

/// A kernel's case of a class; `None` if the class does not apply to it.
pub fn case(variant: &ServingVariant, class: Class) -> Option<ServingCase> {
    class.applies(variant).then(|| example(variant, class))
}

/// Query heads for each head of keys and values.
fn group(variant: &ServingVariant) -> usize {
    match variant.sharing {
        Sharing::Rows => 3,
        Sharing::Keys => 5,
        Sharing::Columns => 7,
    }
}

fn example(variant: &ServingVariant, class: Class) -> ServingCase {
    let tile = &variant.tile;
    let (m, n) = (tile.block_m as usize, tile.block_n as usize);
    let widest = [tile.head_dim_qk as usize, tile.head_dim_v as usize];
    let in_chunk = widest.map(|dim| dim - 3);
    let plain = |queries, keys, dims: [usize; 2]| ServingCase {
        dims,
        arch: match variant.arch {
            Arch::Sm80 => ArchChoice::Sm80,
            Arch::Sm90a => ArchChoice::Sm90a,
        },
        latent: tile.latent,
        kv_scales: (tile.kv_dtype == DType::E4m3).then_some(CacheScales::PerHead),
        seed: 1,
        ..ServingCase::new(tile.dtype, &[[queries, keys]], 1)
    };
    let again = |class| example(variant, class);
    // Kernels for few queries have a tile's rows at most, the others some in a second tile.
    let group = group(variant);
    let queries = match m {
        16 => m / group,
        _ => (m + 3).div_ceil(group),
    };
    let sequences = |queries, dims| ServingCase {
        // Whoever reads past the last one's table reads past all.
        lengths: vec![[queries, 0], [0, 5], [1, n + 3], [queries, 3 * n + 1]],
        heads_kv: 2,
        q_per_kv: group,
        ..plain(0, 0, dims)
    };
    let negated = |causal, left, right| ServingCase {
        causal,
        window: Window { left, right },
        scale: Some(-0.3),
        ..again(Class::Sequences)
    };
    match class {
        Class::Whole => plain(m, 3 * n - 1, widest),
        Class::WholeApart => ServingCase {
            gap: 3,
            ..again(Class::Whole)
        },
        // The gap keeps 16-bit rows aligned.
        Class::Sequences => ServingCase {
            gap: 3,
            ..sequences(queries, in_chunk)
        },
        Class::SequencesApart => ServingCase {
            gap: 2,
            ..sequences(queries, in_chunk)
        },
        Class::Narrow => {
            let dims = match (variant.sharing, widest) {
                (Sharing::Columns, _) => [257, 1],
                (_, [64, _]) => [1, 1],
                (_, [128, _]) => [65, 1],
                (_, [192, _]) => [129, 1],
                _ => [193, 1],
            };
            ServingCase {
                room: 2,
                // All rows of a warp, and none of another.
                ..plain(if m == 16 { 13 } else { 29 }, 2 * n + 1, dims)
            }
        }
        Class::Pages(rows) => ServingCase {
            dims: in_chunk,
            ..again(Class::WholePages(rows))
        },
        Class::WholePages(rows) => ServingCase {
            cache: Cache::Paged(rows),
            queries: Queries::PackedUsed,
            // Counts among the rows by which the kernel is chosen.
            room: 1,
            causal: Some(CausalAlignment::BottomRight),
            ..sequences(queries - 1, widest)
        },
        Class::HeadsFirst => ServingCase {
            order: CacheOrder::HeadsFirst,
            cache: Cache::PagedStarts(3),
            ..again(Class::WholePages(3))
        },
        Class::Chunked => ServingCase {
            order: CacheOrder::Chunked,
            queries: Queries::DenseUsed,
            ..again(Class::WholePages(16))
        },
        Class::BottomRight => negated(Some(CausalAlignment::BottomRight), None, None),
        Class::TopLeft => negated(Some(CausalAlignment::TopLeft), Some(2), None),
        Class::Window => ServingCase {
            lengths: vec![[queries, 4 * n + 5]],
            ..negated(None, Some(n as u32 + 3), Some(2))
        },
        // Who is in none sees next to nothing.
        Class::Ranges => ServingCase {
            ranges: 4,
            ..negated(None, Some(1), Some(1))
        },
        Class::Everything => ServingCase {
            softcap: Some(2.0),
            alibi: Some(true),
            sink: true,
            bias: Some(Bias {
                element: BiasType::F32,
                whole: [true; 4],
            }),
            mask: Some(MaskCase {
                element: MaskType::Bit,
                whole: [true; 4],
            }),
            ..again(Class::Sequences)
        },
        Class::Broadcast => ServingCase {
            alibi: Some(false),
            bias: Some(Bias {
                element: BiasType::Same,
                whole: [false, true, true, false],
            }),
            mask: Some(MaskCase {
                element: MaskType::Byte,
                whole: [true, false, true, true],
            }),
            wide_out: true,
            ..again(Class::Sequences)
        },
        Class::Sinks => ServingCase {
            sink: true,
            ..again(Class::Sequences)
        },
        Class::Splits => ServingCase {
            splits: Splits::Keys(n),
            ..again(Class::WholePages(16))
        },
        Class::SplitSinks => ServingCase {
            sink: true,
            wide_out: true,
            splits: Splits::Keys(2 * n),
            ..again(Class::Pages(16))
        },
        Class::OutF32 => ServingCase {
            wide_out: true,
            ..again(Class::Whole)
        },
        Class::Large => ServingCase {
            scale: Some(1e4),
            ..again(Class::Whole)
        },
        Class::LargeSequences => ServingCase {
            scale: Some(1e4),
            ..again(Class::Sequences)
        },
        Class::Scales(scales) => ServingCase {
            kv_scales: Some(scales),
            ..again(Class::SequencesApart)
        },
        Class::Hostile(0) => ServingCase {
            hostile: true,
            ..again(Class::Splits)
        },
        Class::Hostile(1) => ServingCase {
            hostile: true,
            cache: Cache::PackedUsed,
            ..again(Class::Pages(16))
        },
        Class::Hostile(_) => ServingCase {
            hostile: true,
            ranges: 2,
            ..again(Class::Pages(3))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case that another kernel computes tests something else.
    #[test]
    fn every_example_is_of_its_kernel_and_a_line() {
        for variant in variants() {
            for class in Class::ALL {
                let Some(case) = case(variant, class) else {
                    assert!(!class.applies(variant));
                    continue;
                };
                let name = case.kernel().unwrap().name;
                assert_eq!(name, variant.name, "{class:?}: {case}");
                assert_eq!(case.to_string().parse(), Ok(case));
            }
        }
    }

    #[test]
    fn the_quick_sweep_has_every_kernel_and_every_class() {
        let quick: Vec<_> = select(true).map(|(_, case)| case).collect();
        for variant in variants() {
            let wanted = case(variant, Class::SequencesApart);
            assert!(quick.iter().any(|it| Some(it) == wanted.as_ref()));
        }
        for class in Class::ALL {
            let mut cases = variants().filter_map(|variant| case(variant, class));
            assert!(cases.any(|it| quick.contains(&it)), "{class:?}");
        }
        assert!(quick.len() * 3 < select(false).count());
    }
}
