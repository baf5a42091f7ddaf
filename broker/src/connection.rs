//! One connection: bytes between a socket and its session, and what the session wants done.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hoist_protocol::{Channel, Machine};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::guard::{Agents, Peer};
use crate::hub::{Client, Hub, Number};
use crate::inbox::{Control, Event, Inbox};
use crate::message::Message;
use crate::router::{Relay, Router, Watch, WatchError};
use crate::session::{Admitted, Effect, Ended, Policy, Request, Session};
use crate::settings::Timeouts;
use crate::store::{Outcome, Snapshot, Store};

/// How much is read from a connection at once, in bytes. The buffer lives on the stack: an idle connection has
/// none.
const READ_LEN: usize = 4096;

/// How long the last bytes of a connection may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) hub: Arc<Hub>,
    pub(crate) store: Store,
    pub(crate) router: Arc<Router>,
    pub(crate) relay: Relay,
    pub(crate) policy: Arc<Policy>,
    pub(crate) timeouts: Timeouts,
}

/// One connection after its handshake.
pub(crate) struct Connection<S> {
    stream: S,
    address: SocketAddr,
    number: Number,
    shared: Arc<Shared>,
    session: Session,
    inbox: Arc<Inbox>,
    control: Arc<Control>,
    /// The client of the hub that is this session.
    client: Option<Client>,
    watch: Option<Watch>,
    /// Plain bytes that the session did not take yet.
    unread: Vec<u8>,
    /// Bytes are in the stream's own buffer.
    unflushed: bool,
    /// When something last came from the client; until its CONNACK, when the connection was opened.
    heard: Instant,
    /// Since when the client has taken nothing although there is something for it.
    stalled: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
}

/// Why the connection woke up.
enum Woken {
    Told(Ended),
    Events(Vec<Event>),
    /// Something was read, written or is due.
    Moved,
    Lost(String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(
        stream: S,
        peer: Arc<Peer>,
        address: SocketAddr,
        number: Number,
        shared: Arc<Shared>,
    ) -> Box<Self> {
        let now = Instant::now();
        let alarm = Box::pin(sleep_until(now + shared.timeouts.connect));
        Box::new(Self {
            stream,
            address,
            number,
            session: Session::new(peer, Arc::clone(&shared.policy), number),
            shared,
            inbox: Inbox::new(),
            control: Control::new(),
            client: None,
            watch: None,
            unread: Vec::new(),
            unflushed: false,
            heard: now,
            stalled: None,
            alarm,
        })
    }

    /// Serves the client until the session ends, then applies its will.
    pub(crate) async fn serve(mut self: Box<Self>) {
        self.run().await;
        // In a box, as the effects are: what is awaited once in a while would otherwise take its room for as
        // long as the connection lives.
        Box::pin(self.finish()).await;
    }

    async fn run(&mut self) {
        if self.shared.hub.enter(self.number, &self.control).is_err() {
            self.session.end(Ended::Stopping);
        }
        while self.session.ended().is_none() {
            match poll_fn(|context| self.poll(context)).await {
                Woken::Events(events) => {
                    for event in events {
                        self.session.on(event);
                    }
                }
                Woken::Told(reason) => self.session.end(reason),
                Woken::Moved => {}
                Woken::Lost(why) => self.session.end(Ended::Lost(why)),
            }
            for effect in self.session.take_effects() {
                Box::pin(self.carry_out(effect)).await;
            }
        }
    }

    /// Moves what can be moved: events first, then bytes out, then bytes in, then the clock.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        if let Poll::Ready(events) = self.inbox.poll_take(context) {
            return Poll::Ready(Woken::Events(events));
        }
        if let Poll::Ready(reason) = self.control.poll_end(context) {
            return Poll::Ready(Woken::Told(reason));
        }
        if let Poll::Ready(result) = self.poll_write(context) {
            return Poll::Ready(moved(result));
        }
        if self.session.wants_input()
            && let Poll::Ready(result) = self.poll_read(context)
        {
            if self.session.is_open() {
                self.heard = Instant::now();
            }
            return Poll::Ready(moved(result));
        }
        self.poll_clock(context)
    }

    /// Ready when bytes were written and there is reason to look for more to do.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session.take_progress() {
            self.stalled = None;
        }
        loop {
            let output = self.session.output();
            if output.is_empty() {
                break;
            }
            let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, output)
            else {
                self.note_stall();
                return Poll::Pending;
            };
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            output.drain(..written);
            if output.is_empty() {
                // An idle connection keeps no buffer.
                *output = Vec::new();
            }
            self.unflushed = true;
            self.stalled = None;
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(flushed) => {
                    flushed?;
                    self.unflushed = false;
                }
                Poll::Pending => {
                    self.note_stall();
                    return Poll::Pending;
                }
            }
        }
        if self.session.has_backlog() {
            // Nothing is left to write, so what waits for an acknowledgement is what is in the way.
            self.note_stall();
        } else {
            self.stalled = None;
        }
        Poll::Pending
    }

    fn note_stall(&mut self) {
        self.stalled.get_or_insert_with(Instant::now);
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let taken = self.session.receive(&self.unread);
            self.unread.drain(..taken);
            if self.unread.is_empty() {
                self.unread = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; READ_LEN];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        let read = buffer.filled();
        if read.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let taken = self.session.receive(read);
        self.unread.extend_from_slice(&read[taken..]);
        Poll::Ready(Ok(()))
    }

    fn poll_clock(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        loop {
            let (due, reason) = self.next_deadline();
            if due <= Instant::now() {
                self.session.end(reason);
                return Poll::Ready(Woken::Moved);
            }
            // The alarm is moved to earlier at once and to later only when it rings: that is once a keep-alive
            // and not once a packet.
            if due < self.alarm.deadline() || self.alarm.is_elapsed() {
                self.alarm.as_mut().reset(due);
            }
            ready!(self.alarm.as_mut().poll(context));
        }
    }

    fn next_deadline(&self) -> (Instant, Ended) {
        let timeouts = &self.shared.timeouts;
        let silence = if self.session.is_open() {
            match self.session.keep_alive() {
                Some(keep_alive) => (self.heard + keep_alive, Ended::KeepAlive(keep_alive)),
                // No keep-alive was asked for: TCP's own finds a dead peer.
                None => (self.heard + FAR, Ended::KeepAlive(FAR)),
            }
        } else {
            let limit = timeouts.connect;
            (self.heard + limit, Ended::NoConnect(limit))
        };
        match self.stalled {
            Some(since) if since + timeouts.stalled < silence.0 => {
                (since + timeouts.stalled, Ended::Stalled(timeouts.stalled))
            }
            _ => silence,
        }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Claim(client_id) => self.claim(client_id).await,
            Effect::Publish(Admitted::Store(publication), ticket) => {
                let reply = crate::store::Reply::Session(Arc::clone(&self.inbox), ticket);
                if self.shared.store.publish(publication, reply).await.is_err() {
                    self.session.end(Ended::BrokerFailed);
                }
            }
            Effect::Publish(Admitted::Relay(message), ticket) => {
                self.shared.relay(message);
                self.session.settled(ticket, Outcome::Retained);
            }
            Effect::Subscribe(packet_id, requests) => self.subscribe(packet_id, requests).await,
            Effect::Unwatch(agent) => {
                let machine = Machine::new(self.session.peer().fleet.clone(), agent);
                self.shared.hub.unlisten(&self.inbox, &machine);
            }
            Effect::UnwatchAll => self.watch = None,
            Effect::Refresh(channel, since) => {
                let pattern = crate::guard::Pattern {
                    agents: Agents::All,
                    channels: crate::guard::Channels::One(channel),
                };
                let fleet = self.session.peer().fleet.clone();
                let changes = self.shared.store.changes(&fleet, &pattern, since);
                debug!(%channel, changes = changes.messages.len(), "read again after a gap");
                self.session.refreshed(channel, changes);
            }
        }
    }

    async fn claim(&mut self, client_id: String) {
        let client = (Arc::clone(self.session.peer()), client_id);
        let before = self.shared.hub.claim(self.number, &client, self.address);
        if let Some(before) = before {
            // Its will has to be applied before anybody hears that the new session is there.
            before.ended().await;
        }
        match self.control.told_to_end() {
            // A third one has taken over meanwhile, or the broker stops.
            Some(reason) => self.session.unavailable(reason),
            None => {
                let (peer, client_id) = &client;
                debug!(%peer, client_id, address = %self.address, "connected");
                self.session.claimed();
                self.heard = Instant::now();
            }
        }
        self.client = Some(client);
    }

    async fn subscribe(&mut self, packet_id: u16, requests: Vec<Request>) {
        let fleet = self.session.peer().fleet.clone();
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for (pattern, _) in requests
            .iter()
            .filter_map(|request| request.granted.as_ref())
        {
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
                    if let Err(error) = self.watch(channels.collect()).await {
                        warn!(peer = %self.session.peer(), ?error, "cannot watch the fleet");
                        return self.session.end(Ended::BrokerFailed);
                    }
                }
            }
            let session = &self.session;
            let snapshot = self
                .shared
                .store
                .snapshot(&fleet, pattern, |t| session.allows(t));
            snapshots.push(snapshot);
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

    /// Applies the will, lets go of the client id, and says the last words.
    async fn finish(self: Box<Self>) {
        let Self {
            mut stream,
            mut session,
            shared,
            inbox,
            control,
            number,
            client,
            address,
            ..
        } = *self;
        log_end(&session, client.as_ref(), address);
        let output = std::mem::take(session.output());
        for machine in session.machines() {
            shared.hub.unlisten(&inbox, &machine);
        }
        match session.into_will() {
            Some(Admitted::Store(will)) => {
                let topic = will.topic.clone();
                match shared.store.publish_and_wait(will).await {
                    Ok(Outcome::Refused(refusal)) => warn!(%topic, %refusal, "a will is refused"),
                    Ok(Outcome::Retained | Outcome::Repeat) => {}
                    // The process ends with the store's own error.
                    Err(error) => debug!(%topic, %error, "a will is lost"),
                }
            }
            Some(Admitted::Relay(message)) => shared.relay(message),
            None => {}
        }
        shared.hub.leave(number, client);
        // Who takes the client id over does not wait for the goodbye.
        control.mark_ended();
        // A CONNACK that says no, acknowledgements that are due; who does not take them goes without.
        let goodbye = timeout(LAST_WORDS, async {
            stream.write_all(&output).await?;
            stream.shutdown().await
        });
        if !matches!(goodbye.await, Ok(Ok(()))) {
            debug!(%address, "the last words were not taken");
        }
    }
}

/// Without a keep-alive: long enough never to matter.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Shared {
    /// Passes on what is not retained.
    fn relay(&self, message: Message) {
        let message = Arc::new(message);
        self.hub.tell(&message);
        if message.topic.channel == Channel::Log && !self.relay.pass(message) {
            debug!("a log line is dropped: too many at once");
        }
    }
}

fn moved(result: io::Result<()>) -> Woken {
    match result {
        Ok(()) => Woken::Moved,
        Err(error) => Woken::Lost(error.to_string()),
    }
}

fn log_end(session: &Session, client: Option<&Client>, address: SocketAddr) {
    let peer = session.peer();
    let Some(ended) = session.ended() else {
        return;
    };
    let client_id = client.map_or("", |(_, client_id)| client_id.as_str());
    let dropped = session.dropped();
    if dropped > 0 {
        info!(%peer, client_id, %address, dropped, "log lines were dropped for a slow client");
    }
    if ended.is_refusal() {
        warn!(%peer, client_id, %address, "closed: {ended}");
    } else {
        debug!(%peer, client_id, %address, "closed: {ended}");
    }
}

#[cfg(test)]
mod tests;
