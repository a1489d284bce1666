//! What was never written, and is used: registers, memory, fragments.

#[path = "common/broken.rs"]
mod broken;
mod common;

use broken::{SHARED, WORDS, breaks, clean, findings_of, options};
use common::{Run, STORE, kernel};
use flashtile_emulator::{LaunchError, Rule};

#[test]
fn uninitialised_registers() {
    breaks(
        Rule::UninitializedStore,
        &format!("add.u32 %r9, %r50, 1;{STORE}"),
        32,
        "st.global.u32",
        None,
    );
    breaks(Rule::UninitializedAddress, "cvt.u64.u32 %d5, %r50;\nadd.s64 %d5, %d5, %d0;\nand.b64 %d5, %d5, 0;\nor.b64 %d6, %d5, %d50;\nadd.s64 %d5, %d0, %d5;\nld.global.u32 %r9, [%d5+4];".replace("%d50", "%d30").replace("or.b64 %d6, %d5, %d30;\n", "").replace("and.b64 %d5, %d5, 0;", "and.b64 %d5, %d5, 0x10;\nor.b64 %d5, %d5, 0;").as_str(), 32, "ld.global.u32 %r9, [%d5+4]", None);
    breaks(
        Rule::UninitializedBranch,
        "setp.eq.u32 %p1, %r50, 0;\n@%p1 bra END;\nmov.u32 %r1, 1;\nEND:",
        32,
        "@%p1 bra END",
        None,
    );
    // Masked away, shifted out, not selected: no use of what was never written.
    for discard in [
        "and.b32 %r9, %r50, 0;",
        "and.b32 %r1, %r50, 255;\nshr.u32 %r9, %r1, 8;",
        "or.b32 %r9, %r50, -1;",
        "setp.eq.u32 %p1, %r0, 99;\nselp.b32 %r9, %r50, %r0, %p1;",
        "mov.b32 %r9, %r50;\nmov.b32 %r9, 3;",
        "mov.u16 %h1, 7;\nmov.b32 %r1, {%h1, %h15};\nmov.b32 {%h2, %h3}, %r1;\nmov.b32 %r9, {%h2, %h2};",
    ] {
        clean(&format!("{discard}{STORE}"), 32);
    }
    // On one of two paths only.
    let path = |lanes: u32| {
        format!(
            "setp.lt.u32 %p1, %r0, {lanes};\n@%p1 bra S;\nmov.u32 %r60, 4;\nS: mov.u32 %r9, %r60;{STORE}"
        )
    };
    breaks(
        Rule::UninitializedStore,
        &path(3),
        32,
        "st.global.u32",
        None,
    );
    clean(&path(0), 32);
}

#[test]
fn uninitialised_memory() {
    let body = |store: &str, load: &str| format!("{WORDS}{store}\nbar.sync 0;\n{load}{STORE}");
    let all = "st.shared.u32 [%r1], %r0;";
    let half = "mov.u16 %h1, 1;\nst.shared.u16 [%r1], %h1;";
    let load = "ld.shared.u32 %r9, [%r2];";
    clean(&body(all, load), 64);
    breaks(
        Rule::UninitializedStore,
        &body(half, load),
        64,
        "st.global.u32",
        None,
    );
    // The half that was written is good.
    clean(
        &body(half, "ld.shared.u32 %r9, [%r2];\nand.b32 %r9, %r9, 0xffff;"),
        64,
    );
    clean(&body(half, "ld.shared.u16 %r9, [%r2];"), 64);
    // Matrices carry poison to the registers of the lanes that get it.
    let matrix = |rows: u32| {
        format!(
            "mov.u32 %r1, s;\nshl.b32 %r2, %r0, 4;\nadd.u32 %r1, %r1, %r2;\nsetp.lt.u32 %p1, %r0, {rows};\nmov.u64 %d5, 0;\n@%p1 st.shared.v2.u64 [%r1], {{%d5, %d5}};\nbar.sync 0;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r9}}, [%r1];{STORE}"
        )
    };
    clean(&matrix(8), 32);
    breaks(
        Rule::UninitializedStore,
        &matrix(7),
        32,
        "st.global.u32",
        None,
    );
    // Copies carry it, too, and zeros that they add are good.
    let run = |size: u32| {
        let run = Run::new(options());
        let fresh = run.device.allocate(16).unwrap();
        run.device.write(fresh, &[1; 8]).unwrap();
        run.put(2, &[fresh as u32, (fresh >> 32) as u32]);
        let text = kernel(
            SHARED,
            &format!(
                "ld.global.u64 %d5, [%d2];\nmov.u32 %r1, s;\nmov.u32 %r3, {size};\ncp.async.cg.shared.global [%r1], [%d5], 16, %r3;\ncp.async.wait_all;\nld.shared.u32 %r9, [%r1+12];{STORE}"
            ),
        );
        run.launch(&text, 1, 1, 0)
    };
    assert!(run(8).is_ok());
    let Err(LaunchError::Findings(report)) = run(16) else {
        panic!("the copied bytes were never written");
    };
    assert_eq!(report.findings[0].rule, Rule::UninitializedStore);
}

#[test]
fn outputs_that_are_not_written() {
    let run = Run::new(options());
    let out = run.buffers[0];
    run.device.forget(out, 256).unwrap();
    let body = format!("mov.u32 %r9, 1;\nsetp.eq.u32 %p1, %r0, 9;\n@%p1 ret;{STORE}");
    run.launch(&kernel("", &body), 1, 64, 0).unwrap();
    assert_eq!(
        run.device.first_unwritten(out, 256).unwrap(),
        Some(out + 36)
    );
    assert_eq!(run.device.first_unwritten(out, 36).unwrap(), None);
    assert_eq!(run.device.first_unwritten(out + 40, 216).unwrap(), None);
}

#[test]
fn poison_in_fragments() {
    // Row 3 of A: lanes 12 to 15 of the even registers. Only row 3 of the result may not be used.
    let body = |lanes: &str| {
        format!(
            "mov.u32 %r10, 0;\nmov.u32 %r11, 0;\nmov.u32 %r12, 0;\nmov.u32 %r14, 0;\nmov.u32 %r15, 0;\nmov.f32 %f1, 0f00000000;
             shr.u32 %r16, %r0, 2;\nsetp.eq.u32 %p1, %r16, 3;\n@%p1 bra SKIP;\nmov.u32 %r13, 0;\nSKIP:
             mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f2, %f3, %f4, %f5}}, {{%r13, %r10, %r11, %r12}}, {{%r14, %r15}}, {{%f1, %f1, %f1, %f1}};
             mov.b32 %r9, {lanes};{STORE}"
        )
    };
    clean(&body("%f4"), 32);
    breaks(
        Rule::UninitializedStore,
        &body("%f2"),
        32,
        "st.global.u32",
        None,
    );
    let report = findings_of(SHARED, &body("%f2"), 1, 32);
    assert_eq!(report.findings[0].site.thread, [12, 0, 0]);
    assert_eq!(report.findings[0].count, 4);
}
