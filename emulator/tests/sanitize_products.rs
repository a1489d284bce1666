//! What the sanitizer finds in products of warpgroups: their registers, their waits, and what they read.

#[path = "common/changed.rs"]
mod changed;
mod common;
#[path = "common/pipeline.rs"]
mod pipeline;

use changed::{FIRST_LOAD, FIRST_PRODUCT, LAST_PRODUCT, MODES, breaks, changed, report, sanitized};
use common::line_of;
use flashtile_emulator::{AsyncTiming, Rule, Schedule};

/// A stage is free when three of the four warps have waited for their parts of its products and said so: nothing orders the
/// fourth's part before the next load.
#[test]
fn products_that_one_warp_has_not_waited_for() {
    let counts = [
        ("[%r1+16], 4;", "[%r1+16], 3;"),
        ("[%r1+24], 4;", "[%r1+24], 3;"),
    ];
    let (rules, arrival) = (
        [Rule::Race, Rule::OverwriteInFlight],
        "setp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];",
    );
    // All arrive, the fourth for the phase after.
    breaks(&rules, &counts, FIRST_LOAD, Some(FIRST_PRODUCT));
    let all_but = |warp: u32| {
        let lane = format!("mad.lo.u32 %r19, {warp}, 32, 0;\nxor.b32 %r19, %r19, %r0;");
        format!("{lane}\nsetp.ge.u32 %p9, %r19, 32;\n{arrival}")
            .replace("eq.u32 %p8, %r18, 0", "eq.and.u32 %p8, %r18, 0, %p9")
    };
    for warp in 0..4 {
        let silent = all_but(warp);
        let changes = [counts[0], counts[1], (arrival, &silent[..])];
        breaks(&rules, &changes, FIRST_LOAD, Some(FIRST_PRODUCT));
        // What it has waited for is known to the others if they have met since.
        let met = format!("bar.sync 1, 128;\n{silent}");
        let text = changed(&[counts[0], counts[1], (arrival, &met[..])]);
        for (timing, schedule) in MODES {
            let report = report(&text, sanitized(timing, schedule));
            let context = format!("{timing:?} {schedule:?}\n{report}");
            assert!(report.findings.is_empty(), "{context}");
        }
    }
}

#[test]
fn products_and_registers() {
    breaks(
        &[Rule::WgmmaFence],
        &[("wgmma.fence.sync.aligned;", "")],
        FIRST_PRODUCT,
        None,
    );
    // The accumulator is changed after the fence.
    let scaled = (
        "wgmma.fence.sync.aligned;",
        "wgmma.fence.sync.aligned;\n@%p3 mul.f32 %f3, %f3, %f3;",
    );
    breaks(
        &[Rule::WgmmaFence],
        &[scaled],
        FIRST_PRODUCT,
        Some("mul.f32 %f3"),
    );
    // It is read, written and moved before the wait.
    for touch in [
        "add.f32 %f40, %f3, %f3;",
        "mov.f32 %f3, 0f00000000;",
        "mov.b32 %f40, %f31;",
    ] {
        breaks(
            &[Rule::RegisterInFlight],
            &[("//ISSUED", touch)],
            touch,
            Some(LAST_PRODUCT),
        );
    }
    // The wait covers too few, or nothing is committed: the epilogue reads what is in flight.
    let wait = (
        "wgmma.wait_group.sync.aligned 0;",
        "wgmma.wait_group.sync.aligned 1;",
    );
    breaks(
        &[Rule::RegisterInFlight],
        &[wait],
        "cvt.rn.bf16x2.f32 %r30, %f1, %f0",
        Some(LAST_PRODUCT),
    );
    let commit = ("wgmma.commit_group.sync.aligned;", "");
    breaks(
        &[Rule::RegisterInFlight],
        &[commit],
        "cvt.rn.bf16x2.f32 %r30, %f1, %f0",
        Some(LAST_PRODUCT),
    );
    // A warp ends with a product in flight.
    let last = "wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f40, %f41, %f42, %f43}, %d10, %d11, 0, 1, 1, 0, 0; //LAST\n\
        @%p1 bra DONE;\nadd.u32 %r32";
    let last = [("@%p1 bra DONE;\nadd.u32 %r32", last)];
    let text = changed(&last);
    let report = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    let found = report
        .findings
        .iter()
        .find(|f| f.rule == Rule::ExitInFlight);
    let found = found.unwrap_or_else(|| panic!("{report}"));
    assert_eq!(
        found.other.as_ref().unwrap().1.line,
        line_of(&text, "//LAST")
    );
}

#[test]
fn fragments_of_a() {
    // P V: A in registers, which are changed before the wait, or after the fence.
    let product = |before: &str, after: &str| {
        let text = format!(
            "sub.s64 %d11, %d11, 8;\nmov.b32 %r40, 0;\nmov.b32 %r41, 0;\nmov.b32 %r42, 0;\nmov.b32 %r43, 0;\nwgmma.fence.sync.aligned;\n{before}\n\
             wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{}}}, {{%r40, %r41, %r42, %r43}}, %d11, 1, 1, 1, 0; //RS\n\
             wgmma.commit_group.sync.aligned;\n{after}\nwgmma.wait_group.sync.aligned 0;",
            (0..32)
                .map(|i| format!("%f{i}"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        text
    };
    let clean = changed(&[("//WAITED", &product("", ""))]);
    let found = report(&clean, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(found.findings.is_empty(), "{found}");
    let touch = "mov.b32 %r42, 1;";
    breaks(
        &[Rule::RegisterInFlight],
        &[("//WAITED", &product("", touch))],
        touch,
        Some("//RS"),
    );
    breaks(
        &[Rule::WgmmaFence],
        &[("//WAITED", &product(touch, ""))],
        "//RS",
        Some(touch),
    );
}

/// The products of two iterations at once: scores of the next one, and what is made of the last one's.
#[test]
fn two_groups_in_flight() {
    let d = |from: usize| {
        let d: Vec<String> = (from..from + 32).map(|i| format!("%f{i}")).collect();
        d.join(", ")
    };
    let overlapped = |between: &str| {
        format!(
            "sub.s64 %d10, %d10, 8;\nsub.s64 %d11, %d11, 8;\nmov.b32 %r40, 0;\nmov.b32 %r41, 0;\nmov.b32 %r42, 0;\n\
             mov.b32 %r43, 0;\nwgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{}}}, %d10, %d11, 0, 1, 1, 0, 0; //SCORES\n\
             wgmma.commit_group.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{}}}, {{%r40, %r41, %r42, %r43}}, %d11, 0, 1, 1, 0; //OUT\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n{between}\n\
             wgmma.wait_group.sync.aligned 0;",
            d(64),
            d(96)
        )
    };
    let more = (".reg .f32 %f<64>;", ".reg .f32 %f<128>;");
    let text = |between: &str| changed(&[more, ("//WAITED", &overlapped(between))]);
    let softmax = "mul.f32 %f64, %f64, %f65;\nmov.b32 %r44, %f95;";
    for (timing, schedule) in MODES {
        let report = report(&text(softmax), sanitized(timing, schedule));
        assert!(
            report.findings.is_empty(),
            "{timing:?} {schedule:?}\n{report}"
        );
    }
    for (touch, of) in [
        ("mul.f32 %f96, %f96, %f64;", "//OUT"),
        ("cvt.rn.bf16x2.f32 %r43, %f65, %f64;", "//OUT"),
    ] {
        let changes = [more, ("//WAITED", &overlapped(touch)[..])];
        breaks(&[Rule::RegisterInFlight], &changes, touch, Some(of));
    }
}
