//! Start and stop.

use hoist_broker::{Options, ServerError, StoreError};
use hoist_certs::Role;

use crate::support::{World, topic, with_will};

#[tokio::test]
async fn a_stop_closes_everybody_and_keeps_their_wills() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    agent.connect(with_will("web-1", &status, "gone")).await;
    assert!(agent.retain(&status, "here").await);
    let silent = world.tls(&broker, Role::Agent, "web-2").await;
    broker.stop().await;
    agent.expect_closed().await;
    drop(silent);
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload, "gone");
    broker.stop().await;
}

#[tokio::test]
async fn after_a_start_known_machines_are_offline_until_they_say_otherwise() {
    let world = World::new();
    let broker = world.start().await;
    let presence = topic("web-1", "presence");
    let mut agent = world.agent(&broker, "web-1").await;
    agent.retain(&presence, "online").await;
    agent.retain(&topic("web-1", "status"), "x").await;
    broker.stop().await;
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&["hoist/v1/prod/+/presence"]).await;
    assert_eq!(monitor.message().await.payload, "offline");
    let mut agent = world.agent(&broker, "web-1").await;
    agent.retain(&presence, "online").await;
    assert_eq!(monitor.message().await.payload, "online");
    broker.stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let world = World::new();
    let broker = world.start().await;
    let other = World::with(Options {
        listen: Some(broker.address),
        ..Options::default()
    });
    let error = other.try_start().await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ServerError::Listen { .. }), "{error}");
    assert!(
        error.to_string().contains(&broker.address.to_string()),
        "{error}"
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_state_folder_has_one_broker() {
    let world = World::new();
    let broker = world.start().await;
    let error = world.try_start().await.map(|_| ()).unwrap_err();
    assert!(
        matches!(error, ServerError::Store(StoreError::InUse(_))),
        "{error:?}"
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_damaged_store_is_named_and_not_overwritten() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    agent.retain(&topic("web-1", "status"), "x").await;
    broker.stop().await;
    let mut damaged = 0;
    for entry in std::fs::read_dir(world.state().join("store")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && std::fs::metadata(&path).unwrap().len() > 0 {
            std::fs::write(&path, b"not what was there").unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let error = world.try_start().await.map(|_| ()).unwrap_err();
    let ServerError::Store(error) = error else {
        panic!("{error:?}");
    };
    let text = error.to_string();
    assert!(text.contains(world.state().as_str()), "{text}");
    assert!(text.contains("move the file away"), "{text}");
}

#[tokio::test]
async fn the_state_folder_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let broker = world.start().await;
    let mode = std::fs::metadata(world.state().join("store"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    broker.stop().await;
}
