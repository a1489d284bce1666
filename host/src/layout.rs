//! Shapes and strides of tensors.

use crate::error::{Error, Result};

/// Shape and strides of a tensor [batch, seqlen, heads, head_dim].
///
/// Strides count elements. They may be zero (a broadcast input) or negative; the last one must be 1
/// unless the last dimension has at most one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorLayout {
    /// Batch, sequence length, heads, head dimension.
    pub shape: [usize; 4],
    /// Elements from one index to the next, dimension by dimension.
    pub strides: [i64; 4],
}

/// Names of the dimensions, for messages.
pub(crate) const DIMS: [&str; 4] = ["batch", "seqlen", "heads", "head_dim"];

impl TensorLayout {
    /// A tensor [batch, seqlen, heads, head_dim] without gaps, last dimension fastest.
    pub fn contiguous(shape: [usize; 4]) -> Self {
        Self::from_order(shape, [0, 1, 2, 3])
    }

    /// A tensor whose memory is [batch, heads, seqlen, head_dim] without gaps. `shape` is still
    /// [batch, seqlen, heads, head_dim].
    pub fn heads_first(shape: [usize; 4]) -> Self {
        Self::from_order(shape, [0, 2, 1, 3])
    }

    /// A tensor without gaps whose memory has the dimensions in the given order, slowest first.
    fn from_order(shape: [usize; 4], order: [usize; 4]) -> Self {
        let mut strides = [0; 4];
        let mut stride = 1i64;
        for &dim in order.iter().rev() {
            strides[dim] = stride;
            // A shape too large for its strides to be represented is refused by `plan`, which
            // sees the saturated stride.
            stride = stride.saturating_mul(i64::try_from(shape[dim].max(1)).unwrap_or(i64::MAX));
        }
        Self { shape, strides }
    }

    /// Number of elements, or `None` if it overflows.
    pub fn elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n))
    }

    /// Whether there are no elements at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Offsets in elements of the lowest and the highest element, relative to element
    /// [0, 0, 0, 0]. (0, 0) if there are none; `None` on overflow.
    pub fn offsets(&self) -> Option<(i64, i64)> {
        let (mut low, mut high) = (0i64, 0i64);
        if self.is_empty() {
            return Some((low, high));
        }
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = i64::try_from(extent - 1).ok()?.checked_mul(stride)?;
            if reach < 0 {
                low = low.checked_add(reach)?;
            } else {
                high = high.checked_add(reach)?;
            }
        }
        Some((low, high))
    }

    /// Elements from the lowest to the highest, both included: the length of the smallest buffer
    /// that holds the tensor. `None` on overflow.
    pub fn span(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        let (low, high) = self.offsets()?;
        usize::try_from(high.checked_sub(low)?.checked_add(1)?).ok()
    }

    /// Index of an element in the smallest buffer that holds the tensor (element 0 of that buffer
    /// is the tensor's lowest one). The layout must have passed [`Problem::plan`](crate::Problem::plan)'s
    /// checks or be otherwise known not to overflow; the result wraps if it does.
    pub fn index(&self, at: [usize; 4]) -> usize {
        let low = self.offsets().map_or(0, |(low, _)| low);
        let offset = at
            .iter()
            .zip(&self.strides)
            .fold(0i64, |sum, (&i, &stride)| {
                sum.wrapping_add((i as i64).wrapping_mul(stride))
            });
        offset.wrapping_sub(low) as usize
    }

    /// Refuses a layout whose elements are not contiguous in the last dimension or whose addresses
    /// cannot be represented.
    pub(crate) fn check(&self, argument: &'static str, element_bytes: u32) -> Result<()> {
        if self.strides[3] != 1 && self.shape[3] > 1 {
            return Err(Error::bad(
                argument,
                "stride 1 in the last dimension (head_dim)",
                format!("strides {:?}", self.strides),
            ));
        }
        let too_large = || {
            Error::bad(
                argument,
                "a tensor whose bytes can be counted in 63 bits",
                format!("shape {:?}, strides {:?}", self.shape, self.strides),
            )
        };
        let bytes = i64::from(element_bytes);
        let fits = |elements: i64| elements.checked_mul(bytes);
        self.elements()
            .and_then(|n| i64::try_from(n).ok())
            .and_then(fits)
            .ok_or_else(too_large)?;
        let (low, high) = self.offsets().ok_or_else(too_large)?;
        high.checked_sub(low)
            .and_then(|span| span.checked_add(1))
            .and_then(fits)
            .ok_or_else(too_large)?;
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            if extent > 1 {
                fits(stride).ok_or_else(too_large)?;
            }
        }
        Ok(())
    }

    /// Refuses a layout for which two indices might share an element. Dimensions must nest: in the
    /// order of their strides, each steps over all that the smaller ones reach.
    pub(crate) fn check_distinct(&self, argument: &'static str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut dims: Vec<usize> = (0..4).filter(|&d| self.shape[d] > 1).collect();
        dims.sort_unstable_by_key(|&d| self.strides[d].unsigned_abs());
        let mut reach = 0u128;
        for dim in dims {
            let stride = u128::from(self.strides[dim].unsigned_abs());
            if stride <= reach {
                return Err(Error::bad(
                    argument,
                    "elements that do not overlap",
                    format!(
                        "stride {} in dimension {dim} ({}), within the {} elements that the dimensions of smaller stride span",
                        self.strides[dim],
                        DIMS[dim],
                        reach + 1
                    ),
                ));
            }
            reach += stride * (self.shape[dim] - 1) as u128;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_strides() {
        let shape = [2, 3, 5, 7];
        assert_eq!(TensorLayout::contiguous(shape).strides, [105, 35, 7, 1]);
        assert_eq!(TensorLayout::heads_first(shape).strides, [105, 7, 21, 1]);
        assert_eq!(TensorLayout::contiguous(shape).span(), Some(210));
    }

    #[test]
    fn negative_strides_start_at_the_lowest_element() {
        let layout = TensorLayout {
            shape: [1, 4, 1, 2],
            strides: [0, -2, 0, 1],
        };
        assert_eq!(layout.offsets(), Some((-6, 1)));
        assert_eq!(layout.span(), Some(8));
        assert_eq!(layout.index([0, 0, 0, 0]), 6);
        assert_eq!(layout.index([0, 3, 0, 1]), 1);
    }

    #[test]
    fn overlap() {
        let overlaps = |shape, strides| {
            TensorLayout { shape, strides }
                .check_distinct("out")
                .is_err()
        };
        assert!(!overlaps([2, 3, 5, 7], [105, 35, 7, 1]));
        assert!(!overlaps([2, 3, 5, 7], [105, 7, 21, 1]));
        assert!(!overlaps([2, 3, 5, 7], [-105, 35, -7, 1]));
        assert!(!overlaps([1, 3, 1, 7], [0, 8, 0, 1]));
        assert!(overlaps([2, 3, 5, 7], [0, 35, 7, 1]));
        assert!(overlaps([1, 3, 1, 7], [0, 6, 0, 1]));
        assert!(!overlaps([2, 0, 5, 7], [0, 0, 0, 1]));
    }

    #[test]
    fn overflow_is_an_error() {
        let layout = TensorLayout {
            shape: [usize::MAX, 2, 2, 2],
            strides: [i64::MAX, 1, 1, 1],
        };
        assert_eq!(layout.offsets(), None);
        assert!(layout.check("q", 2).is_err());
        let layout = TensorLayout::contiguous([usize::MAX, usize::MAX, 2, 2]);
        assert!(layout.check("q", 2).is_err());
    }
}
