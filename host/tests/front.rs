//! Front doors, without a driver: what both have in common, over the emulator's buffers.
#![cfg(feature = "emulator")]

use std::cell::RefCell;

use flashtile::{
    CausalAlignment, DType, Device, DeviceBuffer, EmulatorDevice, Error, OutDType, Problem,
    ScaleLayout, Scales, Shape, Stream, TensorLayout,
    cache::{
        AppendProblem, CacheData, CopyProblem, GatherProblem, IndexType, Place, PlaceData,
        QueryRows, Rotary, RotaryPairs, RotaryTable, Rows, Sequences, TableType, append,
    },
    front::{
        AppendSlices, AttentionSlices, CopiedCache, CopySlices, DeviceSlice, ElementType,
        GatherSlices, LaunchSlices, MergeSlices, Queue, ServingSlices,
    },
    serving::{
        BiasType, CacheLayout, CacheScales, MaskType, MergeProblem, PageTable, PairLayout,
        ServingInputs, ServingProblem, Splits, attention,
    },
};

/// A stream that may be another device's.
struct Line {
    near: bool,
}

impl Queue for Line {
    type Device = EmulatorDevice;
    type Use<'a> = ();

    fn check(&self, _device: &EmulatorDevice) -> flashtile::Result<()> {
        match self.near {
            true => Ok(()),
            false => Err(Error::BadInput {
                argument: "stream",
                expected: "a near one".into(),
                found: "a far one".into(),
            }),
        }
    }

    fn enqueue(
        &self,
        device: &EmulatorDevice,
        launch: &mut dyn FnMut(&dyn Device, Stream) -> flashtile::Result<()>,
    ) -> flashtile::Result<()> {
        launch(device, Stream::DEFAULT)
    }
}

#[derive(Clone, Copy)]
struct Slice {
    address: u64,
    bytes: usize,
    element: ElementType,
    near: bool,
}

impl DeviceSlice<Line> for Slice {
    fn element(&self) -> ElementType {
        self.element
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_near(&self, _: &Line) -> bool {
        self.near
    }

    fn locate<'a>(&'a mut self, _: &'a Line) -> (u64, ()) {
        (self.address, ())
    }
}

/// What is wrong with one of the slices.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Short,
    Element,
    Far,
    Missing,
}

/// Makes slices, one of which is wrong, and notes their names.
struct Maker {
    wrong: Option<(&'static str, Wrong)>,
    made: RefCell<Vec<(&'static str, bool)>>,
}

impl Maker {
    fn slice(&self, name: &'static str, buffer: &DeviceBuffer<'_>, element: ElementType) -> Slice {
        self.made.borrow_mut().push((name, true));
        let wrong = self
            .wrong
            .filter(|(at, _)| *at == name)
            .map(|(_, wrong)| wrong);
        Slice {
            address: buffer.address(),
            bytes: buffer.len() - usize::from(wrong == Some(Wrong::Short)),
            element: match (wrong, element) {
                (Some(Wrong::Element), ElementType::I64) => ElementType::U8,
                (Some(Wrong::Element), _) => ElementType::I64,
                _ => element,
            },
            near: wrong != Some(Wrong::Far),
        }
    }

    /// One that a problem may not have.
    fn maybe(
        &self,
        name: &'static str,
        buffer: &DeviceBuffer<'_>,
        element: ElementType,
    ) -> Option<Slice> {
        let slice = self.slice(name, buffer, element);
        if let Some(last) = self.made.borrow_mut().last_mut() {
            last.1 = false;
        }
        (self.wrong != Some((name, Wrong::Missing))).then_some(slice)
    }
}

/// Slices that are exactly as long as they must be pass; each fault of each is an error that names it, before anything is launched.
fn check<P: LaunchSlices>(
    device: &EmulatorDevice,
    plan: &P,
    any_element: &[&str],
    slices: impl Fn(&Maker) -> P::Slices<Slice, Slice>,
) {
    let launch = |near: bool, wrong| {
        let maker = Maker {
            wrong,
            made: RefCell::default(),
        };
        // SAFETY: the emulator checks every access.
        let result = unsafe { plan.launch_slices(device, &Line { near }, slices(&maker)) };
        (result, maker.made.into_inner())
    };
    for (name, needed) in launch(true, None).1 {
        for wrong in [Wrong::Short, Wrong::Element, Wrong::Far, Wrong::Missing] {
            if wrong == Wrong::Missing && needed
                || wrong == Wrong::Element && any_element.contains(&name)
            {
                continue;
            }
            let (result, _) = launch(true, Some((name, wrong)));
            match result {
                Err(Error::BadInput { argument, .. }) => assert_eq!(argument, name, "{wrong:?}"),
                other => panic!("{name}, {wrong:?}: {other:?}"),
            }
        }
    }
    let far = launch(false, None).0.unwrap_err();
    assert!(far.to_string().starts_with("stream"), "{far}");
    // Last, so that its results are what is found.
    launch(true, None).0.unwrap();
    device.synchronize().unwrap();
}

/// Numbers in [-1, 1) as elements.
fn elements(seed: u32, dtype: DType, count: usize) -> Vec<u8> {
    let number = |i: usize| {
        let mixed = (i as u32).wrapping_mul(0x9e37_79b1) ^ seed.wrapping_mul(0x85eb_ca6b);
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    flashtile::element::encode(dtype, &(0..count).map(number).collect::<Vec<_>>())
}

fn upload<'d>(device: &'d EmulatorDevice, bytes: &[u8]) -> DeviceBuffer<'d> {
    DeviceBuffer::from_bytes(device, bytes).unwrap()
}

fn ints<'d>(device: &'d EmulatorDevice, numbers: &[i32]) -> DeviceBuffer<'d> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    upload(device, &bytes)
}

fn floats<'d>(device: &'d EmulatorDevice, numbers: &[f32]) -> DeviceBuffer<'d> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    upload(device, &bytes)
}

fn zeroed(device: &EmulatorDevice, bytes: usize) -> DeviceBuffer<'_> {
    DeviceBuffer::zeroed(device, bytes).unwrap()
}

#[test]
fn dense_plans() {
    let device = EmulatorDevice::sanitizing();
    let shape = Shape {
        batch: 2,
        seqlen_q: 5,
        seqlen_k: 9,
        heads_q: 4,
        heads_kv: 2,
        head_dim_qk: 24,
        head_dim_v: 16,
    };
    let mut problem = Problem::contiguous(DType::Bf16, shape).lse(true);
    // Backwards: the slice starts with the last key.
    problem.k.strides[1] *= -1;
    let [q, k, v] = [(1, &problem.q), (2, &problem.k), (3, &problem.v)]
        .map(|(seed, layout)| elements(seed, DType::Bf16, layout.span().unwrap()));
    let inputs = flashtile::Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Default::default()
    };
    let expected = flashtile::attention(&device, &problem, &inputs).unwrap();
    let [q, k, v] = [q, k, v].map(|bytes| upload(&device, &bytes));
    let (out, lse) = (
        zeroed(&device, expected.out.len()),
        zeroed(&device, 2 * 4 * 5 * 4),
    );
    let plan = problem.plan(device.info()).unwrap();
    let slices = |make: &Maker| AttentionSlices::<Slice, Slice> {
        lse: make.maybe("lse", &lse, ElementType::F32),
        ..AttentionSlices::new(
            make.slice("q", &q, ElementType::Bf16),
            make.slice("k", &k, ElementType::U16),
            make.slice("v", &v, ElementType::Bf16),
            make.slice("out", &out, ElementType::Bf16),
        )
    };
    check(&device, &plan, &[], slices);
    assert_eq!(out.to_vec().unwrap(), expected.out);
    let maker = Maker {
        wrong: None,
        made: RefCell::default(),
    };
    let mut superfluous = slices(&maker);
    superfluous.q_scale = superfluous.lse;
    let line = Line { near: true };
    // SAFETY: the emulator checks every access.
    let error = unsafe { plan.launch_slices(&device, &line, superfluous) };
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("q_scale: expected no slice"), "{error}");
}

#[test]
fn dense_plans_with_scales() {
    let device = EmulatorDevice::new();
    let shape = Shape {
        batch: 1,
        seqlen_q: 3,
        seqlen_k: 40,
        heads_q: 2,
        heads_kv: 1,
        head_dim_qk: 64,
        head_dim_v: 64,
    };
    let mut problem = Problem::contiguous(DType::E4m3, shape);
    problem.out_dtype = OutDType::Bf16;
    problem.scales = Scales {
        q: ScaleLayout::PerTensor,
        k: ScaleLayout::PerHead,
        v: ScaleLayout::PerTensor,
    };
    let plan = problem.plan(device.info()).unwrap();
    let [q, k, v] = [&problem.q, &problem.k, &problem.v]
        .map(|layout| upload(&device, &elements(7, DType::E4m3, layout.span().unwrap())));
    let out = zeroed(&device, problem.out.span().unwrap() * 2);
    let scale = floats(&device, &[0.5]);
    check(&device, &plan, &[], |make| AttentionSlices {
        q_scale: make.maybe("q_scale", &scale, ElementType::F32),
        k_scale: make.maybe("k_scale", &scale, ElementType::F32),
        v_scale: make.maybe("v_scale", &scale, ElementType::F32),
        ..AttentionSlices::new(
            make.slice("q", &q, ElementType::U8),
            make.slice("k", &k, ElementType::U8),
            make.slice("v", &v, ElementType::U8),
            make.slice("out", &out, ElementType::Bf16),
        )
    });
}

/// Two sequences in pages of four rows, with everything that scores can have.
#[test]
fn serving_plans() {
    let device = EmulatorDevice::sanitizing();
    for kv_dtype in [DType::F16, DType::E4m3] {
        let cache = CacheLayout::contiguous([6, 4, 2, 8]);
        let mut problem = ServingProblem::new(
            DType::F16,
            2,
            TensorLayout::contiguous([1, 5, 4, 8]),
            cache,
            cache,
        )
        .pages(PageTable::contiguous(40))
        .q_starts(3)
        .k_used(160)
        .causal(CausalAlignment::BottomRight)
        .alibi(true)
        .sink(true)
        .ranges(1)
        .bias(PairLayout::bias(BiasType::Same, [1, 1, 1, 160]))
        .mask(PairLayout::mask(MaskType::Bit, [1, 1, 3, 160]))
        .splits(Splits::Keys(64))
        .lse(true);
        let scales: &[f32] = match kv_dtype {
            DType::E4m3 => {
                problem = problem.kv_dtype(DType::E4m3, CacheScales::PerHead);
                &[0.5, 2.0]
            }
            _ => &[],
        };
        let table: Vec<i32> = (0..80).map(|i| i % 6).collect();
        let (q, bias) = (elements(1, DType::F16, 160), elements(4, DType::F16, 160));
        let [k, v] = [2, 3].map(|seed| elements(seed, kv_dtype, 6 * 4 * 2 * 8));
        let mask = [0xf7u8; 3 * 5 * 4];
        let inputs = ServingInputs {
            q: &q,
            k: &k,
            v: &v,
            q_starts: &[0, 3, 5],
            k_used: &[100, 70],
            table: &table,
            k_scale: scales,
            v_scale: scales,
            alibi: &[0.5, 0.25, 0.125, 0.1, 0.5, 0.25, 0.125, 0.1],
            sink: &[0.0, f32::NEG_INFINITY, 1.0, 2.0],
            bias: &bias,
            mask: &mask,
            ranges: &[0, 3, 1, 0],
            ..ServingInputs::default()
        };
        let expected = attention(&device, &problem, &inputs).unwrap();
        let plan = problem.plan(device.info()).unwrap();
        let on_device = |bytes| upload(&device, bytes);
        let [q, k, v] = [&q, &k, &v].map(|bytes| on_device(bytes));
        let (bias, mask) = (on_device(&bias), on_device(&mask));
        let [q_starts, k_used, table, ranges] =
            [inputs.q_starts, inputs.k_used, inputs.table, inputs.ranges]
                .map(|numbers| ints(&device, numbers));
        let [alibi, sink, scale] =
            [inputs.alibi, inputs.sink, scales].map(|numbers| floats(&device, numbers));
        let out = zeroed(&device, expected.out.len());
        let lse = zeroed(&device, 4 * 5 * 4);
        assert!(plan.workspace_bytes() > 0);
        let workspace = zeroed(&device, plan.workspace_bytes());
        let (float, cached) = match kv_dtype {
            DType::E4m3 => (ElementType::F16, ElementType::U8),
            _ => (ElementType::F16, ElementType::F16),
        };
        check(&device, &plan, &["workspace"], |make| {
            let scale = |name| match scales.is_empty() {
                true => None,
                false => make.maybe(name, &scale, ElementType::F32),
            };
            ServingSlices {
                q_starts: make.maybe("q_starts", &q_starts, ElementType::U32),
                k_used: make.maybe("k_used", &k_used, ElementType::I32),
                table: make.maybe("table", &table, ElementType::U32),
                k_scale: scale("k_scale"),
                v_scale: scale("v_scale"),
                alibi: make.maybe("alibi", &alibi, ElementType::F32),
                sink: make.maybe("sink", &sink, ElementType::F32),
                bias: make.maybe("bias", &bias, float),
                mask: make.maybe("mask", &mask, ElementType::U32),
                ranges: make.maybe("ranges", &ranges, ElementType::I32),
                lse: make.maybe("lse", &lse, ElementType::F32),
                workspace: make.maybe("workspace", &workspace, ElementType::U8),
                ..ServingSlices::new(
                    make.slice("q", &q, float),
                    make.slice("k", &k, cached),
                    make.slice("v", &v, cached),
                    make.slice("out", &out, float),
                )
            }
        });
        assert_eq!(out.to_vec().unwrap(), expected.out);
        let numbers = expected.lse.unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(lse.to_vec().unwrap(), bytes);
    }
}

/// Values that are elements of keys have no slice.
#[test]
fn latent_plans() {
    let device = EmulatorDevice::sanitizing();
    let q_layout = TensorLayout::contiguous([2, 1, 3, 24]);
    let cache = CacheLayout::contiguous([2, 5, 1, 24]);
    let problem = ServingProblem::latent(DType::F16, 2, q_layout, cache, 16).splits(Splits::One);
    let [q, k] = [(1, 2 * 3 * 24), (2, 2 * 5 * 24)].map(|(seed, n)| elements(seed, DType::F16, n));
    let inputs = ServingInputs {
        q: &q,
        k: &k,
        ..ServingInputs::default()
    };
    let expected = attention(&device, &problem, &inputs).unwrap();
    let plan = problem.plan(device.info()).unwrap();
    let (q, k) = (upload(&device, &q), upload(&device, &k));
    let out = zeroed(&device, expected.out.len());
    check(&device, &plan, &[], |make| {
        ServingSlices::latent(
            make.slice("q", &q, ElementType::F16),
            make.slice("k", &k, ElementType::F16),
            make.slice("out", &out, ElementType::F16),
        )
    });
    assert_eq!(out.to_vec().unwrap(), expected.out);
    let slice = |memory: &DeviceBuffer<'_>, bytes| Slice {
        address: memory.address(),
        bytes,
        element: ElementType::F16,
        near: true,
    };
    let (q, k) = (slice(&q, 2 * 3 * 24 * 2), slice(&k, 2 * 5 * 24 * 2));
    let slices = ServingSlices::<Slice, Slice>::new(q, k, k, slice(&out, expected.out.len()));
    // SAFETY: the emulator checks every access.
    let error = unsafe { plan.launch_slices(&device, &Line { near: true }, slices) };
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("v: expected no slice"), "{error}");
}

/// What a problem does not have must not come either.
#[test]
fn superfluous_slices() {
    let device = EmulatorDevice::new();
    let shape = Shape {
        batch: 1,
        seqlen_q: 2,
        seqlen_k: 3,
        heads_q: 1,
        heads_kv: 1,
        head_dim_qk: 8,
        head_dim_v: 8,
    };
    let problem = ServingProblem::contiguous(DType::F16, shape).splits(Splits::One);
    let plan = problem.plan(device.info()).unwrap();
    let memory = zeroed(&device, 1024);
    let slice = |element| Slice {
        address: memory.address(),
        bytes: 512,
        element,
        near: true,
    };
    let half = slice(ElementType::F16);
    let sound = || ServingSlices::<Slice, Slice>::new(half, half, half, half);
    type Add = fn(&mut ServingSlices<Slice, Slice>, Slice);
    let cases: &[(&str, ElementType, Add)] = &[
        ("q_starts", ElementType::I32, |s, x| s.q_starts = Some(x)),
        ("q_used", ElementType::I32, |s, x| s.q_used = Some(x)),
        ("k_starts", ElementType::I32, |s, x| s.k_starts = Some(x)),
        ("k_used", ElementType::I32, |s, x| s.k_used = Some(x)),
        ("table", ElementType::I32, |s, x| s.table = Some(x)),
        ("k_scale", ElementType::F32, |s, x| s.k_scale = Some(x)),
        ("v_scale", ElementType::F32, |s, x| s.v_scale = Some(x)),
        ("alibi", ElementType::F32, |s, x| s.alibi = Some(x)),
        ("sink", ElementType::F32, |s, x| s.sink = Some(x)),
        ("bias", ElementType::F16, |s, x| s.bias = Some(x)),
        ("mask", ElementType::U8, |s, x| s.mask = Some(x)),
        ("ranges", ElementType::I32, |s, x| s.ranges = Some(x)),
        ("lse", ElementType::F32, |s, x| s.lse = Some(x)),
    ];
    let line = Line { near: true };
    for (name, element, add) in cases {
        let mut slices = sound();
        add(&mut slices, slice(*element));
        // SAFETY: the emulator checks every access.
        let error = unsafe { plan.launch_slices(&device, &line, slices) };
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{name}: expected no slice")),
            "{error}"
        );
    }
    // More scratch memory than is needed does no harm.
    let mut slices = sound();
    slices.out.address += 512;
    slices.workspace = Some(half);
    // SAFETY: as above.
    unsafe { plan.launch_slices(&device, &line, slices).unwrap() };
}

#[test]
fn merging_plans() {
    let device = EmulatorDevice::sanitizing();
    let mut problem = MergeProblem::new(DType::F16, 3, TensorLayout::contiguous([2, 3, 2, 16]));
    problem.sink = true;
    let plan = problem.plan(device.info()).unwrap();
    let rows = 2 * 3 * 2;
    let parts = upload(&device, &elements(1, DType::F16, 3 * rows * 16));
    let parts_lse = floats(&device, &vec![0.5; 3 * rows]);
    let sink = floats(&device, &[0.0, 1.0]);
    let (out, lse) = (zeroed(&device, rows * 32), zeroed(&device, rows * 4));
    check(&device, &plan, &[], |make| MergeSlices {
        parts: make.slice("parts", &parts, ElementType::F16),
        parts_lse: make.slice("parts_lse", &parts_lse, ElementType::F32),
        sink: make.maybe("sink", &sink, ElementType::F32),
        out: make.slice("out", &out, ElementType::F16),
        lse: make.maybe("lse", &lse, ElementType::F32),
    });
    // Three parts of e^0.5 and a sink of e^0.
    let bytes = lse.to_vec().unwrap();
    let first = f32::from_le_bytes(*bytes.first_chunk().unwrap());
    assert!((first - (3.0 * 0.5f32.exp() + 1.0).ln()).abs() < 1e-5);
}

fn rows(tensor: [usize; 4], cache: [usize; 4]) -> Rows {
    Rows {
        tensor: TensorLayout::contiguous(tensor),
        cache: CacheLayout::contiguous(cache),
    }
}

#[test]
fn appending_plans() {
    let device = EmulatorDevice::sanitizing();
    let queries = TensorLayout::contiguous([1, 3, 4, 16]);
    let problem = AppendProblem {
        dtype: DType::F16,
        kv_dtype: DType::E4m3,
        kv_scales: CacheScales::PerHead,
        k: rows([1, 3, 2, 16], [5, 4, 2, 16]),
        v: Some(rows([1, 3, 2, 16], [5, 4, 2, 16])),
        place: Place::Slots,
        rotary: Some(Rotary {
            rotary_dim: 8,
            pairs: RotaryPairs::Halves,
            table: RotaryTable {
                element: TableType::F32,
                positions: 10,
                stride: 4,
            },
            positions: Some(IndexType::I64),
            queries: Some(QueryRows {
                q: queries,
                out: queries,
            }),
        }),
    };
    let [k, v, q] = [(1, 96), (2, 96), (3, 192)].map(|(seed, n)| elements(seed, DType::F16, n));
    let angles = elements(4, DType::F32, 40);
    let (slots, positions) = ([7i64, -1, 12], [3i64, 0, 9]);
    let scales: [&[f32]; 2] = [&[0.5, 0.25], &[1.5, 0.125]];
    let data = CacheData {
        k: &k,
        v: &v,
        place: PlaceData {
            slots: &slots,
            ..PlaceData::default()
        },
        k_scale: scales[0],
        v_scale: scales[1],
        cos: &angles,
        sin: &angles,
        positions: &positions,
        q: &q,
    };
    let mut caches = [vec![0; 5 * 4 * 2 * 16], vec![0; 5 * 4 * 2 * 16]];
    let [k_cache, v_cache] = &mut caches;
    let turned = append(&device, &problem, &data, [k_cache, v_cache]).unwrap();

    let plan = problem.plan(device.info()).unwrap();
    let longs = |numbers: [i64; 3]| upload(&device, &numbers.map(i64::to_le_bytes).concat());
    let (slots, positions) = (longs(slots), longs(positions));
    let [k, v, q] = [k, v, q].map(|bytes| upload(&device, &bytes));
    let [cos, sin] = [&angles, &angles].map(|bytes| upload(&device, bytes));
    let [k_cache, v_cache] = [0, 1].map(|_| zeroed(&device, caches[0].len()));
    let [k_scale, v_scale] = scales.map(|scales| {
        let bytes: Vec<u8> = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        upload(&device, &bytes)
    });
    let q_out = zeroed(&device, turned.len());
    let slices = |make: &Maker| AppendSlices {
        v: make.maybe("v", &v, ElementType::F16),
        v_cache: make.maybe("v_cache", &v_cache, ElementType::U8),
        k_scale: make.maybe("k_scale", &k_scale, ElementType::F32),
        v_scale: make.maybe("v_scale", &v_scale, ElementType::F32),
        slots: make.maybe("slots", &slots, ElementType::I64),
        cos: make.maybe("cos", &cos, ElementType::F32),
        sin: make.maybe("sin", &sin, ElementType::F32),
        positions: make.maybe("positions", &positions, ElementType::I64),
        // Without them, the output's are turned where they are.
        q: Some(make.slice("q", &q, ElementType::F16)),
        q_out: make.maybe("q_out", &q_out, ElementType::F16),
        ..AppendSlices::new(
            make.slice("k", &k, ElementType::F16),
            make.slice("k_cache", &k_cache, ElementType::U8),
        )
    };
    check(&device, &plan, &[], slices);
    assert_eq!(q_out.to_vec().unwrap(), turned);
    assert_eq!(k_cache.to_vec().unwrap(), caches[0]);
    assert_eq!(v_cache.to_vec().unwrap(), caches[1]);

    let maker = Maker {
        wrong: None,
        made: RefCell::default(),
    };
    let mut in_place = slices(&maker);
    in_place.q_out = in_place.q.take();
    // SAFETY: the emulator checks every access.
    unsafe {
        plan.launch_slices(&device, &Line { near: true }, in_place)
            .unwrap()
    };
    assert_eq!(q.to_vec().unwrap(), turned);
}

#[test]
fn gathering_plans() {
    let device = EmulatorDevice::sanitizing();
    let problem = GatherProblem {
        dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        kv_scales: CacheScales::None,
        k: rows([1, 6, 2, 8], [5, 4, 2, 8]),
        v: Some(rows([1, 6, 2, 16], [5, 4, 2, 16])),
        place: Place::Sequences(Sequences {
            batch: 2,
            starts: true,
            used: true,
            first: true,
            pages: Some(PageTable::contiguous(2)),
        }),
    };
    let plan = problem.plan(device.info()).unwrap();
    let cache = elements(1, DType::Bf16, 5 * 4 * 2 * 8);
    let k_cache = upload(&device, &cache);
    let v_cache = upload(&device, &elements(2, DType::Bf16, 5 * 4 * 2 * 16));
    let [starts, used, first, table] =
        [&[0, 2, 6][..], &[2, 3], &[1, 2], &[4, 0, 2, 3]].map(|numbers| ints(&device, numbers));
    let (k, v) = (zeroed(&device, 6 * 2 * 16), zeroed(&device, 6 * 2 * 32));
    check(&device, &plan, &[], |make| GatherSlices {
        v: make.maybe("v", &v, ElementType::Bf16),
        v_cache: make.maybe("v_cache", &v_cache, ElementType::Bf16),
        starts: make.maybe("starts", &starts, ElementType::I32),
        used: make.maybe("used", &used, ElementType::U32),
        first: make.maybe("first", &first, ElementType::I32),
        table: make.maybe("block_table", &table, ElementType::I32),
        ..GatherSlices::new(
            make.slice("k", &k, ElementType::Bf16),
            make.slice("k_cache", &k_cache, ElementType::Bf16),
        )
    });
    // Token 0 is row 1 of block 4.
    let row = 2 * 8 * 2;
    assert_eq!(
        k.to_vec().unwrap()[..row],
        cache[(4 * 4 + 1) * row..][..row]
    );
}

#[test]
fn copying_plans() {
    let device = EmulatorDevice::sanitizing();
    let layout = CacheLayout::contiguous([4, 2, 1, 8]);
    let problem = CopyProblem::within(DType::F16, &layout, 2, IndexType::I32).unwrap();
    let plan = problem.plan(device.info()).unwrap();
    let bytes = elements(1, DType::F16, 4 * 16);
    let (a, b, c) = (
        upload(&device, &bytes),
        upload(&device, &bytes),
        zeroed(&device, bytes.len()),
    );
    let pairs = ints(&device, &[0, 3, 1, 2]);
    check(&device, &plan, &["caches", "src", "dst"], |make| {
        CopySlices {
            pairs: make.slice("pairs", &pairs, ElementType::I32),
            caches: vec![
                CopiedCache::Within(make.slice("caches", &a, ElementType::F16)),
                CopiedCache::Between {
                    src: make.slice("src", &b, ElementType::F16),
                    dst: make.slice("dst", &c, ElementType::F16),
                },
            ],
        }
    });
    let block = |n: usize| bytes[32 * n..][..32].to_vec();
    assert_eq!(
        a.to_vec().unwrap(),
        [block(0), block(1), block(1), block(0)].concat()
    );
    let zeros = vec![0; 64];
    assert_eq!(c.to_vec().unwrap(), [zeros, block(1), block(0)].concat());
}
