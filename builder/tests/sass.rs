//! The machine code of small Hopper kernels, as ptxas makes it now. Needs ptxas and nvdisasm; without them it says so and
//! passes.

use std::fmt::Write as _;

use flashtile_builder::builder::prove;
use flashtile_builder::disassemble::Nvdisasm;
use flashtile_builder::finish::finish;
use flashtile_builder::limits::over_limits;
use flashtile_builder::ptx::Module;
use flashtile_builder::sass::{Class, MachineCode, listing, report};
use flashtile_builder::spec::{EntrySpec, TileWork};
use flashtile_builder::{Facts, Ptxas};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The tools, or none with a message.
fn tools() -> Option<(Ptxas, Nvdisasm)> {
    let ptxas = Ptxas::find().ok().flatten();
    let tools = ptxas.and_then(|p| Nvdisasm::find(&p).map(|n| (p, n)));
    if tools.is_none() {
        println!("skipped: no ptxas, or no nvdisasm of its release");
    }
    tools
}

/// What the kernel below is made of.
#[derive(Clone, Copy)]
struct Shape {
    /// Keys of a tile.
    keys: usize,
    /// head_dim of q, k and v.
    dim: usize,
    threads: u32,
    /// A loop that masks ahead of the one that does not.
    masked: bool,
    /// Tiles an iteration.
    unroll: usize,
    /// Whether every product is waited for.
    serial: bool,
}

const SMALL: Shape = Shape {
    keys: 64,
    dim: 64,
    threads: 384,
    masked: true,
    unroll: 1,
    serial: false,
};

impl Shape {
    fn spec(&self) -> EntrySpec {
        EntrySpec {
            name: "k".into(),
            arch: "sm_90a",
            threads: self.threads,
            min_blocks: 1,
            shared_bytes: 0,
            allow_f64: false,
            work: Some(TileWork {
                rows: 16,
                keys: self.keys as u32,
                head_dim_qk: self.dim as u32,
                head_dim_v: self.dim as u32,
                products: 1,
            }),
            loop_limit: None,
        }
    }

    /// A consumer warpgroup of a forward kernel without its copies: scores from shared memory, online softmax with a rescaling
    /// that is skipped unless the maximum grew, weighted sum with the probabilities from registers.
    fn ptx(&self) -> String {
        let mut out = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n\
             .visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1, .param .f32 k_param_2)\n\
             .maxntid {}, 1, 1\n.minnctapersm 1\n{{\n\
             .reg .b32 %r<64>; .reg .f32 %s<{s}>; .reg .f32 %o<{o}>; .reg .f32 %f<32>; .reg .b64 %rd<16>;\n\
             .reg .pred %p<16>; .reg .b32 %a<{s}>;\n\
             mov.u32 %r0, smem;\nmov.u32 %r1, %tid.x;\nld.param.u64 %rd0, [k_param_0];\nld.param.u32 %r2, [k_param_1];\n\
             ld.param.f32 %f0, [k_param_2];\nmov.u32 %r3, 0;\nmov.u32 %r4, 0;\n\
             mov.f32 %f1, 0fff800000; mov.f32 %f2, 0fff800000; mov.f32 %f3, 0f00000000; mov.f32 %f4, 0f00000000;\n",
            self.threads,
            s = self.keys / 2,
            o = self.dim / 2,
        );
        for i in 0..self.dim / 2 {
            let _ = writeln!(out, "mov.f32 %o{i}, 0f00000000;");
        }
        let loops = if self.masked {
            &["MASKED", "PLAIN"][..]
        } else {
            &["PLAIN"]
        };
        for name in loops {
            let _ = writeln!(out, "{name}:");
            for copy in 0..self.unroll {
                self.tile(&mut out, &format!("{name}{copy}"), *name == "MASKED");
                // The end may come after any tile.
                if copy + 1 < self.unroll {
                    let _ = writeln!(out, "@!%p8 bra {name}_DONE;");
                }
            }
            let _ = writeln!(out, "@%p8 bra {name};\n{name}_DONE: mov.u32 %r4, 0;");
        }
        let _ = writeln!(out, "mad.wide.u32 %rd7, %r1, {}, %rd0;", 2 * self.dim + 8);
        for i in 0..self.dim / 2 {
            let _ = writeln!(out, "st.global.f32 [%rd7+{}], %o{i};", 4 * i + 8);
        }
        out.push_str("st.global.f32 [%rd7], %f3; st.global.f32 [%rd7+4], %f4;\nret;\n}\n");
        out
    }

    fn tile(&self, out: &mut String, name: &str, masked: bool) {
        let list = |prefix: &str, from: usize, count: usize| -> String {
            let all: Vec<_> = (from..from + count)
                .map(|i| format!("%{prefix}{i}"))
                .collect();
            all.join(", ")
        };
        let (scores, output) = (self.keys / 2, self.dim / 2);
        let _ = writeln!(
            out,
            "{name}_WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r0+512], %r3;\n@!%p1 bra {name}_WAIT;\n\
             wgmma.fence.sync.aligned;"
        );
        for step in 0..self.dim / 16 {
            let _ = writeln!(
                out,
                "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, {}, {}, {}, 1, 1, 0, 0;",
                self.keys,
                list("s", 0, scores),
                0x4000_0040_0001_0040_u64 + 2 * step as u64,
                0x4000_0040_0001_0840_u64 + 2 * step as u64,
                u8::from(step > 0),
            );
            if self.serial {
                out.push_str(
                    "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nwgmma.fence.sync.aligned;\n",
                );
            }
        }
        out.push_str("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n");
        for i in (0..scores).filter(|_| masked) {
            let _ = writeln!(
                out,
                "setp.lt.s32 %p2, %r4, {}; selp.f32 %s{i}, %s{i}, 0fff800000, %p2;",
                3 * i
            );
        }
        let half = |i: usize| (i >> 1) & 1;
        for h in 0..2 {
            let _ = writeln!(out, "mov.f32 %f{}, %f{};", 10 + h, 1 + h);
            for i in (0..scores).filter(|i| half(*i) == h) {
                let _ = writeln!(out, "max.f32 %f{0}, %f{0}, %s{i};", 10 + h);
            }
            for distance in [1, 2] {
                let _ = writeln!(
                    out,
                    "mov.b32 %r20, %f{0}; shfl.sync.bfly.b32 %r21, %r20, {distance}, 31, -1; mov.b32 %f20, %r21; \
                     max.f32 %f{0}, %f{0}, %f20;",
                    10 + h
                );
            }
            let _ = writeln!(
                out,
                "sub.f32 %f21, %f{old}, %f{new}; mul.f32 %f21, %f21, %f0; ex2.approx.ftz.f32 %f{by}, %f21;\n\
                 setp.gt.f32 %p{grew}, %f{new}, %f{old}; mov.f32 %f{old}, %f{new}; mul.f32 %f{sum}, %f{sum}, %f{by};\n\
                 mul.f32 %f{minus}, %f{new}, %f0; neg.f32 %f{minus}, %f{minus};",
                old = 1 + h,
                new = 10 + h,
                by = 14 + h,
                grew = 4 + h,
                sum = 3 + h,
                minus = 12 + h,
            );
        }
        let _ = writeln!(
            out,
            "or.pred %p6, %p4, %p5; vote.sync.any.pred %p7, %p6, -1; @!%p7 bra {name}_KEEP;"
        );
        for i in 0..output {
            let _ = writeln!(out, "mul.f32 %o{i}, %o{i}, %f{};", 14 + half(i));
        }
        let _ = writeln!(out, "{name}_KEEP:");
        for i in 0..scores {
            let _ = writeln!(
                out,
                "fma.rn.f32 %s{i}, %s{i}, %f0, %f{}; ex2.approx.ftz.f32 %s{i}, %s{i}; add.f32 %f{sum}, %f{sum}, %s{i};",
                12 + half(i),
                sum = 3 + half(i)
            );
        }
        for i in (0..scores).step_by(2) {
            let _ = writeln!(out, "cvt.rn.bf16x2.f32 %a{}, %s{}, %s{i};", i / 2, i + 1);
        }
        out.push_str("wgmma.fence.sync.aligned;\n");
        for step in 0..self.keys / 16 {
            let _ = writeln!(
                out,
                "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, {{{}}}, {}, 1, 1, 1, 1;",
                self.dim,
                list("o", 0, output),
                list("a", 4 * step, 4),
                0x4000_0040_0001_1840_u64 + 128 * step as u64,
            );
        }
        out.push_str(
            "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
             mbarrier.arrive.shared::cta.b64 _, [%r0+520];\nxor.b32 %r3, %r3, 1;\nadd.s32 %r4, %r4, 1;\n\
             setp.lt.u32 %p8, %r4, %r2;\n",
        );
    }
}

fn measure(
    shape: Shape,
    ptxas: &Ptxas,
) -> Result<(Facts, MachineCode), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (spec, ptx) = (shape.spec(), shape.ptx());
    let mut proven = prove(&[(&spec, &ptx)], ptxas, folder.path())?;
    let (facts, machine) = proven.pop().ok_or("nothing was proven")?;
    Ok((facts, machine.ok_or("the machine code was not read")?))
}

#[test]
fn a_forward_loop_is_what_it_was_written_to_be() -> Outcome {
    let Some((ptxas, _)) = tools() else {
        return Ok(());
    };
    let (facts, machine) = measure(SMALL, &ptxas)?;
    assert_eq!(over_limits(&SMALL.spec(), &facts, Some(&machine)), None);
    // Two loops with four products for the scores and four for the weighted sum.
    assert_eq!(
        (machine.tensor_instructions, facts.tensor_core_instructions),
        (16, 16)
    );
    assert_eq!((machine.loops.len(), machine.partial_loops), (2, 0));
    let steady = machine.steady().ok_or("no loop")?;
    let masked = &machine.masked()[0];
    assert!(
        masked.instructions() > steady.instructions() + 32,
        "a selection a score"
    );
    for cost in &machine.loops {
        assert_eq!((cost.tiles, cost.runs.as_slice()), (Some(1), &[4, 4][..]));
        assert!(!cost.is_serialised());
        // A half of the unit's 128 keys: 32 scores a lane, and two factors of the rescaling.
        assert_eq!(cost.classes[Class::Tensor as usize], 8);
        assert_eq!(cost.classes[Class::Mufu as usize], 32 + 2);
        assert_eq!(cost.classes[Class::Convert as usize], 16);
        assert_eq!(cost.classes[Class::Shuffle as usize], 4 + 1);
        // 32 fused, 32 additions, and what the two rows need.
        let fma = cost.classes[Class::Fma as usize];
        assert!((64..64 + 16).contains(&fma), "{fma}");
        assert_eq!(cost.classes[Class::Other as usize], 0);
        // The rescaling of 32 values.
        assert!((32..40).contains(&cost.aside), "{}", cost.aside);
        assert_eq!(cost.cycles.tensor, 16 * 64 * 128 / 512);
    }
    Ok(())
}

#[test]
fn unrolling_does_not_change_what_a_tile_costs() -> Outcome {
    let Some((ptxas, _)) = tools() else {
        return Ok(());
    };
    let cost = |unroll| -> Result<_, Box<dyn std::error::Error>> {
        let shape = Shape {
            unroll,
            masked: false,
            ..SMALL
        };
        let (_, machine) = measure(shape, &ptxas)?;
        let steady = machine.steady().ok_or("no loop")?;
        assert_eq!(steady.tiles, Some(unroll as u64));
        Ok(steady.clone())
    };
    let (one, two) = (cost(1)?, cost(2)?);
    assert_eq!(two.runs, [4; 4]);
    for (class, name) in Class::ALL.iter().zip(0..) {
        let counts = [&one, &two].map(|c| c.per_unit(c.classes[name]));
        // ptxas moves some copies and increments; none of a lane's 32 scores hides there.
        assert!(
            (counts[0] - counts[1]).abs() < 16.0,
            "{}: {counts:?}",
            class.as_str()
        );
    }
    assert!((one.per_unit(one.cycles.tensor) - two.per_unit(two.cycles.tensor)).abs() < 1e-9);
    Ok(())
}

#[test]
fn products_that_are_waited_for_one_by_one_are_seen() -> Outcome {
    let Some((ptxas, _)) = tools() else {
        return Ok(());
    };
    let (_, machine) = measure(
        Shape {
            serial: true,
            masked: false,
            ..SMALL
        },
        &ptxas,
    )?;
    let steady = machine.steady().ok_or("no loop")?;
    assert_eq!(steady.runs, [1, 1, 1, 1, 4]);
    Ok(())
}

#[test]
fn a_kernel_that_ptxas_serialises_is_over_the_limits() -> Outcome {
    let Some((ptxas, _)) = tools() else {
        return Ok(());
    };
    // 64 scores, 64 sums and 32 pairs of probabilities a lane, in 128 registers.
    let shape = Shape {
        keys: 128,
        dim: 128,
        threads: 512,
        masked: false,
        ..SMALL
    };
    let (facts, machine) = measure(shape, &ptxas)?;
    let over = over_limits(&shape.spec(), &facts, Some(&machine)).ok_or("it passed")?;
    assert!(over.contains("spill"), "{over}");
    assert!(over.contains("(C7512)"), "{over}");
    assert!(
        machine.steady().is_none_or(|s| s.is_serialised()),
        "{machine:?}"
    );
    Ok(())
}

#[test]
fn the_listing_has_every_instruction_and_its_ptx() -> Outcome {
    let Some((ptxas, nvdisasm)) = tools() else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let cubin = folder.path().join("k.cubin");
    let (spec, ptx) = (SMALL.spec(), SMALL.ptx());
    ptxas.assemble_with_lines(&spec, &ptx, &cubin)?;
    let with_lines = nvdisasm.text_with_lines("k", &cubin)?;
    // Line numbers change no instruction.
    let (_, machine) = measure(SMALL, &ptxas)?;
    assert_eq!(MachineCode::read(&with_lines, &spec)?, machine);
    let listing = listing::listing(&with_lines, &ptx, &spec)?;
    let steady = machine.steady().ok_or("no loop")?;
    let mut parts = listing.split("\nThe ").skip(1);
    let execution = parts.next().ok_or("no first part")?;
    let path = execution.split("\nAside").next().unwrap_or_default();
    let addresses = path.lines().filter_map(|l| l.split_whitespace().next());
    let addresses = addresses.filter(|a| u32::from_str_radix(a, 16).is_ok());
    assert_eq!(addresses.count(), steady.instructions() as usize, "{path}");
    for (opcode, count, statement) in [
        ("HGMMA.64x64x16", 8, ""),
        ("WARPGROUP.ARRIVE", 2, ": wgmma.fence"),
        ("WARPGROUP.DEPBAR", 2, ": wgmma.wait_group"),
        ("MUFU.EX2", 34, "ex2.approx.ftz.f32"),
        ("VOTE", 1, "vote.sync.any"),
    ] {
        let lines = path.lines().filter(|l| l.contains(opcode));
        let right = lines.clone().filter(|l| l.contains(statement));
        assert_eq!(
            (lines.count(), right.count()),
            (count, count),
            "{opcode}: {path}"
        );
    }
    let source = parts.next().ok_or("no second part")?;
    let counts = source
        .lines()
        .skip(1)
        .filter_map(|l| l.split_whitespace().next()?.parse::<u32>().ok());
    assert_eq!(counts.sum::<u32>(), steady.instructions());
    Ok(())
}

#[test]
fn both_targets_are_proven_together_and_make_one_table() -> Outcome {
    let Some((ptxas, _)) = tools() else {
        return Ok(());
    };
    let ampere = EntrySpec {
        name: "a".into(),
        arch: "sm_80",
        threads: 128,
        work: None,
        ..SMALL.spec()
    };
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry a(.param .u64 a_param_0)\n{ ret; }\n";
    let (hopper, ptx) = (SMALL.spec(), SMALL.ptx());
    let folder = tempfile::tempdir()?;
    let proven = prove(&[(&ampere, text), (&hopper, &ptx)], &ptxas, folder.path())?;
    let rows: Vec<_> = [&ampere, &hopper]
        .into_iter()
        .zip(&proven)
        .filter_map(|(spec, (facts, machine))| {
            let machine = machine.as_ref()?;
            Some(report::Row {
                spec,
                facts,
                machine,
            })
        })
        .collect();
    assert_eq!(rows.len(), 2);
    let table = report::tables(&rows, &ptxas.version);
    assert!(
        table.contains("H100 (sm_90)") && !table.contains("A100 (sm_80)"),
        "no loop, no cycles: {table}"
    );
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("a ") && l.contains("part")),
        "{table}"
    );
    Ok(())
}

#[test]
fn tensor_maps_in_a_parameter_struct_are_taken_by_tma() -> Outcome {
    // As rustc writes it: one struct by value, the maps first, its address taken in inline assembly.
    let text = ".version 8.0\n.target sm_90a\n.address_size 64\n\n\t// .globl\tk\n\
        .visible .entry k(\n\t.param .align 8 .b8 k_param_0[776]\n)\n{\n\t.reg .b32 \t%r<4>;\n\t.reg .b64 \t%rd<8>;\n\n\
        \tld.param.b32 \t%r1, [k_param_0+512];\n\t// begin inline asm\n\tmov.b64 %rd1, k_param_0; cvta.param.u64 %rd1, %rd1;\n\
        \t// end inline asm\n\tadd.s64 \t%rd2, %rd1, 128;\n\tmov.b32 \t%r2, flashtile_smem;\n\t// begin inline asm\n\
        \tcp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd2, {%r1, %r1, %r1, %r1}], [%r2];\n\
        \t// end inline asm\n\tret;\n\n}\n";
    let spec = EntrySpec {
        work: None,
        ..SMALL.spec()
    };
    let finished = finish(&Module::parse(text)?, std::slice::from_ref(&spec))?;
    let ptx = &finished[0].ptx;
    assert!(
        ptx.contains("\t.param .align 64 .b8 k_param_0[776]\n"),
        "{ptx}"
    );
    assert_eq!(finished[0].params_bytes, 776);
    let Some((ptxas, nvdisasm)) = tools() else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let cubin = folder.path().join("k.cubin");
    let facts = ptxas.assemble(&spec, ptx, &cubin)?;
    assert_eq!(facts.stack_bytes, 0, "the maps stay where they are");
    let code = nvdisasm.text("k", &cubin)?;
    assert!(code.contains("UTMALDG.4D"), "{code}");
    Ok(())
}
