//! What the pipes of a multiprocessor can do in a cycle, and how long they need for a loop.
//!
//! The model counts throughput only: no latencies, no dependences, no bank conflicts, no clock that sinks under load. It
//! says what a loop cannot be faster than, and which pipe says so. Numbers are for one of the four sub-partitions of a
//! multiprocessor. Sources:
//!
//! - *Tensor cores.* H100 SXM: 989.4 TFLOP/s dense in f16 and bf16, 132 multiprocessors, 1.83 GHz (NVIDIA's H100 white
//!   paper): 989.4e12 / (132 * 1.83e9) = 4096 FLOP a cycle, 2048 multiplications, 512 a sub-partition. The H200 has the same
//!   multiprocessors. So `HGMMA.64xNx16`, of which each sub-partition computes 16 rows, takes 16 * N * 16 / 512 = N / 2
//!   cycles. fp8 is twice as fast (1978.9 TFLOP/s), tf32 half (494.7). A100: 312 TFLOP/s, 108 multiprocessors, 1.41 GHz: 2048
//!   FLOP a cycle, 256 multiplications a sub-partition; tf32 half of it (156).
//! - *XU, FMA, ALU.* The table of arithmetic throughput in the CUDA C++ programming guide, results a cycle and
//!   multiprocessor: ex2, lg2, rcp 16 on both; f32 add, multiply, multiply-add 64 (8.0), 128 (9.0); 32-bit integer
//!   multiply-add 64; integer addition, comparison, minimum, maximum, logic, shifts 64. A quarter of it a sub-partition: 8
//!   cycles for a MUFU, 2 for an FMNMX.
//! - *The two halves of the FMA pipe* of compute capability 9.0: the heavy one executes IMAD and f32, the light one f32 only,
//!   each 16 lanes wide; on 8.0 there is one (an NVIDIA engineer in the developer forum, thread 302018).
//! - *F2FP* (f32 to packed bf16 or f16) runs on the ALU at half its rate, a warp's in 4 cycles: measured on a B300 by a third
//!   party (ademeure/QuickRunCUDA, B300_PIPE_CATALOG.md). **Not verified on Hopper or Ampere**, for which the same is assumed.
//! - *Shared memory* delivers 128 bytes a cycle to a multiprocessor. A wgmma reads b from it, and a unless a is in registers;
//!   that each byte is read once for all four warps is an assumption.
//! - *Issue*: one warp instruction a cycle.

use super::class::{Class, Pipe, Product};
use super::parse::Instruction;

/// The rates of one sub-partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The GPU that the rates are of.
    pub name: &'static str,
    /// Multiplications of 16-bit operands a cycle.
    tensor: u32,
    /// Whether the FMA pipe has a light half beside the heavy one.
    light_half: bool,
}

impl Machine {
    /// The GPU for which code of this target is made.
    pub fn of(arch: &str) -> Self {
        if arch.starts_with("sm_9") {
            Self {
                name: "H100 (sm_90)",
                tensor: 512,
                light_half: true,
            }
        } else {
            Self {
                name: "A100 (sm_80)",
                tensor: 256,
                light_half: false,
            }
        }
    }

    /// Cycles in which a sub-partition's tensor core computes a product.
    fn tensor_cycles(&self, product: &Product) -> u32 {
        let work = product.multiplications();
        let rate = u64::from(self.tensor * 16 / product.bits.max(1)).max(1);
        u32::try_from(work.div_ceil(rate)).unwrap_or(u32::MAX)
    }

    /// How long each pipe needs for these instructions of one warp.
    pub fn cycles<'a>(&self, instructions: impl Iterator<Item = &'a Instruction>) -> Cycles {
        let mut cycles = Cycles::default();
        let (mut heavy, mut either) = (0, 0);
        for instruction in instructions {
            cycles.issue += 1;
            match Pipe::of(instruction) {
                Pipe::Tensor => {
                    if let Some(product) = Product::of(instruction) {
                        cycles.tensor += self.tensor_cycles(&product);
                        cycles.shared += product.shared_bytes().div_ceil(128);
                    }
                }
                Pipe::Xu => cycles.xu += 8,
                Pipe::Fma => either += 1,
                Pipe::FmaHeavy => heavy += 1,
                Pipe::Alu => cycles.alu += 2,
                Pipe::AluHalf => cycles.alu += 4,
                // The same of each of the four warps that run side by side.
                Pipe::Shared => cycles.shared += 4 * wavefronts(instruction),
                Pipe::IssueOnly => {}
            }
        }
        cycles.fma = if self.light_half {
            (2 * heavy).max(heavy + either)
        } else {
            2 * (heavy + either)
        };
        cycles
    }
}

/// Passes of 128 bytes that a warp's access to shared memory takes, without conflicts.
fn wavefronts(instruction: &Instruction) -> u32 {
    let matrices = |i: &Instruction| i.opcode.rsplit('.').next().and_then(|n| n.parse().ok());
    match instruction.base() {
        "LDSM" | "STSM" => matrices(instruction).filter(|n| *n <= 4).unwrap_or(1),
        _ if instruction.has("128") => 4,
        _ if instruction.has("64") => 2,
        _ => 1,
    }
}

/// Cycles of each pipe. A sub-partition's are for one warp; shared memory's for four warps, one a sub-partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cycles {
    /// Issue slots: instructions.
    pub issue: u32,
    /// The tensor core.
    pub tensor: u32,
    /// Transcendental functions.
    pub xu: u32,
    /// The FMA pipe.
    pub fma: u32,
    /// The ALU.
    pub alu: u32,
    /// Shared memory.
    pub shared: u32,
}

impl Cycles {
    /// Every pipe's name and cycles, the tensor core first.
    pub fn pipes(&self) -> [(&'static str, u32); 6] {
        [
            ("tensor", self.tensor),
            ("issue", self.issue),
            ("mufu", self.xu),
            ("fma", self.fma),
            ("alu", self.alu),
            ("shared", self.shared),
        ]
    }

    /// The pipe that limits the loop if everything overlaps, and its cycles; the first one of equals.
    pub fn bound(&self) -> (&'static str, u32) {
        let pipes = self.pipes();
        let most = pipes.iter().map(|(_, c)| *c).max().unwrap_or(0);
        let found = pipes.into_iter().find(|(_, c)| *c == most);
        found.unwrap_or(("tensor", 0))
    }

    /// Share of the tensor core's peak, from 0 to 1, if everything overlaps.
    pub fn best_utilisation(&self) -> f64 {
        ratio(self.tensor, self.bound().1)
    }

    /// Share of the tensor core's peak if nothing else runs while it does, as with one warp that waits for its products.
    pub fn alone_utilisation(&self) -> f64 {
        let others = [self.issue, self.xu, self.fma, self.alu];
        let rest = others.into_iter().max().unwrap_or(0);
        ratio(self.tensor, self.tensor + rest)
    }
}

fn ratio(part: u32, whole: u32) -> f64 {
    if whole == 0 {
        0.0
    } else {
        f64::from(part) / f64::from(whole)
    }
}

/// Instructions by class, in the order of [`Class::ALL`].
pub fn by_class<'a>(instructions: impl Iterator<Item = &'a Instruction>) -> [u32; 14] {
    let mut counts = [0; Class::ALL.len()];
    for instruction in instructions {
        counts[Class::of(instruction) as usize] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(lines: &[(&str, usize)]) -> Vec<Instruction> {
        let one = |text: &str| {
            let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
            Instruction {
                opcode: opcode.to_owned(),
                operands: operands.to_owned(),
                ..Instruction::default()
            }
        };
        let many = lines.iter().flat_map(|(t, n)| vec![one(t); *n]);
        many.collect()
    }

    /// FlashAttention-3's causal loop at head_dim 128, as far as its mix is published (64 x 128 keys).
    fn published() -> Vec<Instruction> {
        code(&[
            ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], R24", 8),
            (
                "HGMMA.64x128x16.F32.BF16 R88, R52, gdesc[UR8].tnspB, R88",
                8,
            ),
            ("FMNMX R1, R2, R3, !PT", 68),
            ("FMUL R1, R2, R3", 68),
            ("FFMA R1, R2, R3, R4", 66),
            ("MUFU.EX2 R1, R2", 66),
            ("FADD R1, R2, R3", 64),
            ("F2FP.BF16.F32.PACK_AB R1, R2, R3", 32),
            ("UMOV UR4, UR5", 20),
            ("UIADD3 UR4, UR5, 0x1, URZ", 17),
        ])
    }

    #[test]
    fn the_model_gives_what_the_arithmetic_gives() {
        let code = published();
        let cycles = Machine::of("sm_90a").cycles(code.iter());
        // 2 * 64 * 128 * 128 multiplications on four tensor cores of 512 a cycle.
        assert_eq!(cycles.tensor, 2 * 64 * 128 * 128 / (4 * 512));
        assert_eq!(cycles.xu, 66 * 8);
        assert_eq!(cycles.fma, 68 + 66 + 64);
        assert_eq!(cycles.alu, 68 * 2 + 32 * 4);
        assert_eq!(cycles.issue, 417);
        // 64 rows of Q, 128 of K and 128 of V, of 256 bytes each.
        assert_eq!(cycles.shared, (64 + 128 + 128) * 256 / 128);
        assert_eq!(cycles.bound(), ("tensor", 1024));
        assert!((cycles.best_utilisation() - 1.0).abs() < 1e-9);
        assert!((cycles.alone_utilisation() - 1024.0 / (1024.0 + 528.0)).abs() < 1e-9);
        let counts = by_class(code.iter());
        assert_eq!(counts.iter().sum::<u32>(), cycles.issue);
        assert_eq!(counts[Class::Uniform as usize], 37);
    }

    #[test]
    fn integer_multiplication_fills_the_heavy_half_only() {
        let code = code(&[("IMAD R1, R2, R3, R4", 10), ("FFMA R1, R2, R3, R4", 4)]);
        assert_eq!(Machine::of("sm_90a").cycles(code.iter()).fma, 20);
        assert_eq!(Machine::of("sm_80").cycles(code.iter()).fma, 28);
    }

    #[test]
    fn ampere_s_products_take_eight_cycles() {
        let code = code(&[
            ("HMMA.16816.F32.BF16 R4, R8, R10, R4", 1),
            ("HMMA.1688.F32.TF32 R4, R8, R10, R4", 1),
            ("LDSM.16.M88.4 R4, [R8]", 1),
            ("LDS.64 R4, [R8]", 1),
            ("SHFL.BFLY PT, R4, R8, 0x1, 0x1f", 1),
        ]);
        let cycles = Machine::of("sm_80").cycles(code.iter());
        assert_eq!((cycles.tensor, cycles.shared), (16, 4 * (4 + 2 + 1)));
    }

    #[test]
    fn every_class_has_its_place_in_the_tables() {
        for (place, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, place);
        }
    }
}
