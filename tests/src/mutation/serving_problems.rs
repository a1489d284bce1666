//! The problems of inference engines that a mutant has to survive: the sweep's, and some that no case can say.

use flashtile::{
    Arch, ArchChoice, DType, ServingVariant,
    serving::{BiasType, MaskType},
};

use crate::serving::{
    Bias, Cache, MaskCase, ServingCase,
    sweep::{Class, case, of_variant},
};

/// One problem: a case, and what is special about it.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What is computed, on which data.
    pub case: ServingCase,
    /// Whether the log-sum-exp is wanted.
    pub lse: bool,
    /// Whether each row is an allocation of its own, so that nothing beyond it can be read.
    pub rows_apart: bool,
    /// Whether tensors begin at an address that is no multiple of 16 bytes.
    pub unaligned: bool,
    /// The first query is so many times as large.
    pub spoilt: Option<f32>,
}

impl Problem {
    /// Most bytes before a tensor.
    pub const OFFSET: usize = 4;

    /// Nothing special.
    pub fn of(case: ServingCase) -> Self {
        Self {
            case,
            lse: true,
            rows_apart: false,
            unaligned: false,
            spoilt: None,
        }
    }

    /// Bytes before a tensor: one element.
    pub fn offset(&self, dtype: DType) -> usize {
        match self.unaligned {
            true => dtype.bytes() as usize,
            false => 0,
        }
    }
}

/// The problems of a variant. The first is the one that most mutants fail.
pub fn problems(variant: &'static ServingVariant) -> Vec<Problem> {
    let of = |class| case(variant, class).map(Problem::of);
    let mut problems: Vec<_> = of(Class::Whole).into_iter().collect();
    if let Some(narrow) = case(variant, Class::Narrow) {
        problems.extend(lonely(&narrow));
    }
    let rest = of_variant(variant).map(Problem::of);
    problems.extend(rest.filter(|it| Some(&it.case) != case(variant, Class::Whole).as_ref()));
    problems.extend(of(Class::Whole).map(|problem| Problem {
        spoilt: Some(1e4),
        ..problem
    }));
    problems.extend(of(Class::Whole).map(|problem| Problem {
        unaligned: true,
        ..problem
    }));
    problems.extend(of(Class::LargeSequences).map(|problem| Problem {
        lse: false,
        ..problem
    }));
    // The first tile of a walk has code of its own there, and few keys in the problems above. And producers must get so far ahead of consumers
    // that they wait for room for values, too: these have much to do with each tile, and producers little.
    if variant.arch == Arch::Sm90a {
        let types = [
            (BiasType::Same, MaskType::Byte),
            (BiasType::F32, MaskType::Bit),
        ];
        let whole = case(variant, Class::Whole).into_iter();
        problems.extend(whole.flat_map(|mut case| {
            let [queries, keys] = case.lengths[0];
            let more = 2 * variant.tile.block_n as usize;
            case.lengths.push([queries, keys + more]);
            types.map(|(bias, mask)| Problem::of(with_pairs(&case, bias, mask)))
        }));
    }
    // Computed a second time, from tensors as the first time.
    let twice = [
        Class::SequencesApart,
        Class::WholeApart,
        Class::Pages(3),
        Class::WholePages(1),
        Class::WholePages(16),
        Class::Chunked,
    ];
    for class in twice {
        problems.extend(of(class).map(|mut problem| {
            problem.case.scale = Some(1e4);
            problem
        }));
    }
    // Other numbers that are anything.
    for seed in 2..6 {
        problems.extend(of(Class::Hostile(seed % 3)).map(|mut problem| {
            problem.case.seed = seed as u64;
            problem
        }));
    }
    problems
}

/// Something is added to the score of each pair, or hides it.
fn with_pairs(case: &ServingCase, bias: BiasType, mask: MaskType) -> ServingCase {
    ServingCase {
        bias: Some(Bias {
            element: bias,
            whole: [true; 4],
        }),
        mask: Some(MaskCase {
            element: mask,
            whole: [true; 4],
        }),
        room: 0,
        ..case.clone()
    }
}

/// Rows that are allocations of their own: a read or a write past one is a fault.
fn lonely(narrow: &ServingCase) -> Vec<Problem> {
    // All rows of a warp, or so few that some lanes have none.
    let [queries, keys] = narrow.lengths[0];
    let few = ServingCase {
        lengths: vec![[if queries < 16 { 3 } else { 17 }, keys]],
        ..narrow.clone()
    };
    let mut problems = Vec::new();
    for case in [narrow, &few] {
        let wide = ServingCase {
            wide_out: true,
            ..case.clone()
        };
        problems.extend([
            case.clone(),
            wide,
            with_pairs(case, BiasType::Same, MaskType::Byte),
            with_pairs(case, BiasType::F32, MaskType::Bit),
        ]);
    }
    let apart = |case| Problem {
        rows_apart: true,
        ..Problem::of(case)
    };
    let mut problems: Vec<_> = problems.into_iter().map(apart).collect();
    let large = |case: &ServingCase| ServingCase {
        scale: Some(1e4),
        ..case.clone()
    };
    // Rows that do not exist would be read where there is no page.
    let paged = ServingCase {
        cache: Cache::Paged(2),
        ..narrow.clone()
    };
    // The other way round: keys of a single element.
    let [qk, v] = narrow.dims;
    let turned = ServingCase {
        dims: [v, qk],
        ..narrow.clone()
    };
    // There, rows of whole pieces of 16 bytes are copied in another way, though some pieces are missing; and a walk's first and last tile
    // have code of their own, which a single one meets.
    if narrow.arch == ArchChoice::Sm90a {
        for case in [narrow, &paged] {
            let pieces = ServingCase {
                dims: case.dims.map(|dim| dim.next_multiple_of(8) + 8),
                ..case.clone()
            };
            let single = |case: &ServingCase| ServingCase {
                lengths: vec![[queries, 5]],
                ..case.clone()
            };
            problems.extend([pieces.clone(), single(&pieces), single(case)].map(apart));
        }
    }
    let mut alone = vec![narrow.clone(), paged.clone()];
    // So would pages that are none.
    let words = ServingCase {
        dims: narrow.dims.map(|dim| dim + 3),
        ..paged
    };
    for seed in 0..3 {
        alone.push(ServingCase {
            hostile: true,
            seed,
            ..words.clone()
        });
    }
    alone.push(words);
    if !narrow.latent && qk <= 256 && qk != 129 && qk != v {
        alone.push(turned);
    }
    for case in alone {
        for case in [large(&case), case] {
            problems.push(apart(case.clone()));
            problems.push(Problem {
                unaligned: true,
                ..apart(case)
            });
        }
    }
    problems
}
