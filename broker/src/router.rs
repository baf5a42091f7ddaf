//! rumqttd's router as the bus for what is watched over the whole fleet.
//!
//! Only its router is used: its listeners are never started. It has one static filter a channel and keeps
//! nothing: messages go in numbered, a watcher that finds a number missing (a slow one's cursor jumps) says so,
//! and its session reads the store. Log lines may get lost here, retained messages never.

mod passed;
mod places;
mod pump;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hoist_protocol::{Channel, FleetName};
use rumqttd::local::{LinkError, LinkRx, LinkTx};
use rumqttd::{Broker, Config, RouterConfig};
use tokio::sync::mpsc;
use tracing::debug;

use crate::inbox::Inbox;
use crate::message::Message;
use crate::settings::{Fleets, WATCHERS};
use crate::thread::Thread;
use passed::Passed;
use places::Places;
use pump::Pump;
pub(crate) use pump::Watch;

/// What may be watched; an echo is between an agent and itself.
const CHANNELS: [Channel; 5] = [
    Channel::Deploy,
    Channel::Status,
    Channel::Presence,
    Channel::History,
    Channel::Log,
];

/// The length of a channel's log in the router: segments, and bytes of each. What falls out of it before a watcher has
/// read it is read from the store. rumqttd counts topics and payloads alone, and an entry costs some 400 bytes more: a log
/// full of the shortest messages takes about 9 MB.
const SEGMENTS: usize = 4;
const SEGMENT_LEN: usize = 256 * 1024;

/// Messages that a watcher is handed at once.
const FORWARD_LEN: u64 = 150;

/// Most log lines on their way into the router; more are dropped.
const RELAY_LEN: usize = 1024;

/// The router has ended, or takes no more links.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A link to it is broken: its thread has ended.
    #[error("the link to rumqttd's router is broken")]
    Link(#[source] Box<LinkError>),
    /// The thread of log lines cannot be started.
    #[error("cannot start the thread for log lines")]
    Thread(#[source] std::io::Error),
}

impl From<LinkError> for RouterError {
    fn from(error: LinkError) -> Self {
        // It carries the whole event that could not be sent.
        Self::Link(Box::new(error))
    }
}

/// What all sides of the router share, of each channel.
#[derive(Default)]
struct Bus {
    /// How far it is numbered.
    positions: [AtomicU64; CHANNELS.len()],
    /// How many watch it.
    watchers: [AtomicUsize; CHANNELS.len()],
    passed: Passed,
}

/// The router's side for sessions.
pub(crate) struct Router {
    broker: Broker,
    bus: Arc<Bus>,
    places: Places,
    down: mpsc::UnboundedSender<RouterError>,
}

/// One way into the router.
pub(crate) struct Publisher {
    link: LinkTx,
    bus: Arc<Bus>,
}

/// The way for log lines, which never waits.
#[derive(Clone)]
pub(crate) struct Relay(mpsc::Sender<Arc<Message>>);

/// A session cannot watch the fleet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WatchError {
    /// There are too many watchers.
    TooMany,
    /// The fleet has as many as it may.
    FleetHasEnough,
    /// The router has ended.
    Down,
}

impl Router {
    /// Starts the router's thread, and the one of log lines, which is returned. Blocks: call it off the async workers.
    /// What breaks later is said on `down`.
    pub(crate) fn start(
        fleets: Arc<Fleets>,
        down: mpsc::UnboundedSender<RouterError>,
    ) -> Result<(Self, Publisher, Relay, Thread), RouterError> {
        let filters = CHANNELS.map(|channel| channel.as_str().to_owned()).to_vec();
        let broker = Broker::new(Config {
            router: RouterConfig {
                // The watchers and the two publishers.
                max_connections: WATCHERS + 2,
                max_outgoing_packet_count: FORWARD_LEN,
                max_segment_size: SEGMENT_LEN,
                max_segment_count: SEGMENTS,
                initialized_filters: Some(filters),
                ..RouterConfig::default()
            },
            ..Config::default()
        });
        let bus = Arc::<Bus>::default();
        let runtime = tokio::runtime::Handle::current();
        let publisher = |name| -> Result<Publisher, RouterError> {
            let (link, answers) = broker.link(name)?;
            // The router ends a link whose other half is gone.
            runtime.spawn(hold(answers, down.clone()));
            Ok(Publisher {
                link,
                bus: Arc::clone(&bus),
            })
        };
        let (store, mut lines) = (publisher("store")?, publisher("lines")?);
        let (relay, mut queue) = mpsc::channel::<Arc<Message>>(RELAY_LEN);
        let lost = down.clone();
        let lines = Thread::start("lines", move || {
            while let Some(message) = queue.blocking_recv() {
                if let Err(error) = lines.publish(&message) {
                    // The receiver is gone only when the broker ends already.
                    lost.send(error).ok();
                    return;
                }
            }
        });
        let lines = lines.map_err(RouterError::Thread)?;
        let router = Self {
            broker,
            bus,
            places: Places::new(fleets),
            down,
        };
        Ok((router, store, Relay(relay), lines))
    }

    /// Makes the router's thread panic, as it does over a topic that no session would ever pass to it.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        let (mut link, _answers) = self.broker.link("killer").unwrap();
        link.publish("\u{e9}", "x").unwrap();
    }

    /// How many sessions watch each fleet.
    pub(crate) fn watchers(&self) -> HashMap<FleetName, usize> {
        self.places.of_fleets()
    }

    /// Opens a link for a session of `fleet`, which tells `inbox`. Blocks for as long as the router takes to
    /// answer: call it off the async workers.
    pub(crate) fn watch(
        &self,
        inbox: Arc<Inbox>,
        fleet: FleetName,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Watch, WatchError> {
        let place = self.places.take(&fleet)?;
        let link = self.broker.link(&place.link_name());
        let (link, notifications) = match link {
            Ok(link) => link,
            Err(error) => {
                // The receiver is gone only when the broker ends already.
                self.down.send(error.into()).ok();
                return Err(WatchError::Down);
            }
        };
        let bus = Arc::clone(&self.bus);
        let (watch, pump) = Pump::new((link, notifications), inbox, fleet, bus);
        let down = self.down.clone();
        runtime.spawn(async move {
            let result = pump.run().await;
            drop(place);
            if let Err(error) = result {
                // The receiver is gone only when the broker ends already.
                down.send(error).ok();
            }
        });
        Ok(watch)
    }
}

/// Says when the router has ended: nobody else would notice while nothing is published.
async fn hold(mut answers: LinkRx, down: mpsc::UnboundedSender<RouterError>) {
    loop {
        match answers.next().await {
            Ok(notification) => debug!(?notification, "the router answers a publisher"),
            Err(error) => {
                // The receiver is gone only when the broker ends already.
                down.send(error.into()).ok();
                return;
            }
        }
    }
}

impl Publisher {
    /// Passes a message to all who watch its channel.
    pub(crate) fn publish(&mut self, message: &Arc<Message>) -> Result<(), RouterError> {
        let Some(position) = position(message.topic.channel) else {
            return Ok(());
        };
        // Who begins to watch is counted first and reads the store then: it finds what is not passed here.
        if self.bus.watchers[position].load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let number = self.bus.positions[position].fetch_add(1, Ordering::SeqCst) + 1;
        self.bus.passed.note(position, number, message);
        let channel = message.topic.channel.as_str();
        self.link.publish(channel, wire::encode(number, message))?;
        Ok(())
    }
}

impl Relay {
    /// Passes a log line on; drops it when too many are on their way. False when it was dropped.
    pub(crate) fn pass(&self, message: Arc<Message>) -> bool {
        self.0.try_send(message).is_ok()
    }
}

fn position(channel: Channel) -> Option<usize> {
    CHANNELS.iter().position(|watched| *watched == channel)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hoist_protocol::{AgentName, Machine};

    use super::*;
    use crate::inbox::{Event, Via};
    use crate::message::{Author, Commit, Extras, Qos};

    pub(super) fn message(channel: Channel, commit: u64, len: usize) -> Message {
        let fleet = FleetName::new("prod").unwrap();
        Message {
            topic: Machine::new(fleet, AgentName::new("web-1").unwrap()).topic(channel),
            payload: Arc::from(vec![b'x'; len]),
            qos: Qos::AtLeastOnce,
            commit: channel.is_retained().then(|| Commit::new(commit)),
            author: Author(3),
            extras: (len > 50).then(|| {
                Arc::new(Extras {
                    properties: Box::from([1, 1]),
                    expires_at_ms: Some(9),
                })
            }),
        }
    }

    async fn next(inbox: &Inbox) -> Vec<Event> {
        poll_fn(|context| inbox.poll_take(context)).await
    }

    #[tokio::test]
    async fn a_router_that_dies_is_noticed_although_nothing_is_published() {
        let (down, mut lost) = mpsc::unbounded_channel();
        let started = tokio::task::spawn_blocking(|| Router::start(Arc::default(), down))
            .await
            .unwrap();
        let (router, _publisher, _relay, _lines) = started.unwrap();
        let killed = tokio::task::spawn_blocking(move || router.kill()).await;
        killed.unwrap();
        assert!(matches!(lost.recv().await, Some(RouterError::Link(_))));
    }

    #[tokio::test]
    async fn a_panic_over_a_log_line_is_told() {
        let (down, _lost) = mpsc::unbounded_channel();
        let started = tokio::task::spawn_blocking(|| Router::start(Arc::default(), down))
            .await
            .unwrap();
        let (router, _publisher, relay, lines) = started.unwrap();
        let watched = position(Channel::Log).unwrap();
        router.bus.watchers[watched].fetch_add(1, Ordering::SeqCst);
        // No session passes on properties that cannot be written down.
        let extras = Extras {
            properties: Box::from(vec![0; usize::from(u16::MAX) + 1]),
            expires_at_ms: None,
        };
        let mut line = message(Channel::Log, 0, 10);
        line.extras = Some(Arc::new(extras));
        assert!(relay.pass(Arc::new(line)));
        assert_eq!(lines.panicked().await, "lines");
    }

    #[tokio::test]
    async fn all_who_watch_hold_the_same_message() {
        let (down, _lost) = mpsc::unbounded_channel();
        let started = tokio::task::spawn_blocking(|| Router::start(Arc::default(), down)).await;
        let (router, mut publisher, _relay, _lines) = started.unwrap().unwrap();
        let router = Arc::new(router);
        let (inboxes, mut watches) = ([Inbox::new(), Inbox::new()], Vec::new());
        for inbox in &inboxes {
            let (router, inbox) = (Arc::clone(&router), Arc::clone(inbox));
            let runtime = tokio::runtime::Handle::current();
            let watch = tokio::task::spawn_blocking(move || {
                router.watch(inbox, FleetName::new("prod").unwrap(), &runtime)
            });
            let watch = watch.await.unwrap().unwrap();
            watch.channel(Channel::Status).await.unwrap();
            watches.push(watch);
        }
        // One that its publisher still holds, and one that it does not.
        let held = Arc::new(message(Channel::Status, 1, 10));
        publisher.publish(&held).unwrap();
        let dropped = Arc::new(message(Channel::Status, 2, 100));
        publisher.publish(&dropped).unwrap();
        drop(dropped);
        let mut seen = Vec::new();
        for inbox in &inboxes {
            let mut messages = Vec::new();
            while messages.len() < 2 {
                for event in next(inbox).await {
                    let Event::Message(message, Via::Router) = event else {
                        panic!("{event:?}");
                    };
                    messages.push(message);
                }
            }
            seen.push(messages);
        }
        assert!(Arc::ptr_eq(&seen[0][0], &held) && Arc::ptr_eq(&seen[1][0], &held));
        assert!(Arc::ptr_eq(&seen[0][1], &seen[1][1]));
        assert_eq!(*seen[0][1], message(Channel::Status, 2, 100));
    }

    /// One thread, so that the pump stands still while the test does not wait.
    #[tokio::test]
    async fn what_falls_out_of_the_routers_log_is_noticed_and_the_newest_still_comes() {
        let (down, _lost) = mpsc::unbounded_channel();
        let started = tokio::task::spawn_blocking(|| Router::start(Arc::default(), down))
            .await
            .unwrap();
        let (router, mut publisher, _relay, _lines) = started.unwrap();
        let router = Arc::new(router);
        let inbox = Inbox::new();
        let (fleet, runtime) = (
            FleetName::new("prod").unwrap(),
            tokio::runtime::Handle::current(),
        );
        let watch = tokio::task::spawn_blocking({
            let (router, inbox) = (Arc::clone(&router), Arc::clone(&inbox));
            move || router.watch(inbox, fleet, &runtime)
        });
        let watch = watch.await.unwrap().unwrap();
        watch.channel(Channel::Status).await.unwrap();
        let publish = |publisher: &mut Publisher, commit, len| {
            let message = Arc::new(message(Channel::Status, commit, len));
            publisher.publish(&message).unwrap();
        };
        publish(&mut publisher, 1, 10);
        assert!(matches!(&next(&inbox).await[..], [Event::Message(..)]));
        // The router hands over 200 at most before it is asked for more, and keeps about 65 of this size.
        let last = 1000;
        for commit in 2..=last {
            publish(&mut publisher, commit, 16_000);
        }
        let (mut seen, mut gaps) = (1, 0);
        let mut after_gap = false;
        while seen < last {
            for event in next(&inbox).await {
                match event {
                    Event::Message(message, Via::Router) => {
                        let commit = message.commit.unwrap().number();
                        assert!(
                            commit == seen + 1 || after_gap,
                            "{commit} came after {seen}"
                        );
                        (seen, after_gap) = (commit, false);
                    }
                    Event::Gap(Channel::Status, since) => {
                        assert_eq!(since.number(), seen, "from where the store is to be read");
                        (gaps, after_gap) = (gaps + 1, true);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(gaps > 0, "the router kept more than it should");
    }
}
