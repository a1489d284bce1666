//! How uninitialised bytes go through an instruction.

use crate::isa::Row;
use crate::parse::tree::Operand;
use crate::program::Spread;

/// The rule of a form. [`Spread::Mix`] is always safe; the others keep what compilers do with parts of registers from
/// being taken for a use of the whole.
pub(super) fn of(row: &Row, mods: &[&str], operands: &[Operand]) -> Spread {
    let last = mods.last().copied().unwrap_or_default();
    let bits = |m: &str| match m {
        ".u8" | ".s8" => Some(8),
        ".u16" | ".s16" => Some(16),
        ".u32" | ".s32" => Some(32),
        ".u64" | ".s64" => Some(64),
        _ => None,
    };
    let number = |n: usize| match operands.get(n) {
        Some(Operand::Int(value)) => Some(*value as u32),
        _ => None,
    };
    match row.opcode {
        "and" if last != ".pred" => Spread::Logic(0xc0),
        "or" if last != ".pred" => Spread::Logic(0xfc),
        "lop3" => number(4).map_or(Spread::Mix, |table| Spread::Logic(table as u8)),
        "bfi" => match (number(3), number(4)) {
            (Some(place), Some(len)) => Spread::Insert { place, len },
            _ => Spread::Mix,
        },
        "bfe" if matches!(last, ".u32" | ".s32") => Spread::Field {
            signed: last == ".s32",
        },
        "mov" => Spread::Bytewise,
        "xor" | "not" if last != ".pred" => Spread::Bytewise,
        "shl" => Spread::Left,
        "shr" => {
            let bytes = last[2..].parse().map_or(8, |bits: u8| bits / 8);
            Spread::Right(bytes, last.starts_with(".s"))
        }
        "prmt" if mods == [".b32"] => Spread::Permute,
        "cvt" if matches!(last, ".f32") && mods.iter().any(|m| m.ends_with("16x2")) => {
            Spread::PackHalves
        }
        "cvt" if !mods.contains(&".sat") => {
            let [.., to, from] = mods else {
                return Spread::Mix;
            };
            match (bits(to), bits(from)) {
                (Some(to_bits), Some(from_bits)) => {
                    // As the conversion itself: the narrower of the two is extended.
                    let (narrow, by): (u8, _) = if from_bits < to_bits {
                        (from_bits, from)
                    } else {
                        (to_bits, to)
                    };
                    Spread::Extend(narrow / 8, by.starts_with(".s"))
                }
                _ => Spread::Mix,
            }
        }
        _ if last.ends_with("16x2") => Spread::Halves,
        _ => Spread::Mix,
    }
}
