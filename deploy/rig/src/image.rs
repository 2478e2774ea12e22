//! Container images without a container engine: one layer, in the archive form that `ctr images import`, `docker load`
//! and `podman load` take. The same content gives the same bytes. Knows nothing of what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a container of the image starts with.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The program, with arguments that stay.
    pub entrypoint: Vec<String>,
    /// Arguments that a Pod may replace.
    pub arguments: Vec<String>,
    /// `UID:GID`; root if empty.
    pub user: String,
}

/// The files of an image, by absolute path.
#[derive(Clone, Debug, Default)]
pub struct Files {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    Directory { mode: u32 },
    File { bytes: Vec<u8>, mode: u32 },
    Link { to: PathBuf },
}

impl Files {
    /// A directory, with those above it.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) {
        self.parents(path.as_ref());
        self.entries
            .insert(path.as_ref().to_owned(), Entry::Directory { mode });
    }

    /// A file with this content.
    pub fn file(&mut self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.parents(path.as_ref());
        let bytes = bytes.into();
        self.entries
            .insert(path.as_ref().to_owned(), Entry::File { bytes, mode });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, to: impl AsRef<Path>) {
        self.parents(path.as_ref());
        let to = to.as_ref().to_owned();
        self.entries
            .insert(path.as_ref().to_owned(), Entry::Link { to });
    }

    /// A program of this machine, with the loader and the shared libraries that it needs where the loader looks.
    pub fn program(&mut self, path: impl AsRef<Path>, from: &Path) -> anyhow::Result<()> {
        self.copy(path, from, 0o755)?;
        for library in libraries(from)? {
            self.copy(&library, &library, 0o755)?;
        }
        Ok(())
    }

    fn copy(&mut self, path: impl AsRef<Path>, from: &Path, mode: u32) -> anyhow::Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.file(path, bytes, mode);
        Ok(())
    }

    fn parents(&mut self, path: &Path) {
        for parent in path
            .ancestors()
            .skip(1)
            .filter(|parent| parent.parent().is_some())
        {
            let entry = Entry::Directory { mode: 0o755 };
            self.entries.entry(parent.to_owned()).or_insert(entry);
        }
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let inside = path
                .strip_prefix("/")
                .with_context(|| format!("{} is not absolute", path.display()))?;
            let mut header = tar::Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            let done = match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, inside, std::io::empty())
                }
                Entry::File { bytes, mode } => {
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, inside, bytes.as_slice())
                }
                Entry::Link { to } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, inside, to)
                }
            };
            done.with_context(|| format!("pack {}", path.display()))?;
        }
        tar.into_inner().context("pack a layer")
    }
}

/// Writes an image with a name such as `localhost/bowline:dev`. Tags other than `latest` are not pulled.
pub fn write(out: &Path, reference: &str, files: &Files, start: &Start) -> anyhow::Result<()> {
    let layer = files.layer()?;
    let config = config(&layer, start).to_string();
    let layer_name = "layer.tar";
    let config_name = "config.json";
    let manifest =
        json!([{ "Config": config_name, "RepoTags": [reference], "Layers": [layer_name] }]);

    let mut tar = tar::Builder::new(Vec::new());
    let parts = [
        ("manifest.json", manifest.to_string().into_bytes()),
        (config_name, config.into_bytes()),
        (layer_name, layer),
    ];
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        header.set_mtime(0);
        tar.append_data(&mut header, name, bytes.as_slice())
            .with_context(|| format!("pack {name}"))?;
    }
    let bytes = tar.into_inner().context("pack an image")?;
    let parent = out.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    // By rename, so that nobody reads a part of it.
    let mut file = tempfile::NamedTempFile::new_in(parent)
        .with_context(|| format!("write below {}", parent.display()))?;
    file.write_all(&bytes)
        .with_context(|| format!("write {}", out.display()))?;
    file.persist(out)
        .with_context(|| format!("write {}", out.display()))?;
    Ok(())
}

fn config(layer: &[u8], start: &Start) -> Value {
    let digest = crate::hex(&Sha256::digest(layer));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": start.entrypoint,
            "Cmd": start.arguments,
            "User": start.user,
            "WorkingDir": "/",
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    })
}

/// Files that a program is loaded with, the loader itself included; none if it is static.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if text.contains("statically linked") || errors.contains("not a dynamic executable") {
        return Ok(BTreeSet::new());
    }
    ensure!(
        output.status.success(),
        "`ldd {}` ended with {}: {errors}",
        program.display(),
        output.status
    );
    ensure!(
        !text.contains("not found"),
        "{} lacks libraries: {text}",
        program.display()
    );
    Ok(paths_in(&text))
}

/// Absolute paths in what `ldd` prints: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn paths_in(ldd: &str) -> BTreeSet<PathBuf> {
    let path = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    ldd.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Files {
        let mut files = Files::default();
        files.file("/etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644);
        files.link("/bin/sh", "busybox");
        files.directory("/tmp", 0o1777);
        files
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (
            directory.path().join("a.tar"),
            directory.path().join("b.tar"),
        );
        for out in [&first, &second] {
            write(out, "localhost/small:1", &small(), &Start::default()).unwrap();
        }
        assert_eq!(
            std::fs::read(first).unwrap(),
            std::fs::read(second).unwrap()
        );
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let layer = small().layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin", "bin/sh", "etc", "etc/passwd", "tmp"]);
    }

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x7)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7)\n\t/lib64/ld.so.2 (0x7)\n";
        let found: Vec<PathBuf> = paths_in(text).into_iter().collect();
        assert_eq!(
            found,
            [
                PathBuf::from("/lib/x/libc.so.6"),
                PathBuf::from("/lib64/ld.so.2")
            ]
        );
    }

    #[test]
    fn this_test_is_loaded_with_a_libc() {
        let me = std::env::current_exe().unwrap();
        let found = libraries(&me).unwrap();
        assert!(
            found
                .iter()
                .any(|path| path.to_string_lossy().contains("libc.so")),
            "{found:?}"
        );
    }
}
