//! What reaches a machine: the newest, whoever dies on the way.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoist_certs::{Credentials, Pem};
use hoist_protocol::{AgentName, BrokerUrl, Channel, State};
use hoist_tests::closure::System;
use hoist_tests::forge::Forge;
use hoist_tests::process::{self, Finished};
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};
use rumqttc::{Event, Packet, QoS};

#[test]
fn a_machine_that_was_offline_gets_only_the_newest() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let versions: Vec<_> = ["1", "2", "3"]
            .iter()
            .map(|version| world.system(&System::new("web-1", version)))
            .collect::<Result<_>>()?;
        assert_eq!(
            world.carry_out(&machine, &versions[0])?.state,
            State::Succeeded
        );

        machine.stop_agent()?;
        world.watch().wait_presence(machine.name(), "offline")?;
        for path in &versions[1..] {
            let done = world.deploy(&machine, path, &[])?.expect_code(8)?;
            assert!(
                done.stdout.contains("web-1"),
                "it is named: {}",
                done.stdout
            );
        }
        machine.start_agent()?;
        world
            .watch()
            .wait_status(machine.name(), "it runs version 3", |status| {
                status.state == State::Succeeded
                    && status.current_path.as_ref() == Some(&versions[2])
            })?;
        assert_eq!(
            machine.activations()?,
            ["1 test", "1 boot", "3 test", "3 boot"]
        );
        assert!(!machine.has(&versions[1]), "version 2 was not even fetched");
        Ok(())
    });
}

#[test]
fn a_machine_that_slept_wakes_up_to_the_newest() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        machine.sleep()?;
        world.watch().wait_presence(machine.name(), "offline")?;
        world.publish(&world.forge(&machine, &v1)?)?;
        let newest = world.publish(&world.forge(&machine, &v2)?)?;
        machine.wake()?;
        assert_eq!(world.settled(&machine, newest)?.state, State::Succeeded);
        assert_eq!(machine.activations()?, ["2 test", "2 boot"]);
        Ok(())
    });
}

#[test]
fn what_was_published_before_the_broker_was_killed_reaches_a_machine_that_was_away() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        machine.stop_agent()?;
        world.watch().wait_presence(machine.name(), "offline")?;
        world.deploy(&machine, &v1, &["--async"])?.expect_code(0)?;
        world.broker.kill()?;
        world.broker.restart()?;
        machine.start_agent()?;
        world
            .watch()
            .wait_status(machine.name(), "it runs version 1", |status| {
                status.state == State::Succeeded && status.current_path.as_ref() == Some(&v1)
            })?;
        Ok(())
    });
}

#[test]
fn agents_come_back_by_themselves_when_the_broker_does() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        world.broker.kill()?;
        world.broker.restart()?;
        let done = world
            .deploy(&machine, &v1, &["--wait", "all"])?
            .expect_code(0)?;
        assert!(done.stdout.contains("succeeded"), "{}", done.stdout);
        Ok(())
    });
}

#[test]
fn two_deployments_in_quick_succession_end_with_the_second() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.deploy(&machine, &v1, &["--async"])?.expect_code(0)?;
        let done = world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        assert!(done.stdout.contains("succeeded"), "{}", done.stdout);
        assert_eq!(machine.current_system()?.as_ref(), Some(&v2));
        Ok(())
    });
}

#[test]
fn two_publishers_at_once_end_with_one_deployment_that_both_name() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let specs = [
            world.spec(&[(machine.name(), &v1)], None)?,
            world.spec(&[(machine.name(), &v2)], None)?,
        ];
        let one = world.start_hoist("hoist-one", &["deploy", specs[0].as_str()])?;
        let two = world.start_hoist("hoist-two", &["deploy", specs[1].as_str()])?;
        let (one, two) = (Finished::wait(one)?, Finished::wait(two)?);

        // One of them is the newest and has succeeded. The other was carried out before it, or superseded.
        let codes = [one.code, two.code];
        assert!(
            codes.contains(&0),
            "{codes:?}\n{}\n{}",
            one.stdout,
            two.stdout
        );
        assert!(codes.iter().all(|code| matches!(code, 0 | 7)), "{codes:?}");
        let current = machine.current_system()?.context("it runs something")?;
        let winner = if current == v1 { &one } else { &two };
        assert_eq!(
            winner.code, 0,
            "what runs is what its publisher calls a success"
        );
        Ok(())
    });
}

/// A deployment for each of many machines, published by one client as fast as the broker takes them, until the
/// broker is killed; which of them it acknowledged.
fn burst(world: &mut World, machines: &[AgentName]) -> Result<Vec<(String, Vec<u8>)>> {
    let path = hoist_protocol::StorePath::new(format!("/nix/store/{}-system", "0".repeat(32)))?;
    let messages: Vec<(String, Vec<u8>)> = machines
        .iter()
        .map(|name| {
            let forge = Forge::new(FLEET, name, &path)?;
            let topic = forge.machine.topic(Channel::Deploy).to_string();
            Ok((topic, forge.sign(world.signing_key.read()?)?))
        })
        .collect::<Result<_>>()?;

    let identity = &world.publisher;
    let tls = Credentials {
        ca: Pem::File(identity.ca.clone()),
        certificate: Pem::File(identity.certificate.clone()),
        key: Pem::File(identity.key.clone()),
    }
    .client()?;
    let url: BrokerUrl = world.broker.url().parse()?;
    let mut options = hoist_certs::mqtt::options(&url, "ci.burst", &tls);
    options.set_inflight(100);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let broker = &mut world.broker;
    runtime.block_on(async {
        let (client, mut events) = hoist_certs::mqtt::client(options, messages.len());
        for (topic, payload) in &messages {
            client
                .publish(topic, QoS::AtLeastOnce, true, payload.clone())
                .await?;
        }
        // Packet ids are given in the order of publishing, and used again once they are acknowledged.
        let mut sent = std::collections::HashMap::new();
        let mut next = 0;
        let mut acknowledged = Vec::new();
        // Until the broker is gone.
        while let Ok(event) = events.poll().await {
            match event {
                Event::Outgoing(rumqttc::Outgoing::Publish(id)) => {
                    sent.insert(id, next);
                    next += 1;
                }
                Event::Incoming(Packet::PubAck(ack)) => {
                    acknowledged.extend(sent.remove(&ack.pkid));
                    if acknowledged.len() == messages.len() / 3 {
                        broker.kill()?;
                    }
                }
                _ => {}
            }
        }
        let of = |n: usize| messages.get(n).cloned().context("a message that was sent");
        acknowledged.into_iter().map(of).collect()
    })
}

#[test]
fn a_broker_killed_during_a_burst_of_publishes_loses_none_that_it_acknowledged() {
    scenario(Options::default(), |world| {
        let machines: Vec<AgentName> = (0..600)
            .map(|n| Ok(AgentName::new(format!("m-{n}"))?))
            .collect::<Result<_>>()?;
        let acknowledged = burst(world, &machines)?;
        assert!(acknowledged.len() >= 200, "{} of 600", acknowledged.len());
        assert!(
            acknowledged.len() < 600,
            "the broker was killed in the middle"
        );

        world.broker.restart()?;
        let reader = world.foreigner("publisher", "reader")?;
        let filter = format!("hoist/v1/{FLEET}/+/deploy");
        let subscription = reader.subscribe_hex(&filter)?;
        wait::until_true("every acknowledged deployment is there", || {
            let messages = subscription.messages()?;
            Ok(acknowledged.iter().all(|(topic, payload)| {
                let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
                messages
                    .iter()
                    .any(|m| m.topic == *topic && m.payload == hex)
            }))
        })
    });
}

#[test]
fn three_hundred_retained_reports_are_seen_by_one_wildcard() {
    const COUNT: usize = 300;
    scenario(Options::default(), |world| {
        let authority = hoist_certs::authority::Authority::load(world.authority.dir())?;
        let dir = world.site().dir().join("many");
        fs::create_dir(&dir)?;
        let (shared, authority, dir) = (&*world, &authority, &dir);
        let report = move |n: usize| -> Result<()> {
            let name = AgentName::new(format!("m-{n}"))?;
            let validity = hoist_certs::authority::Validity::from(Duration::from_secs(3600));
            let issued = authority.issue(hoist_certs::Role::Agent, &name, &[], validity)?;
            let identity = hoist_tests::authority::Identity {
                ca: shared.authority.dir().join("ca.pem"),
                certificate: dir.join(format!("{name}.pem")),
                key: dir.join(format!("{name}.key")),
            };
            fs::write(&identity.certificate, &issued.certificate_pem)?;
            fs::write(&identity.key, issued.key_pem.as_bytes())?;
            let payload = format!(r#"{{"schema":1,"agent":"{name}","state":"idle"}}"#);
            shared
                .client(identity, name.as_str())
                .publish(
                    &format!("hoist/v1/{FLEET}/{name}/status"),
                    payload.as_bytes(),
                    true,
                )?
                .success()?;
            Ok(())
        };
        std::thread::scope(|scope| {
            let every_fourth = |first: usize| (first..COUNT).step_by(4).try_for_each(report);
            let threads: Vec<_> = (0..4)
                .map(|first| scope.spawn(move || every_fourth(first)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no thread panics"))
        })?;
        let monitor = world.foreigner("monitor", "dashboard")?;
        let subscription = monitor.subscribe(&[&format!("hoist/v1/{FLEET}/+/status")])?;
        wait::until_true("all reports have come", || {
            let messages = subscription.messages()?;
            let mut topics: Vec<_> = messages
                .iter()
                .filter(|m| m.retained)
                .map(|m| m.topic.as_str())
                .collect();
            topics.sort_unstable();
            topics.dedup();
            Ok(topics.len() == COUNT)
        })
    });
}

#[test]
fn a_broker_ends_cleanly_when_it_is_asked_to() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let status = world.broker.process().terminate()?;
        assert_eq!(status.code(), Some(0));
        world.broker.restart()?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        world
            .deploy(&machine, &v1, &["--wait", "all"])?
            .expect_code(0)?;
        Ok(())
    });
}

#[test]
fn a_broker_that_cannot_listen_ends_with_an_error_that_says_so() {
    scenario(Options::default(), |world| {
        let dir = world.site().dir().join("second");
        fs::create_dir(&dir)?;
        let config = fs::read_to_string(world.broker.config())?.replace(
            world.site().dir().join("broker/state").as_str(),
            dir.join("state").as_str(),
        );
        fs::write(dir.join("broker.toml"), config)?;
        let mut command = process::command(&world.site().programs().broker);
        command.args(["run", "--config", dir.join("broker.toml").as_str()]);
        let finished =
            process::run("second-broker", command, world.site().logs())?.expect_code(1)?;
        let port = world.broker.port().to_string();
        assert!(finished.stderr.contains(&port), "{}", finished.stderr);
        Ok(())
    });
}
