//! What a machine does with a closure, good or bad.

use hoist_protocol::{Kind, Reason, State};
use hoist_tests::closure::{Closure, System};
use hoist_tests::machine::{PLAIN_PROFILE, SYSTEM_PROFILE};
use hoist_tests::process::Finished;
use hoist_tests::world::{Options, scenario};

#[test]
fn a_machine_runs_what_was_deployed_and_boots_it_next_time() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert!(!machine.has(&v1), "the machine has yet to fetch it");

        let done = world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        assert!(done.stdout.contains("web-1"), "{}", done.stdout);

        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
        assert_eq!(machine.activations()?, ["1 test", "1 boot"]);
        let nars = world.cache.server.archives();
        assert_eq!(nars, 4, "the whole closure came from the cache");
        let mut narinfos = world.cache.server.requests();
        narinfos.retain(|path| path.ends_with(".narinfo"));
        assert_eq!(
            narinfos.len(),
            4,
            "each path was looked up once: {narinfos:?}"
        );

        let status = world
            .watch()
            .wait_status(machine.name(), "it succeeded", |status| {
                status.state == State::Succeeded
            })?;
        assert_eq!(status.current_path.as_ref(), Some(&v1));
        assert_eq!(status.profile_path.as_ref(), Some(&v1));
        let id = status.id.expect("a deployment that ended has an id");
        let states = world.watch().states(machine.name(), id)?;
        let ends = [
            State::Fetching,
            State::Activating,
            State::Confirming,
            State::Succeeded,
        ];
        assert!(
            ends.iter().all(|state| states.contains(state)),
            "every phase was reported: {states:?}"
        );
        Ok(())
    });
}

#[test]
fn what_an_activation_prints_can_be_read_by_any_client() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let status = world.carry_out(&machine, &v1)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        let tail = status
            .log_tail
            .iter()
            .any(|line| line.as_str().contains("boot loader"));
        assert!(
            tail,
            "the final report carries the end of the log: {:?}",
            status.log_tail
        );
        hoist_tests::wait::until_true("the log has arrived", || {
            let log = world.watch().log(machine.name())?;
            Ok(log
                .iter()
                .any(|line| line.text.as_str().contains("starting the following units")))
        })
    });
}

#[test]
fn the_same_system_again_changes_nothing() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        let before = machine.activations()?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Unchanged);
        assert_eq!(machine.activations()?, before);
        Ok(())
    });
}

#[test]
fn an_activation_that_exits_1_leaves_the_machine_as_it_was() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2").failing())?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        let status = world.carry_out(&machine, &v2)?;
        assert_eq!(status.state, State::Failed, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::PreSwitchCheckFailed));
        let said = status
            .log_tail
            .iter()
            .any(|line| line.as_str().contains("no such unit"));
        assert!(said, "the report says what it said: {:?}", status.log_tail);
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
        Ok(())
    });
}

#[test]
fn an_activation_that_fails_half_way_is_rolled_back() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2").failing_after(2))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        world.deploy(&machine, &v2, &[])?.expect_code(4)?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        assert_eq!(
            machine.activations()?.last().map(String::as_str),
            Some("1 test")
        );
        Ok(())
    });
}

#[test]
fn an_activation_that_hangs_is_stopped_and_rolled_back() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2").hanging())?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        let mut forge = world.forge(&machine, &v2)?;
        forge.target.activation_timeout_ms = 1500;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Failed, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::ActivationTimedOut));
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        Ok(())
    });
}

fn cut_off(v2: &System) {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(v2)?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        let mut forge = world.forge(&machine, &v2)?;
        forge.target.confirm_timeout_ms = 2000;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::RolledBack, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::NotConfirmed));
        let broker = format!("mqtts://127.0.0.1:{}", machine.proxy().port());
        assert!(
            status.message.as_str().contains(&broker),
            "it says what it tried: {}",
            status.message
        );
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        assert_eq!(
            machine.boot_default()?.as_ref(),
            Some(&v1),
            "it was never made the default"
        );
        assert_eq!(
            machine.activations()?,
            ["1 test", "1 boot", "2 test", "1 test"]
        );
        Ok(())
    });
}

#[test]
fn a_machine_cut_off_by_its_own_deployment_comes_back_by_itself() {
    cut_off(&System::new("web-1", "2").without_network());
}

#[test]
fn a_machine_whose_packets_vanish_after_its_deployment_comes_back_by_itself() {
    cut_off(&System::new("web-1", "2").with_silent_network());
}

#[test]
fn the_first_deployment_ever_failing_leaves_a_machine_that_takes_the_next() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let bad = world.system(&System::new("web-1", "1").failing())?;
        let good = world.system(&System::new("web-1", "2"))?;

        let status = world.carry_out(&machine, &bad)?;
        assert!(!status.state.is_good(), "{}", status.state);
        assert_eq!(status.reason, Some(Reason::PreSwitchCheckFailed));
        assert_eq!(machine.current_system()?, None);
        assert_eq!(machine.profile(SYSTEM_PROFILE)?, None);
        assert_eq!(machine.boot_default()?, None);

        assert_eq!(world.carry_out(&machine, &good)?.state, State::Succeeded);
        assert_eq!(machine.current_system()?.as_ref(), Some(&good));
        Ok(())
    });
}

#[test]
fn a_first_deployment_that_is_never_confirmed_says_that_there_is_nothing_to_go_back_to() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let bad = world.system(&System::new("web-1", "1"))?;
        let good = world.system(&System::new("web-1", "2"))?;
        let check = world.push(&Closure::health_check("exit 1"))?;
        let spec = world.spec(&[(machine.name(), &bad)], Some(&check))?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(3)?;
        assert_eq!(
            machine.profile(SYSTEM_PROFILE)?,
            None,
            "it is not what the machine boots"
        );
        assert_eq!(machine.boot_default()?, None);
        let status = world
            .watch()
            .wait_end(machine.name(), State::RollbackFailed)?;
        assert_eq!(status.reason, Some(Reason::HealthCheckFailed));
        let message = status.message.as_str();
        assert!(message.contains("nothing to go back to"), "{message}");
        assert_eq!(world.carry_out(&machine, &good)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn a_b_and_b_again_failing_keeps_b() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let a = world.system(&System::new("web-1", "a"))?;
        let b = world.system(&System::new("web-1", "b"))?;
        assert_eq!(world.carry_out(&machine, &a)?.state, State::Succeeded);
        assert_eq!(world.carry_out(&machine, &b)?.state, State::Succeeded);
        let generations = machine.generations(SYSTEM_PROFILE)?;

        // Somebody tries A again by hand, so that B has to be activated once more, and then it fails.
        let tried = machine.run(&format!("{a}/bin/switch-to-configuration"), &["test"])?;
        tried.success()?;
        let check = world.push(&Closure::health_check("exit 1"))?;
        let spec = world.spec(&[(machine.name(), &b)], Some(&check))?;
        let done = world.hoist(&["deploy", spec.as_str()])?;
        assert_ne!(done.code, 0, "{}", done.stdout);

        assert_eq!(
            machine.generations(SYSTEM_PROFILE)?,
            generations,
            "B stays a generation"
        );
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&b));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&b));
        Ok(())
    });
}

#[test]
fn a_boot_loader_that_cannot_be_set_rolls_the_machine_back() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2").failing_to_boot())?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        let status = world.carry_out(&machine, &v2)?;
        assert_eq!(status.state, State::Failed, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::BootLoaderFailed));
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&v1));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
        Ok(())
    });
}

#[test]
fn a_health_check_that_fails_rolls_the_machine_back() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        let check = world.push(&Closure::health_check("echo 'port 80 is closed'; exit 3"))?;
        let spec = world.spec(&[(machine.name(), &v2)], Some(&check))?;
        let done = world.hoist(&["deploy", spec.as_str()])?.expect_code(4)?;
        assert!(done.stdout.contains("rolled back"), "{}", done.stdout);
        let status = world.watch().wait_end(machine.name(), State::RolledBack)?;
        assert_eq!(status.reason, Some(Reason::HealthCheckFailed));
        let said = status
            .log_tail
            .iter()
            .any(|line| line.as_str().contains("port 80 is closed"));
        assert!(
            said,
            "the report says what the check said: {:?}",
            status.log_tail
        );
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        Ok(())
    });
}

#[test]
fn a_health_check_that_passes_lets_the_deployment_stand() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let check = world.push(&Closure::health_check("test -L /run/current-system"))?;
        let spec = world.spec(&[(machine.name(), &v1)], Some(&check))?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(0)?;
        assert_eq!(machine.current_system()?.as_ref(), Some(&v1));
        Ok(())
    });
}

#[test]
fn a_plain_profile_is_set_and_keeps_its_generations() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let one = world.push(&Closure::profile("tool", "1"))?;
        let two = world.push(&Closure::profile("tool", "2"))?;
        for path in [&one, &two] {
            let status = world.carry_out(&machine, path)?;
            assert_eq!(status.state, State::Succeeded, "{}", status.message);
            assert_eq!(machine.profile(PLAIN_PROFILE)?.as_ref(), Some(path));
        }
        let ran = machine
            .run(&format!("{PLAIN_PROFILE}/bin/tool"), &[])?
            .success()?;
        assert_eq!(
            ran.trim(),
            "2",
            "the profile's program runs, with what it needs"
        );
        assert_eq!(machine.generations(PLAIN_PROFILE)?, [(1, one), (2, two)]);
        assert_eq!(machine.activations()?, [""; 0], "nothing is activated");
        Ok(())
    });
}

#[test]
fn a_plain_profile_whose_check_fails_goes_back_to_the_generation_before() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let one = world.push(&Closure::profile("tool", "1"))?;
        let two = world.push(&Closure::profile("tool", "2"))?;
        assert_eq!(world.carry_out(&machine, &one)?.state, State::Succeeded);
        let check = world.push(&Closure::health_check("exit 1"))?;
        let spec = world.spec(&[(machine.name(), &two)], Some(&check))?;
        world.hoist(&["deploy", spec.as_str()])?.expect_code(4)?;
        assert_eq!(machine.profile(PLAIN_PROFILE)?, Some(one));
        Ok(())
    });
}

#[test]
fn a_package_that_is_called_a_system_is_refused() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let tool = world.push(&Closure::profile("tool", "1"))?;
        let mut forge = world.forge(&machine, &tool)?;
        forge.target.kind = Kind::Nixos;
        let id = world.publish(&forge)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.reason, Some(Reason::WrongKind), "{}", status.message);
        assert_eq!(machine.profile(SYSTEM_PROFILE)?, None);
        Ok(())
    });
}

#[test]
fn a_system_that_somebody_else_moved_meanwhile_is_left_as_it_was_found() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let v3 = world.system(&System::new("web-1", "3"))?;
        for path in [&v3, &v1] {
            assert_eq!(world.carry_out(&machine, path)?.state, State::Succeeded);
        }

        let gate = machine.gate("2", "check")?;
        let check = world.push(&Closure::health_check(
            "notes=/nix/var/hoist-test; : > $notes/reached/2.check
            while [ -e $notes/gates/2.check ]; do sleep 0.02; done; exit 1",
        ))?;
        let spec = world.spec(&[(machine.name(), &v2)], Some(&check))?;
        let hoist = world.start_hoist("hoist-conflict", &["deploy", spec.as_str()])?;
        gate.wait_reached()?;
        machine
            .run(&format!("{v3}/bin/switch-to-configuration"), &["test"])?
            .success()?;
        gate.open()?;

        let done = Finished::wait(hoist)?.expect_code(3)?;
        assert!(done.stdout.contains("conflict"), "{}", done.stdout);
        assert_eq!(
            machine.current_system()?.as_ref(),
            Some(&v3),
            "it was left alone"
        );
        let status = world.watch().wait_end(machine.name(), State::Conflict)?;
        assert_eq!(status.reason, Some(Reason::ChangedByOthers));
        Ok(())
    });
}
