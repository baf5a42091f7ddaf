//! One connection: bytes between a socket and its session.

mod effects;
mod will;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hoist_protocol::Channel;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::detached::{Detached, KeptPlace, KeptSessions, SessionState};
use crate::edge::{Authenticated, Registered};
use crate::guard::{Meter, Peer};
use crate::hub::{Client, Hub, Number};
use crate::inbox::{Control, Event, Inbox};
use crate::log_limit::LogLimit;
use crate::message::Message;
use crate::observe::{Held, Observer, Origin, Reason};
use crate::router::{Relay, Router, Watch};
use crate::session::{Ended, Remains, Session};
use crate::settings::Timeouts;
use crate::store::Store;
pub(crate) use will::LeftWill;

/// How much is read from a connection at once, in bytes. The buffer lives on the stack: an idle connection has
/// none.
const READ_LEN: usize = 4096;

/// How much of what has come is taken before anything is done about it, in bytes: what was published together goes to
/// the disk together.
const TAKEN_LEN: usize = 16 * 1024;

/// How long the last bytes of a connection may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) hub: Arc<Hub>,
    pub(crate) store: Store,
    pub(crate) router: Arc<Router>,
    pub(crate) relay: Relay,
    pub(crate) timeouts: Timeouts,
    pub(crate) observer: Observer,
    pub(crate) log_limit: Arc<LogLimit>,
    /// For sessions that outlive their connections.
    pub(crate) kept_sessions: Arc<KeptSessions>,
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
    /// Counts the client once its CONNECT is accepted.
    counted: Option<Held>,
    /// Who this is, for the audit log; of one that has published deployments.
    origin: Option<Arc<Origin>>,
    /// Of a session that is to outlive the connection.
    place: Option<KeptPlace>,
    /// The certificate's place among those that are looked after.
    registered: Registered,
    /// Plain bytes that the session did not take yet.
    unread: Vec<u8>,
    /// Bytes are in the stream's own buffer.
    unflushed: bool,
    /// When something last came from the client; until its CONNACK, when the connection was opened.
    heard: Instant,
    /// Since when the client has taken nothing although there is something for it.
    stalled: Option<Instant>,
    /// What came since then is a part of the packet with this number.
    partial: Option<(u32, Instant)>,
    meter: Arc<Meter>,
    /// Until when nothing is read, because too much came.
    throttled: Option<Instant>,
    /// Nothing was read when this was last asked, for the session took nothing.
    deaf: bool,
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
    pub(crate) fn new(stream: S, authenticated: Authenticated, shared: Arc<Shared>) -> Box<Self> {
        let now = Instant::now();
        let alarm = Box::pin(sleep_until(now + shared.timeouts.connect));
        Box::new(Self {
            stream,
            address: authenticated.address,
            number: authenticated.number,
            session: Session::new(
                authenticated.peer,
                authenticated.policy,
                authenticated.number,
            ),
            shared,
            inbox: Inbox::new(),
            control: authenticated.control,
            client: None,
            watch: None,
            counted: None,
            origin: None,
            place: None,
            registered: authenticated.registered,
            unread: Vec::new(),
            unflushed: false,
            heard: now,
            stalled: None,
            partial: None,
            meter: authenticated.meter,
            throttled: None,
            deaf: false,
            alarm,
        })
    }

    /// Serves the client until the session ends, then applies its will.
    pub(crate) async fn serve(mut self: Box<Self>) {
        // It was made among the handshakes, whose threads give way to others and end before the sessions do: it
        // shall wake up by the clock of those that serve it.
        self.alarm = Box::pin(sleep_until(self.alarm.deadline()));
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
                if let Some(work) = self.carry_out(effect) {
                    Box::pin(self.wait_for(work)).await;
                }
            }
        }
    }

    /// Moves what can be moved: an order to end first, then events, then bytes out, then bytes in, then the clock.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        // First of all: who is told to end ends, however much there is for it.
        if let Poll::Ready(reason) = self.control.poll_end(context) {
            return Poll::Ready(Woken::Told(reason));
        }
        if let Poll::Ready(events) = self.inbox.poll_take(context) {
            return Poll::Ready(Woken::Events(events));
        }
        if let Poll::Ready(result) = self.poll_write(context) {
            return Poll::Ready(moved(result));
        }
        if self.is_listening()
            && !self.is_throttled()
            && let Poll::Ready(result) = self.poll_read(context)
        {
            let now = Instant::now();
            if self.session.is_open() {
                self.heard = now;
            }
            self.note_partial(now);
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
            let metrics = self.shared.observer.metrics();
            metrics.sent_bytes.inc_by(count(written));
            if output.is_empty() {
                // An idle connection keeps no buffer.
                *output = Vec::new();
            }
            self.unflushed = true;
            self.stalled = None;
        }
        let sent = self.session.take_sent();
        if sent > 0 {
            self.shared.observer.metrics().sent.inc_by(sent);
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

    /// Whether the session takes what comes. What came meanwhile is not late when it does again.
    fn is_listening(&mut self) -> bool {
        let listening = self.takes_input();
        if listening && self.deaf && self.session.is_open() {
            let now = Instant::now();
            self.heard = now;
            self.partial = self.partial.map(|(number, _)| (number, now));
        }
        self.deaf = !listening;
        listening
    }

    /// Who does not take the answers to what it has asked can ask nothing more.
    fn takes_input(&self) -> bool {
        self.session.wants_input() && !self.session.is_congested()
    }

    /// Whether more came than was earned. A client that has to wait is not taken for a silent one meanwhile.
    fn is_throttled(&mut self) -> bool {
        let before = self.throttled;
        self.throttled = self.meter.wait(Instant::now());
        if before.is_none() && self.throttled.is_some() {
            debug!(peer = %self.session.peer(), address = %self.address, "sends too fast: read more slowly");
            self.shared
                .observer
                .metrics()
                .refusals
                .of(Reason::Rate)
                .inc();
        }
        self.throttled.is_some()
    }

    /// Notes since when a packet is under way.
    fn note_partial(&mut self, now: Instant) {
        self.partial = match (self.session.partial(), self.partial) {
            (Some(number), Some((known, since))) if number == known => Some((known, since)),
            (Some(number), _) => Some((number, now)),
            (None, _) => None,
        };
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
        let mut taken = 0;
        let result = self.read(context, &mut taken);
        if taken > 0 {
            // Also of what came just before the end.
            self.shared
                .observer
                .metrics()
                .received_bytes
                .inc_by(count(taken));
        }
        match result {
            Ok(()) if taken == 0 => Poll::Pending,
            result => Poll::Ready(result),
        }
    }

    /// Hands what has come to the session, as long as there is more and it wants it. Adds to `taken` what was read.
    fn read(&mut self, context: &mut Context<'_>, taken: &mut usize) -> io::Result<()> {
        while *taken < TAKEN_LEN && self.takes_input() {
            let mut bytes = [0; READ_LEN];
            let mut buffer = ReadBuf::new(&mut bytes);
            let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(context, &mut buffer)
            else {
                break;
            };
            result?;
            let read = buffer.filled();
            if read.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *taken += read.len();
            let used = self.session.receive(read);
            self.unread.extend_from_slice(&read[used..]);
        }
        Ok(())
    }

    fn poll_clock(&mut self, context: &mut Context<'_>) -> Poll<Woken> {
        loop {
            let (due, reason) = self.next_deadline();
            if due <= Instant::now() {
                if let Some(reason) = reason {
                    self.session.end(reason);
                }
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

    /// What is due next: an end with its reason, or to read on.
    fn next_deadline(&self) -> (Instant, Option<Ended>) {
        let timeouts = &self.shared.timeouts;
        // What was not read is not missing.
        let from = |since: Instant| self.throttled.map_or(since, |until| until.max(since));
        let silence = if self.session.is_open() {
            match self.session.keep_alive().filter(|_| !self.deaf) {
                Some(keep_alive) => (from(self.heard) + keep_alive, Ended::KeepAlive(keep_alive)),
                // No keep-alive was asked for: TCP's own finds a dead peer. Or nothing is read now.
                None => (self.heard + FAR, Ended::KeepAlive(FAR)),
            }
        } else {
            let limit = timeouts.connect;
            (self.heard + limit, Ended::NoConnect(limit))
        };
        let stalled = self.stalled.map(|since| {
            let limit = timeouts.stalled;
            (since + limit, Ended::Stalled(limit))
        });
        // While the session takes nothing nothing can be late.
        let partial = self.partial.filter(|_| !self.deaf);
        let partial = partial.map(|(_, since)| {
            let limit = timeouts.packet;
            (from(since) + limit, Ended::SlowPacket(limit))
        });
        let ends = [Some(silence), stalled, partial];
        let ends = ends.into_iter().flatten();
        let ends = ends.map(|(due, reason)| (due, Some(reason)));
        ends.chain(self.throttled.map(|until| (until, None)))
            .min_by_key(|(due, _)| *due)
            .unwrap_or((self.heard + FAR, None))
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
            place,
            registered,
            watch,
            address,
            origin,
            ..
        } = *self;
        shared.observer.metrics().dropped.inc_by(session.dropped());
        note_end(&shared, &session, client.as_ref(), address);
        session.say_goodbye();
        let silenced = session.ended().is_some_and(Ended::silences);
        let peer = Arc::clone(session.peer());
        let output = std::mem::take(session.output());
        let Remains {
            will,
            kept,
            outlives,
        } = session.into_remains();
        let left = will.map(|will| {
            let origin = origin.unwrap_or_else(|| origin_of(address, peer, client.as_ref()));
            LeftWill::new(will, origin)
        });
        let (due, later) = match left {
            Some(left) if silenced => (left.of_a_stranger(), None),
            Some(left) if outlives && !left.delay().is_zero() => (None, Some(left)),
            left => (left, None),
        };
        if let Some(will) = due {
            shared.leave_will(will).await;
        }
        match (client, place) {
            (Some(client), Some(place)) if outlives => {
                let left = SessionState {
                    kept,
                    inbox,
                    watch,
                    place,
                    _registered: registered,
                    will: later,
                };
                // Who takes the client id over does not wait for the goodbye.
                tokio::spawn(Detached::new(left, number, client, control, shared).run());
            }
            (client, _) => {
                for machine in kept.machines() {
                    shared.hub.unlisten(&inbox, &machine);
                }
                shared.hub.leave(number, client);
                control.mark_ended();
            }
        }
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

/// Who a client is, for the audit log.
fn origin_of(address: SocketAddr, peer: Arc<Peer>, client: Option<&Client>) -> Arc<Origin> {
    let origin = Origin::of(address, peer);
    Arc::new(match client {
        Some((_, client_id)) => origin.client_id(client_id),
        None => origin,
    })
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
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

/// Tells logs and counters why a session has ended.
fn note_end(shared: &Shared, session: &Session, client: Option<&Client>, address: SocketAddr) {
    let peer = session.peer();
    let Some(ended) = session.ended() else {
        return;
    };
    let client_id = client.map_or("", |(_, client_id)| client_id.as_str());
    let dropped = session.dropped();
    if dropped > 0 {
        info!(%peer, client_id, %address, dropped, "log lines were dropped for a slow client");
    }
    if !note_refusal(shared, peer, client_id, address, ended) {
        debug!(%peer, client_id, %address, "closed: {ended}");
    }
}

/// Tells logs and counters of a refusal, the log not oftener than it can bear. False when it is none.
fn note_refusal(
    shared: &Shared,
    peer: &Arc<Peer>,
    client_id: &str,
    address: SocketAddr,
    refusal: &Ended,
) -> bool {
    let Some(reason) = refusal.reason() else {
        return false;
    };
    let origin = Origin::of(address, Arc::clone(peer)).client_id(client_id);
    shared
        .observer
        .refused(&origin, reason, &refusal.what(), &refusal.to_string());
    if shared.log_limit.allows(reason, std::time::Instant::now()) {
        warn!(%peer, client_id, %address, "refused: {refusal}");
    }
    true
}

#[cfg(test)]
mod tests;
