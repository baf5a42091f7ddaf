//! A NATS cluster of three as the broker.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use hoist_certs::Credentials;
use hoist_protocol::State;
use hoist_tests::authority::Identity;
use hoist_tests::closure::System;
use hoist_tests::engines::Kind;
use hoist_tests::foreign::{Client, Watch};
use hoist_tests::wait::{self, PATIENCE};
use hoist_tests::world::{FLEET, Options, World, scenario};

use super::knows_also;

const NATS: Options = Options {
    broker_without_keys: true,
    engine: Some(Kind::Nats),
};

/// `hoist` with another node as its broker.
fn hoist_over(world: &World, port: u16, args: &[&str]) -> Result<hoist_tests::process::Finished> {
    let mut command = world.hoist_command();
    command
        .env("HOIST_BROKER", format!("mqtts://127.0.0.1:{port}"))
        .args(args);
    hoist_tests::process::run("hoist", command, world.site().logs())
}

#[test]
fn deployments_survive_the_loss_of_a_node() {
    scenario(NATS, |world| {
        let ports = world.broker.engine()?.ports();
        let mut machine = world.machine("web-1")?;
        knows_also(&machine, &ports[1..])?;
        // A node that learns of a message late does not send it to whoever has subscribed before: the agent asks again.
        let config = fs::read_to_string(machine.config())?;
        fs::write(machine.config(), config + "status_interval = \"5s\"\n")?;
        let watcher = world.authority.identity("publisher", "watcher");
        let client = Client::new(watcher, "watcher.3", ports[2], world.site().logs());
        let watch = Watch::start(&client, FLEET)?;
        machine.start_agent()?;
        watch.wait_presence(machine.name(), "online")?;

        // The node that the agent and CI are connected to is gone: both go to the next. It may take a while to serve
        // its first client.
        world.broker.engine()?.kill(0)?;
        let next = Client::new(
            world.publisher.clone(),
            "ci.2",
            ports[1],
            world.site().logs(),
        );
        wait::until_true("the next node serves", || {
            next.can_subscribe("hoist/v1/prod/+/status")
        })?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let spec = world.spec(&[(machine.name(), &v1)], None)?;
        hoist_over(world, ports[1], &["deploy", "--wait", "all", spec.as_str()])?.expect_code(0)?;
        ensure!(machine.current_system()?.as_ref() == Some(&v1));

        // Of what is published while a machine sleeps, each node has a copy.
        machine.stop_agent()?;
        watch.wait_presence(machine.name(), "offline")?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let spec = world.spec(&[(machine.name(), &v2)], None)?;
        hoist_over(world, ports[1], &["deploy", spec.as_str()])?.expect_code(8)?;
        let engine = world.broker.engine()?;
        engine.restart(0)?;
        let topic = format!("hoist/v1/{FLEET}/{}/deploy", machine.name());
        let back = Client::new(
            world.publisher.clone(),
            "ci.0",
            ports[0],
            world.site().logs(),
        );
        let kept = wait::until("the deployment is kept", || next.retained(&topic))?;
        wait::until_true("the node that was away has it too", || {
            let found = back.retained(&topic);
            Ok(found.is_ok_and(|found| found.as_ref() == Some(&kept)))
        })?;
        world.broker.engine()?.kill(1)?;
        machine.start_agent()?;
        watch.wait_status(machine.name(), "it runs version 2", |status| {
            status.state == State::Succeeded && status.current_path.as_ref() == Some(&v2)
        })?;
        Ok(())
    });
}

/// Introduces itself in NATS's own protocol as `user` without a password, and gives all that is said until `end`, or
/// until the connection is closed.
fn introduce(mut stream: impl Read + Write, user: &str, end: &str) -> Result<String> {
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"tls_required\":false,\"name\":\"N\",\"cluster\":\"hoist\",\
         \"user\":\"{user}\",\"pass\":\"\"}}\r\nPING\r\n"
    );
    stream.write_all(connect.as_bytes())?;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&said).contains(end) {
        match stream.read(&mut buffer)? {
            0 => break,
            len => said.extend_from_slice(&buffer[..len]),
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn tcp(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The port for other nodes, as whoever has `identity`.
fn route(port: u16, identity: &Identity) -> Result<String> {
    let credentials = Credentials {
        ca: identity.ca.clone().into(),
        certificate: identity.certificate.clone().into(),
        key: identity.key.clone().into(),
    };
    let name = "localhost".to_owned().try_into()?;
    let tls = rustls::ClientConnection::new(credentials.client()?.config(), name)?;
    introduce(rustls::StreamOwned::new(tls, tcp(port)?), "", "PONG")
}

const VIOLATION: &str = "Authorization Violation";

#[test]
fn nats_has_no_other_door_than_mqtt() {
    scenario(NATS, |world| {
        let agent = world.authority.issue("agent", "web-1", &[])?;
        world.broker.admit()?;
        let node = world.authority.identity("broker", "node");
        let engine = world.broker.engine()?;
        let port = engine.cluster_ports()[0];
        // Whoever joins the cluster sees everything: a machine's certificate must not be enough.
        let said = route(port, &node)?;
        ensure!(said.contains("PONG"), "a node is let in: {said}");
        let said = route(port, &agent)?;
        ensure!(
            said.contains(VIOLATION),
            "an agent is one of the cluster: {said}"
        );

        // A user without a password is one with an empty password to NATS's own protocol.
        let log = engine.process(0).stderr()?;
        let (_, rest) = log
            .split_once("Listening for client connections on 127.0.0.1:")
            .context("NATS names no port of its own protocol")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let said = introduce(tcp(digits.parse()?)?, "CN=web-1,OU=agent,O=prod", "PONG")?;
        ensure!(said.contains(VIOLATION), "it is let in: {said}");
        Ok(())
    });
}

#[test]
fn a_revoked_certificate_is_shut_out_of_nats_and_what_it_said_stays() {
    scenario(NATS, |world| {
        let agent = world.foreigner("agent", "web-1")?;
        let reader = world.client(world.publisher.clone(), "ci.reader");
        let (deploy, status) = ("hoist/v1/prod/web-1/deploy", "hoist/v1/prod/web-1/status");
        wait::until_true("the agent is let in", || agent.can_subscribe(deploy))?;
        wait::until_true("its report is kept", || {
            agent.publish(status, b"{}", true)?;
            Ok(reader.retained(status).is_ok_and(|found| found.is_some()))
        })?;

        world.authority.run(&["revoke", "web-1"])?.success()?;
        world.broker.admit()?;
        ensure!(!agent.can_subscribe(deploy)?, "it is let in");
        wait::until_true("others are let in", || reader.can_subscribe(deploy))?;
        // With a user whom it does not know any more NATS would take away all that it has retained for it.
        let kept = wait::until("its report is still kept", || reader.retained(status))?;
        ensure!(kept == b"{}", "{kept:?}");
        Ok(())
    });
}
