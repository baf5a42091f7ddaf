//! The harness: real processes, real Nix, made-up machines.
//!
//! A [`world::World`] is a fleet on this computer. A [`machine::Machine`] of it is a folder, seen through a mount
//! namespace as a `/nix` and a `/run` of its own. Its agent fetches from a [`builder::Cache`] that a
//! [`builder::Builder`] has filled, and talks to the broker through a [`proxy::Proxy`] which the machine's own
//! configuration can cut. What the fleet says of itself is read by mosquitto's client: see [`foreign`].

pub mod authority;
pub mod bench;
pub mod broker;
pub mod builder;
pub mod closure;
pub mod demo;
pub mod engines;
pub mod foreign;
pub mod forge;
pub mod github;
pub mod isolation;
pub mod machine;
pub mod namespace;
pub mod nspawn;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod remains;
pub mod server;
pub mod site;
pub mod soak;
pub mod stand_in;
pub mod terminal;
pub mod usage;
pub mod wait;
pub mod world;
