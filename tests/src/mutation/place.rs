//! A problem's tensors in the memory of an emulator.

use std::ops::Range;

use flashtile::Pointers;
use flashtile_emulator::{Emulator, MemoryError};

use super::problems::Problem;
use crate::{
    data::Tensors,
    memory::{Image, images, lse_image, scale_image, scale_origin},
};

/// Free bytes on either side of every tensor, so that a stray access is seen.
const MARGIN: u64 = 256 << 10;

/// Everything that a launch finds in memory.
pub(super) struct Images {
    /// q, k, v and out.
    pub(super) tensors: [Image; 4],
    /// The log-sum-exp. There is a buffer even if none is wanted: it must stay as it is.
    pub(super) lse: Vec<u8>,
    lse_wanted: bool,
    /// Scales of q, k and v.
    scales: [Vec<f32>; 3],
    /// The bytes of each tensor that lie together.
    parts: [Vec<Range<usize>>; 4],
}

impl Images {
    pub(super) fn of(problem: &Problem, values: &Tensors) -> Self {
        let case = &problem.case;
        let tensors = images(case, values);
        let parts = std::array::from_fn(|i| {
            let bytes = tensors[i].bytes.len();
            if !problem.rows_apart {
                return vec![Range {
                    start: 0,
                    end: bytes,
                }];
            }
            let rows = (0..bytes).step_by(Problem::ROW_DISTANCE);
            let width = bytes % Problem::ROW_DISTANCE;
            rows.map(|begin| begin..begin + width).collect()
        });
        Self {
            tensors,
            lse: lse_image(case.shape.batch * case.shape.heads_q * case.shape.seqlen_q),
            lse_wanted: problem.lse,
            scales: values.scales.clone(),
            parts,
        }
    }
}

/// What a launch left in memory: the whole buffers of out and lse, gaps included.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) out: Vec<u8>,
    pub(super) lse: Vec<u8>,
}

/// Where a problem lies in device memory.
pub(super) struct Place {
    /// First bytes of q, k, v and out.
    tensors: [u64; 4],
    lse: u64,
    /// What the kernel is told.
    pub(super) pointers: Pointers,
    /// Whether q, k and v may have been written since they were copied there.
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
        let mut tensors = [0; 4];
        for (first, parts) in tensors.iter_mut().zip(&images.parts) {
            margin()?;
            for (at, part) in parts.iter().enumerate() {
                let address = allocate(part.len())?;
                if at == 0 {
                    *first = address;
                }
                if address != *first + part.start as u64 {
                    return Err("allocations are not as far apart as rows".into());
                }
            }
        }
        margin()?;
        let lse = allocate(images.lse.len())?;
        margin()?;
        let mut scales = [0; 3];
        for (scale, values) in scales.iter_mut().zip(&images.scales) {
            let bytes = scale_image(values);
            let address = allocate(bytes.len())?;
            emulator.write(address, &bytes).map_err(fail)?;
            *scale = scale_origin(values, address);
            margin()?;
        }
        let [q_scale, k_scale, v_scale] = scales;
        let [q, k, v, out] = std::array::from_fn(|i| images.tensors[i].origin(tensors[i]));
        let pointers = Pointers {
            q,
            k,
            v,
            out,
            lse: images.lse_wanted.then_some(lse),
            q_scale,
            k_scale,
            v_scale,
            ..Pointers::default()
        };
        Ok(Self {
            tensors,
            lse,
            pointers,
            spoilt: true,
        })
    }

    /// Puts everything into memory as it is before a launch.
    pub(super) fn prepare(
        &mut self,
        emulator: &Emulator,
        images: &Images,
    ) -> Result<(), MemoryError> {
        let first = if self.spoilt { 0 } else { 3 };
        for i in first..4 {
            for part in &images.parts[i] {
                let bytes = &images.tensors[i].bytes[part.clone()];
                emulator.write(self.tensors[i] + part.start as u64, bytes)?;
            }
        }
        // Until the inputs are seen to be whole.
        self.spoilt = true;
        emulator.write(self.lse, &images.lse)
    }

    /// What a launch left, and whether it changed an input.
    pub(super) fn collect(
        &mut self,
        emulator: &Emulator,
        images: &Images,
    ) -> Result<(Left, bool), MemoryError> {
        let mut spoilt = false;
        let mut found = images.tensors[3].bytes.clone();
        let mut input = Vec::new();
        for i in 0..4 {
            for part in &images.parts[i] {
                let address = self.tensors[i] + part.start as u64;
                if i == 3 {
                    emulator.read(address, &mut found[part.clone()])?;
                } else {
                    input.resize(part.len(), 0);
                    emulator.read(address, &mut input)?;
                    spoilt |= input != images.tensors[i].bytes[part.clone()];
                }
            }
        }
        self.spoilt = spoilt;
        let mut lse = vec![0; images.lse.len()];
        emulator.read(self.lse, &mut lse)?;
        Ok((Left { out: found, lse }, spoilt))
    }
}
