//! Addresses and strides as kernels take them.

use flashtile_abi::{TensorView, serving::CacheView};

use crate::error::{Error, Result};

/// Whether all units of a row are eight elements that begin at a multiple of eight.
pub(super) fn whole_units(head_dim: u32, pairs: u32) -> bool {
    head_dim.is_multiple_of(8) && pairs.is_multiple_of(8)
}

pub(super) fn in_pieces(view: &TensorView) -> bool {
    let strides = [view.batch_stride, view.row_stride, view.head_stride];
    multiples_of_16(view.ptr, &strides)
}

/// Whether eight elements are a piece that is aligned to its size.
pub(super) fn cache_in_pieces(view: &CacheView, element: u32) -> bool {
    let strides = [
        view.block_stride,
        view.row_stride,
        view.head_stride,
        view.chunk_stride,
    ];
    view.element_stride == i64::from(element) && multiples_of(8 * element, view.ptr, &strides)
}

pub(super) fn multiples_of_16(address: u64, strides: &[i64]) -> bool {
    multiples_of(16, address, strides)
}

fn multiples_of(bytes: u32, address: u64, strides: &[i64]) -> bool {
    address.is_multiple_of(u64::from(bytes))
        && strides.iter().all(|stride| stride % i64::from(bytes) == 0)
}

pub(super) fn expect(argument: &'static str, found: [usize; 4], wanted: [usize; 4]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::bad(
        argument,
        format!("shape {wanted:?}"),
        format!("shape {found:?}"),
    ))
}
