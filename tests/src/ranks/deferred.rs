//! Streams that run as late as they may: a device and an exchange that take down what is enqueued, and do it when the device is waited
//! for, one of two streams always before the other where nothing orders them. What a launch forgets to order goes wrong in one of the two
//! ways.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use flashtile::{
    Device, DeviceInfo, Entry, Error, LaunchConfig, Result, Stream, TensorMap, TensorMapSpec,
    parallel::{DeviceRange, Exchange},
};

use super::exchange::LocalExchange;

/// Which of two streams is first, wherever it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Kernels.
    Compute,
    /// What moves.
    Exchange,
}

enum Work {
    Launch {
        kernel: &'static Entry,
        config: LaunchConfig,
        params: Vec<u8>,
    },
    Gather {
        send: DeviceRange,
        receive: Vec<DeviceRange>,
    },
    SendReceive {
        send: DeviceRange,
        to: usize,
        receive: DeviceRange,
        from: usize,
    },
    /// The work before has been done.
    Record(usize),
    /// Until it has.
    Wait(usize),
}

#[derive(Default)]
struct Queues {
    compute: VecDeque<Work>,
    exchange: VecDeque<Work>,
    orders: usize,
}

/// A rank: its device, and its end of the exchange.
pub struct Deferred<'d> {
    device: &'d dyn Device,
    exchange: LocalExchange<'d>,
    first: First,
    queues: Mutex<Queues>,
}

impl<'d> Deferred<'d> {
    /// A rank whose streams have this order.
    pub fn new(device: &'d dyn Device, exchange: LocalExchange<'d>, first: First) -> Self {
        Self {
            device,
            exchange,
            first,
            queues: Mutex::default(),
        }
    }

    /// The two streams: kernels', and the exchange's.
    pub fn streams() -> [Stream; 2] {
        [16, 32].map(|handle| Stream::from_raw(std::ptr::without_provenance_mut(handle)))
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, stream: Stream, work: Work) {
        let mut queues = self.queues();
        match stream == Self::streams()[1] {
            true => queues.exchange.push_back(work),
            false => queues.compute.push_back(work),
        }
    }

    fn run(&self) -> Result<()> {
        let mut queues = std::mem::take(&mut *self.queues());
        let mut done = HashSet::new();
        let ready = |queue: &VecDeque<Work>, done: &HashSet<usize>| match queue.front() {
            None => false,
            Some(Work::Wait(order)) => done.contains(order),
            Some(_) => true,
        };
        loop {
            let (one, other) = match self.first {
                First::Compute => (&mut queues.compute, &mut queues.exchange),
                First::Exchange => (&mut queues.exchange, &mut queues.compute),
            };
            let queue = match (ready(one, &done), ready(other, &done)) {
                (true, _) => one,
                (false, true) => other,
                (false, false) => break,
            };
            match queue.pop_front() {
                None | Some(Work::Wait(_)) => {}
                Some(Work::Record(order)) => {
                    done.insert(order);
                }
                Some(Work::Launch {
                    kernel,
                    config,
                    params,
                }) => {
                    // SAFETY: the emulator checks every access, here and below.
                    unsafe {
                        self.device
                            .launch(kernel, &config, &params, Stream::DEFAULT)?
                    };
                }
                Some(Work::Gather { send, receive }) => {
                    // SAFETY: as above.
                    unsafe {
                        self.exchange
                            .all_gather(send, &|rank| receive[rank], Stream::DEFAULT)?;
                    }
                }
                Some(Work::SendReceive {
                    send,
                    to,
                    receive,
                    from,
                }) => {
                    // SAFETY: as above.
                    unsafe {
                        self.exchange
                            .send_receive(send, to, receive, from, Stream::DEFAULT)?;
                    }
                }
            }
        }
        match queues.compute.is_empty() && queues.exchange.is_empty() {
            true => Ok(()),
            false => Err(Error::Fault {
                context: "streams".into(),
                reason: "each waits for the other".into(),
            }),
        }
    }
}

impl std::fmt::Debug for Deferred<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Deferred({:?}, {:?})", self.exchange, self.first)
    }
}

impl Device for Deferred<'_> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.device.allocate(bytes)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.device.free(address) }
    }

    unsafe fn write(&self, address: u64, source: &[u8]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.device.write(address, source) }
    }

    unsafe fn read(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the caller's.
        unsafe { self.device.read(address, destination) }
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.device.fill(address, bytes, value) }
    }

    fn load(&self, kernel: &'static Entry) -> Result<()> {
        self.device.load(kernel)
    }

    unsafe fn override_ptx(&self, kernel: &'static Entry, ptx: &str) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.device.override_ptx(kernel, ptx) }
    }

    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()> {
        let work = Work::Launch {
            kernel,
            config: *config,
            params: params.to_vec(),
        };
        self.push(stream, work);
        Ok(())
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.device.tensor_map(spec)
    }

    fn synchronize(&self) -> Result<()> {
        self.run()
    }

    unsafe fn order(&self, before: Stream, after: Stream) -> Result<()> {
        let order = {
            let mut queues = self.queues();
            queues.orders += 1;
            queues.orders
        };
        self.push(before, Work::Record(order));
        self.push(after, Work::Wait(order));
        Ok(())
    }
}

impl Exchange for Deferred<'_> {
    fn rank(&self) -> usize {
        self.exchange.rank()
    }

    fn world(&self) -> usize {
        self.exchange.world()
    }

    unsafe fn all_gather(
        &self,
        send: DeviceRange,
        receive: &dyn Fn(usize) -> DeviceRange,
        stream: Stream,
    ) -> Result<()> {
        let receive = (0..self.world()).map(receive).collect();
        self.push(stream, Work::Gather { send, receive });
        Ok(())
    }

    unsafe fn send_receive(
        &self,
        send: DeviceRange,
        to: usize,
        receive: DeviceRange,
        from: usize,
        stream: Stream,
    ) -> Result<()> {
        let work = Work::SendReceive {
            send,
            to,
            receive,
            from,
        };
        self.push(stream, work);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.exchange.check()
    }
}
