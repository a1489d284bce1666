//! Caches without a device: the same bits as the kernels', and the same errors.
#![cfg(feature = "emulator")]

use flashtile::{
    DType, EmulatorDevice, TensorLayout,
    cache::{
        AppendProblem, CacheData, CopyProblem, GatherProblem, IndexType, Place, PlaceData,
        QueryRows, Rotary, RotaryPairs, RotaryTable, Rows, Sequences, TableType, append,
        append_cpu, copy_blocks, copy_blocks_cpu, gather, gather_cpu,
    },
    element,
    serving::{CacheLayout, CacheScales, PageTable},
};
use proptest::prelude::*;

/// Numbers in [-1, 1) as elements.
fn elements(seed: u32, dtype: DType, count: usize) -> Vec<u8> {
    let number = |i: usize| {
        let mixed = (i as u32).wrapping_mul(0x9e37_79b1) ^ seed.wrapping_mul(0x85eb_ca6b);
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    element::encode(dtype, &(0..count).map(number).collect::<Vec<_>>())
}

fn layout(kind: u8, dtype: DType, shape: [usize; 4]) -> CacheLayout {
    match kind {
        0 => CacheLayout::contiguous(shape),
        1 => CacheLayout::heads_first(shape),
        2 => CacheLayout::chunked_keys(dtype, shape),
        _ => CacheLayout::transposed(shape),
    }
}

/// Tokens of two sequences: lengths, and how many rows the cache holds already.
#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    kv_dtype: DType,
    scales: CacheScales,
    page: usize,
    heads: usize,
    dims: [usize; 2],
    layouts: [u8; 2],
    lengths: [usize; 2],
    first: [usize; 2],
    slots: bool,
    rotary: Option<(usize, bool, bool, bool)>,
    seed: u32,
}

const BLOCKS: usize = 12;
const ENTRIES: usize = 5;

fn case() -> impl Strategy<Value = Case> {
    let sizes = (
        1usize..6,
        1usize..3,
        [1usize..25, 1usize..25],
        [0u8..4, 0u8..4],
    );
    let tokens = (
        [0usize..5, 0usize..5],
        [0usize..4, 0usize..4],
        any::<bool>(),
    );
    let cached = prop::option::of(prop::sample::select(vec![
        CacheScales::None,
        CacheScales::PerTensor,
        CacheScales::PerHead,
        CacheScales::PerSequence,
    ]));
    let rotary = prop::option::of((1usize..13, any::<bool>(), any::<bool>(), any::<bool>()));
    let halves = prop::sample::select(vec![DType::F16, DType::Bf16]);
    ((halves, cached), sizes, tokens, rotary, any::<u32>()).prop_map(
        |((dtype, cached), (page, heads, dims, layouts), (lengths, first, slots), rotary, seed)| {
            Case {
                dtype,
                kv_dtype: cached.map_or(dtype, |_| DType::E4m3),
                scales: cached.unwrap_or_default(),
                page: page.max(2),
                heads,
                dims,
                layouts,
                lengths,
                first,
                slots,
                rotary,
                seed,
            }
        },
    )
}

impl Case {
    fn rows(&self, side: usize, tokens: usize) -> Rows {
        let dim = self.dims[side];
        let shape = [BLOCKS, self.page, self.heads, dim];
        Rows {
            tensor: TensorLayout::contiguous([1, tokens, self.heads, dim]),
            cache: layout(self.layouts[side], self.kv_dtype, shape),
        }
    }

    fn cache(&self, side: usize) -> Vec<u8> {
        let span = self.rows(side, 0).cache.span().unwrap();
        elements(self.seed ^ 7 ^ side as u32, self.kv_dtype, span)
    }

    /// With slots, sequences have none of their own.
    fn kv_scales(&self) -> CacheScales {
        match self.scales {
            CacheScales::PerSequence if self.slots => CacheScales::PerHead,
            scales => scales,
        }
    }

    fn scales(&self, side: usize) -> Vec<f32> {
        let count = self.kv_scales().count(2, self.heads);
        (0..count)
            .map(|i| 0.003 * (1 + i + 7 * side) as f32)
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn rows(case in case()) {
        let device = EmulatorDevice::new();
        let tokens: usize = case.lengths.iter().sum::<usize>() + 1;
        let (k, v) = (case.rows(0, tokens), case.rows(1, tokens));
        let starts = [0, case.lengths[0] as i32, (case.lengths[0] + case.lengths[1]) as i32];
        let first = case.first.map(|n| n as i32);
        // Blocks 0 to 4 and 5 to 9.
        let table: Vec<i32> = (0..2 * ENTRIES as i32).rev().collect();
        // Every other token is padding.
        let slots: Vec<i64> = (0..tokens as i64).map(|t| if t % 2 == 0 { 2 * t } else { -1 }).collect();
        let (place, place_data) = match case.slots {
            true => (Place::Slots, PlaceData { slots: &slots, ..PlaceData::default() }),
            false => (
                Place::Sequences(Sequences {
                    batch: 2,
                    starts: true,
                    used: false,
                    first: true,
                    pages: Some(PageTable::contiguous(ENTRIES)),
                }),
                PlaceData { starts: &starts, first: &first, table: &table, ..PlaceData::default() },
            ),
        };
        let queries = TensorLayout::contiguous([1, tokens, 2, case.dims[0]]);
        let rotary = case.rotary.filter(|_| case.dims[0] > 1).map(|(pairs, interleaved, wide, given)| {
            let pairs = pairs.min(case.dims[0] / 2);
            Rotary {
                rotary_dim: 2 * pairs,
                pairs: if interleaved { RotaryPairs::Interleaved } else { RotaryPairs::Halves },
                table: RotaryTable {
                    element: if wide { TableType::F32 } else { TableType::Same },
                    positions: 30,
                    stride: pairs as i64 + 1,
                },
                positions: (given || case.slots).then_some(IndexType::I64),
                queries: Some(QueryRows { q: queries, out: queries }),
            }
        });
        let problem = AppendProblem { dtype: case.dtype, kv_dtype: case.kv_dtype, kv_scales: case.kv_scales(), k, v: Some(v), place, rotary };
        let data = [(1, k.tensor), (2, v.tensor), (3, queries)].map(|(seed, layout)| {
            elements(case.seed ^ seed, case.dtype, layout.span().unwrap())
        });
        let table_type = rotary.map_or(DType::F32, |it| it.table.element.of(case.dtype));
        let angles = [4, 5].map(|seed| elements(case.seed ^ seed, table_type, 30 * 13));
        let positions: Vec<i64> = (0..tokens as i64).map(|t| t * 7 % 30).collect();
        let has = |present: bool| if present { usize::MAX } else { 0 };
        fn part<T>(all: &[T], most: usize) -> &[T] {
            &all[..all.len().min(most)]
        }
        let scales = [case.scales(0), case.scales(1)];
        let input = CacheData {
            k: &data[0],
            v: &data[1],
            place: place_data,
            k_scale: &scales[0],
            v_scale: &scales[1],
            cos: part(&angles[0], has(rotary.is_some())),
            sin: part(&angles[1], has(rotary.is_some())),
            positions: part(&positions, has(rotary.is_some_and(|it| it.positions.is_some()))),
            q: part(&data[2], has(rotary.is_some())),
        };
        let run = |cpu: bool| {
            let mut caches = [case.cache(0), case.cache(1)];
            let [k_cache, v_cache] = &mut caches;
            let turned = match cpu {
                true => append_cpu(&problem, &input, [k_cache, v_cache]),
                false => append(&device, &problem, &input, [k_cache, v_cache]),
            };
            turned.map(|turned| (turned, caches))
        };
        let on_cpu = run(true);
        prop_assert_eq!(&on_cpu, &run(false));

        let Ok((_, caches)) = on_cpu else {
            return Ok(());
        };
        let problem = GatherProblem { dtype: case.dtype, kv_dtype: case.kv_dtype, kv_scales: case.kv_scales(), k, v: Some(v), place };
        let [k_cache, v_cache] = &caches;
        let of_caches = [&scales[0][..], &scales[1][..]];
        let on_cpu = gather_cpu(&problem, &place_data, [k_cache, v_cache], of_caches).unwrap();
        let on_device = gather(&device, &problem, &place_data, [k_cache, v_cache], of_caches).unwrap();
        prop_assert_eq!(&on_cpu, &on_device);
        if rotary.is_none() && !case.slots {
            // What went in comes out, up to the token that is no sequence's.
            let bytes = data[0].len() / tokens * (tokens - 1);
            let same = on_cpu[0][..bytes] == data[0][..bytes];
            prop_assert!(same || case.kv_dtype == DType::E4m3);
            // Below 1 in magnitude, all are below 448 scales, which are at least 0.003. e4m3 has 4 significant bits, and multiples of 2^-9 below
            // 2^-6: half of the last one is lost. What comes out is rounded once more, to 8 bits or more.
            let scale = scales[0].iter().copied().reduce(f32::max).unwrap_or(1.0);
            for d in 0..bytes / 2 {
                let [before, after] = [&data[0], &on_cpu[0]].map(|bytes| element::read(case.dtype, bytes, d));
                let lost = f32::max(before.abs() * 2f32.powi(-4), scale * 2f32.powi(-10)) + after.abs() * 2f32.powi(-9);
                prop_assert!((before - after).abs() <= lost * (1.0 + 2f32.powi(-20)), "{} became {}", before, after);
            }
        }

        let too_short = gather_cpu(&problem, &place_data, [&k_cache[1..], v_cache], of_caches).unwrap_err();
        prop_assert!(too_short.to_string().starts_with("k_cache"), "{}", too_short);
    }

    #[test]
    fn blocks(seed in any::<u32>(), count in 0usize..4, heads_first in any::<bool>()) {
        let device = EmulatorDevice::new();
        let layout = layout(u8::from(heads_first), DType::F16, [7, 3, 2, 5]);
        let bytes = elements(seed, DType::F16, layout.span().unwrap());
        let problem = CopyProblem::within(DType::F16, &layout, count, IndexType::I64).unwrap();
        // Even blocks are read, odd ones written.
        let pairs: Vec<[i64; 2]> = (0..count as i64).map(|i| [2 * (i + i64::from(seed % 2)), 2 * (count as i64 - i) - 1]).collect();
        let (mut on_cpu, mut on_device) = (bytes.clone(), bytes.clone());
        let result = copy_blocks_cpu(&problem, &pairs, None, &mut on_cpu);
        prop_assert_eq!(result, copy_blocks(&device, &problem, &pairs, &mut [&mut on_device]));
        prop_assert_eq!(&on_cpu, &on_device);
        // From another cache the same blocks come, whatever is there.
        let mut other = vec![0; bytes.len()];
        copy_blocks_cpu(&problem, &pairs, Some(&bytes), &mut other).unwrap();
        let block = bytes.len() / 7;
        for (n, found) in other.chunks(block).enumerate() {
            match pairs.iter().find(|pair| pair[1] == n as i64) {
                Some(pair) => prop_assert_eq!(found, &bytes[pair[0] as usize * block..][..block]),
                None => prop_assert!(found.iter().all(|&byte| byte == 0)),
            }
        }
    }
}
