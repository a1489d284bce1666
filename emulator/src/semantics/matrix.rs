//! `ldmatrix`, `stmatrix` and `movmatrix`: the exchange between 16-byte rows and register fragments.
//!
//! Matrix `j` of a lane's register `j` has 8 rows of 8 b16 elements. With g = lane / 4 and t = lane % 4, a lane holds
//! elements (g, 2t) and (g, 2t + 1), or with `.trans` (2t, g) and (2t + 1, g); the first in the low half.

use super::Lanes;

/// The rows of one 8x8 matrix of b16 elements.
pub type Rows = [[u8; 16]; 8];

/// One matrix into one register: `ldmatrix.m8n8.x1{.trans}.b16`.
#[inline]
pub fn load(rows: &Rows, trans: bool) -> Lanes {
    let mut words = [[0u32; 4]; 8];
    for (row, words) in rows.iter().zip(&mut words) {
        for (word, bytes) in words.iter_mut().zip(row.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    let mut register = [0; 32];
    if trans {
        // Word w of rows 2t and 2t + 1 holds columns 2w and 2w + 1 of both: they go to the lanes of g = 2w and 2w + 1.
        for t in 0..4 {
            for w in 0..4 {
                let (upper, lower) = (words[2 * t][w], words[2 * t + 1][w]);
                register[8 * w + t] = upper & 0xffff | lower << 16;
                register[8 * w + 4 + t] = upper >> 16 | lower & 0xffff_0000;
            }
        }
    } else {
        for (four, words) in register.chunks_exact_mut(4).zip(words) {
            four.copy_from_slice(&words);
        }
    }
    register
}

/// One register into one matrix: `stmatrix.m8n8.x1{.trans}.b16`, the inverse of [`load`].
#[inline]
pub fn store(register: &Lanes, trans: bool) -> Rows {
    let mut words = [[0u32; 4]; 8];
    if trans {
        for t in 0..4 {
            for w in 0..4 {
                let (left, right) = (register[8 * w + t], register[8 * w + 4 + t]);
                words[2 * t][w] = left & 0xffff | right << 16;
                words[2 * t + 1][w] = left >> 16 | right & 0xffff_0000;
            }
        }
    } else {
        for (four, words) in register.chunks_exact(4).zip(&mut words) {
            words.copy_from_slice(four);
        }
    }
    let mut rows = [[0; 16]; 8];
    for (row, words) in rows.iter_mut().zip(words) {
        for (bytes, word) in row.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
    }
    rows
}

/// `ldmatrix.m8n8.xN`: register `j` from the rows whose addresses lanes 8j..8j+8 gave; `row(8j + r)` reads row `r` of
/// matrix `j`. Stops at the first row that fails (an out-of-bounds address, say).
pub fn ldmatrix<const N: usize, E>(
    trans: bool,
    mut row: impl FnMut(usize) -> Result<[u8; 16], E>,
) -> Result<[Lanes; N], E> {
    let mut registers = [[0; 32]; N];
    for (j, register) in registers.iter_mut().enumerate() {
        let mut rows = [[0; 16]; 8];
        for (r, bytes) in rows.iter_mut().enumerate() {
            *bytes = row(8 * j + r)?;
        }
        *register = load(&rows, trans);
    }
    Ok(registers)
}

/// `stmatrix.m8n8.xN`: hands row `r` of matrix `j` to `row(8j + r, bytes)`, in order.
pub fn stmatrix<E>(
    registers: &[Lanes],
    trans: bool,
    mut row: impl FnMut(usize, [u8; 16]) -> Result<(), E>,
) -> Result<(), E> {
    for (j, register) in registers.iter().enumerate() {
        for (r, bytes) in store(register, trans).into_iter().enumerate() {
            row(8 * j + r, bytes)?;
        }
    }
    Ok(())
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`: the transpose, register to register.
pub fn movmatrix_trans(register: &Lanes) -> Lanes {
    load(&store(register, false), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// Rows whose element (r, c) of matrix j is 1000 j + 10 r + c.
    fn row(index: usize) -> Result<[u8; 16], Infallible> {
        let (j, r) = (index / 8, index % 8);
        let mut bytes = [0; 16];
        for c in 0..8 {
            bytes[2 * c..2 * c + 2]
                .copy_from_slice(&((1000 * j + 10 * r + c) as u16).to_le_bytes());
        }
        Ok(bytes)
    }

    /// Positions read off the manual's figure for `ldmatrix`: lane 0 holds row 0, columns 0 and 1; lane 31 row 7,
    /// columns 6 and 7.
    #[test]
    fn ldmatrix_positions() {
        let Ok(plain) = ldmatrix::<4, _>(false, row);
        assert_eq!(plain[0][0], 1 << 16);
        assert_eq!(plain[0][31], 77 << 16 | 76);
        assert_eq!(plain[3][5], 3013 << 16 | 3012);
        let Ok(trans) = ldmatrix::<2, _>(true, row);
        assert_eq!(trans[0][0], 10 << 16);
        assert_eq!(trans[0][31], 77 << 16 | 67);
        assert_eq!(trans[1][5], 1031 << 16 | 1021);
        assert_eq!(movmatrix_trans(&plain[0]), trans[0]);
    }

    #[test]
    fn stmatrix_inverts() {
        for trans in [false, true] {
            let Ok(registers) = ldmatrix::<4, _>(trans, row);
            let mut count = 0;
            let Ok(()) = stmatrix(&registers, trans, |index, bytes| {
                assert_eq!(Ok(bytes), row(index));
                count += 1;
                Ok::<(), Infallible>(())
            });
            assert_eq!(count, 32);
        }
    }
}
