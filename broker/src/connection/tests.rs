use std::sync::Mutex;

use bytes::BytesMut;
use camino::Utf8Path;
use hoist_certs::Role;
use hoist_protocol::{FleetName, Presence, Topic};
use rumqttc::{Connect, LastWill, Packet, Publish, QoS, Subscribe, SubscribeReasonCode};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use crate::deploys::Deploys;
use crate::guard::tests::peer;
use crate::guard::{FleetMeter, Pattern, Rules};
use crate::message::now_ms;
use crate::session::Policy;
use crate::settings::{Limits, SessionLimits};

use super::*;

/// A broker without an edge, whose writer stands still while the gate is held.
struct Bench {
    shared: Arc<Shared>,
    policy: Arc<Policy>,
    gate: Arc<Mutex<()>>,
    /// Something for each message that the writer has told of.
    told: mpsc::UnboundedReceiver<()>,
    _dir: TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with(Timeouts::default()).await
    }

    async fn with(timeouts: Timeouts) -> Self {
        let dir = TempDir::new().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().to_owned();
        let gate = Arc::new(Mutex::new(()));
        let (down, _) = mpsc::unbounded_channel();
        let router = tokio::task::spawn_blocking(|| Router::start(Arc::default(), down));
        let (router, mut bus, relay, _lines) = router.await.unwrap().unwrap();
        let hub = Arc::new(Hub::default());
        let (deploys, observer) = (Arc::new(Deploys::unsigned()), Observer::silent());
        let (tells, told) = mpsc::unbounded_channel();
        let tell = {
            let (hub, gate) = (Arc::clone(&hub), Arc::clone(&gate));
            move |message: &Arc<Message>| {
                drop(gate.lock().unwrap());
                hub.tell(message);
                bus.publish(message)?;
                // The test may have ended.
                tells.send(()).ok();
                Ok(())
            }
        };
        let (store, _running) =
            Store::open(&path, Arc::clone(&deploys), observer.clone(), tell).unwrap();
        let policy = Policy {
            rules: Rules::default(),
            deploys,
            limits: SessionLimits::default(),
            clock: now_ms,
        };
        let shared = Arc::new(Shared {
            hub,
            store,
            router: Arc::new(router),
            relay,
            timeouts,
            observer,
            log_limit: Arc::default(),
            kept_sessions: KeptSessions::new(&SessionLimits::default().absence),
        });
        Self {
            shared,
            policy: Arc::new(policy),
            gate,
            told,
            _dir: dir,
        }
    }

    /// Connects an agent, with `offline` as its will.
    async fn agent(&self, number: Number, name: &str) -> DuplexStream {
        self.agent_silent_for(number, name, 60).await
    }

    /// The same with a keep-alive in seconds.
    async fn agent_silent_for(&self, number: Number, name: &str, keep_alive: u16) -> DuplexStream {
        let mut ours = self.accept(number, Role::Agent, name);
        let mut connect = Connect::new(name);
        connect.keep_alive = keep_alive;
        let topic = format!("hoist/v1/prod/{name}/presence");
        connect.last_will = Some(LastWill::new(topic, "offline", QoS::AtLeastOnce, true));
        send(&mut ours, &Packet::Connect(connect)).await;
        ours
    }

    /// A connection before its CONNECT.
    fn accept(&self, number: Number, role: Role, name: &str) -> DuplexStream {
        let (ours, theirs) = duplex(64 * 1024);
        let authenticated = Authenticated {
            peer: Arc::new(peer(role, "prod", name)),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            number,
            control: Control::new(),
            registered: Registered::unlisted(self.shared.observer.clone()),
            policy: Arc::clone(&self.policy),
            meter: Arc::new(Meter::new(role, &Limits::default(), FleetMeter::new(None))),
        };
        let connection = Connection::new(theirs, authenticated, Arc::clone(&self.shared));
        tokio::spawn(connection.serve());
        ours
    }

    fn presence(&self, name: &str) -> Option<Presence> {
        let filter = format!("hoist/v1/prod/{name}/presence");
        let fleet = Topic::parse(&filter).unwrap().machine.fleet;
        let pattern = Pattern::parse(&filter, &fleet).unwrap().unwrap();
        let snapshot = self.shared.store.snapshot(&fleet, &pattern, |_| true);
        Presence::from_payload(&snapshot.messages.first()?.payload)
    }
}

async fn send(stream: &mut DuplexStream, packet: &Packet) {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, usize::MAX).unwrap();
    stream.write_all(&bytes).await.unwrap();
}

async fn retain(stream: &mut DuplexStream, topic: &str, payload: &str) {
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
    (publish.retain, publish.pkid) = (true, 1);
    send(stream, &Packet::Publish(publish)).await;
    assert!(matches!(receive(stream).await, Packet::PubAck(_)));
}

async fn receive(stream: &mut DuplexStream) -> Packet {
    let mut bytes = BytesMut::new();
    loop {
        if let Ok(packet) = Packet::read(&mut bytes, usize::MAX) {
            assert!(bytes.is_empty(), "one packet at a time");
            return packet;
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_hears_nothing_until_the_old_ones_will_is_applied() {
    let mut bench = Bench::new().await;
    let mut other = bench.agent(1, "web-2").await;
    assert!(matches!(receive(&mut other).await, Packet::ConnAck(_)));
    let mut old = bench.agent(2, "web-1").await;
    assert!(matches!(receive(&mut old).await, Packet::ConnAck(_)));
    retain(&mut old, "hoist/v1/prod/web-1/presence", "online").await;
    bench.told.recv().await.unwrap();
    let gate = Arc::clone(&bench.gate);
    let (held, hold) = (
        Arc::new(tokio::sync::Notify::new()),
        std::sync::mpsc::channel::<()>(),
    );
    let (release, released) = hold;
    let holding = tokio::task::spawn_blocking({
        let held = Arc::clone(&held);
        move || {
            let _gate = gate.lock().unwrap();
            held.notify_one();
            released.recv().unwrap();
        }
    });
    held.notified().await;
    // The writer has acknowledged this one and stands at the gate.
    retain(&mut other, "hoist/v1/prod/web-2/status", "x").await;
    let mut new = bench.agent(3, "web-1").await;
    let early = timeout(Duration::from_millis(200), new.read_u8()).await;
    assert!(
        early.is_err(),
        "a CONNACK came before the old will was applied"
    );
    assert_eq!(bench.presence("web-1"), Some(Presence::Online));
    release.send(()).unwrap();
    holding.await.unwrap();
    assert!(matches!(receive(&mut new).await, Packet::ConnAck(_)));
    assert_eq!(bench.presence("web-1"), Some(Presence::Offline));
}

const PINGS: [u8; 4096] = {
    let mut bytes = [0; 4096];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = 0xc0;
        at += 2;
    }
    bytes
};

/// What is taken of a client that takes no answers at least: what waits to be written, and what is on its way
/// there and back.
const TAKEN_AT_LEAST: usize = 256 * 1024;

#[tokio::test]
async fn who_takes_its_answers_late_is_not_silent_meanwhile() {
    let bench = Bench::with(Timeouts {
        stalled: Duration::from_secs(600),
        ..Timeouts::default()
    })
    .await;
    let mut client = bench.agent_silent_for(1, "web-1", 4).await;
    for _ in 0..TAKEN_AT_LEAST / PINGS.len() {
        client.write_all(&PINGS).await.unwrap();
    }
    // Longer than a silence may last.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let mut answers = vec![0; 4 + TAKEN_AT_LEAST];
    client.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers[..4], [0x20, 2, 0, 0]);
    assert!(answers[4..].chunks(2).all(|answer| answer == [0xd0, 0]));
}

#[tokio::test]
async fn who_takes_no_answers_is_read_no_further_and_is_dropped() {
    let bench = Bench::with(Timeouts {
        stalled: Duration::from_secs(1),
        ..Timeouts::default()
    })
    .await;
    let mut client = bench.agent_silent_for(1, "web-1", 0).await;
    let mut taken = 0;
    while client.write_all(&PINGS).await.is_ok() {
        taken += PINGS.len();
        assert!(taken < 1024 * 1024, "it is listened to for ever");
    }
}

#[tokio::test]
async fn who_cannot_watch_for_others_do_is_refused_and_goes_on() {
    let bench = Bench::new().await;
    let mut monitor = bench.accept(1, Role::Monitor, "mon");
    send(&mut monitor, &Packet::Connect(Connect::new("mon.1"))).await;
    assert!(matches!(receive(&mut monitor).await, Packet::ConnAck(_)));
    let (router, runtime) = (
        Arc::clone(&bench.shared.router),
        tokio::runtime::Handle::current(),
    );
    let all = tokio::task::spawn_blocking(move || {
        let watch = || router.watch(Inbox::new(), FleetName::new("prod").unwrap(), &runtime);
        std::iter::from_fn(|| watch().ok()).collect::<Vec<_>>()
    });
    let all = all.await.unwrap();
    let subscribe = async |monitor: &mut DuplexStream, id| {
        let mut subscribe = Subscribe::new("hoist/v1/prod/+/status", QoS::AtLeastOnce);
        subscribe.pkid = id;
        send(monitor, &Packet::Subscribe(subscribe)).await;
        match receive(monitor).await {
            Packet::SubAck(ack) => ack.return_codes,
            other => panic!("{other:?}"),
        }
    };
    let refused = subscribe(&mut monitor, 1).await;
    assert_eq!(refused, [SubscribeReasonCode::Failure]);
    drop(all);
    // They end one after the other.
    while subscribe(&mut monitor, 2).await == refused {}
}
