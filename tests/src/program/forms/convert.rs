//! Conversions.

use super::{
    super::{
        Class,
        rounding::{BF16, F16, F32, F64, Format, Mode, Pair},
    },
    Forms, Kind,
    float::{relu, saturate},
    integer::Int,
};

/// The kind of the register that holds an integer; 8 bits are kept in 32.
fn kind_of(int: Int) -> Kind {
    match int.bits {
        16 => Kind::H,
        64 => Kind::D,
        _ => Kind::R,
    }
}

fn integers() -> impl Iterator<Item = Int> {
    [8, 16, 32, 64]
        .into_iter()
        .flat_map(|bits| [false, true].map(|signed| Int { bits, signed }))
}

const FLOATS: [(Format, Kind); 4] = [
    (F16, Kind::X),
    (BF16, Kind::X),
    (F32, Kind::F),
    (F64, Kind::G),
];

pub fn add(f: &mut Forms) {
    for to in integers() {
        for from in integers() {
            between_integers(f, to, from);
        }
        for (format, kind) in FLOATS {
            to_float(f, format, kind, to);
            to_integer(f, to, format, kind);
        }
    }
    between_floats(f);
    packed(f);
}

/// Into a wider register the result is extended as its type says.
fn between_integers(f: &mut Forms, to: Int, from: Int) {
    let (class, kinds) = (kind_of(to).class(), [kind_of(from)]);
    let names = format!("{}.{}", to.name(), from.name());
    f.plain(format!("cvt.{names}"), class, &kinds, move |x| {
        to.value(from.value(x[0]) as u64) as u64
    });
    f.plain(format!("cvt.sat.{names}"), class, &kinds, move |x| {
        from.value(x[0]).clamp(to.least(), to.most()) as u64
    });
}

fn to_float(f: &mut Forms, format: Format, kind: Kind, from: Int) {
    let (class, kinds) = (kind.class(), [kind_of(from)]);
    if format == F64 {
        // The host's conversion, to nearest.
        f.plain(
            format!("cvt.rn.f64.{}", from.name()),
            class,
            &kinds,
            move |x| (from.value(x[0]) as f64).to_bits(),
        );
        return;
    }
    for (mode, suffix) in Mode::ALL {
        let name = format!("cvt.{suffix}.{}.{}", format.name, from.name());
        f.plain(name, class, &kinds, move |x| {
            let value = from.value(x[0]);
            let near = value as f64;
            let pair: Pair = (near, (value - near as i128) as f64);
            format.round(pair, mode)
        });
    }
}

type Integral = fn(f64) -> f64;

/// The roundings to an integer.
const INTEGRAL: [(&str, Integral); 4] = [
    ("rni", f64::round_ties_even),
    ("rzi", f64::trunc),
    ("rmi", f64::floor),
    ("rpi", f64::ceil),
];

fn to_integer(f: &mut Forms, to: Int, format: Format, kind: Kind) {
    for (suffix, integral) in INTEGRAL {
        let name = format!("cvt.{suffix}.{}.{}", to.name(), format.name);
        f.plain(name, kind_of(to).class(), &[kind], move |x| {
            let value = format.decode(x[0]);
            if value.is_nan() {
                // From f64, and to 64 bits, only the highest bit is set; else the result is 0.
                return match format == F64 || to.bits == 64 {
                    true => to.value(1 << (to.bits - 1)) as u64,
                    false => 0,
                };
            }
            // Rust's cast clamps as well.
            (integral(value) as i128).clamp(to.least(), to.most()) as u64
        });
    }
}

fn between_floats(f: &mut Forms) {
    for (to, to_kind) in FLOATS {
        for (from, from_kind) in FLOATS {
            let names = format!("{}.{}", to.name, from.name);
            let class = to_kind.class();
            if to == F64 {
                if from != F64 {
                    f.plain(format!("cvt.{names}"), class, &[from_kind], move |x| {
                        let value = from.decode(x[0]);
                        if value.is_nan() {
                            F64.nan()
                        } else {
                            value.to_bits()
                        }
                    });
                }
                continue;
            }
            let exact = from != F64 && from != F32 && to == F32;
            if exact {
                f.plain(format!("cvt.{names}"), class, &[from_kind], move |x| {
                    to.round((from.decode(x[0]), 0.0), Mode::Rn)
                });
                f.plain(
                    format!("cvt.ftz.sat.{names}"),
                    class,
                    &[from_kind],
                    move |x| saturate(to, to.flush(to.round((from.decode(x[0]), 0.0), Mode::Rn))),
                );
            } else if matches!(from, F32 | F64) && from != to {
                for (mode, suffix) in Mode::ALL {
                    let name = format!("cvt.{suffix}.{names}");
                    f.plain(name, class, &[from_kind], move |x| {
                        to.round((from.decode(x[0]), 0.0), mode)
                    });
                }
                f.plain(
                    format!("cvt.rn.sat.{names}"),
                    class,
                    &[from_kind],
                    move |x| saturate(to, to.round((from.decode(x[0]), 0.0), Mode::Rn)),
                );
            }
        }
    }
    for (suffix, integral) in INTEGRAL {
        f.plain(
            format!("cvt.{suffix}.f32.f32"),
            Class::R,
            &[Kind::F],
            move |x| F32.round((integral(F32.decode(x[0])), 0.0), Mode::Rn),
        );
        f.plain(
            format!("cvt.{suffix}.ftz.f32.f32"),
            Class::R,
            &[Kind::F],
            move |x| F32.round((integral(F32.decode(F32.flush(x[0]))), 0.0), Mode::Rn),
        );
    }
}

fn packed(f: &mut Forms) {
    for format in [F16, BF16] {
        for (mode, suffix) in [(Mode::Rn, "rn"), (Mode::Rz, "rz")] {
            let half = move |x: u64| format.round((F32.decode(x), 0.0), mode);
            let name = format!("cvt.{suffix}.{}x2.f32", format.name);
            f.plain(name, Class::R, &[Kind::F; 2], move |x| {
                half(x[0]) << 16 | half(x[1])
            });
            let name = format!("cvt.{suffix}.relu.{}x2.f32", format.name);
            f.plain(name, Class::R, &[Kind::F; 2], move |x| {
                let [a, b] = [x[0], x[1]].map(|x| relu(format, half(x)));
                a << 16 | b
            });
            let name = format!("cvt.{suffix}.relu.{}.f32", format.name);
            f.plain(name, Class::H, &[Kind::F], move |x| {
                relu(format, half(x[0]))
            });
        }
    }
    // Ten bits of fraction are kept, ties away from zero.
    f.plain("cvt.rna.tf32.f32", Class::R, &[Kind::F], |x| {
        match F32.is_nan(x[0]) {
            true => F32.nan(),
            false if x[0] & 0x7fff_ffff == F32.infinity() => x[0],
            false => (x[0] + 0x1000) & !0x1fff,
        }
    });
    for (bits, signed) in [(16, true), (16, false)] {
        let int = Int { bits, signed };
        let clamp = move |x: u64| {
            let value = Int {
                bits: 32,
                signed: true,
            }
            .value(x);
            value.clamp(int.least(), int.most()) as u64 & 0xffff
        };
        f.plain(
            format!("cvt.pack.sat.{}.s32", int.name()),
            Class::R,
            &[Kind::R; 2],
            move |x| clamp(x[0]) << 16 | clamp(x[1]),
        );
    }
}
