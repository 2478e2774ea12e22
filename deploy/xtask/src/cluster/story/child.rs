//! A program that tells something line by line while it runs: each line with its time, and no wait without an end.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::process;

/// A running program; killed when dropped.
pub(super) struct Teller {
    child: Child,
    shown: String,
    input: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
}

impl Teller {
    /// Starts it.
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let shown = process::show(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{shown}`"))?;
        let output = child.stdout.take().context("a child without output")?;
        Ok(Self {
            shown,
            input: child.stdin.take(),
            lines: timed(output),
            child,
        })
    }

    /// Waits for the next line, and says when it came.
    pub(super) fn line(&mut self, limit: Duration) -> anyhow::Result<(Instant, String)> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{}` told nothing in {} s", self.shown, limit.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().context("wait for a child")?;
                bail!("`{}` ended early, with {status}", self.shown)
            }
        }
    }

    /// Ends its input, and returns the last line that it tells.
    pub(super) fn stop(mut self, limit: Duration) -> anyhow::Result<String> {
        drop(self.input.take());
        let end = Instant::now() + limit;
        let mut last = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok((_, line)) => last = Some(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("`{}` did not end in {} s", self.shown, limit.as_secs())
                }
            }
        }
        let status = self.child.wait().context("wait for a child")?;
        ensure!(status.success(), "`{}` ended with {status}", self.shown);
        last.with_context(|| format!("`{}` told nothing", self.shown))
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines with the moment at which they came.
fn timed(output: impl Read + Send + 'static) -> Receiver<(Instant, String)> {
    /// Lines not yet looked at; more wait, and get the time at which there is room.
    const LINES_MAX: usize = 1024;
    let plain = process::read_lines(output);
    let (sender, receiver) = mpsc::sync_channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in plain {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Teller {
        Teller::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn the_last_line_comes_after_the_input_ends() {
        let mut teller = shell("echo first; cat; echo last");
        assert_eq!(teller.line(LONG).unwrap().1, "first");
        assert_eq!(teller.stop(LONG).unwrap(), "last");
    }

    #[test]
    fn silence_has_an_end() {
        let mut teller = shell("exec sleep 1000");
        let error = teller.line(Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("told nothing"), "{error}");
        let error = teller.stop(Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    #[test]
    fn an_early_end_is_told_with_its_code() {
        let error = shell("exit 3").line(LONG).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
}
