//! The kernels' pipeline without their arithmetic: one warp that loads, two warpgroups that read, slots between them with barriers
//! that say *full* and *empty*.

use super::super::{Buffer, Map, Place, Target, Test};
use super::{
    Body,
    cluster::MULTICAST,
    numbered,
    tma::{EVICT_LAST, LOAD, Tensor, box_bytes, coordinates},
};
use crate::compare::Format;

/// Threads: a warpgroup of which one warp loads, and two that read.
const THREADS: u32 = 384;

/// Warps that read.
const READERS: u32 = 8;

/// Rounds: so many that every slot is used again and again, in phases of both parities.
const ROUNDS: u32 = 23;

/// Rows of 128 bytes in a slot: 8 bytes for each thread that reads.
const ROWS: u32 = 16;

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for cluster in [1, 2] {
        tests.extend([1, 2, 3].map(|slots| test(slots, cluster)));
    }
    tests
}

/// `%r20` the round, `%r21` its slot, `%r22` the parity of its phase, `%r23` and `%r24` the slot's barriers, `%r26` its address. Each
/// block of a cluster loads a part of the rows for all of them.
fn test(slots: u32, cluster: u32) -> Test {
    let tensor = Tensor::bf16([1, u64::from(ROUNDS * ROWS), 1, 64], ROWS / cluster, 128);
    let map = tensor.map();
    let (part, bytes) = (box_bytes(&map), cluster * box_bytes(&map));
    let mut body = Body::new(THREADS);
    let counts: Vec<_> = (0..2 * slots)
        .map(|n| if n < slots { 1 } else { cluster * READERS })
        .collect();
    body.pair().init(&counts).sync_cluster();
    body.add(Test::map_address(Place::Parameter, 0, "%d10"));
    body.add(coordinates([0; 5]));
    body.add("mov.u32 %r20, 0;\nmov.u32 %r21, 0;\nmov.u32 %r22, 0;\nmov.u32 %r30, 0;\nand.b32 %r31, %r0, 31;");
    // The warp that loads.
    body.add("setp.ge.u32 %p12, %r0, 32;");
    body.unless("@%p12", |body| {
        rounds(body, slots, bytes, |body| {
            body.add("xor.b32 %r25, %r22, 1;");
            body.wait("%r24", "%r25", 1);
            body.add("setp.ne.u32 %p13, %r50, 0;");
            body.unless("@%p13", |body| {
                body.first_thread(|body| {
                    body.add(format!(
                        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r23], {bytes};\nmul.lo.u32 %r12, %r20, {ROWS};\n\
                         mov.b64 %d11, {EVICT_LAST};"
                    ));
                    let from = "[%d10, {%r10, %r11, %r12, %r13, %r14}], [%r23]";
                    body.add(match cluster {
                        1 => format!("{LOAD} [%r26], {from}, %d11;"),
                        _ => format!(
                            "mad.lo.u32 %r12, %r16, {}, %r12;\nmad.lo.u32 %r15, %r16, {part}, %r26;\nmov.u16 %h0, 3;\n\
                             {MULTICAST} [%r15], {from}, %h0, %d11;",
                            ROWS / cluster
                        ),
                    });
                });
            });
        });
    });
    // Those that read.
    body.add("setp.lt.u32 %p12, %r0, 128;");
    body.unless("@%p12", |body| {
        rounds(body, slots, bytes, |body| {
            body.wait("%r23", "%r22", 2);
            // The kernels' products read as the copy engine does; these reads are ordinary ones, so that they need a fence.
            body.add(
                "sub.u32 %r27, %r0, 128;\nshl.b32 %r27, %r27, 3;\nadd.u32 %r27, %r26, %r27;\n\
                 ld.shared.v2.b32 {%r28, %r29}, [%r27];\nmad.lo.u32 %r30, %r30, 0x01000193, %r28;\n\
                 mad.lo.u32 %r30, %r30, 0x01000193, %r29;\nfence.proxy.async.shared::cta;\nbar.warp.sync 0xffffffff;",
            );
            let lanes = body.label();
            body.add(format!(
                "setp.ge.u32 %p13, %r31, {cluster};\n@%p13 bra {lanes};"
            ));
            body.add(match cluster {
                1 => "mbarrier.arrive.shared::cta.b64 _, [%r24];",
                _ => "mapa.shared::cluster.u32 %r27, %r24, %r31;\nmbarrier.arrive.shared::cluster.b64 _, [%r27];",
            });
            body.add(format!("{lanes}: bar.warp.sync 0xffffffff;"));
        });
    });
    // No block ends before the others are done with it.
    body.sync_cluster();
    body.add(
        "mul.wide.u32 %d5, %r0, 8;\nadd.s64 %d5, %d0, %d5;\nst.global.v2.u32 [%d5], {%r50, %r30};",
    );
    let mut test = Test::in_memory(
        format!("pipeline, {slots} slots, {cluster} blocks"),
        Target::Sm90a,
        &body.text,
        (2, THREADS),
        (2, Format::Bits),
        numbered(tensor.bytes().div_ceil(4) as u32),
    );
    test.cluster = cluster;
    test.declarations = Body::shared(slots * bytes, 2 * slots);
    test.maps.push(Map {
        tensor: map,
        of: Buffer::Input,
        place: Place::Parameter,
    });
    test
}

/// Every round, with its slot and parity.
fn rounds(body: &mut Body, slots: u32, bytes: u32, each: impl FnOnce(&mut Body)) {
    let again = body.label();
    body.add(format!(
        "{again}: mad.lo.u32 %r23, %r21, 8, %r3;\nadd.u32 %r24, %r23, {};\nmad.lo.u32 %r26, %r21, {bytes}, %r2;",
        8 * slots
    ));
    each(body);
    body.add(format!(
        "add.u32 %r20, %r20, 1;\nadd.u32 %r21, %r21, 1;\nsetp.eq.u32 %p13, %r21, {slots};\n@%p13 xor.b32 %r22, %r22, 1;\n\
         @%p13 mov.u32 %r21, 0;\nsetp.lt.u32 %p13, %r20, {ROUNDS};\n@%p13 bra {again};"
    ));
}
