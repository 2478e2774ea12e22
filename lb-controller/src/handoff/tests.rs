//! Agents and a manager over loopback, with real TLS, real writers and real receivers.

pub(crate) mod certs;
mod control;
mod deployed;
mod files;
mod hostile;
pub(crate) mod lab;
mod streams;
