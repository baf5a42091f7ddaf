//! The broker as its clients see it: real TLS on the loopback device, real certificates, packets one by one.

// A test's helpers may panic as a test may.
#![allow(clippy::unwrap_used)]

mod access;
mod connect;
mod deploys;
mod durable;
mod faults;
mod fleets;
mod foreign;
mod hostile;
mod limits;
mod normative;
mod program;
mod publish;
mod qos2;
mod restart;
mod revocation;
mod seen;
mod sessions;
mod soak;
mod subscribe;
mod support;
mod takeover;
mod v5;
mod v5_client;
mod websocket;
