//! Matrix products of warpgroups: layouts, types, when they happen, and what they refuse.

mod common;

use common::kernel;
use flashtile_emulator::{
    AsyncTiming, Emulator, FaultKind, Launch, LaunchError, Module, Numerics, Options, TensorCores,
};
use half::{bf16, f16};
use proptest::prelude::*;

const SHARED: &str = ".shared .align 1024 .b8 s[65536];";
const IMAGE: usize = 65536;
/// Where operands begin in the image.
const A_AT: usize = 0;
const B_AT: usize = 32768;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ty {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
}

impl Ty {
    fn bytes(self) -> usize {
        match self {
            Ty::F16 | Ty::Bf16 => 2,
            Ty::Tf32 => 4,
            _ => 1,
        }
    }

    fn k(self) -> usize {
        32 / self.bytes()
    }

    fn name(self) -> &'static str {
        match self {
            Ty::F16 => "f16",
            Ty::Bf16 => "bf16",
            Ty::Tf32 => "tf32",
            Ty::E4m3 => "e4m3",
            Ty::E5m2 => "e5m2",
        }
    }

    /// A value that all types hold, from -4 to 4 in quarters, and its bytes.
    fn encode(self, n: u32) -> (f32, Vec<u8>) {
        let value = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0][n as usize % 8]
            * if n & 8 != 0 { -1.0 } else { 1.0 };
        let bytes = match self {
            Ty::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            Ty::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            // The low 13 bits are ignored.
            Ty::Tf32 => (value.to_bits() | 0x1abc).to_le_bytes().to_vec(),
            Ty::E5m2 => vec![f16::from_f32(value).to_le_bytes()[1]],
            // Exponents are biased by 7, not 15.
            Ty::E4m3 => {
                let bits = f16::from_f32(value).to_bits();
                let magnitude = (bits & 0x7fff).saturating_sub(8 << 10) >> 7;
                vec![(bits >> 8 & 0x80) as u8 | magnitude as u8]
            }
        };
        (value, bytes)
    }
}

/// A matrix of `rows` times K values.
#[derive(Debug, Clone)]
struct Matrix {
    ty: Ty,
    values: Vec<f32>,
    bytes: Vec<Vec<u8>>,
}

impl Matrix {
    fn new(ty: Ty, rows: usize, seed: u32) -> Matrix {
        let mut state = seed;
        let elements = (0..rows * ty.k()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ty.encode(state >> 20)
        });
        let (values, bytes) = elements.unzip();
        Matrix { ty, values, bytes }
    }

    fn at(&self, row: usize, k: usize) -> f32 {
        self.values[row * self.ty.k() + k]
    }
}

/// How a matrix lies in shared memory.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    /// 0, 32, 64 or 128 bytes.
    swizzle: usize,
    mn_major: bool,
    lbo: usize,
    sbo: usize,
}

impl Place {
    /// Rows of swizzled bytes one after the other, as TMA writes them; without a swizzle, core matrices of 128 bytes.
    fn new(
        start: usize,
        swizzle: usize,
        mn_major: bool,
        step: usize,
        rows: usize,
        k: usize,
    ) -> Place {
        let (lbo, sbo) = match (swizzle, mn_major) {
            (0, false) => (128, 256),
            (0, true) => (rows / 8 * 128, 128),
            (w, false) => (16, 8 * w),
            (w, true) => (k * w, 8 * w),
        };
        // Another part of K: within a row of the swizzle.
        let start = start
            + if swizzle != 0 && !mn_major {
                32 * (step % (swizzle / 32))
            } else {
                0
            };
        Place {
            start,
            swizzle,
            mn_major,
            lbo,
            sbo,
        }
    }

    /// The byte of an element in the image, whose first address is 0x400.
    fn offset(&self, mn: usize, k: usize, es: usize) -> usize {
        let (lbo, sbo, w) = (self.lbo, self.sbo, self.swizzle);
        let linear = match (w, self.mn_major) {
            (0, false) => mn / 8 * sbo + mn % 8 * 16 + k * es / 16 * lbo + k * es % 16,
            (0, true) => mn * es / 16 * sbo + mn * es % 16 + k / 8 * lbo + k % 8 * 16,
            (_, false) => mn / 8 * sbo + mn % 8 * w + k * es,
            (_, true) => mn * es / w * lbo + mn * es % w + k / 8 * sbo + k % 8 * w,
        };
        let address = 0x400 + self.start + linear;
        let mask = match w {
            128 => 0x380,
            64 => 0x180,
            32 => 0x80,
            _ => 0,
        };
        (address ^ (address & mask) >> 3) - 0x400
    }

    fn descriptor(&self) -> u64 {
        let swizzle = match self.swizzle {
            128 => 1u64,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        let field = |bytes: usize| (bytes as u64 & 0x3ffff) >> 4;
        field(0x400 + self.start) | field(self.lbo) << 16 | field(self.sbo) << 32 | swizzle << 62
    }

    fn write(&self, image: &mut [u8], matrix: &Matrix) {
        let (k, es) = (matrix.ty.k(), matrix.ty.bytes());
        for (number, bytes) in matrix.bytes.iter().enumerate() {
            let at = self.offset(number / k, number % k, es);
            image[at..at + es].copy_from_slice(bytes);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    types: [Ty; 2],
    n: usize,
    narrow: bool,
    /// A comes from registers.
    registers: bool,
    swizzles: [usize; 2],
    mn_major: [bool; 2],
    step: usize,
    negated: [bool; 2],
    /// scale-d, and whether it is a predicate.
    keep: bool,
    predicate: bool,
    seed: u32,
    timing: AsyncTiming,
}

fn cases() -> impl Strategy<Value = Case> {
    let choices = (
        0usize..7,
        1usize..=32,
        0usize..4,
        0usize..4,
        0usize..4,
        any::<u32>(),
    );
    (choices, any::<[bool; 8]>(), 0usize..4).prop_map(
        |((types, n, sa, sb, step, seed), flags, timing)| {
            let types = [
                [Ty::F16; 2],
                [Ty::Bf16; 2],
                [Ty::Tf32; 2],
                [Ty::E4m3; 2],
                [Ty::E5m2; 2],
                [Ty::E4m3, Ty::E5m2],
                [Ty::E5m2, Ty::E4m3],
            ][types];
            let sixteen = types[0].bytes() == 2;
            let widths = [0, 32, 64, 128];
            let registers = flags[0];
            Case {
                types,
                n: 8 * n,
                narrow: flags[1] && !matches!(types[0], Ty::Bf16 | Ty::Tf32),
                registers,
                swizzles: [widths[sa], widths[sb]],
                mn_major: [flags[2] && sixteen && !registers, flags[3] && sixteen],
                step,
                negated: [flags[4], flags[5]],
                keep: flags[6],
                predicate: flags[7],
                seed,
                timing: [
                    AsyncTiming::Late,
                    AsyncTiming::Early,
                    AsyncTiming::Seeded(1),
                    AsyncTiming::Seeded(7),
                ][timing],
            }
        },
    )
}

/// The instruction, with the accumulator in `%y` or, if it is f16, `%x` registers.
fn instruction(case: &Case) -> String {
    let count = if case.narrow { case.n / 4 } else { case.n / 2 };
    let letter = if case.narrow { 'x' } else { 'y' };
    let d: Vec<String> = (0..count).map(|i| format!("%{letter}{i}")).collect();
    let a = if case.registers {
        "{%r80, %r81, %r82, %r83}"
    } else {
        "%d10"
    };
    let scale = |negated: bool| if negated { -1 } else { 1 };
    let keep = match (case.predicate, case.keep) {
        (true, _) => "%p9".to_owned(),
        (false, keep) => u32::from(keep).to_string(),
    };
    let transposed = match (case.types[0].bytes() == 2, case.registers) {
        (false, _) => String::new(),
        (true, true) => format!(", {}", u32::from(case.mn_major[1])),
        (true, false) => format!(
            ", {}, {}",
            u32::from(case.mn_major[0]),
            u32::from(case.mn_major[1])
        ),
    };
    format!(
        "wgmma.mma_async.sync.aligned.m64n{}k{}.{}.{}.{} {{{}}}, {a}, %d11, {keep}, {}, {}{transposed};",
        case.n,
        case.types[0].k(),
        if case.narrow { "f16" } else { "f32" },
        case.types[0].name(),
        case.types[1].name(),
        d.join(", "),
        scale(case.negated[0]),
        scale(case.negated[1]),
    )
}

/// Text of a kernel: shared memory is filled from the first buffer; the thread's A registers and accumulator come from
/// the second, its results go to the third.
fn text(case: &Case, descriptors: [u64; 2], middle: &str) -> String {
    let count = if case.narrow { case.n / 4 } else { case.n / 2 };
    let letter = if case.narrow { 'x' } else { 'y' };
    let mut body = format!(
        ".reg .b32 %x<128>;\n.reg .f32 %y<128>;\n\
         mov.u32 %r41, s;\nmov.u32 %r42, %r0;\nFILL: shl.b32 %r44, %r42, 4;\nadd.u32 %r43, %r41, %r44;\n\
         cvt.u64.u32 %d5, %r44;\nadd.s64 %d5, %d0, %d5;\nld.global.v4.b32 {{%r45, %r46, %r47, %r48}}, [%d5];\n\
         st.shared.v4.b32 [%r43], {{%r45, %r46, %r47, %r48}};\nadd.u32 %r42, %r42, 128;\n\
         setp.lt.u32 %p2, %r42, {};\n@%p2 bra FILL;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n\
         mov.b64 %d10, {};\nmov.b64 %d11, {};\nsetp.eq.u32 %p9, 1, {};\n\
         mul.wide.u32 %d6, %r0, {};\nadd.s64 %d7, %d1, %d6;\nadd.s64 %d8, %d2, %d6;\n\
         ld.global.v4.b32 {{%r80, %r81, %r82, %r83}}, [%d7];\n",
        IMAGE / 16,
        descriptors[0],
        descriptors[1],
        u32::from(case.keep),
        THREAD_BYTES,
    );
    for i in 0..count {
        body += &format!("ld.global.b32 %{letter}{i}, [%d7+{}];\n", 16 + 4 * i);
    }
    body += middle;
    for i in 0..count {
        body += &format!("st.global.b32 [%d8+{}], %{letter}{i};\n", 16 + 4 * i);
    }
    kernel(SHARED, &body)
}

const THREAD_BYTES: usize = 16 + 4 * 128;

/// Row and column of value i of a thread's accumulator.
fn accumulator(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (
        16 * warp + lane / 4 + 8 * (i >> 1 & 1),
        8 * (i >> 2) + 2 * (lane % 4) + (i & 1),
    )
}

/// Row and k of value i of a thread's A registers.
fn fragment(ty: Ty, thread: usize, i: usize) -> (usize, usize) {
    let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
    match ty.bytes() {
        2 => (
            16 * warp + g + 8 * (i >> 1 & 1),
            8 * (i >> 2) + 2 * t + (i & 1),
        ),
        4 => (16 * warp + g + 8 * (i & 1), t + 4 * (i >> 1)),
        _ => (
            16 * warp + g + 8 * (i >> 2 & 1),
            16 * (i >> 3) + 4 * t + (i & 3),
        ),
    }
}

struct Run {
    case: Case,
    a: Matrix,
    b: Matrix,
    places: [Place; 2],
    /// Accumulators before, row by row.
    c: Vec<f32>,
}

impl Run {
    fn new(case: Case) -> Run {
        let k = case.types[0].k();
        let place = |start, which: usize, rows| {
            let (swizzle, mn_major) = (case.swizzles[which], case.mn_major[which]);
            // An MN-major operand is as wide as its swizzle at least.
            Place::new(start, swizzle, mn_major, case.step, rows, k)
        };
        let c = (0..64 * case.n).map(|n| (n as f32 * 0.5) % 17.0 - 8.0);
        Run {
            case,
            a: Matrix::new(case.types[0], 64, case.seed),
            b: Matrix::new(case.types[1], case.n, !case.seed),
            places: [place(A_AT, 0, 64), place(B_AT, 1, case.n)],
            c: c.collect(),
        }
    }

    fn image(&self) -> Vec<u8> {
        let mut image = vec![0xee; IMAGE];
        self.places[0].write(&mut image, &self.a);
        self.places[1].write(&mut image, &self.b);
        image
    }

    /// What every thread reads: A's registers, and its accumulators.
    fn inputs(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let case = &self.case;
        for thread in 0..128 {
            let from = bytes.len();
            for i in 0..16 / case.types[0].bytes() {
                let (row, k) = fragment(case.types[0], thread, i);
                bytes.extend(&self.a.bytes[row * case.types[0].k() + k]);
            }
            for i in 0..case.n / 2 {
                let (row, column) = accumulator(thread, i);
                let c = self.c[row * case.n + column];
                match case.narrow {
                    true => bytes.extend(f16::from_f32(c).to_le_bytes()),
                    false => bytes.extend(c.to_le_bytes()),
                }
            }
            bytes.resize(from + THREAD_BYTES, 0);
        }
        bytes
    }

    fn launch(&self, text: &str, options: Options) -> Result<Vec<f32>, LaunchError> {
        let device = Emulator::new(options);
        let sizes = [IMAGE, 128 * THREAD_BYTES, 128 * THREAD_BYTES];
        let buffers = sizes.map(|n| device.allocate(n as u64).unwrap());
        device.write(buffers[0], &self.image()).unwrap();
        device.write(buffers[1], &self.inputs()).unwrap();
        let module = Module::parse(text).map_err(LaunchError::Decode)?;
        let params: Vec<u8> = buffers.iter().flat_map(|b| b.to_le_bytes()).collect();
        let launch = Launch {
            grid: [1, 1, 1],
            block: [128, 1, 1],
            cluster: None,
            dynamic_shared: 0,
            params: &params,
        };
        device.launch(&module, "k", &launch)?;
        let mut bytes = vec![0; sizes[2]];
        device.read(buffers[2], &mut bytes).unwrap();
        let mut d = vec![0.0; 64 * self.case.n];
        for thread in 0..128 {
            for i in 0..self.case.n / 2 {
                let (row, column) = accumulator(thread, i);
                let at = thread * THREAD_BYTES + 16;
                d[row * self.case.n + column] = if self.case.narrow {
                    let at = at + 2 * i;
                    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
                } else {
                    let at = at + 4 * i;
                    f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
                };
            }
        }
        Ok(d)
    }

    /// The product in exact arithmetic: the values are such that no rounding happens.
    fn expected(&self) -> Vec<f32> {
        let Case {
            n,
            negated,
            keep,
            types,
            ..
        } = self.case;
        let sign = if negated[0] != negated[1] { -1.0 } else { 1.0 };
        let element = |row: usize, column: usize| {
            let products = (0..types[0].k()).map(|k| self.a.at(row, k) * self.b.at(column, k));
            let c = if keep { self.c[row * n + column] } else { 0.0 };
            products.sum::<f32>() * sign + c
        };
        (0..64 * n).map(|at| element(at / n, at % n)).collect()
    }
}

fn middle(case: &Case) -> String {
    format!(
        "wgmma.fence.sync.aligned;\n{}\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        instruction(case)
    )
}

fn options(case: &Case, cores: TensorCores) -> Options {
    Options {
        async_copies: case.timing,
        numerics: Numerics {
            tensor_cores: cores,
            ..Numerics::default()
        },
        ..Options::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn products(case in cases()) {
        let run = Run::new(case);
        let text = text(&case, run.places.map(|p| p.descriptor()), &middle(&case));
        let expected = run.expected();
        prop_assert!(expected.iter().any(|&x| x != 0.0));
        for cores in [TensorCores::Fast, TensorCores::Hopper] {
            let found = run.launch(&text, options(&case, cores)).unwrap();
            prop_assert!(found == expected, "{case:?} {cores:?}\n{:?}\n{:?}", &found[..16], &expected[..16]);
        }
    }
}

/// bf16, 64 columns, 128-byte swizzles.
fn plain() -> Case {
    Case {
        types: [Ty::Bf16; 2],
        n: 64,
        narrow: false,
        registers: false,
        swizzles: [128, 128],
        mn_major: [false, false],
        step: 1,
        negated: [false, false],
        keep: true,
        predicate: false,
        seed: 3,
        timing: AsyncTiming::Late,
    }
}

fn outcome(case: Case, middle: &str) -> (Result<Vec<f32>, LaunchError>, Run) {
    let run = Run::new(case);
    let text = text(&case, run.places.map(|p| p.descriptor()), middle);
    let options = Options {
        max_instructions: Some(1 << 20),
        ..options(&case, TensorCores::Fast)
    };
    (run.launch(&text, options), run)
}

#[test]
fn results_come_when_the_timing_says() {
    let (fence, commit) = (
        "wgmma.fence.sync.aligned;",
        "wgmma.commit_group.sync.aligned;",
    );
    let wait = |n: u32| format!("wgmma.wait_group.sync.aligned {n};");
    let product = instruction(&plain());
    let done = |timing, rest: &str| {
        let (found, run) = outcome(
            Case { timing, ..plain() },
            &format!("{fence}\n{product}\n{rest}"),
        );
        let found = found.unwrap();
        assert!(found == run.expected() || found == run.c);
        found == run.expected()
    };
    let late = |rest: &str| done(AsyncTiming::Late, rest);
    assert!(late(&format!("{commit}\n{}", wait(0))));
    assert!(!late(commit));
    assert!(!late(&format!("{commit}\n{}", wait(1))));
    // What is not committed is not waited for.
    assert!(!late(&wait(0)));
    assert!(late(&format!("{commit}\n{commit}\n{}", wait(1))));
    assert!(done(AsyncTiming::Early, ""));
}

#[test]
fn operands_are_read_late() {
    // A in registers, changed between the product and the wait.
    let case = Case {
        registers: true,
        ..plain()
    };
    let spoilt = |timing| {
        let middle = middle(&case).replace("wgmma.commit", "mov.b32 %r80, 0;\nwgmma.commit");
        let (found, run) = outcome(Case { timing, ..case }, &middle);
        found.unwrap() != run.expected()
    };
    assert!(spoilt(AsyncTiming::Late));
    assert!(!spoilt(AsyncTiming::Early));
    // B in shared memory.
    let near = Case { step: 0, ..plain() };
    let spoilt = |timing| {
        let store = format!("st.shared.b32 [%r41+{B_AT}], 0x3f803f80;\nwgmma.commit");
        let middle = middle(&near).replace("wgmma.commit", &store);
        let (found, run) = outcome(Case { timing, ..near }, &middle);
        found.unwrap() != run.expected()
    };
    assert!(spoilt(AsyncTiming::Late));
    assert!(!spoilt(AsyncTiming::Early));
}

#[test]
fn products_add_up() {
    // Two products on one accumulator, of different groups; the first does not keep what was there.
    let case = Case {
        keep: false,
        predicate: true,
        ..plain()
    };
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(5),
    ] {
        let first = instruction(&case);
        let second = first.replace("%p9,", "1,");
        let middle = format!(
            "wgmma.fence.sync.aligned;\n{first}\nwgmma.commit_group.sync.aligned;\n{second}\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\nwgmma.wait_group.sync.aligned 0;\n"
        );
        let (found, run) = outcome(Case { timing, ..case }, &middle);
        let twice: Vec<f32> = run.expected().iter().map(|x| 2.0 * x).collect();
        assert_eq!(found.unwrap(), twice);
    }
}

fn fault_of(case: Case, middle: &str) -> FaultKind {
    match outcome(case, middle).0 {
        Err(LaunchError::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_four_warps_execute_it_alike() {
    let says = |middle: &str, part: &str| {
        let kind = fault_of(plain(), middle);
        assert!(
            matches!(kind, FaultKind::Warpgroup { .. }) && kind.to_string().contains(part),
            "{kind}"
        );
    };
    let product = middle(&plain());
    let without = |test: &str, body: &str| {
        format!("setp.{test} %p5, %r0, 96;\n@%p5 bra SKIP;\n{body}\nSKIP:\n")
    };
    // One warp never comes: it ends before the others come, or after.
    let kinds =
        [without("ge.u32", &product), without("lt.u32", &product)].map(|m| fault_of(plain(), &m));
    let ends = [
        "warp 3 of the warpgroup has exited",
        "the warp ends, but another of its warpgroup has executed wgmma.fence",
    ];
    for (kind, part) in kinds.iter().zip(ends) {
        assert!(
            matches!(kind, FaultKind::Warpgroup { .. }) && kind.to_string().contains(part),
            "{kind}"
        );
    }
    // It comes to another one.
    let other = format!(
        "{}wgmma.fence.sync.aligned;\n{product}",
        without("ge.u32", "wgmma.fence.sync.aligned;")
    );
    says(&other, "has executed another one in its place: wgmma.fence");
    // Its descriptor is another.
    let shifted = format!("setp.lt.u32 %p5, %r0, 96;\n@%p5 add.s64 %d11, %d11, 2;\n{product}");
    says(&shifted, "differ from those of another warp");
    // Lanes disagree.
    let shifted = "setp.eq.u32 %p5, %r0, 5;\n@%p5 add.s64 %d11, %d11, 2;\n";
    let kind = fault_of(plain(), &format!("{shifted}{product}"));
    assert!(
        kind.to_string().contains("the descriptor of B differs"),
        "{kind}"
    );
    let case = Case {
        predicate: true,
        ..plain()
    };
    let kind = fault_of(
        case,
        &format!("setp.eq.u32 %p9, %r0, 5;\n{}", middle(&case)),
    );
    assert!(kind.to_string().contains("scale-d differs"), "{kind}");
    // Some lanes are elsewhere.
    let half = "setp.eq.u32 %p5, %r0, 5;\n@%p5 bra SKIP;\nwgmma.fence.sync.aligned;\nSKIP:\n";
    let kind = fault_of(plain(), half);
    assert!(matches!(kind, FaultKind::Divergent { .. }), "{kind}");
    // A warp that waits at a barrier for those that wait for its product.
    let crossed = format!(
        "{}setp.lt.u32 %p5, %r0, 96;\n@%p5 bra ALL;\nbar.sync 1, 128;\nALL:\nwgmma.fence.sync.aligned;\n{}\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        "",
        instruction(&plain())
    );
    let kind = fault_of(plain(), &crossed);
    assert!(
        kind.to_string()
            .contains("waits for products that warp 3 of its warpgroup has not come to"),
        "{kind}"
    );
}

#[test]
fn a_product_is_done_for_a_warp_that_waits_alone() {
    // Warp 0 waits for the product, the others come to it and then wait for warp 0 first.
    let crossed = format!(
        "wgmma.fence.sync.aligned;\n{}\nwgmma.commit_group.sync.aligned;\nsetp.ge.u32 %p5, %r0, 32;\n\
         @!%p5 bra FIRST;\nbar.sync 1, 128;\nFIRST: wgmma.wait_group.sync.aligned 0;\n@!%p5 bar.sync 1, 128;\n",
        instruction(&plain())
    );
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(1),
    ] {
        let (found, run) = outcome(Case { timing, ..plain() }, &crossed);
        assert_eq!(found.unwrap(), run.expected());
    }
}

#[test]
fn what_descriptors_refuse() {
    let with = |bits: u64| {
        fault_of(
            plain(),
            &format!("xor.b64 %d11, %d11, {bits};\n{}", middle(&plain())),
        )
    };
    for bit in [14, 15, 30, 46, 48, 52, 61] {
        let kind = with(1 << bit);
        assert!(kind.to_string().contains("mean nothing"), "{kind}");
    }
    assert!(with(1 << 49).to_string().contains("base offset"));
    // Beyond the block's shared memory, and before it.
    let kind = with(0x3fff ^ 0x3800);
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    let far = format!(
        "mov.b64 %d11, {};\n{}",
        0x1_u64 | 1 << 62 | 64 << 32,
        middle(&plain())
    );
    let kind = fault_of(plain(), &far);
    assert!(
        matches!(kind, FaultKind::OutOfBounds { address: 16, .. }),
        "{kind}"
    );
}

#[test]
fn what_decoding_refuses() {
    let case = plain();
    let run = Run::new(case);
    let error = |from: &str, to: &str| {
        let middle = middle(&case);
        assert!(middle.contains(from), "{from}");
        let text = text(&case, [0, 0], &middle.replace(from, to));
        run.launch(&text, Options::default())
            .unwrap_err()
            .to_string()
    };
    assert!(error("m64n64k16", "m64n60k16").contains("does not take"));
    assert!(error("m64n64k16", "m64n72k16").contains("36 are needed"));
    assert!(error("1, 1, 1, 0, 0;", "1, 1, 2, 0, 0;").contains("the scale 2"));
    assert!(error("1, 1, 1, 0, 0;", "1, 1, 1, 0;").contains("2 are needed"));
    assert!(error("1, 1, 1, 0, 0;", "1, 1, 1, 0, 2;").contains("transposed or not"));
    assert!(error("%y1,", "%y0,").contains("stands twice"));
    assert!(error("%d10,", "{%r1, %r2, %r3},").contains("4 are needed"));
    assert!(error(".f32.bf16.bf16", ".f32.bf16.f16").contains("does not take"));
}

/// A kernel of three warpgroups with so many registers at first, each with a body.
fn divided(directives: &str, bodies: [&str; 3]) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {directives}\n{{\n.reg .b32 %r<9>;\n\
         .reg .pred %p<4>;\nmov.u32 %r0, %tid.x;\nsetp.ge.u32 %p1, %r0, 128;\n@%p1 bra B;\n{}\nret;\nB:\n\
         setp.ge.u32 %p1, %r0, 256;\n@%p1 bra C;\n{}\nret;\nC:\n{}\nret;\n}}",
        bodies[0], bodies[1], bodies[2]
    )
}

fn divide(directives: &str, bodies: [&str; 3]) -> Result<(), LaunchError> {
    let module = Module::parse(&divided(directives, bodies)).unwrap();
    let launch = Launch {
        grid: [1, 1, 1],
        block: [384, 1, 1],
        cluster: None,
        dynamic_shared: 0,
        params: &[],
    };
    Emulator::default().launch(&module, "k", &launch).map(drop)
}

#[test]
fn registers_are_divided_among_warpgroups() {
    // 65536 / 384 is 168 and some: 504 in all for three warpgroups.
    let bounds = ".maxntid 384 .minnctapersm 1";
    let (less, more) = (
        "setmaxnreg.dec.sync.aligned.u32 24;",
        "setmaxnreg.inc.sync.aligned.u32 240;",
    );
    divide(bounds, [less, more, more]).unwrap();
    // Those that ask come before those that give.
    divide(bounds, [more, more, less]).unwrap();
    divide(".maxnreg 168", [more, less, more]).unwrap();
    let kind_of = |result: Result<(), LaunchError>| match result {
        Err(LaunchError::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    let kind = kind_of(divide(bounds, [&less.replace("24", "32"), more, more]));
    let text = kind.to_string();
    assert!(
        matches!(kind, FaultKind::Deadlock { .. }) && text.contains("waits for 72 more registers"),
        "{text}"
    );
    let text = kind_of(divide(bounds, [&more.replace("inc", "dec"), more, more])).to_string();
    assert!(
        text.contains("240 registers are not fewer than the 168"),
        "{text}"
    );
    let text = kind_of(divide(bounds, [&less.replace("dec", "inc"), more, more])).to_string();
    assert!(
        text.contains("24 registers are not more than the 168"),
        "{text}"
    );
    let some =
        format!("and.b32 %r1, %r0, 96;\nsetp.eq.u32 %p2, %r1, 0;\n@%p2 bra SKIP;\n{less}\nSKIP:");
    let kind = kind_of(divide(bounds, [&some, "", ""]));
    assert!(matches!(kind, FaultKind::Warpgroup { .. }), "{kind}");
    let text = divide("", [less, more, more]).unwrap_err().to_string();
    assert!(text.contains("ptxas ignores it"), "{text}");
    let text = divide(bounds, [&less.replace("24", "28"), more, more])
        .unwrap_err()
        .to_string();
    assert!(text.contains("multiple of 8"), "{text}");
}
