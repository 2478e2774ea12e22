//! The programs of Kubernetes: built once from pinned Go modules into the user's cache, or found where
//! `KUBEBUILDER_ASSETS` says. Knows nothing of how they are run.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

/// A program that a rig runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the programs are known by these names")]
pub enum Program {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    Kubectl,
    Coredns,
}

impl Program {
    /// All that are built.
    pub const ALL: [Self; 8] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Kubectl,
        Self::Coredns,
    ];

    /// Name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Coredns => "coredns",
        }
    }
}

/// The sources of what is built, compiled in: they decide the digest, so a program and its cache always agree.
const SOURCES: [(&str, &str); 5] = [
    ("go.mod", include_str!("../go/go.mod")),
    ("go.sum", include_str!("../go/go.sum")),
    ("dns/go.mod", include_str!("../go/dns/go.mod")),
    ("dns/go.sum", include_str!("../go/dns/go.sum")),
    ("dns/main.go", include_str!("../go/dns/main.go")),
];

/// Leaves symbols and debug information out, which halves the size.
const STRIP: &str = "-s -w";

/// Variable that names a directory with `etcd`, `kube-apiserver` and so on, as kubebuilder's tools have it.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// A directory with the programs that were asked for.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds the programs, and builds all of them when some are missing: with Go of the version in `go.mod`, about ten
    /// minutes and 5 GB of Go's caches from nothing. Several callers at once build once.
    pub fn ensure(needed: &[Program]) -> anyhow::Result<Self> {
        if let Some(directory) = std::env::var_os(ASSETS).map(PathBuf::from) {
            let here = Self { directory };
            if needed.iter().all(|program| here.path(*program).is_file()) {
                return Ok(here);
            }
        }
        let home = cache()?.join(format!("kube-{}", digest()));
        let here = Self {
            directory: home.join("bin"),
        };
        // The directory appears complete, by rename.
        if !here.directory.is_dir() {
            build(&home)?;
        }
        Ok(here)
    }

    /// Where a program is.
    pub fn path(&self, program: Program) -> PathBuf {
        self.directory.join(program.name())
    }

    /// Where all are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The user's cache of this project.
pub fn cache() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(
            std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?,
        )
        .join(".cache"),
    };
    Ok(base.join("bowline"))
}

/// Version of Kubernetes, as `v1.36.3`.
pub fn version() -> &'static str {
    SOURCES[0]
        .1
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("v0.0.0")
}

/// Programs without these call themselves v0.0.0, which nodes report and clients compare.
fn linker_flags() -> String {
    let version = version();
    let minor = version.split('.').nth(1).unwrap_or("0");
    let mut flags = STRIP.to_owned();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (name, value) in [
            ("gitVersion", version),
            ("gitMajor", "1"),
            ("gitMinor", minor),
        ] {
            let _ = write!(flags, " -X {package}.{name}={value}");
        }
    }
    flags
}

fn digest() -> String {
    let mut hash = Sha256::new();
    for (name, text) in SOURCES {
        hash.update(name);
        hash.update(text);
    }
    hash.update(linker_flags());
    let bytes = hash.finalize();
    crate::hex(&bytes[..6])
}

fn build(home: &Path) -> anyhow::Result<()> {
    let (bin, fresh, source) = (home.join("bin"), home.join("bin.new"), home.join("src"));
    std::fs::create_dir_all(home).with_context(|| format!("make {}", home.display()))?;
    let lock = home.join("lock");
    let lock = File::create(&lock).with_context(|| format!("make {}", lock.display()))?;
    lock.lock().context("wait for another build")?;
    if bin.is_dir() {
        return Ok(());
    }
    eprintln!(
        "building Kubernetes {} into {} (once; about ten minutes)",
        version(),
        bin.display()
    );
    for (name, text) in SOURCES {
        let path = source.join(name);
        let parent = path.parent().unwrap_or(&source);
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    match std::fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", fresh.display()));
        }
        _ => {
            std::fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
        }
    }
    // A directory as output takes every tool by its package's last name, and etcd's package is called server.
    go_build(&source, &linker_flags(), &fresh, "tool")?;
    std::fs::rename(fresh.join("server"), fresh.join(Program::Etcd.name())).context("name etcd")?;
    go_build(
        &source.join("dns"),
        STRIP,
        &fresh.join(Program::Coredns.name()),
        ".",
    )?;
    for program in Program::ALL {
        ensure!(
            fresh.join(program.name()).is_file(),
            "the build made no {}",
            program.name()
        );
    }
    std::fs::rename(&fresh, &bin).with_context(|| format!("rename to {}", bin.display()))
}

fn go_build(source: &Path, flags: &str, output: &Path, what: &str) -> anyhow::Result<()> {
    let mut go = Command::new("go");
    go.arg("build")
        .arg("-C")
        .arg(source)
        .args(["-ldflags", flags, "-o"])
        .arg(output)
        .arg(what);
    // Static, and with the Go that is installed; a newer one is not fetched behind anybody's back.
    go.env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env_remove("GOFLAGS");
    let status = match go.status() {
        Ok(status) => status,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "there is no `go` to build Kubernetes with: install the version that deploy/rig/go/go.mod names, or set {ASSETS} \
             to a directory with the programs"
        ),
        Err(error) => return Err(error).context("start go"),
    };
    ensure!(
        status.success(),
        "`go build` in {} ended with {status}",
        source.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_module() {
        assert!(version().starts_with("v1.36."), "{}", version());
        assert!(linker_flags().contains("-X k8s.io/component-base/version.gitMinor=36"));
    }

    #[test]
    fn the_digest_is_a_short_word() {
        assert_eq!(digest().len(), 12);
    }
}
