//! What a broker that knows the fleet's keys keeps out of the deploy topics.

use std::time::Duration;

use hoist_broker::Options;
use hoist_certs::Role;
use hoist_protocol::{
    AgentName, Deployment, DeploymentId, DeploymentParts, FleetName, Goal, Held, KeyName, Machine,
    Order, Provenance, SigningKey, StorePath, Target, Timestamp, sign,
};

use crate::support::{Broker, Client, World, topic};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new("ci").unwrap(), &[seed; 32].into())
}

pub(crate) fn deployment(
    fleet: &str,
    agent: &str,
    epoch: u32,
    sequence: u64,
    by: &SigningKey,
) -> Vec<u8> {
    let path = format!("/nix/store/{}-system", "a".repeat(32));
    let now = Timestamp::from_ms(1_700_000_000_000);
    let parts = DeploymentParts {
        machine: Machine::new(
            FleetName::new(fleet).unwrap(),
            AgentName::new(agent).unwrap(),
        ),
        order: Order {
            epoch,
            sequence,
            id: "0196f3a0-7c3e-7b5a-9d5e-0123456789ab"
                .parse::<DeploymentId>()
                .unwrap(),
        },
        issued: now,
        expires: now.plus(Duration::from_secs(3600)),
        target: Target::new(Goal::Closure(StorePath::new(path).unwrap())),
        held: Held::No,
        cancels: None,
        renews: None,
        provenance: Provenance::default(),
    };
    sign(&Deployment::new(parts).unwrap(), std::slice::from_ref(by)).unwrap()
}

fn trusting() -> World {
    World::with(Options {
        trusted_keys: Some(vec![key(1).public()]),
        ..Options::default()
    })
}

async fn publisher(world: &World, broker: &Broker) -> Client {
    world.client(broker, Role::Publisher, "ci").await
}

#[tokio::test]
async fn only_what_a_trusted_key_signed_for_this_machine_is_kept() {
    let world = trusting();
    let broker = world.start().await;
    let deploy = topic("web-1", "deploy");
    let good = deployment("prod", "web-1", 0, 10, &key(1));
    let mut damaged = deployment("prod", "web-1", 0, 11, &key(1));
    *damaged.last_mut().unwrap() ^= 1;
    assert!(
        publisher(&world, &broker)
            .await
            .retain(&deploy, &good)
            .await
    );
    for (what, payload) in [
        ("junk", b"junk".to_vec()),
        ("another key's", deployment("prod", "web-1", 0, 11, &key(2))),
        (
            "another machine's",
            deployment("prod", "web-2", 0, 11, &key(1)),
        ),
        (
            "another fleet's",
            deployment("test", "web-1", 0, 11, &key(1)),
        ),
        ("a damaged one", damaged),
        ("an older one", deployment("prod", "web-1", 0, 9, &key(1))),
        (
            "one of a higher epoch",
            deployment("prod", "web-1", 1, 11, &key(1)),
        ),
    ] {
        let mut publisher = publisher(&world, &broker).await;
        assert!(
            !publisher.retain(&deploy, payload).await,
            "{what} was acknowledged"
        );
    }
    assert_retained(&world, &broker, &good).await;
    broker.stop().await;
    // After a restart the order still stands.
    let broker = world.start().await;
    let older = deployment("prod", "web-1", 0, 9, &key(1));
    assert!(
        !publisher(&world, &broker)
            .await
            .retain(&deploy, older)
            .await
    );
    let newer = deployment("prod", "web-1", 0, 11, &key(1));
    assert!(
        publisher(&world, &broker)
            .await
            .retain(&deploy, &newer)
            .await
    );
    assert_retained(&world, &broker, &newer).await;
    broker.stop().await;
}

async fn assert_retained(world: &World, broker: &Broker, payload: &[u8]) {
    let mut agent = world.agent(broker, "web-1").await;
    agent.subscribe(&[&topic("web-1", "deploy")]).await;
    let message = agent.message().await;
    assert!(message.retain);
    assert_eq!(message.payload, String::from_utf8_lossy(payload));
}

#[tokio::test]
async fn the_very_same_again_is_acknowledged_and_not_delivered_again() {
    let world = trusting();
    let broker = world.start().await;
    let deploy = topic("web-1", "deploy");
    let mut publisher = publisher(&world, &broker).await;
    let mut agent = world.agent(&broker, "web-1").await;
    agent.subscribe(&[&deploy]).await;
    let first = deployment("prod", "web-1", 0, 10, &key(1));
    assert!(publisher.retain(&deploy, &first).await);
    assert!(publisher.retain(&deploy, &first).await);
    agent.message().await;
    agent.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_refused_deploy_takes_none_of_its_batch_with_it() {
    let world = trusting();
    let broker = world.start().await;
    let mut ours = publisher(&world, &broker).await;
    // In one write, so that the store sees them together: the last one is older than the first.
    for (agent, sequence) in [("web-1", 10), ("web-2", 10), ("web-1", 9)] {
        let payload = deployment("prod", agent, 0, sequence, &key(1));
        ours.send_publish(
            &topic(agent, "deploy"),
            rumqttc::QoS::AtLeastOnce,
            true,
            &payload,
        )
        .await;
    }
    for n in 1..=2 {
        let Some(rumqttc::Packet::PubAck(ack)) = ours.next().await else {
            panic!("no PUBACK {n}");
        };
        assert_eq!(ack.pkid, n);
    }
    ours.expect_closed().await;
    assert_retained(
        &world,
        &broker,
        &deployment("prod", "web-1", 0, 10, &key(1)),
    )
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn two_publishers_at_once_leave_the_higher_order() {
    let world = trusting();
    let broker = world.start().await;
    for round in 1..20 {
        let (low, high) = (round * 10, round * 10 + 1);
        let publish = |sequence| {
            let payload = deployment("prod", "web-1", 0, sequence, &key(1));
            let (world, broker) = (&world, &broker);
            async move {
                let mut client = world.tls(broker, Role::Publisher, "ci").await;
                client
                    .connect(rumqttc::Connect::new(format!("ci.{sequence}")))
                    .await;
                client.retain(&topic("web-1", "deploy"), payload).await
            }
        };
        let (_, won) = tokio::join!(publish(low), publish(high));
        assert!(won, "the higher one is never refused");
        assert_retained(
            &world,
            &broker,
            &deployment("prod", "web-1", 0, high, &key(1)),
        )
        .await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn an_epoch_key_raises_the_epoch_and_an_admin_frees_the_slot() {
    let world = World::with(Options {
        trusted_keys: Some(vec![key(1).public(), key(3).public()]),
        epoch_keys: Some(vec![key(3).public()]),
        ..Options::default()
    });
    let broker = world.start().await;
    let deploy = topic("web-1", "deploy");
    let mut ours = publisher(&world, &broker).await;
    assert!(
        ours.retain(&deploy, deployment("prod", "web-1", 0, 50, &key(1)))
            .await
    );
    assert!(
        ours.retain(&deploy, deployment("prod", "web-1", 1, 5, &key(3)))
            .await
    );
    assert!(
        !ours
            .retain(&deploy, deployment("prod", "web-1", 0, 60, &key(1)))
            .await
    );
    let mut admin = world.client(&broker, Role::Admin, "root").await;
    assert!(admin.retain(&deploy, "").await);
    let mut ours = publisher(&world, &broker).await;
    assert!(
        ours.retain(&deploy, deployment("prod", "web-1", 0, 1, &key(1)))
            .await
    );
    broker.stop().await;
}

#[tokio::test]
async fn what_was_retained_before_the_keys_were_known_gives_way() {
    let world = World::new();
    let broker = world.start().await;
    let deploy = topic("web-1", "deploy");
    assert!(
        publisher(&world, &broker)
            .await
            .retain(&deploy, "unsigned")
            .await
    );
    broker.stop().await;
    let world = world.and(Options {
        trusted_keys: Some(vec![key(1).public()]),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut ours = publisher(&world, &broker).await;
    assert!(
        ours.retain(&deploy, deployment("prod", "web-1", 0, 1, &key(1)))
            .await
    );
    broker.stop().await;
}
