//! The harness: real processes, real Nix, made-up machines.
//!
//! A [`machine::Machine`] is a folder, seen through a mount namespace as a `/nix` and a `/run` of its own. Its
//! agent fetches from a [`builder::Cache`] that a [`builder::Builder`] has filled, and talks to the broker through
//! a [`proxy::Proxy`] which the machine's own configuration can cut.

pub mod builder;
pub mod closure;
pub mod machine;
pub mod namespace;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod server;
pub mod wait;
