//! How long launches take: by events on a GPU, by the clock on the wall on the emulator.

use std::time::{Duration, Instant};

use flashtile::{
    CudaDevice, Device, DeviceBuffer, EmulatorDevice, Result,
    device::cuda::{Event, Graph, OwnedStream},
};

use crate::{stats::Quartiles, workload::Workload};

/// What one sample of a GPU's time lasts at least: far more than an event's resolution and a launch's overhead, far less
/// than what clocks and temperature take to change.
pub const SAMPLE_SECONDS: f64 = 0.01;

/// Launches before the first that counts.
pub const WARM_UP: usize = 3;

/// Fewest samples of one measurement.
pub const FEWEST_SAMPLES: usize = 3;

/// Most samples of one measurement, and most launches of one sample.
pub const MOST: usize = 1000;

/// How many times the L2 cache's size one round over all sets of tensors touches.
const CACHES: usize = 2;

/// Where launches are timed.
#[derive(Clone, Copy, Debug)]
pub enum Target<'d> {
    /// A GPU.
    Gpu(&'d CudaDevice),
    /// The emulator: its times say nothing about a GPU.
    Emulator(&'d EmulatorDevice),
}

/// What measured a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CUDA events in the stream of the launches.
    Events,
    /// The host's clock, round launches that it waits for.
    Wall,
}

impl Clock {
    /// Name in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Wall => "wall",
        }
    }
}

/// How the launches of one sample are enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As a CUDA graph, taken down beforehand.
    Graph,
    /// One by one.
    Launches,
}

impl Method {
    /// Name in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Launches => "launches",
        }
    }
}

impl<'d> Target<'d> {
    /// The device.
    pub fn device(&self) -> &'d dyn Device {
        match *self {
            Self::Gpu(device) => device,
            Self::Emulator(device) => device,
        }
    }

    /// Whether times are a GPU's.
    pub fn is_gpu(&self) -> bool {
        matches!(self, Self::Gpu(_))
    }

    /// Sets of tensors of so many bytes that make every launch find its inputs outside of the L2 cache.
    ///
    /// # Errors
    /// What the driver says.
    pub fn sets(&self, bytes: u64) -> Result<usize> {
        let Self::Gpu(device) = self else {
            return Ok(1);
        };
        let apart = (CACHES * device.l2_bytes()?) as u64;
        Ok(apart.div_ceil(bytes.max(1)).clamp(1, MOST as u64) as usize)
    }

    /// Bytes a second that a large copy within the device reads and writes; none on the emulator.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy_bandwidth(&self) -> Result<Option<f64>> {
        let Self::Gpu(device) = *self else {
            return Ok(None);
        };
        let bytes = (4 * device.l2_bytes()?).max(16 << 20);
        let source = DeviceBuffer::zeroed(device, bytes)?;
        let destination = DeviceBuffer::uninitialized(device, bytes)?;
        let timer = Timer::new(device)?;
        let copies = 8;
        let copy = || -> Result<()> {
            for _ in 0..copies {
                let (to, from) = (destination.address(), source.address());
                // SAFETY: both buffers have so many bytes, live until the timer has waited, and nobody else knows them.
                unsafe { timer.stream.copy(to, from, bytes)? };
            }
            Ok(())
        };
        timer.seconds(copy)?;
        let times = (0..9)
            .map(|_| timer.seconds(copy))
            .collect::<Result<Vec<_>>>()?;
        let median = Quartiles::of(&times).map(|times| times.median);
        Ok(median.map(|seconds| 2.0 * (copies * bytes) as f64 / seconds))
    }
}

/// A stream with two events.
struct Timer<'d> {
    stream: OwnedStream<'d>,
    start: Event<'d>,
    end: Event<'d>,
}

impl<'d> Timer<'d> {
    fn new(device: &'d CudaDevice) -> Result<Self> {
        Ok(Self {
            stream: device.stream()?,
            start: device.event()?,
            end: device.event()?,
        })
    }

    /// Seconds of what `enqueue` puts into the stream.
    fn seconds(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.stream.record(&self.start)?;
        let enqueued = enqueue();
        self.stream.record(&self.end)?;
        // Whatever was enqueued is waited for, even if the rest failed.
        self.end.synchronize()?;
        enqueued?;
        self.end.seconds_since(&self.start)
    }
}

/// A problem on a device, ready to be timed.
pub struct Timed<'d> {
    workload: Workload<'d>,
    launches: usize,
    way: Way<'d>,
}

enum Way<'d> {
    Graph(Timer<'d>, Graph<'d>),
    Launches(Timer<'d>),
    Wall,
}

impl std::fmt::Debug for Timed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timed")
            .field("workload", &self.workload)
            .field("launches", &self.launches)
            .field("method", &self.method())
            .finish_non_exhaustive()
    }
}

impl<'d> Timed<'d> {
    /// Warms up, decides how many launches make a sample, and runs one, into outputs that held NaN: [`Workload::output`] then has what the
    /// timed launches compute. The tensors are on the target's device.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(target: Target<'d>, workload: Workload<'d>) -> Result<Self> {
        let Target::Gpu(device) = target else {
            let timed = Self {
                workload,
                launches: 1,
                way: Way::Wall,
            };
            timed.sample()?;
            return Ok(timed);
        };
        let timer = Timer::new(device)?;
        let enqueue = |count: usize| -> Result<()> {
            let stream = timer.stream.stream();
            (0..count).try_for_each(|set| workload.launch_set(set, stream))
        };
        timer.seconds(|| enqueue(WARM_UP))?;
        let seconds = timer.seconds(|| enqueue(WARM_UP))? / WARM_UP as f64;
        let wanted = (SAMPLE_SECONDS / seconds).ceil().clamp(1.0, MOST as f64) as usize;
        let launches = wanted.next_multiple_of(workload.sets());
        workload.poison()?;
        let graph = timer.stream.capture(|| enqueue(launches));
        let way = match graph {
            Ok(graph) => Way::Graph(timer, graph),
            Err(_) => Way::Launches(timer),
        };
        let timed = Self {
            workload,
            launches,
            way,
        };
        timed.sample()?;
        Ok(timed)
    }

    /// Seconds a launch, averaged over one sample's launches.
    ///
    /// # Errors
    /// What the device says.
    pub fn sample(&self) -> Result<f64> {
        let total = match &self.way {
            Way::Graph(timer, graph) => timer.seconds(|| {
                // SAFETY: the graph holds launches over this workload's sets, which are allocated; one sample is waited
                // for before the next, so nothing else uses them.
                unsafe { timer.stream.launch(graph) }
            })?,
            Way::Launches(timer) => {
                let stream = timer.stream.stream();
                let mut sets = 0..self.launches;
                timer.seconds(|| sets.try_for_each(|set| self.workload.launch_set(set, stream)))?
            }
            Way::Wall => {
                let started = Instant::now();
                self.workload.launch()?;
                started.elapsed().as_secs_f64()
            }
        };
        Ok(total / self.launches as f64)
    }

    /// Samples for about so long: seconds a launch, each. One before them is not counted: the device may have been idle.
    ///
    /// # Errors
    /// What the device says.
    pub fn samples(&self, time: Duration) -> Result<Vec<f64>> {
        self.sample()?;
        let started = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < FEWEST_SAMPLES || (started.elapsed() < time && samples.len() < MOST) {
            samples.push(self.sample()?);
        }
        Ok(samples)
    }

    /// The tensors.
    pub fn workload(&self) -> &Workload<'d> {
        &self.workload
    }

    /// Launches of one sample.
    pub fn launches(&self) -> usize {
        self.launches
    }

    /// What measures the time.
    pub fn clock(&self) -> Clock {
        match self.way {
            Way::Graph(..) | Way::Launches(_) => Clock::Events,
            Way::Wall => Clock::Wall,
        }
    }

    /// How launches are enqueued.
    pub fn method(&self) -> Method {
        match self.way {
            Way::Graph(..) => Method::Graph,
            Way::Launches(_) | Way::Wall => Method::Launches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Grid;
    use flashtile::ArchChoice;

    #[test]
    fn the_emulator_computes_what_is_timed() {
        let device = EmulatorDevice::new();
        let target = Target::Emulator(&device);
        let cell = Grid::emulator_quick().cells()[0];
        assert_eq!(target.sets(1).unwrap(), 1);
        assert_eq!(target.copy_bandwidth().unwrap(), None);
        let workload = Workload::of_cell(&device, &cell, ArchChoice::Auto, 1).unwrap();
        let timed = Timed::new(target, workload).unwrap();
        let once = timed.workload().output().unwrap();
        let samples = timed.samples(Duration::ZERO).unwrap();
        assert_eq!(samples.len(), FEWEST_SAMPLES);
        assert!(samples.iter().all(|&seconds| seconds > 0.0));
        assert_eq!(timed.workload().output().unwrap(), once);
        timed.workload().poison().unwrap();
        assert!(
            timed
                .workload()
                .output()
                .unwrap()
                .iter()
                .all(|&x| x == 0xff)
        );
        assert_eq!(
            (timed.clock(), timed.method()),
            (Clock::Wall, Method::Launches)
        );
    }
}
