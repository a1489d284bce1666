//! Products of a warpgroup: which elements they read, and every shape that the kernels use.
//!
//! *Probes* tell where an operand's elements are read from. Every element of shared memory holds a digit of its own number, and the
//! other operand selects: each element of the result is the digit of one element that was read. Block 0 has the lowest digits, and
//! so on; put together they are the numbers of the elements, whatever the descriptor was taken to mean. Everything is exact, in
//! whatever order sums are made.

use super::super::{
    Promise, Target, Test,
    inputs::Noise,
    sums::Element::{self, Bf16, E4m3, F16},
};
use super::Body;
use crate::compare::Format;

/// Threads of a warpgroup.
pub(super) const THREADS: u32 = 128;

/// Rows of A and of the result.
pub(super) const ROWS: u32 = 64;

/// Columns of the kernels' products.
const COLUMNS: [u32; 10] = [64, 80, 96, 112, 128, 144, 160, 176, 192, 256];

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests: Vec<_> = probes().iter().map(Probe::test).collect();
    for element in [F16, Bf16, E4m3] {
        for columns in COLUMNS {
            for from_registers in [false, true] {
                tests.push(product(element, columns, from_registers, false));
            }
        }
        tests.push(product(element, 64, true, true));
    }
    tests
}

/// Products of a sum: 32 bytes of each row.
pub(super) fn sum_length(element: Element) -> u32 {
    256 / element.width()
}

/// Bytes of an element.
pub(super) fn bytes(element: Element) -> u32 {
    element.width() / 8
}

/// An operand in shared memory, in rows of swizzled bytes, eight of which follow each other without a gap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    /// Bytes of a row: 128, 64 or 32.
    width: u32,
    /// Whether rows are the terms of the sum (MN-major), and not contiguous along it (K-major).
    across: bool,
    /// Where it begins in the array, which is at a multiple of 1024.
    at: u32,
    /// Bytes from one block of columns to the next, where rows are terms of the sum.
    block_bytes: u32,
    base_offset: u32,
}

impl Operand {
    pub(super) const fn along(width: u32, at: u32) -> Self {
        Self {
            width,
            across: false,
            at,
            block_bytes: 16,
            base_offset: 0,
        }
    }

    const fn across(width: u32, at: u32, rows: u32) -> Self {
        Self {
            across: true,
            block_bytes: rows * width,
            ..Self::along(width, at)
        }
    }

    /// Instructions that make the descriptor in a register of 64 bits. (Manual: section 9.7.15.5.1.2.2)
    pub(super) fn descriptor(&self, register: &str) -> String {
        let code = match self.width {
            128 => 1,
            64 => 2,
            _ => 3u32,
        };
        let (lower, upper) = (
            (self.block_bytes >> 4) << 16,
            8 * self.width / 16 | self.base_offset << 17 | code << 30,
        );
        format!(
            "add.u32 %r51, %r2, {};\nand.b32 %r51, %r51, 0x3ffff;\nshr.u32 %r51, %r51, 4;\nor.b32 %r51, %r51, {lower};\n\
             mov.b32 %r52, {upper};\nmov.b64 {register}, {{%r51, %r52}};\n",
            self.at
        )
    }
}

/// A product with A in `%r20` to `%r23` or described by `%d10`, B described by `%d11`, and its sums in `%f0`, ... `adds`: whether it
/// adds to them, 0, 1 or a predicate.
pub(super) fn instruction(
    element: Element,
    columns: u32,
    a_in_registers: bool,
    b_across: bool,
    adds: &str,
) -> String {
    let sums: Vec<_> = (0..columns / 2).map(|i| format!("%f{i}")).collect();
    let (a, tail) = match (a_in_registers, element.width()) {
        (true, 16) => (
            "{%r20, %r21, %r22, %r23}",
            format!(", {}", u32::from(b_across)),
        ),
        (false, 16) => ("%d10", format!(", 0, {}", u32::from(b_across))),
        (true, _) => ("{%r20, %r21, %r22, %r23}", String::new()),
        (false, _) => ("%d10", String::new()),
    };
    let (k, name) = (sum_length(element), element.name());
    format!(
        "wgmma.mma_async.sync.aligned.m64n{columns}k{k}.f32.{name}.{name} {{{}}}, {a}, %d11, {adds}, 1, 1{tail};\n",
        sums.join(", "),
    )
}

/// A's registers of all threads, from its elements by row and place in the sum. (Manual: figures of section 9.7.15.5.1.1)
pub(super) fn fragments(element: Element, a: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    let (per, bits) = (32 / element.width() as usize, element.width());
    let mut words = Vec::new();
    for thread in 0..THREADS as usize {
        let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
        for register in 0..4 {
            let (row, first) = (
                16 * warp + g + 8 * (register % 2),
                4 * per * (register / 2) + per * t,
            );
            words.push((0..per).fold(0, |word, i| {
                let mask = (1 << bits) - 1;
                word | (a(row, first + i) & mask) << (i as u32 * bits)
            }));
        }
    }
    words
}

/// A small whole number.
fn number(element: Element, n: i32) -> u32 {
    // All of the types have the numbers that are used here.
    element.encode(f64::from(n)).unwrap_or_default()
}

/// Elements as words.
pub(super) fn packed(element: Element, elements: &[u32]) -> Vec<u32> {
    let per = 32 / element.width() as usize;
    let word = |chunk: &[u32]| {
        let each = chunk.iter().enumerate();
        each.fold(0, |word, (i, bits)| {
            word | bits << (i as u32 * element.width())
        })
    };
    elements.chunks(per).map(word).collect()
}

/// Which operand is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}

/// Where an operand is read.
#[derive(Clone, Debug)]
struct Probe {
    name: String,
    element: Element,
    side: Side,
    operand: Operand,
    /// Rows that the operand's part of shared memory has, and blocks of columns.
    rows: u32,
    blocks: u32,
    /// Columns of the product.
    columns: u32,
    promise: Promise,
}

impl Probe {
    fn new(
        element: Element,
        side: Side,
        what: &str,
        operand: Operand,
        [rows, blocks, columns]: [u32; 3],
    ) -> Self {
        let direction = if operand.across { "MN" } else { "K" };
        let side_name = match side {
            Side::A => "A".to_owned(),
            Side::B => format!("B of {columns} columns"),
        };
        Self {
            name: format!(
                "wgmma probe, {}, {side_name}, {direction}-major, {}-byte swizzle{what}",
                element.name(),
                operand.width
            ),
            element,
            side,
            operand,
            rows,
            blocks,
            columns,
            promise: Promise::Exact,
        }
    }

    /// Bits of a digit: numbers of so many bits are exact in the type.
    fn digit(&self) -> u32 {
        if self.element == E4m3 { 4 } else { 8 }
    }

    fn test(&self) -> Test {
        let Self {
            element, operand, ..
        } = *self;
        let k = sum_length(element);
        // Blocks of columns of all of the operand's rows, and a part of a kibibyte more for those that begin inside of one.
        let probed = (self.rows * operand.width * self.blocks + 1024).next_multiple_of(1024);
        let selector_bytes = match self.side {
            Side::A => k * 128,
            Side::B => 0,
        };
        let region = (probed + selector_bytes).next_multiple_of(16 * THREADS);
        let elements = region / bytes(element);
        let (digit, mask) = (self.digit(), (1u32 << self.digit()) - 1);
        let digits = 16u32.div_ceil(digit);
        assert!(elements <= 1 << 16);
        let mut input = Vec::new();
        for place in 0..digits {
            let mut image: Vec<u32> = (0..elements)
                .map(|n| number(element, (n >> (digit * place) & mask) as i32))
                .collect();
            if self.side == Side::A {
                // Column n is 1 at place n of the sum.
                let selector = rows_along(element, k, |at, column| {
                    number(element, i32::from(at == column))
                });
                let from = (probed / bytes(element)) as usize;
                image[from..from + selector.len()].copy_from_slice(&selector);
            }
            input.extend(packed(element, &image));
        }
        let mut body = Body::new(THREADS);
        body.add(format!(
            "mul.wide.u32 %d5, %r1, {region};\nadd.s64 %d5, %d1, %d5;"
        ));
        body.fill(region, "%d5").sync();
        let from_registers = self.side == Side::B;
        if from_registers {
            input.extend(fragments(element, |row, at| {
                number(element, i32::from(row % k as usize == at))
            }));
            body.add(load_fragment(digits * region, "%d1"));
            body.add(operand.descriptor("%d11"));
        } else {
            body.add(operand.descriptor("%d10"));
            body.add(Operand::along(128, probed).descriptor("%d11"));
        }
        let across = from_registers && operand.across;
        body.add("wgmma.fence.sync.aligned;").add(instruction(
            element,
            self.columns,
            from_registers,
            across,
            "0",
        ));
        body.add(WAIT).add(store_sums(self.columns));
        let mut test = Test::in_memory(
            &self.name,
            Target::Sm90a,
            &body.text,
            (digits, THREADS),
            (self.columns as usize / 2, Format::F32),
            input,
        );
        test.declarations = declarations(region);
        test.promise(self.promise)
    }
}

/// The elements of an operand B of one step, K-major, in rows of 128 bytes under the swizzle of that width.
pub(super) fn rows_along(
    element: Element,
    columns: u32,
    b: impl Fn(usize, usize) -> u32,
) -> Vec<u32> {
    let row = 128 / bytes(element) as usize;
    let per_chunk = row / 8;
    let mut image = vec![0; row * columns as usize];
    for column in 0..columns as usize {
        for k in 0..sum_length(element) as usize {
            let chunk = (k / per_chunk) ^ (column % 8);
            image[column * row + chunk * per_chunk + k % per_chunk] = b(k, column);
        }
    }
    image
}

pub(super) const WAIT: &str =
    "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";

pub(super) fn declarations(region: u32) -> String {
    Body::shared(region, 1) + "\n.reg .f32 %f<128>;"
}

/// Loads the thread's four registers of A, which are so many bytes after an address in a register.
pub(super) fn load_fragment(offset: u32, from: &str) -> String {
    format!(
        "mul.wide.u32 %d20, %r0, 16;\nadd.s64 %d20, {from}, %d20;\n\
         ld.global.v4.b32 {{%r20, %r21, %r22, %r23}}, [%d20+{offset}];\n"
    )
}

/// Stores the thread's sums.
pub(super) fn store_sums(columns: u32) -> String {
    let mut text = format!(
        "mul.wide.u32 %d20, %r0, {};\nadd.s64 %d20, %d0, %d20;\n",
        2 * columns
    );
    for i in 0..columns / 2 {
        text += &format!("st.global.f32 [%d20+{}], %f{i};\n", 4 * i);
    }
    text
}

fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    // Contiguous along the sum: every step inside of a swizzled row, and the block of columns after it.
    for element in [Bf16, E4m3] {
        for width in [128, 64, 32] {
            for step in 0..=width / 32 {
                let inside = step < width / 32;
                let what = match inside {
                    true => format!(", {} bytes into the row", 32 * step),
                    false => ", second block of columns".into(),
                };
                let at = |rows: u32| if inside { 32 * step } else { rows * width };
                let new = |side, rows: u32, columns| {
                    let operand = Operand::along(width, at(rows));
                    Probe::new(element, side, &what, operand, [rows, 2, columns])
                };
                probes.push(new(Side::A, ROWS, sum_length(element)));
                probes.push(new(Side::B, 64, 64));
            }
            let operand = Operand::along(width, 0);
            let what = "";
            probes.push(Probe::new(element, Side::B, what, operand, [256, 1, 256]));
        }
    }
    // Rows are the terms of the sum: several blocks of columns, and every step of 16 rows.
    let rows = 48;
    for (width, columns) in [
        (128, 64),
        (128, 128),
        (128, 192),
        (128, 256),
        (64, 64),
        (64, 96),
        (64, 256),
        (32, 80),
    ] {
        for step in 0..rows / 16 {
            let what = format!(", {} rows into the tile", 16 * step);
            let operand = Operand::across(width, step * 16 * width, rows);
            let blocks = 2 * columns / width;
            probes.push(Probe::new(
                Bf16,
                Side::B,
                &what,
                operand,
                [rows, blocks, columns],
            ));
        }
    }
    let f16 = Operand::across(128, 0, rows);
    probes.push(Probe::new(F16, Side::B, "", f16, [rows, 2, 128]));
    // Beginnings that are no multiples of eight rows, which the kernels do without.
    for base_offset in [0, 3] {
        let operand = Operand {
            base_offset,
            ..Operand::along(128, 3 * 128)
        };
        let what = format!(", 384 bytes after a multiple of 1024, base offset {base_offset}");
        let probe = Probe::new(Bf16, Side::B, &what, operand, [72, 1, 64]);
        probes.push(Probe {
            promise: if base_offset == 0 {
                Promise::Open
            } else {
                Promise::Unknown
            },
            ..probe
        });
    }
    probes
}

/// Several products onto one sum, the first of which starts anew, of random whole numbers: as the kernels multiply Q with K, or P
/// with V. Whether a product adds to the sum is in the instruction, or in a predicate.
fn product(element: Element, columns: u32, from_registers: bool, predicate: bool) -> Test {
    let name = format!(
        "wgmma m64n{columns}k{} {}, A in {}{}",
        sum_length(element),
        element.name(),
        if from_registers {
            "registers"
        } else {
            "shared memory"
        },
        if predicate { ", adds by predicate" } else { "" }
    );
    let mut noise = Noise::of(&name);
    let mut random = |count: u32| -> Vec<u32> {
        (0..count)
            .map(|_| number(element, noise.below(5) as i32 - 2))
            .collect()
    };
    // P * V of 16-bit elements: two steps of 16 rows of V, whose columns are in as wide blocks as divide them. Else: four steps
    // of 32 bytes.
    let across = from_registers && element != E4m3;
    let (steps, b) = match across {
        true => {
            let width = [128, 64, 32]
                .into_iter()
                .find(|width| columns * 2 % width == 0);
            (2, Operand::across(width.unwrap_or(32), 0, 32))
        }
        false => (4, Operand::along(128, 0)),
    };
    let b_bytes = if across {
        32 * columns * 2
    } else {
        columns * 128
    };
    let a_bytes = if from_registers { 0 } else { ROWS * 128 };
    let a = Operand::along(128, b_bytes.next_multiple_of(1024));
    let region = (a.at + a_bytes).next_multiple_of(16 * THREADS);
    let mut input = packed(element, &random(region / bytes(element)));
    let mut body = Body::new(THREADS);
    body.fill(region, "%d1").sync();
    let mut products = String::new();
    for step in 0..steps {
        let moved = |operand: Operand| Operand {
            at: operand.at
                + match operand.across {
                    true => step * 16 * operand.width,
                    false => step * 32,
                },
            ..operand
        };
        // %p14 is true, %p15 false, which ptxas does not know.
        let adds = match (predicate, step > 0) {
            (true, true) => "%p14",
            (true, false) => "%p15",
            (false, true) => "1",
            (false, false) => "0",
        };
        let (from, to) = (format!("%r{}", 20 + 4 * step), step * 4 + 20);
        if from_registers {
            let k = sum_length(element) as usize;
            let elements = random(ROWS * k as u32);
            let a = fragments(element, |row, at| elements[row * k + at]);
            let offset = 4 * input.len() as u32;
            input.extend(a);
            let load = load_fragment(offset, "%d1");
            let last = format!("{{{from}, %r{}, %r{}, %r{}}}", to + 1, to + 2, to + 3);
            body.add(load.replace("{%r20, %r21, %r22, %r23}", &last));
            body.add(moved(b).descriptor(&format!("%d{}", 11 + 2 * step)));
            let text = instruction(element, columns, true, across, adds);
            products += &text
                .replace("{%r20, %r21, %r22, %r23}", &last)
                .replace("%d11", &format!("%d{}", 11 + 2 * step));
        } else {
            body.add(moved(a).descriptor(&format!("%d{}", 10 + 2 * step)));
            body.add(moved(b).descriptor(&format!("%d{}", 11 + 2 * step)));
            let text = instruction(element, columns, false, across, adds);
            products += &text
                .replace("%d10", &format!("%d{}", 10 + 2 * step))
                .replace("%d11", &format!("%d{}", 11 + 2 * step));
        }
    }
    body.add("setp.lt.u32 %p14, %r0, 1024;\nsetp.ge.u32 %p15, %r0, 1024;");
    body.add("wgmma.fence.sync.aligned;").add(products);
    body.add(WAIT).add(store_sums(columns));
    let mut test = Test::in_memory(
        name,
        Target::Sm90a,
        &body.text,
        (1, THREADS),
        (columns as usize / 2, Format::F32),
        input,
    );
    test.declarations = declarations(region);
    test.models = true;
    test
}
