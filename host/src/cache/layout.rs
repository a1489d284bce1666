//! Where the elements of a cache are.

use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    serving::CacheLayout,
};

/// Elements of 16 bytes.
const PIECE: usize = 8;

/// Names of the dimensions, for messages.
const DIMS: [&str; 5] = ["blocks", "rows", "heads", "pieces of a row", "elements"];

impl CacheLayout {
    /// Whether there are no elements at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Offset of an element relative to element [0, 0, 0, 0], in elements. Wraps if it overflows.
    pub fn offset(&self, [block, row, head, dim]: [usize; 4]) -> i64 {
        let steps = [block, row, head, dim / PIECE, dim % PIECE];
        let strides = self.all_strides();
        let terms = steps.iter().zip(strides);
        terms.fold(0i64, |sum, (&n, stride)| {
            sum.wrapping_add((n as i64).wrapping_mul(stride))
        })
    }

    /// Offsets in elements of the lowest and the highest element, relative to element [0, 0, 0, 0]. (0, 0) if there are none; `None` on
    /// overflow.
    pub fn offsets(&self) -> Option<(i64, i64)> {
        if self.is_empty() {
            return Some((0, 0));
        }
        let [blocks, rows, heads, dim] = self.shape;
        // Whole pieces and the last one, which may be shorter, are two boxes. The extremes of each are among its corners.
        let whole = self.reach([blocks, rows, heads, dim / PIECE, PIECE.min(dim)]);
        let (last, rest) = (dim / PIECE, dim % PIECE);
        if rest == 0 {
            return whole;
        }
        let begin = i64::try_from(last).ok()?.checked_mul(self.chunk_stride)?;
        let (low, high) = self.reach([blocks, rows, heads, 1, rest])?;
        let (low, high) = (low.checked_add(begin)?, high.checked_add(begin)?);
        match last {
            0 => Some((low, high)),
            _ => {
                let whole = whole?;
                Some((low.min(whole.0), high.max(whole.1)))
            }
        }
    }

    /// Elements from the lowest to the highest, both included: the length of the smallest buffer that holds the cache. `None` on overflow.
    pub fn span(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        let (low, high) = self.offsets()?;
        usize::try_from(high.checked_sub(low)?.checked_add(1)?).ok()
    }

    /// Index of an element in the smallest buffer that holds the cache. Wraps if it overflows.
    pub fn index(&self, at: [usize; 4]) -> usize {
        let low = self.offsets().map_or(0, |(low, _)| low);
        self.offset(at).wrapping_sub(low) as usize
    }

    fn all_strides(&self) -> [i64; 5] {
        let [block, row, head] = self.strides;
        [block, row, head, self.chunk_stride, self.element_stride]
    }

    /// Lowest and highest offset in a box of positive extents.
    fn reach(&self, extents: [usize; 5]) -> Option<(i64, i64)> {
        let (mut low, mut high) = (0i64, 0i64);
        for (extent, stride) in extents.into_iter().zip(self.all_strides()) {
            let reach = i64::try_from(extent.saturating_sub(1))
                .ok()?
                .checked_mul(stride)?;
            if reach < 0 {
                low = low.checked_add(reach)?;
            } else {
                high = high.checked_add(reach)?;
            }
        }
        Some((low, high))
    }

    /// Refuses a cache whose addresses cannot be represented.
    pub(crate) fn check(&self, argument: &'static str, element_bytes: u32) -> Result<()> {
        let bytes = i64::from(element_bytes);
        let fits = |elements: i64| elements.checked_mul(bytes);
        let span = || {
            let elements = TensorLayout::contiguous(self.shape).elements()?;
            fits(i64::try_from(elements).ok()?)?;
            for stride in self.all_strides() {
                fits(stride)?;
            }
            fits(i64::try_from(self.span()?).ok()?)
        };
        span().map(drop).ok_or_else(|| {
            Error::bad(
                argument,
                "a cache whose bytes can be counted in 63 bits",
                format!("{self:?}"),
            )
        })
    }

    /// Refuses a cache for which two indices might share an element. Dimensions must nest: in the order of their strides, each steps over
    /// all that the smaller ones reach.
    pub(crate) fn check_distinct(&self, argument: &'static str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let [blocks, rows, heads, dim] = self.shape;
        // Elements at equal distances are one dimension, which need not end with a whole piece.
        let even = self.chunk_stride == self.element_stride.saturating_mul(PIECE as i64);
        let (pieces, elements) = match even || dim <= PIECE {
            true => (1, dim),
            false => (dim.div_ceil(PIECE), PIECE),
        };
        let extents = [blocks, rows, heads, pieces, elements];
        let strides = self.all_strides();
        let mut dims: Vec<usize> = (0..5).filter(|&d| extents[d] > 1).collect();
        dims.sort_unstable_by_key(|&d| strides[d].unsigned_abs());
        let mut reach = 0u128;
        for dim in dims {
            let stride = u128::from(strides[dim].unsigned_abs());
            if stride <= reach {
                return Err(Error::bad(
                    argument,
                    "elements that do not overlap",
                    format!(
                        "stride {} from one to the next of {}, within the {} elements that smaller strides span",
                        strides[dim],
                        DIMS[dim],
                        reach + 1
                    ),
                ));
            }
            reach += stride * (extents[dim] - 1) as u128;
        }
        Ok(())
    }

    /// Refuses a cache whose blocks have gaps, and returns the elements of one.
    pub(crate) fn check_dense(&self, argument: &'static str) -> Result<usize> {
        let block = Self {
            shape: [1, self.shape[1], self.shape[2], self.shape[3]],
            ..*self
        };
        block.check_distinct(argument)?;
        let elements = TensorLayout::contiguous(block.shape).elements();
        match (block.offsets(), block.span(), elements) {
            (Some((0, _)), Some(span), Some(elements)) if span == elements => Ok(elements),
            _ => Err(Error::bad(
                argument,
                "blocks without gaps, whose first element is the lowest",
                format!("{self:?}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(layout: &CacheLayout) -> Vec<i64> {
        let [blocks, rows, heads, dim] = layout.shape;
        let mut offsets = Vec::new();
        for b in 0..blocks {
            for r in 0..rows {
                for h in 0..heads {
                    offsets.extend((0..dim).map(|d| layout.offset([b, r, h, d])));
                }
            }
        }
        offsets
    }

    #[test]
    fn extremes_are_those_of_all_elements() {
        for dim in 1..=20 {
            let shape = [3, 5, 2, dim];
            let mut layouts = vec![
                CacheLayout::contiguous(shape),
                CacheLayout::heads_first(shape),
                CacheLayout::chunked_keys(shape),
                CacheLayout::transposed(shape),
            ];
            let mut backwards = layouts[2];
            backwards.chunk_stride *= -1;
            backwards.strides[1] *= -1;
            layouts.push(backwards);
            for layout in layouts {
                let offsets = all(&layout);
                let extremes = (
                    *offsets.iter().min().unwrap(),
                    *offsets.iter().max().unwrap(),
                );
                assert_eq!(layout.offsets(), Some(extremes), "{layout:?}");
                let mut distinct = offsets.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), offsets.len());
                assert!(layout.check("k_cache", 2).is_ok());
                // Of a chunked row's last piece the room of all 8 elements counts.
                assert!(layout.check_distinct("k_cache").is_ok(), "{layout:?}");
                let dense = layout.check_dense("k_cache").is_ok();
                let lowest = layout.strides[1] > 0;
                let block = CacheLayout {
                    shape: [1, 5, 2, dim],
                    ..layout
                };
                assert_eq!(
                    dense,
                    lowest && block.span() == Some(5 * 2 * dim),
                    "{layout:?}"
                );
            }
        }
    }

    #[test]
    fn overlap_and_overflow_are_errors() {
        let layout = CacheLayout::contiguous([3, 5, 2, 16]);
        for dim in 0..3 {
            let mut overlapping = layout;
            overlapping.strides[dim] = 8;
            assert!(overlapping.check_distinct("k_cache").is_err());
            let mut far = layout;
            far.strides[dim] = i64::MAX / 2;
            assert!(far.check("k_cache", 2).is_err());
        }
        let huge = CacheLayout::contiguous([usize::MAX, usize::MAX, 2, 2]);
        assert!(huge.check("k_cache", 2).is_err());
    }
}
