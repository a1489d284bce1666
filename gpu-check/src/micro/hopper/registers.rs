//! Registers that warpgroups give to each other, and barriers among some of a block's warps.

use super::super::{Target, Test, inputs::Noise};
use super::Body;
use crate::compare::Format;

/// Launch bounds of the kernels, besides their threads.
const BOUNDS: &str = "\n.minnctapersm 1";

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    vec![
        // What the kernels ask for, and what three consumers would.
        moved(3, [24, 240], 200),
        moved(4, [32, 160], 128),
        turns("numbers in registers", "%r20", "%r21"),
        turns("numbers in the instruction", "4", "5"),
    ]
}

/// The first warpgroup gives registers back, the others take them, and hold so many values at once.
fn moved(warpgroups: u32, [fewer, more]: [u32; 2], values: u32) -> Test {
    let threads = 128 * warpgroups;
    let name = format!("setmaxnreg {fewer}/{more}, {threads} threads");
    let mut body = Body::new(threads);
    body.add("mov.u32 %r30, 0;\nsetp.ge.u32 %p12, %r0, 128;\nmul.wide.u32 %d5, %r0, 4;\nadd.s64 %d5, %d1, %d5;");
    body.unless("@%p12", |body| {
        body.add(format!(
            "setmaxnreg.dec.sync.aligned.u32 {fewer};\nmov.u32 %r30, %r0;"
        ));
    });
    body.unless("@!%p12", |body| {
        body.add(format!("setmaxnreg.inc.sync.aligned.u32 {more};"));
        for i in 0..values {
            body.add(format!(
                "ld.volatile.global.u32 %v{i}, [%d5+{}];",
                4 * threads * i
            ));
        }
        // No load is moved to after it, so that all of the values are there at once.
        body.add(format!("bar.sync 1, {};", threads - 128));
        for i in 0..values {
            body.add(format!("mad.lo.u32 %r30, %r30, 0x01000193, %v{i};"));
        }
    });
    body.add("add.s64 %d6, %d0, 0;\nmul.wide.u32 %d5, %r0, 4;\nadd.s64 %d6, %d6, %d5;\nst.global.u32 [%d6], %r30;");
    let mut noise = Noise::of(&name);
    let input = (0..threads * values).map(|_| noise.next32()).collect();
    let mut test = Test::in_memory(
        name,
        Target::Sm90a,
        &body.text,
        (1, threads),
        (1, Format::Bits),
        input,
    );
    test.bounds = BOUNDS;
    test.declarations = format!("{}\n.reg .b32 %v<{values}>;", Body::shared(16, 1));
    test
}

/// Rounds of [`turns`].
const ROUNDS: u32 = 9;

/// Two warpgroups take turns: each waits for a barrier of its own, which the other comes to without waiting. In its turn it
/// writes its threads' numbers over those that the other has left, and adds up what it found.
fn turns(what: &str, own: &str, other: &str) -> Test {
    let threads = 256;
    let mut body = Body::new(threads);
    body.blank(512).sync();
    body.add("shr.u32 %r22, %r0, 7;\nadd.u32 %r20, %r22, 4;\nxor.b32 %r23, %r22, 1;\nadd.u32 %r21, %r23, 4;");
    body.add("and.b32 %r24, %r0, 127;\nshl.b32 %r24, %r24, 2;\nadd.u32 %r24, %r2, %r24;");
    body.add("xor.b32 %r25, %r0, 127;\nand.b32 %r25, %r25, 127;\nshl.b32 %r25, %r25, 2;\nadd.u32 %r25, %r2, %r25;");
    body.add("mov.u32 %r26, 0;\nmov.u32 %r30, 0;\nsetp.eq.u32 %p12, %r22, 0;");
    // The second lets the first begin.
    let numbered = own.starts_with('%');
    let pair = |group: u32| match numbered {
        true => (own.to_owned(), other.to_owned()),
        false if group == 0 => (own.to_owned(), other.to_owned()),
        false => (other.to_owned(), own.to_owned()),
    };
    body.unless("@%p12", |body| {
        body.add(format!("bar.arrive {}, 256;", pair(1).1));
    });
    for group in 0..2 {
        body.add(format!("setp.ne.u32 %p12, %r22, {group};"));
        body.unless("@%p12", |body| {
            let (own, other) = pair(group);
            let again = body.label();
            // A word that another thread of the warpgroup writes in this turn is read before it does.
            body.add(format!(
                "{again}: bar.sync {own}, 256;\nld.shared.u32 %r27, [%r25];\n\
                 mad.lo.u32 %r30, %r30, 0x01000193, %r27;\nbar.sync {}, 128;\n\
                 mad.lo.u32 %r28, %r26, 1000, %r0;\nst.shared.u32 [%r24], %r28;\nadd.u32 %r26, %r26, 1;",
                1 + group
            ));
            // Whoever waits is let in; after the second's last round nobody does.
            let last = if group == 1 { ROUNDS } else { u32::MAX };
            body.add(format!("setp.eq.u32 %p13, %r26, {last};"));
            body.unless("@%p13", |body| {
                body.add(format!("bar.arrive {other}, 256;"));
            });
            body.add(format!(
                "setp.lt.u32 %p13, %r26, {ROUNDS};\n@%p13 bra {again};"
            ));
        });
    }
    body.add("mul.wide.u32 %d5, %r0, 4;\nadd.s64 %d5, %d0, %d5;\nst.global.u32 [%d5], %r30;");
    let mut test = Test::in_memory(
        format!("bar.sync and bar.arrive, warpgroups in turns, {what}"),
        Target::Sm90a,
        &body.text,
        (1, threads),
        (1, Format::Bits),
        vec![0],
    );
    test.bounds = BOUNDS;
    test.declarations = Body::shared(512, 1);
    test
}
