//! Bulk copies, with tensor maps and without: bytes, bounds, swizzles, when they happen, and what they refuse.

mod common;
#[path = "common/tensor.rs"]
mod tensor;

use common::kernel;
use flashtile_emulator::{AsyncTiming, ElementType, OobFill, Options, Swizzle, TensorMap};
use proptest::prelude::*;
use tensor::{LOAD, SHARED, SHARED_BYTES, Tensor, load, words};

const TIMINGS: [AsyncTiming; 4] = [
    AsyncTiming::Late,
    AsyncTiming::Early,
    AsyncTiming::Seeded(1),
    AsyncTiming::Seeded(2),
];

/// Where a byte of a tile lies, as the guide's tables say: in line y of 128 bytes, chunk x of 16 bytes among the m of its
/// span goes to x ^ y % m.
fn swizzled(swizzle: Swizzle, address: usize) -> usize {
    let chunks = match swizzle {
        Swizzle::None => return address,
        Swizzle::B32 => 2,
        Swizzle::B64 => 4,
        Swizzle::B128 => 8,
    };
    let (line, chunk, byte) = (address / 128, address / 16 % 8, address % 16);
    let by = line % chunks;
    line * 128 + (chunk / chunks * chunks + ((chunk % chunks) ^ by)) * 16 + byte
}

/// A map and coordinates whose box fits shared memory. The tensor's strides are padded.
#[derive(Debug, Clone)]
struct Case {
    map: TensorMap,
    at: Vec<i32>,
    bytes: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    any_case().prop_filter("it does not fit shared memory", |case| {
        elements(case).len() * case.map.element_type.bytes() as usize <= SHARED_BYTES
    })
}

fn any_case() -> impl Strategy<Value = Case> {
    let sizes = prop::collection::vec((1u64..12, 1u32..6, 1u32..4, -6i32..14), 4);
    (
        1usize..=5,
        0usize..10,
        0usize..4,
        any::<bool>(),
        1u64..40,
        -20i32..50,
        1u32..4,
        sizes,
    )
        .prop_map(|(rank, kind, swizzle, nan, inner, x, chunks, sizes)| {
            let kind = ElementType::ALL[kind];
            let each = kind.bytes();
            let swizzle = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128][swizzle];
            let span = match swizzle {
                Swizzle::None => 16 * chunks,
                Swizzle::B32 => 32,
                Swizzle::B64 => 64,
                Swizzle::B128 => 128,
            };
            let mut map = TensorMap::new(kind, 0, &[inner], &[], &[span / each]);
            let mut stride = (inner * u64::from(each)).next_multiple_of(16) + 16;
            let mut at = vec![x];
            for &(dim, boxed, step, coordinate) in &sizes[..rank - 1] {
                map.dims.push(dim);
                map.strides.push(stride);
                map.box_dims.push(boxed);
                map.element_strides.push(step);
                at.push(coordinate);
                stride *= dim;
            }
            map.swizzle = swizzle;
            let floats = [
                ElementType::F16,
                ElementType::F32,
                ElementType::F64,
                ElementType::Bf16,
            ];
            if nan && floats.contains(&kind) {
                map.oob_fill = OobFill::Nan;
            }
            Case {
                map,
                at,
                bytes: stride as usize,
            }
        })
}

/// Every element of a box: its number in shared memory, and its place in the tensor if it is inside.
fn elements(case: &Case) -> Vec<Option<usize>> {
    let map = &case.map;
    let rank = map.dims.len();
    let mut found = Vec::new();
    let counts: Vec<u32> = (0..rank)
        .map(|n| {
            let step = if n == 0 { 1 } else { map.element_strides[n] };
            map.box_dims[n].div_ceil(step)
        })
        .collect();
    let total: u32 = counts.iter().product();
    for number in 0..total {
        let mut rest = number;
        let mut place = Some(0i64);
        for (n, count) in counts.iter().enumerate() {
            let step = if n == 0 { 1 } else { map.element_strides[n] };
            let index = i64::from(case.at[n]) + i64::from(rest % count * step);
            rest /= count;
            let stride = match n {
                0 => i64::from(map.element_type.bytes()),
                n => map.strides[n - 1] as i64,
            };
            let inside = (0..map.dims[n] as i64).contains(&index);
            place = place.filter(|_| inside).map(|p| p + index * stride);
        }
        found.push(place.map(|p| p as usize));
    }
    found
}

fn coordinates(at: &[i32]) -> String {
    let all: Vec<String> = at.iter().map(|c| c.to_string()).collect();
    format!("{{{}}}", all.join(", "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_load_brings_the_box(case in cases(), timing in 0usize..4) {
        let tensor = Tensor::timed(case.bytes, TIMINGS[timing]);
        let mut map = case.map.clone();
        map.address = tensor.run.buffers[0];
        tensor.set_map(&map);
        let each = map.element_type.bytes() as usize;
        let places = elements(&case);
        let (rank, total) = (map.dims.len(), places.len() * each);
        let issue = format!(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r40], {total};\n\
             cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
             [%r41], [%d1, {}], [%r40];",
            coordinates(&case.at)
        );
        let found = tensor.launch(&load(&issue)).unwrap();
        let nan: &[u8] = match map.element_type {
            ElementType::F64 => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            ElementType::F32 => &[0xff, 0xff, 0xff, 0x7f],
            _ => &[0xff, 0x7f],
        };
        let mut expected = vec![0x11; SHARED_BYTES];
        for (number, place) in places.iter().enumerate() {
            for byte in 0..each {
                let value = match place {
                    Some(place) => tensor.bytes[place + byte],
                    None if map.oob_fill == OobFill::Nan => nan[byte],
                    None => 0,
                };
                // The tile begins at a multiple of 1024.
                expected[swizzled(map.swizzle, number * each + byte)] = value;
            }
        }
        prop_assert!(found == expected, "{map:?}");
    }

    #[test]
    fn a_store_takes_the_box_back(case in cases(), timing in 0usize..4) {
        let mut case = case;
        for c in &mut case.at {
            *c = (*c).max(0);
        }
        let tensor = Tensor::timed(case.bytes, TIMINGS[timing]);
        let mut map = case.map.clone();
        map.address = tensor.run.buffers[0];
        tensor.set_map(&map);
        let each = map.element_type.bytes() as usize;
        let rank = map.dims.len();
        // Every word of shared memory holds its own address in the tile.
        let body = format!(
            "mov.u32 %r41, s;\nmov.u32 %r42, %r0;\nFILL: shl.b32 %r44, %r42, 2;\nadd.u32 %r43, %r41, %r44;\n\
             st.shared.u32 [%r43], %r44;\nadd.u32 %r42, %r42, 32;\nsetp.lt.u32 %p2, %r42, {};\n@%p2 bra FILL;\n\
             fence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra END;\n\
             cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%d1, {}], [%r41];\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;\nEND:",
            SHARED_BYTES / 4,
            coordinates(&case.at)
        );
        tensor.run.launch(&kernel(SHARED, &body), 1, 32, 0).unwrap();
        let mut expected = tensor.bytes.clone();
        for (number, place) in elements(&case).iter().enumerate() {
            for byte in 0..each {
                let from = swizzled(map.swizzle, number * each + byte);
                if let Some(place) = place {
                    expected[place + byte] = ((from / 4 * 4) as u32).to_le_bytes()[from % 4];
                }
            }
        }
        prop_assert!(tensor.read(0, case.bytes) == expected, "{map:?}");
    }
}

#[test]
fn a_late_load_comes_when_somebody_needs_it() {
    // Without a wait that covers it, nothing comes; with a wait in a loop, all.
    let words_of = |timing, wait: &str| {
        let tensor = Tensor::timed(512, timing);
        tensor.set_map(&words(&tensor));
        let body = load(LOAD);
        let (before, after) = body.split_once("LOOP:").unwrap();
        let (_, after) = after.split_once("@!%p3 bra LOOP;").unwrap();
        let found = tensor.launch(&format!("{before}{wait}{after}")).unwrap();
        (found[..512] == tensor.bytes, found[..512] == [0x11; 512])
    };
    let once = "mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r40], 0;";
    let looped = format!("LOOP: {once}\n@!%p3 bra LOOP;");
    assert_eq!(words_of(AsyncTiming::Late, &looped), (true, false));
    assert_eq!(words_of(AsyncTiming::Late, ""), (false, true));
    assert_eq!(words_of(AsyncTiming::Late, once), (false, true));
    assert_eq!(words_of(AsyncTiming::Early, ""), (true, false));
    // Of the phase before: no wait.
    let other = looped.replace("], 0;", "], 1;");
    assert_eq!(words_of(AsyncTiming::Late, &other), (false, true));
}

#[test]
fn a_late_store_reads_and_writes_at_its_waits() {
    let stored = |timing, wait: &str| {
        let tensor = Tensor::timed(512, timing);
        tensor.set_map(&words(&tensor));
        let body = format!(
            "mov.u32 %r41, s;\nshl.b32 %r42, %r0, 2;\nadd.u32 %r42, %r42, %r41;\nst.shared.u32 [%r42], 1;\n\
             fence.proxy.async.shared::cta;\nbar.warp.sync -1;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra END;\n\
             cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d1, {{0, 0}}], [%r41];\n\
             cp.async.bulk.commit_group;\n{wait}\nst.shared.u32 [%r42], 2;\nld.global.u32 %r9, [%d0];\n\
             st.global.u32 [%d2], %r9;\nEND:"
        );
        tensor.run.launch(&kernel(SHARED, &body), 1, 32, 0).unwrap();
        // What a load saw, and what is there in the end.
        let old = u32::from_le_bytes(tensor.bytes[..4].try_into().unwrap());
        [tensor.run.get(2, 1)[0], tensor.run.get(0, 1)[0]].map(|v| if v == old { 0 } else { v })
    };
    let (read, full) = (
        "cp.async.bulk.wait_group.read 0;",
        "cp.async.bulk.wait_group 0;",
    );
    assert_eq!(stored(AsyncTiming::Late, full), [1, 1]);
    assert_eq!(stored(AsyncTiming::Late, read), [0, 1]);
    assert_eq!(stored(AsyncTiming::Late, ""), [0, 0]);
    assert_eq!(
        stored(AsyncTiming::Late, "cp.async.bulk.wait_group 1;"),
        [0, 0]
    );
    assert_eq!(stored(AsyncTiming::Early, ""), [1, 1]);
}

#[test]
fn a_map_may_be_a_parameter() {
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n{SHARED}\n\
         .visible .entry k(.param .u64 out, .param .align 64 .b8 map[128])\n{{\n.reg .pred %p<9>;\n.reg .b32 %r<60>;\n\
         .reg .b64 %d<20>;\nmov.u32 %r0, %tid.x;\nld.param.u64 %d2, [out];\nmov.b64 %d3, map;\n\
         cvta.param.u64 %d1, %d3;\n{}\nret;\n}}",
        load(LOAD)
    );
    let tensor = Tensor::new(512, Options::default());
    let module = flashtile_emulator::Module::parse(&text).unwrap();
    let entry = module.entry("k").unwrap();
    assert_eq!((entry.params[1].offset, entry.params[1].align), (64, 64));
    let mut params = vec![0; entry.params_size];
    params[..8].copy_from_slice(&tensor.run.buffers[2].to_le_bytes());
    params[64..].copy_from_slice(&words(&tensor).encode().unwrap());
    let launch = flashtile_emulator::Launch {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        cluster: None,
        dynamic_shared: 0,
        params: &params,
    };
    tensor.run.device.launch(&module, "k", &launch).unwrap();
    assert_eq!(tensor.read(2, 512), tensor.bytes);
}

#[test]
fn linear_copies() {
    for timing in TIMINGS {
        let tensor = Tensor::timed(512, timing);
        let issue = "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r40], 96;
            cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r41], [%d0+16], 64, [%r40];
            cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r41+112], [%d0], 32, [%r40], %d9;
            mbarrier.arrive.shared::cta.b64 _, [%r40];";
        let found = tensor
            .launch(&load(&format!("mov.u64 %d9, 0;\n{issue}")))
            .unwrap();
        assert_eq!(found[..64], tensor.bytes[16..80]);
        assert_eq!(found[64..112], [0x11; 48]);
        assert_eq!(found[112..144], tensor.bytes[..32]);
    }
}

#[test]
fn updates() {
    let updated = |old: &[u8], new: &str, instruction: &str, map: Option<ElementType>, timing| {
        let tensor = Tensor::timed(64, timing);
        tensor.run.device.write(tensor.run.buffers[0], old).unwrap();
        if let Some(ty) = map {
            let (address, count) = (tensor.run.buffers[0], 16 / ty.bytes());
            let map = TensorMap::new(ty, address, &[u64::from(count)], &[], &[count]);
            tensor.set_map(&map);
        }
        let body = format!(
            "mov.u32 %r41, s;\n{new}\n{instruction}\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;"
        );
        tensor.run.launch(&kernel(SHARED, &body), 1, 1, 0).unwrap();
        tensor.read(0, 16)
    };
    let bytes = |words: [u32; 4]| words.map(u32::to_le_bytes).concat();
    let fill = |word: u32| {
        format!("mov.b32 %r1, {word};\nst.shared.v4.b32 [%r41], {{%r1, %r1, %r1, %r1}};")
    };
    let [one, two] = [1.0f32, 2.0].map(f32::to_bits);
    for timing in TIMINGS {
        let linear = |op: &str, old: [u32; 4], new: u32| {
            let text = format!(
                "cp.reduce.async.bulk.global.shared::cta.bulk_group{op} [%d0], [%r41], 16;"
            );
            updated(&bytes(old), &fill(new), &text, None, timing)
        };
        let tensor = |op: &str, ty, old: [u32; 4], new: u32| {
            let text = format!(
                "cp.reduce.async.bulk.tensor.1d.global.shared::cta{op}.tile.bulk_group [%d1, {{0}}], [%r41];"
            );
            updated(&bytes(old), &fill(new), &text, Some(ty), timing)
        };
        let [a, b, c, d] = [one, two, 0, f32::NAN.to_bits()];
        let sums = bytes([2.0f32.to_bits(), 3.0f32.to_bits(), one, 0x7fff_ffff]);
        assert_eq!(linear(".add.f32", [a, b, c, d], one), sums);
        assert_eq!(tensor(".add", ElementType::F32, [a, b, c, d], one), sums);
        assert_eq!(
            linear(".add.u32", [1, u32::MAX, 3, 4], 1),
            bytes([2, 0, 4, 5])
        );
        let least = [-5i32 as u32, 7, 0, 9];
        assert_eq!(linear(".min.s32", least, 3), bytes([-5i32 as u32, 3, 0, 3]));
        assert_eq!(
            tensor(".min", ElementType::S32, least, 3),
            bytes([-5i32 as u32, 3, 0, 3])
        );
        assert_eq!(
            tensor(".min", ElementType::U32, least, 3),
            bytes([3, 3, 0, 3])
        );
        assert_eq!(linear(".max.u32", least, 8), bytes([-5i32 as u32, 8, 8, 9]));
        assert_eq!(linear(".xor.b32", [1, 2, 3, 4], 5), bytes([4, 7, 6, 1]));
        // bf16: 1 + 1, 2 + 1; f16 the same.
        let (x, y) = (0x4000_3f80, 0x3f80_3f80);
        assert_eq!(
            linear(".add.noftz.bf16", [x; 4], y),
            bytes([0x4040_4000; 4])
        );
        assert_eq!(
            tensor(".add", ElementType::Bf16, [x; 4], y),
            bytes([0x4040_4000; 4])
        );
        assert_eq!(
            tensor(".add", ElementType::F16, [0x4000_3c00; 4], 0x3c00_3c00),
            bytes([0x4200_4000; 4])
        );
        assert_eq!(
            tensor(".max", ElementType::F16, [0x4000_3c00; 4], 0x3e00_3e00),
            bytes([0x4000_3e00; 4])
        );
        let wide = linear(".add.u64", [u32::MAX, 0, 5, 0], 1);
        assert_eq!(wide, bytes([0, 2, 6, 1]));
    }
}
