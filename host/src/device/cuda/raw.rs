//! PTX of the caller's own, and tensor maps of any kind.

use std::{
    ffi::c_void,
    ptr::{null_mut, without_provenance_mut},
};

use flashtile_abi::TensorMap;

use super::{
    CudaDevice, LaunchConfig, Stream, codes,
    driver::{AlignedMap, Handle},
};
use crate::error::{Error, Result};

/// A module of the caller's own PTX on a GPU: the way round plans and the archive, for programs that look
/// at single instructions. What a module computes and touches is the caller's business. Unloaded on drop.
///
/// The emulator's counterpart is `flashtile_emulator::Module`, which takes the same text and the same
/// parameter bytes.
pub struct RawModule<'d> {
    device: &'d CudaDevice,
    module: Handle,
}

impl std::fmt::Debug for RawModule<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawModule").finish_non_exhaustive()
    }
}

/// The arguments of `cuTensorMapEncodeTiled` without interleaving, in the driver's own numbers. The rank is the number of `dims`, the
/// contiguous one first.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapArguments<'a> {
    /// `CUtensorMapDataType`.
    pub element: i32,
    /// Device address of the first element.
    pub address: u64,
    /// Elements of each dimension.
    pub dims: &'a [u64],
    /// Bytes from one element to the next of each dimension but the first.
    pub strides: &'a [u64],
    /// Elements of a box in each dimension.
    pub extents: &'a [u32],
    /// Every how many-th element of a box is moved, in each dimension.
    pub steps: &'a [u32],
    /// `CUtensorMapSwizzle`.
    pub swizzle: i32,
    /// `CUtensorMapL2promotion`.
    pub promotion: i32,
    /// `CUtensorMapFloatOOBfill`.
    pub fill: i32,
}

impl CudaDevice {
    /// A tensor map as the driver makes it.
    ///
    /// # Errors
    /// [`Error::BadInput`] for slices that do not belong together; what the driver says of the arguments, or that it is too old.
    pub fn encode_tensor_map(&self, arguments: &TensorMapArguments<'_>) -> Result<TensorMap> {
        let rank = arguments.dims.len();
        let lengths = [
            arguments.strides.len() + 1,
            arguments.extents.len(),
            arguments.steps.len(),
        ];
        if rank == 0 || lengths != [rank; 3] {
            return Err(Error::bad(
                "tensor_map",
                "as many extents and steps as dimensions, at least one, and one stride less",
                format!("{rank} dimensions, {arguments:?}"),
            ));
        }
        let _pushed = self.push()?;
        let mut map = AlignedMap([0; 16]);
        // SAFETY: a context is current; the map is aligned; the arrays have as many numbers as the rank says, which was checked; the
        // address is only written down.
        unsafe {
            self.driver.tensor_map_encode(
                &raw mut map,
                arguments.element,
                rank as u32,
                arguments.address as *mut c_void,
                arguments.dims.as_ptr(),
                arguments.strides.as_ptr(),
                arguments.extents.as_ptr(),
                arguments.steps.as_ptr(),
                codes::TENSOR_MAP_NONE,
                arguments.swizzle,
                arguments.promotion,
                arguments.fill,
            )?;
        }
        Ok(TensorMap(map.0))
    }

    /// Compiles and loads PTX text.
    ///
    /// # Errors
    /// [`Error::Fault`] with the compiler's log if the driver refuses the text.
    pub fn load_ptx(&self, ptx: &str) -> Result<RawModule<'_>> {
        let _pushed = self.push()?;
        Ok(RawModule {
            device: self,
            module: self.compile("a module", ptx)?,
        })
    }
}

impl RawModule<'_> {
    /// Enqueues an entry point. `params` are its parameters, each at its offset: the end of the one before,
    /// rounded up to its own alignment.
    ///
    /// # Errors
    /// [`Error::Fault`](crate::Error::Fault) without such an entry point; what the driver says of the
    /// geometry and of the parameters' size.
    ///
    /// # Safety
    /// What the entry point does with these parameters in this geometry is sound: it accesses only memory of
    /// this device that is allocated until it has finished, and that nobody else uses meanwhile. `stream` is a
    /// live stream of the device.
    pub unsafe fn launch(
        &self,
        entry: &str,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()> {
        let _pushed = self.device.push()?;
        let function = self
            .device
            .function(self.module, entry, config.shared_bytes)?;
        let mut size = params.len();
        let mut extra: [*mut c_void; 5] = [
            without_provenance_mut(codes::LAUNCH_PARAM_BUFFER_POINTER),
            params.as_ptr().cast_mut().cast(),
            without_provenance_mut(codes::LAUNCH_PARAM_BUFFER_SIZE),
            (&raw mut size).cast(),
            without_provenance_mut(codes::LAUNCH_PARAM_END),
        ];
        // SAFETY: the function belongs to the current context; `extra` names a buffer and its size, which
        // the driver copies before it returns; the caller vouches for what the kernel does with it.
        unsafe {
            let extra = extra.as_mut_ptr();
            self.device
                .enqueue(function, config, stream, null_mut(), extra)
        }
    }
}

impl Drop for RawModule<'_> {
    fn drop(&mut self) {
        if let Ok(_pushed) = self.device.push() {
            // SAFETY: a context is current. A module must not be unloaded under a running kernel.
            let _ = unsafe { self.device.driver.context_synchronize() };
            // SAFETY: the module was loaded in this context, once, and no kernel runs.
            let _ = unsafe { self.device.driver.module_unload(self.module) };
        }
    }
}
