//! What warpgroups do: matrix products, and the division of registers.

use super::{Decoded, Decoder, Form};
use crate::parse::tree::Operand;
use crate::program::{Op, Wgmma, WgmmaA};
use crate::semantics::{Float, wgmma};

impl Decoder<'_> {
    pub(super) fn wgmma(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "wgmma.fence.sync.aligned" => return Ok(Op::WgmmaFence),
            "wgmma.commit_group.sync.aligned" => return Ok(Op::WgmmaCommit),
            "wgmma.wait_group.sync.aligned" => {
                let allowed = self.immediate(&form.operands[0])?;
                let allowed =
                    u32::try_from(allowed).map_err(|_| "the number of groups is out of range")?;
                return Ok(Op::WgmmaWait(allowed));
            }
            "setmaxnreg" => return self.setmaxnreg(form),
            _ => {}
        }
        let [shape, d_type, a_type, b_type] = form.mods else {
            return Err("a shape and three types were expected".to_owned());
        };
        let n: usize = shape[".m64n".len()..]
            .split('k')
            .next()
            .and_then(|n| n.parse().ok())
            .ok_or("a shape was expected")?;
        let format = |name: &str| match name {
            ".f16" => Float::F16,
            ".bf16" => Float::Bf16,
            ".tf32" => Float::Tf32,
            ".e4m3" => Float::E4m3,
            _ => Float::E5m2,
        };
        let (formats, narrow) = ([format(a_type), format(b_type)], *d_type == ".f16");
        let sixteen_bits = matches!(formats[0], Float::F16 | Float::Bf16);
        let d = self.fragment(&form.operands[0], if narrow { n / 4 } else { n / 2 }, true)?;
        let mut places = d.clone();
        places.sort_unstable();
        places.dedup();
        if places.len() != d.len() {
            return Err("a register stands twice in the accumulator".to_owned());
        }
        let a = match &form.operands[1] {
            vector @ Operand::Vector(_) => {
                let registers = self.fragment(vector, 4, false)?;
                WgmmaA::Registers([registers[0], registers[1], registers[2], registers[3]])
            }
            descriptor => WgmmaA::Shared(self.src(descriptor, 64)?),
        };
        let b = self.src(&form.operands[2], 64)?;
        let scale_d = self.pred_src(&form.operands[3])?;
        let mut negated = [false; 2];
        for (negated, operand) in negated.iter_mut().zip(&form.operands[4..6]) {
            *negated = match self.immediate(operand)? as i64 {
                1 => false,
                -1 => true,
                other => return Err(format!("the scale {other} is neither 1 nor -1")),
            };
        }
        // Of 16-bit operands in shared memory each has its direction.
        let of_a = matches!(a, WgmmaA::Shared(_));
        let count = match (sixteen_bits, of_a) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let directions = &form.operands[6..];
        if directions.len() != count {
            return Err(format!(
                "{} operands say whether matrices are transposed, {count} are needed",
                directions.len()
            ));
        }
        let mut mn_major = [false; 2];
        for (mn_major, operand) in mn_major[2 - count..].iter_mut().zip(directions) {
            *mn_major = match self.immediate(operand)? {
                0 => false,
                1 => true,
                other => return Err(format!("a matrix is transposed or not: {other}")),
            };
        }
        Ok(Op::Wgmma(Box::new(Wgmma {
            kind: wgmma::Kind {
                formats,
                narrow,
                negated,
                mn_major,
            },
            cores: self.numerics.tensor_cores,
            n,
            d,
            a,
            b,
            scale_d,
        })))
    }

    fn setmaxnreg(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let count = self.immediate(&form.operands[0])?;
        if !(24..=256).contains(&count) || count % 8 != 0 {
            return Err(format!(
                "{count} registers are no multiple of 8 from 24 to 256"
            ));
        }
        if self.registers.is_none() {
            return Err(
                "ptxas ignores it in an entry that has neither `.maxnreg` nor `.minnctapersm` with `.maxntid` or \
                 `.reqntid`"
                    .to_owned(),
            );
        }
        Ok(Op::SetMaxNReg(count as u32, form.has(".inc")))
    }
}
