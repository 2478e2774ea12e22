//! The processes as a person meets them: what they say when they can not start, and that a manager stops when asked.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something that must happen.
const BOUND: Duration = Duration::from_secs(30);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-controller"));
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The one sentence of a process that did not start.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("lb-controller: "), "{text}");
    text
}

/// A manager that has started.
fn manager(manifests: &Path) -> Child {
    let mut child = command(&["manager", "--manifests", manifests.to_str().unwrap()])
        .spawn()
        .unwrap();
    // Its first lines say so; the rest is read by a thread, so that the pipe never fills.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("manager starts") {}
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
fn a_second_manager_of_a_directory_is_refused_and_the_first_stops_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = manager(dir.path());
    let sentence = refusal(&run(&[
        "manager",
        "--manifests",
        dir.path().to_str().unwrap(),
    ]));
    assert!(
        sentence.contains(&format!("(pid {})", first.id())),
        "{sentence}"
    );
    assert!(dir.path().join(".bowline/secret").exists());

    let pid = nix::unistd::Pid::from_raw(first.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let end = Instant::now() + BOUND;
    let status = loop {
        if let Some(status) = first.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "the manager does not stop");
        std::thread::yield_now();
    };
    assert!(status.success());
    // A killed one leaves nothing that keeps the next from starting.
    let mut second = manager(dir.path());
    second.kill().unwrap();
    second.wait().unwrap();
    let mut third = manager(dir.path());
    third.kill().unwrap();
    third.wait().unwrap();
}

#[test]
fn directories_that_do_not_exist_are_named() {
    let sentence = refusal(&run(&[
        "agent",
        "--manifests",
        "/nonexistent/bowline",
        "--node",
        "n1",
    ]));
    assert!(
        sentence.contains("directory /nonexistent/bowline does not exist"),
        "{sentence}"
    );
    let sentence = refusal(&run(&["manager", "--manifests", "/proc/bowline"]));
    assert!(sentence.contains("/proc/bowline"), "{sentence}");
}

#[test]
fn a_directory_that_is_no_bpffs_is_refused_with_what_to_do() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root, as the agent does");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let sentence = refusal(&run(&[
        "agent",
        "--manifests",
        path,
        "--node",
        "n1",
        "--pin-dir",
        &format!("{path}/pins"),
    ]));
    assert!(sentence.contains("mount -t bpf"), "{sentence}");
}

#[test]
fn a_secret_that_is_no_good_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join(".bowline/secret");
    std::fs::create_dir(dir.path().join(".bowline")).unwrap();
    std::fs::write(&secret, "data: {hash: AAAA}").unwrap();
    let sentence = refusal(&run(&[
        "manager",
        "--manifests",
        dir.path().to_str().unwrap(),
    ]));
    assert!(
        sentence.contains("data.hash must be 32 bytes"),
        "{sentence}"
    );
    assert_eq!(
        std::fs::read_to_string(&secret).unwrap(),
        "data: {hash: AAAA}"
    );
}
