//! `cargo xtask setup`: programs that the tests use, and the Debian packages they come from.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::process::{self, cargo};

/// A program, the Debian package that has it, and what is it for.
#[derive(Clone, Copy)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

/// The routing daemon, of nodes and of the router.
pub(crate) const BIRD: Tool = Tool {
    program: "bird",
    package: "bird2",
    purpose: "telling routers of VIPs",
};

/// What `cargo xtask test` uses beside the toolchain.
const FOR_TESTS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
        purpose: "namespaces of tests",
    },
    Tool {
        program: "tshark",
        package: "tshark",
        purpose: "decoding golden packets",
    },
    BIRD,
    Tool {
        program: "/usr/lib/frr/bgpd",
        package: "frr",
        purpose: "a router of another make",
    },
];

/// What nodes of `cargo xtask cluster` are made of.
const FOR_CLUSTERS: &[Tool] = &[
    Tool {
        program: "containerd",
        package: "containerd",
        purpose: "running pods",
    },
    Tool {
        program: "runc",
        package: "runc",
        purpose: "running containers",
    },
    Tool {
        program: "/usr/lib/cni/ptp",
        package: "containernetworking-plugins",
        purpose: "connecting pods",
    },
    Tool {
        program: "tini",
        package: "tini",
        purpose: "the first process of a machine",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        purpose: "the sandboxes of pods",
    },
    Tool {
        program: "nft",
        package: "nftables",
        purpose: "Services inside the cluster",
    },
    Tool {
        program: "iptables",
        package: "iptables",
        purpose: "the kubelet's own rules",
    },
    Tool {
        program: "ethtool",
        package: "ethtool",
        purpose: "cables between machines",
    },
    BIRD,
];

/// What `cargo xtask verifier --kernel` uses beside that.
pub(crate) const FOR_EMULATION: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "emulating a machine",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        purpose: "the shell inside",
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
        purpose: "unpacking the kernel",
    },
];

/// The task.
pub(crate) fn run() -> ExitCode {
    if ensure_for_tests() {
        println!("everything that the tests use is here");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Installs what the tests use; `false` if something is still missing, which has been said.
pub(crate) fn ensure_for_tests() -> bool {
    // Not short-circuited: all that is missing is named at once.
    ensure(FOR_TESTS)
        & ensure_for_clusters()
        & ensure_component("rustfmt", "fmt")
        & ensure_component("clippy", "clippy")
}

/// Installs what nodes are made of; `false` if something is still missing, which has been said.
pub(crate) fn ensure_for_clusters() -> bool {
    ensure(FOR_CLUSTERS)
}

/// Installs the packages of those programs that are not here; `false` if some are still missing, which has been said.
pub(crate) fn ensure(tools: &[Tool]) -> bool {
    let missing = missing(tools);
    if missing.is_empty() {
        return true;
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let reason = if !nix::unistd::geteuid().is_root() {
        "installing needs root".to_owned()
    } else if find("apt-get").is_none() {
        "this is no Debian or Ubuntu, without apt-get".to_owned()
    } else {
        println!(
            "installing Debian packages: {} (for {})",
            packages.join(" "),
            purposes(&missing)
        );
        match install(&packages) {
            Ok(()) => return true,
            Err(error) => format!("{error:#}"),
        }
    };
    println!(
        "missing: Debian packages {} (for {}): {reason}",
        packages.join(" "),
        purposes(&missing)
    );
    false
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let install = || {
        process::run(
            apt_get()
                .args(["install", "--quiet", "--yes", "--no-install-recommends"])
                .args(packages),
        )
    };
    // Lists on a fresh machine are empty or stale; those of one in use are good enough to try first.
    install().or_else(|_| {
        process::run(apt_get().args(["update", "--quiet"]))?;
        install()
    })
}

/// `apt-get` that asks nothing.
pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing(tools: &[Tool]) -> Vec<Tool> {
    let gone = |tool: &&Tool| find(tool.program).is_none();
    tools.iter().filter(gone).copied().collect()
}

fn purposes(tools: &[Tool]) -> String {
    let purposes: Vec<&str> = tools.iter().map(|tool| tool.purpose).collect();
    purposes.join(", ")
}

/// A program in `PATH` or where administrators' programs are, which `PATH` may leave out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| is_file(file))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// A component of the pinned toolchain, found by asking its Cargo command for its version.
fn ensure_component(component: &str, command: &str) -> bool {
    let here = || {
        cargo()
            .args([command, "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if here() {
        return true;
    }
    println!("installing the Rust component {component}");
    match process::run(Command::new("rustup").args(["component", "add", component])) {
        Ok(()) => true,
        Err(error) => {
            println!("missing: Rust component {component}: {error:#}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_and_another_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }

    #[test]
    fn only_what_is_missing_is_named() {
        let tool = |program| Tool {
            program,
            package: "p",
            purpose: "nothing",
        };
        let found = missing(&[tool("sh"), tool("no-such-program-anywhere")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].program, "no-such-program-anywhere");
    }
}
