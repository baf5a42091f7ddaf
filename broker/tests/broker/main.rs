//! The broker as its clients see it: real TLS on the loopback device, real certificates, packets one by one.

// A test's helpers may panic as a test may.
#![allow(clippy::unwrap_used)]

mod access;
mod connect;
mod deploys;
mod foreign;
mod limits;
mod program;
mod publish;
mod restart;
mod subscribe;
mod support;
mod takeover;
