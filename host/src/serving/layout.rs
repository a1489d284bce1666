//! Shapes and strides of caches, tables of pages, and functions of pairs.

use crate::{
    DType,
    error::{Error, Result},
    layout::TensorLayout,
};

/// Shape and strides of keys or values, [blocks, rows, heads, head_dim]. What a block is depends on the problem: a page, a sequence's
/// part of a cache, or all there is, with the sequences one after the other.
///
/// Strides count elements, and may be zero or negative. Element `d` of a row is at
/// `(d / chunk) * chunk_stride + (d % chunk) * element_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    /// Blocks, rows of a block, heads, head_dim.
    pub shape: [usize; 4],
    /// From one block, row and head to the next.
    pub strides: [i64; 3],
    /// Elements of a piece of a row. Kernels know pieces of 16 bytes (8 elements of f16 and bf16); any others must follow each other
    /// without a jump: `chunk_stride = chunk * element_stride`.
    pub chunk: usize,
    /// From one piece of a row to the next.
    pub chunk_stride: i64,
    /// From one element of a piece to the next.
    pub element_stride: i64,
}

/// A table of pages, `i32` or `u32` `[batch, entries]`: row `j` of a sequence is row `j % page` of block `table[b, j / page]` of keys and
/// values, a page being as long as their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageTable {
    /// Entries of a sequence.
    pub entries: usize,
    /// Entries from one sequence and from one entry to the next.
    pub strides: [i64; 2],
}

/// A function of pairs of a query and a key, [batch, heads_q, rows, keys], rows and keys counted from the start of their sequences:
/// each dimension is either that long or 1, which stands for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairLayout<T> {
    /// What an element is.
    pub element: T,
    /// Batch or 1, heads_q or 1, the longest sequence of queries or 1, the longest of keys or 1. Of bits, the last counts bits, and is
    /// not 1 for more than one key.
    pub shape: [usize; 4],
    /// Elements from one to the next in each dimension; of bits, words of 32 keys, the last being 1.
    pub strides: [i64; 4],
}

/// Element of a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BiasType {
    /// That of the queries.
    Same,
    /// f32.
    F32,
}

/// Element of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskType {
    /// A byte: 0 hides the key.
    Byte,
    /// A bit of a u32: key `j` is bit `j % 32` of word `j / 32`; 0 hides the key.
    Bit,
}

/// Elements of 16 bytes of f16 and bf16.
const CHUNK: usize = 8;

impl CacheLayout {
    /// Without gaps, [blocks, rows, heads, head_dim].
    pub fn contiguous(shape: [usize; 4]) -> Self {
        Self::from_tensor(TensorLayout::contiguous(shape))
    }

    /// Without gaps, [blocks, heads, rows, head_dim] in memory.
    pub fn heads_first(shape: [usize; 4]) -> Self {
        Self::from_tensor(TensorLayout::heads_first(shape))
    }

    /// Of a tensor of any strides, also in the last dimension.
    pub fn from_tensor(layout: TensorLayout) -> Self {
        let [block, row, head, element] = layout.strides;
        Self {
            shape: layout.shape,
            strides: [block, row, head],
            chunk: CHUNK,
            chunk_stride: element.saturating_mul(CHUNK as i64),
            element_stride: element,
        }
    }

    /// vLLM's keys: [blocks, heads, head_dim / x, rows, x] in memory, without gaps, x being the elements of 16 bytes.
    pub fn chunked_keys(dtype: DType, shape: [usize; 4]) -> Self {
        let [_, rows, heads, dim] = shape.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let x = 16 / dtype.bytes() as usize;
        let piece = x as i64;
        let chunk = rows.saturating_mul(piece);
        let head = chunk.saturating_mul(dim / piece + i64::from(dim % piece > 0));
        Self {
            shape,
            strides: [head.saturating_mul(heads), piece, head],
            chunk: x,
            chunk_stride: chunk,
            element_stride: 1,
        }
    }

    /// vLLM's values: [blocks, heads, head_dim, rows] in memory, without gaps.
    pub fn transposed(shape: [usize; 4]) -> Self {
        let [_, rows, heads, dim] = shape.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let head = rows.saturating_mul(dim);
        Self {
            shape,
            strides: [head.saturating_mul(heads), 1, head],
            chunk: CHUNK,
            chunk_stride: rows.saturating_mul(CHUNK as i64),
            element_stride: rows,
        }
    }

    /// Whether there are no elements at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Whether pieces follow each other without a jump, so that their length does not matter.
    pub fn is_even(&self) -> bool {
        self.shape[3] <= self.chunk
            || i64::try_from(self.chunk)
                .ok()
                .and_then(|chunk| chunk.checked_mul(self.element_stride))
                == Some(self.chunk_stride)
    }

    /// Offsets in elements of the lowest and the highest element, relative to element [0, 0, 0, 0]. (0, 0) if there are none; `None` on
    /// overflow.
    pub fn offsets(&self) -> Option<(i64, i64)> {
        if self.is_empty() {
            return Some((0, 0));
        }
        let [blocks, rows, heads, dim] = self.shape;
        let [block, row, head] = self.strides;
        let rows = TensorLayout {
            shape: [blocks, rows, heads, 1],
            strides: [block, row, head, 0],
        };
        let (mut low, mut high) = rows.offsets()?;
        // The corners of the whole pieces, and those of the last one.
        let chunk = self.chunk.max(1);
        let whole = dim / chunk * chunk;
        let corners = [
            Some(0),
            Some(chunk - 1),
            whole.checked_sub(chunk),
            whole.checked_sub(1),
            Some(whole),
            Some(dim - 1),
        ];
        let (mut lowest, mut highest) = (0i64, 0i64);
        for at in corners.into_iter().flatten().filter(|&at| at < dim) {
            let piece = i64::try_from(at / chunk).ok()?;
            let element = i64::try_from(at % chunk).ok()?;
            let offset = piece
                .checked_mul(self.chunk_stride)?
                .checked_add(element.checked_mul(self.element_stride)?)?;
            (lowest, highest) = (lowest.min(offset), highest.max(offset));
        }
        low = low.checked_add(lowest)?;
        high = high.checked_add(highest)?;
        Some((low, high))
    }

    /// Elements from the lowest to the highest, both included: the length of the smallest buffer that holds it. `None` on overflow.
    pub fn span(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        let (low, high) = self.offsets()?;
        usize::try_from(high.checked_sub(low)?.checked_add(1)?).ok()
    }

    /// Index of an element in the smallest buffer that holds all (element 0 of that buffer is the lowest one). Wraps if the layout
    /// overflows, which [`ServingProblem::plan`](super::ServingProblem) refuses.
    pub fn index(&self, at: [usize; 4]) -> usize {
        let low = self.offsets().map_or(0, |(low, _)| low);
        self.offset(at).wrapping_sub(low) as usize
    }

    /// Elements from element [0, 0, 0, 0] to another.
    pub(crate) fn offset(&self, at: [usize; 4]) -> i64 {
        let [block, row, head, element] = at;
        let chunk = self.chunk.max(1);
        let steps = [
            (block, self.strides[0]),
            (row, self.strides[1]),
            (head, self.strides[2]),
            (element / chunk, self.chunk_stride),
            (element % chunk, self.element_stride),
        ];
        steps.iter().fold(0, |sum: i64, &(n, stride)| {
            sum.wrapping_add((n as i64).wrapping_mul(stride))
        })
    }

    /// Refuses a layout whose bytes cannot be counted.
    pub(crate) fn check(&self, argument: &'static str, element_bytes: u32) -> Result<()> {
        if self.chunk == 0 {
            return Err(Error::bad(argument, "pieces of at least one element", "0"));
        }
        let [blocks, rows, heads, dim] = self.shape;
        let pieces = dim.div_ceil(self.chunk);
        let fits = |stride: i64| stride.checked_mul(i64::from(element_bytes)).is_some();
        let steps = [
            (blocks, self.strides[0]),
            (rows, self.strides[1]),
            (heads, self.strides[2]),
            (pieces, self.chunk_stride),
            (dim.min(self.chunk), self.element_stride),
        ];
        let strides_fit = steps
            .iter()
            .all(|&(extent, stride)| extent <= 1 || fits(stride));
        let span = self.span().and_then(|n| i64::try_from(n).ok());
        match strides_fit && span.is_some_and(fits) {
            true => Ok(()),
            false => Err(Error::bad(
                argument,
                "a tensor whose bytes can be counted in 63 bits",
                format!("{self:?}"),
            )),
        }
    }
}

impl PageTable {
    /// Without gaps.
    pub fn contiguous(entries: usize) -> Self {
        Self {
            entries,
            strides: [i64::try_from(entries).unwrap_or(i64::MAX), 1],
        }
    }

    /// As a tensor of so many sequences.
    pub(crate) fn tensor(&self, batch: usize) -> TensorLayout {
        TensorLayout {
            shape: [batch, self.entries, 1, 1],
            strides: [self.strides[0], self.strides[1], 0, 1],
        }
    }

    /// Entries from the lowest to the highest of so many sequences: the length of the smallest buffer that holds the table. `None` on
    /// overflow.
    pub fn span(&self, batch: usize) -> Option<usize> {
        self.tensor(batch).span()
    }

    /// Index of an entry in the smallest buffer that holds the table of so many sequences.
    pub fn index(&self, batch: usize, at: [usize; 2]) -> usize {
        self.tensor(batch).index([at[0], at[1], 0, 0])
    }
}

impl<T: Copy> PairLayout<T> {
    /// The index of a pair, where a dimension of 1 stands for all.
    fn at(&self, at: [usize; 4]) -> [usize; 4] {
        std::array::from_fn(|dim| if self.shape[dim] == 1 { 0 } else { at[dim] })
    }
}

impl PairLayout<BiasType> {
    /// A bias without gaps.
    pub fn bias(element: BiasType, shape: [usize; 4]) -> Self {
        let strides = TensorLayout::contiguous(shape).strides;
        Self {
            element,
            shape,
            strides,
        }
    }

    /// The elements as a tensor.
    pub fn tensor(&self) -> TensorLayout {
        TensorLayout {
            shape: self.shape,
            strides: self.strides,
        }
    }

    /// Index of a pair's element in the smallest buffer that holds the tensor.
    pub fn index(&self, batch: usize, head: usize, row: usize, key: usize) -> usize {
        self.tensor().index(self.at([batch, head, row, key]))
    }
}

impl PairLayout<MaskType> {
    /// A mask without gaps; of bits, each row ends with a whole word.
    pub fn mask(element: MaskType, shape: [usize; 4]) -> Self {
        let mut layout = Self {
            element,
            shape,
            strides: [0; 4],
        };
        layout.strides = TensorLayout::contiguous(layout.tensor().shape).strides;
        layout
    }

    /// The elements as a tensor: bytes, or words of 32 keys.
    pub fn tensor(&self) -> TensorLayout {
        let mut shape = self.shape;
        if self.element == MaskType::Bit {
            shape[3] = shape[3].div_ceil(32);
        }
        TensorLayout {
            shape,
            strides: self.strides,
        }
    }

    /// Bytes of an element of [`PairLayout::tensor`].
    pub fn element_bytes(&self) -> u32 {
        match self.element {
            MaskType::Byte => 1,
            MaskType::Bit => 4,
        }
    }

    /// Whether little-endian `bytes`, which start at the lowest element, let a query see a key. Panics if they are too few.
    pub fn shows(&self, bytes: &[u8], batch: usize, head: usize, row: usize, key: usize) -> bool {
        let at = self.at([batch, head, row, key]);
        match self.element {
            MaskType::Byte => bytes[self.tensor().index(at)] != 0,
            MaskType::Bit => {
                let word = self.tensor().index([at[0], at[1], at[2], at[3] / 32]);
                bytes[4 * word + at[3] % 32 / 8] >> (at[3] % 8) & 1 != 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of a layout lies within its span, at an index of its own, and the first and the last are reached.
    fn check_distinct(layout: CacheLayout) {
        let [blocks, rows, heads, dim] = layout.shape;
        let mut seen = vec![false; layout.span().unwrap()];
        for b in 0..blocks {
            for r in 0..rows {
                for h in 0..heads {
                    for d in 0..dim {
                        let index = layout.index([b, r, h, d]);
                        assert!(!std::mem::replace(&mut seen[index], true), "{layout:?}");
                    }
                }
            }
        }
        assert_eq!(seen.first(), Some(&true));
        assert_eq!(seen.last(), Some(&true));
        assert!(layout.check("k", 2).is_ok());
    }

    #[test]
    fn spans_are_exact() {
        for dim in [1, 7, 8, 9, 16, 20] {
            for rows in [1, 3] {
                let shape = [2, rows, 3, dim];
                check_distinct(CacheLayout::contiguous(shape));
                check_distinct(CacheLayout::heads_first(shape));
                check_distinct(CacheLayout::chunked_keys(DType::F16, shape));
                check_distinct(CacheLayout::transposed(shape));
                let mut backwards = CacheLayout::chunked_keys(DType::F16, shape);
                backwards.chunk_stride = -backwards.chunk_stride;
                backwards.strides[1] = -backwards.strides[1];
                check_distinct(backwards);
            }
        }
    }

    #[test]
    fn layouts_are_those_of_their_names() {
        let shape = [5, 4, 3, 16];
        let at = [2, 3, 1, 13];
        let chunked = ((((2 * 3) + 1) * 2 + 1) * 4 + 3) * 8 + 5;
        assert_eq!(
            CacheLayout::chunked_keys(DType::F16, shape).index(at),
            chunked
        );
        let transposed = (((2 * 3) + 1) * 16 + 13) * 4 + 3;
        assert_eq!(CacheLayout::transposed(shape).index(at), transposed);
    }

    #[test]
    fn bits_of_a_mask() {
        let mask = PairLayout::mask(MaskType::Bit, [1, 1, 2, 40]);
        assert_eq!(mask.tensor().span(), Some(4));
        let mut bytes = [0u8; 16];
        bytes[8 + 4] = 1 << 3;
        for row in 0..2 {
            for key in 0..40 {
                let shown = mask.shows(&bytes, 7, 9, row, key);
                assert_eq!(shown, (row, key) == (1, 35));
            }
        }
    }

    #[test]
    fn overflow_is_an_error() {
        let huge = CacheLayout::contiguous([usize::MAX, usize::MAX, 2, usize::MAX]);
        assert!(huge.check("k", 2).is_err());
        assert!(
            CacheLayout::chunked_keys(DType::F16, huge.shape)
                .check("k", 2)
                .is_err()
        );
        assert!(CacheLayout::transposed(huge.shape).check("k", 2).is_err());
    }
}
