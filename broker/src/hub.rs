//! Who is connected, under which client id, and who listens to which machine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use hoist_protocol::Machine;
use tokio::time::Instant;

use crate::guard::{Bucket, Peer};
use crate::inbox::{Control, Event, Inbox, Via};
use crate::message::Message;
use crate::session::Ended;
use crate::settings::{Limits, Rate};

/// The number of a connection; no other connection of this process has it.
pub(crate) type Number = u64;

/// What a session is found by: two sessions are the same client when certificate identity and client id are the
/// same. Another identity can never take a session over.
pub(crate) type Client = (Arc<Peer>, String);

/// The live sessions.
#[derive(Debug)]
pub(crate) struct Hub {
    sessions: Mutex<Sessions>,
    /// How often a client may take over its own session.
    takeovers: Rate,
    /// The sessions with a subscription that names this machine.
    listeners: RwLock<HashMap<Machine, Listeners>>,
}

type Listeners = Vec<Arc<Inbox>>;

#[derive(Debug, Default)]
struct Sessions {
    all: HashMap<Number, Arc<Control>>,
    clients: HashMap<Client, Number>,
    /// How often each has been taken over of late.
    taken_over: HashMap<Client, Bucket>,
    stopping: bool,
}

/// The broker stops and takes no more sessions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stopping;

/// A client takes its session over too often: most likely two machines have the same certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TakeoverLoop;

impl Default for Hub {
    fn default() -> Self {
        Self::new(Limits::default().takeover_rate)
    }
}

impl Hub {
    /// Nobody is there yet.
    pub(crate) fn new(takeovers: Rate) -> Self {
        Self {
            sessions: Mutex::default(),
            takeovers,
            listeners: RwLock::default(),
        }
    }

    /// Notes a connection, so that it can be told to end.
    pub(crate) fn enter(&self, number: Number, control: &Arc<Control>) -> Result<(), Stopping> {
        let mut sessions = self.sessions();
        if sessions.stopping {
            return Err(Stopping);
        }
        sessions.all.insert(number, Arc::clone(control));
        Ok(())
    }

    /// Makes `number` the session of a client and ends the one before, whose control is returned: its will is
    /// applied when that says that it has ended. In a loop of takeovers the one that is there stays.
    pub(crate) fn claim(
        &self,
        number: Number,
        client: &Client,
        from: SocketAddr,
    ) -> Result<Option<Arc<Control>>, TakeoverLoop> {
        let mut sessions = self.sessions();
        let before = sessions.clients.get(client);
        let before = before.and_then(|before| sessions.all.get(before)).cloned();
        if before.is_some() {
            let bucket = sessions.taken_over.entry(client.clone()).or_default();
            if !bucket.take(self.takeovers, Instant::now()) {
                return Err(TakeoverLoop);
            }
        }
        sessions.clients.insert(client.clone(), number);
        if let Some(before) = &before {
            before.end(Ended::TakenOver(from));
        }
        Ok(before)
    }

    /// Forgets the takeovers that are long enough ago.
    pub(crate) fn forget(&self, now: Instant) {
        let mut sessions = self.sessions();
        sessions.taken_over.retain(|_, bucket| !bucket.is_full(now));
    }

    /// Forgets a connection and, unless it was taken over, its client.
    pub(crate) fn leave(&self, number: Number, client: Option<Client>) {
        let mut sessions = self.sessions();
        sessions.all.remove(&number);
        if let Some(client) = client
            && sessions.clients.get(&client) == Some(&number)
        {
            sessions.clients.remove(&client);
        }
    }

    /// Tells all sessions to end, and lets no more in.
    pub(crate) fn stop(&self, reason: &Ended) {
        let mut sessions = self.sessions();
        sessions.stopping = true;
        for control in sessions.all.values() {
            control.end(reason.clone());
        }
    }

    /// Tells a session of everything on the topics of `machine` from now on.
    pub(crate) fn listen(&self, inbox: &Arc<Inbox>, machine: &Machine) {
        let mut listeners = self
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = listeners.entry(machine.clone()).or_default();
        if entry.iter().all(|other| !Arc::ptr_eq(other, inbox)) {
            entry.push(Arc::clone(inbox));
        }
    }

    /// Ends that.
    pub(crate) fn unlisten(&self, inbox: &Arc<Inbox>, machine: &Machine) {
        let mut listeners = self
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = listeners.get_mut(machine) {
            entry.retain(|other| !Arc::ptr_eq(other, inbox));
            if entry.is_empty() {
                listeners.remove(machine);
            }
        }
    }

    /// Tells those who listen to its machine of a message.
    pub(crate) fn tell(&self, message: &Arc<Message>) {
        let listeners = self
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for inbox in listeners.get(&message.topic.machine).into_iter().flatten() {
            inbox.push(Event::Message(Arc::clone(message), Via::Direct));
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing here panics while the lock is held.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use hoist_certs::Role;

    use crate::guard::tests::peer;

    use super::*;

    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9))
    }

    #[test]
    fn a_client_is_taken_over_by_the_same_identity_only() {
        let hub = Hub::default();
        let (first, second, other) = (Control::new(), Control::new(), Control::new());
        for (number, control) in [(1, &first), (2, &second), (3, &other)] {
            hub.enter(number, control).unwrap();
        }
        let client = |fleet| {
            (
                Arc::new(peer(Role::Agent, fleet, "web-1")),
                "web-1".to_owned(),
            )
        };
        let (web, namesake) = (client("prod"), client("test"));
        assert!(hub.claim(1, &web, address()).unwrap().is_none());
        assert!(hub.claim(3, &namesake, address()).unwrap().is_none());
        assert_eq!(first.told_to_end(), None);
        assert!(hub.claim(2, &web, address()).unwrap().is_some());
        assert_eq!(first.told_to_end(), Some(Ended::TakenOver(address())));
        assert_eq!(other.told_to_end(), None);
        // The old one leaves late: the client stays with the new one.
        hub.leave(1, Some(web.clone()));
        let third = Control::new();
        hub.enter(4, &third).unwrap();
        assert!(hub.claim(4, &web, address()).unwrap().is_some());
        assert_eq!(second.told_to_end(), Some(Ended::TakenOver(address())));
    }

    #[test]
    fn in_a_loop_of_takeovers_the_one_that_is_there_stays() {
        let hub = Hub::new("1/min burst 2".parse().unwrap());
        let client = (
            Arc::new(peer(Role::Agent, "prod", "web-1")),
            "web-1".to_owned(),
        );
        let other = (
            Arc::new(peer(Role::Agent, "prod", "web-2")),
            "web-2".to_owned(),
        );
        let controls: Vec<_> = (0..5).map(|_| Control::new()).collect();
        for (number, control) in (0..).zip(&controls) {
            hub.enter(number, control).unwrap();
        }
        let claim = |number, client| hub.claim(number, client, address()).map(|_| ());
        for number in 0..3 {
            assert_eq!(claim(number, &client), Ok(()));
        }
        assert_eq!(claim(3, &client), Err(TakeoverLoop));
        assert_eq!(controls[2].told_to_end(), None);
        assert_eq!(claim(4, &other), Ok(()));
        // The one that is there leaves: there is nothing to take over.
        hub.leave(2, Some(client.clone()));
        assert_eq!(claim(3, &client), Ok(()));
        hub.forget(Instant::now());
        assert_eq!(hub.sessions().taken_over.len(), 1);
        hub.forget(Instant::now() + std::time::Duration::from_secs(3600));
        assert!(hub.sessions().taken_over.is_empty());
    }

    #[test]
    fn a_stop_reaches_everybody_and_lets_nobody_in() {
        let hub = Hub::default();
        let control = Control::new();
        hub.enter(1, &control).unwrap();
        hub.stop(&Ended::Stopping);
        assert_eq!(control.told_to_end(), Some(Ended::Stopping));
        assert_eq!(hub.enter(2, &Control::new()), Err(Stopping));
    }
}
