//! How the connection is, for whoever asks at the machine.

use std::time::Duration;

use hoist_certs::program::now;
use hoist_protocol::{Text, Timestamp};

use super::{Broker, Echo};
use crate::control::Connection;

impl Broker {
    /// How the agent stands with its broker.
    pub(in crate::runtime) fn connection(&self) -> Connection {
        let problem = self.problem.as_deref().filter(|_| !self.is_connected());
        Connection {
            connected: self.is_connected(),
            broker: self.url().clone(),
            since: self.connected.map(|since| before(now(), since.elapsed())),
            problem: problem.map(Text::lossy).unwrap_or_default(),
            denied: self
                .denied
                .iter()
                .map(|channel| Text::lossy(channel.as_str()))
                .collect(),
            echo: match self.echo {
                Echo::Unknown => None,
                Echo::Asked(_) => Some(false),
                Echo::Works => Some(true),
            },
        }
    }
}

fn before(now: Timestamp, elapsed: Duration) -> Timestamp {
    let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_ms(now.as_ms().saturating_sub(elapsed))
}
