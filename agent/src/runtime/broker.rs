//! The broker as the agent sees it: connected or about to be, and proven to be in reach when a job asks.

mod alive;
mod before;
mod caches;
mod connection;
mod outage;
mod reach;
mod warnings;

use std::sync::Arc;
use std::time::Duration;

use hoist_agent_core::Told;
use hoist_certs::mqtt::{FailureKind, diagnose};
use hoist_protocol::{BrokerUrl, Channel, DeploymentId, LogLine, Presence};
use tokio::sync::OnceCell;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Changes;
use crate::config::Settings;
use crate::mqtt::{
    Backoff, End, Link, LinkEvent, Payload, Receipt, Renewal, Target, Turn, Verdict, was_closed,
};
use before::Before;
use outage::{Host, Known};
use reach::{Echo, Reach};

pub(super) use outage::Verdict as OutageVerdict;

/// How long an answer to a nonce, or to a subscription, may take before the connection is made anew.
const ANSWER: Duration = Duration::from_secs(5);

/// How long `offline` may take to arrive when the agent stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// What the broker has to say to the core.
#[derive(Debug)]
pub(super) enum BrokerEvent {
    /// There is a new connection.
    Connected,
    /// A message on the `deploy` topic.
    Deploy(Vec<u8>),
    /// The outcomes of these deployments were acknowledged.
    Delivered(Vec<Told>),
    /// The way there and back was proven for this deployment.
    Reached(DeploymentId),
    /// The way there and back was not proven so far.
    Unproven {
        /// For which deployment.
        id: DeploymentId,
        /// What came of the last try with each broker, and what to do.
        why: String,
    },
    /// Every broker was tried in vain for this deployment.
    Unreachable {
        /// For which one.
        id: DeploymentId,
        /// Whether that is the brokers' fault.
        verdict: OutageVerdict,
    },
}

/// What was found in the background.
enum Survey {
    /// What is in reach before an activation.
    Known(DeploymentId, Known),
    /// Whether the brokers are down.
    Judged(DeploymentId, OutageVerdict),
}

/// What ends a wait.
enum Woken {
    /// It is time to connect.
    Connect,
    Link(LinkEvent),
    /// What was asked for did not come in time.
    NoAnswer,
    Survey(Result<Survey, JoinError>),
    /// Whether the broker runs that has closed a connection.
    Alive(Result<bool, JoinError>),
}

/// A connection that has ended soon after it was made.
struct Short {
    lasted: Duration,
    /// Whether the broker had answered all by then, and closed it.
    closed: bool,
}

pub(super) struct Broker {
    settings: Settings,
    identity: Renewal,
    link: Option<Link>,
    /// Since when the broker has accepted the connection.
    connected: Option<Instant>,
    /// When to connect, while there is no link.
    connect_at: Instant,
    turn: Turn,
    backoff: Backoff,
    /// What was said about the last failure, for each broker.
    failures: Vec<Changes>,
    /// The last failure, while there is no connection.
    problem: Option<String>,
    /// What was said about topics that the broker does not let us read.
    denials: Changes,
    /// Those topics.
    denied: Vec<Channel>,
    /// What was said about another machine with our identity.
    taken_over: Changes,
    echo: Echo,
    /// What is known about the time before the activation.
    before: Option<Before>,
    reach: Option<Reach>,
    /// One at a time.
    surveys: JoinSet<Survey>,
    /// The connection that has just ended, while it is found out whether its broker runs.
    short: Option<Short>,
    /// What finds that out.
    alive: JoinSet<bool>,
    /// The binary caches of the machine, once Nix was asked for them.
    caches: Arc<OnceCell<Vec<Host>>>,
    /// The last confirmation was one without an echo.
    weakly_confirmed: bool,
    /// [`ANSWER`], but for tests.
    answer: Duration,
}

impl Broker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            identity: Renewal::new(
                settings.credentials.clone(),
                settings.tls.clone(),
                settings.machine.clone(),
            ),
            link: None,
            connected: None,
            connect_at: Instant::now(),
            turn: Turn::first(&settings.brokers),
            backoff: Backoff::new(settings.max_backoff),
            failures: (settings.brokers.urls().iter())
                .map(|_| Changes::default())
                .collect(),
            problem: None,
            denials: Changes::default(),
            denied: Vec::new(),
            taken_over: Changes::default(),
            echo: Echo::Unknown,
            before: None,
            reach: None,
            surveys: JoinSet::new(),
            short: None,
            alive: JoinSet::new(),
            caches: Arc::default(),
            weakly_confirmed: false,
            answer: ANSWER,
            settings,
        }
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.connected.is_some()
    }

    /// The broker that we are connected to, or that comes next.
    pub(super) fn url(&self) -> &BrokerUrl {
        self.settings.brokers.at(&self.turn)
    }

    /// How the connection is, in one line for people.
    pub(super) fn summary(&self) -> String {
        match &self.problem {
            _ if self.is_connected() => format!("connected to {}", self.url()),
            Some(problem) => format!("not connected: {problem}"),
            None => format!("connecting to {}", self.url()),
        }
    }

    /// Keeps the connection and waits for what it brings. Can be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> BrokerEvent {
        loop {
            if let Some((id, why)) = self.reach.as_mut().and_then(Reach::news) {
                return BrokerEvent::Unproven { id, why };
            }
            let deadline = self.reach.as_ref().and_then(Reach::deadline);
            let may_go_on = self.short.is_none();
            let woken = tokio::select! {
                woken = on_link(self.link.as_mut(), self.connect_at, deadline), if may_go_on => woken,
                Some(survey) = self.surveys.join_next() => Woken::Survey(survey),
                Some(alive) = self.alive.join_next() => Woken::Alive(alive),
            };
            let event = match woken {
                Woken::Connect => {
                    self.open();
                    None
                }
                Woken::Link(event) => self.on(event),
                Woken::NoAnswer => self.no_answer(),
                Woken::Survey(Ok(Survey::Known(id, known))) => {
                    self.known(id, known);
                    None
                }
                Woken::Survey(Ok(Survey::Judged(id, verdict))) => {
                    let still = self.reach.as_ref().is_some_and(|reach| reach.is_for(id));
                    still.then_some(BrokerEvent::Unreachable { id, verdict })
                }
                Woken::Alive(alive) => {
                    self.ended_soon(alive.unwrap_or_else(|error| {
                        tracing::error!(%error, "looking whether the broker runs has failed");
                        false
                    }));
                    None
                }
                Woken::Survey(Err(error)) => {
                    tracing::error!(%error, "looking at what is in reach has failed");
                    None
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Begins to connect to the broker whose turn it is.
    fn open(&mut self) {
        self.identity.look();
        if let Some(reach) = &mut self.reach {
            let turn = &self.turn;
            reach.begins(turn.index(), self.settings.brokers.at(turn));
        }
        self.link = Some(Link::open(Target {
            url: self.settings.brokers.at(&self.turn),
            machine: &self.settings.machine,
            tls: self.identity.tls(),
            keepalive: self.settings.keepalive,
        }));
    }

    fn on(&mut self, event: LinkEvent) -> Option<BrokerEvent> {
        match event {
            LinkEvent::Connected => {
                self.accepted();
                Some(BrokerEvent::Connected)
            }
            LinkEvent::Subscribed { deploy, echo } => {
                self.subscribed(deploy, echo);
                None
            }
            LinkEvent::Deploy(bytes) => Some(BrokerEvent::Deploy(bytes)),
            LinkEvent::Echo(bytes) => self.heard(&bytes),
            LinkEvent::Acknowledged(Receipt::Outcomes(ids)) => Some(BrokerEvent::Delivered(ids)),
            LinkEvent::Acknowledged(Receipt::None) => None,
            LinkEvent::Lost(error) => {
                let failure = diagnose(&error, self.url());
                let closed = self.is_settled() && was_closed(&error);
                self.lost(failure.kind, failure.to_string(), closed);
                None
            }
            LinkEvent::Silent(patience) => {
                let url = self.url();
                let seconds = patience.as_secs();
                let message = format!(
                    "{url}: no answer for {seconds} s over a connection that seemed to exist; connecting anew"
                );
                self.lost(FailureKind::Unreachable, message, false);
                None
            }
            LinkEvent::Died => {
                let url = self.url();
                let message =
                    format!("{url}: the MQTT client has failed, perhaps at a malformed packet");
                self.lost(FailureKind::Lost, message, false);
                None
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_settled)
    }

    /// The broker has accepted the connection.
    fn accepted(&mut self) {
        if self.turn.is_first() {
            tracing::info!(broker = %self.url(), "connected");
        } else {
            let preferred = &self.settings.brokers.urls()[0];
            tracing::warn!(broker = %self.url(), %preferred, "connected to a broker that is not the preferred one");
        }
        self.connected = Some(Instant::now());
        self.problem = None;
        self.identity.accepted();
        for failures in &mut self.failures {
            failures.clear();
        }
        if let Some(reach) = &mut self.reach {
            reach.expect_answer(self.answer);
        }
        self.say_hello();
    }

    /// Subscribes and says `online`: at every connection, and from time to time, so that a broker that lost
    /// something has it again.
    fn say_hello(&mut self) {
        if self.link.as_ref().is_some_and(|link| !link.subscribe()) {
            self.overflow();
        }
        self.presence(Presence::Online);
    }

    /// Says again that this machine is online. A certificate that was renewed is connected with at once, so that it
    /// shows now whether the broker takes it.
    pub(super) async fn refresh(&mut self) {
        if !self.is_connected() {
            return;
        }
        if self.identity.look() {
            self.reconnect().await;
        } else {
            self.say_hello();
        }
    }

    fn presence(&mut self, presence: Presence) {
        self.publish(Payload {
            channel: Channel::Presence,
            bytes: presence.as_str().into(),
            receipt: Receipt::None,
        });
    }

    /// Publishes, when there is a connection: at the next one everything is said anew.
    pub(super) fn publish(&mut self, payload: Payload) {
        if self.is_connected()
            && self
                .link
                .as_mut()
                .is_some_and(|link| !link.publish(payload))
        {
            self.overflow();
        }
    }

    /// Publishes a line of a job's log, or drops it.
    pub(super) fn log(&mut self, line: &LogLine) {
        self.publish(Payload {
            channel: Channel::Log,
            bytes: line.to_json(),
            receipt: Receipt::None,
        });
    }

    fn subscribed(&mut self, deploy: bool, echo: bool) {
        let topics = [(deploy, Channel::Deploy), (echo, Channel::Echo)];
        let denied = topics.into_iter().filter(|(granted, _)| !granted);
        self.denied = denied.map(|(_, channel)| channel).collect();
        if self.denied.is_empty() {
            self.denials.clear();
        } else {
            let machine = &self.settings.machine;
            let names = self.denied.iter();
            let names: Vec<_> = names
                .map(|channel| machine.topic(*channel).to_string())
                .collect();
            if self.denials.is_news(&names.join(", ")) {
                tracing::error!(
                    topics = names.join(", "),
                    "the broker refuses to let this agent read its topics, so no deployment can come; allow it: \
                     the client with this certificate reads its own `deploy` and `echo`"
                );
            }
        }
        self.ask_for_echo(deploy, echo);
    }

    /// The link takes nothing any more.
    fn overflow(&mut self) {
        tracing::warn!(broker = %self.url(), "the broker takes no more messages; connecting anew");
        self.ended(FailureKind::Lost, false);
    }

    /// The link is gone; `closed` when the broker had answered all and then closed it.
    fn lost(&mut self, kind: FailureKind, message: String, closed: bool) {
        let was_connected = self.is_connected();
        if self.failures[self.turn.index()].is_news(&message) {
            tracing::warn!(was_connected, "not connected to the broker: {message}");
        }
        let index = self.turn.index();
        if let Some(reach) = &mut self.reach {
            reach.failed(index, &message);
        }
        self.problem = Some(message);
        if kind == FailureKind::Tls && self.identity.refused() {
            // The same broker again, with what it took before.
            self.link = None;
            self.connected = None;
            if let Some(reach) = &mut self.reach {
                reach.expect_nothing();
            }
            return;
        }
        self.ended(kind, closed);
    }

    /// The link is gone, or of no use: when the next one is made, and to whom.
    fn ended(&mut self, kind: FailureKind, closed: bool) {
        self.link = None;
        let lasted = self.connected.take().map(|since| since.elapsed());
        // What broke by itself may have been taken over; what went silent was not.
        let lasted = lasted.filter(|_| kind == FailureKind::Lost);
        if self.reach.is_some() {
            self.ended_in_reach(kind);
            return;
        }
        let verdict = match lasted {
            Some(lasted) if self.backoff.is_short(lasted) => {
                let url = self.url().clone();
                let tls = self.identity.tls().clone();
                self.alive.spawn(alive::is_alive(url, tls));
                self.short = Some(Short { lasted, closed });
                return;
            }
            Some(lasted) => {
                let verdict = self.backoff.lost(lasted, End::Broken);
                self.turn.lost(self.backoff.is_calm());
                verdict
            }
            None if self.turn.failed() => {
                self.connect_at = Instant::now();
                return;
            }
            None => {
                self.backoff.failed(kind.is_local());
                Verdict::Ordinary
            }
        };
        self.wait(verdict);
    }

    /// It is known whether the broker runs that has closed a connection soon after it was made.
    fn ended_soon(&mut self, is_alive: bool) {
        let Some(Short { lasted, closed }) = self.short.take() else {
            return;
        };
        let end = match (is_alive, closed) {
            (false, _) => End::BrokerGone,
            (true, true) => End::Closed,
            (true, false) => End::Broken,
        };
        tracing::debug!(?end, ?lasted, "the connection did not last");
        let verdict = self.backoff.lost(lasted, end);
        self.turn.lost(self.backoff.is_calm());
        self.wait(verdict);
    }

    /// Chooses when to connect again.
    fn wait(&mut self, verdict: Verdict) {
        let wait = self.backoff.wait();
        if verdict == Verdict::TakenOver && self.taken_over.is_news("") {
            tracing::error!(
                machine = %self.settings.machine,
                wait_s = wait.as_secs(),
                "every connection ends right after it was made: most likely another machine uses this machine's \
                 certificate (a clone?), and each takes the connection away from the other; issue a certificate \
                 of its own for one of them: `hoist-certs issue agent NAME`; from now on this agent waits for \
                 minutes before it connects again"
            );
        }
        self.connect_at = Instant::now() + wait;
    }

    /// The machine was asleep, or its network or clock is another: the connection may be dead without anybody
    /// noticing, and what failed before says nothing any more.
    pub(super) async fn start_over(&mut self) {
        self.backoff.reset();
        if self.backoff.is_taken_over() && !self.is_connected() {
            // The wait is there to leave the other machine alone.
            return;
        }
        self.reconnect().await;
    }

    /// Ends the connection, cleanly if it is alive, and makes another at once, from the name lookup on.
    async fn reconnect(&mut self) {
        self.turn.restart();
        self.connect_at = Instant::now();
        // Whatever comes of it is of no interest any more.
        self.short = None;
        self.alive = JoinSet::new();
        let was_connected = self.connected.take().is_some();
        if let Some(reach) = &mut self.reach {
            reach.expect_nothing();
        }
        if let Some(link) = self.link.take()
            && was_connected
        {
            link.close().await;
        }
    }

    /// Says `offline` and ends the connection cleanly.
    pub(super) async fn stop(&mut self) {
        self.presence(Presence::Offline);
        let Some(mut link) = self.link.take() else {
            return;
        };
        let told = async {
            while link.is_busy() {
                if link.next().await.is_last() {
                    return;
                }
            }
        };
        if tokio::time::timeout(GOODBYE, told).await.is_err() {
            tracing::warn!("the broker did not acknowledge everything in time");
        }
        link.close().await;
    }
}

/// What comes of the link; the time to make one when there is none.
async fn on_link(link: Option<&mut Link>, connect_at: Instant, deadline: Option<Instant>) -> Woken {
    let Some(link) = link else {
        sleep_until(connect_at).await;
        return Woken::Connect;
    };
    match deadline {
        None => Woken::Link(link.next().await),
        Some(deadline) => match timeout_at(deadline, link.next()).await {
            Ok(event) => Woken::Link(event),
            Err(_) => Woken::NoAnswer,
        },
    }
}

#[cfg(test)]
mod tests;
