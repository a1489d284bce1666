//! Integer arithmetic and logic, comparison, selection, moves.

use super::{
    super::Class,
    Forms,
    Kind::{self, Below},
};

/// An integer type.
#[derive(Clone, Copy, Debug)]
pub struct Int {
    pub bits: u32,
    pub signed: bool,
}

impl Int {
    pub fn name(self) -> String {
        format!("{}{}", if self.signed { "s" } else { "u" }, self.bits)
    }

    /// The number that the low bits are.
    pub fn value(self, x: u64) -> i128 {
        let up = 64 - self.bits;
        match self.signed {
            true => i128::from((x << up) as i64 >> up),
            false => i128::from(x << up >> up),
        }
    }

    pub fn least(self) -> i128 {
        if self.signed {
            -(1 << (self.bits - 1))
        } else {
            0
        }
    }

    pub fn most(self) -> i128 {
        (1 << (self.bits - u32::from(self.signed))) - 1
    }
}

/// 16, 32 and 64 bits, without and with sign, with the kind of their operands.
fn types() -> impl Iterator<Item = (Int, Kind)> {
    [(16, Kind::H), (32, Kind::R), (64, Kind::D)]
        .into_iter()
        .flat_map(|(bits, kind)| [false, true].map(|signed| (Int { bits, signed }, kind)))
}

pub fn add(f: &mut Forms) {
    for (int, kind) in types() {
        arithmetic(f, int, kind);
        compare(f, int, kind);
    }
    for (bits, kind) in [(16, Kind::H), (32, Kind::R), (64, Kind::D)] {
        logic(f, bits, kind);
    }
    wide(f);
    fields(f);
    words(f);
    predicates(f);
    moves(f);
}

fn arithmetic(f: &mut Forms, int: Int, kind: Kind) {
    let (name, to) = (int.name(), kind.class());
    let value = move |x: u64| int.value(x);
    let two = [kind; 2];
    let three = [kind; 3];
    f.plain(format!("add.{name}"), to, &two, |x| x[0].wrapping_add(x[1]));
    f.plain(format!("sub.{name}"), to, &two, |x| x[0].wrapping_sub(x[1]));
    let product = move |a: u64, b: u64| (value(a) as u128).wrapping_mul(value(b) as u128);
    f.plain(format!("mul.lo.{name}"), to, &two, move |x| {
        product(x[0], x[1]) as u64
    });
    f.plain(format!("mul.hi.{name}"), to, &two, move |x| {
        (product(x[0], x[1]) >> int.bits) as u64
    });
    f.plain(format!("mad.lo.{name}"), to, &three, move |x| {
        (product(x[0], x[1]) as u64).wrapping_add(x[2])
    });
    f.plain(format!("mad.hi.{name}"), to, &three, move |x| {
        ((product(x[0], x[1]) >> int.bits) as u64).wrapping_add(x[2])
    });
    f.plain(format!("min.{name}"), to, &two, move |x| {
        value(x[0]).min(value(x[1])) as u64
    });
    f.plain(format!("max.{name}"), to, &two, move |x| {
        value(x[0]).max(value(x[1])) as u64
    });
    f.plain(format!("sad.{name}"), to, &three, move |x| {
        ((value(x[0]) - value(x[1])).unsigned_abs() as u64).wrapping_add(x[2])
    });
    // Division by zero has no meaning: divisors are odd, and positive where there is a sign.
    let (scratch, bits) = match kind {
        Kind::H => ("%xh", 16),
        Kind::R => ("%xr", 32),
        _ => ("%xd", 64),
    };
    let clear = match int.signed {
        true => format!("and.b{bits} {scratch}, {scratch}, {:#x};", int.most()),
        false => String::new(),
    };
    for (opcode, divide) in [
        ("div", (|a, b| a / b) as fn(i128, i128) -> i128),
        ("rem", |a, b| a % b),
    ] {
        let text = format!("or.b{bits} {scratch}, $2, 1;{clear}{opcode}.{name} $0, $1, {scratch};");
        f.full(text, to, &two, move |x| {
            let divisor = (x[1] | 1) & int.most() as u64;
            divide(value(x[0]), value(divisor)) as u64
        });
    }
    f.plain(format!("shr.{name}"), to, &[kind, Kind::R], move |x| {
        (value(x[0]) >> x[1].min(100)) as u64
    });
    if int.signed {
        f.plain(format!("abs.{name}"), to, &[kind], move |x| {
            value(x[0]).unsigned_abs() as u64
        });
        f.plain(format!("neg.{name}"), to, &[kind], |x| x[0].wrapping_neg());
    }
}

fn compare(f: &mut Forms, int: Int, kind: Kind) {
    type Order = fn(&i128, &i128) -> bool;
    let mut orders: Vec<(&str, Order)> = vec![
        ("eq", i128::eq),
        ("ne", i128::ne),
        ("lt", i128::lt),
        ("le", i128::le),
        ("gt", i128::gt),
        ("ge", i128::ge),
    ];
    if !int.signed {
        let unsigned: [(&str, Order); 4] = [
            ("lo", i128::lt),
            ("ls", i128::le),
            ("hi", i128::gt),
            ("hs", i128::ge),
        ];
        orders.extend(unsigned);
    }
    let name = int.name();
    for (order, holds) in orders {
        let holds = move |x: &[u64]| u64::from(holds(&int.value(x[0]), &int.value(x[1])));
        let two = [kind; 2];
        f.plain(format!("setp.{order}.{name}"), Class::P, &two, holds);
        // The second destination is the complement.
        f.full(
            format!("setp.{order}.{name} %xp|$0, $1, $2;"),
            Class::P,
            &two,
            move |x| !holds(x),
        );
        let three = [kind, kind, Kind::P];
        f.plain(
            format!("setp.{order}.and.{name}"),
            Class::P,
            &three,
            move |x| holds(x) & x[2],
        );
        f.full(
            format!("setp.{order}.xor.{name} $0, $1, $2, !$3;"),
            Class::P,
            &three,
            move |x| holds(x) ^ x[2] ^ 1,
        );
        f.plain(
            format!("set.{order}.u32.{name}"),
            Class::R,
            &two,
            move |x| holds(x).wrapping_neg(),
        );
        f.plain(
            format!("set.{order}.f32.{name}"),
            Class::R,
            &two,
            move |x| holds(x) * u64::from(1f32.to_bits()),
        );
    }
}

fn logic(f: &mut Forms, bits: u32, kind: Kind) {
    let to = kind.class();
    let two = [kind; 2];
    f.plain(format!("and.b{bits}"), to, &two, |x| x[0] & x[1]);
    f.plain(format!("or.b{bits}"), to, &two, |x| x[0] | x[1]);
    f.plain(format!("xor.b{bits}"), to, &two, |x| x[0] ^ x[1]);
    f.plain(format!("not.b{bits}"), to, &[kind], |x| !x[0]);
    f.plain(format!("cnot.b{bits}"), to, &[kind], |x| {
        u64::from(x[0] == 0)
    });
    f.plain(format!("shl.b{bits}"), to, &[kind, Kind::R], |x| {
        x[0].checked_shl(x[1] as u32).unwrap_or(0)
    });
    f.plain(format!("shr.b{bits}"), to, &[kind, Kind::R], |x| {
        x[0].checked_shr(x[1] as u32).unwrap_or(0)
    });
    f.plain(format!("selp.b{bits}"), to, &[kind, kind, Kind::P], |x| {
        x[if x[2] == 1 { 0 } else { 1 }]
    });
    f.plain(
        format!("slct.b{bits}.s32"),
        to,
        &[kind, kind, Kind::R],
        |x| x[usize::from((x[2] as i32) < 0)],
    );
    // -0.0 counts as not negative, NaN as negative.
    f.plain(
        format!("slct.u{bits}.f32"),
        to,
        &[kind, kind, Kind::F],
        |x| {
            let chosen = f32::from_bits(x[2] as u32) >= 0.0;
            x[usize::from(!chosen)]
        },
    );
    f.plain(format!("mov.b{bits}"), to, &[kind], |x| x[0]);
}

/// Products of twice the width, carries, saturation.
fn wide(f: &mut Forms) {
    for (bits, kind, double) in [(16, Kind::H, Kind::R), (32, Kind::R, Kind::D)] {
        for signed in [false, true] {
            let int = Int { bits, signed };
            let name = int.name();
            let product = move |x: &[u64]| (int.value(x[0]) * int.value(x[1])) as u64;
            f.plain(
                format!("mul.wide.{name}"),
                double.class(),
                &[kind; 2],
                product,
            );
            let three = [kind, kind, double];
            f.plain(
                format!("mad.wide.{name}"),
                double.class(),
                &three,
                move |x| product(x).wrapping_add(x[2]),
            );
        }
    }
    let s32 = Int {
        bits: 32,
        signed: true,
    };
    let clamp = move |x: i128| x.clamp(s32.least(), s32.most()) as u64;
    let (to, two) = (Class::R, [Kind::R; 2]);
    f.plain("add.sat.s32", to, &two, move |x| {
        clamp(s32.value(x[0]) + s32.value(x[1]))
    });
    f.plain("sub.sat.s32", to, &two, move |x| {
        clamp(s32.value(x[0]) - s32.value(x[1]))
    });
    let four = [Kind::R; 4];
    let join = |high: u64, low: u64| high << 32 | low;
    f.full(
        "add.cc.u32 %xr, $2, $4; addc.u32 $0, $1, $3;",
        to,
        &four,
        move |x| join(x[0], x[1]).wrapping_add(join(x[2], x[3])) >> 32,
    );
    f.full(
        "sub.cc.u32 %xr, $2, $4; subc.u32 $0, $1, $3;",
        to,
        &four,
        move |x| join(x[0], x[1]).wrapping_sub(join(x[2], x[3])) >> 32,
    );
    f.full(
        "mad.lo.cc.u32 %xr, $1, $2, $3; madc.hi.u32 $0, $1, $2, $4;",
        to,
        &four,
        |x| {
            let low = ((x[0] * x[1]) & 0xffff_ffff) + x[2];
            ((x[0] * x[1]) >> 32) + (low >> 32) + x[3]
        },
    );
    f.full(
        "add.cc.u64 %xd, $1, $2; addc.u64 $0, $3, 0;",
        Class::D,
        &[Kind::D; 3],
        |x| x[2].wrapping_add(u64::from(x[0].overflowing_add(x[1]).1)),
    );
    for signed in [false, true] {
        let int = Int { bits: 24, signed };
        let name = if signed { "s32" } else { "u32" };
        let product = move |x: &[u64]| int.value(x[0]) * int.value(x[1]);
        f.plain(format!("mul24.lo.{name}"), to, &two, move |x| {
            product(x) as u64
        });
        f.plain(format!("mul24.hi.{name}"), to, &two, move |x| {
            (product(x) >> 16) as u64
        });
        let three = [Kind::R; 3];
        f.plain(format!("mad24.lo.{name}"), to, &three, move |x| {
            (product(x) as u64).wrapping_add(x[2])
        });
    }
}

/// Bit fields, counts, permutations.
fn fields(f: &mut Forms) {
    for (bits, kind) in [(32, Kind::R), (64, Kind::D)] {
        let to = kind.class();
        for signed in [false, true] {
            let int = Int { bits, signed };
            let name = int.name();
            let three = [kind, Kind::R, Kind::R];
            f.plain(format!("bfe.{name}"), to, &three, move |x| {
                let (at, len) = ((x[1] & 0xff) as u32, (x[2] & 0xff) as u32);
                let bit = |n: u32| x[0] >> n.min(bits - 1) & 1;
                let end = at + len;
                let fill = match signed && len > 0 {
                    true => bit((end - 1).min(bits - 1)),
                    false => 0,
                };
                (0..bits).fold(0, |field, n| {
                    let inside = n < len && at + n < bits;
                    field | (if inside { bit(at + n) } else { fill }) << n
                })
            });
            // The highest bit that is not a copy of the sign.
            let highest = move |x: u64| {
                let differs = |n: &u32| x >> n & 1 != u64::from(signed) & x >> (bits - 1);
                (0..bits).rev().find(differs)
            };
            f.plain(format!("bfind.{name}"), Class::R, &[kind], move |x| {
                highest(x[0]).map_or(u64::MAX, u64::from)
            });
            f.plain(
                format!("bfind.shiftamt.{name}"),
                Class::R,
                &[kind],
                move |x| highest(x[0]).map_or(u64::MAX, |n| u64::from(bits - 1 - n)),
            );
        }
        // The emulator takes immediates only.
        let four = [kind, kind, Below(256), Below(256)];
        f.plain(format!("bfi.b{bits}"), to, &four, move |x| {
            let (at, len) = (x[2] & 0xff, x[3] & 0xff);
            (0..u64::from(bits)).fold(0, |all, n| {
                let bit = match n >= at && n - at < len {
                    true => x[0] >> (n - at),
                    false => x[1] >> n,
                };
                all | (bit & 1) << n
            })
        });
        let shift = 64 - bits;
        f.plain(format!("brev.b{bits}"), to, &[kind], move |x| {
            x[0].reverse_bits() >> shift
        });
        f.plain(format!("clz.b{bits}"), Class::R, &[kind], move |x| {
            u64::from(x[0].leading_zeros() - shift)
        });
        f.plain(format!("popc.b{bits}"), Class::R, &[kind], |x| {
            u64::from(x[0].count_ones())
        });
    }
}

/// What exists for 32 bits only.
fn words(f: &mut Forms) {
    let (to, two, three) = (Class::R, [Kind::R; 2], [Kind::R; 3]);
    for (mode, amount) in [
        ("wrap", (|n| n & 31) as fn(u64) -> u64),
        ("clamp", |n| n.min(32)),
    ] {
        f.plain(format!("shf.l.{mode}.b32"), to, &three, move |x| {
            (x[1] << 32 | x[0]) << amount(x[2]) >> 32
        });
        f.plain(format!("shf.r.{mode}.b32"), to, &three, move |x| {
            (x[1] << 32 | x[0]) >> amount(x[2])
        });
        f.plain(format!("bmsk.{mode}.b32"), to, &two, move |x| {
            let (at, len) = match mode {
                "wrap" => (x[0] & 31, x[1] & 31),
                _ => (x[0].min(32), x[1].min(32)),
            };
            ((1 << len) - 1) << at
        });
    }
    f.plain(
        "lop3.b32",
        to,
        &[Kind::R, Kind::R, Kind::R, Below(256)],
        |x| {
            (0..32).fold(0, |all, n| {
                let row = (x[0] >> n & 1) << 2 | (x[1] >> n & 1) << 1 | x[2] >> n & 1;
                all | (x[3] >> row & 1) << n
            })
        },
    );
    f.plain("prmt.b32", to, &three, |x| {
        let bytes = x[1] << 32 | x[0];
        (0..4).fold(0, |all, n| {
            let selector = x[2] >> (4 * n) & 15;
            let byte = bytes >> (8 * (selector & 7)) & 0xff;
            let byte = match selector >> 3 {
                0 => byte,
                _ => (byte >> 7) * 0xff,
            };
            all | byte << (8 * n)
        })
    });
    for a_signed in [false, true] {
        for b_signed in [false, true] {
            let part = |x: u64, at: u64, bits: u32, signed| Int { bits, signed }.value(x >> at);
            let name = |signed| if signed { "s32" } else { "u32" };
            let types = format!("{}.{}", name(a_signed), name(b_signed));
            f.plain(format!("dp4a.{types}"), to, &three, move |x| {
                let products =
                    (0..4).map(|n| part(x[0], 8 * n, 8, a_signed) * part(x[1], 8 * n, 8, b_signed));
                (products.sum::<i128>() + i128::from(x[2])) as u64
            });
            f.plain(format!("dp2a.hi.{types}"), to, &three, move |x| {
                let products = (0..2).map(|n| {
                    part(x[0], 16 * n, 16, a_signed) * part(x[1], 16 + 8 * n, 8, b_signed)
                });
                (products.sum::<i128>() + i128::from(x[2])) as u64
            });
        }
    }
}

fn predicates(f: &mut Forms) {
    let two = [Kind::P; 2];
    f.plain("and.pred", Class::P, &two, |x| x[0] & x[1]);
    f.plain("or.pred", Class::P, &two, |x| x[0] | x[1]);
    f.plain("xor.pred", Class::P, &two, |x| x[0] ^ x[1]);
    f.plain("not.pred", Class::P, &[Kind::P], |x| !x[0]);
    f.plain("mov.pred", Class::P, &[Kind::P], |x| x[0]);
}

/// Packing and unpacking.
fn moves(f: &mut Forms) {
    f.full("mov.b64 $0, {$1, $2};", Class::D, &[Kind::R; 2], |x| {
        x[1] << 32 | x[0]
    });
    f.full("mov.b32 $0, {$1, $2};", Class::R, &[Kind::X; 2], |x| {
        x[1] << 16 | x[0]
    });
    f.full(
        "mov.b64 $0, {$1, $2, $3, $4};",
        Class::D,
        &[Kind::X; 4],
        |x| x[3] << 48 | x[2] << 32 | x[1] << 16 | x[0],
    );
    f.full("mov.b64 {%xr, $0}, $1;", Class::R, &[Kind::D], |x| {
        x[0] >> 32
    });
    f.full("mov.b64 {$0, _}, $1;", Class::R, &[Kind::D], |x| x[0]);
    f.full("mov.b32 {%xh, $0}, $1;", Class::H, &[Kind::R], |x| {
        x[0] >> 16
    });
}
