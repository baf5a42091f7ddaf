//! The way to the publishers, where there is one.

use std::future::pending;

use hoist_protocol::{BrokerUrl, DeploymentId, LogLine, SubstituterUrl, Text};

use super::broker::{Broker, BrokerEvent};
use crate::control::Connection;
use crate::mqtt::Payload;

/// A broker, or none: who activates something at a machine whose agent does not run talks to nobody.
pub(super) enum Uplink {
    Broker(Box<Broker>),
    None,
}

impl Uplink {
    pub(super) fn is_connected(&self) -> bool {
        self.broker().is_some_and(Broker::is_connected)
    }

    /// The broker that the agent is connected to.
    pub(super) fn url(&self) -> Option<BrokerUrl> {
        let connected = self.broker().filter(|broker| broker.is_connected());
        connected.map(|broker| broker.url().clone())
    }

    /// How the connection is, in one line for people.
    pub(super) fn summary(&self) -> String {
        match self.broker() {
            Some(broker) => broker.summary(),
            None => "without a broker".to_owned(),
        }
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        self.broker().map(Broker::connection)
    }

    pub(super) fn warnings(&self) -> Vec<Text<256>> {
        self.broker().map(Broker::warnings).unwrap_or_default()
    }

    /// Keeps the connection and waits for what it brings. Can be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> BrokerEvent {
        match self {
            Self::Broker(broker) => broker.next().await,
            Self::None => pending().await,
        }
    }

    pub(super) async fn refresh(&mut self) {
        if let Self::Broker(broker) = self {
            broker.refresh().await;
        }
    }

    pub(super) async fn start_over(&mut self) {
        if let Self::Broker(broker) = self {
            broker.start_over().await;
        }
    }

    pub(super) fn publish(&mut self, payload: Payload) {
        if let Self::Broker(broker) = self {
            broker.publish(payload);
        }
    }

    pub(super) fn log(&mut self, line: &LogLine) {
        if let Self::Broker(broker) = self {
            broker.log(line);
        }
    }

    pub(super) fn prepare(&mut self, id: DeploymentId, caches: &[SubstituterUrl]) {
        if let Self::Broker(broker) = self {
            broker.prepare(id, caches);
        }
    }

    pub(super) async fn reach(&mut self, id: DeploymentId) {
        if let Self::Broker(broker) = self {
            broker.reach(id).await;
        }
    }

    pub(super) fn stop_reaching(&mut self, id: DeploymentId) {
        if let Self::Broker(broker) = self {
            broker.stop_reaching(id);
        }
    }

    pub(super) async fn stop(&mut self) {
        if let Self::Broker(broker) = self {
            broker.stop().await;
        }
    }

    fn broker(&self) -> Option<&Broker> {
        match self {
            Self::Broker(broker) => Some(broker),
            Self::None => None,
        }
    }
}
