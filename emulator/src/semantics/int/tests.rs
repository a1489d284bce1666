use super::*;

/// The manual's loop for `bfe` (9.7.1.19), bit by bit.
fn bfe_manual(a: u64, pos: u32, len: u32, msb: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let sbit = if !signed || len == 0 {
        0
    } else {
        a >> (pos + len - 1).min(msb) & 1
    };
    (0..=msb).fold(0, |d, i| {
        let bit = if i < len && pos + i <= msb {
            a >> (pos + i) & 1
        } else {
            sbit
        };
        d | bit << i
    })
}

/// The manual's loop for `bfi`.
fn bfi_manual(a: u64, b: u64, pos: u32, len: u32, msb: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    (0..len)
        .take_while(|i| pos + i <= msb && *i <= msb)
        .fold(b, |f, i| f & !(1 << (pos + i)) | (a >> i & 1) << (pos + i))
}

#[test]
fn bit_fields_match_the_manuals_loops() {
    let mut rng = crate::semantics::tests::Rng(3);
    for pos in (0..70).chain([255, 256, 257]) {
        for len in (0..70).chain([255, 256]) {
            let (a, b) = (rng.next(), rng.next());
            for signed in [false, true] {
                assert_eq!(
                    u64::from(w32::bfe(a as u32, pos, len, signed)),
                    bfe_manual(a & 0xffff_ffff, pos, len, 31, signed)
                );
                assert_eq!(
                    w64::bfe(a, pos, len, signed),
                    bfe_manual(a, pos, len, 63, signed)
                );
            }
            assert_eq!(
                u64::from(w32::bfi(a as u32, b as u32, pos, len)),
                bfi_manual(a, b & 0xffff_ffff, pos, len, 31)
            );
            assert_eq!(w64::bfi(a, b, pos, len), bfi_manual(a, b, pos, len, 63));
        }
    }
}

/// Expected values worked out by hand.
#[test]
fn division_and_shifts() {
    assert_eq!(w32::div_u(7, 0), u32::MAX);
    assert_eq!(w32::div_s(0x8000_0000, u32::MAX), 0x8000_0000);
    assert_eq!(w32::rem_s(0x8000_0000, u32::MAX), 0);
    assert_eq!(w32::rem_s(-7i32 as u32, 2), -1i32 as u32);
    assert_eq!(w64::rem_u(7, 0), u64::MAX);
    assert_eq!(w16::div_s(-7i16 as u16, 2), -3i16 as u16);
    assert_eq!(w32::shl(1, 32), 0);
    assert_eq!(w32::shr_s(0x8000_0000, 400), u32::MAX);
    assert_eq!(w32::shr_u(0x8000_0000, 32), 0);
    assert_eq!(w32::mul_hi_s(-1i32 as u32, 2), u32::MAX);
    assert_eq!(w32::mul_hi_u(u32::MAX, 2), 1);
    assert_eq!(w16::mul_wide_s(0xffff, 3), -3i32 as u32);
    assert_eq!(w64::mul_hi_u(u64::MAX, u64::MAX), u64::MAX - 1);
    assert_eq!(w32::add_carry(u32::MAX, 0, true), (0, true));
    assert_eq!(w32::sub_borrow(0, u32::MAX, true), (0, true));
    assert_eq!(shf_l(0x8000_0001, 0x1, 1, false), 0x3);
    assert_eq!(shf_l(0xaaaa_aaaa, 0x1, 32, false), 0xaaaa_aaaa);
    assert_eq!(shf_l(0xaaaa_aaaa, 0x1, 32, true), 0x1);
    assert_eq!(shf_r(0x2, 0x1, 1, true), 0x8000_0001);
    assert_eq!(shf_r(0x2, 0x77, 99, false), 0x77);
    assert_eq!(mul24(0xffff_ffff, 2, true, false), -2i32 as u32);
    assert_eq!(mul24(0xffff_ffff, 0x10000, false, true), 0x00ff_ffff);
}

/// Expected values worked out by hand from the manual's definitions.
#[test]
fn bits() {
    assert_eq!(w32::bfind(0, false), u32::MAX);
    assert_eq!(w32::bfind(u32::MAX, true), u32::MAX);
    assert_eq!(w32::bfind(0xffff_fff0, true), 3);
    assert_eq!(w32::bfind_shiftamt(0x10, false), 27);
    assert_eq!(w64::bfind(1 << 40, false), 40);
    // lut = f(0xf0, 0xcc, 0xaa), the manual's recipe.
    for (lut, f) in [
        (
            0xf0 & 0xcc & 0xaa,
            (|a, b, c| a & b & c) as fn(u32, u32, u32) -> u32,
        ),
        (0xf0 ^ 0xcc ^ 0xaa, |a, b, c| a ^ b ^ c),
        (0xf0 & 0xcc | (!0xf0 & 0xaa), |a, b, c| a & b | (!a & c)),
    ] {
        let (a, b, c) = (0x1234_5678, 0x9abc_def0, 0x0f1e_2d3c);
        assert_eq!(lop3(a, b, c, lut), f(a, b, c));
    }
    let (a, b) = (0x8382_8180, 0x0706_0504);
    assert_eq!(prmt(a, b, 0x7654, Prmt::Default), b);
    assert_eq!(prmt(a, b, 0x0000_8c08, Prmt::Default), 0xff00_80ff);
    assert_eq!(prmt(a, b, 1, Prmt::F4e), 0x0483_8281);
    assert_eq!(prmt(a, b, 1, Prmt::B4e), 0x0607_8081);
    assert_eq!(prmt(a, b, 2, Prmt::Rc8), 0x8282_8282);
    assert_eq!(prmt(a, b, 2, Prmt::Ecl), 0x8382_8282);
    assert_eq!(prmt(a, b, 1, Prmt::Ecr), 0x8181_8180);
    assert_eq!(prmt(a, b, 1, Prmt::Rc16), 0x8382_8382);
    assert_eq!(dp4a(0xff02_0304, 0x0101_0101, 10, true, true), 18);
    assert_eq!(dp4a(0xff02_0304, 0x0101_0101, 10, false, false), 274);
    assert_eq!(dp2a(0xffff_0002, 0x0000_0503, 0, true, false, false), 1);
    assert_eq!(bmsk(4, 8, false), 0xff0);
    assert_eq!(bmsk(0, 32, false), u32::MAX);
    assert_eq!(szext(0x80, 8, true, false), 0xffff_ff80);
    assert_eq!(w32::sad_s(-1i32 as u32, 1, 5), 7);
}

/// The manual's table of comparison operators.
#[test]
fn comparisons() {
    assert!(Cmp::Lt.signed(-1, 0) && !Cmp::Lo.unsigned(u64::MAX, 0) && Cmp::Hs.unsigned(3, 3));
    let nan = 1f32.partial_cmp(&f32::NAN);
    for name in ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"] {
        assert!(Cmp::parse(name).unwrap().holds(nan), "{name}");
    }
    for name in ["eq", "ne", "lt", "le", "gt", "ge", "num"] {
        assert!(!Cmp::parse(name).unwrap().holds(nan), "{name}");
    }
    assert!(Cmp::Eq.holds((-0f32).partial_cmp(&0f32)));
}
