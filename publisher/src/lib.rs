//! The `hoist` command: signs deployments, publishes them, and follows what becomes of them.
//!
//! [`follow`] and [`plan`] decide and know neither clock nor connection; [`link`] talks MQTT, [`drive`] brings
//! the two together; [`commands`] has one file for each command.

pub mod already;
pub mod ci;
mod cli;
pub mod commands;
pub mod console;
pub mod digests;
pub mod drive;
pub mod duration;
mod flags;
pub mod flake;
pub mod follow;
pub mod id_end;
pub mod lines_shown;
pub mod link;
#[cfg(test)]
mod manual;
mod nix_command;
pub mod options;
pub mod outcome;
pub mod plan;
pub mod report;
pub mod rollout;
pub mod said;
pub mod select;
pub mod settings;
pub mod signed_file;
pub mod signer;
pub mod snapshot;
pub mod spec;
#[cfg(test)]
mod testing;

pub use cli::main;
pub use flags::{
    ActivationArgs, CheckArgs, DeploymentArgs, FollowArgs, RolloutArgs, SelectionArgs, WaitFor,
};
