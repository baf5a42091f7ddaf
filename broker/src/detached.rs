//! Sessions that outlive their connections: what a client that is away misses, until it is back or too late.
//!
//! A session that is kept is a task of its own, with the session's inbox: it takes what its subscriptions bring.
//! A connection of the same client is given everything and goes on with it. What is kept is in memory: after the
//! broker's restart there are no sessions, and a client hears that in its CONNACK (session present: 0).

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};
use tracing::{debug, warn};

use crate::connection::{LeftWill, Shared};
use crate::edge::Registered;
use crate::guard::{Agents, Channels, Pattern, Peer};
use crate::hub::{Client, Number};
use crate::inbox::{Control, Event, Inbox};
use crate::observe::Held;
use crate::router::Watch;
use crate::session::{Ended, Kept};
use crate::settings::Absence;

const TOO_MUCH: &str = "its client has missed too much";

/// What one connection leaves to the next.
pub(crate) struct SessionState {
    pub(crate) kept: Box<Kept>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) watch: Option<Watch>,
    pub(crate) place: KeptPlace,
    /// The session ends when the certificate that it was last used with no longer counts.
    pub(crate) _registered: Registered,
    /// A will that is not due yet.
    pub(crate) will: Option<LeftWill>,
}

/// A session without a connection.
pub(crate) struct Detached {
    left: SessionState,
    number: Number,
    client: Client,
    control: Arc<Control>,
    shared: Arc<Shared>,
    ends: Instant,
    _counted: Held,
    alarm: Pin<Box<Sleep>>,
}

enum Woken {
    Told(Ended),
    Events(Vec<Event>),
    Due,
}

impl Detached {
    pub(crate) fn new(
        left: SessionState,
        number: Number,
        client: Client,
        control: Arc<Control>,
        shared: Arc<Shared>,
    ) -> Self {
        let now = Instant::now();
        let ends = now + left.kept.expiry();
        let delay = left.will.as_ref().map(LeftWill::delay);
        // The end of the session is the latest time for its will (MQTT 5, section 3.1.3.2.2).
        let will_due = delay.map_or(ends, |delay| ends.min(now + delay));
        let away = &shared.observer.metrics().away;
        let counted = Held::new(away.of(left.kept.peer().role));
        Self {
            _counted: counted,
            left,
            number,
            client,
            control,
            shared,
            ends,
            alarm: Box::pin(sleep_until(will_due)),
        }
    }

    /// Keeps the session until its client is back, or it ends.
    pub(crate) async fn run(mut self) {
        let why = loop {
            match poll_fn(|context| self.poll(context)).await {
                Woken::Told(Ended::TakenOver(_)) => return self.hand_over().await,
                Woken::Told(reason) if reason.silences() => {
                    let will = self.left.will.take();
                    self.left.will = will.and_then(LeftWill::of_a_stranger);
                    break "its certificate no longer counts";
                }
                Woken::Told(_) => break "the broker stops",
                Woken::Events(events) => self.take(events),
                Woken::Due if Instant::now() >= self.ends => break "its client stayed away",
                Woken::Due => {
                    if let Some(will) = self.left.will.take() {
                        self.shared.leave_will(will).await;
                    }
                    self.alarm.as_mut().reset(self.ends);
                }
            }
            if self.left.kept.has_missed_too_much() {
                break TOO_MUCH;
            }
        };
        self.give_up(why).await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        if let Poll::Ready(reason) = self.control.poll_end(context) {
            return Poll::Ready(Woken::Told(reason));
        }
        if let Poll::Ready(events) = self.left.inbox.poll_take(context) {
            return Poll::Ready(Woken::Events(events));
        }
        self.alarm.as_mut().poll(context).map(|()| Woken::Due)
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            if let Some((channel, since)) = self.left.kept.on(event) {
                let pattern = Pattern {
                    agents: Agents::All,
                    channels: Channels::One(channel),
                };
                let fleet = &self.left.kept.peer().fleet;
                let changes = self.shared.store.changes(fleet, &pattern, since);
                self.left.kept.refreshed_in_absence(channel, changes);
            }
        }
    }

    /// The client is back.
    async fn hand_over(mut self) {
        self.take(self.left.inbox.take());
        if self.left.kept.has_missed_too_much() {
            return self.give_up(TOO_MUCH).await;
        }
        self.control.leave(self.left);
        self.shared.hub.leave(self.number, None);
        self.control.mark_ended();
    }

    async fn give_up(self, why: &'static str) {
        let (peer, client_id) = &self.client;
        let dropped = self.left.kept.dropped();
        debug!(%peer, client_id, dropped, "a session ends without a connection: {why}");
        self.left.discard(&self.shared).await;
        self.shared.hub.leave(self.number, Some(self.client));
        self.control.mark_ended();
    }
}

impl SessionState {
    /// Ends the session: its will is due, and nobody tells it anything any more.
    pub(crate) async fn discard(self, shared: &Shared) {
        for machine in self.kept.machines() {
            shared.hub.unlisten(&self.inbox, &machine);
        }
        if let Some(will) = self.will {
            shared.leave_will(will).await;
        }
    }
}

impl std::fmt::Debug for SessionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "what a session of {} has left", self.kept.peer())
    }
}

/// How many sessions may outlive their connections, in all and of one identity.
#[derive(Debug)]
pub(crate) struct KeptSessions {
    all: usize,
    each: usize,
    taken: Mutex<HashMap<Arc<Peer>, usize>>,
}

/// The place of one of them; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct KeptPlace {
    peer: Arc<Peer>,
    kept_sessions: Arc<KeptSessions>,
}

impl KeptSessions {
    pub(crate) fn new(absence: &Absence) -> Arc<Self> {
        Arc::new(Self {
            all: absence.kept,
            each: absence.kept_per_identity,
            taken: Mutex::default(),
        })
    }

    /// Takes a place for a session of `peer`, or names the setting that stands in the way.
    pub(crate) fn take(
        kept_sessions: &Arc<Self>,
        peer: &Arc<Peer>,
    ) -> Result<KeptPlace, &'static str> {
        let mut taken = kept_sessions
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= kept_sessions.all {
            warn!(
                limit = kept_sessions.all,
                "no further session is kept: max_kept_sessions"
            );
            return Err("max_kept_sessions");
        }
        let of_peer = taken.get(peer).copied().unwrap_or(0);
        if of_peer >= kept_sessions.each {
            return Err("max_kept_sessions_per_identity");
        }
        taken.insert(Arc::clone(peer), of_peer + 1);
        Ok(KeptPlace {
            peer: Arc::clone(peer),
            kept_sessions: Arc::clone(kept_sessions),
        })
    }
}

impl KeptSessions {
    /// How many are taken, and how many there are.
    pub(crate) fn taken(&self) -> (usize, usize) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        (taken.values().sum(), self.all)
    }
}

impl Drop for KeptPlace {
    fn drop(&mut self) {
        let mut taken = self
            .kept_sessions
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = taken.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hoist_certs::Role;

    use crate::guard::tests::peer;

    use super::*;

    #[test]
    fn places_are_counted_in_all_and_for_each_and_come_free() {
        let kept_sessions = KeptSessions::new(&Absence {
            kept: 3,
            kept_per_identity: 2,
            ..Absence::default()
        });
        let [a, b] = ["a", "b"].map(|name| Arc::new(peer(Role::Monitor, "prod", name)));
        let first = KeptSessions::take(&kept_sessions, &a).unwrap();
        let _second = KeptSessions::take(&kept_sessions, &a).unwrap();
        let refused = KeptSessions::take(&kept_sessions, &a).unwrap_err();
        assert_eq!(refused, "max_kept_sessions_per_identity");
        let _third = KeptSessions::take(&kept_sessions, &b).unwrap();
        assert_eq!(
            KeptSessions::take(&kept_sessions, &b).unwrap_err(),
            "max_kept_sessions"
        );
        drop(first);
        KeptSessions::take(&kept_sessions, &b).unwrap();
        assert_eq!(kept_sessions.taken.lock().unwrap().len(), 2);
    }
}
