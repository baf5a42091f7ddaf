//! What a hostile client does, and what it costs the others: nothing.

use std::time::Duration;

use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::{Connect, ConnectReturnCode, Packet, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::seen::wait_for_value;
use crate::support::{Broker, Client, PATIENCE, World, topic};

/// How long a trickling client waits between two bytes.
const TRICKLE: Duration = Duration::from_millis(10);

/// Waits for the other side to close; how it does that does not matter.
async fn closed(stream: &mut TcpStream) {
    let mut bytes = [0; 256];
    let reading = async { while matches!(stream.read(&mut bytes).await, Ok(1..)) {} };
    timeout(PATIENCE, reading).await.expect("it was not closed");
}

/// The head of a TLS record of a handshake that announces a ClientHello of `len` bytes.
fn client_hello(len: u16) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    let [r_high, r_low] = (len + 4).to_be_bytes();
    vec![22, 3, 1, r_high, r_low, 1, 0, high, low]
}

#[tokio::test]
async fn a_handshake_that_trickles_is_closed_in_its_time() {
    let world = World::with(Options {
        handshake_timeout: Some("500ms".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut slow = TcpStream::connect(broker.address).await.unwrap();
    let trickling = async {
        for byte in client_hello(16_000)
            .into_iter()
            .chain([0].into_iter().cycle())
        {
            if slow.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(TRICKLE).await;
        }
    };
    timeout(PATIENCE, trickling)
        .await
        .expect("it goes on for ever");
    broker.stop().await;
}

#[tokio::test]
async fn a_stranger_may_send_so_much_and_no_more() {
    let world = World::with(Options {
        max_handshake_bytes: Some(8192),
        // Only the number of bytes can end it.
        handshake_timeout: Some("1h".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut greedy = TcpStream::connect(broker.address).await.unwrap();
    // A ClientHello of 60 KB in records of 16 KB, which TLS allows.
    let mut hello = vec![1, 0, 0xea, 0x60];
    hello.resize(16_000, 0);
    let sending = async {
        loop {
            let [high, low] = u16::try_from(hello.len()).unwrap().to_be_bytes();
            let record = [&[22, 3, 1, high, low][..], &hello].concat();
            if greedy.write_all(&record).await.is_err() {
                break;
            }
            hello = vec![0; 1000];
            sleep(TRICKLE).await;
        }
    };
    timeout(PATIENCE, sending)
        .await
        .expect("it goes on for ever");
    // An ordinary client needs far less.
    world.agent(&broker, "web-1").await.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_packet_that_trickles_ends_the_session_although_bytes_keep_coming() {
    let world = World::with(Options {
        packet_timeout: Some("500ms".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut slow = world.agent(&broker, "web-1").await;
    let mut other = world.agent(&broker, "web-2").await;
    let trickling = async {
        // A publish of 16,000 bytes, a byte at a time.
        slow.send_bytes(&[0x31, 0x80, 0x7d]).await;
        loop {
            slow.send_bytes(&[0]).await;
            if timeout(TRICKLE, slow.next()).await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, trickling)
        .await
        .expect("it goes on for ever");
    // Packets that are whole may come as slowly as the keep-alive allows, for longer than that.
    for _ in 0..70 {
        other.expect_nothing().await;
        sleep(TRICKLE).await;
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_take_no_place_of_anybody() {
    let world = World::with(Options {
        max_connections: Some(3),
        max_handshakes: Some(20),
        handshake_timeout: Some("1h".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut inside = world.agent(&broker, "web-1").await;
    let mut hanging = Vec::new();
    for _ in 0..19 {
        hanging.push(TcpStream::connect(broker.address).await.unwrap());
    }
    // There is one place left for a handshake, and two for connections.
    let mut second = eventually(&world, &broker, "web-2").await;
    let mut last = eventually(&world, &broker, "web-3").await;
    for client in [&mut inside, &mut second, &mut last] {
        client.expect_nothing().await;
    }
    // All places of handshakes are taken: who is in stays in.
    hanging.push(TcpStream::connect(broker.address).await.unwrap());
    let mut beyond = TcpStream::connect(broker.address).await.unwrap();
    closed(&mut beyond).await;
    inside.expect_nothing().await;
    broker.stop().await;
}

/// A client, as soon as there is a place for its handshake.
async fn eventually(world: &World, broker: &Broker, who: &str) -> Client {
    let tls = world
        .credentials("prod", Role::Agent, who)
        .client()
        .unwrap();
    let trying = async {
        loop {
            if let Ok(mut client) = Client::try_tls(broker, tls.config()).await {
                client.send(Packet::Connect(Connect::new(who))).await;
                if client.next().await.is_some() {
                    return client;
                }
            }
            sleep(TRICKLE).await;
        }
    };
    timeout(PATIENCE, trying).await.expect("no place came free")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_leaves_those_alone_who_are_in() {
    let world = World::with(Options {
        handshake_timeout: Some("300ms".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&topic("web-1", "status")]).await;
    let address = broker.address;
    let flood: Vec<_> = (0..4_u8)
        .map(|kind| {
            tokio::spawn(async move {
                for n in 0..200 {
                    let Ok(mut stream) = TcpStream::connect(address).await else {
                        continue;
                    };
                    // Noise, the beginning of a hello, a whole record of nothing, or not a word.
                    let bytes = match kind {
                        0 => vec![n; 64],
                        1 => client_hello(500),
                        2 => [&client_hello(100)[..], &[0; 100]].concat(),
                        _ => Vec::new(),
                    };
                    stream.write_all(&bytes).await.ok();
                }
            })
        })
        .collect();
    let mut n = 0;
    while n < 100 || flood.iter().any(|task| !task.is_finished()) {
        n += 1;
        assert!(agent.retain(&topic("web-1", "status"), n.to_string()).await);
        assert_eq!(monitor.message().await.payload, n.to_string());
    }
    world.agent(&broker, "web-2").await.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn connections_from_one_address_have_a_limit_and_a_rate() {
    let world = World::with(Options {
        max_connections_per_address: Some(2),
        ..Options::default()
    });
    let broker = world.start().await;
    let _first = world.agent(&broker, "web-1").await;
    let second = world.agent(&broker, "web-2").await;
    let mut third = TcpStream::connect(broker.address).await.unwrap();
    closed(&mut third).await;
    second.disconnect().await;
    eventually(&world, &broker, "web-3").await;
    broker.stop().await;

    let world = world.and(Options {
        // Nobody waits for the next one to be earned.
        connect_rate: Some("1/min burst 3".parse().unwrap()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut stays = world.agent(&broker, "web-1").await;
    for _ in 0..2 {
        world.agent(&broker, "web-2").await.disconnect().await;
    }
    let mut turned_away = 0;
    for _ in 0..3 {
        let tls = world
            .credentials("prod", Role::Agent, "web-2")
            .client()
            .unwrap();
        turned_away += usize::from(Client::try_tls(&broker, tls.config()).await.is_err());
    }
    assert!(turned_away >= 2, "only {turned_away} of 3 were turned away");
    stays.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn two_machines_with_one_certificate_end_their_loop() {
    let world = World::with(Options {
        takeover_rate: Some("1/min burst 3".parse().unwrap()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut current = world.agent(&broker, "web-1").await;
    let mut taken_over = 0;
    loop {
        let mut next = world.tls(&broker, Role::Agent, "web-1").await;
        let code = next.connect(Connect::new("web-1")).await;
        if code != ConnectReturnCode::Success {
            assert_eq!(code, ConnectReturnCode::ServiceUnavailable);
            next.expect_closed().await;
            break;
        }
        current.expect_closed().await;
        current = next;
        taken_over += 1;
        assert!(taken_over < 100, "the loop goes on");
    }
    assert!(taken_over >= 3, "it ended after {taken_over} already");
    // The one that is there stays, and others are none of this.
    current.expect_nothing().await;
    world.agent(&broker, "web-2").await.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn who_publishes_too_fast_is_read_more_slowly_and_nothing_is_lost() {
    let world = World::with(Options {
        agent_publish_rate: Some("100/s burst 10".parse().unwrap()),
        agent_byte_rate: Some("1000000/s".parse().unwrap()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut fast = world.agent(&broker, "web-1").await;
    let status = topic("web-1", "status");
    for n in 0..100 {
        let payload = n.to_string();
        fast.send_publish(&status, QoS::AtLeastOnce, true, payload.as_bytes())
            .await;
    }
    // Another one is not held up by it.
    let mut other = world.agent(&broker, "web-2").await;
    assert!(other.retain(&topic("web-2", "status"), "x").await);
    for _ in 0..100 {
        assert!(matches!(fast.next().await, Some(Packet::PubAck(_))));
    }
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload, "99");
    broker.stop().await;
}

#[tokio::test]
async fn a_client_that_is_read_slowly_is_not_taken_for_a_silent_one() {
    let world = World::with(Options {
        // What is sent takes 9 s to earn; a silence may last 6 s.
        agent_byte_rate: Some("4000/s burst 5000".parse().unwrap()),
        packet_timeout: Some("1s".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    let mut connect = Connect::new("web-1");
    connect.keep_alive = 4;
    assert_eq!(agent.connect(connect).await, ConnectReturnCode::Success);
    for _ in 0..4 {
        let payload = vec![b'x'; 10_000];
        agent
            .send_publish(&topic("web-1", "status"), QoS::AtLeastOnce, true, &payload)
            .await;
    }
    for _ in 0..4 {
        assert!(matches!(agent.next().await, Some(Packet::PubAck(_))));
    }
    broker.stop().await;
}

#[tokio::test]
async fn who_subscribes_too_fast_is_read_more_slowly() {
    let world = World::with(Options {
        agent_publish_rate: Some("1/s burst 2".parse().unwrap()),
        metrics_listen: Some("0".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    let filter = topic("web-1", "deploy");
    let len = u8::try_from(filter.len()).unwrap();
    let subscribe = [&[0x82, len + 5, 0, 1, 0, len], filter.as_bytes(), &[1]].concat();
    // All in one go: no second of waiting comes between.
    agent.send_bytes(&subscribe.repeat(5)).await;
    for _ in 0..5 {
        assert!(matches!(agent.next().await, Some(Packet::SubAck(_))));
    }
    let slowed = "hoist_broker_refusals_total{reason=\"rate\"}";
    wait_for_value(broker.metrics.unwrap(), slowed, "1").await;
    agent.expect_nothing().await;
    broker.stop().await;
}
