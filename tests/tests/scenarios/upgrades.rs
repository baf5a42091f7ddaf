//! Agents of other versions on one state folder: what is written for those that may come back.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{DeploymentId, State, digest};
use hoist_tests::closure::System;
use hoist_tests::machine::{Gate, Machine};
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};

/// Writes the ledger of a stopped agent as the version before would have left it, in both copies.
fn as_the_version_before_wrote_it(machine: &Machine) -> Result<()> {
    for file in ["ledger", "ledger.copy"] {
        let path = machine.state().join(file);
        let text = fs::read_to_string(&path)?;
        let (_, json) = text.split_once('\n').context("a ledger has two lines")?;
        let sum = digest(json.as_bytes());
        fs::write(&path, format!("hoist-ledger 1 {sum}\n{json}"))?;
    }
    Ok(())
}

/// The format that the machine's ledger is written in.
fn ledger_format(machine: &Machine) -> Result<String> {
    let text = fs::read_to_string(machine.state().join("ledger"))?;
    let format = text.split(' ').nth(1).context("a ledger says its format")?;
    Ok(format.to_owned())
}

/// Has `version` deployed by an agent of the version before, and the agent replaced while it is activated; gives the
/// deployment and the gate before which the activation stands.
fn upgrade_while_activating(
    world: &World,
    machine: &mut Machine,
    version: &System,
    gate: &str,
) -> Result<(DeploymentId, Gate)> {
    let path = world.system(version)?;
    let gate = machine.gate(gate, "test")?;
    let id = world.publish(&world.forge(machine, &path)?)?;
    gate.wait_reached()?;
    machine.stop_agent()?;
    as_the_version_before_wrote_it(machine)?;
    machine.start_agent()?;
    wait::until_true("the agent can be asked", || {
        Ok(machine.state().join("control").exists())
    })?;
    Ok((id, gate))
}

#[test]
fn an_agent_that_a_deployment_upgrades_writes_the_new_ledger_format_only_once_that_has_held() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let agent = world.site().programs().agent.clone();
        let config = machine.config().to_owned();
        let local = |machine: &Machine, command: &str| {
            let args = [command, "--config", config.as_str()];
            machine.run(agent.as_str(), &args)?.success()
        };

        // One that does not hold: the agent of the version before comes back, and has to read its ledger.
        let bad = System::new("web-1", "bad").failing_after(2);
        let (id, gate) = upgrade_while_activating(world, &mut machine, &bad, "bad")?;
        // The upgraded agent writes its ledger meanwhile.
        local(&machine, "hold")?;
        let text = fs::read_to_string(machine.state().join("ledger"))?;
        ensure!(text.contains(r#""hold":{"#), "{text}");
        assert_eq!(ledger_format(&machine)?, "1");
        local(&machine, "release")?;
        gate.open()?;
        let status = world.settled(&machine, id)?;
        ensure!(!status.state.is_good(), "{}", status.message);
        assert_eq!(ledger_format(&machine)?, "1");

        // One that holds.
        let good = System::new("web-1", "good");
        let (id, gate) = upgrade_while_activating(world, &mut machine, &good, "good")?;
        gate.open()?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        wait::until_true("the format has moved", || {
            Ok(ledger_format(&machine)? == "2")
        })?;
        Ok(())
    });
}

#[test]
fn an_agent_leaves_the_ledger_of_a_newer_version_alone_and_says_so() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);
        machine.stop_agent()?;
        let json = r#"{"of another form": true}"#;
        let sum = digest(format!("hoist-ledger 3\n{json}").as_bytes());
        let newer = format!("hoist-ledger 3 {sum}\n{json}");
        for file in ["ledger", "ledger.copy"] {
            fs::write(machine.state().join(file), &newer)?;
        }
        machine.start_agent()?;
        let agent = machine.agent()?;
        ensure!(!agent.wait()?.success(), "it refuses to start");
        let said = agent.stderr()?;
        ensure!(
            said.contains("is of format 3") && said.contains("start that one again"),
            "{said}"
        );
        for file in ["ledger", "ledger.copy"] {
            assert_eq!(fs::read_to_string(machine.state().join(file))?, newer);
        }
        Ok(())
    });
}
