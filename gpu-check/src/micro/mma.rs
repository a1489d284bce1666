//! Tensor cores: random matrices, and experiments made by hand that tell one way of summing from another.

use super::{Promise, Target, Test, inputs::Noise};
use crate::compare::Format;

/// An element type of A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// tf32, in 32 bits.
    Tf32,
    /// 8 bits, 4 of exponent.
    E4m3,
    /// 8 bits, 5 of exponent.
    E5m2,
    /// Signed byte.
    S8,
    /// Unsigned byte.
    U8,
}

use Element::{Bf16, E4m3, E5m2, F16, S8, Tf32, U8};

impl Element {
    const fn name(self) -> &'static str {
        match self {
            F16 => "f16",
            Bf16 => "bf16",
            Tf32 => "tf32",
            E4m3 => "e4m3",
            E5m2 => "e5m2",
            S8 => "s8",
            U8 => "u8",
        }
    }

    const fn width(self) -> u32 {
        match self {
            Tf32 => 32,
            F16 | Bf16 => 16,
            _ => 8,
        }
    }

    /// Bits of the fraction and of the exponent, and the largest exponent of a finite number.
    const fn float(self) -> (u32, i32, i32) {
        match self {
            F16 => (10, 5, 15),
            Bf16 => (7, 8, 127),
            Tf32 => (10, 8, 127),
            E4m3 => (3, 4, 8),
            E5m2 => (2, 5, 15),
            S8 | U8 => (0, 0, 0),
        }
    }

    /// A number that this type holds exactly and as a normal one, or nothing.
    pub fn encode(self, x: f64) -> Option<u32> {
        let (fraction_bits, exponent_bits, largest) = self.float();
        let sign = u32::from(x.is_sign_negative());
        if x == 0.0 {
            return Some(sign << (self.width() - 1));
        }
        let bits = x.abs().to_bits();
        let exponent = (bits >> 52) as i32 - 1023;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let lost = 52 - fraction_bits;
        let fraction = bits & ((1 << 52) - 1);
        if exponent > largest || exponent < 1 - bias || fraction & ((1 << lost) - 1) != 0 {
            return None;
        }
        let magnitude = ((exponent + bias) as u32) << fraction_bits | (fraction >> lost) as u32;
        // All ones is NaN in e4m3.
        if self == E4m3 && magnitude == 0x7f {
            return None;
        }
        // tf32 sits in the upper bits of an f32.
        let pad = if self == Tf32 { 13 } else { 0 };
        Some(sign << (self.width() - 1) | magnitude << pad)
    }
}

/// A form of `mma.sync`, m16n8.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    k: usize,
    a: Element,
    b: Element,
    /// Type of C and D.
    sum: &'static str,
    /// Modifier before the types.
    modifier: &'static str,
    target: Target,
}

/// Bits of A, B and C, element by element.
#[derive(Clone, Debug)]
pub struct Matrices {
    a: Vec<Vec<u32>>,
    b: Vec<Vec<u32>>,
    c: Vec<Vec<u32>>,
}

impl Shape {
    const fn new(k: usize, a: Element, sum: &'static str, target: Target) -> Self {
        Self {
            k,
            a,
            b: a,
            sum,
            modifier: "",
            target,
        }
    }

    fn instruction(&self) -> String {
        let Self {
            k,
            a,
            b,
            sum,
            modifier,
            ..
        } = self;
        format!(
            "mma.sync.aligned.m16n8k{k}.row.col{modifier}.{sum}.{}.{}.{sum}",
            a.name(),
            b.name()
        )
    }

    /// Elements in a register.
    const fn packed(&self) -> usize {
        32 / self.a.width() as usize
    }

    const fn a_registers(&self) -> usize {
        16 * self.k / 32 / self.packed()
    }

    const fn b_registers(&self) -> usize {
        8 * self.k / 32 / self.packed()
    }

    fn c_registers(&self) -> usize {
        if self.sum == "f16" { 2 } else { 4 }
    }

    /// A warp's registers, lane by lane: A, B, C. (The fragment layouts, from the manual's figures: with g = lane / 4,
    /// t = lane % 4, and e elements in a register.)
    fn fragments(&self, matrices: &Matrices) -> Vec<u32> {
        let e = self.packed();
        let width = self.a.width();
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
                words.push(match self.sum {
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
        let format = match self.sum {
            "f16" => Format::F16x2,
            "f32" => Format::F32,
            _ => Format::Bits,
        };
        let floats = self.sum != "s32";
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
    Shape {
        b: E5m2,
        ..Shape::new(32, E4m3, "f32", Target::Sm89)
    },
    Shape::new(16, S8, "s32", Target::Sm80),
    Shape::new(32, S8, "s32", Target::Sm80),
    Shape::new(32, U8, "s32", Target::Sm80),
    Shape {
        b: S8,
        ..Shape::new(32, U8, "s32", Target::Sm80)
    },
    Shape {
        modifier: ".satfinite",
        ..Shape::new(32, S8, "s32", Target::Sm80)
    },
];

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for shape in SHAPES {
        if shape.sum != "s32" {
            tests.extend(experiments(shape));
        }
        for kind in Random::ALL {
            tests.extend(random(shape, *kind));
        }
    }
    tests
}

/// How random matrices are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Random {
    /// Ordinary numbers, as in a model.
    Ordinary,
    /// Exponents all over the range in which products and sums are finite.
    Wide,
    /// Any bits: NaN, infinities and subnormals among them.
    Bits,
    /// c cancels most of the sum of the products.
    Cancelling,
}

impl Random {
    const ALL: &[Self] = &[Self::Ordinary, Self::Wide, Self::Bits, Self::Cancelling];

    const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Wide => "wide exponents",
            Self::Bits => "any bits",
            Self::Cancelling => "c cancels",
        }
    }
}

/// The nearest number to x that the type holds, with fewer bits where that does not matter.
fn nearby(element: Element, x: f64) -> (u32, f64) {
    let (fraction_bits, ..) = element.float();
    let lost = 52 - fraction_bits;
    let cut = f64::from_bits(x.to_bits() & !((1 << lost) - 1));
    element.encode(cut).map_or((0, 0.0), |bits| (bits, cut))
}

fn random(shape: &Shape, kind: Random) -> Option<Test> {
    let integers = shape.sum == "s32";
    if integers && kind != Random::Bits {
        return None;
    }
    let name = format!("{}, {}", shape.instruction(), kind.name());
    let mut noise = Noise::of(&name);
    let mut input = Vec::new();
    for _ in 0..512 {
        let (.., largest) = shape.a.float();
        let value = |noise: &mut Noise| match kind {
            Random::Wide => {
                let reach = (largest / 2).min(30) as u32;
                (1.0 + noise.unit().abs())
                    * 2f64.powi(noise.below(2 * reach) as i32 - reach as i32)
                    * noise.unit().signum()
            }
            _ => noise.unit() * 4.0,
        };
        let mut exact = vec![vec![0.0; shape.k]; 16];
        let mut a = vec![vec![0; shape.k]; 16];
        let mut b = vec![vec![0; 8]; shape.k];
        let mut b_exact = vec![[0.0; 8]; shape.k];
        for (bits, exact) in a.iter_mut().flatten().zip(exact.iter_mut().flatten()) {
            (*bits, *exact) = match kind {
                Random::Bits => (noise.next32(), 0.0),
                _ => nearby(shape.a, value(&mut noise)),
            };
        }
        for (bits, exact) in b.iter_mut().flatten().zip(b_exact.iter_mut().flatten()) {
            (*bits, *exact) = match kind {
                Random::Bits => (noise.next32(), 0.0),
                _ => nearby(shape.b, value(&mut noise)),
            };
        }
        let c = (0..16)
            .map(|row: usize| {
                (0..8)
                    .map(|column: usize| {
                        let x = match kind {
                            Random::Bits => return noise.next32(),
                            Random::Cancelling => {
                                -(0..shape.k)
                                    .map(|k| exact[row][k] * b_exact[k][column])
                                    .sum::<f64>()
                                    * (1.0 + noise.unit() * 2f64.powi(-8))
                            }
                            _ => value(&mut noise),
                        };
                        match shape.sum {
                            "f16" => nearby(F16, x).0,
                            _ => (x as f32).to_bits(),
                        }
                    })
                    .collect()
            })
            .collect();
        input.extend(shape.fragments(&Matrices { a, b, c }));
    }
    Some(shape.test(name, input))
}

/// One sum: products at given places, and c. Every element of D is that sum.
#[derive(Clone, Debug)]
struct Experiment {
    name: String,
    products: Vec<(usize, f64)>,
    c: f64,
}

/// Name, products and c of an [`Experiment`].
type Question = (String, Vec<(usize, f64)>, f64);

/// A product as two factors that the type holds.
fn factors(element: Element, other: Element, product: f64) -> Option<(u32, u32)> {
    let exponent = product.abs().log2().floor() as i32;
    // Near the middle first, where the range is.
    let half = exponent / 2;
    (0..64).flat_map(|i| [half + i, half - i]).find_map(|e| {
        let scale = 2f64.powi(e);
        Some((element.encode(product / scale)?, other.encode(scale)?))
    })
}

/// What is known of tensor cores, asked one question at a time. With u = 2^-23 and a leading sum of 1:
fn questions(k: usize) -> Vec<Experiment> {
    let p = |e: i32| 2f64.powi(e);
    let mut list: Vec<Question> = Vec::new();
    // How many bits below the largest term are kept: 2^n products of 2^-(23 + n), all at places after the first. One
    // by one in f32 they are lost; kept exactly they add up to u. Powers of two and places limit n.
    for n in 1..=3_usize {
        let count = 1 << n;
        if count < k {
            let small = (1..=count).map(|at| (at, p(-23 - n as i32)));
            let products = std::iter::once((0, 1.0)).chain(small).collect();
            list.push((format!("1 and {count} times 2^-{}", 23 + n), products, 0.0));
        }
    }
    // The same against c, and with a term that is itself below the last bit that is kept.
    for e in [23, 24, 25, 26, 27] {
        list.push((format!("c = 1 and 2^-{e}"), vec![(0, p(-e))], 1.0));
        list.push((format!("c = 1 and -2^-{e}"), vec![(0, -p(-e))], 1.0));
        list.push((
            format!("c = 1 and 3 times 2^-{e}"),
            vec![(0, p(-e)), (1, p(-e)), (2, p(-e))],
            1.0,
        ));
        list.push((format!("c = -1 and 2^-{e}"), vec![(0, p(-e))], -1.0));
        list.push((
            format!("1, -1 and c = 2^-{e}"),
            vec![(0, 1.0), (1, -1.0)],
            p(-e),
        ));
        list.push((
            format!("1, 2^-{e}, -1"),
            vec![(0, 1.0), (1, p(-e)), (2, -1.0)],
            0.0,
        ));
    }
    // Rounding of the sum: ties, and just past them.
    list.push((
        "1 and 2^-24, tie to even".into(),
        vec![(0, 1.0), (1, p(-24))],
        0.0,
    ));
    list.push((
        "1 + u and 2^-24, tie to even".into(),
        vec![(0, 1.0), (1, p(-23)), (2, p(-24))],
        0.0,
    ));
    list.push((
        "1, 2^-24 and 2^-25".into(),
        vec![(0, 1.0), (1, p(-24)), (2, p(-25))],
        0.0,
    ));
    list.push((
        "-1, -2^-24 and -2^-25".into(),
        vec![(0, -1.0), (1, -p(-24)), (2, -p(-25))],
        0.0,
    ));
    // Whether a product's exponent is that of its factors (1.5 * 1.5 = 2.25) or its own.
    list.push((
        "2.25 and 3 times 2^-24".into(),
        vec![(0, 2.25), (1, p(-24)), (2, p(-24)), (3, p(-24))],
        0.0,
    ));
    list.push((
        "2.25 and 3 times 2^-23".into(),
        vec![(0, 2.25), (1, p(-23)), (2, p(-23)), (3, p(-23))],
        0.0,
    ));
    list.push((
        "2.25, -2.25 and c = 2^-24".into(),
        vec![(0, 2.25), (1, -2.25)],
        p(-24),
    ));
    // Which terms are summed together: a pair that cancels at 0 and 1, a term at each other place that the pair
    // swallows if they meet; and then the pair at other places.
    for at in 2..k {
        list.push((
            format!("2^14, -2^14, and 2^-14 at {at}"),
            vec![(0, p(14)), (1, -p(14)), (at, p(-14))],
            0.0,
        ));
        list.push((
            format!("2^14 at 0, -2^14 at {at}, c = 2^-14"),
            vec![(0, p(14)), (at, -p(14))],
            p(-14),
        ));
    }
    if k >= 8 {
        let half = k / 2;
        let products = vec![(half, p(14)), (half + 1, -p(14)), (0, p(-14))];
        list.push((
            "2^-14, and 2^14, -2^14 in the second half".into(),
            products,
            0.0,
        ));
    }
    // Range: subnormal and huge terms, in f32's terms.
    list.push(("2^-140".into(), vec![(0, p(-140))], 0.0));
    list.push(("2^-149 twice".into(), vec![(0, p(-149)), (1, p(-149))], 0.0));
    list.push(("c = 2^-130 and 2^-149".into(), vec![(0, p(-149))], p(-130)));
    list.push(("2^127 twice".into(), vec![(0, p(127)), (1, p(127))], 0.0));
    list.push((
        "2^127 twice, and -2^127 twice".into(),
        vec![(0, p(127)), (1, p(127)), (2, -p(127)), (3, -p(127))],
        0.0,
    ));
    list.push(("-0 and c = -0".into(), vec![(0, -0.0)], -0.0));
    list.push(("1, -1 and c = -0".into(), vec![(0, 1.0), (1, -1.0)], -0.0));
    let distinct = |products: &[(usize, f64)]| products.iter().all(|&(at, _)| at < k);
    list.into_iter()
        .filter(|(_, products, _)| distinct(products))
        .map(|(name, products, c)| Experiment { name, products, c })
        .collect()
}

/// Factors of a whole experiment: the first with which all of its numbers are in range is taken.
const SCALES: [i32; 6] = [0, 2, 4, 8, 12, 16];

impl Shape {
    /// The matrices of an experiment, times a power of two, if the types hold them: every element of D is its sum.
    fn matrices(&self, experiment: &Experiment, scale: i32) -> Option<Matrices> {
        let scale = 2f64.powi(scale);
        let c = match self.sum {
            "f16" => F16.encode(experiment.c * scale)?,
            _ => ((experiment.c * scale) as f32).to_bits(),
        };
        let (mut a, mut b) = (vec![0; self.k], vec![0; self.k]);
        for &(at, product) in &experiment.products {
            (a[at], b[at]) = match product.abs() {
                // The one product whose factors are not powers of two.
                2.25 => {
                    let factor = self.a.encode(1.5 * scale * product.signum())?;
                    (factor, self.b.encode(1.5)?)
                }
                0.0 => (self.a.encode(product)?, self.b.encode(1.0)?),
                _ => factors(self.a, self.b, product * scale)?,
            };
        }
        Some(Matrices {
            a: vec![a; 16],
            b: b.iter().map(|&element| vec![element; 8]).collect(),
            c: vec![vec![c; 8]; 16],
        })
    }
}

/// One warp for each question that the types can be asked.
fn experiments(shape: &Shape) -> Option<Test> {
    let (mut input, mut names) = (Vec::new(), Vec::new());
    for experiment in questions(shape.k) {
        let possible = |&scale: &i32| Some((scale, shape.matrices(&experiment, scale)?));
        let Some((scale, matrices)) = SCALES.iter().find_map(possible) else {
            continue;
        };
        input.extend(shape.fragments(&matrices));
        names.push(match scale {
            0 => experiment.name,
            _ => format!("{}; all times 2^{scale}", experiment.name),
        });
    }
    if names.is_empty() {
        return None;
    }
    let mut test = shape.test(format!("{}, experiments", shape.instruction()), input);
    test.experiments = names;
    Some(test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_narrow_types() {
        assert_eq!(F16.encode(1.0), Some(0x3c00));
        assert_eq!(F16.encode(-65504.0), Some(0xfbff));
        assert_eq!(F16.encode(65536.0), None);
        assert_eq!(F16.encode(1.0 + 2f64.powi(-11)), None);
        assert_eq!(Bf16.encode(2.25), Some(0x4010));
        assert_eq!(Tf32.encode(1.5), Some(0x3fc0_0000));
        assert_eq!(E4m3.encode(448.0), Some(0x7e));
        assert_eq!(E4m3.encode(480.0), None);
        assert_eq!(E5m2.encode(-0.0), Some(0x80));
    }

    #[test]
    fn products_have_factors_where_the_range_allows() {
        assert!(factors(Bf16, Bf16, 2f64.powi(-149)).is_some());
        assert!(factors(F16, F16, 2f64.powi(-27)).is_some());
        assert!(factors(F16, F16, 2f64.powi(-140)).is_none());
        let value = |bits: u32| f64::from(f32::from_bits(bits << 16));
        let (a, b) = factors(Bf16, Bf16, -2f64.powi(-27)).unwrap();
        assert_eq!(value(a) * value(b), -2f64.powi(-27));
    }

    #[test]
    fn every_float_form_is_asked_something() {
        for shape in SHAPES.iter().filter(|shape| shape.sum != "s32") {
            let test = experiments(shape).unwrap();
            assert!(
                test.experiments.len() >= 8,
                "{}: {}",
                test.name,
                test.experiments.len()
            );
        }
    }
}
