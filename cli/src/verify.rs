//! `flashtile verify`: every kernel through every class of cases, on one device.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use flashtile::DeviceInfo;
use flashtile_verify::{
    AnyCase, Wrong,
    any::sweep,
    parallel::{cores, in_order},
    shrink::shrink,
};
use serde_json::json;

use crate::{
    args::{DeviceChoice, OnlyArg, VerifyArgs},
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

/// A case whose result is wrong.
struct Failed {
    case: AnyCase,
    wrong: Wrong,
    /// A smaller one.
    smallest: Option<AnyCase>,
}

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<Outcome> {
    let targets = open(args)?;
    let target = &targets[0];
    let all = select(args)?;
    let count = all.len();
    if args.case.is_some() {
        // A single case is wanted on this device, or not at all.
        require(target, &all[0])?;
    }
    let able = |case: &AnyCase| target.supports(case.arch());
    let cases: Vec<AnyCase> = all.into_iter().filter(able).collect();
    let skipped = count - cases.len();
    let sanitize = if args.sanitize { " --sanitize" } else { "" };
    let command = format!("flashtile verify --device {}{sanitize}", target.name());
    let bar = progress::bar(cases.len(), "cases", args.json);
    let start = Instant::now();
    let mut failures: Vec<Failed> = Vec::new();
    let mut printed = Ok(());
    let attempt = |target: &Target, case: &AnyCase| case.attempt(target.device());
    in_order(&targets, &cases, attempt, |at, outcome| {
        bar.set_message(cases[at].to_string());
        bar.inc(1);
        if let Err(wrong) = outcome {
            let mut failed = Failed {
                case: cases[at].clone(),
                wrong,
                smallest: None,
            };
            if failures.len() < SHRUNK {
                let (case, reason) = (failed.case.clone(), failed.wrong.reason.clone());
                let failure = |c: &AnyCase| attempt(target, c).err().map(|wrong| wrong.reason);
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
                    "smallest": failed.smallest.as_ref().map(AnyCase::to_string),
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

/// Refuses a case that this device cannot run.
fn require(target: &Target, case: &AnyCase) -> Result<()> {
    if target.device().is_none() && !case.has_reference() {
        let expected = "a case that the CPU computes, without `hostile`, and no `merge`";
        return Err(Failure::bad("--case", expected, format!("`{case}`")));
    }
    match (target.device(), case) {
        // The reference takes any tensors, whatever the tier.
        (None, AnyCase::Dense(case)) => target.plan(&case.problem()).map(|_| ())?,
        (None, case) => case.plan(&DeviceInfo::emulator())?,
        (Some(device), case) => case.plan(device.info())?,
    }
    Ok(())
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
fn select(args: &VerifyArgs) -> Result<Vec<AnyCase>> {
    if let Some(line) = &args.case {
        return Ok(vec![single(line)?]);
    }
    let mut cases = sweep(args.quick);
    if let Some(only) = args.only {
        cases.retain(|(_, case)| matches!(case, AnyCase::Dense(_)) == (only == OnlyArg::Dense));
    }
    if args.device == DeviceChoice::Cpu {
        // There is one implementation, so one kernel's cases are enough of each kind.
        cases.retain(|(_, case)| case.is_of_reference());
    }
    if let Some(filter) = &args.filter {
        cases.retain(|(kernel, case)| kernel.contains(filter) || case.to_string().contains(filter));
        if cases.is_empty() {
            let expected = "part of a case's line or of a kernel's name";
            return Err(Failure::bad("--filter", expected, format!("`{filter}`")));
        }
    }
    Ok(cases.into_iter().map(|(_, case)| case).collect())
}

/// The case of a line, if it can be run.
fn single(line: &str) -> Result<AnyCase> {
    let refused = |found: String| Failure::bad("--case", "a case", found);
    let case: AnyCase = line.parse().map_err(refused)?;
    memory::require("--case", case.bytes())?;
    case.plan(&DeviceInfo::emulator())?;
    Ok(case)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_reported_with_the_commands_that_repeat_it() {
        let case: AnyCase = "fused f16 b1 q37 k70 h2/1 d32/32 seed=7".parse().unwrap();
        let smaller = "fused f16 b1 q1 k70 h2/1 d32/32 seed=7".parse().unwrap();
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
