//! Where the elements of a cache are.

use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    serving::CacheLayout,
};

/// Names of the dimensions, for messages.
const DIMS: [&str; 5] = ["blocks", "rows", "heads", "pieces of a row", "elements"];

impl CacheLayout {
    /// Refuses a cache for which two indices might share an element. Dimensions must nest: in the order of their strides, each steps over
    /// all that the smaller ones reach.
    pub(crate) fn check_distinct(&self, argument: &'static str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let [blocks, rows, heads, dim] = self.shape;
        // Elements at equal distances are one dimension, which need not end with a whole piece.
        let (pieces, elements) = match self.is_even() {
            true => (1, dim),
            false => (dim.div_ceil(self.chunk), self.chunk),
        };
        let extents = [blocks, rows, heads, pieces, elements];
        let [block, row, head] = self.strides;
        let strides = [block, row, head, self.chunk_stride, self.element_stride];
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
    use crate::DType;

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
                CacheLayout::chunked_keys(DType::F16, shape),
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
