//! Floating-point arithmetic, minimum and maximum, comparison.

use std::cmp::Ordering::{self, Equal, Greater, Less};

use super::{
    super::{
        Class,
        rounding::{BF16, F16, F32, F64, Format, Mode, quotient, root, sum},
    },
    Forms, Kind,
};

/// Clamps to [0, 1]; NaN and -0 become +0.
pub fn saturate(format: Format, bits: u64) -> u64 {
    let one = format.round((1.0, 0.0), Mode::Rn);
    match format.is_nan(bits) || bits & format.sign() != 0 {
        true => 0,
        false => bits.min(one),
    }
}

/// What is negative becomes +0.
pub fn relu(format: Format, bits: u64) -> u64 {
    match (format.is_nan(bits), bits & format.sign() != 0) {
        (true, _) => format.nan(),
        (false, true) => 0,
        (false, false) => bits,
    }
}

pub fn add(f: &mut Forms) {
    singles(f);
    doubles(f);
    halves(f);
    for (format, kind) in [
        (F16, Kind::X),
        (BF16, Kind::X),
        (F32, Kind::F),
        (F64, Kind::G),
    ] {
        signs(f, format, kind);
        extremes(f, format, kind);
        compare(f, format, kind);
    }
}

/// Operands as numbers, flushed before if `.ftz` says so.
fn numbers<const N: usize>(format: Format, ftz: bool, x: &[u64]) -> [f64; N] {
    std::array::from_fn(|n| format.decode(if ftz { format.flush(x[n]) } else { x[n] }))
}

fn singles(f: &mut Forms) {
    for (mode, suffix) in Mode::ALL {
        for (ftz, flush) in [(false, ""), (true, ".ftz")] {
            for (sat, clamp) in [(false, ""), (true, ".sat")] {
                let finish = move |pair| {
                    let bits = F32.round(pair, mode);
                    let bits = if ftz { F32.flush(bits) } else { bits };
                    if sat { saturate(F32, bits) } else { bits }
                };
                let name = |opcode| format!("{opcode}.{suffix}{flush}{clamp}.f32");
                let kinds = [Kind::F; 3];
                f.plain(name("add"), Class::R, &kinds[..2], move |x| {
                    let [a, b] = numbers(F32, ftz, x);
                    finish(sum(a, b, mode))
                });
                f.plain(name("sub"), Class::R, &kinds[..2], move |x| {
                    let [a, b] = numbers(F32, ftz, x);
                    finish(sum(a, -b, mode))
                });
                f.plain(name("mul"), Class::R, &kinds[..2], move |x| {
                    let [a, b]: [f64; 2] = numbers(F32, ftz, x);
                    finish((a * b, 0.0))
                });
                f.plain(name("fma"), Class::R, &kinds, move |x| {
                    let [a, b, c] = numbers(F32, ftz, x);
                    finish(sum(a * b, c, mode))
                });
            }
            let finish = move |pair| {
                let bits = F32.round(pair, mode);
                if ftz { F32.flush(bits) } else { bits }
            };
            let name = |opcode| format!("{opcode}.{suffix}{flush}.f32");
            f.plain(name("div"), Class::R, &[Kind::F; 2], move |x| {
                let [a, b] = numbers(F32, ftz, x);
                finish(quotient(a, b))
            });
            f.plain(name("rcp"), Class::R, &[Kind::F], move |x| {
                let [a] = numbers(F32, ftz, x);
                finish(quotient(1.0, a))
            });
            f.plain(name("sqrt"), Class::R, &[Kind::F], move |x| {
                let [a] = numbers(F32, ftz, x);
                finish(root(a))
            });
        }
    }
}

/// f64: to nearest, which is the host's.
fn doubles(f: &mut Forms) {
    let bits = |x: f64| if x.is_nan() { F64.nan() } else { x.to_bits() };
    let number = f64::from_bits;
    let kinds = [Kind::G; 3];
    f.plain("add.f64", Class::D, &kinds[..2], move |x| {
        bits(number(x[0]) + number(x[1]))
    });
    f.plain("sub.rn.f64", Class::D, &kinds[..2], move |x| {
        bits(number(x[0]) - number(x[1]))
    });
    f.plain("mul.f64", Class::D, &kinds[..2], move |x| {
        bits(number(x[0]) * number(x[1]))
    });
    f.plain("div.rn.f64", Class::D, &kinds[..2], move |x| {
        bits(number(x[0]) / number(x[1]))
    });
    f.plain("sqrt.rn.f64", Class::D, &kinds[..1], move |x| {
        bits(number(x[0]).sqrt())
    });
    f.plain("rcp.rn.f64", Class::D, &kinds[..1], move |x| {
        bits(1.0 / number(x[0]))
    });
    f.plain("fma.rn.f64", Class::D, &kinds, move |x| {
        bits(number(x[0]).mul_add(number(x[1]), number(x[2])))
    });
}

/// f16 and bf16, and pairs of them in 32 bits.
fn halves(f: &mut Forms) {
    type Meaning = fn(Format, [u64; 3]) -> u64;
    let all: [(&str, usize, Meaning); 4] = [
        ("add", 2, |format, x| {
            let [a, b, _] = x.map(|x| format.decode(x));
            format.round(sum(a, b, Mode::Rn), Mode::Rn)
        }),
        ("sub", 2, |format, x| {
            let [a, b, _] = x.map(|x| format.decode(x));
            format.round(sum(a, -b, Mode::Rn), Mode::Rn)
        }),
        ("mul", 2, |format, x| {
            let [a, b, _] = x.map(|x| format.decode(x));
            format.round((a * b, 0.0), Mode::Rn)
        }),
        ("fma.rn", 3, |format, x| {
            let [a, b, c] = x.map(|x| format.decode(x));
            format.round(sum(a * b, c, Mode::Rn), Mode::Rn)
        }),
    ];
    type Finish = fn(Format, u64) -> u64;
    for format in [F16, BF16] {
        for (opcode, operands, meaning) in all {
            let mut endings: Vec<(&str, Finish)> = vec![("", |_, bits| bits)];
            if format == F16 {
                endings.push((".sat", saturate));
            }
            if operands == 3 {
                endings.push((".relu", relu));
            }
            for (suffix, finish) in endings {
                let one = move |x: [u64; 3]| finish(format, meaning(format, x));
                let operand = |x: &[u64], n: usize| x.get(n).copied().unwrap_or(0);
                let name = format!("{opcode}{suffix}.{}", format.name);
                let kinds = [Kind::X; 3];
                f.plain(name.as_str(), Class::H, &kinds[..operands], move |x| {
                    one([0, 1, 2].map(|n| operand(x, n)))
                });
                let kinds = [Kind::R; 3];
                f.plain(
                    format!("{name}x2"),
                    Class::R,
                    &kinds[..operands],
                    move |x| {
                        let at = |up: u32| one([0, 1, 2].map(|n| operand(x, n) >> up & 0xffff));
                        at(16) << 16 | at(0)
                    },
                );
            }
        }
    }
}

fn signs(f: &mut Forms, format: Format, kind: Kind) {
    let (name, to, sign) = (format.name, kind.class(), format.sign());
    f.plain(format!("abs.{name}"), to, &[kind], move |x| x[0] & !sign);
    f.plain(format!("neg.{name}"), to, &[kind], move |x| x[0] ^ sign);
    if format != F32 && format != F64 {
        return;
    }
    f.plain(format!("copysign.{name}"), to, &[kind; 2], move |x| {
        x[0] & sign | x[1] & !sign
    });
    type Property = fn(Format, u64) -> bool;
    let properties: [(&str, Property); 6] = [
        ("finite", |format, x| format.decode(x).is_finite()),
        ("infinite", |format, x| format.decode(x).is_infinite()),
        ("number", |format, x| !format.is_nan(x)),
        ("notanumber", |format, x| format.is_nan(x)),
        // Zeros are normal here.
        ("normal", |format, x| {
            format.decode(x).is_finite() && !format.is_subnormal(x)
        }),
        ("subnormal", |format, x| format.is_subnormal(x)),
    ];
    for (property, holds) in properties {
        f.plain(
            format!("testp.{property}.{name}"),
            Class::P,
            &[kind],
            move |x| u64::from(holds(format, x[0])),
        );
    }
}

/// Minimum and maximum: -0 is below +0, a NaN loses unless `.NaN` lets it win.
fn extremes(f: &mut Forms, format: Format, kind: Kind) {
    let (name, to) = (format.name, kind.class());
    for (opcode, greater) in [("min", false), ("max", true)] {
        let choose = move |a: u64, b: u64, nan: bool| {
            let (na, nb) = (format.is_nan(a), format.is_nan(b));
            if na && nb || nan && (na || nb) {
                return format.nan();
            }
            if na || nb {
                return if na { b } else { a };
            }
            let (x, y) = (format.decode(a), format.decode(b));
            let a_is_greater = match x == y {
                // Zeros of two signs, or the same number.
                true => x.is_sign_positive(),
                false => x > y,
            };
            if a_is_greater == greater { a } else { b }
        };
        f.plain(format!("{opcode}.{name}"), to, &[kind; 2], move |x| {
            choose(x[0], x[1], false)
        });
        if format == F64 {
            continue;
        }
        f.plain(format!("{opcode}.NaN.{name}"), to, &[kind; 2], move |x| {
            choose(x[0], x[1], true)
        });
        if format == F32 {
            f.plain(format!("{opcode}.ftz.{name}"), to, &[kind; 2], move |x| {
                choose(format.flush(x[0]), format.flush(x[1]), false)
            });
            continue;
        }
        f.plain(
            format!("{opcode}.{name}x2"),
            Class::R,
            &[Kind::R; 2],
            move |x| {
                let at = |up: u32| choose(x[0] >> up & 0xffff, x[1] >> up & 0xffff, false);
                at(16) << 16 | at(0)
            },
        );
    }
}

fn compare(f: &mut Forms, format: Format, kind: Kind) {
    type Order = fn(Option<Ordering>) -> bool;
    // The second half holds for NaNs too.
    let orders: [(&str, Order); 14] = [
        ("eq", |o| o == Some(Equal)),
        ("ne", |o| matches!(o, Some(Less | Greater))),
        ("lt", |o| o == Some(Less)),
        ("le", |o| matches!(o, Some(Less | Equal))),
        ("gt", |o| o == Some(Greater)),
        ("ge", |o| matches!(o, Some(Greater | Equal))),
        ("num", |o| o.is_some()),
        ("equ", |o| matches!(o, None | Some(Equal))),
        ("neu", |o| o != Some(Equal)),
        ("ltu", |o| matches!(o, None | Some(Less))),
        ("leu", |o| o != Some(Greater)),
        ("gtu", |o| matches!(o, None | Some(Greater))),
        ("geu", |o| o != Some(Less)),
        ("nan", |o| o.is_none()),
    ];
    let name = format.name;
    for (order, holds) in orders {
        let holds = move |x: &[u64]| {
            u64::from(holds(format.decode(x[0]).partial_cmp(&format.decode(x[1]))))
        };
        f.plain(format!("setp.{order}.{name}"), Class::P, &[kind; 2], holds);
        let three = [kind, kind, Kind::P];
        f.plain(
            format!("setp.{order}.or.{name}"),
            Class::P,
            &three,
            move |x| holds(x) | x[2],
        );
        if format == F32 {
            f.plain(
                format!("setp.{order}.ftz.{name}"),
                Class::P,
                &[kind; 2],
                move |x| holds(&[format.flush(x[0]), format.flush(x[1])]),
            );
            f.plain(
                format!("set.{order}.u32.{name}"),
                Class::R,
                &[kind; 2],
                move |x| holds(x).wrapping_neg(),
            );
        }
    }
}
