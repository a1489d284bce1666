//! How often shared memory would have to be accessed for one instruction of a warp.

use super::{Cluster, SHARED_WINDOW};
use crate::error::Space;
use crate::program::{WARP, Wide};

/// Banks of shared memory, each of which gives or takes one word of four bytes at a time.
const BANKS: usize = 32;

impl Cluster<'_, '_> {
    /// Adds an access of `bytes` bytes a lane to the launch's wavefronts, if they are counted. It has been found legal.
    #[inline(always)]
    pub(super) fn count_banks(
        &mut self,
        space: Space,
        addresses: &Wide,
        active: u32,
        bytes: usize,
    ) {
        if self.machine.count_bank_conflicts {
            self.add_wavefronts(space, addresses, active, bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn add_wavefronts(&mut self, space: Space, addresses: &Wide, active: u32, bytes: usize) {
        let active = match space {
            Space::Shared | Space::Cluster => active,
            Space::Generic => {
                addresses.iter().enumerate().fold(0, |mask, (lane, a)| {
                    mask | u32::from(a >> 56 << 56 == SHARED_WINDOW) << lane
                }) & active
            }
            _ => 0,
        };
        let [needed, least] = wavefronts(addresses, active, bytes);
        self.stats.shared_wavefronts += needed;
        self.stats.shared_wavefronts_least += least;
    }
}

/// The wavefronts of an access, and the fewest that as many lanes could do with: see
/// [`Stats::shared_wavefronts`](crate::Stats::shared_wavefronts).
fn wavefronts(addresses: &Wide, active: u32, bytes: usize) -> [u64; 2] {
    let together = (4 * BANKS / bytes.max(1)).clamp(1, WARP);
    let [mut needed, mut least] = [0; 2];
    for first in (0..WARP).step_by(together) {
        let mut words: Vec<u64> = (first..first + together)
            .filter(|lane| active >> lane & 1 != 0)
            .flat_map(|lane| {
                let address = addresses[lane];
                address / 4..(address + bytes as u64).div_ceil(4)
            })
            .collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0; BANKS];
        for word in words {
            banks[word as usize % BANKS] += 1;
        }
        let most = banks.into_iter().max().unwrap_or(0);
        needed += most;
        least += most.min(1);
    }
    [needed, least]
}
