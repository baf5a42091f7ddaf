//! What no machine carries out, whoever hands it over. The broker knows no keys here, so everything that the
//! certificates allow gets through to the machine: it has to refuse by itself.

use anyhow::Result;
use hoist_protocol::{AgentName, Channel, FleetName, Reason, State};
use hoist_tests::closure::System;
use hoist_tests::forge::Forge;
use hoist_tests::machine::Machine;
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};

const OPEN_BROKER: Options = Options {
    broker_without_keys: true,
    engine: None,
};

/// Puts `bytes` on the topic of `machine`, with the certificate of a publisher.
fn slip_in(world: &World, machine: &Machine, bytes: &[u8]) -> Result<()> {
    let topic = format!("hoist/v1/{FLEET}/{}/deploy", machine.name());
    world
        .client(world.publisher.clone(), "ci.x")
        .publish(&topic, bytes, true)?
        .success()?;
    Ok(())
}

/// Waits until the machine has reported that it refused `bytes`, and sees to it that nothing came of them.
fn refused(world: &World, machine: &Machine, bytes: &[u8], reason: Reason) -> Result<()> {
    let digest = hoist_protocol::digest(bytes);
    let status = world
        .watch()
        .wait_status(machine.name(), "it refused the message", |status| {
            status
                .refused
                .as_ref()
                .is_some_and(|refused| refused.refused_digest == digest)
        })?;
    let refused = status.refused.expect("it was waited for");
    assert_eq!(
        refused.refused_reason, reason,
        "{}",
        refused.refused_message
    );
    Ok(())
}

fn never_carried_out(reason: Reason, forged: impl FnOnce(&World, Forge) -> Result<Vec<u8>>) {
    scenario(OPEN_BROKER, |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        let before = machine.activations()?;

        let bytes = forged(world, world.forge(&machine, &v2)?)?;
        slip_in(world, &machine, &bytes)?;
        refused(world, &machine, &bytes, reason)?;
        assert!(!machine.has(&v2), "it was not even fetched");
        assert_eq!(machine.activations()?, before);

        // And a good one after it gets through.
        assert_eq!(world.carry_out(&machine, &v2)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn a_deployment_signed_with_another_key_is_refused() {
    never_carried_out(Reason::Unverified, |world, forge| {
        forge.sign(world.authority.signing_key("stranger")?.read()?)
    });
}

#[test]
fn a_deployment_whose_bytes_were_changed_is_refused() {
    never_carried_out(Reason::Unverified, |world, forge| {
        let mut bytes = forge.sign(world.signing_key.read()?)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Ok(bytes)
    });
}

#[test]
fn a_deployment_for_another_machine_is_refused() {
    never_carried_out(Reason::OtherMachine, |world, mut forge| {
        forge.machine.agent = AgentName::new("web-2")?;
        forge.sign(world.signing_key.read()?)
    });
}

#[test]
fn a_deployment_for_another_fleet_is_refused() {
    never_carried_out(Reason::OtherMachine, |world, mut forge| {
        forge.machine.fleet = FleetName::new("staging")?;
        forge.sign(world.signing_key.read()?)
    });
}

#[test]
fn junk_on_the_topic_of_a_machine_is_refused() {
    never_carried_out(Reason::Unverified, |_, _| Ok(b"not a deployment".to_vec()));
}

#[test]
fn a_replayed_deployment_is_refused() {
    scenario(OPEN_BROKER, |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let forge = world.forge(&machine, &v1)?;
        let old = forge.sign(world.signing_key.read()?)?;
        slip_in(world, &machine, &old)?;
        assert_eq!(
            world.settled(&machine, forge.order.id)?.state,
            State::Succeeded
        );
        assert_eq!(world.carry_out(&machine, &v2)?.state, State::Succeeded);
        let before = machine.activations()?;

        for restart in [false, true] {
            slip_in(world, &machine, &old)?;
            if restart {
                machine.kill_agent()?;
                machine.start_agent()?;
            }
            world.watch().wait_presence(machine.name(), "online")?;
            machine.never("an activation", |m| Ok(m.activations()? != before))?;
            assert_eq!(machine.current_system()?.as_ref(), Some(&v2));
        }
        Ok(())
    });
}

#[test]
fn a_broker_that_knows_the_keys_keeps_replays_and_junk_off_the_topics() {
    scenario(Options::default(), |world| {
        let machine = world.machine("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let newest = world.forge(&machine, &v1)?;
        world.publish(&newest)?;
        let topic = newest.machine.topic(Channel::Deploy).to_string();
        let kept = newest.sign(world.signing_key.read()?)?;

        let older = newest.clone().with_sequence(newest.order.sequence - 1);
        let stranger = world.authority.signing_key("stranger")?.read()?;
        let mut elsewhere = newest.clone().with_sequence(newest.order.sequence + 1);
        elsewhere.machine.agent = AgentName::new("web-2")?;
        let attempts = [
            ("an older one", older.sign(world.signing_key.read()?)?),
            (
                "another key's",
                newest
                    .clone()
                    .with_sequence(newest.order.sequence + 1)
                    .sign(stranger)?,
            ),
            (
                "another machine's",
                elsewhere.sign(world.signing_key.read()?)?,
            ),
            ("junk", b"junk".to_vec()),
        ];
        for (what, bytes) in attempts {
            let client = world.client(world.publisher.clone(), "ci.x");
            // Whether the publisher is told is the broker's business; what counts is what it keeps.
            client.publish(&topic, &bytes, true)?;
            assert_eq!(
                client.retained(&topic)?.as_ref(),
                Some(&kept),
                "{what} took the place"
            );
        }
        Ok(())
    });
}

#[test]
fn a_sequence_far_in_the_future_does_not_lock_a_machine() {
    scenario(OPEN_BROKER, |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let far = world.forge(&machine, &v1)?;
        let sequence = far.order.sequence + 10 * 24 * 3_600_000;
        let far = far.with_sequence(sequence);
        let id = world.publish(&far)?;
        wait::until_true("it is refused, or carried out", || {
            Ok(world
                .watch()
                .states(machine.name(), id)?
                .iter()
                .any(|state| state.is_final()))
        })?;
        // Where the clock is synchronised it was rejected, and a usual one is carried out.
        let status = world.watch().status(machine.name())?.expect("it reported");
        if status.state == State::Rejected {
            assert_eq!(status.reason, Some(Reason::TooFarAhead));
            assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        }
        Ok(())
    });
}
