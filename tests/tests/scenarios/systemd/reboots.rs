//! What only a boot brings: staged systems, new kernels, and a boot menu in which somebody chooses.

use anyhow::{Result, bail};
use hoist_protocol::{Action, DeploymentId, Reason, RebootReason, State, Status, StorePath};
use hoist_tests::machine::SYSTEM_PROFILE;
use hoist_tests::nspawn::{Booted, BootedSystem, booted_scenario};
use hoist_tests::world::World;

/// Stages `system` with the action `boot`: everything about the machine's future has changed, nothing of its present.
fn stage(
    world: &World,
    machine: &Booted,
    system: &BootedSystem,
) -> Result<(DeploymentId, StorePath)> {
    let now = machine.current_system()?;
    let path = machine.push(world, system)?;
    let mut forge = world.forge(machine, &path)?;
    forge.target.action = Action::Boot;
    let id = world.publish(&forge)?;
    let status = world.settled(machine, id)?;
    assert_eq!(status.state, State::Staged, "{}", status.message);
    assert_eq!(machine.current_system()?, now);
    assert_eq!(machine.profile(SYSTEM_PROFILE)?.as_ref(), Some(&path));
    assert_eq!(machine.boot_default()?.as_ref(), Some(&path));
    Ok((id, path))
}

/// How a staged deployment ended, by the status and by the history.
fn after_boot(world: &World, machine: &Booted, id: DeploymentId) -> Result<Status> {
    let ended = |status: &Status| {
        status.id == Some(id) && status.state.is_final() && status.state != State::Staged
    };
    let status =
        world
            .watch()
            .wait_status(machine.name(), "the staged deployment has ended", ended)?;
    hoist_tests::wait::until_true("its history says the same", || {
        let Some(history) = world.watch().history(machine.name())? else {
            return Ok(false);
        };
        let states: Vec<State> = history
            .entries
            .iter()
            .filter(|e| e.id == id)
            .map(|e| e.state)
            .collect();
        match states[..] {
            [state] => Ok(state == status.state),
            _ => bail!("the history says {states:?}"),
        }
    })?;
    Ok(status)
}

#[test]
fn a_staged_system_succeeds_with_the_boot_that_brings_it_and_no_other() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        let (id, v1) = stage(world, &machine, &machine.system("1").kernel("6.2"))?;
        machine.reboot()?;
        let status = after_boot(world, &machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(machine.booted_system()?.as_ref(), Some(&v1));
        assert_eq!(
            machine.activations()?,
            ["0 boot", "0 init", "1 boot", "1 init"]
        );

        // A power cut is a boot as well. Somebody who sits at the machine chooses the old system in the menu.
        let (id, _) = stage(world, &machine, &machine.system("2"))?;
        machine.choose_at_boot(&v1)?;
        machine.cut_power()?;
        machine.boot()?;
        machine.wait_up()?;
        let status = after_boot(world, &machine, id)?;
        assert_eq!(status.state, State::RolledBack, "{}", status.message);
        assert_eq!(status.reason, Some(Reason::BootedOther));
        assert_eq!(machine.booted_system()?.as_ref(), Some(&v1));
        Ok(())
    });
}

#[test]
fn a_machine_says_what_waits_for_a_reboot() {
    booted_scenario(|world| {
        let mut machine = Booted::running(world, "web-1")?;
        let v1 = machine.push(world, &machine.system("1").kernel("6.2"))?;
        let status = world.carry_out(&machine, &v1)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert!(
            status.reboot_reasons.contains(&RebootReason::Kernel),
            "{:?}",
            status.reboot_reasons
        );

        // One that cannot be activated without a reboot is staged, not tried again and again.
        let v2 = machine.push(world, &machine.system("2").inhibiting("exit 100"))?;
        let id = world.publish(&world.forge(&machine, &v2)?)?;
        let status = world.settled(&machine, id)?;
        assert_eq!(status.state, State::Staged, "{}", status.message);
        assert_eq!(machine.current_system()?, Some(v1));
        assert_eq!(machine.boot_default()?.as_ref(), Some(&v2));
        machine.reboot()?;
        let status = after_boot(world, &machine, id)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(status.reboot_reasons, []);
        assert_eq!(machine.current_system()?, Some(v2));
        Ok(())
    });
}
