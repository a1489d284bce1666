//! What the copy engine is told of a tensor.

use flashtile_abi::DType;

/// A tensor in device memory and the boxes that are copied of it: the arguments of `cuTensorMapEncodeTiled` that vary. Dimensions
/// are in the engine's order, the contiguous one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Element type.
    pub dtype: DType,
    /// Device address of the first element, a multiple of 16.
    pub address: u64,
    /// Elements of each dimension.
    pub dims: [u64; 5],
    /// Bytes from one element to the next of dimensions 1 to 4, multiples of 16 below 2^40.
    pub strides: [u64; 4],
    /// Elements of a box in each dimension, at most 256.
    pub extents: [u32; 5],
    /// Bytes of a swizzled row: 128, 64 or 32; those of a box's first dimension.
    pub swizzle: u32,
}
