//! A case for each class, for any variant.

use flashtile::{Arch, ArchChoice, CausalAlignment, DType, OutDType, ScaleLayout, Scales, Variant};

use super::class::{Class, Dims, Lie, Queries, Score, Sides, Work, is_prime};
use crate::{case::Case, data::Distribution};

/// A variant's case of a class; `None` if the class does not apply to it.
pub fn case(variant: &'static Variant, class: Class) -> Option<Case> {
    class.applies(variant).then(|| {
        let at = Class::all().iter().position(|other| *other == class);
        example(variant, class, at.unwrap_or_default())
    })
}

/// Head dimensions (of queries and keys, of values) for which the variant is chosen.
pub fn dims(variant: &Variant, dims: Dims) -> (usize, usize) {
    let tile = &variant.tile;
    let widest = (tile.head_dim_qk as usize, tile.head_dim_v as usize);
    let chosen = |qk: usize, v: usize| {
        let mut case = Case::of_variant(variant, 1, 1);
        (case.shape.head_dim_qk, case.shape.head_dim_v) = (qk, v);
        let planned = case.addressable().planned();
        planned.is_ok_and(|found| found.name == variant.name)
    };
    // From the least to the widest, all are the variant's.
    let least_qk = |v| least(widest.0, |qk| chosen(qk, v));
    let least_v = |qk| least(widest.1, |v| chosen(qk, v));
    match dims {
        Dims::Widest => widest,
        Dims::NarrowQueries => {
            let qk = least_qk(widest.1);
            (qk, least_v(qk))
        }
        Dims::NarrowValues => {
            let v = least_v(widest.0);
            (least_qk(v), v)
        }
        // Tiles' dimensions are multiples of 32.
        Dims::Ragged => match variant.arch {
            Arch::Sm80 => (widest.0 - 3, widest.1 - 5),
            Arch::Sm90a => (widest.0 - 8, widest.1 - 24),
        },
        Dims::Padded => (widest.0 - 3, widest.1 - 5),
    }
}

/// The least number from 1 on that is right, if all from it to the largest are.
fn least(largest: usize, is_right: impl Fn(usize) -> bool) -> usize {
    let (mut wrong, mut right) = (0, largest);
    while right - wrong > 1 {
        let middle = wrong.midpoint(right);
        *(if is_right(middle) {
            &mut right
        } else {
            &mut wrong
        }) = middle;
    }
    right
}

/// A case of a class that applies; `at` varies what the class leaves open.
fn example(variant: &Variant, class: Class, at: usize) -> Case {
    let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
    let plain = |q, k| Case::of_variant(variant, q, k);
    // A block of queries and a part of one; two tiles of keys and a part of one.
    let ordinary = || plain(block_m + 5, 2 * block_n + 3);
    let mut case = match class {
        Class::Edges { q, k } => {
            let case = plain(q.of(variant.tile.block_m), k.of(variant.tile.block_n));
            match at % 2 {
                0 => case,
                _ => case.causal(CausalAlignment::BottomRight),
            }
        }
        Class::Mask {
            causal,
            sides,
            queries,
        } => {
            let (q, k) = match queries {
                Queries::Fewer => (block_m / 2 + 5, block_m / 2 + 2 * block_n + 9),
                Queries::AsMany => (block_m + 3, block_m + 3),
                Queries::More => (block_m + block_n + 9, block_n + 5),
            };
            let mut case = plain(q, k);
            case.causal = causal;
            // A window's edges cut tiles, and leave whole ones on either side.
            let (left, right) = (Some(block_n as u32 / 2 + 3), Some(block_n as u32 / 4 + 1));
            match sides {
                Sides::None => case,
                Sides::Left => case.window(left, None),
                Sides::Right => case.window(None, right),
                Sides::Both => case.window(left, right),
            }
        }
        Class::Ratio(ratio) => {
            let mut case = plain(3, block_n + 1);
            // Several groups where they are small, so that both numbers count.
            case.shape.heads_kv = if ratio < 8 { 2 } else { 1 };
            case.shape.heads_q = ratio * case.shape.heads_kv;
            case
        }
        Class::Groups => {
            let mut case = plain(19, block_n + 5).causal(CausalAlignment::BottomRight);
            (case.shape.batch, case.shape.heads_q, case.shape.heads_kv) = (2, 6, 2);
            case
        }
        Class::Data(data) => ordinary().data(data, 0),
        Class::PoisonBefore => plain(5, 3 * block_n + 1).window(Some(2), Some(0)),
        Class::PoisonBehind => plain(5, 3 * block_n + 1).causal(CausalAlignment::TopLeft),
        Class::Primes => plain(prime_after(block_m), prime_after(2 * block_n)),
        Class::ManyTiles => plain(2, 8 * block_n + 7),
        Class::Dims(_) | Class::OutF32 | Class::OutF16 => ordinary(),
        // The tensor is longer than the longest block of rows.
        Class::Scales(0, layout) => scaled(plain(270, block_n + 5), 0, layout),
        Class::Scales(tensor, layout) => scaled(plain(19, 270), tensor, layout),
        Class::Memory(tensor, lie) => in_memory(plain(21, block_n + 9), tensor, lie),
        Class::Fallback(tensor, lie) => {
            in_memory(plain(21, block_n + 9), tensor, lie).arch(ArchChoice::Auto)
        }
        Class::FallbackRows => ordinary().arch(ArchChoice::Auto),
        Class::Work(work) => shared_out(variant, work),
        Class::Score(score) => {
            let case = ordinary();
            match score {
                Score::NegativeScale => case.scale(-0.2),
                Score::ZeroScale => case.scale(0.0),
                Score::Capped => case.softcap(2.0),
                Score::Uncapped => case,
            }
        }
    };
    case.poison = matches!(class, Class::PoisonBefore | Class::PoisonBehind);
    match class {
        Class::OutF32 => case.out_dtype = OutDType::F32,
        Class::OutF16 => case.out_dtype = OutDType::F16,
        _ => {}
    }
    if case.dtype == DType::E4m3 && !matches!(class, Class::Scales(..)) {
        let kinds = [
            ScaleLayout::One,
            ScaleLayout::PerTensor,
            ScaleLayout::PerHead,
            ScaleLayout::PerBlock { rows: 128 },
        ];
        case.scales = Scales::all(kinds[at % 4]);
    }
    let chosen = match class {
        Class::Dims(dims) => dims,
        // Gaps that keep rows aligned need rows that are.
        Class::Memory(..) | Class::Fallback(..) => Dims::Widest,
        // As many sections as were chosen for them.
        Class::Work(Work::Sections) => Dims::Widest,
        Class::FallbackRows => Dims::Ragged,
        // Both ways to copy rows, where the class does not care.
        _ if at % 3 == 1 => Dims::Ragged,
        _ => Dims::Widest,
    };
    (case.shape.head_dim_qk, case.shape.head_dim_v) = dims(variant, chosen);
    if variant.arch == Arch::Sm90a || class == Class::Dims(Dims::Padded) {
        case = case.addressable();
    }
    if case.data == Distribution::Normal && at % 5 == 4 {
        // Scores far apart tell a wrong maximum from a right one.
        case.data = Distribution::Peaked;
    }
    case.seed = at as u64;
    case
}

/// Pieces of work of a kernel of the sm_90a tier.
fn shared_out(variant: &Variant, work: Work) -> Case {
    let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
    let with_heads =
        |q, k, [queries, keys]: [usize; 2]| Case::of_variant(variant, q, k).heads(queries, keys);
    match work {
        Work::Packed { causal } => {
            // Four heads, whose rows are a tile and a part of one.
            let case = with_heads(block_m / 4 + 5, block_n + 11, [8, 2]);
            match causal {
                true => case.causal(CausalAlignment::BottomRight),
                false => case,
            }
        }
        Work::Pairs => with_heads(3 * block_m + 7, 2 * block_n + 3, [3, 3]),
        // The emulator has 4 multiprocessors.
        Work::Rounds => with_heads(5, block_n + 3, [11, 11]),
        Work::Empty => with_heads(2 * block_m + block_n + 9, block_n + 5, [3, 3])
            .causal(CausalAlignment::BottomRight),
        Work::Sections => {
            let keys = (1..2 * block_n).rev();
            let mut cases = keys.map(|keys| with_heads(3, keys, [5, 5]));
            let found = cases.find(|case| case.plan().is_ok_and(|plan| work.holds(case, &plan)));
            found.unwrap_or(Case::of_variant(variant, 3, 1))
        }
    }
}

/// The case with one tensor's scales as asked.
fn scaled(mut case: Case, tensor: usize, layout: ScaleLayout) -> Case {
    (case.shape.batch, case.shape.heads_q, case.shape.heads_kv) = (2, 4, 2);
    let other = match layout {
        ScaleLayout::PerHead => ScaleLayout::PerTensor,
        _ => ScaleLayout::PerHead,
    };
    case.scales = Scales::all(other);
    let Scales { q, k, v } = &mut case.scales;
    *[q, k, v][tensor] = layout;
    case
}

/// The case with one tensor lying as asked.
fn in_memory(mut case: Case, tensor: usize, lie: Lie) -> Case {
    (case.shape.batch, case.shape.heads_q, case.shape.heads_kv) = (2, 4, 2);
    let aligned = 16 / case.element(tensor).bytes() as usize;
    let placement = &mut case.placements[tensor];
    match lie {
        Lie::Unaligned => placement.offset = 1,
        Lie::Gaps => placement.pad = aligned,
        Lie::OddGaps => placement.pad = 3,
        Lie::HeadsFirst => placement.heads_first = true,
        Lie::Backwards => placement.backwards = true,
        Lie::Broadcast => placement.broadcast = true,
    }
    case
}

fn prime_after(n: usize) -> usize {
    // There is one before 2 n (Bertrand).
    (n + 1..).find(|&p| is_prime(p)).unwrap_or(n)
}
