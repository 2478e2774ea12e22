//! Machines made of namespaces: one init in mount, network, pid, host name and IPC namespaces and in a cgroup of its
//! own, and everything else below it. So one SIGKILL is a power cut, and nothing can be left behind: no mount, no
//! interface, no pid file. Knows nothing of Kubernetes.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::{ROOT, Tree};

/// Between two looks at something that is coming.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// Namespaces may take this long to appear, and processes to end.
const BOOT_LIMIT: Duration = Duration::from_secs(15);

/// Waits until `ready` says so, for `limit` at most; errors on the way count as "not yet", and the last one is told.
pub fn wait_until(
    limit: Duration,
    what: &str,
    mut ready: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match ready() {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() > limit => {
                return Err(anyhow!(
                    "gave up waiting for {what} after {} s",
                    limit.as_secs()
                ));
            }
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!(
                    "gave up waiting for {what} after {} s",
                    limit.as_secs()
                )));
            }
            _ => std::thread::sleep(POLL),
        }
    }
}

/// One machine, running or not.
#[derive(Clone, Debug)]
pub struct Machine {
    name: String,
    directory: PathBuf,
    tree: Tree,
}

impl Machine {
    /// The machine of this name in a tree of cgroups; its disk is a directory below `state`.
    pub(crate) fn new(name: &str, state: &Path, tree: &Tree) -> Self {
        Self {
            name: name.to_owned(),
            directory: state.join(name),
            tree: tree.clone(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its logs and its disk are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process that is number 1 inside; none if the machine is off.
    pub fn init(&self) -> Option<i32> {
        let processes = self.tree.processes(&format!("{}/init", self.name));
        processes.into_iter().find(|pid| is_first(*pid))
    }

    /// Boots it, unless it runs.
    pub(crate) fn boot(&self) -> anyhow::Result<()> {
        if self.init().is_some()
            && self
                .inside("test")
                .args(["-e", BOOTED])
                .status()
                .is_ok_and(|status| status.success())
        {
            return Ok(());
        }
        self.end()?;
        for part in ["var/lib", "var/log", "cgroup"] {
            let path = self.directory.join(part);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let run = self.directory.join("var/run");
        if !run.is_symlink() {
            std::os::unix::fs::symlink("/run", &run)
                .with_context(|| format!("make {}", run.display()))?;
        }
        let cgroup = format!("{}/init", self.name);
        self.tree.make(&cgroup)?;
        let mut init = self.tree.command_in(&cgroup, "setsid");
        init.args([
            "--fork",
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--mount-proc",
        ]);
        init.args(["tini", "--", "sleep", "infinity"]);
        init.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        must_run(&mut init)?;
        wait_until(BOOT_LIMIT, &format!("{} to boot", self.name), || {
            Ok(self.init().is_some())
        })?;
        let mut setup = self.inside("sh");
        setup
            .args(["-euc", SETUP, "sh", &self.name])
            .arg(&self.directory);
        must_run(&mut setup)
    }

    /// Kills whatever belongs to it, and removes its cgroups, those of containers included: a kubelet that finds old
    /// ones tries each for seconds.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        let what = format!("{} to end", self.name);
        wait_until(BOOT_LIMIT, &what, || Ok(self.tree.kill(&self.name)))?;
        self.tree.remove(&self.name)
    }

    /// Cuts its power: one SIGKILL, after which the kernel ends everything inside.
    pub(crate) fn cut_power(&self) -> anyhow::Result<()> {
        let init = self.must_init()?;
        kill(Pid::from_raw(init), Signal::SIGKILL).with_context(|| format!("kill {}", self.name))
    }

    /// A command of ours on its network: files and processes stay those of this machine.
    pub fn on_network(&self, program: &str) -> Command {
        self.enter(&["--net"], program)
    }

    /// A command inside.
    pub fn inside(&self, program: &str) -> Command {
        self.enter(&["--mount", "--net", "--pid", "--uts", "--ipc"], program)
    }

    fn enter(&self, namespaces: &[&str], program: &str) -> Command {
        let mut command = Command::new("nsenter");
        // A machine that is off has no process 0 either: `nsenter` says so.
        command.arg(format!("--target={}", self.init().unwrap_or(0)));
        command.args(namespaces).arg("--").arg(program);
        command
    }

    /// Does `work` on a thread that is on its network. Sockets opened there are the machine's.
    pub fn work_on_network<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let path = format!("/proc/{}/ns/net", self.must_init()?);
        let network = File::open(&path).with_context(|| format!("open {path}"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&network, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter the network of {}", self.name))?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a daemon inside, unless it runs; its output goes to `<daemon>.log` beside the machine's disk.
    pub(crate) fn start(&self, daemon: &Path, args: &[String]) -> anyhow::Result<()> {
        self.start_with(daemon, args, &[])
    }

    /// As [`Self::start`], with variables.
    pub(crate) fn start_with(
        &self,
        daemon: &Path,
        args: &[String],
        env: &[(&str, String)],
    ) -> anyhow::Result<()> {
        let name = daemon
            .file_name()
            .and_then(|name| name.to_str())
            .context("a daemon without a name")?;
        if self.daemon(name).is_some() {
            return Ok(());
        }
        let cgroup = format!("{}/{name}", self.name);
        self.tree.make(&cgroup)?;
        let log = self.directory.join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("duplicate a file")?;
        let mut command = self.tree.command_in(&cgroup, "nsenter");
        command.arg(format!("--target={}", self.must_init()?));
        command.args([
            "--mount", "--net", "--pid", "--uts", "--ipc", "--", "setsid", "--fork",
        ]);
        command.arg(daemon).args(args).envs(env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        must_run(&mut command).with_context(|| format!("start {name} on {}", self.name))
    }

    /// Process id of a daemon.
    pub fn daemon(&self, name: &str) -> Option<i32> {
        let processes = self.tree.processes(&format!("{}/{name}", self.name));
        processes.into_iter().find(|pid| runs(*pid, name))
    }

    /// Kills one daemon.
    pub fn kill_daemon(&self, name: &str) -> anyhow::Result<()> {
        let pid = self
            .daemon(name)
            .with_context(|| format!("{name} does not run on {}", self.name))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {name}"))?;
        wait_until(BOOT_LIMIT, &format!("{name} to end"), || {
            Ok(self.daemon(name).is_none())
        })
    }

    /// The end of a daemon's log.
    pub(crate) fn log_tail(&self, daemon: &str) -> String {
        const LINES: usize = 12;
        let path = self.directory.join(format!("{daemon}.log"));
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Names of its daemons, running or not.
    pub(crate) fn daemons(&self) -> Vec<String> {
        self.tree.children(&self.name)
    }

    fn must_init(&self) -> anyhow::Result<i32> {
        self.init()
            .with_context(|| format!("{} does not run", self.name))
    }
}

/// There once everything below has been done.
const BOOTED: &str = "/run/booted";

/// Arguments: the machine's name, its directory. Private are interfaces (`/sys`), pinned BPF objects, `/run`, and `/var`
/// with what containerd, the kubelet and the network plugins keep.
const SETUP: &str = r#"
hostname "$1"
mount --rbind /sys/fs/cgroup "$2/cgroup"
mount -t sysfs sysfs /sys
mount --move "$2/cgroup" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$2/var" /var
mount --make-rshared /
cd /proc/sys/net
echo 1 >ipv4/ip_forward
echo 1 >ipv6/conf/all/forwarding
echo 0 >ipv6/conf/default/accept_dad
for which in all default; do
  echo 0 >ipv4/conf/$which/send_redirects
  echo 0 >ipv4/conf/$which/rp_filter
done
ip link set lo up
touch /run/booted
"#;

/// Runs a command that has to succeed; what it said on the way to failure is in the error.
pub(crate) fn must_run(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    let status = command
        .status()
        .with_context(|| format!("start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` ended with {status}");
    Ok(())
}

/// The output of a command that has to succeed.
pub(crate) fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let shown = shown(command);
    let output = command
        .output()
        .with_context(|| format!("start `{shown}`"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{shown}` ended with {}: {}",
        output.status,
        errors.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(std::ffi::OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Number 1 of its own pid namespace.
fn is_first(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    inner.is_some_and(|ids| {
        let ids: Vec<&str> = ids.split_whitespace().collect();
        ids.len() > 1 && ids.last() == Some(&"1")
    })
}

/// The process has become the program: it is not the shell or `nsenter` on the way to it.
fn runs(pid: i32, program: &str) -> bool {
    let Ok(path) = std::fs::read_link(format!("/proc/{pid}/exe")) else {
        return false;
    };
    let path = path.to_string_lossy();
    let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
    path.rsplit('/').next() == Some(program)
}

/// Files that programs of this crate enter or mount over.
pub(crate) fn check_here() -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "machines are made of namespaces and cgroups: run as root"
    );
    ensure!(Path::new(ROOT).is_dir(), "there is no {ROOT}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_ends_in_vain_tells_what_for_and_why_not() {
        let error = wait_until(Duration::ZERO, "rain", || Err(anyhow!("a clear sky"))).unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(text, "gave up waiting for rain after 0 s: a clear sky");
    }
}
