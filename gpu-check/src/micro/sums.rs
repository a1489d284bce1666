//! Sums of products: what tensor cores are asked, whatever the instruction. Random matrices, and experiments made by hand that
//! tell one way of summing from another.

use super::inputs::Noise;

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
    /// As PTX spells it.
    pub const fn name(self) -> &'static str {
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

    /// Bits of an element.
    pub const fn width(self) -> u32 {
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

/// Bits of A, B and C, element by element: rows of A and C, places in the sum, columns of B and C.
#[derive(Clone, Debug)]
pub struct Matrices {
    /// `a[row][k]`.
    pub a: Vec<Vec<u32>>,
    /// `b[k][column]`.
    pub b: Vec<Vec<u32>>,
    /// `c[row][column]`.
    pub c: Vec<Vec<u32>>,
}

/// What an instruction sums: element types, and how many products.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// Products of a sum.
    pub k: usize,
    /// Elements of A.
    pub a: Element,
    /// Elements of B.
    pub b: Element,
    /// Type of C and D: `f32`, `f16` or `s32`.
    pub c: &'static str,
}

/// How random matrices are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Random {
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
    /// All of them.
    pub const ALL: &[Self] = &[Self::Ordinary, Self::Wide, Self::Bits, Self::Cancelling];

    /// In a test's name.
    pub const fn name(self) -> &'static str {
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
    // The same for sums that keep fewer bits, as those of 8-bit elements do; and what becomes of a c that has more.
    for e in 11..=16 {
        list.push((format!("1 and 2^-{e}"), vec![(0, 1.0), (1, p(-e))], 0.0));
        list.push((format!("c = 1 and 2^-{e}"), vec![(0, p(-e))], 1.0));
        list.push((
            format!("1 and 3 times 2^-{e}"),
            vec![(0, 1.0), (1, p(-e)), (2, p(-e)), (3, p(-e))],
            0.0,
        ));
        list.push((format!("c = 1 + 2^-{e} alone"), Vec::new(), 1.0 + p(-e)));
        list.push((format!("c = -1 - 2^-{e} alone"), Vec::new(), -1.0 - p(-e)));
    }
    list.push(("c = 1 + u alone".into(), Vec::new(), 1.0 + p(-23)));
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

impl Sum {
    /// Random matrices.
    pub fn random(&self, kind: Random, noise: &mut Noise, rows: usize, columns: usize) -> Matrices {
        let (.., largest) = self.a.float();
        let value = |noise: &mut Noise| match kind {
            Random::Wide => {
                let reach = (largest / 2).min(30) as u32;
                (1.0 + noise.unit().abs())
                    * 2f64.powi(noise.below(2 * reach) as i32 - reach as i32)
                    * noise.unit().signum()
            }
            _ => noise.unit() * 4.0,
        };
        let mut exact = vec![vec![0.0; self.k]; rows];
        let mut a = vec![vec![0; self.k]; rows];
        let mut b = vec![vec![0; columns]; self.k];
        let mut b_exact = vec![vec![0.0; columns]; self.k];
        for (bits, exact) in a.iter_mut().flatten().zip(exact.iter_mut().flatten()) {
            (*bits, *exact) = match kind {
                Random::Bits => (noise.next32(), 0.0),
                _ => nearby(self.a, value(noise)),
            };
        }
        for (bits, exact) in b.iter_mut().flatten().zip(b_exact.iter_mut().flatten()) {
            (*bits, *exact) = match kind {
                Random::Bits => (noise.next32(), 0.0),
                _ => nearby(self.b, value(noise)),
            };
        }
        let c = (0..rows)
            .map(|row: usize| {
                (0..columns)
                    .map(|column: usize| {
                        let x = match kind {
                            Random::Bits => return noise.next32(),
                            Random::Cancelling => {
                                -(0..self.k)
                                    .map(|k| exact[row][k] * b_exact[k][column])
                                    .sum::<f64>()
                                    * (1.0 + noise.unit() * 2f64.powi(-8))
                            }
                            _ => value(noise),
                        };
                        match self.c {
                            "f16" => nearby(F16, x).0,
                            _ => (x as f32).to_bits(),
                        }
                    })
                    .collect()
            })
            .collect();
        Matrices { a, b, c }
    }

    /// The questions that the types can be asked, and their matrices: every element of D is the question's sum.
    pub fn experiments(&self, rows: usize, columns: usize) -> Vec<(String, Matrices)> {
        let ask = |experiment: Experiment| {
            let possible = |&scale: &i32| {
                let matrices = self.matrices(&experiment, scale, rows, columns)?;
                Some((scale, matrices))
            };
            let (scale, matrices) = SCALES.iter().find_map(possible)?;
            let name = match scale {
                0 => experiment.name.clone(),
                _ => format!("{}; all times 2^{scale}", experiment.name),
            };
            Some((name, matrices))
        };
        questions(self.k).into_iter().filter_map(ask).collect()
    }

    /// The matrices of an experiment, times a power of two, if the types hold them.
    fn matrices(
        &self,
        experiment: &Experiment,
        scale: i32,
        rows: usize,
        columns: usize,
    ) -> Option<Matrices> {
        let scale = 2f64.powi(scale);
        let c = match self.c {
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
            a: vec![a; rows],
            b: b.iter().map(|&element| vec![element; columns]).collect(),
            c: vec![vec![c; columns]; rows],
        })
    }
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
}
