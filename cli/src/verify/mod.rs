//! `flashtile verify`: a property sweep on one device.

mod cases;

use std::time::Instant;

use flashtile::{Inputs, reference::compare};
use serde_json::json;

use crate::{
    args::{DeviceChoice, VerifyArgs},
    failure::{Failure, Outcome, Result},
    output::print,
    progress,
    target::Target,
};
use cases::Case;

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<Outcome> {
    let target = Target::open(args.device, false)?;
    let cases = select(args)?;
    let bar = progress::bar(cases.len(), args.json);
    let start = Instant::now();
    let mut failures = Vec::new();
    for case in &cases {
        bar.set_message(case.name.clone());
        if let Err(reason) = judge(&target, case) {
            if !args.json {
                let (quick, device) = (if args.quick { " --quick" } else { "" }, target.name());
                bar.suspend(|| {
                    print(&format!(
                        "FAILED {reason}\n  flashtile verify{quick} --device {device} --filter {}",
                        case.name
                    ))
                })?;
            }
            failures.push((case.name.as_str(), reason));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let seconds = start.elapsed().as_secs_f64();
    let (failed, passed) = (failures.len(), cases.len() - failures.len());
    print(&match args.json {
        true => {
            let failures = failures
                .iter()
                .map(|(case, reason)| json!({ "case": case, "reason": reason }));
            json!({
                "device": target.name(),
                "passed": passed,
                "failed": failed,
                "seconds": seconds,
                "failures": failures.collect::<Vec<_>>(),
            })
            .to_string()
        }
        false => format!(
            "{}: {passed} passed, {failed} failed, {seconds:.1} s",
            target.title()
        ),
    })?;
    Ok(match failed {
        0 => Outcome::Right,
        _ => Outcome::Wrong,
    })
}

/// The cases asked for: the one of exactly that name, or all whose name contains it.
fn select(args: &VerifyArgs) -> Result<Vec<Case>> {
    let mut cases = cases::quick();
    if !args.quick {
        cases.extend(cases::full());
    }
    cases::deduplicate(&mut cases);
    if args.device == DeviceChoice::Cpu {
        // There is one implementation, so one case is enough of each problem.
        for case in &mut cases {
            case.kernel = None;
        }
    }
    let Some(filter) = &args.filter else {
        return Ok(cases);
    };
    match cases.iter().position(|case| &case.name == filter) {
        Some(exact) => cases = vec![cases.swap_remove(exact)],
        None => cases.retain(|case| case.name.contains(filter.as_str())),
    }
    if cases.is_empty() {
        let found = format!("`{filter}`");
        return Err(Failure::bad("--filter", "part of a case's name", found));
    }
    Ok(cases)
}

/// Runs a case; `Err` says what is wrong with its result.
fn judge(target: &Target, case: &Case) -> Result<(), String> {
    let problem = &case.problem;
    let chosen = target.variant(problem).map_err(|e| e.to_string())?;
    if let (Some(expected), Some(chosen)) = (case.kernel, chosen)
        && chosen.name != expected
    {
        return Err(format!("{}: {} was chosen", case.name, chosen.name));
    }
    let [q, k, v] = case.tensors();
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
    };
    let text = |error: flashtile::Error| format!("{}: {error}", case.name);
    let outputs = target.attention(problem, &inputs).map_err(text)?;
    let found = compare(problem, &inputs, &outputs).map_err(text)?;
    if found.ok {
        return Ok(());
    }
    Err(format!(
        "{}: out off by {:.3e} (bound {:.3e}), RMS {:.3e} (bound {:.3e}), lse off by {:.3e} (bound {:.3e})",
        case.name,
        found.max_abs_error,
        found.bound.max_abs,
        found.rms_error,
        found.bound.rms,
        found.lse_max_abs_error.unwrap_or(0.0),
        found.bound.lse_max_abs,
    ))
}
