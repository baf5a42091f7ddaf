//! A plain user whose home is deployed: no root, the user's own service manager, and the store behind Nix's daemon.

use anyhow::Result;
use hoist_protocol::{HealthCheck, Probe, ProfileName, Reason, State, Status, Text, UnitName};
use hoist_tests::closure::Closure;
use hoist_tests::machine::Deployable as _;
use hoist_tests::nspawn::{AGENT, Trust, USER, UserMachine, booted_scenario};
use hoist_tests::wait;
use hoist_tests::world::World;

#[test]
fn a_users_home_is_deployed_without_root_and_one_that_fails_is_taken_back() {
    booted_scenario(|world| {
        let user = UserMachine::running(world, "ann-1", Trust::Untrusted)?;
        let v0 = user.current_system()?;
        let name = user.name();
        let first = world.watch().status(name)?.expect("it has reported");
        assert_eq!(first.current_path, v0, "it tells the home, not the system");
        assert_eq!(first.profile_path, v0);
        assert_eq!(first.state, State::Idle);

        let v1 = user.push(world, &user.home("1"))?;
        let status = world.carry_out(&user, &v1)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(status.kind.as_ref().map(Text::as_str), Some("home-manager"));
        assert_eq!(status.previous_path, v0);
        assert_eq!(status.profile_path.as_ref(), Some(&v1));
        assert_eq!(user.current_system()?.as_ref(), Some(&v1));
        assert_eq!(user.home_profile()?.as_ref(), Some(&v1));
        assert_eq!(user.property("web.service", "Environment")?, "VERSION=1");

        nothing_is_roots(&user)?;

        // One whose script fails, and one that keeps the machine from the broker.
        let fails = user
            .home("2")
            .activation("echo 'no such thing' >&2; exit 3");
        let cut_off = user.home("3").without_network();
        for (home, reason) in [
            (fails, Reason::ActivationFailed),
            (cut_off, Reason::NotConfirmed),
        ] {
            let mut forge = world.forge(&user, &user.push(world, &home)?)?;
            forge.target.confirm_timeout_ms = 3000;
            let id = world.publish(&forge)?;
            let status = world.settled(&user, id)?;
            assert!(
                matches!(status.state, State::RolledBack | State::Failed),
                "{}: {}",
                status.state,
                status.message
            );
            assert_eq!(status.reason, Some(reason), "{}", status.message);
            assert_eq!(user.current_system()?.as_ref(), Some(&v1));
            assert_eq!(user.home_profile()?.as_ref(), Some(&v1));
            assert_eq!(user.property("web.service", "Environment")?, "VERSION=1");
        }
        assert_eq!(
            user.machine().activations()?,
            [
                "0 boot",
                "0 init",
                "0 activate",
                "1 activate",
                "2 activate",
                "1 activate",
                "3 activate",
                "1 activate"
            ]
        );
        tells_what_came_last(world, &user)
    });
}

/// What the user's status tells is what was deployed last: a plain profile beside the home, and the home again.
fn tells_what_came_last(world: &World, user: &UserMachine) -> Result<()> {
    let home = user.current_system()?;
    // The agent's own, and one of another name.
    for name in [None, Some("tools")] {
        let tools = world.push(&Closure::profile("tools", name.unwrap_or("1")))?;
        let mut forge = world.forge(user, &tools)?;
        forge.target.profile = name.map(ProfileName::new).transpose()?;
        let id = world.publish(&forge)?;
        let ended = |status: &Status| status.id == Some(id) && status.state.is_final();
        let status = world
            .watch()
            .wait_status(user.name(), "it has ended", ended)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(status.current_path.as_ref(), Some(&tools));
        let folder = "/home/ann/.local/state/nix/profiles";
        let profile = format!("{folder}/{}", name.unwrap_or("hoist"));
        assert_eq!(user.profile(&profile)?, Some(tools));
        assert_eq!(user.current_system()?, home);
    }

    // The units that are checked are the user's: of the two services the machine's manager knows only one.
    let next = user.push(world, &user.home("4"))?;
    let mut forge = world.forge(user, &next)?;
    for unit in [AGENT, "web.service"] {
        let probe = Probe::Unit(UnitName::new(unit)?);
        forge.target.health_checks.push(HealthCheck::new(probe));
    }
    let id = world.publish(&forge)?;
    let status = world.settled(user, id)?;
    assert_eq!(status.state, State::Succeeded, "{}", status.message);
    Ok(())
}

/// The agent runs as the user, and what it keeps belongs to nobody else.
fn nothing_is_roots(user: &UserMachine) -> Result<()> {
    let pid = user.agent_pid()?;
    let machine = user.machine();
    let owner = ["--format=%U", &format!("/proc/{pid}")];
    assert_eq!(machine.run("stat", &owner)?.success()?.trim(), USER);
    let state = ["--format=%U %a", "/home/ann/.local/state/hoist-agent"];
    assert_eq!(
        machine.run("stat", &state)?.success()?.trim(),
        format!("{USER} 700")
    );
    // What was deployed is kept from the garbage collector, which is root's.
    let current = user.current_system()?.expect("something runs");
    machine.run("nix-collect-garbage", &[])?.success()?;
    let roots = ["--query", "--roots", current.as_str()];
    let roots = machine.run("nix-store", &roots)?.success()?;
    assert!(roots.contains("/hoist-agent/roots/"), "{roots}");
    Ok(())
}

#[test]
fn a_users_activation_outlives_the_death_of_the_agent_and_the_agent_replaces_itself() {
    booted_scenario(|world| {
        let mut user = UserMachine::running(world, "ann-1", Trust::Trusted)?;
        let first = user.agent_pid()?;
        // A generation of old, which sets the profile itself, with another agent.
        let next = user.home("1").of_old().agent_revision("2");
        let v1 = user.push(world, &next)?;
        let gate = user.gate("1")?;
        let id = world.publish(&world.forge(&user, &v1)?)?;
        gate.wait_reached()?;
        let units = [
            "--user",
            "list-units",
            "--plain",
            "--no-legend",
            "hoist-activator-*",
        ];
        let activator = user.run("systemctl", &units)?.success()?;
        assert_eq!(activator.lines().count(), 1, "{activator}");
        let kill = ["--user", "kill", "--signal=KILL", "--kill-whom=main", AGENT];
        user.run("systemctl", &kill)?.success()?;
        wait::until_true("the user's manager has started another agent", || {
            Ok(user.property(AGENT, "ActiveState")? == "active" && user.agent_pid()? != first)
        })?;
        assert_eq!(user.run("systemctl", &units)?.success()?, activator);
        gate.open()?;
        let status = world.settled(&user, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(user.home_profile()?.as_ref(), Some(&v1));
        assert_eq!(user.home_generations()?.len(), 2);
        let program = format!("/proc/{}/exe", user.agent_pid()?);
        let program = user.machine().run("readlink", &[&program])?.success()?;
        assert!(program.contains("-hoist-agent-2/"), "{program}");

        // One that would leave the user without an agent is refused, and the power is cut in the middle of the next.
        let without = user.push(world, &user.home("2").without_agent())?;
        let status = world.carry_out(&user, &without)?;
        assert_eq!(status.reason, Some(Reason::NoAgent), "{}", status.message);
        let v3 = user.push(world, &user.home("3").agent_revision("2"))?;
        let gate = user.gate("3")?;
        let id = world.publish(&world.forge(&user, &v3)?)?;
        gate.wait_reached()?;
        user.machine_mut().cut_power()?;
        drop(gate);
        user.machine_mut().boot()?;
        user.machine_mut().wait_up()?;
        let status = world.settled(&user, id)?;
        assert_eq!(
            status.reason,
            Some(Reason::Interrupted),
            "{}",
            status.message
        );
        assert_eq!(user.current_system()?.as_ref(), Some(&v1));
        assert_eq!(user.home_profile()?.as_ref(), Some(&v1));
        Ok(())
    });
}
