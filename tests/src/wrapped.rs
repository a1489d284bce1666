//! A device behind which another one is, to see which calls the library makes, and to leave kernels out.

use std::sync::{Mutex, PoisonError};

use flashtile::{
    Device, DeviceInfo, Entry, LaunchConfig, PinnedMemory, Result, Stream, TensorMap, TensorMapSpec,
};

/// Passes calls on and notes their names; of a launch, that of its kernel.
#[derive(Debug)]
pub struct Wrapped<'d> {
    inner: &'d dyn Device,
    only: Option<&'static Entry>,
    calls: Mutex<Vec<&'static str>>,
    last: Mutex<Option<Launched>>,
}

/// A launch.
#[derive(Clone, Debug)]
struct Launched {
    kernel: &'static Entry,
    config: LaunchConfig,
    params: Vec<u8>,
    stream: Stream,
}

impl<'d> Wrapped<'d> {
    /// Passes everything on.
    pub fn new(inner: &'d dyn Device) -> Self {
        Self {
            inner,
            only: None,
            calls: Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Leaves out launches of every other kernel.
    pub fn only(inner: &'d dyn Device, kernel: &'static Entry) -> Self {
        Self {
            only: Some(kernel),
            ..Self::new(inner)
        }
    }

    /// Does the last launch again, as the replay of a graph does.
    ///
    /// # Errors
    /// The device's; and if nothing was launched.
    ///
    /// # Safety
    /// As the launch itself.
    pub unsafe fn replay(&self) -> Result<()> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let it = last.clone().ok_or(flashtile::Error::Fault {
            context: "replay".into(),
            reason: "nothing was launched".into(),
        })?;
        // SAFETY: the caller's promise.
        unsafe {
            self.inner
                .launch(it.kernel, &it.config, &it.params, it.stream)
        }
    }

    /// The calls since this was last asked.
    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: &'static str) -> &'d dyn Device {
        self.lock().push(call);
        self.inner
    }
}

impl Device for Wrapped<'_> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.note("allocate").allocate(bytes)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's promise; so below.
        unsafe { self.note("free").free(address) }
    }

    unsafe fn write(&self, address: u64, source: &[u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("write").write(address, source) }
    }

    unsafe fn read(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("read").read(address, destination) }
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("fill").fill(address, bytes, value) }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedMemory> {
        self.note("allocate_pinned").allocate_pinned(bytes)
    }

    unsafe fn free_pinned(&self, memory: PinnedMemory) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("free_pinned").free_pinned(memory) }
    }

    unsafe fn read_pinned(&self, memory: PinnedMemory, word: usize) -> Result<u64> {
        // SAFETY: as above.
        unsafe { self.note("read_pinned").read_pinned(memory, word) }
    }

    unsafe fn write_pinned(&self, memory: PinnedMemory, word: usize, value: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("write_pinned").write_pinned(memory, word, value) }
    }

    unsafe fn order(&self, before: Stream, after: Stream) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("order").order(before, after) }
    }

    fn load(&self, kernel: &'static Entry) -> Result<()> {
        self.note("load").load(kernel)
    }

    unsafe fn override_ptx(&self, kernel: &'static Entry, ptx: &str) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.note("override_ptx").override_ptx(kernel, ptx) }
    }

    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()> {
        if self.only.is_some_and(|only| only != kernel) {
            return Ok(());
        }
        let launched = Launched {
            kernel,
            config: *config,
            params: params.into(),
            stream,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(launched);
        // SAFETY: as above.
        unsafe {
            self.note(kernel.name)
                .launch(kernel, config, params, stream)
        }
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.note("tensor_map").tensor_map(spec)
    }

    fn synchronize(&self) -> Result<()> {
        self.note("synchronize").synchronize()
    }
}
