//! Several fleets on one broker: each has what is its own, and sees nothing of the others.

use std::collections::BTreeMap;

use camino::Utf8Path;
use hoist_broker::{FleetOptions, Fleets, Options, Settings};
use hoist_certs::authority::{Authority, days};
use hoist_certs::{Pem, Role};
use hoist_protocol::{FleetName, KeyName, SigningKey};
use rumqttc::{Connect, ConnectReturnCode, Packet, QoS, SubscribeReasonCode};

use crate::deploys::deployment;
use crate::support::{Broker, Client, World, name};

fn fleet(name: &str) -> FleetName {
    FleetName::new(name).unwrap()
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new("ci").unwrap(), &[seed; 32].into())
}

fn with_fleets(fleets: impl IntoIterator<Item = (&'static str, FleetOptions)>) -> World {
    let fleets: BTreeMap<_, _> = fleets
        .into_iter()
        .map(|(name, options)| (fleet(name), options))
        .collect();
    World::with(Options {
        fleets: Some(fleets),
        ..Options::default()
    })
}

async fn connect(world: &World, broker: &Broker, of: &str, role: Role, who: &str) -> Client {
    let mut client = world.tls_in(of, broker, role, who).await;
    let id = match role {
        Role::Agent => who.to_owned(),
        _ => format!("{who}.1"),
    };
    let code = client.connect(Connect::new(id)).await;
    assert_eq!(code, ConnectReturnCode::Success, "{of} {role} {who}");
    client
}

fn topic(fleet: &str, channel: &str) -> String {
    format!("hoist/v1/{fleet}/web-1/{channel}")
}

#[tokio::test]
async fn a_fleet_that_is_not_named_is_not_served() {
    let world = with_fleets([("prod", FleetOptions::default())]);
    let broker = world.start().await;
    connect(&world, &broker, "prod", Role::Agent, "web-1").await;
    let tls = world.credentials("test", Role::Agent, "web-1");
    let client = Client::try_tls(&broker, tls.client().unwrap().config()).await;
    // TLS 1.3 tells a client of its refusal only after its own side of the handshake is done.
    if let Ok(mut client) = client {
        client.send(Packet::Connect(Connect::new("web-1"))).await;
        client.expect_closed().await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn fleets_see_and_change_nothing_of_each_other() {
    let world = with_fleets(["prod", "test"].map(|name| (name, FleetOptions::default())));
    let broker = world.start().await;
    let mut machines = Vec::new();
    let mut watchers = Vec::new();
    for of in ["prod", "test"] {
        let mut watcher = connect(&world, &broker, of, Role::Monitor, "mon").await;
        watcher.subscribe(&["#", "hoist/v1/+/+/status"]).await;
        watchers.push(watcher);
        machines.push(connect(&world, &broker, of, Role::Agent, "web-1").await);
    }
    for (machine, of) in machines.iter_mut().zip(["prod", "test"]) {
        assert!(machine.retain(&topic(of, "status"), of).await);
    }
    for (watcher, of) in watchers.iter_mut().zip(["prod", "test"]) {
        assert_eq!(watcher.message().await.payload, of);
        watcher.expect_nothing().await;
    }
    // Each way to reach for the other fleet's topics.
    for (role, channel, payload) in [
        (Role::Agent, "status", "x"),
        (Role::Publisher, "deploy", "x"),
        (Role::Admin, "status", ""),
    ] {
        let who = if role == Role::Agent { "web-1" } else { "me" };
        let mut client = connect(&world, &broker, "prod", role, who).await;
        let refused = client
            .subscribe(&[&topic("test", channel), "hoist/v1/test/#"])
            .await;
        assert_eq!(refused, [SubscribeReasonCode::Failure; 2], "{role}");
        assert!(
            !client.retain(&topic("test", channel), payload).await,
            "{role}"
        );
    }
    watchers[1].expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn each_fleet_trusts_its_own_keys() {
    let of_key = |seed| FleetOptions {
        trusted_keys: Some(vec![key(seed).public()]),
        ..FleetOptions::default()
    };
    let world = with_fleets([("prod", of_key(1)), ("test", of_key(2))]);
    let broker = world.start().await;
    for (of, seed, taken) in [
        ("prod", 1, true),
        ("prod", 2, false),
        ("test", 2, true),
        ("test", 1, false),
    ] {
        let mut publisher = connect(&world, &broker, of, Role::Publisher, "ci").await;
        let signed = deployment(of, "web-1", 0, u64::from(seed), &key(seed));
        let retained = publisher.retain(&topic(of, "deploy"), signed).await;
        assert_eq!(retained, taken, "{of} {seed}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_fleet_with_a_ca_of_its_own_is_let_in_by_that_one_alone() {
    let own = Authority::create(&fleet("test"), days(2)).unwrap();
    let with_ca = FleetOptions {
        ca: Some(Pem::from(own.certificate_pem().to_owned())),
        ..FleetOptions::default()
    };
    let world = with_fleets([("prod", FleetOptions::default()), ("test", with_ca)]);
    let broker = world.start().await;
    let common = &world.authority;
    for (issuer, of, gets_in) in [
        (common, "prod", true),
        (&own, "test", true),
        (common, "test", false),
        (&own, "prod", false),
    ] {
        let issued = issuer
            .issue_in(&fleet(of), Role::Agent, &name("web-1"), &[], days(1))
            .unwrap();
        let tls = issued
            .credentials(common.certificate_pem())
            .client()
            .unwrap();
        let connected = match Client::try_tls(&broker, tls.config()).await {
            Ok(mut client) => {
                client.send(Packet::Connect(Connect::new("web-1"))).await;
                client.next().await.is_some()
            }
            Err(_) => false,
        };
        assert_eq!(connected, gets_in, "{of}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_fleet_that_has_its_share_of_connections_takes_none_of_another() {
    let two = FleetOptions {
        max_connections: Some(2),
        ..FleetOptions::default()
    };
    let world = with_fleets([("prod", two), ("test", FleetOptions::default())]);
    let broker = world.start().await;
    let mut held = Vec::new();
    for who in ["web-1", "web-2"] {
        held.push(connect(&world, &broker, "prod", Role::Agent, who).await);
    }
    let mut third = world.tls_in("prod", &broker, Role::Agent, "web-3").await;
    third.expect_closed().await;
    connect(&world, &broker, "test", Role::Agent, "web-3").await;
    for client in &mut held {
        client.expect_nothing().await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_fleet_whose_watchers_are_as_many_as_may_be_takes_none_of_another() {
    let one = FleetOptions {
        max_watchers: Some(1),
        ..FleetOptions::default()
    };
    let world = with_fleets([("prod", one), ("test", FleetOptions::default())]);
    let broker = world.start().await;
    let (all, own) = ("hoist/v1/prod/+/status", topic("prod", "status"));
    let granted = [SubscribeReasonCode::Success(QoS::AtLeastOnce)];
    let refused = [SubscribeReasonCode::Failure];
    let mut first = connect(&world, &broker, "prod", Role::Monitor, "mon-1").await;
    assert_eq!(first.subscribe(&[all]).await, granted);
    let mut second = connect(&world, &broker, "prod", Role::Monitor, "mon-2").await;
    assert_eq!(second.subscribe(&[all]).await, refused);
    // One machine alone takes no such place, and the refusal cost the session nothing.
    assert_eq!(second.subscribe(&[&own]).await, granted);
    assert_eq!(first.subscribe(&[all]).await, granted, "it has its place");
    let mut other = connect(&world, &broker, "test", Role::Monitor, "mon").await;
    let theirs = other.subscribe(&["hoist/v1/test/+/status"]).await;
    assert_eq!(theirs, granted, "the other fleet has its own");
    first.send(Packet::Disconnect).await;
    first.expect_closed().await;
    // The place is free when the broker has noticed.
    while second.subscribe(&[all]).await == refused {}
    broker.stop().await;
}

#[tokio::test]
async fn a_fleet_retains_no_more_than_its_quota_and_what_is_there_can_change() {
    let few = FleetOptions {
        max_retained_messages: Some(2),
        ..FleetOptions::default()
    };
    let small = FleetOptions {
        max_retained_bytes: Some(3000),
        ..FleetOptions::default()
    };
    let world = with_fleets([("prod", few), ("test", small)]);
    let broker = world.start().await;
    let mut agent = connect(&world, &broker, "prod", Role::Agent, "web-1").await;
    assert!(agent.retain(&topic("prod", "presence"), "online").await);
    assert!(agent.retain(&topic("prod", "status"), "1").await);
    assert!(agent.retain(&topic("prod", "status"), "2").await);
    assert!(!agent.retain(&topic("prod", "history"), "1").await);
    let mut agent = connect(&world, &broker, "test", Role::Agent, "web-1").await;
    let status = topic("test", "status");
    assert!(agent.retain(&status, "x".repeat(2000)).await);
    assert!(agent.retain(&status, "y".repeat(2500)).await);
    assert!(
        !agent
            .retain(&topic("test", "history"), "x".repeat(2000))
            .await
    );
    // What is smaller is always taken, and what an admin clears makes room.
    let mut admin = connect(&world, &broker, "test", Role::Admin, "me").await;
    assert!(admin.retain(&status, "").await);
    let mut agent = connect(&world, &broker, "test", Role::Agent, "web-1").await;
    assert!(
        agent
            .retain(&topic("test", "history"), "x".repeat(2000))
            .await
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_fleet_above_its_rate_is_read_more_slowly_and_loses_nothing() {
    let slow = FleetOptions {
        publish_rate: Some("50/s burst 5".parse().unwrap()),
        ..FleetOptions::default()
    };
    let world = with_fleets([("prod", slow), ("test", FleetOptions::default())]);
    let broker = world.start().await;
    let mut agent = connect(&world, &broker, "prod", Role::Agent, "web-1").await;
    let status = topic("prod", "status");
    for n in 0..30 {
        let payload = n.to_string();
        agent
            .send_publish(&status, QoS::AtLeastOnce, true, payload.as_bytes())
            .await;
    }
    // The other fleet is served at once.
    let mut other = connect(&world, &broker, "test", Role::Agent, "web-1").await;
    assert!(other.retain(&topic("test", "status"), "x").await);
    for _ in 0..30 {
        assert!(matches!(agent.next().await, Some(Packet::PubAck(_))));
    }
    let mut monitor = connect(&world, &broker, "prod", Role::Monitor, "mon").await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload, "29");
    broker.stop().await;
}

#[test]
fn the_manuals_example_of_fleets_is_a_configuration() {
    let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../docs/brokers.md")).unwrap();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (example, rest) = rest.split_once("```").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(dir.path()).unwrap().join("broker.toml");
    std::fs::write(&path, example).unwrap();
    let options: Options = hoist_certs::program::read_toml(&path).unwrap();
    let settings = Settings::try_from(options).unwrap();
    let Fleets::These(fleets) = settings.fleets else {
        panic!("{:?}", settings.fleets);
    };
    assert_eq!(fleets.len(), 2);
    // And its table has all that can be set.
    let error = serde_json::from_str::<FleetOptions>("{\"\": 1}").unwrap_err();
    let error = error.to_string();
    let (_, known) = error.split_once("expected one of ").unwrap();
    let names: Vec<_> = known.split('`').skip(1).step_by(2).collect();
    assert!(names.len() > 9, "{error}");
    for name in names {
        assert!(rest.contains(&format!("| `{name}` |")), "{name}");
    }
}
