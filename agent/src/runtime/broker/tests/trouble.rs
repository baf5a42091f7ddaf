//! Brokers that are away, go silent, or take the connection away; and a machine that slept.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8PathBuf;
use hoist_certs::mqtt::FailureKind;
use hoist_protocol::Text;
use tokio::sync::Notify;

use super::super::before::Before;
use super::super::outage::{Ground, Known};
use super::*;

/// A port of 127.0.0.1 on which nothing listens.
const CLOSED: &str = "127.0.0.1:1";

fn brokers(addresses: &[String]) -> crate::mqtt::Brokers {
    let urls: Vec<_> = addresses.iter().map(|a| format!("mqtts://{a}")).collect();
    urls.join(",").parse().unwrap()
}

fn state() -> (tempfile::TempDir, Utf8PathBuf) {
    let guard = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(guard.path().to_owned()).unwrap();
    (guard, path)
}

fn warns(broker: &Broker, of: &str) -> bool {
    let is_it = |warning: &Text<256>| warning.to_string().contains(of);
    broker.warnings().iter().any(is_it)
}

impl Peer {
    /// Answers until a ping has come and was answered.
    async fn pinged(&mut self) {
        loop {
            match self.read().await.expect("the connection goes on") {
                Packet::PingReq => return self.write(Packet::PingResp).await,
                Packet::Publish(publish) => self.acknowledge(&publish).await,
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Server {
    fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }
}

#[tokio::test]
async fn a_broker_that_is_down_is_passed_over_at_once_and_that_is_said() {
    let (server, mut settings) = Server::with_settings().await;
    settings.brokers = brokers(&[CLOSED.to_owned(), server.address()]);
    // A wait for as long would fail the test.
    settings.max_backoff = Duration::from_secs(3600);
    let mut broker = Broker::new(settings);
    broker.backoff.failed(false);
    let (_peer, _) = against(&mut broker, |_| {}, async {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::Presence).await;
        peer
    })
    .await;
    assert_eq!(
        broker.summary(),
        format!("connected to mqtts://{}", server.address())
    );
    assert!(warns(
        &broker,
        "mqtts://127.0.0.1:1, which is preferred, did not answer"
    ));
}

#[tokio::test]
async fn a_connection_over_which_nothing_comes_back_is_replaced() {
    let (server, mut settings) = Server::with_settings().await;
    settings.keepalive = Duration::from_secs(1);
    let mut broker = Broker::new(settings);
    let ((_silent, mut peer), _) = against(&mut broker, |_| {}, async {
        // It reads nothing and says nothing, and the connection stays open.
        let silent = server.accept().await;
        (silent, server.accept().await)
    })
    .await;
    let online = async { peer.publish_on(Channel::Presence).await };
    against(&mut broker, |_| {}, online).await;
    assert!(!broker.backoff.is_taken_over());
}

#[tokio::test]
async fn a_broker_that_answers_pings_is_kept() {
    let (server, mut settings) = Server::with_settings().await;
    settings.keepalive = Duration::from_secs(1);
    let mut broker = Broker::new(settings);
    let (_, events) = against(&mut broker, |_| {}, async {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::Presence).await;
        for _ in 0..3 {
            // Without anything to do for the agent, pings are all that comes.
            peer.pinged().await;
        }
        peer
    })
    .await;
    assert!(matches!(events[..], [BrokerEvent::Connected]), "{events:?}");
    assert!(broker.is_connected());
}

/// Runs the agent's side until `is_done`, and says so on `heard` whenever a deployment has come.
async fn until(broker: &mut Broker, heard: &Notify, is_done: impl Fn(&Broker) -> bool) {
    let run = async {
        while !is_done(broker) {
            // A wake-up that is no event is worth a look too.
            tokio::select! {
                event = broker.next() => {
                    if matches!(event, BrokerEvent::Deploy(_)) {
                        heard.notify_one();
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, run).await.expect("in time");
}

impl Server {
    /// A session in which all is answered, and has arrived.
    async fn session(&self, is_first: bool, heard: &Notify) -> Peer {
        let mut peer = self.accept().await;
        // Whether nonces come back is asked once.
        let last = if is_first {
            Channel::Echo
        } else {
            Channel::Presence
        };
        peer.publish_on(last).await;
        let message = Publish::new("hoist/v1/prod/web-1/deploy", QoS::AtMostOnce, "x");
        peer.write(Packet::Publish(message)).await;
        heard.notified().await;
        peer
    }
}

impl Peer {
    /// Closes the connection as a broker does: what was written arrives.
    async fn close(mut self) {
        self.stream.shutdown().await.unwrap();
        // Unless the other side has closed it too, what it has sent would make a reset of it.
        while self.read().await.is_some() {}
    }
}

#[tokio::test]
async fn connections_that_are_taken_away_again_and_again_are_said_and_left_to_the_other() {
    let (server, mut settings) = Server::with_settings().await;
    settings.max_backoff = Duration::from_millis(50);
    let mut broker = Broker::new(settings);
    let heard = Arc::new(Notify::new());
    let arrived = Arc::clone(&heard);
    let others = tokio::spawn(async move {
        server.session(true, &arrived).await.close().await;
        loop {
            server.session(false, &arrived).await.close().await;
        }
    });
    until(&mut broker, &heard, |broker| broker.backoff.is_taken_over()).await;
    assert!(warns(&broker, "another machine seems to use"));
    let wait = broker.connect_at - Instant::now();
    assert!(wait > Duration::from_secs(20), "{wait:?}");
    // Not even a nap makes it come back sooner.
    broker.start_over().await;
    assert!(broker.connect_at - Instant::now() > Duration::from_secs(20));
    others.abort();
}

/// How a broker comes to its end.
#[derive(Clone, Copy)]
enum Death {
    /// It is killed, and runs again at once.
    Killed,
    /// It stops, and says goodbye. Something between lets in whoever comes next, and drops them.
    Stopped,
}

/// Whether the agent takes a broker that dies after every connection for one that another machine takes away.
async fn is_suspicious_after(death: Death) -> bool {
    let (server, mut settings) = Server::with_settings().await;
    settings.max_backoff = Duration::from_millis(50);
    let mut broker = Broker::new(settings);
    let heard = Arc::new(Notify::new());
    let arrived = Arc::clone(&heard);
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let dying = tokio::spawn(async move {
        loop {
            let round = counted.load(Ordering::SeqCst);
            let peer = server.session(round == 0, &arrived).await;
            match death {
                Death::Killed => drop(peer),
                Death::Stopped => {
                    peer.close().await;
                    drop(server.listener.accept().await);
                }
            }
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    // The agent comes back for another one only when it knows what to make of the one before.
    until(&mut broker, &heard, |_| rounds.load(Ordering::SeqCst) == 8).await;
    dying.abort();
    broker.backoff.is_suspicious(None) || warns(&broker, "another machine")
}

#[tokio::test]
async fn a_broker_that_is_killed_after_every_connection_is_not_taken_for_a_second_machine() {
    assert!(!is_suspicious_after(Death::Killed).await);
}

#[tokio::test]
async fn a_broker_that_stops_after_every_connection_is_not_taken_for_a_second_machine() {
    assert!(!is_suspicious_after(Death::Stopped).await);
}

#[tokio::test]
async fn a_broker_that_closes_for_what_is_said_to_it_is_not_taken_for_a_second_machine() {
    let (server, mut settings) = Server::with_settings().await;
    settings.max_backoff = Duration::from_millis(50);
    let mut broker = Broker::new(settings);
    let script = async {
        for _ in 0..8 {
            let mut peer = server.accept().await;
            loop {
                // On MQTT 3.1.1 that is how a publish is refused.
                if let Packet::Publish(_) = peer.read().await.expect("it publishes") {
                    break;
                }
            }
            peer.close().await;
        }
        server.accept().await
    };
    let (_peer, _) = against(&mut broker, |_| {}, script).await;
    assert!(!broker.backoff.is_suspicious(None));
    assert!(!warns(&broker, "another machine"));
}

#[tokio::test]
async fn a_machine_that_slept_does_not_wait_for_its_turn() {
    let (server, mut broker) = Server::new().await;
    broker.connect_at = Instant::now() + Duration::from_secs(3600);
    broker.start_over().await;
    let (old, _) = against(&mut broker, |_| {}, async {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::Presence).await;
        peer
    })
    .await;
    // Now it is connected, to somebody who says nothing any more.
    broker.start_over().await;
    let ((), _) = against(&mut broker, |_| {}, async {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::Presence).await;
    })
    .await;
    drop(old);
}

/// Publishes nothing back.
async fn swallow_nonces(mut peer: Peer) -> Peer {
    peer.publish_on(Channel::Echo).await;
    peer
}

#[tokio::test]
async fn an_agent_that_was_replaced_knows_that_nonces_never_came_back() {
    let (server, mut settings) = Server::with_settings().await;
    let (_guard, path) = state();
    settings.state = path;
    let mut old = Broker::new(settings.clone());
    let script = async { swallow_nonces(server.accept().await).await };
    let prepare = |broker: &mut Broker| broker.prepare(id(), &[]);
    against(&mut old, prepare, script).await;
    drop(old);

    let mut new = Broker::new(settings);
    new.answer = QUICK;
    new.reach(id()).await;
    let server = tokio::spawn(async move { swallow_nonces(server.accept().await).await });
    let event = said(&mut new).await;
    assert!(
        matches!(event, BrokerEvent::Reached(of) if of == id()),
        "{event:?}"
    );
    assert!(warns(&new, "confirmed without an echo"));
    server.await.unwrap();
}

#[tokio::test]
async fn without_that_knowledge_nothing_less_than_a_nonce_is_a_proof() {
    let (server, mut settings) = Server::with_settings().await;
    let (_guard, path) = state();
    settings.state = path;
    let mut broker = Broker::new(settings);
    broker.answer = QUICK;
    broker.reach(id()).await;
    let (_peers, events) = against(&mut broker, |_| {}, async {
        let first = swallow_nonces(server.accept().await).await;
        (first, server.accept().await)
    })
    .await;
    let reached = |event: &BrokerEvent| matches!(event, BrokerEvent::Reached(_));
    assert!(!events.iter().any(reached), "{events:?}");
}

/// Tries to reach `broker`, which had this address before, while something else answers.
async fn verdict_on(broker: &str, settings: &Settings) -> OutageVerdict {
    let witness = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_guard, path) = state();
    let before = Before {
        id: id(),
        asked: true,
        heard: true,
        known: Known {
            brokers: BTreeSet::from([broker.parse().unwrap()]),
            witnesses: BTreeSet::from([witness.local_addr().unwrap()]),
        },
    };
    before.save(&path).unwrap();
    let mut broker = Broker::new(Settings {
        brokers: brokers(&[broker.to_owned()]),
        state: path,
        ..settings.clone()
    });
    broker.reach(id()).await;
    let verdict = async {
        loop {
            match broker.next().await {
                BrokerEvent::Unreachable { id: of, verdict } if of == id() => return verdict,
                BrokerEvent::Unproven { id: of, .. } if of == id() => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(LIMIT, verdict).await.expect("in time")
}

/// Why the first tries to reach a broker have failed, as the deployment's outcome tells it.
async fn why(broker: &mut Broker) -> String {
    let why = async {
        loop {
            if let BrokerEvent::Unproven { id: of, why } = broker.next().await {
                assert_eq!(of, id());
                if !why.ends_with("no answer so far") {
                    return why;
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, why).await.expect("in time")
}

#[tokio::test]
async fn what_keeps_a_deployment_from_its_confirmation_is_told() {
    let (server, settings) = Server::with_settings().await;
    let address = server.address();
    let mut down = Broker::new(Settings {
        brokers: brokers(&[CLOSED.to_owned()]),
        ..settings.clone()
    });
    down.reach(id()).await;
    let said = why(&mut down).await;
    assert_eq!(
        said,
        "mqtts://127.0.0.1:1: nothing listens on port 1; is the broker running?"
    );

    // A broker of another fleet.
    let (stranger, _) = Server::with_settings().await;
    let mut foreign = Broker::new(Settings {
        brokers: brokers(&[stranger.address()]),
        ..settings.clone()
    });
    foreign.reach(id()).await;
    let accept = tokio::spawn(async move {
        let (stream, _) = stranger.listener.accept().await.unwrap();
        stranger.tls.accept(stream).await.is_err()
    });
    let said = why(&mut foreign).await;
    assert!(said.contains("was not issued by the CA"), "{said}");
    assert!(accept.await.unwrap());

    // One that keeps the nonces to itself, besides one that is down.
    let mut deaf = Broker::new(Settings {
        brokers: brokers(&[CLOSED.to_owned(), address.clone()]),
        ..settings
    });
    deaf.answer = QUICK;
    deaf.reach(id()).await;
    let swallows = tokio::spawn(async move { swallow_nonces(server.accept().await).await });
    let both = async {
        loop {
            let said = why(&mut deaf).await;
            if said.contains("does not come back") {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(LIMIT, both).await.expect("in time");
    assert!(said.contains("nothing listens on port 1"), "{said}");
    assert!(said.contains(&address), "{said}");
    drop(swallows);
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_apart_from_one_that_the_new_system_cannot_talk_to() {
    let (server, settings) = Server::with_settings().await;
    assert_eq!(verdict_on(CLOSED, &settings).await, OutageVerdict::Outage);
    // It takes connections and closes them in the middle of the handshake.
    let address = server.address();
    let closes = tokio::spawn(async move {
        loop {
            drop(server.listener.accept().await);
        }
    });
    let verdict = verdict_on(&address, &settings).await;
    let lost = OutageVerdict::Ours(Ground::NotTcp(FailureKind::Lost));
    assert_eq!(verdict, lost);
    closes.abort();
}
