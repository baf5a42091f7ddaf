//! What a session wants done, with the store, the hub and the router.

use std::sync::Arc;

use hoist_protocol::{Channel, Machine};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::debug;

use super::{Connection, note_refusal, origin_of};
use crate::detached::KeptSessions;
use crate::guard::{Agents, Channels, Pattern};
use crate::hub::TakeoverLoop;
use crate::inbox::Ticket;
use crate::observe::{Held, Origin};
use crate::router::WatchError;
use crate::session::{Admitted, Claim, Effect, Ended, NotGranted, Request};
use crate::store::{Outcome, Publication, Reply, Snapshot, StoreEnded};

/// What the session wants done and others have to answer first.
pub(super) enum Work {
    Claim(Claim),
    /// The store's queue is full.
    Store(Publication, Ticket),
    Subscribe(u16, Vec<Request>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Carries out what can be done at once. What others have to answer first is returned.
    pub(super) fn carry_out(&mut self, effect: Effect) -> Option<Work> {
        match effect {
            Effect::Publish(admitted, ticket) => return self.publish(admitted, ticket),
            Effect::Claim(claim) => return Some(Work::Claim(claim)),
            Effect::Subscribe(packet_id, requests) => {
                return Some(Work::Subscribe(packet_id, requests));
            }
            Effect::Refused(refusal) => {
                self.meter.asked(1, Instant::now());
                self.refused(&refusal);
            }
            Effect::Unwatch(agent) => {
                let machine = Machine::new(self.session.peer().fleet.clone(), agent);
                self.shared.hub.unlisten(&self.inbox, &machine);
            }
            Effect::UnwatchAll => self.watch = None,
            Effect::Refresh(channel, since) => {
                let pattern = Pattern {
                    agents: Agents::All,
                    channels: Channels::One(channel),
                };
                let fleet = self.session.peer().fleet.clone();
                let changes = self.shared.store.changes(&fleet, &pattern, since);
                debug!(%channel, changes = changes.messages.len(), "read again after a gap");
                self.session.refreshed(channel, changes);
            }
        }
        None
    }

    fn refused(&self, refusal: &Ended) {
        let client_id = self.client.as_ref().map_or("", |(_, id)| id.as_str());
        let (peer, address) = (self.session.peer(), self.address);
        note_refusal(&self.shared, peer, client_id, address, refusal);
    }

    /// Publishes. Only a store with a full queue has to be waited for.
    fn publish(&mut self, admitted: Admitted, ticket: Ticket) -> Option<Work> {
        self.meter.published(Instant::now());
        self.count_received(admitted.channel());
        match admitted {
            Admitted::Relay(message) => {
                self.shared.relay(message);
                self.session.settled(ticket, Outcome::Retained);
                None
            }
            Admitted::Store(publication) => {
                let reply = self.reply(&publication, ticket);
                match self.shared.store.offer(publication, reply) {
                    Ok(left) => left.map(|left| Work::Store(left, ticket)),
                    Err(StoreEnded) => {
                        self.session.end(Ended::BrokerFailed);
                        None
                    }
                }
            }
        }
    }

    /// Does what had to be waited for.
    pub(super) async fn wait_for(&mut self, work: Work) {
        match work {
            Work::Claim(claim) => self.claim(claim).await,
            Work::Store(publication, ticket) => {
                let reply = self.reply(&publication, ticket);
                if self.shared.store.publish(publication, reply).await.is_err() {
                    self.session.end(Ended::BrokerFailed);
                }
            }
            Work::Subscribe(packet_id, requests) => self.subscribe(packet_id, requests).await,
        }
    }

    fn count_received(&self, channel: Channel) {
        let metrics = self.shared.observer.metrics();
        metrics.received.of(channel).inc();
    }

    /// Where the store answers a publication, with who this is when the audit log is to tell it.
    fn reply(&mut self, publication: &Publication, ticket: Ticket) -> Reply {
        let origin = (publication.topic.channel == Channel::Deploy).then(|| self.origin());
        Reply::Session(Arc::clone(&self.inbox), ticket, origin)
    }

    fn origin(&mut self) -> Arc<Origin> {
        let origin = self.origin.get_or_insert_with(|| {
            let peer = Arc::clone(self.session.peer());
            origin_of(self.address, peer, self.client.as_ref())
        });
        Arc::clone(origin)
    }

    async fn claim(&mut self, claim: Claim) {
        let client = (Arc::clone(self.session.peer()), claim.client_id);
        let mut left = None;
        match self.shared.hub.claim(self.number, &client, self.address) {
            Ok(Some(before)) => {
                self.shared.observer.metrics().takeovers.inc();
                // Its will has to be applied before anybody hears that the new session is there.
                before.ended().await;
                left = before.take_state();
            }
            Ok(None) => {}
            Err(TakeoverLoop) => return self.session.unavailable(Ended::TakeoverLoop),
        }
        self.client = Some(client.clone());
        match left {
            Some(left) if claim.clean_start => left.discard(&self.shared).await,
            Some(left) => {
                // A will that was not due yet never will be: the client is back.
                (self.inbox, self.watch) = (left.inbox, left.watch);
                self.session.resume(left.kept);
                self.place = claim.outlives.then_some(left.place);
            }
            None => {}
        }
        if let Err(refusal) = self.take_place(claim.outlives) {
            return self.session.unavailable(refusal);
        }
        match self.control.told_to_end() {
            // A third one has taken over meanwhile, or the broker stops.
            Some(reason) => self.session.unavailable(reason),
            None => {
                let (peer, client_id) = &client;
                debug!(%peer, client_id, address = %self.address, "connected");
                let sessions = &self.shared.observer.metrics().sessions;
                self.counted = Some(Held::new(sessions.of(peer.role)));
                self.session.claimed();
                self.heard = Instant::now();
            }
        }
    }

    fn take_place(&mut self, wanted: bool) -> Result<(), Ended> {
        if wanted && self.place.is_none() {
            let taken = KeptSessions::take(&self.shared.kept_sessions, self.session.peer());
            self.place = Some(taken.map_err(Ended::TooManySessions)?);
        }
        Ok(())
    }

    async fn subscribe(&mut self, packet_id: u16, mut requests: Vec<Request>) {
        // What is here already comes before the snapshots, which know only the newest of it.
        for event in self.inbox.take() {
            self.session.on(event);
        }
        let fleet = self.session.peer().fleet.clone();
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for request in &mut requests {
            let Ok(granted) = &request.granted else {
                continue;
            };
            let pattern = &granted.pattern;
            // First listen, then read: what is committed between is told twice and recognised by its commit.
            match &pattern.agents {
                Agents::One(agent) => {
                    let machine = Machine::new(fleet.clone(), agent.clone());
                    self.shared.hub.listen(&self.inbox, &machine);
                }
                Agents::All => {
                    let machine = self.session.peer().machine();
                    let channels = Channel::ALL.into_iter().filter(|channel| {
                        pattern.channels.hold(*channel)
                            && self.session.allows(&machine.topic(*channel))
                    });
                    let refused = match self.watch(channels.collect()).await {
                        Ok(()) => None,
                        Err(WatchError::Down) => return self.session.end(Ended::BrokerFailed),
                        Err(WatchError::TooMany) => Some(NotGranted::Watchers),
                        Err(WatchError::FleetHasEnough) => Some(NotGranted::FleetWatchers),
                    };
                    if let Some(why) = refused {
                        self.refused(&request.refuse(why));
                        continue;
                    }
                }
            }
            let session = &self.session;
            let snapshot = self
                .shared
                .store
                .snapshot(&fleet, pattern, |t| session.allows(t));
            self.meter.asked(cost(&snapshot), Instant::now());
            snapshots.push(snapshot);
            // A packet may ask for the whole fleet many times: others have their turn between.
            tokio::task::consume_budget().await;
        }
        self.session.subscribed(packet_id, requests, snapshots);
    }

    async fn watch(&mut self, channels: Vec<Channel>) -> Result<(), WatchError> {
        let watch = match self.watch.take() {
            Some(watch) => watch,
            None => {
                let router = Arc::clone(&self.shared.router);
                let (inbox, fleet) = (Arc::clone(&self.inbox), self.session.peer().fleet.clone());
                let runtime = tokio::runtime::Handle::current();
                // The router answers when it comes to it: that must not hold up a worker.
                tokio::task::spawn_blocking(move || router.watch(inbox, fleet, &runtime))
                    .await
                    .map_err(|_| WatchError::Down)??
            }
        };
        let watch = self.watch.insert(watch);
        for channel in channels {
            watch.channel(channel).await?;
        }
        Ok(())
    }
}

/// How many retained messages cost as much as a publish when a subscription brings them.
const BROUGHT_PER_PUBLISH: usize = 64;

/// What a subscription costs, in publishes.
fn cost(snapshot: &Snapshot) -> u32 {
    let brought = snapshot.messages.len() / BROUGHT_PER_PUBLISH;
    u32::try_from(brought + 1).unwrap_or(u32::MAX)
}
