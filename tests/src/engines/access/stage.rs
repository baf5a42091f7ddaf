//! Everybody who is needed to tell what was allowed: who tries, who writes what is to be read, and who watches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use hoist_certs::{ClientTls, Role};
use hoist_protocol::{AgentName, Channel, FleetName, Machine};
use rumqttc::LastWill;
use tokio::time::{Instant, sleep};

use super::{Cell, ROLES, Whose};
use crate::authority::{Authority, Identity};
use crate::engines::session::{Answer, Session};
use crate::wait::{PATIENCE, POLL};

/// The fleet of whoever tries.
const FLEET: &str = "prod";

/// The fleet that is none of their business.
const FOREIGN: &str = "test";

/// A machine that only says something when everything before it has arrived.
const FENCE: &str = "fence";

/// Names with their certificates.
#[derive(Debug)]
pub struct Cast(HashMap<String, Identity>);

impl Cast {
    /// Issues everybody's certificate.
    ///
    /// # Errors
    /// When `hoist-certs` refuses to.
    pub fn issue(authority: &Authority) -> Result<Self> {
        let mut cast = Self(HashMap::new());
        let mut add = |role: &str, name: String, fleet: &str| {
            let identity = authority.issue(role, &name, &["--fleet", fleet])?;
            cast.0.insert(name, identity);
            Ok::<_, anyhow::Error>(())
        };
        for fleet in [FLEET, FOREIGN] {
            add("publisher", format!("ci-{fleet}"), fleet)?;
            add("publisher", format!("watcher-{fleet}"), fleet)?;
        }
        add("agent", FENCE.to_owned(), FLEET)?;
        for role in ROLES {
            add(role.as_str(), format!("own-{role}"), FLEET)?;
            add("agent", format!("other-{role}"), FLEET)?;
            add("agent", format!("foreign-{role}"), FOREIGN)?;
        }
        Ok(cast)
    }

    fn tls(&self, name: &str) -> Result<ClientTls> {
        let identity = self
            .0
            .get(name)
            .with_context(|| format!("nobody is called {name}"))?;
        identity.tls()
    }
}

/// The machine whose topics `role` tries something on.
pub(super) fn machine(role: Role, whose: Whose) -> Result<Machine> {
    let (fleet, name) = match whose {
        Whose::Own => (FLEET, format!("own-{role}")),
        Whose::Other => (FLEET, format!("other-{role}")),
        Whose::Foreign => (FOREIGN, format!("foreign-{role}")),
    };
    Ok(Machine::new(fleet.parse()?, name.parse()?))
}

/// A broker with everybody connected but those who try.
pub struct Stage {
    port: u16,
    tries: HashMap<Role, ClientTls>,
    /// By name.
    sessions: HashMap<String, Session>,
    fences: AtomicU64,
}

impl Stage {
    /// Connects everybody to the broker on `port`.
    ///
    /// # Errors
    /// When somebody is not let in, or may not do what they need to.
    pub async fn open(port: u16, cast: &Cast) -> Result<Self> {
        let mut stage = Self {
            port,
            tries: HashMap::new(),
            sessions: HashMap::new(),
            fences: AtomicU64::new(0),
        };
        for role in ROLES {
            stage.tries.insert(role, cast.tls(&format!("own-{role}"))?);
        }
        for name in cast.0.keys().filter(|name| !name.starts_with("own-")) {
            let publisher = name.starts_with("ci-") || name.starts_with("watcher-");
            let id = match publisher {
                true => format!("{name}.1"),
                false => name.clone(),
            };
            let session = connect(port, &cast.tls(name)?, &id).await?;
            let filters: Vec<String> = match name.strip_prefix("watcher-") {
                Some(fleet) => watched(&fleet.parse()?),
                None if publisher => Vec::new(),
                None => {
                    let fleet = match name.starts_with("foreign-") {
                        true => FOREIGN,
                        false => FLEET,
                    };
                    let machine = Machine::new(fleet.parse()?, name.parse()?);
                    vec![machine.topic(Channel::Echo).to_string()]
                }
            };
            if !filters.is_empty() {
                let granted = session.subscribe(&filters).await?;
                ensure!(granted, "{name} may not read {filters:?}");
            }
            stage.sessions.insert(name.clone(), session);
        }
        Ok(stage)
    }

    fn session(&self, name: &str) -> Result<&Session> {
        self.sessions
            .get(name)
            .with_context(|| format!("nobody is called {name}"))
    }

    /// A new connection of who tries.
    pub(super) async fn enter(&self, role: Role, id: &str) -> Result<Session> {
        connect(self.port, &self.tries[&role], id).await
    }

    /// The same when it may be refused.
    pub(super) async fn knock(
        &self,
        role: Role,
        id: &str,
        will: Option<LastWill>,
    ) -> Result<Option<Session>> {
        Session::open(self.port, &self.tries[&role], id, will).await
    }

    /// The agent of the machine that `cell` is about, when it is not who tries.
    pub(super) fn bystander(&self, cell: &Cell) -> Result<&Session> {
        self.session(machine(cell.role, cell.whose)?.agent.as_str())
    }

    /// Who may write deployments for the machine of `cell`.
    pub(super) fn publisher(&self, cell: &Cell) -> Result<&Session> {
        self.session(&format!("ci-{}", machine(cell.role, cell.whose)?.fleet))
    }

    /// Who sees everything but echoes of the machine of `cell`.
    pub(super) fn watcher(&self, cell: &Cell) -> Result<&Session> {
        self.session(&format!(
            "watcher-{}",
            machine(cell.role, cell.whose)?.fleet
        ))
    }

    /// Everybody who may have seen something.
    pub(super) fn witnesses(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// Waits until what was sent before has come to the watcher of `fleet`, or never will.
    pub(super) async fn fence_watcher(&self, fleet: &FleetName) -> Result<()> {
        let (writer, reader) = (format!("ci-{fleet}"), format!("watcher-{fleet}"));
        let machine = Machine::new(fleet.clone(), AgentName::new(FENCE)?);
        let topic = machine.topic(Channel::Deploy).to_string();
        self.fence(self.session(&writer)?, self.session(&reader)?, &topic)
            .await
    }

    /// The filter that the fence for a client who may read statuses comes by.
    pub(super) fn fence_filter() -> Result<String> {
        let machine = Machine::new(FLEET.parse()?, AgentName::new(FENCE)?);
        Ok(machine.topic(Channel::Status).to_string())
    }

    /// Waits until what was sent before has come to `reader`, which is subscribed to [`Stage::fence_filter`].
    pub(super) async fn fence_reader(&self, reader: &Session) -> Result<()> {
        let topic = Self::fence_filter()?;
        self.fence(self.session(FENCE)?, reader, &topic).await
    }

    /// Waits until what was sent before has come to `agent`, which is subscribed to its own echo, on `topic`.
    pub(super) async fn fence_agent(&self, agent: &Session, topic: &str) -> Result<()> {
        self.fence(agent, agent, topic).await
    }

    async fn fence(&self, writer: &Session, reader: &Session, topic: &str) -> Result<()> {
        let number = self.fences.fetch_add(1, Ordering::Relaxed);
        let payload = format!("fence {number}");
        let retain = !topic.ends_with("/echo");
        let answer = writer.publish(topic, &payload, retain).await?;
        ensure!(
            answer == Answer::Acknowledged,
            "{topic} is closed to who may write there"
        );
        reader
            .wait("a fence", 0, |message| message.payload == payload)
            .await
    }
}

/// Connects who is to be let in, as soon as the broker is ready to: a cluster that has just started refuses everybody.
async fn connect(port: u16, tls: &ClientTls, id: &str) -> Result<Session> {
    let start = Instant::now();
    loop {
        if let Some(session) = Session::open(port, tls, id, None).await? {
            return Ok(session);
        }
        ensure!(start.elapsed() < PATIENCE, "{id} is not let in");
        sleep(POLL).await;
    }
}

/// All that a publisher may read of `fleet`.
fn watched(fleet: &FleetName) -> Vec<String> {
    let channels = Channel::ALL
        .into_iter()
        .filter(|channel| *channel != Channel::Echo);
    channels
        .map(|channel| hoist_protocol::fleet_filter(fleet, channel))
        .collect()
}
