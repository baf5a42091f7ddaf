//! Deployments of the agent itself: restarted, replaced, stopped, broken, removed by the system that it deploys.

use anyhow::Result;
use hoist_protocol::{Reason, State};
use hoist_tests::machine::SYSTEM_PROFILE;
use hoist_tests::nspawn::{AGENT, Booted, booted_scenario};
use hoist_tests::wait;

/// The store path of the program that runs as the agent.
fn executable(machine: &Booted) -> Result<String> {
    let pid = machine.property(AGENT, "MainPID")?;
    let link = machine
        .run("readlink", &[&format!("/proc/{pid}/exe")])?
        .success()?;
    Ok(link.trim().to_owned())
}

#[test]
fn an_activation_outlives_restarts_of_the_agent_and_the_new_agent_confirms_it() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let first = machine.property(AGENT, "MainPID")?;
        let next = machine.system("1").agent_setting("status_interval", "1m");
        let v1 = machine.push(world, &next)?;
        let gate = machine.gate("1", "test")?;
        let id = world.publish(&world.forge(&machine, &v1)?)?;
        gate.wait_reached()?;

        let activator = machine.units("hoist-activator-*")?;
        assert_eq!(activator.len(), 1, "{activator:?}");
        assert_eq!(machine.units("hoist-switch-*")?.len(), 1);
        let pid = machine.property(&activator[0], "MainPID")?;
        machine.run("systemctl", &["restart", AGENT])?.success()?;
        assert_ne!(machine.property(AGENT, "MainPID")?, first);
        assert_eq!(
            machine.property(&activator[0], "MainPID")?,
            pid,
            "it goes on"
        );
        gate.open()?;

        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v1));
        let unit = machine.run("systemctl", &["cat", AGENT])?.success()?;
        let config = unit
            .split(" --config ")
            .nth(1)
            .and_then(|rest| rest.lines().next());
        let config = config.expect("the unit names its configuration");
        let text = machine.run("cat", &[config])?.success()?;
        assert!(
            text.contains("status_interval"),
            "the new unit runs: {text}"
        );
        wait::until_true("no activator is left", || {
            Ok(machine.units("hoist-activator-*")?.is_empty())
        })
    });
}

#[test]
fn an_agent_replaces_itself_by_another_version_which_then_confirms() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        assert!(executable(&machine)?.contains("-hoist-agent-1/"));
        let v1 = machine.push(world, &machine.system("1").agent_revision("2"))?;
        world.deploy(&machine, &v1, &[])?.expect_code(0)?;
        let runs = executable(&machine)?;
        assert!(runs.contains("-hoist-agent-2/"), "{runs}");
        wait::until_true("the log says who confirmed", || {
            let log = world.watch().log(machine.name())?;
            let lines = log.iter().map(|line| line.text.as_str());
            Ok(lines
                .filter(|line| line.contains("confirmed by"))
                .any(|line| line.contains(&runs)))
        })?;
        machine.reboot()?;
        assert_eq!(executable(&machine)?, runs);
        let v2 = machine.push(world, &machine.system("2"))?;
        assert_eq!(
            world.carry_out(&machine, &v2)?.state,
            State::Succeeded,
            "back again"
        );
        Ok(())
    });
}

#[test]
fn an_agent_that_a_switch_leaves_as_it_was_is_restarted_before_it_confirms() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let first = machine.property(AGENT, "MainPID")?;
        let next = machine.system("1").agent_revision("2").leaving_agent();
        let v1 = machine.push(world, &next)?;
        let status = world.carry_out(&machine, &v1)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_ne!(machine.property(AGENT, "MainPID")?, first);
        let runs = executable(&machine)?;
        assert!(runs.contains("-hoist-agent-2/"), "{runs}");
        let said = |text: &str| {
            status
                .log_tail
                .iter()
                .any(|line| line.as_str().contains(text))
        };
        assert!(said("NOT restarting the changed unit hoist-agent.service"));
        assert!(said(
            "restarting hoist-agent.service, which the switch left as it was"
        ));
        assert!(
            said(&format!("confirmed by {runs}")),
            "{:?}",
            status.log_tail
        );
        Ok(())
    });
}

#[test]
fn a_system_that_stops_or_breaks_the_agent_is_rolled_back_by_the_activator() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let v0 = machine.current_system()?;
        let stops = machine
            .system("1")
            .after_switch(&format!("systemctl stop {AGENT}"));
        let breaks = machine.system("2").agent_setting("no_such_setting", "1m");
        for (system, reason) in [(stops, Reason::NotConfirmed), (breaks, Reason::UnitsFailed)] {
            let path = machine.push(world, &system)?;
            let mut forge = world.forge(&machine, &path)?;
            forge.target.confirm_timeout_ms = 3000;
            let id = world.publish(&forge)?;
            let status = world.settled(&machine, id)?;
            assert!(
                matches!(status.state, State::RolledBack | State::Failed),
                "{}: {}",
                status.state,
                status.message
            );
            assert_eq!(status.reason, Some(reason), "{}", status.message);
            assert_eq!(machine.current_system()?, v0);
            assert_eq!(machine.profile(SYSTEM_PROFILE)?, v0);
            assert_eq!(machine.boot_default()?, v0);
        }
        Ok(())
    });
}

#[test]
fn a_system_without_an_agent_is_refused_before_anything_happens() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let v0 = machine.current_system()?;
        let v1 = machine.push(world, &machine.system("1").without_agent())?;
        let status = world.carry_out(&machine, &v1)?;
        assert_eq!(status.reason, Some(Reason::NoAgent), "{}", status.message);
        assert_eq!(machine.current_system()?, v0);
        assert_eq!(machine.activations()?, ["0 boot", "0 init"]);
        assert_eq!(machine.property(AGENT, "ActiveState")?, "active");
        Ok(())
    });
}

#[test]
fn a_system_that_may_come_without_an_agent_is_confirmed_by_the_old_one_which_stays() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        // The first has its switch stop the agent, which has to be started again; the second lets it be.
        let stops = machine
            .system("1")
            .without_agent()
            .after_switch(&format!("systemctl stop {AGENT}"));
        let stays = machine.system("2").without_agent();
        for system in [stops, stays] {
            let path = machine.push(world, &system)?;
            let mut forge = world.forge(&machine, &path)?;
            forge.target.allow_no_agent = true;
            let id = world.publish(&forge)?;
            let status = world.settled(&machine, id)?;
            assert_eq!(status.state, State::Succeeded, "{}", status.message);
            assert_eq!(machine.current_system()?.as_ref(), Some(&path));
            assert_eq!(machine.boot_default()?.as_ref(), Some(&path));
            assert_eq!(machine.property(AGENT, "ActiveState")?, "active");
        }
        // It is still there to take a system that has one.
        let next = machine.push(world, &machine.system("3"))?;
        let status = world.carry_out(&machine, &next)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(machine.current_system()?.as_ref(), Some(&next));
        let fragment = machine.property(AGENT, "FragmentPath")?;
        assert!(
            !fragment.starts_with("/run/systemd/transient"),
            "{fragment}"
        );
        Ok(())
    });
}
