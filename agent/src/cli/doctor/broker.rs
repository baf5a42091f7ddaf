//! The way to the broker.
//!
//! Whoever connects with the agent's name takes its connection away: an agent that runs is asked how it stands, and
//! its place is taken for a moment only when none runs.

use std::time::Duration;

use hoist_certs::doctor::Finding;
use hoist_certs::mqtt::diagnose;
use hoist_protocol::{BrokerUrl, Channel};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::Agent;
use crate::config::Settings;
use crate::control::Connection;
use crate::mqtt::{Link, LinkEvent, Payload, Receipt, Target};

/// How long all of it may take for one broker: longer than the client itself waits for TCP and TLS, so that it says
/// what was missing, and on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What is found.
pub(super) async fn look(agent: &Agent, settings: Option<&Settings>) -> Vec<Finding> {
    let Some(settings) = settings else {
        return match agent {
            Agent::Runs(connection) => vec![of_agent(connection)],
            Agent::Stopped | Agent::Silent(_) => {
                vec![Finding::note(
                    "broker",
                    "not tried: there is nothing to connect with",
                )]
            }
        };
    };
    let urls = settings.brokers.urls();
    let mut findings = Vec::new();
    match agent {
        Agent::Runs(connection) => {
            findings.push(of_agent(connection));
            for url in urls.iter().filter(|url| **url != connection.broker) {
                findings.push(reachable(url).await);
            }
        }
        Agent::Silent(_) => {
            for url in urls {
                findings.push(reachable(url).await);
            }
        }
        Agent::Stopped => {
            for url in urls {
                findings.push(connect(url, settings).await);
            }
        }
    }
    findings
}

/// By the word of the agent that runs.
fn of_agent(connection: &Connection) -> Finding {
    let url = &connection.broker;
    if !connection.connected {
        let why = match connection.problem.is_empty() {
            true => format!("the agent is connecting to {url}"),
            false => format!("the agent is not connected: {}", connection.problem),
        };
        return Finding::wrong("broker", why)
            .advice("it tries again by itself; an activation by hand needs no broker: `hoist-agent activate`");
    }
    if let Some(denied) = connection.denied.first() {
        return Finding::wrong(
            "broker",
            format!("{url} does not let this agent read its own topic `{denied}`"),
        )
        .advice(TOPICS);
    }
    Finding::ok(
        "broker",
        format!("the agent is connected to {url} and hears its deployments"),
    )
}

const TOPICS: &str = "let the client with this certificate read its own `deploy` and `echo` topics";

/// Name lookup and TCP, which the broker does not take for anybody.
async fn reachable(url: &BrokerUrl) -> Finding {
    let addresses = match timeout(CONNECT, lookup_host((url.host(), url.port()))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            return Finding::wrong(
                "broker",
                format!("{url}: its name has no address ({error})"),
            )
            .advice("is the name right, and does name resolution work?");
        }
        Err(_) => {
            return Finding::wrong("broker", format!("{url}: no name server answers"))
                .advice("does name resolution work?");
        }
    };
    match timeout(CONNECT, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(_)) => Finding::ok(
            "broker",
            format!("{url} accepts connections; the agent is not connected there"),
        ),
        Ok(Err(error)) => {
            Finding::wrong("broker", format!("{url}: cannot connect ({error})")).advice(UP)
        }
        Err(_) => Finding::wrong(
            "broker",
            format!("{url}: no answer within {} s", CONNECT.as_secs()),
        )
        .advice(UP),
    }
}

const UP: &str = "is the broker up, is its port right, and does a firewall let this machine out?";

/// All of it: TLS, login, subscription, and a nonce there and back.
async fn connect(url: &BrokerUrl, settings: &Settings) -> Finding {
    let mut link = Link::open(Target {
        url,
        machine: &settings.machine,
        tls: &settings.tls,
        keepalive: settings.keepalive,
    });
    let mut step = "connect";
    let tried = timeout(PATIENCE, tries(&mut link, url, &mut step)).await;
    let finding = match tried {
        Ok(finding) => finding,
        Err(_) => Finding::wrong(
            "broker",
            format!(
                "{url}: nothing within {} s (step: {step})",
                PATIENCE.as_secs()
            ),
        )
        .advice(UP),
    };
    link.close().await;
    finding
}

async fn tries(link: &mut Link, url: &BrokerUrl, step: &mut &'static str) -> Finding {
    let nonce = format!("{:032x}", rand::random::<u128>());
    loop {
        match link.next().await {
            LinkEvent::Connected => {
                *step = "subscribe";
                if !link.subscribe() {
                    return Finding::wrong(
                        "broker",
                        format!("{url}: the subscription cannot be sent"),
                    );
                }
            }
            LinkEvent::Subscribed { deploy: false, .. } => {
                return Finding::wrong(
                    "broker",
                    format!("{url} lets us in, and does not let us read deployments"),
                )
                .advice(TOPICS);
            }
            LinkEvent::Subscribed { echo: false, .. } => {
                return Finding::wrong(
                    "broker",
                    format!("{url} lets us in, and does not let us read our echo"),
                )
                .advice(TOPICS);
            }
            LinkEvent::Subscribed { .. } => {
                *step = "echo";
                let sent = link.publish(Payload {
                    channel: Channel::Echo,
                    bytes: nonce.clone().into_bytes(),
                    receipt: Receipt::None,
                });
                if !sent {
                    return Finding::wrong("broker", format!("{url}: the echo cannot be sent"));
                }
            }
            LinkEvent::Echo(bytes) if bytes == nonce.as_bytes() => {
                return Finding::ok(
                    "broker",
                    format!("{url}: TLS, login, subscription and echo work"),
                );
            }
            LinkEvent::Echo(_) | LinkEvent::Deploy(_) | LinkEvent::Acknowledged(_) => {}
            LinkEvent::Lost(error) => {
                let failure = diagnose(&error, url);
                return Finding::wrong("broker", failure.to_string()).advice(UP);
            }
            LinkEvent::Silent(_) | LinkEvent::Died => {
                return Finding::wrong(
                    "broker",
                    format!("{url}: it stopped talking (step: {step})"),
                )
                .advice(UP);
            }
        }
    }
}
