//! Which process belongs to whom: a tree of cgroups, `<name>/<machine>/<daemon>`, in every hierarchy of version 1. The
//! kernel keeps the lists, so nothing written down goes stale, whatever crashes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the hierarchies are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// A tree of cgroups with a name that nobody else uses.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    name: String,
    hierarchies: Vec<PathBuf>,
}

impl Tree {
    /// Finds the hierarchies; makes nothing.
    pub(crate) fn find(name: &str) -> anyhow::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
        let hierarchies: Vec<PathBuf> = hierarchies_in(&mounts).map(PathBuf::from).collect();
        ensure!(
            Path::new(ROOT).join("pids").is_dir() && Path::new(ROOT).join("cpuset").is_dir(),
            "cgroup version 1 is not mounted below {ROOT}: nodes of the rig need it"
        );
        Ok(Self {
            name: name.to_owned(),
            hierarchies,
        })
    }

    /// Makes the root of the tree.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        self.make("")?;
        let cpuset = Path::new(ROOT).join("cpuset");
        let ours = cpuset.join(&self.name);
        // A fresh cpuset allows no processor; children copy their parent's once it says so.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = std::fs::read(cpuset.join(file)).with_context(|| format!("read {file}"))?;
            std::fs::write(ours.join(file), value).with_context(|| format!("write {file}"))?;
        }
        std::fs::write(ours.join("cgroup.clone_children"), "1")
            .context("write cgroup.clone_children")
    }

    /// Path of the tree inside each hierarchy.
    pub(crate) fn path(&self, below: &str) -> String {
        format!("/{}/{below}", self.name)
    }

    /// Makes a cgroup below the root.
    pub(crate) fn make(&self, below: &str) -> anyhow::Result<()> {
        for directory in self.directories(below) {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        Ok(())
    }

    /// A command that moves itself into a cgroup and then becomes `program`: whatever it starts is born there.
    pub(crate) fn command_in(&self, below: &str, program: &str) -> Command {
        let mut command = Command::new("sh");
        // The files come first, then `--`, then the program.
        command.args(["-c", JOIN, "sh"]);
        command.args(
            self.directories(below)
                .map(|directory| directory.join("cgroup.procs")),
        );
        command.arg("--").arg(program);
        command
    }

    /// Processes in a cgroup and below it.
    pub(crate) fn processes(&self, below: &str) -> Vec<i32> {
        let mut found = Vec::new();
        collect(
            &Path::new(ROOT).join("pids").join(&self.name).join(below),
            &mut found,
        );
        found
    }

    /// Kills every process in a cgroup and below it; true once none is left.
    pub(crate) fn kill(&self, below: &str) -> bool {
        let processes = self.processes(below);
        for pid in &processes {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        processes.is_empty()
    }

    /// Removes a cgroup and all below, which must hold no process.
    pub(crate) fn remove(&self, below: &str) -> anyhow::Result<()> {
        for directory in self.directories(below) {
            remove(&directory).with_context(|| format!("remove {}", directory.display()))?;
        }
        Ok(())
    }

    /// Names of the cgroups directly below one.
    pub(crate) fn children(&self, below: &str) -> Vec<String> {
        let directory = Path::new(ROOT).join("pids").join(&self.name).join(below);
        let mut names: Vec<String> = directories_in(&directory)
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names
    }

    fn directories(&self, below: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies
            .iter()
            .map(move |hierarchy| hierarchy.join(&self.name).join(below))
    }
}

/// Arguments: files to write our process id to, `--`, a program with its arguments.
const JOIN: &str =
    r#"while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done; shift; exec "$@""#;

/// Mount points of hierarchies of both versions: a process belongs to a cgroup in each.
fn hierarchies_in(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (point, kind) = (words.nth(1)?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then_some(point)
    })
}

fn collect(directory: &Path, found: &mut Vec<i32>) {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // A process of another pid namespace is shown as 0.
    found.extend(
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid: &i32| *pid != 0),
    );
    for child in directories_in(directory) {
        collect(&child, found);
    }
}

fn remove(directory: &Path) -> std::io::Result<()> {
    for child in directories_in(directory) {
        remove(&child)?;
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn directories_in(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/pids cgroup rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
                      none /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<&str> = hierarchies_in(mounts).collect();
        assert_eq!(found, ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"]);
    }
}
