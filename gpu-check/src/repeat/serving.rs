//! The kernels of inference engines again and again.

use flashtile::{Device, Operation, Outputs, Result, serving::merge};
use flashtile_verify::serving::{
    Built, BuiltMerge, MergeCase,
    sweep::{self, Class},
    try_launch,
};

use super::{Neighbours, Options, Outcome};
use crate::micro::inputs::Noise;

/// What each kernel is given: rows anywhere, everything that is done to scores, keys that are split and merged.
const CLASSES: [Class; 3] = [Class::SequencesApart, Class::Everything, Class::SplitSinks];

/// A kernel's launches of one problem, and one over NaN, which leaves NaN in shared memory.
type Launches<'a> = (
    Box<dyn Fn() -> Result<Outputs> + 'a>,
    Box<dyn Fn() -> Result<Outputs> + 'a>,
);

/// Runs the problems of every serving and merging kernel that the device runs. `each` hears of every outcome.
pub(super) fn run(device: &dyn Device, options: &Options, mut each: impl FnMut(Outcome)) {
    for variant in sweep::variants() {
        if !options.wants(device, variant) {
            continue;
        }
        for class in CLASSES {
            let Some(case) = sweep::case(variant, class) else {
                continue;
            };
            let built = Built::of(&case);
            let mut poison = built.clone();
            for tensor in &mut poison.tensors[..3] {
                tensor.fill(0xff);
            }
            let of = |built: Built| -> Box<dyn Fn() -> Result<Outputs> + '_> {
                Box::new(move || try_launch(device, &built.problem, &built.inputs()))
            };
            each(repeat(
                device,
                options,
                variant.entry.name,
                case.to_string(),
                (of(built), of(poison)),
            ));
        }
    }
    for kernel in flashtile::kernels() {
        let Operation::Merge(variant) = kernel.operation else {
            continue;
        };
        if !options.wants(device, variant) {
            continue;
        }
        for case in MergeCase::of_variant(variant) {
            let built = BuiltMerge::with_rows(&case, &|dim, _| dim);
            let mut poison = built.clone();
            poison.parts.fill(0xff);
            let of = |built: BuiltMerge| -> Box<dyn Fn() -> Result<Outputs> + '_> {
                Box::new(move || merge(device, &built.problem, &built.inputs()))
            };
            each(repeat(
                device,
                options,
                variant.entry.name,
                case.to_string(),
                (of(built), of(poison)),
            ));
        }
    }
}

fn repeat(
    device: &dyn Device,
    options: &Options,
    variant: &'static str,
    problem: String,
    (launch, poison): Launches<'_>,
) -> Outcome {
    let mut outcome = Outcome::new(variant, problem);
    let mut noise = Noise::of(&outcome.problem);
    let mut neighbours = Neighbours::default();
    let mut first = None;
    for number in 0..options.launches {
        let launched = neighbours
            .change(device, number, &mut noise)
            .and_then(|()| {
                if number % 2 == 1 {
                    poison()?;
                }
                launch()
            });
        match launched {
            Ok(outputs) => {
                let lse = outputs.lse.iter().flatten();
                let lse = lse.flat_map(|x| x.to_bits().to_le_bytes());
                let results = outputs.out.into_iter().chain(lse).collect();
                outcome.compare(number, &mut first, results);
            }
            Err(error) => {
                outcome.error = Some(error.to_string());
                break;
            }
        }
    }
    outcome
}
