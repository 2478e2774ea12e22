//! Builds the objects that only the benchmarks load, and says where they are: the driver programs that run in front of
//! those under test, and the programs by a simulated clock.

fn main() -> anyhow::Result<()> {
    for (bin, name) in [
        ("driver", "DRIVER_OBJECT"),
        ("bowline_sim", "SIMULATED_OBJECT"),
    ] {
        let object = lb_ebpf_build::object(bin)?;
        println!("cargo::rustc-env={name}={}", object.display());
    }
    Ok(())
}
