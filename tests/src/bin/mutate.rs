//! Mutates the kernels' PTX and says what the suite notices.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use flashtile::device::emulator::Options;
use flashtile_tests::mutation::{
    campaign::{Campaign, Outcome},
    explained, kernels,
    mutants::Class,
    report::Report,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Removes or weakens one instruction of a kernel at a time, and demands that the suite notices.
#[derive(Parser)]
struct Arguments {
    /// Only kernels whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Only mutations of this class; may be repeated
    #[arg(long)]
    class: Vec<Class>,
    /// Only so many mutants, drawn at random
    #[arg(long)]
    sample: Option<usize>,
    /// What the sample is drawn from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write every mutant and its fate to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Without the sanitizer: results and faults alone
    #[arg(long)]
    plain: bool,
    /// Threads; all cores by default
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every mutant was noticed, or is known to be as good as the kernel.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let kernels: Vec<_> = kernels()
        .filter(|kernel| kernel.entry().name.contains(&arguments.filter))
        .collect();
    let options = Options {
        sanitize: !arguments.plain,
        ..Options::default()
    };
    let mut campaign = Campaign::new(kernels, options)?;
    if !arguments.class.is_empty() {
        campaign = campaign.filter(|mutant| arguments.class.contains(&mutant.mutation.class));
    }
    if let Some(count) = arguments.sample {
        campaign = campaign.sample(count, arguments.seed);
    }

    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let bar = ProgressBar::new(campaign.mutants.len() as u64);
    if let Ok(style) = ProgressStyle::with_template(
        "{elapsed} [{bar:30}] {pos}/{len} mutants, {per_sec}, {eta} left; {msg}",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    let survivors = std::sync::atomic::AtomicUsize::new(0);
    let outcomes = campaign.run(arguments.threads.unwrap_or_else(cores), |outcome| {
        if matches!(outcome, Outcome::Survived { .. }) {
            let count = 1 + survivors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            bar.set_message(format!("{count} survive"));
        }
        bar.inc(1);
    })?;
    bar.finish_and_clear();

    let report = Report::new(&campaign, &outcomes);
    print!("{report}");
    if let Some(path) = &arguments.json {
        let file = std::fs::write(path, format!("{:#}\n", report.json()));
        file.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let all =
        arguments.filter.is_empty() && arguments.class.is_empty() && arguments.sample.is_none();
    let wrong = explained::wrong(&campaign, &outcomes, all);
    for explanation in &wrong {
        println!("wrong explanation: {explanation:?}");
    }
    Ok(wrong.is_empty() && report.unexplained().next().is_none())
}
