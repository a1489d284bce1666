//! What tensor cores lose of sums of 8-bit products: their accumulators keep 14 bits.
//!
//! The hardware's rule, as far as it is known (docs/emulator.md, Numerics): 32 products and the sum so far are each cut, toward
//! zero, to a multiple of u = 2^(e - 13), where e is the largest exponent of these terms; the cut terms are added exactly; the
//! result is cut to 13 fraction bits. From that follows for one such step, whatever its terms:
//!
//! - 2^e is at most the largest term, if for a subnormal factor the smallest normal number is taken: U = 2^-13 of that bounds u.
//! - A cut term loses less than U, and no more than itself.
//! - A product of two e4m3 numbers is a multiple of 2^-6 of its own power of two, and below 4 times that: one of at least
//!   256 U is a multiple of u, and loses nothing.
//! - The result loses at most 2^-13 of itself.

/// Terms that are added at once.
const STEP: usize = 32;

/// Steps after which the kernels add a sum to others in f32: 256 keys.
const STEPS: usize = 8;

/// What a step's terms are cut to, relative to the largest.
const UNIT: f64 = 1.0 / 8192.0;

/// From so many units on a product of two e4m3 numbers is not cut.
const WHOLE: f64 = 256.0;

/// Smallest normal number of e4m3.
const LEAST_NORMAL: f64 = 0.015_625;

/// Largest number up to which half a unit in the last place of probabilities does not shrink any more, and that half unit,
/// relative to the row's maximum: 2^-6 and 2^-10, of probabilities that are 2^8 at most.
const LEAST_NORMAL_PROBABILITY: f64 = 1.0 / 16384.0;
const HALF_LEAST_PROBABILITY: f64 = 1.0 / 262_144.0;

/// How far rounding to e4m3 moves a probability, which is relative to the row's maximum (so 1 at most): by half a unit in the last
/// place, 2^-4 of it or 2^-18; by all of it at most.
pub(super) fn rounding_of_probability(weight: f64) -> f64 {
    (weight / 16.0).max(HALF_LEAST_PROBABILITY).min(weight)
}

/// An upper bound of the power of two that a factor of e4m3 stands for.
fn power(x: f64) -> f64 {
    if x == 0.0 {
        0.0
    } else {
        x.abs().max(LEAST_NORMAL)
    }
}

/// What a product loses that is between these two in magnitude.
fn cut(least: f64, most: f64, unit: f64) -> f64 {
    if least >= WHOLE * unit {
        0.0
    } else {
        most.min(unit)
    }
}

/// What the sum of products of two rows loses, one step after the other from the first element on.
pub(super) fn lost_of_dot(a: &[f32], b: &[f32]) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0);
    for (a, b) in a.chunks(STEP).zip(b.chunks(STEP)) {
        let pairs = a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let largest = pairs
            .clone()
            .fold(0.0, |max: f64, (a, b)| max.max(power(a) * power(b)));
        let before = sum.abs() + lost;
        let unit = UNIT * largest.max(before);
        lost += before.min(unit);
        for (a, b) in pairs {
            lost += cut((a * b).abs(), (a * b).abs(), unit);
            sum += a * b;
        }
        lost += UNIT * (sum.abs() + lost);
    }
    lost
}

/// A step of a weighted sum: one column.
#[derive(Clone, Copy, Default)]
struct Column {
    /// The sum of its terms.
    sum: f64,
    /// How far roundings of the weights move that, and what is lost.
    off: f64,
    /// Bound of the power of two of the largest term.
    largest: f64,
}

/// Weights (relative to the row's maximum) and rows of a weighted sum.
pub(super) struct WeightedSum<'a> {
    /// Key and weight, keys ascending.
    pub weights: &'a [(usize, f64)],
    /// Elements of all keys' values, one after the other.
    pub values: &'a [f32],
    /// Scales of all keys' values.
    pub scales: &'a [f64],
    /// Elements of a value.
    pub dim: usize,
}

impl WeightedSum<'_> {
    /// What sums over the keys lose, column by column. A step's keys are 32 in a row, the first a multiple of 32; no sum is
    /// of more than 8 steps in a row before it is added to others in f32, and any of them may be its first.
    pub fn lost(&self) -> Vec<f64> {
        let mut total = vec![0.0; self.dim];
        let mut steps: Vec<Vec<Column>> = Vec::new();
        for keys in self.weights.chunk_by(|a, b| a.0 / STEP == b.0 / STEP) {
            let earlier = &steps[steps.len().saturating_sub(STEPS - 1)..];
            let step = self.step(keys, earlier, &mut total);
            steps.push(step);
        }
        total
    }

    /// One step, after some of those before. Adds what it loses to the total.
    fn step(
        &self,
        keys: &[(usize, f64)],
        earlier: &[Vec<Column>],
        total: &mut [f64],
    ) -> Vec<Column> {
        let mut step = vec![Column::default(); self.dim];
        for &(j, weight) in keys {
            let rounding = rounding_of_probability(weight);
            // One that is not rounded to 0 is at least 2^-4 of the smallest normal probability.
            let most = (weight + rounding).max(LEAST_NORMAL_PROBABILITY.min(16.0 * weight));
            for (column, v) in step.iter_mut().zip(self.value(j)) {
                column.sum += weight * v * self.scales[j];
                column.off += rounding * v.abs() * self.scales[j];
                column.largest = column.largest.max(most * power(v) * self.scales[j]);
            }
        }
        // The largest sums that there may be when the step begins, and when it ends.
        let sums: Vec<[f64; 2]> = (0..self.dim)
            .map(|x| {
                let (mut sum, mut off) = (0.0f64, 0.0);
                let mut most = [0.0, step[x].sum.abs() + step[x].off];
                for earlier in earlier.iter().rev() {
                    sum += earlier[x].sum;
                    off += earlier[x].off;
                    most[0] = f64::max(most[0], sum.abs() + off);
                    most[1] = most[1].max((sum + step[x].sum).abs() + off + step[x].off);
                }
                most
            })
            .collect();
        let mut lost = vec![0.0; self.dim];
        for &(j, weight) in keys {
            let rounding = rounding_of_probability(weight);
            let columns = step.iter().zip(&sums).zip(self.value(j));
            for (lost, ((column, [begin, _]), v)) in lost.iter_mut().zip(columns) {
                let v = v.abs() * self.scales[j];
                let unit = UNIT * column.largest.max(*begin);
                *lost += cut((weight - rounding) * v, (weight + rounding) * v, unit);
            }
        }
        for (x, [begin, end]) in sums.into_iter().enumerate() {
            lost[x] += begin.min(UNIT * step[x].largest.max(begin));
            lost[x] += UNIT * (end + lost[x]);
            step[x].off += lost[x];
            total[x] += lost[x];
        }
        step
    }

    fn value(&self, j: usize) -> impl Iterator<Item = f64> {
        let row = &self.values[j * self.dim..][..self.dim];
        row.iter().map(|&v| f64::from(v))
    }
}
