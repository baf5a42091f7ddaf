//! Who gets a CONNACK, and who gets none.

use std::sync::Arc;
use std::time::Duration;

use hoist_broker::Options;
use hoist_certs::Role;
use hoist_certs::authority::{Authority, days};
use hoist_protocol::FleetName;
use rumqttc::{Connect, ConnectReturnCode, LastWill, Packet, QoS};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Client, PATIENCE, World, topic, with_will};

/// A CONNECT of MQTT 3.1.1, clean session, keep-alive 60 s, client id `web-1`.
const CONNECT: &[u8] = &[
    0x10, 17, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 5, b'w', b'e', b'b', b'-', b'1',
];

#[tokio::test]
async fn a_client_id_is_the_certificates() {
    let world = World::new();
    let broker = world.start().await;
    let refused = ConnectReturnCode::BadClientId;
    let accepted = ConnectReturnCode::Success;
    for (role, id, expected) in [
        (Role::Agent, "web-1", accepted),
        (Role::Agent, "web-2", refused),
        (Role::Agent, "", refused),
        (Role::Publisher, "web-1.7", accepted),
        (Role::Publisher, "", accepted),
        (Role::Publisher, "web-1", refused),
        (Role::Monitor, "web-1.Grafana-2", accepted),
        (Role::Monitor, "", accepted),
        (Role::Monitor, "other.1", refused),
        (Role::Admin, "web-1.a", accepted),
    ] {
        let mut client = world.tls(&broker, role, "web-1").await;
        let code = client.connect(Connect::new(id)).await;
        assert_eq!(code, expected, "{role} {id:?}");
        if code != accepted {
            client.expect_closed().await;
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn an_empty_client_id_needs_a_clean_session() {
    let world = World::new();
    let broker = world.start().await;
    let mut client = world.tls(&broker, Role::Monitor, "mon").await;
    let mut connect = Connect::new("");
    connect.clean_session = false;
    assert_eq!(
        client.connect(connect).await,
        ConnectReturnCode::BadClientId
    );
    // With a name it is accepted, and answered without a session as every client is.
    let mut client = world.tls(&broker, Role::Monitor, "mon").await;
    let mut connect = Connect::new("mon.1");
    connect.clean_session = false;
    assert_eq!(client.connect(connect).await, ConnectReturnCode::Success);
    assert!(world.monitor(&broker).await.subscribe(&["#"]).await[0] == granted());
    broker.stop().await;
}

fn granted() -> rumqttc::SubscribeReasonCode {
    rumqttc::SubscribeReasonCode::Success(QoS::AtLeastOnce)
}

#[tokio::test]
async fn a_will_that_may_not_be_published_is_refused_at_once() {
    let world = World::new();
    let broker = world.start().await;
    let (own, other) = (topic("web-1", "presence"), topic("web-2", "presence"));
    for (will, expected) in [
        (
            LastWill::new(&own, "offline", QoS::AtLeastOnce, true),
            ConnectReturnCode::Success,
        ),
        (
            LastWill::new(&other, "offline", QoS::AtLeastOnce, true),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            LastWill::new(&own, "offline", QoS::AtLeastOnce, false),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            LastWill::new(&own, "offline", QoS::ExactlyOnce, true),
            ConnectReturnCode::Success,
        ),
        (
            LastWill::new(&own, "", QoS::AtLeastOnce, true),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            LastWill::new(&own, "maybe", QoS::AtLeastOnce, true),
            ConnectReturnCode::NotAuthorized,
        ),
        (
            LastWill::new(topic("web-1", "deploy"), "x", QoS::AtLeastOnce, true),
            ConnectReturnCode::NotAuthorized,
        ),
    ] {
        let mut client = world.tls(&broker, Role::Agent, "web-1").await;
        let mut connect = Connect::new("web-1");
        connect.last_will = Some(will.clone());
        assert_eq!(client.connect(connect).await, expected, "{will:?}");
    }
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    let code = monitor.connect(with_will("mon.1", &own, "offline")).await;
    assert_eq!(code, ConnectReturnCode::NotAuthorized);
    broker.stop().await;
}

#[tokio::test]
async fn another_protocol_level_is_told_so() {
    let world = World::new();
    let broker = world.start().await;
    for level in [3, 6] {
        let mut client = world.tls(&broker, Role::Agent, "web-1").await;
        let mut bytes = CONNECT.to_vec();
        bytes[8] = level;
        client.send_bytes(&bytes).await;
        let Some(Packet::ConnAck(ack)) = client.next().await else {
            panic!("no CONNACK for level {level}");
        };
        assert_eq!(ack.code, ConnectReturnCode::RefusedProtocolVersion);
        client.expect_closed().await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_breach_of_the_protocol_closes() {
    let world = World::new();
    let broker = world.start().await;
    for (what, bytes) in [
        ("something before the CONNECT", &[0xc0, 0][..]),
        (
            "a wrong protocol name",
            &[
                0x10, 14, 0, 4, b'H', b'T', b'T', b'P', 4, 2, 0, 60, 0, 2, b'm', b'e',
            ],
        ),
        (
            "a reserved flag",
            &[
                0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 3, 0, 60, 0, 2, b'm', b'e',
            ],
        ),
        ("256 MB announced", &[0x10, 0xff, 0xff, 0xff, 0x7f]),
        ("noise", b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        let mut client = world.tls(&broker, Role::Agent, "web-1").await;
        client.send_bytes(bytes).await;
        assert_eq!(client.next().await, None, "{what}");
    }
    for (what, bytes) in [
        ("a second CONNECT", CONNECT),
        ("a topic that is no UTF-8", &[0x30, 4, 0, 2, 0xff, 0xfe]),
        (
            "a publish to a wildcard",
            &[0x30, 5, 0, 3, b'a', b'/', b'+'],
        ),
        (
            "a publish to a $ topic",
            &[0x30, 6, 0, 4, b'$', b'S', b'Y', b'S'],
        ),
        (
            "a topic that starts beyond ASCII",
            &[0x30, 4, 0, 2, 0xc3, 0xa4],
        ),
        ("an empty topic", &[0x30, 2, 0, 0]),
        ("wrong flags", &[0x80, 0]),
        ("a packet of a server", &[0x20, 2, 0, 0]),
        ("a SUBSCRIBE without a filter", &[0x82, 2, 0, 1]),
        (
            "a filter that is none",
            &[0x82, 7, 0, 1, 0, 2, b'#', b'#', 0],
        ),
        ("an acknowledgement for nothing", &[0x40, 2, 0, 1]),
        ("the end of an exchange that never began", &[0x70, 2, 0, 1]),
        ("256 MB announced", &[0x30, 0xff, 0xff, 0xff, 0x7f]),
    ] {
        let mut client = world.agent(&broker, "web-1").await;
        client.send_bytes(bytes).await;
        assert_eq!(client.next().await, None, "{what}");
    }
    // None of that hurts anybody else.
    world.agent(&broker, "web-2").await.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn what_is_sent_right_after_the_connect_is_answered_after_the_connack() {
    let world = World::new();
    let broker = world.start().await;
    let mut client = world.tls(&broker, Role::Agent, "web-1").await;
    client
        .send_bytes(&[CONNECT, &[0xc0, 0], &[0xe0, 0]].concat())
        .await;
    assert!(matches!(client.next().await, Some(Packet::ConnAck(_))));
    assert_eq!(client.next().await, Some(Packet::PingResp));
    client.expect_closed().await;
    broker.stop().await;
}

#[tokio::test]
async fn only_certificates_of_our_authority_get_in() {
    let world = World::new();
    let broker = world.start().await;
    // Another authority of the same name.
    let fleet = FleetName::new("prod").unwrap();
    let other = Authority::create(&fleet, days(2)).unwrap();
    let name = crate::support::name("web-1");
    let issued = other.issue(Role::Agent, &name, &[], days(1)).unwrap();
    let tls = issued
        .credentials(world.authority.certificate_pem())
        .client()
        .unwrap();
    assert_no_session(Client::try_tls(&broker, tls.config()).await).await;
    // No certificate at all.
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls::pki_types::pem::PemObject::pem_slice_iter(
        world.authority.certificate_pem().as_bytes(),
    ) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert_no_session(Client::try_tls(&broker, Arc::new(config)).await).await;
    broker.stop().await;
}

/// TLS 1.3 tells a client of its refusal only after its own side of the handshake is done.
async fn assert_no_session(client: std::io::Result<Client>) {
    if let Ok(mut client) = client {
        client.send_bytes(CONNECT).await;
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_holds_up_nobody_and_is_closed() {
    let short = Options {
        handshake_timeout: Some("200ms".to_owned()),
        connect_timeout: Some("200ms".to_owned()),
        ..Options::default()
    };
    let world = World::with(short);
    let broker = world.start().await;
    let mut idle = TcpStream::connect(broker.address).await.unwrap();
    let mut without_connect = world.tls(&broker, Role::Agent, "web-1").await;
    world.agent(&broker, "web-2").await.expect_nothing().await;
    let read = timeout(PATIENCE, idle.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    without_connect.expect_closed().await;
    broker.stop().await;
}

#[tokio::test]
async fn bytes_that_trickle_do_not_put_off_the_end_of_a_connection_without_a_connect() {
    let short = Options {
        connect_timeout: Some("300ms".to_owned()),
        ..Options::default()
    };
    let world = World::with(short);
    let broker = world.start().await;
    let mut client = world.tls(&broker, Role::Agent, "web-1").await;
    let closed = async {
        // The header of a long CONNECT, a byte at a time, for ever.
        client.send_bytes(&[0x10, 0xff, 0x7f]).await;
        loop {
            client.send_bytes(&[0]).await;
            if timeout(Duration::from_millis(10), client.next())
                .await
                .is_ok()
            {
                break;
            }
        }
    };
    timeout(PATIENCE, closed)
        .await
        .expect("it was never closed");
    broker.stop().await;
}

#[tokio::test]
async fn a_silence_longer_than_the_keep_alive_ends_a_session_and_leaves_its_will() {
    let world = World::new();
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&["hoist/v1/prod/web-1/presence"]).await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    let mut connect = with_will("web-1", &topic("web-1", "presence"), "offline");
    connect.keep_alive = 1;
    agent.connect(connect).await;
    agent.retain(&topic("web-1", "presence"), "online").await;
    assert_eq!(monitor.message().await.payload, "online");
    agent.expect_closed().await;
    assert_eq!(monitor.message().await.payload, "offline");
    broker.stop().await;
}
