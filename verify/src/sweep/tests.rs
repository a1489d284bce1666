use flashtile::Arch;

use super::*;

fn covered(cases: &[Case]) -> Coverage {
    let mut coverage = Coverage::default();
    cases.iter().for_each(|case| coverage.add(case));
    coverage
}

/// An example that is not in its own class, or is computed by another variant, tests something else.
#[test]
fn every_example_is_in_its_class_and_of_its_variant() {
    for variant in variants() {
        for class in Class::all() {
            let Some(case) = case(variant, class) else {
                assert!(!class.applies(variant));
                continue;
            };
            // A cap is chosen by the problem, so it may lead to the variant's twin.
            assert_eq!(case.variant().name, variant.name, "{class}: {case}");
            assert!(class.holds(&case, variant), "{class}: {case}");
            assert_eq!(case.to_string().parse(), Ok(case));
        }
    }
}

#[test]
fn the_full_sweep_covers_every_variant_and_class() {
    assert_eq!(covered(&full()).missing(), Vec::<String>::new());
}

#[test]
fn what_no_case_reaches_is_missing() {
    let mut cases = full();
    cases.retain(|case| !case.placements[2].backwards);
    let gone = [Class::Memory, Class::Fallback].map(|class| class(2, Lie::Backwards));
    let of_kernel = |variant: &'static Variant| {
        let name = variant.name;
        let classes = gone.iter().filter(move |class| class.applies(variant));
        classes.map(move |class| format!("{name}: no case of {class}"))
    };
    let expected: Vec<_> = variants().iter().flat_map(of_kernel).collect();
    assert_eq!(covered(&cases).missing(), expected);

    let first = &variants()[0];
    let mut cases = full();
    cases.retain(|case| case.variant().name != first.name);
    let classes = Class::all().into_iter();
    let applying = classes.filter(|class| class.applies(first)).count();
    assert_eq!(covered(&cases).missing().len(), applying);
}

#[test]
fn the_quick_sweep_has_every_variant_and_every_class() {
    let coverage = covered(&quick());
    for variant in variants() {
        assert!(coverage.count(variant, Class::Dims(Dims::Widest)) > 0);
    }
    for class in Class::all() {
        let mut counts = variants()
            .iter()
            .map(|variant| coverage.count(variant, class));
        assert!(counts.any(|count| count > 0), "{class}");
    }
    assert!(quick().len() * 5 < full().len());
}

/// What the tier has of its own is what its cases are: the emulator shares the work out so, and not only in their names.
#[test]
fn every_way_to_share_the_work_is_reached() {
    for variant in variants()
        .iter()
        .filter(|variant| variant.arch == Arch::Sm90a)
    {
        let cases = of_variant(variant);
        let plans = cases.iter().map(|case| case.plan().unwrap());
        let schedules: Vec<_> = plans.map(|plan| *plan.schedule().unwrap()).collect();
        let packs: HashSet<u32> = schedules.iter().map(|s| s.pack).collect();
        assert_eq!(packs, HashSet::from([0, 1, 2, 3, 4]));
        assert!(schedules.iter().any(|s| s.rounds > 2 && s.rounds % 2 == 1));
        let paired = |s: &flashtile::Schedule| s.cluster == 2;
        let many = |s: &flashtile::Schedule| s.rounds > 1;
        let pairs = variant.tile.head_dim_qk >= 128;
        assert_eq!(schedules.iter().any(|s| paired(s) && many(s)), pairs);
        assert_eq!(schedules.iter().any(|s| paired(s) && s.pack > 0), pairs);
    }
}

#[test]
fn primes() {
    let found: Vec<usize> = (0..30).filter(|&n| class::is_prime(n)).collect();
    assert_eq!(found, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
}
