//! Cases by chance: proptest strategies, and the runner that makes them the same on every machine.

use std::time::Duration;

use flashtile::{
    Algorithm, Arch, ArchChoice, CausalAlignment, DType, OutDType, ScaleLayout, Scales,
    ScoreModKind, Variant, Window,
};
use flashtile_abi::variants;
use flashtile_verify::{
    Case, Distribution, Placement,
    shrink::shrink,
    sizes,
    sweep::{Dims, dims},
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};

use crate::device::{ALL, CARGO, settings};

/// Largest amount of arithmetic of one case, in multiply-adds over padded tiles. Keeps a case of the
/// emulator below about a second.
const MOST_WORK: u64 = 24 << 20;

/// A number from the environment.
fn environment(name: &str, default: f64) -> f64 {
    match std::env::var(name) {
        Ok(text) => match text.parse() {
            Ok(number) => number,
            Err(_) => panic!("{name}: expected a number, found `{text}`"),
        },
        Err(_) => default,
    }
}

/// Longest search for a smaller case.
const SHRINKING: Duration = Duration::from_secs(60);

/// Runs a property on generated cases, or on the one that `FLASHTILE_TEST_CASE` holds. A failure is shrunk
/// and printed as the command that repeats it.
///
/// # Panics
/// If the property fails.
pub fn for_all(
    cases: u32,
    strategy: impl Strategy<Value = Case>,
    property: impl Fn(&Case) -> Result<(), String>,
) {
    if !repeats(&property) {
        generate(cases, 0, strategy, property);
    }
}

/// [`for_all`] with so many cases of each variant there is.
///
/// # Panics
/// If the property fails.
pub fn for_each_variant(cases: u32, axes: Axes, property: impl Fn(&Case) -> Result<(), String>) {
    if repeats(&property) {
        return;
    }
    for (at, variant) in variants().iter().enumerate() {
        let axes = Axes {
            variant: Some(variant),
            ..axes
        };
        generate(cases, 1 + at as u64, case(axes), &property);
    }
}

/// Tries the property on the case in `FLASHTILE_TEST_CASE`, if there is one.
fn repeats(property: impl Fn(&Case) -> Result<(), String>) -> bool {
    let Ok(text) = std::env::var("FLASHTILE_TEST_CASE") else {
        return false;
    };
    match text.parse().and_then(|case| property(&case)) {
        Ok(()) => true,
        Err(reason) => panic!("{reason}"),
    }
}

/// A runner of so many cases, times `FLASHTILE_TEST_CASES`, that are the same on every machine. Each test has a salt of its own. A failure
/// is shrunk in so many steps.
pub fn runner(cases: u32, salt: u64, shrink_steps: u32) -> TestRunner {
    let factor = environment("FLASHTILE_TEST_CASES", 1.0);
    let config = Config {
        cases: ((f64::from(cases) * factor).ceil() as u32).max(1),
        failure_persistence: None,
        max_shrink_iters: shrink_steps,
        ..Config::default()
    };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&(environment("FLASHTILE_TEST_SEED", 0.0) as u64).to_le_bytes());
    seed[8..16].copy_from_slice(&salt.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// Generates cases from a seed and a salt, and tries the property on them.
fn generate(
    cases: u32,
    salt: u64,
    strategy: impl Strategy<Value = Case>,
    property: impl Fn(&Case) -> Result<(), String>,
) {
    // `shrink` knows better what is simple.
    let mut runner = runner(cases, salt, 0);
    let strategy = strategy.prop_map(Shown);
    let result = runner.run(&strategy, |Shown(case)| {
        property(&case).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, Shown(case))) => {
            let failure = |case: &Case| property(case).err();
            let (smallest, reason) = shrink(case, reason.to_string(), SHRINKING, failure);
            panic!("{reason}\n  {}", repetition(&smallest))
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// The command that tries the property of the test that runs now on one case.
fn repetition(case: &Case) -> String {
    // The test harness names its threads; with one thread only, there is no name.
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main");
    format!(
        "{}FLASHTILE_TEST_CASE='{case}' {CARGO} {}",
        settings(&ALL),
        test.unwrap_or_default()
    )
}

/// A case that proptest prints as its text.
#[derive(Clone)]
struct Shown(Case);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What cases a strategy makes.
#[derive(Clone, Copy, Debug)]
pub struct Axes {
    /// Largest head_dim.
    pub head_dim: usize,
    /// So many more columns than a case has must still be some kernel's of its tier.
    pub spare: usize,
    /// Whether the two head_dims may differ.
    pub mixed_dims: bool,
    /// Whether tensors may have gaps, offsets and orders of their own.
    pub placements: bool,
    /// Whether there may be masks.
    pub masks: bool,
    /// Whether q, k and v may have scales, if their elements are such that have them.
    pub scales: bool,
    /// Algorithms to choose from.
    pub algorithms: &'static [Algorithm],
    /// The variant that all cases are of; its algorithm, tier, dtype and head dimensions are taken then.
    pub variant: Option<&'static Variant>,
}

/// Largest head_dim of every tier and element type.
const COMMON_HEAD_DIM: usize = 256;

impl Axes {
    /// Everything there is.
    pub const ALL: Self = Self {
        head_dim: 512,
        spare: 0,
        mixed_dims: true,
        placements: true,
        masks: true,
        scales: true,
        algorithms: &Algorithm::ALL,
        variant: None,
    };

    /// Small problems, for laws that need several launches.
    pub const SMALL: Self = Self {
        head_dim: 64,
        spare: 0,
        mixed_dims: true,
        placements: false,
        masks: true,
        scales: true,
        algorithms: &Algorithm::ALL,
        variant: None,
    };
}

/// A length in terms of a tile's: `tiles` whole ones and `delta` more, or a number of its own.
#[derive(Clone, Copy, Debug)]
enum Length {
    Tiles { tiles: usize, delta: i32 },
    Plain(usize),
}

impl Length {
    fn resolve(self, block: u32, least: usize) -> usize {
        let length = match self {
            Self::Tiles { tiles, delta } => {
                (tiles * block as usize).saturating_add_signed(delta as isize)
            }
            Self::Plain(length) => length,
        };
        length.max(least)
    }
}

fn length() -> impl Strategy<Value = Length> {
    prop_oneof![
        2 => select(vec![0, 1, 2, 3, 5, 7, 13, 17, 31, 61, 83, 131]).prop_map(Length::Plain),
        3 => (1usize..=3, -1i32..=1).prop_map(|(tiles, delta)| Length::Tiles { tiles, delta }),
        1 => (0usize..200).prop_map(Length::Plain),
    ]
}

/// A head_dim: mostly those of models and their neighbours, any up to the largest.
fn head_dim(largest: usize) -> impl Strategy<Value = usize> {
    let known: Vec<usize> = [
        1, 2, 3, 7, 8, 9, 16, 24, 31, 32, 33, 40, 48, 59, 64, 65, 72, 80, 88, 96, 97, 111, 112,
        127, 128, 129, 160, 176, 191, 192, 193, 224, 249, 255, 256, 264, 320, 511, 512,
    ]
    .into_iter()
    .filter(|&dim| dim <= largest)
    .collect();
    prop_oneof![
        3 => select(vec![32, 64, 64.min(largest)]),
        4 => select(known),
        2 => 1..=largest.min(COMMON_HEAD_DIM),
    ]
}

fn placement(dtype: DType, is_input: bool) -> impl Strategy<Value = Placement> {
    let aligned = 16 / dtype.bytes() as usize;
    let gap = prop_oneof![
        3 => Just(0),
        1 => Just(aligned),
        1 => Just(1usize),
        1 => 0usize..12,
    ];
    let offset = prop_oneof![3 => Just(0), 1 => Just(aligned), 1 => Just(1usize), 1 => 0usize..9];
    let rarely = || prop::bool::weighted(0.1);
    (any::<bool>(), gap, offset, rarely(), rarely()).prop_map(
        move |(heads_first, pad, offset, backwards, broadcast)| Placement {
            heads_first,
            pad,
            offset,
            backwards,
            broadcast: broadcast && is_input,
        },
    )
}

fn placements(dtype: DType, any: bool) -> BoxedStrategy<[Placement; 4]> {
    let none = Just([Placement::default(); 4]);
    if !any {
        return none.boxed();
    }
    let input = || placement(dtype, true);
    let arbitrary = (input(), input(), input(), placement(dtype, false)).prop_map(<[_; 4]>::from);
    prop_oneof![1 => none, 2 => arbitrary].boxed()
}

type Mask = (Option<CausalAlignment>, Window);

fn mask(any: bool) -> BoxedStrategy<Mask> {
    let none = Just((None, Window::default()));
    if !any {
        return none.boxed();
    }
    let alignment = select(vec![CausalAlignment::BottomRight, CausalAlignment::TopLeft]);
    let side = || {
        prop_oneof![
            1 => Just(None),
            1 => Just(Some(0)),
            1 => select(vec![15, 16, 17, 31, 32, 33, 63, 64, 65]).prop_map(Some),
            2 => (0u32..150).prop_map(Some),
            1 => Just(Some(u32::MAX)),
        ]
    };
    let causal = alignment.clone().prop_map(|a| (Some(a), Window::default()));
    let window = (side(), side()).prop_map(|(left, right)| (None, Window { left, right }));
    let crossed = (alignment, side(), prop::bool::ANY).prop_map(|(a, left, zero)| {
        let right = zero.then_some(0);
        (Some(a), Window { left, right })
    });
    prop_oneof![2 => none, 2 => causal, 2 => window, 2 => crossed].boxed()
}

fn heads() -> impl Strategy<Value = [usize; 2]> {
    // (query heads for each key/value head, key/value heads)
    select(vec![
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 1),
        (4, 1),
        (2, 2),
        (1, 3),
        (7, 1),
        (3, 2),
        (5, 1),
        (8, 1),
        (12, 1),
        (16, 1),
    ])
    .prop_map(|(ratio, kv)| [ratio * kv, kv])
}

fn scale() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![
        4 => Just(None),
        1 => select(vec![0.0, -0.0, 1.0, -1.0, 0.05, 1e-40]).prop_map(Some),
        1 => (-1.5f32..1.5).prop_map(Some),
    ]
}

fn softcap() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![
        3 => Just(None),
        1 => select(vec![0.5, 2.0, 15.0, 30.0, 50.0]).prop_map(Some),
    ]
}

fn data() -> impl Strategy<Value = Distribution> {
    prop_oneof![
        4 => Just(Distribution::Normal),
        3 => select(Distribution::ALL.to_vec()),
    ]
}

/// Element types of the output of such inputs.
fn outputs(dtype: DType) -> impl Strategy<Value = OutDType> {
    let kinds = match dtype {
        DType::E4m3 => vec![OutDType::Same, OutDType::F32, OutDType::F16, OutDType::Bf16],
        _ => vec![OutDType::Same, OutDType::F32],
    };
    select(kinds)
}

/// How many scales q, k and v have.
fn scales(dtype: DType, any: bool) -> BoxedStrategy<Scales> {
    let none = Just(Scales::default());
    if dtype != DType::E4m3 || !any {
        return none.boxed();
    }
    let layout = || {
        prop_oneof![
            1 => Just(ScaleLayout::One),
            1 => Just(ScaleLayout::PerTensor),
            1 => Just(ScaleLayout::PerHead),
            2 => (7u32..10).prop_map(|power| ScaleLayout::PerBlock { rows: 1 << power }),
        ]
    };
    let any = (layout(), layout(), layout()).prop_map(|(q, k, v)| Scales { q, k, v });
    prop_oneof![1 => none, 3 => any].boxed()
}

/// Head dimensions of queries and keys, and of values: mostly the same.
fn dims_of_models(axes: Axes) -> impl Strategy<Value = (usize, usize)> {
    let dim = || head_dim(axes.head_dim);
    (dim(), dim(), 0..3u32).prop_map(
        move |(qk, v, differ)| match axes.mixed_dims && differ == 0 {
            true => (qk, v),
            false => (qk, qk),
        },
    )
}

/// Head dimensions for which the variant is chosen.
fn dims_of(variant: &Variant, axes: Axes) -> impl Strategy<Value = (usize, usize)> + use<> {
    // The least of either for which the variant is chosen whatever the other one is.
    let (least_qk, least_v) = dims(variant, Dims::NarrowValues);
    let of_tier = variants().iter().filter(|other| {
        (other.arch, other.algorithm, other.tile.dtype)
            == (variant.arch, variant.algorithm, variant.tile.dtype)
    });
    let widest = of_tier.map(|other| other.tile.head_dim_qk as usize).max();
    let largest = axes.head_dim.min(widest.unwrap_or_default() - axes.spare);
    let whole = 16 / variant.tile.dtype.bytes() as usize;
    let between = |least: usize, most: u32| {
        let most = (most as usize).min(largest);
        // Rows of whole 16 bytes more often than not.
        prop_oneof![
            2 => Just(most),
            1 => Just((most - most % whole).max(least)),
            2 => least..=most,
        ]
    };
    let tile = &variant.tile;
    (
        between(least_qk, tile.head_dim_qk),
        between(least_v, tile.head_dim_v),
    )
}

/// Cases of all kinds.
pub fn case(axes: Axes) -> BoxedStrategy<Case> {
    if let Some(variant) = axes.variant {
        return of_variant(axes, variant).boxed();
    }
    let fitting = variants().iter().filter(move |variant| {
        let widest = variant.tile.head_dim_qk.max(variant.tile.head_dim_v) as usize;
        axes.algorithms.contains(&variant.algorithm) && widest <= axes.head_dim
    });
    let fitting = select(fitting.collect::<Vec<_>>());
    prop_oneof![
        2 => of_models(axes),
        1 => fitting.prop_flat_map(move |variant| of_variant(axes, variant)),
    ]
    .boxed()
}

/// Cases of a variant.
fn of_variant(axes: Axes, variant: &'static Variant) -> impl Strategy<Value = Case> {
    let arch = match variant.arch {
        Arch::Sm80 => ArchChoice::Sm80,
        Arch::Sm90a => ArchChoice::Sm90a,
    };
    let kernel = Just((variant.tile.dtype, variant.algorithm, arch));
    let cases = unsized_case(axes, kernel.boxed(), dims_of(variant, axes).boxed());
    cases.prop_map(move |(mut case, q, k)| {
        fit(&mut case, variant);
        if variant.arch == Arch::Sm90a {
            case = case.addressable();
        }
        resolve(case, q, k)
    })
}

/// Cases of the head dimensions of models, for whatever kernel there is.
fn of_models(axes: Axes) -> impl Strategy<Value = Case> {
    let mut kinds: Vec<(DType, Algorithm)> = Vec::new();
    for variant in variants() {
        let kind = (variant.tile.dtype, variant.algorithm);
        if axes.algorithms.contains(&kind.1) && !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let tiers = prop_oneof![
        2 => Just(ArchChoice::Auto),
        1 => Just(ArchChoice::Sm80),
        1 => Just(ArchChoice::Sm90a),
    ];
    let kernel =
        (select(kinds), tiers).prop_map(|((dtype, algorithm), arch)| (dtype, algorithm, arch));
    let cases = unsized_case(axes, kernel.boxed(), dims_of_models(axes).boxed());
    cases.prop_map(move |(mut case, q, k)| {
        // Of 8-bit elements there are no kernels that need no copy engine.
        let always_addressable = case.dtype == DType::E4m3;
        if always_addressable || case.arch == ArchChoice::Sm90a && axes.placements {
            case = case.addressable();
        }
        let sized = resolve(case, q, k);
        if sized.planned().is_ok() {
            return sized;
        }
        // What the tier has not; then what no other has.
        case.arch = ArchChoice::Auto;
        let sized = resolve(case, q, k);
        if sized.planned().is_ok() {
            return sized;
        }
        let s = &mut case.shape;
        s.head_dim_qk = s.head_dim_qk.min(COMMON_HEAD_DIM);
        s.head_dim_v = s.head_dim_v.min(COMMON_HEAD_DIM);
        if always_addressable {
            case = case.addressable();
        }
        resolve(case, q, k)
    })
}

/// Cases without lengths, and the lengths in terms of their tiles.
fn unsized_case(
    axes: Axes,
    kernel: BoxedStrategy<(DType, Algorithm, ArchChoice)>,
    dims: BoxedStrategy<(usize, usize)>,
) -> impl Strategy<Value = (Case, Length, Length)> {
    let shape = (1usize..=2, length(), length(), heads(), dims);
    let softmax = (scale(), softcap(), data());
    (kernel, shape, mask(axes.masks), softmax, any::<u32>())
        .prop_flat_map(move |(kernel, shape, mask, softmax, seed)| {
            let dtype = kernel.0;
            let places = placements(dtype, axes.placements);
            let elements = (outputs(dtype), scales(dtype, axes.scales));
            (Just((kernel, shape, mask, softmax, seed)), places, elements)
        })
        .prop_map(
            |((kernel, shape, mask, softmax, seed), placements, elements)| {
                let (dtype, algorithm, arch) = kernel;
                let (batch, q, k, heads, (head_dim_qk, head_dim_v)) = shape;
                let (scale, softcap, data) = softmax;
                let (out_dtype, scales) = elements;
                let mut case = Case {
                    out_dtype,
                    scales,
                    scale,
                    softcap,
                    causal: mask.0,
                    window: mask.1,
                    placements,
                    ..Case::new(dtype, sizes(1, 1, heads, head_dim_qk))
                }
                .algorithm(algorithm)
                .arch(arch)
                .data(data, seed.into());
                case.shape.batch = batch;
                case.shape.head_dim_v = head_dim_v;
                (case, q, k)
            },
        )
}

/// The case with lengths, as far as it does not take too long; as it is, if it has no kernel.
fn resolve(mut case: Case, q: Length, k: Length) -> Case {
    if let Ok(variant) = case.planned() {
        case.shape.seqlen_q = q.resolve(variant.tile.block_m, 1);
        case.shape.seqlen_k = k.resolve(variant.tile.block_n, 0);
    }
    match case.planned() {
        Ok(variant) => within(case, variant),
        Err(_) => case,
    }
}

/// Makes a case of the variant's head dimensions one that it caps, or does not.
fn fit(case: &mut Case, variant: &Variant) {
    match variant.score_mod {
        ScoreModKind::None => case.softcap = None,
        ScoreModKind::OptionalSoftcap => {}
        ScoreModKind::Softcap => {
            case.softcap = case.softcap.or(Some(20.0));
            // Scores next to 0 are not capped, so another kernel computes them.
            case.scale = case.scale.filter(|scale| scale.abs() > 1e-6);
        }
    }
}

/// The same case, smaller where the kernel would take too long.
fn within(mut case: Case, variant: &Variant) -> Case {
    let tile = &variant.tile;
    let work = |case: &Case| {
        let s = &case.shape;
        let padded = |n: usize, block: u32| (n as u64).next_multiple_of(u64::from(block));
        let scores = padded(s.seqlen_q, tile.block_m) * padded(s.seqlen_k, tile.block_n);
        // Three tf32 products each.
        let products = if case.dtype == DType::F32 { 3 } else { 1 };
        let dims = u64::from(tile.head_dim_qk + tile.head_dim_v) * products;
        (s.batch * s.heads_q) as u64 * scores * dims
    };
    while work(&case) > MOST_WORK {
        let s = &mut case.shape;
        if s.batch > 1 {
            s.batch = 1;
        } else if s.heads_kv > 1 {
            (s.heads_q, s.heads_kv) = (s.heads_q / s.heads_kv, 1);
        } else if s.heads_q > 2 {
            s.heads_q = 2;
        } else if s.seqlen_q > tile.block_m as usize + 1 {
            s.seqlen_q -= tile.block_m as usize;
        } else if s.seqlen_k > 2 * tile.block_n as usize + 1 {
            s.seqlen_k -= tile.block_n as usize;
        } else {
            break;
        }
    }
    case
}
