//! The machine that is measured.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use flashtile::device::cuda;
use serde::Serialize;

use crate::timer::Target;

/// What `nvidia-smi` is asked.
const STATE: &str = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,utilization.gpu";

/// What is known of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// `cuda` or `emulator`.
    pub kind: &'static str,
    /// Name of the GPU.
    pub name: String,
    /// Compute capability.
    pub compute_capability: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of the L2 cache.
    pub l2_bytes: Option<usize>,
    /// The newest CUDA that the driver supports.
    pub driver_cuda: Option<String>,
    /// What `nvidia-smi` says before the run: driver, clocks, power, temperature.
    pub before: BTreeMap<String, String>,
    /// And after it.
    pub after: BTreeMap<String, String>,
    /// The host's processor, and how many of its cores there are.
    pub cpu: String,
    /// Cores.
    pub cores: usize,
}

impl Machine {
    /// Looks at the machine.
    pub fn of(target: Target<'_>) -> Self {
        let info = target.device().info();
        let (major, minor) = info.compute_capability;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let gpu = match target {
            Target::Gpu(device) => Some(device),
            Target::Emulator(_) => None,
        };
        let driver = gpu.and_then(|_| cuda::driver_version().ok());
        Self {
            kind: if gpu.is_some() { "cuda" } else { "emulator" },
            name: info.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: info.multiprocessors,
            memory_bytes: info.total_memory,
            l2_bytes: gpu.and_then(|device| device.l2_bytes().ok()),
            driver_cuda: driver.map(|(major, minor)| format!("{major}.{minor}")),
            before: state(target),
            after: BTreeMap::new(),
            cpu: cpu.map_or_else(|| "unknown".into(), |(_, name)| name.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Looks at its state after the run.
    pub fn look_again(&mut self, target: Target<'_>) {
        self.after = state(target);
    }
}

/// What `nvidia-smi` says of the GPU; nothing where there is none. Reads only.
fn state(target: Target<'_>) -> BTreeMap<String, String> {
    let Target::Gpu(device) = target else {
        return BTreeMap::new();
    };
    let said = device.pci_bus_id().ok().and_then(|bus| {
        let output = Command::new("nvidia-smi")
            .args(["-i", &bus, "--format=csv,noheader"])
            .arg(format!("--query-gpu={STATE}"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    });
    let said = said.unwrap_or_default();
    let pairs = STATE.split(',').zip(said.split(", "));
    let known = pairs.filter(|(_, value)| !value.is_empty());
    known
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Date and time, UTC.
pub fn date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Years begin in March, so that the day that may be missing is the last. 719468 days lie between 0000-03-01
    // and 1970-01-01; 146097 days are 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + carry;
    format!(
        "{year}-{month:02}-{of_month:02} {:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(1_795_132_800), "2026-11-20 00:00 UTC");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00 UTC");
    }
}
