//! Builds the eBPF object that the agent loads, and says where it is.

#![expect(
    clippy::print_stdout,
    reason = "this is how build scripts talk to cargo"
)]

fn main() -> anyhow::Result<()> {
    let object = lb_ebpf_build::object("bowline")?;
    println!("cargo::rustc-env=BOWLINE_OBJECT={}", object.display());
    Ok(())
}
