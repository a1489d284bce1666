//! What the sanitizer finds in kernels for Hopper: one kernel that keeps all rules, and for every rule one that breaks it.

mod common;

use common::line_of;
use flashtile_emulator::{
    AsyncTiming, ElementType, Emulator, Launch, LaunchError, Module, Options, Report, Rule,
    Schedule, Swizzle, TensorMap,
};
use half::bf16;

/// Tiles that the kernel multiplies.
const TILES: usize = 5;

/// A warp-specialised kernel: warps 0 to 3 multiply what warp 4 loads, `out = sum over j of a[j] * b[j]^T`, tiles of 64x64
/// bf16 with 128-byte swizzles, in two stages. `out` leaves through shared memory, by TMA.
///
/// Shared memory from 1024: two stages of a (8 KiB) and b (8 KiB), and 8 KiB for the result. mbarriers: full 0, 1; empty 0, 1.
fn pipeline() -> String {
    let d: Vec<String> = (0..32).map(|i| format!("%f{i}")).collect();
    let d = d.join(", ");
    let mut products = String::new();
    for k in 0..4 {
        products += &format!(
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{d}}}, %d10, %d11, {}, 1, 1, 0, 0;\n\
             add.s64 %d10, %d10, 2;\nadd.s64 %d11, %d11, 2;\n",
            if k == 0 { "%p3" } else { "1" }
        );
    }
    let mut epilogue = String::new();
    for i in 0..16 {
        // Row lane / 4 (+ 8), columns 8 j + 2 t: a word of the 128-byte row, its 16-byte piece xored with the row.
        let (j, low) = (i / 2, i % 2);
        epilogue += &format!(
            "cvt.rn.bf16x2.f32 %r30, %f{}, %f{};\nxor.b32 %r31, %r28, {};\nadd.u32 %r31, %r31, %r29;\n\
             st.shared.b32 [%r31+{}], %r30;\n",
            4 * j + 2 * low + 1,
            4 * j + 2 * low,
            16 * j,
            1024 * low,
        );
    }
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.shared .align 1024 .b8 s[40960];\n.shared .align 8 .b64 m[4];\n\
         .visible .entry k(.param .u64 out, .param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .align 64 .b8 c[128])\n\
         .maxntid 160 .minnctapersm 1\n{{\n.reg .pred %p<20>;\n.reg .b32 %r<60>;\n.reg .b64 %d<30>;\n.reg .f32 %f<64>;\n\
         mov.u32 %r0, %tid.x;\nmov.u32 %r1, m;\nmov.u32 %r2, s;\n\
         setp.ne.u32 %p1, %r0, 0;\n@%p1 bra READY;\n\
         mbarrier.init.shared::cta.b64 [%r1], 1;\nmbarrier.init.shared::cta.b64 [%r1+8], 1;\n\
         mbarrier.init.shared::cta.b64 [%r1+16], 4;\nmbarrier.init.shared::cta.b64 [%r1+24], 4;\n\
         fence.mbarrier_init.release.cluster;\n\
         READY: bar.sync 0;\nmov.u32 %r10, 0;\nmov.u32 %r11, 0;\nmov.u32 %r12, 0;\n\
         setp.lt.u32 %p2, %r0, 128;\n@%p2 bra CONSUMER;\n\
         // The producer: one thread. %r10 counts tiles, %r11 is the stage, %r12 the parity of its round.\n\
         setp.ne.u32 %p4, %r0, 128;\n@%p4 bra DONE;\n\
         mov.b64 %d1, a;\ncvta.param.u64 %d1, %d1;\nmov.b64 %d2, b;\ncvta.param.u64 %d2, %d2;\n\
         LOAD: shl.b32 %r13, %r11, 3;\nadd.u32 %r13, %r13, %r1;\nxor.b32 %r14, %r12, 1;\n\
         EMPTY: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13+16], %r14;\n@!%p5 bra EMPTY;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 16384;\n\
         shl.b32 %r15, %r11, 14;\nadd.u32 %r15, %r15, %r2;\nshl.b32 %r16, %r10, 6;\nadd.u32 %r17, %r15, 8192;\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r15], [%d1, {{0, %r16}}], [%r13];\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r17], [%d2, {{0, %r16}}], [%r13];\n\
         add.u32 %r10, %r10, 1;\nadd.u32 %r11, %r11, 1;\nsetp.eq.u32 %p6, %r11, 2;\n@%p6 xor.b32 %r12, %r12, 1;\n\
         @%p6 mov.u32 %r11, 0;\nsetp.lt.u32 %p7, %r10, {TILES};\n@%p7 bra LOAD;\n//TAIL\nbra DONE;\n\
         // Consumers.\n\
         CONSUMER: setp.ne.u32 %p3, %r10, 0;\n\
         MULTIPLY: shl.b32 %r13, %r11, 3;\nadd.u32 %r13, %r13, %r1;\n\
         FULL: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13], %r12;\n@!%p5 bra FULL;\n//LANDED\n\
         shl.b32 %r15, %r11, 14;\nadd.u32 %r15, %r15, %r2;\nshr.u32 %r16, %r15, 4;\ncvt.u64.u32 %d10, %r16;\n\
         or.b64 %d10, %d10, {};\nadd.s64 %d11, %d10, 512;\n//BEFORE\n\
         wgmma.fence.sync.aligned;\n{products}wgmma.commit_group.sync.aligned;\n//ISSUED\n\
         wgmma.wait_group.sync.aligned 0;\n//WAITED\n\
         and.b32 %r18, %r0, 31;\nsetp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];\n\
         setp.eq.u32 %p3, %r0, %r0;\n\
         add.u32 %r10, %r10, 1;\nadd.u32 %r11, %r11, 1;\nsetp.eq.u32 %p6, %r11, 2;\n@%p6 xor.b32 %r12, %r12, 1;\n\
         @%p6 mov.u32 %r11, 0;\nsetp.lt.u32 %p7, %r10, {TILES};\n@%p7 bra MULTIPLY;\n\
         // The result: row (thread / 4) % 8 + 16 warp, and 8 more.\n\
         shr.u32 %r20, %r0, 5;\nand.b32 %r21, %r0, 31;\nshr.u32 %r22, %r21, 2;\nand.b32 %r23, %r0, 3;\n\
         mad.lo.u32 %r24, %r20, 16, %r22;\nmad.lo.u32 %r29, %r24, 128, %r2;\nadd.u32 %r29, %r29, 32768;\n\
         shl.b32 %r28, %r22, 4;\nmad.lo.u32 %r28, %r23, 4, %r28;\n{epilogue}\
         fence.proxy.async.shared::cta;\nbar.sync 1, 128;\n@%p1 bra DONE;\nadd.u32 %r32, %r2, 32768;\n\
         mov.b64 %d3, c;\ncvta.param.u64 %d3, %d3;\n\
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d3, {{0, 0}}], [%r32];\n\
         cp.async.bulk.commit_group;\n//STORED\ncp.async.bulk.wait_group.read 0;\n//READ\nDONE: ret;\n}}",
        // SBO 1024, LBO unused, 128-byte swizzle.
        1u64 << 62 | 64 << 32 | 1 << 16,
    )
}

fn value(seed: usize, n: usize) -> f32 {
    ((n * 37 + seed * 11 + n / 64) % 7) as f32 - 3.0
}

/// Runs the kernel, and checks its result if it ends well.
fn run(text: &str, options: Options) -> Result<(), LaunchError> {
    let device = Emulator::new(options);
    let count = TILES * 64 * 64;
    let bytes = |seed: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|n| bf16::from_f32(value(seed, n)).to_le_bytes())
            .collect()
    };
    let [a, b] = [1, 2].map(|seed| {
        let address = device.allocate(2 * count as u64).unwrap();
        device.write(address, &bytes(seed)).unwrap();
        address
    });
    let out = device.allocate(2 * 64 * 64).unwrap();
    let module = Module::parse(text).map_err(LaunchError::Decode)?;
    let mut params = vec![0; module.entry("k").unwrap().params_size];
    params[..8].copy_from_slice(&out.to_le_bytes());
    for (n, (address, rows)) in [(a, TILES * 64), (b, TILES * 64), (out, 64)]
        .into_iter()
        .enumerate()
    {
        let mut map = TensorMap::new(
            ElementType::Bf16,
            address,
            &[64, rows as u64],
            &[128],
            &[64, 64],
        );
        map.swizzle = Swizzle::B128;
        params[64 + 128 * n..][..128].copy_from_slice(&map.encode().unwrap());
    }
    let launch = Launch {
        grid: [1, 1, 1],
        block: [160, 1, 1],
        cluster: None,
        dynamic_shared: 0,
        params: &params,
    };
    device.launch(&module, "k", &launch)?;
    let mut found = vec![0; 2 * 64 * 64];
    device.read(out, &mut found).unwrap();
    let mut expected = Vec::new();
    for row in 0..64 {
        for column in 0..64 {
            let tile = |j: usize| -> f32 {
                let at = |seed, row: usize, k| value(seed, (j * 64 + row) * 64 + k);
                (0..64).map(|k| at(1, row, k) * at(2, column, k)).sum()
            };
            let sum: f32 = (0..TILES).map(tile).sum();
            expected.extend(bf16::from_f32(sum).to_le_bytes());
        }
    }
    assert!(found == expected, "the result is wrong");
    Ok(())
}

fn sanitized(timing: AsyncTiming, schedule: Schedule) -> Options {
    Options {
        sanitize: true,
        async_copies: timing,
        schedule,
        max_instructions: Some(1 << 20),
        ..Options::default()
    }
}

const MODES: [(AsyncTiming, Schedule); 6] = [
    (AsyncTiming::Late, Schedule::InOrder),
    (AsyncTiming::Early, Schedule::InOrder),
    (AsyncTiming::Seeded(1), Schedule::InOrder),
    (AsyncTiming::Late, Schedule::Seeded { seed: 1, share: 3 }),
    (AsyncTiming::Early, Schedule::Seeded { seed: 2, share: 50 }),
    (
        AsyncTiming::Seeded(2),
        Schedule::Seeded { seed: 3, share: 1 },
    ),
];

fn report(text: &str, options: Options) -> Report {
    match run(text, options) {
        Ok(()) => Report::default(),
        Err(LaunchError::Findings(report)) => *report,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_pipeline_that_keeps_the_rules() {
    for (timing, schedule) in MODES {
        let report = report(&pipeline(), sanitized(timing, schedule));
        assert!(
            report.findings.is_empty(),
            "{timing:?} {schedule:?}\n{report}"
        );
        let plain = Options {
            sanitize: false,
            ..sanitized(timing, schedule)
        };
        run(&pipeline(), plain).unwrap();
    }
}

/// The pipeline with changes: each replaces what must be there.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(pipeline(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

/// Whatever the timing and the schedule, the changed pipeline breaks one of these rules; in order and late, the first one,
/// at the line with `at` and, if there are two, with the other side at `other`.
#[track_caller]
fn breaks(rules: &[Rule], changes: &[(&str, &str)], at: &str, other: Option<&str>) {
    let text = changed(changes);
    for (timing, schedule) in MODES {
        let report = report(&text, sanitized(timing, schedule));
        assert!(
            report.findings.iter().any(|f| rules.contains(&f.rule)),
            "{timing:?} {schedule:?}: {rules:?}\n{report}"
        );
    }
    let (timing, schedule) = MODES[0];
    let report = report(&text, sanitized(timing, schedule));
    let lines: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.rule, f.site.line, f.other.as_ref().map(|(_, s)| s.line)))
        .collect();
    let want = (
        rules[0],
        line_of(&text, at),
        other.map(|other| line_of(&text, other)),
    );
    assert!(lines.contains(&want), "wanted {want:?}\n{report}");
    let words = report.to_string();
    assert!(words.contains(rules[0].name()) && words.contains(rules[0].manual()));
}

/// The consumers' wait, and the producer's.
const FULL: &str =
    "FULL: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13], %r12;\n@!%p5 bra FULL;";
const EMPTY: &str =
    "EMPTY: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13+16], %r14;\n@!%p5 bra EMPTY;";
const FIRST_LOAD: &str = "[%r15], [%d1,";
const FIRST_PRODUCT: &str = "%d10, %d11, %p3";

#[test]
fn loads_and_their_waits() {
    // Reading what has not landed.
    breaks(
        &[Rule::ReadInFlight, Rule::Race],
        &[(FULL, "")],
        FIRST_PRODUCT,
        Some(FIRST_LOAD),
    );
    // A wait that is not repeated. (If it passes at once, all is well.)
    let once = changed(&[("@!%p5 bra FULL;", "")]);
    let found = report(&once, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(
        found.findings.iter().any(|f| f.rule == Rule::ReadInFlight),
        "{found}"
    );
    // One lane waits, the others don't.
    let one = [
        (
            "FULL: mbarrier",
            "and.b32 %r18, %r0, 31;\nsetp.ne.u32 %p9, %r18, 0;\n@%p9 bra OVER;\nFULL: mbarrier",
        ),
        ("//LANDED", "OVER:"),
    ];
    breaks(
        &[Rule::Race, Rule::ReadInFlight],
        &one,
        FIRST_PRODUCT,
        Some(FIRST_LOAD),
    );
    let synced = changed(&[one[0], ("//LANDED", "OVER: bar.warp.sync -1;")]);
    for (timing, schedule) in MODES {
        let report = report(&synced, sanitized(timing, schedule));
        assert!(report.findings.is_empty(), "{report}");
    }
    // Loading over what is still read: an arrival too many is seen first, or the bytes are.
    breaks(
        &[Rule::Mbarrier, Rule::OverwriteInFlight, Rule::Race],
        &[(EMPTY, "")],
        "mbarrier.arrive.expect_tx",
        None,
    );
    // The consumers free a stage before their products have read it.
    let early = [
        (
            "//ISSUED",
            "and.b32 %r18, %r0, 31;\nsetp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];",
        ),
        (
            "//WAITED\nand.b32 %r18, %r0, 31;\nsetp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];",
            "//WAITED",
        ),
    ];
    breaks(
        &[Rule::OverwriteInFlight, Rule::Race],
        &early,
        FIRST_LOAD,
        Some(FIRST_PRODUCT),
    );
    // Bytes that nobody waits for.
    let extra = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 16;\n\
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+36864], [%d5], 16, [%r13]; //EXTRA";
    let extra = extra.replace("[%d5]", "[%d6]");
    let tail = format!(
        "ld.param.u64 %d6, [out];\nadd.s64 %d6, %d6, 0;\nEMPTY2: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13+16], %r12;\n@!%p5 bra EMPTY2;\n{extra}"
    );
    let text = changed(&[("//TAIL", &tail)]);
    for (timing, schedule) in MODES {
        let report = report(&text, sanitized(timing, schedule));
        let found = report
            .findings
            .iter()
            .find(|f| f.rule == Rule::ExitInFlight);
        let found = found.unwrap_or_else(|| panic!("{report}"));
        assert_eq!(
            found.other.as_ref().unwrap().1.line,
            line_of(&text, "//EXTRA")
        );
    }
}

#[test]
fn transaction_counts() {
    for (bytes, words) in [
        ("16400", "16 are missing"),
        ("16368", "16 bytes more than expected"),
    ] {
        let text = changed(&[("16384;", &format!("{bytes};"))]);
        for (timing, schedule) in MODES {
            let report = report(&text, sanitized(timing, schedule));
            let found = report
                .findings
                .iter()
                .any(|f| f.rule == Rule::Deadlock && f.message.contains(words));
            assert!(found, "{report}");
        }
    }
    // Nothing is expected: the phase ends before the bytes come.
    let none = (
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 16384;",
        "mbarrier.arrive.shared::cta.b64 _, [%r13];",
    );
    breaks(
        &[Rule::ReadInFlight],
        &[none],
        FIRST_PRODUCT,
        Some(FIRST_LOAD),
    );
}

#[test]
fn mbarriers() {
    breaks(
        &[Rule::ProxyFence],
        &[("fence.mbarrier_init.release.cluster;", "")],
        FIRST_LOAD,
        Some("mbarrier.init.shared::cta.b64 [%r1], 1"),
    );
    // A fence of the async proxy will do.
    let other = changed(&[(
        "fence.mbarrier_init.release.cluster;",
        "fence.proxy.async.shared::cta;",
    )]);
    let report = report(&other, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(report.findings.is_empty(), "{report}");
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
            Some(FIRST_PRODUCT),
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
        Some(FIRST_PRODUCT),
    );
    let commit = ("wgmma.commit_group.sync.aligned;", "");
    breaks(
        &[Rule::RegisterInFlight],
        &[commit],
        "cvt.rn.bf16x2.f32 %r30, %f1, %f0",
        Some(FIRST_PRODUCT),
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

/// Consumers access a word of the stage they are about to multiply, or have multiplied.
#[test]
fn proxies() {
    let word = "mad.lo.u32 %r50, %r0, 4, %r15;";
    // A store to an operand before the product.
    let store =
        format!("{word}\nld.shared.b32 %r51, [%r50];\nst.shared.b32 [%r50], %r51; //WORD\n");
    let fenced = |fence: &str| format!("{store}{fence}\nbar.sync 1, 128;");
    let clean = |insert: &str, with: &str| {
        for (timing, schedule) in MODES {
            let report = report(&changed(&[(insert, with)]), sanitized(timing, schedule));
            assert!(
                report.findings.is_empty(),
                "{timing:?} {schedule:?}\n{report}"
            );
        }
    };
    clean("//BEFORE", &fenced("fence.proxy.async.shared::cta;"));
    clean("//BEFORE", &fenced("fence.proxy.async;"));
    let (rule, product) = ([Rule::ProxyFence], FIRST_PRODUCT);
    breaks(&rule, &[("//BEFORE", &fenced(""))], product, Some("//WORD"));
    breaks(
        &rule,
        &[("//BEFORE", &fenced("fence.proxy.async.global;"))],
        product,
        Some("//WORD"),
    );
    // A fence before the store does nothing for it.
    let late = format!("fence.proxy.async.shared::cta;\n{}", fenced(""));
    breaks(&rule, &[("//BEFORE", &late)], product, Some("//WORD"));
    // Fenced, but not ordered.
    let unordered = format!("{store}fence.proxy.async.shared::cta;");
    breaks(
        &[Rule::Race],
        &[("//BEFORE", &unordered)],
        product,
        Some("//WORD"),
    );
    // A load after the product, and the next load over it.
    let read = format!("{word}\nld.shared.b32 %r51, [%r50]; //WORD\n");
    let synced = |fence: &str| format!("{read}{fence}\nbar.warp.sync -1;");
    clean("//WAITED", &synced("fence.proxy.async.shared::cta;"));
    breaks(
        &rule,
        &[("//WAITED", &synced(""))],
        FIRST_LOAD,
        Some("//WORD"),
    );
}

#[test]
fn stores() {
    let store = "bulk_group [%d3";
    let last_word = "st.shared.b32 [%r31+1024]";
    breaks(
        &[Rule::ProxyFence],
        &[(
            "fence.proxy.async.shared::cta;\nbar.sync 1, 128;",
            "bar.sync 1, 128;",
        )],
        store,
        Some("st.shared.b32 [%r31+0]"),
    );
    breaks(
        &[Rule::Race],
        &[("bar.sync 1, 128;", "")],
        store,
        Some("st.shared.b32 [%r31+0]"),
    );
    // The source is used again before it has been read, or goes away.
    let again = "st.shared.b32 [%r32], 0; //AGAIN";
    breaks(
        &[Rule::OverwriteInFlight],
        &[("//STORED", again)],
        "//AGAIN",
        Some(store),
    );
    let text = changed(&[("//READ", again)]);
    let found = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(found.findings.is_empty(), "{found}");
    let none = ("cp.async.bulk.wait_group.read 0;", "");
    breaks(&[Rule::ExitInFlight], &[none], "DONE: ret", Some(store));
    let commit = ("cp.async.bulk.commit_group;", "");
    breaks(&[Rule::ExitInFlight], &[commit], "DONE: ret", Some(store));
    // The result is read back: that needs a wait for all.
    let read = "ld.param.u64 %d7, [out];\nld.global.b32 %r33, [%d7]; //BACK";
    breaks(
        &[Rule::ReadInFlight],
        &[("//READ", read)],
        "//BACK",
        Some(store),
    );
    let full = (
        "cp.async.bulk.wait_group.read 0;",
        "cp.async.bulk.wait_group 0;",
    );
    let text = changed(&[("//READ", read), full]);
    let found = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(found.findings.is_empty(), "{found}");
    // Part of what is stored was never written.
    let text = changed(&[(last_word, "@%p9 st.shared.b32 [%r31+1024]")]).replace(
        "READY: bar.sync 0;",
        "READY: bar.sync 0;\nsetp.ne.u32 %p9, %r0, 77;",
    );
    let found = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.rule == Rule::UninitializedStore),
        "{found}"
    );
}

/// What is found in a body that runs with so many threads, in clusters of so many blocks.
fn findings(body: &str, grid: u32, cluster: Option<[u32; 3]>, threads: u32) -> Report {
    let declarations = ".shared .align 128 .b8 s[2048];\n.shared .align 8 .b64 m[2];";
    let text = common::kernel(declarations, body);
    let run = common::Run::new(sanitized(AsyncTiming::Late, Schedule::InOrder));
    let map = TensorMap::new(ElementType::F32, run.buffers[0], &[64], &[], &[32]);
    run.device
        .write(run.buffers[1], &map.encode().unwrap())
        .unwrap();
    match run.launch_clusters(&text, [grid, 1, 1], cluster, threads, 0) {
        Ok(_) => Report::default(),
        Err(LaunchError::Findings(report)) => *report,
        Err(other) => panic!("{other}"),
    }
}

#[track_caller]
fn finds(rules: &[Rule], found: &Report) {
    let of: Vec<Rule> = found.findings.iter().map(|f| f.rule).collect();
    assert_eq!(of, rules, "{found}");
}

#[test]
fn phases_that_a_thread_misses() {
    // Warp 1 arrives so many times before warp 0 waits for the second time.
    let body = |times: u32| {
        format!(
            "mov.u32 %r40, m;\nsetp.ne.u32 %p1, %r0, 0;\n@!%p1 mbarrier.init.shared.b64 [%r40], 32;\nbar.sync 0;\n\
             setp.ge.u32 %p2, %r0, 32;\n@%p2 bra OTHER;\n\
             A: mbarrier.test_wait.parity.shared.b64 %p3, [%r40], 0;\n@!%p3 bra A;\nbar.sync 1, 64;\nbar.sync 2, 64;\n\
             B: mbarrier.test_wait.parity.shared.b64 %p3, [%r40], 1;\n@!%p3 bra B;\nret;\n\
             OTHER: mbarrier.arrive.shared.b64 %d5, [%r40];\nbar.sync 1, 64;\n{}bar.sync 2, 64;",
            "mbarrier.arrive.shared.b64 %d5, [%r40];\n".repeat(times as usize)
        )
    };
    finds(&[], &findings(&body(1), 1, None, 64));
    // The third phase runs: the wait is for that, and never ends.
    let found = findings(&body(2), 1, None, 64);
    finds(&[Rule::MbarrierPhase, Rule::Deadlock], &found);
    let message = &found.findings[0].message;
    assert!(
        message.contains("phase 2 of the mbarrier at 0xc00 has ended, and 1 more"),
        "{message}"
    );
    let found = findings(&body(3), 1, None, 64);
    finds(&[Rule::MbarrierPhase], &found);
    assert!(
        found.findings[0].message.contains("passes for a later one"),
        "{found}"
    );
}

const SYNC: &str =
    "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n";

#[test]
fn shared_memory_of_other_blocks() {
    let body = |first: &str, last: &str| {
        format!(
            "mov.u32 %r20, %cluster_ctarank;\nxor.b32 %r21, %r20, 1;\nmov.u32 %r22, s;\nshl.b32 %r23, %r0, 2;\n\
             add.u32 %r22, %r22, %r23;\nst.shared.u32 [%r22], %r0;\n{first}mapa.shared::cluster.u32 %r24, %r22, %r21;\n\
             ld.shared::cluster.u32 %r9, [%r24];\n{last}"
        )
    };
    let run = |first: &str, last: &str| findings(&body(first, last), 2, Some([2, 1, 1]), 32);
    finds(&[], &run(SYNC, SYNC));
    finds(&[Rule::Race; 2], &run("bar.sync 0;\n", SYNC));
    // A relaxed arrival releases nothing, but with a fence.
    let relaxed = SYNC.replace(".release", ".relaxed");
    finds(&[Rule::Race], &run(&relaxed, SYNC));
    finds(
        &[],
        &run(&format!("fence.acq_rel.cluster;\n{relaxed}"), SYNC),
    );
    // Nothing keeps a block until the other has read.
    let found = run(SYNC, "");
    assert!(
        found.findings.iter().any(|f| f.rule == Rule::UseAfterFree),
        "{found}"
    );
    let found = run(SYNC, "bar.sync 0;\n");
    assert!(
        found.findings.iter().any(|f| f.rule == Rule::UseAfterFree),
        "{found}"
    );
    // Atomics of the block's scope race with another block's.
    let atomic = |scope: &str| {
        let body = format!(
            "mov.u32 %r22, s;\nst.shared.u32 [%r22], 0;\n{SYNC}mapa.shared::cluster.u32 %r24, %r22, 0;\n\
             red.relaxed.{scope}.shared::cluster.add.u32 [%r24], 1;\n{SYNC}"
        );
        findings(&body, 2, Some([2, 1, 1]), 1)
    };
    finds(&[], &atomic("cluster"));
    finds(&[Rule::Race], &atomic("cta"));
}

#[test]
fn outputs_of_several_blocks() {
    let body = |instruction: &str| {
        format!(
            "mov.u32 %r22, s;\nst.shared.v4.u32 [%r22], {{%r0, %r0, %r0, %r0}};\nfence.proxy.async;\n{instruction}\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;"
        )
    };
    // Updates do not race, whoever makes them; stores do.
    let update = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%d0], [%r22], 16;";
    finds(&[], &findings(&body(update), 3, None, 1));
    let store = "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r22], 16;";
    finds(&[Rule::Race], &findings(&body(store), 3, None, 1));
    // What nobody wrote is not updated.
    let unwritten = body(&update.replace("[%d0]", "[%d2]"))
        .replace("mov.u32 %r22", "add.s64 %d2, %d2, 4096;\nmov.u32 %r22");
    assert!(!findings(&unwritten, 1, None, 1).findings.is_empty());
}

#[test]
fn bytes_that_nobody_wrote_go_with_copies_and_products() {
    // A send of memory that was never written, stored on the other side.
    let body = format!(
        "mov.u32 %r20, %cluster_ctarank;\nmov.u32 %r22, m;\nmov.u32 %r23, s;\nxor.b32 %r21, %r20, 1;\n\
         mbarrier.init.shared.b64 [%r22], 1;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r22], 16;\n\
         fence.mbarrier_init.release.cluster;\n{SYNC}mapa.shared::cluster.u32 %r27, %r23, %r21;\n\
         mapa.shared::cluster.u32 %r28, %r22, %r21;\n\
         cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r27+128], [%r23], 16, [%r28];\n\
         W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r22], 0;\n@!%p2 bra W;\nld.shared.u32 %r9, [%r23+128];\n\
         st.global.u32 [%d0], %r9;\n{SYNC}"
    );
    let found = findings(&body, 2, Some([2, 1, 1]), 1);
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.rule == Rule::UninitializedStore),
        "{found}"
    );
    // A product of memory that was never written.
    let product = "mov.b64 %d10, 0x4000004000010040;\nwgmma.fence.sync.aligned;\n\
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %d10, %d10, 0, 1, 1, 0, 0;\n\
        wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nst.global.f32 [%d0], %f0;";
    let large = product.replace("0x4000004000010040", "0x4000000800010040");
    let found = findings(&large, 1, None, 128);
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.rule == Rule::UninitializedStore),
        "{found}"
    );
}

/// The opcode of a line, after its label and guard.
fn opcode(line: &str) -> &str {
    let code = line.split_once(": ").map_or(line, |(_, code)| code);
    let code = code.trim_start_matches(|c| c == '@' || c == '!');
    let code = match code.strip_prefix("%p") {
        Some(rest) => rest.split_once(' ').map_or("", |(_, code)| code),
        None => code,
    };
    code.split([' ', ';']).next().unwrap_or_default()
}

#[test]
fn nothing_that_orders_can_be_left_out() {
    let kinds = ["mbarrier.", "fence.", "bar.", "wgmma.", "cp.async."];
    let text = pipeline();
    let mut count = 0;
    for (n, line) in text.lines().enumerate() {
        if !kinds.iter().any(|kind| opcode(line).starts_with(kind)) {
            continue;
        }
        count += 1;
        let label = line
            .split_once(": ")
            .map_or(String::new(), |(label, _)| format!("{label}:"));
        let without: Vec<&str> = text
            .lines()
            .enumerate()
            .map(|(m, l)| if m == n { label.as_str() } else { l })
            .collect();
        let without = without.join("\n");
        let found = MODES.iter().any(|&(timing, schedule)| {
            let outcome = std::panic::catch_unwind(|| run(&without, sanitized(timing, schedule)));
            !matches!(outcome, Ok(Ok(())))
        });
        assert!(found, "line {}: {line}", n + 1);
    }
    assert!(count > 20, "{count}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(150))]

    /// Whatever becomes of the text, there is a result or an error, and no panic.
    #[test]
    fn broken_kernels_do_not_break_the_emulator(
        changes in proptest::collection::vec((0usize..3, 0usize..200, 0usize..200), 1..4),
        mode in 0usize..6,
        sanitize in proptest::prelude::any::<bool>(),
    ) {
        let text = pipeline();
        let mut lines: Vec<&str> = text.lines().collect();
        for (kind, a, b) in changes {
            // The body only.
            let (a, b) = (8 + a % (lines.len() - 10), 8 + b % (lines.len() - 10));
            match kind {
                0 => lines[a] = "",
                1 => lines.swap(a, b),
                _ => {
                    let line = lines[b];
                    lines.insert(a, line);
                }
            }
        }
        let (timing, schedule) = MODES[mode];
        let options = Options {
            sanitize,
            max_instructions: Some(1 << 15),
            ..sanitized(timing, schedule)
        };
        let broken = lines.join("\n");
        if let Err(panic) = std::panic::catch_unwind(|| run(&broken, options)) {
            let words = panic.downcast_ref::<&str>().copied().unwrap_or_default();
            proptest::prop_assert!(words == "the result is wrong", "{broken}");
        }
    }
}
