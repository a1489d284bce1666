//! An exchange between emulators in one process. Nothing but a test: it copies through the host's memory, and waits.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flashtile::{
    Device, Error, Result, Stream,
    parallel::{DeviceRange, Exchange},
};

/// After which a rank gives up. Nothing comes near it, but what would otherwise hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one rank sends to another.
struct Message {
    bytes: Vec<u8>,
    /// Bytes that the sender never wrote.
    unwritten: Vec<usize>,
}

#[derive(Default)]
struct Mail {
    /// From which rank to which.
    sent: HashMap<(usize, usize), VecDeque<Message>>,
    /// Ranks that send no more.
    gone: Vec<usize>,
    /// Why nobody should go on.
    failed: Option<String>,
}

/// Where the ranks meet.
#[derive(Default)]
struct Hub {
    mail: Mutex<Mail>,
    news: Condvar,
}

impl Hub {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank's end. Dropped, it is a peer that is gone.
pub struct LocalExchange<'d> {
    hub: Arc<Hub>,
    device: &'d dyn Device,
    rank: usize,
    world: usize,
}

/// An exchange between these devices, of which each is a rank.
pub fn hub<'d>(devices: &[&'d dyn Device]) -> Vec<LocalExchange<'d>> {
    let hub = Arc::new(Hub::default());
    let ends = devices
        .iter()
        .enumerate()
        .map(|(rank, &device)| LocalExchange {
            hub: Arc::clone(&hub),
            device,
            rank,
            world: devices.len(),
        });
    ends.collect()
}

impl std::fmt::Debug for LocalExchange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalExchange(rank {} of {})", self.rank, self.world)
    }
}

impl Drop for LocalExchange<'_> {
    fn drop(&mut self) {
        self.hub.mail().gone.push(self.rank);
        self.hub.news.notify_all();
    }
}

impl LocalExchange<'_> {
    /// What is in this rank's memory.
    fn take(&self, range: DeviceRange) -> Result<Message> {
        let mut bytes = vec![0; range.bytes];
        let mut unwritten = Vec::new();
        if range.bytes > 0 {
            let mut at = range.address;
            let end = range.address + range.bytes as u64;
            while at < end {
                match self.device.first_unwritten(at, (end - at) as usize)? {
                    Some(found) => {
                        unwritten.push((found - range.address) as usize);
                        at = found + 1;
                    }
                    None => break,
                }
            }
            // SAFETY: the emulator checks the range.
            unsafe { self.device.read(range.address, &mut bytes)? };
        }
        Ok(Message { bytes, unwritten })
    }

    /// Puts it into this rank's memory.
    fn put(&self, range: DeviceRange, message: &Message) -> Result<()> {
        if message.bytes.len() != range.bytes {
            let reason = format!(
                "rank {} expects {} bytes and is sent {}",
                self.rank,
                range.bytes,
                message.bytes.len()
            );
            return Err(self.fail(reason));
        }
        if range.bytes > 0 {
            // SAFETY: the emulator checks the range, here and below.
            unsafe { self.device.write(range.address, &message.bytes)? };
            for &at in &message.unwritten {
                // SAFETY: as above.
                unsafe { self.device.forget(range.address + at as u64, 1)? };
            }
        }
        Ok(())
    }

    /// Makes all ranks fail.
    fn fail(&self, reason: String) -> Error {
        let mut mail = self.hub.mail();
        let reason = mail.failed.get_or_insert(reason).clone();
        self.hub.news.notify_all();
        Error::Exchange {
            call: "exchange",
            reason,
        }
    }

    fn send(&self, to: usize, message: Message) {
        let mut mail = self.hub.mail();
        mail.sent
            .entry((self.rank, to))
            .or_default()
            .push_back(message);
        self.hub.news.notify_all();
    }

    fn receive(&self, from: usize) -> Result<Message> {
        let mut mail = self.hub.mail();
        loop {
            if let Some(reason) = &mail.failed {
                return Err(Error::Exchange {
                    call: "exchange",
                    reason: reason.clone(),
                });
            }
            let waiting = mail.sent.get_mut(&(from, self.rank));
            if let Some(message) = waiting.and_then(VecDeque::pop_front) {
                return Ok(message);
            }
            if mail.gone.contains(&from) {
                drop(mail);
                return Err(self.fail(format!("rank {from} is gone")));
            }
            let (woken, waited) = self
                .hub
                .news
                .wait_timeout(mail, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            mail = woken;
            if waited.timed_out() {
                drop(mail);
                return Err(self.fail(format!("rank {from} sends nothing")));
            }
        }
    }
}

impl Exchange for LocalExchange<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    unsafe fn all_gather(
        &self,
        send: DeviceRange,
        receive: &dyn Fn(usize) -> DeviceRange,
        _stream: Stream,
    ) -> Result<()> {
        let others = || (0..self.world).filter(|&rank| rank != self.rank);
        for rank in others() {
            self.send(rank, self.take(send)?);
        }
        let own = self.take(send)?;
        self.put(receive(self.rank), &own)?;
        others().try_for_each(|rank| self.put(receive(rank), &self.receive(rank)?))
    }

    unsafe fn send_receive(
        &self,
        send: DeviceRange,
        to: usize,
        receive: DeviceRange,
        from: usize,
        _stream: Stream,
    ) -> Result<()> {
        self.send(to, self.take(send)?);
        self.put(receive, &self.receive(from)?)
    }

    fn check(&self) -> Result<()> {
        match &self.hub.mail().failed {
            Some(reason) => Err(Error::Exchange {
                call: "exchange",
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}
