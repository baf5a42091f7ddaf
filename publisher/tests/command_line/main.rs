//! What `hoist` says to people and to CI before it has a connection.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod activation;
mod digests;
mod folder;
mod settings;
mod terminal;
