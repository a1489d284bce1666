//! Tensor maps: the emulator's encoder under the driver's name.

use std::ffi::{c_int, c_uint, c_void};

use flashtile_emulator::{ElementType, L2Promotion, OobFill, Swizzle, TensorMap};

use super::{INVALID_VALUE, Status, current};

/// `CUtensorMap`.
#[repr(C)]
pub struct Map([u8; 128]);

/// One of an enumeration's values, by the driver's number.
fn choice<T: Copy>(all: &[T], number: c_int) -> Result<T, Status> {
    let found = usize::try_from(number).ok().and_then(|n| all.get(n));
    found.copied().ok_or(INVALID_VALUE)
}

/// So many numbers, copied.
///
/// # Safety
/// `at` is good for `count` numbers, or null.
unsafe fn numbers<T: Copy>(at: *const T, count: usize) -> Result<Vec<T>, Status> {
    if at.is_null() && count > 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, or none are read.
    Ok((0..count).map(|n| unsafe { at.add(n).read() }).collect())
}

api! {
    cuTensorMapEncodeTiled(
        map: *mut Map, element: c_int, rank: c_uint, address: *mut c_void, dims: *const u64, strides: *const u64,
        extents: *const u32, steps: *const u32, interleave: c_int, swizzle: c_int, promotion: c_int, fill: c_int
    ) {
        current(|_| {
            let rank = rank as usize;
            // The oldest driver that has this asks for 64.
            let aligned = !map.is_null() && (map as usize).is_multiple_of(64);
            if !aligned || !(1..=5).contains(&rank) || interleave != 0 {
                return Err(INVALID_VALUE);
            }
            let promotions = [L2Promotion::None, L2Promotion::B64, L2Promotion::B128, L2Promotion::B256];
            let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
            // SAFETY: each array has `rank` numbers, that of the strides one less, as the caller promises.
            let [dims, strides] = unsafe { [numbers(dims, rank)?, numbers(strides, rank - 1)?] };
            // SAFETY: as above.
            let [box_dims, element_strides] = unsafe { [numbers(extents, rank)?, numbers(steps, rank)?] };
            let made = TensorMap {
                element_type: choice(&ElementType::ALL, element)?,
                address: address as u64,
                dims,
                strides,
                box_dims,
                element_strides,
                swizzle: choice(&swizzles, swizzle)?,
                l2_promotion: choice(&promotions, promotion)?,
                oob_fill: choice(&[OobFill::Zero, OobFill::Nan], fill)?,
            };
            let bytes = made.encode().map_err(|_| INVALID_VALUE)?;
            // SAFETY: the caller's map has 128 bytes, and is not null.
            unsafe { map.write(Map(bytes)) };
            Ok(())
        })
    }
}
