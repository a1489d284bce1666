//! The hardware's approximations, value by value over whole binades.
//!
//! A GPU's `ex2`, `lg2` and `rcp` are tables with interpolation, whose bits no manual gives. The distances from the
//! emulator's (correctly rounded, or nearly) results are kept in a file, so that whoever has no GPU can rebuild the
//! hardware's function from it. The file is a sequence of sections: a line of JSON ([`Section`]), then its bytes:
//! first `packed` bytes of codes, four values each, lowest bits first (0 the same, 1 one unit up, 2 one unit down,
//! 3 something else), then for each code 3 in turn the device's bits, four bytes, little endian.

use serde::{Deserialize, Serialize};

use crate::{
    compare::{Format, Relation},
    machine::Machine,
    micro::{Promise, Target, Test},
};

/// Values that run at a time.
const CHUNK: u32 = 1 << 22;

/// Escapes of a section, at most: beyond, the codes are no longer of use and the section ends there.
const MOST_ESCAPES: usize = 1 << 16;

/// An instruction over f32 bit patterns.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// One source, one destination, f32.
    pub instruction: &'static str,
    /// First bit pattern.
    pub start: u32,
    /// From one to the next.
    pub step: u32,
    /// How many.
    pub count: u32,
    /// Bound in units of the last place; 0 for none.
    pub ulp: u32,
    /// Whether the distances are kept.
    pub keep: bool,
}

const fn sweep(
    instruction: &'static str,
    start: u32,
    step: u32,
    count: u32,
    ulp: u32,
    keep: bool,
) -> Sweep {
    Sweep {
        instruction,
        start,
        step,
        count,
        ulp,
        keep,
    }
}

/// What kernels use, every value of the binades that decide; of all other inputs, and of other instructions, a
/// sample. `divisor` makes every sweep so much smaller, for rehearsals.
pub fn sweeps(divisor: u32) -> Vec<Sweep> {
    let binade = 1 << 23;
    let mut sweeps = vec![
        sweep("ex2.approx.ftz.f32", 0x3f80_0000, 1, binade, 2, true),
        sweep("lg2.approx.ftz.f32", 0x3f80_0000, 1, binade, 0, true),
        sweep("lg2.approx.ftz.f32", 0x3f00_0000, 1, binade, 0, true),
        sweep("rcp.approx.ftz.f32", 0x3f80_0000, 1, binade, 1, true),
    ];
    // A prime step over all 2^32 patterns: 2^22 of them, both signs.
    for (instruction, ulp) in [
        ("ex2.approx.ftz.f32", 2),
        ("ex2.approx.f32", 2),
        ("lg2.approx.ftz.f32", 0),
        ("rcp.approx.ftz.f32", 1),
        ("rcp.approx.f32", 1),
        ("sqrt.approx.ftz.f32", 0),
        ("rsqrt.approx.ftz.f32", 2),
        ("tanh.approx.f32", 0),
    ] {
        sweeps.push(sweep(instruction, 0, 1021, 1 << 22, ulp, false));
    }
    for sweep in &mut sweeps {
        sweep.count /= divisor;
        sweep.step *= divisor;
    }
    sweeps
}

/// What came out of a sweep; in the file, the line before a section's bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// The instruction.
    pub instruction: String,
    /// First bit pattern.
    pub start: u32,
    /// From one to the next.
    pub step: u32,
    /// How many, fewer than asked for if too many were far off.
    pub count: u32,
    /// Values off by 0 (zeros of other signs), 1, 2, 3 or more units.
    pub by_ulp: [u32; 4],
    /// Values that are both NaN, of other bits.
    pub nan_bits: u32,
    /// NaN against a number.
    pub incomparable: u32,
    /// Largest distance, and where.
    pub max_ulp: u32,
    /// The input of the largest distance.
    pub at: u32,
    /// Whether the bound holds, if there is one.
    pub within: Option<bool>,
    /// Bytes of codes that follow.
    pub packed: usize,
    /// Words that follow the codes.
    pub escapes: usize,
}

/// Codes and escapes of a section.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codes {
    packed: Vec<u8>,
    escapes: Vec<u32>,
    count: usize,
}

impl Codes {
    fn push(&mut self, device: u32, emulator: u32) {
        let code = match device.wrapping_sub(emulator) {
            0 => 0,
            1 => 1,
            u32::MAX => 2,
            _ => {
                self.escapes.push(device);
                3
            }
        };
        if self.count.is_multiple_of(4) {
            self.packed.push(0);
        }
        if let Some(last) = self.packed.last_mut() {
            *last |= code << (2 * (self.count % 4));
        }
        self.count += 1;
    }

    /// The device's results, from the emulator's.
    pub fn device(&self, emulator: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let mut escapes = self.escapes.iter();
        let decode = |(at, result): (usize, u32)| match self.packed[at / 4] >> (2 * (at % 4)) & 3 {
            0 => result,
            1 => result.wrapping_add(1),
            2 => result.wrapping_sub(1),
            _ => escapes.next().copied().unwrap_or(result),
        };
        emulator
            .into_iter()
            .take(self.count)
            .enumerate()
            .map(decode)
            .collect()
    }

    /// The bytes after a section's line.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.packed.clone();
        bytes.extend(self.escapes.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    /// Reads a section's bytes; `None` if there are too few.
    pub fn read(section: &Section, bytes: &[u8]) -> Option<Self> {
        let (packed, rest) = bytes.split_at_checked(section.packed)?;
        let (words, _) = rest.get(..4 * section.escapes)?.as_chunks::<4>();
        Some(Self {
            packed: packed.to_vec(),
            escapes: words.iter().map(|&word| u32::from_le_bytes(word)).collect(),
            count: section.count as usize,
        })
    }
}

/// Runs a sweep on both.
///
/// # Errors
/// What either says.
pub fn run(
    device: &dyn Machine,
    emulator: &dyn Machine,
    sweep: &Sweep,
) -> Result<(Section, Codes), String> {
    let mut section = Section {
        instruction: sweep.instruction.into(),
        start: sweep.start,
        step: sweep.step,
        count: 0,
        by_ulp: [0; 4],
        nan_bits: 0,
        incomparable: 0,
        max_ulp: 0,
        at: sweep.start,
        within: None,
        packed: 0,
        escapes: 0,
    };
    let mut codes = Codes::default();
    while section.count < sweep.count && codes.escapes.len() <= MOST_ESCAPES {
        let from = section.count;
        let count = (sweep.count - from).min(CHUNK);
        let input: Vec<u32> = (from..from + count)
            .map(|i| sweep.start.wrapping_add(i.wrapping_mul(sweep.step)))
            .collect();
        let body = format!("{} %o0, %a0;", sweep.instruction);
        let test = Test::new(
            sweep.instruction,
            Target::Sm80,
            body,
            (1, vec![Format::F32]),
            input,
        )
        .promise(Promise::Approximate(sweep.ulp));
        let (there, here) = (device.run(&test)?, emulator.run(&test)?);
        if there.len() != here.len() {
            return Err(format!("{} results, {} expected", there.len(), here.len()));
        }
        for ((&device, &emulator), &input) in there
            .iter()
            .zip(&here)
            .zip(&test.input)
            .take(count as usize)
        {
            match Format::F32.relate(device, emulator) {
                Relation::Same => {}
                Relation::NanBits => section.nan_bits += 1,
                Relation::Different => section.incomparable += 1,
                Relation::Apart(ulp) => {
                    section.by_ulp[(ulp as usize).min(3)] += 1;
                    if ulp > section.max_ulp {
                        (section.max_ulp, section.at) = (ulp, input);
                    }
                }
            }
            if sweep.keep {
                codes.push(device, emulator);
            }
        }
        section.count += count;
    }
    section.packed = codes.packed.len();
    section.escapes = codes.escapes.len();
    section.within =
        (sweep.ulp > 0).then_some(section.incomparable == 0 && section.max_ulp <= sweep.ulp);
    Ok((section, codes))
}

impl Section {
    /// One line for people.
    pub fn line(&self) -> String {
        let verdict = match self.within {
            Some(true) => ", within its bound",
            Some(false) => ", OUTSIDE ITS BOUND",
            None => "",
        };
        let last = self
            .start
            .wrapping_add(self.count.saturating_sub(1).wrapping_mul(self.step));
        format!(
            "{} from {:08x} to {last:08x}, {} values: off by 1 ulp {}, by 2 {}, by more {}, signs of zero {}; NaN bits {}, \
             not comparable {}; most {} ulp at {:08x}{verdict}",
            self.instruction,
            self.start,
            self.count,
            self.by_ulp[1],
            self.by_ulp[2],
            self.by_ulp[3],
            self.by_ulp[0],
            self.nan_bits,
            self.incomparable,
            self.max_ulp,
            self.at
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_gives_back_the_device() {
        let emulator: Vec<u32> = (0..1001).map(|i| 0x3f80_0000 + 7 * i).collect();
        let device: Vec<u32> = emulator
            .iter()
            .enumerate()
            .map(|(i, &x)| match i % 5 {
                0 => x + 1,
                1 => x - 1,
                2 => x ^ 0x8000_0000,
                _ => x,
            })
            .collect();
        let mut codes = Codes::default();
        device
            .iter()
            .zip(&emulator)
            .for_each(|(&a, &b)| codes.push(a, b));
        assert_eq!(codes.device(emulator.iter().copied()), device);
        let section = Section {
            instruction: "ex2.approx.ftz.f32".into(),
            start: 0,
            step: 1,
            count: 1001,
            by_ulp: [0; 4],
            nan_bits: 0,
            incomparable: 0,
            max_ulp: 0,
            at: 0,
            within: None,
            packed: codes.packed.len(),
            escapes: codes.escapes.len(),
        };
        let mut bytes = codes.bytes();
        assert_eq!(bytes.len(), 251 + 4 * 200);
        assert_eq!(Codes::read(&section, &bytes), Some(codes));
        bytes.pop();
        assert_eq!(Codes::read(&section, &bytes), None);
    }
}
