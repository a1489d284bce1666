//! The sm_90a tier: when it is chosen, what stands in its way, and what its launches are told.

use flashtile_abi::hopper::{MOST_PIECES, SM90_SHARED_CAPACITY};

use super::*;
use crate::{device::TensorMapSpec, plan::hopper::tensor_maps};

/// 16-bit elements that the copy engine's 16 bytes hold.
const CHUNK: i64 = 8;

fn names(problem: &Problem) -> (&'static str, bool) {
    let plan = problem.plan(&hopper()).unwrap();
    (plan.variant().name, plan.obstacle().is_some())
}

#[test]
fn the_smallest_kernel_of_the_tier_is_chosen() {
    let table = [
        (8, 8, None, "fused_f16_d64_sm90a"),
        (64, 64, None, "fused_f16_d64_sm90a"),
        (64, 72, None, "fused_f16_d96_sm90a"),
        (72, 8, None, "fused_f16_d96_sm90a"),
        (104, 128, None, "fused_f16_d128_sm90a"),
        (136, 128, None, "fused_f16_d192x128_sm90a"),
        (72, 136, None, "fused_f16_d192_sm90a"),
        (200, 8, None, "fused_f16_d256_sm90a"),
        (64, 136, None, "fused_f16_d64x256_sm90a"),
        (64, 264, None, "fused_f16_d64x512_sm90a"),
        (72, 264, None, "fused_f16_d512_sm90a"),
        (264, 8, None, "fused_f16_d512_sm90a"),
        (512, 512, None, "fused_f16_d512_sm90a"),
        (192, 128, Some(30.0), "fused_f16_d192x128_softcap_sm90a"),
    ];
    for (head_dim_qk, head_dim_v, softcap, name) in table {
        let mut problem = Problem::contiguous(DType::F16, shape(head_dim_qk, head_dim_v));
        problem.softcap = softcap;
        assert_eq!(names(&problem), (name, false));
        assert_eq!(names(&problem.arch(ArchChoice::Sm90a)), (name, false));
        // Asking for the other tier is no obstacle.
        if head_dim_qk.max(head_dim_v) <= 256 {
            let (name, obstacle) = names(&problem.arch(ArchChoice::Sm80));
            assert!(name.ends_with("sm80") && !obstacle);
        }
    }
    // What the tier has not is none either, however the tensors lie.
    for problem in [
        Problem::contiguous(DType::F32, shape(64, 64)),
        Problem::contiguous(DType::F32, shape(63, 61)),
        sound().algorithm(Algorithm::TwoPass),
    ] {
        let (name, obstacle) = names(&problem);
        assert!(name.ends_with("sm80") && !obstacle, "{name}");
        let error = problem.arch(ArchChoice::Sm90a).plan(&hopper()).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NoVariant);
        assert!(error.to_string().contains("on sm_90a with"), "{error}");
    }
}

#[test]
fn a_driver_that_is_too_old_is_named() {
    let lacks = "cuTensorMapEncodeTiled, which comes with CUDA 12.0";
    let old = DeviceInfo {
        driver_lacks: Some(lacks),
        ..hopper()
    };
    let reason = format!(
        "driver: expected one that is new enough for the copy engine of the sm_90a tier, found one that lacks {lacks}"
    );
    let plan = sound().plan(&old).unwrap();
    assert_eq!(plan.variant().arch, Arch::Sm80);
    assert_eq!(plan.obstacle().unwrap().to_string(), reason);
    let asked = sound().arch(ArchChoice::Sm80).plan(&old).unwrap();
    assert_eq!(asked.obstacle(), None);
    let named = Problem::contiguous(DType::F16, shape(64, 64));
    let variant = named.plan(&hopper()).unwrap().variant();
    for error in [
        sound().arch(ArchChoice::Sm90a).plan(&old).unwrap_err(),
        named.plan_variant(&old, variant).unwrap_err(),
    ] {
        assert_eq!(error.class(), ErrorClass::NoDevice);
        assert_eq!(error.to_string(), format!("no device: {reason}"));
    }
    // Problems that have no kernel of the tier lose nothing; those that have no other one say both.
    let f32s = Problem::contiguous(DType::F32, shape(64, 64));
    assert_eq!(f32s.plan(&old).unwrap().obstacle(), None);
    let wide = Problem::contiguous(DType::F16, shape(512, 512));
    let error = wide.plan(&old).unwrap_err();
    assert_eq!(error.class(), ErrorClass::NoVariant);
    assert!(
        error.to_string().ends_with(&format!("but {reason}")),
        "{error}"
    );
    // An older GPU has another reason.
    let ampere = DeviceInfo {
        driver_lacks: Some(lacks),
        ..ampere()
    };
    assert_eq!(sound().plan(&ampere).unwrap().obstacle(), None);
}

type Tensor = fn(&mut Problem) -> &mut TensorLayout;

const TENSORS: [(&str, Tensor); 4] = [
    ("q", |p| &mut p.q),
    ("k", |p| &mut p.k),
    ("v", |p| &mut p.v),
    ("out", |p| &mut p.out),
];

/// The problem has an obstacle in this argument: `auto` takes the other tier and says why, `sm_90a` is an error that says the same.
fn hindered(problem: &Problem, argument: &str, found: &str) {
    let plan = problem.plan(&hopper()).unwrap();
    assert_eq!(plan.variant().arch, Arch::Sm80, "{problem:?}");
    let reason = plan.obstacle().expect("an obstacle").to_string();
    let error = problem.arch(ArchChoice::Sm90a).plan(&hopper()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::BadInput);
    assert_eq!(error.to_string(), reason);
    assert!(
        reason.starts_with(&format!("{argument}: expected strides")),
        "{reason}"
    );
    assert!(reason.contains("copy engine"), "{reason}");
    assert!(reason.ends_with(&format!("found {found}")), "{reason}");
    // A GPU without the tier has no need of it, nor has who asks for the other one.
    assert_eq!(problem.plan(&ampere()).unwrap().obstacle(), None);
    let other = problem.arch(ArchChoice::Sm80).plan(&hopper()).unwrap();
    assert_eq!(other.obstacle(), None);
}

#[test]
fn strides_that_the_copy_engine_cannot_take() {
    for (argument, tensor) in TENSORS {
        for dim in 0..3 {
            let sound = sound();
            let with = |stride: i64| {
                let mut problem = sound;
                tensor(&mut problem).strides[dim] = stride;
                (problem, format!("a stride of {} bytes", 2 * stride))
            };
            let usual = tensor(&mut sound.clone()).strides[dim];
            // Backwards; no multiple of 16 bytes; from 2^40 bytes on.
            let far = 1 << 39;
            for stride in [-usual, usual + CHUNK / 2, usual + 1, far] {
                // Other dimensions may not reach as far as this one steps, and this one may overlap none.
                let (problem, found) = with(stride);
                if problem.plan(&ampere()).is_ok() {
                    hindered(&problem, argument, &found);
                } else {
                    assert_eq!(argument, "out");
                }
            }
            let (problem, _) = with(far - CHUNK);
            if problem.plan(&ampere()).is_ok() {
                assert_eq!(names(&problem).0, "fused_f16_d64_sm90a");
            }
            // One memory for all.
            if argument != "out" {
                hindered(&with(0).0, argument, "a stride of 0 bytes");
            }
        }
    }
}

/// Rows that are no multiples of 16 bytes, as contiguous tensors of most head dimensions have.
#[test]
fn contiguous_rows_that_the_copy_engine_cannot_take() {
    for dim in 1..=512usize {
        let problem = Problem::contiguous(DType::Bf16, shape(dim, 64));
        if dim.is_multiple_of(8) {
            assert!(!names(&problem).1);
        } else if dim <= 256 {
            // Of q the heads' stride is the first that counts: all are multiples of it.
            let first = 2 * 129 * 6 * dim;
            let found = [first, 2 * 6 * dim, 2 * dim]
                .into_iter()
                .find(|bytes| !bytes.is_multiple_of(16));
            hindered(
                &problem,
                "q",
                &format!("a stride of {} bytes", found.unwrap()),
            );
        }
    }
}

#[test]
fn strides_that_do_not_matter() {
    // Of dimensions that never step.
    let mut single = shape(64, 64);
    (single.batch, single.heads_q, single.heads_kv) = (1, 1, 1);
    (single.seqlen_q, single.seqlen_k) = (1, 1);
    let mut problem = Problem::contiguous(DType::F16, single);
    for (at, (_, tensor)) in TENSORS.into_iter().enumerate() {
        tensor(&mut problem).strides[..3].copy_from_slice(&[0, -7, 3 + at as i64]);
    }
    assert_eq!(names(&problem), ("fused_f16_d64_sm90a", false));
    encodes(&problem);
    // Of f32 output, which threads write.
    let mut problem = sound().out_dtype(OutDType::F32);
    problem.out.strides = [-200_001, 1001, 65, 1];
    assert_eq!(names(&problem), ("fused_f16_d64_sm90a", false));
    encodes(&problem);
    // Of tensors without elements.
    let mut empty = shape(64, 64);
    empty.seqlen_k = 0;
    let mut problem = Problem::contiguous(DType::F16, empty);
    (problem.k.strides, problem.v.strides) = ([5, -3, 1, 1], [0, 0, 0, 1]);
    assert_eq!(names(&problem), ("fused_f16_d64_sm90a", false));
    encodes(&problem);
}

#[test]
fn addresses_that_the_copy_engine_cannot_take() {
    type Address = fn(&mut Pointers) -> &mut u64;
    let addresses: [Address; 4] = [|p| &mut p.q, |p| &mut p.k, |p| &mut p.v, |p| &mut p.out];
    let named = |argument: &str, error: Error| {
        let text = error.to_string();
        let start = format!("{argument}: expected an address that is a multiple of 16");
        assert!(text.starts_with(&start), "{text}");
        text
    };
    for ((argument, _), address) in TENSORS.into_iter().zip(addresses) {
        for off in [2, 8, 14] {
            let mut shifted = pointers();
            *address(&mut shifted) += off;
            let plan = sound().plan(&hopper()).unwrap();
            assert_eq!(plan.variant().name, "fused_f16_d64_sm90a");
            let launched = plan.prepare_with(&shifted, |_| panic!("no map is needed"));
            let launched = launched.unwrap();
            assert_eq!(launched.variant.name, "fused_f16_d64_sm80");
            assert_eq!(plan.variant_for(&shifted).unwrap(), launched.variant);
            // It is the launch that who asks for that tier has.
            let other = sound().arch(ArchChoice::Sm80).plan(&hopper()).unwrap();
            let expected = other.prepare_with(&shifted, |_| panic!("no map is needed"));
            assert_eq!(launched, expected.unwrap());
            assert_eq!(plan.params(&shifted), other.params(&shifted));

            let asked = sound().arch(ArchChoice::Sm90a).plan(&hopper()).unwrap();
            named(argument, asked.variant_for(&shifted).unwrap_err());
            named(argument, asked.params(&shifted).unwrap_err());
            // Nor is there another tier with these head dimensions.
            let wide = Problem::contiguous(DType::F16, shape(512, 512)).lse(true);
            let text = named(
                argument,
                wide.plan(&hopper()).unwrap().params(&shifted).unwrap_err(),
            );
            assert!(
                text.contains("no other has these head dimensions"),
                "{text}"
            );
        }
    }
    // f32 output may begin at any multiple of 4.
    let plan = sound().out_dtype(OutDType::F32).plan(&hopper()).unwrap();
    let shifted = Pointers {
        out: 0x4004,
        ..pointers()
    };
    assert_eq!(plan.variant_for(&shifted).unwrap().arch, Arch::Sm90a);
    // Tensors without elements may be nowhere.
    let mut empty = shape(64, 64);
    empty.seqlen_k = 0;
    let plan = Problem::contiguous(DType::F16, empty)
        .lse(true)
        .plan(&hopper())
        .unwrap();
    let nowhere = Pointers {
        k: 0,
        v: 7,
        ..pointers()
    };
    assert_eq!(plan.variant_for(&nowhere).unwrap().arch, Arch::Sm90a);
}

/// What only the tier has, where it cannot be had: the error names both, and the widest of what is left.
#[test]
fn head_dimensions_of_this_tier_alone() {
    let wide = |dim| Problem::contiguous(DType::F16, shape(dim, 64));
    let message = |problem: Problem, device: &DeviceInfo| {
        let error = problem.plan(device).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NoVariant);
        error.to_string()
    };
    let widest = "head_dim_qk 257 with head_dim_v 64 is beyond the widest, 256 with 256";
    let hindered = message(wide(257), &hopper());
    assert!(
        hindered.contains(&format!(
            "on sm_80 with f16 elements: {widest}; sm_90a has one, but q: expected strides"
        )),
        "{hindered}"
    );
    let old = message(wide(257), &ampere());
    assert!(old.ends_with(&format!("{widest}; sm_90a has one, but test GPU has compute capability 8.0; sm_90a kernels need 9.0 exactly (Hopper)")), "{old}");
    // Nobody has these.
    let mut single = wide(257);
    single.dtype = DType::F32;
    assert!(message(single, &hopper()).ends_with(widest));
    let explicit = message(wide(264).arch(ArchChoice::Sm80), &hopper());
    assert!(
        explicit.ends_with("is beyond the widest, 256 with 256"),
        "{explicit}"
    );
    for dim in [513, 1000] {
        for arch in [ArchChoice::Auto, ArchChoice::Sm80, ArchChoice::Sm90a] {
            let error = wide(dim)
                .arch(arch)
                .plan(&hopper())
                .unwrap_err()
                .to_string();
            assert_eq!(
                error,
                format!("q: expected a head_dim between 1 and 512, found head_dim {dim}")
            );
        }
    }
}

/// The maps of a launch, and the rules of `cuTensorMapEncodeTiled`; the emulator's encoder has them too.
fn encodes(problem: &Problem) -> [TensorMapSpec; 4] {
    let plan = problem.plan(&hopper()).unwrap();
    let variant = plan.variant();
    assert_eq!(variant.arch, Arch::Sm90a);
    let pointers = Pointers {
        lse: problem.lse.then_some(0x4_0000),
        ..pointers()
    };
    let maps = tensor_maps(problem, variant, &plan.chosen.schedule, &pointers);
    for map in &maps {
        assert!(map.address.is_multiple_of(16) && map.address > 0);
        assert!(
            map.dims.iter().all(|&n| (1..=1 << 32).contains(&n)),
            "{map:?}"
        );
        let fits = |&stride: &u64| stride.is_multiple_of(16) && (16..1 << 40).contains(&stride);
        assert!(map.strides.iter().all(fits), "{map:?}");
        assert!(
            map.extents.iter().all(|&n| (1..=256).contains(&n)),
            "{map:?}"
        );
        assert!([32, 64, 128].contains(&map.swizzle));
        assert_eq!(map.extents[0] * map.dtype.bytes(), map.swizzle);
        #[cfg(feature = "emulator")]
        crate::device::emulator::tensor_map(map).unwrap();
    }
    maps
}

/// Of packed heads the engine steps over several at once.
#[test]
fn heads_share_tiles_as_far_as_the_copy_engine_reaches() {
    let mut single = shape(64, 64);
    (
        single.batch,
        single.seqlen_q,
        single.heads_q,
        single.heads_kv,
    ) = (1, 1, 16, 1);
    for (bytes, pack) in [(128, 4), (1 << 35, 4), (1 << 36, 3), (1 << 39, 0)] {
        for out in [false, true] {
            let mut problem = Problem::contiguous(DType::F16, single);
            let layout = if out {
                &mut problem.out
            } else {
                &mut problem.q
            };
            layout.strides[2] = bytes / 2;
            assert_eq!(encodes(&problem)[0].dims[1], 1 << pack);
        }
    }
}

fn of_the_tier() -> impl Strategy<Value = &'static Variant> {
    let all = variants()
        .iter()
        .filter(|variant| variant.arch == Arch::Sm90a);
    prop::sample::select(all.collect::<Vec<_>>())
}

proptest! {
    /// The schedule's numbers fit together, whatever the sizes.
    #[test]
    fn schedules(
        variant in of_the_tier(), sizes in prop::array::uniform4(0usize..70), scale in 0u32..8,
        ratio in 1usize..20, mask in masks(), masked: bool, multiprocessors in 1u32..200,
    ) {
        let tile = &variant.tile;
        let [batch, seqlen_q, seqlen_k, heads_kv] = sizes;
        let shape = Shape {
            batch,
            seqlen_q: seqlen_q << scale,
            seqlen_k: seqlen_k << scale,
            heads_q: (heads_kv + 1) * ratio,
            heads_kv: heads_kv + 1,
            head_dim_qk: tile.head_dim_qk as usize,
            head_dim_v: tile.head_dim_v as usize,
        };
        let mut problem = Problem::contiguous(tile.dtype, shape);
        if masked {
            (problem.causal, problem.window.left, problem.window.right) = mask;
        }
        problem.softcap = (variant.score_mod != flashtile_abi::ScoreModKind::None).then_some(9.0);
        let device = DeviceInfo { multiprocessors, ..hopper() };
        let plan = problem.plan(&device).unwrap();
        prop_assert_eq!(plan.variant(), variant);
        let (s, config) = (plan.schedule().unwrap(), plan.config());

        // Heads that share tiles are heads of one group of keys, and a tile's rows are those of whole queries.
        prop_assert!(ratio.is_multiple_of(1 << s.pack) && s.pack <= 6);
        prop_assert_eq!(s.rows as usize, shape.seqlen_q << s.pack);
        prop_assert_eq!(s.groups as usize, (batch * shape.heads_q) >> s.pack);
        let m_blocks = plan.template().m_blocks;
        prop_assert_eq!(m_blocks, (s.rows as u32).div_ceil(tile.block_m));
        // Sharing wastes less than a tile of rows for each head.
        let wasted = |rows: usize| rows.next_multiple_of(tile.block_m as usize) - rows;
        if s.pack > 0 {
            prop_assert!(wasted(s.rows as usize) >> s.pack < wasted(shape.seqlen_q));
        }

        // Pairs see the same keys, and neither block is idle.
        let full = problem.causal.is_none() && problem.window == Default::default();
        prop_assert!(s.cluster == 1 || (s.cluster == 2 && full && m_blocks.is_multiple_of(2) && multiprocessors > 1));
        prop_assert_eq!(config.cluster, s.cluster);
        prop_assert_eq!(s.pieces * s.cluster, m_blocks * s.groups);
        prop_assert_eq!(plan.is_empty(), s.pieces == 0);

        // Every piece has a round of some cluster, and none is idle.
        let clusters = config.grid[0] / s.cluster;
        prop_assert_eq!(clusters * s.cluster, config.grid[0]);
        prop_assert!(clusters * s.rounds >= s.pieces && s.rounds <= MOST_PIECES);
        prop_assert!(clusters <= s.pieces && (s.pieces == 0 || clusters * (s.rounds - 1) < s.pieces));
        // No more than run at the same time, as long as that is not too much for each.
        prop_assert!(config.grid[0] <= multiprocessors.max(s.cluster) || s.pieces.div_ceil(clusters) <= MOST_PIECES);
        if s.pieces <= multiprocessors / s.cluster * MOST_PIECES {
            prop_assert!(config.grid[0] <= multiprocessors.max(s.cluster));
        }
        prop_assert!((1..=s.groups.max(1)).contains(&s.section));
        prop_assert!(config.shared_bytes <= SM90_SHARED_CAPACITY);
    }

    /// The maps describe the tensors: an element's coordinates lead to its address, and the boxes make up the tiles.
    #[test]
    fn maps(
        variant in of_the_tier(), sizes in prop::array::uniform4(1usize..9), ratio in 1usize..17, cut in prop::array::uniform2(0usize..32),
        gap in prop::array::uniform4(0usize..4), heads_first: bool, blocks in 1usize..5, at in prop::array::uniform4(any::<prop::sample::Index>()),
    ) {
        let tile = &variant.tile;
        let [batch, rest, seqlen_k, heads_kv] = sizes;
        let shape = Shape {
            batch,
            seqlen_q: tile.block_m as usize * (blocks - 1) + rest,
            seqlen_k: seqlen_k * 50,
            heads_q: heads_kv * ratio,
            heads_kv,
            head_dim_qk: tile.head_dim_qk as usize - cut[0],
            head_dim_v: tile.head_dim_v as usize - cut[1],
        };
        let mut problem = Problem::contiguous(tile.dtype, shape);
        problem.softcap = (variant.score_mod != flashtile_abi::ScoreModKind::None).then_some(9.0);
        let (input, output) = (tile.dtype.bytes() as usize, problem.out_element().bytes() as usize);
        let widths = [input, input, input, output];
        // Any head dimensions, in rows that begin at multiples of 16 bytes.
        for (((_, tensor), gap), width) in TENSORS.into_iter().zip(gap).zip(widths) {
            let layout = tensor(&mut problem);
            let whole = 16 / width;
            let mut stride = layout.shape[3].next_multiple_of(whole) + whole * gap;
            for dim in if heads_first { [1, 2, 0] } else { [2, 1, 0] } {
                layout.strides[dim] = stride as i64;
                stride *= layout.shape[dim];
            }
        }
        let plan = problem.plan_variant(&hopper(), variant).unwrap();
        let s = *plan.schedule().unwrap();
        let addresses = pointers();
        let maps = tensor_maps(&problem, variant, &s, &addresses);
        let bases = [addresses.q, addresses.k, addresses.v, addresses.out];
        let packs = [s.pack, 0, 0, s.pack];
        for ((((map, (_, tensor)), base), pack), width) in maps.iter().zip(TENSORS).zip(bases).zip(packs).zip(widths) {
            #[cfg(feature = "emulator")]
            crate::device::emulator::tensor_map(map).unwrap();
            let layout = *tensor(&mut problem);
            let [b, i, h, x] = std::array::from_fn(|dim| at[dim].index(layout.shape[dim]));
            let coordinates = [x, h & ((1 << pack) - 1), i, h >> pack, b];
            prop_assert!(coordinates.iter().zip(map.dims).all(|(&c, n)| (c as u64) < n));
            // And the last one is the tensor's last.
            let elements: u64 = map.dims.iter().product();
            prop_assert_eq!(Some(elements as usize), layout.elements());
            let steps = coordinates[1..].iter().zip(map.strides);
            let offset: u64 = (width * x) as u64 + steps.map(|(&c, stride)| c as u64 * stride).sum::<u64>();
            let element: i64 = [b, i, h, x].iter().zip(layout.strides).map(|(&n, stride)| n as i64 * stride).sum();
            prop_assert_eq!(map.address + offset, base + width as u64 * element as u64);
        }
        // Boxes of 64 rows of queries, of a block's part of the keys; as wide as the swizzled columns of the tile.
        let rows = maps.map(|map| map.extents[1] * map.extents[2]);
        let part = tile.block_n / s.cluster;
        prop_assert_eq!(rows, [64, part, part, 64]);
        let columns = [tile.head_dim_qk, tile.head_dim_qk, tile.head_dim_v, tile.head_dim_v / tile.v_splits];
        for ((map, columns), width) in maps.iter().zip(columns).zip(widths) {
            prop_assert_eq!(&map.extents[3..], &[1, 1]);
            prop_assert!(columns.is_multiple_of(map.extents[0]));
            // A swizzle as wide as it can be.
            prop_assert!(map.swizzle == 128 || !(width as u32 * columns).is_multiple_of(2 * map.swizzle));
        }
    }
}
