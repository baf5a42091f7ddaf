//! How the rest of the broker reaches a session: events in order, and one reason to end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hoist_protocol::Channel;
use tokio::sync::Semaphore;

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

/// One session's inbox. The session empties it whenever it runs, whatever its peer does; what may pile up is
/// bounded there.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    /// Closed when the session has ended and its will is applied.
    ended: Semaphore,
}

#[derive(Debug, Default)]
struct Queue {
    events: Vec<Event>,
    end: Option<Ended>,
    waker: Option<Waker>,
}

impl Inbox {
    /// An empty inbox.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            ended: Semaphore::new(0),
        })
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

    /// Tells the session to end; the first reason counts.
    pub(crate) fn end(&self, reason: Ended) {
        let waker = {
            let mut queue = self.lock();
            queue.end.get_or_insert(reason);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Why the session was told to end, when it was.
    pub(crate) fn told_to_end(&self) -> Option<Ended> {
        self.lock().end.clone()
    }

    /// Takes all events out; pending when there is neither an event nor a reason to end.
    pub(crate) fn poll_take(&self, context: &Context<'_>) -> Poll<(Vec<Event>, Option<Ended>)> {
        let mut queue = self.lock();
        if queue.events.is_empty() && queue.end.is_none() {
            let current = queue.waker.as_ref();
            if !current.is_some_and(|waker| waker.will_wake(context.waker())) {
                queue.waker = Some(context.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready((std::mem::take(&mut queue.events), queue.end.clone()))
    }

    /// Says that the session has ended and its will is applied.
    pub(crate) fn mark_ended(&self) {
        self.ended.close();
    }

    /// Waits for [`Inbox::mark_ended`].
    pub(crate) async fn ended(&self) {
        // There are no permits: this returns when the semaphore is closed, with an error that says so.
        self.ended.acquire().await.ok();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing here panics while the lock is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
