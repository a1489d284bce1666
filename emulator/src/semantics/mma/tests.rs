use super::*;
use crate::semantics::{cvt::f32_to_bf16, tests::Rng};

/// Where the manual says that element `i` of a lane's fragment lies: (register, shift, row, column). This repeats
/// the manual's formulas as printed, element by element, while the code above works from the matrix side.
fn place(operand: char, bits: u32, lane: usize, i: usize) -> (usize, u32, usize, usize) {
    let (g, t) = (lane >> 2, lane & 3);
    let per = (32 / bits) as usize;
    let (register, shift) = (i / per, bits * (i % per) as u32);
    let (row, column) = match (operand, bits) {
        ('a', 16) => (
            if matches!(i, 0 | 1 | 4 | 5) { g } else { g + 8 },
            if i < 4 {
                t * 2 + (i & 1)
            } else {
                t * 2 + (i & 1) + 8
            },
        ),
        ('b', 16) => (
            if i < 2 {
                t * 2 + (i & 1)
            } else {
                t * 2 + (i & 1) + 8
            },
            g,
        ),
        ('a', 8) => (
            if i < 4 || (8..12).contains(&i) {
                g
            } else {
                g + 8
            },
            if i < 8 {
                t * 4 + (i & 3)
            } else {
                t * 4 + (i & 3) + 16
            },
        ),
        ('b', 8) => (
            if i < 4 {
                t * 4 + (i & 3)
            } else {
                t * 4 + (i & 3) + 16
            },
            g,
        ),
        ('a', 32) => (
            if i & 1 == 0 { g } else { g + 8 },
            if i < 2 { t } else { t + 4 },
        ),
        ('b', 32) => (if i == 0 { t } else { t + 4 }, g),
        _ => (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)),
    };
    (register, shift, row, column)
}

/// Scatters a matrix into a fragment of `N` registers.
fn fragment<const N: usize>(
    operand: char,
    bits: u32,
    matrix: impl Fn(usize, usize) -> u32,
) -> [Lanes; N] {
    let mut registers = [[0; 32]; N];
    let elements = N * (32 / bits) as usize;
    for (lane, i) in (0..32 * elements).map(|x| (x / elements, x % elements)) {
        let (register, shift, row, column) = place(operand, bits, lane, i);
        registers[register][lane] |= matrix(row, column) << shift;
    }
    registers
}

/// The textbook sum in the documented order.
fn expect<const K: usize>(
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    c: &[Lanes; 4],
) -> [Lanes; 4] {
    let mut d = [[0; 32]; 4];
    for lane in 0..32 {
        for i in 0..4 {
            let (register, _, row, column) = place('c', 32, lane, i);
            let sum = (0..K).fold(f32::from_bits(c[register][lane]), |s, k| {
                a(row, k).mul_add(b(k, column), s)
            });
            d[register][lane] = canonical_f32(sum.to_bits());
        }
    }
    d
}

/// Small random values, now and then a special one.
fn values(rng: &mut Rng, special: bool) -> [[u32; 32]; 32] {
    std::array::from_fn(|_| {
        std::array::from_fn(|_| {
            let r = rng.next();
            let x = (r as u32 as f32 / u32::MAX as f32 - 0.5) * 8.0;
            if special && r >> 60 == 0 {
                rng.f32_bits()
            } else {
                x.to_bits()
            }
        })
    })
}

fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[test]
fn sixteen_bit() {
    let mut rng = Rng(71);
    for round in 0..200 {
        let special = round % 2 == 1;
        let [ma, mb, mc] = [(); 3].map(|()| values(&mut rng, special));
        let c = fragment::<4>('c', 32, |r, n| mc[r][n]);
        for kind in [Half::F16, Half::Bf16] {
            let narrow = |x: u32| {
                if kind == Half::F16 {
                    crate::semantics::cvt::f32_to_f16(x)
                } else {
                    f32_to_bf16(x)
                }
            };
            let a = fragment::<4>('a', 16, |r, k| narrow(ma[r][k]));
            let b = fragment::<2>('b', 16, |k, n| narrow(mb[k][n]));
            let wide_a = |r: usize, k: usize| half_to_f32(kind, narrow(ma[r][k]));
            let wide_b = |k: usize, n: usize| half_to_f32(kind, narrow(mb[k][n]));
            let want = expect::<16>(wide_a, wide_b, &c);
            let mut d = [[0; 32]; 4];
            mma_m16n8k16_f32(TensorCores::Fast, kind, &mut d, &a, &b, &c);
            assert_eq!(d, want, "{kind:?}");
            // The portable path must give the same bits.
            let (tile_a, tile_b) = unpack_half::<16>(kind, &a, &b);
            let mut tile = unpack_c(&c);
            multiply_portable(&tile_a, &tile_b, &mut tile);
            pack_d(&mut d, &tile);
            assert_eq!(d, want, "{kind:?} portable");
            mma_m16n8k8_f32(TensorCores::Fast, kind, &mut d, &[a[0], a[1]], &[b[0]], &c);
            assert_eq!(d, expect::<8>(wide_a, wide_b, &c), "{kind:?} k8");
        }
    }
}

/// 1 in A's row r, column k, and B's row k, column n picks out C's element (r, n): here by the manual's figures,
/// lane 14 holds row 3 (and 11), columns 4 and 5.
#[test]
fn single_products_by_hand() {
    let one = 0x3c00;
    let mut a = [[0; 32]; 4];
    let mut b = [[0; 32]; 2];
    a[3][4 * 3 + 2] = one << 16; // a7 of lane 14: row 11, column 2*2 + 1 + 8 = 13.
    b[1][4 * 5 + 2] = one << 16; // b3 of lane 22: k = 2*2 + 1 + 8 = 13, n = 5.
    let mut d = [[0; 32]; 4];
    mma_m16n8k16_f32(TensorCores::Fast, Half::F16, &mut d, &a, &b, &[[0; 32]; 4]);
    let mut want = [[0; 32]; 4];
    want[3][14] = 0x3f80_0000; // c3 of lane 14: row 11, column 5.
    assert_eq!(d, want);
    let mut d = [[0; 32]; 2];
    mma_m16n8k16_f16(TensorCores::Fast, &mut d, &a, &b, &[[one; 32]; 2]);
    let mut want = [[one; 32]; 2];
    want[1][14] = one | one << 16;
    assert_eq!(d, want);
    mma_m16n8k8_f16(
        TensorCores::Fast,
        &mut d,
        &[a[2], a[3]],
        &[b[1]],
        &[[one; 32]; 2],
    );
    assert_eq!(d, want);
}

#[test]
fn tf32_and_fp8() {
    let mut rng = Rng(73);
    for round in 0..100 {
        let [ma, mb, mc] = [(); 3].map(|()| values(&mut rng, round % 2 == 1));
        let c = fragment::<4>('c', 32, |r, n| mc[r][n]);
        let mut d = [[0; 32]; 4];
        let a = fragment::<4>('a', 32, |r, k| ma[r][k]);
        let b = fragment::<2>('b', 32, |k, n| mb[k][n]);
        let cut = |x: u32| f(x & 0xffff_e000);
        mma_m16n8k8_tf32(TensorCores::Fast, &mut d, &a, &b, &c);
        assert_eq!(
            d,
            expect::<8>(|r, k| cut(ma[r][k]), |k, n| cut(mb[k][n]), &c)
        );
        mma_m16n8k4_tf32(TensorCores::Fast, &mut d, &[a[0], a[1]], &[b[0]], &c);
        assert_eq!(
            d,
            expect::<4>(|r, k| cut(ma[r][k]), |k, n| cut(mb[k][n]), &c)
        );

        for (at, bt) in [(Float::E4m3, Float::E4m3), (Float::E5m2, Float::E4m3)] {
            let byte = |x: u32| x >> 8 & 0xff;
            let a = fragment::<4>('a', 8, |r, k| byte(ma[r][k]));
            let b = fragment::<2>('b', 8, |k, n| byte(mb[k][n]));
            let value = |t: Float, x: u32| {
                f(Num::unpack(t, byte(x).into()).pack(Float::F32, Round::Rn) as u32)
            };
            mma_m16n8k32_fp8(TensorCores::Fast, at, bt, &mut d, &a, &b, &c);
            assert_eq!(
                d,
                expect::<32>(|r, k| value(at, ma[r][k]), |k, n| value(bt, mb[k][n]), &c)
            );
        }
    }
}

#[test]
fn integers() {
    let mut rng = Rng(79);
    for signed in [[false, false], [true, false], [false, true], [true, true]] {
        let [ma, mb, mc] = [(); 3].map(|()| values(&mut rng, false));
        let byte = |x: u32| x >> 3 & 0xff;
        let value = |x: u32, s: bool| {
            if s {
                i32::from(byte(x) as u8 as i8)
            } else {
                byte(x) as i32
            }
        };
        let a = fragment::<4>('a', 8, |r, k| byte(ma[r][k]));
        let b = fragment::<2>('b', 8, |k, n| byte(mb[k][n]));
        let c = fragment::<4>('c', 32, |r, n| mc[r][n]);
        let sum = |k: usize| {
            fragment::<4>('c', 32, |r, n| {
                let dot: i32 = (0..k)
                    .map(|k| value(ma[r][k], signed[0]) * value(mb[k][n], signed[1]))
                    .sum();
                mc[r][n].wrapping_add(dot as u32)
            })
        };
        let mut d = [[0; 32]; 4];
        mma_m16n8k32_s32(signed, false, &mut d, &a, &b, &c);
        assert_eq!(d, sum(32));
        mma_m16n8k16_s32(signed, false, &mut d, &[a[0], a[1]], &[b[0]], &c);
        assert_eq!(d, sum(16));
    }
    let mut d = [[0; 32]; 4];
    let top = [[i32::MAX as u32; 32]; 4];
    mma_m16n8k32_s32(
        [true; 2],
        true,
        &mut d,
        &[[0x0101_0101; 32]; 4],
        &[[0x0101_0101; 32]; 2],
        &top,
    );
    assert_eq!(d, top);
    mma_m16n8k32_s32(
        [true; 2],
        false,
        &mut d,
        &[[0x0101_0101; 32]; 4],
        &[[0x0101_0101; 32]; 2],
        &top,
    );
    assert_eq!(d[0][0], (i32::MAX as u32).wrapping_add(32));
}

/// Whole instructions under the models of hardware: the sums of [`fused`] in the places that the manual gives.
#[test]
fn hardware_models() {
    let mut rng = Rng(83);
    let fused = |fraction_bits, products, rounding| FusedSum {
        fraction_bits,
        products,
        rounding,
    };
    /// The sum of `c` and the products of a row and a column, alone in its tiles.
    fn sums<const K: usize>(
        sum: FusedSum,
        format: Float,
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        c: impl Fn(usize, usize) -> f32,
    ) -> impl Fn(usize, usize) -> u32 {
        move |row, column| {
            let mut tile_a = [[0.0; K]; 16];
            let mut tile_b = [[0.0; 8]; K];
            let mut tile_c = [[0.0; 8]; 16];
            for k in 0..K {
                (tile_a[0][k], tile_b[k][0]) = (a(row, k), b(k, column));
            }
            tile_c[0][0] = c(row, column);
            fused::multiply(sum, [format; 2], &tile_a, &tile_b, &mut tile_c);
            tile_c[0][0].to_bits()
        }
    }
    for round in 0..20 {
        let [ma, mb, mc] = [(); 3].map(|()| values(&mut rng, round % 4 == 3));
        let c = fragment::<4>('c', 32, |r, n| mc[r][n]);
        let value_c = |r: usize, n: usize| f(mc[r][n]);
        for cores in [TensorCores::Ampere, TensorCores::Hopper] {
            let (bits, step) = if cores == TensorCores::Ampere {
                (24, 8)
            } else {
                (25, 16)
            };
            let sum = fused(bits, step, fused::Rounding::F32);
            let mut d = [[0; 32]; 4];
            for kind in [Half::F16, Half::Bf16] {
                let narrow = |x: u32| match kind {
                    Half::F16 => crate::semantics::cvt::f32_to_f16(x),
                    Half::Bf16 => f32_to_bf16(x),
                };
                let a = fragment::<4>('a', 16, |r, k| narrow(ma[r][k]));
                let b = fragment::<2>('b', 16, |k, n| narrow(mb[k][n]));
                let wide_a = |r: usize, k: usize| half_to_f32(kind, narrow(ma[r][k]));
                let wide_b = |k: usize, n: usize| half_to_f32(kind, narrow(mb[k][n]));
                mma_m16n8k16_f32(cores, kind, &mut d, &a, &b, &c);
                let want = sums::<16>(sum, kind.format(), wide_a, wide_b, value_c);
                assert_eq!(d, fragment('c', 32, want), "{cores} {kind:?}");
                mma_m16n8k8_f32(cores, kind, &mut d, &[a[0], a[1]], &[b[0]], &c);
                let want = sums::<8>(sum, kind.format(), wide_a, wide_b, value_c);
                assert_eq!(d, fragment('c', 32, want), "{cores} {kind:?} k8");
                if kind == Half::F16 {
                    let sum = fused(bits, step, fused::Rounding::F16);
                    let half_c = |r: usize, n: usize| half_to_f32(kind, narrow(mc[r][n]));
                    let c = fragment::<4>('c', 32, |r, n| half_c(r, n).to_bits());
                    let mut narrow_c = [[0; 32]; 2];
                    narrow_d(&mut narrow_c, &c);
                    let mut d = [[0; 32]; 2];
                    let to_half = |want: [Lanes; 4]| {
                        let mut halves = [[0; 32]; 2];
                        narrow_d(&mut halves, &want);
                        halves
                    };
                    mma_m16n8k16_f16(cores, &mut d, &a, &b, &narrow_c);
                    let want = sums::<16>(sum, Float::F16, wide_a, wide_b, half_c);
                    assert_eq!(d, to_half(fragment('c', 32, want)), "{cores} to f16");
                    mma_m16n8k8_f16(cores, &mut d, &[a[0], a[1]], &[b[0]], &narrow_c);
                    let want = sums::<8>(sum, Float::F16, wide_a, wide_b, half_c);
                    assert_eq!(d, to_half(fragment('c', 32, want)), "{cores} k8 to f16");
                }
            }
            let cut = |x: u32| f(x & 0xffff_e000);
            let (cut_a, cut_b) = (
                |r: usize, k: usize| cut(ma[r][k]),
                |k: usize, n: usize| cut(mb[k][n]),
            );
            let sum = fused(bits, step / 2, fused::Rounding::F32);
            let a = fragment::<4>('a', 32, |r, k| ma[r][k]);
            let b = fragment::<2>('b', 32, |k, n| mb[k][n]);
            mma_m16n8k8_tf32(cores, &mut d, &a, &b, &c);
            let want = sums::<8>(sum, Float::Tf32, cut_a, cut_b, value_c);
            assert_eq!(d, fragment('c', 32, want), "{cores} tf32");
            mma_m16n8k4_tf32(cores, &mut d, &[a[0], a[1]], &[b[0]], &c);
            let want = sums::<4>(sum, Float::Tf32, cut_a, cut_b, value_c);
            assert_eq!(d, fragment('c', 32, want), "{cores} tf32 k4");

            let byte = |x: u32| x >> 8 & 0xff;
            let a = fragment::<4>('a', 8, |r, k| byte(ma[r][k]));
            let b = fragment::<2>('b', 8, |k, n| byte(mb[k][n]));
            let e4m3 = |x: u32| fp8_values(Float::E4m3)[byte(x) as usize];
            let (a4, b4) = (
                |r: usize, k: usize| e4m3(ma[r][k]),
                |k: usize, n: usize| e4m3(mb[k][n]),
            );
            mma_m16n8k32_fp8(cores, Float::E4m3, Float::E4m3, &mut d, &a, &b, &c);
            let want = if cores == TensorCores::Ampere {
                let sum = fused(13, 16, fused::Rounding::E8m13);
                fragment('c', 32, sums::<32>(sum, Float::E4m3, a4, b4, value_c))
            } else {
                // Lane t of four has k = 4t to 4t + 3 and 16 + 4t to 16 + 4t + 3; the first sum takes two of each.
                let first = [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29];
                let sum = fused(25, 16, fused::Rounding::F32);
                let zero = |_: usize, _: usize| 0.0;
                let (a, b) = (
                    |r: usize, k: usize| a4(r, first[k]),
                    |k: usize, n: usize| b4(first[k], n),
                );
                let one = sums::<16>(sum, Float::F16, a, b, zero);
                let (a, b) = (
                    |r: usize, k: usize| a4(r, first[k] + 2),
                    |k: usize, n: usize| b4(first[k] + 2, n),
                );
                let both = sums::<16>(sum, Float::F16, a, b, |r, n| f(one(r, n)));
                fragment('c', 32, |r, n| {
                    canonical_f32((f(both(r, n)) + value_c(r, n)).to_bits())
                })
            };
            assert_eq!(d, want, "{cores} e4m3");
        }
    }
}
