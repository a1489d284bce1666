use super::*;
use crate::semantics::tests::Rng;
use half::{bf16, f16};

const NO: Mods = Mods {
    round: Round::Rn,
    integral: false,
    ftz: false,
    sat: false,
    relu: false,
    satfinite: false,
};

/// Every 16-bit pattern, against the `half` crate.
#[test]
fn all_sixteen_bit_values_widen() {
    for bits in 0..=u16::MAX {
        let x = u32::from(bits);
        let want = canonical_f32(f16::from_bits(bits).to_f32().to_bits());
        assert_eq!(f16_to_f32(x), want);
        assert_eq!(
            float_to_float(Float::F32, Float::F16, NO, x.into()),
            u64::from(want)
        );
        let want = canonical_f32(bf16::from_bits(bits).to_f32().to_bits());
        assert_eq!(bf16_to_f32(x), want);
        assert_eq!(
            float_to_float(Float::F32, Float::Bf16, NO, x.into()),
            u64::from(want)
        );
    }
}

/// Every 16-bit value, its neighbours in f32, and the ties between it and the next, against the `half` crate.
#[test]
fn narrowing_rounds_to_nearest_even() {
    let check = |x: u32| {
        let v = f32::from_bits(x);
        let want = if v.is_nan() {
            0x7fff
        } else {
            u32::from(f16::from_f32(v).to_bits())
        };
        assert_eq!(f32_to_f16(x), want, "{x:#x}");
        assert_eq!(
            float_to_float(Float::F16, Float::F32, NO, x.into()),
            u64::from(want),
            "{x:#x}"
        );
        let want = if v.is_nan() {
            0x7fff
        } else {
            u32::from(bf16::from_f32(v).to_bits())
        };
        assert_eq!(f32_to_bf16(x), want, "{x:#x}");
        assert_eq!(
            float_to_float(Float::Bf16, Float::F32, NO, x.into()),
            u64::from(want),
            "{x:#x}"
        );
    };
    for bits in 0..=u16::MAX {
        let h = f16::from_bits(bits).to_f32().to_bits();
        let b = bf16::from_bits(bits).to_f32().to_bits();
        for x in [h, h + 0x1000, h | 0xfff, b, b + 0x8000, b | 0x7fff] {
            for delta in [0, 1, u32::MAX] {
                check(x.wrapping_add(delta));
            }
        }
        // Subnormal f16: the midpoint to the next value, and its neighbours.
        let mid = (f16::from_bits(bits & 0x83ff).to_f32() + 2f32.powi(-25)).to_bits();
        [mid, mid + 1, mid - 1].into_iter().for_each(check);
    }
    let mut rng = Rng(2);
    (0..1_000_000).for_each(|_| check(rng.next() as u32));
}

/// From f64 the result must be rounded once; `half` documents the same.
#[test]
fn f64_narrows_once() {
    let mut rng = Rng(31);
    for _ in 0..200_000 {
        let x = rng.next() & 0x800f_ffff_ffff_ffff | (rng.next() % 80 + 983) << 52;
        let v = f64::from_bits(x);
        assert_eq!(
            float_to_float(Float::F32, Float::F64, NO, x),
            u64::from((v as f32).to_bits())
        );
    }
    // 1 + 2^-11 + 2^-40: above the f16 tie, but f32 would round it onto the tie.
    let x = (1.0 + 2f64.powi(-11) + 2f64.powi(-40)).to_bits();
    assert_eq!(float_to_float(Float::F16, Float::F64, NO, x), 0x3c01);
}

/// Against Rust's saturating `as` (round toward zero) after explicit rounding, and the manual's NaN rule.
#[test]
fn float_to_integer() {
    let mut rng = Rng(41);
    for _ in 0..300_000 {
        let r = rng.next();
        let x = if r & 1 == 0 {
            (r >> 32) as u32
        } else {
            (r >> 32) as u32 & 0x87ff_ffff | 0x4000_0000
        };
        let v = f32::from_bits(x);
        if v.is_nan() {
            continue;
        }
        let modes: [(Round, f32); 4] = [
            (Round::Rn, v.round_ties_even()),
            (Round::Rz, v.trunc()),
            (Round::Rm, v.floor()),
            (Round::Rp, v.ceil()),
        ];
        for (round, w) in modes {
            let to = |dst| float_to_int(dst, Float::F32, round, false, x.into());
            assert_eq!(to(Int::signed(32)), w as i32 as u64);
            assert_eq!(to(Int::unsigned(32)), u64::from(w as u32));
            assert_eq!(to(Int::signed(8)), w as i8 as u64);
            assert_eq!(to(Int::unsigned(16)), u64::from(w as u16));
            assert_eq!(to(Int::signed(64)), w as i64 as u64);
            assert_eq!(to(Int::unsigned(64)), w as u64);
            let m = Mods {
                round,
                integral: true,
                ..NO
            };
            assert_eq!(
                float_to_float(Float::F32, Float::F32, m, x.into()),
                u64::from(w.to_bits())
            );
        }
    }
    let nan = u64::from(f32::NAN.to_bits());
    assert_eq!(
        float_to_int(Int::signed(32), Float::F32, Round::Rz, false, nan),
        0
    );
    assert_eq!(
        float_to_int(Int::unsigned(64), Float::F32, Round::Rz, false, nan),
        1 << 63
    );
    assert_eq!(
        float_to_int(
            Int::unsigned(32),
            Float::F64,
            Round::Rz,
            false,
            f64::NAN.to_bits()
        ),
        1 << 31
    );
    assert_eq!(
        float_to_int(Int::signed(32), Float::F32, Round::Rp, true, 1),
        0
    );
    assert_eq!(
        float_to_int(Int::signed(32), Float::F32, Round::Rp, false, 1),
        1
    );
    assert_eq!(
        float_to_int(
            Int::signed(32),
            Float::F64,
            Round::Rn,
            false,
            1e300f64.to_bits()
        ),
        0x7fff_ffff
    );
}

/// Against Rust's `as`, which rounds to nearest even.
#[test]
fn integer_to_float_and_integer() {
    let mut rng = Rng(43);
    for _ in 0..200_000 {
        let r = rng.next();
        let x = r >> (rng.next() % 64);
        let to = |dst, src| int_to_float(dst, src, Round::Rn, false, x);
        assert_eq!(
            to(Float::F32, Int::unsigned(64)),
            u64::from((x as f32).to_bits())
        );
        assert_eq!(
            to(Float::F32, Int::signed(64)),
            u64::from((x as i64 as f32).to_bits())
        );
        assert_eq!(
            to(Float::F32, Int::signed(32)),
            u64::from((x as i32 as f32).to_bits())
        );
        assert_eq!(to(Float::F64, Int::unsigned(64)), (x as f64).to_bits());
        assert_eq!(
            int_to_int(Int::signed(64), Int::signed(8), false, x),
            x as i8 as u64
        );
        assert_eq!(
            int_to_int(Int::unsigned(16), Int::unsigned(32), false, x),
            u64::from(x as u16)
        );
    }
    assert_eq!(
        int_to_int(Int::unsigned(8), Int::signed(32), true, 300),
        255
    );
    assert_eq!(
        int_to_int(Int::unsigned(8), Int::signed(32), true, -3i32 as u32 as u64),
        0
    );
    assert_eq!(
        int_to_int(Int::signed(8), Int::signed(16), true, 0x8000),
        -128i64 as u64
    );
    assert_eq!(
        int_to_float(Float::F16, Int::unsigned(32), Round::Rz, false, 70000),
        0x7bff
    );
    assert_eq!(
        int_to_float(Float::F32, Int::signed(32), Round::Rp, false, 0x0100_0001),
        0x4b80_0001
    );
    assert_eq!(
        pack_sat(Int::signed(16), 40000, -5i32 as u32, 0),
        0x7fff_fffb
    );
    assert_eq!(pack_sat(Int::unsigned(8), 300, 5, 0xaaaa_bbcc), 0xbbcc_ff05);
}

/// From the OCP FP8 definition: e4m3 max 448 = 0x7e, 2^-9 = 0x01, 1 = 0x38; e5m2 max 57344 = 0x7b, 1 = 0x3c.
#[test]
fn fp8() {
    let m = Mods {
        satfinite: true,
        ..NO
    };
    let e4 = |v: f32| float_to_float(Float::E4m3, Float::F32, m, v.to_bits().into());
    let e5 = |v: f32| float_to_float(Float::E5m2, Float::F32, m, v.to_bits().into());
    for (v, want) in [
        (448.0, 0x7e),
        (460.0, 0x7e),
        (1e9, 0x7e),
        (f32::NEG_INFINITY, 0xfe),
        (f32::NAN, 0x7f),
        (1.0, 0x38),
        (1.0625, 0x38),
        (1.1875, 0x3a),
        (0.001953125, 0x01),
        (0.0009765625, 0x00),
        (0.00098, 0x01),
        (-0.0, 0x80),
    ] {
        assert_eq!(e4(v), want, "{v}");
    }
    for (v, want) in [
        (57344.0, 0x7b),
        (1e9, 0x7b),
        (f32::INFINITY, 0x7b),
        (1.0, 0x3c),
        (f32::NAN, 0x7f),
    ] {
        assert_eq!(e5(v), want, "{v}");
    }
    assert_eq!(
        pack2(Float::E4m3, m, 1f32.to_bits(), 448f32.to_bits()),
        0x387e
    );
    for x in 0..=255u16 {
        for f in [Float::E4m3, Float::E5m2] {
            let wide = fp8x2_to_f16x2(f, false, x << 8);
            let infinite = wide >> 16 & 0x7fff == 0x7c00;
            let want = if f.is_nan(x.into()) {
                0x7f
            } else {
                x - u16::from(infinite)
            };
            assert_eq!(f16x2_to_fp8x2(f, false, wide) >> 8, want, "{x:#x}");
        }
    }
    assert_eq!(fp8x2_to_f16x2(Float::E4m3, false, 0xb87e), 0xbc00_5f00);
    assert_eq!(fp8x2_to_f16x2(Float::E4m3, true, 0xb87e), 0x0000_5f00);
}

/// The fast paths against the exact core, and the order of packed halves (a above b).
#[test]
fn fast_paths_agree() {
    let mut rng = Rng(53);
    for _ in 0..100_000 {
        let (a, b) = (rng.f32_bits(), rng.f32_bits());
        assert_eq!(f32_to_bf16x2(a, b), pack2(Float::Bf16, NO, a, b));
        assert_eq!(f32_to_f16x2(a, b), pack2(Float::F16, NO, a, b));
        let m = Mods {
            round: Round::Rna,
            ..NO
        };
        let want = float_to_float(Float::Tf32, Float::F32, m, a.into());
        assert_eq!(u64::from(f32_to_tf32_rna(a)), want, "{a:#x}");
    }
    let lanes: Lanes = std::array::from_fn(|_| rng.f32_bits());
    let mut d = [0; 32];
    f32_to_f16x2_lanes(&mut d, &lanes, &[0x3f80_0000; 32]);
    for i in 0..32 {
        assert_eq!(d[i], f32_to_f16(lanes[i]) << 16 | 0x3c00);
    }
    let relu = Mods { relu: true, ..NO };
    assert_eq!(
        pack2(Float::Bf16, relu, (-1f32).to_bits(), 2f32.to_bits()),
        0x4000
    );
    assert_eq!(
        float_to_float(
            Float::F32,
            Float::F32,
            Mods { sat: true, ..NO },
            0x4000_0000
        ),
        0x3f80_0000
    );
}
