//! The messages and stubs that the build script makes of `handoff.proto`.

#![expect(
    unreachable_pub,
    clippy::pedantic,
    reason = "generated code; `handoff.proto` says what it means"
)]

tonic::include_proto!("bowline.handoff.v1");
