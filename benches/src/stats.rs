//! What is told of repeated measurements.

/// The middle of a set of numbers and its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quartiles {
    /// A quarter is smaller.
    pub first: f64,
    /// Half of it is.
    pub median: f64,
    /// Three quarters are.
    pub third: f64,
}

impl Quartiles {
    /// The quartiles, between two numbers in proportion (Hyndman and Fan's seventh definition). `None` of nothing.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |share: f64| {
            let place = share * last as f64;
            let below = sorted[place.floor() as usize];
            below + (sorted[place.ceil() as usize] - below) * place.fract()
        };
        Some(Self {
            first: at(0.25),
            median: at(0.5),
            third: at(0.75),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles() {
        let of = |numbers: &[f64]| Quartiles::of(numbers).map(|q| [q.first, q.median, q.third]);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7.0]), Some([7.0; 3]));
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0, 5.0]), Some([2.0, 3.0, 4.0]));
        assert_eq!(of(&[1.0, 2.0, 3.0, 4.0]), Some([1.75, 2.5, 3.25]));
    }
}
