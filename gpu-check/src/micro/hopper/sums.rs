//! How a warpgroup's tensor cores sum: the questions and the random matrices that `mma.sync` is asked too.

use super::super::{
    Promise, Target, Test,
    inputs::Noise,
    sums::{
        Element::{self, Bf16, E4m3, F16},
        Matrices, Random, Sum,
    },
};
use super::{
    Body,
    wgmma::{
        Operand, ROWS, THREADS, WAIT, declarations, fragments, instruction, load_fragment, packed,
        rows_along, store_sums, sum_length,
    },
};
use crate::compare::Format;

/// Columns of random matrices, and how many of these there are.
const COLUMNS: u32 = 64;
const RANDOM: usize = 8;

/// Columns of an experiment: all have the same sum.
const EXPERIMENT_COLUMNS: u32 = 8;

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for element in [F16, Bf16, E4m3] {
        tests.push(experiments(element));
        tests.extend(Random::ALL.iter().map(|&kind| random(element, kind)));
    }
    tests
}

fn sum(element: Element) -> Sum {
    Sum {
        k: sum_length(element) as usize,
        a: element,
        b: element,
        c: "f32",
    }
}

fn name(element: Element, columns: u32, what: &str) -> String {
    let (k, element) = (sum_length(element), element.name());
    format!("wgmma sums, m64n{columns}k{k} {element}, {what}")
}

fn random(element: Element, kind: Random) -> Test {
    let name = name(element, COLUMNS, kind.name());
    let mut noise = Noise::of(&name);
    let matrices: Vec<_> = (0..RANDOM)
        .map(|_| sum(element).random(kind, &mut noise, ROWS as usize, COLUMNS as usize))
        .collect();
    test(name, element, COLUMNS, &matrices)
}

/// One block for each question that the type can be asked.
fn experiments(element: Element) -> Test {
    let asked = sum(element).experiments(ROWS as usize, EXPERIMENT_COLUMNS as usize);
    let (names, matrices): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    let name = name(element, EXPERIMENT_COLUMNS, "experiments");
    let mut test = test(name, element, EXPERIMENT_COLUMNS, &matrices);
    test.experiments = names;
    test.experiment_threads = THREADS as usize;
    test
}

/// One product for each of the matrices, onto c; A comes from registers. A block's input: B, A's registers, c's registers.
fn test(name: String, element: Element, columns: u32, matrices: &[Matrices]) -> Test {
    let (b_bytes, a_bytes, sums) = (128 * columns, 16 * THREADS, columns / 2);
    let block_bytes = b_bytes + a_bytes + 4 * sums * THREADS;
    let mut body = Body::new(THREADS);
    body.add(format!(
        "mul.wide.u32 %d5, %r1, {block_bytes};\nadd.s64 %d5, %d1, %d5;"
    ));
    body.fill(b_bytes, "%d5").sync();
    body.add(load_fragment(b_bytes, "%d5"));
    body.add(format!(
        "mul.wide.u32 %d20, %r0, {};\nadd.s64 %d20, %d5, %d20;",
        4 * sums
    ));
    for i in 0..sums {
        let at = b_bytes + a_bytes + 4 * i;
        body.add(format!("ld.global.f32 %f{i}, [%d20+{at}];"));
    }
    body.add(Operand::along(128, 0).descriptor("%d11"));
    body.add("wgmma.fence.sync.aligned;");
    body.add(instruction(element, columns, true, false, "1"));
    body.add(WAIT).add(store_sums(columns));
    let input = matrices.iter().flat_map(|matrices| {
        let mut words = packed(
            element,
            &rows_along(element, columns, |k, n| matrices.b[k][n] & mask(element)),
        );
        words.extend(fragments(element, |row, k| matrices.a[row][k]));
        words.extend(sum_fragments(columns, &matrices.c));
        words
    });
    let mut test = Test::in_memory(
        name,
        Target::Sm90a,
        &body.text,
        (matrices.len() as u32, THREADS),
        (sums as usize, Format::F32),
        input.collect(),
    );
    test.declarations = declarations(b_bytes);
    test.models = true;
    test.promise(Promise::Open)
}

fn mask(element: Element) -> u32 {
    (1 << element.width()) - 1
}

/// The sums' registers of all threads. (Manual: figures of section 9.7.15.5.1.1)
fn sum_fragments(columns: u32, c: &[Vec<u32>]) -> Vec<u32> {
    let mut words = Vec::new();
    for thread in 0..THREADS as usize {
        let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
        for register in 0..columns as usize / 2 {
            let row = 16 * warp + g + 8 * (register % 4 / 2);
            words.push(c[row][8 * (register / 4) + 2 * t + register % 2]);
        }
    }
    words
}
