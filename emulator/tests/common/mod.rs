//! What the tests share: a device, and kernels written as bodies.
#![allow(dead_code)]

use flashtile_emulator::{
    AsyncTiming, Emulator, Fault, Launch, LaunchError, Module, Options, Stats,
};

/// A module with one entry `k` that takes the addresses `a`, `b` and `c`, with plenty of registers: `%p`, `%h` (16
/// bits), `%r`, `%d` (64 bits), `%f`. `%d0`, `%d1`, `%d2` hold the addresses, `%r0` is the thread.
pub fn kernel(declarations: &str, body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n{declarations}\n\
         .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c)\n{{\n\
         .reg .pred %p<20>;\n.reg .b16 %h<20>;\n.reg .b32 %r<100>;\n.reg .b64 %d<40>;\n.reg .f32 %f<40>;\n\
         ld.param.u64 %d0, [a];\nld.param.u64 %d1, [b];\nld.param.u64 %d2, [c];\nmov.u32 %r0, %tid.x;\n\
         //BODY\n{body}\nret;\n}}\n"
    )
}

/// The line of the text that contains this.
pub fn line_of(text: &str, part: &str) -> u32 {
    text.lines().position(|l| l.contains(part)).unwrap() as u32 + 1
}

pub struct Run {
    pub device: Emulator,
    pub buffers: [u64; 3],
}

impl Run {
    pub fn new(options: Options) -> Self {
        let device = Emulator::new(options);
        let buffers = [0; 3].map(|_| device.allocate(4096).unwrap());
        for b in buffers {
            device.fill(b, 4096, 0).unwrap();
        }
        Run { device, buffers }
    }

    pub fn timing(timing: AsyncTiming) -> Self {
        Run::new(Options {
            async_copies: timing,
            ..Options::default()
        })
    }

    pub fn put(&self, buffer: usize, values: &[u32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.device.write(self.buffers[buffer], &bytes).unwrap();
    }

    pub fn get(&self, buffer: usize, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.device.read(self.buffers[buffer], &mut bytes).unwrap();
        bytes
            .chunks(4)
            .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    }

    pub fn launch(
        &self,
        text: &str,
        grid: u32,
        block: u32,
        shared: u32,
    ) -> Result<Stats, LaunchError> {
        self.launch_clusters(text, [grid, 1, 1], None, block, shared)
    }

    pub fn launch_clusters(
        &self,
        text: &str,
        grid: [u32; 3],
        cluster: Option<[u32; 3]>,
        block: u32,
        shared: u32,
    ) -> Result<Stats, LaunchError> {
        let module = Module::parse(text).map_err(LaunchError::Decode)?;
        let params: Vec<u8> = self.buffers.iter().flat_map(|b| b.to_le_bytes()).collect();
        let launch = Launch {
            grid,
            block: [block, 1, 1],
            cluster,
            dynamic_shared: shared,
            params: &params,
        };
        self.device.launch(&module, "k", &launch)
    }
}

/// Runs a body with one block, and returns the first words of the first buffer.
pub fn run(declarations: &str, body: &str, block: u32) -> Vec<u32> {
    let run = Run::new(Options::default());
    run.launch(&kernel(declarations, body), 1, block, 0)
        .unwrap();
    run.get(0, block as usize)
}

/// Runs a body that must fault.
pub fn fault(declarations: &str, body: &str, block: u32) -> Fault {
    let run = Run::new(Options {
        max_instructions: Some(100_000),
        ..Options::default()
    });
    match run.launch(&kernel(declarations, body), 1, block, 0) {
        Err(LaunchError::Fault(fault)) => *fault,
        other => panic!("{other:?}"),
    }
}

/// Stores `%r9` to the thread's word of the first buffer.
pub const STORE: &str =
    "\nmul.wide.u32 %d9, %r0, 4;\nadd.s64 %d9, %d0, %d9;\nst.global.u32 [%d9], %r9;\n";
