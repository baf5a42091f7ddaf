//! How a closure gets to a machine, or does not, and what happens when a newer one comes meanwhile.

use std::time::Duration;

use hoist_protocol::{Reason, State};
use hoist_tests::closure::System;
use hoist_tests::server::Mode;
use hoist_tests::world::{Options, scenario};

#[test]
fn a_cache_that_lost_the_closure_fails_the_deployment_with_that_reason() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        world.cache.server.set(Mode::Empty);
        let status = world.carry_out(&machine, &v1)?;
        assert_eq!(status.state, State::Failed);
        assert_eq!(
            status.reason,
            Some(Reason::MissingPath),
            "{}",
            status.message
        );
        assert_eq!(machine.activations()?, [""; 0]);

        world.cache.server.set(Mode::Serving);
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn a_cache_that_is_broken_fails_the_deployment() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        world.cache.server.set(Mode::Broken);
        let status = world.carry_out(&machine, &v1)?;
        assert_eq!(status.state, State::Failed);
        let reasons = [Some(Reason::FetchFailed), Some(Reason::MissingPath)];
        assert!(
            reasons.contains(&status.reason),
            "{:?}: {}",
            status.reason,
            status.message
        );
        assert_eq!(machine.activations()?, [""; 0]);
        Ok(())
    });
}

#[test]
fn a_cache_signed_with_a_key_that_the_machine_does_not_trust_fails_the_deployment_with_that_reason()
{
    scenario(Options::default(), |world| {
        let dir = world.site().dir().join("other-cache");
        let other = hoist_tests::builder::Cache::create(&dir, "other-1", &world.builder)?;
        let trusted = world.cache.nix_conf()?;
        let conf = trusted.replace(&world.cache.server.url()?, &other.server.url()?);
        let mut machine = world.machine_with("web-1", &conf)?;
        machine.start_agent()?;
        let v1 = world.builder.build(&System::new("web-1", "1").closure())?;
        world.builder.push(&v1, &other)?;

        let done = world
            .deploy(&machine, &v1, &["--wait", "all"])?
            .expect_code(3)?;
        assert!(
            done.stdout.contains("signature") || done.stdout.contains("trust"),
            "{}",
            done.stdout
        );
        let status = world.watch().wait_end(machine.name(), State::Failed)?;
        assert_eq!(status.state, State::Failed);
        assert_eq!(
            status.reason,
            Some(Reason::UntrustedPath),
            "{}",
            status.message
        );
        assert!(!machine.has(&v1));
        assert_eq!(machine.activations()?, [""; 0]);
        Ok(())
    });
}

#[test]
fn a_newer_deployment_ends_the_fetch_of_an_older_one() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        world.cache.server.set(Mode::Holding);
        let first = world.publish(&world.forge(&machine, &v1)?)?;
        world.reaches(&machine, first, State::Fetching)?;
        let second = world.publish(&world.forge(&machine, &v2)?)?;
        world.reaches(&machine, second, State::Fetching)?;
        world.cache.server.set(Mode::Serving);

        assert_eq!(world.settled(&machine, second)?.state, State::Succeeded);
        assert_eq!(
            machine.activations()?,
            ["2 test", "2 boot"],
            "the older one was never activated"
        );
        Ok(())
    });
}

#[test]
fn a_newer_deployment_waits_for_an_activation_that_runs() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let gate = machine.gate("1", "test")?;
        world.publish(&world.forge(&machine, &v1)?)?;
        gate.wait_reached()?;
        let second = world.publish(&world.forge(&machine, &v2)?)?;
        machine.never(
            "two activations at once",
            |m| Ok(m.activations()?.len() > 1),
        )?;
        gate.open()?;

        assert_eq!(world.settled(&machine, second)?.state, State::Succeeded);
        assert_eq!(machine.current_system()?.as_ref(), Some(&v2));
        assert_eq!(
            machine.activations()?.last().map(String::as_str),
            Some("2 boot")
        );
        Ok(())
    });
}

#[test]
fn an_expired_deployment_is_not_carried_out() {
    scenario(
        Options {
            broker_without_keys: true,
            ..Options::default()
        },
        |world| {
            let machine = world.running("web-1")?;
            let v1 = world.system(&System::new("web-1", "1"))?;
            let mut forge = world.forge(&machine, &v1)?;
            forge.issued = hoist_protocol::Timestamp::from_ms(forge.issued.as_ms() - 3_600_000);
            forge.valid = Duration::from_secs(60);
            let id = world.publish(&forge)?;
            let status = world.settled(&machine, id)?;
            assert_eq!(status.state, State::Expired, "{}", status.message);
            assert!(!machine.has(&v1));
            Ok(())
        },
    );
}
