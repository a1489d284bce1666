//! Progress on a terminal.

use std::{fmt, time::Duration};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// A spinner with the time that has passed. Hidden if stderr is no terminal.
pub fn spinner(message: &'static str, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar of so many steps, with their rate. Hidden if stderr is no terminal.
pub fn bar(steps: usize, what: &'static str, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    let template = "{elapsed} [{bar:30}] {pos}/{len} {rate} {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        let rate = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            // A line that cannot be formatted is drawn without it.
            let _ = write!(out, "{:.0} {what}/s", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
