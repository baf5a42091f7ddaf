//! How the rest of the broker reaches a session, events in order, and its connection, with one reason to end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hoist_protocol::Channel;
use tokio::sync::Semaphore;

use crate::detached::SessionState;
use crate::message::{Commit, Message};
use crate::session::Ended;
use crate::store::Outcome;

/// A publication of a session that waits for the store.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Ticket(pub(crate) u64);

/// The way a message takes to a session; a subscription is served by one of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Via {
    /// Straight from its publisher or the store, for filters that name one machine.
    Direct,
    /// Over the router, for filters with a wildcard for the machine.
    Router,
}

/// What a session is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// What became of a publication.
    Settled(Ticket, Outcome),
    /// A message that may match a subscription.
    Message(Arc<Message>, Via),
    /// The router has skipped messages of this channel after the commit: the store has to be read.
    Gap(Channel, Commit),
}

/// One session's inbox: it goes with the session from one connection to the next. The session empties it whenever
/// it runs, whatever its peer does; what may pile up is bounded there.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    events: Vec<Event>,
    waker: Option<Waker>,
}

impl Inbox {
    /// An empty inbox.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Tells the session something.
    pub(crate) fn push(&self, event: Event) {
        let waker = {
            let mut queue = self.lock();
            queue.events.push(event);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes all events out; pending when there is none.
    pub(crate) fn poll_take(&self, context: &Context<'_>) -> Poll<Vec<Event>> {
        let mut queue = self.lock();
        if queue.events.is_empty() {
            remember(&mut queue.waker, context);
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut queue.events))
    }

    /// Takes all events out that are there.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing here panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the rest of the broker ends one connection, and waits for its end.
#[derive(Debug)]
pub(crate) struct Control {
    end: Mutex<End>,
    /// Closed when the connection has ended and its will is applied.
    ended: Semaphore,
}

#[derive(Debug, Default)]
struct End {
    reason: Option<Ended>,
    waker: Option<Waker>,
    /// For the connection that has taken over.
    left: Option<Box<SessionState>>,
}

impl Control {
    /// Of a connection that nobody has told to end.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            end: Mutex::default(),
            ended: Semaphore::new(0),
        })
    }

    /// Tells the connection to end; the first reason counts.
    pub(crate) fn end(&self, reason: Ended) {
        let waker = {
            let mut end = self.lock();
            end.reason.get_or_insert(reason);
            end.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Why the connection was told to end, when it was.
    pub(crate) fn told_to_end(&self) -> Option<Ended> {
        self.lock().reason.clone()
    }

    /// Ready when the connection was told to end.
    pub(crate) fn poll_end(&self, context: &Context<'_>) -> Poll<Ended> {
        let mut end = self.lock();
        match &end.reason {
            Some(reason) => Poll::Ready(reason.clone()),
            None => {
                remember(&mut end.waker, context);
                Poll::Pending
            }
        }
    }

    /// Leaves a session to the connection that has taken over.
    pub(crate) fn leave(&self, left: SessionState) {
        self.lock().left = Some(Box::new(left));
    }

    /// Takes what was left.
    pub(crate) fn take_state(&self) -> Option<Box<SessionState>> {
        self.lock().left.take()
    }

    /// Says that the connection has ended and its will is applied.
    pub(crate) fn mark_ended(&self) {
        self.ended.close();
    }

    /// Waits for [`Control::mark_ended`].
    pub(crate) async fn ended(&self) {
        // There are no permits: this returns when the semaphore is closed, with an error that says so.
        self.ended.acquire().await.ok();
    }

    fn lock(&self) -> MutexGuard<'_, End> {
        // Nothing here panics while the lock is held.
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(waker: &mut Option<Waker>, context: &Context<'_>) {
    if !waker
        .as_ref()
        .is_some_and(|waker| waker.will_wake(context.waker()))
    {
        *waker = Some(context.waker().clone());
    }
}
