//! What differs between two devices' results, and by how much.

use serde::Serialize;

/// What a 32-bit word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Bits: equal or not.
    Bits,
    /// f32.
    F32,
    /// f16 in the low half.
    F16,
    /// bf16 in the low half.
    Bf16,
    /// Two f16.
    F16x2,
    /// Two bf16.
    Bf16x2,
}

/// How two words relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same bits.
    Same,
    /// Both NaN, of other bits.
    NanBits,
    /// Numbers so many representable ones apart; zeros of either sign are 0 apart.
    Apart(u32),
    /// Nothing of the kind: a NaN and a number, or other bits.
    Different,
}

/// A float's place among all floats, and whether it is NaN. `bits` are those of a format of `width` bits
/// whose infinity is `infinity`.
fn place(bits: u32, width: u32, infinity: u32) -> (i64, bool) {
    let magnitude = bits & ((1 << (width - 1)) - 1);
    let negative = bits >> (width - 1) & 1 != 0;
    let place = i64::from(magnitude);
    (if negative { -place } else { place }, magnitude > infinity)
}

fn relate_float(a: u32, b: u32, width: u32, infinity: u32) -> Relation {
    if a == b {
        return Relation::Same;
    }
    match (place(a, width, infinity), place(b, width, infinity)) {
        ((_, true), (_, true)) => Relation::NanBits,
        ((a, false), (b, false)) => Relation::Apart(a.abs_diff(b).min(u32::MAX.into()) as u32),
        _ => Relation::Different,
    }
}

impl Format {
    /// How two words of this format relate; of a pair, the worse of the two.
    pub fn relate(self, a: u32, b: u32) -> Relation {
        let halves = |infinity| {
            let low = relate_float(a & 0xffff, b & 0xffff, 16, infinity);
            let high = relate_float(a >> 16, b >> 16, 16, infinity);
            [low, high]
                .into_iter()
                .max_by_key(Relation::badness)
                .unwrap_or(low)
        };
        match self {
            Self::Bits if a == b => Relation::Same,
            Self::Bits => Relation::Different,
            Self::F32 => relate_float(a, b, 32, 0x7f80_0000),
            Self::F16 if a >> 16 == b >> 16 => relate_float(a & 0xffff, b & 0xffff, 16, 0x7c00),
            Self::Bf16 if a >> 16 == b >> 16 => relate_float(a & 0xffff, b & 0xffff, 16, 0x7f80),
            Self::F16 | Self::Bf16 => Relation::Different,
            Self::F16x2 => halves(0x7c00),
            Self::Bf16x2 => halves(0x7f80),
        }
    }
}

impl Relation {
    fn badness(&self) -> (u32, u32) {
        match *self {
            Self::Same => (0, 0),
            Self::NanBits => (1, 0),
            Self::Apart(ulp) => (2, ulp),
            Self::Different => (3, 0),
        }
    }
}

/// A difference, in full.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The thread, in all of the grid.
    pub thread: usize,
    /// Which of its output words.
    pub word: usize,
    /// Its input words.
    pub input: Vec<String>,
    /// What the device under test gave.
    pub device: String,
    /// What the emulator gave.
    pub emulator: String,
    /// How many representable numbers lie between, if both are numbers.
    pub ulp: Option<u32>,
}

/// A comparison of all words.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Words compared.
    pub words: usize,
    /// Of those, differing in any bit.
    pub differing: usize,
    /// Of those, both NaN.
    pub nan_bits: usize,
    /// Of the differing ones, numbers that are not comparable: NaN against a number, or other bits.
    pub incomparable: usize,
    /// The largest distance between two numbers.
    pub max_ulp: u32,
    /// How many words are 0 apart (zeros of other signs), 1, 2, 3 or more.
    pub by_ulp: [usize; 4],
    /// The first differences, and the largest.
    pub samples: Vec<Sample>,
}

/// Differences that are kept in full, besides the largest.
const SAMPLES: usize = 12;

/// Compares two outputs, thread by thread. `input` has `ins` words a thread.
pub fn compare(
    formats: &[Format],
    input: &[u32],
    ins: usize,
    device: &[u32],
    emulator: &[u32],
) -> Comparison {
    let mut found = Comparison {
        words: emulator.len(),
        ..Comparison::default()
    };
    if device.len() != emulator.len() {
        found.differing = emulator.len().max(1);
        found.incomparable = found.differing;
        return found;
    }
    let mut largest: Option<(u32, usize)> = None;
    let mut first = Vec::new();
    for (at, (&a, &b)) in device.iter().zip(emulator).enumerate() {
        let relation = formats[at % formats.len()].relate(a, b);
        match relation {
            Relation::Same => continue,
            Relation::NanBits => found.nan_bits += 1,
            Relation::Different => found.incomparable += 1,
            Relation::Apart(ulp) => {
                found.max_ulp = found.max_ulp.max(ulp);
                found.by_ulp[(ulp as usize).min(3)] += 1;
                if largest.is_none_or(|(most, _)| ulp > most) {
                    largest = Some((ulp, at));
                }
            }
        }
        found.differing += 1;
        // NaN of other bits tell little; a few are enough.
        if first.len() < SAMPLES && (relation != Relation::NanBits || found.nan_bits <= 2) {
            first.push(at);
        }
    }
    first.extend(largest.map(|(_, at)| at).filter(|at| !first.contains(at)));
    let hex = |word: &u32| format!("{word:08x}");
    found.samples = first
        .into_iter()
        .map(|at| {
            let (thread, word) = (at / formats.len(), at % formats.len());
            Sample {
                thread,
                word,
                input: input[thread * ins..][..ins].iter().map(hex).collect(),
                device: hex(&device[at]),
                emulator: hex(&emulator[at]),
                ulp: match formats[word].relate(device[at], emulator[at]) {
                    Relation::Apart(ulp) => Some(ulp),
                    _ => None,
                },
            }
        })
        .collect();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_between_floats() {
        let one = 1f32.to_bits();
        assert_eq!(Format::F32.relate(one, one + 3), Relation::Apart(3));
        assert_eq!(Format::F32.relate(0, 1 << 31), Relation::Apart(0));
        assert_eq!(Format::F32.relate(1, 1 << 31 | 1), Relation::Apart(2));
        assert_eq!(
            Format::F32.relate(0x7f80_0000, 0x7f7f_ffff),
            Relation::Apart(1)
        );
        assert_eq!(
            Format::F32.relate(0x7fc0_0000, 0x7fff_ffff),
            Relation::NanBits
        );
        assert_eq!(Format::F32.relate(0x7fc0_0000, one), Relation::Different);
        assert_eq!(
            Format::F16x2.relate(0x3c00_3c00, 0x3c02_3c01),
            Relation::Apart(2)
        );
        assert_eq!(
            Format::F16x2.relate(0x3c00_7e00, 0x3c00_7fff),
            Relation::NanBits
        );
        assert_eq!(
            Format::Bf16.relate(0x0001_3f80, 0x3f80),
            Relation::Different
        );
        assert_eq!(Format::Bits.relate(1, 2), Relation::Different);
    }

    #[test]
    fn a_comparison_counts_and_keeps_the_largest() {
        let input: Vec<u32> = (0..100).collect();
        let emulator: Vec<u32> = (0..100).map(|i| (i as f32).to_bits()).collect();
        let mut device = emulator.clone();
        device[20..60].iter_mut().for_each(|word| *word += 1);
        device[90] += 7;
        device[91] = 0x7fc0_0000;
        let found = compare(&[Format::F32], &input, 1, &device, &emulator);
        assert_eq!(
            (
                found.words,
                found.differing,
                found.max_ulp,
                found.incomparable
            ),
            (100, 42, 7, 1)
        );
        assert_eq!(found.by_ulp, [0, 40, 0, 1]);
        let last = found.samples.last().unwrap();
        assert_eq!(
            (last.thread, last.ulp, last.input.as_slice()),
            (90, Some(7), &["0000005a".to_owned()][..])
        );
        let same = compare(&[Format::F32], &input, 1, &emulator, &emulator);
        assert_eq!((same.differing, same.samples.len()), (0, 0));
        // A device that gives fewer words differs everywhere.
        assert_eq!(
            compare(&[Format::F32], &input, 1, &[], &emulator).differing,
            100
        );
    }
}
