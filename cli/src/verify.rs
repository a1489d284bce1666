//! `flashtile verify`: every kernel through every class of cases, on one device.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use flashtile::{Algorithm, Arch, ArchChoice, ScoreModKind, device::emulator::Report};
use flashtile_verify::{
    Case, Tensors, judge,
    parallel::{cores, in_order},
    shrink::shrink,
    sweep,
};
use serde_json::json;

use crate::{
    args::{DeviceChoice, VerifyArgs},
    failure::{Failure, Outcome, Result},
    findings, memory,
    output::print,
    progress,
    target::Target,
};

/// Failures that are shrunk: more of them would say the same.
const SHRUNK: usize = 3;

/// Longest search for a smaller case.
const SHRINKING: Duration = Duration::from_secs(10);

/// What is wrong with a case.
struct Wrong {
    reason: String,
    /// What the sanitizer found.
    findings: Option<Box<Report>>,
}

/// A case whose result is wrong.
struct Failed {
    case: Case,
    wrong: Wrong,
    /// A smaller one.
    smallest: Option<Case>,
}

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<Outcome> {
    let targets = open(args)?;
    let target = &targets[0];
    let all = select(args)?;
    if args.case.is_some() {
        // A single case is wanted on this device, or not at all.
        target.plan(&all[0].problem())?;
    }
    let cases: Vec<Case> = all
        .iter()
        .copied()
        .filter(|case| has(target, case))
        .collect();
    let skipped = all.len() - cases.len();
    let sanitize = if args.sanitize { " --sanitize" } else { "" };
    let command = format!("flashtile verify --device {}{sanitize}", target.name());
    let bar = progress::bar(cases.len(), "cases", args.json);
    let start = Instant::now();
    let mut failures: Vec<Failed> = Vec::new();
    let mut printed = Ok(());
    in_order(&targets, &cases, attempt, |at, outcome| {
        bar.set_message(cases[at].to_string());
        bar.inc(1);
        if let Err(wrong) = outcome {
            let mut failed = Failed {
                case: cases[at],
                wrong,
                smallest: None,
            };
            if failures.len() < SHRUNK {
                let (case, reason) = (failed.case, failed.wrong.reason.clone());
                let failure = |c: &Case| attempt(target, c).err().map(|wrong| wrong.reason);
                let (smallest, _) = shrink(case, reason, SHRINKING, failure);
                failed.smallest = (smallest != failed.case).then_some(smallest);
            }
            if !args.json {
                printed = bar.suspend(|| print(&report(&command, &failed)));
            }
            failures.push(failed);
        }
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    printed?;

    let seconds = start.elapsed().as_secs_f64();
    let (failed, passed) = (failures.len(), cases.len() - failures.len());
    print(&match args.json {
        true => {
            let failures = failures.iter().map(|failed| {
                json!({
                    "case": failed.case.to_string(),
                    "smallest": failed.smallest.map(|case| case.to_string()),
                    "reason": failed.wrong.reason,
                    "findings": failed.wrong.findings.as_deref().map(findings::json),
                })
            });
            json!({
                "device": target.name(),
                "sanitized": args.sanitize,
                "passed": passed,
                "failed": failed,
                "skipped": skipped,
                "seconds": seconds,
                "failures": failures.collect::<Vec<_>>(),
            })
            .to_string()
        }
        false => format!(
            "{}{}: {passed} passed, {failed} failed, {}{seconds:.1} s",
            target.title(),
            if args.sanitize { ", sanitized" } else { "" },
            match skipped {
                0 => String::new(),
                _ => format!("{skipped} of kernels that it does not run skipped, "),
            }
        ),
    })?;
    Ok(match failed {
        0 => Outcome::Right,
        _ => Outcome::Wrong,
    })
}

/// Whether the device runs the tier of kernels that the case asks for.
fn has(target: &Target, case: &Case) -> bool {
    match case.arch {
        ArchChoice::Sm90a => target.supports(Arch::Sm90a),
        ArchChoice::Auto | ArchChoice::Sm80 => true,
    }
}

/// The device; the emulator as often as there are cores, so that each case has one to itself.
fn open(args: &VerifyArgs) -> Result<Vec<Target>> {
    let mut targets = vec![Target::open(args.device, args.sanitize)?];
    if let Target::Emulator(_) = targets[0] {
        while targets.len() < cores() {
            targets.push(Target::open(DeviceChoice::Emulator, args.sanitize)?);
        }
    }
    Ok(targets)
}

/// What is printed of a failure: what is wrong, and how to see it again.
fn report(command: &str, failed: &Failed) -> String {
    let Failed {
        case,
        wrong: Wrong { reason, findings },
        smallest,
    } = failed;
    let mut text = format!("FAILED {reason}\n");
    // The others mostly follow from the first; --json has them all.
    if let Some(first) = findings.as_ref().and_then(|found| found.findings.first()) {
        text += &format!("{first}\n");
    }
    text += &format!("  {command} --case '{case}'");
    if let Some(smallest) = smallest {
        text += &format!("\n  smaller, and failing too:\n  {command} --case '{smallest}'");
    }
    text
}

/// The cases asked for.
fn select(args: &VerifyArgs) -> Result<Vec<Case>> {
    if let Some(line) = &args.case {
        return Ok(vec![single(line)?]);
    }
    let mut cases = match args.quick {
        true => sweep::quick(),
        false => sweep::full(),
    };
    if args.device == DeviceChoice::Cpu {
        // There is one implementation, so one kernel's cases are enough of each kind.
        cases.retain(|case| {
            case.algorithm == Algorithm::Fused
                && (case.softcap.is_some() || case.variant().score_mod == ScoreModKind::None)
        });
    }
    if let Some(filter) = &args.filter {
        cases.retain(|case| {
            case.to_string().contains(filter) || case.variant().name.contains(filter)
        });
        if cases.is_empty() {
            let expected = "part of a case's line or of a kernel's name";
            return Err(Failure::bad("--filter", expected, format!("`{filter}`")));
        }
    }
    Ok(cases)
}

/// The case of a line, if it can be run.
fn single(line: &str) -> Result<Case> {
    let refused = |found: String| Failure::bad("--case", "a case", found);
    let case: Case = line.parse().map_err(refused)?;
    memory::require("--case", case.bytes())?;
    case.planned()?;
    Ok(case)
}

/// Runs a case; `Err` says what is wrong with its result.
fn attempt(target: &Target, case: &Case) -> Result<(), Wrong> {
    let tensors = Tensors::of(case);
    let results = target.run(case, &tensors).map_err(|error| Wrong {
        reason: format!("{case}\n  {error}"),
        findings: match error {
            flashtile::Error::Findings { report, .. } => Some(report),
            _ => None,
        },
    })?;
    judge(case, &tensors, &results).map_err(|reason| Wrong {
        reason,
        findings: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_reported_with_the_commands_that_repeat_it() {
        let case: Case = "fused f16 b1 q37 k70 h2/1 d32/32 seed=7".parse().unwrap();
        let mut smaller = case;
        smaller.shape.seqlen_q = 1;
        let failed = Failed {
            case,
            wrong: Wrong {
                reason: "out of bounds".into(),
                findings: None,
            },
            smallest: Some(smaller),
        };
        let expected = "FAILED out of bounds
  flashtile verify --device emulator --case 'fused f16 b1 q37 k70 h2/1 d32/32 seed=7'
  smaller, and failing too:
  flashtile verify --device emulator --case 'fused f16 b1 q1 k70 h2/1 d32/32 seed=7'";
        let found = report("flashtile verify --device emulator", &failed);
        assert_eq!(found, expected);
    }
}
