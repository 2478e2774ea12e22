//! The pure core: values in, values out. No async, no clock, no I/O; time is an argument.

pub mod maglev;
pub mod op;
pub mod secret;
pub mod shape;
pub mod template;
