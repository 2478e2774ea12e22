//! Routes to VIPs, exported by a real BIRD at a node and learnt by by another one, or by FRR, that plays the router.

mod example;
mod frr;
mod lab;
mod objects;
