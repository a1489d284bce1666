use super::*;

fn covered(cases: &[Case]) -> Coverage {
    let mut coverage = Coverage::default();
    cases.iter().for_each(|case| coverage.add(case));
    coverage
}

/// An example that is not in its own class, or is computed by another variant, tests something else.
#[test]
fn every_example_is_in_its_class_and_of_its_variant() {
    for kernel in flashtile::kernels() {
        for class in Class::all() {
            let Some(case) = case(kernel.variant, class) else {
                assert!(!class.applies(kernel.variant));
                continue;
            };
            // A cap is chosen by the problem, so it may lead to the variant's twin.
            assert_eq!(case.variant().name, kernel.variant.name, "{class}: {case}");
            assert!(class.holds(&case, kernel.variant), "{class}: {case}");
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
    let missing = covered(&cases).missing();
    assert_eq!(missing.len(), flashtile::kernels().count());
    assert!(
        missing
            .iter()
            .all(|line| line.ends_with("Memory(2, Backwards)"))
    );

    let first = flashtile::kernels().next().unwrap().variant;
    let mut cases = full();
    cases.retain(|case| case.variant().name != first.name);
    let classes = Class::all().into_iter();
    let applying = classes.filter(|class| class.applies(first)).count();
    assert_eq!(covered(&cases).missing().len(), applying);
}

#[test]
fn the_quick_sweep_has_every_variant_and_every_class() {
    let coverage = covered(&quick());
    for kernel in flashtile::kernels() {
        assert!(coverage.count(kernel.variant, Class::Dims(Dims::Widest)) > 0);
    }
    for class in Class::all() {
        let mut counts = flashtile::kernels().map(|k| coverage.count(k.variant, class));
        assert!(counts.any(|count| count > 0), "{class}");
    }
    assert!(quick().len() * 5 < full().len());
}

#[test]
fn primes() {
    let found: Vec<usize> = (0..30).filter(|&n| class::is_prime(n)).collect();
    assert_eq!(found, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
}
