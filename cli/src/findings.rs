//! The sanitizer's findings, for programs.

use flashtile::device::emulator::{Report, Site};
use serde_json::{Value, json};

/// The findings of a launch.
pub fn json(report: &Report) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "rule": finding.rule.name(),
            "message": finding.message,
            "manual": finding.rule.manual(),
            "count": finding.count,
            "site": site(&finding.site),
            "other": finding.other.as_ref().map(|(what, other)| {
                let mut object = site(other);
                if let Some(map) = object.as_object_mut() {
                    map.insert("what".into(), what.as_str().into());
                }
                object
            }),
        })
    });
    findings.collect()
}

fn site(site: &Site) -> Value {
    json!({
        "block": site.block,
        "thread": site.thread,
        "line": site.line,
        "instruction": site.instruction,
        "source": site.source,
    })
}
