//! Scales of tensors of 8-bit elements: how many a tensor has, and which one is whose.

use std::fmt;

use crate::{error::Error, layout::TensorLayout};

/// How many scales a tensor [batch, seqlen, heads, head_dim] of 8-bit elements has. Scales are f32, positive and finite, and
/// contiguous in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleLayout {
    /// None: elements mean themselves.
    #[default]
    One,
    /// A single one.
    PerTensor,
    /// One for each head of each batch: [batch, heads].
    PerHead,
    /// One for each block of rows of each head: [batch, heads, ceil(seqlen / rows)].
    PerBlock {
        /// Rows (tokens) of a block: a power of two, at least 128.
        rows: u32,
    },
}

impl ScaleLayout {
    /// Shape of the scales of a tensor. `[0]` if there are none.
    pub fn shape(self, tensor: &TensorLayout) -> Vec<usize> {
        let [batch, seqlen, heads, _] = tensor.shape;
        match self {
            Self::One => vec![0],
            Self::PerTensor => vec![1],
            Self::PerHead => vec![batch, heads],
            Self::PerBlock { rows } => vec![batch, heads, seqlen.div_ceil(rows.max(1) as usize)],
        }
    }

    /// How many scales a tensor has, or `None` if that overflows.
    pub fn count(self, tensor: &TensorLayout) -> Option<usize> {
        let mut shape = self.shape(tensor).into_iter();
        shape.try_fold(1usize, |product, n| product.checked_mul(n))
    }

    /// Which scale the elements [batch, row, head, ..] of a tensor have. `None` if there are none.
    pub fn index(self, tensor: &TensorLayout, [batch, row, head]: [usize; 3]) -> Option<usize> {
        let [_, seqlen, heads, _] = tensor.shape;
        let of_head = batch * heads + head;
        match self {
            Self::One => None,
            Self::PerTensor => Some(0),
            Self::PerHead => Some(of_head),
            Self::PerBlock { rows } => {
                let rows = rows.max(1) as usize;
                Some(of_head * seqlen.div_ceil(rows) + row / rows)
            }
        }
    }
}

impl fmt::Display for ScaleLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("no scales"),
            Self::PerTensor => f.write_str("a scale for the tensor"),
            Self::PerHead => f.write_str("a scale for each head"),
            Self::PerBlock { rows } => write!(f, "a scale for each block of {rows} rows"),
        }
    }
}

/// How many scales q, k and v have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scales {
    /// Those of q, by query head.
    pub q: ScaleLayout,
    /// Those of k, by key/value head.
    pub k: ScaleLayout,
    /// Those of v, by key/value head.
    pub v: ScaleLayout,
}

impl Scales {
    /// The same for q, k and v.
    pub fn all(layout: ScaleLayout) -> Self {
        Self {
            q: layout,
            k: layout,
            v: layout,
        }
    }
}

/// A tensor that may have scales.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScaledTensor<'a> {
    /// What the library calls the scales.
    pub argument: &'static str,
    pub tensor: &'a TensorLayout,
    pub layout: ScaleLayout,
}

impl ScaledTensor<'_> {
    /// Refuses scales of the wrong number, and those that are not positive and finite.
    pub fn check(&self, scales: &[f32]) -> Result<(), Error> {
        let shape = self.layout.shape(self.tensor);
        if self.layout.count(self.tensor) != Some(scales.len()) {
            let expected = match self.layout {
                ScaleLayout::One => "no scales, since the problem has none".into(),
                _ => format!("scales of shape {shape:?}"),
            };
            return Err(Error::bad(
                self.argument,
                expected,
                format!("{} numbers", scales.len()),
            ));
        }
        match first_unusable(scales) {
            None => Ok(()),
            Some(at) => Err(Error::bad(
                self.argument,
                "positive finite numbers",
                format!("{} at {:?}", scales[at], place(at, &shape)),
            )),
        }
    }
}

/// Where the first scale is that is not positive and finite.
pub(crate) fn first_unusable(scales: &[f32]) -> Option<usize> {
    scales.iter().position(|x| !(x.is_finite() && *x > 0.0))
}

/// The indices of an element of a contiguous tensor.
fn place(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut indices = vec![0; shape.len()];
    for (index, &extent) in indices.iter_mut().zip(shape).rev() {
        *index = at % extent;
        at /= extent;
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSOR: [usize; 4] = [2, 300, 3, 16];

    /// Every row's scale, in the order of the scales' shape, is where the shape says.
    #[test]
    fn each_row_has_the_scale_of_its_place() {
        let tensor = TensorLayout::contiguous(TENSOR);
        for (layout, shape) in [
            (ScaleLayout::PerTensor, vec![1]),
            (ScaleLayout::PerHead, vec![2, 3]),
            (ScaleLayout::PerBlock { rows: 128 }, vec![2, 3, 3]),
            (ScaleLayout::PerBlock { rows: 256 }, vec![2, 3, 2]),
            (ScaleLayout::PerBlock { rows: 1 << 31 }, vec![2, 3, 1]),
        ] {
            assert_eq!(layout.shape(&tensor), shape);
            assert_eq!(layout.count(&tensor), Some(shape.iter().product()));
            for (b, row, h) in (0..2).flat_map(|b| (0..300).map(move |row| (b, row, row % 3))) {
                let at = layout.index(&tensor, [b, row, h]).unwrap();
                let wanted = match layout {
                    ScaleLayout::PerHead => vec![b, h],
                    ScaleLayout::PerBlock { rows } => vec![b, h, row / rows as usize],
                    _ => vec![0],
                };
                assert_eq!(place(at, &shape), wanted);
            }
        }
        assert_eq!(ScaleLayout::One.count(&tensor), Some(0));
        assert_eq!(ScaleLayout::One.index(&tensor, [1, 7, 2]), None);
        let huge = TensorLayout::contiguous([usize::MAX, 1, 2, 1]);
        assert_eq!(ScaleLayout::PerHead.count(&huge), None);
    }

    #[test]
    fn wrong_scales_are_named_with_their_place() {
        let tensor = TensorLayout::contiguous(TENSOR);
        let check = |layout, scales: &[f32]| {
            let scaled = ScaledTensor {
                argument: "k_scale",
                tensor: &tensor,
                layout,
            };
            scaled.check(scales).map_err(|error| error.to_string())
        };
        assert_eq!(check(ScaleLayout::One, &[]), Ok(()));
        assert_eq!(check(ScaleLayout::PerHead, &[1.0; 6]), Ok(()));
        let refused = |layout, scales: &[f32]| check(layout, scales).unwrap_err();
        assert_eq!(
            refused(ScaleLayout::PerHead, &[1.0; 5]),
            "k_scale: expected scales of shape [2, 3], found 5 numbers"
        );
        assert_eq!(
            refused(ScaleLayout::One, &[1.0]),
            "k_scale: expected no scales, since the problem has none, found 1 numbers"
        );
        for bad in [0.0, -0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut scales = [f32::MIN_POSITIVE; 6];
            scales[4] = bad;
            let found = refused(ScaleLayout::PerHead, &scales);
            assert_eq!(
                found,
                format!("k_scale: expected positive finite numbers, found {bad} at [1, 1]")
            );
        }
    }
}
