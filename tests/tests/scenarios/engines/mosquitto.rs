//! mosquitto as the broker.

use anyhow::{Context as _, Result, ensure};
use hoist_certs::Credentials;
use hoist_protocol::{AgentName, Channel, FleetName, Machine, fleet_filter};
use hoist_tests::authority::Identity;
use hoist_tests::engines::Kind;
use hoist_tests::engines::session::{Answer, Session};
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, scenario};

const MOSQUITTO: Options = Options {
    broker_without_keys: true,
    engine: Some(Kind::Mosquitto),
};

/// More than the 1,000 messages that mosquitto lets wait for a client by default.
const MACHINES: usize = 1_500;

async fn connect(port: u16, identity: &Identity, id: &str) -> Result<Session> {
    let credentials = Credentials {
        ca: identity.ca.clone().into(),
        certificate: identity.certificate.clone().into(),
        key: identity.key.clone().into(),
    };
    let session = Session::open(port, &credentials.client()?, id, None).await?;
    session.with_context(|| format!("{id} is not let in"))
}

#[test]
fn whoever_watches_a_large_fleet_misses_no_machine_over_mosquitto() {
    scenario(MOSQUITTO, |world| {
        let admin = world.authority.issue("admin", "root", &[])?;
        let monitor = world.authority.issue("monitor", "wall", &[])?;
        world.broker.admit()?;
        let port = world.broker.port();
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let fleet: FleetName = FLEET.parse()?;
            let writer = connect(port, &admin, "root").await?;
            for number in 0..MACHINES {
                let agent = AgentName::new(format!("web-{number}"))?;
                let topic = Machine::new(fleet.clone(), agent)
                    .topic(Channel::Presence)
                    .to_string();
                let answer = writer.publish(&topic, "offline", true).await?;
                ensure!(
                    answer == Answer::Acknowledged,
                    "mosquitto does not take {topic}"
                );
            }
            let reader = connect(port, &monitor, "wall").await?;
            let filters = [fleet_filter(&fleet, Channel::Presence)];
            ensure!(
                reader.subscribe(&filters).await?,
                "a monitor reads presences"
            );
            reader.wait_count(MACHINES).await
        })
    });
}

#[test]
fn a_revoked_certificate_does_nothing_any_more_on_mosquitto() {
    scenario(MOSQUITTO, |world| {
        let agent = world.foreigner("agent", "web-1")?;
        let reader = world.client(world.publisher.clone(), "ci.reader");
        let (deploy, status) = ("hoist/v1/prod/web-1/deploy", "hoist/v1/prod/web-1/status");
        reader.publish(deploy, b"signed", true)?.success()?;
        agent.publish(status, b"before", true)?.success()?;
        wait::until("it reads its own", || agent.retained(deploy))?;

        world.authority.run(&["revoke", "web-1"])?.success()?;
        world.broker.admit()?;
        // Without the CA's list of revoked certificates mosquitto lets it in, to no use.
        agent.publish(status, b"after", true)?;
        ensure!(agent.retained(deploy)?.is_none(), "it still reads");
        let kept = wait::until("its report is still kept", || reader.retained(status))?;
        ensure!(kept == b"before", "it still writes: {kept:?}");
        Ok(())
    });
}
