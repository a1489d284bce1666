//! A kernel with one matrix product of a warpgroup, its operands in all layouts, and what it must give.
#![allow(dead_code)]

use flashtile_emulator::{
    AsyncTiming, Emulator, Launch, LaunchError, Module, Numerics, Options, TensorCores,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::common::kernel;

pub const SHARED: &str = ".shared .align 1024 .b8 s[65536];";
pub const IMAGE: usize = 65536;
/// Where operands begin in the image.
pub const A_AT: usize = 0;
pub const B_AT: usize = 32768;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ty {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
}

impl Ty {
    pub fn bytes(self) -> usize {
        match self {
            Ty::F16 | Ty::Bf16 => 2,
            Ty::Tf32 => 4,
            _ => 1,
        }
    }

    pub fn k(self) -> usize {
        32 / self.bytes()
    }

    pub fn name(self) -> &'static str {
        match self {
            Ty::F16 => "f16",
            Ty::Bf16 => "bf16",
            Ty::Tf32 => "tf32",
            Ty::E4m3 => "e4m3",
            Ty::E5m2 => "e5m2",
        }
    }

    /// A value that all types hold, from -4 to 4 in quarters, and its bytes.
    pub fn encode(self, n: u32) -> (f32, Vec<u8>) {
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
pub struct Matrix {
    pub ty: Ty,
    pub values: Vec<f32>,
    pub bytes: Vec<Vec<u8>>,
}

impl Matrix {
    pub fn new(ty: Ty, rows: usize, seed: u32) -> Matrix {
        let mut state = seed;
        let elements = (0..rows * ty.k()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ty.encode(state >> 20)
        });
        let (values, bytes) = elements.unzip();
        Matrix { ty, values, bytes }
    }

    pub fn at(&self, row: usize, k: usize) -> f32 {
        self.values[row * self.ty.k() + k]
    }
}

/// How a matrix lies in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub start: usize,
    /// 0, 32, 64 or 128 bytes.
    pub swizzle: usize,
    pub mn_major: bool,
    pub lbo: usize,
    pub sbo: usize,
}

impl Place {
    /// Rows of swizzled bytes one after the other, as TMA writes them; without a swizzle, core matrices of 128 bytes.
    pub fn new(
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
    pub fn offset(&self, mn: usize, k: usize, es: usize) -> usize {
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

    pub fn descriptor(&self) -> u64 {
        let swizzle = match self.swizzle {
            128 => 1u64,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        let field = |bytes: usize| (bytes as u64 & 0x3ffff) >> 4;
        field(0x400 + self.start) | field(self.lbo) << 16 | field(self.sbo) << 32 | swizzle << 62
    }

    pub fn write(&self, image: &mut [u8], matrix: &Matrix) {
        let (k, es) = (matrix.ty.k(), matrix.ty.bytes());
        for (number, bytes) in matrix.bytes.iter().enumerate() {
            let at = self.offset(number / k, number % k, es);
            image[at..at + es].copy_from_slice(bytes);
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub types: [Ty; 2],
    pub n: usize,
    pub narrow: bool,
    /// A comes from registers.
    pub registers: bool,
    pub swizzles: [usize; 2],
    pub mn_major: [bool; 2],
    pub step: usize,
    pub negated: [bool; 2],
    /// scale-d, and whether it is a predicate.
    pub keep: bool,
    pub predicate: bool,
    pub seed: u32,
    pub timing: AsyncTiming,
}

pub fn cases() -> impl Strategy<Value = Case> {
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
pub fn instruction(case: &Case) -> String {
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
pub fn text(case: &Case, descriptors: [u64; 2], middle: &str) -> String {
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

pub const THREAD_BYTES: usize = 16 + 4 * 128;

/// Row and column of value i of a thread's accumulator.
pub fn accumulator(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (
        16 * warp + lane / 4 + 8 * (i >> 1 & 1),
        8 * (i >> 2) + 2 * (lane % 4) + (i & 1),
    )
}

/// Row and k of value i of a thread's A registers.
pub fn fragment(ty: Ty, thread: usize, i: usize) -> (usize, usize) {
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

pub struct Run {
    pub case: Case,
    pub a: Matrix,
    pub b: Matrix,
    pub places: [Place; 2],
    /// Accumulators before, row by row.
    pub c: Vec<f32>,
}

impl Run {
    pub fn new(case: Case) -> Run {
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

    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0xee; IMAGE];
        self.places[0].write(&mut image, &self.a);
        self.places[1].write(&mut image, &self.b);
        image
    }

    /// What every thread reads: A's registers, and its accumulators.
    pub fn inputs(&self) -> Vec<u8> {
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

    pub fn launch(&self, text: &str, options: Options) -> Result<Vec<f32>, LaunchError> {
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
    pub fn expected(&self) -> Vec<f32> {
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

pub fn middle(case: &Case) -> String {
    format!(
        "wgmma.fence.sync.aligned;\n{}\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        instruction(case)
    )
}

pub fn options(case: &Case, cores: TensorCores) -> Options {
    Options {
        async_copies: case.timing,
        numerics: Numerics {
            tensor_cores: cores,
            ..Numerics::default()
        },
        ..Options::default()
    }
}
