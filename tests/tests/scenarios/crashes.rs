//! Deaths that come together, or by the book; what one fault does in each phase stands in `faults`.

use hoist_protocol::State;
use hoist_tests::closure::System;
use hoist_tests::wait;
use hoist_tests::world::{Options, scenario};

#[test]
fn an_outcome_that_could_not_be_reported_is_reported_later() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        assert_eq!(world.carry_out(&machine, &v1)?.state, State::Succeeded);

        // The broker dies while the machine commits, and the agent dies before it is back.
        let v2 = world.system(&System::new("web-1", "2"))?;
        let gate = machine.gate("2", "boot")?;
        let id = world.publish(&world.forge(&machine, &v2)?)?;
        gate.wait_reached()?;
        world.broker.kill()?;
        gate.open()?;
        wait::until_true("the activator has ended", || {
            Ok(machine.activators()?.is_empty())
        })?;
        machine.kill_agent()?;
        world.broker.restart()?;
        machine.start_agent()?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        Ok(())
    });
}

#[test]
fn an_agent_that_is_stopped_while_activating_ends_at_once_and_confirms_when_it_is_back() {
    scenario(Options::default(), |world| {
        let mut machine = world.running("web-1")?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let gate = machine.gate("2", "test")?;
        let id = world.publish(&world.forge(&machine, &v2)?)?;
        gate.wait_reached()?;
        machine.stop_agent()?;
        assert_eq!(machine.activators()?.len(), 1, "the activator lives on");
        gate.open()?;
        machine.start_agent()?;
        assert_eq!(world.settled(&machine, id)?.state, State::Succeeded);
        assert_eq!(machine.activations()?, ["2 test", "2 boot"]);
        Ok(())
    });
}
