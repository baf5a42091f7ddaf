//! The Hoist agent: the shell around [`hoist_agent_core`], and the activator beside it.

pub mod activator;
pub mod job;
pub mod nix;
