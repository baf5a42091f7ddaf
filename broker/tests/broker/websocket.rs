//! MQTT over WebSocket: the same sessions behind the same certificates, in binary messages.

use std::net::SocketAddr;

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::{Connect, ConnectReturnCode, Packet, QoS, Subscribe};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::seen::wait_for_value;
use crate::support::{Broker, PATIENCE, World, topic};

fn served() -> World {
    served_with(Options::default())
}

fn served_with(options: Options) -> World {
    World::with(options.or(Options {
        websocket_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        websocket_origins: Some(vec!["https://fleet.example.org".to_owned()]),
        ..Options::default()
    }))
}

struct Page {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    received: BytesMut,
}

impl Page {
    async fn open(
        world: &World,
        broker: &Broker,
        (role, who): (Role, &str),
        origin: Option<&'static str>,
    ) -> Result<Self, Error> {
        let tls = world.credentials("prod", role, who).client().unwrap();
        let tcp = TcpStream::connect(broker.websocket.unwrap()).await?;
        let host = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(tls.config()).connect(host, tcp).await?;
        let mut request = "wss://localhost/mqtt".into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("mqtt"));
        if let Some(origin) = origin {
            headers.insert("origin", HeaderValue::from_static(origin));
        }
        let (socket, _) = timeout(PATIENCE, client_async(request, stream))
            .await
            .unwrap()?;
        let received = BytesMut::new();
        Ok(Self { socket, received })
    }

    async fn send(&mut self, bytes: &[u8]) {
        let message = Message::Binary(bytes.to_vec().into());
        // A broker that has closed already is what some tests wait for.
        self.socket.send(message).await.ok();
    }

    async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Ok(packet) = Packet::read(&mut self.received, usize::MAX) {
                return Some(packet);
            }
            match timeout(PATIENCE, self.socket.next())
                .await
                .expect("nothing came")
            {
                Some(Ok(Message::Binary(bytes))) => self.received.extend_from_slice(&bytes),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }
}

fn bytes(packet: &Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, usize::MAX).unwrap();
    bytes.to_vec()
}

#[tokio::test]
async fn a_page_watches_a_fleet() {
    let world = served();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    agent.retain(&status, "1").await;
    let origin = Some("https://fleet.example.org");
    let monitor = (Role::Monitor, "mon");
    let mut page = Page::open(&world, &broker, monitor, origin).await.unwrap();
    let mut connect = Connect::new("mon.page");
    connect.keep_alive = 60;
    let mut subscribe = Subscribe::new("hoist/v1/prod/+/status", QoS::AtMostOnce);
    subscribe.pkid = 1;
    // Cut where no packet ends.
    let all = [
        bytes(&Packet::Connect(connect)),
        bytes(&Packet::Subscribe(subscribe)),
    ]
    .concat();
    for part in all.chunks(11) {
        page.send(part).await;
    }
    match page.next().await {
        Some(Packet::ConnAck(ack)) => assert_eq!(ack.code, ConnectReturnCode::Success),
        other => panic!("{other:?}"),
    }
    assert!(matches!(page.next().await, Some(Packet::SubAck(_))));
    for payload in ["1", "2", "3"] {
        match page.next().await {
            Some(Packet::Publish(publish)) => assert_eq!(publish.payload, payload),
            other => panic!("{other:?}"),
        }
        let next = payload.parse::<u32>().unwrap() + 1;
        agent.retain(&status, next.to_string()).await;
    }
    broker.stop().await;
    while page.next().await.is_some() {}
}

#[tokio::test]
async fn a_page_is_let_in_by_its_origin_and_does_what_its_certificate_may() {
    let world = served();
    let broker = world.start().await;
    let agent = (Role::Agent, "web-1");
    let foreign = Page::open(&world, &broker, agent, Some("https://evil.example.org")).await;
    match foreign {
        Err(Error::Http(response)) => assert_eq!(response.status(), 403),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("another page was let in"),
    }
    // Who is no browser has no origin, and the same rules as everybody.
    let mut page = Page::open(&world, &broker, agent, None).await.unwrap();
    page.send(&bytes(&Packet::Connect(Connect::new("web-2"))))
        .await;
    match page.next().await {
        Some(Packet::ConnAck(ack)) => assert_eq!(ack.code, ConnectReturnCode::BadClientId),
        other => panic!("{other:?}"),
    }
    assert_eq!(page.next().await, None);
    // The port of TCP speaks MQTT alone.
    let mut plain = world.tls(&broker, Role::Agent, "web-1").await;
    plain
        .send_bytes(b"GET /mqtt HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
        .await;
    plain.expect_closed().await;
    broker.stop().await;
}

#[tokio::test]
async fn text_and_what_is_too_long_close_the_connection() {
    let world = served();
    let broker = world.start().await;
    for message in [
        Message::text("CONNECT"),
        Message::Binary(vec![0x10; 200_000].into()),
    ] {
        let mut page = Page::open(&world, &broker, (Role::Monitor, "mon"), None)
            .await
            .unwrap();
        // The broker may have closed before all of it was sent.
        page.socket.send(message).await.ok();
        assert_eq!(page.next().await, None);
    }
    broker.stop().await;
}

#[tokio::test]
async fn what_is_no_mqtt_counts_as_well() {
    let world = served_with(Options {
        agent_byte_rate: Some("1/s burst 10000".parse().unwrap()),
        metrics_listen: Some("0".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut page = Page::open(&world, &broker, (Role::Agent, "web-1"), None)
        .await
        .unwrap();
    page.send(&bytes(&Packet::Connect(Connect::new("web-1"))))
        .await;
    assert!(matches!(page.next().await, Some(Packet::ConnAck(_))));
    for _ in 0..100 {
        let ping = Message::Ping(vec![0; 125].into());
        page.socket.feed(ping).await.unwrap();
    }
    page.socket.flush().await.unwrap();
    let slowed = "hoist_broker_refusals_total{reason=\"rate\"}";
    wait_for_value(broker.metrics.unwrap(), slowed, "1").await;
    broker.stop().await;
}
