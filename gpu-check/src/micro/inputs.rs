//! Inputs: the values where instructions go wrong, and reproducible noise.

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// Noise that belongs to a name.
    pub fn of(name: &str) -> Self {
        // FNV-1a.
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// 64 random bits.
    pub fn next64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 32 random bits.
    pub fn next32(&mut self) -> u32 {
        (self.next64() >> 32) as u32
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next32()) * u64::from(n)) >> 32) as u32
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f64 {
        self.next32() as i32 as f64 / 2f64.powi(31)
    }
}

/// f32 values at which something changes: zeros, ones, ends of ranges, subnormals, ties of the conversions to
/// narrower formats, integers' limits, infinities, quiet and signalling NaN.
#[rustfmt::skip]
pub const F32: &[u32] = &[
    0x0000_0000, 0x8000_0000, 0x0000_0001, 0x8000_0001, 0x007f_ffff, 0x807f_ffff, 0x0080_0000, 0x8080_0000,
    0x3f80_0000, 0xbf80_0000, 0x3f80_0001, 0x3f7f_ffff, 0x3f00_0000, 0xbf00_0000, 0x3fc0_0000, 0xc020_0000,
    0x7f7f_ffff, 0xff7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0x7fff_ffff,
    0x3f80_1000, 0x3f80_3000, 0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff,
    0x477f_e000, 0x477f_f000, 0x477f_efff, 0x3380_0000, 0x3300_0000, 0x3300_0001, 0x3880_0000, 0x387f_e000,
    0x43df_ffff, 0x43e0_0000, 0x43e8_0000, 0x4780_0000, 0x4f00_0000, 0x4eff_ffff, 0xcf00_0000, 0x4f80_0000, 0x4b00_0001,
    0x4b80_0001, 0xc2fc_0000, 0xc315_0000, 0x42ff_ffff, 0x4300_0000, 0x4049_0fdb, 0x0040_0000, 0x0000_8000,
];

/// f16 values of the same kind.
pub const F16: &[u16] = &[
    0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x8400, 0x3c00, 0xbc00, 0x3c01, 0x3bff, 0x3800,
    0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7c01, 0x7fff, 0x4248, 0xc500,
];

/// bf16 values of the same kind.
pub const BF16: &[u16] = &[
    0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x0080, 0x8080, 0x3f80, 0xbf80, 0x3f81, 0x3f7f, 0x3f00,
    0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x7f81, 0x7fff, 0x4049, 0xc0a0,
];

/// Integers where signs, carries and shifts change.
#[rustfmt::skip]
pub const INT: &[u32] = &[
    0, 1, 2, 3, 5, 7, 8, 15, 16, 24, 31, 32, 33, 63, 64, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff, 0x0001_0000,
    0x007f_ffff, 0x00ff_ffff, 0x0100_0000, 0x5555_5555, 0xaaaa_aaaa, 0x7fff_ffff, 0x8000_0000, 0x8000_0001,
    0xdead_beef, 0xffff_ff80, 0xffff_fffe, 0xffff_ffff,
];

/// An operand's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit float.
    F32,
    /// f16 in a register of 16 bits.
    F16,
    /// bf16 in a register of 16 bits.
    Bf16,
    /// Two f16.
    F16x2,
    /// Two bf16.
    Bf16x2,
    /// Integer or bits, 16.
    B16,
    /// Integer or bits, 32.
    B32,
    /// A count: mostly below 64, but not always.
    Count,
    /// Integer or bits, 64.
    B64,
    /// A predicate.
    Pred,
}

impl Kind {
    /// Words in memory.
    pub const fn words(self) -> usize {
        match self {
            Self::B64 => 2,
            _ => 1,
        }
    }

    /// Values in one register; 0 where there are too many to try all.
    pub const fn every(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 | Self::B16 | Self::F16x2 | Self::Bf16x2 => 1 << 16,
            Self::Pred => 2,
            _ => 0,
        }
    }

    /// The values of special interest. Those of pairs are of the low half; [`pair`](Self::pair) has the other.
    pub fn edges(self) -> Vec<u64> {
        match self {
            Self::F32 => F32.iter().map(|&x| x.into()).collect(),
            Self::F16 | Self::F16x2 => F16.iter().map(|&x| x.into()).collect(),
            Self::Bf16 | Self::Bf16x2 => BF16.iter().map(|&x| x.into()).collect(),
            Self::B16 => INT.iter().map(|&x| u64::from(x & 0xffff)).collect(),
            Self::B32 => INT.iter().map(|&x| x.into()).collect(),
            Self::Count => (0..70).chain([127, 255, 256, 0xffff_ffff]).collect(),
            Self::B64 => {
                let wide =
                    |&x: &u32| [u64::from(x), u64::from(x) << 32, i64::from(x as i32) as u64];
                INT.iter().flat_map(wide).collect()
            }
            Self::Pred => vec![0, 1],
        }
    }

    /// A register's contents from a value of special interest: both halves of a pair get one.
    pub fn pair(self, value: u64) -> u64 {
        match self {
            Self::F16x2 | Self::Bf16x2 => value | (value.wrapping_mul(0x9e37) & 0xffff) << 16,
            _ => value,
        }
    }

    /// A random register: any bits, or a number of ordinary size.
    pub fn random(self, noise: &mut Noise) -> u64 {
        let plain = noise.below(2) == 0;
        let ordinary =
            |noise: &mut Noise| (noise.unit() * 2f64.powi(noise.below(12) as i32 - 6)) as f32;
        match self {
            Self::F32 if plain => ordinary(noise).to_bits().into(),
            Self::Bf16 | Self::Bf16x2 if plain => {
                let (a, b) = (ordinary(noise).to_bits(), ordinary(noise).to_bits());
                (a >> 16 | b & 0xffff_0000).into()
            }
            Self::F16 | Self::F16x2 if plain => {
                // Exponents of ordinary size, any sign and fraction.
                let half =
                    |noise: &mut Noise| noise.next32() & 0x83ff | (9 + noise.below(12)) << 10;
                (half(noise) | half(noise) << 16).into()
            }
            Self::Count if plain => noise.below(64).into(),
            Self::Pred => noise.below(2).into(),
            Self::B32 if plain => (noise.next32() >> noise.below(32)).into(),
            Self::B64 if plain => noise.next64() >> noise.below(64),
            Self::B64 => noise.next64(),
            _ => noise.next32().into(),
        }
    }
}

/// Inputs of an instruction with these operands: every value where that is possible, else each edge with each,
/// and `random` more.
pub fn operands(kinds: &[Kind], random: usize, noise: &mut Noise) -> Vec<u32> {
    let mut rows: Vec<Vec<u64>> = Vec::new();
    match *kinds {
        [kind] if kind.every() > 0 => {
            rows.extend((0..u64::from(kind.every())).map(|x| vec![kind.pair(x)]));
        }
        _ => {
            rows.push(Vec::new());
            for (at, kind) in kinds.iter().enumerate() {
                let mut edges = kind.edges();
                // Three or more operands: a part of the edges each, so that the product stays small.
                let most = match kinds.len() {
                    0..=2 => edges.len(),
                    3 => 24,
                    _ => 10,
                };
                while edges.len() > most {
                    edges.remove(noise.below(edges.len() as u32) as usize);
                }
                let next = |row: &Vec<u64>| {
                    let row = row.clone();
                    let with = move |&edge: &u64| {
                        let mut longer = row.clone();
                        longer.push(kinds[at].pair(edge));
                        longer
                    };
                    edges.iter().map(with).collect::<Vec<_>>()
                };
                rows = rows.iter().flat_map(next).collect();
            }
            for _ in 0..random {
                rows.push(kinds.iter().map(|kind| kind.random(noise)).collect());
            }
        }
    }
    let mut words = Vec::new();
    for row in rows {
        for (kind, value) in kinds.iter().zip(row) {
            words.push(value as u32);
            if kind.words() == 2 {
                words.push((value >> 32) as u32);
            }
        }
    }
    words
}
