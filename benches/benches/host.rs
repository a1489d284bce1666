//! What the host does for a launch: plans, and launches on a device that does nothing. Aims: 20 us for a plan, and 3 us of the library's
//! own for a launch.
//!
//! Where the driver is the stand-in of flashtile-gpu-check (docs/benchmarks.md says how), launches go through [`CudaDevice`] as well: its
//! part of a launch (the context made the thread's own, the kernel looked up) is in them, and the stand-in's.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use flashtile::{
    CausalAlignment, CudaDevice, DType, Device, DeviceInfo, DeviceKind, Entry, LaunchConfig,
    Pointers, Problem, Result, Shape, Stream, TensorLayout, TensorMap, TensorMapSpec,
    cache::{
        AppendPlan, AppendProblem, IndexType, Place, QueryRows, Rotary, RotaryPairs,
        RotaryPointers, RotaryTable, Rows, RowsPointers, TableType,
    },
    checked::{Checks, MetadataReport},
    serving::{
        CacheLayout, CacheScales, PageTable, ServingPlan, ServingPointers, ServingProblem, Splits,
    },
};

/// Looks like an H200, and does nothing.
#[derive(Debug)]
struct Null {
    info: DeviceInfo,
    next: std::sync::atomic::AtomicU64,
}

impl Null {
    fn new() -> Self {
        Self {
            info: DeviceInfo {
                kind: DeviceKind::Cuda,
                name: "null".into(),
                compute_capability: (9, 0),
                multiprocessors: 132,
                shared_bytes_per_block: 227 * 1024,
                total_memory: 141 << 30,
                driver_lacks: None,
            },
            next: (1 << 20).into(),
        }
    }
}

impl Device for Null {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let bytes = bytes.next_multiple_of(256) as u64;
        Ok(self
            .next
            .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed))
    }

    unsafe fn free(&self, _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn read(&self, _: u64, destination: &mut [u8]) -> Result<()> {
        destination.fill(0);
        Ok(())
    }

    unsafe fn fill(&self, _: u64, _: usize, _: u8) -> Result<()> {
        Ok(())
    }

    fn load(&self, _: &'static Entry) -> Result<()> {
        Ok(())
    }

    unsafe fn override_ptx(&self, _: &'static Entry, _: &str) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()> {
        black_box((kernel, config, params, stream));
        Ok(())
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        Ok(black_box((spec, TensorMap([0; 16]))).1)
    }

    unsafe fn order(&self, _: Stream, _: Stream) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// Any address that is a multiple of 256.
const SOMEWHERE: u64 = 1 << 30;

fn dense() -> Problem {
    let shape = Shape {
        batch: 4,
        seqlen_q: 4096,
        seqlen_k: 4096,
        heads_q: 32,
        heads_kv: 8,
        head_dim_qk: 128,
        head_dim_v: 128,
    };
    Problem::contiguous(DType::Bf16, shape).causal(CausalAlignment::BottomRight)
}

const DENSE: Pointers = Pointers {
    q: SOMEWHERE,
    k: SOMEWHERE,
    v: SOMEWHERE,
    out: SOMEWHERE,
    lse: None,
    q_scale: 0,
    k_scale: 0,
    v_scale: 0,
    workspace: 0,
};

/// Pages of 16, of which each sequence has up to 512.
fn pages(dim: usize) -> CacheLayout {
    CacheLayout::contiguous([65_536, 16, 8, dim])
}

/// 8192 tokens of up to 64 sequences, over a prefix in pages.
fn prefill() -> ServingProblem {
    let q = TensorLayout::contiguous([1, 8192, 32, 128]);
    ServingProblem::new(DType::Bf16, 64, q, pages(128), pages(128))
        .q_starts(2048)
        .pages(PageTable::contiguous(512))
        .k_used(8192)
        .causal(CausalAlignment::BottomRight)
}

/// A token of each of 64 sequences.
fn decode() -> ServingProblem {
    let q = TensorLayout::contiguous([64, 1, 32, 128]);
    ServingProblem::new(DType::Bf16, 64, q, pages(128), pages(128))
        .pages(PageTable::contiguous(512))
        .k_used(8192)
        .causal(CausalAlignment::BottomRight)
        .splits(Splits::Keys(1024))
}

fn serving(plan: &ServingPlan) -> ServingPointers {
    let lengths = plan.problem().q_lengths;
    let or_0 = |exists: bool| if exists { SOMEWHERE } else { 0 };
    ServingPointers {
        q: SOMEWHERE,
        k: SOMEWHERE,
        v: SOMEWHERE,
        out: SOMEWHERE,
        q_starts: or_0(lengths.starts),
        k_used: SOMEWHERE,
        table: SOMEWHERE,
        workspace: or_0(plan.workspace_bytes() > 0),
        ..ServingPointers::default()
    }
}

/// Keys and values of a token of each of 64 sequences, keys and queries turned.
fn append() -> AppendProblem {
    let rows = Rows {
        tensor: TensorLayout::contiguous([1, 64, 8, 128]),
        cache: pages(128),
    };
    let q = TensorLayout::contiguous([1, 64, 32, 128]);
    AppendProblem {
        dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        kv_scales: CacheScales::None,
        k: rows,
        v: Some(rows),
        place: Place::Slots,
        rotary: Some(Rotary {
            rotary_dim: 128,
            pairs: RotaryPairs::Halves,
            table: RotaryTable {
                element: TableType::F32,
                positions: 8192,
                stride: 64,
            },
            positions: Some(IndexType::I64),
            queries: Some(QueryRows { q, out: q }),
        }),
    }
}

const ROWS: RowsPointers = RowsPointers {
    k: SOMEWHERE,
    v: SOMEWHERE,
    k_cache: SOMEWHERE,
    v_cache: 2 * SOMEWHERE,
    k_scale: 0,
    v_scale: 0,
    slots: SOMEWHERE,
    starts: 0,
    used: 0,
    first: 0,
    table: 0,
};

const ROTARY: RotaryPointers = RotaryPointers {
    cos: SOMEWHERE,
    sin: SOMEWHERE,
    positions: SOMEWHERE,
    q: SOMEWHERE,
    q_out: SOMEWHERE,
};

fn plans(c: &mut Criterion) {
    let device = Null::new();
    let info = device.info();
    let mut group = c.benchmark_group("plan");
    let (dense, prefill, decode, append) = (dense(), prefill(), decode(), append());
    group.bench_function("dense", |b| {
        b.iter(|| black_box(&dense).plan(info).unwrap())
    });
    group.bench_function("prefill", |b| {
        b.iter(|| black_box(&prefill).plan(info).unwrap())
    });
    group.bench_function("decode", |b| {
        b.iter(|| black_box(&decode).plan(info).unwrap())
    });
    group.bench_function("append", |b| {
        b.iter(|| black_box(&append).plan(info).unwrap())
    });
    group.finish();
}

/// Launches on a device on which kernels do nothing, whatever their addresses are.
fn launches(c: &mut Criterion, name: &str, device: &dyn Device) {
    let info = device.info();
    let dense = dense().plan(info).unwrap();
    let [prefill, decode] = [prefill(), decode()].map(|problem| problem.plan(info).unwrap());
    let append: AppendPlan = append().plan(info).unwrap();
    let report = MetadataReport::new(device).unwrap();
    let checks = Checks::new(&report);
    let stream = Stream::DEFAULT;
    let mut group = c.benchmark_group(name);
    group.bench_function("dense", |b| {
        // SAFETY: nothing looks at the addresses.
        b.iter(|| unsafe { dense.launch(device, stream, black_box(&DENSE)).unwrap() })
    });
    for (name, plan) in [("prefill", &prefill), ("decode_and_merge", &decode)] {
        let pointers = serving(plan);
        group.bench_function(name, |b| {
            // SAFETY: as above.
            b.iter(|| unsafe { plan.launch(device, stream, black_box(&pointers)).unwrap() })
        });
        group.bench_function(format!("{name}_checked"), |b| {
            b.iter(|| {
                let pointers = black_box(&pointers);
                // SAFETY: as above.
                unsafe { plan.launch_checked(device, stream, pointers, &checks) }.unwrap();
            })
        });
    }
    group.bench_function("append", |b| {
        b.iter(|| {
            // SAFETY: as above.
            unsafe { append.launch(device, stream, black_box(&ROWS), &ROTARY) }.unwrap();
        })
    });
    group.bench_function("append_checked", |b| {
        b.iter(|| {
            let rows = black_box(&ROWS);
            // SAFETY: as above.
            unsafe { append.launch_checked(device, stream, rows, &ROTARY, &checks) }.unwrap();
        })
    });
    group.finish();
}

fn null_device(c: &mut Criterion) {
    launches(c, "launch", &Null::new());
}

fn null_driver(c: &mut Criterion) {
    // On a GPU, kernels would follow the addresses.
    match CudaDevice::new(0) {
        Ok(device)
            if device.info().name.starts_with("stand-in")
                && std::env::var("FLASHTILE_STAND_IN_LAUNCHES").is_ok_and(|it| it == "none") =>
        {
            launches(c, "launch_stand_in", &device);
        }
        _ => {}
    }
}

criterion_group!(benches, plans, null_device, null_driver);
criterion_main!(benches);
