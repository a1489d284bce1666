//! Cases of copies of blocks.

use flashtile::{
    Device, DeviceBuffer, Stream,
    cache::{BlocksLayout, CachePair, CopyProblem, IndexType},
};
use flashtile_verify::data::Random;
use proptest::{prelude::*, sample::select};

/// A case of copying blocks.
#[derive(Clone, Debug)]
pub struct BlocksCase {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes between blocks that are read, and between those that are written.
    pub gaps: [usize; 2],
    /// Blocks that are read, and that are written.
    pub blocks: [usize; 2],
    /// Whether blocks that are written are in descending order in memory.
    pub backwards: bool,
    /// Whether one cache is both.
    pub within: bool,
    /// Caches.
    pub caches: usize,
    /// Bytes before each buffer's first block.
    pub offset: usize,
    /// What the numbers are.
    pub index: IndexType,
    /// Whether some of the numbers are wild.
    pub hostile: bool,
    /// Of numbers and bytes.
    pub seed: u64,
}

/// Strategy of cases.
pub fn blocks_case() -> impl Strategy<Value = BlocksCase> {
    let sizes = (
        select(vec![1usize, 7, 16, 48, 100, 2048, 8192, 8200, 20_000]),
        select(vec![[0, 0], [16, 0], [0, 3], [32, 48]]),
        [1usize..6, 1usize..6],
        select(vec![1usize, 2, 3]),
        select(vec![0usize, 16, 1, 8]),
    );
    let flags = (any::<[bool; 4]>(), any::<u64>());
    (sizes, flags).prop_map(|(sizes, ([backwards, within, wide, hostile], seed))| {
        let (block_bytes, gaps, blocks, caches, offset) = sizes;
        BlocksCase {
            block_bytes,
            gaps: if within { [gaps[0]; 2] } else { gaps },
            blocks: if within { [blocks[0]; 2] } else { blocks },
            backwards: backwards && !within,
            within,
            caches,
            offset,
            index: if wide { IndexType::I64 } else { IndexType::I32 },
            hostile,
            seed,
        }
    })
}

impl BlocksCase {
    fn layouts(&self) -> [BlocksLayout; 2] {
        [0, 1].map(|side| {
            let stride = (self.block_bytes + self.gaps[side]) as i64;
            BlocksLayout {
                blocks: self.blocks[side],
                stride: match side == 1 && self.backwards {
                    true => -stride,
                    false => stride,
                },
            }
        })
    }

    /// Pairs of numbers. Those that are blocks are written once, and within a cache not read then.
    pub fn pairs(&self) -> Vec<[i64; 2]> {
        let mut random = Random::new(self.seed);
        let order = random.permutation(self.blocks[1]);
        let (written, read) = order.split_at(self.blocks[1].div_ceil(2));
        let mut pairs: Vec<[i64; 2]> = written
            .iter()
            .map(|&to| {
                let from = match (self.within, read.is_empty()) {
                    (true, true) => to,
                    (true, false) => read[random.below(read.len())],
                    (false, _) => random.below(self.blocks[0]),
                };
                [from as i64, to as i64]
            })
            .collect();
        if self.hostile {
            for pair in &mut pairs {
                for (number, blocks) in pair.iter_mut().zip(self.blocks) {
                    let wild = match self.index {
                        IndexType::I32 => vec![-1, blocks as i64, i32::MIN.into(), i32::MAX.into()],
                        IndexType::I64 => vec![-1, *number + (1 << 32), i64::MIN, i64::MAX],
                    };
                    if random.below(4) == 0 {
                        *number = wild[random.below(wild.len())];
                    }
                }
            }
        }
        pairs
    }

    /// The problem.
    pub fn problem(&self) -> CopyProblem {
        let [src, dst] = self.layouts();
        CopyProblem {
            pairs: self.pairs().len(),
            index: self.index,
            block_bytes: self.block_bytes,
            src,
            dst,
        }
    }

    /// Bytes from a buffer's first to a block's first.
    fn at(&self, side: usize, block: usize) -> usize {
        let stride = self.block_bytes + self.gaps[side];
        let place = match side == 1 && self.backwards {
            true => self.blocks[side] - 1 - block,
            false => block,
        };
        self.offset + place * stride
    }

    fn bytes(&self, side: usize) -> usize {
        let last = self.blocks[side] - 1;
        let stride = self.block_bytes + self.gaps[side];
        self.offset + last * stride + self.block_bytes
    }

    /// Copies on a device, and compares all bytes with what plain Rust makes of them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, device: &dyn Device) -> Result<(), String> {
        let text = |error: flashtile::Error| error.to_string();
        let pairs = self.pairs();
        let plan = self.problem().plan(device.info()).map_err(text)?;
        let numbers: Vec<u8> = match self.index {
            IndexType::I64 => pairs
                .iter()
                .flatten()
                .flat_map(|n| n.to_le_bytes())
                .collect(),
            IndexType::I32 => {
                let narrow = pairs.iter().flatten().map(|&n| n as i32);
                narrow.flat_map(|n| n.to_le_bytes()).collect()
            }
        };
        let numbers = DeviceBuffer::from_bytes(device, &numbers).map_err(text)?;
        let mut random = Random::new(self.seed ^ 1);
        let (mut buffers, mut expected, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.caches {
            let mut image = |side: usize| -> Vec<u8> {
                (0..self.bytes(side)).map(|_| random.bits() as u8).collect()
            };
            let src = image(0);
            let mut dst = if self.within { src.clone() } else { image(1) };
            let sides: Vec<_> = match self.within {
                true => vec![DeviceBuffer::from_bytes(device, &src).map_err(text)?],
                false => vec![
                    DeviceBuffer::from_bytes(device, &src).map_err(text)?,
                    DeviceBuffer::from_bytes(device, &dst).map_err(text)?,
                ],
            };
            let address =
                |side: usize, buffer: &DeviceBuffer<'_>| buffer.address() + self.at(side, 0) as u64;
            addresses.push(CachePair {
                src: address(0, &sides[0]),
                dst: address(1, &sides[sides.len() - 1]),
            });
            for &[from, to] in &pairs {
                let is_block = |n: i64, side: usize| (0..self.blocks[side] as i64).contains(&n);
                if is_block(from, 0) && is_block(to, 1) {
                    let (from, to) = (self.at(0, from as usize), self.at(1, to as usize));
                    let bytes = &src[from..from + self.block_bytes];
                    dst[to..to + self.block_bytes].copy_from_slice(bytes);
                }
            }
            expected.push([src, dst]);
            buffers.push(sides);
        }
        // SAFETY: each buffer is allocated on this device and has room for its blocks, and nothing else knows of it.
        unsafe { plan.launch(device, Stream::DEFAULT, numbers.address(), &addresses) }
            .map_err(text)?;
        device.synchronize().map_err(text)?;
        for (cache, (sides, [src, dst])) in buffers.iter().zip(expected).enumerate() {
            let expected = if self.within {
                vec![dst]
            } else {
                vec![src, dst]
            };
            for (side, (buffer, expected)) in sides.iter().zip(expected).enumerate() {
                let found = buffer.to_vec().map_err(text)?;
                if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
                    return Err(format!("byte {at} of side {side} of cache {cache}"));
                }
            }
        }
        Ok(())
    }
}
