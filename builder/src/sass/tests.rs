//! On loops as ptxas makes them, cut down: the shapes of the branches are real, most of the arithmetic is left out.

use super::*;
use crate::spec::TileWork;
use crate::spec::tests::spec;

/// nvdisasm's text of instructions; a line that ends in ":" is a label.
fn text(lines: &str) -> String {
    let mut text = String::from(".text.k:\n");
    let mut address = 0;
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if line.ends_with(':') {
            text.push_str(&format!("{line}\n"));
        } else {
            text.push_str(&format!("        /*{address:04x}*/   {line} ;\n"));
            address += 16;
        }
    }
    text
}

/// A warp of the sm_90a tier whose warpgroup has 64 rows, tiles of 64 keys, head_dim 32: two products for the scores, four
/// for the weighted sum.
fn hopper() -> EntrySpec {
    EntrySpec {
        arch: "sm_90a",
        threads: 384,
        work: Some(TileWork {
            rows: 16,
            keys: 64,
            head_dim_qk: 32,
            head_dim_v: 32,
            products: 1,
        }),
        ..spec("k")
    }
}

/// The body of a loop: `masks` instructions more than the plain one, its labels with a suffix.
fn body(suffix: &str, masks: usize) -> String {
    let masks = "ISETP.LT.AND P2, PT, R1, R2, PT\n".repeat(masks);
    format!(
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x200], R6
        @!P0 BRA `(.wait{suffix})
        .there{suffix}:
        WARPGROUP.ARRIVE
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT
        UIADD3 UR12, UR12, 0x2, URZ
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        {masks}FMNMX R1, R1, R24, !PT
        SHFL.BFLY PT, R2, R1, 0x1, 0x1f
        BRA.DIV ~URZ, `(.apart)
        VOTE.ANY P1, P1
        @!P1 BRA `(.keep{suffix})
        FMUL R88, R88, R3
        FMUL R89, R89, R3
        .keep{suffix}:
        MUFU.EX2 R24, R24
        F2FP.BF16.F32.PACK_AB R52, R25, R24
        WARPGROUP.ARRIVE
        HGMMA.64x32x16.F32.BF16 R88, R52, gdesc[UR8].tnspB, R88
        HGMMA.64x32x16.F32.BF16 R88, R56, gdesc[UR8].tnspB, R88
        HGMMA.64x32x16.F32.BF16 R88, R60, gdesc[UR8].tnspB, R88
        HGMMA.64x32x16.F32.BF16 R88, R64, gdesc[UR8].tnspB, R88, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        "
    )
}

/// Instructions of [`body`] without masks that the path executes, a latch included.
const PLAIN: u32 = 21;

/// Waits that don't succeed at once, out of line, and what a warp that is not whole would do.
fn out_of_line(suffixes: &[&str]) -> String {
    let waits = suffixes.iter().map(|s| {
        format!(
            ".wait{s}:
            SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x200], R6
            @!P0 BRA `(.wait{s})
            BRA `(.there{s})
            "
        )
    });
    let waits: String = waits.collect();
    format!("{waits}.apart:\nWARPSYNC R3\nBRA `(.keep{})\n", suffixes[0])
}

fn read(lines: &str, spec: &EntrySpec) -> MachineCode {
    match MachineCode::read(&text(lines), spec) {
        Ok(machine) => machine,
        Err(what) => unreachable!("{what}"),
    }
}

#[test]
fn the_masked_and_the_unmasked_loop_are_told_apart() {
    let (masked, plain) = (body("1", 10), body("2", 0));
    let machine = read(
        &format!(
            "MOV R1, R2
            @P3 BRA `(.producer)
            .first:
            {masked}@P6 BRA `(.first)
            .second:
            {plain}@P6 BRA `(.second)
            EXIT
            .producer:
            EXIT
            {}",
            out_of_line(&["1", "2"])
        ),
        &hopper(),
    );
    assert_eq!(machine.tensor_instructions, 12);
    assert_eq!((machine.loops.len(), machine.partial_loops), (2, 0));
    let steady = &machine.loops[0];
    assert_eq!(steady.instructions(), PLAIN);
    assert_eq!(machine.masked()[0].instructions(), PLAIN + 10);
    assert!(machine.masked()[0].address < steady.address);
    assert_eq!(steady.tiles, Some(1));
    // The tile has half of the unit's keys.
    assert!((steady.per_unit(steady.instructions()) - f64::from(2 * PLAIN)).abs() < 1e-9);
    // The rescaling beside the path; the wait repeats; a warp that is whole does not go apart.
    assert_eq!((steady.aside, steady.repeating_asides), (2, 1));
    assert_eq!(steady.runs, [2, 4]);
    assert!(!steady.is_serialised());
    assert_eq!(steady.classes[Class::Tensor as usize], 6);
    assert_eq!(steady.classes.iter().sum::<u32>(), PLAIN);
    // 16 rows, 64 keys, 32 + 32: 65536 multiplications, 512 a cycle.
    assert_eq!(steady.cycles.tensor, 128);
}

#[test]
fn an_unrolled_loop_counts_as_the_rolled_one_does() {
    let one = read(
        &format!(
            ".loop:\n{}@P6 BRA `(.loop)\nEXIT\n{}",
            body("1", 0),
            out_of_line(&["1"])
        ),
        &hopper(),
    );
    let two = read(
        &format!(
            ".loop:\n{}@!P6 BRA `(.done)\n{}@P6 BRA `(.loop)\n.done:\nEXIT\n{}",
            body("1", 0),
            body("2", 0),
            out_of_line(&["1", "2"])
        ),
        &hopper(),
    );
    let (one, two) = (&one.loops[0], &two.loops[0]);
    assert_eq!((one.tiles, two.tiles), (Some(1), Some(2)));
    assert_eq!(two.instructions(), 2 * one.instructions());
    let per_unit = |c: &LoopCost| (c.per_unit(c.instructions()), c.per_unit(c.cycles.tensor));
    assert_eq!(per_unit(one), per_unit(two));
    let limits = (2 * PLAIN - 1, 2 * PLAIN);
    for cost in [one, two] {
        assert!(cost.is_over(limits.0) && !cost.is_over(limits.1));
    }
    assert_eq!(two.aside, 2 * one.aside);
}

#[test]
fn ways_through_one_loop_are_told_apart_and_fetch_a_tile() {
    // The sm_80 tier: one loop, a branch to either body, copies of the next tile behind a branch, and a slow way to copy.
    let spec = EntrySpec {
        work: Some(TileWork {
            rows: 16,
            keys: 8,
            head_dim_qk: 16,
            head_dim_v: 16,
            products: 1,
        }),
        ..spec("k")
    };
    let machine = read(
        "MOV R1, R2
        .loop:
        @P5 EXIT
        BSSY B1, `(.copied)
        @!P0 BRA `(.none)
        @P1 BRA `(.slow)
        LDGSTS.E.BYPASS.128 [R4], [R6.64]
        LDGSTS.E.BYPASS.128 [R4+0x10], [R6.64+0x10]
        BRA `(.done)
        .slow:
        LDG.E.U16 R8, [R6.64]
        STS.U16 [R4], R8
        @P2 BRA `(.slow)
        .done:
        LDGDEPBAR
        .none:
        BSYNC B1
        .copied:
        @!P3 BRA `(.masked)
        HMMA.16816.F32.BF16 R24, R8, R10, RZ
        MUFU.EX2 R24, R24
        HMMA.16816.F32.BF16 R28, R24, R12, R28
        BRA `(.joined)
        .masked:
        ISETP.LT.AND P2, PT, R1, R2, PT
        HMMA.16816.F32.BF16 R24, R8, R10, RZ
        FSEL R24, R24, -INF, P2
        MUFU.EX2 R24, R24
        HMMA.16816.F32.BF16 R28, R24, R12, R28
        .joined:
        IADD3 R1, R1, 0x1, RZ
        BRA `(.loop)",
        &spec,
    );
    assert_eq!((machine.loops.len(), machine.partial_loops), (2, 0));
    let (plain, masked) = (&machine.loops[0], &machine.loops[1]);
    // 4 to the branch, 3 of copies, 2 more, 5 of the body, 2 to the end.
    assert_eq!((plain.instructions(), masked.instructions()), (16, 17));
    for path in [plain, masked] {
        assert_eq!(path.classes[Class::Global as usize], 2, "the copies");
        assert_eq!((path.aside, path.repeating_asides), (0, 1), "the slow way");
        assert_eq!((path.tiles, path.runs.len()), (Some(1), 0));
    }
}

#[test]
fn serialised_products_are_seen() {
    let serial = body("1", 0)
        .replace(
            "UIADD3 UR12, UR12, 0x2, URZ",
            "WARPGROUP.DEPBAR.LE gsb0, 0x0\nWARPGROUP.ARRIVE",
        )
        .replace("HGMMA.64x32x16", "WARPGROUP.ARRIVE\nHGMMA.64x32x16");
    let machine = read(
        &format!(
            ".loop:\n{serial}HGMMA.64x8x16.F16 RZ, gdesc[URZ], RZ, !UPT, gsb0\n@P6 BRA `(.loop)\nEXIT\n{}",
            out_of_line(&["1"])
        ),
        &hopper(),
    );
    assert_eq!(machine.loops[0].runs, [1; 6]);
    assert!(machine.loops[0].is_serialised());
    assert_eq!(machine.tensor_instructions, 6, "the empty product is none");
}

#[test]
fn a_loop_that_does_a_part_is_not_the_steady_one() {
    let scores = ".loop:
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24, gsb0
        @P6 BRA `(.loop)
        EXIT";
    let machine = read(scores, &hopper());
    assert_eq!((machine.loops.len(), machine.partial_loops), (0, 1));
    // Of a kernel whose tile nobody knows, every loop counts as it is.
    let unknown = read(
        scores,
        &EntrySpec {
            work: None,
            ..hopper()
        },
    );
    let cost = &unknown.loops[0];
    assert_eq!((cost.tiles, cost.instructions()), (None, 3));
    assert!((cost.per_unit(3) - 3.0).abs() < 1e-9);
    // Without products there is nothing to measure.
    let none = read(".loop:\nFADD R1, R1, R2\n@P6 BRA `(.loop)\nEXIT", &hopper());
    assert_eq!(none, MachineCode::default());
}
