//! A problem's tensors in the memory of an emulator.

use flashtile_emulator::{Emulator, MemoryError};

use super::work::{Buffer, Images, Left};

/// Free bytes on either side of every tensor, so that a stray access is seen.
const MARGIN: u64 = 256 << 10;

/// First bytes of all buffers.
#[derive(Default)]
pub(super) struct Addresses {
    pub(super) inputs: Vec<u64>,
    pub(super) outputs: Vec<u64>,
    pub(super) scratch: u64,
}

/// Where a problem lies in device memory.
pub(super) struct Place {
    pub(super) addresses: Addresses,
    scratch: u64,
    /// Whether inputs may have been written since they were copied there.
    spoilt: bool,
}

impl Place {
    pub(super) fn of(emulator: &Emulator, images: &Images) -> Result<Self, String> {
        let fail = |error: MemoryError| error.to_string();
        let margin = || {
            emulator
                .allocate(MARGIN)
                .and_then(|address| emulator.free(address))
                .map_err(fail)
        };
        let allocate = |bytes: usize| emulator.allocate((bytes as u64).max(1)).map_err(fail);
        let buffer = |buffer: &Buffer| -> Result<u64, String> {
            margin()?;
            let mut first = 0;
            for (at, part) in buffer.parts.iter().enumerate() {
                let address = allocate(part.len())?;
                if at == 0 {
                    first = address.wrapping_sub(part.start as u64);
                }
                if address != first + part.start as u64 {
                    return Err("allocations are not as far apart as rows".into());
                }
            }
            Ok(first)
        };
        let addresses = Addresses {
            inputs: images.inputs.iter().map(buffer).collect::<Result<_, _>>()?,
            outputs: images
                .outputs
                .iter()
                .map(buffer)
                .collect::<Result<_, _>>()?,
            scratch: match images.scratch {
                0 => 0,
                bytes => margin().and_then(|()| allocate(bytes))?,
            },
        };
        margin()?;
        Ok(Self {
            addresses,
            scratch: images.scratch as u64,
            spoilt: true,
        })
    }

    /// Puts everything into memory as it is before a launch.
    pub(super) fn prepare(
        &mut self,
        emulator: &Emulator,
        images: &Images,
    ) -> Result<(), MemoryError> {
        let write = |(buffer, first): (&Buffer, &u64)| {
            let mut parts = buffer.parts.iter();
            parts.try_for_each(|part| {
                emulator.write(first + part.start as u64, &buffer.bytes[part.clone()])
            })
        };
        let Addresses {
            inputs, outputs, ..
        } = &self.addresses;
        if self.spoilt {
            images.inputs.iter().zip(inputs).try_for_each(write)?;
        }
        // Until the inputs are seen to be whole.
        self.spoilt = true;
        images.outputs.iter().zip(outputs).try_for_each(write)?;
        match self.scratch {
            0 => Ok(()),
            bytes => emulator.forget(self.addresses.scratch, bytes),
        }
    }

    /// What a launch left, and whether it changed an input.
    pub(super) fn collect(
        &mut self,
        emulator: &Emulator,
        images: &Images,
    ) -> Result<(Left, bool), MemoryError> {
        let read = |(buffer, first): (&Buffer, &u64)| {
            let mut found = buffer.bytes.clone();
            for part in &buffer.parts {
                emulator.read(first + part.start as u64, &mut found[part.clone()])?;
            }
            Ok(found)
        };
        let Addresses {
            inputs, outputs, ..
        } = &self.addresses;
        let mut spoilt = false;
        for (buffer, first) in images.inputs.iter().zip(inputs) {
            spoilt |= read((buffer, first))? != buffer.bytes;
        }
        self.spoilt = spoilt;
        let left: Result<Left, _> = images.outputs.iter().zip(outputs).map(read).collect();
        Ok((left?, spoilt))
    }
}
