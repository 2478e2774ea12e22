//! Running other programs: with their output passed on or captured line by line, and with an end to their time.
//! Knows nothing about what the programs do.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long processes that were told to end may clean up after themselves.
const GRACE: Duration = Duration::from_secs(20);

/// The directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .map_or_else(|| here.clone(), PathBuf::from)
}

/// Where Cargo puts what it builds: this program is at `<target>/debug/xtask`.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("asking for the path of this program")?;
    match this.ancestors().nth(2) {
        Some(target) => Ok(target.to_path_buf()),
        None => bail!("{} is not below a target directory", this.display()),
    }
}

/// The Cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command =
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace());
    command
}

/// Runs a program with our own input and output, and is an error unless it succeeds.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    let status = command
        .status()
        .with_context(|| format!("starting `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// The standard output of a program that has to succeed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The standard output of a program that has to succeed within a time; what it said is in the failure.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let output = std::thread::spawn(move || text_of(output));
    let errors = std::thread::spawn(move || text_of(errors));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a child")? {
            break status;
        }
        if start.elapsed() > limit {
            end_with_descendants(&mut child);
            bail!("`{shown}` had not ended after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (output, errors) = (output.join(), errors.join());
    let (output, errors) = (output.unwrap_or_default(), errors.unwrap_or_default());
    if !status.success() {
        let told = if errors.trim().is_empty() {
            output
        } else {
            errors
        };
        bail!("`{shown}` ended with {status}: {}", told.trim());
    }
    Ok(output)
}

fn text_of(reader: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut reader) = reader {
        // What came until then is all there is.
        let _ = reader.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How a program ended.
pub(crate) enum Ended {
    /// By itself.
    Exit(ExitStatus),
    /// By us, after its time.
    TimeLimit(Duration),
}

impl Ended {
    /// It ended by itself and said that all went well.
    pub(crate) fn success(&self) -> bool {
        matches!(self, Self::Exit(status) if status.success())
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "{status}"),
            Self::TimeLimit(limit) => write!(f, "no end after {} s", limit.as_secs()),
        }
    }
}

/// Runs a program without input and gives every line of its output, errors included, to `line` as it comes. After
/// `limit` the program and all its descendants are ended.
pub(crate) fn lines(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> anyhow::Result<Ended> {
    let shown = show(command);
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let errors = writer.try_clone().context("making a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    // The command still holds the writing ends, and with them open the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let lines = read_lines(reader);
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(text) => line(&text),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Ok(Ended::Exit(child.wait().context("waiting for a child")?));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                end_with_descendants(&mut child);
                return Ok(Ended::TimeLimit(limit));
            }
        }
    }
}

/// Lines as they come. Bytes that are no UTF-8 are replaced.
pub(crate) fn read_lines(reader: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    /// Lines not yet looked at. A full channel slows the writing program down, as a pipe does.
    const LINES_MAX: usize = 1024;
    let (sender, receiver) = mpsc::sync_channel(LINES_MAX);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut bytes) {
            let text = String::from_utf8_lossy(&bytes);
            if sender.send(text.trim_end().to_owned()).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

/// Asks a child and everything below it to end, and makes them end after [`GRACE`].
fn end_with_descendants(child: &mut Child) {
    let root = child.id().cast_signed();
    let mut all = descendants(root);
    all.push(root);
    for pid in &all {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
    }
    let start = Instant::now();
    while start.elapsed() < GRACE && all.iter().any(|pid| alive(*pid)) {
        let _ = child.try_wait();
        std::thread::sleep(Duration::from_millis(100));
    }
    for pid in all.iter().filter(|pid| alive(**pid)) {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

/// Processes below `root`, found through `/proc`.
fn descendants(root: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let parents: Vec<(i32, i32)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent_in(&stat)?))
        })
        .collect();
    let mut found = Vec::new();
    let mut asked = vec![root];
    while let Some(parent) = asked.pop() {
        for (pid, _) in parents.iter().filter(|(_, of)| *of == parent) {
            found.push(*pid);
            asked.push(*pid);
        }
    }
    found
}

/// The parent in a line of `/proc/<pid>/stat`. The name before it, in parentheses, may hold anything.
fn parent_in(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// A command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order_with_errors_among_them() {
        let mut seen = Vec::new();
        let ended = lines(
            Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]),
            Duration::from_secs(10),
            |line| seen.push(line.to_owned()),
        )
        .unwrap();
        assert_eq!(seen, ["one", "two"]);
        assert!(matches!(ended, Ended::Exit(status) if status.code() == Some(3)));
    }

    #[test]
    fn a_program_that_hangs_ends_with_its_children() {
        let mut child = None;
        let ended = lines(
            Command::new("sh").args(["-c", "sleep 1000 & echo $!; wait"]),
            Duration::from_millis(300),
            |line| child = line.parse().ok(),
        )
        .unwrap();
        assert!(!ended.success());
        let child: i32 = child.unwrap();
        // An orphan that nobody has waited for yet is a zombie, which is dead enough.
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[test]
    fn output_is_limited_in_time_and_errors_are_told() {
        let limit = Duration::from_millis(300);
        let mut hangs = Command::new("sleep");
        let error = output_within(hangs.arg("1000"), limit).unwrap_err();
        assert!(error.to_string().contains("had not ended"), "{error}");
        let limit = Duration::from_secs(10);
        let mut fails = Command::new("sh");
        let error = output_within(fails.args(["-c", "echo why >&2; exit 3"]), limit).unwrap_err();
        assert!(error.to_string().ends_with(": why"), "{error}");
        let mut works = Command::new("echo");
        assert_eq!(output_within(works.arg("a"), limit).unwrap(), "a\n");
    }

    #[test]
    fn the_parent_is_found_after_any_name() {
        assert_eq!(parent_in("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in("nonsense"), None);
    }

    #[test]
    fn a_command_is_shown_by_name_and_arguments() {
        let mut command = Command::new("/usr/bin/ip");
        command.args(["link", "show"]);
        assert_eq!(show(&command), "ip link show");
    }
}
