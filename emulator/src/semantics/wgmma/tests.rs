use super::super::mma::{Half, mma_m16n8k8_tf32, mma_m16n8k16_f16, mma_m16n8k16_f32};
use super::*;

/// Pseudo-random words, some of which are NaN, infinite or subnormal in most formats.
fn words(seed: &mut u64) -> Lanes {
    std::array::from_fn(|_| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = (*seed >> 32) as u32;
        // Mostly of moderate size.
        match *seed >> 60 {
            0 => word,
            _ => word & 0x9fff_9fff | 0x2000_2000,
        }
    })
}

fn kind(format: Float, narrow: bool) -> Kind {
    Kind {
        formats: [format; 2],
        narrow,
        negated: [false; 2],
        mn_major: [false; 2],
    }
}

/// The pieces of B whose fragments these registers are: register i of lane 4 n + t has word t of piece i of column n.
fn pieces_of(b: &[Lanes; 2]) -> Eight {
    std::array::from_fn(|number| {
        let (half, n) = (number / 8, number % 8);
        let mut piece = [0; 16];
        for t in 0..4 {
            piece[4 * t..4 * t + 4].copy_from_slice(&b[half][4 * n + t].to_le_bytes());
        }
        piece
    })
}

/// With the same operands, `mma.sync` of the same K gives the same bits: on Hopper both sum all of K at once.
#[test]
fn products_are_those_of_mma() {
    let mut seed = 1;
    for _ in 0..300 {
        let mut next = || words(&mut seed);
        let a: [Lanes; 4] = [0; 4].map(|_| next());
        let b: [Lanes; 2] = [0; 2].map(|_| next());
        let c: [Lanes; 4] = [0; 4].map(|_| next());
        let pieces = pieces_of(&b);
        for cores in [TensorCores::Fast, TensorCores::Hopper] {
            for (format, half) in [(Float::F16, Half::F16), (Float::Bf16, Half::Bf16)] {
                let kind = kind(format, false);
                let rows = rows_of_fragment::<16>(kind, &a);
                let columns = columns::<16, 8>(kind, &pieces);
                let mut expected = [[0; 32]; 4];
                mma_m16n8k16_f32(cores, half, &mut expected, &a, &b, &c);
                let mut d = c;
                multiply(cores, kind, &rows, &columns, d.each_mut(), true);
                assert_eq!(d, expected);
                // Without the accumulator.
                mma_m16n8k16_f32(cores, half, &mut expected, &a, &b, &[[0; 32]; 4]);
                multiply(cores, kind, &rows, &columns, d.each_mut(), false);
                assert_eq!(d, expected);
            }
            let of_f16 = kind(Float::F16, true);
            let mut expected = [[0; 32]; 2];
            mma_m16n8k16_f16(cores, &mut expected, &a, &b, &[c[0], c[1]]);
            let rows = rows_of_fragment::<16>(of_f16, &a);
            let half = columns::<16, 8>(of_f16, &pieces);
            let mut d = [c[0], c[1]];
            multiply_f16(cores, of_f16, &rows, &half, d.each_mut(), true);
            assert_eq!(d, expected);
            let of_tf32 = kind(Float::Tf32, false);
            let mut expected = [[0; 32]; 4];
            mma_m16n8k8_tf32(cores, &mut expected, &a, &b, &c);
            let rows = rows_of_fragment::<8>(of_tf32, &a);
            let words = columns::<8, 4>(of_tf32, &pieces);
            let mut d = c;
            multiply(cores, of_tf32, &rows, &words, d.each_mut(), true);
            assert_eq!(d, expected);
        }
    }
}

/// 8-bit operands: terms are cut to 13 fraction bits, and so is the result.
#[test]
fn eight_bit_products_keep_13_bits() {
    let kind = kind(Float::E4m3, false);
    // 1 + 31 * 2^-14: the small terms are cut to nothing.
    let mut a = [[0.0; 32]; 16];
    let mut b = [[0.0; 8]; 32];
    a[0].fill(2f32.powi(-9));
    b.iter_mut().for_each(|row| row.fill(2f32.powi(-5)));
    (a[0][0], b[0][0]) = (1.0, 1.0);
    let product = |cores, c: f32| {
        let mut d = [[0; 32]; 4];
        d[0][0] = c.to_bits();
        multiply(cores, kind, &a, &b, d.each_mut(), true);
        f32::from_bits(d[0][0])
    };
    assert_eq!(product(TensorCores::Hopper, 0.0), 1.0);
    let exact = 1.0 + 31.0 * 2f32.powi(-14);
    assert_eq!(product(TensorCores::Fast, 0.0), exact);
    // The accumulator is cut as well.
    let c = 2f32.powi(-13) + 2f32.powi(-14);
    assert_eq!(product(TensorCores::Hopper, c), 1.0 + 2f32.powi(-13));
    // There is no such instruction on Ampere: its numerics are Hopper's too.
    assert_eq!(product(TensorCores::Ampere, c), 1.0 + 2f32.powi(-13));
    let mut seed = 5;
    let mut next = || words(&mut seed);
    let a: [Lanes; 4] = [0; 4].map(|_| next().map(|x| x & 0x3f3f_3f3f));
    let pieces = pieces_of(&[0; 2].map(|_| next()));
    let mut d: [Lanes; 4] = [[0; 32]; 4];
    let rows = rows_of_fragment::<32>(kind, &a);
    let columns = columns::<32, 16>(kind, &pieces);
    multiply(
        TensorCores::Hopper,
        kind,
        &rows,
        &columns,
        d.each_mut(),
        true,
    );
    let finite = d.as_flattened().iter();
    let finite = finite.filter(|x| f32::from_bits(**x).is_finite());
    assert!(finite.clone().any(|&x| x != 0) && finite.clone().all(|x| x & 0x3ff == 0));
}

/// All pieces of a tile lie in it, and each in another place.
#[test]
fn pieces_fill_their_tiles() {
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        for mn_major in [false, true] {
            let width = swizzle.span().unwrap_or(16);
            // 64 rows, 32 bytes of K; what lies between is another product's.
            let (lbo, sbo) = match (swizzle, mn_major) {
                (Swizzle::None, false) => (1024, 128),
                (Swizzle::None, true) => (128, 256),
                (_, false) => (0, 8 * width),
                (_, true) => (16 * width, 8 * width),
            };
            let layout = Layout {
                descriptor: Descriptor {
                    start: 4096,
                    lbo,
                    sbo,
                    swizzle,
                },
                mn_major,
            };
            let mut found: Vec<u32> = layout.pieces(64).collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), 128, "{swizzle:?} {mn_major}");
            let tile = 4096..4096 + 64 * 128;
            assert!(found.iter().all(|at| at % 16 == 0 && tile.contains(at)));
        }
    }
}
