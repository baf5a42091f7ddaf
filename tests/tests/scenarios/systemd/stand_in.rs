//! An agent that stands in: systems without one that come one after another, where the order allows it.

use anyhow::Result;
use hoist_protocol::{Reason, State, StorePath};
use hoist_tests::nspawn::{AGENT, Booted, BootedSystem, booted_scenario};
use hoist_tests::wait;
use hoist_tests::world::World;

/// A system without an agent, whose switch stops the one that runs.
fn stops(machine: &Booted, version: &str) -> BootedSystem {
    machine
        .system(version)
        .without_agent()
        .after_switch(&format!("systemctl stop {AGENT}"))
}

/// Deploys `path`, allowed to come without an agent.
fn allowed(
    world: &World,
    machine: &Booted,
    path: &StorePath,
    confirm_timeout_ms: Option<u64>,
) -> Result<hoist_protocol::Status> {
    let mut forge = world.forge(machine, path)?;
    forge.target.allow_no_agent = true;
    if let Some(timeout) = confirm_timeout_ms {
        forge.target.confirm_timeout_ms = timeout;
    }
    let id = world.publish(&forge)?;
    world.settled(machine, id)
}

/// The unit that runs as the agent is a transient one, which has its secrets and is watched.
fn stands_in(machine: &Booted) -> Result<()> {
    assert_eq!(machine.property(AGENT, "ActiveState")?, "active");
    assert_eq!(machine.property(AGENT, "Transient")?, "yes");
    let unit = machine.run("systemctl", &["cat", AGENT])?.success()?;
    for setting in [
        "LoadCredential=certificate:",
        "LoadCredential=key:",
        "UMask=0077",
    ] {
        assert_eq!(unit.matches(setting).count(), 1, "{setting} in {unit}");
    }
    assert_ne!(machine.property(AGENT, "WatchdogUSec")?, "0");
    let secret = format!("/run/credentials/{AGENT}/key");
    machine.run("test", &["-s", &secret])?.success().map(drop)
}

#[test]
fn an_agent_that_stands_in_keeps_its_secrets_however_often_it_is_started_again() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        for version in ["1", "2", "3"] {
            let path = machine.push(world, &stops(&machine, version))?;
            let status = allowed(world, &machine, &path, None)?;
            assert_eq!(status.state, State::Succeeded, "{}", status.message);
            assert_eq!(machine.current_system()?, Some(path));
            stands_in(&machine)?;
            // systemd starts it again, and gives it its secrets again.
            let pid = machine.property(AGENT, "MainPID")?;
            let kill = ["kill", "--signal=KILL", "--kill-whom=main", AGENT];
            machine.run("systemctl", &kill)?.success()?;
            wait::until_true("systemd has started it again", || {
                let now = machine.property(AGENT, "MainPID")?;
                let is_active = machine.property(AGENT, "ActiveState")? == "active";
                Ok(is_active && now != "0" && now != pid)
            })?;
        }

        // What does not hold goes back to a system that has no agent either: the one that stands in stays.
        let v3 = machine.current_system()?;
        let cut = machine.push(world, &stops(&machine, "4").without_network())?;
        let status = allowed(world, &machine, &cut, Some(3_000))?;
        assert_eq!(status.state, State::RolledBack, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::NotConfirmed));
        assert_eq!(machine.current_system()?, v3);
        stands_in(&machine)?;

        // So it does when a system with an agent of its own does not hold.
        let own = machine.system("5").without_network();
        let own = machine.push(world, &own)?;
        let status = allowed(world, &machine, &own, Some(3_000))?;
        assert_eq!(status.state, State::RolledBack, "{}", status.message);
        assert_eq!(machine.current_system()?, v3);
        assert_eq!(machine.property(AGENT, "ActiveState")?, "active");

        // And one that holds takes its place.
        let last = machine.push(world, &machine.system("6"))?;
        let status = world.carry_out(&machine, &last)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        let unit = machine.property(AGENT, "FragmentPath")?;
        assert!(unit.starts_with("/etc/systemd/system/"), "{unit}");
        Ok(())
    });
}
