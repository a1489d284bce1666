//! What tensor cores lose of sums of 8-bit products: their accumulators keep 14 bits.
//!
//! The hardware's rule, as far as it is known (docs/emulator.md, Numerics): 32 products and the sum so far are each cut, toward
//! zero, to a multiple of u = 2^(e - 13), where e is the largest exponent of these terms; the cut terms are added exactly; the
//! result is cut to 13 fraction bits. From that follows for one such step, whatever its terms:
//!
//! - e is at most the exponent of the largest product or of the sum so far, where a subnormal factor has the exponent of the
//!   smallest normal number. That bounds u.
//! - A term loses no more than itself. Products of e4m3 numbers are multiples of 2^-6 of their power of two, which is less than u
//!   for small ones only: such a product loses at most the difference, the others nothing.
//! - The result loses less than 2^-13 of its power of two. What it is a multiple of, it is no longer cut by.

/// Terms that are added at once.
const STEP: usize = 32;

/// Steps after which the kernels add a sum to others in f32: 256 keys.
const STEPS: usize = 8;

/// What a step's terms are cut to, relative to the largest.
const UNIT: f64 = 1.0 / 8192.0;

/// What 8 steps lose of a sum, relative to its largest size and term: 34 units each (of 33 terms and the result), and as much of what is
/// lost before.
const LOST_BEFORE: f64 = {
    let lost = STEPS as f64 * 34.0 * UNIT;
    lost / (1.0 - lost)
};

/// What an e4m3 number is a multiple of, relative to its power of two.
const GRAIN: f64 = 1.0 / 8.0;

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

/// The power of two of a positive number.
fn floor(x: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    f64::from_bits(x.to_bits() & EXPONENT)
}

/// The power of two of a factor.
fn power(x: f64) -> f64 {
    let power = floor(x.abs().max(LEAST_NORMAL));
    if x == 0.0 { 0.0 } else { power }
}

/// What a number of this magnitude loses that is a multiple of `grain`, or of more.
fn cut(magnitude: f64, grain: f64, unit: f64) -> f64 {
    (unit - grain).max(0.0).min(magnitude)
}

/// Brings numbers together in eight lanes, so that it vectorises. 0 is neutral.
fn reduce(numbers: &[f64; STEP], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    for numbers in numbers.as_chunks::<8>().0 {
        for (lane, &x) in lanes.iter_mut().zip(numbers) {
            *lane = f(*lane, x);
        }
    }
    lanes.into_iter().fold(0.0, f)
}

/// What the sum of products of two rows loses, one step after the other from the first element on. (So the kernels sum scores.)
pub(super) fn lost_of_dot(a: &[f32], b: &[f32]) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0);
    // What all terms so far are multiples of, and so is their sum, cut or not.
    let mut grain = f64::INFINITY;
    for (a, b) in a.chunks(STEP).zip(b.chunks(STEP)) {
        let (mut products, mut powers) = ([0.0; STEP], [0.0; STEP]);
        let terms = products.iter_mut().zip(&mut powers);
        for ((product, of_two), (&a, &b)) in terms.zip(a.iter().zip(b)) {
            let (a, b) = (f64::from(a), f64::from(b));
            *product = a * b;
            *of_two = power(a) * power(b);
        }
        let largest = reduce(&powers, |x, y| if x > y { x } else { y });
        let before = sum.abs() + lost;
        let unit = UNIT * floor(largest.max(before));
        lost += cut(before, grain, unit);

        let (mut cuts, mut inverse) = ([0.0; STEP], [0.0; STEP]);
        let terms = products.iter().zip(powers);
        for ((lost, inverse), (product, power)) in cuts.iter_mut().zip(&mut inverse).zip(terms) {
            *lost = cut(product.abs(), power * GRAIN * GRAIN, unit);
            *inverse = if power == 0.0 { 0.0 } else { 1.0 / power };
        }
        sum += reduce(&products, |x, y| x + y);
        lost += reduce(&cuts, |x, y| x + y);
        let least = 1.0 / reduce(&inverse, |x, y| if x > y { x } else { y });
        grain = grain.min(least * GRAIN * GRAIN);
        let after = sum.abs() + lost;
        lost += cut(after, grain, UNIT * floor(after));
    }
    lost
}

/// A step of a weighted sum: one column.
#[derive(Clone, Copy, Default)]
struct Column {
    /// The sum of its terms.
    sum: f64,
    /// How far roundings of the weights move that.
    off: f64,
    /// What the power of two of the largest term is at most.
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
    /// What sums over the keys lose, column by column. A step's keys are 32 in a row, the first a multiple of 32; a sum is of at most
    /// 8 steps in a row, in any order, before it is added to others in f32.
    pub fn lost(&self) -> Vec<f64> {
        let keys = || self.weights.chunk_by(|a, b| a.0 / STEP == b.0 / STEP);
        let steps: Vec<Vec<Column>> = keys().map(|keys| self.step(keys)).collect();
        // Of the steps from each on.
        let runs =
            (0..steps.len()).map(|first| self.largest_sums(steps[first..].iter().take(STEPS)));
        let runs: Vec<Vec<f64>> = runs.collect();
        let mut total = vec![0.0; self.dim];
        for (at, keys) in keys().enumerate() {
            let mut sizes = vec![0.0f64; self.dim];
            for run in &runs[at.saturating_sub(STEPS - 1)..=at] {
                for (size, of_run) in sizes.iter_mut().zip(run) {
                    *size = size.max(*of_run);
                }
            }
            let units = steps[at].iter().zip(&sizes);
            let units: Vec<f64> = units
                .map(|(column, size)| UNIT * column.largest.max(*size))
                .collect();
            for &(j, weight) in keys {
                let (least, most) = {
                    let rounding = rounding_of_probability(weight);
                    (weight - rounding, weight + rounding)
                };
                // Its power of two is more than half of it.
                let grain = least / 2.0 * GRAIN * GRAIN * self.scales[j];
                for ((total, v), unit) in total.iter_mut().zip(self.value(j)).zip(&units) {
                    *total += cut(most * v.abs() * self.scales[j], grain * power(v), *unit);
                }
            }
            for ((total, size), unit) in total.iter_mut().zip(sizes).zip(units) {
                *total += size.min(unit) + UNIT * size;
            }
        }
        total
    }

    fn step(&self, keys: &[(usize, f64)]) -> Vec<Column> {
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
        step
    }

    /// The largest sums that there may be of any of these steps, column by column.
    fn largest_sums<'s>(&self, steps: impl Iterator<Item = &'s Vec<Column>>) -> Vec<f64> {
        let mut sums = vec![[0.0; 2]; self.dim];
        let mut terms = vec![0.0f64; self.dim];
        for step in steps {
            for ((column, [above, below]), term) in step.iter().zip(&mut sums).zip(&mut terms) {
                *above += column.sum.max(0.0) + column.off;
                *below += (-column.sum).max(0.0) + column.off;
                *term = term.max(column.largest);
            }
        }
        let sums = sums.into_iter().zip(terms);
        sums.map(|([above, below], term)| {
            let sum = f64::max(above, below);
            sum + sum.max(term) * LOST_BEFORE
        })
        .collect()
    }

    fn value(&self, j: usize) -> impl Iterator<Item = f64> {
        let row = &self.values[j * self.dim..][..self.dim];
        row.iter().map(|&v| f64::from(v))
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
