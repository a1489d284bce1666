//! Numbers of tensors in the host's memory.

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType};

use crate::error::bad;

// flashtile's elements are little-endian bytes.
const _: () = assert!(cfg!(target_endian = "little"));

/// A tensor beside q, k and v, locked for reading.
pub(crate) struct Reading<'a> {
    argument: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Reading<'a> {
    pub fn new(argument: &'static str, tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self {
            argument,
            storage,
            layout,
        }
    }

    /// Its elements as bytes, from the first to the end of its memory.
    pub fn bytes(&self) -> Result<&[u8]> {
        bytes(self.argument, self.cpu()?, self.layout)
    }

    fn cpu(&self) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            other => Err(bad(
                self.argument,
                "a tensor on the CPU, as q",
                format!("one on {:?}", other.device().location()),
            )),
        }
    }
}

/// The first `count` numbers, u32 or i32, in a tensor's memory. What is no i32 is the largest one, which no position, length or page
/// can be.
pub(crate) fn ints(argument: &'static str, tensor: &Tensor, count: usize) -> Result<Vec<i32>> {
    let reading = Reading::new(argument, tensor);
    let at = reading.layout.start_offset();
    match reading.cpu()? {
        CpuStorage::I32(numbers) => Ok(rest(numbers, at, count).to_vec()),
        CpuStorage::U32(numbers) => Ok(rest(numbers, at, count)
            .iter()
            .map(|&number| i32::try_from(number).unwrap_or(i32::MAX))
            .collect()),
        other => Err(bad(argument, "u32 or i32", dtype(other))),
    }
}

/// The numbers of a contiguous tensor, i64, u32 or i32.
pub(crate) fn longs(argument: &'static str, tensor: &Tensor) -> Result<Vec<i64>> {
    let reading = Reading::new(argument, tensor);
    let (at, count) = (reading.layout.start_offset(), tensor.elem_count());
    match reading.cpu()? {
        CpuStorage::I64(numbers) => Ok(rest(numbers, at, count).to_vec()),
        CpuStorage::I32(numbers) => {
            Ok(rest(numbers, at, count).iter().map(|&n| n.into()).collect())
        }
        CpuStorage::U32(numbers) => {
            Ok(rest(numbers, at, count).iter().map(|&n| n.into()).collect())
        }
        other => Err(bad(argument, "i64, u32 or i32", dtype(other))),
    }
}

/// The numbers of a contiguous tensor, f32.
pub(crate) fn floats(argument: &'static str, tensor: &Tensor) -> Result<Vec<f32>> {
    let reading = Reading::new(argument, tensor);
    let at = reading.layout.start_offset();
    match reading.cpu()? {
        CpuStorage::F32(numbers) => Ok(rest(numbers, at, tensor.elem_count()).to_vec()),
        other => Err(bad(argument, "f32", dtype(other))),
    }
}

/// Scales of keys and of values, in the host's memory.
pub(crate) fn scale_numbers(scales: Option<&[Tensor; 2]>) -> Result<[Vec<f32>; 2]> {
    match scales {
        None => Ok([Vec::new(), Vec::new()]),
        Some([k, v]) => Ok([floats("k_scale", k)?, floats("v_scale", v)?]),
    }
}

/// Elements as bytes, from a tensor's first to the end of its memory.
pub(crate) fn bytes<'a>(
    argument: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [u8]> {
    let at = layout.start_offset();
    Ok(match storage {
        CpuStorage::F16(elements) => elements_bytes(rest(elements, at, usize::MAX)),
        CpuStorage::BF16(elements) => elements_bytes(rest(elements, at, usize::MAX)),
        CpuStorage::F32(elements) => elements_bytes(rest(elements, at, usize::MAX)),
        CpuStorage::F8E4M3(elements) => elements_bytes(rest(elements, at, usize::MAX)),
        CpuStorage::U8(elements) => rest(elements, at, usize::MAX),
        other => return Err(bad(argument, "f16, bf16, f32, f8e4m3 or u8", dtype(other))),
    })
}

fn rest<T>(elements: &[T], at: usize, count: usize) -> &[T] {
    let from_first = elements.get(at..).unwrap_or_default();
    &from_first[..from_first.len().min(count)]
}

fn dtype(storage: &CpuStorage) -> &'static str {
    candle_core::backend::BackendStorage::dtype(storage).as_str()
}

/// Elements as bytes, from a tensor's first to the end of its memory, to be written.
pub(crate) fn bytes_mut<'a>(
    argument: &str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [u8]> {
    fn rest<T: WithDType>(elements: &mut [T], at: usize) -> &mut [u8] {
        let elements = elements.get_mut(at..).unwrap_or_default();
        // SAFETY: as in `elements_bytes`; and any bits are a number.
        unsafe {
            std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements))
        }
    }
    let at = layout.start_offset();
    match storage {
        CpuStorage::F16(elements) => Ok(rest(elements, at)),
        CpuStorage::BF16(elements) => Ok(rest(elements, at)),
        CpuStorage::F32(elements) => Ok(rest(elements, at)),
        CpuStorage::F8E4M3(elements) => Ok(rest(elements, at)),
        CpuStorage::U8(elements) => Ok(rest(elements, at)),
        other => Err(bad(argument, "f16, bf16, f32, f8e4m3 or u8", dtype(other))),
    }
}

fn elements_bytes<T: WithDType>(elements: &[T]) -> &[u8] {
    // SAFETY: candle's element types are plain numbers without padding, every byte of which may be read as a u8, and the slice covers
    // exactly the elements that are borrowed.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}
