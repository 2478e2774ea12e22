//! Builds the programs under test and the driver in front of them.

fn main() -> anyhow::Result<()> {
    lb_ebpf_build::object("bowline")?;
    lb_ebpf_build::object("driver")?;
    Ok(())
}
