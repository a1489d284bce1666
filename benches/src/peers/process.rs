//! A program that answers lines of JSON with lines of JSON.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use serde_json::Value;

/// Longest answer that is read.
const LONGEST: u64 = 64 << 20;

/// The program. Ended on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn start(python: &OsStr, script: &Path, log: Option<&File>) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", python.display());
        let log = match log {
            Some(log) => Stdio::from(log.try_clone().map_err(failed)?),
            None => Stdio::null(),
        };
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or("it has no pipes")?;
        let (send, answers) = channel();
        // Ends with the program, whose end closes the pipe.
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            while matches!(stdout.by_ref().take(LONGEST).read_line(&mut line), Ok(1..)) {
                if send.send(std::mem::take(&mut line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            answers,
        })
    }

    /// Asks one thing. After an error the program is of no use any more.
    ///
    /// # Errors
    /// No answer, or none that is JSON.
    pub fn ask(&mut self, ask: &Value, limit: Duration) -> Result<Value, String> {
        let written = writeln!(self.stdin, "{ask}").and_then(|()| self.stdin.flush());
        // A program that has ended may have said something still.
        let answer = self.answers.recv_timeout(limit);
        match (answer, written) {
            (Ok(line), _) => serde_json::from_str(&line).map_err(|_| {
                format!(
                    "it answered {:?}",
                    line.chars().take(80).collect::<String>()
                )
            }),
            (Err(RecvTimeoutError::Timeout), _) => Err(format!("no answer in {limit:?}")),
            (Err(RecvTimeoutError::Disconnected), _) => Err(self.end()),
        }
    }

    /// How the program ended, or that it fell silent.
    fn end(&mut self) -> String {
        // Its pipe may close a moment before.
        for _ in 0..100 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return format!("the process has ended ({status})");
            }
            thread::sleep(Duration::from_millis(10));
        }
        "the process has closed its output".into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
