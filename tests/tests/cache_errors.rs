//! Bad input to caches is an error that names the argument, before anything is launched or written; and the way through the host's memory.

use flashtile::{
    DType, DeviceInfo, EmulatorDevice, Error, Stream, TensorLayout,
    cache::{
        AppendProblem, BlocksLayout, CacheData, CopyProblem, GatherProblem, IndexType, Place,
        PlaceData, QueryRows, Rotary, RotaryPairs, RotaryPointers, RotaryTable, Rows, RowsPointers,
        Sequences, TableType, append, check_slots, gather,
    },
    serving::{CacheLayout, CacheScales, PageTable},
};

/// Two sequences of 3 tokens into 5 pages of 4 rows, keys and queries turned.
fn sound() -> AppendProblem {
    let rows = Rows {
        tensor: TensorLayout::contiguous([2, 3, 2, 16]),
        cache: CacheLayout::contiguous([5, 4, 2, 16]),
    };
    let q = TensorLayout::contiguous([2, 3, 4, 16]);
    AppendProblem {
        dtype: DType::F16,
        kv_dtype: DType::F16,
        kv_scales: CacheScales::None,
        k: rows,
        v: Some(rows),
        place: Place::Sequences(Sequences {
            batch: 2,
            starts: false,
            used: true,
            first: true,
            pages: Some(PageTable {
                entries: 2,
                strides: [2, 1],
            }),
        }),
        rotary: Some(Rotary {
            rotary_dim: 8,
            pairs: RotaryPairs::Halves,
            table: RotaryTable {
                element: TableType::F32,
                positions: 20,
                stride: 4,
            },
            positions: None,
            queries: Some(QueryRows { q, out: q }),
        }),
    }
}

#[track_caller]
fn names<T>(outcome: Result<T, Error>, argument: &str) {
    match outcome {
        Err(Error::BadInput {
            argument: found, ..
        }) => assert_eq!(found, argument),
        Err(error) => panic!("{argument}: {error}"),
        Ok(_) => panic!("{argument}: accepted"),
    }
}

#[test]
fn problems_that_are_wrong() {
    let info = DeviceInfo::emulator();
    assert!(sound().plan(&info).is_ok());
    type Change = fn(&mut AppendProblem);
    let sequences = |it: &mut AppendProblem, change: fn(&mut Sequences)| {
        if let Place::Sequences(sequences) = &mut it.place {
            change(sequences);
        }
    };
    let changes: &[(&str, Change)] = &[
        ("dtype", |it| it.dtype = DType::F32),
        ("dtype", |it| it.dtype = DType::E4m3),
        ("kv_dtype", |it| it.kv_dtype = DType::Bf16),
        ("kv_dtype", |it| it.kv_dtype = DType::F32),
        ("k_scale", |it| it.kv_scales = CacheScales::PerTensor),
        ("k_scale", |it| {
            it.kv_dtype = DType::E4m3;
            it.kv_scales = CacheScales::PerSequence;
            it.place = Place::Slots;
        }),
        ("k", |it| {
            it.k.tensor = TensorLayout::contiguous([2, 3, 0, 16])
        }),
        ("k", |it| it.k.tensor.strides[3] = 2),
        ("k", |it| it.k.tensor.strides[0] = i64::MAX),
        ("k", |it| {
            it.v = None;
            it.rotary = None;
            it.k.tensor.shape[1] = 1 << 31;
        }),
        ("k_cache", |it| it.k.cache.shape[2] = 3),
        ("k_cache", |it| it.k.cache.shape[3] = 8),
        ("k_cache", |it| it.k.cache.strides[0] = 0),
        ("k_cache", |it| it.k.cache.strides[1] = i64::MAX),
        ("v", |it| it.v.as_mut().unwrap().tensor.shape[1] = 4),
        ("v_cache", |it| it.v.as_mut().unwrap().cache.shape[0] = 4),
        ("v_cache", |it| {
            it.v.as_mut().unwrap().cache.element_stride = 0
        }),
        ("rotary_dim", |it| {
            it.rotary.as_mut().unwrap().rotary_dim = 0
        }),
        ("rotary_dim", |it| {
            it.rotary.as_mut().unwrap().rotary_dim = 7
        }),
        ("rotary_dim", |it| {
            it.rotary.as_mut().unwrap().rotary_dim = 18
        }),
        ("positions", |it| it.place = Place::Slots),
        ("cos", |it| {
            it.rotary.as_mut().unwrap().table.positions = 1 << 32
        }),
        ("cos", |it| {
            it.rotary.as_mut().unwrap().table.stride = i64::MAX
        }),
        ("q", |it| queries(it).q.shape[1] = 2),
        ("q", |it| queries(it).q.shape[2] = 0),
        ("q_out", |it| queries(it).out.shape[3] = 8),
        ("q_out", |it| queries(it).out.strides[1] = 0),
    ];
    for (argument, change) in changes {
        let mut problem = sound();
        change(&mut problem);
        names(problem.plan(&info), argument);
    }
    type OfSequences = fn(&mut Sequences);
    let changes: &[(&str, OfSequences)] = &[
        ("k", |it| it.batch = 3),
        ("k", |it| it.starts = true),
        ("k_cache", |it| it.pages = None),
        ("block_table", |it| {
            it.pages.as_mut().unwrap().strides[0] = i64::MAX
        }),
    ];
    for (argument, change) in changes {
        let mut problem = sound();
        sequences(&mut problem, *change);
        names(problem.plan(&info), argument);
    }
    let mut gathered = GatherProblem {
        dtype: DType::F16,
        kv_dtype: DType::F16,
        kv_scales: CacheScales::None,
        k: sound().k,
        v: None,
        place: sound().place,
    };
    assert!(gathered.plan(&info).is_ok());
    gathered.k.tensor.strides[2] = 8;
    names(gathered.plan(&info), "k");
}

fn queries(problem: &mut AppendProblem) -> &mut QueryRows {
    problem.rotary.as_mut().unwrap().queries.as_mut().unwrap()
}

#[test]
fn slots_that_cannot_be_counted() {
    let mut problem = sound();
    problem.rotary = None;
    problem.v = None;
    problem.place = Place::Slots;
    problem.k.cache = CacheLayout::contiguous([1 << 20, 1 << 11, 2, 16]);
    names(problem.plan(&DeviceInfo::emulator()), "k_cache");
}

#[test]
fn addresses_that_are_wrong() {
    let plan = sound().plan(&DeviceInfo::emulator()).unwrap();
    let rows = RowsPointers {
        k: 0x1000,
        v: 0x2000,
        k_cache: 0x3000,
        v_cache: 0x4000,
        used: 0x5000,
        first: 0x6000,
        table: 0x7000,
        ..RowsPointers::default()
    };
    let rotary = RotaryPointers {
        cos: 0x8000,
        sin: 0x9000,
        q: 0xa000,
        q_out: 0xa000,
        ..RotaryPointers::default()
    };
    assert!(plan.params(&rows, &rotary).is_ok());
    type Change = fn(&mut RowsPointers, &mut RotaryPointers);
    let changes: &[(&str, Change)] = &[
        ("k", |it, _| it.k = 0),
        ("k", |it, _| it.k += 1),
        ("k", |it, _| it.k = u64::MAX - 1),
        ("v", |it, _| it.v = 0),
        ("k_cache", |it, _| it.k_cache = 0),
        ("v_cache", |it, _| it.v_cache += 1),
        ("used", |it, _| it.used = 0),
        ("first", |it, _| it.first += 2),
        ("block_table", |it, _| it.table = 0),
        // What the problem does not have.
        ("slots", |it, _| it.slots = 0x1000),
        ("k_scale", |it, _| it.k_scale = 0x1000),
        ("v_scale", |it, _| it.v_scale = 0x1000),
        ("starts", |it, _| it.starts = 0x1000),
        ("positions", |_, it| it.positions = 0x1000),
        ("cos", |_, it| it.cos = 0),
        ("sin", |_, it| it.sin += 2),
        ("q", |_, it| it.q = 0),
        ("q_out", |_, it| it.q_out = 0),
        // Neither in place nor elsewhere.
        ("q_out", |_, it| it.q_out += 2),
        ("q_out", |_, it| it.q_out -= 2),
    ];
    for (argument, change) in changes {
        let (mut rows, mut rotary) = (rows, rotary);
        change(&mut rows, &mut rotary);
        names(plan.params(&rows, &rotary), argument);
    }
}

#[test]
fn copies_that_are_wrong() {
    let info = DeviceInfo::emulator();
    let cache = CacheLayout::contiguous([5, 4, 2, 16]);
    let sound = CopyProblem::within(DType::F16, &cache, 3, IndexType::I64).unwrap();
    assert_eq!(sound.block_bytes, 4 * 2 * 16 * 2);
    assert!(sound.plan(&info).is_ok());
    let far = BlocksLayout {
        blocks: 3,
        stride: i64::MAX / 2 + 1,
    };
    for (argument, problem) in [
        ("src", CopyProblem { src: far, ..sound }),
        ("dst", CopyProblem { dst: far, ..sound }),
        (
            "dst",
            CopyProblem {
                dst: BlocksLayout {
                    stride: 255,
                    ..sound.dst
                },
                ..sound
            },
        ),
        (
            "pairs",
            CopyProblem {
                pairs: usize::MAX,
                ..sound
            },
        ),
    ] {
        names(problem.plan(&info), argument);
    }
    let mut gaps = cache;
    gaps.strides[1] += 1;
    names(
        CopyProblem::within(DType::F16, &gaps, 3, IndexType::I64),
        "cache",
    );
    let plan = sound.plan(&info).unwrap();
    let device = EmulatorDevice::new();
    let pair = |src, dst| [flashtile::cache::CachePair { src, dst }];
    for (argument, pairs, caches) in [
        ("pairs", 0, pair(256, 256)),
        ("pairs", 260, pair(256, 256)),
        ("src", 256, pair(0, 256)),
        ("dst", 256, pair(256, 0)),
        ("dst", 256, pair(256, u64::MAX - 100)),
    ] {
        // SAFETY: the addresses are refused before anything is launched.
        names(
            unsafe { plan.launch(&device, Stream::DEFAULT, pairs, &caches) },
            argument,
        );
    }
    assert_eq!(device.last_stats(), None);
}

#[test]
fn slots_on_the_host() {
    let cache = CacheLayout::contiguous([3, 4, 1, 8]);
    assert!(check_slots(&[0, 11, -1, 5, -1], &cache).is_ok());
    for wrong in [12, -2, i64::MIN, i64::MAX] {
        names(check_slots(&[0, wrong], &cache), "slots");
    }
    names(check_slots(&[7, 0, 7], &cache), "place");
}

/// Scales of e4m3 caches, on the device and on the host.
#[test]
fn scales_that_are_wrong() {
    let (device, info) = (EmulatorDevice::sanitizing(), DeviceInfo::emulator());
    let rows = Rows {
        tensor: TensorLayout::contiguous([1, 2, 2, 16]),
        cache: CacheLayout::contiguous([1, 2, 2, 16]),
    };
    let problem = AppendProblem {
        kv_dtype: DType::E4m3,
        kv_scales: CacheScales::PerHead,
        k: rows,
        v: Some(rows),
        place: Place::Slots,
        rotary: None,
        ..sound()
    };
    let plan = problem.plan(&info).unwrap();
    assert_eq!(plan.variant().name, "append_f16_e4m3_sm80");
    let pointers = RowsPointers {
        k: 0x1000,
        v: 0x2000,
        k_cache: 0x3001,
        v_cache: 0x4003,
        k_scale: 0x5000,
        v_scale: 0x6000,
        slots: 0x7000,
        ..RowsPointers::default()
    };
    let params = |pointers: &RowsPointers| plan.params(pointers, &RotaryPointers::default());
    // Codes are bytes: they may be anywhere.
    assert!(params(&pointers).is_ok());
    type Change = fn(&mut RowsPointers);
    let changes: &[(&str, Change)] = &[
        ("k_scale", |it| it.k_scale = 0),
        ("k_scale", |it| it.k_scale += 2),
        ("v_scale", |it| it.v_scale = 0),
    ];
    for (argument, change) in changes {
        let mut pointers = pointers;
        change(&mut pointers);
        names(params(&pointers), argument);
    }
    let elements = vec![0; 2 * 2 * 16 * 2];
    let data = CacheData {
        k: &elements,
        v: &elements,
        place: PlaceData {
            slots: &[0, 1],
            ..PlaceData::default()
        },
        k_scale: &[1.0, 2.0],
        v_scale: &[3.0, 4.0],
        ..CacheData::default()
    };
    let mut caches = [vec![1; 64], vec![1; 64]];
    let mut run = |data: &CacheData<'_>| {
        let [k_cache, v_cache] = &mut caches;
        append(&device, &problem, data, [k_cache, v_cache])
    };
    assert!(run(&data).is_ok());
    for (k_scale, v_scale, argument) in [
        (&[1.0][..], &[3.0, 4.0][..], "k_scale"),
        (&[1.0, 0.0], &[3.0, 4.0], "k_scale"),
        (&[1.0, -2.0], &[3.0, 4.0], "k_scale"),
        (&[1.0, 2.0], &[], "v_scale"),
        (&[1.0, 2.0], &[f32::NAN, 4.0], "v_scale"),
        (&[1.0, 2.0], &[3.0, f32::INFINITY], "v_scale"),
    ] {
        let data = CacheData {
            k_scale,
            v_scale,
            ..data
        };
        names(run(&data), argument);
    }
    assert_eq!(caches, [vec![0; 64], vec![0; 64]]);
}

/// The numbers of the sound problem, through the host's memory.
#[test]
fn numbers_on_the_host() {
    let problem = sound();
    let bytes = |n: usize| vec![0x3c; n];
    let (k, q, table) = (
        bytes(2 * 3 * 2 * 16 * 2),
        bytes(2 * 3 * 4 * 16 * 2),
        bytes(20 * 4 * 4),
    );
    let data = CacheData {
        k: &k,
        v: &k,
        place: PlaceData {
            used: &[3, 2],
            first: &[2, 0],
            table: &[4, 0, 2, 99],
            ..PlaceData::default()
        },
        cos: &table,
        sin: &table,
        q: &q,
        ..CacheData::default()
    };
    let device = EmulatorDevice::sanitizing();
    let fresh = || bytes(5 * 4 * 2 * 16 * 2);
    let (mut k_cache, mut v_cache) = (vec![0; fresh().len()], vec![0; fresh().len()]);
    let turned = append(&device, &problem, &data, [&mut k_cache, &mut v_cache]).unwrap();
    assert_eq!(turned.len(), q.len());
    // Rows 2 to 4 of sequence 0, rows 0 and 1 of sequence 1.
    let row = 2 * 16 * 2;
    for slot in 0..5 * 4 {
        let written = [4 * 4 + 2, 4 * 4 + 3, 0, 2 * 4, 2 * 4 + 1].contains(&slot);
        let found = &v_cache[slot * row..(slot + 1) * row];
        assert!(
            found.iter().all(|&byte| (byte == 0x3c) == written),
            "{slot}"
        );
    }
    let gathered = GatherProblem {
        dtype: DType::F16,
        kv_dtype: DType::F16,
        kv_scales: CacheScales::None,
        k: problem.k,
        v: problem.v,
        place: problem.place,
    };
    let [_, v] = gather(
        &device,
        &gathered,
        &data.place,
        [&k_cache, &v_cache],
        [&[]; 2],
    )
    .unwrap();
    let rows: Vec<bool> = v
        .chunks(row)
        .map(|row| row.iter().all(|&x| x == 0x3c))
        .collect();
    assert_eq!(rows, [true, true, true, true, true, false]);

    type Change = fn(&mut CacheData<'_>);
    let changes: &[(&str, Change)] = &[
        ("k", |it| it.k = &it.k[1..]),
        ("v", |it| it.v = &[]),
        ("cos", |it| it.cos = &it.cos[1..]),
        ("sin", |it| it.sin = &[]),
        ("q", |it| it.q = &it.q[1..]),
        ("used", |it| it.place.used = &[3]),
        ("used", |it| it.place.used = &[4, 0]),
        ("used", |it| it.place.used = &[-1, 0]),
        ("first", |it| it.place.first = &[6, 0]),
        ("first", |it| it.place.first = &[-1, 0]),
        ("first", |it| it.place.first = &[i32::MAX, 0]),
        ("block_table", |it| it.place.table = &[4, 0, 2]),
        ("block_table", |it| it.place.table = &[4, 5, 2, 0]),
        ("block_table", |it| it.place.table = &[4, 0, -1, 0]),
        ("slots", |it| it.place.slots = &[1]),
        ("starts", |it| it.place.starts = &[0, 1, 2]),
        // Two sequences in one page.
        ("place", |it| {
            it.place.first = &[0, 0];
            it.place.table = &[4, 0, 4, 0];
        }),
    ];
    for (argument, change) in changes {
        let mut data = data;
        change(&mut data);
        let (mut a, mut b) = (fresh(), fresh());
        let outcome = append(&device, &problem, &data, [&mut a, &mut b]);
        names(outcome, argument);
        assert_eq!((a, b), (fresh(), fresh()));
    }
    let (mut a, mut b) = (fresh(), vec![0; 10]);
    names(
        append(&device, &problem, &data, [&mut a, &mut b]),
        "v_cache",
    );
    let mut short = problem;
    short.rotary.as_mut().unwrap().table.positions = 4;
    let (mut a, mut b) = (fresh(), fresh());
    names(
        append(&device, &short, &data, [&mut a, &mut b]),
        "positions",
    );
}

#[test]
fn starts_on_the_host() {
    let rows = Rows {
        tensor: TensorLayout::contiguous([1, 6, 1, 8]),
        cache: CacheLayout::contiguous([3, 4, 1, 8]),
    };
    let place = Place::Sequences(Sequences {
        batch: 3,
        starts: true,
        used: false,
        first: false,
        pages: None,
    });
    let of = |starts: &[i32]| {
        let data = PlaceData {
            starts,
            ..PlaceData::default()
        };
        place.rows([1, 6], &rows.cache, &data)
    };
    let found = of(&[0, 2, 2, 5]).unwrap();
    let expected = [
        Some([0, 0]),
        Some([0, 1]),
        Some([2, 0]),
        Some([2, 1]),
        Some([2, 2]),
        None,
    ];
    assert_eq!(found, expected);
    for wrong in [[1, 2, 3, 4], [0, 3, 2, 4], [0, 2, 3, 7], [0, -1, 3, 4]] {
        names(of(&wrong), "starts");
    }
    names(of(&[0, 2, 3]), "starts");
    // Sequences that are no batches of the tensors, and more tokens than can be counted.
    for shape in [[2, 6], [1, usize::MAX]] {
        names(place.rows(shape, &rows.cache, &PlaceData::default()), "k");
    }
    // More than a block holds.
    names(of(&[0, 5, 5, 6]), "first");
}
