//! The main job with another broker: the same agents and the same `hoist`, only the URL is another.

use hoist_protocol::{Channel, Machine, Reason, State};
use hoist_tests::closure::{Closure, System};
use hoist_tests::engines::Kind;
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, scenario};

const fn over(engine: Kind) -> Options {
    Options {
        broker_without_keys: true,
        engine: Some(engine),
    }
}

#[test]
fn a_fleet_is_deployed_over_mosquitto() {
    a_fleet_is_deployed(Kind::Mosquitto);
}

#[test]
fn a_fleet_is_deployed_over_nats() {
    a_fleet_is_deployed(Kind::Nats);
}

fn a_fleet_is_deployed(engine: Kind) {
    scenario(over(engine), |world| {
        let mut one = world.running("web-1")?;
        let two = world.running("web-2")?;
        let v1 = world.system(&System::new("web", "1"))?;
        let spec = world.spec(&[(one.name(), &v1), (two.name(), &v1)], None)?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(0)?;
        for machine in [&one, &two] {
            assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        }

        one.stop_agent()?;
        world.watch().wait_presence(one.name(), "offline")?;
        let v2 = world.system(&System::new("web", "2"))?;
        let spec = world.spec(&[(one.name(), &v2), (two.name(), &v2)], None)?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(0)?;
        assert_eq!(two.current_system()?.as_ref(), Some(&v2));
        assert_eq!(one.current_system()?.as_ref(), Some(&v1));
        one.start_agent()?;
        world
            .watch()
            .wait_status(one.name(), "it runs version 2", |status| {
                status.state == State::Succeeded && status.current_path.as_ref() == Some(&v2)
            })?;

        let v3 = world.system(&System::new("web", "3"))?;
        let check = world.push(&Closure::health_check("exit 1"))?;
        let spec = world.spec(&[(two.name(), &v3)], Some(&check))?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(4)?;
        assert_eq!(two.current_system()?.as_ref(), Some(&v2));
        Ok(())
    });
}

#[test]
fn what_mosquitto_lost_comes_back_with_the_agents() {
    what_it_lost_comes_back(Kind::Mosquitto);
}

#[test]
fn what_nats_lost_comes_back_with_the_agents() {
    what_it_lost_comes_back(Kind::Nats);
}

fn what_it_lost_comes_back(engine: Kind) {
    scenario(over(engine), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;

        world.broker.engine()?.lose_everything()?;
        let reader = world.client(world.publisher.clone(), "ci.reader");
        let owner = Machine::new(FLEET.parse()?, machine.name().clone());
        for channel in [Channel::Status, Channel::Presence, Channel::History] {
            let topic = owner.topic(channel).to_string();
            wait::until_true(&format!("{topic} is there again"), || {
                // Not before the engine and the agent have found each other again.
                Ok(reader.retained(&topic).is_ok_and(|found| found.is_some()))
            })?;
        }
        // The order of what was lost is in the status, so what comes now is newer.
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.deploy(&machine, &v2, &[])?.expect_code(0)?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v2));
        Ok(())
    });
}

#[test]
fn a_replay_over_mosquitto_is_refused_by_the_machine() {
    scenario(over(Kind::Mosquitto), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let old = world.forge(&machine, &v1)?;
        let id = world.publish(&old)?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        assert_eq!(world.carry_out(&machine, &v2)?.state, State::Succeeded);
        let before = machine.activations()?;

        // Same content, same place in the order as the first: mosquitto hands out what it was given last.
        let replay = old.clone();
        world.publish(&replay)?;
        machine.never("an activation", |m| Ok(m.activations()? != before))?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v2));
        Ok(())
    });
}

#[test]
fn a_wrong_signature_over_mosquitto_is_refused_by_the_machine() {
    scenario(over(Kind::Mosquitto), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let forge = world.forge(&machine, &v1)?;
        let bytes = forge.sign(world.authority.signing_key("stranger")?.read()?)?;
        let topic = forge.machine.topic(Channel::Deploy).to_string();
        world
            .client(world.publisher.clone(), "ci.x")
            .publish(&topic, &bytes, true)?
            .success()?;
        let status = world
            .watch()
            .wait_status(machine.name(), "it refused it", |status| {
                status.refused.is_some()
            })?;
        let refused = status.refused.expect("it was waited for");
        assert_eq!(
            refused.refused_reason,
            Reason::Unverified,
            "{}",
            refused.refused_message
        );
        assert!(!machine.has(&v1));
        Ok(())
    });
}
