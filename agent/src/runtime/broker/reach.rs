//! Proving, for a deployment that waits for its confirmation, that the machine is still in reach.
//!
//! The proof is a nonce that comes back over a connection made after the activation. A broker that did not let the
//! agent hear its nonces before the activation either is proven by less: TLS, login and a granted subscription.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use hoist_certs::mqtt::FailureKind;
use hoist_protocol::{BrokerUrl, Channel, DeploymentId, SubstituterUrl};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::before::Before;
use super::caches::machines_caches;
use super::outage::{Host, Known, judge, look_before, look_now};
use super::{Broker, BrokerEvent, Survey};
use crate::mqtt::{Payload, Receipt, jittered};

/// The waits between rounds of tries: from this,
const FIRST_TRY: Duration = Duration::from_millis(100);

/// doubling so often.
const DOUBLINGS: u32 = 4;

/// The way to the broker is being proven.
pub(super) struct Reach {
    id: DeploymentId,
    nonce: String,
    /// How many rounds over all brokers have failed.
    rounds: u32,
    /// Why, in this round.
    failures: Vec<FailureKind>,
    /// Whether the broker has granted the subscription to `deploy`, over this connection.
    subscribed: bool,
    /// What each broker that was tried said last, by its number.
    said: BTreeMap<usize, String>,
    /// Whether there is something in it that nobody was told.
    has_news: bool,
    /// By when something has to come, once it was asked for.
    deadline: Option<Instant>,
}

impl Reach {
    fn new(id: DeploymentId) -> Self {
        Self {
            id,
            nonce: nonce(),
            rounds: 0,
            failures: Vec::new(),
            subscribed: false,
            said: BTreeMap::new(),
            has_news: false,
            deadline: None,
        }
    }

    pub(super) fn is_for(&self, id: DeploymentId) -> bool {
        self.id == id
    }

    /// A try with the broker of this number begins: packets that vanish are heard of late.
    pub(super) fn begins(&mut self, broker: usize, url: &BrokerUrl) {
        if let Entry::Vacant(vacant) = self.said.entry(broker) {
            vacant.insert(format!("{url}: no answer so far"));
            self.has_news = true;
        }
    }

    /// A try with the broker of this number has failed.
    pub(super) fn failed(&mut self, broker: usize, why: &str) {
        let before = self.said.insert(broker, why.to_owned());
        self.has_news |= before.as_deref() != Some(why);
    }

    /// What came of the tries so far, when that is not told yet.
    pub(super) fn news(&mut self) -> Option<(DeploymentId, String)> {
        if !std::mem::take(&mut self.has_news) {
            return None;
        }
        let said: Vec<&str> = self.said.values().map(String::as_str).collect();
        Some((self.id, said.join("; ")))
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn expect_answer(&mut self, within: Duration) {
        self.deadline = Some(Instant::now() + within);
    }

    pub(super) const fn expect_nothing(&mut self) {
        self.deadline = None;
        self.subscribed = false;
    }
}

/// Whether the broker lets the agent hear its own nonces.
#[derive(PartialEq)]
pub(super) enum Echo {
    Unknown,
    Asked(String),
    Works,
}

fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Broker {
    /// Learns what is in reach before the deployment `id` is activated: the brokers, and the deployment's
    /// `caches` and the machine's own as witnesses that the network is there.
    pub(in crate::runtime) fn prepare(&mut self, id: DeploymentId, caches: &[SubstituterUrl]) {
        self.before = Some(Before {
            id,
            asked: matches!(self.echo, Echo::Asked(_)),
            heard: self.echo == Echo::Works,
            known: Known::default(),
        });
        self.save_before();
        self.probe_echo();
        let mut witnesses: Vec<_> = caches.iter().filter_map(Host::of_cache).collect();
        let brokers = self.hosts();
        // What is under way is about another deployment, and ends here.
        self.surveys = JoinSet::new();
        let caches = Arc::clone(&self.caches);
        self.surveys.spawn(async move {
            let witnesses = async {
                witnesses.extend_from_slice(caches.get_or_init(machines_caches).await);
                witnesses
            };
            Survey::Known(id, look_before(brokers, witnesses).await)
        });
    }

    fn hosts(&self) -> Vec<Host> {
        let urls = self.settings.brokers.urls().iter();
        urls.map(Host::of_broker).collect()
    }

    /// What is in reach before the activation is known.
    pub(super) fn known(&mut self, id: DeploymentId, known: Known) {
        if let Some(before) = self.before.as_mut().filter(|before| before.id == id) {
            before.known = known;
            self.save_before();
        }
    }

    fn save_before(&self) {
        if let Some(before) = &self.before
            && let Err(error) = before.save(&self.settings.state)
        {
            // Without it an agent that is replaced by the activation is stricter than need be.
            tracing::warn!(%error, "cannot write down what is in reach before the activation");
        }
    }

    /// Asks whether nonces come back, before a deployment depends on it.
    fn probe_echo(&mut self) {
        if self.is_connected() && self.echo == Echo::Unknown {
            let nonce = nonce();
            self.echo = Echo::Asked(nonce.clone());
            self.say(nonce);
            self.note_echo();
        }
    }

    /// Writes down what is known of the echo, unless the activation may have changed it already.
    fn note_echo(&mut self) {
        let is_before = self.reach.is_none();
        if let Some(before) = self.before.as_mut().filter(|_| is_before) {
            before.asked |= self.echo != Echo::Unknown;
            before.heard |= self.echo == Echo::Works;
            self.save_before();
        }
    }

    fn say(&mut self, nonce: String) {
        self.publish(Payload {
            channel: Channel::Echo,
            bytes: nonce.into_bytes(),
            receipt: Receipt::None,
        });
    }

    /// Proves the way to the broker and back: ends the connection cleanly, since it may be older than what is
    /// to be proven, and makes another from the name lookup on.
    pub(in crate::runtime) async fn reach(&mut self, id: DeploymentId) {
        tracing::info!(%id, "tries a fresh connection to the broker");
        self.reach = Some(Reach::new(id));
        if self.before.as_ref().is_none_or(|before| before.id != id) {
            self.before = Before::load(&self.settings.state, id).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read what was in reach before the activation");
                None
            });
        }
        self.reconnect().await;
    }

    /// The proof is not needed any more.
    pub(in crate::runtime) fn stop_reaching(&mut self, id: DeploymentId) {
        self.reach.take_if(|reach| reach.is_for(id));
    }

    /// The broker has answered the subscription.
    pub(super) fn ask_for_echo(&mut self, deploy: bool, echo: bool) {
        match &mut self.reach {
            Some(reach) => {
                reach.subscribed = deploy;
                if echo {
                    reach.expect_answer(self.answer);
                    let nonce = reach.nonce.clone();
                    self.say(nonce);
                }
            }
            None if echo => self.probe_echo(),
            None => {}
        }
    }

    /// A nonce came back.
    pub(super) fn heard(&mut self, bytes: &[u8]) -> Option<BrokerEvent> {
        if matches!(&self.echo, Echo::Asked(nonce) if nonce.as_bytes() == bytes) {
            self.echo = Echo::Works;
            self.note_echo();
        }
        let reach = self
            .reach
            .take_if(|reach| reach.nonce.as_bytes() == bytes)?;
        self.echo = Echo::Works;
        self.weakly_confirmed = false;
        Some(BrokerEvent::Reached(reach.id))
    }

    /// Something that was asked for did not come.
    pub(super) fn no_answer(&mut self) -> Option<BrokerEvent> {
        let subscribed = self.reach.as_ref().is_some_and(|reach| reach.subscribed);
        let was_silent = self.before.as_ref().is_some_and(Before::was_silent);
        if was_silent && subscribed && self.is_connected() {
            // Not answered before the activation either: it is not the activation's fault.
            let reach = self.reach.take()?;
            tracing::warn!(
                id = %reach.id,
                "the broker does not let this agent hear its own `echo` topic, and did not before: taking TLS, \
                 login and a granted subscription over a fresh connection as the proof"
            );
            self.weakly_confirmed = true;
            return Some(BrokerEvent::Reached(reach.id));
        }
        let why = self.unanswered();
        tracing::warn!("{why}; trying another connection");
        let broker = self.turn.index();
        if let Some(reach) = &mut self.reach {
            reach.failed(broker, &why);
        }
        self.ended(FailureKind::Lost, false);
        None
    }

    /// What the broker has not answered over the fresh connection.
    fn unanswered(&self) -> String {
        let url = self.url();
        let seconds = self.answer.as_secs_f64();
        let is_denied = |channel| self.denied.contains(&channel);
        if is_denied(Channel::Deploy) || is_denied(Channel::Echo) {
            let topics: Vec<_> = self.denied.iter().map(|topic| topic.as_str()).collect();
            return format!(
                "{url}: it lets this agent in and not read its own topics ({}); allow it",
                topics.join(", ")
            );
        }
        if self.reach.as_ref().is_some_and(|reach| reach.subscribed) {
            return format!(
                "{url}: connected, and what the agent says on its own topic `echo` does not come back within \
                 {seconds} s; may it write and read that?"
            );
        }
        format!(
            "{url}: connected, and the broker does not answer the subscription within {seconds} s"
        )
    }

    /// A try has failed: the next broker at once, and after the last one all of them again, soon.
    pub(super) fn ended_in_reach(&mut self, kind: FailureKind) {
        let Some(reach) = &mut self.reach else {
            return;
        };
        reach.expect_nothing();
        reach.failures.push(kind);
        self.connect_at = Instant::now();
        if self.turn.failed() {
            return;
        }
        let ceiling = FIRST_TRY * 2_u32.pow(reach.rounds.min(DOUBLINGS));
        reach.rounds += 1;
        self.connect_at += jittered(ceiling);
        let (id, failures) = (reach.id, std::mem::take(&mut reach.failures));
        self.find_fault(id, failures);
    }

    /// Finds out in the background whether the brokers are to blame, unless that is being done.
    fn find_fault(&mut self, id: DeploymentId, failures: Vec<FailureKind>) {
        if !self.surveys.is_empty() {
            return;
        }
        let before = self.before.as_ref().map(|before| before.known.clone());
        let (known, hosts) = (before.unwrap_or_default(), self.hosts());
        self.surveys.spawn(async move {
            let found = look_now(hosts, &known, failures).await;
            Survey::Judged(id, judge(&known, &found))
        });
    }
}
