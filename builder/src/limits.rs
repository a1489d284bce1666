//! What no kernel may pass: the one table of limits that every build enforces.

use flashtile_abi::{Algorithm, Arch, DType, ScoreModKind, Variant};

use crate::ptxas::Facts;
use crate::sass::MachineCode;
use crate::spec::EntrySpec;

/// The most registers a thread can have.
const REGISTERS: u32 = 255;

/// ptxas's notes that no kernel may have: setmaxnreg ignored (C7508), products of a warpgroup serialised for whatever reason
/// (C7509 to C7518), a fence that it needs on a divergent path and cannot place well (C7520). C7519, a fence that it placed,
/// costs an instruction.
const NOTES: [&str; 12] = [
    "C7508", "C7509", "C7510", "C7511", "C7512", "C7513", "C7514", "C7515", "C7516", "C7517",
    "C7518", "C7520",
];

/// Instructions that one warp may issue for 64 queries and 128 keys in the unmasked loop, by head_dim: kernels of the sm_90a
/// tier with 16-bit elements that don't cap scores.
const LOOPS: [(u32, u32); 3] = [(64, 415), (128, 460), (256, 800)];

/// The limit of a variant's unmasked loop, if it has one.
pub(crate) fn loop_limit(variant: &Variant) -> Option<u32> {
    let bound = variant.arch == Arch::Sm90a
        && variant.algorithm == Algorithm::Fused
        && variant.score_mod == ScoreModKind::None
        && matches!(variant.tile.dtype, DType::F16 | DType::Bf16)
        && variant.tile.head_dim_qk == variant.tile.head_dim_v;
    let limit = LOOPS
        .iter()
        .find(|(dim, _)| *dim == variant.tile.head_dim_qk);
    limit.filter(|_| bound).map(|(_, limit)| *limit)
}

/// Everything that passes a limit: by what ptxas said, and by the machine code where that was read.
pub fn over_limits(
    spec: &EntrySpec,
    facts: &Facts,
    machine: Option<&MachineCode>,
) -> Option<String> {
    let limits = [
        ("bytes of spill stores", facts.spill_stores, 0),
        ("bytes of spill loads", facts.spill_loads, 0),
        ("bytes of stack", facts.stack_bytes, 0),
        ("registers", facts.registers, REGISTERS),
    ];
    let over = limits.iter().filter(|(_, value, limit)| value > limit);
    let mut over: Vec<_> = over
        .map(|(what, value, _)| format!("{value} {what}"))
        .collect();
    let forbidden = |note: &&String| NOTES.iter().any(|code| note.contains(code));
    over.extend(facts.notes.iter().filter(forbidden).cloned());
    if let (Some(limit), Some(machine)) = (spec.loop_limit, machine) {
        over.extend(over_loop_limit(machine, limit));
    }
    (!over.is_empty()).then(|| over.join(", "))
}

fn over_loop_limit(machine: &MachineCode, limit: u32) -> Option<String> {
    let Some(steady) = machine.steady() else {
        return Some(
            "no loop over whole tiles in the machine code, so its limit is not proven".into(),
        );
    };
    steady.is_over(limit).then(|| {
        let count = steady.per_unit(steady.instructions());
        format!(
            "{count:.1} instructions for 64 queries and 128 keys in the loop at {:#x}, the limit is {limit}",
            steady.address
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sass::LoopCost;
    use crate::spec::tests::spec;

    #[test]
    fn spills_stack_and_registers_have_limits() {
        let good = Facts {
            registers: 255,
            ..Facts::default()
        };
        assert_eq!(over_limits(&spec("k"), &good, None), None);
        let bad = Facts {
            spill_stores: 4,
            stack_bytes: 8,
            ..good
        };
        assert_eq!(
            over_limits(&spec("k"), &bad, None).as_deref(),
            Some("4 bytes of spill stores, 8 bytes of stack")
        );
    }

    #[test]
    fn notes_that_slow_a_kernel_are_over_the_limit_and_an_injected_fence_is_not() {
        for code in 7500..7530 {
            let facts = Facts {
                notes: vec![format!(
                    "ptxas info : (C{code}) Potential Performance Loss: x"
                )],
                ..Facts::default()
            };
            let over = over_limits(&spec("k"), &facts, None).is_some();
            assert_eq!(
                over,
                (7508..=7518).contains(&code) || code == 7520,
                "C{code}"
            );
        }
    }

    #[test]
    fn a_loop_may_have_as_many_instructions_as_the_limit_and_no_more() {
        let spec = EntrySpec {
            loop_limit: Some(460),
            ..spec("k")
        };
        let facts = Facts::default();
        // Half as much again as the unit in each iteration.
        let machine = |issue| MachineCode {
            loops: vec![LoopCost {
                cycles: crate::sass::Cycles {
                    issue,
                    ..Default::default()
                },
                multiplications: 3 << 10,
                unit: 2 << 10,
                ..LoopCost::default()
            }],
            ..MachineCode::default()
        };
        let over = |m: &MachineCode| over_limits(&spec, &facts, Some(m));
        assert_eq!(over(&machine(690)), None);
        let more = over(&machine(691)).unwrap_or_default();
        assert!(more.starts_with("460.7 instructions"), "{more}");
        assert!(over(&MachineCode::default()).is_some(), "no loop at all");
        assert_eq!(over_limits(&spec, &facts, None), None, "nobody looked");
    }

    #[test]
    fn the_loops_of_the_table_are_those_of_the_sm_90a_tier() {
        let mut variant = flashtile_abi::variants()[0];
        variant.entry.arch = Arch::Sm90a;
        variant.score_mod = ScoreModKind::None;
        variant.algorithm = Algorithm::Fused;
        for (dim, limit) in [
            (32, None),
            (64, Some(415)),
            (128, Some(460)),
            (256, Some(800)),
        ] {
            variant.tile.dtype = DType::Bf16;
            variant.tile.head_dim_qk = dim;
            variant.tile.head_dim_v = dim;
            assert_eq!(loop_limit(&variant), limit);
            variant.tile.dtype = DType::F32;
            assert_eq!(loop_limit(&variant), None);
        }
        for variant in flashtile_abi::variants() {
            let may = variant.arch == Arch::Sm90a && variant.score_mod == ScoreModKind::None;
            assert!(may || loop_limit(variant).is_none(), "{}", variant.name);
        }
    }
}
