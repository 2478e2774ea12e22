//! `cargo xtask verifier --kernel 6.1`: boots Debian's kernel of that version under emulation, with nothing but a shell
//! and a static `lb-controller` inside, and asks its verifier about every program. Nothing is installed but the emulator:
//! the kernel is unpacked below the target directory.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::process::{self, cargo};
use crate::setup;

/// The only version that is known, with the names of its packages in Debian.
const KERNEL: &str = "6.1";
/// Packages of that kernel: `linux-image-6.1.0-40-amd64`. Not the unsigned or the cloud ones.
const PACKAGES: &str = r"^linux-image-6\.1\.[0-9]+-[0-9]+-amd64$";
/// A boot takes half a minute under emulation, and the verifier some minutes; a hang is a failure.
const LIMIT: Duration = Duration::from_mins(15);
/// What the emulated machine says when it is up, with its version behind it. The firmware's screen control ends there.
const UP: &str = "verify-kernel:";
/// What it says at its end, with the exit code of `lb-controller verify` behind it.
const MARK: &str = "verify-exit-code:";
/// Static, so that the machine needs no libraries. With `--target`, build scripts stay dynamic, which they must.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// First program of the machine.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t bpf bpf /sys/fs/bpf
ulimit -l unlimited
echo "verify-kernel:$(/bin/busybox uname -r)"
/bin/lb-controller verify
echo "verify-exit-code:$?"
/bin/busybox poweroff -f
"#;

/// The task.
pub(crate) fn run(version: &str) -> anyhow::Result<ExitCode> {
    if version != KERNEL {
        bail!("kernel {version} is not known; use --kernel {KERNEL}");
    }
    if !setup::ensure(setup::FOR_EMULATION) {
        return Ok(ExitCode::FAILURE);
    }
    let directory = process::target_dir()?.join("kernel-6.1");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    let kernel = kernel(&directory)?;
    let program = static_program()?;
    let initramfs = directory.join("initramfs");
    std::fs::write(&initramfs, archive(&program)?)
        .with_context(|| format!("writing {}", initramfs.display()))?;
    boot(&kernel, &initramfs)
}

/// The kernel's image, unpacked from its package once.
fn kernel(directory: &Path) -> anyhow::Result<PathBuf> {
    if let Some(image) = image_below(directory) {
        return Ok(image);
    }
    let search = || -> anyhow::Result<Option<String>> {
        let names =
            process::output(Command::new("apt-cache").args(["search", "--names-only", PACKAGES]))?;
        Ok(newest(&names))
    };
    let package = if let Some(package) = search()? {
        package
    } else {
        process::run(setup::apt_get().args(["update", "--quiet"]))?;
        search()?.with_context(|| {
            format!("no package matches {PACKAGES}: the package sources have to name Debian 12")
        })?
    };
    println!("getting {package}");
    process::run(
        setup::apt_get()
            .current_dir(directory)
            .args(["download", "--quiet"])
            .arg(&package),
    )?;
    let file = files(directory)
        .into_iter()
        .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("{package} was not downloaded"))?;
    process::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file)
            .arg(directory),
    )?;
    image_below(directory).with_context(|| format!("{package} has no boot/vmlinuz-*"))
}

fn image_below(directory: &Path) -> Option<PathBuf> {
    let is_image = |file: &PathBuf| {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    };
    files(&directory.join("boot")).into_iter().find(is_image)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// The package with the highest numbers in what `apt-cache search` says.
fn newest(names: &str) -> Option<String> {
    let numbers = |name: &str| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    names
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

/// Not in release mode: the programs inside are the same, and this is built much sooner.
fn static_program() -> anyhow::Result<PathBuf> {
    process::run(
        cargo()
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .args(["build", "-p", "lb-controller", "--target", TARGET]),
    )?;
    Ok(process::target_dir()?
        .join(TARGET)
        .join("debug/lb-controller"))
}

/// The machine's first file system: a cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(program: &Path) -> anyhow::Result<Vec<u8>> {
    let busybox = setup::find("busybox").context("busybox is gone again")?;
    let read =
        |file: &Path| std::fs::read(file).with_context(|| format!("reading {}", file.display()));
    let mut archive = Archive::default();
    archive.entry("bin", DIRECTORY, &[]);
    archive.entry("bin/busybox", PROGRAM, &read(&busybox)?);
    archive.entry("bin/lb-controller", PROGRAM, &read(program)?);
    archive.entry("init", PROGRAM, INIT.as_bytes());
    Ok(archive.finish())
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let mut header = String::from("070701");
        let links = 1;
        // inode, mode, uid, gid, links, time, size, device ×2, special device ×2, length of the name, checksum
        for field in [
            self.entries,
            mode as usize,
            0,
            0,
            links,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ] {
            write!(header, "{field:08x}").expect("writing to a string does not fail");
        }
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Runs the machine until it switches itself off, and reads the exit code in what it said.
fn boot(kernel: &Path, initramfs: &Path) -> anyhow::Result<ExitCode> {
    println!("booting {} under emulation", kernel.display());
    let (mut up, mut code) = (false, None);
    let ended = process::lines(
        Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "2048"])
            .args([
                "-nographic",
                "-nodefaults",
                "-serial",
                "stdio",
                "-no-reboot",
            ])
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs),
        LIMIT,
        |line| {
            if let Some((_, version)) = line.split_once(UP) {
                up = true;
                println!("Linux {version}");
            } else if let Some(found) = exit_code(line) {
                code = Some(found);
            } else if up {
                println!("{line}");
            }
        },
    )?;
    match (code, ended) {
        (Some(0), _) => {
            println!("kernel {KERNEL}: all programs accepted");
            Ok(ExitCode::SUCCESS)
        }
        (Some(code), _) => bail!("kernel {KERNEL}: `lb-controller verify` ended with {code}"),
        (None, ended) => bail!("kernel {KERNEL}: the machine gave no result: {ended}"),
    }
}

fn exit_code(line: &str) -> Option<u8> {
    line.trim().strip_prefix(MARK)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_the_one_with_the_highest_numbers() {
        let names =
            "linux-image-6.1.0-9-amd64 - Linux 6.1\nlinux-image-6.1.0-40-amd64 - Linux 6.1\n";
        assert_eq!(newest(names).as_deref(), Some("linux-image-6.1.0-40-amd64"));
        assert_eq!(newest(""), None);
    }

    #[test]
    fn the_exit_code_is_read_from_its_line_only() {
        assert_eq!(exit_code("verify-exit-code:0\r"), Some(0));
        assert_eq!(exit_code("[    1.0] something else"), None);
        assert!(INIT.contains(MARK) && INIT.contains(UP));
    }

    #[test]
    fn an_archive_holds_its_files_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.entry("bin", DIRECTORY, &[]);
        archive.entry("bin/tool", PROGRAM, b"#!/bin/sh\n");
        let bytes = archive.finish();
        let mut at = 0;
        let mut found = Vec::new();
        while at < bytes.len() {
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * index..][..8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[at + 110..][..name_size - 1]).unwrap();
            let content = (at + 110 + name_size).next_multiple_of(4);
            found.push((name, mode, &bytes[content..content + size]));
            at = (content + size).next_multiple_of(4);
        }
        let expected: [(&str, usize, &[u8]); 3] = [
            ("bin", 0o040_755, b""),
            ("bin/tool", 0o100_755, b"#!/bin/sh\n"),
            ("TRAILER!!!", 0, b""),
        ];
        assert_eq!(found, expected);
    }
}
