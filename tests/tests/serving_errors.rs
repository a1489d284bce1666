//! Bad input of inference engines: each is named, before anything is launched or computed.

use flashtile::{
    CausalAlignment, DType, DeviceInfo, Error, TensorLayout,
    serving::{
        BiasType, CacheLayout, MaskType, PageTable, PairLayout, ServingInputs, ServingPointers,
        ServingProblem, Splits, attention_cpu,
    },
};

const DEVICE: fn() -> DeviceInfo = DeviceInfo::emulator;

/// Two sequences in pages of four rows, with everything that scores can have.
fn problem() -> ServingProblem {
    let cache = CacheLayout::contiguous([6, 4, 2, 8]);
    ServingProblem::new(
        DType::F16,
        2,
        TensorLayout::contiguous([1, 5, 4, 8]),
        cache,
        cache,
    )
    .pages(PageTable::contiguous(3))
    .q_starts(3)
    .k_used(12)
    .causal(CausalAlignment::BottomRight)
    .alibi(false)
    .sink(true)
    .ranges(1)
    .bias(PairLayout::bias(BiasType::F32, [1, 1, 1, 12]))
    .mask(PairLayout::mask(MaskType::Byte, [1, 1, 3, 12]))
    .lse(true)
}

/// Its numbers.
fn inputs() -> ServingInputs<'static> {
    ServingInputs {
        q: &[0; 320],
        k: &[0; 768],
        v: &[0; 768],
        q_starts: &[0, 3, 5],
        k_used: &[9, 4],
        table: &[5, 0, 3, 1, -1, 77],
        alibi: &[0.5; 4],
        sink: &[0.0, f32::NEG_INFINITY, 1.0, 2.0],
        bias: &[0; 48],
        mask: &[1; 36],
        ranges: &[0, 3, 1, 0],
        ..ServingInputs::default()
    }
}

/// The argument that a message names, and the message.
#[track_caller]
fn refused(argument: &str, says: &str, result: Result<impl Sized, Error>) {
    let Err(error) = result else {
        panic!("{argument}: accepted");
    };
    let Error::BadInput {
        argument: named, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*named, argument, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn sound_numbers_pass() {
    attention_cpu(&problem(), &inputs()).unwrap();
    problem().check_metadata(&inputs()).unwrap();
}

#[test]
fn numbers_that_are_not() {
    let cases: &[(&str, &str, ServingInputs<'_>)] = &[
        (
            "q_starts",
            "0 at first",
            ServingInputs {
                q_starts: &[1, 3, 5],
                ..inputs()
            },
        ),
        (
            "q_starts",
            "never decrease",
            ServingInputs {
                q_starts: &[0, 3, 2],
                ..inputs()
            },
        ),
        (
            "q_starts",
            "at most 5 tokens",
            ServingInputs {
                q_starts: &[0, 3, 6],
                ..inputs()
            },
        ),
        (
            "q_starts",
            "4 tokens of sequence 0",
            ServingInputs {
                q_starts: &[0, 4, 5],
                ..inputs()
            },
        ),
        (
            "q_starts",
            "3 numbers",
            ServingInputs {
                q_starts: &[0, 3],
                ..inputs()
            },
        ),
        (
            "q_used",
            "no numbers",
            ServingInputs {
                q_used: &[1, 1],
                ..inputs()
            },
        ),
        (
            "k_used",
            "-1",
            ServingInputs {
                k_used: &[-1, 4],
                ..inputs()
            },
        ),
        (
            "k_used",
            "13",
            ServingInputs {
                k_used: &[13, 4],
                ..inputs()
            },
        ),
        (
            "table",
            "entry 2 of sequence 0",
            ServingInputs {
                table: &[5, 0, 6, 1, 0, 0],
                ..inputs()
            },
        ),
        (
            "table",
            "-1",
            ServingInputs {
                table: &[5, -1, 3, 1, 0, 0],
                ..inputs()
            },
        ),
        (
            "table",
            "at least 6",
            ServingInputs {
                table: &[5, 0, 3, 1, 0],
                ..inputs()
            },
        ),
        (
            "alibi",
            "finite",
            ServingInputs {
                alibi: &[0.0, f32::NAN, 0.0, 0.0],
                ..inputs()
            },
        ),
        (
            "alibi",
            "finite",
            ServingInputs {
                alibi: &[f32::INFINITY; 4],
                ..inputs()
            },
        ),
        (
            "alibi",
            "4 numbers",
            ServingInputs {
                alibi: &[0.0; 8],
                ..inputs()
            },
        ),
        (
            "sink",
            "NaN",
            ServingInputs {
                sink: &[f32::NAN; 4],
                ..inputs()
            },
        ),
        (
            "sink",
            "inf",
            ServingInputs {
                sink: &[f32::INFINITY; 4],
                ..inputs()
            },
        ),
        (
            "bias",
            "at least 48 bytes",
            ServingInputs {
                bias: &[0; 47],
                ..inputs()
            },
        ),
        (
            "mask",
            "at least 36 bytes",
            ServingInputs {
                mask: &[0; 35],
                ..inputs()
            },
        ),
        (
            "ranges",
            "-1 to 3",
            ServingInputs {
                ranges: &[0, 3, -1, 3],
                ..inputs()
            },
        ),
        (
            "q",
            "at least 320 bytes",
            ServingInputs {
                q: &[0; 319],
                ..inputs()
            },
        ),
        (
            "k",
            "at least 768 bytes",
            ServingInputs { k: &[], ..inputs() },
        ),
        (
            "v",
            "at least 768 bytes",
            ServingInputs { v: &[], ..inputs() },
        ),
    ];
    for (argument, says, inputs) in cases {
        refused(argument, says, attention_cpu(&problem(), inputs));
    }
    // Entries behind a sequence's keys may be anything.
    let table = &[5, 0, 3, 1, i32::MIN, i32::MAX];
    attention_cpu(&problem(), &ServingInputs { table, ..inputs() }).unwrap();
}

#[test]
fn problems_that_are_none() {
    type Change = fn(&mut ServingProblem);
    let cases: &[(&str, &str, Change)] = &[
        ("dtype", "f16", |p| p.dtype = DType::E4m3),
        ("q", "at least one head", |p| p.q.shape[2] = 0),
        ("q", "multiple of k's 2", |p| {
            p.q = TensorLayout::contiguous([1, 5, 3, 8])
        }),
        ("q", "one block", |p| {
            p.q = TensorLayout::contiguous([2, 5, 4, 8])
        }),
        ("q", "head_dim", |p| p.q.shape[3] = 0),
        ("k", "shape", |p| p.k.shape[3] = 16),
        ("v", "shape", |p| p.v.shape[1] = 5),
        ("out", "shape", |p| p.out.shape[1] = 4),
        ("out", "overlap", |p| p.out.strides[1] = 1),
        ("k", "at least one row", |p| {
            p.k.shape[1] = 0;
            p.v.shape[1] = 0;
        }),
        ("k", "63 bits", |p| p.k.strides[0] = i64::MAX),
        ("k", "at least one element", |p| p.k.chunk = 0),
        ("table", "63 bits", |p| {
            p.pages = Some(PageTable {
                entries: 3,
                strides: [i64::MAX, 1],
            })
        }),
        ("q", "longest", |p| p.q_lengths.longest = usize::MAX),
        ("scale", "finite", |p| p.scale = Some(f32::NAN)),
        ("scale", "finite", |p| p.scale = Some(f32::INFINITY)),
        ("softcap", "positive", |p| p.softcap = Some(0.0)),
        ("softcap", "positive", |p| p.softcap = Some(f32::NAN)),
        ("bias", "broadcasts", |p| {
            p.bias = Some(PairLayout::bias(BiasType::F32, [1, 2, 1, 1]))
        }),
        ("bias", "63 bits", |p| {
            p.bias = Some(PairLayout {
                strides: [1, 1, 1, i64::MAX],
                ..PairLayout::bias(BiasType::F32, [1, 1, 1, 12])
            });
        }),
        ("mask", "a bit for each", |p| {
            p.mask = Some(PairLayout::mask(MaskType::Bit, [1, 1, 1, 1]))
        }),
        ("ranges", "2^31", |p| p.ranges = Some(usize::MAX)),
    ];
    for (argument, says, change) in cases {
        let mut problem = problem();
        change(&mut problem);
        refused(argument, says, attention_cpu(&problem, &inputs()));
        refused(argument, says, problem.plan(&DEVICE()));
    }
    refused(
        "splits",
        "at least one key",
        problem().splits(Splits::Keys(0)).plan(&DEVICE()),
    );
    let mut wide = problem();
    wide.softcap = Some(1e-30);
    wide.scale = Some(1e30);
    refused("softcap", "divided", wide.plan(&DEVICE()));
}

#[test]
fn sequences_longer_than_said() {
    let cache = CacheLayout::contiguous([2, 7, 1, 8]);
    let q = TensorLayout::contiguous([2, 3, 1, 8]);
    let mut problem = ServingProblem::new(DType::F16, 2, q, cache, cache);
    problem.k_lengths.longest = 6;
    refused("k", "sequences of 7 tokens", problem.plan(&DEVICE()));
    let problem = ServingProblem::new(DType::F16, 2, q, cache, cache).k_used(6);
    let bytes = [0; 2 * 7 * 8 * 2];
    let inputs = ServingInputs {
        q: &bytes,
        k: &bytes,
        v: &bytes,
        k_used: &[7, 0],
        ..ServingInputs::default()
    };
    refused(
        "k_used",
        "7 tokens of sequence 0",
        attention_cpu(&problem, &inputs),
    );
}

#[test]
fn no_kernel() {
    let plan = |dtype, dim| {
        let layout = CacheLayout::contiguous([1, 4, 1, dim]);
        let q = TensorLayout::contiguous([1, 1, 1, dim]);
        ServingProblem::new(dtype, 1, q, layout, layout).plan(&DEVICE())
    };
    for (dtype, dim, says) in [
        (DType::F32, 64, "f32 queries"),
        (DType::F16, 257, "beyond the widest"),
    ] {
        let error = plan(dtype, dim).unwrap_err();
        assert!(matches!(error, Error::NoVariant { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn addresses() {
    let plan = problem().splits(Splits::Keys(4)).plan(&DEVICE()).unwrap();
    let sound = ServingPointers {
        q: 0x1000,
        k: 0x2000,
        v: 0x3000,
        out: 0x4000,
        lse: Some(0x5000),
        q_starts: 0x6000,
        k_used: 0x7000,
        table: 0x8000,
        alibi: 0x9000,
        sink: 0xa000,
        bias: 0xb000,
        mask: 0xc000,
        ranges: 0xd000,
        workspace: 0xe000,
        ..ServingPointers::default()
    };
    plan.params(&sound).unwrap();
    type Change = fn(&mut ServingPointers);
    let cases: &[(&str, &str, Change)] = &[
        ("q", "null", |p| p.q = 0),
        ("k", "multiple of 2", |p| p.k = 1),
        ("v", "null", |p| p.v = 0),
        ("out", "null", |p| p.out = 0),
        ("lse", "wants it", |p| p.lse = None),
        ("q_starts", "null", |p| p.q_starts = 0),
        ("q_starts", "multiple of 4", |p| p.q_starts = 2),
        ("q_used", "no such tensor", |p| p.q_used = 16),
        ("k_starts", "no such tensor", |p| p.k_starts = 16),
        ("k_used", "null", |p| p.k_used = 0),
        ("table", "null", |p| p.table = 0),
        ("alibi", "null", |p| p.alibi = 0),
        ("sink", "multiple of 4", |p| p.sink = 2),
        ("bias", "null", |p| p.bias = 0),
        ("mask", "null", |p| p.mask = 0),
        ("ranges", "null", |p| p.ranges = 0),
        ("workspace", "null", |p| p.workspace = 0),
        ("workspace", "multiple of 256", |p| p.workspace = 128),
        ("q", "address space", |p| p.q = u64::MAX - 15),
    ];
    for (argument, says, change) in cases {
        let mut pointers = sound;
        change(&mut pointers);
        refused(argument, says, plan.params(&pointers));
    }
}
