//! Pairs of blocks: how they wait for each other, reach each other's shared memory, and load for each other.

use flashtile_emulator::TensorMap;

use super::super::{Buffer, Map, Place, Target, Test};
use super::{
    Body, numbered,
    tma::{EVICT_LAST, Tensor, box_bytes, coordinates},
};
use crate::compare::Format;

/// Threads of a block; blocks of a cluster, and of a test.
const THREADS: u32 = 128;
const PAIR: u32 = 2;
const BLOCKS: u32 = 6;

/// The kernels' load for several blocks.
pub(super) const MULTICAST: &str = "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint";

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    vec![
        ranks(),
        words(),
        bits(),
        arrivals(),
        multicast(1, "to the other block"),
        multicast(3, "halves to both blocks"),
    ]
}

impl Body {
    /// What was written is there for the threads of the cluster, and for the copy engine.
    pub(super) fn sync_cluster(&mut self) -> &mut Self {
        self.add("fence.proxy.async.shared::cta;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;")
    }

    /// The other block's number in `%r17`, this one's in `%r16`.
    pub(super) fn pair(&mut self) -> &mut Self {
        self.add("mov.u32 %r16, %cluster_ctarank;\nxor.b32 %r17, %r16, 1;")
    }
}

fn test(name: &str, body: &Body, words: usize, region: u32, input: Vec<u32>) -> Test {
    let mut test = Test::in_memory(
        format!("cluster, {name}"),
        Target::Sm90a,
        &body.text,
        (BLOCKS, THREADS),
        (words, Format::Bits),
        input,
    );
    test.cluster = PAIR;
    test.declarations = Body::shared(region, 2);
    test
}

/// Which blocks form a cluster.
fn ranks() -> Test {
    let mut body = Body::new(THREADS);
    body.pair().add(
        "mov.u32 %r18, %cluster_nctarank;\nmov.u32 %r19, %clusterid.x;\nmov.u32 %r20, %cluster_ctaid.x;\n\
         mul.wide.u32 %d5, %r0, 16;\nadd.s64 %d5, %d0, %d5;\nst.global.v4.u32 [%d5], {%r16, %r18, %r19, %r20};",
    );
    test("numbers of its blocks", &body, 4, 16, vec![0])
}

/// Every thread writes a word to the other block's shared memory; `barrier.cluster` makes it visible.
fn words() -> Test {
    let region = 16 * THREADS;
    let mut body = Body::new(THREADS);
    body.blank(region).pair().sync_cluster();
    body.add(
        "mad.lo.u32 %r18, %r1, 1000, %r0;\nmapa.shared::cluster.u32 %r19, %r2, %r17;\nmul.lo.u32 %r20, %r0, 12;\n\
         add.u32 %r19, %r19, %r20;\nst.shared::cluster.u32 [%r19], %r18;",
    );
    body.sync_cluster().finish(region);
    let words = body.words(region);
    test("stores and barrier.cluster", &body, words, region, vec![0])
}

/// Threads of both blocks set bits of words of both.
fn bits() -> Test {
    let region = 16 * THREADS;
    let mut body = Body::new(THREADS);
    body.sixteens(
        region,
        "mov.b32 %r53, 0;\nst.shared.v4.b32 [%r52], {%r53, %r53, %r53, %r53};\n",
    );
    body.pair().sync_cluster();
    body.add(
        "mad.lo.u32 %r18, %r16, 128, %r0;\nmul.lo.u32 %r18, %r18, 5;\nand.b32 %r19, %r18, 31;\nmov.u32 %r20, 1;\n\
         shl.b32 %r20, %r20, %r19;\nand.b32 %r21, %r0, 15;\nshl.b32 %r21, %r21, 2;\nadd.u32 %r21, %r2, %r21;",
    );
    for block in ["%r16", "%r17"] {
        body.add(format!(
            "mapa.shared::cluster.u32 %r22, %r21, {block};\nred.relaxed.cluster.shared::cluster.or.b32 [%r22], %r20;"
        ));
    }
    body.sync_cluster().finish(region);
    let words = body.words(region);
    test("red.or", &body, words, region, vec![0])
}

/// Every warp of both blocks arrives at a barrier of both, as consumers do that have read a slot, round after round.
fn arrivals() -> Test {
    let mut body = Body::new(THREADS);
    let warps = THREADS / 32;
    body.blank(16 * THREADS).pair().init(&[PAIR * warps]);
    body.sync_cluster();
    body.add("and.b32 %r20, %r0, 31;\nsetp.ge.u32 %p12, %r20, 2;\nmapa.shared::cluster.u32 %r21, %r3, %r20;\nmov.u32 %r22, 0;\nmov.u32 %r23, 0;");
    let again = body.label();
    body.add(format!("{again}:"));
    body.unless("@%p12", |body| {
        body.add("mbarrier.arrive.shared::cluster.b64 _, [%r21];");
    });
    body.wait("%r3", "%r22", 1);
    body.add(format!(
        "xor.b32 %r22, %r22, 1;\nadd.u32 %r23, %r23, 1;\nsetp.lt.u32 %p13, %r23, 7;\n@%p13 bra {again};"
    ));
    // How many rounds there were.
    body.add("shl.b32 %r24, %r0, 2;\nadd.u32 %r24, %r2, %r24;\nst.shared.u32 [%r24], %r23;");
    body.sync_cluster().finish(16 * THREADS);
    let words = body.words(16 * THREADS);
    test(
        "arrivals at both blocks' barriers",
        &body,
        words,
        16 * THREADS,
        vec![0],
    )
}

/// Boxes of 32 rows: each block loads one, to the place of its own number, for itself and the other (`blocks` is 3), or for the other
/// alone.
fn multicast(blocks: u32, what: &str) -> Test {
    let tensor = Tensor::bf16([1, 32 * BLOCKS as u64, 1, 64], 32, 128);
    let map: TensorMap = tensor.map();
    let bytes = box_bytes(&map);
    let region = 2 * bytes;
    let mut body = Body::new(THREADS);
    body.blank(region).pair().init(&[1]).sync_cluster();
    let mask = match blocks {
        3 => "mov.u16 %h0, 3;",
        _ => "mov.u32 %r18, 1;\nshl.b32 %r18, %r18, %r17;\ncvt.u16.u32 %h0, %r18;",
    };
    let expected = if blocks == 3 { region } else { bytes };
    body.first_thread(|body| {
        body.add(Test::map_address(Place::Parameter, 0, "%d10"));
        body.add(coordinates([0; 5])).add(format!(
            "shl.b32 %r12, %r1, 5;\nmad.lo.u32 %r15, %r16, {bytes}, %r2;\n{mask}\nmov.b64 %d11, {EVICT_LAST};\n\
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {expected};\n\
             {MULTICAST} [%r15], [%d10, {{%r10, %r11, %r12, %r13, %r14}}], [%r3], %h0, %d11;"
        ));
    });
    body.wait("%r3", "0", 1).sync_cluster().finish(region);
    let words = body.words(region);
    let input = numbered(tensor.bytes().div_ceil(4) as u32);
    let mut test = test(
        &format!("TMA multicast, {what}"),
        &body,
        words,
        region,
        input,
    );
    test.maps.push(Map {
        tensor: map,
        of: Buffer::Input,
        place: Place::Parameter,
    });
    test
}
