//! Where the elements of a tensor are, around its first one.

use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    plan::check_pointer,
    serving::CacheLayout,
};

/// The elements from a tensor's lowest to its highest, as offsets from element [0, 0, 0, 0].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    element_bytes: u32,
    low: i64,
    high: i64,
    is_empty: bool,
}

impl Extent {
    /// From the lowest to the highest offset. If they overflowed, the extent is longer than any memory.
    pub fn new(offsets: Option<(i64, i64)>, is_empty: bool, element_bytes: u32) -> Self {
        let (low, high) = offsets.unwrap_or((0, i64::MAX));
        Self {
            element_bytes,
            low,
            high,
            is_empty,
        }
    }

    pub fn tensor(layout: &TensorLayout, element_bytes: u32) -> Self {
        Self::new(layout.offsets(), layout.is_empty(), element_bytes)
    }

    pub fn cache(layout: &CacheLayout, element_bytes: u32) -> Self {
        Self::new(layout.offsets(), layout.is_empty(), element_bytes)
    }

    /// Contiguous numbers.
    pub fn numbers(count: usize, bytes: u32) -> Self {
        let last = i64::try_from(count).ok().map(|n| (0, (n - 1).max(0)));
        Self::new(last, count == 0, bytes)
    }

    /// Bytes from the lowest element to the end of the highest: those of the smallest buffer that holds the tensor. The largest number
    /// if they cannot be counted.
    pub fn bytes(&self) -> usize {
        if self.is_empty {
            return 0;
        }
        let elements = i128::from(self.high) - i128::from(self.low) + 1;
        usize::try_from(elements * i128::from(self.element_bytes)).unwrap_or(usize::MAX)
    }

    /// Address of element [0, 0, 0, 0] where the lowest one is at this address.
    pub fn origin(&self, lowest: u64) -> u64 {
        let below = (self.low as u64).wrapping_mul(u64::from(self.element_bytes));
        lowest.wrapping_sub(below)
    }

    /// The bytes that a tensor has of a slice which starts with its lowest element.
    pub fn of<'a>(&self, argument: &'static str, slice: &'a [u8]) -> Result<&'a [u8]> {
        slice.get(..self.bytes()).ok_or_else(|| {
            Error::bad(
                argument,
                format!("at least {} bytes", self.bytes()),
                format!("{} bytes", slice.len()),
            )
        })
    }

    /// Whether a tensor at one address and another one at another share bytes, from their lowest to their highest element.
    pub fn overlaps(&self, ptr: u64, other: &Self, other_ptr: u64) -> bool {
        let range = |extent: &Self, ptr: u64| {
            let bytes = i128::from(extent.element_bytes);
            let at = |offset: i64| i128::from(ptr) + i128::from(offset) * bytes;
            (at(extent.low), at(extent.high) + bytes)
        };
        let (a, b) = (range(self, ptr), range(other, other_ptr));
        !self.is_empty && !other.is_empty && a.0 < b.1 && b.0 < a.1
    }

    /// Refuses an address of element [0, 0, 0, 0] at which such a tensor cannot be.
    pub fn check(&self, argument: &'static str, ptr: u64) -> Result<()> {
        let Self {
            element_bytes,
            low,
            high,
            is_empty,
        } = *self;
        check_pointer(argument, is_empty, ptr, element_bytes, low, high)
    }
}

/// Refuses an address at which a tensor cannot be, and any address of a tensor that a problem does not have.
pub(crate) fn check_address(
    argument: &'static str,
    extent: Option<Extent>,
    ptr: u64,
) -> Result<()> {
    match extent {
        Some(extent) => extent.check(argument, ptr),
        None if ptr == 0 => Ok(()),
        None => Err(Error::bad(
            argument,
            "no address, since the problem has no such tensor",
            format!("{ptr:#x}"),
        )),
    }
}
