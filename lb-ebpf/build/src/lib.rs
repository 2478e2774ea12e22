//! Builds the eBPF objects of `lb-ebpf` on the stable toolchain, for the build scripts of the crates that embed them.
//!
//! `lb-ebpf` is compiled like any other `no_std` program for the host, down to LLVM's textual form; `bpf-linker` then
//! makes BPF instructions and BTF of it. Neither nightly nor an installed LLVM is needed: the linker uses the LLVM
//! inside the Rust toolchain, which cargo puts on the library path of build scripts.
//!
//! The nested cargo has a target directory of its own below `OUT_DIR`, so that it never waits for the lock that the
//! outer one holds. It must not know which maps or programs exist: whatever has a section of its own is kept.

use std::collections::BTreeSet;
use std::env;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bpf_linker::{Cpu, Linker, LinkerInput, LinkerOptions, OptLevel, OutputType};

/// Builds the binary `bin` of `lb-ebpf` (feature `kernel`), tells cargo what it was made from, and returns the path of
/// the object, `$OUT_DIR/<bin>.o`.
pub fn object(bin: &str) -> Result<PathBuf> {
    // Asked when it runs: two clones may share a target directory, and cargo takes what one has built for the other's.
    let caller = env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set: call this from a build script")?;
    let workspace = Path::new(&caller)
        .parent()
        .context("the calling package is not in the workspace's directory")?;
    let package = &workspace.join("lb-ebpf");
    let out = PathBuf::from(
        env::var_os("OUT_DIR").context("OUT_DIR is not set: call this from a build script")?,
    );

    rerun_if_changed(&[
        package.join("src"),
        package.join("Cargo.toml"),
        workspace.join("Cargo.toml"),
        workspace.join("Cargo.lock"),
        workspace.join("rust-toolchain.toml"),
    ]);
    let ir = compile(bin, package, workspace, &out)?;
    let object = out.join(format!("{bin}.o"));
    link(&ir, &object)?;
    Ok(object)
}

#[expect(
    clippy::print_stdout,
    reason = "this is how build scripts talk to cargo"
)]
fn rerun_if_changed(paths: &[PathBuf]) {
    for path in paths {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// Runs the nested cargo; returns the path of the program in LLVM's textual form.
fn compile(bin: &str, package: &Path, workspace: &Path, out: &Path) -> Result<PathBuf> {
    let host = env::var("HOST").context("HOST is not set: call this from a build script")?;
    let target_dir = out.join("ebpf");
    let ir = out.join(format!("{bin}.ll"));
    if !ir.exists() {
        // Cargo does not know of this file, so it would take a build without it for fresh.
        remove_dir(&target_dir)?;
    }

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(package)
        .args(["rustc", "--locked", "--release"])
        .args(["--package", "lb-ebpf", "--bin", bin, "--features", "kernel"])
        // With an explicit target, flags reach the program and its libraries, but no procedural macro.
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(&target_dir);
    for setting in [
        "opt-level=3",
        "lto=\"fat\"",
        "codegen-units=1",
        "panic=\"abort\"",
        "debug=2", // BTF is made from it.
        "debug-assertions=false",
        "overflow-checks=false",
        "incremental=false",
        "strip=\"none\"",
    ] {
        cargo
            .arg("--config")
            .arg(format!("profile.release.{setting}"));
    }
    cargo
        .arg("--")
        .arg(format!("--emit=llvm-ir={}", ir.display()))
        // There is nothing to link for the host.
        .args(["-C", "linker=/bin/true"]);
    clean_environment(&mut cargo);
    cargo.env(
        "CARGO_ENCODED_RUSTFLAGS",
        rust_flags(workspace).join("\u{1f}"),
    );

    let status = cargo
        .status()
        .with_context(|| format!("running {}", cargo.get_program().display()))?;
    ensure!(
        status.success(),
        "compiling the eBPF program `{bin}` ended with {status}; the compiler's messages are above. If cargo could \
         not find or download a crate, run `cargo fetch --locked` once with a network"
    );
    ensure!(
        ir.exists(),
        "the compiler left no {}; remove {} and build again",
        ir.display(),
        out.display()
    );
    Ok(ir)
}

/// Flags for the program and its libraries. The last ones keep this machine's paths out of the object.
fn rust_flags(workspace: &Path) -> Vec<String> {
    let mut flags = [
        "-Cforce-unwind-tables=no",
        "-Cno-vectorize-loops",
        "-Cno-vectorize-slp",
    ]
    .map(String::from)
    .to_vec();
    let cargo_home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))
        .ok();
    for (from, to) in [
        (cargo_home, "cargo"),
        (workspace.to_str().map(String::from), "bowline"),
    ] {
        if let Some(from) = from {
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
    }
    flags
}

/// Takes away what the outer cargo, or the person who called it, meant for the outer build only: flags, wrappers such
/// as clippy's, target directories and profiles.
fn clean_environment(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let outer = name == "RUSTFLAGS"
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_TARGET_");
        if outer {
            cargo.env_remove(name);
        }
    }
    // Empty rather than absent: empty also overrides a wrapper from cargo's configuration files.
    cargo.env("RUSTC_WRAPPER", "");
    cargo.env("RUSTC_WORKSPACE_WRAPPER", "");
    // Would win over the profile.
    cargo.env("CARGO_INCREMENTAL", "0");
}

/// Makes the BPF object. A program that has not changed leaves the file alone.
fn link(ir: &Path, object: &Path) -> Result<()> {
    let text = fs::read_to_string(ir).with_context(|| format!("reading {}", ir.display()))?;
    let exports = sectioned(&text);
    if exports.is_empty() {
        bail!(
            "{} has no program and no map: does it name its sections?",
            ir.display()
        );
    }

    // The linker reports through `tracing`; without a subscriber LLVM's messages would be lost.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .try_init();
    let linker = Linker::new(LinkerOptions {
        target: Some(CString::new("bpf").context("no NUL in it")?),
        // Version 3 (32-bit jumps and registers) is known to every kernel that Bowline runs on (6.1 and newer).
        cpu: Cpu::V3,
        cpu_features: CString::default(),
        optimize: OptLevel::Aggressive,
        unroll_loops: false,
        ignore_inline_never: false,
        llvm_args: Vec::new(),
        // Expanding copies in order also turns off the expansion of `memset`, and there is no function to call.
        disable_expand_memcpy_in_order: true,
        disable_memory_builtins: true,
        btf: true,
        allow_bpf_trap: false,
    });
    let made = linker
        .link_to_buffer(
            [LinkerInput::new_from_file(ir)],
            OutputType::Object,
            exports.iter().map(String::as_str),
        )
        .with_context(|| format!("bpf-linker on {}", ir.display()))?;
    ensure!(
        !linker.has_errors(),
        "bpf-linker on {}: LLVM's messages are above. \"stack arguments are not supported\" and \"exceeded stack \
         limit\" name a function that needs `#[inline(always)]` or smaller locals",
        ir.display()
    );
    if fs::read(object).is_ok_and(|old| old == made.as_slice()) {
        return Ok(());
    }
    fs::write(object, made.as_slice()).with_context(|| format!("writing {}", object.display()))
}

/// Names of all definitions with a section of their own: programs, maps and the licence. The linker drops the rest.
fn sectioned(ir: &str) -> BTreeSet<String> {
    ir.lines()
        .filter(|line| line.starts_with('@') || line.starts_with("define "))
        .filter(|line| line.contains(" section \""))
        .filter_map(|line| {
            let name = &line[line.find('@')? + 1..];
            let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))?;
            Some(name[..end].to_string())
        })
        .collect()
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_section_is_exported() {
        let ir = "@LICENSE = local_unnamed_addr constant [4 x i8] c\"GPL\\00\", section \"license\", align 1\n\
                  @flows4 = global %\"x\" { i32 1 }, section \"maps\", align 4, !dbg !3\n\
                  @alloc_7 = private constant [2 x i8] c\"ab\"\n\
                  define i32 @bowline_xdp(ptr %ctx) unnamed_addr #0 section \"xdp\" !dbg !9 {\n\
                  define internal i32 @helper() {\n\
                  declare void @section()\n";
        let names: Vec<_> = sectioned(ir).into_iter().collect();
        assert_eq!(names, ["LICENSE", "bowline_xdp", "flows4"]);
    }
}
