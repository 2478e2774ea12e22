//! Routes to VIPs, exported by a real BIRD at a node and learnt by another one that plays the router.

mod example;
mod lab;
mod objects;
