//! Matrix products of warpgroups: layouts, types, when they happen, and what they refuse.

mod common;
#[path = "common/product.rs"]
mod product;

use flashtile_emulator::{
    AsyncTiming, Emulator, FaultKind, Launch, LaunchError, Module, Options, TensorCores,
};
use product::{B_AT, Case, Run, Ty, cases, instruction, middle, options, text};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn products(case in cases()) {
        let run = Run::new(case);
        let text = text(&case, run.places.map(|p| p.descriptor()), &middle(&case));
        let expected = run.expected();
        prop_assert!(expected.iter().any(|&x| x != 0.0));
        for cores in [TensorCores::Fast, TensorCores::Hopper] {
            let found = run.launch(&text, options(&case, cores)).unwrap();
            prop_assert!(found == expected, "{case:?} {cores:?}\n{:?}\n{:?}", &found[..16], &expected[..16]);
        }
    }
}

/// bf16, 64 columns, 128-byte swizzles.
fn plain() -> Case {
    Case {
        types: [Ty::Bf16; 2],
        n: 64,
        narrow: false,
        registers: false,
        swizzles: [128, 128],
        mn_major: [false, false],
        step: 1,
        negated: [false, false],
        keep: true,
        predicate: false,
        seed: 3,
        timing: AsyncTiming::Late,
    }
}

fn outcome(case: Case, middle: &str) -> (Result<Vec<f32>, LaunchError>, Run) {
    let run = Run::new(case);
    let text = text(&case, run.places.map(|p| p.descriptor()), middle);
    let options = Options {
        max_instructions: Some(1 << 20),
        ..options(&case, TensorCores::Fast)
    };
    (run.launch(&text, options), run)
}

#[test]
fn results_come_when_the_timing_says() {
    let (fence, commit) = (
        "wgmma.fence.sync.aligned;",
        "wgmma.commit_group.sync.aligned;",
    );
    let wait = |n: u32| format!("wgmma.wait_group.sync.aligned {n};");
    let product = instruction(&plain());
    let done = |timing, rest: &str| {
        let (found, run) = outcome(
            Case { timing, ..plain() },
            &format!("{fence}\n{product}\n{rest}"),
        );
        let found = found.unwrap();
        assert!(found == run.expected() || found == run.c);
        found == run.expected()
    };
    let late = |rest: &str| done(AsyncTiming::Late, rest);
    assert!(late(&format!("{commit}\n{}", wait(0))));
    assert!(!late(commit));
    assert!(!late(&format!("{commit}\n{}", wait(1))));
    // What is not committed is not waited for.
    assert!(!late(&wait(0)));
    assert!(late(&format!("{commit}\n{commit}\n{}", wait(1))));
    assert!(done(AsyncTiming::Early, ""));
}

#[test]
fn operands_are_read_late() {
    // A in registers, changed between the product and the wait.
    let case = Case {
        registers: true,
        ..plain()
    };
    let spoilt = |timing| {
        let middle = middle(&case).replace("wgmma.commit", "mov.b32 %r80, 0;\nwgmma.commit");
        let (found, run) = outcome(Case { timing, ..case }, &middle);
        found.unwrap() != run.expected()
    };
    assert!(spoilt(AsyncTiming::Late));
    assert!(!spoilt(AsyncTiming::Early));
    // B in shared memory.
    let near = Case { step: 0, ..plain() };
    let spoilt = |timing| {
        let store = format!("st.shared.b32 [%r41+{B_AT}], 0x3f803f80;\nwgmma.commit");
        let middle = middle(&near).replace("wgmma.commit", &store);
        let (found, run) = outcome(Case { timing, ..near }, &middle);
        found.unwrap() != run.expected()
    };
    assert!(spoilt(AsyncTiming::Late));
    assert!(!spoilt(AsyncTiming::Early));
}

#[test]
fn products_add_up() {
    // Two products on one accumulator, of different groups; the first does not keep what was there.
    let case = Case {
        keep: false,
        predicate: true,
        ..plain()
    };
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(5),
    ] {
        let first = instruction(&case);
        let second = first.replace("%p9,", "1,");
        let middle = format!(
            "wgmma.fence.sync.aligned;\n{first}\nwgmma.commit_group.sync.aligned;\n{second}\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\nwgmma.wait_group.sync.aligned 0;\n"
        );
        let (found, run) = outcome(Case { timing, ..case }, &middle);
        let twice: Vec<f32> = run.expected().iter().map(|x| 2.0 * x).collect();
        assert_eq!(found.unwrap(), twice);
    }
}

fn fault_of(case: Case, middle: &str) -> FaultKind {
    match outcome(case, middle).0 {
        Err(LaunchError::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_four_warps_execute_it_alike() {
    let says = |middle: &str, part: &str| {
        let kind = fault_of(plain(), middle);
        assert!(
            matches!(kind, FaultKind::Warpgroup { .. }) && kind.to_string().contains(part),
            "{kind}"
        );
    };
    let product = middle(&plain());
    let without = |test: &str, body: &str| {
        format!("setp.{test} %p5, %r0, 96;\n@%p5 bra SKIP;\n{body}\nSKIP:\n")
    };
    // One warp never comes: it ends before the others come, or after.
    let kinds =
        [without("ge.u32", &product), without("lt.u32", &product)].map(|m| fault_of(plain(), &m));
    let ends = [
        "warp 3 of the warpgroup has exited",
        "the warp ends, but another of its warpgroup has executed wgmma.fence",
    ];
    for (kind, part) in kinds.iter().zip(ends) {
        assert!(
            matches!(kind, FaultKind::Warpgroup { .. }) && kind.to_string().contains(part),
            "{kind}"
        );
    }
    // It comes to another one.
    let other = format!(
        "{}wgmma.fence.sync.aligned;\n{product}",
        without("ge.u32", "wgmma.fence.sync.aligned;")
    );
    says(&other, "has executed another one in its place: wgmma.fence");
    // Its descriptor is another.
    let shifted = format!("setp.lt.u32 %p5, %r0, 96;\n@%p5 add.s64 %d11, %d11, 2;\n{product}");
    says(&shifted, "differ from those of another warp");
    // Lanes disagree.
    let shifted = "setp.eq.u32 %p5, %r0, 5;\n@%p5 add.s64 %d11, %d11, 2;\n";
    let kind = fault_of(plain(), &format!("{shifted}{product}"));
    assert!(
        kind.to_string().contains("the descriptor of B differs"),
        "{kind}"
    );
    let case = Case {
        predicate: true,
        ..plain()
    };
    let kind = fault_of(
        case,
        &format!("setp.eq.u32 %p9, %r0, 5;\n{}", middle(&case)),
    );
    assert!(kind.to_string().contains("scale-d differs"), "{kind}");
    // Some lanes are elsewhere.
    let half = "setp.eq.u32 %p5, %r0, 5;\n@%p5 bra SKIP;\nwgmma.fence.sync.aligned;\nSKIP:\n";
    let kind = fault_of(plain(), half);
    assert!(matches!(kind, FaultKind::Divergent { .. }), "{kind}");
    // A warp that waits at a barrier for those that wait for its product.
    let crossed = format!(
        "{}setp.lt.u32 %p5, %r0, 96;\n@%p5 bra ALL;\nbar.sync 1, 128;\nALL:\nwgmma.fence.sync.aligned;\n{}\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        "",
        instruction(&plain())
    );
    let kind = fault_of(plain(), &crossed);
    assert!(
        kind.to_string()
            .contains("waits for products that warp 3 of its warpgroup has not come to"),
        "{kind}"
    );
}

#[test]
fn a_product_is_done_for_a_warp_that_waits_alone() {
    // Warp 0 waits for the product, the others come to it and then wait for warp 0 first.
    let crossed = format!(
        "wgmma.fence.sync.aligned;\n{}\nwgmma.commit_group.sync.aligned;\nsetp.ge.u32 %p5, %r0, 32;\n\
         @!%p5 bra FIRST;\nbar.sync 1, 128;\nFIRST: wgmma.wait_group.sync.aligned 0;\n@!%p5 bar.sync 1, 128;\n",
        instruction(&plain())
    );
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(1),
    ] {
        let (found, run) = outcome(Case { timing, ..plain() }, &crossed);
        assert_eq!(found.unwrap(), run.expected());
    }
}

#[test]
fn what_descriptors_refuse() {
    let with = |bits: u64| {
        fault_of(
            plain(),
            &format!("xor.b64 %d11, %d11, {bits};\n{}", middle(&plain())),
        )
    };
    for bit in [14, 15, 30, 46, 48, 52, 61] {
        let kind = with(1 << bit);
        assert!(kind.to_string().contains("mean nothing"), "{kind}");
    }
    assert!(with(1 << 49).to_string().contains("base offset"));
    // Beyond the block's shared memory, and before it.
    let kind = with(0x3fff ^ 0x3800);
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    let far = format!(
        "mov.b64 %d11, {};\n{}",
        0x1_u64 | 1 << 62 | 64 << 32,
        middle(&plain())
    );
    let kind = fault_of(plain(), &far);
    assert!(
        matches!(kind, FaultKind::OutOfBounds { address: 16, .. }),
        "{kind}"
    );
}

#[test]
fn what_decoding_refuses() {
    let case = plain();
    let run = Run::new(case);
    let error = |from: &str, to: &str| {
        let middle = middle(&case);
        assert!(middle.contains(from), "{from}");
        let text = text(&case, [0, 0], &middle.replace(from, to));
        run.launch(&text, Options::default())
            .unwrap_err()
            .to_string()
    };
    assert!(error("m64n64k16", "m64n60k16").contains("does not take"));
    assert!(error("m64n64k16", "m64n72k16").contains("36 are needed"));
    assert!(error("1, 1, 1, 0, 0;", "1, 1, 2, 0, 0;").contains("the scale 2"));
    assert!(error("1, 1, 1, 0, 0;", "1, 1, 1, 0;").contains("2 are needed"));
    assert!(error("1, 1, 1, 0, 0;", "1, 1, 1, 0, 2;").contains("transposed or not"));
    assert!(error("%y1,", "%y0,").contains("stands twice"));
    assert!(error("%d10,", "{%r1, %r2, %r3},").contains("4 are needed"));
    assert!(error(".f32.bf16.bf16", ".f32.bf16.f16").contains("does not take"));
}

/// A kernel of three warpgroups with so many registers at first, each with a body.
fn divided(directives: &str, bodies: [&str; 3]) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {directives}\n{{\n.reg .b32 %r<9>;\n\
         .reg .pred %p<4>;\nmov.u32 %r0, %tid.x;\nsetp.ge.u32 %p1, %r0, 128;\n@%p1 bra B;\n{}\nret;\nB:\n\
         setp.ge.u32 %p1, %r0, 256;\n@%p1 bra C;\n{}\nret;\nC:\n{}\nret;\n}}",
        bodies[0], bodies[1], bodies[2]
    )
}

fn divide(directives: &str, bodies: [&str; 3]) -> Result<(), LaunchError> {
    let module = Module::parse(&divided(directives, bodies)).unwrap();
    let launch = Launch {
        grid: [1, 1, 1],
        block: [384, 1, 1],
        cluster: None,
        dynamic_shared: 0,
        params: &[],
    };
    Emulator::default().launch(&module, "k", &launch).map(drop)
}

#[test]
fn registers_are_divided_among_warpgroups() {
    // 65536 / 384 is 168 and some: 504 in all for three warpgroups.
    let bounds = ".maxntid 384 .minnctapersm 1";
    let (less, more) = (
        "setmaxnreg.dec.sync.aligned.u32 24;",
        "setmaxnreg.inc.sync.aligned.u32 240;",
    );
    divide(bounds, [less, more, more]).unwrap();
    // Those that ask come before those that give.
    divide(bounds, [more, more, less]).unwrap();
    divide(".maxnreg 168", [more, less, more]).unwrap();
    let kind_of = |result: Result<(), LaunchError>| match result {
        Err(LaunchError::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    let kind = kind_of(divide(bounds, [&less.replace("24", "32"), more, more]));
    let text = kind.to_string();
    assert!(
        matches!(kind, FaultKind::Deadlock { .. }) && text.contains("waits for 72 more registers"),
        "{text}"
    );
    let text = kind_of(divide(bounds, [&more.replace("inc", "dec"), more, more])).to_string();
    assert!(
        text.contains("240 registers are not fewer than the 168"),
        "{text}"
    );
    let text = kind_of(divide(bounds, [&less.replace("dec", "inc"), more, more])).to_string();
    assert!(
        text.contains("24 registers are not more than the 168"),
        "{text}"
    );
    let some =
        format!("and.b32 %r1, %r0, 96;\nsetp.eq.u32 %p2, %r1, 0;\n@%p2 bra SKIP;\n{less}\nSKIP:");
    let kind = kind_of(divide(bounds, [&some, "", ""]));
    assert!(matches!(kind, FaultKind::Warpgroup { .. }), "{kind}");
    let text = divide("", [less, more, more]).unwrap_err().to_string();
    assert!(text.contains("ptxas ignores it"), "{text}");
    let text = divide(bounds, [&less.replace("24", "28"), more, more])
        .unwrap_err()
        .to_string();
    assert!(text.contains("multiple of 8"), "{text}");
}
