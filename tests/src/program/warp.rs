//! What the lanes of a warp compute together.

use super::Guard;

/// A collective operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `vote.sync.all`, to a predicate.
    All,
    /// `vote.sync.any`, to a predicate.
    Any,
    /// `vote.sync.uni`, to a predicate.
    Uniform,
    /// `vote.sync.ballot`.
    Ballot,
    /// `match.any.sync.b32`.
    MatchAny,
    /// `match.any.sync.b64`.
    MatchAnyWide,
    /// `match.all.sync.b32`, to a register.
    MatchAll,
    /// `redux.sync`, by place in [`REDUCTIONS`].
    Reduction(usize),
    /// `shfl.sync`: mode by place in [`SHUFFLES`], lanes of a segment.
    Shuffle(usize, u32),
}

/// What two lanes give.
type Reduce = fn(u32, u32) -> u32;

/// Names and meanings of `redux.sync`.
pub const REDUCTIONS: [(&str, Reduce); 8] = [
    ("add.u32", u32::wrapping_add),
    ("min.u32", |a, b| a.min(b)),
    ("max.u32", |a, b| a.max(b)),
    ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
    ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
    ("and.b32", |a, b| a & b),
    ("or.b32", |a, b| a | b),
    ("xor.b32", |a, b| a ^ b),
];

/// Names of the modes of `shfl.sync`. Only the first can be used in a block of fewer than 32 threads: it reads no
/// lane above its own.
pub const SHUFFLES: [&str; 4] = ["up", "down", "bfly", "idx"];

/// The source lane of a shuffle within segments of `size` lanes: the lane itself, if the other is in another segment.
pub fn source(mode: usize, size: u32, lane: u32, b: u32) -> u32 {
    let b = b & 31;
    let first = lane / size * size;
    let other = match mode {
        0 => lane.checked_sub(b),
        1 => Some(lane + b),
        2 => Some(lane ^ b),
        _ => Some(first + b % size),
    };
    // What lies above is out of bounds; so is what lies below, but only going up.
    match other {
        Some(other) if other < first + size && (mode != 0 || other >= first) => other,
        _ => lane,
    }
}

/// The operand of `shfl.sync` that says so: clamp in the low bits, segments above.
pub fn segments(mode: usize, size: u32) -> u32 {
    (32 - size) << 8 | if mode == 0 { 0 } else { 31 }
}

/// A matrix product of operands that a program has in registers.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// `m16n8k32` of 8-bit integers, else `m16n8k16`.
    pub long: bool,
    /// Of integers; else of small numbers in f16, whose sums are exact.
    pub integer: bool,
    /// Whether the bytes of a and b have signs.
    pub signed: [bool; 2],
    /// Numbers of the first registers of a, b and c, and of the destination.
    pub registers: [usize; 4],
}

impl Matrix {
    /// Registers of a, b and c.
    pub fn sizes(&self) -> [usize; 3] {
        match (self.integer, self.long) {
            (true, false) => [2, 1, 4],
            _ => [4, 2, 4],
        }
    }
}

/// The product of a warp's fragments: `a`, `b` and `c` of each lane, `c`'s registers of each lane back. Elements are
/// exact integers in either type; for f16 the fragments' registers hold two numbers below 16 in their halves.
pub fn multiply(m: &Matrix, a: &[Vec<u32>], b: &[Vec<u32>], c: &[Vec<u32>]) -> Vec<[u32; 4]> {
    let k = if m.long { 32 } else { 16 };
    // Elements of a register, and bits from one to the next.
    let (each, bits) = if m.integer { (4, 8) } else { (2, 16) };
    let element = |registers: &[u32], at: usize, signed: bool| -> i64 {
        let x = registers[at / each] >> (at % each * bits);
        match (m.integer, signed) {
            (true, true) => i64::from(x as i8),
            (true, false) => i64::from(x as u8),
            (false, _) => i64::from(x & 15),
        }
    };
    let mut left = vec![[0i64; 32]; 16];
    let mut right = vec![[0i64; 32]; 8];
    for lane in 0..32 {
        let (group, thread) = (lane / 4, lane % 4);
        for at in 0..a[lane].len() * each {
            // Registers go down eight rows, then to the next columns.
            let register = at / each;
            let row = group + 8 * (register % 2);
            let column = thread * each + at % each + register / 2 * each * 4;
            left[row][column] = element(&a[lane], at, m.signed[0]);
        }
        for at in 0..b[lane].len() * each {
            let row = thread * each + at % each + at / each * each * 4;
            right[group][row] = element(&b[lane], at, m.signed[1]);
        }
    }
    (0..32)
        .map(|lane| {
            std::array::from_fn(|at| {
                let row = lane / 4 + 8 * (at / 2);
                let column = lane % 4 * 2 + at % 2;
                let sum: i64 = (0..k).map(|x| left[row][x] * right[column][x]).sum();
                match m.integer {
                    true => c[lane][at].wrapping_add(sum as u32),
                    false => ((i64::from(c[lane][at] & 1023) + sum) as f32).to_bits(),
                }
            })
        })
        .collect()
}

/// Whether a guard holds for these predicates.
pub fn holds(guard: Guard, predicates: &[u64]) -> bool {
    (predicates[guard.predicate] == 1) != guard.negated
}
