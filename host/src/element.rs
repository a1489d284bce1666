//! Elements as bytes: reading tensors into plain numbers and rounding numbers to elements.

use flashtile_abi::{DType, e4m3};
use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    run::bytes_of,
};

/// Element `index` of little-endian `bytes`, exactly. Panics if it is out of bounds.
#[inline]
pub fn read(dtype: DType, bytes: &[u8], index: usize) -> f32 {
    match dtype {
        DType::F16 => f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
        DType::Bf16 => bf16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
        DType::F32 => {
            let at = 4 * index;
            f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        }
        DType::E4m3 => e4m3::decode(bytes[index]),
    }
}

/// Writes `value`, rounded as [`round`] does, as element `index` of little-endian `bytes`. Panics if it is
/// out of bounds.
#[inline]
pub fn write(dtype: DType, bytes: &mut [u8], index: usize, value: f32) {
    match dtype {
        DType::F16 => bytes[2 * index..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::Bf16 => {
            bytes[2 * index..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes())
        }
        DType::F32 => bytes[4 * index..][..4].copy_from_slice(&value.to_le_bytes()),
        DType::E4m3 => bytes[index] = e4m3::encode(value),
    }
}

/// `value` rounded to the nearest number of the element type; ties to even. What is too large becomes infinite, and the
/// largest number in e4m3, which has no infinities.
#[inline]
pub fn round(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F32 => value,
        DType::E4m3 => e4m3::decode(e4m3::encode(value)),
    }
}

/// Numbers as little-endian elements, rounded as [`round`] does.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.bytes() as usize];
    for (index, &value) in values.iter().enumerate() {
        write(dtype, &mut bytes, index, value);
    }
    bytes
}

/// The elements of a tensor in the order of its shape, without gaps. `bytes` starts at the
/// lowest element.
///
/// # Errors
/// [`Error::BadInput`] if `bytes` is too short or the layout overflows.
pub fn gather(dtype: DType, bytes: &[u8], layout: &TensorLayout) -> Result<Vec<f32>> {
    permuted(dtype, bytes, layout, [0, 1, 2, 3])
}

/// As [`gather`], but in the order [batch, heads, seqlen, head_dim].
pub(crate) fn gather_heads(dtype: DType, bytes: &[u8], layout: &TensorLayout) -> Result<Vec<f32>> {
    permuted(dtype, bytes, layout, [0, 2, 1, 3])
}

fn permuted(
    dtype: DType,
    bytes: &[u8],
    layout: &TensorLayout,
    order: [usize; 4],
) -> Result<Vec<f32>> {
    let wanted = bytes_of("tensor", layout, dtype.bytes())?;
    if bytes.len() < wanted {
        return Err(Error::bad(
            "tensor",
            format!("at least {wanted} bytes for shape {:?}", layout.shape),
            format!("{} bytes", bytes.len()),
        ));
    }
    // A broadcast input may have more elements than memory.
    let count = layout.elements().filter(|&n| n < isize::MAX as usize / 4);
    let mut values = Vec::new();
    if count.is_none_or(|n| values.try_reserve_exact(n).is_err()) {
        return Err(Error::bad(
            "tensor",
            "a tensor that fits in memory",
            format!("shape {:?}", layout.shape),
        ));
    }
    if layout.is_empty() {
        return Ok(values);
    }
    let [a, b, c, d] = order;
    let mut at = [0; 4];
    for i in 0..layout.shape[a] {
        at[a] = i;
        for j in 0..layout.shape[b] {
            at[b] = j;
            for l in 0..layout.shape[c] {
                at[c] = l;
                at[d] = 0;
                let row = layout.index(at);
                values.extend((0..layout.shape[d]).map(|x| read(dtype, bytes, row + x)));
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_survive_a_round_trip() {
        for dtype in DType::ALL {
            let largest = round(dtype, f32::NEG_INFINITY);
            let values = [0.0, -1.5, 2.0, largest, 0.25];
            let bytes = encode(dtype, &values);
            let layout = TensorLayout::contiguous([1, 5, 1, 1]);
            assert_eq!(gather(dtype, &bytes, &layout).unwrap(), values);
            assert!(gather(dtype, &bytes[1..], &layout).is_err());
        }
    }

    #[test]
    fn gathering_follows_strides() {
        let bytes = encode(DType::F32, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let layout = TensorLayout {
            shape: [1, 3, 1, 2],
            strides: [0, -2, 0, 1],
        };
        let values = gather(DType::F32, &bytes, &layout).unwrap();
        assert_eq!(values, [4.0, 5.0, 2.0, 3.0, 0.0, 1.0]);
    }
}
