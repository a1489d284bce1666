//! `mma.sync`: random matrices, and experiments, of every form.

use super::{
    Promise, Target, Test,
    inputs::Noise,
    sums::{
        Element::{self, Bf16, E4m3, E5m2, F16, S8, Tf32, U8},
        Matrices, Random, Sum,
    },
};
use crate::compare::Format;

/// A form of `mma.sync`, m16n8.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    sum: Sum,
    /// Modifier before the types.
    modifier: &'static str,
    target: Target,
}

impl Shape {
    const fn new(k: usize, a: Element, c: &'static str, target: Target) -> Self {
        Self::mixed(k, a, a, c, target)
    }

    const fn mixed(k: usize, a: Element, b: Element, c: &'static str, target: Target) -> Self {
        Self {
            sum: Sum { k, a, b, c },
            modifier: "",
            target,
        }
    }

    fn instruction(&self) -> String {
        let Self {
            sum: Sum { k, a, b, c },
            modifier,
            ..
        } = self;
        format!(
            "mma.sync.aligned.m16n8k{k}.row.col{modifier}.{c}.{}.{}.{c}",
            a.name(),
            b.name()
        )
    }

    /// Elements in a register.
    const fn packed(&self) -> usize {
        32 / self.sum.a.width() as usize
    }

    const fn a_registers(&self) -> usize {
        16 * self.sum.k / 32 / self.packed()
    }

    const fn b_registers(&self) -> usize {
        8 * self.sum.k / 32 / self.packed()
    }

    fn c_registers(&self) -> usize {
        if self.sum.c == "f16" { 2 } else { 4 }
    }

    /// A warp's registers, lane by lane: A, B, C. (The fragment layouts, from the manual's figures: with g = lane / 4,
    /// t = lane % 4, and e elements in a register.)
    fn fragments(&self, matrices: &Matrices) -> Vec<u32> {
        let e = self.packed();
        let width = self.sum.a.width();
        let mask = if width == 32 {
            u32::MAX
        } else {
            (1 << width) - 1
        };
        let mut words = Vec::new();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for r in 0..self.a_registers() {
                words.push((0..e).fold(0, |word, i| {
                    let element = matrices.a[g + 8 * (r % 2)][e * t + i + 4 * e * (r / 2)];
                    word | (element & mask) << (i as u32 * width % 32)
                }));
            }
            for r in 0..self.b_registers() {
                words.push((0..e).fold(0, |word, i| {
                    let element = matrices.b[e * t + i + 4 * e * r][g];
                    word | (element & mask) << (i as u32 * width % 32)
                }));
            }
            for r in 0..self.c_registers() {
                words.push(match self.sum.c {
                    "f16" => {
                        matrices.c[g + 8 * r][2 * t] & 0xffff
                            | matrices.c[g + 8 * r][2 * t + 1] << 16
                    }
                    _ => matrices.c[g + 8 * (r / 2)][2 * t + r % 2],
                });
            }
        }
        words
    }

    fn test(&self, name: String, input: Vec<u32>) -> Test {
        let (na, nb, nc) = (self.a_registers(), self.b_registers(), self.c_registers());
        let list = |letter: &str, from: usize, count: usize| {
            let names: Vec<_> = (from..from + count)
                .map(|i| format!("%{letter}{i}"))
                .collect();
            format!("{{{}}}", names.join(", "))
        };
        let body = format!(
            "{} {}, {}, {}, {};",
            self.instruction(),
            list("o", 0, nc),
            list("a", 0, na),
            list("a", na, nb),
            list("a", na + nb, nc)
        );
        let format = match self.sum.c {
            "f16" => Format::F16x2,
            "f32" => Format::F32,
            _ => Format::Bits,
        };
        let floats = self.sum.c != "s32";
        let mut test = Test::new(
            name,
            self.target,
            body,
            (na + nb + nc, vec![format; nc]),
            input,
        )
        .promise(if floats {
            Promise::Open
        } else {
            Promise::Exact
        });
        test.models = floats;
        test
    }
}

/// The forms.
pub const SHAPES: &[Shape] = &[
    Shape::new(16, F16, "f32", Target::Sm80),
    Shape::new(8, F16, "f32", Target::Sm80),
    Shape::new(16, F16, "f16", Target::Sm80),
    Shape::new(8, F16, "f16", Target::Sm80),
    Shape::new(16, Bf16, "f32", Target::Sm80),
    Shape::new(8, Bf16, "f32", Target::Sm80),
    Shape::new(8, Tf32, "f32", Target::Sm80),
    Shape::new(4, Tf32, "f32", Target::Sm80),
    Shape::new(32, E4m3, "f32", Target::Sm89),
    Shape::new(32, E5m2, "f32", Target::Sm89),
    Shape::mixed(32, E4m3, E5m2, "f32", Target::Sm89),
    Shape::new(16, S8, "s32", Target::Sm80),
    Shape::new(32, S8, "s32", Target::Sm80),
    Shape::new(32, U8, "s32", Target::Sm80),
    Shape::mixed(32, U8, S8, "s32", Target::Sm80),
    Shape {
        modifier: ".satfinite",
        ..Shape::new(32, S8, "s32", Target::Sm80)
    },
];

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for shape in SHAPES {
        if shape.sum.c != "s32" {
            tests.push(experiments(shape));
        }
        for kind in Random::ALL {
            tests.extend(random(shape, *kind));
        }
    }
    tests
}

fn random(shape: &Shape, kind: Random) -> Option<Test> {
    if shape.sum.c == "s32" && kind != Random::Bits {
        return None;
    }
    let name = format!("{}, {}", shape.instruction(), kind.name());
    let mut noise = Noise::of(&name);
    let mut input = Vec::new();
    for _ in 0..512 {
        input.extend(shape.fragments(&shape.sum.random(kind, &mut noise, 16, 8)));
    }
    Some(shape.test(name, input))
}

/// One warp for each question that the types can be asked.
fn experiments(shape: &Shape) -> Test {
    let (names, matrices): (Vec<_>, Vec<_>) = shape.sum.experiments(16, 8).into_iter().unzip();
    let input = matrices
        .iter()
        .flat_map(|matrices| shape.fragments(matrices))
        .collect();
    let mut test = shape.test(format!("{}, experiments", shape.instruction()), input);
    test.experiments = names;
    test
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_form_is_asked_something() {
        for shape in SHAPES.iter().filter(|shape| shape.sum.c != "s32") {
            let test = experiments(shape);
            assert!(
                test.experiments.len() >= 8,
                "{}: {}",
                test.name,
                test.experiments.len()
            );
        }
    }
}
