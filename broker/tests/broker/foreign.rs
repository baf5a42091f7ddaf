//! The client that Hoist's own programs use, with its own event loop.

use std::time::Duration;

use hoist_certs::Role;
use rumqttc::{AsyncClient, Event, EventLoop, Packet, QoS};
use tokio::time::timeout;

use crate::support::{Broker, PATIENCE, World, topic};

fn client(
    world: &World,
    broker: &Broker,
    role: Role,
    who: &str,
    id: &str,
) -> (AsyncClient, EventLoop) {
    let tls = world.credentials("prod", role, who).client().unwrap();
    let url = format!("mqtts://localhost:{}", broker.address.port())
        .parse()
        .unwrap();
    hoist_certs::mqtt::client(hoist_certs::mqtt::options(&url, id, &tls), 100)
}

async fn until<T>(events: &mut EventLoop, wanted: impl Fn(&Packet) -> Option<T>) -> T {
    let search = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.unwrap()
                && let Some(found) = wanted(&packet)
            {
                return found;
            }
        }
    };
    timeout(PATIENCE, search).await.expect("it never came")
}

#[tokio::test]
async fn rumqttc_publishes_subscribes_and_reads_back() {
    let world = World::new();
    let broker = world.start().await;
    let (agent, mut agent_events) = client(&world, &broker, Role::Agent, "web-1", "web-1");
    let (monitor, mut monitor_events) = client(&world, &broker, Role::Monitor, "mon", "mon.1");
    monitor
        .subscribe("hoist/v1/prod/+/status", QoS::AtLeastOnce)
        .await
        .unwrap();
    until(&mut monitor_events, |p| {
        matches!(p, Packet::SubAck(_)).then_some(())
    })
    .await;
    for n in 0..200_u32 {
        let status = topic("web-1", "status");
        agent
            .publish(status, QoS::AtLeastOnce, true, n.to_string())
            .await
            .unwrap();
        until(&mut agent_events, |p| {
            matches!(p, Packet::PubAck(_)).then_some(())
        })
        .await;
        let payload = until(&mut monitor_events, |packet| match packet {
            Packet::Publish(publish) => Some(publish.payload.clone()),
            _ => None,
        });
        assert_eq!(payload.await, n.to_string());
    }
    broker.stop().await;
}

#[tokio::test]
async fn rumqttc_stays_connected_by_its_pings() {
    let world = World::new();
    let broker = world.start().await;
    let tls = world
        .credentials("prod", Role::Agent, "web-1")
        .client()
        .unwrap();
    let url = format!("mqtts://localhost:{}", broker.address.port())
        .parse()
        .unwrap();
    let mut options = hoist_certs::mqtt::options(&url, "web-1", &tls);
    options.set_keep_alive(Duration::from_secs(1));
    let (_agent, mut events) = hoist_certs::mqtt::client(options, 10);
    // Three pings at one a second are twice what the broker waits for without any.
    for _ in 0..3 {
        until(&mut events, |p| matches!(p, Packet::PingResp).then_some(())).await;
    }
    broker.stop().await;
}
