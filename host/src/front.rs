//! Front door for [cudarc](https://docs.rs/cudarc): its slices, views and streams in place of raw
//! addresses.
//!
//! There is none for `cust`: its build script panics without a CUDA installation. A `cust` program
//! passes `DevicePointer::as_raw` and a stream's handle to [`Plan::launch`], on a
//! [`CudaDevice::from_current_context`].

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use flashtile_abi::DType;

use crate::{
    device::{Stream, cuda::CudaDevice},
    error::{Error, Result},
    layout::TensorLayout,
    plan::{Plan, Pointers},
};

/// Element types of tensors.
pub trait Element {
    /// The element type's name in this library.
    const DTYPE: DType;
}

impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

/// The code of an e4m3 number.
impl Element for u8 {
    const DTYPE: DType = DType::E4m3;
}

/// Enqueues a plan on one of cudarc's streams, ordered after the slices' earlier uses as cudarc
/// orders them.
///
/// Each slice starts at its tensor's lowest element (element [0, 0, 0, 0] unless strides are negative)
/// and holds at least [`TensorLayout::span`] elements. `T` is the problem's dtype, `O` its output's. `scales` are those of q, k
/// and v, where the problem has any.
/// The device must be that of the stream's context: [`CudaDevice::new`] with the context's ordinal.
///
/// # Errors
/// [`Error::BadInput`] for slices of the wrong type or length and for a stream of another
/// context, and whatever [`Plan::launch`] refuses.
#[allow(clippy::too_many_arguments)] // The plan, two handles and the tensors.
pub fn launch<T, O, Q, K, V, Out, Lse>(
    plan: &Plan,
    device: &CudaDevice,
    stream: &CudaStream,
    q: &Q,
    k: &K,
    v: &V,
    scales: [Option<&dyn DevicePtr<f32>>; 3],
    out: &mut Out,
    lse: Option<&mut Lse>,
) -> Result<()>
where
    T: Element,
    O: Element,
    Q: DevicePtr<T>,
    K: DevicePtr<T>,
    V: DevicePtr<T>,
    Out: DevicePtrMut<O>,
    Lse: DevicePtrMut<f32>,
{
    let problem = plan.problem();
    if stream.context().cu_ctx().cast() != device.raw_context() {
        return Err(Error::bad(
            "stream",
            format!("a stream of the context of {}", device_name(device)),
            "a stream of another context",
        ));
    }
    for (argument, expected, found) in [
        ("q", problem.dtype, T::DTYPE),
        ("out", problem.out_element(), O::DTYPE),
    ] {
        if expected != found {
            return Err(Error::bad(
                argument,
                format!("elements of type {}", expected.as_str()),
                found.as_str(),
            ));
        }
    }
    long_enough("q", &problem.q, q.len())?;
    long_enough("k", &problem.k, k.len())?;
    long_enough("v", &problem.v, v.len())?;
    long_enough("out", &problem.out, out.len())?;
    for (scaled, scales) in problem.scaled().iter().zip(scales) {
        let wanted = scaled.layout.count(scaled.tensor);
        let found = scales.map_or(0, |scales| scales.len());
        if wanted.is_none_or(|wanted| found < wanted) {
            let shape = scaled.layout.shape(scaled.tensor);
            return Err(Error::bad(
                scaled.argument,
                format!("scales of shape {shape:?}"),
                format!("{found} numbers"),
            ));
        }
    }
    let lse_len = problem.lse_shape().iter().product::<usize>();
    if let Some(lse) = &lse
        && problem.lse
        && lse.len() < lse_len
    {
        return Err(Error::bad(
            "lse",
            format!("at least {lse_len} elements"),
            lse.len().to_string(),
        ));
    }

    // The guards record the slices' new uses when they are dropped: after the launch.
    let (q, _q_use) = q.device_ptr(stream);
    let (k, _k_use) = k.device_ptr(stream);
    let (v, _v_use) = v.device_ptr(stream);
    let (out, _out_use) = out.device_ptr_mut(stream);
    let (lse, _lse_use) = match lse {
        Some(lse) => {
            let (address, guard) = lse.device_ptr_mut(stream);
            (Some(address), Some(guard))
        }
        None => (None, None),
    };
    let scales = scales.map(|scales| scales.map(|scales| scales.device_ptr(stream)));
    let [q_scale, k_scale, v_scale] =
        [0, 1, 2].map(|which| scales[which].as_ref().map_or(0, |&(address, _)| address));
    let pointers = Pointers {
        q: origin(q, &problem.q, T::DTYPE),
        k: origin(k, &problem.k, T::DTYPE),
        v: origin(v, &problem.v, T::DTYPE),
        out: origin(out, &problem.out, O::DTYPE),
        lse,
        q_scale,
        k_scale,
        v_scale,
        workspace: 0,
    };
    // SAFETY: the slices are on the stream's device and hold their tensors and scales (lengths are checked
    // above); out and lse are borrowed mutably, so they overlap nothing; cudarc's guards order
    // the launch among all other uses; no kernel needs a workspace; the stream is borrowed.
    unsafe {
        plan.launch(
            device,
            Stream::from_raw(stream.cu_stream().cast()),
            &pointers,
        )
    }
}

fn device_name(device: &CudaDevice) -> &str {
    &crate::Device::info(device).name
}

fn long_enough(argument: &'static str, layout: &TensorLayout, len: usize) -> Result<()> {
    match layout.span() {
        Some(span) if span <= len => Ok(()),
        span => Err(Error::bad(
            argument,
            format!("at least {span:?} elements for shape {:?}", layout.shape),
            len.to_string(),
        )),
    }
}

/// Address of element [0, 0, 0, 0] of a tensor whose lowest element is at `lowest`.
fn origin(lowest: u64, layout: &TensorLayout, dtype: DType) -> u64 {
    let (low, _) = layout.offsets().unwrap_or_default();
    lowest.wrapping_sub((low as u64).wrapping_mul(u64::from(dtype.bytes())))
}
