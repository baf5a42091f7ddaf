//! rumqttd's router as the bus for what is watched over the whole fleet.
//!
//! Only its router is used: its listeners are never started. It has one static filter a channel and keeps
//! nothing: messages go in numbered, a watcher that finds a number missing (a slow one's cursor jumps) says so,
//! and its session reads the store. Log lines may get lost here, retained messages never.

mod passed;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoist_protocol::{AgentName, Channel, FleetName, Machine};
use rumqttd::local::{LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet};
use rumqttd::{Broker, Config, Notification, RouterConfig};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::inbox::{Event, Inbox, Via};
use crate::message::{Author, Commit, Extras, Message, Qos};
use crate::settings::Fleets;
use crate::thread::Thread;
use passed::Passed;

/// What may be watched; an echo is between an agent and itself.
const CHANNELS: [Channel; 5] = [
    Channel::Deploy,
    Channel::Status,
    Channel::Presence,
    Channel::History,
    Channel::Log,
];

/// Most sessions that watch the fleet at once.
const WATCHERS_LEN: usize = 1024;

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

/// How far each channel is numbered.
type Positions = Arc<[AtomicU64; CHANNELS.len()]>;

/// How many watch each channel.
type Watchers = Arc<[AtomicUsize; CHANNELS.len()]>;

/// The names of links that are in use, and for which fleet; the router remembers every name for ever.
type Names = Arc<Mutex<HashMap<usize, FleetName>>>;

/// The router's side for sessions.
pub(crate) struct Router {
    broker: Broker,
    positions: Positions,
    passed: Arc<Passed>,
    watchers: Watchers,
    fleets: Arc<Fleets>,
    names: Names,
    down: mpsc::UnboundedSender<RouterError>,
}

/// One way into the router.
pub(crate) struct Publisher {
    link: LinkTx,
    positions: Positions,
    passed: Arc<Passed>,
    watchers: Watchers,
}

/// The way for log lines, which never waits.
#[derive(Clone)]
pub(crate) struct Relay(mpsc::Sender<Arc<Message>>);

/// One session's watch; it ends when this is dropped.
pub(crate) struct Watch {
    commands: mpsc::UnboundedSender<(Channel, oneshot::Sender<()>)>,
}

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
                max_connections: WATCHERS_LEN + 2,
                max_outgoing_packet_count: FORWARD_LEN,
                max_segment_size: SEGMENT_LEN,
                max_segment_count: SEGMENTS,
                initialized_filters: Some(filters),
                ..RouterConfig::default()
            },
            ..Config::default()
        });
        let (positions, watchers) = (Positions::default(), Watchers::default());
        let passed = Arc::<Passed>::default();
        let runtime = tokio::runtime::Handle::current();
        let publisher = |name| -> Result<Publisher, RouterError> {
            let (link, answers) = broker.link(name)?;
            // The router ends a link whose other half is gone.
            runtime.spawn(hold(answers, down.clone()));
            Ok(Publisher {
                link,
                positions: Arc::clone(&positions),
                passed: Arc::clone(&passed),
                watchers: Arc::clone(&watchers),
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
            positions,
            passed,
            watchers,
            fleets,
            names: Arc::default(),
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
        let mut watchers = HashMap::new();
        for fleet in lock(&self.names).values() {
            *watchers.entry(fleet.clone()).or_default() += 1;
        }
        watchers
    }

    /// Opens a link for a session of `fleet`, which tells `inbox`. Blocks for as long as the router takes to
    /// answer: call it off the async workers.
    pub(crate) fn watch(
        &self,
        inbox: Arc<Inbox>,
        fleet: FleetName,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Watch, WatchError> {
        let quota = self.fleets.get(&fleet).map(|fleet| fleet.quota);
        let limit = quota.and_then(|quota| quota.watchers);
        let name = Name::take(&self.names, &fleet, limit)?;
        let link = self.broker.link(&format!("watch-{}", name.number));
        let (link, notifications) = match link {
            Ok(link) => link,
            Err(error) => {
                // The receiver is gone only when the broker ends already.
                self.down.send(error.into()).ok();
                return Err(WatchError::Down);
            }
        };
        let (commands, requests) = mpsc::unbounded_channel();
        let pump = Pump {
            link,
            notifications,
            inbox,
            fleet,
            positions: Arc::clone(&self.positions),
            passed: Arc::clone(&self.passed),
            watchers: Arc::clone(&self.watchers),
            waiting: VecDeque::new(),
            channels: HashMap::new(),
            counted: Vec::new(),
        };
        let down = self.down.clone();
        runtime.spawn(async move {
            let result = pump.run(requests).await;
            drop(name);
            if let Err(error) = result {
                // The receiver is gone only when the broker ends already.
                down.send(error).ok();
            }
        });
        Ok(Watch { commands })
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
        if self.watchers[position].load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let number = self.positions[position].fetch_add(1, Ordering::SeqCst) + 1;
        self.passed.note(position, number, message);
        let channel = message.topic.channel.as_str();
        self.link.publish(channel, encode(number, message))?;
        Ok(())
    }
}

impl Relay {
    /// Passes a log line on; drops it when too many are on their way. False when it was dropped.
    pub(crate) fn pass(&self, message: Arc<Message>) -> bool {
        self.0.try_send(message).is_ok()
    }
}

impl Watch {
    /// Begins to watch a channel: what is committed after this returns is told, or its loss is.
    pub(crate) async fn channel(&self, channel: Channel) -> Result<(), WatchError> {
        let (done, subscribed) = oneshot::channel();
        self.commands
            .send((channel, done))
            .map_err(|_| WatchError::Down)?;
        subscribed.await.map_err(|_| WatchError::Down)
    }
}

/// A link's name, given back when it is dropped.
struct Name {
    number: usize,
    names: Names,
}

impl Name {
    fn take(names: &Names, fleet: &FleetName, limit: Option<usize>) -> Result<Self, WatchError> {
        let mut taken = lock(names);
        let of_fleet = || taken.values().filter(|of| *of == fleet).count();
        if limit.is_some_and(|limit| of_fleet() >= limit) {
            return Err(WatchError::FleetHasEnough);
        }
        let number = (0..WATCHERS_LEN).find(|number| !taken.contains_key(number));
        let number = number.ok_or(WatchError::TooMany)?;
        taken.insert(number, fleet.clone());
        Ok(Self {
            number,
            names: Arc::clone(names),
        })
    }
}

fn lock(names: &Names) -> MutexGuard<'_, HashMap<usize, FleetName>> {
    // Nothing here panics while the lock is held.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Name {
    fn drop(&mut self) {
        lock(&self.names).remove(&self.number);
    }
}

/// Carries what one session watches from the router to its inbox.
struct Pump {
    link: LinkTx,
    notifications: LinkRx,
    inbox: Arc<Inbox>,
    fleet: FleetName,
    positions: Positions,
    passed: Arc<Passed>,
    watchers: Watchers,
    /// The channels whose subscription the router has not acknowledged yet.
    waiting: VecDeque<(Channel, oneshot::Sender<()>)>,
    channels: HashMap<Channel, Progress>,
    counted: Vec<Counted>,
}

/// One that watches a channel; it is counted until this is dropped.
struct Counted {
    watchers: Watchers,
    position: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.watchers[self.position].fetch_sub(1, Ordering::SeqCst);
    }
}

/// How far a channel has been read.
struct Progress {
    next: u64,
    commit: Commit,
}

impl Pump {
    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<(Channel, oneshot::Sender<()>)>,
    ) -> Result<(), RouterError> {
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some((channel, done)) => self.subscribe(channel, done)?,
                    None => break,
                },
                notification = self.notifications.next() => {
                    if let Some(notification) = notification? {
                        self.take(notification)?;
                    }
                }
            }
        }
        // Nothing may be sent on this link afterwards: the router would not survive it.
        let goodbye = Disconnect {
            reason_code: DisconnectReasonCode::NormalDisconnection,
        };
        self.link.send(Packet::Disconnect(goodbye, None)).await?;
        Ok(())
    }

    fn subscribe(
        &mut self,
        channel: Channel,
        done: oneshot::Sender<()>,
    ) -> Result<(), RouterError> {
        if self.channels.contains_key(&channel) {
            // Who no longer waits has no need to know.
            done.send(()).ok();
            return Ok(());
        }
        if let Some(position) = position(channel) {
            let watchers = Arc::clone(&self.watchers);
            watchers[position].fetch_add(1, Ordering::SeqCst);
            self.counted.push(Counted { watchers, position });
        }
        self.link.subscribe(channel.as_str())?;
        self.waiting.push_back((channel, done));
        Ok(())
    }

    fn take(&mut self, notification: Notification) -> Result<(), RouterError> {
        match notification {
            Notification::Forward(forward) => self.forward(&forward.publish.payload),
            Notification::DeviceAck(_) => {
                if let Some((channel, done)) = self.waiting.pop_front() {
                    if let Some(position) = position(channel) {
                        // What has a number up to here was in the store before it was numbered, so it is in
                        // the snapshot that is read next.
                        let next = self.positions[position].load(Ordering::SeqCst) + 1;
                        let commit = Commit::default();
                        self.channels.insert(channel, Progress { next, commit });
                    }
                    done.send(()).ok();
                }
            }
            // The router waits until its last batch is taken.
            Notification::Unschedule => self.notifications.ready()?,
            other => debug!(?other, "an unexpected notification of the router"),
        }
        Ok(())
    }

    fn forward(&mut self, bytes: &[u8]) {
        let Some((number, header)) = decode(bytes) else {
            debug!("a message on the router's bus that is not ours");
            return;
        };
        let channel = header.channel;
        if let Some(progress) = self.channels.get_mut(&channel) {
            if number > progress.next && channel.is_retained() {
                self.inbox.push(Event::Gap(channel, progress.commit));
            }
            progress.next = progress.next.max(number + 1);
            progress.commit = header.commit.unwrap_or_default().max(progress.commit);
        }
        if header.fleet == self.fleet.as_str()
            && let Some(message) = self.message(number, header)
        {
            self.inbox.push(Event::Message(message, Via::Router));
        }
    }

    /// The message that others hold already, or one off the bus that others can hold.
    fn message(&self, number: u64, header: Header<'_>) -> Option<Arc<Message>> {
        let position = position(header.channel)?;
        if let Some(message) = self.passed.get(position, number) {
            return Some(message);
        }
        let message = Arc::new(header.message(&self.fleet)?);
        self.passed.note(position, number, &message);
        Some(message)
    }
}

fn position(channel: Channel) -> Option<usize> {
    CHANNELS.iter().position(|watched| *watched == channel)
}

/// On the bus: number, commit (0 for none) and author, eight bytes each, then a byte each for channel, QoS, whether
/// there are extras, and the lengths of the two names, then the names, the extras when there are, the payload.
const HEADER_LEN: usize = 29;

fn encode(number: u64, message: &Message) -> Vec<u8> {
    let (fleet, agent) = (&message.topic.machine.fleet, &message.topic.machine.agent);
    let (fleet, agent) = (fleet.as_str().as_bytes(), agent.as_str().as_bytes());
    let len = |name: &[u8]| u8::try_from(name.len()).expect("a name has at most 63 bytes");
    let channel = position(message.topic.channel).unwrap_or(CHANNELS.len());
    let channel = u8::try_from(channel).expect("there are six channels");
    let mut bytes =
        Vec::with_capacity(HEADER_LEN + fleet.len() + agent.len() + message.payload.len());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&message.commit.map_or(0, Commit::number).to_le_bytes());
    bytes.extend_from_slice(&message.author.0.to_le_bytes());
    let extras = u8::from(message.extras.is_some());
    bytes.extend_from_slice(&[
        channel,
        message.qos.number(),
        extras,
        len(fleet),
        len(agent),
    ]);
    bytes.extend_from_slice(fleet);
    bytes.extend_from_slice(agent);
    if let Some(extras) = &message.extras {
        extras.encode(&mut bytes);
    }
    bytes.extend_from_slice(&message.payload);
    bytes
}

struct Header<'a> {
    commit: Option<Commit>,
    author: Author,
    channel: Channel,
    qos: Qos,
    fleet: &'a str,
    agent: &'a str,
    extras: Option<Extras>,
    payload: &'a [u8],
}

fn decode(bytes: &[u8]) -> Option<(u64, Header<'_>)> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (commit, rest) = rest.split_first_chunk::<8>()?;
    let (author, rest) = rest.split_first_chunk::<8>()?;
    let (&[channel, qos, with_extras, fleet_len, agent_len], rest) =
        rest.split_first_chunk::<5>()?;
    let (fleet, rest) = rest.split_at_checked(fleet_len.into())?;
    let (agent, mut payload) = rest.split_at_checked(agent_len.into())?;
    let mut extras = None;
    if with_extras != 0 {
        let decoded = Extras::decode(payload)?;
        (extras, payload) = (Some(decoded.0), decoded.1);
    }
    let commit = u64::from_le_bytes(*commit);
    let header = Header {
        commit: (commit > 0).then(|| Commit::new(commit)),
        author: Author(u64::from_le_bytes(*author)),
        channel: *CHANNELS.get(usize::from(channel))?,
        qos: Qos::from_number(qos)?,
        fleet: std::str::from_utf8(fleet).ok()?,
        agent: std::str::from_utf8(agent).ok()?,
        extras,
        payload,
    };
    Some((u64::from_le_bytes(*number), header))
}

impl Header<'_> {
    fn message(self, fleet: &FleetName) -> Option<Message> {
        let agent = AgentName::new(self.agent).ok()?;
        Some(Message {
            topic: Machine::new(fleet.clone(), agent).topic(self.channel),
            payload: Arc::from(self.payload),
            qos: self.qos,
            commit: self.commit,
            author: self.author,
            extras: self.extras.map(Arc::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

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

    #[test]
    fn a_message_comes_off_the_bus_as_it_went_on() {
        let fleet = FleetName::new("prod").unwrap();
        for channel in CHANNELS {
            let message = message(channel, 7, 100);
            let bytes = encode(9, &message);
            let (number, header) = decode(&bytes).unwrap();
            assert_eq!((number, header.message(&fleet)), (9, Some(message)));
            for len in 0..HEADER_LEN + 9 {
                assert!(decode(&bytes[..len]).is_none(), "{len} bytes");
            }
        }
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
        router.watchers[watched].fetch_add(1, Ordering::SeqCst);
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
