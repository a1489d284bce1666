//! Where the checking kernel leaves what it finds, and its launches.

use std::mem::offset_of;
use std::sync::{Mutex, PoisonError};

use flashtile_abi::{
    CheckParams, CheckReport, CheckState, Offence,
    check::{CHECK, NUMBERS, THREADS},
};

use super::offence::Broken;
use crate::{
    device::{Device, DeviceBuffer, LaunchConfig, PinnedWords, Stream},
    error::{Error, Result},
    plan::check_pointer,
};

/// Longest grid in x.
const MAX_GRID: u64 = (1 << 31) - 1;

/// Entries, ranges or slots that a thread looks at.
const EACH: u64 = 4;

/// What checked launches find, until somebody asks: the first offence of the first launch that had one, in an order that does not depend
/// on how threads ran. Those of launches before it is read are lost. Launches in one stream at a time may share a report.
///
/// A few bytes of device memory, and of host memory that kernels write.
#[derive(Debug)]
pub struct MetadataReport<'d> {
    device: &'d dyn Device,
    state: DeviceBuffer<'d>,
    report: PinnedWords<'d>,
    /// Held by whoever reads the report.
    reading: Mutex<()>,
}

/// What a checked launch is checked with.
#[derive(Clone, Copy, Debug)]
pub struct Checks<'a> {
    pub(crate) report: &'a MetadataReport<'a>,
    sequences: u64,
}

impl<'a> Checks<'a> {
    /// Lengths, pages, ranges, slots; each of the sequences that were planned.
    pub fn new(report: &'a MetadataReport<'a>) -> Self {
        Self {
            report,
            sequences: 0,
        }
    }

    /// Device address of an `i32`: how many sequences there are. It must not be more than were planned, and those past it must have no
    /// queries. (For launches of attention. Kernels do not look at it.)
    #[must_use]
    pub fn sequences(mut self, address: u64) -> Self {
        self.sequences = address;
        self
    }

    /// Enqueues the checking kernel, which looks at `most` entries, ranges or slots of a sequence; whatever it is that it looks at, the
    /// addresses and the number of sequences are filled in here.
    ///
    /// # Safety
    /// The addresses in `params` are 0 or those of memory that has what `params` says, until the kernel is done; so is that of
    /// [`Checks::sequences`]. `stream` is a live stream of the device, which is the report's, and no launch with this report is under way in
    /// another stream.
    pub(crate) unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        mut params: CheckParams,
        most: usize,
    ) -> Result<()> {
        if params.batch > Offence::MAX_BATCH {
            return Err(Error::bad(
                "batch",
                format!(
                    "at most {} sequences in a checked launch",
                    Offence::MAX_BATCH
                ),
                params.batch.to_string(),
            ));
        }
        check_pointer("sequences", self.sequences == 0, self.sequences, 4, 0, 0)?;
        let batch = u64::from(params.batch);
        let parts = (most as u64).div_ceil(u64::from(THREADS) * EACH);
        let parts = parts.clamp(1, MAX_GRID / batch.max(1));
        params.parts = parts as u32;
        params.sequences = self.sequences;
        params.state = self.report.state.address();
        params.report = self.report.report.address();
        let config = LaunchConfig {
            grid: [(batch * parts) as u32, 1, 1],
            block: [CHECK.threads, 1, 1],
            shared_bytes: CHECK.shared_bytes,
            cluster: 1,
        };
        // SAFETY: the parameters are those of the kernel's entry point; state and report live as long as `self.report`, whose drop waits
        // for the device; the caller vouches for the rest.
        unsafe { device.launch(&CHECK, &config, params.as_bytes(), stream) }
    }
}

/// A field of a [`CheckReport`], as a number of it.
const fn word(offset: usize) -> usize {
    offset / 8
}

impl<'d> MetadataReport<'d> {
    /// An empty report. Allocates, and loads the checking kernel, so that checked launches need neither.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and whatever else the device says.
    pub fn new(device: &'d dyn Device) -> Result<Self> {
        device.info().supports(CHECK.arch)?;
        device.load(&CHECK)?;
        Ok(Self {
            device,
            state: DeviceBuffer::zeroed(device, size_of::<CheckState>())?,
            report: PinnedWords::new(device, word(size_of::<CheckReport>()))?,
            reading: Mutex::default(),
        })
    }

    /// Whether launches that are done have found nothing. Does not wait, and calls no driver: what is under way is told later. An
    /// offence is told once.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument, the sequence, what was found and what was expected.
    pub fn look(&self) -> Result<()> {
        // There is nothing that a panic could leave half done.
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let report = &self.report;
        let taken = report.get(word(offset_of!(CheckReport, taken)))?;
        let delivered = report.get(word(offset_of!(CheckReport, delivered)))?;
        if delivered == taken {
            return Ok(());
        }
        let packed = report.get(word(offset_of!(CheckReport, offence)))?;
        let mut numbers = [0; NUMBERS];
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = report.get(word(offset_of!(CheckReport, numbers)) + i)? as i64;
        }
        // From here on a kernel may write the next one.
        report.set(word(offset_of!(CheckReport, taken)), delivered)?;
        let offence = Offence::unpack(packed).ok_or_else(|| Error::Fault {
            context: CHECK.name.into(),
            reason: format!("it left {packed:#x} in its report, which is no offence"),
        })?;
        match (Broken { offence, numbers }).error() {
            Error::BadInput {
                argument,
                expected,
                found,
            } => Err(Error::BadInput {
                argument,
                expected,
                found: found + LATE,
            }),
            error => Err(error),
        }
    }

    /// Waits for the device, and tells as [`MetadataReport::look`].
    ///
    /// # Errors
    /// As [`MetadataReport::look`], and a fault of any kernel.
    pub fn finish(&self) -> Result<()> {
        self.device.synchronize()?;
        self.look()
    }
}

/// What distinguishes an error of numbers on the device from one of the host's.
const LATE: &str = ", on the device at an earlier launch";
