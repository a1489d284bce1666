//! Loads, stores, atomics, asynchronous copies, and their faults.

mod common;

use common::{Run, STORE, fault, kernel, line_of, run};
use flashtile_emulator::{
    AsyncTiming, Emulator, FaultKind, Launch, MemoryError, Module, Options, Space,
};

#[test]
fn widths_and_signs() {
    let body = "mov.u32 %r1, 0x80f0; st.global.u32 [%d0+512], %r1; ld.global.u8 %r2, [%d0+512];
        ld.global.s8 %r3, [%d0+513]; ld.global.s16 %r4, [%d0+512]; add.u32 %r9, %r2, %r3; add.u32 %r9, %r9, %r4;";
    let want = 0xf0u32
        .wrapping_add(0x80u8 as i8 as u32)
        .wrapping_add(0x80f0u16 as i16 as u32);
    assert_eq!(run("", &format!("{body}{STORE}"), 1), [want]);
    let body = "mov.u32 %r1, 1; mov.u32 %r2, 2; mov.u32 %r3, 3; mov.u32 %r4, 4;
        st.global.v4.b32 [%d0+512], {%r1, %r2, %r3, %r4}; ld.global.v2.u64 {%d5, %d6}, [%d0+512];
        mov.b64 {%r5, %r6}, %d6; mad.lo.u32 %r9, %r6, 10, %r5;";
    assert_eq!(run("", &format!("{body}{STORE}"), 1), [43]);
}

#[test]
fn local_generic_and_const() {
    let body = "mov.u64 %d3, loc; cvta.local.u64 %d4, %d3; shl.b32 %r1, %r0, 1; st.u32 [%d4+4], %r1;
        ld.local.u32 %r2, [%d3+4]; cvta.to.local.u64 %d5, %d4; ld.local.u32 %r3, [%d5+4];
        mov.u64 %d6, table; ld.const.u32 %r4, [%d6+8]; add.u32 %r9, %r2, %r3; add.u32 %r9, %r9, %r4;";
    let body = format!(".local .align 8 .b8 loc[16];\n{body}{STORE}");
    let want: Vec<u32> = (0..64).map(|t| 4 * t + 30).collect();
    assert_eq!(
        run(
            ".const .align 4 .u32 table[4] = {10, 20, 30, 40};",
            &body,
            64
        ),
        want
    );
    let body = "cvta.shared.u64 %d3, buf; st.u32 [%d3], 5; isspacep.shared %p1, %d3; isspacep.global %p2, %d0;
        ld.shared.u32 %r9, [buf]; @%p1 add.u32 %r9, %r9, 10; @%p2 add.u32 %r9, %r9, 20;";
    assert_eq!(run(".shared .b32 buf;", &format!("{body}{STORE}"), 1), [35]);
}

#[test]
fn scopes_from_inline_assembly() {
    let body = "mov.u32 %r9, 1; { .reg .b32 t; .reg .pred p; mov.b32 t, 5; setp.eq.u32 p, t, 5; @p bra L1;
        mov.u32 %r9, 2; L1: add.u32 %r9, %r9, t; } { .reg .b32 t; mov.b32 t, 7; L1: add.u32 %r9, %r9, t; }";
    assert_eq!(run("", &format!("{body}{STORE}"), 1), [13]);
}

#[test]
fn parameter_structs() {
    let text = ".version 7.8\n.target sm_80\n.address_size 64\n.entry k(.param .u8 tag, .param .align 16 .b8 s[24], .param .u32 last) {
        .reg .b32 %r<4>; .reg .b64 %d<3>; .reg .b16 %h<2>;
        ld.param.u8 %h1, [tag]; ld.param.u64 %d1, [s+8]; ld.param.u32 %r1, [s+16]; ld.param.u32 %r2, [last];
        cvt.u32.u16 %r3, %h1; st.global.v2.u32 [%d1], {%r1, %r2}; st.global.u32 [%d1+8], %r3; ret; }";
    let module = Module::parse(text).unwrap();
    let entry = module.entry("k").unwrap();
    assert_eq!(
        entry.params.iter().map(|p| p.offset).collect::<Vec<_>>(),
        [0, 16, 40]
    );
    assert_eq!(entry.params_size, 44);
    let device = Emulator::new(Options::default());
    let out = device.allocate(12).unwrap();
    let mut params = [0; 44];
    params[0] = 9;
    params[24..32].copy_from_slice(&out.to_le_bytes());
    params[32] = 5;
    params[40] = 6;
    let launch = Launch {
        grid: [1; 3],
        block: [1; 3],
        cluster: None,
        dynamic_shared: 0,
        params: &params,
    };
    device.launch(&module, "k", &launch).unwrap();
    let mut got = [0; 12];
    device.read(out, &mut got).unwrap();
    assert_eq!(got, [5, 0, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0]);
    let launch = Launch {
        params: &params[..43],
        ..launch
    };
    assert!(device.launch(&module, "k", &launch).is_err());
}

#[test]
fn faults_name_thread_and_line() {
    let body = "mul.wide.u32 %d3, %r0, 64; add.s64 %d3, %d0, %d3;\nst.global.u32 [%d3+64], %r0;";
    let found = fault("", body, 96);
    let FaultKind::OutOfBounds {
        space: Space::Global,
        size: 4,
        ..
    } = &found.kind
    else {
        panic!("{found}")
    };
    assert_eq!(found.thread, [63, 0, 0]);
    assert_eq!(found.line, line_of(&kernel("", body), "st.global"));
    assert!(
        found
            .to_string()
            .contains("0 bytes past the end of the allocation of 4096 bytes"),
        "{found}"
    );

    let found = fault(
        ".shared .b8 buf[64];",
        "mov.u32 %r1, buf; shl.b32 %r2, %r0, 2; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];",
        32,
    );
    assert!(
        matches!(
            found.kind,
            FaultKind::OutOfBounds {
                space: Space::Shared,
                ..
            }
        ),
        "{found}"
    );
    assert_eq!(found.thread, [16, 0, 0]);

    let found = fault("", "add.s64 %d3, %d0, 2; ld.global.u32 %r3, [%d3];", 32);
    assert!(
        matches!(found.kind, FaultKind::Misaligned { align: 4, .. }),
        "{found}"
    );
    let found = fault("", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d0+8];", 32);
    assert!(
        matches!(found.kind, FaultKind::Misaligned { align: 16, .. }),
        "{found}"
    );
    let found = fault("", "mov.u64 %d3, 0; ld.global.u32 %r3, [%d3+16];", 32);
    assert!(matches!(found.kind, FaultKind::Null { .. }), "{found}");
    let found = fault(
        ".shared .b8 buf[64];",
        "mov.u32 %r1, 0; ld.shared.u32 %r3, [%r1];",
        32,
    );
    assert!(matches!(found.kind, FaultKind::Null { .. }), "{found}");
    let found = fault(
        ".const .u32 t = 5;",
        "mov.u64 %d3, t; st.u32 [%d3], %r0;",
        32,
    );
    assert!(matches!(found.kind, FaultKind::ReadOnly { .. }), "{found}");
    let found = fault(
        "",
        ".local .b8 l[16]; mov.u64 %d3, l; ld.local.u32 %r1, [%d3+16];",
        32,
    );
    assert!(
        matches!(
            found.kind,
            FaultKind::OutOfBounds {
                space: Space::Local,
                ..
            }
        ),
        "{found}"
    );
}

#[test]
fn freed_memory() {
    let run = Run::new(Options::default());
    run.device.free(run.buffers[1]).unwrap();
    let error = run
        .launch(&kernel("", "ld.global.u32 %r1, [%d1+4];"), 1, 32, 0)
        .unwrap_err();
    assert!(error.to_string().contains("freed memory"), "{error}");
    assert!(matches!(
        run.device.free(run.buffers[1]),
        Err(MemoryError::NotAllocated { .. })
    ));
    assert!(matches!(
        run.device.write(run.buffers[1], &[0]),
        Err(MemoryError::OutOfBounds { .. })
    ));
    assert!(matches!(
        run.device.allocate(u64::MAX),
        Err(MemoryError::OutOfMemory { .. })
    ));
}

#[test]
fn atomics() {
    let run = Run::new(Options::default());
    let body = "atom.global.add.u32 %r1, [%d0], 1; red.global.max.u32 [%d0+4], %r0; red.global.add.f32 [%d0+8], 0f3F800000;
        atom.global.cas.b32 %r2, [%d0+12], 0, 7; atom.global.inc.u32 %r3, [%d0+16], 9; atom.add.u64 %d3, [%d0+24], 3;
        red.relaxed.gpu.global.add.noftz.f16x2 [%d0+32], %r9;";
    let body = format!("mov.u32 %r9, 0x3c003c00; {body}");
    run.launch(&kernel("", &body), 8, 64, 0).unwrap();
    let got = run.get(0, 9);
    assert_eq!(got[..2], [512, 63]);
    assert_eq!(f32::from_bits(got[2]), 512.0);
    assert_eq!(got[3..5], [7, 2]);
    assert_eq!(got[6], 1536);
    assert_eq!(got[8], 0x6000_6000);
}

const COPY: &str =
    "mov.u32 %r1, buf; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2; cvt.u64.u32 %d3, %r2;
    add.s64 %d4, %d1, %d3; st.shared.u32 [%r3], 1; cp.async.cg.shared.global [%r3], [%d4], 16; ";
const BUF: &str = ".shared .align 16 .b8 buf[512];";

fn copied(timing: AsyncTiming, rest: &str) -> Vec<u32> {
    let run = Run::timing(timing);
    run.put(1, &(0..128).map(|i| 100 + i).collect::<Vec<_>>());
    let body = format!("{COPY}{rest} ld.shared.u32 %r9, [%r3];{STORE}");
    run.launch(&kernel(BUF, &body), 1, 32, 0).unwrap();
    run.get(0, 32)
}

#[test]
fn copies_land_at_their_wait() {
    let data: Vec<u32> = (0..32).map(|i| 100 + 4 * i).collect();
    let group = "cp.async.commit_group; cp.async.wait_group 0;";
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(3),
    ] {
        assert_eq!(copied(timing, group), data);
        assert_eq!(copied(timing, "cp.async.wait_all;"), data);
    }
    // No wait, or one that does not cover the copy: the old value, unless copies are early.
    let weak = "cp.async.commit_group; cp.async.wait_group 1;";
    for rest in ["", "cp.async.wait_group 0;", weak] {
        assert_eq!(copied(AsyncTiming::Late, rest), [1; 32]);
        assert_eq!(copied(AsyncTiming::Early, rest), data);
    }
    let some = copied(AsyncTiming::Seeded(7), weak);
    assert!(
        some.contains(&1) && some.iter().any(|&v| v >= 100),
        "{some:?}"
    );
    // An older group is covered while a newer one is not.
    let two =
        "cp.async.commit_group; cp.async.ca.shared.global [%r3], [%d1], 4; cp.async.commit_group;
        cp.async.wait_group 1;";
    assert_eq!(copied(AsyncTiming::Late, two), data);
}

#[test]
fn copies_fill_with_zeros() {
    let rest = "cp.async.ca.shared.global [%r3], [%d4], 16, 0; cp.async.wait_all;";
    assert_eq!(copied(AsyncTiming::Late, rest), [0; 32]);
    let rest = "setp.lt.u32 %p1, %r0, 8; cp.async.ca.shared.global.L2::128B [%r3], [%d4], 16, %p1; cp.async.wait_all;";
    let want: Vec<u32> = (0..32)
        .map(|i| if i < 8 { 0 } else { 100 + 4 * i })
        .collect();
    assert_eq!(copied(AsyncTiming::Late, rest), want);
    let rest = "mov.u32 %r5, 3; cp.async.ca.shared.global [%r3], [%d4], 4, %r5; cp.async.wait_all;";
    assert_eq!(copied(AsyncTiming::Late, rest)[0], 100);
}

#[test]
fn copy_faults_at_issue() {
    let found = fault(
        BUF,
        "mov.u32 %r1, buf; add.s64 %d3, %d0, 8;\ncp.async.cg.shared.global [%r1], [%d3], 16;",
        32,
    );
    assert!(
        matches!(
            found.kind,
            FaultKind::Misaligned {
                align: 16,
                space: Space::Global,
                ..
            }
        ),
        "{found}"
    );
    let found = fault(
        BUF,
        "mov.u32 %r1, buf; add.s64 %d3, %d0, 4096;\ncp.async.cg.shared.global [%r1], [%d3], 16;",
        32,
    );
    assert!(
        matches!(
            found.kind,
            FaultKind::OutOfBounds {
                space: Space::Global,
                ..
            }
        ),
        "{found}"
    );
    // Nothing is read where the source size is zero.
    let run = Run::new(Options::default());
    let body = "mov.u32 %r1, buf; mov.u64 %d3, 0; cp.async.cg.shared.global [%r1], [%d3], 16, 0; cp.async.wait_all;";
    run.launch(&kernel(BUF, body), 1, 32, 0).unwrap();
}

#[test]
fn dynamic_shared_memory_follows_static() {
    let declarations = ".shared .align 4 .b8 fixed[20]; .extern .shared .align 128 .b8 dynamic[];";
    let run = Run::new(Options::default());
    let body = format!(
        "mov.u32 %r1, dynamic; mov.u32 %r2, fixed; sub.u32 %r9, %r1, %r2; mov.u32 %r3, %dynamic_smem_size; \
        st.shared.u32 [%r1+60], %r3; ld.shared.u32 %r4, [dynamic+60]; add.u32 %r9, %r9, %r4;{STORE}"
    );
    run.launch(&kernel(declarations, &body), 1, 32, 64).unwrap();
    assert_eq!(run.get(0, 32), [192; 32]);
    let body = body.replace("[%r1+60]", "[%r1+64]");
    assert!(run.launch(&kernel(declarations, &body), 1, 32, 64).is_err());
}

#[test]
fn unwritten_memory_is_poison() {
    let body = format!("ld.shared.u32 %r9, [buf];{STORE}");
    assert_eq!(run(BUF, &body, 32), [u32::MAX; 32]);
    let device = Emulator::new(Options::default());
    let at = device.allocate(8).unwrap();
    let mut bytes = [0; 8];
    device.read(at, &mut bytes).unwrap();
    assert_eq!(bytes, [0xff; 8]);
}

#[test]
fn mbarriers() {
    // Each warp arrives once; then every thread polls the first phase.
    let body = "mov.u32 %r1, bar; setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared.b64 [%r1], 2; bar.sync 0;
        and.b32 %r2, %r0, 31; setp.eq.u32 %p2, %r2, 0; @%p2 mbarrier.arrive.shared.b64 %d5, [%r1];
        W: mbarrier.test_wait.parity.shared.b64 %p3, [%r1], 0; @!%p3 bra W; mov.u32 %r9, 4;";
    assert_eq!(
        run(".shared .align 8 .b64 bar;", &format!("{body}{STORE}"), 64),
        [4; 64]
    );
    let found = fault(
        ".shared .align 8 .b64 bar;",
        "mov.u32 %r1, bar; mbarrier.arrive.shared.b64 _, [%r1];",
        32,
    );
    assert!(matches!(found.kind, FaultKind::Mbarrier { .. }), "{found}");
}

#[test]
fn copies_that_nobody_waits_for_take_bounded_memory() {
    // The copies of a warp happen when there are too many of them, and not before.
    let body = |copies: u32| {
        format!(
            "mov.u32 %r2, buf; mov.u32 %r3, 0; st.shared.u32 [%r2], 1; L: cp.async.ca.shared.global [%r2], [%d1], 4;
            add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, {copies}; @%p1 bra L; ld.shared.u32 %r9, [%r2];{STORE}"
        )
    };
    let run = Run::new(Options::default());
    run.put(1, &[77]);
    for (copies, value) in [(4000, 1), (5000, 77)] {
        run.launch(&kernel(BUF, &body(copies)), 1, 1, 0).unwrap();
        assert_eq!(run.get(0, 1), [value]);
    }
}
