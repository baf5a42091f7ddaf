//! Against a broker that does what the test says, over real mutual TLS.

use bytes::BytesMut;
use hoist_certs::Role;
use hoist_certs::authority::{Authority, Issued, days};
use hoist_protocol::{AgentName, FleetName, KeyName, Machine, SigningKey, State, TrustedKeys};
use rumqttc::tokio_rustls::{TlsAcceptor, server::TlsStream};
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, SubscribeReasonCode,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::*;

mod trouble;

const LIMIT: Duration = Duration::from_secs(60);

/// How long an answer may take where none is to come: time enough for those that are, on a machine that is busy.
const QUICK: Duration = Duration::from_secs(2);
const MAX_PACKET: usize = 64 * 1024;

/// The broker's side, one connection at a time.
struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
}

struct Peer {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
    connect: Connect,
}

impl Server {
    /// A server, and an agent that connects to it.
    async fn new() -> (Self, Broker) {
        let (server, settings) = Self::with_settings().await;
        (server, Broker::new(settings))
    }

    /// A server, and the settings of an agent that connects to it.
    async fn with_settings() -> (Self, Settings) {
        let fleet = FleetName::new("prod").unwrap();
        let authority = Authority::create(&fleet, days(2)).unwrap();
        let issue = |role, name: &str, host: &[&str]| -> Issued {
            let hosts: Vec<_> = host.iter().map(|host| host.parse().unwrap()).collect();
            let name = AgentName::new(name).unwrap();
            authority.issue(role, &name, &hosts, days(1)).unwrap()
        };
        let ca = authority.certificate_pem();
        let server = issue(Role::Broker, "main", &["127.0.0.1"]).credentials(ca);
        let agent = issue(Role::Agent, "web-1", &[]).credentials(ca);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let key = SigningKey::from_seed(KeyName::new("ci").unwrap(), &[7; 32].into());
        let settings = Settings {
            brokers: format!("mqtts://127.0.0.1:{port}").parse().unwrap(),
            tls: agent.client().unwrap(),
            credentials: agent,
            machine: Machine::new(fleet, AgentName::new("web-1").unwrap()),
            trusted: TrustedKeys::new(vec![key.public()]).unwrap(),
            state: "/nowhere".into(),
            profile: "/nowhere".into(),
            tags: Vec::new(),
            keep_generations: 3,
            status_interval: Duration::from_secs(300),
            max_backoff: Duration::from_secs(1),
            keepalive: Duration::from_secs(45),
        };
        let tls = TlsAcceptor::from(server.server().unwrap().config());
        (Self { listener, tls }, settings)
    }

    /// Accepts the next connection up to its CONNACK. One that ends before MQTT begins only asks who is there.
    async fn accept(&self) -> Peer {
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            let mut peer = Peer {
                stream: self.tls.accept(stream).await.unwrap(),
                buffer: BytesMut::new(),
                connect: Connect::new(""),
            };
            match peer.read().await {
                Some(Packet::Connect(connect)) => peer.connect = connect,
                None => continue,
                other => panic!("{other:?}"),
            }
            let accepted = ConnAck::new(ConnectReturnCode::Success, false);
            peer.write(Packet::ConnAck(accepted)).await;
            return peer;
        }
    }
}

impl Peer {
    /// The next packet; none at the end of the connection.
    async fn read(&mut self) -> Option<Packet> {
        loop {
            if let Ok(packet) = Packet::read(&mut self.buffer, MAX_PACKET) {
                return Some(packet);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn write(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, MAX_PACKET).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn acknowledge(&mut self, publish: &Publish) {
        self.write(Packet::PubAck(PubAck::new(publish.pkid))).await;
    }

    /// Grants what is asked, acknowledges what is published, and returns the first publish on `channel`.
    async fn publish_on(&mut self, channel: Channel) -> Publish {
        let publish = self.published(channel).await;
        publish.expect("the connection goes on")
    }

    /// The same; none when the connection ends before it comes.
    async fn published(&mut self, channel: Channel) -> Option<Publish> {
        loop {
            match self.read().await? {
                Packet::Subscribe(subscribe) => {
                    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
                    let codes = vec![granted; subscribe.filters.len()];
                    let answer = SubAck::new(subscribe.pkid, codes);
                    self.write(Packet::SubAck(answer)).await;
                }
                Packet::Publish(publish) => {
                    self.acknowledge(&publish).await;
                    if publish.topic.ends_with(channel.as_str()) {
                        return Some(publish);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Serves until the agent says DISCONNECT.
    async fn until_disconnect(&mut self) {
        loop {
            match self.read().await.expect("a clean end") {
                Packet::Disconnect => return,
                Packet::Publish(publish) => self.acknowledge(&publish).await,
                _ => {}
            }
        }
    }
}

fn id() -> DeploymentId {
    DeploymentId::new(Uuid::from_u128(5))
}

fn told() -> Told {
    Told {
        id: id(),
        state: State::Succeeded,
    }
}

fn outcome() -> Payload {
    Payload {
        channel: Channel::History,
        bytes: b"{}".to_vec(),
        receipt: Receipt::Outcomes(vec![told()]),
    }
}

/// Runs the agent's side until `script` is done; what the broker said meanwhile.
async fn against<T>(
    broker: &mut Broker,
    mut on_connected: impl FnMut(&mut Broker),
    script: impl Future<Output = T>,
) -> (T, Vec<BrokerEvent>) {
    let mut events = Vec::new();
    let run = async {
        tokio::pin!(script);
        loop {
            tokio::select! {
                done = &mut script => return done,
                event = broker.next() => {
                    if matches!(event, BrokerEvent::Connected) {
                        on_connected(broker);
                    }
                    events.push(event);
                }
            }
        }
    };
    let done = tokio::time::timeout(LIMIT, run).await.expect("in time");
    (done, events)
}

/// Runs the agent's side until it has something other to say than that it is connected.
async fn said(broker: &mut Broker) -> BrokerEvent {
    let next = async {
        loop {
            match broker.next().await {
                BrokerEvent::Connected
                | BrokerEvent::Unproven { .. }
                | BrokerEvent::Unreachable { .. } => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(LIMIT, next).await.expect("in time")
}

#[tokio::test]
async fn the_last_will_says_offline_and_the_first_publish_online() {
    let (server, mut broker) = Server::new().await;
    let ((connect, online), _) = against(&mut broker, |_| {}, async {
        let mut peer = server.accept().await;
        let online = peer.publish_on(Channel::Presence).await;
        (peer.connect, online)
    })
    .await;
    assert_eq!(connect.client_id, "web-1");
    assert!(connect.clean_session);
    let will = connect.last_will.unwrap();
    assert_eq!(will.topic, "hoist/v1/prod/web-1/presence");
    assert_eq!((&will.message[..], will.retain), (&b"offline"[..], true));
    assert_eq!((&online.payload[..], online.retain), (&b"online"[..], true));
}

#[tokio::test]
async fn an_outcome_counts_as_told_only_when_it_is_acknowledged() {
    let (server, mut broker) = Server::new().await;
    let publish = |broker: &mut Broker| broker.publish(outcome());
    // The first connection breaks before the acknowledgement.
    let ((), events) = against(&mut broker, publish, async {
        let mut peer = server.accept().await;
        loop {
            match peer.read().await.unwrap() {
                Packet::Publish(publish) if publish.topic.ends_with("history") => return,
                _ => {}
            }
        }
    })
    .await;
    assert!(matches!(events[..], [BrokerEvent::Connected]), "{events:?}");
    let script = tokio::spawn(async move {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::History).await;
        peer.until_disconnect().await;
    });
    loop {
        match broker.next().await {
            BrokerEvent::Connected => broker.publish(outcome()),
            BrokerEvent::Delivered(outcomes) => {
                assert_eq!(outcomes, [told()]);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    broker.stop().await;
    script.await.unwrap();
}

#[tokio::test]
async fn a_proof_takes_a_fresh_connection_after_a_clean_end_of_the_old_one() {
    let (server, mut broker) = Server::new().await;
    let (mut old, _) = against(&mut broker, |_| {}, async {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::Presence).await;
        peer
    })
    .await;
    let script = tokio::spawn(async move {
        old.until_disconnect().await;
        drop(old);
        let mut fresh = server.accept().await;
        let nonce = fresh.publish_on(Channel::Echo).await;
        // Somebody else's nonce proves nothing.
        let topic = nonce.topic.clone();
        for payload in [vec![b'0'; 32], nonce.payload.to_vec()] {
            let echo = Publish::new(&topic, QoS::AtMostOnce, payload);
            fresh.write(Packet::Publish(echo)).await;
        }
        fresh
    });
    broker.reach(id()).await;
    let event = said(&mut broker).await;
    assert!(
        matches!(event, BrokerEvent::Reached(of) if of == id()),
        "{event:?}"
    );
    assert_eq!(script.await.unwrap().connect.client_id, "web-1");
    assert!(broker.is_connected(), "the fresh connection stays");
}

#[tokio::test]
async fn a_proof_is_tried_again_until_a_nonce_comes_back() {
    let (server, mut broker) = Server::new().await;
    broker.answer = QUICK;
    broker.reach(id()).await;
    let script = tokio::spawn(async move {
        // The first one swallows the nonce, the second one breaks.
        let mut swallows = server.accept().await;
        swallows.publish_on(Channel::Echo).await;
        drop(server.accept().await);
        loop {
            let mut good = server.accept().await;
            // On a machine that is busy the agent may have given this one up as well.
            if let Some(nonce) = good.published(Channel::Echo).await {
                let echo = Publish::new(&nonce.topic, QoS::AtMostOnce, nonce.payload.to_vec());
                good.write(Packet::Publish(echo)).await;
                return (swallows, good);
            }
        }
    });
    let event = said(&mut broker).await;
    assert!(
        matches!(event, BrokerEvent::Reached(of) if of == id()),
        "{event:?}"
    );
    script.await.unwrap();
}

#[tokio::test]
async fn a_broker_that_never_let_nonces_through_is_proven_by_its_subscription() {
    let (server, mut broker) = Server::new().await;
    broker.answer = QUICK;
    let (mut old, _) = against(&mut broker, |broker| broker.prepare(id(), &[]), async {
        let mut peer = server.accept().await;
        peer.publish_on(Channel::Echo).await;
        peer
    })
    .await;
    let script = tokio::spawn(async move {
        old.until_disconnect().await;
        drop(old);
        let mut fresh = server.accept().await;
        fresh.publish_on(Channel::Echo).await;
        fresh
    });
    broker.reach(id()).await;
    let event = said(&mut broker).await;
    assert!(
        matches!(event, BrokerEvent::Reached(of) if of == id()),
        "{event:?}"
    );
    script.await.unwrap();
}

#[tokio::test]
async fn a_subscription_that_is_refused_is_reported() {
    let (server, mut broker) = Server::new().await;
    let script = tokio::spawn(async move {
        let mut peer = server.accept().await;
        loop {
            if let Packet::Subscribe(subscribe) = peer.read().await.unwrap() {
                let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
                let codes = vec![SubscribeReasonCode::Failure, granted];
                let answer = SubAck::new(subscribe.pkid, codes);
                peer.write(Packet::SubAck(answer)).await;
                // Something to wait for, after the refusal.
                let message = Publish::new("hoist/v1/prod/web-1/deploy", QoS::AtMostOnce, "x");
                peer.write(Packet::Publish(message)).await;
                return peer;
            }
        }
    });
    let event = said(&mut broker).await;
    assert!(
        matches!(&event, BrokerEvent::Deploy(bytes) if bytes == b"x"),
        "{event:?}"
    );
    let said = broker.denials.said.map(|(text, _)| text);
    assert_eq!(said.as_deref(), Some("hoist/v1/prod/web-1/deploy"));
    script.await.unwrap();
}

#[tokio::test]
async fn a_clean_stop_says_offline_first() {
    let (server, mut broker) = Server::new().await;
    let script = tokio::spawn(async move {
        let mut peer = server.accept().await;
        let mut said = Vec::new();
        for _ in 0..2 {
            said.push(peer.publish_on(Channel::Presence).await.payload);
        }
        peer.until_disconnect().await;
        said
    });
    let event = tokio::time::timeout(LIMIT, broker.next()).await.unwrap();
    assert!(matches!(event, BrokerEvent::Connected));
    broker.stop().await;
    assert_eq!(script.await.unwrap(), ["online", "offline"]);
}
