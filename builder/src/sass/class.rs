//! What kind an instruction is, which pipe executes it, and how much a tensor-core instruction multiplies.

use super::parse::Instruction;

/// Kinds of instructions, as the tables list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Tensor-core products.
    Tensor,
    /// Exponentials, logarithms, reciprocals.
    Mufu,
    /// Floating-point multiplication and addition.
    Fma,
    /// Integer multiplication and what else runs as one: IMAD, IDP.
    Imad,
    /// Comparisons, selections, maxima, integer addition, logic, shifts, permutations.
    Alu,
    /// Conversions between types.
    Convert,
    /// The uniform datapath, and transfers to it.
    Uniform,
    /// Loads and stores of shared memory.
    Shared,
    /// Loads and stores of global memory, and asynchronous copies.
    Global,
    /// Exchange among the lanes of a warp.
    Shuffle,
    /// Barriers, fences, waits.
    Sync,
    /// Branches, and what prepares them.
    Control,
    /// Copies of registers and constants, IMAD and HFMA2 as copies included.
    Move,
    /// Everything else.
    Other,
}

impl Class {
    /// Every class, in the order of the tables.
    pub const ALL: [Self; 14] = [
        Self::Tensor,
        Self::Mufu,
        Self::Fma,
        Self::Imad,
        Self::Alu,
        Self::Convert,
        Self::Uniform,
        Self::Shared,
        Self::Global,
        Self::Shuffle,
        Self::Sync,
        Self::Control,
        Self::Move,
        Self::Other,
    ];

    /// Name in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Mufu => "mufu",
            Self::Fma => "fma",
            Self::Imad => "imad",
            Self::Alu => "alu",
            Self::Convert => "convert",
            Self::Uniform => "uniform",
            Self::Shared => "shared",
            Self::Global => "global",
            Self::Shuffle => "shuffle",
            Self::Sync => "sync",
            Self::Control => "control",
            Self::Move => "move",
            Self::Other => "other",
        }
    }

    /// The class of an instruction.
    pub fn of(instruction: &Instruction) -> Self {
        match instruction.base() {
            "HGMMA" | "QGMMA" | "IGMMA" | "BGMMA" | "HMMA" | "QMMA" | "IMMA" | "BMMA" | "DMMA" => {
                Self::Tensor
            }
            "MUFU" => Self::Mufu,
            "IMAD" | "HFMA2" if is_move(instruction) => Self::Move,
            "FFMA" | "FMUL" | "FADD" | "FFMA32I" | "FMUL32I" | "FADD32I" | "FSWZADD" | "HFMA2"
            | "HADD2" | "HMUL2" => Self::Fma,
            "IMAD" | "IDP" | "IDP4A" | "IMUL" => Self::Imad,
            "FMNMX" | "FSETP" | "FSET" | "FSEL" | "FCHK" | "ISETP" | "IMNMX" | "IADD3" | "IADD"
            | "IABS" | "LOP3" | "LOP" | "PLOP3" | "SEL" | "PRMT" | "SHF" | "SHL" | "SHR"
            | "LEA" | "SGXT" | "BMSK" | "P2R" | "R2P" | "PSETP" | "LEPC" | "HMNMX2" | "HSETP2"
            | "HSET2" | "VIADD" | "VIADDMNMX" | "VIMNMX" | "VIMNMX3" | "VHMNMX" | "POPC"
            | "FLO" | "BREV" => Self::Alu,
            "F2FP" | "F2F" | "F2I" | "F2IP" | "I2F" | "I2FP" | "I2I" | "I2IP" | "FRND" => {
                Self::Convert
            }
            "LDS" | "STS" | "LDSM" | "STSM" | "ATOMS" => Self::Shared,
            "LDG" | "STG" | "LD" | "ST" | "LDGSTS" | "RED" | "REDG" | "ATOM" | "ATOMG" | "STAS"
            | "REDAS" | "CCTL" | "UTMALDG" | "UTMASTG" | "UTMAREDG" | "UTMAPF" | "UTMACCTL"
            | "UBLKCP" | "UBLKRED" | "UBLKPF" => Self::Global,
            "SHFL" | "VOTE" | "VOTEU" | "MATCH" | "REDUX" | "ELECT" => Self::Shuffle,
            "BAR" | "B2R" | "SYNCS" | "WARPGROUP" | "DEPBAR" | "LDGDEPBAR" | "WARPSYNC"
            | "MEMBAR" | "FENCE" | "ERRBAR" | "CGAERRBAR" | "ARRIVES" | "USETMAXREG"
            | "UCGABAR_ARV" | "UCGABAR_WAIT" | "UTMACMDFLUSH" | "ACQBULK" | "ENDCOLLECTIVE"
            | "NANOSLEEP" | "WARPGROUPSET" | "PREEXIT" => Self::Sync,
            "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "CALL" | "RET" | "EXIT" | "BSSY" | "BSYNC"
            | "BREAK" | "BMOV" | "NOP" | "YIELD" | "KILL" | "BPT" | "RPCMOV" | "PMTRIG" => {
                Self::Control
            }
            "MOV" | "MOV32I" | "CS2R" | "S2R" | "LDC" | "MOVM" => Self::Move,
            "R2UR" | "S2UR" => Self::Uniform,
            // The rest that begins with U is the scalar twin of something: UMOV, UIADD3, ULDC.
            base if base.starts_with('U') => Self::Uniform,
            _ => Self::Other,
        }
    }
}

/// Whether an IMAD or HFMA2 only copies: `IMAD.MOV.U32 R7, RZ, RZ, R6`, `HFMA2 R0, -RZ, RZ, 0, 0`. With `.X` it adds a carry.
fn is_move(instruction: &Instruction) -> bool {
    let operands = instruction.operand_list();
    let zero = |at: usize| {
        let operand = operands.get(at).copied().unwrap_or_default();
        operand.trim_start_matches('-').split('.').next() == Some("RZ")
    };
    // Where the product is, after the result and the predicates of a carry.
    zero(1) && zero(2) && !instruction.has("X")
}

/// The pipe of a sub-partition that executes an instruction, as far as it can limit a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    /// The tensor core.
    Tensor,
    /// Transcendental functions and slow conversions.
    Xu,
    /// Floating-point multiplication and addition, on either half of the FMA pipe where it has two.
    Fma,
    /// What only the heavy half of the FMA pipe executes.
    FmaHeavy,
    /// Integers, comparisons, selections.
    Alu,
    /// What the ALU executes at half its rate.
    AluHalf,
    /// Shared memory and its crossbar.
    Shared,
    /// Nothing that this model counts but the issue slot.
    IssueOnly,
}

impl Pipe {
    /// The pipe of an instruction. [`super::machine`] says where this is known from.
    pub fn of(instruction: &Instruction) -> Self {
        match Class::of(instruction) {
            Class::Tensor => Self::Tensor,
            Class::Mufu => Self::Xu,
            Class::Fma => match instruction.base() {
                "HADD2" if instruction.has("F32") => Self::FmaHeavy,
                _ => Self::Fma,
            },
            Class::Imad => Self::FmaHeavy,
            Class::Alu => match instruction.base() {
                "POPC" | "FLO" | "BREV" => Self::Xu,
                _ => Self::Alu,
            },
            Class::Convert => match instruction.base() {
                "F2FP" => Self::AluHalf,
                "F2IP" | "I2FP" | "I2IP" => Self::Alu,
                _ => Self::Xu,
            },
            Class::Shared => Self::Shared,
            Class::Shuffle if instruction.base() == "SHFL" => Self::Shared,
            Class::Move => match instruction.base() {
                "IMAD" => Self::FmaHeavy,
                "HFMA2" => Self::Fma,
                "MOV" => Self::Alu,
                _ => Self::IssueOnly,
            },
            _ => Self::IssueOnly,
        }
    }
}

/// One tensor-core instruction, as its opcode states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of the result that one warp holds.
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Length of the sums.
    pub k: u32,
    /// Bits of an operand's element.
    pub bits: u32,
    /// Whether all four warps of a warpgroup execute it together, with b in shared memory.
    pub warpgroup: bool,
    /// Whether a comes from shared memory as well.
    pub a_shared: bool,
}

impl Product {
    /// Reads a tensor-core instruction; none if it is no product, or not one that is known here.
    ///
    /// ptxas closes a group with a product into RZ where nothing else can carry the group's barrier; it computes
    /// nothing.
    pub fn of(instruction: &Instruction) -> Option<Self> {
        if Class::of(instruction) != Class::Tensor {
            return None;
        }
        let operands = instruction.operand_list();
        if operands.first() == Some(&"RZ") {
            return None;
        }
        let shape = instruction.opcode.split('.').nth(1)?;
        let bits = match instruction.base() {
            "QGMMA" | "IGMMA" | "QMMA" | "IMMA" => 8,
            _ if instruction.has("TF32") => 32,
            "HGMMA" | "HMMA" => 16,
            _ => return None,
        };
        let warpgroup = instruction.base().ends_with("GMMA");
        let (m, n, k) = if warpgroup {
            let mut sizes = shape.split('x').map(|s| s.parse::<u32>().ok());
            // A warp holds a quarter of the rows.
            (sizes.next()?? / 4, sizes.next()??, sizes.next()??)
        } else {
            match shape {
                "1684" => (16, 8, 4),
                "1688" => (16, 8, 8),
                "16816" => (16, 8, 16),
                "16832" => (16, 8, 32),
                _ => return None,
            }
        };
        Some(Self {
            m,
            n,
            k,
            bits,
            warpgroup,
            // `gdesc[UR4]` holds both descriptors, or that of b alone behind a's registers.
            a_shared: warpgroup && operands.get(1).is_some_and(|o| o.starts_with("gdesc")),
        })
    }

    /// Multiplications of one warp.
    pub fn multiplications(&self) -> u64 {
        u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    /// Bytes that a warpgroup's product reads from shared memory.
    pub fn shared_bytes(&self) -> u32 {
        let rows = if self.a_shared { 4 * self.m } else { 0 };
        if self.warpgroup {
            (rows + self.n) * self.k * self.bits / 8
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Instruction {
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        Instruction {
            opcode: opcode.to_owned(),
            operands: operands.to_owned(),
            ..Instruction::default()
        }
    }

    #[test]
    fn instructions_have_the_class_and_the_pipe_that_they_should() {
        for (text, class, pipe) in [
            (
                "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT",
                Class::Tensor,
                Pipe::Tensor,
            ),
            (
                "HMMA.16816.F32.BF16 R44, R120.reuse, R68, R44",
                Class::Tensor,
                Pipe::Tensor,
            ),
            ("MUFU.EX2 R220, R172", Class::Mufu, Pipe::Xu),
            ("FFMA R62, R62, c[0x0][0x21c], R238", Class::Fma, Pipe::Fma),
            ("HADD2.F32 R3, -RZ, R2.H0_H0", Class::Fma, Pipe::FmaHeavy),
            (
                "IMAD.MOV.U32 R7, RZ, RZ, 0x3000",
                Class::Move,
                Pipe::FmaHeavy,
            ),
            ("IMAD.U32 R6, RZ, RZ, UR6", Class::Move, Pipe::FmaHeavy),
            ("IMAD R7, R7, 0x100, R224", Class::Imad, Pipe::FmaHeavy),
            (
                "IMAD.U32.X R9, R9, 0x1, R12, P0",
                Class::Imad,
                Pipe::FmaHeavy,
            ),
            ("IMAD.X R57, RZ, RZ, UR16, P0", Class::Imad, Pipe::FmaHeavy),
            ("IMAD.IADD R9, R9, 0x1, R12", Class::Imad, Pipe::FmaHeavy),
            ("HFMA2.MMA R5, -RZ, RZ, 0, 0", Class::Move, Pipe::Fma),
            ("FMNMX R174, R174, R175, !PT", Class::Alu, Pipe::Alu),
            (
                "F2FP.BF16.F32.PACK_AB R196, R228, R223",
                Class::Convert,
                Pipe::AluHalf,
            ),
            ("I2F.U32.RP R0, c[0x0][0x208]", Class::Convert, Pipe::Xu),
            ("UMOV UR4, URZ", Class::Uniform, Pipe::IssueOnly),
            ("R2UR UR12, R8", Class::Uniform, Pipe::IssueOnly),
            ("UTMALDG.4D [UR8], [UR4]", Class::Global, Pipe::IssueOnly),
            (
                "LDSM.16.MT88.4 R60, [R236+0x6000]",
                Class::Shared,
                Pipe::Shared,
            ),
            (
                "SHFL.BFLY PT, R172, R175, 0x2, 0x1f",
                Class::Shuffle,
                Pipe::Shared,
            ),
            (
                "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR5+0x208], RZ",
                Class::Sync,
                Pipe::IssueOnly,
            ),
            (
                "WARPGROUP.DEPBAR.LE gsb0, 0x0",
                Class::Sync,
                Pipe::IssueOnly,
            ),
            (
                "USETMAXREG.DEALLOC.CTAPOOL 0x18",
                Class::Sync,
                Pipe::IssueOnly,
            ),
            ("BRA `(.L_x_1)", Class::Control, Pipe::IssueOnly),
            ("STL [R1], R2", Class::Other, Pipe::IssueOnly),
        ] {
            let instruction = read(text);
            assert_eq!(Class::of(&instruction), class, "{text}");
            assert_eq!(Pipe::of(&instruction), pipe, "{text}");
        }
    }

    #[test]
    fn products_are_read() {
        let product = |text: &str| Product::of(&read(text));
        let qk = product("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT");
        assert_eq!(
            qk,
            Some(Product {
                m: 16,
                n: 128,
                k: 16,
                bits: 16,
                warpgroup: true,
                a_shared: true
            })
        );
        assert_eq!(qk.map(|p| p.shared_bytes()), Some((64 + 128) * 16 * 2));
        let pv = product("HGMMA.64x96x16.F32 R88, R52, gdesc[UR8].tnspB, R88, gsb0");
        assert_eq!(pv.map(|p| p.shared_bytes()), Some(96 * 16 * 2));
        assert_eq!(pv.map(|p| p.multiplications()), Some(16 * 96 * 16));
        let fp8 = product("QGMMA.64x224x32.F32.E4M3.E4M3 R24, R8, gdesc[UR12], R24");
        assert_eq!(fp8.map(|p| (p.n, p.k, p.bits)), Some((224, 32, 8)));
        let tf32 = product("HMMA.1688.F32.TF32 R4, R8, R10, R4");
        assert_eq!(
            tf32.map(|p| (p.multiplications(), p.bits)),
            Some((1024, 32))
        );
        assert_eq!(
            product("HGMMA.64x8x16.F16 RZ, gdesc[URZ], RZ, !UPT, gsb0"),
            None
        );
        assert_eq!(product("HMMA.999 R4, R8, R10, R4"), None);
        assert_eq!(product("FFMA R4, R8, R10, R4"), None);
    }
}
