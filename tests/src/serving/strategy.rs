//! Cases by chance.

use flashtile::{
    ArchChoice, CausalAlignment, DType, Window,
    serving::{BiasType, CacheScales, MaskType, Splits},
};
use proptest::{prelude::*, sample::select, test_runner::TestError};

use super::{Bias, Cache, CacheOrder, MaskCase, Queries, ServingCase};
use crate::generate::runner;

/// What cases may have.
#[derive(Clone, Copy, Debug)]
pub struct Axes {
    /// Most queries of a sequence.
    pub queries: usize,
    /// Most keys of a sequence.
    pub keys: usize,
    /// Largest head dimension.
    pub head_dim: usize,
}

impl Axes {
    /// Few queries: the kernels whose warps share the keys.
    pub const DECODE: Self = Self {
        queries: 3,
        keys: 300,
        head_dim: 256,
    };
    /// Many.
    pub const PREFILL: Self = Self {
        queries: 70,
        keys: 150,
        head_dim: 256,
    };
    /// Little work.
    pub const SMALL: Self = Self {
        queries: 20,
        keys: 80,
        head_dim: 40,
    };
}

/// Runs a property on generated cases. A failure is shrunk, and printed.
///
/// # Panics
/// If the property fails.
pub fn for_all<T: std::fmt::Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    property: impl Fn(&T) -> Result<(), String>,
) {
    let mut runner = runner(cases, 1 << 32, 60);
    let result = runner.run(&strategy, |case| {
        property(&case).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

fn maybe<T: std::fmt::Debug + Clone + 'static>(
    one_in: u32,
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Option<T>> {
    prop_oneof![(one_in - 1) => Just(None), 1 => strategy.prop_map(Some)].boxed()
}

fn dims(most: usize) -> impl Strategy<Value = [usize; 2]> {
    let dim = move || {
        let named: Vec<usize> = [8, 64, 96, 128, 192, 256]
            .into_iter()
            .filter(|&dim| dim <= most)
            .collect();
        prop_oneof![3 => select(named), 1 => 1..=most.min(40), 1 => 1..=most]
    };
    prop_oneof![3 => dim().prop_map(|dim| [dim; 2]), 1 => [dim(), dim()]]
}

/// Head dimensions where values are elements of keys.
fn latent_dims(axes: Axes) -> BoxedStrategy<[usize; 2]> {
    let small = (1..=axes.head_dim).prop_flat_map(|qk| (Just(qk), 1..=qk));
    if axes.head_dim <= 64 {
        return small.prop_map(|(qk, v)| [qk, v]).boxed();
    }
    let large = (257..=576usize).prop_flat_map(|qk| (Just(qk), 1..=qk.min(512)));
    prop_oneof![
        3 => Just((576, 512)),
        1 => large,
        1 => small,
    ]
    .prop_map(|(qk, v)| [qk, v])
    .boxed()
}

fn lengths(axes: Axes) -> impl Strategy<Value = Vec<[usize; 2]>> {
    let queries = prop_oneof![1 => Just(0), 3 => Just(1), 4 => 0..=axes.queries];
    let keys = prop_oneof![1 => Just(0), 1 => 1..=3usize, 5 => 0..=axes.keys];
    prop::collection::vec((queries, keys).prop_map(|(q, k)| [q, k]), 1..=4)
}

fn cache() -> impl Strategy<Value = Cache> {
    let page = || select(vec![1usize, 2, 3, 16, 32, 64, 100]);
    prop_oneof![
        1 => Just(Cache::Dense),
        1 => Just(Cache::DenseUsed),
        1 => Just(Cache::Packed),
        1 => Just(Cache::PackedUsed),
        3 => page().prop_map(Cache::Paged),
        1 => page().prop_map(Cache::PagedStarts),
    ]
}

/// A case.
pub fn case(axes: Axes) -> impl Strategy<Value = ServingCase> {
    let tensors = (
        select(vec![DType::F16, DType::Bf16]),
        prop::bool::weighted(0.2),
        1..=2usize,
        select(vec![1usize, 2, 3, 4, 7, 8]),
        dims(axes.head_dim),
        lengths(axes),
        prop_oneof![Just(0usize), 0..5usize],
        select(vec![
            Queries::Dense,
            Queries::DenseUsed,
            Queries::Packed,
            Queries::PackedUsed,
        ]),
        (
            cache(),
            select(vec![
                CacheOrder::RowsFirst,
                CacheOrder::HeadsFirst,
                CacheOrder::Chunked,
            ]),
        ),
        select(vec![0usize, 0, 8, 3]),
    );
    let bound = || prop_oneof![0..10u32, 0..200u32];
    let alignment = select(vec![CausalAlignment::BottomRight, CausalAlignment::TopLeft]);
    let masks = (
        prop_oneof![1 => Just(None), 1 => alignment.prop_map(Some)],
        maybe(3, bound()),
        maybe(3, bound()),
        maybe(4, select(vec![0.3f32, -0.2, 0.0, 1.0])),
        maybe(5, select(vec![5.0f32, 0.7])),
        maybe(5, any::<bool>()),
        prop::bool::weighted(0.25),
        maybe(
            5,
            (
                select(vec![BiasType::Same, BiasType::F32]),
                any::<[bool; 4]>(),
            ),
        ),
        maybe(
            4,
            (
                select(vec![MaskType::Byte, MaskType::Bit]),
                any::<[bool; 4]>(),
            ),
        ),
        prop_oneof![5 => Just(0usize), 1 => 1..=3usize],
    );
    let kv_scales = maybe(
        3,
        select(vec![
            CacheScales::None,
            CacheScales::PerTensor,
            CacheScales::PerHead,
            CacheScales::PerSequence,
        ]),
    );
    let splits = prop_oneof![
        Just(Splits::Auto),
        Just(Splits::One),
        (1..200usize).prop_map(Splits::Keys),
    ];
    let spread = prop_oneof![4 => Just(1.0f32), 1 => Just(10.0)];
    let latent = maybe(4, latent_dims(axes));
    let arch = prop_oneof![2 => Just(ArchChoice::Auto), 1 => Just(ArchChoice::Sm80)];
    let rest = (kv_scales, splits, spread, any::<u64>(), latent, arch);
    (tensors, masks, rest).prop_map(|(tensors, masks, rest)| {
        let (kv_scales, splits, spread, seed, latent, arch) = rest;
        let (dtype, wide_out, heads_kv, q_per_kv, dims, lengths, room, queries, place, gap) =
            tensors;
        let (latent, dims) = latent.map_or((false, dims), |dims| (true, dims));
        // The wide kernels know no 8-bit keys.
        let kv_scales = kv_scales.filter(|_| dims[0] <= 256);
        let (causal, left, right, scale, softcap, alibi, sink, bias, mask, ranges) = masks;
        ServingCase {
            dtype,
            kv_scales,
            wide_out,
            heads_kv,
            q_per_kv,
            dims,
            latent,
            lengths,
            room,
            queries,
            cache: place.0,
            order: place.1,
            gap,
            causal,
            window: Window { left, right },
            scale,
            softcap,
            alibi,
            sink,
            bias: bias.map(|(element, whole)| Bias { element, whole }),
            mask: mask.map(|(element, mut whole)| {
                // Bits are one for each key.
                whole[3] |= element == MaskType::Bit;
                MaskCase { element, whole }
            }),
            ranges,
            splits,
            arch,
            spread,
            seed,
            first: 0,
            hostile: false,
        }
    })
}
