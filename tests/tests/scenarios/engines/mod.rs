//! Other engines as the broker, as `hoist-broker export` configures them.

mod access;
mod mosquitto;
mod nats;

use std::fs;

use anyhow::Result;
use hoist_tests::machine::Machine;

/// Gives the agent of `machine` these brokers to go to when its first one does not answer.
fn knows_also(machine: &Machine, ports: &[u16]) -> Result<()> {
    let first = format!("mqtts://127.0.0.1:{}", machine.proxy().port());
    let others = ports.iter().map(|port| format!("mqtts://127.0.0.1:{port}"));
    let brokers: Vec<String> = std::iter::once(first.clone()).chain(others).collect();
    let text = fs::read_to_string(machine.config())?;
    let changed = text.replace(
        &format!("broker = {first:?}"),
        &format!("broker = {brokers:?}"),
    );
    anyhow::ensure!(changed != text, "the agent's configuration names no broker");
    Ok(fs::write(machine.config(), changed)?)
}
