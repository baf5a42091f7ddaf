//! The way from the command line to the agent that runs on the same machine: a Unix socket, `<state>/control`.
//!
//! Only the agent's own user and root can reach it: the folder is closed to others, so is the socket, and the
//! kernel tells who is at the other end. What is said is in [`protocol`].

mod client;
mod desk;
mod identity;
pub mod protocol;
mod server;

use camino::{Utf8Path, Utf8PathBuf};

pub use client::{Client, ClientError, Conversation};
pub use desk::Desk;
pub use identity::{recall, remember};
pub use protocol::{Answer, Ask, Connection, Request};
pub use server::{Asked, Control, Reply};

/// Where the socket of the agent with this state folder is.
#[must_use]
pub fn socket_path(state: &Utf8Path) -> Utf8PathBuf {
    state.join("control")
}
