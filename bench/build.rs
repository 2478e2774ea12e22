//! Builds the driver programs that run in front of those under test, and says where they are.

fn main() -> anyhow::Result<()> {
    let object = lb_ebpf_build::object("driver")?;
    println!("cargo::rustc-env=DRIVER_OBJECT={}", object.display());
    Ok(())
}
