//! The `hoist` command: signs deployments, publishes them, and follows what becomes of them.
//!
//! [`follow`] and [`plan`] decide and know neither clock nor connection; [`link`] talks MQTT; `commands` has
//! one file for each command.

pub mod duration;
pub mod follow;
pub mod outcome;
pub mod plan;
pub mod spec;
#[cfg(test)]
mod testing;
