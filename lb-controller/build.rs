//! Builds the eBPF object that the agent loads, and says where it is; and the messages that nodes exchange.

use anyhow::Context;

/// The messages, beside the code that moves them.
const MESSAGES: &str = "src/handoff/handoff.proto";

fn main() -> anyhow::Result<()> {
    let object = lb_ebpf_build::object("bowline")?;
    println!("cargo::rustc-env=BOWLINE_OBJECT={}", object.display());

    println!("cargo::rerun-if-changed={MESSAGES}");
    let messages = protox::compile([MESSAGES], ["src/handoff"]).context("read the messages")?;
    tonic_prost_build::configure()
        .build_transport(false)
        .use_arc_self(true)
        .compile_fds(messages)
        .context("make code of the messages")
}
