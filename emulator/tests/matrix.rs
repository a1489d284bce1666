//! Fragments and tensor cores, against products computed element by element.

mod common;

use common::{Run, fault, kernel, run};
use flashtile_emulator::{FaultKind, Launch, Module, Numerics, Options, TensorCores};

/// bf16 of a small integer.
fn bf16(v: i32) -> u16 {
    ((v as f32).to_bits() >> 16) as u16
}

fn pairs(values: &[u16]) -> Vec<u32> {
    values
        .chunks(2)
        .map(|p| u32::from(p[0]) | u32::from(p[1]) << 16)
        .collect()
}

/// D = A B + C for a 16 x 16 A (row major), a 16 x 8 B (row major, loaded with `.trans`) and a C of ones.
#[test]
fn ldmatrix_and_mma() {
    let a: Vec<i32> = (0..256).map(|i| (i * 7 + i / 16) % 11 - 5).collect();
    let b: Vec<i32> = (0..128).map(|i| (i * 5 + i / 8) % 13 - 6).collect();
    let run = Run::new(Options::default());
    run.put(1, &pairs(&a.iter().map(|&v| bf16(v)).collect::<Vec<_>>()));
    run.put(2, &pairs(&b.iter().map(|&v| bf16(v)).collect::<Vec<_>>()));
    let body = "mov.u32 %r1, sa; mov.u32 %r2, sb; shl.b32 %r3, %r0, 4; cvt.u64.u32 %d3, %r3;
        add.u32 %r4, %r1, %r3; add.s64 %d4, %d1, %d3; cp.async.cg.shared.global [%r4], [%d4], 16;
        setp.lt.u32 %p1, %r0, 16; add.u32 %r5, %r2, %r3; add.s64 %d5, %d2, %d3;
        @%p1 cp.async.cg.shared.global [%r5], [%d5], 16;
        cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
        // Lanes 0-15: rows 0-15, columns 0-7; lanes 16-31: columns 8-15. A row has 32 bytes.
        and.b32 %r6, %r0, 15; shr.u32 %r7, %r0, 4; shl.b32 %r6, %r6, 5; shl.b32 %r7, %r7, 4;
        add.u32 %r6, %r6, %r7; add.u32 %r6, %r6, %r1;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r6];
        and.b32 %r8, %r0, 15; shl.b32 %r8, %r8, 4; add.u32 %r8, %r8, %r2;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r8];
        mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, 0f3F800000;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {%f0,%f1,%f2,%f3};
        // Row g = lane / 4, columns 2 (lane % 4) and the next; a row of D has 32 bytes.
        shr.u32 %r20, %r0, 2; and.b32 %r21, %r0, 3; shl.b32 %r20, %r20, 5; shl.b32 %r21, %r21, 3;
        add.u32 %r20, %r20, %r21; cvt.u64.u32 %d6, %r20; add.s64 %d6, %d0, %d6;
        st.global.v2.f32 [%d6], {%f0, %f1}; st.global.v2.f32 [%d6+256], {%f2, %f3};";
    let declarations = ".shared .align 16 .b8 sa[512];\n.shared .align 16 .b8 sb[256];";
    run.launch(&kernel(declarations, body), 1, 32, 0).unwrap();
    let got: Vec<f32> = run.get(0, 128).into_iter().map(f32::from_bits).collect();
    for row in 0..16 {
        for column in 0..8 {
            let want: i32 = (0..16)
                .map(|k| a[16 * row + k] * b[8 * k + column])
                .sum::<i32>()
                + 1;
            assert_eq!(got[8 * row + column], want as f32, "({row}, {column})");
        }
    }
}

#[test]
fn stmatrix_undoes_ldmatrix() {
    for trans in ["", ".trans"] {
        let body = format!(
            "mov.u32 %r1, buf; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2;
            st.shared.v4.b32 [%r3], {{%r2, %r0, %r3, %r2}};
            ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r3]; bar.warp.sync -1;
            st.shared.v4.b32 [%r3], {{%r1, %r1, %r1, %r1}}; bar.warp.sync -1;
            stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r3], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;
            ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r3];
            mov.u32 %r9, 0; setp.ne.u32 %p1, %r20, %r2; @%p1 mov.u32 %r9, 1; setp.ne.u32 %p1, %r21, %r0; @%p1 mov.u32 %r9, 2;
            setp.ne.u32 %p1, %r22, %r3; @%p1 mov.u32 %r9, 3; setp.ne.or.u32 %p1, %r23, %r2, %p1; @%p1 mov.u32 %r9, 4;{}",
            common::STORE
        );
        assert_eq!(run(".shared .align 16 .b8 buf[512];", &body, 32), [0; 32]);
    }
}

#[test]
fn matrices_need_the_whole_warp() {
    let body = "setp.lt.u32 %p1, %r0, 16; @!%p1 bra J; movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0; J: mov.u32 %r2, 1;";
    assert!(matches!(
        fault("", body, 32).kind,
        FaultKind::Divergent { .. }
    ));
    let body = "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;";
    assert!(matches!(
        fault("", body, 20).kind,
        FaultKind::Divergent {
            missing: 0xfff0_0000,
            ..
        }
    ));
    let body = "mov.u32 %r1, buf; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1+8];";
    let found = fault(".shared .align 16 .b8 buf[512];", body, 32);
    assert!(
        matches!(found.kind, FaultKind::Misaligned { align: 16, .. }),
        "{found}"
    );
}

/// A launch has its device's arithmetic, and one module serves devices of all kinds. The row is 4 times 2^-25: Ampere's
/// last place beside 1 is 2^-24, Hopper's 2^-25, and rounding to nearest after each addition leaves 1.
#[test]
fn numerics() {
    // Columns 0, 1, 8 and 9 of A and rows 0, 1, 8 and 9 of B, f16: 2^-12 and 2^-13 in the lanes with t = 0.
    let mut body = "and.b32 %r1, %r0, 3; setp.eq.u32 %p1, %r1, 0;\n".to_owned();
    for n in 0..4 {
        body += &format!("selp.b32 %r{}, 0x0c000c00, 0, %p1;\n", 10 + n);
    }
    for n in 0..2 {
        body += &format!("selp.b32 %r{}, 0x08000800, 0, %p1;\n", 14 + n);
    }
    for n in 20..24 {
        body += &format!("mov.b32 %r{n}, 0x3f800000;\n");
    }
    body += "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r20,%r21,%r22,%r23}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {%r20,%r21,%r22,%r23};\n\
        mov.b32 %r9, %r20;";
    body += common::STORE;
    let module = Module::parse(&kernel("", &body)).unwrap();
    let result = |numerics| {
        let run = Run::new(Options {
            numerics,
            ..Options::default()
        });
        let params: Vec<u8> = run.buffers.iter().flat_map(|b| b.to_le_bytes()).collect();
        let launch = Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: None,
            dynamic_shared: 0,
            params: &params,
        };
        run.device.launch(&module, "k", &launch).unwrap();
        run.get(0, 32)
    };
    let all = |word: u32| vec![word; 32];
    for (tensor_cores, want) in [
        (TensorCores::Fast, 0x3f80_0000),
        (TensorCores::Ampere, 0x3f80_0000),
        (TensorCores::Hopper, 0x3f80_0001),
        (TensorCores::Fast, 0x3f80_0000),
    ] {
        let numerics = Numerics {
            tensor_cores,
            perturb: None,
        };
        assert_eq!(result(numerics), all(want), "{numerics}");
    }
}

/// The approximate functions of f32 follow the seed.
#[test]
fn perturbed_functions() {
    // 3 + the thread: no powers of two, whose reciprocals may be exact.
    let body = "cvt.rn.f32.u32 %f0, %r0; add.f32 %f0, %f0, 0f40400000; rcp.approx.ftz.f32 %f1, %f0; mov.b32 %r9, %f1;";
    let text = kernel("", &format!("{body}{}", common::STORE));
    let result = |perturb| {
        let run = Run::new(Options {
            numerics: Numerics {
                perturb,
                ..Numerics::default()
            },
            ..Options::default()
        });
        run.launch(&text, 1, 32, 0).unwrap();
        run.get(0, 32)
    };
    let exact = result(None);
    for (thread, &word) in exact.iter().enumerate() {
        assert_eq!(f32::from_bits(word), 1.0 / (thread as f32 + 3.0));
    }
    let (one, two) = (result(Some(1)), result(Some(2)));
    assert_eq!(one, result(Some(1)));
    assert!(one != exact && two != exact && one != two);
    for (moved, exact) in one.iter().zip(&exact) {
        assert!(moved.abs_diff(*exact) <= 1, "{moved:#x} {exact:#x}");
    }
}

#[test]
fn names_of_tensor_cores() {
    for cores in TensorCores::ALL {
        assert_eq!(cores.to_string().parse(), Ok(cores));
    }
    let error = "volta".parse::<TensorCores>().unwrap_err();
    assert!(error.to_string().contains("volta"), "{error}");
}
