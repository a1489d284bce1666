//! PTX of the caller's own.

use std::{
    ffi::c_void,
    ptr::{null_mut, without_provenance_mut},
};

use super::{CudaDevice, LaunchConfig, Stream, codes, driver::Handle};
use crate::error::Result;

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

impl CudaDevice {
    /// Compiles and loads PTX text.
    ///
    /// # Errors
    /// [`Error::Fault`](crate::Error::Fault) with the compiler's log if the driver refuses the text.
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
