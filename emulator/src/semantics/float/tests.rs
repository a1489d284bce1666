use super::*;
use crate::semantics::tests::Rng;

fn bits(x: f32) -> u32 {
    x.to_bits()
}

/// Round-to-nearest: native and exact-core results agree, and the lane forms agree with the scalar ones.
#[test]
fn native_equals_core() {
    let mut rng = Rng(11);
    for _ in 0..20_000 {
        let mut lane = || std::array::from_fn(|_| rng.f32_bits());
        let (a, b, c): (Lanes, Lanes, Lanes) = (lane(), lane(), lane());
        let mut d = [[0; 32]; 6];
        for ftz in [false, true] {
            let m = Mods {
                ftz,
                ..Mods::default()
            };
            fma_rn_f32_lanes(ftz, &mut d[0], &a, &b, &c);
            add_rn_f32_lanes(ftz, &mut d[1], &a, &b);
            sub_rn_f32_lanes(ftz, &mut d[2], &a, &b);
            mul_rn_f32_lanes(ftz, &mut d[3], &a, &b);
            max_f32_lanes(ftz, &mut d[4], &a, &b);
            min_f32_lanes(ftz, &mut d[5], &a, &b);
            let mm = MinMax {
                ftz,
                ..MinMax::default()
            };
            for i in (0..32).step_by(5) {
                let (x, y, z) = (u64::from(a[i]), u64::from(b[i]), u64::from(c[i]));
                let want = [
                    fma(Float::F32, x, y, z, m),
                    add(Float::F32, x, y, m),
                    sub(Float::F32, x, y, m),
                    mul(Float::F32, x, y, m),
                    min_max(Float::F32, x, y, true, mm),
                    min_max(Float::F32, x, y, false, mm),
                ];
                for (op, want) in want.into_iter().enumerate() {
                    assert_eq!(
                        u64::from(d[op][i]),
                        want,
                        "op {op} ftz {ftz}: {x:#x} {y:#x} {z:#x}"
                    );
                }
            }
        }
    }
}

/// Directed results enclose the exact value (f64 holds sums and products of nearby f32s exactly).
#[test]
fn directed_modes_enclose() {
    let mut rng = Rng(5);
    for _ in 0..100_000 {
        let near = |r: u64| (r as u32 & 0x81ff_ffff) + 0x3e00_0000;
        let (a, b) = (near(rng.next()), near(rng.next()));
        let exact = f64::from(f32::from_bits(a)) * f64::from(f32::from_bits(b));
        let at = |round| {
            f64::from(f32::from_bits(mul_f32(
                a,
                b,
                Mods {
                    round,
                    ..Mods::default()
                },
            )))
        };
        let (lo, hi, zero) = (at(Round::Rm), at(Round::Rp), at(Round::Rz));
        assert!(lo <= exact && exact <= hi && zero.abs() <= exact.abs());
        assert_eq!(lo == hi, lo == exact);
        assert!(f64::from((hi as f32).next_down()) <= lo);
    }
}

/// Worked out by hand from IEEE 754.
#[test]
fn directed_by_hand() {
    let with = |round| Mods {
        round,
        ..Mods::default()
    };
    let tiny = bits(f32::MIN_POSITIVE);
    let one = bits(1.0);
    assert_eq!(add_f32(one, tiny, with(Round::Rp)), one + 1);
    assert_eq!(add_f32(one, tiny, with(Round::Rm)), one);
    assert_eq!(add_f32(one, tiny | 0x8000_0000, with(Round::Rz)), one - 1);
    assert_eq!(add_f32(one, bits(-1.0), with(Round::Rm)), 0x8000_0000);
    assert_eq!(add_f32(one, bits(-1.0), with(Round::Rn)), 0);
    assert_eq!(
        mul_f32(bits(f32::MAX), bits(2.0), with(Round::Rz)),
        bits(f32::MAX)
    );
    assert_eq!(
        mul_f32(bits(f32::MAX), bits(2.0), with(Round::Rp)),
        bits(f32::INFINITY)
    );
    assert_eq!(
        mul_f32(bits(f32::MAX), bits(-2.0), with(Round::Rp)),
        bits(f32::MIN)
    );
    assert_eq!(mul_f32(1, bits(0.5), with(Round::Rp)), 1);
    assert_eq!(mul_f32(1, bits(0.5), with(Round::Rn)), 0);
    assert_eq!(
        rcp(Float::F32, u64::from(bits(3.0)), with(Round::Rm)),
        0x3eaa_aaaa
    );
    assert_eq!(
        rcp(Float::F32, u64::from(bits(3.0)), with(Round::Rn)),
        0x3eaa_aaab
    );
    assert_eq!(
        fma_f32(bits(f32::INFINITY), 0, one, with(Round::Rn)),
        0x7fff_ffff
    );
    assert_eq!(
        add_f32(
            bits(0.75),
            bits(0.75),
            Mods {
                sat: true,
                ..Mods::default()
            }
        ),
        one
    );
    assert_eq!(
        add_f32(
            bits(f32::NAN),
            one,
            Mods {
                sat: true,
                ..Mods::default()
            }
        ),
        0
    );
}

/// f32 division, reciprocal and square root against the host.
#[test]
fn division_matches_native() {
    let mut rng = Rng(19);
    for _ in 0..200_000 {
        let (a, b) = (rng.f32_bits(), rng.f32_bits());
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let m = Mods::default();
        assert_eq!(
            div(Float::F32, a.into(), b.into(), m),
            u64::from(canonical_f32((x / y).to_bits()))
        );
        assert_eq!(
            sqrt(Float::F32, a.into(), m),
            u64::from(canonical_f32(x.sqrt().to_bits()))
        );
    }
}

/// The manual's rules for min and max.
#[test]
fn minimum_and_maximum() {
    let (nan, one, mone) = (0x7fc0_0000, bits(1.0), bits(-1.0));
    assert_eq!(max_f32::<false>(nan, one), one);
    assert_eq!(max_f32::<false>(one, nan), one);
    assert_eq!(max_f32::<false>(nan, nan | 0x8000_0000), 0x7fff_ffff);
    assert_eq!(max_f32::<false>(0x8000_0000, 0), 0);
    assert_eq!(min_f32::<false>(0x8000_0000, 0), 0x8000_0000);
    assert_eq!(min_f32::<false>(one, mone), mone);
    assert_eq!(max_f32::<true>(1, 0x8000_0001), 0);
    let m = MinMax {
        nan: true,
        ..MinMax::default()
    };
    assert_eq!(
        min_max(Float::F32, nan.into(), one.into(), true, m),
        0x7fff_ffff
    );
    let m = MinMax {
        xorsign_abs: true,
        ..MinMax::default()
    };
    assert_eq!(
        min_max(Float::F32, one.into(), bits(-2.0).into(), true, m),
        u64::from(bits(-2.0))
    );
    assert_eq!(
        min_max(Float::F16, 0x3c00, 0xbc00, false, MinMax::default()),
        0xbc00
    );
}

/// Definitions from the manual.
#[test]
fn signs_and_tests() {
    assert_eq!(copysign(Float::F32, 0x8000_0000, 0x3f80_0000), 0xbf80_0000);
    assert_eq!(neg(Float::F16, 0x3c00, false), 0xbc00);
    assert_eq!(abs(Float::Bf16, 0xbf80, false), 0x3f80);
    assert_eq!(neg(Float::F32, 1, true), 0x8000_0000);
    assert!(
        testp(Float::F32, 1, TestP::Subnormal) && testp(Float::F32, 0x7f80_0000, TestP::Infinite)
    );
    assert!(testp(Float::F64, 0x7ff0_0000_0000_0000, TestP::Number));
    assert!(compare(Float::F16, Cmp::Lt, 0xbc00, 0x3c00, false));
    assert!(compare_f32::<true>(Cmp::Eq, 1, 0x8000_0001));
    assert!(compare_f32::<false>(Cmp::Gtu, 0x7fff_ffff, 0));
}
