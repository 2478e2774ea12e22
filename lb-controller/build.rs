//! Builds the eBPF object that the agent loads, and says where it is.

fn main() -> anyhow::Result<()> {
    let object = lb_ebpf_build::object("bowline")?;
    println!("cargo::rustc-env=BOWLINE_OBJECT={}", object.display());
    Ok(())
}
