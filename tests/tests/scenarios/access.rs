//! What certificates allow: nobody does more than their role, whatever client they use.

use anyhow::Result;
use hoist_protocol::{Channel, Machine, StorePath};
use hoist_tests::foreign::Client;
use hoist_tests::forge::Forge;
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};

fn topic(agent: &str, channel: &str) -> String {
    format!("hoist/v1/{FLEET}/{agent}/{channel}")
}

/// A signed deployment for `agent` that nobody runs.
fn deployment(world: &World, agent: &str) -> Result<Vec<u8>> {
    let path = StorePath::new(format!("/nix/store/{}-system", "0".repeat(32)))?;
    Forge::new(FLEET, &agent.parse()?, &path)?.sign(world.signing_key.read()?)
}

/// Whether the topic still holds `expected` after `attempt`.
fn stays(world: &World, topic: &str, expected: Option<&[u8]>) -> Result<()> {
    let reader = world.client(
        world.authority.identity("publisher", "watcher"),
        "watcher.read",
    );
    assert_eq!(
        reader.retained(topic)?.as_deref(),
        expected,
        "{topic} was changed"
    );
    Ok(())
}

#[test]
fn an_agent_cannot_publish_a_deployment_not_even_a_signed_one() {
    scenario(Options::default(), |world| {
        let agent = world.foreigner("agent", "web-1")?;
        for victim in ["web-1", "web-2"] {
            agent.publish(&topic(victim, "deploy"), &deployment(world, victim)?, true)?;
            stays(world, &topic(victim, "deploy"), None)?;
        }
        Ok(())
    });
}

#[test]
fn an_agent_cannot_speak_for_another() {
    scenario(Options::default(), |world| {
        let agent = world.foreigner("agent", "web-1")?;
        for channel in [Channel::Status, Channel::Presence, Channel::History] {
            let topic = topic("web-2", channel.as_str());
            agent.publish(&topic, b"online", true)?;
            stays(world, &topic, None)?;
        }
        Ok(())
    });
}

#[test]
fn an_agent_cannot_read_another_agents_deployment() {
    scenario(Options::default(), |world| {
        let publisher = world.client(world.publisher.clone(), "ci.1");
        for name in ["web-1", "web-2"] {
            publisher
                .publish(&topic(name, "deploy"), &deployment(world, name)?, true)?
                .success()?;
        }
        let agent = world.foreigner("agent", "web-1")?;
        assert!(
            agent.retained(&topic("web-1", "deploy"))?.is_some(),
            "its own it can read"
        );
        assert_eq!(agent.retained(&topic("web-2", "deploy"))?, None);
        for filter in [
            &format!("hoist/v1/{FLEET}/+/deploy"),
            "#",
            "hoist/#",
            "+/+/+/web-2/deploy",
        ] {
            let mut subscription = agent.subscribe_hex(filter)?;
            // A refused subscription ends the client, or leaves it without a message.
            agent_hears_nothing_of(&mut subscription, "web-2")?;
        }
        Ok(())
    });
}

fn agent_hears_nothing_of(
    subscription: &mut hoist_tests::foreign::Subscription,
    name: &str,
) -> Result<()> {
    let start = std::time::Instant::now();
    while subscription.process().is_alive()?
        && start.elapsed() < std::time::Duration::from_millis(700)
    {
        let messages = subscription.messages()?;
        assert!(
            messages.iter().all(|m| !m.topic.contains(name)),
            "{messages:?}"
        );
        std::thread::sleep(wait::POLL);
    }
    Ok(())
}

#[test]
fn an_agent_cannot_leave_a_last_will_on_another_agents_presence() {
    scenario(Options::default(), |world| {
        let agent = world.foreigner("agent", "web-1")?;
        let victim = topic("web-2", "presence");
        let will = [
            "--will-topic",
            &victim,
            "--will-payload",
            "offline",
            "--will-retain",
            "--will-qos",
            "1",
        ];
        let finished = agent.publish_with(&topic("web-1", "status"), b"{}", true, &will)?;
        assert_ne!(finished.code, 0, "it was let in with that will");
        stays(world, &victim, None)?;
        stays(world, &topic("web-1", "status"), None)
    });
}

#[test]
fn a_monitor_writes_nothing() {
    scenario(Options::default(), |world| {
        let monitor = world.foreigner("monitor", "dashboard")?;
        for channel in Channel::ALL {
            let topic = topic("web-1", channel.as_str());
            monitor.publish(&topic, b"online", channel.is_retained())?;
            stays(world, &topic, None)?;
        }
        Ok(())
    });
}

#[test]
fn a_publisher_without_a_signing_key_can_neither_clear_nor_overwrite_a_deployment() {
    scenario(Options::default(), |world| {
        let publisher = world.client(world.publisher.clone(), "ci.1");
        let topic = topic("web-1", "deploy");
        let kept = deployment(world, "web-1")?;
        publisher.publish(&topic, &kept, true)?.success()?;

        let other = world.foreigner("publisher", "nightly")?;
        for (payload, retain) in [
            (&b""[..], true),
            (b"", false),
            (b"{}", true),
            (b"{}", false),
        ] {
            other.publish(&topic, payload, retain)?;
            stays(world, &topic, Some(&kept))?;
        }
        Ok(())
    });
}

#[test]
fn another_fleet_sees_and_touches_nothing() {
    scenario(Options::default(), |world| {
        let publisher = world.client(world.publisher.clone(), "ci.1");
        let topic = topic("web-1", "deploy");
        let kept = deployment(world, "web-1")?;
        publisher.publish(&topic, &kept, true)?.success()?;

        let identity = world
            .authority
            .issue("publisher", "other", &["--fleet", "staging"])?;
        let other = world.client(identity, "other.1");
        assert_eq!(other.retained(&topic)?, None);
        let newer = deployment(world, "web-1")?;
        other.publish(&topic, &newer, true)?;
        stays(world, &topic, Some(&kept))
    });
}

#[test]
fn a_client_id_that_is_not_its_certificates_is_not_let_in() {
    scenario(Options::default(), |world| {
        let identity = world.authority.issue("agent", "web-1", &[])?;
        let own = topic("web-1", "presence");
        for id in ["web-2", "web-1.1", "ci.1"] {
            let client: Client = world.client(identity.clone(), id);
            let finished = client.publish(&own, b"online", true)?;
            assert_ne!(finished.code, 0, "let in as {id}");
        }
        stays(world, &own, None)
    });
}

#[test]
fn a_certificate_of_another_authority_is_not_let_in() {
    scenario(Options::default(), |world| {
        let (programs, logs) = (world.site().programs(), world.site().logs());
        let dir = world.site().dir().join("other-certs");
        let other = hoist_tests::authority::Authority::create(&dir, FLEET, programs, logs)?;
        let mut identity = other.issue("publisher", "ci", &[])?;
        // It trusts the broker; the broker must not trust it.
        identity.ca = world.publisher.ca.clone();
        let machine = Machine::new(FLEET.parse()?, "web-1".parse()?);
        let topic = machine.topic(Channel::Deploy).to_string();
        let finished =
            world
                .client(identity, "ci.9")
                .publish(&topic, &deployment(world, "web-1")?, true)?;
        assert_ne!(finished.code, 0);
        stays(world, &topic, None)
    });
}

#[test]
fn the_certificate_of_a_clusters_node_is_no_clients() {
    scenario(Options::default(), |world| {
        // TLS lets it in, since nodes of a cluster are clients of each other; Hoist's broker has none.
        let node = ["--host", "localhost", "--cluster"];
        let identity = world.authority.issue("broker", "n1", &node)?;
        for id in ["n1", "n1.1", "web-1", "ci.1"] {
            let client = world.client(identity.clone(), id);
            assert!(!client.can_subscribe("hoist/v1/prod/+/status")?, "{id}");
        }
        Ok(())
    });
}
