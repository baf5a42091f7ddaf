//! The Hoist agent: the shell around [`hoist_agent_core`], and the activator beside it.
//!
//! | module | what |
//! |---|---|
//! | [`runtime`] | the loop: inputs to the core, its effects to the world |
//! | [`control`] | the socket that the command line asks the running agent over |
//! | [`mqtt`] | one connection to the broker at a time, and when to try the next |
//! | [`ledger`] | the core's ledger on disk |
//! | [`job`] | the directory that agent and activator share |
//! | [`activator`] | the second process |
//! | [`nix`] | everything that asks Nix |

pub mod activator;
pub mod cli;
pub mod config;
pub mod control;
mod error;
pub mod job;
pub mod ledger;
pub mod mqtt;
pub mod nix;
pub mod runtime;

pub use error::Error;
