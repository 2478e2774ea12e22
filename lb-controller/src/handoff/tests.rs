//! Agents and a manager over loopback, with real TLS, real writers and real receivers.

mod certs;
mod control;
mod deployed;
mod files;
mod hostile;
mod lab;
mod streams;
