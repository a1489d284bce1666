//! One program, with a limit on its time.

use std::{
    fs::File,
    io,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself: its exit status, or -1 after a signal.
    Status(i32),
    /// It was stopped after its time.
    TimedOut,
}

/// Runs a program until it ends or its time is over. It and all that it has started are stopped then.
///
/// # Errors
/// If the program cannot be started.
pub fn run(command: &mut Command, stdout: File, stderr: File, limit: Duration) -> io::Result<End> {
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let mut child = command.spawn()?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            // What it may have left running.
            stop(&child);
            return Ok(End::Status(code(status)));
        }
        if start.elapsed() >= limit {
            stop(&child);
            // The group has got SIGKILL; where that is not possible, the child at least.
            let _ = child.kill();
            child.wait()?;
            return Ok(End::TimedOut);
        }
        sleep(Duration::from_millis(20));
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

/// Ends the child's process group; it is fine if nobody is left in it.
fn stop(child: &Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    #[cfg(not(unix))]
    let _ = child;
}
