//! What the library calls while a stream is taking down its work, over the stand-in for the driver; and what a graph does on replays with
//! other numbers in the device's memory.

#![cfg(unix)]

mod common;

use std::fs;

use common::{in_a_process_with_the_stand_in, with_the_stand_in_and};
use flashtile::{
    CausalAlignment, CudaDevice, DType, Device, DeviceBuffer, Stream, TensorLayout,
    cache::{
        AppendPlan, AppendProblem, GatherPlan, GatherProblem, Place, RotaryPointers, Rows,
        RowsPointers,
    },
    checked::{Checks, MetadataReport},
    serving::{
        CacheLayout, CacheScales, PageTable, ServingInputs, ServingPlan, ServingPointers,
        ServingProblem, Splits, attention,
    },
};

/// Sequences, entries of each in the table, rows of a page, pages.
const BATCH: usize = 3;
const ENTRIES: usize = 4;
const PAGE: usize = 16;
const PAGES: usize = BATCH * ENTRIES;
/// Query heads, key/value heads, elements of a row.
const HEADS: [usize; 2] = [4, 2];
const DIM: usize = 64;

fn bytes<T: Copy, const N: usize>(numbers: &[T], of: fn(T) -> [u8; N]) -> Vec<u8> {
    numbers.iter().flat_map(|&x| of(x)).collect()
}

/// f16 numbers between 1/2 and 1.
fn values(count: usize) -> Vec<u8> {
    let numbers: Vec<u16> = (0..count)
        .map(|i| 0x3800 | (i * 37 % 1024) as u16)
        .collect();
    bytes(&numbers, u16::to_le_bytes)
}

/// One new token for each sequence: appended to the cache, then attended from, keys split in two.
struct Step<'d> {
    device: &'d CudaDevice,
    append: AppendPlan,
    gather: GatherPlan,
    decode: ServingPlan,
    q: DeviceBuffer<'d>,
    new: [DeviceBuffer<'d>; 2],
    gathered: DeviceBuffer<'d>,
    cache: [DeviceBuffer<'d>; 2],
    out: DeviceBuffer<'d>,
    workspace: DeviceBuffer<'d>,
    slots: DeviceBuffer<'d>,
    used: DeviceBuffer<'d>,
    table: DeviceBuffer<'d>,
}

impl<'d> Step<'d> {
    fn new(device: &'d CudaDevice) -> Self {
        let [heads_q, heads_kv] = HEADS;
        let layout = CacheLayout::contiguous([PAGES, PAGE, heads_kv, DIM]);
        let rows = Rows {
            tensor: TensorLayout::contiguous([BATCH, 1, heads_kv, DIM]),
            cache: layout,
        };
        let append = AppendProblem {
            dtype: DType::F16,
            kv_dtype: DType::F16,
            kv_scales: CacheScales::None,
            k: rows,
            v: Some(rows),
            place: Place::Slots,
            rotary: None,
        };
        let gather = GatherProblem {
            dtype: DType::F16,
            kv_dtype: DType::F16,
            kv_scales: CacheScales::None,
            k: rows,
            v: None,
            place: Place::Slots,
        };
        let q = TensorLayout::contiguous([BATCH, 1, heads_q, DIM]);
        let decode = ServingProblem::new(DType::F16, BATCH, q, layout, layout)
            .pages(PageTable::contiguous(ENTRIES))
            .k_used(ENTRIES * PAGE)
            .causal(CausalAlignment::BottomRight)
            .splits(Splits::Keys(ENTRIES * PAGE / 2));
        let info = device.info();
        let decode = decode.plan(info).unwrap();
        let from = |source: &[u8]| DeviceBuffer::from_bytes(device, source).unwrap();
        let new = BATCH * heads_kv * DIM;
        let all = PAGES * PAGE * heads_kv * DIM;
        Self {
            device,
            append: append.plan(info).unwrap(),
            gather: gather.plan(info).unwrap(),
            q: from(&values(BATCH * heads_q * DIM)),
            new: [from(&values(new)), from(&values(new))],
            gathered: DeviceBuffer::zeroed(device, 2 * new).unwrap(),
            cache: [from(&values(all)), from(&values(all))],
            out: DeviceBuffer::zeroed(device, 2 * BATCH * heads_q * DIM).unwrap(),
            workspace: DeviceBuffer::uninitialized(device, decode.workspace_bytes()).unwrap(),
            slots: DeviceBuffer::zeroed(device, 8 * BATCH).unwrap(),
            used: DeviceBuffer::zeroed(device, 4 * BATCH).unwrap(),
            table: DeviceBuffer::zeroed(device, 4 * PAGES).unwrap(),
            decode,
        }
    }

    /// Loads every kernel, as a capture wants it.
    fn load(&self) {
        let kernels = self.decode.kernels();
        let cache = [&self.append.variant().entry, &self.gather.variant().entry];
        for kernel in kernels.chain(cache) {
            self.device.load(kernel).unwrap();
        }
    }

    /// Puts lengths, pages and slots into the device's memory.
    fn set(&mut self, used: [i32; BATCH], table: &[i32], slots: [i64; BATCH]) {
        self.used.write(&bytes(&used, i32::to_le_bytes)).unwrap();
        self.table.write(&bytes(table, i32::to_le_bytes)).unwrap();
        self.slots.write(&bytes(&slots, i64::to_le_bytes)).unwrap();
    }

    /// What a serving engine enqueues for a step.
    fn enqueue(
        &self,
        stream: Stream,
        report: Option<&MetadataReport<'_>>,
    ) -> flashtile::Result<()> {
        let [k, v] = [0, 1].map(|n| self.new[n].address());
        let [k_cache, v_cache] = [0, 1].map(|n| self.cache[n].address());
        let rows = RowsPointers {
            k,
            v,
            k_cache,
            v_cache,
            slots: self.slots.address(),
            ..RowsPointers::default()
        };
        let gathered = RowsPointers {
            k: self.gathered.address(),
            v: 0,
            v_cache: 0,
            ..rows
        };
        let rotary = RotaryPointers::default();
        let pointers = ServingPointers {
            q: self.q.address(),
            k: k_cache,
            v: v_cache,
            out: self.out.address(),
            k_used: self.used.address(),
            table: self.table.address(),
            workspace: self.workspace.address(),
            ..ServingPointers::default()
        };
        let (append, gather, decode) = (&self.append, &self.gather, &self.decode);
        // SAFETY: the buffers are as large as the problems say, and nothing else uses them; the stand-in's emulator checks every access.
        unsafe {
            match report {
                None => {
                    append.launch(self.device, stream, &rows, &rotary)?;
                    gather.launch(self.device, stream, &gathered)?;
                    decode.launch(self.device, stream, &pointers)
                }
                Some(report) => {
                    let checks = Checks::new(report);
                    append.launch_checked(self.device, stream, &rows, &rotary, &checks)?;
                    gather.launch_checked(self.device, stream, &gathered, &checks)?;
                    decode.launch_checked(self.device, stream, &pointers, &checks)
                }
            }
        }
    }

    /// The output that another launch gives, planned and uploaded anew.
    fn expected(&self, used: [i32; BATCH], table: &[i32]) -> Vec<u8> {
        let read = |buffer: &DeviceBuffer<'_>| buffer.to_vec().unwrap();
        let (q, k, v) = (read(&self.q), read(&self.cache[0]), read(&self.cache[1]));
        let inputs = ServingInputs {
            q: &q,
            k: &k,
            v: &v,
            k_used: &used,
            table,
            ..ServingInputs::default()
        };
        let problem = self.decode.problem();
        attention(self.device, problem, &inputs).unwrap().out
    }
}

/// What may be called while a stream is taking down its work: contexts made a thread's own, launches, and the end. Not: anything that
/// allocates, frees, copies, waits, asks, or loads.
const ALLOWED: [&str; 5] = [
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuStreamEndCapture",
];

/// The calls that were noted: launches, and what is not allowed.
fn noted(file: &std::path::Path) -> (usize, Vec<String>) {
    let text = fs::read_to_string(file).unwrap();
    let launches = text.lines().filter(|call| call.starts_with("cuLaunch"));
    let others = text.lines().filter(|call| !ALLOWED.contains(call));
    (launches.count(), others.map(str::to_owned).collect())
}

fn with_calls_noted(test: &str) -> (usize, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls");
    let name = file.to_str().unwrap();
    with_the_stand_in_and(test, &[("FLASHTILE_STAND_IN_CALLS", name)]);
    noted(&file)
}

#[test]
fn captures_launch_and_nothing_else() {
    let (launches, others) = with_calls_noted("captures_launch_and_nothing_else_inner");
    assert_eq!(others, Vec::<String>::new());
    // Append, gather, decode, merge; and before each but the last the checking kernel, the second time.
    assert_eq!(launches, 4 + 7);
}

#[test]
#[ignore = "run by captures_launch_and_nothing_else"]
fn captures_launch_and_nothing_else_inner() {
    let device = CudaDevice::new(0).unwrap();
    let step = Step::new(&device);
    step.load();
    let report = MetadataReport::new(&device).unwrap();
    let stream = device.stream().unwrap();
    for report in [None, Some(&report)] {
        let graph = stream.capture(|| step.enqueue(stream.stream(), report));
        drop(graph.unwrap());
    }
}

/// That the test above would see it: a kernel that was not loaded before.
#[test]
fn captures_that_load_are_seen() {
    let (_, others) = with_calls_noted("captures_that_load_are_seen_inner");
    let loads = |call: &&String| *call == "cuModuleLoadDataEx";
    assert_eq!(others.iter().filter(loads).count(), 4);
}

#[test]
#[ignore = "run by captures_that_load_are_seen"]
fn captures_that_load_are_seen_inner() {
    let device = CudaDevice::new(0).unwrap();
    let step = Step::new(&device);
    let stream = device.stream().unwrap();
    let graph = stream.capture(|| step.enqueue(stream.stream(), None));
    drop(graph.unwrap());
}

#[test]
fn replays_follow_the_memory() {
    in_a_process_with_the_stand_in("replays_follow_the_memory_inner");
}

#[test]
#[ignore = "run by replays_follow_the_memory"]
fn replays_follow_the_memory_inner() {
    let device = CudaDevice::new(0).unwrap();
    let mut step = Step::new(&device);
    step.load();
    let report = MetadataReport::new(&device).unwrap();
    let stream = device.stream().unwrap();
    let graph = stream
        .capture(|| step.enqueue(stream.stream(), Some(&report)))
        .unwrap();
    let ascending: Vec<i32> = (0..PAGES as i32).collect();
    let descending: Vec<i32> = ascending.iter().rev().copied().collect();
    let replay = || {
        // SAFETY: the buffers are alive, and nothing else uses them.
        unsafe { stream.launch(&graph) }.unwrap();
        stream.synchronize().unwrap();
    };

    // Fewer sequences than were planned: those left over have no keys here; what is theirs is 0.
    let mut outputs = Vec::new();
    for (used, table, slots) in [
        ([1, 40, 64], &ascending, [0, 5, 100]),
        ([33, 17, 0], &descending, [1, -1, -1]),
        ([64, 64, 64], &descending, [-1, -1, 191]),
    ] {
        step.set(used, table, slots);
        replay();
        report.look().unwrap();
        let found = step.out.to_vec().unwrap();
        assert_eq!(found, step.expected(used, table));
        outputs.push(found);
    }
    assert_ne!(outputs[0], outputs[1]);
    assert_ne!(outputs[1], outputs[2]);

    // Numbers that are wrong: of several replays, the first one's are told, once; and of those of one, the first by the rules' order.
    step.set([65, -1, 64], &ascending, [0, 1, 2]);
    replay();
    step.set([64, 64, 64], &[99; PAGES], [0, 1, 2]);
    replay();
    let error = report.look().unwrap_err().to_string();
    let expected = "k_used: expected at most 64 tokens of a sequence, as the longest is said to have, found 65 tokens of sequence 0";
    assert!(error.starts_with(expected), "{error}");
    report.look().unwrap();
    replay();
    let error = report.finish().unwrap_err().to_string();
    let expected =
        "table: expected pages from 0 to 11, of 12 that exist, found 99, entry 0 of sequence 0";
    assert!(error.starts_with(expected), "{error}");

    // A launch tells too, and launches nothing; then all is well again.
    step.set([64, 64, 64], &ascending, [0, 192, 2]);
    replay();
    let before = step.out.to_vec().unwrap();
    step.set([1, 1, 1], &ascending, [0, 1, 2]);
    let error = step.enqueue(stream.stream(), Some(&report)).unwrap_err();
    assert!(
        error.to_string().contains("found 192, of token 1"),
        "{error}"
    );
    stream.synchronize().unwrap();
    assert_eq!(step.out.to_vec().unwrap(), before);
    step.enqueue(stream.stream(), Some(&report)).unwrap();
    report.finish().unwrap();
    assert_ne!(step.out.to_vec().unwrap(), before);
}
