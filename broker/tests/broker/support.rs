//! A broker in this process, and clients that see every packet.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use camino::Utf8Path;
use hoist_broker::{Options, Server, ServerError, Settings};
use hoist_certs::authority::{Authority, Issued, days};
use hoist_certs::{Credentials, Pem, Role};
use hoist_protocol::{AgentName, FleetName};
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, PubComp, PubRec, Publish, QoS,
    SubscribeFilter, SubscribeReasonCode,
};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long anything may take before a test gives up; nothing is measured with it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A keep-alive that does not end a connection within a test, in seconds.
pub(crate) const LONG_KEEP_ALIVE: u16 = 600;

/// A fleet's authority and a broker's state, which outlive the broker.
pub(crate) struct World {
    pub(crate) authority: Authority,
    state: TempDir,
    options: Options,
}

/// A running broker.
pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    /// Where metrics are told, when the options say that they are.
    pub(crate) metrics: Option<SocketAddr>,
    /// Where WebSockets are served, when the options say so.
    pub(crate) websocket: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) done: JoinHandle<Result<(), ServerError>>,
}

pub(crate) fn name(text: &str) -> AgentName {
    AgentName::new(text).unwrap()
}

pub(crate) fn issue(authority: &Authority, fleet: &str, role: Role, who: &str) -> Issued {
    let hosts = match role {
        Role::Broker => vec!["localhost".parse().unwrap()],
        _ => Vec::new(),
    };
    let fleet = FleetName::new(fleet).unwrap();
    authority
        .issue_in(&fleet, role, &name(who), &hosts, days(1))
        .unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let fleet = FleetName::new("prod").unwrap();
        Self {
            authority: Authority::create(&fleet, days(2)).unwrap(),
            state: TempDir::new().unwrap(),
            options,
        }
    }

    /// The same state and authority with other options.
    pub(crate) fn and(self, options: Options) -> Self {
        Self { options, ..self }
    }

    pub(crate) fn state(&self) -> &Utf8Path {
        Utf8Path::from_path(self.state.path()).unwrap()
    }

    pub(crate) fn settings(&self) -> Settings {
        let issued = issue(&self.authority, "prod", Role::Broker, "main");
        let ours = Options {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            ca: Some(Pem::from(self.authority.certificate_pem().to_owned())),
            certificate: Some(Pem::from(issued.certificate_pem.clone())),
            key: Some(Pem::Inline(issued.key_pem.clone())),
            state: Some(self.state().to_owned()),
            ..Options::default()
        };
        Settings::try_from(self.options.clone().or(ours)).unwrap()
    }

    pub(crate) async fn start(&self) -> Broker {
        self.try_start().await.unwrap()
    }

    pub(crate) async fn try_start(&self) -> Result<Broker, ServerError> {
        Server::bind(self.settings()).await.map(Broker::of)
    }

    pub(crate) fn credentials(&self, fleet: &str, role: Role, who: &str) -> Credentials {
        issue(&self.authority, fleet, role, who).credentials(self.authority.certificate_pem())
    }

    /// A TLS connection without a CONNECT.
    pub(crate) async fn tls(&self, broker: &Broker, role: Role, who: &str) -> Client {
        self.tls_in("prod", broker, role, who).await
    }

    pub(crate) async fn tls_in(
        &self,
        fleet: &str,
        broker: &Broker,
        role: Role,
        who: &str,
    ) -> Client {
        let tls = self.credentials(fleet, role, who).client().unwrap();
        Client::tls(broker, tls.config()).await
    }

    /// A client after its CONNACK. Its client id is the name, with a suffix for who is no agent.
    pub(crate) async fn client(&self, broker: &Broker, role: Role, who: &str) -> Client {
        let mut client = self.tls(broker, role, who).await;
        let id = match role {
            Role::Agent => who.to_owned(),
            _ => format!("{who}.1"),
        };
        assert_eq!(
            client.connect(Connect::new(id)).await,
            ConnectReturnCode::Success
        );
        client
    }

    pub(crate) async fn agent(&self, broker: &Broker, who: &str) -> Client {
        self.client(broker, Role::Agent, who).await
    }

    pub(crate) async fn monitor(&self, broker: &Broker) -> Client {
        self.client(broker, Role::Monitor, "mon").await
    }
}

impl Broker {
    /// Runs a server.
    pub(crate) fn of(server: Server) -> Self {
        let (address, metrics) = (server.local_addr(), server.metrics_addr());
        let websocket = server.websocket_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(server.run(async {
            stopped.await.ok();
        }));
        Self {
            address,
            metrics,
            websocket,
            stop: Some(stop),
            done,
        }
    }

    /// One in another process.
    pub(crate) fn elsewhere(address: SocketAddr) -> Self {
        Self {
            address,
            metrics: None,
            websocket: None,
            stop: None,
            done: tokio::spawn(async { Ok(()) }),
        }
    }

    /// Stops it in order and waits until it has.
    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(PATIENCE, self.done)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    /// Drops it as it is, without letting it end anything.
    pub(crate) async fn abort(self) {
        self.done.abort();
        self.done.await.unwrap_err();
    }
}

/// One client; it sends and receives packets as they are.
pub(crate) struct Client {
    stream: TlsStream<TcpStream>,
    received: BytesMut,
    /// What came earlier than it was waited for.
    set_aside: VecDeque<Packet>,
    packet_id: u16,
}

/// A message as it arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Arrived {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

pub(crate) fn topic(agent: &str, channel: &str) -> String {
    format!("hoist/v1/prod/{agent}/{channel}")
}

impl Client {
    pub(crate) async fn tls(broker: &Broker, config: Arc<rustls::ClientConfig>) -> Self {
        Self::try_tls(broker, config).await.unwrap()
    }

    pub(crate) async fn try_tls(
        broker: &Broker,
        config: Arc<rustls::ClientConfig>,
    ) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(broker.address).await?;
        let host = ServerName::try_from("localhost").unwrap();
        let stream = timeout(PATIENCE, TlsConnector::from(config).connect(host, tcp)).await??;
        Ok(Self {
            stream,
            received: BytesMut::new(),
            set_aside: VecDeque::new(),
            packet_id: 0,
        })
    }

    /// The TLS side of the connection.
    pub(crate) fn connection(&self) -> &rustls::ClientConnection {
        self.stream.get_ref().1
    }

    /// What the broker has shown.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.connection().peer_certificates().unwrap()[0].to_vec()
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        // A broker that has closed already is what many tests wait for.
        if self.stream.write_all(bytes).await.is_ok() {
            self.stream.flush().await.ok();
        }
    }

    /// Sends a packet. A CONNECT that asks for no keep-alive of its own has one that no test outlasts: who says nothing for
    /// a while, on a busy machine, shall not be taken for dead.
    pub(crate) async fn send(&mut self, mut packet: Packet) {
        if let Packet::Connect(connect) = &mut packet
            && connect.keep_alive == Connect::new("").keep_alive
        {
            connect.keep_alive = LONG_KEEP_ALIVE;
        }
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.send_bytes(&bytes).await;
    }

    /// The next packet; none when the broker has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        if let Some(packet) = self.set_aside.pop_front() {
            return Some(packet);
        }
        self.next_of(|bytes| match Packet::read(bytes, usize::MAX) {
            Ok(packet) => Some(packet),
            Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => None,
            Err(error) => panic!("not a packet: {error}"),
        })
        .await
    }

    /// The next thing that `read` finds in what has come; none when the broker has closed the connection.
    pub(crate) async fn next_of<T>(
        &mut self,
        read: impl Fn(&mut BytesMut) -> Option<T>,
    ) -> Option<T> {
        loop {
            if let Some(found) = read(&mut self.received) {
                return Some(found);
            }
            let read = self.stream.read_buf(&mut self.received);
            match timeout(PATIENCE, read).await.expect("nothing came") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends a CONNECT and waits for its answer; there is no session from before.
    pub(crate) async fn connect(&mut self, connect: Connect) -> ConnectReturnCode {
        let ack = self.answer_to(connect).await;
        assert!(
            !ack.session_present,
            "nothing was left of an earlier session"
        );
        ack.code
    }

    /// Connects, and returns whether there was a session from before.
    pub(crate) async fn open(&mut self, connect: Connect) -> bool {
        let ack = self.answer_to(connect).await;
        assert_eq!(ack.code, ConnectReturnCode::Success);
        ack.session_present
    }

    async fn answer_to(&mut self, connect: Connect) -> ConnAck {
        self.send(Packet::Connect(connect)).await;
        match self.next().await {
            Some(Packet::ConnAck(ack)) => ack,
            other => panic!("no CONNACK but {other:?}"),
        }
    }

    pub(crate) async fn send_publish(
        &mut self,
        topic: &str,
        qos: QoS,
        retain: bool,
        payload: &[u8],
    ) {
        let mut publish = Publish::new(topic, qos, payload);
        publish.retain = retain;
        if qos != QoS::AtMostOnce {
            self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
            publish.pkid = self.packet_id;
        }
        self.send(Packet::Publish(publish)).await;
    }

    /// The packet id of what was sent last.
    pub(crate) const fn last_id(&self) -> u16 {
        self.packet_id
    }

    /// Publishes at QoS 1 with the retain flag; true when it is acknowledged, false when the broker closes.
    pub(crate) async fn retain(&mut self, topic: &str, payload: impl AsRef<[u8]>) -> bool {
        self.send_publish(topic, QoS::AtLeastOnce, true, payload.as_ref())
            .await;
        let id = self.packet_id;
        match self.next().await {
            Some(Packet::PubAck(ack)) => {
                assert_eq!(ack.pkid, id);
                true
            }
            None => false,
            other => panic!("no PUBACK but {other:?}"),
        }
    }

    /// Subscribes at QoS 1 and returns what was granted, one code a filter.
    pub(crate) async fn subscribe(&mut self, filters: &[&str]) -> Vec<SubscribeReasonCode> {
        self.subscribe_at(filters, QoS::AtLeastOnce).await
    }

    pub(crate) async fn subscribe_at(
        &mut self,
        filters: &[&str],
        qos: QoS,
    ) -> Vec<SubscribeReasonCode> {
        let filters = filters
            .iter()
            .map(|filter| SubscribeFilter::new((*filter).to_owned(), qos));
        self.packet_id += 1;
        let mut subscribe = rumqttc::Subscribe::new_many(filters);
        subscribe.pkid = self.packet_id;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) => {
                assert_eq!(ack.pkid, self.packet_id);
                ack.return_codes
            }
            other => panic!("no SUBACK but {other:?}"),
        }
    }

    pub(crate) async fn unsubscribe(&mut self, filter: &str) {
        self.packet_id += 1;
        let mut unsubscribe = rumqttc::Unsubscribe::new(filter);
        unsubscribe.pkid = self.packet_id;
        self.send(Packet::Unsubscribe(unsubscribe)).await;
        assert!(matches!(self.next().await, Some(Packet::UnsubAck(_))));
    }

    /// The next message, acknowledged.
    pub(crate) async fn message(&mut self) -> Arrived {
        match self.next().await {
            Some(Packet::Publish(publish)) => {
                match publish.qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => self.send(Packet::PubAck(PubAck::new(publish.pkid))).await,
                    QoS::ExactlyOnce => self.receive_once(publish.pkid).await,
                }
                Arrived {
                    topic: publish.topic,
                    payload: String::from_utf8_lossy(&publish.payload).into_owned(),
                    qos: publish.qos,
                    retain: publish.retain,
                }
            }
            other => panic!("no message but {other:?}"),
        }
    }

    /// The rest of an exchange of QoS 2; messages that come meanwhile are for later.
    async fn receive_once(&mut self, id: u16) {
        self.send(Packet::PubRec(PubRec::new(id))).await;
        let mut later = Vec::new();
        loop {
            match self.next().await {
                Some(Packet::PubRel(release)) if release.pkid == id => break,
                Some(packet) => later.push(packet),
                None => panic!("no PUBREL"),
            }
        }
        self.set_aside.extend(later);
        self.send(Packet::PubComp(PubComp::new(id))).await;
    }

    /// Topics and payloads of the next `count` messages.
    pub(crate) async fn messages(&mut self, count: usize) -> BTreeMap<String, String> {
        let mut messages = BTreeMap::new();
        for _ in 0..count {
            let message = self.message().await;
            messages.insert(message.topic, message.payload);
        }
        messages
    }

    /// Asserts that nothing is on its way: a PINGRESP comes next.
    pub(crate) async fn expect_nothing(&mut self) {
        self.send(Packet::PingReq).await;
        let next = self.next().await;
        assert_eq!(next, Some(Packet::PingResp));
    }

    /// Asserts that the broker closes, without a further packet.
    pub(crate) async fn expect_closed(&mut self) {
        let next = self.next().await;
        assert_eq!(next, None, "the broker did not close");
    }

    pub(crate) async fn disconnect(mut self) {
        self.send(Packet::Disconnect).await;
        self.expect_closed().await;
    }
}

pub(crate) fn with_will(id: &str, topic: &str, payload: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.last_will = Some(LastWill::new(topic, payload, QoS::AtLeastOnce, true));
    connect
}
