//! What can be seen from outside: metrics, health, the audit log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use hoist_broker::{AuditFailure, FleetOptions, Options, Server, ServerError};
use hoist_certs::Role;
use hoist_protocol::FleetName;
use rumqttc::{Connect, ConnectReturnCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sessions::returning;
use crate::support::{Broker, Client, PATIENCE, World, topic, with_will};

fn told() -> Options {
    Options {
        metrics_listen: Some("0".to_owned()),
        ..Options::default()
    }
}

/// The status and the body of an answer.
async fn ask(at: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

pub(crate) async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    ask(at, &format!("GET {path} HTTP/1.1\r\nHost: hoist\r\n\r\n")).await
}

/// Asks again until the answer is as it should be.
async fn wait_for(at: SocketAddr, path: &str, good: impl Fn(u16, &str) -> bool) -> String {
    let asking = async {
        loop {
            let (status, body) = get(at, path).await;
            if good(status, &body) {
                return body;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asking).await.unwrap()
}

pub(crate) async fn wait_for_value(at: SocketAddr, series: &str, value: &str) {
    let line = format!("{series} {value}");
    wait_for(at, "/metrics", |_, body| {
        body.lines().any(|other| other == line)
    })
    .await;
}

/// Reads metrics with the strict parser of OpenMetrics' reference implementation: the value of every series.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broker/clients/openmetrics.py");
    // Debian's, which has Debian's modules.
    let mut python = Command::new("/usr/bin/python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let world = World::with(told());
    let broker = world.start().await;
    let at = broker.metrics.unwrap();
    let mut agent = world.agent(&broker, "web-1").await;
    assert!(agent.retain(&topic("web-1", "status"), "x").await);
    assert!(!agent.retain(&topic("web-2", "status"), "x").await);
    let _monitor = world.monitor(&broker).await;
    wait_for_value(at, "hoist_broker_sessions{role=\"agent\"}", "0").await;
    wait_for_value(at, "hoist_broker_sessions{role=\"monitor\"}", "1").await;
    let text = wait_for(at, "/metrics", |_, body| {
        body.contains("hoist_broker_refusals_total{reason=\"publish\"} 1")
    })
    .await;
    let series = parse(&text);
    let is = |name: &str, value: f64| {
        assert!(
            (series[name] - value).abs() < 0.5,
            "{name} is {}",
            series[name]
        );
    };
    is("hoist_broker_connections{role=\"monitor\"}", 1.0);
    is("hoist_broker_handshakes_total{outcome=\"done\"}", 2.0);
    is(
        "hoist_broker_messages_received_total{channel=\"status\"}",
        1.0,
    );
    is("hoist_broker_retained_messages", 1.0);
    is("hoist_broker_store_writable", 1.0);
    is("hoist_broker_store_commit_seconds_count", 1.0);
    assert!(series["hoist_broker_received_bytes_total"] > 50.0);
    assert!(series["hoist_broker_sent_bytes_total"] > 4.0);
    is("hoist_broker_fleet_connections{fleet=\"prod\"}", 1.0);
    is("hoist_broker_fleet_retained_messages{fleet=\"prod\"}", 1.0);
    let retained = topic("web-1", "status").len() + 1;
    let bytes = series["hoist_broker_fleet_retained_bytes{fleet=\"prod\"}"];
    assert_eq!(bytes.to_string(), retained.to_string());
    is(
        "hoist_broker_fleet_refusals_total{fleet=\"prod\",reason=\"publish\"}",
        1.0,
    );
    let end = series["hoist_broker_certificate_end_timestamp_seconds{certificate=\"server\"}"];
    assert!(end > 1.7e9, "the certificate's end is {end}");
    broker.stop().await;
}

/// A broker of two fleets, one of them with little room.
fn limited() -> World {
    let fleet = FleetOptions {
        max_connections: Some(2),
        max_watchers: Some(7),
        max_retained_messages: Some(1),
        ..FleetOptions::default()
    };
    let fleets = [("prod", fleet), ("test", FleetOptions::default())];
    let named = fleets.map(|(name, fleet)| (FleetName::new(name).unwrap(), fleet));
    World::with(Options {
        fleets: Some(named.into()),
        ..told()
    })
}

#[tokio::test]
async fn a_fleets_use_is_told_beside_what_it_may_use() {
    let world = limited();
    let broker = world.start().await;
    let at = broker.metrics.unwrap();
    // It may stay, and does: its client is away then.
    let mut stays = world.tls(&broker, Role::Agent, "web-1").await;
    stays.open(returning("web-1")).await;
    assert!(stays.retain(&topic("web-1", "status"), "x").await);
    assert!(!stays.retain(&topic("web-1", "history"), "x").await);
    let _one = world.agent(&broker, "web-2").await;
    let mut two = world.monitor(&broker).await;
    two.subscribe(&["hoist/v1/prod/+/status"]).await;
    wait_for_value(at, "hoist_broker_sessions_away{role=\"agent\"}", "1").await;
    let tls = world
        .credentials("prod", Role::Monitor, "other")
        .client()
        .unwrap();
    if let Ok(mut third) = Client::try_tls(&broker, tls.config()).await {
        third.expect_closed().await;
    }
    let quota = "hoist_broker_fleet_refusals_total{fleet=\"prod\",reason=\"quota\"}";
    // What it could not retain, and a connection too many.
    wait_for_value(at, quota, "2").await;
    let series = parse(&get(at, "/metrics").await.1);
    for (name, value) in [
        ("kept_sessions", Some(1)),
        ("kept_sessions_limit", Some(10_000)),
        ("fleet_connections{fleet=\"prod\"}", Some(2)),
        ("fleet_connections_limit{fleet=\"prod\"}", Some(2)),
        ("fleet_connections{fleet=\"test\"}", Some(0)),
        ("fleet_connections_limit{fleet=\"test\"}", None),
        ("watchers", Some(1)),
        ("fleet_watchers{fleet=\"prod\"}", Some(1)),
        ("fleet_watchers_limit{fleet=\"prod\"}", Some(7)),
        ("fleet_watchers{fleet=\"test\"}", Some(0)),
        ("fleet_watchers_limit{fleet=\"test\"}", None),
        ("fleet_retained_messages{fleet=\"prod\"}", Some(1)),
        ("fleet_retained_messages_limit{fleet=\"prod\"}", Some(1)),
        ("fleet_retained_messages{fleet=\"test\"}", Some(0)),
    ] {
        let found = series.get(&format!("hoist_broker_{name}"));
        let found = found.map(ToString::to_string);
        assert_eq!(found, value.map(|value: u32| value.to_string()), "{name}");
    }
    broker.stop().await;
}

/// The metrics that the manual lists, by name.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring.md");
    let text = std::fs::read_to_string(page).unwrap();
    let names = text.lines().filter_map(|line| {
        let name = line.strip_prefix("| `hoist_broker_")?.split_once('`')?.0;
        Some(format!("hoist_broker_{name}"))
    });
    names.collect()
}

#[tokio::test]
async fn the_manual_lists_every_metric_and_no_other() {
    let world = limited();
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    assert!(!agent.retain(&topic("web-2", "status"), "x").await);
    let (_, text) = get(broker.metrics.unwrap(), "/metrics").await;
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let told: BTreeSet<String> = kinds
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    assert_eq!(told, documented());
    broker.stop().await;
}

#[tokio::test]
async fn clients_whose_certificates_end_soon_are_counted_by_role() {
    let world = World::with(told());
    let server = Server::bind(world.settings()).await.unwrap();
    let reload = server.reload();
    let broker = Broker::of(server);
    // All certificates here are for a day.
    let _agent = world.agent(&broker, "web-1").await;
    reload.now();
    let series = "hoist_broker_clients_ending_soon{role=\"agent\"}";
    wait_for_value(broker.metrics.unwrap(), series, "1").await;
    broker.stop().await;
}

#[tokio::test]
async fn it_is_alive_and_ready_and_answers_nothing_else() {
    let world = World::with(told());
    let broker = world.start().await;
    let at = broker.metrics.unwrap();
    assert_eq!(get(at, "/healthz").await, (200, "ok\n".to_owned()));
    wait_for(at, "/readyz", |status, body| {
        (status, body) == (200, "ok\n")
    })
    .await;
    assert_eq!(get(at, "/").await.0, 404);
    assert_eq!(get(at, "/metrics/x").await.0, 404);
    let post = "POST /metrics HTTP/1.1\r\nHost: hoist\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(at, post).await.0, 405);
    assert_eq!(ask(at, "nonsense\r\n\r\n").await.0, 400);
    // Who asks and says nothing does not stand in the way.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    assert_eq!(get(at, "/healthz").await.0, 200);
    broker.stop().await;
    assert!(TcpStream::connect(at).await.is_err(), "it still listens");
}

/// The audit log's lines.
fn lines(world: &World) -> Vec<Value> {
    let text = std::fs::read_to_string(world.state().join("audit.jsonl")).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn wait_for_line(world: &World, good: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            if let Some(line) = lines(world).into_iter().find(&good) {
                return line;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, looking)
        .await
        .unwrap_or_else(|_| panic!("no such line in {:#?}", lines(world)))
}

fn audited(world: World, failure: Option<AuditFailure>) -> World {
    let options = Options {
        audit_log: Some(world.state().join("audit.jsonl")),
        audit_failure: failure,
        ..told()
    };
    world.and(options)
}

#[tokio::test]
async fn every_deploy_publish_is_in_the_audit_log_before_it_is_acknowledged() {
    let world = audited(World::new(), None);
    let broker = world.start().await;
    let deploy = topic("web-1", "deploy");
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    for (payload, decision) in [("one", "accepted"), ("one", "repeat"), ("two", "accepted")] {
        assert!(publisher.retain(&deploy, payload).await);
        let line = lines(&world).pop().unwrap();
        assert_eq!(line["event"], "deploy", "{line}");
        assert_eq!(line["decision"], decision, "{line}");
        assert_eq!(line["role"], "publisher", "{line}");
        assert_eq!(line["name"], "ci", "{line}");
        assert_eq!(line["fleet"], "prod", "{line}");
        assert_eq!(line["client_id"], "ci.1", "{line}");
        assert_eq!(line["machine"], "prod/web-1", "{line}");
        assert_eq!(line["bytes"], 3, "{line}");
        assert_eq!(line["sha256"].as_str().unwrap().len(), 64, "{line}");
        let address = line["address"].as_str().unwrap();
        assert!(address.parse::<SocketAddr>().unwrap().ip().is_loopback());
        let time = line["time"].as_str().unwrap();
        assert!(
            time.parse::<jiff::Timestamp>().is_ok() && time.len() == 24,
            "{time}"
        );
    }
    let mut admin = world.client(&broker, Role::Admin, "root").await;
    assert!(admin.retain(&deploy, "").await);
    let line = lines(&world).pop().unwrap();
    assert_eq!(
        (&line["decision"], &line["role"]),
        (&"cleared".into(), &"admin".into())
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_deployment_that_a_last_will_brings_is_in_the_audit_log_with_whose_it_is() {
    let world = audited(World::new(), None);
    let broker = world.start().await;
    let mut publisher = world.tls(&broker, Role::Publisher, "ci").await;
    let will = with_will("ci.1", &topic("web-1", "deploy"), "last");
    publisher.connect(will).await;
    drop(publisher);
    let line = wait_for_line(&world, |line| line["event"] == "deploy").await;
    assert_eq!(line["decision"], "accepted", "{line}");
    assert_eq!(line["role"], "publisher", "{line}");
    assert_eq!(line["name"], "ci", "{line}");
    assert_eq!(line["client_id"], "ci.1", "{line}");
    let address = line["address"].as_str().unwrap();
    assert!(address.parse::<SocketAddr>().unwrap().ip().is_loopback());
    broker.stop().await;
}

#[tokio::test]
async fn every_refusal_is_in_the_audit_log_with_who_it_was() {
    let world = audited(World::new(), None);
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    assert!(!agent.retain(&topic("web-2", "status"), "x").await);
    let line = wait_for_line(&world, |line| line["reason"] == "publish").await;
    assert_eq!(
        (&line["event"], &line["decision"]),
        (&"refusal".into(), &"refused".into())
    );
    assert_eq!(
        (&line["role"], &line["name"]),
        (&"agent".into(), &"web-1".into())
    );
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("web-2/status"), "{message}");
    assert_eq!(line["what"], topic("web-2", "status").as_str());

    let mut monitor = world.monitor(&broker).await;
    let (ours, other) = ("hoist/v1/prod/+/status", "hoist/v1/test/+/status");
    monitor.subscribe(&[ours, other]).await;
    let line = wait_for_line(&world, |line| line["reason"] == "subscribe").await;
    assert_eq!(
        (&line["what"], &line["name"]),
        (&other.into(), &"mon".into())
    );

    let mut thief = world.tls(&broker, Role::Agent, "web-1").await;
    assert_ne!(
        thief.connect(Connect::new("web-2")).await,
        ConnectReturnCode::Success
    );
    let line = wait_for_line(&world, |line| line["reason"] == "client_id").await;
    assert_eq!(line["name"], "web-1");

    let stranger = World::new();
    let other = hoist_certs::Credentials {
        ca: world.authority.certificate_pem().to_owned().into(),
        ..stranger.credentials("prod", Role::Agent, "web-1")
    };
    let tls = other.client().unwrap();
    if let Ok(mut client) = Client::try_tls(&broker, tls.config()).await {
        // With TLS 1.3 the client is done before the broker has looked at its certificate.
        client.expect_closed().await;
    }
    let line = wait_for_line(&world, |line| line["reason"] == "certificate").await;
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("no CA"), "{message}");
    broker.stop().await;
}

#[tokio::test]
async fn a_rotated_audit_log_goes_on_in_a_new_file() {
    let world = audited(World::new(), None);
    let server = Server::bind(world.settings()).await.unwrap();
    let reopen = server.reopen_audit_log();
    let broker = Broker::of(server);
    let (log, old) = (
        world.state().join("audit.jsonl"),
        world.state().join("audit.1"),
    );
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    assert!(publisher.retain(&topic("web-1", "deploy"), "1").await);
    std::fs::rename(&log, &old).unwrap();
    assert!(publisher.retain(&topic("web-1", "deploy"), "2").await);
    reopen();
    assert!(publisher.retain(&topic("web-1", "deploy"), "3").await);
    assert_eq!(std::fs::read_to_string(&old).unwrap().lines().count(), 2);
    assert_eq!(lines(&world).len(), 1);
    broker.stop().await;
}

#[tokio::test]
async fn half_a_line_of_a_crash_spoils_no_other() {
    let world = audited(World::new(), None);
    let log = world.state().join("audit.jsonl");
    std::fs::write(&log, "{\"half\":").unwrap();
    let broker = world.start().await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    assert!(publisher.retain(&topic("web-1", "deploy"), "1").await);
    let text = std::fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["decision"], "accepted");
    broker.stop().await;
}

/// Makes every write to the audit log fail: a device that is always full stands in its place.
fn full(world: &World) {
    let log = world.state().join("audit.jsonl");
    std::fs::remove_file(&log).ok();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
}

#[tokio::test]
async fn without_an_audit_log_nothing_is_deployed() {
    let world = audited(World::new(), None);
    full(&world);
    let broker = world.start().await;
    let at = broker.metrics.unwrap();
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    let mut agent = world.agent(&broker, "web-1").await;
    assert!(!publisher.retain(&topic("web-1", "deploy"), "1").await);
    assert!(
        agent.retain(&topic("web-1", "status"), "x").await,
        "reports need no audit log"
    );
    wait_for(at, "/readyz", |status, body| {
        status == 503 && body.contains("audit log")
    })
    .await;
    // There is room again.
    std::fs::remove_file(world.state().join("audit.jsonl")).unwrap();
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    assert!(publisher.retain(&topic("web-1", "deploy"), "2").await);
    assert_eq!(get(at, "/readyz").await.0, 200);
    // The first publisher's refusal may be written only now, too.
    let all = lines(&world);
    let deploys = all.iter().filter(|line| line["event"] == "deploy");
    assert_eq!(deploys.count(), 1, "{all:#?}");
    broker.stop().await;
}

#[tokio::test]
async fn who_wants_to_can_deploy_without_an_audit_log() {
    let world = audited(World::new(), Some(AuditFailure::Continue));
    full(&world);
    let broker = world.start().await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    assert!(publisher.retain(&topic("web-1", "deploy"), "1").await);
    let at = broker.metrics.unwrap();
    wait_for(at, "/metrics", |_, body| {
        body.contains("hoist_broker_audit_failures_total 1")
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn an_audit_log_that_cannot_be_opened_is_named() {
    let world = World::new();
    let options = Options {
        audit_log: Some(world.state().join("no/such/folder/audit.jsonl")),
        ..Options::default()
    };
    let world = world.and(options);
    let error = world.try_start().await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ServerError::Audit(_)), "{error}");
}
