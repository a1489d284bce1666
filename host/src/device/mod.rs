//! Where kernels run. [`Device`] is what the library needs of a device; `CudaDevice`
//! and `EmulatorDevice` provide it.

mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulator")]
pub mod emulator;
mod pinned;
mod tensor_map;

use std::ffi::c_void;

use flashtile_abi::{Arch, Entry, TensorMap};

pub use buffer::DeviceBuffer;
pub use pinned::PinnedMemory;
pub(crate) use pinned::PinnedWords;
pub use tensor_map::TensorMapSpec;

use crate::error::Result;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A GPU under NVIDIA's driver.
    Cuda,
    /// The PTX emulator.
    Emulator,
}

/// What a plan has to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Kind of device.
    pub kind: DeviceKind,
    /// Name, as the driver gives it.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory in bytes that one block can have at most, by opting in.
    pub shared_bytes_per_block: u32,
    /// Device memory in bytes.
    pub total_memory: u64,
    /// What the device's driver is too old for and launches of the sm_90a tier need, if anything.
    pub driver_lacks: Option<&'static str>,
}

/// The emulator's blocks run on the host's cores, however many there are; kernels that share out their work among the
/// multiprocessors see these.
const EMULATED_MULTIPROCESSORS: u32 = 4;

impl DeviceInfo {
    /// The emulator: it takes every instruction it knows and has the shared memory of Hopper.
    pub fn emulator() -> Self {
        Self {
            kind: DeviceKind::Emulator,
            name: "PTX emulator".into(),
            compute_capability: (9, 0),
            multiprocessors: EMULATED_MULTIPROCESSORS,
            shared_bytes_per_block: 227 * 1024,
            total_memory: u64::MAX,
            driver_lacks: None,
        }
    }

    /// Whether the device runs kernels of a tier.
    ///
    /// # Errors
    /// [`Error::NoDevice`](crate::Error::NoDevice) says what it lacks.
    pub fn supports(&self, arch: Arch) -> Result<()> {
        crate::plan::supports(self, arch)
    }
}

/// Geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Blocks in x that form a cluster.
    pub cluster: u32,
}

/// A stream of work on a device: CUDA's `CUstream`, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(usize);

impl Stream {
    /// The default stream (a null handle). On CUDA: the legacy default stream.
    pub const DEFAULT: Self = Self(0);

    /// A stream from the driver's handle (`CUstream`), which stays the caller's.
    pub fn from_raw(handle: *mut c_void) -> Self {
        Self(handle as usize)
    }

    /// The driver's handle.
    pub fn as_raw(self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

/// A device that holds memory and runs kernels. Object safe; shared between threads.
///
/// Addresses are those of the device. The methods that take one are unsafe, because a GPU checks
/// little and may reach the host's memory; [`DeviceBuffer`] is the safe way.
pub trait Device: Send + Sync + std::fmt::Debug {
    /// What is known of the device.
    fn info(&self) -> &DeviceInfo;

    /// Allocates memory aligned to at least 256 bytes. Its contents are undefined. `bytes` is positive.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Frees memory, once the device has finished all work.
    ///
    /// # Errors
    /// What the device says of the address, or of the work before.
    ///
    /// # Safety
    /// `address` was returned by this device's `allocate`, and nothing uses the memory any more.
    unsafe fn free(&self, address: u64) -> Result<()>;

    /// Copies bytes to the device, and returns when they have arrived: kernels in any stream see them.
    ///
    /// # Errors
    /// What the device says of the addresses, or of the work before.
    ///
    /// # Safety
    /// The destination is allocated on this device and not in use by a kernel.
    unsafe fn write(&self, address: u64, source: &[u8]) -> Result<()>;

    /// Waits for all work on the device and copies bytes from it.
    ///
    /// # Errors
    /// What the device says of the addresses, or of the work before: a kernel's fault among it.
    ///
    /// # Safety
    /// The source is allocated on this device.
    unsafe fn read(&self, address: u64, destination: &mut [u8]) -> Result<()>;

    /// Sets bytes, and returns when they are set: kernels in any stream see them.
    ///
    /// # Errors
    /// What the device says of the addresses, or of the work before.
    ///
    /// # Safety
    /// The range is allocated on this device and not in use by a kernel.
    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()>;

    /// Allocates memory aligned to 8 bytes that kernels reach, and the host without waiting for them or calling the driver (mapped memory
    /// of the host, on a GPU). Its contents are undefined. A device that has none gives memory of its own, for which the host waits.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedMemory> {
        let address = self.allocate(bytes)?;
        Ok(PinnedMemory { address, host: 0 })
    }

    /// Frees such memory, once the device has finished all work.
    ///
    /// # Errors
    /// What the device says of the address.
    ///
    /// # Safety
    /// `memory` was returned by this device's `allocate_pinned`, and nothing uses it any more.
    unsafe fn free_pinned(&self, memory: PinnedMemory) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.free(memory.address) }
    }

    /// Reads an 8-byte number of such memory as it is now. What a kernel wrote before it released that number (`st.release.sys`) is then
    /// seen by later calls.
    ///
    /// # Errors
    /// What the device says of the address.
    ///
    /// # Safety
    /// `memory` was returned by this device's `allocate_pinned`, is not freed, and has the number.
    unsafe fn read_pinned(&self, memory: PinnedMemory, word: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        // SAFETY: the caller's promise.
        unsafe { self.read(memory.address + 8 * word as u64, &mut bytes)? };
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes an 8-byte number of such memory, after what was read before.
    ///
    /// # Errors
    /// What the device says of the address.
    ///
    /// # Safety
    /// As [`Device::read_pinned`]; kernels that run meanwhile only load the number with acquire semantics.
    unsafe fn write_pinned(&self, memory: PinnedMemory, word: usize, value: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.write(memory.address + 8 * word as u64, &value.to_le_bytes()) }
    }

    /// Loads a kernel, so that launches of it need not. A kernel that is loaded stays so.
    ///
    /// # Errors
    /// [`Error::Archive`](crate::Error::Archive) without PTX for it, and
    /// [`Error::Fault`](crate::Error::Fault) with the compiler's log if the device's compiler refuses it.
    fn load(&self, kernel: &'static Entry) -> Result<()>;

    /// Makes this device run the given PTX text for a kernel, instead of the archive's. The text
    /// needs an entry point of the kernel's name. It is loaded at the next use.
    ///
    /// # Errors
    /// [`Error::BadInput`](crate::Error::BadInput) if the kernel is already loaded.
    ///
    /// # Safety
    /// The entry point takes the kernel's parameter block and accesses no memory that the kernel
    /// would not. (The emulator checks that itself.)
    unsafe fn override_ptx(&self, kernel: &'static Entry, ptx: &str) -> Result<()>;

    /// Enqueues a kernel with its parameter block.
    ///
    /// # Errors
    /// As [`Device::load`], and what the device says of the geometry.
    ///
    /// # Safety
    /// `params` is the parameter block of that kernel; the addresses in it are those of memory on
    /// this device that the kernel may access in this geometry, until it has finished. `stream`
    /// is a live stream of the device.
    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()>;

    /// Describes a tensor to the copy engine.
    ///
    /// # Errors
    /// What the device says of the tensor, or that it has no such engine.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap>;

    /// Waits until the device has finished all work.
    ///
    /// # Errors
    /// A fault of any kernel since the last call.
    fn synchronize(&self) -> Result<()>;

    /// Makes work that is enqueued on `after` from now on wait for what has been enqueued on `before`. Does not wait itself.
    ///
    /// # Errors
    /// What the device says of the streams.
    ///
    /// # Safety
    /// Both are live streams of the device.
    unsafe fn order(&self, before: Stream, after: Stream) -> Result<()>;

    /// Whether the device notes which bytes are written, as an emulator does that sanitizes.
    /// [`Plan::launch`](crate::Plan::launch) then requires that the kernel writes all of its outputs.
    fn tracks_writes(&self) -> bool {
        false
    }

    /// Makes bytes count as never written, where that is tracked.
    ///
    /// # Errors
    /// What the device says of the addresses.
    ///
    /// # Safety
    /// The range is allocated on this device and not in use by a kernel.
    unsafe fn forget(&self, _address: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    /// The first byte of a range that was never written, where that is tracked.
    ///
    /// # Errors
    /// What the device says of the addresses.
    fn first_unwritten(&self, _address: u64, _bytes: usize) -> Result<Option<u64>> {
        Ok(None)
    }

    /// The error that a kernel left part of an output unwritten.
    fn unwritten(&self, kernel: &'static Entry, message: String) -> crate::Error {
        crate::Error::Fault {
            context: kernel.name.into(),
            reason: message,
        }
    }
}

/// Refuses to replace the PTX of a kernel that is loaded.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn check_override(kernel: &Entry, loaded: bool) -> Result<()> {
    if loaded {
        return Err(crate::Error::bad(
            "ptx",
            "text for a kernel that is not loaded yet",
            format!("text for {}, which is", kernel.name),
        ));
    }
    Ok(())
}
