//! A tensor, a map of it, and shared memory that boxes of it come to.
#![allow(dead_code)]

use super::common::{Run, kernel};
use flashtile_emulator::{AsyncTiming, ElementType, LaunchError, Options, TensorMap};

/// Shared memory: a tile at `s`, whose address is a multiple of 1024, and mbarriers.
pub const SHARED: &str = ".shared .align 1024 .b8 s[16384];\n.shared .align 8 .b64 m[4];";
pub const SHARED_BYTES: usize = 16384;

/// Thread 0 makes the mbarrier `%r40` (count 1), fills shared memory with bytes 0x11, runs `issue`; all wait for the
/// first phase, and copy shared memory to the third buffer.
pub fn load(issue: &str) -> String {
    format!(
        "mov.u32 %r40, m;\nmov.u32 %r41, s;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra WAIT;\n\
         mbarrier.init.shared.b64 [%r40], 1;\nfence.mbarrier_init.release.cluster;\n\
         mov.u32 %r42, 0;\nFILL: add.u32 %r43, %r41, %r42;\nst.shared.u32 [%r43], 0x11111111;\n\
         add.u32 %r42, %r42, 4;\nsetp.lt.u32 %p2, %r42, {SHARED_BYTES};\n@%p2 bra FILL;\n\
         fence.proxy.async.shared::cta;\n{issue}\n\
         WAIT: bar.sync 0;\nLOOP: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r40], 0;\n@!%p3 bra LOOP;\n\
         mov.u32 %r42, %r0;\nCOPY: shl.b32 %r44, %r42, 2;\nadd.u32 %r43, %r41, %r44;\nld.shared.u32 %r45, [%r43];\n\
         cvt.u64.u32 %d10, %r44;\nadd.s64 %d10, %d2, %d10;\nst.global.u32 [%d10], %r45;\nadd.u32 %r42, %r42, 32;\n\
         setp.lt.u32 %p2, %r42, {};\n@%p2 bra COPY;\n",
        SHARED_BYTES / 4
    )
}

/// A device with a tensor of that many bytes, a map, and a result.
pub struct Tensor {
    pub run: Run,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(bytes: usize, options: Options) -> Tensor {
        let device = flashtile_emulator::Emulator::new(options);
        let buffers = [bytes, 128, SHARED_BYTES].map(|n| device.allocate(n as u64).unwrap());
        let bytes: Vec<u8> = (0..bytes).map(|n| (n * 7 + n / 251 + 1) as u8).collect();
        device.write(buffers[0], &bytes).unwrap();
        let run = Run { device, buffers };
        Tensor { run, bytes }
    }

    pub fn timed(bytes: usize, timing: AsyncTiming) -> Tensor {
        Tensor::new(
            bytes,
            Options {
                async_copies: timing,
                ..Options::default()
            },
        )
    }

    pub fn set_map(&self, map: &TensorMap) {
        let map = map.encode().unwrap();
        self.run.device.write(self.run.buffers[1], &map).unwrap();
    }

    pub fn read(&self, buffer: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let address = self.run.buffers[buffer];
        self.run.device.read(address, &mut bytes).unwrap();
        bytes
    }

    pub fn launch(&self, body: &str) -> Result<Vec<u8>, LaunchError> {
        self.run.launch(&kernel(SHARED, body), 1, 32, 0)?;
        Ok(self.read(2, SHARED_BYTES))
    }
}

/// A simple map: 16 columns of 32-bit words, 8 rows.
pub fn words(tensor: &Tensor) -> TensorMap {
    TensorMap::new(
        ElementType::U32,
        tensor.run.buffers[0],
        &[16, 8],
        &[64],
        &[16, 8],
    )
}

pub const LOAD: &str = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r40], 512;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r41], [%d1, {0, 0}], [%r40];";
