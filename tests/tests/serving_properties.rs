//! Problems of inference engines by chance, against the oracle.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use flashtile::{
    CausalAlignment, DeviceInfo, ServingVariant,
    serving::{BiasType, MaskType, attention, attention_cpu},
};
use flashtile_abi::serving::serving_variants;
use flashtile_tests::serving::{
    Axes, Built, Cache, CacheOrder, Queries, case, check, devices, for_all, judge, run,
};

#[test]
fn few_queries() {
    for_all(300, case(Axes::DECODE), check);
}

#[test]
fn many_queries() {
    for_all(150, case(Axes::PREFILL), check);
}

#[test]
fn small_problems() {
    for_all(300, case(Axes::SMALL), check);
}

/// The CPU's path, without a device.
#[test]
fn cpu() {
    for axes in [Axes::DECODE, Axes::PREFILL, Axes::SMALL] {
        for_all(150, case(axes), |case| {
            let built = Built::of(case);
            let outputs = attention_cpu(&built.problem, &built.inputs())
                .map_err(|error| format!("{case:?}: {error}"))?;
            judge(case, &built, &outputs)
        });
    }
}

/// The library's own upload gives what a launch gives, and zeros where no query counts.
#[test]
fn attention_is_a_launch() {
    for_all(60, case(Axes::SMALL), |case| {
        let built = Built::of(case);
        for device in devices() {
            let launched = run(device, case, &built)?;
            let found = attention(device, &built.problem, &built.inputs())
                .map_err(|error| format!("{case:?}: {error}"))?;
            for b in 0..built.problem.batch {
                let (out, lse) = built.of_sequence(&found, b);
                let (wanted, wanted_lse) = built.of_sequence(&launched, b);
                flashtile_tests::assert_same_bits("out", &out, &wanted)?;
                flashtile_tests::assert_same_bits("lse", &lse, &wanted_lse)?;
            }
        }
        Ok(())
    });
}

/// How a kernel's warps share the work, and its tier.
fn kind(variant: &ServingVariant) -> (&'static str, &'static str) {
    (variant.sharing.as_str(), variant.arch.as_str())
}

/// An axis that the generator never moves along tests nothing.
#[test]
fn generated_cases_reach_everything() {
    let seen = RefCell::new(BTreeMap::<String, bool>::new());
    for axes in [Axes::DECODE, Axes::PREFILL] {
        for_all(2500, case(axes), |case| {
            let problem = Built::of(case).problem;
            let plan = problem
                .plan(&DeviceInfo::emulator())
                .map_err(|error| error.to_string())?;
            let mut seen = seen.borrow_mut();
            let mut note = |what: String, is: bool| *seen.entry(what).or_default() |= is;
            for variant in serving_variants() {
                note(variant.name.into(), variant.name == plan.variant().name);
            }
            let kinds: BTreeSet<_> = serving_variants().iter().map(kind).collect();
            for name in kinds {
                let is = name == kind(plan.variant());
                let name = format!("{} {}", name.0, name.1);
                note(format!("{name}, split"), is && plan.splits() > 1);
                note(format!("{name}, whole"), is && plan.splits() == 1);
                note(format!("{name}, alibi"), is && case.alibi.is_some());
                note(format!("{name}, sink"), is && case.sink);
                note(
                    format!("{name}, sink and splits"),
                    is && case.sink && plan.splits() > 1,
                );
                note(format!("{name}, softcap"), is && case.softcap.is_some());
                note(format!("{name}, f32 out"), is && case.wide_out);
                note(format!("{name}, ranges"), is && case.ranges > 0);
                note(
                    format!("{name}, window"),
                    is && case.window.left.is_some() && case.ranges == 0,
                );
                for element in [BiasType::Same, BiasType::F32] {
                    let has = case.bias.is_some_and(|bias| bias.element == element);
                    note(format!("{name}, bias {element:?}"), is && has);
                }
                for element in [MaskType::Byte, MaskType::Bit] {
                    let has = case.mask.is_some_and(|mask| mask.element == element);
                    note(format!("{name}, mask {element:?}"), is && has);
                }
                for order in [
                    CacheOrder::RowsFirst,
                    CacheOrder::HeadsFirst,
                    CacheOrder::Chunked,
                ] {
                    for page in [1, 3, 16, 64] {
                        note(
                            format!("{name}, pages of {page}, {order:?}"),
                            is && case.order == order && case.cache == Cache::Paged(page),
                        );
                    }
                }
                for group in [1, 2, 3, 7] {
                    note(
                        format!("{name}, {group} heads"),
                        is && case.q_per_kv == group,
                    );
                }
                for causal in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
                    note(
                        format!("{name}, {causal:?}"),
                        is && case.causal == Some(causal),
                    );
                }
                for queries in [
                    Queries::Dense,
                    Queries::DenseUsed,
                    Queries::Packed,
                    Queries::PackedUsed,
                ] {
                    note(
                        format!("{name}, {queries:?}"),
                        is && case.queries == queries,
                    );
                }
            }
            let empty = |which: usize| case.lengths.iter().any(|it| it[which] == 0);
            note("a sequence without queries".into(), empty(0));
            note("a sequence without keys".into(), empty(1));
            Ok(())
        });
    }
    let missing: Vec<_> = seen
        .into_inner()
        .into_iter()
        .filter_map(|(what, seen)| (!seen).then_some(what))
        .collect();
    assert!(missing.is_empty(), "never generated: {missing:?}");
}
