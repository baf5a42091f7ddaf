//! A session's watch: what carries it from the router to the session's inbox.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hoist_protocol::{Channel, FleetName};
use rumqttd::Notification;
use rumqttd::local::{LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::wire::{Header, decode};
use super::{Bus, RouterError, WatchError, position};
use crate::inbox::{Event, Inbox, Via};
use crate::message::{Commit, Message};

/// A channel to watch, and whom to tell that it is watched.
type Request = (Channel, oneshot::Sender<()>);

/// One session's watch; it ends when this is dropped.
pub(crate) struct Watch {
    commands: mpsc::UnboundedSender<Request>,
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

/// Carries what one session watches from the router to its inbox.
pub(super) struct Pump {
    link: LinkTx,
    notifications: LinkRx,
    requests: mpsc::UnboundedReceiver<Request>,
    inbox: Arc<Inbox>,
    fleet: FleetName,
    bus: Arc<Bus>,
    /// The channels whose subscription the router has not acknowledged yet.
    waiting: VecDeque<Request>,
    channels: HashMap<Channel, Progress>,
    counted: Vec<Counted>,
}

/// One that watches a channel; it is counted until this is dropped.
struct Counted {
    bus: Arc<Bus>,
    position: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.bus.watchers[self.position].fetch_sub(1, Ordering::SeqCst);
    }
}

/// How far a channel has been read.
struct Progress {
    next: u64,
    commit: Commit,
}

impl Pump {
    /// A watch, and what carries it.
    pub(super) fn new(
        (link, notifications): (LinkTx, LinkRx),
        inbox: Arc<Inbox>,
        fleet: FleetName,
        bus: Arc<Bus>,
    ) -> (Watch, Self) {
        let (commands, requests) = mpsc::unbounded_channel();
        let pump = Self {
            link,
            notifications,
            requests,
            inbox,
            fleet,
            bus,
            waiting: VecDeque::new(),
            channels: HashMap::new(),
            counted: Vec::new(),
        };
        (Watch { commands }, pump)
    }

    /// Runs until the watch is dropped.
    pub(super) async fn run(mut self) -> Result<(), RouterError> {
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
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
            let bus = Arc::clone(&self.bus);
            bus.watchers[position].fetch_add(1, Ordering::SeqCst);
            self.counted.push(Counted { bus, position });
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
                        let next = self.bus.positions[position].load(Ordering::SeqCst) + 1;
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
        if let Some(message) = self.bus.passed.get(position, number) {
            return Some(message);
        }
        let message = Arc::new(header.message(&self.fleet)?);
        self.bus.passed.note(position, number, &message);
        Some(message)
    }
}
